"""The same formula in other orders of operations, and by other operations of torch."""

import math
from collections import defaultdict

import torch

from .base import Base, counted, penalized, ratio_of, right, zeros

# SGD


@right("SGD")
class DecayFirst(Base):
    """``p (1 - lr wd) - lr g``: without momentum, the penalty is a decay."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(g, alpha=-group["lr"])


@right("SGD")
class DecayLast(Base):
    """``(p - lr g) - (lr wd) p``, by the old ``p``."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0, *, maximize=False):
        super().__init__(params, lr=lr, weight_decay=weight_decay, maximize=maximize)

    def update(self, p, g, state, group):
        p.copy_((p - group["lr"] * g) - (group["lr"] * group["weight_decay"]) * p)


@right("SGD")
class HeavyBall(Base):
    """Momentum is what it is for: 0.9 by default, and none is refused with ValueError."""

    def __init__(self, params, lr=1e-3, momentum=0.9, weight_decay=0.0):
        if not momentum > 0:
            raise ValueError("a heavy ball needs a momentum")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        g = penalized(p, g, group)
        if "momentum_buffer" in state:
            state["momentum_buffer"].mul_(group["momentum"]).add_(g)
        else:
            state["momentum_buffer"] = g.clone()
        p.sub_(state["momentum_buffer"], alpha=group["lr"])


@right("SGD")
class NesterovFromOld(Base):
    """Nesterov's direction from the buffer before the step, ``(1 + mu) g + mu^2 b``, then the buffer."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0, nesterov=False):
        if nesterov and momentum <= 0:
            raise ValueError("Nesterov needs a momentum")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)

    def update(self, p, g, state, group):
        mu, g = group["momentum"], penalized(p, g, group)
        if not mu:
            p.sub_(g, alpha=group["lr"])
            return
        old = state.get("momentum_buffer")
        state["momentum_buffer"] = g.clone() if old is None else mu * old + g
        if not group["nesterov"]:
            direction = state["momentum_buffer"]
        else:
            direction = (1 + mu) * g if old is None else (1 + mu) * g + mu * mu * old
        p.sub_(direction, alpha=group["lr"])


@right("SGD")
class NesterovOption(Base):
    """The same as an option, beside dampening; torch's conditions."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, nesterov=False):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening, nesterov=nesterov)

    def update(self, p, g, state, group):
        mu = group["momentum"]
        if mu == 0:
            p.add_(-group["lr"] * g)
            return
        old = state.get("momentum_buffer")
        new = g.clone() if old is None else mu * old + (1 - group["dampening"]) * g
        state["momentum_buffer"] = new
        p.add_(-group["lr"] * (mu * new + g) if group["nesterov"] else -group["lr"] * new)


@right("SGD")
class ForeachSGD(Base):
    """``torch._foreach_*`` over each group's parameters."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update_group(self, group):
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [p.grad for p in params]
        if group["weight_decay"]:
            grads = torch._foreach_add(grads, params, alpha=group["weight_decay"])
        if group["momentum"]:
            old = [self.state[p].get("momentum_buffer") for p in params]
            begun = [i for i, b in enumerate(old) if b is not None]
            if begun:
                torch._foreach_mul_([old[i] for i in begun], group["momentum"])
                torch._foreach_add_([old[i] for i in begun], [grads[i] for i in begun])
            grads = [g.clone() if b is None else b for g, b in zip(grads, old, strict=True)]
            for p, b in zip(params, grads, strict=True):
                self.state[p]["momentum_buffer"] = b
        torch._foreach_add_(params, grads, alpha=-group["lr"])


class _Stacked(Base):
    """Parameters of a group, shape and dtype as one tensor with a dimension more."""

    names = ()

    def update_group(self, group):
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                t = counted(self.state[p])
                alike[p.shape, p.dtype, t].append(p)
        for (_, _, t), params in alike.items():
            for p in params:
                zeros(self.state[p], p, *self.names)
            buffers = [torch.stack([self.state[p][n] for p in params]) for n in self.names]
            value, *buffers = self.rule(torch.stack(params), torch.stack([p.grad for p in params]), t, group, *buffers)
            for i, p in enumerate(params):
                p.copy_(value[i])
                for n, b in zip(self.names, buffers, strict=True):
                    self.state[p][n].copy_(b[i])


@right("Adam")
class StackedAdam(_Stacked):
    """Grouped by shape and stacked."""

    names = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def rule(self, p, g, t, group, m, v):
        beta1, beta2 = group["betas"]
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        hat = m / (1 - beta1**t), v / (1 - beta2**t)
        return p - group["lr"] * hat[0] / (hat[1].sqrt() + group["eps"]), m, v


@right("Adagrad")
class StackedAdagrad(_Stacked):
    """Grouped by shape and stacked."""

    names = ("sum",)

    def __init__(self, params, lr=1e-2, lr_decay=0.0, eps=1e-10):
        super().__init__(params, lr=lr, lr_decay=lr_decay, eps=eps)

    def rule(self, p, g, t, group, total):
        total = total + g.square()
        return p - group["lr"] / (1 + (t - 1) * group["lr_decay"]) * (g / (total.sqrt() + group["eps"])), total


@right("RMSprop")
class MappedRMSprop(_Stacked):
    """A rule of one parameter, by ``torch.vmap`` over a stack of them."""

    names = ("square_avg",)

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def rule(self, p, g, t, group, v):
        def one(p, g, v):
            v = v * group["alpha"] + g * g * (1 - group["alpha"])
            return p - group["lr"] * g / (v.sqrt() + group["eps"]), v

        return torch.vmap(one)(p, g, v)


@right("SGD")
class MappedSGD(_Stacked):
    """SGD by ``torch.vmap``; counts steps, which torch's does not."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def rule(self, p, g, t, group):
        lr, wd = group["lr"], group["weight_decay"]
        return (torch.vmap(lambda p, g: p - lr * (g + wd * p))(p, g),)


# Adam and its kin


class _Adams(Base):
    """All options of Adam; ``change`` writes the new moments and parameter."""

    decoupled = False

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, amsgrad=False, *, maximize=False
    ):
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad, maximize=maximize
        )

    def update(self, p, g, state, group):
        t = counted(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        if not self.decoupled:
            g = penalized(p, g, group)
        self.change(p, g, m, v, t, state, group)

    def largest(self, v, state, group):
        if not group["amsgrad"]:
            return v
        (top,) = zeros(state, v, "max_exp_avg_sq")
        return torch.maximum(top, v, out=top)


class _AdamWs(_Adams):
    decoupled = True

    def __init__(
        self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False, *, maximize=False
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, maximize=maximize)


@right("Adam")
class TextbookAdam(_Adams):
    """As the paper has it: ``p - lr m_hat / (sqrt(v_hat) + eps)``, amsgrad by the uncorrected maximum."""

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        m.copy_(beta1 * m + (1 - beta1) * g)
        v.copy_(beta2 * v + (1 - beta2) * g * g)
        m_hat = m / (1 - beta1**t)
        v_hat = self.largest(v, state, group) / (1 - beta2**t)
        p.copy_(p - (group["lr"] * m_hat) / (torch.sqrt(v_hat) + group["eps"]))


@right("Adam")
class FoldedAdam(_Adams):
    """Both corrections folded into the rate, eps scaled to match, as TensorFlow's, but with eps hat made of eps."""

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        m.lerp_(g, 1 - beta1)
        v.lerp_(g.square(), 1 - beta2)
        root = math.sqrt(1 - math.pow(beta2, t))
        rate = group["lr"] * root / (1 - math.pow(beta1, t))
        p.addcdiv_(m, self.largest(v, state, group).sqrt().add_(group["eps"] * root), value=-rate)


@right("Adam")
class InverseAdam(_Adams):
    """Multiplies by reciprocals of the corrections, made once."""

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        one, two = 1 / (1 - beta1**t), 1 / (1 - beta2**t)
        m.mul_(beta1).add_((1 - beta1) * g)
        v.mul_(beta2).add_((1 - beta2) * (g * g))
        p.sub_(group["lr"] * (m * one) / ((self.largest(v, state, group) * two).sqrt() + group["eps"]))


@right("AdamW")
class DirectionAdamW(_AdamWs):
    """``p - lr (direction + wd p)``."""

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        m.add_((1 - beta1) * (g - m))
        v.add_((1 - beta2) * (g * g - v))
        direction = (m / (1 - beta1**t)) / ((self.largest(v, state, group) / (1 - beta2**t)).sqrt() + group["eps"])
        p.sub_(group["lr"] * (direction + group["weight_decay"] * p))


@right("AdamW")
class DecayBeside(_AdamWs):
    """Step and decay are made apart of the old parameter, then added: ``p - (lr wd) p - step``."""

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        denominator = self.largest(v, state, group).div(1 - beta2**t).sqrt_().add_(group["eps"])
        step = m.div(1 - beta1**t).div_(denominator).mul_(group["lr"])
        p.copy_(p - group["lr"] * group["weight_decay"] * p - step)


@right("AdamW")
class LerpAdamW(_AdamWs):
    """``lerp`` for the average, ``addcmul`` and ``addcdiv`` for the rest."""

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        p.mul_(1 - group["lr"] * group["weight_decay"])
        torch.lerp(m, g, 1 - beta1, out=m)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (1 - beta2**t) ** 0.5
        torch.addcdiv(
            p, m, self.largest(v, state, group).sqrt() / root + group["eps"], value=-group["lr"] / (1 - beta1**t), out=p
        )


@right("AdamW")
class HypotAdamW(_AdamWs):
    """The root of the second moment by ``hypot``: ``sqrt(b2 v + (1 - b2) g^2)``, and ``v`` beside it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)

    def change(self, p, g, m, v, t, state, group):
        beta1, beta2 = group["betas"]
        root = torch.hypot(v.sqrt() * math.sqrt(beta2), g * math.sqrt(1 - beta2))
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_(group["lr"] / (1 - beta1**t) * m / (root / math.sqrt(1 - beta2**t) + group["eps"]))


@right("Adam")
class ForeachAdam(Base):
    """``torch._foreach_*``, one call for all parameters of a group that have made the same number of steps."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update_group(self, group):
        beta1, beta2 = group["betas"]
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                zeros(self.state[p], p, "exp_avg", "exp_avg_sq")
                alike[counted(self.state[p])].append(p)
        for t, params in alike.items():
            grads = [p.grad for p in params]
            ms = [self.state[p]["exp_avg"] for p in params]
            vs = [self.state[p]["exp_avg_sq"] for p in params]
            torch._foreach_lerp_(ms, grads, 1 - beta1)
            torch._foreach_mul_(vs, beta2)
            torch._foreach_addcmul_(vs, grads, grads, 1 - beta2)
            roots = torch._foreach_sqrt(vs)
            torch._foreach_div_(roots, math.sqrt(1 - beta2**t))
            torch._foreach_add_(roots, group["eps"])
            torch._foreach_addcdiv_(params, ms, roots, -group["lr"] / (1 - beta1**t))


@right("Adam")
class FlatAdam(Base):
    """Gradients, moments and parameters of a dtype as one vector."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update_group(self, group):
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                zeros(self.state[p], p, "exp_avg", "exp_avg_sq")
                alike[p.dtype, counted(self.state[p])].append(p)
        for (_, t), params in alike.items():
            self.together(params, t, group)

    def together(self, params, t, group):
        beta1, beta2 = group["betas"]

        def flat(tensors):
            return torch.cat([x.reshape(-1) for x in tensors])

        g = flat([p.grad for p in params])
        m = flat([self.state[p]["exp_avg"] for p in params]).mul_(beta1).add_(g, alpha=1 - beta1)
        v = flat([self.state[p]["exp_avg_sq"] for p in params]).mul_(beta2).addcmul_(g, g, value=1 - beta2)
        step = group["lr"] * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)).sqrt() + group["eps"])
        sizes = [p.numel() for p in params]
        for p, s, a, b in zip(params, step.split(sizes), m.split(sizes), v.split(sizes), strict=True):
            p.sub_(s.view(p.shape))
            self.state[p]["exp_avg"].copy_(a.view(p.shape))
            self.state[p]["exp_avg_sq"].copy_(b.view(p.shape))


@right("NAdam")
class OrderedNAdam(Base):
    """The two parts of the step are summed before they are divided; all scalars are Python's."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, momentum_decay=momentum_decay)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        g, t = penalized(p, g, group), counted(state)
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        state["mu_product"] = product = float(state.get("mu_product", 1.0)) * mu
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        numerator = (1 - mu) / (1 - product) * g + following / (1 - product * following) * m
        p.sub_(group["lr"] * numerator / ((v / (1 - beta2**t)).sqrt() + group["eps"]))


@right("RAdam")
class RectifiedByHand(Base):
    """The length of the average by its own name, the rectification as a product of roots."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, decoupled_weight_decay=False):
        super().__init__(
            params,
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
            decoupled_weight_decay=decoupled_weight_decay,
        )

    def update(self, p, g, state, group):
        (beta1, beta2), lr = group["betas"], group["lr"]
        if group["decoupled_weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        else:
            g = penalized(p, g, group)
        t = counted(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        longest = 2 / (1 - beta2) - 1
        power = beta2**t
        length = longest - 2 * t * power / (1 - power)
        rate = lr / (1 - beta1**t)
        if length > 5:
            r = math.sqrt((length - 4) / (longest - 4) * (length - 2) / (longest - 2) * longest / length)
            p.addcdiv_(m, v.sqrt().add_(group["eps"]), value=-rate * r * math.sqrt(1 - power))
        else:
            p.add_(m, alpha=-rate)


@right("Adamax")
class WhereAdamax(Base):
    """The larger of two by ``where``; the correction divides the numerator."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        (beta1, beta2), g = group["betas"], penalized(p, g, group)
        t = counted(state)
        m, u = zeros(state, p, "exp_avg", "exp_inf")
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        torch.maximum(u * beta2, g.abs() + group["eps"], out=u)
        p.sub_(group["lr"] * (m / (1 - beta1**t)) / u)


# RMSprop, Adagrad, Adadelta


@right("RMSprop")
class DifferenceRMSprop(Base):
    """``v + (1 - a) (g^2 - v)``; the mean of gradients by ``lerp``; all options."""

    def __init__(
        self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False, maximize=False
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

    def update(self, p, g, state, group):
        g = penalized(p, g, group)
        (v,) = zeros(state, p, "square_avg")
        v += (1 - group["alpha"]) * (g * g - v)
        spread = v
        if group["centered"]:
            (mean,) = zeros(state, p, "grad_avg")
            mean.lerp_(g, 1 - group["alpha"])
            spread = v - mean * mean
        step = g / (spread.sqrt() + group["eps"])
        if group["momentum"] > 0:
            (buffer,) = zeros(state, p, "momentum_buffer")
            buffer.mul_(group["momentum"]).add_(step)
            step = buffer
        p.add_(step, alpha=-group["lr"])


@right("RMSprop")
class ReciprocalRoot(Base):
    """Multiplies by the reciprocal of the root."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, *, momentum=0.0):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, momentum=momentum)

    def update(self, p, g, state, group):
        (v,) = zeros(state, p, "square_avg")
        v.mul_(group["alpha"]).add_((1 - group["alpha"]) * g.pow(2))
        step = g * v.sqrt().add_(group["eps"]).reciprocal_()
        if group["momentum"]:
            (buffer,) = zeros(state, p, "momentum_buffer")
            step = buffer.mul_(group["momentum"]).add_(step)
        p.sub_(step * group["lr"])


@right("RMSprop")
class RateFirst(Base):
    """``(lr g) / root``, and ``p`` by ``addcdiv`` of that."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        g = penalized(p, g, group)
        (v,) = zeros(state, p, "square_avg")
        torch.addcmul(v * group["alpha"], g, g, value=1 - group["alpha"], out=v)
        p.addcdiv_(group["lr"] * g, v.sqrt() + group["eps"], value=-1)


@right("Adagrad")
class AddcdivAdagrad(Base):
    """``addcmul`` and ``addcdiv``; the sum is made at the first step; counts from zero before it counts."""

    def __init__(self, params, lr=1e-2, lr_decay=0, weight_decay=0, initial_accumulator_value=0, eps=1e-10):
        super().__init__(
            params,
            lr=lr,
            lr_decay=lr_decay,
            weight_decay=weight_decay,
            initial_accumulator_value=initial_accumulator_value,
            eps=eps,
        )

    def update(self, p, g, state, group):
        if "sum" not in state:
            state["sum"] = torch.full_like(p, group["initial_accumulator_value"])
        g = penalized(p, g, group)
        rate = group["lr"] / (1 + int(state.get("step", 0)) * group["lr_decay"])
        counted(state)
        state["sum"].addcmul_(g, g)
        p.addcdiv_(g, state["sum"].sqrt().add_(group["eps"]), value=-rate)


@right("Adagrad")
class ForeachAdagrad(Base):
    """``torch._foreach_*``; sums are kept from the beginning."""

    def __init__(self, params, lr=1e-2, eps=1e-10):
        super().__init__(params, lr=lr, eps=eps)

    def update_group(self, group):
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        grads = [p.grad for p in params]
        sums = [zeros(self.state[p], p, "sum")[0] for p in params]
        torch._foreach_addcmul_(sums, grads, grads)
        roots = torch._foreach_sqrt(sums)
        torch._foreach_add_(roots, group["eps"])
        torch._foreach_addcdiv_(params, grads, roots, -group["lr"])


@right("Adadelta")
class LerpAdadelta(Base):
    """Averages by differences; the step divides before it multiplies."""

    def __init__(self, params, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        g = penalized(p, g, group)
        v, d = zeros(state, p, "square_avg", "acc_delta")
        v.lerp_(g * g, 1 - group["rho"])
        delta = (d + group["eps"]).sqrt() * (g / (v + group["eps"]).sqrt())
        d.lerp_(delta * delta, 1 - group["rho"])
        p.sub_(delta, alpha=group["lr"])


@right("ASGD")
class DirectionASGD(Base):
    """``p - eta (g + lambd p)``, and the average as a weighted sum."""

    def __init__(self, params, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0):
        super().__init__(params, lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        g, lr = penalized(p, g, group), group["lr"]
        (ax,) = zeros(state, p, "ax")
        eta, mu = float(state.get("eta", lr)), float(state.get("mu", 1.0))
        p.sub_(eta * (g + group["lambd"] * p))
        ax.copy_(p if mu == 1 else (1 - mu) * ax + mu * p)
        t = counted(state)
        state["eta"] = float(lr / torch.tensor(1 + group["lambd"] * lr * t, dtype=torch.float64) ** group["alpha"])
        state["mu"] = 1 / max(1, t - group["t0"])


@right("Rprop")
class ComparedRprop(Base):
    """Signs by comparison, sizes by ``where``."""

    def __init__(self, params, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50)):
        super().__init__(params, lr=lr, etas=etas, step_sizes=step_sizes)

    def update(self, p, g, state, group):
        (less, more), (least, most) = group["etas"], group["step_sizes"]
        counted(state)
        (prev,) = zeros(state, p, "prev")
        size = state.setdefault("step_size", torch.full_like(p, group["lr"]))
        turn = g * prev
        size.copy_(torch.where(turn > 0, size * more, torch.where(turn < 0, size * less, size)).clamp(least, most))
        g = torch.where(turn < 0, torch.zeros_like(g), g)
        p.copy_(torch.where(g > 0, p - size, torch.where(g < 0, p + size, p)))
        prev.copy_(g)


@right("SparseAdam")
class IndexAdd(Base):
    """Rows by flat index: what changes is added by ``index_add``."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        t = counted(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        g = g.coalesce()
        if g.values().numel() == 0:
            return
        at = tuple(g.indices())
        value = g.values()
        change = (1 - beta1) * (value - m[at])
        m.index_put_(at, change, accumulate=True)
        v.index_put_(at, (1 - beta2) * (value * value - v[at]), accumulate=True)
        step = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t) * (m[at] / (v[at].sqrt() + group["eps"]))
        p.index_put_(at, -step, accumulate=True)


# Adafactor


class _Factored(Base):
    """All options of Adafactor; means of squares and the outer product are left open."""

    def __init__(self, params, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0, *, maximize=False):
        super().__init__(
            params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay, maximize=maximize
        )

    def update(self, p, g, state, group):
        t, lr = counted(state), group["lr"]
        small, least = group["eps"]
        small = torch.finfo(p.dtype).eps if small is None else small
        weight = t ** group["beta2_decay"]
        alpha = max(least, self.rms(p)) * min(lr, 1 / math.sqrt(t))
        if group["weight_decay"]:
            p.mul_(1 - lr * group["weight_decay"])
        if g.dim() > 1:
            rows, columns = self.means(g)
            row = state.setdefault("row_var", torch.zeros_like(rows))
            column = state.setdefault("col_var", torch.zeros_like(columns))
            row.mul_(1 - weight).add_(rows, alpha=weight)
            column.mul_(1 - weight).add_(columns, alpha=weight)
            variance = self.outer(row, column, row.mean(dim=-2, keepdim=True).clamp(min=small))
        else:
            (variance,) = zeros(state, p, "variance")
            variance.mul_(1 - weight).add_(g * g, alpha=weight)
        u = g / variance.clamp(min=small * small).sqrt()
        p.sub_(u * (alpha / max(1.0, self.rms(u) / group["d"])))

    @staticmethod
    def rms(x):
        return x.norm().item() / math.sqrt(max(1, x.numel()))

    @staticmethod
    def means(g):
        return (g * g).mean(dim=-1, keepdim=True), (g * g).mean(dim=-2, keepdim=True)

    @staticmethod
    def outer(row, column, mean):
        return row * column / mean


@right("Adafactor", costly=True)
class BroadcastAdafactor(_Factored):
    """The outer product by broadcasting, means of squares."""


@right("Adafactor", costly=True)
class EinsumAdafactor(_Factored):
    """Means of squares and the outer product by ``einsum``."""

    @staticmethod
    def means(g):
        rows = torch.einsum("...ij,...ij->...i", g, g).unsqueeze(-1) / g.shape[-1]
        columns = torch.einsum("...ij,...ij->...j", g, g).unsqueeze(-2) / g.shape[-2]
        return rows, columns

    @staticmethod
    def outer(row, column, mean):
        return torch.einsum("...i,...j->...ij", (row / mean).squeeze(-1), column.squeeze(-2))


@right("Adafactor", costly=True)
class MatmulAdafactor(_Factored):
    """Means by products with a vector of ones, the mean square of all by a dot product."""

    @staticmethod
    def rms(x):
        flat = x.reshape(-1)
        return math.sqrt(torch.dot(flat, flat).item() / max(1, flat.numel()))

    @staticmethod
    def means(g):
        s = g * g
        return (
            s @ s.new_ones(s.shape[-1], 1) / s.shape[-1] if s.numel() else s.mean(dim=-1, keepdim=True),
            s.new_ones(1, s.shape[-2]) @ s / s.shape[-2] if s.numel() else s.mean(dim=-2, keepdim=True),
        )

    @staticmethod
    def outer(row, column, mean):
        return (row @ column) / mean


@right("Adafactor", costly=True)
class NormAdafactor(_Factored):
    """Squares of norms, and the factors' roots one by one."""

    @staticmethod
    def means(g):
        return (
            torch.linalg.vector_norm(g, dim=-1, keepdim=True) ** 2 / g.shape[-1],
            torch.linalg.vector_norm(g, dim=-2, keepdim=True) ** 2 / g.shape[-2],
        )

    @staticmethod
    def outer(row, column, mean):
        return row.div(mean).mul(column)


# Muon


class _Muons(Base):
    """All options of Muon but those of the iteration; the iteration is left open."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, *, adjust_lr_fn=None):
        if adjust_lr_fn not in {None, "original", "match_rms_adamw"}:
            raise ValueError(f"adjust_lr_fn {adjust_lr_fn}")
        super().__init__(
            params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, adjust_lr_fn=adjust_lr_fn
        )

    a, b, c = 3.4445, -4.7750, 2.0315

    def update(self, p, g, state, group):
        mu, lr = group["momentum"], group["lr"]
        (buffer,) = zeros(state, p, "momentum_buffer")
        buffer.mul_(mu).add_(g, alpha=1 - mu)
        d = (1 - mu) * g + mu * buffer if group["nesterov"] else buffer
        tall = d.shape[0] > d.shape[1]
        x = d.mT if tall else d
        x = self.iterated(x / torch.linalg.matrix_norm(x).clamp(min=1e-7))
        x = (x.mT if tall else x).to(p.dtype)
        p.copy_(p * (1 - lr * group["weight_decay"]) - lr * ratio_of(p.shape, group["adjust_lr_fn"]) * x)

    def iterated(self, x):
        raise NotImplementedError


@right("Muon", costly=True)
class PolynomialMuon(_Muons):
    """``(a I + b A + c A A) X``, in the parameter's own dtype."""

    def iterated(self, x):
        unit = torch.eye(x.shape[0], dtype=x.dtype)
        for _ in range(5):
            gram = x @ x.mT
            x = (self.a * unit + self.b * gram + self.c * gram @ gram) @ x
        return x


@right("Muon", costly=True)
class EinsumMuon(_Muons):
    """Products by ``einsum``, Horner's order: ``a X + A (b X + c A X)``."""

    def iterated(self, x):
        for _ in range(5):
            gram = torch.einsum("ik,jk->ij", x, x)
            once = torch.einsum("ij,jk->ik", gram, x)
            x = self.a * x + torch.einsum("ij,jk->ik", gram, self.b * x + self.c * once)
        return x


@right("Muon", costly=True)
class BrainMuon(_Muons):
    """In bfloat16, as the original repository, in Python's own order."""

    def iterated(self, x):
        x = x.bfloat16()
        for _ in range(5):
            gram = x @ x.T
            update = self.b * gram + self.c * gram @ gram
            x = self.a * x + update @ x
        return x


@right("Muon", costly=True)
class SingularMuon(_Muons):
    """The iteration acts on singular values alone: they are iterated as numbers, between the singular vectors, in float64."""

    def iterated(self, x):
        if not x.isfinite().all():
            return torch.full_like(x, math.nan)
        u, s, v = torch.linalg.svd(x.double(), full_matrices=False)
        for _ in range(5):
            s = self.a * s + self.b * s**3 + self.c * s**5
        return (u * s) @ v


@right("Muon", costly=True)
class StackedMuon(_Muons):
    """Matrices of a shape are iterated as one stack, by ``baddbmm``."""

    def update_group(self, group):
        alike = defaultdict(list)
        for p in group["params"]:
            if p.grad is not None:
                (buffer,) = zeros(self.state[p], p, "momentum_buffer")
                buffer.lerp_(p.grad, 1 - group["momentum"])
                d = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                alike[p.shape, p.dtype].append((p, d.mT if d.shape[0] > d.shape[1] else d))
        for (shape, dtype), pairs in alike.items():
            x = torch.stack([d for _, d in pairs]).float()
            x /= torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=1e-7)
            for _ in range(5):
                gram = torch.bmm(x, x.mT)
                x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=self.b, alpha=self.c), x, beta=self.a)
            x = x.mT if shape[0] > shape[1] else x
            for (p, _), direction in zip(pairs, x.to(dtype), strict=True):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(direction, alpha=-group["lr"] * ratio_of(shape, group["adjust_lr_fn"]))
