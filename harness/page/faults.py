"""Known issues by version of torch, as one plain value: what was played, see ``harness/known/evidence.py``. ``versions.json`` is its JSON.

Schema of ``versions.json`` in the folder of a report (version 1; all keys are always there)::

    {"schema": 1, "stepcheck": VERSION, "grades": {GRAVITY: TEXT},
     "versions": [{"torch": VERSION, "environment": {NAME: VALUE}}],
     "rows": [{"optimizer", "mode", "cells": [{"torch": VERSION, "state": STATE, "why": TEXT, "faults": [NAME], "fixed": [NAME],
                                               "new": [NAME]}]}],
     "faults": [{"name", "statement", "gravity": GRAVITY, "checks": [NAME], "link", "first_seen": VERSION, "fixed_in": VERSION or "",
                 "shows": {SUBJECT: [VERSION]}, "quiet": {SUBJECT: [VERSION]}, "life": [TEXT], "script", "replay"}]}

GRAVITY is wrong, raises or lax. STATE is played, lacks (this version has no such optimizer), unsupported (the mode says so itself) or
unplayed. A SUBJECT is ``Adam[foreach]``. "fixed" and "new" are since the last version before it under which the same was played.
"first_seen" and "fixed_in" are those of all subjects together: where some still show it, it is not fixed. "script" is empty where the
torch that made the report does not show the issue, and only its numbers could say what to assert.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.version import Version

from stepcheck import __version__
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import evidence
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.known.evidence import Played, Span
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.page.gravity import GRADES, gravest
from stepcheck.harness.play.families import MODES, TORCH
from stepcheck.harness.search.asking import reproduction
from stepcheck.harness.search.tell import tell

SCHEMA = 1
#: What a check asserts that knows no numbers of a witness: the event alone is enough.
_WITHOUT_WITNESS = (
    "completes", "refuses-invalid", "hooks-run-once", "failed-step", "skipped-step", "dicts-unchanged", "loaded-state-apart",
    "random-state", "settings-kept",
)  # fmt: skip


@dataclass
class Cell:
    """A subject under one version of torch.

    Attributes:
        state: ``played``, ``lacks``, ``unsupported`` or ``unplayed``.
        why: the reason, where it was not played.
        faults: entries that show.
        fixed: of those that showed under the last version before, the ones that do not.
        new: of those that show, the ones that did not under the last version before.
    """

    torch: str
    state: str
    why: str = ""
    faults: list[str] = field(default_factory=list)
    fixed: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)


@dataclass
class Row:
    """A subject under all versions."""

    optimizer: str
    mode: str
    cells: list[Cell]

    @property
    def subject(self) -> str:
        return f"{self.optimizer}[{self.mode}]"

    @property
    def faults(self) -> list[str]:
        """Everything that some version shows, in the order of the ledger."""
        seen = {name for cell in self.cells for name in cell.faults}
        return [name for name in LEDGER if name in seen]


@dataclass
class Fault:
    """An entry of the ledger, and where it shows."""

    name: str
    statement: str
    gravity: str
    checks: list[str]
    link: str
    first_seen: str
    fixed_in: str
    shows: dict[str, list[str]]
    quiet: dict[str, list[str]]
    life: list[str]
    script: str
    replay: str

    def under(self, version: str) -> list[str]:
        """The subjects that show it under a version."""
        return [subject for subject, shown in self.shows.items() if version in shown]

    @property
    def alike(self) -> list[tuple[list[str], Span]]:
        """Subjects that show it in the same versions, and do not in the same others, with these versions."""
        groups: dict[Span, list[str]] = {}
        for subject, shown in self.shows.items():
            groups.setdefault(Span(tuple(shown), tuple(self.quiet[subject])), []).append(subject)
        return [(subjects, span) for span, subjects in groups.items()]


@dataclass
class Faults:
    """Everything that is shown, as plain data."""

    versions: list[dict[str, Any]]
    rows: list[Row]
    faults: list[Fault]

    @property
    def by_name(self) -> Mapping[str, Fault]:
        return {fault.name: fault for fault in self.faults}

    def to_json(self) -> dict[str, Any]:
        """The contract of ``versions.json``, as the module's docstring has it."""
        grades = {grade.name: grade.means for grade in GRADES}
        return {"schema": SCHEMA, "stepcheck": __version__, "grades": grades, **dataclasses.asdict(self)}


def build() -> Faults:
    """What this release knows, with the lives as the torch that is installed shows them."""
    played = evidence.versions()
    return Faults(
        versions=[{"torch": p.torch, "environment": dict(p.environment)} for p in played],
        rows=[Row(optimizer, mode, _cells(f"{optimizer}[{mode}]", played)) for optimizer, mode in _subjects(played)],
        faults=list(_faults(played)),
    )


def _subjects(played: Sequence[Played]) -> list[tuple[str, str]]:
    """Optimizers and modes that this torch or another one has."""
    named = {(name, mode) for name, modes in TORCH.modes.items() for mode in modes}
    for p in played:
        for subjects in (p.unsupported, *p.shows.values(), *p.quiet.values()):
            named |= {parts for parts in map(_parts, subjects) if parts[0] in TORCH.modes}
    order = list(MODES)
    return sorted(named, key=lambda s: (s[0].lower(), order.index(s[1]) if s[1] in MODES else len(order), s[1]))


def _parts(subject: str) -> tuple[str, str]:
    name, _, mode = subject.partition("[")
    return name, mode.removesuffix("]")


def _cells(subject: str, played: Sequence[Played]) -> list[Cell]:
    """A row, each cell beside what was seen before it."""
    before: dict[str, bool] = {}
    cells = []
    for p in played:
        saw = {name: seen for name in LEDGER if (seen := p.saw(name, subject)) is not None}
        cell = _cell(subject, p, played=bool(saw))
        cell.faults = [name for name, seen in saw.items() if seen]
        cell.fixed = [name for name, seen in saw.items() if not seen and before.get(name, False)]
        cell.new = [name for name, seen in saw.items() if seen and not before.get(name, True)]
        before |= saw
        cells.append(cell)
    return cells


def _cell(subject: str, p: Played, *, played: bool) -> Cell:
    """What was done with a subject, without what was seen."""
    optimizer, _ = _parts(subject)
    if optimizer in p.lacks:
        return Cell(p.torch, "lacks", p.lacks[optimizer])
    if subject in p.unsupported:
        return Cell(p.torch, "unsupported", p.unsupported[subject])
    if played:
        return Cell(p.torch, "played")
    return Cell(p.torch, "unplayed", f"nothing was played on it under torch {p.torch}")


def _faults(played: Sequence[Played]) -> Iterator[Fault]:
    """The entries that some version shows."""
    for name, entry in LEDGER.items():
        subjects = sorted({s for p in played for s in p.shows.get(name, ())}, key=str.lower)
        if not subjects:
            continue
        spans = {subject: evidence.span(name, subject) for subject in subjects}
        ends = [span.fixed_in for span in spans.values()]
        life, script = _life(entry)
        yield Fault(
            name=name,
            statement=entry.statement,
            gravity=gravest(entry.checks),
            checks=list(entry.checks),
            link=entry.link,
            first_seen=min((span.first_seen for span in spans.values()), key=Version),
            # It is fixed when the last subject is.
            fixed_in=max(ends, key=Version) if all(ends) else "",
            shows={subject: list(span.seen) for subject, span in spans.items()},
            quiet={subject: list(span.quiet) for subject, span in spans.items()},
            life=life,
            script=script,
            replay=f"stepcheck replay {name}",
        )


def _life(entry: Entry) -> tuple[list[str], str]:
    """An entry's own life in prose, and its script, empty where that would not know what to assert."""
    subject, saved = entry.subject, entry.saved
    # Only what is known to show here is played in this process, and a compilation takes longer than a report should.
    seen = reproduction(subject, entry, saved.check) if entry.seen_here and subject.mode != "compiled" else None
    if seen is not None:
        shown = tell(subject, *seen)
        return shown.life, shown.script
    # A life of the ledger is the smallest, so that its last event is the one that goes wrong.
    last = len(saved.trace.events) - 1 if saved.trace.events else None
    shown = tell(subject, saved.trace, Finding(saved.check, saved.cause, last, saved.summary), evaluate=False)
    return [*shown.life, f"What went wrong: {saved.summary}."], shown.script if saved.check in _WITHOUT_WITNESS else ""
