"""Many traces on one subject: draw, play, ask every check, keep count, and shrink what fails."""

from __future__ import annotations

import hashlib
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

import hypothesis
from hypothesis import HealthCheck, Phase

from stepcheck.harness import explain, repro, shrink, steer
from stepcheck.harness.checks import CHECKS, STRIDED, Evidence, Finding, steps_judged
from stepcheck.harness.generate import PAGE, pages
from stepcheck.harness.subjects import Subject, UsageError
from stepcheck.harness.trace import Trace
from stepcheck.harness.verdict import Divergence, Result, Tally

DEFAULT_EXAMPLES = 200
#: Traces drawn between two looks at the clock.
_BATCH = 100
#: Divergences of one subject that are shrunk and kept.
_MOST_DIVERGENCES = 12
#: Smaller lives that are tried for one divergence.
_ATTEMPTS = 400
#: A trace takes milliseconds; a subject that is still busy with one after this long hangs.
TRACE_SECONDS = 20.0
HANGS = "hangs"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """What a campaign does.

    Attributes:
        examples: traces for each subject; ``None`` for as many as ``seconds`` allow.
        seconds: time for each subject; ``None`` for no limit.
        only: names of the checks to ask; empty for all.
    """

    seed: int = 0
    examples: int | None = DEFAULT_EXAMPLES
    seconds: float | None = None
    dtypes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()

    @property
    def checks(self) -> tuple[str, ...]:
        return self.only or tuple(CHECKS)


class _Hang(BaseException):
    """Not an Exception, so that no ``except Exception`` in somebody's step swallows it."""


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt Python code that runs longer. Code that never returns to the interpreter is beyond it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(_signal: int, _frame: FrameType | None) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class _Suspect:
    finding: Finding
    trace: Trace
    count: int = 1


class Campaign:
    """One subject's campaign.

    Args:
        subject: who plays.
        settings: how much, from which seed.
        progress: called with (traces done, traces planned) now and then.
        found: called with each divergence once it is shrunk.
        about_to_play: called with each trace before it is played.
    """

    def __init__(
        self,
        subject: Subject,
        settings: Settings,
        progress: Progress = lambda done, planned: None,
        found: Callable[[Divergence], None] = lambda divergence: None,
        about_to_play: Callable[[Trace], None] = lambda trace: None,
    ) -> None:
        self.subject = subject
        self.settings = settings
        self.progress = progress
        self.found = found
        self.about_to_play = about_to_play
        wanted = settings.dtypes or subject.usual_dtypes or subject.dtypes
        self.dtypes = tuple(d for d in subject.dtypes if d in wanted)
        missing = len(subject.missing_options)
        self.result = Result(
            subject.name, subject.spec.name, {c: Tally(c, unsupported=missing) for c in settings.checks}
        )
        self.steering = steer.Steering()
        self.suspects: dict[tuple[str, str], _Suspect] = {}
        self.shrunk: set[tuple[str, str]] = set()
        self.free: set[str] = set()
        self.refusals: list[str] = []
        self.meaningless = {c: why for c in settings.checks if (why := CHECKS[c].without_meaning(subject.spec))}
        self.hung = False

    def run(self) -> Result:
        """Draw, play and judge until the examples or the seconds are used up, then shrink.

        Raises:
            UsageError: the subject turns out to be no optimizer.
        """
        if self.subject.unsupported:
            return self._unsupported(self.subject.unsupported)
        if not self.dtypes:
            return self._unsupported(f"it takes {', '.join(self.subject.dtypes)}, not {self.settings.dtypes[0]}")
        self.pages = pages(self.subject, self.dtypes)
        start = time.perf_counter()
        self.deadline = math.inf if self.settings.seconds is None else start + self.settings.seconds
        # A subject whose traces cost more is given fewer; its row in the report says how many.
        planned = None if self.settings.examples is None else max(self.settings.examples // self.subject.cost, 1)
        batch = 0
        try:
            while not self.hung and time.perf_counter() < self.deadline:
                size = _BATCH if planned is None else min(_BATCH, planned - self.result.traces)
                if size <= 0:
                    break
                before = self.result.traces
                self._batch(batch, size)
                batch += 1
                self._shrink_new()
                if self.result.traces == before:
                    break  # the space of traces is exhausted
            self.result.seconds = time.perf_counter() - start - self.result.shrink_seconds
            if planned is not None:
                for name, tally in self.result.tallies.items():
                    tally.planned = planned
                    if name in self.meaningless:
                        tally.unsupported = planned
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - a fault of the harness: the verdict is unknown, never green
            self.result.error = f"{type(error).__name__}: {error}"
        self._note()
        return self.result

    def _unsupported(self, why: str) -> Result:
        """What the subject itself declares that it cannot do here is neither right nor wrong."""
        for tally in self.result.tallies.values():
            tally.planned = tally.unsupported = self.settings.examples or 1
        self.result.notes.append(f"unsupported: {why}")
        return self.result

    def _draw(self, batch: int, size: int) -> list[list[Trace]]:
        """Candidates from Hypothesis for ``size`` traces, set up so that the seed alone decides.

        It draws; shrinking works on the traces themselves.
        """
        drawn: list[Trace] = []
        each = steer.CANDIDATES
        text = f"{self.settings.seed}/{self.subject.name}/{','.join(self.dtypes)}/{batch}"

        @hypothesis.settings(
            max_examples=size * each // PAGE + 2,  # the first page holds one trace, all zeros
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @hypothesis.seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))
        @hypothesis.given(self.pages)
        def collect(page: list[Trace]) -> None:
            drawn.extend(page)

        collect()
        # A page may hold more than was asked for; what is planned is what runs.
        wanted = drawn[: size * each]
        return [wanted[n : n + each] for n in range(0, len(wanted), each)]

    def _batch(self, batch: int, size: int) -> None:
        for candidates in self._draw(batch, size):
            if self.hung or time.perf_counter() > self.deadline:
                break
            self._ask(self.steering.choose(candidates))

    def _ask(self, trace: Trace) -> None:
        result = self.result
        result.traces += 1
        limit = min(patience(self.subject), max(self.deadline - time.perf_counter(), 1.0))
        self.about_to_play(trace)
        try:
            with _time_limit(limit):
                evidence = Evidence(self.subject, trace)
        except _Hang:
            self.hung = True
            summary = f"the subject is still busy after {limit:.0f} s with a life of {len(trace.events)} events"
            name = "completes" if "completes" in result.tallies else next(iter(result.tallies))
            result.tallies[name].ran += 1
            self._suspect(Finding(name, HANGS, None, summary), trace)
            return
        if self._refused(evidence):
            return
        for name, tally in result.tallies.items():
            if name in self.meaningless:
                tally.planned += 1
                tally.unsupported += 1
                continue
            looked = CHECKS[name].looks_at(evidence)
            tally.planned += 1
            tally.ran += looked > 0
            tally.looked += looked
            for finding in CHECKS[name].find(evidence) if looked else ():
                self._suspect(finding, trace)
        if "agreement" in result.tallies:
            self._count(evidence)
        self.progress(result.traces, self.settings.examples or 0)

    def _refused(self, evidence: Evidence) -> bool:
        """Whether somebody's constructor declares that it does not support these options, as ValueError says it."""
        raised = evidence.recording.raised
        if not self.subject.explicit or raised is None or raised.event is not None or raised.kind != "ValueError":
            return False
        self.refusals.append(raised.message)
        for tally in self.result.tallies.values():
            tally.planned += 1
            tally.unsupported += 1
        return True

    def _count(self, evidence: Evidence) -> None:
        judgement = evidence.judgement
        self.free |= judgement.free
        self.result.lives += judgement.steps
        self.result.steps += steps_judged(evidence)
        self.result.elements += judgement.elements
        self.result.undetermined += judgement.undetermined
        for name, (elements, undetermined) in judgement.fields.items():
            before = self.result.fields.get(name, (0, 0))
            self.result.fields[name] = (before[0] + elements, before[1] + undetermined)
        for name, ratio in judgement.worst.items():
            self.result.worst[name] = max(self.result.worst.get(name, 0.0), ratio)
        worst = [*judgement.worst.values(), *(d.ratio for d in judgement.deviations)]
        tally = self.result.tallies["agreement"]
        if worst:
            tally.worst_ratio = max(tally.worst_ratio or 0.0, *worst)

    def _suspect(self, finding: Finding, trace: Trace) -> None:
        if finding.cause.startswith(STRIDED) and finding.check == "agreement":
            # If it is wrong in row-major memory as well, strides are not the cause.
            plain = trace.row_major()
            found = find(self.subject, plain, finding.check)
            if found is not None:
                finding, trace = found, plain
        key = (finding.check, finding.cause)
        if key in self.suspects:
            self.suspects[key].count += 1
        else:
            self.suspects[key] = _Suspect(finding, trace)

    def _shrink_new(self) -> None:
        """At the end of each batch, so that whoever interrupts a long campaign keeps what it found."""
        start = time.perf_counter()
        for key in list(self.suspects)[len(self.shrunk) : _MOST_DIVERGENCES]:
            self.shrunk.add(key)
            self._shrink(key)
        self.result.shrink_seconds += time.perf_counter() - start

    def _shrink(self, key: tuple[str, str]) -> None:
        suspect = self.suspects[key]
        trace, finding = suspect.trace, suspect.finding
        if finding.cause != HANGS:  # each look at a smaller one would cost the whole time limit
            trace, finding = shrink.cut(
                trace, finding, lambda t: self.recheck(t, key), max(_ATTEMPTS // self.subject.cost, 4)
            )
        divergence = tell(self.subject, trace, finding, suspect.count)
        self.result.tallies[key[0]].divergences.append(divergence)
        self.found(divergence)

    def recheck(self, trace: Trace, key: tuple[str, str]) -> Finding | None:
        """The finding of this check and cause in a trace, if it is there."""
        self.about_to_play(trace)
        self.progress(self.result.traces, self.settings.examples or 0)
        return find(self.subject, trace, *key)

    def _note(self) -> None:
        for divergence in self.result.divergences:
            divergence.found_in = self.suspects[divergence.check, divergence.cause].count
        subject, notes = self.subject, self.result.notes
        if subject.missing_options:
            notes.append(f"unsupported options, left out of every life: {', '.join(subject.missing_options)}")
        if subject.spec.products:
            told = [f"{name}: {n - u:,} of {n:,}" for name, (n, u) in self.result.fields.items() if "products" in name]
            notes.append(f"where rounding in the matrix products leaves them determined: {'; '.join(told)}")
        notes += [f"unsupported: {check}: {why}" for check, why in self.meaningless.items()]
        if self.refusals:
            notes.append(
                f"unsupported: the constructor refuses the options of {len(self.refusals)} lives of {self.result.traces}"
                f" ({', '.join(sorted(set(self.refusals))[:3])})"
            )
        if self.free:
            notes.append(
                f"no state named {', '.join(sorted(self.free))}: judged on what can be read, the reference runs free in"
                " the rest and its budget accumulates"
            )
        kept = sum(len(t.divergences) for t in self.result.tallies.values())
        if len(self.suspects) > kept:
            notes.append(f"{len(self.suspects) - kept} more kinds of divergence were seen and not shrunk")


def tell(subject: Subject, trace: Trace, finding: Finding, count: int = 1, *, evaluate: bool = True) -> Divergence:
    """A finding as data that needs nothing else: the life told, and written as a script.

    Args:
        evaluate: play the trace once more, to tell what the budget is made of; not where it hangs or crashes.
    """
    lines = explain.life(trace, finding)
    if evaluate and finding.deviation is not None:
        told = explain.shares(Evidence(subject, trace), finding)
        lines += [told] if told else []
    return Divergence(
        subject=subject.name,
        like=subject.spec.name,
        check=finding.check,
        cause=finding.cause,
        summary=finding.summary,
        ratio=finding.ratio,
        trace=trace,
        life=lines,
        script=repro.script(subject, trace, finding),
        found_in=count,
    )


def patience(subject: Subject) -> float:
    """Seconds after which a subject hangs that is still busy with a trace."""
    return TRACE_SECONDS * min(subject.cost, 9)


def find(subject: Subject, trace: Trace, check: str, cause: str | None = None) -> Finding | None:
    """Play a trace and ask one check; the finding (of one cause), if there is one. A life that makes no sense has none."""
    if trace.problem(subject.spec) is not None:
        return None
    limit = patience(subject)
    try:
        with _time_limit(limit):
            evidence = Evidence(subject, trace)
    except _Hang:
        summary = f"the subject is still busy after {limit:.0f} s"
        return Finding(check, HANGS, None, summary) if cause in (None, HANGS) else None
    for finding in CHECKS[check].find(evidence):
        if cause is None or finding.cause == cause:
            return finding
    return None
