"""Adversarial inputs: options, numbers, and what one step is given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness.search.options import candidates
from stepcheck.reference.spec import Hyper, HyperValues, Spec

Array = npt.NDArray[np.float64]
Inexact = npt.NDArray[Any]  # float64 or float32


@dataclass(frozen=True)
class Effort:
    """How much is done.

    Attributes:
        elements: of each array of an elementwise reference.
        rounds: sets of other values for each combination of flags, beside the defaults.
        traces: for each torch subject and dtype.
        candidates: elements of float64 evaluated in multiple precision, of each kind, for each torch subject and dtype.
        costly: include subjects whose traces cost many times as much (``torch.compile``); they are given as many fewer.
    """

    elements: int
    rounds: int
    traces: int
    candidates: int
    costly: bool = True


SHORT = Effort(elements=48, rounds=2, traces=5, candidates=3, costly=False)
FULL = Effort(elements=240, rounds=9, traces=40, candidates=6)


# --- Options

#: Values beside the default, for every optimizer that has the option or for one.
VALUES: dict[str | tuple[str, str], tuple[Any, ...]] = {
    "lr": (0.1, 1.0, 3e-5, 0.0),
    "betas": ((0.5, 0.75), (0.0, 0.0), (0.9, 0.99999), (0.999, 0.9), (1 - 2.0**-20, 1 - 2.0**-30), (0.9, 1 - 2.0**-20)),
    # Not 0: then the variance of centered RMSprop is 0 wherever it is exact, and nothing is determined.
    ("RMSprop", "alpha"): (0.9, 0.5, 1.0),
    ("ASGD", "alpha"): (0.0, 0.5, 1.0, 2.0),
    "rho": (0.5, 0.95, 0.0, 1.0),
    "eps": (1e-3, 1.0, 1e-30, 0.0),
    ("Adafactor", "eps"): ((1e-10, 1.0), (1e-30, 1e-6), (1.0, 0.0), (0.0, 1e-3)),
    "weight_decay": (0.01, 0.5, 1e-8),
    "momentum": (0.9, 0.5, 1.0),
    "dampening": (0.1, 1.0, -0.5),
    "lr_decay": (1e-3, 1.0),
    "initial_accumulator_value": (0.1,),
    "etas": ((0.1, 1 + 2.0**-20), (1 - 2.0**-20, 3.0), (1 / 3, 1.5)),
    "step_sizes": ((0.0, 1e10), (0.1, 0.1), (1e-3, 0.5)),
    "lambd": (0.0, 0.1, 1.0),
    "t0": (0.0, 1.0, 100.0),
    "beta2_decay": (-0.5, -1.0, -3.0, 0.0),
    "d": (2.0, 1.5),
    "momentum_decay": (0.0, 1.0, 1e-6),
}
#: Where 0 takes a branch of its own.
SWITCHES = ("weight_decay", "momentum", "dampening", "lr_decay")


def values_of(spec: Spec, hyper: Hyper) -> tuple[Any, ...]:
    """Values beside the default that the Spec accepts."""
    listed = VALUES.get((spec.name, hyper.name), VALUES.get(hyper.name))
    usable = tuple(v for v in listed or () if hyper.problem(v) is None)
    return usable or candidates(hyper)[1:]


def combinations(spec: Spec, rounds: int = 2) -> Iterator[dict[str, Any]]:
    """Every combination of flags and switches that the Spec accepts: with the defaults, and with other values."""
    rng = np.random.default_rng(1)
    choices = {h.name: (False, True) for h in spec.hyper if h.is_flag or h.name in SWITCHES}
    for on in itertools.product(*choices.values()):
        chosen = dict(zip(choices, on, strict=True))
        for turn in range(1 + rounds):
            options: dict[str, Any] = {}
            for h in spec.hyper:
                switch = h.name in SWITCHES
                if h.is_flag:
                    options[h.name] = chosen[h.name]
                elif switch and not chosen[h.name]:
                    options[h.name] = 0.0
                elif turn == 0:
                    options[h.name] = values_of(spec, h)[0] if switch else h.default
                else:
                    others = values_of(spec, h) + (() if switch else (h.default,))
                    options[h.name] = others[rng.integers(len(others))]
            if spec.problem(SimpleNamespace(**options)) is None:
                yield options


def lives(spec: Spec, rounds: int = 2) -> Iterator[tuple[dict[str, Any], tuple[str, ...]]]:
    """Each combination of options at a later step, and at the first where that one creates buffers: their names."""
    for options in combinations(spec, rounds):
        yield options, ()
        absent = tuple(n for n, x in spec.initial_state(spec.hyper_values(options)).items() if x is None)
        if absent:
            yield options, absent


#: Where elements depend on each other: vectors; square, wide, tall and flat matrices; a batch of matrices.
_SHAPES = ((1,), (7,), (40,), (3, 3), (2, 9), (9, 2), (1, 6), (6, 1), (2, 3, 4))


def shapes(spec: Spec, elements: int) -> list[tuple[int, ...]]:
    """The shapes that a Spec is tried in; of an elementwise one, the shape says nothing."""
    return [(elements,)] if spec.elementwise else [s for s in _SHAPES if spec.shapes(s)]


# --- Numbers

_NOT_NEGATIVE = frozenset(
    {
        "square_avg", "acc_delta", "sum", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "step_size", "row_var", "col_var",
        "variance",
    }
)  # fmt: skip
#: Their squares underflow but do not overflow: in multiple precision nothing is infinite.
SPECIALS = (0.0, -0.0, 1e-200, -1e-170, 5e-324, 2.5e-310)


@dataclass(frozen=True)
class Inputs:
    """What one step is given: parameter and gradient of one shape; buffers in their own shapes, ``None`` if there is none yet.

    A number kept for each parameter is float64: of an elementwise reference one for each element, else a single one.
    """

    p: Inexact
    g: Inexact
    state: dict[str, Inexact | None]


def numbers(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: Any, decades: float, specials: Sequence[float]
) -> Inexact:
    """Numbers of ordinary size, numbers spread over so many decades either way, powers of two, and special ones."""
    kinds = [
        rng.normal(size=shape),
        rng.choice([-1.0, 1.0], shape) * 10 ** rng.uniform(-decades, decades, shape),
        np.ldexp(rng.choice([-1.0, 1.0], shape), rng.integers(-20, 20, shape)),
        rng.choice(specials, shape),
    ]
    return np.choose(rng.choice(4, shape, p=[0.5, 0.2, 0.1, 0.2]), kinds).astype(dtype)


def draw(
    rng: np.random.Generator,
    spec: Spec,
    hyper: HyperValues,
    absent: Sequence[str],
    shape: tuple[int, ...],
    dtype: Any = np.float64,
    decades: float = 30.0,
    specials: Sequence[float] = SPECIALS,
) -> Inputs:
    """The inputs of one step, without the buffers that it will create (``absent``)."""

    def some(of: tuple[int, ...]) -> Inexact:
        return numbers(rng, of, dtype, decades, specials)

    p, g = some(shape), some(shape)
    # Where elements depend on each other a large one hides the others, so all are now and then small.
    scale = 1.0 if spec.elementwise else rng.choice([1.0, 1.0, 2.0**-50, 1e-9, 1e-25])
    g = (g * scale).astype(dtype)
    state: dict[str, Inexact] = {}
    for b in spec.buffers:
        of = b.shape(shape)
        if b.per_parameter:
            counts = _counters(rng, b.name, hyper, math.prod(shape))
            state[b.name] = counts if spec.elementwise else counts[0]
        elif b.present(hyper) and of is not None:
            x = some(of)
            state[b.name] = (np.abs(x) * dtype(scale * scale)).astype(dtype) if b.name in _NOT_NEGATIVE else x
    if spec.elementwise:
        g = _sharpen(rng, hyper, p, g, state)
    return Inputs(p, g, {**state, **dict.fromkeys(absent)})


def _counters(rng: np.random.Generator, name: str, hyper: HyperValues, n: int) -> Array:
    """Numbers kept for each parameter: small ones often, where RAdam crosses its threshold and averages begin."""
    often, decades = rng.random(n) < 0.4, 10 ** rng.uniform(0, 4, n)
    if name == "step":
        return np.where(often, rng.integers(0, 12, n), np.floor(decades) - 1)
    if name == "eta":
        return np.where(often, rng.choice([hyper.lr, 1.0, 1 - 2.0**-20], n), 1 / decades)
    if name == "mu":
        return np.where(often, 1.0, 1 / np.floor(decades))
    if name == "mu_product":
        return np.where(often, rng.choice([1.0, 1 - 2.0**-20], n), 1 / decades)
    return rng.random(n)


def _sharpen(
    rng: np.random.Generator, hyper: HyperValues, p: Inexact, g: Inexact, state: dict[str, Inexact]
) -> Inexact:
    """Put some elements where two terms nearly cancel or two candidates of a maximum nearly tie; the gradient to take."""
    dtype, n = g.dtype, g.shape
    some = rng.random(n) < 0.1

    def near(x: Inexact) -> Inexact:
        """The number itself, or the next one up or down."""
        steps, x = rng.integers(-1, 2, n), x.astype(dtype)
        towards = np.where(steps > 0, np.inf, -np.inf).astype(dtype)
        return np.where(steps == 0, x, np.nextafter(x, towards))

    if getattr(hyper, "weight_decay", 0.0) != 0:
        g = np.where(some, near(-hyper.weight_decay * p), g)
    if "grad_avg" in state:
        # The mean of squares is no less than the square of the mean; often they are nearly one.
        mean = state["grad_avg"]
        excess = np.choose(rng.choice(3, n, p=[0.7, 0.2, 0.1]), [rng.uniform(1.01, 2, n), 1 + 2.0**-22, 1.0])
        # Without eps, a divisor of zero would be the rule.
        state["square_avg"] = (mean * mean * (excess + 2 * (hyper.eps == 0))).astype(dtype)
    if "max_exp_avg_sq" in state:
        beta = hyper.betas[1]
        state["max_exp_avg_sq"] = np.where(
            some, near(beta * state["exp_avg_sq"] + (1 - beta) * g * g), state["max_exp_avg_sq"]
        )
    if "exp_inf" in state and hyper.betas[1] > 0:
        state["exp_inf"] = np.where(some, near((np.abs(g) + hyper.eps) / hyper.betas[1]), state["exp_inf"])
    if "step_size" in state:
        (shrink, grow), (smallest, largest) = hyper.etas, hyper.step_sizes
        edges = rng.choice([smallest, largest, smallest / shrink, largest / grow], n)
        state["step_size"] = np.where(some, np.abs(near(edges)), state["step_size"])
    return g
