"""Where tensors are, asked of many at once.

A step has to know that nothing moved since the last one, and where the new gradients are. Asked one by one in Python, that
takes longer than stepping a hundred small parameters. So this module, and no other, uses two entry points of torch that its compiler
uses for the same purpose and that are not documented; where a release lacks them, the public methods serve, more slowly.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.fast.native import Kernel, kernel

Words = npt.NDArray[np.int64]

_ADDRESSES = """
def kernel(launch):
    tensors, count, out = load_int64(launch, 0), load_int64(launch, 1), load_int64(launch, 2)
    item, pointer = load_int64(launch, 3), load_int64(launch, 4)
    for i in range(count):
        store_int64(out, i, call(pointer, call(item, tensors, i), 0))
"""


@functools.cache
def _natively() -> tuple[Kernel, int, int] | None:
    guards = getattr(torch._C._dynamo, "guards", None)  # noqa: SLF001 - see above
    pointer = getattr(guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    if not isinstance(pointer, int):
        return None
    item = ctypes.cast(ctypes.pythonapi.PyList_GetItem, ctypes.c_void_p).value
    assert item is not None
    return kernel(_ADDRESSES), item, pointer


class Addresses:
    """The addresses of the first elements of tensors; of as many each time, in one array that is used again."""

    def __init__(self, count: int) -> None:
        self.values: Words = np.zeros(count, np.int64)
        natively = _natively()
        if natively is None:
            self._kernel = None
            return
        self._kernel, item, pointer = natively
        self._launch: Words = np.array([0, count, self.values.ctypes.data, item, pointer], np.int64)
        self._at = self._launch.ctypes.data

    def read(self, tensors: list[torch.Tensor]) -> Words:
        """Of these tensors, as many as were announced; the array is overwritten by the next call."""
        if self._kernel is None:
            self.values[:] = [t.data_ptr() for t in tensors]
        else:
            # The list, and what it holds, live until this returns; the GIL is kept, so nobody else changes it.
            self._launch[0] = id(tensors)
            self._kernel.run_held(self._at)
        return self.values


def _looks(tensor: torch.Tensor) -> tuple[Any, ...]:
    strides = tensor.stride() if tensor.layout is torch.strided else ()
    bits = (tensor.is_conj(), tensor.is_neg())
    return type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.shape, strides, bits


class Looks:
    """What tensors looked like: type, dtype, device, layout, shape, strides."""

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        guards = getattr(torch._C._dynamo.guards, "TensorGuards", None)  # noqa: SLF001 - see above
        self._check = None if guards is None else guards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
        self._looks = None if guards is not None else [_looks(t) for t in tensors]

    def same(self, tensors: Sequence[torch.Tensor | None]) -> bool:
        """Whether these look like those."""
        if self._check is not None:
            return bool(self._check(*tensors))
        return [None if t is None else _looks(t) for t in tensors] == self._looks
