"""Steps of every kind: with and without closures, keywords, decorators, other results."""

import functools
import math

import torch
from torch.optim.optimizer import _use_grad_for_differentiable

from .base import Base, Duck, adam, right, rmsprop, sgd


class _Plain(torch.optim.Optimizer):
    """The options of SGD with momentum, and what one step does."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def all_of_them(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    sgd(p, p.grad, self.state[p], group["lr"], group["momentum"])


@right("SGD")
class WithoutClosure(_Plain):
    """``step()`` takes nothing."""

    def step(self):
        self.all_of_them()


@right("SGD")
class ReturnsNothing(_Plain):
    """Has no closure, and says so in its annotations."""

    def step(self) -> None:
        self.all_of_them()


@right("SGD")
class RequiredClosure(_Plain):
    """``step(closure)`` needs one, as L-BFGS does."""

    def step(self, closure):
        with torch.enable_grad():
            loss = closure()
        self.all_of_them()
        return loss


@right("SGD")
class KeywordClosure(_Plain):
    """The closure is a keyword only."""

    def step(self, *, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.all_of_them()
        return loss


@right("SGD")
class GradsBeside(_Plain):
    """As apex had it: gradients may come beside the closure, and are those of the parameters otherwise."""

    @torch.no_grad()
    def step(self, closure=None, *, grads=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        grads = iter([p.grad for group in self.param_groups for p in group["params"]] if grads is None else grads)
        for group in self.param_groups:
            for p in group["params"]:
                g = next(grads)
                if g is not None:
                    sgd(p, g, self.state[p], group["lr"], group["momentum"])
        return loss


def _timed(step):
    @functools.wraps(step)
    def inner(self, *args, **kwargs):
        self.calls = getattr(self, "calls", 0) + 1
        return step(self, *args, **kwargs)

    return inner


@right("SGD")
class DecoratedStep(_Plain):
    """A decorator that keeps the signature."""

    @_timed
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        self.all_of_them()
        return loss


def _bare(step):
    def inner(*args, **kwargs):
        with torch.no_grad():
            return step(*args, **kwargs)

    return inner


@right("SGD")
class HiddenStep(_Plain):
    """A decorator that hides the signature behind ``*args, **kwargs``; closures are taken."""

    @_bare
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.all_of_them()
        return loss


@right("SGD")
class OtherNameOfClosure(_Plain):
    """Its closure has another name."""

    def step(self, loss_closure=None):
        loss = None
        if loss_closure is not None:
            with torch.enable_grad():
                loss = loss_closure()
        self.all_of_them()
        return loss


@right("Adam")
class ReturnsLoss(Base):
    """Evaluates the closure under ``set_grad_enabled`` and returns what it returned."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
        super().__init__(params, lr=lr, betas=betas)

    def step(self, closure=None):
        with torch.set_grad_enabled(True):
            loss = closure() if closure else None
        with torch.no_grad():
            for group in self.param_groups:
                self.update_group(group)
        return loss

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"])


@right("Adam")
class Differentiable(torch.optim.Optimizer):
    """Uses torch's own private decorator, and has ``differentiable`` in its groups, off."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "differentiable": False})

    @_use_grad_for_differentiable
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    adam(p, p.grad, self.state[p], group["lr"], group["betas"], group["eps"])
        return loss


@right("RMSprop")
class OnData(Base):
    """Works on ``.data``, as code of 2017 did, with no ``no_grad``; the closure is called as it is."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def step(self, closure=None):
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            options = {k: group[k] for k in ("lr", "alpha", "eps", "weight_decay", "momentum", "centered")}
            for p in group["params"]:
                if p.grad is not None:
                    rmsprop(p.data, p.grad.data, self.state[p], **options)
        return loss


@right("Adagrad")
class TwoPhases(torch.optim.Optimizer):
    """Computes all new values first, then writes them all."""

    def __init__(self, params, lr=1e-2, eps=1e-10):
        super().__init__(params, {"lr": lr, "eps": eps})

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)() if closure is not None else None
        pending = []
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    total = self.state[p].get("sum", torch.zeros_like(p)) + p.grad * p.grad
                    pending.append((p, p - group["lr"] * p.grad / (total.sqrt() + group["eps"]), total))
        for p, value, total in pending:
            p.copy_(value)
            self.state[p]["sum"] = total
        return loss


@right("AdamW")
class DuckWithoutClosure(Duck):
    """No base class and no closure."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def step(self):
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        adam(
                            p,
                            p.grad,
                            self.state[p],
                            group["lr"],
                            group["betas"],
                            group["eps"],
                            group["weight_decay"],
                            decoupled=True,
                        )


@right("SGD")
class ManyArguments(_Plain):
    """``step(closure=None, scale=1.0, skip=False)``, which a training loop may use."""

    @torch.no_grad()
    def step(self, closure=None, scale=1.0, skip=False):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if skip or not math.isfinite(scale):
            return loss
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    g = p.grad if scale == 1.0 else p.grad / scale
                    sgd(p, g, self.state[p], group["lr"], group["momentum"])
        return loss


@right("SGD")
class CallsItself(_Plain):
    """Its step is split in methods of which one is ``__call__``."""

    def __call__(self, closure=None):
        return self.step(closure)

    def step(self, closure=None):
        loss = self.evaluated(closure)
        self.all_of_them()
        return loss

    @staticmethod
    @torch.enable_grad()
    def evaluated(closure):
        return None if closure is None else closure()
