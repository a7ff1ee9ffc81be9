"""What the zoo's optimizers share, and the faults that any of them can have, as classes to mix in."""

from collections import defaultdict

import torch


class Zoo(torch.optim.Optimizer):
    """Walks over the parameters that have a gradient. Each hook is a place for one fault."""

    def __init__(self, params, **defaults):
        super().__init__(params, defaults)

    def step(self, closure=None):
        loss = self.evaluate(closure)
        with torch.no_grad():
            self.walk()
        return loss

    def evaluate(self, closure):
        """The loss that the closure returns, which may leave gradients."""
        if closure is None:
            return None
        with torch.enable_grad():
            return closure()

    # Faults override this and not step(): torch runs the hooks around step(), and around each that is overridden once more.
    def walk(self):
        """One step of each parameter that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.visit(p, self.options(group))

    def visit(self, p, group):
        state = self.state[p]
        if not state:
            state.update(self.start(p, group))
        g = self.gradient(p, group)
        if "step" in state:
            state["step"] = self.count(p, state)
        self.write(p, self.update(p, g, state, group))

    def options(self, group):
        """The options that hold for a group."""
        return group

    def start(self, p, group):
        """The state of a parameter before its first update: ``step`` and whatever buffers of zeros it needs."""
        return {"step": torch.tensor(0.0)} | {name: torch.zeros_like(p) for name in self.buffers(group)}

    def buffers(self, group):
        raise NotImplementedError

    def gradient(self, p, group):
        """The gradient to descend, with the L2 penalty's."""
        g = -p.grad if group["maximize"] else p.grad
        # Not where it is zero: 0 times an infinite parameter is NaN.
        return g + group["weight_decay"] * p if group["weight_decay"] != 0 else g

    def count(self, p, state):
        return state["step"] + 1

    def update(self, p, g, state, group):
        """The parameter's new value; the state is updated on the way."""
        raise NotImplementedError

    def write(self, p, value):
        p.copy_(value)


# Options


class FirstLrForAll:
    """Reads lr from group 0 for all groups."""

    def options(self, group):
        return {**group, "lr": self.param_groups[0]["lr"]}


class FirstEpsForAll:
    """Reads eps from group 0 for all groups."""

    def options(self, group):
        return {**group, "eps": self.param_groups[0]["eps"]}


class CachedLr:
    """Keeps the lr of the first step and ignores a schedule."""

    def options(self, group):
        return {**group, "lr": group.setdefault("first_lr", group["lr"])}


class RoundedLr:
    """Rounds lr to three decimals."""

    def options(self, group):
        return {**group, "lr": round(group["lr"], 3)}


class HalfEps:
    """Rounds eps to half precision, in which 1e-8 is 0."""

    def options(self, group):
        return {**group, "eps": torch.tensor(group["eps"], dtype=torch.float16).item()}


class SwappedBetas:
    """Takes beta1 for beta2 and beta2 for beta1."""

    def options(self, group):
        return {**group, "betas": group["betas"][::-1]}


class SingleBetas:
    """Rounds betas to single precision, which float64 parameters notice."""

    def options(self, group):
        return {**group, "betas": tuple(torch.tensor(b, dtype=torch.float32).item() for b in group["betas"])}


# Gradients


class MaximizesPenalty:
    """Under maximize, turns the sign of the weight decay along with the gradient's."""

    def gradient(self, p, group):
        g = p.grad + group["weight_decay"] * p if group["weight_decay"] != 0 else p.grad
        return -g if group["maximize"] else g


class IgnoresMaximize:
    """Minimizes, whatever maximize says."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "maximize": False})


class DecoupledDecay:
    """Shrinks the parameter by lr times weight_decay, where the penalty belongs in the gradient."""

    def gradient(self, p, group):
        p.mul_(1 - group["lr"] * group["weight_decay"])
        return super().gradient(p, {**group, "weight_decay": 0})


class DecaysIntoGradient:
    """Adds the weight decay to p.grad in place."""

    def gradient(self, p, group):
        if group["weight_decay"] != 0:
            p.grad.add_(p, alpha=-group["weight_decay"] if group["maximize"] else group["weight_decay"])
        return super().gradient(p, {**group, "weight_decay": 0})


class ConsumesGradient:
    """Takes the gradient away once it is used."""

    def visit(self, p, group):
        super().visit(p, group)
        p.grad = None


class SinglePrecision:
    """Rounds the gradient to float32, whatever the parameter's dtype."""

    def update(self, p, g, state, group):
        return super().update(p, g.float().to(g), state, group)


class TakesAbsentForZero:
    """Steps parameters that have no gradient as if it were zero."""

    def walk(self):
        absent = [p for group in self.param_groups for p in group["params"] if p.grad is None]
        for p in absent:
            p.grad = torch.zeros_like(p)
        super().walk()
        for p in absent:
            p.grad = None


# Steps and state


class CountsForAll:
    """One step count for all parameters: a gradient that comes late starts with everybody else's count."""

    def count(self, p, state):
        return max(state["step"] + 1, *(s["step"] for s in self.state.values()))


class CountsAbsent:
    """Counts a step for parameters that have no gradient."""

    def walk(self):
        super().walk()
        for p, state in self.state.items():
            if p.grad is None and "step" in state:
                state["step"] += 1


class CountsAside:
    """Bias correction by a count that is no state, so it begins anew after load_state_dict."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.counts = defaultdict(int)

    def update(self, p, g, state, group):
        self.counts[p] += 1
        return super().update(p, g, state, {**group, "t": self.counts[p]})


class ForgetsState:
    """Loads the options of a state_dict and not the state."""

    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": {}})


class ForgetsOptions:
    """Loads the state of a state_dict and not the options."""

    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "param_groups": self.state_dict()["param_groups"]})


# Memory


class DropsTail:
    """Leaves out the elements after the last whole vector of 8."""

    def write(self, p, value):
        whole = p.numel() // 8 * 8 or p.numel()
        updated = torch.arange(p.numel()).reshape(p.shape) < whole
        p.copy_(torch.where(updated, value, p))


class WritesToCopy:
    """Writes to a row-major view, which is a copy where the parameter is strided."""

    def write(self, p, value):
        p.contiguous().view(-1).copy_(value.reshape(-1))


class IgnoresStrides:
    """Writes row-major from the first element on, whatever lies there."""

    def write(self, p, value):
        p.as_strided((p.numel(),), (1,)).copy_(value.reshape(-1))


class WritesWholeVectors:
    """Stores whole vectors of 8, the last one past the end of the parameter."""

    def write(self, p, value):
        p.copy_(value)
        if p.is_contiguous():
            p.as_strided((-p.numel() % 8,), (1,), p.storage_offset() + p.numel()).zero_()


class NeedsDimensions:
    """Raises on a 0-d parameter, which has nothing to slice."""

    def write(self, p, value):
        p[:] = value


class NeedsElements:
    """Raises on an empty parameter, whose gradient has no largest element."""

    def gradient(self, p, group):
        self.largest = p.grad.abs().max()
        return super().gradient(p, group)
