"""What the reference says of a recording: each step predicted from the subject's own state before it, with its error budget.

One step at a time: the parameters, gradients and state that the subject had before a step go into the reference, and what it
has after is compared with the prediction, element by element, in units of that element's budget. A subject whose buffers
cannot be read by name runs free in those buffers: the reference carries its own, with the error that has accumulated.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness import bounded
from stepcheck.harness.bounded import Bounded
from stepcheck.harness.formats import BINARY32, FORMATS, SCALARS64, Arithmetic
from stepcheck.harness.play import Life, Recording, StepRecord
from stepcheck.harness.subjects import Profile, Subject
from stepcheck.reference.spec import Buffer, HyperValues, Spec

Array = npt.NDArray[np.float64]

PARAMETER = "parameter"

#: Covers the rounding of the budgets themselves, a few dozen float64 operations of relative error 2^-53 each.
_BUDGET_ROUNDING = 1 + 2.0**-45


@dataclass(frozen=True)
class Deviation:
    """One buffer of one parameter that is further from the reference than its budget allows.

    Attributes:
        event: index of the step in the trace; ``None`` for the state at construction.
        field: ``parameter`` or the name of a buffer.
        index: the element that deviates most, ``()`` for a single number.
        ratio: its distance from the reference in budgets.
        problem: what is wrong, where it is not a number too far off.
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
    item: _Item | None = None
    element: int = 0


@dataclass
class Judgement:
    """How a recording compares with the reference.

    Attributes:
        elements: elements compared.
        undetermined: of these, elements where any value had to be accepted.
        worst: per field, the largest ratio at or below 1 (what correct subjects use of their budget).
        free: buffers that could not be read and ran free.
        deviations: what exceeds its budget, in order of events, a step's buffers before its parameter.
    """

    elements: int = 0
    undetermined: int = 0
    steps: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    free: set[str] = field(default_factory=set)
    deviations: list[Deviation] = field(default_factory=list)


@functools.cache
def arithmetic(profile: Profile, dtype: str) -> Arithmetic:
    """The arithmetic of a profile for parameters of ``dtype``."""
    return profile.arithmetic(dtype)


def ratios(actual: Array, expected: Bounded) -> Array:
    """Elementwise distance of ``actual`` from ``expected`` in budgets: 0 where undetermined, infinite where the class is wrong."""
    value = np.asarray(expected.value)
    budget = np.asarray(expected.error) * _BUDGET_ROUNDING
    with np.errstate(all="ignore"):
        distance = np.abs(actual - value)
        r = np.where(distance == 0, 0.0, distance / budget)
    same = (actual == value) | (np.isnan(actual) & np.isnan(value))
    result: Array = np.where(same | np.isinf(budget), 0.0, np.where(np.isnan(r), np.inf, r))
    return result


def bounded_hyper(hyper: HyperValues) -> SimpleNamespace:
    """The hyperparameters as exact scalars of error-bounded arithmetic; flags stay as they are."""

    def scalar(x: float) -> Bounded:
        return Bounded(np.float64(x), 0.0, SCALARS64)

    return SimpleNamespace(
        **{
            name: value
            if isinstance(value, bool)
            else tuple(map(scalar, value))
            if isinstance(value, tuple)
            else scalar(value)
            for name, value in vars(hyper).items()
        }
    )


@dataclass
class _Item:
    """One parameter in one step, with the state that the reference is given: (values, errors) of each buffer."""

    record: StepRecord
    index: int
    life: Life
    state: dict[str, tuple[Array, Array | float] | None]
    numel: int

    @property
    def slots(self) -> int:
        """An empty tensor gets one slot, so that numbers kept per parameter are predicted for it as well."""
        return self.numel or 1


class Judge:
    """Compares one recording with the reference."""

    def __init__(self, subject: Subject, recording: Recording) -> None:
        self.subject = subject
        self.spec: Spec = subject.spec
        self.recording = recording
        self.trace = recording.trace
        self.result = Judgement(steps=len(recording.steps))
        self.group_of = {i: n for n, g in enumerate(self.trace.groups) for i in g.parameters}
        self.per_parameter = {b.name for b in self.spec.buffers if b.per_parameter}
        self.started: set[int] = set()
        self.carried: dict[tuple[int, str], Bounded] = {}

    def judge(self) -> Judgement:
        with np.errstate(all="ignore"):
            self.result.free = self._unreadable()
            self._initial_state()
            if self.result.free:
                for record in self.recording.steps:
                    self._predict(self._items([record]))
            else:
                self._predict(self._items(self.recording.steps))
        order = [b.name for b in self.spec.buffers] + [PARAMETER]
        self.result.deviations.sort(
            key=lambda d: (-1 if d.event is None else d.event, order.index(d.field), d.parameter)
        )
        return self.result

    def _buffers(self, hyper: HyperValues) -> list[Buffer]:
        return [b for b in self.spec.buffers if b.present(hyper)]

    def _unreadable(self) -> set[str]:
        """Buffers that somebody's class never shows under their name, once it has taken a step with a gradient."""
        if not self.subject.explicit:
            return set()
        missing: set[str] = set()
        for record in self.recording.steps:
            for i, life in enumerate(record.lives):
                if life.gradient is not None:
                    for b in self._buffers(record.hyper[self.group_of[i]]):
                        if b.name not in life.state_after:
                            missing.add(b.name)
        return missing

    def _initial_state(self) -> None:
        """A state that exists at construction must be the initial one."""
        for i, state in enumerate(self.recording.initial_state):
            hyper = self.spec.hyper_values(self.trace.groups[self.group_of[i]].options)
            for b in self._buffers(hyper):
                initial = b.initial(hyper)
                if initial is not None and b.name in state and b.name not in self.result.free:
                    expected = _rounded_fill(initial, self._dtype(b, i))
                    actual = np.asarray(state[b.name], np.float64)
                    self.result.elements += actual.size
                    wrong = np.flatnonzero(actual != expected)
                    if wrong.size:
                        index = tuple(int(n) for n in np.unravel_index(wrong[0], actual.shape))
                        got = float(actual.reshape(-1)[wrong[0]])
                        self.result.deviations.append(
                            Deviation(None, i, b.name, index, got, expected, 0.0, float("inf"))
                        )

    def _dtype(self, b: Buffer, index: int) -> str:
        return "float32" if b.per_parameter else self.trace.parameters[index].dtype

    def _items(self, records: Iterable[StepRecord]) -> Iterator[_Item]:
        for record in records:
            for i, life in enumerate(record.lives):
                if life.gradient is not None:
                    state = self._state(record, i, life, first=i not in self.started)
                    yield _Item(record, i, life, state, self.trace.parameters[i].numel)
                    self.started.add(i)

    def _state(
        self, record: StepRecord, index: int, life: Life, *, first: bool
    ) -> dict[str, tuple[Array, Array | float] | None]:
        """What the reference starts from: the initial state at a parameter's first step, then the subject's own."""
        hyper = record.hyper[self.group_of[index]]
        slots = max(self.trace.parameters[index].numel, 1)
        result: dict[str, tuple[Array, Array | float] | None] = {}
        for b in self._buffers(hyper):
            carried = self.carried.get((index, b.name))
            if carried is not None:
                result[b.name] = (carried.value, carried.error)
            elif first or b.name in self.result.free or b.name not in life.state:
                initial = b.initial(hyper)
                filled = None if initial is None else np.full(slots, _rounded_fill(initial, self._dtype(b, index)))
                result[b.name] = None if filled is None else (filled, 0.0)
            else:
                result[b.name] = (_slots(np.asarray(life.state[b.name], np.float64), slots), 0.0)
        return result

    def _predict(self, items: Iterable[_Item]) -> None:
        """Run the reference on all items that share their options, dtype and buffers, as one long array."""
        batches: dict[Any, list[_Item]] = {}
        for item in items:
            hyper = item.record.hyper[self.group_of[item.index]]
            present = tuple(name for name, s in item.state.items() if s is not None)
            key = (id(hyper), self.trace.parameters[item.index].dtype, present)
            batches.setdefault(key, []).append(item)
        for (_, dtype, _), batch in batches.items():
            hyper = batch[0].record.hyper[self.group_of[batch[0].index]]
            p, after = self._update(batch, hyper, dtype)
            for name, predicted in (*after.items(), (PARAMETER, p)):
                self._confront(batch, name, predicted)

    def _update(self, batch: list[_Item], hyper: HyperValues, dtype: str) -> tuple[Bounded, dict[str, Bounded]]:
        arith = arithmetic(self.subject.profile, dtype)
        lengths = [item.slots for item in batch]

        def joined(arrays: list[Array], of: Arithmetic = arith) -> Bounded:
            return Bounded(np.concatenate(arrays, dtype=np.float64), 0.0, of)

        p = joined([_slots(item.life.value, n) for item, n in zip(batch, lengths, strict=True)])
        g = joined([_slots(item.life.gradient, n) for item, n in zip(batch, lengths, strict=True)])
        state: dict[str, Bounded | None] = {}
        for b in self._buffers(hyper):
            parts = [item.state[b.name] for item in batch]
            if parts[0] is None:
                state[b.name] = None
                continue
            values = joined([part[0] for part in parts if part], SCALARS64 if b.per_parameter else arith)
            if b.name in self.result.free:
                values.error = np.concatenate(
                    [np.broadcast_to(part[1], n) for part, n in zip(parts, lengths, strict=True) if part]
                )
                if not values.error.any():
                    values.error = 0.0
            state[b.name] = values
        new_p, after = self.spec.update(p, g, state, bounded_hyper(hyper))
        stored = {k: v.store(BINARY32 if k in self.per_parameter else FORMATS[dtype]) for k, v in after.items()}
        return new_p.store(FORMATS[dtype]), stored

    def _confront(self, batch: list[_Item], name: str, predicted: Bounded) -> None:
        """Compare one field of all items of a batch with what was predicted for it."""
        lengths = [item.slots for item in batch]
        starts = np.cumsum([0, *lengths[:-1]])
        predicted.error = np.broadcast_to(predicted.error, np.shape(predicted.value))
        if name in self.result.free:
            for item, start in zip(batch, starts, strict=True):
                self.carried[item.index, name] = predicted[start : start + item.slots]
            return
        r = ratios(np.concatenate([self._actual(item, name) for item in batch], dtype=np.float64), predicted)
        maxima = np.maximum.reduceat(r, starts)
        single = name in self.per_parameter
        self.result.elements += sum(1 if single else item.numel for item in batch)
        self.result.undetermined += 0 if single else int(np.isinf(predicted.error).sum())
        if maxima.max() <= 1:
            self.result.worst[name] = max(self.result.worst.get(name, 0.0), float(maxima.max()))
            return
        for item, start, worst in zip(batch, starts, maxima, strict=True):
            if worst <= 1:
                self.result.worst[name] = max(self.result.worst.get(name, 0.0), float(worst))
            elif single or item.numel:
                at = int(start + r[start : start + item.slots].argmax())
                self._deviates(item, name, at, int(start), float(worst), predicted)

    def _deviates(self, item: _Item, name: str, at: int, start: int, ratio: float, predicted: Bounded) -> None:
        problem = self._problem(item, name)
        shape = () if name in self.per_parameter else self.trace.parameters[item.index].shape
        self.result.deviations.append(
            Deviation(
                event=item.record.event,
                parameter=item.index,
                field=name,
                index=() if problem or not shape else tuple(int(i) for i in np.unravel_index(at - start, shape)),
                got=float(self._actual(item, name)[at - start]),
                expected=float(predicted.value[at]),
                budget=float(predicted.error[at]),
                ratio=ratio,
                problem=problem,
                item=item,
                element=at - start,
            )
        )

    def _problem(self, item: _Item, name: str) -> str:
        """Why a field cannot be compared at all, or nothing."""
        if name == PARAMETER:
            return ""
        if name not in item.life.state_after:
            return f"{name} does not exist after the step"
        shape = np.shape(item.life.state_after[name])
        if name in self.per_parameter:
            return (
                ""
                if np.size(item.life.state_after[name]) == 1
                else f"{name} has shape {shape} where one number belongs"
            )
        expected = self.trace.parameters[item.index].shape
        return "" if shape == expected else f"{name} has shape {shape} where the parameter has {expected}"

    def _actual(self, item: _Item, name: str) -> Array:
        """A field after the step, one value for each slot; infinity throughout where it cannot be compared."""
        if name == PARAMETER:
            return _slots(item.life.value_after, item.slots)
        if self._problem(item, name):
            return np.full(item.slots, np.inf)
        return _slots(item.life.state_after[name], item.slots)

    def terms(self, deviation: Deviation) -> list[tuple[str, float]]:
        """The roundings that the budget of a deviation is made of, largest share first; empty where errors have accumulated."""
        item, name, element = deviation.item, deviation.field, deviation.element
        if self.result.free or item is None:
            return []
        hyper = item.record.hyper[self.group_of[item.index]]
        dtype = self.trace.parameters[item.index].dtype
        # In the written order alone: which of several orders costs most says nothing to a reader.
        arith = replace(arithmetic(self.subject.profile, dtype), orders=frozenset())
        scalars = bounded_hyper(hyper)

        def one(x: Any, of: Arithmetic) -> Bounded:
            return Bounded(np.asarray(x, np.float64).reshape(-1)[element : element + 1], 0.0, of)

        def evaluate() -> Bounded:
            state = {
                k: None if s is None else one(s[0], SCALARS64 if k in self.per_parameter else arith)
                for k, s in item.state.items()
            }
            p, after = self.spec.update(one(item.life.value, arith), one(item.life.gradient, arith), state, scalars)
            chosen: Bounded = p if name == PARAMETER else after[name]
            return chosen

        with np.errstate(all="ignore"):
            return bounded.terms(evaluate)


def _slots(x: Any, slots: int) -> Array:
    """``x`` flat; one number, or none, repeated."""
    flat: Array = np.asarray(x).reshape(-1)
    if flat.size == slots:
        return flat
    return np.full(slots, flat[0] if flat.size else 0.0)


def _rounded_fill(value: float, dtype: str) -> float:
    """``value`` as a tensor of ``dtype`` holds it."""
    return float(np.asarray(value, {"float32": np.float32, "float64": np.float64}[dtype]))


def judge(subject: Subject, recording: Recording) -> Judgement:
    """Compare a recording with the reference of its subject."""
    return Judge(subject, recording).judge()
