"""How long a subject may be busy with a life, and what becomes of one that hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support import defaults
from stepcheck.harness.support.processes import queued

_T = TypeVar("_T")
TRACE_SECONDS = defaults.PATIENCE
#: How much longer the first life of a subject may take: a class that compiles in its first step is no hang.
FIRST_LIFE = 5
#: How often the clock rings in that time.
_RINGS = 20


class Hang(BaseException):
    """Not an Exception, so that no ``except Exception`` in somebody's step swallows it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
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
            raise Hang

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


def patience(subject: Subject, settings: Settings | None = None) -> float:
    """Seconds after which a subject hangs that is still busy with a trace."""
    asked = None if settings is None else settings.patience
    return (TRACE_SECONDS if asked is None else asked) * min(subject.cost, 9)


def first_patience(subject: Subject, settings: Settings) -> float:
    """The same, for the first life of a campaign."""
    return patience(subject, settings) * FIRST_LIFE


def within(seconds: float, do: Callable[[], _T]) -> _T | None:
    """What ``do`` returns; ``None`` where that takes longer."""
    try:
        with time_limit(seconds):
            return do()
    except Hang:
        return None
