"""Averaged SGD."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcmul, any_order, ema
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of averaged stochastic gradient descent.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda_2 \theta_{t-1} \\
        \theta_t &\leftarrow (1 - \lambda \eta_{t-1})\, \theta_{t-1} - \eta_{t-1} g_t \\
        a_t &\leftarrow (1 - \mu_{t-1})\, a_{t-1} + \mu_{t-1} \theta_t \\
        \eta_t &\leftarrow \gamma / (1 + \lambda\gamma t)^\alpha \\
        \mu_t &\leftarrow 1 / \max(1, t - t_0)

    The parameter :math:`\theta` is not the average: whoever wants that reads :math:`a` from the state. The step uses the
    :math:`\eta` that the step before it has left behind, so a change of the learning rate acts one step late, and
    averaging starts at step :math:`t_0 + 2`. :math:`\lambda` (``lambd``) decays as weight decay does; both can be set.

    Initial state: :math:`t = 0`, :math:`\eta_0 = \gamma`, :math:`\mu_0 = 1`, :math:`a_0 = 0`. The scalars :math:`\eta`
    and :math:`\mu` are kept in float32, whatever the dtype of the parameter.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step``, ``eta`` and ``mu`` (numbers) and ``ax`` :math:`a`, of the shape of ``p``.
        hyper: ``lr``, ``lambd``, ``alpha``, ``t0``, ``weight_decay``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Polyak and Juditsky, *Acceleration of stochastic approximation by averaging*, SIAM J. Control Optim. 30 (1992);
    the schedule is that of Bottou's ``asgd`` program and of Xu, *Towards optimal one pass large scale learning with
    averaged stochastic gradient descent*, 2011.
    """
    t, eta, mu, ax = state["step"] + 1, state["eta"], state["mu"], state["ax"]
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    before = p
    p = any_order(
        (1 - hyper.lambd * eta) * before - eta * g,
        folded=lambda: addcmul(before, g + hyper.lambd * before, eta, -1.0),
    )
    average = ema(ax, p, 1 - mu, weight=mu)
    after = {
        "step": t,
        "eta": hyper.lr / (1 + hyper.lambd * hyper.lr * t) ** hyper.alpha,
        "mu": 1 / np.maximum(t - hyper.t0, 1.0),
        "ax": any_order(average, copied=lambda: np.where(mu == 1, p, average)),
    }
    return p, after


ASGD = Spec(
    name="ASGD",
    update=update,
    hyper=(
        Hyper("lr", 1e-2, "parameter units per gradient unit", Domain()),
        Hyper("lambd", 1e-4, "gradient units per parameter unit", Domain()),
        Hyper("alpha", 0.75, "1", Domain()),
        Hyper("t0", 1e6, "steps", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("eta", "parameter units per gradient unit", per_parameter=True, initial=lambda h: h.lr),
        Buffer("mu", "1", per_parameter=True, initial=lambda _: 1.0),
        Buffer("ax", "parameter units", slow=True),
    ),
    source="https://doi.org/10.1137/0330046",
)
