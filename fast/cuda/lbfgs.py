"""The passes of L-BFGS over its history on a CUDA device: scalar products of all rows, sums of all rows, one launch for each.

The vectors are float32 and stay where they are, wherever that is: a table that is sent with each launch has their addresses, and their
coefficients. Products and sums are float64, in an order that depends on nothing but their length. Of each element they read and write, in bytes:

- :func:`products_source`: of each row 4; of each vector 4 (or 8, if it is float64) for each :data:`ROWS` rows, most of it from a cache, since
  programs that read the same of it run side by side;
- :func:`sum_source`: of each row 4; 4 and 8 to make a vector of float64, 8, 4 and 4 to make one of float32 and its product with a third.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepcheck.fast.cuda import runtime
from stepcheck.fast.cuda.kernels import ALIGNMENT, THREADS, indented
from stepcheck.fast.cuda.runtime import Source

#: Elements that a program takes at once, 16 bytes of each row to a thread.
BLOCK = 4 * THREADS
#: Elements of a piece, of which one program forms its part of scalar products.
PIECE = 32 * BLOCK
#: Rows of which a program forms the scalar products, for one reading of the vectors, and rows that are loaded before they are added.
ROWS = 4

# Words of a table: elements, rows, groups of rows, whether all vectors start at 16 bytes, a factor as float64, the addresses of up to three
# vectors; then of each row its address, and its coefficient as float64.
N, K, GROUPS, ALIGNED, FACTOR, VECTORS, FIRST = *range(6), 8

_SIGNATURE = (("table", "*i64"), ("partials", "*fp64"))
Floats = npt.NDArray[np.float64]


def _vectors(**formats: str) -> list[str]:
    """The addresses of vectors of these names and formats."""
    return [
        f"{name} = tl.load(table + {VECTORS + k}).to(tl.pointer_type(tl.{kind}))"
        for k, (name, kind) in enumerate(formats.items())
    ]


def _rows(first: str) -> list[str]:
    """The rows from ``first``; beyond the last, that one again."""
    at = [f"at_{j} = table + {FIRST} + 2 * tl.minimum({first} + {j}, k - 1)" for j in range(ROWS)]
    return at + [f"row_{j} = tl.load(at_{j}).to(tl.pointer_type(tl.float32))" for j in range(ROWS)]


@functools.cache
def products_source(vectors: tuple[str, ...]) -> Source:
    """The scalar products of each row with vectors of these formats: each program leaves those of some rows, of one piece."""
    names = "ab"[: len(vectors)]
    pairs = [(j, v) for j in range(ROWS) for v in names]

    def loads(how: str, mask: str) -> list[str]:
        text = [f"v_{v} = tl.load({how.format(v)} + i{mask}).to(tl.float64)" for v in names]
        return text + [f"w_{j} = tl.load({how.format(f'row_{j}')} + i{mask}).to(tl.float64)" for j in range(ROWS)]

    four = "tl.reduce(tl.reshape(w_{0} * v_{1}, ({2}, 4)), 1, tl.standard._sum_combine)"
    store = "tl.store(at + {0} * {2} + {3}, tl.reduce(sum_{0}_{1}, 0, tl.standard._sum_combine), mask=first + {0} < k)"
    text = f"""
def kernel(table, partials):
{indented(_vectors(**dict(zip(names, vectors, strict=True))), 1)}
    n, k, groups = tl.load(table + {N}), tl.load(table + {K}), tl.load(table + {GROUPS})
    piece = tl.program_id(0).to(tl.int64) // groups
    first = (tl.program_id(0).to(tl.int64) - piece * groups) * {ROWS}
    begin = piece * {PIECE}
    end = tl.minimum(n, begin + {PIECE})
{indented(_rows("first"), 1)}
{indented([f"sum_{j}_{v} = tl.full(({THREADS},), 0.0, tl.float64)" for j, v in pairs], 1)}
    whole = begin
    if tl.load(table + {ALIGNED}) != 0:
        whole = end - (end - begin) % {BLOCK}
        for block in range(begin, whole, {BLOCK}):
            i = block + tl.arange(0, {BLOCK})
{indented(loads(f"tl.multiple_of({{}}, {ALIGNMENT})", ""), 3)}
{indented([f"sum_{j}_{v} += {four.format(j, v, THREADS)}" for j, v in pairs], 3)}
    for block in range(whole, end, {THREADS}):
        i = block + tl.arange(0, {THREADS})
{indented(loads("{}", ", mask=i < end, other=0.0"), 2)}
{indented([f"sum_{j}_{v} += w_{j} * v_{v}" for j, v in pairs], 2)}
    at = partials + (piece * k + first) * {len(names)}
{indented([store.format(j, v, len(names), names.index(v)) for j, v in pairs], 1)}
"""
    return Source(text, _SIGNATURE)


@functools.cache
def sum_source(*, rounded: bool) -> Source:
    """A vector times a factor, and each row times its coefficient, summed.

    Args:
        rounded: the vector is float64 and the sum is rounded to float32; each program leaves its part of the product with a third vector.
            Otherwise the vector is float32 and the sum is not rounded.
    """

    def body(how: str, mask: str) -> list[str]:
        other = f"{mask}, other=0.0" if mask else ""
        each = [
            *_rows("r"),
            *(f"w_{j} = tl.load({how.format(f'row_{j}')} + i{other}).to(tl.float64)" for j in range(ROWS)),
        ]
        each += [f"c_{j} = tl.load(at_{j} + 1).to(tl.float64, bitcast=True)" for j in range(ROWS)]
        # What stands for rows beyond the last is not even multiplied by 0, which would make NaN of infinity.
        each += [f"total += tl.where(r + {j} < k, c_{j} * w_{j}, 0.0)" for j in range(ROWS)]
        text = [
            f"total = factor * tl.load({how.format('start')} + i{other}).to(tl.float64)",
            f"for r in range(0, k, {ROWS}):",
        ]
        text += [indented(each, 1), f"value = total{'.to(tl.float32)' if rounded else ''}"]
        text += [f"tl.store({how.format('out')} + i, value{mask})"]
        if rounded:
            text += [f"product = tl.load({how.format('g')} + i{other}).to(tl.float64) * value.to(tl.float64)"]
        return text

    def leave(product: str) -> list[str]:
        reduced = f"tl.reduce({product}, 0, tl.standard._sum_combine)"
        return [f"tl.store(partials + tl.program_id(0), {reduced})"] if rounded else []

    formats = ("float64", "float32", "float32") if rounded else ("float32", "float64")
    vectors = dict(zip(("start", "out", "g"), formats, strict=False))
    some = [f"products = tl.full(({THREADS},), 0.0, tl.float64)"] if rounded else []
    added = ["products += product"] if rounded else []
    text = f"""
def kernel(table{", partials" if rounded else ""}):
{indented(_vectors(**vectors), 1)}
    n, k = tl.load(table + {N}), tl.load(table + {K})
    factor = tl.load(table + {FACTOR}).to(tl.float64, bitcast=True)
    begin = tl.program_id(0).to(tl.int64) * {BLOCK}
    end = tl.minimum(n, begin + {BLOCK})
    if (tl.load(table + {ALIGNED}) != 0) & (begin + {BLOCK} <= n):
        i = begin + tl.arange(0, {BLOCK})
{indented([*body(f"tl.multiple_of({{}}, {ALIGNMENT})", ""), *leave("product")], 2)}
    else:
{indented(some, 2)}
        for block in range(begin, end, {THREADS}):
            i = block + tl.arange(0, {THREADS})
{indented([*body("{}", ", mask=i < end"), *added], 3)}
{indented(leave("products"), 2)}
"""
    return Source(text, _SIGNATURE[: 1 + rounded])


def sources() -> Iterator[tuple[str, Source]]:
    """All kernels of this module, with names."""
    yield "lbfgs products with two vectors", products_source(_TWO)
    yield "lbfgs products with one float64 vector", products_source(_ONE)
    yield "lbfgs sum float64", sum_source(rounded=False)
    yield "lbfgs sum float32", sum_source(rounded=True)


#: Formats of the vectors that rows are multiplied with.
_TWO, _ONE = ("float32", "float32"), ("float64",)


def products(rows: Sequence[Tensor], vectors: Sequence[Tensor]) -> Floats:
    """The scalar products of rows with vectors, two of float32 or one of float64: rows, vectors. This waits for the device."""
    k, n, device = len(rows), vectors[0].numel(), vectors[0].device
    pieces, groups = -(-n // PIECE), -(-k // ROWS)
    partials = torch.empty((pieces, k, len(vectors)), dtype=torch.float64, device=device)
    table = _table(rows, vectors, groups=groups)
    source = products_source(_TWO if len(vectors) == len(_TWO) else _ONE)
    runtime.launch(source, device, pieces * groups, (table, partials))
    found: Floats = partials.sum(0).cpu().numpy()
    return found


def summed(rows: Sequence[Tensor], coefficients: Floats, factor: float, start: Tensor) -> Tensor:
    """``factor`` times a vector, and each row times its coefficient, in float64."""
    out = torch.empty(start.numel(), dtype=torch.float64, device=start.device)
    table = _table(rows, (start, out), coefficients=coefficients, factor=factor)
    runtime.launch(sum_source(rounded=False), start.device, -(-start.numel() // BLOCK), (table,))
    return out


def rounded_sum(
    rows: Sequence[Tensor], coefficients: Floats, factor: float, start: Tensor, g: Tensor
) -> tuple[Tensor, Tensor]:
    """The same of a vector of float64, rounded once to float32; and its product with ``g``, in float64 and on the device."""
    programs = -(-start.numel() // BLOCK)
    out, partials = torch.empty_like(g), torch.empty(programs, dtype=torch.float64, device=g.device)
    table = _table(rows, (start, out, g), coefficients=coefficients, factor=factor)
    runtime.launch(sum_source(rounded=True), g.device, programs, (table, partials))
    return out, partials.sum()


def _table(
    rows: Sequence[Tensor],
    vectors: Sequence[Tensor],
    *,
    groups: int = 0,
    coefficients: Floats | None = None,
    factor: float = 0.0,
) -> Tensor:
    words = np.zeros(FIRST + 2 * len(rows), np.int64)
    words[FIRST::2] = [row.data_ptr() for row in rows]
    starts = np.append(words[FIRST::2], [v.data_ptr() for v in vectors])
    words[VECTORS : VECTORS + len(vectors)] = starts[len(rows) :]
    words[[N, K, GROUPS, ALIGNED]] = vectors[0].numel(), len(rows), groups, (starts % ALIGNMENT == 0).all()
    words[FACTOR] = np.float64(factor).view(np.int64)
    if coefficients is not None:
        words[FIRST + 1 :: 2] = np.ascontiguousarray(coefficients, np.float64).view(np.int64)
    return runtime.uploaded(words, vectors[0].device)
