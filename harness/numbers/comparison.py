"""One field of one step, as the subject has it and as the reference predicts it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.formats import FORMATS

#: Classes of r in a histogram: exactly 0; above each edge up to the next; above 1.
RATIO_EDGES = tuple(n / 20 for n in range(21))
RATIO_CLASSES = len(RATIO_EDGES) + 1

Array = npt.NDArray[np.float64]

#: Steps that part by less than this share of what they change are told apart by nothing but rounding.
_SHARE = 2.0**-10
#: And by fewer roundings of the parameter than this.
_ROUNDINGS = 16
#: Covers the rounding of the budgets themselves, a few dozen float64 operations of relative error 2^-53 each.
_BUDGET_ROUNDING = 1 + 2.0**-45


@dataclass
class Comparison:
    """A field to be compared element by element.

    Attributes:
        field: ``parameter``, the name of a buffer, or what else a step is judged by ("evaluation").
        actual: what the subject has, flat; float64.
        predicted: what the reference predicts, of the same length, with its error.
        shape: the shape that an element's index is told in; ``()`` for a single number.
        problem: why the field cannot be compared at all, or nothing.
        center: where ``actual`` is a distance: what it is the distance from, flat.
    """

    field: str
    actual: Array
    predicted: Bounded
    shape: tuple[int, ...]
    problem: str = ""
    center: Array | None = None


def reals(x: Any) -> Array:
    """``x`` flat, as float64; a complex number as real and imaginary part."""
    if type(x) is float:
        return np.array([x])
    array = np.asarray(x)
    if array.dtype.kind == "c":
        array = np.ascontiguousarray(array).reshape(-1).view(array.real.dtype)
    return array.reshape(-1).astype(np.float64)


def ratios(actual: Array, expected: Bounded) -> Array:
    """Elementwise distance of ``actual`` from ``expected`` in budgets: 0 where undetermined, infinite where the class is wrong."""
    budget = np.asarray(expected.error) * _BUDGET_ROUNDING
    with np.errstate(all="ignore"):
        r: Array = np.abs(actual - expected.value) / budget
    # Of ordinary numbers that is all; argmax finds NaN, if there is any.
    if r.size and math.isnan(r.item(r.argmax())):
        same = (actual == expected.value) | (np.isnan(actual) & np.isnan(expected.value))
        undetermined = np.isinf(budget) | np.isnan(budget)  # of a NaN nothing is known
        r = np.where(np.isnan(r), np.where(same | undetermined, 0.0, np.inf), r)
    return r


def rounding(before: Array, got: Array, expected: Array, dtype: str) -> Array:
    """What another length of vectors may cost in one step, for each element of a parameter."""
    number = FORMATS[dtype]
    with np.errstate(all="ignore"):
        moved = np.maximum(np.abs(got - before), np.abs(expected - before))
        allowed = _SHARE * moved + _ROUNDINGS * number.unit_roundoff * (np.abs(before) + np.abs(got)) + number.underflow
    return np.where(np.isfinite(allowed), allowed, np.inf)
