"""What is declared of somebody's class: its names, what it is held at, its dialect and its arithmetic."""

import json
from dataclasses import replace

import own_names
import pytest
import torch

from stepcheck.harness.play.declared import Declaration, DeclarationError
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.play.terms import PLAIN, Terms, TermsError, terms
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS

pytestmark = pytest.mark.usefixtures("no_dialect")

OWN = Declaration("Adam", ("eps-inside-root",), own_names.NAMES)


def checked(make, declaration, lives=60):
    return Campaign(class_subject(make, declaration), Settings(0, lives)).run()


# Names


def test_options_are_said_in_the_class_s_own_names():
    said = Terms({"betas": ("beta1", "beta2"), "eps": ("epsilon",)})
    assert said.theirs({"betas": (0.9, 0.99), "eps": 1e-8, "lr": 0.1}) == {
        "beta1": 0.9,
        "beta2": 0.99,
        "epsilon": 1e-8,
        "lr": 0.1,
    }


def test_a_group_is_read_in_the_reference_s():
    said = Terms({"betas": ("beta1", "beta2"), "eps": ("epsilon",)})
    group = {"beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8, "lr": 0.1, "params": []}
    assert said.ours(group) == {"betas": (0.9, 0.99), "eps": 1e-8, "lr": 0.1, "params": []}


def test_half_a_pair_is_no_pair():
    assert "betas" not in Terms({"betas": ("beta1", "beta2")}).ours({"beta1": 0.9})


def test_what_has_the_reference_s_name_and_is_renamed_is_not_the_reference_s():
    assert Terms({"eps": ("epsilon",)}).ours({"eps": 3, "epsilon": 1e-8}) == {"eps": 1e-8}


def test_without_names_nothing_is_copied():
    group = {"lr": 0.1}
    assert PLAIN.ours(group) is group


def test_of_a_pair_only_a_pair_can_be_said():
    said = Terms({"betas": ("beta1", "beta2")})
    assert said.can_say("betas", (0.9, 0.99))
    assert not said.can_say("betas", 0.9)
    assert not said.can_say("betas", (0.9,))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ({"nothing": "n"}, "Adam has no 'nothing' to be called n; it has lr, betas"),
        ({"betas": "a, b, c"}, "betas is 2 numbers, and was given 3 names"),
        ({"lr": "a, b"}, "lr is one number, and was given 2 names"),
        ({"lr": "x", "eps": "x"}, "x is the name of two things"),
        ({"exp_avg": "a, b"}, "Adam has no 'exp_avg' to be called a, b"),
        ({"lr": ""}, "lr: an empty name"),
    ],
)
def test_names_that_make_no_sense(names, told):
    with pytest.raises(TermsError) as raised:
        terms(SPECS["Adam"], names, (), {})
    assert str(raised.value).startswith(told)


# A class in its own terms


def test_a_right_class_with_names_of_its_own_passes_and_nothing_of_it_runs_free():
    result = checked(own_names.OwnNames, OWN)
    assert result.verdict == "pass", [d.summary for d in result.divergences]
    assert not [note for note in result.notes if "runs free" in note]
    assert result.tallies["agreement"].worst_ratio > 0.1
    assert sorted(result.varied) == ["betas", "decoupled_weight_decay", "eps", "lr", "weight_decay"]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["WrongBeta", "KeepsRate", "FirstRate", "ForgetsCount", "InOrder"])
def test_wrong_ones_fail_and_their_scripts_speak_their_names(name, tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(own_names.SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    (subject,) = resolve(f"own:{name}", OWN)
    result = Campaign(subject, Settings(0, 60)).run()
    assert result.verdict == "fail"
    for divergence in result.divergences:
        statements = "\n".join(line for line in divergence.script.splitlines() if not line.startswith("#"))
        assert "betas" not in statements
        assert "lr=" not in statements
        with pytest.raises(AssertionError):
            exec(compile(divergence.script, "script", "exec"), {"__name__": "script"})


def test_torch_s_own_class_fails_in_another_s_dialect_under_its_own_names():
    assert checked(torch.optim.Adam, Declaration("Adam", ("eps-inside-root",)), 15).verdict == "fail"


def test_a_name_that_the_class_does_not_have_is_refused():
    with pytest.raises(UsageError, match="has no option 'rate', which is declared; it has params, learning_rate"):
        class_subject(own_names.OwnNames, replace(OWN, names={"lr": "rate"}))


# Held


def test_an_option_of_the_reference_that_is_held_is_the_reference_s_too():
    result = checked(torch.optim.Adam, Declaration("Adam", held={"amsgrad": True}), 30)
    assert result.verdict in ("pass", "known")
    assert "amsgrad" not in result.varied
    assert not [note for note in result.notes if "left out of every life: amsgrad" in note]


def test_held_under_another_name():
    subject = class_subject(own_names.OwnNames, replace(OWN, held={"epsilon": 1e-3}))
    assert subject.spec.hyper_values().eps == 1e-3
    assert "eps" not in subject.options
    assert subject.mode_options == {"epsilon": 1e-3}
    assert Campaign(subject, Settings(0, 25)).run().verdict == "pass"


def test_what_is_held_at_another_value_than_is_said_fails():
    class Other(own_names.OwnNames):
        def __init__(self, params, *, epsilon=1e-8, **options):
            super().__init__(params, epsilon=10 * epsilon, **options)

    assert checked(Other, replace(OWN, held={"epsilon": 1e-3}), 15).verdict == "fail"


@pytest.mark.parametrize(
    ("declaration", "told"),
    [
        (replace(OWN, held={"nothing": 1}), "has no option 'nothing', which is declared"),
        (replace(OWN, held={"beta1": 0.5}), "beta1 is held, and beta2 is not"),
        (replace(OWN, held={"epsilon": -1.0}), "what is held is refused"),
        (replace(OWN, held={"epsilon": torch.ones(1)}), "that is no number, flag, text or tuple of such"),
        (replace(OWN, profile={"speed": 1}), "profile: no fact 'speed'; there is reason, orders"),
        (replace(OWN, profile={"wider": 1}), "profile: wider cannot be 1; it is a bool"),
        (
            replace(OWN, profile={"narrow": "twice"}),
            "profile: narrow cannot be 'twice'; it is one of each, every, once",
        ),
        (replace(OWN, profile={"orders": ["backwards"]}), "profile: no order 'backwards'"),
        (replace(OWN, profile={"orders": [["lerp"]]}), "profile: no order ['lerp']"),
        (
            replace(OWN, profile={"division": 0.5}),
            "profile: division cannot be 0.5; it is a number of roundings, at least 1",
        ),
        (replace(OWN, profile={"power": float("nan")}), "profile: power cannot be nan"),
        (Declaration("", ("eps-inside-root",)), "those of a reference: say of which"),
        (Declaration("no_such_module:SPEC"), "cannot import no_such_module"),
        (Declaration("own_names:NAMES"), "is no reference, but of type dict"),
        (Declaration("Nobody"), "no reference named 'Nobody'; there is"),
    ],
)
def test_what_makes_no_sense_is_one_line(declaration, told):
    with pytest.raises(UsageError) as raised:
        class_subject(own_names.OwnNames, declaration)
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


# Arithmetic


def test_a_declared_profile_is_narrower_than_any():
    facts = {
        "orders": [],
        "division": 1.0,
        "regroups": False,
        "wider": False,
        "narrow": "each",
        "narrow_scalars": False,
    }
    profile = class_subject(own_names.OwnNames, replace(OWN, profile=facts)).profile
    assert (profile.orders, profile.regroups, profile.reason) == (frozenset(), False, "as declared")


# As JSON


def test_a_declaration_comes_back_from_json():
    said = replace(
        OWN, dialects=(), ignored=("extra",), held={"betas": (0.9, 0.99)}, profile={"orders": frozenset({"lerp"})}
    )
    data = json.loads(json.dumps(said.to_json()))
    assert Declaration.from_json("Adam", data) == said


@pytest.mark.parametrize(
    "data",
    [
        3,
        {"other": 1},
        {"names": 3},
        {"names": {"lr": 3}},
        {"ignored": "x"},
        {"ignored": [3]},
        {"profile": {"orders": [[1]]}},
    ],
)
def test_what_is_no_declaration_is_told(data):
    with pytest.raises(DeclarationError):
        Declaration.from_json("Adam", data)
