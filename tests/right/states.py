"""Where their state is, under which names, and in which form it is saved."""

import copy
import math
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch

from .base import Base, Duck, adam, copied, counted, newton_schulz, penalized, ratio_of, right, sgd, zeros


class _AdamOptions(Base):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)


def stepped(p, m, v, t, group):
    """The step of Adam, by its moments after ``t`` steps."""
    beta1, beta2 = group["betas"]
    p.addcdiv_(m, (v.sqrt() / math.sqrt(1 - beta2**t)).add_(group["eps"]), value=-group["lr"] / (1 - beta1**t))


def averaged(m, v, g, group):
    beta1, beta2 = group["betas"]
    m.mul_(beta1).add_(g, alpha=1 - beta1)
    v.mul_(beta2).addcmul_(g, g, value=1 - beta2)


# counters


class _Counts(_AdamOptions):
    """Adam whose steps are counted in a way of its own, beside torch's moments."""

    def update(self, p, g, state, group):
        t = self.count(state)
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        averaged(m, v, penalized(p, g, group), group)
        stepped(p, m, v, t, group)


@right("Adam")
class CountedAsT(_Counts):
    """The counter is ``t``, a Python number."""

    def count(self, state):
        state["t"] = state.get("t", 0) + 1
        return state["t"]


@right("Adam")
class CountedAsCount(_Counts):
    """The counter is ``count``, an int64 tensor without dimensions."""

    def count(self, state):
        if "count" not in state:
            state["count"] = torch.zeros((), dtype=torch.int64)
        state["count"] += 1
        return int(state["count"])


@right("Adam")
class CountedByTensor(_Counts):
    """``step`` is an int64 tensor."""

    def count(self, state):
        if "step" not in state:
            state["step"] = torch.tensor(0, dtype=torch.int64)
        state["step"].add_(1)
        return state["step"].item()


@right("Adam")
class CountedByFloat(_Counts):
    """``step`` is a float32 tensor of one element with a dimension."""

    def count(self, state):
        if "step" not in state:
            state["step"] = torch.zeros(1)
        state["step"] += 1
        return state["step"].item()


@right("Adam")
class CountedByPythonFloat(_Counts):
    """``iteration`` is a Python float."""

    def count(self, state):
        state["iteration"] = state.get("iteration", 0.0) + 1.0
        return state["iteration"]


@right("Adam")
class CountedDown(_Counts):
    """``n`` counts from one, what is to come."""

    def count(self, state):
        n = int(state.get("n", 1))
        state["n"] = n + 1
        return n


@right("Adam")
class CountedBothWays(_Counts):
    """``step`` as torch has it, and a counter beside it for its own use."""

    def count(self, state):
        if "step" not in state:
            state["step"] = torch.tensor(0.0)
            state["calls"] = 0
        state["step"] += 1
        state["calls"] += 1
        return state["step"].item()


@right("Adam")
class CountedInGroup(_AdamOptions):
    """Counters of a group stand in a list in the group, one for each parameter."""

    def update_group(self, group):
        counts = group.setdefault("counts", [0] * len(group["params"]))
        for i, p in enumerate(group["params"]):
            if p.grad is not None:
                counts[i] += 1
                m, v = zeros(self.state[p], p, "exp_avg", "exp_avg_sq")
                averaged(m, v, penalized(p, p.grad, group), group)
                stepped(p, m, v, counts[i], group)


@right("SGD")
class StepsInGroup(Base):
    """A group counts its steps, for a log; the step does not depend on it."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum, k=0)

    def update_group(self, group):
        group["k"] += 1
        super().update_group(group)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


class _SavesMore(Base):
    """Has entries of its own at the top of its dictionary."""

    def state_dict(self):
        return {**super().state_dict(), "total_steps": self.total_steps}

    def load_state_dict(self, state_dict):
        state_dict = dict(state_dict)
        self.total_steps = state_dict.pop("total_steps", 0)
        super().load_state_dict(state_dict)

    def step(self, closure=None):
        loss = super().step(closure)
        self.total_steps += 1
        return loss


@right("SGD")
class GlobalCounter(_SavesMore):
    """Counts all of its steps, and saves the count at the top of its dictionary."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        self.total_steps = 0
        super().__init__(params, lr=lr, momentum=momentum)

    def update(self, p, g, state, group):
        sgd(p, g, state, group["lr"], group["momentum"])


@right("AdamW")
class GlobalCounterAdamW(_SavesMore):
    """The same, of AdamW, whose corrections are by each parameter's own count."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        self.total_steps = 0
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"], decoupled=True)


@right("Adam")
class MoreAtTheTop(_AdamOptions):
    """Its dictionary has a version and a note, which loading ignores."""

    def state_dict(self):
        return {**super().state_dict(), "version": 2, "meta": {"library": "ours"}}

    def update(self, p, g, state, group):
        adam(p, g, state, group["lr"], group["betas"], group["eps"], group["weight_decay"])


@right("Adam")
class RunningPowers(_AdamOptions):
    """Running products ``beta1_power`` and ``beta2_power`` instead of a count: powers, since betas are no option."""

    def __init__(self, params, lr=1e-3, eps=1e-8):
        super().__init__(params, lr=lr, eps=eps)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        m, v = zeros(state, p, "exp_avg", "exp_avg_sq")
        state["beta1_power"] = one = state.get("beta1_power", 1.0) * beta1
        state["beta2_power"] = two = state.get("beta2_power", 1.0) * beta2
        averaged(m, v, g, group)
        p.addcdiv_(m, (v.sqrt() / math.sqrt(1 - two)).add_(group["eps"]), value=-group["lr"] / (1 - one))


@right("AdamW")
class RunningPowersAdamW(Base):
    """The same with a pair of powers, of betas that are constants."""

    def __init__(self, params, lr=1e-3, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        beta1, beta2 = group["betas"]
        m, v = zeros(state, p, "m", "v")
        one, two = state.get("powers", (1.0, 1.0))
        state["powers"] = one, two = one * beta1, two * beta2
        averaged(m, v, g, group)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        p.addcdiv_(m, (v.sqrt() / math.sqrt(1 - two)).add_(group["eps"]), value=-group["lr"] / (1 - one))


# names and forms of buffers


@right("Adam")
class NamedMV(_AdamOptions):
    """``m``, ``v`` and ``t``."""

    def update(self, p, g, state, group):
        t = counted(state, "t")
        m, v = zeros(state, p, "m", "v")
        averaged(m, v, penalized(p, g, group), group)
        stepped(p, m, v, t, group)


@right("AdamW")
class NamedMuNu(_AdamOptions):
    """``mu``, ``nu`` and ``count``, as optax has them."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr, betas, eps, weight_decay)

    def update(self, p, g, state, group):
        t = counted(state, "count")
        mu, nu = zeros(state, p, "mu", "nu")
        averaged(mu, nu, g, group)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        stepped(p, mu, nu, t, group)


@right("SGD")
class NamedMomentum(Base):
    """``momentum`` is the buffer's name as well as the option's."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, nesterov=False):
        if nesterov and (momentum <= 0 or dampening != 0):
            raise ValueError("Nesterov momentum requires a momentum and zero dampening")
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening, nesterov=nesterov)

    def update(self, p, g, state, group):
        mu = group["momentum"]
        if mu:
            if "momentum" in state:
                state["momentum"].mul_(mu).add_(g, alpha=1 - group["dampening"])
            else:
                state["momentum"] = g.clone()
            g = g + mu * state["momentum"] if group["nesterov"] else state["momentum"]
        p.sub_(g, alpha=group["lr"])


@right("RMSprop")
class NamedMeanSquare(Base):
    """``ms``, ``mg`` and ``mom``, as TensorFlow has them."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0, centered=False):
        super().__init__(
            params, lr=lr, alpha=alpha, eps=eps, weight_decay=weight_decay, momentum=momentum, centered=centered
        )

    def update(self, p, g, state, group):
        g, a = penalized(p, g, group), group["alpha"]
        ms, mg, mom = zeros(state, p, "ms", "mg", "mom")
        ms.mul_(a).addcmul_(g, g, value=1 - a)
        spread = ms
        if group["centered"]:
            mg.mul_(a).add_(g, alpha=1 - a)
            spread = ms - mg**2
        step = g / (spread.sqrt() + group["eps"])
        if group["momentum"]:
            step = mom.mul_(group["momentum"]).add_(step)
        p.sub_(step, alpha=group["lr"])


@right("Adagrad")
class NamedAccumulator(Base):
    """``accumulator`` and ``n``, begun with the option's value."""

    def __init__(self, params, lr=1e-2, lr_decay=0.0, initial_accumulator_value=0.0, eps=1e-10):
        super().__init__(params, lr=lr, lr_decay=lr_decay, initial_accumulator_value=initial_accumulator_value, eps=eps)
        for group in self.param_groups:
            self.begin(group)

    def begin(self, group):
        for p in group["params"]:
            self.state[p] = {"n": 0, "accumulator": torch.full_like(p, group["initial_accumulator_value"]).detach()}

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        self.begin(self.param_groups[-1])

    def update(self, p, g, state, group):
        rate = group["lr"] / (1 + state["n"] * group["lr_decay"])
        state["n"] += 1
        state["accumulator"].addcmul_(g, g)
        p.addcdiv_(g, state["accumulator"].sqrt().add_(group["eps"]), value=-rate)


@right("Adam")
class TupleOfMoments(_AdamOptions):
    """Both moments in a tuple, replaced in each step."""

    def update(self, p, g, state, group):
        t, g, (beta1, beta2) = counted(state), penalized(p, g, group), group["betas"]
        m, v = state.get("moments", (torch.zeros_like(p), torch.zeros_like(p)))
        m, v = m * beta1 + g * (1 - beta1), v * beta2 + g * g * (1 - beta2)
        state["moments"] = m, v
        stepped(p, m, v, t, group)


@right("Adam")
class StackOfMoments(_AdamOptions):
    """Both moments in one tensor with a dimension more."""

    def update(self, p, g, state, group):
        t = counted(state)
        if "moments" not in state:
            state["moments"] = torch.zeros((2, *p.shape), dtype=p.dtype)
        averaged(state["moments"][0], state["moments"][1], penalized(p, g, group), group)
        stepped(p, state["moments"][0], state["moments"][1], t, group)


@right("Adam")
class NestedState(_AdamOptions):
    """Moments in a dictionary in the state."""

    def update(self, p, g, state, group):
        t = counted(state)
        inner = state.setdefault("buffers", {})
        m, v = zeros(inner, p, "first", "second")
        averaged(m, v, penalized(p, g, group), group)
        stepped(p, m, v, t, group)


@right("Adam")
class BegunAtConstruction(_AdamOptions):
    """State is made when a group is added, with torch's names."""

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            self.begin(p)

    def begin(self, p):
        zero = torch.zeros_like(p).detach()
        self.state[p].update(step=torch.tensor(0.0), exp_avg=zero, exp_avg_sq=zero.clone())

    def update(self, p, g, state, group):
        if not state:
            self.begin(p)
        state["step"] += 1
        averaged(state["exp_avg"], state["exp_avg_sq"], penalized(p, g, group), group)
        stepped(p, state["exp_avg"], state["exp_avg_sq"], state["step"].item(), group)


@right("SGD")
class BuffersAtConstruction(Base):
    """Buffers of zeros are made at once, with a flag for the first step, in which the gradient is copied."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0):
        super().__init__(params, lr=lr, momentum=momentum, dampening=dampening)

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        for p in self.param_groups[-1]["params"]:
            self.state[p].update(velocity=torch.zeros_like(p).detach(), begun=False)

    def update(self, p, g, state, group):
        mu = group["momentum"]
        if not mu:
            p.sub_(g, alpha=group["lr"])
            return
        if state.get("begun"):
            state["velocity"].mul_(mu).add_(g, alpha=1 - group["dampening"])
        else:
            state.update(velocity=g.clone(), begun=True)
        p.sub_(state["velocity"], alpha=group["lr"])


@dataclass
class Slot:
    """What a parameter has beside itself."""

    step: int
    m: torch.Tensor
    v: torch.Tensor


class OwnStore(Duck):
    """State by index, and a format of its own to save it."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.state = {}

    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            i = 0
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        self.update(i, p, p.grad, group)
                    i += 1
        return loss


@right("Adam")
class StateByIndex(OwnStore):
    """No base class; state is keyed by the number of a parameter, which it keeps."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, i, p, g, group):
        adam(p, g, self.state.setdefault(i, {}), group["lr"], group["betas"], group["eps"])

    def state_dict(self):
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self.param_groups]
        return {"state": {i: dict(s) for i, s in self.state.items()}, "param_groups": groups}

    def load_state_dict(self, saved):
        self.state = {i: {k: copied(v) for k, v in s.items()} for i, s in saved["state"].items()}
        for group, other in zip(self.param_groups, saved["param_groups"], strict=True):
            group.update(other)


@right("AdamW")
class StateInSlots(OwnStore):
    """No base class; state in objects of a class, saved as lists under names of its own."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def update(self, i, p, g, group):
        slot = self.state.setdefault(i, Slot(0, torch.zeros_like(p), torch.zeros_like(p)))
        slot.step += 1
        averaged(slot.m, slot.v, g, group)
        p.mul_(1 - group["lr"] * group["weight_decay"])
        stepped(p, slot.m, slot.v, slot.step, group)

    def state_dict(self):
        slots = {i: (s.step, s.m, s.v) for i, s in self.state.items()}
        return {
            "format": 1,
            "slots": slots,
            "options": [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups],
        }

    def load_state_dict(self, saved):
        self.state = {i: Slot(t, m.clone(), v.clone()) for i, (t, m, v) in saved["slots"].items()}
        for group, options in zip(self.param_groups, saved["options"], strict=True):
            group.update(options)


@right("SGD")
class StateOnAttributes(Duck):
    """No base class; buffers in a list on the object, ``None`` where there is none yet."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        self.buffers = []
        super().__init__(params, lr=lr, momentum=momentum)

    def add_param_group(self, group):
        super().add_param_group(group)
        self.buffers += [None] * len(self.param_groups[-1]["params"])

    def step(self, closure=None):
        loss = torch.enable_grad()(closure)() if closure is not None else None
        with torch.no_grad():
            every = [(p, group) for group in self.param_groups for p in group["params"]]
            for i, (p, group) in enumerate(every):
                if p.grad is not None:
                    state = {} if self.buffers[i] is None else {"momentum_buffer": self.buffers[i]}
                    sgd(p, p.grad, state, group["lr"], group["momentum"])
                    self.buffers[i] = state.get("momentum_buffer")
        return loss

    def state_dict(self):
        return {**super().state_dict(), "buffers": list(self.buffers)}

    def load_state_dict(self, saved):
        super().load_state_dict({"state": {}, "param_groups": saved["param_groups"]})
        self.buffers = [copied(b) for b in saved["buffers"]]


@right("RMSprop")
class OwnFormat(Base):
    """A torch optimizer that saves and loads in a format of its own: tensors by number and name, in one flat dictionary."""

    def __init__(self, params, lr=1e-2, alpha=0.99, eps=1e-8):
        super().__init__(params, lr=lr, alpha=alpha, eps=eps)

    def update(self, p, g, state, group):
        (v,) = zeros(state, p, "square_avg")
        v.mul_(group["alpha"]).addcmul_(g, g, value=1 - group["alpha"])
        p.addcdiv_(g, v.sqrt().add_(group["eps"]), value=-group["lr"])

    def state_dict(self):
        params = [p for group in self.param_groups for p in group["params"]]
        tensors = {f"{i}.{k}": v for i, p in enumerate(params) for k, v in self.state.get(p, {}).items()}
        return {
            "tensors": tensors,
            "options": [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups],
        }

    def load_state_dict(self, state_dict):
        params = [p for group in self.param_groups for p in group["params"]]
        self.state = defaultdict(dict)
        for name, value in state_dict["tensors"].items():
            i, k = name.split(".")
            self.state[params[int(i)]][k] = value.clone()
        for group, options in zip(self.param_groups, state_dict["options"], strict=True):
            group.update(copy.deepcopy(options))


@right("Adam")
class KeptLean(_AdamOptions):
    """Nothing is kept of moments that are zero: they are made anew."""

    def update(self, p, g, state, group):
        t = counted(state)
        m, v = (state.pop(k, None) for k in ("exp_avg", "exp_avg_sq"))
        m, v = (torch.zeros_like(p) if x is None else x for x in (m, v))
        averaged(m, v, penalized(p, g, group), group)
        stepped(p, m, v, t, group)
        if m.any() or v.any():
            state.update(exp_avg=m, exp_avg_sq=v)


@right("Adamax")
class NamedNorm(Base):
    """``m``, ``u`` and ``t``."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state, "t")
        m, u = zeros(state, p, "m", "u")
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        u.copy_(torch.max(u.mul(beta2), g.abs().add(group["eps"])))
        p.addcdiv_(m, u, value=-group["lr"] / (1 - beta1**t))


@right("Adadelta")
class NamedAccumulators(Base):
    """``acc_grad`` and ``acc_update``."""

    def __init__(self, params, lr=1.0, rho=0.9, eps=1e-6, weight_decay=0.0):
        super().__init__(params, lr=lr, rho=rho, eps=eps, weight_decay=weight_decay)

    def update(self, p, g, state, group):
        g, rho, eps = penalized(p, g, group), group["rho"], group["eps"]
        v, d = zeros(state, p, "acc_grad", "acc_update")
        v.mul_(rho).addcmul_(g, g, value=1 - rho)
        delta = d.add(eps).sqrt_().div_(v.add(eps).sqrt_()).mul_(g)
        d.mul_(rho).addcmul_(delta, delta, value=1 - rho)
        p.sub_(delta, alpha=group["lr"])


@right("RAdam")
class NamedRectified(Base):
    """``m``, ``v``, ``t`` and the length of the average, which is kept for a log."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state, "t")
        m, v = zeros(state, p, "m", "v")
        averaged(m, v, g, group)
        most = 2 / (1 - beta2) - 1
        state["rho"] = rho = most - 2 * t * beta2**t / (1 - beta2**t)
        m_hat = m / (1 - beta1**t)
        if rho <= 5:
            p.sub_(m_hat, alpha=group["lr"])
            return
        r = ((rho - 4) * (rho - 2) * most / ((most - 4) * (most - 2) * rho)) ** 0.5
        p.sub_(group["lr"] * r * m_hat * ((1 - beta2**t) ** 0.5 / (v.sqrt() + group["eps"])))


@right("NAdam")
class NamedNesterov(Base):
    """``m``, ``v``, ``t`` and ``schedule``, the product of momenta."""

    def __init__(self, params, lr=2e-3, betas=(0.9, 0.999), eps=1e-8, momentum_decay=4e-3):
        super().__init__(params, lr=lr, betas=betas, eps=eps, momentum_decay=momentum_decay)

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state, "t")
        m, v = zeros(state, p, "m", "v")
        averaged(m, v, g, group)
        now = beta1 * (1 - 0.5 * 0.96 ** (t * group["momentum_decay"]))
        then = beta1 * (1 - 0.5 * 0.96 ** ((t + 1) * group["momentum_decay"]))
        state["schedule"] = product = state.get("schedule", 1.0) * now
        below = v.div(1 - beta2**t).sqrt().add(group["eps"])
        p.addcdiv_(g, below, value=-group["lr"] * (1 - now) / (1 - product))
        p.addcdiv_(m, below, value=-group["lr"] * then / (1 - product * then))


@right("ASGD")
class NamedAverage(Base):
    """``average`` and ``t``; eta and mu are made anew from the count, of the rate that was used in the step before."""

    def __init__(self, params, lr=1e-2, lambd=1e-4, alpha=0.75, t0=1e6):
        super().__init__(params, lr=lr, lambd=lambd, alpha=alpha, t0=t0)

    def update(self, p, g, state, group):
        if not state:
            state.update(average=torch.zeros_like(p), t=0, next_eta=group["lr"], next_mu=1.0)
        eta, mu, lambd = state["next_eta"], state["next_mu"], group["lambd"]
        p.mul_(1 - lambd * eta).sub_(g, alpha=eta)
        if mu == 1:
            state["average"].copy_(p)
        else:
            state["average"].add_(p - state["average"], alpha=mu)
        t = counted(state, "t")
        with np.errstate(over="ignore"):
            state["next_eta"] = float(group["lr"] / np.float64(1 + lambd * group["lr"] * t) ** group["alpha"])
        state["next_mu"] = 1 / max(1, t - group["t0"])


@right("Rprop")
class NamedLast(Base):
    """``last`` and ``delta``; signs are kept as they are."""

    def __init__(self, params, lr=1e-2, etas=(0.5, 1.2), step_sizes=(1e-6, 50), *, maximize=False):
        super().__init__(params, lr=lr, etas=etas, step_sizes=step_sizes, maximize=maximize)

    def update(self, p, g, state, group):
        (less, more), (low, high) = group["etas"], group["step_sizes"]
        if not state:
            state.update(last=torch.zeros_like(p), delta=torch.full_like(p, group["lr"]))
        turn = (g * state["last"]).sign()
        factor = torch.ones_like(turn)
        factor[turn > 0] = more
        factor[turn < 0] = less
        state["delta"].mul_(factor).clamp_(low, high)
        g = g.masked_fill(turn < 0, 0)
        p.sub_(g.sign() * state["delta"])
        state["last"].copy_(g)


@right("SparseAdam")
class NamedRows(Base):
    """``m``, ``v`` and ``t`` of dense rows, touched by mask."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8):
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def update(self, p, g, state, group):
        (beta1, beta2), t = group["betas"], counted(state, "t")
        m, v = zeros(state, p, "m", "v")
        g = g.coalesce()
        if not g.values().numel():
            return
        at = tuple(g.indices())
        touched = torch.zeros_like(p, dtype=torch.bool)
        touched[at] = True
        dense = g.to_dense()
        m.copy_(torch.where(touched, beta1 * m + (1 - beta1) * dense, m))
        v.copy_(torch.where(touched, beta2 * v + (1 - beta2) * dense * dense, v))
        rate = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        p.copy_(torch.where(touched, p - rate * m / (v.sqrt() + group["eps"]), p))


@right("Muon", costly=True)
class NamedMomentumMuon(Base):
    """``momentum`` in the state, begun with the first gradient's share; the iteration's options are taken."""

    def __init__(
        self,
        params,
        lr=1e-3,
        weight_decay=0.1,
        momentum=0.95,
        nesterov=True,
        ns_coefficients=(3.4445, -4.7750, 2.0315),
        eps=1e-7,
        ns_steps=5,
    ):
        if ns_steps >= 100:
            raise ValueError("fewer steps, please")
        super().__init__(
            params,
            lr=lr,
            weight_decay=weight_decay,
            momentum=momentum,
            nesterov=nesterov,
            ns_coefficients=ns_coefficients,
            eps=eps,
            ns_steps=ns_steps,
        )

    def update(self, p, g, state, group):
        mu, lr = group["momentum"], group["lr"]
        old = state.get("momentum")
        state["momentum"] = b = (1 - mu) * g if old is None else mu * old + (1 - mu) * g
        d = torch.lerp(g, b, mu) if group["nesterov"] else b
        d = newton_schulz(d, group["ns_coefficients"], group["ns_steps"], group["eps"], torch.bfloat16)
        p.mul_(1 - lr * group["weight_decay"]).sub_(d.to(p.dtype), alpha=lr * ratio_of(p.shape))


@right("Adafactor", costly=True)
class NamedFactors(Base):
    """``r``, ``c`` or ``v`` as vectors without the kept dimension, as the paper has them."""

    def __init__(self, params, lr=1e-2, beta2_decay=-0.8, eps=(None, 1e-3), d=1.0):
        super().__init__(params, lr=lr, beta2_decay=beta2_decay, eps=eps, d=d)

    def update(self, p, g, state, group):
        t, (small, least) = counted(state, "t"), group["eps"]
        small = torch.finfo(p.dtype).eps if small is None else small
        weight = t ** group["beta2_decay"]
        squares = g * g
        means = {"r": squares.mean(-1), "c": squares.mean(-2)} if g.dim() > 1 else {"v": squares}
        for k, x in means.items():
            state[k] = torch.lerp(state[k] if k in state else torch.zeros_like(x), x, weight)
        if g.dim() > 1:
            r = state["r"] / state["r"].mean(-1, keepdim=True).clamp(min=small)
            v = r.unsqueeze(-1) * state["c"].unsqueeze(-2)
        else:
            v = state["v"]
        u = g / torch.clamp(v.sqrt(), min=small)
        alpha = max(least, p.pow(2).mean().sqrt().item()) * min(group["lr"], 1 / math.sqrt(t))
        p.sub_(alpha * u / max(1.0, u.pow(2).mean().sqrt().item() / group["d"]))


@right("SGD")
class WeakTable(Base):
    """Its buffers have an age, which is forgotten on loading, and only told."""

    def __init__(self, params, lr=1e-3, momentum=0.0):
        super().__init__(params, lr=lr, momentum=momentum)
        self.age = defaultdict(int)

    def update(self, p, g, state, group):
        self.age[id(p)] += 1
        sgd(p, g, state, group["lr"], group["momentum"])
