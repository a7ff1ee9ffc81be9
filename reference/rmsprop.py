"""RMSprop, plain and centered, with momentum."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, addcmul, ema, ema_of_square
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of RMSprop.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        v_t &\leftarrow \alpha v_{t-1} + (1 - \alpha) g_t^2 \\
        a_t &\leftarrow \alpha a_{t-1} + (1 - \alpha) g_t \quad\text{(centered, else 0)} \\
        d_t &\leftarrow g_t / (\sqrt{v_t - a_t^2} + \epsilon) \\
        b_t &\leftarrow \mu b_{t-1} + d_t \quad\text{(where } \mu > 0\text{, else } d_t) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma b_t

    :math:`\epsilon` stands outside the square root (TensorFlow and optax's default put it inside, as does Graves). The
    learning rate multiplies the momentum buffer when it is applied; TensorFlow accumulates :math:`\gamma d_t`.
    No bias is corrected. :math:`v_t - a_t^2` is a variance, zero or more in exact arithmetic; where it is within
    rounding of zero, an implementation may find it negative and its square root NaN.

    Initial state: :math:`t = 0` (counted, never used), all buffers 0.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far), ``square_avg`` :math:`v`, with ``centered`` ``grad_avg``
            :math:`a`, and with momentum ``momentum_buffer`` :math:`b`; arrays of the shape of ``p``.
        hyper: ``lr``, ``alpha``, ``eps``, ``weight_decay``, ``momentum``, ``centered``, ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Tieleman and Hinton, *Lecture 6.5: RMSprop*, Coursera 2012; centered: Graves, *Generating sequences with
    recurrent neural networks*, 2013, equations 38 to 41.
    """
    after = {"step": state["step"] + 1}
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    v = after["square_avg"] = ema_of_square(state["square_avg"], g, hyper.alpha)
    if hyper.centered:
        a = after["grad_avg"] = ema(state["grad_avg"], g, hyper.alpha)
        v = addcmul(v, a, a, -1.0)
    denom = np.sqrt(v) + hyper.eps
    if hyper.momentum == 0:
        return addcdiv(p, g, denom, -hyper.lr), after
    b = after["momentum_buffer"] = addcdiv(hyper.momentum * state["momentum_buffer"], g, denom, 1.0)
    return p - hyper.lr * b, after


RMSPROP = Spec(
    name="RMSprop",
    update=update,
    hyper=(
        Hyper("lr", 1e-2, "parameter units per update unit", Domain()),
        # torch.optim accepts any alpha >= 0; above 1 the average of squares can turn negative, so it has no meaning.
        Hyper("alpha", 0.99, "1", Domain(high=1.0, high_included=True)),
        Hyper("eps", 1e-8, "gradient units", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("momentum", 0.0, "1", Domain()),
        Hyper("centered", False, "flag"),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("square_avg", "gradient units squared", slow=True),
        Buffer("grad_avg", "gradient units", present=lambda h: h.centered, slow=True),
        Buffer("momentum_buffer", "update units", present=lambda h: h.momentum != 0),
    ),
    source="https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
)
