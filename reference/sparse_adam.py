"""SparseAdam, Adam on the elements that a sparse gradient names."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.arithmetic import any_order, ema, ema_of_square
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of SparseAdam, for the elements that the gradient names; all others keep value and state.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t} \frac{m_t}{\sqrt{v_t} + \epsilon}

    :math:`\epsilon` is added before the bias is corrected, unlike in ``torch.optim.Adam``: this is the cheaper variant at
    the end of section 2 of the paper. :math:`t` counts the steps of the whole parameter, so an element that is seldom
    named is corrected as if it had been there all along. An element named several times has the sum of its entries as
    gradient; a gradient that names nothing changes nothing but :math:`t`.

    Initial state: :math:`t = 0`, both averages 0.

    Args:
        p: the elements of the parameter that are named.
        g: their gradient, the same shape.
        state: ``step`` (a number, the steps taken so far), ``exp_avg`` :math:`m`, ``exp_avg_sq`` :math:`v`, of the shape
            of ``p``.
        hyper: ``lr``, ``betas``, ``eps``, ``maximize``.

    Returns:
        The elements and their state after the step.

    Source: Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, section 2; the restriction to the
    elements named is that of ``torch.optim.SparseAdam``.
    """
    beta1, beta2 = hyper.betas
    t = state["step"] + 1
    if hyper.maximize:
        g = -g
    m = ema(state["exp_avg"], g, beta1)
    v = ema_of_square(state["exp_avg_sq"], g, beta2)
    lr = hyper.lr * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    denom = np.sqrt(v) + hyper.eps
    new_p = any_order(p - lr * m / denom, quotient_first=lambda: p - lr * (m / denom))
    return new_p, {"step": t, "exp_avg": m, "exp_avg_sq": v}


SPARSE_ADAM = Spec(
    name="SparseAdam",
    update=update,
    hyper=(
        Hyper("lr", 1e-3, "parameter units per update unit", Domain(low_included=False)),
        Hyper("betas", (0.9, 0.999), "1", Domain(high=1.0)),
        Hyper("eps", 1e-8, "gradient units", Domain(low_included=False)),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("exp_avg", "gradient units"),
        Buffer("exp_avg_sq", "gradient units squared", slow=True),
    ),
    complex=False,
    sparse="only",
    source="https://arxiv.org/abs/1412.6980",
)
