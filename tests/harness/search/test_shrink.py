"""A life is as small as can be: of a rule that works element by element, one element with plain numbers is left."""

import torch

from stepcheck.harness.life.events import Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import shrink
from stepcheck.harness.search.asking import unexplained


class WrongInABand(torch.optim.SGD):
    """Wrong where the gradient is between 1.5e-7 and 3.5e-7: few elements are, and of one alone hardly any."""

    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.data.add_((p.grad.abs() > 1.5e-7) & (p.grad.abs() < 3.5e-7))
        return loss


def found(subject, trace):
    return next(unexplained(subject, trace, "agreement"), None)


def test_one_element_with_plain_numbers_is_left():
    subject = class_subject(WrongInABand, "SGD")
    step = Step({0: Gradient(Values("log", 3, 1e-11, 1e-3))})
    trace = Trace("SGD", (Parameter((33,), values=Values("log", 1, 1e-4, 1e-2)),), (Group((0,)),), (step, step))
    smaller, finding = shrink.cut(trace, found(subject, trace), lambda t: found(subject, t), 200)
    (parameter,) = smaller.parameters
    assert parameter.shape == (1,)
    for values in (parameter.values, *(g.values for _, g in smaller.assigned)):
        (x,) = values.realise((1,)).tolist()
        assert x == float(f"{x:.0e}")
    assert finding.ratio > 1


class FirstOfMany(torch.optim.SGD):
    """Wrong beside another element alone."""

    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            if p.numel() > 1 and p.grad is not None:
                p.data.view(-1)[0] += 1.0
        return loss


def test_what_one_element_does_not_show_keeps_its_elements():
    subject = class_subject(FirstOfMany, "SGD")
    trace = Trace("SGD", (Parameter((33,)),), (Group((0,)),), (Step({0: Gradient(Values("log", 1, 0.1, 1.0))}),))
    smaller, _ = shrink.cut(trace, found(subject, trace), lambda t: found(subject, t), 200)
    assert smaller.parameters[0].shape == (2,)


def test_values_that_are_written_out_are_as_many_as_a_smaller_parameter_has():
    subject = class_subject(WrongInABand, "SGD")
    step = Step({0: Gradient(Values("listed", listed=(2e-7,) * 4))})
    trace = Trace("SGD", (Parameter((2, 2), values=Values("listed", listed=(1.0,) * 4)),), (Group((0,)),), (step,))
    smaller, finding = shrink.cut(trace, found(subject, trace), lambda t: found(subject, t), 100)
    assert smaller.parameters[0].shape == (1,)
    assert finding.ratio > 1
