"""The zoo's L-BFGS: the right ones pass, each wrong one fails a check that is about its fault."""

import pytest

from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.zoo.lbfgs import EQUIVALENT, FAULTS, RightLBFGS


def failed(optimizer, **settings):
    """The checks that the first life with a divergence fails."""
    campaign = Campaign(class_subject(optimizer, "LBFGS"), Settings(first=True, **settings))
    campaign.run()
    return {check for check, _ in campaign.suspects.new}


@pytest.mark.sampled(6)
@pytest.mark.parametrize("optimizer", [RightLBFGS, *EQUIVALENT], ids=lambda cls: cls.__name__)
def test_right_passes(optimizer):
    assert failed(optimizer, examples=60) == set()


@pytest.mark.sampled(24)
@pytest.mark.parametrize("optimizer", FAULTS, ids=lambda cls: cls.__name__)
def test_wrong_fails(optimizer):
    assert failed(optimizer, only=FAULTS[optimizer])
