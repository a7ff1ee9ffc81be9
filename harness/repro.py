"""Write a failing life as a stand-alone script: it imports torch and the subject alone, and asserts what must hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from stepcheck.harness import orthogonal
from stepcheck.harness.checks import Finding
from stepcheck.harness.comparison import PARAMETER, Array
from stepcheck.harness.evaluations import EVALUATION
from stepcheck.harness.judge import Deviation
from stepcheck.harness.memory import GUARD, GUARD_ELEMENTS, room, rounded, strides
from stepcheck.harness.objectives import EXPRESSIONS
from stepcheck.harness.subjects import Subject
from stepcheck.harness.trace import (
    Event,
    Gradient,
    Objective,
    Parameter,
    Reload,
    SetOption,
    Step,
    Trace,
    Values,
    ZeroGrad,
    in_reals,
    is_complex,
)

_CLOSURE = [
    "def flat(p):",
    "    return (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).double()",
    "def closure():",
    "    points.append(torch.cat([flat(p.detach()) for p in params]))",
    "    optimizer.zero_grad()",
    "    loss = scale * sum(function(flat(p) - c) for p, c in zip(params, centres))",
    "    loss.backward()",
    "    return loss",
]
_VIEW = [
    "def view(values, size, stride, room):  # a tensor inside a larger buffer, guard values around it",
    f"    buffer = torch.full((room,), {GUARD!r}, dtype=values.dtype)",
    f"    return buffer.as_strided(size, stride, {GUARD_ELEMENTS}).copy_(values)",
    "",
    "",
]


def script(subject: Subject, trace: Trace, finding: Finding) -> str:
    """The script's text: at most 30 lines. It ends in an error as long as the divergence is there.

    Args:
        trace: the life; what comes after the finding is left out.
        finding: what must not be.
    """
    writer = _Writer(subject, trace, finding)
    for compact in (False, True):
        lines = writer.lines(compact=compact)
        if len(lines) <= 30:
            break
    return "\n".join(lines) + "\n"


class _Writer:
    def __init__(self, subject: Subject, trace: Trace, finding: Finding) -> None:
        self.subject, self.trace, self.finding = subject, trace, finding
        self.guarded = finding.check == "memory-beside"
        self.told: Objective | None = None

    def lines(self, *, compact: bool) -> list[str]:
        trace, finding, self.told = self.trace, self.finding, None
        parameters = [f"    {self._parameter(p)}," for p in trace.parameters]
        events = trace.events if finding.event is None else trace.events[: finding.event + 1]
        body = ["params = [", *parameters, "]"]
        if compact:
            body = ["params = [" + " ".join(line.strip() for line in parameters) + "]"]
        body.append(f"optimizer = {self._construct([dict(g.options) for g in trace.groups])}")
        if finding.event is None and finding.check == "completes":
            body[-1] += f"  # {finding.cause}"
        if self.subject.after:
            body.append(self.subject.after)
        for n, event in enumerate(events):
            last = n == finding.event
            lines = self._event(event)
            if last:  # what is remembered is what stood before the step itself, its gradients assigned
                place = -1 if isinstance(event, Step) else 0
                lines[place:place] = self._before()
            body += lines
            if last and finding.check == "completes":
                body[-1] += f"  # {finding.cause}"
        body += self._after()
        if any("closure" in line for line in body):
            body = [*_CLOSURE, *body]
        helper = _VIEW if any(re.search(r"(?<![.\w])view\(", line) for line in body) else []
        imports = ["import torch"]
        if self.subject.imports:
            imports += [
                '__import__("sys").path.insert(0, "")  # modules are looked for where you stand',
                self.subject.imports,
            ]
        return [f"# {self.subject.name}: {finding.summary}", *imports, "", *([""] if helper else []), *helper, *body]

    def _parameter(self, p: Parameter) -> str:
        made = self._tensor(p.values, p.shape, p.dtype, p.layout, guarded=self.guarded)
        # In a differentiable step the parameter is no leaf.
        return f"{made}.requires_grad_(){'.clone()' if self.subject.differentiable else ''}"

    def _tensor(self, values: Values, shape: tuple[int, ...], dtype: str, layout: str, *, guarded: bool = False) -> str:
        realised = values.realise(in_reals(shape, dtype))
        if layout == "conjugated":
            # What is given is the conjugate of what stands in memory.
            realised = realised * np.array([1.0, -1.0])
            return f"{_dense(realised, dtype)}.conj()"
        if layout == "expanded" and shape:
            row = (1, *shape[1:])
            inner = _dense(realised[:1], dtype)
            size = room(shape, layout)
            return f"view({inner}, {row}, {strides(shape, layout)}, {size}).expand({shape})"
        dense = _dense(realised, dtype)
        if layout == "contiguous" and not guarded:
            return dense
        return f"view({dense}, {shape}, {strides(shape, layout)}, {room(shape, layout)})"

    def _construct(self, options: list[dict[str, object]]) -> str:
        subject = self.subject
        if subject.explicit:
            complete = vars(subject.spec.hyper_values())
            options = [{k: v for k, v in {**complete, **o}.items() if k in subject.options} for o in options]
        if len(options) == 1:
            groups, shared = "params", options[0]
        else:
            groups = ", ".join(
                f"{{'params': [{', '.join(f'params[{i}]' for i in g.parameters)}]{_items(o)}}}"
                for g, o in zip(self.trace.groups, options, strict=True)
            )
            groups, shared = f"[{groups}]", options[0] if subject.explicit else {}
        keywords = {**shared, **subject.mode_options}
        return f"{subject.callee}({', '.join([groups, *(f'{k}={_literal(v)}' for k, v in keywords.items())])})"

    def _event(self, event: Event) -> list[str]:
        if isinstance(event, ZeroGrad):
            return [f"optimizer.zero_grad(set_to_none={event.set_to_none})"]
        if isinstance(event, SetOption):
            return [f"optimizer.param_groups[{event.group}][{event.option!r}] = {_literal(event.value)}"]
        if isinstance(event, Reload):
            return [
                "saved = optimizer.state_dict()",
                f"optimizer = {self._construct([{} for _ in self.trace.groups])}",
                *([self.subject.after] if self.subject.after else []),
                "optimizer.load_state_dict(saved)",
            ]
        assert isinstance(event, Step)
        lines = [f"params[{i}].grad = {self._gradient(i, g)}" for i, g in event.gradients.items()]
        if len(lines) > 1:
            lines = ["; ".join(lines)]
        if event.objective is None:
            return [*lines, "optimizer.step()"]
        if event.objective != self.told:
            self.told = event.objective
            lines += self._objective(event.objective)
        return [*lines, "points = []", "optimizer.step(closure)"]

    def _objective(self, objective: Objective) -> list[str]:
        centres = []
        for n, p in enumerate(self.trace.parameters):
            values = replace(objective.centre, seed=objective.centre.seed + n)
            centres.append(_dense(values.realise((math.prod(in_reals(p.shape, p.dtype)),)), "float64"))
        expression = EXPRESSIONS[objective.kind]
        return [f"function, scale = lambda x: {expression}, {objective.scale!r}", f"centres = [{', '.join(centres)}]"]

    def _gradient(self, index: int, gradient: Gradient | None) -> str:
        if gradient is None:
            return "None"
        p = self.trace.parameters[index]
        if gradient.sparse is None:
            return self._tensor(gradient.values, p.shape, p.dtype, gradient.layout)
        sparse = gradient.sparse
        entries = np.array(sparse.entries, np.int64)
        indices = np.array(np.unravel_index(entries, p.shape[: sparse.dimensions])).reshape(sparse.dimensions, -1)
        listed = f"torch.tensor({indices.tolist()}, dtype=torch.int64)"
        values = _dense(gradient.realise(p.shape, p.dtype), p.dtype)
        coalesced = ", is_coalesced=True" if sparse.coalesced else ""
        return f"torch.sparse_coo_tensor({listed}, {values}, {p.shape}{coalesced}, check_invariants=True)"

    def _before(self) -> list[str]:
        """What has to be remembered before the event that goes wrong."""
        i, check = self.finding.parameter, self.finding.check
        if check == "gradient-unwritten":
            return ["before = [None if p.grad is None else p.grad.clone() for p in params]"]
        if check == "no-gradient":
            return [f"before, state = params[{i}].detach().clone(), str(optimizer.state[params[{i}]])"]
        if check == "save-load-continue" and self.finding.deviation is None:
            return ["before = str(optimizer.state_dict())"]
        if check == "between-steps" and self.finding.cause != "gradient":
            return [f"before = str([params[{i}].detach(), optimizer.state[params[{i}]]])"]
        return []

    def _after(self) -> list[str]:
        i, check = self.finding.parameter, self.finding.check
        if check == "memory-beside":
            assert i is not None
            p = self.trace.parameters[i]
            own = f"own.as_strided({p.shape}, {strides(p.shape, p.layout)}, {GUARD_ELEMENTS}).fill_(True)"
            size = room(p.shape, p.layout)
            return [
                f"own = torch.zeros({size}, dtype=torch.bool)",
                own,
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
            return ["after = str(optimizer.state_dict())", 'assert before == after, f"{before}\\n{after}"']
        if check == "between-steps" and self.finding.cause == "gradient":
            return [f"assert params[{i}].grad is None or not params[{i}].grad.any(), params[{i}].grad"]
        if check == "between-steps":
            return [
                f"after = str([params[{i}].detach(), optimizer.state[params[{i}]]])",
                'assert before == after, f"{before}\\n{after}"',
            ]
        return self._assert_witness() if self.finding.deviation is not None else []

    def _assert_witness(self) -> list[str]:
        d = self.finding.deviation
        assert d is not None
        where = "".join(f"[{n}]" for n in d.index)
        parts = is_complex(self.trace.parameters[d.parameter].dtype) and bool(d.index)
        if d.field == EVALUATION:
            return self._assert_evaluation(d)
        if d.problem:
            return [f"assert {d.field!r} in optimizer.state[params[{d.parameter}]]  # {d.problem}"]
        if d.field.startswith(PARAMETER):
            if d.field == orthogonal.NORMWISE:
                return [f"raise AssertionError({self.finding.summary!r})  # of all elements together"]
            field = f"params[{d.parameter}].detach()"
        else:
            field = f"optimizer.state[params[{d.parameter}]][{d.field!r}]"
        got = f"float({f'torch.view_as_real({field})' if parts else field}{where})"
        return self._assert_close(got, d)

    @staticmethod
    def _assert_evaluation(d: Deviation) -> list[str]:
        if d.problem:
            return [f"assert not len(points), len(points)  # {d.problem}"]
        n, element = d.index
        return _Writer._assert_close(f"float(points[{n}][{element}])", d)

    @staticmethod
    def _assert_close(got: str, d: Deviation) -> list[str]:
        lines = [f"got = {got}"]
        if math.isnan(d.expected):
            return [*lines, "assert got != got, got  # must be NaN"]
        if math.isinf(d.expected):
            return [*lines, f"assert got == {_number(d.expected)}, got"]
        lines.append(f"expected, budget = {d.expected!r}, {d.budget!r}  # the reference, and what rounding may cost")
        return [*lines, 'assert abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}"']


def _items(options: Mapping[str, object]) -> str:
    return "".join(f", {k!r}: {_literal(v)}" for k, v in options.items())


def _literal(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_literal, value))})"
    return _number(value) if isinstance(value, float) else repr(value)


def _number(x: float) -> str:
    if math.isnan(x):
        return "torch.nan"
    if math.isinf(x):
        return "torch.inf" if x > 0 else "-torch.inf"
    return repr(float(x))


def _dense(values: Array, dtype: str) -> str:
    """An expression for a row-major tensor of these real numbers; of a complex one, the last dimension is its parts."""
    tensor = rounded(values, getattr(torch, dtype))
    shape = tuple(tensor.shape)
    if is_complex(dtype):
        real = "float32" if dtype == "complex64" else "float64"
        return f"torch.view_as_complex({_dense(values, real)})"
    flat = [float(x) for x in tensor.reshape(-1).tolist()]
    kind = "" if dtype == "float32" else f", dtype=torch.{dtype}"
    if not flat or (len(set(flat)) == 1 and math.copysign(1, flat[0]) > 0):
        return f"torch.full({shape}, {_number(flat[0] if flat else 0.0)}{kind})"
    inner = f"torch.tensor([{', '.join(map(_number, flat))}]{kind})"
    return inner if len(shape) == 1 else f"{inner}.view({shape})"
