"""Adagrad."""

import torch

from stepcheck.harness.zoo import base


class RightAdagrad(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1e-2,
        lr_decay=0.0,
        weight_decay=0.0,
        initial_accumulator_value=0.0,
        eps=1e-10,
        maximize=False,
    ):
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
            maximize=maximize,
        )
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].update(self.start(p, group))

    def start(self, p, group):
        total = torch.full_like(p, group["initial_accumulator_value"], requires_grad=False)
        return {"step": torch.tensor(0.0), "sum": total}

    def update(self, p, g, state, group):
        total = self.accumulate(g, state)
        return p - self.rate(state["step"].item(), group) * self.direction(g, total, group["eps"])

    def accumulate(self, g, state):
        state["sum"] = state["sum"] + g * g
        return state["sum"]

    def rate(self, t, group):
        return group["lr"] / (1 + (t - 1) * group["lr_decay"])

    def direction(self, g, total, eps):
        return g / (total.sqrt() + eps)


class EpsInsideRoot(RightAdagrad):
    """Adds eps under the square root."""

    def direction(self, g, total, eps):
        return g / (total + eps).sqrt()


class WithoutRoot(RightAdagrad):
    """Divides by the sum of squares, not by its root."""

    def direction(self, g, total, eps):
        return g / (total + eps)


class StaleSum(RightAdagrad):
    """Divides by the root of the sum as it was before its update."""

    def accumulate(self, g, state):
        old = state["sum"]
        super().accumulate(g, state)
        return old


class AveragesSquares(RightAdagrad):
    """Averages the squares instead of adding them up."""

    def accumulate(self, g, state):
        state["sum"] = state["sum"] + (g * g - state["sum"]) / state["step"].item()
        return state["sum"]


class DecaysLrEarly(RightAdagrad):
    """Decays lr from the first step on, not from the second."""

    def rate(self, t, group):
        return group["lr"] / (1 + t * group["lr_decay"])


class CompoundsLrDecay(RightAdagrad):
    """Writes the decayed lr back to the group, so that it decays again."""

    def rate(self, t, group):
        group["lr"] = super().rate(t, group)
        return group["lr"]


class StartsFromZero(RightAdagrad):
    """Ignores initial_accumulator_value."""

    def start(self, p, group):
        return super().start(p, {**group, "initial_accumulator_value": 0.0})


class FirstStartForAll(RightAdagrad):
    """Reads initial_accumulator_value from the arguments for all groups."""

    def start(self, p, group):
        return super().start(p, self.defaults)


class StartsFromRoot(RightAdagrad):
    """Takes initial_accumulator_value for the root of the sum."""

    def start(self, p, group):
        return super().start(p, {**group, "initial_accumulator_value": group["initial_accumulator_value"] ** 2})


class MaximizesPenaltyAdagrad(base.MaximizesPenalty, RightAdagrad):
    """Under maximize, turns the sign of the weight decay along with the gradient's."""


class CountsForAllAdagrad(base.CountsForAll, RightAdagrad):
    """One step count for all parameters: a gradient that comes late starts with everybody else's count."""


class FirstEpsForAllAdagrad(base.FirstEpsForAll, RightAdagrad):
    """Reads eps from group 0 for all groups."""


class ForgetsStateAdagrad(base.ForgetsState, RightAdagrad):
    """Loads the options of a state_dict and not the state."""


class IgnoresStridesAdagrad(base.IgnoresStrides, RightAdagrad):
    """Writes row-major from the first element on, whatever lies there."""
