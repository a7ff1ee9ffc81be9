"""Where eps stands: conventions of one step, as those in ``conventions``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, addcmul, any_order, ema
from stepcheck.reference.conventions import Step, ascended, but
from stepcheck.reference.spec import HyperValues, Number, State

#: Averages of squares that eps stands beside, by their names.
SQUARES = ("max_exp_avg_sq", "exp_avg_sq", "square_avg", "sum")


def eps_placed(placed: Callable[[Number, Number, Number], Number]) -> Callable[[Step], Step]:
    """Another number beside the root: of eps, the average of squares, and its bias correction."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            if hyper.eps == 0:  # stands nowhere
                return update(p, g, state, hyper)
            _, after = update(p, g, state, hyper)
            square = next(after[name] for name in SQUARES if name in after)
            corrected = 1 - hyper.betas[1] ** after["step"] if hasattr(hyper, "betas") else 1.0
            return update(p, g, state, but(hyper, eps=placed(hyper.eps, square, corrected)))

        return step

    return wrap


def inside_corrected(eps: Number, square: Number, corrected: Number) -> Number:
    """What beside the root is worth an eps inside it: sqrt(x + eps) - sqrt(x), written so that nothing cancels; x is corrected."""
    return eps / (np.sqrt(square / corrected + eps) + np.sqrt(square / corrected))


def inside_variance(update: Step) -> Step:
    """RMSprop whose eps stands inside the root, beside the variance where that is centered: rounding may leave it a little below 0."""
    plain = eps_placed(inside)(update)

    def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
        if not getattr(hyper, "centered", False):
            return plain(p, g, state, hyper)
        _, after = update(p, g, state, but(hyper, centered=False, momentum=0.0))
        g = ascended(g, hyper)
        if hyper.weight_decay != 0:
            g = g + hyper.weight_decay * p
        a = after["grad_avg"] = ema(state["grad_avg"], g, hyper.alpha)
        root = np.sqrt(addcmul(after["square_avg"], a, a, -1.0) + hyper.eps)
        if hyper.momentum == 0:
            return addcdiv(p, g, root, -hyper.lr), after
        b = addcdiv(hyper.momentum * state["momentum_buffer"], g, root, 1.0)
        return p - hyper.lr * b, {**after, "momentum_buffer": b}

    return step


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
