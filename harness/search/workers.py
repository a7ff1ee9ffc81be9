"""One process for each subject: two run at a time on two cores, and one that crashes or hangs takes nobody with it."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

import torch

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import entry as entries
from stepcheck.harness.known import evidence
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.life.reading import loads
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.stream import Recorder, Stream
from stepcheck.harness.record.verdict import HANGS, Divergence, Result, Tally
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.limits import first_patience, patience
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.tell import tell
from stepcheck.harness.support import threads
from stepcheck.harness.support.processes import Silence, begin_child, cores, end, end_of, forks, quiet
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference.dialects import title

_T = TypeVar("_T")
#: The cause of a divergence that ends the process.
CRASH = "crash"
#: Silence of a worker, beyond what a trace may take, after which it hangs in code that Python cannot interrupt.
_SILENCE_SECONDS = 10.0
_HEARTBEAT_SECONDS = 0.2
#: How long a worker that has sent its result may take to end: a thread that a subject started, and that runs on, would keep it for ever.
_END_SECONDS = 2.0
#: Divergences of one subject that are told of before they are shrunk.
_MOST_SEEN = 12
#: The cost of subjects whose lives take no longer than a glance.
_CHEAP = 9


@dataclass
class Listener:
    """What a reader of a run may want to hear, while it happens."""

    progress: Callable[[Subject, int, int], None] = lambda subject, done, planned: None
    found: Callable[[Divergence], None] = lambda divergence: None
    finished: Callable[[Result], None] = lambda result: None


@dataclass
class _Job:
    subject: Subject
    process: Any
    pipe: Connection
    diary: Path | None
    recorder: Recorder
    silence: Silence = field(default_factory=Silence)
    begun: bool = False
    """Whether its first life, which may take longer, is over."""
    found: list[Divergence] = field(default_factory=list)
    seen: dict[tuple[str, str], Divergence] = field(default_factory=dict)
    """What was seen and is not shrunk yet, by check and cause."""

    def all_found(self) -> list[Divergence]:
        """What is to be told where the worker ends early: what it had not shrunk, it had found all the same."""
        told = {(d.check, d.cause) for d in self.found}
        return [*self.found, *(d for key, d in self.seen.items() if key not in told)]


def run(
    subjects: Sequence[Subject], settings: Settings, listener: Listener, stream: Stream | None = None
) -> list[Result]:
    """A campaign for each subject, as many at a time as there are cores. Results are in the order of ``subjects``.

    Each worker writes to the ``stream`` itself, if there is one. There, a subject that ended early is as far as it had come; its
    result here has only what it had found.

    On KeyboardInterrupt the workers stop, and the unfinished subjects are reported as unknown with what they had found.

    Raises:
        UsageError: a subject turns out to be no optimizer.
    """
    if settings.at_once and all(s.explicit for s in subjects):
        torch.set_num_threads(1)  # a class may need nothing of what warming up imports
    else:
        warm_up()
        from stepcheck.harness.search import drawing  # noqa: F401 - or every worker would import Hypothesis by itself
    gc.freeze()  # workers need not look through all that was imported for garbage
    try:
        if not forks():
            return [_in_process(s, settings, listener, stream) for s in subjects]
        return _Pool(subjects, settings, listener, stream).run()
    finally:
        gc.unfreeze()  # at exit, Triton's own modules would be taken for a leak, and said so


def slots(jobs: int | None = None) -> int:
    """How many workers run at a time; ``jobs``, where that is said."""
    return jobs or cores() if forks() else 1


def warm_up() -> None:
    """The first step of any torch optimizer imports a second's worth of modules: once, before the workers fork."""
    torch.set_num_threads(1)
    parameter = torch.zeros(1, requires_grad=True)
    torch.optim.SGD([parameter]).step()


def _in_process(subject: Subject, settings: Settings, listener: Listener, stream: Stream | None) -> Result:
    campaign = Campaign(
        subject,
        settings,
        lambda d, p: listener.progress(subject, d, p),
        listener.found,
        recorder=Recorder(stream, subject.name),
    )
    with quiet():
        result = campaign.run()
    listener.finished(result)
    return result


class _Pool:
    def __init__(
        self, subjects: Sequence[Subject], settings: Settings, listener: Listener, stream: Stream | None
    ) -> None:
        self.settings = settings
        self.stream = stream
        self.listener = listener
        self.subjects = subjects
        # The longest first, so that none is left running alone at the end.
        order = sorted(range(len(subjects)), key=lambda n: -subjects[n].cost)
        self.waiting: list[tuple[int, bool]] = [(n, False) for n in order]
        self.jobs: dict[int, _Job] = {}
        self.results: dict[int, Result] = {}
        self.diaries = tempfile.TemporaryDirectory(prefix="stepcheck-")

    def run(self) -> list[Result]:
        try:
            while self.waiting or self.jobs:
                while self.waiting and len(self.jobs) < slots():
                    self._start(*self.waiting.pop(0))
                self._listen()
        except KeyboardInterrupt:
            self._interrupted()
        finally:
            for job in self.jobs.values():
                job.process.kill()
            self.diaries.cleanup()
        return [self.results[n] for n in range(len(self.subjects))]

    def _interrupted(self) -> None:
        """End the workers, and keep what they had found, shrunk or not."""
        for n, job in list(self.jobs.items()):
            while n in self.jobs and job.pipe.poll():
                if not self._hear(n, job):
                    break
        for n in range(len(self.subjects)):
            if n not in self.results:
                job_or_none, subject = self.jobs.get(n), self.subjects[n]
                if job_or_none is None:
                    recorder, found = Recorder(self.stream, subject.name), []
                else:
                    job_or_none.process.kill()  # nothing of it comes after its end
                    job_or_none.process.join()
                    recorder, found = job_or_none.recorder, self._all_found(job_or_none)
                recorder.failed("interrupted")
                self._finish(n, unfinished(subject, self.settings, "interrupted", found))

    def _all_found(self, job: _Job) -> list[Divergence]:
        """What a worker had found that ends early; of what it had not shrunk yet, nobody knows so far."""
        found = job.all_found()
        for divergence in found[len(job.found) :]:
            self.listener.found(divergence)
            job.recorder.divergence(divergence)
        return found

    def _start(self, n: int, careful: bool) -> None:
        diary = Path(self.diaries.name) / f"{n}.json" if careful else None
        receive, send = multiprocessing.Pipe(duplex=False)
        subject = self.subjects[n]
        # CUDA does not work in a process that was forked after its parent began with it.
        apart = subject.device != "cpu" and not subject.unsupported
        context: Any = multiprocessing.get_context("spawn" if apart else "fork")
        target, who = (_work_apart, subject.name) if apart else (_work, subject)
        if subject.explicit and not apart:
            threads.children_spread()  # where not, no child has to find out for itself
        recorder = Recorder(self.stream, subject.name, attempt=2 if careful else 1)
        process = context.Process(
            target=target, args=(who, self.settings, send, diary, recorder, os.getpid()), daemon=True
        )
        process.start()
        send.close()
        self.jobs[n] = _Job(self.subjects[n], process, receive, diary, recorder)

    def _listen(self) -> None:
        pipes = {job.pipe: n for n, job in self.jobs.items()}
        for pipe in wait(list(pipes), timeout=1.0):
            n = pipes[pipe]  # type: ignore[index]
            job = self.jobs[n]
            job.silence.heard()
            if not self._hear(n, job):
                self._died(n, job)
        for n, job in list(self.jobs.items()):
            limit = (patience if job.begun else first_patience)(job.subject, self.settings)
            if job.silence.look(job.process) > limit + _SILENCE_SECONDS:
                job.process.kill()
                self._died(n, job, hangs=True)

    def _hear(self, n: int, job: _Job) -> bool:
        """Take one message of a worker; ``False`` if it has ended without one.

        Raises:
            UsageError: its subject is no optimizer.
        """
        try:
            kind, payload = job.pipe.recv()
        except (EOFError, OSError):
            return False
        if kind == "progress":
            job.begun |= payload[0] > 0
            self.listener.progress(job.subject, *payload)
        elif kind == "found":
            job.found.append(payload)
            self.listener.found(payload)
        elif kind == "seen":
            job.seen[payload.check, payload.cause] = payload
        elif kind == "settled":
            job.seen = {key: d for key, d in job.seen.items() if key not in payload}
        elif kind == "usage":
            raise payload
        else:
            del self.jobs[n]
            end(job.process, _END_SECONDS)
            self._finish(n, payload)
        return True

    def _died(self, n: int, job: _Job, *, hangs: bool = False) -> None:
        """The process is gone: once more, noting each trace before it is played; then the last one noted is the culprit."""
        job.process.join()
        del self.jobs[n]
        if job.diary is None:
            self.waiting.insert(0, (n, True))
            return
        code = job.process.exitcode or 0
        how = "hangs where Python cannot interrupt it" if hangs else f"kills the process ({end_of(code)})"
        why = f"the process ended early: the subject {how}"
        result = unfinished(job.subject, self.settings, why, self._all_found(job))
        if job.diary.is_file():
            trace = Trace.from_json(loads(job.diary.read_text(encoding="utf-8")))
            finding = Finding("completes", HANGS if hangs else CRASH, None, f"the subject {how}")
            divergence = tell(job.subject, trace, finding, evaluate=False)
            result.tallies.setdefault("completes", Tally("completes")).add(divergence)
            self.listener.found(divergence)
            job.recorder.divergence(divergence)
        job.recorder.failed(why)
        self._finish(n, result)

    def _finish(self, n: int, result: Result) -> None:
        self.results[n] = result
        self.listener.finished(result)


def unfinished(subject: Subject, settings: Settings, why: str, found: Sequence[Divergence]) -> Result:
    """The result of a subject whose campaign did not end: unknown, or failed by what it had found."""
    tallies = {c: Tally(c) for c in settings.checks}
    result = Result(subject.name, title(subject.spec), tallies, error=why, expected=subject.expected)
    for divergence in found:
        result.tallies[divergence.check].ran += 1
        result.tallies[divergence.check].add(divergence)
    return result


@dataclass(frozen=True)
class Replayed:
    """What became of an entry's own life on the subject that it was found on.

    Attributes:
        told: why it does not reproduce, where it does not.
        carried: nothing was known of it under this version of torch, on such a machine, before its life was played here; or it does
            not show with the kernels that torch has for this processor, and was seen with those of another.
    """

    entry: Entry
    reproduces: bool
    told: str = ""
    carried: bool = False

    @property
    def failed(self) -> bool:
        """Whether it was seen here before, and is not seen any more."""
        return not (self.reproduces or self.carried)

    def to_json(self) -> dict[str, Any]:
        """The row of ``--json``, and why it does not reproduce."""
        entry, span = self.entry, self.entry.span
        row: dict[str, Any] = {"name": entry.name, "statement": entry.statement, "link": entry.link}
        row |= {"versions": span.specifier, "first_seen": span.first_seen, "fixed_in": span.fixed_in}
        return row | {"reproduces": self.reproduces, "carried": self.carried, "told": self.told}


def replay(subjects: Sequence[Subject], settings: Settings, stream: Stream | None = None) -> list[Replayed]:
    """Play the lives of the ledger's entries that are about the optimizers of ``subjects``, each in a process of its own.

    Played are those that are known to show under the torch that is installed, and those of which nothing is known here. What the latter show
    holds from then on, in the campaigns of this process too: so this comes first.
    """
    checked = {s.spec.name for s in subjects if s.name.startswith("torch:")}
    names = {s.name for s in subjects}
    played: list[Replayed] = []
    if not checked:
        return played  # even to know whom an entry is about, torch imports its compiler
    for entry in LEDGER.values():
        subject = entry.subject
        # A costly subject is played only where it was asked for.
        wanted = subject.name in names if subject.cost > _CHEAP else subject.spec.name in checked
        if not wanted or subject.unsupported or entry.saved.check not in settings.checks or entry.seen_here is False:
            continue
        if not played:
            warm_up()
        played.append(_replay(entry, subject))
        if stream is not None:
            stream.write("ledger", played[-1].to_json())
    return played


def _replay(entry: Entry, subject: Subject) -> Replayed:
    told = in_child(lambda: entries.shows(subject, entry), patience(subject) + _SILENCE_SECONDS)
    if entry.seen_here is None:
        entries.PLAYED[entry.name] = not told
    carried = entry.seen_here is None or (bool(told) and not evidence.same_processor())
    return Replayed(entry, not told, told, carried)


def in_child(play: Callable[[], str], seconds: float) -> str:
    """What ``play`` returns in a process of its own, or what became of that process."""
    told = played_apart(play, seconds)
    return told if isinstance(told, str) else f"its life {told.how}"


@dataclass(frozen=True)
class Lost:
    """What became of a process that did not say what it was asked for.

    Attributes:
        how: in words that a subject stands before.
        hangs: it was still busy, and was ended.
    """

    how: str
    hangs: bool = False


def played_apart(play: Callable[[], _T], seconds: float) -> _T | Lost:
    """What ``play`` returns in a process of its own, or what became of that process.

    Args:
        seconds: how long it may take; a pause of the whole machine, or of either process, does not count.
    """
    if not forks():
        try:
            with quiet():
                return play()
        except SystemExit as error:
            return Lost(f"ends the process (exit status {error.code})")
    context = multiprocessing.get_context("fork")
    receive, send = multiprocessing.Pipe(duplex=False)
    parent = os.getpid()

    def work() -> None:
        begin_child(parent)
        send.send(play())

    process = context.Process(target=work, daemon=True)
    process.start()
    send.close()
    silence = Silence()
    try:
        while not receive.poll(1.0):
            if silence.look(process) > seconds:
                return Lost(f"still plays after {seconds:.0f} s", hangs=True)
        told: _T = receive.recv()
    except EOFError:
        process.join()
        return Lost(f"ends the process ({end_of(process.exitcode or 0)})")
    else:
        return told
    finally:
        process.kill()
        process.join()


def _work_apart(
    name: str, settings: Settings, pipe: Connection, diary: Path | None, recorder: Recorder, parent: int
) -> None:
    """In a worker that has nothing of its parent's."""
    (subject,) = resolve(name)
    warm_up()
    gc.freeze()
    try:
        _work(subject, settings, pipe, diary, recorder, parent)
    finally:
        gc.unfreeze()


def _send_seen(pipe: Connection, campaign: Campaign, key: tuple[str, str]) -> None:
    seen = campaign.suspects.new[key]
    with suppress(Exception):  # then it is told when it is shrunk
        pipe.send(("seen", tell(campaign.subject, seen.trace, seen.finding, seen.count, evaluate=False)))


def _work(
    subject: Subject, settings: Settings, pipe: Connection, diary: Path | None, recorder: Recorder, parent: int
) -> None:
    """In the worker: run the campaign and send what happens."""
    begin_child(parent)
    gc.set_threshold(50_000)  # traces leave little garbage that is not freed at once
    told = time.monotonic()
    lives, begun, sent = 0, False, set[tuple[str, str]]()

    def progress(done: int, planned: int) -> None:
        nonlocal told, lives, begun
        # Shrinking may take minutes, and begins when a hundred lives were played: what was seen by then is not lost with this process.
        for key in [*campaign.suspects.new][:_MOST_SEEN]:
            if key not in sent:
                sent.add(key)
                _send_seen(pipe, campaign, key)
        if done > lives and campaign.suspects.shrunk:
            pipe.send(("settled", set(campaign.suspects.shrunk)))
        lives = done
        if time.monotonic() - told > _HEARTBEAT_SECONDS or (done and not begun):
            begun = done > 0
            told = time.monotonic()
            pipe.send(("progress", (done, planned)))

    def note(trace: Trace) -> None:
        assert diary is not None
        diary.write_text(json.dumps(trace.to_json()), encoding="utf-8")

    campaign = Campaign(
        subject,
        settings,
        progress,
        lambda divergence: pipe.send(("found", divergence)),
        note if diary is not None else lambda trace: None,
        recorder,
    )
    try:
        pipe.send(("result", campaign.run()))
    except UsageError as error:
        pipe.send(("usage", error))
    pipe.close()
