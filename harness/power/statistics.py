"""Shares of what was counted, and how far they may be trusted."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

#: Of all intervals, as many cover the truth.
CONFIDENCE = 0.95


class Interval(NamedTuple):
    """An estimate, and the bounds of its confidence interval."""

    estimate: float
    low: float
    high: float


def proportion(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """A binomial proportion, with the interval of Clopper and Pearson: exact, and never too narrow.

    Source: Clopper and Pearson, *The use of confidence or fiducial limits illustrated in the case of the binomial*,
    Biometrika 26, 1934.
    """
    if not trials:
        return Interval(math.nan, 0.0, 1.0)
    tail = (1 - confidence) / 2
    low = _solve(lambda p: _at_least(successes, trials, p) - tail) if successes else 0.0
    high = _solve(lambda p: tail - _at_most(successes, trials, p)) if successes < trials else 1.0
    return Interval(successes / trials, low, high)


def caught_within(kills: int, lives: int, examples: int) -> Interval:
    """The probability that one of ``examples`` lives shows a fault, from campaigns that ended with the first life that did.

    Args:
        kills: campaigns that ended so.
        lives: how many they played in all, those of campaigns that showed nothing included.
        examples: lives of a whole campaign.

    Each life is taken to show it independently of the others and with the same probability q; then kills / lives estimates q,
    and 1 - (1 - q)^examples is what is asked. (The first lives of a campaign contain one kind of event each, and every
    other one after them is a scene: they are not quite alike. Of what only those show the share of campaigns tells.)
    """
    return Interval(*(1 - (1 - q) ** examples for q in proportion(kills, lives)))


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed; NaN of none."""
    ordered = sorted(values)
    return ordered[max(math.ceil(share * len(ordered)) - 1, 0)] if ordered else math.nan


def _log_pmf(trials: int, p: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    logs = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, trials + 1)))])
    k = np.arange(trials + 1)
    result: np.ndarray[tuple[int], np.dtype[np.float64]] = (
        logs[-1] - logs - logs[::-1] + k * math.log(p) + (trials - k) * math.log1p(-p)
    )
    return result


def _at_least(k: int, trials: int, p: float) -> float:
    return float(np.exp(_log_pmf(trials, p)[k:]).sum())


def _at_most(k: int, trials: int, p: float) -> float:
    return float(np.exp(_log_pmf(trials, p)[: k + 1]).sum())


def _solve(rising: Callable[[float], float]) -> float:
    """Where an increasing function of a probability is zero, by bisection."""
    low, high = 1e-15, 1 - 1e-15
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) > 0 else (middle, high)
    return (low + high) / 2
