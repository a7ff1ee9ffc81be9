"""Rprop, resilient backpropagation."""

from __future__ import annotations

import numpy as np

from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Rprop.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) \\
        s_t &\leftarrow \operatorname{sign}(g_t\, g'_{t-1}) \\
        \Delta_t &\leftarrow \min(\max(\eta_{s_t} \Delta_{t-1}, \Delta_{\min}), \Delta_{\max}), \qquad
            \eta_+ > 1,\ \eta_0 = 1,\ \eta_- < 1 \\
        g'_t &\leftarrow 0 \text{ where } s_t < 0 \text{, else } g_t \\
        \theta_t &\leftarrow \theta_{t-1} - \operatorname{sign}(g'_t)\, \Delta_t

    After a change of sign an element does not move, and its remembered gradient is 0, so that the next step neither grows
    nor shrinks: this is the variant without weight-backtracking, "iRprop-" of Igel and Hüsken. The product of two tiny
    gradients may underflow to 0 and lose its sign: where it is within rounding of 0, either sign is right. What has no
    sign, NaN, has none here or 0 (``torch.sign``): either is accepted.

    Initial state: :math:`t = 0` (counted, never used), :math:`g'_0 = 0`, :math:`\Delta_0` = ``lr`` at the first step; a
    later change of ``lr`` has no effect. The first :math:`\Delta` is not clipped before it is used as a factor.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``step`` (a number), ``prev`` :math:`g'` and ``step_size`` :math:`\Delta`, of the shape of ``p``.
        hyper: ``lr``, ``etas`` (:math:`\eta_-, \eta_+`), ``step_sizes`` (:math:`\Delta_{\min}, \Delta_{\max}`),
            ``maximize``.

    Returns:
        The parameter and state after the step.

    Source: Riedmiller and Braun, *A direct adaptive method for faster backpropagation learning: the RPROP algorithm*,
    ICNN 1993; Igel and Hüsken, *Improving the Rprop learning algorithm*, NC 2000.
    """
    shrink, grow = hyper.etas
    smallest, largest = hyper.step_sizes
    if hyper.maximize:
        g = -g
    before = state["step_size"]
    sign = np.sign(g * state["prev"])
    scaled = np.where(sign > 0, grow * before, np.where(sign < 0, shrink * before, before))
    size = np.minimum(np.maximum(scaled, smallest), largest)
    kept = np.where(sign < 0, 0.0, g)
    return p - np.sign(kept) * size, {"step": state["step"] + 1, "prev": kept, "step_size": size}


def _conflict(hyper: HyperValues) -> str | None:
    if hyper.step_sizes[0] > hyper.step_sizes[1]:
        return f"step_sizes must be ordered, got {hyper.step_sizes!r}"
    return None


RPROP = Spec(
    name="Rprop",
    update=update,
    hyper=(
        Hyper("lr", 1e-2, "parameter units", Domain(), at_construction=True),
        Hyper("etas", (0.5, 1.2), "1", (Domain(high=1.0, low_included=False), Domain(low=1.0, low_included=False))),
        # torch.optim checks neither; with the bounds in disorder, which of them wins would be an accident.
        Hyper("step_sizes", (1e-6, 50.0), "parameter units", Domain()),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(
        Buffer("step", "steps", per_parameter=True),
        Buffer("prev", "gradient units"),
        Buffer("step_size", "parameter units", initial=lambda h: h.lr),
    ),
    conflict=_conflict,
    source="https://doi.org/10.1109/ICNN.1993.298623",
)
