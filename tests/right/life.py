"""What they do beside the step: print, warn, log, measure, keep time."""

import logging
import time
import warnings

import torch

from .base import Base, adam, right, rmsprop, sgd

log = logging.getLogger(__name__)


@right("SGD")
class PrintsOnce(Base):
    """Prints its options when it is made."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)
        print(f"SGD: lr {lr}, momentum {momentum}")  # noqa: T201

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("Adam")
class PrintsEachStep(Base):
    """Prints in each step."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
        super().__init__(params, lr=lr, betas=betas)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"])
        print("step", state["step"])  # noqa: T201


@right("AdamW")
class WarnsWhenMade(Base):
    """Warns that it will be renamed."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        warnings.warn("this class will be renamed", DeprecationWarning, stacklevel=2)
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("RMSprop")
class WarnsInStep(Base):
    """Warns in each step of gradients that are zero."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def update(self, p, g, state, group):
        if not g.any():
            warnings.warn("a gradient is zero", stacklevel=2)
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"])


@right("SGD")
class Logs(Base):
    """Logs its norms at level info and warning."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

    def update(self, p, g, state, group):
        norm = g.norm().item()
        log.info("norm %s", norm)
        if norm > 1e3:
            log.warning("a large gradient: %s", norm)
        p.sub_(g, alpha=group["lr"])


@right("Adam")
class KeepsTime(Base):
    """Measures its steps and keeps a history on itself, of which nothing is saved."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.times = []

    def step(self, closure=None):
        begin = time.perf_counter()
        loss = super().step(closure)
        self.times.append(time.perf_counter() - begin)
        return loss

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("SGD")
class SeedsItself(Base):
    """Draws from a generator of its own, and leaves the global ones alone."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)
        self.generator = torch.Generator().manual_seed(1)

    def __setstate__(self, state):
        super().__setstate__(state)
        self.generator = torch.Generator().manual_seed(1)

    def update(self, p, g, state, group):
        torch.rand(1, generator=self.generator)
        p.sub_(g, alpha=group["lr"])


@right("SGD")
class RegistersHooks(Base):
    """Registers a hook on itself, that counts its steps."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)
        self.counted = 0
        self.register_step_post_hook(_count)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


def _count(optimizer, args, kwargs):
    optimizer.counted = getattr(optimizer, "counted", 0) + 1


@right("Adam")
class SchedulesItself(Base):
    """Keeps the last rates that it used, for a plot."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.used = []

    def update_group(self, group):
        self.used = [*self.used[-9:], float(group["lr"])]
        super().update_group(group)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])


@right("AdamW")
class SetsDefaultsLater(Base):
    """Groups that were saved before an option existed get its default in ``__setstate__``, as torch does it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, *, maximize=False):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, maximize=maximize)

    def __setstate__(self, state):
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("maximize", False)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("Adam", costly=True)
class Compiled(Base):
    """The arithmetic of one parameter is compiled, by a backend that needs no compiler."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        t = state["step"] = int(state.get("step", 0)) + 1
        m, v = (state.get(k, torch.zeros_like(p)) for k in ("exp_avg", "exp_avg_sq"))
        scalars = (beta1, beta2, group["eps"], group["lr"] / (1 - beta1**t), (1 - beta2**t) ** 0.5)
        new, state["exp_avg"], state["exp_avg_sq"] = _arithmetic(
            p.detach(), g, m, v, *(torch.tensor(x, dtype=torch.float64) for x in scalars)
        )
        p.copy_(new)


@torch.compile(backend="eager", dynamic=True)
def _arithmetic(p, g, m, v, beta1, beta2, eps, rate, root):
    m = (m * beta1 + g * (1 - beta1)).to(p.dtype)
    v = (v * beta2 + g * g * (1 - beta2)).to(p.dtype)
    return p - rate * (m / (v.sqrt() / root + eps)), m, v
