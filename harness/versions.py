"""Known issues under the torch that is installed: every entry's own life, played on every subject that it concerns.

``python -m stepcheck.harness.versions`` plays them and adds what it saw to ``harness/versions.json`` (:mod:`.evidence` has the schema), or
to the file named with ``--file``. ``nox -s versions -- 2.9.1 2.12.1`` does it under each of these versions, in an environment of its own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from stepcheck.harness.known import evidence
from stepcheck.harness.known.entry import Entry, shows
from stepcheck.harness.known.evidence import Played
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.play.families import TORCH, can_play
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.readers import report
from stepcheck.harness.search.limits import patience
from stepcheck.harness.search.workers import in_child, warm_up

#: Seconds that a life may take beyond those of its subject.
_SILENCE_SECONDS = 10.0


def play(names: Sequence[str] = ()) -> Played:
    """What each entry shows here, or each of ``names``; of the others, what is known already."""
    subjects = TORCH.resolve(TORCH.name)
    here = [s for s in subjects if not s.unsupported]
    lacks = {name: why for name in TORCH.modes if (why := TORCH.lacks(name))}
    unsupported = {_short(s): s.unsupported for s in subjects if s.unsupported and s.spec.name not in lacks}
    known = next((p for p in evidence.versions() if names and p.torch == evidence.installed()), None)
    shows: dict[str, Sequence[str]] = {n: known.shows.get(n, ()) if known and n not in names else [] for n in LEDGER}
    quiet: dict[str, Sequence[str]] = {n: known.quiet.get(n, ()) if known and n not in names else [] for n in LEDGER}
    for entry in (e for e in LEDGER.values() if not names or e.name in names):
        for subject in _concerned(entry, here):
            where = entry.where if subject.explicit else _short(subject)
            into = shows if _shows(subject, entry) else quiet
            into[entry.name] = [*into[entry.name], where]
    return Played(evidence.installed(), report.environment(), lacks, unsupported, shows, quiet)


def _short(subject: Subject) -> str:
    return subject.name.removeprefix("torch:")


def _concerned(entry: Entry, subjects: Sequence[Subject]) -> Iterator[Subject]:
    """The subjects on which the life of an entry can be played and could show it."""
    if entry.subject.explicit:
        yield entry.subject
        return
    for subject in subjects:
        trace = replace(entry.saved.trace, optimizer=subject.spec.name)
        fits = trace.problem(subject.spec) is None and can_play(subject, trace)
        # Each life on a compiled subject costs half a minute: there the one that shows it must do.
        named = (not entry.modes or subject.mode in entry.modes) and subject.mode != "compiled"
        if entry.concerns(subject) and fits and (named or subject.name == entry.saved.subject):
            yield subject


def _shows(subject: Subject, entry: Entry) -> bool:
    return not in_child(lambda: shows(subject, entry), patience(subject) + _SILENCE_SECONDS)


def main(arguments: Sequence[str] | None = None) -> None:
    """Play, tell in a few lines, and keep what was seen."""
    parser = argparse.ArgumentParser(prog="python -m stepcheck.harness.versions", description=__doc__)
    parser.add_argument("--file", type=Path, default=evidence.FILE, help="where what was seen is added")
    parser.add_argument(
        "--only", metavar="ENTRY", action="append", default=[], help="play the life of this entry alone"
    )
    given = parser.parse_args(arguments)
    warm_up()
    played = play(given.only)
    evidence.save(played, given.file)
    silent = [e.name for e in LEDGER.values() if played.saw(e.name, e.where) is False]
    absent = [e.name for e in LEDGER.values() if played.saw(e.name, e.where) is None]
    print(f"torch {played.torch}: {len(LEDGER) - len(silent) - len(absent)} of {len(LEDGER)} known issues show")  # noqa: T201
    for told, names in (("not seen", silent), ("not played", absent)):
        print(f"  {told}: {', '.join(names) or 'none'}")  # noqa: T201


if __name__ == "__main__":
    main()
