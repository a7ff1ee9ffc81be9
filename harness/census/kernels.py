"""Which CUDA kernels stepcheck.fast has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stepcheck.fast import RULES
from stepcheck.fast.cuda import kernels
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.kernels import Layout
from stepcheck.fast.rules import Rule, always
from stepcheck.harness.census.families import FAMILIES
from stepcheck.harness.census.model import ANY, PREPARE, Model, of_layout, of_prepare

DENSE, SCATTERED = "dense", "scattered"


@dataclass(frozen=True)
class Kernel:
    """One kernel, for all architectures.

    Attributes:
        optimizer: as its class is named.
        dtype: of the parameters; ``any`` where it is for all.
        role: ``dense``, ``scattered``, ``prepare``, or what a family calls it.
        variant: buffers present, scaled gradients, sparse gradients; in words.
        source: what is compiled.
        model: what it should count.
        streams: the elements whose main path it is about, where it has one; a step streams them by all kernels of this word and variant.
    """

    optimizer: str
    dtype: str
    role: str
    variant: str
    source: Source
    model: Model
    streams: str = ""

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
    if optimizer in FAMILIES:
        yield from (Kernel(optimizer, *part) for part in FAMILIES[optimizer].parts())


def _of_rule(optimizer: str, rule: Rule) -> Iterator[Kernel]:
    for unscales in (False, True):
        source = kernels.prepare_source(rule, unscales=unscales)
        yield Kernel(
            optimizer, ANY, PREPARE, "unscales" if unscales else "", source, of_prepare(rule, unscales=unscales)
        )
    for layout in kernels.layouts_of(rule):
        variant = _variant(layout)
        dense = of_layout(layout, scattered=False)
        yield Kernel(optimizer, layout.dtype, DENSE, variant, kernels.dense_source(layout), dense, DENSE)
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
