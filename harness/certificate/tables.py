"""The accuracy certificate for people: tables for a terminal, and a page of Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.markup import escape
from rich.table import Table

from stepcheck import __version__
from stepcheck.harness.certificate.references import BITS
from stepcheck.harness.certificate.survey import Witness
from stepcheck.harness.certificate.whole import Certificate
from stepcheck.harness.known.evidence import installed

_REFERENCE_COLUMNS = ("optimizer", "field", "compared", "undetermined", "largest error / bound")
_TORCH_COLUMNS = (
    "subject",
    "dtype",
    "elements",
    "deviating",
    "largest error, ulps",
    "in",
    "largest error / budget",
    "in",
)


def _reference_rows(c: Certificate) -> list[tuple[str, ...]]:
    return [
        (x.optimizer, x.field, f"{x.compared:,}", f"{x.undetermined / max(x.compared, 1):.1%}", f"{x.ratio:.3f}")
        for x in c.references
        if x.compared
    ]


def _torch_rows(c: Certificate) -> list[tuple[str, ...]]:
    def told(w: Witness | None, number: Callable[[Witness], str]) -> tuple[str, str]:
        return ("", "") if w is None else (number(w), w.field)

    return [
        (
            m.subject,
            m.dtype,
            f"{m.elements:,}",
            f"{m.deviating:,}" if m.deviating else "",
            *told(m.ulps, lambda w: _ulps(w.ulps)),
            *told(m.ratio, lambda w: f"{w.ratio:.3f}"),
        )
        for m in c.torch
    ]


def _ulps(x: float) -> str:
    return f"{x:.2f}" if x < 1000 else f"{x:.1e}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        words = column in ("optimizer", "field", "subject", "dtype", "in")
        made.add_column(column, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(escape, row))
    return made


def tables(c: Certificate) -> tuple[Table, Table]:
    """Both parts, for a terminal."""
    references = _table(_REFERENCES, _REFERENCE_COLUMNS, _reference_rows(c))
    return references, _table(_TORCH, _TORCH_COLUMNS, _torch_rows(c))


_REFERENCES = f"Each reference at {BITS} bits: its largest error in units of its bound"
_TORCH = f"torch.optim of torch {installed()}: the largest known errors, in ulps and in units of their budget"


def markdown(c: Certificate) -> str:
    """The certificate as a page of Markdown."""
    settings = ", ".join(f"{k} {v}" for k, v in c.to_json()["environment"].items())
    form = ", short form" if c.short else ""
    lines = ["# Accuracy certificate", "", f"stepcheck {__version__}, seed {c.seed}{form}; {settings}.", ""]
    for title, columns, rows in (
        (_REFERENCES, _REFERENCE_COLUMNS, _reference_rows(c)),
        (_TORCH, _TORCH_COLUMNS, _torch_rows(c)),
    ):
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    lines += ["## Not in the tables", ""]
    lines += [f"- {name}: {' '.join(reason.split())}" for name, reason in c.declared.items()]
    return "\n".join(lines) + "\n"
