"""What can be read of the fields of a recording: the parameter, and each buffer under its name."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from stepcheck.harness.judging.item import Item, repeated
from stepcheck.harness.life.values import in_reals
from stepcheck.harness.numbers.comparison import Array
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.group_options import GroupOptions
from stepcheck.reference.spec import PARAMETER, Buffer, Spec


class Fields:
    """The fields of the parameters of one recording."""

    def __init__(self, subject: Subject, recording: Recording) -> None:
        self.subject = subject
        self.spec: Spec = subject.spec
        self.recording = recording
        self.trace = recording.trace
        self.group_of = self.trace.group_of
        self.per_parameter = {b.name for b in self.spec.buffers if b.per_parameter}
        self.by_name = {b.name: b for b in self.spec.buffers}
        self._buffers: dict[tuple[GroupOptions, int], list[Buffer]] = {}
        self._slots: dict[tuple[str, int], int] = {}

    def hyper_of(self, item: Item) -> GroupOptions:
        """The hyperparameters in force for an item."""
        return item.record.hyper[self.group_of[item.index]]

    def buffers(self, hyper: GroupOptions, index: int) -> list[Buffer]:
        """The buffers that a parameter has."""
        key = (hyper, index)
        if key not in self._buffers:
            shape = self.trace.parameters[index].shape
            self._buffers[key] = [b for b in self.spec.buffers if b.present(hyper) and b.shape(shape) is not None]
        return self._buffers[key]

    def slots(self, b: Buffer, index: int) -> int:
        """Numbers in a buffer; of a single number per parameter, as many as it has to stand beside."""
        key = (b.name, index)
        if key not in self._slots:
            p = self.trace.parameters[index]
            shape = p.shape if b.per_parameter else b.shape(p.shape)
            assert shape is not None
            self._slots[key] = math.prod(in_reals(shape, p.dtype)) or math.prod(in_reals((), p.dtype))
        return self._slots[key]

    @functools.cached_property
    def free(self) -> set[str]:
        """Buffers that somebody's class never shows under their name, once it has taken a step with a gradient."""
        if not self.subject.explicit:
            return set()
        if self.spec.closure:
            return self._unreadable_at_first()
        missing: set[str] = set()
        for record in self.recording.steps:
            for i, parameter in enumerate(record.parameters):
                # A parameter without elements needs none.
                if parameter.gradient is not None and 0 not in self.trace.parameters[i].shape:
                    for b in self.buffers(record.hyper[self.group_of[i]], i):
                        if not self.shows(b.name, parameter.state_after):
                            missing.add(b.name)
        return missing

    def _unreadable_at_first(self) -> set[str]:
        """What no step shows of one state for all parameters, which the first of them has.

        What comes with an iteration is not missing where there was none. A list that is never shown may be empty: whether it
        is turns out once the reference puts something into it.
        """
        states = [record.parameters[0].state_after for record in self.recording.steps]
        iterated = any(state.get("n_iter", 1) for state in states)
        due = {b.name for b in self.spec.buffers if iterated or b.initial(self.spec.hyper_values()) is not None}
        return {name for name in due if not any(self.shows(name, state) for state in states)}

    def shows(self, name: str, state: Mapping[str, Any]) -> bool:
        """Whether a state has a buffer, or the entries of a list."""
        return name in state or any(key.startswith(f"{name}[") for key in state)

    def dtype(self, b: Buffer, index: int) -> str:
        """What a buffer of a parameter is stored in."""
        return "float32" if b.per_parameter else self.trace.parameters[index].dtype

    def shape(self, item: Item, name: str) -> tuple[int, ...]:
        """The shape that a field has to have."""
        if name == PARAMETER:
            return item.shape
        return self.by_name[name].shape(item.shape) or ()

    def problem(self, item: Item, name: str) -> str:
        """Why a field cannot be compared at all, or nothing."""
        if name == PARAMETER:
            return ""
        if name not in item.step.state_after:
            return f"{name} does not exist after the step"
        shape = np.shape(item.step.state_after[name])
        if name in self.per_parameter:
            return "" if math.prod(shape) == 1 else f"{name} has shape {shape} where one number belongs"
        expected = self.shape(item, name)
        return "" if shape == expected else f"{name} has shape {shape} where {expected} belongs"

    def actual(self, item: Item, name: str) -> Array:
        """A field after the step, one value for each slot; infinity throughout where it cannot be compared."""
        if name == PARAMETER:
            return repeated(item.step.value_after, item.slots)
        slots = item.slots
        if not self.spec.elementwise and name not in self.per_parameter:
            slots = math.prod(self.shape(item, name)) or 1
        if name in self.free or self.problem(item, name):
            return np.full(slots, np.inf)
        found, of = repeated(item.step.state_after[name], slots), self.by_name[name].of
        return found + self.actual(item, of) if of else found
