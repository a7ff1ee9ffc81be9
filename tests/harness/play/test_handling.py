"""What users do between steps, steps that nobody looks at, and the surroundings of a step, played on right and on wrong classes."""

import sys
from dataclasses import replace
from typing import ClassVar

import pytest
import torch
from scripted import found, run_here

from stepcheck.harness.known import ledger
from stepcheck.harness.life.events import (
    DEFAULT_DTYPES,
    HANDLINGS,
    SURROUNDINGS,
    Gradient,
    Group,
    Handle,
    Parameter,
    Run,
    SetOption,
    Step,
)
from stepcheck.harness.life.reading import TraceError
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play import handling
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.steps import AS_MANY_THREADS, MORE_THREADS
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.notes import left_out
from stepcheck.harness.support import threads
from stepcheck.harness.telling import repro
from stepcheck.harness.zoo import adagrad, adam, ages, around, handled, rmsprop, sgd

OTHERS = Values("log", 5, 0.01, 1.0)


def gradient(seed):
    return Gradient(Values("log", seed, 0.01, 1.0))


def step(seed, within=""):
    return Step({0: gradient(seed), 1: gradient(seed + 100)}, within=within)


def life(like, *events, **options):
    parameters = (
        Parameter((3, 2), values=Values("log", 1, 0.01, 1.0)),
        Parameter((3, 2), values=Values("quarters", 2, 0.0, 1.0)),
    )
    return Trace(like, parameters, (Group((0, 1), options),), events)  # fmt: skip


def handled_by(how):
    """A life that has something to be done to."""
    first = {"rolled back": "kept", "appended": "removed"}.get(how)
    before = [Handle(first, 1), step(2)] if first else []
    return [step(1), *before, Handle(how, 1, OTHERS), step(3), step(4)]


LIVES = {
    **{how: handled_by(how) for how in HANDLINGS},
    "appended later": [step(1), Handle("appended", 1), step(2), step(3)],
    **{within: [step(1), step(2, within), step(3)] for within in SURROUNDINGS},
    "run": [step(1), Run(40), step(2)],
}
OPTIONS = {
    "SGD": {"momentum": 0.9},
    "Adam": {"amsgrad": True},
    "Adagrad": {},
    "RAdam": {},
    "Rprop": {},
    "ASGD": {},
    "NAdam": {},
}


@pytest.mark.parametrize("events", LIVES.values(), ids=LIVES)
@pytest.mark.parametrize("like", OPTIONS)
def test_a_right_optimizer_agrees_whatever_is_done(like, events):
    if like == "ASGD" and any(isinstance(e, Step) and e.within in DEFAULT_DTYPES[1:] for e in events):
        pytest.skip("torch's has its eta in the default dtype, so no life of it is drawn with another one")
    trace = life(like, *events, **OPTIONS[like])
    (fast,) = resolve(f"fast:{like}")
    for subject in (*resolve(f"torch:{like}[foreach]"), fast, class_subject(getattr(torch.optim, like), like)):
        evidence, findings = found(subject, trace)
        steps = sum(isinstance(e, Step) for e in trace.events)
        if subject.explicit and like == "Adagrad" and isinstance(events[1], Handle) and events[1].how == "appended":
            steps = 1  # a class that makes its state when it is constructed need not make it later
        assert (findings, len(evidence.recording.steps)) == ([], steps)
        assert evidence.judgement.elements > 0


def test_lives_are_the_same_after_a_round_trip_through_json():
    for events in LIVES.values():
        trace = life("Adam", *events)
        assert Trace.from_json(trace.to_json()) == trace


@pytest.mark.parametrize(
    ("event", "change", "told"),
    [
        (Run(3), {"steps": 0}, "steps"),
        (Run(3), {"steps": 1 << 15}, "steps"),
        (Handle("written"), {"how": "painted"}, "how"),
        (Handle("written"), {"parameter": 2}, "parameter"),
    ],
)
def test_what_is_no_such_event_is_refused(event, change, told):
    data = life("Adam", event).to_json()
    data["events"][0] |= change
    with pytest.raises(TraceError, match=told):
        Trace.from_json(data)


def test_what_makes_no_sense_with_an_objective_is_said():
    spec = resolve("torch:LBFGS[forloop]")[0].spec
    assert life("LBFGS", Handle("cleared")).problem(spec) == "LBFGS keeps the state of all parameters together"
    assert life("LBFGS", Run(2)).problem(spec) == "LBFGS takes no step without an objective"


WRONG = {
    "own copy": (handled.StepsFromOwnCopy, handled_by("written"), {}),
    "first memory": (handled.WritesToFirstMemory, handled_by("swapped"), {}),
    "cleared": (handled.KeepsClearedState, handled_by("cleared"), {"momentum": 0.9}),
    "replaced": (handled.KeepsReplacedState, handled_by("replaced"), {"momentum": 0.9}),
    "forgotten": (handled.KeepsClearedState, handled_by("forgotten"), {"momentum": 0.9}),
    "rolled back": (handled.KeepsFirstBuffers, handled_by("rolled back"), {"momentum": 0.9}),
    "merged": (handled.MergesState, [Handle("kept"), step(1), Handle("rolled back"), step(2)], {}),
    "own options": (
        handled.KeepsOwnOptions,
        [step(1), Handle("kept"), SetOption(0, "lr", 0.5), Handle("rolled back"), step(2)],
        {},
    ),
    "removed": (handled.StepsRemoved, handled_by("removed"), {"momentum": 0.9}),
    "appended": (handled.MissesAppended, [step(1), Handle("appended", 1), step(2)], {}),
    "regrouped": (handled.StepsFormerGroups, handled_by("regrouped"), {}),
    "each 50th step": (ages.DropsMomentumEach50, [step(1), Run(47), step(2), step(3), step(4)], {"momentum": 0.9}),
    "autocast": (around.RoundsAsAutocast, LIVES["autocast"], {}),
    "no_grad": (around.LeavesGradientsOn, LIVES["no_grad"], {}),
    "another optimizer": (around.CountsForTheClass, LIVES["another optimizer"], {}),
    "graph": (around.KeepsGraph, LIVES["graph"], {"momentum": 0.9}),
    "graph of the gradient": (around.DetachesGradient, LIVES["graph"], {}),
    "threads of the first step": (around.DividesAmongFirstThreads, [step(1, "more threads"), step(2)], {}),
    "more threads": (around.AveragesOverFirstThreads, LIVES["more threads"], {}),
    "graphs of the past": (around.KeepsPastGradients, [step(n, "graph") for n in range(1, 5)], {}),
}


class KeepsAlike(sgd.RightSGD):
    """Keeps something as large as the parameter that the reference does not know."""

    def visit(self, p, group):
        super().visit(p, group)
        self.state[p]["mine"] = torch.ones_like(p)


class MakesAtOnce(sgd.RightSGD):
    """Makes the state of a parameter when it is given it."""

    def add_param_group(self, group):
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            self.state[p]["mine"] = 1


class CountsByPlace(adam.RightAdam):
    """Counts the steps of each parameter in a list of the group."""

    def visit(self, p, group):
        counts = group.setdefault("counts", [0] * len(group["params"]))
        place = next(n for n, q in enumerate(group["params"]) if q is p)
        counts[place] += 1
        super().visit(p, {**group, "t": counts[place]})
        self.state[p].pop("step", None)


@pytest.mark.parametrize(
    ("make", "how", "why"),
    [
        (KeepsAlike, "rolled back", handling.NO_COPIES),
        (sgd.RightSGD, "removed", handling.NOT_KEYED),
        (CountsByPlace, "removed", handling.NOT_KEYED),
        (CountsByPlace, "appended", handling.NOT_KEYED),
        (KeepsAlike, "written", handling.NO_COPIES),
        (KeepsAlike, "swapped", handling.NO_COPIES),
        (MakesAtOnce, "cleared", handling.NOT_ANEW),
        (MakesAtOnce, "forgotten", handling.NOT_ANEW),
    ],
)
def test_what_is_not_done_to_a_class_is_said(make, how, why):
    like = "Adam" if issubclass(make, adam.RightAdam) else "SGD"
    subject = class_subject(make, like)
    evidence, findings = found(subject, life(like, *handled_by(how)))
    assert findings == []
    assert why in evidence.recording.lacks
    assert any(why in note for note in left_out(evidence.recording.lacks))


class CountsThreads(sgd.RightSGD):
    """Right, and remembers how many threads there were."""

    seen: ClassVar[list[int]] = []

    def walk(self):
        self.seen.append(torch.get_num_threads())
        super().walk()


@pytest.mark.parametrize("may", [True, False])
def test_a_step_has_more_threads_where_that_does_no_harm(may, monkeypatch):
    monkeypatch.setattr(threads, "spreads", lambda: may)
    CountsThreads.seen.clear()
    evidence, findings = found(class_subject(CountsThreads, "SGD"), life("SGD", *LIVES["more threads"]))
    assert findings == []
    before = torch.get_num_threads()
    assert CountsThreads.seen == [before, before + (MORE_THREADS if may else 0), before]
    assert (AS_MANY_THREADS in evidence.recording.lacks) != may
    assert any("more threads" in note for note in left_out(evidence.recording.lacks)) != may


MOMENTUM_LATE = [step(1), SetOption(0, "momentum", 0.5), step(2), step(3)]


class NeedsBuffer(rmsprop.RightRMSprop):
    """As torch's own RMSprop, has no buffer for momentum that comes late."""

    def accumulate(self, d, state, group):
        state["momentum_buffer"] = d + group["momentum"] * state["momentum_buffer"]
        return state["momentum_buffer"]


def test_a_late_buffer_is_charged_where_torchs_own_class_has_one():
    evidence, findings = found(class_subject(NeedsBuffer, "RMSprop"), life("RMSprop", *MOMENTUM_LATE))
    assert findings == []
    assert handling.NOT_LATE in evidence.recording.lacks
    evidence, findings = found(class_subject(handled.NeedsBuffer, "SGD"), life("SGD", *MOMENTUM_LATE))
    assert [f.check for f in findings] == ["completes"]
    assert handling.NOT_LATE not in evidence.recording.lacks


class LosesBuffer(torch.optim.RMSprop):
    """Loses the buffer that a step has made."""

    def step(self, closure=None):
        loss = super().step(closure)
        for state in self.state.values():
            state.pop("momentum_buffer", None)
        return loss


def test_a_buffer_that_is_lost_is_not_one_that_comes_late():
    trace = life("RMSprop", step(1), SetOption(0, "lr", 0.5), step(2), momentum=0.5)
    evidence, findings = found(class_subject(LosesBuffer, "RMSprop"), trace)
    lost = [f for f in findings if "KeyError: 'momentum_buffer'" in f.summary]
    assert lost
    assert ledger.knows(evidence, lost[0]) is None


class HidesAndForgets(sgd.OtherNames):
    """Right, with a buffer of another name, which it drops while momentum is off."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        if group["momentum"] == 0:
            state.pop("m", None)
        return value


def test_what_becomes_of_a_hidden_buffer_while_it_rests_is_its_own_affair():
    events = [step(1), step(2), SetOption(0, "momentum", 0.0), step(3), SetOption(0, "momentum", 0.9), step(4)]
    _, findings = found(class_subject(HidesAndForgets, "SGD"), life("SGD", *events, momentum=0.9))
    assert findings == []


def test_a_parameter_alone_in_its_group_is_there_at_first():
    trace = replace(life("SGD", Handle("appended", 1)), groups=(Group((0,)), Group((1,))))
    (subject,) = resolve("torch:SGD[forloop]")
    assert "must have a parameter at first" in trace.problem(subject.spec)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_class_is_found_and_its_script_fails_on_no_right_one(name):
    make, events, options = WRONG[name]
    fault = next(f for m in (handled, ages, around) for f in m.FAULTS if f.make is make)
    like = fault.like
    right = {
        "SGD": sgd.RightSGD,
        "Adam": adam.RightAdam,
        "AdamW": adam.RightAdamW,
        "RMSprop": rmsprop.RightRMSprop,
        "Adagrad": adagrad.RightAdagrad,
    }[like]
    trace = replace(life(like, *events, **options), optimizer=like)
    assert found(class_subject(right, like), trace)[1] == []
    subject = class_subject(make, like)
    _, findings = found(subject, trace)
    assert findings
    script = repro.script(subject, trace, findings[0])
    assert run_here(script), script
    name, module = make.__name__, make.__module__.rpartition(".")[2]
    of_right = right.__module__.rpartition(".")[2]
    assert not run_here(script.replace(f".zoo.{module}", f".zoo.{of_right}").replace(name, right.__name__)), script
    assert name in sys.modules[make.__module__].__dict__
