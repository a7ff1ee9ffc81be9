"""Known of the life around the steps: loading, copying, groups, hooks, gradients that are refused."""

from __future__ import annotations

import inspect
import re
from typing import Any

import torch

from stepcheck.harness.known.entry import ALL, Kind
from stepcheck.harness.known.seen import Seen
from stepcheck.harness.life.events import Fail, Reload, Scalar, Schedule, ScheduleStep, SetOption
from stepcheck.reference.spec import PARAMETER

KIND = Kind()


@KIND.enter(
    "load-state-dict-shares-tensors",
    "load_state_dict keeps the tensors of the dictionary where their dtype and device fit: two optimizers then step one state",
    ALL,
    "loaded-state-apart",
    link="https://github.com/pytorch/pytorch/issues/196083",
    inherited="load_state_dict",
)
def shares_loaded_tensors(seen: Seen) -> bool:
    return isinstance(seen.event, Reload) and seen.event.way == "memory"


@KIND.enter(
    "add-param-group-writes-the-callers-dictionary",
    "the dictionaries of groups are kept and filled with defaults: the caller's own change, and go on changing with the optimizer",
    ALL,
    "dicts-unchanged",
    inherited="add_param_group",
)
def writes_the_callers_dictionary(seen: Seen) -> bool:
    return seen.finding.cause in ("the groups given to the constructor", "the group given to add_param_group()")


@KIND.enter(
    "groups-share-the-tensor-lr",
    "a learning rate that is a tensor and given once is one tensor for all groups: a schedule that fills it for one fills it for all",
    ALL,
    "options-hold agreement groups-independent option-effect",
)
def shares_the_tensor_lr(seen: Seen) -> bool:
    rates = {g.options.get("lr") for g in seen.trace.groups}
    shared = len(seen.trace.groups) > 1 and len(rates) == 1 and isinstance(rates.pop(), Scalar)
    before = seen.trace.events[: (seen.finding.event or 0) + 1]
    about = seen.finding.cause == "option lr" or seen.field == PARAMETER
    return shared and about and any(isinstance(e, (Schedule, ScheduleStep)) for e in before)


class StepsBySuper(torch.optim.SGD):
    """A class as many are: its step is that of torch's class, and something else."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@KIND.enter(
    "super-step-runs-hooks-again",
    "the step of a class and the step of torch's class that it calls by super() are both patched to run the hooks: they run twice",
    ALL,
    "hooks-run-once",
    inherited="_patch_step_function",
)
def runs_hooks_again(seen: Seen) -> bool:
    built = seen.evidence.recording.built
    above = [] if built is None else built.__mro__[1:]
    descends = any(getattr(torch.optim, c.__name__, None) is c is not torch.optim.Optimizer for c in above)
    # Or its step calls that of another class which is not torch's.
    descends = descends or (built is not None and _calls_step_above(built))
    counted = re.search(r"(\d+) times, not (\d+)", seen.finding.summary)
    return descends and counted is not None and int(counted[1]) == 2 * int(counted[2])


def _calls_step_above(built: type) -> bool:
    """Whether the step of a class calls, by super(), one that stands in another class of its own."""
    own = inspect.unwrap(vars(built).get("step", object))
    names = getattr(getattr(own, "__code__", None), "co_names", ())
    above = (c for c in built.__mro__[1:] if c is not torch.optim.Optimizer)
    return {"super", "step"} <= set(names) and any("step" in vars(c) for c in above)


def _went_through_a_copy(seen: Seen) -> bool:
    return any(
        isinstance(e, Reload) and e.way in ("copied", "unpickled") for e in seen.trace.events[: seen.finding.event]
    )


@KIND.enter(
    "copies-lose-attributes",
    "__getstate__ names defaults, state and param_groups alone: what else a class sets in __init__ is missing after copy or pickle",
    ALL,
    "completes",
    inherited="__getstate__",
)
def loses_attributes(seen: Seen) -> bool:
    # Of torch's own classes, LBFGS alone sets others.
    others = seen.evidence.subject.explicit or seen.evidence.subject.spec.name == "LBFGS"
    return others and seen.message.startswith("AttributeError: ") and _went_through_a_copy(seen)


@KIND.enter(
    "copies-lose-gradient-scaling",
    "after copy or pickle a fused optimizer does not tell GradScaler any more that it unscales itself, and float16 is refused",
    "SGD Adam AdamW Adagrad",
    "completes",
    "fused",
)
def loses_gradient_scaling(seen: Seen) -> bool:
    return "Attempting to unscale FP16 gradients" in seen.message and _went_through_a_copy(seen)


@KIND.enter(
    "parameters-before-a-refused-gradient-are-stepped",
    "a gradient is looked at when its turn comes: groups and parameters before it have been stepped when it is refused",
    ALL,
    "failed-step",
)
def steps_those_before_a_refused_one(seen: Seen) -> bool:
    concerned, event, of = seen.finding.parameter, seen.event, seen.trace.group_of
    if not isinstance(event, Fail) or event.kind not in ("gradient", "dtype") or concerned in (None, event.parameter):
        return False
    # Of one group, foreach takes the dtypes in an order of its own.
    return of[concerned] <= of[event.parameter]


@KIND.enter(
    "other-dtype-is-refused-half-way",
    "a gradient of another dtype is refused by the first operation that minds: state is created, steps are counted, weights decayed before",
    ALL,
    "failed-step",
)
def refuses_half_way(seen: Seen) -> bool:
    event = seen.event
    return isinstance(event, Fail) and event.kind == "dtype" and seen.finding.parameter == event.parameter


@KIND.enter(
    "buffer-turned-on-later",
    "buffers are made in the first step alone: momentum, centered or amsgrad, turned on later, finds none: KeyError",
    "RMSprop Adam AdamW",
    "completes",
)
def finds_no_buffer(seen: Seen) -> bool:
    events = seen.trace.events
    turned = {e.option for e in events if isinstance(e, SetOption)}
    if any(isinstance(e, Schedule) and e.kind in ("OneCycleLR", "CyclicLR") for e in events):
        turned.add("momentum")
    needed = {"momentum": "momentum_buffer", "centered": "grad_avg", "amsgrad": "max_exp_avg_sq"}
    return any(option in turned and seen.message == f"KeyError: {b!r}" for option, b in needed.items())


@KIND.enter(
    "fused-sgd-skipped-first-step-leaves-garbage",
    "a first step that gradient scaling skips leaves momentum buffers that were allocated and never filled",
    "SGD",
    "skipped-step",
    "fused",
)
def leaves_an_unfilled_buffer(seen: Seen) -> bool:
    return seen.finding.cause == "momentum_buffer"


@KIND.enter(
    "sgd-nesterov-looks-at-keywords-alone",
    "nesterov as a keyword is refused although the groups have momentum: the constructor looks at its own keywords alone",
    "SGD",
    "completes",
)
def looks_at_keywords_alone(seen: Seen) -> bool:
    return "Nesterov momentum requires a momentum and zero dampening" in seen.message
