"""Does a run go on where it was? What a step left of state and parameters is looked at again when the next one begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepcheck.harness.life.memory import copy
from stepcheck.harness.play.terms import Terms
from stepcheck.harness.watch.look import Look, entries, look
from stepcheck.harness.watch.moment import Moment, Quiet
from stepcheck.harness.watch.sampling import Places, places, same, taken

#: Steps in a row that must be undone for it to be no rollback.
UNDONE = 3
_MOST = 16
_COUNTER = "step"
#: Of each parameter, elements of the tensors that a dictionary has for it.
Saved = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]


@dataclass
class Left:
    """What a step left of one parameter.

    Attributes:
        before: its elements before that step.
        memory: where it lay.
    """

    look: Look
    before: Any
    memory: int


class Continuity(Quiet):
    """Compares what a step finds with what the one before left, or with what was loaded.

    Args:
        terms: the names of the class.
        resumed: a ``state_dict`` of the optimizer that the run goes on from.
        certain: whether what a class makes of a dictionary that it loads is known: of somebody's it is theirs to say.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, terms: Terms, *, resumed: Mapping[str, Any] | None, certain: bool
    ) -> None:
        self.terms, self.certain = terms, certain
        self.expected = None if resumed is None else _sampled(optimizer, resumed)
        """A dictionary that the state is to be compared with when the next step begins."""
        self.words = "what it is resumed from"
        self.left: dict[torch.Tensor, Left] = {}
        self.left_at = 0
        self.counters: dict[torch.Tensor, float] = {}
        self.undone = 0
        self._loading: Mapping[str, Any] | None = None
        self._handles = [
            optimizer.register_load_state_dict_pre_hook(self._loads),
            optimizer.register_load_state_dict_post_hook(self._loaded),
        ]

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def forget(self) -> None:
        self.left, self.counters, self.expected, self.undone = {}, {}, None, 0

    def _loads(self, _: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        self._loading = state_dict

    def _loaded(self, optimizer: torch.optim.Optimizer) -> None:
        self.forget()
        # The tensors of the dictionary may be those of the state: what they are now is copied.
        self.expected = None if self._loading is None else _sampled(optimizer, self._loading)
        self.words, self._loading = "what was loaded", None

    def begins(self, moment: Moment) -> None:
        if self.expected is not None:
            self._compare_saved(moment, self.expected)
            self.expected = None
        self._look_for_gone(moment)
        if self.left and moment.number == self.left_at + 1:
            self._compare_left(moment)
        self.left = {}

    def ends(self, moment: Moment) -> None:
        state = moment.optimizer.state
        for p, stepped in moment.stepped:
            self.left[p] = Left(stepped.after, stepped.before.value, p.data_ptr())
            count = stepped.after.state.get(_COUNTER)
            if count is not None and np.size(count) == 1:
                self.counters[p] = float(np.reshape(count, -1)[0])
            elif state.get(p):
                self.counters.setdefault(p, -np.inf)
        self.left_at = moment.number

    # What is compared

    def _look_for_gone(self, moment: Moment) -> None:
        """Parameters that had a state have one, whose counter has not gone back."""
        state = moment.optimizer.state
        moment.found.looked["state-continues"] += len(self.counters)
        gone = {p: "its state is gone" for p in self.counters if not state.get(p)}
        back = {
            p: f"its step counter has gone back from {count:g}"
            for p, count in self.counters.items()
            if moment.watched and p not in gone and self._counts_back(state[p], count)
        }
        if not (gone or back):
            return
        there = {p for _, p in moment.parameters()}
        for p, told in {**gone, **back}.items():
            self.counters.pop(p)
            self.left.pop(p, None)
            if p in there:
                self._see_reset(moment, told, p)

    def _counts_back(self, state: Mapping[Any, Any], former: float) -> bool:
        count = dict(entries(state, self.terms)).get(_COUNTER)
        return count is not None and float(count) < former

    def _see_reset(self, moment: Moment, told: str, p: torch.Tensor) -> None:
        told += ": something has reset it (where that is meant, call watch.forget() then)"
        moment.see("state-continues", "reset", told, p)

    def _compare_left(self, moment: Moment) -> None:
        undone, moved = True, False
        for p, left in self.left.items():
            now = look(p, moment.optimizer.state.get(p) or {}, left.look.at, self.terms, gradient=False)
            moment.found.looked["state-continues"] += 1
            moment.found.looked["steps-remain"] += 1
            self._compare_state(moment, p, left.look, now)
            self._compare_value(moment, p, left, now)
            if not same(left.before, left.look.value):
                moved = True
                undone = undone and same(left.before, now.value)
        self.undone = self.undone + 1 if moved and undone else 0
        if self.undone >= UNDONE:
            told = f"{UNDONE} steps in a row were undone before the next began: all parameters have the values that they had before them"
            moment.see("steps-remain", "undone", told, certain=False)

    def _compare_state(self, moment: Moment, p: torch.Tensor, left: Look, now: Look) -> None:
        changed = [name for name, x in left.state.items() if not same(x, now.state.get(name))]
        if changed:
            fate = "is not what the step before left" if changed[0] in now.state else "is gone"
            self._see_reset(moment, f"{changed[0]} {fate}", p)

    def _compare_value(self, moment: Moment, p: torch.Tensor, left: Left, now: Look) -> None:
        if not same(left.look.value, now.value):
            told = "its value was changed between two steps by something other than the optimizer"
            moment.see("steps-remain", "changed", told, p, certain=False)
        elif p.data_ptr() != left.memory:
            told = "its memory was swapped between two steps (p.data = ...): what keeps the old memory steps something else"
            moment.see("steps-remain", "swapped", told, p, certain=False)

    def _compare_saved(self, moment: Moment, saved: Saved) -> None:
        for p, of_parameter in saved:
            now = moment.optimizer.state.get(p) or {}
            for name, value in of_parameter.items():
                at = places(p.numel(), _MOST, 0, 0, 0)
                moment.found.looked["state-continues"] += 1
                if not _is_loaded(value, now.get(name), at):
                    fate = "differs from" if name in now else "is not there, and is in"
                    told = f"{name} {fate} {self.words}"
                    moment.see("state-continues", "loaded", told, p, certain=self.certain)


def _paired(
    optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]
) -> Iterator[tuple[torch.Tensor, Mapping[str, Any]]]:
    """Each parameter with what a dictionary has for it: parameters stand there by number, in the order of their groups."""
    groups, state = saved.get("param_groups", ()), saved.get("state", {})
    for group, of_saved in zip(optimizer.param_groups, groups, strict=False):
        for p, key in zip(group["params"], of_saved["params"], strict=False):
            if isinstance(state.get(key), Mapping):
                yield p, state[key]


def _sampled(optimizer: torch.optim.Optimizer, saved: Mapping[str, Any]) -> Saved:
    """Some elements of each tensor of a dictionary that has one for each of a parameter's."""
    result: list[tuple[torch.Tensor, dict[str, torch.Tensor]]] = []
    for p, of_parameter in _paired(optimizer, saved):
        at = torch.from_numpy(places(p.numel(), _MOST, 0, 0, 0))
        whole = {
            name: x.detach()
            for name, x in of_parameter.items()
            if isinstance(x, torch.Tensor) and x.numel() == p.numel() > 1 and x.layout is torch.strided
        }
        result.append((p, {name: torch.take(x, at.to(x.device)) for name, x in whole.items()}))
    return result


def _is_loaded(saved: torch.Tensor, now: Any, at: Places) -> bool:
    """Whether a tensor of the state has the elements that were saved, in its own dtype."""
    if not isinstance(now, torch.Tensor) or now.numel() <= at[-1]:
        return False
    return same(copy(saved.to(now.dtype)), taken(now, at))
