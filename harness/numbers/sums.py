"""The rules of sums. A sum of n terms in any order is off by at most ((1 + u)^(n - 1) - 1) sum(abs(x)): Higham, section 4.2."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from stepcheck.harness.numbers.audit import audited
from stepcheck.harness.numbers.bounded import FUNCTIONS, Bounded, carries, flushed, once_rounded, size_of
from stepcheck.harness.numbers.formats import Arithmetic, Float


def _length(shape: tuple[int, ...], axis: int | None) -> int:
    return math.prod(shape) if axis is None else shape[axis]


def _reduce(a: Bounded, axis: int | None = None, keepdims: bool = False, **_: Any) -> Bounded:
    z = np.sum(a.value, axis=axis, keepdims=keepdims)
    error = np.sum(np.broadcast_to(a.error, np.shape(a.value)), axis=axis, keepdims=keepdims)
    size = np.sum(np.broadcast_to(size_of(a), np.shape(a.value)), axis=axis, keepdims=keepdims) + error
    return _accumulated("sum", z, error, size, _length(np.shape(a.value), axis), a.arithmetic)


def _accumulated(name: str, z: Float, p: Float, size: Float, terms: int, arithmetic: Arithmetic) -> Bounded:
    """A sum whose terms, of absolute sum ``size``, bring the error ``p``; its result is then rounded to the format."""
    within = arithmetic.within
    growth = math.expm1(max(terms - 1, 0) * math.log1p(within.unit)) if within.unit < 1 else math.inf
    # Each operand and each partial sum may be taken for zero.
    lost = 2 * terms * within.format.smallest * np.sign(size) if within.flushes else 0.0
    error = p + audited(name, growth * size + lost)
    # Where a partial sum may leave the format, some orders overflow and others do not.
    error = np.where(size + error <= within.format.largest, error, np.inf)
    result = Bounded(z, error, within, name)
    if arithmetic.inner is None:
        return result
    return once_rounded("store", z, error, 1.0, arithmetic, lambda: carries(result))


def _mean(a: Bounded, axis: int | None = None, keepdims: bool = False, **_: Any) -> Bounded:
    def mean(x: Bounded) -> Bounded:
        return _reduce(x, axis, keepdims) / float(_length(np.shape(x.value), axis))

    return a.as_one_operation(mean)


def _sum_of_squares(a: Bounded, axis: int | None) -> Bounded:
    return a.as_one_operation(lambda x: _products(x, x, axis, keepdims=True))


def _dot(a: Bounded, b: Bounded) -> Bounded:
    return a.as_one_operation(lambda x, y: _products(x, y, None, keepdims=False), b)


def _products(a: Bounded, b: Bounded, axis: int | None, *, keepdims: bool) -> Bounded:
    arithmetic = a.arithmetic
    x, y = flushed(a), flushed(b)
    z = a.value * b.value
    sizes = np.abs(z)
    p = np.abs(x.value) * y.error + x.error * (np.abs(y.value) + y.error)
    tiny = arithmetic.format.smallest if arithmetic.flushes else arithmetic.format.underflow
    # A product of two numbers that are not zero may be zero, in the reference as well.
    p = p + arithmetic.unit * (sizes + p) + tiny * (((x.value != 0) & (y.value != 0)) | (p > 0))
    p = np.broadcast_to(p, z.shape)
    total, size = np.sum(p, axis=axis, keepdims=keepdims), np.sum(sizes + p, axis=axis, keepdims=keepdims)
    sum_ = np.sum(z, axis=axis, keepdims=keepdims)
    name = "sum of products"
    result = _accumulated(name, sum_, audited(name, total), size, _length(z.shape, axis), arithmetic)
    if a is b and not np.all(np.isfinite(sum_)):
        # No square takes an infinity back; only another NaN, perhaps, is left open.
        carried = np.any(carries(a) & np.ones(z.shape, bool), axis=axis, keepdims=keepdims)
        sure = np.all(np.isfinite(np.broadcast_to(a.error, z.shape)), axis=axis, keepdims=keepdims)
        result.error = np.where(carried & (sure | np.isnan(sum_)), 0.0, result.error)
    return result


def _largest(a: Bounded, **_: Any) -> Bounded:
    """The largest element: its error is that of the largest upper end and of the largest lower end."""
    error = np.broadcast_to(a.error, np.shape(a.value))
    z = np.max(a.value)
    high, low = np.max(a.value + error), np.max(a.value - error)
    spread = np.maximum(high - z, z - low)
    return Bounded(z, np.where(np.isnan(spread), np.where(np.isnan(z), 0.0, np.inf), spread), a.arithmetic)


FUNCTIONS.update({np.sum: _reduce, np.mean: _mean, np.max: _largest, np.dot: _dot, "sum of squares": _sum_of_squares})
