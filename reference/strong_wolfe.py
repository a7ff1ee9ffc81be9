"""A line search for the strong Wolfe conditions, as a coroutine that yields the points to evaluate."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from stepcheck.reference.arithmetic import any_order, largest, led_to_point
from stepcheck.reference.evaluation import Evaluation
from stepcheck.reference.spec import Number

#: The constants of the strong Wolfe conditions: of sufficient decrease, and of the slope (Nocedal and Wright, section 3.1).
DECREASE, SLOPE = 1e-4, 0.9
#: An extrapolated step is longer than the last by between a hundredth of the last increase and ninefold.
LEAST_INCREASE, LARGEST_GROWTH = 0.01, 10.0
#: A bracket narrower than this, in parameter units, is not searched further: a number of its own, not ``tolerance_change``.
LEAST_WIDTH = 1e-9
#: How close to an end of the bracket, as a share of its width, a trial may come only once in a row.
MARGIN = 0.1


class Trial(NamedTuple):
    """A step length along a direction, with loss, gradient and directional derivative there."""

    t: Number
    loss: Number
    gradient: Number
    slope: Number


Search = Generator[Number, Evaluation, tuple[Trial, int]]


def strong_wolfe(x: Number, d: Number, start: Trial, t: Number, most: int) -> Search:
    """Search along ``d`` from ``x``: bracketing, then zoom, as in minFunc.

    Args:
        x: the point to start from, a vector.
        d: the direction, of the same shape.
        start: loss, gradient and slope there, at step length 0.
        t: the first step length to try.
        most: trials beside the first.

    Returns:
        The trial that the search settles on, and how many were evaluated.

    Source: Nocedal and Wright, *Numerical optimization*, 2nd ed., algorithms 3.5 and 3.6; Schmidt, *minFunc*, 2005. Where it
    departs from the former is said in ``stepcheck.reference.lbfgs``.
    """
    bracket, trials = yield from _bracket(x, d, start, t, most)
    if len(bracket) == 1:
        return bracket[0], trials + 1
    low = _lower(bracket)
    width, stalled = largest(d), False
    while trials < most:
        if np.abs(bracket[1].t - bracket[0].t) * width < LEAST_WIDTH:
            break
        t, stalled = _inside(_cubic_minimum(bracket[0], bracket[1]), bracket, stalled=stalled)
        new = yield from _trial(x, d, t)
        trials += 1
        high = 1 - low
        if _too_high(new, start) or new.loss >= bracket[low].loss:
            bracket[high] = new
            low = _lower(bracket)
            continue
        if _flat(new, start):
            return new, trials + 1
        if new.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = new
    return bracket[low], trials + 1


def _bracket(
    x: Number, d: Number, start: Trial, t: Number, most: int
) -> Generator[Number, Evaluation, tuple[list[Trial], int]]:
    """Two trials with a suitable step between them, or one that is suitable; and the extrapolations that it took."""
    last, new = start, (yield from _trial(x, d, t))
    for n in range(most):
        if _too_high(new, start) or (n > 1 and new.loss >= last.loss):
            return [last, new], n
        if _flat(new, start):
            return [new], n
        if new.slope >= 0:
            return [last, new], n
        bounds = new.t + LEAST_INCREASE * (new.t - last.t), new.t * LARGEST_GROWTH
        t = _cubic_minimum(last, new, bounds)
        last, new = new, (yield from _trial(x, d, t))
    return [start, new], max(most, 0)


def _trial(x: Number, d: Number, t: Number) -> Generator[Number, Evaluation, Trial]:
    loss, g = yield x + t * d
    return Trial(led_to_point(t, x, d), loss, g, np.dot(g, d))


def _too_high(new: Trial, start: Trial) -> bool:
    # Not the negation of "low enough": a loss of NaN is neither.
    return bool(new.loss > start.loss + DECREASE * new.t * start.slope)


def _flat(new: Trial, start: Trial) -> bool:
    return bool(np.abs(new.slope) <= -SLOPE * start.slope)


def _lower(bracket: Sequence[Trial]) -> int:
    return 0 if bracket[0].loss <= bracket[1].loss else 1


def _inside(t: Number, bracket: Sequence[Trial], *, stalled: bool) -> tuple[Number, bool]:
    """``t`` moved away from an end of the bracket that it reaches, or is close to again; and whether it is close now."""
    left, right = np.minimum(bracket[0].t, bracket[1].t), np.maximum(bracket[0].t, bracket[1].t)
    margin = MARGIN * (right - left)
    if not np.minimum(right - t, t - left) < margin:
        return t, False
    if stalled or t >= right or t <= left:
        return right - margin if np.abs(t - right) < np.abs(t - left) else left + margin, False
    return t, True


def _cubic_minimum(a: Trial, b: Trial, bounds: tuple[Number, Number] | None = None) -> Number:
    """The minimizer, within bounds, of the cubic through two trials (Nocedal and Wright, equation 3.59)."""
    left, right = (a, b) if a.t <= b.t else (b, a)
    low, high = (left.t, right.t) if bounds is None else bounds
    rise, run = 3 * (a.loss - b.loss), a.t - b.t
    d1 = a.slope + b.slope - any_order(rise / run, reciprocal=lambda: rise * (1.0 / run))
    square = d1 * d1 - a.slope * b.slope
    if square >= 0:
        d2 = np.sqrt(np.maximum(square, 0.0))
        share = (right.slope + d2 - d1) / (right.slope - left.slope + 2 * d2)
        return np.minimum(np.maximum(right.t - (right.t - left.t) * share, low), high)
    return (low + high) / 2
