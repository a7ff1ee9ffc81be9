"""What a step costs the processor before a GPU has anything to do: measured without one, with the launch of kernels stubbed.

The classes of :mod:`stepcheck.fast.interpreted` take, on CPU tensors, every step on the way to a kernel that those on CUDA tensors take: they look
for what changed, read options, and send tables. :func:`stepcheck.fast.cuda.runtime.launch` is replaced by a function that counts how often it
is called, and does nothing. Beside them stands ``torch.optim`` with ``fused=True``, which on a GPU too walks its lists of tensors in Python and
C++ before it launches anything. All tensors have one element, in as many dimensions as a model's, so that torch's kernels cost next
to nothing.

What is not measured: the launches themselves, one to prepare and one for each dtype, which add some microseconds to a step, not to a tensor;
and to copy a table to a GPU instead of to other memory.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from rich.table import Table

from stepcheck.fast import interpreted
from stepcheck.fast.cuda import runtime
from stepcheck.fast.optimizer import ByRule
from stepcheck.harness.bench.contenders import fast_class
from stepcheck.harness.bench.rounds import Progress
from stepcheck.harness.bench.workloads import WORKLOADS, Shape
from stepcheck.harness.play.families import FAST, TORCH
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS

#: Lists of parameters: of models, and one of many small tensors.
LISTS: dict[str, tuple[Shape, ...]] = {
    **{name: WORKLOADS[name].shapes for name in ("resnet50", "gpt2")},
    "1000 small": ((64,),) * 1000,
}
#: Where gradients are: where they were in the step before; in one of two places in turn; or made anew by a backward pass, as after
#: ``zero_grad(set_to_none=True)``, which leaves to the step to find all objects in memory again, and to Python to make one of each gradient.
GRADIENTS = ("kept", "moved", "new")
#: Steps of a round.
_STEPS = 10
_WARM_UP = 3
LEGEND = (
    "Microseconds of the processor for a step, divided by tensors, medians of rounds (in parentheses the least); ratio: torch's fused step over fast's,"
    " the median of the ratios of single rounds. Launches are stubbed: their number is told, and each adds some microseconds to a step,"
    " not to a tensor. gradients: where they were; moved, in two places in turn; new, made by a backward pass just before, after which nothing is in"
    " the caches. fused: torch.optim on CPU tensors, its kernels included, which for one element cost next to nothing."
)


@dataclass
class HostRow:
    """One optimizer on one list of parameters.

    Attributes:
        tensors: how many there are.
        gradients: one of :data:`GRADIENTS`.
        launches: of a step of the fast class.
        fast: seconds of a step, for each round.
        fused: the same of ``torch.optim`` with ``fused=True``; empty where it has no such mode.
    """

    optimizer: str
    parameters: str
    tensors: int
    gradients: str
    launches: int = 0
    fast: list[float] = field(default_factory=list)
    fused: list[float] = field(default_factory=list)

    @property
    def fast_per_tensor(self) -> float:
        """Seconds, the median of rounds."""
        return statistics.median(self.fast) / self.tensors

    @property
    def fused_per_tensor(self) -> float | None:
        """Seconds, the median of rounds."""
        return statistics.median(self.fused) / self.tensors if self.fused else None

    @property
    def ratio(self) -> float | None:
        """How many times longer torch's fused step takes: the median over rounds."""
        return statistics.median([t / f for t, f in zip(self.fused, self.fast, strict=True)]) if self.fused else None


def takers() -> tuple[str, ...]:
    """The optimizers whose step is a launch for all parameters, whatever their shapes and gradients."""
    by_rule = (name for name in FAST.here if issubclass(fast_class(name), ByRule))
    return tuple(name for name in by_rule if SPECS[name].sparse != "only")


def check(names: Sequence[str]) -> None:
    """Find out before the run.

    Raises:
        UsageError: the kernels cannot be run here, or an optimizer has no such step.
    """
    why = runtime.unavailable(torch.device("cpu"))
    if why:
        raise UsageError(f"--host needs Triton: {why}")
    for name in names:
        if name not in takers():
            raise UsageError(
                f"--host measures steps that are one launch for all parameters: {', '.join(takers())}, not {name}"
            )


@contextmanager
def stubbed() -> Iterator[list[int]]:
    """Nothing is launched meanwhile; of each launch, how many programs it would have had."""
    launched: list[int] = []
    kept = runtime.launch
    runtime.launch = lambda source, device, programs, arguments: launched.append(programs)
    try:
        yield launched
    finally:
        runtime.launch = kept


def rows(names: Sequence[str], rounds: int, progress: Progress) -> Iterator[HostRow]:
    """Measure every optimizer on every list, with gradients of either kind."""
    cases = [(name, listed, how) for name in names for listed in LISTS for how in GRADIENTS]
    for done, (name, listed, how) in enumerate(cases):
        progress(f"{listed} {name}", done, len(cases))
        yield measured(name, listed, LISTS[listed], how, rounds)


def measured(name: str, listed: str, shapes: Sequence[Shape], gradients: str, rounds: int) -> HostRow:
    """One row, on parameters of these shapes with each dimension shrunk to 1."""
    row = HostRow(name, listed, len(shapes), gradients)
    contenders = [(row.fast, _Contender(getattr(interpreted, name), shapes, gradients))]
    if "fused" in TORCH.modes.get(name, ()):
        contenders.append((row.fused, _Contender(getattr(torch.optim, name), shapes, gradients, fused=True)))
    collecting, threads = gc.isenabled(), torch.get_num_threads()
    gc.disable()
    torch.set_num_threads(1)
    try:
        with stubbed() as launched:
            for _, contender in contenders:
                contender.seconds(_WARM_UP)
            row.launches = len(launched) // _WARM_UP
            for n in range(rounds):
                for seconds, contender in contenders[:: 1 if n % 2 else -1]:
                    seconds.append(contender.seconds(_STEPS) / _STEPS)
    finally:
        torch.set_num_threads(threads)
        if collecting:
            gc.enable()
    return row


class _Contender:
    """An optimizer over parameters of one element."""

    def __init__(self, make: Callable[..., Any], shapes: Sequence[Shape], gradients: str, **options: Any) -> None:
        self.parameters = [torch.ones((1,) * len(shape)).requires_grad_() for shape in shapes]
        self.optimizer = make(self.parameters, **options)
        self.gradients = gradients
        self._backward()
        self.places: list[list[torch.Tensor | None]] = [
            [p.grad for p in self.parameters],
            [torch.ones_like(p) for p in self.parameters],
        ]

    def _prepare(self, step: int) -> None:
        if self.gradients == "new":
            self._backward()
        elif self.gradients == "moved":
            for p, gradient in zip(self.parameters, self.places[step % 2], strict=True):
                p.grad = gradient

    def _backward(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([2 * p for p in self.parameters], [torch.ones_like(p) for p in self.parameters])

    def seconds(self, steps: int) -> float:
        """Of the steps alone."""
        spent = 0.0
        for step in range(steps):
            self._prepare(step)
            start = time.perf_counter()
            self.optimizer.step()
            spent += time.perf_counter() - start
        return spent


def table(measured_rows: Sequence[HostRow]) -> Table:
    """Of one list of parameters after the other."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for n, title in enumerate(
        ("optimizer", "parameters", "tensors", "gradients", "launches", "fast", "fused", "ratio")
    ):
        made.add_column(title, justify="right" if n > 1 else "left", no_wrap=True)
    for row in measured_rows:
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        cells = [row.optimizer, row.parameters, str(row.tensors), row.gradients, str(row.launches)]
        made.add_row(*cells, _told(row.fast, row.tensors), _told(row.fused, row.tensors), ratio)
    return made


def _told(seconds: Sequence[float], tensors: int) -> str:
    if not seconds:
        return ""
    return f"{1e6 * statistics.median(seconds) / tensors:.2f} ({1e6 * min(seconds) / tensors:.2f}) µs"


def to_json(measured_rows: Sequence[HostRow]) -> list[dict[str, Any]]:
    """The rows as the contract of ``--json`` has them."""
    return [
        {
            **asdict(row),
            "fast_seconds_per_tensor": row.fast_per_tensor,
            "fused_seconds_per_tensor": row.fused_per_tensor,
            "ratio": row.ratio,
        }
        for row in measured_rows
    ]
