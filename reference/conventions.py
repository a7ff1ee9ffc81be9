"""What conventions do to one step: each takes an update, as a Spec has it, and gives one that follows the convention."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, addcmul, any_order
from stepcheck.reference.spec import HyperValues, Number, State

#: One step of one parameter, as :attr:`Spec.update` is.
Step = Callable[[Number, Number, State, HyperValues], tuple[Number, State]]

#: Averages of squares that eps stands beside, by their names.
SQUARES = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")
#: A number of steps after which no bias is left.
_MANY = 2.0**40


def but(hyper: HyperValues, **changes: Any) -> HyperValues:
    """The same options, but for these."""
    return SimpleNamespace(**{**vars(hyper), **changes})


def _ascended(g: Number, hyper: HyperValues) -> Number:
    return -g if getattr(hyper, "maximize", False) else g


def decoupled(scaled: bool) -> Callable[[Step], Step]:
    """The parameter shrinks by lr * weight_decay, or by weight_decay itself, and the gradient stays as it is."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            if hyper.weight_decay != 0:
                p = p - (hyper.lr * hyper.weight_decay if scaled else hyper.weight_decay) * p
            return update(p, g, state, but(hyper, weight_decay=0.0))

        return step

    return wrap


def decayed_after(update: Step) -> Step:
    """What the step arrives at shrinks by lr * weight_decay."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        p, after = update(p, g, state, but(hyper, weight_decay=0.0))
        return (p - hyper.lr * hyper.weight_decay * p if hyper.weight_decay != 0 else p), after

    return step


def coupled(update: Step) -> Step:
    """The decay is a part of the gradient."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        g = _ascended(g, hyper) + hyper.weight_decay * p
        return update(p, g, state, but(hyper, weight_decay=0.0, maximize=False))

    return step


def eps_placed(placed: Callable[[Number, Number, Number], Number]) -> Callable[[Step], Step]:
    """Another number beside the root: of eps, the average of squares, and its bias correction."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            _, after = update(p, g, state, hyper)
            square = next(after[name] for name in SQUARES if name in after)
            if getattr(hyper, "centered", False):
                square = addcmul(square, after["grad_avg"], after["grad_avg"], -1.0)
            corrected = 1 - hyper.betas[1] ** after["step"] if hasattr(hyper, "betas") else 1.0
            return update(p, g, state, but(hyper, eps=placed(hyper.eps, square, corrected)))

        return step

    return wrap


def inside_corrected(eps: Number, square: Number, corrected: Number) -> Number:
    """What beside the root is worth an eps inside it: sqrt(x + eps) - sqrt(x), written so that nothing cancels; x is corrected."""
    return eps / (np.sqrt(square / corrected + eps) + np.sqrt(square / corrected))


def inside_uncorrected(eps: Number, square: Number, corrected: Number) -> Number:
    """The same of the average before its bias is corrected."""
    return eps / (np.sqrt(square + eps) + np.sqrt(square)) / np.sqrt(corrected)


def inside(eps: Number, square: Number, corrected: Number) -> Number:  # noqa: ARG001 - nothing is corrected
    """The same of an average that has no bias to be corrected."""
    return eps / (np.sqrt(square + eps) + np.sqrt(square))


def beside_uncorrected(eps: Number, square: Number, corrected: Number) -> Number:  # noqa: ARG001 - whatever the square
    """What is worth an eps beside the root of the average before its bias is corrected."""
    return eps / np.sqrt(corrected)


def beside_corrected(eps: Number, square: Number, corrected: Number) -> Number:  # noqa: ARG001 - whatever the square
    """What is worth an eps beside the root of the corrected average, where the reference has it beside the uncorrected one."""
    return eps * np.sqrt(corrected)


def beside_norm(update: Step) -> Step:
    r"""Adamax divides by :math:`u_t + \epsilon`, where :math:`u_t \leftarrow \max(\beta_2 u_{t-1}, |g_t|)` is kept without eps."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        _, after = update(p, g, state, but(hyper, eps=0.0))
        m, divisor = after["exp_avg"], after["exp_inf"] + hyper.eps
        correction = 1 - hyper.betas[0] ** after["step"]
        p = any_order(
            addcdiv(p, m, divisor, -hyper.lr / correction),
            textbook=lambda: addcdiv(p, m / correction, divisor, -hyper.lr),
            folded=lambda: p - hyper.lr * m / (correction * divisor),
        )
        return p, after

    return step


def momentum_decaying(rate: float) -> Callable[[Step], Step]:
    r"""NAdam's :math:`\mu_t \leftarrow \beta_1 (1 - \frac12 0.96^{t \psi})` has another :math:`\psi` than that which is an option."""

    def wrap(update: Step) -> Step:
        return lambda p, g, state, hyper: update(p, g, state, but(hyper, momentum_decay=rate))

    return wrap


#: A decay with which no momentum is that of its beginning.
AT_ONCE = _MANY


def debiased(*averages: str) -> Callable[[Step], Step]:
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


def maximum_of_corrected(update: Step) -> Step:
    """AMSGrad keeps the largest of the averages whose bias is corrected."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        if not hyper.amsgrad:
            return update(p, g, state, hyper)
        correction = 1 - hyper.betas[1] ** (state["step"] + 1)
        p, after = update(p, g, {**state, "max_exp_avg_sq": state["max_exp_avg_sq"] * correction}, hyper)
        return p, {**after, "max_exp_avg_sq": after["max_exp_avg_sq"] / correction}

    return step


def uncorrected(update: Step) -> Step:
    """No bias is corrected."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        p, after = update(p, g, {**state, "step": state["step"] + _MANY}, hyper)
        return p, {**after, "step": state["step"] + 1}

    return step


def lr_inside(update: Step) -> Step:
    """The momentum is that of steps, lr included."""

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        g = _ascended(g, hyper)
        if hyper.weight_decay != 0:
            g = g + hyper.weight_decay * p
        bare = but(hyper, weight_decay=0.0, maximize=False)
        if hyper.momentum == 0:
            return update(p, g, state, bare)
        if "square_avg" not in state:
            return update(p, hyper.lr * g, state, but(bare, lr=1.0))
        # What is taken from a parameter does not depend on it, be it infinite.
        taken, after = update(np.zeros(p.shape), g, state, but(bare, momentum=0.0))
        buf = hyper.momentum * state["momentum_buffer"] - taken
        return p - buf, {**after, "momentum_buffer": buf}

    return step
