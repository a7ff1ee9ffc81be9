"""One parameter as it stands at one moment: its value, gradient and state, whole or in the elements that are looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepcheck.harness.life.memory import Raw, SparseRaw, copy, copy_gradient
from stepcheck.harness.life.values import DTYPES
from stepcheck.harness.play.terms import PLAIN, Terms
from stepcheck.harness.watch.sampling import Places, taken, taken_sparse

#: Elements up to which a parameter is judged whole whose elements depend on each other.
MOST_WHOLE = 1 << 14


@dataclass
class Look:
    """A parameter at one moment.

    Attributes:
        at: the elements that are looked at, counted row-major; ``None`` where it is all of them, in their shape.
        value: of these elements, as all that follows.
        gradient: ``None`` where there is none.
        state: each tensor and number under the reference's name.
        dtypes: of each tensor of the state that has an element for each of the parameter's.
    """

    at: Places | None
    value: Raw
    gradient: Raw | SparseRaw | None
    state: dict[str, Raw | float]
    dtypes: dict[str, torch.dtype]


def look(
    p: torch.Tensor, state: Mapping[Any, Any], at: Places | None, terms: Terms = PLAIN, *, gradient: bool = True
) -> Look:
    """Copy what a parameter has now.

    Args:
        state: what the optimizer keeps for it.
        gradient: its gradient as well.
    """
    held: dict[str, Raw | float] = {}
    dtypes: dict[str, torch.dtype] = {}
    for name, value in entries(state, terms):
        if isinstance(value, torch.Tensor):
            if at is not None and value.numel() not in (1, p.numel()):
                continue  # none that the reference has, of which each element belongs to one of the parameter's
            if value.numel() == p.numel() and value.numel() != 1:
                dtypes[name] = value.dtype
            held[name] = _read(value, at if value.numel() == p.numel() else None)
        else:
            held[name] = float(value)
    given = p.grad if gradient else None
    return Look(at, _read(p, at), None if given is None else _read_gradient(given, at), held, dtypes)


def entries(state: Mapping[Any, Any], terms: Terms) -> Iterator[tuple[str, Any]]:
    """The tensors and numbers of a state that are looked at, under the reference's names."""
    for theirs, value in state.items():
        name = terms.buffer(str(theirs))
        numbers = isinstance(value, int | float | np.number) and not isinstance(value, bool)
        if name and (numbers or isinstance(value, torch.Tensor)):
            yield name, value


def _read(tensor: torch.Tensor, at: Places | None) -> Raw:
    if at is None or tensor.layout is not torch.strided:
        return copy(tensor)
    return taken(tensor, at)


def _read_gradient(gradient: torch.Tensor, at: Places | None) -> Raw | SparseRaw:
    if gradient.is_sparse:
        return copy_gradient(gradient) if at is None else taken_sparse(gradient, at)
    return _read(gradient, at)


def problem_of(p: torch.Tensor, *, elementwise: bool) -> str:
    """Why a parameter is not looked at, or nothing."""
    if type(p) not in (torch.Tensor, torch.nn.Parameter):
        return f"it is a {type(p).__name__}, of which each process may have a part"
    if p.layout is not torch.strided or p.is_meta:
        return "it has no dense memory"
    if dtype_name(p) not in DTYPES:
        return f"it is {dtype_name(p)}, of which no budget is known"
    if not elementwise and p.numel() > MOST_WHOLE:
        return f"its elements depend on each other, and it has {p.numel()}: up to {MOST_WHOLE} are judged, as a whole"
    return ""


def gradient_problem(p: torch.Tensor) -> str:
    """Why a step with the gradient that a parameter has is not judged, or nothing."""
    g = p.grad
    if g is None:
        return ""
    if g.dtype is not p.dtype:
        return f"its gradient is {dtype_name(g)} where the parameter is {dtype_name(p)}"
    return "" if g.layout in (torch.strided, torch.sparse_coo) else f"its gradient has the layout {g.layout}"


def dtype_name(tensor: torch.Tensor) -> str:
    """The name of a dtype, as lives have it."""
    return str(tensor.dtype).removeprefix("torch.")
