"""What they are made of: torch's base class, no base class, another optimizer inside, a class of torch's own."""

import copy
import math

import torch

from .base import Base, Duck, adam, counted, right, rmsprop, sgd, zeros
from .precisions import ShortLBFGS, WideMuon


@right("SGD")
class DuckSGD(Duck):
    """No base class, torch's form of everything."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"], 0.0, group["weight_decay"])


@right("Adam")
class DuckAdam(Duck):
    """No base class; all options of Adam but amsgrad."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, *, maximize=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"])


class Wrapper:
    """Around a torch optimizer, whose groups and state are its own, as Lookahead has them."""

    def __init__(self, inner):
        self.inner = inner

    @property
    def param_groups(self):
        return self.inner.param_groups

    @property
    def state(self):
        return self.inner.state

    @property
    def defaults(self):
        return self.inner.defaults

    def zero_grad(self, set_to_none=True):
        self.inner.zero_grad(set_to_none)

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, saved):
        self.inner.load_state_dict(saved)

    def add_param_group(self, group):
        self.inner.add_param_group(group)

    def step(self, closure=None):
        return self.inner.step(closure)


@right("Adam")
class WrapsAdam(Wrapper):
    """Every call goes inside; it is no optimizer by class."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(torch.optim.Adam(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))


@right("RMSprop")
class WrapsByGetattr:
    """Whatever it has not is looked up inside."""

    def __init__(self, params, **options):
        self._inside = torch.optim.RMSprop(params, **options)

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._inside, name)


@right("SGD")
class LookaheadOfNothing(Wrapper):
    """Like Lookahead in form, with slow weights; they follow at once (k = 1, alpha = 1), so that it is the base."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(torch.optim.SGD(params, lr=lr, momentum=momentum))
        self.slow = {}

    def step(self, closure=None):
        loss = self.inner.step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.slow[id(p)] = p.detach().clone()
                p.data.copy_(self.slow[id(p)])
        return loss


@right("SGD")
class SharpnessOfNothing(torch.optim.Optimizer):
    """Like SAM in form (rho = 0): the base class is made with the parameters and the base optimizer with its groups."""

    def __init__(self, params, lr=1e-3, momentum=0.0, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.base = torch.optim.SGD(self.param_groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.param_groups = self.base.param_groups
        self.defaults.update(self.base.defaults)

    @torch.no_grad()
    def step(self, closure=None):
        self.base.param_groups, self.base.state = self.param_groups, self.state
        return self.base.step(closure)


@right("AdamW")
class DelegatesEachParameter(Base):
    """Keeps state and groups itself, and has torch's function do the work."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, amsgrad=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, amsgrad=amsgrad)

    def update(self, p, g, state, group):
        from torch.optim.adamw import adamw

        if not state:
            state["step"] = torch.tensor(0.0)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        most = zeros(state, p, "max_exp_avg_sq") if group["amsgrad"] else []
        beta1, beta2 = group["betas"]
        options = {k: group[k] for k in ("lr", "eps", "weight_decay", "amsgrad")}
        adamw(
            [p],
            [g],
            [m],
            [v],
            most,
            [state["step"]],
            foreach=False,
            beta1=beta1,
            beta2=beta2,
            maximize=False,
            **options,
        )


@right("Adam")
class ChildOfAdam(torch.optim.Adam):
    """A child of torch's class, with a step of its own that calls the parent's and does more."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.last_loss = loss
        return loss


@right("Adam")
class ChildOfAdamW(torch.optim.AdamW):
    """A child of AdamW that has Adam's penalty: it is Adam."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=0.0)


@right("SGD")
class ChildWithOwnStep(torch.optim.SGD):
    """A child of torch's SGD whose step is written anew."""

    def __init__(self, params, lr=1e-3, momentum=0, weight_decay=0):
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    sgd(p, p.grad, self.state[p], group["lr"], group["momentum"], 0.0, group["weight_decay"])
        return loss


@right("RMSprop")
class GrandChild(torch.optim.RMSprop):
    """Torch's class with a mixin before it and an option of its own, off by default."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, centralize=False):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)
        self.centralize = centralize

    @torch.no_grad()
    def step(self, closure=None):
        if self.centralize:
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None and p.grad.dim() > 1:
                        p.grad.sub_(p.grad.mean())
        return super().step(closure)


class _Mixin:
    def describe(self):
        return f"{type(self).__name__} of {len(self.param_groups)} groups"


@right("Adamax")
class MixedIn(_Mixin, torch.optim.Adamax):
    """A mixin and torch's class, and no constructor of its own."""


@right("RAdam")
class ChildOfRAdam(torch.optim.RAdam):
    """Torch's class, decoupled decay off, another order of arguments."""

    def __init__(self, params, lr=1e-3, eps=1e-8, betas=(0.9, 0.999)):
        super().__init__(params, lr=lr, betas=betas, eps=eps)


@right("LBFGS", costly=True)
class WrapsLBFGS(Wrapper):
    """Around an L-BFGS, closure required."""

    def __init__(self, params, lr=1, max_iter=20):
        super().__init__(ShortLBFGS(params, lr=lr, max_iter=max_iter))

    def step(self, closure):
        return self.inner.step(closure)


@right("LBFGS", costly=True)
class ChildOfLBFGS(ShortLBFGS):
    """A child that counts its calls."""

    def __init__(self, params, lr=1, max_iter=20):
        super().__init__(params, lr, max_iter)
        self.calls = 0

    def step(self, closure):
        self.calls += 1
        return super().step(closure)


@right("SparseAdam")
class WrapsSparseAdam(torch.optim.Optimizer):
    """Coalesces gradients and hands rows to dense arithmetic, by index."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)() if closure is not None else None
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad.coalesce(), self.state[p], group)
        return loss

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        t = counted(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        at, value = tuple(g.indices()), g.values()
        if value.numel() == 0:
            return
        m[at] = first = beta1 * m[at] + (1 - beta1) * value
        v[at] = second = beta2 * v[at] + (1 - beta2) * value * value
        size = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        p[at] -= size * first / (second.sqrt() + group["eps"])


@right("Adagrad")
class OwnBaseClass(Duck):
    """Adagrad on no base class, its sums made when a group is added."""

    def __init__(self, params, lr=1e-2, lr_decay=0.0, eps=1e-10):
        super().__init__(params, lr=lr, lr_decay=lr_decay, eps=eps)

    def add_param_group(self, group):
        super().add_param_group(group)
        for p in self.param_groups[-1]["params"]:
            self.state[p].update(step=0, sum=torch.zeros_like(p))

    def update(self, p, g, state, group):
        state["step"] += 1
        state["sum"] += g * g
        rate = group["lr"] / (1 + (state["step"] - 1) * group["lr_decay"])
        p -= rate * g / (state["sum"].sqrt() + group["eps"])


@right("RMSprop")
class DuckRMSprop(Duck):
    """No base class, its groups may be copied and pickled with it."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, momentum=0.0, centered=False):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps, momentum=momentum, centered=centered)

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"], 0.0, group["momentum"], group["centered"])

    def clone(self):
        return copy.deepcopy(self)


@right("Adam")
def chosen_by_size(params, lr=1e-3, betas=(0.9, 0.999)):
    """A factory that chooses the implementation by what it is given."""
    params = list(params)
    return torch.optim.Adam(params, lr=lr, betas=betas, foreach=len(params) > 2)


@right("Muon", costly=True)
class ChildOfMuon(WideMuon):
    """A child that fixes the iteration at the defaults."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95, nesterov=True):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum, nesterov=nesterov)
