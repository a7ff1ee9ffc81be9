"""The player records what happened, in memory laid out as the trace says."""

import math

import numpy as np
import pytest
import torch

from stepcheck.harness.play import GUARD, GUARD_ELEMENTS, Player, room, strides
from stepcheck.harness.subjects import class_subject, resolve
from stepcheck.harness.trace import Gradient, Group, Parameter, Reload, SetOption, Step, Trace, Values, ZeroGrad

SGD = resolve("torch:SGD[forloop]")[0]
ONES = Gradient(Values("constant", high=1.0))


def life(*events, shape=(3, 2), layout="contiguous", options=None, optimizer="SGD"):
    parameter = Parameter(shape, "float32", layout, Values("quarters", 1, high=2.0))
    return Trace(optimizer, (parameter,), (Group((0,), options or {}),), events)


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
    first = player._construct(player.options)
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
