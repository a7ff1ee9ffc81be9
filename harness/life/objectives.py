"""What closures evaluate. Each function is an expression of torch, so that a repro shows exactly what was played."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from stepcheck.harness.life.events import OBJECTIVES, Objective

#: A scalar of ``x``, a float64 vector: a parameter's distance from its centre.
EXPRESSIONS: dict[str, str] = {
    # Curvatures 1, 2, 3, ...
    "quadratic": "(x * x * torch.arange(1, x.numel() + 1, device=x.device)).sum() / 2",
    "quartic": "(x**4).sum() / 4 + (x * x).sum() / 20",
    "rosenbrock": "(100 * (x[1:] - x[:-1] ** 2) ** 2).sum() + ((1 - x) ** 2).sum()",
    # Curvature changes its sign, so that a line search without a Wolfe condition meets pairs to be refused.
    "saddle": "(torch.cos(3 * x) + x * x / 10).sum()",
    "linear": "x.sum()",
    # Steep on one side: long extrapolations, and brackets that shrink.
    "cliff": "(torch.exp(-x) + x).sum()",
    # NaN beyond -1.
    "log": "(x - torch.log1p(x)).sum()",
    # Gradients and changes of the loss below the tolerances.
    "flat": "(x * x).sum() * 1e-9",
    # Up and down within any step, so that each trial of a line search is anything to those before: alike everywhere, and with slopes
    # of any size at any height. Of the sum, so that it is as steep for many elements as for one.
    "ripples": "torch.sin(4096 * x.sum()) / 4096",
    # Lower from one trial to the next or not, and always about as steep: brackets are sought until the evaluations run out.
    "saw": "x.sum() - 0.9 * torch.floor(256 * x.sum()) / 256",
    # Lower up to the next edge alone, of a million in any step, and about as steep everywhere: brackets close in on where the search began,
    # until they are narrow. Steeper by turns, so that it shows which end of a bracket is gone on from.
    "edges": "x.sum() - 1.02 * torch.floor(2**28 * x.sum()) / 2**28 + (2**28 * x.sum() % 2 - 1).abs() / (25 * 2**28)",
    # As steep on one side as on the other: brackets close in on the kink, whose ends are found and last tried by turns.
    "kink": "x.sum().abs()",
    "waves": "sum(torch.sin(k * x.sum()) / k for k in (1, 8, 64, 512, 4096))",
}
assert tuple(EXPRESSIONS) == OBJECTIVES

FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    name: eval(f"lambda x: {expression}", {"torch": torch})  # noqa: S307 - the constants above
    for name, expression in EXPRESSIONS.items()
}


def flat(parameter: torch.Tensor) -> torch.Tensor:
    """A parameter as a float64 vector; of complex numbers, real and imaginary parts in turn."""
    real = torch.view_as_real(parameter) if parameter.is_complex() else parameter
    return real.reshape(-1).double()


def loss(objective: Objective, parameters: list[torch.Tensor], centres: list[Any]) -> torch.Tensor:
    """The objective's value, with a graph that leads to the parameters."""
    function = FUNCTIONS[objective.kind]
    total = sum(function(flat(p) - c) for p, c in zip(parameters, centres, strict=True))
    return objective.scale * torch.as_tensor(total)
