"""Which CUDA kernels stepcheck.fast has."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stepcheck.fast.cuda import kernels
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.kernels import Layout
from stepcheck.fast.rules import RULES, Rule, always
from stepcheck.harness.census.model import FAMILIES, Model, of_family, of_layout, of_prepare

DENSE, SCATTERED, PREPARE = "dense", "scattered", "prepare"
#: The dtype of a kernel that serves all of them.
ANY = "any"


@dataclass(frozen=True)
class Kernel:
    """One kernel, for all architectures.

    Attributes:
        optimizer: as its class is named.
        dtype: of the parameters; :data:`ANY` where it is for all.
        role: ``dense``, ``scattered``, ``prepare``, or what a family calls it.
        variant: buffers present, scaled gradients, sparse gradients; in words.
        source: what is compiled.
        model: what it should count.
    """

    optimizer: str
    dtype: str
    role: str
    variant: str
    source: Source
    model: Model

    @property
    def name(self) -> str:
        """All that tells it from the others."""
        return " ".join(part for part in (self.optimizer, self.dtype, self.role, self.variant) if part)


def kernels_of(optimizer: str) -> Iterator[Kernel]:
    """The kernels of one optimizer; none where it has none."""
    rule = RULES.get(optimizer)
    if rule is not None:
        yield from _of_rule(optimizer, rule)
        return
    family = FAMILIES.get(optimizer)
    if family is not None and importlib.util.find_spec(family.module) is not None:
        for role, source in importlib.import_module(family.module).sources():
            yield Kernel(optimizer, _dtype(role), role, "", source, of_family(family, source))


def _dtype(role: str) -> str:
    """The dtype that the name of a kernel of a family speaks of."""
    return next((dtype for dtype in kernels.SIZE if dtype in role), ANY)


def _of_rule(optimizer: str, rule: Rule) -> Iterator[Kernel]:
    for unscales in (False, True):
        source = kernels.prepare_source(rule, unscales=unscales)
        yield Kernel(
            optimizer, ANY, PREPARE, "unscales" if unscales else "", source, of_prepare(rule, unscales=unscales)
        )
    for layout in kernels.layouts_of(rule):
        variant = _variant(layout)
        yield Kernel(
            optimizer, layout.dtype, DENSE, variant, kernels.dense_source(layout), of_layout(layout, scattered=False)
        )
        for scattered in (layout, *_sparse(layout)):
            source = kernels.scattered_source(scattered)
            yield Kernel(
                optimizer, layout.dtype, SCATTERED, _variant(scattered), source, of_layout(scattered, scattered=True)
            )


def _sparse(layout: Layout) -> Sequence[Layout]:
    """The layouts that sparse gradients ask for; they are unscaled beforehand."""
    if not layout.rule.sparse or layout.unscales:
        return ()
    indexed = replace(layout, indexed=True)
    narrow = kernels.SIZE[layout.dtype] < kernels.SIZE["float32"]
    return (indexed, replace(indexed, gradient="float32")) if narrow else (indexed,)


def _variant(layout: Layout) -> str:
    optional = [b for b, buffer in layout.rule.buffers.items() if b in layout.buffers and buffer.present is not always]
    words = [*optional, *["unscales"] * layout.unscales, *["sparse"] * layout.indexed]
    return ", ".join([*words, *[f"{layout.gradient} gradient"] * bool(layout.gradient)])
