"""Many traces on one subject: draw, play, ask every check, keep count, and shrink what fails."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from typing import Any

from stepcheck.harness.checking import determinism
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.check import steps_judged
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import STRIDED, Finding
from stepcheck.harness.checking.twins import TWINS
from stepcheck.harness.judging.dialects import Dialects
from stepcheck.harness.known import ledger
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.life.features import features
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play import validation
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.stream import Recorder
from stepcheck.harness.record.verdict import HANGS, REFUSED, VALIDATION, Divergence, Invalid, LifeTally, Result, Tally
from stepcheck.harness.search import shrink, steer
from stepcheck.harness.search.asking import findings, refusal, reproduction, unexplained
from stepcheck.harness.search.consequences import Consequences
from stepcheck.harness.search.generate import decoder
from stepcheck.harness.search.limits import FIRST_LIFE, Hang, patience, time_limit
from stepcheck.harness.search.notes import (
    COSTLY,
    declare_unasked,
    facts,
    left_out,
    of_lives,
    of_signature,
    unsupported_options,
    without_meaning,
)
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.suspects import Suspect, Suspects
from stepcheck.harness.search.tell import tell
from stepcheck.harness.search.turns import Turns
from stepcheck.harness.support import settings as process_settings
from stepcheck.harness.support import threads
from stepcheck.harness.support.clocks import Clocks
from stepcheck.harness.support.fresh import Fresh
from stepcheck.harness.support.usage import UsageError
from stepcheck.harness.telling import repro
from stepcheck.reference.dialects import title

#: Traces drawn between two looks at the clock.
_BATCH = 100
#: Divergences of one subject that are shrunk and kept.
_MOST_DIVERGENCES = 12
#: Smaller lives that are tried for one divergence.
_ATTEMPTS = 400
#: Lives that hang, after which no more is played.
_MOST_HANGS = 2
#: Where the first divergence is told at once: lives after which torch's own optimizer is asked about options. To have it takes seconds.
_LIVES_FIRST = 8
#: Where the first divergence is told at once: smaller lives that are tried for it, and CPU seconds for them.
_ATTEMPTS_AT_ONCE, _SECONDS_AT_ONCE = 60, 1.0
#: The first lives of somebody's class, which are played twice.
_PLAYED_TWICE = 3
#: What asks torch's own optimizer about a class, and all checks that play second lives.
_OPTIONS = "option-effect"
_BY_SECOND_LIVES = (*TWINS, _OPTIONS)

Progress = Callable[[int, int], None]


class Campaign:
    """One subject's campaign.

    Args:
        subject: who plays.
        settings: how much, from which seed.
        progress: called with (traces done, traces planned) now and then.
        found: called with each divergence once it is shrunk.
        about_to_play: called with each trace before it is played.
        recorder: writes down what happens when it happens.
    """

    def __init__(
        self,
        subject: Subject,
        settings: Settings,
        progress: Progress = lambda done, planned: None,
        found: Callable[[Divergence], None] = lambda divergence: None,
        about_to_play: Callable[[Trace], None] = lambda trace: None,
        recorder: Recorder | None = None,
    ) -> None:
        self.subject = subject
        self.settings = settings
        self.progress = progress
        self.found = found
        self.about_to_play = about_to_play
        self.recorder = recorder or Recorder()
        wanted = settings.dtypes or subject.usual_dtypes or subject.dtypes
        self.dtypes = tuple(d for d in subject.dtypes if d in wanted)
        # A subject whose traces cost more is given fewer; its row in the report says how many.
        self.planned = None if settings.examples is None else max(settings.examples // subject.cost, 1)
        self.meaningless = {
            c: why for c in settings.checks if (why := CHECKS[c].without_meaning(subject)) and not self._insists_on(c)
        }
        self.result = Result(
            subject.name,
            title(subject.spec),
            {c: Tally(c, unsupported=len(subject.missing_options)) for c in settings.checks},
            meaningless=self.meaningless,
            expected=subject.expected,
        )
        self.clocks = Clocks()
        """The seconds of the life that is being played."""
        self.steering = steer.Steering()
        self.suspects = Suspects(subject, settings.checks, self.clocks)
        self.told: dict[tuple[str, str], Divergence] = {}
        """Those known that were told."""
        self.fresh = Fresh({}, wanted=False)
        self.leak: Divergence | None = None
        """The first that was told of state that leaks."""
        self.consequences = Consequences(subject, self._play, self._shown)
        self.free: set[str] = set()
        self.refusals: list[str] = []
        self.hangs = 0
        """Lives that were ended because the subject was still busy."""
        self.varied: set[str] = set()
        """Options that had another value than the default."""
        self.dialects = Dialects(subject, lambda: self.progress(self.result.traces, settings.examples or 0))
        self.turns = Turns(subject)
        self.lacks: set[str] = set()
        """Abilities that the subject turned out not to have."""
        self.enough = math.inf
        """The CPU time from which on no smaller life is tried."""
        self.validated: list[str] = []
        """What became of everything invalid, in words."""

    def _insists_on(self, check: str) -> bool:
        """Whether a check is asked that is usually left to the author of a class."""
        insists = check == VALIDATION and check in self.settings.only and self.subject.explicit
        return insists and self.subject.shape is None

    def run(self) -> Result:
        """Draw, play and judge until the examples or the seconds are used up, then shrink.

        Raises:
            UsageError: the subject turns out to be no optimizer.
        """
        why = self.subject.unsupported
        if not why and not self.dtypes:
            why = f"it takes {', '.join(self.subject.dtypes)}, not {self.settings.dtypes[0]}"
        self.result.facts = facts(self.subject, self.dtypes, self.planned, supported=not why)
        self.recorder.begun(self.result)
        if why:
            self._unsupported(why)
        else:
            self._run()
        self.recorder.ended(self.result)
        return self.result

    def _run(self) -> None:
        with process_settings.kept():
            for _ in self.subject.prepare():
                self.progress(0, self.settings.examples or 0)  # a sign of life
        start = time.perf_counter()
        self.deadline = math.inf if self.settings.seconds is None else start + self.settings.seconds
        try:
            if self.subject.explicit:
                threads.spreads()  # what it forks from here on knows
            # What has played nothing yet: before the first life.
            self.fresh = Fresh(self._tasks, wanted=self._looks_afresh, warm=not self.settings.at_once)
            # Which options the constructor refuses is tried in a clean process as well, so that this one has seen no optimizer yet.
            self.subject.refusals.update(self._in_fresh("refusals") or {})
            with process_settings.kept():
                self.decode = decoder(self.subject, self.dtypes)
                self._validate()
            self._search()
            whole = not self._ended(early=True)
            self.result.seconds = time.perf_counter() - start - self.result.shrink_seconds
            self._plan()
            declare_unasked(self.subject, self.result, self.lacks)
            for check in self.suspects.passing(self.result) if whole else ():
                self.result.tallies[check].passes_now = self.subject.expected[check]
            if self.subject.explicit:
                self._tell_dialect()
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of the harness: the verdict is unknown, never green
            self.result.error = f"{type(error).__name__}: {error}"
        finally:
            self.fresh.close()
        if self.subject.explicit:
            self.result.varied = sorted(self.varied & self.subject.options)
        self._note()

    def _search(self) -> None:
        """Play batches of lives, and make small what they show, until there are enough."""
        for batch in itertools.count():
            size = _BATCH if self.planned is None else min(_BATCH, self.planned - self.result.traces)
            if self._ended() or size <= 0:
                break
            self._batch(batch, size)
            if not self.settings.first:
                self._shrink_new()

    def _plan(self) -> None:
        """A campaign that was ended early has planned all that it was asked for."""
        planned = self.planned
        for name, tally in self.result.tallies.items() if planned is not None else ():
            tally.planned = tally.planned if name == VALIDATION or planned is None else planned
            if name in self.meaningless:
                tally.unsupported = tally.planned

    @property
    def _looks_afresh(self) -> bool:
        """Whether lives and scripts are tried in a clean process: what compiles has threads that no fork has."""
        return not self.settings.first and self.subject.device == "cpu" and self.subject.cost <= COSTLY

    @property
    def _tasks(self) -> dict[str, Callable[..., Any]]:
        return {
            # What the lives before have shown of options is the question's, not the clean process's, which has seen none.
            "shown": lambda trace, check, times, effective: [
                self._shown(trace, check, effective) for _ in range(times)
            ][-1],
            "twice": lambda trace: determinism.twice(self.subject, trace),
            "digest": lambda trace: determinism.digest(self.subject, trace),
            "script": repro.run,
            "refusals": lambda: (decoder(self.subject, self.dtypes), self.subject.refusals)[1],
        }

    def _in_fresh(self, task: str, *arguments: Any) -> Any:
        """The answer of a clean process; ``None`` where there is none."""
        self.progress(self.result.traces, self.settings.examples or 0)
        return self.fresh.ask(task, *arguments, seconds=self.patience)

    @property
    def patience(self) -> float:
        """Seconds that a life may take; the first is given more."""
        return patience(self.subject, self.settings) * (1 if self.result.traces else FIRST_LIFE)

    def _ended(self, *, early: bool = False) -> bool:
        """Whether no more is played; ``early``: before everything was that was to be."""
        stopped = self.settings.stops and self.suspects.pressing
        return self.hangs >= _MOST_HANGS or stopped or (not early and time.perf_counter() > self.deadline)

    def _validate(self) -> None:
        """Try everything invalid; what is accepted that should be refused is a life of its own."""
        if VALIDATION not in self.result.tallies or self.subject.cost > COSTLY:
            return
        if VALIDATION in self.meaningless and (self.settings.stops or self.subject.shape is not None):
            return  # it would be told, not judged
        try:
            with time_limit(self.patience):
                matrix = validation.matrix(self.subject)
        except Hang:
            told = f"to try what is invalid takes the subject longer than {self.patience:.0f} s"
            raise TimeoutError(f"{told}: a constructor that does not end") from None
        reported = self.subject.explicit or self.subject.mode == "forloop"
        if self.subject.explicit:
            self.validated = [f"validation: {line}" for line in validation.told(matrix)]
        judged = {cell: outcome for cell, outcome in matrix.items() if cell.judged}
        invalid = Invalid(len(judged), rows=validation.table(matrix) if reported else [])
        try:
            tried = judged.items() if VALIDATION not in self.meaningless else ()
            for number, (cell, outcome) in enumerate(tried):
                invalid.ran += not outcome.control_failed
                if not outcome.declared or outcome.changed:
                    evidence = Evidence(self.subject, validation.life(self.subject, cell), known=ledger.explanation)
                    one = LifeTally(-number)  # no life of the campaign
                    self.suspects.sort(VALIDATION, evidence, one)
                    invalid.known += one.known
                    for check, ratio in one.worst_ratio.items():
                        invalid.saw(check, ratio)
        finally:
            self.result.add_invalid(invalid)
            self.recorder.invalid(invalid)

    def _unsupported(self, why: str) -> None:
        """What the subject itself declares that it cannot do here is neither right nor wrong."""
        for tally in self.result.tallies.values():
            tally.planned = tally.unsupported = self.settings.examples or 1
        self.result.notes.append(f"unsupported: {why}")

    def _draw(self, batch: int, size: int) -> Iterator[list[Trace]]:
        """Candidates for ``size`` lives, of which the seed alone decides."""
        from stepcheck.harness.search.drawing import pages  # it takes Hypothesis with it

        text, each = f"{self.settings.seed}/{self.subject.name}/{','.join(self.dtypes)}/{batch}", steer.CANDIDATES
        wanted = pages(text, size * each)
        self.turns = Turns(self.subject) if batch == 0 else self.turns
        for n in range(size):
            yield self.turns.candidates(self.decode, wanted[n * each : (n + 1) * each], self.patience)

    def _batch(self, batch: int, size: int) -> None:
        drawn = self._draw(batch, size)
        while not self._ended():
            start = time.perf_counter()
            # To see which options it takes, it is constructed, and may change what it must not.
            with self.clocks.running("draw"), process_settings.kept():
                candidates = next(drawn, None)
                if candidates is None:
                    break
                chosen = self.steering.choose(candidates)
            life = LifeTally(self.result.traces + 1)
            try:
                self._ask(chosen, life)
            finally:
                # To the microsecond, or most of what is recorded of a life would be digits of no meaning.
                life.clocks = {name: round(seconds, 6) for name, seconds in self.clocks.items()}
                life.seconds = round(time.perf_counter() - start, 6)
                self.clocks.clear()
                self.result.add_life(life)
                self.recorder.life(life)
            self.progress(self.result.traces, self.settings.examples or 0)

    def _ask(self, trace: Trace, life: LifeTally) -> None:
        result = self.result
        life.features = features(trace)
        limit = self.patience
        self.about_to_play(trace)
        try:
            with time_limit(limit):
                asked = self.settings.checks
                evidence = Evidence(
                    self.subject, trace, asked, ledger.explanation, self.suspects.settled(), self.clocks,
                    answered=self.suspects.answered, effective=self.suspects.effective,
                )  # fmt: skip
        except Hang:
            self.hangs += 1
            summary = f"the subject is still busy after {limit:.0f} s with a life of {len(trace.events)} events"
            name = "completes" if "completes" in result.tallies else next(iter(result.tallies))
            life.end, life.looked = HANGS, {name: 1}
            self.suspects.note(Finding(name, HANGS, None, summary), trace, life.number)
            return
        self.lacks |= evidence.recording.lacks
        refused = refusal(evidence)
        if refused is not None:
            self.refusals.append(refused)
            life.end = REFUSED
            return
        self.varied.update(name for options in trace.given_options for name in options)
        self._look_at_all(evidence, life)
        self.lacks |= evidence.recording.lacks
        deviates = any(life.number in s.lives for (check, _), s in self.suspects.new.items() if check == "agreement")
        if deviates or not evidence.judgement.deviations:
            self.dialects.keep(evidence.recording, evidence.judgement, deviates=deviates)
        if "agreement" in result.tallies:
            self._count(evidence, life)
        if self.settings.at_once and self.suspects.pressing:
            return
        if life.number <= _PLAYED_TWICE and self.subject.explicit and "completes" in result.tallies:
            self._play_twice(trace, life)

    def _look_at_all(self, evidence: Evidence, life: LifeTally) -> None:
        """Ask every check; where one divergence is enough, those first that play no second life."""
        names = list(self.result.tallies)
        if self.settings.at_once:
            soon = [name for name in names if name not in _BY_SECOND_LIVES]
            self._look(evidence, life, soon)
            if self.suspects.pressing:
                return
            names = [name for name in names if name in _BY_SECOND_LIVES]
        self.suspects.twinned.update(check for check in TWINS if evidence.needs_twins and evidence.twin(check)[0])
        if self.settings.at_once and evidence.needs_twins and life.number <= _LIVES_FIRST:
            names = [name for name in names if name != _OPTIONS]
        else:
            self.suspects.note_effects(evidence)
        self._look(evidence, life, names)

    def _look(self, evidence: Evidence, life: LifeTally, checks: Iterable[str]) -> None:
        """Ask some checks, and sort what they find."""
        for name in checks:
            if name in self.meaningless or name == VALIDATION:
                continue
            looked = CHECKS[name].looks_at(evidence)
            if looked:
                life.looked[name] = looked
                self.suspects.sort(name, evidence, life)

    def _play_twice(self, trace: Trace, life: LifeTally) -> None:
        """Look whether a life comes out the same when it is played again."""
        if (place := self._in_fresh("twice", trace)) is None:
            return
        digests = [self._in_fresh("digest", trace) for _ in range(2)]
        finding = determinism.finding(place, leaks=digests[0] == digests[1])
        self.suspects.note(finding, trace, life.number)

    def _count(self, evidence: Evidence, life: LifeTally) -> None:
        judgement = evidence.judgement
        self.free |= judgement.free
        life.calls, life.steps = judgement.steps, steps_judged(evidence)
        life.elements, life.undetermined = judgement.elements, judgement.undetermined
        life.fields, life.worst, life.ratios = judgement.fields, judgement.worst, judgement.classes()
        # What deviates is counted where it is sorted: what is known is no use of the budget.
        life.saw("agreement", *judgement.worst.values())

    def _shrink_new(self) -> None:
        """At the end of each batch, so that whoever interrupts a long campaign keeps what it found."""
        start = time.perf_counter()
        self.suspects.sort_effective()
        at_once = self.settings.at_once
        for key in self.suspects.due(1 if at_once else _MOST_DIVERGENCES, at_once=at_once):
            self.suspects.shrunk.add(key)
            self._shrink(key)
        for key, seen in self.suspects.known.items():
            if key not in self.told or self.told[key].owner != seen.owner:
                self._tell_known(key)
        self.result.shrink_seconds += time.perf_counter() - start

    def _shrink(self, key: tuple[str, str]) -> None:
        suspect = self.suspects.new[key]
        trace, finding = suspect.trace, suspect.finding
        attempts = max((_ATTEMPTS_AT_ONCE if self.settings.at_once else _ATTEMPTS) // self.subject.cost, 4)
        attempts = shrink.affordable(trace, attempts)
        self.enough = time.process_time() + _SECONDS_AT_ONCE if self.settings.at_once else math.inf
        if finding.cause in (determinism.LEAKS, determinism.CHANCE):
            trace, finding = shrink.cut(trace, finding, lambda t: self._twice(t, finding.cause), attempts // 4)
        elif finding.cause != HANGS:  # each look at a smaller one would cost the whole time limit
            trace, finding = shrink.cut(trace, finding, lambda t: self.recheck(t, key), attempts)
        alone = self._shows_alone(trace, finding)
        if not alone and self.leak is not None:
            self._join_leak(key)
            return
        twice = finding.cause in (determinism.LEAKS, determinism.CHANCE)
        if not alone:
            twice = finding.kind in (self._shown_afresh(trace, finding.check, 2) or ())
            summary = f"{determinism.LEAKS} of this class: in a process of its own, this life shows nothing; here, {finding.summary}"
            finding = replace(finding, summary=summary)
        divergence = tell(self.subject, trace, finding, suspect.count, twice=twice)
        if finding.cause != HANGS:
            doubt = self._in_fresh("script", divergence.script)
            divergence.life += [doubt] if doubt else []
        if not alone or finding.cause == determinism.LEAKS:
            self.leak = divergence
        if not self._fold(divergence):
            self.result.tallies[key[0]].add(divergence)
            self._tell(divergence)

    def _shows_alone(self, trace: Trace, finding: Finding) -> bool:
        """Whether a life shows a finding where nothing was played before; if that cannot be asked, it does."""
        if finding.cause in (HANGS, determinism.LEAKS, determinism.CHANCE):
            return True
        shown = self._shown_afresh(trace, finding.check, 1)
        return shown is None or finding.kind in shown

    def _shown_afresh(self, trace: Trace, check: str, times: int) -> set[str] | None:
        """What a check finds in a life that a clean process plays so many times, the last time."""
        shown: set[str] | None = self._in_fresh("shown", trace, check, times, self.suspects.effective)
        return shown

    def _twice(self, trace: Trace, cause: str) -> Finding | None:
        place = self._in_fresh("twice", trace)
        return None if place is None else determinism.finding(place, leaks=cause == determinism.LEAKS)

    def _join_leak(self, key: tuple[str, str]) -> None:
        """What shows only after other lives has been told already, of the class that keeps something from them."""
        assert self.leak is not None
        self.leak.life.append(f"also: {key[0]}: {key[1]}")
        self.suspects.new[self.leak.check, self.leak.cause].lives |= self.suspects.new[key].lives
        self.recorder.divergence(self.leak)

    def _fold(self, new: Divergence) -> bool:
        """Whether a divergence has the cause of one that was told before: then it is no further one."""
        told = self.result.unexplained
        root = next((old for old in told if self.consequences.follows(new, old)), None)
        if root is not None:
            self._join(new, root)
            self.recorder.divergence(root)
            return True
        effects = [old for old in told if self.consequences.follows(old, new)] or self._shown_as_well(new)
        if not effects:
            return False
        if new.check == "agreement" and shrink.size(new.trace) >= shrink.size(effects[0].trace):
            self._join(new, effects[0])
            self.recorder.divergence(effects[0])
            return True
        for old in effects:
            self._join(old, new)
            self.result.tallies[old.check].remove(old)
        self.result.tallies[new.check].add(new)
        self._tell(new, replaces=" ".join(old.id for old in effects))
        return True

    def _shown_as_well(self, new: Divergence) -> list[Divergence]:
        """Of deviations in one life, all have one cause: a buffer that is wrong makes the parameter wrong."""
        told = self.result.tallies[new.check].unexplained
        if new.check != "agreement" or not told:
            return []
        shown = self._shown(new.trace, new.check) - {new.cause}
        return [old for old in told if old.cause in shown][:1]

    def _join(self, effect: Divergence, root: Divergence) -> None:
        """Tell in the life of one divergence that it shows in another way too."""
        root.life.append(f"also: {effect.cause if effect.check == root.check else f'{effect.check}: {effect.cause}'}")
        seen, also = self.suspects.new[root.check, root.cause], self.suspects.new[effect.check, effect.cause]
        seen.lives |= also.lives

    def _shown(self, trace: Trace, check: str, effective: Collection[str] | None = None) -> set[str]:
        """The kinds of what a check finds in a life that the ledger does not explain."""
        known = self.suspects.effective if effective is None else effective
        return {f.kind for f in unexplained(self.subject, trace, check, self.settings.checks, known)}

    def _play(self, subject: Subject, trace: Trace) -> Evidence | None:
        """The evidence of a life; ``None`` where it makes no sense or hangs."""
        if trace.problem(subject.spec) is not None:
            return None
        self.about_to_play(trace)
        try:
            with time_limit(patience(subject, self.settings)):
                return Evidence(
                    subject, trace, self.settings.checks, ledger.explanation, effective=self.suspects.effective
                )
        except Hang:
            return None

    def _tell(self, divergence: Divergence, replaces: str = "") -> None:
        self.found(divergence)
        self.recorder.divergence(divergence, replaces)

    def _tell_dialect(self) -> None:
        """Tell with the first deviation whether another convention accounts for all of them."""
        tally = self.result.tallies.get("agreement")
        if tally is not None and tally.unexplained:
            told = self.dialects.told(thoroughly=not self.settings.stops)
            tally.unexplained[0].life += told
            if told:
                self._tell(tally.unexplained[0])

    def _tell_known(self, key: tuple[str, str]) -> None:
        """What the ledger explains is told by the ledger's own life if it shows it here as well, else by the one seen."""
        check, name = key
        seen = self.suspects.known[key]
        entry = ledger.LEDGER[name]
        trace, finding = seen.trace, seen.finding
        if not self.settings.at_once:
            trace, finding = reproduction(self.subject, entry, check) or self._smallest_known(seen, entry)
        divergence = replace(tell(self.subject, trace, finding, seen.count), entry=name, owner=seen.owner)
        before = self.told.get(key)
        tally = self.result.tallies[check]
        tally.known = [d for d in tally.known if d is not before]
        tally.add(divergence)
        self.told[key] = divergence
        self._tell(divergence, replaces="" if before is None else before.id)

    def _smallest_known(self, seen: Suspect, entry: Entry) -> tuple[Trace, Finding]:
        """The life in which something known was seen, made smaller."""

        def recheck(trace: Trace) -> Finding | None:
            self.about_to_play(trace)
            self.progress(self.result.traces, self.settings.examples or 0)
            shown = findings(self.subject, trace, seen.finding.check, self.settings.checks)
            return next((f for f, known in shown if known is entry), None)

        return shrink.cut(seen.trace, seen.finding, recheck, max(_ATTEMPTS // 12 // self.subject.cost, 4))

    def recheck(self, trace: Trace, key: tuple[str, str]) -> Finding | None:
        """The finding of this check and cause in a trace, if it is there and the ledger does not explain it."""
        if time.process_time() > self.enough or self.hangs > _MOST_HANGS:
            return None
        self.about_to_play(trace)
        self.progress(self.result.traces, self.settings.examples or 0)
        check, cause = key
        limit = patience(self.subject, self.settings)
        for finding in unexplained(self.subject, trace, check, self.settings.checks, self.suspects.effective, limit):
            if finding.kind == cause:
                return None if self._shows_in_row_major(trace, key) else finding
            self.hangs += finding.cause == HANGS
        return None

    def _shows_in_row_major(self, trace: Trace, key: tuple[str, str]) -> bool:
        """Whether what is told of strides is no fault of strides in this life, which is smaller than that in which it was one."""
        if key[0] != "agreement" or not key[1].startswith(STRIDED):
            return False
        plain = self._play(self.subject, trace.row_major())
        return plain is not None and bool(plain.judgement.deviations)

    def _note(self) -> None:
        self.suspects.number(self.result)
        subject, notes = self.subject, self.result.notes
        notes += unsupported_options(subject)
        if subject.spec.products:
            told = [f"{name}: {n - u:,} of {n:,}" for name, (n, u) in self.result.fields.items() if "products" in name]
            notes.append(f"where rounding in the matrix products leaves them determined: {'; '.join(told)}")
        notes += without_meaning(self.meaningless)
        notes += of_signature(subject)
        notes += of_lives(subject, self.result, self.refusals, self.free)
        notes += self.validated
        if not self.settings.first:
            notes += [*self.turns.told(), *left_out(self.lacks)]
        if len(self.suspects.ready) > len(self.suspects.shrunk):
            notes.append(
                f"{len(self.suspects.ready) - len(self.suspects.shrunk)} more kinds of divergence were seen and not shrunk"
            )
