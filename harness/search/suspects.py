"""What the lives of a campaign show, sorted: what the ledger explains, and what is to be made small and told."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from stepcheck.harness.checking import determinism
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS, EXPLAINED_BY
from stepcheck.harness.checking.findings import (
    AFTER,
    DEVIATES,
    NO_EFFECT,
    STRIDED,
    TWIN,
    Finding,
    place_of,
)
from stepcheck.harness.checking.twins import ADDED, FIRST, OTHER, TWINS
from stepcheck.harness.known import ledger
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.verdict import LifeTally, Result
from stepcheck.harness.search.consequences import ROOTS
from stepcheck.harness.support.clocks import Clocks

#: Lives with one deviation in which an invariant is looked for that explains it.
_TRIED = 4
#: Of each check that is expected to fail, divergences that are made small and told.
_MOST_EXPECTED = 3
#: Lives of a class that deviates from the reference in which it is asked by second lives, for each check.
_TWINNED = 20
#: Before an option is said to have no effect: lives in which it should, and elements that it should change there.
_IDLE_LIVES, _IDLE_ELEMENTS = 6, 100


@dataclass
class Idle:
    """In how many lives, and elements that it should change, an option changed nothing; and whether it ever did change anything."""

    lives: int = 0
    elements: int = 0
    effective: bool = False

    @property
    def shown(self) -> bool:
        """Whether that is enough to say that it has no effect."""
        return not self.effective and self.lives >= _IDLE_LIVES and self.elements >= _IDLE_ELEMENTS


@dataclass
class Suspect:
    finding: Finding
    trace: Trace
    owner: str = ""
    lives: set[int] = field(default_factory=set)
    """The numbers of the lives that showed it: one life may show it twice, as it was and in row-major memory."""

    @property
    def count(self) -> int:
        return len(self.lives)


def _note(
    kept: dict[tuple[str, str], Suspect],
    key: tuple[str, str],
    finding: Finding,
    trace: Trace,
    number: int,
    owner: str = "",
) -> None:
    before = kept.get(key)
    lives = set() if before is None else before.lives
    # What is the subject's own is shown by a life of its own, though one that led into another mode came first.
    if before is None or (before.owner and not owner):
        kept[key] = Suspect(finding, trace, owner, lives)
    lives.add(number)


def rank(key: tuple[str, str]) -> tuple[bool, int]:
    """The order in which new divergences are told: those first that others may follow from."""
    # Of those that no other may follow from, the order is that of CHECKS, which somebody may have added to.
    order = [*ROOTS, *(name for name in CHECKS if name not in ROOTS)]
    return key[1] not in (determinism.LEAKS, determinism.CHANCE), order.index(key[0])


class Suspects:
    """What a campaign has seen so far.

    Args:
        checks: those that are asked.
        clocks: the seconds of the life that is being played.
    """

    def __init__(self, subject: Subject, checks: tuple[str, ...], clocks: Clocks) -> None:
        self.subject = subject
        self.checks = tuple(dict.fromkeys(checks))
        self.clocks = clocks
        self.new: dict[tuple[str, str], Suspect] = {}
        """What nobody knows of, by check and cause."""
        self.known: dict[tuple[str, str], Suspect] = {}
        """What the ledger explains, by check and name of the entry."""
        self.shrunk: set[tuple[str, str]] = set()
        self.idle: dict[str, Idle] = {}
        """Options that changed nothing where they should have, by cause; until a life is seen in which they do."""
        self.twinned: Counter[str] = Counter()
        """Lives in which the class was asked by second lives, for each check."""

    def note(self, finding: Finding, trace: Trace, number: int) -> None:
        """Keep what a life showed that nobody knows of."""
        _note(self.new, (finding.check, finding.kind), finding, trace, number)

    def note_effects(self, evidence: Evidence) -> None:
        """Keep count of options that changed nothing, and of those that did."""
        for effect in evidence.effects if "option-effect" in self.checks else ():
            idle = self.idle.setdefault(effect.cause, Idle())
            idle.lives += effect.idle
            idle.elements += effect.elements if effect.idle else 0
            idle.effective |= not effect.idle

    @property
    def effective(self) -> frozenset[str]:
        """Causes of options that were seen to have an effect."""
        return frozenset(cause for cause, idle in self.idle.items() if idle.effective)

    @property
    def answered(self) -> frozenset[str]:
        """What need not be asked of the class by second lives any more."""
        effective = (cause for cause, idle in self.idle.items() if idle.effective or idle.lives >= 2 * _IDLE_LIVES)
        return frozenset(effective) | {check for check, lives in self.twinned.items() if lives >= _TWINNED}

    def sort_effective(self) -> None:
        """What was taken for an option without effect, that has one as later lives show, is a deviation."""
        for key in [k for k in self.new if k[0] == "option-effect" and k not in self.shrunk]:
            suspect = self.new[key]
            d = suspect.finding.deviation
            if d is None or place_of(suspect.trace, suspect.trace.group_of[d.parameter], key[1]) not in self.effective:
                continue
            del self.new[key]
            evidence = Evidence(self.subject, suspect.trace, self.checks, effective=self.effective)
            if "agreement" in self.checks:
                self.sort("agreement", evidence, LifeTally(0))

    @property
    def ready(self) -> list[tuple[str, str]]:
        """The suspects, but for options of which it is too early to say that they change nothing."""
        return [
            (check, cause)
            for check, cause in self.new
            if (not cause.endswith(NO_EFFECT) or self._is_idle(cause)) and not self._is_told_otherwise(check, cause)
        ]

    @property
    def pressing(self) -> bool:
        """Whether there is one that was not expected."""
        return any(check not in self.subject.expected for check, _ in self.ready)

    def due(self, most: int, *, at_once: bool) -> list[tuple[str, str]]:
        """The suspects to be made small next, in the order in which they are told.

        Args:
            most: how many in all. Those that were expected do not take the place of others, and their checks not that of each other.
            at_once: where there is one that was not expected, it is not kept waiting.
        """
        expected = self.subject.expected
        ready = [key for key in self.ready if not (at_once and self.pressing and key[0] in expected)]
        told: Counter[str] = Counter()
        made = []
        for key in [*self.shrunk, *sorted((key for key in ready if key not in self.shrunk), key=rank)]:
            kind, limit = (key[0], _MOST_EXPECTED) if key[0] in expected else ("", most)
            if told[kind] < limit and key not in self.shrunk:
                made.append(key)
            told[kind] += 1
        return made

    def number(self, result: Result) -> None:
        """Say of each divergence in how many lives it was seen."""
        for divergence in result.unexplained:
            divergence.found_in = self.new[divergence.check, divergence.cause].count
        for divergence in result.known:
            if not divergence.expected:
                divergence.found_in = self.known[divergence.check, divergence.entry].count

    def passing(self, result: Result) -> list[str]:
        """The checks that were expected to fail, were asked, and of which nothing was seen, though it was not told."""
        seen = {check for check, _ in self.new}
        tallies = [result.tallies[check] for check in self.subject.expected if check in result.tallies]
        return [t.check for t in tallies if t.verdict == "pass" and t.check not in seen]

    def _is_told_otherwise(self, check: str, cause: str) -> bool:
        """Whether what two lives of the class show is told already, beside the reference in another life; or the other way round."""
        if check not in TWINS:
            return False
        by_reference = [c for k, c in self.new if k == check and c.startswith((DEVIATES, AFTER))]
        if cause == TWIN:
            return any((check, c) in self.shrunk for c in by_reference)
        return cause in by_reference and (check, TWIN) in self.new and (check, cause) not in self.shrunk

    def _is_idle(self, cause: str) -> bool:
        """Whether an option was seen to change nothing often enough, and never to change anything, and nothing else that is told says why."""
        return cause not in self.idle or (self.idle[cause].shown and not self._follows(cause))

    def _follows(self, cause: str) -> bool:
        """Whether that an option changes nothing in one place follows from what is told by itself."""
        option, _, where = cause.removesuffix(NO_EFFECT).partition(" ")
        if option == "maximize" and ("maximize-mirrors", TWIN) in self.new:
            return True
        if where in (OTHER, ADDED) and ("groups-independent", TWIN) in self.new:
            return True
        first = self.idle.get(f"{option} {FIRST}{NO_EFFECT}")
        return where != FIRST and first is not None and first.shown

    def sort(self, check: str, evidence: Evidence, life: LifeTally) -> None:
        """Tell what the ledger explains from the first finding of a check that it does not; later ones may be its effects."""
        unexplained = False
        for finding in CHECKS[check].find(evidence):
            entry = ledger.knows(evidence, finding)
            if entry is not None:
                if entry.name not in life.known:
                    life.known.append(entry.name)
                owner = entry.owner(evidence, finding)
                _note(self.known, (check, entry.name), finding, evidence.trace, life.number, owner)
            elif finding.cause.startswith(STRIDED) and check == "agreement" and self._sort_row_major(evidence, life):
                return
            elif not unexplained or finding.cause.endswith(NO_EFFECT):
                unexplained = True
                if finding.ratio is not None:
                    life.saw(check, finding.ratio)
                self.note(finding, evidence.trace, life.number)

    def _sort_row_major(self, evidence: Evidence, life: LifeTally) -> bool:
        """Whether it is wrong in row-major memory as well: then strides are not the cause, and it is told without them."""
        plain = Evidence(
            evidence.subject,
            evidence.trace.row_major(),
            self.checks,
            ledger.explanation,
            self.settled(),
            self.clocks,
            answered=self.answered,
            effective=self.effective,
        )
        if plain.trace == evidence.trace or not plain.judgement.deviations:
            return False
        for check in self.checks:
            if check in EXPLAINED_BY:
                self.sort(check, plain, life)
        return True

    def settled(self) -> frozenset[str]:
        """Deviations seen in several lives that no broken invariant explained: to look for one costs more than the life itself."""
        agreement = ((cause, s.count) for (check, cause), s in self.new.items() if check == "agreement")
        return frozenset(cause for cause, count in agreement if count >= _TRIED)
