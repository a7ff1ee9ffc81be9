"""Faults in what becomes of an optimizer that somebody handles between its steps: right where nobody does."""

import torch

from stepcheck.harness.zoo import base
from stepcheck.harness.zoo.adagrad import RightAdagrad
from stepcheck.harness.zoo.adam import RightAdam, RightAdamW
from stepcheck.harness.zoo.fault import DEVIATES, Fault
from stepcheck.harness.zoo.nadam import RightNAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.sgd import RightSGD

_FAULTS: list[Fault] = []


def handled(like, *checks, tensor_lr=False):
    """Enters a class as a fault of ``like`` that shows once it is handled; by a deviation, where no check is named."""

    def enter(make):
        _FAULTS.append(Fault(make, like, checks or DEVIATES, "handled", tensor_lr=tensor_lr))
        return make

    return enter


def aside(optimizer):
    """What an optimizer keeps beside its state: no state_dict has it, and no copy."""
    return vars(optimizer).setdefault("kept_aside", {})


def number(optimizer, group):
    return next(n for n, g in enumerate(optimizer.param_groups) if g is group)


class _BeginsAnewWhenLoaded:
    """Has nothing aside once a state is loaded."""

    def __setstate__(self, state):
        super().__setstate__(state)
        aside(self).clear()


class _KnowsSteps:
    """Knows whether it has stepped."""

    def walk(self):
        super().walk()
        aside(self)["stepped"] = True

    @property
    def stepped(self):
        return "stepped" in aside(self)


class _AsAtFirst:
    """Takes an option as it was at the first step of its group."""

    option = ""

    def options(self, group):
        return {**group, self.option: aside(self).setdefault(number(self, group), group[self.option])}


# Parameters that are written


@handled("SGD")
class StepsFromOwnCopy(RightSGD):
    """Steps from its own copy of the parameter, and so undoes what was written since."""

    def update(self, p, g, state, group):
        own = aside(self)
        own[p] = super().update(own.get(p, p), g, state, group)
        return own[p]


@handled("AdamW")
class DecaysOwnCopy(RightAdamW):
    """Decays the parameter by what the last step left of it."""

    def decayed(self, p, group):
        own = aside(self).get(p, p)
        return p - group["lr"] * group["weight_decay"] * own if group["weight_decay"] != 0 else p

    def write(self, p, value):
        super().write(p, value)
        aside(self)[p] = value


@handled("SGD")
class PenalizesOwnCopy(RightSGD):
    """Takes the penalty of what the last step left of the parameter."""

    def gradient(self, p, group):
        g = super().gradient(p, {**group, "weight_decay": 0})
        return g + group["weight_decay"] * aside(self).get(p, p) if group["weight_decay"] != 0 else g

    def write(self, p, value):
        super().write(p, value)
        aside(self)[p] = value


@handled("SGD")
class WritesToFirstMemory(RightSGD):
    """Writes to the memory that the parameter had at its first step."""

    def write(self, p, value):
        super().write(aside(self).setdefault(p, p.data), value)


@handled("Adam")
class ReadsFirstMemory(RightAdam):
    """Reads the parameter from the memory that it had at its first step."""

    def combine(self, p, d, group):
        return super().combine(aside(self).setdefault(p, p.data), d, group)


@handled("SGD")
class BeginsAnewInOtherMemory(RightSGD):
    """Takes a parameter that has other memory for another parameter, and begins anew."""

    def visit(self, p, group):
        places = aside(self)
        if places.setdefault(p, p.data_ptr()) != p.data_ptr():
            self.state[p] = {}
        places[p] = p.data_ptr()
        super().visit(p, group)


# State that is cleared, replaced or deleted


@handled("SGD")
class KeepsClearedState(_BeginsAnewWhenLoaded, RightSGD):
    """Holds on to the state of each parameter, and goes on with it once the state is cleared."""

    def visit(self, p, group):
        self.state[p] = aside(self).setdefault(p, self.state[p])
        super().visit(p, group)


@handled("RMSprop")
class KeepsReplacedState(_BeginsAnewWhenLoaded, RightRMSprop):
    """Holds on to its whole state, and goes on with it once there is another in its place."""

    def walk(self):
        self.state = aside(self).setdefault("state", self.state)
        super().walk()


@handled("Adam", "completes")
class StartsOnce(_BeginsAnewWhenLoaded, RightAdam):
    """Makes the state of a parameter at its first step alone, and raises once it is cleared."""

    def start(self, p, group):
        return {} if p in aside(self) else super().start(p, group)

    def visit(self, p, group):
        super().visit(p, group)
        aside(self)[p] = True


@handled("SGD")
class DampensAfterClearing(_BeginsAnewWhenLoaded, RightSGD):
    """Dampens the gradient that a cleared buffer starts with."""

    def update(self, p, g, state, group):
        started = aside(self)
        if group["momentum"] != 0:
            if p in started and "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(p)
            started[p] = True
        return super().update(p, g, state, group)


@handled("Adam")
class CountsOn(_BeginsAnewWhenLoaded, RightAdam):
    """Goes on with its count, and shows it, once the state is cleared."""

    def count(self, p, state):
        counts = aside(self)
        counts[p] = counts.get(p, state["step"]) + 1
        return counts[p]


@handled("Adam")
class KeepsMaximum(_BeginsAnewWhenLoaded, RightAdam):
    """Holds on to AMSGrad's maximum once the state is cleared."""

    def start(self, p, group):
        kept = {"max_exp_avg_sq": aside(self)[p]} if group["amsgrad"] and p in aside(self) else {}
        return super().start(p, group) | kept

    def visit(self, p, group):
        super().visit(p, group)
        if group["amsgrad"]:
            aside(self)[p] = self.state[p]["max_exp_avg_sq"]


@handled("Adam")
class ClearsAllForOne(_BeginsAnewWhenLoaded, RightAdam):
    """Begins anew with all parameters once the state of one is deleted."""

    def walk(self):
        known = aside(self)
        if not all(self.state.get(p) for p in known):
            self.state.clear()
            known.clear()
        super().walk()
        known.update(dict.fromkeys(self.state))


@handled("Adagrad")
class RestartsFromZero(_BeginsAnewWhenLoaded, RightAdagrad):
    """Starts a sum that was cleared from zero, whatever initial_accumulator_value says."""

    def start(self, p, group):
        again = p in aside(self)
        aside(self)[p] = True
        return super().start(p, {**group, "initial_accumulator_value": 0.0} if again else group)


@handled("NAdam")
class KeepsProduct(_BeginsAnewWhenLoaded, RightNAdam):
    """Holds on to the product of the momenta once the state is cleared."""

    def start(self, p, group):
        return super().start(p, group) | {"mu_product": aside(self).get(p, 1.0)}

    def visit(self, p, group):
        super().visit(p, group)
        aside(self)[p] = self.state[p]["mu_product"]


# Dictionaries that are loaded by an optimizer that has stepped


@handled("Adam")
class MergesState(RightAdam):
    """Keeps the state of parameters that have none in the dictionary that it loads."""

    def load_state_dict(self, state_dict):
        before = dict(self.state)
        super().load_state_dict(state_dict)
        self.state.update({p: state for p, state in before.items() if not self.state.get(p)})


@handled("SGD")
class KeepsLaterBuffers(RightSGD):
    """Keeps the momentum of parameters that have none in the dictionary that it loads."""

    def load_state_dict(self, state_dict):
        before = {p: state["momentum_buffer"] for p, state in self.state.items() if "momentum_buffer" in state}
        super().load_state_dict(state_dict)
        for p, buffer in before.items():
            self.state[p].setdefault("momentum_buffer", buffer)


@handled("Adam")
class KeepsLaterCount(RightAdam):
    """Keeps its own count where that is larger than the one that it loads."""

    def load_state_dict(self, state_dict):
        before = {p: state["step"] for p, state in self.state.items() if state}
        super().load_state_dict(state_dict)
        for p, state in self.state.items():
            if state:
                state["step"] = max(state["step"], before.get(p, state["step"]))


@handled("SGD")
class KeepsFirstBuffers(RightSGD):
    """Holds on to the state of each parameter, and goes on with it once another is loaded."""

    def visit(self, p, group):
        kept = aside(self)
        if p in kept and self.state.get(p):
            self.state[p] = kept[p]
        super().visit(p, group)
        kept[p] = self.state[p]


@handled("SGD", "options-hold", *DEVIATES)
class KeepsOwnOptions(_KnowsSteps, base.ForgetsOptions, RightSGD):
    """Loads the options of a dictionary before its first step alone."""

    def load_state_dict(self, state_dict):
        super(_KnowsSteps if self.stepped else base.ForgetsOptions, self).load_state_dict(state_dict)


@handled("AdamW")
class KeepsOwnState(_KnowsSteps, RightAdamW):
    """Loads the state of a dictionary before its first step alone."""

    def load_state_dict(self, state_dict):
        super().load_state_dict({**state_dict, "state": self.state_dict()["state"]} if self.stepped else state_dict)


@handled("RMSprop", "options-hold", *DEVIATES)
class KeepsLowerLr(_KnowsSteps, RightRMSprop):
    """Keeps its own lr where that is lower than the one that it loads."""

    def load_state_dict(self, state_dict):
        before = [group["lr"] for group in self.param_groups]
        super().load_state_dict(state_dict)
        for group, lr in zip(self.param_groups, before, strict=True):
            group["lr"] = min(group["lr"], lr) if self.stepped else group["lr"]


@handled("Adam")
class LoadsFirstGroup(RightAdam):
    """Loads the state of the first group, and keeps what it has of the others."""

    def load_state_dict(self, state_dict):
        before = dict(self.state)
        super().load_state_dict(state_dict)
        others = [p for group in self.param_groups[1:] for p in group["params"]]
        self.state.update({p: before[p] for p in others if p in before})


@handled("RMSprop")
class MergesEntries(RightRMSprop):
    """Keeps the entries of a parameter's state that the one that it loads is without."""

    def load_state_dict(self, state_dict):
        before = dict(self.state)
        super().load_state_dict(state_dict)
        self.state.update({p: before.get(p, {}) | state for p, state in self.state.items()})


# Lists of parameters that are changed


@handled("SGD", *DEVIATES, "no-gradient")
class StepsRemoved(RightSGD):
    """Goes on with a parameter that is removed from its group."""

    def walk(self):
        for n, group in enumerate(self.param_groups):
            known = aside(self).setdefault(n, {})
            known.update(dict.fromkeys(group["params"]))
            for p in known:
                if p.grad is not None:
                    self.visit(p, self.options(group))


@handled("AdamW")
class MissesAppended(RightAdamW):
    """Goes through the parameters that a group had at its first step, and misses one that is appended."""

    def walk(self):
        for n, group in enumerate(self.param_groups):
            now = set(group["params"])
            for p in aside(self).setdefault(n, list(group["params"])):
                if p in now and p.grad is not None:
                    self.visit(p, self.options(group))


@handled("Adam")
class PairsByPlace(RightAdam):
    """Pairs states with parameters by their place in the group: where one is removed, the next takes its state over."""

    def walk(self):
        for n, group in enumerate(self.param_groups):
            last = aside(self).get(n, group["params"])
            places = [(p, q) for p, q in zip(group["params"], last, strict=False) if p is not q and p.shape == q.shape]
            self.state.update({p: dict(self.state[q]) for p, q in places if q in self.state})
            aside(self)[n] = list(group["params"])
        super().walk()


@handled("RMSprop", "completes")
class CountsParameters(RightRMSprop):
    """Raises where a group has not as many parameters as at its first step."""

    def walk(self):
        for n, group in enumerate(self.param_groups):
            if len(group["params"]) != aside(self).setdefault(n, len(group["params"])):
                raise RuntimeError("the parameters of a group are not those of its first step")
        super().walk()


# Gradients that are cleared


@handled("SGD", "no-gradient")
class GoesOnAlongCleared(RightSGD):
    """Steps along the gradient that zero_grad took away, where no other came."""

    def zero_grad(self, set_to_none=True):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        aside(self).update({p: p.grad for p in params} if set_to_none else {})
        super().zero_grad(set_to_none)

    def walk(self):
        absent = {p: grad for p, grad in aside(self).items() if p.grad is None}
        for p, grad in absent.items():
            p.grad = grad
        super().walk()
        for p in absent:
            p.grad = None
        aside(self).clear()


@handled("SGD")
class SkipsZeros(RightSGD):
    """Takes a gradient of zeros, as zero_grad(set_to_none=False) leaves it, for none."""

    def visit(self, p, group):
        if p.grad.any() or not p.numel():
            super().visit(p, group)


@handled("Adam", "between-steps")
class ClearsSteppedOnly(RightAdam):
    """Clears the gradients that it stepped along, and leaves those that came since."""

    def visit(self, p, group):
        super().visit(p, group)
        aside(self)[p] = p.grad

    def zero_grad(self, set_to_none=True):
        params = [p for group in self.param_groups for p in group["params"]]
        fresh = {p: p.grad for p in params if p in aside(self) and p.grad is not aside(self)[p]}
        for p in fresh:
            p.grad = None
        super().zero_grad(set_to_none)
        for p, grad in fresh.items():
            p.grad = grad


# Learning rates that are filled


def as_it_was(optimizer, lr):
    """A learning rate, if it is a tensor, as it was when it was first seen."""
    return aside(optimizer).setdefault(lr, lr.clone()) if isinstance(lr, torch.Tensor) else lr


@handled("SGD", tensor_lr=True)
class ReadsTensorOnce(RightSGD):
    """Reads the number in a tensor lr once, and misses what is filled in later."""

    def options(self, group):
        return {**group, "lr": as_it_was(self, group["lr"])}


@handled("AdamW", tensor_lr=True)
class DecaysByTensorAsItWas(RightAdamW):
    """Decays by the number that was in a tensor lr at first."""

    def decayed(self, p, group):
        return super().decayed(p, {**group, "lr": as_it_was(self, group["lr"])})


# Options that are turned on or off


@handled("SGD", "completes")
class NeedsBuffer(RightSGD):
    """Raises where momentum is turned on after the first step, having no buffer for it."""

    def visit(self, p, group):
        if p in self.state and group["momentum"] != 0 and "momentum_buffer" not in self.state[p]:
            raise KeyError("momentum_buffer")
        super().visit(p, group)


@handled("SGD")
class GoesOnAlongResting(RightSGD):
    """Adds a tenth of a buffer that rests while momentum is turned off."""

    def update(self, p, g, state, group):
        resting = state["momentum_buffer"] if group["momentum"] == 0 and "momentum_buffer" in state else 0.0
        return super().update(p, g, state, group) - 0.1 * group["lr"] * resting


@handled("Adam")
class MaximumGoesOn(RightAdam):
    """Takes the maximum as long as there is one, whatever amsgrad says by now."""

    def update(self, p, g, state, group):
        return super().update(p, g, state, {**group, "amsgrad": "max_exp_avg_sq" in state})


@handled("RMSprop", "completes")
class CannotRest(RightRMSprop):
    """Raises where a buffer has no use any more."""

    def update(self, p, g, state, group):
        if "grad_avg" in state and not group["centered"]:
            raise RuntimeError(f"{sorted(state)} is not the state of {sorted(group)}")
        return super().update(p, g, state, group)


@handled("SGD")
class MomentumStaysOff(_AsAtFirst, RightSGD):
    """Never begins with momentum once it was without."""

    option = "momentum"

    def options(self, group):
        first = super().options(group)
        return first if first["momentum"] == 0 else group


@handled("SGD")
class NesterovAsAtFirst(_AsAtFirst, RightSGD):
    """Looks ahead if it did at the first step."""

    option = "nesterov"


@handled("Adam")
class MaximizesAsAtFirst(_AsAtFirst, RightAdam):
    """Maximizes if it did at the first step."""

    option = "maximize"


@handled("RMSprop")
class CentersAsAtFirst(_AsAtFirst, RightRMSprop):
    """Subtracts the mean's square if it did at the first step."""

    option = "centered"


@handled("Adam")
class MaximumAsAtFirst(_AsAtFirst, RightAdam):
    """Takes AMSGrad's maximum if it did at the first step."""

    option = "amsgrad"


@handled("Adagrad")
class DecayStaysOff(_AsAtFirst, RightAdagrad):
    """Never begins with weight decay once it was without."""

    option = "weight_decay"

    def options(self, group):
        first = super().options(group)
        return first if first["weight_decay"] == 0 else group


# Groups that are replaced


@handled("SGD")
class ReadsFirstGroups(_BeginsAnewWhenLoaded, RightSGD):
    """Reads the options from the dictionaries that its groups were at first."""

    def options(self, group):
        return aside(self).setdefault(number(self, group), group)


@handled("AdamW")
class StepsFormerGroups(_BeginsAnewWhenLoaded, RightAdamW):
    """Goes through every dictionary that ever was a group, and so steps what is in a new one twice."""

    def walk(self):
        known = aside(self).setdefault("groups", [])
        known += [group for group in self.param_groups if not any(group is g for g in known)]
        for group in known:
            for p in group["params"]:
                if p.grad is not None:
                    self.visit(p, self.options(group))


#: Everything above.
FAULTS: tuple[Fault, ...] = tuple(_FAULTS)
