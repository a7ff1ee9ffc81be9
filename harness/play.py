"""Play a trace on a subject and record what happened. Nothing is judged here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.harness.subjects import Subject, UsageError
from stepcheck.harness.trace import Gradient, Option, Parameter, Reload, SetOption, Step, Trace, ZeroGrad

Raw = npt.NDArray[Any]

GUARD_ELEMENTS = 8
GUARD = 0.3125  # of ordinary size, so that adding an update of ordinary size to it shows
_TORCH_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class Life:
    """One parameter around one step: row-major copies of its value, gradient and state, before and after."""

    value: Raw
    gradient: Raw | None
    state: Mapping[str, Raw | float]
    value_after: Raw
    state_after: Mapping[str, Raw | float]
    gradient_written: bool
    beside_written: bool


@dataclass
class StepRecord:
    """One step: the options then in force for each group, and what became of each parameter."""

    event: int
    hyper: tuple[SimpleNamespace, ...]
    lives: list[Life]


@dataclass
class IdleRecord:
    """An event that is no step: what it must leave alone, before and after.

    Attributes:
        touched: ``value`` or the names of buffers that changed, per parameter.
        gradients_left: parameters whose gradient ``zero_grad`` neither took away nor filled with zeros.
    """

    event: int
    touched: list[list[str]]
    gradients_left: list[int]


@dataclass
class ReloadRecord:
    """The state and options of each optimizer, before the round trip and after."""

    event: int
    saved: Sequence[Mapping[str, Raw | float]]
    loaded: Sequence[Mapping[str, Raw | float]]
    saved_options: list[dict[str, Any]]
    loaded_options: list[dict[str, Any]]


@dataclass
class Raised:
    """An exception that a valid life must not meet."""

    event: int | None
    """Index of the event; ``None`` for the construction."""
    kind: str
    message: str


@dataclass
class Recording:
    """What happened when ``trace`` was played."""

    trace: Trace
    steps: list[StepRecord] = field(default_factory=list)
    idle: list[IdleRecord] = field(default_factory=list)
    reloads: list[ReloadRecord] = field(default_factory=list)
    initial_state: list[Mapping[str, Raw | float]] = field(default_factory=list)
    raised: Raised | None = None


def strides(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Strides in elements. ``sliced`` is every other element of a row-major array; ``expanded`` repeats the first row."""
    if layout == "transposed":
        return tuple(reversed(_row_major(tuple(reversed(shape)))))
    if layout == "channels_last":
        n, c, h, w = shape
        of_n, of_h, of_w, of_c = _row_major((n, h, w, c))
        return (of_n, of_c, of_h, of_w)
    dense = _row_major(shape)
    if layout == "sliced":
        return tuple(2 * s for s in dense)
    if layout == "expanded" and shape:
        return (0, *dense[1:])
    return dense


def _row_major(shape: tuple[int, ...]) -> tuple[int, ...]:
    result, stride = [], 1
    for n in reversed(shape):
        result.append(stride)
        stride *= max(n, 1)
    return tuple(reversed(result))


def room(shape: tuple[int, ...], layout: str) -> int:
    """Elements of the buffer that a tensor of this shape and layout is a view of.

    There is room for as many elements in a row, so that code which ignores strides stays inside the buffer: it is to be
    found wrong, not to crash the judge.
    """
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides(shape, layout), strict=True)) if 0 not in shape else 0
    return max(span, math.prod(shape)) + 2 * GUARD_ELEMENTS


class _Allocation:
    """A tensor that is a view of a larger buffer, with guard elements around and between its own."""

    def __init__(self, shape: tuple[int, ...], dtype: str, layout: str) -> None:
        self.buffer = torch.full((room(shape, layout),), GUARD, dtype=_TORCH_DTYPES[dtype])
        self.view = self.buffer.as_strided(shape, strides(shape, layout), GUARD_ELEMENTS)
        self.repeats = layout == "expanded" and len(shape) > 0

    def fill(self, values: Raw) -> None:
        # Rounding to the dtype is NumPy's, to nearest.
        target, source = (self.view[:1], values[:1]) if self.repeats else (self.view, values)
        with np.errstate(over="ignore", invalid="ignore"):
            target.copy_(torch.from_numpy(np.asarray(source, self.buffer.numpy().dtype)))


class Player:
    """Plays one trace on one subject."""

    def __init__(self, subject: Subject, trace: Trace) -> None:
        self.subject = subject
        self.trace = trace
        self.recording = Recording(trace)
        self.options: list[dict[str, Option]] = [dict(g.options) for g in trace.groups]
        # One object for as long as a group's options stay the same: the judge batches by it.
        self.hyper = [subject.spec.hyper_values(o) for o in self.options]
        self.allocations = [self._allocate(p) for p in trace.parameters]
        self.parameters = [a.view.requires_grad_() for a in self.allocations]
        self.outside = [_outside(p, a) for p, a in zip(trace.parameters, self.allocations, strict=True)]
        self.latest: list[tuple[Raw, Mapping[str, Raw | float]]] | None = None
        """Values and states as they were read after the last event."""
        self.replaced: list[list[tuple[_Allocation, bytes]]] = [[] for _ in self.parameters]
        """Gradients that were taken off each parameter, and what stood in their memory then."""
        self.gradients: list[_Allocation | None] = [None] * len(self.parameters)

    @staticmethod
    def _allocate(parameter: Parameter) -> _Allocation:
        allocation = _Allocation(parameter.shape, parameter.dtype, parameter.layout)
        allocation.fill(parameter.values.realise(parameter.shape))
        return allocation

    def play(self) -> Recording:
        """The recording. What the subject raises is recorded, not raised.

        Raises:
            UsageError: what the subject's constructor returned is no optimizer.
        """
        event: int | None = None
        try:
            self.optimizer = self._construct(self.options)
            self.recording.initial_state = [self._state(i) for i in range(len(self.parameters))]
            for event, what in enumerate(self.trace.events):
                if isinstance(what, Step):
                    self._step(event, what)
                    continue
                if isinstance(what, Reload):
                    self._reload(event)
                else:
                    self._idle(event, what)
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever somebody's optimizer raises is a result
            self.recording.raised = Raised(event, type(error).__name__, str(error).strip())
        return self.recording

    def _idle(self, event: int, what: ZeroGrad | SetOption) -> None:
        before = self._snapshot()
        left = []
        if isinstance(what, ZeroGrad):
            self.optimizer.zero_grad(set_to_none=what.set_to_none)
            for i, p in enumerate(self.parameters):
                if p.grad is not None and (what.set_to_none or bool(p.grad.any())):
                    left.append(i)
        else:
            self.options[what.group][what.option] = what.value
            self.hyper[what.group] = self.subject.spec.hyper_values(self.options[what.group])
            self.optimizer.param_groups[what.group][what.option] = what.value
        self.latest = None
        self.latest = self._snapshot()
        touched = [_changes(b, a) for b, a in zip(before, self.latest, strict=True)]
        self.recording.idle.append(IdleRecord(event, touched, left))

    def _snapshot(self) -> list[tuple[Raw, Mapping[str, Raw | float]]]:
        """Values and states; as they were read after the event before, where gradients alone can have changed since."""
        return self.latest or [(_copy(p), self._state(i)) for i, p in enumerate(self.parameters)]

    def _construct(self, options: list[dict[str, Option]]) -> Any:
        subject = self.subject
        if subject.explicit:
            complete = vars(subject.spec.hyper_values())
            options = [{k: v for k, v in {**complete, **o}.items() if k in subject.options} for o in options]
        members = [[self.parameters[i] for i in g.parameters] for g in self.trace.groups]
        if len(members) == 1:
            optimizer = subject.make(members[0], **options[0], **subject.mode_options)
        else:
            groups = [{"params": m, **o} for m, o in zip(members, options, strict=True)]
            shared = options[0] if subject.explicit else {}
            optimizer = subject.make(groups, **shared, **subject.mode_options)
        for needed in ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups"):
            if not hasattr(optimizer, needed):
                raise UsageError(
                    f"{subject.name}: built a {type(optimizer).__name__}, which has no {needed}; it is no optimizer"
                )
        return optimizer

    def _step(self, event: int, step: Step) -> None:
        for i, gradient in step.gradients.items():
            self._assign(i, gradient)
        everyone = range(len(self.parameters))
        before = self._snapshot()
        gradients = [None if p.grad is None else _copy(p.grad) for p in self.parameters]
        memory = [None if g is None else g.buffer.numpy().tobytes() for g in self.gradients]
        self.optimizer.step()
        self.latest = None
        self.latest = self._snapshot()
        lives = [
            Life(
                value=before[i][0],
                gradient=gradients[i],
                state=before[i][1],
                value_after=self.latest[i][0],
                state_after=self.latest[i][1],
                gradient_written=self._gradient_written(i, gradients[i], memory[i]),
                beside_written=self._beside_written(i),
            )
            for i in everyone
        ]
        self.recording.steps.append(StepRecord(event, tuple(self.hyper), lives))

    def _gradient_written(self, index: int, before: Raw | None, memory: bytes | None) -> bool:
        allocation, gradient = self.gradients[index], self.parameters[index].grad
        if any(old.buffer.numpy().tobytes() != was for old, was in self.replaced[index]):
            return True
        if allocation is not None and allocation.buffer.numpy().tobytes() != memory:
            return True
        if gradient is None or before is None:
            return (gradient is None) != (before is None)
        if allocation is not None and gradient is allocation.view:
            return False  # all of its memory has just been compared
        return _copy(gradient).tobytes() != before.tobytes()

    def _beside_written(self, index: int) -> bool:
        return bool((self.allocations[index].buffer.detach().numpy()[self.outside[index]] != GUARD).any())

    def _assign(self, index: int, gradient: Gradient | None) -> None:
        old = self.gradients[index]
        if old is not None:
            self.replaced[index].append((old, old.buffer.numpy().tobytes()))
        if gradient is None:
            self.parameters[index].grad = None
            self.gradients[index] = None
            return
        parameter = self.trace.parameters[index]
        allocation = _Allocation(parameter.shape, parameter.dtype, gradient.layout)
        allocation.fill(gradient.values.realise(parameter.shape))
        self.parameters[index].grad = allocation.view
        self.gradients[index] = allocation

    def _reload(self, event: int) -> None:
        self.latest = None
        saved = [self._state(i) for i in range(len(self.parameters))]
        saved_options = self._options()
        state_dict = self.optimizer.state_dict()
        self.optimizer = self._construct([{} for _ in self.options])
        self.optimizer.load_state_dict(state_dict)
        loaded = [self._state(i) for i in range(len(self.parameters))]
        self.recording.reloads.append(ReloadRecord(event, saved, loaded, saved_options, self._options()))

    def _options(self) -> list[dict[str, Any]]:
        return [{k: g.get(k) for k in self.subject.options} for g in self.optimizer.param_groups]

    def _state(self, index: int) -> dict[str, Raw | float]:
        """Copies of the tensors and numbers that the optimizer keeps for one parameter."""
        state = getattr(self.optimizer, "state", {})
        result: dict[str, Raw | float] = {}
        # A defaultdict would make an entry of a parameter that it does not know yet.
        kept: Any = state.get(self.parameters[index]) if hasattr(state, "get") else None
        for name, value in kept.items() if hasattr(kept, "items") else ():
            if isinstance(value, torch.Tensor):
                result[str(name)] = _copy(value)
            elif isinstance(value, (int, float)):
                result[str(name)] = float(value)
        return result


def _copy(tensor: torch.Tensor) -> Raw:
    return np.array(tensor.detach().numpy())


def _outside(parameter: Parameter, allocation: _Allocation) -> Raw:
    """A mask of the buffer's elements that are not the parameter's own."""
    mask = torch.ones(allocation.buffer.numel(), dtype=torch.bool)
    mask.as_strided(parameter.shape, strides(parameter.shape, parameter.layout), GUARD_ELEMENTS).fill_(False)
    return mask.numpy()


def _changes(before: tuple[Raw, Mapping[str, Raw | float]], after: tuple[Raw, Mapping[str, Raw | float]]) -> list[str]:
    """What differs between two snapshots of a parameter."""
    names = [] if identical(before[0], after[0]) else ["value"]
    return names + [
        name
        for name in {**before[1], **after[1]}
        if name not in before[1] or name not in after[1] or not identical(before[1][name], after[1][name])
    ]


def identical(a: Raw | float, b: Raw | float) -> bool:
    """Whether two values are the same to the last bit, NaN and the sign of zero included."""
    x, y = np.asarray(a), np.asarray(b)
    return x.shape == y.shape and x.tobytes() == y.tobytes()
