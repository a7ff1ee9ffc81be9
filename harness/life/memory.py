"""Tensors as a life describes them, and copies of what is in them."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.harness.life.events import Sparse
from stepcheck.harness.life.values import DTYPES

Raw = npt.NDArray[Any]

GUARD_ELEMENTS = 8
GUARD = 0.3125  # of ordinary size, so that adding an update of ordinary size to it shows
_TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}
#: NumPy rounds float64 to these, or to their parts, as torch does, and it takes a third of the time.
_ROUNDED_BY_NUMPY = frozenset({torch.float32, torch.float64, torch.float16, torch.complex64, torch.complex128})
#: Bytes from which on it costs more to copy them than to compare them where they are.
_LARGE = 1 << 16


@dataclass(frozen=True)
class SparseRaw:
    """A copy of a sparse gradient.

    Attributes:
        elements: for each value, the element of the parameter that it belongs to, counted row-major.
        values: flat; as many.
    """

    elements: npt.NDArray[np.int64]
    values: Raw


@functools.lru_cache(maxsize=1024)
def strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Strides in elements. ``sliced`` is every other element of a row-major array; ``expanded`` repeats the first row."""
    if layout == "transposed":
        return tuple(reversed(_row_major(tuple(reversed(shape)))))
    if layout == "channels_last":
        n, c, h, w = shape
        of_n, of_h, of_w, of_c = _row_major((n, h, w, c))
        return (of_n, of_c, of_h, of_w)
    dense = _row_major(shape)
    if layout == "sliced":
        return tuple(2 * s for s in dense)
    if layout == "expanded" and shape:
        return (0, *dense[1:])
    return dense


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    result, stride = [], 1
    for n in reversed(shape):
        result.append(stride)
        stride *= max(n, 1)
    return tuple(reversed(result))


@functools.lru_cache(maxsize=1024)
def room(shape: tuple[int, ...], layout: str) -> int:
    """Elements of the buffer that a tensor of this shape and layout is a view of.

    There is room for as many elements in a row, so that code which ignores strides stays inside the buffer: it is to be
    found wrong, not to crash the judge.
    """
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides(shape, layout), strict=True)) if 0 not in shape else 0
    # And for the start to be counted twice (see Player._allocate).
    return max(span, math.prod(shape)) + 3 * GUARD_ELEMENTS


class Allocation:
    """A tensor that is a view of a larger buffer, with guard elements around and between its own.

    The buffer is made on the CPU and moved as a whole, so that views of it have the strides and the offset, and share the memory, that they
    would have there.

    Args:
        start: the element of the buffer that it starts at.
        within: a sliced tensor of the same shape, whose gaps this one fills.
        device: where it stands; of all but ``"cpu"``, what is read is a copy.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        dtype: str,
        layout: str,
        start: int = GUARD_ELEMENTS,
        within: Allocation | None = None,
        device: str = "cpu",
    ) -> None:
        self.shape, self.layout = shape, layout
        self._at_hand = device == "cpu"
        if within is None:
            self.start = start
            self.buffer = _guarded(room(shape, layout), _TORCH_DTYPES[dtype]).clone()
            if not self._at_hand:
                self.buffer = self.buffer.to(device)
        else:
            self.start = within.start + 1
            self.buffer = within.buffer
        self.view = self._view()
        self._array = in_numpy(self.buffer) if self._at_hand else None
        """The buffer's memory, to be looked at again and again without asking torch for it."""
        self.repeats = layout == "expanded" and len(shape) > 0

    def _view(self) -> torch.Tensor:
        view = self.buffer.as_strided(self.shape, strides(self.shape, self.layout), self.start)
        return view.conj() if self.layout == "conjugated" else view

    @property
    def array(self) -> Raw:
        """What is in the buffer now."""
        return in_numpy(self.buffer.cpu()) if self._array is None else self._array

    def fill(self, values: Raw) -> None:
        """Fill with real numbers; of a complex tensor, the last dimension is real and imaginary part."""
        target, source = (self.view[:1], values[:1]) if self.repeats else (self.view, values)
        if self._at_hand and self.buffer.dtype in _ROUNDED_BY_NUMPY and not target.is_conj():
            with np.errstate(over="ignore"):
                # To float16 torch goes by way of float32.
                once = source.astype(np.float32) if self.buffer.dtype is torch.float16 else source
                real = torch.view_as_real(target) if self.buffer.dtype.is_complex else target
                np.copyto(real.numpy(), once, casting="same_kind")
        else:
            target.copy_(rounded(source, self.buffer.dtype))

    def make_differentiable(self) -> None:
        """Make of the view what it is in a differentiable step: no leaf, but the result of a computation."""
        self.buffer = self.buffer.requires_grad_().clone()
        self.view = self._view()
        self.view.retain_grad()
        self._array = in_numpy(self.buffer) if self._at_hand else None

    def memory(self) -> bytes:
        """All of the buffer, as bytes."""
        return self.array.tobytes()

    def holds(self, memory: bytes | None) -> bool:
        """Whether all of the buffer is this."""
        if memory is None or len(memory) < _LARGE:
            return self.memory() == memory
        word = f"u{min(self.array.itemsize, 8)}"
        return np.array_equal(self.array.view(word), np.frombuffer(memory, word))

    def written_at(self, elements: npt.NDArray[np.intp]) -> bool:
        """Whether any of these elements of the buffer is no guard any more."""
        found = self.array.take(elements)
        return found.tobytes() != _guards(len(found), self.buffer.dtype)


class SparseAllocation:
    """A sparse tensor."""

    def __init__(self, shape: tuple[int, ...], dtype: str, sparse: Sparse, values: Raw, device: str = "cpu") -> None:
        indices = np.array(np.unravel_index(np.array(sparse.entries, np.int64), shape[: sparse.dimensions]))
        self.view = torch.sparse_coo_tensor(
            torch.from_numpy(indices.reshape(sparse.dimensions, -1)).to(device),
            rounded(values, _TORCH_DTYPES[dtype]).clone().to(device),
            shape,
            is_coalesced=sparse.coalesced,
            check_invariants=True,
        )

    def memory(self) -> bytes:
        return as_bytes(self.view)

    def holds(self, memory: bytes | None) -> bool:
        return self.memory() == memory


def rounded(values: Raw, dtype: torch.dtype) -> torch.Tensor:
    """Real numbers as a tensor of ``dtype``; for a complex dtype the last dimension is real and imaginary part."""
    real = torch.from_numpy(np.asarray(values, order="C"))
    if dtype.is_complex:
        return torch.complex(*real.to(dtype.to_real()).unbind(-1))
    return real.to(dtype)


@functools.lru_cache(maxsize=256)
def beside(size: int, views: tuple[tuple[tuple[int, ...], str, int], ...]) -> npt.NDArray[np.intp]:
    """The elements of a buffer of some size that stand in none of the views, each of a shape, a layout and a start."""
    own = np.zeros(size, np.bool_)
    for shape, layout, start in views:
        np.lib.stride_tricks.as_strided(own[start:], shape, strides(shape, layout))[...] = True
    return np.flatnonzero(~own)


@functools.lru_cache(maxsize=256)
def _guarded(size: int, dtype: torch.dtype) -> torch.Tensor:
    """A buffer of guards alone, to be cloned."""
    return torch.full((size,), GUARD, dtype=dtype)


@functools.lru_cache(maxsize=256)
def _guards(size: int, dtype: torch.dtype) -> bytes:
    return as_bytes(_guarded(size, dtype))


def in_numpy(tensor: torch.Tensor) -> Raw:
    """The memory of a dense tensor itself, as an array; bfloat16, which NumPy lacks, as int16."""
    detached = tensor.detach() if tensor.requires_grad else tensor
    array: Raw = (detached.view(torch.int16) if detached.dtype is torch.bfloat16 else detached).numpy()
    return array


def as_bytes(tensor: torch.Tensor) -> bytes:
    detached = tensor.detach()
    if detached.is_sparse:
        return as_bytes(detached._indices()) + as_bytes(detached._values())  # noqa: SLF001 - an uncoalesced tensor has no other way
    return in_numpy(detached.cpu()).tobytes()


def raw(tensor: torch.Tensor) -> Raw:
    """The tensor's memory, or a copy of it where it is not the CPU's, as an array; bfloat16, which NumPy lacks, as float32."""
    detached = tensor.detach() if tensor.requires_grad else tensor
    if not detached.is_cpu:
        detached = detached.cpu()
    dtype = detached.dtype
    if dtype is torch.bfloat16:
        detached = detached.float()
    elif dtype.is_complex:
        detached = detached.resolve_conj()
    array: Raw = detached.numpy()
    return array


def copy(tensor: torch.Tensor) -> Raw:
    if tensor.is_sparse:
        # A state that is sparse is read as the dense tensor that it stands for.
        tensor = tensor.detach().to_dense()
    # Of what NumPy lacks, what is read is a copy already.
    return raw(tensor) if tensor.dtype is torch.bfloat16 else np.array(raw(tensor))


def values_of(gradient: torch.Tensor) -> torch.Tensor:
    return gradient._values() if gradient.is_sparse else gradient  # noqa: SLF001 - an uncoalesced tensor has no other way


def copy_gradient(gradient: torch.Tensor) -> Raw | SparseRaw:
    if not gradient.is_sparse:
        return copy(gradient)
    shape, dimensions = tuple(gradient.shape), gradient.sparse_dim()
    inner = math.prod(shape[dimensions:])
    entries = np.ravel_multi_index(tuple(gradient._indices().cpu().numpy()), shape[:dimensions])  # noqa: SLF001 - an uncoalesced tensor has no other way
    elements = entries[:, None] * inner + np.arange(inner)
    return SparseRaw(elements.reshape(-1), copy(gradient._values()).reshape(-1))  # noqa: SLF001 - an uncoalesced tensor has no other way


def identical(a: Raw | float, b: Raw | float) -> bool:
    """Whether two values are the same to the last bit, NaN and the sign of zero included."""
    x, y = np.asarray(a), np.asarray(b)
    return x.shape == y.shape and x.tobytes() == y.tobytes()


def rounded_fill(value: float, dtype: str) -> float:
    """``value`` as a tensor of ``dtype`` holds it."""
    if dtype == "float64":
        return value
    if value in (0.0, 1.0):  # as most are; in every dtype
        return float(value)
    return float(torch.tensor(value, dtype=_TORCH_DTYPES[dtype]).real)
