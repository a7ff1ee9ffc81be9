"""Does the step agree with the reference? Elements are copied before and after it, and given to the judge."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepcheck.harness.checking.findings import reading
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life.memory import Raw, SparseRaw
from stepcheck.harness.watch.findings import Finding
from stepcheck.harness.watch.look import Look, dtype_name, gradient_problem, look, problem_of
from stepcheck.harness.watch.moment import Moment, Quiet
from stepcheck.harness.watch.numbers import Numbers
from stepcheck.harness.watch.sampling import named_places, places, same
from stepcheck.harness.watch.saving import Nowhere
from stepcheck.harness.watch.step import Stepped, judge, placed, unreadable
from stepcheck.harness.watch.subject import Held, Holder, UnsupportedError


@dataclass
class Before:
    """One parameter before a step, and what its group is held to."""

    p: torch.Tensor
    held: Held
    look: Look


class Agreement(Quiet):
    """Compares watched steps with the reference.

    Args:
        most: elements of a parameter that are looked at.
        saved: is given each step with a new finding, and the numbers of each.

    Attributes:
        steps: how many were compared.
        elements: determined elements that were.
        undetermined: elements of which any value had to be accepted.
        unjudged: why something was not judged, and how often: of each parameter in each step.
        judged: names of parameters that were.
        subjects: what they were held to.
    """

    def __init__(self, holder: Holder, numbers: Numbers, *, most: int, seed: int, saved: Nowhere) -> None:
        self.holder, self.numbers, self.saved = holder, numbers, saved
        self.most, self.seed = most, seed
        self.steps = self.elements = self.undetermined = 0
        self.unjudged: Counter[tuple[str, str]] = Counter()
        self.judged: set[str] = set()
        self.subjects: set[str] = set()
        self._before: list[Before] = []

    def begins(self, moment: Moment) -> None:
        self._before = []
        if not moment.watched:
            return
        index = 0
        for n, group in enumerate(moment.optimizer.param_groups):
            try:
                held = self.holder.held(group)
            except UnsupportedError as error:
                self.unjudged[f"param_groups[{n}]", str(error)] += 1
                continue
            for p in group["params"]:
                self._look_before(moment, held, p, index)
                index += 1

    def _look_before(self, moment: Moment, held: Held, p: torch.Tensor, index: int) -> None:
        spec = held.subject.spec
        why = problem_of(p, elementwise=spec.elementwise) or ("" if moment.closure else gradient_problem(p))
        if why:
            self.unjudged[moment.names.of(p), why] += 1
            return
        at = places(p.numel(), self.most, self.seed, moment.number, index) if spec.elementwise else None
        if at is not None and p.grad is not None and p.grad.is_sparse and p.grad._nnz():  # noqa: SLF001 - an uncoalesced tensor has no other way
            at = np.unique(np.concatenate([at, named_places(p.grad, self.most // 2)]))
        self._before.append(Before(p, held, look(p, _state(moment, p), at, held.subject.terms)))

    def ends(self, moment: Moment) -> None:
        if not moment.watched:
            return
        groups: dict[int, tuple[Held, list[Stepped]]] = {}
        for before in self._before:
            p, held = before.p, before.held
            after = look(p, _state(moment, p), before.look.at, held.subject.terms)
            gradient, why = _given(moment, before.look, after, p)
            stepped = Stepped(moment.names.of(p), dtype_name(p), tuple(p.shape), before.look, after, gradient)
            if moment.skipped or (gradient is None and not why):
                if not moment.closure:  # after which a gradient may have been cleared
                    self._look_untouched(moment, p, before.look, after)
                continue
            why = why or unreadable(held, stepped)
            if why:
                self.unjudged[moment.names.of(p), why] += 1
                continue
            moment.stepped.append((p, stepped))
            groups.setdefault(id(held), (held, []))[1].append(stepped)
        self._before = []
        if groups:
            self.steps += 1
        for held, stepped_of_one in groups.values():
            self._judge(moment, held, stepped_of_one)
        row = self.numbers.end_step(moment.number)
        if row is not None:
            self.saved.row(row)

    def _judge(self, moment: Moment, held: Held, stepped: list[Stepped]) -> None:
        judgement = judge(held, stepped)
        self.elements += judgement.elements - judgement.undetermined
        self.undetermined += judgement.undetermined
        moment.found.looked["agreement"] += len(stepped)
        self.judged |= {s.name for s in stepped}
        self.subjects.add(held.subject.name)
        self.numbers.add(held, stepped, judgement)
        for deviation in judgement.deviations:
            self._deviates(moment, held, stepped, deviation)

    def _deviates(self, moment: Moment, held: Held, stepped: list[Stepped], d: Deviation) -> None:
        of = stepped[d.parameter]
        told = f"{reading(placed(d, stepped))} ({held.subject.name})"
        finding = Finding("agreement", moment.number, told, parameter=of.name, ratio=d.ratio)
        if moment.found.see(d.field, finding):
            self.saved.step(held, of, d, finding)

    def _look_untouched(self, moment: Moment, p: torch.Tensor, before: Look, after: Look) -> None:
        check = "skipped-step" if moment.skipped else "no-gradient"
        moment.found.looked[check] += 1
        changed = [name for name, x in before.state.items() if name in after.state and not same(x, after.state[name])]
        changed = changed if same(before.value, after.value) else ["value", *changed]
        if changed:
            why = "the step was skipped" if moment.skipped else "it has no gradient"
            moment.see(check, changed[0], f"its {changed[0]} was changed, and {why}", p)


def _state(moment: Moment, p: torch.Tensor) -> Any:
    """What the optimizer keeps for a parameter, without making an entry of one that it does not know yet."""
    return moment.optimizer.state.get(p) or {}


def _given(moment: Moment, before: Look, after: Look, p: torch.Tensor) -> tuple[Any, str]:
    """The gradient that a step was given, unscaled, or why that is not known."""
    if moment.closure:
        return after.gradient, gradient_problem(p)
    if moment.scale == 1.0 or before.gradient is None:
        return before.gradient, ""
    if isinstance(before.gradient, SparseRaw):
        return None, "a sparse gradient is unscaled within the step"
    if not float(moment.scale).hex().startswith("0x1.0000000000000p"):
        return None, "the gradient is unscaled within the step, by a scale that is no power of two"
    return _unscaled(before.gradient, moment.scale), ""


def _unscaled(gradient: Raw, scale: float) -> Raw:
    """Divided by a power of two: exact, but where it becomes subnormal; float16 is computed with in float32."""
    wide = gradient.astype(np.float32) if gradient.dtype == np.float16 else gradient
    quotient: Raw = wide / wide.real.dtype.type(scale)
    return quotient
