"""Results for people and for scripts: the table, the divergence told, the JSON."""

from __future__ import annotations

import math
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.markup import escape
from rich.table import Table

from stepcheck.harness import ledger, store
from stepcheck.harness.verdict import Divergence, Result
from stepcheck.harness.workers import Replayed

_COLOURS = {"pass": "green", "fail": "red", "unknown": "yellow", "unsupported": "dim"}


def describe(divergence: Divergence, folder: Path) -> list[str]:
    """A divergence in lines: what differs, the life, how to replay it, where the script is."""
    return [
        f"{divergence.subject} fails {divergence.check} [{divergence.id}], in {divergence.found_in} lives",
        f"  {divergence.summary}",
        *(f"  {line}" for line in divergence.life),
        f"  replay: stepcheck replay {_out(folder)}{divergence.id}    script: {store.script_path(folder, divergence)}",
    ]


def known(results: Sequence[Result]) -> list[str]:
    """What the ledger explains, a line for each entry."""
    lives: dict[str, list[int]] = {}
    for result in results:
        for name, count in result.known_lives.items():
            lives.setdefault(name, []).append(count)
    told = []
    for name, counts in lives.items():
        entry = ledger.LEDGER[name]
        of = f" of {len(counts)} subjects" if len(counts) > 1 else ""
        link = f" ({entry.link})" if entry.link else ""
        told.append(f"known: {name}, in {sum(counts)} lives{of}: {entry.statement}{link}")
    return told


def mended(replayed: Replayed) -> str:
    """What is to be said of an entry of the ledger that no longer reproduces."""
    entry = replayed.entry
    return (
        f"ledger entry {entry.name} no longer reproduces on torch {torch.__version__}: FIXED, or changed; {replayed.told}."
        f" It claims torch {entry.versions}: {entry.statement}"
    )


def _out(folder: Path) -> str:
    return "" if folder == store.DEFAULT_FOLDER else f"--out {folder} "


def table(results: Sequence[Result]) -> Table:
    """One row a subject: verdict, how many checks ran, how much was compared, the worst ratio and where."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (("subject", "left"), ("verdict", "left"), ("checks", "right"), ("traces", "right"),
                           ("elements", "right"), ("undetermined", "right"), ("worst r", "right"), ("where", "left")):  # fmt: skip
        made.add_column(title, justify=justify, no_wrap=title != "where")  # type: ignore[arg-type]
    for r in results:
        colour = _COLOURS[r.verdict]
        ran = sum(t.ran > 0 for t in r.tallies.values())
        share = f"{r.undetermined / r.elements:.1%}" if r.elements else ""
        made.add_row(
            escape(r.subject),
            f"[{colour}]{r.verdict}[/]",
            f"{ran}/{len(r.tallies)}",
            str(r.traces),
            f"{r.elements:,}",
            share,
            _ratio(r),
            escape(_where(r)),
        )
    return made


def _ratio(r: Result) -> str:
    worst = max([*r.worst.values(), *(d.ratio for d in r.divergences if d.ratio is not None)], default=math.nan)
    return "" if math.isnan(worst) else f"{worst:.3f}" if worst < 1000 else f"{worst:.1e}"


def _where(r: Result) -> str:
    entries = {d.entry for d in r.known}
    known = f"{len(entries)} known" if entries else ""
    if r.divergences:
        count = "1 divergence" if len(r.divergences) == 1 else f"{len(r.divergences)} divergences"
        told = f"{count}: {', '.join(dict.fromkeys(d.check for d in r.divergences))}"
        return f"{told}; {known}" if known else told
    if r.error:
        return r.error
    if r.verdict == "unsupported":
        return ""
    unasked = [t.check for t in r.tallies.values() if t.verdict == "unknown"]
    if unasked:
        return f"nothing to look at for {', '.join(unasked)}"
    worst = max(r.worst, key=lambda name: r.worst[name]) if r.worst else ""
    return "; ".join(filter(None, (worst, known)))


def throughput(results: Sequence[Result]) -> str:
    """How fast it went, from the clocks of the workers: drawing, playing and judging, not shrinking."""
    traces, steps = sum(r.traces for r in results), sum(r.steps for r in results)
    seconds = sum(r.seconds for r in results)
    lives = sum(r.lives for r in results)
    if not seconds:
        return "no traces"
    return (
        f"{traces:,} traces, {lives:,} optimizer steps ({steps:,} of single parameters), "
        f"{sum(r.elements for r in results):,} elements compared: {traces / seconds:.0f} traces a second a core "
        f"at {lives / max(traces, 1):.1f} steps each ({_shares(results, seconds)})"
    )


def _shares(results: Sequence[Result], seconds: float) -> str:
    """What the seconds went into; what is missing from the whole went into the checks."""
    parts = {name: sum(r.clocks[name] for r in results) for name in ("draw", "play", "reference", "judge")}
    parts["judge"] -= parts["reference"]
    return ", ".join(f"{name} {100 * spent / seconds:.0f} %" for name, spent in parts.items())


def environment() -> dict[str, Any]:
    """The versions and the machine that results hold for."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }


def to_json(
    version: str, seed: int, results: Sequence[Result], folder: Path, replayed: Sequence[Replayed] = ()
) -> dict[str, Any]:
    """The contract of ``--json``.

    Args:
        replayed: what became of the ledger's own lives.
    """
    return {
        "stepcheck": version,
        "environment": environment(),
        "seed": seed,
        "subjects": [
            {
                "subject": r.subject,
                "like": r.like,
                "verdict": r.verdict,
                "notes": [*r.notes, *([r.error] if r.error else [])],
                "validation": r.validation,
                "fields": {
                    name: {"elements": n, "undetermined": u, "worst_ratio": _finite(r.worst.get(name))}
                    for name, (n, u) in r.fields.items()
                },
                "checks": [
                    {
                        "check": t.check,
                        "verdict": t.verdict,
                        "planned": t.planned,
                        "ran": t.ran,
                        "unsupported": t.unsupported,
                        "worst_ratio": _finite(t.worst_ratio),
                        "divergences": [_divergence(d, folder) for d in (*t.divergences, *t.known)],
                    }
                    for t in r.tallies.values()
                ],
            }
            for r in results
        ],
        "ledger": [
            {
                "name": r.entry.name,
                "statement": r.entry.statement,
                "link": r.entry.link,
                "versions": r.entry.versions,
                "reproduces": r.reproduces,
            }
            for r in replayed
        ],
    }


def _finite(ratio: float | None) -> float | None:
    # JSON has no infinity; the largest number stands for "of the wrong class", NaN for a number or the like.
    return None if ratio is None else min(ratio, sys.float_info.max)


def _divergence(d: Divergence, folder: Path) -> dict[str, Any]:
    return {
        "id": d.id,
        "summary": d.summary,
        "known": bool(d.entry),
        "trace": str(store.trace_path(folder, d)),
        "repro": str(store.script_path(folder, d)),
        **({"ledger": d.entry} if d.entry else {}),
    }
