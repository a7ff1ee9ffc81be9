"""Tell a failing life to a person, in a few lines."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life import events
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.numbers.audit import GIVEN
from stepcheck.harness.play.families import sibling
from stepcheck.harness.play.subjects import Subject

_LAYOUTS = {
    "transposed": "column-major (a transposed view)",
    "sliced": "every other element of a larger buffer",
    "channels_last": "channels last",
    "offset": "a view that starts inside a larger buffer",
    "conjugated": "a lazy conjugate (conjugate bit set)",
    "expanded": "its first row expanded (stride 0)",
}


def life(subject: Subject, trace: Trace, finding: Finding) -> list[str]:
    """The shrunk life in at most five lines of prose: what there was, what happened, what went wrong."""
    lines = [_cast(trace)]
    before, last = list(trace.events), []
    if finding.event is not None:
        before, last = before[: finding.event], before[finding.event : finding.event + 1]
    told = [_event(e, trace, subject) for e in before]
    if len(told) > 3:
        told = [f"{len(told) - 2} events", *told[-2:]]
    if told:
        lines.append("First: " + "; ".join(told) + ".")
    if last:
        lines.append("Then: " + _event(last[0], trace, subject) + ".")
    return lines


def shares(evidence: Evidence, finding: Finding) -> str:
    """What the budget of the witness is made of; empty where that has no meaning."""
    if finding.deviation is None or evidence.judgement.free:
        return ""
    of_line: dict[str, float] = {}
    for name, share in evidence.judge.terms(finding.deviation):
        line = name if name == GIVEN else f"`{_expression(name.partition('`')[2].removesuffix('`'))}`"
        of_line[line] = of_line.get(line, 0.0) + share
    largest = sorted(((share, line) for line, share in of_line.items() if share >= 0.005), key=lambda x: -x[0])[:3]
    told = ", ".join(f"of {line} {100 * share:.0f} %" for share, line in largest)
    return f"Budget {finding.deviation.budget:.3g}: rounding {told}." if told else ""


def _expression(line: str) -> str:
    """What a line of a reference computes, as one would write it on paper."""
    try:
        statement = ast.parse(line).body[0]
    except (SyntaxError, IndexError):
        return line
    value = getattr(statement, "value", None)
    if isinstance(statement, ast.Return) and isinstance(value, ast.Tuple):
        value = value.elts[0]  # the parameter; the state comes after it
    return (ast.unparse(value) if isinstance(value, ast.expr) else line).replace("hyper.", "")


_FORMS = {
    "tuple": ", given as a tuple", "iterator": ", given as an iterator", "named": ", given with their names", "list": "",
    "dicts": ", given as dictionaries", "mixed": ", some options given as keywords and some in the group",
}  # fmt: skip


_SPELLINGS = {
    "plain": "", "whole": ", whole numbers given as int", "lists": ", tuples given as lists", "numpy": ", numbers given as NumPy's",
}  # fmt: skip


def _cast(trace: Trace) -> str:
    groups = []
    flags = "".join(f", constructed with {flag}=True" for flag in trace.flags)
    built = _FORMS[trace.form] + flags + _SPELLINGS[trace.spelling]
    for n, g in enumerate(trace.groups):
        name = "One group" if len(trace.groups) == 1 else f"Group {n}"
        groups.append(f"{name}{built if n == 0 else ''} ({_group(g, trace)}")
    return ". ".join(groups) + "."


def _group(g: events.Group, trace: Trace) -> str:
    members = "; ".join(_parameter(trace.parameters[i], i, len(trace.parameters)) for i in g.parameters)
    return f"{options(g.options) or 'default options'}): {members}"


def options(given: Mapping[str, events.Option]) -> str:
    """Options as they are written in a call."""
    return ", ".join(f"{k}={option(v)}" for k, v in given.items())


def option(value: events.Option) -> str:
    """One of them."""
    return f"torch.tensor({value.value!r})" if isinstance(value, events.Scalar) else repr(value)


def _parameter(p: events.Parameter, index: int, of: int) -> str:
    shape = f"of size {'x'.join(map(str, p.shape))}" if p.shape else "of no dimension"
    layout = "" if p.layout == "contiguous" else f", {_LAYOUTS[p.layout]}"
    layout = layout if p.within is None else f", in the gaps of p{p.within}"
    name = "one" if of == 1 else f"p{index}, a"
    return f"{name} {p.dtype} parameter {shape}{layout}, {_values(p.values)}"


def _named(g: events.Gradient) -> str:
    if g.sparse is None:
        return ""
    entries, kind = g.sparse.entries, "coalesced" if g.sparse.coalesced else "uncoalesced"
    if not entries:
        return ", sparse and naming nothing"
    listed = ", ".join(map(str, entries[:5])) + (", ..." if len(entries) > 5 else "")
    what = (
        f"entries {listed}"
        if g.sparse.dimensions == 1
        else f"entries {listed} of the first {g.sparse.dimensions} dimensions"
    )
    return f", sparse ({kind}), {what}"


def _values(v: Values) -> str:
    if v.recipe == "listed":
        return f"of {v.listed[0]:.3g}" if len(v.listed) == 1 else "listed values"
    if v.recipe == "constant":
        return "all zero" if v.high == 0 else f"all {v.high:.3g}"
    if v.recipe == "ramp":
        return f"a ramp from {-v.high:.3g} to {v.high:.3g}, again and again"
    if v.recipe == "quarters":
        return f"multiples of {v.high / 4:.3g}"
    size = f"magnitudes {v.low:.2g} to {v.high:.2g}"
    return size + {"sparse_log": ", some zero", "extremes": ", some infinite or NaN"}.get(v.recipe, "")


_CLOSURES = {
    "float": "with a closure that returns a number", "tensor": "with a closure that returns a tensor",
    "none": "with a closure that returns None", "backward": "with a closure that calls backward()",
    "zero": "with a closure that returns 0", "negative": "with a closure that returns a negative loss",
    "nan": "with a closure that returns NaN",
}  # fmt: skip
_SCALINGS = {
    "step": "by a GradScaler", "unscale": "by a GradScaler after its unscale_()",
}  # fmt: skip
_WAYS = {
    "memory": "a state_dict round trip into a new optimizer",
    "saved": "a state_dict round trip through torch.save and torch.load(weights_only=True) into a new optimizer",
    "deepcopied": "a deepcopied state_dict loaded into a new optimizer",
    "pickled": "a pickled state_dict loaded into a new optimizer",
    "copied": "the optimizer replaced by its copy.deepcopy",
    "unpickled": "the optimizer pickled and unpickled",
}
_DICTIONARIES = {
    "same": "", "older": ", as older versions saved it", "foreign": ", with other identifiers, order and entries",
    "aged": ", of an optimizer that is many steps older", "aged to 2^24": ", of an optimizer that is some 2^24 steps older",
    "aged to 2^31": ", of an optimizer that is some 2^31 steps older", "torch's": ", as torch's own class saves it",
    "torch's older": ", as older versions of torch's own class saved it",
}  # fmt: skip
_HANDLINGS = {
    "written": "{} overwritten in place", "swapped": "the data of {} replaced by another tensor",
    "cleared": "the state cleared", "replaced": "the state replaced by an empty dictionary",
    "forgotten": "the state of {} deleted", "kept": "the state_dict kept",
    "rolled back": "the state_dict that was kept loaded into the same optimizer",
    "removed": "{} removed from its group", "appended": "{} appended to its group again",
    "regrouped": "the dictionary of each group replaced by a copy",
}  # fmt: skip
_SURROUNDINGS = {
    "no_grad": "under no_grad", "autocast": "under autocast",
    **{within: f"with {within.split()[0]} as the default dtype" for within in events.DEFAULT_DTYPES},
    "graph": "with gradients that have a graph",
    "another optimizer": "after one of another optimizer of the class",
    "more threads": "with more threads",
}  # fmt: skip
_FAILURES = {
    "closure": "a step whose closure raises", "hook": "a step with a pre-hook that raises",
    "gradient": "a step with a gradient of p{} that is not taken (sparse or dense)",
    "dtype": "a step with a gradient of p{} in another dtype",
}  # fmt: skip


def _reload(event: events.Reload, trace: Trace, subject: Subject) -> str:
    playing = sibling(subject, event.into, trace)
    into = f", into {playing.mode}" if playing is not subject else ""
    afresh = ", and the parameters by copies" if event.way == "copied" else ", over new tensors of the same values"
    return _WAYS[event.way] + into + _DICTIONARIES[event.dictionary] + _FORMS[event.form] + afresh * event.afresh


def _spoil(event: events.Spoil, trace: Trace, _: Subject) -> str:
    of = f" of p{event.parameter}" if len(trace.parameters) > 1 else ""
    return f"two steps, then a tensor of the state{of} that is {event.how}, {event.way}, and two more steps"


def _step(event: events.Step, trace: Trace, _: Subject) -> str:
    if event.objective is not None:
        o = event.objective
        scale = "" if o.scale == 1 else f" times {o.scale:g}"
        cleared = "" if o.set_to_none else ", gradients cleared in place"
        return f"step with a closure: {o.kind}{scale}, centre {_values(o.centre)}{cleared}"
    manner = _CLOSURES.get(event.closure) or _SCALINGS.get(event.scaling) or _SURROUNDINGS.get(event.within, "")
    return f"step {manner}{', ' if manner else ''}with " + _gradients(event.gradients, trace)


def _gradients(gradients: Mapping[int, events.Gradient | None], trace: Trace) -> str:
    told = []
    for i in range(len(trace.parameters)):
        name = "gradient" if len(trace.parameters) == 1 else f"gradient of p{i}"
        if i not in gradients:
            told.append(f"{name} as it was")
            continue
        g = gradients[i]
        if g is None:
            told.append(f"{name} None")
        else:
            layout = "" if g.layout == "contiguous" else f", {_LAYOUTS[g.layout]}"
            told.append(f"{name} {'minus ' if g.negated else ''}{_values(g.values)}{layout}{_named(g)}")
    if len(told) > 4:
        told = [*told[:3], f"{len(told) - 3} more gradients"]
    return ", ".join(told)


_Told = Callable[[Any, Trace, Subject], str]
#: Each kind of event in words.
_EVENTS: Mapping[type[events.Event], _Told] = events.of_every_event({
    events.Step: _step,
    events.Accumulate: lambda e, trace, _: "a second backward pass that adds " + _gradients(e.gradients, trace),
    events.ZeroGrad: lambda e, *_: f"zero_grad(set_to_none={e.set_to_none})",
    events.SetOption: lambda e, *_: f"{e.option} of group {e.group} {'filled in place with' if e.in_place else 'set to'} {option(e.value)}",
    events.Reload: _reload,
    events.AddGroup: lambda e, trace, _: f"add_param_group ({_group(e.group, trace)}",
    events.Freeze: lambda e, *_: f"requires_grad_({not e.frozen}) of p{e.parameter}",
    events.Hook: lambda e, *_: f"a {e.kind} hook registered",
    events.Schedule: lambda e, *_: f"a {e.kind} attached",
    events.ScheduleStep: lambda *_: "a step of the schedule",
    events.Fail: lambda e, *_: _FAILURES[e.kind].format(e.parameter),
    events.Refuse: lambda e, *_: f"{e.option}={option(e.value)} ({e.kind}) tried in {e.place}",
    events.Spoil: _spoil,
    events.Run: lambda e, *_: f"{e.steps} more steps with the gradients that are there",
    events.Handle: lambda e, trace, _: _HANDLINGS[e.how].format(f"p{e.parameter}" if len(trace.parameters) > 1 else "the parameter"),
})  # fmt: skip


def _event(event: events.Event, trace: Trace, subject: Subject) -> str:
    return _EVENTS[type(event)](event, trace, subject)
