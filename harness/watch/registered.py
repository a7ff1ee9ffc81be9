"""Does every parameter of the model stand in the optimizer, once, with memory of its own?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch

from stepcheck.harness.watch.moment import Moment, Quiet
from stepcheck.harness.watch.sampling import places, taken

#: Elements of a gradient that are looked at, for whether it is zero.
_MOST = 64


class Registered(Quiet):
    """Looks at the groups, and at the parameters of the model.

    Args:
        beside: other optimizers, which step other parameters of the model.
    """

    def __init__(self, model: torch.nn.Module | None, beside: Sequence[torch.optim.Optimizer]) -> None:
        self.model, self.beside = model, tuple(beside)

    def begins(self, moment: Moment) -> None:
        if not moment.watched:
            return
        own = [p for _, p in moment.parameters()]
        moment.found.looked["registered"] += len(own)
        self._look_for_doubles(moment, own)
        self._look_for_shared(moment, own)
        if self.model is not None:
            self._look_for_lacking(moment, {id(p) for p in (*own, *self._others())})

    def _others(self) -> list[torch.Tensor]:
        return [p for optimizer in self.beside for group in optimizer.param_groups for p in group["params"]]

    def _look_for_doubles(self, moment: Moment, own: list[torch.Tensor]) -> None:
        times = Counter(map(id, own))
        others = {id(p) for p in self._others()}
        for p in own:
            if times[id(p)] > 1:
                told = f"it stands in the optimizer {times[id(p)]} times, and is stepped as often"
                moment.see("registered", "double", told, p)
            if id(p) in others:
                moment.see("registered", "beside", "two optimizers step it", p)

    def _look_for_lacking(self, moment: Moment, there: set[int]) -> None:
        assert self.model is not None
        for p in self.model.parameters():
            if p.requires_grad and id(p) not in there and _pulls(p):
                told = "it gets a gradient and is not in the optimizer: it is never stepped (freeze it with requires_grad_(False), or name its optimizer with beside=)"
                moment.see("registered", "lacking", told, p)

    def _look_for_shared(self, moment: Moment, own: list[torch.Tensor]) -> None:
        """One memory that two parameters lie in, or the tensors of two states."""
        at: dict[int, torch.Tensor] = {}
        for p in {id(p): p for p in own}.values():
            moment.found.looked["own-memory"] += 1
            if _address(p) in at and _address(p):
                moment.see(
                    "own-memory",
                    "parameters",
                    f"it shares memory with {moment.names.of(at[_address(p)])}: each is stepped for both",
                    p,
                )
            at.setdefault(_address(p), p)
        held: dict[int, torch.Tensor] = {}
        for p in own:
            for name, tensor in (moment.optimizer.state.get(p) or {}).items():
                address = _address(tensor) if isinstance(tensor, torch.Tensor) and tensor.numel() > 1 else 0
                other = held.setdefault(address, p)
                if address and other is not p:
                    moment.see(
                        "own-memory", "state", f"its {name} shares memory with the state of {moment.names.of(other)}", p
                    )


def _address(tensor: torch.Tensor) -> int:
    """Where a tensor begins in memory; 0 where it has none."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.layout is torch.strided
    return tensor.data_ptr() if plain and tensor.numel() else 0


def _pulls(p: torch.Tensor) -> bool:
    """Whether a parameter has a gradient that is not zero, as far as that is looked at."""
    g = p.grad
    if g is None:
        return False
    values = g._values() if g.is_sparse else g  # noqa: SLF001 - an uncoalesced tensor has no other way
    return bool(taken(values, places(values.numel(), _MOST, 0, 0, 0)).any()) if values.numel() else False
