"""A finding, and what an entry may ask about it."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life.events import Accumulate, Event, Gradient, Parameter, Reload, Run, SetOption, Step, plain
from stepcheck.harness.life.memory import SparseRaw, strides
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.comparison import reals
from stepcheck.harness.play.recording import ParameterStep
from stepcheck.harness.play.resume import AGES
from stepcheck.reference.spec import PARAMETER

NARROW = ("float16", "bfloat16")


@dataclass(frozen=True)
class Seen:
    """A finding, and what an entry may ask about it."""

    evidence: Evidence
    finding: Finding

    @property
    def trace(self) -> Trace:
        return self.evidence.trace

    @property
    def event(self) -> Event | None:
        """The event at which it was found; none for the construction."""
        return None if self.finding.event is None else self.trace.events[self.finding.event]

    @property
    def mode(self) -> str:
        """The mode of ``torch.optim`` that played the event: a round trip may have led from one to another, and a flag selects one."""
        return self.evidence.player(self.finding.event).mode or next(iter(self.trace.flags), "")

    @property
    def built(self) -> tuple[type | None, ...]:
        """The class of the optimizer, and that of torch's kind which it keeps inside and hands its calls to."""
        recording = self.evidence.recording
        return (recording.built, *((recording.wrapped,) if recording.wrapped is not None else ()))

    @property
    def field(self) -> str:
        """What deviates from the reference: ``parameter`` or the name of a buffer; empty where nothing was compared."""
        return self.finding.deviation.field if self.finding.deviation is not None else ""

    @property
    def got(self) -> float:
        """The witness's value; NaN where nothing was compared."""
        return self.finding.deviation.got if self.finding.deviation is not None else math.nan

    @property
    def expected(self) -> float:
        """The reference's value for it; NaN where nothing was compared."""
        return self.finding.deviation.expected if self.finding.deviation is not None else math.nan

    @property
    def index(self) -> int:
        """The parameter concerned.

        Raises:
            ValueError: the finding is about none.
        """
        if self.finding.parameter is None:
            raise ValueError(f"a finding of {self.finding.check} is about no single parameter")
        return self.finding.parameter

    @property
    def parameter(self) -> Parameter:
        return self.trace.parameters[self.index]

    @property
    def dtype(self) -> str:
        return self.parameter.dtype

    @property
    def element(self) -> int:
        """The witness, counted row-major in the parameter."""
        deviation = self.finding.deviation
        shape = self.parameter.shape
        if deviation is None or not shape:
            return 0
        return int(np.ravel_multi_index(deviation.index[: len(shape)], shape))

    @property
    def message(self) -> str:
        """What was raised, as ``kind: message``; empty where nothing was."""
        raised = self.evidence.recording.raised
        return "" if raised is None else f"{raised.kind}: {raised.message}"

    @functools.cached_property
    def step(self) -> ParameterStep | None:
        """The step of the parameter at which it was found; ``None`` where there is no such step."""
        steps = (s for s in self.evidence.recording.steps if s.event == self.finding.event)
        return next((s.parameters[self.index] for s in steps), None)

    def stood(self, name: str) -> float:
        """The witness in a buffer before the step; NaN where it did not exist."""
        return at(self.step.state.get(name) if self.step else None, self._place)

    def stands(self, name: str) -> float:
        """The witness in a buffer after the step; NaN where it does not exist."""
        return at(self.step.state_after.get(name) if self.step else None, self._place)

    @property
    def unmoved(self) -> bool:
        """Whether the witness is what it was before the step."""
        before = at(self.step.value, self._place) if self.field == PARAMETER and self.step else self.stood(self.field)
        return before == self.got or (math.isnan(before) and math.isnan(self.got))

    @property
    def _place(self) -> int:
        return self.finding.deviation.element if self.finding.deviation is not None else 0

    def given(self, index: int) -> list[Gradient | None]:
        """The gradients that a parameter was given up to the finding, ``None`` where one was taken away."""
        return [s.gradients[index] for s in self._steps if index in s.gradients]

    def gradient(self, index: int) -> Gradient | None:
        """The gradient that a parameter has at the finding."""
        return next(reversed(self.given(index)), None)

    @property
    def _steps(self) -> list[Step]:
        last = -1 if self.finding.event is None else self.finding.event
        return [e for e in self.trace.events[: last + 1] if isinstance(e, Step)]

    @property
    def steps(self) -> int:
        """Steps up to the finding, its own included, those that nobody looked at, and those by which the state was made older."""
        last = -1 if self.finding.event is None else self.finding.event
        events = self.trace.events[: last + 1]
        aged = sum(AGES.get(e.dictionary, 0) for e in events if isinstance(e, Reload))
        return len(self._steps) + sum(e.steps for e in events if isinstance(e, Run)) + aged

    def accumulated(self, index: int) -> bool:
        """Whether a second backward pass added to the gradient of a parameter, or made it."""
        last = -1 if self.finding.event is None else self.finding.event
        return any(isinstance(e, Accumulate) and index in e.gradients for e in self.trace.events[: last + 1])

    @property
    def first_step(self) -> bool:
        """Whether the parameter had no gradient in any step before the one at which it was found."""
        earlier = (
            s for s in self.evidence.recording.steps if self.finding.event is None or s.event < self.finding.event
        )
        return all(s.parameters[self.index].gradient is None for s in earlier)

    def begins(self, buffer: str) -> bool:
        """Whether a buffer is made in this step: the parameter's first, or one that does not find it any more, or not yet."""
        return self.first_step or (self.step is not None and self.step.state.get(buffer) is None)

    @property
    def had_gradient(self) -> list[int]:
        """Parameters that have a gradient at the finding."""
        return [i for i in range(len(self.trace.parameters)) if self.gradient(i) is not None]

    def group_of(self, index: int) -> int:
        return self.trace.group_of[index]

    def options(self, group: int) -> Any:
        """The options of a group that are in force at the finding, defaults included."""
        at = next((s for s in self.evidence.recording.steps if s.event == self.finding.event), None)
        if at is not None:
            return at.hyper[group]
        raised = self.evidence.recording.raised
        if raised is not None and raised.event == self.finding.event and raised.event is not None:
            return self.evidence.recording.hyper[group]
        given = dict(self.trace.all_groups[group].options)
        last = len(self.trace.events) if self.finding.event is None else self.finding.event
        for event in self.trace.events[:last]:
            if isinstance(event, SetOption) and event.group == group:
                given[event.option] = event.value
        return self.evidence.subject.spec.hyper_values(plain(given))

    @property
    def own(self) -> Any:
        """The options of the parameter's group that are in force at the finding."""
        return self.options(self.group_of(self.index))


def at(values: Any, place: int) -> float:
    flat = reals(values.values if isinstance(values, SparseRaw) else values) if values is not None else np.zeros(0)
    return float(flat[place]) if place < flat.size else math.nan


def order(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The strides that decide where the elements stand: those of dimensions with more than one."""
    return tuple(s for n, s in zip(shape, strides(shape, layout), strict=True) if n > 1)
