"""The kernels of Adafactor for the CPU, in the Python that :mod:`.compiler` understands, and the records that they read.

What is not defined here is made for each dtype by :func:`stepcheck.fast.adafactor.step_source`: ``real``, what is computed in; ``SIZE`` and ``REAL``, the bytes of an
element as it is stored and as it is computed with; loads and stores of the streams of parameters (``p``), gradients (``g``) and state (``r``, ``c``), and others.
"""

# mypy: ignore-errors
# ruff: noqa: ANN001, ANN201, F821

from __future__ import annotations

from collections.abc import Sequence

from stepcheck.fast.native import Flags
from stepcheck.fast.records import Record

#: Columns whose sums stay in a first-level cache.
STRIP = 1 << 10
#: What a parameter is made of: elements, matrices, or matrices of one element.
VECTOR, MATRIX, POINT = range(3)
#: What a task does with its items.
WHOLE, BLOCK_SUMS, BLOCK_MOVE, TILE_SUMS, FACTORS, TILE_SQUARES, TILE_MOVE = range(7)
#: Sums may be added in any order, which is fixed when this is compiled.
SUMMING = Flags(("contract", "reassoc"))


# --- Records


class Parameter(
    Record,
    words="p g r c outer inner swapped p_outer p_inner g_outer g_inner r_outer c_inner p_next g_next r_next c_next elements first_part end_part",
):
    """A parameter: addresses, dimensions, and distances from one element, and from one matrix, to the next; what there is of both dimensions side by side.

    Outer and inner dimension are rows and columns, or columns and rows if ``swapped``. ``r`` is the state of the outer dimension, ``c`` that of the inner one; of a vector,
    ``r`` is the second moment.
    """

    def in_order(self, values: Sequence[int]) -> tuple[int, ...]:
        """What there is of parameter, gradient and the state of rows and of columns, in the order of the streams."""
        p, g, r, c = (*values, 0)[:4]
        return (p, g, c, r) if self.swapped else (p, g, r, c)

    def describe(self, shape: Sequence[int], strides: Sequence[tuple[int, ...]]) -> None:
        """Fill in dimensions and distances of a matrix, whose streams have these strides."""
        outer, inner = (1, 0) if self.swapped else (0, 1)
        p, g, r, c = strides
        own = {"outer": shape[outer], "inner": shape[inner]}
        own |= {"p_outer": p[outer], "p_inner": p[inner], "g_outer": g[outer], "g_inner": g[inner]}
        own["r_outer"], own["c_inner"] = (c[1], r[0]) if self.swapped else (r[0], c[1])
        vars(self).update(own)

    def offsets(self, start: Sequence[int], n: int) -> dict[str, int]:
        """Where matrix (or element) ``n`` of a run begins in each stream."""
        distances = (self.p_next, self.g_next, self.r_next, self.c_next)
        return {name: at + n * distance for name, at, distance in zip("pgrc", start, distances, strict=True)}


class Row(Parameter, words="kind group step wide dense first_block end_block idle"):
    """A parameter of a launch, with distances in bytes; ``idle`` while it has no gradient."""


class Matrix(Record, words="row p g r c row_sums column_sums across down new_r new_c a b mode"):
    """A matrix that is cut: where it begins in each stream, then in the scratch its sums (a line for each tile across, and one for each tile down), its new state and its
    factors. ``mode`` is how those are to be used: 0, or how products beyond the format are met, 1: V is infinite there, 2: V is infinity by infinity.
    """


#: Words of a matrix that are places in the scratch, in the order in which these follow each other.
SHARED = ("row_sums", "column_sums", "a", "new_r", "b", "new_c")


class Block(Record, words="row count p g r c"):
    """Matrices (or elements) in a run, and where the run begins in each stream."""


class Tile(Record, words="matrix i0 i1 j0 j1 down across part"):
    """Rows and columns of a matrix, its place among the tiles of that, and of the partial sums."""


class Task(Record, words="work first last"):
    """What is done with items from ``first`` to ``last``."""


class Scalars(Record, words="forget:float decay:float rho:float eps1:float eps2:float d:float sign:float"):
    """What the elements of a row need."""


class Options(
    Record, words="lr:float beta2_decay:float eps1:float eps2:float d:float weight_decay:float maximize:float"
):
    """The options of a group."""


class Launch(
    Record,
    words="next end slot count tasks:Task rows:Row scalars:Scalars options:Options blocks:Block matrices:Matrix tiles:Tile partials scratch:Matrix scratch_words",
):
    """Tables. A kernel takes tasks from ``next`` to ``end``; each thread takes a slot of the scratch, which begins with a matrix."""


# --- Scalars


def prepare(launch: Launch):
    last_step, last_group, forget, rho = 0.0, -1, 0.0, 0.0
    for k in range(launch.count):
        row, scalars = launch.rows[k], launch.scalars[k]
        if row.idle != 0:
            continue
        options = launch.options[row.group]
        if row.wide != 0:
            step = load_float64(row.step, 0) + 1.0
            store_float64(row.step, 0, step)
        else:
            stored = float32(load_float32(row.step, 0) + float32(1.0))
            store_float32(row.step, 0, stored)
            step = float64(stored)
        if step != last_step or row.group != last_group:
            forget = step**options.beta2_decay
            rho = minimum(options.lr, 1.0 / sqrt(step))
            last_step, last_group = step, row.group
        scalars.forget, scalars.rho = forget, rho
        scalars.decay = 1.0 - options.lr * options.weight_decay
        scalars.eps1, scalars.eps2, scalars.d = options.eps1, options.eps2, options.d
        scalars.sign = 1.0 - 2.0 * options.maximize


# --- The innermost loops, over elements of the inner dimension of a matrix, or of a vector, or over points. Those whose distances are known to
# be SIZE are vectorized.


@SUMMING
def sums(n, p, g, columns, dp: fixed, dg: fixed):
    of_g = of_p = 0.0
    for j in range(n):
        x, y = float64(load_g(g, j, dg)), float64(load_p(p, j, dp))
        of_g += x * x
        of_p += y * y
        store_columns(columns, j, load_columns(columns, j) + x * x)
    return of_g, of_p


def factor(j, a, b, cap, r, c, beyond, careful: fixed):
    # Careful, it makes infinite what R C beyond the format makes infinite.
    f = a * load_b(b, j)
    if careful:
        f = beyond if abs(r * load_new_c(c, j)) > LARGEST else f
    return min(f, cap)


@SUMMING
def squares(n, g, a, b, cap, r, c, beyond, careful: fixed, dg: fixed):
    total = 0.0
    for j in range(n):
        u = float64(factor(j, a, b, cap, r, c, beyond, careful) * load_g(g, j, dg))
        total += u * u
    return total


def move(n, p, g, a, b, cap, decay, rate, r, c, beyond, careful: fixed, dp: fixed, dg: fixed):
    for j in range(n):
        u = factor(j, a, b, cap, r, c, beyond, careful) * load_g(g, j, dg)
        store_p(p, j, decay * load_p(p, j, dp) - rate * u, dp)


@SUMMING
def run_squares(n, p, g, r, c, keep, forget, eps1, point: fixed, dp: fixed, dg: fixed, dr: fixed, dc: fixed):
    of_p = of_u = 0.0
    for j in range(n):
        x = load_g(g, j, dg)
        v = keep * load_r(r, j, dr) + forget * (x * x)
        if point:
            v = v * (keep * load_c(c, j, dc) + forget * (x * x)) / maximum(v, eps1)
        u = x / maximum(sqrt(v), eps1)
        y, w = float64(load_p(p, j, dp)), float64(u)
        of_p += y * y
        of_u += w * w
    return of_p, of_u


def run_move(n, p, g, r, c, keep, forget, eps1, decay, rate, point: fixed, dp: fixed, dg: fixed, dr: fixed, dc: fixed):
    for j in range(n):
        x = load_g(g, j, dg)
        new_r = v = keep * load_r(r, j, dr) + forget * (x * x)
        if point:
            new_c = keep * load_c(c, j, dc) + forget * (x * x)
            v = new_r * new_c / maximum(new_r, eps1)
        u = x / maximum(sqrt(v), eps1)
        store_r(r, j, new_r, dr)
        if point:
            store_c(c, j, new_c, dc)
        store_p(p, j, decay * load_p(p, j, dp) - rate * u, dp)


# --- Matrices


def tile_sums(row: Row, p, g, row_sums, column_sums, i0, i1, j0, j1):
    # Sums of squares of the rows and columns of a tile; returned: of the parameter.
    po, pi, go, gi = row.p_outer, row.p_inner, row.g_outer, row.g_inner
    dense = row.dense != 0
    total = 0.0
    for i in range(i0, i1):
        store_float64(row_sums, i, 0.0)
    for j in range(j0, j1):
        store_float64(column_sums, j, 0.0)
    j = j0
    while j < j1:
        n = min(STRIP, j1 - j)
        columns = column_sums + 8 * j
        for i in range(i0, i1):
            at_p, at_g = p + i * po + j * pi, g + i * go + j * gi
            if dense:
                of_g, of_p = sums(n, at_p, at_g, columns, SIZE, SIZE)
            else:
                of_g, of_p = sums(n, at_p, at_g, columns, pi, gi)
            store_float64(row_sums, i, load_float64(row_sums, i) + of_g)
            total += of_p
        j += STRIP
    return total


def added(sums, n, parts):
    # Add up what each part found, in order, into the first.
    for k in range(1, parts):
        more = sums + 8 * k * n
        for i in range(n):
            store_sums(sums, i, load_sums(sums, i) + load_more(more, i))


@SUMMING
def averaged(n, sums, length, old, distance, new, keep, forget):
    # The new averages of one dimension; returned: their sum and the largest.
    total, top = 0.0, 0.0
    for i in range(n):
        mean = load_float64(sums, i) / length
        x = real(keep * float64(load_state(old + i * distance, 0)) + forget * mean)
        store_real(new, i, x)
        total += float64(x)
        top = maximum(top, float64(x))
    return total, top


def roots(n, scale, new, out):
    for i in range(n):
        store_out(out, i, real(scale / sqrt(float64(load_real(new, i)))))


def factors(row: Row, scalars: Scalars, m: Matrix, r, c):
    # From the sums to the new state and the factors.
    outer, inner, forget = row.outer, row.inner, scalars.forget
    new_r, new_c, keep = m.new_r, m.new_c, 1.0 - forget
    added(m.row_sums, outer, m.across)
    added(m.column_sums, inner, m.down)
    sum_r, top_r = averaged(outer, m.row_sums, float64(inner), r, row.r_outer, new_r, keep, forget)
    sum_c, top_c = averaged(inner, m.column_sums, float64(outer), c, row.c_inner, new_c, keep, forget)
    swapped = row.swapped != 0
    mean = sum_c / float64(inner) if swapped else sum_r / float64(outer)
    root = sqrt(maximum(mean, scalars.eps1))
    # The root stands with the row state, whose mean it comes from: for a normal number neither factor then leaves the format.
    roots(outer, 1.0 if swapped else root, new_r, m.a)
    roots(inner, root if swapped else 1.0, new_c, m.b)
    m.mode = (2 if root > LARGEST64 else 1) if top_r * top_c > LARGEST64 else 0


def keep_state(row: Row, m: Matrix, r, c):
    new, distance = m.new_r, row.r_outer
    for i in range(row.outer):
        store_state(r + i * distance, 0, load_real(new, i))
    new, distance = m.new_c, row.c_inner
    for j in range(row.inner):
        store_state(c + j * distance, 0, load_real(new, j))


def tile_squares(row: Row, scalars: Scalars, m: Matrix, g, i0, i1, j0, j1):
    go, gi, mode, a, new_r = row.g_outer, row.g_inner, m.mode, m.a, m.new_r
    dense = row.dense != 0 and mode == 0
    cap = real(1.0 / scalars.eps1)
    beyond = real(NAN) if mode == 2 else real(0.0)
    n, b, new_c = j1 - j0, m.b + j0 * REAL, m.new_c + j0 * REAL
    total = 0.0
    for i in range(i0, i1):
        at, of_row = g + i * go + j0 * gi, load_real(a, i)
        if dense:
            total += squares(n, at, of_row, b, cap, cap, new_c, beyond, False, SIZE)
        else:
            r = load_real(new_r, i) if mode != 0 else real(0.0)
            total += squares(n, at, of_row, b, cap, r, new_c, beyond, True, gi)
    return total


def tile_move(row: Row, scalars: Scalars, m: Matrix, p, g, i0, i1, j0, j1, rate):
    po, pi, go, gi, mode, a, new_r = row.p_outer, row.p_inner, row.g_outer, row.g_inner, m.mode, m.a, m.new_r
    dense = row.dense != 0 and mode == 0
    cap, decay = real(1.0 / scalars.eps1), real(scalars.decay)
    beyond = real(NAN) if mode == 2 else real(0.0)
    n, b, new_c = j1 - j0, m.b + j0 * REAL, m.new_c + j0 * REAL
    for i in range(i0, i1):
        at_p, at_g, of_row = p + i * po + j0 * pi, g + i * go + j0 * gi, load_real(a, i)
        if dense:
            move(n, at_p, at_g, of_row, b, cap, decay, rate, cap, new_c, beyond, False, SIZE, SIZE)
        else:
            r = load_real(new_r, i) if mode != 0 else real(0.0)
            move(n, at_p, at_g, of_row, b, cap, decay, rate, r, new_c, beyond, True, pi, gi)


# --- Blocks


def placed(m: Matrix, outer, inner):
    # Where the sums and factors of the matrices of a block are: behind this record, in the scratch of the thread.
    m.across, m.down = 1, 1
    m.row_sums = m + 8 * Matrix.words
    m.column_sums = m.row_sums + 8 * outer
    m.a = m.column_sums + 8 * inner
    m.new_r = m.a + 8 * outer
    m.b = m.new_r + 8 * outer
    m.new_c = m.b + 8 * inner


def block_squares(block: Block, row: Row, scalars: Scalars, m: Matrix):
    n, p, g, r, c = block.count, row.p + block.p, row.g + block.g, row.r + block.r, row.c + block.c
    keep, forget, eps1 = real(1.0 - scalars.forget), real(scalars.forget), real(scalars.eps1)
    dp, dg, dr, dc = row.p_next, row.g_next, row.r_next, row.c_next
    if row.kind == VECTOR:
        if row.dense != 0:
            return run_squares(n, p, g, r, c, keep, forget, eps1, False, SIZE, SIZE, SIZE, SIZE)
        return run_squares(n, p, g, r, c, keep, forget, eps1, False, dp, dg, dr, dc)
    if row.kind == POINT:
        if row.dense != 0:
            return run_squares(n, p, g, r, c, keep, forget, eps1, True, SIZE, SIZE, SIZE, SIZE)
        return run_squares(n, p, g, r, c, keep, forget, eps1, True, dp, dg, dr, dc)
    outer, inner = row.outer, row.inner
    placed(m, outer, inner)
    of_p = of_u = 0.0
    for _ in range(n):
        of_p += tile_sums(row, p, g, m.row_sums, m.column_sums, 0, outer, 0, inner)
        factors(row, scalars, m, r, c)
        of_u += tile_squares(row, scalars, m, g, 0, outer, 0, inner)
        p, g, r, c = p + dp, g + dg, r + dr, c + dc
    return of_p, of_u


def block_move(block: Block, row: Row, scalars: Scalars, m: Matrix, rate, known):
    n, p, g, r, c = block.count, row.p + block.p, row.g + block.g, row.r + block.r, row.c + block.c
    keep, forget, eps1 = real(1.0 - scalars.forget), real(scalars.forget), real(scalars.eps1)
    decay, dp, dg, dr, dc = real(scalars.decay), row.p_next, row.g_next, row.r_next, row.c_next
    if row.kind == VECTOR:
        if row.dense != 0:
            run_move(n, p, g, r, c, keep, forget, eps1, decay, rate, False, SIZE, SIZE, SIZE, SIZE)
        else:
            run_move(n, p, g, r, c, keep, forget, eps1, decay, rate, False, dp, dg, dr, dc)
        return
    if row.kind == POINT:
        if row.dense != 0:
            run_move(n, p, g, r, c, keep, forget, eps1, decay, rate, True, SIZE, SIZE, SIZE, SIZE)
        else:
            run_move(n, p, g, r, c, keep, forget, eps1, decay, rate, True, dp, dg, dr, dc)
        return
    outer, inner = row.outer, row.inner
    placed(m, outer, inner)
    for _ in range(n):
        if not known:
            tile_sums(row, p, g, m.row_sums, m.column_sums, 0, outer, 0, inner)
            factors(row, scalars, m, r, c)
        tile_move(row, scalars, m, p, g, 0, outer, 0, inner, rate)
        keep_state(row, m, r, c)
        p, g, r, c = p + dp, g + dg, r + dr, c + dc


# --- Tasks


def rate_of(row: Row, scalars: Scalars, of_p, of_u):
    # What the update is multiplied by. Of NaN the bounds stand, as in torch.optim: one bad element does not spoil the others.
    n = float64(row.elements)
    size, change = sqrt(of_p / n), sqrt(of_u / n) / scalars.d
    alpha = max(scalars.eps2, size) * scalars.rho
    return real(scalars.sign * alpha / max(1.0, change))


def rate_of_parts(launch: Launch, row: Row, scalars: Scalars):
    of_p = of_u = 0.0
    for k in range(row.first_part, row.end_part):
        of_p += load_float64(launch.partials, 2 * k)
        of_u += load_float64(launch.partials, 2 * k + 1)
    return rate_of(row, scalars, of_p, of_u)


def whole(launch: Launch, row: Row, scalars: Scalars, m: Matrix):
    blocks, first, end = launch.blocks, row.first_block, row.end_block
    of_p = of_u = 0.0
    for k in range(first, end):
        p2, u2 = block_squares(blocks[k], row, scalars, m)
        of_p += p2
        of_u += u2
    rate = rate_of(row, scalars, of_p, of_u)
    # The factors of a single matrix are still there.
    known = end == first + 1 and blocks[first].count == 1
    for k in range(first, end):
        block_move(blocks[k], row, scalars, m, rate, known)


def one_tile(launch: Launch, work, tile: Tile):
    m = launch.matrices[tile.matrix]
    row, scalars = launch.rows[m.row], launch.scalars[m.row]
    p, g, i0, i1, j0, j1 = row.p + m.p, row.g + m.g, tile.i0, tile.i1, tile.j0, tile.j1
    if work == TILE_SUMS:
        row_sums = m.row_sums + 8 * tile.across * row.outer
        column_sums = m.column_sums + 8 * tile.down * row.inner
        store_float64(launch.partials, 2 * tile.part, tile_sums(row, p, g, row_sums, column_sums, i0, i1, j0, j1))
    elif work == TILE_SQUARES:
        store_float64(launch.partials, 2 * tile.part + 1, tile_squares(row, scalars, m, g, i0, i1, j0, j1))
    else:
        tile_move(row, scalars, m, p, g, i0, i1, j0, j1, rate_of_parts(launch, row, scalars))


def one_matrix(launch: Launch, m: Matrix):
    row = launch.rows[m.row]
    r, c = row.r + m.r, row.c + m.c
    factors(row, launch.scalars[m.row], m, r, c)
    keep_state(row, m, r, c)


def row_of(launch: Launch, work, k):
    if work == WHOLE:
        return k
    if work < TILE_SUMS:
        return launch.blocks[k].row
    return launch.matrices[k if work == FACTORS else launch.tiles[k].matrix].row


def step(launch: Launch):
    scratch = launch.scratch + 8 * next_number(launch + 8 * Launch.slot) * launch.scratch_words
    while True:
        number = next_number(launch + 8 * Launch.next)
        if number >= launch.end:
            break
        task = launch.tasks[number]
        work = task.work
        for k in range(task.first, task.last):
            number = row_of(launch, work, k)
            row, scalars = launch.rows[number], launch.scalars[number]
            if row.idle != 0:
                continue
            if work == WHOLE:
                whole(launch, row, scalars, scratch)
            elif work == BLOCK_SUMS:
                of_p, of_u = block_squares(launch.blocks[k], row, scalars, scratch)
                part = row.first_part + k - row.first_block
                store_float64(launch.partials, 2 * part, of_p)
                store_float64(launch.partials, 2 * part + 1, of_u)
            elif work == BLOCK_MOVE:
                block_move(launch.blocks[k], row, scalars, scratch, rate_of_parts(launch, row, scalars), False)
            elif work == FACTORS:
                one_matrix(launch, launch.matrices[k])
            else:
                one_tile(launch, work, launch.tiles[k])
