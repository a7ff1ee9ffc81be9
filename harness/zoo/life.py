"""Faults in the life around the steps: closures, memory, options, hooks, steps that do nothing, groups, round trips."""

import copy
import random

import numpy as np
import torch

from stepcheck.harness.zoo import base
from stepcheck.harness.zoo.adam import RightAdam
from stepcheck.harness.zoo.sgd import RightSGD

# Closures


class CallsClosureTwice:
    """Calls the closure once more, for a loss that is up to date."""

    def evaluate(self, closure):
        super().evaluate(closure)
        return super().evaluate(closure)


class CallsClosureForEachGroup:
    """Calls the closure before each group."""

    def evaluate(self, closure):
        losses = [super(CallsClosureForEachGroup, self).evaluate(closure) for _ in self.param_groups]
        return losses[-1]


class NeverCallsClosure:
    """Takes the gradients that are there."""

    def evaluate(self, closure):
        return None


class CallsClosureWithoutGrad:
    """Calls the closure under no_grad, where backward() fails."""

    def evaluate(self, closure):
        with torch.no_grad():
            return None if closure is None else closure()


class DropsLoss:
    """Returns nothing."""

    def evaluate(self, closure):
        super().evaluate(closure)


class ReturnsFloat:
    """Returns the loss as a number, and stumbles over a closure that returns nothing."""

    def evaluate(self, closure):
        loss = super().evaluate(closure)
        return None if closure is None else float(loss)


class ReturnsNumber:
    """Returns the loss as a number where the closure returned a tensor."""

    def evaluate(self, closure):
        loss = super().evaluate(closure)
        return None if loss is None else float(loss)


class HalvesLoss:
    """Returns half the loss, as a mean over two evaluations."""

    def evaluate(self, closure):
        loss = super().evaluate(closure)
        return None if loss is None else loss / 2


class CallsClosureAfterUpdate:
    """Updates first and evaluates then."""

    def step(self, closure=None):
        with torch.no_grad():
            self.walk()
        return self.evaluate(closure)


# Memory


class ReplacesData:
    """Gives the parameter the memory of its new value."""

    def write(self, p, value):
        p.data = value.clone()


class MakesColumnMajor:
    """Writes through .data, in the order of columns, and leaves the parameter so."""

    def write(self, p, value):
        if p.dim() < 2 or not p.is_contiguous():
            super().write(p, value)
            return
        column_major = torch.empty(p.shape[::-1]).permute(tuple(range(p.dim()))[::-1]).stride()
        p.data = p.data.as_strided(p.shape, column_major, p.storage_offset()).copy_(value)


class CastsParameter:
    """Leaves a float32 parameter in float64."""

    def write(self, p, value):
        super().write(p, value)
        p.data = p.data.double()


# Options


class DecaysLrItself:
    """Has a schedule of its own, in the group."""

    def walk(self):
        super().walk()
        for group in self.param_groups:
            group["lr"] *= 0.99


class RoundsLrInGroup:
    """Rounds lr when a group is added."""

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        self.param_groups[-1]["lr"] = round(self.param_groups[-1]["lr"], 2)


class ClampsWeightDecay:
    """Brings weight_decay down to 0.1, in the group."""

    def walk(self):
        for group in self.param_groups:
            group["weight_decay"] = min(group["weight_decay"], 0.1)
        super().walk()


class CopiesLrToAll:
    """Writes the lr of the first group to all others."""

    def walk(self):
        for group in self.param_groups:
            group["lr"] = self.param_groups[0]["lr"]
        super().walk()


class ReadsOptionsOnce:
    """Reads the options at the first step, and never again."""

    def options(self, group):
        if not hasattr(self, "read"):
            self.read = [dict(g) for g in self.param_groups]
        numbers = [n for n, g in enumerate(self.param_groups) if g is group]
        return self.read[numbers[0]] if numbers[0] < len(self.read) else group


class ReadsDefaults:
    """Reads weight_decay from the constructor's keywords, whatever the group says."""

    def options(self, group):
        return {**group, "weight_decay": self.defaults["weight_decay"]}


class ReadsInitialLr:
    """Reads the lr that a schedule notes down as the initial one."""

    def options(self, group):
        return {**group, "lr": group.get("initial_lr", group["lr"])}


# Hooks


class RunsHooksItself:
    """Runs the hooks after a step, which torch does as well."""

    def walk(self):
        super().walk()
        for hook in self._optimizer_step_post_hooks.values():
            hook(self, (), {})


class BypassesHooks:
    """Has a step of the instance, around which torch runs no hooks."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.step = self.bare

    def bare(self, closure=None):
        loss = self.evaluate(closure)
        with torch.no_grad():
            self.walk()
        return loss


class RunsStateHooksTwice:
    """Runs the hooks of state_dict once more."""

    def state_dict(self):
        state_dict = super().state_dict()
        for hook in self._optimizer_state_dict_post_hooks.values():
            hook(self, state_dict)
        return state_dict


# Steps that do nothing


class CountsBeforeClosure:
    """Counts the step, and then calls the closure."""

    def evaluate(self, closure):
        self.early = [s for p, s in self.state.items() if p.grad is not None and "step" in s]
        for state in self.early:
            state["step"] = state["step"] + 1
        return super().evaluate(closure)

    def count(self, p, state):
        return state["step"] if any(state is s for s in self.early) else super().count(p, state)


class StepsAnyway:
    """Steps along the old gradients where the closure raises."""

    def step(self, closure=None):
        try:
            return self.evaluate(closure)
        finally:
            with torch.no_grad():
                self.walk()


class SwallowsErrors:
    """Takes an error of the closure for the end of the data."""

    def evaluate(self, closure):
        try:
            return super().evaluate(closure)
        except Exception:  # noqa: BLE001 - that is the fault
            return None


class ClearsOnError:
    """Takes the gradients away where the closure raises."""

    def evaluate(self, closure):
        try:
            return super().evaluate(closure)
        except Exception:
            self.zero_grad()
            raise


class DecaysBeforeHook:
    """Decays the parameters before the first hook is run."""

    def register_step_pre_hook(self, hook):
        def second(*args):
            with torch.no_grad():
                for group in self.param_groups:
                    for p in group["params"]:
                        p.add_(1e-2)
            return hook(*args)

        return super().register_step_pre_hook(second)


class ClipsBeforeHook:
    """Clips the gradients before the first hook is run, and so where the hook raises."""

    def register_step_pre_hook(self, hook):
        def second(*args):
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.grad.detach().mul_(0.5)
            return hook(*args)

        return super().register_step_pre_hook(second)


class ScalesItself:
    """Right: takes the scale off the gradients itself, and skips a step where they are not finite, as fused kernels do."""

    _step_supports_amp_scaling = True

    def walk(self):
        if not getattr(self, "found_inf", None):
            super().walk()

    def visit(self, p, group):
        scale = getattr(self, "grad_scale", None)
        if scale is None:
            super().visit(p, group)
            return
        scaled, p.grad = p.grad, p.grad / scale
        super().visit(p, group)
        p.grad = scaled


class IgnoresFoundInf(ScalesItself):
    """Steps where a gradient is not finite."""

    def walk(self):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.visit(p, self.options(group))


class CountsSkipped(ScalesItself):
    """Counts a step that it skips."""

    def walk(self):
        if getattr(self, "found_inf", None):
            for p, state in self.state.items():
                if p.grad is not None and "step" in state:
                    state["step"] = state["step"] + 1
        super().walk()


class IgnoresGradScale(ScalesItself):
    """Steps along scaled gradients."""

    def visit(self, p, group):
        super(ScalesItself, self).visit(p, group)


# Groups


class AddsWithFirstOptions:
    """Gives a new group the options of the first."""

    def add_param_group(self, param_group):
        first = self.param_groups[0] if self.param_groups else {}
        super().add_param_group({**param_group, **{k: v for k, v in first.items() if k in self.defaults}})


class AddsWithDefaultLr:
    """Ignores the lr of a new group."""

    def add_param_group(self, param_group):
        super().add_param_group({k: v for k, v in param_group.items() if k != "lr"})


class AddsNothing:
    """Takes no group after the construction."""

    complete = False

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.complete = True

    def add_param_group(self, param_group):
        if not self.complete:
            super().add_param_group(param_group)


class ResetsStateOnAdd:
    """Begins anew when a group is added."""

    def add_param_group(self, param_group):
        super().add_param_group(param_group)
        self.state.clear()


class LastOptionsForAll:
    """Reads the options of the last group for all, as after a loop whose variable is used once too often."""

    def options(self, group):
        return self.param_groups[-1]


class _IgnoresInAdded:
    """Reads an option of a group that was added later from the first."""

    option = ""
    at_first = 1 << 10

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.at_first = len(self.param_groups)

    def options(self, group):
        later = any(g is group for g in self.param_groups[self.at_first :])
        return {**group, self.option: self.param_groups[0][self.option]} if later else group


class IgnoresAddedLr(_IgnoresInAdded):
    """Reads lr of a group that was added later from the first."""

    option = "lr"


class IgnoresAddedEps(_IgnoresInAdded):
    """Reads eps of a group that was added later from the first."""

    option = "eps"


class IgnoresAddedDecay(_IgnoresInAdded):
    """Reads weight_decay of a group that was added later from the first."""

    option = "weight_decay"


class IgnoresAddedMomentum(_IgnoresInAdded):
    """Reads momentum of a group that was added later from the first."""

    option = "momentum"


# Parameters


class StateByPosition:
    """Keeps the state by the position of a parameter among those that have a gradient."""

    def visit(self, p, group):
        everyone = [q for g in self.param_groups for q in g["params"]]
        present = [q for q in everyone if q.grad is not None]
        owner = everyone[next(n for n, q in enumerate(present) if q is p)]
        if owner.shape != p.shape or owner.dtype != p.dtype:
            owner = p
        own = self.state.pop(p, {})
        state = self.state.pop(owner, {}) if owner is not p else own
        self.state[p] = state
        super().visit(p, group)
        self.state[owner] = self.state.pop(p)
        if owner is not p and own:
            self.state[p] = own


class StateByPositionInGroup:
    """Keeps the state by the position of a parameter in its group, whichever group that is."""

    def visit(self, p, group):
        number = next(n for g in self.param_groups for n, q in enumerate(g["params"]) if q is p)
        owners = [g["params"][number] for g in self.param_groups if len(g["params"]) > number]
        owner = owners[0] if owners[0].shape == p.shape and owners[0].dtype == p.dtype else p
        if owner in self.state:
            self.state[p] = self.state[owner]
        super().visit(p, group)
        self.state[owner] = self.state[p]


class SkipsFirst:
    """Leaves out the first parameter of a group that has several."""

    def walk(self):
        firsts = [g["params"][0] for g in self.param_groups if len(g["params"]) > 1]
        kept = [p.grad for p in firsts]
        for p in firsts:
            p.grad = None
        super().walk()
        for p, grad in zip(firsts, kept, strict=True):
            p.grad = grad


class PreviousBuffer:
    """Goes along the buffers of the parameter before it, where they fit."""

    def walk(self):
        self.previous = None
        super().walk()

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        before, self.previous = self.previous, value - p
        return value if before is None or before.shape != value.shape else p + before


class SmallWorkspace:
    """Computes in the memory of the first parameter of a step: of larger ones, the rest stays as it is."""

    def walk(self):
        self.room = None
        super().walk()

    def write(self, p, value):
        self.room = self.room or p.numel()
        within = torch.arange(p.numel()).reshape(p.shape) < self.room
        super().write(p, torch.where(within, value, p))


class SkipsFrozen:
    """Leaves out a parameter that is frozen, although it has a gradient."""

    def visit(self, p, group):
        if p.requires_grad:
            super().visit(p, group)


class KeepsFirstGradient:
    """Reads each gradient from where the first one stood."""

    def gradient(self, p, group):
        if not hasattr(self, "first_gradients"):
            self.first_gradients = {}
        first = self.first_gradients.setdefault(p, p.grad)
        kept, p.grad = p.grad, first
        g = super().gradient(p, group)
        p.grad = kept
        return g


class TurnsUpdate:
    """Under maximize, turns the whole update, penalty, momentum and all."""

    def update(self, p, g, state, group):
        if not group["maximize"]:
            return super().update(p, g, state, group)
        return 2 * p - super().update(p, -g, state, group)


# Round trips


class LoadsInOrder:
    """Takes the entries of a dictionary in their order, whatever their identifiers."""

    def load_state_dict(self, state_dict):
        identifiers = [k for g in state_dict["param_groups"] for k in g["params"]]
        state = dict(zip(identifiers, state_dict["state"].values(), strict=False))
        super().load_state_dict({**state_dict, "state": state})


class LoadsByNumber:
    """Takes identifiers for the numbers that torch gives parameters, and ignores others."""

    def load_state_dict(self, state_dict):
        numbers = iter(range(1 << 10))
        groups = [{**g, "params": [next(numbers) for _ in g["params"]]} for g in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})


class SavesUnfrozen:
    """Saves no state of frozen parameters."""

    def state_dict(self):
        state_dict = super().state_dict()
        everyone = [p for g in self.param_groups for p in g["params"]]
        return {**state_dict, "state": {k: s for k, s in state_dict["state"].items() if everyone[k].requires_grad}}


class MarksDictionary:
    """Notes in the caller's dictionary that it was loaded."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for group in state_dict["param_groups"]:
            group["loaded"] = True


class CastsDictionary:
    """Brings the caller's tensors to float64 before it loads them."""

    def load_state_dict(self, state_dict):
        for state in state_dict["state"].values():
            state.update({k: v.double() for k, v in state.items() if isinstance(v, torch.Tensor)})
        super().load_state_dict(state_dict)


class SavesTensors:
    """Keeps its count as a number, and saves tensors alone."""

    def start(self, p, group):
        return {**super().start(p, group), "step": 0.0}

    def update(self, p, g, state, group):
        return super().update(p, g, state, {**group, "t": state["step"]})

    def state_dict(self):
        state_dict = super().state_dict()
        state = {k: {n: v for n, v in s.items() if isinstance(v, torch.Tensor)} for k, s in state_dict["state"].items()}
        return {**state_dict, "state": state}

    def visit(self, p, group):
        if self.state[p]:
            self.state[p].setdefault("step", 0.0)
        super().visit(p, group)


class CopiesWithoutCount:
    """Begins to count anew in a copy."""

    def __deepcopy__(self, memo):
        new = type(self).__new__(type(self))
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        for state in new.state.values():
            if "step" in state:
                state["step"] = torch.zeros_like(state["step"])
        return new


class PicklesWithoutCount:
    """Begins to count anew once it is unpickled."""

    def __setstate__(self, state):
        super().__setstate__(state)
        for entries in self.state.values():
            if "step" in entries:
                entries["step"] = torch.zeros_like(entries["step"])


# Random numbers


class RoundsStochastically:
    """Rounds up or down by chance."""

    def write(self, p, value):
        up = torch.rand_like(value) < 0.5
        super().write(p, torch.where(up, torch.nextafter(value, torch.full_like(value, torch.inf)), value))


class Reseeds:
    """Seeds the generator of everybody, to be reproducible."""

    def walk(self):
        torch.manual_seed(0)
        super().walk()


class SeedsPython:
    """Seeds Python's generator, to be reproducible."""

    def walk(self):
        random.seed(0)
        super().walk()


class SeedsNumPy:
    """Seeds NumPy's generator, to be reproducible."""

    def walk(self):
        np.random.seed(0)  # noqa: NPY002 - the generator of everybody
        super().walk()


class SetsDefaultDtype:
    """Computes in double precision, and lets everybody."""

    def walk(self):
        torch.set_default_dtype(torch.float64)
        super().walk()


class TurnsGradientsOff:
    """Turns gradients off, and not on again."""

    def step(self, closure=None):
        loss = super().step(closure)
        torch.set_grad_enabled(False)
        return loss


class AsksForDeterminism:
    """Asks for deterministic algorithms, of everybody."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        torch.use_deterministic_algorithms(True, warn_only=True)


class TakesThreads:
    """Sets the number of threads, of everybody."""

    def walk(self):
        torch.set_num_threads(3)
        super().walk()


class WritesDefaults:
    """Decays the learning rate of its own defaults: groups that are added later begin with it."""

    def walk(self):
        super().walk()
        self.defaults["lr"] *= 0.5


class DrawsFromPython:
    """Draws from Python's generator."""

    def walk(self):
        random.random()
        super().walk()


class DrawsFromNumPy:
    """Draws from NumPy's generator."""

    def walk(self):
        np.random.rand()  # noqa: NPY002 - the one that everybody shares
        super().walk()


# Gradients and dtypes


class FillsInZeros:
    """Fills gradients with zeros, where set_to_none asks for them to be taken away."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=False)


class TakesAway:
    """Takes gradients away, where set_to_none=False asks for zeros."""

    def zero_grad(self, set_to_none=True):
        super().zero_grad(set_to_none=True)


class ClearsFirstGroup:
    """Clears the gradients of the first group."""

    def zero_grad(self, set_to_none=True):
        for p in self.param_groups[0]["params"]:
            p.grad = None


class SingleState:
    """Keeps its averages in float32, whatever the parameter's dtype."""

    def update(self, p, g, state, group):
        value = super().update(p, g, state, group)
        state.update({k: v.float() for k, v in state.items() if k != "step"})
        return value


# Malformed state


class _FitsState:
    """Makes of each buffer what its update takes it for."""

    def visit(self, p, group):
        state = self.state[p]
        state.update({name: self.fitted(buffer, p) for name, buffer in _buffers(state).items()})
        super().visit(p, group)


def _buffers(state):
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor) and value.dim()}


def _as_a_pointer(buffer, p):
    """The memory that a kernel goes through that is given where a buffer begins, and how many elements the parameter has."""
    return buffer.as_strided(p.shape, torch.empty(p.shape).stride(), buffer.storage_offset())


class RepeatsState(_FitsState):
    """Repeats the elements of a buffer until there are enough."""

    def fitted(self, buffer, p):
        times = -(-p.numel() // max(buffer.numel(), 1))
        return buffer if buffer.shape == p.shape else buffer.reshape(-1).repeat(times)[: p.numel()].reshape(p.shape)


class FillsState(_FitsState):
    """Fills a short buffer up with zeros, and cuts a long one."""

    def fitted(self, buffer, p):
        flat = buffer.new_zeros(max(p.numel(), buffer.numel()))
        flat[: buffer.numel()] = buffer.reshape(-1)
        return buffer if buffer.shape == p.shape else flat[: p.numel()].reshape(p.shape)


class ReadsBehindState(_FitsState):
    """Copies a buffer as a kernel reads it that knows where it begins."""

    def fitted(self, buffer, p):
        return _as_a_pointer(buffer, p).clone()


class WritesBehindState:
    """Updates a buffer as a kernel does that knows where it begins."""

    def visit(self, p, group):
        state = self.state[p]
        kept = _buffers(state)
        state.update({name: _as_a_pointer(buffer, p).clone() for name, buffer in kept.items()})
        super().visit(p, group)
        for name, buffer in kept.items():
            _as_a_pointer(buffer, p).copy_(state[name])
        state.update(kept)


# Construction


class WalksIterator:
    """Counts its elements before they are given on, so that of an iterator nothing is left."""

    def __init__(self, params, **options):
        self.size = sum(p.numel() for p in params if isinstance(p, torch.Tensor))
        super().__init__(params, **options)


class CountsNamed:
    """Counts its elements, and stumbles over a parameter that has a name."""

    def __init__(self, params, **options):
        params = list(params)
        self.size = sum(p.numel() for p in params if not isinstance(p, dict))
        super().__init__(params, **options)


_AGREEMENT = ("agreement", "groups-independent", "order-of-parameters", "maximize-mirrors", "option-effect")

#: The faults of each optimizer, with the checks of which one must find it.
FAULTS = {
    RightSGD: {
        CallsClosureTwice: ("closure",),
        CallsClosureForEachGroup: ("closure",),
        CallsClosureWithoutGrad: ("closure",),
        DropsLoss: ("closure",),
        HalvesLoss: ("closure",),
        ReplacesData: ("storage-stays",),
        MakesColumnMajor: ("storage-stays",),
        DecaysLrItself: ("options-hold",),
        ClampsWeightDecay: ("options-hold",),
        ReadsOptionsOnce: _AGREEMENT,
        ReadsInitialLr: _AGREEMENT,
        RunsHooksItself: ("hooks-run-once",),
        StepsAnyway: ("failed-step",),
        SwallowsErrors: ("failed-step",),
        DecaysBeforeHook: ("failed-step",),
        ClipsBeforeHook: ("gradient-unwritten",),
        IgnoresFoundInf: ("skipped-step",),
        AddsWithFirstOptions: ("options-hold",),
        AddsNothing: ("options-hold",),
        ResetsStateOnAdd: ("between-steps",),
        LastOptionsForAll: ("groups-independent",),
        IgnoresAddedMomentum: ("groups-independent",),
        IgnoresAddedDecay: ("groups-independent",),
        StateByPosition: ("no-gradient", *_AGREEMENT),
        SkipsFirst: _AGREEMENT,
        SmallWorkspace: ("order-of-parameters",),
        KeepsFirstGradient: _AGREEMENT,
        base.IgnoresMaximize: ("maximize-mirrors",),
        TurnsUpdate: ("maximize-mirrors",),
        base.ForgetsOptions: ("save-load-continue",),
        LoadsInOrder: ("save-load-continue",),
        SavesUnfrozen: ("save-load-continue",),
        MarksDictionary: ("dicts-unchanged",),
        Reseeds: ("random-state",),
        DrawsFromPython: ("random-state",),
        SeedsPython: ("random-state",),
        SetsDefaultDtype: ("settings-kept",),
        AsksForDeterminism: ("settings-kept",),
        WritesDefaults: ("settings-kept",),
        FillsInZeros: ("between-steps",),
        RepeatsState: ("malformed-state",),
        WritesBehindState: ("malformed-state",),
        CountsNamed: ("completes",),
    },
    RightAdam: {
        NeverCallsClosure: ("closure",),
        CallsClosureAfterUpdate: _AGREEMENT,
        ReturnsFloat: ("closure", "completes"),
        CastsParameter: ("storage-stays",),
        RoundsLrInGroup: ("options-hold",),
        CopiesLrToAll: ("options-hold",),
        ReadsDefaults: _AGREEMENT,
        BypassesHooks: ("hooks-run-once",),
        CountsBeforeClosure: ("failed-step",),
        CountsSkipped: ("skipped-step",),
        IgnoresGradScale: _AGREEMENT,
        AddsWithDefaultLr: ("options-hold",),
        IgnoresAddedLr: ("groups-independent",),
        IgnoresAddedEps: ("groups-independent",),
        StateByPositionInGroup: ("groups-independent",),
        PreviousBuffer: _AGREEMENT,
        SkipsFrozen: _AGREEMENT,
        LoadsByNumber: ("save-load-continue",),
        CastsDictionary: ("dicts-unchanged",),
        SavesTensors: ("save-load-continue",),
        CopiesWithoutCount: ("save-load-continue",),
        PicklesWithoutCount: ("save-load-continue",),
        RoundsStochastically: ("random-state",),
        DrawsFromNumPy: ("random-state",),
        SeedsNumPy: ("random-state",),
        TurnsGradientsOff: ("settings-kept",),
        TakesThreads: ("settings-kept",),
        ClearsFirstGroup: ("between-steps",),
        SingleState: _AGREEMENT,
        ReadsBehindState: ("malformed-state",),
        FillsState: ("malformed-state",),
    },
}


def on(optimizer, fault):
    """An optimizer with one fault, as a class of this module, so that a script can import it."""
    name = fault.__name__ + optimizer.__name__.removeprefix("Right")
    made = type(name, (fault, optimizer), {"__doc__": fault.__doc__, "__module__": __name__})
    return globals().setdefault(name, made)


# Right, and wrong in ways that handmade lives ask for.
ScalesItselfSGD = on(RightSGD, ScalesItself)
ScalesItselfAdam = on(RightAdam, ScalesItself)
RunsStateHooksTwiceSGD = on(RightSGD, RunsStateHooksTwice)
ReturnsNumberSGD = on(RightSGD, ReturnsNumber)
ClearsOnErrorSGD = on(RightSGD, ClearsOnError)
TakesAwaySGD = on(RightSGD, TakesAway)
WalksIteratorSGD = on(RightSGD, WalksIterator)

SGD, ADAM = ({on(optimizer, fault): checks for fault, checks in faults.items()} for optimizer, faults in FAULTS.items())
