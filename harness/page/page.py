"""The report as one self-contained HTML file. What is shown first is written out; details of cells are data, shown when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from stepcheck import __version__
from stepcheck.harness.known import ledger
from stepcheck.harness.life.values import DTYPES
from stepcheck.harness.numbers.comparison import RATIO_EDGES
from stepcheck.harness.page import model
from stepcheck.harness.page.model import SOURCES, Cell, Report
from stepcheck.harness.page.render import digest, environment, moment, resource
from stepcheck.harness.record.verdict import SIGNS

#: A page of this size still opens in under a second, and git and mail take it.
MOST_BYTES = 3_000_000
#: Rows of a list that is in report.json in full.
_MOST_ROWS = 200
_VERDICTS = tuple(SIGNS)
_COUNTS = ("planned", "ran", "unsupported", "traces", "lives", "steps", "elements", "undetermined", "seconds")


class _Strings:
    """Each text once; what refers to it has its number."""

    def __init__(self) -> None:
        self.numbers: dict[str, int] = {}

    def __call__(self, text: str) -> int:
        return self.numbers.setdefault(text, len(self.numbers))

    def all(self, texts: Iterable[str]) -> list[int]:
        return [self(t) for t in texts]


def html(report: Report) -> str:
    """The page. Where all details together would be larger than ``MOST_BYTES``, what weighs most is left out, and said to be."""
    left_out: list[str] = []
    made = _html(report, report.cells, left_out)
    for told, reduce in _REDUCTIONS:
        if len(made.encode(errors="backslashreplace")) < MOST_BYTES:
            break
        reduced = [reduce(c) for c in report.cells]
        if all(a is b for a, b in zip(reduced, report.cells, strict=True)):
            continue
        left_out.append(f"To keep this page small, {told}: report.json has them.")
        report = replace(report, cells=reduced)
        made = _html(report, report.cells, left_out)
    return made


def _html(report: Report, cells: Sequence[Cell], left_out: Sequence[str]) -> str:
    template = environment().get_template("page.html.jinja")
    script = resource("common.js") + resource("page.js")
    paths = {c.subject: path(c.subject) for c in cells}
    return template.render(
        report=report,
        version=__version__,
        css=Markup(resource("page.css")),  # noqa: S704 - our own
        js=Markup(script),  # noqa: S704 - our own
        hash=digest(script),
        data=_embedded(_data(report, cells)),
        environment=_environment(report),
        filters=_filters(report),
        headings=[_heading(c) for c in report.columns],
        rows=list(_rows(report, paths)),
        known=_known(report),
        paths=paths,
        svgs={f.name: Markup(f.svg) for f in report.figures},  # noqa: S704 - made by an XML library
        left_out=left_out,
        most=_MOST_ROWS,
    )


def _embedded(data: Any) -> Markup:
    """JSON that no text in it can end or leave."""
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - just escaped


def path(subject: str) -> str:
    """The deep link of a subject: ``/torch/Adam/foreach``. It escapes what JavaScript's encodeURIComponent does."""
    family, name, mode = model.split(subject)
    parts = (family, name, mode) if mode else (family, name) if name else (family,)
    return "".join("/" + quote(part, safe="!*'()") for part in parts)


def _heading(column: str) -> tuple[str, str]:
    family, _, mode = column.partition("[")
    return family, mode.removesuffix("]")


def _rows(report: Report, paths: Mapping[str, str]) -> Iterable[tuple[str, list[list[dict[str, Any]]]]]:
    """The matrix: of each optimizer, the subjects in each column; somebody's classes may be several."""
    places: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for n, c in enumerate(report.cells):
        _, name, _ = model.split(c.subject)
        named = "" if name in (c.like, "") else f"{name} "
        places.setdefault((c.like, c.column), []).append(
            {"index": n, "path": paths[c.subject], "verdict": c.verdict, "label": named + c.verdict,
             "number": c.number, "beside": c.beside}
        )  # fmt: skip
    for like in report.optimizers:
        yield like, [places.get((like, column), []) for column in report.columns]


def _environment(report: Report) -> list[str]:
    """What the verdicts hold for: the versions, machines and seeds of the runs that checked something."""
    checked = [r for n, r in enumerate(report.runs) if any(c.run == n for c in report.cells)] or report.runs
    told = [f"{name} {value}" for name in ("torch", "python", "numpy", "platform", "cpu_capability", "cores")
            for value in dict.fromkeys(str(r.environment[name]) for r in checked if name in r.environment)]  # fmt: skip
    told += [f"seed {seed}" for seed in dict.fromkeys(r.seed for r in checked) if seed is not None]
    told += [f"stepcheck {version}" for version in dict.fromkeys(r.version for r in checked) if version]
    return [*told, moment(report.recorded)] if report.recorded else told


def _filters(report: Report) -> list[tuple[str, str, list[str]]]:
    dtypes = {d for c in report.cells for d in c.dtypes}
    return [
        ("optimizer", "optimizer", report.optimizers),
        ("dtype", "dtype", sorted(dtypes, key=lambda d: (DTYPES.index(d) if d in DTYPES else len(DTYPES), d))),
        ("feature", "feature", sorted({f for c in report.cells for f, n in c.features.items() if n})),
        ("verdict", "verdict", [v for v in _VERDICTS if any(c.verdict == v for c in report.cells)]),
    ]


def _known(report: Report) -> list[dict[str, Any]]:
    """Known issues that were seen or played, with the subjects that showed them."""
    entries: dict[str, dict[str, Any]] = {}
    for row in report.ledger:
        entries[row["name"]] = {
            "name": row["name"],
            "statement": row["statement"],
            "link": row["link"],
            "reproduces": row["reproduces"],
            "subjects": [],
        }
    for c in report.cells:
        for d in c.divergences:
            if d.known:
                entry = ledger.LEDGER.get(d.entry)
                made = entries.setdefault(d.entry, {
                    "name": d.entry, "statement": entry.statement if entry else d.summary, "link": d.link, "reproduces": None, "subjects": []
                })  # fmt: skip
                if c.subject not in made["subjects"]:
                    made["subjects"].append(c.subject)
    return [entries[name] for name in sorted(entries)]


# --- The details, as data that page.js knows how to show


def _data(report: Report, cells: Sequence[Cell]) -> dict[str, Any]:
    strings = _Strings()
    checks = list(dict.fromkeys((q.check, q.question) for c in cells for q in c.checks))
    fields = list(dict.fromkeys(f for c in cells for f in (*c.fields, *c.ratios)))
    dtypes = list(dict.fromkeys(d for c in cells for d in c.dtypes))
    features = list(dict.fromkeys(f for c in cells for f in c.features))
    numbers = [
        {name: n for n, name in enumerate(names)} for names in ([c for c, _ in checks], fields, dtypes, features)
    ]
    asked: dict[tuple[str, ...], int] = {}
    packed = [_pack(c, strings, asked, *numbers) for c in cells]
    made: dict[str, Any] = model.finite({
        "runs": [{k: getattr(r, k) for k in ("id", "command", "kind", "version", "environment", "started", "seed", "seconds")} for r in report.runs],
        "sources": {k: [s.told, s.file] for k, s in SOURCES.items()},
        "verdicts": _VERDICTS,
        "signs": SIGNS,
        "edges": RATIO_EDGES,
        "counts": _COUNTS,
        "checks": checks,
        "asked": [[numbers[0][name] for name in names] for names in asked],
        "fields": fields,
        "dtypes": dtypes,
        "features": features,
        "cells": packed,
        "figures": [[f.run, f.columns, f.rows] for f in report.figures],
    })  # fmt: skip
    return made | {"strings": list(strings.numbers)}


def _pack(
    c: Cell,
    text: _Strings,
    asked: dict[tuple[str, ...], int],
    checks: Mapping[str, int],
    fields: Mapping[str, int],
    dtypes: Mapping[str, int],
    features: Mapping[str, int],
) -> dict[str, Any]:
    """A cell with short keys, numbers instead of names, and nothing where there is nothing."""
    made = {
        "s": c.subject,
        "l": c.like,
        "r": c.run,
        "v": _VERDICTS.index(c.verdict),
        "n": [getattr(c, name) for name in _COUNTS],
        "w": c.worst_ratio,
        "i": c.witness and text(c.witness),
        "e": c.error and text(c.error),
        "o": text.all(c.notes),
        "f": [[features[name], n] for name, n in c.features.items()],
        "t": [dtypes[d] for d in c.dtypes],
        "m": [[fields[name], *of.values()] for name, of in c.fields.items()],
        "h": [[fields[name], dtypes[d], counts] for name, of in c.ratios.items() for d, counts in of.items()],
        "q": [asked.setdefault(tuple(q.check for q in c.checks), len(asked)), _same([_VERDICTS.index(q.verdict) for q in c.checks])]
        + [_same([getattr(q, name) for q in c.checks]) for name in ("planned", "ran", "looked", "unsupported")]
        + [{n: q.worst_ratio for n, q in enumerate(c.checks) if q.worst_ratio is not None}],
        "d": [
            {"#": d.id, "c": checks.get(d.check, d.check), "x": text(d.summary), "w": d.ratio, "n": d.found_in, "k": d.entry, "a": text(d.statement),
             "u": d.link, "h": d.owner, "t": d.dtypes, "l": text.all(d.life), "z": text(d.script), "y": d.replay}
            for d in c.divergences
        ],
        "g": [[e["dtype"], e["elements"], e["ulps"], text(e["ulps_witness"]), e["ratio"], text(e["ratio_witness"]), e["run"]] for e in c.errors],
    }  # fmt: skip
    return {k: v for k, v in made.items() if v not in (None, "", [])}


def _same(values: list[Any]) -> Any:
    """A list, or what all of them are."""
    return values[0] if values and all(v == values[0] for v in values) else values


def _fold_ratios(cell: Cell) -> Cell:
    """The fields of a subject that does not fail, summed."""
    if cell.verdict not in ("pass", "known") or len(cell.ratios) < 2:
        return cell
    summed: dict[str, list[int]] = {}
    for by_dtype in cell.ratios.values():
        for dtype, counts in by_dtype.items():
            summed[dtype] = [a + b for a, b in zip(counts, summed.get(dtype, [0] * len(counts)), strict=True)]
    return replace(cell, ratios={"all fields": summed})


def _without_ratios(cell: Cell) -> Cell:
    return replace(cell, ratios={}) if cell.ratios else cell


def _without_errors(cell: Cell) -> Cell:
    return replace(cell, errors=[]) if cell.errors else cell


def _without_text(*, known: bool, kept: int) -> Callable[[Cell], Cell]:
    def reduce(cell: Cell) -> Cell:
        cases = [
            d if d.known != known or n < kept or not d.script else replace(d, life=[], script="")
            for n, d in enumerate(cell.divergences)
        ]
        return (
            cell
            if all(a is b for a, b in zip(cases, cell.divergences, strict=True))
            else replace(cell, divergences=cases)
        )

    return reduce


#: What is left out of a page that would be too large, one after the other.
_REDUCTIONS: tuple[tuple[str, Callable[[Cell], Cell]], ...] = (
    ("distributions of r of subjects that do not fail are summed over their fields", _fold_ratios),
    ("lives and scripts of known issues are left out", _without_text(known=True, kept=0)),
    ("distributions of r are left out", _without_ratios),
    (
        "lives and scripts of all but the first new divergence of each subject are left out",
        _without_text(known=False, kept=1),
    ),
    ("witnesses of the accuracy certificate are left out", _without_errors),
    ("lives and scripts of all divergences are left out", _without_text(known=False, kept=0)),
)
