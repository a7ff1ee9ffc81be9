"""Values as the expressions of a script."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stepcheck.harness.life import schedules
from stepcheck.harness.life.events import DEFAULT_DTYPES, Parameter, Scalar
from stepcheck.harness.life.memory import rounded
from stepcheck.harness.life.values import RAMP, Values, in_reals, is_complex, ramp_stride
from stepcheck.harness.numbers.comparison import Array

#: A step in what a life says that it is taken in.
SURROUNDED = {
    "no_grad": ["with torch.no_grad(): optimizer.step(); enabled = torch.is_grad_enabled()"],
    "autocast": ["with torch.autocast(params[0].device.type, torch.bfloat16): optimizer.step()"],
    **{
        within: [
            f"torch.set_default_dtype(torch.{within.split()[0]})", "optimizer.step()", "torch.set_default_dtype(torch.float32)",
        ]
        for within in DEFAULT_DTYPES
    },
    "graph": [
        "one = torch.ones((), requires_grad=True)",
        "for p in params: p.grad = p.grad if p.grad is None or p.grad.is_sparse else p.grad.detach() * one.to(p.grad)",
        "optimizer.step()",
    ],
    "more threads": ["torch.set_num_threads(3)", "optimizer.step()", "torch.set_num_threads(1)"],
}  # fmt: skip


def assigned(expressions: Mapping[str, str]) -> str:
    """Names assigned to numbers, as float64 tensors: they divide by zero and overflow as tensors do."""
    names = ", ".join(expressions) if len(expressions) > 1 else f"({next(iter(expressions))},)"
    numbers = [
        e if e[0].isdigit() or e[0] == "-" or e.startswith("torch.") else f"float({e})" for e in expressions.values()
    ]
    return f"{names} = torch.tensor([{', '.join(numbers)}], dtype=torch.float64)"


def on(device: str) -> str:
    """The argument that makes a tensor on this device."""
    return "" if device == "cpu" else f", device={device!r}"


def call(callee: str, members: str, options: Mapping[str, str]) -> str:
    """A call, its options by name."""
    return f"{callee}({', '.join([members, *(f'{k}={v}' for k, v in options.items())])})"


def dictionary(members: str, options: Mapping[str, str]) -> str:
    """The dictionary of a group."""
    return f"{{'params': {members}{''.join(f', {k!r}: {v}' for k, v in options.items())}}}"


def of_groups(callee: str, pictured: str, options: Mapping[str, str], flags: Mapping[str, str]) -> str:
    """A call with groups that are pictured as lists of parameters, one after the other."""
    parts = pictured.split("], [")
    members = [f"[{part.strip('[]')}]" for part in parts] if len(parts) > 1 else parts
    return call(callee, f"[{', '.join(dictionary(m, options) for m in members)}]", flags)


def literal(value: Any, device: str = "cpu") -> str:
    """A value as an expression; of a tensor, on the device where it stands when parameters are on this one."""
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, np.generic):
        kind = "bool_" if isinstance(value, np.bool_) else type(value).__name__
        return f"numpy.{kind}({literal(value.item())})"
    if isinstance(value, Scalar):
        where = schedules.place(value, device)
        return f"torch.tensor({number(value.value)}{on(where)})"
    return number(value) if isinstance(value, float) else repr(value)


def real(expression: str, p: Parameter) -> str:
    """The real parts of a complex parameter, or the parameter."""
    return f"torch.view_as_real({expression})" if is_complex(p.dtype) else expression


def number(x: float) -> str:
    """A number as an expression."""
    if math.isnan(x):
        return "torch.nan"
    if math.isinf(x):
        return "torch.inf" if x > 0 else "-torch.inf"
    return repr(float(x))


def _short(x: float, dtype: str) -> float:
    """A number that a tensor of this dtype holds, or one with fewer digits that it would hold as the same."""
    if dtype != "float32" or not math.isfinite(x):
        return float(x)
    short = float(np.format_float_scientific(np.float32(x)))
    return short if np.float32(short) == x else float(x)


def dense(values: Array, dtype: str) -> str:
    """An expression for a row-major tensor of these real numbers; of a complex one, the last dimension is its parts."""
    tensor = rounded(values, getattr(torch, dtype))
    shape = tuple(tensor.shape)
    if is_complex(dtype):
        real = "float32" if dtype == "complex64" else "float64"
        return f"torch.view_as_complex({dense(values, real)})"
    flat = [_short(x, dtype) for x in tensor.reshape(-1).tolist()]
    kind = "" if dtype == "float32" else f", dtype=torch.{dtype}"
    if not flat or (len(set(flat)) == 1 and math.copysign(1, flat[0]) > 0):
        return f"torch.full({shape}, {number(flat[0] if flat else 0.0)}{kind})"
    inner = f"torch.tensor([{', '.join(map(number, flat))}]{kind})"
    return inner if len(shape) == 1 else f"{inner}.view({shape})"


def ramp(values: Values, shape: tuple[int, ...], dtype: str, *, negated: bool = False) -> str:
    """An expression for a row-major tensor of a ramp: :func:`dense` would list a million numbers."""
    if is_complex(dtype):
        real = "float32" if dtype == "complex64" else "float64"
        return f"torch.view_as_complex({ramp(values, in_reals(shape, dtype), real, negated=negated)})"
    turns = f"torch.arange({math.prod(shape)}) * {ramp_stride(values.seed)} % {RAMP} - {RAMP // 2}"
    scale = values.high * 2.0**-15 * (-1 if negated else 1)
    made = f"(({turns}).double() * {number(scale)}).to(torch.{dtype})"
    return made if len(shape) == 1 else f"{made}.view({shape})"
