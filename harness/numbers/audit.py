"""Where a budget comes from: each rounding of one evaluation, numbered, and left out in turn."""

from __future__ import annotations

import inspect
import linecache
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np

from stepcheck.harness.numbers.formats import Float


@dataclass
class _Audit:
    muted: int | None = None
    all_muted: bool = False
    roundings: list[str] = field(default_factory=list)


_current_audit: ContextVar[_Audit | None] = ContextVar("_current_audit", default=None)


def audited(name: str, local: Float) -> Float:
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


def terms(evaluate: Callable[[], Any]) -> list[tuple[str, float]]:
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
