"""The player records what happened, in memory laid out as the trace says."""

import math

import numpy as np
import pytest
import torch

from stepcheck.harness.memory import GUARD, GUARD_ELEMENTS, room, strides
from stepcheck.harness.play import Player
from stepcheck.harness.subjects import class_subject, resolve
from stepcheck.harness.trace import (
    Gradient,
    Group,
    Objective,
    Parameter,
    Reload,
    SetOption,
    Sparse,
    Step,
    Trace,
    Values,
    ZeroGrad,
)

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
    np.testing.assert_array_equal(step.lives[0].value, values)
    np.testing.assert_array_equal(step.lives[0].value_after, values - np.float32(1e-3))
    assert not step.lives[0].beside_written
    assert not step.lives[0].gradient_written


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
    moved = [float((s.lives[0].value_after - s.lives[0].value)[0]) for s in steps]
    assert moved == pytest.approx([-1e-3, -0.5, 0.0, -0.5], abs=1e-6)
    assert [s.lives[0].gradient is None for s in steps] == [False, False, True, False]
    assert [s.hyper[0].lr for s in steps] == [1e-3, 1.0, 1.0, 1.0]


def test_zero_grad_in_place_leaves_a_zero_gradient():
    steps = Player(SGD, life(Step({0: ONES}), ZeroGrad(set_to_none=False), Step())).play().steps
    assert not steps[1].lives[0].gradient.any()


def test_a_reload_goes_on_with_another_optimizer_that_holds_the_same_state():
    player = Player(SGD, life(Step({0: ONES}), Reload(), Step({0: ONES}), options={"momentum": 0.5, "lr": 0.25}))
    first = player._construct(player.subject, player.options, "list")
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
    assert recording.steps[0].lives[0].beside_written
    assert recording.steps[0].lives[0].gradient_written


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
    life = play("SGD[forloop]", Step({0: gradient}), dtype="complex64", layout=layout, lr=0.5).steps[0].lives[0]
    values = Values("quarters", 1, high=2.0).realise((3, 2, 2))
    assert life.value.dtype == np.complex64
    np.testing.assert_array_equal(life.value, values[..., 0] + 1j * values[..., 1])
    given = np.arange(12.0).reshape(3, 2, 2)
    np.testing.assert_array_equal(life.gradient, given[..., 0] + 1j * given[..., 1])
    np.testing.assert_array_equal(life.value_after, life.value - 0.5 * life.gradient)
    assert not life.beside_written


def test_conjugated_gradient_has_the_values_that_the_trace_says_and_torch_s_conjugate_bit():
    seen = []

    class Looks(torch.optim.SGD):
        def step(self, closure=None):
            seen.extend(p.grad.is_conj() for p in self.param_groups[0]["params"])
            return super().step(closure)

    given = Gradient(Values("listed", listed=(1.0, 2.0, 3.0, -4.0)), "conjugated")
    life = play(class_subject(Looks, "SGD"), Step({0: given}), dtype="complex128", shape=(2,)).steps[0].lives[0]
    assert seen == [True]
    np.testing.assert_array_equal(life.gradient, [1 + 2j, 3 - 4j])
    assert not life.gradient_written


# Narrow formats.


def beside(dtype, layout, optimizer=WritesAround, like="SGD"):
    return play(class_subject(optimizer, like), Step({0: ONES}), dtype=dtype, layout=layout).steps[0].lives[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "complex64"])
def test_guard_holds_in_every_dtype(dtype):
    for layout in ("contiguous", "transposed", "sliced", "offset"):
        life = play("SGD[forloop]", Step({0: ONES}), dtype=dtype, layout=layout).steps[0].lives[0]
        assert not life.beside_written
        assert life.value.dtype == {"bfloat16": np.float32, "float16": np.float16, "complex64": np.complex64}[dtype]
        life = beside(dtype, layout)
        assert life.beside_written
        assert life.gradient_written


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_guard_is_a_number_of_the_narrow_formats(dtype):
    assert float(torch.tensor(GUARD, dtype=dtype)) == GUARD


def test_bfloat16_is_read_without_a_rounding():
    life = play("SGD[forloop]", Step({0: ONES}), dtype="bfloat16", shape=(5,), lr=0.1).steps[0].lives[0]
    expected = torch.from_numpy(life.value).bfloat16() - 0.1 * torch.ones(5, dtype=torch.bfloat16)
    np.testing.assert_array_equal(life.value_after, expected.float().numpy())


# Sparse gradients.


def test_sparse_gradient_names_elements():
    given = Gradient(Values("listed", listed=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0)), sparse=Sparse((2, 0, 2)))
    life = play("SGD[forloop]", Step({0: given}), lr=1.0, high=0.0).steps[0].lives[0]
    assert life.gradient.elements.tolist() == [4, 5, 0, 1, 4, 5]
    assert life.gradient.values.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    np.testing.assert_array_equal(life.value_after, [[-3.0, -4.0], [0.0, 0.0], [-6.0, -8.0]])
    assert not life.gradient_written


def test_sparse_gradient_may_name_single_elements_or_nothing():
    single = Gradient(Values("listed", listed=(1.0, 2.0)), sparse=Sparse((1, 5), 2, coalesced=True))
    nothing = Gradient(sparse=Sparse((), 1))
    first, second = (s.lives[0] for s in play("SGD[forloop]", Step({0: single}), Step({0: nothing})).steps)
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
    assert play(class_subject(optimizer, "SGD"), Step({0: given})).steps[0].lives[0].gradient_written


class WritesLate(torch.optim.SGD):
    """Keeps its gradients, and writes them a step later."""

    def step(self, closure=None):
        for old in self.__dict__.pop("kept", []):
            old.mul_(2)
        self.kept = [p.grad for p in self.param_groups[0]["params"]]


def test_gradient_that_is_written_after_it_was_replaced_is_noticed():
    steps = play(class_subject(WritesLate, "SGD"), Step({0: ONES}), Step({0: ONES})).steps
    assert [s.lives[0].gradient_written for s in steps] == [False, True]


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
        step = play(graph, Step({0: ONES}), layout=layout, lr=0.5).steps[0].lives[0]
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
    np.testing.assert_array_equal(recording.steps[1].lives[0].value_after, [-1.0, -1.0])


# Closures.

BOWL = Objective("quadratic", Values("constant", high=1.0), 0.5)


def test_evaluations_of_a_closure_are_recorded():
    step = play("LBFGS[forloop]", Step({}, BOWL), shape=(3,), max_iter=3, lr=0.5).steps[0]
    assert len(step.evaluations) == step.lives[0].state_after["func_evals"] > 1
    curvature = np.array([1.0, 2.0, 3.0])
    for evaluation in step.evaluations:
        away = evaluation.point - 1.0
        assert evaluation.loss == pytest.approx(0.5 * (curvature * away**2).sum() / 2)
        np.testing.assert_allclose(evaluation.gradient, 0.5 * curvature * away, rtol=1e-6)
    np.testing.assert_array_equal(step.evaluations[0].point, step.lives[0].value)
    losses = [e.loss for e in step.evaluations]
    assert losses == sorted(losses, reverse=True)
    # A closure writes gradients: that is no fault of the optimizer.
    assert not step.lives[0].gradient_written


def test_closure_of_complex_parameters_sees_their_parts():
    step = play("LBFGS[forloop]", Step({}, BOWL), shape=(2,), dtype="complex128", max_iter=1).steps[0]
    first = step.lives[0].value
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
    state = recording.steps[-1].lives[0].state_after
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
    assert play("SparseAdam[forloop]", Step({0: given})).steps[0].lives[0].state_after["step"] == 1.0


class SparseState(torch.optim.SGD):
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            self.state[p]["momentum_buffer"] = torch.eye(3, 2).to_sparse()


def test_sparse_state_is_read_as_the_dense_one_that_it_stands_for():
    state = play(class_subject(SparseState, "SGD"), Step({0: ONES})).steps[0].lives[0].state_after
    np.testing.assert_array_equal(state["momentum_buffer"], np.eye(3, 2))
