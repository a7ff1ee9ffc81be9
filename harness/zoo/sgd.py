"""SGD."""

import torch

from stepcheck.harness.zoo import base


class RightSGD(base.Zoo):
    def __init__(
        self, params, *, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False
    ):
        super().__init__(
            params,
            lr=lr,
            momentum=momentum,
            dampening=dampening,
            weight_decay=weight_decay,
            nesterov=nesterov,
            maximize=maximize,
        )

    def start(self, p, group):
        return {}

    def update(self, p, g, state, group):
        if group["momentum"] == 0:
            return p - group["lr"] * g
        old = state.get("momentum_buffer")
        new = state["momentum_buffer"] = self.first(g, group) if old is None else self.next(old, g, group)
        return p - group["lr"] * self.direction(g, old, new, group)

    def first(self, g, group):
        return g.clone()

    def next(self, old, g, group):
        return (1 - group["dampening"]) * g + group["momentum"] * old

    def direction(self, g, old, new, group):
        return g + group["momentum"] * new if group["nesterov"] else new


class DampensFirstStep(RightSGD):
    """Starts the buffer from zeros, so that the first gradient is dampened."""

    def first(self, g, group):
        return self.next(torch.zeros_like(g), g, group)


class FirstGradientTwice(RightSGD):
    """Starts the buffer with the first gradient and then accumulates it once more."""

    def first(self, g, group):
        return self.next(g, g, group)


class IgnoresDampening(RightSGD):
    """Accumulates the whole gradient."""

    def next(self, old, g, group):
        return group["momentum"] * old + g


class Averages(RightSGD):
    """Weighs the gradient by 1 - momentum instead of 1 - dampening."""

    def next(self, old, g, group):
        return group["momentum"] * old + (1 - group["momentum"]) * g


class AccumulatesLr(RightSGD):
    """Multiplies lr into the momentum buffer."""

    def update(self, p, g, state, group):
        return super().update(p, group["lr"] * g, state, {**group, "lr": 1.0})


class StaleBuffer(RightSGD):
    """Goes along the buffer as it was before its update."""

    def direction(self, g, old, new, group):
        return new if old is None else old


class NesterovWithOldBuffer(RightSGD):
    """Looks ahead along the buffer as it was before its update."""

    def direction(self, g, old, new, group):
        return super().direction(g, old, new if old is None or not group["nesterov"] else old, group)


class NesterovWithoutGradient(RightSGD):
    """Scales the buffer for Nesterov's momentum and leaves out the gradient."""

    def direction(self, g, old, new, group):
        return group["momentum"] * new if group["nesterov"] else new


class KeepsGradient(RightSGD):
    """Keeps the first gradient itself as buffer and accumulates in it, in place."""

    def first(self, g, group):
        return g

    def next(self, old, g, group):
        return old.copy_(super().next(old, g, group))


class SharesGradient(RightSGD):
    """Keeps the first gradient itself as buffer, so zero_grad in place clears it."""

    def first(self, g, group):
        return g


class DecoupledSGD(base.DecoupledDecay, RightSGD):
    """Shrinks the parameter where the penalty belongs in the gradient, which differs under momentum."""


class MaximizesPenaltySGD(base.MaximizesPenalty, RightSGD):
    """Under maximize, turns the sign of the weight decay along with the gradient's."""


class DecaysIntoGradientSGD(base.DecaysIntoGradient, RightSGD):
    """Adds the weight decay to p.grad in place."""


class FirstLrForAllSGD(base.FirstLrForAll, RightSGD):
    """Reads lr from group 0 for all groups."""


class CachedLrSGD(base.CachedLr, RightSGD):
    """Keeps the lr of the first step and ignores a schedule."""


class TakesAbsentForZeroSGD(base.TakesAbsentForZero, RightSGD):
    """Goes on along the buffer of a parameter that has no gradient."""


class WritesToCopySGD(base.WritesToCopy, RightSGD):
    """Writes to a row-major view, which is a copy where the parameter is strided."""


class DropsTailSGD(base.DropsTail, RightSGD):
    """Leaves out the elements after the last whole vector of 8."""


class ForgetsStateSGD(base.ForgetsState, RightSGD):
    """Loads the options of a state_dict and not the momentum buffer."""


class OtherNames(RightSGD):
    """Right, with a buffer named m: it cannot be read, so the reference runs free."""

    def update(self, p, g, state, group):
        known = {"momentum_buffer": state["m"]} if "m" in state else {}
        value = super().update(p, g, known, group)
        state.update({"m": known["momentum_buffer"]} if known else {})
        return value


class OtherNamesStale(OtherNames):
    """Goes along the buffer as it was before its update, under another name."""

    direction = StaleBuffer.direction
