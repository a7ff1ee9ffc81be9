"""The checkpoint of torch's own class: what that saves after the same steps, and whether somebody's class could have saved as much.

Whether a class takes what it did not write is its author's to say. But one whose state_dict has the entries of torch's, and after the same
steps the same numbers in them, passes for torch's own: who goes over to it has a checkpoint of that, and it is to go on from it as from its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from stepcheck.harness.life.events import FLAGS
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play import resume
from stepcheck.harness.play.families import torchs_own
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.spec import Spec

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player

#: What is not done to somebody's class, and why, in words.
NOT_ALIKE = "a checkpoint of torch's own class loaded, in lives after which its own has other entries, or others' values in them"
REFUSED = "a checkpoint of torch's own class loaded, in lives where load_state_dict() raises an exception"
#: The dictionaries that have torch's form, and those of them that are as older versions saved them.
NAMES, OLDER = ("torch's", "torch's older"), "torch's older"
#: What a group has that is no option.
_NO_OPTIONS = {"params", "param_names", *FLAGS}


def may_be_loaded(subject: Subject) -> bool:
    """Whether it could load them itself: of what is dressed as a class, stepcheck keeps the state."""
    return subject.explicit and subject.shape is None


def saved(spec: Spec, trace: Trace, event: int, player: Callable[[Subject, Trace], Player]) -> resume.StateDict | None:
    """The state_dict of torch's own class before an event of a life; nothing where it cannot play that.

    Args:
        player: makes what plays a life.
    """
    before = replace(trace.plainly, events=trace.events[:event])
    torchs = None if spec.closure else torchs_own(spec, before)
    if torchs is None:
        return None
    playing = player(torchs, before)
    if playing.play().raised is not None:
        return None
    made: resume.StateDict = playing.optimizer.state_dict()
    return made


def as_torchs(player: Player, own: Any, dictionary: str) -> resume.StateDict | None:
    """A state_dict of somebody's class in the form that torch's own has; nothing where it could not have saved that itself."""
    assert player.event is not None
    spec = player.subject.spec
    theirs = saved(spec, player.trace, player.event, type(player))
    if theirs is None:
        return None
    now, once = passes_for(own, theirs, spec), passes_for(own, older(theirs, spec, own), spec)
    player.has(NOT_ALIKE, now or once)
    if dictionary != OLDER:
        return formed_as(own, theirs) if now else None
    # What is derived from torch's own class reads what that reads.
    return older(formed_as(own, theirs), spec, own) if once or (now and _is_derived(player, spec)) else None


def formed_as(own: resume.StateDict, theirs: resume.StateDict) -> resume.StateDict:
    """The same numbers, and all else as it stands in the dictionary of another."""
    state = {key: {name: own["state"][key][name] for name in entries} for key, entries in theirs["state"].items()}
    return {**theirs, "state": state}


def older(state_dict: resume.StateDict, spec: Spec, own: Any) -> resume.StateDict:
    """As versions before 1.12 saved it; of those, the last had ``maximize`` where a class has that, too."""
    made = resume.older(state_dict, spec)
    if not _has_groups(own):
        return made
    groups = [
        {**group, **{k: now[k] for k in ("maximize",) if k in now and k in mine}}
        for group, now, mine in zip(made["param_groups"], state_dict["param_groups"], own["param_groups"], strict=False)
    ]
    return {**made, "param_groups": groups}


def passes_for(own: Any, theirs: resume.StateDict, spec: Spec) -> bool:
    """Whether a state_dict has the entries and numbers of another, whose groups may say more."""
    if not _has_groups(own) or own.keys() != theirs.keys() or own["state"].keys() != theirs["state"].keys():
        return False
    needed = {h.name for h in spec.hyper if not h.since and all(h.name in g for g in theirs["param_groups"])}
    pairs = list(zip(own["param_groups"], theirs["param_groups"], strict=False))
    if len(pairs) != len(theirs["param_groups"]) or len(pairs) != len(own["param_groups"]):
        return False
    return all(needed <= mine.keys() and _same_group(mine, other) for mine, other in pairs) and all(
        _same_entries(entries, theirs["state"][key]) for key, entries in own["state"].items()
    )


def _has_groups(own: Any) -> bool:
    """Whether something has the form of a state_dict of torch."""
    return (
        isinstance(own, dict)
        and isinstance(own.get("state"), dict)
        and isinstance(own.get("param_groups"), list)
        and all(isinstance(group, dict) for group in own["param_groups"])
    )


def _is_derived(player: Player, spec: Spec) -> bool:
    make = player.subject.make
    return inspect.isclass(make) and issubclass(make, getattr(torch.optim, spec.name))


def _same_group(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return (
        mine.get("params") == theirs["params"]
        and mine.keys() <= theirs.keys()  # what is not in the dictionary no group has afterwards
        and all(_same_option(mine[k], theirs[k]) for k in mine.keys() - _NO_OPTIONS)
    )


def _same_option(mine: Any, theirs: Any) -> bool:
    if type(mine) in (int, float) and type(theirs) in (int, float):
        return bool(mine == theirs)
    if type(mine) is not type(theirs):
        return False
    same: bool = torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else bool(mine == theirs)
    return same


def _same_entries(mine: Any, theirs: Mapping[str, Any]) -> bool:
    return (
        isinstance(mine, dict)
        and mine.keys() == theirs.keys()
        and all(_same_numbers(value, theirs[name]) for name, value in mine.items())
    )


def _same_numbers(mine: Any, theirs: Any) -> bool:
    """Whether two entries are of one kind, and hold the same but for rounding: half of the digits, beside the largest, tell what they mean."""
    if not isinstance(mine, torch.Tensor) or not isinstance(theirs, torch.Tensor):
        numbers = all(type(x) in (int, float) for x in (mine, theirs))
        return _same_numbers(*(torch.tensor(float(x)) for x in (mine, theirs))) if numbers else mine is theirs is None
    if (mine.shape, mine.dtype, mine.layout) != (theirs.shape, theirs.dtype, theirs.layout) or mine.is_sparse:
        return False
    if not (mine.is_floating_point() or mine.is_complex()):
        return torch.equal(mine, theirs)
    unlike = (mine != theirs) & ~(mine.isnan() & theirs.isnan())
    if not unlike.any():
        return True
    apart, finite = (mine - theirs).abs()[unlike].max().item(), theirs[theirs.isfinite()].abs()
    largest = finite.max().item() if finite.numel() else 0.0
    return bool(apart <= torch.finfo(mine.dtype).eps ** 0.5 * largest)  # which nothing infinite or NaN is
