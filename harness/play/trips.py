"""Round trips: the life goes on with another optimizer, that has the state of this one."""

from __future__ import annotations

import copy
import pickle
from typing import TYPE_CHECKING, Any

import torch

from stepcheck.harness.life import schedules
from stepcheck.harness.life.events import STAYS, Reload
from stepcheck.harness.play import resume, torchs
from stepcheck.harness.play.building import construct, switches, train, unchanged
from stepcheck.harness.play.families import sibling
from stepcheck.harness.play.handling import NOT_COPIED, keeps_all
from stepcheck.harness.play.recording import ReloadRecord
from stepcheck.harness.play.signature import plain_step
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.play.tensors import give_ones
from stepcheck.harness.play.untouched import foremost

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


def reload(player: Player, event: int, what: Reload) -> None:
    """Go on with another optimizer."""
    player.latest = None
    if what.dictionary in resume.AGES and what.way not in ("copied", "unpickled"):
        _age(player, resume.AGES[what.dictionary])
    saved, saved_options = [player.state(i) for i in range(len(player.parameters))], player.options_now()
    if what.way in ("copied", "unpickled"):
        _copy(player, what)
        player.hooks.kinds.clear()  # whether a copy has them is its own affair
        player.schedule = None
    elif what.way != STAYS:
        playing = player.playing
        player.optimizer = _resumed(player, what)
        if player.playing is not playing:
            player.recording.handovers.append((event, player.playing))
    loaded = [player.state(i) for i in range(len(player.parameters))]
    player.recording.reloads.append(ReloadRecord(event, saved, loaded, saved_options, player.options_now()))


def _copy(player: Player, what: Reload) -> None:
    """Go on with a copy; where that is made together with the parameters, the original goes on as well."""
    way = what.way if what.way == "copied" or player.has("pickling", _pickles(player)) else "copied"
    duplicate = resume.copied if way == "copied" else resume.unpickled
    original, before = player.optimizer, list(player.parameters)
    together = what.afresh and player.has(NOT_COPIED, keeps_all(player)) and player.tensors.renew()
    player.optimizer = duplicate(original, before, player.parameters)
    train(player.subject, player.optimizer)
    if together:
        give_ones(player.subject, before)
        plain_step(original)()
        player.hooks.calls.clear()


def _pickles(player: Player) -> bool:
    """Whether somebody's optimizer can be pickled: one that holds a function or a file cannot, and need not."""
    try:
        pickle.dumps(player.optimizer.__dict__ if player.subject.explicit else None)
    except Exception:  # noqa: BLE001 - whatever pickle says of it
        return False
    return True


def _age(player: Player, steps: int) -> None:
    """Let the optimizer be older: somebody's class by taking steps, with gradients of zeros."""
    if not player.subject.explicit:
        resume.age(player.optimizer, player.subject.spec, steps)
        return
    if not resume.ages(player.trace):
        return
    kept = [p.grad for p in player.parameters]
    for p in player.parameters:
        zeros = torch.zeros_like(p).detach()
        sparse = player.subject.spec.sparse == "only"
        p.grad = None if not p.requires_grad else zeros.to_sparse() if sparse else zeros
    player.ageing = True
    step = plain_step(player.optimizer)
    for _ in range(resume.AGED_BY):
        step()
    player.ageing = False
    for p, gradient in zip(player.parameters, kept, strict=True):
        p.grad = gradient
    player.hooks.calls.clear()
    player.begun.update(range(len(player.parameters)))
    player.recording.aged = player.event if player.recording.aged is None else player.recording.aged


def _resumed(player: Player, what: Reload) -> Any:
    """A new optimizer that has loaded the state_dict."""
    source = player.optimizer.state_dict()
    player.hooks.expect_of("state_dict", player.subject, player.optimizer)
    playing = sibling(player.subject, what.into, player.trace)
    theirs = _as_torchs(player, source, what.dictionary)
    if what.afresh:
        player.tensors.renew()
    optimizer = _made(player, playing, what.form)
    if playing is not player.playing:
        source = resume.flagged(source, playing.mode_options)
    if what.dictionary == "older":
        source = resume.older(source, player.subject.spec)
    elif what.dictionary == "foreign":
        source = resume.foreign(source)
    if theirs is not None:
        if player.has(torchs.REFUSED, _takes(optimizer, theirs)):
            source = theirs
        else:
            optimizer = _made(player, playing, what.form)
    way = what.way if what.way not in ("pickled", "saved") or player.has("pickling", _pickles(player)) else "deepcopied"
    source = resume.carried(way, source, weights_only=resume.weights_only(player.trace))
    before = resume.outline(source)
    optimizer.load_state_dict(source)
    player.hooks.expect_of("load_state_dict", player.subject, player.optimizer)
    unchanged(player, "the state_dict given to load_state_dict()", before, resume.outline(source))
    if what.way == "memory":  # else nobody but the new optimizer has the dictionary
        _note_sharing(player, source, optimizer)
    if what.dictionary == "older":
        # An older dictionary does not say which implementation it is for.
        for group in optimizer.param_groups:
            group.update(switches(player, playing))
    player.playing = playing
    return optimizer


def _made(player: Player, playing: Subject, form: str) -> Any:
    """A new optimizer, with the schedule and the hooks of the one before."""
    # Somebody's class is built as its user builds it; torch's own must find all options in the dictionary.
    given = [g.options if player.subject.explicit else {} for g in player.groups]
    optimizer = construct(player, playing, given, form)
    if player.schedule is not None and player.rehearsal is not None:
        state = player.schedule.state_dict()
        player.schedule = schedules.attach(player.kind_of_schedule, optimizer, cycle=player.rehearsal.cycle)
        player.schedule.load_state_dict(state)
    for kind in player.hooks.kinds:
        player.hooks.register(optimizer, kind)
    return optimizer


def _as_torchs(player: Player, own: Any, dictionary: str) -> resume.StateDict | None:
    """A dictionary of somebody's class as torch's own class saves it, where the life asks for that and it could be its own."""
    if dictionary not in torchs.NAMES or not torchs.may_be_loaded(player.subject):
        return None
    return torchs.as_torchs(player, own, dictionary)


def _takes(optimizer: Any, source: resume.StateDict) -> bool:
    """Whether somebody's class loads a dictionary that is not its own: to refuse it is its right."""
    try:
        optimizer.load_state_dict(copy.deepcopy(source))
    except Exception:  # noqa: BLE001 - whatever it raises is its refusal
        return False
    return True


def _note_sharing(player: Player, source: Any, optimizer: Any) -> None:
    if not isinstance(source, dict):
        return
    memory = {t.untyped_storage().data_ptr() for _, t in resume.tensors(source.get("state")) if t.numel()}
    state = getattr(optimizer, "state", {})
    for i, p in enumerate(player.parameters):
        shared = [n for n, t in resume.tensors(state.get(p, {})) if t.untyped_storage().data_ptr() in memory]
        told = f"loads {foremost(shared)} as the very tensor of the source, so that the two go on together"
        player.note("loaded-state-apart", not shared, "state", told, i)
