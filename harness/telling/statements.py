"""Each event of a life as the statements that play it, with torch alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.checking.witness import Witness
from stepcheck.harness.life import events, schedules
from stepcheck.harness.life.memory import GUARD_ELEMENTS, room, strides
from stepcheck.harness.life.objectives import EXPRESSIONS
from stepcheck.harness.life.spelling import spelled
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values, in_reals
from stepcheck.harness.numbers.comparison import Array
from stepcheck.harness.play import resume, spoil, torchs
from stepcheck.harness.play.families import sibling
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.telling.expressions import (
    SURROUNDED,
    call,
    dense,
    dictionary,
    literal,
    of_groups,
    on,
    ramp,
    real,
)

#: A tensor that is an option, filled in place.
_FILLED = "set_to = {value}; {place} = {place}.fill_(set_to) if torch.is_tensor({place}) else set_to"


def _registered(kind: str) -> str:
    return f"optimizer.register_{kind}_hook(lambda *_: calls.append({kind!r}))"


def _first(_: Sequence[str]) -> int:
    return 0


def _last(lines: Sequence[str]) -> int:
    """Before the step itself, its gradients assigned."""
    steps = (n for n, line in enumerate(lines) if "optimizer.step(" in line or "scaler.step(" in line)
    return next(steps, max(len(lines) - 1, 0))


def _tried(lines: Sequence[str]) -> int:
    return lines.index("try:") if "try:" in lines else 0


class Statements:
    """Writes a life. What an event is written as depends on those before it.

    Args:
        trace: the life.
        finding: what goes wrong in it.
        witness: what shows that.
    """

    def __init__(self, subject: Subject, trace: Trace, finding: Finding, witness: Witness) -> None:
        self.subject, self.trace, self.finding, self.witness = subject, trace, finding, witness
        told = (e.objective for e in trace.events if isinstance(e, events.Step) and e.objective is not None)
        self.cleared = "" if all(o.set_to_none for o in told) else "set_to_none"
        self.scheduled = [e.kind for e in trace.events if isinstance(e, events.Schedule)][-1:]
        self.told: events.Objective | None = None
        self.groups: list[events.Group] = list(trace.at_first)
        self.scaler = self.another = False
        self.hooks: list[str] = []

    @property
    def event(self) -> events.Event | None:
        """The event that goes wrong; ``None`` for the construction."""
        return None if self.finding.event is None else self.trace.events[self.finding.event]

    def literal(self, value: events.Option) -> str:
        """A value as an expression."""
        return literal(value)

    def written(self, event: events.Event) -> list[str]:
        """An event as statements."""
        return self._WRITTEN[type(event)][0](self, event)

    def remembering(self, event: events.Event) -> list[str]:
        """The event that goes wrong as statements, and before the step itself what is remembered."""
        lines, (_, usual) = self.written(event), self._WRITTEN[type(event)]
        at = self.witness.at(self)
        place = next((n for n, line in enumerate(lines) if at and line.startswith(at)), usual(lines))
        return [*lines[:place], *self.witness.remembers(self), *lines[place:]]

    @property
    def _there(self) -> str:
        """The argument that makes a tensor where parameters are."""
        return on(self.subject.device)

    def _dense(self, values: Array, dtype: str) -> str:
        """An expression for a row-major tensor where parameters are."""
        moved = "" if self.subject.device == "cpu" else f".to({self.subject.device!r})"
        return dense(values, dtype) + moved

    def _literals(self, options: Mapping[str, Any]) -> dict[str, str]:
        return {k: literal(v, self.subject.device) for k, v in options.items()}

    def _spelled(self, options: Mapping[str, events.Option]) -> dict[str, str]:
        """Options as the life writes them."""
        spelling = self.trace.spelling
        return self._literals(
            {k: v if isinstance(v, events.Scalar) else spelled(v, spelling) for k, v in options.items()}
        )

    def parameter(self, p: events.Parameter) -> str:
        """A parameter of its own memory."""
        made = self._tensor(p.values, p.shape, p.dtype, p.layout, guarded=self.witness.guarded)
        if self.subject.takes is not None and self.subject.takes.parameters_only:
            return f"torch.nn.Parameter({made})"
        # In a differentiable step the parameter is no leaf.
        return f"{made}.requires_grad_(){'.clone()' if self.subject.differentiable else ''}"

    @property
    def inside(self) -> dict[int, int]:
        """Parameters in the gaps of another, and which. In a differentiable step each is a copy, in memory of its own."""
        within = {n: p.within for n, p in enumerate(self.trace.parameters) if p.within is not None}
        return {} if self.subject.differentiable else within

    def between(self, p: events.Parameter, host: int) -> str:
        """A parameter in the gaps of an earlier one."""
        place = f"{p.shape}, {strides(p.shape, p.layout)}, {GUARD_ELEMENTS + 1}"
        values = self._dense(p.values.realise(in_reals(p.shape, p.dtype)), p.dtype)
        return f"params[{host}].detach().as_strided({place}).copy_({values}).requires_grad_()"

    def _tensor(
        self,
        values: Values,
        shape: tuple[int, ...],
        dtype: str,
        layout: str,
        *,
        guarded: bool = False,
        negated: bool = False,
    ) -> str:
        if values.recipe == "ramp" and layout == "contiguous" and not guarded:
            moved = "" if self.subject.device == "cpu" else f".to({self.subject.device!r})"
            return ramp(values, shape, dtype, negated=negated) + moved
        realised = values.realise(in_reals(shape, dtype))
        realised = -realised if negated else realised
        if layout == "conjugated":
            # What is given is the conjugate of what stands in memory.
            realised = realised * np.array([1.0, -1.0])
            return f"{self._dense(realised, dtype)}.conj()"
        if layout == "expanded" and shape:
            row = (1, *shape[1:])
            inner = self._dense(realised[:1], dtype)
            size = room(shape, layout)
            return f"view({inner}, {row}, {strides(shape, layout)}, {size}).expand({shape})"
        dense = self._dense(realised, dtype)
        if layout == "contiguous" and not guarded:
            return dense
        return f"view({dense}, {shape}, {strides(shape, layout)}, {room(shape, layout)})"

    def construct(
        self,
        subject: Subject,
        groups: Sequence[events.Group],
        options: Sequence[Mapping[str, events.Option]],
        form: str,
        *,
        named: bool = False,
    ) -> list[str]:
        """The statements that construct the optimizer; ``named``, the groups get a name first."""
        options = subject.complete_all(options)
        common = events.keywords(options, form) | (subject.keyword_only & options[0].keys())
        shared = self._spelled({k: v for k, v in options[0].items() if k in common})
        given = [
            (self._members(g, form), self._spelled({k: v for k, v in o.items() if k not in common}))
            for g, o in zip(groups, options, strict=True)
        ]
        flags = self._literals(self._switches(subject))
        if len(given) == 1 and form not in ("dicts", "mixed"):
            return [f"optimizer = {call(subject.callee, given[0][0], {**shared, **flags})}"]
        if subject.explicit:
            shared |= given[0][1]
        listed = ", ".join(dictionary(members, o) for members, o in given)
        listed = {"tuple": f"({listed},)", "iterator": f"iter([{listed}])"}.get(form, f"[{listed}]")
        lines = [f"groups = {listed}"] if named else []
        return [*lines, f"optimizer = {call(subject.callee, 'groups' if named else listed, {**shared, **flags})}"]

    def _switches(self, subject: Subject) -> dict[str, Any]:
        """The keywords that select an implementation: a mode's, and the flags of the life."""
        return {**subject.mode_options, **dict.fromkeys(self.trace.flags, True)}

    def _members(self, group: events.Group, form: str) -> str:
        """The parameters of a group."""
        everyone = group.parameters == tuple(range(len(self.trace.parameters)))
        members = "params" if everyone else f"[{', '.join(f'params[{i}]' for i in group.parameters)}]"
        if form == "tuple":
            members = f"tuple({members})"
        elif form == "iterator":
            members = f"iter({members})"
        elif form == "named":
            pairs = [f"('p{i}', params[{i}])" for i in group.parameters]
            members = f"[{', '.join(pairs)}]"
        return members

    def _added(self, group: events.Group) -> str:
        """The dictionary that add_param_group is given: what the constructor was given for all groups does not hold for it."""
        default = vars(self.subject.spec.hyper_values())
        names = (
            self.subject.options
            if self.subject.explicit
            else events.keywords([g.options for g in self.trace.groups], self.trace.form)
        )
        options = {**{k: default[k] for k in sorted(names)}, **group.options}
        members = self._members(group, "named" if self.trace.form == "named" else "list")
        return dictionary(members, self._spelled(self.subject.terms.theirs(options)))

    def _run(self, event: events.Run) -> list[str]:
        step = self._plain_step()
        return [f"for _ in range({event.steps}): {step}"]

    def _handle(self, event: events.Handle) -> list[str]:
        i = event.parameter
        p, members = self.trace.parameters[i], f"optimizer.param_groups[{self.trace.group_of[i]}]['params']"
        if event.how == "written":
            return [
                f"with torch.no_grad(): params[{i}].copy_({self._dense(event.values.realise(in_reals(p.shape, p.dtype)), p.dtype)})"
            ]
        if event.how == "swapped":
            return [f"params[{i}].data = {self._tensor(event.values, p.shape, p.dtype, p.layout)}"]
        return {
            "cleared": ["optimizer.state.clear()"],
            "replaced": ["import collections; optimizer.state = collections.defaultdict(dict)"],
            "forgotten": [f"optimizer.state.pop(params[{i}], None)"],
            "kept": ["import copy; kept = copy.deepcopy(optimizer.state_dict())"],
            "rolled back": ["optimizer.load_state_dict(copy.deepcopy(kept))"],
            "removed": [f"{members}[:] = [p for p in {members} if p is not params[{i}]]"],
            "appended": [f"{members}.append(params[{i}])"],
            "regrouped": ["optimizer.param_groups[:] = [dict(g) for g in optimizer.param_groups]"],
        }[event.how]

    def _accumulate(self, event: events.Accumulate) -> list[str]:
        return [
            f"({real(f'params[{i}]', self.trace.parameters[i])} * {self._addend(i, g)}).sum().backward()"
            for i, g in event.gradients.items()
        ]

    def _set_option(self, event: events.SetOption) -> list[str]:
        given = self._spelled(self.subject.terms.theirs({event.option: event.value}))
        places = ((f"optimizer.param_groups[{event.group}][{name!r}]", value) for name, value in given.items())
        # One that is filled somebody's class may have made a number of.
        written = _FILLED if event.in_place else "{place} = {value}"
        return [written.format(place=place, value=value) for place, value in places]

    def _add_group(self, event: events.AddGroup) -> list[str]:
        self.groups.append(event.group)
        return [f"group = {self._added(event.group)}", "optimizer.add_param_group(group)"]

    def _hook(self, event: events.Hook) -> list[str]:
        self.hooks.append(event.kind)
        return [_registered(event.kind)]

    def _schedule(self, event: events.Schedule) -> list[str]:
        options = [h.name for h in self.subject.spec.hyper]
        return [f"schedule = {schedules.written(event.kind, options, len(self.groups), cycle=self._cycles())}"]

    def _schedule_step(self, _: events.ScheduleStep) -> list[str]:
        return ["schedule.step(1.0)" if "ReduceLROnPlateau" in self.scheduled else "schedule.step()"]

    def _step(self, event: events.Step) -> list[str]:
        lines = [f"params[{i}].grad = {self._gradient(i, g)}" for i, g in event.gradients.items()]
        if event.objective is not None:
            if event.objective != self.told:
                self.told = event.objective
                lines += self._objective(event.objective)
            return [*lines, "points = []", f"optimizer.step({self._by_name}closure)"]
        if self.subject.closure.required and not event.closure:
            event = replace(event, closure="tensor", scaling="")
        if event.closure:
            loss = literal(events.LOSSES.get(event.closure, 0.75))
            result = {"none": "None", "float": "0.75"}.get(event.closure, f"torch.tensor({loss})")
            return ["def assigning():", "    calls.append(torch.is_grad_enabled())", *(f"    {line}" for line in lines),
                    f"    return {result}", f"result = optimizer.step({self._by_name}assigning)"]  # fmt: skip
        if len(lines) > 1:
            lines = ["; ".join(lines)]
        if event.within == "another optimizer":
            return [*lines, *self._another(), "optimizer.step()"]
        if event.within:
            return [*lines, *SURROUNDED[event.within]]
        if not event.scaling:
            return [*lines, "optimizer.step()"]
        made = f'scaler = torch.amp.GradScaler("{self.subject.device}", growth_interval=2)'
        first = [] if self.scaler else [f"{made}; scaler.scale(torch.zeros((){self._there}))"]
        self.scaler = True
        return [
            *lines,
            *first,
            "for p in params: p.grad = p.grad if p.grad is None else p.grad * scaler.get_scale()",
            *self._unscaling(event),
            "scaler.step(optimizer); scaler.update()",
        ]

    def _another(self) -> list[str]:
        """A step of another optimizer of the class, which is made before its first one."""
        groups, made = self.trace.groups, []
        if not self.another:
            made = self.construct(self.subject, groups, [g.options for g in groups], self.trace.form)
            made = [re.sub(r"(?<!')\bparams\b", "others", line).replace("optimizer = ", "other = ") for line in made]
            made = ["others = [p.detach().clone().requires_grad_() for p in params]", *made]
            made += [self.subject.after.replace("optimizer", "other")] if self.subject.after else []
        self.another = True
        return [*made, *self._along_ones("other", "others")]

    def _along_ones(self, optimizer: str, parameters: str) -> list[str]:
        """A step of an optimizer along gradients of ones."""
        sparse = ".to_sparse(1)" if self.subject.spec.sparse == "only" else ""
        return [f"for p in {parameters}: p.grad = torch.ones_like(p).detach(){sparse}", self._plain_step(optimizer)]

    def _addend(self, index: int, gradient: events.Gradient) -> str:
        p = self.trace.parameters[index]
        return real(self._dense(gradient.realise(p.shape, p.dtype), p.dtype), p)

    @property
    def _by_name(self) -> str:
        """How a closure is passed."""
        return "closure=" if self.subject.closure.keyword else ""

    def _plain_step(self, optimizer: str = "optimizer") -> str:
        """A step with the gradients that there are, and with a closure where there must be one."""
        return (
            f"{optimizer}.step({self._by_name}lambda: 0.75)" if self.subject.closure.required else f"{optimizer}.step()"
        )

    def _fail(self, event: events.Fail) -> list[str]:
        i, kept = event.parameter, []
        step = self._plain_step()
        if event.kind == "gradient" and self.subject.spec.sparse not in ("", "only"):
            return []  # it takes both kinds
        if event.kind == "closure":
            step = f"optimizer.step({self._by_name}lambda: 1 / 0)"
        elif event.kind == "hook":
            step = f"hook = optimizer.register_step_pre_hook(lambda *_: 1 / 0); {step}"
        elif event.kind == "dtype":
            other = "float32" if self.trace.parameters[i].dtype == "float64" else "float64"
            unfit = f"torch.ones(params[{i}].shape, dtype=torch.{other}{self._there})"
            kept = [f"params[{i}].grad_dtype = None; params[{i}].grad = {unfit}"]
        elif self.subject.spec.sparse == "only":
            kept = [f"params[{i}].grad = torch.ones_like(params[{i}])"]
        else:
            kept = [f"params[{i}].grad = torch.ones_like(params[{i}]).detach().to_sparse()"]
        lines = ["raised = ''", "try:", f"    {step}", "except Exception as error:", "    raised = repr(error)"]
        if event.kind == "hook":
            lines.append("hook.remove()")
        if not kept:
            return lines
        restored = [f"params[{i}].grad = None"]
        restored += [f"params[{i}].grad_dtype = params[{i}].dtype"] if event.kind == "dtype" else []
        return [f"kept = params[{i}].grad", *kept, *lines, "; ".join([*restored, f"params[{i}].grad = kept"])]

    def _reload(self, event: events.Reload) -> list[str]:
        if event.way in ("copied", "unpickled"):
            return self._copied(event)
        aged = self._aged(resume.AGES[event.dictionary]) if event.dictionary in resume.AGES else []
        if event.way == events.STAYS:
            return aged
        playing = sibling(self.subject, event.into, self.trace)
        named = self.witness.names_groups(self)
        lines = ["saved = optimizer.state_dict()", *(self._renewed() if event.afresh else [])]
        given = [g.options if self.subject.explicit else {} for g in self.groups]
        lines += self.construct(playing, self.groups, given, event.form, named=named)
        lines += [self.subject.after] if self.subject.after else []
        lines += [_registered(kind) for kind in self.hooks]
        if event.into:
            flags = {k: playing.mode_options.get(k, None if k == "foreach" else False) for k in events.FLAGS}
            lines.append(f"for g in saved['param_groups']: g.update({{k: v for k, v in {flags}.items() if k in g}})")
        lines[:0] = aged
        if event.dictionary == "older":
            lines += self._older()
        elif event.dictionary == "foreign":
            lines += [
                "groups = [{**g, 'params': [1000 - 7 * k for k in g['params']]} for g in saved['param_groups']]",
                "saved = {**saved, 'param_groups': groups, 'state': {1000 - 7 * k: v for k, v in reversed(saved['state'].items())}}",
            ]
        elif event.dictionary in torchs.NAMES and torchs.may_be_loaded(self.subject):
            lines += self._as_torchs(event)
        lines += {
            "saved": [
                "import io; file = io.BytesIO(); torch.save(saved, file); file.seek(0)",
                f"saved = torch.load(file, weights_only={resume.weights_only(self.trace)})",
            ],
            "deepcopied": ["import copy; saved = copy.deepcopy(saved)"],
            "pickled": ["import pickle; saved = pickle.loads(pickle.dumps(saved))"],
        }.get(event.way, [])
        lines.append("optimizer.load_state_dict(saved)")
        if event.dictionary == "older" and self._switches(playing):
            lines.append(f"for g in optimizer.param_groups: g.update({self._switches(playing)})")
        return lines

    def _as_torchs(self, event: events.Reload) -> list[str]:
        """The dictionary in the form that torch's own class gives it."""
        spec = self.subject.spec
        at = next(n for n, e in enumerate(self.trace.events) if e is event)
        theirs = torchs.saved(spec, self.trace, at, Player)
        names = [] if theirs is None else list(dict.fromkeys(n for s in theirs["state"].values() for n in s))
        lines = [
            f"options = torch.optim.{spec.name}([torch.zeros(1, 1, requires_grad=True)]).defaults  # with torch's own, in their order",
            "saved['param_groups'] = [{**options, **g} for g in saved['param_groups']]",
            f"saved['state'] = {{k: {{n: s[n] for n in {names} if n in s}} for k, s in saved['state'].items()}}",
        ]
        return [*lines, *self._older()] if event.dictionary == torchs.OLDER else lines

    def _older(self) -> list[str]:
        """The dictionary as older versions saved it."""
        counters = resume.counters(self.subject.spec)
        return [
            f"for s in saved['state'].values(): s.update({{k: s[k].item() for k in {counters} if torch.is_tensor(s.get(k))}})",
            f"for g in saved['param_groups']: [g.pop(k, None) for k in {list(events.FLAGS)}]",
        ]

    def _copied(self, event: events.Reload) -> list[str]:
        """A copy; made together with the parameters, the original goes on as well."""
        self.hooks = []
        modes = [self.subject.after] if self.subject.takes is not None and self.subject.takes.modes else []
        module, both = {
            "copied": ("copy", "copy.deepcopy((params, optimizer))"),
            "unpickled": ("pickle", "pickle.loads(pickle.dumps((params, optimizer)))"),
        }[event.way]
        if event.afresh:
            first = [f"import {module}", "old, original = params, optimizer", f"params, optimizer = {both}"]
            return [*first, *modes, *self._along_ones("original", "old")]
        if event.way == "copied":
            return ["import copy", "optimizer = copy.deepcopy(optimizer, {id(p): p for p in params})", *modes]
        return [f"import {module}", f"params, optimizer = {both}", *modes]

    def _renewed(self) -> list[str]:
        """Other tensors with the same values for parameters; the old ones live on, so that nothing else has their identity."""
        wraps = self.subject.takes is not None and self.subject.takes.parameters_only
        copied = (
            "torch.nn.Parameter(p.detach().clone(), p.requires_grad)"
            if wraps
            else "p.detach().clone().requires_grad_(p.requires_grad)"
        )
        return [
            f"old, params = params, [{copied} for p in reversed(params)][::-1]",
            "for p, q in zip(old, params): q.grad, p.grad = p.grad, None",
        ]

    def _aged(self, steps: int) -> list[str]:
        """The statements that make the optimizer older."""
        if not self.subject.explicit:
            counts = resume.counts(self.subject.spec)
            return [f"for s in optimizer.state.values(): s.update({{k: s[k] + {steps} for k in {counts} if s.get(k)}})"]
        if not resume.ages(self.trace):
            return []
        step = self._plain_step()
        sparse = ".to_sparse()" if self.subject.spec.sparse == "only" else ""
        return [
            "kept = [p.grad for p in params]",
            f"for p in params: p.grad = torch.zeros_like(p).detach(){sparse} if p.requires_grad else None",
            f"for _ in range({resume.AGED_BY}): {step}",
            "for p, g in zip(params, kept): p.grad = g",
        ]

    def _unscaling(self, event: events.Step) -> list[str]:
        """Who undoes the scaling, if not the scaler within its step."""
        if self.subject.unscales(self.trace, event):
            return ["optimizer._step_supports_amp_scaling = True  # as torch.optim sets it for fused=True"]
        return ["scaler.unscale_(optimizer)"] if event.scaling == "unscale" else []

    def _objective(self, objective: events.Objective) -> list[str]:
        centres = []
        for n, p in enumerate(self.trace.parameters):
            values = replace(objective.centre, seed=objective.centre.seed + n)
            centres.append(self._dense(values.realise((math.prod(in_reals(p.shape, p.dtype)),)), "float64"))
        expression = EXPRESSIONS[objective.kind]
        names, assigned = "function, scale", f"lambda x: {expression}, {objective.scale!r}"
        if self.cleared:
            names, assigned = f"{names}, set_to_none", f"{assigned}, {objective.set_to_none}"
        return [f"{names} = {assigned}", f"centres = [{', '.join(centres)}]"]

    def _gradient(self, index: int, gradient: events.Gradient | None) -> str:
        if gradient is None:
            return "None"
        p = self.trace.parameters[index]
        if gradient.sparse is None:
            return self._tensor(gradient.values, p.shape, p.dtype, gradient.layout, negated=gradient.negated)
        sparse = gradient.sparse
        entries = np.array(sparse.entries, np.int64)
        indices = np.array(np.unravel_index(entries, p.shape[: sparse.dimensions])).reshape(sparse.dimensions, -1)
        listed = f"torch.tensor({indices.tolist()}, dtype=torch.int64{self._there})"
        values = self._dense(gradient.realise(p.shape, p.dtype), p.dtype)
        coalesced = ", is_coalesced=True" if sparse.coalesced else ""
        return f"torch.sparse_coo_tensor({listed}, {values}, {p.shape}{coalesced}, check_invariants=True)"

    def _refuse(self, event: events.Refuse) -> list[str]:
        """A call that must raise."""
        about_parameters = event.option == "params"
        given = dict(event.beside) if about_parameters else {**event.beside, event.option: event.value}
        options, flags = self._literals(self.subject.complete(given)), self._literals(self.subject.mode_options)
        # Wrong parameters are pictured in Python: lists of p, of q, and of what is made of them.
        pictured = str(event.value) if about_parameters else "params"
        if event.place == "group":
            attempt = of_groups(self.subject.callee, pictured, options, flags)
        elif event.place == "load_state_dict" and about_parameters:
            theirs, own = (of_groups(self.subject.callee, groups, options, flags) for groups in pictured.split(" for "))
            attempt = f"{own}.load_state_dict({theirs}.state_dict())"
        elif event.place == "add_param_group":
            added = f"[{pictured.rpartition('[')[2]}" if about_parameters else "[q]"
            attempt = f"optimizer.add_param_group({dictionary(added, options)})"
        else:
            attempt = call(self.subject.callee, pictured, {**options, **flags})
        return [
            f"p, q = params[0], torch.zeros(2, 3, requires_grad=True{self._there})",
            "accepted = True",
            "try:",
            f"    {attempt}",
            "except Exception as error:",
            "    accepted = print(repr(error))",
        ]

    def _spoil(self, event: events.Spoil) -> list[str]:
        """Steps before and after; of a life that goes on, nothing: they were taken by copies."""
        arrival, i = self.finding.spoilt, event.parameter
        if arrival is None or self.trace.events[self.finding.event or 0] is not event:
            return []
        sparse = ".to_sparse(1)" if self.subject.spec.sparse == "only" else ""
        step = self._plain_step()
        state = f"optimizer.state[params[{i}]]"
        loading = [
            f"saved = optimizer.state_dict(); saved['state'][{self._number(i)}][{arrival.buffer!r}] = s",
            f"optimizer.load_state_dict(saved); s = {state}[{arrival.buffer!r}]",
        ]
        return [
            f"for p, dtype in zip(params, {self._dtypes}): p.data = {spoil.PLAIN}.to(dtype)",
            "def step(n):",
            f"    for p in params: p.grad = ({spoil.GRADIENT}){sparse}",
            f"    {step}",
            "; ".join(f"step({n})" for n in spoil.BEFORE),
            f"t = {state}[{arrival.buffer!r}].clone(memory_format=torch.contiguous_format)",
            f"s = {spoil.EXPRESSIONS[event.how]}  # {event.how}",
            *(loading if event.way == "loaded" else []),
            *self._fenced(event, f"{state}[{arrival.buffer!r}]"),
            "import contextlib; raised = True",
            "with contextlib.suppress(Exception):",
            f"    {'; '.join(f'step({n})' for n in spoil.AFTER[: arrival.steps])}; raised = False",
        ]

    def _fenced(self, event: events.Spoil, place: str) -> list[str]:
        """The statements that put a tensor into a larger buffer, as the player does."""
        t = torch.ones(self.trace.parameters[event.parameter].shape)
        value = spoil.spoilt(event.how, t)
        if not spoil.has_strides(value):
            return [] if event.way == "loaded" else [f"{place} = s"]
        return [f"{place} = guarded = view(s, s.shape, s.stride(), {spoil.room(value, t.numel())})"]

    @property
    def _dtypes(self) -> str:
        """Those of the parameters where state is spoilt."""
        return f"[{', '.join(f'torch.{dtype}' for dtype in spoil.dtypes(self.trace.parameters))}]"

    def _number(self, index: int) -> int:
        """Of a parameter in a state_dict."""
        return [i for g in self.groups for i in g.parameters].index(index)

    def _cycles(self) -> bool:
        """Whether a schedule may change momentum: as the player decides it."""
        begins = self.subject.explicit and any(g.options.get("momentum", 0) == 0 for g in self.groups)
        return not (begins and "momentum" in self.subject.options) and not self.trace.given_sparse

    #: How each kind of event is written, and before which of its lines that is remembered what stood before it.
    _WRITTEN: ClassVar[
        Mapping[type[events.Event], tuple[Callable[[Statements, Any], list[str]], Callable[[Sequence[str]], int]]]
    ] = events.of_every_event(
        {
            events.Step: (_step, _last),
            events.Accumulate: (_accumulate, _first),
            events.ZeroGrad: (lambda _, event: [f"optimizer.zero_grad(set_to_none={event.set_to_none})"], _first),
            events.SetOption: (_set_option, _first),
            events.Reload: (_reload, _first),
            events.AddGroup: (_add_group, _last),
            events.Freeze: (lambda _, event: [f"params[{event.parameter}].requires_grad_({not event.frozen})"], _first),
            events.Hook: (_hook, _first),
            events.Schedule: (_schedule, _first),
            events.ScheduleStep: (_schedule_step, _first),
            events.Fail: (_fail, _tried),
            events.Refuse: (_refuse, _first),
            events.Spoil: (_spoil, _first),
            events.Run: (_run, _first),
            events.Handle: (_handle, _first),
        }
    )
