"""How fast a step is: ``torch.optim`` in all its modes and ``stepcheck.fast``, in turns, in one process.

Times on a machine that does other things drift; ratios of times taken side by side drift far less. So each *round* runs a batch of
steps of each contender, in an order that rotates; a batch takes ten milliseconds, or one step. What is reported are medians over
rounds, with quartiles. Before anything is timed all contenders step the same problem, and are compared.
"""

from __future__ import annotations

import functools
import gc
import inspect
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stepcheck.fast.engine import SIZE
from stepcheck.harness.bench import cuda, machine
from stepcheck.harness.bench.contenders import (
    CEILING,
    FAST,
    FAST_GRAPH,
    GRAPH,
    Contender,
    buffers,
    build,
    fast_class,
    fast_ways,
    layout,
    modes,
)
from stepcheck.harness.bench.workloads import Problem, Workload, dense, kinds, options, takes
from stepcheck.harness.play.families import no_cuda, no_such_class
from stepcheck.harness.support.usage import UsageError

ROUNDS = 15
QUICK_ROUNDS = 3
#: Seconds of timing after which a row is done where nobody asked for a number of rounds, once it has a few.
PATIENCE = 20.0
_FEW_ROUNDS = 3
#: Seconds of one step above which a workload that nobody asked for is left out: torch's Muon, where bfloat16 is emulated.
LONGEST = 60.0
#: Seconds that a batch takes at least.
_BATCH = 0.01
#: Steps of a batch where each is timed by itself.
_COLD_BATCH = 5
#: Steps of a batch of an optimizer that gets nearer to a minimum with each: the same for all, and few.
_HISTORY_BATCH = 5
#: Steps before the comparison: the second is the first that finds a state. On a GPU as many again, which graphs replay.
_COMPARED_STEPS = {"cpu": 2, "cuda": 2 * cuda.WARM_UP}
#: Of the way that torch's parameters went: far above any rounding, Muon's bfloat16 included, far below a wrong update.
SANE = 0.05
#: Part of the free memory that a row may take.
_MEMORY = 0.8
#: Temporary tensors of the size of all parameters that torch's foreach modes make.
_TEMPORARY = 3


@dataclass(frozen=True)
class Settings:
    """What is asked of a run.

    Attributes:
        rounds: of each row; ``None``: :data:`ROUNDS`, or fewer where they take long.
        compiled: time ``torch.compile`` too.
        device: ``"cpu"`` or ``"cuda"``.
        seed: of the values.
        patient: also time what takes more than :data:`LONGEST` a step.
        only: the contenders to time; empty for all. A ceiling that is named is timed whatever the cache holds.
        dtype: of parameters, gradients and state.
        cold: each step is timed by itself, after new gradients were made and nothing of its own is left in any cache.
        options: what optimizers are constructed with beside what their workload asks for. Those that torch lacks go to fast alone; a class
            that lacks one is left out.
    """

    rounds: int | None = None
    compiled: bool = False
    device: str = "cpu"
    seed: int = 0
    patient: bool = True
    only: tuple[str, ...] = ()
    dtype: str = "float32"
    cold: bool = False
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Timing:
    """One contender in one row.

    Attributes:
        name: of the contender.
        seconds: of a step, for each round.
        batch: steps of a round.
        host: seconds of a step until it returns, for each round; on a GPU alone, which may then still have to do it.
        distance: from the first mode of torch that came to finite numbers, after the same steps, in lengths of the way that it went;
            infinite where the contender came to none; ``None``: not compared.
        error: why it did not take part.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    batch: int = 0
    host: list[float] = field(default_factory=list)
    distance: float | None = None
    error: str = ""

    @property
    def sane(self) -> bool:
        """Whether it came to where torch did."""
        return self.distance is None or self.distance <= SANE

    @property
    def median(self) -> float:
        """Seconds of a step; NaN if it was not timed."""
        return float(np.median(self.seconds)) if self.seconds else math.nan

    @property
    def host_median(self) -> float | None:
        """Seconds of the processor for a step, where the GPU's are others."""
        return float(np.median(self.host)) if self.host else None


@dataclass
class Row:
    """One optimizer on one workload.

    Attributes:
        options: those that the optimizer is constructed with.
        bytes_per_element: the memory traffic of a step that does no more than its rule needs; ``None``: no rule.
        torch: its modes.
        fast: its fast class, if it took part.
        fast_graph: the same, replayed by a CUDA graph.
        ceiling: as many streams without arithmetic, on a GPU a copy of as many bytes, where that is memory's speed and not the cache's.
        engine: who steps the fast class.
        note: why something is missing, or not what it seems.
    """

    optimizer: str
    workload: Workload
    options: dict[str, Any]
    bytes_per_element: int | None = None
    torch: list[Timing] = field(default_factory=list)
    fast: Timing | None = None
    fast_graph: Timing | None = None
    ceiling: Timing | None = None
    engine: str = ""
    note: str = ""

    @property
    def timings(self) -> list[Timing]:
        """All of them."""
        return [t for t in (*self.torch, self.fast, self.fast_graph, self.ceiling) if t is not None]

    @property
    def best(self) -> Timing | None:
        """The fastest of torch's modes, without a graph."""
        able = (t for t in self.torch if t.seconds and t.sane and t.name != GRAPH)
        return min(able, key=lambda t: t.median, default=None)

    @property
    def graph_ratio(self) -> float | None:
        """How many times longer torch's capturable mode takes than the fast class, both replayed by graphs."""
        graph, fast = next((t for t in self.torch if t.name == GRAPH), None), self.fast_graph
        able = graph is not None and fast is not None and graph.seconds and fast.seconds and graph.sane
        return graph.median / fast.median if able and graph and fast else None

    @property
    def ratio(self) -> float | None:
        """How many times longer the fastest of torch's modes takes than the fast class."""
        best = self.best
        return best.median / self.fast.median if best and self.fast and self.fast.seconds else None

    @property
    def round_ratios(self) -> list[float]:
        """The same, for each round."""
        best = self.best
        if best is None or self.fast is None or not self.fast.seconds:
            return []
        return [t / f for t, f in zip(best.seconds, self.fast.seconds, strict=True)]

    @property
    def bandwidth(self) -> float | None:
        """Bytes that a second of the fast class moves, by the model."""
        if self.bytes_per_element is None or self.fast is None or not self.fast.seconds:
            return None
        return self.bytes_per_element * self.workload.stepped / self.fast.median

    @property
    def share(self) -> float | None:
        """The fast class's part of the speed of the ceiling: the median over rounds."""
        if self.fast is None or self.ceiling is None or not self.fast.seconds or not self.ceiling.seconds:
            return None
        return float(np.median([c / f for c, f in zip(self.ceiling.seconds, self.fast.seconds, strict=True)]))

    @property
    def wrong(self) -> bool:
        """Whether the fast class steps somewhere else."""
        return any(t is not None and not t.sane for t in (self.fast, self.fast_graph))


def quartiles(values: Sequence[float]) -> tuple[float, float] | None:
    """The first and the third."""
    return tuple(float(q) for q in np.percentile(values, (25, 75))) if values else None  # type: ignore[return-value]


# --- Clocks


def _processor_seconds(step: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - start


_CLOCKS: dict[str, Callable[[Callable[[], Any], int], float]] = {"cpu": _processor_seconds, "cuda": cuda.seconds}


def check_device(device: str) -> None:
    """Find out before the run.

    Raises:
        UsageError: torch has no such device here.
    """
    why = no_cuda() if device == "cuda" else ""
    if why:
        raise UsageError(f"{why} (torch {torch.__version__}); run it with --device cpu")


# --- A row


Progress = Callable[[str, int, int], None]


def has(name: str, options: Mapping[str, Any]) -> bool:
    """Whether a fast class takes these options."""
    return options.keys() <= inspect.signature(fast_class(name) or getattr(torch.optim, name)).parameters.keys()


def rows(names: Sequence[str], workloads: Sequence[Workload], settings: Settings, progress: Progress) -> Iterator[Row]:
    """Time every optimizer on every workload that it is meant for, workload by workload."""
    planned = [(w, [n for n in names if takes(n, w) and has(n, settings.options)]) for w in workloads]
    total, done = sum(len(of) for _, of in planned), 0
    for workload, of in planned:
        problem = None
        for name in of:
            progress(f"{workload.name} {name}", done, total)
            done += 1
            row = Row(name, workload, options(name, workload) | settings.options)
            row.note = _too_large(row, settings, made=problem is not None) or _too_slow(row, settings)
            if not row.note:
                problem = problem or workload.make(settings.seed, settings.device, settings.dtype)
                # Said aloud, or torch warns that it does not check what Adagrad and SGD make of sparse gradients.
                with torch.sparse.check_sparse_tensor_invariants(enable=False):  # type: ignore[no-untyped-call]
                    _time(row, problem, settings)
                gc.collect()
            yield row


def _planned(row: Row, settings: Settings) -> list[str]:
    """The contenders of a row."""
    kind, device = row.workload.kind, settings.device
    named = [*modes(row.optimizer, kind, compiled=settings.compiled, device=device)]
    if fast_class(row.optimizer) is not None:
        named += [*fast_ways(row.optimizer, kind, device), *([CEILING] if _has_ceiling(row, settings) else [])]
    return [name for name in named if name in settings.only] if settings.only else named


def _has_ceiling(row: Row, settings: Settings) -> bool:
    streams = layout(row.optimizer, row.options, settings.dtype)
    if streams is None or row.workload.kind != "dense" or settings.cold:
        return False
    # Half of it in the cache, and it would be the cache's speed that is measured.
    beyond = len(streams.streams) * SIZE[settings.dtype] * row.workload.elements >= 2 * machine.cache_bytes(
        settings.device
    )
    return beyond or CEILING in settings.only


def _too_large(row: Row, settings: Settings, *, made: bool) -> str:
    """Why there is not enough memory, or nothing."""
    free = machine.free_memory(settings.device)
    if free is None:
        return ""
    each = 1 + buffers(row.optimizer, row.options, settings.dtype) + settings.cold
    needed = (
        SIZE[settings.dtype]
        * row.workload.elements
        * (len(_planned(row, settings)) * each + _TEMPORARY + (0 if made else 2))
    )
    if needed <= _MEMORY * free:
        return ""
    return f"left out: it needs {needed / 2**30:.1f} GiB of memory, {free / 2**30:.1f} GiB are free"


def _too_slow(row: Row, settings: Settings) -> str:
    """Why a step would take too long, or nothing: judged by one matrix, whose products grow with its elements times its shorter side."""
    if settings.patient or row.workload.kind != "matrices" or no_such_class(row.optimizer):
        return ""
    costs = [math.prod(shape) * min(shape) for shape in row.workload.shapes]
    least = row.workload.shapes[costs.index(min(costs))]
    one = build(row.optimizer, "forloop", row.options, dense(1, *least).make(settings.seed, settings.device))
    seconds = _CLOCKS[settings.device](one.step, 1) * sum(costs) / min(costs)
    if seconds <= LONGEST:
        return ""
    return f"left out: a step of torch takes about {seconds:.0f} s here; --workload {row.workload.name} times it all the same"


def _time(row: Row, problem: Problem, settings: Settings) -> None:
    """Build the contenders, compare them, and time them."""
    streams = layout(row.optimizer, row.options, settings.dtype)
    row.bytes_per_element = streams.bytes_per_element if streams else None
    contenders: dict[str, Contender] = {}
    for name in _planned(row, settings):
        timing = Timing(name)
        if name == FAST:
            row.fast = timing
        elif name == FAST_GRAPH:
            row.fast_graph = timing
        elif name == CEILING:
            row.ceiling = timing
        else:
            row.torch.append(timing)
        try:
            contender = build(row.optimizer, name, row.options, problem)
            for _ in range(_COMPARED_STEPS[settings.device] - contender.taken):
                contender.step()
        except Exception as error:  # noqa: BLE001 - whatever it raises is why it does not take part
            timing.error = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            continue
        contenders[name] = contender
    steps = _COMPARED_STEPS[settings.device]
    row.note = "; ".join(
        filter(None, (_compare(row, contenders, problem, steps), _served(row, contenders.get(FAST), steps)))
    )
    timed = [(t, contenders[t.name]) for t in row.timings if t.name in contenders]
    if not settings.cold:
        _rounds([(t, c.step) for t, c in timed], row, settings)
        return
    other = torch.zeros(2 * machine.cache_bytes(settings.device) // 4, device=problem.device)
    cold = [(t, _Cold(c.step, functools.partial(problem.renew, c.parameters), other)) for t, c in timed]
    _rounds([(t, c.step) for t, c in cold], row, settings, [c.seconds for _, c in cold])


def _compare(row: Row, contenders: Mapping[str, Contender], problem: Problem, steps: int) -> str:
    """How far each is from where torch came; why that cannot be told, or nothing."""
    modes = [t.name for t in row.torch if t.name in contenders]
    finite = [name for name in modes if contenders[name].is_finite()]
    if not finite:
        return "not compared: in this dtype every mode of torch comes to numbers that are not finite" if modes else ""
    for timing in row.timings:
        if timing.name in contenders and timing.name not in (finite[0], CEILING):
            contender = contenders[timing.name]
            apart = (
                contender.distance(contenders[finite[0]], problem.start, steps) if contender.is_finite() else math.inf
            )
            timing.distance = apart
    return ""


def _served(row: Row, contender: Contender | None, steps: int) -> str:
    """What is to be said of who steps the fast class, or nothing."""
    if row.fast is None:
        return f"stepcheck.fast has no {row.optimizer}"
    if contender is None:
        return f"fast: {row.fast.error}"
    row.engine, reason = contender.served
    told = [f"stepped by torch: {reason}"] if row.engine == "torch" else []
    alone = no_such_class(row.optimizer)
    told += [f"beside nothing: {alone}"] if alone else []
    told += [
        f"WRONG: after {steps} steps {t.name} is {t.distance:.2g} of torch's way from torch's parameters"
        for t in (row.fast, row.fast_graph)
        if t is not None and not t.sane
    ]
    if row.fast_graph is not None and row.fast_graph.error:
        told.append(f"{FAST_GRAPH}: {row.fast_graph.error}")
    return "; ".join(told)


class _Cold:
    """A step before each of which there are new gradients, and nothing of its own is left in any cache."""

    def __init__(self, step: Callable[[], Any], renew: Callable[[], None], other: torch.Tensor) -> None:
        self.step, self._renew, self._other = step, renew, other

    def seconds(self, clock: Callable[[Callable[[], Any], int], float], count: int) -> float:
        """Of so many steps, without what is before each."""
        total = 0.0
        for _ in range(count):
            self._renew()
            self._other.add_(1.0)
            total += clock(self.step, 1)
        return total


def _rounds(
    timed: list[tuple[Timing, Callable[[], Any]]],
    row: Row,
    settings: Settings,
    by_themselves: Sequence[Callable[..., float]] = (),
) -> None:
    """Time steps, in turns.

    Args:
        by_themselves: for each, what tells the seconds of so many by a clock, where something untimed is between any two.
    """
    clock = _CLOCKS[settings.device]
    # An optimizer with a history is timed once that is full.
    warm_up = row.options.get("history_size", 0)
    for timing, step in timed:
        clock(step, warm_up)
        usual = _COLD_BATCH if by_themselves else _batch(step, clock)
        timing.batch = _HISTORY_BATCH if warm_up else usual
    turns = [
        (timing, step, functools.partial(by_themselves[i], clock) if by_themselves else functools.partial(clock, step))
        for i, (timing, step) in enumerate(timed)
    ]
    start, most = time.perf_counter(), settings.rounds or ROUNDS
    collecting = gc.isenabled()
    gc.disable()
    try:
        for n in range(most):
            turn = n % max(len(timed), 1)
            for timing, step, seconds in (*turns[turn:], *turns[:turn]):
                timing.seconds.append(seconds(timing.batch) / timing.batch)
                if settings.device == "cuda":
                    timing.host.append(cuda.enqueue_seconds(step))
            spent = time.perf_counter() - start
            enough = n + 1 >= _FEW_ROUNDS or spent / (n + 1) > PATIENCE
            if settings.rounds is None and spent > PATIENCE and enough:
                break
    finally:
        if collecting:
            gc.enable()


def _batch(step: Callable[[], Any], clock: Callable[[Callable[[], Any], int], float]) -> int:
    """How many steps take long enough for the clock."""
    count = 1
    while True:
        seconds = clock(step, count)
        if seconds >= _BATCH:
            return count
        count = max(2 * count, min(math.ceil(1.2 * count * _BATCH / max(seconds, 1e-9)), 100 * count))


# --- What a tensor costs, and an element


@dataclass(frozen=True)
class Scaling:
    """How the time of a step grows, by a straight line through the medians; ``None``: it was not measured.

    Attributes:
        per_tensor: seconds for each further tensor of 64 elements, by contender.
        per_element: seconds for each further element of one tensor, by contender.
    """

    optimizer: str
    per_tensor: dict[str, float]
    per_element: dict[str, float]
    note: str = ""


_TENSORS = (100, 200, 400)
_ELEMENTS = (1 << 18, 1 << 19, 1 << 20)


def scalings(names: Sequence[str], settings: Settings, progress: Progress) -> Iterator[Scaling]:
    """The cost of a tensor and of an element, for each optimizer that has such costs."""
    lined = [n for n in names if {"dense", "matrices"} & set(kinds(n))]
    for done, name in enumerate(lined):
        progress(f"scaling {name}", done, len(lined))
        products = "dense" not in kinds(name)
        shape = (8, 8) if products else (64,)
        per_tensor, note = _slopes(name, [dense(count, *shape) for count in _TENSORS], _TENSORS, settings)
        per_element: dict[str, float] = {}
        if not products:  # what is done with a matrix does not grow with its elements alone
            per_element, _ = _slopes(name, [dense(1, count) for count in _ELEMENTS], _ELEMENTS, settings)
        yield Scaling(name, per_tensor, per_element, note)


def _slopes(
    name: str, workloads: Sequence[Workload], counts: Sequence[int], settings: Settings
) -> tuple[dict[str, float], str]:
    measured = list(rows([name], workloads, settings, lambda what, done, total: None))
    times: dict[str, list[float]] = {}
    for row in measured:
        for timing in row.timings:
            if timing.name != CEILING and timing.seconds:
                times.setdefault(timing.name, []).append(timing.median)
    whole = {who: medians for who, medians in times.items() if len(medians) == len(counts)}
    slopes = {who: float(np.polyfit(counts, medians, 1)[0]) for who, medians in whole.items()}
    return slopes, next((row.note for row in measured if row.note), "")
