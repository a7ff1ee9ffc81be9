"""How a class is constructed, asked about: a wrong implementation is found, and what a class declines is no fault of it."""

import random
from dataclasses import replace

import pytest
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.life.events import (
    SPELLINGS,
    AddGroup,
    Gradient,
    Group,
    Parameter,
    Reload,
    SetOption,
    Step,
    ZeroGrad,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import shrink, steer
from stepcheck.harness.search.asking import findings, refusal
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.generate import TRACE_BYTES, decoder, tables
from stepcheck.harness.search.settings import Settings

G = Gradient(Values("log", 3, 0.1, 1.0))
GO = Step({0: G, 1: G})
P = Parameter((3, 2), values=Values("log", 1, 0.5, 2.0))


def life(*events, name="SGD", flags=(), spelling="plain", **options):
    added = sum(isinstance(e, AddGroup) for e in events)
    return Trace(name, (P,) * (2 + added), (Group((0, 1), options),), events, flags=flags, spelling=spelling)


def found(subject, trace):
    """What any check finds that the ledger does not explain; a refusal is nothing found."""
    return {(f.check, f.cause) for check in CHECKS for f, known in findings(subject, trace, check) if known is None}


def declines(subject, trace):
    return refusal(Evidence(subject, trace))


class Switched(torch.optim.SGD):
    """SGD whose every implementation is a method of its own."""

    def __init__(self, params, lr=1e-3, momentum=0.0, foreach=None, fused=None, capturable=False):
        super().__init__(params, lr, momentum)
        for group in self.param_groups:
            group.update(foreach=foreach, fused=fused, capturable=capturable)
        for flag in ("foreach", "fused", "capturable"):
            if locals()[flag]:
                getattr(self, f"{flag}_begins", lambda: None)()

    def step(self, closure=None):
        for flag in ("foreach", "fused", "capturable"):
            if self.param_groups[0].get(flag):
                getattr(self, f"{flag}_steps", lambda: None)()
        return super().step(closure)


class StepsFarther(Switched):
    """The implementation for many tensors steps farther."""

    def foreach_steps(self):
        for p in self.param_groups[0]["params"]:
            if p.grad is not None:
                p.data.sub_(p.grad, alpha=0.5)


def test_a_wrong_implementation_is_found_in_a_life_that_selects_it():
    subject = class_subject(StepsFarther, "SGD")
    assert not found(subject, life(GO, GO))
    assert not found(subject, life(GO, GO, flags=("fused",)))
    assert ("agreement", "parameter") in found(subject, life(GO, GO, flags=("foreach",)))
    assert not found(class_subject(Switched, "SGD"), life(GO, Reload(), GO, flags=("foreach",)))


class StepsFartherReloaded(Switched):
    """Its construction alone says which implementation steps."""

    def foreach_begins(self):
        self.steps_by = 1.0

    def step(self, closure=None):
        if getattr(self, "steps_by", 0.0) and self.state:
            self.param_groups[0]["params"][0].data.sub_(1.0)
        return super().step(closure)


def test_an_optimizer_that_a_round_trip_builds_has_the_flags_as_well():
    subject = class_subject(StepsFartherReloaded, "SGD")
    trace = life(GO, Reload(), GO, flags=("foreach",), momentum=0.5)
    assert found(subject, trace)
    assert not found(subject, trace.plainly)


class DividesWhole(torch.optim.SGD):
    """Divides learning rates that are whole numbers as such."""

    def step(self, closure=None):
        for group in self.param_groups:
            lr = group["lr"]
            halves = lr // 2 + lr // 2 if isinstance(lr, int) else lr
            kept, group["lr"] = lr, halves
            super().step(closure)
            group["lr"] = kept


def test_a_division_of_whole_numbers_is_found_in_a_life_that_writes_them_so():
    subject = class_subject(DividesWhole, "SGD")
    for spelling in SPELLINGS:
        causes = found(subject, life(GO, spelling=spelling, lr=1.0))
        assert (("agreement", "parameter") in causes) == (spelling == "whole"), spelling
    assert ("agreement", "parameter") in found(subject, life(GO, SetOption(0, "lr", 1.0), GO, spelling="whole", lr=0.5))


class NeedsTuple(torch.optim.Adam):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
        if not isinstance(betas, tuple):
            raise self.error("betas must be a tuple")
        super().__init__(params, lr, betas)

    def add_param_group(self, param_group):
        if not isinstance(param_group.get("betas", ()), tuple):
            raise self.error("betas must be a tuple")
        super().add_param_group(param_group)


@pytest.mark.parametrize(
    ("error", "declared"), [(ValueError, True), (TypeError, True), (KeyError, False), (AttributeError, False)]
)
def test_a_constructor_that_refuses_a_spelling_is_not_accused_and_one_that_crashes_is(error, declared):
    subject = class_subject(type("NeedsTupleSo", (NeedsTuple,), {"error": error}), "Adam")
    trace = life(GO, name="Adam", spelling="lists", betas=(0.5, 0.25))
    assert (declines(subject, trace) is not None) == declared
    assert bool(found(subject, trace)) != declared
    assert not found(subject, replace(trace, spelling="numpy"))


class NeedsTupleLater(torch.optim.Adam):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
        super().__init__(params, lr, betas)
        self.param_groups[0]["betas"] = betas

    def step(self, closure=None):
        self.param_groups[0]["betas"] = self.param_groups[0]["betas"] + (0.5,)[:0]
        return super().step(closure)


def test_a_step_that_stumbles_over_a_spelling_is_found():
    subject = class_subject(NeedsTupleLater, "Adam")
    trace = life(GO, name="Adam", spelling="lists", betas=(0.5, 0.25))
    assert any(check == "completes" for check, _ in found(subject, trace))
    assert not found(subject, trace.plainly)


def raising(error, message):
    def raises(self):
        raise error(message)

    return raises


CAPTURABLE = "If capturable=True, params and state_steps must be on supported devices: ['cuda', 'xpu']."
#: The flag, when, what is raised, and whether it is about the flag.
ABOUT = {
    "refused": ("fused", "begins", ValueError, "no kernel for this", True),
    "not there yet": ("foreach", "begins", NotImplementedError, "", True),
    "not installed": ("fused", "begins", ModuleNotFoundError, "No module named 'apex'", True),
    "named": ("fused", "begins", RuntimeError, "`fused` is for CUDA tensors", True),
    "not named": ("fused", "begins", RuntimeError, "something else", False),
    "asserted in a step": ("capturable", "steps", AssertionError, CAPTURABLE, True),
    "device alone": ("fused", "steps", RuntimeError, "Expected all tensors to be on a CUDA device", True),
    "named in a step": ("foreach", "steps", RuntimeError, "foreach is not supported for these", True),
    "not named in a step": ("foreach", "steps", RuntimeError, "The size of tensor a (2) must match", False),
    "a function": ("foreach", "steps", TypeError, "_foreach_add_() received an invalid combination", False),
    "an entry": ("fused", "steps", KeyError, "fused", False),
    "an attribute": ("foreach", "begins", AttributeError, "'Mine' object has no attribute 'foreach'", False),
}


@pytest.mark.parametrize("name", ABOUT)
def test_what_a_class_says_of_a_flag_is_no_fault_and_all_else_is(name):
    flag, when, error, message, about = ABOUT[name]
    cls = type("Says", (Switched,), {f"{flag}_{when}": raising(error, message)})
    subject = class_subject(cls, "SGD")
    trace = life(ZeroGrad(), GO, GO, flags=(flag,))
    assert (declines(subject, trace) is not None) == about
    assert bool(found(subject, trace)) != about
    assert not found(subject, trace.plainly)


class Fails(Switched):
    def step(self, closure=None):
        raise RuntimeError("fused or not, it is for CUDA devices")


def test_what_is_raised_without_the_flag_as_well_is_found():
    assert found(class_subject(Fails, "SGD"), life(GO, flags=("fused",)))


class FailsLate(Switched):
    def fused_steps(self):
        self.steps = getattr(self, "steps", 0) + 1
        if self.steps > 1:
            raise RuntimeError("Expected all tensors to be on the same device")


def test_a_device_that_is_named_after_the_first_step_is_no_word_about_the_flag():
    assert found(class_subject(FailsLate, "SGD"), life(GO, GO, flags=("fused",)))


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adafactor", "RAdam"])
def test_a_right_class_is_not_accused_whatever_it_is_constructed_with(name):
    subject = class_subject(getattr(torch.optim, name), name)
    events = (GO, SetOption(0, "lr", 1.0), GO, Reload("saved"), GO, AddGroup(Group((2,))), Step({0: G, 2: G}))
    trace = life(*events, name=name, lr=0.5)
    assert subject.flags
    for other in [replace(trace, flags=(flag,)) for flag in subject.flags]:
        assert not found(subject, other), other.flags
        assert (declines(subject, other) is not None) == (other.flags == ("capturable",))
    for other in [replace(trace, spelling=spelling) for spelling in SPELLINGS]:
        assert not found(subject, other), other.spelling
        assert Evidence(subject, other).recording.raised is None


def test_flags_that_exclude_each_other_are_declined():
    subject = class_subject(torch.optim.Adam, "Adam")
    assert "fused" in (declines(subject, life(GO, name="Adam", flags=("foreach", "fused"))) or "")


STRIDED = Parameter((3, 2), layout="sliced", values=Values("log", 1, 0.5, 2.0))


def test_what_is_known_of_the_mode_that_a_flag_selects_is_known_of_whoever_inherits_it():
    subject = class_subject(torch.optim.Adam, "Adam")
    trace = Trace("Adam", (STRIDED,), (Group((0,)),), (Step({0: G}),), flags=("fused",))
    entries = {known.name for check in CHECKS for _, known in findings(subject, trace, check) if known is not None}
    assert "fused-cpu-ignores-strides" in entries
    assert not found(subject, trace)


def test_flags_and_spellings_that_do_not_matter_are_left_out_of_a_smaller_life():
    subject = class_subject(StepsFarther, "SGD")
    trace = life(GO, GO, flags=("foreach", "fused"), spelling="numpy", lr=0.5)

    def shown(smaller):
        return next((f for f, _ in findings(subject, smaller, "agreement") if f.cause == "parameter"), None)

    smaller, _ = shrink.cut(trace, shown(trace), shown, 200)
    assert (smaller.flags, smaller.spelling) == (("foreach",), "plain")
    assert shrink.size(smaller) < shrink.size(replace(smaller, flags=("foreach", "fused")))
    assert shrink.size(smaller) < shrink.size(replace(smaller, spelling="lists"))


# What is drawn.


def test_how_the_optimizer_is_constructed_is_a_feature_where_it_is_not_as_usual():
    usual = steer.features(life(GO))
    assert not {f for f in usual if f[0] in ("Trace.flags", "Trace.spelling")}
    assert steer.features(life(GO, flags=("fused",))) - usual == {("Trace.flags", ("fused",))}
    assert steer.features(life(GO, spelling="numpy")) - usual == {("Trace.spelling", "numpy")}


def drawn(subject, essential, number=60):
    decode, words = decoder(subject, subject.dtypes[:1]), random.Random(essential)
    return [decode(words.randbytes(TRACE_BYTES), essential, n) for n in range(number)]


def test_a_life_that_is_to_be_switched_has_one_flag_of_the_signature():
    subject = class_subject(torch.optim.Adam, "Adam")
    assert {t.flags for t in drawn(subject, "switched")} == {("foreach",), ("fused",), ("capturable",)}
    assert {t.flags for t in drawn(class_subject(torch.optim.Muon, "Muon"), "switched", 5)} == {()}
    assert {t.flags for t in drawn(resolve("torch:Adam[forloop]")[0], "switched", 5)} == {()}
    assert {(t.flags, t.spelling) for t in drawn(subject, "", 20)} == {((), "plain")}
    assert not any(subject.problem(t) for t in drawn(subject, "switched", 20))


@pytest.mark.parametrize(
    ("name", "spellings"),
    [
        ("torch:SGD[forloop]", {"whole", "lists", "numpy"}),
        ("torch:SGD[fused]", {"whole", "lists"}),
        ("torch:AdamW[foreach]", {"lists", "numpy"}),
        ("torch:Adam[compiled]", {"plain"}),
        ("fast:Adam", {"lists", "numpy"}),
        ("fast:Adagrad", {"whole", "lists", "numpy"}),
    ],
)
def test_a_life_that_is_to_be_spelled_is_written_as_the_subject_takes_it(name, spellings):
    (subject,) = resolve(name)
    assert {t.spelling for t in drawn(subject, "spelled")} == spellings
    assert set(tables(subject, subject.dtypes).spellings) == spellings - {"plain"}
    assert not any(subject.problem(t) for t in drawn(subject, "spelled", 20))


def test_a_class_of_somebody_is_given_every_spelling():
    subject = class_subject(torch.optim.Adam, "Adam")
    assert {t.spelling for t in drawn(subject, "spelled")} == {"whole", "lists", "numpy"}


def test_what_a_class_declines_is_a_note_of_its_campaign_and_no_divergence(monkeypatch):
    cls = type("Declines", (Switched,), {"fused_begins": raising(ValueError, "fused is for CUDA tensors")})
    subject = class_subject(cls, "SGD")
    campaign = Campaign(subject, Settings(examples=3))
    lives = [life(GO, flags=("fused",)), life(GO, flags=("foreach",)), life(GO)]
    monkeypatch.setattr(campaign, "_draw", lambda batch, size: iter([[t] for t in lives]))
    result = campaign.run()
    assert not result.divergences
    assert not result.error
    assert any("refuses the options or groups of 1 lives of 3 (fused is for CUDA tensors)" in n for n in result.notes)
