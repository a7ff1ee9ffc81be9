"""Two reports of two versions of torch: which faults were fixed, which are new. What did not change is not told.

A campaign that does not meet a known fault has not shown that it is gone, so that the two are held against what was played under both
versions (``harness/known/evidence.py``) wherever that is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from packaging.version import InvalidVersion, Version

from stepcheck.harness.known import evidence
from stepcheck.harness.known.evidence import Played
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.page.model import Report

#: Subjects that are named in a line; the others are counted.
_NAMED = 3
_JUDGED = ("pass", "known", "fail")


@dataclass
class Fault:
    """A fault, and the subjects in which it was fixed or is new: one line, however many they are."""

    name: str
    statement: str
    link: str
    subjects: list[str]

    def __str__(self) -> str:
        return f"{self.name}: {_listed(self.subjects)}"


@dataclass
class Upgrade:
    """What became of faults and subjects between two versions of torch.

    Attributes:
        before: the version of torch of the earlier report.
        now: the version of torch of this one.
        verdict: ``fail`` if there is a divergence that is not known and was not there, something is in doubt or gone, or a count shrank.
        told: what else makes the two hard to compare.
        fixed: known faults whose lives show them under the one version and not under the other.
        new: known faults that are seen now, and were not.
        unseen: known faults that were seen before and not now, though nothing shows that they are fixed.
        unknown: divergences that the ledger does not explain, and that were not there before.
        doubtful: subjects of which nothing is known now.
        lacks: subjects that only one of the two versions has or supports.
        gone: subjects that nobody checked any more.
        shrank: rows of subject, check (or nothing), count, before and after.
    """

    against: str
    before: str
    now: str
    verdict: str
    told: list[str]
    fixed: list[Fault]
    new: list[Fault]
    unseen: list[Fault]
    unknown: list[Fault]
    doubtful: list[str]
    lacks: list[str]
    gone: list[str]
    shrank: list[dict[str, Any]]

    @property
    def sections(self) -> list[tuple[str, list[str]]]:
        """What there is to tell, each part with its heading, the worst first."""
        shrank = [f"{s['subject']} {s['check']} {s['count']}: {s['before']}, now {s['after']}" for s in self.shrank]
        parts: list[tuple[str, Iterable[Any]]] = [
            ("NEW, and not known", self.unknown), ("in doubt", self.doubtful), ("gone: nobody checked them", self.gone),
            ("counts that shrank", shrank), ("FIXED", self.fixed), ("NEW, and known", self.new),
            ("not seen this time, and not shown to be fixed", self.unseen), ("in one version alone", self.lacks),
        ]  # fmt: skip
        return [(heading, lines) for heading, part in parts if (lines := [str(line) for line in part])]

    def lines(self) -> list[str]:
        """The same for a terminal."""
        told = [f"{heading}: {line}" for heading, lines in self.sections for line in lines]
        return [f"compared with {self.against}: {self.verdict}; {self.headline}", *(f"  {line}" for line in told)]

    @property
    def headline(self) -> str:
        """All of it in a line."""
        return (
            f"torch {self.before}, now {self.now}: {len(self.fixed)} faults fixed, {len(self.new)} new ones known,"
            f" {len(self.unknown)} not known"
        )


def versions(report: Report, before: Mapping[str, Any]) -> tuple[str, str] | None:
    """The version of torch of each of two reports, where each has one and they are not the same."""
    then = {_public(r["environment"].get("torch")) for r in before["runs"] if r["kind"] == "check"}
    now = {_public(r.environment.get("torch")) for r in report.runs if r.kind == "check"}
    return (then.pop(), now.pop()) if len(then) == len(now) == 1 and then != now else None


def _public(version: object) -> str:
    """A version without what follows a ``+``: the same release for another device."""
    try:
        return Version(str(version)).public
    except InvalidVersion:
        return str(version)


@dataclass
class _Side:
    """One of the two reports.

    Attributes:
        cells: by subject, as JSON has them.
        played: what was played under its version, on such a machine.
        shows: the subjects that show each entry, where that is known of both versions; of one alone it would tell of nothing but itself.
    """

    torch: str
    cells: dict[str, Mapping[str, Any]]
    played: Played | None
    shows: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def judged(self, subject: str) -> bool:
        return subject in self.cells and self.cells[subject]["verdict"] in _JUDGED

    def saw(self, entry: str, subject: str) -> bool | None:
        """Whether an entry's own life shows it on a subject; ``None`` where that was not played."""
        return None if self.played is None else self.played.saw(entry, _label(subject))

    def known(self, subject: str) -> set[str]:
        """The known faults of a subject: those that were met, and those that its version was seen to have."""
        met = {str(d["entry"]) for d in self.cells[subject]["divergences"] if d["known"] and _own(d)}
        return met | {entry for entry, subjects in self.shows.items() if _label(subject) in subjects}

    def unknown(self, subject: str) -> dict[str, str]:
        """Divergences that nobody knows of, by check and cause, with their summaries."""
        found = self.cells[subject]["divergences"] if subject in self.cells else ()
        return {f"{d['check']}, {d['cause']}": str(d["summary"]) for d in found if not d["known"]}

    def lacks(self, subject: str) -> str:
        """Why there is no verdict of a subject, where this version has no such thing; else nothing."""
        if subject in self.cells:
            notes = (str(n) for n in self.cells[subject]["notes"])
            why = next((n.removeprefix("unsupported: ") for n in notes if n.startswith("unsupported")), "unsupported")
            return why if self.cells[subject]["verdict"] == "unsupported" else ""
        if self.played is None or not subject.startswith("torch:"):
            return ""
        label = _label(subject)
        why = self.played.lacks.get(label.partition("[")[0], "") or self.played.unsupported.get(label, "")
        played = any(label in subjects for of in (self.played.shows, self.played.quiet) for subjects in of.values())
        return why or ("" if played else f"torch {self.torch} has no such mode")


def _label(subject: str) -> str:
    """A subject as the evidence names it."""
    return subject.removeprefix("torch:")


def _own(divergence: Mapping[str, Any]) -> bool:
    """Whether another mode of torch does not tell of it as its own."""
    return not str(divergence.get("owner", "")).startswith("torch:")


def compare(report: Report, before: Mapping[str, Any], name: str, told: list[str]) -> Upgrade | None:
    """A report beside an earlier one of another version of torch; ``None`` where the version is the same.

    Args:
        before: the JSON of the earlier one.
        told: what else is not the same.
    """
    pair = versions(report, before)
    if pair is None:
        return None
    data = report.to_json()
    then, now = (
        _Side(torch, {str(c["subject"]): c for c in json["cells"]}, _played(torch, json["runs"]))
        for torch, json in zip(pair, (before, data), strict=True)
    )
    if then.played is not None and now.played is not None:
        then.shows, now.shows = then.played.shows, now.played.shows
    told += [f"torch {side.torch} was not played on such a machine: a fault that is not met there may be there all the same"
             for side in (then, now) if side.played is None]  # fmt: skip
    return _upgrade(then, now, name, told)


def _played(torch: str, runs: Iterable[Mapping[str, Any]]) -> Played | None:
    machines = {str(r["environment"].get("platform", "")) for r in runs if r["kind"] == "check"}
    return next((p for p in evidence.versions() if p.torch == torch and machines == {p.machine}), None)


def _upgrade(then: _Side, now: _Side, name: str, told: list[str]) -> Upgrade:
    both = [s for s in now.cells if now.judged(s) and then.judged(s)]
    ended = [(s, entry, now.saw(entry, s)) for s in both for entry in then.known(s) - now.known(s)]
    begun = [(s, entry) for s in both for entry in now.known(s) - then.known(s) if not then.saw(entry, s)]
    unknown = [(s, key, told) for s in now.cells for key, told in now.unknown(s).items() if key not in then.unknown(s)]
    silent = [(s, key, told) for s in both for key, told in then.unknown(s).items() if key not in now.unknown(s)]
    doubtful = [f"{s}: {then.cells[s]['verdict']}, now {c['verdict']}" for s, c in now.cells.items()
                if c["verdict"] == "unknown" and then.judged(s)]  # fmt: skip
    gone = [s for s in then.cells if s not in now.cells and not now.lacks(s)]
    shrank = [row for s in both for row in _shrank(s, then.cells[s], now.cells[s])]
    return Upgrade(
        against=name,
        before=then.torch,
        now=now.torch,
        verdict="fail" if unknown or doubtful or gone or shrank else "pass",
        told=told,
        fixed=_entries((s, entry) for s, entry, shows in ended if shows is False),
        new=_entries(begun),
        unseen=_entries((s, entry) for s, entry, shows in ended if shows is None) + _faults(silent),
        unknown=_faults(unknown),
        doubtful=doubtful,
        lacks=list(_lacks(then, now)),
        gone=gone,
        shrank=shrank,
    )


def _entries(seen: Iterable[tuple[str, str]]) -> list[Fault]:
    """Entries of the ledger with their subjects, in the order of the ledger."""
    found: dict[str, list[str]] = {}
    for subject, name in seen:
        found.setdefault(name, []).append(subject)
    made = []
    for name in sorted(found, key=lambda name: (list(LEDGER).index(name) if name in LEDGER else len(LEDGER), name)):
        entry = LEDGER.get(name)  # the other report may be of a version that knew others
        made.append(Fault(name, entry.statement if entry else "", entry.link if entry else "", found[name]))
    return made


def _faults(seen: Iterable[tuple[str, str, str]]) -> list[Fault]:
    """Divergences that the ledger does not explain, those of one check and cause together."""
    found: dict[str, Fault] = {}
    for subject, key, summary in seen:
        found.setdefault(key, Fault(key, summary, "", [])).subjects.append(subject)
    return list(found.values())


def _lacks(then: _Side, now: _Side) -> Iterator[str]:
    """Subjects that only one of the versions has, those of one reason together."""
    for side, other in ((now, then), (then, now)):
        reasons: dict[str, list[str]] = {}
        for subject in other.cells:
            if other.judged(subject) and (why := side.lacks(subject)):
                reasons.setdefault(why, []).append(subject)
        yield from (f"{_listed(subjects)}: {why}" for why, subjects in reasons.items())


def _shrank(subject: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What was asked less often. How far a life comes is the versions' own affair; that it is played, and asked about, is not."""
    planned = {q["check"]: q["planned"] for q in now["checks"]}
    asked = [("traces", "", then["traces"], now["traces"])]
    asked += [("planned", q["check"], q["planned"], planned.get(q["check"], 0)) for q in then["checks"]]
    for count, check, before, after in asked:
        if after < before:
            yield {"subject": subject, "check": check, "count": count, "before": before, "after": after}


def _listed(subjects: list[str]) -> str:
    if len(subjects) <= _NAMED + 1:
        return ", ".join(subjects)
    return f"{', '.join(subjects[:_NAMED])} and {len(subjects) - _NAMED} more ({len(subjects)} subjects)"
