"""What users do to parameters, state and groups between two steps; and steps that nobody looks at."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from stepcheck.harness.life.events import OF_ALL, Group, Handle, Option, Run, Step
from stepcheck.harness.life.memory import identical, rounded
from stepcheck.harness.life.values import in_reals
from stepcheck.harness.play.recording import EndOfLifeError, ReloadRecord, State
from stepcheck.harness.play.signature import plain_step

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


#: Seconds that a run of steps of somebody's class may take; there a life ends that would take longer.
_MOST_SECONDS = 3.0


#: What is not done to somebody's class, and why, in words.
NO_TIME = f"runs of steps: one takes it over {_MOST_SECONDS:g} s"
NO_COPIES = (
    "parameters overwritten or swapped, a state_dict rolled back: its state has tensors that may be copies of them"
)
NOT_ANEW = "state taken away, parameters appended: it makes the state of a parameter when it is given it, or elsewhere than torch's own class"
NOT_KEYED = "parameters removed from and appended to groups, in lives where its state does not show that it is kept by parameter"
NOT_COPIED = "copied together with its parameters, in lives where its state does not show all that it keeps of them"
NOT_TORCHS = "state_dict kept and rolled back, groups replaced: it is no torch.optim.Optimizer"
NOT_LATE = (
    "a buffer turned on after steps without it: the next step raises an exception, as that of torch's own class does"
)


class Kept(NamedTuple):
    """A state_dict, and what held when it was saved."""

    state_dict: Any
    states: Sequence[State]
    options: list[dict[str, Any]]
    held: list[dict[str, Option]]
    groups: list[Group]


def run(player: Player, event: int, what: Run) -> None:
    """Steps with the gradients that there are, of which none is looked at."""
    player.latest = None
    step, start = plain_step(player.optimizer), time.perf_counter()
    for n in range(what.steps):
        step()
        if n % 32 == 31 and time.perf_counter() - start > _MOST_SECONDS and player.subject.explicit:
            player.recording.lacks.add(NO_TIME)
            raise EndOfLifeError
    player.hooks.calls.clear()
    player.begun.update(range(len(player.parameters)))
    _unseen(player, event)


def handle(player: Player, event: int, what: Handle) -> None:
    """Do it, where the optimizer has what is done to."""
    player.latest = None
    if player.knows(what.parameter) or what.how == "appended" or what.how in OF_ALL:
        _HANDLES[what.how](player, event, what)


def is_late(player: Player) -> bool:
    """Whether this is a step of somebody's class for which a group needs a buffer that none of its steps before did."""
    if not player.subject.explicit or player.event is None or not isinstance(player.trace.events[player.event], Step):
        return False
    for n, hyper in enumerate(player.hyper):
        before = [record.hyper[n] for record in player.recording.steps if n < len(record.hyper)]
        for b in player.subject.spec.buffers:
            if before and b.present(hyper) and not any(b.present(h) for h in before):
                return True
    return False


def keeps_all(player: Player) -> bool:
    """Whether it keeps all that it has of each parameter in its state: what it keeps by identity is not for copies of them."""
    if not player.subject.explicit:
        return True
    along = (n for record in player.recording.steps for n, p in enumerate(record.parameters) if p.gradient is not None)
    return all(len(player.state(i)) >= _needed(player, i) for i in player.known() & {*along, *player.begun})


def _unseen(player: Player, event: int) -> None:
    """What somebody's class keeps out of sight is not known from here on."""
    player.recording.aged = event if player.recording.aged is None else player.recording.aged


def _has_state(player: Player) -> bool:
    """Whether its state is where torch's own class has it, and made in steps: what else keeps one need not look there, nor make it anew."""
    torchs = isinstance(player.optimizer, torch.optim.Optimizer) and isinstance(player.optimizer.state, dict)
    return player.has(NOT_ANEW, torchs and not _made_at_once(player))


def _made_at_once(player: Player) -> bool:
    """Whether somebody's class makes the state of a parameter when it is given it."""
    return player.subject.explicit and any(player.recording.initial_state)


def _is_torchs(player: Player) -> bool:
    return player.has(NOT_TORCHS, isinstance(player.optimizer, torch.optim.Optimizer))


def _written(player: Player, _: int, what: Handle) -> None:
    if not _keeps_a_copy(player, what.parameter):
        p = player.parameters[what.parameter]
        values = what.values.realise(in_reals(tuple(p.shape), player.trace.parameters[what.parameter].dtype))
        p.detach().copy_(rounded(values, p.dtype))


def _swapped(player: Player, event: int, what: Handle) -> None:
    i = what.parameter
    p = player.trace.parameters[i]
    inside = p.within is not None or any(q.within == i for q in player.trace.parameters)
    if inside or _keeps_a_copy(player, i):
        return
    player.tensors.place(i, player.tensors.allocate(i, replace(p, values=what.values)))
    _unseen(player, event)


def _keeps_a_copy(player: Player, index: int) -> bool:
    """Whether it may keep the parameter, or what rounding lost of it, in its state: what is written beside those is not looked at.

    Of somebody's class, any tensor that the reference does not know may be that.
    """
    if any(b.of for b in player.subject.spec.buffers):
        return True
    if not player.subject.explicit:
        return False
    known, elements = {b.name for b in player.subject.spec.buffers}, player.parameters[index].numel()
    state = player.state(index)
    return not player.has(NO_COPIES, not any(n not in known and np.size(x) >= elements for n, x in state.items()))


def _cleared(player: Player, event: int, _: Handle) -> None:
    if _has_state(player):
        player.optimizer.state.clear()
        _begin_anew(player, event, range(len(player.parameters)))


def _replaced(player: Player, event: int, _: Handle) -> None:
    if _has_state(player):
        player.optimizer.state = defaultdict(dict)
        _begin_anew(player, event, range(len(player.parameters)))


def _forgotten(player: Player, event: int, what: Handle) -> None:
    p = player.parameters[what.parameter]
    if _has_state(player) and p in player.optimizer.state:
        del player.optimizer.state[p]
        _begin_anew(player, event, [what.parameter])


def _begin_anew(player: Player, event: int, parameters: Any) -> None:
    """What is not there any more begins in its initial state."""
    player.begun.difference_update(parameters)
    _unseen(player, event)


def _keep(player: Player, _: int, __: Handle) -> None:
    # The state of a parameter that is in no group any more is no part of a state_dict: torch raises a KeyError.
    everyone = {i for g in player.trace.groups for i in g.parameters} <= player.known()
    if _is_torchs(player) and everyone:
        saved = copy.deepcopy(player.optimizer.state_dict())
        player.hooks.expect_of("state_dict", player.subject, player.optimizer)
        states = [player.state(i) for i in range(len(player.parameters))]
        held = [dict(o) for o in player.options]
        player.kept = Kept(saved, states, player.options_now(), held, list(player.groups))


def _roll_back(player: Player, event: int, _: Handle) -> None:
    kept = player.kept
    if kept is None or kept.groups != player.groups:  # of other groups, it would have to be refused
        return
    if any(
        _keeps_a_copy(player, i) for i in range(len(player.parameters))
    ):  # what was kept is of the parameters as they were
        return
    before = [player.state(i) for i in range(len(player.parameters))]
    player.optimizer.load_state_dict(copy.deepcopy(kept.state_dict))
    player.hooks.expect_of("load_state_dict", player.subject, player.optimizer)
    for n, options in enumerate(kept.held):
        player.options[n] = dict(options)
        player.hyper[n] = player.hyper_of(options)
    player.schedule = player.rehearsal = None
    player.begun.update(range(len(player.parameters)))
    loaded = [player.state(i) for i in range(len(player.parameters))]
    left = [_left(*of_one) for of_one in zip(before, kept.states, loaded, strict=True)]
    player.recording.reloads.append(ReloadRecord(event, kept.states, loaded, kept.options, player.options_now(), left))
    _unseen(player, event)


def _left(before: State, saved: State, loaded: State) -> list[str]:
    """What is still there that the dictionary has not; a state of zeros may have been made anew."""
    return [
        name
        for name, value in loaded.items()
        if name not in saved and name in before and np.any(value) and identical(before[name], value)
    ]


def _is_keyed(player: Player) -> bool:
    """Whether it keeps all that it has of a parameter in its state: what keeps something by place is for groups that stay as they are."""
    kept = not player.subject.explicit or any(_is_whole(player, i) for i in player.known())
    kept = kept and not (player.subject.shape is not None and player.subject.shape.shares)
    return player.has(NOT_KEYED, isinstance(player.optimizer, torch.optim.Optimizer) and kept)


def _is_whole(player: Player, index: int) -> bool:
    """Whether a parameter has a state, with as many entries as the reference has buffers, whatever they are called."""
    return len(player.state(index)) >= max(_needed(player, index), 1)


def _needed(player: Player, index: int) -> int:
    """How many buffers the reference has of a parameter, by itself."""
    hyper, shape = player.hyper[player.trace.group_of[index]], player.trace.parameters[index].shape
    own = (b for b in player.subject.spec.buffers if not b.of_group)
    return sum(b.present(hyper) and b.shape(shape) is not None for b in own)


def _removed(player: Player, _: int, what: Handle) -> None:
    if not _is_keyed(player):
        return
    n = player.trace.group_of[what.parameter]
    members = player.optimizer.param_groups[n]["params"]
    if len(members) > 1 and isinstance(members, list):
        at = next(k for k, p in enumerate(members) if p is player.parameters[what.parameter])
        del members[at]
        group = player.groups[n]
        player.groups[n] = Group(tuple(i for i in group.parameters if i != what.parameter), group.options)


def _appended(player: Player, _: int, what: Handle) -> None:
    if not player.knows(what.parameter):
        anew = player.has(NOT_ANEW, not _made_at_once(player) or bool(player.state(what.parameter)))
        if not (anew and _is_keyed(player)):
            raise EndOfLifeError
        n = player.trace.group_of[what.parameter]
        player.optimizer.param_groups[n]["params"].append(player.parameters[what.parameter])
        group = player.groups[n]
        player.groups[n] = Group((*group.parameters, what.parameter), group.options)


def _regrouped(player: Player, _: int, __: Handle) -> None:
    if _is_torchs(player):
        player.optimizer.param_groups[:] = [dict(group) for group in player.optimizer.param_groups]


_HANDLES: dict[str, Callable[[Player, int, Handle], None]] = {
    "written": _written, "swapped": _swapped, "cleared": _cleared, "replaced": _replaced, "forgotten": _forgotten,
    "kept": _keep, "rolled back": _roll_back, "removed": _removed, "appended": _appended, "regrouped": _regrouped,
}  # fmt: skip
