"""What kernels are given pointers to, held against what is there: a tensor of a checkpoint may be empty, cut, of another kind or no tensor.

Where torch's own operations would raise, the step does so before it changes anything; what they take, though kernels do not, is left to them
(:func:`.engine.foreign`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.fast.shards import is_sharded, local

#: What to do, by what is wrong.
STATE_ANEW = "load a whole state_dict, or clear the state of its parameter to begin anew"
_ANEW = "set grad to None and make it anew"
CUT = "the storage of {} ends before its elements do: it was freed or resized; make it anew"


def is_cut(tensor: torch.Tensor) -> bool:
    """Whether the storage of a tensor ends before its elements do, as after ``untyped_storage().resize_()``."""
    elements = tensor.numel()
    if tensor.layout is not torch.strided or tensor.is_meta or not elements:
        return False
    if tensor.is_contiguous():
        last = tensor.storage_offset() + elements - 1
    else:
        last = tensor.storage_offset() + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size() > tensor.untyped_storage().nbytes()


def unfit(p: torch.Tensor, g: torch.Tensor) -> str:
    """Why a parameter cannot be stepped by this gradient, or nothing: they do not belong together, or to their memory."""
    if g.shape != p.shape:
        return f"a gradient is {tuple(g.shape)}, its parameter {tuple(p.shape)}: {_ANEW}"
    if is_sharded(p):
        p, g = local(p), local(g)
    if g.dtype != p.dtype:
        return f"a gradient of {g.dtype} for a parameter of {p.dtype}"
    values = g._values() if g.layout is torch.sparse_coo else g  # noqa: SLF001 - with no autograd to go through
    for what, tensor in (("parameter", p), ("gradient", values)):
        if is_cut(tensor):
            return CUT.format(f"a {what}")
    return ""


def refuse_freed(
    addresses: npt.NDArray[np.int64], gradients: Sequence[torch.Tensor], absent: npt.NDArray[np.bool_] | None = None
) -> None:
    """Refuse gradients whose memory is gone since they were last looked at.

    Args:
        absent: those that are not there, and will not be read.

    Raises:
        RuntimeError: one has elements and no memory.
    """
    if addresses.all():
        return
    for i in np.flatnonzero(addresses == 0).tolist():
        if gradients[i].numel() and not (absent is not None and absent[i]):
            raise RuntimeError(CUT.format("a gradient"))


def misnamed(g: torch.Tensor) -> str:
    """Why a sparse gradient on the CPU does not name elements of a tensor of its shape, or nothing."""
    indices, values, depth = g._indices(), g._values(), g.sparse_dim()  # noqa: SLF001 - with no autograd to go through
    if tuple(indices.shape) != (depth, g._nnz()) or tuple(values.shape) != (indices.shape[1], *g.shape[depth:]):  # noqa: SLF001
        return (
            f"a sparse gradient of {tuple(g.shape)} has indices {tuple(indices.shape)} and values {tuple(values.shape)}"
        )
    if is_cut(indices) or is_cut(values):
        return CUT.format("a sparse gradient")
    if not indices.shape[1] or indices.device.type != "cpu":
        return ""
    named = indices.numpy()
    for row, length in zip(named, g.shape, strict=False):
        low, high = row.min(), row.max()
        if low < 0 or high >= length:
            return f"a sparse gradient of {tuple(g.shape)} names {low if low < 0 else high}, which is not there"
    return ""


def broken(
    state: Mapping[str, Any], numbers: Collection[str], always: Collection[str], at_times: Iterable[str] = ()
) -> str:
    """Why nothing can be stepped with what the state of a parameter has, or nothing; an empty state is one that is yet to be made.

    Args:
        numbers: keys that hold one number; that named ``step`` is a whole one.
        always: keys that hold a tensor whatever the options are.
        at_times: keys that hold one with some options, and may hold ``None``.
    """
    if not state:
        return ""
    begun = any(state.get(key) is not None for key in (*numbers, *always))
    for key in numbers if begun else ():
        wrong = no_number(state.get(key), whole=key == "step")
        if wrong:
            return f"{key} in the state {wrong}"
    for key in (*(always if begun else ()), *at_times):
        value = state.get(key)
        if value is None:
            if key in always:
                return f"{key} in the state is missing"
        elif not isinstance(value, torch.Tensor):
            return f"{key} in the state is a {type(value).__name__}, not a tensor"
        elif is_cut(local(value)):
            return CUT.format(f"{key} in the state")
    return ""


def no_number(value: Any, *, whole: bool = False) -> str:
    """Why a value of the state is not one number, or nothing.

    Args:
        whole: it may be a whole one.
    """
    if value is None:
        return "is missing"
    if not isinstance(value, torch.Tensor):
        takes = isinstance(value, int | float) and not isinstance(value, bool)
        return "" if takes else f"is a {type(value).__name__}, not a number"
    if is_sharded(value):
        return ""  # left to torch
    if value.numel() != 1:
        return f"has the shape {tuple(value.shape)}, and is to be one number"
    if value.layout is not torch.strided or value.device.type == "meta":
        return f"has the layout {value.layout} on {value.device}, and is to be one number"
    kinds = value.dtype.is_floating_point or (whole and not value.dtype.is_complex and value.dtype is not torch.bool)
    if not kinds:
        return f"is of {value.dtype}, and is to be {'a real' if whole else 'a floating-point'} number"
    return "has a storage that was freed or resized" if is_cut(value) else ""


def is_read(value: torch.Tensor, p: torch.Tensor) -> bool:
    """Whether kernels read a number of the state of ``p`` as it is."""
    return value.device == p.device and value.dtype in (torch.float32, torch.float64) and not value.is_neg()


def counted(value: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A number of the state as kernels read it: on this device, and float64 where float32 might not hold it."""
    wide = value.dtype in (torch.float64, torch.int32, torch.int64)
    dtype = torch.float64 if wide else torch.float32
    return value.resolve_neg().to(device, dtype)
