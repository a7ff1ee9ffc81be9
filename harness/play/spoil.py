"""Malformed state: what an optimizer does where a tensor of its state is not what it left there, as cut or foreign checkpoints have it.

All is tried on optimizers of their own, which are built as that of the life would be by now, so that it goes on as if nothing had been tried. One
takes two steps; a tensor of its state is spoilt; two more steps are tried. An exception is a refusal, whatever it is. Of a step that does not raise,

- no element of memory beside the tensor may be written, nor matter: it stands in a larger buffer, which is filled otherwise the second time;
- the parameters must arrive where they do with the same values in a tensor of the right shape and dtype, if there is one, or where they do
  with the tensor as it was, since nobody need look at it at once;
- or they must not depend on the values that were spoilt: who makes such a state anew, or passes over it, reads nothing wrong.

Anything else is numbers that nobody meant. No more is judged. A refusal may come after a part of the step. State that is missing, that is no tensor
(Python's ``+=`` is another one then), or that has fewer digits has no one meaning. A tensor without memory ends the process, and an expanded one takes
other numbers, in operations of torch itself. Tensors of another shape than their parameter are left alone: what they hold is the class's own affair.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stepcheck.harness.life.events import SPOILINGS, Parameter, Spoil
from stepcheck.harness.life.memory import GUARD, GUARD_ELEMENTS, raw
from stepcheck.harness.numbers.comparison import Array, reals, rounding

#: What takes the place of ``t``, a row-major tensor, as an expression, so that a script shows exactly what was tried.
EXPRESSIONS: dict[str, str] = {
    "of half the elements": "t.reshape(-1)[: t.numel() // 2]",
    "a row short": "t[:-1]",
    "of one element": "t.reshape(-1)[:1]",
    "empty": "t.reshape(-1)[:0]",
    "twice as long": "torch.cat([t, t])",
    "flat": "t.reshape(-1)",
    "with another dimension": "t[None]",
    "transposed": "t.transpose(0, -1).contiguous()",
    "column-major": "t.transpose(0, -1).contiguous().transpose(0, -1)",
    "strided": "torch.stack([t, torch.zeros_like(t)], -1)[..., 0]",
    "lazily negative": "torch.complex(torch.zeros_like(t), -t).conj().imag",
    "sparse": "t.to_sparse()",
    "of float64": "t.double()",
}
assert tuple(EXPRESSIONS) == SPOILINGS
_FUNCTIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    how: eval(f"lambda t: {expression}", {"torch": torch})  # noqa: S307 - the constants above
    for how, expression in EXPRESSIONS.items()
}
#: What tells one cause from another, where memory beside the tensor has no part in it.
_CAUSES = {
    "another number of elements": SPOILINGS[:5], "another shape": SPOILINGS[5:8], "another layout": SPOILINGS[8:12],
    "another dtype": SPOILINGS[12:],
}  # fmt: skip
MEMORY = "memory beside"

#: The gradient of each parameter at a step: never zero, and exact in every format.
GRADIENT = "((torch.arange(p.numel()) % 7 - 3) / 4 + 0.125).view(p.shape).to(p) * n"
_GRADIENT: Callable[[torch.Tensor, int], torch.Tensor] = eval(f"lambda p, n: {GRADIENT}", {"torch": torch})  # noqa: S307
#: What a parameter is at first, before it has a dtype.
PLAIN = "((torch.arange(p.numel()) % 5 - 2) / 4).view(p.shape).to(p.device)"
_PLAIN: Callable[[torch.Tensor], torch.Tensor] = eval(f"lambda p: {PLAIN}", {"torch": torch})  # noqa: S307
#: By how much gradients are multiplied in the steps before, and in those after.
BEFORE, AFTER = (1, 2), (3, 1)

#: Another filling of the buffer: far from the first, and from any state.
_OTHERWISE = 11.5
#: The tensor with this relative change shows how much rounding in it can matter; and how often that much is allowed.
_NUDGE = {torch.float32: 2.0**-20, torch.float64: 2.0**-49}
_NUDGES = 4

#: An optimizer and its parameters.
Copy = tuple[Any, Sequence[torch.Tensor]]


@dataclass(frozen=True)
class Arrival:
    """Where a step with malformed state arrived that was not refused, and that is right in no way.

    Attributes:
        buffer: the name of the tensor in the state.
        cause: what tells one cause from another.
        told: what it did, as the end of a sentence that begins with the event.
        steps: how many steps after the spoiling show it.
        parameter, element: the witness, counted row-major; none where memory beside the tensor, or a shape, is what is wrong.
        expected, budget: what it is with the right tensor, and what rounding may cost.
        written: memory beside the tensor was.
    """

    buffer: str
    cause: str
    told: str
    steps: int = len(AFTER)
    parameter: int = 0
    element: int | None = None
    expected: float = math.nan
    budget: float = 0.0
    written: bool = False


class NothingToSpoilError(Exception):
    """The optimizer cannot be built or steps to no numbers, or keeps no tensor of the parameter's shape, or such a one is not malformed by this."""


Change = Callable[[torch.Tensor], torch.Tensor]


@dataclass
class _Course:
    """Where parameters are before the spoiling and after each step that did not raise; and whether memory beside was written."""

    start: list[Array]
    after: list[list[Array]] = field(default_factory=list)
    written: bool = False


@dataclass(frozen=True)
class _Goal:
    """A course that is right, and one that shows how much rounding in the tensor matters to it."""

    course: _Course
    nudged: _Course


@dataclass(frozen=True)
class Trial:
    """One optimizer whose state is spoilt.

    Attributes:
        what: how.
        another: builds one.
        step: steps one.
        dtypes: of the parameters.
        sparse: gradients must be.
        mixes: elements depend on each other: rounding anywhere may matter to any of them.
    """

    what: Spoil
    another: Callable[[], Copy]
    step: Callable[[Any], object]
    dtypes: Sequence[str]
    sparse: bool = False
    mixes: bool = False

    def arrival(self) -> Arrival | None:
        """What is wrong with a step after it, or nothing.

        Raises:
            NothingToSpoilError: there is no such step; or without the spoiling it raises, leads to no numbers, or to others each time.
        """
        name = self._name()
        right = self._goal(name, lambda t: t)
        if not _is_finite(right.course) or not _same(right.course, self._course(name, lambda t: t)):
            raise NothingToSpoilError
        change, told = functools.partial(spoilt, self.what.how), f"{name}, which is {self.what.how}"
        got = self._course(name, change)
        if got.written:
            return Arrival(name, MEMORY, f"writes to memory beside {told}", written=True)
        if not got.after:
            return None
        witness = self._witness(got, [*self._meant(name), right])
        if witness is None:
            return None
        if not _same(got, self._course(name, change, _OTHERWISE)):
            return Arrival(name, MEMORY, f"reads memory beside {told}", **witness)
        if not self._depends(name, got):
            return None
        cause = next(cause for cause, ways in _CAUSES.items() if self.what.how in ways)
        return Arrival(name, cause, f"takes {told}, for something else without a word", **witness)

    def _name(self) -> str:
        """Of the tensor that is spoilt."""
        optimizer, parameters = self._begun()
        p, state = parameters[self.what.parameter], self._state(optimizer, parameters)
        names = sorted(k for k, v in state.items() if isinstance(k, str) and _is_like(v, p))
        if not names:
            raise NothingToSpoilError
        name = names[self.what.buffer % len(names)]
        if not is_malformed(self.what.how, _row_major(state[name])):
            raise NothingToSpoilError
        return name

    def _begun(self) -> Copy:
        """One that has taken the steps before."""
        try:
            optimizer, parameters = self.another()
            for n in BEFORE:
                self._take(optimizer, parameters, n)
        except Exception as error:
            raise NothingToSpoilError from error
        return optimizer, parameters

    def _take(self, optimizer: Any, parameters: Sequence[torch.Tensor], n: int) -> None:
        for p in parameters:
            gradient = _GRADIENT(p.detach(), n)
            p.grad = gradient.to_sparse(1) if self.sparse else gradient
        self.step(optimizer)

    def _state(self, optimizer: Any, parameters: Sequence[torch.Tensor]) -> dict[str, Any]:
        state = getattr(optimizer, "state", {})
        own = state.get(parameters[self.what.parameter]) if hasattr(state, "get") else None
        return own if isinstance(own, dict) else {}

    def _course(self, name: str, change: Change, fill: float = GUARD) -> _Course:
        """What becomes of one in which something else stands for the tensor. Whatever it raises is a refusal."""
        optimizer, parameters = self._begun()
        course, buffers = _Course(_values(parameters)), list[_Buffer]()
        with contextlib.suppress(Exception):
            buffers += self._put(optimizer, parameters, name, change, fill)
            for n in AFTER:
                self._take(optimizer, parameters, n)
                course.after.append(_values(parameters))
        course.written = any(buffer.written for buffer in buffers)
        return course

    def _put(
        self, optimizer: Any, parameters: Sequence[torch.Tensor], name: str, change: Change, fill: float
    ) -> Iterator[_Buffer]:
        """Put it there. What is a view of memory stands in a larger buffer, whichever way it came."""
        p, state = parameters[self.what.parameter], self._state(optimizer, parameters)
        t = _row_major(state[name])
        state[name] = change(t)
        saved = resaved(optimizer, p, name, state[name]) if self.what.way == "loaded" else None
        if saved is not None:
            optimizer.load_state_dict(saved)
            state = self._state(optimizer, parameters)
        if has_strides(state[name]):
            buffer = _Buffer(state[name], t.numel(), fill)
            state[name] = buffer.view
            yield buffer

    # What would be right

    def _goal(self, name: str, change: Change) -> _Goal:
        """What becomes of a tensor that nobody may refuse.

        Raises:
            NothingToSpoilError: it is refused.
        """
        goal = _Goal(self._course(name, change), self._course(name, lambda t: _nudged(change(t))))
        if any(len(course.after) < len(AFTER) for course in (goal.course, goal.nudged)):
            raise NothingToSpoilError
        return goal

    def _meant(self, name: str) -> list[_Goal]:
        """What the same values do in a right tensor, if there is one."""
        with contextlib.suppress(NothingToSpoilError):
            return [self._goal(name, lambda t: right_tensor(spoilt(self.what.how, t), t))]
        return []

    def _depends(self, name: str, got: _Course) -> bool:
        """Whether other values, spoilt in the same way, lead elsewhere."""
        other = self._course(name, lambda t: spoilt(self.what.how, t * (1.5 + _GRADIENT(t, 1).abs())))
        return len(other.after) == len(got.after) and self._apart(got, _Goal(other, other)) is not None

    def _witness(self, got: _Course, goals: Sequence[_Goal]) -> dict[str, Any] | None:
        """Where a course parts from the first of some others, if it parts from all."""
        parts = [self._apart(got, goal) for goal in goals]
        return None if any(part is None for part in parts) else parts[0]

    def _apart(self, got: _Course, goal: _Goal) -> dict[str, Any] | None:
        """The element that parts by more than rounding, after the first step that shows one."""
        steps = zip(got.after, goal.course.after, goal.nudged.after, strict=False)
        for n, of_step in enumerate(steps, 1):
            for i, (mine, theirs, nudged) in enumerate(zip(*of_step, strict=True)):
                if mine.shape != theirs.shape:
                    return {"steps": n, "parameter": i}
                matters = np.abs(nudged - theirs)
                if self.mixes:
                    matters = np.maximum(matters, matters[np.isfinite(matters)].max(initial=0.0))
                allowed = rounding(got.start[i], mine, theirs, self.dtypes[i]) + _NUDGES * matters
                excess = np.where(np.isfinite(theirs + allowed), np.abs(mine - theirs) - allowed, -1.0)
                excess = np.where(np.isfinite(theirs + allowed) & ~np.isfinite(mine), np.inf, excess)
                if excess.size and excess.max() > 0:
                    k = int(excess.argmax())
                    numbers = {"expected": float(theirs[k]), "budget": float(allowed[k])}
                    return {"steps": n, "parameter": i, "element": k, **numbers}
        return None


class _Buffer:
    """Memory around a tensor, filled with a number that nobody else would write."""

    def __init__(self, value: torch.Tensor, numel: int, fill: float) -> None:
        self.fill = fill
        self.memory = torch.full((room(value, numel),), fill, dtype=value.dtype, device=value.device)
        self.view = self.memory.as_strided(value.shape, value.stride(), GUARD_ELEMENTS).copy_(value)
        self.own = self._own()

    def _own(self) -> torch.Tensor:
        """Which elements are the tensor's."""
        own = torch.zeros(self.memory.shape, dtype=torch.bool, device=self.memory.device)
        own.as_strided(self.view.shape, self.view.stride(), GUARD_ELEMENTS).fill_(True)
        return own

    @property
    def written(self) -> bool:
        """Whether memory beside the tensor is not what it was; torch gives one that is written as ``out=`` the memory behind it."""
        beside = ~(self.own | self._own())
        return not bool((self.memory[beside] == self.fill).all())


def plain(p: torch.Tensor, dtype: str) -> torch.Tensor:
    """A tensor of a parameter's shape, of plain numbers."""
    return _PLAIN(p.detach()).to(getattr(torch, dtype))


def dtypes(parameters: Sequence[Parameter]) -> list[str]:
    """Those that parameters of a life have here: their own where all have digits enough to tell other numbers from rounding."""
    own = [p.dtype for p in parameters]
    return own if {"float32", "float64"}.issuperset(own) else ["float32"] * len(own)


def room(value: torch.Tensor, numel: int) -> int:
    """Elements of the buffer that a tensor stands in; as many as are asked for have room in it at any stride that it has."""
    span = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True)) if value.numel() else 0
    return max(span, 2 * numel) + 3 * GUARD_ELEMENTS


def spoilt(how: str, t: torch.Tensor) -> torch.Tensor:
    """What takes the place of a row-major tensor."""
    return _FUNCTIONS[how](t)


def right_tensor(value: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The values of what is malformed in such a tensor as ``t``: in its order if they are as many, else as torch broadcasts them.

    Raises:
        NothingToSpoilError: it has no such values.
    """
    dense = value.to_dense().resolve_neg().to(t.dtype)
    if dense.numel() == t.numel():
        return dense.reshape(t.shape).clone(memory_format=torch.contiguous_format)
    try:
        return torch.broadcast_to(dense, t.shape).clone(memory_format=torch.contiguous_format)
    except RuntimeError as error:
        raise NothingToSpoilError from error


def is_malformed(how: str, t: torch.Tensor) -> bool:
    """Whether what takes the place of a row-major tensor is anything else than such a tensor."""
    if t.dtype not in _NUDGE or t.numel() < 2 or not t.dim():
        return False
    value = spoilt(how, t)
    if not has_strides(value):
        return True
    return (value.shape, value.stride(), value.dtype) != (t.shape, t.stride(), t.dtype)


def resaved(optimizer: Any, p: torch.Tensor, name: str, value: Any) -> dict[str, Any] | None:
    """The state_dict, in which this stands for a tensor of a parameter; ``None`` where it does not have torch's form."""
    saved = copy.copy(optimizer.state_dict())
    order = [id(q) for group in optimizer.param_groups for q in group["params"]]
    state = saved.get("state") if isinstance(saved, dict) else None
    own = state.get(order.index(id(p))) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not isinstance(own, dict) or name not in own:
        return None
    return {**saved, "state": {**state, order.index(id(p)): {**own, name: value}}}


def _is_like(value: Any, p: torch.Tensor) -> bool:
    return has_strides(value) and value.shape == p.shape and value.dtype == p.dtype


def has_strides(value: Any) -> bool:
    """Whether it is a tensor that is nothing but a view of memory."""
    return type(value) is torch.Tensor and value.layout is torch.strided and not value.is_neg() and not value.is_conj()


def _row_major(t: torch.Tensor) -> torch.Tensor:
    return t.detach().clone(memory_format=torch.contiguous_format)


def _nudged(t: torch.Tensor) -> torch.Tensor:
    return t * (1.0 + _NUDGE[t.dtype] * _GRADIENT(t, 1).sign())


def _values(parameters: Sequence[torch.Tensor]) -> list[Array]:
    return [reals(raw(p)).copy() for p in parameters]


def _is_finite(course: _Course) -> bool:
    return all(np.isfinite(values).all() for values in course.after[-1])


def _same(a: _Course, b: _Course) -> bool:
    """Whether two courses are the same to the bit."""
    if len(a.after) != len(b.after):
        return False
    pairs = ((x, y) for mine, theirs in zip(a.after, b.after, strict=True) for x, y in zip(mine, theirs, strict=True))
    return all(np.array_equal(x, y, equal_nan=True) for x, y in pairs)
