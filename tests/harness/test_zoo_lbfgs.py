"""The zoo's L-BFGS: the right ones pass, each wrong one fails a check that is about its fault."""

import pytest

from stepcheck.harness.campaign import Campaign, Settings
from stepcheck.harness.subjects import class_subject
from stepcheck.harness.zoo.lbfgs import EQUIVALENT, FAULTS, RightLBFGS, TakesLastGradient

#: Faults that the lives of a campaign do not show, and why.
UNSEEN = {
    TakesLastGradient: "a bracket is seldom too narrow to search on where gradients still differ, and evaluations are left",
}


def failed(optimizer, **settings):
    """The checks that the first life with a divergence fails."""
    campaign = Campaign(class_subject(optimizer, "LBFGS"), Settings(first=True, **settings))
    campaign.run()
    return {check for check, _ in campaign.suspects}


@pytest.mark.parametrize("optimizer", [RightLBFGS, *EQUIVALENT], ids=lambda cls: cls.__name__)
def test_right_passes(optimizer):
    assert failed(optimizer, examples=60) == set()


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(cls, id=cls.__name__, marks=pytest.mark.xfail(reason=UNSEEN[cls]) if cls in UNSEEN else ())
        for cls in FAULTS
    ],
)
def test_wrong_fails(optimizer):
    assert failed(optimizer, only=FAULTS[optimizer])
