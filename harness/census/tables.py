"""A census for people and for scripts: what was counted, the table, the JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.markup import escape
from rich.table import Table

from stepcheck.fast import RULES
from stepcheck.harness.census import compile as compiling
from stepcheck.harness.census import launches, model
from stepcheck.harness.census.compile import Counts, Job
from stepcheck.harness.census.families import FAMILIES
from stepcheck.harness.census.kernels import Kernel, kernels_of
from stepcheck.harness.census.model import ANY, PREPARE, Model
from stepcheck.harness.census.occupancy import occupancy
from stepcheck.harness.play.families import FAST

ARCHITECTURES = (80, 90, 100)
#: Bytes per second of memory, by NVIDIA's data sheets: A100 80GB SXM, H100 SXM, H200 SXM; HGX B200, up to 8 TB/s per GPU.
BANDWIDTH = {"A100": 2039e9, "H100": 3.35e12, "H200": 4.8e12, "B200": 8e12}
#: What a cell has where nothing is counted.
NOTHING = "-"
LEGEND = (
    "B/el: bytes loaded and stored per element on the main path, in PTX and SASS alike, of the model where there is no mark, and of all kernels"
    " that stream the same elements in a step: of Adafactor matrices and vectors, of Muon without the products of matrices, of LBFGS each kernel"
    " by itself, for 4 rows of its history; bits: width of these accesses; table: bytes that a program loads beside; div, sqrt: per element,"
    " correctly rounded; f64: instructions in float64, yes where that is the dtype or declared; spills: in SASS; regs, occ.: the most"
    " registers, the least occupancy; launches: of a step of 1, 10 and 300 tensors alike (of Adafactor so many matrices, small matrices and"
    " vectors; of Muon, matrices of one shape, for each portion of them; of LBFGS, a direction), the one that prepares and those of the dtype."
    " µs: the least time for a million elements, by the bandwidth of the data sheet. Kernels about rows, columns and parameters, and"
    " Adafactor's for small matrices, are counted but for bytes, bits, div and sqrt: how much they move is a matter of shapes. What leaves its"
    " model is marked with an exclamation mark; what is not counted with a dash."
)


@dataclass
class Counted:
    """One kernel, for one compute capability.

    Attributes:
        counts: or why there are none.
    """

    kernel: Kernel
    capability: int
    counts: Counts | str
    departures: list[str] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Occupancy."""
        assert isinstance(self.counts, Counts)
        return occupancy(self.capability, self.counts.registers, self.counts.shared, self.kernel.source.warps)


@dataclass
class Census:
    """All that was counted.

    Attributes:
        launched: by optimizer and dtype, launches of a step by number of tensors.
        departures: of these, from the model.
    """

    capabilities: Sequence[int]
    counted: list[Counted]
    launched: dict[tuple[str, str], dict[int, dict[str, int]]]
    departures: list[str]
    versions: dict[str, str]

    @property
    def unknown(self) -> list[Counted]:
        """What could not be compiled or counted."""
        return [c for c in self.counted if isinstance(c.counts, str)]

    @property
    def failures(self) -> list[str]:
        """Where counts leave their models, in words."""
        told = [f"{c.kernel.name} sm_{c.capability}: {d}" for c in self.counted for d in c.departures]
        return told + self.departures


def take(
    optimizers: Iterable[str],
    capabilities: Sequence[int] = ARCHITECTURES,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Census:
    """Compile and count all kernels of these optimizers. What several share is compiled once."""
    names = list(optimizers)
    every = [(k, c) for name in names for k in kernels_of(name) for c in capabilities]
    jobs = {(k.source, c): Job(k.source, c, k.model.way) for k, c in every}
    results = dict(compiling.run(jobs, progress))
    counted = []
    for kernel, capability in every:
        counts = results[kernel.source, capability]
        told = (
            model.departures(kernel.model, counts, capability, kernel.source.warps)
            if isinstance(counts, Counts)
            else []
        )
        counted.append(Counted(kernel, capability, counts, told))
    launched = {
        (name, dtype): launches.measured(name, dtype)
        for name in names
        for dtype in dict.fromkeys(k.dtype for k, _ in every if k.optimizer == name and k.dtype != ANY)
    }
    left = [d for (name, dtype), of_step in launched.items() for d in launches.departures(name, dtype, of_step)]
    return Census(capabilities, counted, launched, left, compiling.versions(capabilities))


def known() -> tuple[str, ...]:
    """The optimizers that have CUDA kernels."""
    return tuple(name for name in FAST.here if name in RULES or name in FAMILIES)


# --- Table


def table(census: Census) -> Table:
    """One row for each optimizer and dtype: the worst of its kernels."""
    made = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    titles = ("optimizer", "dtype", "B/el", "bits", "table", "div", "sqrt", "f64", "spills", "regs", "occ.", "launches")
    for n, title in enumerate((*titles, *(f"{gpu}\nµs" for gpu in BANDWIDTH))):
        made.add_column(title, justify="right" if n > 1 else "left", no_wrap=True)
    rows: dict[tuple[str, str], list[Counted]] = {}
    for c in census.counted:
        if c.kernel.role != PREPARE:
            rows.setdefault((c.kernel.optimizer, c.kernel.dtype), []).append(c)
    last = ""
    for (optimizer, dtype), of_row in rows.items():
        made.add_row(optimizer if optimizer != last else "", dtype, *_cells(census, of_row))
        last = optimizer
    return made


def _cells(census: Census, of_row: list[Counted]) -> list[str]:
    counted = [c for c in of_row if isinstance(c.counts, Counts)]
    if len(counted) < len(of_row):
        return [f"[yellow]{len(of_row) - len(counted)} unknown[/]"]
    left = [d for c in of_row for d in c.departures]
    streaming = [c for c in counted if c.kernel.streams]
    paths = [c.counts.ptx for c in streaming if isinstance(c.counts, Counts) and c.counts.ptx]
    # What streams the same elements in a step counts together.
    of_step: dict[tuple[str, str, int], list[Model]] = {}
    for c in streaming:
        of_step.setdefault((c.kernel.streams, c.kernel.variant, c.capability), []).append(c.kernel.model)
    steps = list(of_step.values())
    f64 = max(_counts(c).float64_sass for c in counted)
    sizes = [
        8 * size for c in streaming if (p := _counts(c).ptx) for size in p.sizes if size != c.kernel.model.rows.size
    ]
    moved = [sum(m.bytes_per_element for m in models) for models in steps]
    cells = [
        _marked(_span(moved), left, "bytes per element", "main path cannot", "a loop does"),
        _marked(_span(sizes), left, "accesses on the main path", "masked"),
        _span([max(p.table for p in paths)] if paths else []),
        _marked(_span(sum(m.divisions or 0 for m in models) for models in steps), left, "div", "rounded"),
        _marked(_span(sum(m.roots or 0 for m in models) for models in steps), left, "sqrt"),
        _marked("yes" if f64 and counted[0].kernel.model.float64 else str(f64), left, "float64"),
        _marked(str(max(_counts(c).spills for c in counted)), left, "spilled"),
        str(max(_counts(c).registers for c in counted)),
        _marked(f"{min(c.share for c in counted):.0%}", left, "occupancy"),
        _launches(census, of_row[0].kernel),
    ]
    worst = max(moved, default=0)
    return cells + [f"{worst * 1e9 / rate * 1e3:.1f}" if worst else NOTHING for rate in BANDWIDTH.values()]


def _counts(counted: Counted) -> Counts:
    assert isinstance(counted.counts, Counts)
    return counted.counts


def _span(values: Iterable[int]) -> str:
    """One number, or from which to which."""
    some = sorted(set(values))
    return NOTHING if not some else str(some[0]) if len(some) == 1 else f"{some[0]}-{some[-1]}"


def _marked(cell: str, departures: list[str], *about: str) -> str:
    return f"[red]{cell} ![/]" if any(word in d for d in departures for word in about) else cell


def _launches(census: Census, kernel: Kernel) -> str:
    of_step = census.launched.get((kernel.optimizer, kernel.dtype))
    if of_step is None:
        return NOTHING
    most = max(of_step.values(), key=lambda by_role: sum(by_role.values()))
    others = str(sum(n for role, n in most.items() if role != PREPARE))
    told = f"{most[PREPARE]} + {others}" if PREPARE in most else others
    left = any(d.startswith(f"{kernel.optimizer} {kernel.dtype}:") for d in census.departures)
    return f"[red]{told} ![/]" if left else told


def closing(census: Census) -> str:
    """What was compiled, for what, with what."""
    kernels = {c.kernel.source for c in census.counted}
    archs = ", ".join(f"sm_{c}" for c in census.capabilities)
    assemblers = ", ".join(f"{v} for {k.removeprefix('ptxas ')}" for k, v in census.versions.items() if k != "triton")
    return (
        f"{len(kernels)} kernels compiled for {archs}, with Triton {census.versions['triton']} and ptxas {assemblers}"
    )


def lines(census: Census, most: int = 40) -> list[str]:
    """What leaves its model, and what is unknown; a line for each, the first ``most`` of them."""
    told = [f"[red]{escape(line)}[/]" for line in census.failures]
    told += [f"[yellow]{escape(f'{c.kernel.name} sm_{c.capability}: unknown: {c.counts}')}[/]" for c in census.unknown]
    return told if len(told) <= most else [*told[:most], f"and {len(told) - most} more: --json has all of them"]


# --- JSON


def to_json(version: str, census: Census) -> dict[str, Any]:
    """Everything, as plain values."""
    return {
        "stepcheck": version,
        "environment": census.versions,
        "architectures": [f"sm_{c}" for c in census.capabilities],
        "bandwidth": BANDWIDTH,
        "kernels": [_json(c) for c in census.counted],
        "launches": [
            {"optimizer": name, "dtype": dtype, "tensors": tensors, "launches": by_role}
            for (name, dtype), of_step in census.launched.items()
            for tensors, by_role in of_step.items()
        ],
        "departures": census.failures,
    }


def _json(counted: Counted) -> dict[str, Any]:
    kernel, counts = counted.kernel, counted.counts
    made: dict[str, Any] = {
        "optimizer": kernel.optimizer, "dtype": kernel.dtype, "role": kernel.role, "variant": kernel.variant,
        "arch": f"sm_{counted.capability}", "model": dataclasses.asdict(kernel.model), "departures": counted.departures,
    }  # fmt: skip
    if isinstance(counts, str):
        return made | {"unknown": counts}
    made |= {"counts": dataclasses.asdict(counts), "occupancy": counted.share}
    for where, path in (("ptx", counts.ptx), ("sass", counts.sass)):
        if path is not None:
            found = model.moved(kernel.model, counts, path)
            made |= {f"{where}_{done}_per_element": n for done, n in found.items()}
    return made
