"""What tensors are drawn from: shapes, layouts, kinds of content, and the objectives of closures, each simplest first.

Inputs are directed, because faults hide: a wrong denominator shows in a parameter only where the parameter is no larger than
its update, and a misplaced eps only where the root of the second moment is near eps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from stepcheck.harness.life.events import OBJECTIVES, Sparse
from stepcheck.harness.life.values import is_complex, splitmix64
from stepcheck.harness.numbers.formats import FORMATS
from stepcheck.reference.spec import HyperValues

# Sizes cross the widths of vector registers (4, 8, 16, 32 elements) and, at the end, a block of threads' work.
SHAPES: tuple[tuple[int, ...], ...] = (
    (1,), (2,), (3, 2), (), (0,), (5,), (0,), (7,), (2, 3, 2), (8,), (9,), (4, 4), (1, 17), (2, 0), (31,), (32,), (33,),
    (1, 2, 3, 2), (2, 3, 2, 2), (5, 13), (65,), (16, 9), (257,), (1031,),
)  # fmt: skip


# Where elements depend on each other: square, wide and tall matrices, batches of them.
MATRICES: tuple[tuple[int, ...], ...] = (
    (2, 2), (3, 5), (8, 8), (5, 3), (17, 4), (4, 33), (2, 3, 3), (16, 16), (31, 17),
)  # fmt: skip


def layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layouts that differ for this shape, simplest first."""
    dimensions = sum(n > 1 for n in shape)
    if 0 in shape or dimensions == 0:
        return ("contiguous",)
    if dimensions == 1:
        return ("contiguous", "sliced")
    return ("contiguous", "transposed", "sliced") + (("channels_last",) if len(shape) == 4 else ())


@dataclass(frozen=True)
class Kind:
    """A kind of tensor content: a recipe over a range that depends on the group's options and the dtype."""

    recipe: str
    scale: str


# "update": about the size of one update; "eps": around the group's eps; "tiny": the square is subnormal; "large": its square does not
# overflow, and it dwarfs an update.
PARAMETER_KINDS = tuple(
    Kind(*k)
    for k in (
        ("constant", "zero"), ("quarters", "unit"), ("log", "update"), ("log", "update"), ("log", "unit"),
        ("sparse_log", "update"), ("log", "wide"), ("extremes", "wide"),
    )
)  # fmt: skip


GRADIENT_KINDS = tuple(
    Kind(*k)
    for k in (
        ("quarters", "unit"), ("constant", "unit"), ("log", "unit"), ("log", "eps"), ("sparse_log", "eps"),
        ("constant", "zero"), ("log", "wide"), ("log", "tiny"), ("sparse_log", "unit"), ("log", "eps"),
        ("extremes", "wide"),
    )
)  # fmt: skip


def range_of(scale: str, hyper: HyperValues, dtype: str, eps_unit: str) -> tuple[float, float]:
    """The smallest and largest magnitude of a scale."""
    number = FORMATS[dtype]
    smallest = 2.0**number.min_exponent
    if scale == "unit":
        return 2.0**-7, 2.0
    if scale == "even":
        return 0.5, 1.0
    if scale == "update":
        lr = float(getattr(hyper, "lr", 1.0)) or 1.0
        return max(lr * 2.0**-7, smallest), max(lr, smallest)
    if scale == "eps":
        eps = getattr(hyper, "eps", 1.0) or 1.0
        if isinstance(eps, tuple):  # Adafactor: the first bounds the denominator
            eps = eps[0] or 2.0 * number.unit_roundoff
        centre = math.sqrt(eps) if eps_unit.startswith("gradient units squared") else eps
        return max(centre * 1e-3, smallest), max(centre * 1e3, smallest)
    if scale == "tiny":
        root = math.sqrt(smallest)
        return root * 2.0**-10, root
    if scale == "large":
        return 2.0**10, min(2.0**40, number.largest / 16)
    if scale == "wide":
        return smallest, number.largest / 4
    return 0.0, 0.0


@dataclass(frozen=True)
class StepKind:
    """What all gradients of one step are like: content, layout, how many are late, gone or left over, and how sparse."""

    gradient: Kind
    twist: int
    absence: int
    sparsity: str = ""


#: How a sparse gradient names its entries.
SPARSITIES = ("coalesced", "uncoalesced", "duplicates", "empty", "every dimension")


def named(sparsity: str, shape: tuple[int, ...], seed: int) -> Sparse | None:
    """Entries for a sparse gradient, chosen by a seed; none of a dense one, or of a number."""
    if not sparsity or not shape:
        return None
    dimensions = len(shape) if sparsity == "every dimension" else 1
    most = math.prod(shape[:dimensions])
    if sparsity == "empty" or not most:
        return Sparse((), dimensions)
    words = [int(w >> 32) for w in splitmix64(seed, min(2 * most, 12))]
    drawn = [w % most for w in words]
    if sparsity == "duplicates":
        return Sparse(tuple(drawn), dimensions)
    unique = tuple(dict.fromkeys(drawn[: 1 + most // 2]))
    return (
        Sparse(tuple(sorted(unique)), dimensions, coalesced=True)
        if sparsity == "coalesced"
        else Sparse(unique, dimensions)
    )


@functools.cache
def gradient_layouts(shape: tuple[int, ...], dtype: str) -> tuple[str, ...]:
    repeats = any(n > 1 for n in shape[:1]) and 0 not in shape
    conjugate = ("conjugated",) if is_complex(dtype) else ()
    return layouts(shape) + (("expanded",) if repeats else ()) + conjugate


def _objectives(kinds: Sequence[str]) -> tuple[tuple[str, Kind, float], ...]:
    """A function, where its centre lies, and how it is scaled."""
    return tuple(
        (kind, Kind(*centre), scale)
        for centre, scale in (
            (("constant", "zero"), 1.0), (("quarters", "unit"), 1.0), (("log", "unit"), 1.0),
            (("quarters", "unit"), 2.0**-10), (("log", "unit"), 30.0), (("log", "unit"), 2.0**-13),
            (("quarters", "unit"), 30.0),
        )
        for kind in kinds
    )  # fmt: skip


#: Of these, gradients and losses are of any size wherever one goes, and moves with them: tolerances decide.
OBJECTIVE_KINDS = _objectives((*OBJECTIVES, *["ripples", "waves"] * 2))


#: Few others keep a line search in zoom.
SEARCHED_KINDS = _objectives((*OBJECTIVES, *["ripples", "saw", "edges", "waves", "kink"] * 3, "edges", "edges", "log"))
