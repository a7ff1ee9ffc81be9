"""The matrix as one self-contained HTML file. It works without JavaScript: cells are links to what was found."""

from __future__ import annotations

from markupsafe import Markup

from stepcheck import __version__
from stepcheck.harness.matrix.cells import STATES, Cell, Matrix
from stepcheck.harness.matrix.tables import SIGNS, summary
from stepcheck.harness.page.render import digest, environment, resource


def html(matrix: Matrix) -> str:
    """The page."""
    script = resource("common.js")
    played = sorted((library for library in matrix.libraries if library.cells), key=lambda each: -len(each.cells))
    rows = matrix.rows()
    return environment().get_template("matrix.html.jinja").render(
        matrix=matrix,
        version=__version__,
        css=Markup(resource("page.css") + resource("versions.css") + resource("matrix.css")),  # noqa: S704 - our own
        js=Markup(script),  # noqa: S704 - our own
        hash=digest(script),
        headline=summary(matrix),
        signs_of=SIGNS,
        states=STATES,
        played=played,
        absent=[library for library in matrix.libraries if not library.cells],
        rows=[(row, [(library.name, matrix.at(row, library.name)) for library in played]) for row in rows],
        others=[(library, found) for library in played if (found := [c for c in library.cells if c.row not in rows])],
        faults_of={cell.subject: [f for f in matrix.faults if cell.subject in f.subjects] for cell in matrix.cells},
        slug=_slug,
        told=_told,
    )  # fmt: skip


def _slug(text: str) -> str:
    """A subject or library as it stands in links."""
    return "".join(c if c.isalnum() else "-" for c in text)


def _told(cell: Cell) -> str:
    """A cell in words, for those who do not see it."""
    faults = f", {cell.faults} cause{'' if cell.faults == 1 else 's'}" if cell.faults else ""
    dialect = f", in the dialect {cell.dialect}" if cell.dialect else ""
    return f"{cell.subject}: {cell.state}{faults}{dialect}"
