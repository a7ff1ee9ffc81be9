"""Learning rate schedules: the real ones of torch.optim.lr_scheduler, and what they must do to the options of a life."""

from __future__ import annotations

import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch.optim import lr_scheduler

from stepcheck.harness.life.events import SCHEDULES, Option, Scalar
from stepcheck.harness.life.spelling import spelled, unspelled

#: Arguments, such that few steps show what a schedule does, and no learning rate becomes negative.
_ARGUMENTS: dict[str, dict[str, Any]] = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "ExponentialLR": {"gamma": 0.9},
    "LinearLR": {"start_factor": 0.25, "total_iters": 3},
    "ConstantLR": {"factor": 0.5, "total_iters": 2},
    "LambdaLR": {},
    "MultiplicativeLR": {},
    "CosineAnnealingLR": {"T_max": 50},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "PolynomialLR": {"total_iters": 50, "power": 2.0},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 1000},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3},
    "ReduceLROnPlateau": {"patience": 0, "factor": 0.5},
}
assert tuple(_ARGUMENTS) == SCHEDULES
#: The options that schedules change.
SCHEDULED = ("lr", "momentum", "betas")


def attach(kind: str, optimizer: torch.optim.Optimizer, *, cycle: bool = True) -> Any:
    """A new schedule for an optimizer; it may change its options at once.

    Args:
        cycle: momentum may be scheduled as well.
    """
    arguments = dict(_ARGUMENTS[kind])
    if kind in ("LambdaLR", "MultiplicativeLR"):
        # Another factor for each group.
        arguments["lr_lambda"] = [_Factor(2 + n) for n in range(len(optimizer.param_groups))]
    if kind in ("OneCycleLR", "CyclicLR"):
        cycled = any(name in optimizer.param_groups[0] for name in ("momentum", "betas"))
        arguments["cycle_momentum"] = cycle and cycled
    return getattr(lr_scheduler, kind)(optimizer, **arguments)


def written(kind: str, options: Collection[str], groups: int, *, cycle: bool = True) -> str:
    """``attach`` as an expression.

    Args:
        options: the names of the optimizer's options.
    """
    arguments = [f"{k}={v!r}" for k, v in _ARGUMENTS[kind].items()]
    if kind in ("LambdaLR", "MultiplicativeLR"):
        arguments.append(f"lr_lambda=[{', '.join(f'lambda t: {2 + n} / ({2 + n} + t)' for n in range(groups))}]")
    if kind in ("OneCycleLR", "CyclicLR"):
        arguments.append(f"cycle_momentum={cycle and any(name in options for name in ('momentum', 'betas'))}")
    return f"torch.optim.lr_scheduler.{kind}(optimizer, {', '.join(arguments)})"


def advance(schedule: Any) -> None:
    """One step of a schedule; of the one that waits for a plateau, on a plateau."""
    if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
        schedule.step(1.0)
    else:
        schedule.step()


class _Factor:
    """A factor that falls with the number of steps; an object, because the state of a schedule leaves functions out."""

    def __init__(self, of: int) -> None:
        self.of = of

    def __call__(self, step: int) -> float:
        return self.of / (self.of + step)


class Rehearsal:
    """What schedules make of the options of some groups, whoever the optimizer is: each group has tensors of its own.

    Args:
        groups: the options in force for each group.
        cycle: momentum may be scheduled as well.
    """

    def __init__(self, groups: Sequence[Mapping[str, Option]], *, cycle: bool) -> None:
        given = [_group(g) for g in groups]
        self.optimizer = torch.optim.Optimizer(given, {k: v for k, v in given[0].items() if k != "params"})
        self.cycle = cycle
        self.schedule: Any = None

    def attach(self, kind: str) -> None:
        """Go on with another schedule; as on any optimizer, it builds upon what the one before has left."""
        self.schedule = attach(kind, self.optimizer, cycle=self.cycle)

    def advance(self) -> None:
        advance(self.schedule)

    def add(self, options: Mapping[str, Option]) -> None:
        """One group more."""
        self.optimizer.add_param_group(_group(options))

    def set(self, group: int, option: str, value: Option) -> None:
        """An option that is changed beside the schedule."""
        self.optimizer.param_groups[group][option] = as_given(value)

    def options(self) -> list[dict[str, Option]]:
        """The options of each group now."""
        return [{k: as_option(v) for k, v in g.items() if k in SCHEDULED} for g in self.optimizer.param_groups]


def _group(options: Mapping[str, Option]) -> dict[str, Any]:
    scheduled = {k: as_given(v) for k, v in options.items() if k in SCHEDULED}
    return {"params": [torch.zeros(1)], **scheduled}


def as_given(value: Option, device: str = "cpu", spelling: str = "plain") -> Any:
    """An option as an optimizer is given it; a tensor on the CPU or on the device, as :func:`place` says."""
    if not isinstance(value, Scalar):
        return spelled(value, spelling)
    return torch.tensor(value.value, dtype=torch.float32, device=place(value, device))


def place(value: Scalar, device: str) -> str:
    """Where the tensor of an option stands: half of the numbers on the CPU, the others on the device of the parameters."""
    return device if zlib.crc32(repr(value.value).encode()) % 2 else "cpu"


def as_option(value: Any) -> Option:
    """An option of an optimizer as one of a life, however it is written."""
    option: Option
    if value is None or type(value) in (bool, float):  # as most are
        option = value
    elif isinstance(value, torch.Tensor) and value.numel() == 1:
        option = Scalar(float(value.detach()))
    else:
        option = unspelled(value)
    return option
