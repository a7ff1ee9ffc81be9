"""The few composite operations that optimizers share, each with the orders in which implementations evaluate it.

On paper ``beta a + (1 - beta) x`` and ``a + (1 - beta)(x - a)`` are one number; in floating point they round differently,
and each is a correct implementation. A reference writes the first and names the others. A float64 or multiple-precision run
takes the first; a number system that carries error bounds widens it to cover those orders that a subject declares.

Orders:
    ``lerp``: averages as ``start + weight (end - start)``, from the nearer end, the way ``torch.lerp`` does.
    ``naive_lerp``: the same, always from ``start``.
    ``lerp_of_square``: ``lerp`` of the average of squares, where the written order scales the old average first.
    ``square_first``: ``c (x x)`` where the written order is ``(c x) x``.
    ``quotient_first``: ``c (a / b)`` where the written order is ``(c a) / b``.
    ``scaled_dividend``: ``(c a) / b`` or ``(c a) b``, where the written order scales ``a`` later.
    ``scaled_divisor``: ``a / (b / c)``, or ``(c a) / (c b)``.
    ``reciprocal``: ``a (1 / b)`` where the written order is ``a / b``.
    ``textbook``: the paper's own grouping, where ``torch.optim`` folds scalars together first.
    ``textbook_root``: a second moment is corrected before its root is taken.
    ``folded``: scalars folded together in a further way, where ``torch.optim``'s modes differ in it.
    ``copied``: a value that the formula leaves as it is, not computed.
    ``norm``: a mean of squares as the square of a rounded norm.

Operations are those of ``torch``: a composite that ``torch`` has one call for is evaluated in a wider format and rounded once
where the format of the elements is narrow (:func:`one_operation`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np

from stepcheck.reference.spec import Number

ORDERS = frozenset(
    {
        "lerp", "naive_lerp", "square_first", "lerp_of_square", "quotient_first", "scaled_dividend", "scaled_divisor",
        "reciprocal", "textbook", "textbook_root", "folded", "copied", "norm",
    }
)  # fmt: skip


def any_order(written: Number, **others: Callable[[], Number]) -> Number:
    """``written``, which the mathematically equal ``others`` may replace in an implementation.

    Raises:
        ValueError: the name of an order is not among ``ORDERS``: no subject could declare it.
    """
    _refuse_unknown(others)
    cover = getattr(written, "cover_orders", None)
    return written if cover is None else cover(others)


def any_order_of(number: Number, written: Callable[[], Number], **others: Callable[[], Number]) -> Number:
    """:func:`any_order`, where ``number``, an operand of all orders, may know that the written one is not asked for."""
    _refuse_unknown(others)
    declared = getattr(number, "in_declared_orders", None)
    return any_order(written(), **others) if declared is None else declared(written, others)


def _refuse_unknown(others: Mapping[str, Callable[[], Number]]) -> None:
    if not ORDERS.issuperset(others):
        unknown = ", ".join(sorted(set(others) - ORDERS))
        message = f"no order of operations is called {unknown}: they are {', '.join(sorted(ORDERS))}"
        raise ValueError(message)


def one_operation(function: Callable[..., Number], first: Number, *rest: Number) -> Number:
    """``function(first, *rest)``, of arrays, which an implementation in a narrow format evaluates wider and rounds once."""
    as_one = getattr(first, "as_one_operation", None)
    return function(first, *rest) if as_one is None else as_one(function, *rest)


def stored(name: str, x: Number) -> Number:
    """``x`` as the buffer ``name`` holds it: what is computed from it further on starts from the rounded number."""
    as_stored = getattr(x, "as_stored", None)
    return x if as_stored is None else as_stored(name)


def led_to_point(t: Number, x: Number, d: Number) -> Number:
    """The step length ``t``, once ``x + t d`` is evaluated: where that point was seen, it says how long the step was."""
    narrowed = getattr(t, "led_to_point", None)
    return t if narrowed is None else narrowed(x, d)


def ema(average: Number, x: Number, beta: Number, weight: Number = None) -> Number:
    """Exponential moving average: ``beta average + (1 - beta) x``; ``weight`` is 1 - beta, where that is given first."""
    weight = 1 - beta if weight is None else weight
    return any_order_of(
        average,
        lambda: beta * average + weight * x,
        lerp=lambda: one_operation(lambda a, b: _lerp(a, b, weight), average, x),
        naive_lerp=lambda: average + weight * (x - average),
    )


def ema_of_square(average: Number, x: Number, beta: Number) -> Number:
    """Exponential moving average of the square: ``beta average + (1 - beta) x x``."""
    return any_order(
        addcmul(beta * average, x, x, 1 - beta),
        square_first=lambda: beta * average + (1 - beta) * (x * x),
        lerp_of_square=lambda: _lerp(average, x * x, 1 - beta),
        naive_lerp=lambda: average + (1 - beta) * (x * x - average),
    )


def addcmul(p: Number, a: Number, b: Number, c: Number) -> Number:
    """``p + c a b``, for arrays ``p``, ``a``, ``b`` and a scalar ``c``."""
    return one_operation(lambda p, a, b: p + c * a * b, p, a, b)


def addcdiv(p: Number, a: Number, b: Number, c: Number) -> Number:
    """``p + c a / b``, for arrays ``p``, ``a``, ``b`` and a scalar ``c``."""
    return any_order(
        one_operation(lambda p, a, b: p + c * a / b, p, a, b),
        quotient_first=lambda: p + c * (a / b),
        scaled_divisor=lambda: p + a / (b / c),
    )


def at_least(x: Number, bound: Number) -> Number:
    """``max(x, bound)``. Of NaN it is NaN or the bound: IEEE 754 has both (``maximum`` and ``maximumNumber``)."""
    bounded = getattr(x, "at_least", None)
    return np.maximum(x, bound) if bounded is None else bounded(bound)


def largest(x: Number) -> Number:
    """The largest absolute value of all elements; of none, 0."""
    return np.max(np.abs(x)) if math.prod(x.shape) else 0.0


def sum_of_squares(x: Number, axis: int | None = None) -> Number:
    """The sum of the squares along ``axis`` (all elements: ``None``), kept as axes of length 1, in any order."""
    summed = getattr(x, "sum_of_squares", None)
    return np.sum(x * x, axis=axis, keepdims=True) if summed is None else summed(axis)


def norm(x: Number, axis: int | None = None) -> Number:
    """The Euclidean norm along ``axis``, kept as axes of length 1."""
    return one_operation(lambda x: np.sqrt(sum_of_squares(x, axis)), x)


def _lerp(start: Number, end: Number, weight: Number) -> Number:
    # The weight is rounded to the arrays' precision before 1 - weight is formed, as torch.lerp does.
    enter = getattr(start, "enter", None)
    weight = weight if enter is None else enter(weight)
    below = np.abs(weight) < 0.5
    if np.all(below):
        return start + weight * (end - start)
    from_end = end - (end - start) * (1 - weight)
    return np.where(below, start + weight * (end - start), from_end) if np.any(below) else from_end
