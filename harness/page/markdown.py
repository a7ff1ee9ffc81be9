"""The report as a comment for a pull request: Markdown as GitHub shows it, no longer than GitHub takes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from stepcheck.harness.page.compare import Comparison
from stepcheck.harness.page.model import Case, Cell, Report
from stepcheck.harness.page.render import count, ratio, safe_link
from stepcheck.harness.page.upgrade import Upgrade
from stepcheck.harness.record.verdict import SIGNS

#: GitHub's limit for a comment, in characters.
MOST = 65_536
_RESERVE = 400
_MOST_LINES = 40


def markdown(report: Report) -> str:
    """Verdict, counts, comparison, matrix, divergences; what has no room is left out, and a line says so."""
    text = "\n".join(_head(report))
    if report.comparison is not None:
        text = _with(text, "\n".join(_comparison(report.comparison)), "The comparison")
    if report.upgrade is not None:
        text = _with(text, "\n".join(_upgrade(report.upgrade)), "The comparison")
    text = _with(text, "\n".join(_matrix(report)), "The matrix")
    new = [(c, d) for c in report.cells for d in c.divergences if not d.known]
    for n, (cell, case) in enumerate(new):
        block = "\n".join(_case(cell, case))
        if len(text) + len(block) > MOST - _RESERVE:
            text += f"\n{len(new) - n} of {len(new)} new divergences are left out, for this comment may not be longer: `report.json` has all of them.\n"
            break
        text += block
    return _with(text, "\n".join(_known(report)), "What is known")


def _with(text: str, more: str, what: str) -> str:
    if len(text) + len(more) > MOST - _RESERVE:
        return f"{text}\n{what} is left out, for this comment may not be longer: `report.json` has it.\n"
    return text + more


def escaped(text: str) -> str:
    """Text of a stream, so that it is shown as it is, in a table too, and nobody is mentioned by it."""
    one_line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_{}\[\]|~#!@$])", lambda m: f"&#{ord(m[0])};", one_line)


def _code(text: str) -> str:
    """A code span, whatever is in it."""
    fence = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    space = " " if "`" in text else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}"


def _head(report: Report) -> Iterator[str]:
    c = report.counts
    yield f"## stepcheck: {SIGNS[report.verdict]} {report.verdict}"
    yield ""
    yield f"{escaped(report.headline)}. Planned {count(c['planned'])}, ran {count(c['ran'])}, unsupported {count(c['unsupported'])}; worst r {ratio(c['worst_ratio']) or 'none'}; {c['new']} new divergences, {c['known']} known."
    yield ""
    for problem in report.problems[:_MOST_LINES]:
        yield f"> ⚠ {escaped(problem)}"
    if report.problems:
        yield ""
    for run in report.runs:
        about = ", ".join(f"{k} {v}" for k, v in run.environment.items() if k in ("torch", "python", "platform"))
        seed = "" if run.seed is None else f", seed {run.seed}"
        yield f"{_code(run.command or run.kind)}{seed}, run {escaped(run.id)}: {escaped(about)}  "
    yield ""


def _comparison(c: Comparison) -> Iterator[str]:
    yield f"\n### Compared with {escaped(c.against)}: {SIGNS[c.verdict]} {c.verdict}\n"
    for line in c.told:
        yield f"- not the same: {escaped(line)}"
    shrank = [f"{s['subject']} {s['check']} {s['count']}: {s['before']}, now {s['after']}" for s in c.shrank]
    yield from _lists(
        (("✕ became red", c.red), ("✓ became green", c.green), ("changed", c.changed), ("new", c.new), ("✕ gone", c.gone),
         ("appeared", c.appeared), ("disappeared", c.disappeared), ("✕ shrank", shrank))
    )  # fmt: skip
    yield ""


def _upgrade(u: Upgrade) -> Iterator[str]:
    yield f"\n### Compared with {escaped(u.against)}: {SIGNS[u.verdict]} {u.verdict}\n"
    yield f"{escaped(u.headline)}.\n"
    for line in u.told:
        yield f"- not the same: {escaped(line)}"
    yield from _lists(u.sections)
    yield ""


def _lists(parts: Iterable[tuple[str, list[str]]]) -> Iterator[str]:
    """Each part with how many lines it has, and these as far as there is room; nothing of a part without."""
    for told, lines in parts:
        if lines:
            yield f"- {told}: {len(lines)}"
            yield from (f"  - {escaped(line)}" for line in lines[:_MOST_LINES])
            if len(lines) > _MOST_LINES:
                yield f"  - and {len(lines) - _MOST_LINES} more"


def _matrix(report: Report) -> Iterator[str]:
    if not report.cells:
        return
    columns = report.columns
    places: dict[tuple[str, str], list[Cell]] = {}
    for c in report.cells:
        places.setdefault((c.like, c.column), []).append(c)
    yield ""
    yield f"| | {' | '.join(map(escaped, columns))} |"
    yield f"|---|{'---|' * len(columns)}"
    for like in report.optimizers:
        yield f"| **{escaped(like)}** | {' | '.join(_cells(places.get((like, column), ())) for column in columns)} |"
    yield ""
    yield f"{', '.join(f'{sign} {verdict}' for verdict, sign in SIGNS.items())}; the number is the worst r, in budgets, or how many divergences of its own are known; +n are known ones beside that."
    yield ""


def _cells(cells: Sequence[Cell]) -> str:
    return "<br>".join(" ".join(_parts(c)) for c in cells)


def _parts(c: Cell) -> Iterable[str]:
    yield SIGNS[c.verdict]
    if c.verdict in ("known", "fail", "unknown"):
        yield c.verdict
    if c.number:
        yield c.number
    if c.beside:
        yield f"+{c.beside}"


def _case(cell: Cell, case: Case) -> Iterator[str]:
    yield f"\n<details><summary>{SIGNS['fail']} new: {escaped(cell.subject)}, {escaped(case.check)}: {escaped(case.summary)}</summary>\n"
    yield from (f"- {escaped(line)}" for line in case.life)
    yield f"\n{_code(case.replay)}\n"
    fence = "`" * max(3, *(len(run) + 1 for run in re.findall("`+", case.script) or [""]))
    yield f"{fence}python\n{case.script.rstrip()}\n{fence}\n"
    yield "</details>\n"


def _known(report: Report) -> Iterator[str]:
    """Known issues that were seen, a line for each."""
    seen: dict[str, tuple[Case, list[str]]] = {}
    for cell in report.cells:
        for case in cell.divergences:
            if case.known:
                seen.setdefault(case.entry, (case, []))[1].append(cell.subject)
    if not seen:
        return
    yield f"\n<details><summary>Known issues: {len(seen)}</summary>\n"
    for entry, (case, subjects) in sorted(seen.items()):
        link = "" if re.search(r"[\s<>()]", case.link) else safe_link(case.link)
        where = f" ({link})" if link else ""
        others = f" and {len(subjects) - 1} more" if len(subjects) > 1 else ""
        yield f"- **{escaped(entry)}**{where}: {escaped(case.statement or case.summary)}. In {escaped(subjects[0])}{others}."
    yield "\n</details>\n"
