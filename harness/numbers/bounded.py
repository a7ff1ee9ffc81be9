"""Numbers that carry a bound of their own rounding error: running error analysis.

A :class:`Bounded` array holds, for each element, the value that the reference computes in float64 and a bound on how far a
correct implementation, working in a declared arithmetic, may end up from it. It obeys NumPy's operators and the few functions
that optimizers need, so the reference runs on it unchanged. The rules are those of Wilkinson's running error analysis (Higham,
*Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.3), with u the unit roundoff and eta the underflow unit:

====================  ===============================================================  ==========================
operation             error propagated from the operands, p                            error of the result
====================  ===============================================================  ==========================
``a + b``, ``a - b``  ea + eb                                                          p + u (abs(z) + p)
``a * b``             abs(a) eb + abs(b) ea + ea eb                                    the same, + eta
``a / b``             (ea + abs(z) eb) / (abs(b) - eb), unbounded where b may be 0     + eta, u times division [1]_
``sqrt(a)``           max(sqrt(a + ea) - z, z - sqrt(max(a - ea, 0)))                  as a sum, u times square root
``b ** t``            the largest of abs((b +- eb) ** (t +- et) - z), b positive       + eta, u times power
``max``, ``min``      that of the operand taken; of both where they overlap            p
sum of n terms        sum(e)                                                           p + u' sum(abs(x) + e) [2]_
scalar c enters       ec                                                               p + u abs(c), or p if exact
====================  ===============================================================  ==========================

.. [1] Where a quotient may be formed as ``a * (1 / b)``, plus abs(a) eta for a subnormal reciprocal; unbounded where it overflows.
.. [2] In any order (Higham, section 4.2): u' = (1 + u)^(n - 1) - 1. Undetermined where a partial sum may leave the format.

Where an arithmetic flushes subnormal numbers to zero, an operand that may be below the smallest normal number, m, may be taken for zero,
so its error grows by min(abs(a) + ea, m); and every result, that of a sum too, may become zero: e grows by min(abs(z) + e, m) where
abs(z) - e < m.

Where operations are carried out in a wider format and rounded once more to a narrow one, u is the sum of both; an operation
that combines several (``torch.addcdiv``) is rounded to the narrow one only at its end.

A sum needs no eta: it is exact wherever its result is subnormal (Hauser, *Handling floating-point exceptions in numeric
programs*, 1996, theorem 3.4.1). Nor does a product with an exact zero.

An error of infinity means *undetermined*: any value, NaN among them, is accepted there. An infinite or NaN value with error
0 means that every correct implementation arrives at it.
"""

from __future__ import annotations

import functools
import inspect
import linecache
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from types import FrameType
from typing import Any, TypeVar

import numpy as np

from stepcheck.harness.numbers import regrouping
from stepcheck.harness.numbers.formats import (
    BINARY32,
    BINARY64,
    COUNTERS,
    ELEMENTS,
    REFERENCE_ROUNDOFF,
    Arithmetic,
    Format,
)
from stepcheck.harness.numbers.regrouping import Terms

Float = Any  # a float64 array or a Python float, whichever is cheaper
Origin = str | tuple[Float, Float]
_EXACT = 0.0  # a Python float says, without looking, that there is no error at all
_SLACK = 4 * REFERENCE_ROUNDOFF
#: The name under which a point is seen at which the function was evaluated.
POINT = "point"
_WORTH_RUNS = 200  # elements of a power, from which on it pays to look for repetitions
_NEVER_UNDERFLOWS = frozenset({"add", "subtract", "sqrt"})
_NO_OPERATION = frozenset({"scalar", "store"})  # conversions, which flush nothing


class Bounded:
    """An array of values with error bounds.

    Args:
        value: float64, any shape but not empty.
        error: the bound, broadcastable to ``value``; 0.0 if exact.
        arithmetic: the arithmetic of the implementation that is bounded.
        origin: the operation that made it, because a contracted product and a difference need care; of an addition its two
            summands, whose signs are looked at only where somebody asks.
    """

    __slots__ = ("addend", "arithmetic", "error", "origin", "terms", "value")

    def __init__(self, value: Float, error: Float, arithmetic: Arithmetic, origin: Origin = "") -> None:
        self.value = value
        self.error = np.float64(error) if type(error) is float and error else error  # see _EXACT
        self.arithmetic = arithmetic
        self.origin = origin
        self.addend: Float = _EXACT  # what is to be added to the error where this becomes a term of a sum
        self.terms: Terms | None = None  # what it is fully expanded, where the arithmetic regroups

    def __repr__(self) -> str:
        return f"Bounded({self.value!r} ± {self.error!r}, {self.arithmetic.format.name})"

    def __getitem__(self, index: Any) -> Bounded:
        error = np.broadcast_to(self.error, np.shape(self.value))[index]
        return Bounded(self.value[index], error, self.arithmetic)

    @property
    def shape(self) -> tuple[int, ...]:
        return np.shape(self.value)

    # Operators. NumPy's own call __array_ufunc__, which lands in the same functions.

    def __add__(self, other: Any) -> Bounded:
        return _add(self, other)

    def __radd__(self, other: Any) -> Bounded:
        return _add(other, self)

    def __sub__(self, other: Any) -> Bounded:
        return _subtract(self, other)

    def __rsub__(self, other: Any) -> Bounded:
        return _subtract(other, self)

    def __mul__(self, other: Any) -> Bounded:
        return _multiply(self, other)

    def __rmul__(self, other: Any) -> Bounded:
        return _multiply(other, self)

    def __truediv__(self, other: Any) -> Bounded:
        return _divide(self, other)

    def __rtruediv__(self, other: Any) -> Bounded:
        return _divide(other, self)

    def __pow__(self, other: Any) -> Bounded:
        return _power(self, other)

    def __rpow__(self, other: Any) -> Bounded:
        return _power(other, self)

    def __neg__(self) -> Bounded:
        return _in_terms(Bounded(-self.value, self.error, self.arithmetic), self)

    # A comparison whose operands are within their own errors of each other may come out either way: see outcomes().

    def __lt__(self, other: Any) -> Any:
        return _decide(self, other, lambda a, b: a < b)

    def __gt__(self, other: Any) -> Any:
        return _decide(self, other, lambda a, b: a > b)

    def __le__(self, other: Any) -> Any:
        return _decide(self, other, lambda a, b: a <= b)

    def __ge__(self, other: Any) -> Any:
        return _decide(self, other, lambda a, b: a >= b)

    def __eq__(self, other: object) -> Any:
        return _decide(self, other, lambda a, b: a == b)

    def __ne__(self, other: object) -> Any:
        return _decide(self, other, lambda a, b: a != b)

    __hash__ = None  # type: ignore[assignment]  # as for any array

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rule = _RULES.get(ufunc)
        if rule is None or method != "__call__" or kwargs:
            return NotImplemented
        return rule(*inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        rule = _FUNCTIONS.get(function)
        return NotImplemented if rule is None else rule(*args, **kwargs)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Bounded:
        """The sum along an axis, its terms added in any order."""
        return _reduce(self, axis, keepdims)

    def dot(self, other: Bounded) -> Bounded:
        """The scalar product of two vectors, its terms added in any order."""
        return _dot(self, other)

    def sum_of_squares(self, axis: int | None = None) -> Bounded:
        """The sum of the squares along an axis, which is kept with length 1. Where it leaves the format, undetermined."""
        return _sum_of_squares(self, axis)

    def at_least(self, bound: Any) -> Bounded:
        """The maximum with ``bound``; of NaN, NaN or the bound (a decision, see outcomes())."""
        result, undefined = _maximum(self, bound), np.isnan(self.value)
        if undefined.any() and _choose(2):
            return _where(undefined, bound, result)
        return result

    def as_one_operation(self, function: Callable[..., Bounded], *others: Any) -> Bounded:
        """``function(self, *others)`` in the format inside an operation, its result rounded once."""
        outer = self.arithmetic
        if outer.inner is None or not outer.composites:
            return function(self, *others)
        operands = [self, *(_operand(x, outer) if _is_counter(x) else x for x in others)]
        inside = [
            _in_terms(Bounded(x.value, x.error, outer.within, x.origin), x)
            if isinstance(x, Bounded) and x.arithmetic is outer
            else x
            for x in operands
        ]
        result = function(*inside)
        rounded = _round("store", result.value, result.error, 1.0, outer, lambda: _carries(result))
        rounded.origin = result.origin
        return _in_terms(rounded, result)

    def as_stored(self, name: str) -> Bounded:
        """This number as its buffer holds it: what the subject was seen to hold, if that is within the budget."""
        observed = _seen.get()
        if observed is None or name not in observed.values:
            return self
        value = observed.values[name]
        # Numbers kept for each parameter are float32, whatever they are computed in.
        stored = self.store(BINARY32) if self.arithmetic.level == COUNTERS else self
        with np.errstate(all="ignore"):
            close = np.abs(value - stored.value) <= stored.error
        error: Float = np.where(close, 0.0, stored.error)
        error = error if error.any() else _EXACT
        return Bounded(np.where(close, value, stored.value), error, observed.arithmetic)

    def led_to_point(self, x: Bounded, d: Bounded) -> Bounded:
        """This number, within the bounds that the point seen at ``x + self d`` leaves it: those of each element, all at once.

        What the rounding of that point, by itself, may be off by is the error of ``x + t d`` for an exact ``t`` no smaller.
        """
        observed = _seen.get()
        if observed is None or POINT not in observed.values:
            return self
        point, value, error = observed.values[POINT], float(self.value), float(self.error)
        with np.errstate(all="ignore"):
            size, each = np.abs(d.value), (point - x.value) / d.value
            low, high = value - error, value + error
            longest = max(abs(low), abs(high))
            if not longest < np.inf:
                # Nothing is known of this number. Where d is known to a fourth, and the point differs from x, rounding hides
                # no more than the half of what the element says that moves furthest.
                first = size.argmax()
                known = np.broadcast_to(d.error, size.shape)[first] <= size[first] / 4
                longest = 4 * abs(float(each[first])) if known else 0.0
                low, high = -longest, longest
            # A Python number is rounded where it meets elements.
            entry = d.arithmetic.unit * longest + d.arithmetic.format.underflow
            rounding = (x + Bounded(np.float64(longest), np.float64(entry), d.arithmetic) * d).error
            # The rest is the rounding of the quotient in float64.
            off = (rounding + _SLACK * (np.abs(point) + np.abs(x.value))) / size + _SLACK * longest
            low, high = float(np.fmax.reduce(each - off, initial=low)), float(np.fmin.reduce(each + off, initial=high))
            middle, half = (low + high) / 2, (high - low) / 2 + _SLACK * longest
        if not low <= high or not half < error or (error == np.inf and not -longest < low <= high < longest):
            return self
        return Bounded(np.float64(middle), np.float64(half), self.arithmetic, self.origin)

    def enter(self, scalar: Any) -> Bounded:
        """``scalar`` rounded to the arithmetic of this array, as an operand of it is."""
        return _operand(scalar, self.arithmetic)

    def store(self, into: Format) -> Bounded:
        """The result written to a buffer of format ``into``."""
        if into.unit_roundoff <= self.arithmetic.format.unit_roundoff:
            return self
        stored = _round("store", self.value, self.error, 1.0, Arithmetic(into), lambda: _carries(self))
        errorless = np.asarray(self.error) == 0
        if np.count_nonzero(errorless):
            stored.error = np.where(errorless & into.represents(self.value), 0.0, stored.error)
        return stored

    def cover_orders(self, others: Mapping[str, Callable[[], Bounded]]) -> Bounded:
        """This number, computed in any of the orders that the arithmetic declares."""
        return self.in_declared_orders(lambda: self, others)

    def in_declared_orders(
        self, written: Callable[[], Bounded], others: Mapping[str, Callable[[], Bounded]]
    ) -> Bounded:
        """A number that this one enters into, computed in any of the orders that the arithmetic declares, and in no other."""
        declared = self.arithmetic.orders
        candidates = [other for name, other in others.items() if name in declared]
        if not candidates:
            return written()
        if "written" in declared:
            candidates.insert(0, written)
        first, *rest = [evaluate() for evaluate in candidates]
        error = first.error
        for other in rest:
            apart = np.abs(other.value - first.value)
            same = (other.value == first.value) | (np.isnan(other.value) & np.isnan(first.value))
            apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
            error = np.maximum(error, other.error + apart)
        return _in_terms(Bounded(first.value, error, self.arithmetic, first.origin), first, *rest)


def _value(x: Any) -> Any:
    return x.value if isinstance(x, Bounded) else x


def _terms(x: Bounded) -> Terms:
    if x.terms is None:
        x.terms = (regrouping.tensor if x.arithmetic.level == ELEMENTS else regrouping.scalar)(x.value)
    return x.terms


def _regrouped(result: Bounded, terms: Terms | None) -> Bounded:
    """A result with its terms: undetermined where a product of some of their factors leaves the format."""
    result.terms = terms
    largest = result.arithmetic.format.largest
    if terms is not None and result.arithmetic.level == ELEMENTS and not _top(terms.partial) <= largest:
        result.error = np.where(np.isfinite(result.value) & ~(terms.partial <= largest), np.inf, result.error)
    return result


def _underflowing(product: Bounded) -> Bounded:
    """A product or a quotient, whose factors may be multiplied in any order and lose what is near zero more than once."""
    terms = product.terms
    if terms is not None and product.arithmetic.level == ELEMENTS:
        of = product.arithmetic.format
        further = of.underflow * terms.underflows(of.smallest)
        # A product with zero loses nothing; where factors leave the format, all is undetermined as it is.
        further = np.where(np.isfinite(further) & (terms.size > 0), further, 0.0)
        if np.count_nonzero(further):
            product.error = product.error + _audited("factors near zero", further)
    return product


def _in_terms(result: Bounded, *operands: Bounded) -> Bounded:
    """A result that is one of its operands."""
    if result.arithmetic.regroups:
        result.terms = regrouping.either(*map(_terms, operands))
    return result


# Arrays here are short, so a call to NumPy costs by itself, and its reductions (max, any) several times as much as argmax and
# count_nonzero.


def _top(x: Float) -> float:
    """The largest element, NaN if there is one."""
    top: float = x if isinstance(x, float) else x.item(x.argmax())
    return top


def _operand(x: Any, arithmetic: Arithmetic, *, element: bool = False) -> Bounded:
    """``x`` as an operand in ``arithmetic``: what comes from a lower level is rounded, unless it is representable there.

    Args:
        element: ``x`` may become an element itself (a maximum), so it is rounded to the format of the elements.
    """
    if isinstance(x, Bounded):
        if x.arithmetic is arithmetic or not _enters(x.arithmetic, arithmetic):
            return x
        value, error = x.value, x.error
        if x.arithmetic.level == COUNTERS and x.arithmetic.format is not BINARY64 and not element:
            return _cast(x, arithmetic)
    else:
        value, error = np.asarray(x, np.float64), _EXACT
    operand = Bounded(value, error, arithmetic)
    if arithmetic.regroups:
        operand.terms = regrouping.scalar(value, x.terms if isinstance(x, Bounded) else None)
        if arithmetic.level == ELEMENTS:
            operand = _applied_one_by_one(operand)
    entry = arithmetic if element else arithmetic.entering
    if entry.format is BINARY64:
        return operand
    value, error = operand.value, operand.error
    if np.ndim(value) == 0 and type(error) is float:
        # Most scalars are plain numbers, and the same few all along.
        rounding = _scalar_rounding(float(value), entry)
        if rounding < np.inf:
            operand.error = _audited("scalar", np.float64(rounding)) if rounding else _EXACT
            return operand
    entered = _round("scalar", value, error, 1.0, entry, lambda: _carries(operand))
    exact = entry.format.represents(value) & (np.asarray(error) == 0)
    operand.value, operand.error = entered.value, np.where(exact, 0.0, entered.error)
    return operand


def _applied_one_by_one(scalar: Bounded) -> Bounded:
    """A scalar among elements, which its factors may meet one after the other."""
    terms = _terms(scalar)
    if terms.factors:
        further = regrouping.entering(terms, scalar.value, scalar.arithmetic.unit)
        scalar.error = scalar.error + _audited("factors one by one", further)
        scalar.terms = replace(terms, factors=0)
    return scalar


def _cast(x: Bounded, arithmetic: Arithmetic) -> Bounded:
    """A tensor of one float32 number among elements: some operations cast it to their dtype, others use it as it is."""
    cast = _operand(x, arithmetic, element=True)
    if arithmetic.level == ELEMENTS and arithmetic.inner is not None:
        overflows = np.isfinite(x.value) & ~np.isfinite(cast.value)
        cast = Bounded(np.where(overflows, x.value, cast.value), np.where(overflows, np.inf, cast.error), arithmetic)
    return cast


def _enters(a: Arithmetic, b: Arithmetic) -> bool:
    """Whether an operand of arithmetic ``a`` is converted to ``b`` when the two meet: from a lower level, or a wider counter."""
    if a.level != b.level:
        return a.level < b.level
    return a.level < ELEMENTS and a.format.unit_roundoff < b.format.unit_roundoff


@functools.lru_cache(maxsize=1 << 14)
def _scalar_rounding(value: float, arithmetic: Arithmetic) -> float:
    """What rounding an exact ordinary number to a format may cost; infinite at its edge and beyond."""
    if not abs(value) * (1 + arithmetic.unit) < arithmetic.format.largest:
        return math.inf
    if arithmetic.format.represents(np.asarray(value)):
        return 0.0
    return arithmetic.unit * abs(value) + arithmetic.format.underflow


def _pair(a: Any, b: Any, *, elements: bool = False, operation: bool = True) -> tuple[Bounded, Bounded, Arithmetic]:
    """Both operands in the arithmetic of the result: that of the higher level.

    Args:
        operation: something is computed with them, which may take them for zero.
    """
    a, b, arithmetic = _converted(a, b, elements=elements)
    if arithmetic.flushes and operation:
        return _flushed(a), _flushed(b), arithmetic
    return a, b, arithmetic


def _lost(size: Float, error: Float, within: Format) -> Float:
    """What making zero of a number costs, if it is subnormal: the number."""
    return np.where(size - error < within.smallest, np.minimum(size + error, within.smallest), 0.0)


def _flushed(x: Bounded) -> Bounded:
    """An operand that is taken for zero, if it is subnormal and its arithmetic flushes."""
    if not x.arithmetic.flushes:
        return x
    lost = _lost(np.abs(x.value), x.error, x.arithmetic.format)
    if not np.count_nonzero(lost):
        return x
    flushed = Bounded(x.value, x.error + lost, x.arithmetic, x.origin)
    flushed.addend = x.addend
    return _in_terms(flushed, x)


def _converted(a: Any, b: Any, *, elements: bool) -> tuple[Bounded, Bounded, Arithmetic]:
    if isinstance(a, Bounded) and isinstance(b, Bounded) and a.arithmetic is b.arithmetic:
        return a, b, a.arithmetic
    if isinstance(a, Bounded) and not (isinstance(b, Bounded) and _enters(a.arithmetic, b.arithmetic)):
        arithmetic = a.arithmetic
    else:
        arithmetic = b.arithmetic
    return _operand(a, arithmetic, element=elements), _operand(b, arithmetic, element=elements), arithmetic


Settled = Callable[[], Any]
"""Where a result is infinite or NaN: elementwise, whether every correct implementation arrives there."""


def _round(
    name: str,
    z: Float,
    p: Float,
    roundings: float,
    arithmetic: Arithmetic,
    settled: Settled,
    cost: Float = None,
) -> Bounded:
    """A result ``z``, rounded, of operands that bring the error ``p``.

    Args:
        cost: what ``roundings`` are roundings of, where it is not the result.
    """
    exact = type(p) is float
    size = np.abs(z)
    reach = size if exact else size + p
    if cost is not None:
        reach = cost if exact else cost + p
    local = (roundings * arithmetic.unit) * reach
    if arithmetic.flushes and name not in _NO_OPERATION:
        local = local + _lost(size, p + local, arithmetic.format)
    # What enters in a wider format may lie between the subnormal numbers of a narrow one.
    elif name not in _NEVER_UNDERFLOWS or arithmetic.inner is not None:
        # In float64 the reference's own zero may be an underflow; in a narrower format zero is zero.
        local = local + arithmetic.format.underflow * (np.sign(reach) if arithmetic.format is not BINARY64 else 1.0)
    local = _audited(name, local)
    error = local if exact else p + local
    # NaN compares false, so this is the one test that ordinary numbers pay for.
    furthest = size + error
    if not _top(furthest) <= arithmetic.format.largest:
        # A product may be contracted with the sum that follows it (FMA) and so pass the edge of the format unrounded;
        # a finite addend brings it back from no further than twice that edge.
        certain = 2.0 if name == "multiply" else 1.0
        if not arithmetic.overflow:
            certain = math.inf
        within = furthest <= arithmetic.format.largest
        z, error = _settle(z, size, error, within, arithmetic.format.largest * certain, settled)
    return Bounded(z, error, arithmetic, name)


def _settle(z: Float, size: Float, error: Float, within: Any, edge: float, settled: Settled) -> tuple[Float, Float]:
    """Infinities, NaN and overflow: exact where they are determined, undetermined elsewhere.

    Args:
        within: elementwise, whether the value and its error lie within the format: an ordinary number.
        edge: a finite number that is certainly further out becomes infinite.
    """
    special = ~np.isfinite(z)
    result = np.where(within, error, np.inf)
    if np.count_nonzero(special):
        result = np.where(special & settled(), 0.0, result)
    if np.count_nonzero(special) < special.size - np.count_nonzero(within):
        over = ~special & (size - error > edge)
        z, result = np.where(over, np.copysign(np.inf, z), z), np.where(over, 0.0, result)
    return z, result


def _all_exact(*operands: Bounded) -> Any:
    exact: Any = True
    for x in operands:
        exact = exact & (np.asarray(x.error) == 0)
    return exact


def _carries(x: Bounded) -> Any:
    """Where an operand is itself a determined infinity or NaN."""
    return ~np.isfinite(x.value) & (np.asarray(x.error) == 0)


def _finite_error(x: Bounded) -> Any:
    return np.isfinite(x.error)


def _nonzero(x: Bounded) -> Any:
    return np.isfinite(x.error) & (np.abs(x.value) > x.error)


def _settled_sum(a: Bounded, b: Bounded, z: Float) -> Settled:
    def settled() -> Any:
        # A determined infinity or NaN swallows any bounded other operand. An infinity made of two finite float64 numbers
        # is the reference's own overflow: not determined.
        swallowed = (_carries(a) & _finite_error(b)) | (_carries(b) & _finite_error(a))
        # The difference of two infinities is NaN, unless one is a product that overflowed: contracted with the sum (FMA), it
        # never did.
        contracted = "multiply" in (a.origin, b.origin)
        return swallowed & ~(contracted & np.isnan(z) & ~np.isnan(a.value) & ~np.isnan(b.value))

    return settled


def _settled_product(a: Bounded, b: Bounded) -> Settled:
    def settled() -> Any:
        nan_in = (np.isnan(a.value) & _carries(a)) | (np.isnan(b.value) & _carries(b))
        infinite = (_carries(a) & (_nonzero(b) | _carries(b))) | (_carries(b) & (_nonzero(a) | _carries(a)))
        return nan_in | infinite | ((_carries(a) | _carries(b)) & _all_exact(a, b))

    return settled


def _settled_quotient(a: Bounded, b: Bounded) -> Settled:
    def settled() -> Any:
        nan_in = (np.isnan(a.value) & _carries(a)) | (np.isnan(b.value) & _carries(b))
        by_zero = (b.value == 0) & (np.asarray(b.error) == 0) & (_nonzero(a) | _carries(a) | _all_exact(a))
        return nan_in | by_zero | (_carries(a) & (_nonzero(b) | _carries(b)))

    return settled


def _add(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = _pair(a, b, elements=True)
    result = _sum("add", a, b, a.value + b.value, arithmetic)
    result.origin = (a.value, b.value)
    return result


def _subtract(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = _pair(a, b, elements=True)
    return _sum("subtract", a, b, a.value - b.value, arithmetic)


def _sum(name: str, a: Bounded, b: Bounded, z: Float, arithmetic: Arithmetic) -> Bounded:
    if arithmetic.level < ELEMENTS and not np.count_nonzero(a.error) and not np.count_nonzero(b.error):
        # Counting steps is exact; a power with an exponent in doubt would be unbounded.
        sign = 1.0 if name == "add" else -1.0
        exact = ((z - a.value) * sign == b.value) & (z - sign * b.value == a.value)
        if exact.all() and arithmetic.format.represents(np.asarray(z)).all():
            counted = Bounded(z, _EXACT, arithmetic)
            if arithmetic.regroups:
                counted.terms = replace(regrouping.scalar(z), partial=_terms(a).partial + _terms(b).partial)
            return counted
    if arithmetic.inner is not None:
        a, b = _as_addend(a), _as_addend(b)
    p = a.error + b.error
    terms, cost = regrouping.added(_terms(a), _terms(b), z) if arithmetic.regroups else (None, None)
    return _regrouped(_round(name, z, p, 1.0, arithmetic, _settled_sum(a, b, z), cost), terms)


def _as_addend(x: Bounded) -> Bounded:
    if type(x.addend) is float:
        return x
    return _in_terms(Bounded(x.value, x.error + x.addend, x.arithmetic, x.origin), x)


def _multiply(a: Any, b: Any) -> Bounded:
    scalar = a if _is_scalar(a) else b if _is_scalar(b) else None
    if type(scalar) is float and abs(scalar) == 1.0:
        unscaled: Bounded = _flushed(b if a is scalar else a)
        return unscaled if scalar > 0 else -unscaled
    a, b, arithmetic = _pair(a, b)
    terms, cost = regrouping.multiplied(_terms(a), _terms(b)) if arithmetic.regroups else (None, None)
    p: Float = _EXACT
    if type(b.error) is not float:
        p = _size(a) * b.error
    if type(a.error) is not float:
        p = p + a.error * (_size(b) if type(b.error) is float else _size(b) + b.error)
    product = _round("multiply", a.value * b.value, p, 1.0, arithmetic, _settled_product(a, b), cost)
    result = _underflowing(_regrouped(product, terms))
    if arithmetic.inner is not None and scalar is not None:
        result.addend = _as_factor(np.abs(_value(scalar)), a, b, result)
    return result


def _size(x: Bounded) -> Float:
    return np.abs(x.value) if x.terms is None else x.terms.size


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
        return _EXACT
    size = np.abs(product.value) + product.error
    tiny = narrow.underflow * (np.abs(a.value) + np.abs(b.value) + a.error + b.error)
    addend = np.where(inexact, (narrow.unit_roundoff + REFERENCE_ROUNDOFF) * size + tiny, 0.0)
    # A scalar that is rounded to 0 makes NaN of an infinity.
    finite = np.isfinite(product.value)
    vanishes = maybe_nothing & ~finite
    addend = np.where(vanishes | np.isnan(addend), np.inf, addend)
    return np.where(finite | vanishes, addend, 0.0)


def _divide(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = _pair(a, b)
    z = a.value / b.value
    terms, cost = None, None
    if arithmetic.regroups:
        terms, cost = regrouping.divided(_terms(a), _terms(b), np.abs(b.value))
    p = a.error
    if type(b.error) is not float:
        gap = np.abs(b.value) - b.error
        p = np.where(gap > 0, p / gap + (np.abs(z) if terms is None else terms.size) * (b.error / gap), np.inf)
        p = np.where(np.isinf(b.value) & (np.asarray(b.error) == 0) & np.isfinite(a.error), 0.0, p)
    elif type(a.error) is not float:
        p = p / np.abs(b.value)
    if arithmetic.division > 1:
        p = p + _reciprocal_error(a, b, arithmetic)
    quotient = _round("divide", z, p, arithmetic.division, arithmetic, _settled_quotient(a, b), cost)
    return _underflowing(_regrouped(quotient, terms))


def _reciprocal_error(a: Bounded, b: Bounded, arithmetic: Arithmetic) -> Float:
    """What ``a * (1 / b)`` costs beyond a rounding: the reciprocal may be subnormal, or beyond the format where a / b is not."""
    within = arithmetic.format
    smallest = np.abs(b.value) - b.error
    overflows = (smallest < 1 / within.largest) & ~((b.value == 0) & (np.asarray(b.error) == 0))
    tiny = within.smallest if arithmetic.flushes else within.underflow
    return np.where(overflows, np.inf, (np.abs(a.value) + a.error) * tiny)


def _sqrt(a: Bounded) -> Bounded:
    a = _flushed(a)
    z = np.sqrt(a.value)
    p: Float = _EXACT
    if type(a.error) is not float:
        low = a.value - a.error
        p = np.maximum(np.sqrt(a.value + a.error) - z, z - np.sqrt(np.maximum(low, 0.0)))
        if _may_be_difference(a.origin):
            # Its sign is not determined, so an implementation may find NaN.
            p = np.where((low < 0) & (a.value + a.error >= 0), np.inf, p)
    return _round("sqrt", z, p, a.arithmetic.square_root, a.arithmetic, lambda: _carries(a) | (a.value + a.error < 0))


def _may_be_difference(origin: Origin) -> bool:
    if isinstance(origin, tuple):
        return any(np.count_nonzero(np.signbit(summand)) for summand in origin)
    return origin == "subtract"


def _power(base: Any, exponent: Any) -> Bounded:
    base, exponent, arithmetic = _pair(base, exponent)
    # Numbers kept for each parameter stand once for each of its elements, and C's pow takes long: once for each run is enough.
    lengths, operands = _runs(base.value, base.error, exponent.value, exponent.error)
    z, p = _power_with_error(*operands)
    if lengths is not None:
        z, p = np.repeat(z, lengths), p if type(p) is float else np.repeat(p, lengths)
    # The reference's own is C's, which glibc states to be off by less than one ulp: two roundings.
    roundings = arithmetic.power - (arithmetic.power - 2.0) * REFERENCE_ROUNDOFF / arithmetic.unit
    return _round("power", z, p, roundings, arithmetic, lambda: _all_exact(base, exponent))


def _power_with_error(base: Float, base_error: Float, exponent: Float, exponent_error: Float) -> tuple[Float, Float]:
    z = base**exponent
    p: Float = _EXACT
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
    a = _flushed(a)
    return _in_terms(Bounded(np.abs(a.value), a.error, a.arithmetic), a)


def _maximum(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = _pair(a, b, elements=True)
    return _taken(np.maximum(a.value, b.value), a, b, a.value > b.value, arithmetic)


def _minimum(a: Any, b: Any) -> Bounded:
    a, b, arithmetic = _pair(a, b, elements=True)
    return _taken(np.minimum(a.value, b.value), a, b, a.value < b.value, arithmetic)


def _taken(z: Float, a: Bounded, b: Bounded, first: Any, arithmetic: Arithmetic) -> Bounded:
    """One of two operands; where their errors overlap, either."""
    apart = np.abs(a.value - b.value) > a.error + b.error
    error = np.where(apart, np.where(first, a.error, b.error), np.maximum(a.error, b.error))
    return _in_terms(Bounded(z, error, arithmetic), a, b)


def _where(condition: Any, a: Any, b: Any) -> Bounded:
    a, b, arithmetic = _pair(a, b, elements=True, operation=False)
    taken = Bounded(np.where(condition, a.value, b.value), np.where(condition, a.error, b.error), arithmetic)
    return _in_terms(taken, a, b)


def _sign(a: Bounded) -> Any:
    """-1, 0 or 1 as a plain array: a decision, see outcomes(). NaN has the sign NaN (as in NumPy) or 0 (as in torch)."""
    error = np.asarray(_flushed(a).error)
    sign = np.sign(a.value)
    open_ = (error > 0) & (np.abs(a.value) <= error) | np.isnan(sign)
    if not open_.any():
        return sign
    # Of three outcomes, two beside its own: zero and the opposite, or both signs. What is NaN by the values alone, as an infinity times a
    # number that may be zero or not, may have any sign.
    unknown = np.isnan(sign) & (error > 0)
    chosen = _choose(4 if unknown.any() else 3)
    other = (
        np.where(sign == 0, 1.0, 0.0),
        np.where((sign == 0) | unknown, -1.0, -sign),
        np.where(unknown, 1.0, sign),
    )
    return sign if chosen == 0 else np.where(open_, other[chosen - 1], sign)


# Sums. A sum of n terms in any order is off by at most ((1 + u)^(n - 1) - 1) sum(abs(x)): Higham, section 4.2.


def _length(shape: tuple[int, ...], axis: int | None) -> int:
    return math.prod(shape) if axis is None else shape[axis]


def _reduce(a: Bounded, axis: int | None = None, keepdims: bool = False, **_: Any) -> Bounded:
    z = np.sum(a.value, axis=axis, keepdims=keepdims)
    error = np.sum(np.broadcast_to(a.error, np.shape(a.value)), axis=axis, keepdims=keepdims)
    size = np.sum(np.broadcast_to(_size(a), np.shape(a.value)), axis=axis, keepdims=keepdims) + error
    return _accumulated("sum", z, error, size, _length(np.shape(a.value), axis), a.arithmetic)


def _accumulated(name: str, z: Float, p: Float, size: Float, terms: int, arithmetic: Arithmetic) -> Bounded:
    """A sum whose terms, of absolute sum ``size``, bring the error ``p``; its result is then rounded to the format."""
    within = arithmetic.within
    growth = math.expm1(max(terms - 1, 0) * math.log1p(within.unit)) if within.unit < 1 else math.inf
    # Each operand and each partial sum may be taken for zero.
    lost = 2 * terms * within.format.smallest * np.sign(size) if within.flushes else 0.0
    error = p + _audited(name, growth * size + lost)
    # Where a partial sum may leave the format, some orders overflow and others do not.
    error = np.where(size + error <= within.format.largest, error, np.inf)
    result = Bounded(z, error, within, name)
    if arithmetic.inner is None:
        return result
    return _round("store", z, error, 1.0, arithmetic, lambda: _carries(result))


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
    x, y = _flushed(a), _flushed(b)
    z = a.value * b.value
    sizes = np.abs(z)
    p = np.abs(x.value) * y.error + x.error * (np.abs(y.value) + y.error)
    tiny = arithmetic.format.smallest if arithmetic.flushes else arithmetic.format.underflow
    p = p + arithmetic.unit * (sizes + p) + tiny * (sizes + p > 0)
    p = np.broadcast_to(p, z.shape)
    total, size = np.sum(p, axis=axis, keepdims=keepdims), np.sum(sizes + p, axis=axis, keepdims=keepdims)
    sum_ = np.sum(z, axis=axis, keepdims=keepdims)
    name = "sum of products"
    result = _accumulated(name, sum_, _audited(name, total), size, _length(z.shape, axis), arithmetic)
    if a is b and not np.all(np.isfinite(sum_)):
        # No square takes an infinity back; only another NaN, perhaps, is left open.
        carried = np.any(_carries(a) & np.ones(z.shape, bool), axis=axis, keepdims=keepdims)
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


def _is_counter(x: Any) -> bool:
    return isinstance(x, Bounded) and x.arithmetic.level == COUNTERS


_RULES: dict[Any, Callable[..., Any]] = {
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
_FUNCTIONS: dict[Any, Callable[..., Any]] = {
    np.where: _where,
    np.sum: _reduce,
    np.mean: _mean,
    np.max: _largest,
    np.dot: _dot,
}


@dataclass(frozen=True)
class _Seen:
    """Values that the subject was seen to hold after the step, by buffer, and how it computes with them further on."""

    values: Mapping[str, Float]
    arithmetic: Arithmetic


_seen: ContextVar[_Seen | None] = ContextVar("_seen", default=None)


@contextmanager
def seen(values: Mapping[str, Float], arithmetic: Arithmetic) -> Iterator[None]:
    """Within, what the reference says that a buffer holds is replaced by what the subject held, where the two agree."""
    token = _seen.set(_Seen(values, arithmetic))
    try:
        yield
    finally:
        _seen.reset(token)


# Decisions: a sign or a comparison whose operand is within its own error may come out either way.


@dataclass
class _Decisions:
    """The outcomes of one evaluation's open decisions, in the order in which they come up."""

    wanted: tuple[int, ...]
    taken: list[int] = field(default_factory=list)
    among: list[int] = field(default_factory=list)


_decisions: ContextVar[_Decisions | None] = ContextVar("_decisions", default=None)
_Result = TypeVar("_Result")


def outcomes(evaluate: Callable[[], _Result], most: int = 32) -> Iterator[_Result]:
    """``evaluate()`` for each combination of outcomes of the decisions that rounding leaves open, the values' own first.

    All elements of one decision that are open take the other outcome together. No more than ``most`` are tried.
    """
    pending: list[tuple[int, ...]] = [()]
    while pending and most:
        decisions = _Decisions(pending.pop(0))
        token = _decisions.set(decisions)
        try:
            result = evaluate()
        finally:
            _decisions.reset(token)
        most -= 1
        yield result
        for k in range(len(decisions.wanted), len(decisions.taken)):
            pending += [(*decisions.taken[:k], other) for other in range(1, decisions.among[k])]


def _choose(among: int) -> int:
    """The outcome that is to be tried for the decision at hand; 0 is that of the values."""
    decisions = _decisions.get()
    if decisions is None:
        return 0
    k = len(decisions.taken)
    chosen = decisions.wanted[k] if k < len(decisions.wanted) else 0
    decisions.taken.append(chosen)
    decisions.among.append(among)
    return chosen


def _decide(a: Any, b: Any, relation: Callable[[Any, Any], Any]) -> Any:
    x, y = _value(a), _value(b)
    result = relation(x, y)
    error = _error(a) + _error(b)
    if type(error) is float and error == 0.0:
        return result
    with np.errstate(all="ignore"):
        # Where all numbers in reach compare alike there is nothing to decide; an equality is open between two outcomes.
        open_ = (error != 0) & ~(np.abs(x - y) > error)
    if not np.any(open_) or _choose(2) == 0:
        return result
    return np.where(open_, ~np.asarray(result), result)[()]


def _error(x: Any) -> Any:
    return _flushed(x).error if isinstance(x, Bounded) else 0.0


# Where a budget comes from: each rounding of one evaluation, numbered, and left out in turn.


@dataclass
class _Audit:
    muted: int | None = None
    all_muted: bool = False
    roundings: list[str] = field(default_factory=list)


_current_audit: ContextVar[_Audit | None] = ContextVar("_current_audit", default=None)


def _audited(name: str, local: Float) -> Float:
    audit = _current_audit.get()
    if audit is None:
        return local
    audit.roundings.append(f"{name} in `{_source_line()}`")
    return local * 0.0 if audit.all_muted or len(audit.roundings) - 1 == audit.muted else local


def _source_line() -> str:
    """The line of the optimizer's reference that is being evaluated; not that of a helper, which it shares with others."""
    frame: FrameType | None = inspect.currentframe()
    while frame is not None and not _of_an_optimizer(frame.f_globals.get("__name__", "")):
        frame = frame.f_back
    if frame is None:
        return "?"
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().rstrip(",")


def _of_an_optimizer(module: str) -> bool:
    return module.startswith("stepcheck.reference.") and not module.endswith(".arithmetic")


@contextmanager
def _auditing(audit: _Audit) -> Iterator[None]:
    token = _current_audit.set(audit)
    try:
        yield
    finally:
        _current_audit.reset(token)


#: What is off before anything is computed.
GIVEN = "the options to float32"


def terms(evaluate: Callable[[], Bounded]) -> list[tuple[str, float]]:
    """The roundings that make up a budget, largest share first.

    Args:
        evaluate: computes one bounded element from exact operands.

    Returns:
        ``(operation and source line, share)``: by how much the budget shrinks when that rounding alone is left out; and, under
        :data:`GIVEN`, what is left of it without all of them.
    """
    whole = _Audit()
    with _auditing(whole):
        budget = float(np.max(evaluate().error))
    if not 0 < budget < np.inf:
        return []
    shares: dict[str, float] = {}
    for i, name in enumerate(whole.roundings):
        with _auditing(_Audit(muted=i)):
            without = float(np.max(evaluate().error))
        shares[name] = shares.get(name, 0.0) + (budget - without) / budget
    with _auditing(_Audit(all_muted=True)):
        given = float(np.max(evaluate().error)) / budget
    if given:
        shares[GIVEN] = given
    return sorted(shares.items(), key=lambda term: -term[1])
