"""How fast memory is in place: kernels of the same engine with as many streams as an optimizer, and next to no arithmetic.

A step of an elementwise optimizer reads parameter, gradient and buffers and writes all but the gradient. These rules do that and no
more: a sign changes, so that values neither grow nor vanish, and the gradient is added. What a fast optimizer reaches of their
speed is its share of the ceiling.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from stepcheck.fast.engine import Launch, Member
from stepcheck.fast.kernels import Layout
from stepcheck.fast.rules import Buffer, Rule

# The source of a rule's functions is read, so each is written out.


def _prepare() -> tuple[float]:
    return (-1.0,)


def _none(p: float, g: float, c: float) -> tuple[float]:
    return (c * p + g,)


def _one(p: float, g: float, a: float, c: float) -> tuple[float, float]:
    return c * p + g, c * a


def _two(p: float, g: float, a: float, b: float, c: float) -> tuple[float, float, float]:
    return c * p + g, c * a, c * b


def _three(p: float, g: float, a: float, b: float, d: float, c: float) -> tuple[float, float, float, float]:
    return c * p + g, c * a, c * b, c * d


def _four(
    p: float, g: float, a: float, b: float, d: float, e: float, c: float
) -> tuple[float, float, float, float, float]:
    return c * p + g, c * a, c * b, c * d, c * e


def _five(
    p: float, g: float, a: float, b: float, d: float, e: float, f: float, c: float
) -> tuple[float, float, float, float, float, float]:
    return c * p + g, c * a, c * b, c * d, c * e, c * f


_UPDATES: tuple[Callable[..., tuple[float, ...]], ...] = (_none, _one, _two, _three, _four, _five)
#: By the number of buffers.
RULES = tuple(
    Rule(f"ceiling_{n}", _prepare, update, buffers={name: Buffer() for name in "abdef"[:n]})
    for n, update in enumerate(_UPDATES)
)


def launch(
    parameters: list[torch.Tensor], gradients: list[torch.Tensor], buffers: int, dtype: str = "float32"
) -> Launch:
    """A launch that passes over these tensors, and as many buffers of its own; ``run`` is one step."""
    rule = RULES[buffers]
    layout = Layout(rule, dtype, tuple(rule.buffers))
    members = [
        Member(p, (p, g, *(torch.ones_like(p, requires_grad=False) for _ in range(buffers))), (), 0)
        for p, g in zip(parameters, gradients, strict=True)
    ]
    return Launch(layout, members, np.zeros((1, 0), np.float64))
