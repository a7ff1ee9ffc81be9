"""L-BFGS whose directions take one kernel, or three passes over the history, in place of four operations for each pair."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from stepcheck.fast import native
from stepcheck.fast.engine import Floats, Group, Served, exotic
from stepcheck.fast.memory import CUT, STATE_ANEW, is_cut, no_number, unfit
from stepcheck.fast.native import Kernel
from stepcheck.fast.optimizer import Fast
from stepcheck.fast.shards import GATHERED, agreed, any_sharded, is_sharded, local, part_of, plain, whole
from stepcheck.fast.shards import refusal as shard_refusal

#: The curvature that a pair must exceed to be remembered, in loss units.
LEAST_CURVATURE = 1e-10
#: The constants of the strong Wolfe conditions (Nocedal and Wright, section 3.1).
DECREASE, SLOPE = 1e-4, 0.9
#: A bracket narrower than this, in parameter units, is not searched further.
LEAST_WIDTH = 1e-9

#: What the kernels take; all else takes one operation of torch after another.
_OWN = (torch.float32, torch.float64)
#: Products below which the vectors of a recursion stay in a cache from one use to the next.
_WORTH_PASSES = 1 << 16
#: Products below which starting a thread costs more than it saves.
_WORTH_THREADS = 1 << 20
_TORCH_MAXIMIZES = "maximize" in inspect.signature(torch.optim.LBFGS).parameters


class LBFGS(Fast, torch.optim.LBFGS):
    r"""A drop-in for ``torch.optim.LBFGS``: the same options, ``param_groups`` and ``state``, in less time.

    The direction is that of the two-loop recursion. The scalar products of its first loop follow from those of the gradient
    with all :math:`s_i` and of :math:`s_i` with :math:`y_j`, which are kept from step to step (Chen, Wang and Zhou,
    *Large-scale L-BFGS using MapReduce*, 2014); those of the second from the products of all :math:`y_i` with what the first
    loop leaves, found as it is formed. So a direction takes three passes over half of the history each, where the recursion
    takes four, and a single call for each pass. Short vectors take the recursion as it is written, in one call. Sums are
    float64. So it is with float32, and with short vectors of float64, on the CPU, and on CUDA with float32 of any length; all else
    takes one operation of torch after another.

    On CUDA it waits for the device, as it must: the search decides on the CPU. It reads one tensor of a few numbers for each
    evaluation (loss, largest element of the gradient, derivative along the direction) and three for each direction (products of
    the history with the gradient, those of the second loop, derivative and largest element of the direction); where torch
    forms it, a comparison and one such tensor. Parameters on several devices are refused, as in torch, which joins them to one vector.

    Of DTensors, each evaluation gathers the gradient; every rank has all of the history, as plain tensors, and moves its part of the
    parameters. The closure has to return the same loss on every rank.

    It differs from torch's class where that fails: options that make no sense are refused; ``max_eval`` that is left open
    follows the ``max_iter`` of the group; ``history_size`` may change at any time; copies go on; gradients may have any
    layout; parameters without elements, and losses of NaN, are stepped; ``state["t"]`` is a number, never the learning rate's
    own tensor; a step that fails leaves parameters and state as they were. No tensor of the state is ever written to: each is
    replaced.

    Args:
        params: parameters, real or complex, of any shapes; one group.
        lr: of the first iteration, parameter units squared per loss unit; otherwise a factor of the direction, and the first
            trial of a line search.
        max_iter: iterations of a step, at least 1.
        max_eval: evaluations after which no further iteration begins; ``None``: ``max_iter * 5 // 4``.
        tolerance_grad: the largest element of a gradient that counts as none, gradient units.
        tolerance_change: the change at which a step ends: of any parameter (parameter units), of the loss (loss units).
        history_size: pairs to remember, at least 1.
        line_search_fn: ``"strong_wolfe"``, or ``None`` for steps of length ``lr``.
        maximize: minimize the negative of the loss. ``torch.optim`` has it from 2.14 on; here it works with any torch.

    Raises:
        ValueError: an option is outside its domain, in a group too, or there are several groups.
        RuntimeError: in ``step``, the parameters are on several devices.

    Source: Nocedal and Wright, *Numerical optimization*, 2nd ed., algorithms 3.5, 3.6 and 7.4; Schmidt, *minFunc*, 2005.
    """

    _numbers: ClassVar[tuple[str, ...]] = ("t", "H_diag", "prev_loss", "ro")
    _sparse: ClassVar[str] = "dense"
    _unscales = False  # GradScaler takes no closures
    #: What ``max_eval`` is where it was left open: as long as nobody sets another, it follows ``max_iter``.
    _open_max_eval: int | None = None
    _work: _Work

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1,
        max_iter: int = 20,
        max_eval: int | None = None,
        tolerance_grad: float = 1e-7,
        tolerance_change: float = 1e-9,
        history_size: int = 100,
        line_search_fn: str | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        given = (lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size, line_search_fn)
        members = params if isinstance(params, Tensor) else list(params)
        own = dict(members[0]) if len(members) and isinstance(members[0], dict) else {}
        more: dict[str, Any] = {"maximize": maximize} if _TORCH_MAXIMIZES else {}
        super().__init__(members, *given, **more)
        group = self.param_groups[0]
        for options in (self.defaults, group):
            options.setdefault("maximize", maximize)
        if own.get("max_eval", max_eval) is None:
            group["max_eval"] = self._open_max_eval = _derived_max_eval(group)

    @classmethod
    def kernels(cls) -> Iterator[Kernel]:
        yield from (_kernel(_RECURSION, dtype) for dtype in _OWN)
        yield from (_kernel(_ROWWISE, torch.float32, block) for block in (_TIMES, _REDUCED, _COMBINED))
        yield _substitution_kernel()

    def _served(self, group: Group) -> Served:
        params = group["params"]
        dtypes = {p.dtype for p in params}
        # As _Iterate.next decides, of a history that is full.
        long = group["history_size"] * sum(p.numel() for p in params) >= _WORTH_PASSES
        kernels = dtypes == {torch.float32} or (dtypes == {torch.float64} and not long)
        on_device = any(map(self._on_device, params))
        if on_device:
            kernels = functools.reduce(torch.promote_types, (p.dtype.to_real() for p in params)) is torch.float32
        reason = GATHERED if any_sharded([group]) else ""
        exotics = (exotic(p, interpreted=self._interpreted) for p in params if not is_sharded(p))
        refused = next(filter(None, exotics), "")
        if kernels and not refused:
            return Served("triton" if on_device else "llvm", reason)
        return Served("blas", reason or (refused if kernels else ""))

    def _on_device(self, p: Tensor) -> bool:
        return self._interpreted or p.device.type != "cpu"

    def _worker(self, like: Tensor) -> _Work:
        """What directions are formed with on the device of the parameters."""
        kind = _DeviceWork if self._on_device(like) else _Work
        if type(self.__dict__.get("_work")) is not kind:
            self._work = kind()
        return self._work

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: what torch names, and whether ``max_eval`` was left open."""
        return {**super().__getstate__(), "_open_max_eval": self._open_max_eval}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what was copied or unpickled: of the attributes, torch keeps the groups and the state alone."""
        super().__setstate__(state)
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None
        self.__dict__.pop("_work", None)
        group = self.param_groups[0]
        if "_open_max_eval" not in state and self._open_max_eval is not None:
            # Loaded: it stays open where the other optimizer has what follows from its own max_iter.
            derived = _derived_max_eval(group)
            self._open_max_eval = derived if group["max_eval"] in (None, derived) else None

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations.

        Args:
            closure: evaluates the loss, leaves its gradients in ``grad``, and returns it; it is called with gradients enabled.

        Returns:
            What the closure returned first.

        Raises:
            RuntimeError: parameters are DTensors, and the closure returns another loss on each rank; a gradient is not of its parameter's
                shape and dtype; or the state is incomplete, or not of the length of all parameters together.
            Exception: whatever the closure raises. Parameters and state are then as they were before.
        """
        if len(self.param_groups) != 1:
            raise AssertionError(f"Expected exactly one param_group, but got {len(self.param_groups)}")
        group = self.param_groups[0]
        devices = sorted({str(p.device) for p in group["params"]})
        if len(devices) > 1:
            raise RuntimeError(f"LBFGS forms one vector of all parameters, got some on {' and '.join(devices)}")
        if group["max_eval"] is None or group["max_eval"] == self._open_max_eval:
            group["max_eval"] = self._open_max_eval = _derived_max_eval(group)
        else:
            self._open_max_eval = None
        evaluate = torch.enable_grad()(closure)
        if not group["params"]:
            return evaluate()
        point = _Point(group["params"], evaluate, turned=bool(group.get("maximize", False)))
        try:
            returned, changed = self._iterate(group, point)
        except BaseException:
            point.restore()
            raise
        state = self.state[group["params"][0]]
        state.update(changed)
        # What torch keeps for use within a step is as long as the history was when it was made, and too short for a longer one.
        state.pop("al", None)
        self._worker(point.params[0]).left.take(state)
        return returned

    def _iterate(self, group: Group, point: _Point) -> tuple[Any, dict[str, Any]]:
        """What the closure returned first, and the entries of the state that change."""
        lr, most, max_eval = float(group["lr"]), int(group["max_iter"]), int(group["max_eval"])
        least, change, search = group["tolerance_grad"], group["tolerance_change"], group["line_search_fn"]
        if search not in (None, "strong_wolfe"):
            raise RuntimeError(f"only 'strong_wolfe' is supported, not line_search_fn={search!r}")
        state: Mapping[str, Any] = self.state.get(point.params[0], {})
        n_iter, evaluations = state.get("n_iter", 0), state.get("func_evals", 0)
        returned, spent = point.evaluate(), 1
        if point.largest <= least:
            return returned, {"n_iter": n_iter, "func_evals": evaluations + spent}
        work = self._worker(point.gradient)
        wrong = "" if work.left.stands(state) else _broken(state, point.gradient)
        if wrong:
            raise RuntimeError(f"LBFGS: {wrong}; {STATE_ANEW}")
        now = _Iterate.of(state, point.gradient)
        for iteration in range(1, most + 1):
            n_iter += 1
            g, loss, last = point.gradient, point.loss, iteration == most
            now = _Iterate.first(g, lr) if n_iter == 1 else now.next(g, lr, int(group["history_size"]), work)
            now.loss = loss
            if now.slope > -change:
                break
            if search is not None:
                now.t, trials = _strong_wolfe(point, now, max_eval - spent)
            else:
                trials = 0 if last else 1
                point.move(now.d, now.t, evaluated=not last)
            spent += trials
            if last or spent >= max_eval or point.largest <= least:
                break
            if now.largest * abs(now.t) <= change or abs(point.loss - loss) < change:
                break
        return returned, {"n_iter": n_iter, "func_evals": evaluations + spent, **now.entries()}


def _derived_max_eval(group: Group) -> int:
    return int(group["max_iter"]) * 5 // 4


# Where the function is evaluated ------------------------------------------------------------------------------------------


class _Point:
    """The parameters as one vector, and the loss and the gradient there.

    Attributes:
        turned: of the function that the closure evaluates, the negative is minimized.
        seen: what the last evaluation found.
    """

    def __init__(self, params: Sequence[Tensor], closure: Callable[[], Any], *, turned: bool = False) -> None:
        self.params, self.closure, self.turned = params, closure, turned
        self.seen = _Seen(math.nan, torch.empty(0, device="cpu"))
        self.before: list[Tensor] | None = None

    @property
    def loss(self) -> float:
        return self.seen.loss

    @property
    def gradient(self) -> Tensor:
        return self.seen.gradient

    @property
    def largest(self) -> float:
        return self.seen.largest

    def evaluate(self, d: Tensor | None = None) -> Any:
        """The loss and the gradient here; and the derivative along ``d``, if it is wanted."""
        returned = self.closure()
        for p in filter(is_sharded, self.params):
            wrong = shard_refusal(p, {}, (), whole=True) if p.grad is not None else ""
            if wrong:
                raise RuntimeError(f"LBFGS: {wrong}")
        loss = agreed(returned, self.params) if any(map(is_sharded, self.params)) else returned
        gradient = torch.cat([_flat_gradient(p) for p in self.params])
        if self.turned:
            loss, gradient = -loss, -gradient
        self.seen = _Seen.of(loss, gradient, d)
        return returned

    def move(self, d: Tensor, t: float, *, evaluated: bool) -> None:
        """Go along ``d``, and evaluate there, for which the parameters are kept: it may fail."""
        if evaluated:
            self.keep()
        torch._foreach_add_(self.reals(), self.parts(d), alpha=t)
        torch.autograd.graph.increment_version(list(filter(is_sharded, self.params)))
        if evaluated:
            self.evaluate()

    def keep(self) -> list[Tensor]:
        """Copies of the parameters; the first of a step are what a failure brings back."""
        copies = [x.clone() for x in self.reals()]
        if self.before is None:
            self.before = copies
        return copies

    def restore(self) -> None:
        for x, old in zip(self.reals(), self.before or (), strict=self.before is not None):
            x.copy_(old)

    def reals(self) -> list[Tensor]:
        """The parameters, of DTensors what is on this rank."""
        here = map(local, self.params)
        return [torch.view_as_real(p) if p.is_complex() else p for p in here]

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Views of a vector in the shapes of the parameters; of DTensors what is on this rank."""
        shapes = [(*p.shape, *((2,) if p.is_complex() else ())) for p in self.params]
        parts = flat.split_with_sizes([math.prod(shape) for shape in shapes])
        full = [part if len(shape) == 1 else part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
        return [part_of(p, x) if is_sharded(p) else x for p, x in zip(self.params, full, strict=True)]


@dataclass
class _Seen:
    """What an evaluation found. Of a device it is read in one transfer; on the CPU, where reading costs nothing, when it is wanted.

    Attributes:
        loss: a Python float.
        gradient: one vector of all gradients, a new one for each evaluation; of a complex number, the real and the imaginary
            part.
        slope: the derivative along a direction.
    """

    loss: float
    gradient: Tensor
    slope: float = math.nan
    _largest: float | None = None

    @classmethod
    def of(cls, loss: Any, gradient: Tensor, d: Tensor | None) -> _Seen:
        slope = math.nan if d is None else gradient.dot(d)
        if _on_host(gradient):
            return cls(float(loss), gradient, float(slope))
        here = (
            isinstance(loss, Tensor) and loss.device == gradient.device and loss.numel() == 1 and not loss.is_complex()
        )
        known = [_size(gradient), *([slope] if d is not None else ()), *([loss] if here else ())]
        largest, *rest = _together(known)
        return cls(rest[-1] if here else float(loss), gradient, rest[0] if d is not None else math.nan, largest)

    @property
    def largest(self) -> float:
        if self._largest is None:
            self._largest = _largest(self.gradient)
        return self._largest


def _on_host(x: Tensor) -> bool:
    """Whether to read a number of it costs nothing."""
    return x.device.type == "cpu"


def _together(numbers: Sequence[Tensor]) -> list[float]:
    """Tensors of one number each as Python's numbers, in one transfer, which waits for their device."""
    found: list[float] = torch.stack([x.detach().reshape(()).to(torch.float64) for x in numbers]).tolist()
    return found


def _broken(state: Mapping[str, Any], like: Tensor) -> str:
    """Why no iteration can go on from this state, or nothing.

    Args:
        like: the gradient of all parameters as one vector.
    """
    if not state.get("n_iter"):
        return ""
    vectors = {name: state.get(name) for name in ("d", "prev_flat_grad")}
    numbers = {name: state.get(name) for name in ("t", "H_diag")}
    lengths = []
    for name, into in (("old_dirs", vectors), ("old_stps", vectors), ("ro", numbers)):
        history = state.get(name)
        if not isinstance(history, list):
            return f"{name} in the state is a {type(history).__name__}, not a list"
        into |= {f"{name}[{i}]": x for i, x in enumerate(history)}
        lengths.append(len(history))
    if len(set(lengths)) > 1:
        return f"old_dirs, old_stps and ro in the state have {', '.join(map(str, lengths))} entries, and are to have as many each"
    for name, x in vectors.items():
        wrong = _no_vector(x, like)
        if wrong:
            return wrong.format(f"{name} in the state")
    for name, x in numbers.items():
        wrong = no_number(x)
        if wrong:
            return f"{name} in the state {wrong}"
    return ""


def _no_vector(x: object, like: Tensor) -> str:
    """Why this is no vector like another, with a place for its name, or nothing."""
    if not isinstance(x, Tensor):
        return f"{{}} is a {type(x).__name__}, not a tensor"
    if tuple(x.shape) != tuple(like.shape):
        return f"{{}} is {tuple(x.shape)}, all parameters together are {tuple(like.shape)}"
    if not x.dtype.is_floating_point or x.layout is not torch.strided or x.device.type == "meta":
        return f"{{}} is of {x.dtype} and layout {x.layout} on {x.device}, and is to be a vector of {like.dtype}"
    return CUT if is_cut(local(x)) else ""


class _Left:
    """What the last step left in the state: as long as it is still there, it need not be looked through again."""

    def __init__(self) -> None:
        self._vectors: list[Tensor] = []
        self._numbers: list[Any] = []
        self._memory: list[tuple[int, int]] = []

    def take(self, state: Mapping[str, Any]) -> None:
        """Remember it."""
        self._vectors, self._numbers = self._of(state)
        self._memory = _memory(self._vectors)

    def stands(self, state: Mapping[str, Any]) -> bool:
        """Whether the state has these very objects, where they were and as long."""
        if not self._vectors or not state.get("n_iter"):
            return False
        vectors, numbers = self._of(state)
        same = len(vectors) == len(self._vectors) and len(numbers) == len(self._numbers)
        return (
            same
            and all(map(operator.is_, vectors, self._vectors))
            and all(map(operator.is_, numbers, self._numbers))
            and _memory(vectors) == self._memory
        )

    @staticmethod
    def _of(state: Mapping[str, Any]) -> tuple[list[Tensor], list[Any]]:
        """The vectors and the numbers of a state, both empty where it is not as a step leaves it."""
        dirs, steps, ro = (state.get(name) for name in ("old_dirs", "old_stps", "ro"))
        if not isinstance(dirs, list) or not isinstance(steps, list) or not isinstance(ro, list):
            return [], []
        vectors = [state.get("d"), state.get("prev_flat_grad"), *dirs, *steps]
        if len(dirs) != len(steps) or len(steps) != len(ro) or any(type(x) is not Tensor for x in vectors):
            return [], []
        return cast("list[Tensor]", vectors), [state.get("t"), state.get("H_diag"), *ro]


def _memory(vectors: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Where they are, and how long."""
    return [(x.data_ptr(), x.numel()) for x in vectors]


def _flat_gradient(p: Tensor) -> Tensor:
    g = p.grad
    if g is not None:
        wrong = unfit(p, g)
        if wrong:
            raise RuntimeError(f"LBFGS: {wrong}")
    if g is None:
        g = torch.zeros(p.shape, dtype=p.dtype, device=p.device)
    elif is_sharded(g):
        g = whole(g)
    elif g.layout != torch.strided:
        g = g.to_dense()
    if g.is_complex():
        g = torch.view_as_real(g.resolve_conj())
    return g if g.dim() == 1 else g.reshape(-1)


def _largest(x: Tensor) -> float:
    """The largest absolute value: NaN if there is one, which does not meet a tolerance."""
    least, most = map(float, torch.aminmax(x)) if x.numel() else (0.0, 0.0)
    return max(-least, most)


def _size(x: Tensor) -> Tensor:
    """The same, where the tensor is."""
    least, most = torch.aminmax(x) if x.numel() else (x.sum(), x.sum())
    return torch.maximum(-least, most)


def _slope_and_size(g: Tensor, d: Tensor) -> tuple[float, float | None]:
    """The derivative along a direction and its largest element, read from a device together; on the CPU the latter may wait."""
    slope = g.dot(d)
    if _on_host(d):
        return slope.item(), None
    found, size = _together([slope, _size(d)])
    return found, size


def _in_dtype(x: float, like: Tensor) -> Tensor:
    """A number rounded to the dtype of a tensor; on the CPU, where it is decided upon."""
    return torch.tensor(x, dtype=like.dtype, device="cpu")


def _beside(x: Any, like: Tensor) -> Any:
    """A number that was decided upon, where the state has it, without waiting for the device."""
    if not isinstance(x, Tensor) or x.device == like.device:
        return x
    return torch.full((), x.item(), dtype=x.dtype, device=like.device)


# Iterations ---------------------------------------------------------------------------------------------------------------


class _Pairs(NamedTuple):
    """The history, oldest first: changes of the gradient, the steps that caused them, inverses of their products."""

    dirs: list[Tensor]
    steps: list[Tensor]
    ro: list[Any]

    def with_latest(self, y: Tensor, s: Tensor, ys: Tensor, size: int) -> _Pairs:
        ro = [*self.ro, _beside(1.0 / ys, y)]
        return _Pairs([*self.dirs, y][-size:], [*self.steps, s][-size:], ro[-size:])


@dataclass
class _Iterate:
    """What an iteration leaves for the next, in this step or another.

    Attributes:
        d: the direction.
        t: how far along it.
        pairs: what is remembered.
        eta: the scale of the initial inverse Hessian, as the state has it: 1, or a tensor.
        gradient: where ``d`` starts.
        loss: there.
        slope: the directional derivative there.
        size: the largest element of ``d``, if that is known already.
    """

    d: Tensor
    t: float
    pairs: _Pairs
    eta: Any
    gradient: Tensor
    loss: float = math.nan
    slope: float = math.nan
    size: float | None = None

    @property
    def largest(self) -> float:
        """The largest element of the direction."""
        if self.size is None:
            self.size = _largest(self.d)
        return self.size

    @classmethod
    def of(cls, state: Mapping[str, Any], like: Tensor) -> _Iterate:
        """What the state says; of the very first iteration, nothing."""
        if not state.get("n_iter"):
            return cls(like, 0.0, _Pairs([], [], []), 1, like)

        def taken(x: Tensor) -> Tensor:
            # Loading casts the state to the dtype of the first parameter, which need not be that of all of them together.
            x = plain(x)  # what torch keeps of DTensors is one
            return x if x.dtype == like.dtype and x.is_contiguous() else x.to(like).contiguous()

        dirs, steps = (list(map(taken, state[name])) for name in ("old_dirs", "old_stps"))
        pairs = _Pairs(dirs, steps, list(map(plain, state["ro"])))
        return cls(taken(state["d"]), float(state["t"]), pairs, plain(state["H_diag"]), taken(state["prev_flat_grad"]))

    @classmethod
    def first(cls, g: Tensor, lr: float) -> _Iterate:
        d = g.neg()
        total = _in_dtype(torch.linalg.vector_norm(g, 1, dtype=torch.float64).item(), g).item()
        t, (slope, size) = min(1.0, 1.0 / total) * lr, _slope_and_size(g, d)
        return cls(d, t, _Pairs([], [], []), 1, g, slope=slope, size=size)

    def next(self, g: Tensor, lr: float, size: int, work: _Work) -> _Iterate:
        """The iteration after this one: what changed is remembered, and there is a new direction."""
        way = work.way(len(self.pairs.ro), g)
        if way == "passes":
            return work.in_three_passes(self, g, lr, size)
        y, s = g - self.gradient, self.d * self.t
        pairs, eta = self.remembered(y, s, y.dot(s), y.dot(y), size)
        d = work.in_one_kernel(pairs, float(eta), g) if way == "kernel" else _two_loops(pairs, eta, g)
        slope, largest = _slope_and_size(g, d)
        return _Iterate(d, lr, pairs, eta, g, slope=slope, size=largest)

    def remembered(self, y: Tensor, s: Tensor, ys: Tensor, yy: Tensor, size: int) -> tuple[_Pairs, Any]:
        """The history and the scale with a new pair, if it has enough curvature; the scale is where ``ys`` is."""
        if ys > LEAST_CURVATURE:
            return self.pairs.with_latest(y, s, ys, size), ys / yy
        return self.pairs, self.eta

    def entries(self) -> dict[str, Any]:
        """What of it the state holds."""
        names = ("d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad", "prev_loss")
        return dict(zip(names, (self.d, self.t, *self.pairs, self.eta, self.gradient, self.loss), strict=True))


# Directions ---------------------------------------------------------------------------------------------------------------


def _two_loops(pairs: _Pairs, eta: Any, g: Tensor) -> Tensor:
    """The two-loop recursion as it is written (Nocedal and Wright, algorithm 7.4); it reads no number from a device."""
    d, alphas = g.neg(), []
    for y, s, rho in zip(*map(reversed, pairs), strict=True):
        alphas.append(s.dot(d) * rho)
        d.addcmul_(y, alphas[-1], value=-1)
    d.mul_(eta)
    for y, s, rho, alpha in zip(*pairs, reversed(alphas), strict=True):
        d.addcmul_(s, alpha - y.dot(d) * rho)
    return d


class _Products(NamedTuple):
    """Scalar products of remembered vectors.

    Attributes:
        pairs: the history that they are of.
        versions: how often its vectors had been written to by then.
        sy: row i, column j: of ``s`` i with ``y`` j; only from the diagonal on, which is all that the recursion asks for.
        rho: the inverses that the history has, as numbers of the CPU.
    """

    pairs: _Pairs
    versions: list[int]
    sy: Floats
    rho: Floats

    def are_of(self, pairs: _Pairs) -> bool:
        mine, theirs = (list(itertools.chain(*p)) for p in (self.pairs, pairs))
        return len(mine) == len(theirs) and all(map(operator.is_, mine, theirs)) and self.versions == _versions(pairs)


def _versions(pairs: _Pairs) -> list[int]:
    return [x._version for x in itertools.chain(*pairs) if isinstance(x, Tensor)]  # noqa: SLF001 - what autograd counts writes with


class _Work:
    """What directions are formed with: memory, and products of the history that are known. It is in no copy of its optimizer."""

    def __init__(self) -> None:
        self.known: _Products | None = None
        self.left = _Left()
        self.q: Floats = np.empty(0)
        #: The largest element of the last direction, where it was read with the slope.
        self.size: float | None = None
        self.scratch: Floats = np.empty(0)

    def way(self, k: int, g: Tensor) -> str:
        """How to form the direction at ``g`` with ``k`` pairs: ``"passes"``, one ``"kernel"``, or ``"operations"`` of torch."""
        if native.unavailable():
            return "operations"
        long = k * g.numel() >= max(1, _WORTH_PASSES)
        # The passes know scalar products of remembered pairs in float64, which is enough for vectors of float32 alone: where
        # pairs are nearly dependent the products cancel.
        if long and g.dtype is torch.float32:
            return "passes"
        return "kernel" if not long and g.dtype in _OWN else "operations"

    def in_one_kernel(self, pairs: _Pairs, scale: float, g: Tensor) -> Tensor:
        """The two-loop recursion in one call, for vectors that stay in a cache."""
        d, k = torch.empty_like(g), len(pairs.ro)
        rows = np.array([row.data_ptr() for row in (*pairs.dirs, *pairs.steps)], np.int64)
        numbers = np.concatenate([[scale], _numbers(pairs.ro), np.empty(k)])
        self._run(_kernel(_RECURSION, g.dtype), 1, g.numel(), k, rows, numbers, self._vector(g), g, d)
        return d

    def in_three_passes(self, last: _Iterate, g: Tensor, lr: float, size: int) -> _Iterate:
        """For vectors that no cache holds: through the steps, through the changes of the gradient, through the steps again."""
        before, y, s = last.pairs, torch.empty_like(g), torch.empty_like(g)
        known = self.known
        if known is None or not known.are_of(before):
            known = _Products(before, [], self.products(before), _numbers(before.ro))
        sy, rho = known.sy, known.rho
        # The new pair is one like the others in the pass that finds out whether it is to be remembered.
        found = self.times([*before.steps, s, y], g, y, last.gradient, s, last.d, np.array([last.t]))
        ys, yy = (_in_dtype(x, g) for x in found[-2:, 1])
        pairs, eta = last.remembered(y, s, ys, yy, size)
        s_g, k = found[:-2, 0], len(pairs.ro)
        if pairs is not before:
            kept, s_g = len(sy) + 1 - k, found[-1 - k : -1, 0]
            sy = np.block([[sy[kept:, kept:], found[kept:-2, 1:]], [np.zeros(k - 1), found[-2, 1]]])
            rho = np.append(rho[kept:], (1.0 / ys).item())
        self.known = _Products(pairs, _versions(pairs), sy, rho)
        scale = float(eta)
        alphas = self._substituted(sy[::-1, ::-1], rho[::-1], s_g[::-1], np.zeros(k))[::-1]
        y_q = self.reduced(pairs.dirs, alphas, g)
        deltas = self._substituted(sy.T, rho, scale * y_q, alphas)
        d, slope = self.combined(pairs.steps, deltas, scale, g)
        return _Iterate(d, lr, pairs, _beside(eta, g), g, slope=slope, size=self.size)

    def products(self, pairs: _Pairs) -> Floats:
        """All of a history anew, as of one that was loaded."""
        k = len(pairs.ro)
        sy = np.zeros((k, k))
        for first in range(0, k, 2):
            # Two columns in one pass.
            columns = [first, min(first + 1, k - 1)]
            rows = columns[1] + 1
            sy[:rows, columns] = self.times(pairs.steps[:rows], *(pairs.dirs[j] for j in columns))
        return sy

    def times(self, rows: Sequence[Tensor], a: Tensor, b: Tensor, *formed: Tensor | Floats) -> Floats:
        """The scalar product of each row with two vectors: rows, 2; given ``before, s, d, t``, ``b`` and ``s`` are formed first."""
        return self._pass(_TIMES, rows, a, b, *(formed or [0] * 4))

    def reduced(self, rows: Sequence[Tensor], coefficients: Floats, g: Tensor) -> Floats:
        """Make ``q`` of ``-g`` less each row times its coefficient; the scalar product of each row with it."""
        found: Floats = self._pass(_REDUCED, rows, g, self._vector(g), _padded(-coefficients))[:, 0]
        return found

    def combined(self, rows: Sequence[Tensor], coefficients: Floats, scale: float, g: Tensor) -> tuple[Tensor, float]:
        """``scale * q`` and each row times its coefficient, summed in float64 and rounded once; and its product with ``g``."""
        d = torch.empty_like(g)
        found = self._pass(_COMBINED, rows, g, self.q, _padded(coefficients), np.array([scale]), d)
        return d, float(found[0, 0])

    def _vector(self, like: Tensor) -> Floats:
        if len(self.q) != like.numel():
            self.q = np.empty(like.numel())
        return self.q

    def _pass(self, block: str, rows: Sequence[Tensor], g: Tensor, *own: Any) -> Floats:
        n, k = g.numel(), len(rows)
        pieces, padded = -(-n // _PIECE), -(-k // _ROWS) * _ROWS
        most = _BLOCK if block != _REDUCED else min(_BLOCK, max(64, _CACHED // (padded * g.element_size()) & -16))
        threads = min(torch.get_num_threads(), pieces) if n * k >= _WORTH_THREADS else 1
        # Rows of zeros fill up the last few that are taken at once.
        zeros, table = torch.zeros(_BLOCK, dtype=g.dtype, device="cpu"), np.zeros((padded, 2), np.int64)
        table[:, 0], table[:k, 1] = zeros.data_ptr(), g.element_size()
        table[:k, 0] = [row.data_ptr() for row in rows]
        sums = np.zeros((pieces, padded, 2))
        if len(self.scratch) < threads * 2 * _BLOCK:
            self.scratch = np.empty(threads * 2 * _BLOCK)
        self._run(
            _kernel(_ROWWISE, g.dtype, block), threads, pieces, n, padded, table, sums, self.scratch, most, g, *own
        )
        total: Floats = sums.sum(0)[:k]
        return total

    @staticmethod
    def _substituted(matrix: Floats, rho: Floats, b: Floats, x: Floats) -> Floats:
        """``x`` less ``rho`` times the sum of ``b`` and what the matrix, below its diagonal, makes of the entries before."""
        x = x.copy()
        given = [np.ascontiguousarray(a) for a in (matrix, rho, b)]
        _Work._run(_substitution_kernel(), 1, len(x), *given, x)
        return x

    @staticmethod
    def _run(kernel: Kernel, threads: int, *words: Any) -> None:
        """Run it on a launch of two counters and these words, of vectors the addresses."""
        places = (
            x.data_ptr() if isinstance(x, Tensor) else x.ctypes.data if isinstance(x, np.ndarray) else x for x in words
        )
        launch = np.array([0, 0, *places], np.int64)
        native.run(kernel, launch.ctypes.data, threads)


class _DeviceWork(_Work):
    """The same on a CUDA device, or by Triton's interpreter: passes however short the vectors are, each read in one transfer."""

    q: Tensor  # type: ignore[assignment]

    def way(self, k: int, g: Tensor) -> str:
        from stepcheck.fast.cuda.runtime import unavailable

        known = (
            k and g.numel() and g.dtype is torch.float32 and not native.unavailable()
        )  # the second loop is the host's
        return "passes" if known and not unavailable(g.device) else "operations"

    def times(self, rows: Sequence[Tensor], a: Tensor, b: Tensor, *formed: Tensor | Floats) -> Floats:
        from stepcheck.fast.cuda import lbfgs as kernels

        if formed:
            before, s, d, t = (x if isinstance(x, Tensor) else torch.from_numpy(x) for x in formed)
            torch.sub(a, before, out=b)
            torch.mul(d, t.item(), out=s)
        return kernels.products(rows, (a, b))

    def reduced(self, rows: Sequence[Tensor], coefficients: Floats, g: Tensor) -> Floats:
        from stepcheck.fast.cuda import lbfgs as kernels

        self.q = kernels.summed(rows, -coefficients, -1.0, g)
        return kernels.products(rows, (self.q,))[:, 0]

    def combined(self, rows: Sequence[Tensor], coefficients: Floats, scale: float, g: Tensor) -> tuple[Tensor, float]:
        from stepcheck.fast.cuda import lbfgs as kernels

        d, slope = kernels.rounded_sum(rows, coefficients, scale, self.q, g)
        found, self.size = _together([slope, _size(d)])
        return d, found


def _numbers(entries: Sequence[Any]) -> Floats:
    if entries and all(isinstance(x, Tensor) and not _on_host(x) for x in entries):
        return np.array(_together(entries))
    return np.array(list(map(float, entries)))


def _padded(x: Floats) -> Floats:
    return np.concatenate([x, np.zeros(-len(x) % _ROWS)])


# Kernels ------------------------------------------------------------------------------------------------------------------

#: Elements of a piece, of which one thread forms its part of all sums; pieces are added in order, so that how many threads there
#: are changes no bit.
_PIECE = 1 << 14
#: Elements of each row that are taken before those of the next, at most: a few vectors of as many stay in a cache.
_BLOCK = 1 << 12
#: Bytes of all rows together that are read twice in a row, the second time from a cache.
_CACHED = 400_000
#: Rows that are taken at once, for one reading of the vectors.
_ROWS = 4

# Below, a line with # stands for one line for each of the rows taken at once, and [x#] for x0, x1, x2, x3.
_ROWWISE = """
def at(rows, i, begin):
    return load_int64(rows, 2 * i) + begin * load_int64(rows, 2 * i + 1)

def two_products(n, [p#], u, v):
    x# = 0.0
    z# = 0.0
    for j in range(n):
        a, b = load_u(u, j), load_v(v, j)
        w# = float64(load_row(p#, j))
        x# += w# * a
        z# += w# * b
    return [x#], [z#]

def products(n, [p#], u):
    x# = 0.0
    for j in range(n):
        a = load_u(u, j)
        x# += float64(load_row(p#, j)) * a
    return [x#]

def add_four(n, [p#], [c#], u):
    for j in range(n):
        w# = c# * float64(load_row(p#, j))
        store_u(u, j, load_u(u, j) + (w0 + w1 + w2 + w3))

def add_rows(rows, count, coefficients, begin, length, u):
    for i in range(0, count, ROWS):
        c# = load_float64(coefficients, i + #)
        add_four(length, [at(rows, i + #, begin)], [c#], u)

def add_to(sums, i, x):
    store_float64(sums, i, load_float64(sums, i) + x)

def kernel(launch):
    pieces, n, count, rows = load_int64(launch, 2), load_int64(launch, 3), load_int64(launch, 4), load_int64(launch, 5)
    u, most = load_int64(launch, 7) + next_number(launch + 8) * 16 * BLOCK, load_int64(launch, 8)
    while True:
        piece = next_number(launch)
        if piece >= pieces:
            break
        sums, end = load_int64(launch, 6) + piece * count * 16, min(n, (piece + 1) * PIECE)
        for begin in range(piece * PIECE, end, most):
            block(launch + 72, rows, count, begin, min(most, end - begin), u, u + 8 * BLOCK, sums)
"""

#: The scalar product of each row with ``a`` and ``b``; where a vector ``before`` is given, ``b = a - before`` and ``s = t d`` first.
_TIMES = """
def block(own, rows, count, begin, length, u, v, sums):
    a, b, before = load_int64(own, 0), load_int64(own, 1), load_int64(own, 2)
    if before != 0:
        s, d, t = load_int64(own, 3), load_int64(own, 4), real(load_float64(load_int64(own, 5), 0))
        for j in range(begin, begin + length):
            store_row(b, j, load_a(a, j) - load_a(before, j))
            store_row(s, j, load_a(d, j) * t)
    for j in range(length):
        store_u(u, j, float64(load_a(a, begin + j)))
        store_v(v, j, float64(load_row(b, begin + j)))
    for i in range(0, count, ROWS):
        [x#], [z#] = two_products(length, [at(rows, i + #, begin)], u, v)
        add_to(sums, 2 * (i + #), x#)
        add_to(sums, 2 * (i + #) + 1, z#)
"""
#: ``q = -g`` and each row times its coefficient; the scalar product of each row with that.
_REDUCED = """
def block(own, rows, count, begin, length, u, v, sums):
    g, q, coefficients = load_int64(own, 0), load_int64(own, 1) + 8 * begin, load_int64(own, 2)
    for j in range(length):
        store_u(q, j, -float64(load_a(g, begin + j)))
    add_rows(rows, count, coefficients, begin, length, q)
    for i in range(0, count, ROWS):
        [x#] = products(length, [at(rows, i + #, begin)], q)
        add_to(sums, 2 * (i + #), x#)
"""
#: ``d = scale * q`` and each row times its coefficient, rounded once; its scalar product with ``g``.
_COMBINED = """
def block(own, rows, count, begin, length, u, v, sums):
    g, q, coefficients = load_int64(own, 0), load_int64(own, 1) + 8 * begin, load_int64(own, 2)
    scale, d, slope = load_float64(load_int64(own, 3), 0), load_int64(own, 4), 0.0
    for j in range(length):
        store_u(u, j, scale * load_v(q, j))
    add_rows(rows, count, coefficients, begin, length, u)
    for j in range(length):
        x = real(load_u(u, j))
        store_d(d, begin + j, x)
        slope += float64(load_a(g, begin + j)) * float64(x)
    add_to(sums, 0, slope)
"""

#: The two-loop recursion as it is written (Nocedal and Wright, algorithm 7.4).
_RECURSION = """
def product(n, row, q):
    total = 0.0
    for j in range(n):
        total += float64(load_row(row, j)) * load_u(q, j)
    return total

def add(n, c, row, q):
    for j in range(n):
        store_u(q, j, load_u(q, j) + c * float64(load_row(row, j)))

def kernel(launch):
    n, k, ys = load_int64(launch, 2), load_int64(launch, 3), load_int64(launch, 4)
    numbers, q, g, d = load_int64(launch, 5), load_int64(launch, 6), load_int64(launch, 7), load_int64(launch, 8)
    ss, rho, alphas, scale = ys + 8 * k, numbers + 8, numbers + 8 + 8 * k, load_float64(numbers, 0)
    for j in range(n):
        store_u(q, j, -float64(load_a(g, j)))
    for i in range(k - 1, -1, -1):
        alpha = product(n, load_int64(ss, i), q) * load_float64(rho, i)
        store_float64(alphas, i, alpha)
        add(n, -alpha, load_int64(ys, i), q)
    for j in range(n):
        store_u(q, j, scale * load_u(q, j))
    for i in range(k):
        delta = load_float64(alphas, i) - product(n, load_int64(ys, i), q) * load_float64(rho, i)
        add(n, delta, load_int64(ss, i), q)
    for j in range(n):
        store_d(d, j, real(load_u(q, j)))
"""
_SUBSTITUTION = """
def kernel(launch):
    k, matrix, rho = load_int64(launch, 2), load_int64(launch, 3), load_int64(launch, 4)
    b, x = load_int64(launch, 5), load_int64(launch, 6)
    for i in range(k):
        total = load_float64(b, i)
        for j in range(i):
            total += load_float64(matrix, i * k + j) * load_float64(x, j)
        store_float64(x, i, load_float64(x, i) - total * load_float64(rho, i))
"""


@functools.cache
def _kernel(source: str, dtype: torch.dtype, block: str = "") -> Kernel:
    name = str(dtype).removeprefix("torch.")
    streams = {"row": name, "a": name, "d": name, "u": "float64", "v": "float64"}
    constants = (name, dtype.itemsize, _PIECE, _BLOCK, _ROWS)
    lines = [f"real, SIZE, PIECE, BLOCK, ROWS = {', '.join(map(str, constants))}"]
    for stream, kind in streams.items():
        given = f"({kind!r}, {stream!r}, {tuple(streams)})"
        lines.append(f"load_{stream}, store_{stream} = loader{given}, storer{given}")

    def each(text: str) -> list[str]:
        return [text.replace("#", str(i)) for i in range(_ROWS if "#" in text else 1)]

    for line in (source + block).splitlines():
        lines += each(re.sub(r"\[([^]]*)\]", lambda m: ", ".join(each(m[1])), line))
    return native.kernel("\n".join(lines), reassociate=True)


def _substitution_kernel() -> Kernel:
    return native.kernel(_SUBSTITUTION, reassociate=True)


# Line search --------------------------------------------------------------------------------------------------------------


class _Trial(NamedTuple):
    """A step length along a direction, and what was seen there; the derivative is along the direction."""

    t: float
    seen: _Seen
    slope: float

    @property
    def loss(self) -> float:
        return self.seen.loss


class _Line:
    """The line through a point along a direction, and the conditions that its points meet."""

    def __init__(self, point: _Point, now: _Iterate) -> None:
        self.point, self.now, self.d = point, now, now.d
        self.x, self.parts = point.keep(), point.parts(now.d)
        self.start = _Trial(0.0, point.seen, now.slope)
        self.trials = 0
        self.at = 0.0

    def go(self, t: float) -> None:
        for x, start, part in zip(self.point.reals(), self.x, self.parts, strict=True):
            torch.add(start, part, alpha=t, out=x)
        self.at = t

    def evaluate(self, t: float) -> _Trial:
        self.go(t)
        self.point.evaluate(self.d)
        self.trials += 1
        return _Trial(t, self.point.seen, self.point.seen.slope)

    def too_high(self, trial: _Trial) -> bool:
        # A loss of NaN is neither too high nor low enough.
        return trial.loss > self.start.loss + DECREASE * trial.t * self.start.slope

    def flat(self, trial: _Trial) -> bool:
        return abs(trial.slope) <= -SLOPE * self.start.slope


def _strong_wolfe(point: _Point, now: _Iterate, most: int) -> tuple[float, int]:
    """Search along the direction of an iteration, and stay at the step length that meets the strong Wolfe conditions.

    The search of minFunc: brackets by cubic extrapolation, then narrows the bracket by cubic interpolation (Nocedal and
    Wright, algorithms 3.5 and 3.6). It makes up to ``most`` trials beside the first.

    Returns:
        The step length, and how many were tried.
    """
    line = _Line(point, now)
    found = _searched(line, now.t, most)
    if line.at != found.t:
        line.go(found.t)
    point.seen = found.seen
    return found.t, line.trials


def _searched(line: _Line, t: float, most: int) -> _Trial:
    bracket = _bracket(line, t, most)
    if len(bracket) == 1:
        return bracket[0]
    low, close = _lower(bracket), False
    width = line.now.largest
    while line.trials <= most and not abs(bracket[1].t - bracket[0].t) * width < LEAST_WIDTH:
        t, close = _inside(_cubic_minimum(bracket[0], bracket[1]), bracket, close=close)
        new, high = line.evaluate(t), 1 - low
        if line.too_high(new) or new.loss >= bracket[low].loss:
            bracket[high] = new
            low = _lower(bracket)
            continue
        if line.flat(new):
            return new
        if new.slope * (bracket[high].t - bracket[low].t) >= 0:
            bracket[high] = bracket[low]
        bracket[low] = new
    return bracket[low]


def _bracket(line: _Line, t: float, most: int) -> list[_Trial]:
    """Two trials with a suitable step length between them, or one that is suitable."""
    last, new = line.start, line.evaluate(t)
    while line.trials <= most:
        if line.too_high(new) or (line.trials > 2 and new.loss >= last.loss):
            return [last, new]
        if line.flat(new) or new.slope >= 0:
            return [new] if line.flat(new) else [last, new]
        t = _cubic_minimum(last, new, (new.t + 0.01 * (new.t - last.t), 10 * new.t))
        last, new = new, line.evaluate(t)
    return [line.start, new]


def _lower(bracket: Sequence[_Trial]) -> int:
    return 0 if bracket[0].loss <= bracket[1].loss else 1


def _inside(t: float, bracket: Sequence[_Trial], *, close: bool) -> tuple[float, bool]:
    """A trial away from the ends of the bracket, if it is close to one again or reaches it; and whether it is close now."""
    left, right = sorted(trial.t for trial in bracket)
    margin = 0.1 * (right - left)
    if not min(right - t, t - left) < margin:
        return t, False
    if close or not left < t < right:
        return (right - margin if abs(t - right) < abs(t - left) else left + margin), False
    return t, True


def _cubic_minimum(a: _Trial, b: _Trial, bounds: tuple[float, float] | None = None) -> float:
    """The minimizer, within bounds, of the cubic through two trials (Nocedal and Wright, equation 3.59)."""
    left, right = (a, b) if a.t <= b.t else (b, a)
    low, high = bounds or (left.t, right.t)
    number = np.float64 if a.seen.gradient.dtype == torch.float64 else np.float32
    # Slopes have the range of the gradients that they come from, and a bracket of no width is no error.
    with np.errstate(all="ignore"):
        run = np.float64(right.t) - left.t
        left_slope, right_slope = number(left.slope), number(right.slope)
        d1 = left_slope + right_slope - number(3 * (right.loss - left.loss) / run)
        square = d1 * d1 - left_slope * right_slope
        if not square >= 0:
            return (low + high) / 2
        d2 = np.sqrt(square)
        share = (right_slope + d2 - d1) / (right_slope - left_slope + 2 * d2)
        return float(np.minimum(np.maximum(right.t - run * np.float64(share), low), high))
