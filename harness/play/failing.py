"""Steps that must fail, and change nothing."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from stepcheck.harness.life.events import Fail
from stepcheck.harness.play.tensors import Given
from stepcheck.harness.play.untouched import untouched

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


class _DeliberateError(Exception):
    """What a closure or a hook of the life raises."""


def fail(player: Player, _: int, what: Fail) -> None:
    """Let a step fail, where there is a reason for it to."""
    if not _must_fail(player, what):
        return
    before, given = player.snapshot(), player.given()
    raised, ours = _failing_step(player, what)
    if not (player.subject.spec.closure and what.kind == "closure"):
        told = f"is ended by {raised or 'nothing'} and writes to the gradients"
        player.note("failed-step", _gives_still(player, given), "gradient", told)
    if raised is None and not ours:
        # Somebody's class may take what the reference does not; the step is then nobody's to judge.
        player.begun.update(range(len(player.parameters)))
        player.recording.mixed = player.event if player.recording.mixed is None else player.recording.mixed
        player.latest = None
        refuses = what.kind == "gradient" and not player.subject.explicit
        if refuses:
            player.note("failed-step", False, "not raised", "takes a gradient that it must refuse", what.parameter)
        return
    if raised is None:
        player.note("failed-step", False, f"swallows {what.kind}", f"swallows what its {what.kind} raises")
    untouched(player, "failed-step", f"ended by {raised or 'nothing'}", before)


def _gives_still(player: Player, before: Given) -> bool:
    """Whether there are the gradients that there were, and nothing in their memory has changed."""
    now = player.given()
    there = [g is None for g in before[0]] == [g is None for g in now[0]]
    return there and before[1] == now[1]


def _must_fail(player: Player, what: Fail) -> bool:
    """Whether there is a reason for a step to fail."""
    if what.kind == "closure":
        return player.has("closures", player.closure.taken)
    if what.kind == "hook":
        return player.has("hooks", hasattr(player.optimizer, "register_step_pre_hook"))
    spec, i = player.subject.spec, what.parameter
    if not player.knows(i) or spec.closure or (what.kind == "dtype" and player.subject.differentiable):
        return False
    return what.kind == "dtype" or (spec.sparse in ("", "only") and len(player.trace.parameters[i].shape) > 0)


def _failing_step(player: Player, what: Fail) -> tuple[str | None, bool]:
    """What it raised, and whether it must be our own exception."""

    def deliberate(*_: object) -> None:
        raise _DeliberateError("raised on purpose")

    ours, handle = what.kind in ("closure", "hook"), None
    step: Callable[[], Any] = player.optimizer.step
    if what.kind == "closure":
        step = functools.partial(player.call_step, deliberate)
    elif player.closure.required:
        step = functools.partial(player.call_step, lambda: 0.75)
    if what.kind == "hook":
        handle = player.optimizer.register_step_pre_hook(deliberate)
    with _unfit_gradient(player, what):
        try:
            step()
        except _DeliberateError as error:
            return type(error).__name__.strip("_"), ours
        except Exception as error:
            if ours:
                raise
            return type(error).__name__, False
        finally:
            if handle is not None:
                handle.remove()
            player.hooks.calls.clear()
    return None, ours


@contextlib.contextmanager
def _unfit_gradient(player: Player, what: Fail) -> Any:
    """A gradient that cannot be taken, for the time of a step."""
    p = player.parameters[what.parameter]
    if what.kind not in ("gradient", "dtype"):
        yield
        return
    kept = p.grad
    if what.kind == "dtype":
        p.grad_dtype = None
        other = torch.float32 if p.dtype is torch.float64 else torch.float64
        p.grad = torch.ones(p.shape, dtype=other, device=p.device)
    elif player.subject.spec.sparse == "only":
        p.grad = torch.ones_like(p)
    else:
        p.grad = torch.ones_like(p).detach().to_sparse()
    try:
        yield
    finally:
        p.grad = None
        if what.kind == "dtype":
            p.grad_dtype = p.dtype
        p.grad = kept
