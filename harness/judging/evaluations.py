"""A step that evaluates its function several times (LBFGS), judged evaluation by evaluation.

The reference is a coroutine. It runs on error-bounded numbers from the subject's own state before the step; each point that
it asks for is compared with the point at which the subject called its closure, and it is then sent what the subject's
closure returned there, exactly. So no error of one evaluation reaches the next, and one that is misplaced is found at once.

What a step overwrites or keeps is not seen until it ends, but what it keeps is: the pairs, and the last direction and step
length. The reference goes on with those where they agree with its own, so errors do not pile up from iteration to iteration.
Nor do they from trial to trial of a line search: the point of a trial says how long its step was. Where the learning rate is a
tensor, a length may at any trial be rounded to its dtype again, and is not followed like that.
"""

from __future__ import annotations

import functools
import itertools
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import Array, Comparison, ratios, reals
from stepcheck.harness.numbers.decisions import outcomes
from stepcheck.harness.numbers.formats import SCALARS64, Arithmetic
from stepcheck.harness.numbers.observed import POINT, seen
from stepcheck.harness.numbers.options import bounded_option
from stepcheck.harness.play.recording import Evaluation
from stepcheck.reference.lbfgs import LBFGS
from stepcheck.reference.spec import PARAMETER, HyperValues, State

#: The field of a comparison of the point at which the closure was called.
EVALUATION = "evaluation"
#: Combinations of open decisions that are tried; a step with more of them is undetermined.
MOST_OUTCOMES = 32
#: Numbers kept to tell sources of error apart, for one vector; beyond, its error is one bound for each element.
MOST_SOURCES = 1 << 18

_COUNTS = ("n_iter", "func_evals")
_NUMBERS = ("t", "H_diag", "prev_loss")
_VECTORS = ("d", "prev_flat_grad")
#: Lists of vectors or numbers, with an entry for each pair.
LISTS = ("old_dirs", "old_stps", "ro")
_FIELDS = (*_COUNTS, *_VECTORS, *_NUMBERS, *LISTS)


def assembled(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state of LBFGS as the recording has it: lists put together from ``name[0]``, ``name[1]``, ..., empty ones of nothing."""
    result: dict[str, Any] = {name: state[name] for name in (*_COUNTS, *_VECTORS, *_NUMBERS) if name in state}
    for name in LISTS:
        entries = itertools.takewhile(lambda key: key in state, (f"{name}[{n}]" for n in itertools.count()))
        result[name] = [state[key] for key in entries]
    result = {name: reals(value) if name in _VECTORS else value for name, value in result.items()}
    return result | {name: float(reals(result[name])[0]) for name in (*_COUNTS, *_NUMBERS) if name in result}


def judge_step(
    arithmetic: Arithmetic,
    hyper: HyperValues,
    x: Array,
    before: Mapping[str, Any],
    evaluations: Sequence[Evaluation],
    x_after: Array,
    after: Mapping[str, Any],
    held: Arithmetic = SCALARS64,
) -> list[Comparison]:
    """One step of LBFGS compared with the reference, evaluation by evaluation.

    Args:
        arithmetic: how the subject computes with elements.
        hyper: plain numbers, as ``Spec.hyper_values`` gives them.
        x: all parameters before the step, flat; of a complex one, real and imaginary parts.
        before: the subject's state, with ``None`` or nothing for what does not exist.
        evaluations: the calls of the closure, in order.
        x_after: all parameters after the step.
        after: the subject's state then.
        held: the arithmetic of the hyperparameters.

    Returns:
        The evaluations, then, unless one of them is off, the state and the parameter. Of the outcomes of the decisions that
        rounding leaves open it is the first that the step agrees with; if there is none, that which it follows furthest.
    """
    with np.errstate(all="ignore"):
        step = _Step(_element_arithmetic(arithmetic), hyper, x, before, evaluations, x_after, after, held)
        missing = step.missing()
        if missing:
            return missing
        best, best_rank, tried = list[Comparison](), (-1, 0.0), 0
        for compared in outcomes(step.compare, MOST_OUTCOMES):
            tried += 1
            worst = max(_worst(c) for c in compared)
            if worst <= 1:
                return compared
            rank = (len(compared), -worst)
            if rank > best_rank:
                best, best_rank = compared, rank
        return best if tried < MOST_OUTCOMES else [_undetermined(c) for c in best]


def _worst(c: Comparison) -> float:
    return np.inf if c.problem else float(ratios(c.actual, c.predicted).max(initial=0.0))


def _undetermined(c: Comparison) -> Comparison:
    return replace(c, predicted=_unbounded(c.predicted), problem="")


def _unbounded(b: Bounded) -> Bounded:
    return Bounded(b.value, np.full(np.shape(b.value), np.inf), b.arithmetic)


@functools.cache
def _element_arithmetic(arithmetic: Arithmetic) -> Arithmetic:
    """A number divided by a tensor is a product with its reciprocal; in a narrow format, alpha of ``add_`` is rounded to it.

    Numbers of the line search may be Python's own: the square of a slope that leaves float32 need not become infinite.
    """
    entry = None if arithmetic.inner is None else arithmetic.format
    return replace(arithmetic, orders=arithmetic.orders | {"written", "reciprocal"}, entry=entry, overflow=False)


@functools.cache
def _without_overflow(arithmetic: Arithmetic) -> Arithmetic:
    return replace(arithmetic, overflow=False)


class _Held(Mapping[str, Any]):
    """What the subject was seen to hold, by name: of several, the one whose turn it is in the order that a step makes them."""

    def __init__(self) -> None:
        self.queues: dict[str, deque[Any]] = {}

    def expect(self, name: str, values: Sequence[Any], *, unseen: int = 0) -> None:
        """The next values under a name, after some that nobody saw."""
        self.queues.setdefault(name, deque()).extend([None] * unseen + list(values))

    def only(self, name: str, value: Any) -> None:
        """The next value under a name, instead of any that has not been asked for."""
        self.queues[name] = deque([value])

    def __contains__(self, name: object) -> bool:
        queue = self.queues.get(str(name))
        if queue and queue[0] is None:
            queue.popleft()
            return False
        return bool(queue)

    def __getitem__(self, name: str) -> Any:
        return self.queues[name].popleft()

    def __iter__(self) -> Iterator[str]:
        return iter(self.queues)

    def __len__(self) -> int:
        return len(self.queues)


class _Followed(Bounded):
    """A vector or number with a bound for each source of its error, which linear operations carry on by itself.

    An error bound alone forgets where an error came from. Each pair of the two-loop recursion takes out of a vector what it
    has put in, so what an error does there nearly cancels, but its bound doubles and more: by a thousand in five pairs.

    Attributes:
        forms: how each element depends on sources of error, each of them between -1 and 1; sources along the last axis.
        reach: how far those lead together, in each element.
        rest: what comes on top, in each element by itself.
        sources: how many there are by now, for all numbers that share them.
    """

    __slots__ = ("forms", "reach", "rest", "sources")

    def __init__(self, naive: Bounded, forms: Array, reach: Any, rest: Any, sources: list[int]) -> None:
        super().__init__(naive.value, np.minimum(reach + rest, naive.error), naive.arithmetic, naive.origin)
        self.forms, self.reach, self.rest, self.sources = forms, reach, rest, sources

    def __neg__(self) -> Bounded:
        return _Followed(super().__neg__(), -self.forms, self.reach, self.rest, self.sources)

    def __add__(self, other: Any) -> Bounded:
        return self._sum(super().__add__(other), other, np.add)

    def __sub__(self, other: Any) -> Bounded:
        return self._sum(super().__sub__(other), other, np.subtract)

    def __mul__(self, other: Any) -> Bounded:
        factor = np.asarray(other.value if isinstance(other, Bounded) else other, np.float64)
        if not np.ndim(self.value):
            self._name_rest()
        size = np.abs(factor)
        carried = factor[..., None] * self.forms, size * self.reach, size * self.rest, size * self.error
        return self._result(super().__mul__(other), *carried)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        result = super().__array_function__(function, types, args, kwargs)
        if function is not np.dot or args[1] is not self or isinstance(args[0], _Followed):
            return result
        self._name_rest()
        factor, size = args[0].value, np.abs(args[0].value)
        forms = factor @ self.forms
        return self._result(result, forms, np.abs(forms).sum(), size @ self.rest, size @ self.error)

    def as_stored(self, name: str) -> Bounded:
        return Bounded(self.value, self.error, self.arithmetic, self.origin).as_stored(name)

    def _sum(self, naive: Bounded, other: Any, operation: Any) -> Bounded:
        if not isinstance(other, _Followed):
            return self._result(naive, self.forms, self.reach, self.rest, self.error)
        width = max(self.forms.shape[-1], other.forms.shape[-1])
        forms = operation(_widened(self.forms, width), _widened(other.forms, width))
        return self._result(naive, forms, np.abs(forms).sum(-1), self.rest + other.rest, self.error + other.error)

    def _result(self, naive: Bounded, forms: Array, reach: Any, rest: Any, carried: Any) -> Bounded:
        """The result of an operation: ``naive``, where ``carried`` of its error is what ``forms`` and ``rest`` stand for."""
        if not np.all(np.isfinite(naive.error)):
            return naive
        # The last term is the rounding of the forms themselves.
        local = np.maximum(naive.error - carried, 0.0) + (np.size(self.value) + 8) * 2.0**-52 * naive.error
        return _Followed(naive, forms, reach, rest + local, self.sources)

    def _name_rest(self) -> None:
        """Make sources of what is on top, so that what is computed from it twice can cancel."""
        new = np.size(self.rest)
        if not np.any(self.rest) or np.size(self.value) * (self.sources[0] + new) > MOST_SOURCES:
            return
        old, self.sources[0] = self.sources[0], self.sources[0] + new
        self.forms = _widened(self.forms, old + new)
        self.forms[..., old:] = np.diag(self.rest) if np.ndim(self.rest) else self.rest
        self.reach, self.rest = self.reach + self.rest, np.zeros_like(self.rest)


def _widened(forms: Array, width: int) -> Array:
    """Forms with as many sources, those that are new without effect."""
    if forms.shape[-1] == width:
        return forms
    wide = np.zeros((*forms.shape[:-1], width))
    wide[..., : forms.shape[-1]] = forms
    return wide


class _Gradient(Bounded):
    """A gradient; it starts the two-loop recursion."""

    __slots__ = ()

    def followed(self) -> Bounded:
        nothing = np.zeros(self.value.size)
        return _Followed(self, nothing[:, None][:, :0], nothing, nothing, [0])


@dataclass
class _Step:
    arithmetic: Arithmetic
    hyper: HyperValues
    x: Array
    before: Mapping[str, Any]
    evaluations: Sequence[Evaluation]
    x_after: Array
    after: Mapping[str, Any]
    held: Arithmetic

    def missing(self) -> list[Comparison]:
        """What makes the step impossible to follow: a state that lacks what earlier iterations left, or has the wrong size."""
        problems = list[Comparison]()
        n, ro = self.x.size, self.before.get("ro")
        if not self.evaluations:
            problems.append(_problem(EVALUATION, "the closure was never called"))
        for name in _FIELDS if _get(self.before, "n_iter", 0) else ():
            value = self.before.get(name)
            if value is None:
                problems.append(_problem(name, f"{name} does not exist before the step"))
            elif name in _VECTORS and np.size(value) != n:
                problems.append(_problem(name, f"{name} has {np.size(value)} elements where the parameters have {n}"))
            elif name in ("old_dirs", "old_stps") and any(np.size(v) != n for v in value):
                problems.append(_problem(name, f"{name} holds vectors that are not as long as the parameters"))
            elif name in ("old_dirs", "old_stps") and ro is not None and len(value) != len(ro):
                problems.append(_problem(name, f"{name} holds {len(value)} pairs, ro {len(ro)}"))
        return problems

    def compare(self) -> list[Comparison]:
        """What the step did against what the reference asks for, under one choice of outcomes, up to what cannot be right."""
        held, compared = self._held(), list[Comparison]()
        with seen(held, self.arithmetic):
            step = LBFGS.update(self._elements(self.x), self._state(), self._hyper())
            point = next(step)
            for n, evaluation in enumerate(self.evaluations):
                compared.append(Comparison(EVALUATION, evaluation.point, _exploded(point), self.x.shape))
                if not _worst(compared[-1]) <= 1:
                    return compared
                if n and self.hyper.line_search_fn is None:
                    held.expect(PARAMETER, [evaluation.point])
                if not self._lr_is_tensor:
                    held.only(POINT, evaluation.point)
                try:
                    gradient = _Gradient(np.asarray(evaluation.gradient, np.float64), 0.0, self.arithmetic)
                    point = step.send((self._loss(evaluation.loss), gradient))
                except StopIteration as stop:
                    if n + 1 < len(self.evaluations):
                        compared.append(_count_problem(len(self.evaluations), n + 1))
                        return compared
                    return compared + self._final(*stop.value)
        compared.append(_count_problem(len(self.evaluations), None))
        return compared

    # The subject's numbers as error-bounded ones.

    def _elements(self, x: Any) -> Bounded:
        return Bounded(np.asarray(x, np.float64), 0.0, self.arithmetic)

    def _rounded(self, x: float) -> Bounded:
        """A Python number that is at times compared with a tensor, and rounded to its format then."""
        exact = self.arithmetic.format.represents(np.asarray(x, np.float64))
        error = 0.0 if exact else self.arithmetic.unit * abs(x) + self.arithmetic.format.underflow
        return Bounded(np.float64(x), error, SCALARS64)

    _loss = _rounded

    @property
    def _lr_is_tensor(self) -> bool:
        return "lr" in getattr(self.hyper, "tensors", ())

    def _hyper(self) -> SimpleNamespace:
        tolerances = {
            name: self._tolerance(getattr(self.hyper, name)) for name in ("tolerance_grad", "tolerance_change")
        }
        lr = bounded_option(self.hyper.lr, self.held, tensor=self._lr_is_tensor)
        if self._lr_is_tensor:
            # A length made from it may be a Python number by then: what leaves float32 need not become infinite.
            lr.arithmetic = _without_overflow(lr.arithmetic)
        return SimpleNamespace(**{**vars(self.hyper), "lr": lr, **tolerances})

    def _tolerance(self, x: float) -> Bounded:
        rounded = self._rounded(x)
        return Bounded(rounded.value, rounded.error + bounded_option(x, self.held).error, SCALARS64)

    def _state(self) -> State:
        state: State = {name: int(_get(self.before, name, 0)) for name in _COUNTS}
        if state["n_iter"]:
            state |= {name: self._elements(self.before[name]) for name in _VECTORS}
            # Numbers may be Python's own, and are rounded once they meet elements.
            state |= {name: Bounded(np.float64(self.before[name]), 0.0, SCALARS64) for name in _NUMBERS}
            state |= {name: [self._elements(v) for v in self.before[name]] for name in LISTS}
        return state

    def _held(self) -> _Held:
        held = _Held()
        earlier = int(_get(self.before, "n_iter", 0))
        iterations = int(_get(self.after, "n_iter", 0)) - earlier
        if iterations <= 0 or any(self.after.get(name) is None for name in _FIELDS):
            return held
        pairs = self._new_pairs()
        if np.size(self.after["d"]) == self.x.size:
            held.expect("d", [np.asarray(self.after["d"], np.float64)], unseen=iterations - 1)
        t = np.asarray(self.after["t"], np.float64)
        # Another t is a Python number, known exactly as it is, and is rounded where it enters.
        if self.arithmetic.format.represents(t):
            held.expect("t", [t], unseen=iterations - 1)
        if pairs:
            held.expect("H_diag", [np.float64(self.after["H_diag"])], unseen=pairs - 1)
            for name in LISTS:
                held.expect(name, [np.asarray(v, np.float64) for v in self.after[name][-pairs:]])
        return held

    def _new_pairs(self) -> int:
        """How many of the pairs after the step were made in it: those before it stand in front of them, the oldest gone.

        None, if the history is full of new ones: it is then not known how many more were made and dropped.
        """
        old, new = self.before.get("ro") or [], self.after["ro"]
        lengths = {len(self.after[name]) for name in LISTS}
        sizes = {np.size(v) for name in ("old_dirs", "old_stps") for v in self.after[name]}
        if len(lengths) > 1 or sizes - {self.x.size}:
            return 0
        most = min(int(self.after["n_iter"]) - int(_get(self.before, "n_iter", 0)), len(new))
        for made in range(most + 1):
            kept = len(new) - made
            if kept <= len(old) and all(a == b for a, b in zip(old[len(old) - kept :], new, strict=False)):
                return made if kept or len(new) < self.hyper.history_size else 0
        return 0

    # The state and the parameter after the step.

    def _final(self, x: Bounded, state: State) -> list[Comparison]:
        fields = [self._field(name, state[name]) for name in _FIELDS if state.get(name) is not None]
        fields.append(Comparison(PARAMETER, self.x_after, _exploded(x), self.x.shape))
        return fields

    def _field(self, name: str, predicted: Any) -> Comparison:
        actual = self.after.get(name)
        if actual is None:
            return _problem(name, f"{name} does not exist after the step")
        if name in LISTS:
            if len(actual) != len(predicted):
                return _problem(name, f"{name} holds {len(actual)} pairs, not {len(predicted)}")
            if not predicted:
                return Comparison(name, np.empty(0), Bounded(np.empty(0), np.empty(0), self.arithmetic), (0,))
            expected = _joined(predicted)
            shape = (len(predicted),) if name == "ro" else (len(predicted), self.x.size)
        else:
            expected = _exploded(predicted if isinstance(predicted, Bounded) else self._elements(predicted))
            shape = np.shape(expected.value) if name in _VECTORS else ()
        flat = _flat(actual if name in LISTS else [actual])
        if flat.size != expected.value.size:
            return _problem(name, f"{name} has {flat.size} elements, not {expected.value.size}")
        return Comparison(name, flat, expected, shape)


def _get(state: Mapping[str, Any], name: str, default: int) -> Any:
    value = state.get(name)
    return default if value is None else value


def _flat(values: Sequence[Any]) -> Array:
    return np.concatenate([np.asarray(v, np.float64).reshape(-1) for v in values])


def _exploded(b: Bounded) -> Bounded:
    """The same number, flat, with an error for each element."""
    value = np.reshape(np.asarray(b.value, np.float64), -1)
    return Bounded(value, np.broadcast_to(np.reshape(b.error, -1), value.shape), b.arithmetic)


def _joined(parts: Sequence[Bounded]) -> Bounded:
    flat = [_exploded(p) for p in parts]
    return Bounded(
        np.concatenate([p.value for p in flat]), np.concatenate([p.error for p in flat]), parts[0].arithmetic
    )


def _problem(field: str, problem: str) -> Comparison:
    nothing = Bounded(np.zeros(1), np.zeros(1), SCALARS64)
    return Comparison(field, np.full(1, np.inf), nothing, (), problem)


def _count_problem(actual: int, expected: int | None) -> Comparison:
    wanted = f"{expected} were due" if expected is not None else "more were due"
    return _problem(EVALUATION, f"the closure was called {actual} times where {wanted}")
