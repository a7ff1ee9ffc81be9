"""How an optimizer is constructed beside its parameters: with flags of its signature, and with options written in some way."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from stepcheck.harness.life.events import (
    SCHEDULES,
    SPELLINGS,
    AddGroup,
    Gradient,
    Group,
    Parameter,
    Reload,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.families import resolve, sibling, torchs_own
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.reference import SPECS

ONES = Gradient(Values("constant", high=1.0))
GO = Step({0: ONES})


def adam(params, lr=1e-3, betas=(0.9, 0.999), *, foreach=None, fused=False, **rest):
    return torch.optim.Adam(params, lr, betas, foreach=foreach, fused=fused, **rest)


def takes_any(params, lr=1e-3, **rest):
    return torch.optim.Adam(params, lr, **rest)


def of_another_kind(params, lr=1e-3, foreach="auto", fused=0, *, capturable):
    return torch.optim.Adam(params, lr)


class Inherits(torch.optim.Adam):
    pass


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (torch.optim.Adam, ("foreach", "fused", "capturable")),
        (torch.optim.Adafactor, ("foreach",)),
        (torch.optim.Muon, ()),
        (Inherits, ("foreach", "fused", "capturable")),
        (adam, ("foreach", "fused")),
        (takes_any, ()),
    ],
)
def test_the_flags_of_a_class_are_those_that_its_own_signature_names(make, named):
    assert class_subject(make, "Muon" if make is torch.optim.Muon else "Adam").flags == named


def test_what_has_the_name_of_a_flag_and_is_none_is_not_given():
    def make(params, lr=1e-3, foreach="auto", fused=0):
        return torch.optim.Adam(params, lr)

    assert class_subject(make, "Adam").takes.flags == ()


def life(*events, flags=(), spelling="plain", groups=1, name="Adam", **options):
    of = tuple(Group((n,), options) for n in range(groups))
    added = sum(isinstance(e, AddGroup) for e in events)
    return Trace(name, (Parameter((2,)),) * (groups + added), of, events, flags=flags, spelling=spelling)


@pytest.mark.parametrize(
    ("subject", "flag", "told"),
    [
        (class_subject(torch.optim.Adafactor, "Adafactor"), "fused", "its signature names no flag fused"),
        (class_subject(takes_any, "Adam"), "fused", "its signature names no flag fused"),
        (
            class_subject(torch.optim.Adam, "Adam"),
            "differentiable",
            "a life of somebody's class has no flag differentiable",
        ),
        (resolve("torch:Adam[forloop]")[0], "fused", "its mode selects an implementation, and no flag fused does"),
        (resolve("fast:Adam")[0], "fused", "its mode selects an implementation, and no flag fused does"),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_flag_that_a_subject_does_not_have_is_refused_in_words(subject, flag, told):
    assert subject.problem(life(GO, flags=(flag,), name=subject.spec.name)) == told
    assert subject.problem(life(GO, name=subject.spec.name)) == ""


class Told(torch.optim.Adam):
    """Remembers the keywords of each of its instances, and what it finds in its groups at each step."""

    keywords: ClassVar[list] = []
    stepped: ClassVar[list] = []

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, amsgrad=False, foreach=None):
        Told.keywords.append((lr, betas, eps, amsgrad, foreach))
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, foreach=foreach)

    def step(self, closure=None):
        Told.stepped.append([(g["lr"], g["betas"], g["amsgrad"], g["foreach"]) for g in self.param_groups])
        return super().step(closure)


@pytest.fixture
def told():
    subject = class_subject(Told, "Adam")
    Told.keywords.clear()
    Told.stepped.clear()
    return subject


def play(subject, trace):
    assert not subject.problem(trace)
    recording = Player(subject, trace).play()
    assert recording.raised is None, recording.raised
    assert not [b for b in recording.breaches if b.check not in ("dicts-unchanged", "loaded-state-apart")]
    return recording


@pytest.mark.parametrize("groups", [1, 2])
def test_every_constructor_of_a_life_is_given_its_flags(told, groups):
    events = (GO, Reload(), GO, Reload("saved", form="dicts"), GO, Spoil("a row short"), AddGroup(Group((groups,))), GO)
    play(told, life(*events, flags=("foreach",), groups=groups))
    assert len(Told.keywords) > 3
    assert {keywords[-1] for keywords in Told.keywords} == {True}
    assert {group[-1] for step in Told.stepped for group in step} == {True}
    Told.keywords.clear()
    play(told, life(*events, groups=groups))
    assert {keywords[-1] for keywords in Told.keywords} == {None}


def test_an_older_dictionary_does_not_take_flags_away(told):
    play(told, life(GO, Reload(dictionary="older"), GO, flags=("foreach",)))
    assert {group[-1] for step in Told.stepped for group in step} == {True}


@pytest.mark.parametrize("name", ["Adam[fused]", "SGD[fused]", "Adam[compiled]"])
def test_a_spelling_that_a_mode_of_torch_does_not_take_is_refused_in_words(name):
    (subject,) = resolve(f"torch:{name}")
    trace = life(GO, spelling="numpy", name=subject.spec.name)
    assert subject.problem(trace) == "it does not take options in the spelling numpy"
    assert subject.problem(trace.plainly) == ""


def test_a_round_trip_leads_into_no_mode_that_does_not_take_the_spelling():
    (subject,) = resolve("torch:Adam[forloop]")
    into = {sibling(subject, n, life(GO, spelling="numpy")).mode for n in range(9)}
    assert into == {"forloop", "foreach"}
    assert {sibling(subject, n, life(GO)).mode for n in range(9)} > into


SPELLED = {
    "plain": (float, tuple, float, bool),
    "whole": (int, tuple, int, bool),
    "lists": (float, list, float, bool),
    "numpy": (np.float64, tuple, np.float64, np.bool_),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_options_are_spelled_wherever_they_are_given(told, spelling):
    lr, betas, beta, flag = SPELLED[spelling]
    added = AddGroup(Group((1,), {"lr": 3.0, "betas": (0.0, 0.5)}))
    play(told, life(GO, SetOption(0, "lr", 2.0), GO, added, GO, spelling=spelling, lr=1.0, amsgrad=True))
    first, *_, last = Told.stepped
    given = Told.keywords[-1]
    assert list(map(type, given[:2] + given[3:4])) == [lr, betas, flag]
    assert [type(group[0]) for group in (*first, *last)] == [lr] * 3
    assert [float(group[0]) for group in (*first, *last)] == [1.0, 2.0, 3.0]
    assert type(last[1][1]) is betas
    assert type(last[1][1][0]) is beta


@pytest.mark.parametrize("name", ["SGD", "RAdam"])
@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_schedule_makes_the_same_of_options_however_they_are_spelled(kind, spelling, name):
    subject = resolve(f"torch:{name}[forloop]")[0]
    events = (GO, Schedule(kind), ScheduleStep(), GO, ScheduleStep(), Reload("saved"), ScheduleStep(), GO)
    options = {"momentum": 0.5} if name == "SGD" else {"betas": (0.5, 0.75)}
    recording = play(subject, life(*events, spelling=spelling, name=name, lr=1.0, **options))
    plain = play(subject, life(*events, name=name, lr=1.0, **options))
    assert [vars(s.hyper[0]) for s in recording.steps] == [vars(s.hyper[0]) for s in plain.steps]
    for mine, others in zip(recording.steps, plain.steps, strict=True):
        np.testing.assert_array_equal(mine.parameters[0].value_after, others.parameters[0].value_after)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_number_in_the_state_is_read_whatever_its_type(spelling):
    class Counts(torch.optim.SGD):
        def step(self, closure=None):
            for group in self.param_groups:
                self.state[group["params"][0]].update(lr=group["lr"], both=[group["lr"], 1])
            return super().step(closure)

    recording = play(class_subject(Counts, "SGD"), life(GO, spelling=spelling, name="SGD", lr=3.0))
    state = recording.steps[0].parameters[0].state_after
    assert {name: state[name] for name in ("lr", "both[0]", "both[1]")} == {"lr": 3.0, "both[0]": 3.0, "both[1]": 1.0}


class Keeps(torch.optim.SGD):
    """Keeps its options as another type, or rounds them."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0):
        super().__init__(params, self.kept(lr), self.kept(momentum), self.kept(dampening))


@pytest.mark.parametrize(("kept", "holds"), [(float, True), (np.float64, True), (np.float32, False), (round, False)])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_an_option_holds_by_its_value_and_not_by_its_type(kept, holds, spelling):
    subject = class_subject(type("KeepsSo", (Keeps,), {"kept": staticmethod(kept)}), "SGD")
    recording = Player(subject, life(GO, spelling=spelling, name="SGD", lr=0.1, momentum=0.0)).play()
    assert [b.cause for b in recording.breaches if b.check == "options-hold"][:1] == ([] if holds else ["option lr"])
    assert recording.looked["options-hold"]


def test_a_pair_holds_as_a_tuple_or_as_a_list():
    class Pairs(torch.optim.Adam):
        def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
            super().__init__(params, lr, self.kept(betas))

    for kept in (tuple, list):
        subject = class_subject(type("PairsSo", (Pairs,), {"kept": kept}), "Adam")
        for spelling in SPELLINGS:
            play(subject, life(GO, Reload(), GO, spelling=spelling, betas=(0.5, 0.25)))


class Rounded(torch.optim.SGD):
    """Its direction is the constructor's to say, and one of its defaults cannot be sent to another process."""

    def __init__(self, params, lr=1e-3, maximize=False, rounding=lambda x: x):
        super().__init__(params, lr)
        self.ascends = maximize


def test_a_default_that_cannot_be_sent_hides_nothing_else():
    takes = class_subject(Rounded, "SGD", "Rounded").takes
    assert takes.options == {"lr", "maximize"}
    assert "rounding" in takes.others


def test_torch_s_own_is_built_with_what_is_held():
    spec, _ = Declaration("SGD", held={"momentum": 0.9}).spoken(SPECS["SGD"])
    trace = Trace("SGD", (Parameter((2,), "float32", ONES.values),), (Group((0,), {"nesterov": True}),), (GO,))
    own = torchs_own(spec, trace)
    recording = Player(own, trace).play()
    assert recording.raised is None
    assert own.make([torch.ones(2, requires_grad=True)], nesterov=True).param_groups[0]["momentum"] == 0.9
