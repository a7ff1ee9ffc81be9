"""Adagrad."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, addcmul, any_order
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Adagrad.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        s_t &\leftarrow s_{t-1} + g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \frac{\gamma}{1 + (t - 1)\eta} \frac{g_t}{\sqrt{s_t} + \epsilon}

    :math:`\epsilon` stands outside the square root (Duchi et al. add :math:`\delta` outside as well; TensorFlow's
    V1 optimizer has none, optax puts it inside). The decay :math:`\eta` of the learning rate is ``torch.optim``'s own.

    Initial state: :math:`t = 0`, :math:`s_0` = ``initial_accumulator_value``; it exists from construction on.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far) and ``sum`` :math:`s`, of the shape of ``p``.
        hyper: ``lr``, ``lr_decay``, ``weight_decay``, ``initial_accumulator_value``, ``eps``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Of a sparse gradient, the elements that it does not name keep value and sum.

    Source: Duchi, Hazan, Singer, *Adaptive subgradient methods for online learning and stochastic optimization*,
    JMLR 12 (2011), the diagonal version.
    """
    t = state["step"] + 1
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    s = any_order(addcmul(state["sum"], g, g, 1.0), square_first=lambda: state["sum"] + g * g)
    lr = hyper.lr / (1 + (t - 1) * hyper.lr_decay)
    denom = np.sqrt(s) + hyper.eps
    new_p = any_order(
        addcdiv(p, g, denom, -lr),
        folded=lambda: addcdiv(p, -lr * g, denom, 1.0),
    )
    return new_p, {"step": t, "sum": s}


ADAGRAD = Spec(
    name="Adagrad",
    update=update,
    hyper=(
        Hyper("lr", 1e-2, "parameter units per update unit", Domain()),
        Hyper("lr_decay", 0.0, "1 per step", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("initial_accumulator_value", 0.0, "gradient units squared", Domain(), at_construction=True),
        Hyper("eps", 1e-10, "gradient units", Domain()),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("sum", "gradient units squared", initial=lambda h: h.initial_accumulator_value, slow=True),
    ),
    sparse="lazy",
    sparse_conflict=lambda h: "weight_decay reads every element" if h.weight_decay != 0 else None,
    source="https://jmlr.org/papers/v12/duchi11a.html",
)
