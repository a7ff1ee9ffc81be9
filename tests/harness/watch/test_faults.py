"""Each fault of a training is told by the check that it belongs to, within 200 steps, with the sampling that is usual."""

import warnings

import pytest
from watched.faulty import FAULTS

STEPS = 200


def first_told(name):
    """The step at which a fault is told, and the finding or note."""
    training, check, certain = FAULTS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        running = training()
        watch = next(running)
        for step in range(1, STEPS + 1):
            next(running)
            seen = watch.found.findings if certain else watch.found.notes
            assert not watch.error, watch.error
            told = [f for f in seen if f.check == check]
            if told:
                return step, told[0]
    return None


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_told(name):
    told = first_told(name)
    assert told is not None
    assert told[0] == told[1].step


def test_there_are_enough_of_them():
    assert len(FAULTS) >= 25
