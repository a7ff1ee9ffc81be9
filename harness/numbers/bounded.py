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
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from stepcheck.harness.numbers import regrouping
from stepcheck.harness.numbers.audit import audited
from stepcheck.harness.numbers.decisions import choose
from stepcheck.harness.numbers.formats import (
    BINARY32,
    BINARY64,
    COUNTERS,
    ELEMENTS,
    REFERENCE_ROUNDOFF,
    Arithmetic,
    Float,
    Format,
)
from stepcheck.harness.numbers.observed import POINT, observed
from stepcheck.harness.numbers.regrouping import Terms

Origin = str | tuple[Float, Float]
EXACT = 0.0  # a Python float says, without looking, that there is no error at all
_SLACK = 4 * REFERENCE_ROUNDOFF
_NEVER_UNDERFLOWS = frozenset({"add", "subtract", "sqrt"})
_NO_OPERATION = frozenset({"scalar", "store"})  # conversions, which flush nothing

#: What each ufunc and function of NumPy does with bounded numbers: :mod:`.operations` and :mod:`.sums` enter their rules.
RULES: dict[Any, Callable[..., Bounded]] = {}
FUNCTIONS: dict[Any, Callable[..., Bounded]] = {}


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
        self.error = np.float64(error) if type(error) is float and error else error  # see EXACT
        self.arithmetic = arithmetic
        self.origin = origin
        self.addend: Float = EXACT  # what is to be added to the error where this becomes a term of a sum
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
        return RULES[np.add](self, other)

    def __radd__(self, other: Any) -> Bounded:
        return RULES[np.add](other, self)

    def __sub__(self, other: Any) -> Bounded:
        return RULES[np.subtract](self, other)

    def __rsub__(self, other: Any) -> Bounded:
        return RULES[np.subtract](other, self)

    def __mul__(self, other: Any) -> Bounded:
        return RULES[np.multiply](self, other)

    def __rmul__(self, other: Any) -> Bounded:
        return RULES[np.multiply](other, self)

    def __truediv__(self, other: Any) -> Bounded:
        return RULES[np.divide](self, other)

    def __rtruediv__(self, other: Any) -> Bounded:
        return RULES[np.divide](other, self)

    def __pow__(self, other: Any) -> Bounded:
        return RULES[np.power](self, other)

    def __rpow__(self, other: Any) -> Bounded:
        return RULES[np.power](other, self)

    def __neg__(self) -> Bounded:
        return in_terms(Bounded(-self.value, self.error, self.arithmetic), self)

    # A comparison whose operands are within their own errors of each other may come out either way: see outcomes().

    def __lt__(self, other: Any) -> Any:
        return RULES[np.less](self, other)

    def __gt__(self, other: Any) -> Any:
        return RULES[np.greater](self, other)

    def __le__(self, other: Any) -> Any:
        return RULES[np.less_equal](self, other)

    def __ge__(self, other: Any) -> Any:
        return RULES[np.greater_equal](self, other)

    def __eq__(self, other: object) -> Any:
        return RULES[np.equal](self, other)

    def __ne__(self, other: object) -> Any:
        return RULES[np.not_equal](self, other)

    __hash__ = None  # type: ignore[assignment]  # as for any array

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        rule = RULES.get(ufunc)
        if rule is None or method != "__call__" or kwargs:
            return NotImplemented
        return rule(*inputs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        rule = FUNCTIONS.get(function)
        return NotImplemented if rule is None else rule(*args, **kwargs)

    def sum(self, axis: int | None = None, keepdims: bool = False) -> Bounded:
        """The sum along an axis, its terms added in any order."""
        return FUNCTIONS[np.sum](self, axis, keepdims)

    def dot(self, other: Bounded) -> Bounded:
        """The scalar product of two vectors, its terms added in any order."""
        return FUNCTIONS[np.dot](self, other)

    def sum_of_squares(self, axis: int | None = None) -> Bounded:
        """The sum of the squares along an axis, which is kept with length 1. Where it leaves the format, undetermined."""
        return FUNCTIONS["sum of squares"](self, axis)

    def at_least(self, bound: Any) -> Bounded:
        """The maximum with ``bound``; of NaN, NaN or the bound (a decision, see outcomes())."""
        result, undefined = RULES[np.maximum](self, bound), np.isnan(self.value)
        if undefined.any() and choose(2):
            return FUNCTIONS[np.where](undefined, bound, result)
        return result

    def as_one_operation(self, function: Callable[..., Bounded], *others: Any) -> Bounded:
        """``function(self, *others)`` in the format inside an operation, its result rounded once."""
        outer = self.arithmetic
        if outer.inner is None or not outer.composites:
            return function(self, *others)
        operands = [self, *(operand_in(x, outer) if is_counter(x) else x for x in others)]
        inside = [
            in_terms(Bounded(x.value, x.error, outer.within, x.origin), x)
            if isinstance(x, Bounded) and x.arithmetic is outer
            else x
            for x in operands
        ]
        result = function(*inside)
        rounded = once_rounded("store", result.value, result.error, 1.0, outer, lambda: carries(result))
        rounded.origin = result.origin
        return in_terms(rounded, result)

    def as_stored(self, name: str) -> Bounded:
        """This number as its buffer holds it: what the subject was seen to hold, if that is within the budget."""
        seen = observed()
        if seen is None or name not in seen.values:
            return self
        value = seen.values[name]
        # Numbers kept for each parameter are float32, whatever they are computed in.
        stored = self.store(BINARY32) if self.arithmetic.level == COUNTERS else self
        with np.errstate(all="ignore"):
            close = np.abs(value - stored.value) <= stored.error
        error: Float = np.where(close, 0.0, stored.error)
        error = error if error.any() else EXACT
        return Bounded(np.where(close, value, stored.value), error, seen.arithmetic)

    def led_to_point(self, x: Bounded, d: Bounded) -> Bounded:
        """This number, within the bounds that the point seen at ``x + self d`` leaves it: those of each element, all at once.

        What the rounding of that point, by itself, may be off by is the error of ``x + t d`` for an exact ``t`` no smaller.
        """
        seen = observed()
        if seen is None or POINT not in seen.values:
            return self
        point, value, error = seen.values[POINT], float(self.value), float(self.error)
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
        return operand_in(scalar, self.arithmetic)

    def store(self, into: Format) -> Bounded:
        """The result written to a buffer of format ``into``."""
        if into.unit_roundoff <= self.arithmetic.format.unit_roundoff:
            return self
        stored = once_rounded("store", self.value, self.error, 1.0, Arithmetic(into), lambda: carries(self))
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
            if math.isnan(_top(apart)):
                same = (other.value == first.value) | (np.isnan(other.value) & np.isnan(first.value))
                apart = np.where(same, 0.0, np.where(np.isnan(apart), np.inf, apart))
            error = np.maximum(error, other.error + apart)
        return in_terms(Bounded(first.value, error, self.arithmetic, first.origin), first, *rest)


def value_of(x: Any) -> Any:
    return x.value if isinstance(x, Bounded) else x


def terms_of(x: Bounded) -> Terms:
    if x.terms is None:
        x.terms = (regrouping.tensor if x.arithmetic.level == ELEMENTS else regrouping.scalar)(x.value)
    return x.terms


def regrouped(result: Bounded, terms: Terms | None) -> Bounded:
    """A result with its terms: undetermined where a product of some of their factors leaves the format."""
    result.terms = terms
    largest = result.arithmetic.format.largest
    if terms is not None and result.arithmetic.level == ELEMENTS and not _top(terms.partial) <= largest:
        result.error = np.where(np.isfinite(result.value) & ~(terms.partial <= largest), np.inf, result.error)
    return result


def underflowing(product: Bounded) -> Bounded:
    """A product or a quotient, whose factors may be multiplied in any order and lose what is near zero more than once."""
    terms = product.terms
    if terms is not None and product.arithmetic.level == ELEMENTS:
        of = product.arithmetic.format
        if not np.count_nonzero(terms.drop < of.smallest):
            return product
        further = of.underflow * terms.underflows(of.smallest)
        # A product with zero loses nothing; where factors leave the format, all is undetermined as it is.
        further = np.where(np.isfinite(further) & (terms.size > 0), further, 0.0)
        if np.count_nonzero(further):
            product.error = product.error + audited("factors near zero", further)
    return product


def in_terms(result: Bounded, *operands: Bounded) -> Bounded:
    """A result that is one of its operands."""
    if result.arithmetic.regroups:
        result.terms = regrouping.either(*map(terms_of, operands))
    return result


# Arrays here are short, so a call to NumPy costs by itself, and its reductions (max, any) several times as much as argmax and
# count_nonzero.


def _top(x: Float) -> float:
    """The largest element, NaN if there is one."""
    top: float = x if isinstance(x, float) else x.item(x.argmax())
    return top


def operand_in(x: Any, arithmetic: Arithmetic, *, element: bool = False) -> Bounded:
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
        value, error = np.asarray(x, np.float64), EXACT
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
            operand.error = audited("scalar", np.float64(rounding)) if rounding else EXACT
            return operand
    entered = once_rounded("scalar", value, error, 1.0, entry, lambda: carries(operand))
    exact = entry.format.represents(value) & (np.asarray(error) == 0)
    operand.value, operand.error = entered.value, np.where(exact, 0.0, entered.error)
    return operand


def _applied_one_by_one(scalar: Bounded) -> Bounded:
    """A scalar among elements, which its factors may meet one after the other."""
    terms = terms_of(scalar)
    if terms.factors:
        further = regrouping.entering(terms, scalar.value, scalar.arithmetic.unit)
        scalar.error = scalar.error + audited("factors one by one", further)
        scalar.terms = replace(terms, factors=0)
    return scalar


def _cast(x: Bounded, arithmetic: Arithmetic) -> Bounded:
    """A tensor of one float32 number among elements: some operations cast it to their dtype, others use it as it is."""
    cast = operand_in(x, arithmetic, element=True)
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


def pair(a: Any, b: Any, *, elements: bool = False, operation: bool = True) -> tuple[Bounded, Bounded, Arithmetic]:
    """Both operands in the arithmetic of the result: that of the higher level.

    Args:
        operation: something is computed with them, which may take them for zero.
    """
    a, b, arithmetic = _converted(a, b, elements=elements)
    if arithmetic.flushes and operation:
        return flushed(a), flushed(b), arithmetic
    return a, b, arithmetic


def _lost(size: Float, error: Float, within: Format) -> Float:
    """What making zero of a number costs, if it is subnormal: the number."""
    return np.where(size - error < within.smallest, np.minimum(size + error, within.smallest), 0.0)


def flushed(x: Bounded) -> Bounded:
    """An operand that is taken for zero, if it is subnormal and its arithmetic flushes."""
    if not x.arithmetic.flushes:
        return x
    lost = _lost(np.abs(x.value), x.error, x.arithmetic.format)
    if not np.count_nonzero(lost):
        return x
    zero = Bounded(x.value, x.error + lost, x.arithmetic, x.origin)
    zero.addend = x.addend
    return in_terms(zero, x)


def _converted(a: Any, b: Any, *, elements: bool) -> tuple[Bounded, Bounded, Arithmetic]:
    if isinstance(a, Bounded) and isinstance(b, Bounded) and a.arithmetic is b.arithmetic:
        return a, b, a.arithmetic
    if isinstance(a, Bounded) and not (isinstance(b, Bounded) and _enters(a.arithmetic, b.arithmetic)):
        arithmetic = a.arithmetic
    else:
        arithmetic = b.arithmetic
    return operand_in(a, arithmetic, element=elements), operand_in(b, arithmetic, element=elements), arithmetic


Settled = Callable[[], Any]
"""Where a result is infinite or NaN: elementwise, whether every correct implementation arrives there."""


def once_rounded(
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
        local += arithmetic.format.underflow * (np.sign(reach) if arithmetic.format is not BINARY64 else 1.0)
    error = audited(name, local)
    if not exact:
        error += p  # in place, as above: to find memory for a large array takes longer than to add two
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


def carries(x: Bounded) -> Any:
    """Where an operand is itself a determined infinity or NaN."""
    return ~np.isfinite(x.value) & (np.asarray(x.error) == 0)


def size_of(x: Bounded) -> Float:
    return np.abs(x.value) if x.terms is None else x.terms.size


def is_counter(x: Any) -> bool:
    return isinstance(x, Bounded) and x.arithmetic.level == COUNTERS
