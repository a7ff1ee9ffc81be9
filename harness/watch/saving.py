"""What a watch leaves on disk: numbers and findings as they come, in the stream of a run, and of each deviation the step and a script.

A life that :mod:`stepcheck.harness.record.store` saves begins with new state. A step of a run begins with the state that thousands of others left, so what is saved
of it is the step itself: the elements that were looked at, before and after it. ``stepcheck replay`` refuses such a file; the script beside it asserts what it shows.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stepcheck.harness.judging import formula
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life.memory import SparseRaw
from stepcheck.harness.life.spelling import unspelled
from stepcheck.harness.numbers.comparison import reals
from stepcheck.harness.record.stream import Stream
from stepcheck.harness.support.text import shown
from stepcheck.harness.telling.expressions import assigned, dense, literal, number
from stepcheck.harness.watch.findings import Finding
from stepcheck.harness.watch.look import Look
from stepcheck.harness.watch.numbers import Row
from stepcheck.harness.watch.step import Stepped
from stepcheck.harness.watch.subject import Held
from stepcheck.reference.spec import PARAMETER

#: What a saved step is called where a life has its events.
KIND = "watched step"
#: As rows of the stream are named.
_NAME = "watch"
#: Somebody's class is looked for where the script is run.
_PATH = '__import__("sys").path.insert(0, "")  # modules are looked for where you stand'


class Nowhere:
    """Saves nothing."""

    def row(self, row: Row) -> None:
        """The numbers of one step."""

    def finding(self, finding: Finding) -> None:
        """Something was found, or noted."""

    def step(self, held: Held, stepped: Stepped, d: Deviation, finding: Finding) -> None:
        """A step deviates."""

    def end(self, verdict: str) -> None:
        """The watch has ended."""


NOWHERE = Nowhere()


class Saved(Nowhere):
    """Saves into a folder, in the way of ``stepcheck check``: ``runs/ID.jsonl``, and two files for each deviation.

    Args:
        environment: the versions and the machine.

    Raises:
        UsageError: nothing can be written there.
    """

    def __init__(
        self, folder: Path, version: str, environment: Mapping[str, Any], settings: Mapping[str, Any], seed: int
    ) -> None:
        self.folder = folder
        self._stream = Stream.create(folder, "stepcheck.watch", version, environment, seed, settings)

    def row(self, row: Row) -> None:
        self._stream.row(_NAME, row.to_json())

    def finding(self, finding: Finding) -> None:
        told = {k: v for k, v in asdict(finding).items() if k not in ("ratio", "times", "parameters")}
        self._stream.row(
            _NAME,
            {**told, "ratio": finding.ratio if finding.ratio is None or math.isfinite(finding.ratio) else "Infinity"},
        )

    def step(self, held: Held, stepped: Stepped, d: Deviation, finding: Finding) -> None:
        data = _step(held, stepped, d, finding)
        text = json.dumps(data, indent=1)
        name = hashlib.sha256(text.encode()).hexdigest()[:8]
        (self.folder / f"{name}.json").write_text(text + "\n", encoding="utf-8")
        path = self.folder / f"{name}.py"
        path.write_text(shown(script(held, stepped, d, finding)), encoding="utf-8")
        finding.trace = str(path)

    def end(self, verdict: str) -> None:
        with self._stream as stream:
            stream.status = {"pass": 0, "fail": 1}.get(verdict, 3)


def _step(held: Held, stepped: Stepped, d: Deviation, finding: Finding) -> dict[str, Any]:
    """The step as data; numbers are hex floats, so that they survive to the last bit."""
    subject = held.subject
    return {
        "kind": KIND,
        "subject": subject.name,
        "like": subject.spec.name,
        "dialects": [name for _, name in subject.spec.dialects],
        "declared": dict(subject.declared),
        "step": finding.step,
        "summary": finding.told,
        "options": {k: literal(v) for k, v in vars(held.hyper).items() if k != "tensors"},
        "parameter": {"name": stepped.name, "dtype": stepped.dtype, "shape": list(stepped.shape)},
        "elements": None if stepped.before.at is None else stepped.before.at.tolist(),
        "gradient": _numbers(stepped.gradient),
        "before": _look(stepped.before),
        "after": _look(stepped.after),
        "deviation": {"field": d.field, "index": list(d.index), "got": d.got.hex(), "expected": d.expected.hex(), "budget": d.budget.hex()},
    }  # fmt: skip


def _look(look: Look) -> dict[str, Any]:
    return {PARAMETER: _numbers(look.value), **{name: _numbers(x) for name, x in look.state.items()}}


def _numbers(x: Any) -> Any:
    if isinstance(x, SparseRaw):
        return {"elements": x.elements.tolist(), "values": _numbers(x.values)}
    return [v.hex() for v in reals(x).tolist()]


def script(held: Held, stepped: Stepped, d: Deviation, finding: Finding) -> str:
    """A script that needs torch alone: what the run had, the reference's formula, and the step taken again with these elements by themselves.

    It ends in an error, because what the run had is not what the reference says. Whether the class does the same again is printed before.
    """
    lines = [
        f"# {held.subject.name} like {held.subject.spec.name}: {' '.join(str(finding).split())}",
        "import torch",
        "",
    ]
    lines += _reference(held, stepped, d)
    lines += _again(held, stepped, d)
    return "\n".join([*lines, 'assert abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}"']) + "\n"


def _reference(held: Held, stepped: Stepped, d: Deviation) -> list[str]:
    """What the reference computes for the element, and what the run had."""
    element = d.element
    where = f"element {stepped.place(d.index)} of {stepped.name}" if d.index else stepped.name
    lines = [f"got, budget = {number(d.got)}, {d.budget!r}  # {d.field}, {where}, in the run; what rounding may cost"]
    argument = formula.of(held.subject.spec, d, 0)
    if isinstance(argument, str):
        why = f": {argument}" if argument else ""
        return [*lines, f"expected = {number(d.expected)}  # the reference{why}"]
    values, options = ({k: number(v) for k, v in x.items()} for x in (argument.values, argument.options))
    lines += [assigned(values) + f"  # what the step started from, number {element} of those below"] if values else []
    lines += [assigned(options)] if options else []
    return [*lines, *argument.lines[:-1], f"{argument.lines[-1]}  # the reference, in float64"]


def _again(held: Held, stepped: Stepped, d: Deviation) -> list[str]:
    """The same step, of the elements that were looked at and by themselves: where it comes out right, the fault is where they stand, or what stands around them."""
    why = _why_not_again(held, stepped)
    if why:
        return [f"# The step is not taken again: {why}."]
    subject, terms = held.subject, held.subject.terms
    options = {k: v for k, v in vars(held.hyper).items() if k in subject.options and v is not None}
    given = {
        k: literal(unspelled(v)) for k, v in {**terms.theirs(options), **subject.mode_options, **terms.held}.items()
    }
    call = ", ".join(f"{k}={v}" for k, v in given.items())
    single = {b.name for b in subject.spec.buffers if b.per_parameter}
    lines = [_PATH, subject.imports] if subject.imports else []
    lines += [
        f"p = torch.nn.Parameter({_tensor(stepped.before.value, stepped.dtype)})",
        f"p.grad = {_tensor(stepped.gradient, stepped.dtype)}",
        f"optimizer = {subject.callee}([p], {call})",
    ]
    for name, x in stepped.before.state.items():
        kept = f"optimizer.state[p][{terms.their_buffer(name)!r}]"
        alone = name in single and not isinstance(x, float)
        lines.append(
            f"{kept} = {f'torch.tensor({number(float(reals(x)[0]))})' if alone else number(x) if isinstance(x, float) else _tensor(x, stepped.dtype)}"
        )
    read = "p.detach()" if d.field == PARAMETER else f"optimizer.state[p][{terms.their_buffer(d.field)!r}]"
    place = f"[{d.index[0]}]" if d.index and d.field not in single else ""
    return [
        *lines,
        "optimizer.step()",
        f'print("taken again, of these elements by themselves:", float({read}{place}), "and in the run:", got)',
    ]


def _why_not_again(held: Held, stepped: Stepped) -> str:
    if isinstance(stepped.gradient, SparseRaw) or stepped.dtype.startswith("complex") or len(stepped.looked) != 1:
        return "the gradient is sparse, the parameter complex, or its elements depend on each other"
    if " __main__ " in held.subject.imports or "<locals>" in getattr(held.subject.make, "__qualname__", ""):
        return "the class cannot be imported"
    return ""


def _tensor(x: Any, dtype: str) -> str:
    return dense(reals(x), dtype)
