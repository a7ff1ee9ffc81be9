"""Processes that work is shared with: where there are none, it is done one piece after the other, in this one."""

from __future__ import annotations

import contextlib
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import IO, Any

#: What a process may be asked to end by, from a keyboard, a terminal that closes, or another process.
_REQUESTS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: Of ``prctl(2)``: the signal that the kernel sends to a child when its parent has ended.
_PR_SET_PDEATHSIG = 1
_WATCH_SECONDS = 1.0
#: What a container is allowed of the processor, as Linux tells it inside: microseconds, or ``max``, in a period of so many.
_CPU_MAX = Path("/sys/fs/cgroup/cpu.max")
#: Of two looks at the clock, what lies between them counts as no more than this: whoever was stopped meanwhile, or slept, did nothing.
_LOOK_SECONDS = 2.0


#: The module of JAX that knows whether it has computed something.
_JAX_BACKENDS = "jax._src.xla_bridge"
#: How often a child is looked at that is waited for.
_CHILD_SECONDS = 0.002


def ends_well(child: int, seconds: float) -> bool:
    """Whether a child of this process ends with status 0; one that is not done in time is ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status == 0
        time.sleep(_CHILD_SECONDS)
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def forks() -> bool:
    """Whether this process can be forked.

    macOS can, but system libraries may crash in the child, and a subject would be blamed for it: CPython does not fork there by itself. Nor can
    one in which JAX has computed something: its threads are not in the child, which would wait for them for ever.
    """
    jax = sys.modules.get(_JAX_BACKENDS)
    if jax is not None and jax.backends_are_initialized():
        return False
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


def cores() -> int:
    """How many processes can run at a time here: a batch system or a container may allow fewer than there are cores."""
    if hasattr(os, "process_cpu_count"):  # since Python 3.13
        allowed = os.process_cpu_count() or 1
    elif hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
    else:
        allowed = os.cpu_count() or 1
    return max(min(allowed, math.ceil(_quota(_CPU_MAX))), 1)


def _quota(file: Path) -> float:
    """The share of cores that a control group of Linux may use; infinite where none says so."""
    try:
        most, _, period = file.read_text(encoding="ascii").partition(" ")
        return int(most) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such file; "max"
        return sys.maxsize


def end_of(exitcode: int) -> str:
    """How a process ended, in words: the name of the signal that killed it, or its exit status."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:  # a realtime signal has no name
        return f"signal {-exitcode}"


def begin_child(parent: int) -> None:
    """What a child does first: it ends with its parent, leaves requests to end to it, and keeps what a subject prints to itself.

    Args:
        parent: the process that it was started by.
    """
    for request in _REQUESTS:
        # What is ignored stays so in programs that a subject starts; what is handled is as usual there.
        signal.signal(request, signal.SIG_IGN if request == signal.SIGINT else _left_to_parent)
    end_with(parent)
    silence()


def _left_to_parent(_signal: int, _frame: FrameType | None) -> None:
    """It hears the request as well, and ends its children."""


def end_with(parent: int) -> None:
    """See to it that this process does not outlive its parent, however that ends."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:  # a subject that holds the interpreter's lock for ever holds this as well
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before it was asked for
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_WATCH_SECONDS)
    os._exit(1)


def silence() -> None:
    """From now on, what this process prints goes nowhere, whoever prints it."""
    _flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    # A test suite has put something else in their place.
    sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - for as long as the process lives


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Meanwhile, what is printed in this process goes nowhere: somebody's module says things when it is imported."""
    _flush()
    kept: list[tuple[int, int]] = []
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):  # it may be closed
            kept.append((descriptor, os.dup(descriptor)))
            os.dup2(nowhere, descriptor)
    os.close(nowhere)
    try:
        with quiet():
            yield
    finally:
        for descriptor, copy in kept:
            os.dup2(copy, descriptor)
            os.close(copy)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Meanwhile, what Python code prints goes nowhere; the descriptors stay, for who keeps a stream of its own."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,  # noqa: PTH123 - a name, not a path
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _flush() -> None:
    streams: tuple[IO[str] | None, ...] = (sys.stdout, sys.stderr)
    for stream in streams:
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()


def is_stopped(process: Any) -> bool:
    """Whether a child was stopped by a signal, and not continued yet: it is silent, and does not hang."""
    if not hasattr(os, "waitid"):
        return False
    try:
        # What is seen is left to be seen again, and an end to whoever waits for it.
        return os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOHANG | os.WNOWAIT) is not None
    except OSError:
        return False


def queued(process_id: int | None = None) -> float:
    """Seconds in which a process, by default this one, could have run and no processor was free; 0 where the system does not say."""
    try:
        waited = Path(f"/proc/{process_id or 'self'}/schedstat").read_text(encoding="ascii").split()[1]
        return int(waited) * 1e-9
    except (OSError, ValueError, IndexError):
        return 0.0


class Silence:
    """Seconds since something was heard of a child, without those in which it, or this process, was stopped, asleep or waited for a processor."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._looked = time.monotonic()
        self._queued = 0.0

    def heard(self) -> None:
        """It is there."""
        self.seconds, self._looked = 0.0, time.monotonic()

    def look(self, process: Any) -> float:
        """Nothing was heard: the seconds so far. To be asked for more often than every two seconds."""
        now, waited = time.monotonic(), queued(process.pid)
        if not is_stopped(process):
            self.seconds += max(min(now - self._looked, _LOOK_SECONDS) - (waited - self._queued), 0.0)
        self._looked, self._queued = now, waited
        return self.seconds


def end(process: Any, seconds: float = 0.0) -> None:
    """End a child that has nothing more to do; one with a thread that runs on does not end by itself."""
    process.join(seconds)
    if process.is_alive():
        process.kill()
    process.join()
