"""Where an optimizer goes on over other tensors, as in another process, and where a learning rate is filled in place."""

from dataclasses import replace

import pytest
import torch
from scripted import found, run_here

from stepcheck.harness.life.events import (
    WAYS,
    Gradient,
    Group,
    Parameter,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Step,
)
from stepcheck.harness.life.memory import copy, identical
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play import handling, resume, torchs
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.notes import left_out
from stepcheck.harness.telling import explain, repro
from stepcheck.harness.zoo import adadelta, adam, adamax, elsewhere, handled, rmsprop, sgd

MOMENTUM = {"momentum": 0.9}


def step(seed):
    values = [Values("log", seed + n, 0.01, 1.0) for n in (0, 100)]
    return Step(dict(enumerate(map(Gradient, values))))


def life(like, *events, **options):
    parameters = tuple(Parameter((3, 2), values=Values("log", n, 0.01, 1.0)) for n in (1, 2))
    return Trace(like, parameters, (Group((0, 1), options),), events)


def afresh(way):
    return [step(1), step(2), Reload(way, afresh=True), step(3), step(4)]


KEPT = {}


class KeepsByIdentity(sgd.RightSGD):
    """Keeps the buffer in a dictionary of the module, by the identity of the parameter, and saves none."""

    def update(self, p, g, state, group):
        KEPT.setdefault(id(p), (p, torch.zeros_like(p)))
        own = {"momentum_buffer": KEPT[id(p)][1]}
        value = super().update(p, g, own, group)
        KEPT[id(p)] = p, own["momentum_buffer"]
        return value


class CountsByIdentity(adam.RightAdam):
    """Counts the steps of each parameter of a group by its identity."""

    def visit(self, p, group):
        counts = group.setdefault("counts", {})
        counts[id(p)] = counts.get(id(p), 0) + 1
        super().visit(p, {**group, "t": counts[id(p)]})
        self.state[p].pop("step", None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("like", "options"), [("SGD", MOMENTUM), ("Adam", {"amsgrad": True}), ("NAdam", {})])
def test_right_ones_go_on_over_other_tensors(way, like, options):
    trace = life(like, *afresh(way), **options)
    (fast,) = resolve(f"fast:{like}")
    for subject in (*resolve(f"torch:{like}[foreach]"), fast, class_subject(getattr(torch.optim, like), like)):
        evidence, findings = found(subject, trace)
        assert [f for f in findings if f.cause != "state"] == []  # torch loads the very tensor of a counter
        assert evidence.judgement.elements > 0


@pytest.mark.parametrize("way", WAYS)
def test_the_parameters_are_other_tensors_with_the_same_values_and_gradients(way):
    (subject,) = resolve("torch:SGD[forloop]")
    player = Player(subject, life("SGD", *afresh(way)[:3]))
    before = list(player.parameters)
    last = player.play().steps[-1].parameters
    assert all(p is not q and p.data_ptr() != q.data_ptr() for p, q in zip(before, player.parameters, strict=True))
    assert all(identical(step.value_after, copy(p)) for step, p in zip(last, player.parameters, strict=True))
    assert all(identical(step.gradient, copy(p.grad)) for step, p in zip(last, player.parameters, strict=True))
    members = [p for group in player.optimizer.param_groups for p in group["params"]]
    assert all(p is q for p, q in zip(members, player.parameters, strict=True))


def test_what_shares_memory_stays_where_it_is():
    trace = life("SGD", *afresh("memory"))
    sliced = replace(trace.parameters[0], layout="sliced")
    trace = replace(trace, parameters=(sliced, replace(sliced, within=0)))
    evidence, findings = found(resolve("torch:SGD[forloop]")[0], trace)
    assert (findings, len(evidence.recording.steps)) == ([], 4)


@pytest.mark.parametrize("way", ["memory", "saved"])
def test_what_is_kept_by_identity_and_saved_nowhere_is_lost(way):
    subject, trace = class_subject(KeepsByIdentity, "SGD"), life("SGD", *afresh(way), **MOMENTUM)
    stays = replace(trace, events=tuple(replace(e, afresh=False) if isinstance(e, Reload) else e for e in trace.events))
    assert found(subject, stays)[1] == []
    _, findings = found(subject, trace)
    assert findings
    script = repro.script(subject, trace, findings[0])
    name, here = KeepsByIdentity.__name__, KeepsByIdentity.__module__
    assert run_here(script), script
    assert not run_here(script.replace(here, sgd.__name__).replace(name, "RightSGD")), script
    assert any("over new tensors of the same values" in line for line in explain.life(subject, trace, findings[0]))


def test_a_copy_together_with_parameters_is_asked_of_what_keeps_all_in_its_state():
    evidence, findings = found(class_subject(CountsByIdentity, "Adam"), life("Adam", *afresh("copied")))
    assert findings == []
    assert any(handling.NOT_COPIED in note for note in left_out(evidence.recording.lacks))


def filled(*between, lr=0.25):
    return [step(1), step(2), *between, SetOption(0, "lr", Scalar(lr), in_place=True), step(3)]


LIVES = {
    "filled": filled(),
    "after a round trip": filled(Reload("saved")),
    "after a copy": filled(Reload("copied")),
    "under a schedule": [Schedule("StepLR"), *filled(ScheduleStep()), ScheduleStep(), step(4)],
}


@pytest.mark.parametrize("events", LIVES.values(), ids=LIVES)
def test_right_ones_go_by_what_is_filled_in(events):
    trace = life("SGD", *events, lr=Scalar(0.5), **MOMENTUM)
    (fast,) = resolve("fast:SGD")
    mine = replace(class_subject(sgd.RightSGD, "SGD"), tensor_lr=True)
    for subject in (*resolve("torch:SGD[forloop]"), *resolve("torch:SGD[fused]"), fast, mine):
        evidence, findings = found(subject, trace)
        assert findings == []
        assert {float(h.lr) for record in evidence.recording.steps for h in record.hyper} >= {0.5, 0.25}


def test_groups_that_share_the_tensor_change_together():
    options = {"lr": Scalar(0.5)}
    trace = life("SGD", *filled())
    trace = replace(trace, groups=(Group((0,), options), Group((1,), options)))
    evidence, findings = found(resolve("torch:SGD[forloop]")[0], trace)
    assert [f for f in findings if f.check != "dicts-unchanged"] == []
    assert [[float(h.lr) for h in record.hyper] for record in evidence.recording.steps] == [[0.5] * 2] * 2 + [
        [0.25] * 2
    ]


@pytest.mark.parametrize("make", [handled.ReadsTensorOnce, handled.DecaysByTensorAsItWas])
def test_who_goes_by_what_was_there_is_found(make):
    like, right = ("SGD", sgd.RightSGD) if issubclass(make, sgd.RightSGD) else ("AdamW", adam.RightAdamW)
    trace = life(like, *filled(), lr=Scalar(0.5))
    assert Trace.from_json(trace.to_json()) == trace
    assert found(class_subject(right, like), trace)[1] == []
    subject = class_subject(make, like)
    _, findings = found(subject, trace)
    assert {f.check for f in findings} <= {"agreement", "option-effect"}
    assert findings
    script = repro.script(subject, trace, findings[0])
    assert ".fill_(" in script
    assert run_here(script), script
    theirs, ours = make.__module__, right.__module__
    assert not run_here(script.replace(theirs, ours).replace(make.__name__, right.__name__)), script


def test_a_number_cannot_be_filled():
    (subject,) = resolve("torch:SGD[forloop]")
    for options, value in (({}, Scalar(0.25)), ({"lr": Scalar(0.5)}, 0.25)):
        trace = life("SGD", step(1), SetOption(0, "lr", value, in_place=True), **options)
        assert (
            trace.problem(subject.spec)
            == "an option that is set in_place must be a tensor before, and its value must be one"
        )


@pytest.mark.parametrize(
    ("make", "way", "right"),
    [
        (elsewhere.SharesStateWithCopy, "copied", rmsprop.RightRMSprop),
        (elsewhere.SharesSlotWithCopy, "copied", sgd.RightSGD),
        (elsewhere.CopiesOverOwn, "copied", adam.RightAdam),
        (elsewhere.VelocityById, "saved", sgd.RightSGD),
        (elsewhere.CountsById, "pickled", adam.RightAdam),
        (elsewhere.LoadsById, "deepcopied", adadelta.RightAdadelta),
    ],
)
def test_what_goes_wrong_elsewhere_is_found_and_its_script_fails_on_no_right_one(make, way, right):
    like = next(f.like for f in elsewhere.FAULTS if f.make is make)
    options = {"momentum": 0.9} if like in ("SGD", "RMSprop") else {}
    trace = life(like, *afresh(way), **options)
    assert found(class_subject(right, like), trace)[1] == []
    subject = class_subject(make, like)
    _, findings = found(subject, trace)
    assert findings
    script = repro.script(subject, trace, findings[0])
    assert run_here(script), script
    assert not run_here(script.replace(make.__module__, right.__module__).replace(make.__name__, right.__name__)), (
        script
    )


@pytest.mark.parametrize("dictionary", resume.AGES)
@pytest.mark.parametrize("name", ["torch:Adam[foreach]", "torch:ASGD[forloop]", "fast:Adamax", "fast:NAdam"])
def test_an_optimizer_steps_rightly_where_its_count_ends(name, dictionary):
    """Beyond 2^24 float32 has not every whole number: that the count stands still is no fault, whatever is computed from it."""
    (subject,) = resolve(name)
    events = (step(1), Reload(dictionary=dictionary), *map(step, range(2, 9)))
    trace = life(subject.spec.name, *events)
    evidence, findings = found(subject, trace)
    assert not [f.summary for f in findings if f.check in ("agreement", "completes", "save-load-continue")]
    counts = [record.parameters[0].state_after["step"].item() for record in evidence.recording.steps]
    age = resume.AGES[dictionary]
    assert counts[0] == 1
    assert all(abs(count - age) < 2e-7 * age + 9 for count in counts[1:])


@pytest.mark.parametrize("dictionary", ["aged", "aged to 2^24"])
def test_a_count_that_goes_on_by_two_is_a_fault_at_any_age(dictionary):
    class ByTwo(torch.optim.Adam):
        def step(self, closure=None):
            super().step(closure)
            for state in self.state.values():
                state["step"] += bool(state["step"] > 9_000)

    subject = replace(resolve("torch:Adam[forloop]")[0], make=ByTwo)
    trace = life("Adam", step(1), Reload(dictionary=dictionary), step(2))
    _, findings = found(subject, trace)
    (finding,) = [f for f in findings if f.check == "agreement"]
    assert finding.event == 2
    assert f"s[k] + {resume.AGES[dictionary]}" in repro.script(subject, trace, finding)


def steps_from(*events, **options):
    """A life of one parameter in float64, in which the number of steps matters."""
    parameter = Parameter((3, 2), "float64", Values("log", 1, 0.01, 1.0))
    return Trace("Adam", (parameter,), (Group((0,), options),), events)


def of_one(seed):
    return Step({0: Gradient(Values("log", seed, 0.01, 1.0))})


def test_what_is_computed_from_a_count_that_stands_still_may_be_off_by_a_step():
    (subject,) = resolve("torch:Adam[forloop]")
    events = (of_one(1), Reload(dictionary="aged to 2^24"), *map(of_one, range(2, 9)))
    _, findings = found(subject, steps_from(*events, betas=(0.1, 1 - 2.0**-20)))
    assert not [f.summary for f in findings if f.check == "agreement"]


def test_of_a_count_that_is_no_number_nothing_is_forgiven():
    class Endless(torch.optim.Adam):
        def step(self, closure=None):
            before = [p.clone() for p in self.param_groups[0]["params"]]
            endless = any(state["step"].isinf() for state in self.state.values())
            super().step(closure)
            for p, was in zip(self.param_groups[0]["params"], before, strict=True):
                self.state[p]["step"].fill_(float("inf"))
                if endless:
                    p.data.lerp_(was, 0.5)

    subject = replace(resolve("torch:Adam[forloop]")[0], make=Endless)
    evidence, _ = found(subject, steps_from(of_one(1), of_one(2)))
    assert (1, "parameter") in {(d.event, d.field) for d in evidence.judgement.deviations}


# From what torch's own class saved.


def adopted(dictionary="torch's", way="memory"):
    return [step(1), step(2), Reload(way, dictionary), step(3), step(4)]


class CountsInNumbers(adam.RightAdam):
    """Right, and counts in numbers, as torch's own did once."""

    def start(self, p, group):
        return {**super().start(p, group), "step": 0}

    def update(self, p, g, state, group):
        count = state["step"]
        state["step"] = torch.tensor(float(count))
        value = super().update(p, g, state, group)
        state["step"] = count
        return value


class HasItsOwn(adam.RightAdam):
    """Right, with an option more in its groups, which torch's own saves none of."""

    def add_param_group(self, group):
        super().add_param_group({"mine": 1.0, **group})

    def options(self, group):
        assert group["mine"] == 1.0
        return group


class HasAnEntryMore(adam.RightAdam):
    """Right, with an entry more in its state."""

    def visit(self, p, group):
        super().visit(p, group)
        self.state[p]["mine"] = self.state[p]["step"] * 2


class StoresCorrected(adam.RightAdam):
    """Right, and stores the average as it is once its bias is corrected, under the name that torch's own has for the other; from a
    checkpoint of torch's own it knows how to get it.
    """

    def moments(self, g, state, beta1, beta2):
        t = state["step"].item()
        average = state["exp_avg"] * (1 - beta1 ** (t - 1))
        state["exp_avg"] = average
        m, v = super().moments(g, state, beta1, beta2)
        state["exp_avg"] = m / (1 - beta1**t)
        return m, v

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for group in (g for g in self.param_groups if "foreach" in g):
            for state in (self.state[p] for p in group["params"]):
                state["exp_avg"] = state["exp_avg"] / (1 - group["betas"][0] ** state["step"].item())


class StepsByAnother(torch.optim.Optimizer):
    """Right, and has an optimizer of torch's own step its groups, which needs their flags."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, maximize=False):
        own = {"betas": betas, "eps": eps, "weight_decay": weight_decay, "amsgrad": amsgrad, "maximize": maximize}
        super().__init__(params, {"lr": lr, **own})
        self.inner = torch.optim.Adam(self.param_groups)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        self.inner.param_groups, self.inner.state = self.param_groups, self.state

    def step(self, closure=None):
        return self.inner.step(closure)


class RefusesOthers(adam.RightAdam):
    """Right, and takes no group with a flag that it does not know."""

    def load_state_dict(self, state_dict):
        if any("foreach" in group for group in state_dict["param_groups"]):
            raise ValueError("foreach is no option of this class")
        super().load_state_dict(state_dict)


class CountsAnewFromNumbers(torch.optim.Adam):
    """Takes a count that is a number, as older versions saved it, for none."""

    def load_state_dict(self, state_dict):
        state = {
            key: {name: 0.0 if type(value) is float else value for name, value in entries.items()}
            for key, entries in state_dict["state"].items()
        }
        super().load_state_dict({**state_dict, "state": state})


def flagged(player):
    """Whether a group has what torch's own alone saves."""
    return ["foreach" in group for group in player.optimizer.param_groups]


@pytest.mark.parametrize("way", ["memory", "saved", "deepcopied", "pickled"])
@pytest.mark.parametrize(
    ("make", "dictionary"),
    [(adam.RightAdam, "torch's"), (CountsInNumbers, "torch's older"), *((torch.optim.Adam, d) for d in torchs.NAMES)],
)
def test_a_class_that_passes_for_torchs_own_goes_on_from_what_that_saved(make, dictionary, way):
    trace = life("Adam", *adopted(dictionary, way), amsgrad=True, weight_decay=0.125)
    assert Trace.from_json(trace.to_json()) == trace
    subject = class_subject(make, "Adam")
    evidence, findings = found(subject, trace)
    assert [f for f in findings if f.cause != "state"] == []  # torch loads the very tensor of a counter
    assert not evidence.recording.lacks & {torchs.NOT_ALIKE, torchs.REFUSED}
    player = Player(subject, trace)
    player.play()
    assert flagged(player) == [dictionary == "torch's" or make is torch.optim.Adam]


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (HasItsOwn, torchs.NOT_ALIKE),
        (HasAnEntryMore, torchs.NOT_ALIKE),
        (StoresCorrected, torchs.NOT_ALIKE),
        (adam.EpsBeforeCorrection, ""),
        (RefusesOthers, torchs.REFUSED),
    ],
)
def test_what_could_not_have_been_its_own_is_loaded_into_no_class_and_that_is_said(make, why):
    subject, trace = class_subject(make, "Adam"), life("Adam", *adopted())
    evidence, findings = found(subject, trace)
    plain = found(subject, life("Adam", *adopted("same")))[1]
    assert [(f.check, f.cause) for f in findings] == [(f.check, f.cause) for f in plain]
    assert evidence.recording.lacks & {torchs.NOT_ALIKE, torchs.REFUSED} == {why} - {""}
    assert bool(left_out(evidence.recording.lacks)) == bool(why)
    player = Player(subject, trace)
    player.play()
    assert flagged(player) == [not why]


@pytest.mark.parametrize("make", [adam.RightAdam, StepsByAnother])
def test_numbers_are_not_loaded_into_what_counts_in_tensors(make):
    """The form that a class has today is one that it could have saved; so nothing is said of it."""
    subject, trace = class_subject(make, "Adam"), life("Adam", *adopted("torch's older"))
    evidence, findings = found(subject, trace)
    assert ([f for f in findings if f.cause != "state"], left_out(evidence.recording.lacks)) == ([], [])


def test_torchs_own_classes_go_on_from_their_own():
    for subject in (*resolve("torch:Adam[foreach]"), *resolve("fast:Adam")):
        assert [f for f in found(subject, life("Adam", *adopted()))[1] if f.cause != "state"] == []


@pytest.mark.parametrize(
    ("make", "dictionary", "right"),
    [
        (elsewhere.LoadsBuffersByPlace, "torch's", adam.RightAdam),
        (elsewhere.CountsTorchsFromOne, "torch's", adamax.RightAdamax),
        (elsewhere.NoPenaltyWithFlags, "torch's", rmsprop.RightRMSprop),
        (CountsAnewFromNumbers, "torch's older", torch.optim.Adam),
    ],
)
def test_who_misreads_torchs_own_is_found_and_its_script_fails_on_no_right_one(make, dictionary, right):
    like = next((f.like for f in elsewhere.FAULTS if f.make is make), "Adam")
    trace = life(like, *adopted(dictionary, "saved"), weight_decay=0.125)
    assert found(class_subject(right, like), trace)[1] == []
    subject = class_subject(make, like)
    assert found(subject, life(like, *adopted("same", "saved"), weight_decay=0.125))[1] == []
    _, findings = found(subject, trace)
    assert {f.check for f in findings} == {"save-load-continue"}
    assert any("torch's own class saved it" in line or "torch's own class saves it" in line
               for line in explain.life(subject, trace, findings[0]))  # fmt: skip
    script = repro.script(subject, trace, findings[0])
    assert run_here(script), script
    theirs, ours = make.__module__, right.__module__ if right.__module__.startswith("stepcheck") else "torch.optim"
    assert not run_here(script.replace(theirs, ours).replace(make.__name__, right.__name__)), script
