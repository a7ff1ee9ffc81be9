"""Muon."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from stepcheck.reference.arithmetic import any_order, ema, norm
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State


def update(p: Number, g: Number, state: State, hyper: HyperValues) -> tuple[Number, State]:
    r"""One step of Muon.

    .. math::
        B_t &\leftarrow \mu B_{t-1} + (1 - \mu)\, \nabla f(\Theta_{t-1}) \\
        D_t &\leftarrow (1 - \mu)\, \nabla f(\Theta_{t-1}) + \mu B_t \quad\text{(Nesterov, else } B_t) \\
        O_t &\leftarrow \operatorname{NS}(D_t) \\
        \Theta_t &\leftarrow (1 - \gamma\lambda)\, \Theta_{t-1} - \gamma\rho\, O_t \\
        \rho &= \sqrt{\max(1, r / c)} \ \text{("original"), } 0.2 \sqrt{\max(r, c)}\ \text{("match\_rms\_adamw"), or }
            \sqrt{r / c}\ \text{("spectral\_unclamped", of torch from 2.14 on)}

    for a matrix of r rows and c columns, with the orthogonalization NS of :func:`newton_schulz`. The decay is decoupled
    and takes the learning rate :math:`\gamma` as it is given, not the adjusted one.

    The docstring of ``torch.optim.Muon`` writes :math:`B_t \leftarrow \mu B_{t-1} + g_t` and :math:`D_t \leftarrow g_t
    + \mu B_t`; its code averages, as stated here. With one :math:`\mu < 1` from a zero start, B and D of the code are
    :math:`1 - \mu` times those of the docstring. Normalization takes that factor away, unless the norm of D is below
    :math:`\epsilon`; otherwise only the buffer tells the two apart. With :math:`\mu = 1` the average stays 0.

    Elsewhere: Jordan's post sums as the docstring does and his repository averages; both add :math:`\epsilon` to the
    norm. Moonshot's code sums, and adjusts as "match_rms_adamw" does. ``optax.contrib.muon`` corrects the bias of an
    average (with Nesterov, of its two terms by different powers, so that the direction differs), adds :math:`\epsilon`,
    and scales by :math:`\sqrt{\max(1, c / r)}`, its matrices being stored the other way round.

    Initial state: B is 0.

    Args:
        p: the parameter, a matrix.
        g: its gradient, the same shape.
        state: ``momentum_buffer`` :math:`B`, of the shape of ``p``.
        hyper: ``lr`` :math:`\gamma`, ``weight_decay`` :math:`\lambda`, ``momentum`` :math:`\mu`, ``nesterov``,
            ``ns_coefficients``, ``eps``, ``ns_steps``, ``adjust_lr_fn`` (``None`` is "original").

    Returns:
        The parameter and state after the step.

    Source: Jordan et al., *Muon: an optimizer for hidden layers in neural networks*, 2024,
    https://kellerjordan.github.io/posts/muon/; Liu et al., *Muon is scalable for LLM training*, arXiv 2502.16982,
    section 2; Bernstein, *Deriving Muon*, 2025, https://jeremybernste.in/writing/deriving-muon (the unclamped ratio).
    """
    buffer = average(g, state["momentum_buffer"], hyper)
    o = newton_schulz(direction(g, buffer, hyper), hyper.ns_coefficients, hyper.ns_steps, hyper.eps)
    return apply(p, o, hyper), {"momentum_buffer": buffer}


def average(g: Number, buffer: Number, hyper: HyperValues) -> Number:
    """The momentum buffer after the step."""
    return ema(buffer, g, hyper.momentum)


def direction(g: Number, buffer: Number, hyper: HyperValues) -> Number:
    """What is orthogonalized, from the gradient and the momentum buffer after the step."""
    return ema(g, buffer, 1 - hyper.momentum, weight=hyper.momentum) if hyper.nesterov else buffer


def newton_schulz(x: Number, coefficients: Sequence[Number], steps: int, eps: Number) -> Number:
    r"""Move the singular values of a matrix towards 1: from :math:`U S V^T` to about :math:`U V^T`.

    .. math::
        X_0 &\leftarrow X / \max(\lVert X \rVert_F, \epsilon) \\
        A &\leftarrow X_{j-1} X_{j-1}^T, \qquad X_j \leftarrow a X_{j-1} + (b A + c A A) X_{j-1}

    Each iteration applies :math:`a s + b s^3 + c s^5` to every singular value. The default coefficients have the
    largest slope at zero and do not converge to 1 but to a band around it, of about 0.7 to 1.2. :math:`\epsilon` is a
    lower bound of the norm, not a term of it (torch's docstring says "added to the denominator"): a matrix smaller than
    it stays smaller than 1. A tall matrix is transposed and back, which spares work and changes nothing but the
    rounding.

    Args:
        x: a matrix, float64 or multiple-precision numbers.
        coefficients: a, b and c.
        steps: how many iterations.
        eps: the smallest norm that is divided by, in the units of ``x``.
    """
    return iterate(x / np.maximum(norm(x), eps), coefficients, steps)


def iterate(x: Number, coefficients: Sequence[Number], steps: int) -> Number:
    """The iterations of :func:`newton_schulz`, from a matrix that is normalized already."""
    a, b, c = coefficients
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.T if tall else x


def apply(p: Number, o: Number, hyper: HyperValues) -> Number:
    """The parameter after the step, given the orthogonalized matrix."""
    undecayed, decay = p, hyper.lr * hyper.weight_decay
    p = any_order((1 - decay) * undecayed, textbook=lambda: undecayed - decay * undecayed)
    return p - adjusted_lr(p.shape, hyper) * o


def adjusted_lr(shape: tuple[int, ...], hyper: HyperValues) -> Number:
    """The learning rate for a matrix of this shape."""
    rows, columns = shape
    if hyper.adjust_lr_fn == "match_rms_adamw":
        return hyper.lr * (0.2 * math.sqrt(max(rows, columns)))
    if hyper.adjust_lr_fn == "spectral_unclamped":
        return hyper.lr * math.sqrt(rows / columns)
    return hyper.lr * math.sqrt(max(1.0, rows / columns))


MUON = Spec(
    name="Muon",
    update=update,
    hyper=(
        Hyper("lr", 1e-3, "parameter units", Domain()),
        Hyper("weight_decay", 0.1, "1 per unit of lr", Domain()),
        Hyper("momentum", 0.95, "1", Domain()),
        Hyper("nesterov", True, "flag"),
        Hyper(
            "ns_coefficients",
            (3.4445, -4.7750, 2.0315),
            "1",
            Domain(low=-math.inf),
            # These converge: the quintic and the cubic iteration to the polar factor, and one in between.
            examples=((1.875, -1.25, 0.375), (1.5, -0.5, 0.0), (2.0, -1.5, 0.5)),
        ),
        # A bound of a whole matrix's norm decides only where it is large.
        Hyper("eps", 1e-7, "gradient units", Domain(), examples=(0.0, 1e-4, 1.0, 4 / 3, 16.0, 100.0, 1000.0)),
        Hyper("ns_steps", 5, "iterations", Domain(high=100.0), integer=True),
        Hyper(
            "adjust_lr_fn",
            None,
            "choice",
            optional=True,
            choices=("original", "match_rms_adamw", "spectral_unclamped"),
            later=(("spectral_unclamped", "2.14"),),
        ),
    ),
    buffers=(Buffer("momentum_buffer", "gradient units"),),
    elementwise=False,
    products=True,
    complex=False,
    shapes=lambda s: len(s) == 2,
    since="2.9",
    source="https://kellerjordan.github.io/posts/muon/",
)
