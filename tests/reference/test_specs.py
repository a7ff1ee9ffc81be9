"""Each Spec says what torch.optim's class of its name takes and keeps, and its update is a pure function."""

from __future__ import annotations

import copy
import inspect
import math
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from stepcheck.reference import SPECS
from stepcheck.reference.arithmetic import ORDERS, addcdiv, any_order, ema, ema_of_square

#: Arguments of torch's constructors that choose an implementation, not the recurrence.
IMPLEMENTATION = {"params", "foreach", "fused", "capturable", "differentiable"}

each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
each_hyper = pytest.mark.parametrize(
    ("spec", "hyper"),
    [pytest.param(spec, h, id=f"{spec.name}.{h.name}") for spec in SPECS.values() for h in spec.hyper],
)


#: Options that add or remove a buffer or change how it starts, with what they need beside them.
CHANGES = (
    {"nesterov": True, "momentum": 0.9},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"initial_accumulator_value": 0.5},
    {"lr_decay": 0.5},
    {"weight_decay": 0.1},
)


def variants():
    """The defaults, each flag alone, and the changes that the Spec has the options for."""
    for spec in SPECS.values():
        names = {h.name for h in spec.hyper}
        yield pytest.param(spec, {}, id=spec.name)
        flags = [{h.name: True} for h in spec.hyper if h.is_flag and h.name != "nesterov"]
        for options in (*flags, *(change for change in CHANGES if change.keys() <= names)):
            yield pytest.param(spec, options, id="-".join([spec.name, *options]))


each_variant = pytest.mark.parametrize(("spec", "options"), list(variants()))


def constructed(spec, options):
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    return parameter, getattr(torch.optim, spec.name)([parameter], **options)


def stepped(spec, options):
    """The parameter and its state after a first step of torch."""
    parameter, optimizer = constructed(spec, options)
    parameter.grad = torch.tensor([0.5, 0.25], dtype=torch.float64)
    optimizer.step()
    return parameter.detach(), optimizer.state[parameter]


def state_before(spec, hyper, rng, shape, *, first):
    """A state before the first step, or a later one."""
    state = {}
    for b in spec.buffers:
        if b.present(hyper):
            initial = b.initial(hyper)
            if first:
                state[b.name] = None if initial is None else np.full(() if b.per_parameter else shape, initial)
            else:
                state[b.name] = np.asarray(3.0) if b.per_parameter else rng.uniform(1, 2, shape)
    return state


def test_reference_needs_no_torch():
    script = "import sys, stepcheck.reference; print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Hyperparameters.


@each_spec
def test_hyperparameters_are_those_of_torch(spec):
    signature = inspect.signature(getattr(torch.optim, spec.name))
    expected = {name: p.default for name, p in signature.parameters.items() if name not in IMPLEMENTATION}
    assert {h.name: h.default for h in spec.hyper} == expected


@each_hyper
def test_type_of_a_default_is_that_of_torch(spec, hyper):
    default = inspect.signature(getattr(torch.optim, spec.name)).parameters[hyper.name].default
    # False == 0: a flag and a number must not be mistaken for each other.
    assert hyper.is_flag == isinstance(default, bool)
    assert isinstance(hyper.default, tuple) == isinstance(default, tuple)


@each_hyper
def test_default_is_accepted(spec, hyper):
    assert hyper.problem(hyper.default) is None


@each_hyper
@pytest.mark.parametrize("wrong", [None, "0.5", [0.5], {}, 1j, np.array([0.5, 0.5]), torch.tensor(0.5)], ids=repr)
def test_value_of_a_wrong_type_is_refused(spec, hyper, wrong):
    assert hyper.name in hyper.problem(wrong)


def flags_and_numbers(spec):
    flags = [h for h in spec.hyper if h.is_flag]
    tuples = [h for h in spec.hyper if isinstance(h.default, tuple)]
    return flags, tuples, [h for h in spec.hyper if h not in flags and h not in tuples]


@each_spec
def test_flag_is_true_or_false_and_nothing_else(spec):
    for h in flags_and_numbers(spec)[0]:
        assert h.problem(True) is None
        assert h.problem(False) is None
        for wrong in (0, 1, 0.0, math.nan, (True,)):
            assert "True or False" in h.problem(wrong)


@each_spec
def test_number_lies_in_its_domain(spec):
    for h in flags_and_numbers(spec)[2]:
        assert h.problem(0) is None
        assert h.problem(0.5) is None
        for wrong in (math.nan, True, False, (0.5,), (0.5, 0.5)):
            assert str(h.domain) in h.problem(wrong)
        assert (h.problem(-1e-3) is None) == (h.domain.low < 0)


@each_spec
def test_number_is_finite(spec):
    for h in flags_and_numbers(spec)[2]:
        for wrong in (math.inf, -math.inf, math.nan):
            assert h.problem(wrong) is not None, h.name


@each_spec
def test_tuple_has_the_length_and_domain_of_its_default(spec):
    for h in flags_and_numbers(spec)[1]:
        assert h.problem((0.0, 0.5)) is None
        for wrong in (0.5, (), (0.5,), (0.5, 0.5, 0.5)):
            assert "2 numbers" in h.problem(wrong)
        for wrong in (-1e-3, 1.0, 2, math.nan, math.inf, True, None, "0.5", (0.5, 0.5)):
            assert h.problem((wrong, 0.5)) is not None
            assert h.problem((0.5, wrong)) is not None


@pytest.mark.parametrize(("name", "option"), [("RMSprop", "alpha"), ("Adadelta", "rho")])
def test_average_that_never_forgets_is_accepted(name, option):
    hyper = next(h for h in SPECS[name].hyper if h.name == option)
    assert hyper.problem(1.0) is None
    assert hyper.problem(math.nextafter(1.0, 2.0)) is not None


@each_spec
def test_torch_accepts_the_edges_of_each_domain(spec):
    for h in spec.hyper:
        if not h.is_flag:
            low = max(h.domain.low, -1e30)
            high = h.domain.high if h.domain.high_included else min(math.nextafter(h.domain.high, 0), 1e30)
            for edge in (low, high):
                constructed(spec, {h.name: tuple(edge for _ in h.default) if isinstance(h.default, tuple) else edge})


@each_spec
def test_torch_refuses_numbers_below_each_domain(spec):
    for h in spec.hyper:
        if not h.is_flag and h.domain.low > -math.inf:
            below = h.domain.low - 1e-3
            with pytest.raises(ValueError, match="Invalid"):
                constructed(spec, {h.name: tuple(below for _ in h.default) if isinstance(h.default, tuple) else below})


@each_spec
def test_options_override_the_defaults(spec):
    defaults = {h.name: h.default for h in spec.hyper}
    assert vars(spec.hyper_values()) == defaults
    assert vars(spec.hyper_values({"lr": 0.25})) == vars(spec.hyper_values(lr=0.25)) == {**defaults, "lr": 0.25}
    assert vars(spec.hyper_values({"lr": 0.25}, lr=0.5)) == {**defaults, "lr": 0.5}


@each_spec
def test_unknown_option_is_refused_by_name(spec):
    with pytest.raises(ValueError, match=rf"{spec.name} has no option 'learning_rate'; it has .*\blr\b"):
        spec.hyper_values(learning_rate=0.1)


@each_hyper
def test_bad_value_is_refused_by_the_name_of_its_option(spec, hyper):
    with pytest.raises(ValueError, match=rf"{spec.name}: {hyper.name} must .*got None"):
        spec.hyper_values({hyper.name: None})


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "dampening": 0.1}, {"dampening": 0.1}, {"momentum": 0.9, "dampening": -0.1}]
)
def test_nesterov_without_momentum_or_with_dampening_is_refused_as_torch_does(options):
    with pytest.raises(ValueError, match="nesterov needs momentum > 0 and dampening = 0"):
        SPECS["SGD"].hyper_values(options, nesterov=True)
    with pytest.raises(ValueError, match="Nesterov"):
        constructed(SPECS["SGD"], {**options, "nesterov": True})
    SPECS["SGD"].hyper_values(options)


def test_conflict_is_a_problem_of_the_combination():
    sgd = SPECS["SGD"]
    hyper = sgd.hyper_values(momentum=0.9, nesterov=True)
    assert sgd.problem(hyper) is None
    assert "nesterov" in sgd.problem(SimpleNamespace(**{**vars(hyper), "momentum": 0.0}))


# State.


@each_variant
def test_buffers_are_those_that_torch_has_after_a_step(spec, options):
    _, state = stepped(spec, options)
    assert set(spec.initial_state(spec.hyper_values(options))) == set(state)


@each_variant
def test_state_that_torch_has_at_construction_is_the_initial_one(spec, options):
    parameter, optimizer = constructed(spec, options)
    initial = spec.initial_state(spec.hyper_values(options))
    for name, value in optimizer.state[parameter].items():
        assert (value == initial[name]).all(), name
    at_construction = any(h.at_construction for h in spec.hyper)
    assert set(optimizer.state[parameter]) == (set(initial) if at_construction else set())


@each_variant
def test_first_step_from_the_initial_state_is_that_of_torch(spec, options):
    # Far coarser than the bounds: a wrong initial value shows in the first digits.
    hyper = spec.hyper_values(options)
    before = state_before(spec, hyper, np.random.default_rng(1), (2,), first=True)
    expected, after = spec.update(np.array([1.0, -2.0]), np.array([0.5, 0.25]), before, hyper)
    p, state = stepped(spec, options)
    for name, got in {"parameter": p, **state}.items():
        predicted = expected if name == "parameter" else after[name]
        assert (np.abs(got.double().numpy() - predicted) <= 1e-12 * np.abs(predicted)).all(), name


@each_variant
def test_buffers_have_the_shapes_and_dtypes_of_torch(spec, options):
    _, state = stepped(spec, options)
    for b in spec.buffers:
        if b.name in state:
            assert state[b.name].shape == (() if b.per_parameter else (2,))
            assert state[b.name].dtype == (torch.float32 if b.per_parameter else torch.float64)


# The update.


@each_variant
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_update_writes_none_of_its_inputs_and_repeats_itself(spec, options, first):
    rng, hyper = np.random.default_rng(2), spec.hyper_values({**options, "weight_decay": 0.1})
    inputs = rng.normal(size=5), rng.normal(size=5), state_before(spec, hyper, rng, (5,), first=first), hyper
    before = copy.deepcopy(inputs)
    with np.errstate(invalid="ignore"):
        # The variance of centered RMSprop may be negative in a state drawn at random.
        once, again = spec.update(*inputs), spec.update(*inputs)
    np.testing.assert_equal(inputs[:3], before[:3])
    assert inputs[3] == before[3]
    np.testing.assert_equal(once, again)


@each_variant
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)], ids=str)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_shapes_are_preserved(spec, options, shape, first):
    rng, hyper = np.random.default_rng(3), spec.hyper_values(options)
    state = state_before(spec, hyper, rng, shape, first=first)
    with np.errstate(invalid="ignore"):
        p, after = spec.update(rng.normal(size=shape), rng.normal(size=shape), state, hyper)
    assert np.shape(p) == shape
    assert after.keys() == state.keys()
    for b in spec.buffers:
        if b.name in after:
            assert np.shape(after[b.name]) == (() if b.per_parameter else shape)


@each_variant
def test_maximizing_is_minimizing_the_negative(spec, options):
    rng, hyper = np.random.default_rng(4), spec.hyper_values({**options, "maximize": False})
    p, g, state = rng.normal(size=5), rng.normal(size=5), state_before(spec, hyper, rng, (5,), first=False)
    with np.errstate(invalid="ignore"):
        np.testing.assert_equal(
            spec.update(p, -g, state, hyper), spec.update(p, g, state, spec.hyper_values({**options, "maximize": True}))
        )


# Orders of evaluation.


class Ordered(np.ndarray):
    """float64 numbers that take one order of evaluation wherever it is offered."""

    order = ""

    def cover_orders(self, others):
        return others[self.order]() if self.order in others else self


def in_order(order, *arrays):
    kind = type("InOrder", (Ordered,), {"order": order})
    return [x.view(kind) for x in arrays]


def equal_on_paper(a, b):
    return (np.abs(np.asarray(a) - np.asarray(b)) <= 1e-12 * (1 + np.abs(np.asarray(b)))).all()


each_order = pytest.mark.parametrize("order", sorted(ORDERS))


@each_order
@pytest.mark.parametrize(
    "operation",
    [ema, ema_of_square, lambda a, x, c: addcdiv(a, x, 3.0, c)],
    ids=["ema", "ema_of_square", "addcdiv"],
)
def test_orders_of_a_composite_operation_are_equal_on_paper(operation, order):
    a, x = np.linspace(-3, 3, 7), np.linspace(2, 5, 7)
    for c in (0.1, 0.25, 0.75, 0.999):
        assert equal_on_paper(operation(*in_order(order, a, x), c), operation(a, x, c))


@each_order
@each_variant
def test_orders_of_an_update_are_equal_on_paper(spec, options, order):
    rng = np.random.default_rng(5)
    # An eps in the wrong place must show.
    hyper = spec.hyper_values({**options, **({"eps": 0.1} if any(h.name == "eps" for h in spec.hyper) else {})})
    p, g, state = rng.normal(size=5), rng.normal(size=5), state_before(spec, hyper, rng, (5,), first=False)
    if "grad_avg" in state:
        state["square_avg"] = state["grad_avg"] ** 2 + 1
    expected, after = spec.update(p, g, state, hyper)
    ordered = {name: x if name == "step" else in_order(order, x)[0] for name, x in state.items()}
    got, got_after = spec.update(*in_order(order, p, g), ordered, hyper)
    assert equal_on_paper(got, expected)
    for name, x in after.items():
        assert equal_on_paper(got_after[name], x), name


def test_every_order_is_offered_by_some_update():
    class Noting(np.ndarray):
        def cover_orders(self, others):
            offered.update(others)
            return self

    offered = set()
    for spec in SPECS.values():
        hyper = spec.hyper_values(weight_decay=0.1)
        state = state_before(spec, hyper, np.random.default_rng(6), (5,), first=False)
        state = {name: x if name == "step" else x.view(Noting) for name, x in state.items()}
        spec.update(np.ones(5).view(Noting), np.ones(5).view(Noting), state, hyper)
    assert offered == ORDERS


def test_plain_numbers_take_the_written_order():
    assert any_order(1.5, textbook=lambda: 2.5) == 1.5
