"""Steer the search: of a few lives drawn, play the one with the largest share of pairs of features never played together.

A fault shows where two or three facts meet: an option and another, an event and a layout, a late gradient and a dtype. Lives drawn
blindly play frequent pairs again and again. The share, not the number, is compared, so that long lives have less of an advantage:
a number would choose lives that cost more to play. Once all pairs were played, every share is 0 and the first life drawn is taken.

Features are read off the dataclasses of a trace, so that a new kind of event, or a new field, is covered as soon as it is there.
Values drawn afresh for each life say nothing if each is a feature of its own: seeds are left out, and shapes and tensor contents
stand in rough classes. Any other field is taken at its word, and should have few values.

What was tried and does not pay: mutants of earlier lives that had new features, or came closer to a budget (log r), and
Hypothesis's ``target`` on log r. They resemble lives already played; and a fault's condition is met or not, with nothing on
the way to climb.
"""

from __future__ import annotations

import functools
import itertools
import math
from bisect import bisect
from collections.abc import Iterable, Sized
from dataclasses import fields, is_dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values

#: Where something stands, and what.
Feature = tuple[Any, ...]

#: Lives drawn for each that is played. With more, faults are found little sooner, and drawing costs more than it saves.
CANDIDATES = 3

#: Where the number of elements reaches these, a vector register is filled, or another one begun.
_SIZES = (1, 2, 4, 8, 16, 32, 64)
#: Magnitudes within as many binades are one feature.
_BINADES = 16
_SCALARS = frozenset({str, int, bool, float, type(None)})
#: What came later and is so in nearly every life: a feature of all would change the shares, and with them what a seed has always drawn.
_USUAL = frozenset({("Trace.flags", "of", 0, False), ("Trace.spelling", "plain")})
#: Longer sequences are as long as this.
_LONG = 4


def features(trace: Trace) -> set[Feature]:
    """What a life is made of: ``("Parameter.layout", "sliced")``, ``("Group.options.momentum", 0.9)``, ``("Reload", "Step")``, ..."""
    found: set[Feature] = set()
    _collect(trace, "", found)
    found -= _USUAL
    return found


def _collect(x: Any, where: str, found: set[Feature]) -> None:
    kind: Any = type(x)
    if kind in _SCALARS:
        found.add((where, x))
    elif kind is Values:
        found.add((where, x.recipe, _magnitude(x.high)))
    elif kind is tuple:
        _collect_sequence(x, where, found)
    elif is_dataclass(kind):
        _collect_fields(x, found)
    else:
        found.add((where, "of", _count(x)))
        for key, value in x.items():
            # A name is part of the feature, a parameter's index is not.
            _collect(value, f"{where}.{key}" if isinstance(key, str) else where, found)


def _collect_fields(x: Any, found: set[Feature]) -> None:
    of: Any = type(x)
    own, members = _fields(of)
    found.add(own)
    for name, there in members:
        value = getattr(x, name)
        kind = type(value)
        # Most are one of these two, and to ask here costs less than a call.
        if kind in _SCALARS:
            found.add((there, value))
        elif kind is Values:
            found.add((there, value.recipe, _magnitude(value.high)))
        else:
            _collect(value, there, found)


def _collect_sequence(xs: tuple[Any, ...], where: str, found: set[Feature]) -> None:
    if where.endswith(".shape"):
        found.add((where, len(xs), bisect(_SIZES, math.prod(xs))))
    elif all(isinstance(x, int) for x in xs):  # indices
        found.add((where, "of", _count(xs), len(set(xs)) < len(xs)))
    elif is_dataclass(xs[0]):
        found.add((where, "of", _count(xs)))
        # Which kind follows which.
        names = [type(x).__name__ for x in xs]
        found.update(itertools.pairwise(names))
        for x in xs:
            _collect_fields(x, found)
    else:
        found.add((where, xs))


@functools.cache
def _fields(kind: type[Any]) -> tuple[Feature, tuple[tuple[str, str], ...]]:
    """A dataclass as a feature, and its fields that are: their names, and those with the class's before them."""
    name = kind.__name__
    return (name,), tuple((f.name, f"{name}.{f.name}") for f in fields(kind) if f.name != "seed")


def _magnitude(x: float) -> int | None:
    return math.frexp(x)[1] // _BINADES if x else None


def _count(x: Sized) -> int:
    return min(len(x), _LONG)


class Coverage(NamedTuple):
    """How many features have been played, and how many pairs of two of them in one life."""

    features: int
    pairs: int


class Steering:
    """Which pairs of features have been played, and which life to play next. Nothing but the lives themselves decides."""

    def __init__(self) -> None:
        self._numbers: dict[Feature, int] = {}
        # Symmetric; a feature stands on the diagonal.
        self._played: npt.NDArray[np.bool_] = np.zeros((256, 256), np.bool_)

    def choose(self, candidates: Iterable[Trace]) -> Trace:
        """The candidate with the largest share of new pairs, the first of several. It counts as played."""
        best: tuple[float, Trace, Any] | None = None
        for trace in candidates:
            at = self._at(trace)
            played = self._played[at]
            share = 1.0 - int(np.count_nonzero(played)) / played.size
            if best is None or share > best[0]:
                best = share, trace, at
        if best is None:
            raise ValueError("no candidates")
        _, trace, at = best
        self._played[at] = True
        return trace

    def coverage(self) -> Coverage:
        """What the lives chosen so far have covered."""
        single = int(np.diagonal(self._played).sum())
        return Coverage(single, (int(self._played.sum()) - single) // 2)

    def _at(self, trace: Trace) -> Any:
        """Where all pairs of a trace's features stand. Their order depends on the process, the numbers of pairs do not."""
        numbers = [self._numbers.setdefault(f, len(self._numbers)) for f in features(trace)]
        size = len(self._played)
        if len(self._numbers) > size:
            more = max(size, len(self._numbers) - size)
            self._played = np.pad(self._played, (0, more))
        rows = np.array(numbers)
        return rows[:, None], rows


def coverage(traces: Iterable[Trace]) -> Coverage:
    """What some lives cover."""
    steering = Steering()
    for trace in traces:
        steering.choose((trace,))
    return steering.coverage()
