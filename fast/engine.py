"""From the parameters of an optimizer to the tables of a few launches, and from step to step; here and on the CPU.

A :class:`Plan` is made when something changed that the tables depend on: which parameters have gradients, of which layout, where
parameters and state are. As long as nothing did, a step reads the options of the groups and the addresses of the gradients, and runs one
launch for each :class:`.kernels.Layout`.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.fast import kernels, native, shards
from stepcheck.fast.kernels import Layout
from stepcheck.fast.memory import broken, counted, is_read, misnamed, refuse_freed, unfit
from stepcheck.fast.rules import ENTRIES, Rule, option
from stepcheck.fast.shards import alike, is_sharded, local
from stepcheck.fast.sparse import Named, SparseSteps
from stepcheck.fast.tensors import Addresses, Looks, Watch, Words

#: Elements of a chunk at most: a few streams of as many fit into a second-level cache.
CHUNK = 1 << 13
#: Elements that a thread takes at a time, about.
BATCH = 1 << 15
#: Elements from which on more threads than one take part: waking one costs some microseconds.
SPREAD = 1 << 15

#: The real format that a dtype is stored in; a complex element is two of them.
REAL: dict[torch.dtype, str] = {
    torch.float16: "float16",
    torch.bfloat16: "bfloat16",
    torch.float32: "float32",
    torch.float64: "float64",
    torch.complex64: "float32",
    torch.complex128: "float64",
}
SIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
Group = dict[str, Any]
State = dict[str, Any]
StateOf = dict[torch.Tensor, State]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """What ``GradScaler`` sets for the time of a step.

    Attributes:
        grad_scale: what the gradients were multiplied by, if they still are; one float32.
        found_inf: not 0 if one of them is infinite, and nothing is to be stepped; one float32.
    """

    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None

    @property
    def skips(self) -> bool:
        """Whether nothing is to be stepped. Of a tensor on another device, this waits for it."""
        return self.found_inf is not None and bool(self.found_inf.item())

    @property
    def factor(self) -> float:
        """What to multiply gradients by. Of a tensor on another device, this waits for it."""
        return 1.0 if self.grad_scale is None else 1.0 / self.grad_scale.item()


class Served(NamedTuple):
    """Who steps the parameters of a group, and why."""

    engine: str
    reason: str


#: Options that only torch's own code can honour.
_TORCH_ALONE = ("differentiable", "capturable")


def torch_alone(group: Group) -> str:
    """Which option asks for torch's own code, or nothing."""
    if group.get("differentiable"):
        return "differentiable=True: the step is to be part of an autograd graph"
    if group.get("capturable") and any(p.device.type == "cpu" for p in group["params"]):
        return "capturable=True: made for graphs of other devices; torch decides whether it takes it on the CPU"
    return ""


def refusal(rule: Rule, group: Group, state: Mapping[torch.Tensor, State], *, interpreted: bool) -> str:
    """Why kernels do not step this group, or nothing."""
    reason, present = torch_alone(group), rule.present(group)
    for p in group["params"]:
        own = state.get(p, {})
        reason = reason or exotic(p, interpreted=interpreted, sharded=True)
        reason = reason or foreign(rule.counters, rule.streams(present, REAL.get(p.dtype, "")), p, own)
    return reason


def engine_of(devices: Iterable[torch.device], *, interpreted: bool) -> str:
    """Whose kernels step parameters on these devices."""
    names = {"llvm" if device.type == "cpu" and not interpreted else "triton" for device in devices}
    return " and ".join(sorted(names)) or "llvm"


def foreign(numbers: Iterable[str], buffers: Iterable[str], p: torch.Tensor, state: State) -> str:
    """Why kernels do not read the numbers and the buffers of these names in the state of a parameter, or nothing."""
    for name in numbers:
        if is_sharded(state.get(name)):
            return f"{name} in the state is a DTensor"
    for name in buffers:
        buffer = state.get(name)
        if buffer is None:
            continue
        if not alike(p, buffer):
            return f"{name} in the state is not placed as its parameter is"
        own, buffer = local(p), local(buffer)
        if not isinstance(buffer, torch.Tensor) or buffer.layout is not torch.strided or buffer.device != p.device:
            return f"{name} in the state is no dense tensor beside its parameter"
        if buffer.dtype != p.dtype or buffer.shape != own.shape:
            return f"{name} in the state is {tuple(buffer.shape)} of {buffer.dtype}, its parameter {tuple(own.shape)} of {p.dtype}"
        if overlaps(buffer):
            return f"elements of {name} in the state share memory"
        if buffer.is_conj() or buffer.is_neg():
            return f"{name} in the state is a lazy conjugate or negative of another tensor"
    return ""


_GRADIENT_LAYOUTS = (torch.strided, torch.sparse_coo)


def exotic(p: torch.Tensor, *, interpreted: bool = False, sharded: bool = False) -> str:
    """Why kernels do not step this parameter, or nothing.

    Args:
        interpreted: kernels for CUDA are run by Triton's interpreter where a parameter is on the CPU.
        sharded: of a DTensor they step what is on this rank.
    """
    g = p.grad
    if sharded and is_sharded(p):
        if g is not None and alike(p, g) and local(g).shape != local(p).shape:
            return "a gradient and its parameter are placed alike, yet differ in what is on this rank"
        p, g = local(p), local(g)
    if type(p) not in (torch.Tensor, torch.nn.Parameter):
        return f"a parameter is a {type(p).__name__}, whose memory is its own business"
    if native.unavailable():
        return native.unavailable()  # wherever a parameter is: what watches tensors is compiled for the CPU
    if interpreted or p.device.type != "cpu":
        from stepcheck.fast.cuda.runtime import unavailable  # where nothing is on a GPU, nobody needs it

        reason = unavailable(p.device)
        if reason:
            return f"a parameter is on {p.device}: {reason}"
    return _exotic_memory(p, g)


def _exotic_memory(p: torch.Tensor, g: torch.Tensor | None) -> str:
    if p.layout is not torch.strided:
        return f"a parameter has the layout {p.layout}"
    if p.dtype not in REAL:
        return f"a parameter is of {p.dtype}"
    if g is not None and (type(g) not in (torch.Tensor, torch.nn.Parameter) or g.layout not in _GRADIENT_LAYOUTS):
        return f"a gradient is a {type(g).__name__} of layout {g.layout}"
    if p.is_conj() or p.is_neg():
        return "a parameter is a lazy conjugate or negative of another tensor"
    return "elements of a parameter share memory" if overlaps(p) else ""


def overlaps(tensor: torch.Tensor) -> bool:
    """Whether elements share memory, as those of an expanded tensor do."""
    if tensor.is_contiguous():
        return False
    dims = sorted((s, n) for n, s in zip(tensor.shape, tensor.stride(), strict=True) if n > 1)
    reach = 0
    for stride, n in dims:
        if stride <= reach:
            return tensor.numel() > 0
        reach += stride * (n - 1)
    return False


# --- One launch


@dataclass(slots=True)
class Member:
    """A parameter in a launch: its tensors on this rank in the order of the streams, its counters, its group."""

    parameter: torch.Tensor
    tensors: Sequence[torch.Tensor]
    counters: Sequence[torch.Tensor]
    group: int
    fresh: bool = False
    #: Of a sparse gradient: the elements that it names, as the tables of a device describe them.
    named: Any = None


class _Walk(NamedTuple):
    """Runs of elements of one length: where they start in each stream, and how far apart their elements are, in bytes.

    From each start there are so many runs, a stride apart.
    """

    length: int
    distances: tuple[int, ...]
    starts: Words  # (starts, streams)
    runs: int
    strides: tuple[int, ...]


class _Entries(NamedTuple):
    """The entries of a sparse gradient: each is one run, and there is one index for each."""

    indices: torch.Tensor  # (entries,), int64
    length: int
    distances: tuple[int, ...]
    strides: tuple[int, ...]  # from index to index, of the gradient from entry to entry; bytes


Dimension = tuple[int, list[int]]


def merged(shape: Sequence[int], strides: Sequence[Sequence[int]]) -> list[Dimension] | None:
    """The fewest dimensions that pass all elements of tensors of one shape, each with its distance in each of them; outermost first.

    ``None`` where there is no element.
    """
    dims = [(n, s) for n, *s in zip(shape, *strides, strict=True) if n != 1]
    if any(n == 0 for n, _ in dims):
        return None
    # As the first stream, the parameter, lies in memory; then neighbours that continue each other become one.
    dims.sort(key=lambda dim: -abs(dim[1][0]))
    found: list[Dimension] = []
    for n, s in dims:
        if found and all(outer == inner * n for outer, inner in zip(found[-1][1], s, strict=True)):
            found[-1] = (found[-1][0] * n, s)
        else:
            found.append((n, s))
    return found


def walk(shape: Sequence[int], strides: Sequence[Sequence[int]], *, nested: bool = False) -> _Walk:
    """The fewest runs that pass all elements of tensors of one shape, given the strides of each, all in bytes.

    Args:
        nested: the longest dimension of runs needs no table of starts.
    """
    dims = merged(shape, strides)
    nothing = tuple(0 for _ in strides)
    if dims is None:
        return _Walk(0, nothing, np.zeros((0, len(strides)), np.int64), 1, nothing)
    length, distances = dims.pop() if dims else (1, nothing)
    runs, apart = dims.pop(max(range(len(dims)), key=lambda d: dims[d][0])) if nested and dims else (1, nothing)
    starts = np.zeros((1, len(strides)), np.int64)
    for n, s in dims:
        steps = np.arange(n, dtype=np.int64)[:, None] * np.array(s, np.int64)
        starts = (starts[:, None] + steps[None]).reshape(-1, len(strides))
    return _Walk(length, tuple(distances), starts, runs, tuple(apart))


def byte_strides(tensor: torch.Tensor) -> tuple[int, ...]:
    """Strides in bytes, of real elements: a complex tensor has a further dimension of two."""
    size = tensor.element_size()
    inner = (size // 2,) if tensor.is_complex() else ()
    return (*(s * size for s in tensor.stride()), *inner)


def real_shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return (*tensor.shape, *((2,) if tensor.is_complex() else ()))


def _pieces(row: int, way: _Walk, streams: int) -> Words:
    """The chunks of a parameter: its runs, cut to length, as many together as make one."""
    if not way.length or not len(way.starts):
        return np.zeros((0, Layout.OFFSETS + streams), np.int64)
    if way.length * way.runs <= CHUNK and len(way.starts) == 1:
        return np.array([[row, way.length, way.runs, *way.starts[0].tolist()]], np.int64)
    first = np.arange(0, way.length, CHUNK, dtype=np.int64)
    first_run = np.arange(0, way.runs, max(1, CHUNK // way.length), dtype=np.int64)
    # What lies side by side in memory is stepped one after the other: all starts of a few runs before the next runs.
    runs = first_run[:, None, None, None] * np.array(way.strides, np.int64)
    offsets = runs + way.starts[:, None] + (first[:, None] * np.array(way.distances, np.int64))
    table = np.empty((*offsets.shape[:3], Layout.OFFSETS + streams), np.int64)
    table[..., Layout.ROW] = row
    table[..., Layout.COUNT] = np.minimum(CHUNK, way.length - first)
    table[..., Layout.RUNS] = np.diff(first_run, append=way.runs)[:, None, None]
    table[..., Layout.OFFSETS :] = offsets
    return table.reshape(-1, Layout.OFFSETS + streams)


def _portions(row: int, count: int, length: int) -> Words:
    """The chunks of so many entries of this length, as many each as make a batch."""
    first = np.arange(0, count, max(1, BATCH // max(1, length)), dtype=np.int64)
    ends = np.append(first[1:], count)[: len(first)]
    return np.stack([np.full(len(first), row, np.int64), first, ends], axis=1)


class Launch:
    """The tables of one launch, and the kernels that it runs.

    Nothing is allocated when it is run. It holds the tensors of parameters and state, not the gradients: those belong to the
    caller, who may free them.
    """

    def __init__(self, layout: Layout, members: Sequence[Member], options: Floats) -> None:
        self.layout = layout
        self._prepare, self._step = kernels.prepare_kernel(layout), kernels.step_kernel(layout)
        self._sizes, self._streams = tuple(SIZE[layout.stored(s)] for s in layout.streams), len(layout.streams)
        self.scalars = np.zeros((len(members), len(layout.scalars)), np.float64)
        self.rows: Words = np.empty((len(members), layout.row_words), np.int64)
        chunks = []
        for r, member in enumerate(members):
            way = member.named or self._walk(member.tensors)
            self.rows[r] = self._row(member, way)
            if isinstance(way, _Entries):
                chunks.append(_portions(r, len(way.indices), way.length))
            else:
                chunks.append(_pieces(r, way, self._streams))
        self._words: Words = np.zeros(kernels.WORDS, np.int64)
        #: As many as are to share the work; 0: as many as are worth it.
        self.threads = 0
        self._cut(chunks)
        self._words[kernels.ROW_TABLE] = self.rows.ctypes.data
        self._words[kernels.SCALAR_TABLE] = self.scalars.ctypes.data
        self._words[kernels.ROWS] = len(members)
        self._words[kernels.OPTION_TABLE] = options.ctypes.data
        self._at = self._words.ctypes.data
        self._kept = (
            options,
            [m.named for m in members],
            [t for m in members for t in (m.tensors[0], *m.tensors[2:], *m.counters)],
        )
        self.gradients, self.idle = self.rows[:, layout.address(1)], self.rows[:, Layout.IDLE]

    def _walk(self, tensors: Sequence[torch.Tensor]) -> _Walk:
        if not all(t.is_contiguous() for t in tensors):
            return walk(real_shape(tensors[0]), [byte_strides(t) for t in tensors], nested=True)
        length = tensors[0].numel() * (2 if tensors[0].is_complex() else 1)
        return _Walk(length, self._sizes, np.zeros((1, self._streams), np.int64), 1, (0,) * self._streams)

    def _row(self, member: Member, way: _Walk | _Entries) -> list[int]:
        """In the order of the columns of the layout."""
        strided = way.length > 1 and way.distances != self._sizes
        counters = (word for t in member.counters for word in (t.data_ptr(), t.dtype is torch.float64))
        indices = (way.indices.data_ptr(), way.length) if isinstance(way, _Entries) else ()
        addresses = [t.data_ptr() for t in member.tensors]
        return [strided, member.group, member.fresh, 0, *addresses, *way.distances, *counters, *way.strides, *indices]

    def _cut(self, chunks: Sequence[Words]) -> None:
        """Set the tables of chunks and batches."""
        self._chunks = np.ascontiguousarray(np.concatenate(chunks)) if chunks else np.zeros((0, 0), np.int64)
        counts = np.zeros(0, np.int64)
        if self.layout.indexed and len(self._chunks):
            lengths = self.rows[self._chunks[:, Layout.ROW], self.layout.indices + 1]
            counts = (self._chunks[:, Layout.END_ENTRY] - self._chunks[:, Layout.FIRST_ENTRY]) * lengths
        elif len(self._chunks):
            counts = self._chunks[:, Layout.COUNT] * self._chunks[:, Layout.RUNS]
        self.elements = int(counts.sum())
        self._batches = _batches(counts)
        self._words[kernels.BATCHES] = len(self._batches) - 1
        self._words[kernels.BATCH_TABLE] = self._batches.ctypes.data
        self._words[kernels.CHUNK_TABLE] = self._chunks.ctypes.data

    def name(self, entries: Sequence[tuple[torch.Tensor, torch.Tensor]], *, in_order: bool) -> None:
        """Step other entries: of each row its indices and its values, as many as those.

        Args:
            entries: (1, n) of int64, and (n, ...) like the values before; they must live until the next run is over.
            in_order: one thread does all of them.
        """
        rows, column, gradients, counts, elements = self.rows, self.layout.indices, self.gradients, [], 0
        for r, (indices, values) in enumerate(entries):
            rows[r, column], gradients[r] = indices.data_ptr(), values.data_ptr()
            counts.append(indices.shape[1])
            elements += counts[r] * rows.item(r, column + 1)
        # Where one thread does it, all is one batch: to cut it takes longer than to step a few thousand elements.
        self.threads = 1 if in_order or elements < 4 * SPREAD else 0
        if not self.threads:
            self._cut([_portions(r, n, rows.item(r, column + 1)) for r, n in enumerate(counts)])
            return
        if len(self._chunks) != len(counts) or len(self._batches) != 2:
            self._cut([np.array([[r, 0, 0]], np.int64) for r in range(len(counts))])
            self._batches = np.array([0, len(counts)], np.int64)
            self._words[kernels.BATCHES], self._words[kernels.BATCH_TABLE] = 1, self._batches.ctypes.data
        self.elements = elements
        for r, n in enumerate(counts):
            self._chunks[r, Layout.FIRST_ENTRY], self._chunks[r, Layout.END_ENTRY] = 0, n

    def run(self) -> None:
        """One step of all its parameters."""
        self._words[kernels.NEXT] = 0
        self._prepare.run(self._at)
        most = min(torch.get_num_threads(), len(self._batches) - 1) if self.elements >= SPREAD else 1
        native.run(self._step, self._at, self.threads or most)


def _batches(counts: Words) -> Words:
    """Where each batch of chunks begins, and the end of the last."""
    if not len(counts):
        return np.zeros(1, np.int64)
    before = np.cumsum(counts) - counts
    first = np.flatnonzero(np.diff(before // BATCH, prepend=-1))
    return np.append(first, len(counts)).astype(np.int64)


# --- All launches of a step


class Standing:
    """What tables depend on beside options: groups, parameters, state and gradients, and whether they still stand as they stood.

    It holds parameters and state; of gradients it remembers what they looked like.

    Args:
        groups: whose parameters are stepped.
        state: the optimizer's.
        active: the parameters that have gradients which the tables are made for, or spares in their place.
        idle: those that have none.
        entries: dictionaries of the state and the keys of the tensors in them that the tables point to.
        gradients: of the active ones, where some may have none from step to step; ``None``: all of them have theirs.
    """

    def __init__(
        self,
        groups: list[Group],
        state: StateOf,
        active: list[torch.Tensor],
        idle: list[torch.Tensor],
        entries: Iterable[tuple[State, str]],
        gradients: Sequence[torch.Tensor] | None = None,
    ) -> None:
        self._groups, self._state, self._active, self._idle = groups, state, active, idle
        found = [(of_parameter, key, of_parameter[key]) for of_parameter, key in entries]
        tensors = [tensor for *_, tensor in found]
        # A number of no dimension cannot be turned or cut; whatever else is done to it moves it. Not a list: it would be copied at each call.
        self._beside = (*map(local, active), *(t for t in map(local, tensors) if t.dim()))
        known = [local(p.grad) for p in active if p.grad is not None] if gradients is None else gradients
        self._gradient_looks = Looks(known)
        forms: dict[Any, Any] = {}  # many have the same
        made = ((g.shape, g.stride(), g.dtype, g.device) for g in known) if gradients is not None else ()
        self._forms = [forms.setdefault(form, form) for form in made]
        #: Whether each active parameter has no gradient now; ``None``: all of them have.
        self.absent: npt.NDArray[np.bool_] | None = None
        if any(p.grad is None for p in active):
            self.absent = np.array([p.grad is None for p in active])
        self._looks = Looks(self._beside)
        held = [*active, *tensors]
        self._sharded = [tensor for tensor in held if is_sharded(tensor)]
        self._watch = Watch(self._lists(groups), found, list(map(local, held)))

    def _lists(self, groups: list[Group]) -> list[list[Any]]:
        """What must be the very objects that it was."""
        lists = [*(group["params"] for group in groups), list(self._state.values())]
        if self._sharded:
            lists.append(shards.parts(self._sharded))
        return lists

    def gradients(self, groups: list[Group], state: StateOf) -> list[Any] | None:
        """The gradients of the active parameters, of DTensors what is on this rank, if nothing has changed but where they are."""
        if state is not self._state:
            return None
        if len(groups) != len(self._groups) or not all(map(operator.is_, groups, self._groups)):
            return None
        if not self._watch.same(*self._lists(groups)):
            return None
        if self._idle and any(p.grad is not None for p in self._idle):
            return None
        self.absent = None
        if not self._active:
            return []
        gradients: list[Any] = [p.grad for p in self._active]
        if self._sharded:
            if not all(map(alike, self._active, gradients)):
                return None
            gradients = list(map(local, gradients))
        if not self._looks.same(self._beside):
            return None
        return gradients if self._gradient_looks.same(gradients) else self._with_spares(gradients)

    def _with_spares(self, gradients: list[Any]) -> list[Any] | None:
        """The gradients, with spares where there are none, if all others look as they did."""
        absent = np.fromiter(map(operator.is_, gradients, itertools.repeat(None)), np.bool_, len(gradients))
        if not self._forms or not absent.any():
            return None
        self.absent = absent
        gradients = [spare if g is None else g for g, spare in zip(gradients, self._spares, strict=True)]
        return gradients if self._gradient_looks.same(gradients) else None

    @functools.cached_property
    def _places(self) -> dict[int, int]:
        return {id(p): i for i, p in enumerate(self._active)} if self._forms else {}

    def spare(self, p: torch.Tensor) -> torch.Tensor | None:
        """A tensor that looks as the gradient of a parameter last did, and has no memory; ``None`` if that never had one, or is another."""
        i = self._places.get(id(p))
        if i is None:
            return None
        spare = self._spares[i]
        return spare if (spare.shape, spare.dtype, spare.device) == (p.shape, p.dtype, p.device) else None

    @functools.cached_property
    def _spares(self) -> list[torch.Tensor]:
        spares = []
        for shape, strides, dtype, device in self._forms:
            spares.append(torch.empty_strided(shape, strides, dtype=dtype, device=device))
            spares[-1].untyped_storage().resize_(0)
        return spares


class Plan:
    """What a step of some groups by one rule consists of, on one device.

    Args:
        rule: of the optimizer.
        groups: those that the kernels serve.
        state: the optimizer's; what a parameter with a gradient lacks in it is made here.
        device: of the parameters that this is about.
        unscale: whether gradients are to be multiplied by a number first, and left so.
        former: the plan before this one. Parameters that it has, and that have no gradient now, may have one again: they keep their place.
    """

    #: Whether steps may leave out parameters that the tables have.
    _leaves_out: ClassVar[bool] = False

    def __init__(
        self,
        rule: Rule,
        groups: list[Group],
        state: StateOf,
        device: torch.device,
        *,
        unscale: bool,
        former: Plan | None = None,
    ) -> None:
        self.unscale = unscale
        #: Whether a CUDA graph has recorded a step, and reads the tables whenever it is replayed.
        self.captured = False
        self._rule, self._groups, self._state, self._device = rule, groups, state, device
        self._option_names = rule.of_group
        self._readers = [_reader(rule, group) for group in groups]
        self._values: list[Any] = [None] * len(groups)
        self._present = [rule.present(group) for group in groups]
        self._odd: list[tuple[torch.Tensor, int]] = []
        self._layouts: dict[tuple[str, tuple[str, ...]], Layout] = {}
        self._start_options()
        self._read_options()

        self._idle: list[torch.Tensor] = []
        plain: dict[Layout, list[tuple[torch.Tensor, int]]] = {}
        spares: dict[torch.Tensor, torch.Tensor] = {}
        for n, group in enumerate(groups):
            for p in group["params"]:
                if p.device != device:
                    continue
                if p.grad is None:
                    spare = former.spare(p) if former is not None and self._has_state(p, n) else None
                    if spare is None:
                        self._idle.append(p)
                        continue
                    spares[p] = spare
                if p.grad is not None and _is_odd(p):
                    self._odd.append((p, n))
                    state[p]  # there from now on, or its coming would be a change
                else:
                    plain.setdefault(self._layout(p, n), []).append((p, n))
        for layout in plain:
            # To compile takes long and may be interrupted: before there is state, which would not be fresh the next time.
            self._ready(layout)
        members = {
            layout: [self._member(layout, p, n, spares.get(p, p.grad)) for p, n in parameters]
            for layout, parameters in plain.items()
        }
        self._oddities = [(p.grad.layout, p.dtype) for p, _ in self._odd if p.grad is not None]
        #: In the order in which :meth:`_look` wants their gradients.
        self._active: list[torch.Tensor] = []
        self._arrange(members)
        self._gradient_addresses = Addresses(len(self._active))
        gradients = [local(spares.get(p, p.grad)) for p in self._active] if self._leaves_out else None
        entries = self._entries(members)
        self._standing = Standing(groups, state, self._active, self._idle, entries, gradients)
        if gradients:
            self._look(gradients)

    def spare(self, p: torch.Tensor) -> torch.Tensor | None:
        """What stands for the gradient of a parameter of this plan that has none."""
        return self._standing.spare(p)

    def _has_state(self, p: torch.Tensor, n: int) -> bool:
        """Whether a parameter has all the state that a step needs."""
        state = self._state.get(p, {})
        return all(state.get(name) is not None for name in (*self._rule.counters, *self._layout(p, n).buffers))

    def _entries(self, members: Mapping[Layout, Sequence[Member]]) -> Iterator[tuple[State, str]]:
        """Where in the state the tensors are that the tables point to."""
        for layout, of_layout in members.items():
            for state in (self._state[m.parameter] for m in of_layout):
                yield from ((state, key) for key in (*self._rule.counters, *layout.buffers))

    # What each device does in its own way

    def _start_options(self) -> None:
        """Make a table for the options of all groups."""
        raise NotImplementedError

    def _set_options(self, n: int, group: Group) -> None:
        """Fill in the options of group ``n``."""
        raise NotImplementedError

    def _ready(self, layout: Layout) -> None:
        """Compile or load the kernels of a layout."""
        raise NotImplementedError

    def _arrange(self, members: Mapping[Layout, Sequence[Member]]) -> None:
        """Make the tables, and put the parameters in ``_active``."""
        raise NotImplementedError

    def _look(self, gradients: list[Any]) -> None:
        """Where the gradients of the active parameters are now."""
        raise NotImplementedError

    def _counter(self, value: float, group: Group) -> torch.Tensor:
        """A number of the state, beside its parameter, which is in this group."""
        raise NotImplementedError

    def step(self, scaling: Scaling) -> None:
        """Step all parameters that had gradients when last looked; those are unscaled first if the plan unscales."""
        raise NotImplementedError

    # From step to step

    def suits(self, scaling: Scaling) -> bool:
        """Whether it is made for gradients that are scaled, or not, as these."""
        return self.unscale is (scaling.grad_scale is not None)

    def holds(self, groups: list[Group], state: StateOf) -> bool:
        """Whether all that the tables depend on is as it was. Takes note of options and gradients on the way."""
        gradients = self._standing.gradients(groups, state)
        if gradients is None:
            return False
        if self._odd and not self._odd_stay():
            return False
        if not self._read_options():
            return False
        if gradients:
            self._look(gradients)
        return True

    def _odd_stay(self) -> bool:
        """Whether those whose gradients are made something else first can be stepped as they were in the step before."""
        return all(self._stays_odd(*odd, *was) for odd, was in zip(self._odd, self._oddities, strict=True))

    def _stays_odd(self, p: torch.Tensor, n: int, layout: torch.layout, dtype: torch.dtype) -> bool:
        """Whether a parameter whose gradient is made something else first can be stepped as it was in the step before."""
        if p.grad is None or exotic(p, sharded=True) or not _is_odd(p) or unfit(p, p.grad):
            return False
        gradient = local(p.grad)
        if (gradient.layout, gradient.dtype) != (layout, dtype) or (gradient.is_sparse and misnamed(gradient)):
            return False
        state, numbers, buffers = self._state[p], tuple(self._rule.counters), self._layout(p, n).buffers
        return not broken(state, numbers, buffers) and not foreign(numbers, buffers, p, state)

    def _read_options(self) -> bool:
        """Fill the table of options; whether they still ask for the same kernels."""
        for n, (group, read) in enumerate(zip(self._groups, self._readers, strict=True)):
            values = read(group)
            # By identity: a number may equal a tensor of float32 that is another number.
            if self._values[n] is None or not all(map(operator.is_, values, self._values[n])):
                if self._rule.present(group) != self._present[n] or torch_alone(group):
                    return False
                if self._odd and self._rule.dense_alone(group):
                    return False  # sparse gradients, perhaps, which these options refuse
                self._set_options(n, group)
                self._values[n] = values if all(map(is_fixed, values)) else None
        return True

    # Making it

    def _layout(self, p: torch.Tensor, n: int) -> Layout:
        real, present = REAL[p.dtype], self._present[n]
        found = self._layouts.get((real, present))
        if found is None:
            found = Layout(self._rule, real, self._rule.streams(present, real), self.unscale)
            self._layouts[real, present] = found
        return found

    def _member(self, layout: Layout, p: torch.Tensor, n: int, gradient: Any) -> Member:
        group, state = self._groups[n], self._state[p]
        fresh = any(state.get(name) is None for name in layout.buffers if name not in layout.carried)
        for name in layout.buffers:
            if state.get(name) is None:
                state[name] = full_like(p, self._rule.initial(name, group))
        for name, initial in self._rule.counters.items():
            there = state.get(name)
            if not isinstance(there, torch.Tensor):
                value = state.get(name, initial(group))
                made = self._counter(value, group)
                # Whole numbers count beyond 2^24.
                state[name] = made.double().fill_(value) if self._rule.whole else made
            elif not is_read(there, p):
                state[name] = counted(there, p.device)
        tensors = [local(t) for t in (p, gradient, *(state[name] for name in layout.buffers))]
        counters = [state[name] for name in self._rule.counters]
        return Member(p, tensors, counters, n, fresh=fresh)

    def _odd_member(self, p: torch.Tensor, n: int) -> tuple[Layout, Member, torch.Tensor | None]:
        """A member whose gradient is made something else first, and, if that is sparse, what it is: coalesced."""
        gradient = shards.placed_as(p.grad, p)
        layout = replace(self._layout(p, n), unscales=False)
        if not gradient.is_sparse:
            return layout, self._member(layout, p, n, gradient.resolve_conj().resolve_neg()), None
        if SIZE[layout.dtype] < SIZE["float32"] and not gradient.is_coalesced():
            # Entries of one element are added up, and that must not round to the narrow format.
            gradient, layout = gradient.to(torch.float32), replace(layout, gradient="float32")
        gradient = gradient.coalesce()
        return layout, self._member(layout, p, n, gradient._values()), gradient  # noqa: SLF001 - with no autograd to go through


class _Rows(Protocol):
    """Tables on the CPU: of each row, where its gradient is, and whether it is passed over."""

    gradients: Words
    idle: Words


class Passing:
    """Launches on the CPU, whose rows are passed over as long as their parameters have no gradient.

    Attributes:
        stepped: the parameters that have one now.
    """

    _standing: Standing
    _gradient_addresses: Addresses
    _active: list[torch.Tensor]
    _launches: Sequence[tuple[_Rows, slice]]
    _left_out = False
    stepped: Sequence[torch.Tensor] = ()

    def _look(self, gradients: list[Any]) -> None:
        """Where the gradients of the active parameters are now."""
        addresses, absent = self._gradient_addresses.read(gradients), self._standing.absent
        refuse_freed(addresses, gradients, absent)
        for launch, part in self._launches:
            launch.gradients[:] = addresses[part]
            if absent is not None or self._left_out:
                launch.idle[:] = 0 if absent is None else absent[part]
        self._left_out = absent is not None
        self.stepped = self._active if absent is None else list(itertools.compress(self._active, ~absent))


class HostPlan(Passing, Plan):
    """A plan of parameters on the CPU, whose kernels LLVM has compiled."""

    _leaves_out = True

    def _start_options(self) -> None:
        self._options = np.zeros((len(self._groups), len(self._option_names) + self.unscale), np.float64)

    def _set_options(self, n: int, group: Group) -> None:
        self._options[n, : len(self._option_names)] = [option(group, name) for name in self._option_names]

    def _ready(self, layout: Layout) -> None:
        kernels.prepare_kernel(layout)
        kernels.step_kernel(layout)

    def _arrange(self, members: Mapping[Layout, Sequence[Member]]) -> None:
        self._launches: list[tuple[Launch, slice]] = []
        self._sparse: SparseSteps | None = None
        for layout, of_layout in members.items():
            part = slice(len(self._active), len(self._active) + len(of_layout))
            self._active += [m.parameter for m in of_layout]
            self._launches.append((Launch(layout, of_layout, self._options), part))

    def _counter(self, value: float, group: Group) -> torch.Tensor:
        return counter(value, group)

    def step(self, scaling: Scaling) -> None:
        if scaling.skips:
            if self._sparse is not None:
                self._sparse.forget()
            return
        if self.unscale:
            self._options[:, -1] = scaling.factor
        for launch, _ in self._launches:
            launch.run()
        if self.stepped:  # as an operation of torch would: it invalidates older graphs
            torch.autograd.graph.increment_version(self.stepped)
        if self._odd:
            self._step_odd(scaling)

    def _step_odd(self, scaling: Scaling) -> None:
        """The gradients that have to be made something else first: sparse, lazily conjugate or negative, placed elsewhere."""
        if self.unscale:
            for p, _ in self._odd:
                unscale(p, scaling.factor)
        if self._sparse is not None:
            self._sparse.step(self._options[:, : len(self._option_names)])
            torch.autograd.graph.increment_version([p for p, _ in self._odd])
            return
        launches: dict[Layout, list[Member]] = {}
        options = np.ascontiguousarray(self._options[:, : len(self._option_names)])
        for p, n in self._odd:
            layout, member, sparse = self._odd_member(p, n)
            if sparse is not None:
                member.named = _named(member, sparse)
                layout = replace(layout, indexed=isinstance(member.named, _Entries))
            launches.setdefault(layout, []).append(member)
        made = [(Launch(layout, members, options), members) for layout, members in launches.items()]
        for launch, _ in made:
            launch.run()
        if self._rule.whole:
            self._count_in_whole_numbers()
        torch.autograd.graph.increment_version([p for p, _ in self._odd])
        # The strides of nothing are anything.
        values = [member.tensors[1] for _, members in made for member in members]
        rows = all(v.numel() and v.is_contiguous() for v in values)
        if rows and all(launch.layout.indexed and SIZE[launch.layout.dtype] >= SIZE["float32"] for launch, _ in made):
            kept = [(launch, [self._named(launch.layout, member) for member in members]) for launch, members in made]
            self._sparse = SparseSteps(kept, options, adds=self._rule.adds)

    def _named(self, layout: Layout, member: Member) -> Named:
        state, counters = self._state[member.parameter], dict(zip(self._rule.counters, member.counters, strict=True))
        tensors = {name: state[name] for name in layout.buffers}
        return Named(
            member.parameter,
            state,
            tensors if self._rule.whole else {**tensors, **counters},
            counters if self._rule.whole else {},
        )

    def _odd_stay(self) -> bool:
        if self._sparse is not None and self._sparse.holds():
            return True
        self._sparse = None
        return super()._odd_stay()

    def _count_in_whole_numbers(self) -> None:
        """Put the counters back as the numbers that they are in the state of this rule."""
        for state in (self._state[p] for p, _ in self._odd):
            state.update({name: int(state[name]) for name in self._rule.counters})


def unscale(p: torch.Tensor, factor: float | torch.Tensor) -> None:
    """Multiply the gradient of a parameter, as ``GradScaler`` does."""
    gradient = local(p.grad)
    (gradient._values() if gradient.is_sparse else gradient).mul_(factor)  # noqa: SLF001 - with no autograd to go through


def _is_odd(p: torch.Tensor) -> bool:
    gradient = local(p.grad)
    return gradient.is_sparse or gradient.is_conj() or gradient.is_neg() or not alike(p, p.grad)


def is_fixed(value: Any) -> bool:
    """Whether an option is the same for as long as it is the same object: what is inside a tensor or a list can change without it."""
    return (
        all(map(is_fixed, value))
        if isinstance(value, tuple)
        else not isinstance(value, torch.Tensor | np.ndarray | list)
    )


def _reader(rule: Rule, group: Group) -> Any:
    """A function of the group: the values of all options that the tables depend on."""
    read = {"compensated", *(ENTRIES.get(name, (name, 0))[0] for name in rule.of_group)}
    keys = sorted(key for key in (read | {*_TORCH_ALONE} | {"momentum", "amsgrad", "centered"}) if key in group)
    present = operator.itemgetter(*keys)
    absent = [key for key in sorted(read) if key not in group]
    if not absent:
        return present
    # An older dictionary may lack an option, which is given later.
    return lambda group: (*present(group), *map(group.get, absent))


def full_like(p: torch.Tensor, value: float) -> torch.Tensor:
    """A tensor like ``p``, with this value in its elements; in both parts of complex ones. Of a DTensor, it is one too."""
    result = torch.empty_like(p, memory_format=torch.preserve_format, requires_grad=False).detach()
    made = local(result)
    if p.device.type != "cpu":
        (torch.view_as_real(made) if p.is_complex() else made).fill_(value)
        return result
    # Not by torch: it would wait for ever for its threads in a process that was forked after they were started.
    if value == 0 and math.copysign(1, value) > 0:
        ctypes.memset(made.data_ptr(), 0, made.numel() * made.element_size())
    elif made.numel():
        memory = (ctypes.c_byte * (made.numel() * made.element_size())).from_address(made.data_ptr())
        pattern = _pattern(value, REAL[p.dtype])
        np.frombuffer(memoryview(memory).cast("B"), pattern.dtype).fill(pattern)
    return result


@functools.lru_cache(maxsize=64)
def _pattern(value: float, real: str) -> Any:
    """The bits of a number in a real format, as a whole number of NumPy that is as wide."""
    bits = torch.tensor(value, dtype=getattr(torch, real), device="cpu")
    word = np.dtype(f"u{bits.element_size()}")
    return word.type(bits.view(getattr(torch, word.name)).item())


def counter_dtype(group: Group) -> torch.dtype:
    """That of a number of the state, as torch keeps it: float32, or float64 where that is torch's default dtype and no fused kernel reads it."""
    wide = torch.get_default_dtype() is torch.float64 and not group.get("fused")
    return torch.float64 if wide else torch.float32


def counter(value: float, group: Group) -> torch.Tensor:
    """A number of the state of a parameter of this group."""
    return torch.scalar_tensor(float(value), dtype=counter_dtype(group), device="cpu")


def _named(member: Member, gradient: torch.Tensor) -> _Walk | _Entries:
    """The elements that a coalesced sparse gradient names: in the parameter, the values and the buffers."""
    p, values, *buffers = member.tensors
    depth = gradient.sparse_dim()
    whole = [byte_strides(t) for t in (p, *buffers)]
    inner = [strides[depth:] for strides in whole]
    way = walk(real_shape(p)[depth:], [inner[0], byte_strides(values)[1:], *inner[1:]])
    indices = gradient._indices()  # noqa: SLF001 - with no autograd to go through
    if depth == 1 and len(way.starts) == 1 and indices.is_contiguous():
        outer = [strides[0] for strides in whole]
        return _Entries(indices[0], way.length, way.distances, (outer[0], byte_strides(values)[0], *outer[1:]))
    found = [indices.numpy().T @ np.array(strides[:depth], np.int64) for strides in whole]
    each = np.arange(indices.shape[1], dtype=np.int64) * byte_strides(values)[0]
    starts = np.stack([found[0], each, *found[1:]], axis=1)
    return way._replace(starts=(starts[:, None] + way.starts[None]).reshape(-1, len(member.tensors)))
