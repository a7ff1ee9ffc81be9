"""Power for people and for scripts: tables, JSON, a plot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.power.measure import FaultRow, Power, RightRow
from stepcheck.harness.power.optim_db import knows
from stepcheck.harness.power.oracles import ORACLES
from stepcheck.harness.power.reasons import reason
from stepcheck.harness.power.statistics import Interval, proportion, quantile
from stepcheck.harness.readers import report

#: What each fault must be caught with, in a campaign of the default length.
WANTED = 0.99
#: Campaigns of each fault that its probability is estimated from.
ENOUGH = 20
_SLOWEST = 10
KINDS = {
    "history": "it happened to somebody",
    "rule": "in the formula",
    "life": "around the steps, or in memory",
    "mutant": "made from a Spec",
    "large": "beyond a block of elements",
    "many": "with many parameters or groups",
    "long": "after many steps",
    "rare": "one element, step or group in hundreds",
    "valued": "at option values that are seldom tried",
    "handled": "after what a user does between steps",
    "surroundings": "in the surroundings of a step",
    "switched": "where a flag chooses another implementation",
    "spelled": "where an option is spelled otherwise",
    "elsewhere": "when it goes on in another process, or beside its copy",
}
LEGEND = (
    "caught: campaigns of {examples} lives that say no, of {seeds} seeds for each fault, with its 95 % interval (Clopper and Pearson). P >= 0.99: faults that a"
    " campaign catches with at least that probability, estimated from the lives that {seeds} campaigns took to the first no."
    " lives and CPU seconds: to that first no, median and 95th percentile. The last columns: faults that other oracles catch, asked once each."
)


def _table(*titles: str, left: int = 1) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for n, title in enumerate(titles):
        made.add_column(title, justify="left" if n < left else "right", no_wrap=n < left)
    return made


def _percent(x: float) -> str:
    return "-" if math.isnan(x) else f"{100 * x:.4g} %"


def _within(interval: Interval) -> str:
    return f"{_percent(interval.estimate)} ({100 * interval.low:.4g}-{100 * interval.high:.4g})"


def by_kind(power: Power) -> Table:
    """A row for each kind of fault, and one for all."""
    made = _table(
        "kind", "", "faults", "caught", f"P >= {WANTED}", "lives", "CPU s", *(o.name for o in ORACLES), left=2
    )
    for kind, told in (*KINDS.items(), ("all", "")):
        rows = [r for r in power.faults if kind in (r.fault.kind, "all")]
        if rows:
            made.add_row(kind, told, *_summary(rows, power), style="bold" if kind == "all" else "")
    return made


def by_optimizer(power: Power) -> Table:
    """A row for each optimizer."""
    made = _table("optimizer", "faults", "caught", f"P >= {WANTED}", "lives", "CPU s", *(o.name for o in ORACLES))
    for like in dict.fromkeys(sorted(r.fault.like for r in power.faults)):
        made.add_row(like, *_summary([r for r in power.faults if r.fault.like == like], power))
    return made


def _summary(rows: Sequence[FaultRow], power: Power) -> list[str]:
    kills = [k for r in rows for k in r.kills]
    lives = [float(k.examples) for k in kills if k.caught]
    seconds = [k.seconds for k in kills if k.caught]
    sure = sum(r.probability(power.plan.examples).estimate >= WANTED for r in rows)
    return [
        str(len(rows)),
        _within(proportion(sum(k.caught for k in kills), len(kills))),
        f"{sure} of {len(rows)}",
        f"{quantile(lives, 0.5):.0f}, {quantile(lives, 0.95):.0f}",
        f"{quantile(seconds, 0.5):.3f}, {quantile(seconds, 0.95):.3f}",
        *(f"{_percent(_share(rows, o.name))}" for o in ORACLES),
    ]


def _share(rows: Iterable[FaultRow], oracle: str) -> float:
    """The share of faults that an oracle says no to."""
    answers = [bool(r.answers[oracle].why) for r in rows if oracle in r.answers]
    return sum(answers) / len(answers) if answers else math.nan


def _was_asked(rows: Sequence[FaultRow], oracle: str) -> bool:
    return not rows or any(oracle in r.answers for r in rows)


def kill_matrix(power: Power) -> Table:
    """Which checks say no to which faults: a row for each check, a column for each kind, faults that it ended a campaign of."""
    made = _table("check", *KINDS, "all", "alone")
    spoken = [(r.fault.kind, set(r.checks)) for r in power.faults]
    alone = Counter(next(iter(checks)) for _, checks in spoken if len(checks) == 1)
    for check in CHECKS:
        counts = Counter(kind for kind, checks in spoken if check in checks)
        cells = [counts[kind] for kind in KINDS]
        made.add_row(check, *(str(n or "") for n in (*cells, sum(cells), alone[check])))
    return made


def slowest(power: Power) -> Table:
    """The faults that take the most lives, and what those that show them have in common."""
    made = _table("slowest", "what is wrong", "caught", "P", "lives", "CPU s", "what lives that show it have", left=2)
    made.columns[1].no_wrap = False
    made.columns[-1].justify = "left"
    for row in slowest_rows(power):
        kills = [k for k in row.kills if k.caught]
        made.add_row(
            row.fault.name,
            row.fault.told,
            f"{len(kills)}/{len(row.kills)}",
            f"{row.probability(power.plan.examples).estimate:.4f}",
            f"{_mean_lives(row):.0f}",
            f"{quantile([k.seconds for k in kills], 0.5):.2f}",
            reason(row) or "-",
        )
    return made


def slowest_rows(power: Power) -> list[FaultRow]:
    """The faults that take the most lives on average."""
    return sorted(power.faults, key=lambda r: (-_mean_lives(r), r.fault.name))[:_SLOWEST]


def _mean_lives(row: FaultRow) -> float:
    """Lives for each campaign that caught it."""
    return sum(k.examples for k in row.kills) / max(sum(k.caught for k in row.kills), 1)


def doubtful(power: Power) -> list[str]:
    """Faults that a campaign may miss, in a line each."""
    rows = (r for r in power.faults if _is_doubtful(r, power.plan.examples))
    return [
        f"may be missed: {r.fault.name} ({r.fault.told}): caught in {sum(k.caught for k in r.kills)} of {len(r.kills)} campaigns,"
        f" P {_within(r.probability(power.plan.examples))}"
        + "".join(sorted({f"; {k.error}" for k in r.kills if k.error}))
        for r in sorted(rows, key=lambda r: r.probability(power.plan.examples).estimate)
    ]


def _is_doubtful(row: FaultRow, examples: int) -> bool:
    """Whether the estimate is too low; of few campaigns, which estimate little, whether its upper bound is."""
    probability = row.probability(examples)
    return (probability.estimate if len(row.kills) >= ENOUGH else probability.high) < WANTED


def false_alarms(power: Power) -> list[str]:
    """What became of the right optimizers, in lines: stepcheck first, then each other oracle."""
    lines = []
    groups: Mapping[str, list[RightRow]] = {
        "right optimizers": [r for r in power.right if r.campaigns and not r.equivalent],
        "changes that no input can tell": [r for r in power.right if r.campaigns and r.equivalent],
    }
    for name, rows in groups.items():
        steps, lives = sum(r.steps for r in rows), sum(r.lives for r in rows)
        alarms = sum(len(r.alarms) for r in rows)
        asked = [r for r in rows if knows(r.variant.like)]
        high = proportion(min(alarms, lives), lives).high if lives else 1.0
        others = [
            f"{o.name} {sum(bool(r.answers[o.name].why) for r in rows if o.name in r.answers)} of {len(asked)}"
            for o in ORACLES
        ]
        lines.append(
            f"false alarms: {alarms} in {steps:,} judged steps ({lives:,} lives) of {len(rows)} {name}; fewer than"
            f" {high:.2g} a life with 95 % confidence. Other oracles: {', '.join(others)}."
        )
    unasked = dict.fromkeys(r.variant.like for r in power.right if not knows(r.variant.like))
    lines += [
        f"other oracles: not asked of {name}, which torch.optim does not have to compare with" for name in unasked
    ]
    lines += [f"FALSE ALARM: {row.variant.name} ({row.variant.told}), {alarm}" for row, alarm in power.alarms]
    return lines


# --- JSON


def to_json(power: Power, version: str) -> dict[str, Any]:
    """Everything, one entry for each fault and each right optimizer."""
    examples = power.plan.examples
    kills = [k for r in power.faults for k in r.kills]
    return {
        "stepcheck": version,
        "environment": report.environment(),
        "plan": asdict(power.plan),
        "seconds": round(power.seconds, 1),
        "oracles": {o.name: o.told for o in ORACLES},
        "summary": {
            "faults": len(power.faults),
            "caught": proportion(sum(k.caught for k in kills), len(kills))._asdict(),
            "wanted_probability": WANTED,
            "at_least_wanted": sum(r.probability(examples).estimate >= WANTED for r in power.faults),
            "lives": _quantiles([float(k.examples) for k in kills if k.caught]),
            "cpu_seconds": _quantiles([k.seconds for k in kills if k.caught]),
            "judged_steps": power.steps,
            "false_alarms": len(power.alarms),
            "other_oracles": {
                o.name: _share(power.faults, o.name) for o in ORACLES if _was_asked(power.faults, o.name)
            },
        },
        "faults": [_fault(r, examples) for r in power.faults],
        "slowest": [{"name": r.fault.name, "lives": _mean_lives(r), "reason": reason(r)} for r in slowest_rows(power)],
        "right": [_right(r) for r in power.right if not r.equivalent],
        "equivalent": [_right(r) | {"why": r.equivalent} for r in power.right if r.equivalent],
    }


def _quantiles(values: Sequence[float]) -> dict[str, float]:
    return {"median": quantile(values, 0.5), "p95": quantile(values, 0.95), "largest": max(values, default=math.nan)}


def _fault(row: FaultRow, examples: int) -> dict[str, Any]:
    return {
        "name": row.fault.name,
        "like": row.fault.like,
        "kind": row.fault.kind,
        "told": row.fault.told,
        "links": list(row.fault.links),
        "must_be_found_by": list(row.fault.checks),
        "caught": row.caught._asdict(),
        "probability": row.probability(examples)._asdict(),
        "checks": dict(row.checks),
        "kills": [
            {"seed": k.seed, "checks": list(k.checks), "lives": k.examples, "cpu_seconds": round(k.seconds, 4)}
            | ({"error": k.error} if k.error else {})
            for k in row.kills
        ],
        "other_oracles": _answers(row),
    }


def _right(row: RightRow) -> dict[str, Any]:
    return {
        "name": row.variant.name,
        "like": row.variant.like,
        "told": row.variant.told,
        "campaigns": row.campaigns,
        "lives": row.lives,
        "judged_steps": row.steps,
        "false_alarms": row.alarms,
        "other_oracles": _answers(row),
    }


def _answers(row: FaultRow | RightRow) -> dict[str, Any]:
    return {
        name: {"caught": bool(a.why), "why": a.why.partition("\n")[0][:200], "cpu_seconds": round(a.seconds, 4)}
        for name, a in row.answers.items()
    }


# --- Plot


def plot(power: Power, file: Path) -> None:
    """The share of wrong optimizers that are caught, over the CPU seconds that it took."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    kills = [k for r in power.faults for k in r.kills]
    curves = {f"stepcheck ({_percent(proportion(sum(k.caught for k in kills), len(kills)).estimate)})": (
        [k.seconds for k in kills if k.caught], len(kills))}  # fmt: skip
    for oracle in ORACLES:
        answers = [r.answers[oracle.name] for r in power.faults if oracle.name in r.answers]
        caught = [a.seconds for a in answers if a.why]
        curves[f"{oracle.name} ({_percent(_share(power.faults, oracle.name))})"] = (caught, len(answers))
    longest = max((max(seconds, default=0.0) for seconds, _ in curves.values()), default=1.0)
    for n, (name, (seconds, number)) in enumerate(curves.items()):
        x = np.sort(seconds)
        y = np.arange(1, len(x) + 1) / max(number, 1)
        style: dict[str, Any] = {
            "color": f"C{n}",
            "linewidth": 2.0 if n == 0 else 1.2,
            "linestyle": "-" if n == 0 else "--",
        }
        axes.step(np.append(x, longest), np.append(y, y[-1] if len(y) else 0.0), where="post", label=name, **style)
    axes.set(xscale="log", ylim=(0, 1.02), xlabel="CPU seconds of checking", ylabel="share of wrong optimizers caught")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(visible=True, which="major", alpha=0.3)
    axes.legend(loc="center left", title=f"{len(power.faults)} wrong optimizers, by")
    figure.savefig(file, dpi=150)
