"""Adamax."""

import torch

from stepcheck.harness.zoo import base


class RightAdamax(base.Zoo):
    def __init__(self, params, *, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, maximize=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def buffers(self, group):
        return ("exp_avg", "exp_inf")

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
        u = self.norm(g, state, beta2, group["eps"])
        return p - group["lr"] * (m / self.correction(group.get("t") or state["step"].item(), beta1) / u)

    def norm(self, g, state, beta2, eps):
        state["exp_inf"] = torch.maximum(beta2 * state["exp_inf"], g.abs() + eps)
        return state["exp_inf"]

    def correction(self, t, beta1):
        return 1 - beta1**t


class EpsAtDivision(RightAdamax):
    """Adds eps to exp_inf when dividing by it, not inside the maximum."""

    def norm(self, g, state, beta2, eps):
        return super().norm(g, state, beta2, 0.0) + eps


class EpsOutsideMaximum(RightAdamax):
    """Adds eps to the maximum, so that it piles up in exp_inf."""

    def norm(self, g, state, beta2, eps):
        state["exp_inf"] = super().norm(g, state, beta2, 0.0) + eps
        return state["exp_inf"]


class WithoutAbs(RightAdamax):
    """Takes the maximum of the signed gradient."""

    def norm(self, g, state, beta2, eps):
        state["exp_inf"] = torch.maximum(beta2 * state["exp_inf"], g + eps)
        return state["exp_inf"]


class NeverForgets(RightAdamax):
    """Does not shrink the old maximum by beta2."""

    def norm(self, g, state, beta2, eps):
        return super().norm(g, state, 1.0, eps)


class StaleNorm(RightAdamax):
    """Divides by exp_inf as it was before its update."""

    def norm(self, g, state, beta2, eps):
        old = state["exp_inf"]
        super().norm(g, state, beta2, eps)
        return old


class WithoutCorrection(RightAdamax):
    """Does not correct the bias of the first moment."""

    def correction(self, t, beta1):
        return 1.0


class CorrectsByLastStep(RightAdamax):
    """Corrects the bias for one step less than was taken, from the second step on."""

    def correction(self, t, beta1):
        return super().correction(max(t - 1, 1), beta1)


class SwappedBetasAdamax(base.SwappedBetas, RightAdamax):
    """Takes beta1 for beta2 and beta2 for beta1."""


class CountsAsideAdamax(base.CountsAside, RightAdamax):
    """Corrects the bias by a count that is no state, so it begins anew after load_state_dict."""


class CountsAbsentAdamax(base.CountsAbsent, RightAdamax):
    """Counts a step for parameters that have no gradient."""


class WritesWholeVectorsAdamax(base.WritesWholeVectors, RightAdamax):
    """Stores whole vectors of 8, the last one past the end of the parameter."""


class DecaysIntoGradientAdamax(base.DecaysIntoGradient, RightAdamax):
    """Adds the weight decay to p.grad in place."""
