"""Muon: the matrices of one shape stacked, and orthogonalized together by batched products."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from stepcheck.fast.engine import Group, Scaling, Served, State, exotic, foreign
from stepcheck.fast.memory import broken
from stepcheck.fast.optimizer import Fast
from stepcheck.fast.shards import GATHERED, alike, any_sharded, gathered, is_sharded, local, part_of, placed_as

if TYPE_CHECKING:
    from stepcheck.fast.cuda.muon import DevicePlan

#: What the workspace may take, unless one matrix takes more. Small enough for caches to hold much of it.
WORKSPACE_BYTES = 8 * 2**20
#: The key of the momentum in the state.
BUFFER = "momentum_buffer"
#: Parts of the workspace start at cache lines.
_ALIGNMENT = 64


class Muon(Fast, torch.optim.Muon):
    r"""``torch.optim.Muon``, with the same arguments, groups and state, in batches and wider products.

    With the gradient G, the momentum buffer B (zero at first) and the matrix P of r rows and c columns:

    .. math::
        B &\leftarrow \mu B + (1 - \mu) G \\
        D &\leftarrow (1 - \mu) G + \mu B \quad\text{(nesterov, else } B) \\
        X &\leftarrow D / \max(\lVert D \rVert_F, \epsilon) \\
        A &\leftarrow X X^T, \quad X \leftarrow a X + (b A + c A A) X \quad\text{(ns\_steps times; a tall X transposed)} \\
        P &\leftarrow (1 - \gamma\lambda) P - \gamma\rho X

    with :math:`\rho = \sqrt{\max(1, r / c)}` (``adjust_lr_fn`` ``None`` or "original"), :math:`0.2 \sqrt{\max(r,
    c)}` ("match_rms_adamw") or :math:`\sqrt{r / c}` ("spectral_unclamped", of torch from 2.14 on). This is what the code of ``torch.optim.Muon`` computes; its docstring sums the momentum
    where the code averages, and calls :math:`\epsilon` a term of the norm where the code takes the larger of the two.

    ``torch.optim.Muon`` iterates in bfloat16 whatever the parameter's dtype. Here D and everything after it is
    float64 for float64 parameters and float32 for all others, rounded when it is stored. On a CPU without instructions
    for bfloat16 (AVX2) that is faster as well: of two 512 x 512 matrices, the product takes 2 ms in float32, 4 ms
    in float64, and 17 to 220 ms in bfloat16. The products follow ``torch.set_float32_matmul_precision``, whose default
    is float32 itself; nothing here changes it.

    On CUDA the products are bfloat16, as those of torch are, accumulated in float32 (how often a result is rounded on the
    way follows ``torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction``), and D and its norm are rounded to it
    first; those of float64 parameters stay float64. Momentum and parameters are computed in float32, or float64, and
    rounded when they are stored. A step reads nothing from the device: a learning rate, momentum, ``eps`` or weight decay
    may be a tensor there, and whether to unscale gradients, or to skip the step, is the kernels' business. It takes one
    launch in all, and four and the products for as many matrices of a shape as the workspace holds.

    Of a DTensor, each rank has its part of the momentum and moves its part of the parameter; D is gathered, once for each matrix,
    and orthogonalized by every rank, by operations of torch in float32 or float64 on any device.

    Elsewhere it differs from torch on purpose: invalid options are refused, in a group as well as by keyword, and
    ``eps``, ``ns_coefficients`` and ``ns_steps`` are looked at too; all gradients are looked at before anything
    changes, so that a step that raises has done nothing; a norm neither overflows nor vanishes where its matrix does
    not; a matrix without elements is left as it is; and a bfloat16 momentum buffer is not normalized by accident.

    Raises:
        ValueError: an option outside its domain, or a parameter that is no matrix.
        RuntimeError: in ``step``, a gradient that is sparse or of another dtype than its parameter, or a complex
            parameter.
    """

    _numbers: ClassVar[tuple[str, ...]] = ()
    # Made when it is first needed: neither copying nor pickling an optimizer takes it along.
    _workspace: _Workspace
    #: One for each device, where that is no CPU; nothing where there is anything beside them.
    _plans: list[DevicePlan] | None = None
    #: Those that CUDA graphs have recorded: whoever has such a graph may replay it for as long as there is the optimizer.
    _recorded: tuple[DevicePlan, ...] = ()

    def add_param_group(self, param_group: Group) -> None:
        """As ``torch.optim``, with a copy of the dictionary, its options validated, and its parameters: they must be matrices.

        Raises:
            ValueError: an option outside its domain, or a parameter that is no matrix.
        """
        group = dict(param_group)
        params = group["params"]
        if not isinstance(params, Tensor | set):  # of a set, torch says why not
            params = group["params"] = list(params)
        for entry in [params] if isinstance(params, Tensor) else params:
            p = entry[1] if isinstance(entry, tuple) else entry
            if isinstance(p, Tensor) and p.ndim != 2:
                raise ValueError(
                    f"Muon only supports 2D parameters, got one of shape {tuple(p.shape)}; use AdamW for it"
                )
        super().add_param_group(group)

    def _served(self, group: Group) -> Served:
        reason = next(filter(None, map(self._exotic, group["params"])), "")
        if reason:
            return Served("torch", reason)
        engines = {"triton" if self._on_device(p) else "blas" for p in group["params"]}
        return Served(" and ".join(sorted(engines)) or "blas", GATHERED if any_sharded([group]) else "")

    def _exotic(self, p: Tensor) -> str:
        reason = exotic(p, interpreted=self._interpreted, sharded=True)
        if not reason and self._on_device(p):
            reason = foreign((), (BUFFER,), p, self.state.get(p, {}))
        return reason

    def _on_device(self, p: Tensor) -> bool:
        """Whether kernels for CUDA step it."""
        return (self._interpreted or p.device.type != "cpu") and not is_sharded(p)

    def _broken(self, p: Tensor, state: State) -> str:  # noqa: ARG002 - whatever the parameter is
        return broken(state, (), (), (BUFFER,))

    def _check_gradients(self, scaling: Scaling) -> None:
        super()._check_gradients(scaling)
        for p in (p for group in self.param_groups for p in group["params"] if p.grad is not None):
            if p.is_complex():
                raise RuntimeError(f"Muon does not support complex parameters, got {p.dtype}")
            buffer = self.state.get(p, {}).get("momentum_buffer")
            if buffer is not None and not alike(p, buffer):
                raise RuntimeError(
                    "Muon: a momentum_buffer is not placed as its parameter is; distribute_tensor places it"
                )

    @torch.no_grad()
    def _update(self, scaling: Scaling) -> None:
        plans = self._plans
        if plans and all(plan.holds(self.param_groups, self.state, scaling) for plan in plans):
            for plan in plans:
                plan.step(scaling)
            return
        self._check_gradients(scaling)
        served = [(group, self._served(group)) for group in self.param_groups]
        own = [group for group, by in served if by.engine != "torch"]
        left = [group for group, by in served if by.engine == "torch"]
        places = dict.fromkeys((self._on_device(p), p.device) for group in own for p in group["params"])
        self._recorded += tuple(plan for plan in self._plans or () if plan.captured)
        self._plans = None
        plans = [self._plan(own, device, scaling) for on_device, device in places if on_device]
        for plan in plans:
            plan.step(scaling)
        others = any(not on_device for on_device, _ in places)
        if others and not scaling.skips:
            self._step_by_operations(own, scaling)
        if left:
            self._step_by_torch(left, scaling)
        elif not others:
            self._plans = plans

    def _plan(self, groups: list[Group], device: torch.device, scaling: Scaling) -> DevicePlan:
        from stepcheck.fast.cuda.muon import DevicePlan  # where nothing is on a GPU, nobody needs it

        return DevicePlan(groups, self.state, device, scaling)

    def _step_by_operations(self, groups: list[Group], scaling: Scaling) -> None:
        same: dict[tuple[int, torch.Size, torch.dtype, torch.device, bool], list[Tensor]] = {}
        for n, group in enumerate(groups):
            for p in group["params"]:
                if p.grad is not None and not self._on_device(p):
                    momentum_buffer(self.state[p], p)  # here, so that the state is in the order of the parameters
                    same.setdefault((n, p.shape, p.dtype, p.device, is_sharded(p)), []).append(p)
        if scaling.grad_scale is not None:
            torch._foreach_mul_([local(p.grad) for params in same.values() for p in params], scaling.factor)
        stacks: dict[tuple[_Plan, bool], list[Tensor]] = {}
        for (n, shape, dtype, device, sharded), params in same.items():
            stacks.setdefault((_plan(shape, dtype, device, groups[n]), sharded), []).extend(params)
        workspace: _Workspace = self.__dict__.setdefault("_workspace", _Workspace())
        for (plan, sharded), params in stacks.items():
            step = _step_shards if sharded else _step
            buffers = [momentum_buffer(self.state[p], p) for p in params]
            if plan.rows and plan.columns:
                for part in _portions(plan, len(params)):
                    step(plan, params[part], buffers[part], workspace.of(plan, len(params[part])))


def momentum_buffer(state: dict[str, Any], p: Tensor) -> Tensor:
    """The buffer in the state of a parameter; of one that has none, zeros."""
    if BUFFER not in state:
        state[BUFFER] = torch.zeros_like(p, memory_format=torch.preserve_format)
    buffer: Tensor = state[BUFFER]
    return buffer


def adjustment(shape: torch.Size, adjust_lr_fn: str | None) -> float:
    """What the learning rate of a matrix is multiplied by."""
    rows, columns = shape
    if adjust_lr_fn == "match_rms_adamw":
        return 0.2 * math.sqrt(max(rows, columns))
    ratio = rows / columns if columns else 1.0
    return math.sqrt(ratio if adjust_lr_fn == "spectral_unclamped" else max(1.0, ratio))


class _Plan(NamedTuple):
    """What must be the same for matrices to be stacked: all numbers of their step."""

    rows: int
    columns: int
    dtype: torch.dtype
    device: torch.device
    momentum: float
    nesterov: bool
    coefficients: tuple[float, ...]
    eps: float
    steps: int
    kept: float  # the share of the parameter that decay leaves
    rate: float  # the adjusted learning rate

    @property
    def computed(self) -> torch.dtype:
        return torch.float64 if self.dtype is torch.float64 else torch.float32


def _plan(shape: torch.Size, dtype: torch.dtype, device: torch.device, group: Mapping[str, Any]) -> _Plan:
    rows, columns = shape
    lr = float(group["lr"])
    return _Plan(
        rows=rows,
        columns=columns,
        dtype=dtype,
        device=device,
        momentum=float(group["momentum"]),
        nesterov=bool(group["nesterov"]),
        coefficients=tuple(map(float, group["ns_coefficients"])),
        eps=float(group["eps"]),
        steps=int(group["ns_steps"]),
        kept=1 - lr * float(group["weight_decay"]),
        rate=lr * adjustment(shape, group["adjust_lr_fn"]),
    )


# The update ---------------------------------------------------------------------------------------------------------------


class _Stacks(NamedTuple):
    """Matrices of one shape, the shorter side in rows: two stacks of the parameters' size, two of square ones.

    ``xs`` and ``ys`` are the matrices of ``x`` and ``y``, each the way round that the parameters are.
    """

    x: Tensor
    y: Tensor
    gram: Tensor
    polynomial: Tensor
    xs: list[Tensor]
    ys: list[Tensor]


class _Workspace:
    """Memory that all stacks share, one after another: for each dtype and device one piece, as large as was ever needed."""

    def __init__(self) -> None:
        self.pieces: dict[tuple[torch.dtype, torch.device], Tensor] = {}
        self.stacks: dict[tuple[torch.dtype, torch.device, int, int], _Stacks] = {}

    def of(self, plan: _Plan, count: int) -> _Stacks:
        """Stacks for ``count`` matrices; what is in them is left from elsewhere."""
        key = (plan.computed, plan.device, plan.rows, plan.columns)
        stacks = self.stacks.get(key)
        if stacks is None or len(stacks.xs) != count:
            stacks = self.stacks[key] = self._carved(plan, count)
        return stacks

    def _carved(self, plan: _Plan, count: int) -> _Stacks:
        sizes = _sizes(plan, count)
        key = (plan.computed, plan.device)
        if key not in self.pieces or self.pieces[key].numel() < sum(sizes):
            self.pieces.pop(key, None)
            self.stacks.clear()  # these hold the old piece, which is given back before more is taken
            self.pieces[key] = torch.empty(sum(sizes), dtype=plan.computed, device=plan.device)
        short, long = sorted((plan.rows, plan.columns))
        x, y, gram, polynomial = (
            part[: count * short * n].view(count, short, n)
            for part, n in zip(
                self.pieces[key][: sum(sizes)].split_with_sizes(sizes), (long, long, short, short), strict=True
            )
        )
        xs, ys = (list((stack.mT if plan.rows > plan.columns else stack).unbind()) for stack in (x, y))
        return _Stacks(x, y, gram, polynomial, xs, ys)


def _sizes(plan: _Plan, count: int) -> list[int]:
    """Elements of the parts of a piece that ``count`` matrices need."""
    short, long = sorted((plan.rows, plan.columns))
    line = _ALIGNMENT // plan.computed.itemsize
    return [math.ceil(count * short * n / line) * line for n in (long, long, short, short)]


def _portions(plan: _Plan, count: int) -> Iterator[slice]:
    """``count`` matrices in portions of about one size, that keep to the bound."""
    most = max(1, WORKSPACE_BYTES // (plan.computed.itemsize * sum(_sizes(plan, 1))))
    size = math.ceil(count / math.ceil(count / most))
    for start in range(0, count, size):
        yield slice(start, start + size)


def _step(plan: _Plan, params: list[Tensor], buffers: list[Tensor], stacks: _Stacks) -> None:
    grads = [p.grad for p in params if p.grad is not None]  # all have one, which types do not say
    torch._foreach_lerp_(buffers, grads, 1 - plan.momentum)
    torch._foreach_copy_(stacks.xs, grads if plan.nesterov else buffers)
    if plan.nesterov:
        torch._foreach_copy_(stacks.ys, buffers)
        stacks.x.lerp_(stacks.y, plan.momentum)
    x, y, _, ys = _orthogonalized(plan, stacks)
    torch._foreach_copy_(ys, params)
    y.mul_(plan.kept).add_(x, alpha=-plan.rate)
    torch._foreach_copy_(params, ys)


def _step_shards(plan: _Plan, params: list[Any], buffers: list[Any], stacks: _Stacks) -> None:
    """Step DTensors: each rank its part, but that the directions are gathered, and orthogonalized by all."""
    for p, buffer, x in zip(params, buffers, stacks.xs, strict=True):
        g, b = placed_as(p.grad, p), local(buffer)
        b.lerp_(g, 1 - plan.momentum)
        direction = (g if plan.nesterov else b).to(plan.computed)
        x.copy_(gathered(p, direction.lerp(b.to(plan.computed), plan.momentum) if plan.nesterov else direction))
    _, _, xs, _ = _orthogonalized(plan, stacks)
    for p, x in zip(params, xs, strict=True):
        part = local(p)
        part.copy_(part.to(plan.computed).mul(plan.kept).add_(part_of(p, x), alpha=-plan.rate))
        torch.autograd.graph.increment_version([p])


def _orthogonalized(plan: _Plan, stacks: _Stacks) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
    """Orthogonalize what is in ``x``; returned: the stack where that is now, the other one, and the matrices of both."""
    x, y, gram, polynomial, xs, ys = stacks
    _normalize(x, plan.eps)
    a, b, c = plan.coefficients
    for _ in range(plan.steps):
        torch.bmm(x, x.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=b, alpha=c, out=polynomial)
        torch.baddbmm(x, polynomial, x, beta=a, out=y)
        x, y, xs, ys = y, x, ys, xs
    return x, y, xs, ys


def _normalize(x: Tensor, eps: float) -> None:
    """Divide each matrix of a stack by its Frobenius norm, or by ``eps`` if that is larger."""
    finfo = torch.finfo(x.dtype)
    norm = _norm(x)
    least, most = map(float, torch.aminmax(norm))
    # The fourth root of the smallest number: what vanishes of the squares is no share of their sum.
    if finfo.tiny**0.25 <= least <= most <= finfo.max**0.25 and eps <= finfo.max**0.25:
        x.div_(norm.clamp_(min=eps))
        return
    # Otherwise scaled first, by powers of two about the largest elements, so that squares neither overflow nor vanish.
    # Powers that the format has on both sides of 1 are enough for that.
    bound = math.frexp(finfo.max)[1] - 2
    largest = torch.linalg.vector_norm(x, math.inf, dim=(1, 2), keepdim=True)
    scale = torch.ldexp(torch.ones_like(largest), -torch.frexp(largest).exponent.clamp_(-bound, bound))
    norm = _norm(x.mul_(scale))
    # Scaled, eps may leave the format. Above it, the quotient vanishes; below, what matters is that it is not 0.
    scaled = scale.double().mul_(eps).to(x.dtype)
    x.div_(norm.maximum(scaled.clamp_(min=finfo.tiny) if eps else scaled))


def _norm(x: Tensor) -> Tensor:
    # Rows first: fewer terms follow one another in a sum.
    rows: Tensor = torch.linalg.vector_norm(x, dim=2, keepdim=True)
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return norm
