"""What conventions do to one step: each takes an update, as a Spec has it, and gives one that follows the convention."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.reference.arithmetic import any_order
from stepcheck.reference.spec import HyperValues, Number, State

#: One step of one parameter, as :attr:`Spec.update` is.
Step = Callable[[Number, Number, State, HyperValues], tuple[Number, State]]

#: A number of steps after which no bias is left.
_MANY = 2.0**40


def but(hyper: HyperValues, **changes: Any) -> HyperValues:
    """The same options, but for these."""
    return SimpleNamespace(**{**vars(hyper), **changes})


def ascended(g: Number, hyper: HyperValues) -> Number:
    """The gradient, turned where the step ascends."""
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
        g = ascended(g, hyper) + hyper.weight_decay * p
        return update(p, g, state, but(hyper, weight_decay=0.0, maximize=False))

    return step


def momentum_decaying(rate: float) -> Callable[[Step], Step]:
    r"""NAdam's :math:`\mu_t \leftarrow \beta_1 (1 - \frac12 0.96^{t \psi})` has another :math:`\psi` than that which is an option."""

    def wrap(update: Step) -> Step:
        return lambda p, g, state, hyper: update(p, g, state, but(hyper, momentum_decay=rate))

    return wrap


def constant_momentum(update: Step) -> Step:
    r"""NAdam's :math:`\mu_t` is :math:`\beta_1` from the first step on, and the product of all of them :math:`\beta_1^t`, of the :math:`\beta_1` of that step."""
    step = momentum_decaying(_MANY)(update)
    return lambda p, g, state, hyper: step(p, g, {**state, "mu_product": hyper.betas[0] ** state["step"]}, hyper)


def debiased(*averages: str) -> Callable[[Step], Step]:
    """Averages are kept without their bias; the first value of each is what it is the average of."""

    def wrap(update: Step) -> Step:
        def step(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
            t = state["step"]
            weights = {name: hyper.betas[name != "exp_avg"] for name in averages}
            kept = {name: state[name] * (1 - beta**t) for name, beta in weights.items()}
            p, after = update(p, g, {**state, **kept}, hyper)
            means = {name: _mean(state[name], after[name], beta, t + 1) for name, beta in weights.items()}
            return p, {**after, **means}

        return step

    return wrap


def _mean(before: Number, after: Number, beta: float, t: Number) -> Number:
    r"""An average without its bias; or as the mean before it, moved by :math:`1 - \hat\beta_t`, where :math:`\hat\beta_t = \frac{\beta^t - \beta}{\beta^t - 1}`."""
    mean = after / (1 - beta**t)

    def moved() -> Number:
        share = (1 - (beta**t - beta) / (beta**t - 1)) * (1 - beta**t) / (1 - beta)
        return before + (mean - before) * share

    return any_order(mean, folded=moved)


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
        g = ascended(g, hyper)
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
