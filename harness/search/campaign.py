"""Many traces on one subject: draw, play, ask every check, keep count, and shrink what fails."""

from __future__ import annotations

import hashlib
import math
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from types import FrameType
from typing import Any, TypeVar

import hypothesis
from hypothesis import HealthCheck, Phase, configuration
from hypothesis.internal.conjecture import providers

from stepcheck.harness.checking import determinism
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.check import steps_judged
from stepcheck.harness.checking.checks import CHECKS, EXPLAINED_BY
from stepcheck.harness.checking.findings import AFTER, DEVIATES, NO_EFFECT, STRIDED, TWIN, Finding, place_of
from stepcheck.harness.checking.twins import ADDED, FIRST, OTHER, TWINS
from stepcheck.harness.judging.dialects import Dialects
from stepcheck.harness.known import ledger
from stepcheck.harness.known.ledger import Entry
from stepcheck.harness.life.events import AddGroup
from stepcheck.harness.life.features import features
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play import validation
from stepcheck.harness.play.profiles import Profile
from stepcheck.harness.play.signature import REFUSALS
from stepcheck.harness.play.subjects import Subject, UsageError
from stepcheck.harness.record.stream import Recorder
from stepcheck.harness.record.verdict import HANGS, REFUSED, VALIDATION, Divergence, Invalid, Life, Result, Tally
from stepcheck.harness.search import shrink, steer
from stepcheck.harness.search.consequences import ROOTS, Consequences
from stepcheck.harness.search.generate import ESSENTIALS, PAGE, PAGES, decoder
from stepcheck.harness.support import defaults
from stepcheck.harness.support import settings as process_settings
from stepcheck.harness.support.clocks import Clocks
from stepcheck.harness.support.fresh import Fresh
from stepcheck.harness.support.processes import queued
from stepcheck.harness.telling import explain, repro

_T = TypeVar("_T")
DEFAULT_EXAMPLES = defaults.EXAMPLES
#: Traces drawn between two looks at the clock.
_BATCH = 100
#: Divergences of one subject that are shrunk and kept.
_MOST_DIVERGENCES = 12
#: Smaller lives that are tried for one divergence.
_ATTEMPTS = 400
TRACE_SECONDS = defaults.PATIENCE
#: How much longer the first life of a subject may take: a class that compiles in its first step is no hang.
_FIRST_LIFE = 5
#: Lives that hang, after which no more is played.
_MOST_HANGS = 2
#: Where the first divergence is told at once: lives after which torch's own optimizer is asked about options. To have it takes seconds.
_LIVES_FIRST = 8
#: How often the clock rings in that time.
_RINGS = 20
#: Where the first divergence is told at once: smaller lives that are tried for it, and CPU seconds for them.
_ATTEMPTS_AT_ONCE, _SECONDS_AT_ONCE = 60, 1.0
#: Lives with one deviation in which an invariant is looked for that explains it.
_TRIED = 4
#: Lives of a class that deviates from the reference in which it is asked by second lives, for each check.
_TWINNED = 20
#: Before an option is said to have no effect: lives in which it should, and elements that it should change there.
_IDLE_LIVES, _IDLE_ELEMENTS = 6, 100
#: What is said of a check of which a subject lacks what it needs, where that is nothing that it would take.
_LACKS = {
    "malformed-state": "it keeps no tensor of a parameter's shape that could be spoilt, or cannot be built anew from its state"
}
_REFUSALS = {error.__name__ for error in REFUSALS}
#: Of these, what says by itself that something is not supported.
_DECLARED = {"ValueError", "NotImplementedError"}
#: Subjects that cost more than this are given few lives, of the plainest kinds.
_COSTLY = 9
#: The first lives of somebody's class, which are played twice.
_PLAYED_TWICE = 3
#: What asks torch's own optimizer about a class, and all checks that play second lives.
_OPTIONS = "option-effect"
_BY_SECOND_LIVES = (*TWINS, _OPTIONS)

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What a campaign does.

    Attributes:
        examples: traces for each subject; ``None`` for as many as ``seconds`` allow.
        seconds: time for each subject; ``None`` for no limit.
        only: names of the checks to ask; empty for all.
        first: stop after the first life with a divergence, and leave it as it was seen.
        at_once: stop at the first divergence, and tell it: made smaller where that is soon done.
        patience: seconds after which a subject hangs that is still busy with a life; what costs more is given more.
    """

    seed: int = 0
    examples: int | None = DEFAULT_EXAMPLES
    seconds: float | None = None
    dtypes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    first: bool = False
    at_once: bool = False
    patience: float | None = None

    @property
    def stops(self) -> bool:
        """Whether one divergence is enough."""
        return self.first or self.at_once

    @property
    def checks(self) -> tuple[str, ...]:
        return self.only or tuple(CHECKS)


class _Hang(BaseException):
    """Not an Exception, so that no ``except Exception`` in somebody's step swallows it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt Python code that runs longer. Code that never returns to the interpreter is beyond it.

    Who is stopped meanwhile, or whose machine sleeps, is rung once for that, however long it takes: a pause is no hang. Nor is a wait for a
    processor that others have.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    each = seconds / _RINGS
    passed, waited = 0.0, queued()

    def ring(_signal: int, _frame: FrameType | None) -> None:
        nonlocal passed, waited
        now = queued()
        passed, waited = passed + max(each - (now - waited), 0.0), now
        if passed > seconds - each / 2:
            signal.setitimer(signal.ITIMER_REAL, seconds)  # once more, should it be swallowed
            raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    start = time.monotonic()
    theirs = signal.setitimer(signal.ITIMER_REAL, each, each)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL if before is None else before)
        _give_back(*theirs, time.monotonic() - start)


def _give_back(left: float, interval: float, passed: float) -> None:
    """Set the timer again that somebody had set, as a test suite's is; one that should have rung meanwhile rings now."""
    if left > 0:
        signal.setitimer(signal.ITIMER_REAL, max(left - passed, 1e-6), interval)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """Hypothesis writes what it knows of somebody's modules to a folder where they stand: here to one that goes away."""
    before = configuration.storage_directory(intent_to_write=False).home_directory
    with tempfile.TemporaryDirectory(prefix="stepcheck-") as home, _nothing_read():
        configuration.set_hypothesis_home_dir(home)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(before)


@contextmanager
def _nothing_read() -> Iterator[None]:
    """Hypothesis reads constants in all of somebody's modules, to draw them: that takes a second, and is no key of a page.

    One of just as many bytes would be drawn, and the same seed give other lives where it stands somewhere.
    """
    read: Any = getattr(providers, "_get_local_constants", None)
    if read is None:  # in a version that has it elsewhere, it is read
        yield
        return
    none = type(providers._local_constants)()  # noqa: SLF001
    providers._get_local_constants = lambda: none  # noqa: SLF001
    try:
        yield
    finally:
        providers._get_local_constants = read  # noqa: SLF001


@dataclass
class _Idle:
    """In how many lives, and elements that it should change, an option changed nothing; and whether it ever did change anything."""

    lives: int = 0
    elements: int = 0
    effective: bool = False

    @property
    def shown(self) -> bool:
        """Whether that is enough to say that it has no effect."""
        return not self.effective and self.lives >= _IDLE_LIVES and self.elements >= _IDLE_ELEMENTS


@dataclass
class _Suspect:
    finding: Finding
    trace: Trace
    owner: str = ""
    lives: set[int] = field(default_factory=set)
    """The numbers of the lives that showed it: one life may show it twice, as it was and in row-major memory."""

    @property
    def count(self) -> int:
        return len(self.lives)


def _note(
    kept: dict[tuple[str, str], _Suspect],
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
        kept[key] = _Suspect(finding, trace, owner, lives)
    lives.add(number)


def _rank(key: tuple[str, str]) -> tuple[bool, int]:
    """The order in which new divergences are told: those first that others may follow from."""
    # Of those that no other may follow from, the order is that of CHECKS, which somebody may have added to.
    order = [*ROOTS, *(name for name in CHECKS if name not in ROOTS)]
    return key[1] not in (determinism.LEAKS, determinism.CHANCE), order.index(key[0])


def _declared(profile: Profile) -> dict[str, Any]:
    """The facts of a profile that are not the default, as JSON has them, and their reason."""
    given = {f.name: getattr(profile, f.name) for f in fields(profile) if getattr(profile, f.name) != f.default}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in given.items()}


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
        missing = len(subject.missing_options)
        self.meaningless = {
            c: why for c in settings.checks if (why := CHECKS[c].without_meaning(subject)) and not self._insists_on(c)
        }
        self.result = Result(
            subject.name,
            subject.spec.name,
            {c: Tally(c, unsupported=missing) for c in settings.checks},
            meaningless=self.meaningless,
        )
        self.clocks = Clocks()
        """The seconds of the life that is being played."""
        self.steering = steer.Steering()
        self.suspects: dict[tuple[str, str], _Suspect] = {}
        self.explained: dict[tuple[str, str], _Suspect] = {}
        """What the ledger explains, by check and name of the entry."""
        self.shrunk: set[tuple[str, str]] = set()
        self.idle: dict[str, _Idle] = {}
        """Options that changed nothing where they should have, by cause; until a life is seen in which they do."""
        self.told: dict[tuple[str, str], Divergence] = {}
        """Those of ``explained`` that were told."""
        self.fresh = Fresh({}, wanted=False)
        self.leak: Divergence | None = None
        """The first that was told of state that leaks."""
        self.consequences = Consequences(subject, self._play, self._shown)
        self.free: set[str] = set()
        self.refusals: list[str] = []
        self.hangs = 0
        """Lives that were ended because the subject was still busy."""
        self.twinned: Counter[str] = Counter()
        """Lives in which the class was asked by second lives, for each check."""
        self.varied: set[str] = set()
        """Options that had another value than the default."""
        self.dialects = Dialects(subject, lambda: self.progress(self.result.traces, settings.examples or 0))
        self.lacks: set[str] = set()
        """Abilities that the subject turned out not to have."""
        self.enough = math.inf
        """The CPU time from which on no smaller life is tried."""
        self.validated: list[str] = []
        """What became of everything invalid, in words."""

    def _insists_on(self, check: str) -> bool:
        """Whether a check is asked that is usually left to the author of a class."""
        return check == VALIDATION and check in self.settings.only and self.subject.explicit

    def run(self) -> Result:
        """Draw, play and judge until the examples or the seconds are used up, then shrink.

        Raises:
            UsageError: the subject turns out to be no optimizer.
        """
        why = self.subject.unsupported
        if not why and not self.dtypes:
            why = f"it takes {', '.join(self.subject.dtypes)}, not {self.settings.dtypes[0]}"
        self.result.facts = self._facts(supported=not why)
        self.recorder.begun(self.result)
        if why:
            self._unsupported(why)
        else:
            self._run()
        self.recorder.ended(self.result)
        return self.result

    def _facts(self, *, supported: bool) -> dict[str, Any]:
        subject = self.subject
        facts = {"mode": subject.mode, "device": subject.device, "dtypes": list(self.dtypes), "examples": self.planned}
        profile = {"profile": _declared(subject.profile)} if supported else {}
        return facts | {"missing_options": list(subject.missing_options)} | profile

    def _run(self) -> None:
        with process_settings.kept():
            for _ in self.subject.prepare():
                self.progress(0, self.settings.examples or 0)  # a sign of life
        start = time.perf_counter()
        self.deadline = math.inf if self.settings.seconds is None else start + self.settings.seconds
        planned = self.planned
        batch = 0
        try:
            # What has played nothing yet: before the first life.
            self.fresh = Fresh(self._tasks, wanted=self._looks_afresh, warm=not self.settings.at_once)
            # Which options the constructor refuses is tried in a clean process as well, so that this one has seen no optimizer yet.
            self.subject.refusals.update(self._in_fresh("refusals") or {})
            with process_settings.kept():
                self.decode = decoder(self.subject, self.dtypes)
                self._validate()
            while not self._ended():
                size = _BATCH if planned is None else min(_BATCH, planned - self.result.traces)
                if size <= 0:
                    break
                self._batch(batch, size)
                batch += 1
                if not self.settings.first:
                    self._shrink_new()
            self.result.seconds = time.perf_counter() - start - self.result.shrink_seconds
            if planned is not None:
                for name, tally in self.result.tallies.items():
                    tally.planned = tally.planned if name == VALIDATION else planned
                    if name in self.meaningless:
                        tally.unsupported = tally.planned
            self._declare_unasked()
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

    @property
    def _looks_afresh(self) -> bool:
        """Whether lives and scripts are tried in a clean process: what compiles has threads that no fork has."""
        return not self.settings.first and self.subject.device == "cpu" and self.subject.cost <= _COSTLY

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
        return patience(self.subject, self.settings) * (1 if self.result.traces else _FIRST_LIFE)

    def _ended(self) -> bool:
        return (
            self.hangs >= _MOST_HANGS
            or time.perf_counter() > self.deadline
            or (self.settings.stops and bool(self.ready))
        )

    def _validate(self) -> None:
        """Try everything invalid; what is accepted that should be refused is a life of its own."""
        if VALIDATION not in self.result.tallies or self.subject.cost > _COSTLY:
            return
        if self.settings.stops and VALIDATION in self.meaningless:
            return  # it would be told, not judged
        try:
            with _time_limit(self.patience):
                matrix = validation.matrix(self.subject)
        except _Hang:
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
                    one = Life(-number)  # no life of the campaign
                    self._sort(VALIDATION, evidence, one)
                    invalid.known += one.known
                    for check, ratio in one.worst_ratio.items():
                        invalid.saw(check, ratio)
        finally:
            self.result.add_invalid(invalid)
            self.recorder.invalid(invalid)

    def _declare_unasked(self) -> None:
        """What was not asked because the subject has no such thing, or because its lives are few for their cost, is said."""
        for tally in self.result.tallies.values():
            needs = CHECKS[tally.check].needs
            if tally.verdict == "unknown" and needs and needs <= self.lacks:
                tally.unsupported = tally.planned
                told = _LACKS.get(tally.check) or f"it takes no {' and no '.join(sorted(needs))}"
                self.result.notes.append(f"unsupported: {tally.check}: {told}")
        unasked = [t for t in self.result.tallies.values() if t.verdict == "unknown"]
        if self.subject.cost > _COSTLY and unasked:
            for tally in unasked:
                tally.unsupported = tally.planned
            names = ", ".join(t.check for t in unasked)
            self.result.notes.append(
                f"unsupported: not asked in the {self.result.traces} lives that its cost allows: {names}"
            )

    def _unsupported(self, why: str) -> None:
        """What the subject itself declares that it cannot do here is neither right nor wrong."""
        for tally in self.result.tallies.values():
            tally.planned = tally.unsupported = self.settings.examples or 1
        self.result.notes.append(f"unsupported: {why}")

    def _draw(self, batch: int, size: int) -> Iterator[list[Trace]]:
        """Candidates for ``size`` lives, from pages that Hypothesis draws, set up so that the seed alone decides.

        It draws; shrinking works on the traces themselves.
        """
        drawn: dict[bytes, None] = {}  # each once, in order
        each = steer.CANDIDATES
        text = f"{self.settings.seed}/{self.subject.name}/{','.join(self.dtypes)}/{batch}"

        @hypothesis.settings(
            max_examples=size * each // PAGE + 3,  # the first page is one life, the simplest
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))
        @hypothesis.given(PAGES)
        def collect(page: list[bytes]) -> None:
            drawn.update(dict.fromkeys(page))

        with _nothing_kept():
            collect()
        wanted = list(drawn)[: size * each]
        # Among the first lives of a campaign, each kind of event that some check waits for.
        essentials = [*(ESSENTIALS if batch == 0 else ()), *[""] * size]
        for n, essential in zip(range(size), essentials, strict=False):
            yield [self.decode(data, essential) for data in wanted[n * each : (n + 1) * each]]

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
            life = Life(self.result.traces + 1)
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

    def _ask(self, trace: Trace, life: Life) -> None:
        result = self.result
        life.features = features(trace)
        limit = self.patience
        self.about_to_play(trace)
        try:
            with _time_limit(limit):
                asked = self.settings.checks
                evidence = Evidence(
                    self.subject, trace, asked, ledger.explanation, self._settled(), self.clocks,
                    answered=self.answered, effective=self.effective,
                )  # fmt: skip
        except _Hang:
            self.hangs += 1
            summary = f"the subject is still busy after {limit:.0f} s with a life of {len(trace.events)} events"
            name = "completes" if "completes" in result.tallies else next(iter(result.tallies))
            life.end, life.looked = HANGS, {name: 1}
            _note(self.suspects, (name, HANGS), Finding(name, HANGS, None, summary), trace, life.number)
            return
        self.lacks |= evidence.recording.lacks
        if self._refused(evidence):
            life.end = REFUSED
            return
        self.varied.update(name for options in trace.given_options for name in options)
        self._look_at_all(evidence, life)
        deviates = any(life.number in s.lives for (check, _), s in self.suspects.items() if check == "agreement")
        if deviates or not evidence.judgement.deviations:
            self.dialects.keep(evidence.recording, evidence.judgement, deviates=deviates)
        if "agreement" in result.tallies:
            self._count(evidence, life)
        if self.settings.at_once and self.ready:
            return
        if life.number <= _PLAYED_TWICE and self.subject.explicit and "completes" in result.tallies:
            self._play_twice(trace, life)

    def _look_at_all(self, evidence: Evidence, life: Life) -> None:
        """Ask every check; where one divergence is enough, those first that play no second life."""
        names = list(self.result.tallies)
        if self.settings.at_once:
            soon = [name for name in names if name not in _BY_SECOND_LIVES]
            self._look(evidence, life, soon)
            if self.ready:
                return
            names = [name for name in names if name in _BY_SECOND_LIVES]
        self.twinned.update(check for check in TWINS if evidence.needs_twins and evidence.twin(check)[0])
        if self.settings.at_once and evidence.needs_twins and life.number <= _LIVES_FIRST:
            names = [name for name in names if name != _OPTIONS]
        else:
            self._note_effects(evidence)
        self._look(evidence, life, names)

    def _look(self, evidence: Evidence, life: Life, checks: Iterable[str]) -> None:
        """Ask some checks, and sort what they find."""
        for name in checks:
            if name in self.meaningless or name == VALIDATION:
                continue
            looked = CHECKS[name].looks_at(evidence)
            if looked:
                life.looked[name] = looked
                self._sort(name, evidence, life)

    def _play_twice(self, trace: Trace, life: Life) -> None:
        """Look whether a life comes out the same when it is played again."""
        place = self._in_fresh("twice", trace)
        if place is None:
            return
        digests = [self._in_fresh("digest", trace) for _ in range(2)]
        finding = determinism.finding(place, leaks=digests[0] == digests[1])
        _note(self.suspects, (finding.check, finding.kind), finding, trace, life.number)

    def _note_effects(self, evidence: Evidence) -> None:
        for effect in evidence.effects if "option-effect" in self.result.tallies else ():
            idle = self.idle.setdefault(effect.cause, _Idle())
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

    def _sort_effective(self) -> None:
        """What was taken for an option without effect, that has one as later lives show, is a deviation."""
        for key in [k for k in self.suspects if k[0] == "option-effect" and k not in self.shrunk]:
            suspect = self.suspects[key]
            d = suspect.finding.deviation
            if d is None or place_of(suspect.trace, suspect.trace.group_of[d.parameter], key[1]) not in self.effective:
                continue
            del self.suspects[key]
            evidence = Evidence(self.subject, suspect.trace, self.settings.checks, effective=self.effective)
            if "agreement" in self.result.tallies:
                self._sort("agreement", evidence, Life(0))

    @property
    def ready(self) -> list[tuple[str, str]]:
        """The suspects, but for options of which it is too early to say that they change nothing."""
        return [
            (check, cause)
            for check, cause in self.suspects
            if (not cause.endswith(NO_EFFECT) or self._is_idle(cause)) and not self._is_told_otherwise(check, cause)
        ]

    def _is_told_otherwise(self, check: str, cause: str) -> bool:
        """Whether what two lives of the class show is told already, beside the reference in another life; or the other way round."""
        if check not in TWINS:
            return False
        by_reference = [c for k, c in self.suspects if k == check and c.startswith((DEVIATES, AFTER))]
        if cause == TWIN:
            return any((check, c) in self.shrunk for c in by_reference)
        return cause in by_reference and (check, TWIN) in self.suspects and (check, cause) not in self.shrunk

    def _is_idle(self, cause: str) -> bool:
        """Whether an option was seen to change nothing often enough, and never to change anything, and nothing else that is told says why."""
        return cause not in self.idle or (self.idle[cause].shown and not self._follows(cause))

    def _follows(self, cause: str) -> bool:
        """Whether that an option changes nothing in one place follows from what is told by itself."""
        option, _, where = cause.removesuffix(NO_EFFECT).partition(" ")
        if option == "maximize" and ("maximize-mirrors", TWIN) in self.suspects:
            return True
        if where in (OTHER, ADDED) and ("groups-independent", TWIN) in self.suspects:
            return True
        first = self.idle.get(f"{option} {FIRST}{NO_EFFECT}")
        return where != FIRST and first is not None and first.shown

    def _sort(self, check: str, evidence: Evidence, life: Life) -> None:
        """Tell what the ledger explains from the first finding of a check that it does not; later ones may be its effects."""
        unexplained = False
        for finding in CHECKS[check].find(evidence):
            entry = ledger.knows(evidence, finding)
            if entry is not None:
                if entry.name not in life.known:
                    life.known.append(entry.name)
                owner = entry.owner(evidence, finding)
                _note(self.explained, (check, entry.name), finding, evidence.trace, life.number, owner)
            elif finding.cause.startswith(STRIDED) and check == "agreement" and self._sort_row_major(evidence, life):
                return
            elif not unexplained or finding.cause.endswith(NO_EFFECT):
                unexplained = True
                if finding.ratio is not None:
                    life.saw(check, finding.ratio)
                _note(self.suspects, (finding.check, finding.kind), finding, evidence.trace, life.number)

    def _sort_row_major(self, evidence: Evidence, life: Life) -> bool:
        """Whether it is wrong in row-major memory as well: then strides are not the cause, and it is told without them."""
        plain = Evidence(
            self.subject,
            evidence.trace.row_major(),
            self.settings.checks,
            ledger.explanation,
            clocks=self.clocks,
            effective=self.effective,
        )
        if plain.trace == evidence.trace or not plain.judgement.deviations:
            return False
        for check in self.result.tallies:
            if check in EXPLAINED_BY:
                self._sort(check, plain, life)
        return True

    def _settled(self) -> frozenset[str]:
        """Deviations seen in several lives that no broken invariant explained: to look for one costs more than the life itself."""
        agreement = ((cause, s.count) for (check, cause), s in self.suspects.items() if check == "agreement")
        return frozenset(cause for cause, count in agreement if count >= _TRIED)

    def _refused(self, evidence: Evidence) -> bool:
        """Whether somebody's optimizer declares that it does not support these options, or a group more."""
        raised = evidence.recording.raised
        if not self.subject.explicit or raised is None or raised.kind not in _REFUSALS:
            return False
        added = raised.event is not None and isinstance(evidence.trace.events[raised.event], AddGroup)
        if not raised.constructing and not (added and raised.kind != "TypeError"):
            return False
        if raised.event is None and evidence.trace.form != "list":
            listed = Evidence(self.subject, replace(evidence.trace, form="list")).recording.raised
            if listed is None or listed.event is not None:
                return False  # it refuses the form that the groups are given in, which it must take
        if raised.kind not in _DECLARED and raised.event is None and self._fails_by_default(evidence.trace):
            return False  # it does not take these parameters, whatever the options
        self.refusals.append(raised.message)
        return True

    def _fails_by_default(self, trace: Trace) -> bool:
        """Whether the constructor raises for the same parameters without options as well."""
        plain = replace(trace, groups=tuple(replace(g, options={}) for g in trace.groups), events=())
        return Evidence(self.subject, plain).recording.raised is not None

    def _count(self, evidence: Evidence, life: Life) -> None:
        judgement = evidence.judgement
        self.free |= judgement.free
        life.lives, life.steps = judgement.steps, steps_judged(evidence)
        life.elements, life.undetermined = judgement.elements, judgement.undetermined
        life.fields, life.worst, life.ratios = judgement.fields, judgement.worst, judgement.classes()
        # What deviates is counted where it is sorted: what is known is no use of the budget.
        life.saw("agreement", *judgement.worst.values())

    def _shrink_new(self) -> None:
        """At the end of each batch, so that whoever interrupts a long campaign keeps what it found."""
        start = time.perf_counter()
        self._sort_effective()
        new = sorted((key for key in self.ready if key not in self.shrunk), key=_rank)
        most = 1 if self.settings.at_once else _MOST_DIVERGENCES
        for key in new[: most - len(self.shrunk)]:
            self.shrunk.add(key)
            self._shrink(key)
        for key, seen in self.explained.items():
            if key not in self.told or self.told[key].owner != seen.owner:
                self._tell_known(key)
        self.result.shrink_seconds += time.perf_counter() - start

    def _shrink(self, key: tuple[str, str]) -> None:
        suspect = self.suspects[key]
        trace, finding = suspect.trace, suspect.finding
        attempts = max((_ATTEMPTS_AT_ONCE if self.settings.at_once else _ATTEMPTS) // self.subject.cost, 4)
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
        shown: set[str] | None = self._in_fresh("shown", trace, check, times, self.effective)
        return shown

    def _twice(self, trace: Trace, cause: str) -> Finding | None:
        place = self._in_fresh("twice", trace)
        return None if place is None else determinism.finding(place, leaks=cause == determinism.LEAKS)

    def _join_leak(self, key: tuple[str, str]) -> None:
        """What shows only after other lives has been told already, of the class that keeps something from them."""
        assert self.leak is not None
        self.leak.life.append(f"also: {key[0]}: {key[1]}")
        self.suspects[self.leak.check, self.leak.cause].lives |= self.suspects[key].lives
        self.recorder.divergence(self.leak)

    def _fold(self, new: Divergence) -> bool:
        """Whether a divergence has the cause of one that was told before: then it is no further one."""
        told = self.result.divergences
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
            self.result.tallies[old.check].divergences.remove(old)
        self.result.tallies[new.check].add(new)
        self._tell(new, replaces=" ".join(old.id for old in effects))
        return True

    def _shown_as_well(self, new: Divergence) -> list[Divergence]:
        """Of deviations in one life, all have one cause: a buffer that is wrong makes the parameter wrong."""
        told = self.result.tallies[new.check].divergences
        if new.check != "agreement" or not told:
            return []
        shown = self._shown(new.trace, new.check) - {new.cause}
        return [old for old in told if old.cause in shown][:1]

    def _join(self, effect: Divergence, root: Divergence) -> None:
        """Tell in the life of one divergence that it shows in another way too."""
        root.life.append(f"also: {effect.cause if effect.check == root.check else f'{effect.check}: {effect.cause}'}")
        seen, also = self.suspects[root.check, root.cause], self.suspects[effect.check, effect.cause]
        seen.lives |= also.lives

    def _shown(self, trace: Trace, check: str, effective: Collection[str] | None = None) -> set[str]:
        """The kinds of what a check finds in a life that the ledger does not explain."""
        known = self.effective if effective is None else effective
        return {f.kind for f in unexplained(self.subject, trace, check, self.settings.checks, known)}

    def _play(self, subject: Subject, trace: Trace) -> Evidence | None:
        """The evidence of a life; ``None`` where it makes no sense or hangs."""
        if trace.problem(subject.spec) is not None:
            return None
        self.about_to_play(trace)
        try:
            with _time_limit(patience(subject, self.settings)):
                return Evidence(subject, trace, self.settings.checks, ledger.explanation, effective=self.effective)
        except _Hang:
            return None

    def _tell(self, divergence: Divergence, replaces: str = "") -> None:
        self.found(divergence)
        self.recorder.divergence(divergence, replaces)

    def _tell_dialect(self) -> None:
        """Tell with the first deviation whether another convention accounts for all of them."""
        tally = self.result.tallies.get("agreement")
        if tally is not None and tally.divergences:
            told = self.dialects.told(thoroughly=not self.settings.stops)
            tally.divergences[0].life += told
            if told:
                self._tell(tally.divergences[0])

    def _tell_known(self, key: tuple[str, str]) -> None:
        """What the ledger explains is told by the ledger's own life if it shows it here as well, else by the one seen."""
        check, name = key
        seen = self.explained[key]
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

    def _smallest_known(self, seen: _Suspect, entry: Entry) -> tuple[Trace, Finding]:
        """The life in which something known was seen, made smaller."""

        def recheck(trace: Trace) -> Finding | None:
            self.about_to_play(trace)
            self.progress(self.result.traces, self.settings.examples or 0)
            shown = findings(self.subject, trace, seen.finding.check, self.settings.checks)
            return next((f for f, known in shown if known is entry), None)

        return shrink.cut(seen.trace, seen.finding, recheck, max(_ATTEMPTS // 4 // self.subject.cost, 4))

    def recheck(self, trace: Trace, key: tuple[str, str]) -> Finding | None:
        """The finding of this check and cause in a trace, if it is there and the ledger does not explain it."""
        if time.process_time() > self.enough or self.hangs > _MOST_HANGS:
            return None
        self.about_to_play(trace)
        self.progress(self.result.traces, self.settings.examples or 0)
        check, cause = key
        limit = patience(self.subject, self.settings)
        for finding in unexplained(self.subject, trace, check, self.settings.checks, self.effective, limit):
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
        for divergence in self.result.divergences:
            divergence.found_in = self.suspects[divergence.check, divergence.cause].count
        for divergence in self.result.known:
            divergence.found_in = self.explained[divergence.check, divergence.entry].count
        subject, notes = self.subject, self.result.notes
        if subject.missing_options:
            notes.append(f"unsupported options, left out of every life: {', '.join(subject.missing_options)}")
        if subject.spec.products:
            told = [f"{name}: {n - u:,} of {n:,}" for name, (n, u) in self.result.fields.items() if "products" in name]
            notes.append(f"where rounding in the matrix products leaves them determined: {'; '.join(told)}")
        notes += [f"unsupported: {check}: {why}" for check, why in self.meaningless.items()]
        notes += self._of_signature()
        if self.refusals:
            notes.append(
                f"unsupported: it refuses the options or groups of {len(self.refusals)} lives of {self.result.traces}"
                f" ({', '.join(sorted(set(self.refusals))[:3])})"
            )
        if self.free:
            notes.append(
                f"no state named {', '.join(sorted(self.free))}: judged on what can be read, the reference runs free in"
                " the rest and its budget accumulates"
            )
        notes += self.validated
        if len(self.ready) > len(self.shrunk):
            notes.append(f"{len(self.ready) - len(self.shrunk)} more kinds of divergence were seen and not shrunk")

    def _of_signature(self) -> list[str]:
        """What somebody's constructor takes otherwise than the reference, and what it refused when it was tried."""
        takes, notes = self.subject.takes, []
        if takes is None:
            return []
        if takes.unlike:
            notes.append(f"options of the reference's name that are not given: {_listed(takes.unlike)}")
        if takes.others:
            notes.append(
                f"options that the reference does not have, left as they are: {', '.join(sorted(takes.others))}"
            )
        if not self.subject.options and self.subject.own_numbers:
            names = ", ".join(self.subject.own_numbers)
            notes.append(
                f"unknown: no option was varied, for none is called as the reference's is ({names}): write a factory that names them so"
            )
        if takes.defaults:
            default = vars(self.subject.spec.hyper_values())
            told = ", ".join(f"{k}={default[k]!r} (its own: {v!r})" for k, v in sorted(takes.defaults.items()))
            notes.append(f"its defaults differ from the reference's, which are passed instead: {told}")
        if takes.constructor_only:
            told = ", ".join(sorted(takes.constructor_only))
            notes.append(f"options that its groups do not keep, so they were varied for all groups alike: {told}")
        refused = [why for why in self.subject.refusals.values() if why]
        if refused:
            why = "; ".join(sorted(set(refused))[:3])
            notes.append(
                f"unsupported: the constructor refuses {len(refused)} of {len(self.subject.refusals)} sets of options ({why})"
            )
        return notes


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({value})" for name, value in sorted(values.items()))


def tell(
    subject: Subject, trace: Trace, finding: Finding, count: int = 1, *, evaluate: bool = True, twice: bool = False
) -> Divergence:
    """A finding as data that needs nothing else: the life told, and written as a script.

    Args:
        twice: it shows when the life is played for the second time in one process.
        evaluate: play the trace once more, to tell what the budget is made of; not where it hangs or crashes.
    """
    lines = explain.life(subject, trace, finding)
    if finding.owner:
        finding = replace(finding, summary=f"{finding.owner}, which a round trip led into: {finding.summary}")
    if evaluate and finding.deviation is not None:
        told = explain.shares(Evidence(subject, trace), finding)
        lines += [told] if told else []
    return Divergence(
        subject=subject.name,
        like=subject.spec.name,
        check=finding.check,
        cause=finding.kind,
        summary=finding.summary,
        ratio=finding.ratio,
        trace=trace,
        life=lines,
        script=repro.script(subject, trace, finding, twice=twice),
        found_in=count,
        owner=finding.owner,
    )


def patience(subject: Subject, settings: Settings | None = None) -> float:
    """Seconds after which a subject hangs that is still busy with a trace."""
    asked = None if settings is None else settings.patience
    return (TRACE_SECONDS if asked is None else asked) * min(subject.cost, 9)


def first_patience(subject: Subject, settings: Settings) -> float:
    """The same, for the first life of a campaign."""
    return patience(subject, settings) * _FIRST_LIFE


def within(seconds: float, do: Callable[[], _T]) -> _T | None:
    """What ``do`` returns; ``None`` where that takes longer."""
    try:
        with _time_limit(seconds):
            return do()
    except _Hang:
        return None


def played(
    subject: Subject,
    trace: Trace,
    asked: Collection[str] = (),
    effective: Collection[str] = (),
    seconds: float | None = None,
) -> Evidence | None:
    """A trace played, to be asked about; ``None`` where the subject hangs."""
    limit = patience(subject) if seconds is None else seconds
    return within(limit, lambda: Evidence(subject, trace, asked, ledger.explanation, effective=effective))


def findings(
    subject: Subject,
    trace: Trace,
    check: str,
    asked: Collection[str] = (),
    effective: Collection[str] = (),
    summary: str = "",
    seconds: float | None = None,
) -> Iterator[tuple[Finding, Entry | None]]:
    """Play a trace and ask one check: what it finds, and what the ledger says of it. A life that makes no sense has none.

    Args:
        asked: the checks that are asked otherwise; all by default.
        effective: options that are known to have an effect.
        summary: what was told of it, where it was: some of it shows when the life is played for the second time.
        seconds: after which the subject hangs; as many as :func:`patience` says by default.
    """
    if trace.problem(subject.spec) is not None or subject.problem(trace):
        return
    if determinism.LEAKS in summary or determinism.CHANCE in summary:
        place = determinism.twice(subject, trace)
        if place is not None and check == "completes":
            yield determinism.finding(place, leaks=determinism.LEAKS in summary), None
            return
    limit = patience(subject) if seconds is None else seconds
    evidence = played(subject, trace, asked, effective, limit)
    if evidence is None:
        yield Finding(check, HANGS, None, f"the subject is still busy after {limit:.0f} s"), None
        return
    for finding in CHECKS[check].find(evidence):
        yield finding, ledger.knows(evidence, finding)


def unexplained(
    subject: Subject,
    trace: Trace,
    check: str,
    asked: Collection[str] = (),
    effective: Collection[str] = (),
    seconds: float | None = None,
) -> Iterator[Finding]:
    """What a check finds in a trace that the ledger does not explain."""
    found = findings(subject, trace, check, asked, effective, seconds=seconds)
    return (finding for finding, entry in found if entry is None)


def reproduction(subject: Subject, entry: Entry, check: str) -> tuple[Trace, Finding] | None:
    """An entry's own life and what it shows, if it shows on this subject what the entry explains."""
    trace = replace(entry.saved.trace, optimizer=subject.spec.name)
    shown = (finding for finding, known in findings(subject, trace, check) if known is entry)
    finding = next(shown, None)
    return None if finding is None else (trace, finding)
