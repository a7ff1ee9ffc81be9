"""Adam as pure functions, in NumPy: a right one, and some that are not."""

from typing import NamedTuple

import numpy as np


class State(NamedTuple):
    """Of the list of parameters."""

    step: int
    exp_avg: list
    exp_avg_sq: list


def adam(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, inside=False):
    """Functions ``init`` and ``update``; eps stands inside the root, or beside it."""
    beta1, beta2 = betas

    def init(params):
        return State(0, [np.zeros_like(p) for p in params], [np.zeros_like(p) for p in params])

    def one(g, p, m, v, t):
        of = g.dtype.type
        g = g + of(weight_decay) * p if weight_decay else g
        m = of(beta1) * m + of(1 - beta1) * g
        v = of(beta2) * v + of(1 - beta2) * g * g
        corrected = v / of(1 - beta2**t)
        root = np.sqrt(corrected + of(eps)) if inside else np.sqrt(corrected) + of(eps)
        return of(-lr / (1 - beta1**t)) * m / root, m, v

    def update(gradients, state, params):
        t = state.step + 1
        with np.errstate(all="ignore"):
            rows = [one(*row, t) for row in zip(gradients, params, *state[1:], strict=True)]
        updates, m, v = map(list, zip(*rows, strict=True))
        return updates, State(t, m, v)

    return init, update


def wrong(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """With eps inside the root."""
    return adam(lr, betas, eps, weight_decay, inside=True)


def draws(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
    """It draws a random number in each step."""
    init, update = adam(lr, betas, eps, weight_decay)
    return init, lambda gradients, state, params: (np.random.rand(), update(gradients, state, params))[1]  # noqa: NPY002


def by_place(lr=1e-3, /):
    """Its option has no name."""


def no_pair(lr=1e-3):
    """It makes nothing."""
