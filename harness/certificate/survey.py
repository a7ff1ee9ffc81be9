"""Subjects of torch: the largest known errors over a campaign's recordings, in ulps and in budgets."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.harness.certificate.inputs import Array, Effort, Inexact, Inputs
from stepcheck.harness.certificate.references import BUDGET_ROUNDING, MP, exact, hexadecimal, listed
from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.formats import BINARY64, FORMATS, Format
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.verdict import LifeTally
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.reference.spec import HyperValues


def ulp(x: Array, number: Format) -> Array:
    """Elementwise, the distance between neighbouring numbers of a format around ``x``; below its normal range, constant."""
    _, exponent = np.frexp(x)
    spacing = np.maximum(np.where(x == 0, number.min_exponent, exponent - 1), number.min_exponent)
    result: Array = np.ldexp(1.0, spacing - (number.significand_bits - 1))
    return result


@dataclass(frozen=True)
class Witness:
    """One element of one field after one step of a trace.

    Attributes:
        expected: the truth, rounded to float64.
        ulps: the distance of ``got`` from it in units of the last place of the dtype.
        ratio: the same in budgets, from the reference in float64.
        inputs: what the element was computed from, or the whole trace.
    """

    event: int
    parameter: int
    field: str
    index: tuple[int, ...]
    got: float
    expected: float
    bound: float
    ulps: float
    ratio: float
    options: dict[str, Any]
    inputs: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The witness as it is written."""
        return {
            "event": self.event,
            "parameter": self.parameter,
            "field": self.field,
            "index": list(self.index),
            **{k: float(getattr(self, k)).hex() for k in ("got", "expected", "bound")},
            "ulps": self.ulps,
            "ratio": self.ratio,
            "options": listed(self.options),
            **self.inputs,
        }


@dataclass
class Measured:
    """One torch subject in one dtype.

    Attributes:
        raised: the last exception that cut a life short.
    """

    subject: str
    dtype: str
    traces: int = 0
    elements: int = 0
    undetermined: int = 0
    deviating: int = 0
    raised: str = ""
    ulps: Witness | None = None
    ratio: Witness | None = None


@dataclass(order=True)
class _Candidate:
    """An element that may be the furthest off, once it is evaluated in multiple precision."""

    size: float
    count: int
    settle: Callable[[], Witness | None] = field(compare=False)


class _Gauge(Judge):
    """A judge that also measures in ulps."""

    def __init__(self, survey: _Survey, recording: Recording) -> None:
        super().__init__(survey.subject, recording)
        self.survey = survey
        self.measured = survey.measured

    def _confront(self, batch: list[Any], name: str, actual: Array, r: Array, predicted: Bounded) -> None:
        super()._confront(batch, name, actual, r, predicted)
        if name in self.fields.per_parameter or name in self.result.free:
            return
        number = FORMATS[batch[0].dtype]
        lengths = [len(actual)] if len(batch) == 1 else [item.slots for item in batch]
        real = np.repeat([item.numel > 0 for item in batch], lengths)
        value, error = np.asarray(predicted.value), np.broadcast_to(predicted.error, actual.shape)
        determined = real & np.isfinite(error) & np.isfinite(value) & np.isfinite(actual)
        conforms = determined & (r <= 1)
        self.measured.elements += int(real.sum())
        self.measured.undetermined += int((real & np.isinf(error)).sum())
        self.measured.deviating += int((real & (r > 1)).sum())
        if not conforms.any():
            return
        unit = ulp(value, number)
        off = np.where(conforms, np.abs(actual - value) / unit, -1.0)
        starts = np.cumsum([0, *lengths[:-1]])

        def witness(at: int) -> Witness:
            n = int(np.searchsorted(starts, at, side="right")) - 1
            return self._witness(batch[n], name, at - int(starts[n]), actual[at], value[at], error[at], off[at], r[at])

        def settled(at: int) -> Callable[[], Witness | None]:
            n = int(np.searchsorted(starts, at, side="right")) - 1
            return lambda: self._settled(batch[n], at - int(starts[n]), witness(at))

        best, furthest = int(off.argmax()), int(np.where(conforms, r, -1.0).argmax())
        if self.measured.ratio is None or r[furthest] > self.measured.ratio.ratio:
            self.measured.ratio = witness(furthest)
        if number is not BINARY64:
            if self.measured.ulps is None or off[best] > self.measured.ulps.ulps:
                self.measured.ulps = witness(best)
            return
        # Where subject and reference round alike they are both off, by no more than the budget.
        conforms &= np.concatenate([self._known(item, n) for item, n in zip(batch, lengths, strict=True)])
        for kind, size in (("off", off), ("wide", error / unit)):
            largest = int(np.where(conforms, size, -1.0).argmax())
            if conforms[largest]:
                self.survey.consider(kind, float(size[largest]), settled(largest))

    def _hyper(self, item: Any) -> HyperValues:
        hyper = self.fields.hyper_of(item)
        return self.spec.for_dtype(hyper, 2.0 * FORMATS[item.dtype].unit_roundoff)

    def _known(self, item: Any, length: int) -> npt.NDArray[np.bool_]:
        """Elements whose gradient is a single number that the step made use of: not the sum of entries, not left unnamed."""
        g, error, named = item.gradient(FORMATS[item.dtype].unit_roundoff)
        known = np.broadcast_to(error, np.shape(g)) == 0
        if named is not None and self.spec.sparse in ("lazy", "only"):
            known = known & (named > 0)
        return known if self.spec.elementwise else np.full(length, bool(known.all()))

    def _given(self, item: Any, element: int) -> Inputs:
        """The inputs of one element, or of all where they depend on each other."""
        part = slice(element, element + 1) if self.spec.elementwise else slice(None)
        g = item.gradient(FORMATS[item.dtype].unit_roundoff)[0]

        def chosen(x: Any, shape: tuple[int, ...]) -> Array:
            flat = np.asarray(x)
            if flat.dtype.kind == "c":
                flat = np.ascontiguousarray(flat).reshape(-1).view(flat.real.dtype)
            flat = flat.reshape(-1).astype(np.float64)[part]
            return flat if self.spec.elementwise else flat.reshape(shape)

        state: dict[str, Inexact | None] = {}
        for b in self.spec.buffers:
            if b.name in item.state:
                kept = item.state[b.name]
                if kept is None:
                    state[b.name] = None
                elif b.per_parameter:
                    state[b.name] = kept[0][:1] if self.spec.elementwise else kept[0][0]
                else:
                    state[b.name] = chosen(kept[0], b.shape(item.shape) or ())
        return Inputs(chosen(item.step.value, item.shape), chosen(g, item.shape), state)

    def _witness(
        self, item: Any, name: str, element: int, got: float, expected: float, bound: float, ulps: float, r: float
    ) -> Witness:
        shape = self.fields.shape(item, name)
        if np.iscomplexobj(item.step.value):
            shape = (*shape, 2)
        given = self._given(item, element)
        options = {k: v for k, v in vars(self._hyper(item)).items() if v is not None and k != "tensors"}
        inputs = hexadecimal(given, 0) if self.spec.elementwise else {"trace": self.trace.to_json()}
        index = tuple(int(i) for i in np.unravel_index(element, shape)) if shape else ()
        return Witness(
            event=item.record.event,
            parameter=item.index,
            field=name,
            index=index,
            got=float(got),
            expected=float(expected),
            bound=float(bound),
            ulps=float(ulps),
            ratio=float(r),
            options=options,
            inputs=inputs,
        )

    def _settled(self, item: Any, element: int, witness: Witness) -> Witness | None:
        """A witness whose error is measured from the truth.

        ``None`` where that took another branch of an open decision, or an input is no real number.
        """
        given = self._given(item, element)
        if not all(np.all(np.isfinite(x)) for x in (given.p, given.g, *given.state.values()) if x is not None):
            return None
        held = {
            b.name: float(np.asarray(item.step.state_after[b.name]).reshape(-1)[0])
            for b in self.spec.buffers
            if b.in_place and b.name in item.step.state_after
        }
        results = exact(self.spec, self._hyper(item), given, held)
        truth = results[witness.field].reshape(-1)[0 if self.spec.elementwise else element]
        # A decision that rounding leaves open may fall otherwise in multiple precision.
        if not float(abs(MP.mpf(witness.expected) - truth)) <= witness.bound * BUDGET_ROUNDING:
            return None
        expected = float(truth)
        unit = float(ulp(np.asarray(expected), BINARY64))
        off = float(abs(MP.mpf(witness.got) - truth) / MP.mpf(unit))
        return Witness(**{**vars(witness), "expected": expected, "ulps": off})


class _Survey(Campaign):
    """A campaign that measures instead of asking the checks."""

    def __init__(self, subject: Subject, dtype: str, effort: Effort, seed: int) -> None:
        super().__init__(subject, Settings(seed=seed, examples=effort.traces, dtypes=(dtype,)))
        self.measured = Measured(subject.name, dtype)
        self.kept: dict[str, list[_Candidate]] = {}
        self.most = effort.candidates
        self.count = itertools.count()

    def measure(self) -> Measured:
        """Play, judge, and evaluate in multiple precision what may be furthest off.

        Raises:
            RuntimeError: the harness erred, so nothing is known.
        """
        self.run()
        if self.result.error:
            raise RuntimeError(f"{self.measured.subject}, {self.measured.dtype}: {self.result.error}")
        with np.errstate(all="ignore"):
            found = [candidate.settle() for candidate in itertools.chain.from_iterable(self.kept.values())]
        for settled in found:
            if settled is not None and (self.measured.ulps is None or settled.ulps > self.measured.ulps.ulps):
                self.measured.ulps = settled
        return self.measured

    def _ask(self, trace: Trace, life: LifeTally) -> None:
        self.measured.traces += 1
        recording = Player(self.subject, trace).play()
        life.calls = len(recording.steps)
        if recording.raised is not None:
            self.measured.raised = f"{recording.raised.kind}: {recording.raised.message[:200]}"
        _Gauge(self, recording).judge()

    def consider(self, kind: str, size: float, settle: Callable[[], Witness | None]) -> None:
        """Keep an element for later, if it is among the largest of its kind."""
        kept = self.kept.setdefault(kind, [])
        heapq.heappush(kept, _Candidate(size, next(self.count), settle))
        if len(kept) > self.most:
            heapq.heappop(kept)


def measure(subject: Subject, dtype: str, effort: Effort, seed: int = 0) -> Measured:
    """The largest known errors of one torch subject in one dtype."""
    return _Survey(subject, dtype, effort, seed).measure()
