"""What somebody's class is expected to fail is known, and told; what passes all the same is to be taken off the list."""

from dataclasses import replace

import pytest
import torch

from stepcheck.harness.life.events import Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import UsageError, class_subject
from stepcheck.harness.readers.scripts import to_json
from stepcheck.harness.record.reading import read
from stepcheck.harness.record.stream import Recorder, Stream
from stepcheck.harness.record.verdict import EXPECTED, Divergence, Result, Tally
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.expected import expecting, spoken
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.zoo import sgd

WHY = "it is meant"
ROOT, EFFECT = "option-effect", "agreement"
LIFE = Trace("SGD", (Parameter(()),), (Group((0,)),), (Step(),))


class Right(torch.optim.SGD):
    pass


class TwiceTheRate(torch.optim.SGD):
    """Each step is twice as long."""

    @torch.no_grad()
    def step(self, closure=None):
        before = [[p.clone() for p in group["params"]] for group in self.param_groups]
        loss = super().step(closure)
        for group, old in zip(self.param_groups, before, strict=True):
            for p, was in zip(group["params"], old, strict=True):
                if p.grad is not None:
                    p.add_(p - was)
        return loss


def played(folder, optimizer, *expected, asked=("agreement", "closure"), **settings):
    """What a campaign found, and what is read back of it, which is the same."""
    subject = expecting(class_subject(optimizer, "SGD"), dict.fromkeys(expected, WHY))
    settings = Settings(**{"examples": 20, "dtypes": ("float32",), "only": asked, **settings})
    with Stream.create(folder, "stepcheck check", "0", {}) as stream:
        result = Campaign(subject, settings, recorder=Recorder(stream, subject.name)).run()
    run = read(stream.path)
    (back,) = run.results
    assert not run.problems
    assert not result.error
    for name, tally in result.tallies.items():
        of = back.tallies[name]
        assert (of.verdict, of.passes_now, told(of.known)) == (tally.verdict, tally.passes_now, told(tally.known))
        assert told(of.divergences) == told(tally.divergences)
    assert (back.verdict, back.expected, back.passing_now) == (result.verdict, result.expected, result.passing_now)
    return result, to_json(run, folder)["subjects"][0]


def told(divergences):
    return sorted((d.id, d.entry, d.found_in) for d in divergences)


def test_what_was_expected_is_known_and_told(tmp_path):
    result, row = played(tmp_path, TwiceTheRate, "agreement")
    assert (result.verdict, result.tallies["agreement"].verdict) == ("known", "known")
    (divergence,) = result.known
    assert (divergence.expected, divergence.entry, divergence.found_in > 0) == (WHY, f"expected: {WHY}", True)
    (of_agreement,) = row["checks"][0]["divergences"]
    assert (of_agreement["known"], of_agreement["expected"], "ledger" in of_agreement) == (True, WHY, False)
    assert played(tmp_path, TwiceTheRate)[0].verdict == "fail"


def test_what_passes_all_the_same_is_a_failure(tmp_path):
    result, row = played(tmp_path, Right, "closure")
    line = f"closure passes now, and was expected to fail ({WHY}): take it off the list"
    assert (result.verdict, result.passing_now) == ("fail", [line])
    assert {t.check: t.verdict for t in result.tallies.values()} == {"agreement": "pass", "closure": "fail"}
    assert line in row["notes"]


def test_what_could_not_be_asked_keeps_its_verdict(tmp_path):
    unknown, _ = played(tmp_path, Right, "closure", examples=1)
    unsupported, _ = played(tmp_path, Right, "refuses-invalid", asked=())
    assert unknown.tallies["closure"].verdict == "unknown"
    assert unsupported.tallies["refuses-invalid"].verdict == "unsupported"
    assert not unknown.passing_now
    assert not unsupported.passing_now


def test_what_follows_from_an_expected_cause_is_told_with_it(tmp_path):
    result, _ = played(tmp_path, sgd.CachedLrSGD, ROOT, asked=(ROOT, EFFECT), examples=40)
    assert (result.verdict, [d.check for d in result.known]) == ("known", [ROOT])


def test_an_expected_effect_is_told_by_itself_and_its_cause_fails(tmp_path):
    result, _ = played(tmp_path, sgd.CachedLrSGD, EFFECT, asked=(ROOT, EFFECT), examples=40)
    assert [d.check for d in result.divergences] == [ROOT]
    assert {d.check for d in result.known} == {EFFECT}
    assert not result.passing_now


def test_the_first_divergence_is_one_that_was_not_expected(tmp_path):
    both = ("agreement", "gradient-unwritten")

    class WritesLate(TwiceTheRate):
        def step(self, closure=None):
            loss = super().step(closure)
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and self.state.setdefault(p, {}).setdefault("steps", 0) > 1:
                        p.grad.zero_()
                    self.state[p]["steps"] = self.state[p].get("steps", 0) + 1
            return loss

    result, _ = played(tmp_path, WritesLate, "agreement", asked=both, at_once=True, examples=40)
    assert [d.check for d in result.divergences] == ["gradient-unwritten"]
    # To the end of a campaign that found nothing else, it is told as well.
    result, _ = played(tmp_path, TwiceTheRate, "agreement", at_once=True)
    assert (result.verdict, result.traces) == ("known", 20)
    # Who was stopped early was not asked: nothing is said of what else was expected.
    result, _ = played(tmp_path, TwiceTheRate, "closure", at_once=True)
    assert (result.verdict, result.passing_now) == ("fail", [])


def test_many_that_were_expected_do_not_hide_one_that_was_not():
    campaign = Campaign(expecting(class_subject(Right, "SGD"), {"agreement": WHY}), Settings(examples=1))
    suspects = campaign.suspects
    for key in [*(("agreement", str(n)) for n in range(20)), *(("completes", str(n)) for n in range(20))]:
        suspects.new[key] = None
    due = suspects.due(12, at_once=False)
    assert sum(check == "completes" for check, _ in due) == 12
    assert {check for check, _ in suspects.due(1, at_once=True)} == {"completes"}
    suspects.shrunk = set(due)
    assert suspects.due(12, at_once=False) == []


def test_an_expected_cause_that_is_found_later_takes_the_place_of_its_effect(tmp_path):
    subject = class_subject(TwiceTheRate, "SGD")
    effect = Divergence(subject.name, "SGD", EFFECT, "far", "off", 4.0, LIFE, [], "", 3)
    root = replace(effect, check=ROOT, entry=EXPECTED + WHY)
    result = Result(subject.name, "SGD", {c: Tally(c) for c in (ROOT, EFFECT)}, expected={ROOT: WHY})
    with Stream.create(tmp_path, "stepcheck check", "0", {}) as stream:
        recorder = Recorder(stream, subject.name)
        recorder.begun(result)
        recorder.divergence(effect)
        recorder.divergence(root, replaces=effect.id)
        result.tallies[ROOT].add(root)
        recorder.ended(result)
    (back,) = read(stream.path).results
    assert ([d.check for d in back.known], back.divergences) == ([ROOT], [])


@pytest.mark.parametrize(
    ("texts", "why"),
    [
        (["agrement: x"], "no check named 'agrement' that could be expected to fail; there is completes, "),
        (["agreement: "], "agreement is expected to fail, and it is not said why"),
        (["agreement"], "--expect 'agreement': say why"),
        (["agreement: x", "agreement: y"], "expected to fail already (x)"),
    ],
)
def test_what_is_said_wrongly_is_refused_in_one_line(texts, why):
    with pytest.raises(UsageError) as raised:
        spoken(texts)
    assert why in str(raised.value)
    assert "\n" not in str(raised.value)
