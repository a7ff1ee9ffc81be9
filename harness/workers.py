"""One process for each subject: two run at a time on two cores, and one that crashes or hangs takes nobody with it."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from stepcheck.harness import evidence, ledger
from stepcheck.harness.campaign import Campaign, Settings, patience, tell
from stepcheck.harness.checks import Finding
from stepcheck.harness.ledger import Entry
from stepcheck.harness.processes import end_of, forks
from stepcheck.harness.stream import Recorder, Stream
from stepcheck.harness.subjects import Subject, UsageError, resolve
from stepcheck.harness.trace import Trace, loads
from stepcheck.harness.verdict import HANGS, Divergence, Result, Tally

#: Silence of a worker, beyond what a trace may take, after which it hangs in code that Python cannot interrupt.
_SILENCE_SECONDS = 10.0
_HEARTBEAT_SECONDS = 0.2
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
    heard: float = field(default_factory=time.monotonic)
    found: list[Divergence] = field(default_factory=list)


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
    warm_up()
    gc.freeze()  # workers need not look through all that was imported for garbage
    try:
        if not forks():
            return [_in_process(s, settings, listener, stream) for s in subjects]
        return _Pool(subjects, settings, listener, stream).run()
    finally:
        gc.unfreeze()  # at exit, Triton's own modules would be taken for a leak, and said so


def slots() -> int:
    """How many workers run at a time."""
    return (os.cpu_count() or 1) if forks() else 1


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
            for n in range(len(self.subjects)):
                if n not in self.results:
                    job, subject = self.jobs.get(n), self.subjects[n]
                    if job is not None:
                        job.process.kill()  # nothing of it comes after its end
                        job.process.join()
                    recorder = Recorder(self.stream, subject.name) if job is None else job.recorder
                    recorder.failed("interrupted")
                    found = [] if job is None else job.found
                    self._finish(n, unfinished(subject, self.settings, "interrupted", found))
        finally:
            for job in self.jobs.values():
                job.process.kill()
            self.diaries.cleanup()
        return [self.results[n] for n in range(len(self.subjects))]

    def _start(self, n: int, careful: bool) -> None:
        diary = Path(self.diaries.name) / f"{n}.json" if careful else None
        receive, send = multiprocessing.Pipe(duplex=False)
        subject = self.subjects[n]
        # CUDA does not work in a process that was forked after its parent began with it.
        apart = subject.device != "cpu" and not subject.unsupported
        context: Any = multiprocessing.get_context("spawn" if apart else "fork")
        target, who = (_work_apart, subject.name) if apart else (_work, subject)
        recorder = Recorder(self.stream, subject.name, attempt=2 if careful else 1)
        process = context.Process(target=target, args=(who, self.settings, send, diary, recorder), daemon=True)
        process.start()
        send.close()
        self.jobs[n] = _Job(self.subjects[n], process, receive, diary, recorder)

    def _listen(self) -> None:
        pipes = {job.pipe: n for n, job in self.jobs.items()}
        for pipe in wait(list(pipes), timeout=1.0):
            n = pipes[pipe]  # type: ignore[index]
            job = self.jobs[n]
            job.heard = time.monotonic()
            try:
                kind, payload = job.pipe.recv()
            except EOFError:
                self._died(n, job)
                continue
            if kind == "progress":
                self.listener.progress(job.subject, *payload)
            elif kind == "found":
                job.found.append(payload)
                self.listener.found(payload)
            elif kind == "usage":
                raise UsageError(payload)
            else:
                job.process.join()
                del self.jobs[n]
                self._finish(n, payload)
        for n, job in list(self.jobs.items()):
            if time.monotonic() - job.heard > patience(job.subject) + _SILENCE_SECONDS:
                job.process.kill()
                self._died(n, job, hangs=True)

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
        result = unfinished(job.subject, self.settings, why, job.found)
        if job.diary.is_file():
            trace = Trace.from_json(loads(job.diary.read_text(encoding="utf-8")))
            finding = Finding("completes", HANGS if hangs else "crash", None, f"the subject {how}")
            divergence = tell(job.subject, trace, finding, evaluate=False)
            result.tallies.setdefault("completes", Tally("completes")).divergences.append(divergence)
            self.listener.found(divergence)
            job.recorder.divergence(divergence)
        job.recorder.failed(why)
        self._finish(n, result)

    def _finish(self, n: int, result: Result) -> None:
        self.results[n] = result
        self.listener.finished(result)


def unfinished(subject: Subject, settings: Settings, why: str, found: Sequence[Divergence]) -> Result:
    """The result of a subject whose campaign did not end: unknown, or failed by what it had found."""
    result = Result(subject.name, subject.spec.name, {c: Tally(c) for c in settings.checks}, error=why)
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
    played = []
    warm_up()
    for entry in ledger.LEDGER.values():
        subject = entry.subject
        # A costly subject is played only where it was asked for.
        wanted = subject.name in names if subject.cost > _CHEAP else subject.spec.name in checked
        if not wanted or subject.unsupported or entry.saved.check not in settings.checks or entry.seen_here is False:
            continue
        played.append(_replay(entry, subject))
        if stream is not None:
            stream.write("ledger", played[-1].to_json())
    return played


def _replay(entry: Entry, subject: Subject) -> Replayed:
    told = in_child(lambda: ledger.shows(subject, entry), patience(subject) + _SILENCE_SECONDS)
    if entry.seen_here is None:
        ledger.PLAYED[entry.name] = not told
    carried = entry.seen_here is None or (bool(told) and not evidence.same_processor())
    return Replayed(entry, not told, told, carried)


def in_child(play: Callable[[], str], seconds: float) -> str:
    """What ``play`` returns in a process of its own, or what became of that process."""
    if not forks():
        return play()
    context = multiprocessing.get_context("fork")
    receive, send = multiprocessing.Pipe(duplex=False)
    process = context.Process(target=lambda: send.send(play()), daemon=True)
    process.start()
    send.close()
    try:
        return str(receive.recv()) if receive.poll(seconds) else f"its life still plays after {seconds:.0f} s"
    except EOFError:
        process.join()
        return f"its life ends the process ({end_of(process.exitcode or 0)})"
    finally:
        process.kill()
        process.join()


def _work_apart(name: str, settings: Settings, pipe: Connection, diary: Path | None, recorder: Recorder) -> None:
    """In a worker that has nothing of its parent's."""
    (subject,) = resolve(name)
    warm_up()
    gc.freeze()
    try:
        _work(subject, settings, pipe, diary, recorder)
    finally:
        gc.unfreeze()


def _work(subject: Subject, settings: Settings, pipe: Connection, diary: Path | None, recorder: Recorder) -> None:
    """In the worker: run the campaign and send what happens."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and decides
    gc.set_threshold(50_000)  # traces leave little garbage that is not freed at once
    told = time.monotonic()

    def progress(done: int, planned: int) -> None:
        nonlocal told
        if time.monotonic() - told > _HEARTBEAT_SECONDS:
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
        pipe.send(("usage", str(error)))
    pipe.close()
