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
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from stepcheck.fast import native
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
#: Columns whose sums stay in a first-level cache.
STRIP = 1 << 10
#: Elements of a wave, about: parameter and gradient of it fit into a third-level cache.
WAVE = 1 << 20
#: Elements from which on more threads than one take part.
SPREAD = 1 << 17

# Words of a launch. The kernel takes tasks from NEXT to END; each thread takes a slot of the scratch.
(
    NEXT,
    END,
    SLOT,
    TASKS,
    ROWS,
    SCALARS,
    OPTIONS,
    COUNT,
    BLOCKS,
    MATRICES,
    TILE_TABLE,
    PARTIALS,
    SCRATCH,
    SCRATCH_WORDS,
    WORDS,
) = range(15)
# Words of a row, which is a parameter; it is IDLE while it has no gradient. Distances are in bytes; outer and inner dimension are rows and columns, or columns and rows if
# SWAPPED. R is the state of the outer dimension, C that of the inner one.
(
    KIND, GROUP, STEP, WIDE, P, G, R, C, OUTER, INNER, SWAPPED, DENSE, P_OUTER, P_INNER, G_OUTER, G_INNER, R_OUTER, C_INNER,
    P_NEXT, G_NEXT, R_NEXT, C_NEXT, ELEMENTS, FIRST_PART, END_PART, FIRST_BLOCK, END_BLOCK, IDLE, ROW_WORDS,
) = range(29)  # fmt: skip
#: What a parameter is made of: elements, matrices, or matrices of one element.
VECTOR, MATRIX, POINT = range(3)
# Words of a block: matrices (or elements) in a run, and where the run begins in each stream.
B_ROW, B_COUNT, B_P, B_G, B_R, B_C, BLOCK_WORDS = range(7)
# Words of a matrix that is cut: where it begins in each stream, its sums (a row for each column tile, a row for each row tile), its
# factors and its new state, and how the factors are to be used.
(
    M_ROW,
    M_P,
    M_G,
    M_R,
    M_C,
    M_ROW_SUMS,
    M_COLUMN_SUMS,
    M_A,
    M_NEW_R,
    M_B,
    M_NEW_C,
    M_DOWN,
    M_ACROSS,
    M_MODE,
    MATRIX_WORDS,
) = range(15)
# Words of a tile: its matrix, its rows and columns, its place among the tiles of the matrix, and of the partial sums.
T_MATRIX, T_I0, T_I1, T_J0, T_J1, T_DOWN, T_ACROSS, T_PART, TILE_WORDS = range(9)
# Words of a task, and what it does with items from FIRST to END.
WORK, FIRST, LAST, TASK_WORDS = range(4)
WHOLE, BLOCK_SUMS, BLOCK_MOVE, TILE_SUMS, FACTORS, TILE_SQUARES, TILE_MOVE = range(7)
# Scalars of a row, and options of a group.
S_FORGET, S_DECAY, S_RHO, S_EPS1, S_EPS2, S_D, S_SIGN, SCALAR_WORDS = range(8)
O_LR, O_BETA2_DECAY, O_EPS1, O_EPS2, O_D, O_WEIGHT_DECAY, O_MAXIMIZE, OPTION_WORDS = range(8)


# --- Kernels

#: Counts the steps of the parameters of a launch and makes their scalars.
_PREPARE = f"""
def kernel(launch):
    rows, scalars = load_int64(launch, {ROWS}), load_int64(launch, {SCALARS})
    last_step, last_group, forget, rho = 0.0, -1, 0.0, 0.0
    for r in range(load_int64(launch, {COUNT})):
        row, scalar = rows + r * {8 * ROW_WORDS}, scalars + r * {8 * SCALAR_WORDS}
        if load_int64(row, {IDLE}) != 0:
            continue
        group, at = load_int64(row, {GROUP}), load_int64(row, {STEP})
        options = load_int64(launch, {OPTIONS}) + group * {8 * OPTION_WORDS}
        if load_int64(row, {WIDE}) != 0:
            step = load_float64(at, 0) + 1.0
            store_float64(at, 0, step)
        else:
            stored = float32(load_float32(at, 0) + float32(1.0))
            store_float32(at, 0, stored)
            step = float64(stored)
        lr = load_float64(options, {O_LR})
        if step != last_step or group != last_group:
            forget = step ** load_float64(options, {O_BETA2_DECAY})
            rho = minimum(lr, 1.0 / sqrt(step))
            last_step, last_group = step, group
        store_float64(scalar, {S_FORGET}, forget)
        store_float64(scalar, {S_DECAY}, 1.0 - lr * load_float64(options, {O_WEIGHT_DECAY}))
        store_float64(scalar, {S_RHO}, rho)
        store_float64(scalar, {S_EPS1}, load_float64(options, {O_EPS1}))
        store_float64(scalar, {S_EPS2}, load_float64(options, {O_EPS2}))
        store_float64(scalar, {S_D}, load_float64(options, {O_D}))
        store_float64(scalar, {S_SIGN}, 1.0 - 2.0 * load_float64(options, {O_MAXIMIZE}))
"""

#: The innermost loops, over elements of the inner dimension of a matrix, or of a vector, or over points. Two of each: ``dense`` ones
#: are vectorized; the others follow distances, and, careful, make infinite what :math:`R_i C_j` beyond the format makes infinite.
_LOOPS = """
@SUMMING
def sums_dense(n, p, g, columns):
    of_g = of_p = 0.0
    for j in range(n):
        x, y = float64(load_g(g, j)), float64(load_p(p, j))
        of_g += x * x
        of_p += y * y
        store_columns(columns, j, load_columns(columns, j) + x * x)
    return of_g, of_p

@SUMMING
def sums_strided(n, p, g, columns, dp, dg):
    of_g = of_p = 0.0
    for j in range(n):
        x, y = float64(load_g(g + j * dg, 0)), float64(load_p(p + j * dp, 0))
        of_g += x * x
        of_p += y * y
        store_columns(columns, j, load_columns(columns, j) + x * x)
    return of_g, of_p

@SUMMING
def squares_dense(n, g, b, a, cap):
    total = 0.0
    for j in range(n):
        f = a * load_b(b, j)
        u = float64((cap if f > cap else f) * load_g(g, j))
        total += u * u
    return total

@SUMMING
def squares_strided(n, g, b, a, cap, dg, r, c, beyond):
    total = 0.0
    for j in range(n):
        f = a * load_b(b, j)
        f = beyond if abs(r * load_new_c(c, j)) > LARGEST else f
        u = float64((cap if f > cap else f) * load_g(g + j * dg, 0))
        total += u * u
    return total

def move_dense(n, p, g, b, a, cap, decay, rate):
    for j in range(n):
        f = a * load_b(b, j)
        u = (cap if f > cap else f) * load_g(g, j)
        store_p(p, j, decay * load_p(p, j) - rate * u)

def move_strided(n, p, g, b, a, cap, decay, rate, dp, dg, r, c, beyond):
    for j in range(n):
        f = a * load_b(b, j)
        f = beyond if abs(r * load_new_c(c, j)) > LARGEST else f
        u = (cap if f > cap else f) * load_g(g + j * dg, 0)
        store_p(p + j * dp, 0, decay * load_p(p + j * dp, 0) - rate * u)
"""


def _run_loops(name: str, variance: str, streams: tuple[str, ...]) -> str:
    """The loops over a run of elements that each have state of their own: a vector's, or matrices of one element."""
    source = ""
    for dense in (True, False):
        suffix = "dense" if dense else "strided"
        at = "at_{s}, j" if dense else "at_{s} + j * d{s}, 0"
        arguments = ", ".join((*(f"at_{s}" for s in streams), *(() if dense else (f"d{s}" for s in streams))))
        load = {s: f"load_{s}({at.format(s=s)})" for s in streams}
        states = [s for s in streams if s in "rc"]
        found = "\n        ".join(f"{s} = keep * {load[s]} + forget * (x * x)" for s in states)
        stored = "\n        ".join(f"store_{s}({at.format(s=s)}, {s})" for s in states)
        update = f"x = {load['g']}\n        {found}\n        u = x / maximum(sqrt({variance}), eps1)"
        source += f"""
@SUMMING
def {name}_squares_{suffix}(n, {arguments}, keep, forget, eps1):
    of_p = of_u = 0.0
    for j in range(n):
        {update}
        y, w = float64({load["p"]}), float64(u)
        of_p += y * y
        of_u += w * w
    return of_p, of_u

def {name}_move_{suffix}(n, {arguments}, keep, forget, eps1, decay, rate):
    for j in range(n):
        {update}
        {stored}
        store_p({at.format(s="p")}, decay * {load["p"]} - rate * u)
"""
    return source


_MATRIX = f"""
def tile_sums(row, p, g, row_sums, column_sums, i0, i1, j0, j1):
    # Sums of squares of the rows and columns of a tile; returned: of the parameter.
    po, pi = load_int64(row, {P_OUTER}), load_int64(row, {P_INNER})
    go, gi = load_int64(row, {G_OUTER}), load_int64(row, {G_INNER})
    dense = load_int64(row, {DENSE}) != 0
    total = 0.0
    for i in range(i0, i1):
        store_float64(row_sums, i, 0.0)
    for j in range(j0, j1):
        store_float64(column_sums, j, 0.0)
    j = j0
    while j < j1:
        n = min({STRIP}, j1 - j)
        columns = column_sums + 8 * j
        for i in range(i0, i1):
            at_p, at_g = p + i * po + j * pi, g + i * go + j * gi
            if dense:
                of_g, of_p = sums_dense(n, at_p, at_g, columns)
            else:
                of_g, of_p = sums_strided(n, at_p, at_g, columns, pi, gi)
            store_float64(row_sums, i, load_float64(row_sums, i) + of_g)
            total += of_p
        j += {STRIP}
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

def factors(row, scalar, r, c, row_sums, across, column_sums, down, a, new_r, b, new_c):
    # From the sums to the new state and the factors; returned: 0, or how products beyond the format are met, 1: V is
    # infinite there, 2: V is infinity by infinity.
    outer, inner = load_int64(row, {OUTER}), load_int64(row, {INNER})
    forget = load_float64(scalar, {S_FORGET})
    keep = 1.0 - forget
    added(row_sums, outer, across)
    added(column_sums, inner, down)
    sum_r, top_r = averaged(outer, row_sums, float64(inner), r, load_int64(row, {R_OUTER}), new_r, keep, forget)
    sum_c, top_c = averaged(inner, column_sums, float64(outer), c, load_int64(row, {C_INNER}), new_c, keep, forget)
    swapped = load_int64(row, {SWAPPED}) != 0
    mean = sum_c / float64(inner) if swapped else sum_r / float64(outer)
    root = sqrt(maximum(mean, load_float64(scalar, {S_EPS1})))
    # The root stands with the row state, whose mean it comes from: for a normal number neither factor then leaves the format.
    roots(outer, 1.0 if swapped else root, new_r, a)
    roots(inner, root if swapped else 1.0, new_c, b)
    if not (top_r * top_c > LARGEST64):
        return 0
    return 2 if root > LARGEST64 else 1

def keep_state(row, r, c, new_r, new_c):
    distance = load_int64(row, {R_OUTER})
    for i in range(load_int64(row, {OUTER})):
        store_state(r + i * distance, 0, load_real(new_r, i))
    distance = load_int64(row, {C_INNER})
    for j in range(load_int64(row, {INNER})):
        store_state(c + j * distance, 0, load_real(new_c, j))

def tile_squares(row, scalar, mode, g, a, b, new_r, new_c, i0, i1, j0, j1):
    go, gi = load_int64(row, {G_OUTER}), load_int64(row, {G_INNER})
    dense = load_int64(row, {DENSE}) != 0 and mode == 0
    cap = real(1.0 / load_float64(scalar, {S_EPS1}))
    beyond = real(NAN) if mode == 2 else real(0.0)
    total = 0.0
    for i in range(i0, i1):
        at, factor = g + i * go + j0 * gi, load_real(a, i)
        if dense:
            total += squares_dense(j1 - j0, at, b + j0 * REAL, factor, cap)
        else:
            r = load_real(new_r, i) if mode != 0 else real(0.0)
            total += squares_strided(j1 - j0, at, b + j0 * REAL, factor, cap, gi, r, new_c + j0 * REAL, beyond)
    return total

def tile_move(row, scalar, mode, p, g, a, b, new_r, new_c, i0, i1, j0, j1, rate):
    po, pi = load_int64(row, {P_OUTER}), load_int64(row, {P_INNER})
    go, gi = load_int64(row, {G_OUTER}), load_int64(row, {G_INNER})
    dense = load_int64(row, {DENSE}) != 0 and mode == 0
    cap, decay = real(1.0 / load_float64(scalar, {S_EPS1})), real(load_float64(scalar, {S_DECAY}))
    beyond = real(NAN) if mode == 2 else real(0.0)
    for i in range(i0, i1):
        at_p, at_g, factor = p + i * po + j0 * pi, g + i * go + j0 * gi, load_real(a, i)
        if dense:
            move_dense(j1 - j0, at_p, at_g, b + j0 * REAL, factor, cap, decay, rate)
        else:
            r = load_real(new_r, i) if mode != 0 else real(0.0)
            move_strided(j1 - j0, at_p, at_g, b + j0 * REAL, factor, cap, decay, rate, pi, gi, r, new_c + j0 * REAL, beyond)
"""


def _run_calls(name: str, streams: tuple[str, ...], more: str) -> tuple[str, str]:
    """Calls of a dense and of a strided loop over runs."""
    distances = {"p": P_NEXT, "g": G_NEXT, "r": R_NEXT, "c": C_NEXT}
    given = ", ".join(streams)
    return (
        f"{name}_dense(n, {given}, keep, forget, eps1{more})",
        f"{name}_strided(n, {given}, {', '.join(f'load_int64(row, {distances[s]})' for s in streams)}, keep, forget, eps1{more})",
    )


def _block(work: str) -> str:
    """A function that sums over, or updates, one block."""
    move = work == "move"
    more = ", decay, rate" if move else ""
    runs = ""
    for name, kind, streams in (("vector", VECTOR, ("p", "g", "r")), ("point", POINT, ("p", "g", "r", "c"))):
        dense, strided = _run_calls(f"{name}_{work}", streams, more)
        result = "" if move else "of_p, of_u = "
        runs += f"""
    if kind == {kind}:
        if load_int64(row, {DENSE}) != 0:
            {result}{dense}
        else:
            {result}{strided}
        {"return" if move else "return of_p, of_u"}"""
    each = """
        if known == 0:
            tile_sums(row, p, g, sums, columns, none, outer, none, inner)
            mode = factors(row, scalar, r, c, sums, one, columns, one, a, new_r, b, new_c)
        else:
            mode = known - 1
        tile_move(row, scalar, mode, p, g, a, b, new_r, new_c, none, outer, none, inner, rate)
        keep_state(row, r, c, new_r, new_c)
""" if move else """
        of_p += tile_sums(row, p, g, sums, columns, none, outer, none, inner)
        mode = factors(row, scalar, r, c, sums, one, columns, one, a, new_r, b, new_c)
        of_u += tile_squares(row, scalar, mode, g, a, b, new_r, new_c, none, outer, none, inner)
        store_float64(scratch, 0, float64(mode))
"""  # fmt: skip
    return f"""
def block_{work}(block, row, scalar, scratch{", rate, known" if move else ""}):
    n, kind = load_int64(block, {B_COUNT}), load_int64(row, {KIND})
    p, g = load_int64(row, {P}) + load_int64(block, {B_P}), load_int64(row, {G}) + load_int64(block, {B_G})
    r, c = load_int64(row, {R}) + load_int64(block, {B_R}), load_int64(row, {C}) + load_int64(block, {B_C})
    forget64 = load_float64(scalar, {S_FORGET})
    keep, forget, eps1 = real(1.0 - forget64), real(forget64), real(load_float64(scalar, {S_EPS1}))
    {f"decay = real(load_float64(scalar, {S_DECAY}))" if move else ""}{runs}
    outer, inner = load_int64(row, {OUTER}), load_int64(row, {INNER})
    sums, columns = scratch + 8, scratch + 8 * (1 + outer)
    a, new_r = columns + 8 * inner, columns + 8 * (inner + outer)
    b, new_c = columns + 8 * (inner + 2 * outer), columns + 8 * (2 * inner + 2 * outer)
    none, one = int64(0), int64(1)
    {"" if move else "of_p = of_u = 0.0"}
    for _ in range(n):{each}
        p += load_int64(row, {P_NEXT})
        g += load_int64(row, {G_NEXT})
        r += load_int64(row, {R_NEXT})
        c += load_int64(row, {C_NEXT})
    {"" if move else "return of_p, of_u"}
"""


_TASKS = f"""
def rate_of(row, scalar, of_p, of_u):
    # What the update is multiplied by. Of NaN the bounds stand, as in torch.optim: one bad element does not spoil the others.
    n = float64(load_int64(row, {ELEMENTS}))
    size, change = sqrt(of_p / n), sqrt(of_u / n) / load_float64(scalar, {S_D})
    least = load_float64(scalar, {S_EPS2})
    alpha = (size if size > least else least) * load_float64(scalar, {S_RHO})
    return real(load_float64(scalar, {S_SIGN}) * alpha / (change if change > 1.0 else 1.0))

def rate_of_parts(row, scalar, partials):
    of_p = of_u = 0.0
    for k in range(load_int64(row, {FIRST_PART}), load_int64(row, {END_PART})):
        of_p += load_float64(partials, 2 * k)
        of_u += load_float64(partials, 2 * k + 1)
    return rate_of(row, scalar, of_p, of_u)

def whole(blocks, row, scalar, scratch):
    first, end = load_int64(row, {FIRST_BLOCK}), load_int64(row, {END_BLOCK})
    of_p = of_u = 0.0
    for k in range(first, end):
        p2, u2 = block_squares(blocks + k * {8 * BLOCK_WORDS}, row, scalar, scratch)
        of_p += p2
        of_u += u2
    rate = rate_of(row, scalar, of_p, of_u)
    # The factors of a single matrix are still there.
    single = end == first + 1 and load_int64(blocks + first * {8 * BLOCK_WORDS}, {B_COUNT}) == 1
    known = 1 + int64(load_float64(scratch, 0)) if single and load_int64(row, {KIND}) == {MATRIX} else int64(0)
    for k in range(first, end):
        block_move(blocks + k * {8 * BLOCK_WORDS}, row, scalar, scratch, rate, known)

def one_tile(work, tile, matrices, rows, scalars, partials):
    m = matrices + load_int64(tile, {T_MATRIX}) * {8 * MATRIX_WORDS}
    number = load_int64(m, {M_ROW})
    row, scalar = rows + number * {8 * ROW_WORDS}, scalars + number * {8 * SCALAR_WORDS}
    p, g = load_int64(row, {P}) + load_int64(m, {M_P}), load_int64(row, {G}) + load_int64(m, {M_G})
    i0, i1 = load_int64(tile, {T_I0}), load_int64(tile, {T_I1})
    j0, j1 = load_int64(tile, {T_J0}), load_int64(tile, {T_J1})
    part, mode = load_int64(tile, {T_PART}), load_int64(m, {M_MODE})
    a, b = load_int64(m, {M_A}), load_int64(m, {M_B})
    new_r, new_c = load_int64(m, {M_NEW_R}), load_int64(m, {M_NEW_C})
    if work == {TILE_SUMS}:
        row_sums = load_int64(m, {M_ROW_SUMS}) + 8 * load_int64(tile, {T_ACROSS}) * load_int64(row, {OUTER})
        column_sums = load_int64(m, {M_COLUMN_SUMS}) + 8 * load_int64(tile, {T_DOWN}) * load_int64(row, {INNER})
        store_float64(partials, 2 * part, tile_sums(row, p, g, row_sums, column_sums, i0, i1, j0, j1))
    elif work == {TILE_SQUARES}:
        store_float64(partials, 2 * part + 1, tile_squares(row, scalar, mode, g, a, b, new_r, new_c, i0, i1, j0, j1))
    else:
        rate = rate_of_parts(row, scalar, partials)
        tile_move(row, scalar, mode, p, g, a, b, new_r, new_c, i0, i1, j0, j1, rate)

def one_matrix(m, rows, scalars):
    number = load_int64(m, {M_ROW})
    row, scalar = rows + number * {8 * ROW_WORDS}, scalars + number * {8 * SCALAR_WORDS}
    r, c = load_int64(row, {R}) + load_int64(m, {M_R}), load_int64(row, {C}) + load_int64(m, {M_C})
    new_r, new_c = load_int64(m, {M_NEW_R}), load_int64(m, {M_NEW_C})
    mode = factors(
        row, scalar, r, c, load_int64(m, {M_ROW_SUMS}), load_int64(m, {M_ACROSS}), load_int64(m, {M_COLUMN_SUMS}),
        load_int64(m, {M_DOWN}), load_int64(m, {M_A}), new_r, load_int64(m, {M_B}), new_c,
    )
    store_int64(m, {M_MODE}, mode)
    keep_state(row, r, c, new_r, new_c)

def row_of(work, k, blocks, matrices, tiles):
    if work == {WHOLE}:
        return k
    if work == {BLOCK_SUMS} or work == {BLOCK_MOVE}:
        return load_int64(blocks + k * {8 * BLOCK_WORDS}, {B_ROW})
    m = k if work == {FACTORS} else load_int64(tiles + k * {8 * TILE_WORDS}, {T_MATRIX})
    return load_int64(matrices + m * {8 * MATRIX_WORDS}, {M_ROW})

def kernel(launch):
    tasks, end = load_int64(launch, {TASKS}), load_int64(launch, {END})
    rows, scalars = load_int64(launch, {ROWS}), load_int64(launch, {SCALARS})
    blocks, matrices = load_int64(launch, {BLOCKS}), load_int64(launch, {MATRICES})
    tiles, partials = load_int64(launch, {TILE_TABLE}), load_int64(launch, {PARTIALS})
    slot = next_number(launch + {8 * SLOT})
    scratch = load_int64(launch, {SCRATCH}) + 8 * slot * load_int64(launch, {SCRATCH_WORDS})
    while True:
        number = next_number(launch)
        if number >= end:
            break
        task = tasks + number * {8 * TASK_WORDS}
        work = load_int64(task, {WORK})
        for k in range(load_int64(task, {FIRST}), load_int64(task, {LAST})):
            if load_int64(rows + row_of(work, k, blocks, matrices, tiles) * {8 * ROW_WORDS}, {IDLE}) != 0:
                continue
            if work == {WHOLE}:
                whole(blocks, rows + k * {8 * ROW_WORDS}, scalars + k * {8 * SCALAR_WORDS}, scratch)
            elif work == {BLOCK_SUMS} or work == {BLOCK_MOVE}:
                block = blocks + k * {8 * BLOCK_WORDS}
                parameter = load_int64(block, {B_ROW})
                row, scalar = rows + parameter * {8 * ROW_WORDS}, scalars + parameter * {8 * SCALAR_WORDS}
                if work == {BLOCK_SUMS}:
                    of_p, of_u = block_squares(block, row, scalar, scratch)
                    part = load_int64(row, {FIRST_PART}) + k - load_int64(row, {FIRST_BLOCK})
                    store_float64(partials, 2 * part, of_p)
                    store_float64(partials, 2 * part + 1, of_u)
                else:
                    block_move(block, row, scalar, scratch, rate_of_parts(row, scalar, partials), int64(0))
            elif work == {FACTORS}:
                one_matrix(matrices + k * {8 * MATRIX_WORDS}, rows, scalars)
            else:
                one_tile(work, tiles + k * {8 * TILE_WORDS}, matrices, rows, scalars, partials)
"""


@functools.cache
def prepare_kernel() -> Kernel:
    """Counts the steps of the parameters of a launch and makes their scalars."""
    return kernel(_PREPARE)


@functools.cache
def step_kernel(dtype: str) -> Kernel:
    """Does the tasks of a launch over parameters that are stored in ``dtype``."""
    return kernel(step_source(dtype))


def step_source(dtype: str) -> str:
    """The source of :func:`step_kernel`."""
    real = COMPUTED[dtype]
    streams = ("p", "g", "r", "c", "b", "columns")
    runs = ("p", "g", "r", "c")
    kinds = {**dict.fromkeys(runs, dtype), "b": real, "columns": "float64"}
    # In the loops over the tiles of a matrix c is the new state of the inner dimension, in the loops over points the old one.
    makers = [f"load_{s} = loader({kinds[s]!r}, {s!r}, {streams!r})" for s in streams]
    makers += [f"store_{s} = storer({kinds[s]!r}, {s!r}, {streams!r})" for s in streams if s not in "gb"]
    makers += [f"load_new_c = loader({real!r})", f"load_real, store_real = loader({real!r}), storer({real!r})"]
    makers += [
        f"store_out = storer({real!r}, 'out', ('out',))",
        f"load_state, store_state = loader({dtype!r}), storer({dtype!r})",
    ]
    makers += [
        "load_sums, store_sums = loader('float64', 'sums', ('sums', 'more')), storer('float64', 'sums', ('sums', 'more'))"
    ]
    makers += ["load_more = loader('float64', 'more', ('sums', 'more'))"]
    largest = float(np.finfo(real).max)
    return f"""
real, REAL = {real}, {SIZE[real]}
LARGEST, LARGEST64, NAN = {real}({largest!r}), {largest!r}, float("nan")
# Sums may be added in any order, which is fixed when this is compiled.
SUMMING = ("contract", "reassoc")
{chr(10).join(makers)}
{_LOOPS}
{_run_loops("vector", "r", ("p", "g", "r"))}
{_run_loops("point", "r * c / maximum(r, eps1)", ("p", "g", "r", "c"))}
{_MATRIX}
{_block("squares")}
{_block("move")}
{_TASKS}
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

    rows: list[list[int]] = field(default_factory=list)
    blocks: list[list[int]] = field(default_factory=list)
    block_elements: list[int] = field(default_factory=list)
    matrices: list[list[int]] = field(default_factory=list)
    tiles: list[list[int]] = field(default_factory=list)
    tasks: list[tuple[int, int, int]] = field(default_factory=list)
    phases: list[_Phase] = field(default_factory=list)
    parts: int = 0
    #: Words of scratch of a thread, and of the matrices of the largest wave.
    slot: int = 1
    shared: int = 0

    def row(self, member: _Member) -> int:
        """Add a row, and the blocks or matrices of its parameter; its number."""
        number, size = len(self.rows), SIZE[REAL[member.p.dtype]]
        tensors = [member.p, member.g, *member.state]
        strides = [tuple(s * size for s in t.stride()) for t in tensors]
        row = [0] * ROW_WORDS
        shape = tuple(member.p.shape)
        rank = 2 if len(shape) > 1 else 0
        lead = shape[: len(shape) - rank]
        inside = shape[len(shape) - rank :]
        row[KIND] = VECTOR if not rank else POINT if inside == (1, 1) else MATRIX
        row[GROUP], row[STEP], row[WIDE] = member.group, member.step.data_ptr(), member.step.dtype is torch.float64
        row[ELEMENTS] = member.p.numel()
        each = row[ELEMENTS] and _describe_matrix(row, inside, strides, size)
        way = walk(lead, [s[: len(lead)] for s in strides]) if row[ELEMENTS] else walk((0,), [(0,)] * len(tensors))
        streams = len(tensors)
        for column, distance in zip((P_NEXT, G_NEXT, R_NEXT, C_NEXT), way.distances, strict=False):
            row[column] = distance
        if row[KIND] != MATRIX:
            row[DENSE] = way.length <= 1 or all(d == size for d in way.distances)
        addresses = [t.data_ptr() for t in tensors]
        if row[SWAPPED]:  # R is of the outer dimension, which is that of the columns
            addresses[2:], row[R_NEXT], row[C_NEXT] = addresses[:1:-1], row[C_NEXT], row[R_NEXT]
        row[P : P + streams] = addresses
        self.rows.append(row)
        starts = [_exchanged(s) if row[SWAPPED] else s for s in way.starts.tolist()]
        row[FIRST_PART] = self.parts
        row[FIRST_BLOCK] = len(self.blocks)
        if row[KIND] == MATRIX and each > PIECE:
            self._cut(number, row, way.length, way.distances, starts)
        else:
            self._block(number, row, each, way.length, way.distances, starts)
        row[END_PART], row[END_BLOCK] = self.parts, len(self.blocks)
        return number

    def _block(
        self, number: int, row: list[int], each: int, length: int, distances: Sequence[int], starts: list[list[int]]
    ) -> None:
        steps = _exchanged(list(distances)) if row[SWAPPED] else list(distances)
        count = length if row[ELEMENTS] <= PIECE else max(1, PIECE // each)
        for start in starts:
            for first in range(0, length, count):
                n = min(count, length - first)
                offsets = [s + first * d for s, d in zip(start, steps, strict=True)]
                self.blocks.append([number, n, *offsets, *[0] * (4 - len(offsets))])
                self.block_elements.append(n * each)
        if row[ELEMENTS] > PIECE:
            self.parts += len(self.blocks) - row[FIRST_BLOCK]
        if row[KIND] == MATRIX:
            self.slot = max(self.slot, 1 + 3 * (row[OUTER] + row[INNER]))

    def _cut(self, number: int, row: list[int], length: int, distances: Sequence[int], starts: list[list[int]]) -> None:
        outer, inner = row[OUTER], row[INNER]
        steps = _exchanged(list(distances)) if row[SWAPPED] else list(distances)
        width = min(inner, PIECE)
        height = max(1, -(-2 * PIECE // width), -(-outer // TILES))
        down, across = -(-outer // height), -(-inner // width)
        for start in starts:
            for n in range(length):
                offsets = [s + n * d for s, d in zip(start, steps, strict=True)]
                matrix = len(self.matrices)
                self.matrices.append([number, *offsets, *[0] * 6, down, across, 0])
                for i in range(down):
                    for j in range(across):
                        ends = (i * height, min(outer, (i + 1) * height), j * width, min(inner, (j + 1) * width))
                        self.tiles.append([matrix, *ends, i, j, self.parts])
                        self.parts += 1

    # Tasks

    def phase(self, *works: tuple[int, Iterator[tuple[int, int, int]]]) -> None:
        """Add tasks that may run side by side: for each work, ranges of items and their elements."""
        first, elements = len(self.tasks), 0
        for work, ranges in works:
            for start, end, n in ranges:
                self.tasks.append((work, start, end))
                elements += n
        if len(self.tasks) > first:
            self.phases.append(_Phase(first, len(self.tasks), elements))

    def plan(self) -> None:
        """Make the tasks of all rows."""
        small = [n for n, row in enumerate(self.rows) if 0 < row[ELEMENTS] <= PIECE]
        self.phase((WHOLE, _gathered([(n, self.rows[n][ELEMENTS]) for n in small])))
        tile_rows = [self.matrices[t[T_MATRIX]][M_ROW] for t in self.tiles]
        for wave in self._waves():
            members = set(wave)
            blocks = [
                (k, self.block_elements[k])
                for n in wave
                for k in range(self.rows[n][FIRST_BLOCK], self.rows[n][END_BLOCK])
            ]
            tiles = [
                (k, _area(t)) for k, (t, row) in enumerate(zip(self.tiles, tile_rows, strict=True)) if row in members
            ]
            matrices = [k for k, m in enumerate(self.matrices) if m[M_ROW] in members]
            self._share(matrices)
            self.phase((BLOCK_SUMS, _gathered(blocks)), (TILE_SUMS, _gathered(tiles)))
            self.phase((FACTORS, ((k, k + 1, SPREAD) for k in matrices)))
            self.phase((TILE_SQUARES, _gathered(tiles)))
            self.phase((BLOCK_MOVE, _gathered(blocks)), (TILE_MOVE, _gathered(tiles)))

    def _waves(self) -> Iterator[list[int]]:
        wave: list[int] = []
        elements = 0
        for n, row in enumerate(self.rows):
            if row[ELEMENTS] > PIECE:
                wave.append(n)
                elements += row[ELEMENTS]
                if elements >= WAVE:
                    yield wave
                    wave, elements = [], 0
        if wave:
            yield wave

    def _share(self, matrices: list[int]) -> None:
        """Give the matrices of a wave places in the scratch, as offsets in words; each wave has it for itself."""
        at = 0
        for k in matrices:
            m = self.matrices[k]
            outer, inner = (self.rows[m[M_ROW]][n] for n in (OUTER, INNER))
            needs = (outer * m[M_ACROSS], inner * m[M_DOWN], outer, outer, inner, inner)
            for column, words in zip(range(M_ROW_SUMS, M_NEW_C + 1), needs, strict=True):
                m[column] = at
                at += words
        self.shared = max(self.shared, at)


def _describe_matrix(row: list[int], inside: tuple[int, ...], strides: list[tuple[int, ...]], size: int) -> int:
    """Fill in dimensions and distances of one matrix; its elements. A vector's, or a point's, element is 1."""
    if row[KIND] != MATRIX:
        return 1
    (p_down, p_along), (g_down, g_along), (r_down, _), (_, c_along) = (s[-2:] for s in strides)
    n, m = inside
    row[SWAPPED] = m == 1 or (n > 1 and abs(p_down) < abs(p_along))
    row[OUTER], row[INNER] = (m, n) if row[SWAPPED] else (n, m)
    row[P_OUTER], row[P_INNER] = (p_along, p_down) if row[SWAPPED] else (p_down, p_along)
    row[G_OUTER], row[G_INNER] = (g_along, g_down) if row[SWAPPED] else (g_down, g_along)
    row[R_OUTER], row[C_INNER] = (c_along, r_down) if row[SWAPPED] else (r_down, c_along)
    row[DENSE] = row[P_INNER] == size and row[G_INNER] == size
    return n * m


def _exchanged(x: list[int]) -> list[int]:
    """Of (p, g, row state, column state), the states exchanged."""
    return [x[0], x[1], x[3], x[2]]


def _area(tile: list[int]) -> int:
    return (tile[T_I1] - tile[T_I0]) * (tile[T_J1] - tile[T_J0])


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
        self.options = np.zeros((groups, OPTION_WORDS), np.float64)
        self._rows = _table(tables.rows, ROW_WORDS)
        self.gradients, self.idle = self._rows[:, G], self._rows[:, IDLE]
        self._matrices = _table(tables.matrices, MATRIX_WORDS)
        self._shared = np.empty(tables.shared, np.float64)
        # The sums are of float64, the factors fit into as many words.
        self._matrices[:, M_ROW_SUMS : M_NEW_C + 1] = (
            self._matrices[:, M_ROW_SUMS : M_NEW_C + 1] * 8 + self._shared.ctypes.data
        )
        self._tables = {
            ROWS: self._rows,
            TASKS: _table(tables.tasks, TASK_WORDS),
            BLOCKS: _table(tables.blocks, BLOCK_WORDS),
            MATRICES: self._matrices,
            TILE_TABLE: _table(tables.tiles, TILE_WORDS),
            SCALARS: np.zeros((len(members), SCALAR_WORDS), np.float64),
            PARTIALS: np.zeros((tables.parts, 2), np.float64),
            OPTIONS: self.options,
        }
        self._words: Words = np.zeros(WORDS, np.int64)
        for word, table in self._tables.items():
            self._words[word] = table.ctypes.data
        self._words[COUNT] = len(members)
        self._words[SCRATCH_WORDS] = tables.slot
        self._at = self._words.ctypes.data
        self._slots = np.empty(0, np.float64)
        self._kept = [t for m in members for t in (m.p, m.step, *m.state)]

    def run(self) -> None:
        """One step of all its parameters."""
        words, available = self._words, torch.get_num_threads()
        if self._slots.size < available * self._slot_words:
            self._slots = np.empty(available * self._slot_words, np.float64)
            words[SCRATCH] = self._slots.ctypes.data
        self._prepare.run(self._at)
        for phase in self._phases:
            words[NEXT], words[END], words[SLOT] = phase.first, phase.end, 0
            threads = min(available, phase.end - phase.first) if phase.elements >= SPREAD else 1
            native.run(self._kernel, self._at, threads)


def _table(rows: Sequence[Sequence[int]], words: int) -> Words:
    return np.array(rows, np.int64).reshape(-1, words)


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
