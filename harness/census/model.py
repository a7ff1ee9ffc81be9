"""What each kernel should count, derived from its rule, and where what was counted leaves it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from stepcheck.fast.cuda import kernels
from stepcheck.fast.kernels import Layout
from stepcheck.fast.rules import Rule
from stepcheck.harness.census import ptx
from stepcheck.harness.census.compile import Counts
from stepcheck.harness.census.flow import Path
from stepcheck.harness.census.occupancy import occupancy

#: The share of the warps that a multiprocessor can hold, which kernels keep it filled to at least: enough to hide the latency of memory that
#: is streamed (Volkov, Understanding Latency Hiding on GPUs, 2016, chapter 5), with 16 bytes under way in each thread and stream.
OCCUPANCY = 0.5
#: Of kernels that prepare: a program is 128 parameters, so that a multiprocessor seldom holds two of them.
PREPARE_OCCUPANCY = 0.375
WIDEST = 16
#: The dtype of a kernel that serves all of them, and the role of those that make scalars.
ANY, PREPARE = "any", "prepare"
#: Variants that round as IEEE 754 says.
_EXACT = ("div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64", "rcp.rn.f32", "rcp.rn.f64")


@dataclass(frozen=True)
class Rows:
    """Accesses of each thread, in a pass of a loop over rows of elements, to what is kept of rows.

    Attributes:
        accesses: how many.
        size: bytes of each.
        stored: they are stores, by those threads that have what is stored; otherwise loads.
    """

    accesses: int = 0
    size: int = 0
    stored: bool = False


@dataclass(frozen=True)
class Model:
    """What a kernel should count.

    Attributes:
        dtype: of what it stores; empty where that is not one.
        elements: of a program, or of a pass of its loop; 0 where it does not stream elements.
        loaded: bytes from addresses of each thread's own, per element.
        stored: bytes stored, per element.
        way: the main path, as :func:`~stepcheck.harness.census.flow.main_path` calls it; but for ``all``, accesses are of 16 bytes and unmasked.
        rows: accesses beside those to elements, in a pass of a loop.
        float64: why it computes in float64, if it does.
        divisions: quotients per element.
        roots: square roots per element.
        narrowed: values rounded to each narrow dtype, per element; they are written.
        fused: products and sums that are one operation by design.
        powers: it calls libdevice's pow, whose error is known as a whole: what that contracts, approximates and flushes is its own.
        occupancy: the least.
    """

    dtype: str = ""
    elements: int = 0
    loaded: int = 0
    stored: int = 0
    way: str = ""
    rows: Rows = Rows()
    float64: str = ""
    divisions: int | None = None
    roots: int | None = None
    narrowed: dict[str, int] = field(default_factory=dict)
    fused: int = 0
    powers: bool = False
    occupancy: float = OCCUPANCY

    @property
    def bytes_per_element(self) -> int:
        """Loaded and stored."""
        return self.loaded + self.stored


def of_layout(layout: Layout, *, scattered: bool) -> Model:
    """The model of a kernel that steps: each stream is read once, all but the gradient written, and the gradient if it is unscaled."""
    sizes = {s: kernels.SIZE[layout.stored(s)] for s in layout.streams}
    written = [s for s in layout.streams if s != "g" or layout.unscales]
    divisions, roots = _operations(layout.rule)
    return Model(
        dtype=layout.dtype,
        elements=kernels.SCATTERED_BLOCK if scattered else kernels.BLOCK[layout.dtype],
        # Of a sparse gradient, where its entry lies in each stream: 64 bits, the same for all elements of the entry.
        loaded=sum(sizes.values()) + 8 * len(sizes) * layout.indexed,
        stored=sum(sizes[s] for s in written),
        way="all" if scattered else "whole",
        float64="it is the dtype" if layout.dtype == "float64" else "",
        divisions=divisions,
        roots=roots,
        narrowed={layout.dtype: len(written)} if sizes["p"] < kernels.SIZE["float32"] else {},
    )


def of_prepare(rule: Rule, *, unscales: bool) -> Model:
    """The model of the kernel that makes the scalars of each parameter: an element is a parameter here."""
    source = kernels.prepare_source(rule, unscales=unscales)
    options, counters = len(rule.of_group), len(rule.counters)
    fresh = 8 * ("fresh" in rule.options)
    # Of what may be float64 or float32, one of two masked accesses is made; both are counted.
    either = 8 + 4
    return Model(
        elements=kernels.ROWS,
        way="all",
        loaded=8 + fresh + counters * (16 + either) + options * (24 + either),
        stored=fresh + (counters + len(rule.scalars) + unscales) * either,
        float64="scalars are made in float64, once for each parameter",
        powers="power(" in source.text,
        occupancy=PREPARE_OCCUPANCY,
    )


def _operations(rule: Rule) -> tuple[int, int]:
    """Quotients and square roots of an element."""
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(rule.update)))))
    roots = sum(isinstance(n, ast.Call) and isinstance(n.func, ast.Name) and n.func.id == "sqrt" for n in nodes)
    return sum(isinstance(n, ast.Div) for n in nodes), roots


def departures(model: Model, counts: Counts, capability: int, warps: int) -> list[str]:
    """Where what was counted leaves the model, in words; nothing where it does not."""
    return [*_memory(model, counts), *_arithmetic(model, counts), *_resources(model, counts, capability, warps)]


def _memory(model: Model, counts: Counts) -> Iterator[str]:
    if not model.elements:
        return
    for path, where in ((counts.ptx, "PTX"), (counts.sass, "SASS")):
        if path is None:
            yield f"{counts.unidentified} ({where})"
            continue
        passes = unrolled(model, counts, path)
        if passes != int(passes):
            yield f"a loop does {passes:g} times what it does in PTX ({where})"
            continue
        expected = {"loaded": model.loaded, "stored": model.stored}
        for done, each in moved(model, counts, path).items():
            if each != expected[done]:
                yield f"{_PRESENT[done]} {each:g} bytes per element, not {expected[done]} ({where})"
        if model.way != "all":
            yield from _whole(path, model.rows, int(passes), where)


_PRESENT = {"loaded": "loads", "stored": "stores"}


def moved(model: Model, counts: Counts, path: Path) -> dict[str, float]:
    """Bytes of an element that are loaded and stored, without what is kept of rows."""
    passes, rows = unrolled(model, counts, path), model.rows
    beside = passes * rows.accesses * rows.size
    of_thread = {"loaded": path.loaded - beside * (not rows.stored), "stored": path.stored - beside * rows.stored}
    return {done: per_element(model, n, counts.threads) / passes for done, n in of_thread.items()}


def _whole(path: Path, rows: Rows, passes: int, where: str) -> Iterator[str]:
    narrow = Counter({size: n for size, n in path.sizes.items() if size != WIDEST})
    narrow.subtract({rows.size: passes * rows.accesses})
    if any(narrow.values()):
        told = ", ".join(f"{n} of {8 * size} bits" for size, n in sorted(narrow.items()) if n)
        yield f"accesses on the main path: {told} ({where})"
    masked = path.masked - passes * rows.accesses * rows.stored
    if masked > 0:
        yield f"{masked} accesses on the main path are masked ({where})"


def unrolled(model: Model, counts: Counts, path: Path) -> float:
    """How many passes of a loop in PTX are one in ``path``: the assembler unrolls loops."""
    if model.way != "loop" or counts.ptx is None:
        return 1.0
    return sum(path.sizes.values()) / sum(counts.ptx.sizes.values())


def per_element(model: Model, of_thread: float, threads: int) -> float:
    """What a thread does, by element of its program."""
    return of_thread * threads / model.elements


def _arithmetic(model: Model, counts: Counts) -> Iterator[str]:
    if not model.float64:
        for n, where in ((counts.float64, "PTX"), (counts.float64_sass, "SASS")):
            if n:
                yield f"{n} float64 instructions ({where})"
    inexact = {op: n for op, n in counts.divisions.items() if op not in _EXACT and not model.powers}
    if inexact:
        yield f"not correctly rounded: {', '.join(f'{n} {op}' for op, n in inexact.items())}"
    if counts.flushed and not model.powers:
        yield f"{counts.flushed} operations flush subnormal numbers to zero"
    if counts.contracted != model.fused and not model.powers:
        by_design = f", not {model.fused}" if model.fused else ""
        yield f"{counts.contracted} products and sums are or may be contracted{by_design}"
    if counts.ptx is not None:
        yield from _inexact(model, counts.ptx.operations, counts.threads)


def _inexact(model: Model, counted: dict[str, int], threads: int) -> Iterator[str]:
    operations = ptx.divisions(counted)
    for kind, expected in (("div", model.divisions), ("sqrt", model.roots)):
        found = per_element(model, sum(n for op, n in operations.items() if op.startswith(kind)), threads)
        if expected is not None and found != expected:
            yield f"{found:g} {kind} per element, not {expected}"
    for dtype, expected in model.narrowed.items():
        ways = ptx.narrowed(counted, dtype)
        told = {way: per_element(model, n, threads) for way, n in ways.items()}
        if told != ({"rn": expected} if expected else {}):
            by_way = ", ".join(f"{n:g} by cvt.{way}" for way, n in told.items()) or "none"
            yield f"conversions to {dtype} per element: {by_way}; not {expected} by cvt.rn"


def _resources(model: Model, counts: Counts, capability: int, warps: int) -> Iterator[str]:
    if counts.spills:
        yield f"{counts.spills} accesses to spilled registers ({counts.registers} registers)"
    share = occupancy(capability, counts.registers, counts.shared, warps)
    if share < model.occupancy:
        yield f"occupancy {share:.0%}, at {counts.registers} registers and {counts.shared} bytes of shared memory"
