"""Classes that call things otherwise than torch does; as text too, for modules of a project."""

SOURCE = '''
import torch


class OwnNames(torch.optim.Optimizer):
    """Adam, eps inside the root, with names of its own for options and buffers."""

    def __init__(self, params, learning_rate=1e-3, beta1=0.9, beta2=0.999, epsilon=1e-8, decay=0.0, decoupled=False):
        defaults = {"learning_rate": learning_rate, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "decay": decay}
        super().__init__(params, {**defaults, "decoupled": decoupled})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, self.state[p], group)
        return loss

    def update(self, p, grad, state, group):
        if not state:
            state["t"], state["m"], state["v"] = 0, torch.zeros_like(p), torch.zeros_like(p)
        state["t"] += 1
        lr, beta1, beta2 = group["learning_rate"], group["beta1"], group["beta2"]
        if group["decoupled"]:
            p.mul_(1 - lr * group["decay"])
        elif group["decay"]:
            grad = grad.add(p, alpha=group["decay"])
        state["m"].mul_(beta1).add_(grad, alpha=1 - beta1)
        state["v"].mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        root = (state["v"] / (1 - beta2 ** state["t"]) + group["epsilon"]).sqrt()
        p.addcdiv_(state["m"], root, value=-lr / (1 - beta1 ** state["t"]))


class WrongBeta(OwnNames):
    """Takes beta1 for beta2 from the second step on."""

    def update(self, p, grad, state, group):
        swapped = {**group, "beta2": group["beta1"]} if state and state["t"] >= 1 else group
        super().update(p, grad, state, swapped)


class KeepsRate(OwnNames):
    """Forgets to look at a learning rate that is set later."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.rates = [group["learning_rate"] for group in self.param_groups]

    def add_param_group(self, group):
        super().add_param_group(group)
        if hasattr(self, "rates"):
            self.rates.append(self.param_groups[-1]["learning_rate"])

    def step(self, closure=None):
        now = [group["learning_rate"] for group in self.param_groups]
        for group, rate in zip(self.param_groups, self.rates):
            group["learning_rate"] = rate
        loss = super().step(closure)
        for group, rate in zip(self.param_groups, now):
            group["learning_rate"] = rate
        return loss


class FirstRate(OwnNames):
    """Steps each group with the learning rate of the first."""

    def update(self, p, grad, state, group):
        super().update(p, grad, state, {**group, "learning_rate": self.param_groups[0]["learning_rate"]})


class ForgetsCount(OwnNames):
    """Counts anew after a state_dict was loaded."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():
            state["t"] = 0


class InOrder(OwnNames):
    """Clips the first parameter of a group alone."""

    def update(self, p, grad, state, group):
        first = any(p is q for g in self.param_groups for q in g["params"][:1])
        super().update(p, grad.clamp(-0.1, 0.1) if first else grad, state, group)


class Clips(OwnNames):
    """Divides gradients by their norm over all groups, as it is meant to."""

    def step(self, closure=None):
        kept = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        self.norm = torch.stack([g.norm().double() for g in kept]).norm().item() if kept else 1.0
        return super().step(closure)

    def update(self, p, grad, state, group):
        super().update(p, grad / (1.0 + self.norm), state, group)


class Noisy(OwnNames):
    """Adds noise, as it is meant to."""

    def update(self, p, grad, state, group):
        super().update(p, grad + 0.01 * torch.randn_like(grad), state, group)


class MatricesOnly(OwnNames):
    """Takes matrices alone, and says so."""

    def update(self, p, grad, state, group):
        if p.ndim != 2 or not p.numel():
            raise ValueError("a parameter must be a matrix")
        super().update(p, grad, state, group)
'''

#: What OwnNames calls what Adam has.
NAMES = {
    "lr": "learning_rate", "betas": "beta1, beta2", "eps": "epsilon", "weight_decay": "decay", "decoupled_weight_decay": "decoupled",
    "step": "t", "exp_avg": "m", "exp_avg_sq": "v",
}  # fmt: skip
#: The same as options of ``stepcheck check``.
RENAMED = [word for ours, theirs in NAMES.items() for word in ("--rename", f"{ours}={theirs.replace(' ', '')}")]
exec(compile(SOURCE, __file__, "exec"))
