"""What is stepped in a benchmark: shapes of parameters, with values, gradients or an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from stepcheck.harness.bench.machine import MIB, cache_bytes
from stepcheck.reference import SPECS

Shape = tuple[int, ...]
#: What the workload beyond the cache may take, all contenders together.
_LARGE_MEMORY = 1536 * MIB
#: Streams of float32 that it then consists of: the parameter and three buffers of each of five contenders, and the gradient.
_LARGE_STREAMS = 21


# --- Shapes


def _resnet50() -> list[Shape]:
    """He et al., 2016, table 1; as in torchvision, of which the count is 25,557,032."""

    def conv(outputs: int, inputs: int, side: int) -> list[Shape]:
        return [(outputs, inputs, side, side), (outputs,), (outputs,)]  # with the batch norm that follows

    shapes, inputs = conv(64, 3, 7), 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += conv(width, inputs, 1) + conv(width, width, 3) + conv(4 * width, width, 1)
            shapes += conv(4 * width, inputs, 1) if block == 0 else []
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def _gpt2() -> list[Shape]:
    """Radford et al., 2019, the smallest; its output layer is the embedding. 124,439,808 in all."""
    width = 768
    layer: list[Shape] = [(width,), (width,), (width, 3 * width), (3 * width,), (width, width), (width,)]
    layer += [(width,), (width,), (width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(50257, width), (1024, width), *layer * 12, (width,), (width,)]


def _bert() -> list[Shape]:
    """Devlin et al., 2019, BERT-base uncased with its pooler; 109,482,240 in all."""
    width = 768
    square: list[Shape] = [(width, width), (width,)]
    norm: list[Shape] = [(width,), (width,)]
    words: list[Shape] = [(30522, width), (512, width), (2, width)]
    layer: list[Shape] = [*square * 4, *norm, (4 * width, width), (4 * width,), (width, 4 * width), (width,), *norm]
    return [*words, *norm, *layer * 12, *square]


def _hidden(shapes: list[Shape]) -> list[Shape]:
    """The matrices that Muon is meant for: not embeddings, which other optimizers step."""
    return list(filter(lambda shape: len(shape) == 2, shapes))[2:]


def _beyond_cache() -> int:
    """Elements of a parameter at least twice as large as the cache, or as large as the memory that it may take allows."""
    most = _LARGE_MEMORY // _LARGE_STREAMS
    return min(2 * cache_bytes(), most) // 4


# --- Workloads


@dataclass(frozen=True)
class Workload:
    """Parameters of these shapes, and what their gradients are.

    Attributes:
        name: as it is written on the command line.
        shapes: of the parameters.
        kind: ``"dense"``; ``"matrices"``, which are dense too, for optimizers that take nothing else; ``"sparse"``, gradients that name
            ``rows`` rows; ``"objective"``, gradients that a closure makes of a quadratic function.
        rows: those that each sparse gradient names.
    """

    name: str
    shapes: tuple[Shape, ...]
    kind: str = "dense"
    rows: int = 0

    @property
    def elements(self) -> int:
        """Of all parameters."""
        return sum(map(math.prod, self.shapes))

    @property
    def stepped(self) -> int:
        """Those elements that a step changes."""
        return self.rows * sum(math.prod(s[1:]) for s in self.shapes) if self.kind == "sparse" else self.elements

    @property
    def told(self) -> str:
        """In words."""
        tensors = "1 tensor" if len(self.shapes) == 1 else f"{len(self.shapes)} tensors"
        rows = f", gradients of {self.rows:,} rows" if self.rows else ""
        return f"{tensors}, {self.elements:,} elements{rows}"

    def make(self, seed: int, device: str = "cpu", dtype: str = "float32") -> Problem:
        """The values: the same for the same seed, but for their rounding, wherever they are stepped."""
        random = torch.Generator().manual_seed(seed)

        def normal(shape: Shape) -> torch.Tensor:
            return torch.randn(shape, generator=random).to(device, getattr(torch, dtype))

        start = [normal(shape) for shape in self.shapes]
        if self.kind == "objective":
            # A spectrum so wide that the minimum is not reached in a thousand iterations: there would be nothing to do then.
            curvatures = [torch.logspace(-8, 0, p.numel()).reshape(p.shape).to(p) for p in start]
            return Problem(start, [], curvatures)
        if self.kind == "sparse":
            return Problem(start, [self._sparse(shape, normal, random) for shape in self.shapes], [])
        return Problem(start, [normal(shape) for shape in self.shapes], [])

    def _sparse(self, shape: Shape, normal: Callable[[Shape], torch.Tensor], random: torch.Generator) -> torch.Tensor:
        values = normal((self.rows, *shape[1:]))
        rows = torch.randperm(shape[0], generator=random)[: self.rows].sort().values[None].to(values.device)
        return torch.sparse_coo_tensor(rows, values, shape, is_coalesced=True, check_invariants=True)


@dataclass
class Problem:
    """The values of a workload.

    Attributes:
        start: of the parameters.
        gradients: one for each, shared by all contenders, who do not write them.
        curvatures: instead of gradients, of a quadratic function with its minimum at 0.
    """

    start: list[torch.Tensor]
    gradients: list[torch.Tensor]
    curvatures: list[torch.Tensor]

    @property
    def device(self) -> torch.device:
        """Where all of it is."""
        return self.start[0].device

    def parameters(self) -> tuple[list[torch.Tensor], Callable[[], Any] | None]:
        """New parameters with their gradients, and the closure that their step wants, if any."""
        parameters = [p.clone().requires_grad_() for p in self.start]
        for p, gradient in zip(parameters, self.gradients, strict=False):
            p.grad = gradient
        return parameters, self._closure(parameters) if self.curvatures else None

    def renew(self, parameters: list[torch.Tensor]) -> None:
        """New gradients, as a backward pass makes them after ``zero_grad()``."""
        for p in parameters if self.gradients else ():
            p.grad = None
        for p, gradient in zip(parameters, self.gradients, strict=False):
            p.grad = gradient.clone()

    def _closure(self, parameters: list[torch.Tensor]) -> Callable[[], torch.Tensor]:
        for p in parameters:
            p.grad = torch.zeros_like(p)

        @torch.no_grad()
        def closure() -> torch.Tensor:
            # By hand, so that next to nothing but the optimizer is timed.
            loss = torch.zeros((), device=parameters[0].device)
            for p, curvature in zip(parameters, self.curvatures, strict=True):
                assert p.grad is not None
                torch.mul(curvature, p, out=p.grad)
                loss += 0.5 * torch.dot(p.flatten(), p.grad.flatten())
            return loss

        return closure


def dense(count: int, *shape: int) -> Workload:
    """``count`` tensors of one shape, under the name that says so."""
    return Workload(
        f"{count}x{'x'.join(map(str, shape))}", (shape,) * count, "matrices" if len(shape) == 2 else "dense"
    )


WORKLOADS: dict[str, Workload] = {
    w.name: w
    for w in (
        dense(100, 64),
        dense(400, 1024),
        Workload("1M", ((1 << 20,),)),
        Workload("beyond-cache", ((_beyond_cache(),),)),
        Workload("resnet50", tuple(_resnet50())),
        Workload("gpt2", tuple(_gpt2())),
        Workload("bert", tuple(_bert())),
        Workload("embedding-10k", ((10_000, 64),), "sparse", 1_000),
        Workload("embedding-1M", ((1_000_000, 64),), "sparse", 10_000),
        dense(12, 128, 128),
        dense(48, 512, 512),
        Workload("gpt2-matrices", tuple(_hidden(_gpt2())), "matrices"),
        Workload("quadratic-10k", ((10_000,),), "objective"),
        Workload("quadratic-1M", ((1_000_000,),), "objective"),
    )
}
#: Those of the short form.
QUICK = ("100x64", "400x1024", "1M", "embedding-10k", "12x128x128", "quadratic-10k")


def kinds(name: str) -> tuple[str, ...]:
    """The kinds of workloads that an optimizer is timed on."""
    spec = SPECS[name]
    if spec.closure:
        return ("objective",)
    if spec.products:
        return ("matrices",)
    return {"": ("dense",), "only": ("sparse",)}.get(spec.sparse, ("dense", "sparse"))


def takes(name: str, workload: Workload) -> bool:
    """Whether an optimizer is timed on a workload."""
    return workload.kind in kinds(name)


def options(name: str, workload: Workload) -> dict[str, Any]:
    """What an optimizer is constructed with, beside the defaults of its class."""
    if name == "SGD" and workload.kind != "sparse":  # with momentum it takes no sparse gradients
        return {"momentum": 0.9}
    if name == "LBFGS":
        # A step is one iteration; and it goes on, however flat the function has become.
        return {"max_iter": 1, "history_size": 100, "tolerance_grad": 0.0, "tolerance_change": 0.0}
    return {}
