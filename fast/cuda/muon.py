"""Muon on a CUDA device: the matrices of one shape stacked, their ends in kernels of this module, their products by torch.

However many matrices there are, a step is one launch that makes the scalars, and for each portion of a stack four launches beside its
products, which are batched. Of an element of a float32 matrix they read and write, in bytes:

- :func:`average_source`: gradient 4 and buffer 4, the buffer 4, a stack of bfloat16 2 (and the gradient 4, where it is unscaled);
- :func:`norm_source`: what the former leaves of each of its programs, 8 for 1024 elements;
- :func:`normalize_source`: the stack, 2 and 2;
- :func:`apply_source`: parameter 4 and stack 2, the parameter 4.

Of narrow dtypes 2 stands for 4; of float64 8 for 4 and for 2.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from stepcheck.fast.cuda import kernels, runtime
from stepcheck.fast.cuda.engine import NOT_CAPTURED, Table, option_words, unscaling
from stepcheck.fast.cuda.kernels import ALIGNMENT, THREADS, TRITON, indented, narrowed, statements, widened
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.engine import REAL, SIZE, Group, Scaling, Standing, StateOf, is_fixed, unscale
from stepcheck.fast.kernels import COMPUTED
from stepcheck.fast.memory import refuse_freed
from stepcheck.fast.muon import BUFFER, adjustment, momentum_buffer
from stepcheck.fast.rules import Rule, maximum
from stepcheck.fast.shards import is_sharded
from stepcheck.fast.tensors import Addresses, Words

#: What the workspace may take, unless one matrix takes more: enough for products to fill a GPU, little of its memory.
WORKSPACE_BYTES = 1 << 28
#: Elements of a program: of each stream, a thread takes 16 bytes at once, or twice that. All that share a format of the stack share this.
BLOCK = {"float16": 1024, "bfloat16": 1024, "float32": 1024, "float64": 256}

# Words of a row, which is a matrix: its elements and columns, the programs for it, its scalars, whether it lies in memory as the stack does
# and starts at 16 bytes, whether the stack's does, then of parameter, gradient and buffer their addresses, and their strides in elements.
N, COLUMNS, PROGRAMS, SCALARS, ALIGNED, STACK_ALIGNED, FIRST = range(7)
STREAMS = ("p", "g", "b")
ADDRESSES, STRIDES = FIRST, FIRST + len(STREAMS)
WORDS = STRIDES + 2 * len(STREAMS)


def _scalars(
    lr: float, weight_decay: float, momentum: float, eps: float, least: float, ratio: float
) -> tuple[float, ...]:
    # Where it is not 0, eps must not become 0 in the format that is computed in.
    return momentum, 1.0 - momentum, maximum(eps, least) if eps > 0 else eps, 1.0 - lr * weight_decay, lr * ratio


def _applied(
    p: float,
    x: float,
    momentum: float,  # noqa: ARG001 - a scalar of the other kernels
    weight: float,  # noqa: ARG001
    eps: float,  # noqa: ARG001
    kept: float,
    rate: float,
) -> tuple[float, ...]:
    return (kept * p - rate * x,)


#: The scalars of a matrix, and what is done to its elements when all else is done; ``ratio`` adjusts the learning rate to its shape.
RULE = Rule("muon", _scalars, _applied)


def stacked(dtype: str) -> str:
    """What matrices of a dtype are multiplied in: float64 in itself, all others in bfloat16, for which GPUs have tensor cores."""
    return "float64" if dtype == "float64" else "bfloat16"


# Kernels ------------------------------------------------------------------------------------------------------------------


_BITS = {"float32": "int32", "float64": "int64"}
#: The smallest number that is not subnormal.
_TINY = {"float32": 2.0**-126, "float64": 2.0**-1022}


def _power_functions(real: str) -> str:
    """Functions of exponents as the format has them, biased, for scaling by powers of two without rounding.

    The format has both what they make and its inverse. They are of blocks and of single numbers.
    """
    bits = _BITS[real]
    shift, bias = (52, 1023) if real == "float64" else (23, 127)
    return f"""
def exponent(size):
    return tl.minimum(tl.maximum(size.to(tl.{bits}, bitcast=True) >> {shift}, 1), {2 * bias - 1})

def inverse_power(e):
    return (({2 * bias} - e) << {shift}).to(tl.{real}, bitcast=True)

def squared_power(d):
    e = {bias} + 2 * tl.minimum(d, 0)
    return tl.where(e < 1, 0, e << {shift}).to(tl.{real}, bitcast=True)
"""


_MATRIX = [
    "programs = tl.load(rows + {PROGRAMS})",
    "m = tl.program_id(0).to(tl.int64) // programs",
    "row = rows + m * {WORDS}",
    "n = tl.load(row + {N})",
    "start = (tl.program_id(0).to(tl.int64) - m * programs) * {block}",
    "base_x = stack + m * n",
]


def _matrix(block: int) -> list[str]:
    """Which matrix the program has a block of, where that starts, and where the matrix is in the stack."""
    return [line.format(PROGRAMS=PROGRAMS, WORDS=WORDS, N=N, block=block) for line in _MATRIX]


def _scalar_loads(*, unscales: bool) -> list[str]:
    names = (*(("unscale",) if unscales else ()), *RULE.scalars)
    at = f"at_scalar = scalars + tl.load(row + {SCALARS}) * {len(names)}"
    return [at, *(f"{name} = tl.load(at_scalar + {i})" for i, name in enumerate(names))]


def _bases(streams: Mapping[str, str]) -> list[str]:
    """The addresses of streams, given with their formats."""
    return [
        f"base_{s} = tl.load(row + {ADDRESSES + STREAMS.index(s)}).to(tl.pointer_type(tl.{kind}))"
        for s, kind in streams.items()
    ]


def _both_ways(
    block: int,
    streams: Sequence[str],
    body: Callable[[str, str], list[str]],
    *,
    flag: int,
    whole: Sequence[str] = (),
    before: Sequence[str] = (),
    each: Sequence[str] = (),
    after: Sequence[str] = (),
) -> str:
    """A body for whole blocks of aligned matrices, 16 bytes at a time, and for what is left, an element at a time.

    Args:
        streams: names, with ``x`` for the stack; each is at ``at_NAME``.
        body: given what loads and what stores have for a mask.
        flag: the word of a row that says whether it is aligned.
        whole: what follows for a whole block.
        before, each, after: what is done otherwise around, and with each of, the parts that a block is taken in.
    """
    own = [(s, STRIDES + 2 * STREAMS.index(s)) for s in streams if s != "x"]
    strides = [f"row_{s}, column_{s} = tl.load(row + {at}), tl.load(row + {at + 1})" for s, at in own]
    where = [f"at_{s} = base_{s} + (element // columns * row_{s} + element % columns * column_{s})" for s, _ in own]
    return f"""
        if (tl.load(row + {flag}) != 0) & (start + {block} <= n):
            i = start + tl.arange(0, {block})
{indented([f"at_{s} = tl.multiple_of(base_{s}, {ALIGNMENT}) + i" for s in streams], 3)}
{indented([*body("", ""), *whole], 3)}
        else:
            columns = tl.load(row + {COLUMNS})
            end = tl.minimum(n, start + {block})
{indented([*strides, *before], 3)}
            for begin in range(start, end, {THREADS}):
                element = begin + tl.arange(0, {THREADS})
                inside = element < end
{indented([*where, "at_x = base_x + element", *body(", mask=inside, other=0.0", ", mask=inside"), *each], 4)}
{indented(after, 3)}
"""


@functools.cache
def average_source(dtype: str, *, nesterov: bool, unscales: bool) -> Source:
    """Averages gradients into momentum buffers, and puts what is to be orthogonalized into the stack.

    Each program leaves the largest exponent of its elements and the sum of their squares over that power of two, so that no square overflows
    or vanishes that matters. Nothing is done where ``found_inf`` is not 0.
    """
    real, kind, block = COMPUTED[dtype], stacked(dtype), BLOCK[dtype]

    def body(load: str, store: str) -> list[str]:
        text = [f"{s} = {widened(f'tl.load(at_{s}{load})', dtype, real)}" for s in ("g", "b")]
        if unscales:
            text += [f"unscaled = {narrowed('unscale * g', dtype, real)}", f"tl.store(at_g, unscaled{store})"]
            text += [f"g = {widened('unscaled', dtype, real)}"]
        # As torch.lerp does, from the nearer end.
        text += ["b = tl.where(tl.abs(weight) < 0.5, b + weight * (g - b), g - (g - b) * (1.0 - weight))"]
        text += [f"stored = {narrowed('b', dtype, real)}", f"tl.store(at_b, stored{store})"]
        text += [f"x = {widened('stored', dtype, real)}"]
        if nesterov:
            text += ["x = tl.where(tl.abs(momentum) < 0.5, g + momentum * (x - g), x - (x - g) * (1.0 - momentum))"]
        return [
            *text,
            f"cast = {narrowed('x', kind, real)}",
            f"tl.store(at_x, cast{store})",
            f"x = {widened('cast', kind, real)}",
        ]

    both = _both_ways(
        block,
        ("g", "b", "x"),
        body,
        flag=ALIGNED,
        whole=[
            "top = exponent(tl.reduce(tl.abs(x), 0, tl.standard._elementwise_max))",
            "x = x * inverse_power(top)",
            "total = tl.reduce(x * x, 0, tl.standard._sum_combine)",
        ],
        before=[
            f"tops = tl.full(({THREADS},), 1, tl.{_BITS[real]})",
            f"totals = tl.full(({THREADS},), 0.0, tl.{real})",
        ],
        # What is not inside is of whatever was loaded, 0, and stays it.
        each=[
            "higher = tl.maximum(tops, exponent(tl.abs(x)))",
            "x = x * inverse_power(higher)",
            "totals = totals * squared_power(tops - higher) + x * x",
            "tops = higher",
        ],
        after=[
            "top = tl.reduce(tops, 0, tl.standard._elementwise_max)",
            "total = tl.reduce(totals * squared_power(tops - top), 0, tl.standard._sum_combine)",
        ],
    )
    text = f"""{_power_functions(real)}
def kernel(rows, scalars, found_inf, stack, partials):
    if tl.load(found_inf) == 0.0:
{indented([*_matrix(block), *_scalar_loads(unscales=unscales), *_bases({"g": dtype, "b": dtype})], 2)}
{both}
        tl.store(partials + 2 * tl.program_id(0).to(tl.int64), total)
        tl.store(partials + 2 * tl.program_id(0).to(tl.int64) + 1, top.to(tl.{real}))
"""
    return _source(text, rows="*i64", scalars=real, found_inf="*fp32", stack=kind, partials=real)


@functools.cache
def norm_source(dtype: str, *, unscales: bool) -> Source:
    """What each matrix of a stack is to be divided by, and the power of two that it is to be multiplied by before: a program each.

    The larger of the norm and ``eps``, rounded to the format of the stack as that of torch is.
    """
    real, kind = COMPUTED[dtype], stacked(dtype)
    root = "tl.sqrt(total)" if real == "float64" else "tl.sqrt_rn(total)"
    bound = "tl.where(eps > norm, eps, norm)"
    text = f"""{_power_functions(real)}
def kernel(rows, scalars, found_inf, partials, norms):
    if tl.load(found_inf) == 0.0:
        m = tl.program_id(0).to(tl.int64)
        row = rows + m * {WORDS}
        programs = tl.load(row + {PROGRAMS})
{indented(_scalar_loads(unscales=unscales), 2)}
        first = partials + 2 * m * programs
        tops = tl.full(({THREADS},), 1, tl.{_BITS[real]})
        for begin in range(0, programs, {THREADS}):
            program = begin + tl.arange(0, {THREADS})
            tops = tl.maximum(tops, tl.load(first + 2 * program + 1, mask=program < programs, other=1.0).to(tl.{_BITS[real]}))
        top = tl.reduce(tops, 0, tl.standard._elementwise_max)
        totals = tl.full(({THREADS},), 0.0, tl.{real})
        for begin in range(0, programs, {THREADS}):
            program = begin + tl.arange(0, {THREADS})
            tops = tl.load(first + 2 * program + 1, mask=program < programs, other=1.0).to(tl.{_BITS[real]})
            totals += tl.load(first + 2 * program, mask=program < programs, other=0.0) * squared_power(tops - top)
        total = tl.reduce(totals, 0, tl.standard._sum_combine)
        norm, scale = {root}, inverse_power(top)
        # Scaled, eps may leave the format. Above it, the quotient vanishes; below, the norm is at least 1: the scale of a matrix
        # of zeros makes eps larger.
        eps = eps * scale
        tl.store(norms + 2 * m, {widened(narrowed(bound, kind, real), kind, real)})
        tl.store(norms + 2 * m + 1, scale)
"""
    return _source(text, rows="*i64", scalars=real, found_inf="*fp32", partials=real, norms=real)


@functools.cache
def normalize_source(dtype: str) -> Source:
    """Divides the matrices of a stack."""
    real, kind, block = COMPUTED[dtype], stacked(dtype), BLOCK[dtype]
    quotient = "x * scale / norm" if real == "float64" else "tl.div_rn(x * scale, norm)"

    def body(load: str, store: str) -> list[str]:
        x = widened(f"tl.load(at_x{load})", kind, real)
        return [f"x = {x}", f"tl.store(at_x, {narrowed(quotient, kind, real)}{store})"]

    text = f"""
def kernel(rows, found_inf, norms, stack):
    if tl.load(found_inf) == 0.0:
{indented(_matrix(block), 2)}
        norm, scale = tl.load(norms + 2 * m), tl.load(norms + 2 * m + 1)
{_both_ways(block, ("x",), body, flag=STACK_ALIGNED)}
"""
    return _source(text, rows="*i64", found_inf="*fp32", norms=real, stack=kind)


@functools.cache
def apply_source(dtype: str, *, unscales: bool) -> Source:
    """Takes the orthogonalized matrices of a stack from parameters. Nothing is done where ``found_inf`` is not 0."""
    real, kind, block = COMPUTED[dtype], stacked(dtype), BLOCK[dtype]

    def body(load: str, store: str) -> list[str]:
        loads = [
            f"{s} = {widened(f'tl.load(at_{s}{load})', stored, real)}" for s, stored in (("p", dtype), ("x", kind))
        ]
        update = statements(RULE.update, wide=real == "float64", results=("p",))
        return [*loads, *update, f"tl.store(at_p, {narrowed('p', dtype, real)}{store})"]

    text = f"""
def kernel(rows, scalars, found_inf, stack):
    if tl.load(found_inf) == 0.0:
{indented([*_matrix(block), *_scalar_loads(unscales=unscales), *_bases({"p": dtype})], 2)}
{_both_ways(block, ("p", "x"), body, flag=ALIGNED)}
"""
    return _source(text, rows="*i64", scalars=real, found_inf="*fp32", stack=kind)


def _source(text: str, **arguments: str) -> Source:
    """Of arguments with Triton types, or with formats that they point to."""
    return Source(text, tuple((name, f"*{TRITON[t]}" if t in TRITON else t) for name, t in arguments.items()))


def sources() -> Iterator[tuple[str, Source]]:
    """All kernels of this module, with names."""
    for unscales in (False, True):
        scaled = " scaled" if unscales else ""
        yield f"muon scalars{scaled}", kernels.prepare_source(RULE, unscales=unscales)
        for dtype in COMPUTED:
            for nesterov in (False, True):
                name = f"muon average {dtype}{' nesterov' if nesterov else ''}{scaled}"
                yield name, average_source(dtype, nesterov=nesterov, unscales=unscales)
            yield f"muon apply {dtype}{scaled}", apply_source(dtype, unscales=unscales)
        for dtype in ("float32", "float64"):
            yield f"muon norm {dtype}{scaled}", norm_source(dtype, unscales=unscales)
    for dtype in ("float32", "float64"):
        yield f"muon normalize {dtype}", normalize_source(dtype)


# Plans --------------------------------------------------------------------------------------------------------------------


class _Kind(NamedTuple):
    """What must be the same for matrices to be stacked."""

    rows: int
    columns: int
    dtype: str
    unscales: bool
    nesterov: bool
    coefficients: tuple[float, ...]
    steps: int

    @property
    def programs(self) -> int:
        return -(-self.rows * self.columns // BLOCK[self.dtype])

    @property
    def sources(self) -> tuple[Source, Source, Source, Source]:
        real = COMPUTED[self.dtype]
        return (
            average_source(self.dtype, nesterov=self.nesterov, unscales=self.unscales),
            norm_source(real, unscales=self.unscales),
            normalize_source(real),
            apply_source(self.dtype, unscales=self.unscales),
        )


@dataclass
class _Matrix:
    """A parameter in a stack."""

    p: Tensor
    gradient: Tensor
    buffer: Tensor
    scalars: int  # which row of them

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.p, self.gradient, self.buffer


class _Workspace:
    """Memory that all portions of a plan share, one after another: for each format one piece, as large as the largest asks for."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.pieces: dict[torch.dtype, Tensor] = {}

    def take(self, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Tensors of these shapes, which start at 128 bytes; what is in them is left from elsewhere."""
        sizes = [_padded(math.prod(shape), dtype.itemsize) for shape in shapes]
        if dtype not in self.pieces or len(self.pieces[dtype]) < sum(sizes):
            self.pieces[dtype] = torch.empty(sum(sizes), dtype=dtype, device=self.device)
        parts = self.pieces[dtype][: sum(sizes)].split_with_sizes(sizes)
        return [part[: math.prod(shape)].view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _padded(elements: int, size: int) -> int:
    return -(-elements * size // 128) * 128 // size


class _Portion:
    """Matrices of one kind that are orthogonalized together: their table, and their places in the workspace."""

    def __init__(self, kind: _Kind, matrices: Sequence[_Matrix], workspace: _Workspace) -> None:
        self._kind, self._count, self._device = kind, len(matrices), workspace.device
        self._sources = kind.sources
        stored, real = (getattr(torch, name) for name in (stacked(kind.dtype), COMPUTED[kind.dtype]))
        shape, side = (self._count, kind.rows, kind.columns), min(kind.rows, kind.columns)
        square = (self._count, side, side)
        self._x, self._y, self._gram, self._polynomial = workspace.take(stored, (shape, shape, square, square))
        self._partials = torch.empty((self._count * kind.programs, 2), dtype=real, device=self._device)
        self._norms = torch.empty((self._count, 2), dtype=real, device=self._device)
        rows: Words = np.zeros((self._count, WORDS), np.int64)
        rows[:, [N, COLUMNS, PROGRAMS]] = kind.rows * kind.columns, kind.columns, kind.programs
        rows[:, SCALARS] = [m.scalars for m in matrices]
        rows[:, ADDRESSES:STRIDES] = [[t.data_ptr() for t in m.tensors] for m in matrices]
        rows[:, STRIDES:] = [[s for t in m.tensors for s in t.stride()] for m in matrices]
        size = kind.rows * kind.columns * stored.itemsize
        rows[:, STACK_ALIGNED] = np.arange(self._count) * size % ALIGNMENT == 0
        self._dense = np.array([all(t.is_contiguous() for t in m.tensors) for m in matrices])
        self._align(rows)
        self._rows = Table(rows, self._device)
        self._kept = [t for m in matrices for t in m.tensors if t is not m.p.grad]  # gradients are the caller's

    def _align(self, rows: Words) -> None:
        starts = (rows[:, ADDRESSES:STRIDES] % ALIGNMENT == 0).all(axis=1)
        rows[:, ALIGNED] = self._dense & starts & (rows[:, STACK_ALIGNED] != 0)

    def look(self, addresses: Words) -> None:
        """Where the gradients are now."""
        column = self._rows.words[:, ADDRESSES + STREAMS.index("g")]
        if not np.array_equal(column, addresses):
            column[:] = addresses
            self._align(self._rows.words)
            self._rows.send()

    def run(self, all_scalars: _Scalars, found_inf: Tensor) -> None:
        """One step of all of them."""
        average, norm, normalize, apply = self._sources
        rows, programs = self._rows.there, self._count * self._kind.programs
        scalars = all_scalars.of[self._partials.dtype]

        def launch(source: Source, programs: int, *arguments: Tensor) -> None:
            runtime.launch(source, self._device, programs, arguments)

        launch(average, programs, rows, scalars, found_inf, self._x, self._partials)
        launch(norm, self._count, rows, scalars, found_inf, self._partials, self._norms)
        launch(normalize, programs, rows, found_inf, self._norms, self._x)
        launch(apply, programs, rows, scalars, found_inf, self._orthogonalized())

    def _orthogonalized(self) -> Tensor:
        a, b, c = self._kind.coefficients
        x, y, gram, polynomial = self._x, self._y, self._gram, self._polynomial
        tall = self._kind.rows > self._kind.columns
        for _ in range(self._kind.steps):
            torch.bmm(x.mT, x, out=gram) if tall else torch.bmm(x, x.mT, out=gram)
            if c:
                torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
            else:
                # A cubic iteration. Beside an alpha of 0, torch.baddbmm on the CPU (2.13, bfloat16) would forget beta.
                torch.mul(gram, b, out=polynomial)
            # The polynomial is symmetric: it may stand on either side.
            torch.baddbmm(x, *((x, polynomial) if tall else (polynomial, x)), beta=a, out=y)
            x, y = y, x
        return x


class DevicePlan:
    """What a step of Muon consists of on one CUDA device; on the CPU, for Triton's interpreter.

    Args:
        groups: those that kernels serve; DTensors in them are left to others.
        state: the optimizer's; buffers that are missing in it are made here.
        device: of the parameters that this is about.
        unscale: whether gradients are to be multiplied by a number first, and left so.
    """

    def __init__(self, groups: list[Group], state: StateOf, device: torch.device, scaling: Scaling) -> None:
        if runtime.capturing(device):
            raise RuntimeError(NOT_CAPTURED)
        #: Whether a CUDA graph has recorded a step, and reads the tables whenever it is replayed.
        self.captured = False
        self._unscale = scaling.grad_scale is not None
        self._groups, self._device = groups, device
        self._ones, self._zeros = (torch.full((1,), x, dtype=torch.float32, device=device) for x in (1.0, 0.0))
        self._forms = [_form(group) for group in groups]
        stacks: dict[_Kind, list[tuple[Tensor, int]]] = {}
        #: Rows of scalars: a group, the shape and the dtype of its matrices.
        self._scaled: dict[tuple[int, torch.Size, str], int] = {}
        idle, self._odd = [], False
        for n, group in enumerate(groups):
            for p in (p for p in group["params"] if p.device == device and not is_sharded(p)):
                if p.grad is None:
                    idle.append(p)
                    continue
                rows, columns = p.shape
                kind = _Kind(rows, columns, REAL[p.dtype], self._unscale, *self._forms[n])
                self._odd |= p.grad.is_neg()
                row = self._scaled.setdefault((n, p.shape, kind.dtype), len(self._scaled))
                stacks.setdefault(kind, []).append((p, row))
        prepare = kernels.prepare_source(RULE, unscales=self._unscale)
        for source in (prepare, *itertools.chain.from_iterable(kind.sources for kind in stacks if kind.programs)):
            # To compile takes long and may be interrupted: before there is state.
            runtime.ready(source, device)
        self._scalars = _Scalars(prepare, self._scaled, groups, device, unscales=self._unscale)
        self._portions: list[tuple[_Portion, slice]] = []
        #: In the order of the portions.
        self._active: list[Tensor] = []
        workspace = _Workspace(device)
        for kind, members in stacks.items():
            matrices = [_Matrix(p, self._gradient(p, scaling), momentum_buffer(state[p], p), row) for p, row in members]
            for part in _portions(kind, len(members)):
                at = slice(len(self._active), len(self._active) + part.stop - part.start)
                self._active += [m.p for m in matrices[part]]
                if kind.programs:
                    self._portions.append((_Portion(kind, matrices[part], workspace), at))
        self._gradient_addresses = Addresses(len(self._active))
        entries = [(state[p], BUFFER) for p in self._active]
        self._standing = Standing(groups, state, self._active, idle, entries)

    def _gradient(self, p: Tensor, scaling: Scaling) -> Tensor:
        """What kernels read, and unscale; of a lazy negative, what it stands for."""
        assert p.grad is not None
        if not p.grad.is_neg():
            return p.grad
        resolved = p.grad.resolve_neg()
        if self._unscale:
            grad_scale, found_inf = self._numbers(scaling)
            unscale(p, unscaling(grad_scale, found_inf))
        return resolved

    def _numbers(self, scaling: Scaling) -> tuple[Tensor, Tensor]:
        """``grad_scale`` and ``found_inf``, on the device."""
        given = ((scaling.grad_scale, self._ones), (scaling.found_inf, self._zeros))
        grad_scale, found_inf = (
            otherwise if x is None else x.to(self._device, torch.float32, non_blocking=True) for x, otherwise in given
        )
        return grad_scale, found_inf

    def holds(self, groups: list[Group], state: StateOf, scaling: Scaling) -> bool:
        """Whether all that the tables depend on is as it was. Takes note of options and gradients on the way."""
        captures = runtime.capturing(self._device)
        # What a graph copies from is no others' to change.
        if self._odd or self._unscale is not (scaling.grad_scale is not None) or (self.captured and not captures):
            return False
        self.captured |= captures
        gradients = self._standing.gradients(groups, state)
        if gradients is None or [_form(group) for group in groups] != self._forms:
            return False
        self._scalars.look(groups)
        if gradients:
            addresses = self._gradient_addresses.read(gradients)
            refuse_freed(addresses, gradients)
            for portion, at in self._portions:
                portion.look(addresses[at])
        return True

    def step(self, scaling: Scaling) -> None:
        """Step all parameters that had gradients when last looked."""
        if not self._portions:
            return
        grad_scale, found_inf = self._numbers(scaling)
        self._scalars.run(grad_scale, found_inf)
        for portion, _ in self._portions:
            portion.run(self._scalars, found_inf)
        torch.autograd.graph.increment_version(self._active)


class _Scalars:
    """The table of options, and what a kernel makes of it: for each row the scalars of its matrices, in float32 and in float64."""

    def __init__(
        self,
        source: Source,
        rows: Mapping[tuple[int, torch.Size, str], int],
        groups: list[Group],
        device: torch.device,
        *,
        unscales: bool,
    ) -> None:
        self._source, self._rows, self._device = source, rows, device
        members: Words = np.zeros((len(rows), kernels.member_words(RULE)), np.int64)
        members[:, kernels.GROUP] = np.arange(len(rows))
        self._members = runtime.uploaded(members, device)
        self._count = runtime.uploaded(np.array([len(rows)], np.int64), device)
        words = kernels.OPTION_WORDS * len(RULE.options)
        self._options = Table(np.zeros((len(rows), words), np.int64), device)
        self.of = {
            dtype: torch.empty((len(rows), len(RULE.scalars) + unscales), dtype=dtype, device=device)
            for dtype in (torch.float32, torch.float64)
        }
        self._values: list[Any] | None = None
        self.look(groups)

    def look(self, groups: list[Group]) -> None:
        """What the options are now; of those that are tensors on the device, where."""
        values = [group[name] for group in groups for name in _READ]
        # By identity: a number may equal a tensor of float32 that is another number.
        if self._values is not None and all(map(operator.is_, values, self._values)):
            return
        self._values = values if all(map(is_fixed, values)) else None
        words = np.zeros_like(self._options.words)
        self._tensors: list[Tensor] = []  # as long as the table has their addresses
        for (n, shape, dtype), row in self._rows.items():
            ratio, least = adjustment(shape, groups[n]["adjust_lr_fn"]), _TINY[COMPUTED[dtype]]
            options = {**groups[n], "ratio": ratio, "least": least}
            words[row], tensors = option_words(options, RULE.options, self._device)
            self._tensors += tensors
        if not np.array_equal(words, self._options.words):
            self._options.words[:] = words
            self._options.send()

    def run(self, grad_scale: Tensor, found_inf: Tensor) -> None:
        narrow, wide = self.of.values()
        arguments = (self._members, self._options.there, self._count, narrow, wide, grad_scale, found_inf)
        runtime.launch(self._source, self._device, -(-len(self._rows) // kernels.ROWS), arguments)


#: The options that scalars depend on.
_READ = ("lr", "weight_decay", "momentum", "eps", "adjust_lr_fn")


def _form(group: Group) -> tuple[bool, tuple[float, ...], int]:
    return bool(group["nesterov"]), tuple(map(float, group["ns_coefficients"])), int(group["ns_steps"])


def _portions(kind: _Kind, count: int) -> Iterator[slice]:
    """``count`` matrices in portions of about one size, that keep to the bound."""
    short, long = sorted((kind.rows, kind.columns))
    itemsize = SIZE[stacked(kind.dtype)]
    most = max(1, WORKSPACE_BYTES // max(1, itemsize * 2 * short * (long + short)))
    size = math.ceil(count / math.ceil(count / most))
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
