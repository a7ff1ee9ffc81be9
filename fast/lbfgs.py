"""L-BFGS whose directions take one kernel, or three passes over the history, in place of four operations for each pair."""

from __future__ import annotations

import functools
import math
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from stepcheck.fast.engine import Group, Served, exotic
from stepcheck.fast.optimizer import Fast

#: The curvature that a pair must exceed to be remembered, in loss units.
LEAST_CURVATURE = 1e-10
#: The constants of the strong Wolfe conditions (Nocedal and Wright, section 3.1).
DECREASE, SLOPE = 1e-4, 0.9
#: A bracket narrower than this, in parameter units, is not searched further.
LEAST_WIDTH = 1e-9

#: Elements that one piece of work of a kernel spans, of each row. Sums are formed piece by piece and the pieces added in order,
#: so that how many threads there are changes no bit.
_PIECE = 1 << 15
#: Elements of a row that are taken before the next row's: those of the operand, and of the sums, stay in the first-level cache.
_BLOCK = 1 << 12
#: The same, of rows that are read twice in a row: a hundred of these blocks stay in the second-level cache.
_SHORT_BLOCK = 1 << 10
#: Products below which the vectors of a recursion stay in a cache from one use to the next.
_WORTH_PASSES = 1 << 16
#: Products below which starting a thread costs more than it saves.
_WORTH_THREADS = 1 << 20

Array = npt.NDArray[Any]
Float64 = npt.NDArray[np.float64]


class LBFGS(Fast, torch.optim.LBFGS):
    r"""A drop-in for ``torch.optim.LBFGS``: the same options, ``param_groups`` and ``state``, in less time.

    The direction is that of the two-loop recursion. The scalar products of its first loop follow from those of the gradient
    with all :math:`s_i` and of :math:`s_i` with :math:`y_j`, which are kept from step to step (Chen, Wang and Zhou,
    *Large-scale L-BFGS using MapReduce*, 2014); those of the second from the products of all :math:`y_i` with what the first
    loop leaves, found as it is formed. So a direction takes three passes over half of the history each, where the recursion
    takes four, and a single call for each pass. Short vectors take the recursion as it is written, in one call. Sums are
    float64. So it is with float32 and float64 on the CPU; all else takes one operation of torch after another.

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

    Raises:
        ValueError: an option is outside its domain, in a group too, or there are several groups.

    Source: Nocedal and Wright, *Numerical optimization*, 2nd ed., algorithms 3.5, 3.6 and 7.4; Schmidt, *minFunc*, 2005.
    """

    _numbers: ClassVar[tuple[str, ...]] = ("t", "H_diag", "prev_loss", "ro")
    _sparse: ClassVar[str] = "dense"
    _step_supports_amp_scaling = False  # GradScaler takes no closures

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
    ) -> None:
        given = {
            "lr": lr,
            "max_iter": max_iter,
            "max_eval": max_eval,
            "tolerance_grad": tolerance_grad,
            "tolerance_change": tolerance_change,
            "history_size": history_size,
            "line_search_fn": line_search_fn,
        }
        members = params if isinstance(params, Tensor) else list(params)
        own = dict(members[0]) if len(members) and isinstance(members[0], dict) else {}
        super().__init__(members, **given)
        group = self.param_groups[0]
        #: What ``max_eval`` is where it was left open: as long as nobody sets another, it follows ``max_iter``.
        self._open_max_eval: int | None = None
        if own.get("max_eval", max_eval) is None:
            group["max_eval"] = self._open_max_eval = _derived_max_eval(group)
        self._products: _Products | None = None

    def _served(self, group: Group) -> Served:
        dtypes = {p.dtype for p in group["params"]}
        if all(exotic(p) == "" for p in group["params"]) and dtypes <= {torch.float32, torch.float64}:
            return Served("numba", "")
        return Served("blas", "")

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled: what torch names, and whether ``max_eval`` was left open."""
        return {**super().__getstate__(), "_open_max_eval": self._open_max_eval}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up what was copied or unpickled: of the attributes, torch keeps the groups and the state alone."""
        super().__setstate__(state)
        self._params = self.param_groups[0]["params"]
        self._numel_cache = None
        self._products = None
        group = self.param_groups[0]
        if "_open_max_eval" not in state and self._open_max_eval is not None:
            # Loaded: it stays open where the other optimizer has what follows from its own max_iter.
            self._open_max_eval = _derived_max_eval(group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations.

        Args:
            closure: evaluates the loss, leaves its gradients in ``grad``, and returns it; it is called with gradients enabled.

        Returns:
            What the closure returned first.

        Raises:
            Exception: whatever the closure raises; parameters and state are then as they were before.
        """
        if len(self.param_groups) != 1:
            raise AssertionError(f"Expected exactly one param_group, but got {len(self.param_groups)}")
        group = self.param_groups[0]
        if group["max_eval"] is None or group["max_eval"] == self._open_max_eval:
            group["max_eval"] = self._open_max_eval = _derived_max_eval(group)
        point = _Point(group["params"], torch.enable_grad()(closure))
        try:
            returned, changed = self._iterate(_Options.of(group), point)
        except BaseException:
            point.restore()
            raise
        state = self.state[group["params"][0]]
        state.update(changed)
        # What torch keeps for use within a step is as long as the history was when it was made, and too short for a longer one.
        state.pop("al", None)
        return returned

    def _iterate(self, options: _Options, point: _Point) -> tuple[Any, dict[str, Any]]:
        """What the closure returned first, and the entries of the state that change."""
        state: Mapping[str, Any] = self.state.get(point.params[0], {})
        n_iter, evaluations = state.get("n_iter", 0), state.get("func_evals", 0)
        returned = point.evaluate()
        spent = 1
        if not _exceeds(point.gradient, options.tolerance_grad):
            return returned, {"n_iter": n_iter, "func_evals": evaluations + spent}
        now = _Iterate.of(state, point.gradient)
        for iteration in range(1, options.max_iter + 1):
            n_iter += 1
            g, loss = point.gradient, point.loss
            now = _Iterate.first(g, options.lr) if n_iter == 1 else now.next(g, options, self._products)
            now.loss = loss
            last = iteration == options.max_iter
            if now.slope > -options.tolerance_change:
                break
            if options.line_search:
                now.t, trials = _strong_wolfe(point, now, options.max_eval - spent)
            else:
                trials = 0 if last else 1
                point.move(now.d, now.t, evaluated=not last)
            spent += trials
            if last or spent >= options.max_eval or not _exceeds(point.gradient, options.tolerance_grad):
                break
            if _largest(now.d) * abs(now.t) <= options.tolerance_change:
                break
            if abs(point.loss - loss) < options.tolerance_change:
                break
        self._products = now.products
        return returned, {"n_iter": n_iter, "func_evals": evaluations + spent, **now.entries()}


# Options ------------------------------------------------------------------------------------------------------------------


class _Options(NamedTuple):
    lr: float
    max_iter: int
    max_eval: int
    tolerance_grad: float
    tolerance_change: float
    history_size: int
    line_search: bool

    @classmethod
    def of(cls, group: Mapping[str, Any]) -> _Options:
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise RuntimeError(f"only 'strong_wolfe' is supported, not line_search_fn={group['line_search_fn']!r}")
        return cls(
            float(group["lr"]),
            int(group["max_iter"]),
            int(group["max_eval"]),
            float(group["tolerance_grad"]),
            float(group["tolerance_change"]),
            int(group["history_size"]),
            group["line_search_fn"] is not None,
        )


def _derived_max_eval(group: Mapping[str, Any]) -> int:
    return int(group["max_iter"]) * 5 // 4


# Where the function is evaluated ------------------------------------------------------------------------------------------


class _Point:
    """The parameters as one vector, and the loss and the gradient there.

    Attributes:
        loss: a Python float.
        gradient: one vector of all gradients, a new one for each evaluation; of a complex number, the real and the imaginary
            part.
    """

    def __init__(self, params: Sequence[Tensor], closure: Callable[[], Any]) -> None:
        self.params, self.closure = params, closure
        self.loss = math.nan
        self.gradient = torch.empty(0)
        self.before: list[Tensor] | None = None

    def evaluate(self) -> Any:
        returned = self.closure()
        self.loss = float(returned)
        self.gradient = torch.cat([_flat_gradient(p) for p in self.params])
        return returned

    def move(self, d: Tensor, t: float, *, evaluated: bool) -> None:
        """Go along ``d``, and evaluate there, for which the parameters are kept: it may fail."""
        if evaluated:
            self.keep()
        torch._foreach_add_(self.reals(), self.parts(d), alpha=t)
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
        return [torch.view_as_real(p) if p.is_complex() else p for p in self.params]

    def parts(self, flat: Tensor) -> list[Tensor]:
        """Views of a vector in the shapes of the parameters."""
        shapes = [x.shape for x in self.reals()]
        parts = zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)
        return [part if len(shape) == 1 else part.view(shape) for part, shape in parts]


def _flat_gradient(p: Tensor) -> Tensor:
    g = p.grad
    if g is None:
        g = torch.zeros_like(p, memory_format=torch.contiguous_format)
    elif g.layout != torch.strided:
        g = g.to_dense()
    if g.is_complex():
        g = torch.view_as_real(g.resolve_conj())
    return g if g.dim() == 1 else g.reshape(-1)


def _largest(x: Tensor) -> float:
    """The largest absolute value: NaN if there is one."""
    return torch.linalg.vector_norm(x, math.inf).item() if x.numel() else 0.0


def _exceeds(x: Tensor, tolerance: float) -> bool:
    # NaN does not meet a tolerance.
    return not _largest(x) <= tolerance


def _in_dtype(x: float, like: Tensor) -> Tensor:
    return torch.tensor(x, dtype=like.dtype, device=like.device)


# Iterations ---------------------------------------------------------------------------------------------------------------


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
        products: of the vectors of ``pairs``, where they are known.
    """

    d: Tensor
    t: float
    pairs: _Pairs
    eta: Any
    gradient: Tensor
    loss: float = math.nan
    slope: float = math.nan
    products: _Products | None = None

    @classmethod
    def of(cls, state: Mapping[str, Any], like: Tensor) -> _Iterate:
        """What the state says; of the very first iteration, nothing."""
        if not state.get("n_iter"):
            return cls(like, 0.0, _Pairs([], [], []), 1, like)

        def taken(x: Tensor) -> Tensor:
            # Loading casts the state to the dtype of the first parameter, which need not be that of all of them together.
            return x if x.dtype == like.dtype and x.is_contiguous() else x.to(like).contiguous()

        dirs, steps = (list(map(taken, state[name])) for name in ("old_dirs", "old_stps"))
        pairs = _Pairs(dirs, steps, list(state["ro"]))
        return cls(taken(state["d"]), float(state["t"]), pairs, state["H_diag"], taken(state["prev_flat_grad"]))

    @classmethod
    def first(cls, g: Tensor, lr: float) -> _Iterate:
        d = g.neg()
        total = _in_dtype(torch.linalg.vector_norm(g, 1, dtype=torch.float64).item(), g).item()
        return cls(d, min(1.0, 1.0 / total) * lr, _Pairs([], [], []), 1, g, slope=g.dot(d).item())

    def next(self, g: Tensor, options: _Options, products: _Products | None) -> _Iterate:
        """The iteration after this one: what changed is remembered, and there is a new direction."""
        y, s = g - self.gradient, self.d * self.t
        fast = g.dtype in (torch.float32, torch.float64) and g.device.type == "cpu"
        short = len(self.pairs.ro) * g.numel() < _WORTH_PASSES
        follow = _from_vectors if not fast else _in_one_kernel if short else _in_three_passes
        known = self.products or products
        pairs, eta, products, d, slope = follow(g, y, s, self.pairs, self.eta, options.history_size, known)
        return _Iterate(d, options.lr, pairs, eta, g, slope=slope, products=products)

    def entries(self) -> dict[str, Any]:
        """What of it the state holds."""
        return {
            "d": self.d,
            "t": self.t,
            "old_dirs": self.pairs.dirs,
            "old_stps": self.pairs.steps,
            "ro": self.pairs.ro,
            "H_diag": self.eta,
            "prev_flat_grad": self.gradient,
            "prev_loss": self.loss,
        }


class _Pairs(NamedTuple):
    """The history, oldest first: changes of the gradient, the steps that caused them, inverses of their products."""

    dirs: list[Tensor]
    steps: list[Tensor]
    ro: list[Any]

    def with_latest(self, y: Tensor, s: Tensor, ys: Tensor, size: int) -> _Pairs:
        return _Pairs([*self.dirs, y][-size:], [*self.steps, s][-size:], [*self.ro, 1.0 / ys][-size:])


_Next = tuple[_Pairs, Any, "_Products | None", Tensor, float]


def _from_vectors(g: Tensor, y: Tensor, s: Tensor, pairs: _Pairs, eta: Any, size: int, _: _Products | None) -> _Next:
    """The two-loop recursion as it is written (Nocedal and Wright, algorithm 7.4)."""
    pairs, eta = _remembered(y, s, y.dot(s), y.dot(y), pairs, eta, size)
    d, alphas = g.neg(), []
    for y_i, s_i, rho in zip(*map(reversed, pairs), strict=True):
        alphas.append(s_i.dot(d) * rho)
        d.add_(y_i, alpha=-alphas[-1].item())
    d.mul_(eta)
    for y_i, s_i, rho, alpha in zip(*pairs, reversed(alphas), strict=True):
        d.add_(s_i, alpha=(alpha - y_i.dot(d) * rho).item())
    return pairs, eta, None, d, g.dot(d).item()


def _in_one_kernel(g: Tensor, y: Tensor, s: Tensor, pairs: _Pairs, eta: Any, size: int, _: _Products | None) -> _Next:
    """The same for short vectors, all of them in the nearest cache."""
    pairs, eta = _remembered(y, s, y.dot(s), y.dot(y), pairs, eta, size)
    d = torch.empty_like(g)
    rho = np.array([float(r) for r in pairs.ro])
    _kernels().recursion(
        _addresses(pairs.dirs), _addresses(pairs.steps), rho, g.numpy(), float(eta), np.empty(g.numel()), d.numpy()
    )
    return pairs, eta, None, d, g.dot(d).item()


def _in_three_passes(
    g: Tensor, y: Tensor, s: Tensor, pairs: _Pairs, eta: Any, size: int, known: _Products | None
) -> _Next:
    """The same for vectors that no cache holds: through the steps, through the changes of the gradient, through the steps."""
    if known is None or not known.are_of(pairs):
        known = _Products.of(pairs)
    # The new pair is one like the others in the pass that finds out whether it is to be remembered.
    found = _times([*pairs.steps, s, y], g, y)
    before = pairs
    pairs, eta = _remembered(y, s, _in_dtype(found[-2, 1], g), _in_dtype(found[-1, 1], g), pairs, eta, size)
    s_g = found[:-2, 0]
    if pairs is not before:
        known = known.with_latest(pairs, found[:-1, 1])
        s_g = found[-1 - len(pairs.ro) : -1, 0]
    scale = float(eta)
    alphas = _kernels().alphas(known.sy, s_g, known.rho)
    q, y_q = _reduced(pairs.dirs, alphas, g)
    deltas = _kernels().deltas(known.sy, y_q, known.rho, alphas, scale)
    d, slope = _combined(pairs.steps, deltas, q, scale, g)
    return pairs, eta, known, d, slope


def _remembered(y: Tensor, s: Tensor, ys: Tensor, yy: Tensor, pairs: _Pairs, eta: Any, size: int) -> tuple[_Pairs, Any]:
    """The history and the scale with a new pair, if it has enough curvature."""
    return (pairs.with_latest(y, s, ys, size), ys / yy) if ys > LEAST_CURVATURE else (pairs, eta)


# Scalar products of the history -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Products:
    """Scalar products of remembered vectors.

    Attributes:
        pairs: the history that they are of.
        versions: how often its vectors had been written to by then.
        sy: row i, column j: of ``s`` i with ``y`` j; only from the diagonal on, which is all that the recursion asks for.
        rho: the inverses that stand in ``pairs``, as numbers.
    """

    pairs: _Pairs
    versions: list[int]
    sy: Float64
    rho: Float64

    @classmethod
    def of(cls, pairs: _Pairs) -> _Products:
        """All of them anew: for a history that was loaded."""
        k = len(pairs.ro)
        sy = np.zeros((k, k))
        for first in range(0, k, 2):
            # Two columns in one pass.
            columns = [first, min(first + 1, k - 1)]
            rows = columns[1] + 1
            sy[:rows, columns] = _times(pairs.steps[:rows], *(pairs.dirs[j] for j in columns))
        return cls(pairs, _versions(pairs), sy, np.array([float(r) for r in pairs.ro]))

    def are_of(self, pairs: _Pairs) -> bool:
        mine = (x for column in self.pairs for x in column)
        theirs = (x for column in pairs for x in column)
        same = len(self.pairs.ro) == len(pairs.ro) and all(a is b for a, b in zip(mine, theirs, strict=True))
        return same and self.versions == _versions(pairs)

    def with_latest(self, pairs: _Pairs, s_y: Float64) -> _Products:
        """With a pair more, its ``y`` times each ``s`` given; the oldest are dropped where the history is full."""
        k = len(pairs.ro)
        kept = len(self.rho) + 1 - k
        sy = np.zeros((k, k))
        sy[:-1, :-1], sy[:, -1] = self.sy[kept:, kept:], s_y[kept:]
        return _Products(pairs, _versions(pairs), sy, np.append(self.rho[kept:], float(pairs.ro[-1])))


def _versions(pairs: _Pairs) -> list[int]:
    return [x._version for column in pairs for x in column if isinstance(x, Tensor)]  # noqa: SLF001 - what autograd counts writes with


# Kernels ------------------------------------------------------------------------------------------------------------------


def _times(rows: Sequence[Tensor], a: Tensor, b: Tensor) -> Float64:
    """The scalar product of each row with two vectors, float64: rows, 2."""
    sums = np.zeros((_pieces(a), len(rows), 2))
    addresses, left, right = _addresses(rows), a.detach().numpy(), b.detach().numpy()
    _shared(
        lambda first, last: _kernels().times(addresses, left, right, first, last, sums),
        len(sums),
        len(rows) * a.numel(),
    )
    total: Float64 = sums.sum(0)
    return total


def _reduced(rows: Sequence[Tensor], coefficients: Float64, g: Tensor) -> tuple[Float64, Float64]:
    """``-g`` less each row times its coefficient, float64; and the scalar product of each row with that."""
    q = np.empty(g.numel())
    sums = np.zeros((_pieces(g), len(rows)))
    addresses, vector = _addresses(rows), g.numpy()
    _shared(
        lambda first, last: _kernels().reduced(addresses, coefficients, vector, first, last, q, sums),
        len(sums),
        len(rows) * g.numel(),
    )
    return q, sums.sum(0)


def _combined(
    rows: Sequence[Tensor], coefficients: Float64, q: Float64, scale: float, g: Tensor
) -> tuple[Tensor, float]:
    """``scale * q`` and each row times its coefficient, summed in float64 and rounded once; and its product with ``g``."""
    d = torch.empty_like(g)
    sums = np.zeros(_pieces(g))
    addresses, vector, result = _addresses(rows), g.numpy(), d.numpy()
    _shared(
        lambda first, last: _kernels().combined(addresses, coefficients, q, scale, vector, first, last, result, sums),
        len(sums),
        len(rows) * g.numel(),
    )
    return d, float(sums.sum())


def _addresses(rows: Sequence[Tensor]) -> npt.NDArray[np.uint64]:
    return np.array([row.data_ptr() for row in rows], np.uint64)


def _pieces(x: Tensor) -> int:
    return -(-x.numel() // _PIECE)


def _shared(work: Callable[[int, int], object], pieces: int, products: int) -> None:
    """Have all pieces done, from the first up to the last, by as many threads as torch would take.

    The threads live as long as the call: none is lost in a fork, and callers from several threads do not wait for each other.
    """
    threads = min(torch.get_num_threads(), pieces) if products >= _WORTH_THREADS else 1
    if threads == 1:
        work(0, pieces)
        return
    left = deque(range(pieces))

    def take() -> None:
        while left:
            try:
                piece = left.popleft()
            except IndexError:  # another thread was faster
                return
            work(piece, piece + 1)

    others = [threading.Thread(target=take) for _ in range(threads - 1)]
    for thread in others:
        thread.start()
    take()
    for thread in others:
        thread.join()


class _Kernels(NamedTuple):
    times: Callable[..., None]
    reduced: Callable[..., None]
    combined: Callable[..., None]
    alphas: Callable[..., Float64]
    deltas: Callable[..., Float64]
    recursion: Callable[..., None]


@functools.cache
def _kernels() -> _Kernels:
    # numba takes most of a second to import.
    import numba
    from numba import extending, types

    @extending.type_callable(_pointer)
    def _typed(_: Any) -> Any:
        return lambda address, start, like: types.CPointer(like.dtype)

    @extending.lower_builtin(_pointer, types.uint64, types.Integer, types.Array)
    def _lowered(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))
        return builder.gep(whole, [arguments[1]])

    # Sums in lanes, products contracted with them; NaN and infinity stay what they are.
    lanes = numba.njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})
    plain = numba.njit(nogil=True, cache=True, error_model="numpy")
    return _Kernels(
        *map(lanes, (_times_kernel, _reduced_kernel, _combined_kernel)),
        *map(plain, (_alphas_kernel, _deltas_kernel)),
        lanes(_recursion_kernel),
    )


def _pointer(address: Any, start: Any, like: Any) -> Any:
    """A pointer to a row from an element on, of the dtype of an array; for kernels alone."""
    raise NotImplementedError


def _times_kernel(rows: Any, a: Any, b: Any, first: int, last: int, sums: Any) -> None:
    # Four rows at a time: four streams from memory, and one reading of the vectors for them.
    count = len(rows)
    for piece in range(first, last):
        end = min((piece + 1) * _PIECE, len(a))
        for begin in range(piece * _PIECE, end, _BLOCK):
            length = min(_BLOCK, end - begin)
            u, v = a[begin : begin + length], b[begin : begin + length]
            for i in range(0, count - 3, 4):
                p0, p1 = (
                    _pointer(rows[i], begin, a),
                    _pointer(rows[i + 1], begin, a),
                )
                p2, p3 = (
                    _pointer(rows[i + 2], begin, a),
                    _pointer(rows[i + 3], begin, a),
                )
                u0 = u1 = u2 = u3 = v0 = v1 = v2 = v3 = 0.0
                for j in range(length):
                    x, z = np.float64(u[j]), np.float64(v[j])
                    w0, w1, w2, w3 = np.float64(p0[j]), np.float64(p1[j]), np.float64(p2[j]), np.float64(p3[j])
                    u0 += w0 * x
                    u1 += w1 * x
                    u2 += w2 * x
                    u3 += w3 * x
                    v0 += w0 * z
                    v1 += w1 * z
                    v2 += w2 * z
                    v3 += w3 * z
                sums[piece, i, 0] += u0
                sums[piece, i + 1, 0] += u1
                sums[piece, i + 2, 0] += u2
                sums[piece, i + 3, 0] += u3
                sums[piece, i, 1] += v0
                sums[piece, i + 1, 1] += v1
                sums[piece, i + 2, 1] += v2
                sums[piece, i + 3, 1] += v3
            for i in range(count - count % 4, count):
                p = _pointer(rows[i], begin, a)
                u0 = v0 = 0.0
                for j in range(length):
                    w = np.float64(p[j])
                    u0 += w * np.float64(u[j])
                    v0 += w * np.float64(v[j])
                sums[piece, i, 0] += u0
                sums[piece, i, 1] += v0


def _reduced_kernel(rows: Any, coefficients: Any, g: Any, first: int, last: int, q: Any, sums: Any) -> None:
    # A block of every row is read twice, the second time from a cache.
    count = len(rows)
    for piece in range(first, last):
        end = min((piece + 1) * _PIECE, len(g))
        for begin in range(piece * _PIECE, end, _SHORT_BLOCK):
            length = min(_SHORT_BLOCK, end - begin)
            total = q[begin : begin + length]
            for j in range(length):
                total[j] = -np.float64(g[begin + j])
            for i in range(0, count - 3, 4):
                p0, p1 = _pointer(rows[i], begin, g), _pointer(rows[i + 1], begin, g)
                p2, p3 = _pointer(rows[i + 2], begin, g), _pointer(rows[i + 3], begin, g)
                c0, c1, c2, c3 = coefficients[i], coefficients[i + 1], coefficients[i + 2], coefficients[i + 3]
                for j in range(length):
                    left = c0 * np.float64(p0[j]) + c1 * np.float64(p1[j])
                    right = c2 * np.float64(p2[j]) + c3 * np.float64(p3[j])
                    total[j] -= left + right
            for i in range(count - count % 4, count):
                p, c = _pointer(rows[i], begin, g), coefficients[i]
                for j in range(length):
                    total[j] -= c * np.float64(p[j])
            for i in range(0, count - 3, 4):
                p0, p1 = _pointer(rows[i], begin, g), _pointer(rows[i + 1], begin, g)
                p2, p3 = _pointer(rows[i + 2], begin, g), _pointer(rows[i + 3], begin, g)
                s0 = s1 = s2 = s3 = 0.0
                for j in range(length):
                    s0 += np.float64(p0[j]) * total[j]
                    s1 += np.float64(p1[j]) * total[j]
                    s2 += np.float64(p2[j]) * total[j]
                    s3 += np.float64(p3[j]) * total[j]
                sums[piece, i] += s0
                sums[piece, i + 1] += s1
                sums[piece, i + 2] += s2
                sums[piece, i + 3] += s3
            for i in range(count - count % 4, count):
                p, s0 = _pointer(rows[i], begin, g), 0.0
                for j in range(length):
                    s0 += np.float64(p[j]) * total[j]
                sums[piece, i] += s0


def _combined_kernel(
    rows: Any, coefficients: Any, q: Any, scale: float, g: Any, first: int, last: int, d: Any, sums: Any
) -> None:
    count = len(rows)
    total = np.empty(_BLOCK, np.float64)
    for piece in range(first, last):
        end = min((piece + 1) * _PIECE, len(g))
        for begin in range(piece * _PIECE, end, _BLOCK):
            length = min(_BLOCK, end - begin)
            for j in range(length):
                total[j] = scale * q[begin + j]
            for i in range(0, count - 3, 4):
                p0, p1 = _pointer(rows[i], begin, g), _pointer(rows[i + 1], begin, g)
                p2, p3 = _pointer(rows[i + 2], begin, g), _pointer(rows[i + 3], begin, g)
                c0, c1, c2, c3 = coefficients[i], coefficients[i + 1], coefficients[i + 2], coefficients[i + 3]
                for j in range(length):
                    left = c0 * np.float64(p0[j]) + c1 * np.float64(p1[j])
                    right = c2 * np.float64(p2[j]) + c3 * np.float64(p3[j])
                    total[j] += left + right
            for i in range(count - count % 4, count):
                p, c = _pointer(rows[i], begin, g), coefficients[i]
                for j in range(length):
                    total[j] += c * np.float64(p[j])
            slope = 0.0
            for j in range(length):
                d[begin + j] = total[j]
                slope += np.float64(g[begin + j]) * np.float64(d[begin + j])
            sums[piece] += slope


def _alphas_kernel(sy: Float64, s_g: Float64, rho: Float64) -> Float64:
    """The coefficients of the first loop, from the products with the gradient."""
    k = len(rho)
    alphas = np.empty(k)
    for i in range(k - 1, -1, -1):
        product = -s_g[i]
        for j in range(k - 1, i, -1):
            product -= alphas[j] * sy[i, j]
        alphas[i] = product * rho[i]
    return alphas


def _deltas_kernel(sy: Float64, y_q: Float64, rho: Float64, alphas: Float64, scale: float) -> Float64:
    """The coefficients of the second loop, from the products with what the first leaves."""
    k = len(rho)
    deltas = np.empty(k)
    for i in range(k):
        product = scale * y_q[i]
        for j in range(i):
            product += deltas[j] * sy[j, i]
        deltas[i] = alphas[i] - product * rho[i]
    return deltas


def _recursion_kernel(dirs: Any, steps: Any, rho: Any, g: Any, scale: float, q: Any, d: Any) -> None:
    """The two-loop recursion as it is written, its vector in float64."""
    n, k = len(g), len(rho)
    alphas = np.empty(k)
    for j in range(n):
        q[j] = -np.float64(g[j])
    for i in range(k - 1, -1, -1):
        y, s = _pointer(dirs[i], 0, g), _pointer(steps[i], 0, g)
        product = 0.0
        for j in range(n):
            product += np.float64(s[j]) * q[j]
        alpha = product * rho[i]
        for j in range(n):
            q[j] -= alpha * np.float64(y[j])
        alphas[i] = alpha
    for j in range(n):
        q[j] *= scale
    for i in range(k):
        y, s = _pointer(dirs[i], 0, g), _pointer(steps[i], 0, g)
        product = 0.0
        for j in range(n):
            product += np.float64(y[j]) * q[j]
        delta = alphas[i] - product * rho[i]
        for j in range(n):
            q[j] += delta * np.float64(s[j])
    for j in range(n):
        d[j] = q[j]


# Line search --------------------------------------------------------------------------------------------------------------


class _Trial(NamedTuple):
    """A step length along a direction, with loss, gradient and directional derivative there."""

    t: float
    loss: float
    gradient: Tensor
    slope: float


class _Line:
    """The line through a point along a direction, and the conditions that its points meet."""

    def __init__(self, point: _Point, now: _Iterate) -> None:
        self.point, self.d = point, now.d
        self.x, self.parts = point.keep(), point.parts(now.d)
        self.start = _Trial(0.0, point.loss, point.gradient, now.slope)
        self.trials = 0
        self.at = 0.0

    def go(self, t: float) -> None:
        for x, start, part in zip(self.point.reals(), self.x, self.parts, strict=True):
            torch.add(start, part, alpha=t, out=x)
        self.at = t

    def evaluate(self, t: float) -> _Trial:
        self.go(t)
        self.point.evaluate()
        self.trials += 1
        return _Trial(t, self.point.loss, self.point.gradient, self.point.gradient.dot(self.d).item())

    def settle(self, trial: _Trial) -> None:
        """Make a trial the point that the search ends at."""
        if self.at != trial.t:
            self.go(trial.t)
        self.point.loss, self.point.gradient = trial.loss, trial.gradient

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
    line.settle(found)
    return found.t, line.trials


def _searched(line: _Line, t: float, most: int) -> _Trial:
    bracket = _bracket(line, t, most)
    if len(bracket) == 1:
        return bracket[0]
    low, close = _lower(bracket), False
    width = _largest(line.d)
    while line.trials <= most and not abs(bracket[1].t - bracket[0].t) * width < LEAST_WIDTH:
        t, close = _inside(_cubic_minimum(*bracket), bracket, close=close)
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
        if line.flat(new):
            return [new]
        if new.slope >= 0:
            return [last, new]
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
    number = np.float64 if a.gradient.dtype == torch.float64 else np.float32
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
