"""One parameter in one step, as the reference is given it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness.life.memory import SparseRaw
from stepcheck.harness.life.values import in_reals, is_complex
from stepcheck.harness.numbers.comparison import Array, reals
from stepcheck.harness.play.recording import ParameterStep, State, StepRecord

#: Elements of a parameter, beyond which some are looked at: those at either end of each block, and all of the first and the last one.
MOST_ELEMENTS = 1 << 17
_BLOCK, _EDGE, _BETWEEN = 1 << 12, 8, 61


@functools.lru_cache(maxsize=8)
def sampled(elements: int) -> npt.NDArray[np.intp]:
    """The elements of a large parameter that are looked at, in order."""
    at = np.arange(elements)
    place = at % _BLOCK
    ends = (place < _EDGE) | (place >= _BLOCK - _EDGE) | (at < _BLOCK) | (at >= elements - _BLOCK)
    return np.flatnonzero(ends | (at % _BETWEEN == 0))


def thinned(step: ParameterStep, at: npt.NDArray[np.intp], elements: int) -> ParameterStep | None:
    """The same of these elements alone, if all that it holds has an element for each of the parameter's, or is one number."""

    def some(x: Any) -> Any:
        return np.asarray(x).reshape(-1)[at] if np.size(x) == elements else x

    def all_of(state: State) -> dict[str, Any]:
        return {name: some(x) for name, x in state.items()}

    held: list[Any] = [step.value, step.gradient, step.value_after, *step.state.values(), *step.state_after.values()]
    if any(isinstance(x, SparseRaw) or np.size(x) not in (1, elements) for x in held):
        return None
    return replace(
        step,
        value=some(step.value),
        gradient=some(step.gradient),
        value_after=some(step.value_after),
        state=all_of(step.state),
        state_after=all_of(step.state_after),
    )


def repeated(x: Any, slots: int) -> Array:
    """``x`` flat; one number, or none, repeated."""
    flat = reals(x)
    if flat.size == slots:
        return flat
    if flat.size == 1:
        return flat.repeat(slots)
    return np.full(slots, flat[0] if flat.size else 0.0)


@dataclass
class Item:
    """One parameter in one step, with the state that the reference is given: (values, errors) of each buffer.

    Attributes:
        at: the elements that are looked at, where those are not all; its shape, and all that it holds, are of these alone.
    """

    record: StepRecord
    index: int
    step: ParameterStep
    state: dict[str, tuple[Array, Array | float] | None]
    shape: tuple[int, ...]
    dtype: str
    at: npt.NDArray[np.intp] | None = None

    @functools.cached_property
    def numel(self) -> int:
        """Real numbers in the parameter."""
        return math.prod(in_reals(self.shape, self.dtype))

    @functools.cached_property
    def slots(self) -> int:
        """An empty tensor gets one element, so that numbers kept per parameter are predicted for it as well."""
        return self.numel or math.prod(in_reals((), self.dtype))

    def place(self, element: int) -> int:
        """Where an element of the parameter stands among those that are looked at, each real number counted."""
        if self.at is None:
            return element
        parts = 2 if is_complex(self.dtype) else 1
        return int(np.searchsorted(self.at, element // parts)) * parts + element % parts

    def gradient(self, unit: float) -> tuple[Array, Array | float, Array | None]:
        """The gradient as a dense one with its error, and which elements it names, where not all.

        Entries that name one element are added up in any order.
        """
        given = self.step.gradient
        if not isinstance(given, SparseRaw):
            return repeated(given, self.slots), 0.0, None
        parts = 2 if is_complex(self.dtype) else 1
        elements = (given.elements[:, None] * parts + np.arange(parts)).reshape(-1)
        values = reals(given.values)
        dense, size, named = np.zeros(self.slots), np.zeros(self.slots), np.zeros(self.slots)
        np.add.at(dense, elements, values)
        np.add.at(size, elements, np.abs(values))
        np.add.at(named, elements, 1)
        growth = np.expm1(np.maximum(named - 1, 0) * math.log1p(unit))
        # A single entry has none, however large it is.
        error = np.multiply(growth, size, out=np.zeros(self.slots), where=growth > 0)
        return dense, error if error.any() else 0.0, named
