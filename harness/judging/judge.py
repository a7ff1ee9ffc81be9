"""What the reference says of a recording: each step predicted from the subject's own state before it, with its error budget.

One step at a time: the parameters, gradients and state that the subject had before a step go into the reference, and what it
has after is compared with the prediction, element by element, in units of that element's budget. A subject whose buffers
cannot be read by name runs free in those buffers: the reference carries its own, with the error that has accumulated.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness.judging import evaluations, orthogonal
from stepcheck.harness.judging.counts import counted
from stepcheck.harness.judging.evaluations import EVALUATION
from stepcheck.harness.judging.fields import Fields
from stepcheck.harness.judging.item import MOST_ELEMENTS, Item, repeated, sampled, thinned
from stepcheck.harness.judging.judgement import Deviation, Judgement
from stepcheck.harness.judging.prediction import Predictor, arithmetic
from stepcheck.harness.life.events import Parameter, plain
from stepcheck.harness.life.memory import rounded_fill
from stepcheck.harness.life.values import in_reals, is_complex
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import Array, Comparison, ratios, reals
from stepcheck.harness.numbers.decisions import outcomes
from stepcheck.harness.numbers.formats import FORMATS, SCALARS64
from stepcheck.harness.play.recording import ParameterStep, Recording, StepRecord
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.clocks import Clocks
from stepcheck.reference.spec import PARAMETER, Buffer, Spec


class Judge:
    """Compares one recording with the reference.

    Args:
        clocks: where the seconds of ``judge`` are added up, and, within them, those of the ``reference``.
    """

    def __init__(self, subject: Subject, recording: Recording, clocks: Clocks | None = None) -> None:
        self.clocks = Clocks() if clocks is None else clocks
        self.subject = subject
        self.spec: Spec = subject.spec
        self.recording = recording = counted(subject, recording, self._agrees)
        self.trace = recording.trace
        self.result = Judgement(steps=len(recording.steps))
        self.fields = Fields(subject, recording)
        self.predictor = Predictor(self.fields, self.clocks)
        self.started: set[int] = set()
        self.unseen = False  # whether a list that cannot be read holds something by now
        self.carried: dict[tuple[int, str], Bounded] = {}
        self.carried_products: set[int] = set()
        self.rested: set[int] = set()  # parameters that were stepped without a buffer that cannot be read

    def _agrees(self, recording: Recording) -> bool:
        return not Judge(self.subject, recording, self.clocks).judge(to_first=True).deviations

    def judge(self, *, to_first: bool = False) -> Judgement:
        """Judge the recording.

        Args:
            to_first: no more after the first that deviates, of what is judged one after the other: for whether there is one.
        """
        with self.clocks.running("judge"):
            return self._judge(to_first=to_first)

    def _judge(self, *, to_first: bool) -> Judgement:
        with np.errstate(all="ignore"):
            self.result.free = self.fields.free
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
            elif self.fields.free:
                for record in self.recording.steps:
                    self._predict(self._items([record]), to_first=to_first)
            else:
                self._predict(self._items(self.recording.steps), to_first=to_first)
        order = {b.name: n for n, b in enumerate(self.spec.buffers)} | {EVALUATION: -1}
        # What is neither a buffer nor an evaluation is about the parameter.
        self.result.deviations.sort(
            key=lambda d: (-1 if d.event is None else d.event, order.get(d.field, len(order)), d.parameter)
        )
        return self.result

    # Steps that are judged in their own way: an orthogonalization, a closure.

    def _judge_products(self, item: Item) -> None:
        if not item.numel:
            return
        hyper = self.fields.hyper_of(item)
        # Without a readable buffer, only the first step starts from what is known.
        if self.fields.free and any(s is not None and np.any(s[0]) for s in item.state.values()):
            return
        if self.fields.free and item.index in self.carried_products:
            return
        self.carried_products.add(item.index)

        def shaped(x: Any) -> Array:
            return reals(x).reshape(item.shape)

        before = {k: None if s is None else shaped(s[0]) for k, s in item.state.items()}
        after = {k: shaped(v) for k, v in item.step.state_after.items() if k in before and np.size(v) == item.numel}
        for name in before.keys() - after.keys() - self.fields.free:
            self._compared(item.record, _missing(name, self.fields.problem(item, name)), item.index, item)
        profile = item.record.played_by.profile.as_written
        compared = orthogonal.judge_step(
            arithmetic(profile, item.dtype),
            hyper,
            shaped(item.step.value),
            shaped(item.step.gradient),
            before,
            shaped(item.step.value_after),
            after,
            profile.products_format(item.dtype),
            held=profile.options,
            rounded_once=profile.products_rounded_once,
            element=FORMATS[item.dtype],
        )
        for comparison in compared:
            self._compared(item.record, comparison, item.index, item)

    def _judge_evaluations(self, record: StepRecord) -> None:
        first = record.parameters[0]
        begun = bool(first.state) or 0 in self.started
        self.started.add(0)
        if begun and (self.fields.free - set(evaluations.LISTS) or self.unseen):
            return  # of a state that cannot be read, only the first step is known to start from nothing
        before, after = evaluations.assembled(first.state), evaluations.assembled(first.state_after)
        profile = record.played_by.profile.as_written
        compared = evaluations.judge_step(
            arithmetic(profile, self.trace.parameters[0].dtype),
            record.hyper[0],
            np.concatenate([reals(parameter.value) for parameter in record.parameters]),
            before,
            record.evaluations,
            np.concatenate([reals(parameter.value_after) for parameter in record.parameters]),
            after,
            profile.options,
        )
        number = itertools.count()
        for comparison in compared:
            n = next(number) if comparison.field == EVALUATION else None
            self.unseen |= comparison.field in self.fields.free and bool(comparison.problem)
            if comparison.field not in self.fields.free:
                self._compared(record, comparison, 0, evaluation=n)

    def _compared(
        self,
        record: StepRecord,
        c: Comparison,
        parameter: int,
        item: Item | None = None,
        evaluation: int | None = None,
    ) -> None:
        """Keep count of one comparison, and note it if it deviates."""
        r = np.full(1, np.inf) if c.problem else ratios(c.actual, c.predicted)
        error = np.broadcast_to(c.predicted.error, np.shape(c.predicted.value))
        determined = np.isfinite(error).reshape(-1)
        self.result.count(c.field, c.actual.size, int((~determined).sum()))
        dtype = self.trace.parameters[parameter].dtype
        self.result.classify(c.field, dtype, np.full(determined.sum(), np.inf) if c.problem else r[determined])
        worst = float(r.max(initial=0.0))
        if worst <= 1:
            # What is not determined is no use of the budget.
            if r.size and np.isfinite(error).any():
                self.result.used(c.field, worst)
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

    def _initial_state(self) -> None:
        """A state that exists at construction must be the initial one."""
        for i, state in enumerate(self.recording.initial_state):
            if not state:  # most optimizers create it in the first step
                continue
            hyper = self.spec.hyper_values(plain(self.trace.all_groups[self.fields.group_of[i]].options))
            for b in self.fields.buffers(hyper, i):
                initial = b.initial(hyper)
                if initial is not None and b.name in state and b.name not in self.fields.free and not b.of_group:
                    expected = rounded_fill(initial, self.fields.dtype(b, i))
                    actual = reals(state[b.name])
                    self.result.elements += actual.size
                    wrong = np.flatnonzero(actual != expected)
                    if wrong.size:
                        shape = in_reals(np.shape(state[b.name]), self.fields.dtype(b, i))
                        index = tuple(int(n) for n in np.unravel_index(wrong[0], shape))
                        got = float(actual[wrong[0]])
                        self.result.deviations.append(
                            Deviation(None, i, b.name, index, got, expected, 0.0, float("inf"))
                        )

    def _items(self, records: Iterable[StepRecord]) -> Iterator[Item]:
        for record in records:
            for i, parameter in enumerate(record.parameters):
                if parameter.gradient is not None and not self._is_open(record, i, parameter):
                    p = self.trace.parameters[i]
                    looked, shape, at = self._looked_at(parameter, p)
                    slots = 0 if at is None else math.prod(in_reals(shape, p.dtype))
                    state = self._state(record, i, looked, slots, first=i not in self.started)
                    yield Item(record, i, looked, state, shape, p.dtype, at)
                    self.started.add(i)

    def _looked_at(
        self, parameter: ParameterStep, p: Parameter
    ) -> tuple[ParameterStep, tuple[int, ...], npt.NDArray[np.intp] | None]:
        """What is looked at of a parameter: of a large one whose elements do not depend on each other, some of them."""
        if p.numel <= MOST_ELEMENTS or not self.spec.elementwise:
            return parameter, p.shape, None
        at = sampled(p.numel)
        some = thinned(parameter, at, p.numel)
        return (parameter, p.shape, None) if some is None else (some, (len(at),), at)

    def _is_open(self, record: StepRecord, index: int, parameter: ParameterStep) -> bool:
        """Whether nothing can be said of a parameter in a step of somebody's class."""
        if not self.subject.explicit:
            return False
        aged = self.recording.aged
        # What cannot be read after steps that were not recorded is not known; a parameter without elements need not have a state.
        unknown = bool(self.fields.free) and aged is not None and record.event > aged
        buffers = self.fields.buffers(record.hyper[self.fields.group_of[index]], index)
        if not self.fields.free <= {b.name for b in buffers}:
            self.rested.add(index)
        # What becomes of it meanwhile is theirs to say.
        unknown |= index in self.rested and any(b.name in self.fields.free for b in buffers)
        lacks = any(not self.fields.shows(b.name, parameter.state_after) for b in buffers)
        return unknown or (lacks and 0 in self.trace.parameters[index].shape)

    def _state(
        self, record: StepRecord, index: int, parameter: ParameterStep, looked_at: int, *, first: bool
    ) -> dict[str, tuple[Array, Array | float] | None]:
        """What the reference starts from: the initial state at a parameter's first step, then the subject's own."""
        hyper = record.hyper[self.fields.group_of[index]]
        result: dict[str, tuple[Array, Array | float] | None] = {}
        for b in self.fields.buffers(hyper, index):
            slots = looked_at or self.fields.slots(b, index)
            carried = self.carried.get((index, b.name))
            if carried is not None:
                result[b.name] = (carried.value, carried.error)
            elif self._is_initial(b, parameter, first=first):
                initial = b.initial(hyper)
                result[b.name] = None if initial is None else self._filled(b, initial, index, slots)
            else:
                held = repeated(parameter.state[b.name], slots)
                result[b.name] = (held, _uncounted(held) if b.per_parameter and b.unit == "steps" else 0.0)
        return result

    def _is_initial(self, b: Buffer, parameter: ParameterStep, *, first: bool) -> bool:
        """Whether a buffer is what it is filled with at first, and not what was read. What a group counts it has counted before."""
        unread = b.name in self.fields.free or b.name not in parameter.state
        return unread or (first and not parameter.begun and not b.of_group)

    def _filled(self, b: Buffer, initial: float, index: int, slots: int) -> tuple[Array, Array | float]:
        """The initial value of a buffer. Somebody's class may keep a number as it is, where torch.optim has float32."""
        held = rounded_fill(initial, self.fields.dtype(b, index))
        error = abs(held - initial) if b.per_parameter and self.subject.explicit else 0.0
        return np.full(slots, held), np.full(slots, error) if error else 0.0

    def _predict(self, items: Iterable[Item], *, to_first: bool) -> None:
        """Run the reference on all items of a group that share their options, dtype and buffers, as one long array.

        Where elements depend on each other, on each item by itself.
        """
        batches: dict[Any, list[Item]] = {}
        for n, item in enumerate(items):
            hyper = self.fields.hyper_of(item)
            present = tuple(name for name, s in item.state.items() if s is not None)
            # Of each group by itself: beside a number that has an error, 0 / 0 is undetermined where it was known to be NaN.
            group, profile = self.fields.group_of[item.index], id(item.record.played_by.profile)
            key = (item.dtype, group, hyper, profile, present, 0 if self.spec.elementwise else n)
            batches.setdefault(key, []).append(item)
        for (dtype, *_), batch in batches.items():
            if to_first and self.result.deviations:
                break
            hyper = self.fields.hyper_of(batch[0])
            if not self.spec.elementwise and not batch[0].numel:
                continue
            names = [*(b.name for b in self.fields.buffers(hyper, batch[0].index)), PARAMETER]
            actual = {name: np.concatenate([self.fields.actual(item, name) for item in batch]) for name in names}
            best: dict[str, tuple[Array, Bounded]] = {}
            for predicted in outcomes(functools.partial(self.predictor.update, batch, hyper, dtype, actual)):
                # Of the branches that rounding leaves open, an element may have taken the one that it agrees with.
                for name in names:
                    r = ratios(actual[name], predicted[name]) if name not in self.fields.free else np.zeros(1)
                    if self.subject.explicit and name not in self.fields.per_parameter:
                        r = self._forgiven(batch, r, actual[name], predicted[name])
                    nearer = _either if name in self.fields.free else _closer
                    best[name] = nearer(best.get(name), (r, predicted[name]))
            for name in names:
                self._confront(batch, name, actual[name], *best[name])

    def _forgiven(self, batch: list[Item], r: Array, actual: Array, predicted: Bounded) -> Array:
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

    def _inputs(self, item: Item) -> list[Array]:
        """What an element of an item is computed from, one value for each slot."""
        state = [s[0] for name, s in item.state.items() if s is not None and name not in self.fields.per_parameter]
        gradient = item.gradient(0.0)[0]
        value = repeated(item.step.value, item.slots)
        return [value, gradient, *state] if self.spec.elementwise else [value.reshape(-1), gradient, *state]

    def _confront(self, batch: list[Item], name: str, actual: Array, r: Array, predicted: Bounded) -> None:
        """Keep count of one field of all items of a batch, and note what deviates."""
        single = name in self.fields.per_parameter
        lengths = [len(actual)] if len(batch) == 1 else [item.slots for item in batch]
        starts = list(itertools.accumulate(lengths[:-1], initial=0))
        if name in self.fields.free:
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
        self.result.count(name, elements, elements - len(determined))
        self.result.classify(name, batch[0].dtype, determined)
        largest = r.item(r.argmax())
        if largest <= 1:
            self.result.used(name, largest)
            return
        for item, start, length, worst in zip(batch, starts, lengths, np.maximum.reduceat(r, starts), strict=True):
            if worst <= 1:
                self.result.used(name, float(worst))
            elif single or item.numel:
                at = int(start + r[start : start + length].argmax())
                self._deviates(item, name, at, start, float(worst), float(actual[at]), predicted)

    def _deviates(
        self, item: Item, name: str, at: int, start: int, ratio: float, got: float, predicted: Bounded
    ) -> None:
        problem = self.fields.problem(item, name)
        shape = () if name in self.fields.per_parameter else in_reals(self.fields.shape(item, name), item.dtype)
        element = at - start
        if item.at is not None and shape:
            parts = 2 if is_complex(item.dtype) else 1
            element = int(item.at[element // parts]) * parts + element % parts
            shape = in_reals(self.trace.parameters[item.index].shape, item.dtype)
        self.result.deviations.append(
            Deviation(
                event=item.record.event,
                parameter=item.index,
                field=name,
                index=() if problem or not shape else tuple(int(i) for i in np.unravel_index(element, shape)),
                got=got,
                expected=float(predicted.value[at]),
                budget=float(np.asarray(predicted.error)[at]),
                ratio=ratio,
                problem=problem,
                item=item,
                element=element,
                of="" if name == PARAMETER else self.fields.by_name[name].of,
            )
        )

    def terms(self, deviation: Deviation) -> list[tuple[str, float]]:
        """The roundings that the budget of a deviation is made of, largest share first; empty where errors have accumulated."""
        return self.predictor.terms(deviation)


def _uncounted(steps: Array) -> Array | float:
    """By how much one step more may be off: float32, in which torch.optim counts, has no more than 2^24 whole numbers in a row."""
    if not steps.size or steps.max() < (1 << 24) - 1:
        return 0.0
    one_more: Array = steps + 1.0
    error: Array = np.abs(one_more.astype(np.float32) - one_more)
    # Of a count that is no number, or none that float32 has, nothing is forgiven.
    return np.where(error <= one_more * 2.0**-24, error, 0.0)


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


def judge(subject: Subject, recording: Recording) -> Judgement:
    """Compare a recording with the reference of its subject."""
    return Judge(subject, recording).judge()
