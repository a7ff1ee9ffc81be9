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
import itertools
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from stepcheck.fast import adafactor_kernels
from stepcheck.fast.cuda import kernels, runtime
from stepcheck.fast.cuda.engine import DevicePlan, Stepping, Table
from stepcheck.fast.cuda.kernels import ALIGNMENT, SIZE, THREADS, TRITON
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.engine import REAL, Group, Member, walk
from stepcheck.fast.kernels import COMPUTED, Layout
from stepcheck.fast.memory import counted, is_read
from stepcheck.fast.records import Record
from stepcheck.fast.rules import Rule, absolute, minimum, sqrt
from stepcheck.fast.tensors import Words

#: Columns of a tile: a warp loads a row of them, 16 bytes to a thread.
WIDTH = {"float16": 256, "bfloat16": 256, "float32": 128, "float64": 64}
#: Rows of a tile, and how many of them are loaded at a time: with 8 elements to a thread (4 of float64) nothing spills, and with half as many
#: where each element has an address of its own.
HEIGHT = 64
STRIP = {"float16": 4, "bfloat16": 4, "float32": 8, "float64": 8}
MASKED_STRIP = {dtype: rows // 2 for dtype, rows in STRIP.items()}
#: Elements of a small matrix at most.
SMALL = 128
#: Rows or columns of a program that averages or makes factors, and how many partial sums of each it adds up at a time.
CHUNK = 128
PARTS = 16
#: Partial sums of a parameter that its rate takes at a time.
RATE_BLOCK = 512
#: Elements to which the parts of the scratch are rounded up, so that they are aligned.
PAD = 16


class Row(adafactor_kernels.Parameter, words="aligned"):
    """A parameter of a launch, with distances in elements; ``aligned`` if it allows accesses of 16 bytes."""


class Matrix(adafactor_kernels.Matrix, words="totals inner_totals"):
    """A matrix that is cut. All places are in the scratch, that of the mode too; there are lines of sums for each tile, and sums and maxima of chunks of averages.

    What there is of both dimensions stands side by side, outer first.
    """


class Tile(Record, words="matrix i j part"):
    """A tile: its matrix, its first row and column, its place among the partial sums."""


class Chunk(Record, words="matrix dimension first"):
    """A chunk of a dimension of a matrix: 0 for the outer, 1 for the inner one; its first index."""


class Run(adafactor_kernels.Block, words="part scratch"):
    """A run of elements or matrices, its place among the partial sums and, of matrices, in the scratch."""


def _prepare(
    step: float, lr: float, beta2_decay: float, eps1: float, eps2: float, d: float, weight_decay: float, maximize: float
) -> tuple[float, ...]:
    after = step + 1.0
    forget = after**beta2_decay
    rho = (1.0 - 2.0 * maximize) * minimum(lr, 1.0 / sqrt(after))
    return after, 1.0 - forget, forget, 1.0 - lr * weight_decay, rho, eps1, 1.0 / absolute(eps1), eps2, d


@dataclass(frozen=True, eq=False)
class _Scalars(Rule):
    """Counts steps and makes scalars; what is done to elements is not a matter of one element alone."""

    @functools.cached_property
    def scalars(self) -> tuple[str, ...]:
        # The sign is in rho; eps1 is negative where the machine epsilon is meant, cap is its inverse.
        return ("keep", "forget", "decay", "rho", "eps1", "cap", "eps2", "d")


RULE = _Scalars("adafactor", _prepare, lambda p: p, counters={"step": lambda _: 0.0})
VECTOR, MATRIX = ("variance",), ("row_var", "col_var")


# --- Kernels


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

    def bytes_per_element(self, dtype: str, *, unscale: bool) -> int:
        """Memory traffic of one element, with gradients that are to be unscaled or not."""
        return SIZE[dtype] * (len(self.reads) + len(self.writes) + (unscale and self.unscales))


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
#: The element types of what all kernels take, ``real`` for what is computed in.
_ARGUMENTS = {
    "tiles": "*i64", "chunks": "*i64", "runs": "*i64", "matrices": "*i64", "rows": "*i64", "scalars": "real", "scratch": "real",
    "partials": "real", "rates": "real", "found_inf": "*fp32",
}  # fmt: skip


class _Text:
    """The words of a kernel's text that depend on the dtype."""

    def __init__(self, dtype: str, *, unscale: bool) -> None:
        self.dtype, self.unscale, self.real = dtype, unscale, COMPUTED[dtype]
        self.wide = self.real == "float64"
        self.scalars = (*(("unscale",) if unscale else ()), *RULE.scalars)

    def source(self, body: list[str], *arguments: str) -> Source:
        """A kernel that does this unless the step is skipped."""
        types = {name: TRITON[self.real] if kind == "real" else kind for name, kind in _ARGUMENTS.items()}
        names = (*arguments, "found_inf")
        signature = tuple((name, kind if (kind := types[name])[0] == "*" else f"*{kind}") for name in names)
        text = f"def kernel({', '.join(names)}):\n    if tl.load(found_inf) == 0.0:\n"
        return Source(text + _indented(body, 2), signature)

    def widened(self, value: str) -> str:
        return f"from_bfloat16({value})" if self.dtype == "bfloat16" else f"{value}.to(tl.{self.real})"

    def narrowed(self, value: str) -> str:
        return f"to_bfloat16({value})" if self.dtype == "bfloat16" else f"({value}).to(tl.{self.dtype})"

    def divided(self, a: str, b: str) -> str:
        return f"(({a}) / ({b}))" if self.wide else f"tl.div_rn({a}, {b})"

    def root(self, x: str) -> str:
        return f"tl.sqrt{'' if self.wide else '_rn'}({x})"

    def zeros(self, *shape: int) -> str:
        return f"tl.full(({', '.join(map(str, shape))},), 0.0, tl.{self.real})"

    def load(self, name: str, at: str, mask: str = "") -> str:
        """Load an element of a stream."""
        loaded = f"tl.load({at}, mask={mask}, other=0.0)" if mask else f"tl.load({at})"
        return f"{name} = {self.widened(loaded)}"

    def store(self, at: str, value: str, mask: str = "") -> str:
        return f"tl.store({at}, {self.narrowed(value)}{_mask(mask)})"

    def gradient(self, at: str, mask: str = "") -> list[str]:
        """Load a gradient, for the first time in a step."""
        if not self.unscale:
            return [self.load("x", at, mask)]
        # As if it had been unscaled before: what is computed with is what is stored.
        stored = f"tl.store({at}, unscaled{_mask(mask)})"
        narrowed = f"unscaled = {self.narrowed('unscale * x')}"
        return [self.load("x", at, mask), narrowed, stored, f"x = {self.widened('unscaled')}"]

    def scalar(self, *names: str) -> list[str]:
        """Load scalars of row ``r``."""
        lines = [f"{n} = tl.load(scalars + r * {len(self.scalars)} + {self.scalars.index(n)})" for n in names]
        epsilon = torch.finfo(getattr(torch, self.dtype)).eps
        if "cap" in names:
            lines += [f"cap = tl.where(eps1 < 0.0, {1 / epsilon!r}, cap)"]
        return [*lines, *([f"eps1 = tl.where(eps1 < 0.0, {epsilon!r}, eps1)"] if "eps1" in names else [])]

    def first(self) -> list[str]:
        return self.scalar("unscale") if self.unscale else []

    def base(self, stream: str, address: str, offset: str) -> str:
        return f"base_{stream} = tl.load({address}).to(tl.pointer_type(tl.{self.dtype})) + tl.load({offset})"


def _indented(lines: Sequence[str], depth: int) -> str:
    return textwrap.indent("\n".join(lines), "    " * depth) + "\n"


def _block(head: str, lines: Sequence[str]) -> list[str]:
    """A compound statement."""
    return [head, *_indented(lines, 1).splitlines()]


def _loads(at: str, **words: int) -> list[str]:
    return [f"{name} = tl.load({at} + {word})" for name, word in words.items()]


def _added(x: str, axis: int) -> str:
    # tl.sum is a function that the interpreter does not call.
    return f"tl.reduce({x}, {axis}, tl.standard._sum_combine)"


def _all(x: str) -> str:
    return _added(_added(x, 1), 0)


def _largest(x: str) -> str:
    return f"tl.reduce({x}, 0, tl.standard._elementwise_max)"


def _at_least(a: str, b: str) -> str:
    """The maximum; NaN if either is."""
    return f"tl.where(({a} > {b}) | ({a} != {a}), {a}, {b})"


def _padded(n: str) -> str:
    return f"({n} + {PAD - 1}) // {PAD} * {PAD}"


def _in_scratch(name: str, word: str) -> str:
    return f"{name} = tl.multiple_of(scratch, {ALIGNMENT}) + tl.multiple_of(tl.load({word}), {PAD})"


# Tiles of matrices


@dataclass
class _Strips:
    """What is done to the elements of a tile: first, to each strip of rows, and last."""

    enter: list[str]
    strip: list[str]
    leave: list[str] = field(default_factory=list)


def _tile(text: _Text, begin: list[str], whole: _Strips, others: _Strips, streams: str, *, careful: bool) -> list[str]:
    """What is done to a tile.

    Args:
        begin: done first.
        whole: done to whole tiles of aligned matrices, which are loaded and stored 16 bytes at a time.
        others: done to all others, element after element under the mask ``inside``.
        streams: those that are accessed.
        careful: averages beyond the format are met as such, by ``others``.
    """
    height, width, rows, step = HEIGHT, WIDTH[text.dtype], STRIP[text.dtype], ALIGNMENT // SIZE[text.dtype]
    words = {"p": (Row.p, Matrix.p, Row.p_outer, Row.p_inner), "g": (Row.g, Matrix.g, Row.g_outer, Row.g_inner)}
    lines = [
        f"tile = tiles + tl.program_id(0).to(tl.int64) * {Tile.words}",
        f"matrix = matrices + tl.load(tile + {Tile.matrix}) * {Matrix.words}",
        f"r = tl.load(matrix + {Matrix.row})",
        f"row = rows + r * {Row.words}",
        *_loads("row", outer=Row.outer, inner=Row.inner),
        f"first_i = tl.load(tile + {Tile.i})",
        f"first_j = tl.multiple_of(tl.load(tile + {Tile.j}), {width})",
        f"j = first_j + tl.arange(0, {width})",
        f"whole = (tl.load(row + {Row.aligned}) != 0) & (first_i + {height} <= outer) & (first_j + {width} <= inner)",
    ]
    for s in streams:
        address, offset, outer, inner = words[s]
        lines += [text.base(s, f"row + {address}", f"matrix + {offset}")]
        lines += _loads("row", **{f"{s}_outer": outer, f"{s}_inner": inner})
    if careful:
        lines += [f"mode = tl.load(scratch + tl.load(matrix + {Matrix.mode}))", "whole = whole & (mode == 0.0)"]
    index = "i = first_i + k + tl.arange(0, {})"
    aligned = [
        f"at_{s} = tl.multiple_of(base_{s}, {ALIGNMENT}) + (i * tl.multiple_of({s}_outer, {step}))[:, None] + j[None, :]"
        for s in streams
    ]
    strided = [f"at_{s} = base_{s} + (i * {s}_outer)[:, None] + (j * {s}_inner)[None, :]" for s in streams]
    # Of a whole tile that is its height too, but not a number that the compiler knows: it would unroll the loop, and spill.
    lines += [f"down_to = tl.minimum({height}, outer - first_i).to(tl.int32)"]
    loop = _block(f"for k in range(0, down_to, {rows}):", [index.format(rows), *aligned, *whole.strip])
    fewer = MASKED_STRIP[text.dtype]
    masked = [
        index.format(fewer),
        "down = i < outer",
        "inside = down[:, None] & across[None, :]",
        *strided,
        *others.strip,
    ]
    masked_loop = _block(f"for k in range(0, down_to, {fewer}):", masked)
    return [
        *lines,
        *begin,
        *_block("if whole:", [*whole.enter, *loop, *whole.leave]),
        *_block("else:", ["across = j < inner", *others.enter, *masked_loop, *others.leave]),
    ]


def _mask(name: str) -> str:
    return f", mask={name}" if name else ""


def _tile_sums(text: _Text) -> Source:
    """Sums of squares of rows and columns of the gradient, and of the parameter."""
    begin = [
        *text.first(),
        _in_scratch("row_sums", f"matrix + {Matrix.row_sums}"),
        _in_scratch("column_sums", f"matrix + {Matrix.column_sums}"),
        f"row_sums += first_j // {WIDTH[text.dtype]} * ({_padded('outer')})",
        f"column_sums += first_i // {HEIGHT} * ({_padded('inner')})",
    ]

    def strips(rows: int, inside: str = "", down: str = "", across: str = "") -> _Strips:
        # A variable has one type in both branches.
        columns, squares = (f"{name}_of_{rows}" for name in ("columns", "squares"))
        zeros = text.zeros(rows, WIDTH[text.dtype])
        strip = [
            *text.gradient("at_g", inside),
            "x = x * x",
            f"{columns} += x",
            f"tl.store(row_sums + i, {_added('x', 1)}{_mask(down)})",
            text.load("y", "at_p", inside),
            f"{squares} += y * y",
        ]
        sums = f"tl.store(column_sums + j, {_added(columns, 0)}{_mask(across)})"
        return _Strips([f"{columns}, {squares} = {zeros}, {zeros}"], strip, [sums, f"of_p = {_all(squares)}"])

    others = strips(MASKED_STRIP[text.dtype], "inside", "down", "across")
    lines = _tile(text, begin, strips(STRIP[text.dtype]), others, "pg", careful=False)
    lines += [f"tl.store(partials + 2 * tl.load(tile + {Tile.part}), of_p)"]
    return text.source(lines, "tiles", "matrices", "rows", "scalars", "scratch", "partials")


def _factored(text: _Text) -> list[str]:
    """Where the factors of a matrix are, and what bounds their products."""
    return [
        *text.scalar("eps1", "cap"),
        _in_scratch("of_rows", f"matrix + {Matrix.a}"),
        _in_scratch("of_columns", f"matrix + {Matrix.b}"),
    ]


def _updates(load: list[str], end: list[str], mask: str = "") -> _Strips:
    """From gradients ``x``, and factors of rows and columns, to updates ``u``."""
    bounded = ["factor = tl.where(factor > cap, cap, factor)", "u = factor * x"]
    if not mask:
        whole = "factor = tl.load(of_rows + i)[:, None] * b[None, :]"
        return _Strips(["b = tl.load(of_columns + j)"], [*load, whole, *bounded, *end])
    enter = [
        "b = tl.load(of_columns + j, mask=across, other=0.0)",
        _in_scratch("averages_r", f"matrix + {Matrix.new_r}"),
        _in_scratch("averages_c", f"matrix + {Matrix.new_c}"),
        "c = tl.load(averages_c + j, mask=across, other=0.0)",
        "beyond = tl.where(mode == 2.0, float('nan'), 0.0)",
    ]
    # A product of averages that leaves the format is infinite, whatever their factors would make of it.
    product = [
        "factor = tl.load(of_rows + i, mask=down, other=0.0)[:, None] * b[None, :]",
        "average = tl.load(averages_r + i, mask=down, other=0.0)[:, None] * c[None, :]",
        "factor = tl.where(tl.abs(average) == float('inf'), beyond, factor)",
    ]
    return _Strips(enter, [*load, *product, *bounded, *end])


def _tile_squares(text: _Text) -> Source:
    """Sums of squares of the update."""

    def strips(rows: int, mask: str = "") -> _Strips:
        squares = f"squares_of_{rows}"
        made = _updates(
            [text.load("x", "at_g", mask)],
            [*(["u = tl.where(inside, u, 0.0)"] if mask else []), f"{squares} += u * u"],
            mask,
        )
        made.enter.append(f"{squares} = {text.zeros(rows, WIDTH[text.dtype])}")
        made.leave.append(f"of_u = {_all(squares)}")
        return made

    others = strips(MASKED_STRIP[text.dtype], "inside")
    lines = _tile(text, _factored(text), strips(STRIP[text.dtype]), others, "g", careful=True)
    lines += [f"tl.store(partials + 2 * tl.load(tile + {Tile.part}) + 1, of_u)"]
    return text.source(lines, "tiles", "matrices", "rows", "scalars", "scratch", "partials")


def _tile_move(text: _Text) -> Source:
    def strips(mask: str) -> _Strips:
        load = [text.load("x", "at_g", mask), text.load("y", "at_p", mask)]
        return _updates(load, [text.store("at_p", "decay * y - rate * u", mask)], mask)

    begin = [*_factored(text), *text.scalar("decay"), "rate = tl.load(rates + r)"]
    lines = _tile(text, begin, strips(""), strips("inside"), "pg", careful=True)
    return text.source(lines, "tiles", "matrices", "rows", "scalars", "scratch", "rates")


def _chunk() -> list[str]:
    """What a chunk of a dimension is; of a pair of words, that of its own dimension is the one that ``dimension`` is added to."""
    return [
        f"chunk = chunks + tl.program_id(0).to(tl.int64) * {Chunk.words}",
        f"matrix = matrices + tl.load(chunk + {Chunk.matrix}) * {Matrix.words}",
        f"dimension = tl.load(chunk + {Chunk.dimension})",
        f"first = tl.multiple_of(tl.load(chunk + {Chunk.first}), {CHUNK})",
        f"r = tl.load(matrix + {Matrix.row})",
        f"row = rows + r * {Row.words}",
        f"n = tl.load(row + {Row.outer} + dimension)",
        f"i = first + tl.arange(0, {CHUNK})",
        "inside = i < n",
    ]


def _averages(text: _Text) -> Source:
    """The new averages of rows and columns, and the sum and the largest of each chunk of them."""
    lines = [
        *_chunk(),
        *text.scalar("keep", "forget"),
        f"count = tl.load(row + {Row.inner} - dimension)",
        f"lines = tl.load(matrix + {Matrix.across} + dimension)",
        f"length = {_padded('n')}",
        _in_scratch("sums", f"matrix + {Matrix.row_sums} + dimension"),
        f"total = {text.zeros(PARTS, CHUNK)}",
        *_block(
            f"for k in range(0, lines, {PARTS}):",
            [
                f"line = k + tl.arange(0, {PARTS})",
                "there = (line < lines)[:, None] & inside[None, :]",
                "total += tl.load(sums + (line * length)[:, None] + i[None, :], mask=there, other=0.0)",
            ],
        ),
        f"mean = {text.divided(_added('total', 0), f'count.to(tl.{text.real})')}",
        text.base("state", f"row + {Row.r} + dimension", f"matrix + {Matrix.r} + dimension"),
        f"at = base_state + i * tl.load(row + {Row.r_outer} + dimension)",
        text.load("old", "at", "inside"),
        "new = keep * old + forget * mean",
        text.store("at", "new", "inside"),
        _in_scratch("averages", f"matrix + {Matrix.new_r} + dimension"),
        "tl.store(averages + i, new, mask=inside)",
        "new = tl.where(inside, new, 0.0)",
        f"totals = scratch + tl.load(matrix + {Matrix.totals} + dimension) + first // {CHUNK} * 2",
        f"tl.store(totals, {_added('new', 0)})",
        f"tl.store(totals + 1, {_largest('tl.where(new > 0.0, new, 0.0)')})",
    ]
    return text.source(lines, "chunks", "matrices", "rows", "scalars", "scratch")


#: sqrt(x / y) of float32, rounded once as if from float64: near the root of the numbers without their exponents, Newton's method adds what is
#: missing, exactly. ``x`` or ``y`` that are zero, infinite or NaN have no exponent to take away.
_ROOT = """
def halved_exponent(x):
    small = x < 1.1754943508222875e-38
    bits = tl.where(small, x * 16777216.0, x).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 127 - tl.where(small, 24, 0)
    return exponent >> 1

def power_of_two(exponent):
    return ((exponent + 127) << 23).to(tl.float32, bitcast=True)

def scaled(x, exponent):
    half = exponent >> 1
    return x * power_of_two(half) * power_of_two(exponent - half)

def root_of_quotient(x, y):
    plain = tl.div_rn(tl.sqrt_rn(x), tl.sqrt_rn(y))
    of_x, of_y = halved_exponent(x), halved_exponent(y)
    x, y = scaled(x, -2 * of_x), scaled(y, -2 * of_y)
    root = tl.div_rn(tl.sqrt_rn(x), tl.sqrt_rn(y))
    square = root * root
    rest = tl.fma(root, root, -square)
    product = square * y
    missing = (x - product) - tl.fma(square, y, -product) - rest * y
    root = root + 0.5 * root * tl.div_rn(missing, x)
    root = scaled(root, of_x - of_y)
    return tl.where((plain > 0.0) & (plain < float('inf')), root, plain)
"""


def _factors(text: _Text) -> Source:
    """The factors of rows and columns, and how they are to be used.

    The root of the mean stands with the row state, whose mean it is: for normal numbers neither factor then leaves the format. The
    mode is 0, or how products beyond the format are met, 1: the average is infinite there, 2: it is infinity by infinity.
    """
    lines = [
        *_chunk(),
        *text.scalar("eps1"),
        f"side = tl.load(row + {Row.swapped})",
        f"number = tl.arange(0, {CHUNK})",
    ]
    for name, dimension in (("outer", "0"), ("inner", "1")):
        lines += [
            f"{name} = tl.load(row + {Row.outer} + {dimension})",
            f"totals = scratch + tl.load(matrix + {Matrix.totals} + {dimension})",
            f"sums, tops = {text.zeros(CHUNK)}, {text.zeros(CHUNK)}",
            *_block(
                f"for k in range(0, ({name} + {CHUNK - 1}) // {CHUNK}, {CHUNK}):",
                [
                    f"there = (k + number) * {CHUNK} < {name}",
                    "sums += tl.load(totals + 2 * (k + number), mask=there, other=0.0)",
                    "top = tl.load(totals + 2 * (k + number) + 1, mask=there, other=0.0)",
                    "tops = tl.where(top > tops, top, tops)",
                ],
            ),
            f"sum_{name}, top_{name} = {_added('sums', 0)}, {_largest('tops')}",
        ]
    quotient = "root_of_quotient(above, new)" if not text.wide else "tl.sqrt(above) / tl.sqrt(new)"
    lines += [
        "total = tl.where(side == 0, sum_outer, sum_inner)",
        f"mean = {text.divided('total', f'tl.where(side == 0, outer, inner).to(tl.{text.real})')}",
        f"mean = {_at_least('mean', 'eps1')}",
        _in_scratch("averages", f"matrix + {Matrix.new_r} + dimension"),
        "new = tl.load(averages + i, mask=inside, other=1.0)",
        f"above = tl.where(dimension == side, mean, 1.0) + {text.zeros(CHUNK)}",
        _in_scratch("factors", f"matrix + {Matrix.a} + dimension"),
        f"tl.store(factors + i, {quotient}, mask=inside)",
        "mode = tl.where(top_outer * top_inner == float('inf'), tl.where(mean == float('inf'), 2.0, 1.0), 0.0)",
        "mode = tl.where(mean == mean, mode, 0.0)",
        *_block(
            "if (first == 0) & (dimension == 0):",
            [f"tl.store(scratch + tl.load(matrix + {Matrix.mode}), mode)"],
        ),
    ]
    made = text.source(lines, "chunks", "matrices", "rows", "scalars", "scratch")
    return made if text.wide else Source(_ROOT + made.text, made.signature)


def _rates(text: _Text) -> Source:
    """What the update of each parameter is multiplied by.

    Of NaN the bounds stand, as in ``torch.optim``: one bad element does not spoil the others.
    """
    lines = [
        "r = tl.program_id(0).to(tl.int64)",
        f"row = rows + r * {Row.words}",
        *_loads("row", elements=Row.elements, first=Row.first_part, end=Row.end_part),
        *text.scalar("rho", "eps2", "d"),
        f"all_p, all_u = {text.zeros(RATE_BLOCK)}, {text.zeros(RATE_BLOCK)}",
        *_block(
            f"for k in range(first, end, {RATE_BLOCK}):",
            [
                f"part = k + tl.arange(0, {RATE_BLOCK})",
                "all_p += tl.load(partials + 2 * part, mask=part < end, other=0.0)",
                "all_u += tl.load(partials + 2 * part + 1, mask=part < end, other=0.0)",
            ],
        ),
        f"count = elements.to(tl.{text.real})",
        f"size = {text.root(text.divided(_added('all_p', 0), 'count'))}",
        f"change = {text.divided(text.root(text.divided(_added('all_u', 0), 'count')), 'd')}",
        "alpha = tl.where(size > eps2, size, eps2) * rho",
        f"tl.store(rates + r, {text.divided('alpha', 'tl.where(change > 1.0, change, 1.0)')})",
    ]
    return text.source(lines, "rows", "scalars", "partials", "rates")


# Small matrices, and vectors


def _run(text: _Text, *streams: str) -> list[str]:
    words = {
        "p": (Row.p, Run.p, Row.p_next),
        "g": (Row.g, Run.g, Row.g_next),
        "r": (Row.r, Run.r, Row.r_next),
        "c": (Row.c, Run.c, Row.c_next),
    }
    lines = [
        f"run = runs + tl.program_id(0).to(tl.int64) * {Run.words}",
        f"r = tl.load(run + {Run.row})",
        f"count = tl.load(run + {Run.count})",
        f"row = rows + r * {Row.words}",
    ]
    for stream in streams:
        address, offset, following = words[stream]
        lines += [
            text.base(stream, f"row + {address}", f"run + {offset}"),
            f"next_{stream} = tl.load(row + {following})",
        ]
    return lines


def _small(text: _Text) -> list[str]:
    return [
        *_run(text, "p", "g", "r", "c"),
        *_loads(
            "row",
            outer=Row.outer,
            inner=Row.inner,
            p_outer=Row.p_outer,
            g_outer=Row.g_outer,
            p_inner=Row.p_inner,
            g_inner=Row.g_inner,
        ),
        f"lane = tl.arange(0, {THREADS})",
        "inside = lane < count",
        *(f"base_{s} = base_{s} + lane * next_{s}" for s in "pgrc"),
        # Of each matrix the new averages, of rows and then of columns, and the mean.
        f"{_in_scratch('slots', f'run + {Run.scratch}')} + lane",
        *text.scalar("eps1"),
    ]


def _small_update(text: _Text) -> list[str]:
    """From gradient ``x``, averages ``new_r`` and ``new_c`` and the mean to the update ``u``."""
    return [
        f"root = {text.root(text.divided('new_r * new_c', 'mean'))}",
        f"root = {_at_least('root', 'eps1')}",
        f"u = {text.divided('x', 'root')}",
    ]


_AT_G, _AT_P = (f"base_{s} + i * {s}_outer + j * {s}_inner" for s in "gp")


def _small_squares(text: _Text) -> Source:
    """Averages of small matrices, and sums of squares of parameter and update."""

    def average(of: str, at: str, slot: str, mean: str) -> list[str]:
        return [
            text.load("old", at, "inside"),
            f"new_{of} = keep * old + forget * {mean}",
            text.store(at, f"new_{of}", "inside"),
            f"tl.store(slots + {slot} * {THREADS}, new_{of}, mask=inside)",
        ]

    rows = [
        f"total = {text.zeros(THREADS)}",
        *_block(
            "for j in range(0, inner):",
            [
                *text.gradient(_AT_G, "inside"),
                "total += x * x",
                text.load("y", _AT_P, "inside"),
                "of_p += y * y",
            ],
        ),
        *average("r", f"base_r + i * tl.load(row + {Row.r_outer})", "i", text.divided("total", "columns")),
        "of_r += tl.where(inside, new_r, 0.0)",
    ]
    columns = [
        f"total = {text.zeros(THREADS)}",
        *_block("for i in range(0, outer):", [text.load("x", _AT_G, "inside"), "total += x * x"]),
        *average("c", f"base_c + j * tl.load(row + {Row.c_inner})", "(outer + j)", text.divided("total", "lines")),
        *_block(
            "for i in range(0, outer):",
            [
                text.load("x", _AT_G, "inside"),
                f"new_r = tl.load(slots + i * {THREADS}, mask=inside, other=0.0)",
                *_small_update(text),
                "u = tl.where(inside, u, 0.0)",
                "of_u += u * u",
            ],
        ),
    ]
    lines = [
        *_small(text),
        *text.first(),
        *text.scalar("keep", "forget"),
        f"lines, columns = outer.to(tl.{text.real}), inner.to(tl.{text.real})",
        f"of_p, of_r, of_u = {', '.join([text.zeros(THREADS)] * 3)}",
        *_block("for i in range(0, outer):", rows),
        f"mean = {text.divided('of_r', 'lines')}",
        f"mean = {_at_least('mean', 'eps1')}",
        f"tl.store(slots + (outer + inner) * {THREADS}, mean, mask=inside)",
        "tl.debug_barrier()",
        *_block("for j in range(0, inner):", columns),
        f"partial = partials + 2 * tl.load(run + {Run.part})",
        f"tl.store(partial, {_added('of_p', 0)})",
        f"tl.store(partial + 1, {_added('of_u', 0)})",
    ]
    return text.source(lines, "runs", "rows", "scalars", "scratch", "partials")


def _small_move(text: _Text) -> Source:
    inner = [
        text.load("x", _AT_G, "inside"),
        text.load("y", _AT_P, "inside"),
        f"new_c = tl.load(slots + (outer + j) * {THREADS}, mask=inside, other=0.0)",
        *_small_update(text),
        text.store(_AT_P, "decay * y - rate * u", "inside"),
    ]
    lines = [
        *_small(text),
        *text.scalar("decay"),
        "rate = tl.load(rates + r)",
        f"mean = tl.load(slots + (outer + inner) * {THREADS}, mask=inside, other=0.0)",
        *_block(
            "for i in range(0, outer):",
            [
                f"new_r = tl.load(slots + i * {THREADS}, mask=inside, other=0.0)",
                *_block("for j in range(0, inner):", inner),
            ],
        ),
    ]
    return text.source(lines, "runs", "rows", "scalars", "scratch", "rates")


def _vector(text: _Text, whole: list[str], begin: list[str], others: list[str], end: list[str]) -> list[str]:
    """What is done to a run of elements of a vector: whole blocks of aligned ones, or others, ``THREADS`` elements at a time."""
    block = kernels.BLOCK[text.dtype]
    element = [
        f"element = k + tl.arange(0, {THREADS})",
        "inside = element < count",
        *(f"at_{s} = base_{s} + element * next_{s}" for s in "pgr"),
    ]
    aligned = [f"at_{s} = tl.multiple_of(base_{s}, {ALIGNMENT}) + tl.arange(0, {block})" for s in "pgr"]
    return [
        *_block(f"if (tl.load(row + {Row.aligned}) != 0) & (count == {block}):", [*aligned, *whole]),
        *_block("else:", [*begin, *_block(f"for k in range(0, count, {THREADS}):", [*element, *others]), *end]),
    ]


def _vector_update(text: _Text) -> list[str]:
    return [
        "v = keep * v + forget * (x * x)",
        f"root = {text.root('v')}",
        f"root = {_at_least('root', 'eps1')}",
        f"u = {text.divided('x', 'root')}",
    ]


def _vector_squares(text: _Text) -> Source:
    """Sums of squares of parameter and update of vectors."""

    def body(mask: str) -> list[str]:
        load = [*text.gradient("at_g", mask), text.load("v", "at_r", mask), *_vector_update(text)]
        return [*load, *(["u = tl.where(inside, u, 0.0)"] if mask else []), text.load("y", "at_p", mask)]

    whole = [*body(""), f"of_p, of_u = {_added('y * y', 0)}, {_added('u * u', 0)}"]
    begin = [f"all_p, all_u = {text.zeros(THREADS)}, {text.zeros(THREADS)}"]
    end = [f"of_p, of_u = {_added('all_p', 0)}, {_added('all_u', 0)}"]
    lines = [
        *_run(text, "p", "g", "r"),
        *text.first(),
        *text.scalar("keep", "forget", "eps1"),
        *_vector(text, whole, begin, [*body("inside"), "all_p += y * y", "all_u += u * u"], end),
        f"partial = partials + 2 * tl.load(run + {Run.part})",
        "tl.store(partial, of_p)",
        "tl.store(partial + 1, of_u)",
    ]
    return text.source(lines, "runs", "rows", "scalars", "partials")


def _vector_move(text: _Text) -> Source:
    def body(mask: str) -> list[str]:
        return [
            text.load("x", "at_g", mask),
            text.load("v", "at_r", mask),
            *_vector_update(text),
            text.store("at_r", "v", mask),
            text.load("y", "at_p", mask),
            text.store("at_p", "decay * y - rate * u", mask),
        ]

    lines = [
        *_run(text, "p", "g", "r"),
        *text.scalar("keep", "forget", "eps1", "decay"),
        "rate = tl.load(rates + r)",
        *_vector(text, body(""), [], body("inside"), []),
    ]
    return text.source(lines, "runs", "rows", "scalars", "rates")


_MAKERS = {
    "tile_sums": _tile_sums,
    "averages": _averages,
    "factors": _factors,
    "tile_squares": _tile_squares,
    "small_squares": _small_squares,
    "vector_squares": _vector_squares,
    "rates": _rates,
    "tile_move": _tile_move,
    "small_move": _small_move,
    "vector_move": _vector_move,
}


@functools.cache
def source(name: str, dtype: str, *, unscale: bool) -> Source:
    """The kernel of a pass over parameters that are stored in ``dtype``."""
    return _MAKERS[name](_Text(dtype, unscale=unscale))


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
        sizes = {"scratch": tables.scratch, "partials": 2 * tables.parts, "rates": len(members)}
        self._arguments |= {name: torch.empty(n, dtype=real, device=device) for name, n in sizes.items()}
        rows = Row.table(tables.rows)
        self._rest_aligned = np.array(tables.aligned, bool)
        self._seen = rows[:, Row.g].tobytes()
        self._align(rows)
        self._rows = Table(rows, device)
        programs = {
            "tile": len(tables.tiles),
            "run": len(tables.runs),
            "chunk": len(tables.chunks),
            "row": len(members),
        }
        self._launches = [
            (source(name, layout.dtype, unscale=layout.unscales), programs[what])
            for name, what in passes_of(layout).items()
            if programs[what]
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
    matrices = layout.buffers == MATRIX
    kinds = {"tile": "tile", "small": "run"} if matrices else {"vector": "run"}
    found = {}
    for name in PASSES:
        kind = name.partition("_")[0]
        what = (
            "row"
            if kind == "rates"
            else "chunk"
            if kind in ("averages", "factors") and matrices
            else kinds.get(kind, "")
        )
        if what:
            found[name] = what
    return found


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
