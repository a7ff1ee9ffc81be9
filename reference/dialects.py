"""Conventions in which implementations of one optimizer differ, as variants of its Spec.

What ``torch.optim`` does is the reference. A variant is not wrong where it is meant: its library documents it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.reference.spec import HyperValues, Number, Spec, State

#: One step of one parameter, as :attr:`Spec.update` is.
Step = Callable[[Number, Number, State, HyperValues], tuple[Number, State]]

#: Averages of squares that eps stands beside, by their names.
_SQUARES = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
#: A number of steps after which no bias is left.
_MANY = 2.0**40


@dataclass(frozen=True)
class Dialect:
    """One convention.

    Attributes:
        kind: what it is about; of one kind, an implementation follows one.
        words: what it does, to follow "with".
        wrap: an update that follows it, made of one that does not.
        of: whether an optimizer has what it is about.
        initial: what it fills buffers with before the first step, by name, where that is another value.
    """

    kind: str
    words: str
    of: Callable[[Spec], bool]
    wrap: Callable[[Step], Step] = lambda update: update
    initial: Callable[[Spec], dict[str, float]] = lambda _: {}

    def applied(self, spec: Spec) -> Spec:
        """The optimizer in this dialect."""
        started = self.initial(spec)
        buffers = tuple(replace(b, initial=_always(started[b.name])) if b.name in started else b for b in spec.buffers)
        return replace(spec, update=self.wrap(spec.update), buffers=buffers)


def _always(value: float) -> Callable[[HyperValues], float]:
    return lambda _: value


def dialects(spec: Spec) -> Iterator[Dialect]:
    """The dialects that an optimizer may be written in."""
    if spec.elementwise and not spec.closure:
        yield from (d for d in _DIALECTS if d.of(spec))


def with_options(kind: str, words: str, **values: Any) -> Dialect:
    """Other values of options than those that the reference is given."""

    def wrap(update: Step) -> Step:
        return lambda p, g, state, hyper: update(p, g, state, _but(hyper, **values))

    return Dialect(kind, words, lambda _: True, wrap)


def _but(hyper: HyperValues, **changes: Any) -> HyperValues:
    return SimpleNamespace(**{**vars(hyper), **changes})


def _has(*names: str) -> Callable[[Spec], bool]:
    """Whether an optimizer has all these options or buffers."""

    def of(spec: Spec) -> bool:
        return {*names} <= {h.name for h in spec.hyper} | {b.name for b in spec.buffers}

    return of


def _ascended(g: Number, hyper: HyperValues) -> Number:
    return -g if getattr(hyper, "maximize", False) else g


def _decoupled(scaled: bool) -> Callable[[Step], Step]:
    """The parameter shrinks by lr * weight_decay, or by weight_decay itself, and the gradient stays as it is."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            if hyper.weight_decay != 0:
                p = p - (hyper.lr * hyper.weight_decay if scaled else hyper.weight_decay) * p
            return update(p, g, state, _but(hyper, weight_decay=0.0))

        return step

    return wrap


def _coupled(update: Step) -> Step:
    """The decay is a part of the gradient."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        g = _ascended(g, hyper) + hyper.weight_decay * p
        return update(p, g, state, _but(hyper, weight_decay=0.0, maximize=False))

    return step


def _eps(placed: Callable[[Number, Number, Number], Number]) -> Callable[[Step], Step]:
    """Another number beside the root: of eps, the average of squares, and its bias correction."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            _, after = update(p, g, state, hyper)
            square = next(after[name] for name in _SQUARES if name in after)
            corrected = 1 - hyper.betas[1] ** after["step"] if hasattr(hyper, "betas") else 1.0
            return update(p, g, state, _but(hyper, eps=placed(hyper.eps, square, corrected)))

        return step

    return wrap


def _inside_corrected(eps: Number, square: Number, corrected: Number) -> Number:
    return eps / (np.sqrt(square / corrected + eps) + np.sqrt(square / corrected))


def _inside_uncorrected(eps: Number, square: Number, corrected: Number) -> Number:
    return eps / (np.sqrt(square + eps) + np.sqrt(square)) / np.sqrt(corrected)


def _inside(eps: Number, square: Number, corrected: Number) -> Number:  # noqa: ARG001 - nothing is corrected
    return eps / (np.sqrt(square + eps) + np.sqrt(square))


def _beside_uncorrected(eps: Number, square: Number, corrected: Number) -> Number:  # noqa: ARG001 - whatever the square
    return eps / np.sqrt(corrected)


def _debiased(*averages: str) -> Callable[[Step], Step]:
    """Averages are kept without their bias; the first value of each is what it is the average of."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            t = state["step"]
            weights = {name: hyper.betas[name != "exp_avg"] for name in averages}
            kept = {name: state[name] * (1 - beta**t) for name, beta in weights.items()}
            p, after = update(p, g, {**state, **kept}, hyper)
            return p, {**after, **{name: after[name] / (1 - beta ** (t + 1)) for name, beta in weights.items()}}

        return step

    return wrap


def _uncorrected(update: Step) -> Step:
    """No bias is corrected."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        p, after = update(p, g, {**state, "step": state["step"] + _MANY}, hyper)
        return p, {**after, "step": state["step"] + 1}

    return step


def _lr_inside(update: Step) -> Step:
    """The momentum is that of steps, lr included."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        g = _ascended(g, hyper)
        if hyper.weight_decay != 0:
            g = g + hyper.weight_decay * p
        bare = _but(hyper, weight_decay=0.0, maximize=False)
        if hyper.momentum == 0:
            return update(p, g, state, bare)
        if "square_avg" not in state:
            return update(p, hyper.lr * g, state, _but(bare, lr=1.0))
        taken, after = update(0.0 * p, g, state, _but(bare, momentum=0.0))
        buf = hyper.momentum * state["momentum_buffer"] - taken
        return p - buf, {**after, "momentum_buffer": buf}

    return step


def _squares(spec: Spec) -> tuple[str, ...]:
    return tuple(b.name for b in spec.buffers if b.name in _SQUARES)


def _adds_decay(spec: Spec) -> bool:
    """Whether the decay is a part of the gradient."""
    return _has("lr", "weight_decay")(spec) and spec.name not in ("AdamW", "Adafactor", "Muon")


_ADAM = _has("betas", "eps", "step", "exp_avg", "exp_avg_sq")


def _corrects(spec: Spec) -> bool:
    """Whether eps is added to the root of a corrected average."""
    return _ADAM(spec) and spec.name != "RAdam"


_DIALECTS = (
    Dialect("decay", "weight decay decoupled from the gradient, p - lr * weight_decay * p", _adds_decay, _decoupled(True)),
    Dialect("decay", "weight decay that is not scaled by lr, p - weight_decay * p", _has("weight_decay"), _decoupled(False)),
    Dialect("decay", "weight decay added to the gradient", lambda s: s.name == "AdamW", _coupled),
    Dialect("eps", "eps beside the root of the average before its bias is corrected", _corrects, _eps(_beside_uncorrected)),
    Dialect("eps", "eps inside the root, beside the corrected average", _corrects, _eps(_inside_corrected)),
    Dialect("eps", "eps inside the root, beside the average before its bias is corrected", _corrects, _eps(_inside_uncorrected)),
    Dialect("eps", "eps inside the root", lambda s: _has("eps")(s) and s.name in ("RMSprop", "Adagrad", "RAdam"), _eps(_inside)),
    Dialect("averages", "averages that are kept debiased", _ADAM, _debiased("exp_avg", "exp_avg_sq")),
    Dialect("averages", "an exp_avg that is kept debiased", _ADAM, _debiased("exp_avg")),
    Dialect("averages", "an exp_avg_sq that is kept debiased", _ADAM, _debiased("exp_avg_sq")),
    Dialect("averages", "no bias correction", lambda s: s.name in ("Adam", "AdamW"), _uncorrected),
    Dialect(
        "start", "averages of squares that start at 1", lambda s: s.name in ("RMSprop", "Adagrad", "Adadelta"),
        initial=lambda s: dict.fromkeys(_squares(s), 1.0),
    ),
    Dialect("start", "a momentum that starts at 0", lambda s: s.name == "SGD", initial=lambda _: {"momentum_buffer": 0.0}),
    Dialect("lr", "lr inside the momentum", _has("lr", "momentum", "momentum_buffer", "weight_decay"), _lr_inside),
)  # fmt: skip
