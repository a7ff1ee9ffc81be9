"""The plots of a report, each with the data behind it; one whose document is absent says which command would give it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepcheck.harness.life.values import DTYPES
from stepcheck.harness.numbers.comparison import RATIO_EDGES
from stepcheck.harness.page import model
from stepcheck.harness.page.canvas import INK, LINE, MARKERS, MUTED, SERIES, Canvas, plain
from stepcheck.harness.page.model import Report, RunInfo
from stepcheck.harness.play.families import MODES
from stepcheck.harness.record.run import Run

_WIDTH = 960
#: Ulps from here on are of the largest numbers' differences; they stand at the edge.
_MOST_ULPS = 1e18
#: Points of a curve: more than a screen has pixels for say nothing.
_MOST_POINTS = 240
_DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))


@dataclass
class Figure:
    """A plot and the table behind it.

    Attributes:
        name: of the plot, as it stands in links.
        told: how to read it.
        run: index of the run that measured it; ``None`` where there is none.
        missing: why there is no plot, and which command would give it.
        svg: not part of ``report.json``.
    """

    name: str
    title: str
    told: str
    run: int | None = None
    missing: str = ""
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    svg: str = ""


@dataclass
class _Drawn:
    columns: list[str]
    rows: list[list[Any]]
    canvas: Canvas


_Draw = Callable[[Mapping[str, Any], str], _Drawn]


def figures(report: Report, runs: Iterable[Run]) -> list[Figure]:
    """All plots, of the newest document of each kind."""
    found: dict[str, tuple[int, Mapping[str, Any]]] = {}
    places = {info.id: n for n, info in enumerate(report.runs)}
    for run in sorted(runs, key=lambda r: (r.started, r.id)):
        for kind, document in run.documents.items():
            found[kind] = places[run.id], document
    budgets = {"cells": report.cells}
    checked = next((n for n, info in reversed(list(enumerate(report.runs))) if info.kind == "check"), None)
    if checked is not None and any(c.ratios for c in report.cells):
        found["check"] = checked, budgets
    return [_figure(report, plot, found.get(plot.kind)) for plot in _PLOTS]


def _figure(report: Report, plot: _Plot, given: tuple[int, Mapping[str, Any]] | None) -> Figure:
    made = Figure(plot.name, plot.title, plot.told)
    if given is None:
        made.missing = f"Not in these runs: {plot.command} measures it."
        return made
    made.run, document = given
    run = report.runs[made.run]
    try:
        drawn = plot.draw(document, _source(run))
    except ImportError as error:
        made.missing = f'There is nothing to draw it with: pip install "stepcheck[plot]" ({error}).'
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        # A document of another version, of a run that did not end, or made by hand.
        made.missing = f"What {run.id} recorded cannot be drawn ({type(error).__name__}: {error}); {plot.command} measures it again."
    else:
        made.columns, made.rows, made.svg = drawn.columns, model.finite(drawn.rows), drawn.canvas.svg()
    return made


def _source(run: RunInfo) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    return plain(run.command or run.kind) + seed


def _power_of_ten(value: float, _: int) -> str:
    return f"{value:g}" if 1e-2 <= value < 1e4 else f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")


def _number(x: float) -> str:
    return "0" if not x else f"{x:.3g}" if 1e-3 <= abs(x) < 1e4 else f"{x:.1e}"


# --- The certificate


def _ulps(document: Mapping[str, Any], source: str) -> _Drawn:
    """A panel for each dtype, a row for each optimizer, a mark for each mode."""
    measured = [(model.split(str(m["subject"])), m) for m in document["torch"] if m["ulps"] is not None]
    optimizers = sorted({name for (_, name, _), _ in measured}, key=str.lower, reverse=True)
    modes = sorted({mode for (_, _, mode), _ in measured}, key=_rank(MODES))
    dtypes = sorted({str(m["dtype"]) for _, m in measured}, key=_rank(DTYPES))
    columns = min(3, len(dtypes))
    lines = math.ceil(len(dtypes) / max(columns, 1))
    canvas = Canvas(
        "ulps", f"Largest known error in ulps, by optimizer, for {len(modes)} modes and {len(dtypes)} dtypes; the table has the numbers",
        (_WIDTH, lines * (18 * len(optimizers) + 60) + 40), max(lines, 1), max(columns, 1), sharey=True, sharex=True,
    )  # fmt: skip
    step = 0.7 / max(len(modes), 1)
    with canvas.drawing() as panels:
        for axes, dtype in zip(panels, dtypes, strict=False):
            axes.set_title(plain(dtype))
            for n, mode in enumerate(modes):
                of_mode = [(name, m) for (_, name, own), m in measured if own == mode and m["dtype"] == dtype]
                if of_mode:
                    x = [min(max(float(m["ulps"]), 0.05), _MOST_ULPS) for _, m in of_mode]
                    y = [optimizers.index(name) + 0.35 - (n + 0.5) * step for name, _ in of_mode]
                    titles = [
                        f"{m['subject']}, {dtype}: {_number(float(m['ulps']))} ulps in {m['ulps_witness']['field']}; {source}"
                        for _, m in of_mode
                    ]
                    canvas.marks(axes, x, y, titles, n, s=18)
        for axes in panels[: len(dtypes)]:
            axes.set_xscale("log")
            axes.set(xlim=(0.04, _MOST_ULPS * 3), ylim=(-0.6, len(optimizers) - 0.4))
            axes.set_xticks([1, 1e3, 1e6, 1e9, 1e12, 1e15, 1e18], ["1", "1e3", "1e6", "1e9", "1e12", "1e15", "≥1e18"])
            axes.minorticks_off()
            axes.set_yticks(range(len(optimizers)), [plain(o) for o in optimizers])
            axes.axvline(0.5, color=MUTED, linewidth=0.8, linestyle=":")
        for axes in panels[-columns:]:
            axes.set_xlabel("ulps")
    for axes in canvas.panels[len(dtypes) :]:
        axes.remove()
    canvas.legend(modes)
    rows = [
        [
            m["subject"],
            m["dtype"],
            m["elements"],
            m["ulps"],
            m["ulps_witness"]["field"],
            m["ratio"],
            (m["ratio_witness"] or {}).get("field", ""),
        ]
        for _, m in measured
    ]
    return _Drawn(["subject", "dtype", "elements", "ulps", "in", "r", "in"], rows, canvas)


def _rank(order: Iterable[str]) -> Callable[[str], tuple[int, str]]:
    known = list(order)
    return lambda name: (known.index(name) if name in known else len(known), name)


# --- The distribution of r


def _budget(document: Mapping[str, Any], source: str) -> _Drawn:
    """The share of elements in each class of r, a panel for each family of subjects, a line for each dtype."""
    summed: dict[str, dict[str, list[int]]] = {}
    for cell in document["cells"]:
        family = model.split(cell.subject)[0]
        for by_dtype in cell.ratios.values():
            for dtype, counts in by_dtype.items():
                before = summed.setdefault(family, {}).setdefault(dtype, [0] * (len(RATIO_EDGES) + 1))
                summed[family][dtype] = [a + b for a, b in zip(before, counts, strict=True)]
    families = list(summed)[:6]
    dtypes = sorted({d for of_family in summed.values() for d in of_family}, key=_rank(DTYPES))
    columns = min(len(families), 3)
    canvas = Canvas(
        "budget", f"Share of elements in each class of r, for {', '.join(map(plain, families))}; the table has the numbers",
        (_WIDTH, 260 * math.ceil(len(families) / columns) + 40), math.ceil(len(families) / columns), columns, sharey=True,
    )  # fmt: skip
    with canvas.drawing() as panels:
        for axes, family in zip(panels, families, strict=False):
            axes.set_title(plain(family))
            for n, dtype in enumerate(dtypes):
                counts = summed[family].get(dtype)
                if counts and sum(counts):
                    # A class is drawn over its width; exactly 0 is told in the title and the table alone.
                    shares = [c / sum(counts) or math.nan for c in counts[1:-1]]
                    told = f"{family}, {dtype}: {counts[0] / sum(counts):.1%} of {sum(counts):,} elements at r = 0, {counts[-1]:,} above 1; {source}"
                    canvas.line(
                        axes,
                        RATIO_EDGES,
                        [*shares, shares[-1]],
                        told,
                        n,
                        drawstyle="steps-post",
                        linestyle=_DASHES[n % 6],
                    )
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(_power_of_ten)
            axes.minorticks_off()
            axes.set(xlim=(0, 1), xlabel="r, in classes of 0.05")
    for axes in canvas.panels[len(families) :]:
        axes.remove()
    canvas.panels[0].set_ylabel("share of elements")
    canvas.legend(dtypes, _DASHES)
    classes = ["0", *(f"≤ {edge:.2f}" for edge in RATIO_EDGES[1:]), "> 1"]
    rows = [[f, d, sum(counts), *counts] for f, of_family in summed.items() for d, counts in of_family.items()]
    return _Drawn(["family", "dtype", "elements", *classes], rows, canvas)


# --- Power


def _power(document: Mapping[str, Any], source: str) -> _Drawn:
    """The share of wrong optimizers that are caught, over the CPU seconds that it took; stepcheck and other oracles."""
    faults = document["faults"]
    kills = [k for f in faults for k in f["kills"]]
    curves = {"stepcheck": ([float(k["cpu_seconds"]) for k in kills if k["checks"]], len(kills))}
    for oracle in document["oracles"]:
        answers = [f["other_oracles"][oracle] for f in faults if oracle in f["other_oracles"]]
        curves[str(oracle)] = ([float(a["cpu_seconds"]) for a in answers if a["caught"]], len(answers))
    longest = max((max(seconds, default=0.0) for seconds, _ in curves.values()), default=0.0) or 1.0
    least = max(min((s for seconds, _ in curves.values() for s in seconds if s > 0), default=1e-3), 1e-4)
    canvas = Canvas("power", f"Share of {len(faults)} wrong optimizers caught over CPU seconds, by {len(curves)} oracles; the table has the numbers", (_WIDTH, 380))  # fmt: skip
    with canvas.drawing() as (axes,):
        for n, (name, (seconds, of)) in enumerate(curves.items()):
            x, y = _curve(seconds, of, longest)
            told = f"{name}: {len(seconds) / max(of, 1):.1%} of {of:,}; {source}"
            canvas.line(
                axes, x, y, told, n, drawstyle="steps-post", linestyle=_DASHES[n % 6], linewidth=2.2 if n == 0 else 1.5
            )
        axes.set_xscale("log")
        axes.set(xlim=(least, longest), ylim=(0, 1.02), xlabel="CPU seconds of checking", ylabel="share caught")
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    canvas.legend([f"{name} ({len(s) / max(of, 1):.1%})" for name, (s, of) in curves.items()], _DASHES)
    times = [10.0**n * m for n in range(-4, 5) for m in (1, 2, 5) if least <= 10.0**n * m <= longest * 2.5]
    rows = [[t, *(sum(s <= t for s in seconds) / max(of, 1) for seconds, of in curves.values())] for t in times]
    return _Drawn(["CPU seconds", *curves], rows, canvas)


def _curve(seconds: Sequence[float], of: int, longest: float) -> tuple[list[float], list[float]]:
    x = sorted(seconds)
    every = max(1, len(x) // _MOST_POINTS)
    kept = [n for n in range(len(x)) if n % every == 0 or n == len(x) - 1]
    y = [(n + 1) / max(of, 1) for n in kept]
    return [*(x[n] for n in kept), longest], [*y, y[-1] if y else 0.0]


# --- Benchmarks


def _bench(document: Mapping[str, Any], source: str) -> _Drawn:
    """Ratios over the number of elements stepped, a panel for each optimizer; bars are the quartiles of single rounds."""
    workloads = {w["workload"]: w for w in document["workloads"]}
    timed = [(r, workloads[r["workload"]]) for r in document["results"] if r["ratio"] is not None and not r["wrong"]]
    names = sorted({str(r["optimizer"]) for r, _ in timed}, key=str.lower)
    columns = min(4, max(len(names), 1))
    lines = math.ceil(len(names) / columns) or 1
    canvas = Canvas(
        "bench", f"Time of torch's fastest mode over that of stepcheck.fast, over the number of elements, for {len(names)} optimizers; the table has the numbers",
        (_WIDTH, 170 * lines + 60), lines, columns, sharex=True, sharey=True,
    )  # fmt: skip
    with canvas.drawing() as panels:
        for axes, name in zip(panels, names, strict=False):
            axes.set_title(plain(name))
            for n, kind in enumerate(("dense", "sparse")):
                own = [t for t in timed if t[0]["optimizer"] == name and (t[1]["kind"] == "sparse") == bool(n)]
                if own:
                    _ratios(canvas, axes, sorted(own, key=lambda t: t[1]["stepped"]), n, kind, source)
            axes.axhline(1.0, color=INK, linewidth=0.8)
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.xaxis.set_major_formatter(_power_of_ten)
            axes.yaxis.set_major_formatter("{x:g}")
            axes.minorticks_off()
        for axes in panels[-columns:]:
            axes.set_xlabel("elements stepped")
        panels[0].set_ylabel("torch / fast")
    for axes in canvas.panels[len(names) :]:
        axes.remove()
    kinds = ["dense gradients", *["sparse gradients"] * any(w["kind"] == "sparse" for _, w in timed)]
    canvas.legend(kinds)
    heads = ("optimizer", "workload", "elements", "torch's fastest", "ratio", "lower quartile", "upper quartile", "of the ceiling")  # fmt: skip
    rows = [
        [r["optimizer"], w["workload"], w["stepped"], r["best"], r["ratio"],
         *(r["round_ratios"]["quartiles"] or (None, None)), r["share_of_ceiling"]]
        for r, w in timed
    ]  # fmt: skip
    return _Drawn(list(heads), rows, canvas)


def _ratios(canvas: Canvas, axes: Any, timed: Sequence[tuple[Any, Any]], n: int, kind: str, source: str) -> None:
    """Those of one optimizer, by elements stepped: marks with their quartiles."""
    x = [w["stepped"] for _, w in timed]
    titles = [
        f"{r['optimizer']}, {w['workload']} ({w['stepped']:,} elements): {r['ratio']:.3g} times as fast as {r['best']}; {source}"
        for r, w in timed
    ]
    spreads = [r["round_ratios"]["quartiles"] or (r["ratio"], r["ratio"]) for r, _ in timed]
    axes.vlines(x, [s[0] for s in spreads], [s[1] for s in spreads], color=SERIES[n], linewidth=1.0)
    axes.plot(x, [r["ratio"] for r, _ in timed], color=SERIES[n], linewidth=0.8)
    canvas.marks(axes, x, [r["ratio"] for r, _ in timed], titles, n, s=22, label=kind)


# --- The census


def _census(document: Mapping[str, Any], source: str) -> _Drawn:
    """Bytes for each element, as counted in the compiled code, on those of the model."""
    counted: dict[tuple[str, str, str, str], set[tuple[float, float]]] = {}
    for k in document["kernels"]:
        if "sass_loaded_per_element" in k and k["role"] != "prepare":
            moved = float(k["sass_loaded_per_element"]) + float(k["sass_stored_per_element"])
            modelled = float(k["model"]["loaded"]) + float(k["model"]["stored"])
            key = str(k["optimizer"]), str(k["dtype"]), str(k["role"]), str(k["arch"])
            counted.setdefault(key, set()).add((modelled, moved))
    optimizers = sorted({key[0] for key in counted}, key=str.lower, reverse=True)
    dtypes = sorted({key[1] for key in counted}, key=_rank(DTYPES))
    archs = list(dict.fromkeys(key[3] for key in counted))
    canvas = Canvas(
        "census", f"Bytes loaded and stored for each element, by optimizer and dtype, beside the model; {len(archs)} architectures; the table has the numbers",
        (_WIDTH, 20 * len(optimizers) + 110), 1, max(len(dtypes), 1), sharey=True,
    )  # fmt: skip
    with canvas.drawing() as panels:
        for axes, dtype in zip(panels, dtypes, strict=False):
            axes.set_title(plain(dtype))
            points: dict[tuple[str, float, float], list[str]] = {}
            for (name, own, role, arch), pairs in counted.items():
                for modelled, moved in pairs if own == dtype else ():
                    points.setdefault((name, modelled, moved), []).append(f"{role} {arch}")
            y = [optimizers.index(name) for name, _, _ in points]
            titles = [
                f"{name}, {dtype}: {moved:g} bytes counted, {modelled:g} by the model ({', '.join(where)}); {source}"
                for (name, modelled, moved), where in points.items()
            ]
            canvas.marks(axes, [p[1] for p in points], y, [t.replace("counted", "in the code") for t in titles], 0, marker="o", s=60, facecolors="none", edgecolors=SERIES[0], linewidths=1.2)  # fmt: skip
            canvas.marks(axes, [p[2] for p in points], y, titles, 1, marker=MARKERS[0], s=14)
            axes.set(
                xlim=(0, 1.08 * max(max(p[1:]) for p in points)),
                ylim=(-0.6, len(optimizers) - 0.4),
                xlabel="bytes / element",
            )
            axes.set_yticks(range(len(optimizers)), [plain(o) for o in optimizers])
            axes.spines["left"].set_color(LINE)
    from matplotlib.lines import Line2D

    with canvas.drawing():
        canvas.figure.legend(
            handles=[Line2D([], [], linestyle="", marker="o", markersize=8, markerfacecolor="none", markeredgecolor=SERIES[0], label="model"),
                     Line2D([], [], linestyle="", marker="o", markersize=4, color=SERIES[1], label="counted in SASS")],
            loc="outside upper left", ncols=2,
        )  # fmt: skip
    folded: dict[tuple[str, str, str, float, float], list[str]] = {}
    for (name, dtype, role, arch), pairs in counted.items():
        for pair in sorted(pairs):
            folded.setdefault((name, dtype, role, *pair), []).append(arch)
    told = [[*key, ", ".join(of_key)] for key, of_key in folded.items()]
    return _Drawn(["optimizer", "dtype", "kernel", "model", "counted", "architectures"], told, canvas)


@dataclass(frozen=True)
class _Plot:
    name: str
    kind: str
    command: str
    draw: _Draw
    title: str
    told: str


_PLOTS = (
    _Plot(
        "budget", "check", "stepcheck check", _budget, "Used budget",
        "The share of compared elements in each class of r = |subject - reference| / budget. A tight budget comes near 1, and what conforms stays below;"
        " exactly 0 is in the table.",
    ),
    _Plot(
        "ulps", "certificate", "python -m stepcheck.harness.certificate", _ulps, "Largest known errors",
        "The largest error seen, in ulps of the dtype, of each mode of torch.optim; dotted: half an ulp. Cancellation is not excluded, so that"
        " many ulps need not be a fault: the table has the same error in budgets (r).",
    ),
    _Plot(
        "power", "power", "stepcheck power", _power, "Wrong optimizers caught",
        "Of the known wrong optimizers, the share that is caught within so much CPU time, by a campaign of stepcheck and by other oracles.",
    ),
    _Plot(
        "bench", "bench", "stepcheck bench", _bench, "Benchmarks",
        "Time of the fastest mode of torch.optim over that of stepcheck.fast: above the line at 1, fast is faster. Bars: quartiles of single"
        " rounds.",
    ),
    _Plot(
        "census", "census", "stepcheck census", _census, "Census of the CUDA kernels",
        "Bytes that a kernel loads and stores for each element, counted in its compiled code; a dot in its ring is a kernel that keeps to its"
        " model.",
    ),
)  # fmt: skip
