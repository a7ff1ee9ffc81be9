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
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.fast.native import kernel

Words = npt.NDArray[np.int64]

#: What the three kernels below call: of Python's C API, which borrows what it returns, and of torch.
_ADDRESSES = """
def kernel(launch):
    tensors, count, out = load_int64(launch, 0), load_int64(launch, 1), load_int64(launch, 2)
    item, pointer = load_int64(launch, 3), load_int64(launch, 4)
    for i in range(count):
        store_int64(out, i, call(pointer, call(item, tensors, i), 0))
"""
_SAME_ITEMS = """
def kernel(launch):
    objects, count, expected = load_int64(launch, 0), load_int64(launch, 1), load_int64(launch, 2)
    item, same = load_int64(launch, 3), 1
    for i in range(count):
        if call(item, objects, i) != load_int64(expected, i):
            same = 0
    store_int64(launch, 4, same)
"""
_SAME_ENTRIES = """
def kernel(launch):
    table, count, item, same = load_int64(launch, 0), load_int64(launch, 1), load_int64(launch, 2), 1
    for i in range(count):
        row = table + 24 * i
        if call(item, load_int64(row, 0), load_int64(row, 1)) != load_int64(row, 2):
            same = 0
    store_int64(launch, 3, same)
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


class Items:
    """The very objects that a list held; they live as long as this."""

    def __init__(self, objects: Sequence[Any]) -> None:
        self._objects = list(objects)
        self._functions = _native_functions()
        if self._functions is not None:
            self._ids: Words = np.array([id(o) for o in self._objects], np.int64)
            self._kernel = kernel(_SAME_ITEMS)
            words = [0, len(self._ids), self._ids.ctypes.data, self._functions[0], 0]
            self._launch: Words = np.array(words, np.int64)
            self._at = self._launch.ctypes.data

    def same(self, objects: list[Any]) -> bool:
        """Whether a list holds those, in that order, and no others."""
        if len(objects) != len(self._objects):
            return False
        if self._functions is None:
            return all(map(operator.is_, objects, self._objects))
        self._launch[0] = id(objects)
        self._kernel.run_held(self._at)
        return bool(self._launch[4])


class Entries:
    """The very objects that dictionaries held under some keys; they, and the dictionaries, live as long as this."""

    def __init__(self, entries: Sequence[tuple[dict[str, Any], str, Any]]) -> None:
        self._entries = list(entries)
        self._functions = _native_functions()
        if self._functions is not None:
            self._table: Words = np.array([[id(d), id(k), id(v)] for d, k, v in self._entries], np.int64).reshape(-1, 3)
            self._kernel = kernel(_SAME_ENTRIES)
            words = [self._table.ctypes.data, len(self._table), self._functions[1], 0]
            self._launch: Words = np.array(words, np.int64)
            self._at = self._launch.ctypes.data

    def same(self) -> bool:
        """Whether they hold the same ones still."""
        if self._functions is None:
            return all(d.get(k) is v for d, k, v in self._entries)
        self._kernel.run_held(self._at)
        return bool(self._launch[3])


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
