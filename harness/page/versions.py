"""Known issues by version of torch as one self-contained HTML file, and as a table in Markdown. The page works without JavaScript."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from stepcheck import __version__
from stepcheck.harness.page.faults import Cell, Fault, Faults, Row
from stepcheck.harness.page.gravity import GRADES, Grade
from stepcheck.harness.page.render import digest, environment, resource, safe_link

#: From how many issues of the gravest kind on a cell has the second shade, and the third.
_SHADES = (2, 4)
#: Subjects that are named in a row of the table in Markdown.
_NAMED = 2
_RANK = {grade.name: n for n, grade in enumerate(GRADES)}
#: Columns of a subject's table that stand before its versions.
_BEFORE = 5


@dataclass
class _Shown:
    """A cell of the matrix as it is drawn.

    Attributes:
        look: classes of CSS: the gravest grade and its shade, or the state.
        grades: how many issues of each grade, without those of which there are none.
        told: all of it in words, for those who do not see it.
    """

    link: str
    look: str
    grades: list[tuple[Grade, int]]
    word: str
    why: str
    fixed: int
    new: int
    told: str


def html(faults: Faults) -> str:
    """The page."""
    script = resource("common.js") + resource("versions.js")
    return environment().get_template("versions.html.jinja").render(
        faults=faults,
        version=__version__,
        css=Markup(resource("page.css") + resource("versions.css") + _columns(len(faults.versions))),  # noqa: S704 - our own
        js=Markup(script),  # noqa: S704 - our own
        hash=digest(script),
        grades=GRADES,
        signs_of={grade.name: grade.sign for grade in GRADES},
        names=[v["torch"] for v in faults.versions],
        total=_total(faults),
        spans={(f.name, subject): span for f in faults.faults for subjects, span in f.alike for subject in subjects},
        optimizers=_optimizers(faults),
        gravest_first=lambda names: sorted(names, key=lambda name: _RANK[faults.by_name[name].gravity]),
        slug=slug,
    )  # fmt: skip


def slug(subject: str) -> str:
    """A subject as it stands in links."""
    return subject.replace("[", "-").removesuffix("]")


def _columns(versions: int) -> str:
    """CSS that marks the column whose heading a link leads to, and fades the issues that it does not show."""
    rules = []
    for n in range(_BEFORE + 1, _BEFORE + 1 + versions):
        there = f".subject:has(thead th:nth-child({n}):target)"
        rules += [
            f"{there} td:nth-child({n}) {{ background: var(--raised); }}",
            f"{there} tbody tr:not(:has(td:nth-child({n}):is(.shows, .ends))) > * {{ color: var(--muted); }}",
        ]
    return "\n".join(rules) + "\n"


def _optimizers(faults: Faults) -> list[list[tuple[Row, list[_Shown]]]]:
    """The rows with their cells as they are drawn, those of one optimizer together."""
    groups: dict[str, list[tuple[Row, list[_Shown]]]] = {}
    for row in faults.rows:
        groups.setdefault(row.optimizer, []).append((row, [_shown(row, cell, faults) for cell in row.cells]))
    return list(groups.values())


def _shown(row: Row, cell: Cell, faults: Faults) -> _Shown:
    grades = _grades(cell.faults, faults)
    word = {"played": "" if grades else "none known", "unplayed": "not played"}.get(cell.state, cell.state)
    parts = [word, *(f"{n} {grade.name}" for grade, n in grades), *([f"{len(cell.fixed)} fixed"] if cell.fixed else []),
             *([f"{len(cell.new)} new"] if cell.new else [])]  # fmt: skip
    return _Shown(
        link=f"{slug(row.subject)}.{cell.torch}",
        look=_look(cell.state, grades),
        grades=grades,
        word=word,
        why=cell.why,
        fixed=len(cell.fixed),
        new=len(cell.new),
        told=f"{row.subject}, torch {cell.torch}: {', '.join(filter(None, parts))}",
    )


def _look(state: str, grades: Sequence[tuple[Grade, int]]) -> str:
    if state != "played":
        return "absent"
    if not grades:
        return "clean"
    gravest, number = grades[0]
    return f"{gravest.name} shade{1 + sum(number >= edge for edge in _SHADES)}"


def _grades(names: Iterable[str], faults: Faults) -> list[tuple[Grade, int]]:
    """How many issues there are of each grade, the gravest first."""
    counts = Counter(faults.by_name[name].gravity for name in names)
    return [(grade, counts[grade.name]) for grade in GRADES if counts[grade.name]]


def _total(faults: Faults) -> list[dict[str, Any]]:
    """Of each version, its issues, each counted once however many subjects have it; and those that no subject shows any more."""
    made: list[dict[str, Any]] = []
    before: set[str] = set()
    earlier: set[str] = set()
    for version in (v["torch"] for v in faults.versions):
        shown = {f.name for f in faults.faults if f.under(version)}
        gone = {f.name for f in faults.faults if any(version in quiet for quiet in f.quiet.values())} & before - shown
        begun = {f.name for f in faults.faults if any(earlier & set(f.quiet[s]) for s in f.under(version))} - before
        made.append({"grades": _grades(shown, faults), "fixed": len(gone), "new": len(begun)})
        before = shown
        earlier.add(version)
    return made


# --- Markdown


def markdown(faults: Faults, link: str = "") -> str:
    """A row for each entry and each of its histories: when it was first seen, where it was fixed, in which subjects.

    Args:
        link: the page, whose section of an entry its name leads to; nothing for names without links.
    """
    lines = ["| known issue | what | gravity | first seen | fixed in | where |", "|" + " --- |" * 6]
    oldest = faults.versions[0]["torch"] if faults.versions else ""
    for fault in faults.faults:
        name = f"[`{fault.name}`]({link}#{fault.name})" if link else f"`{fault.name}`"
        thread = f" ([thread]({fault.link}))" if safe_link(fault.link) else ""
        for first, fixed, subjects in _histories(fault):
            seen = f"{first} or earlier" if first == oldest else first
            what = fault.statement.replace("|", "\\|")
            cells = (name + thread, what, fault.gravity, seen, fixed or "not fixed", _where(subjects))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _histories(fault: Fault) -> list[tuple[str, str, list[str]]]:
    """First seen, fixed in, and the subjects of which that is true."""
    groups: dict[tuple[str, str], list[str]] = {}
    for subjects, span in fault.alike:
        groups.setdefault((span.first_seen, span.fixed_in), []).extend(subjects)
    return [(first, fixed, subjects) for (first, fixed), subjects in groups.items()]


def _where(subjects: Sequence[str]) -> str:
    named = [f"`{subject}`" for subject in subjects[:_NAMED]]
    more = len(subjects) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
