"""What the script of a deviation asserts: the reference's value, within its budget."""

from __future__ import annotations

import math
import re

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.checking.witness import Witness, Writer
from stepcheck.harness.judging import formula
from stepcheck.harness.judging.evaluations import EVALUATION
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life.events import Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.numbers.comparison import Array
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.telling.expressions import assigned, dense, number
from stepcheck.reference.spec import PARAMETER


def compared(subject: Subject, trace: Trace, finding: Finding, d: Deviation, *, argued: bool) -> Witness:
    """The witness of a deviation; ``argued``, the reference's formula is written out where it can be."""
    comparison = _Comparison(subject, trace, finding, d, argued=argued)
    return Witness(comparison.asserts, comparison.remembers)


class _Comparison:
    def __init__(self, subject: Subject, trace: Trace, finding: Finding, d: Deviation, *, argued: bool) -> None:
        self.subject, self.trace, self.finding, self.d = subject, trace, finding, d
        #: What the reference computes, or why that is not written down.
        self.argument = formula.of(subject.spec, d, trace.group_of[d.parameter]) if argued else ""

    def remembers(self, _: Writer) -> list[str]:
        if self.finding.event is None or self._live is None:
            return []
        return [assigned(self._live) + "  # what the step starts from"]

    def asserts(self, _: Writer) -> list[str]:
        d = self.d
        where = "".join(f"[{n}]" for n in d.index)
        parts = is_complex(self.trace.parameters[d.parameter].dtype) and bool(d.index)
        if pairs := re.search(r"holds \d+ pairs, not (\d+)", d.problem):
            held = f"len({self._held(d.parameter, d.field)})"
            return [f"assert {held} == {pairs[1]}, {held}"]
        if d.field == EVALUATION:
            return self._assert_evaluation(d)
        if d.problem:
            return [f"assert {self._name(d.field)!r} in optimizer.state[params[{d.parameter}]]  # {d.problem}"]
        if d.center is not None:
            return self._assert_distance(d, d.center)
        fields = [self._held(d.parameter, name) for name in (d.of, d.field) if name]
        got = " + ".join(f"float({f'torch.view_as_real({field})' if parts else field}{where})" for field in fields)
        return self._assert_close(got, d)

    def _held(self, parameter: int, name: str) -> str:
        """The expression of a parameter, or of a tensor of its state."""
        if name.startswith(PARAMETER):
            return f"params[{parameter}].detach()"
        if name in self._of_group:  # one that has not stepped may have none
            return f"optimizer.param_groups[{self.trace.group_of[parameter]}].get({self._name(name)!r}, 0)"
        return f"optimizer.state[params[{parameter}]][{self._name(name)!r}]"

    @property
    def _of_group(self) -> set[str]:
        return {b.name for b in self.subject.spec.buffers if b.of_group}

    def _name(self, buffer: str) -> str:
        """What the class calls a buffer of the reference."""
        return self.subject.terms.their_buffer(buffer)

    def _assert_distance(self, d: Deviation, center: Array) -> list[str]:
        """Of all elements of a matrix together."""
        expected = dense(center.reshape(self.trace.parameters[d.parameter].shape), "float64")
        return [
            f"expected, budget = {expected}, {d.budget!r}  # the reference ({self.argument}), and what rounding may cost",
            f"distance = float((params[{d.parameter}].detach() - expected).norm())",
            'assert distance <= budget, f"{distance} from the reference, not within {budget}"',
        ]

    def _assert_evaluation(self, d: Deviation) -> list[str]:
        if d.problem:
            return [f"assert not len(points), len(points)  # {d.problem}"]
        n, element = d.index
        return self._assert_close(f"float(points[{n}][{element}])", d)

    def _assert_close(self, got: str, d: Deviation) -> list[str]:
        lines = [f"got = {got}"]
        if math.isnan(d.expected):
            return [*lines, "assert got != got, got  # must be NaN"]
        if math.isinf(d.expected):
            return [*lines, f"assert got == {number(d.expected)}, got"]
        if isinstance(self.argument, formula.Formula):
            values = {name: number(value) for name, value in self.argument.values.items()}
            options = {name: number(value) for name, value in self.argument.options.items()}
            if values and self._live is None:
                lines.append(assigned(values) + "  # what the step starts from")
            lines += [assigned(options)] if options else []
            lines += self.argument.lines
            lines[-1] += "  # the reference, in float64"
            lines.append(f"budget = {d.budget!r}  # what rounding may cost")
        else:
            why = f" ({self.argument})" if self.argument else ""
            lines.append(
                f"expected, budget = {d.expected!r}, {d.budget!r}  # the reference{why}, and what rounding may cost"
            )
        return [*lines, 'assert abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}"']

    @property
    def _live(self) -> dict[str, str] | None:
        """Expressions for what stands before the step; ``None`` where the numbers themselves are written."""
        d, event = self.d, self.trace.events[self.finding.event or 0]
        if not isinstance(self.argument, formula.Formula) or d.item is None:
            return None
        p, gradient = self.trace.parameters[d.parameter], getattr(event, "gradients", {}).get(d.parameter)
        plain = isinstance(event, Step) and not event.closure and not event.scaling
        if not plain or is_complex(p.dtype) or (gradient is not None and gradient.sparse is not None):
            return None
        if len(d.index) != len(p.shape):
            return None
        where = "".join(f"[{n}]" for n in d.index)
        single = {b.name for b in self.subject.spec.buffers if b.per_parameter}
        told = {"p": f"params[{d.parameter}].detach(){where}", "g": f"params[{d.parameter}].grad{where}"}
        for name, value in self.argument.values.items():
            if name not in told:
                held = self._held(d.parameter, name) + ("" if name in single else where)
                # The count of a group is that after the step before, whatever has become of it since.
                is_read = name in d.item.step.state and name not in self._of_group
                told[name] = held if is_read else number(value)
        return {name: told[name] for name in self.argument.values}
