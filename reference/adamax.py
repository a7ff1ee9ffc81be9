"""Adamax."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, any_order, ema
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Adamax, Adam in the infinity norm.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        u_t &\leftarrow \max(\beta_2 u_{t-1}, |g_t| + \epsilon) \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma}{1 - \beta_1^t} \frac{m_t}{u_t}

    The paper has no :math:`\epsilon`; ``torch.optim.Adamax`` adds it to :math:`|g_t|` inside the maximum, so it enters
    the stored norm. Keras and optax add it to :math:`u_t` when dividing instead.

    Initial state: :math:`t = 0`, both buffers 0.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far), ``exp_avg`` :math:`m`, ``exp_inf`` :math:`u`; arrays of the
            shape of ``p``.
        hyper: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 2.
    """
    beta1, beta2 = hyper.betas
    t = state["step"] + 1
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    m = ema(state["exp_avg"], g, beta1)
    u = np.maximum(beta2 * state["exp_inf"], np.abs(g) + hyper.eps)
    correction = 1 - beta1**t
    new_p = any_order(
        addcdiv(p, m, u, -hyper.lr / correction),
        textbook=lambda: addcdiv(p, m / correction, u, -hyper.lr),
    )
    return new_p, {"step": t, "exp_avg": m, "exp_inf": u}


ADAMAX = Spec(
    name="Adamax",
    update=update,
    hyper=(
        Hyper("lr", 2e-3, "parameter units per update unit", Domain()),
        Hyper("betas", (0.9, 0.999), "1", Domain(high=1.0)),
        Hyper("eps", 1e-8, "gradient units", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("exp_avg", "gradient units"),
        Buffer("exp_inf", "gradient units", slow=True),
    ),
    source="https://arxiv.org/abs/1412.6980",
)
