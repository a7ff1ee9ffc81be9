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
    ``scaled_divisor``: ``a / (b / c)``.
    ``textbook``: the paper's own grouping, where ``torch.optim`` folds scalars together first.
"""

from __future__ import annotations

from collections.abc import Callable

from stepcheck.reference.spec import Number

ORDERS = frozenset(
    {"lerp", "naive_lerp", "square_first", "lerp_of_square", "quotient_first", "scaled_divisor", "textbook"}
)


def any_order(written: Number, **others: Callable[[], Number]) -> Number:
    """``written``, which the mathematically equal ``others`` may replace in an implementation."""
    cover = getattr(written, "cover_orders", None)
    return written if cover is None else cover(others)


def ema(average: Number, x: Number, beta: Number) -> Number:
    """Exponential moving average: ``beta average + (1 - beta) x``."""
    return any_order(
        beta * average + (1 - beta) * x,
        lerp=lambda: _lerp(average, x, 1 - beta),
        naive_lerp=lambda: average + (1 - beta) * (x - average),
    )


def ema_of_square(average: Number, x: Number, beta: Number) -> Number:
    """Exponential moving average of the square: ``beta average + (1 - beta) x x``."""
    return any_order(
        beta * average + (1 - beta) * x * x,
        square_first=lambda: beta * average + (1 - beta) * (x * x),
        lerp_of_square=lambda: _lerp(average, x * x, 1 - beta),
        naive_lerp=lambda: average + (1 - beta) * (x * x - average),
    )


def addcdiv(p: Number, a: Number, b: Number, c: Number) -> Number:
    """``p + c a / b``, for arrays ``p``, ``a``, ``b`` and a scalar ``c``."""
    return any_order(
        p + c * a / b,
        quotient_first=lambda: p + c * (a / b),
        scaled_divisor=lambda: p + a / (b / c),
    )


def _lerp(start: Number, end: Number, weight: Number) -> Number:
    # The weight is rounded to the arrays' precision before 1 - weight is formed, as torch.lerp does.
    enter = getattr(start, "enter", None)
    weight = weight if enter is None else enter(weight)
    if weight < 0.5:
        return start + weight * (end - start)
    return end - (end - start) * (1 - weight)
