"""What the reference says of a recording: each step predicted from the subject's own state before it, with its error budget.

One step at a time: the parameters, gradients and state that the subject had before a step go into the reference, and what it
has after is compared with the prediction, element by element, in units of that element's budget. A subject whose buffers
cannot be read by name runs free in those buffers: the reference carries its own, with the error that has accumulated.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.harness.judging import evaluations, orthogonal
from stepcheck.harness.judging.evaluations import EVALUATION
from stepcheck.harness.life.events import plain
from stepcheck.harness.life.memory import SparseRaw, rounded_fill
from stepcheck.harness.life.values import in_reals, is_complex
from stepcheck.harness.numbers import audit
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import RATIO_CLASSES, Array, Comparison, ratios, reals
from stepcheck.harness.numbers.decisions import outcomes
from stepcheck.harness.numbers.formats import BINARY32, COUNTERS32, COUNTERS64, FORMATS, SCALARS64, Arithmetic, Format
from stepcheck.harness.numbers.observed import seen
from stepcheck.harness.numbers.options import bounded_option
from stepcheck.harness.play.profiles import Profile
from stepcheck.harness.play.recording import Life, Recording, StepRecord
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.clocks import Clocks
from stepcheck.reference.spec import PARAMETER, Buffer, HyperValues, Spec

#: Roundings of a parameter that a carry may have gathered before it is added.
_CARRIED = 4


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
    item: _Item | None = None
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


@functools.cache
def arithmetic(profile: Profile, dtype: str) -> Arithmetic:
    """The arithmetic of a profile for parameters of ``dtype``."""
    return profile.arithmetic(dtype)


def bounded_hyper(hyper: HyperValues, held: Arithmetic = SCALARS64) -> SimpleNamespace:
    """The hyperparameters as scalars of error-bounded arithmetic; flags, counts and names stay as they are.

    Args:
        held: the arithmetic that they are held in.
    """
    tensors: frozenset[str] = getattr(hyper, "tensors", frozenset())

    def scalar(x: Any, name: str) -> Any:
        if isinstance(x, tuple):
            return tuple(scalar(y, name) for y in x)
        return bounded_option(x, held, tensor=name in tensors) if isinstance(x, float) else x

    return SimpleNamespace(**{name: scalar(value, name) for name, value in vars(hyper).items() if name != "tensors"})


@dataclass
class _Item:
    """One parameter in one step, with the state that the reference is given: (values, errors) of each buffer."""

    record: StepRecord
    index: int
    life: Life
    state: dict[str, tuple[Array, Array | float] | None]
    shape: tuple[int, ...]
    dtype: str

    @functools.cached_property
    def numel(self) -> int:
        """Real numbers in the parameter."""
        return math.prod(in_reals(self.shape, self.dtype))

    @functools.cached_property
    def slots(self) -> int:
        """An empty tensor gets one element, so that numbers kept per parameter are predicted for it as well."""
        return self.numel or math.prod(in_reals((), self.dtype))

    def gradient(self, unit: float) -> tuple[Array, Array | float, Array | None]:
        """The gradient as a dense one with its error, and which elements it names, where not all.

        Entries that name one element are added up in any order.
        """
        given = self.life.gradient
        if not isinstance(given, SparseRaw):
            return _slots(given, self.slots), 0.0, None
        parts = 2 if is_complex(self.dtype) else 1
        elements = (given.elements[:, None] * parts + np.arange(parts)).reshape(-1)
        values = reals(given.values)
        dense, size, named = np.zeros(self.slots), np.zeros(self.slots), np.zeros(self.slots)
        np.add.at(dense, elements, values)
        np.add.at(size, elements, np.abs(values))
        np.add.at(named, elements, 1)
        growth = np.expm1(np.maximum(named - 1, 0) * math.log1p(unit))
        # A single entry has none, however large it is.
        error = np.multiply(growth, size, out=np.zeros(self.slots), where=growth > 0)
        return dense, error if error.any() else 0.0, named


class Judge:
    """Compares one recording with the reference.

    Args:
        clocks: where the seconds of ``judge`` are added up, and, within them, those of the ``reference``.
    """

    def __init__(self, subject: Subject, recording: Recording, clocks: Clocks | None = None) -> None:
        self.clocks = Clocks() if clocks is None else clocks
        self.subject = subject
        self.spec: Spec = subject.spec
        self.recording = recording
        self.trace = recording.trace
        self.result = Judgement(steps=len(recording.steps))
        self.group_of = self.trace.group_of
        self.per_parameter = {b.name for b in self.spec.buffers if b.per_parameter}
        self.by_name = {b.name: b for b in self.spec.buffers}
        self.started: set[int] = set()
        self.unseen = False  # whether a list that cannot be read holds something by now
        self.carried: dict[tuple[int, str], Bounded] = {}
        self.carried_products: set[int] = set()
        # By the identity of the hyperparameters, which stand beside what belongs to them so that they outlive it.
        self.options: dict[tuple[int, str, str], tuple[HyperValues, SimpleNamespace]] = {}
        self.buffers: dict[tuple[int, int], tuple[HyperValues, list[Buffer]]] = {}

    def judge(self, *, to_first: bool = False) -> Judgement:
        """Judge the recording.

        Args:
            to_first: of steps that are judged one by one, none after the first that deviates: for whether there is one.
        """
        with self.clocks.running("judge"):
            return self._judge(to_first=to_first)

    def _judge(self, *, to_first: bool) -> Judgement:
        with np.errstate(all="ignore"):
            self.result.free = self._unreadable()
            self._initial_state()
            if self.spec.closure:
                for record in self.recording.steps:
                    self._judge_evaluations(record)
                    if to_first and self.result.deviations:
                        break
            elif self.spec.products:
                for item in self._items(self.recording.steps):
                    self._judge_products(item)
                    if to_first and self.result.deviations:
                        break
            elif self.result.free:
                for record in self.recording.steps:
                    self._predict(self._items([record]))
            else:
                self._predict(self._items(self.recording.steps))
        order = {b.name: n for n, b in enumerate(self.spec.buffers)} | {EVALUATION: -1}
        # What is neither a buffer nor an evaluation is about the parameter.
        self.result.deviations.sort(
            key=lambda d: (-1 if d.event is None else d.event, order.get(d.field, len(order)), d.parameter)
        )
        return self.result

    # Steps that are judged in their own way: an orthogonalization, a closure.

    def _judge_products(self, item: _Item) -> None:
        if not item.numel:
            return
        hyper = item.record.hyper[self.group_of[item.index]]
        # Without a readable buffer, only the first step starts from what is known.
        if self.result.free and any(s is not None and np.any(s[0]) for s in item.state.values()):
            return
        if self.result.free and item.index in self.carried_products:
            return
        self.carried_products.add(item.index)

        def shaped(x: Any) -> Array:
            return reals(x).reshape(item.shape)

        before = {k: None if s is None else shaped(s[0]) for k, s in item.state.items()}
        after = {k: shaped(v) for k, v in item.life.state_after.items() if k in before and np.size(v) == item.numel}
        for name in before.keys() - after.keys() - self.result.free:
            self._compared(item.record, _missing(name, self._problem(item, name)), item.index, item)
        profile = item.record.played_by.profile.as_written
        compared = orthogonal.judge_step(
            arithmetic(profile, item.dtype),
            hyper,
            shaped(item.life.value),
            shaped(item.life.gradient),
            before,
            shaped(item.life.value_after),
            after,
            profile.products_format(item.dtype),
            held=profile.options,
            rounded_once=profile.products_rounded_once,
            element=FORMATS[item.dtype],
        )
        for comparison in compared:
            self._compared(item.record, comparison, item.index, item)

    def _judge_evaluations(self, record: StepRecord) -> None:
        first = record.lives[0]
        begun = bool(first.state) or 0 in self.started
        self.started.add(0)
        if begun and (self.result.free - set(evaluations.LISTS) or self.unseen):
            return  # of a state that cannot be read, only the first step is known to start from nothing
        before, after = evaluations.assembled(first.state), evaluations.assembled(first.state_after)
        profile = record.played_by.profile.as_written
        compared = evaluations.judge_step(
            arithmetic(profile, self.trace.parameters[0].dtype),
            record.hyper[0],
            np.concatenate([reals(life.value) for life in record.lives]),
            before,
            record.evaluations,
            np.concatenate([reals(life.value_after) for life in record.lives]),
            after,
            profile.options,
        )
        number = itertools.count()
        for comparison in compared:
            n = next(number) if comparison.field == EVALUATION else None
            self.unseen |= comparison.field in self.result.free and bool(comparison.problem)
            if comparison.field not in self.result.free:
                self._compared(record, comparison, 0, evaluation=n)

    def _compared(
        self,
        record: StepRecord,
        c: Comparison,
        parameter: int,
        item: _Item | None = None,
        evaluation: int | None = None,
    ) -> None:
        """Keep count of one comparison, and note it if it deviates."""
        r = np.full(1, np.inf) if c.problem else ratios(c.actual, c.predicted)
        error = np.broadcast_to(c.predicted.error, np.shape(c.predicted.value))
        determined = np.isfinite(error).reshape(-1)
        self._count(c.field, c.actual.size, int((~determined).sum()))
        dtype = self.trace.parameters[parameter].dtype
        self._classify(c.field, dtype, np.full(determined.sum(), np.inf) if c.problem else r[determined])
        worst = float(r.max(initial=0.0))
        if worst <= 1:
            # What is not determined is no use of the budget.
            if r.size and np.isfinite(error).any():
                self.result.worst[c.field] = max(self.result.worst.get(c.field, 0.0), worst)
            return
        at = int(r.argmax())
        index = tuple(int(i) for i in np.unravel_index(at, c.shape)) if c.shape and not c.problem else ()
        if evaluation is not None:
            index = (evaluation, *index)
        elif c.field == PARAMETER and self.spec.closure and index:
            parameter, index = self._locate(at)
        self.result.deviations.append(
            Deviation(
                event=record.event,
                parameter=parameter,
                field=c.field,
                index=index,
                got=float(c.actual[at]),
                expected=float(np.reshape(c.predicted.value, -1)[at]),
                budget=float(error.reshape(-1)[at]),
                ratio=worst,
                problem=c.problem,
                item=item,
                element=at,
                center=c.center,
            )
        )

    def _locate(self, at: int) -> tuple[int, tuple[int, ...]]:
        """The parameter, and the index in it, of an element of all parameters joined."""
        for n, p in enumerate(self.trace.parameters):
            shape = in_reals(p.shape, p.dtype)
            if at < math.prod(shape):
                return n, tuple(int(i) for i in np.unravel_index(at, shape)) if shape else ()
            at -= math.prod(shape)
        raise AssertionError("an element beyond the parameters")

    def _buffers(self, hyper: HyperValues, index: int) -> list[Buffer]:
        """The buffers that a parameter has."""
        key = (id(hyper), index)
        if key not in self.buffers:
            shape = self.trace.parameters[index].shape
            found = [b for b in self.spec.buffers if b.present(hyper) and b.shape(shape) is not None]
            self.buffers[key] = hyper, found
        return self.buffers[key][1]

    def _slots_of(self, b: Buffer, index: int) -> int:
        """Numbers in a buffer; of a single number per parameter, as many as it has to stand beside."""
        p = self.trace.parameters[index]
        shape = p.shape if b.per_parameter else b.shape(p.shape)
        assert shape is not None
        return math.prod(in_reals(shape, p.dtype)) or math.prod(in_reals((), p.dtype))

    def _unreadable(self) -> set[str]:
        """Buffers that somebody's class never shows under their name, once it has taken a step with a gradient."""
        if not self.subject.explicit:
            return set()
        if self.spec.closure:
            return self._unreadable_at_first()
        missing: set[str] = set()
        for record in self.recording.steps:
            for i, life in enumerate(record.lives):
                # A parameter without elements needs none.
                if life.gradient is not None and 0 not in self.trace.parameters[i].shape:
                    for b in self._buffers(record.hyper[self.group_of[i]], i):
                        if not self._shown(b.name, life.state_after):
                            missing.add(b.name)
        return missing

    def _unreadable_at_first(self) -> set[str]:
        """What no step shows of one state for all parameters, which the first of them has.

        What comes with an iteration is not missing where there was none. A list that is never shown may be empty: whether it
        is turns out once the reference puts something into it.
        """
        states = [record.lives[0].state_after for record in self.recording.steps]
        iterated = any(state.get("n_iter", 1) for state in states)
        due = {b.name for b in self.spec.buffers if iterated or b.initial(self.spec.hyper_values()) is not None}
        return {name for name in due if not any(self._shown(name, state) for state in states)}

    def _shown(self, name: str, state: Mapping[str, Any]) -> bool:
        return name in state or any(key.startswith(f"{name}[") for key in state)

    def _initial_state(self) -> None:
        """A state that exists at construction must be the initial one."""
        for i, state in enumerate(self.recording.initial_state):
            if not state:  # most optimizers create it in the first step
                continue
            hyper = self.spec.hyper_values(plain(self.trace.all_groups[self.group_of[i]].options))
            for b in self._buffers(hyper, i):
                initial = b.initial(hyper)
                if initial is not None and b.name in state and b.name not in self.result.free:
                    expected = rounded_fill(initial, self._dtype(b, i))
                    actual = reals(state[b.name])
                    self.result.elements += actual.size
                    wrong = np.flatnonzero(actual != expected)
                    if wrong.size:
                        shape = in_reals(np.shape(state[b.name]), self._dtype(b, i))
                        index = tuple(int(n) for n in np.unravel_index(wrong[0], shape))
                        got = float(actual[wrong[0]])
                        self.result.deviations.append(
                            Deviation(None, i, b.name, index, got, expected, 0.0, float("inf"))
                        )

    def _dtype(self, b: Buffer, index: int) -> str:
        return "float32" if b.per_parameter else self.trace.parameters[index].dtype

    def _items(self, records: Iterable[StepRecord]) -> Iterator[_Item]:
        for record in records:
            for i, life in enumerate(record.lives):
                if life.gradient is not None and not self._is_open(record, i, life):
                    state = self._state(record, i, life, first=i not in self.started)
                    p = self.trace.parameters[i]
                    yield _Item(record, i, life, state, p.shape, p.dtype)
                    self.started.add(i)

    def _is_open(self, record: StepRecord, index: int, life: Life) -> bool:
        """Whether nothing can be said of a parameter in a step of somebody's class."""
        if not self.subject.explicit:
            return False
        aged = self.recording.aged
        # What cannot be read after steps that were not recorded is not known; a parameter without elements need not have a state.
        unknown = bool(self.result.free) and aged is not None and record.event > aged
        buffers = self._buffers(record.hyper[self.group_of[index]], index)
        lacks = any(not self._shown(b.name, life.state_after) for b in buffers)
        return unknown or (lacks and 0 in self.trace.parameters[index].shape)

    def _state(
        self, record: StepRecord, index: int, life: Life, *, first: bool
    ) -> dict[str, tuple[Array, Array | float] | None]:
        """What the reference starts from: the initial state at a parameter's first step, then the subject's own."""
        hyper = record.hyper[self.group_of[index]]
        result: dict[str, tuple[Array, Array | float] | None] = {}
        for b in self._buffers(hyper, index):
            slots = self._slots_of(b, index)
            carried = self.carried.get((index, b.name))
            if carried is not None:
                result[b.name] = (carried.value, carried.error)
            elif (first and not life.begun) or b.name in self.result.free or b.name not in life.state:
                initial = b.initial(hyper)
                result[b.name] = None if initial is None else self._filled(b, initial, index, slots)
            else:
                result[b.name] = (_slots(life.state[b.name], slots), 0.0)
        return result

    def _filled(self, b: Buffer, initial: float, index: int, slots: int) -> tuple[Array, Array | float]:
        """The initial value of a buffer. Somebody's class may keep a number as it is, where torch.optim has float32."""
        held = rounded_fill(initial, self._dtype(b, index))
        error = abs(held - initial) if b.per_parameter and self.subject.explicit else 0.0
        return np.full(slots, held), np.full(slots, error) if error else 0.0

    def _predict(self, items: Iterable[_Item]) -> None:
        """Run the reference on all items that share their options, dtype and buffers, as one long array.

        Where elements depend on each other, on each item by itself.
        """
        batches: dict[Any, list[_Item]] = {}
        for n, item in enumerate(items):
            hyper = item.record.hyper[self.group_of[item.index]]
            present = tuple(name for name, s in item.state.items() if s is not None)
            key = (id(hyper), id(item.record.played_by.profile), item.dtype, present, 0 if self.spec.elementwise else n)
            batches.setdefault(key, []).append(item)
        for (_, _, dtype, *_), batch in batches.items():
            hyper = batch[0].record.hyper[self.group_of[batch[0].index]]
            if not self.spec.elementwise and not batch[0].numel:
                continue
            names = [*(b.name for b in self._buffers(hyper, batch[0].index)), PARAMETER]
            actual = {name: np.concatenate([self._actual(item, name) for item in batch]) for name in names}
            best: dict[str, tuple[Array, Bounded]] = {}
            for predicted in outcomes(functools.partial(self._timed_update, batch, hyper, dtype, actual)):
                # Of the branches that rounding leaves open, an element may have taken the one that it agrees with.
                for name in names:
                    r = ratios(actual[name], predicted[name]) if name not in self.result.free else np.zeros(1)
                    if self.subject.explicit and name not in self.per_parameter:
                        r = self._forgiven(batch, r, actual[name], predicted[name])
                    nearer = _either if name in self.result.free else _closer
                    best[name] = nearer(best.get(name), (r, predicted[name]))
            for name in names:
                self._confront(batch, name, actual[name], *best[name])

    def _forgiven(self, batch: list[_Item], r: Array, actual: Array, predicted: Bounded) -> Array:
        """NaN is right where a class may have multiplied an infinity by an option that is zero, or taken one from another; and where it
        need not have done what makes a NaN of an infinity in the reference, any value is.
        """
        apart = (np.isnan(actual) | np.isnan(predicted.value)) & (r > 1)
        if not apart.any():
            return r
        infinite, unknown = np.isinf(predicted.value), np.zeros(np.shape(r), bool)
        if self.spec.elementwise:
            for of_items in zip(*(self._inputs(item) for item in batch), strict=True):
                given = np.concatenate(of_items)
                infinite, unknown = infinite | np.isinf(given), unknown | np.isnan(given)
        else:
            inputs = [x for item in batch for x in self._inputs(item)]
            infinite = infinite | any(np.isinf(x).any() for x in inputs)
            unknown = unknown | any(np.isnan(x).any() for x in inputs)
        # Of a NaN that goes in, a number may not come out.
        return np.where(apart & np.where(np.isnan(actual), infinite | unknown, infinite & ~unknown), 0.0, r)

    def _inputs(self, item: _Item) -> list[Array]:
        """What an element of an item is computed from, one value for each slot."""
        state = [s[0] for name, s in item.state.items() if s is not None and name not in self.per_parameter]
        gradient = item.gradient(0.0)[0]
        value = _slots(item.life.value, item.slots)
        return [value, gradient, *state] if self.spec.elementwise else [value.reshape(-1), gradient, *state]

    def _timed_update(self, *batch: Any) -> dict[str, Bounded]:
        with self.clocks.running("reference"):
            return self._update(*batch)

    def _update(
        self, batch: list[_Item], hyper: HyperValues, dtype: str, actual: dict[str, Array]
    ) -> dict[str, Bounded]:
        """What the reference says of the parameter and each buffer, flat."""
        profile, shape = batch[0].record.played_by.profile.computing(dtype), batch[0].shape
        arith, element = arithmetic(profile, dtype), FORMATS[dtype]
        lengths = [item.slots for item in batch]

        def joined(arrays: list[Array], of: Arithmetic = arith) -> Bounded:
            return Bounded(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), 0.0, of)

        def formed(x: Bounded, into: tuple[int, ...]) -> Bounded:
            """In its own shape, where elements depend on each other."""
            if self.spec.elementwise:
                return x
            error = x.error if type(x.error) is float else np.broadcast_to(x.error, np.shape(x.value)).reshape(into)
            return Bounded(x.value.reshape(into), error, x.arithmetic)

        starts = [self._precise(item) for item in batch]
        p = joined([value for value, _ in starts])
        if any(type(error) is not float for _, error in starts):
            p.error = np.concatenate([np.broadcast_to(e, n) for (_, e), n in zip(starts, lengths, strict=True)])
        gradients = [item.gradient(arith.unit) for item in batch]
        g = joined([values for values, _, _ in gradients])
        if any(type(error) is not float for _, error, _ in gradients):
            g.error = np.concatenate(
                [np.broadcast_to(error, n) for (_, error, _), n in zip(gradients, lengths, strict=True)]
            )
        state: dict[str, Bounded | None] = {}
        for b in self._buffers(hyper, batch[0].index):
            parts = [item.state[b.name] for item in batch]
            if parts[0] is None:
                state[b.name] = None
                continue
            kept = COUNTERS32 if b.in_place else profile.kept(profile.counters)
            values = joined([part[0] for part in parts if part], kept if b.per_parameter else arith)
            if b.name in self.result.free or any(part and type(part[1]) is not float for part in parts):
                values.error = np.concatenate([np.broadcast_to(part[1], len(part[0])) for part in parts if part])
                if not values.error.any():
                    values.error = 0.0
            if b.per_parameter:
                state[b.name] = values if self.spec.elementwise else values[0]
            else:
                state[b.name] = formed(values, b.shape(shape) or ())
        observed = {b.name: actual[b.name] for b in self.spec.buffers if b.in_place and b.name not in self.result.free}
        with seen(observed, profile.kept(profile.in_place)):
            new_p, after = self.spec.update(
                formed(p, shape), formed(g, shape), state, self._options(hyper, element, profile.options)
            )
        result = {k: v.store(self._stored(k, element)) for k, v in after.items()}
        result[PARAMETER] = new_p.store(element)
        for name, predicted in result.items():
            predicted.value, predicted.error = np.asarray(predicted.value), np.asarray(predicted.error)
            if predicted.error.shape != predicted.value.shape:
                predicted.error = np.full(predicted.value.shape, predicted.error)
            predicted.value, predicted.error = predicted.value.reshape(-1), predicted.error.reshape(-1)
            if name in self.per_parameter and not self.spec.elementwise:
                # One number, as many times as its parameter has elements.
                predicted.value = np.broadcast_to(predicted.value, lengths[0])
                predicted.error = np.broadcast_to(predicted.error, lengths[0])
        self._leave_unnamed(batch, gradients, p, state, result)
        self._add_entries(hyper, arith, gradients, p, g, result)
        if is_complex(dtype):
            for name in result.keys() - self.per_parameter:
                _join_parts(result[name])
        return result

    def _stored(self, name: str, element: Format) -> Format:
        """What a buffer is stored in, given the format of the parameter; of what keeps lost bits, the sum that it is judged by."""
        b = self.by_name[name]
        return BINARY32 if b.per_parameter else element.doubled if b.of else element

    def _precise(self, item: _Item) -> tuple[Array, Array | float]:
        """The parameter before a step, and how far off it may be: somebody's class may keep more of it than its dtype holds.

        A tensor in its state that the parameter is a rounding of may be the parameter (master weights); one that is no larger than
        what rounding the parameter loses is what was lost (Kahan's carry), of either sign.
        """
        value = _slots(item.life.value, item.slots)
        if not self.subject.explicit or not item.numel:
            return value, 0.0
        unit, tiny = FORMATS[item.dtype].unit_roundoff, FORMATS[item.dtype].underflow
        error: Array | float = 0.0
        for name, kept in item.life.state.items():
            if name in self.by_name or np.shape(kept) != np.shape(item.life.value) or not np.size(kept):
                continue
            tensor = reals(kept)
            ordinary = np.isfinite(value) & np.isfinite(tensor)
            with np.errstate(all="ignore"):
                apart, size = np.where(ordinary, np.abs(tensor - value), 0.0), unit * np.abs(value) + tiny
                if apart.any() and np.all(apart[ordinary] <= size[ordinary]):
                    error = np.maximum(error, apart)  # or the class has begun anew with the rounding
                carry = np.where(ordinary, np.abs(tensor), 0.0)
                if carry.any() and np.all(carry[ordinary] <= _CARRIED * size[ordinary]):
                    error = np.maximum(error, carry)
        return value, error

    def _options(self, hyper: HyperValues, element: Format, held: Arithmetic) -> SimpleNamespace:
        key = (id(hyper), element.name, held.format.name)
        if key not in self.options:
            self.options[key] = hyper, bounded_hyper(self.spec.for_dtype(hyper, 2.0 * element.unit_roundoff), held)
        return self.options[key][1]

    def _leave_unnamed(
        self,
        batch: list[_Item],
        gradients: list[tuple[Array, Array | float, Array | None]],
        p: Bounded,
        state: dict[str, Bounded | None],
        result: dict[str, Bounded],
    ) -> None:
        """What a lazy sparse gradient does not name stays as it is, to the last bit."""
        if self.spec.sparse not in ("lazy", "only") or all(named is None for _, _, named in gradients):
            return
        unnamed = np.concatenate(
            [
                np.zeros(item.slots, bool) if n is None else n == 0
                for item, (_, _, n) in zip(batch, gradients, strict=True)
            ]
        )
        for name, before in (*state.items(), (PARAMETER, p)):
            if name not in self.per_parameter and before is not None:
                predicted, of = result[name], self.by_name[name].of if name in self.by_name else ""
                if of:
                    other = p if of == PARAMETER else state[of]
                    assert other is not None
                    before = Bounded(before.value + other.value, 0.0, before.arithmetic)  # noqa: PLW2901 - both stay
                error = np.where(unnamed, before.error, predicted.error)
                result[name] = Bounded(np.where(unnamed, before.value, predicted.value), error, predicted.arithmetic)

    def _add_entries(
        self,
        hyper: HyperValues,
        arith: Arithmetic,
        gradients: list[tuple[Array, Array | float, Array | None]],
        p: Bounded,
        g: Bounded,
        result: dict[str, Bounded],
    ) -> None:
        """A sparse gradient may be added to the parameter entry by entry: a rounding of the sum so far for each but one."""
        if self.spec.sparse != "dense" or type(g.error) is float:
            return
        named = np.concatenate([np.zeros(len(v)) if n is None else n for v, _, n in gradients])
        # The error of g is that of adding up its entries, so this is at least their absolute sum.
        size = (
            np.abs(p.value) + np.abs(result[PARAMETER].value) + 2 * hyper.lr * (np.abs(g.value) + g.error / arith.unit)
        )
        further = np.maximum(named - 1, 0) * (arith.unit * size)
        result[PARAMETER].error = result[PARAMETER].error + further * (1 + len(g.value) * arith.unit)

    def _confront(self, batch: list[_Item], name: str, actual: Array, r: Array, predicted: Bounded) -> None:
        """Keep count of one field of all items of a batch, and note what deviates."""
        single = name in self.per_parameter
        lengths = [len(actual)] if len(batch) == 1 else [item.slots for item in batch]
        starts = list(itertools.accumulate(lengths[:-1], initial=0))
        if name in self.result.free:
            for item, start, length in zip(batch, starts, lengths, strict=True):
                self.carried[item.index, name] = predicted[start : start + length]
            return
        elements = sum(1 if single else n if item.numel else 0 for item, n in zip(batch, lengths, strict=True))
        if single:
            determined = r[starts]
        else:
            known = ~np.isinf(predicted.error)
            if elements < len(r):  # an empty parameter has a slot, but no element
                known &= np.repeat([item.numel > 0 for item in batch], lengths)
            determined = r if known.all() else r[known]
        self._count(name, elements, elements - len(determined))
        self._classify(name, batch[0].dtype, determined)
        largest = r.item(r.argmax())
        if largest <= 1:
            self.result.worst[name] = max(self.result.worst.get(name, 0.0), largest)
            return
        for item, start, length, worst in zip(batch, starts, lengths, np.maximum.reduceat(r, starts), strict=True):
            if worst <= 1:
                self.result.worst[name] = max(self.result.worst.get(name, 0.0), float(worst))
            elif single or item.numel:
                at = int(start + r[start : start + length].argmax())
                self._deviates(item, name, at, start, float(worst), float(actual[at]), predicted)

    def _count(self, name: str, elements: int, undetermined: int) -> None:
        before = self.result.fields.get(name, (0, 0))
        self.result.fields[name] = (before[0] + elements, before[1] + undetermined)
        self.result.elements += elements
        self.result.undetermined += undetermined

    def _classify(self, name: str, dtype: str, r: Array) -> None:
        self.result.ratios.setdefault((name, dtype), []).append(r)

    def _deviates(
        self, item: _Item, name: str, at: int, start: int, ratio: float, got: float, predicted: Bounded
    ) -> None:
        problem = self._problem(item, name)
        shape = () if name in self.per_parameter else in_reals(self._shape(item, name), item.dtype)
        self.result.deviations.append(
            Deviation(
                event=item.record.event,
                parameter=item.index,
                field=name,
                index=() if problem or not shape else tuple(int(i) for i in np.unravel_index(at - start, shape)),
                got=got,
                expected=float(predicted.value[at]),
                budget=float(np.asarray(predicted.error)[at]),
                ratio=ratio,
                problem=problem,
                item=item,
                element=at - start,
                of="" if name == PARAMETER else self.by_name[name].of,
            )
        )

    def _shape(self, item: _Item, name: str) -> tuple[int, ...]:
        """The shape that a field has to have."""
        if name == PARAMETER:
            return item.shape
        return self.by_name[name].shape(item.shape) or ()

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
        expected = self._shape(item, name)
        return "" if shape == expected else f"{name} has shape {shape} where {expected} belongs"

    def _actual(self, item: _Item, name: str) -> Array:
        """A field after the step, one value for each slot; infinity throughout where it cannot be compared."""
        if name == PARAMETER:
            return _slots(item.life.value_after, item.slots)
        slots = item.slots
        if not self.spec.elementwise and name not in self.per_parameter:
            slots = math.prod(self._shape(item, name)) or 1
        if name in self.result.free or self._problem(item, name):
            return np.full(slots, np.inf)
        found, of = _slots(item.life.state_after[name], slots), self.by_name[name].of
        return found + self._actual(item, of) if of else found

    def terms(self, deviation: Deviation) -> list[tuple[str, float]]:
        """The roundings that the budget of a deviation is made of, largest share first; empty where errors have accumulated."""
        item, name, element = deviation.item, deviation.field, deviation.element
        if self.result.free or item is None or not self.spec.elementwise:
            return []
        hyper = item.record.hyper[self.group_of[item.index]]
        # In the written order alone: which of several orders costs most says nothing to a reader.
        profile = item.record.played_by.profile.computing(item.dtype)
        arith = replace(arithmetic(profile, item.dtype), orders=frozenset())
        options = self._options(hyper, FORMATS[item.dtype], profile.options)
        g, error, _ = item.gradient(arith.unit)
        if type(error) is not float:
            return []

        def one(x: Any, of: Arithmetic) -> Bounded:
            return Bounded(np.asarray(x, np.float64).reshape(-1)[element : element + 1], 0.0, of)

        def evaluate() -> Bounded:
            state = {
                k: None if s is None else one(s[0], COUNTERS64 if k in self.per_parameter else arith)
                for k, s in item.state.items()
            }
            p, after = self.spec.update(one(_slots(item.life.value, item.slots), arith), one(g, arith), state, options)
            chosen: Bounded = p if name == PARAMETER else after[name]
            return chosen

        with np.errstate(all="ignore"):
            return audit.terms(evaluate)


def _missing(name: str, problem: str) -> Comparison:
    return Comparison(name, np.zeros(1), Bounded(np.zeros(1), np.zeros(1), SCALARS64), (), problem)


def _closer(a: tuple[Array, Bounded] | None, b: tuple[Array, Bounded]) -> tuple[Array, Bounded]:
    """Elementwise, the prediction that the subject agrees with better."""
    if a is None:
        return b
    better = b[0] < a[0]
    if not better.any():
        return a
    value, error = np.where(better, b[1].value, a[1].value), np.where(better, b[1].error, a[1].error)
    return np.minimum(a[0], b[0]), Bounded(value, error, a[1].arithmetic)


def _either(a: tuple[Array, Bounded] | None, b: tuple[Array, Bounded]) -> tuple[Array, Bounded]:
    """Of a buffer that nobody sees, whatever it may be."""
    if a is None:
        return b
    apart = np.abs(b[1].value - a[1].value)
    further = b[1].error + np.where(np.isnan(apart), np.inf, apart)
    return a[0], Bounded(a[1].value, np.maximum(a[1].error, further), a[1].arithmetic)


def _join_parts(predicted: Bounded) -> None:
    """A complex number that is infinite or NaN in one part is not determined in the other (C11, annex G)."""
    open_ = ~np.isfinite(predicted.value) | np.isinf(predicted.error)
    if open_.any() and open_.size % 2 == 0:
        either = np.repeat(open_.reshape(-1, 2).any(axis=1), 2)
        predicted.error = np.where(either, np.inf, predicted.error)


def _slots(x: Any, slots: int) -> Array:
    """``x`` flat; one number, or none, repeated."""
    flat = reals(x)
    if flat.size == slots:
        return flat
    return np.full(slots, flat[0] if flat.size else 0.0)


def judge(subject: Subject, recording: Recording) -> Judgement:
    """Compare a recording with the reference of its subject."""
    return Judge(subject, recording).judge()
