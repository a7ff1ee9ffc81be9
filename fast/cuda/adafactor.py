r"""Adafactor on CUDA: fused reductions over all parameters of a dtype at once.

The elements are those of :mod:`stepcheck.fast.adafactor`: each costs the product :math:`a_i b_j` of a factor of its row and one of its
column, that bounded by :math:`1 / \epsilon_1`, and the product with the gradient. float16, bfloat16 and float32 are computed, and summed, in
float32, float64 in float64. Each sum is made of the sums of parts, whose extent depends on shapes alone, and parts are added in order: a step
done again gives the same bits.

Parameters are served in three ways, and whatever their number, each way is a fixed number of launches (:data:`PASSES`):

- *matrices* are cut into tiles: sums of squares of rows, columns and parameter; the averages; the factors; squares of the update; the
  rate of each parameter; the move;
- *small* matrices, such as those of convolutions, are a thread's each: it sums and averages, and keeps the averages beside the state for
  the move;
- *vectors* keep the second moment of each element.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from stepcheck.fast.cuda import adafactor_kernels, kernels, runtime
from stepcheck.fast.cuda.adafactor_kernels import (
    CHUNK,
    HEIGHT,
    PAD,
    Chunk,
    Matrix,
    Row,
    Run,
    Scalars,
    Tile,
    UnscalingScalars,
)
from stepcheck.fast.cuda.engine import DevicePlan, Stepping, Table
from stepcheck.fast.cuda.functions import specialized
from stepcheck.fast.cuda.kernels import ALIGNMENT, SIZE, THREADS, TRITON
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.engine import REAL, Group, Member, walk
from stepcheck.fast.kernels import COMPUTED, Layout
from stepcheck.fast.memory import counted, is_read
from stepcheck.fast.rules import Rule, absolute, minimum, sqrt
from stepcheck.fast.tensors import Words

#: Columns of a tile: a warp loads a row of them, 16 bytes to a thread.
WIDTH = {"float16": 256, "bfloat16": 256, "float32": 128, "float64": 64}
#: How many rows of a tile are loaded at a time: with 8 elements to a thread (4 of float64) nothing spills, and with half as many where each
#: element has an address of its own.
STRIP = {"float16": 4, "bfloat16": 4, "float32": 8, "float64": 8}
#: Elements of a small matrix at most.
SMALL = 128


def _prepare(
    step: float, lr: float, beta2_decay: float, eps1: float, eps2: float, d: float, weight_decay: float, maximize: float
) -> tuple[float, ...]:
    after = step + 1.0
    forget = after**beta2_decay
    rho = (1.0 - 2.0 * maximize) * minimum(lr, 1.0 / sqrt(after))
    return after, 1.0 - forget, forget, 1.0 - lr * weight_decay, rho, eps1, 1.0 / absolute(eps1), eps2, d


@dataclass(frozen=True, eq=False)
class _Prepared(Rule):
    """Counts steps and makes scalars; what is done to elements is not a matter of one element alone."""

    @functools.cached_property
    def scalars(self) -> tuple[str, ...]:
        return tuple(Scalars.fields)


RULE = _Prepared("adafactor", _prepare, lambda p: p, counters={"step": lambda _: 0.0})
VECTOR, MATRIX = ("variance",), ("row_var", "col_var")


# --- Passes


@dataclass(frozen=True)
class Pass:
    """A launch over all parameters of a kind, as far as it is about their elements.

    Rows and columns count for nothing here: what is kept of them is loaded and stored once for each tile of some thousand elements.

    Attributes:
        reads: the streams that it loads: ``p`` and ``g``, parameter and gradient, and ``v``, the second moment of a vector.
        writes: those that it stores.
        unscales: it is the first to load a gradient, and stores it if that was scaled.
    """

    reads: str = ""
    writes: str = ""
    unscales: bool = False


#: The launches of a step, in order; those of a kind that no parameter is of are left out.
PASSES = {
    "tile_sums": Pass("pg", unscales=True),
    "averages": Pass(),
    "factors": Pass(),
    "tile_squares": Pass("g"),
    "small_squares": Pass("pg", unscales=True),
    "vector_squares": Pass("pgv", unscales=True),
    "rates": Pass(),
    "tile_move": Pass("pg", "p"),
    "small_move": Pass("pg", "p"),
    "vector_move": Pass("pgv", "pv"),
}


@functools.cache
def source(name: str, dtype: str, *, unscale: bool) -> Source:
    """The kernel of a pass over parameters that are stored in ``dtype``; it does nothing if the step is skipped."""
    names = ", ".join(inspect.signature(getattr(adafactor_kernels, name)).parameters)
    text = f"""{specialized(adafactor_kernels, name, _constants(dtype, unscale=unscale))}

def kernel({names}, found_inf):
    if tl.load(found_inf) == 0.0:
        {name}({names})
"""
    real = f"*{TRITON[COMPUTED[dtype]]}"
    types = {"found_inf": "*fp32", "scalars": real, "scratch": real, "partials": real, "row_rates": real}
    return Source(text, tuple((each, types.get(each, "*i64")) for each in (*names.split(", "), "found_inf")))


def _constants(dtype: str, *, unscale: bool) -> dict[str, Any]:
    return {
        "STORED": f"tl.{dtype}",
        "REAL": f"tl.{COMPUTED[dtype]}",
        "BFLOAT16": dtype == "bfloat16",
        "FLOAT64": dtype == "float64",
        "EPSILON": torch.finfo(getattr(torch, dtype)).eps,
        "UNSCALE": unscale,
        "Scalars": UnscalingScalars if unscale else Scalars,
        "WIDTH": WIDTH[dtype],
        "STRIP": STRIP[dtype],
        "MASKED_STRIP": STRIP[dtype] // 2,
        "BLOCK": kernels.BLOCK[dtype],
    }


def sources() -> Iterator[tuple[str, Source]]:
    """All kernels, by a name that says which pass, of which dtype, and whether gradients are scaled."""
    for unscale in (False, True):
        suffix = " unscaling" if unscale else ""
        yield f"prepare{suffix}", kernels.prepare_source(RULE, unscales=unscale)
        for name, dtype in itertools.product(PASSES, COMPUTED):
            yield f"{name} {dtype}{suffix}", source(name, dtype, unscale=unscale)


# --- Tables


def _rounded_up(n: int) -> int:
    return -(-n // PAD) * PAD


@dataclass
class _Tables:
    """What the tables of a launch are made from."""

    dtype: str
    rows: list[Row] = field(default_factory=list)
    #: Of each row, whether all but the address of its gradient allows accesses of 16 bytes.
    aligned: list[bool] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    parts: int = 0
    scratch: int = 0

    def add(self, member: Member) -> None:
        """Add a parameter."""
        tensors, shape = list(member.tensors), tuple(member.parameter.shape)
        rank = 2 if len(shape) > 1 else 0
        lead, inside = shape[: len(shape) - rank], shape[len(shape) - rank :]
        row = Row(elements=member.parameter.numel(), first_part=self.parts)
        self.rows.append(row)
        strides = [t.stride() for t in tensors]
        of_matrix = [s[len(lead) :] for s in strides]
        cut = row.elements and rank and inside[0] * inside[1] > SMALL
        if cut:
            (down, along), (n, m) = of_matrix[0], inside
            row.swapped = m == 1 or (n > 1 and abs(down) < abs(along))
        row.p, row.g, row.r, row.c = row.in_order([t.data_ptr() for t in tensors])
        dense = False
        if row.elements:
            if rank:
                row.describe(inside, of_matrix)
            way = walk(lead, [s[: len(lead)] for s in strides])
            row.p_next, row.g_next, row.r_next, row.c_next = row.in_order(way.distances)
            starts = np.array([row.in_order(start) for start in way.starts.tolist()])
            dense = (
                self._cut(row, way.length, starts) if cut else self._gather(row, way.length, starts, vector=not rank)
            )
        self.aligned.append(dense)
        row.end_part = self.parts

    def _allowed(self, offsets: Words) -> bool:
        """Whether what begins this many elements after the beginning of a stream is aligned, if the stream is."""
        return bool((offsets * SIZE[self.dtype] % ALIGNMENT == 0).all())

    def _take(self, elements: int) -> int:
        """A place in the scratch."""
        at, self.scratch = self.scratch, self.scratch + _rounded_up(elements)
        return at

    def _gather(self, row: Row, length: int, starts: Words, *, vector: bool) -> bool:
        """Cut runs of elements, or of small matrices, into programs; whether all but the gradient's address allows accesses of 16 bytes."""
        most = kernels.BLOCK[self.dtype] if vector else THREADS
        for start, first in itertools.product(starts.tolist(), range(0, length, most)):
            run = Run(
                row=len(self.rows) - 1, count=min(most, length - first), part=self.parts, **row.offsets(start, first)
            )
            if not vector:
                run.scratch = self._take((row.outer + row.inner + 1) * THREADS)
            self.runs.append(run)
            self.parts += 1
        dense = vector and (length == 1 or row.p_next == row.g_next == row.r_next == 1)
        return dense and self._allowed(starts) and _at_alignment(row.p, row.r)

    def _cut(self, row: Row, length: int, starts: Words) -> bool:
        """Cut matrices into tiles; whether all but the gradient's address allows accesses of 16 bytes."""
        offsets = [row.offsets(start, n) for start in starts.tolist() for n in range(length)]
        for of_matrix in offsets:
            self._add_matrix(row, of_matrix)
        where = np.array([[row.p_outer, row.g_outer], *([each["p"], each["g"]] for each in offsets)])
        return row.p_inner == row.g_inner == 1 and self._allowed(where) and _at_alignment(row.p)

    def _add_matrix(self, row: Row, offsets: dict[str, int]) -> None:
        number, width = len(self.matrices), WIDTH[self.dtype]
        down, across = -(-row.outer // HEIGHT), -(-row.inner // width)
        matrix = Matrix(row=len(self.rows) - 1, across=across, down=down, **offsets)
        places = (("row_sums", "new_r", "a", "totals"), ("column_sums", "new_c", "b", "inner_totals"))
        for dimension, (n, parts) in enumerate(((row.outer, across), (row.inner, down))):
            needs = (parts * _rounded_up(n), n, n, 2 * -(-n // CHUNK))
            for place, elements in zip(places[dimension], needs, strict=True):
                setattr(matrix, place, self._take(elements))
            self.chunks += [Chunk(matrix=number, dimension=dimension, first=first) for first in range(0, n, CHUNK)]
        matrix.mode = self._take(1)
        for i, j in itertools.product(range(down), range(across)):
            self.tiles.append(Tile(matrix=number, i=i * HEIGHT, j=j * width, part=self.parts))
            self.parts += 1
        self.matrices.append(matrix)


def _at_alignment(*addresses: int) -> bool:
    return all(address % ALIGNMENT == 0 for address in addresses)


class _Launches(Stepping):
    """The launches of a step of parameters of one dtype, matrices or vectors."""

    def __init__(self, layout: Layout, members: Sequence[Member], device: torch.device, *, scattered: bool) -> None:
        assert not scattered
        self.layout, self._device = layout, device
        tables = _Tables(layout.dtype)
        for member in members:
            tables.add(member)
        real = getattr(torch, COMPUTED[layout.dtype])
        made = {
            "tiles": Tile.table(tables.tiles),
            "chunks": Chunk.table(tables.chunks),
            "runs": Run.table(tables.runs),
            "matrices": Matrix.table(tables.matrices),
        }
        self._arguments = {name: runtime.uploaded(table, device) for name, table in made.items()}
        sizes = {"scratch": tables.scratch, "partials": 2 * tables.parts, "row_rates": len(members)}
        self._arguments |= {name: torch.empty(n, dtype=real, device=device) for name, n in sizes.items()}
        rows = Row.table(tables.rows)
        self._rest_aligned = np.array(tables.aligned, bool)
        self._seen = rows[:, Row.g].tobytes()
        self._align(rows)
        self._rows = Table(rows, device)
        counts = {"tile": len(tables.tiles), "run": len(tables.runs), "chunk": len(tables.chunks), "row": len(members)}
        self._launches = [
            (source(name, layout.dtype, unscale=layout.unscales), counts[what])
            for name, what in passes_of(layout).items()
            if counts[what]
        ]

    def look(self, addresses: Words) -> None:
        """Where the gradients are now."""
        # As bytes: with a hundred of them, a comparison by NumPy takes longer than all the rest.
        seen = addresses.tobytes()
        if seen != self._seen:
            self._seen = seen
            self._rows.words[:, Row.g] = addresses
            self._align(self._rows.words)
            self._rows.send()

    def _align(self, rows: Words) -> None:
        rows[:, Row.aligned] = self._rest_aligned & (rows[:, Row.g] & (ALIGNMENT - 1) == 0)

    def run(self, scalars: torch.Tensor, found_inf: torch.Tensor) -> None:
        """One step, unless ``found_inf`` is not 0."""
        arguments = {**self._arguments, "rows": self._rows.there, "scalars": scalars, "found_inf": found_inf}
        for kernel, programs in self._launches:
            runtime.launch(kernel, self._device, programs, [arguments[name] for name, _ in kernel.signature])


def passes_of(layout: Layout) -> dict[str, str]:
    """The passes over matrices or over vectors, in order, and what a program of each takes: a tile, a run, a chunk or a row."""
    programs = {"tile": "tile", "averages": "chunk", "factors": "chunk", "small": "run", "rates": "row"}
    if layout.buffers == VECTOR:
        programs = {"vector": "run", "rates": "row"}
    kinds = {name: name.partition("_")[0] for name in PASSES}
    return {name: programs[kind] for name, kind in kinds.items() if kind in programs}


# --- The plan


class AdafactorPlan(DevicePlan):
    """What a step consists of on one CUDA device; on the CPU, for Triton's interpreter."""

    _stepping: ClassVar[type[Stepping]] = _Launches

    def _set_options(self, n: int, group: Group) -> None:
        eps1, eps2 = group["eps"]
        super()._set_options(n, {**group, "eps": (-1.0 if eps1 is None else eps1, eps2)})

    def _layout(self, p: torch.Tensor, n: int) -> Layout:  # noqa: ARG002 - no option asks for another kernel
        return Layout(self._rule, REAL[p.dtype], MATRIX if p.dim() > 1 else VECTOR, self.unscale)

    def _ready(self, layout: Layout) -> None:
        runtime.ready(kernels.prepare_source(self._rule, unscales=self.unscale), self._device)
        for name in passes_of(layout):
            runtime.ready(source(name, layout.dtype, unscale=layout.unscales), self._device)

    def _member(self, layout: Layout, p: torch.Tensor, n: int, gradient: Any) -> Member:
        state = self._state[p]
        if layout.buffers == MATRIX:
            shapes = {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, p.shape[-1])}
            for name, shape in shapes.items():
                if state.get(name) is None:
                    state[name] = torch.zeros(shape, dtype=p.dtype, device=p.device)
        elif state.get("variance") is None:
            state["variance"] = torch.zeros_like(p, memory_format=torch.preserve_format, requires_grad=False).detach()
        step = state.get("step")
        if not isinstance(step, torch.Tensor):
            state["step"] = self._counter(step or 0.0, self._groups[n])
        elif not is_read(step, p):
            state["step"] = counted(step, p.device)
        return Member(p, (p, gradient, *(state[name] for name in layout.buffers)), [state["step"]], n)

    def _scattered(self, layout: Layout, member: Member) -> bool:  # noqa: ARG002 - strides of all kinds are in one launch
        return False
