"""Sparse gradients on the CPU, from step to step: parameters and state stay where they are, and what the gradients name is other each time.

To look at everything anew costs more than to step the few rows that a small batch names. So the launches are kept, with what they depend
on, and a step fills in where indices and values are, and how many.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from stepcheck.fast.native import Kernel, kernel
from stepcheck.fast.tensors import Looks, Watch, Words

if TYPE_CHECKING:
    from stepcheck.fast.engine import Floats, Launch, State

#: Whether all of ``count`` indices are from 0 to below ``limit``.
_WITHIN = """
def kernel(launch):
    indices, count, limit = load_int64(launch, 0), load_int64(launch, 1), load_int64(launch, 2)
    within = 1
    for i in range(count):
        index = load_int64(indices, i)
        if index < 0 or index >= limit:
            within = 0
    store_int64(launch, 3, within)
"""


def within_kernel() -> Kernel:
    """Whether indices name rows that are there."""
    return kernel(_WITHIN)


@dataclass
class Named:
    """A parameter that is a table of rows, and what of it is kept.

    Attributes:
        state: its own.
        tensors: those of the state, by key, that the launch points to.
        counters: those of them that the state has as Python's whole numbers.
    """

    p: torch.Tensor
    state: State
    tensors: dict[str, torch.Tensor]
    counters: dict[str, torch.Tensor]

    def __post_init__(self) -> None:
        self.shape, self.dtype = self.p.shape, self.p.dtype
        self.rows, self.width = self.shape[0], self.shape[1:].numel()


#: A gradient, its indices and its values.
_Seen = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class SparseSteps:
    """The launches of all parameters with sparse gradients, as long as those are rows of values, one after the other.

    Args:
        launches: each with the parameters of its rows.
        options: the table that the launches read.
        adds: what a sum of entries does is what they do one after the other, so that they need not be summed first.
    """

    def __init__(self, launches: Sequence[tuple[Launch, Sequence[Named]]], options: Floats, *, adds: bool) -> None:
        self._launches, self._options, self._adds = launches, options, adds
        self._named = [one for _, named in launches for one in named]
        entries = [(one.state, key, tensor) for one in self._named for key, tensor in one.tensors.items()]
        self._beside = (*(one.p for one in self._named), *(tensor for *_, tensor in entries))
        self._looks, self._watch = Looks(self._beside), Watch([], entries, self._beside)
        self._range: Words = np.zeros(4, np.int64)
        self._range_at = self._range.ctypes.data
        self._within = within_kernel()
        self._seen: list[_Seen] = []

    def holds(self) -> bool:
        """Whether parameters and state are where they were, and the gradients name rows that are there; they are kept for the step."""
        self._seen = []
        if not self._watch.same() or not self._looks.same(self._beside):
            return False
        for one in self._named:
            seen = self._look(one)
            if seen is None:
                return False
            self._seen.append(seen)
        return True

    def _look(self, one: Named) -> _Seen | None:
        """The gradient of a parameter, if it is what this is made for."""
        g = one.p.grad
        if g is None or not g.is_sparse or g.dtype is not one.dtype or g.shape != one.shape or g.sparse_dim() != 1:
            return None
        for name in one.counters:
            if type(one.state.get(name)) is not int:
                return None
        indices, values = g._indices(), g._values()  # noqa: SLF001 - with no autograd to go through
        count, at = indices.numel(), indices.data_ptr()
        if values.numel() != count * one.width or not values.is_contiguous() or not indices.is_contiguous():
            return None
        if count and not (at and (values.data_ptr() or not one.width)):
            return None
        words = self._range
        words[0], words[1], words[2] = at, count, one.rows
        self._within.run_held(self._range_at)
        return (g, indices, values) if words[3] else None

    def step(self, options: Floats) -> None:
        """Step the rows that the gradients name, by these options."""
        self._options[:] = options
        seen = iter(self._seen)
        for launch, named in self._launches:
            entries, one_by_one = [], False
            for one, (g, indices, values) in zip(named, seen, strict=False):
                if g.is_coalesced():
                    entries.append((indices, values))
                elif self._adds:
                    one_by_one = True
                    entries.append((indices, values))
                else:
                    summed = g.coalesce()
                    entries.append((summed._indices(), summed._values()))  # noqa: SLF001 - with no autograd to go through
                for name, counter in one.counters.items():
                    counter.fill_(one.state[name])
            # Of two threads both might step an element at a time.
            launch.name(entries, in_order=one_by_one)
            launch.run()
            for one in named:
                for name, counter in one.counters.items():
                    one.state[name] = int(counter)
        self.forget()

    def forget(self) -> None:
        """Keep no gradients: they belong to the caller."""
        self._seen = []
