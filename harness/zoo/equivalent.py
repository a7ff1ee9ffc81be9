"""Changes that look like faults and that no input can tell: each is a right optimizer, and must pass."""

import math

import torch

from stepcheck.harness.zoo.adafactor import RightAdafactor
from stepcheck.harness.zoo.adam import RightAdam
from stepcheck.harness.zoo.adamax import RightAdamax
from stepcheck.harness.zoo.asgd import RightASGD
from stepcheck.harness.zoo.fault import Fault
from stepcheck.harness.zoo.muon import RightMuon
from stepcheck.harness.zoo.nadam import RightNAdam
from stepcheck.harness.zoo.radam import RightRAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.rprop import RightRprop
from stepcheck.harness.zoo.sgd import RightSGD
from stepcheck.harness.zoo.sparse_adam import RightSparseAdam


class ClonesGradient(RightSGD):
    """Clones the gradient once more."""

    def gradient(self, p, group):
        return super().gradient(p, group).clone()


class CommutesSum(RightSGD):
    """Adds the gradient to the old buffer, not the old buffer to the gradient."""

    def next(self, old, g, group):
        return group["momentum"] * old + (1 - group["dampening"]) * g


class PenalizesAboveZero(RightSGD):
    """Asks whether weight_decay is above 0, not whether it differs from 0."""

    def gradient(self, p, group):
        return super().gradient(p, group if group["weight_decay"] > 0 else {**group, "weight_decay": 0})


class WalksBackwards(RightSGD):
    """Steps the last group first."""

    def walk(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]  # its place among the entries of the state
        for group in reversed(self.param_groups):
            for p in group["params"]:
                if p.grad is not None:
                    self.visit(p, self.options(group))


class ClearsTwice(RightSGD):
    """Clears the gradients twice."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none)
        super().zero_grad(set_to_none)


class KeepsAtEquality(RightAdam):
    """Of two equal squares, takes the new one for AMSGrad's maximum."""

    def maximum(self, v, correction2, state):
        old = state["max_exp_avg_sq"]
        state["max_exp_avg_sq"] = torch.where((old > v) | old.isnan(), old, v)
        return state["max_exp_avg_sq"]


class MaximumTwice(RightAdam):
    """Takes AMSGrad's maximum twice."""

    def maximum(self, v, correction2, state):
        super().maximum(v, correction2, state)
        return super().maximum(v, correction2, state)


class SquaresMagnitude(RightAdam):
    """Squares the magnitude of the gradient, not the gradient."""

    def moments(self, g, state, beta1, beta2):
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * (g.abs() * g.abs())
        return m, v


class CountsAfterUpdate(RightAdam):
    """Counts a step after it and not before, and corrects the bias for one more than was counted."""

    def count(self, p, state):
        return state["step"]

    def update(self, p, g, state, group):
        after = state["step"] + 1
        value = super().update(p, g, state, {**group, "t": after.item()})
        state["step"] = after
        return value


class MultipliesByMinusOne(RightAdam):
    """Under maximize, multiplies the gradient by -1."""

    def gradient(self, p, group):
        if not group["maximize"]:
            return super().gradient(p, group)
        penalty = 0 if group["decoupled_weight_decay"] else group["weight_decay"]
        g = p.grad * -1
        return g + penalty * p if penalty != 0 else g


class FillsWithZeros(RightAdam):
    """Makes its buffers without zeros, and then fills them."""

    def start(self, p, group):
        state = {name: torch.empty_like(p, requires_grad=False).zero_() for name in self.buffers(group)}
        return {"step": torch.tensor(0.0)} | state


class LeavesOutEmpty(RightAdam):
    """Computes nothing for a parameter without elements; its steps are counted."""

    def update(self, p, g, state, group):
        return super().update(p, g, state, group) if p.numel() else p


class NormOfNegative(RightAdamax):
    """Takes the norm of the negated gradient."""

    def norm(self, g, state, beta2, eps):
        return super().norm(-g, state, beta2, eps)


class AsksBeforeDividing(RightASGD):
    """Compares before it divides, where a maximum is divided by."""

    def mu(self, t, t0):
        return 1 / (t - t0) if t - t0 >= 1 else 1.0


class NegatesDifference(RightRAdam):
    """Subtracts 1 from the power, and negates the difference."""

    def correction(self, t, beta2):
        return -(beta2**t - 1)


class HalvesByProduct(RightNAdam):
    """Multiplies by 0.5, not divides by 2."""

    def momentum(self, beta1, t, decay):
        return beta1 * (1 - 0.5 * 0.96 ** (t * decay))


class AddsNegatedSquare(RightRMSprop):
    """Adds the square of the mean negated, not subtracts it."""

    def variance(self, v, mean):
        return v + -mean * mean


class ClampsLargestFirst(RightRprop):
    """Clamps from above before it clamps from below."""

    def clamp(self, size, smallest, largest):
        return size.clamp(max=largest).clamp(min=smallest)


class SignOfSign(RightRprop):
    """Takes the sign of a sign."""

    def moved(self, g, sign):
        return super().moved(g, sign).sign()


class CoalescesTwice(RightSparseAdam):
    """Coalesces the gradient twice."""

    def gradient(self, p, group):
        return super().gradient(p, group).coalesce()


class ClipsTwice(RightAdafactor):
    """Takes the largest of 1 and the clipping factor twice."""

    def clip(self, u, d):
        return super().clip(u, d).clamp(min=1.0)


class AdjustsAtEquality(RightMuon):
    """Takes the root of the ratio of a square matrix too, which need not be adjusted."""

    def original(self, rows, columns):
        return math.sqrt(rows / columns) if columns and rows >= columns else 1.0


EQUIVALENT: tuple[Fault, ...] = tuple(
    Fault(make, like, equivalent=why)
    for make, like, why in (
        (ClonesGradient, "SGD", "the clone is read once, and nobody keeps it"),
        (CommutesSum, "SGD", "the sum of two floating-point numbers does not depend on their order"),
        (PenalizesAboveZero, "SGD", "no weight_decay is negative or NaN"),
        (WalksBackwards, "SGD", "no group reads what another writes"),
        (ClearsTwice, "SGD", "what is None or zero already stays so"),
        (KeepsAtEquality, "Adam", "equal squares are one number, never -0, and NaN is taken from either"),
        (MaximumTwice, "Adam", "a maximum with a number that entered it already changes nothing"),
        (SquaresMagnitude, "Adam", "the square of a number and of its negative have the same bits"),
        (CountsAfterUpdate, "Adam", "the same sum is formed, and nothing in between reads the count or raises"),
        (MultipliesByMinusOne, "Adam", "multiplying by -1 is exact and turns every sign, of zeros and infinities too"),
        (
            FillsWithZeros,
            "Adam",
            "nobody reads the buffers before they are filled, and their strides are those of zeros_like",
        ),
        (LeavesOutEmpty, "Adam", "of no elements, nothing is computed and nothing written"),
        (NormOfNegative, "Adamax", "a number and its negative have one magnitude, zeros and infinities too"),
        (AsksBeforeDividing, "ASGD", "at equality 1 / 1 is 1"),
        (NegatesDifference, "RAdam", "both differences are rounded alike, and neither is 0 for betas below 1"),
        (HalvesByProduct, "NAdam", "both are the same real number, rounded once"),
        (
            AddsNegatedSquare,
            "RMSprop",
            "a difference is the sum with the negative, and negating a factor negates the product",
        ),
        (
            ClampsLargestFirst,
            "Rprop",
            "the bounds are in order, or refused; then either comes first, and NaN stays NaN",
        ),
        (SignOfSign, "Rprop", "a sign is its own sign, and so is what torch makes of -0 and NaN"),
        (CoalescesTwice, "SparseAdam", "what is coalesced already is returned as it is"),
        (ClipsTwice, "Adafactor", "a maximum with 1 is 1 or more, or NaN, and stays so"),
        (AdjustsAtEquality, "Muon", "of a square matrix the ratio is 1, and so is its root"),
    )
)
