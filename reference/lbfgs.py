"""L-BFGS, with a fixed step or a line search for the strong Wolfe conditions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import numpy as np

from stepcheck.reference.arithmetic import largest, stored
from stepcheck.reference.evaluation import Evaluation, turned
from stepcheck.reference.spec import Buffer, Domain, Hyper, HyperValues, Number, Spec, State
from stepcheck.reference.strong_wolfe import Trial, strong_wolfe

#: The curvature that a pair must exceed to be remembered, in loss units. It keeps the inverse Hessian positive definite.
LEAST_CURVATURE = 1e-10


class Pair(NamedTuple):
    """A remembered change of the gradient and the step that caused it, with the inverse of their scalar product."""

    y: Number
    s: Number
    rho: Number


Step = Generator[Number, Evaluation, tuple[Number, State]]


def update(x: Number, state: State, hyper: HyperValues) -> Step:
    r"""One step of L-BFGS, which is up to ``max_iter`` iterations, as a coroutine.

    It yields each point where the function is to be evaluated and is sent the loss and the gradient there; it returns the
    parameter and the state after the step. With ``maximize`` it minimizes the negative of the function: loss and gradient are turned
    as they come, and it is what they are turned into that the state holds. With :math:`f, g` evaluated at :math:`x` first, iteration
    :math:`k` is

    .. math::
        y &\leftarrow g - g', \qquad s \leftarrow t d, \qquad
            \text{remembered with } \rho \leftarrow 1 / y^\top s,\; \eta \leftarrow y^\top s / y^\top y
            \text{ if } y^\top s > 10^{-10} \\
        d &\leftarrow -H g, \qquad
            H = V_m^\top \cdots V_1^\top \,\eta\, V_1 \cdots V_m
                + \sum_i \rho_i\, V_m^\top \cdots V_{i+1}^\top s_i s_i^\top V_{i+1} \cdots V_m,
            \quad V_i = I - \rho_i y_i s_i^\top \\
        g' &\leftarrow g, \qquad t \leftarrow \gamma, \qquad \text{stop if } g^\top d > -\epsilon_c \\
        t &\leftarrow \text{a step length that meets the strong Wolfe conditions (``strong_wolfe'', else as it is)} \\
        x &\leftarrow x + t d

    with :math:`i = 1` the oldest of the ``history_size`` latest pairs. The very first iteration has no pair; it takes
    :math:`d = -g, \eta = 1, t = \gamma \min(1, 1 / \lVert g \rVert_1)`. With a line search :math:`\gamma` is the first
    trial of every iteration but that one.

    The step ends at once, with nothing but ``func_evals`` changed, if :math:`\lVert g \rVert_\infty \le \epsilon_g` at its
    first evaluation. Otherwise an iteration is the last, in this order of tests, if it is number ``max_iter``; if ``max_eval``
    evaluations are spent (an iteration that has begun is finished, and its line search has one trial more than are left);
    if :math:`\lVert g \rVert_\infty \le \epsilon_g`; if :math:`\lVert t d \rVert_\infty \le \epsilon_c`; or if the loss has
    changed by less than :math:`\epsilon_c`. With a fixed step, iteration ``max_iter`` evaluates nothing after its move.

    Initial state: :math:`k = 0`, no evaluations; all else appears with the first iteration. ``d`` and ``t`` are those of
    the latest iteration even where it stopped before it moved; the next step then forms :math:`s` from them all the same.

    The line search is that of minFunc, and departs from Nocedal and Wright as follows. A trial that does not lower the loss
    of the one before ends the bracketing (algorithm 3.5) from the third trial on, not the second. Bracketing extrapolates
    by cubic interpolation, within bounds; a trial of zoom (algorithm 3.6) that comes close to an end of the bracket twice
    in a row, or reaches it, is moved inside. After a trial that fails, the lower end is chosen anew by the loss alone.
    :math:`\eta` scales as their (7.20), and a pair without enough curvature is skipped, where algorithm 7.5 relies on the
    Wolfe conditions; :math:`\eta` then stays as it was.

    Args:
        x: all parameters, as one vector; a complex number is two elements, its real and its imaginary part.
        state: ``func_evals``, ``n_iter`` :math:`k` (numbers, both 0 where absent); from the first iteration on ``d``,
            ``t``, ``old_dirs`` :math:`y_i`, ``old_stps`` :math:`s_i`, ``ro`` :math:`\rho_i` (lists, oldest first),
            ``H_diag`` :math:`\eta`, ``prev_flat_grad`` :math:`g'`, ``prev_loss``.
        hyper: ``lr`` :math:`\gamma`, ``max_iter``, ``max_eval`` (``None``: ``max_iter * 5 // 4``), ``tolerance_grad``
            :math:`\epsilon_g`, ``tolerance_change`` :math:`\epsilon_c`, ``history_size``, ``line_search_fn``, ``maximize`` (of torch from
            2.14 on).

    Source: Nocedal and Wright, *Numerical optimization*, 2nd ed., algorithms 3.5, 3.6, 7.4 and 7.5, equation 3.59; Liu and
    Nocedal, *On the limited memory BFGS method for large scale optimization*, Mathematical Programming 45, 1989; Schmidt,
    *minFunc*, 2005.
    """
    steps = _minimize(x, state, hyper)
    return (yield from (turned(steps) if hyper.maximize else steps))


def _minimize(x: Number, state: State, hyper: HyperValues) -> Step:
    after: State = {"n_iter": 0, "func_evals": 0, **state}
    max_eval = hyper.max_iter * 5 // 4 if hyper.max_eval is None else hyper.max_eval
    loss, g = yield x
    spent = 1
    after["func_evals"] += 1
    if largest(g) <= hyper.tolerance_grad:
        return x, after

    earlier: list[Number] = [after.get(name) for name in ("d", "t", "H_diag", "prev_flat_grad")]
    d, t, eta, last_g = earlier
    pairs = [
        Pair(*pair) for pair in zip(*(after.get(name, ()) for name in ("old_dirs", "old_stps", "ro")), strict=True)
    ]
    computed = list(pairs)  # what the lists are to hold; the iterations go on with what they were seen to hold
    for iteration in range(1, hyper.max_iter + 1):
        after["n_iter"] += 1
        first = after["n_iter"] == 1
        if first:
            d, eta, pairs, computed = -g, 1.0, [], []
            after["H_diag"] = eta
        else:
            y, s = g - last_g, d * t
            ys = np.dot(y, s)
            if ys > LEAST_CURVATURE:
                pair = Pair(y, s, 1.0 / ys)
                computed = [*computed, pair][-hyper.history_size :]
                held = Pair(stored("old_dirs", y), stored("old_stps", s), stored("ro", pair.rho))
                pairs = [*pairs, held][-hyper.history_size :]
                after["H_diag"] = ys / np.dot(y, y)
                eta = stored("H_diag", after["H_diag"])
            d = _direction(g, pairs, eta)
        after |= {"d": d, "prev_flat_grad": g, "prev_loss": loss}
        d, last_g, last_loss = stored("d", d), g, loss
        t = min(1.0, 1.0 / np.sum(np.abs(g))) * hyper.lr if first else hyper.lr
        after["t"] = t
        slope = np.dot(g, d)
        if slope > -hyper.tolerance_change:
            break
        if hyper.line_search_fn is None:
            x = x + t * d
            if iteration == hyper.max_iter:
                break
            loss, g = yield x
            x = stored("parameter", x)
            trials = 1
        else:
            start = Trial(0.0, loss, g, slope)
            found, trials = yield from strong_wolfe(x, d, start, t, max_eval - spent)
            loss, g, after["t"] = found.loss, found.gradient, found.t
            t = stored("t", found.t)
            x = x + t * d
        spent += trials
        after["func_evals"] += trials
        if iteration == hyper.max_iter or spent >= max_eval or largest(g) <= hyper.tolerance_grad:
            break
        if largest(d * t) <= hyper.tolerance_change or np.abs(loss - last_loss) < hyper.tolerance_change:
            break
    after |= {"old_dirs": [p.y for p in computed], "old_stps": [p.s for p in computed], "ro": [p.rho for p in computed]}
    return x, after


def _direction(g: Number, pairs: Sequence[Pair], eta: Number) -> Number:
    """The two-loop recursion: minus the inverse Hessian times the gradient (Nocedal and Wright, algorithm 7.4)."""
    q, alphas = -_followed(g), []
    for y, s, rho in reversed(pairs):
        alphas.append(np.dot(s, q) * rho)
        q = q - alphas[-1] * y
    r = q * eta
    for (y, s, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = np.dot(y, r) * rho
        r = r + (alpha - beta) * s
    return r


def _followed(x: Number) -> Number:
    """``x``, what is done to which is linear: a number that bounds its error may let the parts of it cancel."""
    followed = getattr(x, "followed", None)
    return x if followed is None else followed()


def _conflict(hyper: HyperValues) -> str | None:
    if hyper.line_search_fn is not None and hyper.lr == 0:
        return "lr must not be 0 with a line search, which it is the first trial of"
    return None


def _absent(_: HyperValues) -> None:
    return None


LBFGS = Spec(
    name="LBFGS",
    update=update,
    # torch.optim checks lr alone. Without an iteration, an evaluation or a pair to remember, nothing would be left of it.
    hyper=(
        Hyper("lr", 1, "1; of the first iteration, parameter units squared per loss unit", Domain()),
        Hyper("max_iter", 20, "iterations", Domain(low=1), integer=True),
        Hyper("max_eval", None, "evaluations", Domain(low=1), integer=True, optional=True),
        Hyper("tolerance_grad", 1e-7, "gradient units", Domain(high_included=True)),
        Hyper("tolerance_change", 1e-9, "loss units, and parameter units", Domain(high_included=True)),
        Hyper("history_size", 100, "pairs", Domain(low=1), integer=True),
        Hyper("line_search_fn", None, "name", choices=("strong_wolfe",), optional=True),
        Hyper("maximize", False, "flag", since="2.14"),
    ),
    # One state for all parameters, flat. The vectors are as long as they are together; of the last three, lists of such
    # vectors and of numbers, oldest first. What an iteration overwrites before it reads it ("al") is no state.
    buffers=(
        Buffer("func_evals", "evaluations", per_parameter=True),
        Buffer("n_iter", "iterations", per_parameter=True),
        Buffer("d", "parameter units", initial=_absent),
        Buffer("t", "1", per_parameter=True, initial=_absent),
        Buffer("H_diag", "parameter units squared per loss unit", per_parameter=True, initial=_absent),
        Buffer("prev_flat_grad", "gradient units", initial=_absent),
        Buffer("prev_loss", "loss units", per_parameter=True, initial=_absent),
        Buffer("old_dirs", "gradient units", initial=_absent),
        Buffer("old_stps", "parameter units", initial=_absent),
        Buffer("ro", "1 per loss unit", initial=_absent),
    ),
    conflict=_conflict,
    elementwise=False,
    closure=True,
    source="https://doi.org/10.1007/BF01589116",
)
