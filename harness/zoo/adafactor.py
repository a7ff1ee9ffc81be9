"""Adafactor."""

import torch

from stepcheck.harness.zoo import base


class RightAdafactor(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1e-2,
        beta2_decay=-0.8,
        eps=(None, 1e-3),
        d=1.0,
        weight_decay=0.0,
        maximize=False,
    ):
        super().__init__(
            params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, maximize=maximize
        )

    def start(self, p, group):
        if p.dim() < 2:
            return {"step": torch.tensor(0.0), "variance": torch.zeros_like(p)}
        row_var, col_var = torch.zeros_like(p[..., :1]), torch.zeros_like(p[..., :1, :])
        return {"step": torch.tensor(0.0), "row_var": row_var, "col_var": col_var}

    def gradient(self, p, group):
        return -p.grad if group["maximize"] else p.grad

    def update(self, p, g, state, group):
        t = state["step"].item()
        eps1, eps2 = group["eps"]
        eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
        v = self.second_moment(g, state, self.forget(t, group["beta2_decay"]), eps1)
        u = g / self.bounded(v, eps1).sqrt()
        u = u / self.clip(u, group["d"])
        alpha = self.relative(p, eps2, group) * self.rho(t, group["lr"])
        return self.decayed(p, group, alpha) - alpha * u

    def second_moment(self, g, state, forget, eps1):
        square = g * g
        if g.dim() < 2:
            state["variance"] = self.average(state["variance"], square, forget)
            return state["variance"]
        row = state["row_var"] = self.average(state["row_var"], self.mean(square, -1), forget)
        col = state["col_var"] = self.average(state["col_var"], self.mean(square, -2), forget)
        return row * col / self.total(row).clamp(min=eps1)

    def forget(self, t, decay):
        return t**decay

    def average(self, old, new, forget):
        return (1 - forget) * old + forget * new

    def mean(self, square, dimension):
        return square.mean(dimension, keepdim=True)

    def total(self, row):
        return row.mean(-2, keepdim=True)

    def bounded(self, v, eps1):
        return v.clamp(min=eps1 * eps1)

    def clip(self, u, d):
        return (self.rms(u) / d).clamp(min=1.0)

    def relative(self, p, eps2, group):
        return self.rms(p).clamp(min=eps2)

    def rms(self, x):
        return (x * x).mean().sqrt()

    def rho(self, t, lr):
        return min(lr, t**-0.5)

    def decayed(self, p, group, alpha):
        return p * (1 - group["lr"] * group["weight_decay"]) if group["weight_decay"] != 0 else p


class ClipsRows(RightAdafactor):
    """Clips each row by its own RMS."""

    def clip(self, u, d):
        return ((u * u).mean(-1, keepdim=True).sqrt() / d).clamp(min=1.0) if u.dim() > 1 else super().clip(u, d)


class NeverClips(RightAdafactor):
    """Does not clip the update."""

    def clip(self, u, d):
        return torch.ones(())


class IgnoresThreshold(RightAdafactor):
    """Clips at 1, whatever d says."""

    def clip(self, u, d):
        return super().clip(u, 1.0)


class IgnoresEps2(RightAdafactor):
    """Scales by the RMS of the parameter with no lower bound."""

    def relative(self, p, eps2, group):
        return self.rms(p)


class AbsoluteStep(RightAdafactor):
    """Does not scale by the parameter."""

    def relative(self, p, eps2, group):
        return 1.0


class ScalesByDecayed(RightAdafactor):
    """Scales by the RMS of the parameter after its decay."""

    def relative(self, p, eps2, group):
        return super().relative(self.decayed(p, group, None), eps2, group)


class AddsEps1(RightAdafactor):
    """Adds the square of eps1 to the second moment, where it bounds it."""

    def bounded(self, v, eps1):
        return v + eps1 * eps1


class BoundsByEps1(RightAdafactor):
    """Bounds the second moment by eps1, not by its square."""

    def bounded(self, v, eps1):
        return v.clamp(min=eps1)


class SwapsWeights(RightAdafactor):
    """Weighs the old average by the share of the new square, and the square by the rest."""

    def forget(self, t, decay):
        return 1 - super().forget(t, decay)


class ForgetsEarly(RightAdafactor):
    """Counts the steps from 2 in the weight of the average."""

    def forget(self, t, decay):
        return super().forget(t + 1, decay)


class IgnoresBeta2Decay(RightAdafactor):
    """Follows the default schedule of the average, whatever beta2_decay says."""

    def forget(self, t, decay):
        return super().forget(t, -0.8)


class WithoutSchedule(RightAdafactor):
    """Takes lr as it is, where the inverse root of the step number bounds it."""

    def rho(self, t, lr):
        return lr


class SumsSquares(RightAdafactor):
    """Sums the squares of a row or column, not averages them."""

    def mean(self, square, dimension):
        return square.sum(dimension, keepdim=True)


class MeanOfBatch(RightAdafactor):
    """Normalizes by the mean over all matrices of a batch."""

    def total(self, row):
        return row.mean()


class NormalizesBySum(RightAdafactor):
    """Normalizes by the sum of the rows, not by their mean."""

    def total(self, row):
        return row.sum(-2, keepdim=True)


class DecaysByAlpha(RightAdafactor):
    """Decays by the scaled learning rate, not by lr."""

    def decayed(self, p, group, alpha):
        return super().decayed(p, {**group, "lr": alpha}, alpha)


class PenalizesGradient(RightAdafactor):
    """Adds an L2 penalty to the gradient, where the decay is decoupled."""

    def gradient(self, p, group):
        return base.Zoo.gradient(self, p, group)

    def decayed(self, p, group, alpha):
        return p


class IgnoresMaximizeAdafactor(RightAdafactor):
    """Minimizes, whatever maximize says."""

    def options(self, group):
        return {**group, "maximize": False}


class CountsAbsentAdafactor(base.CountsAbsent, RightAdafactor):
    """Counts a step for parameters that have no gradient."""
