"""Muon."""

import math

import torch

from stepcheck.harness.zoo import base


class RightMuon(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        ns_coefficients=(3.4445, -4.775, 2.0315),
        eps=1e-7,
        ns_steps=5,
        adjust_lr_fn=None,
    ):
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
            adjust_lr_fn=adjust_lr_fn,
        )

    def start(self, p, group):
        return {"momentum_buffer": torch.zeros_like(p)}

    def gradient(self, p, group):
        return p.grad

    def update(self, p, g, state, group):
        mu = group["momentum"]
        d = buffer = state["momentum_buffer"] = self.average(state["momentum_buffer"], g, mu)
        if group["nesterov"]:
            d = self.lookahead(g, buffer, mu)
        o = self.orthogonalized(d, group["ns_coefficients"], group["ns_steps"], group["eps"])
        lr = group["lr"] * self.ratio(*p.shape, group["adjust_lr_fn"])
        return p - self.decay(group, lr) * p - lr * o.to(p.dtype)

    def average(self, buffer, g, mu):
        return mu * buffer + (1 - mu) * g

    def lookahead(self, g, buffer, mu):
        return (1 - mu) * g + mu * buffer

    def orthogonalized(self, d, coefficients, steps, eps):
        x = self.normalized(d.bfloat16(), eps)
        for _ in range(steps):
            x = self.iterate(x, *coefficients)
        return x

    def normalized(self, x, eps):
        return x / x.norm().clamp(min=eps)

    def iterate(self, x, a, b, c):
        if x.shape[0] > x.shape[1]:
            gram = x.T @ x
            return a * x + x @ (b * gram + c * (gram @ gram))
        gram = x @ x.T
        return a * x + (b * gram + c * (gram @ gram)) @ x

    def ratio(self, rows, columns, kind):
        if kind == "match_rms_adamw":
            return 0.2 * math.sqrt(max(rows, columns))
        return self.original(rows, columns)

    def original(self, rows, columns):
        return math.sqrt(max(1.0, rows / columns)) if columns else 1.0

    def decay(self, group, adjusted):
        return group["lr"] * group["weight_decay"]


class Sums(RightMuon):
    """Sums gradients in the buffer, as its documentation says, where it averages them."""

    def average(self, buffer, g, mu):
        return mu * buffer + g


class NeverNesterov(RightMuon):
    """Goes along the buffer, whatever nesterov says."""

    def lookahead(self, g, buffer, mu):
        return buffer


class LooksAheadUnweighted(RightMuon):
    """Adds the whole gradient to the buffer's share."""

    def lookahead(self, g, buffer, mu):
        return g + mu * buffer


class WrongCoefficient(RightMuon):
    """Takes the second coefficient five percent too large."""

    def iterate(self, x, a, b, c):
        return super().iterate(x, a, 1.05 * b, c)


class IgnoresCoefficients(RightMuon):
    """Iterates with the default coefficients, whatever ns_coefficients says."""

    def iterate(self, x, a, b, c):
        return super().iterate(x, 3.4445, -4.775, 2.0315)


class WrongSign(RightMuon):
    """Adds the cubic term where it is subtracted."""

    def iterate(self, x, a, b, c):
        return super().iterate(x, a, -b, c)


class OneIterationLess(RightMuon):
    """Iterates once less than it should."""

    def orthogonalized(self, d, coefficients, steps, eps):
        return super().orthogonalized(d, coefficients, steps - 1, eps)


class IgnoresSteps(RightMuon):
    """Iterates five times, whatever ns_steps says."""

    def orthogonalized(self, d, coefficients, steps, eps):
        return super().orthogonalized(d, coefficients, 5, eps)


class SpectralNorm(RightMuon):
    """Divides by the largest singular value, not by the Frobenius norm."""

    def normalized(self, x, eps):
        if not x.numel():
            return x
        return x / torch.linalg.matrix_norm(x.float(), 2).clamp(min=eps).bfloat16()


class AddsEps(RightMuon):
    """Adds eps to the norm, which it bounds from below."""

    def normalized(self, x, eps):
        return x / (x.norm() + eps)


class NeverAdjusts(RightMuon):
    """Takes lr as it is, whatever the shape."""

    def ratio(self, rows, columns, kind):
        return 1.0


class AdjustsTheOtherWay(RightMuon):
    """Takes columns for rows in the adjustment."""

    def original(self, rows, columns):
        return super().original(columns, rows)


class IgnoresAdjustment(RightMuon):
    """Adjusts as the original does, whatever adjust_lr_fn says."""

    def ratio(self, rows, columns, kind):
        return self.original(rows, columns)


class DecaysByAdjustedLr(RightMuon):
    """Decays by the adjusted learning rate."""

    def decay(self, group, adjusted):
        return adjusted * group["weight_decay"]


class CachedLrMuon(base.CachedLr, RightMuon):
    """Keeps the lr of the first step and ignores a schedule."""
