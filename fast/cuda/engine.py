"""The tables of a step on a CUDA device, or, for the interpreter, on the CPU.

A step reads no number from the device and waits for nothing: counters, scalars, the scale of gradients and whether to skip the step are
the kernels' business. The tables are sent again only where something in them changed: the address of a gradient, an option.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from stepcheck.fast.cuda import kernels, runtime
from stepcheck.fast.cuda.kernels import ADDRESS, ALIGNED, FIRST_PROGRAM, OPTION_WORDS, VALUE, WIDE, N
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.engine import (
    SIZE,
    Dimension,
    Group,
    Member,
    Plan,
    Scaling,
    StateOf,
    byte_strides,
    counter_dtype,
    merged,
    real_shape,
    unscale,
)
from stepcheck.fast.kernels import Layout
from stepcheck.fast.memory import refuse_freed
from stepcheck.fast.rules import ENTRIES, Rule, option
from stepcheck.fast.tensors import Words

#: Why a step cannot be recorded in a CUDA graph.
NOT_CAPTURED = (
    "a CUDA graph is being captured, and the tables for these parameters are not made yet: step once with gradients of the same"
    " parameters before, as torch.cuda.graph asks for"
)
#: Why a second set of tables cannot be recorded: the graph copies them from one place, whenever it runs.
_RECORDED = (
    "a CUDA graph has recorded these tables, and gradients or options are not where they were then: keep them in place"
    " (zero_grad(set_to_none=False)), or step once between two captures"
)
#: Why some gradients cannot be recorded.
_ODD_CAPTURED = (
    "a CUDA graph is being captured: sparse gradients, and lazily conjugated or negated ones, are described to the device anew in"
    " each step; make them dense and plain before"
)


class Table:
    """A table on the device, and what stands in it.

    Attributes:
        words: as it is, or is to be after :meth:`send`.
        there: as it is on the device.
    """

    def __init__(self, words: np.ndarray[Any, Any], device: torch.device) -> None:
        self.words, self.there = words, runtime.uploaded(words, device)
        self._here = torch.from_numpy(words)  # the same memory
        self._recorded = False
        # A graph that is recorded copies from here whenever it runs: what it copies must not change any more.
        self._kept = torch.from_numpy(words.copy()).pin_memory() if device.type == "cuda" and words.size else None

    def send(self) -> None:
        """Make the device's like ``words``."""
        if self._kept is None:
            self.there.copy_(self._here)
        elif runtime.capturing(self.there.device):
            if self._recorded:
                raise RuntimeError(_RECORDED)
            self._recorded = True
            self._kept.copy_(self._here)
            self.there.copy_(self._kept, non_blocking=True)
        else:
            self.there.copy_(self._here.pin_memory(), non_blocking=True)


@dataclass
class _Entries:
    """The entries of a sparse gradient: where each begins in the streams, in elements, and what one consists of."""

    offsets: list[torch.Tensor]  # of each stream (entries,), int64
    dimensions: list[Dimension]


class _Launch:
    """The tables of one launch of a kernel that steps."""

    def __init__(self, layout: Layout, members: Sequence[Member], device: torch.device, *, scattered: bool) -> None:
        self.layout, self._device = layout, device
        make = kernels.scattered_source if scattered else kernels.dense_source
        self._source: Source = make(layout)
        self._first = kernels.SCATTERED_ADDRESSES if scattered else kernels.ADDRESSES
        words = kernels.scattered_words(layout) if scattered else kernels.dense_words(layout)
        rows: Words = np.zeros((len(members), words), np.int64)
        self._kept: list[torch.Tensor] = []
        self._describe(rows, members, scattered=scattered)
        block = kernels.SCATTERED_BLOCK if scattered else kernels.BLOCK[layout.dtype]
        programs = -(-rows[:, N] // block)
        rows[:, FIRST_PROGRAM] = np.cumsum(programs) - programs
        streams = len(layout.streams)
        rows[:, self._first : self._first + streams] = [[t.data_ptr() for t in m.tensors] for m in members]
        own = np.delete(rows[:, self._first : self._first + streams], 1, axis=1)
        self._rest_aligned = (own % kernels.ALIGNMENT == 0).all(axis=1) & (not scattered)
        self._scattered = scattered
        self._gradients = rows[:, self._first + 1].copy()
        self._seen = self._gradients.tobytes()
        self._align(rows)
        self.programs = int(programs.sum())
        self._rows = Table(rows, device)
        row_of_program = np.repeat(np.arange(len(members), dtype=np.int32), programs)
        self._program_rows = runtime.uploaded(row_of_program, device)

    def _align(self, rows: Words) -> None:
        if not self._scattered:
            rows[:, ALIGNED] = self._rest_aligned & (self._gradients & (kernels.ALIGNMENT - 1) == 0)

    def _describe(self, rows: Words, members: Sequence[Member], *, scattered: bool) -> None:
        """Fill in how many elements there are and, where they are scattered, how to find them."""
        tables: list[list[Dimension]] = []
        for row, member in zip(rows, members, strict=True):
            if not scattered:
                row[N] = _elements(member)
                continue
            entries: _Entries | None = member.named
            dimensions = _dimensions(self.layout, member) if entries is None else entries.dimensions
            length = int(np.prod([n for n, _ in dimensions], dtype=np.int64)) if dimensions is not None else 0
            row[N] = length
            tables.append(dimensions or [])
            if entries is not None:
                row[N] = length * len(entries.offsets[0])
                at = self._first + len(self.layout.streams)
                row[at:] = [max(length, 1), *(offset.data_ptr() for offset in entries.offsets)]
                self._kept += entries.offsets
        if scattered:
            words = [[n, *strides] for table in tables for n, strides in reversed(table)]
            width = kernels.dimension_words(self.layout)
            dimension_table = runtime.uploaded(np.array(words, np.int64).reshape(-1, width), self._device)
            self._kept.append(dimension_table)
            counts = np.array([len(table) for table in tables], np.int64)
            rows[:, kernels.DIMENSIONS] = counts
            first = np.cumsum(counts) - counts
            rows[:, kernels.DIMENSION_TABLE] = dimension_table.data_ptr() + 8 * width * first

    def look(self, addresses: Words) -> None:
        """Where the gradients are now."""
        # As bytes: with a hundred of them, a comparison by NumPy takes longer than all the rest.
        seen = addresses.tobytes()
        if seen != self._seen:
            self._seen = seen
            self._gradients[:] = addresses
            self._rows.words[:, self._first + 1] = addresses
            self._align(self._rows.words)
            self._rows.send()

    def run(self, scalars: torch.Tensor, found_inf: torch.Tensor) -> None:
        arguments = (self._program_rows, self._rows.there, scalars, found_inf)
        runtime.launch(self._source, self._device, self.programs, arguments)


class Stepping(Protocol):
    """The launches that step some members, once their scalars are made.

    Args:
        scattered: the streams of none of them lie in memory in one order.
    """

    layout: Layout

    def __init__(self, layout: Layout, members: Sequence[Member], device: torch.device, *, scattered: bool) -> None: ...

    def look(self, addresses: Words) -> None:
        """Where the gradients are now."""

    def run(self, scalars: torch.Tensor, found_inf: torch.Tensor) -> None:
        """One step, unless ``found_inf`` is not 0.

        Args:
            scalars: (members, scalars of the layout), in the format that it computes in.
            found_inf: one float32, on the device.
        """


class _Prepared:
    """Members, in order, the scalars of each, and the launches that step them.

    Args:
        members: by layout, and whether they are scattered.
        stepping: makes the launches of each.
    """

    def __init__(
        self,
        rule: Rule,
        members: Mapping[tuple[Layout, bool], Sequence[Member]],
        device: torch.device,
        stepping: type[Stepping],
        *,
        unscale: bool,
    ) -> None:
        self._device, self._source = device, kernels.prepare_source(rule, unscales=unscale)
        everyone = [m for some in members.values() for m in some]
        table: Words = np.zeros((len(everyone), kernels.member_words(rule)), np.int64)
        for row, member in zip(table, everyone, strict=True):
            row[kernels.GROUP], row[kernels.FRESH] = member.group, member.fresh
            for k, counter in enumerate(member.counters):
                at = kernels.COUNTERS + 2 * k
                row[at : at + 2] = counter.data_ptr(), counter.dtype is torch.float64
        #: Whether the next step is somebody's first, and that matters.
        self.fresh = "fresh" in rule.options and any(m.fresh for m in everyone)
        self.members = runtime.uploaded(table, device)
        self._count = runtime.uploaded(np.array([len(everyone)], np.int64), device)
        scalars = len(rule.scalars) + unscale
        self._scalars = {
            dtype: torch.empty((len(everyone), scalars), dtype=dtype, device=device)
            for dtype in (torch.float32, torch.float64)
        }
        self.launches: list[tuple[Stepping, slice]] = []
        first = 0
        for (layout, scattered), some in members.items():
            part = slice(first, first + len(some))
            self.launches.append((stepping(layout, some, device, scattered=scattered), part))
            first = part.stop
        self._programs = -(-first // kernels.ROWS)
        self._kept = [t for m in everyone for t in (m.tensors[0], *m.tensors[2:], *m.counters)]

    def run(self, options: torch.Tensor, grad_scale: torch.Tensor, found_inf: torch.Tensor) -> None:
        """One step of all of them."""
        narrow, wide = self._scalars[torch.float32], self._scalars[torch.float64]
        arguments = (self.members, options, self._count, narrow, wide, grad_scale, found_inf)
        runtime.launch(self._source, self._device, self._programs, arguments)
        for launch, part in self.launches:
            launch.run((wide if launch.layout.dtype == "float64" else narrow)[part], found_inf)


class DevicePlan(Plan):
    """A plan of parameters on one CUDA device; on the CPU, for Triton's interpreter."""

    #: Makes the launches of a layout.
    _stepping: ClassVar[type[Stepping]] = _Launch

    def _start_options(self) -> None:
        width = OPTION_WORDS * len(self._option_names)
        self._options = Table(np.zeros((len(self._groups), width), np.int64), self._device)
        #: Tensors that have an option, as long as the table has their addresses.
        self._option_tensors: dict[int, list[torch.Tensor]] = {}
        self._ones, self._zeros = (torch.full((1,), x, dtype=torch.float32, device=self._device) for x in (1.0, 0.0))

    def _set_options(self, n: int, group: Group) -> None:
        row, self._option_tensors[n] = option_words(group, self._option_names, self._device)
        if not np.array_equal(self._options.words[n], row):
            self._options.words[n] = row
            self._options.send()

    def _ready(self, layout: Layout) -> None:
        sources = kernels.dense_source(layout), kernels.prepare_source(self._rule, unscales=self.unscale)
        for source in sources:
            runtime.ready(source, self._device)

    def _arrange(self, members: Mapping[Layout, Sequence[Member]]) -> None:
        if runtime.capturing(self._device):
            raise RuntimeError(NOT_CAPTURED)
        sorted_members: dict[tuple[Layout, bool], list[Member]] = {}
        for layout, some in members.items():
            for member in some:
                sorted_members.setdefault((layout, self._scattered(layout, member)), []).append(member)
        self._prepared = _Prepared(self._rule, sorted_members, self._device, self._stepping, unscale=self.unscale)
        self._active += [m.parameter for some in sorted_members.values() for m in some]

    def _scattered(self, layout: Layout, member: Member) -> bool:
        """Whether the launches that are made for members differ by this one's strides."""
        return not _is_dense(layout, member)

    def _look(self, gradients: list[Any]) -> None:
        addresses = self._gradient_addresses.read(gradients)
        refuse_freed(addresses, gradients)
        for launch, part in self._prepared.launches:
            launch.look(addresses[part])

    def _counter(self, value: float, group: Group) -> torch.Tensor:
        return torch.full((), value, dtype=counter_dtype(group), device=self._device)

    def holds(self, groups: list[Group], state: StateOf) -> bool:
        """Whether all that the tables depend on is as it was; those that a graph copies from are no others' to change."""
        captures = runtime.capturing(self._device)
        if self.captured and not captures:
            return False
        self.captured |= captures
        return super().holds(groups, state)

    def step(self, scaling: Scaling) -> None:
        if self._odd and runtime.capturing(self._device):
            raise RuntimeError(_ODD_CAPTURED)
        grad_scale, found_inf = self._scale(scaling.grad_scale, self._ones), self._scale(scaling.found_inf, self._zeros)
        if self._active:
            self._prepared.run(self._options.there, grad_scale, found_inf)
            torch.autograd.graph.increment_version(self._active)
            self._begun(self._prepared, self._active, scaling)
        if self._odd:
            self._step_odd(scaling, grad_scale, found_inf)

    def _scale(self, given: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
        return otherwise if given is None else given.to(self._device, torch.float32, non_blocking=True)

    def _step_odd(self, scaling: Scaling, grad_scale: torch.Tensor, found_inf: torch.Tensor) -> None:
        """The gradients that have to be made something else first: sparse, lazily conjugate or negative, placed elsewhere."""
        if self.unscale:
            factor = unscaling(grad_scale, found_inf)
            for p, _ in self._odd:
                unscale(p, factor)
        before = [[self._state[p].get(name) for name in self._rule.counters] for p, _ in self._odd]
        members: dict[tuple[Layout, bool], list[Member]] = {}
        for p, n in self._odd:
            layout, member, sparse = self._odd_member(p, n)
            if sparse is not None:
                member.named = _named(layout, member, sparse)
                layout = replace(layout, indexed=True)
            members.setdefault((layout, sparse is not None or self._scattered(layout, member)), []).append(member)
        prepared = _Prepared(self._rule, members, self._device, self._stepping, unscale=False)
        prepared.run(self._options.there, grad_scale, found_inf)
        self._begun(prepared, [m.parameter for some in members.values() for m in some], scaling)
        if self._rule.whole:
            self._count_in_whole_numbers(before, skipped=scaling.skips)
        torch.autograd.graph.increment_version([p for p, _ in self._odd])

    def _count_in_whole_numbers(self, before: list[list[Any]], *, skipped: bool) -> None:
        """Put the counters back as the numbers that they are in the state of this rule, without asking the device for them."""
        for (p, _), counts in zip(self._odd, before, strict=True):
            for name, count in zip(self._rule.counters, counts, strict=True):
                self._state[p][name] = int(count or 0) + (not skipped)

    def _begun(self, prepared: _Prepared, parameters: list[torch.Tensor], scaling: Scaling) -> None:
        """After a first step: buffers that nobody can tell from begun ones are taken back if the device skipped it.

        This asks the device, once for each parameter, and only where a rule depends on whether a step is the first.
        """
        if prepared.fresh and scaling.found_inf is not None:
            for p, fresh in zip(parameters, prepared.members[:, kernels.FRESH].tolist(), strict=True):
                for name in self._rule.buffers if fresh else ():
                    del self._state[p][name]
        prepared.fresh = False


def option_words(group: Group, names: Sequence[str], device: torch.device) -> tuple[Words, list[torch.Tensor]]:
    """The row of a table that tells a kernel these options, and the tensors on the device that it points to."""
    row: Words = np.zeros((len(names), OPTION_WORDS), np.int64)
    tensors = []
    for k, name in enumerate(names):
        tensor = _option_tensor(group, name)
        if tensor is None or tensor.device != device:
            # Of a tensor elsewhere, usually on the CPU, its value as of now.
            row[k, VALUE] = np.float64(option(group, name)).view(np.int64)
            continue
        if tensor.dtype not in (torch.float32, torch.float64):
            tensor = tensor.to(torch.float64)
        row[k, ADDRESS], row[k, WIDE] = tensor.data_ptr(), tensor.dtype is torch.float64
        tensors.append(tensor)
    return row.reshape(-1), tensors


def _option_tensor(group: Group, name: str) -> torch.Tensor | None:
    key, entry = ENTRIES.get(name, (name, None))
    value = group.get(key)
    value = value[entry] if entry is not None and value is not None else value
    return value if isinstance(value, torch.Tensor) else None


def unscaling(grad_scale: torch.Tensor, found_inf: torch.Tensor) -> torch.Tensor:
    """What to multiply gradients by, as a number on the device: 1 where the step is to be skipped."""
    return torch.where(found_inf == 0, 1.0 / grad_scale.double(), 1.0).reshape(())


def _elements(member: Member) -> int:
    p = member.tensors[0]
    return p.numel() * (2 if p.is_complex() else 1)


def _real_strides(layout: Layout, member: Member) -> list[tuple[int, ...]]:
    """Of each stream, in elements of its real format."""
    sizes = [SIZE[layout.stored(s)] for s in layout.streams]
    return [tuple(stride // size for stride in byte_strides(t)) for t, size in zip(member.tensors, sizes, strict=True)]


def _dimensions(layout: Layout, member: Member) -> list[Dimension] | None:
    return merged(real_shape(member.tensors[0]), _real_strides(layout, member))


def _is_dense(layout: Layout, member: Member) -> bool:
    """Whether all streams lie in memory in the same order, without gaps."""
    dimensions = _dimensions(layout, member)
    return not dimensions or (len(dimensions) == 1 and set(dimensions[0][1]) == {1})


def _named(layout: Layout, member: Member, gradient: torch.Tensor) -> _Entries:
    """The elements that a coalesced sparse gradient names: in the parameter, the values and the buffers."""
    depth, indices = gradient.sparse_dim(), gradient._indices()  # noqa: SLF001 - with no autograd to go through
    strides = _real_strides(layout, member)
    offsets = []
    for stream, of_stream in zip(layout.streams, strides, strict=True):
        if stream == "g":
            offsets.append(torch.arange(indices.shape[1], device=indices.device) * of_stream[0])
        else:
            offsets.append(sum((indices[d] * of_stream[d] for d in range(depth)), torch.zeros_like(indices[0])))
    inner = [s[1:] if stream == "g" else s[depth:] for stream, s in zip(layout.streams, strides, strict=True)]
    # The parameter leads, as everywhere.
    dimensions = merged(real_shape(member.tensors[0])[depth:], inner)
    if dimensions is None:
        return _Entries([o[:0] for o in offsets], [])
    return _Entries(offsets, dimensions)
