"""A run as Markdown: for a pull request, an issue, or the summary of a job."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from pathlib import Path

from stepcheck.harness.readers import report
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import SIGNS, Divergence
from stepcheck.harness.support.text import in_one_line, shown

_COLUMNS = ("subject", "verdict", "checks", "traces", "elements", "undetermined", "worst r", "where")
#: Divergences told in full. GitHub takes a summary of a MiB at most.
_MOST = 50


def markdown(run: Run, folder: Path) -> str:
    """The table, and each divergence that is not known with its life, its replay and its script.

    Args:
        folder: where the divergences are.
    """
    return "\n".join(_lines(run, folder)) + "\n"


def _lines(run: Run, folder: Path) -> Iterator[str]:
    about = ", ".join(f"{k} {v}" for k, v in run.environment.items())
    yield "## stepcheck"
    yield ""
    yield _text(f"{_told(run)} stepcheck {run.version}, seed {run.seed}; {about}.")
    yield ""
    yield f"| {' | '.join(_COLUMNS)} |"
    yield "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |"
    for r in run.results:
        share = f"{r.undetermined / r.elements:.1%}" if r.elements else ""
        cells = (r.subject, f"{SIGNS[r.verdict]} {r.verdict}", report.asked(r), str(r.traces), f"{r.elements:,}", share,
                 report.ratio(r), report.where(r))  # fmt: skip
        yield f"| {' | '.join(map(_text, cells))} |"
    divergences = [d for r in run.results for d in r.divergences]
    for divergence in divergences[:_MOST]:
        yield ""
        yield from _divergence(divergence, folder)
    if len(divergences) > _MOST:
        yield ""
        yield f"{len(divergences) - _MOST} more divergences are in the other forms of this report."
    mended = [report.mended(row, run.environment) for row in run.ledger if report.failed(row)]
    carried = report.carried(run.ledger, run.environment)
    lines = [*mended, *carried, *report.known(run.results), *report.notes(run.results), *run.problems]
    if lines:
        yield ""
        yield from (f"- {_text(line)}" for line in lines)


def _told(run: Run) -> str:
    verdicts = [r.verdict for r in run.results]
    counts = {verdict: verdicts.count(verdict) for verdict in SIGNS}
    return ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count) + "."


def _divergence(d: Divergence, folder: Path) -> Iterator[str]:
    first, *rest = report.describe(d, folder)
    # A line of HTML, in which Markdown's own signs mean nothing.
    title = html.escape(in_one_line(f"{first}: {d.summary}"))
    yield f"<details><summary>{title}</summary>"
    yield ""
    yield from _code("\n".join(line.removeprefix("  ") for line in rest))
    yield ""
    yield from _code(d.script, "python")
    yield ""
    yield "</details>"


def _code(text: str, language: str = "") -> Iterator[str]:
    """A block of code, between fences that it does not contain."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(longest + 1, 3)
    yield fence + language
    yield shown(text.rstrip("\n"))
    yield fence


def _text(text: str) -> str:
    """In one line, as it stands, whatever Markdown or HTML would make of it."""
    escaped = re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(in_one_line(text), quote=False))
    return re.sub(r":(?=[\w+-]+:)", "&#58;", escaped)  # GitHub makes a picture of a word between colons
