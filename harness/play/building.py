"""Optimizers are constructed, and given a group more; what the caller gave stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from stepcheck.harness.life.events import AddGroup, Option, keywords
from stepcheck.harness.life.schedules import as_given
from stepcheck.harness.play.recording import CALLERS_GROUPS
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.usage import UsageError

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


def construct(
    player: Player,
    subject: Subject,
    options: Sequence[Mapping[str, Option]],
    form: str,
    parameters: Sequence[torch.Tensor] | None = None,
) -> Any:
    """A new optimizer with the groups that there are by now, over the life's own parameters or others like them."""
    player.constructing = True
    options = subject.complete_all(options)
    over = player.parameters if parameters is None else parameters
    members = [[over[i] for i in g.parameters] for g in player.groups]
    groups = [
        _as_given(player, g.parameters, ps, o, form) for g, ps, o in zip(player.groups, members, options, strict=True)
    ]
    player.keywords = keywords(options, form) | (subject.keyword_only & options[0].keys())
    shared = {k: groups[0][k] for k in options[0] if k in player.keywords}
    for group in groups:
        for name in shared:
            group.pop(name, None)
    if len(groups) == 1 and form not in ("dicts", "mixed"):
        optimizer = subject.make(groups[0]["params"], **shared, **switches(player, subject))
        _built(player, optimizer)
        return optimizer
    if subject.explicit:
        # What a new group lacks it takes from the first.
        shared |= {k: v for k, v in groups[0].items() if k != "params"}
    before = [_entries(g) for g in groups]
    given: Iterable[Any] = iter(groups) if form == "iterator" else tuple(groups) if form == "tuple" else groups
    optimizer = subject.make(given, **shared, **switches(player, subject))
    _built(player, optimizer)
    unchanged(player, CALLERS_GROUPS, before, [_entries(g) for g in groups])
    return optimizer


def switches(player: Player, subject: Subject) -> dict[str, Any]:
    """The keywords that select an implementation: a mode's, and the flags of the life."""
    return {**subject.mode_options, **dict.fromkeys(player.trace.flags, True)}


def _built(player: Player, optimizer: Any) -> None:
    player.constructing = False
    player.recording.built = type(optimizer)
    inner = (type(v) for v in getattr(optimizer, "__dict__", {}).values() if isinstance(v, torch.optim.Optimizer))
    player.recording.wrapped = next(inner, None)
    train(player.subject, optimizer)
    for needed in ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups"):
        if not hasattr(optimizer, needed):
            raise UsageError(
                f"{player.subject.name}: built a {type(optimizer).__name__}, which has no {needed}; it is no optimizer"
            )


def train(subject: Subject, optimizer: Any) -> None:
    """Put a new optimizer, or a copy of one, into the mode in which it steps, where there are modes."""
    if subject.takes is not None and subject.takes.modes:
        optimizer.train()


def _as_given(
    player: Player, members: Sequence[int], tensors: Sequence[torch.Tensor], options: Mapping[str, Option], form: str
) -> dict[str, Any]:
    """A group's dictionary."""
    params: Any = list(tensors)
    if form == "tuple":
        params = tuple(tensors)
    elif form == "iterator":
        params = iter(tensors)
    elif form == "named":
        params = [(f"p{i}", p) for i, p in zip(members, tensors, strict=True)]
    return {
        "params": params,
        **{k: as_given(v, player.subject.device, player.trace.spelling) for k, v in options.items()},
    }


def unchanged(player: Player, what: str, before: Any, after: Any) -> None:
    """That what a caller gave is as it was."""
    player.note("dicts-unchanged", before == after, what, f"changes {what}")


def add_group(player: Player, what: AddGroup) -> None:
    """A group more."""
    # What the constructor was given for all groups would hold for this one too, unless it is told otherwise.
    names = player.subject.options if player.subject.explicit else player.keywords
    options = {**{k: player.defaults[k] for k in names}, **what.group.options}
    options = player.subject.complete(options)
    named = any("param_names" in g for g in player.optimizer.param_groups)
    members = what.group.parameters
    group = _as_given(player, members, [player.parameters[i] for i in members], options, "named" if named else "list")
    before = _entries(group)
    player.optimizer.add_param_group(group)
    unchanged(player, "the group given to add_param_group()", before, _entries(group))
    player.groups.append(what.group)
    player.options.append(dict(what.group.options))
    player.hyper.append(player.hyper_of(what.group.options))
    for i in members:
        player.recording.initial_state[i] = player.state(i)
    player.schedule = None  # a schedule knows the groups of its beginning alone
    if player.rehearsal is not None:
        player.rehearsal.add({**player.defaults, **what.group.options})


def _entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller's dictionary holds; a list of parameters by its members."""
    return {
        k: (type(v).__name__, list(map(id, v))) if isinstance(v, (list, tuple)) else id(v) for k, v in group.items()
    }
