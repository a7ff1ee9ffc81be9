"""What the reference says of a batch of items: the parameter and each buffer, with a budget."""

from __future__ import annotations

import functools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.harness.judging.fields import Fields
from stepcheck.harness.judging.item import Item, repeated
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.numbers import audit
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import Array, reals
from stepcheck.harness.numbers.formats import BINARY32, COUNTERS32, COUNTERS64, FORMATS, SCALARS64, Arithmetic, Format
from stepcheck.harness.numbers.observed import seen
from stepcheck.harness.numbers.options import bounded_option
from stepcheck.harness.play.profiles import Profile
from stepcheck.harness.support.clocks import Clocks
from stepcheck.reference.group_options import GroupOptions
from stepcheck.reference.spec import PARAMETER, HyperValues

#: Roundings of a parameter that a carry may have gathered before it is added.
_CARRIED = 4
#: The gradient of an item: values, their error, and which elements it names, where not all.
Given = tuple[Array, Array | float, Array | None]


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


class Predictor:
    """Runs the reference.

    Args:
        clocks: where the seconds of the ``reference`` are added up.
    """

    def __init__(self, fields: Fields, clocks: Clocks) -> None:
        self.fields = fields
        self.subject, self.spec = fields.subject, fields.spec
        self.clocks = clocks
        self.options: dict[tuple[GroupOptions, str, str], SimpleNamespace] = {}

    def update(self, *batch: Any) -> dict[str, Bounded]:
        """What the reference says of a batch, and how long that takes."""
        with self.clocks.running("reference"):
            return self._update(*batch)

    def _update(
        self, batch: list[Item], hyper: GroupOptions, dtype: str, actual: dict[str, Array]
    ) -> dict[str, Bounded]:
        """What the reference says of the parameter and each buffer, flat."""
        profile, shape = batch[0].record.played_by.profile.computing(dtype), batch[0].shape
        arith, element = arithmetic(profile, dtype), FORMATS[dtype]
        lengths = [item.slots for item in batch]

        starts = [self._precise(item) for item in batch]
        p = _joined([value for value, _ in starts], arith)
        if any(type(error) is not float for _, error in starts):
            p.error = np.concatenate([np.broadcast_to(e, n) for (_, e), n in zip(starts, lengths, strict=True)])
        gradients = [item.gradient(arith.unit) for item in batch]
        g = _joined([values for values, _, _ in gradients], arith)
        if any(type(error) is not float for _, error, _ in gradients):
            g.error = np.concatenate(
                [np.broadcast_to(error, n) for (_, error, _), n in zip(gradients, lengths, strict=True)]
            )
        state = self._state(batch, hyper, arith)
        observed = {b.name: actual[b.name] for b in self.spec.buffers if b.in_place and b.name not in self.fields.free}
        with seen(observed, profile.kept(profile.in_place)):
            new_p, after = self.spec.update(
                self._formed(p, shape), self._formed(g, shape), state, self._options(hyper, element, profile.options)
            )
        result = {k: v.store(self._stored(k, element)) for k, v in after.items()}
        result[PARAMETER] = new_p.store(element)
        for name, predicted in result.items():
            predicted.value, predicted.error = np.asarray(predicted.value), np.asarray(predicted.error)
            if predicted.error.shape != predicted.value.shape:
                predicted.error = np.full(predicted.value.shape, predicted.error)
            predicted.value, predicted.error = predicted.value.reshape(-1), predicted.error.reshape(-1)
            if name in self.fields.per_parameter and not self.spec.elementwise:
                # One number, as many times as its parameter has elements.
                predicted.value = np.broadcast_to(predicted.value, lengths[0])
                predicted.error = np.broadcast_to(predicted.error, lengths[0])
        if type(p.error) is not float:
            # What is added to a carry is rounded once more before the parameter takes it.
            kept_more = np.repeat([type(error) is not float for _, error in starts], lengths)
            predicted = result[PARAMETER]
            change = predicted.value - p.value.reshape(-1)
            added = np.where(kept_more & np.isfinite(change), element.unit_roundoff * np.abs(change), 0.0)
            predicted.error = predicted.error + added
        self._leave_unnamed(batch, gradients, p, state, result)
        self._add_entries(hyper, arith, gradients, p, g, result)
        if is_complex(dtype):
            for name in result.keys() - self.fields.per_parameter:
                _join_parts(result[name])
        return result

    def _formed(self, x: Bounded, into: tuple[int, ...]) -> Bounded:
        """In its own shape, where elements depend on each other."""
        if self.spec.elementwise:
            return x
        error = x.error if type(x.error) is float else np.broadcast_to(x.error, np.shape(x.value)).reshape(into)
        return Bounded(x.value.reshape(into), error, x.arithmetic)

    def _state(self, batch: list[Item], hyper: GroupOptions, arith: Arithmetic) -> dict[str, Bounded | None]:
        """The state that the reference is given."""
        profile = batch[0].record.played_by.profile.computing(batch[0].dtype)
        state: dict[str, Bounded | None] = {}
        for b in self.fields.buffers(hyper, batch[0].index):
            parts = [item.state[b.name] for item in batch]
            if parts[0] is None:
                state[b.name] = None
                continue
            kept = COUNTERS32 if b.in_place else profile.kept(profile.counters)
            values = _joined([part[0] for part in parts if part], kept if b.per_parameter else arith)
            if b.name in self.fields.free or any(part and type(part[1]) is not float for part in parts):
                values.error = np.concatenate([np.broadcast_to(part[1], len(part[0])) for part in parts if part])
                if not values.error.any():
                    values.error = 0.0
            if b.per_parameter:
                state[b.name] = values if self.spec.elementwise else values[0]
            else:
                state[b.name] = self._formed(values, b.shape(batch[0].shape) or ())
        return state

    def _stored(self, name: str, element: Format) -> Format:
        """What a buffer is stored in, given the format of the parameter; of what keeps lost bits, the sum that it is judged by."""
        b = self.fields.by_name[name]
        return BINARY32 if b.per_parameter else element.doubled if b.of else element

    def _precise(self, item: Item) -> tuple[Array, Array | float]:
        """The parameter before a step, and how far off it may be: somebody's class may keep more of it than its dtype holds.

        A tensor in its state that the parameter is a rounding of may be the parameter (master weights); one that is no larger than
        what rounding the parameter loses is what was lost (Kahan's carry), of either sign.
        """
        value = repeated(item.step.value, item.slots)
        if not self.subject.explicit or not item.numel:
            return value, 0.0
        unit, tiny = FORMATS[item.dtype].unit_roundoff, FORMATS[item.dtype].underflow
        error: Array | float = 0.0
        for name, kept in item.step.state.items():
            if name in self.fields.by_name or np.shape(kept) != np.shape(item.step.value) or not np.size(kept):
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

    def _options(self, hyper: GroupOptions, element: Format, held: Arithmetic) -> SimpleNamespace:
        key = (hyper, element.name, held.format.name)
        if key not in self.options:
            self.options[key] = bounded_hyper(self.spec.for_dtype(hyper, 2.0 * element.unit_roundoff), held)
        return self.options[key]

    def _leave_unnamed(
        self,
        batch: list[Item],
        gradients: list[Given],
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
            if name not in self.fields.per_parameter and before is not None:
                predicted, of = result[name], self.fields.by_name[name].of if name in self.fields.by_name else ""
                if of:
                    other = p if of == PARAMETER else state[of]
                    assert other is not None
                    before = Bounded(before.value + other.value, 0.0, before.arithmetic)  # noqa: PLW2901 - both stay
                error = np.where(unnamed, before.error, predicted.error)
                result[name] = Bounded(np.where(unnamed, before.value, predicted.value), error, predicted.arithmetic)

    def _add_entries(
        self,
        hyper: GroupOptions,
        arith: Arithmetic,
        gradients: list[Given],
        p: Bounded,
        g: Bounded,
        result: dict[str, Bounded],
    ) -> None:
        """A sparse gradient may be added to the parameter entry by entry: a rounding of the sum so far for each but one.

        Each entry is multiplied by the learning rate first, and the product may underflow.
        """
        if self.spec.sparse != "dense" or type(g.error) is float:
            return
        named = np.concatenate([np.zeros(len(v)) if n is None else n for v, _, n in gradients])
        # The error of g is that of adding up its entries, so this is at least their absolute sum.
        size = (
            np.abs(p.value) + np.abs(result[PARAMETER].value) + 2 * hyper.lr * (np.abs(g.value) + g.error / arith.unit)
        )
        further = np.maximum(named - 1, 0) * (arith.unit * size + arith.format.underflow)
        result[PARAMETER].error = result[PARAMETER].error + further * (1 + len(g.value) * arith.unit)

    def terms(self, deviation: Deviation) -> list[tuple[str, float]]:
        """The roundings that the budget of a deviation is made of, largest share first; empty where errors have accumulated."""
        item, name, element = deviation.item, deviation.field, deviation.element
        if self.fields.free or item is None or not self.spec.elementwise:
            return []
        element = item.place(element)
        hyper = self.fields.hyper_of(item)
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
                k: None if s is None else one(s[0], COUNTERS64 if k in self.fields.per_parameter else arith)
                for k, s in item.state.items()
            }
            p, after = self.spec.update(
                one(repeated(item.step.value, item.slots), arith), one(g, arith), state, options
            )
            chosen: Bounded = p if name == PARAMETER else after[name]
            return chosen

        with np.errstate(all="ignore"):
            return audit.terms(evaluate)


def _joined(arrays: list[Array], of: Arithmetic) -> Bounded:
    return Bounded(arrays[0] if len(arrays) == 1 else np.concatenate(arrays), 0.0, of)


def _join_parts(predicted: Bounded) -> None:
    """A complex number that is infinite or NaN in one part is not determined in the other (C11, annex G)."""
    open_ = ~np.isfinite(predicted.value) | np.isinf(predicted.error)
    if open_.any() and open_.size % 2 == 0:
        either = np.repeat(open_.reshape(-1, 2).any(axis=1), 2)
        predicted.error = np.where(either, np.inf, predicted.error)
