"""Write a failing life as a stand-alone script: it imports torch and the subject alone, and asserts what must hold."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from stepcheck.harness.checking import twins
from stepcheck.harness.checking.findings import NO_EFFECT, TWIN, Finding
from stepcheck.harness.judging import formula
from stepcheck.harness.judging.evaluations import EVALUATION
from stepcheck.harness.judging.judge import Deviation
from stepcheck.harness.life import schedules
from stepcheck.harness.life.events import (
    STAYS,
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
    Spoil,
    Step,
    ZeroGrad,
    keywords,
)
from stepcheck.harness.life.memory import GUARD, GUARD_ELEMENTS, room, rounded, strides
from stepcheck.harness.life.objectives import EXPRESSIONS
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values, in_reals, is_complex
from stepcheck.harness.numbers.comparison import Array
from stepcheck.harness.play import resume, spoil
from stepcheck.harness.play.families import sibling
from stepcheck.harness.play.recording import CALLERS_GROUPS
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support import settings
from stepcheck.reference.spec import PARAMETER

_CLOSURE = [
    "def flat(p):",
    "    return (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).double()",
    "def closure():",
    "    points.append(torch.cat([flat(p.detach()) for p in params]))",
    "    optimizer.zero_grad({cleared})",
    "    loss = scale * sum(function(flat(p) - c) for p, c in zip(params, centres))",
    "    loss.backward()",
    "    return loss",
]
_VIEW = [
    "def view(values, size, stride, room):  # a tensor inside a larger buffer, guard values around it",
    f"    buffer = torch.full((room,), {GUARD!r}, dtype=values.dtype, device=values.device)",
    f"    return buffer.as_strided(size, stride, {GUARD_ELEMENTS}).copy_(values)",
    "",
    "",
]


def script(subject: Subject, trace: Trace, finding: Finding, *, twice: bool = False) -> str:
    """The script's text: at most 30 lines. It ends in an error as long as the divergence is there.

    Args:
        trace: the life; what comes after the finding is left out.
        finding: what must not be.
        twice: it shows when the life is played for the second time in one process.
    """
    other = _other_life(trace, finding)
    if other is not None:
        return "\n".join(_two_lives(subject, trace, finding, *other)) + "\n"
    writer = _Writer(subject, trace, finding)
    writer.twice = twice
    for compact, argued in ((False, True), (True, True), (False, False), (True, False)):
        lines = writer.lines(compact=compact, argued=argued)
        if len(lines) <= 30:
            break
    return "\n".join(lines) + "\n"


def _other_life(trace: Trace, finding: Finding) -> tuple[Trace, int] | None:
    """The life that a finding sets beside another, and the number of its parameter there."""
    if finding.cause.endswith(NO_EFFECT):
        return next(
            ((u.trace, 0) for u in twins.unset(trace) if finding.cause.startswith(f"{u.option} {u.where}")), None
        )
    if finding.cause != TWIN or finding.parameter is None:
        return None
    lives = (twin for twin in twins.TWINS[finding.check](trace) if finding.parameter in twin.parameters)
    return next(((twin.trace, twin.parameters[finding.parameter]) for twin in lives), None)


def _two_lives(subject: Subject, trace: Trace, finding: Finding, other: Trace, number: int) -> list[str]:
    """Both lives, and what must be alike in them, or must not."""
    here, there = ([n for n, e in enumerate(t.events) if isinstance(e, Step)] for t in (trace, other))
    at = there[here.index(finding.event or 0) - len(here)]  # counted from the end: the other one may begin later
    plain = replace(finding, check="agreement", deviation=None)
    header, one = _Writer(subject, trace, plain).parts(compact=True, argued=False)
    _, two = _Writer(subject, other, replace(plain, event=at)).parts(compact=True, argued=False)
    d = finding.deviation
    if d is None:
        all_of_it = "str([params, [optimizer.state.get(p) for p in params]])"
        exact = "torch.set_printoptions(precision=20, threshold=100000)"
        ends = [f"before = {all_of_it}"], [f"assert {all_of_it} != before, 'it is the same without'"]
        return [*header[:-1], exact, "", *one, *ends[0], "# The same life without it.", *two, *ends[1]]
    where = "".join(f"[{n}]" for n in d.index)
    parts = is_complex(trace.parameters[d.parameter].dtype) and bool(d.index)
    read = "float({}%s)" % where  # noqa: UP031 - braces are for what is read
    tensors = ["torch.view_as_real({})" if parts else "{}"] * 2
    got, expected = (
        read.format(t.format(f"params[{n}].detach()")) for t, n in zip(tensors, (d.parameter, number), strict=True)
    )
    return [
        *header, *one, f"got = {got}", "# The same life, with what must not matter changed.", *two,
        f"expected, budget = {expected}, {d.budget!r}  # what vectors of another length may cost",
        'assert abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}"',
    ]  # fmt: skip


def run(text: str) -> str:
    """Why a script is no proof of its divergence, run here: it ends well, or cannot begin. Empty where it fails as it should."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(text, "script", "exec"), {"__name__": "__main__"})  # noqa: S102 - it was written here
    except (ImportError, SyntaxError) as error:
        return f"This script does not run by itself: {type(error).__name__}: {error}"
    except BaseException:  # noqa: BLE001 - that it raises is what it is for
        return ""
    why = (
        "stepcheck compares more than the script can" if "assert " in text else "it plays the life and asserts nothing"
    )
    return f"This script does not fail in a fresh process: {why}."


class _Writer:
    twice = False
    argument: formula.Formula | str = ""

    def __init__(self, subject: Subject, trace: Trace, finding: Finding) -> None:
        self.subject, self.trace, self.finding = subject, trace, finding
        self.guarded = finding.check == "memory-beside"
        self.told: Objective | None = None
        self.groups: list[Group] = []
        self.scaler = False
        told = (e.objective for e in trace.events if isinstance(e, Step) and e.objective is not None)
        self.cleared = "" if all(o.set_to_none for o in told) else "set_to_none"
        self.hooks: list[str] = []
        self.scheduled = [e.kind for e in trace.events if isinstance(e, Schedule)][-1:]

    def lines(self, *, compact: bool, argued: bool) -> list[str]:
        header, body = self.parts(compact=compact, argued=argued)
        return [*header, *body]

    def parts(self, *, compact: bool, argued: bool) -> tuple[list[str], list[str]]:
        """What is imported, and what is done."""
        trace, finding, self.told = self.trace, self.finding, None
        self.argument = self._formula if argued else ""
        self.groups, self.scaler, self.hooks = list(trace.groups), False, []
        inside = self._inside
        parameters = [f"    {'None' if n in inside else self._parameter(p)}," for n, p in enumerate(trace.parameters)]
        events = trace.events if finding.event is None else trace.events[: finding.event + 1]
        body = ["params = [", *parameters, "]"]
        if compact:
            body = ["params = [" + " ".join(line.strip() for line in parameters) + "]"]
        body += [f"params[{n}] = {self._between(trace.parameters[n], host)}" for n, host in inside.items()]
        changed = finding.check == "dicts-unchanged" and finding.event is None
        body += self._construct(
            self.subject, trace.groups, [g.options for g in trace.groups], trace.form, named=changed
        )
        if changed:
            body.insert(-1, "before = str(groups)")
        if finding.cause in settings.EXPRESSIONS:
            body.insert(0, f"before = {settings.EXPRESSIONS[finding.cause]}")
        if finding.check == "hooks-run-once" and self.subject.explicit:
            # The first instance of torch's own class patches its step.
            body.insert(0, f"torch.optim.{self.subject.spec.name}([torch.zeros(1, 1, requires_grad=True)])")
        if finding.event is None and finding.check == "completes" and not self.twice:
            body[-1] += f"  # {finding.summary}"
        if self.subject.after:
            body.append(self.subject.after)
        for n, event in enumerate(events):
            if finding.spoilt is not None and not isinstance(event, AddGroup | SetOption | Spoil):
                continue  # it is another optimizer whose state is spoilt
            last = n == finding.event
            lines = self._event(event)
            if last:  # what is remembered is what stood before the step itself, its gradients assigned
                place = self._place(event, lines)
                lines[place:place] = self._before()
            body += lines
            if last and finding.check == "completes" and not self.twice:
                body[-1] += f"  # {finding.summary}"
        body += self._after()
        if self.twice:
            body = self._played_twice(body)
        if any("calls" in line for line in body):
            body.insert(0, "calls = []")
        if any("points" in line for line in body):
            body = [*(line.format(cleared=self.cleared) for line in _CLOSURE), *body]
        helper = _VIEW if any(re.search(r"(?<![.\w])view\(", line) for line in body) else []
        imports = ["import torch"]
        if getattr(self.subject.make, "__module__", "") == "stepcheck.harness.known.ledger":
            # A class that is there to show what torch does is written out.
            imports += [
                "from typing import Any",
                "",
                "",
                *inspect.getsource(self.subject.make).rstrip().splitlines(),
                "",
            ]
        elif self.subject.imports:
            imports += [
                '__import__("sys").path.insert(0, "")  # modules are looked for where you stand',
                self.subject.imports,
            ]
        imports += self._versions
        if any("str(" in line for line in body):
            imports.append("torch.set_printoptions(precision=20, threshold=100000)")
        about = " ".join(f"# {self.subject.name}: {finding.summary}".splitlines())  # or what follows would be run
        return [about, *imports, "", *([""] if helper else []), *helper], body

    @property
    def _formula(self) -> formula.Formula | str:
        """What the reference computes for the witness, or why that is not written down."""
        d = self.finding.deviation
        if d is None:
            return ""
        return formula.of(self.subject.spec, d, self.trace.group_of[d.parameter])

    @property
    def _versions(self) -> list[str]:
        """What the script says of the software that it runs."""
        package = _distribution(self.subject)
        if not package:
            return ['print("torch", torch.__version__)']
        told = f'print("torch", torch.__version__, {package!r}, importlib.metadata.version({package!r}))'
        return ["import importlib.metadata", told]

    def _played_twice(self, body: Sequence[str]) -> list[str]:
        loop = ["for _ in range(2):  # the second time it comes out differently", *(f"    {line}" for line in body)]
        if self.finding.check != "completes":
            return loop  # what it asserts fails the second time
        kept = "    results.append(str([(p.detach(), optimizer.state.get(p)) for p in params]))"
        return ["results = []", *loop, kept, 'assert results[0] == results[1], "\\n".join(results)']

    @property
    def _there(self) -> str:
        """The argument that makes a tensor where parameters are."""
        return _on(self.subject.device)

    def _dense(self, values: Array, dtype: str) -> str:
        """An expression for a row-major tensor where parameters are."""
        moved = "" if self.subject.device == "cpu" else f".to({self.subject.device!r})"
        return _dense(values, dtype) + moved

    def _literals(self, options: Mapping[str, Any]) -> dict[str, str]:
        return {k: _literal(v, self.subject.device) for k, v in options.items()}

    def _parameter(self, p: Parameter) -> str:
        made = self._tensor(p.values, p.shape, p.dtype, p.layout, guarded=self.guarded)
        if self.subject.takes is not None and self.subject.takes.parameters_only:
            return f"torch.nn.Parameter({made})"
        # In a differentiable step the parameter is no leaf.
        return f"{made}.requires_grad_(){'.clone()' if self.subject.differentiable else ''}"

    @property
    def _inside(self) -> dict[int, int]:
        """Parameters in the gaps of another, and which. In a differentiable step each is a copy, in memory of its own."""
        within = {n: p.within for n, p in enumerate(self.trace.parameters) if p.within is not None}
        return {} if self.subject.differentiable else within

    def _between(self, p: Parameter, host: int) -> str:
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

    def _construct(
        self,
        subject: Subject,
        groups: Sequence[Group],
        options: Sequence[Mapping[str, Option]],
        form: str,
        *,
        named: bool = False,
    ) -> list[str]:
        """The statements that construct the optimizer; ``named``, the groups get a name first."""
        options = subject.complete_all(options)
        common = keywords(options, form) | (subject.constructor_only & options[0].keys())
        shared = self._literals({k: v for k, v in options[0].items() if k in common})
        given = [
            (self._members(g, form), self._literals({k: v for k, v in o.items() if k not in common}))
            for g, o in zip(groups, options, strict=True)
        ]
        flags = self._literals(subject.mode_options)
        if len(given) == 1 and form not in ("dicts", "mixed"):
            return [f"optimizer = {_call(subject.callee, given[0][0], {**shared, **flags})}"]
        if subject.explicit:
            shared |= given[0][1]
        listed = ", ".join(_dictionary(members, o) for members, o in given)
        listed = {"tuple": f"({listed},)", "iterator": f"iter([{listed}])"}.get(form, f"[{listed}]")
        lines = [f"groups = {listed}"] if named else []
        return [*lines, f"optimizer = {_call(subject.callee, 'groups' if named else listed, {**shared, **flags})}"]

    def _members(self, group: Group, form: str) -> str:
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

    def _added(self, group: Group) -> str:
        """The dictionary that add_param_group is given: what the constructor was given for all groups does not hold for it."""
        default = vars(self.subject.spec.hyper_values())
        names = (
            self.subject.options
            if self.subject.explicit
            else keywords([g.options for g in self.trace.groups], self.trace.form)
        )
        options = {**{k: default[k] for k in sorted(names)}, **group.options}
        members = self._members(group, "named" if self.trace.form == "named" else "list")
        return _dictionary(members, self._literals(options))

    def _event(self, event: Event) -> list[str]:
        if isinstance(event, Step):
            return self._step(event)
        if isinstance(event, Reload):
            return self._reload(event)
        if isinstance(event, Fail):
            return self._fail(event)
        if isinstance(event, Accumulate):
            return [f"({_real(f'params[{i}]', self.trace.parameters[i])} * {self._addend(i, g)}).sum().backward()"
                    for i, g in event.gradients.items()]  # fmt: skip
        if isinstance(event, ZeroGrad):
            return [f"optimizer.zero_grad(set_to_none={event.set_to_none})"]
        if isinstance(event, SetOption):
            value = _literal(event.value, self.subject.device)
            return [f"optimizer.param_groups[{event.group}][{event.option!r}] = {value}"]
        if isinstance(event, AddGroup):
            self.groups.append(event.group)
            return [f"group = {self._added(event.group)}", "optimizer.add_param_group(group)"]
        if isinstance(event, Freeze):
            return [f"params[{event.parameter}].requires_grad_({not event.frozen})"]
        if isinstance(event, Hook):
            self.hooks.append(event.kind)
            return [self._hook(event.kind)]
        if isinstance(event, Schedule):
            return [
                f"schedule = {schedules.written(event.kind, [h.name for h in self.subject.spec.hyper], len(self.groups), cycle=self._cycles())}"
            ]
        if isinstance(event, ScheduleStep):
            return ["schedule.step(1.0)" if "ReduceLROnPlateau" in self.scheduled else "schedule.step()"]
        if isinstance(event, Spoil):
            return self._spoil(event)
        assert isinstance(event, Refuse)
        return self._refuse(event)

    def _refuse(self, event: Refuse) -> list[str]:
        """A call that must raise."""
        about_parameters = event.option == "params"
        given = dict(event.beside) if about_parameters else {**event.beside, event.option: event.value}
        options, flags = self._literals(self.subject.complete(given)), self._literals(self.subject.mode_options)
        # Wrong parameters are pictured in Python: lists of p, of q, and of what is made of them.
        pictured = str(event.value) if about_parameters else "params"
        if event.place == "group":
            parts = pictured.split(", [") if about_parameters else [pictured]
            members = [part if part.startswith("[") or not about_parameters else f"[{part}" for part in parts]
            call = _call(self.subject.callee, f"[{', '.join(_dictionary(m, options) for m in members)}]", flags)
        elif event.place == "add_param_group":
            added = f"[{pictured.rpartition('[')[2]}" if about_parameters else "[q]"
            call = f"optimizer.add_param_group({_dictionary(added, options)})"
        else:
            call = _call(self.subject.callee, pictured, {**options, **flags})
        return [
            f"p, q = params[0], torch.zeros(2, 3, requires_grad=True{self._there})",
            "accepted = True",
            "try:",
            f"    {call}",
            "except Exception as error:",
            "    accepted = print(repr(error))",
        ]

    def _spoil(self, event: Spoil) -> list[str]:
        """Steps before and after; of a life that goes on, nothing: they were taken by copies."""
        arrival, i = self.finding.spoilt, event.parameter
        if arrival is None or self.trace.events[self.finding.event or 0] is not event:
            return []
        sparse = ".to_sparse(1)" if self.subject.spec.sparse == "only" else ""
        step = f"optimizer.step({self._by_name}lambda: 0.75)" if self.subject.closure.required else "optimizer.step()"
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

    def _fenced(self, event: Spoil, place: str) -> list[str]:
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

    @staticmethod
    def _hook(kind: str) -> str:
        return f"optimizer.register_{kind}_hook(lambda *_: calls.append({kind!r}))"

    def _step(self, event: Step) -> list[str]:
        lines = [f"params[{i}].grad = {self._gradient(i, g)}" for i, g in event.gradients.items()]
        if event.objective is not None:
            if event.objective != self.told:
                self.told = event.objective
                lines += self._objective(event.objective)
            return [*lines, "points = []", f"optimizer.step({self._by_name}closure)"]
        if self.subject.closure.required and not event.closure:
            event = replace(event, closure="tensor", scaling="")
        if event.closure:
            result = {"none": "None", "float": "0.75"}.get(event.closure, "torch.tensor(0.75)")
            return ["def assigning():", "    calls.append(torch.is_grad_enabled())", *(f"    {line}" for line in lines),
                    f"    return {result}", f"result = optimizer.step({self._by_name}assigning)"]  # fmt: skip
        if len(lines) > 1:
            lines = ["; ".join(lines)]
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

    def _addend(self, index: int, gradient: Gradient) -> str:
        p = self.trace.parameters[index]
        return _real(self._dense(gradient.realise(p.shape, p.dtype), p.dtype), p)

    @property
    def _by_name(self) -> str:
        """How a closure is passed."""
        return "closure=" if self.subject.closure.keyword else ""

    def _fail(self, event: Fail) -> list[str]:
        i, kept = event.parameter, []
        step = f"optimizer.step({self._by_name}lambda: 0.75)" if self.subject.closure.required else "optimizer.step()"
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

    def _reload(self, event: Reload) -> list[str]:
        if event.way in ("copied", "unpickled"):
            self.hooks = []
        modes = [self.subject.after] if self.subject.takes is not None and self.subject.takes.modes else []
        if event.way == "copied":
            return ["import copy", "optimizer = copy.deepcopy(optimizer, {id(p): p for p in params})", *modes]
        if event.way == "unpickled":
            return ["import pickle", "params, optimizer = pickle.loads(pickle.dumps((params, optimizer)))", *modes]
        aged = self._aged() if event.dictionary == "aged" else []
        if event.way == STAYS:
            return aged
        playing = sibling(self.subject, event.into, self.trace)
        named = self.finding.check == "dicts-unchanged" and self.finding.cause == CALLERS_GROUPS
        lines = ["saved = optimizer.state_dict()"]
        given = [g.options if self.subject.explicit else {} for g in self.groups]
        lines += self._construct(playing, self.groups, given, event.form, named=named)
        lines += [self.subject.after] if self.subject.after else []
        lines += [self._hook(kind) for kind in self.hooks]
        if event.into:
            flags = {k: playing.mode_options.get(k, None if k == "foreach" else False) for k in resume.FLAGS}
            lines.append(f"for g in saved['param_groups']: g.update({{k: v for k, v in {flags}.items() if k in g}})")
        lines[:0] = aged
        if event.dictionary == "older":
            counters = resume.counters(self.subject.spec)
            lines += [
                f"for s in saved['state'].values(): s.update({{k: s[k].item() for k in {counters} if torch.is_tensor(s.get(k))}})",
                f"for g in saved['param_groups']: [g.pop(k, None) for k in {list(resume.FLAGS)}]",
            ]
        elif event.dictionary == "foreign":
            lines += [
                "groups = [{**g, 'params': [1000 - 7 * k for k in g['params']]} for g in saved['param_groups']]",
                "saved = {**saved, 'param_groups': groups, 'state': {1000 - 7 * k: v for k, v in reversed(saved['state'].items())}}",
            ]
        lines += {
            "saved": [
                "import io; file = io.BytesIO(); torch.save(saved, file); file.seek(0)",
                "saved = torch.load(file, weights_only=True)",
            ],
            "deepcopied": ["import copy; saved = copy.deepcopy(saved)"],
            "pickled": ["import pickle; saved = pickle.loads(pickle.dumps(saved))"],
        }.get(event.way, [])
        lines.append("optimizer.load_state_dict(saved)")
        if event.dictionary == "older" and playing.mode_options:
            lines.append(f"for g in optimizer.param_groups: g.update({dict(playing.mode_options)})")
        return lines

    def _aged(self) -> list[str]:
        """The statements that make the optimizer older."""
        if not self.subject.explicit:
            counts = resume.counts(self.subject.spec)
            return [
                f"for s in optimizer.state.values(): s.update({{k: s[k] + {resume.AGE} for k in {counts} if s.get(k)}})"
            ]
        if not resume.ages(self.trace):
            return []
        step = f"optimizer.step({self._by_name}lambda: 0.75)" if self.subject.closure.required else "optimizer.step()"
        sparse = ".to_sparse()" if self.subject.spec.sparse == "only" else ""
        return [
            "kept = [p.grad for p in params]",
            f"for p in params: p.grad = torch.zeros_like(p).detach(){sparse} if p.requires_grad else None",
            f"for _ in range({resume.AGED_BY}): {step}",
            "for p, g in zip(params, kept): p.grad = g",
        ]

    def _unscaling(self, event: Step) -> list[str]:
        """Who undoes the scaling, if not the scaler within its step."""
        if self.subject.unscales(self.trace, event):
            return ["optimizer._step_supports_amp_scaling = True  # as torch.optim sets it for fused=True"]
        return ["scaler.unscale_(optimizer)"] if event.scaling == "unscale" else []

    def _objective(self, objective: Objective) -> list[str]:
        centres = []
        for n, p in enumerate(self.trace.parameters):
            values = replace(objective.centre, seed=objective.centre.seed + n)
            centres.append(self._dense(values.realise((math.prod(in_reals(p.shape, p.dtype)),)), "float64"))
        expression = EXPRESSIONS[objective.kind]
        names, assigned = "function, scale", f"lambda x: {expression}, {objective.scale!r}"
        if self.cleared:
            names, assigned = f"{names}, set_to_none", f"{assigned}, {objective.set_to_none}"
        return [f"{names} = {assigned}", f"centres = [{', '.join(centres)}]"]

    def _gradient(self, index: int, gradient: Gradient | None) -> str:
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

    @property
    def _saved(self) -> str:
        """What must go through a round trip unchanged, as an expression."""
        if self.finding.cause.startswith("option "):
            return f"[g[{self.finding.cause.removeprefix('option ')!r}] for g in optimizer.param_groups]"
        return "[optimizer.state.get(p) for p in params]"

    @property
    def _given(self) -> str:
        """The caller's dictionary that must stay as it is."""
        if self.finding.cause == CALLERS_GROUPS:
            return "groups"
        return "group" if "group" in self.finding.cause else "saved"

    def _place(self, event: Event, lines: Sequence[str]) -> int:
        """Where in the lines of an event what stands before it is to be remembered."""
        check = self.finding.check
        if isinstance(event, (Step, AddGroup)):
            return -1
        if isinstance(event, Fail):
            return lines.index("try:") if "try:" in lines else 0
        if check == "dicts-unchanged" and self.finding.cause == CALLERS_GROUPS:
            return next((n for n, line in enumerate(lines) if line.startswith("optimizer = ")), 0)
        # What is loaded is remembered before it is loaded, what there was before it is saved.
        last = "optimizer.load_state_dict(saved)"
        return lines.index(last) if last in lines and check in ("dicts-unchanged", "loaded-state-apart") else 0

    def _before(self) -> list[str]:
        """What has to be remembered before the event that goes wrong."""
        i, check = self.finding.parameter, self.finding.check
        if isinstance(self.argument, formula.Formula) and self._live is not None:
            return [_assigned(self._live) + "  # what the step starts from"]
        if check == "gradient-unwritten":
            return ["before = [None if p.grad is None else p.grad.clone() for p in params]"]
        if check == "no-gradient":
            return [f"before, state = params[{i}].detach().clone(), str(optimizer.state[params[{i}]])"]
        if check == "save-load-continue" and self.finding.deviation is None:
            return [f"before = str({self._saved})"]
        if check in ("failed-step", "skipped-step"):
            return ["before = str([(p.detach(), optimizer.state.get(p)) for p in params])"]
        if check == "storage-stays":
            return [f"before = {_PLACE.format(i)}"]
        if check == "random-state":
            return [f"import random; before = {_RANDOM}"]
        if check == "settings-kept" and self.finding.cause not in settings.EXPRESSIONS:
            return ["before = str(optimizer.defaults)"]
        if check == "hooks-run-once":
            return ["calls.clear()"]
        if check == "dicts-unchanged" and self.finding.event is not None:
            return [f"before = str({self._given})"]
        if check == "failed-step" and self.finding.cause == "gradient":
            return [f"before = {_GRADIENTS}"]
        if check == "between-steps" and self.finding.cause not in ("gradient", "gradient taken"):
            return [f"before = str([params[{i}].detach(), optimizer.state[params[{i}]]])"]
        return []

    @property
    def _live(self) -> dict[str, str] | None:
        """Expressions for what stands before the step; ``None`` where the numbers themselves are written."""
        d, event = self.finding.deviation, self.trace.events[self.finding.event or 0]
        if not isinstance(self.argument, formula.Formula) or d is None or d.item is None:
            return None
        p, gradient = self.trace.parameters[d.parameter], getattr(event, "gradients", {}).get(d.parameter)
        plain = isinstance(event, Step) and not event.closure and not event.scaling
        if not plain or is_complex(p.dtype) or (gradient is not None and gradient.sparse is not None):
            return None
        if len(d.index) != len(p.shape):
            return None
        where, single = (
            "".join(f"[{n}]" for n in d.index),
            {b.name for b in self.subject.spec.buffers if b.per_parameter},
        )
        told = {"p": f"params[{d.parameter}].detach(){where}", "g": f"params[{d.parameter}].grad{where}"}
        for name, value in self.argument.values.items():
            if name not in told:
                held = f"optimizer.state[params[{d.parameter}]][{name!r}]{'' if name in single else where}"
                told[name] = held if name in d.item.life.state else _number(value)
        return {name: told[name] for name in self.argument.values}

    def _after(self) -> list[str]:
        i, check = self.finding.parameter, self.finding.check
        if check == "memory-beside":
            assert i is not None
            p, host = self.trace.parameters[i], self._inside.get(i, i)
            starts = [GUARD_ELEMENTS, *(GUARD_ELEMENTS + 1 for h in self._inside.values() if h == host)]
            size, strided = room(p.shape, p.layout), f"{p.shape}, {strides(p.shape, p.layout)}"
            return [
                f"own = torch.zeros({size}, dtype=torch.bool)",
                *(f"own.as_strided({strided}, {start}).fill_(True)" for start in starts),
                f"memory = params[{i}].detach().as_strided(({size},), (1,), 0)",
                f"assert (memory[~own] == torch.tensor({GUARD!r}, dtype=memory.dtype)).all(), memory",
            ]
        if check == "gradient-unwritten":
            same = f"torch.equal(params[{i}].grad.nan_to_num(), before[{i}].nan_to_num())"
            return [f"assert {same}, (before[{i}], params[{i}].grad)"]
        if check == "no-gradient":
            return [
                f"assert str(before) == str(params[{i}].detach()), (before, params[{i}])",
                f"assert state == str(optimizer.state[params[{i}]]), (state, optimizer.state[params[{i}]])",
            ]
        if check == "save-load-continue" and self.finding.deviation is None:
            return [f"after = str({self._saved})", 'assert before == after, f"{before}\\n{after}"']
        if check == "between-steps" and self.finding.cause == "gradient":
            event = self.trace.events[self.finding.event or 0]
            filled = "" if isinstance(event, ZeroGrad) and event.set_to_none else f" or not params[{i}].grad.any()"
            return [f"assert params[{i}].grad is None{filled}, params[{i}].grad"]
        if check == "between-steps" and self.finding.cause == "gradient taken":
            return [f"assert params[{i}].grad is not None"]
        if check == "between-steps":
            return [
                f"after = str([params[{i}].detach(), optimizer.state[params[{i}]]])",
                'assert before == after, f"{before}\\n{after}"',
            ]
        if check == "failed-step" and self.finding.cause.startswith(("swallows", "not raised")):
            return ["assert raised, 'it does not raise'"]
        if check == "failed-step" and self.finding.cause == "gradient":
            return [f"assert before == {_GRADIENTS}, (before, {_GRADIENTS})"]
        if check in ("failed-step", "skipped-step"):
            return [
                "after = str([(p.detach(), optimizer.state.get(p)) for p in params])",
                'assert before == after, f"{before}\\n{after}"',
            ]
        if check == "malformed-state" and self.finding.spoilt is not None:
            return self._assert_arrival(self.finding.spoilt)
        if check == "refuses-invalid":
            return [f"assert not accepted, {self.finding.summary!r}"]
        if check == "storage-stays":
            return [f"assert before == {_PLACE.format(i)}, (before, {_PLACE.format(i)})"]
        if check == "random-state":
            return [f"assert before == {_RANDOM}"]
        if check == "settings-kept":
            now = settings.EXPRESSIONS.get(self.finding.cause, "str(optimizer.defaults)")
            return [f"assert before == {now}, (before, {now})"]
        if check == "closure":
            event = self.trace.events[self.finding.event or 0]
            if isinstance(event, Step) and event.objective is not None:
                return ["assert points, 'the closure was not called'"]
            nothing = isinstance(event, Step) and event.closure == "none"
            expected = "result is None" if nothing else "result is not None and float(result) == 0.75"
            return ["assert calls == [True], calls", f"assert {expected}, result"]
        if check == "hooks-run-once":
            kinds = [e.kind for e in self.trace.events[: self.finding.event] if isinstance(e, Hook)]
            return [f"assert calls.count({self.finding.cause!r}) == {kinds.count(self.finding.cause)}, calls"]
        if check == "dicts-unchanged":
            return [f"after = str({self._given})", 'assert before == after, f"{before}\\n{after}"']
        if check == "loaded-state-apart":
            return [
                "mine = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]",
                "theirs = [v for s in saved['state'].values() for v in s.values() if torch.is_tensor(v)]",
                "assert not any(a is b for a in mine for b in theirs)",
            ]
        if check == "options-hold" and self.finding.option is not None:
            group, name, value = self.finding.option
            got = f"optimizer.param_groups[{group}][{name!r}]"
            return [f"assert {got} == {_literal(value)}, {got}"]
        return self._assert_witness() if self.finding.deviation is not None else []

    def _assert_arrival(self, arrival: spoil.Arrival) -> list[str]:
        place = f"params[{arrival.parameter}].detach()"
        if arrival.written:
            return [
                "guarded.fill_(torch.nan)  # its own elements; all others must be what they were",
                "memory = guarded.as_strided((guarded.untyped_storage().nbytes() // guarded.element_size(),), (1,), 0)",
                f"assert (memory.isnan() | (memory == {GUARD!r})).all(), memory",
            ]
        if arrival.element is None:
            shape = self.trace.parameters[arrival.parameter].shape
            return [f"assert raised or {place}.shape == {shape}, {place}.shape"]
        part = f"torch.view_as_real({place})" if is_complex(self.trace.parameters[arrival.parameter].dtype) else place
        return [
            f"got, expected, budget = float({part}.reshape(-1)[{arrival.element}]), {arrival.expected!r}, {arrival.budget!r}  # with the right tensor",
            'assert raised or abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}, and it does not raise"',
        ]

    def _assert_witness(self) -> list[str]:
        d = self.finding.deviation
        assert d is not None
        where = "".join(f"[{n}]" for n in d.index)
        parts = is_complex(self.trace.parameters[d.parameter].dtype) and bool(d.index)
        if d.field == EVALUATION:
            return self._assert_evaluation(d)
        if pairs := re.search(r"holds \d+ pairs, not (\d+)", d.problem):
            held = f"len(optimizer.state[params[{d.parameter}]][{d.field!r}])"
            return [f"assert {held} == {pairs[1]}, {held}"]
        if d.problem:
            return [f"assert {d.field!r} in optimizer.state[params[{d.parameter}]]  # {d.problem}"]
        if d.center is not None:
            return self._assert_distance(d, d.center)
        fields = [self._held(d.parameter, name) for name in (d.of, d.field) if name]
        got = " + ".join(f"float({f'torch.view_as_real({field})' if parts else field}{where})" for field in fields)
        return self._assert_close(got, d)

    def _held(self, parameter: int, name: str) -> str:
        """The expression of a parameter, or of a tensor of its state."""
        if name.startswith(PARAMETER):
            return f"params[{parameter}].detach()"
        return f"optimizer.state[params[{parameter}]][{name!r}]"

    def _assert_distance(self, d: Deviation, center: Array) -> list[str]:
        """Of all elements of a matrix together."""
        expected = _dense(center.reshape(self.trace.parameters[d.parameter].shape), "float64")
        return [
            f"expected, budget = {expected}, {d.budget!r}  # the reference ({self.argument}), and what rounding may cost",
            f"distance = float((params[{d.parameter}].detach() - expected).norm())",
            'assert distance <= budget, f"{distance} from the reference, not within {budget}"',
        ]

    def _assert_evaluation(self, d: Deviation) -> list[str]:
        if pairs := re.search(r"holds \d+ pairs, not (\d+)", d.problem):
            held = f"len(optimizer.state[params[{d.parameter}]][{d.field!r}])"
            return [f"assert {held} == {pairs[1]}, {held}"]
        if d.problem:
            return [f"assert not len(points), len(points)  # {d.problem}"]
        n, element = d.index
        return self._assert_close(f"float(points[{n}][{element}])", d)

    def _assert_close(self, got: str, d: Deviation) -> list[str]:
        lines = [f"got = {got}"]
        if math.isnan(d.expected):
            return [*lines, "assert got != got, got  # must be NaN"]
        if math.isinf(d.expected):
            return [*lines, f"assert got == {_number(d.expected)}, got"]
        if isinstance(self.argument, formula.Formula):
            values = {name: _number(value) for name, value in self.argument.values.items()}
            options = {name: _number(value) for name, value in self.argument.options.items()}
            lines += (
                [] if self._live is not None or not values else [_assigned(values) + "  # what the step starts from"]
            )
            lines += [_assigned(options)] if options else []
            lines += self.argument.lines
            lines[-1] += "  # the reference, in float64"
            lines.append(f"budget = {d.budget!r}  # what rounding may cost")
        else:
            why = f" ({self.argument})" if self.argument else ""
            lines.append(
                f"expected, budget = {d.expected!r}, {d.budget!r}  # the reference{why}, and what rounding may cost"
            )
        return [*lines, 'assert abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}"']


_PLACE = "[getattr(params[{0}], k) for k in ('shape', 'dtype')] + [params[{0}].data_ptr(), params[{0}].stride()]"


#: Expressions: the random state, and all gradients.
_RANDOM = "[torch.get_rng_state().tolist(), random.getstate()]"
_GRADIENTS = "[p.grad if p.grad is None else p.grad.to_dense().tolist() for p in params]"


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()


def _distribution(subject: Subject) -> str:
    """The installed package that a class comes from; empty where it comes from none."""
    module = subject.imports.partition("from ")[2].partition(" ")[0].partition(".")[0]
    if subject.explicit and module == "stepcheck":
        return ""  # a class of the zoo
    return next(iter(_distributions().get(module, ())), "") if module else ""


def _assigned(expressions: Mapping[str, str]) -> str:
    """Names assigned to numbers, as float64 tensors: they divide by zero and overflow as tensors do."""
    names = ", ".join(expressions) if len(expressions) > 1 else f"({next(iter(expressions))},)"
    numbers = [
        e if e[0].isdigit() or e[0] == "-" or e.startswith("torch.") else f"float({e})" for e in expressions.values()
    ]
    return f"{names} = torch.tensor([{', '.join(numbers)}], dtype=torch.float64)"


def _on(device: str) -> str:
    """The argument that makes a tensor on this device."""
    return "" if device == "cpu" else f", device={device!r}"


def _call(callee: str, members: str, options: Mapping[str, str]) -> str:
    return f"{callee}({', '.join([members, *(f'{k}={v}' for k, v in options.items())])})"


def _dictionary(members: str, options: Mapping[str, str]) -> str:
    return f"{{'params': {members}{''.join(f', {k!r}: {v}' for k, v in options.items())}}}"


def _literal(value: Any, device: str = "cpu") -> str:
    """A value as an expression; of a tensor, on the device where it stands when parameters are on this one."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Scalar):
        where = schedules.place(value, device)
        return f"torch.tensor({_number(value.value)}{_on(where)})"
    return _number(value) if isinstance(value, float) else repr(value)


def _real(expression: str, p: Parameter) -> str:
    return f"torch.view_as_real({expression})" if is_complex(p.dtype) else expression


def _number(x: float) -> str:
    if math.isnan(x):
        return "torch.nan"
    if math.isinf(x):
        return "torch.inf" if x > 0 else "-torch.inf"
    return repr(float(x))


def _short(x: float, dtype: str) -> float:
    """A number that a tensor of this dtype holds, or one with fewer digits that it would hold as the same."""
    if dtype != "float32" or not math.isfinite(x):
        return float(x)
    short = float(np.format_float_scientific(np.float32(x)))
    return short if np.float32(short) == x else float(x)


def _dense(values: Array, dtype: str) -> str:
    """An expression for a row-major tensor of these real numbers; of a complex one, the last dimension is its parts."""
    tensor = rounded(values, getattr(torch, dtype))
    shape = tuple(tensor.shape)
    if is_complex(dtype):
        real = "float32" if dtype == "complex64" else "float64"
        return f"torch.view_as_complex({_dense(values, real)})"
    flat = [_short(x, dtype) for x in tensor.reshape(-1).tolist()]
    kind = "" if dtype == "float32" else f", dtype=torch.{dtype}"
    if not flat or (len(set(flat)) == 1 and math.copysign(1, flat[0]) > 0):
        return f"torch.full({shape}, {_number(flat[0] if flat else 0.0)}{kind})"
    inner = f"torch.tensor([{', '.join(map(_number, flat))}]{kind})"
    return inner if len(shape) == 1 else f"{inner}.view({shape})"
