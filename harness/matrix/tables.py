"""The matrix in Markdown: for ``reports/matrix.md``, and for an issue upstream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from stepcheck.harness.matrix.cells import (
    AGREES,
    FAULTS,
    HOLDS,
    STATES,
    UNKNOWN,
    UNSUPPORTED,
    Cell,
    Fault,
    Matrix,
    Played,
)
from stepcheck.harness.page.markdown import escaped as escape

SIGNS = {AGREES: "✓", HOLDS: "○", FAULTS: "✕", UNSUPPORTED: "–", UNKNOWN: "?"}  # noqa: RUF001 - as everywhere in reports


def summary(matrix: Matrix) -> str:
    """The whole in one sentence."""
    played = [library for library in matrix.libraries if library.cells]
    states = Counter(cell.state for cell in matrix.cells)
    confirmed = sum(f.confirmed[0] for f in matrix.faults)
    scripts = sum(f.confirmed[1] for f in matrix.faults)
    return (
        f"{len(matrix.cells)} classes of {len(played)} libraries: {states[AGREES]} agree with their reference, {states[HOLDS]} without one "
        f"pass every check that needs no formula, {states[FAULTS]} have faults; {len(matrix.faults)} causes, "
        f"{confirmed} of {scripts} scripts fail by themselves."
    )


def word(cell: Cell) -> str:
    """What a cell says, in a few signs."""
    sign = SIGNS[cell.state]
    told = f"{sign} {cell.faults}" if cell.state == FAULTS else sign
    return f"{told} {cell.dialect}" if cell.dialect else told


def markdown(matrix: Matrix) -> str:
    """The table, a library a column where that fits, and the list of causes."""
    return "\n".join(_lines(matrix)) + "\n"


def _lines(matrix: Matrix) -> Iterator[str]:
    torch = matrix.environment.get("torch", "")
    yield "# Who agrees with whom"
    yield ""
    yield summary(matrix)
    yield ""
    yield f"Made by `nox -s matrix`, seed {matrix.seed}, under torch {torch}. " + "; ".join(
        f"{SIGNS[state]} {means}" for state, means in STATES.items()
    ) + ". A number says how many causes; a name in a cell is the dialect in which it agrees."  # fmt: skip
    yield ""
    yield "| library | version | classes | ✓ | ○ | ✕ | neither | causes |"
    yield "|---|---|---|---|---|---|---|---|"
    for library in matrix.libraries:
        yield _row(library)
    for row in matrix.rows():
        cells = [cell for cell in matrix.cells if cell.row == row]
        yield ""
        yield f"**{escape(row)}**: " + "; ".join(f"{escape(c.library)} {escape(word(c))}" for c in cells)
    yield ""
    yield "## Causes"
    for library in matrix.libraries:
        if library.faults:
            yield ""
            yield f"### {escape(library.name)} {escape(next(iter(library.versions.values()), ''))}"
            yield ""
            yield from (f"- {_fault(fault)}" for fault in library.faults)


def _row(library: Played) -> str:
    if library.error:
        return f"| [{escape(library.name)}]({library.url}) | not played: {escape(library.error)} | | | | | | |"
    states = Counter(cell.state for cell in library.cells)
    other = len(library.cells) - states[AGREES] - states[HOLDS] - states[FAULTS]
    numbers = (len(library.cells), states[AGREES], states[HOLDS], states[FAULTS], other, len(library.faults))
    version = escape(next(iter(library.versions.values()), ""))
    return f"| [{escape(library.name)}]({library.url}) | {version} | " + " | ".join(map(str, numbers)) + " |"


def _fault(fault: Fault) -> str:
    names = [s.partition(":")[2] for s in fault.subjects]
    told = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    confirmed, scripts = fault.confirmed
    return (
        f"{escape(fault.cause)} ({escape(told)}; {', '.join(fault.checks)}; {confirmed} of {scripts} scripts confirmed)"
    )
