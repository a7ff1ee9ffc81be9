"""What became of an earlier report: what is red now, what is green, what is gone, and which counts shrank."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stepcheck.harness.page import model, upgrade
from stepcheck.harness.page.model import Cell, Report
from stepcheck.harness.page.upgrade import Upgrade
from stepcheck.harness.support.usage import UsageError

_COUNTS = ("traces", "elements")
_OF_CHECKS = ("planned", "ran")
#: How a divergence that the ledger does not explain is told.
_NEW = "new, "
#: Verdicts of exit status 0. From the one to the other, what is known appeared or disappeared.
_CONFORMS = ("pass", "known")
_MOST_BYTES = 256 << 20


@dataclass
class Comparison:
    """Subjects, and lines that tell of them.

    Attributes:
        verdict: ``fail`` if something passes no longer or is gone, a divergence that is not known appeared, or something was asked less
            often: a count that shrinks is a failure.
        told: what makes the two hard to compare, such as another seed.
        shrank: rows of subject, check (or nothing), count, before and after.
    """

    against: str
    verdict: str
    told: list[str]
    red: list[str]
    green: list[str]
    changed: list[str]
    new: list[str]
    gone: list[str]
    appeared: list[str]
    disappeared: list[str]
    shrank: list[dict[str, Any]]


def load(path: Path) -> dict[str, Any]:
    """An earlier ``report.json``.

    Raises:
        UsageError: it cannot be read, or is none of this schema.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise UsageError(f"--against {path}: is no regular file; name the report.json of an earlier report")
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise UsageError(f"--against {path}: larger than {_MOST_BYTES >> 20} MiB; this is no report")
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--against {path}: cannot be read ({error}); name the report.json of an earlier report"
        ) from None
    if not isinstance(data, dict) or data.get("schema") != model.SCHEMA or "cells" not in data:
        raise UsageError(
            f"--against {path}: no report of schema {model.SCHEMA}; name the report.json that stepcheck report wrote"
        )
    return data


def compare(report: Report, before: dict[str, Any], name: str) -> Comparison | Upgrade:
    """A report beside an earlier one, given as its JSON. Where their versions of torch are not the same, it is the faults that count.

    Raises:
        UsageError: the JSON lacks what its schema has.
    """
    try:
        told = list(_unlike(report, before))
        return upgrade.compare(report, before, name, told) or _compare(report, before, name, told)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(
            f"--against {name}: not a whole report ({type(error).__name__}: {error}); make it again"
        ) from None


def _compare(report: Report, before: dict[str, Any], name: str, told: list[str]) -> Comparison:
    then = {str(c["subject"]): c for c in before["cells"]}
    now = {c.subject: c for c in report.cells}
    both = [(then[s], now[s]) for s in now if s in then]
    moved = [(str(t["verdict"]), n) for t, n in both if t["verdict"] != n.verdict]
    red = [n.subject for _, n in moved if n.verdict == "fail"]
    green = [n.subject for _, n in moved if n.verdict == "pass"]
    gone = [s for s in then if s not in now]
    shrank = [row for t, n in both for row in _shrank(t, n)]
    seen_then = {key for c in then.values() for key in _kinds(str(c["subject"]), c["divergences"])}
    seen_now = {key for c in now.values() for key in _kinds(c.subject, [vars(d) for d in c.divergences])}
    appeared = sorted(seen_now - seen_then)
    doubtful = any(was in _CONFORMS and now.verdict not in _CONFORMS for was, now in moved)
    worse = any(told.startswith(_NEW) for _, _, told in appeared)
    return Comparison(
        against=name,
        verdict="fail" if red or gone or shrank or doubtful or worse else "pass",
        told=told,
        red=red,
        green=green,
        changed=[f"{n.subject}: {was}, now {n.verdict}" for was, n in moved if n.verdict not in ("fail", "pass")],
        new=[s for s in now if s not in then],
        gone=gone,
        appeared=[": ".join(key) for key in appeared],
        disappeared=[": ".join(key) for key in sorted(seen_then - seen_now)],
        shrank=shrank,
    )


def _kinds(subject: str, divergences: Iterable[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Divergences by what stays the same where another life shows them."""
    for d in divergences:
        yield subject, str(d["check"]), f"known, {d['entry']}" if d["known"] else f"{_NEW}{d['cause']}"


def _shrank(then: dict[str, Any], now: Cell) -> Iterator[dict[str, Any]]:
    for count in _COUNTS:
        yield from _less(now.subject, "", count, int(then[count]), getattr(now, count))
    checks = {q.check: q for q in now.checks}
    for q in then["checks"]:
        for count in _OF_CHECKS:
            after = getattr(checks[q["check"]], count) if q["check"] in checks else 0
            yield from _less(now.subject, str(q["check"]), count, int(q[count]), after)


def _less(subject: str, check: str, count: str, before: int, after: int) -> Iterator[dict[str, Any]]:
    if after < before:
        yield {"subject": subject, "check": check, "count": count, "before": before, "after": after}


def _unlike(report: Report, before: dict[str, Any]) -> Iterator[str]:
    """What differs that no optimizer answers for."""
    runs = [r for r in before["runs"] if r["kind"] == "check"]
    mine = [r for r in report.runs if r.kind == "check"]
    for what, was, now in (
        ("stepcheck", {str(r["version"]) for r in runs}, {r.version for r in mine}),
        ("seed", {str(r["seed"]) for r in runs}, {str(r.seed) for r in mine}),
        ("torch", {str(r["environment"].get("torch")) for r in runs}, {str(r.environment.get("torch")) for r in mine}),
        ("command", {str(r["command"]) for r in runs}, {r.command for r in mine}),
    ):
        if was != now:
            yield f"{what}: {', '.join(sorted(was)) or 'none'}, now {', '.join(sorted(now)) or 'none'}"
