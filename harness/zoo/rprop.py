"""Rprop."""

import torch

from stepcheck.harness.zoo import base


class RightRprop(base.Zoo):
    def __init__(self, params, *, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0), maximize=False):
        super().__init__(params, lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize)

    def buffers(self, group):
        return ("prev",)

    def start(self, p, group):
        return super().start(p, group) | {"step_size": torch.full_like(p, self.first(group))}

    def first(self, group):
        return group["lr"]

    def gradient(self, p, group):
        return -p.grad if group["maximize"] else p.grad

    def update(self, p, g, state, group):
        sign = self.agreement(g, state["prev"])
        size = state["step_size"] = self.clamp(
            self.scale(state["step_size"], sign, *group["etas"]), *group["step_sizes"]
        )
        state["prev"] = self.kept(g, sign)
        return p - size * self.moved(g, sign).sign()

    def agreement(self, g, prev):
        # Of the signs: the product of two small gradients may underflow.
        return g.sign() * prev.sign()

    def scale(self, size, sign, shrink, grow):
        return torch.where(sign > 0, size * grow, torch.where(sign < 0, size * shrink, size))

    def clamp(self, size, smallest, largest):
        return size.clamp(smallest, largest)

    def kept(self, g, sign):
        return torch.where(sign < 0, torch.zeros_like(g), g)

    def moved(self, g, sign):
        return torch.where(sign < 0, torch.zeros_like(g), g)


class SwappedEtas(RightRprop):
    """Grows where the sign changes and shrinks where it does not."""

    def scale(self, size, sign, shrink, grow):
        return super().scale(size, sign, grow, shrink)


class NoSmallest(RightRprop):
    """Does not clamp from below."""

    def clamp(self, size, smallest, largest):
        return size.clamp(max=largest)


class NoLargest(RightRprop):
    """Does not clamp from above."""

    def clamp(self, size, smallest, largest):
        return size.clamp(min=smallest)


class KeepsSign(RightRprop):
    """Remembers the gradient where its sign changes, so that the next step scales again."""

    def kept(self, g, sign):
        return g


class MovesAfterChange(RightRprop):
    """Moves against the gradient where its sign changes, as Rprop- does."""

    def moved(self, g, sign):
        return g


class StartsFromOne(RightRprop):
    """Starts step_size from 1, whatever lr says."""

    def first(self, group):
        return 1.0


class FollowsLr(RightRprop):
    """Shrinks and grows lr as it is now, not the step size."""

    def update(self, p, g, state, group):
        state["step_size"] = torch.full_like(p, group["lr"])
        return super().update(p, g, state, group)


class GrowsFromRest(RightRprop):
    """Grows where the product is zero as well."""

    def scale(self, size, sign, shrink, grow):
        return torch.where(sign < 0, size * shrink, size * grow)


class RemembersUnsigned(RightRprop):
    """Under maximize, remembers the gradient as it came, not its negative."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        if group["maximize"]:
            state["prev"] = -state["prev"]
        return value


class StaleSize(RightRprop):
    """Moves by step_size as it was before its update."""

    def update(self, p, g, state, group):
        old = state["step_size"]
        super().update(p, g, state, group)
        return p - old * self.moved(g, self.agreement(g, state["prev"])).sign()


class MovesByGradient(RightRprop):
    """Multiplies the step size by the gradient, not by its sign."""

    def update(self, p, g, state, group):
        before = state["prev"]
        super().update(p, g, state, group)
        return p - state["step_size"] * self.moved(g, self.agreement(g, before))


class ConsumesGradientRprop(base.ConsumesGradient, RightRprop):
    """Takes the gradient away once it is used."""
