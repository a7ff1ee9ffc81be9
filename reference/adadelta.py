"""Adadelta."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcmul, any_order, ema_of_square
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Adadelta.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        v_t &\leftarrow \rho v_{t-1} + (1 - \rho) g_t^2 \\
        \Delta_t &\leftarrow \frac{\sqrt{u_{t-1} + \epsilon}}{\sqrt{v_t + \epsilon}}\, g_t \\
        u_t &\leftarrow \rho u_{t-1} + (1 - \rho) \Delta_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma \Delta_t

    :math:`\epsilon` stands inside both square roots, as in the paper. The paper has no :math:`\gamma`;
    ``torch.optim.Adadelta`` adds it with default 1, Keras with default 0.001. It does not enter :math:`u_t`.

    Initial state: :math:`t = 0` (counted, never used), both accumulators 0.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far), ``square_avg`` :math:`v`, ``acc_delta`` :math:`u`; arrays
            of the shape of ``p``.
        hyper: ``lr``, ``rho``, ``eps``, ``weight_decay``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Zeiler, *ADADELTA: an adaptive learning rate method*, 2012, algorithm 1.
    """
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    v = ema_of_square(state["square_avg"], g, hyper.rho)
    u = state["acc_delta"]
    ratio = np.sqrt(u + hyper.eps) / np.sqrt(v + hyper.eps)
    delta = any_order(
        ratio * g,
        quotient_first=lambda: np.sqrt((u + hyper.eps) / (v + hyper.eps)) * g,
        textbook=lambda: np.sqrt(u + hyper.eps) * g / np.sqrt(v + hyper.eps),
    )
    after = {
        "step": state["step"] + 1,
        "square_avg": v,
        "acc_delta": ema_of_square(u, delta, hyper.rho),
    }
    return any_order(p - hyper.lr * delta, scaled_dividend=lambda: addcmul(p, g, ratio, -hyper.lr)), after


ADADELTA = Spec(
    name="Adadelta",
    update=update,
    hyper=(
        Hyper("lr", 1.0, "1", Domain()),
        Hyper("rho", 0.9, "1", Domain(high=1.0, high_included=True)),
        Hyper("eps", 1e-6, "gradient units squared, and parameter units squared", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("square_avg", "gradient units squared", slow=True),
        Buffer("acc_delta", "parameter units squared", slow=True),
    ),
    source="https://arxiv.org/abs/1212.5701",
)
