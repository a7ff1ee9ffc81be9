"""Faults that show once an optimizer goes on elsewhere: in another process, over other tensors of the same values, beside its copy, or
from what torch's own class saved.

While its parameters are the same objects in one process, each is right, whatever else is done: when its state_dict is loaded by a new
optimizer, or an earlier one by itself, when it is copied or pickled over the same tensors, when its state is cleared or the memory of a
parameter is swapped.
"""

import copy
import itertools
import os
import secrets
import weakref
from collections import defaultdict

import torch
from torch.utils.weak import WeakIdKeyDictionary

from stepcheck.harness.zoo.adadelta import RightAdadelta
from stepcheck.harness.zoo.adafactor import RightAdafactor
from stepcheck.harness.zoo.adagrad import RightAdagrad
from stepcheck.harness.zoo.adam import RightAdam, RightAdamW
from stepcheck.harness.zoo.adamax import RightAdamax
from stepcheck.harness.zoo.fault import DEVIATES, Fault
from stepcheck.harness.zoo.nadam import RightNAdam
from stepcheck.harness.zoo.radam import RightRAdam
from stepcheck.harness.zoo.rmsprop import RightRMSprop
from stepcheck.harness.zoo.rprop import RightRprop
from stepcheck.harness.zoo.sgd import RightSGD

_FAULTS: list[Fault] = []


def elsewhere(like, *checks):
    """Enters a class as a fault of ``like`` that shows elsewhere; by a deviation, where no check is named."""

    def enter(make):
        _FAULTS.append(Fault(make, like, checks or DEVIATES, "elsewhere"))
        return make

    return enter


# Who writes such a thing writes id(p), and a plain dictionary of the module with id(p) for keys. Here an entry goes with its tensor, and
# none is taken for another, in this process or in the next: what a fault does may not hang on which memory Python uses again.


def by_id():
    """A dictionary with id(p) for keys."""
    return WeakIdKeyDictionary()


_numbers, _next_number = by_id(), itertools.count(secrets.randbits(48))


def identity(p):
    """What stands for id(p); a process that is forked goes on from the same number."""
    return _numbers.setdefault(p, f"{next(_next_number)} of {os.getpid()}")


_places = by_id()


def address(p):
    """Where a parameter was in memory when somebody first asked: what is swapped later is no matter of these faults."""
    return _places.setdefault(p, p.data_ptr())


def parameters(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def keys(state_dict):
    """What the parameters are called in a dictionary, one after the other."""
    return [key for group in state_dict["param_groups"] for key in group["params"]]


def loads_where(optimizer, state_dict, knows):
    """What an optimizer is left of a dictionary, that loads the state of parameters which it knows."""
    strangers = {key for key, p in zip(keys(state_dict), parameters(optimizer), strict=False) if not knows(p)}
    return {**state_dict, "state": {key: state for key, state in state_dict["state"].items() if key not in strangers}}


# Loaded in another process, or copied: what is known of a tensor and is in no dictionary


class _GoesOnWithKept:
    """Has an entry of a parameter's state beside it, too, and goes on with that; what is loaded goes there, where there is one to replace."""

    entry = ""

    def beside(self, p):
        """The dictionary that has it, or nothing yet."""
        raise NotImplementedError

    def takes(self, beside):
        return self.entry in beside

    def visit(self, p, group):
        state, beside = self.state[p], self.beside(p)
        if self.entry in state:
            kept = beside.get(self.entry)
            state[self.entry] = self.start(p, group).get(self.entry) if kept is None else kept
        super().visit(p, group)
        beside[self.entry] = state.get(self.entry)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for p in parameters(self):
            beside = self.beside(p)
            if self.takes(beside):
                beside[self.entry] = self.state.get(p, {}).get(self.entry)


@elsewhere("SGD")
class VelocityById(_GoesOnWithKept, RightSGD):
    """Goes on with the momentum that the class has of a tensor, and starts anew where it has none, whatever was loaded."""

    entry = "momentum_buffer"
    velocities = by_id()

    def beside(self, p):
        return self.velocities.setdefault(p, {})


@elsewhere("Adam")
class CountsById(_GoesOnWithKept, RightAdam):
    """Counts the steps of a tensor for the class, from none where it is new, whatever count was loaded."""

    entry = "step"
    counts = by_id()

    def beside(self, p):
        return self.counts.setdefault(p, {})


@elsewhere("RAdam")
class StartsUnknown(RightRAdam):
    """Starts the state of a tensor that the class has not stepped yet, though one was loaded for it."""

    started = by_id()

    def visit(self, p, group):
        if p not in self.started:
            self.state[p].clear()
        self.started[p] = True
        super().visit(p, group)


@elsewhere("Adagrad")
class DecaysFromFirstSight(RightAdagrad):
    """Decays lr from the step on that the class first saw the tensor at, which is a later one where a state was loaded."""

    begun = by_id()

    def update(self, p, g, state, group):
        self.since = self.begun.setdefault(p, state["step"].item() - 1)
        return super().update(p, g, state, group)

    def rate(self, t, group):
        return super().rate(t - self.since, group)


@elsewhere("Adam")
class FirstOptionsForLoaded(RightAdam):
    """Learns the group of a tensor when it starts its state; one with a loaded state gets the options of the first group."""

    assigned = by_id()

    def visit(self, p, group):
        if not self.state[p]:
            self.assigned[p] = True
        super().visit(p, group if p in self.assigned else self.options(self.param_groups[0]))


@elsewhere("AdamW")
class DecaysById(RightAdamW):
    """Has a list of the ids that are to decay among the options of a group, and loads those of other tensors."""

    def visit(self, p, group):
        decaying = group.get("decaying", ())
        if not self.state[p] and identity(p) not in decaying:
            decaying = group["decaying"] = (*decaying, identity(p))
        super().visit(p, group if identity(p) in decaying else {**group, "weight_decay": 0})


# Loaded in another process


@elsewhere("Rprop")
class PreviousOnTensor(_GoesOnWithKept, RightRprop):
    """Leaves the last gradient as an attribute of the tensor, and goes on with that of a new one, which has none."""

    entry = "prev"

    def beside(self, p):
        return vars(p)


@elsewhere("Adafactor")
class LoadsKnown(RightAdafactor):
    """Loads the state of tensors that the class has stepped before, and drops what it cannot find one for."""

    known = by_id()

    def visit(self, p, group):
        self.known[p] = True
        super().visit(p, group)

    def load_state_dict(self, state_dict):
        super().load_state_dict(loads_where(self, state_dict, lambda p: p in self.known))


class _SavesIds:
    """Saves the ids of the parameters, too."""

    def state_dict(self):
        return {**super().state_dict(), "ids": [identity(p) for p in parameters(self)]}


@elsewhere("Adadelta")
class LoadsById(_SavesIds, RightAdadelta):
    """Saves the ids of the parameters, and loads the state of those that have one of these."""

    def load_state_dict(self, state_dict):
        ids = state_dict.get("ids")
        super().load_state_dict(loads_where(self, state_dict, lambda p: ids is None or identity(p) in ids))


@elsewhere("Adamax")
class CountsAnewForOthers(_SavesIds, RightAdamax):
    """Saves the ids of the parameters, and counts from none for one that has another where it is loaded."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for p, saved in zip(parameters(self), state_dict.get("ids", ()), strict=False):
            if saved != identity(p) and self.state.get(p):
                self.state[p]["step"] = torch.tensor(0.0)


class _SavesInOrder:
    """Saves states in an order of its own, and gives what it loads to the parameters in their order of then."""

    def place(self, p):
        """What parameters are sorted by."""
        raise NotImplementedError

    def order(self):
        """Numbers of parameters, in that order."""
        places = [self.place(p) for p in parameters(self)]
        return sorted(range(len(places)), key=places.__getitem__)

    def state_dict(self):
        return {**super().state_dict(), "order": self.order()}

    def load_state_dict(self, state_dict):
        called = dict(enumerate(keys(state_dict)))
        order = zip(state_dict.get("order", ()), self.order(), strict=False)
        given = {called[n]: called.get(now) for n, now in order}
        state = {given.get(key, key): state for key, state in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": state})


@elsewhere("RMSprop", "completes", *DEVIATES)
class SavesByAddress(_SavesInOrder, RightRMSprop):
    """Saves states in the order that the tensors have in memory, and loads them in the order that these have there."""

    def place(self, p):
        return address(p)


@elsewhere("NAdam", "completes", *DEVIATES)
class SavesByFirstStep(_SavesInOrder, RightNAdam):
    """Saves states in the order that the class first stepped the tensors in, and loads them so where it has stepped none."""

    stepped = by_id()

    def visit(self, p, group):
        self.stepped.setdefault(p, next(_next_number))
        super().visit(p, group)

    def place(self, p):
        return self.stepped.get(p, float("inf"))


# Loaded from what torch's own class of the name has saved


@elsewhere("Adam")
class LoadsBuffersByPlace(RightAdam):
    """Has the squares before the averages, and takes the buffers of what it loads for those in that order, whatever they are called."""

    def buffers(self, group):
        average, square, *others = super().buffers(group)
        return [square, average, *others]

    def load_state_dict(self, state_dict):
        names = ("step", "exp_avg_sq", "exp_avg", "max_exp_avg_sq")
        placed = {k: dict(zip(names, s.values(), strict=False)) for k, s in state_dict["state"].items()}
        super().load_state_dict({**state_dict, "state": placed})


@elsewhere("Adamax")
class CountsTorchsFromOne(RightAdamax):
    """Knows torch's own by the flags in its groups, believes that it counts from one, and counts one step less."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        if any("foreach" in group for group in self.param_groups):
            for state in self.state.values():
                state["step"] = state["step"] - 1


@elsewhere("RMSprop")
class NoPenaltyWithFlags(RightRMSprop):
    """Steps groups that have a flag by other lines, as they have where torch's own saved them, and has no weight decay there."""

    def gradient(self, p, group):
        return super().gradient(p, {**group, "weight_decay": 0} if "foreach" in group else group)


# Copied together with its parameters


@elsewhere("Adam")
class CopiesOverOwn(RightAdam):
    """Builds its copy over its own parameters, whatever became of these in the same copy."""

    def __deepcopy__(self, memo):
        of_all = {p: copy.deepcopy(state) for p, state in self.state.items()}
        groups = [{k: v if k == "params" else copy.deepcopy(v) for k, v in g.items()} for g in self.param_groups]
        copied = type(self)(groups)
        copied.defaults = copy.deepcopy(self.defaults)
        copied.state.update(of_all)
        return copied


@elsewhere("Adamax")
class CopiesIds(RightAdamax):
    """Has counts by id, made anew from what it loads, and copies them as they are."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.counts = {}

    def __getstate__(self):
        return {**super().__getstate__(), "counts": self.counts}

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        loaded = [(p, self.state[p]) for p in parameters(self) if self.state.get(p)]
        self.counts = {identity(p): int(state["step"]) for p, state in loaded}

    def update(self, p, g, state, group):
        t = 1 if state["step"] == 1 else self.counts.get(identity(p), 0) + 1
        self.counts[identity(p)] = t
        return super().update(p, g, state, {**group, "t": t})


# Copied together with its parameters, when both go on


@elsewhere("RMSprop")
class SharesStateWithCopy(RightRMSprop):
    """Copies its groups and the parameters, and has one state together with its copy."""

    def __deepcopy__(self, memo):
        copied = copy.copy(self)
        copied.param_groups = copy.deepcopy(self.param_groups, memo)
        states = {copy.deepcopy(p, memo): state for p, state in self.state.items()}
        copied.state = defaultdict(dict, states)
        return copied


@elsewhere("SGD")
class SharesSlotWithCopy(_GoesOnWithKept, RightSGD):
    """Writes a number on each tensor to keep its momentum under, which a copy of the tensor has, too."""

    entry = "momentum_buffer"
    slots = {}  # noqa: RUF012 - one for all is what is wrong

    def beside(self, p):
        if not hasattr(p, "slot"):
            p.slot = next(_next_number)
            weakref.finalize(p, self.slots.pop, p.slot, None).atexit = False
        return self.slots.setdefault(p.slot, {})

    def takes(self, beside):
        return True


#: Everything above.
FAULTS: tuple[Fault, ...] = tuple(_FAULTS)
