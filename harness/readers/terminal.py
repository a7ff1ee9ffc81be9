"""A run on a terminal: what is known, notes and the throughput, then the divergences and the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stepcheck.harness.readers import report
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Result
from stepcheck.harness.support.text import shown

_COLOURS = {"pass": "green", "known": "magenta", "fail": "red", "unknown": "yellow", "unsupported": "dim"}
_LEGEND = (
    "worst r: the largest distance from the reference, in budgets; above 1 is a bug."
    " undetermined: elements where rounding alone decides between unlike results, so that any value is accepted."
    " known: it diverges, and every divergence is a known issue, or was expected; worst r leaves them out."
)


def show(run: Run, folder: Path, console: Console) -> None:
    """Print what ``stepcheck check`` found. What a subject is called, or says, is shown as it stands.

    Args:
        console: one that makes no pictures of names between colons.
        folder: where the divergences are.
    """
    # What is to be read first stands last, above the prompt.
    carried = report.carried(run.ledger, run.environment)
    for line in (*carried, *report.known(run.results), *report.folded(run.results), *run.problems):
        console.print(shown(line), markup=False)
    console.print(_LEGEND, markup=False)
    console.print(f"{throughput(run.results)}; {run.seconds:.1f} s in all, seed {run.seed}.", markup=False)
    console.print()
    for row in run.ledger:
        if report.failed(row):
            console.print(f"[red]{escape(shown(report.mended(row, run.environment)))}[/]\n")
    for line in report.passing_now(run.results):
        console.print(f"[red]{escape(shown(line))}[/]\n")
    for divergence, *alike in report.shared(run.results):
        first, *rest = map(shown, report.describe(divergence, folder))
        console.print(f"[red]{escape(first)}[/]")
        for line in (*rest, *(shown(line) for line in report.others(alike))):
            console.print(line, markup=False)
        console.print()
    console.print(table(run.results))


def table(results: Sequence[Result]) -> Table:
    """One row a subject: verdict, how many checks ran, of somebody's class how many options, how much was compared, the worst ratio and where."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    options = [("options", "right")] if any(r.varied is not None for r in results) else []
    for title, justify in (("subject", "left"), ("verdict", "left"), ("checks", "right"), *options, ("traces", "right"),
                           ("elements", "right"), ("undetermined", "right"), ("worst r", "right"), ("where", "left")):  # fmt: skip
        made.add_column(title, justify=justify, no_wrap=title != "where")  # type: ignore[arg-type]
    for r in results:
        colour = _COLOURS[r.verdict]
        share = f"{r.undetermined / r.elements:.1%}" if r.elements else ""
        made.add_row(
            escape(shown(r.subject)),
            f"[{colour}]{r.verdict}[/]",
            report.asked(r),
            *([report.varied(r)] if options else []),
            str(r.traces),
            f"{r.elements:,}",
            share,
            report.ratio(r),
            escape(shown(report.where(r))),
        )
    return made


def throughput(results: Sequence[Result]) -> str:
    """How fast it went, from the clocks of the workers: drawing, playing and judging, not shrinking."""
    traces, steps = sum(r.traces for r in results), sum(r.steps for r in results)
    seconds = sum(r.seconds for r in results)
    calls = sum(r.calls for r in results)
    if not seconds:
        return "no traces"
    return (
        f"{traces:,} traces, {calls:,} optimizer steps ({steps:,} of single parameters), "
        f"{sum(r.elements for r in results):,} elements compared: {traces / seconds:.0f} traces a second a core "
        f"at {calls / max(traces, 1):.1f} steps each ({_shares(results, seconds)})"
    )


def _shares(results: Sequence[Result], seconds: float) -> str:
    """What the seconds went into; what is missing from the whole went into the checks."""
    parts = {name: sum(r.clocks[name] for r in results) for name in ("draw", "play", "reference", "judge")}
    parts["judge"] -= parts["reference"]
    return ", ".join(f"{name} {100 * spent / seconds:.0f} %" for name, spent in parts.items())
