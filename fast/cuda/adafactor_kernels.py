"""The kernels of Adafactor for CUDA, in Triton, and the records that they read.

:mod:`.functions` makes the text of each. What is not defined here is put in for each dtype by :func:`stepcheck.fast.cuda.adafactor.source`:
``STORED`` and ``REAL``, the formats of an element as it is stored and as it is computed with, and whether these are bfloat16 (``BFLOAT16``) and
float64 (``FLOAT64``); its machine epsilon (``EPSILON``); ``UNSCALE``, whether gradients are scaled; the extents of tiles and runs.
:mod:`.runtime` has ``from_bfloat16`` and ``to_bfloat16``.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, F821, PLR0124, SLF001

from __future__ import annotations

from typing import TYPE_CHECKING

from stepcheck.fast import adafactor_kernels
from stepcheck.fast.cuda.kernels import ALIGNMENT, THREADS
from stepcheck.fast.records import Record

if TYPE_CHECKING:
    import triton.language as tl

#: Rows of a tile.
HEIGHT = 64
#: Rows or columns of a program that averages or makes factors, and how many partial sums of each it adds up at a time.
CHUNK = 128
PARTS = 16
#: Partial sums of a parameter that its rate takes at a time.
RATE_BLOCK = 512
#: Elements to which the parts of the scratch are rounded up.
PAD = 16


# --- Records


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


class Scalars(Record, words="keep forget decay rho eps1 cap eps2 d"):
    """What the elements of a parameter need. The sign is in ``rho``; ``eps1`` is negative where the machine epsilon is meant, ``cap`` is its inverse."""


class UnscalingScalars(Record, words=f"unscale {' '.join(Scalars.fields)}"):
    """The same, and before it what scaled gradients are multiplied by."""


class Run(adafactor_kernels.Block, words="part scratch"):
    """A run of elements or matrices, its place among the partial sums and, of matrices, in the scratch."""


# --- Numbers


def widened(x):
    return from_bfloat16(x) if BFLOAT16 else x.to(REAL)


def narrowed(x):
    return to_bfloat16(x) if BFLOAT16 else x.to(STORED)


def quotient(a, b):
    return a / b if FLOAT64 else tl.div_rn(a, b)


def root(x):
    return tl.sqrt(x) if FLOAT64 else tl.sqrt_rn(x)


def added(x, axis):
    # tl.sum is a function that the interpreter does not call.
    return tl.reduce(x, axis, tl.standard._sum_combine)


def at_least(a, b):
    # The maximum; NaN if either is.
    return tl.where((a > b) | (a != a), a, b)


def padded(n):
    # A line of sums begins at a multiple of PAD.
    return (n + (PAD - 1)) // PAD * PAD


def program():
    return tl.program_id(0).to(tl.int64)


# sqrt(x / y) of float32, rounded once as if from float64: near the root of the numbers without their exponents, Newton's method adds what is
# missing, exactly. x or y that are zero, infinite or NaN have no exponent to take away.


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
    near = tl.div_rn(tl.sqrt_rn(x), tl.sqrt_rn(y))
    square = near * near
    rest = tl.fma(near, near, -square)
    product = square * y
    missing = (x - product) - tl.fma(square, y, -product) - rest * y
    near = near + 0.5 * near * tl.div_rn(missing, x)
    near = scaled(near, of_x - of_y)
    return tl.where((plain > 0.0) & (plain < float("inf")), near, plain)


# --- Loads and stores. All elements are there where the mask is None.


def read(at, inside):
    return tl.load(at) if inside is None else tl.load(at, mask=inside, other=0.0)


def load(at, inside):
    return widened(read(at, inside))


def store(at, x, inside):
    tl.store(at, narrowed(x), mask=inside)


def gradient(at, inside, unscale):
    # Load a gradient, for the first time in a step.
    x = load(at, inside)
    if UNSCALE:
        # As if it had been unscaled before: what is computed with is what is stored.
        unscaled = narrowed(unscale * x)
        tl.store(at, unscaled, mask=inside)
        x = widened(unscaled)
    return x


def eps1_of(scalar: Scalars):
    # Negative, it stands for the machine epsilon.
    eps1 = scalar.eps1
    return tl.where(eps1 < 0.0, EPSILON, eps1)


def cap_of(scalar: Scalars):
    # The inverse of eps1.
    return tl.where(scalar.eps1 < 0.0, 1.0 / EPSILON, scalar.cap)


def begin(address, offset):
    return address.to(tl.pointer_type(STORED)) + offset


# --- Tiles of matrices. Those that are whole and aligned are loaded and stored 16 bytes at a time, all others element after element under a mask.


def place_of(tile: Tile, matrix: Matrix, row: Row):
    # Where a tile begins, how many rows it has, its columns, and where the matrix ends; its streams; whether it is whole.
    outer, inner, first_i = row.outer, row.inner, tile.i
    first_j = tl.multiple_of(tile.j, WIDTH)
    whole = (row.aligned != 0) & (first_i + HEIGHT <= outer) & (first_j + WIDTH <= inner)
    # Of a whole tile that is HEIGHT too, but not a number that the compiler knows: it would unroll the loop, and spill.
    height = tl.minimum(HEIGHT, outer - first_i).to(tl.int32)
    p = (begin(row.p, matrix.p), row.p_outer, row.p_inner)
    g = (begin(row.g, matrix.g), row.g_outer, row.g_inner)
    return (first_i, first_j, height, first_j + tl.arange(0, WIDTH), outer, inner), p, g, whole


def elements(stream, i, j, inside):
    # Where the elements of a strip are.
    base, outer, inner = stream
    lines = base + (i * outer)[:, None]
    return tl.multiple_of(lines + j[None, :], (1, ALIGNMENT)) if inside is None else lines + (j * inner)[None, :]


def sums_of_strips(place, p, g, unscale, row_sums, column_sums, across, rows):
    # Returned: of squares of the parameter.
    first_i, _, height, j, outer, _ = place
    columns, squares = tl.full((rows, WIDTH), 0.0, REAL), tl.full((rows, WIDTH), 0.0, REAL)
    for k in range(0, height, rows):
        i = first_i + k + tl.arange(0, rows)
        down = None if across is None else i < outer
        inside = None if across is None else down[:, None] & across[None, :]
        x = gradient(elements(g, i, j, inside), inside, unscale)
        x = x * x
        columns += x
        tl.store(row_sums + i, added(x, 1), mask=down)
        y = load(elements(p, i, j, inside), inside)
        squares += y * y
    tl.store(column_sums + j, added(columns, 0), mask=across)
    return added(added(squares, 1), 0)


def tile_sums(tiles: Tile, matrices: Matrix, rows: Row, scalars: Scalars, scratch, partials):
    """Sums of squares of rows and columns of the gradient, and of the parameter."""
    tile = tiles[program()]
    matrix = matrices[tile.matrix]
    r = matrix.row
    row, scalar = rows[r], scalars[r]
    place, p, g, whole = place_of(tile, matrix, row)
    unscale = scalar.unscale if UNSCALE else None
    first_i, first_j, _, j, outer, inner = place
    row_sums = scratch + matrix.row_sums + first_j // WIDTH * padded(outer)
    column_sums = scratch + matrix.column_sums + first_i // HEIGHT * padded(inner)
    if whole:
        of_p = sums_of_strips(place, p, g, unscale, row_sums, column_sums, None, STRIP)
    else:
        of_p = sums_of_strips(place, p, g, unscale, row_sums, column_sums, j < inner, MASKED_STRIP)
    tl.store(partials + 2 * tile.part, of_p)


def careful_with(place, scratch, matrix: Matrix, mode):
    # What it takes to meet averages whose product leaves the format; which columns are there.
    _, _, _, j, _, inner = place
    across = j < inner
    averages_r, averages_c = scratch + matrix.new_r, scratch + matrix.new_c
    c = read(averages_c + j, across)
    return across, averages_r, c, tl.where(mode == 2.0, float("nan"), 0.0)


def factor(i, down, of_rows, b, cap, careful):
    f = read(of_rows + i, down)[:, None] * b[None, :]
    if careful is not None:
        # A product of averages that leaves the format is infinite, whatever their factors would make of it.
        _, averages_r, c, beyond = careful
        average = read(averages_r + i, down)[:, None] * c[None, :]
        f = tl.where(tl.abs(average) == float("inf"), beyond, f)
    return tl.where(f > cap, cap, f)


def squares_of_strips(place, g, of_rows, of_columns, cap, careful, rows):
    first_i, _, height, j, outer, _ = place
    across = None if careful is None else careful[0]
    b = read(of_columns + j, across)
    squares = tl.full((rows, WIDTH), 0.0, REAL)
    for k in range(0, height, rows):
        i = first_i + k + tl.arange(0, rows)
        down = None if across is None else i < outer
        inside = None if across is None else down[:, None] & across[None, :]
        x = load(elements(g, i, j, inside), inside)
        u = factor(i, down, of_rows, b, cap, careful) * x
        u = u if careful is None else tl.where(inside, u, 0.0)
        squares += u * u
    return added(added(squares, 1), 0)


def tile_squares(tiles: Tile, matrices: Matrix, rows: Row, scalars: Scalars, scratch, partials):
    """Sums of squares of the update."""
    tile = tiles[program()]
    matrix = matrices[tile.matrix]
    r = matrix.row
    row, scalar = rows[r], scalars[r]
    place, _, g, whole = place_of(tile, matrix, row)
    mode = tl.load(scratch + matrix.mode)
    cap = cap_of(scalar)
    of_rows, of_columns = scratch + matrix.a, scratch + matrix.b
    if whole & (mode == 0.0):
        of_u = squares_of_strips(place, g, of_rows, of_columns, cap, None, STRIP)
    else:
        careful = careful_with(place, scratch, matrix, mode)
        of_u = squares_of_strips(place, g, of_rows, of_columns, cap, careful, MASKED_STRIP)
    tl.store(partials + 2 * tile.part + 1, of_u)


def move_strips(place, p, g, of_rows, of_columns, cap, decay, rate, careful, rows):
    first_i, _, height, j, outer, _ = place
    across = None if careful is None else careful[0]
    b = read(of_columns + j, across)
    for k in range(0, height, rows):
        i = first_i + k + tl.arange(0, rows)
        down = None if across is None else i < outer
        inside = None if across is None else down[:, None] & across[None, :]
        at_p = elements(p, i, j, inside)
        x, y = load(elements(g, i, j, inside), inside), load(at_p, inside)
        u = factor(i, down, of_rows, b, cap, careful) * x
        store(at_p, decay * y - rate * u, inside)


def tile_move(tiles: Tile, matrices: Matrix, rows: Row, scalars: Scalars, scratch, row_rates):
    tile = tiles[program()]
    matrix = matrices[tile.matrix]
    r = matrix.row
    row, scalar = rows[r], scalars[r]
    place, p, g, whole = place_of(tile, matrix, row)
    mode = tl.load(scratch + matrix.mode)
    cap = cap_of(scalar)
    of_rows, of_columns = scratch + matrix.a, scratch + matrix.b
    decay, rate = scalar.decay, tl.load(row_rates + r)
    if whole & (mode == 0.0):
        move_strips(place, p, g, of_rows, of_columns, cap, decay, rate, None, STRIP)
    else:
        careful = careful_with(place, scratch, matrix, mode)
        move_strips(place, p, g, of_rows, of_columns, cap, decay, rate, careful, MASKED_STRIP)


# --- Averages and factors of chunks. Of a pair of words, that of a dimension is the one that it is added to.


def averages(chunks: Chunk, matrices: Matrix, rows: Row, scalars: Scalars, scratch):
    """The new averages of rows and columns, and the sum and the largest of each chunk of them."""
    chunk = chunks[program()]
    matrix = matrices[chunk.matrix]
    dimension, first = chunk.dimension, chunk.first
    r = matrix.row
    row, scalar = rows[r], scalars[r]
    n = tl.load(row + Row.outer + dimension)
    i = first + tl.arange(0, CHUNK)
    inside = i < n
    keep, forget = scalar.keep, scalar.forget
    count = tl.load(row + Row.inner - dimension)
    lines = tl.load(matrix + Matrix.across + dimension)
    sums = scratch + tl.load(matrix + Matrix.row_sums + dimension)
    total = tl.full((PARTS, CHUNK), 0.0, REAL)
    for k in range(0, lines, PARTS):
        number = k + tl.arange(0, PARTS)
        there = (number < lines)[:, None] & inside[None, :]
        total += read(sums + (number * padded(n))[:, None] + i[None, :], there)
    mean = quotient(added(total, 0), count.to(REAL))
    state = begin(tl.load(row + Row.r + dimension), tl.load(matrix + Matrix.r + dimension))
    at = state + i * tl.load(row + Row.r_outer + dimension)
    new = keep * load(at, inside) + forget * mean
    store(at, new, inside)
    tl.store(scratch + tl.load(matrix + Matrix.new_r + dimension) + i, new, mask=inside)
    new = tl.where(inside, new, 0.0)
    totals = scratch + tl.load(matrix + Matrix.totals + dimension) + first // CHUNK * 2
    tl.store(totals, added(new, 0))
    tl.store(totals + 1, tl.reduce(tl.where(new > 0.0, new, 0.0), 0, tl.standard._elementwise_max))


def sum_and_largest(totals, n):
    # Of the averages of a dimension, from those of its chunks.
    number = tl.arange(0, CHUNK)
    sums, tops = tl.full((CHUNK,), 0.0, REAL), tl.full((CHUNK,), 0.0, REAL)
    for k in range(0, (n + (CHUNK - 1)) // CHUNK, CHUNK):
        there = (k + number) * CHUNK < n
        sums += read(totals + 2 * (k + number), there)
        top = read(totals + 2 * (k + number) + 1, there)
        tops = tl.where(top > tops, top, tops)
    return added(sums, 0), tl.reduce(tops, 0, tl.standard._elementwise_max)


def factors(chunks: Chunk, matrices: Matrix, rows: Row, scalars: Scalars, scratch):
    """The factors of rows and columns, and how they are to be used.

    The root of the mean stands with the row state, whose mean it is: for normal numbers neither factor then leaves the format. The
    mode is 0, or how products beyond the format are met, 1: the average is infinite there, 2: it is infinity by infinity.
    """
    chunk = chunks[program()]
    matrix = matrices[chunk.matrix]
    dimension, first = chunk.dimension, chunk.first
    r = matrix.row
    row, scalar = rows[r], scalars[r]
    i = first + tl.arange(0, CHUNK)
    inside = i < tl.load(row + Row.outer + dimension)
    eps1 = eps1_of(scalar)
    side, outer, inner = row.swapped, row.outer, row.inner
    sum_outer, top_outer = sum_and_largest(scratch + matrix.totals, outer)
    sum_inner, top_inner = sum_and_largest(scratch + matrix.inner_totals, inner)
    total = tl.where(side == 0, sum_outer, sum_inner)
    mean = at_least(quotient(total, tl.where(side == 0, outer, inner).to(REAL)), eps1)
    new = tl.load(scratch + tl.load(matrix + Matrix.new_r + dimension) + i, mask=inside, other=1.0)
    above = tl.where(dimension == side, mean, 1.0) + tl.full((CHUNK,), 0.0, REAL)
    made = tl.sqrt(above) / tl.sqrt(new) if FLOAT64 else root_of_quotient(above, new)
    tl.store(scratch + tl.load(matrix + Matrix.a + dimension) + i, made, mask=inside)
    mode = tl.where(top_outer * top_inner == float("inf"), tl.where(mean == float("inf"), 2.0, 1.0), 0.0)
    mode = tl.where(mean == mean, mode, 0.0)
    if (first == 0) & (dimension == 0):
        tl.store(scratch + matrix.mode, mode)


def rates(rows: Row, scalars: Scalars, partials, row_rates):
    """What the update of each parameter is multiplied by.

    Of NaN the bounds stand, as in ``torch.optim``: one bad element does not spoil the others.
    """
    r = program()
    row, scalar = rows[r], scalars[r]
    elements, first, end = row.elements, row.first_part, row.end_part
    rho, eps2, d = scalar.rho, scalar.eps2, scalar.d
    all_p, all_u = tl.full((RATE_BLOCK,), 0.0, REAL), tl.full((RATE_BLOCK,), 0.0, REAL)
    for k in range(first, end, RATE_BLOCK):
        part = k + tl.arange(0, RATE_BLOCK)
        all_p += read(partials + 2 * part, part < end)
        all_u += read(partials + 2 * part + 1, part < end)
    count = elements.to(REAL)
    size = root(quotient(added(all_p, 0), count))
    change = quotient(root(quotient(added(all_u, 0), count)), d)
    alpha = tl.where(size > eps2, size, eps2) * rho
    tl.store(row_rates + r, quotient(alpha, tl.where(change > 1.0, change, 1.0)))


# --- Small matrices, one to a thread. Of each the scratch has the new averages, of rows and then of columns, and the mean.


def element(stream, i, j):
    base, outer, inner = stream
    return base + i * outer + j * inner


def small_update(x, new_r, new_c, mean, eps1):
    return quotient(x, at_least(root(quotient(new_r * new_c, mean)), eps1))


def new_average(at, slot, mean, keep, forget, inside):
    new = keep * load(at, inside) + forget * mean
    store(at, new, inside)
    tl.store(slot, new, mask=inside)
    return new


def small_squares(runs: Run, rows: Row, scalars: Scalars, scratch, partials):
    """Averages of small matrices, and sums of squares of parameter and update."""
    run = runs[program()]
    r = run.row
    row, scalar = rows[r], scalars[r]
    outer, inner = row.outer, row.inner
    lane = tl.arange(0, THREADS)
    inside = lane < run.count
    p = (begin(row.p, run.p) + lane * row.p_next, row.p_outer, row.p_inner)
    g = (begin(row.g, run.g) + lane * row.g_next, row.g_outer, row.g_inner)
    state_r = begin(row.r, run.r) + lane * row.r_next
    state_c = begin(row.c, run.c) + lane * row.c_next
    slots = scratch + run.scratch + lane
    unscale = scalar.unscale if UNSCALE else None
    eps1, keep, forget = eps1_of(scalar), scalar.keep, scalar.forget
    lines, columns = outer.to(REAL), inner.to(REAL)
    of_p, of_r, of_u = tl.full((THREADS,), 0.0, REAL), tl.full((THREADS,), 0.0, REAL), tl.full((THREADS,), 0.0, REAL)
    for i in range(outer):
        total = tl.full((THREADS,), 0.0, REAL)
        for j in range(inner):
            x = gradient(element(g, i, j), inside, unscale)
            total += x * x
            y = load(element(p, i, j), inside)
            of_p += y * y
        at = state_r + i * row.r_outer
        new_r = new_average(at, slots + i * THREADS, quotient(total, columns), keep, forget, inside)
        of_r += tl.where(inside, new_r, 0.0)
    mean = at_least(quotient(of_r, lines), eps1)
    tl.store(slots + (outer + inner) * THREADS, mean, mask=inside)
    tl.debug_barrier()
    for j in range(inner):
        total = tl.full((THREADS,), 0.0, REAL)
        for i in range(outer):
            x = load(element(g, i, j), inside)
            total += x * x
        at = state_c + j * row.c_inner
        new_c = new_average(at, slots + (outer + j) * THREADS, quotient(total, lines), keep, forget, inside)
        for i in range(outer):
            x = load(element(g, i, j), inside)
            new_r = read(slots + i * THREADS, inside)
            u = tl.where(inside, small_update(x, new_r, new_c, mean, eps1), 0.0)
            of_u += u * u
    partial = partials + 2 * run.part
    tl.store(partial, added(of_p, 0))
    tl.store(partial + 1, added(of_u, 0))


def small_move(runs: Run, rows: Row, scalars: Scalars, scratch, row_rates):
    run = runs[program()]
    r = run.row
    row, scalar = rows[r], scalars[r]
    outer, inner = row.outer, row.inner
    lane = tl.arange(0, THREADS)
    inside = lane < run.count
    p = (begin(row.p, run.p) + lane * row.p_next, row.p_outer, row.p_inner)
    g = (begin(row.g, run.g) + lane * row.g_next, row.g_outer, row.g_inner)
    slots = scratch + run.scratch + lane
    eps1, decay, rate = eps1_of(scalar), scalar.decay, tl.load(row_rates + r)
    mean = read(slots + (outer + inner) * THREADS, inside)
    for i in range(outer):
        new_r = read(slots + i * THREADS, inside)
        for j in range(inner):
            at_p = element(p, i, j)
            x, y = load(element(g, i, j), inside), load(at_p, inside)
            new_c = read(slots + (outer + j) * THREADS, inside)
            u = small_update(x, new_r, new_c, mean, eps1)
            store(at_p, decay * y - rate * u, inside)


# --- Vectors. A whole run of an aligned one is loaded and stored 16 bytes at a time, others THREADS elements at a time.


def whole_run(base):
    return tl.multiple_of(base + tl.arange(0, BLOCK), ALIGNMENT)


def vector_update(x, old, keep, forget, eps1):
    # The new second moment, and the update.
    v = keep * old + forget * (x * x)
    return v, quotient(x, at_least(root(v), eps1))


def vector_squares(runs: Run, rows: Row, scalars: Scalars, partials):
    """Sums of squares of parameter and update of vectors."""
    run = runs[program()]
    r, count = run.row, run.count
    row, scalar = rows[r], scalars[r]
    p, next_p = begin(row.p, run.p), row.p_next
    g, next_g = begin(row.g, run.g), row.g_next
    v, next_v = begin(row.r, run.r), row.r_next
    unscale = scalar.unscale if UNSCALE else None
    keep, forget, eps1 = scalar.keep, scalar.forget, eps1_of(scalar)
    if (row.aligned != 0) & (count == BLOCK):
        x = gradient(whole_run(g), None, unscale)
        _, u = vector_update(x, load(whole_run(v), None), keep, forget, eps1)
        y = load(whole_run(p), None)
        of_p, of_u = added(y * y, 0), added(u * u, 0)
    else:
        all_p, all_u = tl.full((THREADS,), 0.0, REAL), tl.full((THREADS,), 0.0, REAL)
        for k in range(0, count, THREADS):
            i = k + tl.arange(0, THREADS)
            inside = i < count
            x = gradient(g + i * next_g, inside, unscale)
            _, u = vector_update(x, load(v + i * next_v, inside), keep, forget, eps1)
            u = tl.where(inside, u, 0.0)
            y = load(p + i * next_p, inside)
            all_p += y * y
            all_u += u * u
        of_p, of_u = added(all_p, 0), added(all_u, 0)
    partial = partials + 2 * run.part
    tl.store(partial, of_p)
    tl.store(partial + 1, of_u)


def move_run(at_p, at_g, at_v, keep, forget, eps1, decay, rate, inside):
    x = load(at_g, inside)
    v, u = vector_update(x, load(at_v, inside), keep, forget, eps1)
    store(at_v, v, inside)
    store(at_p, decay * load(at_p, inside) - rate * u, inside)


def vector_move(runs: Run, rows: Row, scalars: Scalars, row_rates):
    run = runs[program()]
    r, count = run.row, run.count
    row, scalar = rows[r], scalars[r]
    p, next_p = begin(row.p, run.p), row.p_next
    g, next_g = begin(row.g, run.g), row.g_next
    v, next_v = begin(row.r, run.r), row.r_next
    keep, forget, eps1, decay = scalar.keep, scalar.forget, eps1_of(scalar), scalar.decay
    rate = tl.load(row_rates + r)
    if (row.aligned != 0) & (count == BLOCK):
        move_run(whole_run(p), whole_run(g), whole_run(v), keep, forget, eps1, decay, rate, None)
    else:
        for k in range(0, count, THREADS):
            i = k + tl.arange(0, THREADS)
            at_p, at_g, at_v = p + i * next_p, g + i * next_g, v + i * next_v
            move_run(at_p, at_g, at_v, keep, forget, eps1, decay, rate, i < count)
