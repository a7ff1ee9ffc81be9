"""NAdam, Adam with Nesterov's momentum."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, any_order, ema, ema_of_square, stored
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of NAdam.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \quad\text{(or, decoupled, }
            \theta' \leftarrow (1 - \gamma\lambda)\,\theta_{t-1}) \\
        \mu_t &\leftarrow \beta_1 \left(1 - \tfrac12\, 0.96^{t\psi}\right), \qquad
            \Pi_t \leftarrow \Pi_{t-1} \mu_t \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \hat m_t &\leftarrow \frac{\mu_{t+1}}{1 - \Pi_t \mu_{t+1}} m_t + \frac{1 - \mu_t}{1 - \Pi_t} g_t \\
        \theta_t &\leftarrow \theta' - \gamma \frac{\hat m_t}{\sqrt{v_t / (1 - \beta_2^t)} + \epsilon}

    The average :math:`m` keeps the weight :math:`\beta_1`; only its bias correction follows the schedule :math:`\mu` (in
    Dozat's algorithm :math:`\mu_t` enters :math:`m` as well; Keras does as here). The product :math:`\Pi` is kept in
    float32, whatever the dtype of the parameter, and what follows from it starts from the rounded number.

    Initial state: :math:`t = 0`, :math:`\Pi_0 = 1`, both averages 0.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` and ``mu_product`` (numbers), ``exp_avg`` :math:`m` and ``exp_avg_sq`` :math:`v`, of the shape of
            ``p``.
        hyper: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``momentum_decay`` :math:`\psi`, ``decoupled_weight_decay``,
            ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Dozat, *Incorporating Nesterov momentum into Adam*, ICLR workshop 2016, algorithm 2 and its schedule;
    0.96 is that of Sutskever's thesis, 2013.
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

    mu = _momentum(beta1, t, hyper.momentum_decay)
    mu_next = _momentum(beta1, t + 1, hyper.momentum_decay)
    mu_product = state["mu_product"] * mu
    product = stored("mu_product", mu_product)
    m = ema(state["exp_avg"], g, beta1)
    v = ema_of_square(state["exp_avg_sq"], g, beta2)

    correction2 = 1 - beta2**t
    denom = any_order(
        np.sqrt(v) / np.sqrt(correction2) + hyper.eps,
        textbook_root=lambda: np.sqrt(v / correction2) + hyper.eps,
    )
    of_g = hyper.lr * (1 - mu) / (1 - product)
    of_m = hyper.lr * mu_next / (1 - product * mu_next)
    decayed = p

    def with_scaled_divisor() -> Number:
        root = np.sqrt(correction2)
        divisor = np.sqrt(v) + hyper.eps * root
        return addcdiv(addcdiv(decayed, g, divisor, -of_g * root), m, divisor, -of_m * root)

    p = any_order(
        addcdiv(addcdiv(decayed, g, denom, -of_g), m, denom, -of_m),
        folded=lambda: addcdiv(addcdiv(decayed, of_g * g, denom, -1.0), of_m * m, denom, -1.0),
        textbook=lambda: addcdiv(decayed, of_m / hyper.lr * m + of_g / hyper.lr * g, denom, -hyper.lr),
        scaled_divisor=with_scaled_divisor,
    )
    return p, {"step": t, "mu_product": mu_product, "exp_avg": m, "exp_avg_sq": v}


def _momentum(beta1: Number, t: Number, decay: Number) -> Number:
    return beta1 * (1 - 0.5 * 0.96 ** (t * decay))


NADAM = Spec(
    name="NAdam",
    update=update,
    hyper=(
        Hyper("lr", 2e-3, "parameter units per update unit", Domain()),
        Hyper("betas", (0.9, 0.999), "1", Domain(high=1.0)),
        Hyper("eps", 1e-8, "gradient units", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("momentum_decay", 4e-3, "1 per step", Domain()),
        Hyper("decoupled_weight_decay", False, "flag"),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("mu_product", "1", per_parameter=True, initial=lambda _: 1.0, in_place=True),
        Buffer("exp_avg", "gradient units"),
        Buffer("exp_avg_sq", "gradient units squared", slow=True),
    ),
    source="https://openreview.net/forum?id=OM0jvwB8jIp57ZJjtNEZ",
)
