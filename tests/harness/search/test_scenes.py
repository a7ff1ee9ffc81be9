"""Scenes: each is what it is called, comes when it is its turn, and is left out where it cannot be played."""

import itertools
import random

import numpy as np
import pytest
import torch

from stepcheck.harness.judging.item import MOST_ELEMENTS, sampled, thinned
from stepcheck.harness.life.events import AddGroup, Handle, Reload, Run, Schedule, SetOption, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play import torchs
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.recording import ParameterStep
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import turns
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.generate import ESSENTIALS, TRACE_BYTES, decoder
from stepcheck.harness.search.scenes import LARGE, SCENES, scenes
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.turns import Turns
from stepcheck.reference import SPECS

ADAM = resolve("torch:Adam[forloop]")[0]
MINE = class_subject(torch.optim.Adam, "Adam")
NAMES = ("SGD", "Adam", "RAdam", "Rprop", "ASGD", "SparseAdam", "Adafactor", "Muon", "LBFGS")


def lives(subject, scene, number=12):
    decode, words = decoder(subject, subject.dtypes), random.Random(scene)
    return [decode(words.randbytes(TRACE_BYTES), scene, n) for n in range(number)]


@pytest.mark.parametrize("name", NAMES)
def test_what_is_drawn_has_a_meaning(name):
    (subject,) = resolve(f"torch:{name}[forloop]")
    for scene in (s for s in SCENES if SCENES[s].takes(subject)):
        for trace in lives(subject, scene):
            assert (trace.problem(subject.spec), subject.problem(trace)) == (None, "")
            assert Trace.from_json(trace.to_json()) == trace


def test_large_lives_reach_past_every_block():
    sizes = [max(p.numel for p in t.parameters) for t in lives(ADAM, "large")]
    assert all(any(n > block for n in sizes) for block in (1 << 12, 1 << 16, 1 << 20))
    assert any(p.shape[0] > 1024 and len(p.shape) > 1 for t in lives(ADAM, "large") for p in t.parameters)


def test_many_lives_have_many_parameters_and_groups_and_empty_ones():
    drawn = lives(ADAM, "many")
    assert max(len(t.parameters) for t in drawn) > 1000
    assert max(len(t.all_groups) for t in drawn) > 16
    assert any(not g.parameters for t in drawn for g in t.groups)
    assert any(0 in p.shape for t in drawn for p in t.parameters)
    assert any(sum(isinstance(e, AddGroup) for e in t.events) > 1 for t in drawn)


@pytest.mark.parametrize(
    ("name", "switches"), [("SGD", {"momentum"}), ("Adam", {"amsgrad"}), ("RMSprop", {"momentum", "centered"})]
)
def test_each_buffer_rests_and_comes_late(name, switches):
    (subject,) = resolve(f"torch:{name}[forloop]")
    off, on, late = set(), set(), set()
    for trace in lives(subject, "rested", 24):
        values = [(e.option, bool(e.value)) for e in trace.events if isinstance(e, SetOption)]
        off |= {option for option, value in values if not value}
        on |= {option for before, (option, value) in itertools.pairwise(values) if value and before == (option, False)}
        late |= {option for option, value in values[:1] if value}
        late |= {"momentum" for e in trace.events if isinstance(e, Schedule)}  # it turns momentum on
    assert off == on == late == switches


@pytest.mark.parametrize(
    ("number", "looked_at"),
    [
        (0, range(2, 300)),
        (1, (500, 512, 1000, 1024, 2048)),
        (11, (10_000, 32_768)),
        (23, (65_536,)),
    ],
)
def test_long_lives_are_judged_throughout_or_around_each_turn(number, looked_at):
    trace = decoder(ADAM, ADAM.dtypes)(bytes(range(1, TRACE_BYTES + 1)), "long", number)
    taken, judged = 0, set()
    for e in trace.events:
        taken += e.steps if isinstance(e, Run) else 1
        if isinstance(e, Step):
            judged.add(taken)
    assert {n + d for n in looked_at for d in (-1, 0, 1)} <= judged


def test_long_lives_have_many_options_with_which_parameters_stay_finite():
    sgd = resolve("torch:SGD[forloop]")[0]
    for number in (2, 3, 11):
        trace = decoder(sgd, sgd.dtypes)(bytes(range(1, TRACE_BYTES + 1)), "long", number)
        numbers = [x for o in trace.given_options for x in o.values() if type(x) is float]
        assert len(numbers) > 2
        assert all(0 < x < 1 for x in numbers)


def test_lives_with_a_flag_begin_with_a_part_of_a_group():
    """What steps a group at once may take all for as old as the first."""
    begun = [t.events[0] for t in lives(MINE, "switched") if len(t.groups[0].parameters) > 1]
    assert begun
    for t in lives(MINE, "switched"):
        members = t.groups[0].parameters
        if len(members) > 1:
            assert t.events[0].gradients[members[-1]] is None


def test_values_come_from_whole_domains():
    betas = [o["betas"] for t in lives(ADAM, "valued", 400) for o in t.given_options if "betas" in o]
    assert sum(2 / 3 < beta2 < 0.9 for _, beta2 in betas) > 10
    assert sum(0.94 < beta2 < 0.995 for _, beta2 in betas) > 10
    rates = [o["lr"] for t in lives(ADAM, "valued", 400) for o in t.given_options if isinstance(o.get("lr"), float)]
    assert min(r for r in rates if r) < 1e-6
    assert sum(1e-2 < r < 1e-1 for r in rates) > 10


def test_something_is_handled_between_steps_and_surrounds_them():
    assert all(any(isinstance(e, Handle) for e in t.events) for t in lives(ADAM, "handled"))
    assert all(any(isinstance(e, Step) and e.within for e in t.events) for t in lives(ADAM, "surrounded"))


def test_the_number_of_threads_changes_in_lives_of_somebodys_class_alone():
    mine = [[e.within for e in t.events if isinstance(e, Step)] for t in lives(MINE, "surrounded")]
    # After the first step, or at last: either way there are steps with another number.
    assert [within.index("more threads") for within in mine] == [n % 2 * 4 for n in range(len(mine))]
    assert all(within.count("more threads") == 1 for within in mine)
    assert not any(e.within == "more threads" for t in lives(ADAM, "surrounded") for e in t.events)


def test_narrow_default_dtypes_are_for_somebodys_class_alone():
    narrow = {"bfloat16 by default", "float16 by default"}
    torchs, mine = (
        [{e.within for e in t.events if isinstance(e, Step)} for t in lives(subject, "surrounded", 60)]
        for subject in (ADAM, MINE)
    )
    assert not narrow & set().union(*torchs)
    assert {*narrow, "float64 by default"} < set().union(*mine)
    # In some lives all steps are taken so, the first one too, which makes the state.
    assert all({dtype} in [within - {"more threads"} for within in mine] for dtype in narrow)
    nadam = lives(class_subject(torch.optim.NAdam, "NAdam"), "surrounded", 60)
    assert not any("by default" in e.within for t in nadam for e in t.events if isinstance(e, Step))


def test_torchs_own_checkpoints_are_for_somebodys_class_alone():
    assert not SCENES["adopted"].takes(ADAM)
    loaded = [e.dictionary for t in lives(MINE, "adopted") for e in t.events if isinstance(e, Reload)]
    assert set(loaded) == set(torchs.NAMES)


@pytest.mark.parametrize("subject", [ADAM, MINE], ids=["torch's", "somebody's"])
def test_a_campaign_of_the_default_length_plays_every_scene_that_makes_sense(subject):
    first = len(ESSENTIALS)
    named = [name for name, _ in itertools.islice(scenes(subject, first), 200 - first)]
    assert set(named) - {""} == {name for name, scene in SCENES.items() if scene.takes(subject)}
    assert named.count("") == len(named) // 2
    assert ("switched" in named) == subject.explicit
    numbers = [n for name, n in itertools.islice(scenes(subject, first), 200 - first) if name == "large"]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > 3


def test_a_class_that_takes_long_is_given_no_large_life_and_that_is_said(monkeypatch):
    monkeypatch.setattr(turns, "_MOST_SECONDS", 0.0)
    monkeypatch.setattr(Turns, "_seconds", lambda self, trace, patience: float(sum(p.numel for p in trace.parameters)))
    result = Campaign(MINE, Settings(examples=40)).run()
    (told,) = (note for note in result.notes if note.startswith("never played"))
    assert told.startswith("never played: lives of the kinds large")
    assert told.endswith("; the largest would take it over 0 s")


def test_what_few_lives_or_none_have_is_said():
    few = Turns(MINE)
    few.played |= set(SCENES) - {"large"}
    assert list(few.told()) == ["never played: lives of the kinds large; more lives have them (--examples 200)"]
    (told, _) = Turns(class_subject(torch.optim.LBFGS, "LBFGS")).told()
    assert told.endswith(": its steps evaluate a closure")
    assert not list(Turns(ADAM).told())


def test_the_ends_of_blocks_are_looked_at():
    elements = (1 << 20) + 7
    at = set(sampled(elements).tolist())
    assert set(range(LARGE)) <= at
    assert set(range(elements - LARGE, elements)) <= at
    assert all({n - 1, n, n + 1} <= at for n in range(1 << 12, elements, 1 << 12))
    assert len(at) < 1 << 16 < MOST_ELEMENTS


def test_what_has_not_an_element_for_each_is_looked_at_as_a_whole():
    many, at = np.arange(100.0), np.array([0, 99])
    parameter = ParameterStep(
        many, many, {"step": np.array(1.0)}, many, {"m": many}, gradient_written=False, beside_written=False
    )
    assert thinned(parameter, at, 100).value.tolist() == [0, 99]
    assert thinned(ParameterStep(many, many, {}, many, {"m": many[:50]}, False, False), at, 100) is None


def test_every_reference_but_that_of_closures_has_scenes_of_its_own():
    for name, spec in SPECS.items():
        (subject,) = resolve(f"torch:{name}[forloop]")
        assert (SCENES["handled"].takes(subject), SCENES["valued"].takes(subject)) == (not spec.closure,) * 2


@pytest.mark.parametrize("scene", ["spelled", "switched", "valued"])
def test_what_is_no_option_of_a_group_is_the_same_in_all(scene):
    decays = type("Decays", (torch.optim.SGD,), {"__init__": _without_group_decay})
    subject = class_subject(decays, "SGD")
    assert subject.constructor_only == {"weight_decay"}
    several = [t for t in lives(subject, scene, 40) if len(t.groups) > 1]
    assert all(len({g.options.get("weight_decay") for g in t.groups}) == 1 for t in several)
    assert several


def _without_group_decay(self, params, lr=1e-3, weight_decay=0.0, foreach=None):
    torch.optim.SGD.__init__(self, params, lr, weight_decay=weight_decay, foreach=foreach)
    for group in self.param_groups:
        group["decay"] = group.pop("weight_decay")
