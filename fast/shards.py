"""DTensors: the part of a tensor that is on this rank, and the way from parts to the whole and back.

Parameters are DTensors where a model is sharded (``fully_shard``) or split (``parallelize_module``). What works element by element steps
the parts and lets ranks alone; what needs the whole gathers it.

This module, and no other, looks into a DTensor. Its part has a public name, ``to_local``, but that makes a new tensor at each call where
gradients are enabled or the DTensor is a parameter; a plan has to know whether a part is still the one that it points to.

``torch.distributed.tensor`` takes long to import, and is imported here only where there is a DTensor, so that somebody has done it.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor
    from torch.optim import Optimizer

#: What ``engine`` tells of a group whose DTensors are made whole.
GATHERED = "the whole of each DTensor is gathered on every rank"
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def is_sharded(tensor: Any) -> TypeGuard[DTensor]:
    """Whether this is a DTensor, however placed."""
    if type(tensor) in _PLAIN:
        return False
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and type(tensor) is getattr(module, "DTensor", None)


def any_sharded(groups: Sequence[dict[str, Any]]) -> bool:
    """Whether a parameter of these groups is a DTensor."""
    return any(is_sharded(p) for group in groups for p in group["params"])


def local(tensor: Any) -> torch.Tensor:
    """What of a tensor is on this rank, not a copy: of a DTensor its part, waited for if it is under way, else the tensor itself."""
    if type(tensor) in _PLAIN or not is_sharded(tensor):  # the first by itself: this is asked often
        return cast("torch.Tensor", tensor)
    (part,) = parts([tensor])
    if type(part) in _PLAIN:
        return part
    from torch.distributed._functional_collectives import AsyncCollectiveTensor

    return part.wait() if isinstance(part, AsyncCollectiveTensor) else part


def parts(tensors: Sequence[Any]) -> list[torch.Tensor]:
    """The very objects that DTensors hold as their parts."""
    return [t._local_tensor for t in tensors]


def _placed(tensor: DTensor) -> tuple[Any, ...]:
    """Where the elements of a DTensor are: its mesh, its placements, and in which order they apply."""
    spec = tensor._spec
    return spec.mesh, spec.placements, getattr(spec, "shard_order", None)


def _in_order(tensor: DTensor) -> bool:
    """Whether the placements apply in the order of the dimensions of the mesh, or say themselves in which."""
    *_, order = _placed(tensor)
    return order is None or all(list(entry.mesh_dims) == sorted(entry.mesh_dims) for entry in order)


def alike(p: Any, other: Any) -> bool:
    """Whether the same elements of both tensors are on this rank; both may be plain ones."""
    if is_sharded(p) is not is_sharded(other):
        return False
    return not is_sharded(p) or _placed(p) == _placed(other)


def refusal(p: Any, state: Mapping[str, Any], numbers: Sequence[str], *, whole: bool) -> str:
    """Why nothing can step this parameter with the gradient and the state that it has, or nothing.

    Args:
        p: a parameter that has a gradient.
        state: its own.
        numbers: keys of the state that have plain tensors.
        whole: its optimizer needs the whole of it.
    """
    g = p.grad
    if is_sharded(g) is not is_sharded(p):
        kinds = ["a DTensor" if is_sharded(x) else "a plain tensor" for x in (g, p)]
        return f"a gradient is {kinds[0]}, its parameter {kinds[1]}: make both the same with distribute_tensor or full_tensor"
    for key, value in state.items():
        if key not in numbers and isinstance(value, torch.Tensor) and is_sharded(value) is not is_sharded(p):
            kinds = ["a DTensor" if is_sharded(x) else "a plain tensor" for x in (value, p)]
            return f"{key} in the state is {kinds[0]}, its parameter {kinds[1]}: load it with set_optimizer_state_dict"
    if not is_sharded(p):
        return ""
    mesh, placements, order = _placed(p)
    if any(placement.is_partial() for placement in placements):
        return f"a parameter is placed as {placements}, a sum yet to be taken: redistribute it to Shard or Replicate"
    if _placed(g)[0] != mesh:
        return f"a gradient is on {_placed(g)[0]}, its parameter on {mesh}: bring it to the parameter's mesh"
    # The public ways to place a tensor apply placements in the order of the dimensions of its mesh.
    if (whole or not alike(p, g)) and not _in_order(p):
        return f"a parameter is sharded in the order {order}: redistribute it to the order of its mesh's dimensions"
    return ""


# --- From parts to the whole and back: each of these is called by all ranks of the mesh


@torch.no_grad()
def placed_as(tensor: Any, p: Any) -> torch.Tensor:
    """The part of a DTensor that would be on this rank were it placed as ``p``; of plain tensors the tensor itself.

    Raises:
        RuntimeError: that part does not have the shape of the part of ``p``.
    """
    if not is_sharded(p):
        return cast("torch.Tensor", tensor)
    part = local(tensor if alike(p, tensor) else tensor.redistribute(p.device_mesh, p.placements))
    if part.shape != local(p).shape:
        raise RuntimeError(
            f"of a gradient, {tuple(part.shape)} is on this rank, of its parameter {tuple(local(p).shape)}, although placed alike"
        )
    return part


def like(p: DTensor, part: torch.Tensor, shape: torch.Size | None = None, *, replicated: bool = False) -> DTensor:
    """The DTensor of the shape and placements of ``p``, or replicated and of another shape, whose part on this rank is ``part``."""
    from torch.distributed.tensor import DTensor, Replicate

    placements = [Replicate()] * p.device_mesh.ndim if replicated else p.placements
    shape = p.shape if shape is None else shape
    strides = torch.empty(shape, device="meta").stride()
    return DTensor.from_local(part, p.device_mesh, placements, run_check=False, shape=shape, stride=strides)


@torch.no_grad()
def whole(tensor: DTensor) -> torch.Tensor:
    """All elements of a DTensor, sums taken; not a copy where all of them are on this rank."""
    return tensor.full_tensor().detach()


def plain(value: Any) -> Any:
    """A plain tensor in place of a DTensor; all else as it is."""
    return whole(value) if is_sharded(value) else value


def agreed(loss: Any, params: Sequence[Any]) -> float:
    """A loss as a number; with DTensors among ``params``, that which all ranks have.

    Raises:
        RuntimeError: ranks have different ones, so that they would take different decisions.
    """
    loss = plain(loss)
    for mesh, device in {p.device_mesh: p.device for p in params if is_sharded(p)}.items():
        from torch.distributed.tensor import DTensor, Shard

        own = torch.tensor([float(loss)], dtype=torch.float64, device=device)
        placements = [Shard(0)] * mesh.ndim
        found = whole(DTensor.from_local(own, mesh, placements, run_check=False)).tolist()
        if len(set(map(str, found))) > 1:  # as text, in which NaN is NaN
            raise RuntimeError(f"the closure returns another loss on each rank, {found}; reduce it over all ranks")
    return float(loss)


def gathered(p: DTensor, part: torch.Tensor) -> torch.Tensor:
    """All elements of what is placed as ``p``, given those of this rank."""
    return whole(like(p, part.contiguous()))


@torch.no_grad()
def part_of(p: DTensor, full: torch.Tensor) -> torch.Tensor:
    """Those elements of a whole tensor that are on this rank if it is placed as ``p``. Ranks need not wait for each other."""
    return local(like(p, full.contiguous(), replicated=True).redistribute(p.device_mesh, p.placements))


@torch.no_grad()
def step_whole(optimizer: Optimizer, numbers: Sequence[str], step: Callable[[], None]) -> None:
    """Step each DTensor as if it were whole, one after another, and then all plain tensors.

    For the time of ``step``, the optimizer has one group of one plain parameter, made of the parts of all ranks, and its state; what
    becomes of them is put into the parts. New tensors of the state are DTensors: placed as their parameter if they have its shape,
    otherwise replicated.

    Args:
        optimizer: whose ``param_groups`` and ``state`` these are.
        numbers: keys of the state that stay plain tensors.
        step: of all parameters of the optimizer.
    """
    groups, states = optimizer.param_groups, optimizer.state
    try:
        for group in groups:
            for p in (p for p in group["params"] if is_sharded(p) and p.grad is not None):
                full = whole(p)
                full.grad = plain(p.grad)
                there = states.get(p, {})
                state = {key: plain(x) for key, x in there.items()}
                optimizer.param_groups, optimizer.state = (
                    [{**group, "params": [full]}],
                    defaultdict(dict, {full: state}),
                )
                step()
                local(p).copy_(part_of(p, full))
                torch.autograd.graph.increment_version([p])
                if state:
                    states[p].update({k: x if k in numbers else _kept(p, there.get(k), x) for k, x in state.items()})
        others = [{**group, "params": [p for p in group["params"] if not is_sharded(p)]} for group in groups]
        optimizer.param_groups, optimizer.state = others, states
        step()
    finally:
        optimizer.param_groups, optimizer.state = groups, states


def _kept(p: DTensor, there: Any, value: Any) -> Any:
    """What stands in the state of ``p`` for ``value``, which stands in that of the whole."""
    if not isinstance(value, torch.Tensor):
        return value
    if is_sharded(there):
        local(there).copy_(part_of(there, value))
        return there
    if value.shape == p.shape:
        return like(p, part_of(p, value).clone())
    return like(p, value, value.shape, replicated=True)
