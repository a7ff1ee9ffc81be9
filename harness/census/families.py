"""The kernels of optimizers that are no elementwise rule, with the model of each by its role.

What streams elements has bytes, widths and operations for each element, as dense kernels have. Of all others resources and arithmetic alone are
held to a model: kernels about rows, columns and parameters (how much they move is a matter of shapes), and those in which a thread takes a
small matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

from stepcheck.fast.cuda import adafactor, kernels, lbfgs, muon
from stepcheck.fast.cuda.kernels import SIZE
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.kernels import COMPUTED
from stepcheck.harness.census.model import ANY, PREPARE, Model, Rows, of_prepare


class Part(NamedTuple):
    """A kernel of a family; what its words say is said at :class:`~stepcheck.harness.census.kernels.Kernel`."""

    dtype: str
    role: str
    variant: str
    source: Source
    model: Model
    streams: str = ""


@dataclass(frozen=True)
class Family:
    """An optimizer that is no rule.

    Attributes:
        parts: yields its kernels.
        tensors: makes so many parameters, of each kind that it tells apart, of a dtype.
        launches: of a step, however many tensors there are, by role. Of L-BFGS, of a direction.
        runs: what it launches depends on what its kernels compute.
    """

    parts: Callable[[], Iterator[Part]]
    tensors: Callable[[int, torch.dtype], list[torch.Tensor]]
    launches: dict[str, int]
    runs: bool = False


def _float64(dtype: str) -> str:
    return "it is the dtype" if dtype == "float64" else ""


def _variant(*words: tuple[str, bool]) -> str:
    return ", ".join(word for word, there in words if there)


def _narrow(*stored: tuple[str, int]) -> dict[str, int]:
    """How many values are rounded to each dtype that is narrow."""
    found: dict[str, int] = {}
    for dtype, n in stored:
        if SIZE[dtype] < SIZE["float32"]:
            found[dtype] = found.get(dtype, 0) + n
    return found


# --- Adafactor

#: A Newton step makes the factors of rows and columns as if they had been rounded once: the errors of its two products are had exactly, by fma.
_FUSED = {"factors": 2}


def _adafactor() -> Iterator[Part]:
    for unscales in (False, True):
        variant = _variant(("unscales", unscales))
        source = kernels.prepare_source(adafactor.RULE, unscales=unscales)
        yield Part(ANY, PREPARE, variant, source, of_prepare(adafactor.RULE, unscales=unscales))
        for dtype in COMPUTED:
            for role in adafactor.PASSES:
                source = adafactor.source(role, dtype, unscale=unscales)
                kind = role.partition("_")[0]
                streams = {"tile": "matrices", "vector": "vectors"}.get(kind, "")
                yield Part(dtype, role, variant, source, _of_pass(role, dtype, unscales=unscales), streams)


def _of_pass(role: str, dtype: str, *, unscales: bool) -> Model:
    made, kind, real = adafactor.PASSES[role], role.partition("_")[0], COMPUTED[dtype]
    plain = Model(dtype=dtype, float64=_float64(dtype), fused=_FUSED.get(role, 0) if real != "float64" else 0)
    if kind not in ("tile", "vector"):
        return plain
    written = len(made.writes) + (unscales and made.unscales)
    plain = replace(
        plain,
        loaded=SIZE[dtype] * len(made.reads),
        stored=SIZE[dtype] * written,
        narrowed=_narrow((dtype, written)),
        divisions=int(kind == "vector"),
        roots=int(kind == "vector"),
    )
    if kind == "vector":
        return replace(plain, elements=kernels.BLOCK[dtype], way="whole" if written else "read")
    # A warp takes a row of a tile at a time. Of each it loads the factor; sums of rows are stored by those threads that have them.
    strip = adafactor.STRIP[dtype]
    sums = role == "tile_sums"
    rows = Rows(1 if sums else strip // Source.warps, SIZE[real], stored=sums)
    return replace(plain, elements=strip * adafactor.WIDTH[dtype], way="loop", rows=rows)


def _matrices_and_vectors(n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = (
        [(24, 17 + k % 3) for k in range(n)] + [(3, 4 + k % 3) for k in range(n)] + [(k % 7 + 1,) for k in range(n)]
    )
    return [torch.zeros(shape, dtype=dtype) for shape in shapes]


# --- Muon


def _muon() -> Iterator[Part]:
    for unscales in (False, True):
        source = kernels.prepare_source(muon.RULE, unscales=unscales)
        variant = _variant(("unscales", unscales))
        yield Part(ANY, PREPARE, variant, source, of_prepare(muon.RULE, unscales=unscales))
        for dtype in COMPUTED:
            for nesterov in (False, True):
                variant = _variant(("nesterov", nesterov), ("unscales", unscales))
                for role, source, made in _of_stack(dtype, nesterov=nesterov, unscales=unscales):
                    yield Part(dtype, role, variant, source, made, "matrices" if made.elements else "")


def _of_stack(dtype: str, *, nesterov: bool, unscales: bool) -> Iterator[tuple[str, Source, Model]]:
    real, stack = COMPUTED[dtype], muon.stacked(dtype)
    size, in_stack, written = SIZE[dtype], SIZE[stack], 1 + unscales
    plain = Model(dtype=dtype, float64=_float64(dtype))
    streams = replace(plain, elements=muon.BLOCK[dtype], way="whole", divisions=0, roots=0)
    # What has been rounded to the format of the stack is not rounded again.
    rounded = int(nesterov or dtype != stack)
    average = replace(
        streams, loaded=2 * size, stored=written * size + in_stack, narrowed=_narrow((dtype, written), (stack, rounded))
    )
    normalize = replace(
        streams,
        elements=muon.BLOCK[real],
        loaded=in_stack,
        stored=in_stack,
        divisions=1,
        narrowed=_narrow((stack, 1)),
    )
    apply = replace(streams, loaded=size + in_stack, stored=size, narrowed=_narrow((dtype, 1)))
    yield "average", muon.average_source(dtype, nesterov=nesterov, unscales=unscales), average
    yield "norm", muon.norm_source(real, unscales=unscales), plain
    yield "normalize", muon.normalize_source(real), normalize
    yield "apply", muon.apply_source(dtype, unscales=unscales), apply


def _matrices(n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.zeros(3, 5, dtype=dtype) for _ in range(n)]


# --- LBFGS


def _lbfgs() -> Iterator[Part]:
    """Of each element, of as many rows of the history as a program takes at a time."""
    plain = Model(
        dtype="float32",
        float64="scalar products and sums of rows are accumulated in float64",
        divisions=0,
        roots=0,
    )
    rows, size = lbfgs.ROWS * SIZE["float32"], SIZE["float64"]
    for role, vectors in (("products with two vectors", ("float32",) * 2), ("products with one vector", ("float64",))):
        loaded = rows + sum(SIZE[v] for v in vectors)
        made = replace(plain, elements=lbfgs.BLOCK, way="loop", loaded=loaded)
        yield Part("float32", role, "", lbfgs.products_source(vectors), made, role)
    for rounded, role in ((False, "sum"), (True, "rounded sum")):
        loaded = rows + (size + SIZE["float32"] if rounded else SIZE["float32"])
        stored = SIZE["float32"] if rounded else size
        made = replace(plain, elements=lbfgs.BLOCK, way="around", loaded=loaded, stored=stored)
        yield Part("float32", role, "", lbfgs.sum_source(rounded=rounded), made, role)


def _vectors(n: int, dtype: torch.dtype) -> list[torch.Tensor]:
    return [torch.linspace(1, 2, k % 7 + 1, dtype=dtype) for k in range(n)]


FAMILIES = {
    "Adafactor": Family(
        _adafactor,
        _matrices_and_vectors,
        # Both kinds, matrices and vectors, have rates.
        {PREPARE: 1} | {role: 2 if role == "rates" else 1 for role in adafactor.PASSES},
    ),
    "Muon": Family(_muon, _matrices, {PREPARE: 1, "average": 1, "norm": 1, "normalize": 1, "apply": 1}),
    "LBFGS": Family(
        _lbfgs,
        _vectors,
        {"products with two vectors": 1, "sum": 1, "products with one vector": 1, "rounded sum": 1},
        runs=True,
    ),
}
