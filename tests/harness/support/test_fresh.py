"""A clean process: lives and scripts are tried where nothing was played before."""

import os
import random
import time

import pytest
import torch

from stepcheck.harness.checking.findings import place_of
from stepcheck.harness.life.events import Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.asking import findings
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.suspects import Idle
from stepcheck.harness.support.fresh import Fresh
from stepcheck.harness.support.processes import forks
from stepcheck.harness.telling import repro
from stepcheck.harness.zoo import life, sgd

pytestmark = [
    pytest.mark.skipif(not forks(), reason="there is no clean process where none is forked"),
    pytest.mark.usefixtures("no_dialect"),
]


def told(optimizer, like="SGD", examples=40, **settings):
    result = Campaign(class_subject(optimizer, like), Settings(examples=examples, **settings)).run()
    assert not result.error
    return result.divergences


def test_each_task_starts_from_what_was_there_at_first():
    seen = []
    fresh = Fresh({"append": lambda x: seen.append(x) or list(seen), "leave": lambda: os._exit(3), "sleep": time.sleep})
    seen.append("later")
    assert [fresh.ask("append", n, seconds=5.0) for n in range(2)] == [[0], [1]]
    assert fresh.ask("leave", seconds=5.0) is None
    assert fresh.ask("sleep", 60, seconds=0.1) is None
    assert fresh.ask("append", 2, seconds=5.0) == [2]
    fresh.close()
    assert fresh.ask("append", 3, seconds=5.0) is None


def test_what_a_task_prints_is_not_shown(capfd):
    fresh = Fresh({"print": lambda: print("seen")})  # noqa: T201 - what it is about
    assert fresh.ask("print", seconds=5.0) is None
    fresh.close()
    assert capfd.readouterr().out == ""


class LeaksAcrossOptimizers(torch.optim.SGD):
    """Keeps in the class which parameters it has seen last, and steps further than it should once another came before."""

    seen = 0

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr)
        type(self).seen += 1

    def step(self, closure=None):
        loss = super().step(closure)
        if self.seen > 1:
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                p.data.add_(p.grad, alpha=-1.0)
        return loss


class LeaksLate(LeaksAcrossOptimizers):
    """The same, after some optimizers."""

    seen = -30


class Chance(sgd.RightSGD):
    """Steps by chance, with a generator of its own."""

    own = random.SystemRandom()

    def options(self, group):
        return {**group, "lr": group["lr"] * self.own.uniform(0.5, 1.0)}


@pytest.fixture(autouse=True)
def _unseen():
    """What the classes here keep is what another test would find."""
    LeaksAcrossOptimizers.seen, LeaksLate.seen = 0, -30


LEAKS = "state leaks between optimizers of this class: "


@pytest.fixture(scope="module")
def leak():
    """What is told of the class that leaks from the first life on."""
    LeaksAcrossOptimizers.seen = 0
    (divergence,) = told(LeaksAcrossOptimizers)
    return divergence


def test_state_that_leaks_between_optimizers_is_told_as_such(leak):
    assert leak.summary.startswith(LEAKS)


def test_so_is_what_leaks_late():
    (divergence,) = told(LeaksLate)
    assert divergence.summary.startswith(LEAKS)


def test_the_script_of_state_that_leaks_plays_the_life_twice(leak):
    assert not [line for line in leak.life if line.startswith("This script")]
    assert "for _ in range(2):" in leak.script
    assert len(leak.script.splitlines()) <= 30


def test_state_that_leaks_is_there_when_its_life_is_replayed(leak):
    subject = class_subject(LeaksAcrossOptimizers, "SGD")
    shown = [f.summary for f, _ in findings(subject, leak.trace, leak.check, summary=leak.summary)]
    assert shown == [leak.summary]


def decoupled(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """Decays the parameter itself, where the reference adds to the gradient."""
    return torch.optim.RAdam(params, lr, betas, eps, weight_decay, decoupled_weight_decay=True)


def test_a_clean_process_knows_which_options_have_an_effect():
    """Or what this one tells as a deviation, that one takes for an option without effect, and state would seem to leak."""
    options = {"weight_decay": 1 / 3, "betas": (0.0009, 1 - 2.0**-20)}
    parameters = (Parameter((1,), "float32", "contiguous", Values("listed", listed=(1.0,))),)
    trace = Trace("RAdam", parameters, (Group((0,), options),), (Step({0: Gradient(Values("constant"))}),))
    campaign = Campaign(class_subject(decoupled, "RAdam"), Settings(examples=1))
    campaign.fresh = Fresh(campaign._tasks)
    campaign.suspects.idle[place_of(trace, 0, "weight_decay")] = Idle(effective=True)
    finding = campaign.recheck(trace, ("agreement", "exp_avg"))
    assert finding is not None
    assert campaign._shows_alone(trace, finding)
    campaign.fresh.close()


def test_a_class_that_is_not_deterministic_is_told_so_first():
    first = told(Chance, examples=10)[0]
    assert first.cause == "not deterministic"
    assert "comes out differently: the parameter" in first.summary


def test_a_right_class_is_deterministic():
    assert not told(sgd.RightSGD, examples=10)  # no more than the first few lives are played twice


def test_a_script_that_does_not_fail_is_told_so():
    divergence = next(
        d for d in told(life.on(life.RightSGD, life.DrawsFromNumPy), examples=10) if d.check == "random-state"
    )
    assert divergence.life[-1].startswith("This script does not fail in a fresh process: ")


def test_a_script_that_fails_is_not_doubted():
    assert repro.run("assert False") == ""
    assert repro.run("import nowhere_at_all").startswith("This script does not run by itself: ModuleNotFoundError")
    divergences = told(sgd.FirstLrForAllSGD, examples=20)
    assert divergences
    assert not [line for d in divergences for line in d.life if line.startswith("This script")]
