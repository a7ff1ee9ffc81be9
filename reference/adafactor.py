"""Adafactor."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, addcmul, any_order, at_least, ema, norm, sum_of_squares
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Adafactor.

    .. math::
        G_t &\leftarrow \pm\nabla f(\Theta_{t-1}) \\
        \delta_t &\leftarrow t^\tau, \qquad \rho_t \leftarrow \min(\gamma, 1/\sqrt t), \qquad
            \alpha_t \leftarrow \max(\epsilon_2, \operatorname{RMS}(\Theta_{t-1}))\, \rho_t \\
        \Theta' &\leftarrow (1 - \gamma\lambda)\, \Theta_{t-1} \\
        R_t &\leftarrow (1 - \delta_t) R_{t-1} + \delta_t \operatorname{mean}_{\text{columns}} G_t^2, \qquad
        C_t \leftarrow (1 - \delta_t) C_{t-1} + \delta_t \operatorname{mean}_{\text{rows}} G_t^2 \\
        V_t &\leftarrow R_t C_t / \max(\operatorname{mean} R_t, \epsilon_1) \\
        U_t &\leftarrow G_t / \sqrt{\max(V_t, \epsilon_1^2)} \\
        \Theta_t &\leftarrow \Theta' - \alpha_t\, U_t / \max(1, \operatorname{RMS}(U_t) / d)

    The last two dimensions are factored, each further one stands for a batch of matrices; a vector or a number keeps the
    whole :math:`V_t \leftarrow (1 - \delta_t) V_{t-1} + \delta_t G_t^2`. The paper adds :math:`\epsilon_1` to :math:`G^2`
    before it is averaged; ``torch.optim`` bounds :math:`V` from below instead and squares :math:`\epsilon_1` there, which
    is therefore in gradient units. Its learning rate :math:`\gamma` bounds :math:`\rho_t` (the paper's :math:`10^{-2}`)
    and scales the weight decay. Transformers and fairseq follow the paper.

    Initial state: :math:`t = 0`, all averages 0 (the first step has :math:`\delta_1 = 1` and forgets them).

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far); of a parameter with two dimensions or more ``row_var``
            :math:`R`, of its shape with the last dimension 1, and ``col_var`` :math:`C`, with the last but one 1; of any
            other ``variance``.
        hyper: ``lr``, ``beta2_decay`` :math:`\tau`, ``eps`` (:math:`\epsilon_1, \epsilon_2`; ``None`` for
            :math:`\epsilon_1` is the machine epsilon of the parameter's dtype), ``d``, ``weight_decay``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Shazeer and Stern, *Adafactor: adaptive learning rates with sublinear memory cost*, ICML 2018, algorithms 4
    and 5.
    """
    eps1, eps2 = hyper.eps
    t, n = state["step"] + 1, float(math.prod(p.shape))
    if hyper.maximize:
        g = -g
    forget = t**hyper.beta2_decay
    rho = np.minimum(hyper.lr, 1 / np.sqrt(t))
    alpha = at_least(_rms(p, n), eps2) * rho
    if hyper.weight_decay != 0:
        decay, undecayed = hyper.lr * hyper.weight_decay, p
        p = any_order((1 - decay) * p, textbook=lambda: undecayed - decay * undecayed)

    after = {"step": t}
    if len(p.shape) > 1:
        row = after["row_var"] = ema(state["row_var"], _mean_square(g, -1), 1 - forget, weight=forget)
        col = after["col_var"] = ema(state["col_var"], _mean_square(g, -2), 1 - forget, weight=forget)
        mean = np.maximum(np.mean(row, axis=-2, keepdims=True), eps1)
        v = any_order(
            row * col / mean,
            quotient_first=lambda: row / mean * col,
            folded=lambda: row * (col / mean),
        )
    else:
        v = after["variance"] = any_order(
            ema(state["variance"], g * g, 1 - forget, weight=forget),
            folded=lambda: addcmul((1 - forget) * state["variance"], g, g, forget),
        )
    root = np.sqrt(np.maximum(v, eps1 * eps1))
    u = any_order(g / root, reciprocal=lambda: 1 / root * g)
    clip = at_least(_rms(u, n) / hyper.d, 1.0)
    p = any_order(
        p - alpha / clip * u,
        textbook=lambda: p - alpha * (u / clip),
        scaled_dividend=lambda: addcdiv(p, g, root, -alpha / clip),
    )
    return p, after


def _rms(x: Number, n: float) -> Number:
    """Root mean square of all elements."""
    return any_order(np.sqrt(sum_of_squares(x) / n), norm=lambda: norm(x) / math.sqrt(n))


def _mean_square(x: Number, axis: int) -> Number:
    n = float(x.shape[axis])
    return any_order(sum_of_squares(x, axis) / n, norm=lambda: norm(x, axis) * norm(x, axis) / n)


def _for_dtype(hyper: HyperValues, machine_epsilon: float) -> HyperValues:
    eps1 = machine_epsilon if hyper.eps[0] is None else hyper.eps[0]
    return SimpleNamespace(**{**vars(hyper), "eps": (eps1, hyper.eps[1])})


ADAFACTOR = Spec(
    name="Adafactor",
    update=update,
    hyper=(
        Hyper("lr", 1e-2, "1", Domain()),
        Hyper("beta2_decay", -0.8, "1", Domain(low=-math.inf, high=0.0, high_included=True)),
        Hyper("eps", (None, 1e-3), "gradient units, and parameter units", Domain(), optional=True),
        Hyper("d", 1.0, "1", Domain(low=1.0)),
        Hyper("weight_decay", 0.0, "1 per unit of lr", Domain()),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("row_var", "gradient units squared", shape=lambda s: (*s[:-1], 1) if len(s) > 1 else None),
        Buffer("col_var", "gradient units squared", shape=lambda s: (*s[:-2], 1, s[-1]) if len(s) > 1 else None),
        Buffer("variance", "gradient units squared", shape=lambda s: None if len(s) > 1 else s),
    ),
    elementwise=False,
    complex=False,
    for_dtype=_for_dtype,
    source="https://arxiv.org/abs/1804.04235",
)
