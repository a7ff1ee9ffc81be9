"""What the reference predicts of a step, where the budget has a part of its own."""

import math

import pytest
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.judging import prediction
from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.prediction import Predictor
from stepcheck.harness.life.events import Gradient, Group, Parameter, Scalar, SetOption, Sparse, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.zoo.sgd import RightSGD


class Carries(RightSGD):
    """What a parameter could not take is carried to its next step (Kahan)."""

    def visit(self, p, group):
        carry = self.state[p].setdefault("carry", torch.zeros_like(p)).add_(p.grad * -group["lr"])
        before = p.clone()
        p.add_(carry)
        carry.add_(before.sub_(p))


# Of gradients that are not rounded, as many steps: their sums make a carry that is rounded once more beside a parameter that shrinks.
@pytest.mark.parametrize("beside", [0.0, math.inf], ids=["alone", "beside an infinity"])
def test_what_is_added_to_a_carry_is_rounded_once_more(beside):
    gradients = [(g, beside) for g in (-50.0, 0.5, -70.0, -1.6015625, 22.75)]
    steps = tuple(Step({0: Gradient(Values("listed", listed=pair))}) for pair in gradients)
    trace = Trace("SGD", (Parameter((2,), "bfloat16"),), (Group((0,), {"lr": 3.0}),), steps)
    evidence = Evidence(class_subject(Carries, "SGD"), trace)
    assert not list(CHECKS["agreement"].find(evidence))
    assert evidence.recording.steps


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_each_entry_of_a_sparse_gradient_may_underflow_by_itself(dtype):
    """SGD adds entries one by one, each times lr: near zero each of the products loses half of the smallest number."""
    entries = Sparse((1,) * 6)
    size = 12 if dtype == "complex64" else 6
    step = Step({0: Gradient(Values("listed", listed=(1.4e-45 * 501,) * size), sparse=entries)})
    trace = Trace("SGD", (Parameter((3,), dtype),), (Group((0,), {"lr": 1e-3}),), (step,))
    for mode in ("forloop", "foreach"):
        (subject,) = resolve(f"torch:SGD[{mode}]")
        assert not list(CHECKS["agreement"].find(Evidence(subject, trace)))


@pytest.mark.parametrize(
    ("first", "second", "made"),
    [(math.nextafter(0.5, 1), math.nextafter(0.5, 1), 1), (1.0, 1, 2), (0.0, -0.0, 2), (1.0, Scalar(1.0), 2)],
)
def test_groups_share_what_is_made_of_their_options_where_these_are_spelled_alike(first, second, made, monkeypatch):
    batches, bounded = [], []
    update, bound = Predictor.update, prediction.bounded_hyper
    monkeypatch.setattr(prediction, "bounded_hyper", lambda *given: bounded.append(given) or bound(*given))
    monkeypatch.setattr(
        Predictor, "update", lambda *given: batches.append([item.index for item in given[1]]) or update(*given)
    )
    groups = (Group((0,), {"lr": first}), Group((1,), {"lr": second}))
    steps = (Step({0: Gradient(), 1: Gradient()}),) * 2
    evidence = Evidence(resolve("torch:SGD[forloop]")[0], Trace("SGD", (Parameter((2,)),) * 2, groups, steps))
    assert not evidence.judgement.deviations
    assert len(bounded) == made
    assert batches == [[0, 0], [1, 1]]  # and yet each group is judged as it would be alone


def test_options_that_are_set_back_are_those_from_before(monkeypatch):
    bounded, bound = [], prediction.bounded_hyper
    monkeypatch.setattr(prediction, "bounded_hyper", lambda *given: bounded.append(given) or bound(*given))
    step = Step({0: Gradient()})
    events = (step, SetOption(0, "lr", 0.5), step, SetOption(0, "lr", 0.25), step)
    trace = Trace("SGD", (Parameter((2,)),), (Group((0,), {"lr": 0.25}),), events)
    assert Evidence(resolve("torch:SGD[forloop]")[0], trace).judgement.steps == 3
    assert len(bounded) == 2


class Doubles(RightSGD):
    """Steps twice as far."""

    def options(self, group):
        return {**group, "lr": 2 * group["lr"]}


def test_for_whether_there_is_a_deviation_no_more_groups_are_judged_than_it_takes():
    step = Step({n: Gradient(Values("constant", high=0.5)) for n in range(2)})
    trace = Trace("SGD", (Parameter((2,)),) * 2, tuple(Group((n,), {"lr": 0.5 + n}) for n in range(2)), (step, step))
    for make, first, every in ((Doubles, [0, 0], [0, 0, 1, 1]), (RightSGD, [], [])):
        subject = class_subject(make, "SGD")
        recording = Evidence(subject, trace).recording
        told = [Judge(subject, recording).judge(to_first=to_first) for to_first in (True, False)]
        assert [sorted(d.parameter for d in judgement.deviations) for judgement in told] == [first, every]
        assert (told[0].elements < told[1].elements) == bool(first)
