"""The error bounds are certificates: three number systems run the same source, and agree as far as the bounds say."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import mpmath
import numpy as np
import pytest

from stepcheck.harness.bounded import Bounded
from stepcheck.harness.formats import BINARY32, BINARY64, SCALARS64, Arithmetic
from stepcheck.harness.judge import bounded_hyper, ratios
from stepcheck.reference import SPECS
from stepcheck.reference.arithmetic import ORDERS

N = 300
DOUBLE = Arithmetic(BINARY64)

#: Values beside the default. Where 0 takes a branch of its own (SWITCHES), every combination is tried.
VALUES = {
    "lr": (0.1, 1.0, 3e-5, 0.0),
    "betas": ((0.5, 0.75), (0.0, 0.0), (0.9, 0.99999), (0.999, 0.9), (1 - 2.0**-20, 1 - 2.0**-30)),
    # Not 0: then the variance of centered RMSprop is 0 wherever it is exact, and nothing is determined.
    "alpha": (0.9, 0.5, 1.0),
    "rho": (0.5, 0.95, 0.0, 1.0),
    "eps": (1e-3, 1.0, 1e-30, 0.0),
    "weight_decay": (0.01, 0.5, 1e-8),
    "momentum": (0.9, 0.5, 1.0),
    "dampening": (0.1, 1.0, -0.5),
    "lr_decay": (1e-3, 1.0),
    "initial_accumulator_value": (0.1,),
}
SWITCHES = ("weight_decay", "momentum", "dampening", "lr_decay")
NOT_NEGATIVE = {"square_avg", "acc_delta", "sum", "exp_avg_sq", "max_exp_avg_sq", "exp_inf"}


def combinations(spec):
    """Every combination of flags and switches that the Spec accepts: with the defaults, and with other values."""
    rng = np.random.default_rng(1)
    choices = {h.name: (False, True) for h in spec.hyper if h.is_flag}
    choices |= {h.name: (False, True) for h in spec.hyper if h.name in SWITCHES}
    for on in itertools.product(*choices.values()):
        chosen = dict(zip(choices, on, strict=True))
        for defaults in (True, False, False):
            options = {}
            for h in spec.hyper:
                others = VALUES.get(h.name)
                if h.is_flag:
                    options[h.name] = chosen[h.name]
                elif h.name in SWITCHES and not chosen[h.name]:
                    options[h.name] = 0.0
                elif defaults:
                    options[h.name] = h.default if h.name not in SWITCHES else others[0]
                else:
                    others = others if h.name in SWITCHES else (*others, h.default)
                    options[h.name] = others[rng.integers(len(others))]
            if spec.problem(SimpleNamespace(**options)) is None:
                yield options


def named(spec, options):
    changed = {h.name: options[h.name] for h in spec.hyper if options[h.name] != h.default}
    return ",".join([spec.name, *(f"{name}={value}" for name, value in changed.items())])


def cases():
    """Each combination at a later step, and at the first where that one creates a buffer."""
    for spec in SPECS.values():
        for options in combinations(spec):
            yield pytest.param(spec, options, (), id=named(spec, options))
            absent = [name for name, x in spec.initial_state(spec.hyper_values(options)).items() if x is None]
            if absent:
                yield pytest.param(spec, options, absent, id=f"{named(spec, options)},first")


each_case = pytest.mark.parametrize(("spec", "options", "absent"), list(cases()))
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


@pytest.fixture(autouse=True)
def ieee():
    """Overflow, underflow and invalid operations are results here, not accidents."""
    with np.errstate(all="ignore"):
        yield


def numbers(rng, dtype, decades, specials):
    """Numbers of ordinary size, numbers spread over so many decades either way, powers of two, and special ones."""
    kinds = [
        rng.normal(size=N),
        rng.choice([-1.0, 1.0], N) * 10 ** rng.uniform(-decades, decades, N),
        np.ldexp(rng.choice([-1.0, 1.0], N), rng.integers(-20, 20, N)),
        rng.choice(specials, N),
    ]
    return np.choose(rng.choice(4, N, p=[0.5, 0.2, 0.1, 0.2]), kinds).astype(dtype)


def draw(rng, spec, hyper, absent, dtype, decades, specials):
    """A parameter, its gradient and its state, without the buffers that the step will create."""
    p, g = numbers(rng, dtype, decades, specials), numbers(rng, dtype, decades, specials)
    state = {}
    for name in spec.initial_state(hyper):
        x = numbers(rng, dtype, decades, specials)
        state[name] = np.abs(x) if name in NOT_NEGATIVE else x
    if "step" in state:
        state["step"] = np.floor(10 ** rng.uniform(0, 4, N)) - 1
    # Weight decay that nearly cancels the gradient.
    g = np.where(rng.random(N) < 0.1, np.nextafter((-hyper.weight_decay * p).astype(dtype), g), g)
    if getattr(hyper, "centered", False):
        # The mean of squares is no less than the square of the mean; often they are nearly one.
        mean = state["grad_avg"]
        excess = np.choose(rng.choice(3, N, p=[0.7, 0.2, 0.1]), [rng.uniform(1.01, 2, N), 1 + 2.0**-22, 1.0])
        state["square_avg"] = (mean * mean * excess).astype(dtype)
    return p, g, state | dict.fromkeys(absent)


def bounded_update(spec, hyper, arithmetic, p, g, state):
    def exactly(name, x):
        if x is None:
            return None
        return Bounded(x.astype(np.float64), 0.0, SCALARS64 if name == "step" else arithmetic)

    bounded_state = {name: exactly(name, x) for name, x in state.items()}
    return spec.update(exactly("p", p), exactly("g", g), bounded_state, bounded_hyper(hyper))


def fields(updated):
    """The parameter and all buffers after a step, by name."""
    p, after = updated
    return {"parameter": p, **after}


# Multiple precision.


def multiple_precision(x):
    return None if x is None else np.array([mpmath.mpf(v) for v in x.tolist()], object)


def multiple_precision_hyper(hyper):
    def scalar(x):
        return x if isinstance(x, bool) else tuple(map(mpmath.mpf, x)) if isinstance(x, tuple) else mpmath.mpf(x)

    return SimpleNamespace(**{name: scalar(value) for name, value in vars(hyper).items()})


def distance(x, exact):
    """How far a float64 number is from an exact one; NaN where that is no real number."""
    return float(abs(mpmath.mpf(x) - exact)) if isinstance(exact, mpmath.mpf) else float("nan")


@each_case
def test_exact_result_lies_within_the_bound_of_float64(spec, options, absent):
    rng, hyper = np.random.default_rng(2), spec.hyper_values(options)
    # Squares underflow but do not overflow: in multiple precision nothing is infinite. Nor can it divide by zero.
    divides_by_zero = options.get("eps") == 0
    specials = [1e-200, -1e-170] if divides_by_zero else [0.0, -0.0, 1e-200, -1e-170, 5e-324]
    p, g, state = draw(rng, spec, hyper, absent, np.float64, 30, specials)
    if divides_by_zero and "grad_avg" in state:
        state["square_avg"] += 2 * state["grad_avg"] ** 2
    plain = fields(spec.update(p, g, state, hyper))
    bounded = fields(bounded_update(spec, hyper, DOUBLE, p, g, state))
    with mpmath.workprec(200):
        exact_state = {name: multiple_precision(x) for name, x in state.items()}
        exact_hyper = multiple_precision_hyper(hyper)
        exact = fields(spec.update(multiple_precision(p), multiple_precision(g), exact_state, exact_hyper))
        away = {
            name: np.array([distance(x, y) for x, y in zip(plain[name].tolist(), exact[name], strict=True)])
            for name in plain
        }
    assert plain.keys() == bounded.keys() == exact.keys()
    for name, value in plain.items():
        bound = np.broadcast_to(bounded[name].error, N) * (1 + 2.0**-45)
        within = np.isinf(bound) | (away[name] <= bound) | (np.isnan(value) & np.isnan(away[name]))
        assert within.all(), report(within, name, p, g, state, value, exact[name], bound)
        assert ratios(value, bounded[name]).max() <= 1
        # Not vacuous.
        assert np.isfinite(bound).mean() > 0.5


def report(within, name, p, g, state, value, expected, bound):
    i = np.flatnonzero(~within)[0]
    before = {k: None if x is None else x[i] for k, x in state.items()}
    return f"{name}: {value[i]!r}, not {expected[i]!r} ± {bound[i]!r}, of p={p[i]!r}, g={g[i]!r}, {before}"


# Single precision.


class Single(np.ndarray):
    """float32 numbers, each operation rounded to nearest, in one order of evaluation; scalars are rounded on entry."""

    order = "written"

    def __array_ufunc__(self, ufunc, method, *inputs, **kwargs):
        result = getattr(ufunc, method)(*(np.asarray(x, np.float32) for x in inputs), **kwargs)
        assert result.dtype == np.float32
        return result.view(type(self))

    def enter(self, scalar):
        return np.float32(scalar)

    def cover_orders(self, others):
        return others[self.order]() if self.order in others else self


def single_in(order):
    return type("SingleInOrder", (Single,), {"order": order})


def single_update(spec, hyper, order, p, g, state):
    kind = single_in(order)
    # A step is counted in float64 and folded into the scalars there.
    state = {name: x if x is None or name == "step" else x.view(kind) for name, x in state.items()}
    updated = fields(spec.update(p.view(kind), g.view(kind), state, hyper))
    assert all(x.dtype == np.float32 for name, x in updated.items() if name != "step")
    return {name: np.asarray(x, np.float64) for name, x in updated.items()}


ADVERSARIAL = [0.0, -0.0, 1e-45, -1e-45, 1.1754944e-38, 1e-23, 1e19, -2e19, 3.4028235e38, np.inf, -np.inf, np.nan]


@each_case
def test_single_precision_lies_within_the_bound(spec, options, absent):
    rng, hyper = np.random.default_rng(3), spec.hyper_values(options)
    drawn = draw(rng, spec, hyper, absent, np.float32, 25, ADVERSARIAL)
    anything = fields(bounded_update(spec, hyper, Arithmetic(BINARY32, orders=ORDERS | {"written"}), *drawn))
    for order in ("written", *sorted(ORDERS)):
        actual = single_update(spec, hyper, order, *drawn)
        alone = fields(bounded_update(spec, hyper, Arithmetic(BINARY32, orders=frozenset({order})), *drawn))
        assert actual.keys() == alone.keys() == anything.keys()
        for name, value in actual.items():
            for predicted in (alone[name], anything[name]):
                within = np.broadcast_to(ratios(value, predicted) <= 1, N)
                expected, bound = (np.broadcast_to(x, N) for x in (predicted.value, predicted.error))
                assert within.all(), f"{order}: {report(within, name, *drawn, value, expected, bound)}"


@each_case
def test_single_precision_of_ordinary_size_is_determined(spec, options, absent):
    hyper = spec.hyper_values({**options, **({"eps": 1e-3} if "eps" in options else {})})
    drawn = draw(np.random.default_rng(4), spec, hyper, absent, np.float32, 1, [0.0])
    for name, predicted in fields(bounded_update(spec, hyper, Arithmetic(BINARY32), *drawn)).items():
        undetermined = np.isinf(np.broadcast_to(predicted.error, N))
        if not getattr(hyper, "centered", False) or name in ("square_avg", "grad_avg", "step"):
            assert not undetermined.any()
        else:
            # Undetermined is the root of a variance whose sign rounding decides.
            assert undetermined.mean() < 0.5


@each_spec
def test_bound_is_approached(spec):
    used = {}
    for seed, options in enumerate(combinations(spec)):
        rng, hyper = np.random.default_rng(seed), spec.hyper_values(options)
        drawn = draw(rng, spec, hyper, (), np.float32, 1, [0.0])
        actual = single_update(spec, hyper, "written", *drawn)
        for name, predicted in fields(bounded_update(spec, hyper, Arithmetic(BINARY32), *drawn)).items():
            used[name] = max(used.get(name, 0.0), ratios(actual[name], predicted).max())
    # Counting steps rounds nothing.
    assert used.pop("step", 0.0) == 0.0
    for name, share in used.items():
        assert 0.3 < share <= 1, name
