"""Adadelta."""

from stepcheck.harness.zoo import base


class RightAdadelta(base.Zoo):
    def __init__(self, params, *, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, maximize=False):
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def buffers(self, group):
        return ("square_avg", "acc_delta")

    def update(self, p, g, state, group):
        rho = group["rho"]
        v = self.square(g, state, rho)
        delta = self.delta(g, v, state["acc_delta"], group["eps"])
        state["acc_delta"] = self.average(state["acc_delta"], delta, group)
        return p - group["lr"] * delta

    def square(self, g, state, rho):
        state["square_avg"] = rho * state["square_avg"] + (1 - rho) * (g * g)
        return state["square_avg"]

    def delta(self, g, v, u, eps):
        return (u + eps).sqrt() * g / (v + eps).sqrt()

    def average(self, u, delta, group):
        return group["rho"] * u + (1 - group["rho"]) * (delta * delta)


class EpsOutsideRoots(RightAdadelta):
    """Adds eps to the roots, not under them."""

    def delta(self, g, v, u, eps):
        return (u.sqrt() + eps) * g / (v.sqrt() + eps)


class EpsBelowOnly(RightAdadelta):
    """Adds eps in the denominator alone."""

    def delta(self, g, v, u, eps):
        return u.sqrt() * g / (v + eps).sqrt()


class WithoutRoots(RightAdadelta):
    """Leaves out the square roots."""

    def delta(self, g, v, u, eps):
        return (u + eps) * g / (v + eps)


class StaleSquare(RightAdadelta):
    """Divides by the root of square_avg as it was before its update."""

    def square(self, g, state, rho):
        old = state["square_avg"]
        super().square(g, state, rho)
        return old


class AccumulatesLr(RightAdadelta):
    """Averages the square of lr times delta."""

    def average(self, u, delta, group):
        return super().average(u, group["lr"] * delta, group)


class AccumulatesMagnitude(RightAdadelta):
    """Averages delta without squaring it."""

    def average(self, u, delta, group):
        return group["rho"] * u + (1 - group["rho"]) * delta.abs()


class ScalesByRho(RightAdadelta):
    """Weighs the newest square of delta by rho as well."""

    def average(self, u, delta, group):
        return group["rho"] * (u + delta * delta)


class MaximizesPenaltyAdadelta(base.MaximizesPenalty, RightAdadelta):
    """Under maximize, turns the sign of the weight decay along with the gradient's."""


class CachedLrAdadelta(base.CachedLr, RightAdadelta):
    """Keeps the lr of the first step and ignores a schedule."""


class TakesAbsentForZeroAdadelta(base.TakesAbsentForZero, RightAdadelta):
    """Lets the averages of a parameter without a gradient fade."""


class NeedsElementsAdadelta(base.NeedsElements, RightAdadelta):
    """Raises on an empty parameter, whose gradient has no largest element."""


class ForgetsStateAdadelta(base.ForgetsState, RightAdadelta):
    """Loads the options of a state_dict and not the state."""
