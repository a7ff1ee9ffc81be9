"""SGD with (Nesterov) momentum."""

from __future__ import annotations

from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of stochastic gradient descent.

    .. math::
        g_t &\leftarrow \pm\nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        b_t &\leftarrow g_t \text{ at the first step, else } \mu b_{t-1} + (1 - \tau) g_t \\
        d_t &\leftarrow g_t + \mu b_t \text{ with Nesterov's momentum, else } b_t
            \text{ (or } g_t \text{ where } \mu = 0) \\
        \theta_t &\leftarrow \theta_{t-1} - \gamma d_t

    The learning rate multiplies the buffer when it is applied, not when it is accumulated, so a change of :math:`\gamma`
    acts on the whole history at once. Sutskever et al. (2013) and TensorFlow accumulate :math:`\gamma g_t` instead.

    Initial state: none. The first step sets :math:`b_1 = g_1`, without dampening (a convention of ``torch.optim.SGD``,
    stated in its documentation; others start from zero). No buffer exists where :math:`\mu = 0`.

    Args:
        p: the parameter, any shape.
        g: its gradient, the same shape.
        state: ``momentum_buffer``, the same shape, or ``None`` before the first step.
        hyper: ``lr``, ``momentum``, ``dampening``, ``weight_decay``, ``nesterov``, ``maximize``.

    Returns:
        The parameter and state after the step.

    A sparse gradient is zero in the elements that it does not name.

    Source: Sutskever, Martens, Dahl, Hinton, *On the importance of initialization and momentum in deep learning*,
    ICML 2013; the form above is that of ``torch.optim.SGD``.
    """
    if hyper.maximize:
        g = -g
    if hyper.weight_decay != 0:
        g = g + hyper.weight_decay * p
    if hyper.momentum == 0:
        return p - hyper.lr * g, dict(state)

    buf = state["momentum_buffer"]
    buf = g if buf is None else hyper.momentum * buf + (1 - hyper.dampening) * g
    d = g + hyper.momentum * buf if hyper.nesterov else buf
    return p - hyper.lr * d, {"momentum_buffer": buf}


def _conflict(hyper: HyperValues) -> str | None:
    if hyper.nesterov and (hyper.momentum == 0 or hyper.dampening != 0):
        return f"nesterov needs momentum > 0 and dampening = 0, got {hyper.momentum!r} and {hyper.dampening!r}"
    return None


def _sparse_conflict(hyper: HyperValues) -> str | None:
    if hyper.weight_decay != 0:
        return "weight_decay reads every element"
    return "a momentum buffer of sparse gradients grows without bound" if hyper.momentum != 0 else None


SGD = Spec(
    name="SGD",
    update=update,
    hyper=(
        Hyper("lr", 1e-3, "parameter units per gradient unit", Domain()),
        Hyper("momentum", 0.0, "1", Domain()),
        Hyper("dampening", 0.0, "1", Domain(low=float("-inf"))),
        Hyper("weight_decay", 0.0, "gradient units per parameter unit", Domain()),
        Hyper("nesterov", False, "flag"),
        Hyper("maximize", False, "flag"),
    ),
    buffers=(Buffer("momentum_buffer", "gradient units", initial=lambda _: None, present=lambda h: h.momentum != 0),),
    conflict=_conflict,
    sparse="dense",
    sparse_conflict=_sparse_conflict,
    source="https://proceedings.mlr.press/v28/sutskever13.html",
)
