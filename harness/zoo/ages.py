"""Wrong optimizers that are right where a test is short or tries usual options: late steps and rare values.

Of each late fault a comment says at which step it first shows.
"""

import math

import torch

from stepcheck.harness.zoo.adadelta import RightAdadelta
from stepcheck.harness.zoo.adafactor import RightAdafactor
from stepcheck.harness.zoo.adagrad import RightAdagrad
from stepcheck.harness.zoo.adam import RightAdam, RightAdamW
from stepcheck.harness.zoo.adamax import RightAdamax
from stepcheck.harness.zoo.asgd import RightASGD
from stepcheck.harness.zoo.fault import DEVIATES, Fault
from stepcheck.harness.zoo.muon import RightMuon
from stepcheck.harness.zoo.nadam import RightNAdam
from stepcheck.harness.zoo.radam import RightRAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.rprop import RightRprop
from stepcheck.harness.zoo.sgd import RightSGD

_FAULTS: list[Fault] = []


def strikes(kind, like, checks=DEVIATES):
    """Enters a class as a fault of a kind."""

    def enter(make):
        _FAULTS.append(Fault(make, like, checks, kind))
        return make

    return enter


# Late steps


class _CountsItself:
    """Counts its steps in ``t``, beside the state."""

    t = 0

    def walk(self):
        self.t += 1
        super().walk()


# Shows at step 50.
@strikes("long", "SGD")
class DropsMomentumEach50(_CountsItself, RightSGD):
    """Starts the momentum buffer anew at each 50th step."""

    def update(self, p, g, state, group):
        if self.t % 50 == 0:
            state.pop("momentum_buffer", None)
        return super().update(p, g, state, group)


# Shows at step 64.
@strikes("long", "Adam")
class StaleMeanEach64(RightAdam):
    """Goes along exp_avg as it was before its update at each 64th step."""

    def update(self, p, g, state, group):
        self.stale = state["step"].item() % 64 == 0
        return super().update(p, g, state, group)

    def moments(self, g, state, beta1, beta2):
        old = state["exp_avg"]
        m, v = super().moments(g, state, beta1, beta2)
        return (old if self.stale else m), v


# Shows at step 100.
@strikes("long", "RMSprop")
class SkipsEach100(RightRMSprop):
    """Leaves the parameter as it is at each 100th step."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        return value if state["step"].item() % 100 else p.clone()


# Shows in the state at step 32, in the parameter at step 33.
@strikes("long", "AdamW")
class ResetsSquareEach32(RightAdamW):
    """Sets exp_avg_sq to zero after each 32nd step."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        if state["step"].item() % 32 == 0:
            state["exp_avg_sq"] = torch.zeros_like(state["exp_avg_sq"])
        return value


# Shows at step 128: the correction of the first moment is that of step -128.
@strikes("long", "Adamax")
class CountsInInt8(RightAdamax):
    """Counts in int8, in which 127 + 1 is -128."""

    def correction(self, t, beta1):
        t = (t + 128) % 256 - 128
        # As a tensor: a power that overflows is infinite, where Python raises.
        return super().correction(t, beta1 if t > 0 else torch.tensor(beta1, dtype=torch.float64))


# Shows at step 256, where the corrections of step 0 divide by zero; from step 257 on it is finite.
@strikes("long", "Adam")
class CountsInUint8(RightAdam):
    """Counts in uint8, in which 255 + 1 is 0."""

    def corrections(self, t, beta1, beta2):
        return super().corrections(t % 256, beta1, beta2)


# Shows at step 32,768, which a state with an old count reaches, where lr decays.
@strikes("long", "Adagrad")
class CountsInInt16(RightAdagrad):
    """Counts in int16, in which 32,767 + 1 is -32,768."""

    def rate(self, t, group):
        return super().rate((t + (1 << 15)) % (1 << 16) - (1 << 15), group)


# Shows at step 65,537, which a state with an old count reaches: it is corrected, and not rectified, as the first.
@strikes("long", "RAdam")
class CountsInUint16(RightRAdam):
    """Counts in uint16, in which 65,535 + 2 is 1."""

    def update(self, p, g, state, group):
        return super().update(p, g, state, {**group, "t": state["step"].item() % (1 << 16)})


# Shows at step 2,049, in the parameter where lr decays.
@strikes("long", "Adagrad")
class CountsInHalf(RightAdagrad):
    """Counts in float16, in which 2,048 + 1 is 2,048."""

    def count(self, p, state):
        return (state["step"].half() + 1).to(state["step"].dtype)


# Shows at step 257.
@strikes("long", "NAdam")
class CountsInBFloat16(RightNAdam):
    """Counts in bfloat16, in which 256 + 1 is 256."""

    def count(self, p, state):
        return (state["step"].bfloat16() + 1).to(state["step"].dtype)


# Shows at step 251.
@strikes("long", "Adam")
class CorrectsDuringWarmUp(RightAdam):
    """Corrects the bias during the first 250 steps."""

    def corrections(self, t, beta1, beta2):
        return super().corrections(t, beta1, beta2) if t <= 250 else (1.0, 1.0)


# Shows at step 1,001.
@strikes("long", "AdamW")
class CorrectsFirstThousand(RightAdamW):
    """Corrects the bias of the second moment during the first 1,000 steps."""

    def corrections(self, t, beta1, beta2):
        correction1, correction2 = super().corrections(t, beta1, beta2)
        return correction1, correction2 if t <= 1000 else 1.0


# Shows at step 513.
@strikes("long", "RAdam")
class RectifiesFirst512(RightRAdam):
    """Rectifies during the first 512 steps."""

    def update(self, p, g, state, group):
        self.late = state["step"].item() > 512
        return super().update(p, g, state, group)

    def rectification(self, rho, rho_inf):
        return 1.0 if self.late else super().rectification(rho, rho_inf)


# Shows at step 150 with a beta1 of 0.5, at 987 with one of 0.9.
@strikes("long", "Adam")
class TakesUnderflowForStart(RightAdam):
    """Takes a power of beta1 that underflows in single precision for the sign of a first step, and corrects by it."""

    def corrections(self, t, beta1, beta2):
        underflows = beta1 > 0 and torch.tensor(beta1**t, dtype=torch.float32).item() == 0
        return super().corrections(1 if underflows else t, beta1, beta2)


# Shows in the state after step 10,002, at which mu is a half, with the default t0.
@strikes("long", "ASGD")
class AveragesFrom10000(RightASGD):
    """Averages from step 10,000 on where t0 is later."""

    def mu(self, t, t0):
        return super().mu(t, min(t0, 10_000))


# Shows at step 1,001.
@strikes("long", "ASGD")
class KeepsLateEta(RightASGD):
    """Updates eta and mu after the first 999 steps alone."""

    def schedule(self, t, state, group):
        if t < 1000:
            super().schedule(t, state, group)


# Shows at step 65.
@strikes("long", "Adadelta")
class DecaysLrEach64(RightAdadelta):
    """Decays lr by a tenth each 64 steps."""

    def update(self, p, g, state, group):
        decays = (state["step"].item() - 1) // 64
        return super().update(p, g, state, {**group, "lr": group["lr"] * 0.9**decays})


# Shows at step 96.
@strikes("long", "SGD")
class ReadsOldGradient(_CountsItself, RightSGD):
    """Reads the gradient of the step before at each 96th step, from a buffer of gradients that is not ready."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        if self.t % 96 == 95:
            self.early = {**getattr(self, "early", {}), p: g.clone()}
        return getattr(self, "early", {}).get(p, g) if self.t % 96 == 0 else g


# Shows at step 401 where lr is above 0.05, at 10,001 with the default.
@strikes("long", "Adafactor")
class BoundsFirst400(RightAdafactor):
    """Lets the inverse root of the step number bound lr no lower than at step 400."""

    def rho(self, t, lr):
        return super().rho(min(t, 400.0), lr)


# Shows at step 201.
@strikes("long", "Adafactor")
class ForgetsAtLeast(RightAdafactor):
    """Gives a new square the weight of step 200 in all later steps."""

    def forget(self, t, decay):
        return super().forget(min(t, 200.0), decay)


# Shows at step 41.
@strikes("long", "Muon")
class SavesIterations(_CountsItself, RightMuon):
    """Saves an iteration after 40 steps."""

    def orthogonalized(self, d, coefficients, steps, eps):
        return super().orthogonalized(d, coefficients, steps - 1 if self.t > 40 and steps > 1 else steps, eps)


# Shows at step 75.
@strikes("long", "Rprop")
class ResetsSizesEach75(RightRprop):
    """Starts from the first step sizes again at each 75th step."""

    def update(self, p, g, state, group):
        if state["step"].item() % 75 == 0:
            state["step_size"] = torch.full_like(p, group["lr"])
        return super().update(p, g, state, group)


# Shows at step 501.
@strikes("long", "SGD")
class DecaysFirst500(_CountsItself, RightSGD):
    """Looks at weight_decay in the first 500 steps."""

    def gradient(self, p, group):
        return super().gradient(p, group if self.t <= 500 else {**group, "weight_decay": 0})


# Shows at step 128, where the maximum is above exp_avg_sq.
@strikes("long", "Adam")
class ForgetsMaximumEach128(RightAdam):
    """Starts AMSGrad's maximum anew at each 128th step."""

    def update(self, p, g, state, group):
        if group["amsgrad"] and state["step"].item() % 128 == 0:
            state["max_exp_avg_sq"] = torch.zeros_like(p)
        return super().update(p, g, state, group)


# Rare values of options


class _Takes:
    """Takes an option of some values for another: ``taken`` of the value."""

    def options(self, group):
        return {**group, self.option: self.taken(group[self.option])}


@strikes("valued", "RAdam")
class NeverRectifiesShort(RightRAdam):
    """Never rectifies where beta2 is below 0.9, although averages are long enough from a beta2 of 2/3 on."""

    def update(self, p, g, state, group):
        self.threshold = 5 if group["betas"][1] >= 0.9 else math.inf
        return super().update(p, g, state, group)


@strikes("valued", "Adam")
class KnownBeta2(_Takes, RightAdam):
    """Takes a beta2 between 0.94 and 0.98 for 0.95."""

    option = "betas"

    def taken(self, betas):
        return (betas[0], 0.95 if 0.94 < betas[1] < 0.98 else betas[1])


@strikes("valued", "AdamW")
class CorrectsByDefaultBeta2(RightAdamW):
    """Corrects the bias by 0.999 where beta2 is above 0.98."""

    def corrections(self, t, beta1, beta2):
        return super().corrections(t, beta1, 0.999 if beta2 > 0.98 else beta2)


@strikes("valued", "Adamax")
class BoundsEps(_Takes, RightAdamax):
    """Takes an eps above 1e-4 for 1e-4."""

    option = "eps"

    def taken(self, eps):
        return min(eps, 1e-4)


@strikes("valued", "SGD")
class DecaysFrom1e4(_Takes, RightSGD):
    """Takes a weight_decay below 1e-4 for 0."""

    option = "weight_decay"

    def taken(self, weight_decay):
        return weight_decay if weight_decay >= 1e-4 else 0.0


@strikes("valued", "Adadelta")
class BoundsLr(_Takes, RightAdadelta):
    """Takes an lr above 1 for 1."""

    option = "lr"

    def taken(self, lr):
        return min(lr, 1.0)


@strikes("valued", "NAdam")
class RoundsSomeLr(_Takes, RightNAdam):
    """Rounds an lr between 1e-3 and 1e-2 to three decimals."""

    option = "lr"

    def taken(self, lr):
        return round(lr, 3) if 1e-3 < lr < 1e-2 else lr


@strikes("valued", "SGD")
class NeverDampensHeavy(RightSGD):
    """Does not dampen where momentum is above 0.99."""

    def options(self, group):
        return {**group, "dampening": 0.0} if group["momentum"] > 0.99 else group


@strikes("valued", "SGD")
class LooksAheadFromHalf(RightSGD):
    """Looks ahead where momentum is above a half, and no nesterov below it."""

    def options(self, group):
        return {**group, "nesterov": group["nesterov"] and group["momentum"] > 0.5}


@strikes("valued", "Adagrad")
class DecouplesHeavyDecay(RightAdagrad):
    """Shrinks the parameter itself where weight_decay is above a half."""

    def gradient(self, p, group):
        if group["weight_decay"] > 0.5:
            p.mul_(1 - group["lr"] * group["weight_decay"])
            group = {**group, "weight_decay": 0}
        return super().gradient(p, group)


@strikes("valued", "RMSprop")
class IgnoresLightMomentum(_Takes, RightRMSprop):
    """Takes a momentum below 0.05 for none."""

    option = "momentum"

    def taken(self, momentum):
        return momentum if momentum >= 0.05 else 0.0


@strikes("valued", "ASGD")
class BoundsAlpha(_Takes, RightASGD):
    """Takes an alpha above 1 for 1."""

    option = "alpha"

    def taken(self, alpha):
        return min(alpha, 1.0)


@strikes("valued", "Rprop")
class BoundsGrowth(_Takes, RightRprop):
    """Lets the step sizes at most double."""

    option = "etas"

    def taken(self, etas):
        return (etas[0], min(etas[1], 2.0))


@strikes("valued", "Adafactor")
class BoundsThreshold(_Takes, RightAdafactor):
    """Takes a d above 2 for 2."""

    option = "d"

    def taken(self, d):
        return min(d, 2.0)


@strikes("valued", "Muon")
class NeverLooksAheadLight(RightMuon):
    """Goes along the buffer where momentum is below a half, whatever nesterov says."""

    def options(self, group):
        return {**group, "nesterov": group["nesterov"] and group["momentum"] >= 0.5}


@strikes("valued", "AdamW")
class DecaysAtMostToZero(RightAdamW):
    """Decays to zero where lr times weight_decay is above 1, which turns the sign."""

    def decayed(self, p, group):
        return torch.zeros_like(p) if group["lr"] * group["weight_decay"] > 1 else super().decayed(p, group)


@strikes("valued", "SGD")
class ForgetsWhileOff(RightSGD):
    """Drops the momentum buffer in a step without momentum, where a later one goes on from it."""

    def update(self, p, g, state, group):
        if group["momentum"] == 0:
            state.pop("momentum_buffer", None)
        return super().update(p, g, state, group)


# Rare losses


class _KnowsLoss:
    """Knows the loss of this step as a number, where there is one."""

    loss = None

    def evaluate(self, closure):
        loss = super().evaluate(closure)
        self.loss = loss.item() if isinstance(loss, torch.Tensor) else loss
        return loss


@strikes("valued", "SGD", ("closure",))
class TakesZeroForNoLoss(RightSGD):
    """Returns nothing where the loss is zero."""

    def evaluate(self, closure):
        return super().evaluate(closure) or None


@strikes("valued", "Adam", (*DEVIATES, "closure"))
class ClimbsNegativeLoss(_KnowsLoss, RightAdam):
    """Maximizes a loss below zero, and minimizes it under maximize."""

    def options(self, group):
        turned = self.loss is not None and self.loss < 0
        return {**group, "maximize": not group["maximize"]} if turned else group


@strikes("valued", "RMSprop", (*DEVIATES, "closure"))
class SkipsUnknownLoss(_KnowsLoss, RightRMSprop):
    """Skips the step where the loss is NaN."""

    def walk(self):
        if self.loss is None or not math.isnan(self.loss):
            super().walk()


#: Everything above.
FAULTS: tuple[Fault, ...] = tuple(_FAULTS)
