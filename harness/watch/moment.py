"""One call of ``step()``, as all that look at it see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from stepcheck.harness.watch.findings import Finding, Found
from stepcheck.harness.watch.step import Stepped


class Names:
    """What the parameters are called: as in the model, or by their place in the groups."""

    def __init__(self, optimizer: torch.optim.Optimizer, model: torch.nn.Module | None) -> None:
        self.optimizer, self.model = optimizer, model
        self._names: dict[int, str] = {}

    def of(self, p: torch.Tensor) -> str:
        """The name of a parameter, which may have come since this was asked last."""
        if id(p) not in self._names:
            self._read()
        return self._names.get(id(p), f"a parameter of shape {tuple(p.shape)}")

    def _read(self) -> None:
        for g, group in enumerate(self.optimizer.param_groups):
            for i, p in enumerate(group["params"]):
                self._names.setdefault(id(p), f"param_groups[{g}]['params'][{i}]")
        for name, p in self.model.named_parameters() if self.model is not None else ():
            self._names[id(p)] = name


@dataclass
class Moment:
    """One call of ``step()``.

    Attributes:
        number: from 1, since the watch began.
        watched: whether it is compared with the reference.
        closure: it evaluates a closure, which may write gradients.
        scale: what the gradients are multiplied by, if the step itself is to undo that; else 1.
        skipped: whether a ``GradScaler`` makes it do nothing; ``None`` where to ask would mean to wait for a device.
        stepped: what is looked at of each parameter with a gradient, once it has been taken.
    """

    optimizer: torch.optim.Optimizer
    names: Names
    found: Found
    number: int
    watched: bool
    closure: bool = False
    scale: float = 1.0
    skipped: bool | None = False
    stepped: list[tuple[torch.Tensor, Stepped]] = field(default_factory=list)

    def parameters(self) -> Iterator[tuple[dict[str, Any], torch.Tensor]]:
        """All parameters, each with its group."""
        for group in self.optimizer.param_groups:
            for p in group["params"]:
                yield group, p

    def see(
        self, check: str, cause: str, told: str, p: torch.Tensor | None = None, *, certain: bool = True
    ) -> Finding | None:
        """Keep what was seen; gives it back where its cause is new."""
        name = "" if p is None else self.names.of(p)
        return self.found.see(cause, Finding(check, self.number, told, certain=certain, parameter=name))


class Observer(Protocol):
    """Looks at steps, for one kind of question."""

    def begins(self, moment: Moment) -> None:
        """A step is about to be taken; its gradients are there, but for those that a closure computes."""

    def ends(self, moment: Moment) -> None:
        """It has been taken."""

    def forget(self) -> None:
        """What was seen of state and parameters is not expected any more."""

    def close(self) -> None:
        """Take away what was attached."""


class Quiet:
    """An observer that does nothing: for those that do a part of it."""

    def begins(self, moment: Moment) -> None:
        """See :class:`Observer`."""

    def ends(self, moment: Moment) -> None:
        """See :class:`Observer`."""

    def forget(self) -> None:
        """See :class:`Observer`."""

    def close(self) -> None:
        """See :class:`Observer`."""
