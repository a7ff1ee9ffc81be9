"""Numbers of a run over time: how much of the budget is used, how far parameters move, how much of it rounding loses."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from stepcheck.harness.judging.judgement import Judgement
from stepcheck.harness.life.memory import SparseRaw
from stepcheck.harness.numbers.comparison import Array, reals
from stepcheck.harness.watch.step import Stepped
from stepcheck.harness.watch.subject import Held
from stepcheck.reference.epsilon import SQUARES


@dataclass
class Row:
    """What was measured in one watched step, over the elements that were looked at.

    Attributes:
        worst: the largest r.
        update_to_weight: the norm of what the parameters changed by, over that of the parameters.
        stalled: of elements whose gradient is not zero, the share that did not change.
        below_eps: the share of elements in whose denominator eps is larger than the root beside it; ``None`` where there is no such root.
    """

    step: int
    worst: float
    update_to_weight: float
    stalled: float
    below_eps: float | None

    def to_json(self) -> dict[str, Any]:
        """As a row of the stream."""
        return {k: v if v is None or math.isfinite(v) else str(v) for k, v in asdict(self).items()}


@dataclass
class OfParameter:
    """The same of one parameter: its last watched step, and how many in a row left all of it where it was.

    Attributes:
        still: watched steps in a row in which no element moved whose gradient is not zero.
    """

    update_to_weight: float = 0.0
    stalled: float = 0.0
    still: int = 0


@dataclass
class _Sums:
    worst: float = 0.0
    moved: float = 0.0
    weight: float = 0.0
    pulled: int = 0
    stalled: int = 0
    roots: int = 0
    below: int = 0


@dataclass
class Numbers:
    """Rows of all watched steps, and the last numbers of each parameter."""

    rows: list[Row] = field(default_factory=list)
    parameters: dict[str, OfParameter] = field(default_factory=lambda: defaultdict(OfParameter))
    _sums: _Sums = field(default_factory=_Sums)

    def add(self, held: Held, stepped: Sequence[Stepped], judgement: Judgement) -> None:
        """Add what was compared of one group."""
        used = [*judgement.worst.values(), *(d.ratio for d in judgement.deviations)]
        self._sums.worst = max([self._sums.worst, *used])
        with np.errstate(all="ignore"):
            for s in stepped:
                self._add(held, s)

    def _add(self, held: Held, s: Stepped) -> None:
        before, after = reals(s.before.value), reals(s.after.value)
        moved, weight = float(np.sum((after - before) ** 2)), float(np.sum(before**2))
        pulled = reals(s.gradient) != 0 if not isinstance(s.gradient, SparseRaw) else np.zeros(len(before), bool)
        still = pulled & (after == before)
        sums, own = self._sums, self.parameters[s.name]
        sums.moved, sums.weight = sums.moved + moved, sums.weight + weight
        sums.pulled, sums.stalled = sums.pulled + int(pulled.sum()), sums.stalled + int(still.sum())
        own.update_to_weight = math.sqrt(moved / weight) if weight else math.inf if moved else 0.0
        own.stalled = float(still.sum() / pulled.sum()) if pulled.any() else 0.0
        own.still = own.still + 1 if pulled.any() and still.sum() == pulled.sum() else 0
        root = _root(held, s)
        if root is not None:
            sums.roots, sums.below = sums.roots + root.size, sums.below + int(np.sum(root < held.hyper.eps))

    def end_step(self, step: int) -> Row | None:
        """The row of a step, of which all groups have been added; of nothing there is none."""
        s, self._sums = self._sums, _Sums()
        if not (s.weight or s.moved or s.pulled):
            return None
        ratio = math.sqrt(s.moved / s.weight) if s.weight else math.inf
        stalled = s.stalled / s.pulled if s.pulled else 0.0
        row = Row(step, s.worst, ratio, stalled, s.below / s.roots if s.roots else None)
        self.rows.append(row)
        return row


def _root(held: Held, s: Stepped) -> Array | None:
    """The root that eps stands beside, where the optimizer has one."""
    names = [b.name for b in held.subject.spec.buffers if b.name in SQUARES and b.name in s.after.state]
    eps = getattr(held.hyper, "eps", None)
    if not names or not isinstance(eps, float):
        return None
    betas, step = getattr(held.hyper, "betas", None), s.after.state.get("step")
    corrected = 1.0 if betas is None or step is None else 1.0 - betas[1] ** float(reals(step)[0])
    root: Array = np.sqrt(reals(s.after.state[names[0]]) / corrected)
    return root
