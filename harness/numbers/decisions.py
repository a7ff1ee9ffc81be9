"""Decisions that rounding leaves open: a sign or a comparison whose operand is within its own error may come out either way."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TypeVar


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


def choose(among: int) -> int:
    """The outcome that is to be tried for the decision at hand; 0 is that of the values."""
    decisions = _decisions.get()
    if decisions is None:
        return 0
    k = len(decisions.taken)
    chosen = decisions.wanted[k] if k < len(decisions.wanted) else 0
    decisions.taken.append(chosen)
    decisions.among.append(among)
    return chosen
