"""Which divergence is only a consequence of another, so that one cause is told once.

The evidence is an experiment: the fault of the one is mended, or taken out of the life, and the other is gone. That both show in one life is no
evidence: two faults that have nothing to do with each other show in one life as well, and both are told.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS, EXPLAINED_BY
from stepcheck.harness.checking.twins import without
from stepcheck.harness.life.events import (
    STAYS,
    AddGroup,
    Event,
    Fail,
    Handle,
    Reload,
    Schedule,
    ScheduleStep,
    SetOption,
    Step,
)
from stepcheck.harness.life.schedules import SCHEDULED
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.verdict import Divergence

#: Plays a life on a subject; ``None`` where it makes no sense or hangs.
Play = Callable[[Subject, Trace], Evidence | None]
#: The kinds of what a check finds in a life of the subject itself.
Shown = Callable[[Trace, str], set[str]]

#: Causes are told apart first where they are, so that their consequences find them told.
ROOTS = ("gradient-unwritten", "closure", "save-load-continue", "maximize-mirrors", "option-effect")
#: Checks that tell what a step changed that it must not: the parameter in one life, a buffer in another.
_CHANGED = ("no-gradient", "failed-step", "skipped-step")
#: What PyTorch says where a tensor is written in which one element stands for several: of those of a life, gradients alone are.
_WRITES_EXPANDED = "more than one element of the written-to tensor"


class Consequences:
    """Asks of pairs of divergences of one subject."""

    def __init__(self, subject: Subject, play: Play, shown: Shown) -> None:
        self.subject, self.play, self.shown = subject, play, shown

    def follows(self, effect: Divergence, root: Divergence) -> bool:
        """Whether ``effect`` comes from the fault that ``root`` tells of."""
        if effect.owner != root.owner:
            return False
        if effect.expected and effect.check != root.check:
            return False  # it is told by itself, or its check would seem to pass
        if root.check == effect.check and root.check in _CHANGED:
            return _ending(effect.trace) == _ending(root.trace)
        if root.check == "gradient-unwritten":
            writes = effect.check != "completes" or _WRITES_EXPANDED in effect.summary
            return writes and self._gone(effect, _mended(self.subject, _on_copies))
        if root.check == "save-load-continue":
            return self._follows_round_trip(effect, root)
        if root.check in ("option-effect", "maximize-mirrors") and effect.check in EXPLAINED_BY:
            option = "maximize" if root.check == "maximize-mirrors" else root.cause.partition(" ")[0]
            return self._gone(effect, self.subject, _without_option(effect.trace, option))
        return self._follows_closure(effect, root)

    def _follows_round_trip(self, effect: Divergence, root: Divergence) -> bool:
        if not any(map(_loads, effect.trace.events)) or effect.check == "dicts-unchanged":
            return False
        if effect.check != root.check and any(isinstance(e, Handle) for e in filter(_loads, effect.trace.events)):
            # In what is loaded into the same optimizer the cause need not show by itself: it is that if without it nothing does.
            kept = tuple(e for e in effect.trace.events if not _loads(e) or isinstance(e, Reload))
            return self._gone(effect, self.subject, replace(effect.trace, events=kept))
        if root.cause not in self.shown(effect.trace, root.check):
            return False
        stays = (Reload(STAYS, e.dictionary) if isinstance(e, Reload) else e for e in effect.trace.events)
        return self._gone(effect, self.subject, replace(effect.trace, events=tuple(stays)))

    def _follows_closure(self, effect: Divergence, root: Divergence) -> bool:
        """Whether both come from when the closure is called, if it is."""
        if not all(any(map(_has_closure, d.trace.events)) for d in (effect, root)):
            return False
        never = (root.check, root.cause) == ("closure", "calls")
        both = all(d.check in ("agreement", "no-gradient", "failed-step") for d in (effect, root))
        if not never and (not both or effect.cause.startswith("swallows") or root.cause.startswith("swallows")):
            return False
        first = _mended(self.subject, _closure_first)
        return self._gone(effect, first) and (never or self._gone(root, first))

    def _gone(self, divergence: Divergence, subject: Subject, twin: Trace | None = None) -> bool:
        """Whether a divergence is not there where this subject plays its life, or a twin of it."""
        if twin == divergence.trace:
            return False  # there was nothing to take out
        evidence = self.play(subject, divergence.trace if twin is None else twin)
        if evidence is None or evidence.recording.raised is not None:
            return False
        return divergence.cause not in {f.kind for f in CHECKS[divergence.check].find(evidence)}


def _loads(event: Event) -> bool:
    """Whether a state_dict is loaded."""
    return isinstance(event, Reload) or (isinstance(event, Handle) and event.how == "rolled back")


def _has_closure(event: Event) -> bool:
    return (isinstance(event, Step) and bool(event.closure)) or (isinstance(event, Fail) and event.kind == "closure")


def _ending(trace: Trace) -> tuple[type[Event] | None, str, bool]:
    """What kind of event a life ends with."""
    last = trace.events[-1] if trace.events else None
    return (None if last is None else type(last), getattr(last, "kind", ""), last is not None and _has_closure(last))


def _without_option(trace: Trace, option: str) -> Trace:
    """The life in which an option is neither given nor changed."""
    rest = functools.partial(without, option)
    events: list[Event] = []
    for event in trace.events:
        if isinstance(event, SetOption) and event.option == option:
            continue
        if isinstance(event, (Schedule, ScheduleStep)) and option in SCHEDULED:
            continue
        events.append(AddGroup(rest(event.group)) if isinstance(event, AddGroup) else event)
    return replace(trace, groups=tuple(map(rest, trace.groups)), events=tuple(events))


def _mended(subject: Subject, mend: Callable[[type], Callable[..., Any]]) -> Subject:
    """A subject whose step keeps a promise that its class breaks."""
    made: dict[type, type] = {}

    def make(*args: Any, **options: Any) -> Any:
        optimizer = subject.make(*args, **options)
        cls = type(optimizer)
        if cls not in made:
            step = functools.wraps(cls.step)(mend(cls))
            step.hooked = True  # type: ignore[attr-defined]  # torch would run the hooks around this step as well
            made[cls] = type(cls.__name__, (cls,), {"step": step})
        optimizer.__class__ = made[cls]
        return optimizer

    return replace(subject, make=make)


def _on_copies(cls: Any) -> Callable[..., Any]:
    """A step that writes to copies of the gradients, if it writes to them."""

    def step(self: Any, *closure: Any) -> Any:
        given: list[tuple[torch.Tensor, torch.Tensor | None]] = []

        def copy() -> None:
            for p in (p for group in self.param_groups for p in group["params"]):
                given.append((p, p.grad))
                if p.grad is not None and p.grad.dtype == p.dtype:
                    p.grad = p.grad.clone()

        def give_back() -> None:
            for p, gradient in given:
                p.grad = gradient
            given.clear()

        def between() -> Any:
            give_back()
            try:
                return closure[0]()
            finally:
                copy()

        copy()
        try:
            return cls.step(self, *([between] if closure and closure[0] is not None else closure))
        finally:
            give_back()

    return step


def _closure_first(cls: Any) -> Callable[..., Any]:
    """A step whose closure was called before it."""

    def step(self: Any, closure: Any = None) -> Any:
        if closure is None:
            return cls.step(self)
        with torch.enable_grad():
            loss = closure()
        return cls.step(self, lambda: loss)

    return step
