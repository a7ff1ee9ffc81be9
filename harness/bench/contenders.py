"""Who takes part in a benchmark: each mode of a class of ``torch.optim``, its fast class, and the ceiling."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from stepcheck import fast
from stepcheck.fast.kernels import Layout
from stepcheck.fast.rules import Rule
from stepcheck.harness.bench import ceiling, cuda
from stepcheck.harness.bench.workloads import Problem
from stepcheck.harness.play.families import TORCH

#: The capturable mode, replayed by a CUDA graph; and the fast class.
GRAPH, FAST_GRAPH = "graph", "fast graph"
#: The modes that are made for speed, or are what one gets; on a GPU those too that are made for its graphs.
TIMED_MODES = ("forloop", "foreach", "fused", "capturable", GRAPH, "compiled")
_FOR_GRAPHS = ("capturable", GRAPH)
FAST, CEILING = "fast", "ceiling"
#: What a class keeps for each element, where no rule says: Adafactor of vectors, Muon.
_USUAL_BUFFERS = 1


@dataclass
class Contender:
    """Somebody who steps a problem.

    Attributes:
        name: the mode of torch, ``"graph"``, ``"fast"``, ``"fast graph"`` or ``"ceiling"``.
        parameters: its own.
        step: takes no arguments.
        optimizer: whose step it is, if it is one's.
        taken: steps that it has taken already.
    """

    name: str
    parameters: list[torch.Tensor]
    step: Callable[[], Any]
    optimizer: Any = None
    taken: int = 0

    def distance(self, reference: Contender, start: list[torch.Tensor], steps: int) -> float:
        """How far its parameters are from the reference's, in lengths of the way that those came from ``start`` in so many steps.

        What both may have lost by rounding to a narrow format is left out.
        """
        with torch.no_grad():
            off = _norm(p - q for p, q in zip(self.parameters, reference.parameters, strict=True))
            way = _norm(q - p for q, p in zip(reference.parameters, start, strict=True))
            if start[0].element_size() < torch.float32.itemsize:
                off = max(0.0, off - 2 * steps * torch.finfo(start[0].dtype).eps / 2 * _norm(start))
        return off / way if way else float(off != 0)

    def is_finite(self) -> bool:
        """Whether all its parameters are: float16 has no eps of 1e-8, and torch's plain modes then divide by zero."""
        return all(bool(torch.isfinite(p).all()) for p in self.parameters)

    @property
    def served(self) -> tuple[str, str]:
        """The engine that steps it, and why it is not another; of a class that does not say, torch."""
        told = getattr(self.optimizer, "engine", ())
        for engine, reason in told:
            if engine == "torch":
                return engine, reason
        return (told[0].engine, "") if told else ("torch", "the class has no engine")


def _norm(tensors: Iterable[torch.Tensor]) -> float:
    return math.hypot(*(torch.linalg.vector_norm(t, dtype=torch.float64).item() for t in tensors))


def modes(name: str, kind: str, *, compiled: bool, device: str = "cpu") -> tuple[str, ...]:
    """The modes of ``torch.optim.<name>`` that take a kind of workload, the plain one first; none where torch has no such class."""
    left_out = {*(() if compiled else ("compiled",)), *(() if device == "cuda" else _FOR_GRAPHS)}
    if not _capturable(kind):
        left_out.add(GRAPH)
    had = TORCH.modes.get(name, ())
    named = [mode for mode in TIMED_MODES if mode not in left_out and _plain(mode) in had]
    return tuple(mode for mode in named if kind != "sparse" or TORCH.subject(name, mode).sparse)


def _capturable(kind: str) -> bool:
    """Whether a graph can record a step: with sparse gradients, and a closure, it reads numbers from the device in its middle."""
    return kind not in ("sparse", "objective")


def _plain(mode: str) -> str:
    """The mode that a graph replays, or the mode itself."""
    return "capturable" if mode == GRAPH else mode


def fast_ways(name: str, kind: str, device: str) -> tuple[str, ...]:
    """The ways in which the fast class, if there is one, takes a kind of workload."""
    if fast_class(name) is None:
        return ()
    return (FAST, FAST_GRAPH) if device == "cuda" and _capturable(kind) else (FAST,)


def fast_class(name: str) -> Any:
    """The class of :mod:`stepcheck.fast`, or ``None`` where there is none."""
    return getattr(fast, name, None)


def layout(name: str, options: Mapping[str, Any], dtype: str = "float32") -> Layout | None:
    """The streams of a parameter, where the step is a rule."""
    cls = fast_class(name)
    rule = getattr(cls, "rule", None)
    if not isinstance(rule, Rule):
        return None
    group = cls([torch.zeros(1, requires_grad=True)], **options).param_groups[0]
    return Layout(rule, dtype, rule.streams(rule.present(group), dtype))


def buffers(name: str, options: Mapping[str, Any], dtype: str = "float32") -> int:
    """About how many tensors like its parameter an optimizer keeps."""
    found = layout(name, options, dtype)
    if found is not None:
        return len(found.buffers)
    return 2 * options["history_size"] + 6 if "history_size" in options else _USUAL_BUFFERS


def build(name: str, contender: str, options: Mapping[str, Any], problem: Problem) -> Contender:
    """A contender with parameters of its own.

    Raises:
        RuntimeError: it is not supported here; the message says why.
    """
    dtype = str(problem.start[0].dtype).removeprefix("torch.")
    if contender == CEILING:
        found = layout(name, options, dtype)
        assert found is not None
        if problem.device.type == "cuda":
            elements = sum(p.numel() for p in problem.start)
            return Contender(CEILING, [], cuda.copy(found.bytes_per_element * elements))
        own = [p.clone() for p in problem.start]
        return Contender(CEILING, own, ceiling.launch(own, problem.gradients, len(found.buffers), dtype).run)
    parameters, closure = problem.parameters()
    if contender == FAST:
        optimizer = fast_class(name)(parameters, **options)
    elif contender == FAST_GRAPH:
        flags = {"capturable": True} if "capturable" in TORCH.modes.get(name, ()) else {}
        optimizer = fast_class(name)(parameters, **options, **flags)
    else:
        subject = TORCH.subject(name, _plain(contender))
        if subject.unsupported and problem.device.type == "cpu":  # it is not said of others
            raise RuntimeError(subject.unsupported)
        known = inspect.signature(getattr(torch.optim, name)).parameters
        theirs = {key: value for key, value in options.items() if key in known}
        optimizer = subject.make(parameters, **theirs, **subject.mode_options)
    step = optimizer.step if closure is None else functools.partial(optimizer.step, closure)
    if contender in (GRAPH, FAST_GRAPH):
        return Contender(contender, parameters, cuda.captured(step), optimizer, cuda.WARM_UP)
    return Contender(contender, parameters, step, optimizer)
