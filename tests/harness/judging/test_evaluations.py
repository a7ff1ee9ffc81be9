"""torch's own LBFGS is judged right, evaluation by evaluation, and its broken variants are not."""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections import Counter

import numpy as np
import pytest
import torch

from stepcheck.harness.judging.evaluations import _Gradient, judge_step
from stepcheck.harness.judging.judge import judge
from stepcheck.harness.life.events import Group, Objective, Parameter, Scalar, SetOption, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.formats import BFLOAT16, BINARY16, BINARY32, BINARY64, Arithmetic
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.recording import Evaluation
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.generate import TRACE_BYTES, decoder
from stepcheck.harness.zoo.lbfgs import RightLBFGS, TakesLastGradient, WithoutScale
from stepcheck.reference.lbfgs import LBFGS, Pair, _direction

ARITHMETICS = {
    torch.float32: Arithmetic(BINARY32, orders=frozenset({"lerp"})),
    torch.float64: Arithmetic(BINARY64, orders=frozenset({"lerp"})),
    torch.bfloat16: Arithmetic(BFLOAT16, inner=BINARY32),
    torch.float16: Arithmetic(BINARY16, inner=BINARY32),
}


def quadratic(rng, n, dtype):
    """Condition number up to 1e4, the minimum away from 0."""
    scale = torch.tensor(10 ** rng.uniform(-2, 2, n) * 10 ** rng.uniform(-2, 2), dtype=dtype)
    centre = torch.tensor(rng.normal(size=n), dtype=dtype)
    return lambda x: (scale * (x - centre) * (x - centre)).sum()


def rosenbrock(rng, n, dtype):
    def f(x):
        return (1 - x).square().sum() + (100 * (x[1:] - x[:-1].square()).square()).sum()

    return f


def quartic(rng, n, dtype):
    scale = torch.tensor(10 ** rng.uniform(-1, 1, n), dtype=dtype)
    return lambda x: (scale * x * x * x * x).sum()


def flat(rng, n, dtype):
    scale = 10 ** rng.uniform(-8, -3)
    return lambda x: scale * (x * x).sum()


def nonconvex(rng, n, dtype):
    """Curvature is as often negative as positive, so pairs are refused."""
    phase = torch.tensor(rng.uniform(0, 6, n), dtype=dtype)
    return lambda x: (2 * x + phase).sin().sum() + (x * x).sum() / 50


def linear(rng, n, dtype):
    """The gradient never changes: no curvature at all."""
    slope = torch.tensor(rng.normal(size=n), dtype=dtype)
    return lambda x: (slope * x).sum()


def sometimes_nan(rng, n, dtype):
    return lambda x: (x - 0.5).log().sum() + (x * x).sum()


def cliff(rng, n, dtype):
    """Steep where it starts and level from there: about as little decrease as the line search takes for enough."""
    height = 10 ** rng.uniform(-4.5, -2.5) / n
    start = []

    def f(x):
        start.append(x.detach().clone())
        return (height * (-(x - start[0]) / height).exp()).sum()

    return f


FUNCTIONS = (quadratic, rosenbrock, quartic, flat, nonconvex, linear, cliff, sometimes_nan)


def plain(value):
    """A part of the optimizer's state as float64 data."""
    if isinstance(value, torch.Tensor):
        x = value.detach().double().numpy().copy()
        return x if x.ndim else float(x)
    return [plain(v) for v in value] if isinstance(value, list) else value


def snapshot(optimizer):
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    return {name: plain(value) for name, value in state.items() if name != "al"}


def recorded(optimizer, f, parameters):
    """One step of an optimizer, with each call of its closure; ``None`` for a step that raises."""
    evaluations = []

    def flat_values(tensors):
        return np.concatenate([t.detach().double().numpy().reshape(-1) for t in tensors])

    def closure():
        optimizer.zero_grad()
        point = flat_values(parameters)
        loss = f(torch.cat([p.reshape(-1) for p in parameters]))
        loss.backward()
        evaluations.append(Evaluation(point, loss.item(), flat_values([p.grad for p in parameters])))
        return loss.detach()

    x, before = flat_values(parameters), snapshot(optimizer)
    optimizer.step(closure)
    return x, before, evaluations, flat_values(parameters), snapshot(optimizer)


def drawn_options(rng, *, iterations):
    return {
        "lr": float(rng.choice([1.0, 0.5, 0.1, 0.03])),
        "max_iter": int(rng.choice(iterations)),
        "max_eval": [None, int(rng.integers(1, 8))][rng.integers(2)],
        "tolerance_grad": float(rng.choice([1e-7, 1e-3, 0.0])),
        "tolerance_change": float(rng.choice([1e-9, 1e-4, 1e-2, 0.0])),
        "history_size": int(rng.choice([100, 5, 3, 2, 1])),
        "line_search_fn": [None, "strong_wolfe"][rng.integers(2)],
    }


def life(
    seed,
    dtype,
    *,
    iterations=(1, 2, 3, 4),
    steps=5,
    optimizer=torch.optim.LBFGS,
    functions=FUNCTIONS,
    sizes=(1, 41),
    **options,
):
    """The comparisons of each step of one random life."""
    rng = np.random.default_rng(seed)
    options = {**drawn_options(rng, iterations=iterations), **options}
    n = int(rng.integers(*sizes))
    function = functions[rng.integers(len(functions))]
    f = function(rng, n, dtype)
    first = int(rng.integers(1, n + 1))
    start = torch.tensor(rng.normal(size=n) * 10 ** rng.uniform(-1, 0.5), dtype=dtype)
    parameters = [torch.nn.Parameter(part.clone()) for part in (start[:first], start[first:]) if part.numel()]
    subject = optimizer(parameters, **options)
    hyper = LBFGS.hyper_values(options)
    for _ in range(steps):
        try:
            x, before, evaluations, x_after, after = recorded(subject, f, parameters)
        except (RuntimeError, IndexError, ZeroDivisionError) as e:
            RAISED[f"{type(e).__name__}: {e}"[:70], function.__name__] += 1
            return
        yield judge_step(ARITHMETICS[dtype], hyper, x, before, evaluations, x_after, after)


RAISED = Counter()


def worst(c):
    return np.inf if c.problem else ratios(c.actual, c.predicted).max(initial=0.0)


class Tally:
    """What is said of many comparisons."""

    def __init__(self):
        self.used, self.elements, self.undetermined, self.steps = {}, 0, 0, 0

    def add(self, compared, where):
        self.steps += 1
        for c in compared:
            assert worst(c) <= 1, f"{where}: {c.field} {c.problem} {worst(c)}"
            self.used[c.field] = max(self.used.get(c.field, 0.0), worst(c))
            self.elements += c.actual.size
            self.undetermined += int(np.isinf(c.predicted.error).sum())


def tally(seeds, dtype, **kinds):
    result = Tally()
    for seed in seeds:
        for step, compared in enumerate(life(seed, dtype, **kinds)):
            result.add(compared, f"seed {seed}, step {step}")
    return result


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# No false alarm, and not for lack of looking.


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_torch_is_right_in_single_precision_and_uses_its_budget(line_search_fn):
    result = tally(range(60), torch.float32, line_search_fn=line_search_fn)
    assert result.undetermined < 0.05 * result.elements
    assert result.used["evaluation"] > 0.5
    for name in ("parameter", "old_dirs", "old_stps"):
        assert result.used[name] > 0.5, name
    for name in ("d", "ro", "H_diag"):
        assert result.used[name] > 0.1, name
    assert result.steps > 200


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_torch_is_right_in_double_precision(line_search_fn):
    result = tally(range(60, 100), torch.float64, line_search_fn=line_search_fn)
    assert result.undetermined < 0.05 * result.elements
    assert result.used["evaluation"] > 0.5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_torch_is_right_in_narrow_formats(dtype):
    result = tally(range(100, 130), dtype)
    assert result.undetermined < 0.2 * result.elements
    assert result.used["evaluation"] > 0.5


def test_torch_is_right_in_long_steps():
    tally(range(130, 150), torch.float32, iterations=(20,), steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_torch_is_right_in_many_lives(dtype):
    tally(range(1000, 1600), dtype)
    tally(range(1600, 1640), dtype, iterations=(20,), steps=2)


# Wrong ones.

#: What is wrong, as a change of one line of torch's own source.
FAULTS = {
    "sign of y": ("y = flat_grad.sub(prev_flat_grad)", "y = prev_flat_grad.sub(flat_grad)"),
    "s without t": ("s = d.mul(t)", "s = d.mul(1)"),
    "ro not inverted": ("ro.append(1.0 / ys)", "ro.append(ys)"),
    "history grows": ("if len(old_dirs) == history_size:", "history_size += 1\n                    if False:"),
    "steps not shifted": ("old_stps.pop(0)", "pass"),
    "newest pair dropped": (".pop(0)", ".pop()"),
    "first step length": ("t = min(1.0, 1.0 / flat_grad.abs().sum()) * lr", "t = lr"),
    "first step in the 2-norm": ("flat_grad.abs().sum()", "flat_grad.norm()"),
    "H_diag not updated": ("H_diag = ys / y.dot(y)", "pass"),
    "H_diag upside down": ("H_diag = ys / y.dot(y)", "H_diag = y.dot(y) / ys"),
    "previous gradient is stale": ("prev_flat_grad.copy_(flat_grad)", "pass"),
    "previous loss is stale": ("prev_loss = loss", "prev_loss = loss if prev_loss is None else prev_loss"),
    "tolerance_grad ignored": ("opt_cond = flat_grad.abs().max() <= tolerance_grad", "opt_cond = False"),
    "small step ignored": ("if d.mul(t).abs().max() <= tolerance_change:", "if False:"),
    "small change of the loss ignored": ("if abs(loss - prev_loss) < tolerance_change:", "if False:"),
    "flat direction ignored": ("if gtd > -tolerance_change:", "if False:"),
    "any curvature": ("if ys > 1e-10:", "if True:"),
    "second loop reversed": ("for i in range(num_old):", "for i in range(num_old - 1, -1, -1):"),
    "constant of sufficient decrease": ("c1=1e-4", "c1=1e-3"),
    "constant of the slope": ("c2=0.9", "c2=0.5"),
    "cubic interpolation": ("d1 = g1 + g2 - 3 *", "d1 = g1 + g2 - 2 *"),
    "midpoint": ("d2_square = d1**2 - g1 * g2", "d2_square = torch.tensor(-1.0)"),
    "zoom keeps the old end": ("bracket[low_pos] = t", "pass"),
    "evaluations not counted": ("current_evals += ls_func_evals", "pass"),
}


@functools.cache
def broken(fault):
    """torch's LBFGS with one line changed."""
    right, wrong = FAULTS[fault]
    module = inspect.getmodule(torch.optim.LBFGS)
    source, changed = re.subn(re.escape(right), lambda _: wrong, inspect.getsource(module))
    assert changed, f"torch does not say {right!r} any more"
    namespace = {"__name__": module.__name__, "__package__": module.__package__}
    exec(source, namespace)
    return namespace["LBFGS"]


#: Where the tests of a step's end part: a step of 0.03 ends by its size or by what it changes, hardly by both.
SHORT_STEPS = {"lr": 0.03, "tolerance_change": 1e-2, "tolerance_grad": 0.0, "max_eval": 9, "line_search_fn": None}
OPTIONS = {"small step ignored": SHORT_STEPS, "small change of the loss ignored": SHORT_STEPS}


def caught(fault, dtype, seeds):
    """The first seed whose life shows a fault, and where."""
    for seed in seeds:
        for compared in life(seed, dtype, optimizer=broken(fault), **OPTIONS.get(fault, {})):
            fields = [c.field for c in compared if worst(c) > 1]
            if fields:
                return seed, fields
    return None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault_is_caught(fault, dtype):
    assert caught(fault, dtype, range(150)), fault


def test_speed():
    """Steps of a few iterations are judged by the hundred a second; a tenth of that is asked for, for slow machines."""
    steps = [case for seed in range(20) for case in recordings(seed)]
    start = time.perf_counter()
    for case in steps:
        judge_step(*case)
    assert len(steps) / (time.perf_counter() - start) > 10


# What is not as it should be is reported, not raised.


def recordings(seed, steps=4):
    rng = np.random.default_rng(seed)
    options = {"max_iter": 3, "history_size": 4, "line_search_fn": [None, "strong_wolfe"][seed % 2], "max_eval": 6}
    parameter = torch.nn.Parameter(torch.tensor(rng.normal(size=5), dtype=torch.float32))
    subject = torch.optim.LBFGS([parameter], **options)
    f = nonconvex(rng, 5, torch.float32)
    for _ in range(steps):
        x, before, evaluations, x_after, after = recorded(subject, f, [parameter])
        yield ARITHMETICS[torch.float32], LBFGS.hyper_values(options), x, before, evaluations, x_after, after


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_numbers_of_any_kind_raise_nothing(seed, bad):
    arithmetic, hyper, x, before, evaluations, x_after, after = list(recordings(seed))[-1]
    for name in ("t", "H_diag", "prev_loss", "d", "prev_flat_grad"):
        spoilt = {**before, name: np.full_like(np.asarray(before[name], float), bad)}
        assert judge_step(arithmetic, hyper, x, spoilt, evaluations, x_after, after)
    for k, e in enumerate(evaluations[:2]):
        for other in ((bad, e.gradient), (e.loss, np.where(np.arange(5) == 2, bad, e.gradient))):
            spoilt = [*evaluations[:k], Evaluation(e.point, *other), *evaluations[k + 1 :]]
            assert judge_step(arithmetic, hyper, x, before, spoilt, x_after, after)


@pytest.mark.parametrize("field", ["d", "t", "H_diag", "prev_loss", "prev_flat_grad", "old_dirs", "old_stps", "ro"])
def test_lost_buffer_is_named(field):
    case = list(recordings(0))[-1]
    arithmetic, hyper, x, before, evaluations, x_after, after = case
    for side in (0, 1):
        states = [dict(before), dict(after)]
        del states[side][field]
        compared = judge_step(arithmetic, hyper, x, states[0], evaluations, x_after, states[1])
        problems = [c.problem for c in compared if c.problem]
        assert problems == [f"{field} does not exist {['before', 'after'][side]} the step"]


@pytest.mark.parametrize(("change", "problem"), [(-1, "more were due"), (1, "were due"), (-9, "never called")])
def test_number_of_evaluations_counts(change, problem):
    arithmetic, hyper, x, before, evaluations, x_after, after = next(recordings(0))
    other = evaluations[:change] if change < 0 else [*evaluations, evaluations[-1]]
    compared = judge_step(arithmetic, hyper, x, before, other, x_after, after)
    assert problem in compared[-1].problem
    assert compared[-1].field == "evaluation"


@pytest.mark.parametrize(
    "field", ["d", "prev_flat_grad", "old_dirs", "old_stps", "ro", "t", "H_diag", "prev_loss", "n_iter", "parameter"]
)
def test_each_field_is_compared_element_by_element(field):
    arithmetic, hyper, x, before, evaluations, x_after, after = next(recordings(0))
    x_after, after = x_after.copy(), {k: np.array(v) if isinstance(v, list) else v for k, v in after.items()}
    if field == "parameter":
        x_after[2] += 1
    elif np.ndim(after[field]) == 2:
        after[field][-1][2] += 1
    elif np.ndim(after[field]) == 1:
        after[field][-1] += 1
    else:
        after[field] += 1
    compared = judge_step(arithmetic, hyper, x, before, evaluations, x_after, after)
    wrong = {c.field: c for c in compared if worst(c) > 1}
    assert wrong.keys() == {field}
    c = wrong[field]
    assert np.sum(ratios(c.actual, c.predicted) > 1) == 1
    assert int(np.prod(c.shape)) == c.actual.size


# The two-loop recursion.


@pytest.mark.parametrize("pairs", [1, 3, 8])
@pytest.mark.parametrize("uncertain", [0.0, 1e-5, 1e-3])
def test_errors_followed_through_the_recursion_are_a_bound(pairs, uncertain):
    single, n = ARITHMETICS[torch.float32], 6
    for seed in range(30):
        rng = np.random.default_rng(seed)
        steps = rng.normal(size=(pairs, n)).astype(np.float32)
        changes = (steps * rng.uniform(0.5, 2, n)).astype(np.float32)
        g = rng.normal(size=n).astype(np.float32)
        bounded, actual = [], []
        for y, s in zip(changes, steps, strict=True):
            rho = np.float32(1) / (y @ s)
            error = uncertain * np.abs(s)
            given = (s + error * rng.choice([-1.0, 1.0], n) * (1 - 2.0**-20)).astype(np.float32)
            bounded.append(Pair(*(Bounded(v.astype(float), e, single) for v, e in ((y, 0.0), (s, error), (rho, 0.0)))))
            actual.append(Pair(y, given, rho))
        followed = _direction(_Gradient(g.astype(float), 0.0, single), bounded, 1.0)
        plain = _direction(Bounded(g.astype(float), 0.0, single), bounded, 1.0)
        assert ratios(_direction(g, actual, np.float32(1)).astype(float), followed).max() <= 1
        np.testing.assert_array_equal(followed.value, plain.value)
        assert (followed.error <= plain.error).all()
        if pairs == 8:
            # What it is for.
            assert followed.error.max() < 0.01 * plain.error.max()


# Somebody's class, whose state may not show.

QUARTERS = Values("quarters", 3, 2.0**-7, 2.0)


def judged(cls, *objectives, **options):
    """What becomes of a life of one-iteration steps on two parameters."""
    group = Group((0, 1), {"max_iter": 1, "tolerance_change": 0.0, **options})
    parameters = (Parameter((2,), values=QUARTERS), Parameter((3,), values=QUARTERS))
    subject = class_subject(cls, "LBFGS")
    events = tuple(Step({}, Objective(*o)) for o in objectives)
    return judge(subject, Player(subject, Trace("LBFGS", parameters, (group,), events)).play())


class PairsUnderAnotherName(RightLBFGS):
    def step(self, closure):
        state = self.state[self.param_groups[0]["params"][0]]
        state.update(state.pop("history", {}))
        returned = super().step(closure)
        names = [name for name in ("old_dirs", "old_stps", "ro") if name in state]
        state["history"] = {name: state.pop(name) for name in names}
        return returned


class DirectionUnderAnotherName(RightLBFGS):
    def step(self, closure):
        state = self.state[self.param_groups[0]["params"][0]]
        state |= {"d": state["way"]} if "way" in state else {}
        returned = super().step(closure)
        state["way"] = state.pop("d")
        return returned


class AllElsewhere(RightLBFGS):
    def step(self, closure):
        state = self.state[self.param_groups[0]["params"][0]]
        state.update(getattr(self, "kept_aside", {}))
        returned = super().step(closure)
        self.kept_aside = dict(state)
        state.clear()
        return returned


class NoScaleElsewhere(WithoutScale, PairsUnderAnotherName):
    """Wrong from the second pair on."""


def test_steps_after_the_first_are_judged_though_the_first_parameter_alone_has_a_state():
    right, wrong = judged(RightLBFGS, *[("quadratic",)] * 3), judged(WithoutScale, *[("quadratic",)] * 3)
    assert right.free == wrong.free == set()
    assert right.deviations == []
    assert {(d.event, d.field) for d in wrong.deviations} >= {(1, "d")}


def test_steps_are_judged_until_a_list_that_is_never_shown_is_to_hold_something():
    lists = {"old_dirs", "old_stps", "ro"}
    # Of a linear function no pair is remembered, and the empty lists are as good as shown.
    right = judged(PairsUnderAnotherName, ("linear",), ("linear",), ("linear",))
    assert (right.free, right.deviations, right.fields["d"]) == (lists, [], (15, 0))
    # The first pair is made in the second step, and what it leads to is judged; how the third one begins is not known.
    right = judged(PairsUnderAnotherName, *[("quadratic",)] * 3)
    assert (right.free, right.deviations, right.fields["d"]) == (lists, [], (10, 0))
    wrong = judged(NoScaleElsewhere, *[("quadratic",)] * 3)
    assert {d.event for d in wrong.deviations} == {1}


def test_the_first_step_alone_is_judged_of_a_class_that_does_not_show_all_that_it_goes_by():
    right = judged(DirectionUnderAnotherName, *[("quadratic",)] * 3)
    assert (right.free, right.deviations, right.fields["n_iter"]) == ({"d"}, [], (1, 0))
    right = judged(AllElsewhere, *[("quadratic",)] * 3)
    assert (right.deviations, right.fields) == ([], {"evaluation": (5, 0), "parameter": (5, 0)})


class FewOptions(RightLBFGS):
    def __init__(self, params, *, lr=1.0, history_size=100):
        super().__init__(params, lr=lr, history_size=history_size)


def test_a_class_is_given_the_options_that_it_has_alone():
    subject = class_subject(FewOptions, "LBFGS")
    decode, rng = decoder(subject, ("float32",)), np.random.default_rng(0)
    traces = [decode(rng.bytes(TRACE_BYTES)) for _ in range(100)]
    assert {name for t in traces for g in t.groups for name in g.options} == {"lr", "history_size"}
    recording = Player(subject, traces[0]).play()
    assert recording.raised is None


def deep_search(cls, seed):
    """Deviations of a step whose line searches close in on a kink, in some thirty trials each."""
    options = {
        "line_search_fn": "strong_wolfe",
        "max_iter": 3,
        "max_eval": 40,
        "tolerance_grad": 0.0,
        "tolerance_change": 0.0,
    }
    start, centre = Values("quarters", seed, 2.0**-7, 2.0), Values("quarters", 7 * seed + 1, 2.0**-7, 2.0)
    trace = Trace(
        "LBFGS",
        (Parameter((4,), "float64", "contiguous", start),),
        (Group((0,), options),),
        (Step({}, Objective("kink", centre, 1.0)),),
    )
    subject = class_subject(cls, "LBFGS")
    return judge(subject, Player(subject, trace).play()).deviations


def test_late_trials_of_a_line_search_are_judged():
    assert [seed for seed in range(1, 7) if deep_search(RightLBFGS, seed)] == []
    assert len([seed for seed in range(1, 7) if deep_search(TakesLastGradient, seed)]) >= 4


NARROW = Scalar(float(np.float32(0.1)))


def flat_start(values, *events, lr=1):
    shape = (1,) if values.recipe == "constant" else (4, 4)
    group = Group((0,), {"line_search_fn": "strong_wolfe", "lr": lr})
    return Trace("LBFGS", (Parameter(shape, "float64", "contiguous", values),), (group,), events)


ZERO = Values("constant", 0, 0.0, 0.0)
#: Lives with a learning rate of float32 that parameters of float64 step by: bounds of an extrapolation are rounded to float32,
#: and squares of slopes leave it, unless the search goes on with Python numbers.
NARROW_LIVES = {
    "rounded": flat_start(ZERO, Step({}, Objective("saw", ZERO, 1.0)), lr=NARROW),
    "overflows": flat_start(
        Values("log", 9406493179905, 2.0**-7, 1.0),
        Step({}, Objective("quartic", ZERO, 1.0)),
        Step({}, Objective("quadratic", Values("quarters", 1, 2.0**-7, 2.0), 2.0**-10)),
        SetOption(0, "lr", Scalar(float(np.float32(0.9)))),
        Step({}, Objective("cliff", ZERO, 1.0)),
    ),
}


@pytest.mark.parametrize("name", ["torch:LBFGS[forloop]", "fast:LBFGS"])
@pytest.mark.parametrize("life", NARROW_LIVES)
def test_lengths_made_from_a_narrower_tensor_are_in_its_dtype_or_wider(name, life):
    (subject,) = resolve(name)
    assert judge(subject, Player(subject, NARROW_LIVES[life]).play()).deviations == []
