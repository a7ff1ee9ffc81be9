"""The life of an optimizer as data: parameters, groups and events. It says nothing about who plays it.

A trace is JSON. Numbers that matter are hex floats, so that they survive the round trip to the last bit, and tensors are
either listed or described by a recipe and a seed (``values``). ``events`` has what can happen.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from stepcheck.harness.life.events import (
    CLOSURES,
    DICTIONARIES,
    EVENTS,
    FAILURES,
    FORMS,
    GRADIENT_LAYOUTS,
    HOOKS,
    LAYOUTS,
    OBJECTIVES,
    PLACES,
    SCALINGS,
    SCHEDULES,
    SPOILING_WAYS,
    SPOILINGS,
    WAYS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Group,
    Hook,
    Objective,
    Option,
    Parameter,
    Refuse,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Sparse,
    Spoil,
    Step,
    ZeroGrad,
    plain,
)
from stepcheck.harness.life.values import DTYPES, RECIPES, Values, in_reals, is_complex
from stepcheck.reference.spec import Spec

SCHEMA = 1

#: Bounds on what a trace may ask for, so that a hostile file cannot exhaust the machine.
MAX_ELEMENTS = 1 << 20
MAX_PARAMETERS = 1 << 10
MAX_EVENTS = 1 << 12
MAX_DIMENSIONS = 8
MAX_OPTIONS = 64
#: Elements times events, each parameter counted as ``PARAMETER_WORK`` elements more. Played and judged, that takes some 20 s and 3 GB.
MAX_WORK = 1 << 23
#: A parameter of no elements takes as long as one of so many.
PARAMETER_WORK = 1 << 9
#: Calls of a closure that a step with an objective may make, unless options allow more.
_EVALUATIONS = 25


class TraceError(ValueError):
    """A file or object is not a trace of this schema; the message says what is wrong and where."""


@dataclass(frozen=True)
class Trace:
    """The whole life. ``optimizer`` names the reference that says what must happen.

    Attributes:
        groups: those that the optimizer is constructed with.
        form: one of ``FORMS``: how they are given.
    """

    optimizer: str
    parameters: tuple[Parameter, ...]
    groups: tuple[Group, ...]
    events: tuple[Event, ...]
    form: str = "list"

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

    def problem(self, spec: Spec) -> str | None:
        """Why ``spec`` cannot judge this life, or ``None``: it names another optimizer, or options that it refuses."""
        if self.optimizer != spec.name:
            return f"a life of {self.optimizer}, not of {spec.name}"
        return self._problem_of_events(spec) or self._problem_of_options(spec) or self._problem_of_tensors(spec)

    def _problem_of_options(self, spec: Spec) -> str | None:
        options = [dict(g.options) for g in self.all_groups]
        # Groups with an lr of 0 when a schedule begins: it may go back to that whatever is set by then.
        stopped: set[int] = set()
        events = [None, *(e for e in self.events if isinstance(e, SetOption | Schedule))]
        for event in events:
            if isinstance(event, SetOption):
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
        groups = len(self.groups)
        for e in self.events:
            groups += isinstance(e, AddGroup)
            if isinstance(e, SetOption) and e.group >= groups:
                return "an option is set in a group that is not there yet"
        steps = [e for e in self.events if isinstance(e, Step)]
        if any((e.objective is not None) != spec.closure for e in steps):
            return f"{spec.name} takes steps {'with' if spec.closure else 'without'} an objective"
        if spec.closure and len(self.all_groups) > 1:
            return f"{spec.name} takes one group"
        if spec.closure and any(isinstance(e, Accumulate) or getattr(e, "closure", "") for e in self.events):
            return f"{spec.name} is given its gradients by an objective"
        for e in self.events:
            if isinstance(e, Refuse) and e.option not in ("params", *(h.name for h in spec.hyper)):
                return f"{spec.name} has no option {e.option!r} to refuse"
        if spec.closure and any(isinstance(e, Spoil) for e in self.events):
            return f"{spec.name} keeps the state of all parameters together"
        if spec.closure and any(e.scaling for e in steps):
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
            if isinstance(e, (Freeze, Fail, Spoil)):
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
            "parameters": [_parameter_to_json(p) for p in self.parameters],
            "groups": [_group_to_json(g) for g in self.groups],
            "events": [_event_to_json(e) for e in self.events],
            **({"form": self.form} if self.form != "list" else {}),
        }

    @classmethod
    def from_json(cls, data: object) -> Trace:
        """The trace that ``data`` describes.

        Raises:
            TraceError: ``data`` is not a trace of this schema, or asks for more than the bounds above.
        """
        return _Reader().trace(data)


def loads(text: str) -> object:
    """Parse JSON.

    Raises:
        TraceError: ``text`` is not JSON, or is cut short.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"not JSON, or cut short ({error})") from None


# JSON out -------------------------------------------------------------------------------------------------------------


def _values_to_json(values: Values) -> dict[str, Any]:
    if values.recipe == "listed":
        return {"recipe": "listed", "listed": [x.hex() for x in values.listed]}
    return {"recipe": values.recipe, "seed": values.seed, "low": values.low.hex(), "high": values.high.hex()}


def _parameter_to_json(p: Parameter) -> dict[str, Any]:
    result = {"shape": list(p.shape), "dtype": p.dtype, "layout": p.layout, "values": _values_to_json(p.values)}
    return result if p.within is None else {**result, "within": p.within}


def _group_to_json(g: Group) -> dict[str, Any]:
    return {"parameters": list(g.parameters), "options": _options_to_json(g.options)}


def _options_to_json(options: Mapping[str, Option]) -> dict[str, Any]:
    return {name: option_to_json(value) for name, value in options.items()}


def option_to_json(value: Option) -> Any:
    """An option as it stands in JSON."""
    # Text stands in an object of its own: "abc" is a hex float as well.
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Scalar):
        return {"tensor": value.value.hex()}
    if isinstance(value, str):
        return {"text": value}
    return [option_to_json(x) for x in value] if isinstance(value, tuple) else value.hex()


def _gradient_to_json(g: Gradient) -> dict[str, Any]:
    result = {"layout": g.layout, "values": _values_to_json(g.values)}
    if g.sparse is not None:
        s = g.sparse
        result["sparse"] = {"entries": list(s.entries), "dimensions": s.dimensions, "coalesced": s.coalesced}
    return {**result, "negated": True} if g.negated else result


#: The name of each kind of event in JSON.


def _event_to_json(event: Event) -> dict[str, Any]:
    """The event's name and its fields; those that stand at their defaults are left out where older traces do not have them."""
    result: dict[str, Any] = {"event": EVENTS[type(event)]}
    if isinstance(event, (Step, Accumulate)):
        gradients = {str(i): None if g is None else _gradient_to_json(g) for i, g in event.gradients.items()}
        result["gradients"] = gradients
    if isinstance(event, Step):
        if event.objective is not None:
            o = event.objective
            result["objective"] = {"kind": o.kind, "centre": _values_to_json(o.centre), "scale": o.scale.hex()}
            result["objective"] |= {} if o.set_to_none else {"set_to_none": False}
        result |= {k: v for k in ("closure", "scaling") if (v := getattr(event, k))}
    elif isinstance(event, ZeroGrad):
        result["set_to_none"] = event.set_to_none
    elif isinstance(event, SetOption):
        result |= {"group": event.group, "option": event.option, "value": option_to_json(event.value)}
    elif isinstance(event, Reload):
        plain_one = Reload()
        keys = ("way", "dictionary", "form", "into")
        result |= {k: getattr(event, k) for k in keys if getattr(event, k) != getattr(plain_one, k)}
    elif isinstance(event, AddGroup):
        result |= _group_to_json(event.group)
    elif isinstance(event, Freeze):
        result |= {"parameter": event.parameter, "frozen": event.frozen}
    elif isinstance(event, (Hook, Schedule)):
        result["kind"] = event.kind
    elif isinstance(event, Fail):
        result |= {"kind": event.kind, "parameter": event.parameter}
    elif isinstance(event, Refuse):
        result |= {"option": event.option, "kind": event.kind, "value": option_to_json(event.value)}
        result |= {"place": event.place, "beside": _options_to_json(event.beside)}
    elif isinstance(event, Spoil):
        result |= {"how": event.how, "way": event.way, "parameter": event.parameter, "buffer": event.buffer}
    return result


# JSON in: everything is checked before anything is believed ---------------------------------------------------------------


def _work(trace: Trace) -> int:
    """What it takes to play and to judge a life, in elements: each event looks at all of them, and at those that a gradient names."""
    each = sum(p.numel + PARAMETER_WORK for p in trace.parameters)
    evaluations = [_EVALUATIONS]
    for options in trace.given_options:
        asked = (options.get("max_eval"), options.get("max_iter"))
        evaluations += [n for n in asked if isinstance(n, int)]
    steps = sum(isinstance(e, Step) and e.objective is not None for e in trace.events)
    more = steps * (max(evaluations) // _EVALUATIONS - 1)
    sparse = ((g.sparse, trace.parameters[i]) for i, g in trace.assigned if g.sparse is not None)
    named = sum(math.prod(s.shape_of_values(p.shape)) for s, p in sparse)
    return each * (max(len(trace.events), 1) + more) + named


class _Reader:
    def trace(self, data: object) -> Trace:
        top = self._object(data, "the trace")
        schema = top.get("schema")
        if schema != SCHEMA:
            raise TraceError(f"trace schema {schema!r}; this version of stepcheck reads schema {SCHEMA}")
        self._only(top, {"schema", "optimizer", "parameters", "groups", "events", "form"}, "the trace")
        optimizer = self._string(top.get("optimizer"), "optimizer")
        raw = self._list(top.get("parameters"), "parameters", MAX_PARAMETERS)
        parameters = tuple(self._parameter(p, f"parameters[{i}]") for i, p in enumerate(raw))
        if sum(p.numel for p in parameters) > MAX_ELEMENTS:
            raise TraceError(f"parameters: more than {MAX_ELEMENTS} elements")
        raw = self._list(top.get("groups"), "groups", MAX_PARAMETERS)
        groups = tuple(self._group(g, f"groups[{i}]", len(parameters)) for i, g in enumerate(raw))
        raw = self._list(top.get("events"), "events", MAX_EVENTS)
        events = tuple(self._event(e, f"events[{i}]", parameters) for i, e in enumerate(raw))
        form = self._choice(top.get("form", "list"), FORMS, "form")
        trace = Trace(optimizer, parameters, groups, events, form)
        self._consistent(trace)
        return trace

    def _consistent(self, trace: Trace) -> None:
        """What one part of a trace says of another."""
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
            if p.within is None:
                continue
            other = trace.parameters[p.within] if p.within < n else None
            beside = [q.within for q in trace.parameters[:n]]
            if other is None or (other.shape, other.dtype) != (p.shape, p.dtype) or p.within in beside:
                raise TraceError(
                    f"parameters[{n}].within: must name an earlier parameter of the same shape and dtype, once"
                )
            if (other.layout, p.layout, other.within) != ("sliced", "sliced", None):
                raise TraceError(f"parameters[{n}].within: both parameters must be sliced")

    def _parameter(self, data: object, where: str) -> Parameter:
        d = self._object(data, where)
        self._only(d, {"shape", "dtype", "layout", "values", "within"}, where)
        shape = tuple(
            self._integer(n, f"{where}.shape", 0, MAX_ELEMENTS)
            for n in self._list(d.get("shape"), f"{where}.shape", MAX_DIMENSIONS)
        )
        if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
            raise TraceError(f"{where}.shape: more than {MAX_ELEMENTS} elements")
        dtype = self._choice(d.get("dtype"), DTYPES, f"{where}.dtype")
        layout = self._choice(d.get("layout"), LAYOUTS, f"{where}.layout")
        if layout == "channels_last" and len(shape) != 4:
            raise TraceError(f"{where}.layout: channels_last needs 4 dimensions, got {len(shape)}")
        count = math.prod(in_reals(shape, dtype))
        within = d.get("within")
        if within is not None:
            within = self._integer(within, f"{where}.within", 0, MAX_PARAMETERS)
        return Parameter(shape, dtype, layout, self._values(d.get("values"), f"{where}.values", count), within)

    def _group(self, data: object, where: str, parameters: int) -> Group:
        d = self._object(data, where)
        self._only(d, {"parameters", "options", "event"}, where)
        members = self._list(d.get("parameters"), f"{where}.parameters", MAX_PARAMETERS)
        indices = tuple(self._integer(i, f"{where}.parameters", 0, parameters - 1) for i in members)
        return Group(indices, self._options(d.get("options"), f"{where}.options"))

    def _options(self, data: object, where: str) -> dict[str, Option]:
        given = self._object(data, where)
        if len(given) > MAX_OPTIONS:
            raise TraceError(f"{where}: {len(given)} entries, at most {MAX_OPTIONS}")
        return {self._string(k, where): self._option(v, f"{where}.{k[:40]}") for k, v in given.items()}

    def _event(self, data: object, where: str, parameters: tuple[Parameter, ...]) -> Event:
        d = self._object(data, where)
        kind = self._choice(d.get("event"), tuple(EVENTS.values()), f"{where}.event")
        event: Event = getattr(self, f"_{kind}")(d, where, parameters)
        return event

    def _step(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Step:
        self._only(d, {"event", "gradients", "objective", "closure", "scaling"}, where)
        given = d.get("objective")
        objective = None if given is None else self._objective(given, f"{where}.objective")
        closure = self._choice(d.get("closure", ""), ("", *CLOSURES), f"{where}.closure")
        scaling = self._choice(d.get("scaling", ""), ("", *SCALINGS), f"{where}.scaling")
        if closure and scaling:
            raise TraceError(f"{where}.scaling: a step with gradient scaling takes no closure")
        return Step(self._gradients(d, where, parameters), objective, closure, scaling)

    def _accumulate(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Accumulate:
        self._only(d, {"event", "gradients"}, where)
        gradients = self._gradients(d, where, parameters)
        dense = {i: g for i, g in gradients.items() if g is not None and g.sparse is None}
        if len(dense) < len(gradients):
            raise TraceError(f"{where}.gradients: what is added must be dense")
        return Accumulate(dense)

    def _gradients(
        self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]
    ) -> dict[int, Gradient | None]:
        gradients = {}
        for key, g in self._object(d.get("gradients"), f"{where}.gradients").items():
            there = f"{where}.gradients.{key[:40]}"
            index = self._integer(int(key) if key.isdecimal() and len(key) < 10 else key, there, 0, len(parameters) - 1)
            gradients[index] = None if g is None else self._gradient(g, there, parameters[index])
        return gradients

    def _zero_grad(self, d: dict[str, Any], where: str, _: object) -> ZeroGrad:
        self._only(d, {"event", "set_to_none"}, where)
        return ZeroGrad(self._flag(d.get("set_to_none"), f"{where}.set_to_none"))

    def _set_option(self, d: dict[str, Any], where: str, _: object) -> SetOption:
        self._only(d, {"event", "group", "option", "value"}, where)
        group = self._integer(d.get("group"), f"{where}.group", 0, MAX_PARAMETERS)
        option = self._string(d.get("option"), f"{where}.option")
        return SetOption(group, option, self._option(d.get("value"), f"{where}.value"))

    def _reload(self, d: dict[str, Any], where: str, _: object) -> Reload:
        self._only(d, {"event", "way", "dictionary", "form", "into"}, where)
        return Reload(
            self._choice(d.get("way", WAYS[0]), WAYS, f"{where}.way"),
            self._choice(d.get("dictionary", DICTIONARIES[0]), DICTIONARIES, f"{where}.dictionary"),
            self._choice(d.get("form", FORMS[0]), FORMS, f"{where}.form"),
            self._integer(d.get("into", 0), f"{where}.into", 0, MAX_OPTIONS),
        )

    def _add_group(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> AddGroup:
        return AddGroup(self._group(d, where, len(parameters)))

    def _freeze(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Freeze:
        self._only(d, {"event", "parameter", "frozen"}, where)
        index = self._integer(d.get("parameter"), f"{where}.parameter", 0, len(parameters) - 1)
        return Freeze(index, self._flag(d.get("frozen"), f"{where}.frozen"))

    def _hook(self, d: dict[str, Any], where: str, _: object) -> Hook:
        self._only(d, {"event", "kind"}, where)
        return Hook(self._choice(d.get("kind"), HOOKS, f"{where}.kind"))

    def _schedule(self, d: dict[str, Any], where: str, _: object) -> Schedule:
        self._only(d, {"event", "kind"}, where)
        return Schedule(self._choice(d.get("kind"), SCHEDULES, f"{where}.kind"))

    def _schedule_step(self, d: dict[str, Any], where: str, _: object) -> ScheduleStep:
        self._only(d, {"event"}, where)
        return ScheduleStep()

    def _fail(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Fail:
        self._only(d, {"event", "kind", "parameter"}, where)
        kind = self._choice(d.get("kind"), FAILURES, f"{where}.kind")
        return Fail(kind, self._integer(d.get("parameter"), f"{where}.parameter", 0, len(parameters) - 1))

    def _refuse(self, d: dict[str, Any], where: str, _: object) -> Refuse:
        self._only(d, {"event", "option", "kind", "value", "place", "beside"}, where)
        option, kind = (self._string(d.get(k), f"{where}.{k}") for k in ("option", "kind"))
        place = self._choice(d.get("place"), PLACES, f"{where}.place")
        value = self._option(d.get("value"), f"{where}.value")
        return Refuse(option, kind, value, place, self._options(d.get("beside"), f"{where}.beside"))

    def _spoil(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Spoil:
        self._only(d, {"event", "how", "way", "parameter", "buffer"}, where)
        return Spoil(
            self._choice(d.get("how"), SPOILINGS, f"{where}.how"),
            self._choice(d.get("way"), SPOILING_WAYS, f"{where}.way"),
            self._integer(d.get("parameter"), f"{where}.parameter", 0, len(parameters) - 1),
            self._integer(d.get("buffer"), f"{where}.buffer", 0, MAX_OPTIONS),
        )

    def _objective(self, data: object, where: str) -> Objective:
        d = self._object(data, where)
        self._only(d, {"kind", "centre", "scale", "set_to_none"}, where)
        kind = self._choice(d.get("kind"), OBJECTIVES, f"{where}.kind")
        centre = self._values(d.get("centre"), f"{where}.centre", -1)
        scale = self._number(d.get("scale"), f"{where}.scale")
        return Objective(kind, centre, scale, self._flag(d.get("set_to_none", True), f"{where}.set_to_none"))

    def _gradient(self, data: object, where: str, parameter: Parameter) -> Gradient:
        d = self._object(data, where)
        self._only(d, {"layout", "values", "sparse", "negated"}, where)
        layout = self._choice(d.get("layout"), GRADIENT_LAYOUTS, f"{where}.layout")
        shape, dtype = parameter.shape, parameter.dtype
        if layout == "channels_last" and len(shape) != 4:
            raise TraceError(f"{where}.layout: channels_last needs 4 dimensions, got {len(shape)}")
        if layout == "conjugated" and not is_complex(dtype):
            raise TraceError(f"{where}.layout: conjugated needs a complex dtype, got {dtype}")
        sparse = None if d.get("sparse") is None else self._sparse(d["sparse"], f"{where}.sparse", shape)
        named = shape if sparse is None else sparse.shape_of_values(shape)
        values = self._values(d.get("values"), f"{where}.values", math.prod(in_reals(named, dtype)))
        return Gradient(values, layout, sparse, self._flag(d.get("negated", False), f"{where}.negated"))

    def _sparse(self, data: object, where: str, shape: tuple[int, ...]) -> Sparse:
        d = self._object(data, where)
        self._only(d, {"entries", "dimensions", "coalesced"}, where)
        entries = tuple(
            self._integer(n, f"{where}.entries", 0, MAX_ELEMENTS)
            for n in self._list(d.get("entries"), f"{where}.entries", MAX_ELEMENTS)
        )
        dimensions = self._integer(d.get("dimensions"), f"{where}.dimensions", 1, MAX_DIMENSIONS)
        sparse = Sparse(entries, dimensions, self._flag(d.get("coalesced"), f"{where}.coalesced"))
        problem = sparse.problem(shape)
        if problem:
            raise TraceError(f"{where}: {problem}")
        if math.prod(sparse.shape_of_values(shape)) > MAX_ELEMENTS:
            raise TraceError(f"{where}.entries: more than {MAX_ELEMENTS} elements")
        return sparse

    def _values(self, data: object, where: str, count: int) -> Values:
        d = self._object(data, where)
        recipe = self._choice(d.get("recipe"), tuple(RECIPES), f"{where}.recipe")
        if recipe == "listed":
            self._only(d, {"recipe", "listed"}, where)
            listed = tuple(
                self._number(x, f"{where}.listed") for x in self._list(d.get("listed"), f"{where}.listed", MAX_ELEMENTS)
            )
            if len(listed) != count:
                raise TraceError(f"{where}.listed: {len(listed)} numbers for {count} elements")
            return Values("listed", listed=listed)
        self._only(d, {"recipe", "seed", "low", "high"}, where)
        seed = self._integer(d.get("seed"), f"{where}.seed", 0, 2**64 - 1)
        return Values(
            recipe, seed, self._number(d.get("low"), f"{where}.low"), self._number(d.get("high"), f"{where}.high")
        )

    def _option(self, data: object, where: str) -> Option:
        if data is None or isinstance(data, bool):
            return data
        if isinstance(data, int):
            return self._integer(data, where, -(2**53), 2**53)
        if isinstance(data, dict) and "tensor" in data:
            self._only(data, {"tensor"}, where)
            return Scalar(self._number(data["tensor"], where))
        if isinstance(data, dict):
            self._only(data, {"text"}, where)
            return self._string(data.get("text"), where)
        if isinstance(data, list):
            entries = self._list(data, where, MAX_DIMENSIONS)
            return tuple(None if x is None else self._number(x, where) for x in entries)
        return self._number(data, where)

    @staticmethod
    def _number(data: object, where: str) -> float:
        if isinstance(data, str):
            try:
                return float.fromhex(data)
            except (ValueError, OverflowError):
                pass
        raise TraceError(f"{where}: must be a hex float such as '0x1.8p-3', got {str(data)[:40]!r}")

    @staticmethod
    def _integer(data: object, where: str, low: int, high: int) -> int:
        if isinstance(data, bool) or not isinstance(data, int) or not low <= data <= high:
            raise TraceError(f"{where}: must be an integer from {low} to {high}, got {str(data)[:40]!r}")
        return data

    @staticmethod
    def _flag(data: object, where: str) -> bool:
        if not isinstance(data, bool):
            raise TraceError(f"{where}: must be true or false")
        return data

    @staticmethod
    def _string(data: object, where: str) -> str:
        if not isinstance(data, str) or len(data) > 200:
            raise TraceError(f"{where}: must be a short string")
        return data

    @staticmethod
    def _choice(data: object, choices: tuple[str, ...], where: str) -> str:
        if not isinstance(data, str) or data not in choices:
            raise TraceError(f"{where}: must be one of {', '.join(choices)}, got {str(data)[:40]!r}")
        return data

    @staticmethod
    def _object(data: object, where: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise TraceError(f"{where}: must be a JSON object, got {type(data).__name__}")
        return data

    @staticmethod
    def _list(data: object, where: str, most: int) -> list[Any]:
        if not isinstance(data, list):
            raise TraceError(f"{where}: must be a JSON array, got {type(data).__name__}")
        if len(data) > most:
            raise TraceError(f"{where}: {len(data)} entries, at most {most}")
        return data

    @staticmethod
    def _only(data: dict[str, Any], known: set[str], where: str) -> None:
        extra = sorted(set(data) - known)
        if extra:
            raise TraceError(f"{where}: unknown key {extra[0][:40]!r}")
