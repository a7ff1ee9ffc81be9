"""RAdam, Adam with its variance rectified."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, any_order, ema, ema_of_square
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of RAdam.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \quad\text{(or, decoupled, }
            \theta' \leftarrow (1 - \gamma\lambda)\,\theta_{t-1}) \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \hat m_t &\leftarrow m_t / (1 - \beta_1^t) \\
        \rho_\infty &\leftarrow 2 / (1 - \beta_2) - 1, \qquad
        \rho_t \leftarrow \rho_\infty - 2 t \beta_2^t / (1 - \beta_2^t) \\
        \theta_t &\leftarrow \theta' - \gamma \hat m_t \begin{cases}
            r_t \sqrt{1 - \beta_2^t} / (\sqrt{v_t} + \epsilon) & \rho_t > 5 \\
            1 & \text{otherwise} \end{cases} \\
        r_t &= \sqrt{\frac{(\rho_t - 4)(\rho_t - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho_t}}

    The threshold is 5, as in the authors' program; the paper's algorithm writes 4. :math:`\epsilon` is added to
    :math:`\sqrt{v_t}` before the bias is corrected (the authors' program does so as well; the paper has none). Where
    :math:`\rho_t` is within rounding of the threshold, either branch is right.

    Initial state: :math:`t = 0`, both averages 0.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far), ``exp_avg`` :math:`m`, ``exp_avg_sq`` :math:`v`, of the shape
            of ``p``.
        hyper: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``decoupled_weight_decay``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Liu et al., *On the variance of the adaptive learning rate and beyond*, ICLR 2020, algorithm 2, and
    https://github.com/LiyuanLucasLiu/RAdam for the threshold.
    """
    beta1, beta2 = hyper.betas
    t = state["step"] + 1
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        if hyper.decoupled_weight_decay:
            decay, undecayed = hyper.lr * hyper.weight_decay, p
            p = any_order((1 - decay) * p, textbook=lambda: undecayed - decay * undecayed)
        else:
            g = g + hyper.weight_decay * p
    m = ema(state["exp_avg"], g, beta1)
    v = ema_of_square(state["exp_avg_sq"], g, beta2)

    correction1, correction2 = 1 - beta1**t, 1 - beta2**t
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * t * beta2**t / correction2
    rectified = rho > 5
    rho = np.where(rectified, rho, 6.0)  # any number above 5: not used
    r = np.sqrt((rho - 4) * (rho - 2) * rho_inf / ((rho_inf - 4) * (rho_inf - 2) * rho))
    decayed, denom = p, np.sqrt(v) + hyper.eps
    root = any_order(np.sqrt(correction2) / denom, reciprocal=lambda: 1 / denom * np.sqrt(correction2))
    p_rectified = any_order(
        decayed - m / correction1 * hyper.lr * root * r,
        folded=lambda: decayed - m * (1 / (denom / (np.sqrt(correction2) * hyper.lr * r / correction1))),
        scaled_dividend=lambda: addcdiv(decayed, m, denom, -hyper.lr * r * np.sqrt(correction2) / correction1),
        textbook=lambda: decayed - hyper.lr * r * (m / correction1) / (denom / np.sqrt(correction2)),
    )
    p_plain = any_order(
        decayed - m / correction1 * hyper.lr,
        folded=lambda: decayed - m * (hyper.lr / correction1),
    )
    return np.where(rectified, p_rectified, p_plain), {"step": t, "exp_avg": m, "exp_avg_sq": v}


RADAM = Spec(
    name="RAdam",
    update=update,
    hyper=(
        Hyper("lr", 1e-3, "parameter units per update unit", Domain()),
        Hyper("betas", (0.9, 0.999), "1", Domain(high=1.0)),
        Hyper("eps", 1e-8, "gradient units", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("decoupled_weight_decay", False, "flag"),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("exp_avg", "gradient units"),
        Buffer("exp_avg_sq", "gradient units squared", slow=True),
    ),
    source="https://arxiv.org/abs/1908.03265",
)
