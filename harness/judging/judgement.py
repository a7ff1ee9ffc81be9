"""How a recording compares with the reference: what was counted, and each deviation."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from stepcheck.harness.judging.item import Item
from stepcheck.harness.numbers.comparison import RATIO_CLASSES, Array


@dataclass(frozen=True)
class Deviation:
    """One buffer of one parameter that is further from the reference than its budget allows.

    Attributes:
        event: index of the step in the trace; ``None`` for the state at construction.
        field: ``parameter`` or the name of a buffer.
        index: the element that deviates most, ``()`` for a single number.
        ratio: its distance from the reference in budgets.
        problem: what is wrong, where it is not a number too far off.
        center: where ``got`` is a distance: what it is the distance from, flat.
        of: where ``got`` is the sum of what a field holds and of what another lost to it: the other.
    """

    event: int | None
    parameter: int
    field: str
    index: tuple[int, ...]
    got: float
    expected: float
    budget: float
    ratio: float
    problem: str = ""
    item: Item | None = None
    element: int = 0
    center: Array | None = None
    of: str = ""


@dataclass
class Judgement:
    """How a recording compares with the reference.

    Attributes:
        elements: elements compared.
        undetermined: of these, elements where any value had to be accepted.
        fields: of these two, how many in each field.
        worst: per field, the largest ratio at or below 1 (what correct subjects use of their budget).
        free: buffers that could not be read and ran free.
        deviations: what exceeds its budget, in order of events, a step's buffers before its parameter.
        ratios: r of all determined elements, of each field and dtype of the parameter, in pieces.
    """

    elements: int = 0
    undetermined: int = 0
    steps: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)
    deviations: list[Deviation] = field(default_factory=list)
    ratios: dict[tuple[str, str], list[Array]] = field(default_factory=dict)

    def classes(self) -> dict[str, dict[str, dict[int, int]]]:
        """Of each field and dtype, how many elements lie in each of the classes of ``RATIO_EDGES`` that occur."""
        if not self.ratios:
            return {}
        # All at once: a call for each field would cost more than its few hundred elements.
        lengths = [sum(map(len, pieces)) for pieces in self.ratios.values()]
        every = np.concatenate([piece for pieces in self.ratios.values() for piece in pieces])
        with np.errstate(over="ignore"):
            np.ceil(np.multiply(every, RATIO_CLASSES - 2, out=every), out=every)
        classes = np.minimum(every, RATIO_CLASSES - 1, out=every).astype(np.intp)
        classes += np.repeat(np.arange(len(lengths)) * RATIO_CLASSES, lengths)
        counts = np.bincount(classes, minlength=len(lengths) * RATIO_CLASSES).reshape(-1, RATIO_CLASSES)
        found: dict[str, dict[str, dict[int, int]]] = {}
        for (name, dtype), of_one in zip(self.ratios, counts.tolist(), strict=True):
            if any(of_one):
                found.setdefault(name, {})[dtype] = {n: count for n, count in enumerate(of_one) if count}
        return found

    def count(self, name: str, elements: int, undetermined: int) -> None:
        """Count elements of a field that were compared."""
        before = self.fields.get(name, (0, 0))
        self.fields[name] = (before[0] + elements, before[1] + undetermined)
        self.elements += elements
        self.undetermined += undetermined

    def classify(self, name: str, dtype: str, r: Array) -> None:
        """Keep r of determined elements of a field."""
        self.ratios.setdefault((name, dtype), []).append(r)

    def used(self, name: str, ratio: float) -> None:
        """Keep the largest share of its budget that a field has used."""
        self.worst[name] = max(self.worst.get(name, 0.0), ratio)
