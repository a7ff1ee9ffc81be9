"""A GPU's side of the benchmark: its clocks, steps that a CUDA graph replays, and how fast its memory is copied."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

Step = Callable[[], Any]
#: Steps before a graph is captured: the first makes the state, the second finds it.
WARM_UP = 2
#: Steps whose enqueueing is timed: so few that the queue of the GPU, of about a thousand launches, does not fill up and make the processor wait.
_ENQUEUED = 5


def seconds(step: Step, count: int, event: Callable[..., Any] = torch.cuda.Event) -> float:
    """Between two events on the current stream, with ``count`` steps between them and nobody waiting for any of them."""
    start, end = event(enable_timing=True), event(enable_timing=True)
    start.record()
    for _ in range(count):
        step()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / 1e3  # it is told in milliseconds


def enqueue_seconds(
    step: Step,
    count: int = _ENQUEUED,
    synchronize: Callable[[], None] = torch.cuda.synchronize,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """What one step takes the processor until it returns, on a GPU that has nothing else to do."""
    synchronize()
    start = clock()
    for _ in range(count):
        step()
    spent = clock() - start
    synchronize()
    return spent / count


def captured(step: Step) -> Step:
    """The step as a CUDA graph, whose replay is one launch; :data:`WARM_UP` steps are taken, and none by the capture.

    As https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs asks for: warmed up on another stream, captured on one of its own.
    """
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def copy(moved: int, device: str = "cuda") -> Step:
    """A copy of one half of the memory to the other that moves as many bytes, read and written."""
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)
