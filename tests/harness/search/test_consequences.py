"""One cause is told once, whichever checks it shows in; a second cause is told as well."""

import pytest
import torch

from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.zoo import adam, life, sgd, sparse_adam

pytestmark = pytest.mark.usefixtures("no_dialect")


def told(optimizer, like, examples=40):
    result = Campaign(class_subject(optimizer, like), Settings(examples=examples)).run()
    assert not result.error
    assert all(d.found_in <= result.traces for d in result.divergences)
    return result.divergences


ONE_CAUSE = {
    sgd.DecaysIntoGradientSGD: ("SGD", "gradient-unwritten", "completes"),
    sgd.CachedLrSGD: ("SGD", "option-effect", "agreement"),
    life.TurnsUpdateSGD: ("SGD", "maximize-mirrors", ""),
    life.LoadsInOrderSGD: ("SGD", "save-load-continue", "completes"),
    life.NeverCallsClosureAdam: ("Adam", "closure", "failed-step"),
    life.CallsClosureAfterUpdateAdam: ("Adam", "no-gradient", "agreement"),
    sparse_adam.MinimizesSparse: ("SparseAdam", "maximize-mirrors", "option-effect"),
}


@pytest.mark.sampled(7)
@pytest.mark.parametrize("optimizer", ONE_CAUSE, ids=lambda cls: cls.__name__)
def test_one_cause_is_one_divergence(optimizer):
    like, check, also = ONE_CAUSE[optimizer]
    (divergence,) = told(optimizer, like)
    assert divergence.check == check
    assert not also or any(line.startswith(f"also: {also}: ") for line in divergence.life)


class WritesAndOvershoots(sgd.DecaysIntoGradientSGD):
    """Two faults that show in one life: it writes to the gradient, and the step is too large by a thousandth."""

    def options(self, group):
        return {**super().options(group), "lr": group["lr"] * 1.001}


class ForgetsClosureAndBuffer(sgd.RightSGD):
    """Two faults around the steps."""

    def evaluate(self, closure):
        return None

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.state.clear()


TWO_CAUSES = {
    WritesAndOvershoots: {"gradient-unwritten", "agreement"},
    ForgetsClosureAndBuffer: {"closure", "save-load-continue"},
}


@pytest.mark.parametrize("optimizer", TWO_CAUSES, ids=lambda cls: cls.__name__)
def test_two_causes_are_two_divergences(optimizer):
    assert {d.check for d in told(optimizer, "SGD")} == TWO_CAUSES[optimizer]


def test_what_an_optimizer_does_wrong_beside_its_writing_is_told():
    # It adds the decay to the gradient, and does so where it must not add it at all.
    assert {d.check for d in told(adam.DecaysIntoGradientAdam, "Adam")} == {"gradient-unwritten", "agreement"}


class StridedTwice(torch.optim.SGD):
    """Wrong in each memory layout, which is looked at twice in one life."""

    def step(self, closure=None):
        loss = super().step(closure)
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.data.mul_(1.5)
        return loss


def test_no_more_lives_are_told_than_were_played():
    told(StridedTwice, "SGD", examples=60)
