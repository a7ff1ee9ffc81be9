"""Goes through the plan: whatever becomes of a task, the next one is run, and a page tells of all of them."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from stepcheck.harness.cuda_session import process
from stepcheck.harness.cuda_session.folder import Folder
from stepcheck.harness.cuda_session.plan import Place, Task

SUCCEEDED, FAILED, UNKNOWN = "succeeded", "failed", "unknown"
ENDED, STOPPED, RUNNING = "ended", "stopped", "running"
MISSING, NOT_REACHED = "not run", "not reached"
#: Seconds at the end of a session for the last task to be ended in, and for what is written and removed after it.
RESERVE = process.GRACE + 10.0
#: The exit status of commands that found something, and of those that could not tell.
_DIVERGES, _UNKNOWN = 1, 3


@dataclass(frozen=True)
class Budget:
    """The time of a session.

    Attributes:
        seconds: all of it.
        began: when, by ``clock``.
    """

    seconds: float
    began: float
    clock: Callable[[], float] = time.monotonic

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return self.clock() - self.began

    def share(self, task: Task) -> float:
        """Seconds that a task has if it begins now; 0 where there is not enough time left for it.

        Those before it may have used up its share. It then takes the least that it needs from those after it, which are worth less.
        """
        left = self.seconds - RESERVE - self.elapsed
        return 0.0 if left < task.least else max(task.until * (self.seconds - RESERVE) - self.elapsed, task.least)


@dataclass(frozen=True)
class Outcome:
    """What became of a task.

    Attributes:
        kind: one of the words above.
        message: the same, and why.
        last_line: of what it printed.
    """

    task: Task
    kind: str
    message: str
    seconds: float = 0.0
    last_line: str = ""


def outcome(task: Task, status: int | None, seconds: float, last_line: str = "") -> Outcome:
    """Of a task that was run; ``status`` is ``None`` where its time was up."""
    if status is None:
        return Outcome(task, ENDED, f"ended after {seconds:.0f} s: its time was up", seconds, last_line)
    if status == _UNKNOWN:
        return Outcome(task, UNKNOWN, f"unknown, exit status {status}", seconds, last_line)
    if status:
        return Outcome(task, FAILED, f"failed, exit status {status}", seconds, last_line)
    return Outcome(task, SUCCEEDED, SUCCEEDED, seconds, last_line)


#: Makes the page of what became of the tasks so far.
Page = Callable[[Sequence[Outcome]], str]


class Session:
    """One session.

    Args:
        place: where it runs.
        todo: the tasks, in order.
        folder: what it writes to.
        budget: the time that it has.
        page: makes the summary.
    """

    def __init__(self, place: Place, todo: Sequence[Task], folder: Folder, budget: Budget, page: Page) -> None:
        self.place, self.todo, self.folder, self.budget, self.page = place, todo, folder, budget, page
        self.outcomes: list[Outcome] = []

    def run(self) -> list[Outcome]:
        """Run each task that there is time for. Where the session is stopped, the outcomes say so."""
        self.folder.environment(self.place.about)
        try:
            for task in self.todo:
                self.outcomes.append(self._one(task))
                print(f"{task.name}: {self.outcomes[-1].message}", flush=True)  # noqa: T201 - the session's own output
        except KeyboardInterrupt:
            for task in self.todo[len(self.outcomes) :][:1]:
                self.outcomes.append(Outcome(task, STOPPED, "ended: the session was stopped"))
        self._write()
        return self.all_outcomes()

    def all_outcomes(self, running: Task | None = None) -> list[Outcome]:
        """Of every task of the plan, those too that were not reached."""
        rest = self.todo[len(self.outcomes) :]
        stopped = any(o.kind == STOPPED for o in self.outcomes)
        why = (
            "the session was stopped"
            if stopped
            else "time was up"
            if running is None
            else "the session had not come to it"
        )
        return [
            *self.outcomes,
            *(
                Outcome(t, RUNNING, "running when this was written") if t is running
                else Outcome(t, NOT_REACHED, f"not reached: {why}")
                for t in rest
            ),
        ]  # fmt: skip

    def _one(self, task: Task) -> Outcome:
        if task.missing:
            return Outcome(task, MISSING, f"not run: {task.missing}")
        seconds = self.budget.share(task)
        if not seconds:
            return Outcome(task, NOT_REACHED, "not reached: time was up")
        self._write(task)
        command = task.command(seconds)
        self.folder.begin(command)
        start = self.budget.clock()
        status = process.run(
            command, seconds, self.folder.hear, lambda: self._take_in(task), task.environment, self.place.scratch
        )
        self._read_environment()
        return outcome(task, status, self.budget.clock() - start, self.folder.last_line)

    def _take_in(self, task: Task) -> None:
        self.folder.take_in(task.name)
        self.folder.archive()

    def _read_environment(self) -> None:
        """What the first task found out about the GPU, once it is there."""
        if self.place.environment_file.is_file():
            self.place.about.update(json.loads(self.place.environment_file.read_text(encoding="utf-8")))
            self.place.environment_file.unlink()
            self.folder.environment(self.place.about)

    def _write(self, running: Task | None = None) -> None:
        outcomes = self.all_outcomes(running)
        try:
            text = self.page(outcomes)
        except Exception:  # noqa: BLE001 - time on a GPU is dear: a page that cannot be made does not end the session
            self.folder.hear(traceback.format_exc())
            text = "".join(f"- {o.task.name}: {o.message}\n" for o in outcomes)
        self.folder.summary(text)
