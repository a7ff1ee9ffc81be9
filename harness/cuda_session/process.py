"""A command that is ended, with all that it started, when its time is up."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO

#: Seconds between two looks.
_LOOK = 0.2
#: Seconds in which an interrupted command may write down what it has.
GRACE = 5.0
#: Seconds after which a killed process is left to itself: a driver may hold it.
_GONE = 5.0
#: The exit status of a command that cannot be run, as a shell has it.
NO_SUCH_COMMAND = 127


def run(
    command: Sequence[str],
    seconds: float,
    hear: Callable[[str], None],
    meanwhile: Callable[[], None] = lambda: None,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> int | None:
    """The exit status of a command, or ``None`` where it was ended because the seconds were over.

    Args:
        hear: called with each line of its output, of both kinds, from a thread.
        meanwhile: called now and then while it runs, and once after its end.
    """
    deadline = time.monotonic() + seconds
    try:
        process = subprocess.Popen(  # noqa: S603 - commands of this package
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            encoding="utf-8", errors="replace", cwd=cwd, env={**os.environ, **(environment or {})}, process_group=0,
        )  # fmt: skip
    except OSError as error:
        hear(f"{error}\n")
        return NO_SUCH_COMMAND
    assert process.stdout is not None
    listener = threading.Thread(target=_listen, args=(process.stdout, hear), daemon=True)
    listener.start()
    late = False
    try:
        while not (late or _ended(process, _LOOK)):
            meanwhile()
            late = time.monotonic() > deadline
    finally:
        _end(process)
        listener.join(_GONE)
        if not listener.is_alive():  # somebody who left the group may hold the other end
            process.stdout.close()
        meanwhile()
    return None if late else process.returncode


def _listen(output: IO[str], hear: Callable[[str], None]) -> None:
    for line in output:
        hear(line)


def _ended(process: subprocess.Popen[str], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[str]) -> None:
    """Interrupt it, so that it can write down what it has; then kill all that is left of its group."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        _ended(process, GRACE)
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    _ended(process, _GONE)
