"""Faults that show under a condition: beside the right optimizer each is made from, they are right without it, and wrong in it."""

import contextlib
import copy
import weakref
from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.zoo import around, handled
from stepcheck.harness.zoo.catalogue import FAULTS

CONDITIONAL = (*handled.FAULTS, *around.FAULTS)
STEPS = 8
#: Of a parameter: one more than a vector of 8, and no multiple of two threads.
SIZE = 9
#: The event at which a condition sets in, and that before which a dictionary is saved, to be loaded again.
AT, SAVED_AT = 4, 1


@dataclass
class Training:
    """What a condition is given to handle."""

    optimizer: torch.optim.Optimizer
    params: list
    saved: dict | None = None
    others: list = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A condition.

    Attributes:
        once: handles a life before one of its steps.
        within: a context that all steps from then on are taken in.
        after: handles it again before the step after that.
        options: those in which it shows; with or without it, all are given but ``spelled``.
        spelled: options that are the condition.
        plain: what stands for ``spelled`` without it.
        zeros: the gradients of that step are zeros.
        absent: there are none.
    """

    once: object = None
    within: object = None
    after: object = None
    options: dict = field(default_factory=dict)
    spelled: dict = field(default_factory=dict)
    plain: dict = field(default_factory=dict)
    zeros: bool = False
    absent: bool = False


def gradients(life, n, *, first):
    drawn = torch.Generator().manual_seed(n)
    for i, p in enumerate(life.params):
        g = torch.randn(p.shape, generator=drawn)
        p.grad = g if i or first else None


def told(value):
    if isinstance(value, torch.Tensor):
        return value.dtype, value.requires_grad, value.tolist()
    return [told(v) for v in value] if isinstance(value, list | tuple) else value


def seen(life):
    """All that anybody can see."""
    optimizer = life.optimizer
    groups = [{k: told(v) for k, v in g.items() if k in SEEN} for g in optimizer.param_groups]
    states = [{k: told(v) for k, v in optimizer.state.get(p, {}).items()} for p in life.params]
    graphs = [p.grad is not None and p.grad.grad_fn is not None for p in life.params]
    present = [p.grad is not None for p in life.params]
    return [told(p) for p in life.params], states, groups, graphs, present, torch.is_grad_enabled()


SEEN = (
    "lr", "momentum", "dampening", "nesterov", "betas", "eps", "weight_decay", "maximize", "amsgrad", "centered", "alpha",
    "etas", "step_sizes", "initial_accumulator_value", "lr_decay", "momentum_decay",
)  # fmt: skip


def lived(make, case, *, condition):
    """What is seen of each step of a life, up to the one that raises."""
    torch.manual_seed(0)
    options = copy.deepcopy(case.options | (case.spelled if condition else case.plain))
    params = [torch.randn(SIZE).requires_grad_() for _ in range(4)]
    life = Training(make([{"params": params[:2]}, {"params": params[2:3]}], **options), params)
    log, kept = [], []
    try:
        for n in range(STEPS):
            if n == SAVED_AT:
                life.optimizer.add_param_group({"params": params[3:]})
                life.saved = copy.deepcopy(life.optimizer.state_dict())
            if not condition and n == AT:
                saved = copy.deepcopy(life.optimizer.state_dict())
                life.optimizer = make([{"params": params[:2]}, {"params": params[2:3]}, {"params": params[3:]}])
                life.optimizer.load_state_dict(saved)
            life.optimizer.zero_grad()
            if not (condition and case.absent and n == AT):
                gradients(life, n, first=n > 0)
            if condition and case.zeros and n == AT:
                life.optimizer.zero_grad(set_to_none=False)
            if condition and case.once and n == AT:
                case.once(life)
            if condition and case.after and n == AT + 1:
                case.after(life)
            with case.within(life) if condition and case.within and n >= AT else contextlib.nullcontext():
                life.optimizer.step()
                kept += [weakref.ref(p.grad) for p in params if p.grad is not None]
                log.append(seen(life))
    except Exception as error:  # noqa: BLE001 - to raise is to be wrong
        return [*log, type(error).__name__]
    return [*log, sum(ref() is not None for ref in kept)]


# What is done


def each(handle):
    """Handles every parameter."""

    def all_of_them(life):
        with torch.no_grad():
            for p in life.params:
                handle(p)

    return all_of_them


clamp = each(lambda p: p.copy_(p.clamp(-0.5, 0.5)))


def other_memory(life):
    for p in life.params:
        p.data = p.data.clone() / 2


def clear(life):
    life.optimizer.state.clear()


def replace_state(life):
    life.optimizer.state = defaultdict(dict)


def delete_one(life):
    del life.optimizer.state[life.params[0]]


def roll_back(life):
    life.optimizer.load_state_dict(copy.deepcopy(life.saved))


def saved_before(name, value):
    """An option is set when the dictionary has been saved, and again once it is loaded."""
    both = setting(name, value)

    def once(life):
        both(life)

    def after(life):
        roll_back(life)
        both(life)

    return {"once": once, "after": after}


def remove_first(life):
    life.optimizer.param_groups[0]["params"].pop(0)


def append(life):
    p = torch.ones(SIZE, requires_grad=True)
    p.grad = torch.full((SIZE,), 0.5)
    life.params.append(p)
    life.optimizer.param_groups[0]["params"].append(p)


def clear_unstepped(life):
    life.optimizer.zero_grad()


def fill_lr(life):
    for group in life.optimizer.param_groups:
        group["lr"].fill_(0.5)


def setting(name, value):
    def set_it(life):
        for group in life.optimizer.param_groups:
            group[name] = value

    return set_it


def replace_groups(life):
    life.optimizer.param_groups[0] = {**life.optimizer.param_groups[0], "lr": 0.5}


# Where it is done


@contextlib.contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def one_thread(life):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def beside_another(life):
    p = torch.ones(SIZE, requires_grad=True)
    p.grad = torch.ones(SIZE)
    life.others.append(type(life.optimizer)([p]))
    life.others[-1].step()
    yield


@contextlib.contextmanager
def graphs(life):
    for p in life.params:
        p.grad = p.grad.requires_grad_() * 1.0
    yield


def ungraded(life):
    return torch.no_grad()


def autocast(life):
    return torch.autocast("cpu", torch.bfloat16)


def bfloat16(life):
    return default_dtype(torch.bfloat16)


def double(life):
    return default_dtype(torch.float64)


MOMENTUM = {"lr": 0.1, "momentum": 0.9}
NESTEROV = {**MOMENTUM, "nesterov": True}
FILLED = {"once": fill_lr, "options": {"lr": torch.tensor(0.1)}}

CASES = {
    handled.StepsFromOwnCopy: Case(clamp),
    handled.DecaysOwnCopy: Case(clamp, options={"lr": 0.1}),
    handled.PenalizesOwnCopy: Case(clamp, options={"weight_decay": 0.1}),
    handled.WritesToFirstMemory: Case(other_memory),
    handled.ReadsFirstMemory: Case(other_memory),
    handled.BeginsAnewInOtherMemory: Case(other_memory, options=MOMENTUM),
    handled.KeepsClearedState: Case(clear, options=MOMENTUM),
    handled.KeepsReplacedState: Case(replace_state),
    handled.StartsOnce: Case(clear),
    handled.DampensAfterClearing: Case(delete_one, options={**MOMENTUM, "dampening": 0.5}),
    handled.CountsOn: Case(delete_one),
    handled.KeepsMaximum: Case(clear, options={"amsgrad": True}),
    handled.ClearsAllForOne: Case(delete_one),
    handled.RestartsFromZero: Case(clear, options={"initial_accumulator_value": 0.5}),
    handled.KeepsProduct: Case(clear),
    handled.MergesState: Case(roll_back),
    handled.KeepsLaterBuffers: Case(roll_back, options=MOMENTUM),
    handled.KeepsLaterCount: Case(roll_back),
    handled.KeepsFirstBuffers: Case(roll_back, options=MOMENTUM),
    handled.KeepsOwnOptions: Case(setting("lr", 0.5), after=roll_back),
    handled.KeepsOwnState: Case(roll_back),
    handled.KeepsLowerLr: Case(setting("lr", 1e-4), after=roll_back),
    handled.LoadsFirstGroup: Case(roll_back),
    handled.MergesEntries: Case(**saved_before("momentum", 0.9)),
    handled.StepsRemoved: Case(remove_first),
    handled.MissesAppended: Case(append),
    handled.PairsByPlace: Case(remove_first),
    handled.CountsParameters: Case(append),
    handled.GoesOnAlongCleared: Case(absent=True),
    handled.SkipsZeros: Case(zeros=True, options=MOMENTUM),
    handled.ClearsSteppedOnly: Case(clear_unstepped),
    handled.ReadsTensorOnce: Case(**FILLED),
    handled.DecaysByTensorAsItWas: Case(**FILLED),
    handled.NeedsBuffer: Case(setting("momentum", 0.9)),
    handled.GoesOnAlongResting: Case(setting("momentum", 0.0), options=MOMENTUM),
    handled.MaximumGoesOn: Case(setting("amsgrad", value=False), options={"amsgrad": True}),
    handled.CannotRest: Case(setting("centered", value=False), options={"centered": True}),
    handled.MomentumStaysOff: Case(setting("momentum", 0.9)),
    handled.NesterovAsAtFirst: Case(setting("nesterov", value=False), options=NESTEROV),
    handled.MaximizesAsAtFirst: Case(setting("maximize", value=True)),
    handled.CentersAsAtFirst: Case(setting("centered", value=False), options={"centered": True}),
    handled.MaximumAsAtFirst: Case(setting("amsgrad", value=False), options={"amsgrad": True}),
    handled.DecayStaysOff: Case(setting("weight_decay", 0.1)),
    handled.ReadsFirstGroups: Case(replace_groups),
    handled.StepsFormerGroups: Case(replace_groups),
    around.LeavesGradientsOn: Case(within=ungraded),
    around.DifferentiatesPenalty: Case(within=ungraded, options={"weight_decay": 0.1}),
    around.RestsWithoutGradients: Case(within=ungraded),
    around.MultipliesMatrices: Case(within=autocast),
    around.RoundsAsAutocast: Case(within=autocast),
    around.AveragesInDefaultDtype: Case(within=bfloat16),
    around.RoundsLrToDefaultDtype: Case(within=bfloat16),
    around.NeedsDefaultDtype: Case(within=double),
    around.DividesAmongFirstThreads: Case(within=one_thread),
    around.AveragesOverFirstThreads: Case(within=one_thread),
    around.SharesWorkspace: Case(within=beside_another, options=MOMENTUM),
    around.CountsForTheClass: Case(within=beside_another),
    around.KeepsGraph: Case(within=graphs, options=MOMENTUM),
    around.WritesThroughGraph: Case(within=graphs),
    around.DetachesGradient: Case(within=graphs),
    around.KeepsPastGradients: Case(within=graphs),
    around.ForeachNeverDecays: Case(spelled={"foreach": True}, options={"weight_decay": 0.1}),
    around.ForeachLooksBack: Case(spelled={"foreach": True}, options=NESTEROV),
    around.ForeachSkipsLast: Case(spelled={"foreach": True}),
    around.ForeachCountsFirst: Case(spelled={"foreach": True}),
    around.ForeachNeverCenters: Case(spelled={"foreach": True}, options={"centered": True}),
    around.FusedNeverWrites: Case(spelled={"fused": True}),
    around.FusedMinimizes: Case(spelled={"fused": True}, options={"maximize": True}),
    around.FusedDropsTail: Case(spelled={"fused": True}, once=append),
    around.FusedDecaysAfter: Case(spelled={"fused": True}, options={"lr": 0.1}),
    around.FusedForgetsMaximum: Case(spelled={"fused": True}, options={"amsgrad": True}),
    around.CapturableCountsFromZero: Case(spelled={"capturable": True}),
    around.CapturableHalvesPrecision: Case(spelled={"capturable": True}),
    around.CapturableKeepsLr: Case(setting("lr", 0.5), spelled={"capturable": True}),
    around.CapturableStaleBuffer: Case(spelled={"capturable": True}, options=MOMENTUM),
    around.DifferentiableEpsInside: Case(spelled={"differentiable": True}, options={"eps": 0.1}),
    around.DifferentiableNeverDampens: Case(spelled={"differentiable": True}, options={**MOMENTUM, "dampening": 0.5}),
    around.TruncatesByWholeLr: Case(spelled={"lr": 1}, plain={"lr": 1.0}),
    around.TakesFloatsOnly: Case(spelled={"lr": 1}, plain={"lr": 1.0}),
    around.IgnoresWholeDecay: Case(spelled={"weight_decay": 1}, plain={"weight_decay": 1.0}),
    around.DecaysByDefault: Case(spelled={"weight_decay": 0}, plain={"weight_decay": 0.0}),
    around.HashesBetas: Case(spelled={"betas": [0.9, 0.999]}, plain={"betas": (0.9, 0.999)}),
    around.WritesToBetas: Case(spelled={"betas": [0.9, 0.999]}, plain={"betas": (0.9, 0.999)}),
    around.TakesPairsOnly: Case(spelled={"betas": [0.5, 0.9]}, plain={"betas": (0.5, 0.9)}),
    around.JoinsPairs: Case(spelled={"etas": [0.5, 1.2]}, plain={"etas": (0.5, 1.2)}),
    around.IgnoresNumPy: Case(spelled={"lr": np.float32(0.5)}, plain={"lr": 0.5}),
    around.TruncatesNumPy: Case(spelled={"momentum": np.float64(0.9)}, plain={"momentum": 0.9}),
    around.HalvesNumPyEps: Case(spelled={"eps": np.float64(0.1)}, plain={"eps": 0.1}),
    around.DividesLrInPlace: Case(spelled={"lr": torch.tensor(0.1)}, plain={"lr": 0.1}, options={"lr_decay": 0.1}),
    around.KnowsLrByHex: Case(spelled={"lr": 1}, plain={"lr": 1.0}),
    around.NesterovIsTrue: Case(spelled={"nesterov": 1}, plain={"nesterov": True}, options=MOMENTUM),
    around.MaximizesTrue: Case(spelled={"maximize": 1}, plain={"maximize": True}),
    around.AmsgradIsNotFalse: Case(spelled={"amsgrad": 0}, plain={"amsgrad": False}),
}


def named(faults):
    return [pytest.param(fault, id=fault.name) for fault in faults]


def right(fault):
    """The right optimizer that a fault is put into."""
    return next(cls for cls in fault.make.__mro__ if cls.__name__.startswith(("Flagged", "Right")))


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("fault", named(CONDITIONAL))
def test_without_its_condition_a_fault_is_right(fault):
    """Bit for bit, in a life with late gradients, an added group and a dictionary that a new optimizer loads."""
    case = CASES[fault.make]
    assert lived(fault.make, case, condition=False) == lived(right(fault), case, condition=False)


@pytest.mark.parametrize("fault", named(CONDITIONAL))
def test_in_its_condition_a_fault_is_wrong(fault):
    case = CASES[fault.make]
    theirs = lived(right(fault), case, condition=True)
    assert len(theirs) == STEPS + 1, theirs[-1]  # it never raises
    assert lived(fault.make, case, condition=True) != theirs


def test_each_fault_has_a_condition_a_name_and_a_check():
    assert {fault.make for fault in CONDITIONAL} == CASES.keys()
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.told.endswith(".") and set(fault.checks) <= set(CHECKS) for fault in CONDITIONAL)


@pytest.mark.parametrize(("kind", "least"), [("handled", 24), ("surroundings", 12), ("switched", 12), ("spelled", 12)])
def test_there_are_many_of_each_kind(kind, least):
    assert sum(fault.kind == kind for fault in FAULTS) >= least
