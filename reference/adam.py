"""Adam and AdamW, with AMSGrad."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from stepcheck.reference.arithmetic import addcdiv, any_order, ema, ema_of_square
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Adam; with ``decoupled_weight_decay``, of AdamW.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \quad\text{(Adam)} \\
        \theta' &\leftarrow (1 - \gamma\lambda)\,\theta_{t-1} \quad\text{(AdamW, else } \theta_{t-1}) \\
        m_t &\leftarrow \beta_1 m_{t-1} + (1 - \beta_1) g_t \\
        v_t &\leftarrow \beta_2 v_{t-1} + (1 - \beta_2) g_t^2 \\
        w_t &\leftarrow \max(w_{t-1}, v_t) \quad\text{(AMSGrad, else } v_t) \\
        \theta_t &\leftarrow \theta' -
            \frac{\gamma}{1 - \beta_1^t} \frac{m_t}{\sqrt{w_t / (1 - \beta_2^t)} + \epsilon}

    :math:`\epsilon` stands outside the square root and after the bias correction (section 2 of the paper ends with a
    cheaper variant whose :math:`\hat\epsilon` stands before it; TensorFlow and Apex follow that one). The maximum of
    AMSGrad is taken before the bias correction, as in ``torch.optim``; Keras corrects it nowhere.

    Initial state: :math:`t = 0`, all buffers 0.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number, the steps taken so far), ``exp_avg`` :math:`m`, ``exp_avg_sq`` :math:`v` and, with
            ``amsgrad``, ``max_exp_avg_sq`` :math:`w`; arrays of the shape of ``p``.
        hyper: ``lr``, ``betas``, ``eps``, ``weight_decay``, ``amsgrad``, ``maximize``, ``decoupled_weight_decay``.

    Returns:
        The parameter and state after the step.

    Source: Kingma and Ba, *Adam: a method for stochastic optimization*, ICLR 2015, algorithm 1; Loshchilov and Hutter,
    *Decoupled weight decay regularization*, ICLR 2019, algorithm 2; Reddi, Kale, Kumar, *On the convergence of Adam and
    beyond*, ICLR 2018, algorithm 2.
    """
    beta1, beta2 = hyper.betas
    t = state["step"] + 1
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        if hyper.decoupled_weight_decay:
            decay = hyper.lr * hyper.weight_decay
            undecayed = p
            p = any_order((1 - decay) * p, textbook=lambda: undecayed - decay * undecayed)
        else:
            g = g + hyper.weight_decay * p

    m = ema(state["exp_avg"], g, beta1)
    v = ema_of_square(state["exp_avg_sq"], g, beta2)
    after = {"step": t, "exp_avg": m, "exp_avg_sq": v}
    w = v
    if hyper.amsgrad:
        w = after["max_exp_avg_sq"] = np.maximum(state["max_exp_avg_sq"], v)

    correction1 = 1 - beta1**t
    correction2 = 1 - beta2**t
    denom = any_order(
        np.sqrt(w) / np.sqrt(correction2) + hyper.eps,
        textbook_root=lambda: np.sqrt(w / correction2) + hyper.eps,
    )
    decayed, lr = p, -hyper.lr / correction1
    p = any_order(
        addcdiv(decayed, m, denom, lr),
        folded=lambda: addcdiv(decayed, m, np.sqrt(w) / (np.sqrt(correction2) * lr) + hyper.eps / lr, 1.0),
        textbook=lambda: addcdiv(decayed, m / correction1, denom, -hyper.lr),
        scaled_divisor=lambda: addcdiv(
            decayed, m, np.sqrt(w) + hyper.eps * np.sqrt(correction2), lr * np.sqrt(correction2)
        ),
    )
    return p, after


def _conflict(hyper: HyperValues) -> str | None:
    # Of two numbers torch.optim takes floats alone, because it takes tensors as well.
    return None if all(isinstance(b, float) for b in hyper.betas) else f"betas must be floats, got {hyper.betas!r}"


ADAM = Spec(
    name="Adam",
    update=update,
    hyper=(
        Hyper("lr", 1e-3, "parameter units per update unit", Domain()),
        Hyper("betas", (0.9, 0.999), "1", Domain(high=1.0)),
        Hyper("eps", 1e-8, "gradient units", Domain()),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("amsgrad", False, "flag"),
        Hyper("maximize", False, "flag"),
        Hyper("decoupled_weight_decay", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("exp_avg", "gradient units"),
        Buffer("exp_avg_sq", "gradient units squared", slow=True),
        Buffer("max_exp_avg_sq", "gradient units squared", present=lambda h: h.amsgrad),
    ),
    conflict=_conflict,
    source="https://arxiv.org/abs/1412.6980",
)


def _adamw_update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    """One step of AdamW: :func:`update` with ``decoupled_weight_decay``."""
    return update(p, g, state, _decoupled(hyper))


def _decoupled(hyper: HyperValues) -> HyperValues:
    return type(hyper)(**vars(hyper), decoupled_weight_decay=True)


ADAMW = replace(
    ADAM,
    name="AdamW",
    update=_adamw_update,
    hyper=tuple(
        Hyper("weight_decay", 1e-2, "1 per parameter unit times lr", Domain()) if h.name == "weight_decay" else h
        for h in ADAM.hyper
        if h.name != "decoupled_weight_decay"
    ),
    source="https://arxiv.org/abs/1711.05101",
)
