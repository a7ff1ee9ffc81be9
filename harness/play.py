"""Play a trace on a subject and record what happened. Nothing is judged here."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.harness import objectives
from stepcheck.harness.comparison import Array, reals
from stepcheck.harness.subjects import Subject, UsageError
from stepcheck.harness.trace import (
    DTYPES,
    Gradient,
    Objective,
    Option,
    Parameter,
    Reload,
    SetOption,
    Sparse,
    Step,
    Trace,
    ZeroGrad,
    in_reals,
)

Raw = npt.NDArray[Any]

GUARD_ELEMENTS = 8
GUARD = 0.3125  # of ordinary size, so that adding an update of ordinary size to it shows
_TORCH_DTYPES: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


@dataclass(frozen=True)
class SparseRaw:
    """A copy of a sparse gradient.

    Attributes:
        elements: for each value, the element of the parameter that it belongs to, counted row-major.
        values: flat; as many.
    """

    elements: npt.NDArray[np.int64]
    values: Raw


@dataclass
class Life:
    """One parameter around one step: row-major copies of its value, gradient and state, before and after."""

    value: Raw
    gradient: Raw | SparseRaw | None
    state: Mapping[str, Raw | float]
    value_after: Raw
    state_after: Mapping[str, Raw | float]
    gradient_written: bool
    beside_written: bool


@dataclass(frozen=True)
class Evaluation:
    """One call of a closure.

    Attributes:
        point: what the parameters were, flat; of complex ones, real and imaginary parts.
        loss: what it returned, as a Python float.
        gradient: what it left in the parameters' gradients, flat.
    """

    point: Array
    loss: float
    gradient: Array


@dataclass
class StepRecord:
    """One step: the options then in force for each group, and what became of each parameter."""

    event: int
    hyper: tuple[SimpleNamespace, ...]
    lives: list[Life]
    evaluations: list[Evaluation] = field(default_factory=list)
    """The calls of the closure, where the step had one."""


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


@functools.lru_cache(maxsize=1024)
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


@functools.lru_cache(maxsize=1024)
def room(shape: tuple[int, ...], layout: str) -> int:
    """Elements of the buffer that a tensor of this shape and layout is a view of.

    There is room for as many elements in a row, so that code which ignores strides stays inside the buffer: it is to be
    found wrong, not to crash the judge.
    """
    span = 1 + sum((n - 1) * s for n, s in zip(shape, strides(shape, layout), strict=True)) if 0 not in shape else 0
    # And for the start to be counted twice (see Player._allocate).
    return max(span, math.prod(shape)) + 3 * GUARD_ELEMENTS


class _Allocation:
    """A tensor that is a view of a larger buffer, with guard elements around and between its own.

    Args:
        start: the element of the buffer that it starts at.
    """

    def __init__(self, shape: tuple[int, ...], dtype: str, layout: str, start: int = GUARD_ELEMENTS) -> None:
        self.start = start
        self.buffer = torch.full((room(shape, layout),), GUARD, dtype=_TORCH_DTYPES[dtype])
        self.shape, self.layout = shape, layout
        self.view = self._view()
        self.repeats = layout == "expanded" and len(shape) > 0

    def _view(self) -> torch.Tensor:
        view = self.buffer.as_strided(self.shape, strides(self.shape, self.layout), self.start)
        return view.conj() if self.layout == "conjugated" else view

    def fill(self, values: Raw) -> None:
        """Fill with real numbers; of a complex tensor, the last dimension is real and imaginary part."""
        target, source = (self.view[:1], values[:1]) if self.repeats else (self.view, values)
        target.copy_(rounded(source, self.buffer.dtype))

    def make_differentiable(self) -> None:
        """Make of the view what it is in a differentiable step: no leaf, but the result of a computation."""
        self.buffer = self.buffer.requires_grad_().clone()
        self.view = self._view()
        self.view.retain_grad()

    def memory(self) -> bytes:
        """All of the buffer, as bytes."""
        return _bytes(self.buffer)


class _SparseAllocation:
    """A sparse tensor."""

    def __init__(self, shape: tuple[int, ...], dtype: str, sparse: Sparse, values: Raw) -> None:
        indices = np.array(np.unravel_index(np.array(sparse.entries, np.int64), shape[: sparse.dimensions]))
        self.view = torch.sparse_coo_tensor(
            torch.from_numpy(indices.reshape(sparse.dimensions, -1)),
            rounded(values, _TORCH_DTYPES[dtype]).clone(),
            shape,
            is_coalesced=sparse.coalesced,
            check_invariants=True,
        )

    def memory(self) -> bytes:
        return _bytes(self.view)


def rounded(values: Raw, dtype: torch.dtype) -> torch.Tensor:
    """Real numbers as a tensor of ``dtype``; for a complex dtype the last dimension is real and imaginary part."""
    real = torch.from_numpy(np.asarray(values, order="C"))
    if dtype.is_complex:
        return torch.complex(*real.to(dtype.to_real()).unbind(-1))
    return real.to(dtype)


def _bytes(tensor: torch.Tensor) -> bytes:
    detached = tensor.detach()
    if detached.is_sparse:
        return _bytes(detached._indices()) + _bytes(detached._values())  # noqa: SLF001 - an uncoalesced tensor has no other way
    if detached.dtype is torch.bfloat16:
        detached = detached.view(torch.int16)
    return detached.numpy().tobytes()


class Player:
    """Plays one trace on one subject."""

    def __init__(self, subject: Subject, trace: Trace) -> None:
        self.subject = subject
        self.trace = trace
        self.recording = Recording(trace)
        self.options: list[dict[str, Option]] = [dict(g.options) for g in trace.groups]
        # One object for as long as a group's options stay the same: the judge batches by it.
        self.hyper = [subject.spec.hyper_values(o) for o in self.options]
        self.allocations = [self._allocate(i, p) for i, p in enumerate(trace.parameters)]
        if subject.differentiable:
            for allocation in self.allocations:
                allocation.make_differentiable()
        self.parameters = [a.view if subject.differentiable else a.view.requires_grad_() for a in self.allocations]
        self.outside = [_outside(p, a) for p, a in zip(trace.parameters, self.allocations, strict=True)]
        self.latest: list[tuple[Raw, Mapping[str, Raw | float]]] | None = None
        """Values and states as they were read after the last event."""
        self.replaced: list[list[tuple[_Allocation | _SparseAllocation, bytes]]] = [[] for _ in self.parameters]
        """Gradients that were taken off each parameter, and what stood in their memory then."""
        self.gradients: list[_Allocation | _SparseAllocation | None] = [None] * len(self.parameters)
        self.event: int | None = None
        """The event that is being played; none while the optimizer is constructed."""

    def _allocate(self, index: int, parameter: Parameter) -> _Allocation:
        # torch adds a coalesced sparse tensor to a view that does not start its memory at the wrong place: this must not
        # hide all else, so it is for the layout "offset" to find.
        plain = parameter.layout == "contiguous" and index in self.trace.given_sparse
        start = 0 if plain else GUARD_ELEMENTS
        allocation = _Allocation(parameter.shape, parameter.dtype, parameter.layout, start)
        allocation.fill(parameter.values.realise(in_reals(parameter.shape, parameter.dtype)))
        return allocation

    def play(self) -> Recording:
        """The recording. What the subject raises is recorded, not raised.

        Raises:
            UsageError: what the subject's constructor returned is no optimizer.
        """
        try:
            # What a subject warns of is not judged, nor shown a thousand times.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._live()
        except UsageError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever somebody's optimizer raises is a result
            self.recording.raised = Raised(self.event, type(error).__name__, str(error).strip())
        return self.recording

    def _live(self) -> None:
        self.optimizer = self._construct(self.options)
        self.recording.initial_state = [self._state(i) for i in range(len(self.parameters))]
        for event, what in enumerate(self.trace.events):
            self.event = event
            if isinstance(what, Step):
                self._step(self.event, what)
            elif isinstance(what, Reload):
                self._reload(self.event)
            else:
                self._idle(self.event, what)

    def _idle(self, event: int, what: ZeroGrad | SetOption) -> None:
        before = self._snapshot()
        left = []
        if isinstance(what, ZeroGrad):
            self.optimizer.zero_grad(set_to_none=what.set_to_none)
            for i, p in enumerate(self.parameters):
                if p.grad is not None and (what.set_to_none or bool(_values(p.grad).any())):
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
        gradients = [None if p.grad is None else _copy_gradient(p.grad) for p in self.parameters]
        memory = [None if g is None else g.memory() for g in self.gradients]
        evaluations: list[Evaluation] = []
        if step.objective is None:
            self.optimizer.step()
        else:
            self.optimizer.step(self._closure(step.objective, evaluations))
            gradients = [_copy_gradient(p.grad) if p.grad is not None else None for p in self.parameters]
        self.latest = None
        self.latest = self._snapshot()
        lives = [
            Life(
                value=before[i][0],
                gradient=gradients[i],
                state=before[i][1],
                value_after=self.latest[i][0],
                state_after=self.latest[i][1],
                # A closure writes the gradients itself.
                gradient_written=step.objective is None and self._gradient_written(i, gradients[i], memory[i]),
                beside_written=self._beside_written(i),
            )
            for i in everyone
        ]
        self.recording.steps.append(StepRecord(event, tuple(self.hyper), lives, evaluations))

    def _closure(self, objective: Objective, evaluations: list[Evaluation]) -> Callable[[], torch.Tensor]:
        """Evaluates an objective and its gradients, and takes note."""
        shapes = [in_reals(p.shape, p.dtype) for p in self.trace.parameters]
        seeds = range(objective.centre.seed, objective.centre.seed + len(shapes))
        centres = [
            torch.from_numpy(replace(objective.centre, seed=seed).realise((math.prod(shape),)))
            for seed, shape in zip(seeds, shapes, strict=True)
        ]

        def closure() -> torch.Tensor:
            for p in self.parameters:
                p.grad = None
            with torch.enable_grad():
                loss = objectives.loss(objective, self.parameters, centres)
            if loss.requires_grad:
                loss.backward()  # type: ignore[no-untyped-call]
            point = np.concatenate([reals(_copy(p)) for p in self.parameters])
            zeros = [np.zeros(math.prod(shape)) for shape in shapes]
            gradient = [
                z if p.grad is None else reals(_copy(p.grad)) for p, z in zip(self.parameters, zeros, strict=True)
            ]
            evaluations.append(Evaluation(point, float(loss.detach()), np.concatenate(gradient)))
            return loss

        return closure

    def _gradient_written(self, index: int, before: Raw | SparseRaw | None, memory: bytes | None) -> bool:
        allocation, gradient = self.gradients[index], self.parameters[index].grad
        if any(old.memory() != was for old, was in self.replaced[index]):
            return True
        if allocation is not None and allocation.memory() != memory:
            return True
        if gradient is None or before is None:
            return (gradient is None) != (before is None)
        if allocation is not None and gradient is allocation.view:
            return False  # all of its memory has just been compared
        after = _copy_gradient(gradient)
        if isinstance(before, SparseRaw) or isinstance(after, SparseRaw):
            return not (
                isinstance(before, SparseRaw)
                and isinstance(after, SparseRaw)
                and identical(before.values, after.values)
                and np.array_equal(before.elements, after.elements)
            )
        return after.tobytes() != before.tobytes()

    def _beside_written(self, index: int) -> bool:
        buffer = self.allocations[index].buffer.detach()
        return bool(np.count_nonzero(_raw(buffer)[self.outside[index]] != GUARD))

    def _assign(self, index: int, gradient: Gradient | None) -> None:
        old = self.gradients[index]
        if old is not None:
            self.replaced[index].append((old, old.memory()))
        if gradient is None:
            self.parameters[index].grad = None
            self.gradients[index] = None
            return
        parameter = self.trace.parameters[index]
        values = gradient.realise(parameter.shape, parameter.dtype)
        allocation: _Allocation | _SparseAllocation
        if gradient.sparse is not None:
            allocation = _SparseAllocation(parameter.shape, parameter.dtype, gradient.sparse, values)
        else:
            allocation = _Allocation(parameter.shape, parameter.dtype, gradient.layout)
            allocation.fill(values)
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
            elif isinstance(value, (list, tuple)):
                for n, entry in enumerate(value):
                    if isinstance(entry, (torch.Tensor, int, float)):
                        result[f"{name}[{n}]"] = _copy(entry) if isinstance(entry, torch.Tensor) else float(entry)
        return result


def _raw(tensor: torch.Tensor) -> Raw:
    """The tensor's memory as an array; bfloat16, which NumPy lacks, as float32."""
    detached = tensor.detach()
    if detached.dtype is torch.bfloat16:
        detached = detached.float()
    array: Raw = detached.resolve_conj().numpy()
    return array


def _copy(tensor: torch.Tensor) -> Raw:
    if tensor.is_sparse:
        # A state that is sparse is read as the dense tensor that it stands for.
        tensor = tensor.detach().to_dense()
    return np.array(_raw(tensor))


def _values(gradient: torch.Tensor) -> torch.Tensor:
    return gradient._values() if gradient.is_sparse else gradient  # noqa: SLF001 - an uncoalesced tensor has no other way


def _copy_gradient(gradient: torch.Tensor) -> Raw | SparseRaw:
    if not gradient.is_sparse:
        return _copy(gradient)
    shape, dimensions = tuple(gradient.shape), gradient.sparse_dim()
    inner = math.prod(shape[dimensions:])
    entries = np.ravel_multi_index(tuple(gradient._indices().numpy()), shape[:dimensions])  # noqa: SLF001 - an uncoalesced tensor has no other way
    elements = entries[:, None] * inner + np.arange(inner)
    return SparseRaw(elements.reshape(-1), _copy(gradient._values()).reshape(-1))  # noqa: SLF001 - an uncoalesced tensor has no other way


def _outside(parameter: Parameter, allocation: _Allocation) -> Raw:
    """A mask of the buffer's elements that are not the parameter's own."""
    mask = torch.ones(allocation.buffer.numel(), dtype=torch.bool)
    mask.as_strided(parameter.shape, strides(parameter.shape, parameter.layout), allocation.start).fill_(False)
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
