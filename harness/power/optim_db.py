"""What PyTorch's tests of its optimizers know of each: the options that they go through, and the schedules of lr.

The entries of ``optim_db`` in ``torch/testing/_internal/common_optimizers.py`` (PyTorch 2.13) that are for the CPU. They are
written down here, because that module is private, needs the packages of PyTorch's own tests, and changes settings of the process
that imports it; a test holds this copy to it.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.optim.lr_scheduler import (
    ConstantLR,
    ExponentialLR,
    LinearLR,
    PolynomialLR,
    ReduceLROnPlateau,
    StepLR,
)

_TENSOR_LR = {"lr": torch.tensor(0.001)}

#: ``optim_inputs_func`` of each optimizer.
OPTIONS: dict[str, tuple[dict[str, Any], ...]] = {
    "Adadelta": (
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "maximize": True},
        {"rho": 0.95, "weight_decay": 0.9},
    ),
    "Adafactor": (
        {},
        {"weight_decay": 0.1, "lr": 0.01},
        {"weight_decay": 0.1, "maximize": True},
        {"beta2_decay": -1.0},
        {"d": 1.5},
    ),
    "Adagrad": (
        {},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"lr": 0.1},
        {"initial_accumulator_value": 0.1, "weight_decay": 0.1},
        {"lr": 0.1, "lr_decay": 0.5, "weight_decay": 0.1},
        _TENSOR_LR,
    ),
    "Adam": (
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "amsgrad": True},
    ),
    "Adamax": (
        {},
        {"lr": 0.1},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "maximize": True},
    ),
    "AdamW": (
        {},
        {"lr": 0.01},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
        {"weight_decay": 0.1, "amsgrad": True},
    ),
    "ASGD": (
        {},
        {"lambd": 0.1},
        {"lr": 0.02},
        {"t0": 100},
        {"maximize": True},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "maximize": True},
    ),
    "LBFGS": ({}, {"lr": 0.01}, _TENSOR_LR, {"tolerance_grad": 1e-6}, {"line_search_fn": "strong_wolfe"}),
    "Muon": (
        {},
        {"lr": 0.01},
        _TENSOR_LR,
        {"weight_decay": 0.2},
        {"momentum": 0.8},
        {"ns_steps": 6},
        {"ns_coefficients": (3.4, -4.7, 2.0)},
    ),
    "NAdam": (
        {},
        {"lr": 0.001},
        {"momentum_decay": 0.006},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "momentum_decay": 0.006},
        {"weight_decay": 0.1, "momentum_decay": 0.006, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "maximize": True},
    ),
    "RAdam": (
        {},
        {"lr": 0.002},
        {"eps": 1e-6},
        {"weight_decay": 0.1},
        {"weight_decay": 0.1, "decoupled_weight_decay": True},
        {"weight_decay": 0.1, "maximize": True},
    ),
    "RMSprop": (
        {},
        {"lr": 0.001},
        {"weight_decay": 0.1},
        {"maximize": True},
        {"weight_decay": 0.1, "centered": True},
        {"maximize": True, "weight_decay": 0.1},
        {"weight_decay": 0.1, "centered": True, "momentum": 0.1},
        {"weight_decay": 0.1, "centered": True, "momentum": 0.1, "maximize": True},
    ),
    "Rprop": ({}, {"lr": 0.0002}, {"etas": (0.5, 1.5)}, {"step_sizes": (2e-6, 100)}, {"maximize": True}),
    "SGD": (
        {},
        {"lr": 0.01},
        _TENSOR_LR,
        {"weight_decay": 0.5},
        {"momentum": 0.9},
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "dampening": 0.5},
        {"momentum": 0.9, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ),
    "SparseAdam": ({}, {"lr": 0.01}, _TENSOR_LR, {"maximize": True}),
}

_STEPWISE = partial(StepLR, gamma=0.9, step_size=10)
_BY_LOSS = partial(ReduceLROnPlateau)

_SCHEDULES: dict[str, tuple[tuple[Callable[..., Any], ...], ...]] = {
    "Adam": (
        (partial(ExponentialLR, gamma=0.9),),
        (partial(LinearLR, start_factor=0.4, total_iters=4),),
        (partial(ConstantLR, factor=0.4, total_iters=4), partial(ExponentialLR, gamma=0.9)),
        (partial(ExponentialLR, gamma=0.9), _BY_LOSS),
        (partial(ConstantLR, factor=0.4, total_iters=4),),
        (partial(PolynomialLR, power=0.9, total_iters=4),),
        (_STEPWISE, _BY_LOSS),
    ),
    "SGD": (
        (_STEPWISE,),
        (partial(LinearLR, start_factor=0.4, end_factor=0.8, total_iters=4),),
        (_STEPWISE, partial(LinearLR, start_factor=0.4, end_factor=0.6, total_iters=4)),
        (partial(StepLR, gamma=0.99, step_size=10), partial(ExponentialLR, gamma=0.99), _BY_LOSS),
        (partial(ConstantLR, factor=0.4, total_iters=4),),
        (partial(PolynomialLR, power=0.9, total_iters=4),),
        (_STEPWISE, _BY_LOSS),
    ),
}


def options(make: Callable[..., Any], like: str) -> list[dict[str, Any]]:
    """The options of the database, as far as the class has them; each set once."""
    parameters = inspect.signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    found: list[dict[str, Any]] = []
    for given in OPTIONS[like]:
        taken = {name: value for name, value in given.items() if takes_any or name in parameters}
        if repr(taken) not in map(repr, found):
            found.append(taken)
    return copy.deepcopy(found)  # a schedule writes to an lr that is a tensor


def knows(like: str) -> bool:
    """Whether it is an optimizer of ``torch.optim``; of any other, neither the database nor who compares with torch has anything to say."""
    return like in OPTIONS


def schedules(like: str) -> tuple[tuple[Callable[..., Any], ...], ...]:
    """``scheduler_inputs``: each a combination of schedulers, to be called with the optimizer."""
    return _SCHEDULES.get(like, ((_STEPWISE, _BY_LOSS),))


def only_sparse(like: str) -> bool:
    """``only_supports_sparse_grads``."""
    return like == "SparseAdam"


def requires_closure(like: str) -> bool:
    """``step_requires_closure``; these do not take groups either."""
    return like == "LBFGS"


def only_matrices(like: str) -> bool:
    """Whether parameters have to have two dimensions."""
    return like == "Muon"
