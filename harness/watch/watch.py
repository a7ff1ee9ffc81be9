"""The hooks of an optimizer in which its steps are looked at."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.support.text import said
from stepcheck.harness.support.usage import UsageError
from stepcheck.harness.watch.agreement import Agreement
from stepcheck.harness.watch.condition import Finite, Moves, Replicas
from stepcheck.harness.watch.continuity import Continuity
from stepcheck.harness.watch.findings import Found
from stepcheck.harness.watch.gradients import Gradients
from stepcheck.harness.watch.moment import Moment, Names, Observer
from stepcheck.harness.watch.numbers import Numbers
from stepcheck.harness.watch.registered import Registered
from stepcheck.harness.watch.report import Report
from stepcheck.harness.watch.saving import NOWHERE, Nowhere
from stepcheck.harness.watch.scheduled import Scheduled
from stepcheck.harness.watch.subject import Holder

#: What is done about a finding.
ON_FINDING = ("warn", "raise")
#: Of a parameter, the first and the last element, and at least one between.
LEAST_ELEMENTS = 3
#: Why a step was not looked at, in words.
_LATE_HOOK = "another hook before the step was registered since: what it does is not seen"
_CAPTURED = "the step is captured into a CUDA graph"
_COMPILED = "the step is run by torch.compile, which runs no hooks in it as they are"


class WatchError(AssertionError):
    """A step of the watched optimizer is wrong; the message says which, and how."""


class WatchWarning(UserWarning):
    """A step of the watched optimizer is wrong."""


@dataclass(frozen=True)
class Sampling:
    """Which steps are looked at, and how many elements.

    Attributes:
        first: the first steps, each of which is.
        every: of the later ones, each so many-th is.
        elements: at most so many of a parameter, in each step others.
        seed: they are drawn of.
    """

    first: int = 10
    every: int = 10
    elements: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("first", 0), ("every", 1), ("elements", LEAST_ELEMENTS)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UsageError(f"{name}={value!r} is no whole number of at least {least}")

    def has(self, number: int) -> bool:
        """Whether a step is looked at."""
        return number <= self.first or number % self.every == 0


@dataclass(frozen=True)
class Surroundings:
    """What stands around the optimizer of a run, as far as it is known. See :func:`stepcheck.watch`."""

    model: torch.nn.Module | None = None
    schedulers: Sequence[Any] = ()
    scaler: Any = None
    replicas: Sequence[torch.nn.Module] = ()
    beside: Sequence[torch.optim.Optimizer] = ()
    resumed: Mapping[str, Any] | None = None


class Watch:
    """Looks at the steps of one optimizer, from its hooks. Make one with :func:`stepcheck.watch`.

    It changes nothing: neither parameters, gradients and state, nor the random state of torch, NumPy or Python.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        declared: Declaration,
        around: Surroundings,
        sampling: Sampling,
        on_finding: str = "warn",
        saved: Nowhere = NOWHERE,
    ) -> None:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise UsageError(
                f"{type(optimizer).__name__} is no torch.optim.Optimizer, whose hooks are needed: give the one inside"
            )
        if on_finding not in ON_FINDING:
            raise UsageError(f"on_finding={on_finding!r}; it is one of {', '.join(ON_FINDING)}")
        self.optimizer, self.sampling, self.on_finding = optimizer, sampling, on_finding
        self.found, self.numbers = Found(), Numbers()
        self.names = Names(optimizer, around.model)
        self.saved = saved
        self.steps = 0
        self._closed = self._compiled = False
        self.error = ""
        """Why the watch itself failed, and ended."""
        self._moment: Moment | None = None
        holder = Holder(optimizer, declared)
        self.agreement = Agreement(holder, self.numbers, most=sampling.elements, seed=sampling.seed, saved=saved)
        self._observers: list[Observer] = [
            Registered(around.model, around.beside),
            Scheduled(around.schedulers),
            Replicas(around.model, around.replicas),
            Gradients(optimizer, around.scaler),
            self.agreement,
            Continuity(optimizer, holder.terms, resumed=around.resumed, certain=not declared.like),
            Moves(self.numbers),
            Finite(),
        ]
        self._before = optimizer.register_step_pre_hook(self._begins)
        self._after = optimizer.register_step_post_hook(self._ends)

    def report(self) -> Report:
        """What has been seen so far."""
        every = [self.names.of(p) for group in self.optimizer.param_groups for p in group["params"]]
        judged = self.agreement.judged
        return Report(
            steps=self.steps,
            judged=self.agreement.steps,
            elements=self.agreement.elements,
            undetermined=self.agreement.undetermined,
            worst=max((row.worst for row in self.numbers.rows), default=0.0),
            subjects=sorted(self.agreement.subjects),
            findings=self.found.findings,
            notes=self.found.notes,
            looked=dict(self.found.looked),
            unjudged={**self.agreement.unjudged, **({("steps", _COMPILED): 1} if self._compiled else {})},
            never=[name for name in every if name not in judged],
            rows=tuple(self.numbers.rows),
            parameters=dict(self.numbers.parameters),
            error=self.error,
        )

    def forget(self) -> None:
        """Do not expect state and parameters to be as the last step left them: call it where they are changed on purpose."""
        for observer in self._observers:
            observer.forget()

    def close(self) -> None:
        """Look no more. Hooks are taken away; the report stays."""
        if self._closed:
            return
        self._closed = True
        self._before.remove()
        self._after.remove()
        for observer in self._observers:
            observer.close()
        self.saved.end(self.report().verdict)

    # The hooks

    def _begins(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling():
            self._compiled = True
            return
        if _is_nested(optimizer):
            return
        self.steps += 1
        self._moment = None
        why = self._unseen()
        if why:
            self.agreement.unjudged[f"step {self.steps}", why] += 1
            self.forget()
            return
        self._moment = moment = self._moment_of(optimizer, args, kwargs)
        self._let_look(lambda observer: observer.begins(moment))

    def _ends(self, optimizer: torch.optim.Optimizer, _args: tuple[Any, ...], _kwargs: dict[str, Any]) -> None:
        if torch.compiler.is_compiling() or _is_nested(optimizer):
            return
        _put_last(optimizer, self._before.id)
        moment, self._moment = self._moment, None
        if moment is None:
            return
        self._let_look(lambda observer: observer.ends(moment))

    def _let_look(self, at: Callable[[Observer], None]) -> None:
        """Let all observers look. Where one of them fails, the training goes on, and nothing passes any more."""
        try:
            for observer in self._observers:
                at(observer)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is not the training's
            self.error = f"step {self.steps}: {type(error).__name__}: {said(error)}"
            self.close()
        self._tell()

    def _unseen(self) -> str:
        """Why this step cannot be looked at, or nothing."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return _CAPTURED
        if _is_within_compiled():
            return _COMPILED
        _put_first(self.optimizer, self._after.id)
        hooks: Any = self.optimizer._optimizer_step_pre_hooks  # noqa: SLF001 - in which order hooks run is seen nowhere else
        return "" if next(reversed(hooks)) == self._before.id else _LATE_HOOK

    def _moment_of(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Moment:
        watched = self.sampling.has(self.steps)
        own: Any = vars(optimizer)
        scale, infinite = own.get("grad_scale"), own.get("found_inf")
        skipped: bool | None = False
        if isinstance(infinite, torch.Tensor):
            skipped = bool(infinite) if watched or infinite.is_cpu else None
        return Moment(
            optimizer,
            self.names,
            self.found,
            self.steps,
            watched,
            closure=any(a is not None for a in args[1:]) or kwargs.get("closure") is not None,
            scale=float(scale) if watched and isinstance(scale, torch.Tensor) else 1.0,
            skipped=skipped,
        )

    def _tell(self) -> None:
        new = self.found.told()
        for finding in new:
            self.saved.finding(finding)
        fresh = [finding for finding in new if finding.certain]
        if fresh and self.on_finding == "raise":
            raise WatchError("\n".join(map(str, fresh)))
        for finding in fresh:
            warnings.warn(f"stepcheck: {finding}", WatchWarning, stacklevel=4)


def _is_within_compiled() -> bool:
    """Whether code that ``torch.compile`` runs calls the step: whether it has compiled a part of it nobody knows.

    Once anything was compiled, the steps of some of torch's classes are called through what keeps them from that: those run as they are.
    """
    frame: Any = sys._getframe()  # noqa: SLF001 - who called is asked of nobody else
    while frame is not None:
        kept_from_it = frame.f_code.co_qualname.startswith("DisableContext.")
        if frame.f_globals.get("__name__", "").startswith("torch._dynamo") and not kept_from_it:
            return True
        frame = frame.f_back
    return False


def _is_nested(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a hook is called from a step within a step, as of a class whose step calls that of its base: asked from within a hook.

    Whoever counted calls would be wrong for ever after a step that raised.
    """
    wrapper: Any = sys._getframe(2)  # noqa: SLF001 - who called is asked of nobody else
    frame = wrapper.f_back
    while frame is not None:
        if frame.f_code is wrapper.f_code and frame.f_locals.get("self") is optimizer:
            return True
        frame = frame.f_back
    return False


def _put_last(optimizer: torch.optim.Optimizer, hook: int) -> None:
    """So that no other hook before the step works after this one. While hooks before the step run, their order cannot be changed."""
    hooks: Any = optimizer._optimizer_step_pre_hooks  # noqa: SLF001 - torch has no other way
    hooks.move_to_end(hook)


def _put_first(optimizer: torch.optim.Optimizer, hook: int) -> None:
    """So that no other hook after the step works before this one."""
    hooks: Any = optimizer._optimizer_step_post_hooks  # noqa: SLF001 - torch has no other way
    hooks.move_to_end(hook, last=False)
