"""A benchmark for people and for scripts: tables, JSON, a plot."""

from __future__ import annotations

import importlib.util
import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.markup import escape
from rich.table import Table

from stepcheck.harness.bench import machine
from stepcheck.harness.bench.contenders import FAST, FAST_GRAPH, TIMED_MODES
from stepcheck.harness.bench.rounds import Row, Scaling, Settings, Timing, quartiles
from stepcheck.harness.bench.workloads import Workload
from stepcheck.harness.readers import report
from stepcheck.harness.support.usage import UsageError

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"), (1e-12, "ps"))
LEGEND = (
    "ratio: the fastest of torch's modes (bold) over fast, each the median of its rounds; by rounds: the median (quartiles) of the"
    " ratios of single rounds. GB/s: bytes that a step has to move, over fast's time. ceiling: the share of the speed of a kernel"
    " that moves as many and computes next to nothing, where they exceed the cache."
)
CUDA_LEGEND = (
    " Times are the GPU's, between events around many steps; graph, fast graph: torch's capturable mode and fast, each replayed by a CUDA graph, and"
    " their ratio; ratio: without graphs. host: the processor's time until a step returns, of torch's fastest mode and of fast. ceiling: on a GPU,"
    " the share of the speed of a copy of as many bytes."
)


def duration(seconds: float) -> str:
    """Three digits and a unit."""
    size = abs(seconds)
    unit, name = next(((u, n) for u, n in _UNITS if size >= 0.9995 * u), _UNITS[-1])
    return f"{_three(seconds / unit)} {name}"


def _three(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(abs(value), 1))))}f}"


# --- Tables


def _table(*titles: str) -> Table:
    made = Table(box=None, pad_edge=False, header_style="bold")
    for n, title in enumerate(titles):
        made.add_column(title, justify="right" if n else "left", no_wrap=True)
    return made


def title(workload: Workload) -> str:
    """What stands above the table of a workload."""
    return f"\n[bold]{escape(workload.name)}[/]: {workload.told}"


def table(rows: Sequence[Row]) -> Table:
    """The rows of one workload; columns that none of them fills are left out."""
    names = [
        name
        for name in (*TIMED_MODES, FAST, FAST_GRAPH)
        if any(t.name == name and t.seconds for r in rows for t in r.timings)
    ]
    compared, moved, held = (
        any(r.ratio is not None for r in rows),
        any(r.bandwidth for r in rows),
        any(r.share for r in rows),
    )
    graphed, hosted = any(r.graph_ratio for r in rows), any(t.host for r in rows for t in r.timings)
    made = _table(
        "optimizer",
        *names,
        *["ratio", "by rounds"] * compared,
        *["graph ratio"] * graphed,
        *["torch host", "fast host"] * hosted,
        *["GB/s"] * moved,
        *["ceiling"] * held,
    )
    for row in rows:
        times = {t.name: _time(t, row) for t in row.timings}
        cells = [row.optimizer, *(times.get(name, "") for name in names)]
        cells += [*_ratio(row)] * compared
        cells += [_three(row.graph_ratio) if row.graph_ratio else ""] * graphed
        cells += [_host(row.best), _host(row.fast)] * hosted
        cells += [f"{row.bandwidth / 1e9:.1f}" if row.bandwidth else ""] * moved
        cells += [f"{row.share:.0%}" if row.share else ""] * held
        made.add_row(*cells)
    return made


def _time(timing: Timing, row: Row) -> str:
    if not timing.seconds:
        return ""
    told = duration(timing.median)
    if not timing.sane:
        return f"[red]{told}[/]"
    return f"[bold]{told}[/]" if timing is row.best else told


def _host(timing: Timing | None) -> str:
    seconds = timing.host_median if timing else None
    return "" if seconds is None else duration(seconds)


def _ratio(row: Row) -> tuple[str, str]:
    if row.wrong:
        return "[red]WRONG[/]", ""
    spread = quartiles(row.round_ratios)
    if row.ratio is None or spread is None:
        return "", ""
    colour = "dim" if row.engine == "torch" else "green" if spread[0] > 1 else "red" if spread[1] < 1 else "yellow"
    middle = statistics.median(row.round_ratios)
    by_rounds = f"{_three(middle)} ({_three(spread[0])}-{_three(spread[1])})"
    return f"[{colour}]{_three(row.ratio)}[/]", f"[dim]{by_rounds}[/]"


def _apart(timing: Timing) -> str:
    if timing.distance is None or timing.distance == math.inf:
        return "comes to numbers that are not finite, as others do not"
    return f"ends {timing.distance:.2g} of torch's way from torch's other modes"


def notes(rows: Iterable[Row]) -> list[str]:
    """What the tables do not show, a line for each."""
    told: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            told.setdefault(f"{row.optimizer}: {row.note}", []).append(row.workload.name)
        for timing in row.torch:
            wrong = "" if timing.sane else _apart(timing)
            if timing.error or wrong:
                told.setdefault(f"{row.optimizer}, torch's {timing.name}: {timing.error or wrong}", []).append(
                    row.workload.name
                )
    return [f"{note} ({', '.join(where)})" for note, where in told.items()]


def scaling_table(scalings: Sequence[Scaling]) -> Table:
    """The cost of a tensor and of an element, by contender."""
    names = [n for n in (*TIMED_MODES, FAST) if any(n in s.per_tensor for s in scalings)]
    made = _table("optimizer", *(f"{n}\n/tensor" for n in names), *(f"{n}\n/element" for n in names))
    for s in scalings:
        cells = [duration(d[n]) if n in d else "" for d in (s.per_tensor, s.per_element) for n in names]
        made.add_row(s.optimizer, *cells)
    return made


# --- JSON


def environment(device: str) -> dict[str, Any]:
    """What the times hold for."""
    return {
        **report.environment(),
        "device": device,
        "processor": machine.processor(device),
        "threads": torch.get_num_threads(),
        "cache_bytes": machine.cache_bytes(device),
        **(machine.gpu() if device == "cuda" else {}),
    }


def to_json(version: str, settings: Settings, rows: Sequence[Row], scalings: Sequence[Scaling]) -> dict[str, Any]:
    """The contract of ``--json``."""
    return {
        "stepcheck": version,
        "environment": environment(settings.device),
        "seed": settings.seed,
        "dtype": settings.dtype,
        "cold": settings.cold,
        "workloads": [
            {"workload": w.name, "kind": w.kind, "tensors": len(w.shapes), "elements": w.elements, "stepped": w.stepped}
            for w in dict.fromkeys(r.workload for r in rows)
        ],
        "results": [_result(r) for r in rows],
        "scaling": [
            {
                "optimizer": s.optimizer,
                "seconds_per_tensor": s.per_tensor,
                "seconds_per_element": s.per_element,
                "note": s.note,
            }
            for s in scalings
        ],
    }


def _result(row: Row) -> dict[str, Any]:
    return {
        "optimizer": row.optimizer,
        "workload": row.workload.name,
        "options": row.options,
        "torch": {t.name: _timing(t) for t in row.torch},
        "fast": _timing(row.fast) if row.fast else None,
        "fast_graph": _timing(row.fast_graph) if row.fast_graph else None,
        "ceiling": _timing(row.ceiling) if row.ceiling else None,
        "best": row.best.name if row.best else None,
        "ratio": row.ratio,
        "round_ratios": {"median": _median(row.round_ratios), "quartiles": quartiles(row.round_ratios)},
        "graph_ratio": row.graph_ratio,
        "engine": row.engine or None,
        "wrong": row.wrong,
        "bytes_per_element": row.bytes_per_element,
        "bytes_per_second": row.bandwidth,
        "share_of_ceiling": row.share,
        "note": row.note,
    }


def _timing(timing: Timing) -> dict[str, Any]:
    return {
        "median": _median(timing.seconds),
        "quartiles": quartiles(timing.seconds),
        "rounds": timing.seconds,
        "steps_per_round": timing.batch,
        "host": {"median": timing.host_median, "rounds": timing.host} if timing.host else None,
        # JSON has no infinity.
        "distance": "Infinity" if timing.distance == math.inf else timing.distance,
        "error": timing.error,
    }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


# --- Plot


def check_plot(file: Path | None) -> None:
    """Find out before the run.

    Raises:
        UsageError: there is nothing to plot with, or the file's name says no format.
    """
    if file is None:
        return
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError('--plot needs matplotlib, which is not installed: pip install "stepcheck[plot]"')
    from matplotlib.backend_bases import FigureCanvasBase

    formats = FigureCanvasBase.get_supported_filetypes()
    if file.suffix.removeprefix(".").lower() not in formats:
        raise UsageError(f"--plot {file}: the name must end in a format's, such as .png or .svg")


def plot(rows: Sequence[Row], file: Path) -> None:
    """Ratios over the number of elements that a step changes, a line for each optimizer."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(9, 5.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda r: r.workload.stepped):
        if row.ratio is not None and not row.wrong:
            also = " (sparse)" if row.workload.kind == "sparse" and row.optimizer != "SparseAdam" else ""
            lines.setdefault(row.optimizer + also, []).append(row)
    for n, (name, own) in enumerate(sorted(lines.items())):
        elements = [r.workload.stepped for r in own]
        spreads = [quartiles(r.round_ratios) or (0.0, 0.0) for r in own]
        style: dict[str, Any] = {
            "marker": "os^Dv"[(n + n // 10) % 5],
            "markersize": 4,
            "color": f"C{n % 10}",
            "linestyle": "-" if n < 10 else "--",
        }
        axes.plot(elements, [r.ratio or math.nan for r in own], label=name, **style)
        axes.vlines(elements, *zip(*spreads, strict=True), color=style["color"], alpha=0.5)
    axes.axhline(1.0, color="0.5", linewidth=0.8)
    axes.set(xscale="log", yscale="log", xlabel="elements stepped", ylabel="torch's fastest mode / fast")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, which="major", alpha=0.3)
    if lines:
        figure.legend(fontsize=8, loc="outside right upper")
    figure.savefig(file, dpi=150)
