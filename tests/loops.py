"""What the tests of L-BFGS share: its direction as it is written, and where its state is."""

import torch


def flat(params):
    return torch.cat([p.detach().reshape(-1) for p in params])


def state_of(optimizer):
    return optimizer.state[optimizer.param_groups[0]["params"][0]]


def two_loops(g, state):
    """The direction of a state at a gradient, in float64."""
    q, alphas = -g.double(), []
    pairs = list(zip(*([x.double() for x in state[n]] for n in ("old_dirs", "old_stps", "ro")), strict=True))
    for y, s, rho in reversed(pairs):
        alphas.append(rho * s.dot(q))
        q = q - alphas[-1] * y
    q = q * float(state["H_diag"])
    for (y, s, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q = q + s * (alpha - rho * y.dot(q))
    return q
