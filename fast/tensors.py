"""Where tensors are, asked of many at once.

A step has to know that nothing moved since the last one, and where the new gradients are. Asked one by one in Python, that
takes longer than stepping a hundred small parameters. So this module, and no other, uses two entry points of torch that its compiler
uses for the same purpose and that are not documented; where a release lacks them, the public methods serve, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import operator
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.fast.native import Kernel, kernel

Words = npt.NDArray[np.int64]

#: What the kernels below call: of Python's C API, which borrows what it returns, and of torch.
_ADDRESSES = """
def kernel(launch):
    tensors, count, out = load_int64(launch, 0), load_int64(launch, 1), load_int64(launch, 2)
    item, pointer = load_int64(launch, 3), load_int64(launch, 4)
    for i in range(count):
        store_int64(out, i, call(pointer, call(item, tensors, i), 0))
"""
_SAME = """
def kernel(launch):
    lists, entries, held = load_int64(launch, 0), load_int64(launch, 2), load_int64(launch, 4)
    item, entry, pointer = load_int64(launch, 6), load_int64(launch, 7), load_int64(launch, 8)
    same = 1
    for i in range(load_int64(launch, 1)):
        objects, expected = load_int64(lists + 24 * i, 0), load_int64(lists + 24 * i, 2)
        for j in range(load_int64(lists + 24 * i, 1)):
            if call(item, objects, j) != load_int64(expected, j):
                same = 0
    for i in range(load_int64(launch, 3)):
        row = entries + 24 * i
        if call(entry, load_int64(row, 0), load_int64(row, 1)) != load_int64(row, 2):
            same = 0
    for i in range(load_int64(launch, 5)):
        row = held + 16 * i
        if call(pointer, load_int64(row, 0), 0) != load_int64(row, 1):
            same = 0
    store_int64(launch, 9, same)
"""


@functools.cache
def _native_functions() -> tuple[int, int, int] | None:
    """Where ``PyList_GetItem``, ``PyDict_GetItem`` and torch's function for a tensor's address are, or nothing."""
    guards = getattr(torch._C._dynamo, "guards", None)
    pointer = getattr(guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    held = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not isinstance(pointer, int) or not held or sys.implementation.name != "cpython":
        return None
    of_list, of_dict = ctypes.pythonapi.PyList_GetItem, ctypes.pythonapi.PyDict_GetItem
    places = [ctypes.cast(function, ctypes.c_void_p).value for function in (of_list, of_dict)]
    return (places[0] or 0, places[1] or 0, pointer)


def _ids(objects: Sequence[Any]) -> Words:
    """Where objects are."""
    return np.fromiter(map(id, objects), np.int64, len(objects))


def kernels() -> Iterator[Kernel]:
    """Those that are used here."""
    yield from map(kernel, (_ADDRESSES, _SAME) if _native_functions() else ())


class Addresses:
    """The addresses of the first elements of tensors; of as many each time, in one array that is used again."""

    def __init__(self, count: int) -> None:
        self.values: Words = np.zeros(count, np.int64)
        self._functions = _native_functions()
        if self._functions is not None:
            item, _, pointer = self._functions
            self._kernel = kernel(_ADDRESSES)
            self._launch: Words = np.array([0, count, self.values.ctypes.data, item, pointer], np.int64)
            self._at = self._launch.ctypes.data

    def read(self, tensors: list[torch.Tensor]) -> Words:
        """Of these tensors, as many as were announced; the array is overwritten by the next call."""
        if self._functions is None:
            self.values[:] = [t.data_ptr() for t in tensors]
        else:
            # The list, and what it holds, live until this returns; the GIL is kept, so nobody else changes it.
            self._launch[0] = id(tensors)
            self._kernel.run_held(self._at)
        return self.values


class Watch:
    """Whether lists hold the very objects that they held, dictionaries too under some keys, and tensors lie where they lay.

    All of them live as long as this.

    Args:
        lists: to compare other lists with.
        entries: dictionaries, keys and what is there.
        tensors: whose addresses must stay.
    """

    def __init__(
        self,
        lists: Sequence[list[Any]],
        entries: Sequence[tuple[dict[str, Any], str, Any]],
        tensors: Sequence[torch.Tensor],
    ) -> None:
        self._lists, self._tensors = [list(objects) for objects in lists], list(tensors)
        # Columns, not rows: a tuple for each of many entries takes more memory than what it is about.
        self._entries: list[tuple[Any, ...]] = list(zip(*entries, strict=True)) or [(), (), ()]
        self._lengths = [len(objects) for objects in self._lists]
        self._functions = _native_functions()
        addresses = [t.data_ptr() for t in self._tensors]
        if self._functions is None:
            self._addresses = addresses
            return
        self._ids = [_ids(objects) for objects in self._lists]
        rows = [[0, len(ids), ids.ctypes.data] for ids in self._ids]
        self._list_table: Words = np.array(rows, np.int64).reshape(-1, 3)
        self._entry_table: Words = np.stack([_ids(column) for column in self._entries], axis=1)
        self._held_table: Words = np.stack([_ids(self._tensors), np.array(addresses, np.int64)], axis=1)
        tables = (self._list_table, self._entry_table, self._held_table)
        words = [word for table in tables for word in (table.ctypes.data, len(table))]
        self._launch: Words = np.array([*words, *self._functions, 0], np.int64)
        self._at, self._kernel = self._launch.ctypes.data, kernel(_SAME)

    def same(self, *lists: list[Any]) -> bool:
        """Whether ``lists``, as many as there were, hold what those held, and all else is as it was."""
        if list(map(len, lists)) != self._lengths:
            return False
        if self._functions is not None:
            # The lists, and what they hold, live until this returns; the GIL is kept, so nobody else changes them.
            self._list_table[:, 0] = list(map(id, lists))
            self._kernel.run_held(self._at)
            return bool(self._launch[-1])
        return (
            all(all(map(operator.is_, *pair)) for pair in zip(lists, self._lists, strict=True))
            and all(d.get(k) is v for d, k, v in zip(*self._entries, strict=True))
            and [t.data_ptr() for t in self._tensors] == self._addresses
        )


def _looks(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    bits = (tensor.is_conj(), tensor.is_neg())
    return type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.shape, strides, bits


class Looks:
    """What tensors looked like: type, dtype, device, layout, shape, strides."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        guards = getattr(torch._C._dynamo.guards, "TensorGuards", None)
        self._check = (
            None if guards is None else guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        )
        self._looks = None if guards is not None else [_looks(t) for t in tensors]

    def same(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """Whether these look like those."""
        if self._check is not None:
            return bool(self._check(*tensors))
        return [None if t is None else _looks(t) for t in tensors] == self._looks
