"""How grave an issue is comes from the checks that find it."""

import pytest

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.page.gravity import GRADES, OF_CHECK, gravest


def test_every_check_has_a_gravity_and_nothing_else_has():
    assert OF_CHECK.keys() == CHECKS.keys()
    assert set(OF_CHECK.values()) == {grade.name for grade in GRADES}


@pytest.mark.parametrize(
    ("checks", "gravity"),
    [
        (["refuses-invalid"], "lax"),
        (["completes", "refuses-invalid"], "raises"),
        (["dicts-unchanged", "completes", "agreement"], "wrong"),
    ],
)
def test_of_several_checks_the_gravest_counts(checks, gravity):
    assert gravest(checks) == gravity
