"""A life that was played on a subject, what the reference says of it, and other lives that are asked about it."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace

from stepcheck.harness.checking import agreement, twins
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import Finding, idle_cause, strided, unlike
from stepcheck.harness.checking.twins import Twin, Unset
from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.judgement import Judgement
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.families import torchs_own
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.clocks import Clocks


@dataclass(frozen=True)
class Effect:
    """What setting an option changed in a life of somebody's class.

    Attributes:
        unset: the life without it.
        elements: how many elements it changes visibly where torch's own optimizer plays both lives.
        idle: it changes no bit of a parameter or of state.
    """

    unset: Unset
    elements: int
    idle: bool

    @property
    def cause(self) -> str:
        return idle_cause(self.unset)


#: Checks of steps that must do nothing.
_ABOUT_NOTHING_DONE = ("failed-step", "skipped-step")
#: What a sum over all parameters, added up in another order, may tell apart.
_OVER_ALL = ("groups-independent", "order-of-parameters")
#: Options of one life that are tried without.
_MOST_EFFECTS = 4


class Evidence:
    """A trace played on a subject, and what the reference says of it (computed when a check first asks).

    Args:
        asked: the checks that are asked; what one of them explains, another need not report.
        known: whether a finding has an explanation already.
        settled: causes of deviations that no broken invariant has explained in several lives: in this one none is tried.
        clocks: where the seconds of playing and judging are added up, those of other lives that are tried to explain this one
            included.
        answered: where the reference cannot answer, the class itself is asked, by a second life that must come out like this one; but not
            for these checks, nor for the effect of options by these causes: enough lives have answered.
        effective: causes of options that were seen to have an effect, so that none explains a deviation by having none.
    """

    def __init__(
        self,
        subject: Subject,
        trace: Trace,
        asked: Collection[str] = (),
        known: Callable[[Evidence, Finding], object] = lambda evidence, finding: None,
        settled: Collection[str] = (),
        clocks: Clocks | None = None,
        *,
        answered: Collection[str] = (),
        effective: Collection[str] = (),
    ) -> None:
        self.settled = settled
        self.answered = answered
        self.effective = effective
        self._twins: dict[str, tuple[int, Finding | None]] = {}
        self.subject: Subject = subject
        self.trace: Trace = trace
        self.known = known
        self.asked = asked or CHECKS.keys()
        self.clocks = Clocks() if clocks is None else clocks
        with self.clocks.running("play"):
            self.recording: Recording = Player(subject, trace).play()

    @functools.cached_property
    def judge(self) -> Judge:
        return Judge(self.subject, self.recording, self.clocks)

    @functools.cached_property
    def judgement(self) -> Judgement:
        return self.judge.judge() if self.subject.referenced else Judgement(steps=len(self.recording.steps))

    @functools.cached_property
    def explanation(self) -> Finding | None:
        """What all deviations come from, where a broken invariant accounts for them; first one that a check is asked about."""
        if not self.judgement.deviations:
            return None
        first = self.judgement.deviations[0]
        # Strided memory is an explanation of its own.
        if first.event is None or strided(self.trace, first.event, first.parameter):
            return None
        deviating = list(agreement.deviating(self))
        if deviating[0].cause in self.settled or any(self.known(self, finding) for finding in deviating):
            return None
        for name in sorted(agreement.EXPLANATIONS, key=lambda name: name not in self.asked):
            finding = agreement.EXPLANATIONS[name](self, first)
            if finding is not None:
                return finding
        return None

    @property
    def reported(self) -> bool:
        """Whether a check that is asked tells of the explanation, so that another need not tell of the deviations."""
        return self.explanation is not None and self.explanation.check in self.asked

    @functools.cached_property
    def needs_twins(self) -> bool:
        """Whether the reference says nothing about the invariants: somebody's class deviates from it in a way that none of them explains.

        Or most of what it arrives at is not determined; or it is held to none.
        """
        if not self.subject.explicit:
            return False
        if not self.subject.referenced:
            return True
        open_ = 2 * self.judgement.undetermined > self.judgement.elements
        deviates = bool(self.judgement.deviations) and not self.reported
        # What a class inherits from torch's, whose fault is known, deviates for that reason in a second life too.
        return open_ or (deviates and not any(self.known(self, finding) for finding in agreement.deviating(self)))

    def twin(self, check: str) -> tuple[int, Finding | None]:
        """How many elements of this life and its twins were compared for a check, and what tells them apart."""
        if check not in self._twins:
            self._twins[check] = (0, None) if check in self.answered else self._compare_twins(check)
        return self._twins[check]

    def _compare_twins(self, check: str) -> tuple[int, Finding | None]:
        if self.subject.spec.closure and check == "order-of-parameters":
            return 0, None  # it adds over all of them, in their order
        compared = 0
        if self._draws:
            self.recording.lacks.add(twins.DRAWS)
        if self.recording.raised is not None or self._draws:
            return 0, None
        for twin in self._twins_for(check):
            if not self._has_meaning(twin.trace):
                continue
            count, deviation = twins.compare(self.recording, twin, self._played(twin.trace))
            if deviation is not None and twin.otherwise is not None and self._has_meaning(twin.otherwise.trace):
                count, deviation = twins.compare(self.recording, twin.otherwise, self._played(twin.otherwise.trace))
            if deviation is not None:
                if not twins.alike(self.recording, self._played(self.trace)):
                    return 0, None  # it does not do the same twice
                if self._couples(twin):
                    self.recording.lacks.add(twins.COUPLED)
                    return 0, None
                return compared + count, unlike(check, twin, deviation)
            compared += count
        return compared, None

    def _twins_for(self, check: str) -> Iterator[Twin]:
        for twin in twins.TWINS[check](self.trace):
            over_all = not self.subject.referenced and check in _OVER_ALL
            yield replace(twin, within="float32") if over_all else twin

    @property
    def _draws(self) -> bool:
        """Whether a class that no reference describes draws random numbers: in another life it draws others."""
        return not self.subject.referenced and any(b.check == "random-state" for b in self.recording.breaches)

    def _couples(self, twin: Twin) -> bool:
        """Whether a class that no reference describes lets other groups matter to one by their gradients alone.

        A norm over all of them does that. Who takes the options of another group, or counts what is there, does it beside idle ones too.
        """
        if self.subject.referenced or twin.group is None:
            return False
        idle = self._played(twins.beside_idle_ones(self.trace, twin.group))
        return idle.raised is None and twins.compare(idle, twin, self._played(twin.trace))[1] is None

    @functools.cached_property
    def effects(self) -> list[Effect]:
        """Of each option that is set where torch's own optimizer shows that it matters: whether it changes anything in the class."""
        if not self.needs_twins or self.recording.raised is not None:
            return []
        torchs = self._torchs  # to have it torch imports its compiler
        if torchs is None:
            return []
        shown: Recording | None = None
        effects = []
        plainly = self.trace.plainly  # flags are none of torch's plain mode
        wanted = (u for u in twins.unset(self.trace) if idle_cause(u) not in self.answered)
        for unset in itertools.islice(wanted, _MOST_EFFECTS):
            if unset.option not in self.subject.options or not self._has_meaning(unset.trace):
                continue
            shown = self._played(plainly, torchs) if shown is None else shown
            apart = twins.visibly_apart(self.trace, shown, self._played(unset.trace.plainly, torchs))
            # What is not a number is not changed by any option.
            if apart and twins.is_finite(self.recording):
                idle = twins.alike(self.recording, self._played(unset.trace))
                effects.append(Effect(unset, apart, idle=idle))
        return effects

    @functools.cached_property
    def _torchs(self) -> Subject | None:
        """torch's own optimizer of the name, where it can play this life."""
        spec = self.subject.spec
        return None if spec.closure else torchs_own(spec, self.trace.plainly)

    def _has_meaning(self, trace: Trace) -> bool:
        return trace.problem(self.subject.spec) is None and not self.subject.problem(trace)

    def _played(self, trace: Trace, subject: Subject | None = None) -> Recording:
        """Another life, to be compared with this one: what malformed state does is asked in this one alone."""
        with self.clocks.running("play"):
            return Player(subject or self.subject, trace, spoils=False).play()

    def player(self, event: int | None) -> Subject:
        """Who played an event: a round trip may have led from one mode to another."""
        led = [subject for at, subject in self.recording.handovers if event is not None and at < event]
        return led[-1] if led else self.subject

    def attributed(self, finding: Finding) -> Finding:
        """The finding, with its owner where another mode played the event."""
        player = self.player(finding.event)
        return finding if player.name == self.subject.name else replace(finding, owner=player.name)

    def is_consequence(self, finding: Finding) -> bool:
        """Whether a finding comes after a step that left a state half changed where it should have done nothing."""
        broken = [b.event for b in self.recording.breaches if b.check in _ABOUT_NOTHING_DONE]
        first = min((e for e in (*broken, self.recording.mixed) if e is not None), default=None)
        return first is not None and finding.event is not None and finding.event > first

    def conforms_as(self, twin: Trace, subject: Subject | None = None) -> bool:
        """Whether the subject, or another, agrees with the reference in another life."""
        if not self._has_meaning(twin):
            return False
        recording = self._played(twin, subject)
        if recording.raised is not None:
            return False
        return not Judge(subject or self.subject, recording, self.clocks).judge(to_first=True).deviations
