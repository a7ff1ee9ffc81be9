"""What a step that evaluates its function is sent, and the step for the negative of that function."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

from stepcheck.reference.spec import Number

_Result = TypeVar("_Result")

#: A loss and a gradient.
Evaluation = tuple[Number, Number]


def turned(steps: Generator[Number, Evaluation, _Result]) -> Generator[Number, Evaluation, _Result]:
    """A coroutine that asks for the same points, and is sent loss and gradient of the function whose negative it minimizes."""
    point = next(steps)
    while True:
        loss, g = yield point
        try:
            point = steps.send((-loss, -g))
        except StopIteration as end:
            result: _Result = end.value
            return result
