"""Ways for the state of one optimizer to get to the next."""

from __future__ import annotations

import copy
import io
import math
import pickle
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from stepcheck.harness.life.events import DICTIONARIES, FLAGS
from stepcheck.harness.life.trace import Trace
from stepcheck.reference.spec import Spec

StateDict = dict[str, Any]


def weights_only(trace: Trace) -> bool:
    """Whether torch.load gives back what torch.save was given and nothing but tensors and plain numbers: NumPy's numbers are neither."""
    return trace.spelling != "numpy"


def carried(way: str, state_dict: StateDict, *, weights_only: bool = True) -> StateDict:
    """A state_dict after the way that it went."""
    if way == "saved":
        file = io.BytesIO()
        torch.save(state_dict, file)
        file.seek(0)
        loaded: StateDict = torch.load(file, weights_only=weights_only)
        return loaded
    if way == "deepcopied":
        return copy.deepcopy(state_dict)
    if way == "pickled":
        # What is unpickled here was pickled a moment ago, in this process.
        unpickled: StateDict = pickle.loads(pickle.dumps(state_dict))  # noqa: S301
        return unpickled
    return state_dict


def counters(spec: Spec) -> list[str]:
    """The buffers that were Python numbers in older versions."""
    return [] if spec.closure else [b.name for b in spec.buffers if b.per_parameter]


#: Their first release had ``maximize`` already.
_RECENT = ("Adafactor", "Muon")


def older(state_dict: StateDict, spec: Spec) -> StateDict:
    """As versions of torch before 1.12 saved it: numbers for counters, no flags, no ``maximize``."""
    numbered = counters(spec)
    dropped = FLAGS if spec.name in _RECENT else (*FLAGS, "maximize")

    def numbers(state: Mapping[str, Any]) -> dict[str, Any]:
        return {
            k: v.item() if k in numbered and isinstance(v, torch.Tensor) and v.numel() == 1 else v
            for k, v in state.items()
        }

    def plain(group: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in group.items() if k not in dropped or (k == "maximize" and v)}

    state = {k: numbers(s) if isinstance(s, dict) else s for k, s in state_dict["state"].items()}
    return {**state_dict, "state": state, "param_groups": [plain(g) for g in state_dict["param_groups"]]}


def foreign(state_dict: StateDict) -> StateDict:
    """Another program's: parameters have other identifiers, entries stand in another order, and some are unknown here."""

    def renamed(key: Any) -> Any:
        return 1000 - 7 * key if isinstance(key, int) else key

    groups = [
        {"comment": "somebody else's", **g, "params": [renamed(k) for k in g["params"]]}
        for g in state_dict["param_groups"]
    ]
    state = {renamed(k): s for k, s in reversed(state_dict["state"].items())}
    return {**state_dict, "version": 7, "param_groups": groups, "state": state}


#: By how many steps an optimizer grows older that a life has no time for, by the dictionary that says so: more than bfloat16 (256) or
#: float16 (2048) count, and enough for a rule that changes with time; and shortly before float32 and a 32-bit integer cease to count.
AGES = {"aged": 10_000, "aged to 2^24": (1 << 24) - 4, "aged to 2^31": (1 << 31) - 4}
assert all(name in DICTIONARIES for name in AGES)
#: Steps that somebody's class is let take instead: what else it keeps of its age, and where, is not known. More than an int8 and bfloat16 count,
#: and no multiple of a period that a rule would have.
AGED_BY = 307
#: Elements of all parameters, beyond which that takes too long: there are classes that go through them one by one.
_AGED_ELEMENTS = 128


def ages(trace: Trace) -> bool:
    """Whether somebody's class is let grow older in a life."""
    return sum(math.prod(p.shape) for p in trace.parameters) <= _AGED_ELEMENTS


def counts(spec: Spec) -> list[str]:
    """The buffers that count steps."""
    return [b.name for b in spec.buffers if b.per_parameter and b.unit == "steps"]


def age(optimizer: Any, spec: Spec, steps: int) -> None:
    """Let an optimizer have taken so many steps more: all that is computed from their number is as it is then."""
    for state in getattr(optimizer, "state", {}).values():
        for name in counts(spec) if isinstance(state, dict) else ():
            # Some have a state before they take a step; that has no age.
            if isinstance(state.get(name), torch.Tensor | int | float) and state[name] > 0:
                state[name] = state[name] + steps


def flagged(state_dict: StateDict, flags: Mapping[str, bool]) -> StateDict:
    """With the flags of another implementation."""
    groups = [
        {**g, **{k: flags.get(k, None if k == "foreach" else False) for k in FLAGS if k in g}}
        for g in state_dict["param_groups"]
    ]
    return {**state_dict, "param_groups": groups}


def copied(optimizer: Any, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> Any:
    """A deep copy of the optimizer itself, over the same parameters, or over copies of them."""
    return copy.deepcopy(optimizer, {id(p): q for p, q in zip(before, after, strict=True)})


def unpickled(optimizer: Any, before: Sequence[torch.Tensor], after: Sequence[torch.Tensor]) -> Any:
    """The optimizer itself, pickled and unpickled, over the same parameters or copies; copied where its class cannot be imported."""
    cls = type(optimizer)
    if getattr(sys.modules.get(cls.__module__), cls.__qualname__, None) is not cls:
        return copied(optimizer, before, after)
    file = io.BytesIO()
    _Pickler(file, before).dump(optimizer)
    file.seek(0)
    return _Unpickler(file, after).load()


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self.numbers = {id(p): n for n, p in enumerate(parameters)}

    def persistent_id(self, obj: Any) -> int | None:
        return self.numbers.get(id(obj))


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, parameters: Sequence[torch.Tensor]) -> None:
        super().__init__(file)
        self.parameters = parameters

    def persistent_load(self, pid: Any) -> torch.Tensor:
        parameter: torch.Tensor = self.parameters[pid]
        return parameter


def outline(x: Any) -> Any:
    """What a dictionary holds, to see whether it is the same later: keys and objects, tensors by identity and version."""
    if isinstance(x, dict):
        return {k: outline(v) for k, v in x.items()}
    if isinstance(x, (list, tuple)):
        return (type(x).__name__, [outline(v) for v in x])
    if isinstance(x, torch.Tensor):
        return (id(x), x._version)  # noqa: SLF001 - what autograd counts writes with
    return repr(x)


def tensors(x: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a state of nested dictionaries and lists, each with the name of the entry that it stands in."""
    entries = x.items() if isinstance(x, dict) else enumerate(x) if isinstance(x, (list, tuple)) else ()
    for name, value in entries:
        if isinstance(value, torch.Tensor):
            yield str(name), value
        else:
            for inner, tensor in tensors(value):
                yield f"{name}[{inner}]", tensor
