"""Does a life run, and does a step leave alone what is not its own? Asked of what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from stepcheck.harness.checking.check import asks, breaches, steps_judged
from stepcheck.harness.checking.findings import Finding, event_name
from stepcheck.harness.checking.witness import SAME, Witness, Writer
from stepcheck.harness.life.events import (
    ZeroGrad,
)
from stepcheck.harness.life.memory import GUARD, GUARD_ELEMENTS, Raw, identical, room, strides
from stepcheck.harness.play.resume import AGED_BY
from stepcheck.harness.play.subjects import Subject

if TYPE_CHECKING:
    from stepcheck.harness.checking.case import Evidence

#: The cause of a gradient that is taken away where it should have been cleared.
_TAKEN = "gradient taken"


def _closure_writes(subject: Subject) -> str:
    return "the closure writes all gradients during the step" if subject.spec.closure else ""


def _idle(evidence: Evidence) -> int:
    return sum(parameter.gradient is None for s in evidence.recording.steps for parameter in s.parameters)


@asks(
    "completes",
    "Does a valid life run without an exception?",
    lambda e: 1 + len(e.trace.events),
    witness=Witness(raises=True),
)
def completes(evidence: Evidence) -> Iterator[Finding]:
    raised = evidence.recording.raised
    if raised is not None:
        event = "the constructor" if raised.event is None else event_name(evidence.trace, raised.event)
        where = f"step(), one of {AGED_BY} with gradients of zeros," if raised.ageing else event
        yield Finding(
            "completes",
            # Not the message: what it quotes, such as a tensor, differs from life to life.
            f"{raised.kind} in {raised.frame or where}",
            raised.event,
            f"{where} raises {raised.kind}: {raised.message.splitlines()[0][:200] if raised.message else '(no message)'}",
        )


def _guards_stand(writer: Writer) -> Sequence[str]:
    i = writer.finding.parameter
    assert i is not None
    p, host = writer.trace.parameters[i], writer.inside.get(i, i)
    starts = [GUARD_ELEMENTS, *(GUARD_ELEMENTS + 1 for h in writer.inside.values() if h == host)]
    size, strided = room(p.shape, p.layout), f"{p.shape}, {strides(p.shape, p.layout)}"
    return [
        f"own = torch.zeros({size}, dtype=torch.bool)",
        *(f"own.as_strided({strided}, {start}).fill_(True)" for start in starts),
        f"memory = params[{i}].detach().as_strided(({size},), (1,), 0)",
        f"assert (memory[~own] == torch.tensor({GUARD!r}, dtype=memory.dtype)).all(), memory",
    ]


@asks(
    "memory-beside",
    "Is memory beside the parameter left alone?",
    steps_judged,
    witness=Witness(_guards_stand, guarded=True),
)
def memory_beside(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, parameter in enumerate(step.parameters):
            if parameter.beside_written:
                p = evidence.trace.parameters[i]
                yield Finding(
                    "memory-beside",
                    p.layout,
                    step.event,
                    f"step() writes to memory beside the parameter ({p.layout})",
                    i,
                )
                return


def _gradient_is_equal(writer: Writer) -> Sequence[str]:
    i = writer.finding.parameter
    same = f"torch.equal(params[{i}].grad.nan_to_num(), before[{i}].nan_to_num())"
    return [f"assert {same}, (before[{i}], params[{i}].grad)"]


@asks(
    "gradient-unwritten",
    "Is the gradient left as it was?",
    steps_judged,
    _closure_writes,
    witness=Witness(
        _gradient_is_equal, lambda _: ["before = [None if p.grad is None else p.grad.clone() for p in params]"]
    ),
)
def gradient_unwritten(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, parameter in enumerate(step.parameters):
            if parameter.gradient_written:
                yield Finding("gradient-unwritten", "gradient", step.event, "step() writes to the gradient", i)
                return


def _value_and_state(writer: Writer) -> Sequence[str]:
    i = writer.finding.parameter
    return [f"before, state = params[{i}].detach().clone(), str(optimizer.state[params[{i}]])"]


def _same_value_and_state(writer: Writer) -> Sequence[str]:
    i = writer.finding.parameter
    return [
        f"assert str(before) == str(params[{i}].detach()), (before, params[{i}])",
        f"assert state == str(optimizer.state[params[{i}]]), (state, optimizer.state[params[{i}]])",
    ]


@asks(
    "no-gradient",
    "Does a parameter without a gradient keep its value and state?",
    _idle,
    _closure_writes,
    witness=Witness(_same_value_and_state, _value_and_state),
)
def no_gradient(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, parameter in enumerate(step.parameters):
            if parameter.gradient is not None:
                continue
            if parameter.value_after.tobytes() != parameter.value.tobytes():
                yield Finding("no-gradient", "value", step.event, "step() changes a parameter that has no gradient", i)
                return
            for name, before in parameter.state.items():
                if _is_shared_count(evidence, i, name, before):
                    continue
                if name not in parameter.state_after or not identical(parameter.state_after[name], before):
                    summary = f"step() changes {name} of a parameter that has no gradient"
                    yield Finding("no-gradient", name, step.event, summary, i)
                    return


def _is_shared_count(evidence: Evidence, index: int, name: str, value: Raw | float) -> bool:
    """Whether it may be a number that somebody's class keeps for all parameters, in the state of a group's first: it may count the calls."""
    subject = evidence.subject
    known = {b.name for b in subject.spec.buffers}
    first = any(index == g.parameters[0] for g in evidence.trace.all_groups if g.parameters)
    return subject.explicit and first and name not in known and np.size(value) == 1


def _one_s_own(writer: Writer) -> Sequence[str]:
    i = writer.finding.parameter
    about_gradients = writer.finding.cause in ("gradient", _TAKEN)
    return [] if about_gradients else [f"before = str([params[{i}].detach(), optimizer.state[params[{i}]]])"]


def _nothing_between(writer: Writer) -> Sequence[str]:
    i, cause, event = writer.finding.parameter, writer.finding.cause, writer.event
    if cause == _TAKEN:
        return [f"assert params[{i}].grad is not None"]
    if cause == "gradient":
        filled = "" if isinstance(event, ZeroGrad) and event.set_to_none else f" or not params[{i}].grad.any()"
        return [f"assert params[{i}].grad is None{filled}, params[{i}].grad"]
    return [f"after = str([params[{i}].detach(), optimizer.state[params[{i}]]])", SAME]


@asks(
    "between-steps",
    "Does nothing but step() change parameters and state, and does zero_grad clear the gradients?",
    lambda e: len(e.recording.idle),
    witness=Witness(_nothing_between, _one_s_own),
)
def between_steps(evidence: Evidence) -> Iterator[Finding]:
    for idle in evidence.recording.idle:
        where = event_name(evidence.trace, idle.event)
        for i, names in enumerate(idle.touched):
            if names:
                what = "the parameter" if names[0] == "value" else names[0]
                yield Finding("between-steps", names[0], idle.event, f"{where} changes {what}", i)
                return
        if idle.gradients_left:
            i = idle.gradients_left[0]
            yield Finding("between-steps", "gradient", idle.event, "zero_grad() leaves a gradient", i)
            return
    yield from breaches(evidence, "between-steps")
