"""Campaigns: the seed decides everything, counts are honest, what fails is made small."""

import signal
import time
from dataclasses import replace

import pytest
import torch
from hypothesis.internal.conjecture import providers

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.life.events import Gradient, Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.readers.terminal import throughput
from stepcheck.harness.record.verdict import Result
from stepcheck.harness.search import limits, workers
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.zoo import adam
from stepcheck.reference import SPECS

pytestmark = pytest.mark.usefixtures("no_dialect")

SGD = resolve("torch:SGD[forloop]")[0]
# Without what diverges: sparse gradients on views.
SGD = replace(SGD, sparse=False, dtypes=("float32", "float64"))


class IgnoresMaximize(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            group["maximize"] = False
        return super().step(closure)


class Hangs(torch.optim.SGD):
    def step(self, closure=None):
        while self.param_groups[0]["lr"] == 1.0:
            time.sleep(0.01)
        return super().step(closure)


class Crashes(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 1.0:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)


class ReturnsNan(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                p.data.fill_(torch.nan)


def campaign(subject, **settings):
    return Campaign(subject, Settings(**settings)).run()


def test_the_same_seed_gives_the_same_verdicts_counts_and_traces():
    subject = class_subject(IgnoresMaximize, "SGD")
    first, second = (campaign(subject, examples=25, seed=3) for _ in range(2))
    assert [(d.id, d.summary, d.trace, d.found_in) for d in first.divergences] == [
        (d.id, d.summary, d.trace, d.found_in) for d in second.divergences
    ]
    assert first.divergences
    assert {k: (t.ran, t.looked, t.worst_ratio) for k, t in first.tallies.items()} == {
        k: (t.ran, t.looked, t.worst_ratio) for k, t in second.tallies.items()
    }


def test_another_seed_gives_other_traces():
    looked = [campaign(SGD, examples=20, seed=seed).tallies["agreement"].looked for seed in (0, 1)]
    assert looked[0] != looked[1]


def test_what_was_planned_is_what_ran():
    result = campaign(SGD, examples=130)
    assert result.verdict == "known"
    assert result.traces == 130
    # What is invalid is tried once, as a matrix.
    assert all(t.planned == 130 for t in result.tallies.values() if t.check != "refuses-invalid")
    assert result.tallies["agreement"].ran > 120
    # A round trip is not in every life, and the count says so.
    assert 0 < result.tallies["save-load-continue"].ran < 130


def test_a_check_that_ran_on_nothing_is_unknown():
    result = campaign(SGD, examples=1, only=("hooks-run-once",))
    assert result.tallies["hooks-run-once"].ran == 0
    assert result.verdict == "unknown"


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_every_check_is_asked_in_forty_lives(name):
    subject = resolve(f"torch:{name}[forloop]")[0]
    result = campaign(subject, examples=40 * subject.cost)
    assert not result.error
    assert set(result.tallies) == set(CHECKS)
    unasked = {c for c, t in result.tallies.items() if not t.ran}
    declared = {c for note in result.notes for c in note.removeprefix("unsupported: ").partition(":")[0].split(", ")}
    assert unasked <= declared
    assert all(result.tallies[c].verdict == "unsupported" for c in unasked)
    # What has no meaning for some has one for most.
    assert len(unasked) <= 6


def test_a_failing_life_is_shrunk_to_what_it_needs():
    found = campaign(class_subject(IgnoresMaximize, "SGD"), examples=40).divergences
    trace = next(d.trace for d in found if d.check == "maximize-mirrors")
    assert len(trace.parameters) == len(trace.groups) == len(trace.events) == 1
    assert trace.groups[0].options == {"maximize": True}
    assert isinstance(trace.events[0], Step)
    assert trace.parameters[0].numel == 1


@pytest.mark.parametrize(("make", "strides"), [(adam.EpsInsideRoot, False), (adam.WritesToCopyAdamW, True)])
def test_a_life_that_is_wrong_in_row_major_memory_as_well_shows_no_fault_of_strides(make, strides):
    """Made smaller, a fault of strides must not become another one that the class has as well."""
    tiny = Values("listed", listed=(1e-9,) * 4)
    parameters = (Parameter((2, 2), "float32", "transposed", Values("constant", high=1.0)),)
    trace = Trace("Adam", parameters, (Group((0,), {}),), (Step({0: Gradient(tiny)}),))
    campaign = Campaign(class_subject(make, "Adam"), Settings(examples=1))
    assert campaign._shown(trace, "agreement") == {"strided parameter"}
    assert (campaign.recheck(trace, ("agreement", "strided parameter")) is not None) == strides


def test_a_subject_that_hangs_is_judged(monkeypatch):
    monkeypatch.setattr(limits, "TRACE_SECONDS", 0.3)
    result = campaign(class_subject(Hangs, "SGD"), examples=200)
    assert result.verdict == "fail"
    # One hang is no end of the campaign; a second one is.
    assert [(d.check, d.cause, d.found_in) for d in result.divergences] == [("completes", "hangs", 2)]
    assert result.tallies["agreement"].ran > 0


class SlowAtFirst(torch.optim.SGD):
    """Compiles in its first step."""

    compiled = False

    def step(self, closure=None):
        if not SlowAtFirst.compiled:
            time.sleep(1.0)
            SlowAtFirst.compiled = True
        return super().step(closure)


def test_the_first_life_may_take_longer(monkeypatch):
    subject = class_subject(SlowAtFirst, "SGD")
    for patience, hangs in ((0.5, False), (0.1, True)):
        monkeypatch.setattr(SlowAtFirst, "compiled", False)
        found = campaign(subject, examples=3, patience=patience, first=True).tallies["completes"]
        assert found.looked
        looking = Campaign(subject, Settings(examples=3, patience=patience, first=True))
        monkeypatch.setattr(SlowAtFirst, "compiled", False)
        looking.run()
        assert (("completes", "hangs") in looking.suspects.new) == hangs


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer")
def test_a_timer_that_somebody_set_is_given_back_with_what_is_left_of_it():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))
    start = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, 100.0, 7.0)
    try:
        campaign(SGD, examples=3)
        left, interval = signal.getitimer(signal.ITIMER_REAL)
        assert 0 < left < 100.0
        assert left == pytest.approx(100.0 - (time.monotonic() - start), abs=0.5)
        assert interval == 7.0
        # One that should have rung while a life was played rings after it.
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with limits.time_limit(5.0):
            time.sleep(0.1)
            assert not rung
        time.sleep(0.05)
        assert len(rung) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_at_once_the_first_divergence_is_told_short():
    result = campaign(class_subject(IgnoresMaximize, "SGD"), examples=200, at_once=True)
    (divergence,) = result.divergences
    assert result.traces < 40
    assert divergence.found_in == 1
    assert len(divergence.script.splitlines()) <= 60


def test_at_once_nothing_less_is_asked_of_what_conforms():
    every, soon = (campaign(SGD, examples=60, at_once=at_once) for at_once in (False, True))
    assert {t.check for t in every.tallies.values() if t.ran} == {t.check for t in soon.tallies.values() if t.ran}
    assert soon.traces == 60


class AsksForDeterminism(torch.optim.SGD):
    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr, momentum)
        torch.use_deterministic_algorithms(True, warn_only=True)


def test_what_a_constructor_sets_is_told_and_set_back():
    found = campaign(class_subject(AsksForDeterminism, "SGD"), examples=10).divergences
    assert [(d.check, d.cause) for d in found] == [("settings-kept", "deterministic algorithms")]
    assert not torch.are_deterministic_algorithms_enabled()


#: As many bytes each as Hypothesis draws for a page of lives.
KEYS = (b"as many bytes as a key of a page", b"these are just as many bytes too")


def test_constants_in_somebodys_modules_are_no_part_of_the_seed(monkeypatch):
    # Hypothesis takes the modules where somebody stands for theirs, and so this one.
    monkeypatch.setattr(providers, "_get_local_constants", lambda: providers.Constants(bytes=KEYS))
    drawing = Campaign(SGD, Settings())
    drawing.decode = lambda data, essential, number=0: data
    with_constants = list(drawing._draw(0, 100))
    monkeypatch.setattr(providers, "_get_local_constants", providers.Constants)
    monkeypatch.setattr(providers, "CONSTANTS_CACHE", type(providers.CONSTANTS_CACHE)(1024))
    assert list(drawing._draw(0, 100)) == with_constants


def test_a_subject_that_returns_nan_is_judged():
    result = campaign(class_subject(ReturnsNan, "SGD"), examples=20)
    # It returns nothing either, and a step that must fail leaves it as it is.
    assert {"agreement", "no-gradient", "closure"} >= {d.check for d in result.divergences} >= {"agreement"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="workers fork on POSIX alone")
def test_a_subject_that_kills_its_process_takes_nobody_with_it():
    crashes, fine = workers.run([class_subject(Crashes, "SGD"), SGD], Settings(examples=60), workers.Listener())
    assert fine.verdict == "known"
    assert crashes.verdict == "fail"
    (divergence,) = crashes.divergences
    assert divergence.cause == "crash"
    assert "SIGKILL" in divergence.summary


def test_the_clocks_add_up_to_no_more_than_the_seconds():
    # One that diverges as well: other lives are then played and judged to explain it.
    for subject in (SGD, class_subject(IgnoresMaximize, "SGD")):
        result = campaign(subject, examples=60)
        assert result.clocks.keys() == {"draw", "play", "reference", "judge"}
        assert 0 < result.clocks["reference"] < result.clocks["judge"]
        timed = sum(result.clocks[name] for name in ("draw", "play", "judge"))
        assert 0.5 * result.seconds < timed <= result.seconds


def test_the_throughput_tells_what_the_seconds_went_into():
    result = Result("s", "SGD", {}, traces=300, calls=1500, seconds=2.0)
    result.clocks.update(draw=0.25, play=1.0, reference=0.5, judge=0.7)
    told = throughput([result, result])
    assert "150 traces a second a core at 5.0 steps each" in told
    assert "(draw 12 %, play 50 %, reference 25 %, judge 10 %)" in told


def test_seconds_end_a_campaign_in_time():
    start = time.perf_counter()
    result = campaign(SGD, examples=None, seconds=3.0)
    assert time.perf_counter() - start < 20.0  # of a machine that has other things to do
    assert result.traces > 10
    assert result.tallies["agreement"].planned == result.traces


def test_a_dtype_that_a_subject_does_not_take_is_unsupported():
    result = campaign(SGD, examples=1, dtypes=("float16",))
    assert result.verdict == "unsupported"
    assert all((t.planned, t.ran, t.unsupported) == (1, 0, 1) for t in result.tallies.values())
    assert any("float16" in note for note in result.notes)


def test_an_error_of_the_harness_is_unknown_and_never_green(monkeypatch):
    from stepcheck.harness.checking.check import Check
    from stepcheck.harness.checking.checks import CHECKS

    def broken(evidence):
        raise ZeroDivisionError("harness")
        yield

    monkeypatch.setitem(CHECKS, "agreement", Check("agreement", "", lambda e: 1, broken))
    result = campaign(SGD, examples=5)
    assert result.verdict == "unknown"
    assert "ZeroDivisionError" in result.error


class Bare:
    """Right, and no descendant of torch's class: it has no hooks, and its step takes no closure."""

    def __init__(self, params, lr=1e-3):
        groups = list(params)
        groups = groups if isinstance(groups[0], dict) else [{"params": groups}]
        self.param_groups = [{"lr": lr, **g, "params": list(g["params"])} for g in groups]
        self.state = {}

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(group["lr"] * p.grad)

    def zero_grad(self, set_to_none=True):
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            p.grad = None if set_to_none else p.grad.zero_()

    def add_param_group(self, group):
        self.param_groups.append(dict(group))

    def state_dict(self):
        return {"lr": [group["lr"] for group in self.param_groups]}

    def load_state_dict(self, saved):
        for group, lr in zip(self.param_groups, saved["lr"], strict=True):
            group["lr"] = lr


def test_what_a_class_does_not_have_is_unsupported_and_not_unknown():
    result = campaign(class_subject(Bare, "SGD"), examples=60)
    assert (result.verdict, result.error, result.divergences) == ("pass", "", [])
    lacking = {"closure", "hooks-run-once", "failed-step", "skipped-step"}
    assert {c for c, t in result.tallies.items() if t.verdict == "unsupported"} >= lacking
    told = [note for note in result.notes if note.startswith("unsupported: ")]
    assert all(any(check in note for note in told) for check in lacking)


class EndlessConstructor(torch.optim.SGD):
    def __init__(self, params, lr=1e-3):
        while lr != lr:  # noqa: PLR0124 - it never ends for NaN
            time.sleep(0.01)
        super().__init__(params, lr)


def test_a_constructor_that_does_not_end_is_unknown_and_no_endless_run(monkeypatch):
    monkeypatch.setattr("stepcheck.harness.search.limits.TRACE_SECONDS", 1.0)
    result = campaign(class_subject(EndlessConstructor, "SGD"), examples=5)
    assert result.verdict == "unknown"
    assert "does not end" in result.error


class QuotesTensors(torch.optim.SGD):
    """Raises with a message that no two lives share."""

    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            if p.numel() > 3:
                raise KeyError(p)
        return super().step(closure)


def test_an_exception_is_known_by_its_frame_and_not_by_its_message():
    result = campaign(class_subject(QuotesTensors, "SGD"), examples=40)
    (divergence,) = [d for d in result.divergences if d.check == "completes"]
    assert divergence.cause == "KeyError in test_campaign.py:step"
    assert "step() raises KeyError: " in divergence.summary
