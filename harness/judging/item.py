"""One parameter in one step, as the reference is given it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepcheck.harness.life.memory import SparseRaw
from stepcheck.harness.life.values import in_reals, is_complex
from stepcheck.harness.numbers.comparison import Array, reals
from stepcheck.harness.play.recording import Life, StepRecord


def repeated(x: Any, slots: int) -> Array:
    """``x`` flat; one number, or none, repeated."""
    flat = reals(x)
    if flat.size == slots:
        return flat
    return np.full(slots, flat[0] if flat.size else 0.0)


@dataclass
class Item:
    """One parameter in one step, with the state that the reference is given: (values, errors) of each buffer."""

    record: StepRecord
    index: int
    life: Life
    state: dict[str, tuple[Array, Array | float] | None]
    shape: tuple[int, ...]
    dtype: str

    @functools.cached_property
    def numel(self) -> int:
        """Real numbers in the parameter."""
        return math.prod(in_reals(self.shape, self.dtype))

    @functools.cached_property
    def slots(self) -> int:
        """An empty tensor gets one element, so that numbers kept per parameter are predicted for it as well."""
        return self.numel or math.prod(in_reals((), self.dtype))

    def gradient(self, unit: float) -> tuple[Array, Array | float, Array | None]:
        """The gradient as a dense one with its error, and which elements it names, where not all.

        Entries that name one element are added up in any order.
        """
        given = self.life.gradient
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
