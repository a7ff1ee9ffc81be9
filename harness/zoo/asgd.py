"""ASGD."""

import torch

from stepcheck.harness.zoo import base


class RightASGD(base.Zoo):
    def __init__(self, params, *, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6, weight_decay=0.0, maximize=False):
        super().__init__(params, lr=lr, lambd=lambd, alpha=alpha, t0=t0, weight_decay=weight_decay, maximize=maximize)

    def buffers(self, group):
        return ("ax",)

    def start(self, p, group):
        return super().start(p, group) | {"eta": self.stored(group["lr"]), "mu": 1.0}

    def update(self, p, g, state, group):
        before, t = p.clone(), state["step"].item()
        p = self.descend(p, g, state["eta"], group)
        self.average(before, p, state)
        self.schedule(t, state, group)
        return p

    def descend(self, p, g, eta, group):
        if group["lambd"] != 0:
            g = g + group["lambd"] * p
        return p - eta * g

    def average(self, before, p, state):
        state["ax"] = state["ax"] + state["mu"] * (p - state["ax"])

    def schedule(self, t, state, group):
        state["eta"] = self.stored(self.eta(t, group["lr"], group["lambd"], group["alpha"]))
        state["mu"] = self.stored(self.mu(t, group["t0"]))

    def stored(self, x):
        # In float32, but no tensor: load_state_dict would cast it to the dtype of the parameter.
        return torch.tensor(x, dtype=torch.float32).item()

    def eta(self, t, lr, lambd, alpha):
        # As a tensor: a power that overflows is infinite, where Python raises.
        return lr / torch.tensor(1 + lambd * lr * t, dtype=torch.float64).pow(alpha).item()

    def mu(self, t, t0):
        return 1 / max(t - t0, 1.0)


class KeepsEta(RightASGD):
    """Keeps the first eta for ever."""

    def schedule(self, t, state, group):
        state["mu"] = self.stored(self.mu(t, group["t0"]))


class SchedulesFirst(RightASGD):
    """Updates eta and mu before the step that they are meant to follow."""

    def update(self, p, g, state, group):
        self.schedule(state["step"].item(), state, group)
        return super().update(p, g, state, group)


class AveragesFromStart(RightASGD):
    """Averages over all steps, whatever t0 says."""

    def mu(self, t, t0):
        return 1 / t


class AveragesOneStepEarly(RightASGD):
    """Counts the averaged steps from t0 - 1."""

    def mu(self, t, t0):
        return super().mu(t + 1, t0)


class AveragesOldValue(RightASGD):
    """Averages the parameter as it was before its update."""

    def average(self, before, p, state):
        super().average(before, before, state)


class ForgetsAverage(RightASGD):
    """Copies the parameter into ax, whatever mu says."""

    def average(self, before, p, state):
        state["ax"] = p


class ReturnsAverage(RightASGD):
    """Puts the average where the parameter belongs."""

    def update(self, p, g, state, group):
        super().update(p, g, state, group)
        return state["ax"]


class IgnoresAlpha(RightASGD):
    """Divides by the growing term itself, not by a power of it."""

    def eta(self, t, lr, lambd, alpha):
        return super().eta(t, lr, lambd, 1.0)


class IgnoresLambd(RightASGD):
    """Schedules by lambd and does not decay by it."""

    def descend(self, p, g, eta, group):
        return p - eta * g


class DecaysByLr(RightASGD):
    """Decays by lr times lambd, where eta belongs."""

    def descend(self, p, g, eta, group):
        return p - eta * g - group["lr"] * group["lambd"] * p


class DecoupledASGD(base.DecoupledDecay, RightASGD):
    """Shrinks the parameter by lr times weight_decay, where the penalty belongs in the gradient."""


class ForgetsStateASGD(base.ForgetsState, RightASGD):
    """Loads the options of a state_dict and not the state."""
