"""A right training raises no alarm, and is the same to the last bit, whether it is watched or not."""

import copy

import pytest
import torch
from watched.right import RIGHT

import stepcheck
from stepcheck.watching import Watch

STEPS = 14
#: Of which a note is true: in bfloat16 weights near 1 do not move by a hundredth of an ulp, and what a person does to weights is told.
NOTES = {"moves", "steps-remain", "finite", "lr-scheduled"}


class Keeper:
    """Watches, or does not; knows the parameters afterwards."""

    def __init__(self, *, watches):
        self.watches = watches
        self.watch = None
        self.optimizer = None

    def __call__(self, optimizer, model=None, **options):
        self.optimizer = optimizer
        if self.watches:
            self.watch = stepcheck.watch(
                optimizer, model, on_finding="raise", first=10, every=2, elements=16, **options
            )
        return self.watch

    def values(self):
        own = [p for group in self.optimizer.param_groups for p in group["params"]]
        return copy.deepcopy([[p.detach(), dict(self.optimizer.state.get(p, {}))] for p in own])


def played(training, *, watches):
    keeper = Keeper(watches=watches)
    torch.manual_seed(0)
    running = training(keeper)
    for _ in range(STEPS):
        next(running)
    running.close()
    return keeper, torch.get_rng_state()


def alike(a, b):
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, torch.Tensor):
        return a.dtype is b.dtype and torch.equal(a, b)
    return all(map(alike, a, b)) if isinstance(a, list) else a == b


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("name", RIGHT)
def test_nobody_is_alarmed_and_nothing_changes(name):
    plain, drawn = played(RIGHT[name], watches=False)
    watched, drawn_watched = played(RIGHT[name], watches=True)
    assert isinstance(watched.watch, Watch)
    report = watched.watch.report()
    assert not report.error
    assert report.verdict == "pass", str(report)
    assert {note.check for note in report.notes} <= NOTES, str(report)
    assert report.judged >= 3, str(report)
    assert alike(plain.values(), watched.values())
    assert torch.equal(drawn, drawn_watched)
