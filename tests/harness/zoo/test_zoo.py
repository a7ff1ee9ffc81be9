"""The zoo: right optimizers pass, wrong ones fail the check that is about their fault."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from accused import accused
from in_process import stepcheck

from stepcheck import check_optimizer
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS, EXPLAINED_BY
from stepcheck.harness.life.events import WAYS, AddGroup, Fail, Gradient, Group, Hook, Parameter, Reload, Step, ZeroGrad
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search import campaign
from stepcheck.harness.search.settings import DEFAULT_EXAMPLES
from stepcheck.harness.telling import repro
from stepcheck.harness.zoo import adagrad, adam, history, life, rmsprop, sgd
from stepcheck.harness.zoo.catalogue import RIGHT, WRONG

pytestmark = pytest.mark.usefixtures("no_dialect")

TESTS = Path(__file__).parents[2]

# Fewer lives of these: they have state or products whose budgets take longer to compute.
COSTLY = ("ASGD", "NAdam", "RAdam", "Rprop", "SparseAdam", "Adafactor", "Muon")


def _named(cls, *values):
    return pytest.param(cls, *values, id=f"{cls.__module__}.{cls.__name__}")


@pytest.mark.sampled(10)
@pytest.mark.parametrize(("optimizer", "like"), [_named(cls, like) for cls, like in RIGHT.items()])
def test_right_passes(optimizer, like, tmp_path):
    passes(optimizer, like, tmp_path, DEFAULT_EXAMPLES // 5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "like"), [_named(cls, like) for cls, like in RIGHT.items() if like not in COSTLY]
)
def test_right_passes_as_many_lives_as_a_campaign_plays(optimizer, like, tmp_path):
    passes(optimizer, like, tmp_path, DEFAULT_EXAMPLES)


def passes(optimizer, like, tmp_path, examples):
    report = check_optimizer(optimizer, like, examples=examples, out=tmp_path)
    report.raise_on_divergence()
    assert report.verdict == "pass"


@pytest.mark.sampled(48)
@pytest.mark.parametrize(
    ("optimizer", "like", "check"),
    [_named(cls, like, check) for like, zoo in WRONG.items() for cls, check in zoo.items()],
)
def test_wrong_fails(optimizer, like, check):
    checks = (check,) if isinstance(check, str) else check
    # Most faults show in the first few lives; all have to in as many as a campaign plays.
    failed, _ = accused(optimizer, like, only=checks, until=checks)
    assert not failed.isdisjoint(checks)


#: One fault of each place that a deviation may be told in; with all checks asked, one may take it over from agreement.
DEVIATING = {
    sgd.FirstLrForAllSGD: "SGD",
    sgd.CachedLrSGD: "SGD",
    sgd.MaximizesPenaltySGD: "SGD",
    sgd.IgnoresDampening: "SGD",
    sgd.StaleBuffer: "SGD",
    adam.SwappedBetasAdam: "Adam",
    adam.CountsForAllAdam: "Adam",
    adam.IgnoresDecoupled: "Adam",
    rmsprop.IgnoresMaximizeRMSprop: "RMSprop",
}


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("optimizer", "like"), [_named(cls, like) for cls, like in DEVIATING.items()])
def test_a_deviation_is_told_by_agreement_or_by_what_explains_it(optimizer, like, tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "_ATTEMPTS", 1)
    report = check_optimizer(optimizer, like, examples=20, out=tmp_path)
    assert not {d.check for d in report.divergences}.isdisjoint(EXPLAINED_BY)


# Faults that take a rare life to see.

ONE = Gradient(Values("constant", high=1.0))


def found(optimizer, check, *events, groups=1, form="list", **options):
    """What a check finds in a life of SGD."""
    group = Group((0,), options), *(Group((n,), {"lr": 0.5}) for n in range(1, groups))
    trace = Trace("SGD", (Parameter((2,)),) * groups, group, events, form)
    return list(CHECKS[check].find(Evidence(class_subject(optimizer, "SGD"), trace)))


RARE = {
    life.RunsStateHooksTwiceSGD: ("hooks-run-once", (Hook("state_dict_post"), Reload())),
    life.ReturnsNumberSGD: ("closure", (Step({0: ONE}, closure="tensor"),)),
    life.ClearsOnErrorSGD: ("failed-step", (Step({0: ONE}), Fail("closure"))),
    life.TakesAwaySGD: ("between-steps", (Step({0: ONE}), ZeroGrad(set_to_none=False))),
}
UNSEEN = {
    life.ReturnsNumberSGD: "a number is taken for the tensor of that value",
}


@pytest.mark.parametrize(
    "optimizer",
    [
        pytest.param(cls, id=cls.__name__, marks=pytest.mark.xfail(reason=UNSEEN[cls]) if cls in UNSEEN else ())
        for cls in RARE
    ],
)
def test_a_handmade_life_shows_a_rare_fault(optimizer):
    check, events = RARE[optimizer]
    assert found(optimizer, check, *events)
    assert not found(sgd.RightSGD, check, *events)


def test_an_iterator_that_the_constructor_uses_up_is_no_unsupported_option(tmp_path):
    report = check_optimizer(life.WalksIteratorSGD, "SGD", examples=60, only=("completes",), out=tmp_path)
    assert any("the constructor raises" in d.summary for d in report.divergences)


def test_a_life_with_a_failing_step_before_a_group_is_added_is_no_fault_of_the_optimizer():
    added = AddGroup(Group((1,), {}))
    trace = Trace("SGD", (Parameter((1,)), Parameter((1,))), (Group((0,)),), (Fail("hook"), added))
    assert Evidence(class_subject(sgd.RightSGD, "SGD"), trace).recording.raised is None


@pytest.mark.parametrize("way", WAYS[1:4])
def test_a_dictionary_that_went_a_long_way_is_nobody_s_to_share_memory_with(way):
    step = Step({0: ONE})
    assert not found(sgd.RightSGD, "loaded-state-apart", step, Reload(way), momentum=0.5)


class TurnsBuffer(sgd.RightSGD):
    """Steps rightly, and stores its buffer turned."""

    def walk(self):
        super().walk()
        for state in self.state.values():
            state["momentum_buffer"].neg_()


def test_a_fault_in_a_buffer_is_not_told_of_the_option_that_has_it():
    # With momentum at its default there is no such buffer, and nothing wrong with it.
    assert found(TurnsBuffer, "agreement", Step({0: ONE}), momentum=0.5)
    assert not found(TurnsBuffer, "option-effect", Step({0: ONE}), momentum=0.5)


class CallsBase(sgd.RightSGD):
    """Right: does nothing of its own where it overrides."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)


def test_what_torch_does_is_not_told_of_a_class_that_calls_it(tmp_path):
    checks = ("dicts-unchanged", "loaded-state-apart")
    report = check_optimizer(CallsBase, "SGD", examples=30, only=checks, out=tmp_path)
    assert not report.divergences


def test_divergence_is_told_by_a_script_and_a_replay(tmp_path, capfd):
    report = check_optimizer(adam.EpsInsideRoot, "Adam", examples=20, only=["agreement"], out=tmp_path)
    divergence = report.divergences[0]
    assert "stepcheck" not in divergence.script.replace(adam.__name__, "")
    assert len(divergence.script.splitlines()) <= 30

    command, environment = [sys.executable, "-c", divergence.script], {**os.environ, "PYTHONPATH": str(TESTS)}
    script = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert script.returncode != 0
    assert "AssertionError" in script.stderr

    trace = str(tmp_path / f"{divergence.id}.json")
    fails = stepcheck("replay", trace, "--out", tmp_path, cwd=tmp_path, capfd=capfd)
    assert (fails.returncode, fails.stdout.split()[0]) == (1, "FAILS")
    right = "stepcheck.harness.zoo.adam:RightAdam"
    fixed = stepcheck("replay", trace, "--subject", right, cwd=tmp_path, capfd=capfd)
    assert (fixed.returncode, fixed.stdout.split()[0]) == (0, "FIXED")


def test_a_count_that_stops_shows_once_the_optimizer_is_older(tmp_path):
    events = (Step({0: ONE}), Reload("saved", "aged"), Step({0: ONE}))
    trace = Trace("Adam", (Parameter((2,)),), (Group((0,), {}),), events)
    stops, right = (class_subject(cls, "Adam") for cls in (history.CountsInBFloat16, adam.RightAdam))
    told = [f for check in EXPLAINED_BY for f in CHECKS[check].find(Evidence(stops, trace))]
    assert "step is" in told[0].summary
    assert not [f for check in CHECKS.values() for f in check.find(Evidence(right, trace))]
    script = repro.script(stops, trace, told[0])
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 1


def test_what_shows_in_an_older_optimizer_alone_is_not_told_of_its_round_trip():
    events = (Step({0: ONE}), Reload("saved", "aged"), Step({0: ONE}))
    trace = Trace("Adam", (Parameter((2,)),), (Group((0,)),), events)
    seen = Evidence(class_subject(CorrectsForEver, "Adam"), trace)
    assert seen.judgement.deviations
    assert next(f.check for check in EXPLAINED_BY for f in CHECKS[check].find(seen)) == "agreement"


class CorrectsForEver(adam.RightAdam):
    """Corrects the bias as if there were at most a hundred steps."""

    def corrections(self, t, beta1, beta2):
        return super().corrections(t, beta1, beta2) if t < 100 else (0.5, 0.5)


def test_a_state_before_the_first_step_has_no_age():
    trace = Trace("Adagrad", (Parameter((1,)),), (Group((0,), {}),), (Reload(dictionary="aged"), Step({0: ONE})))
    assert not Evidence(class_subject(adagrad.RightAdagrad, "Adagrad"), trace).judgement.deviations
