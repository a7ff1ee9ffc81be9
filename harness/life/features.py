"""What a life has in it, in the words that a report counts and filters by; the search is steered by finer ones (``steer.py``)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from stepcheck.harness.life.events import (
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Handle,
    Hook,
    Refuse,
    Reload,
    Run,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
    ZeroGrad,
    of_every_event,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex

#: From how many elements, parameters and groups on a life is large, or has many.
_LARGE, _MANY, _MANY_GROUPS = 4096, 30, 8


def features(trace: Trace) -> list[str]:
    """The features of a life, each once, sorted: its events, and what is special about its tensors, groups and options."""
    return sorted({*_of_tensors(trace), *_of_groups(trace), *_of_events(trace)})


def _of_tensors(trace: Trace) -> Iterator[str]:
    for p in trace.parameters:
        if is_complex(p.dtype):
            yield "complex"
        if not p.shape:
            yield "zero_dim"
        if not p.numel:
            yield "empty"
        if p.layout != "contiguous":
            yield "strided"
        if p.within is not None:
            yield "interleaved"
        if p.numel > _LARGE:
            yield "large"


def _of_groups(trace: Trace) -> Iterator[str]:
    if len(trace.parameters) > _MANY or len(trace.all_groups) > _MANY_GROUPS:
        yield "many"
    if len(trace.groups) > 1:
        yield "groups"
    if trace.form != "list":
        yield f"form_{trace.form}"
    for flag in trace.flags:
        yield f"flag_{flag}"
    if trace.spelling != "plain":
        yield f"spelling_{trace.spelling}"
    if any(isinstance(value, Scalar) for options in trace.given_options for value in options.values()):
        yield "tensor_option"


def _of_events(trace: Trace) -> Iterator[str]:
    for event in trace.events:
        yield from _EVENTS[type(event)](event)


def _of_step(step: Step) -> Iterator[str]:
    # There is one in every life.
    if step.closure or step.objective is not None:
        yield "closure"
    if step.scaling:
        yield "grad_scaling"
    if step.within:
        yield f"within_{step.within.replace(' ', '_')}"
    yield from _of_gradients(step.gradients)


def _of_gradients(gradients: Mapping[int, Gradient | None]) -> Iterator[str]:
    for g in gradients.values():
        if g is None:
            yield "no_gradient"
        elif g.sparse is not None:
            yield "sparse"
        elif g.layout != "contiguous":
            yield "strided_gradient"


def _named(name: str) -> Callable[[Event], Iterable[str]]:
    return lambda _: (name,)


_EVENTS: dict[type[Event], Callable[[Any], Iterable[str]]] = of_every_event(
    {
        Step: _of_step,
        Accumulate: lambda e: ("accumulate", *_of_gradients(e.gradients)),
        AddGroup: _named("add_group"),
        Fail: _named("failed_step"),
        Freeze: _named("freeze"),
        Hook: _named("hook"),
        Refuse: _named("invalid"),
        Reload: lambda e: ("reload", "new_tensors") if e.afresh else ("reload",),
        Schedule: _named("schedule"),
        ScheduleStep: _named("schedule"),
        SetOption: lambda e: ("set_option", "filled_in_place") if e.in_place else ("set_option",),
        Spoil: _named("malformed_state"),
        Run: _named("long"),
        Handle: lambda e: (f"handled_{e.how.replace(' ', '_')}",),
        ZeroGrad: _named("zero_grad"),
    }
)
