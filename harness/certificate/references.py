"""References: each in float64, with error bounds and in 200 bits, compared."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mpmath
import numpy as np
import numpy.typing as npt

from stepcheck.harness.certificate.inputs import Array, Effort, Inexact, Inputs, draw, lives, shapes
from stepcheck.harness.judging.prediction import bounded_hyper
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.decisions import outcomes
from stepcheck.harness.numbers.formats import BINARY64, COUNTERS64, Arithmetic
from stepcheck.reference.spec import PARAMETER, HyperValues, Spec

BITS = 200
DOUBLE = Arithmetic(BINARY64)
#: Covers the rounding of the budgets themselves, as in ``comparison.ratios``.
BUDGET_ROUNDING = 1 + 2.0**-45


# --- The three number systems


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


MP = _multiple_precision()


def exact(
    spec: Spec, hyper: HyperValues, given: Inputs, held: Mapping[str, float] | None = None
) -> dict[str, npt.NDArray[np.object_]]:
    """The reference in multiple precision.

    Args:
        held: values that buffers were seen to hold after the step, where what follows starts from those.
    """
    seen = {name: MP.mpf(value) for name, value in (held or {}).items()}
    kind: Any = type("Exact", (np.ndarray,), {"as_stored": lambda x, name: seen.get(name, x)})

    def numbers_of(x: Inexact | None) -> Any:
        if x is None:
            return None
        made = np.empty(np.shape(x), object)
        made.reshape(-1)[:] = [MP.mpf(float(v)) for v in np.asarray(x).reshape(-1)]
        return made.view(kind)

    def scalar(x: Any) -> Any:
        return tuple(map(scalar, x)) if isinstance(x, tuple) else MP.mpf(x) if isinstance(x, float) else x

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
        if not MP.isfinite(t) or isinstance(t, MP.mpc):
            return math.nan
        if math.isinf(within):
            return 0.0
        if math.isinf(x):
            return 0.0 if x * float(MP.sign(t)) > 0 and abs(t) > sys.float_info.max else math.inf
        away = math.inf if math.isnan(x) else abs(MP.mpf(x) - t)
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
    bound = np.broadcast_to(predicted.error, shape).reshape(-1) * BUDGET_ROUNDING
    truths = np.broadcast_to(truth, shape).reshape(-1)
    ratio, undetermined = shares(centre, bound, truths), np.isinf(bound)
    undefined = np.isnan(ratio)
    # A number that is determined where there is none to determine is wrong.
    ratio = np.where(undefined, np.where(np.isfinite(centre) & ~undetermined, np.inf, 0.0), ratio)
    flat = np.broadcast_to(np.asarray(value, np.float64), shape).reshape(-1)
    stray = ratios(flat, Bounded(centre, bound, DOUBLE))
    return Confrontation(flat, truths, bound, ratio, undetermined, undefined), stray


# --- References


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
                "options": listed(options),
                "element": i,
                "value": float(found.value[i]).hex(),
                "truth": str(found.truth[i]),
                "bound": float(found.bound[i]).hex(),
                **hexadecimal(given, i if spec.elementwise else None),
            }


def listed(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as JSON has them."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in options.items()}


def hexadecimal(given: Inputs, element: int | None) -> dict[str, Any]:
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
