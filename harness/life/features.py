"""What a life has in it, in the words that a report counts and filters by; the search is steered by finer ones (``steer.py``)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from stepcheck.harness.life.events import (
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Hook,
    Refuse,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
    ZeroGrad,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex

#: By what happens in it. A step is in every life.
_EVENTS: dict[type[Event], str] = {
    Accumulate: "accumulate",
    AddGroup: "add_group",
    Fail: "failed_step",
    Freeze: "freeze",
    Hook: "hook",
    Refuse: "invalid",
    Reload: "reload",
    Schedule: "schedule",
    ScheduleStep: "schedule",
    SetOption: "set_option",
    Spoil: "malformed_state",
    ZeroGrad: "zero_grad",
}


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


def _of_groups(trace: Trace) -> Iterator[str]:
    if len(trace.groups) > 1:
        yield "groups"
    if trace.form != "list":
        yield f"form_{trace.form}"
    if any(isinstance(value, Scalar) for options in trace.given_options for value in options.values()):
        yield "tensor_option"


def _of_events(trace: Trace) -> Iterator[str]:
    for event in trace.events:
        if isinstance(event, Step):
            if event.closure or event.objective is not None:
                yield "closure"
            if event.scaling:
                yield "grad_scaling"
            yield from _of_gradients(event.gradients)
        else:
            yield _EVENTS[type(event)]
            if isinstance(event, Accumulate):
                yield from _of_gradients(event.gradients)


def _of_gradients(gradients: Mapping[int, Gradient | None]) -> Iterator[str]:
    for g in gradients.values():
        if g is None:
            yield "no_gradient"
        elif g.sparse is not None:
            yield "sparse"
        elif g.layout != "contiguous":
            yield "strided_gradient"
