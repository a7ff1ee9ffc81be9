"""A program is played three times: with a fast class, with torch's, and with torch's whose steps are a millionth too long.

The first two must end at the same weights and show the same behaviour. The third must not: so no comparison here is one that could not
have failed.
"""

import copy
import importlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from stepcheck import fast

#: One set of options for each class, that gives it state and branches, and steps that are long beside a rounding.
OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "ASGD": {"lr": 0.1},
    "Adadelta": {"lr": 1.0},
    "Adafactor": {"lr": 0.02},
    "Adagrad": {"lr": 0.1, "initial_accumulator_value": 0.5},
    "Adam": {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1},
    "Adamax": {"lr": 0.01},
    "LBFGS": {"lr": 0.5, "max_iter": 2},
    "Muon": {"lr": 0.02},
    "NAdam": {"lr": 0.01},
    "RAdam": {"lr": 0.01},
    "RMSprop": {"lr": 0.01, "centered": True, "momentum": 0.5},
    "Rprop": {"lr": 0.01},
    "SparseAdam": {"lr": 0.01},
}
DENSE = [name for name in OPTIONS if name != "SparseAdam"]
#: Those that step by gradients that are there.
STEPPING = [name for name in DENSE if name != "LBFGS"]
#: A rule with two moments, one with one, and the two that look at the whole of a matrix; where a program takes long.
TELLING = ["AdamW", "SGD", "Adafactor", "Muon"]
#: RAdam's step is another from the sixth on.
STEPS = 8

#: Half a unit in the last place of numbers of about 1.
ROUNDING = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
#: How much too long the steps are that must be told from right ones.
MILLIONTH = 2.0**-20
#: How many roundings the sides may be apart after some ten steps, relative to the largest element of a tensor: 1e-10. It stands between
#: two things that the tests measure. Right classes are apart by tens of roundings. Steps that are too long by a millionth are
#: apart by more than this.
ALLOWED = 2.0**20


@dataclass
class Outcome:
    """Where a program ended.

    Attributes:
        tensors: weights, and whatever else is computed from them.
        seen: what a program was told by the optimizer, which is the same or is not: counts, learning rates, keys.
    """

    tensors: list[torch.Tensor]
    seen: Any = None


@dataclass
class Record:
    """The largest differences, by program and class, in roundings."""

    largest: dict[str, dict[str, float]] = field(default_factory=dict)

    def note(self, program: str, name: str, roundings: float) -> None:
        of_program = self.largest.setdefault(program, {})
        of_program[name] = max(of_program.get(name, 0.0), roundings)

    def table(self) -> str:
        """In Markdown."""
        lines = [f"| program | classes | largest difference in {UNIT_TOLD} | of |", "|---|---|---|---|"]
        for program, classes in self.largest.items():
            name = max(classes, key=lambda n: classes[n])
            lines.append(f"| {program} | {len(classes)} | {classes[name]:.0f} | {name} |")
        return "\n".join(lines)


UNIT_TOLD = "2^-53 of the largest element"
RECORD = Record()


def weights(made: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in made.state_dict().values() if p.is_floating_point()]


def state(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """The tensors of a state, in the order of its keys."""
    saved = optimizer.state_dict()["state"]
    return [v.clone() for of_one in saved.values() for _, v in sorted(of_one.items()) if isinstance(v, torch.Tensor)]


def keys(optimizer: torch.optim.Optimizer) -> Any:
    """What a ``state_dict`` is made of, but for the numbers in tensors; of LBFGS, whose state torch makes as it goes, the groups alone."""
    saved = optimizer.state_dict()
    groups = copy.deepcopy(saved["param_groups"])
    if isinstance(optimizer, torch.optim.LBFGS):
        return [{k: v for k, v in group.items() if k != "maximize"} for group in groups]  # torch has it from 2.14 on
    kinds = [(i, {k: (type(v), getattr(v, "dtype", None)) for k, v in s.items()}) for i, s in saved["state"].items()]
    return kinds, groups


def apart(these: list[torch.Tensor], those: list[torch.Tensor]) -> float:
    """The largest difference, in roundings of the largest element of its tensor."""
    assert [t.shape for t in these] == [t.shape for t in those]
    assert [t.dtype for t in these] == [t.dtype for t in those]
    return max((_roundings(a, b) for a, b in zip(these, those, strict=True)), default=0.0)


def _roundings(a: torch.Tensor, b: torch.Tensor) -> float:
    if not a.numel() or torch.equal(a, b):
        return 0.0
    assert torch.isfinite(a).all()
    assert torch.isfinite(b).all()
    return float((a - b).abs().max() / b.abs().max()) / ROUNDING[b.dtype]


def too_long(cls: type[torch.optim.Optimizer], by: float) -> type[torch.optim.Optimizer]:
    """The class, with a learning rate that is a little larger than it says."""

    class TooLong(cls):
        def step(self, closure=None):
            told = [group["lr"] for group in self.param_groups]
            for group in self.param_groups:
                group["lr"] = group["lr"] * (1 + by)
            try:
                return super().step(closure)
            finally:
                for group, lr in zip(self.param_groups, told, strict=True):
                    group["lr"] = lr

    TooLong.__name__ = TooLong.__qualname__ = cls.__name__
    return TooLong


def same(label: str, name: str, program: Any, *, roundings: float = ALLOWED, by: float = MILLIONTH) -> None:
    """Assert that a program does with the fast class what it does with torch's, and does not with a slightly wrong one.

    Args:
        label: which row of the table it belongs to.
        name: the class.
        program: called with a class; returns an :class:`Outcome`.
        roundings: how many the sides may be apart.
        by: by how much the steps of the wrong one are too long.
    """
    theirs = program(getattr(torch.optim, name))
    ours = program(getattr(fast, name))
    assert ours.seen == theirs.seen
    found = apart(ours.tensors, theirs.tensors)
    RECORD.note(label, name, found)
    assert found <= roundings, f"{label}, {name}: {found:.4g} roundings apart, {roundings:.4g} allowed"
    wrong = program(too_long(getattr(torch.optim, name), by))
    missed = apart(wrong.tensors, theirs.tensors)
    assert missed > roundings, (
        f"{label}, {name}: a wrong step would pass: {missed:.4g} roundings apart, {roundings:.4g} allowed"
    )


def needed(package: str) -> Any:
    """The package; where it is not installed, the tests are skipped in words, and in ``nox -s programs`` it is a failure."""
    if os.environ.get("STEPCHECK_PROGRAMS") == "required":
        return importlib.import_module(package)
    return pytest.importorskip(package, reason=f"{package} is not installed: pip install 'stepcheck[programs]'")


# --- What is trained


def model(name: str, dtype: torch.dtype = torch.float64) -> nn.Module:
    """A small one, with parameters that the class takes: Muon takes matrices, SparseAdam sparse gradients."""
    torch.manual_seed(0)
    if name == "SparseAdam":
        return nn.Sequential(nn.Embedding(9, 3, sparse=True)).to(dtype)
    bias = name != "Muon"
    return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.Tanh(), nn.Linear(8, 3, bias=bias)).to(dtype)


def inputs(name: str, step: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(step)
    if name == "SparseAdam":
        return torch.randint(9, (5,), generator=generator)
    return torch.randn(5, 6, generator=generator, dtype=torch.float64).to(dtype)


def loss(made: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return (made(x) - 1).square().mean()


def advance(name: str, made: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor:
    """One step, by a closure where the class needs one. Returns the loss before it."""

    def closure():
        optimizer.zero_grad()
        value = loss(made, inputs(name, step))
        value.backward()
        return value

    if name == "LBFGS":
        return optimizer.step(closure).detach()
    value = closure()
    optimizer.step()
    return value.detach()


# --- What a process of its own found


def save(path: Path) -> None:
    """For the process that started this one."""
    path.write_text(json.dumps(RECORD.largest), encoding="utf-8")


def read(path: Path) -> None:
    for program, classes in json.loads(path.read_text(encoding="utf-8")).items():
        for name, roundings in classes.items():
            RECORD.note(program, name, roundings)
