"""Decisions that rounding leaves open: every outcome that an implementation may come to is tried, and no other."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stepcheck.harness.judging.judge import judge
from stepcheck.harness.judging.prediction import bounded_hyper
from stepcheck.harness.life.events import Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.decisions import outcomes
from stepcheck.harness.numbers.formats import BINARY32, BINARY64, COUNTERS32, COUNTERS64, Arithmetic
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.reference import SPECS

SINGLE, DOUBLE = Arithmetic(BINARY32), Arithmetic(BINARY64)


def doubtful(values, errors):
    return Bounded(np.array(values, np.float64), np.array(errors, np.float64), SINGLE)


def tried(evaluate, **limits):
    """The outcomes as lists, in the order in which they come."""
    with np.errstate(all="ignore"):
        return [np.asarray(getattr(x, "value", x)).tolist() for x in outcomes(evaluate, **limits)]


# One decision.


def test_decision_that_is_sure_has_one_outcome():
    x = doubtful([1.0, 3.0, 2.0], [0.5, 0.5, 0.0])
    assert tried(lambda: x < 2.0) == [[True, False, False]]
    assert tried(lambda: np.sign(x)) == [[1.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("relation", "of_values"),
    [
        (lambda x, y: x < y, [True, False, True, False]),
        (lambda x, y: x <= y, [True, False, True, True]),
        (lambda x, y: x > y, [False, True, False, False]),
        (lambda x, y: x >= y, [False, True, False, True]),
        (lambda x, y: x == y, [False, False, False, True]),
        (lambda x, y: x != y, [True, True, True, False]),
    ],
    ids=["<", "<=", ">", ">=", "==", "!="],
)
def test_comparison_within_the_errors_has_both_outcomes_and_that_of_the_values_first(relation, of_values):
    # Sure, open, open, open.
    x, y = doubtful([1.0, 2.5, 1.9, 2.0], [0.5, 0.75, 0.2, 0.1]), doubtful([2.0] * 4, [0.25, 0.0, 0.0, 0.0])
    other = [of_values[0], *(not b for b in of_values[1:])]
    assert tried(lambda: relation(x, y)) == [of_values, other]


def test_operands_whose_errors_just_meet_are_open():
    assert len(tried(lambda: doubtful([1.0], [0.5]) < doubtful([2.0], [0.5]))) == 2
    assert len(tried(lambda: doubtful([1.0], [0.5]) < doubtful([2.0], [0.5 - 2.0**-40]))) == 1


def test_operand_that_is_undetermined_is_open():
    assert tried(lambda: doubtful([1.0], [np.inf]) < 5.0) == [[True], [False]]
    assert tried(lambda: doubtful([np.nan], [np.inf]) < 5.0) == [[False], [True]]


def test_nan_that_is_sure_compares_as_nan_does():
    x = doubtful([np.nan, 1.0], [0.0, 0.0])
    assert tried(lambda: x < 2.0) == [[False, True]]
    assert tried(lambda: x == x.value) == [[False, True]]


def test_sign_in_doubt_has_three_outcomes():
    x = doubtful([0.5, -0.5, 0.0, 2.0], [1.0, 0.5, 0.1, 1.0])
    signs = tried(lambda: np.sign(x))
    assert signs[0] == [1.0, -1.0, 0.0, 1.0]
    for n in range(3):
        assert {s[n] for s in signs} == {-1.0, 0.0, 1.0}
    assert {s[3] for s in signs} == {1.0}


def test_a_nan_that_is_not_settled_has_any_sign():
    """Of minus infinity times a number that is 0 or a tiny one, for instance."""
    with np.errstate(all="ignore"):
        product = doubtful([-np.inf, 1.0], [0.0, 0.0]) * doubtful([0.0, 2.0], [1e-38, 0.0])
    signs = np.array(tried(lambda: np.sign(product)))
    assert set(signs[~np.isnan(signs[:, 0]), 0]) == {-1.0, 0.0, 1.0}
    assert np.isnan(signs[:, 0]).any()
    assert (signs[:, 1] == 1.0).all()


def test_sign_of_nan_is_nan_or_zero():
    signs = tried(lambda: np.sign(doubtful([np.nan, 2.0], [0.0, 0.0])))
    assert np.isnan(signs[0][0])
    assert 0.0 in [s[0] for s in signs[1:]]
    assert {s[1] for s in signs} == {1.0}


def test_lower_bound_of_nan_is_nan_or_the_bound():
    x = doubtful([np.nan, 3.0, 0.5], [0.0, 0.0, 0.0])
    first, second = tried(lambda: x.at_least(1.0))
    assert np.isnan(first[0])
    assert [first[1:], second] == [[3.0, 1.0], [1.0, 3.0, 1.0]]
    assert tried(lambda: doubtful([3.0, 0.5], [0.0, 0.0]).at_least(1.0)) == [[3.0, 1.0]]


# Several decisions.


def test_decisions_are_combined():
    x = doubtful([1.0], [0.5])

    def evaluate():
        return [bool((x < bound).item()) for bound in (1.1, 1.2, 5.0)]

    got = list(outcomes(evaluate))
    assert got[0] == [True, True, True]
    assert sorted(got) == sorted([*pair, True] for pair in itertools.product([True, False], repeat=2))


def test_decision_that_only_one_branch_meets_is_tried_there():
    x = doubtful([1.0], [0.5])

    def evaluate():
        if (x < 1.1).item():
            return ("low", bool((x < 1.2).item()))
        return ("high",)

    assert sorted(outcomes(evaluate)) == [("high",), ("low", False), ("low", True)]


def test_open_elements_of_one_decision_go_together():
    # The judge takes for each element the outcome that suits it, so two are enough for any number of elements.
    x = doubtful([1.0, 1.0, 1.0], [0.5, 0.5, 0.0])
    assert tried(lambda: np.where(x < 1.1, 1.0, 2.0)) == [[1.0, 1.0, 1.0], [2.0, 2.0, 1.0]]


def test_outcomes_are_limited():
    x = doubtful([1.0], [0.5])

    def evaluate():
        return [bool((x < 1.1).item()) for _ in range(10)]

    got = [tuple(o) for o in outcomes(evaluate, most=7)]
    assert len(got) == len(set(got)) == 7
    assert got[0] == (True,) * 10
    assert len(list(outcomes(evaluate))) == 32


def test_no_decision_is_open_outside():
    x = doubtful([1.0], [0.5])
    assert (x < 1.1).tolist() == [True]
    for _ in outcomes(lambda: x < 1.1):
        assert (x < 1.1).tolist() == [True]  # nor between two outcomes


def test_error_in_one_outcome_leaves_no_trace():
    x = doubtful([1.0], [0.5])

    def evaluate():
        if not (x < 1.1).item():
            raise ZeroDivisionError
        return True

    evaluated = outcomes(evaluate)
    assert next(evaluated) is True
    with pytest.raises(ZeroDivisionError):
        next(evaluated)
    assert tried(lambda: x < 1.1) == [[True], [False]]


# In the references.


def after_a_step(spec, p, g, state, counters=COUNTERS64, arithmetic=SINGLE, **options):
    """(parameter, state) for each outcome of one step of one element."""
    hyper = bounded_hyper(spec.hyper_values(options))

    def number(name, x):
        counter = next((b.per_parameter for b in spec.buffers if b.name == name), False)
        return Bounded(np.float64(x) if counter else np.array([float(x)]), 0.0, counters if counter else arithmetic)

    given = {name: number(name, x) for name, x in state.items()}
    with np.errstate(all="ignore"):
        return list(outcomes(lambda: spec.update(number("p", p), number("g", g), given, hyper)))


def one_step_sizes(g, prev):
    results = after_a_step(SPECS["Rprop"], 1.0, g, {"step": 3.0, "prev": prev, "step_size": 0.5})
    return {float(after["step_size"].value[0]) for _, after in results}


def test_rprop_product_that_underflows_has_any_sign():
    assert one_step_sizes(2.0**-80, 2.0**-80) == {0.5, 0.5 * 1.2, 0.25}
    assert one_step_sizes(2.0**-80, -(2.0**-80)) == {0.5, 0.5 * 1.2, 0.25}


def test_rprop_product_that_does_not_underflow_has_its_own_sign():
    assert one_step_sizes(2.0**-50, 2.0**-50) == {0.5 * 1.2}
    assert one_step_sizes(2.0**-50, -(2.0**-50)) == {0.25}
    assert one_step_sizes(0.0, 1.0) == {0.5}


def rprop_life(*gradients):
    events = tuple(Step({0: Gradient(Values("listed", listed=g))}) for g in gradients)
    parameter = Parameter((len(gradients[0]),), "float32", "contiguous", Values("constant", high=1.0))
    return Trace("Rprop", (parameter,), (Group((0,)),), events)


@pytest.mark.parametrize("mode", ["forloop", "foreach"])
def test_rprop_of_torch_agrees_where_its_product_underflows(mode):
    trace = rprop_life((2.0**-80, -(2.0**-80), 1.0), (2.0**-80, 2.0**-80, 1.0), (-(2.0**-80), 2.0**-80, -1.0))
    subject = resolve(f"torch:Rprop[{mode}]")[0]
    recording = Player(subject, trace).play()
    # The product is 0 there, and the step size as it was; beside it, it grows.
    assert recording.steps[1].parameters[0].state_after["step_size"] == pytest.approx([0.01, 0.01, 0.012])
    assert judge(subject, recording).deviations == []


class GrowsAlways(torch.optim.Rprop):
    """Multiplies by 1.2 whatever the sign."""

    def step(self, closure=None):
        super().step(closure)
        for p in self.param_groups[0]["params"]:
            self.state[p]["step_size"].fill_(0.01 * 1.2 ** float(self.state[p]["step"] - 1))


def test_a_wrong_outcome_of_a_sure_decision_is_no_outcome():
    trace = rprop_life((1.0,), (-1.0,))
    subject = class_subject(GrowsAlways, "Rprop")
    assert [d.field for d in judge(subject, Player(subject, trace).play()).deviations] == ["step_size"]


def test_rprop_gradient_that_is_nan_is_left_open():
    subject = resolve("torch:Rprop[forloop]")[0]
    recording = Player(subject, rprop_life((float("nan"), 1.0), (1.0, 1.0))).play()
    assert judge(subject, recording).deviations == []


def rho(beta2, t):
    return 2 / (1 - beta2) - 1 - 2 * t * beta2**t / (1 - beta2**t)


def at_threshold(t):
    """A beta2 with which RAdam's rho after t steps is within rounding of 5."""
    low, high = 0.5, 1 - 2.0**-20
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if rho(middle, t) > 5 else (middle, high)
    return high


def radam_parameters(beta2, counters):
    state = {"step": 7.0, "exp_avg": 0.25, "exp_avg_sq": 0.5}
    results = after_a_step(SPECS["RAdam"], 0.0, 1.0, state, counters, betas=(0.9, beta2), lr=1.0)
    return [float(p.value[0]) for p, _ in results]


@pytest.mark.parametrize("counters", [COUNTERS32, COUNTERS64], ids=["float32", "float64"])
def test_radam_at_its_threshold_may_rectify_or_not(counters):
    beta2 = at_threshold(8)
    assert rho(beta2, 8) == pytest.approx(5.0, abs=1e-9)
    got = radam_parameters(beta2, counters)
    m, v, t = 0.9 * 0.25 + 0.1, beta2 * 0.5 + (1 - beta2), 8
    plain = -m / (1 - 0.9**t)
    at, most = rho(beta2, t), 2 / (1 - beta2) - 1
    r = np.sqrt((at - 4) * (at - 2) * most / ((most - 4) * (most - 2) * at))
    rectified = plain * r * np.sqrt(1 - beta2**t) / np.sqrt(v)
    assert sorted(got) == pytest.approx(sorted({plain, rectified}), rel=1e-6)


@pytest.mark.parametrize("counters", [COUNTERS32, COUNTERS64], ids=["float32", "float64"])
@pytest.mark.parametrize("away", [-1e-2, 1e-2])
def test_radam_beside_its_threshold_does_one_of_the_two(away, counters):
    beta2 = at_threshold(8) + away
    got = radam_parameters(beta2, counters)
    assert len(got) == 1
    plain = -(0.9 * 0.25 + 0.1) / (1 - 0.9**8)
    assert (got[0] == pytest.approx(plain, rel=1e-6)) == (away < 0)


def test_adafactor_bound_of_nan_is_nan_or_the_bound():
    # RMS of a parameter that holds NaN: IEEE 754 has two maxima.
    x = Bounded(np.array([[np.nan]]), 0.0, DOUBLE)
    results = tried(lambda: x.at_least(1e-3))
    assert np.isnan(results[0][0][0])
    assert results[1:] == [[[1e-3]]]
