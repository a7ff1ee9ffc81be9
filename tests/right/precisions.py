"""What they compute in: float64, NumPy, Python's numbers, float32 inside for narrow dtypes, sums that are compensated."""

import copy
import math

import numpy as np
import torch

from .base import Base, adam, counted, newton_schulz, penalized, ratio_of, right, rmsprop, sgd, zeros

NARROW = ("bfloat16", "float16")


def float_tensor(x):
    return isinstance(x, torch.Tensor) and x.is_floating_point()


class Inside(Base):
    """A rule in another dtype: everything is converted before, and rounded once after."""

    dtype = torch.float64

    def update(self, p, g, state, group):
        inner = {k: v.to(self.dtype) if float_tensor(v) else v for k, v in state.items()}
        q = p.to(self.dtype)
        self.rule(q, g.to(self.dtype), inner, group)
        p.copy_(q)
        state.update({k: v.to(p.dtype) if float_tensor(v) else v for k, v in inner.items()})


@right("SGD")
class WideSGD(Inside):
    """float64 inside, rounded once; the direction is made of what is not rounded yet."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(
            params, lr=lr, momentum=momentum, dampening=dampening, weight_decay=weight_decay, nesterov=nesterov
        )

    def rule(self, p, g, state, group):
        options = (group[k] for k in ("lr", "momentum", "dampening", "weight_decay", "nesterov"))
        sgd(p, g, state, *options)


class _AdamInside(Inside):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"])


@right("Adam")
class WideMomentsAdam(_AdamInside):
    """float64 inside; the step is made of unrounded moments, which are then stored in the parameter's dtype."""


@right("AdamW")
class WideAdamW(_AdamInside):
    """The same, of AdamW."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)

    def rule(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("RMSprop")
class WideRMSprop(Inside):
    """float64 inside, all options."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def rule(self, p, g, state, group):
        options = (group[k] for k in ("lr", "alpha", "eps", "weight_decay", "momentum", "centered"))
        rmsprop(p, g, state, *options)


@right("Adagrad")
class WideAdagrad(Inside):
    """float64 inside."""

    def __init__(self, params, lr=1e-2, lr_decay=0.0, weight_decay=0.0, eps=1e-10):
        super().__init__(params, lr=lr, lr_decay=lr_decay, weight_decay=weight_decay, eps=eps)

    def rule(self, p, g, state, group):
        g, t = penalized(p, g, group), counted(state)
        (total,) = zeros(state, p, "sum")
        total += g * g
        p -= group["lr"] / (1 + (t - 1) * group["lr_decay"]) * g / (total.sqrt() + group["eps"])


@right("NAdam")
class WideNAdam(Inside):
    """float64 inside; the product of the momenta is a Python number."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
        super().__init__(params, lr=lr, betas=betas, eps=eps, momentum_decay=momentum_decay)

    def rule(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state)
        mu, following = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        state["mu_product"] = product = float(state.get("mu_product", 1.0)) * mu
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        m.lerp_(g, 1 - beta1)
        v.lerp_(g * g, 1 - beta2)
        root = (v / (1 - beta2**t)).sqrt() + group["eps"]
        p -= group["lr"] * (1 - mu) / (1 - product) * g / root
        p -= group["lr"] * following / (1 - product * following) * m / root


@right("Adamax")
class WideAdamax(Inside):
    """float64 inside."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def rule(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state)
        m, u = zeros(state, p, "exp_avg", "exp_inf")
        m.lerp_(g, 1 - beta1)
        torch.maximum(beta2 * u, g.abs() + group["eps"], out=u)
        p -= group["lr"] / (1 - beta1**t) * m / u


@right("Adadelta")
class WideAdadelta(Inside):
    """float64 inside."""

    def __init__(self, params, lr=1.0, rho=0.9, eps=1e-6):
        super().__init__(params, lr=lr, rho=rho, eps=eps)

    def rule(self, p, g, state, group):
        counted(state)
        v, d = zeros(state, p, "square_avg", "acc_delta")
        v.mul_(group["rho"]).add_(g * g, alpha=1 - group["rho"])
        delta = ((d + group["eps"]) / (v + group["eps"])).sqrt() * g
        d.mul_(group["rho"]).add_(delta * delta, alpha=1 - group["rho"])
        p -= group["lr"] * delta


@right("Muon", costly=True)
class WideMuon(Inside):
    """float64 inside."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True, *, eps=1e-7, ns_steps=5):
        super().__init__(
            params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov, eps=eps, ns_steps=ns_steps
        )

    def rule(self, p, g, state, group):
        mu, lr = group["momentum"], group["lr"]
        (buffer,) = zeros(state, p, "momentum_buffer")
        buffer.mul_(mu).add_(g, alpha=1 - mu)
        d = (1 - mu) * g + mu * buffer if group["nesterov"] else buffer
        d = newton_schulz(d, steps=group["ns_steps"], eps=group["eps"], dtype=torch.float64)
        p.sub_(lr * group["weight_decay"] * p).sub_(lr * ratio_of(p.shape) * d)


# NumPy


class Arrays(Base):
    """Parameters, gradients and state as arrays of NumPy, which share their memory where that may be."""

    def update(self, p, g, state, group):
        with np.errstate(all="ignore"):
            new = self.rule(p.detach().numpy(), g.detach().numpy(), state, group)
        p.copy_(torch.as_tensor(np.asarray(new)))


@right("SGD")
class NumpySGD(Arrays):
    """Arrays of the parameter's own dtype; the buffer is an array too while it lives, and a tensor in the state."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def rule(self, p, g, state, group):
        g = g + p * group["weight_decay"]
        if group["momentum"]:
            old = state.get("momentum_buffer")
            g = g if old is None else old.numpy() * group["momentum"] + g
            state["momentum_buffer"] = torch.as_tensor(np.array(g))
        return p - g * group["lr"]


@right("RMSprop")
class NumpyRMSprop(Arrays):
    """Arrays of the parameter's own dtype."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def rule(self, p, g, state, group):
        old = state["square_avg"].numpy() if "square_avg" in state else np.zeros_like(p)
        v = old * group["alpha"] + np.square(g) * (1 - group["alpha"])
        state["square_avg"] = torch.as_tensor(np.array(v))
        return p - group["lr"] * g / (np.sqrt(v) + group["eps"])


@right("AdamW")
class NumpyAdamW(Arrays):
    """Everything in NumPy's float64, scalars too, and rounded once."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(self, p, g, state, group):
        lr, beta1, beta2, eps, wd = np.float64([group["lr"], *group["betas"], group["eps"], group["weight_decay"]])
        t, dtype = counted(state), p.dtype
        p, g = p.astype(np.float64), g.astype(np.float64)
        old = [np.asarray(state[k], np.float64) if k in state else np.zeros_like(p) for k in ("exp_avg", "exp_avg_sq")]
        m, v = beta1 * old[0] + (1 - beta1) * g, beta2 * old[1] + (1 - beta2) * g * g
        state["exp_avg"] = torch.as_tensor(np.asarray(m).astype(dtype))
        state["exp_avg_sq"] = torch.as_tensor(np.asarray(v).astype(dtype))
        step = m / (1 - np.power(beta1, t)) / (np.sqrt(v / (1 - np.power(beta2, t))) + eps)
        return np.asarray(p * (1 - lr * wd) - lr * step).astype(dtype)


@right("Adagrad")
class NumpyAdagrad(Arrays):
    """Arrays of the parameter's own dtype, in place where they share memory."""

    def __init__(self, params, lr=1e-2, lr_decay=0.0, eps=1e-10):
        super().__init__(params, lr=lr, lr_decay=lr_decay, eps=eps)

    def rule(self, p, g, state, group):
        t = counted(state)
        if "sum" not in state:
            state["sum"] = torch.as_tensor(np.zeros_like(p))
        total = state["sum"].numpy()
        total += g * g
        return p - group["lr"] / (1 + (t - 1) * group["lr_decay"]) * g / (np.sqrt(total) + group["eps"])


# Python's own numbers


class Loops(Base):
    """One element after the other, as Python numbers, rounded when they are stored."""

    names = ()

    def update(self, p, g, state, group):
        t = counted(state)
        buffers = zeros(state, p, *self.names)
        rows = zip(*(x.reshape(-1).tolist() for x in (p, g, *buffers)), strict=True)
        new = [self.rule(t, group, *row) for row in rows]
        for x, values in zip((p, *buffers), zip(*new, strict=True), strict=False):
            x.copy_(torch.tensor(values, dtype=torch.float64).reshape(x.shape))


def root(x):
    return math.sqrt(x) if x >= 0 else math.nan


def quotient(a, b):
    if b != 0:
        return a / b
    return math.nan if a == 0 or math.isnan(a) else math.copysign(math.inf, a) * math.copysign(1, b)


@right("SGD", costly=True)
class LoopedSGD(Loops):
    """SGD by Python's numbers."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def rule(self, t, group, p, g):
        return (p - group["lr"] * (g + group["weight_decay"] * p),)


@right("Adam", costly=True)
class LoopedAdam(Loops):
    """Adam by Python's numbers and ``math``."""

    names = ("exp_avg", "exp_avg_sq")

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def rule(self, t, group, p, g, m, v):
        beta1, beta2 = group["betas"]
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        below = root(v / (1 - beta2**t)) + group["eps"]
        return p - group["lr"] * quotient(m / (1 - beta1**t), below), m, v


@right("RMSprop", costly=True)
class LoopedRMSprop(Loops):
    """RMSprop by Python's numbers."""

    names = ("square_avg",)

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def rule(self, t, group, p, g, v):
        v = group["alpha"] * v + (1 - group["alpha"]) * g * g
        return p - quotient(group["lr"] * g, root(v) + group["eps"]), v


@right("Rprop", costly=True)
class LoopedRprop(Loops):
    """Rprop by Python's numbers; sizes begin at the rate."""

    names = ("prev", "step_size")

    def __init__(self, params, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50)):
        super().__init__(params, lr=lr, etas=etas, step_sizes=step_sizes)

    def update(self, p, g, state, group):
        if "step_size" not in state:
            state["step_size"] = torch.full_like(p, group["lr"])
        super().update(p, g, state, group)

    def rule(self, t, group, p, g, prev, size):
        turn = g * prev
        factor = group["etas"][1] if turn > 0 else group["etas"][0] if turn < 0 else 1.0
        low, high = group["step_sizes"]
        size = min(max(size * factor, low), high)
        g = 0.0 if turn < 0 else g
        return p - (math.copysign(size, g) if g < 0 or g > 0 else g), g, size


# float32 inside, for narrow parameters


class _Single(Inside):
    dtype = torch.float32


@right("SGD", dtypes=NARROW)
class SingleSGD(_Single):
    """Of narrow parameters: float32 inside, rounded once."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def rule(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"], 0.0, group["weight_decay"])


@right("AdamW", dtypes=("bfloat16",))
class SingleAdamW(_Single):
    """Of bfloat16: float32 inside, rounded once."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("RMSprop", dtypes=("bfloat16",))
class SingleRMSprop(_Single):
    """Of bfloat16: float32 inside, rounded once."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, momentum=momentum)

    def rule(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"], 0.0, group["momentum"])


@right("Adam", dtypes=NARROW)
class EachRounded(Base):
    """Of narrow parameters: each operation is torch's own, in place."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


class _Kept32(Base):
    """State of float32 beside narrow parameters; what torch narrows when it loads is taken from the dictionary."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        names = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [p for group in self.param_groups for p in group["params"]]
        for i, p in zip(names, params, strict=True):
            for k, v in state_dict["state"].get(i, {}).items():
                if float_tensor(v):
                    self.state[p][k] = v.clone()


@right("AdamW", dtypes=("bfloat16",))
class FloatMoments(_Kept32):
    """Of bfloat16: moments stay in float32."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        for name in ("exp_avg", "exp_avg_sq"):
            if name not in state:
                state[name] = torch.zeros_like(p, dtype=torch.float32)
        q = p.float()
        adam(q, g.float(), state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)
        p.copy_(q)


class _Master(_Kept32):
    """The weights in float32 beside narrow parameters; where another wrote the parameter, its value is the new one."""

    def update(self, p, g, state, group):
        master = state.get("master")
        if master is None or not torch.equal(master.to(p.dtype), p):
            master = p.detach().float().clone()
        state["master"] = master
        self.rule(master, g.float(), state, group)
        p.copy_(master)


@right("SGD", dtypes=NARROW)
class MasterSGD(_Master):
    """Of narrow parameters: weights in float32 are stepped, the parameters are their roundings."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)

    def rule(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("AdamW", dtypes=("bfloat16",))
class MasterAdamW(_Master):
    """Of bfloat16: weights and moments in float32."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def rule(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


class _Kahan(Base):
    """What a parameter could not take is carried to its next step."""

    def add(self, p, change, state):
        (carry,) = zeros(state, p, "compensation")
        carry.add_(change)
        before = p.clone()
        p.add_(carry)
        carry.add_(before.sub_(p))


@right("SGD", dtypes=("bfloat16",))
class KahanSGD(_Kahan):
    """Of bfloat16: compensated sums, the carry in the state."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

    def update(self, p, g, state, group):
        self.add(p, g * -group["lr"], state)


@right("AdamW", dtypes=("bfloat16",))
class KahanAdamW(_Kahan):
    """Of bfloat16: as AnyPrecisionAdamW, compensated."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        t = counted(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        p.mul_(1 - group["lr"] * group["weight_decay"])
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        root = (v.sqrt() / math.sqrt(1 - beta2**t)).add_(group["eps"])
        self.add(p, -group["lr"] / (1 - beta1**t) * m / root, state)


@right("SGD")
class KahanSingle(_Kahan):
    """Compensated in float32 and float64 as well."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        self.add(p, penalized(p, g, group) * -group["lr"], state)


# scalars


@right("SGD")
class TensorRate(Base):
    """Its rate becomes a float64 tensor in the groups, as for CUDA graphs."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=torch.as_tensor(lr, dtype=torch.float64), momentum=momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, float(group["lr"]), group["momentum"])


@right("Adam")
class TensorScalars(Base):
    """Scalars are float64 tensors without dimensions."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        t = torch.tensor(counted(state), dtype=torch.float64)
        lr, beta1, beta2, eps = torch.tensor([group["lr"], *group["betas"], group["eps"]], dtype=torch.float64).unbind()
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        m.mul_(beta1).add_(g * (1 - beta1))
        v.mul_(beta2).add_(g * g * (1 - beta2))
        below = v.div(1 - torch.pow(beta2, t)).sqrt().add(eps)
        p.sub_(m.div(1 - torch.pow(beta1, t)).div(below).mul(lr))


@right("RMSprop")
class NumpyScalars(Base):
    """Scalars are NumPy's float64, tensors torch's."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def update(self, p, g, state, group):
        lr, alpha, eps = (np.float64(group[k]) for k in ("lr", "alpha", "eps"))
        (v,) = zeros(state, p, "square_avg")
        v.mul_(float(alpha)).addcmul_(g, g, value=float(np.subtract(1, alpha)))
        p.addcdiv_(g, v.sqrt().add_(float(eps)), value=-float(lr))


@right("AdamW")
class MathScalars(Base):
    """Scalars by ``math`` (``pow``, ``sqrt``, ``fma`` by hand), corrections kept in the state as Python numbers."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        state["corrections"] = one, two = 1 - math.pow(beta1, t), math.sqrt(1 - math.pow(beta2, t))
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        p.mul_(math.fsum((1.0, -group["lr"] * group["weight_decay"])))
        p.sub_(m / one / (v.sqrt() / two + group["eps"]) * group["lr"])


def fused(a, b, c):
    """``a b + c`` of float32 with one rounding, by way of float64, where the product is exact; of float64 as it is."""
    return (a.double() * b + c.double()).to(c.dtype)


@right("SGD")
class FusedMultiplyAdd(Base):
    """Products and sums are contracted, as compilers do."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        g = fused(p, group["weight_decay"], g)
        if group["momentum"]:
            old = state.get("momentum_buffer")
            g = state["momentum_buffer"] = g if old is None else fused(old, group["momentum"], g)
        p.copy_(fused(g, -group["lr"], p))


@right("Adagrad")
class FusedAdagrad(Base):
    """The square is added with one rounding."""

    def __init__(self, params, lr=1e-2, eps=1e-10):
        super().__init__(params, lr=lr, eps=eps)

    def update(self, p, g, state, group):
        (total,) = zeros(state, p, "sum")
        total.copy_(fused(g, g.double(), total))
        p.copy_(fused(g / (total.sqrt() + group["eps"]), -group["lr"], p))


@right("Adafactor", costly=True)
class WideAdafactor(Inside):
    """float64 inside; the smallest number is that of the parameter's dtype."""

    def __init__(self, params, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0, weight_decay=0.0):
        super().__init__(params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        small = torch.finfo(p.dtype).eps if group["eps"][0] is None else group["eps"][0]
        super().update(p, g, state, {**group, "eps": (small, group["eps"][1])})

    def rule(self, p, g, state, group):
        t, lr, (small, least) = counted(state), group["lr"], group["eps"]
        weight = t ** group["beta2_decay"]
        alpha = max(least, p.square().mean().sqrt().item()) * min(lr, t**-0.5)
        p *= 1 - lr * group["weight_decay"]
        if g.dim() > 1:
            means = [(g * g).mean(dim=k, keepdim=True) for k in (-1, -2)]
            r, c = (
                state.setdefault(k, torch.zeros_like(x)) for k, x in zip(("row_var", "col_var"), means, strict=True)
            )
            r.lerp_(means[0], weight)
            c.lerp_(means[1], weight)
            v = r * c / r.mean(dim=-2, keepdim=True).clamp(min=small)
        else:
            (v,) = zeros(state, p, "variance")
            v.lerp_(g * g, weight)
        u = g / v.sqrt().clamp(min=small)
        p -= alpha * u / max(1.0, u.square().mean().sqrt().item() / group["d"])


# L-BFGS


def largest(x):
    return x.abs().max() if x.numel() else x.sum()


class OwnLBFGS(torch.optim.Optimizer):
    """L-BFGS with a fixed step, its history in lists, in a dtype of its own."""

    dtype = None

    def __init__(
        self, params, lr=1, max_iter=20, max_eval=None, tolerance_grad=1e-7, tolerance_change=1e-9, history_size=100
    ):
        super().__init__(
            params,
            {
                "lr": lr,
                "max_iter": max_iter,
                "max_eval": max_iter * 5 // 4 if max_eval is None else max_eval,
                "tolerance_grad": tolerance_grad,
                "tolerance_change": tolerance_change,
                "history_size": history_size,
            },
        )
        if len(self.param_groups) != 1:
            raise ValueError("one group only")

    def gradient(self):
        parts = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.param_groups[0]["params"]]
        flat = torch.cat([x.reshape(-1) for x in parts])
        return flat if self.dtype is None else flat.to(self.dtype)

    def move(self, change):
        params = self.param_groups[0]["params"]
        for p, part in zip(params, change.split([p.numel() for p in params]), strict=True):
            p.copy_(p.to(part.dtype) + part.view(p.shape))

    def direction(self, g, kept):
        q = -g
        alphas = []
        for y, s, rho in reversed(kept["pairs"]):
            alphas.append(s.dot(q) * rho)
            q = q - alphas[-1] * y
        q = q * kept["scale"]
        for (y, s, rho), alpha in zip(kept["pairs"], reversed(alphas), strict=True):
            q = q + (alpha - y.dot(q) * rho) * s
        return q

    @torch.no_grad()
    def step(self, closure):
        closure = torch.enable_grad()(closure)
        group = self.param_groups[0]
        kept = self.state[group["params"][0]]
        first = closure()
        loss, evaluations, g = float(first), 1, self.gradient()
        if largest(g) <= group["tolerance_grad"]:
            return first
        n = 0
        while n < group["max_iter"]:
            n += 1
            if "g" not in kept:
                kept.update(pairs=[], scale=1.0)
                d, t = -g, min(1.0, 1.0 / g.abs().sum()) * group["lr"]
            else:
                y, s = g - kept["g"], kept["d"] * kept["t"]
                ys = y.dot(s)
                if ys > 1e-10:
                    kept["pairs"] = [*kept["pairs"], (y, s, 1.0 / ys)][-group["history_size"] :]
                    kept["scale"] = ys / y.dot(y)
                d, t = self.direction(g, kept), group["lr"]
            kept.update(g=g, d=d, t=t)
            before, slope = loss, g.dot(d)
            if slope > -group["tolerance_change"]:
                break
            self.move(t * d)
            if n == group["max_iter"]:
                break
            loss, g = float(closure()), self.gradient()
            evaluations += 1
            if evaluations >= group["max_eval"] or largest(g) <= group["tolerance_grad"]:
                break
            if largest(d * t) <= group["tolerance_change"] or abs(loss - before) < group["tolerance_change"]:
                break
        return first


@right("LBFGS", costly=True)
class ListLBFGS(OwnLBFGS):
    """Pairs in a list of tuples, torch's order of operations, state under names of its own."""


@right("LBFGS", costly=True)
class ShortLBFGS(OwnLBFGS):
    """The same with few options; the tolerances are torch's constants."""

    def __init__(self, params, lr=1, max_iter=20, history_size=100):
        super().__init__(params, lr=lr, max_iter=max_iter, history_size=history_size)


@right("LBFGS", costly=True)
class WideLBFGS(OwnLBFGS):
    """Direction and history in float64."""

    dtype = torch.float64

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        names, params = state_dict["param_groups"][0]["params"], self.param_groups[0]["params"]
        for i, p in zip(names, params, strict=True):
            if i in state_dict["state"]:
                self.state[p] = copy.deepcopy(state_dict["state"][i])


@right("LBFGS", costly=True)
class MatrixLBFGS(OwnLBFGS):
    """The history as two matrices for its products, and the two loops over rows of them."""

    def direction(self, g, kept):
        if not kept["pairs"]:
            return -g * kept["scale"]
        y, s = (torch.stack([pair[i] for pair in kept["pairs"]]) for i in (0, 1))
        rho = torch.stack([pair[2] for pair in kept["pairs"]])
        q, alpha = -g, torch.zeros_like(rho)
        for i in range(len(rho) - 1, -1, -1):
            alpha[i] = rho[i] * (s[i] @ q)
            q = torch.addmv(q, y[i : i + 1].T, -alpha[i : i + 1])
        q = q * kept["scale"]
        for i in range(len(rho)):
            q = q + s[i] * (alpha[i] - rho[i] * (y[i] @ q))
        return q
