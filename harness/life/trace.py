"""The life of an optimizer as data: parameters, groups and events. It says nothing about who plays it.

A trace is JSON. Numbers that matter are hex floats, so that they survive the round trip to the last bit, and tensors are
either listed or described by a recipe and a seed (``values``). ``events`` has what can happen.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stepcheck.harness.life.events import (
    FLAGS,
    FORMS,
    OF_ALL,
    SPELLINGS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Group,
    Handle,
    Option,
    Parameter,
    Refuse,
    Run,
    Scalar,
    Schedule,
    SetOption,
    Spoil,
    Step,
    plain,
)
from stepcheck.harness.life.fields import MAX_ELEMENTS, MAX_PARAMETERS
from stepcheck.harness.life.reading import (
    TraceError,
    as_known,
    as_list,
    as_object,
    one_of,
    read,
    read_event,
    text,
    to_json,
)
from stepcheck.harness.life.values import Values, in_reals, is_complex
from stepcheck.reference.spec import Spec

SCHEMA = 1

#: A hostile file cannot exhaust the machine: this bounds it, and ``fields`` does.
MAX_EVENTS = 1 << 12
#: Elements times events, each parameter counted as ``PARAMETER_WORK`` elements more. Played and judged, that takes some 20 s and 3 GB.
MAX_WORK = 1 << 23
#: A parameter of no elements takes as long as one of so many.
PARAMETER_WORK = 1 << 9
#: Steps of a run that take as long as one that is looked at.
_RUN = 16
#: Calls of a closure that a step with an objective may make, unless options allow more.
_EVALUATIONS = 25


@dataclass(frozen=True)
class Trace:
    """The whole life. ``optimizer`` names the reference that says what must happen.

    Attributes:
        groups: those that the optimizer is constructed with.
        form: one of ``FORMS``: how they are given.
        flags: some of ``FLAGS``, each once: what every constructor of this life is given as ``True`` beside the options. Only somebody's
            class whose signature names them is; a subject of torch.optim has its mode.
        spelling: one of ``SPELLINGS``: how the values of options are written wherever they are given.
    """

    optimizer: str
    parameters: tuple[Parameter, ...]
    groups: tuple[Group, ...]
    events: tuple[Event, ...]
    form: str = "list"
    flags: tuple[str, ...] = ()
    spelling: str = "plain"

    @property
    def plainly(self) -> Trace:
        """The same life without flags, its options written plainly."""
        return replace(self, flags=(), spelling="plain")

    @functools.cached_property
    def all_groups(self) -> tuple[Group, ...]:
        """Those of the construction and those added later, in this order."""
        return (*self.groups, *(e.group for e in self.events if isinstance(e, AddGroup)))

    @property
    def given_options(self) -> tuple[Mapping[str, Option], ...]:
        """The options of each group, and each that is set later."""
        later = ({e.option: e.value} for e in self.events if isinstance(e, SetOption))
        return (*(g.options for g in self.all_groups), *later)

    @functools.cached_property
    def group_of(self) -> Mapping[int, int]:
        """The group that each parameter stands in at last."""
        return {i: n for n, group in enumerate(self.all_groups) for i in group.parameters}

    @functools.cached_property
    def at_first(self) -> tuple[Group, ...]:
        """The groups of the construction, without the parameters that are appended to one before they were removed from it."""
        first: dict[int, str] = {}
        for e in self.events:
            if isinstance(e, Handle) and e.how in ("removed", "appended"):
                first.setdefault(e.parameter, e.how)
        late = {i for i, how in first.items() if how == "appended"}
        return tuple(
            replace(g, parameters=tuple(i for i in g.parameters if i not in late)) if late & set(g.parameters) else g
            for g in self.groups
        )

    def problem(self, spec: Spec) -> str | None:
        """Why ``spec`` cannot judge this life, or ``None``: it names another optimizer, or options that it refuses."""
        if self.optimizer != spec.name:
            return f"a life of {self.optimizer}, not of {spec.name}"
        return (
            self._problem_of_construction()
            or self._problem_of_events(spec)
            or self._problem_of_options(spec)
            or self._problem_of_tensors(spec)
        )

    def _problem_of_construction(self) -> str | None:
        unknown = next((flag for flag in self.flags if flag not in FLAGS), None)
        if unknown is not None:
            return f"there is no flag {unknown!r}, only {', '.join(FLAGS)}"
        if len(set(self.flags)) < len(self.flags):
            return "a flag is given once"
        if self.spelling not in SPELLINGS:
            return f"there is no spelling {self.spelling!r}, only {', '.join(SPELLINGS)}"
        return None

    def _problem_of_options(self, spec: Spec) -> str | None:
        options = [dict(g.options) for g in self.all_groups]
        # Groups with an lr of 0 when a schedule begins: it may go back to that whatever is set by then.
        stopped: set[int] = set()
        events = [None, *(e for e in self.events if isinstance(e, SetOption | Schedule))]
        for event in events:
            if isinstance(event, SetOption):
                if event.in_place and not all(
                    isinstance(x, Scalar) for x in (event.value, options[event.group].get(event.option))
                ):
                    return "an option that is set in_place must be a tensor before, and its value must be one"
                options[event.group][event.option] = event.value
            elif isinstance(event, Schedule):
                stopped |= {n for n, o in enumerate(options) if plain(o).get("lr") == 0}
            for n, (o, group) in enumerate(zip(options, self.all_groups, strict=True)):
                if any(isinstance(value, Scalar) and name != "lr" for name, value in o.items()):
                    return "the learning rate alone may be a tensor"
                try:
                    hyper = spec.hyper_values(plain(o))
                    if n in stopped:
                        spec.hyper_values(plain(o | {"lr": 0.0}))
                except ValueError as error:
                    return str(error)
                conflict = spec.sparse_conflict(hyper)
                if conflict and self.given_sparse & set(group.parameters):
                    return f"{spec.name} takes no sparse gradient with these options: {conflict}"
        return None

    def _problem_of_tensors(self, spec: Spec) -> str | None:
        for p in self.parameters:
            if not spec.shapes(p.shape):
                return f"{spec.name} takes no parameter of shape {p.shape}"
            if is_complex(p.dtype) and not spec.complex:
                return f"{spec.name} takes no complex parameter"
        for i, g in self.assigned:
            problem = g.sparse.problem(self.parameters[i].shape) if g.sparse is not None else None
            if problem:
                return problem
        if any(g.sparse is not None for _, g in self.assigned) and not spec.sparse:
            return f"{spec.name} takes no sparse gradient"
        if any(g.sparse is None for _, g in self.assigned) and spec.sparse == "only":
            return f"{spec.name} takes sparse gradients alone"
        return None

    def _problem_of_events(self, spec: Spec) -> str | None:
        if not self.groups or len(self.group_of) < len(self.parameters):
            return "there must be a group at first, and each parameter must stand in one"
        if any(g.parameters and not first.parameters for g, first in zip(self.groups, self.at_first, strict=True)):
            return "a group must have a parameter at first that is not appended to it later"
        groups = len(self.groups)
        for e in self.events:
            groups += isinstance(e, AddGroup)
            if isinstance(e, SetOption) and e.group >= groups:
                return "an option is set in a group that is not there yet"
        steps = [e for e in self.events if isinstance(e, Step)]
        if any((e.objective is not None) != spec.closure for e in steps):
            return f"{spec.name} takes steps {'with' if spec.closure else 'without'} an objective"
        for e in self.events:
            if isinstance(e, Refuse) and e.option not in ("params", *(h.name for h in spec.hyper)):
                return f"{spec.name} has no option {e.option!r} to refuse"
        return self._problem_with_an_objective(spec.name) if spec.closure else None

    def _problem_with_an_objective(self, name: str) -> str | None:
        if len(self.all_groups) > 1:
            return f"{name} takes one group"
        if any(isinstance(e, Accumulate) or getattr(e, "closure", "") for e in self.events):
            return f"{name} is given its gradients by an objective"
        if any(isinstance(e, Spoil | Handle) for e in self.events):
            return f"{name} keeps the state of all parameters together"
        if any(isinstance(e, Run) for e in self.events):
            return f"{name} takes no step without an objective"
        if any(isinstance(e, Step) and e.scaling for e in self.events):
            return "a step with gradient scaling takes no closure"
        return None

    @functools.cached_property
    def assigned(self) -> tuple[tuple[int, Gradient], ...]:
        """Each gradient, with the index of its parameter."""
        events = [e for e in self.events if isinstance(e, (Step, Accumulate))]
        return tuple((i, g) for e in events for i, g in e.gradients.items() if g is not None)

    @functools.cached_property
    def given_sparse(self) -> frozenset[int]:
        """Parameters that get a sparse gradient at some time."""
        return frozenset(i for i, g in self.assigned if g.sparse is not None)

    def with_gradients(self, change: Callable[[int, Gradient], Gradient]) -> Trace:
        """The same life with every gradient changed, by (index of its parameter, gradient)."""

        def changed(e: Event) -> Event:
            if isinstance(e, Accumulate):
                return replace(e, gradients={i: change(i, g) for i, g in e.gradients.items()})
            if isinstance(e, Step):
                return replace(e, gradients={i: g and change(i, g) for i, g in e.gradients.items()})
            return e

        return replace(self, events=tuple(map(changed, self.events)))

    def keeping(self, kept: Collection[int]) -> Trace:
        """The same life without the other parameters, and without the groups that have none left."""
        number = {i: n for n, i in enumerate(sorted(kept))}
        groups = [n for n, g in enumerate(self.all_groups) if not g.parameters or number.keys() & set(g.parameters)]

        def group(g: Group) -> Group:
            return replace(g, parameters=tuple(number[i] for i in g.parameters if i in number))

        def event(e: Event) -> Event | None:
            if isinstance(e, Accumulate):
                return Accumulate({number[i]: g for i, g in e.gradients.items() if i in number})
            if isinstance(e, Step):
                return replace(e, gradients={number[i]: g for i, g in e.gradients.items() if i in number})
            if isinstance(e, Handle) and e.how in OF_ALL:
                return replace(e, parameter=number.get(e.parameter, 0))
            if isinstance(e, (Freeze, Fail, Spoil, Handle)):
                return replace(e, parameter=number[e.parameter]) if e.parameter in number else None
            if isinstance(e, SetOption):
                return replace(e, group=groups.index(e.group)) if e.group in groups else None
            if isinstance(e, AddGroup):
                return (
                    AddGroup(group(e.group))
                    if not e.group.parameters or number.keys() & set(e.group.parameters)
                    else None
                )
            return e

        def parameter(p: Parameter) -> Parameter:
            return p if p.within is None else replace(p, within=number.get(p.within))

        at_first = [n for n in groups if n < len(self.groups)]
        events = (event(e) for e in self.events)
        return replace(
            self,
            parameters=tuple(parameter(self.parameters[i]) for i in sorted(kept)),
            groups=tuple(group(self.groups[n]) for n in at_first),
            events=tuple(e for e in events if e is not None),
        )

    def row_major(self) -> Trace:
        """The same life, of the same numbers, with every parameter and gradient contiguous."""

        def contiguous(i: int, g: Gradient) -> Gradient:
            shape = in_reals(self.parameters[i].shape, self.parameters[i].dtype)
            if g.layout != "expanded" or not self.parameters[i].shape:
                return replace(g, layout="contiguous")
            repeated = np.broadcast_to(g.values.realise(shape)[:1], shape)
            return replace(g, layout="contiguous", values=Values("listed", listed=tuple(repeated.ravel().tolist())))

        plain = self.with_gradients(contiguous)
        parameters = tuple(replace(p, layout="contiguous", within=None) for p in self.parameters)
        return replace(plain, parameters=parameters)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "optimizer": self.optimizer,
            "parameters": [to_json(p) for p in self.parameters],
            "groups": [to_json(g) for g in self.groups],
            "events": [to_json(e) for e in self.events],
            **({"form": self.form} if self.form != "list" else {}),
            **({"flags": list(self.flags)} if self.flags else {}),
            **({"spelling": self.spelling} if self.spelling != "plain" else {}),
        }

    @classmethod
    def from_json(cls, data: object) -> Trace:
        """The trace that ``data`` describes.

        Raises:
            TraceError: ``data`` is not a trace of this schema, or asks for more than the bounds here and in ``fields``.
        """
        top = as_object(data, "the trace")
        schema = top.get("schema")
        if schema != SCHEMA:
            raise TraceError(f"trace schema {schema!r}; this version of stepcheck reads schema {SCHEMA}")
        as_known(
            top, {"schema", "optimizer", "parameters", "groups", "events", "form", "flags", "spelling"}, "the trace"
        )
        optimizer = text(top.get("optimizer"), "optimizer")
        raw = as_list(top.get("parameters"), "parameters", MAX_PARAMETERS)
        parameters = tuple(read(Parameter, p, f"parameters[{i}]") for i, p in enumerate(raw))
        if sum(p.numel for p in parameters) > MAX_ELEMENTS:
            raise TraceError(f"parameters: more than {MAX_ELEMENTS} elements")
        raw = as_list(top.get("groups"), "groups", MAX_PARAMETERS)
        groups = tuple(read(Group, g, f"groups[{i}]", parameters) for i, g in enumerate(raw))
        raw = as_list(top.get("events"), "events", MAX_EVENTS)
        events = tuple(read_event(e, f"events[{i}]", parameters) for i, e in enumerate(raw))
        form = one_of(top.get("form", "list"), FORMS, "form")
        raw = as_list(top.get("flags", []), "flags", len(FLAGS))
        flags = tuple(one_of(flag, FLAGS, f"flags[{i}]") for i, flag in enumerate(raw))
        if len(set(flags)) < len(flags):
            raise TraceError("flags: each must stand there once")
        spelling = one_of(top.get("spelling", "plain"), SPELLINGS, "spelling")
        trace = Trace(optimizer, parameters, groups, events, form, flags, spelling)
        _check(trace)
        return trace


# What one part of a trace says of another ------------------------------------------------------------------------------


def _check(trace: Trace) -> None:
    members = [i for g in trace.all_groups for i in g.parameters]
    if sorted(members) != list(range(len(trace.parameters))) or not trace.groups:
        raise TraceError("groups: each parameter must stand in exactly one group")
    work = _work(trace)
    if work > MAX_WORK:
        raise TraceError(
            f"events: {work} elements in all events together, each parameter counted as {PARAMETER_WORK} more; at most {MAX_WORK}"
        )
    groups = len(trace.groups)
    for n, event in enumerate(trace.events):
        groups += isinstance(event, AddGroup)
        if isinstance(event, SetOption) and event.group >= groups:
            raise TraceError(f"events[{n}].group: there are {groups} groups by then")
    for n, p in enumerate(trace.parameters):
        if p.within is not None:
            _check_within(trace.parameters[:n], p, p.within, f"parameters[{n}].within")


def _check_within(earlier: Sequence[Parameter], p: Parameter, within: int, where: str) -> None:
    other = earlier[within] if within < len(earlier) else None
    beside = [q.within for q in earlier]
    if other is None or (other.shape, other.dtype) != (p.shape, p.dtype) or within in beside:
        raise TraceError(f"{where}: must name an earlier parameter of the same shape and dtype, once")
    if (other.layout, p.layout, other.within) != ("sliced", "sliced", None):
        raise TraceError(f"{where}: both parameters must be sliced")


def _work(trace: Trace) -> int:
    """What it takes to play and to judge a life, in elements: each event looks at all of them, and at those that a gradient names."""
    each = sum(p.numel + PARAMETER_WORK for p in trace.parameters)
    evaluations = [_EVALUATIONS]
    for options in trace.given_options:
        asked = (options.get("max_eval"), options.get("max_iter"))
        evaluations += [n for n in asked if isinstance(n, int)]
    steps = sum(isinstance(e, Step) and e.objective is not None for e in trace.events)
    more = steps * (max(evaluations) // _EVALUATIONS - 1)
    more += sum(e.steps for e in trace.events if isinstance(e, Run)) // _RUN
    sparse = ((g.sparse, trace.parameters[i]) for i, g in trace.assigned if g.sparse is not None)
    named = sum(math.prod(s.shape_of_values(p.shape)) for s, p in sparse)
    return each * (max(len(trace.events), 1) + more) + named
