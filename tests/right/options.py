"""Where their options live, and what of torch's surface they leave out or write anew."""

import math

import torch

from .base import Base, Duck, adam, counted, penalized, right, rmsprop, sgd, zeros


@right("Adam")
class BetasApart(Base):
    """Takes ``betas``, keeps ``beta1`` and ``beta2``."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, beta1=betas[0], beta2=betas[1], eps=eps)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], (group["beta1"], group["beta2"]), group["eps"])


@right("AdamW")
class DecayUnderOtherName(Base):
    """Takes ``weight_decay``, keeps ``wd``."""

    def __init__(self, params, lr=1e-3, weight_decay=1e-2):
        super().__init__(params, lr=lr, wd=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], weight_decay=group["wd"], decoupled=True)


@right("SGD")
class OptionsOnSelf(Base):
    """All options but ``lr`` are attributes of the optimizer, the same for all groups."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr)
        self.momentum, self.weight_decay = momentum, weight_decay

    def __getstate__(self):
        return {**super().__getstate__(), "momentum": self.momentum, "weight_decay": self.weight_decay}

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], self.momentum, 0.0, self.weight_decay)


@right("RMSprop")
class RateOnSelf(Duck):
    """No base class; the rate is an attribute that the caller may set."""

    def __init__(self, params, lr=1e-2, alpha=0.99):
        self.lr = lr
        super().__init__(params, alpha=alpha)

    def update(self, p, g, state, group):
        rmsprop(p, g, state, self.lr, group["alpha"])


@right("Adam")
class BetasList(Base):
    """Keeps ``betas`` as a list, since its configuration comes from JSON."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=float(lr), betas=[float(b) for b in betas], eps=float(eps))

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("AdamW")
class MoreInGroups(Base):
    """Groups have keys of its own: a name, the rate that they began with, a flag."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(
            params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, name="group", base_lr=lr, enabled=True
        )

    def update(self, p, g, state, group):
        if group["enabled"]:
            adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("RMSprop")
class ValidatesGroups(Base):
    """Validates each group, not the constructor: ValueError for what it does not do, wherever it is given."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def add_param_group(self, param_group):
        for name in ("momentum", "centered"):
            if param_group.get(name, self.defaults[name]):
                raise ValueError(f"no {name}")
        super().add_param_group(param_group)

    def update_group(self, group):
        if group["momentum"] or group["centered"]:
            raise ValueError("neither momentum nor centered")
        super().update_group(group)

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"], group["weight_decay"])


@right("SGD")
class RefusesInGroups(Base):
    """The same of SGD, with NotImplementedError."""

    def __init__(self, params, lr=1e-3, momentum=0.0, nesterov=False):
        super().__init__(params, lr=lr, momentum=momentum, nesterov=nesterov)

    def add_param_group(self, param_group):
        if param_group.get("nesterov", self.defaults["nesterov"]):
            raise NotImplementedError("no Nesterov")
        super().add_param_group(param_group)

    def update(self, p, g, state, group):
        if group["nesterov"]:
            raise NotImplementedError("no Nesterov")
        sgd(p, g, state, group["lr"], group["momentum"])


@right("Adagrad")
class NoMoreGroups(Base):
    """Groups that are added later are refused with NotImplementedError."""

    def __init__(self, params, lr=1e-2, eps=1e-10):
        self.made = False
        super().__init__(params, lr=lr, eps=eps)
        self.made = True

    def add_param_group(self, param_group):
        if self.made:
            raise NotImplementedError("all parameters at once, please")
        super().add_param_group(param_group)

    def update(self, p, g, state, group):
        (total,) = zeros(state, p, "sum")
        total.addcmul_(g, g)
        p.addcdiv_(g, total.sqrt().add_(group["eps"]), value=-group["lr"])


@right("SGD")
class OwnZeroGrad(Duck):
    """``zero_grad`` takes nothing, and sets gradients to ``None``."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

    def zero_grad(self):
        for p in self.ordered():
            p.grad = None

    def update(self, p, g, state, group):
        p.sub_(g, alpha=group["lr"])


@right("Adam")
class ZeroGradInPlace(Base):
    """``zero_grad`` fills gradients with zeros by default, as torch did before 2.0."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def zero_grad(self, set_to_none=False):
        super().zero_grad(set_to_none)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("AdamW")
class MoreArguments(Base):
    """``state_dict`` and ``load_state_dict`` have optional arguments of their own."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def state_dict(self, detach=False):
        return super().state_dict()

    def load_state_dict(self, state_dict, strict=True):
        super().load_state_dict(state_dict)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("SGD")
class StateUnderString(Base):
    """Keeps a count under a string in ``state``, beside parameters."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)
        self.state["all"]["calls"] = 0

    def step(self, closure=None):
        loss = super().step(closure)
        self.state["all"]["calls"] = self.state["all"].get("calls", 0) + 1
        return loss

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("Adam")
class StateOfFirst(Base):
    """Keeps what all share in the state of the first parameter, as L-BFGS does."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def step(self, closure=None):
        loss = super().step(closure)
        shared = self.state[self.param_groups[0]["params"][0]]
        shared["calls"] = shared.get("calls", 0) + 1
        return loss

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("SGD")
def local_class(params, lr=1e-3, momentum=0.0):
    """A class that is made in a function, and so has no name to be pickled by."""

    class Local(Base):
        def update(self, p, g, state, group):
            sgd(p, g, state, group["lr"], group["momentum"])

    return Local(params, lr=lr, momentum=momentum)


@right("SGD")
class HoldsFunction(Duck):
    """No base class; holds a function that cannot be pickled."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.rule = lambda p, g, group: p.sub_(penalized(p, g, group), alpha=group["lr"])

    def update(self, p, g, state, group):
        self.rule(p, g, group)


@right("RMSprop")
class MadeByName(Base):
    """Its options are read from a table of defaults, by ``**options``, those that it has; others are ignored with a note."""

    def __init__(self, params, **options):
        table = {"lr": 1e-2, "alpha": 0.99, "eps": 1e-8}
        self.ignored = sorted(set(options) - set(table))
        super().__init__(params, **{k: options.get(k, v) for k, v in table.items()})

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"])


@right("Adam")
def two_optimizers_in_one(params, lr=1e-3, betas=(0.9, 0.999), *, use_torch=False):
    """A factory with a switch of its own, which stays off."""
    return torch.optim.Adam(params, lr=lr, betas=betas) if use_torch else BetasList(params, lr=lr, betas=betas)


@right("NAdam")
class ProductAsTensor(Base):
    """The product of momenta is a float64 tensor that is kept from being narrowed when it is loaded."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
        super().__init__(params, lr=lr, betas=betas, eps=eps, momentum_decay=momentum_decay)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        names = [i for group in state_dict["param_groups"] for i in group["params"]]
        for i, p in zip(names, (p for group in self.param_groups for p in group["params"]), strict=True):
            if "product" in state_dict["state"].get(i, {}):
                self.state[p]["product"] = state_dict["state"][i]["product"].clone()

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state)
        mu, then = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        product = state.setdefault("product", torch.ones((), dtype=torch.float64)).mul_(mu).item()
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        below = v.div(1 - beta2**t).sqrt_().add_(group["eps"])
        p.addcdiv_(g, below, value=-group["lr"] * (1 - mu) / (1 - product))
        p.addcdiv_(m, below, value=-group["lr"] * then / (1 - product * then))


@right("Rprop")
class EtasApart(Base):
    """Takes ``eta_minus`` and ``eta_plus``, and the limits under other names."""

    def __init__(self, params, lr=1e-2, eta_minus=0.5, eta_plus=1.2, smallest=1e-6, largest=50.0):
        super().__init__(params, lr=lr, eta_minus=eta_minus, eta_plus=eta_plus, smallest=smallest, largest=largest)

    def update(self, p, g, state, group):
        prev = state.setdefault("prev", torch.zeros_like(p))
        size = state.setdefault("step_size", torch.full_like(p, group["lr"]))
        turn = prev * g
        factor = (
            torch.ones_like(size).masked_fill_(turn > 0, group["eta_plus"]).masked_fill_(turn < 0, group["eta_minus"])
        )
        size.mul_(factor).clamp_(group["smallest"], group["largest"])
        g = g.masked_fill(turn < 0, 0)
        p.addcmul_(g.sign(), size, value=-1)
        prev.copy_(g)


@right("Adamax")
class CorrectedTwice(Base):
    """The correction as a rate that is kept in the group, for a log."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps, last_rate=0.0)

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state)
        m, u = zeros(state, p, "exp_avg", "exp_inf")
        m.lerp_(g, 1 - beta1)
        u.copy_(torch.stack((u * beta2, g.abs() + group["eps"])).amax(0))
        group["last_rate"] = group["lr"] / (1 - math.pow(beta1, t))
        p.addcdiv_(m, u, value=-group["last_rate"])
