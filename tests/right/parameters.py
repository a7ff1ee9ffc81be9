"""What they ask of parameters, gradients and of those who call them."""

import torch
from torch import nn

from .base import Base, Duck, adam, newton_schulz, ratio_of, right, rmsprop, sgd


class _NeedsParameters(Base):
    """Refuses tensors that are no ``nn.Parameter``."""

    def add_param_group(self, group):
        params = group["params"]
        given = [params] if isinstance(params, torch.Tensor) else list(params)
        for p in given:
            if not isinstance(p[1] if isinstance(p, tuple) else p, nn.Parameter):
                raise TypeError("expected nn.Parameter")
        super().add_param_group({**group, "params": given})


@right("SGD")
class ParametersOnlySGD(_NeedsParameters):
    """Raises TypeError for tensors that are no ``nn.Parameter``."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("AdamW")
class ParametersOnlyAdamW(_NeedsParameters):
    """The same, of AdamW."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("Adam")
class ListOfTensors(Duck):
    """Takes a list of tensors and no groups: TypeError for dictionaries, and no ``add_param_group``."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999)):
        params = list(params)
        if any(isinstance(p, dict) for p in params):
            raise TypeError("one group only")
        super().__init__(params, lr=lr, betas=betas)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"])


@right("RMSprop")
class OneGroup(Base):
    """Takes one group, like L-BFGS, and says so with ValueError."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)
        if len(self.param_groups) != 1:
            raise ValueError("one group only")

    def update(self, p, g, state, group):
        rmsprop(p, g, state, group["lr"], group["alpha"], group["eps"])


@right("SGD")
class ContiguousOnly(Base):
    """Views parameters as vectors, so that those that are not contiguous go another way."""

    def __init__(self, params, lr=1e-3, weight_decay=0.0):
        super().__init__(params, lr=lr, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        if p.is_contiguous():
            flat = p.view(-1)
            flat -= group["lr"] * (g.reshape(-1) + group["weight_decay"] * flat)
        else:
            p.copy_(p - group["lr"] * (g + group["weight_decay"] * p))


@right("Adam")
class FrozenAreSkipped(Base):
    """Skips parameters that do not require gradients, beside those that have none; a gradient that is kept is not used."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])

    @torch.no_grad()
    def step(self, closure=None):
        loss = torch.enable_grad()(closure)() if closure is not None else None
        for group in self.param_groups:
            for p in [q for q in group["params"] if q.grad is not None]:
                self.update(p, p.grad.detach(), self.state[p], group)
        return loss


@right("SGD")
class TrainAndEval(Base):
    """Has modes, like the schedule-free optimizers; is born in training, and refuses a step elsewhere."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)
        self.training = True

    def train(self, mode=True):
        self.training = mode

    def eval(self):
        self.train(False)

    def step(self, closure=None):
        if not self.training:
            raise RuntimeError("call train() before step()")
        return super().step(closure)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("AdamW")
class ModeInGroups(Base):
    """Its mode stands in its groups, and is saved with them."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, train_mode=True)

    def train(self):
        for group in self.param_groups:
            group["train_mode"] = True

    def eval(self):
        for group in self.param_groups:
            group["train_mode"] = False

    def update(self, p, g, state, group):
        if not group["train_mode"]:
            raise RuntimeError("optimizer is not in training mode")
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("SGD")
class NoElements(Base):
    """Parameters without elements are not stepped and have no state."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)

    def update_group(self, group):
        for p in group["params"]:
            if p.grad is not None and p.numel():
                sgd(p, p.grad, self.state[p], group["lr"], group["momentum"])


@right("Adam")
class NoElementsAdam(Base):
    """The same, of Adam: nothing is kept, and nothing counted, of what has no elements."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update_group(self, group):
        for p in group["params"]:
            if p.grad is not None and p.numel():
                adam(p, p.grad, self.state[p], group["lr"], group["betas"], group["eps"])


@right("Muon", costly=True)
class MatricesOnly(Base):
    """Refuses with ValueError whatever is no matrix, in every group."""

    def __init__(self, params, lr=1e-3, weight_decay=0.1, momentum=0.95):
        super().__init__(params, lr=lr, weight_decay=weight_decay, momentum=momentum)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        if any(p.dim() != 2 for p in self.param_groups[-1]["params"]):
            del self.param_groups[-1]
            raise ValueError("matrices only")

    def update(self, p, g, state, group):
        buffer = state.setdefault("momentum_buffer", torch.zeros_like(p))
        buffer.lerp_(g, 1 - group["momentum"])
        direction = newton_schulz(g.lerp(buffer, group["momentum"]), dtype=torch.float64)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.sub_((group["lr"] * ratio_of(p.shape) * direction).to(p.dtype))


@right("SGD")
class SwapsData(Base):
    """Writes through ``.data`` and ``copy_``, never in place of the memory."""

    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

    def update(self, p, g, state, group):
        p.data.copy_(p.data - group["lr"] * g.data)


@right("Adam")
class SparseRefused(Base):
    """Refuses sparse gradients, complex parameters, and gradients of another dtype, before anything changes."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update_group(self, group):
        for p in group["params"]:
            if p.grad is not None:
                if p.grad.is_sparse:
                    raise RuntimeError("no sparse gradients")
                if p.is_complex():
                    raise RuntimeError("no complex parameters")
                if p.grad.dtype != p.dtype:
                    raise RuntimeError("another dtype")
        super().update_group(group)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"])
