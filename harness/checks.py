"""The questions. Each check is one function: it looks at the evidence of one trace and yields what it finds wrong.

To add a check, write a function and register it; campaign, command line, report and pytest pick it up from ``CHECKS``.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from stepcheck.harness.comparison import PARAMETER
from stepcheck.harness.formats import BINARY32, FORMATS
from stepcheck.harness.judge import Deviation, Judge, Judgement
from stepcheck.harness.play import Player, Recording, identical
from stepcheck.harness.subjects import Subject
from stepcheck.harness.trace import Reload, Step, Trace, is_complex
from stepcheck.reference.spec import Spec


@dataclass(frozen=True)
class Finding:
    """One thing found wrong.

    Attributes:
        check: the name of the check.
        cause: what tells one cause from another, so that a hundred traces with one fault make one divergence.
        event: index of the event in the trace; ``None`` for the construction.
        summary: one line for a person.
        parameter: index of the parameter, where one is concerned.
        ratio: distance from the reference in budgets, where that is what is wrong.
        deviation: the witness, where the reference was asked.
    """

    check: str
    cause: str
    event: int | None
    summary: str
    parameter: int | None = None
    ratio: float | None = None
    deviation: Deviation | None = None


class Evidence:
    """A trace played on a subject, and what the reference says of it (computed when a check first asks)."""

    def __init__(self, subject: Subject, trace: Trace) -> None:
        self.subject = subject
        self.trace = trace
        self.recording: Recording = Player(subject, trace).play()

    @functools.cached_property
    def judge(self) -> Judge:
        return Judge(self.subject, self.recording)

    @functools.cached_property
    def judgement(self) -> Judgement:
        return self.judge.judge()

    @functools.cached_property
    def lost_on_reload(self) -> tuple[Deviation, ...]:
        """Deviations after a round trip that are not there when the same life is led without it."""
        events, deviations = self.trace.events, self.judgement.deviations
        first = next((n for n, e in enumerate(events) if isinstance(e, Reload)), len(events))
        if not deviations or any(d.event is None or d.event < first for d in deviations):
            return ()
        twin = replace(self.trace, events=tuple(e for e in events if not isinstance(e, Reload)))
        return () if Evidence(self.subject, twin).judgement.deviations else tuple(deviations)


@dataclass(frozen=True)
class Check:
    """A named question about a recording.

    Attributes:
        looks_at: how many things in a recording the question applies to; 0 means that it was not asked.
        find: yields what is wrong.
        without_meaning: why it cannot be asked of an optimizer, or nothing.
    """

    name: str
    question: str
    looks_at: Callable[[Evidence], int]
    find: Callable[[Evidence], Iterator[Finding]]
    without_meaning: Callable[[Spec], str] = lambda spec: ""


CHECKS: dict[str, Check] = {}

#: How causes begin that lie in memory that is not row-major.
STRIDED = "strided"


def _closure_writes(spec: Spec) -> str:
    return "the closure writes all gradients during the step" if spec.closure else ""


def _register(
    name: str,
    question: str,
    looks_at: Callable[[Evidence], int],
    without_meaning: Callable[[Spec], str] = lambda spec: "",
) -> Callable[[Callable[[Evidence], Iterator[Finding]]], Callable[[Evidence], Iterator[Finding]]]:
    def decorate(find: Callable[[Evidence], Iterator[Finding]]) -> Callable[[Evidence], Iterator[Finding]]:
        CHECKS[name] = Check(name, question, looks_at, find, without_meaning)
        return find

    return decorate


def _lives(evidence: Evidence) -> int:
    return sum(life.gradient is not None for s in evidence.recording.steps for life in s.lives)


def _idle(evidence: Evidence) -> int:
    return sum(life.gradient is None for s in evidence.recording.steps for life in s.lives)


@_register("completes", "Does a valid life run without an exception?", lambda e: 1 + len(e.trace.events))
def completes(evidence: Evidence) -> Iterator[Finding]:
    raised = evidence.recording.raised
    if raised is not None:
        where = "the constructor" if raised.event is None else _event_name(evidence.trace, raised.event)
        yield Finding(
            "completes",
            f"{raised.kind} in {where}: {_gist(raised.message)}",
            raised.event,
            f"{where} raises {raised.kind}: {raised.message.splitlines()[0][:200] if raised.message else '(no message)'}",
        )


def _gist(message: str) -> str:
    """The beginning of a message, without its numbers: what tells one exception of a kind from another."""
    first = message.splitlines()[0] if message else ""
    return re.sub(r"[\d.]+", "#", first)[:60].strip()


def _event_name(trace: Trace, event: int) -> str:
    names = {
        "Step": "step()",
        "ZeroGrad": "zero_grad()",
        "SetOption": "setting an option",
        "Reload": "load_state_dict()",
    }
    return names[type(trace.events[event]).__name__]


@_register("memory-beside", "Is memory beside the parameter left alone?", _lives)
def memory_beside(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, life in enumerate(step.lives):
            if life.beside_written:
                p = evidence.trace.parameters[i]
                yield Finding(
                    "memory-beside",
                    p.layout,
                    step.event,
                    f"step() writes to memory beside the parameter ({p.layout})",
                    i,
                )
                return


@_register("gradient-unwritten", "Is the gradient left as it was?", _lives, _closure_writes)
def gradient_unwritten(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, life in enumerate(step.lives):
            if life.gradient_written:
                yield Finding("gradient-unwritten", "gradient", step.event, "step() writes to the gradient", i)
                return


@_register("no-gradient", "Does a parameter without a gradient keep its value and state?", _idle, _closure_writes)
def no_gradient(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, life in enumerate(step.lives):
            if life.gradient is not None:
                continue
            if life.value_after.tobytes() != life.value.tobytes():
                yield Finding("no-gradient", "value", step.event, "step() changes a parameter that has no gradient", i)
                return
            for name, before in life.state.items():
                if name not in life.state_after or not identical(life.state_after[name], before):
                    summary = f"step() changes {name} of a parameter that has no gradient"
                    yield Finding("no-gradient", name, step.event, summary, i)
                    return


@_register(
    "between-steps",
    "Does nothing but step() change parameters and state, and does zero_grad clear the gradients?",
    lambda e: len(e.recording.idle),
)
def between_steps(evidence: Evidence) -> Iterator[Finding]:
    for idle in evidence.recording.idle:
        where = _event_name(evidence.trace, idle.event)
        for i, names in enumerate(idle.touched):
            if names:
                what = "the parameter" if names[0] == "value" else names[0]
                yield Finding("between-steps", names[0], idle.event, f"{where} changes {what}", i)
                return
        if idle.gradients_left:
            i = idle.gradients_left[0]
            yield Finding("between-steps", "gradient", idle.event, "zero_grad() leaves a gradient", i)
            return


@_register(
    "save-load-continue",
    "Does a new optimizer that loads the state_dict go on as the old one would?",
    lambda e: len(e.recording.reloads),
)
def save_load_continue(evidence: Evidence) -> Iterator[Finding]:
    for reload in evidence.recording.reloads:
        for i, (saved, loaded) in enumerate(zip(reload.saved, reload.loaded, strict=True)):
            for name in saved:
                if name not in loaded or not identical(loaded[name], saved[name]):
                    became = "is lost" if name not in loaded else _became(saved[name], loaded[name])
                    summary = f"{name} {became} in a state_dict round trip"
                    yield Finding("save-load-continue", f"state {name}", reload.event, summary, i)
                    return
        for group, (before, after) in enumerate(zip(reload.saved_options, reload.loaded_options, strict=True)):
            for name in before:
                if not _same_option(before[name], after[name]):
                    summary = f"option {name} of group {group} changes in a state_dict round trip"
                    yield Finding("save-load-continue", f"option {name}", reload.event, summary)
                    return
    for d in evidence.lost_on_reload[:1]:
        summary = f"after a state_dict round trip {_reading(d)}"
        yield Finding("save-load-continue", f"after {d.field}", d.event, summary, d.parameter, d.ratio, d)


@_register(
    "agreement",
    "Does each parameter and buffer agree with the reference, within its budget?",
    lambda e: e.judgement.elements,
)
def agreement(evidence: Evidence) -> Iterator[Finding]:
    explained = evidence.lost_on_reload
    told: set[str] = set()
    for d in evidence.judgement.deviations:
        if any(d is other for other in explained):
            continue
        # What is wrong for row-major memory and what is wrong only for strided memory have different causes.
        # And where strides are ignored, every buffer is wrong at once.
        cause = f"{d.field} at construction" if d.event is None else _strided(evidence.trace, d.event, d.parameter)
        cause = cause or d.field + _kind(evidence.trace, d)
        if cause not in told:
            told.add(cause)
            yield Finding("agreement", cause, d.event, _reading(d), d.parameter, d.ratio, d)


def _kind(trace: Trace, d: Deviation) -> str:
    """What sets the numbers apart that a deviation was found in: causes that lie in other kernels."""
    dtype = trace.parameters[d.parameter].dtype
    narrow = FORMATS[dtype].unit_roundoff > BINARY32.unit_roundoff
    sparse = ", sparse gradient" if d.parameter in trace.given_sparse else ""
    return (", complex" if is_complex(dtype) else ", narrow" if narrow else "") + sparse


def _strided(trace: Trace, event: int, parameter: int) -> str:
    """Whose memory is not row-major, up to an event; nobody's is an empty string."""
    if trace.parameters[parameter].layout != "contiguous":
        return f"{STRIDED} parameter"
    assigned = [e.gradients.get(parameter) for e in trace.events[: event + 1] if isinstance(e, Step)]
    if any(g is not None and g.layout != "contiguous" for g in assigned):
        return f"{STRIDED} gradient"
    return ""


def _reading(d: Deviation) -> str:
    if d.problem:
        return d.problem
    what = d.field.replace(PARAMETER, "the parameter") if d.field.startswith(PARAMETER) else d.field
    element = f", element {d.index}," if d.index else ""
    if d.index and d.item is not None and is_complex(d.item.dtype):
        element = f", {('real', 'imaginary')[d.index[-1]]} part of element {d.index[:-1]},"
    if d.event is None:
        return f"{what}{element} starts at {d.got:.9g}, not {d.expected:.9g}"
    return f"{what}{element} is {d.got:.9g}, not {d.expected:.9g}: off by {budgets(d.ratio)}"


def budgets(ratio: float) -> str:
    """A ratio as a phrase."""
    if np.isinf(ratio):
        return "more than any budget"
    return f"{ratio:.3g} budgets"


def _became(before: object, after: object) -> str:
    old, new = np.asarray(before).dtype, np.asarray(after).dtype
    return "changes" if old == new else f"becomes {new}, from {old},"


def _same_option(a: object, b: object) -> bool:
    return bool(np.array_equal(np.asarray(a), np.asarray(b)))


def steps_judged(evidence: Evidence) -> int:
    """Steps of single parameters that were compared with the reference."""
    return _lives(evidence)
