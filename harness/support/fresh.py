"""A clean process: it is forked before the first life, and what it does, nothing that was played before can change.

To start Python and torch anew for each question would take seconds; to fork takes milliseconds.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import torch

from stepcheck.harness.support.processes import ends_well, forks


class Fresh:
    """Does each task in a fork of the process as it was when this was made.

    Args:
        tasks: what it can be asked, by name; arguments and answers are pickled.
        wanted: whether it is to be there at all. Where it is not, as on systems without fork, every answer is ``None``.
        warm: many questions are to come.
    """

    def __init__(self, tasks: Mapping[str, Callable[..., Any]], *, wanted: bool = True, warm: bool = True) -> None:
        self.pid = 0
        if not wanted or not forks():
            return
        self.pipe, theirs = Pipe()
        with warnings.catch_warnings():
            # Python warns of threads, which torch has: the child uses none of them.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if not self.pid:
            self.pipe.close()
            try:
                _serve(theirs, tasks, warm=warm)
            finally:
                os._exit(0)
        theirs.close()

    def ask(self, name: str, *arguments: Any, seconds: float) -> Any:
        """The answer; ``None`` where there is no such process, or the task does not end in time, crashes or raises."""
        if not self.pid:
            return None
        try:
            self.pipe.send((name, arguments, seconds))
            return self.pipe.recv()
        except (EOFError, OSError):
            return None

    def close(self) -> None:
        """End the process."""
        if self.pid:
            self.pipe.close()  # the child reads the other end
            with suppress(ChildProcessError):  # somebody may have waited for it already
                os.waitpid(self.pid, 0)
            self.pid = 0


def _serve(pipe: Connection, tasks: Mapping[str, Callable[..., Any]], *, warm: bool) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and decides
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.dup2(silence, 2)
    sys.stdout = sys.stderr = io.StringIO()  # a test runner's need not be those two
    torch.set_num_threads(1)  # the parent's threads are not here
    if warm:  # the first step of any optimizer of torch imports a second's worth of modules: not once for each question
        torch.optim.SGD([torch.zeros(1, requires_grad=True)]).step()
    gc.freeze()
    while True:
        try:
            name, arguments, seconds = pipe.recv()
        except (EOFError, OSError):
            return
        child = os.fork()
        if not child:
            _answer(pipe, tasks[name], arguments)
        if not ends_well(child, seconds):
            pipe.send(None)


def _answer(pipe: Connection, task: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    status = 1
    try:
        pipe.send(task(*arguments))
        status = 0
    finally:
        os._exit(status)
