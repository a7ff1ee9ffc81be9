"""The parameters and gradients of a life as tensors, and whether somebody wrote where nobody should."""

from __future__ import annotations

import gc
import weakref
from collections import deque
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.harness.life.events import Gradient, Parameter
from stepcheck.harness.life.memory import (
    GUARD_ELEMENTS,
    Allocation,
    Raw,
    SparseAllocation,
    SparseRaw,
    beside,
    copy_gradient,
    identical,
    rounded,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import in_reals
from stepcheck.harness.play.subjects import Subject

#: Gradients, and the memory that they stand in.
Given = tuple[list[Raw | SparseRaw | None], list[bytes | None]]
#: Gradients of a parameter that were replaced, and are looked at after each step: all that a short life has, the last ones of a long one.
_LAST = 24


class Tensors:
    """The parameters of a life and their gradients, each in memory of its own, and all around them that nobody may write to."""

    def __init__(self, subject: Subject, trace: Trace) -> None:
        self.subject, self.trace = subject, trace
        self.allocations: list[Allocation] = []
        for i, p in enumerate(trace.parameters):
            self.allocations.append(self.allocate(i, p))
        if subject.differentiable:
            for allocation in self.allocations:
                allocation.make_differentiable()
        self.parameters = [as_parameter(subject, a.view) for a in self.allocations]
        self._sharing: dict[int, list[Allocation]] = {}
        for allocation in self.allocations:
            self._sharing.setdefault(id(allocation.buffer), []).append(allocation)
        self.outside = [self._outside(a) for a in self.allocations]
        self._places = [_place(p) for p in self.parameters]
        self.replaced: list[deque[tuple[Allocation | SparseAllocation, bytes]]] = [
            deque(maxlen=_LAST) for _ in self.parameters
        ]
        """Gradients that were taken off each parameter, and what stood in their memory then."""
        self.gradients: list[Allocation | SparseAllocation | None] = [None] * len(self.parameters)
        self.left: list[list[torch.Tensor]] = []
        """Tensors that were the parameters earlier; while they live, nothing else has their identity, or their memory."""
        self._graphs: list[list[weakref.ref[torch.Tensor]]] = [[] for _ in self.parameters]

    def allocate(self, index: int, parameter: Parameter) -> Allocation:
        """Memory for a parameter, filled with its values."""
        # torch adds a coalesced sparse tensor to a view that does not start its memory at the wrong place: this must not
        # hide all else, so it is for the layout "offset" to find.
        row_major = parameter.layout == "contiguous" and index in self.trace.given_sparse
        start = 0 if row_major else GUARD_ELEMENTS
        alone = parameter.within is None or self.subject.differentiable  # there each buffer is copied by itself
        within = None if alone else self.allocations[parameter.within or 0]
        allocation = Allocation(parameter.shape, parameter.dtype, parameter.layout, start, within, self.subject.device)
        allocation.fill(parameter.values.realise(in_reals(parameter.shape, parameter.dtype)))
        return allocation

    def _outside(self, allocation: Allocation) -> npt.NDArray[np.intp]:
        """The buffer's elements that are no parameter's own."""
        sharing = tuple((a.shape, a.layout, a.start) for a in self._sharing[id(allocation.buffer)])
        return beside(len(allocation.buffer), sharing)

    def place(self, index: int, allocation: Allocation) -> None:
        """Let a parameter stand in other memory, of the same shape, dtype and layout."""
        self.parameters[index].data = allocation.view
        self._stands(index, allocation)

    def _stands(self, index: int, allocation: Allocation) -> None:
        """A parameter stands in other memory from here on."""
        self.allocations[index] = allocation
        self._sharing[id(allocation.buffer)] = [allocation]
        self.outside[index] = self._outside(allocation)
        self._places[index] = _place(self.parameters[index])

    def renew(self) -> bool:
        """Let each parameter be another tensor, with the same values and gradient; the last one is allocated first. Whether that could be."""
        if self.subject.differentiable or any(p.within is not None for p in self.trace.parameters):
            return False  # they are results of a computation, or what shares memory would have to go on sharing it
        before = list(self.parameters)
        for i in reversed(range(len(before))):
            old = before[i]
            allocation = self.allocate(i, self.trace.parameters[i])
            allocation.view.copy_(old.detach())
            p = as_parameter(self.subject, allocation.view).requires_grad_(old.requires_grad)
            p.grad, old.grad = old.grad, None
            self.parameters[i] = p
            self._stands(i, allocation)
        self.left.append(before)
        return True

    def moved(self) -> Iterator[tuple[int, str]]:
        """Each parameter that does not stand where it stood, and what of it changed; it is then looked for where it is."""
        for i, p in enumerate(self.parameters):
            was, now = self._places[i], _place(p)
            if was != now:
                self._places[i] = now
                yield i, next(name for name, a, b in zip(_PLACE, was, now, strict=True) if a != b)

    def given(self, known: Container[int]) -> Given:
        """The gradients of the parameters that an optimizer knows, and the memory that they stand in."""
        gradients = [
            None if p.grad is None or i not in known else copy_gradient(p.grad) for i, p in enumerate(self.parameters)
        ]
        return gradients, [None if g is None else g.memory() for g in self.gradients]

    def assign_all(self, gradients: Mapping[int, Gradient | None]) -> None:
        for i, gradient in gradients.items():
            self._assign(i, gradient)

    def _assign(self, index: int, gradient: Gradient | None) -> None:
        self.put_aside(index)
        if gradient is None:
            self.parameters[index].grad = None
            return
        parameter = self.trace.parameters[index]
        values = gradient.realise(parameter.shape, parameter.dtype)
        allocation: Allocation | SparseAllocation
        if gradient.sparse is not None:
            allocation = SparseAllocation(
                parameter.shape, parameter.dtype, gradient.sparse, values, self.subject.device
            )
        else:
            allocation = Allocation(parameter.shape, parameter.dtype, gradient.layout, device=self.subject.device)
            allocation.fill(values)
        self.parameters[index].grad = allocation.view
        self.gradients[index] = allocation

    def attach_graphs(self) -> None:
        """Let each dense gradient be the result of a computation, as ``backward(create_graph=True)`` leaves it."""
        for p, graphs in zip(self.parameters, self._graphs, strict=True):
            if p.grad is not None and not p.grad.is_sparse:
                one = torch.ones((), dtype=p.grad.dtype, device=p.grad.device, requires_grad=True)
                p.grad = p.grad.detach() * one
                graphs.append(weakref.ref(p.grad))

    def is_detached(self, index: int) -> bool:
        """Whether the gradient of a parameter was given with a graph, and has none any more."""
        g = self.parameters[index].grad
        return bool(self._graphs[index]) and g is not None and not g.is_sparse and not g.requires_grad

    def past(self, index: int) -> int:
        """How many gradients of a parameter's earlier steps somebody still holds, of those that had a graph."""

        def held() -> int:
            return sum((g := ref()) is not None and g is not self.parameters[index].grad for ref in self._graphs[index])

        if held() > 1:
            gc.collect()  # what refers to itself alone is held by nobody
        return held()

    def put_aside(self, index: int) -> None:
        """A gradient that is replaced must stay as it is as well."""
        old = self.gradients[index]
        if old is not None:
            self.replaced[index].append((old, old.memory()))
        self.gradients[index] = None

    def add(self, gradients: Mapping[int, Gradient]) -> None:
        """A real backward pass, of the sum of all products of parameter and gradient."""
        for i, gradient in gradients.items():
            p, allocation = self.parameters[i], self.gradients[i]
            if not p.requires_grad:
                continue
            if isinstance(allocation, Allocation) and allocation.layout in ("expanded", "conjugated"):
                self.put_aside(i)
                p.grad = None if p.grad is None else p.grad.clone().resolve_conj()
            addend = self.product(i, gradient)
            if self.subject.differentiable:
                p.grad = addend if p.grad is None else addend + p.grad
            else:
                backward([(p, addend)])
            if allocation is not None and p.grad is not allocation.view:
                self.gradients[i] = None

    def product(self, index: int, gradient: Gradient) -> torch.Tensor:
        parameter = self.trace.parameters[index]
        p = self.parameters[index]
        return rounded(gradient.realise(parameter.shape, parameter.dtype), p.dtype).clone().to(p.device)

    def written(self, index: int, before: Raw | SparseRaw | None, memory: bytes | None, *, known: bool) -> bool:
        """Whether a gradient, or the memory of one that there was, is not as it was given; whose parameter is ``known``, it may not come or go."""
        allocation, gradient = self.gradients[index], self.parameters[index].grad
        if any(not old.holds(was) for old, was in self.replaced[index]):
            return True
        if allocation is not None and not allocation.holds(memory):
            return True
        if gradient is None or before is None:
            return (gradient is None) != (before is None) and known
        if allocation is not None and gradient is allocation.view:
            return False  # all of its memory has just been compared
        after = copy_gradient(gradient)
        if isinstance(before, SparseRaw) or isinstance(after, SparseRaw):
            return not (
                isinstance(before, SparseRaw)
                and isinstance(after, SparseRaw)
                and identical(before.values, after.values)
                and np.array_equal(before.elements, after.elements)
            )
        return after.tobytes() != before.tobytes()


def as_parameter(subject: Subject, view: torch.Tensor) -> torch.Tensor:
    """The tensor that an optimizer is given."""
    if subject.differentiable:
        return view
    takes = subject.takes
    return torch.nn.Parameter(view) if takes is not None and takes.parameters_only else view.requires_grad_()


def give_ones(subject: Subject, parameters: Sequence[torch.Tensor]) -> None:
    """Gradients of ones."""
    for p in parameters:
        ones = torch.ones_like(p).detach()
        p.grad = ones.to_sparse(1) if subject.spec.sparse == "only" else ones


def backward(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """The gradient of this loss by each first tensor is the second, exactly."""
    total: Any = torch.zeros((), dtype=torch.float64)
    for p, g in pairs:
        product = torch.view_as_real(p) * torch.view_as_real(g) if p.is_complex() else p * g
        total = total + product.sum()
    total.backward()
    return torch.as_tensor(total)


#: What :func:`_place` tells.
_PLACE = ("dtype", "shape", "strides", "address")


def _place(p: torch.Tensor) -> tuple[Any, ...]:
    return p.dtype, p.shape, p.stride(), p.data_ptr()
