"""Of a class that declares the count of its steps to be the group's, a wrong count is found; whichever right way it counts, it conforms.

The right ones are in ``tests/right/groups.py``.
"""

import pytest
import torch
from accused import accused
from right import groups
from right.groups import _ByGroup
from scripted import found, run_here

from stepcheck.harness.judging.judge import judge
from stepcheck.harness.life.events import AddGroup, Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.telling import repro

BY_GROUP = "Adam[step-by-group]"


class ForEachParameter(_ByGroup):
    """Counts each parameter that has a gradient."""

    def update_group(self, group):
        for p in group["params"]:
            if p.grad is not None:
                self.move(group, [p], self.count(group))


class OfTheFirstGroup(_ByGroup):
    """One count for all groups: that of the first."""

    def count(self, group):
        if group is self.param_groups[0]:
            super().count(group)
        return self.param_groups[0]["step"]


class AsOldAsTheFirst(_ByGroup):
    """A group that is added is as old as the first is."""

    def add_param_group(self, group):
        super().add_param_group(group)
        self.param_groups[-1].setdefault("step", self.param_groups[0].get("step", 0))


class Outside(_ByGroup):
    """The count is no part of the groups, so that a state_dict lacks it."""

    def count(self, group):
        taken = self.__dict__.setdefault("taken", {})
        n = next(n for n, other in enumerate(self.param_groups) if other is group)
        taken[n] = taken.get(n, 0) + 1
        return taken[n]


class BegunAnew(_ByGroup):
    """A parameter that comes late begins the count of its group anew."""

    def update_group(self, group):
        if any(p.grad is not None and not self.state[p] for p in group["params"]):
            group["step"] = 0
        super().update_group(group)


class ByTheFirstParameter(_ByGroup):
    """A step counts in which the first parameter has a gradient."""

    def count(self, group):
        if group["params"][0].grad is not None or "step" not in group:
            super().count(group)
        return group["step"]


class ByMood(_ByGroup):
    """Of steps without a gradient every other one counts."""

    def update_group(self, group):
        if any(p.grad is not None for p in group["params"]):
            super().update_group(group)
        else:
            group["idle"] = group.get("idle", 0) + 1
            group["step"] = group.get("step", 0) + group["idle"] % 2


class FromOne(_ByGroup):
    """The first step is taken for the second."""

    def count(self, group):
        group.setdefault("step", 1)
        return super().count(group)


class Cleared(_ByGroup):
    """The count goes with the gradients."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        for group in self.param_groups:
            group["step"] = 0


class UpTo256(_ByGroup):
    """The count is kept in bfloat16."""

    def count(self, group):
        group["step"] = group.get("step", torch.zeros((), dtype=torch.bfloat16)) + 1
        return group["step"].item()


class ByParameter(_ByGroup):
    """Shows the count of the group, and steps each parameter by its own."""

    def move(self, group, parameters, t):
        for p in parameters:
            n = self.state[p].get("n", 0) + 1
            super().move(group, [p], n)
            self.state[p]["n"] = n


WRONG = [
    ForEachParameter, OfTheFirstGroup, AsOldAsTheFirst, Outside, BegunAnew, ByTheFirstParameter, ByMood, FromOne, Cleared, UpTo256, ByParameter,
    torch.optim.Adam,
]  # fmt: skip


@pytest.mark.sampled(6)
@pytest.mark.parametrize("make", WRONG)
def test_who_counts_wrongly_is_refused(make):
    until = ("agreement", "groups-independent", "save-load-continue", "order-of-parameters")
    found, _ = accused(make, BY_GROUP, until=until, examples=200)
    assert not found.isdisjoint(until)


def _step(*having, seed=1):
    """A step in which these of three parameters have a gradient."""
    return Step({i: Gradient(Values("log", seed + 10 * i, 0.01, 1.0)) if i in having else None for i in range(3)})


def _life(*events):
    """Two parameters in the first group, and one in the second."""
    parameters = tuple(Parameter((2,), values=Values("quarters", n, 0.0, 1.0)) for n in range(3))
    return Trace("Adam", parameters, (Group((0, 1)), Group((2,))), events)


LATE = _life(_step(0), _step(0, seed=2), _step(0, 1, seed=3), _step(1, seed=4))
#: With steps in which a group has no gradient, and some in which none has.
IDLE = _life(_step(0), _step(2), _step(), _step(0, 1), _step(2), _step(), _step(0, 1, 2), _step(2), _step(0))
RIGHT = [
    groups.CountedByGroup, groups.CountedByGroupIfItSteps, groups.CountedByGroupIfAnythingSteps, groups.CountedByGroupAfterwards,
    groups.CountedByGroupAsK, groups.CountedByGroupAsKIfItSteps, groups.CountedByGroupAndParameter,
]  # fmt: skip


def _deviations(make, like, trace):
    subject = class_subject(make, like, "tests:Class")
    return judge(subject, Player(subject, trace).play()).deviations


@pytest.mark.parametrize("make", RIGHT)
def test_a_late_parameter_takes_the_count_as_it_is(make):
    """Of torch's own it is the first step; so is a deviation where nothing is declared."""
    assert not _deviations(make, BY_GROUP, LATE)
    late = _deviations(make, "Adam", LATE)[0]
    assert (late.event, late.parameter) == (2, 1)
    assert _deviations(torch.optim.Adam, BY_GROUP, LATE)[0].event == 2


@pytest.mark.parametrize("make", RIGHT)
def test_whether_a_step_without_gradients_counts_is_theirs_to_say(make):
    assert not _deviations(make, BY_GROUP, IDLE)


def test_but_it_always_counts_or_never():
    moody = _deviations(ByMood, BY_GROUP, _life(_step(0), _step(2), _step(2), _step(0)))
    assert [(d.event, d.field, d.got, d.expected) for d in moody if d.field == "step"] == [(3, "step", 3.0, 4.0)]


def test_a_group_that_is_added_begins_to_count():
    parameters = tuple(Parameter((2,), values=Values("quarters", n, 0.0, 1.0)) for n in range(3))
    added = Trace("Adam", parameters, (Group((0, 1)),), (_step(0, 1), _step(0), AddGroup(Group((2,))), _step(0, 1, 2)))
    assert not _deviations(groups.CountedByGroup, BY_GROUP, added)
    assert [d.parameter for d in _deviations(AsOldAsTheFirst, BY_GROUP, added)] == [2, 2]


class AsK(ForEachParameter):
    """The same fault, and another name."""

    def count(self, group):
        group["k"] = group.get("k", 0) + 1
        return group["k"]


@pytest.mark.parametrize(("make", "names", "read"), [(ForEachParameter, {}, "step"), (AsK, {"step": "k"}, "k")])
def test_a_wrong_count_is_told_and_asserted_where_it_stands(make, names, read):
    subject = class_subject(make, Declaration(BY_GROUP, names=names), "tests:Class")
    life = _life(_step(0, 1))
    finding = next(f for f in found(subject, life)[1] if f.check == "agreement" and f.deviation.field == "step")
    script = repro.script(subject, life, finding)
    assert f"optimizer.param_groups[0].get('{read}', 0)" in script
    assert "AssertionError: 2.0 is not 1.0" in run_here(script)


def test_one_that_is_called_otherwise_and_ignored_is_counted_here():
    """Its own count, which is wrong, is not looked at; what is computed with it is."""
    ignored = Declaration(BY_GROUP, ignored=("step",))
    subject = class_subject(ForEachParameter, ignored, "tests:Class")
    fields = {d.field for d in judge(subject, Player(subject, _life(_step(0, 1))).play()).deviations}
    assert fields == {"parameter"}
