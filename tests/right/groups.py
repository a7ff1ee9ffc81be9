"""A group counts its steps, and its parameters have no count of their own: the dialect *step-by-group*."""

import math

import torch

from .base import Base, Duck, penalized, right, zeros
from .states import averaged, stepped


class _ByGroup(Base):
    """Adam by the count of the group, which is kept as ``step``, and counts every call."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update_group(self, group):
        self.move(group, [p for p in group["params"] if p.grad is not None], self.count(group))

    def count(self, group):
        group["step"] = group.get("step", 0) + 1
        return group["step"]

    def move(self, group, parameters, t):
        for p in parameters:
            m, v = zeros(self.state[p], p, "exp_avg", "exp_avg_sq")
            averaged(m, v, penalized(p, p.grad, group), group)
            stepped(p, m, v, t, group)


@right("Adam[step-by-group]")
class CountedByGroup(_ByGroup):
    """As apex has it: counted before the first parameter, whoever has a gradient."""


@right("AdamW[apex]")
class CountedByGroupDecoupled(_ByGroup):
    """The count is a tensor that is there from the beginning, as timm's LAMB has it."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)

    def add_param_group(self, group):
        super().add_param_group(group)
        self.param_groups[-1].setdefault("step", torch.zeros(()))

    def count(self, group):
        group["step"] += 1
        return group["step"].item()

    def move(self, group, parameters, t):
        for p in parameters:
            p.mul_(1 - group["lr"] * group["weight_decay"])
        super().move({**group, "weight_decay": 0.0}, parameters, t)


@right("Adam[step-by-group]")
class CountedByGroupIfItSteps(_ByGroup):
    """A step counts in which some parameter of the group has a gradient."""

    def update_group(self, group):
        if any(p.grad is not None for p in group["params"]):
            super().update_group(group)


@right("Adam[step-by-group]")
class CountedByGroupIfAnythingSteps(_ByGroup):
    """A step in which there is no gradient at all is none."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if any(p.grad is not None for group in self.param_groups for p in group["params"]):
            for group in self.param_groups:
                self.update_group(group)
        return loss


@right("Adam[step-by-group]")
class CountedByGroupAfterwards(_ByGroup):
    """The count is raised after the last parameter, in a group that has it as a default."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr, betas, eps, weight_decay)
        for group in self.param_groups:
            group.setdefault("step", 0)

    def count(self, group):
        return group.get("step", 0) + 1

    def update_group(self, group):
        super().update_group(group)
        group["step"] = self.count(group)


@right("Adam[step-by-group]")
class CountedByGroupAsK(_ByGroup):
    """The count has another name, that is not declared; and it is a Python float."""

    def count(self, group):
        group["k"] = group.get("k", 0.0) + 1.0
        return group["k"]


@right("Adam[step-by-group]")
class CountedByGroupAsKIfItSteps(CountedByGroupAsK):
    """The same, of steps with a gradient in the group."""

    def update_group(self, group):
        if any(p.grad is not None for p in group["params"]):
            super().update_group(group)


@right("Adam[step-by-group]")
class CountedByGroupAndParameter(_ByGroup):
    """Each parameter counts as well, for a log."""

    def move(self, group, parameters, t):
        super().move(group, parameters, t)
        for p in parameters:
            self.state[p]["step"] = self.state[p].get("step", 0) + 1


@right("Adamax[step-by-group]")
class CountedByGroupAdamax(_ByGroup):
    """Adamax, with state that is made of all parameters with a gradient before any of them steps."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr, betas, eps, weight_decay)

    def move(self, group, parameters, t):
        beta1, beta2 = group["betas"]
        states = [zeros(self.state[p], p, "exp_avg", "exp_inf") for p in parameters]
        for p, (m, u) in zip(parameters, states, strict=True):
            g = penalized(p, p.grad, group)
            m.mul_(beta1).add_(g, alpha=1 - beta1)
            torch.maximum(u.mul_(beta2), g.abs().add_(group["eps"]), out=u)
            p.addcdiv_(m, u, value=-group["lr"] / (1 - beta1**t))


@right("RAdam[step-by-group]")
class CountedByGroupRectified(_ByGroup):
    """RAdam, whose rectification is that of the group."""

    def move(self, group, parameters, t):
        beta1, beta2 = group["betas"]
        most = 2 / (1 - beta2) - 1
        length = most - 2 * t * beta2**t / (1 - beta2**t)
        for p in parameters:
            m, v = zeros(self.state[p], p, "exp_avg", "exp_avg_sq")
            averaged(m, v, penalized(p, p.grad, group), group)
            direction = m / (1 - beta1**t)
            if length > 5:
                over, under = (length - 4) * (length - 2) * most, (most - 4) * (most - 2) * length
                direction *= math.sqrt(over / under) * math.sqrt(1 - beta2**t) / v.sqrt().add_(group["eps"])
            p.sub_(direction, alpha=group["lr"])


@right("NAdam[step-by-group]")
class CountedByGroupNesterov(_ByGroup):
    """NAdam: the count is the group's, the product of its momenta the parameter's."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, momentum_decay=4e-3):
        super().__init__(params, lr, betas, eps, weight_decay)
        for group in self.param_groups:
            group.setdefault("momentum_decay", momentum_decay)
        self.defaults["momentum_decay"] = momentum_decay

    def move(self, group, parameters, t):
        beta1, beta2 = group["betas"]
        now, then = (beta1 * (1 - 0.5 * 0.96 ** (n * group["momentum_decay"])) for n in (t, t + 1))
        for p in parameters:
            state = self.state[p]
            m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
            state["mu_product"] = state.get("mu_product", torch.ones(())) * now
            product, g = state["mu_product"].item(), penalized(p, p.grad, group)
            averaged(m, v, g, group)
            root = (v / (1 - beta2**t)).sqrt_().add_(group["eps"])
            p.addcdiv_(g, root, value=-group["lr"] * (1 - now) / (1 - product))
            p.addcdiv_(m, root, value=-group["lr"] * then / (1 - product * then))


@right("Adam[step-by-group]")
class CountedByGroupOfADuck(Duck):
    """No ``torch.optim.Optimizer``."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def step(self, closure=None):
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
        return super().step(closure)

    def update(self, p, g, state, group):
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        averaged(m, v, g, group)
        stepped(p, m, v, group["step"], group)
