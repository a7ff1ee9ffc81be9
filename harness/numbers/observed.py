"""What the subject was seen to hold, which stands in for what the reference says that a buffer holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from stepcheck.harness.numbers.formats import Arithmetic, Float

#: The name under which a point is seen at which the function was evaluated.
POINT = "point"


@dataclass(frozen=True)
class Observed:
    """Values that the subject was seen to hold after the step, by buffer, and how it computes with them further on."""

    values: Mapping[str, Float]
    arithmetic: Arithmetic


_observed: ContextVar[Observed | None] = ContextVar("_observed", default=None)


def observed() -> Observed | None:
    """What is seen now; ``None`` where nothing is."""
    return _observed.get()


@contextmanager
def seen(values: Mapping[str, Float], arithmetic: Arithmetic) -> Iterator[None]:
    """Within, what the reference says that a buffer holds is replaced by what the subject held, where the two agree."""
    token = _observed.set(Observed(values, arithmetic))
    try:
        yield
    finally:
        _observed.reset(token)
