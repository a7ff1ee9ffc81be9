"""The invariants can be red, and are asked, where a class's formula is another than the reference's."""

import random

import pytest
import torch
from accused import accused

from stepcheck import check_optimizer
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.twins import TWINS
from stepcheck.harness.life.events import AddGroup, Gradient, Group, Parameter, Reload, Spoil, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play import spoil
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.telling.repro import script
from stepcheck.harness.zoo.catalogue import FAULTS

INVARIANTS = {*TWINS, "option-effect"}


class Signum(torch.optim.Optimizer):
    """Right, of a formula of its own: steps by the sign of a momentum, with decoupled weight decay."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False):
        options = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay}
        super().__init__(params, options | {"nesterov": nesterov, "maximize": maximize})
        self.steps = 0

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.steps += 1
        for n, group in enumerate(self.param_groups):
            for k, p in enumerate(group["params"]):
                if p.grad is not None:
                    self.update(p, group, n, k)
        return loss

    def update(self, p, group, n, k):
        g = self.gradient(p, group)
        if group["momentum"]:
            state = self.state[p]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = g.clone()
            else:
                state["momentum_buffer"].mul_(group["momentum"]).add_(g, alpha=1 - group["dampening"])
            b = state["momentum_buffer"]
            g = g + group["momentum"] * b if group["nesterov"] else b
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(g.sign() * self.rate(group, n, k))

    def gradient(self, p, group):
        return -p.grad if group["maximize"] else p.grad

    def rate(self, group, n, k):
        return group["lr"]


class OfGroupZero(Signum):
    """Every group steps with the learning rate of group 0."""

    def rate(self, group, n, k):
        return self.param_groups[0]["lr"]


class ByPosition(Signum):
    """The order of the parameters scales the step."""

    def rate(self, group, n, k):
        return group["lr"] * (1 + 0.1 * k)


class Forgetful(Signum):
    """Its rate decays with a counter that a state_dict does not have."""

    def rate(self, group, n, k):
        return group["lr"] / self.steps**0.5


class OfGroupsAge(Signum):
    """Right as well: its rate decays with the steps of the group, which the group keeps, whoever has a gradient."""

    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            group["steps"] = group.get("steps", 0) + 1
        return loss

    def rate(self, group, n, k):
        return group["lr"] / (1 + group.get("steps", 0)) ** 0.5


class Minimizer(Signum):
    """Takes no notice of ``maximize``."""

    def gradient(self, p, group):
        return p.grad


class Undecayed(Signum):
    """Takes no notice of ``weight_decay``."""

    def update(self, p, group, n, k):
        super().update(p, {**group, "weight_decay": 0.0}, n, k)


class Drawing(Signum):
    """Not deterministic: no two lives are alike, so that no two can be compared."""

    def update(self, p, group, n, k):
        super().update(p, group, n, k)
        p.add_(random.SystemRandom().random())


class OfItsAge(Signum):
    """Right as well: its rate decays with its own steps, whatever groups there were."""

    taken = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.taken += 1
        return loss

    def rate(self, group, n, k):
        return group["lr"] / (1 + self.taken) ** 0.5


#: A few, and as many as it takes to see what is rare.
LIVES = [40, pytest.param(120, marks=pytest.mark.slow)]


@pytest.mark.parametrize("lives", LIVES)
@pytest.mark.parametrize("make", [Signum, OfGroupsAge])
def test_a_right_class_with_a_formula_of_its_own_breaks_no_invariant(make, lives):
    """And each of them was asked: two lives were compared in each."""
    failed, result = accused(make, "SGD", examples=lives)
    assert failed == {"agreement"}
    assert all(result.tallies[name].looked > 0 for name in INVARIANTS)


@pytest.mark.parametrize("lives", LIVES)
@pytest.mark.parametrize(
    ("make", "check"),
    [
        (OfGroupZero, "groups-independent"),
        (ByPosition, "order-of-parameters"),
        (Forgetful, "save-load-continue"),
        (Minimizer, "maximize-mirrors"),
        (Undecayed, "option-effect"),
    ],
)
def test_a_broken_invariant_is_seen_where_the_formula_is_another(make, check, lives):
    failed, _ = accused(make, "SGD", examples=lives)
    assert failed == {"agreement", check}


class OfTheGroupAdded(Signum):
    """A group that is added steps with the learning rate of group 0."""

    def rate(self, group, n, k):
        return self.param_groups[0]["lr"] if n else group["lr"]


class HalvesItsKeyword(Signum):
    """What it is given as a keyword is half of what a group says."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr / 2)


@pytest.mark.parametrize("added", [False, True])
def test_a_group_alone_is_given_its_options_as_beside_the_others(added):
    p = Parameter((1,), "float32", "contiguous", Values("constant", high=1.0))
    gradient = Gradient(Values("constant", high=0.5))
    groups = tuple(Group((n,), {"lr": 0.5}) for n in range(3))
    events = (*(AddGroup(g) for g in groups[2:] if added), Step(dict.fromkeys(range(3 if added else 2), gradient)))
    trace = Trace("SGD", (p,) * (3 if added else 2), groups[:2], events)
    evidence = Evidence(class_subject(HalvesItsKeyword, "SGD"), trace)
    assert not list(CHECKS["groups-independent"].find(evidence))
    assert CHECKS["groups-independent"].looks_at(evidence) > 0


def added_later():
    """The life of an added group, which begins after a step of the other one."""
    p = Parameter((1,), "float32", "contiguous", Values("constant", high=1.0))
    gradient = Gradient(Values("constant", high=0.5))
    events = (Step({0: gradient}), AddGroup(Group((1,), {"lr": 0.5})), Step({0: gradient, 1: gradient}))
    return Trace("SGD", (p, p), (Group((0,), {}),), events)


@pytest.mark.parametrize("make", [OfGroupsAge, OfItsAge])
def test_a_group_that_is_added_may_see_the_steps_before_or_not(make):
    evidence = Evidence(class_subject(make, "SGD"), added_later())
    assert CHECKS["groups-independent"].looks_at(evidence) > 0
    assert not list(CHECKS["groups-independent"].find(evidence))


def test_the_script_of_a_group_that_is_added_begins_with_it():
    subject = class_subject(OfTheGroupAdded, "SGD")
    (finding,) = CHECKS["groups-independent"].find(Evidence(subject, added_later()))
    text = script(subject, added_later(), finding)
    assert text.count("optimizer.step()") == 3
    with pytest.raises(AssertionError, match=r"0\.999\d* is not 0\.5 "):
        exec(compile(text, "script", "exec"), {})


@pytest.mark.parametrize("check", ["groups-independent", "order-of-parameters"])
def test_what_no_two_lives_can_show_is_not_looked_at(check):
    """So that the verdict is unknown, where the right class of the same formula is looked at."""
    parameters = (Parameter((1,), "float32", "contiguous", Values("constant", high=1.0)),) * 3
    events = (Step(dict.fromkeys(range(3), Gradient(Values("constant", high=0.5)))),)
    trace = Trace("SGD", parameters, (Group((0, 1), {}), Group((2,), {})), events)
    drawing, right = (Evidence(class_subject(make, "SGD"), trace) for make in (Drawing, Signum))
    assert CHECKS[check].looks_at(drawing) == 0
    assert not list(CHECKS[check].find(drawing))
    assert CHECKS[check].looks_at(right) > 0


def skewed(make):
    """The same class with another formula: it goes half as far again."""

    def step(self, closure=None):
        parameters = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in parameters]
        result = make.step(self) if closure is None else make.step(self, closure)
        with torch.no_grad():
            for p, old in zip(parameters, before, strict=True):
                if not torch.equal(p, old):
                    p.copy_(p + 0.5 * (p - old))
        return result

    return type(f"Skewed{make.__name__}", (make,), {"step": step})


#: Parameters do not show it: it keeps the momentum of the turned gradient, which a formula of one's own may do.
UNSEEN = ("TurnsUpdateSGD",)
NAMED = [
    f
    for f in FAULTS
    if f.checks
    and set(f.checks) <= INVARIANTS
    and f.like not in ("LBFGS", "Muon", "SparseAdam")
    and f.make.__name__ not in UNSEEN
]


#: What shows where two rare things come together: an option, and a group that is added.
RARE = [f for f in NAMED if f.make.__name__.startswith("IgnoresAdded")]


@pytest.mark.sampled(6)
@pytest.mark.parametrize("fault", [pytest.param(f, id=f.name) for f in NAMED if f not in RARE])
def test_the_invariants_kill_their_faults_without_a_reference(fault):
    """The formula deviates in every step, so no agreement with the reference can tell."""
    failed, _ = accused(skewed(fault.make), fault.like, until=fault.checks, examples=60)
    assert failed & set(fault.checks)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [pytest.param(f, id=f.name) for f in RARE])
def test_it_takes_them_longer_to_kill_what_shows_rarely(fault):
    failed, _ = accused(skewed(fault.make), fault.like, until=fault.checks, examples=800)
    assert failed & set(fault.checks)


def test_the_twin_of_a_life_is_told():
    """Both lives are named, and the two numbers differ in the digits that are shown."""
    p = Parameter((1,), "float32", "contiguous", Values("constant", high=1.0))
    gradient = Gradient(Values("constant", high=0.5))
    events = (Step({0: gradient}), Reload(), Step({0: gradient}))
    evidence = Evidence(class_subject(Forgetful, "SGD"), Trace("SGD", (p,), (Group((0,), {}),), events))
    (finding,) = CHECKS["save-load-continue"].find(evidence)
    assert finding.summary.startswith("after a state_dict round trip, the parameter, element (0,), becomes 0.998")
    assert finding.summary.endswith("without one")


def test_a_class_that_agrees_with_its_reference_is_not_asked_twice(tmp_path):
    """The reference answers for it: the second lives cost nothing where they are not needed."""

    class Mine(torch.optim.SGD):
        pass

    report = check_optimizer(Mine, "SGD", examples=20, out=tmp_path)
    assert report.verdict == "pass"
    p = Parameter((1,), "float32", "contiguous", Values("constant", high=1.0))
    trace = Trace("SGD", (p,), (Group((0,), {}),), (Step({0: Gradient(Values("constant", high=0.5))}),))
    assert not Evidence(class_subject(Mine, "SGD"), trace).needs_twins


def test_malformed_state_is_asked_in_a_life_and_not_in_its_twins(monkeypatch):
    """What it does there says nothing of where the twins arrive, and takes longer than the rest of a life."""
    asked = []

    def arrival(trial):
        asked.append(trial)

    monkeypatch.setattr(spoil.Trial, "arrival", arrival)
    p = Parameter((2,), "float32", "contiguous", Values("constant", high=1.0))
    gradient = Gradient(Values("constant", high=0.5))
    events = (Step({0: gradient, 1: gradient}), Spoil("empty"), Step({0: gradient, 1: gradient}))
    trace = Trace("SGD", (p, p), (Group((0,), {}), Group((1,), {"lr": 0.5})), events)
    evidence = Evidence(class_subject(OfGroupZero, "SGD"), trace)
    (finding,) = CHECKS["groups-independent"].find(evidence)
    assert "groups-independent" in str(finding)
    assert len(asked) == evidence.recording.looked["malformed-state"] == 1
