"""The certificate: how far the references are from the truth, and ``torch.optim`` from the references.

Run as ``python -m stepcheck.harness.certificate [--short] [--json FILE] [--markdown FILE] [--seed S] [--out DIR]``. Two parts.

*References.* The source of each reference runs on adversarial inputs as float64 (the value), as error-bounded numbers of
binary64 (the bound) and as 200-bit numbers (the truth). Per optimizer and field: the largest distance of value and truth in
units of the bound, which must not exceed 1, with its witness. Of value and truth one alone is rounded and the bound allows for
two, so a tight one is approached to 0.5 (and slightly beyond where the bound itself is a subnormal number). Where rounding leaves a decision open, the truth may lie within
the bound of either outcome.

*Torch.* Per mode of ``torch.optim`` and dtype, over a campaign's recordings: the largest known error in ulps of the dtype,
and the largest share of its budget, with their witnesses. Elements count that are determined, finite and conform. The exact
value is the reference in float64 for narrower dtypes, whose own error (below 2^-28 of a float32 budget) is not subtracted; of
float64 and complex128 the elements that are furthest off, and those of the widest budget, are evaluated in 200 bits.
Cancellation is not excluded: the difference of two nearly equal numbers is many ulps off in every implementation, and where the
truth is 0, any error is a large number of the smallest ulps. That is what the budget allows for, so the second figure is the one
that compares implementations, and the first says what may be relied on.

Schema of the JSON::

    {"stepcheck": VERSION, "environment": {NAME: VALUE}, "seed": INTEGER, "bits": 200, "short": FLAG,
     "references": [{"optimizer", "field", "compared", "undetermined", "undefined", "ratio",
                     "witness": {"options", "element", "value", "truth", "bound", "p", "g", "state"} or null}],
     "torch": [{"subject", "dtype", "traces", "elements", "undetermined", "deviating",
                "ulps": NUMBER or null, "ulps_witness": WITNESS or null,
                "ratio": NUMBER or null, "ratio_witness": WITNESS or null}],
     "declared": [{"name", "reason"}]}
    WITNESS = {"event", "parameter", "field", "index", "got", "expected", "bound", "ulps", "ratio", "options",
               "p", "g", "state"}, and instead of the last three "trace" where elements depend on each other

Counts are of elements; "undefined" are those whose truth is no real number (0 / 0). "deviating" elements are further off than
their budget: divergences of released software, which ``stepcheck check`` tells one by one; they are in no other figure. Numbers
that are compared are hex floats; "truth" is decimal. An infinite ratio is written as the largest float64.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import shlex
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import mpmath
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stepcheck import __version__
from stepcheck.harness.judging.judge import Judge, bounded_hyper
from stepcheck.harness.known.evidence import installed
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.bounded import Bounded, outcomes
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.formats import BINARY64, COUNTERS64, FORMATS, Arithmetic, Format
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.subjects import Subject, UsageError
from stepcheck.harness.readers.report import environment
from stepcheck.harness.record import store
from stepcheck.harness.record.stream import Stream
from stepcheck.harness.record.verdict import Life
from stepcheck.harness.search.campaign import Campaign, Settings
from stepcheck.harness.search.options import candidates
from stepcheck.reference import SPECS
from stepcheck.reference.spec import PARAMETER, Hyper, HyperValues, Spec

Array = npt.NDArray[np.float64]
Inexact = npt.NDArray[Any]  # float64 or float32

BITS = 200
DOUBLE = Arithmetic(BINARY64)
#: Covers the rounding of the budgets themselves, as in ``comparison.ratios``.
_BUDGET_ROUNDING = 1 + 2.0**-45


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


# Inputs: options.

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


# Inputs: numbers.

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


# The three number systems.


def fields(updated: tuple[Any, Mapping[str, Any]]) -> dict[str, Any]:
    """The parameter and all buffers after a step, by name."""
    p, after = updated
    return {PARAMETER: p, **after}


def plain(spec: Spec, hyper: HyperValues, given: Inputs) -> dict[str, Any]:
    """The reference in float64."""
    return fields(spec.update(given.p, given.g, dict(given.state), hyper))


def bounded(spec: Spec, hyper: HyperValues, given: Inputs, arithmetic: Arithmetic) -> Iterator[dict[str, Bounded]]:
    """The reference with error bounds, for each outcome of the decisions that rounding leaves open."""
    counters = {b.name for b in spec.buffers if b.per_parameter}

    def exactly(x: Inexact | None, of: Arithmetic) -> Bounded | None:
        return None if x is None else Bounded(x.astype(np.float64), 0.0, of)

    def evaluate() -> dict[str, Bounded]:
        state = {k: exactly(x, COUNTERS64 if k in counters else arithmetic) for k, x in given.state.items()}
        p, g = exactly(given.p, arithmetic), exactly(given.g, arithmetic)
        return fields(spec.update(p, g, state, bounded_hyper(hyper)))

    return outcomes(evaluate)


def _multiple_precision() -> Any:
    """A context of its own, so that nobody's precision changes, in which a number divided by zero is NaN and no exception."""
    context = mpmath.MPContext()
    context.prec = BITS
    quotient = context.mpf.__truediv__

    def divide(a: Any, b: Any) -> Any:
        try:
            return quotient(a, b)
        except ZeroDivisionError:
            return context.nan

    context.mpf.__truediv__ = divide
    return context


_MP = _multiple_precision()


def exact(
    spec: Spec, hyper: HyperValues, given: Inputs, held: Mapping[str, float] | None = None
) -> dict[str, npt.NDArray[np.object_]]:
    """The reference in multiple precision.

    Args:
        held: values that buffers were seen to hold after the step, where what follows starts from those.
    """
    seen = {name: _MP.mpf(value) for name, value in (held or {}).items()}
    kind: Any = type("Exact", (np.ndarray,), {"as_stored": lambda x, name: seen.get(name, x)})

    def numbers_of(x: Inexact | None) -> Any:
        if x is None:
            return None
        made = np.empty(np.shape(x), object)
        made.reshape(-1)[:] = [_MP.mpf(float(v)) for v in np.asarray(x).reshape(-1)]
        return made.view(kind)

    def scalar(x: Any) -> Any:
        return tuple(map(scalar, x)) if isinstance(x, tuple) else _MP.mpf(x) if isinstance(x, float) else x

    options = SimpleNamespace(**{name: scalar(value) for name, value in vars(hyper).items()})
    state = {name: numbers_of(x) for name, x in given.state.items()}
    # An mpf that meets an array on its right first makes an error message of it, for nobody: half of the time, unless short.
    with np.printoptions(threshold=0, edgeitems=0):
        result = fields(spec.update(numbers_of(given.p), numbers_of(given.g), state, options))
    return {name: np.asarray(x, object) for name, x in result.items()}


def shares(value: Array, bound: Array, truth: npt.NDArray[np.object_]) -> Array:
    """Elementwise, the distance of a float64 number from the truth in bounds: NaN where that is no real number.

    Arrays of one dimension. The distance is not rounded to float64, where it could be subnormal.
    """

    def one(x: float, within: float, t: Any) -> float:
        if not _MP.isfinite(t) or isinstance(t, _MP.mpc):
            return math.nan
        if math.isinf(within):
            return 0.0
        if math.isinf(x):
            return 0.0 if x * float(_MP.sign(t)) > 0 and abs(t) > sys.float_info.max else math.inf
        away = math.inf if math.isnan(x) else abs(_MP.mpf(x) - t)
        return 0.0 if away == 0 else float(away / within) if within else math.inf

    return np.array([one(*given) for given in zip(value.tolist(), bound.tolist(), truth, strict=True)])


@dataclass
class Confrontation:
    """One field of one step in all three number systems, flat.

    Attributes:
        ratio: distance of value and truth in bounds, in the outcome of open decisions that the truth agrees with best.
        undetermined: no bound is known.
        undefined: the truth is no real number.
    """

    value: Array
    truth: npt.NDArray[np.object_]
    bound: Array
    ratio: Array
    undetermined: npt.NDArray[np.bool_]
    undefined: npt.NDArray[np.bool_]


def confront(spec: Spec, hyper: HyperValues, given: Inputs) -> dict[str, Confrontation]:
    """One step in all three number systems, compared."""
    values, truths = plain(spec, hyper, given), exact(spec, hyper, given)
    result: dict[str, Confrontation] = {}
    strays: dict[str, Array] = {}
    for predicted in bounded(spec, hyper, given, DOUBLE):
        for name, b in predicted.items():
            found, stray = _compared(values[name], truths[name], b)
            so_far = result.get(name)
            if so_far is None:
                result[name], strays[name] = found, stray
                continue
            better = found.ratio < so_far.ratio
            so_far.ratio = np.where(better, found.ratio, so_far.ratio)
            so_far.bound = np.where(better, found.bound, so_far.bound)
            so_far.undetermined |= found.undetermined
            strays[name] = np.minimum(strays[name], stray)
    for name, found in result.items():
        # The float64 evaluation is itself one of the outcomes.
        found.ratio = np.maximum(found.ratio, strays[name])
    return result


def _compared(value: Any, truth: npt.NDArray[np.object_], predicted: Bounded) -> tuple[Confrontation, Array]:
    """One outcome of the bounded evaluation against the truth; and the distance of the plain evaluation from it, in bounds."""
    shape = np.shape(predicted.value)
    centre = np.asarray(predicted.value).reshape(-1)
    bound = np.broadcast_to(predicted.error, shape).reshape(-1) * _BUDGET_ROUNDING
    truths = np.broadcast_to(truth, shape).reshape(-1)
    ratio, undetermined = shares(centre, bound, truths), np.isinf(bound)
    undefined = np.isnan(ratio)
    # A number that is determined where there is none to determine is wrong.
    ratio = np.where(undefined, np.where(np.isfinite(centre) & ~undetermined, np.inf, 0.0), ratio)
    flat = np.broadcast_to(np.asarray(value, np.float64), shape).reshape(-1)
    stray = ratios(flat, Bounded(centre, bound, DOUBLE))
    return Confrontation(flat, truths, bound, ratio, undetermined, undefined), stray


# References.


@dataclass
class Certified:
    """One field of one reference.

    Attributes:
        ratio: the largest distance of value and truth, in bounds.
    """

    optimizer: str
    field: str
    compared: int = 0
    undetermined: int = 0
    undefined: int = 0
    ratio: float = 0.0
    witness: dict[str, Any] | None = None

    def add(self, spec: Spec, options: Mapping[str, Any], given: Inputs, found: Confrontation) -> None:
        """Count one step, and keep what is furthest off."""
        self.compared += found.ratio.size
        self.undetermined += int(found.undetermined.sum())
        self.undefined += int((found.undefined & ~found.undetermined).sum())
        i = int(found.ratio.argmax())
        if found.ratio[i] > self.ratio:
            self.ratio = float(found.ratio[i])
            self.witness = {
                "options": _listed(options),
                "element": i,
                "value": float(found.value[i]).hex(),
                "truth": str(found.truth[i]),
                "bound": float(found.bound[i]).hex(),
                **_hexadecimal(given, i if spec.elementwise else None),
            }


def _listed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def _hexadecimal(given: Inputs, element: int | None) -> dict[str, Any]:
    """Inputs as hex floats: those of one element, or all of them as nested lists."""

    def told(x: Any) -> Any:
        if isinstance(x, list):
            return [told(v) for v in x]
        return None if x is None else float(x).hex()

    def chosen(x: Inexact | None) -> Any:
        if x is None or element is None:
            return told(None if x is None else np.asarray(x).tolist())
        return told(x.reshape(-1)[element])

    return {"p": chosen(given.p), "g": chosen(given.g), "state": {k: chosen(x) for k, x in given.state.items()}}


def _rng(seed: int, name: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def declared(spec: Spec) -> str:
    """Why a Spec has no certificate here, or nothing."""
    if spec.closure or spec.products:
        return "certified by its own test"
    hyper = spec.for_dtype(spec.hyper_values(), 2.0**-52)
    given = draw(_rng(0, spec.name), spec, hyper, (), shapes(spec, 2)[0])
    try:
        with np.errstate(all="ignore"):
            list(bounded(spec, hyper, given, DOUBLE))
    except Exception as error:  # noqa: BLE001 - whatever keeps it from running is the reason
        return f"its update does not run on error-bounded numbers ({type(error).__name__}: {error})"
    return ""


def certify(spec: Spec, effort: Effort, seed: int = 0) -> list[Certified]:
    """All fields of one reference over adversarial inputs, in the order of its buffers, the parameter first."""
    result = {name: Certified(spec.name, name) for name in (PARAMETER, *(b.name for b in spec.buffers))}
    rng = _rng(seed, spec.name)
    with np.errstate(all="ignore"):
        for options, absent in lives(spec, effort.rounds):
            hyper = spec.for_dtype(spec.hyper_values(options), 2.0 * BINARY64.unit_roundoff)
            for shape in shapes(spec, effort.elements):
                given = draw(rng, spec, hyper, absent, shape)
                for name, found in confront(spec, hyper, given).items():
                    result[name].add(spec, options, given, found)
    return list(result.values())


# Torch.


def ulp(x: Array, number: Format) -> Array:
    """Elementwise, the distance between neighbouring numbers of a format around ``x``; below its normal range, constant."""
    _, exponent = np.frexp(x)
    spacing = np.maximum(np.where(x == 0, number.min_exponent, exponent - 1), number.min_exponent)
    result: Array = np.ldexp(1.0, spacing - (number.significand_bits - 1))
    return result


@dataclass(frozen=True)
class Witness:
    """One element of one field after one step of a trace.

    Attributes:
        expected: the truth, rounded to float64.
        ulps: the distance of ``got`` from it in units of the last place of the dtype.
        ratio: the same in budgets, from the reference in float64.
        inputs: what the element was computed from, or the whole trace.
    """

    event: int
    parameter: int
    field: str
    index: tuple[int, ...]
    got: float
    expected: float
    bound: float
    ulps: float
    ratio: float
    options: dict[str, Any]
    inputs: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The witness as it is written."""
        return {
            "event": self.event,
            "parameter": self.parameter,
            "field": self.field,
            "index": list(self.index),
            **{k: float(getattr(self, k)).hex() for k in ("got", "expected", "bound")},
            "ulps": self.ulps,
            "ratio": self.ratio,
            "options": _listed(self.options),
            **self.inputs,
        }


@dataclass
class Measured:
    """One torch subject in one dtype.

    Attributes:
        raised: the last exception that cut a life short.
    """

    subject: str
    dtype: str
    traces: int = 0
    elements: int = 0
    undetermined: int = 0
    deviating: int = 0
    raised: str = ""
    ulps: Witness | None = None
    ratio: Witness | None = None


@dataclass(order=True)
class _Candidate:
    """An element that may be the furthest off, once it is evaluated in multiple precision."""

    size: float
    count: int
    settle: Callable[[], Witness | None] = field(compare=False)


class _Gauge(Judge):
    """A judge that also measures in ulps."""

    def __init__(self, survey: _Survey, recording: Recording) -> None:
        super().__init__(survey.subject, recording)
        self.survey = survey
        self.measured = survey.measured

    def _confront(self, batch: list[Any], name: str, actual: Array, r: Array, predicted: Bounded) -> None:
        super()._confront(batch, name, actual, r, predicted)
        if name in self.per_parameter or name in self.result.free:
            return
        number = FORMATS[batch[0].dtype]
        lengths = [len(actual)] if len(batch) == 1 else [item.slots for item in batch]
        real = np.repeat([item.numel > 0 for item in batch], lengths)
        value, error = np.asarray(predicted.value), np.broadcast_to(predicted.error, actual.shape)
        determined = real & np.isfinite(error) & np.isfinite(value) & np.isfinite(actual)
        conforms = determined & (r <= 1)
        self.measured.elements += int(real.sum())
        self.measured.undetermined += int((real & np.isinf(error)).sum())
        self.measured.deviating += int((real & (r > 1)).sum())
        if not conforms.any():
            return
        unit = ulp(value, number)
        off = np.where(conforms, np.abs(actual - value) / unit, -1.0)
        starts = np.cumsum([0, *lengths[:-1]])

        def witness(at: int) -> Witness:
            n = int(np.searchsorted(starts, at, side="right")) - 1
            return self._witness(batch[n], name, at - int(starts[n]), actual[at], value[at], error[at], off[at], r[at])

        def settled(at: int) -> Callable[[], Witness | None]:
            n = int(np.searchsorted(starts, at, side="right")) - 1
            return lambda: self._settled(batch[n], at - int(starts[n]), witness(at))

        best, furthest = int(off.argmax()), int(np.where(conforms, r, -1.0).argmax())
        if self.measured.ratio is None or r[furthest] > self.measured.ratio.ratio:
            self.measured.ratio = witness(furthest)
        if number is not BINARY64:
            if self.measured.ulps is None or off[best] > self.measured.ulps.ulps:
                self.measured.ulps = witness(best)
            return
        # Where subject and reference round alike they are both off, by no more than the budget.
        conforms &= np.concatenate([self._known(item, n) for item, n in zip(batch, lengths, strict=True)])
        for kind, size in (("off", off), ("wide", error / unit)):
            largest = int(np.where(conforms, size, -1.0).argmax())
            if conforms[largest]:
                self.survey.consider(kind, float(size[largest]), settled(largest))

    def _hyper(self, item: Any) -> HyperValues:
        hyper = item.record.hyper[self.group_of[item.index]]
        return self.spec.for_dtype(hyper, 2.0 * FORMATS[item.dtype].unit_roundoff)

    def _known(self, item: Any, length: int) -> npt.NDArray[np.bool_]:
        """Elements whose gradient is a single number that the step made use of: not the sum of entries, not left unnamed."""
        g, error, named = item.gradient(FORMATS[item.dtype].unit_roundoff)
        known = np.broadcast_to(error, np.shape(g)) == 0
        if named is not None and self.spec.sparse in ("lazy", "only"):
            known = known & (named > 0)
        return known if self.spec.elementwise else np.full(length, bool(known.all()))

    def _given(self, item: Any, element: int) -> Inputs:
        """The inputs of one element, or of all where they depend on each other."""
        part = slice(element, element + 1) if self.spec.elementwise else slice(None)
        g = item.gradient(FORMATS[item.dtype].unit_roundoff)[0]

        def chosen(x: Any, shape: tuple[int, ...]) -> Array:
            flat = np.asarray(x)
            if flat.dtype.kind == "c":
                flat = np.ascontiguousarray(flat).reshape(-1).view(flat.real.dtype)
            flat = flat.reshape(-1).astype(np.float64)[part]
            return flat if self.spec.elementwise else flat.reshape(shape)

        state: dict[str, Inexact | None] = {}
        for b in self.spec.buffers:
            if b.name in item.state:
                kept = item.state[b.name]
                if kept is None:
                    state[b.name] = None
                elif b.per_parameter:
                    state[b.name] = kept[0][:1] if self.spec.elementwise else kept[0][0]
                else:
                    state[b.name] = chosen(kept[0], b.shape(item.shape) or ())
        return Inputs(chosen(item.life.value, item.shape), chosen(g, item.shape), state)

    def _witness(
        self, item: Any, name: str, element: int, got: float, expected: float, bound: float, ulps: float, r: float
    ) -> Witness:
        shape = self._shape(item, name)
        if np.iscomplexobj(item.life.value):
            shape = (*shape, 2)
        given = self._given(item, element)
        options = {k: v for k, v in vars(self._hyper(item)).items() if v is not None and k != "tensors"}
        inputs = _hexadecimal(given, 0) if self.spec.elementwise else {"trace": self.trace.to_json()}
        index = tuple(int(i) for i in np.unravel_index(element, shape)) if shape else ()
        return Witness(
            event=item.record.event,
            parameter=item.index,
            field=name,
            index=index,
            got=float(got),
            expected=float(expected),
            bound=float(bound),
            ulps=float(ulps),
            ratio=float(r),
            options=options,
            inputs=inputs,
        )

    def _settled(self, item: Any, element: int, witness: Witness) -> Witness | None:
        """A witness whose error is measured from the truth.

        ``None`` where that took another branch of an open decision, or an input is no real number.
        """
        given = self._given(item, element)
        if not all(np.all(np.isfinite(x)) for x in (given.p, given.g, *given.state.values()) if x is not None):
            return None
        held = {
            b.name: float(np.asarray(item.life.state_after[b.name]).reshape(-1)[0])
            for b in self.spec.buffers
            if b.in_place and b.name in item.life.state_after
        }
        results = exact(self.spec, self._hyper(item), given, held)
        truth = results[witness.field].reshape(-1)[0 if self.spec.elementwise else element]
        # A decision that rounding leaves open may fall otherwise in multiple precision.
        if not float(abs(_MP.mpf(witness.expected) - truth)) <= witness.bound * _BUDGET_ROUNDING:
            return None
        expected = float(truth)
        unit = float(ulp(np.asarray(expected), BINARY64))
        off = float(abs(_MP.mpf(witness.got) - truth) / _MP.mpf(unit))
        return Witness(**{**vars(witness), "expected": expected, "ulps": off})


class _Survey(Campaign):
    """A campaign that measures instead of asking the checks."""

    def __init__(self, subject: Subject, dtype: str, effort: Effort, seed: int) -> None:
        super().__init__(subject, Settings(seed=seed, examples=effort.traces, dtypes=(dtype,)))
        self.measured = Measured(subject.name, dtype)
        self.kept: dict[str, list[_Candidate]] = {}
        self.most = effort.candidates
        self.count = itertools.count()

    def measure(self) -> Measured:
        """Play, judge, and evaluate in multiple precision what may be furthest off.

        Raises:
            RuntimeError: the harness erred, so nothing is known.
        """
        self.run()
        if self.result.error:
            raise RuntimeError(f"{self.measured.subject}, {self.measured.dtype}: {self.result.error}")
        with np.errstate(all="ignore"):
            found = [candidate.settle() for candidate in itertools.chain.from_iterable(self.kept.values())]
        for settled in found:
            if settled is not None and (self.measured.ulps is None or settled.ulps > self.measured.ulps.ulps):
                self.measured.ulps = settled
        return self.measured

    def _ask(self, trace: Trace, life: Life) -> None:
        self.measured.traces += 1
        recording = Player(self.subject, trace).play()
        life.lives = len(recording.steps)
        if recording.raised is not None:
            self.measured.raised = f"{recording.raised.kind}: {recording.raised.message[:200]}"
        _Gauge(self, recording).judge()

    def consider(self, kind: str, size: float, settle: Callable[[], Witness | None]) -> None:
        """Keep an element for later, if it is among the largest of its kind."""
        kept = self.kept.setdefault(kind, [])
        heapq.heappush(kept, _Candidate(size, next(self.count), settle))
        if len(kept) > self.most:
            heapq.heappop(kept)


def measure(subject: Subject, dtype: str, effort: Effort, seed: int = 0) -> Measured:
    """The largest known errors of one torch subject in one dtype."""
    return _Survey(subject, dtype, effort, seed).measure()


# The whole.


@dataclass
class Certificate:
    """Both parts, and what has no part in them, with the reason."""

    seed: int
    short: bool
    references: list[Certified] = field(default_factory=list)
    torch: list[Measured] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every reference is within its bound."""
        return all(c.ratio <= 1 for c in self.references)

    def to_json(self) -> dict[str, Any]:
        """The certificate in the schema of the module's docstring."""
        return {
            "stepcheck": __version__,
            "environment": {**environment(), "mpmath": mpmath.__version__},
            "seed": self.seed,
            "bits": BITS,
            "short": self.short,
            "references": [_certified_json(c) for c in self.references],
            "torch": [_measured_json(m) for m in self.torch],
            "declared": [{"name": name, "reason": reason} for name, reason in self.declared.items()],
        }


def _finite(x: float) -> float:
    return min(x, sys.float_info.max)  # JSON has no infinity


def _certified_json(c: Certified) -> dict[str, Any]:
    return {**vars(c), "ratio": _finite(c.ratio)}


def _measured_json(m: Measured) -> dict[str, Any]:
    return {
        **{k: getattr(m, k) for k in ("subject", "dtype", "traces", "elements", "undetermined", "deviating")},
        "ulps": m.ulps and _finite(m.ulps.ulps),
        "ulps_witness": m.ulps and m.ulps.to_json(),
        "ratio": m.ratio and m.ratio.ratio,
        "ratio_witness": m.ratio and m.ratio.to_json(),
    }


def certificate(
    effort: Effort,
    seed: int = 0,
    specs: Sequence[Spec] | None = None,
    subjects: Sequence[Subject] | None = None,
    progress: Callable[[str], None] = lambda what: None,
    row: Callable[[str, dict[str, Any]], None] = lambda part, row: None,
) -> Certificate:
    """Certify references (all, unless some are given), then measure torch subjects (all, unless some are given).

    Args:
        progress: called with the name of each before it.
        row: called with each row once it is there, and the name of its part in the JSON.
    """
    result = Certificate(seed, effort is SHORT)
    for spec in SPECS.values() if specs is None else specs:
        progress(spec.name)
        reason = declared(spec)
        if reason:
            result.declared[spec.name] = reason
        else:
            for certified in certify(spec, effort, seed):
                result.references.append(certified)
                row("references", _certified_json(certified))
    for subject in resolve("torch") if subjects is None else subjects:
        progress(subject.name)
        reason = subject.unsupported or declared(subject.spec)
        if not reason and subject.cost > 1 and not effort.costly:
            reason = "its traces cost too much for the short form"
        if reason:
            result.declared[subject.name] = reason
            continue
        for dtype in subject.dtypes:
            measured = measure(subject, dtype, effort, seed)
            if measured.elements:
                result.torch.append(measured)
                row("torch", _measured_json(measured))
            else:
                raised = f": {measured.raised}" if measured.raised else ""
                result.declared[f"{subject.name}, {dtype}"] = f"nothing to compare in {measured.traces} traces{raised}"
    return result


# For people.

_REFERENCE_COLUMNS = ("optimizer", "field", "compared", "undetermined", "largest error / bound")
_TORCH_COLUMNS = (
    "subject",
    "dtype",
    "elements",
    "deviating",
    "largest error, ulps",
    "in",
    "largest error / budget",
    "in",
)


def _reference_rows(c: Certificate) -> list[tuple[str, ...]]:
    return [
        (x.optimizer, x.field, f"{x.compared:,}", f"{x.undetermined / max(x.compared, 1):.1%}", f"{x.ratio:.3f}")
        for x in c.references
        if x.compared
    ]


def _torch_rows(c: Certificate) -> list[tuple[str, ...]]:
    def told(w: Witness | None, number: Callable[[Witness], str]) -> tuple[str, str]:
        return ("", "") if w is None else (number(w), w.field)

    return [
        (
            m.subject,
            m.dtype,
            f"{m.elements:,}",
            f"{m.deviating:,}" if m.deviating else "",
            *told(m.ulps, lambda w: _ulps(w.ulps)),
            *told(m.ratio, lambda w: f"{w.ratio:.3f}"),
        )
        for m in c.torch
    ]


def _ulps(x: float) -> str:
    return f"{x:.2f}" if x < 1000 else f"{x:.1e}"


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    made = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        words = column in ("optimizer", "field", "subject", "dtype", "in")
        made.add_column(column, justify="left" if words else "right", no_wrap=True)
    for row in rows:
        made.add_row(*map(escape, row))
    return made


_REFERENCES = f"Each reference at {BITS} bits: its largest error in units of its bound"
_TORCH = f"torch.optim of torch {installed()}: the largest known errors, in ulps and in units of their budget"


def markdown(c: Certificate) -> str:
    """The certificate as a page of Markdown."""
    settings = ", ".join(f"{k} {v}" for k, v in c.to_json()["environment"].items())
    form = ", short form" if c.short else ""
    lines = ["# Certificate", "", f"stepcheck {__version__}, seed {c.seed}{form}; {settings}.", ""]
    for title, columns, rows in (
        (_REFERENCES, _REFERENCE_COLUMNS, _reference_rows(c)),
        (_TORCH, _TORCH_COLUMNS, _torch_rows(c)),
    ):
        lines += [f"## {title}", "", f"| {' | '.join(columns)} |", "|" + " --- |" * len(columns)]
        lines += [f"| {' | '.join(row)} |" for row in rows] + [""]
    lines += ["## Not in the tables", ""]
    lines += [f"- {name}: {' '.join(reason.split())}" for name, reason in c.declared.items()]
    return "\n".join(lines) + "\n"


def _recorded(short: bool, seed: int, out: Path) -> Certificate:
    """Make the certificate, and write down each row when it is there."""
    command = shlex.join(["python", "-m", "stepcheck.harness.certificate", *sys.argv[1:]])
    about = {**environment(), "mpmath": mpmath.__version__}
    with Stream.create(out, command, __version__, about, seed, {"short": short}) as stream:
        stream.document("certificate", Certificate(seed, short).to_json())
        with Console(stderr=True, highlight=False).status("") as status:
            result = certificate(
                SHORT if short else FULL,
                seed,
                progress=lambda what: status.update(escape(what)),
                row=lambda part, row: stream.row("certificate", row, into=part),
            )
        stream.document("certificate", result.to_json())
        stream.status = 0 if result.holds else 1
    return result


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--short", is_flag=True, help="Few inputs and few traces: under a minute.")
@click.option(
    "--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the certificate here."
)
@click.option(
    "--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), help="Write the tables here."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), default=store.DEFAULT_FOLDER, show_default=True,
              help="Folder for the record of the run.")  # fmt: skip
def main(short: bool, json_file: Path | None, markdown_file: Path | None, seed: int, out: Path) -> None:
    """Certify every reference, and measure every mode of torch.optim. Exit status 1: a reference exceeds its bound."""
    try:
        result = _recorded(short, seed, out)
    except UsageError as error:
        click.echo(f"certificate: {error}", err=True)
        sys.exit(2)
    console = Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=160)
    console.print(_table(_REFERENCES, _REFERENCE_COLUMNS, _reference_rows(result)))
    console.print(_table(_TORCH, _TORCH_COLUMNS, _torch_rows(result)))
    for name, reason in result.declared.items():
        console.print(f"{name}: {' '.join(reason.split())}", markup=False)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_json(), indent=1) + "\n", encoding="utf-8")
    if markdown_file is not None:
        markdown_file.write_text(markdown(result), encoding="utf-8")
    sys.exit(0 if result.holds else 1)


if __name__ == "__main__":
    main()
