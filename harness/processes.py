"""Processes that work is shared with: where there are none, it is done one piece after the other, in this one."""

from __future__ import annotations

import multiprocessing
import signal
import sys


def forks() -> bool:
    """Whether this process can be forked.

    macOS can, but system libraries may crash in the child, and a subject would be blamed for it: CPython does not fork there by itself.
    """
    return sys.platform != "darwin" and "fork" in multiprocessing.get_all_start_methods()


def end_of(exitcode: int) -> str:
    """How a process ended, in words: the name of the signal that killed it, or its exit status."""
    if exitcode >= 0:
        return f"exit status {exitcode}"
    try:
        return signal.Signals(-exitcode).name
    except ValueError:  # a realtime signal has no name
        return f"signal {-exitcode}"
