"""The player records what happened, in memory laid out as the trace says."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from stepcheck.harness.life import schedules
from stepcheck.harness.life.events import (
    CLOSURES,
    FORMS,
    HOOKS,
    LOSSES,
    SCALINGS,
    SCHEDULES,
    WAYS,
    Accumulate,
    AddGroup,
    Fail,
    Freeze,
    Gradient,
    Group,
    Hook,
    Objective,
    Parameter,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Sparse,
    Step,
    ZeroGrad,
)
from stepcheck.harness.life.memory import GUARD, GUARD_ELEMENTS, room, strides
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.building import construct
from stepcheck.harness.play.events import PLAYS
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.process import random_state
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.asking import findings
from stepcheck.harness.support import settings
from stepcheck.harness.support.usage import UsageError

SGD = resolve("torch:SGD[forloop]")[0]
ONES = Gradient(Values("constant", high=1.0))


def life(*events, shape=(3, 2), layout="contiguous", options=None, optimizer="SGD"):
    parameter = Parameter(shape, "float32", layout, Values("quarters", 1, high=2.0))
    return Trace(optimizer, (parameter,), (Group((0,), options or {}),), events)


def play(subject, *events, dtype="float32", shape=(3, 2), layout="contiguous", high=2.0, **options):
    """A life of one parameter, played."""
    if isinstance(subject, str):
        subject = resolve(f"torch:{subject}")[0]
    parameter = Parameter(shape, dtype, layout, Values("quarters", 1, high=high))
    recording = Player(subject, Trace(subject.spec.name, (parameter,), (Group((0,), options),), events)).play()
    assert recording.raised is None, recording.raised
    return recording


SHAPES = [(), (0,), (1,), (5,), (3, 2), (2, 0, 3), (2, 3, 4), (2, 3, 2, 2)]


@pytest.mark.parametrize(
    ("shape", "layout"),
    [(shape, layout) for shape in SHAPES for layout in ("contiguous", "transposed", "sliced")]
    + [((2, 3, 2, 2), "channels_last")],
)
def test_strides_are_those_of_torch(shape, layout):
    backwards = tuple(range(len(shape)))[::-1]
    expected = {
        "contiguous": lambda: torch.empty(shape),
        "transposed": lambda: torch.empty(shape[::-1]).permute(backwards),
        "sliced": lambda: torch.empty((*shape[:-1], 2 * shape[-1]))[..., ::2] if shape else torch.empty(()),
        "channels_last": lambda: torch.empty(shape).to(memory_format=torch.channels_last),
    }[layout]()
    if 0 not in shape:
        assert strides(shape, layout) == expected.stride()
    assert room(shape, layout) >= math.prod(shape) + 2 * GUARD_ELEMENTS


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_values_and_memory_do_not_depend_on_the_layout(layout):
    step = Player(SGD, life(Step({0: ONES}), layout=layout)).play().steps[0]
    values = Values("quarters", 1, high=2.0).realise((3, 2)).astype(np.float32)
    np.testing.assert_array_equal(step.parameters[0].value, values)
    np.testing.assert_array_equal(step.parameters[0].value_after, values - np.float32(1e-3))
    assert not step.parameters[0].beside_written
    assert not step.parameters[0].gradient_written


def test_events_reach_the_optimizer():
    half = Gradient(Values("constant", high=0.5))
    events = (
        Step({0: ONES}),
        SetOption(0, "lr", 1.0),
        Step({0: half}),
        ZeroGrad(set_to_none=True),
        Step(),
        Step({0: half}),
    )
    steps = Player(SGD, life(*events, shape=(1,))).play().steps
    moved = [float((s.parameters[0].value_after - s.parameters[0].value)[0]) for s in steps]
    assert moved == pytest.approx([-1e-3, -0.5, 0.0, -0.5], abs=1e-6)
    assert [s.parameters[0].gradient is None for s in steps] == [False, False, True, False]
    assert [s.hyper[0].lr for s in steps] == [1e-3, 1.0, 1.0, 1.0]


def test_zero_grad_in_place_leaves_a_zero_gradient():
    steps = Player(SGD, life(Step({0: ONES}), ZeroGrad(set_to_none=False), Step())).play().steps
    assert not steps[1].parameters[0].gradient.any()


def test_a_reload_goes_on_with_another_optimizer_that_holds_the_same_state():
    player = Player(SGD, life(Step({0: ONES}), Reload(), Step({0: ONES}), options={"momentum": 0.5, "lr": 0.25}))
    first = construct(player, player.subject, player.options, "list")
    recording = player.play()
    assert player.optimizer is not first
    (reload,) = recording.reloads
    np.testing.assert_array_equal(reload.saved[0]["momentum_buffer"], reload.loaded[0]["momentum_buffer"])
    assert reload.saved_options == reload.loaded_options
    assert reload.loaded_options[0]["lr"] == 0.25


class WritesAround(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.detach().as_strided((1,), (1,), p.storage_offset() - 1).fill_(1.0)
            p.grad.mul_(2)


def test_what_is_written_outside_the_parameter_is_seen():
    recording = Player(class_subject(WritesAround, "SGD"), life(Step({0: ONES}))).play()
    assert recording.steps[0].parameters[0].beside_written
    assert recording.steps[0].parameters[0].gradient_written


class RaisesLate(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 1.0:
            raise KeyError("lost")


def test_an_exception_is_recorded_with_its_event():
    trace = life(Step({0: ONES}), SetOption(0, "lr", 1.0), Step({0: ONES}), Step({0: ONES}))
    recording = Player(class_subject(RaisesLate, "SGD"), trace).play()
    assert recording.raised is not None
    assert (recording.raised.event, recording.raised.kind) == (2, "KeyError")
    assert len(recording.steps) == 1


def test_the_guard_is_changed_by_an_update_of_ordinary_size():
    assert np.float32(GUARD) - np.float32(1e-3) != np.float32(GUARD)


# Complex parameters.


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced", "offset"])
def test_complex_parameter_is_two_numbers_an_element(layout):
    gradient = Gradient(Values("listed", listed=tuple(map(float, range(12)))))
    parameter = (
        play("SGD[forloop]", Step({0: gradient}), dtype="complex64", layout=layout, lr=0.5).steps[0].parameters[0]
    )
    values = Values("quarters", 1, high=2.0).realise((3, 2, 2))
    assert parameter.value.dtype == np.complex64
    np.testing.assert_array_equal(parameter.value, values[..., 0] + 1j * values[..., 1])
    given = np.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_array_equal(parameter.gradient, given[..., 0] + 1j * given[..., 1])
    np.testing.assert_array_equal(parameter.value_after, parameter.value - 0.5 * parameter.gradient)
    assert not parameter.beside_written


def test_conjugated_gradient_has_the_values_that_the_trace_says_and_torch_s_conjugate_bit():
    seen = []

    class Looks(torch.optim.SGD):
        def step(self, closure=None):
            seen.extend(p.grad.is_conj() for p in self.param_groups[0]["params"])
            return super().step(closure)

    given = Gradient(Values("listed", listed=(1.0, 2.0, 3.0, -4.0)), "conjugated")
    parameter = (
        play(class_subject(Looks, "SGD"), Step({0: given}), dtype="complex128", shape=(2,)).steps[0].parameters[0]
    )
    assert seen == [True]
    np.testing.assert_array_equal(parameter.gradient, [1 + 2j, 3 - 4j])
    assert not parameter.gradient_written


# Narrow formats.


def beside(dtype, layout, optimizer=WritesAround, like="SGD"):
    return play(class_subject(optimizer, like), Step({0: ONES}), dtype=dtype, layout=layout).steps[0].parameters[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_guard_holds_in_every_dtype(dtype):
    for layout in ("contiguous", "transposed", "sliced", "offset"):
        parameter = play("SGD[forloop]", Step({0: ONES}), dtype=dtype, layout=layout).steps[0].parameters[0]
        assert not parameter.beside_written
        assert (
            parameter.value.dtype == {"bfloat16": np.float32, "float16": np.float16, "complex64": np.complex64}[dtype]
        )
        parameter = beside(dtype, layout)
        assert parameter.beside_written
        assert parameter.gradient_written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_guard_is_a_number_of_the_narrow_formats(dtype):
    assert float(torch.tensor(GUARD, dtype=dtype)) == GUARD


def test_bfloat16_is_read_without_a_rounding():
    parameter = play("SGD[forloop]", Step({0: ONES}), dtype="bfloat16", shape=(5,), lr=0.1).steps[0].parameters[0]
    expected = torch.from_numpy(parameter.value).bfloat16() - 0.1 * torch.ones(5, dtype=torch.bfloat16)
    np.testing.assert_array_equal(parameter.value_after, expected.float().numpy())


# Sparse gradients.


def test_sparse_gradient_names_elements():
    given = Gradient(Values("listed", listed=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), sparse=Sparse((2, 0, 2)))
    parameter = play("SGD[forloop]", Step({0: given}), lr=1.0, high=0.0).steps[0].parameters[0]
    assert parameter.gradient.elements.tolist() == [4, 5, 0, 1, 4, 5]
    assert parameter.gradient.values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    np.testing.assert_array_equal(parameter.value_after, [[-3.0, -4.0], [0.0, 0.0], [-6.0, -8.0]])
    assert not parameter.gradient_written


def test_sparse_gradient_may_name_single_elements_or_nothing():
    single = Gradient(Values("listed", listed=(1.0, 2.0)), sparse=Sparse((1, 5), 2, coalesced=True))
    nothing = Gradient(sparse=Sparse((), 1))
    first, second = (s.parameters[0] for s in play("SGD[forloop]", Step({0: single}), Step({0: nothing})).steps)
    assert first.gradient.elements.tolist() == [1, 5]
    assert second.gradient.elements.tolist() == []
    np.testing.assert_array_equal(second.value_after, second.value)


class ScalesSparse(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad._values().mul_(2)


class MovesSparse(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad._indices().zero_()


class ReplacesSparse(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad * 2


class Densifies(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad.to_dense()


@pytest.mark.parametrize("optimizer", [ScalesSparse, MovesSparse, ReplacesSparse, Densifies])
def test_sparse_gradient_that_is_written_is_noticed(optimizer):
    given = Gradient(ONES.values, sparse=Sparse((2, 0)))
    assert play(class_subject(optimizer, "SGD"), Step({0: given})).steps[0].parameters[0].gradient_written


class WritesLate(torch.optim.SGD):
    """Keeps its gradients, and writes them a step later."""

    def step(self, closure=None):
        for old in self.__dict__.pop("kept", []):
            old.mul_(2)
        self.kept = [p.grad for p in self.param_groups[0]["params"]]


def test_gradient_that_is_written_after_it_was_replaced_is_noticed():
    steps = play(class_subject(WritesLate, "SGD"), Step({0: ONES}), Step({0: ONES})).steps
    assert [s.parameters[0].gradient_written for s in steps] == [False, True]


def test_contiguous_parameter_that_gets_sparse_gradients_starts_its_memory():
    given = Gradient(ONES.values, sparse=Sparse((0,)))
    for layout, start in (("contiguous", 0), ("offset", GUARD_ELEMENTS)):
        trace = Trace("SGD", (Parameter((3, 2), "float32", layout),), (Group((0,)),), (Step({0: given}),))
        player = Player(SGD, trace)
        assert player.parameters[0].storage_offset() == start
        player.play()


# Differentiable steps.


def test_differentiable_subject_gets_parameters_that_are_no_leaves():
    seen = []

    class Looks(torch.optim.SGD):
        def step(self, closure=None):
            seen.extend((p.is_leaf, p.requires_grad) for p in self.param_groups[0]["params"])
            return super().step(closure)

    plain = class_subject(Looks, "SGD")
    play(plain, Step({0: ONES}))
    assert seen == [(True, True)]
    graph = resolve("torch:SGD[differentiable]")[0]
    for layout in ("contiguous", "transposed", "sliced"):
        step = play(graph, Step({0: ONES}), layout=layout, lr=0.5).steps[0].parameters[0]
        np.testing.assert_array_equal(step.value_after, step.value - np.float32(0.5))
        assert not step.beside_written
    trace = Trace("SGD", (Parameter((2,)),), (Group((0,)),), (Step({0: ONES}),))
    assert not Player(graph, trace).parameters[0].is_leaf


def test_differentiable_subject_keeps_a_graph_through_its_steps():
    player = Player(
        resolve("torch:SGD[differentiable]")[0],
        Trace("SGD", (Parameter((2,)),), (Group((0,), {"lr": 0.5}),), (Step({0: ONES}), Step({0: ONES}))),
    )
    recording = player.play()
    assert recording.raised is None
    np.testing.assert_array_equal(recording.steps[1].parameters[0].value_after, [-1.0, -1.0])


# Closures.

BOWL = Objective("quadratic", Values("constant", high=1.0), 0.5)


def test_evaluations_of_a_closure_are_recorded():
    step = play("LBFGS[forloop]", Step({}, BOWL), shape=(3,), max_iter=3, lr=0.5).steps[0]
    assert len(step.evaluations) == step.parameters[0].state_after["func_evals"] > 1
    curvature = np.array([1.0, 2.0, 3.0])
    for evaluation in step.evaluations:
        away = evaluation.point - 1.0
        assert evaluation.loss == pytest.approx(0.5 * (curvature * away**2).sum() / 2)
        np.testing.assert_allclose(evaluation.gradient, 0.5 * curvature * away, rtol=1e-6)
    np.testing.assert_array_equal(step.evaluations[0].point, step.parameters[0].value)
    losses = [e.loss for e in step.evaluations]
    assert losses == sorted(losses, reverse=True)
    # A closure writes gradients: that is no fault of the optimizer.
    assert not step.parameters[0].gradient_written


@pytest.mark.parametrize("set_to_none", [True, False])
def test_a_closure_clears_gradients_as_it_is_told(set_to_none):
    step = play("LBFGS[forloop]", Step({}, replace(BOWL, set_to_none=set_to_none)), shape=(3,), max_iter=3).steps[0]
    kept = play("LBFGS[forloop]", Step({}, BOWL), shape=(3,), max_iter=3).steps[0]
    for evaluation, same in zip(step.evaluations, kept.evaluations, strict=True):
        np.testing.assert_array_equal(evaluation.gradient, same.gradient)

    class Evaluates(torch.optim.LBFGS):
        def step(self, closure):
            (p,) = self.param_groups[0]["params"]
            closure()
            gradients.append(p.grad)
            returned = closure()
            gradients.append(p.grad)
            return returned

    gradients = []
    trace = Trace("LBFGS", (Parameter((2,)),), (Group((0,)),), (Step({}, replace(BOWL, set_to_none=set_to_none)),))
    Player(class_subject(Evaluates, "LBFGS"), trace).play()
    first, second = gradients
    assert (first is second) != set_to_none
    assert second.tolist() == [-0.5, -1.0]


def test_closure_of_complex_parameters_sees_their_parts():
    step = play("LBFGS[forloop]", Step({}, BOWL), shape=(2,), dtype="complex128", max_iter=1).steps[0]
    first = step.parameters[0].value
    np.testing.assert_array_equal(step.evaluations[0].point, first.view(np.float64))
    assert step.evaluations[0].gradient.shape == (4,)


def test_each_parameter_has_a_centre_of_its_own():
    objective = Objective("linear", Values("quarters", 3, high=1.0), 2.0)
    parameters = (Parameter((2,), "float64"), Parameter((2,), "float64"))
    trace = Trace("LBFGS", parameters, (Group((0, 1), {"max_iter": 1}),), (Step({}, objective),))
    recording = Player(resolve("torch:LBFGS[forloop]")[0], trace).play()
    (first, *_) = recording.steps[0].evaluations
    centres = [Values("quarters", seed, high=1.0).realise((2,)) for seed in (3, 4)]
    assert first.loss == 2.0 * -sum(c.sum() for c in centres)
    np.testing.assert_array_equal(first.gradient, np.full(4, 2.0))


def test_state_that_is_a_list_is_read_entry_by_entry():
    recording = play("LBFGS[forloop]", *[Step({}, BOWL)] * 2, shape=(3,), max_iter=3, lr=0.5, high=2.0)
    state = recording.steps[-1].parameters[0].state_after
    pairs = [name for name in state if name.startswith("old_dirs[")]
    assert pairs == [f"old_dirs[{n}]" for n in range(len(pairs))]
    assert len(pairs) > 1
    assert "old_dirs" not in state
    assert state["old_dirs[0]"].shape == (3,)
    # A number in a list is a number; what is not there yet is left out.
    assert isinstance(state["ro[0]"], (float, np.ndarray))
    assert not any(name.startswith("al[") and state[name] is None for name in state)


def test_state_that_is_no_tensor_is_a_number():
    given = Gradient(ONES.values, sparse=Sparse((0, 1)))
    assert play("SparseAdam[forloop]", Step({0: given})).steps[0].parameters[0].state_after["step"] == 1.0


class SparseState(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["momentum_buffer"] = torch.eye(3, 2).to_sparse()


def test_sparse_state_is_read_as_the_dense_one_that_it_stands_for():
    state = play(class_subject(SparseState, "SGD"), Step({0: ONES})).steps[0].parameters[0].state_after
    np.testing.assert_array_equal(state["momentum_buffer"], np.eye(3, 2))


# The life around the steps: each event does what it says.

ADAM = resolve("torch:Adam[forloop]")[0]
TWO = Gradient(Values("constant", high=2.0))


class Spy(torch.optim.SGD):
    """Notes what it is given."""

    seen: list

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0, maximize=False):
        self.seen.append(("params", type(params).__name__, params))
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, maximize=maximize)

    def step(self, closure=None):
        self.seen.append(("step", closure, [p.grad for g in self.param_groups for p in g["params"]], self.scale()))
        return super().step(closure)

    def scale(self):
        scale = getattr(self, "grad_scale", None)
        return None if scale is None else float(scale)

    def load_state_dict(self, state_dict):
        self.seen.append(("load", state_dict))
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group):
        self.seen.append(("add", dict(param_group)))
        super().add_param_group(param_group)


@pytest.fixture
def spy():
    return type("Spied", (Spy,), {"seen": [], "__init__": Spy.__init__})


def spied(spy):
    """A subject; what is seen of it from here on, without what was tried of its constructor."""
    subject = class_subject(spy, "SGD")
    spy.seen.clear()
    return subject


def noted(spy, kind):
    return [entry[1:] for entry in spy.seen if entry[0] == kind]


def lived(subject, *events, groups=None, parameters=1, form="list", **options):
    """A player that has played a life, nothing raised and nothing breached."""
    groups = groups or (Group(tuple(range(parameters)), options),)
    trace = Trace(
        subject.spec.name, (Parameter((2,), values=Values("constant", high=1.0)),) * parameters, groups, events, form
    )
    player = Player(subject, trace)
    recording = player.play()
    assert recording.raised is None, recording.raised
    assert not [b for b in recording.breaches if b.check not in ("dicts-unchanged", "loaded-state-apart")]
    return player


def moved(player, parameter=0):
    return [
        float((s.parameters[parameter].value_after - s.parameters[parameter].value)[0]) for s in player.recording.steps
    ]


# Gradient scaling


class Unscaling(Spy):
    _step_supports_amp_scaling = True

    def step(self, closure=None):
        self.seen.append(("scaled", [float(p.grad[0]) for g in self.param_groups for p in g["params"]], self.scale()))
        if not getattr(self, "found_inf", None):
            for group in self.param_groups:
                for p in group["params"]:
                    with torch.no_grad():
                        p.sub_(p.grad / (self.scale() or 1.0))


def test_gradients_are_scaled_by_2_to_the_16_and_by_twice_that_after_two_good_steps():
    seen = []
    subject = class_subject(type("Unscales", (Unscaling,), {"seen": seen, "__init__": Spy.__init__}), "SGD")
    player = lived(subject, *[Step({0: ONES}, scaling="step")] * 3, lr=1.0)
    assert [entry[1:] for entry in seen if entry[0] == "scaled"] == [
        ([2.0**16], 2.0**16),
        ([2.0**16], 2.0**16),
        ([2.0**17], 2.0**17),
    ]
    assert moved(player) == [-1.0, -1.0, -1.0]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaled_steps_step_along_the_unscaled_gradient_and_skip_infinity(spy, scaling):
    infinite = Gradient(Values("listed", listed=(1.0, math.inf)))
    events = (Step({0: ONES}, scaling=scaling), Step({0: infinite}, scaling=scaling), Step({0: TWO}, scaling=scaling))
    player = lived(spied(spy), *events, lr=0.5)
    assert [s.event for s in player.recording.steps] == [0, 2]
    assert moved(player) == [-0.5, -1.0]
    assert len(noted(spy, "step")) == 2
    assert [float(grads[0][0]) for _, grads, _ in noted(spy, "step")] == [1.0, 2.0]
    assert player.recording.looked["skipped-step"] == 1
    assert player.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("scaling", SCALINGS)
def test_the_scaler_adds_the_entries_of_a_sparse_float16_gradient_and_not_the_optimizer(scaling):
    (subject,) = resolve("fast:SparseAdam")
    gradient = Gradient(Values("log", 1, 2.0**-17, 2.0**-7), sparse=Sparse((0, 0, 0)))
    events = (Step({0: gradient}, scaling=scaling),)
    player = Player(subject, Trace("SparseAdam", (Parameter((1,), "float16"),), (Group((0,)),), events))
    given = player.play().steps[0].parameters[0].gradient
    entries = gradient.realise((1,), "float16")
    assert given.elements.tolist() == [0]
    # To the half of a unit in the last place of float16 at 2^-7, for each addition; what is added has none of those errors.
    assert 0 < abs(float(given.values[0]) - entries.sum()) <= 2 * 2.0**-18
    assert not list(findings(subject, player.trace, "agreement"))


def test_what_a_skipped_first_step_creates_is_initial_as_bfloat16_rounds_it():
    (subject,) = resolve("fast:Rprop[triton]")
    infinite = Gradient(Values("listed", listed=(1.0, math.inf)))
    trace = Trace("Rprop", (Parameter((2,), "bfloat16"),), (Group((0,)),), (Step({0: infinite}, scaling="step"),))
    assert not list(findings(subject, trace, "skipped-step"))


def test_a_move_that_vanishes_in_a_float16_zero_need_not_have_been_zero():
    (subject,) = resolve("fast:Muon")
    parameter = Parameter((2, 2), "float16", values=Values("constant", high=0.0))
    gradient = Gradient(Values("listed", listed=(0.5, -1.0, 2.0, -0.5)))
    group = Group((0,), {"lr": 1e-6, "adjust_lr_fn": "match_rms_adamw", "eps": 16.0})
    trace = Trace("Muon", (parameter,), (group,), (Step({0: gradient}),))
    after = Player(subject, trace).play().steps[0].parameters[0].value_after
    assert after[0, 0] == 0 != after[0, 1]
    assert not list(findings(subject, trace, "agreement"))


# Closures


@pytest.mark.parametrize("kind", CLOSURES)
def test_closure_assigns_the_gradients_and_gives_back_what_its_kind_says(kind):
    results = []

    class Calls(torch.optim.SGD):
        def step(self, closure=None):
            assert all(p.grad is None for p in self.param_groups[0]["params"])
            with torch.enable_grad():
                results.append(closure())
            super().step()
            return results[-1]

    player = lived(class_subject(Calls, "SGD"), Step({0: TWO}, closure=kind), lr=0.5)
    assert moved(player) == [-1.0]
    (result,) = results
    assert {"float": result == 0.75, "none": result is None}.get(kind, isinstance(result, torch.Tensor))
    if kind not in ("none", "backward"):
        np.testing.assert_equal(float(result), LOSSES.get(kind, 0.75))
    assert kind != "backward" or float(result) != 0.75
    assert player.recording.looked["closure"] == 3
    np.testing.assert_array_equal(player.recording.steps[0].parameters[0].gradient, [2.0, 2.0])


# Gradients


@pytest.mark.parametrize("subject", ["SGD[forloop]", "SGD[differentiable]"])
def test_accumulated_gradients_are_added_exactly(subject):
    tenth, third = Gradient(Values("constant", high=0.1)), Gradient(Values("constant", high=1 / 3))
    events = (Step({0: tenth}), Accumulate({0: third}), Step({}), Accumulate({0: third}), Step({}))
    player = lived(resolve(f"torch:{subject}")[0], *events)
    first, second, third_one = (s.parameters[0].gradient for s in player.recording.steps)
    sums = [
        np.float32(0.1),
        np.float32(0.1) + np.float32(1 / 3),
        np.float32(0.1) + np.float32(1 / 3) + np.float32(1 / 3),
    ]
    assert [first[0], second[0], third_one[0]] == sums


def test_what_is_accumulated_without_a_gradient_is_the_gradient():
    player = lived(SGD, Accumulate({0: TWO}), Step({}), ZeroGrad(), Accumulate({0: ONES}), Step({}), lr=0.5)
    assert moved(player) == [-1.0, -0.5]


def test_frozen_parameter_is_stepped_as_long_as_it_has_a_gradient():
    asked = []

    class Looks(torch.optim.SGD):
        def step(self, closure=None):
            asked.append(self.param_groups[0]["params"][0].requires_grad)
            return super().step(closure)

    events = (Freeze(0), Step({0: ONES}), Accumulate({0: ONES}), Step({}), Freeze(0, frozen=False), Step({0: ONES}))
    player = lived(class_subject(Looks, "SGD"), *events, lr=0.5)
    assert asked == [False, False, True]
    assert moved(player) == [-0.5, -0.5, -0.5]  # no backward pass reaches a frozen parameter


# Groups and options


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("number", [1, 2])
def test_parameters_are_given_in_the_form_that_the_life_says(spy, form, number):
    groups = tuple(Group((n,), {"lr": 0.5 + n, "momentum": 0.5}) for n in range(number))
    player = lived(spied(spy), Step(dict.fromkeys(range(number), ONES)), groups=groups, parameters=number, form=form)
    ((kind, given),) = noted(spy, "params")
    assert kind == {"tuple": "tuple", "iterator": "list_iterator"}.get(form, "list")
    assert [g["lr"] for g in player.optimizer.param_groups] == [0.5, 1.5][:number]
    members = noted(spy, "add")[0][0]["params"]
    if number == 2:
        assert type(members).__name__ == {"tuple": "tuple", "iterator": "list_iterator"}.get(form, "list")
    if form == "named":
        assert members[0][0] == "p0"
    if number == 1 and form in ("dicts", "mixed"):
        assert isinstance(given[0], dict)
    assert ("param_names" in player.optimizer.param_groups[0]) == (form == "named")
    assert [moved(player, n) for n in range(number)] == [[-0.5], [-1.5]][:number]


@pytest.mark.parametrize("form", FORMS)
def test_added_group_has_the_options_that_it_is_given_and_defaults(form):
    added = AddGroup(Group((1,), {"weight_decay": 0.5}))
    player = lived(
        SGD,
        Step({0: ONES}),
        added,
        Step({1: ONES}),
        groups=(Group((0,), {"lr": 0.5, "momentum": 0.5}),),
        parameters=2,
        form=form,
    )
    options = player.optimizer.param_groups[1]
    assert (options["lr"], options["momentum"], options["weight_decay"]) == (1e-3, 0.0, 0.5)
    first, second = player.recording.steps
    assert first.parameters[1].gradient is None
    assert [h.weight_decay for h in second.hyper] == [0.0, 0.5]
    assert ("param_names" in options) == (form == "named")


def test_tensor_lr_is_a_float32_tensor_and_one_for_all_groups():
    groups = tuple(Group((n,), {"lr": Scalar(0.5)}) for n in range(2))
    player = lived(ADAM, SetOption(1, "lr", Scalar(0.25)), groups=groups, parameters=2)
    first, second = (g["lr"] for g in player.optimizer.param_groups)
    assert (first.dtype, first.shape, float(first), float(second)) == (torch.float32, (), 0.5, 0.25)
    untouched = lived(ADAM, groups=groups, parameters=2)
    assert untouched.optimizer.param_groups[0]["lr"] is untouched.optimizer.param_groups[1]["lr"]


def test_tensor_lr_is_judged_as_the_number_that_it_holds():
    step = lived(ADAM, Step({0: ONES}), lr=Scalar(0.5)).recording.steps[0]
    assert step.hyper[0].lr == 0.5
    assert step.hyper[0].tensors == frozenset({"lr"})


# Parameters in the gaps of another


def within(*events, optimizer=torch.optim.SGD):
    host = Parameter((2, 3), "float32", "sliced", Values("quarters", 1, high=1.0))
    guest = Parameter((2, 3), "float32", "sliced", Values("constant", high=7.0), within=0)
    player = Player(class_subject(optimizer, "SGD"), Trace("SGD", (host, guest), (Group((0, 1), {"lr": 0.5}),), events))
    return player, player.play()


def test_parameter_within_another_fills_its_gaps():
    player, recording = within(Step({0: ONES, 1: TWO}))
    host, guest = player.parameters
    assert guest.untyped_storage().data_ptr() == host.untyped_storage().data_ptr()
    assert guest.data_ptr() == host.data_ptr() + host.element_size()
    assert guest.stride() == host.stride() == (6, 2)
    first, second = recording.steps[0].parameters
    np.testing.assert_array_equal(first.value_after, first.value - 0.5)
    np.testing.assert_array_equal(second.value_after, np.full((2, 3), 6.0))
    assert not first.beside_written
    assert not second.beside_written


def test_who_writes_over_the_gaps_changes_the_other_parameter():
    class Overwrites(torch.optim.SGD):
        def step(self, closure=None):
            p = self.param_groups[0]["params"][0]
            p.detach().as_strided((12,), (1,)).zero_()

    _, recording = within(Step({0: ONES, 1: None}), optimizer=Overwrites)
    host, guest = recording.steps[0].parameters
    assert guest.gradient is None
    assert not guest.value_after.any()
    assert not host.beside_written  # all twelve are somebody's


# Round trips


@pytest.mark.parametrize("way", WAYS)
def test_each_way_leads_to_another_optimizer_with_the_same_state(way, monkeypatch):
    trace = Trace(
        "Adam", (Parameter((2,)),), (Group((0,), {"lr": 0.5}),), (Step({0: ONES}), Reload(way), Step({0: ONES}))
    )
    player, seen = Player(ADAM, trace), []
    reload = PLAYS[Reload]

    def watched(player, event, what):
        seen.extend([player.optimizer, player.optimizer.state[player.parameters[0]]])
        reload.play(player, event, what)
        seen.extend([player.optimizer, player.optimizer.state[player.parameters[0]]])

    monkeypatch.setitem(PLAYS, Reload, reload._replace(play=watched))
    recording = player.play()
    assert recording.raised is None, recording.raised
    old, before, new, after = seen
    assert new is not old
    assert new.param_groups[0]["params"][0] is player.parameters[0]
    assert new.param_groups[0]["lr"] == 0.5
    assert before.keys() == after.keys()
    # In memory, torch keeps the very tensors.
    shares = before["exp_avg"].data_ptr() == after["exp_avg"].data_ptr()
    assert shares == (way == "memory")
    (record,) = recording.reloads
    for name in record.saved[0]:
        np.testing.assert_array_equal(record.saved[0][name], record.loaded[0][name])
    assert recording.steps[1].parameters[0].state_after["step"] == 2.0


def test_older_dictionary_has_numbers_for_counters_and_no_flags():
    seen = []

    class Loads(torch.optim.Adam):
        def load_state_dict(self, state_dict):
            seen.append(state_dict)
            super().load_state_dict(state_dict)

    subject = replace(ADAM, make=Loads)
    player = lived(subject, Step({0: ONES}), Reload(dictionary="older"), Step({0: ONES}), lr=0.5)
    (loaded,) = seen
    assert loaded["state"][0]["step"] == 1.0
    assert isinstance(loaded["state"][0]["step"], float)
    assert isinstance(loaded["state"][0]["exp_avg"], torch.Tensor)
    assert not loaded["param_groups"][0].keys() & {"foreach", "fused", "capturable", "differentiable", "maximize"}
    assert player.optimizer.param_groups[0]["foreach"] is False
    assert player.recording.steps[1].parameters[0].state_after["step"] == 2.0


def test_older_dictionary_keeps_maximize_where_it_says_something():
    player = lived(ADAM, Step({0: ONES}), Reload(dictionary="older"), Step({0: ONES}), maximize=True)
    assert all(m > 0 for m in moved(player))


def test_foreign_dictionary_has_other_identifiers_in_another_order(spy):
    groups = (Group((0, 1), {"lr": 0.5, "momentum": 0.5}), Group((2,), {"lr": 0.25, "momentum": 0.5}))
    gradients = {n: Gradient(Values("constant", high=float(n + 1))) for n in range(3)}
    events = (Step(gradients), Reload(dictionary="foreign"), Step(gradients))
    player = lived(spied(spy), *events, groups=groups, parameters=3)
    ((loaded,),) = noted(spy, "load")
    assert [g["params"] for g in loaded["param_groups"]] == [[1000, 993], [986]]
    assert list(loaded["state"]) == [986, 993, 1000]
    assert loaded["version"] == 7
    assert all("comment" in g for g in loaded["param_groups"])
    assert [moved(player, n)[1] for n in range(3)] == [-0.75, -1.5, -1.125]


@pytest.mark.parametrize("form", FORMS)
def test_reloaded_optimizer_is_built_in_the_form_that_the_round_trip_says(spy, form):
    lived(spied(spy), Step({0: ONES}), Reload(form=form), Step({0: ONES}), lr=0.5)
    first, second = noted(spy, "params")
    assert first[0] == "list"
    assert second[0] == {"tuple": "tuple", "iterator": "list_iterator"}.get(form, "list")


def test_round_trip_leads_into_another_implementation():
    player = lived(ADAM, Step({0: ONES}), Reload(into=1), Step({0: ONES}), Reload(into=2), Step({0: ONES}))
    modes = [s.played_by.mode for s in player.recording.steps]
    assert modes[0] == "forloop"
    assert modes[1] != "forloop"
    assert [(event, subject.mode) for event, subject in player.recording.handovers] == [(1, modes[1]), (3, modes[2])]
    assert [s.parameters[0].state_after["step"] for s in player.recording.steps] == [1.0, 2.0, 3.0]


# Hooks


@pytest.mark.parametrize("kind", HOOKS)
def test_hooks_are_counted_and_follow_into_the_next_optimizer(kind):
    step, reload = Step({0: ONES}), Reload("deepcopied")
    player = lived(SGD, Hook(kind), Hook(kind), step, reload, step, reload)
    assert player.hooks.kinds == [kind, kind]
    assert player.recording.looked["hooks-run-once"] == 2


def test_hook_that_is_not_run_is_noticed():
    class Bypasses(torch.optim.SGD):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            self.step = lambda closure=None: None

    trace = life(Hook("step_pre"), Step({0: ONES}), Hook("step_post"))
    recording = Player(class_subject(Bypasses, "SGD"), trace).play()
    assert [(b.check, b.event, b.cause) for b in recording.breaches] == [("hooks-run-once", 1, "step_pre")]


def test_copies_are_not_asked_for_hooks():
    lived(SGD, Hook("step_pre"), Step({0: ONES}), Reload("copied"), Step({0: ONES}))


# Schedules


@pytest.mark.parametrize("kind", SCHEDULES)
def test_schedule_changes_the_options_as_it_does_by_itself(kind):
    events = (Schedule(kind), *[e for _ in range(5) for e in (Step({0: ONES, 1: ONES}), ScheduleStep())])
    groups = (Group((0,), {"lr": 0.5, "momentum": 0.5}), Group((1,), {"lr": 0.25, "momentum": 0.5}))
    steps = lived(SGD, *events, groups=groups, parameters=2).recording.steps

    optimizer = torch.optim.SGD([{"params": [torch.zeros(1)], "lr": lr, "momentum": 0.5} for lr in (0.5, 0.25)])
    written = schedules.written(kind, ["lr", "momentum"], 2)
    schedule = eval(written, {"torch": torch, "optimizer": optimizer})
    expected = []
    for _ in range(5):
        expected.append([(g["lr"], g["momentum"]) for g in optimizer.param_groups])
        optimizer.step()
        schedule.step(*([1.0] if kind == "ReduceLROnPlateau" else []))
    assert [[(h.lr, h.momentum) for h in s.hyper] for s in steps] == expected
    assert len({e[0] for e in expected}) > 1  # it does something


def test_schedule_goes_on_after_a_round_trip_and_ends_with_a_group_more():
    step, tick = Step({0: ONES}), ScheduleStep()
    steps = lived(
        SGD, Schedule("ExponentialLR"), step, tick, Reload("pickled"), step, tick, step, lr=0.5
    ).recording.steps
    assert [s.hyper[0].lr for s in steps] == pytest.approx([0.5, 0.45, 0.405])
    events = (Schedule("ExponentialLR"), step, tick, AddGroup(Group((1,), {"lr": 0.25})), tick, step)
    steps = lived(SGD, *events, groups=(Group((0,), {"lr": 0.5}),), parameters=2).recording.steps
    assert [h.lr for h in steps[-1].hyper] == pytest.approx([0.45, 0.25])


def test_schedule_of_a_tensor_lr_writes_the_tensor():
    steps = lived(
        ADAM, Schedule("ExponentialLR"), Step({0: ONES}), ScheduleStep(), Step({0: ONES}), lr=Scalar(0.5)
    ).recording.steps
    assert [s.hyper[0].lr for s in steps] == pytest.approx([0.5, 0.45])
    assert steps[1].hyper[0].tensors == frozenset({"lr"})


# Steps that must fail


@pytest.mark.parametrize("kind", ["closure", "hook", "gradient", "dtype"])
def test_failing_step_puts_the_gradient_back(kind, monkeypatch):
    trace = Trace("Adam", (Parameter((2,)),), (Group((0,), {"lr": 0.5}),), (Step({0: TWO}), Fail(kind), Step({})))
    player, seen = Player(ADAM, trace), []
    fail = PLAYS[Fail]

    def watched(player, event, what):
        before = player.parameters[0].grad
        fail.play(player, event, what)
        seen.append(player.parameters[0].grad is before)
        player.optimizer.step()  # its hook is gone, and a float32 gradient fits again

    monkeypatch.setitem(PLAYS, Fail, fail._replace(play=watched))
    recording = player.play()
    assert recording.raised is None, recording.raised
    assert seen == [True]
    assert recording.looked["failed-step"] == (1 if recording.mixed is not None else 2)
    np.testing.assert_array_equal(recording.steps[-1].parameters[0].gradient, [2.0, 2.0])


def test_failing_step_without_a_reason_is_left_out():
    player = lived(SGD, Step({0: ONES}), Fail("gradient"), Step({0: ONES}), lr=0.5)  # SGD takes a sparse gradient
    assert player.recording.looked["failed-step"] == 0
    assert moved(player) == [-0.5, -0.5]


def test_failing_step_of_a_parameter_that_is_not_there_yet_is_left_out():
    events = (Fail("dtype", 1), AddGroup(Group((1,))), Step({0: ONES, 1: ONES}))
    player = lived(ADAM, *events, groups=(Group((0,)),), parameters=2)
    assert player.recording.looked["failed-step"] == 0


@pytest.mark.parametrize("kind", ["closure", "hook"])
def test_failing_step_before_a_group_is_added_is_played(kind):
    lived(SGD, Step({0: ONES}), Fail(kind), AddGroup(Group((1,))), groups=(Group((0,)),), parameters=2)


def test_gradient_of_another_dtype_that_is_taken_ends_what_is_judged():
    assert lived(SGD, Step({0: ONES}), Fail("dtype"), Step({0: ONES})).recording.mixed == 1


# Invariants


def test_drawn_numbers_are_noticed_and_the_states_are_looked_at_once():
    class Draws(torch.optim.SGD):
        def step(self, closure=None):
            torch.rand(1)
            return super().step(closure)

    recording = Player(class_subject(Draws, "SGD"), life(Step({0: ONES}))).play()
    assert [b.check for b in recording.breaches] == ["random-state"]
    assert recording.looked["random-state"] == 1


def test_reseeding_is_noticed_whatever_the_state_was():
    class Reseeds(torch.optim.SGD):
        def step(self, closure=None):
            torch.manual_seed(0)
            return super().step(closure)

    torch.manual_seed(0)
    recording = Player(class_subject(Reseeds, "SGD"), life(Step({0: ONES}))).play()
    assert [b.check for b in recording.breaches] == ["random-state"]


@pytest.mark.parametrize("generator", [random, np.random, torch])
def test_seeding_is_noticed_where_the_generator_was_just_seeded_the_same(generator):
    seed = generator.manual_seed if generator is torch else generator.seed

    class Reseeds(torch.optim.SGD):
        def step(self, closure=None):
            seed(0)
            return super().step(closure)

    seed(0)
    before = random_state("cpu")
    recording = Player(class_subject(Reseeds, "SGD"), life(Step({0: ONES}))).play()
    assert [b.check for b in recording.breaches] == ["random-state"]
    assert random_state("cpu") == before


SETS = {
    "default dtype": lambda: torch.set_default_dtype(torch.float64),
    "default device": lambda: torch.set_default_device("meta"),
    "deterministic algorithms": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "number of threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "grad mode": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.set_autocast_enabled("cpu", True),
    "autocast on CUDA": lambda: torch.set_autocast_enabled("cuda", True),
}


@pytest.mark.parametrize("where", ["constructor", "step"])
@pytest.mark.parametrize("name", SETS)
def test_a_setting_of_the_process_that_is_left_changed_is_noticed_and_set_back(name, where):
    class Sets(torch.optim.SGD):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr)
            if where == "constructor":
                SETS[name]()

        def step(self, closure=None):
            loss = super().step(closure)
            if where == "step":
                SETS[name]()
            return loss

    before = settings.read()
    subject = class_subject(Sets, "SGD")
    recording = Player(subject, life(Step({0: ONES}), ZeroGrad(), Step({0: ONES}))).play()
    events = [None] if where == "constructor" else [0, 2]
    assert [(b.check, b.cause, b.event) for b in recording.breaches] == [("settings-kept", name, e) for e in events]
    assert settings.read() == before
    assert recording.looked["settings-kept"] > 3


def test_inference_mode_that_is_left_on_is_set_back():
    guard = torch.inference_mode()
    before = settings.read()
    guard.__enter__()
    assert settings.read()["inference mode"]
    settings.write(before)
    assert settings.read() == before
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.mark.parametrize("tensor", [False, True])
def test_defaults_of_the_optimizer_that_a_step_writes_are_noticed(tensor):
    class Decays(torch.optim.SGD):
        def __init__(self, params, lr=1e-3):
            super().__init__(params, lr)
            if tensor:
                self.defaults["lr"] = torch.tensor(lr)

        def step(self, closure=None):
            self.defaults["lr"] *= 0.5
            return super().step(closure)

    recording = Player(class_subject(Decays, "SGD"), life(Step({0: ONES}))).play()
    assert [(b.check, b.cause) for b in recording.breaches] == [("settings-kept", "default lr")]


def test_option_that_was_not_given_holds_as_well():
    class Decays(torch.optim.SGD):
        def step(self, closure=None):
            super().step(closure)
            self.param_groups[0]["lr"] *= 0.5

    recording = Player(replace(SGD, make=Decays), life(Step({0: ONES}))).play()
    assert [b.check for b in recording.breaches] == ["options-hold"]


def test_the_generator_is_put_back_whatever_happens():
    class NoOptimizer:
        def __init__(self, params, lr=1e-3):
            torch.rand(3)

    torch.manual_seed(7)
    before = torch.get_rng_state()
    with pytest.raises(UsageError):
        Player(class_subject(NoOptimizer, "SGD", "here:NoOptimizer"), life(Step({0: ONES}))).play()
    assert torch.equal(torch.get_rng_state(), before)
    Player(SGD, life(Step({0: ONES}))).play()
    assert torch.equal(torch.get_rng_state(), before)
