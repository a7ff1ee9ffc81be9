"""What the right optimizers share: the list that they are kept in, base classes, and a few rules to step by."""

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Shape:
    """An optimizer, the one of torch that it computes, how it is to be asked, and whether its options have names that say what they are."""

    make: Callable
    like: str
    name: str
    dtypes: tuple = ()
    costly: bool = False
    named: bool = True


SHAPES = []


def right(like, *, name=None, dtypes=(), costly=False, named=True):
    """Keep a class or factory as one that computes what ``torch.optim``'s ``like`` does."""

    def keep(make):
        SHAPES.append(Shape(make, like, name or make.__name__, dtypes, costly, named))
        return make

    return keep


class Base(torch.optim.Optimizer):
    """One parameter after the other, by ``update``."""

    def __init__(self, params, **defaults):
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.update_group(group)
        return loss

    def update_group(self, group):
        for p in group["params"]:
            if p.grad is not None:
                self.update(p, -p.grad if group.get("maximize") else p.grad, self.state[p], group)

    def update(self, p, g, state, group):
        raise NotImplementedError


class Duck:
    """No ``torch.optim.Optimizer``: it has what training loops touch, in torch's own form, and nothing else."""

    def __init__(self, params, **defaults):
        self.defaults = defaults
        self.param_groups = []
        self.state = defaultdict(dict)
        params = list(params)
        if not params:
            raise ValueError("no parameters")
        for group in params if isinstance(params[0], dict) else [{"params": params}]:
            self.add_param_group(group)

    def add_param_group(self, group):
        group = dict(group)
        given = group["params"]
        given = [given] if isinstance(given, torch.Tensor) else list(given)
        if given and isinstance(given[0], tuple):
            group["param_names"] = [name for name, _ in given]
            given = [p for _, p in given]
        seen = {id(p) for other in self.param_groups for p in other["params"]}
        for p in given:
            if not isinstance(p, torch.Tensor):
                raise TypeError("parameters are tensors")
            if not p.is_leaf:
                raise ValueError("parameters are leaves")
            if id(p) in seen:
                raise ValueError("a parameter appears twice")
            seen.add(id(p))
        self.param_groups.append({**self.defaults, **group, "params": given})

    def zero_grad(self, set_to_none=True):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                if set_to_none:
                    p.grad = None
                else:
                    p.grad = torch.zeros_like(p.grad)

    def ordered(self):
        return [p for group in self.param_groups for p in group["params"]]

    def state_dict(self):
        number = {id(p): i for i, p in enumerate(self.ordered())}
        groups = [{**g, "params": [number[id(p)] for p in g["params"]]} for g in self.param_groups]
        return {"state": {number[id(p)]: dict(s) for p, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, saved):
        names = [i for group in saved["param_groups"] for i in group["params"]]
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        if sizes != [len(group["params"]) for group in self.param_groups]:
            raise ValueError("loaded groups have other sizes")
        of_name = dict(zip(names, self.ordered(), strict=True))
        self.state = defaultdict(dict)
        for i, state in saved["state"].items():
            self.state[of_name[i]] = {k: copied(v) for k, v in state.items()}
        for group, other in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update({k: v for k, v in other.items() if k != "params"})

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.update(p, -p.grad if group.get("maximize") else p.grad, self.state[p], group)
        return loss


def copied(value):
    return value.clone() if isinstance(value, torch.Tensor) else value


def counted(state, name="step"):
    """Count a step, as a Python number."""
    state[name] = int(state.get(name, 0)) + 1
    return state[name]


def zeros(state, p, *names):
    """Buffers of a state, made of zeros where they are missing."""
    for name in names:
        if name not in state:
            state[name] = torch.zeros_like(p)
    return [state[name] for name in names]


def penalized(p, g, group):
    """The gradient and that of the penalty."""
    wd = group.get("weight_decay", 0)
    return g.add(p, alpha=wd) if wd else g


def sgd(p, g, state, lr, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False):
    if weight_decay:
        g = g.add(p, alpha=weight_decay)
    if momentum:
        if state.get("momentum_buffer") is None:
            state["momentum_buffer"] = g.clone()
        else:
            state["momentum_buffer"].mul_(momentum).add_(g, alpha=1 - dampening)
        g = g.add(state["momentum_buffer"], alpha=momentum) if nesterov else state["momentum_buffer"]
    p.sub_(g, alpha=lr)


def adam(
    p,
    g,
    state,
    lr=1e-3,
    betas=(0.9, 0.999),
    eps=1e-8,
    weight_decay=0.0,
    decoupled=False,
    names=("exp_avg", "exp_avg_sq"),
):
    beta1, beta2 = betas
    t = counted(state)
    m, v = zeros(state, p, *names)
    if weight_decay and decoupled:
        p.mul_(1 - lr * weight_decay)
    elif weight_decay:
        g = g.add(p, alpha=weight_decay)
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
    p.addcdiv_(m, v.sqrt().div_(math.sqrt(1 - beta2**t)).add_(eps), value=-lr / (1 - beta1**t))


def rmsprop(p, g, state, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
    if weight_decay:
        g = g.add(p, alpha=weight_decay)
    (v,) = zeros(state, p, "square_avg")
    v.mul_(alpha).addcmul_(g, g, value=1 - alpha)
    if centered:
        (mean,) = zeros(state, p, "grad_avg")
        mean.mul_(alpha).add_(g, alpha=1 - alpha)
        v = v.addcmul(mean, mean, value=-1)
    d = g / v.sqrt().add_(eps)
    if momentum:
        (buffer,) = zeros(state, p, "momentum_buffer")
        d = buffer.mul_(momentum).add_(d)
    p.sub_(d, alpha=lr)


def newton_schulz(x, coefficients=(3.4445, -4.775, 2.0315), steps=5, eps=1e-7, dtype=torch.float32):
    """The zeroth power of a matrix, or of a stack of them."""
    a, b, c = coefficients
    x = x.to(dtype)
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


def ratio_of(shape, how=None):
    rows, columns = shape[-2:]
    if not rows * columns:
        return 1.0
    return 0.2 * math.sqrt(max(rows, columns)) if how == "match_rms_adamw" else math.sqrt(max(1, rows / columns))
