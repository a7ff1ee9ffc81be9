"""Whether torch can be let use more threads here.

OpenMP keeps its threads from one parallel region to the next, and a process that is forked has none of them: in its first region of more than
one thread it waits for them for ever, if its parent had such a region before. To set their number is no harm, and what has few elements needs
no region; but what somebody's class does is not known before.
"""

from __future__ import annotations

import os
import warnings

import torch

from stepcheck.harness.support.processes import ends_well, forks

#: How many elements are more than torch leaves to one thread, and rows of a matrix more than its library does.
_ELEMENTS, _ROWS = 1 << 17, 256
#: How long a process may take that does nothing but that: it needs milliseconds, or never ends.
_SECONDS = 5.0


class _Known:
    """What is known of this process.

    Attributes:
        forked: it was forked since this was imported, or before.
        spreads: whether it can use several threads; none where that has to be tried.
        children: whether a child of it could; what once has kept threads keeps them, so no is no for ever.
    """

    forked = False
    spreads: bool | None = None
    children: bool | None = None


def _forked() -> None:
    _Known.forked = True
    _Known.children = _Known.spreads = False if _Known.children is False else None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def children_spread() -> bool:
    """Whether torch can use several threads in a process that is forked from this one: that is tried in one, which ends or does not."""
    if _Known.children is not False:
        _Known.children = not forks() or _ends()
    return _Known.children


def spreads() -> bool:
    """Whether torch can use several threads in this process; in one that was forked, as in a fork of its own."""
    if _Known.spreads is None:
        _Known.spreads = not _Known.forked or children_spread()
    return _Known.spreads


def _ends() -> bool:
    """Whether a fork of this process gets through regions of more than one thread."""
    with warnings.catch_warnings():  # of threads, of which the child needs none
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if not child:
        try:
            torch.set_num_threads(2)
            torch.ones(_ELEMENTS).add_(1)
            torch.ones(_ROWS, _ROWS) @ torch.ones(_ROWS, _ROWS)
        finally:
            os._exit(0)
    return ends_well(child, _SECONDS)
