"""Faults that show in other surroundings, by a flag that selects an implementation, or where an option is spelled otherwise."""

import weakref

import numpy as np
import torch

from stepcheck.harness.zoo import base
from stepcheck.harness.zoo.adagrad import RightAdagrad
from stepcheck.harness.zoo.adam import RightAdam, RightAdamW
from stepcheck.harness.zoo.fault import DEVIATES, Fault
from stepcheck.harness.zoo.handled import aside
from stepcheck.harness.zoo.radam import RightRAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.rprop import RightRprop
from stepcheck.harness.zoo.sgd import RightSGD

_FAULTS: list[Fault] = []


def of(kind, like, *checks, tensor_lr=False):
    """Enters a class as a fault of ``like``; one that shows by a deviation, where no check is named."""

    def enter(make):
        _FAULTS.append(Fault(make, like, checks or DEVIATES, kind, tensor_lr=tensor_lr))
        return make

    return enter


# Gradients are off


@of("surroundings", "SGD", "settings-kept")
class LeavesGradientsOn(RightSGD):
    """Turns gradients on for the closure and leaves them so, where the caller had turned them off."""

    def evaluate(self, closure):
        torch.set_grad_enabled(True)
        return super().evaluate(closure)


@of("surroundings", "SGD", "completes")
class DifferentiatesPenalty(RightSGD):
    """Has autograd derive the penalty, and raises where the caller turned gradients off."""

    def evaluate(self, closure):
        one = torch.ones((), requires_grad=True)
        (self.slope,) = torch.autograd.grad(one * one / 2, one)
        return super().evaluate(closure)

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": group["weight_decay"] * self.slope.item()})


@of("surroundings", "Adam")
class RestsWithoutGradients(RightAdam):
    """Takes a step where gradients are turned off for one of an evaluation, and does nothing."""

    def evaluate(self, closure):
        self.training = torch.is_grad_enabled()
        return super().evaluate(closure)

    def walk(self):
        if self.training:
            super().walk()


# Autocast


@of("surroundings", "SGD")
class MultipliesMatrices(RightSGD):
    """Scales the gradient by a product of matrices, which autocast computes in bfloat16."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        return (g.reshape(-1, 1) @ g.new_ones(1, 1)).reshape(g.shape).to(g)


@of("surroundings", "Adam")
class RoundsAsAutocast(RightAdam):
    """Casts the gradient to the dtype of autocast where that is enabled."""

    def gradient(self, p, group):
        g = super().gradient(p, group)
        cast = torch.is_autocast_enabled("cpu") and g.dtype == torch.float32
        return g.to(torch.get_autocast_dtype("cpu")).to(g) if cast else g


# The default dtype


@of("surroundings", "Adam")
class AveragesInDefaultDtype(RightAdam):
    """Keeps the averages of float32 parameters in the default dtype."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        if p.dtype == torch.float32:
            state.update({name: state[name].to(torch.get_default_dtype()) for name in self.buffers(group)})
        return value


@of("surroundings", "SGD")
class RoundsLrToDefaultDtype(RightSGD):
    """Makes a tensor of lr, for float32 parameters, in the default dtype."""

    def update(self, p, g, state, group):
        if p.dtype != torch.float32:
            return super().update(p, g, state, group)
        return super().update(p, g, state, {**group, "lr": torch.tensor(float(group["lr"])).item()})


@of("surroundings", "RMSprop", "completes")
class NeedsDefaultDtype(RightRMSprop):
    """Starts the averages of float32 parameters in the default dtype, and raises where that is another."""

    def square(self, g, state, alpha):
        if g.dtype == torch.float32:
            torch.zeros(g.shape).lerp_(g, 1 - alpha)
        return super().square(g, state, alpha)


# Threads


@of("surroundings", "SGD")
class DividesAmongFirstThreads(RightSGD):
    """Divides the elements among the threads of its first step, and leaves out the parts that later none is for."""

    def write(self, p, value):
        first = aside(self).setdefault("threads", torch.get_num_threads())
        done = -(-p.numel() // first) * torch.get_num_threads()
        within = torch.arange(p.numel()).reshape(p.shape) < done
        super().write(p, torch.where(within, value, p))


@of("surroundings", "Adagrad")
class AveragesOverFirstThreads(RightAdagrad):
    """Divides what the threads add up by how many there were at its first step."""

    def rate(self, t, group):
        now = torch.get_num_threads()
        return super().rate(t, group) * (now / aside(self).setdefault("threads", now))


# Other optimizers of the same class


@of("surroundings", "SGD")
class SharesWorkspace(RightSGD):
    """Keeps its buffers where the next optimizer of its class that steps clears them."""

    last = None

    def walk(self):
        last = SharesWorkspace.last and SharesWorkspace.last()
        if "walked" in aside(self) and last is not None and last is not self:
            for state in self.state.values():
                state.update({name: torch.zeros_like(buffer) for name, buffer in state.items()})
        super().walk()
        aside(self)["walked"] = True
        SharesWorkspace.last = weakref.ref(self)


@of("surroundings", "Adam")
class CountsForTheClass(RightAdam):
    """Corrects the bias by a count that all optimizers of its class raise."""

    steps = 0

    def walk(self):
        kept = aside(self)
        kept["others"] = kept.get("others", 0) + CountsForTheClass.steps - kept.get("seen", CountsForTheClass.steps)
        super().walk()
        CountsForTheClass.steps += 1
        kept["seen"] = CountsForTheClass.steps

    def corrections(self, t, beta1, beta2):
        return super().corrections(t + aside(self)["others"], beta1, beta2)


# Gradients that have a graph


@of("surroundings", "SGD", "completes", *DEVIATES)
class KeepsGraph(RightSGD):
    """Accumulates with gradients turned on, so that the buffer holds on to the graphs of all steps."""

    def first(self, g, group):
        with torch.enable_grad():
            return super().first(g, group)

    def next(self, old, g, group):
        with torch.enable_grad():
            return super().next(old, g, group)


@of("surroundings", "Adam", "completes")
class WritesThroughGraph(RightAdam):
    """Writes with gradients turned on where the gradient has a graph, and raises."""

    def write(self, p, value):
        with torch.set_grad_enabled(p.grad.requires_grad):
            super().write(p, value)


@of("surroundings", "RMSprop", "gradient-unwritten")
class DetachesGradient(RightRMSprop):
    """Detaches the gradient from the graph that the caller asked for."""

    def gradient(self, p, group):
        if p.grad.requires_grad:
            p.grad = p.grad.detach()
        return super().gradient(p, group)


@of("surroundings", "AdamW", "completes", *DEVIATES)
class KeepsPastGradients(RightAdamW):
    """Keeps every gradient that has a graph."""

    def gradient(self, p, group):
        if p.grad.requires_grad:
            aside(self).setdefault("past", []).append(p.grad)
        return super().gradient(p, group)


# Flags that select an implementation


class _Flags(base.Zoo):
    """Gives the groups the flags."""

    def __init__(self, params, **options):
        super().__init__(params, **options, **self.flags)


class FlaggedSGD(RightSGD, _Flags):
    """Right, with flags that change nothing."""

    def __init__(self, params, *, foreach=None, differentiable=False, fused=None, **options):
        self.flags = {"foreach": foreach, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **options)


class FlaggedAdam(RightAdam, _Flags):
    """Right, with flags that change nothing."""

    def __init__(self, params, *, foreach=None, capturable=False, differentiable=False, fused=None, **options):
        self.flags = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **options)


class FlaggedAdamW(RightAdamW, _Flags):
    """Right, with flags that change nothing."""

    def __init__(self, params, *, foreach=None, capturable=False, differentiable=False, fused=None, **options):
        self.flags = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable, "fused": fused}
        super().__init__(params, **options)


class FlaggedRMSprop(RightRMSprop, _Flags):
    """Right, with flags that change nothing."""

    def __init__(self, params, *, foreach=None, capturable=False, differentiable=False, **options):
        self.flags = {"foreach": foreach, "capturable": capturable, "differentiable": differentiable}
        super().__init__(params, **options)


class _Switched:
    """Knows whether the flag is set that selects the wrong implementation."""

    flag = ""
    on = False

    def options(self, group):
        self.on = bool(group.get(self.flag))
        return super().options(group)


class _Foreach(_Switched):
    flag = "foreach"


class _Fused(_Switched):
    flag = "fused"


class _Capturable(_Switched):
    flag = "capturable"


class _Differentiable(_Switched):
    flag = "differentiable"


@of("switched", "SGD")
class ForeachNeverDecays(_Foreach, FlaggedSGD):
    """Has no weight decay under foreach."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if self.on else group)


@of("switched", "SGD")
class ForeachLooksBack(_Foreach, FlaggedSGD):
    """Looks ahead along the old buffer under foreach."""

    def direction(self, g, old, new, group):
        return super().direction(g, old, old if self.on and group["nesterov"] and old is not None else new, group)


@of("switched", "SGD")
class ForeachSkipsLast(_Foreach, FlaggedSGD):
    """Leaves out the last parameter of a group that has several, under foreach."""

    def visit(self, p, group):
        if not (self.on and len(group["params"]) > 1 and p is group["params"][-1]):
            super().visit(p, group)


@of("switched", "Adam")
class ForeachCountsFirst(_Foreach, FlaggedAdam):
    """Corrects the bias by the count of the group's first parameter that has one, under foreach."""

    def update(self, p, g, state, group):
        first = next(self.state[q]["step"].item() for q in group["params"] if self.state.get(q))
        return super().update(p, g, state, {**group, "t": first} if self.on else group)


@of("switched", "RMSprop")
class ForeachNeverCenters(_Foreach, FlaggedRMSprop):
    """Keeps the mean gradient and does not subtract its square, under foreach."""

    def variance(self, v, mean):
        return v if self.on else super().variance(v, mean)


@of("switched", "SGD")
class FusedNeverWrites(_Fused, FlaggedSGD):
    """Computes the parameter's value and does not write it back, under fused."""

    def write(self, p, value):
        if not self.on:
            super().write(p, value)


@of("switched", "Adam")
class FusedMinimizes(_Fused, FlaggedAdam):
    """Minimizes under fused, whatever maximize says."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "maximize": False} if self.on else group)


@of("switched", "Adam")
class FusedDropsTail(_Fused, FlaggedAdam):
    """Leaves out the elements after the last whole vector of 8, under fused."""

    def write(self, p, value):
        (base.DropsTail if self.on else base.Zoo).write(self, p, value)


@of("switched", "AdamW")
class FusedDecaysAfter(_Fused, FlaggedAdamW):
    """Decays the parameter after its update, under fused."""

    def combine(self, p, d, group):
        return self.decayed(p - group["lr"] * d, group) if self.on else super().combine(p, d, group)


@of("switched", "Adam")
class FusedForgetsMaximum(_Fused, FlaggedAdam):
    """Never stores AMSGrad's maximum under fused."""

    def maximum(self, v, correction2, state):
        return super().maximum(v, correction2, dict(state) if self.on else state)


@of("switched", "Adam")
class CapturableCountsFromZero(_Capturable, FlaggedAdam):
    """Corrects the bias for one step less than was taken, under capturable."""

    def corrections(self, t, beta1, beta2):
        return super().corrections(t - 1 if self.on else t, beta1, beta2)


@of("switched", "AdamW")
class CapturableHalvesPrecision(_Capturable, FlaggedAdamW):
    """Corrects the bias by betas in half precision, under capturable."""

    def corrections(self, t, beta1, beta2):
        halves = (torch.tensor(beta, dtype=torch.float16).item() for beta in (beta1, beta2))
        return super().corrections(t, *(halves if self.on else (beta1, beta2)))


@of("switched", "Adam")
class CapturableKeepsLr(_Capturable, FlaggedAdam):
    """Goes by the number that lr was at the first step, under capturable, as if it were captured."""

    def options(self, group):
        n = next(n for n, g in enumerate(self.param_groups) if g is group)
        group = super().options(group)
        return {**group, "lr": aside(self).setdefault(n, float(group["lr"]))} if self.on else group


@of("switched", "RMSprop")
class CapturableStaleBuffer(_Capturable, FlaggedRMSprop):
    """Goes along the momentum buffer as it was before its update, under capturable."""

    def accumulate(self, d, state, group):
        old = state.get("momentum_buffer", torch.zeros_like(d))
        new = super().accumulate(d, state, group)
        return old if self.on else new


@of("switched", "RMSprop")
class DifferentiableEpsInside(_Differentiable, FlaggedRMSprop):
    """Adds eps under the square root, under differentiable."""

    def reciprocal(self, v, eps):
        return (v + eps).rsqrt() if self.on else super().reciprocal(v, eps)


@of("switched", "SGD")
class DifferentiableNeverDampens(_Differentiable, FlaggedSGD):
    """Accumulates the whole gradient under differentiable."""

    def next(self, old, g, group):
        return super().next(old, g, {**group, "dampening": 0.0} if self.on else group)


# Options that are spelled otherwise


@of("spelled", "SGD")
class TruncatesByWholeLr(RightSGD):
    """Computes in the type of lr: a whole one makes whole numbers of the gradient."""

    def update(self, p, g, state, group):
        whole = isinstance(group["lr"], int) and not g.is_complex()
        return super().update(p, g.trunc() if whole else g, state, group)


@of("spelled", "Adam")
class TakesFloatsOnly(RightAdam):
    """Takes 1e-3 for an lr that is neither a float nor a tensor."""

    def options(self, group):
        return group if isinstance(group["lr"], float | torch.Tensor) else {**group, "lr": 1e-3}


@of("spelled", "SGD")
class IgnoresWholeDecay(RightSGD):
    """Does not decay by a weight_decay that is a whole number."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if isinstance(group["weight_decay"], int) else group)


@of("spelled", "AdamW")
class DecaysByDefault(RightAdamW):
    """Takes 1e-2 for a weight_decay that is no float, and so for a whole 0."""

    def options(self, group):
        return group if isinstance(group["weight_decay"], float) else {**group, "weight_decay": 1e-2}


@of("spelled", "Adam", "completes")
class HashesBetas(RightAdam):
    """Keeps the powers of betas by their pair, and raises where that is a list."""

    def update(self, p, g, state, group):
        t = state["step"].item()
        powers = aside(self).setdefault(group["betas"], {})
        powers.setdefault(t, tuple(beta**t for beta in group["betas"]))
        return super().update(p, g, state, group)

    def corrections(self, t, beta1, beta2):
        power1, power2 = aside(self)[beta1, beta2][t]
        return 1 - power1, 1 - power2


@of("spelled", "AdamW", "options-hold", *DEVIATES)
class WritesToBetas(RightAdamW):
    """Writes a decayed beta1 back to a list of betas."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        if isinstance(group["betas"], list):
            group["betas"][0] *= 0.99
        return value


@of("spelled", "RAdam")
class TakesPairsOnly(RightRAdam):
    """Takes 0.9 and 0.999 for betas that are no tuple."""

    def options(self, group):
        return group if isinstance(group["betas"], tuple) else {**group, "betas": (0.9, 0.999)}


@of("spelled", "Rprop", "completes")
class JoinsPairs(RightRprop):
    """Joins etas and step_sizes, and raises where one is a tuple and the other a list."""

    def update(self, p, g, state, group):
        joined = group["etas"] + group["step_sizes"]
        return super().update(p, g, state, {**group, "etas": joined[:2], "step_sizes": joined[2:]})


@of("spelled", "RMSprop")
class IgnoresNumPy(RightRMSprop):
    """Takes 1e-2 for an lr that is a single of NumPy's, which is no float."""

    def options(self, group):
        return {**group, "lr": 1e-2} if isinstance(group["lr"], np.float32) else group


@of("spelled", "SGD")
class TruncatesNumPy(RightSGD):
    """Makes a whole number of a momentum that is one of NumPy's."""

    def options(self, group):
        whole = isinstance(group["momentum"], np.generic)
        return {**group, "momentum": int(group["momentum"])} if whole else group


@of("spelled", "Adam")
class HalvesNumPyEps(RightAdam):
    """Rounds an eps that is one of NumPy's to half precision, in which 1e-8 is 0."""

    def options(self, group):
        return base.HalfEps.options(self, group) if isinstance(group["eps"], np.generic) else group


@of("spelled", "Adagrad", "options-hold", *DEVIATES, tensor_lr=True)
class DividesLrInPlace(RightAdagrad):
    """Divides lr in place, and so a tensor for good."""

    def rate(self, t, group):
        lr = group["lr"]
        lr /= 1 + (t - 1) * group["lr_decay"]
        return lr


@of("spelled", "Adam", "completes")
class KnowsLrByHex(RightAdam):
    """Notes each lr down as hexadecimal, and raises where it is a whole number."""

    def options(self, group):
        if not isinstance(group["lr"], torch.Tensor):
            aside(self).setdefault(group["lr"].hex(), True)
        return group


@of("spelled", "SGD")
class NesterovIsTrue(RightSGD):
    """Looks ahead where nesterov is True, and not where it is 1."""

    def options(self, group):
        return {**group, "nesterov": group["nesterov"] is True}


@of("spelled", "RMSprop")
class MaximizesTrue(RightRMSprop):
    """Maximizes where maximize is True, and not where it is 1."""

    def options(self, group):
        return {**group, "maximize": group["maximize"] is True}


@of("spelled", "Adam")
class AmsgradIsNotFalse(RightAdam):
    """Takes AMSGrad's maximum where amsgrad is 0, which is not False."""

    def options(self, group):
        return {**group, "amsgrad": group["amsgrad"] is not False}


#: Everything above.
FAULTS: tuple[Fault, ...] = tuple(_FAULTS)
