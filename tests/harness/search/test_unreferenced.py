"""A class that is held to no reference: invariants alone, asked by second lives of the class itself."""

import own_names
import pytest
import torch

from stepcheck import check_optimizer
from stepcheck.harness.checking.twins import COUPLED, DRAWS
from stepcheck.harness.play.declared import NO_REFERENCE
from stepcheck.harness.play.subjects import UnbuiltError, class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.zoo.right import VARIANTS


def checked(make, lives=100):
    return Campaign(class_subject(make, ""), Settings(0, lives)).run()


@pytest.fixture(scope="module")
def of_own_names():
    return checked(own_names.OwnNames, 100)


def test_a_right_class_passes_and_its_formula_is_not_judged(of_own_names):
    assert (of_own_names.verdict, of_own_names.like) == ("pass", NO_REFERENCE)
    assert of_own_names.tallies["agreement"].verdict == "unsupported"
    assert [note for note in of_own_names.notes if "its formula was not judged" in note]


def test_its_own_numbers_are_varied_and_what_nobody_knows_is_left(of_own_names):
    assert of_own_names.varied == ["beta1", "beta2", "epsilon", "learning_rate"]
    assert "options whose meaning is not known, left as they are: decay, decoupled" in of_own_names.notes


def test_the_invariants_were_asked(of_own_names):
    asked = (
        "groups-independent",
        "order-of-parameters",
        "save-load-continue",
        "no-gradient",
        "malformed-state",
        "closure",
    )
    assert {name: of_own_names.tallies[name].verdict for name in asked} == dict.fromkeys(asked, "pass")


@pytest.mark.parametrize(
    ("name", "check"),
    [("FirstRate", "groups-independent"), ("ForgetsCount", "save-load-continue"), ("InOrder", "order-of-parameters")],
)
def test_what_breaks_an_invariant_fails(name, check):
    result = checked(getattr(own_names, name))
    assert result.verdict == "fail"
    assert check in {d.check for d in result.divergences}


def test_a_wrong_formula_alone_cannot_be_seen():
    assert checked(own_names.WrongBeta, 40).verdict == "pass"


def test_a_norm_over_all_groups_is_no_fault_and_is_said():
    result = checked(own_names.Clips, 50)
    assert result.verdict == "pass", [d.summary for d in result.divergences]
    assert f"left out: {COUPLED}" in result.notes
    assert result.tallies["order-of-parameters"].verdict == "pass"


def test_noise_is_no_fault_and_is_said():
    result = checked(own_names.Noisy, 40)
    assert result.verdict == "pass", [d.summary for d in result.divergences]
    assert f"left out: {DRAWS}" in result.notes


def test_shapes_that_it_does_not_take_are_left_out_and_said():
    result = checked(own_names.MatricesOnly)
    assert result.verdict == "pass", [d.summary for d in result.divergences]
    (told,) = (note for note in result.notes if note.startswith("left out: parameters of the kinds of"))
    assert "(3,), (), (2, 3, 2), (2, 3, 2, 2), (0,), (2, 0)" in told
    assert "ValueError: a parameter must be a matrix" in told


def test_one_that_takes_no_step_is_told_at_once():
    class Never(torch.optim.SGD):
        def step(self, closure=None):
            raise RuntimeError("not today")

    with pytest.raises(UnbuiltError, match="a step of one parameter raises RuntimeError: not today"):
        class_subject(Never, "")


def test_one_that_needs_a_closure_is_given_one():
    class Needs(own_names.OwnNames):
        def step(self, closure=None):
            if closure is None:
                raise ValueError("a closure, please")
            return super().step(closure)

    assert checked(Needs, 60).tallies["groups-independent"].verdict == "pass"


def test_an_option_is_the_class_s_own_affair_in_mid_life():
    class Fixed(own_names.OwnNames):
        def step(self, closure=None):
            betas = [group["beta1"] for group in self.param_groups]
            self.seen = getattr(self, "seen", betas)
            assert self.seen == betas[: len(self.seen)], "beta1 was changed"
            return super().step(closure)

    assert checked(Fixed, 60).verdict == "pass"


def test_the_python_door():
    report = check_optimizer(own_names.OwnNames, examples=20)
    assert report.result.like == NO_REFERENCE


@pytest.mark.sampled(12)
@pytest.mark.parametrize("variant", [pytest.param(v, id=v.name) for v in VARIANTS if v.like != "LBFGS"])
def test_right_ones_are_not_accused(variant):
    assert [d.summary for d in checked(variant.make, 40).divergences] == []
