"""References of what ``torch.optim`` does not have and several libraries do."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import any_order, ema
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def lion(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Lion.

    .. math::
        c_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma (\operatorname{sign}(c_t) + \lambda \theta_{t-1}) \\
        m_t &\leftarrow \beta_2 m_{t-1} + (1 - \beta_2) g_t

    Initial state: :math:`m = 0`.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``exp_avg`` :math:`m`, the same shape.
        hyper: ``lr``, ``betas``, ``weight_decay``.

    Source: Chen and others, *Symbolic discovery of optimization algorithms*, NeurIPS 2023, algorithm 2.
    """
    beta1, beta2 = hyper.betas
    m, decay = state["exp_avg"], hyper.weight_decay
    sign = np.sign(ema(m, g, beta1))
    moved = any_order(p * (1 - hyper.lr * decay) - hyper.lr * sign, textbook=lambda: p - hyper.lr * (sign + decay * p))
    return moved, {"exp_avg": ema(m, g, beta2)}


def qhm(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of quasi-hyperbolic momentum.

    .. math::
        d_t &\leftarrow \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        b_t &\leftarrow \beta b_{t-1} + (1 - \beta) d_t \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma ((1 - \nu) d_t + \nu b_t)

    Initial state: :math:`b = 0`.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``momentum_buffer`` :math:`b`, the same shape.
        hyper: ``lr``, ``momentum`` :math:`\beta`, ``nu``, ``weight_decay``.

    Source: Ma and Yarats, *Quasi-hyperbolic momentum and Adam for deep learning*, ICLR 2019, equations 3 and 4.
    """
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    b = ema(state["momentum_buffer"], g, hyper.momentum)
    return p - hyper.lr * ((1 - hyper.nu) * g + hyper.nu * b), {"momentum_buffer": b}


LION = Spec(
    name="Lion",
    update=lion,
    hyper=(
        Hyper("lr", 1e-4, "parameter units", Domain()),
        Hyper("betas", (0.9, 0.99), "1", Domain(high=1.0)),
        Hyper("weight_decay", 0.0, "1 per lr", Domain()),
    ),
    buffers=(Buffer("exp_avg", "gradient units"),),
    complex=False,
    source="https://arxiv.org/abs/2302.06675",
)

QHM = Spec(
    name="QHM",
    update=qhm,
    hyper=(
        Hyper("lr", 1e-3, "parameter units per gradient unit", Domain()),
        Hyper("momentum", 0.9, "1", Domain(high=1.0)),
        Hyper("nu", 0.7, "1", Domain(high=1.0)),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
    ),
    buffers=(Buffer("momentum_buffer", "gradient units"),),
    complex=False,
    source="https://arxiv.org/abs/1810.06801",
)
