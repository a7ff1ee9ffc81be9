r"""``torch.optim.Adafactor`` over batched kernels.

With :math:`M = \max(\operatorname{mean} R, \epsilon_1)` the root of the second moment is an outer product, so each element costs
products alone:

.. math::
    1 / \sqrt{\max(R_i C_j / M, \epsilon_1^2)} = \min\bigl(a_i b_j, 1 / \epsilon_1\bigr), \qquad
    a_i = \sqrt M / \sqrt{R_i}, \quad b_j = 1 / \sqrt{C_j}

The first pass over a matrix sums squares of rows, of columns and of the parameter, the second the squares of the update, the third
updates. Sums are of float64. How they are cut into parts depends on shapes alone, and parts are added in order: the result is
the same on any number of threads.

Parameters are served in three ways. A small one is a task by itself, all passes in one. Of a larger one made of vectors' elements or of
small matrices (kernels of convolutions) a task is a *block*, whose state is found anew in the last pass rather than kept. A larger
matrix is cut into *tiles*. Tasks of one pass are a launch; launches follow each other in *waves* of parameters that fit into a
last-level cache together.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from stepcheck.fast import adafactor_kernels, native
from stepcheck.fast.adafactor_kernels import (
    BLOCK_MOVE,
    BLOCK_SUMS,
    FACTORS,
    MATRIX,
    POINT,
    SHARED,
    TILE_MOVE,
    TILE_SQUARES,
    TILE_SUMS,
    VECTOR,
    WHOLE,
    Block,
    Launch,
    Matrix,
    Options,
    Row,
    Scalars,
    Task,
    Tile,
)
from stepcheck.fast.engine import (
    REAL,
    SIZE,
    Group,
    Passing,
    Scaling,
    Served,
    Standing,
    State,
    StateOf,
    counter,
    engine_of,
    exotic,
    full_like,
    is_fixed,
    overlaps,
    unscale,
    walk,
)
from stepcheck.fast.kernels import COMPUTED
from stepcheck.fast.memory import broken, counted, is_read
from stepcheck.fast.native import Kernel, kernel
from stepcheck.fast.optimizer import Planned, Steps
from stepcheck.fast.shards import GATHERED, any_sharded, is_sharded, step_whole
from stepcheck.fast.tensors import Addresses, Words

#: Elements of a block or a tile, about, and of a parameter or a matrix that is not cut: they fit into a second-level cache.
PIECE = 1 << 15
#: Row tiles of a matrix at most: each has sums of its own for all columns.
TILES = 64
#: Elements of a wave, about: parameter and gradient of it fit into a third-level cache.
WAVE = 1 << 20
#: Elements from which on more threads than one take part.
SPREAD = 1 << 17

# --- Kernels


@functools.cache
def prepare_kernel() -> Kernel:
    """Counts the steps of the parameters of a launch and makes their scalars."""
    return kernel(f"{inspect.getsource(adafactor_kernels)}\nkernel = prepare")


@functools.cache
def step_kernel(dtype: str) -> Kernel:
    """Does the tasks of a launch over parameters that are stored in ``dtype``."""
    return kernel(step_source(dtype))


def step_source(dtype: str) -> str:
    """The source of :func:`step_kernel`."""
    real = COMPUTED[dtype]
    largest = float(np.finfo(real).max)
    # Sets of streams that do not overlap, each with its format. In the loops over the tiles of a matrix c is the new state of the inner dimension, which
    # goes by another name; in the loops over points it is the old one.
    apart = [
        {**dict.fromkeys("pgrc", dtype), "b": real, "columns": "float64"},
        {"sums": "float64", "more": "float64"},
        {"out": real},
    ]
    accesses = [(s, f"{kind!r}, {s!r}, {tuple(kinds)!r}") for kinds in apart for s, kind in kinds.items()]
    accesses += [("new_c", repr(real)), ("real", repr(real)), ("state", repr(dtype))]
    made = "\n".join(f"load_{s}, store_{s} = loader({given}), storer({given})" for s, given in accesses)
    return f"""
real, SIZE, REAL = {real}, {SIZE[dtype]}, {SIZE[real]}
LARGEST, LARGEST64, NAN = {real}({largest!r}), {largest!r}, float("nan")
{made}
{inspect.getsource(adafactor_kernels)}
kernel = step
"""


# --- Tables


@dataclass
class _Member:
    """A parameter in a launch: itself, its gradient, its state, its group."""

    p: torch.Tensor
    g: torch.Tensor
    state: list[torch.Tensor]
    step: torch.Tensor
    group: int


@dataclass
class _Phase:
    """Tasks that may run side by side: the numbers of the first and of the one after the last, and the elements in them."""

    first: int
    end: int
    elements: int


@dataclass
class _Tables:
    """What the tables of a launch are made from."""

    rows: list[Row] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    block_elements: list[int] = field(default_factory=list)
    matrices: list[Matrix] = field(default_factory=list)
    tiles: list[Tile] = field(default_factory=list)
    tasks: list[Task] = field(default_factory=list)
    phases: list[_Phase] = field(default_factory=list)
    #: Of each row, its matrices and tiles.
    cut: list[tuple[range, range]] = field(default_factory=list)
    parts: int = 0
    #: Words of scratch of a thread, and of the matrices of the largest wave.
    slot: int = Matrix.words
    shared: int = 0

    def row(self, member: _Member) -> None:
        """Add a row, and the blocks or matrices of its parameter."""
        size = SIZE[REAL[member.p.dtype]]
        tensors = [member.p, member.g, *member.state]
        strides = [tuple(s * size for s in t.stride()) for t in tensors]
        shape = tuple(member.p.shape)
        rank = 2 if len(shape) > 1 else 0
        lead, inside = shape[: len(shape) - rank], shape[len(shape) - rank :]
        row = Row(
            kind=VECTOR if not rank else POINT if inside == (1, 1) else MATRIX,
            group=member.group,
            step=member.step.data_ptr(),
            wide=member.step.dtype is torch.float64,
            elements=member.p.numel(),
            first_part=self.parts,
            first_block=len(self.blocks),
        )
        each = row.elements and _describe_matrix(row, inside, strides, size)
        way = walk(lead, [s[: len(lead)] for s in strides]) if row.elements else walk((0,), [(0,)] * len(tensors))
        if row.kind != MATRIX:
            row.dense = way.length <= 1 or all(d == size for d in way.distances)

        row.p, row.g, row.r, row.c = row.in_order([t.data_ptr() for t in tensors])
        row.p_next, row.g_next, row.r_next, row.c_next = row.in_order(way.distances)
        starts = [row.in_order(start) for start in way.starts.tolist()]
        matrices, tiles = len(self.matrices), len(self.tiles)
        if row.kind == MATRIX and each > PIECE:
            self._cut(row, way.length, starts)
        else:
            self._block(row, each, way.length, starts)
        row.end_part, row.end_block = self.parts, len(self.blocks)
        self.cut.append((range(matrices, len(self.matrices)), range(tiles, len(self.tiles))))
        self.rows.append(row)

    def _block(self, row: Row, each: int, length: int, starts: list[tuple[int, ...]]) -> None:
        count = length if row.elements <= PIECE else max(1, PIECE // each)
        for start in starts:
            for first in range(0, length, count):
                n = min(count, length - first)
                self.blocks.append(Block(row=len(self.rows), count=n, **row.offsets(start, first)))
                self.block_elements.append(n * each)
        if row.elements > PIECE:
            self.parts += len(self.blocks) - row.first_block
        if row.kind == MATRIX:
            self.slot = max(self.slot, Matrix.words + 3 * (row.outer + row.inner))

    def _cut(self, row: Row, length: int, starts: list[tuple[int, ...]]) -> None:
        width = min(row.inner, PIECE)
        height = max(1, -(-2 * PIECE // width), -(-row.outer // TILES))
        down, across = -(-row.outer // height), -(-row.inner // width)
        for start, n in itertools.product(starts, range(length)):
            number = len(self.matrices)
            self.matrices.append(Matrix(row=len(self.rows), down=down, across=across, **row.offsets(start, n)))
            for i, j in itertools.product(range(down), range(across)):
                tile = Tile(matrix=number, down=i, across=j, part=self.parts)
                tile.i0, tile.i1 = i * height, min(row.outer, (i + 1) * height)
                tile.j0, tile.j1 = j * width, min(row.inner, (j + 1) * width)
                self.tiles.append(tile)
                self.parts += 1

    # Tasks

    def phase(self, *works: tuple[int, Iterator[tuple[int, int, int]]]) -> None:
        """Add tasks that may run side by side: for each work, ranges of items and their elements."""
        first, elements = len(self.tasks), 0
        for work, ranges in works:
            for start, end, n in ranges:
                self.tasks.append(Task(work=work, first=start, last=end))
                elements += n
        if len(self.tasks) > first:
            self.phases.append(_Phase(first, len(self.tasks), elements))

    def plan(self) -> None:
        """Make the tasks of all rows."""
        small = [(n, row.elements) for n, row in enumerate(self.rows) if 0 < row.elements <= PIECE]
        self.phase((WHOLE, _gathered(small)))
        for wave in self._waves():
            of_blocks = (k for n in wave for k in range(self.rows[n].first_block, self.rows[n].end_block))
            blocks = [(k, self.block_elements[k]) for k in of_blocks]
            matrices = [k for n in wave for k in self.cut[n][0]]
            tiles = [(k, _area(self.tiles[k])) for n in wave for k in self.cut[n][1]]
            self._share(matrices)
            self.phase((BLOCK_SUMS, _gathered(blocks)), (TILE_SUMS, _gathered(tiles)))
            self.phase((FACTORS, ((k, k + 1, SPREAD) for k in matrices)))
            self.phase((TILE_SQUARES, _gathered(tiles)))
            self.phase((BLOCK_MOVE, _gathered(blocks)), (TILE_MOVE, _gathered(tiles)))

    def _waves(self) -> Iterator[list[int]]:
        wave: list[int] = []
        elements = 0
        for n, row in enumerate(self.rows):
            if row.elements > PIECE:
                wave.append(n)
                elements += row.elements
                if elements >= WAVE:
                    yield wave
                    wave, elements = [], 0
        if wave:
            yield wave

    def _share(self, matrices: list[int]) -> None:
        """Give the matrices of a wave places in the scratch, as offsets in words; each wave has it for itself."""
        at = 0
        for m in (self.matrices[k] for k in matrices):
            row = self.rows[m.row]
            needs = (row.outer * m.across, row.inner * m.down, row.outer, row.outer, row.inner, row.inner)
            for name, words in zip(SHARED, needs, strict=True):
                setattr(m, name, at)
                at += words
        self.shared = max(self.shared, at)


def _describe_matrix(row: Row, inside: tuple[int, ...], strides: list[tuple[int, ...]], size: int) -> int:
    """Fill in dimensions and distances of one matrix; its elements. A vector's, or a point's, element is 1."""
    if row.kind != MATRIX:
        return 1
    n, m = inside
    down, along = strides[0][-2:]
    row.swapped = m == 1 or (n > 1 and abs(down) < abs(along))
    row.describe(inside, [s[-2:] for s in strides])
    row.dense = row.p_inner == size and row.g_inner == size
    return n * m


def _area(tile: Tile) -> int:
    return int((tile.i1 - tile.i0) * (tile.j1 - tile.j0))


def _gathered(items: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """Ranges of items that follow each other, of about a piece of elements each: (first, end, elements)."""
    first = end = elements = 0
    for k, n in items:
        if elements and (k != end or elements + n > PIECE):
            yield first, end, elements
            elements = 0
        first = first if elements else k
        end, elements = k + 1, elements + n
    if elements:
        yield first, end, elements


class _Launch:
    """The tables of all parameters of one dtype. Running it allocates nothing, unless there are more threads than before.

    It holds the tensors of parameters and state, not the gradients: those belong to the caller, who may free them.
    """

    def __init__(self, dtype: torch.dtype, members: list[_Member], groups: int) -> None:
        self._prepare, self._kernel = prepare_kernel(), step_kernel(REAL[dtype])
        self.machine_epsilon = torch.finfo(dtype).eps
        tables = _Tables()
        for member in members:
            tables.row(member)
        tables.plan()
        self._phases, self._slot_words = tables.phases, tables.slot
        self.options = np.zeros((groups, Options.words), np.float64)
        rows, matrices = Row.table(tables.rows), Matrix.table(tables.matrices)
        self.gradients, self.idle = rows[:, Row.g], rows[:, Row.idle]
        self._shared = np.empty(tables.shared, np.float64)
        # The sums are of float64, the factors fit into as many words.
        for word in (getattr(Matrix, name) for name in SHARED):
            matrices[:, word] = matrices[:, word] * 8 + self._shared.ctypes.data
        self._tables = {
            Launch.rows: rows,
            Launch.tasks: Task.table(tables.tasks),
            Launch.blocks: Block.table(tables.blocks),
            Launch.matrices: matrices,
            Launch.tiles: Tile.table(tables.tiles),
            Launch.scalars: np.zeros((len(members), Scalars.words), np.float64),
            Launch.partials: np.zeros((tables.parts, 2), np.float64),
            Launch.options: self.options,
        }
        self._words: Words = np.zeros(Launch.words, np.int64)
        for word, table in self._tables.items():
            self._words[word] = table.ctypes.data
        self._words[Launch.count] = len(members)
        self._words[Launch.scratch_words] = tables.slot
        self._at = self._words.ctypes.data
        self._slots = np.empty(0, np.float64)
        self._kept = [t for m in members for t in (m.p, m.step, *m.state)]

    def run(self) -> None:
        """One step of all its parameters."""
        words, available = self._words, torch.get_num_threads()
        if self._slots.size < available * self._slot_words:
            self._slots = np.empty(available * self._slot_words, np.float64)
            words[Launch.scratch] = self._slots.ctypes.data
        self._prepare.run(self._at)
        for phase in self._phases:
            words[Launch.next], words[Launch.end], words[Launch.slot] = phase.first, phase.end, 0
            threads = min(available, phase.end - phase.first) if phase.elements >= SPREAD else 1
            native.run(self._kernel, self._at, threads)


# --- All launches of a step

_READ = operator.itemgetter("lr", "beta2_decay", "eps", "d", "weight_decay", "maximize")


class _Plan(Passing):
    """What a step of the parameters on the CPU consists of, as long as parameters, gradients and state stay what and where they are."""

    captured = False

    def __init__(self, groups: list[Group], state: StateOf, device: torch.device, former: _Plan | None = None) -> None:
        self._groups, self._state = groups, state
        idle: list[torch.Tensor] = []
        self._active: list[torch.Tensor] = []
        self._launches: list[tuple[_Launch, slice]] = []
        self._values: list[Any] = [None] * len(groups)
        by_dtype: dict[torch.dtype, list[_Member]] = {}
        self._lasting = True
        for n, group in enumerate(groups):
            for p in (p for p in group["params"] if p.device == device):
                gradient = p.grad if p.grad is not None or former is None else former.spare(p)
                if gradient is None:
                    idle.append(p)
                else:
                    by_dtype.setdefault(p.dtype, []).append(self._member(p, gradient, n))
        for dtype, members in by_dtype.items():
            part = slice(len(self._active), len(self._active) + len(members))
            self._active += [m.p for m in members]
            self._launches.append((_Launch(dtype, members, len(groups)), part))
        self._read_options()
        gradients = [m.g for members in by_dtype.values() for m in members]
        self._gradient_addresses = Addresses(len(gradients))
        self._resolved = gradients if not self._lasting else []
        self._standing = Standing(groups, state, self._active, idle, self._entries(), gradients)
        self._look(gradients)

    def spare(self, p: torch.Tensor) -> torch.Tensor | None:
        """What stands for the gradient of a parameter of this plan that has none now."""
        begun = all(self._state.get(p, {}).get(key) is not None for key in ("step", *_buffers(p)))
        return self._standing.spare(p) if begun else None

    def _member(self, p: torch.Tensor, gradient: torch.Tensor, group: int) -> _Member:
        state = self._state[p]
        if p.dim() > 1:
            shapes = {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, p.shape[-1])}
            for name, shape in shapes.items():
                if state.get(name) is None:
                    state[name] = full_like(torch.empty(shape, dtype=p.dtype, device=p.device), 0.0)
        elif state.get("variance") is None:
            state["variance"] = full_like(p, 0.0)
        if not isinstance(state.get("step"), torch.Tensor):
            state["step"] = counter(state.get("step", 0.0), self._groups[group])
        elif not is_read(state["step"], p):
            state["step"] = counted(state["step"], p.device)
        self._lasting &= not gradient.is_neg()
        return _Member(p, gradient.resolve_neg(), [state[name] for name in _buffers(p)], state["step"], group)

    def _entries(self) -> Iterator[tuple[State, str]]:
        """Where in the state the tensors are that the tables point to."""
        return ((self._state[p], key) for p in self._active for key in ("step", *_buffers(p)))

    def suits(self, scaling: Scaling) -> bool:
        """Whether it is made for gradients that are scaled, or not, as these."""
        return scaling.grad_scale is None

    def holds(self, groups: list[Group], state: StateOf) -> bool:
        """Whether all that the tables depend on is as it was. Takes note of options and gradients on the way."""
        gradients = self._standing.gradients(groups, state) if self._lasting else None
        if gradients is None:
            return False
        self._look(gradients)
        self._read_options()
        return True

    def _read_options(self) -> None:
        for n, group in enumerate(self._groups):
            values = lr, beta2_decay, (eps1, eps2), d, weight_decay, maximize = _READ(group)
            # By identity: a number may equal a tensor of float32 that is another number.
            if self._values[n] is None or not all(map(operator.is_, values, self._values[n])):
                self._values[n] = values if all(map(is_fixed, values)) else None
                for launch, _ in self._launches:
                    own = launch.machine_epsilon if eps1 is None else float(eps1)
                    launch.options[n] = [float(lr), beta2_decay, own, eps2, d, weight_decay, maximize]

    def step(self, scaling: Scaling) -> None:
        """Step all parameters that have gradients."""
        if scaling.skips:
            return
        for launch, _ in self._launches:
            launch.run()
        torch.autograd.graph.increment_version(self.stepped)


def _buffers(p: torch.Tensor) -> tuple[str, ...]:
    return ("row_var", "col_var") if p.dim() > 1 else ("variance",)


def _foreign(p: torch.Tensor, state: State) -> str:
    """Why kernels do not read this state, or nothing."""
    for name in _buffers(p):
        buffer = state.get(name)
        if buffer is None:
            continue
        shape = {"row_var": (*p.shape[:-1], 1), "col_var": (*p.shape[:-2], 1, *p.shape[-1:])}.get(name, tuple(p.shape))
        if not isinstance(buffer, torch.Tensor) or buffer.layout is not torch.strided or buffer.device != p.device:
            return f"{name} in the state is no dense tensor beside its parameter"
        if buffer.dtype != p.dtype or tuple(buffer.shape) != shape:
            return f"{name} in the state is {tuple(buffer.shape)} of {buffer.dtype}, expected {shape} of {p.dtype}"
        if overlaps(buffer):
            return f"elements of {name} in the state share memory"
        if buffer.is_neg():
            return f"{name} in the state is a lazy negative of another tensor"
    return ""


class Adafactor(Planned, torch.optim.Adafactor):
    """``torch.optim.Adafactor``, stepped by kernels over all parameters of a dtype.

    Parameters are float16, bfloat16, float32 or float64, of any shape and strides; the state has the keys, shapes and dtypes that
    ``torch.optim`` gives it (``step``; ``row_var`` and ``col_var``, or ``variance`` of vectors and numbers). float16 and bfloat16 are
    computed in float32 and rounded when stored, sums in float64; on CUDA those too are of float32, but for float64.

    Where ``torch.optim`` is wrong it departs: ``eps[0] = None`` is the machine epsilon of each parameter's own dtype, an ``eps[0]``
    whose square float16 does not hold is taken, parameters without elements are counted and left alone.

    A DTensor is stepped whole: one after another, each rank gathers parameter, gradient and state, does what all do, and keeps its part.
    ``torch.optim`` cannot step one that is sharded. Of the state, ``row_var`` and ``col_var`` are replicated.

    Beside the state it holds sums and factors of rows and columns: of a few million elements' matrices at a time, again for the next.

    Raises:
        RuntimeError: in ``step``, of complex parameters and sparse gradients, as ``torch.optim`` does; nothing is changed then.

    Source: Shazeer and Stern, *Adafactor: adaptive learning rates with sublinear memory cost*, ICML 2018, algorithms 4 and 5, with
    the bounds that the documentation of ``torch.optim.Adafactor`` states.
    """

    _numbers: ClassVar[tuple[str, ...]] = ("step",)

    @classmethod
    def kernels(cls) -> Iterator[Kernel]:
        yield from super().kernels()
        yield prepare_kernel()
        yield from map(step_kernel, COMPUTED)

    def _served(self, group: Group) -> Served:
        for p in (p for p in group["params"] if not is_sharded(p)):
            reason = exotic(p, interpreted=self._interpreted) or _foreign(p, self.state.get(p, {}))
            if reason:
                return Served("torch", reason)
        engine = engine_of({p.device for p in group["params"]}, interpreted=self._interpreted)
        return Served(engine, GATHERED if any_sharded([group]) else "")

    def _broken(self, p: torch.Tensor, state: State) -> str:
        return broken(state, ("step",), _buffers(p))

    def _check_gradients(self, scaling: Scaling) -> None:
        if any(p.grad is not None and p.is_complex() for group in self.param_groups for p in group["params"]):
            raise RuntimeError("Adafactor does not support complex parameters")
        super()._check_gradients(scaling)

    def _plan(self, groups: list[Group], device: torch.device, scaling: Scaling, former: Sequence[Steps]) -> Steps:
        unscales = scaling.grad_scale is not None
        if self._interpreted or device.type != "cpu":
            from stepcheck.fast.cuda.adafactor import RULE, AdafactorPlan  # where nothing is on a GPU, nobody needs it

            return AdafactorPlan(RULE, groups, self.state, device, unscale=unscales)
        if unscales and not scaling.skips:
            for p in (p for group in groups for p in group["params"] if p.grad is not None and p.device == device):
                unscale(p, scaling.factor)
        return _Plan(groups, self.state, device, next((plan for plan in former if isinstance(plan, _Plan)), None))

    @torch.no_grad()
    def _step_anew(self, scaling: Scaling) -> None:
        if not any_sharded(self.param_groups):
            super()._step_anew(scaling)
            return
        self._check_gradients(scaling)
        if scaling.skips:
            return
        if scaling.grad_scale is not None:
            for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
                unscale(p, scaling.factor)
        # The state of a matrix is made of sums over its rows and columns.
        step_whole(self, self._numbers, lambda: super(Adafactor, self)._step_anew(Scaling()))
        self._plans = None
