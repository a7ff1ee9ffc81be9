"""The recurrence of L-BFGS: what it converges to, why it stops, what it remembers; and that its three number systems agree."""

from __future__ import annotations

import inspect

import mpmath
import numpy as np
import pytest
import torch

from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.formats import BINARY64, SCALARS64, Arithmetic
from stepcheck.reference.lbfgs import LBFGS
from stepcheck.reference.strong_wolfe import DECREASE, SLOPE

DOUBLE = Arithmetic(BINARY64)
NUMBERS = ("lr", "tolerance_grad", "tolerance_change")


def run(f, x, state=None, **options):
    """One step from ``x``: the parameter and state after it, and the points that it evaluated."""
    step = LBFGS.update(np.asarray(x, float), state or {}, LBFGS.hyper_values(options))
    points, point = [], next(step)
    while True:
        points.append(point)
        try:
            point = step.send(f(point))
        except StopIteration as stop:
            return *stop.value, points


def quadratic(scale, centre=0.0):
    scale = np.asarray(scale, float)
    return lambda x: (np.sum(scale * (x - centre) ** 2), 2 * scale * (x - centre))


def rosenbrock(x):
    a, b = x
    loss = (1 - a) ** 2 + 100 * (b - a * a) ** 2
    return loss, np.array([-2 * (1 - a) - 400 * a * (b - a * a), 200 * (b - a * a)])


def wavy(x):
    return np.sum(np.sin(3 * x) + x * x / 10), 3 * np.cos(3 * x) + x / 5


def both(function):
    return pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])(function)


# What it is.


def test_hyperparameters_are_those_of_torch():
    signature = inspect.signature(torch.optim.LBFGS)
    theirs = {k: p.default for k, p in signature.parameters.items() if k != "params"}
    # From 2.14 on.
    assert {h.name: h.default for h in LBFGS.hyper} == {"maximize": False} | theirs


@pytest.mark.parametrize(
    "options",
    [{"lr": -1.0}, {"max_iter": 0}, {"max_iter": 1.5}, {"max_eval": 0}, {"history_size": 0}, {"tolerance_grad": -1e-9},
     {"line_search_fn": "armijo"}, {"lr": 0.0, "line_search_fn": "strong_wolfe"}],
    ids=repr,
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        LBFGS.hyper_values(options)


def test_state_of_a_step_has_the_keys_of_torch():
    parameter = torch.nn.Parameter(torch.tensor([1.0, 2.0], dtype=torch.float64))
    optimizer = torch.optim.LBFGS([parameter], max_iter=3)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss.detach()

    optimizer.step(closure)
    _, state, _ = run(quadratic([1.0, 1.0]), [1.0, 2.0], max_iter=3)
    assert state.keys() == optimizer.state[parameter].keys() - {"al"} == {b.name for b in LBFGS.buffers}


def test_first_step_is_down_the_gradient_no_longer_than_lr_in_the_1_norm():
    x, state, points = run(quadratic([1.0, 1.0]), [3.0, -1.0], max_iter=1, lr=0.5)
    g = np.array([6.0, -2.0])
    assert len(points) == 1
    assert state["t"] == 0.5 / 8
    np.testing.assert_array_equal(state["d"], -g)
    np.testing.assert_array_equal(x, np.array([3.0, -1.0]) - g * 0.5 / 8)
    assert state["H_diag"] == 1
    assert state["old_dirs"] == state["old_stps"] == state["ro"] == []


def test_first_step_of_a_small_gradient_is_lr_times_it():
    x, state, _ = run(quadratic([0.125]), [1.0], max_iter=1, lr=0.5)
    assert state["t"] == 0.5
    np.testing.assert_array_equal(x, [0.875])


def test_in_one_dimension_it_is_the_secant_method():
    def f(x):
        return np.sum(x**4), 4 * x**3

    x, state, points = run(f, [1.0], max_iter=2, max_eval=9, lr=0.5)
    x1, g0, g1 = points[1], f(points[0])[1], f(points[1])[1]
    np.testing.assert_allclose(x, x1 - 0.5 * g1 * (x1 - points[0]) / (g1 - g0), rtol=1e-14)
    assert state["func_evals"] == state["n_iter"] == 2


def test_direction_is_that_of_the_matrix_of_bfgs():
    """The two-loop recursion multiplies with the matrix that the BFGS formula builds from the same pairs."""
    _, state, _ = run(rosenbrock, [-1.0, 1.5], max_iter=6, max_eval=60, line_search_fn="strong_wolfe")
    inverse = np.eye(2) * state["H_diag"]
    for y, s, rho in zip(state["old_dirs"], state["old_stps"], state["ro"], strict=True):
        assert rho == pytest.approx(1 / (y @ s), rel=1e-14)
        v = np.eye(2) - rho * np.outer(y, s)
        inverse = v.T @ inverse @ v + rho * np.outer(s, s)
    assert len(state["ro"]) > 3
    np.testing.assert_allclose(state["d"], -inverse @ state["prev_flat_grad"], rtol=1e-9)


@both
def test_it_finds_the_minimum(line_search_fn):
    scale, centre = np.array([1.0, 3.0, 10.0, 0.2]), np.array([1.0, -2.0, 0.5, 3.0])
    x, state, _ = run(quadratic(scale, centre), np.zeros(4), max_iter=60, max_eval=200, line_search_fn=line_search_fn)
    np.testing.assert_allclose(x, centre, atol=1e-6)
    assert state["n_iter"] < 60


def test_line_search_leads_through_a_valley():
    x, _, _ = run(
        rosenbrock, [-1.2, 1.0], max_iter=100, max_eval=300, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    np.testing.assert_allclose(x, [1.0, 1.0], atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("lr", [1.0, 0.01, 30.0])
def test_line_search_ends_where_the_strong_wolfe_conditions_hold(seed, lr):
    x = np.random.default_rng(seed).normal(size=3)
    loss, g = wavy(x)
    new, state, points = run(wavy, x, max_iter=1, max_eval=40, lr=lr, line_search_fn="strong_wolfe")
    t, d = state["t"], state["d"]
    f, g_new = wavy(new)
    assert any(np.array_equal(new, point) for point in points)
    assert f <= loss + DECREASE * t * (g @ d)
    assert abs(g_new @ d) <= SLOPE * abs(g @ d)


@both
def test_resumed_steps_are_one_long_step(line_search_fn):
    options = {"line_search_fn": line_search_fn, "lr": 0.5, "max_eval": 100, "tolerance_change": 0.0}
    whole, whole_state, _ = run(wavy, [0.3, 1.0, 2.0], max_iter=4, **options)
    x, state = [0.3, 1.0, 2.0], {}
    for _ in range(4):
        x, state, _ = run(wavy, x, state, max_iter=1, **options)
    np.testing.assert_array_equal(x, whole)
    assert state["n_iter"] == whole_state["n_iter"] == 4
    np.testing.assert_array_equal(state["old_stps"], whole_state["old_stps"])


@both
def test_history_keeps_the_latest_pairs(line_search_fn):
    options = {"max_iter": 6, "max_eval": 60, "line_search_fn": line_search_fn, "lr": 0.3}
    f = quadratic([1.0, 4.0, 9.0])
    _, everything, _ = run(f, [1.0, 1.0, 1.0], **options)
    x, short, _ = run(f, [1.0, 1.0, 1.0], history_size=2, **options)
    assert len(everything["ro"]) == 5
    assert len(short["ro"]) == len(short["old_dirs"]) == len(short["old_stps"]) == 2
    x, again, _ = run(f, x, short, history_size=2, **{**options, "max_iter": 1})
    np.testing.assert_array_equal(again["old_dirs"][0], short["old_dirs"][1])


def test_pair_without_curvature_is_refused():
    def slope(x):
        return np.sum(x), np.ones_like(x)

    _, state, _ = run(slope, [0.0, 0.0], max_iter=3, max_eval=9)
    assert state["ro"] == []
    assert state["H_diag"] == 1
    assert state["n_iter"] == 3


# Why it stops.


@both
def test_small_gradient_at_the_start_changes_nothing_but_the_count(line_search_fn):
    x, state, points = run(quadratic([1.0]), [1e-3], tolerance_grad=2e-3, line_search_fn=line_search_fn)
    assert (x, len(points), state) == (1e-3, 1, {"n_iter": 0, "func_evals": 1})


def test_flat_direction_stops_before_it_moves():
    x, state, points = run(quadratic([1.0]), [1e-3], tolerance_change=1e-5)
    assert (x, len(points)) == (1e-3, 1)
    assert (state["d"], state["t"], state["n_iter"]) == (-2e-3, 1, 1)


@pytest.mark.parametrize(
    ("options", "scale", "iterations", "evaluations"),
    [
        ({"max_iter": 3, "max_eval": 9}, [1.0, 5.0], 3, 3),
        ({"max_eval": 5}, [1.0, 5.0], 4, 5),
        ({"line_search_fn": "strong_wolfe", "max_eval": 1}, [1.0], 1, 2),
        ({"tolerance_grad": 1.81}, [1.0], 1, 2),  # the gradient goes from 2 to 1.8
        ({"tolerance_change": 0.11}, [1.0], 1, 2),  # the first step is 0.1, and lowers the loss by 0.19
        ({"tolerance_change": 0.008, "lr": 0.4}, [0.05], 1, 2),  # a step of 0.04 lowers the loss by 0.004
    ],
    ids=["max_iter", "max_eval", "line search", "gradient", "step", "loss"],
)
def test_step_ends(options, scale, iterations, evaluations):
    _, state, points = run(quadratic(scale), np.ones(len(scale)), **{"lr": 0.1, **options})
    assert (state["n_iter"], state["func_evals"], len(points)) == (iterations, evaluations, evaluations)


def test_max_eval_follows_max_iter():
    def never(x):
        return np.sum(np.exp(-x)), -np.exp(-x)

    for max_iter in (1, 4, 10):
        _, short, _ = run(never, [0.0], max_iter=max_iter, lr=0.1, line_search_fn="strong_wolfe")
        _, named, _ = run(
            never, [0.0], max_iter=max_iter, max_eval=max_iter * 5 // 4, lr=0.1, line_search_fn="strong_wolfe"
        )
        assert short["func_evals"] == named["func_evals"]


@both
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_loss_that_is_no_number_raises_nothing(line_search_fn, bad):
    def f(x):
        return (np.float64(bad) if x[0] < 0.9 else np.sum(x * x)), 2 * x

    with np.errstate(all="ignore"):
        x, _, points = run(f, [1.0, 2.0], line_search_fn=line_search_fn, max_iter=5)
    assert len(points) < 12
    assert x.shape == (2,)


@both
def test_nothing_is_written_in_place(line_search_fn):
    start = np.array([0.3, 1.0, 2.0])
    _, before, _ = run(wavy, start, max_iter=3, line_search_fn=line_search_fn)
    copies = {k: np.copy(v) for k, v in before.items()}
    run(wavy, start, before, max_iter=3, line_search_fn=line_search_fn)
    np.testing.assert_array_equal(start, [0.3, 1.0, 2.0])
    for name, copy in copies.items():
        np.testing.assert_array_equal(before[name], copy)


# Three number systems.


def exactly(x):
    return Bounded(np.asarray(x, np.float64), 0.0, DOUBLE)


def scalar(x):
    return Bounded(np.float64(x), 0.0, SCALARS64)


def precise(x):
    return np.array([mpmath.mpf(float(v)) for v in x], object)


@both
@pytest.mark.parametrize("seed", range(12))
def test_multiple_precision_lies_within_the_bound_of_float64(seed, line_search_fn):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 8))
    f = [wavy, quadratic(10 ** rng.uniform(-1, 1, n), 1.0)][seed % 2]
    hyper = LBFGS.hyper_values(
        lr=0.3, max_iter=4, max_eval=12, history_size=int(rng.integers(1, 5)), line_search_fn=line_search_fn
    )
    as_bounded, as_precise = (
        type(hyper)(**{k: convert(v) if k in NUMBERS else v for k, v in vars(hyper).items()})
        for convert in (scalar, mpmath.mpf)
    )
    x = rng.normal(size=n)
    determined = []

    def compare(plain, bounded, exact):
        value, error = (
            np.atleast_1d(bounded.value),
            np.broadcast_to(bounded.error, np.shape(np.atleast_1d(bounded.value))),
        )
        away = [
            float(abs(mpmath.mpf(float(a)) - b))
            for a, b in zip(np.atleast_1d(plain), np.atleast_1d(exact), strict=True)
        ]
        assert (np.asarray(away) <= error * (1 + 2.0**-45)).all()
        assert ratios(np.atleast_1d(plain), Bounded(value, error, DOUBLE)).max() <= 1
        determined.extend(np.isfinite(error))

    with mpmath.workprec(200), np.errstate(all="ignore"):
        steps = [
            LBFGS.update(x, {}, hyper),
            LBFGS.update(exactly(x), {}, as_bounded),
            LBFGS.update(precise(x), {}, as_precise),
        ]
        points = [next(step) for step in steps]
        finals = []
        while not finals:
            compare(*points)
            loss, g = f(points[0])
            sent = [(loss, g), (scalar(loss), exactly(g)), (mpmath.mpf(float(loss)), precise(g))]
            for k, (step, evaluation) in enumerate(zip(steps, sent, strict=True)):
                try:
                    points[k] = step.send(evaluation)
                except StopIteration as stop:
                    finals.append(stop.value)
            assert len(finals) in (0, 3)
        compare(*(x for x, _ in finals))
        for name in ("d", "prev_flat_grad"):
            compare(*(state[name] for _, state in finals))
        for name in ("old_dirs", "old_stps", "ro"):
            for values in zip(*(state[name] for _, state in finals), strict=True):
                compare(*values)
    assert np.mean(determined) > 0.9
