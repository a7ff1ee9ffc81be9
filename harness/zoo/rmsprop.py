"""RMSprop."""

import torch

from stepcheck.harness.zoo import base


class RightRMSprop(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0.0,
        momentum=0.0,
        centered=False,
        maximize=False,
    ):
        super().__init__(
            params,
            lr=lr,
            alpha=alpha,
            eps=eps,
            weight_decay=weight_decay,
            momentum=momentum,
            centered=centered,
            maximize=maximize,
        )

    def buffers(self, group):
        return (
            ("square_avg",)
            + (("grad_avg",) if group["centered"] else ())
            + (("momentum_buffer",) if group["momentum"] != 0 else ())
        )

    def update(self, p, g, state, group):
        alpha = group["alpha"]
        v = self.square(g, state, alpha)
        if group["centered"]:
            mean = state["grad_avg"] = alpha * state["grad_avg"] + (1 - alpha) * g
            v = self.variance(v, mean)
        d = g * self.reciprocal(v, group["eps"])
        if group["momentum"] != 0:
            d = self.accumulate(d, state, group)
        return p - group["lr"] * d

    def square(self, g, state, alpha):
        state["square_avg"] = alpha * state["square_avg"] + (1 - alpha) * (g * g)
        return state["square_avg"]

    def variance(self, v, mean):
        return v - mean * mean

    def reciprocal(self, v, eps):
        return (v.sqrt() + eps).reciprocal()

    def accumulate(self, d, state, group):
        # A schedule may turn momentum on later than at the first step.
        state["momentum_buffer"] = d + group["momentum"] * state.get("momentum_buffer", torch.zeros_like(d))
        return state["momentum_buffer"]


class EpsInsideRoot(RightRMSprop):
    """Adds eps under the square root."""

    def reciprocal(self, v, eps):
        return (v + eps).rsqrt()


class NotCentered(RightRMSprop):
    """Keeps the mean gradient and does not subtract its square."""

    def variance(self, v, mean):
        return v


class SubtractsMean(RightRMSprop):
    """Subtracts the mean gradient, not its square."""

    def variance(self, v, mean):
        return v - mean


class StaleSquare(RightRMSprop):
    """Divides by the root of square_avg as it was before its update."""

    def square(self, g, state, alpha):
        old = state["square_avg"]
        super().square(g, state, alpha)
        return old


class SwapsWeights(RightRMSprop):
    """Weighs the old average by 1 - alpha and the new square by alpha."""

    def square(self, g, state, alpha):
        return super().square(g, state, 1 - alpha)


class AccumulatesLr(RightRMSprop):
    """Multiplies lr into the momentum buffer, as TensorFlow does."""

    def accumulate(self, d, state, group):
        return super().accumulate(group["lr"] * d, state, group) / (group["lr"] or 1.0)


class StaleBuffer(RightRMSprop):
    """Goes along the momentum buffer as it was before its update."""

    def accumulate(self, d, state, group):
        old = state["momentum_buffer"]
        super().accumulate(d, state, group)
        return old


class DampensMomentum(RightRMSprop):
    """Weighs the update by 1 - momentum on its way into the buffer."""

    def accumulate(self, d, state, group):
        return super().accumulate((1 - group["momentum"]) * d, state, group)


class DecoupledRMSprop(base.DecoupledDecay, RightRMSprop):
    """Shrinks the parameter by lr times weight_decay, where the penalty belongs in the gradient."""


class IgnoresMaximizeRMSprop(base.IgnoresMaximize, RightRMSprop):
    """Minimizes, whatever maximize says."""


class FirstLrForAllRMSprop(base.FirstLrForAll, RightRMSprop):
    """Reads lr from group 0 for all groups."""


class ForgetsOptionsRMSprop(base.ForgetsOptions, RightRMSprop):
    """Loads the state of a state_dict and not the options."""


class NeedsDimensionsRMSprop(base.NeedsDimensions, RightRMSprop):
    """Raises on a 0-d parameter, which has nothing to slice."""


class WritesToCopyRMSprop(base.WritesToCopy, RightRMSprop):
    """Writes to a row-major view, which is a copy where the parameter is strided."""
