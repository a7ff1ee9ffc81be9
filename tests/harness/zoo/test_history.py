"""The history: every fault in it is told of somewhere in public, and found."""

import re
from collections import Counter

import pytest
from accused import accused

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.zoo.history import HISTORY

#: An issue or a pull request, whose number names one thread.
THREAD = re.compile(r"https://github\.com/[\w.-]+/[\w.-]+/(issues|pull)/[1-9]\d*")


def named(fault):
    return pytest.param(fault, id=fault.name)


def test_the_history_is_long():
    assert len(HISTORY) >= 80
    assert len({fault.make for fault in HISTORY}) == len(HISTORY)


@pytest.mark.parametrize("fault", [named(f) for f in HISTORY])
def test_a_fault_says_what_is_wrong_and_where_it_happened(fault):
    assert fault.kind == "history"
    assert fault.told.endswith(".")
    assert fault.links
    assert all(THREAD.fullmatch(link) for link in fault.links)
    assert set(fault.checks) <= set(CHECKS)


def test_no_thread_stands_for_many_faults():
    assert max(Counter(link for fault in HISTORY for link in fault.links).values()) <= 3


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "fault",
    [named(f) for f in HISTORY],
)
def test_a_fault_that_happened_is_found(fault):
    # Most faults show in the first few lives; all have to in as many as a campaign plays.
    failed, _ = accused(fault.make, fault.like, only=fault.checks, until=fault.checks)
    assert not failed.isdisjoint(fault.checks)
