"""Right optimizers, each written by itself, in another order of operations, precision or form than the ``Right...`` classes.

What a competent author would ship. None of them may fail a check: they are the false alarms of the harness, if it has any.
"""

import copy
import functools
import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import torch

from stepcheck.harness.play.profiles import ANY_CLASS
from stepcheck.harness.zoo.fault import Variant


def closing(update):
    """A step that evaluates the closure, if there is one, then updates without recording, and returns the loss."""

    @functools.wraps(update)
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            update(self)
        return loss

    return step


class Each(torch.optim.Optimizer):
    """One parameter after the other."""

    def __init__(self, params, **defaults):
        super().__init__(params, defaults)

    @closing
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)

    def update(self, p, g, state, group):
        raise NotImplementedError


class Together(Each):
    """All parameters of a group and dtype at once."""

    @closing
    def step(self):
        for group in self.param_groups:
            of_dtype = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    of_dtype[p.dtype].append(p)
            for params in of_dtype.values():
                self.update_all(params, group)

    def update_all(self, params, group):
        raise NotImplementedError


def begun(state, p, *names, **more):
    """The state of a parameter, made of zeros in its first step; its steps are counted as a Python number."""
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(p)
    for name, value in more.items():
        state.setdefault(name, value)
    state["step"] = state.get("step", 0) + 1
    return state["step"]


def descended(p, g, group):
    """The gradient to descend, with the penalty's."""
    g = g.neg() if group["maximize"] else g
    return g.add(p, alpha=group["weight_decay"]) if group["weight_decay"] != 0 else g


def wide(*tensors):
    """In float64, whatever they are."""
    return [t.double() for t in tensors]


def kept(buffer, value):
    """``value`` rounded into a buffer, and what it then holds, in float64."""
    return buffer.copy_(value).double()


def fma(a, b, c):
    """``a b + c``, rounded once: of float32, the product of two is exact in float64."""
    if c.dtype == torch.float64:
        return torch.addcmul(c, a, b) if isinstance(a, torch.Tensor) else torch.add(c, b, alpha=a)
    return ((a.double() if isinstance(a, torch.Tensor) else a) * b.double() + c.double()).to(c.dtype)


# SGD


class InPlaceSGD(Each):
    """In place, by adding multiples; the first gradient is copied."""

    def __init__(
        self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, *, nesterov=False, maximize=False
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

    def update(self, p, g, state, group):
        g = descended(p, g, group)
        if group["momentum"] != 0:
            b = state.get("momentum_buffer")
            if b is None:
                b = state["momentum_buffer"] = g.clone(memory_format=torch.preserve_format)
            else:
                b.mul_(group["momentum"]).add_(g, alpha=1 - group["dampening"])
            g = g.add(b, alpha=group["momentum"]) if group["nesterov"] else b
        p.sub_(g, alpha=group["lr"])


class ContractedSGD(InPlaceSGD):
    """Products and sums contracted, as a processor with fused multiply-add does."""

    def update(self, p, g, state, group):
        g = -g if group["maximize"] else g
        if group["weight_decay"] != 0:
            g = fma(group["weight_decay"], p, g)
        if group["momentum"] != 0:
            if "momentum_buffer" in state:
                b = fma(group["momentum"], state["momentum_buffer"], (1 - group["dampening"]) * g)
            else:
                b = g.clone()
            state["momentum_buffer"] = b
            g = fma(group["momentum"], b, g) if group["nesterov"] else b
        p.copy_(fma(-group["lr"], g, p))


class FlatSGD(InPlaceSGD, Together):
    """A group's parameters gathered into one vector, stepped at once, and scattered back."""

    step = Together.step

    def update_all(self, params, group):
        sizes = [p.numel() for p in params]
        flat = torch.cat([p.reshape(-1) for p in params])
        d = g = descended(flat, torch.cat([p.grad.reshape(-1) for p in params]), group)
        if group["momentum"] != 0:
            # One that has none yet starts from its gradient.
            held = [self.state[p].get("momentum_buffer") for p in params]
            new = [torch.full((n,), b is None, dtype=torch.bool) for n, b in zip(sizes, held, strict=True)]
            old = torch.cat([(p if b is None else b).reshape(-1) for p, b in zip(params, held, strict=True)])
            b = torch.where(torch.cat(new), g, group["momentum"] * old + (1 - group["dampening"]) * g)
            for p, part in zip(params, b.split(sizes), strict=True):
                self.state[p]["momentum_buffer"] = part.clone().view(p.shape)
            d = g + group["momentum"] * b if group["nesterov"] else b
        for p, part in zip(params, (flat - group["lr"] * d).split(sizes), strict=True):
            p.copy_(part.view(p.shape))


class NarrowSGD(InPlaceSGD):
    """Narrow dtypes are computed in float32 from beginning to end, and rounded when they are stored."""

    def update(self, p, g, state, group):
        working = torch.promote_types(p.dtype, torch.float32)
        x, g = p.to(working), g.to(working)
        g = descended(x, g, group)
        if group["momentum"] != 0:
            if "momentum_buffer" in state:
                b = group["momentum"] * state["momentum_buffer"].to(working) + (1 - group["dampening"]) * g
                state["momentum_buffer"].copy_(b)
            else:
                b = g
                state["momentum_buffer"] = g.to(p.dtype, copy=True)
            g = g + group["momentum"] * b if group["nesterov"] else b
        p.copy_(x - group["lr"] * g)


class PlainSGD:
    """No descendant of torch's: its own groups and state_dict, and NumPy on the memory of the parameters."""

    def __init__(
        self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, *, nesterov=False, maximize=False
    ):
        self.defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
        }
        self.param_groups, self.state = [], {}
        params = list(params)
        for group in params if isinstance(params[0], dict) else [{"params": params}]:
            self.add_param_group(group)

    def add_param_group(self, group):
        self.param_groups.append({**self.defaults, **group, "params": list(group["params"])})

    def parameters(self):
        return [p for group in self.param_groups for p in group["params"]]

    def zero_grad(self, set_to_none=True):
        for p in self.parameters():
            if set_to_none:
                p.grad = None
            elif p.grad is not None:
                p.grad.detach().zero_()

    def state_dict(self):
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        buffers = [self.state.get(p, {}).get("momentum_buffer") for p in self.parameters()]
        return {"groups": groups, "buffers": buffers}

    def load_state_dict(self, state_dict):
        for group, saved in zip(self.param_groups, state_dict["groups"], strict=True):
            group.update(saved)
        pairs = zip(self.parameters(), state_dict["buffers"], strict=True)
        self.state = {p: {"momentum_buffer": b.clone()} for p, b in pairs if b is not None}

    def step(self, closure=None):
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad.detach().numpy(), group)
        return loss

    def update(self, p, g, group):
        x = p.detach().numpy()
        if group["maximize"]:
            g = -g
        if group["weight_decay"] != 0:
            g = g + group["weight_decay"] * x
        if group["momentum"] != 0:
            held = self.state.setdefault(p, {"momentum_buffer": None})
            if held["momentum_buffer"] is None:
                held["momentum_buffer"] = torch.tensor(g)
            else:
                b = held["momentum_buffer"].numpy()
                b *= group["momentum"]
                b += (1 - group["dampening"]) * g
            b = held["momentum_buffer"].numpy()
            g = g + group["momentum"] * b if group["nesterov"] else b
        x -= group["lr"] * g


# Adam


class LerpAdam(Each):
    """Averages with torch.lerp, and divides by addcdiv, in place."""

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        *,
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

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        g = self.penalized(p, g, group)
        m.lerp_(g, 1 - group["betas"][0])
        v.lerp_(g * g, 1 - group["betas"][1])
        denominator = self.largest(v, state, group).sqrt().div_(math.sqrt(correction2)).add_(group["eps"])
        p.addcdiv_(m, denominator, value=-group["lr"] / correction1)

    def begin(self, p, state, group):
        """Both averages as they are, and both bias corrections of this step."""
        t = begun(state, p, "exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))
        beta1, beta2 = group["betas"]
        return state["exp_avg"], state["exp_avg_sq"], 1 - beta1**t, 1 - beta2**t

    def penalized(self, p, g, group):
        """The gradient to descend; where weight decay is decoupled, the parameter shrinks instead."""
        if group["decoupled_weight_decay"] and group["weight_decay"] != 0:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        return descended(p, g, {**group, "weight_decay": 0} if group["decoupled_weight_decay"] else group)

    def largest(self, v, state, group):
        if not group["amsgrad"]:
            return v
        return torch.maximum(state["max_exp_avg_sq"], v, out=state["max_exp_avg_sq"])


class DifferenceAdam(LerpAdam):
    """Averages by adding a part of the difference."""

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m += (1 - beta1) * (g - m)
        v += (1 - beta2) * (g.square() - v)
        root = (self.largest(v, state, group) / correction2).sqrt()
        p -= group["lr"] / correction1 * (m / (root + group["eps"]))


class ContractedAdam(LerpAdam):
    """Products and sums contracted, as a processor with fused multiply-add does."""

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        beta1, beta2 = group["betas"]
        g = -g if group["maximize"] else g
        x = p
        if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
            x = fma(-group["lr"] * group["weight_decay"], p, p)
        elif group["weight_decay"] != 0:
            g = fma(group["weight_decay"], p, g)
        m.copy_(fma(beta1, m, (1 - beta1) * g))
        v.copy_(fma((1 - beta2) * g, g, beta2 * v))
        denominator = self.largest(v, state, group).sqrt() / correction2**0.5 + group["eps"]
        p.copy_(fma(-group["lr"] / correction1, m / denominator, x))


class ReciprocalAdam(LerpAdam):
    """Multiplies by reciprocals, and never divides."""

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = self.largest(v, state, group).sqrt() * correction2**-0.5
        p -= m * (group["lr"] / correction1) * (root + group["eps"]).reciprocal()


class ScaledEpsAdam(LerpAdam):
    """Corrects the bias of the second moment in eps and in the step length, not in the root; corrections by expm1."""

    def begin(self, p, state, group):
        m, v, *_ = super().begin(p, state, group)
        t = state["step"]
        return m, v, *(1.0 if beta == 0 else -math.expm1(t * math.log(beta)) for beta in group["betas"])

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = math.sqrt(correction2)
        denominator = self.largest(v, state, group).sqrt().add_(group["eps"] * root)
        p.addcdiv_(m, denominator, value=-group["lr"] * root / correction1)


class WideAdam(LerpAdam):
    """Everything in float64; averages and parameter are rounded once, and what follows starts from the rounded ones."""

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        beta1, beta2 = group["betas"]
        x, g, w = wide(p, g, v)
        g = self.penalized(x, g, group)
        m = kept(m, beta1 * m.double() + (1 - beta1) * g)
        w = kept(v, beta2 * w + (1 - beta2) * g * g)
        if group["amsgrad"]:
            w = self.largest(v, state, group).double()
        p.copy_(x - group["lr"] * (m / correction1) / ((w / correction2).sqrt() + group["eps"]))


class OwnScalarsAdam(LerpAdam):
    """Every scalar is a tensor of the parameter's dtype: formed in float64, rounded once."""

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        number = functools.partial(torch.tensor, dtype=p.dtype)
        beta1, beta2 = group["betas"]
        if group["maximize"]:
            g = g * number(-1.0)
        if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
            p *= number(1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"] != 0:
            g = g + number(group["weight_decay"]) * p
        m.copy_(number(beta1) * m + number(1 - beta1) * g)
        v.copy_(number(beta2) * v + number(1 - beta2) * (g * g))
        denominator = self.largest(v, state, group).sqrt() / number(math.sqrt(correction2)) + number(group["eps"])
        p -= number(group["lr"] / correction1) * m / denominator


class SingleAdam(LerpAdam):
    """Options, counts and all scalars that follow from them are float32 numbers of NumPy, whatever the dtype."""

    def update(self, p, g, state, group):
        m, v, *_ = self.begin(p, state, group)
        names = ("lr", "eps", "weight_decay")
        lr, eps, decay, beta1, beta2 = map(np.float32, (*(group[name] for name in names), *group["betas"]))
        one, t = np.float32(1), np.float32(state["step"])
        x, g = p.detach().numpy(), g.detach().numpy()
        g = -g if group["maximize"] else g
        if decay != 0 and group["decoupled_weight_decay"]:
            x *= one - lr * decay
        elif decay != 0:
            g = g + decay * x
        m, w = m.numpy(), v.numpy()
        m[...] = beta1 * m + (one - beta1) * g
        w[...] = beta2 * w + (one - beta2) * (g * g)
        w = self.largest(v, state, group).numpy()
        x -= lr / (one - beta1**t) * m / (np.sqrt(w) / np.sqrt(one - beta2**t) + eps)


class TensorCountAdam(LerpAdam):
    """Bias corrections are formed in float32, from a count that is a tensor and never read."""

    def update(self, p, g, state, group):
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
            if group["amsgrad"]:
                state["max_exp_avg_sq"] = torch.zeros_like(p)
        state["step"] += 1
        m, v, t, (beta1, beta2) = state["exp_avg"], state["exp_avg_sq"], state["step"], group["betas"]
        g = self.penalized(p, g, group)
        m.lerp_(g, 1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = self.largest(v, state, group).sqrt() / (1 - beta2**t).sqrt() + group["eps"]
        p.sub_(m / denominator * (group["lr"] / (1 - beta1**t)))


class ForeachAdam(LerpAdam, Together):
    """Lists of tensors, an operation for all of one dtype at a time."""

    step = Together.step

    def update_all(self, params, group):
        beta1, beta2 = group["betas"]
        begun_all = [self.begin(p, self.state[p], group) for p in params]
        m, v, correction1, correction2 = map(list, zip(*begun_all, strict=True))
        grads = [p.grad for p in params]
        if group["maximize"]:
            grads = torch._foreach_neg(grads)
        if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
            torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
        elif group["weight_decay"] != 0:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        torch._foreach_lerp_(m, grads, 1 - beta1)
        torch._foreach_mul_(v, beta2)
        torch._foreach_addcmul_(v, grads, grads, 1 - beta2)
        if group["amsgrad"]:
            largest = [self.state[p]["max_exp_avg_sq"] for p in params]
            torch._foreach_maximum_(largest, v)
            v = largest
        denominators = torch._foreach_sqrt(v)
        torch._foreach_div_(denominators, [c**0.5 for c in correction2])
        torch._foreach_add_(denominators, group["eps"])
        torch._foreach_addcdiv_(params, m, denominators, [-group["lr"] / c for c in correction1])


class BlockedAdam(LerpAdam):
    """In blocks of 16 elements, and the rest one by one."""

    block = 16

    def update(self, p, g, state, group):
        m, v, correction1, correction2 = self.begin(p, state, group)
        w = state["max_exp_avg_sq"] if group["amsgrad"] else v
        flat = [t.reshape(-1).clone() for t in (p, g, m, v, w)]
        whole = p.numel() // self.block * self.block
        ends = [*range(self.block, whole + 1, self.block), *range(whole + 1, p.numel() + 1)]
        for start, end in zip([0, *ends], ends, strict=False):
            self.update_block(*(t[start:end] for t in flat), correction1, correction2, group)
        x, _, m_after, v_after, w_after = (t.view(p.shape) for t in flat)
        p.copy_(x)
        m.copy_(m_after)
        v.copy_(v_after)
        if group["amsgrad"]:
            w.copy_(w_after)

    def update_block(self, x, g, m, v, w, correction1, correction2, group):
        beta1, beta2 = group["betas"]
        g = self.penalized(x, g, group)
        m.mul_(beta1).add_((1 - beta1) * g)
        v.mul_(beta2).add_((1 - beta2) * g * g)
        torch.maximum(w, v, out=w) if group["amsgrad"] else w.copy_(v)
        x.sub_(group["lr"] * (m / correction1) / ((w / correction2).sqrt() + group["eps"]))


class NumpyAdam(LerpAdam):
    """NumPy on the memory of parameter and state."""

    def update(self, p, g, state, group):
        *averages, correction1, correction2 = self.begin(p, state, group)
        (m, v), x, g = (t.numpy() for t in averages), p.detach().numpy(), g.detach().numpy()
        beta1, beta2 = group["betas"]
        g = np.negative(g) if group["maximize"] else g
        if group["weight_decay"] != 0 and group["decoupled_weight_decay"]:
            x -= group["lr"] * group["weight_decay"] * x
        elif group["weight_decay"] != 0:
            g = g + group["weight_decay"] * x
        m *= beta1
        m += (1 - beta1) * g
        v *= beta2
        v += (1 - beta2) * np.square(g)
        if group["amsgrad"]:
            w = state["max_exp_avg_sq"].numpy()
            v = np.maximum(w, v, out=w)
        x -= group["lr"] / correction1 * m / (np.sqrt(v) / np.sqrt(correction2) + group["eps"])


class LoopedAdam(LerpAdam):
    """A loop over the numbers of a small tensor, in Python's own arithmetic; larger ones with torch."""

    most = 16

    def update(self, p, g, state, group):
        if p.numel() > self.most:
            super().update(p, g, state, group)
            return
        m, v, correction1, correction2 = self.begin(p, state, group)
        beta1, beta2 = group["betas"]
        sign = -1.0 if group["maximize"] else 1.0
        penalty = 0.0 if group["decoupled_weight_decay"] else group["weight_decay"]
        shrink = 1 - group["lr"] * group["weight_decay"] if group["decoupled_weight_decay"] else 1.0
        x = self.numbers(p)
        slopes = [sign * b + (penalty * a if penalty else 0.0) for a, b in zip(x, self.numbers(g), strict=True)]
        self.put(m, [beta1 * a + (1 - beta1) * b for a, b in zip(self.numbers(m), slopes, strict=True)])
        self.put(v, [beta2 * a + (1 - beta2) * b * b for a, b in zip(self.numbers(v), slopes, strict=True)])
        squares = self.numbers(self.largest(v, state, group))
        for i, (a, b) in enumerate(zip(self.numbers(m), squares, strict=True)):
            denominator = math.sqrt(b / correction2) + group["eps"]
            x[i] = shrink * x[i] - group["lr"] * self.quotient(a / correction1, denominator)
        self.put(p, x)

    def numbers(self, t):
        return t.reshape(-1).tolist()

    def put(self, t, numbers):
        t.copy_(torch.tensor(numbers, dtype=torch.float64).view(t.shape))

    def quotient(self, a, b):
        # Python raises where IEEE 754 says infinity, or NaN of two zeros.
        return a / b if b != 0 else math.copysign(math.inf, a) if a and not math.isnan(a) else math.nan


class NarrowAdam(LerpAdam):
    """Narrow dtypes are computed in float32 from beginning to end, and rounded when they are stored."""

    def update(self, p, g, state, group):
        *averages, correction1, correction2 = self.begin(p, state, group)
        working = torch.promote_types(p.dtype, torch.float32)
        x, g, m, v = (t.to(working, copy=True) for t in (p, g, *averages))
        beta1, beta2 = group["betas"]
        g = self.penalized(x, g, group)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        for buffer, value in zip(averages, (m, v), strict=True):
            buffer.copy_(value)
        if group["amsgrad"]:
            v = torch.maximum(state["max_exp_avg_sq"].to(working), v)
            state["max_exp_avg_sq"].copy_(v)
        p.copy_(x.addcdiv_(m, v.sqrt().div_(correction2**0.5).add_(group["eps"]), value=-group["lr"] / correction1))


class DerivedAdam(torch.optim.Adam):
    """torch.optim's own, from which it descends, under one more name."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, *, amsgrad=False, maximize=False
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=False)


class WrappedAdam:
    """Holds an optimizer of torch.optim and passes everything on to it."""

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, *, amsgrad=False, maximize=False
    ):
        # torch writes what a group lacks into the dictionary that it is given.
        params = [dict(group) if isinstance(group, dict) else group for group in params]
        self.inner = torch.optim.Adam(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)

    @property
    def param_groups(self):
        return self.inner.param_groups

    @property
    def state(self):
        return self.inner.state

    @property
    def defaults(self):
        return self.inner.defaults

    def step(self, closure=None):
        return self.inner.step(closure)

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def add_param_group(self, group):
        self.inner.add_param_group(dict(group))

    def state_dict(self):
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(copy.deepcopy(state_dict["inner"]))


# AdamW


class FlatAdamW(LerpAdam, Together):
    """A group's parameters, gradients and state gathered into one vector each, stepped at once, and scattered back."""

    step = Together.step

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, amsgrad=False, maximize=False
    ):
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad=amsgrad, maximize=maximize, decoupled_weight_decay=True
        )

    def update_all(self, params, group):
        beta1, beta2 = group["betas"]
        corrections = [self.begin(p, self.state[p], group)[2:] for p in params]
        names = ("exp_avg", "exp_avg_sq", *(("max_exp_avg_sq",) if group["amsgrad"] else ()))
        x, g = self.joined(params), self.joined([p.grad for p in params])
        m, v, *largest = (self.joined([self.state[p][name] for p in params]) for name in names)
        # Late gradients have counts of their own, so that the corrections differ within the vector.
        correction1, correction2 = (
            torch.cat([torch.full((p.numel(),), c, dtype=p.dtype) for p, c in zip(params, of_each, strict=True)])
            for of_each in zip(*corrections, strict=True)
        )
        g = self.penalized(x, g, group)
        m = beta1 * m + (1 - beta1) * g
        v = w = beta2 * v + (1 - beta2) * g * g
        if largest:
            largest = [torch.maximum(largest[0], v)]
            w = largest[0]
        x = x - group["lr"] * (m / correction1) / ((w / correction2).sqrt() + group["eps"])
        self.scatter(x, params)
        for name, value in zip(names, (m, v, *largest), strict=True):
            self.scatter(value, [self.state[p][name] for p in params])

    def joined(self, tensors):
        return torch.cat([t.reshape(-1) for t in tensors])

    def scatter(self, flat, tensors):
        for t, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            t.copy_(part.view(t.shape))


def foreach_adamw(params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, amsgrad=False, maximize=False):
    """A function that builds torch.optim's own, over lists of tensors."""
    return torch.optim.AdamW(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize, foreach=True)


# Adagrad


class EarlyAdagrad(Each):
    """The state exists as soon as a group does; squares are added by addcmul."""

    def __init__(
        self,
        params,
        lr=1e-2,
        lr_decay=0.0,
        weight_decay=0.0,
        initial_accumulator_value=0.0,
        eps=1e-10,
        *,
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

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for p in group["params"]:
            start = group["initial_accumulator_value"]
            self.state[p] = {"step": 0, "sum": torch.full_like(p, start, requires_grad=False)}

    def update(self, p, g, state, group):
        state["step"] += 1
        g = descended(p, g, group)
        state["sum"].addcmul_(g, g)
        lr = group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"])
        p.addcdiv_(g, state["sum"].sqrt().add_(group["eps"]), value=-lr)


class WideAdagrad(EarlyAdagrad):
    """Everything in float64; sum and parameter are rounded once, and what follows starts from the rounded sum."""

    def update(self, p, g, state, group):
        state["step"] += 1
        x, g = wide(p, g)
        g = descended(x, g, group)
        total = kept(state["sum"], state["sum"].double() + g**2)
        lr = group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"])
        p.copy_(x - lr * (g / (total.sqrt() + group["eps"])))


class RenamedAdagrad(torch.optim.Optimizer):
    """The paper's names: its state cannot be read, and its options are few."""

    def __init__(self, params, lr=1e-2, eps=1e-10):
        super().__init__(params, {"lr": lr, "eps": eps})

    @closing
    def step(self):
        for group in self.param_groups:
            for x in group["params"]:
                if x.grad is not None:
                    diagonal = self.state[x].setdefault("G", torch.zeros_like(x))
                    diagonal += x.grad * x.grad
                    x.sub_(x.grad / (diagonal.sqrt() + group["eps"]), alpha=group["lr"])


# RMSprop


class ReciprocalRMSprop(Each):
    """Averages with torch.lerp and multiplies by a reciprocal; parameters without elements are left out."""

    def __init__(
        self,
        params,
        lr=1e-2,
        alpha=0.99,
        eps=1e-8,
        weight_decay=0.0,
        momentum=0.0,
        *,
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

    def begin(self, p, state, group):
        names = ["square_avg"]
        names += ["grad_avg"] if group["centered"] else []
        names += ["momentum_buffer"] if group["momentum"] != 0 else []
        begun(state, p, *names)
        return state

    def update(self, p, g, state, group):
        self.begin(p, state, group)
        if p.numel() == 0:
            return
        g = descended(p, g, group)
        v = state["square_avg"].lerp_(g * g, 1 - group["alpha"])
        if group["centered"]:
            a = state["grad_avg"].lerp_(g, 1 - group["alpha"])
            v = v - a * a
        d = g * (1 / (v.sqrt() + group["eps"]))
        if group["momentum"] != 0:
            d = state["momentum_buffer"].mul_(group["momentum"]).add_(d)
        p.sub_(d, alpha=group["lr"])


class SingleRMSprop(ReciprocalRMSprop):
    """Options are tensors of one float32 number, and so is what is computed from them."""

    def update(self, p, g, state, group):
        self.begin(p, state, group)
        names = ("lr", "alpha", "eps", "weight_decay", "momentum")
        lr, alpha, eps, decay, momentum = (torch.tensor(float(group[name]), dtype=torch.float32) for name in names)
        g = -g if group["maximize"] else g
        g = g + decay * p if decay != 0 else g
        v = state["square_avg"].mul_(alpha).add_((1 - alpha) * g * g)
        if group["centered"]:
            a = state["grad_avg"].mul_(alpha).add_((1 - alpha) * g)
            v = v - a * a
        d = g / (v.sqrt() + eps)
        if group["momentum"] != 0:
            d = state["momentum_buffer"].mul_(momentum).add_(d)
        p.sub_(lr * d)


class ForeachRMSprop(ReciprocalRMSprop, Together):
    """Lists of tensors, an operation for all of one dtype at a time."""

    step = Together.step

    def update_all(self, params, group):
        states = [self.begin(p, self.state[p], group) for p in params]
        grads = [p.grad for p in params]
        if group["maximize"]:
            grads = torch._foreach_neg(grads)
        if group["weight_decay"] != 0:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        squares = [s["square_avg"] for s in states]
        torch._foreach_mul_(squares, group["alpha"])
        torch._foreach_addcmul_(squares, grads, grads, 1 - group["alpha"])
        if group["centered"]:
            means = [s["grad_avg"] for s in states]
            torch._foreach_lerp_(means, grads, 1 - group["alpha"])
            squares = torch._foreach_addcmul(squares, means, means, -1.0)
        denominators = torch._foreach_sqrt(squares)
        torch._foreach_add_(denominators, group["eps"])
        if group["momentum"] != 0:
            buffers = [s["momentum_buffer"] for s in states]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_addcdiv_(buffers, grads, denominators)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
        else:
            torch._foreach_addcdiv_(params, grads, denominators, -group["lr"])


# Adadelta


class RsqrtAdadelta(Each):
    """Multiplies by rsqrt, where the formula divides by a root."""

    def __init__(self, params, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0, *, maximize=False):
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def update(self, p, g, state, group):
        begun(state, p, "square_avg", "acc_delta")
        rho, eps, v, u = group["rho"], group["eps"], state["square_avg"], state["acc_delta"]
        g = descended(p, g, group)
        v.mul_(rho).addcmul_(g, g, value=1 - rho)
        delta = (u + eps).sqrt() * (v + eps).rsqrt() * g
        u.mul_(rho).addcmul_(delta, delta, value=1 - rho)
        p.sub_(delta, alpha=group["lr"])


class AddcmulAdadelta(RsqrtAdadelta):
    """Moves by a product of three, of which only the average of squares is stored."""

    def update(self, p, g, state, group):
        begun(state, p, "square_avg", "acc_delta")
        rho, eps, v, u = group["rho"], group["eps"], state["square_avg"], state["acc_delta"]
        g = descended(p, g, group)
        v.lerp_(g * g, 1 - rho)
        ratio = u.add(eps).sqrt_().div_(v.add(eps).sqrt_())
        u.lerp_((ratio * g).square_(), 1 - rho)
        p.addcmul_(g, ratio, value=-group["lr"])


class PaperAdadelta(RsqrtAdadelta):
    """The paper's names and its root of a quotient; NumPy. The state cannot be read."""

    def update(self, p, g, state, group):
        if not state:
            state["E[g2]"], state["E[dx2]"] = torch.zeros_like(p), torch.zeros_like(p)
        of_g, of_dx, x = state["E[g2]"].numpy(), state["E[dx2]"].numpy(), p.detach().numpy()
        g = descended(p.detach(), g, group).numpy()
        rho, eps = group["rho"], group["eps"]
        of_g[...] = rho * of_g + (1 - rho) * g**2
        dx = -np.sqrt((of_dx + eps) / (of_g + eps)) * g
        of_dx[...] = rho * of_dx + (1 - rho) * dx**2
        x += group["lr"] * dx


# Adamax


class StackedAdamax(Each):
    """The norm is the largest along a dimension along which both candidates are stacked."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, *, maximize=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_inf")
        beta1, beta2 = group["betas"]
        g = descended(p, g, group)
        state["exp_avg"].lerp_(g, 1 - beta1)
        u = torch.stack([state["exp_inf"].mul_(beta2), g.abs().add_(group["eps"])]).amax(0)
        state["exp_inf"].copy_(u)
        p.addcdiv_(state["exp_avg"], u, value=-group["lr"] / (1 - beta1**t))


class WideAdamax(StackedAdamax):
    """Everything in float64; averages and parameter are rounded once, and what follows starts from the rounded ones."""

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_inf")
        beta1, beta2 = group["betas"]
        x, g = wide(p, g)
        g = descended(x, g, group)
        m = kept(state["exp_avg"], beta1 * state["exp_avg"].double() + (1 - beta1) * g)
        u = kept(state["exp_inf"], torch.maximum(beta2 * state["exp_inf"].double(), g.abs() + group["eps"]))
        p.copy_(x - group["lr"] / (1 - beta1**t) * (m / u))


# ASGD


class LerpASGD(Each):
    """Averages with torch.lerp and shrinks in place; eta and mu are Python numbers, in float64."""

    def __init__(self, params, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, *, maximize=False):
        super().__init__(params, lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay, maximize=maximize)

    def update(self, p, g, state, group):
        t = begun(state, p, "ax", eta=group["lr"], mu=1.0)
        g = descended(p, g, group)
        p.mul_(1 - group["lambd"] * state["eta"]).sub_(g, alpha=state["eta"])
        state["ax"].lerp_(p, state["mu"])
        state.update(self.schedule(t, group))

    def schedule(self, t, group):
        lr, alpha = group["lr"], group["alpha"]
        # NumPy's power is infinite where Python's raises.
        return {
            "eta": lr / float(np.power(np.float64(1 + group["lambd"] * lr * t), alpha)),
            "mu": 1 / max(1.0, t - group["t0"]),
        }


class NumpyASGD(LerpASGD):
    """NumPy on the memory of parameter and state; averages by adding a part of the difference."""

    def update(self, p, g, state, group):
        t = begun(state, p, "ax", eta=group["lr"], mu=1.0)
        x, ax = p.detach().numpy(), state["ax"].numpy()
        g = descended(p.detach(), g, group).numpy()
        x -= state["eta"] * (g + group["lambd"] * x)
        ax += state["mu"] * (x - ax)
        state.update(self.schedule(t, group))


# NAdam


class FoldedNAdam(Each):
    """Both terms of the numerator in one, over one denominator; the product is a Python number, in float64."""

    def __init__(
        self,
        params,
        lr=2e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        momentum_decay=4e-3,
        *,
        decoupled_weight_decay=False,
        maximize=False,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            momentum_decay=momentum_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    penalized = LerpAdam.penalized

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_avg_sq", mu_product=1.0)
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        product = state["mu_product"] = state["mu_product"] * mu
        numerator = following / (1 - product * following) * m + (1 - mu) / (1 - product) * g
        p.addcdiv_(numerator, (v / (1 - beta2**t)).sqrt_().add_(group["eps"]), value=-group["lr"])


class ScaledEpsNAdam(FoldedNAdam):
    """Corrects the bias of the second moment in eps and in both step lengths, not in the root."""

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_avg_sq", mu_product=1.0)
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        product = state["mu_product"] = state["mu_product"] * mu
        root = math.sqrt(1 - beta2**t)
        denominator = v.sqrt().add_(group["eps"] * root)
        p.addcdiv_(g, denominator, value=-group["lr"] * root * (1 - mu) / (1 - product))
        p.addcdiv_(m, denominator, value=-group["lr"] * root * following / (1 - product * following))


class TensorNAdam(FoldedNAdam):
    """The product is a float32 tensor, updated in place and read each step; two quotients are subtracted in turn."""

    def update(self, p, g, state, group):
        if not state:
            state["mu_product"] = torch.ones(())
        t = begun(state, p, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m = state["exp_avg"].mul_(beta1).add_((1 - beta1) * g)
        v = state["exp_avg_sq"].lerp_(g * g, 1 - beta2)
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        product = state["mu_product"].mul_(mu).item()
        denominator = v.sqrt() / (1 - beta2**t) ** 0.5 + group["eps"]
        p.addcdiv_(g, denominator, value=-group["lr"] * (1 - mu) / (1 - product))
        p.addcdiv_(m, denominator, value=-group["lr"] * following / (1 - product * following))

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch casts all but "step" to the dtype of the parameter
            state["mu_product"] = state["mu_product"].to(torch.float32, copy=True)


# RAdam


class FoldedRAdam(Each):
    """All scalars in one, that scales one quotient."""

    def __init__(
        self,
        params,
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.0,
        *,
        decoupled_weight_decay=False,
        maximize=False,
    ):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
            maximize=maximize,
        )

    penalized = LerpAdam.penalized

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        g = self.penalized(p, g, group)
        m = state["exp_avg"].lerp_(g, 1 - beta1)
        v = state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1 - beta2)
        scale = group["lr"] / (1 - beta1**t)
        rectification = self.rectification(t, beta2)
        if rectification is None:
            p.sub_(m, alpha=scale)
        else:
            p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-scale * rectification * math.sqrt(1 - beta2**t))

    def rectification(self, t, beta2):
        """The factor of the variance, or nothing where it is not tractable yet."""
        most = 2 / (1 - beta2) - 1
        length = most - 2 * t * beta2**t / (1 - beta2**t)
        if length <= 5:
            return None
        return math.sqrt((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length))


class WideRAdam(FoldedRAdam):
    """Everything in float64; averages and parameter are rounded once, and what follows starts from the rounded ones."""

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        x, g = wide(p, g)
        g = self.penalized(x, g, group)
        m = kept(state["exp_avg"], beta1 * state["exp_avg"].double() + (1 - beta1) * g)
        v = kept(state["exp_avg_sq"], beta2 * state["exp_avg_sq"].double() + (1 - beta2) * g * g)
        d, r = m / (1 - beta1**t), self.rectification(t, beta2)
        if r is not None:
            d = d * r * math.sqrt(1 - beta2**t) / (v.sqrt() + group["eps"])
        p.copy_(x - group["lr"] * d)


# Rprop


class NumpyRprop(Each):
    """Selects factors by comparison, with NumPy; which signs agree is asked of the signs."""

    def __init__(self, params, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50.0), *, maximize=False):
        super().__init__(params, lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize)

    def begin(self, p, g, state, group):
        if not state:
            state["step_size"] = torch.full_like(p, group["lr"])
        begun(state, p, "prev")
        return -g if group["maximize"] else g

    def update(self, p, g, state, group):
        g = self.begin(p, g, state, group).detach().numpy()
        x, prev, size = p.detach().numpy(), state["prev"].numpy(), state["step_size"].numpy()
        agree = np.sign(g) * np.sign(prev)
        size[...] = np.clip(size * np.select([agree > 0, agree < 0], group["etas"][::-1], 1.0), *group["step_sizes"])
        prev[...] = np.where(agree < 0, 0.0, g)
        x -= np.sign(prev) * size


class MaskedRprop(NumpyRprop):
    """Writes the factors into a tensor, through masks; which signs agree is asked of the product."""

    def update(self, p, g, state, group):
        g = self.begin(p, g, state, group).clone()
        factor = g * state["prev"]
        grow, shrink = factor > 0, factor < 0
        factor.fill_(1.0)
        factor[shrink], factor[grow] = group["etas"]
        state["step_size"].mul_(factor).clamp_(*group["step_sizes"])
        g[shrink] = 0
        state["prev"].copy_(g)
        p.addcmul_(g.sign(), state["step_size"], value=-1)


# SparseAdam


class MaskedSparseAdam(Each):
    """Fills in zeros, computes everywhere, and keeps what is not named by a mask."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, *, maximize=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, maximize=maximize)

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        named = torch.zeros(g.shape[: g.sparse_dim()], dtype=torch.bool)
        named[tuple(g._indices())] = True
        named = named.view(*named.shape, *[1] * g.dense_dim())
        g = g.to_dense()
        g = -g if group["maximize"] else g
        m = beta1 * state["exp_avg"] + (1 - beta1) * g
        v = beta2 * state["exp_avg_sq"] + (1 - beta2) * g * g
        lr = group["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t)
        x = p - lr * m / (v.sqrt() + group["eps"])
        for tensor, value in ((p, x), (state["exp_avg"], m), (state["exp_avg_sq"], v)):
            tensor.copy_(torch.where(named, value, tensor))


class GatheredSparseAdam(MaskedSparseAdam):
    """Gathers the named entries, averages them by adding a difference, and puts them back in place."""

    def update(self, p, g, state, group):
        t = begun(state, p, "exp_avg", "exp_avg_sq")
        beta1, beta2 = group["betas"]
        g = g.coalesce()
        named, g = tuple(g.indices()), g.values()
        g = g.neg() if group["maximize"] else g
        m, v = state["exp_avg"][named], state["exp_avg_sq"][named]
        m.add_(g - m, alpha=1 - beta1)
        v.add_(g * g - v, alpha=1 - beta2)
        state["exp_avg"].index_put_(named, m)
        state["exp_avg_sq"].index_put_(named, v)
        d = m.div_(v.sqrt_().add_(group["eps"]))
        p.index_put_(named, -group["lr"] * (1 - beta2**t) ** 0.5 / (1 - beta1**t) * d, accumulate=True)


# Adafactor


class NormAdafactor(Each):
    """Means of squares from norms, and products with rsqrt."""

    def __init__(self, params, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, *, maximize=False):
        super().__init__(
            params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, maximize=maximize
        )

    def update(self, p, g, state, group):
        t = self.begin(p, state)
        eps1, eps2 = group["eps"]
        eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
        g = g.neg() if group["maximize"] else g
        alpha = max(eps2, self.rms(p).item()) * min(group["lr"], 1 / math.sqrt(t))
        if group["weight_decay"] != 0:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        forget = t ** group["beta2_decay"]
        if p.dim() > 1:
            row, col = state["row_var"], state["col_var"]
            row.lerp_(g.norm(dim=-1, keepdim=True).square_().div_(g.shape[-1]), forget)
            col.lerp_(g.norm(dim=-2, keepdim=True).square_().div_(g.shape[-2]), forget)
            v = row * col / row.mean(dim=-2, keepdim=True).clamp_(min=eps1)
        else:
            v = self.average_of_squares(state["variance"], g, forget).clone()
        self.move(p, g, v.clamp_(min=eps1 * eps1), alpha, group["d"])

    def move(self, p, g, v, alpha, d):
        u = v.rsqrt_().mul_(g)
        p.sub_(u, alpha=alpha / max(1.0, self.rms(u).item() / d))

    def begin(self, p, state):
        if p.dim() > 1:
            state.setdefault("row_var", torch.zeros_like(p[..., :1]))
            state.setdefault("col_var", torch.zeros_like(p[..., :1, :]))
        else:
            state.setdefault("variance", torch.zeros_like(p))
        return begun(state, p)

    def average_of_squares(self, v, g, forget):
        return v.lerp_(g * g, forget)

    def rms(self, x):
        return x.norm() / max(x.numel(), 1) ** 0.5


class AddcmulAdafactor(NormAdafactor):
    """A vector's squares are averaged by addcmul, which may scale a gradient before it squares it."""

    def average_of_squares(self, v, g, forget):
        return v.mul_(1 - forget).add_(forget * g * g)


class AddcdivAdafactor(NormAdafactor):
    """Clips by the quotient, and moves by a scaled one."""

    def move(self, p, g, v, alpha, d):
        root = v.sqrt_()
        p.addcdiv_(g, root, value=-alpha / max(1.0, self.rms(g / root).item() / d))


class QuotientAdafactor(NormAdafactor):
    """Divides the rows by their mean before they meet the columns, so that no product of squares overflows."""

    def update(self, p, g, state, group):
        t = self.begin(p, state)
        eps1, eps2 = group["eps"]
        eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
        g = -g if group["maximize"] else g
        square, forget = g * g, t ** group["beta2_decay"]
        if p.dim() > 1:
            row = state["row_var"].lerp_(square.mean(-1, keepdim=True), forget)
            col = state["col_var"].lerp_(square.mean(-2, keepdim=True), forget)
            v = self.product(row, col, row.mean(-2, keepdim=True).clamp(min=eps1))
        else:
            v = state["variance"].lerp_(square, forget)
        u = g / v.clamp(min=eps1**2).sqrt()
        alpha = self.rms(p).clamp(min=eps2) * min(group["lr"], t**-0.5)
        if group["weight_decay"] != 0:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(alpha * u / (self.rms(u) / group["d"]).clamp(min=1.0))

    def product(self, row, col, mean):
        return row / mean * col


class ColumnAdafactor(QuotientAdafactor):
    """Divides the columns by the mean of the rows before they meet the rows."""

    def product(self, row, col, mean):
        return row * (col / mean)


class WideAdafactor(NormAdafactor):
    """Everything in float64; averages and parameter are rounded once, and what follows starts from the rounded ones."""

    def update(self, p, g, state, group):
        t = self.begin(p, state)
        eps1, eps2 = group["eps"]
        eps1 = torch.finfo(p.dtype).eps if eps1 is None else eps1
        x, g = wide(p, g)
        g = -g if group["maximize"] else g
        forget = t ** group["beta2_decay"]
        if p.dim() > 1:
            row = self.average(state["row_var"], (g * g).mean(-1, keepdim=True), forget)
            col = self.average(state["col_var"], (g * g).mean(-2, keepdim=True), forget)
            v = row * col / row.mean(-2, keepdim=True).clamp(min=eps1)
        else:
            v = self.average(state["variance"], g * g, forget)
        u = g / v.clamp(min=eps1**2).sqrt()
        u = u / (self.rms(u) / group["d"]).clamp(min=1.0)
        alpha = self.rms(x).clamp(min=eps2) * min(group["lr"], t**-0.5)
        decayed = (1 - group["lr"] * group["weight_decay"]) * x if group["weight_decay"] != 0 else x
        p.copy_(decayed - alpha * u)

    def average(self, buffer, new, forget):
        return kept(buffer, (1 - forget) * buffer.double() + forget * new)


# Muon


class WideMuon(Each):
    """Matrices are multiplied in float64 where the parameter is, else in float32."""

    def __init__(
        self,
        params,
        lr=1e-3,
        weight_decay=0.1,
        momentum=0.95,
        *,
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

    def update(self, p, g, state, group):
        b = state.setdefault("momentum_buffer", torch.zeros_like(p))
        b.lerp_(g, 1 - group["momentum"])
        if p.numel() == 0:
            return
        d = g.lerp(b, group["momentum"]) if group["nesterov"] else b
        o = self.orthogonalized(d, group)
        rows, columns = p.shape
        lr = group["lr"] * (
            0.2 * max(rows, columns) ** 0.5
            if group["adjust_lr_fn"] == "match_rms_adamw"
            else max(1.0, rows / columns) ** 0.5
        )
        p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(o.to(p.dtype), alpha=lr)

    def orthogonalized(self, d, group):
        a, b, c = group["ns_coefficients"]
        x = d / d.norm().clamp(min=group["eps"])
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        for _ in range(group["ns_steps"]):
            gram = x @ x.T
            x = a * x + (b * gram + c * gram @ gram) @ x
        return x.T if tall else x


class SingleMuon(WideMuon):
    """Options are rounded to float32, whatever the dtype."""

    def update(self, p, g, state, group):
        held = {name: float(np.float32(value)) for name, value in group.items() if isinstance(value, float)}
        super().update(p, g, state, {**group, **held})


class AddmmMuon(WideMuon):
    """Products of bfloat16 with their addends, each rounded once."""

    def orthogonalized(self, d, group):
        a, b, c = group["ns_coefficients"]
        x = d.bfloat16()
        tall = x.shape[0] > x.shape[1]
        x = x.T if tall else x
        x = x / x.norm().clamp(min=group["eps"])
        for _ in range(group["ns_steps"]):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


# LBFGS


class NumpyLBFGS(torch.optim.Optimizer):
    """With a fixed step alone, and in NumPy: the recursion and its scalar products are float64, vectors are kept in the dtype."""

    def __init__(
        self, params, lr=1, max_iter=20, max_eval=None, tolerance_grad=1e-7, tolerance_change=1e-9, history_size=100
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "max_iter": max_iter,
                "max_eval": max_eval,
                "tolerance_grad": tolerance_grad,
                "tolerance_change": tolerance_change,
                "history_size": history_size,
            },
        )

    def step(self, closure):
        (group,) = self.param_groups
        state = self.state[group["params"][0]]
        state.setdefault("func_evals", 0)
        state.setdefault("n_iter", 0)
        first = self.evaluate(closure, state)
        loss, g, before = float(first), self.gradient(group), state["func_evals"] - 1
        most = group["max_iter"] * 5 // 4 if group["max_eval"] is None else group["max_eval"]
        if self.largest(g) <= group["tolerance_grad"]:
            return first
        for iteration in range(1, group["max_iter"] + 1):
            self.turn(g, loss, state, group)
            d = state["d"].double().numpy()
            if g @ d > -group["tolerance_change"]:
                break
            last = iteration == group["max_iter"]
            loss, g = self.move(closure, loss, g, before + most, state, group, last=last)
            spent = state["func_evals"] - before
            if last or spent >= most or self.largest(g) <= group["tolerance_grad"]:
                break
            change = abs(loss - state["prev_loss"])
            if self.largest(state["t"] * d) <= group["tolerance_change"] or change < group["tolerance_change"]:
                break
        return first

    def move(self, closure, loss, g, most, state, group, *, last):
        """Along the direction; the loss and the gradient there, unless it is the last time."""
        self.put(self.point(group), state["t"] * state["d"].double().numpy(), group)
        return (loss, g) if last else (float(self.evaluate(closure, state)), self.gradient(group))

    def turn(self, g, loss, state, group):
        """The next direction and step length, and what the iteration after it needs to know."""
        state["n_iter"] += 1
        if state["n_iter"] == 1:
            state.update(old_dirs=[], old_stps=[], ro=[], H_diag=1.0, d=self.vector(-g, group))
            state["t"] = float(min(1.0, 1 / np.abs(g).sum()) * group["lr"])
        else:
            self.remember(g, state, group)
            state["d"] = self.vector(self.direction(g, state), group)
            state["t"] = group["lr"]
        state.update(prev_flat_grad=self.vector(g, group), prev_loss=loss)

    def remember(self, g, state, group):
        y = self.vector(g - state["prev_flat_grad"].double().numpy(), group)
        s = self.vector(state["d"].double().numpy() * state["t"], group)
        wide_y, wide_s = y.double().numpy(), s.double().numpy()
        curvature = float(wide_y @ wide_s)
        if curvature > 1e-10:
            state["H_diag"] = float(curvature / (wide_y @ wide_y))
            for name, new in (("old_dirs", y), ("old_stps", s), ("ro", 1 / curvature)):
                state[name] = [*state[name], new][-group["history_size"] :]

    def direction(self, g, state):
        pairs = [
            (y.double().numpy(), s.double().numpy(), rho)
            for y, s, rho in zip(state["old_dirs"], state["old_stps"], state["ro"], strict=True)
        ]
        q, shares = -g, []
        for y, s, rho in reversed(pairs):
            shares.append(rho * (s @ q))
            q = q - shares[-1] * y
        r = state["H_diag"] * q
        for y, s, rho in pairs:
            r = r + (shares.pop() - rho * (y @ r)) * s
        return r

    def evaluate(self, closure, state):
        with torch.enable_grad():
            loss = closure()
        state["func_evals"] += 1
        return loss

    def gradient(self, group):
        """All gradients, as one vector."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
        return torch.cat([g.reshape(-1).double() for g in grads]).numpy()

    def vector(self, x, group):
        return torch.from_numpy(np.asarray(x)).to(group["params"][0].dtype, copy=True)

    def largest(self, x):
        return np.abs(x).max() if x.size else 0.0

    def point(self, group):
        """Copies of all parameters, in float64."""
        return [p.detach().double().clone() for p in group["params"]]

    @torch.no_grad()
    def put(self, point, change, group):
        at = 0
        for p, x in zip(group["params"], point, strict=True):
            p.copy_(x + torch.from_numpy(change[at : at + p.numel()]).view(p.shape))
            at += p.numel()


class SingleLBFGS(NumpyLBFGS):
    """The learning rate is rounded to float32, whatever the dtype."""

    def turn(self, g, loss, state, group):
        super().turn(g, loss, state, {**group, "lr": float(np.float32(group["lr"]))})


class SearchingLBFGS(NumpyLBFGS):
    """With minFunc's line search as well; its interpolations are in Python's own arithmetic."""

    def __init__(
        self,
        params,
        lr=1,
        max_iter=20,
        max_eval=None,
        tolerance_grad=1e-7,
        tolerance_change=1e-9,
        history_size=100,
        line_search_fn=None,
    ):
        super().__init__(params, lr, max_iter, max_eval, tolerance_grad, tolerance_change, history_size)
        self.defaults["line_search_fn"] = line_search_fn
        self.param_groups[0].setdefault("line_search_fn", line_search_fn)

    def move(self, closure, loss, g, most, state, group, *, last):
        if group["line_search_fn"] is None:
            return super().move(closure, loss, g, most, state, group, last=last)
        point, d = self.point(group), state["d"].double().numpy()

        def tried(t):
            self.put(point, t * d, group)
            at = float(self.evaluate(closure, state))
            slope = self.gradient(group)
            return t, at, slope, float(slope @ d)

        left = most - state["func_evals"]
        state["t"], loss, g, _ = self.search(tried, (0.0, loss, g, float(g @ d)), state["t"], left, self.largest(d))
        self.put(point, state["t"] * d, group)
        return loss, g

    def search(self, tried, start, t, left, width):
        """A trial that meets the strong Wolfe conditions, or the best that was found; a trial is (t, loss, gradient, slope)."""
        ends, made = self.bracketed(tried, start, t, left)
        return ends if isinstance(ends, tuple) else self.narrowed(tried, start, ends, made, left, width)

    def too_high(self, trial, start):
        return trial[1] > start[1] + 1e-4 * trial[0] * start[3]

    def flat(self, trial, start):
        return abs(trial[3]) <= -0.9 * start[3]

    def bracketed(self, tried, start, t, left):
        """Two ends with such a trial between them, or that trial, and how many were made after the first."""
        previous, new, made = start, tried(t), 0
        while made < left:
            if self.too_high(new, start) or (made > 1 and new[1] >= previous[1]):
                return [previous, new], made
            if self.flat(new, start):
                return new, made
            if new[3] >= 0:
                return [previous, new], made
            low, high = new[0] + 0.01 * (new[0] - previous[0]), 10 * new[0]
            previous, new = new, tried(self.interpolated(previous, new, low, high))
            made += 1
        return [start, new], made

    def narrowed(self, tried, start, ends, made, left, width):
        stalled = False
        best = self.lower(ends)
        while made < left and not abs(ends[1][0] - ends[0][0]) * width < 1e-9:
            low, high = sorted(end[0] for end in ends)
            t, margin = self.interpolated(*ends, low, high), 0.1 * (high - low)
            near = min(high - t, t - low) < margin
            if near and (stalled or t >= high or t <= low):
                t = high - margin if abs(t - high) < abs(t - low) else low + margin
                near = False
            stalled = near
            new, made = tried(t), made + 1
            if self.too_high(new, start) or new[1] >= ends[best][1]:
                ends[1 - best] = new
                best = self.lower(ends)
                continue
            if self.flat(new, start):
                return new
            if new[3] * (ends[1 - best][0] - ends[best][0]) >= 0:
                ends[1 - best] = ends[best]
            ends[best] = new
        return ends[best]

    def lower(self, ends):
        return 0 if ends[0][1] <= ends[1][1] else 1

    def interpolated(self, a, b, low, high):
        """The minimizer of the cubic through two trials, within bounds; without one, the middle."""
        left, right = (a, b) if a[0] <= b[0] else (b, a)
        with np.errstate(all="ignore"):
            d1 = left[3] + right[3] - 3 * np.float64(left[1] - right[1]) / (left[0] - right[0])
            square = d1 * d1 - left[3] * right[3]
            if not square >= 0:
                return (low + high) / 2
            d2 = np.sqrt(square)
            t = right[0] - (right[0] - left[0]) * ((right[3] + d2 - d1) / (right[3] - left[3] + 2 * d2))
        return float(np.minimum(np.maximum(t, low), high))


_ONCE = replace(
    ANY_CLASS,
    reason=ANY_CLASS.reason + "; it computes float16 and bfloat16 in float32 and rounds what it stores",
    narrow="once",
    narrow_scalars=False,
)
_COUNTS = replace(
    ANY_CLASS,
    reason=ANY_CLASS.reason + "; what depends on the count of steps is computed in float32",
    counters="float32",
)
_WIDER = replace(ANY_CLASS, reason=ANY_CLASS.reason + "; it computes in float64 and rounds what it stores", wider=True)
_SINGLE = replace(
    ANY_CLASS,
    reason=ANY_CLASS.reason + "; hyperparameters and counts are float32, and scalars are computed in it",
    scalars="float32",
    counters="float32",
)
_ADDMM = replace(
    ANY_CLASS,
    reason=ANY_CLASS.reason + "; it multiplies matrices in bfloat16, and rounds a product with its addend once",
    products="bfloat16",
    products_rounded_once=True,
)
_NARROW = ("bfloat16", "float16")

VARIANTS: tuple[Variant, ...] = (
    Variant(InPlaceSGD, "SGD", dtypes=_NARROW),
    Variant(ContractedSGD, "SGD"),
    Variant(FlatSGD, "SGD"),
    Variant(NarrowSGD, "SGD", _ONCE, _NARROW),
    Variant(PlainSGD, "SGD"),
    Variant(LerpAdam, "Adam", dtypes=_NARROW),
    Variant(DifferenceAdam, "Adam"),
    Variant(ContractedAdam, "Adam"),
    Variant(ReciprocalAdam, "Adam"),
    Variant(ScaledEpsAdam, "Adam"),
    Variant(WideAdam, "Adam", _WIDER, _NARROW),
    Variant(OwnScalarsAdam, "Adam"),
    Variant(SingleAdam, "Adam", _SINGLE),
    Variant(TensorCountAdam, "Adam", _COUNTS),
    Variant(ForeachAdam, "Adam", dtypes=_NARROW),
    Variant(BlockedAdam, "Adam"),
    Variant(NumpyAdam, "Adam"),
    Variant(LoopedAdam, "Adam", _WIDER),
    Variant(NarrowAdam, "Adam", _ONCE, _NARROW),
    Variant(DerivedAdam, "Adam", dtypes=_NARROW),
    Variant(WrappedAdam, "Adam"),
    Variant(FlatAdamW, "AdamW"),
    Variant(foreach_adamw, "AdamW", dtypes=_NARROW),
    Variant(EarlyAdagrad, "Adagrad", dtypes=_NARROW),
    Variant(WideAdagrad, "Adagrad", _WIDER),
    Variant(RenamedAdagrad, "Adagrad"),
    Variant(ReciprocalRMSprop, "RMSprop"),
    Variant(SingleRMSprop, "RMSprop", _SINGLE),
    Variant(ForeachRMSprop, "RMSprop", dtypes=_NARROW),
    Variant(RsqrtAdadelta, "Adadelta"),
    Variant(AddcmulAdadelta, "Adadelta"),
    Variant(PaperAdadelta, "Adadelta"),
    Variant(StackedAdamax, "Adamax", dtypes=_NARROW),
    Variant(WideAdamax, "Adamax", _WIDER),
    Variant(LerpASGD, "ASGD"),
    Variant(NumpyASGD, "ASGD"),
    Variant(FoldedNAdam, "NAdam"),
    Variant(ScaledEpsNAdam, "NAdam"),
    Variant(TensorNAdam, "NAdam"),
    Variant(FoldedRAdam, "RAdam", dtypes=("bfloat16",)),
    Variant(WideRAdam, "RAdam", _WIDER),
    Variant(NumpyRprop, "Rprop"),
    Variant(MaskedRprop, "Rprop"),
    Variant(MaskedSparseAdam, "SparseAdam"),
    Variant(GatheredSparseAdam, "SparseAdam"),
    Variant(NormAdafactor, "Adafactor"),
    Variant(QuotientAdafactor, "Adafactor"),
    Variant(ColumnAdafactor, "Adafactor"),
    Variant(WideAdafactor, "Adafactor", _WIDER),
    Variant(AddcmulAdafactor, "Adafactor"),
    Variant(AddcdivAdafactor, "Adafactor"),
    Variant(WideMuon, "Muon"),
    Variant(SingleMuon, "Muon", _SINGLE),
    Variant(AddmmMuon, "Muon", _ADDMM),
    Variant(NumpyLBFGS, "LBFGS", _WIDER),
    Variant(SearchingLBFGS, "LBFGS", _WIDER),
    Variant(SingleLBFGS, "LBFGS", replace(_SINGLE, wider=True)),
)
