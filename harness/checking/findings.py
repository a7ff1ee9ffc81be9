"""What is found wrong, and how its numbers are told."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stepcheck.harness.checking import twins
from stepcheck.harness.checking.twins import Twin, Unset
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life import events
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.numbers.formats import BINARY32, FORMATS
from stepcheck.harness.play.spoil import Arrival
from stepcheck.reference.spec import PARAMETER

#: Causes of deviations from the reference that a broken invariant accounts for.
DEVIATES, AFTER = "deviation", "after "
#: The cause of what two lives of the same class show.
TWIN = "two lives"
#: How causes end that an option has which changes nothing. One life does not show that: a sign does not change with every momentum.
NO_EFFECT = " has no effect"
#: How causes begin that lie in memory that is not row-major.
STRIDED = "strided"


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
        option: group, name and value of the option that should hold, where one is concerned.
        owner: the mode that played the event, where a round trip had led from the subject into another.
        spoilt: where a step with malformed state arrived that was not refused.
    """

    check: str
    cause: str
    event: int | None
    summary: str
    parameter: int | None = None
    ratio: float | None = None
    deviation: Deviation | None = None
    option: tuple[int, str, events.Option] | None = None
    owner: str = ""
    spoilt: Arrival | None = None

    @property
    def kind(self) -> str:
        """The cause, and whose it is: one fault of two modes is two divergences."""
        return f"{self.cause}, by {self.owner}" if self.owner else self.cause


def idle_cause(unset: Unset) -> str:
    """The cause of an option that changes nothing where a life sets it."""
    return f"{unset.option} {unset.where}{NO_EFFECT}"


def place_of(trace: Trace, group: int, option: str) -> str:
    """The cause that an option of a group would have if it had no effect where a life sets it."""
    later = any(isinstance(e, events.SetOption) and (e.group, e.option) == (group, option) for e in trace.events)
    return f"{option} {twins.place(group, later=later, at_first=len(trace.groups))}{NO_EFFECT}"


def unlike(check: str, twin: Twin, d: Deviation) -> Finding:
    """That a life and its twin come out differently."""
    digits = next((n for n in range(6, 17) if f"{d.got:.{n}g}" != f"{d.expected:.{n}g}"), 17)
    element = f", element {d.index}," if d.index else ""
    here, there = twin.told
    told = f"{here}, the parameter{element} becomes {d.got:.{digits}g}, but {d.expected:.{digits}g} {there}"
    return Finding(check, TWIN, d.event, told, d.parameter, None, d)


def accounted(check: str, cause: str, beginning: str, d: Deviation) -> Finding:
    """That a broken invariant accounts for a deviation."""
    return Finding(check, cause, d.event, f"{beginning} {reading(d)}", d.parameter, d.ratio, d)


#: What goes wrong, where an event does.
_NAMES = events.of_every_event({
    events.Step: "step()", events.Accumulate: "a backward pass", events.ZeroGrad: "zero_grad()", events.SetOption: "setting an option",
    events.Reload: "load_state_dict()", events.AddGroup: "add_param_group()", events.Freeze: "freezing a parameter", events.Hook: "registering a hook",
    events.Schedule: "attaching a schedule", events.ScheduleStep: "a step of the schedule", events.Fail: "a step that must fail",
    events.Refuse: "something invalid", events.Spoil: "a step with malformed state", events.Run: "a step that is not looked at",
    events.Handle: "what is done between steps",
})  # fmt: skip


def event_name(trace: Trace, event: int) -> str:
    """Which event goes wrong, or what is done in it that may."""
    what = trace.events[event]
    if isinstance(what, events.Reload) and what.way in ("copied", "unpickled"):
        return "copying the optimizer" if what.way == "copied" else "pickling the optimizer"
    return _NAMES[type(what)]


def kind_of_numbers(trace: Trace, d: Deviation) -> str:
    """What sets the numbers apart that a deviation was found in: causes that lie in other kernels."""
    dtype = trace.parameters[d.parameter].dtype
    narrow = FORMATS[dtype].unit_roundoff > BINARY32.unit_roundoff
    sparse = ", sparse gradient" if d.parameter in trace.given_sparse else ""
    return (", complex" if is_complex(dtype) else ", narrow" if narrow else "") + sparse


def strided(trace: Trace, event: int, parameter: int) -> str:
    """Whose memory is not row-major, up to an event; nobody's is an empty string."""
    if trace.parameters[parameter].layout != "contiguous":
        return f"{STRIDED} parameter"
    assigned = [e.gradients.get(parameter) for e in trace.events[: event + 1] if isinstance(e, events.Step)]
    if any(g is not None and g.layout != "contiguous" for g in assigned):
        return f"{STRIDED} gradient"
    return ""


def reading(d: Deviation) -> str:
    """A deviation in words."""
    if d.problem:
        return d.problem
    if d.center is not None:
        return f"the parameter is {d.got:.3g} from the reference, in the Frobenius norm: off by {budgets(d.ratio)}"
    what = d.field.replace(PARAMETER, "the parameter") if d.field.startswith(PARAMETER) else d.field
    if d.of:
        what = f"{d.of.replace(PARAMETER, 'the parameter')} and {d.field} together"
    element = f", element {d.index}," if d.index else ""
    if d.index and d.item is not None and is_complex(d.item.dtype):
        element = f", {('real', 'imaginary')[d.index[-1]]} part of element {d.index[:-1]},"
    if d.event is None:
        return f"{what}{element} starts at {told_apart(d.got, d.expected)}"
    return f"{what}{element} {'are' if d.of else 'is'} {told_apart(d.got, d.expected)}: off by {budgets(d.ratio)}"


def told_apart(got: float, expected: float) -> str:
    """Two numbers with as many digits as it takes to tell them apart, at least nine."""
    digits = next((n for n in range(9, 17) if f"{got:.{n}g}" != f"{expected:.{n}g}"), 17)
    return f"{got:.{digits}g}, not {expected:.{digits}g}"


def budgets(ratio: float) -> str:
    """A ratio as a phrase."""
    if np.isinf(ratio):
        return "more than any budget"
    return f"{ratio:.3g} budgets"
