"""What each kind of event does to the optimizer, or asks of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from stepcheck.harness.life import schedules
from stepcheck.harness.life.events import (
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Handle,
    Hook,
    Refuse,
    Reload,
    Run,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
    ZeroGrad,
    of_every_event,
)
from stepcheck.harness.life.memory import values_of
from stepcheck.harness.life.schedules import as_given
from stepcheck.harness.play import handling, spoil, validation
from stepcheck.harness.play.building import add_group, construct
from stepcheck.harness.play.failing import fail
from stepcheck.harness.play.recording import IdleRecord
from stepcheck.harness.play.signature import plain_step, takes_keyword
from stepcheck.harness.play.steps import step
from stepcheck.harness.play.tensors import as_parameter
from stepcheck.harness.play.trips import reload
from stepcheck.harness.play.untouched import changes

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


class Play(NamedTuple):
    """How a kind of event is played.

    Attributes:
        play: is given the player, the index of the event, and the event.
        keeps_defaults: the optimizer's own defaults must stay as they were.
    """

    play: Callable[[Player, int, Any], None]
    keeps_defaults: bool = False


def _between(play: Callable[[Player, Any], list[int] | None], *, keeps_defaults: bool = False) -> Play:
    """What is no step: parameters and state are to be left alone. ``play`` may tell whose gradients it left."""

    def played(player: Player, event: int, what: Event) -> None:
        before, known = player.snapshot(), player.known()
        left = play(player, what) or []
        player.latest = None
        player.latest = player.snapshot()
        new = player.known() - known
        touched = [
            [] if i in new else changes(b, a) for i, (b, a) in enumerate(zip(before, player.latest, strict=True))
        ]
        player.recording.idle.append(IdleRecord(event, touched, left))

    return Play(played, keeps_defaults)


def _zero_grad(player: Player, what: ZeroGrad) -> list[int]:
    """Parameters whose gradient is left."""
    had = [p.grad is not None for p in player.parameters]
    inherits_it = isinstance(player.optimizer, torch.optim.Optimizer)  # whoever calls one of those may name it
    if not inherits_it and not takes_keyword(player.optimizer.zero_grad, "set_to_none"):
        player.optimizer.zero_grad()
        return [i for i, p in enumerate(player.parameters) if player.knows(i) and _any(p.grad)]
    player.optimizer.zero_grad(set_to_none=what.set_to_none)
    left = []
    if not what.set_to_none:
        taken = [i for i, p in enumerate(player.parameters) if had[i] and p.grad is None]
        told = "takes the gradient away, where it should fill it with zeros"
        player.note("between-steps", not taken, "gradient taken", told, taken[0] if taken else None)
    for i, p in enumerate(player.parameters):
        if player.knows(i) and p.grad is not None and (what.set_to_none or _any(p.grad)):
            left.append(i)
    return left


def _set_option(player: Player, what: SetOption) -> None:
    groups = player.optimizer.param_groups
    terms = player.subject.terms
    stands = terms.ours(groups[what.group]).get(what.option)
    given = as_given(what.value, player.subject.device, player.trace.spelling)
    if what.in_place and isinstance(stands, torch.Tensor):
        stands.fill_(given)
        # It may be the tensor of other groups, too.
        changed = [n for n, group in enumerate(groups) if terms.ours(group).get(what.option) is stands]
    else:
        groups[what.group].update(terms.theirs({what.option: given}))
        changed = [what.group]
    for n in changed:
        player.force(n, {what.option: what.value})
        if player.rehearsal is not None and what.option in schedules.SCHEDULED:
            player.rehearsal.set(n, what.option, what.value)


def _freeze(player: Player, what: Freeze) -> None:
    if not player.subject.differentiable:
        player.parameters[what.parameter].requires_grad_(not what.frozen)


def _hook(player: Player, what: Hook) -> None:
    if player.has("hooks", hasattr(player.optimizer, "register_step_pre_hook")):
        player.hooks.add(player.optimizer, what.kind)


def _schedule_step(player: Player, _: ScheduleStep) -> None:
    if player.schedule is not None and player.rehearsal is not None:
        player.rehearsal.advance()
        schedules.advance(player.schedule)
        _follow_schedule(player)


def _refuse(player: Player, what: Refuse) -> None:
    player.recording.attempts.append(validation.attempted(player.subject, what))


def _accumulate(player: Player, _: int, what: Accumulate) -> None:
    player.tensors.add(what.gradients)


def _schedule(player: Player, what: Schedule) -> None:
    if not player.is_torch("schedules"):
        return
    if player.rehearsal is None:
        complete = [{**player.defaults, **o} for o in player.options]
        player.rehearsal = schedules.Rehearsal(complete, cycle=_may_cycle_momentum(player))
    player.kind_of_schedule = what.kind
    player.rehearsal.attach(what.kind)
    player.schedule = schedules.attach(what.kind, player.optimizer, cycle=player.rehearsal.cycle)
    _follow_schedule(player)


def _may_cycle_momentum(player: Player) -> bool:
    # With momentum, sparse gradients have no meaning for some. Whether momentum can be turned on when there was none, and no
    # buffer for it, somebody's class need not say.
    begins = player.subject.explicit and any(getattr(h, "momentum", 1) == 0 for h in player.hyper)
    cycled = [name for name in ("momentum", "betas") if name in getattr(player.optimizer, "defaults", ())]
    # What a factory does not take is not followed either.
    known = bool(cycled) and all(name in player.subject.options for name in cycled)
    return known and not begins and not player.trace.given_sparse


def _follow_schedule(player: Player) -> None:
    assert player.rehearsal is not None
    for n, options in enumerate(player.rehearsal.options()):
        player.force(n, {k: v for k, v in options.items() if k in player.subject.options})


def _spoil(player: Player, _: int, what: Spoil) -> None:
    """Spoil the state of optimizers of their own; the life goes on as if nothing had been tried."""
    if not player.spoils:
        return
    # Another mode, that a round trip led into, is asked in lives of its own.
    if not player.knows(what.parameter) or player.playing.name != player.subject.name:
        return
    keywords = player.keywords
    dtypes = spoil.dtypes(player.trace.parameters)
    another = functools.partial(_another, player, dtypes)
    spec = player.subject.spec
    trial = spoil.Trial(
        what,
        another,
        lambda optimizer: plain_step(optimizer)(),
        dtypes,
        sparse=spec.sparse == "only",
        mixes=not spec.elementwise,
    )
    try:
        arrival = trial.arrival()
    except spoil.NothingToSpoilError:
        player.recording.lacks.add("state")
        return
    finally:
        player.keywords, player.latest, player.constructing = keywords, None, False
    cause, told = (arrival.cause, arrival.told) if arrival is not None else ("", "")
    player.note("malformed-state", arrival is None, cause, told, what.parameter, spoilt=arrival)


def _another(player: Player, dtypes: Sequence[str]) -> spoil.Copy:
    """A new optimizer with the options that hold by now, over parameters of the same shapes."""
    pairs = zip(player.parameters, dtypes, strict=True)
    parameters = [as_parameter(player.subject, spoil.plain(p, dtype)) for p, dtype in pairs]
    return construct(player, player.playing, player.options, player.trace.form, parameters), parameters


def _any(gradient: torch.Tensor | None) -> bool:
    """Whether there is a gradient that is not zero."""
    return gradient is not None and bool(values_of(gradient).any())


#: How each kind of event is played.
PLAYS = of_every_event(
    {
        Step: Play(step, keeps_defaults=True),
        Accumulate: Play(_accumulate),
        ZeroGrad: _between(_zero_grad, keeps_defaults=True),
        SetOption: _between(_set_option),
        Reload: Play(reload),
        AddGroup: _between(add_group),
        Freeze: _between(_freeze),
        Hook: _between(_hook),
        Schedule: _between(_schedule),
        ScheduleStep: _between(_schedule_step),
        Fail: Play(fail, keeps_defaults=True),
        Refuse: _between(_refuse),
        Spoil: Play(_spoil),
        Run: Play(handling.run, keeps_defaults=True),
        Handle: Play(handling.handle),
    }
)
