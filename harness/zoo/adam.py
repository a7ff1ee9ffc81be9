"""Adam and AdamW."""

import torch

from stepcheck.harness.zoo import base


class RightAdam(base.Zoo):
    def __init__(
        self,
        params,
        *,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
        decoupled_weight_decay=False,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=decoupled_weight_decay,
        )

    def buffers(self, group):
        return ("exp_avg", "exp_avg_sq") + (("max_exp_avg_sq",) if group["amsgrad"] else ())

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if group["decoupled_weight_decay"] else group)

    def update(self, p, g, state, group):
        m, v = self.moments(g, state, *group["betas"])
        correction1, correction2 = self.corrections(group.get("t") or state["step"].item(), *group["betas"])
        if group["amsgrad"]:
            v = self.maximum(v, correction2, state)
        return self.combine(p, self.direction(m, v, correction1, correction2, group["eps"]), group)

    def moments(self, g, state, beta1, beta2):
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * (g * g)
        return m, v

    def corrections(self, t, beta1, beta2):
        return 1 - beta1**t, 1 - beta2**t

    def maximum(self, v, correction2, state):
        state["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], v)
        return state["max_exp_avg_sq"]

    def direction(self, m, v, correction1, correction2, eps):
        m_hat = m / correction1
        v_hat = v / correction2
        return m_hat / (v_hat.sqrt() + eps)

    def combine(self, p, d, group):
        return self.decayed(p, group) - group["lr"] * d

    def decayed(self, p, group):
        if group["weight_decay"] == 0 or not group["decoupled_weight_decay"]:
            return p
        return p - group["lr"] * group["weight_decay"] * p


class RightAdamW(RightAdam):
    def __init__(
        self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, maximize=False
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            amsgrad=amsgrad,
            maximize=maximize,
            decoupled_weight_decay=True,
        )


# Adam


class EpsInsideRoot(RightAdam):
    """Adds eps under the square root."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 / (v / correction2 + eps).sqrt()


class EpsBeforeCorrection(RightAdam):
    """Adds eps before the bias correction."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 * correction2**0.5 / (v.sqrt() + eps)


class WithoutRoot(RightAdam):
    """Divides by the second moment, not by its root."""

    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 / (v / correction2 + eps)


class WithoutCorrection1(RightAdam):
    """Does not correct the bias of the first moment."""

    def corrections(self, t, beta1, beta2):
        return 1.0, 1 - beta2**t


class WithoutCorrection2(RightAdam):
    """Does not correct the bias of the second moment."""

    def corrections(self, t, beta1, beta2):
        return 1 - beta1**t, 1.0


class CorrectsByNextStep(RightAdam):
    """Corrects the bias for one step more than was taken."""

    def corrections(self, t, beta1, beta2):
        return super().corrections(t + 1, beta1, beta2)


class StaleMean(RightAdam):
    """Goes along exp_avg as it was before its update."""

    def moments(self, g, state, beta1, beta2):
        old = state["exp_avg"]
        return old, super().moments(g, state, beta1, beta2)[1]


class StaleSquare(RightAdam):
    """Divides by the root of exp_avg_sq as it was before its update."""

    def moments(self, g, state, beta1, beta2):
        old = state["exp_avg_sq"]
        return super().moments(g, state, beta1, beta2)[0], old


class SquaresMean(RightAdam):
    """Averages the square of exp_avg instead of the gradient's."""

    def moments(self, g, state, beta1, beta2):
        m = state["exp_avg"] = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = state["exp_avg_sq"] = beta2 * state["exp_avg_sq"] + (1 - beta2) * (m * m)
        return m, v


class ForgetsMaximum(RightAdam):
    """Never stores AMSGrad's maximum."""

    def maximum(self, v, correction2, state):
        return torch.maximum(state["max_exp_avg_sq"], v)


class StoresMaximumOnly(RightAdam):
    """Stores AMSGrad's maximum and does not use it."""

    def maximum(self, v, correction2, state):
        super().maximum(v, correction2, state)
        return v


class CorrectedMaximum(RightAdam):
    """Takes AMSGrad's maximum of the bias-corrected second moment."""

    def maximum(self, v, correction2, state):
        return super().maximum(v / correction2, correction2, state) * correction2


class IgnoresDecoupled(RightAdam):
    """Adds the penalty to the gradient, whatever decoupled_weight_decay says."""

    def options(self, group):
        return {**group, "decoupled_weight_decay": False}


class MaximizesPenaltyAdam(base.MaximizesPenalty, RightAdam):
    """Under maximize, turns the sign of the weight decay along with the gradient's."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if group["decoupled_weight_decay"] else group)


class SwappedBetasAdam(base.SwappedBetas, RightAdam):
    """Takes beta1 for beta2 and beta2 for beta1."""


class SingleBetasAdam(base.SingleBetas, RightAdam):
    """Rounds betas to single precision, which float64 parameters notice."""


class HalfEpsAdam(base.HalfEps, RightAdam):
    """Rounds eps to half precision, in which 1e-8 is 0."""


class RoundedLrAdam(base.RoundedLr, RightAdam):
    """Rounds lr to three decimals."""


class FirstLrForAllAdam(base.FirstLrForAll, RightAdam):
    """Reads lr from group 0 for all groups."""


class FirstEpsForAllAdam(base.FirstEpsForAll, RightAdam):
    """Reads eps from group 0 for all groups."""


class CachedLrAdam(base.CachedLr, RightAdam):
    """Keeps the lr of the first step and ignores a schedule."""


class SinglePrecisionAdam(base.SinglePrecision, RightAdam):
    """Rounds the gradient to float32, whatever the parameter's dtype."""


class CountsForAllAdam(base.CountsForAll, RightAdam):
    """One step count for all parameters: a gradient that comes late starts with everybody else's count."""


class CountsAbsentAdam(base.CountsAbsent, RightAdam):
    """Counts a step for parameters that have no gradient."""


class CountsInGroup(RightAdam):
    """Keeps the count in the group, as fused kernels for many tensors do: it cannot be read, and late gradients miss it."""

    def start(self, p, group):
        return {name: torch.zeros_like(p) for name in self.buffers(group)}

    def walk(self):
        for group in self.param_groups:
            group["t"] = group.get("t", 0) + 1
        super().walk()


class CountsAsideAdam(base.CountsAside, RightAdam):
    """Corrects the bias by a count that is no state, so it begins anew after load_state_dict."""


class ForgetsStateAdam(base.ForgetsState, RightAdam):
    """Loads the options of a state_dict and not the state."""


class ConsumesGradientAdam(base.ConsumesGradient, RightAdam):
    """Takes the gradient away once it is used."""


class DecaysIntoGradientAdam(base.DecaysIntoGradient, RightAdam):
    """Adds the weight decay to p.grad in place, decoupled or not."""


class TakesAbsentForZeroAdam(base.TakesAbsentForZero, RightAdam):
    """Steps parameters that have no gradient as if it were zero."""


class DropsTailAdam(base.DropsTail, RightAdam):
    """Leaves out the elements after the last whole vector of 8."""


class IgnoresStridesAdam(base.IgnoresStrides, RightAdam):
    """Writes row-major from the first element on, whatever lies there."""


class WritesWholeVectorsAdam(base.WritesWholeVectors, RightAdam):
    """Stores whole vectors of 8, the last one past the end of the parameter."""


class NeedsDimensionsAdam(base.NeedsDimensions, RightAdam):
    """Raises on a 0-d parameter, which has nothing to slice."""


class NeedsElementsAdam(base.NeedsElements, RightAdam):
    """Raises on an empty parameter, whose gradient has no largest element."""


# AdamW


class PenalizesGradient(RightAdamW):
    """Adds an L2 penalty to the gradient, as Adam does."""

    def options(self, group):
        return {**group, "decoupled_weight_decay": False}


class DecaysAfterUpdate(RightAdamW):
    """Decays the parameter after its update rather than before."""

    def combine(self, p, d, group):
        return self.decayed(p - group["lr"] * d, group)


class DecaysWithoutLr(RightAdamW):
    """Decays by weight_decay, not by lr times weight_decay."""

    def decayed(self, p, group):
        return p - group["weight_decay"] * p


class DecaysByFirstLr(RightAdamW):
    """Decays by the lr that the optimizer was built with and ignores a schedule."""

    def decayed(self, p, group):
        return super().decayed(p, {**group, "lr": group.setdefault("first_lr", group["lr"])})


class GrowsUnderMaximize(RightAdamW):
    """Under maximize, lets weight decay push the parameter away from zero."""

    def decayed(self, p, group):
        sign = -1 if group["maximize"] else 1
        return super().decayed(p, {**group, "weight_decay": sign * group["weight_decay"]})


class DecaysAbsent(RightAdamW):
    """Decays parameters that have no gradient."""

    def walk(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.copy_(self.decayed(p, group))
        super().walk()


class DecaysTwice(RightAdamW):
    """Decays the parameter and penalizes the gradient as well."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "decoupled_weight_decay": False})


class WritesToCopyAdamW(base.WritesToCopy, RightAdamW):
    """Writes to a row-major view, which is a copy where the parameter is strided."""


# Other names and fewer options


class PaperAdam(torch.optim.Optimizer):
    """Right: algorithm 1 of the paper with the paper's names and options; the state cannot be read."""

    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for theta in group["params"]:
                    if theta.grad is not None:
                        self.update(theta, theta.grad, self.state[theta], group)
        return loss

    def update(self, theta, g, state, group):
        beta1, beta2 = group["betas"]
        t = state["t"] = state.get("t", 0) + 1
        m = state["m"] = beta1 * state.get("m", torch.zeros_like(theta)) + (1 - beta1) * g
        v = state["v"] = beta2 * state.get("v", torch.zeros_like(theta)) + (1 - beta2) * g**2
        theta -= group["lr"] * self.corrected(m, beta1, t) / (self.corrected(v, beta2, t).sqrt() + group["eps"])

    def corrected(self, moment, beta, t):
        return moment / (1 - beta**t)


class PaperAdamUncorrected(PaperAdam):
    """Does not correct the bias of either moment, under other names."""

    def corrected(self, moment, beta, t):
        return moment


class PaperAdamForgets(base.ForgetsState, PaperAdam):
    """Loads the options of a state_dict and not the state, under other names."""


class FewOptions(RightAdam):
    """Right, without amsgrad, maximize and decoupled_weight_decay."""

    def __init__(self, params, *, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


class FewOptionsEpsInsideRoot(FewOptions):
    """Adds eps under the square root, without the options that few have."""

    direction = EpsInsideRoot.direction
