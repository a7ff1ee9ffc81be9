"""The rules of what is done element by element: see the table of :mod:`.bounded`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from stepcheck.harness.numbers import regrouping
from stepcheck.harness.numbers.bounded import (
    EXACT,
    FUNCTIONS,
    RULES,
    Bounded,
    Origin,
    Settled,
    carries,
    flushed,
    in_terms,
    once_rounded,
    pair,
    regrouped,
    size_of,
    terms_of,
    underflowing,
    value_of,
)
from stepcheck.harness.numbers.decisions import choose
from stepcheck.harness.numbers.formats import ELEMENTS, REFERENCE_ROUNDOFF, Arithmetic, Float

_WORTH_RUNS = 200  # elements of a power, from which on it pays to look for repetitions


def _all_exact(*operands: Bounded) -> Any:
    exact: Any = True
    for x in operands:
        exact = exact & (np.asarray(x.error) == 0)
    return exact


def _finite_error(x: Bounded) -> Any:
    return np.isfinite(x.error)


def _nonzero(x: Bounded) -> Any:
    return np.isfinite(x.error) & (np.abs(x.value) > x.error)


def _settled_sum(a: Bounded, b: Bounded, z: Float) -> Settled:
    def settled() -> Any:
        # A determined infinity or NaN swallows any bounded other operand. An infinity made of two finite float64 numbers
        # is the reference's own overflow: not determined.
        swallowed = (carries(a) & _finite_error(b)) | (carries(b) & _finite_error(a))
        # The difference of two infinities is NaN, unless one is a product that overflowed: contracted with the sum (FMA), it
        # never did.
        contracted = "multiply" in (a.origin, b.origin)
        return swallowed & ~(contracted & np.isnan(z) & ~np.isnan(a.value) & ~np.isnan(b.value))

    return settled


def _settled_product(a: Bounded, b: Bounded) -> Settled:
    def settled() -> Any:
        of_a, of_b = carries(a), carries(b)
        nan_in = (np.isnan(a.value) & of_a) | (np.isnan(b.value) & of_b)
        infinite = (of_a & (_nonzero(b) | of_b)) | (of_b & (_nonzero(a) | of_a))
        return nan_in | infinite | ((of_a | of_b) & _all_exact(a, b))

    return settled


def _settled_quotient(a: Bounded, b: Bounded) -> Settled:
    def settled() -> Any:
        of_a, of_b = carries(a), carries(b)
        nan_in = (np.isnan(a.value) & of_a) | (np.isnan(b.value) & of_b)
        by_zero = (b.value == 0) & (np.asarray(b.error) == 0) & (_nonzero(a) | of_a | _all_exact(a))
        return nan_in | by_zero | (of_a & (_nonzero(b) | of_b))

    return settled


def _add(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = pair(a, b, elements=True)
    result = _sum("add", a, b, a.value + b.value, arithmetic)
    result.origin = (a.value, b.value)
    return result


def _subtract(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = pair(a, b, elements=True)
    return _sum("subtract", a, b, a.value - b.value, arithmetic)


def _sum(name: str, a: Bounded, b: Bounded, z: Float, arithmetic: Arithmetic) -> Bounded:
    if arithmetic.level < ELEMENTS and not np.count_nonzero(a.error) and not np.count_nonzero(b.error):
        # Counting steps is exact; a power with an exponent in doubt would be unbounded.
        sign = 1.0 if name == "add" else -1.0
        exact = ((z - a.value) * sign == b.value) & (z - sign * b.value == a.value)
        if exact.all() and arithmetic.format.represents(np.asarray(z)).all():
            counted = Bounded(z, EXACT, arithmetic)
            if arithmetic.regroups:
                counted.terms = replace(regrouping.scalar(z), partial=terms_of(a).partial + terms_of(b).partial)
            return counted
    if arithmetic.inner is not None:
        a, b = _as_addend(a), _as_addend(b)
    p = a.error + b.error
    terms, cost = regrouping.added(terms_of(a), terms_of(b), z) if arithmetic.regroups else (None, None)
    return regrouped(once_rounded(name, z, p, 1.0, arithmetic, _settled_sum(a, b, z), cost), terms)


def _as_addend(x: Bounded) -> Bounded:
    if type(x.addend) is float:
        return x
    return in_terms(Bounded(x.value, x.error + x.addend, x.arithmetic, x.origin), x)


def _multiply(a: Any, b: Any) -> Bounded:
    scalar = a if _is_scalar(a) else b if _is_scalar(b) else None
    if type(scalar) is float and abs(scalar) == 1.0:
        unscaled: Bounded = flushed(b if a is scalar else a)
        return unscaled if scalar > 0 else -unscaled
    a, b, arithmetic = pair(a, b)
    terms, cost = regrouping.multiplied(terms_of(a), terms_of(b)) if arithmetic.regroups else (None, None)
    p: Float = EXACT
    if type(b.error) is not float:
        p = size_of(a) * b.error
    if type(a.error) is not float:
        p = p + a.error * (size_of(b) if type(b.error) is float else size_of(b) + b.error)
    product = once_rounded("multiply", a.value * b.value, p, 1.0, arithmetic, _settled_product(a, b), cost)
    result = underflowing(regrouped(product, terms))
    if arithmetic.inner is not None and scalar is not None:
        result.addend = _as_factor(np.abs(value_of(scalar)), a, b, result)
    return result


def _is_scalar(x: Any) -> bool:
    return not isinstance(x, Bounded) or x.arithmetic.level < ELEMENTS


def _as_factor(c: Float, a: Bounded, b: Bounded, product: Bounded) -> Float:
    """What it costs beside that the scalar of a product, of size ``c``, is rounded to a narrow format.

    torch.add(y, x, alpha=c) does so, which torch.mul(x, c) does not.
    """
    narrow = product.arithmetic.format
    inexact = ~narrow.represents(np.asarray(c, np.float64))
    maybe_nothing = (c > 0) & (c <= 2 * narrow.underflow)
    if not np.count_nonzero(inexact | maybe_nothing):
        return EXACT
    size = np.abs(product.value) + product.error
    tiny = narrow.underflow * (np.abs(a.value) + np.abs(b.value) + a.error + b.error)
    addend = np.where(inexact, (narrow.unit_roundoff + REFERENCE_ROUNDOFF) * size + tiny, 0.0)
    # A scalar that is rounded to 0 makes NaN of an infinity.
    finite = np.isfinite(product.value)
    vanishes = maybe_nothing & ~finite
    addend = np.where(vanishes | np.isnan(addend), np.inf, addend)
    return np.where(finite | vanishes, addend, 0.0)


def _divide(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = pair(a, b)
    z = a.value / b.value
    terms, cost = None, None
    if arithmetic.regroups:
        terms, cost = regrouping.divided(terms_of(a), terms_of(b), np.abs(b.value))
    p = a.error
    if type(b.error) is not float:
        gap = np.abs(b.value) - b.error
        p = np.where(gap > 0, p / gap + (np.abs(z) if terms is None else terms.size) * (b.error / gap), np.inf)
        infinite = np.isinf(b.value)
        if np.count_nonzero(infinite):
            p = np.where(infinite & (np.asarray(b.error) == 0) & np.isfinite(a.error), 0.0, p)
    elif type(a.error) is not float:
        p = p / np.abs(b.value)
    if arithmetic.division > 1:
        p = p + _reciprocal_error(a, b, arithmetic)
    quotient = once_rounded("divide", z, p, arithmetic.division, arithmetic, _settled_quotient(a, b), cost)
    return underflowing(regrouped(quotient, terms))


def _reciprocal_error(a: Bounded, b: Bounded, arithmetic: Arithmetic) -> Float:
    """What ``a * (1 / b)`` costs beyond a rounding: the reciprocal may be subnormal, or beyond the format where a / b is not."""
    within = arithmetic.format
    tiny = within.smallest if arithmetic.flushes else within.underflow
    subnormal = (np.abs(a.value) + a.error) * tiny
    overflows = np.abs(b.value) - b.error < 1 / within.largest
    if not np.count_nonzero(overflows):
        return subnormal
    return np.where(overflows & ~((b.value == 0) & (np.asarray(b.error) == 0)), np.inf, subnormal)


def _sqrt(a: Bounded) -> Bounded:
    a = flushed(a)
    z = np.sqrt(a.value)
    p: Float = EXACT
    if type(a.error) is not float:
        low = a.value - a.error
        p = np.maximum(np.sqrt(a.value + a.error) - z, z - np.sqrt(np.maximum(low, 0.0)))
        if _may_be_difference(a.origin):
            # Its sign is not determined, so an implementation may find NaN.
            p = np.where((low < 0) & (a.value + a.error >= 0), np.inf, p)
    return once_rounded(
        "sqrt", z, p, a.arithmetic.square_root, a.arithmetic, lambda: carries(a) | (a.value + a.error < 0)
    )


def _may_be_difference(origin: Origin) -> bool:
    if isinstance(origin, tuple):
        return any(np.count_nonzero(np.signbit(summand)) for summand in origin)
    return origin == "subtract"


def _power(base: Any, exponent: Any) -> Bounded:
    base, exponent, arithmetic = pair(base, exponent)
    # Numbers kept for each parameter stand once for each of its elements, and C's pow takes long: once for each run is enough.
    lengths, operands = _runs(base.value, base.error, exponent.value, exponent.error)
    z, p = _power_with_error(*operands)
    if lengths is not None:
        z, p = np.repeat(z, lengths), p if type(p) is float else np.repeat(p, lengths)
    # The reference's own is C's, which glibc states to be off by less than one ulp: two roundings.
    roundings = arithmetic.power - (arithmetic.power - 2.0) * REFERENCE_ROUNDOFF / arithmetic.unit
    return once_rounded("power", z, p, roundings, arithmetic, lambda: _all_exact(base, exponent))


def _power_with_error(base: Float, base_error: Float, exponent: Float, exponent_error: Float) -> tuple[Float, Float]:
    z = base**exponent
    p: Float = EXACT
    if type(base_error) is not float or type(exponent_error) is not float:
        # Monotonic in the base and in the exponent, so the furthest is a corner.
        for b in (np.maximum(base - base_error, 0.0), base + base_error):
            for x in (exponent - exponent_error, exponent + exponent_error):
                p = np.maximum(p, np.abs(b**x - z))
    return z, p


def _runs(*arrays: Float) -> tuple[Any, tuple[Float, ...]]:
    """The lengths of the runs in which no array changes, and the numbers that they start with; no lengths where it pays not."""
    size = max(map(np.size, arrays))
    if size < _WORTH_RUNS or any(np.shape(x) not in ((), (size,)) for x in arrays):
        return None, arrays
    starting = np.ones(size, bool)
    starting[1:] = functools.reduce(np.logical_or, [x[1:] != x[:-1] for x in arrays if np.ndim(x)])
    starts = np.flatnonzero(starting)
    lengths = np.append(starts[1:], size) - starts
    return lengths, tuple(x[starts] if np.ndim(x) else x for x in arrays)


def _abs(a: Bounded) -> Bounded:
    a = flushed(a)
    return in_terms(Bounded(np.abs(a.value), a.error, a.arithmetic), a)


def _maximum(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = pair(a, b, elements=True)
    return _taken(np.maximum(a.value, b.value), a, b, a.value > b.value, arithmetic)


def _minimum(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = pair(a, b, elements=True)
    return _taken(np.minimum(a.value, b.value), a, b, a.value < b.value, arithmetic)


def _taken(z: Float, a: Bounded, b: Bounded, first: Any, arithmetic: Arithmetic) -> Bounded:
    """One of two operands; where their errors overlap, either."""
    apart = np.abs(a.value - b.value) > a.error + b.error
    error = np.where(apart, np.where(first, a.error, b.error), np.maximum(a.error, b.error))
    return in_terms(Bounded(z, error, arithmetic), a, b)


def _where(condition: Any, a: Any, b: Any) -> Bounded:
    a, b, arithmetic = pair(a, b, elements=True, operation=False)
    taken = Bounded(np.where(condition, a.value, b.value), np.where(condition, a.error, b.error), arithmetic)
    return in_terms(taken, a, b)


def _sign(a: Bounded) -> Any:
    """-1, 0 or 1 as a plain array: a decision, see outcomes(). NaN has the sign NaN (as in NumPy) or 0 (as in torch)."""
    error = np.asarray(flushed(a).error)
    sign = np.sign(a.value)
    open_ = (error > 0) & (np.abs(a.value) <= error) | np.isnan(sign)
    if not open_.any():
        return sign
    # Of three outcomes, two beside its own: zero and the opposite, or both signs. What is NaN by the values alone, as an infinity times a
    # number that may be zero or not, may have any sign.
    unknown = np.isnan(sign) & (error > 0)
    chosen = choose(4 if unknown.any() else 3)
    other = (
        np.where(sign == 0, 1.0, 0.0),
        np.where((sign == 0) | unknown, -1.0, -sign),
        np.where(unknown, 1.0, sign),
    )
    return sign if chosen == 0 else np.where(open_, other[chosen - 1], sign)


def _decide(a: Any, b: Any, relation: Callable[[Any, Any], Any]) -> Any:
    x, y = value_of(a), value_of(b)
    result = relation(x, y)
    error = _error(a) + _error(b)
    if type(error) is float and error == 0.0:
        return result
    with np.errstate(all="ignore"):
        # Where all numbers in reach compare alike there is nothing to decide; an equality is open between two outcomes.
        open_ = (error != 0) & ~(np.abs(x - y) > error)
    if not np.any(open_) or choose(2) == 0:
        return result
    return np.where(open_, ~np.asarray(result), result)[()]


def _error(x: Any) -> Any:
    return flushed(x).error if isinstance(x, Bounded) else 0.0


RULES.update(
    {
        np.add: _add,
        np.subtract: _subtract,
        np.multiply: _multiply,
        np.divide: _divide,
        np.power: _power,
        np.negative: lambda a: -a,
        np.sqrt: _sqrt,
        np.abs: _abs,
        np.sign: _sign,
        np.maximum: _maximum,
        np.minimum: _minimum,
        np.less: lambda a, b: _decide(a, b, lambda x, y: x < y),
        np.greater: lambda a, b: _decide(a, b, lambda x, y: x > y),
        np.less_equal: lambda a, b: _decide(a, b, lambda x, y: x <= y),
        np.greater_equal: lambda a, b: _decide(a, b, lambda x, y: x >= y),
        np.equal: lambda a, b: _decide(a, b, lambda x, y: x == y),
        np.not_equal: lambda a, b: _decide(a, b, lambda x, y: x != y),
    }
)
FUNCTIONS[np.where] = _where
