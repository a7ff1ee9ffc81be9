"""Play a trace on a subject and record what happened. Nothing is judged here."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from stepcheck.harness.life import schedules
from stepcheck.harness.life.events import Option, Scalar, plain
from stepcheck.harness.life.memory import Raw, copy
from stepcheck.harness.life.schedules import as_option
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play import spoil
from stepcheck.harness.play.building import construct
from stepcheck.harness.play.events import PLAYS
from stepcheck.harness.play.families import torchs_own
from stepcheck.harness.play.handling import NOT_LATE, Kept, is_late
from stepcheck.harness.play.hooks import Hooks
from stepcheck.harness.play.process import SEED, frame, is_our_own, on_purpose, random_state, seeded
from stepcheck.harness.play.recording import Breach, EndOfLifeError, Raised, Recording, Snapshot
from stepcheck.harness.play.signature import Closure, closure_of
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.play.tensors import Given, Tensors
from stepcheck.harness.support import settings
from stepcheck.harness.support.text import said
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS
from stepcheck.reference.group_options import GroupOptions


class Player:
    """Plays one trace on one subject.

    Args:
        watching: look at the random state after each event. It costs more than the rest, so only once it is known to change.
        spoils: try malformed state too, on optimizers of their own. A life goes on as if nothing had been tried.
    """

    def __init__(self, subject: Subject, trace: Trace, *, watching: bool = False, spoils: bool = True) -> None:
        _patch_steps()
        self.settings = settings.read()
        """Those of the process, as they were before."""
        self.watching = watching
        self.spoils = spoils
        self.subject = subject
        self.trace = trace
        self.recording = Recording(trace)
        self.defaults: dict[str, Option] = vars(subject.spec.hyper_values())
        self.groups = list(trace.at_first)
        """Those that the optimizer has by now."""
        self.options: list[dict[str, Option]] = [dict(g.options) for g in trace.groups]
        self.hyper = [self.hyper_of(o) for o in self.options]
        self.tensors = Tensors(subject, trace)
        self.parameters = self.tensors.parameters
        self.latest: Snapshot | None = None
        """Values and states as they were read after the last event."""
        self.begun: set[int] = set()
        self.event: int | None = None
        """The event that is being played; none while the optimizer is constructed."""
        self.playing = subject
        self.constructing = False
        self.ageing = False
        self.keywords: frozenset[str] = frozenset()
        """Options that the constructor was given for all groups."""
        self._closure_of: tuple[type | None, Closure] = None, Closure(taken=False)
        self.hooks = Hooks()
        self.rehearsal: schedules.Rehearsal | None = None
        self.schedule: Any = None
        self.kind_of_schedule = ""
        self.scaler: torch.amp.GradScaler | None = None
        self.another: tuple[Any, list[torch.Tensor]] | None = None
        """Another optimizer of the class that steps between, and its parameters."""
        self.kept: Kept | None = None
        """The state_dict that the life goes back to."""

    def hyper_of(self, options: Mapping[str, Option]) -> GroupOptions:
        """All options of a group, and which of them are tensors."""
        tensors = frozenset(k for k, v in options.items() if isinstance(v, Scalar))
        return GroupOptions(**vars(self.subject.spec.hyper_values(plain(options))), tensors=tensors)

    def play(self) -> Recording:
        """The recording. What the subject raises is recorded, not raised.

        Raises:
            UsageError: what the subject's constructor returned is no optimizer.
        """
        kept = torch.get_rng_state()
        torch.default_generator.manual_seed(SEED)
        with seeded():
            try:
                self._play()
            finally:
                torch.set_rng_state(kept)
                settings.write(self.settings)
        return self.recording

    def _play(self) -> None:
        drawn = random_state(self.subject.device)
        try:
            # What a subject warns of is not judged, nor shown a thousand times.
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                self._live()
        except UsageError:
            raise
        except EndOfLifeError:
            pass
        except Exception as error:
            # Whatever somebody's optimizer raises is a result; what the player raises by itself is not.
            if is_our_own(error):
                raise
            if is_late(self) and self._so_does_torchs():
                self.recording.lacks.add(NOT_LATE)
            else:
                self.recording.raised = Raised(
                    self.event,
                    type(error).__name__,
                    said(error).strip(),
                    frame(error),
                    constructing=self.constructing,
                    ageing=self.ageing,
                    on_purpose=on_purpose(error),
                )
        self._check_settings()
        self.recording.hyper = tuple(self.hyper)
        self._note_random_state(drawn)

    def _so_does_torchs(self) -> bool:
        """Whether torch's own class of the name raises at this event as well."""
        torchs = torchs_own(self.subject.spec, self.trace.plainly)
        raised = None if torchs is None else Player(torchs, self.trace.plainly).play().raised
        return raised is not None and raised.event == self.event

    def _note_random_state(self, before: object) -> None:
        holds = random_state(self.subject.device) == before
        if not holds and not self.watching:
            watched = Player(self.subject, self.trace, watching=True).play()
            self.recording.breaches += [b for b in watched.breaches if b.check == "random-state"][:1]
            self.recording.looked["random-state"] += 1
        else:
            self.note("random-state", holds, "random state", "draws random numbers")

    def note(
        self,
        check: str,
        holds: bool,
        cause: str,
        told: str,
        parameter: int | None = None,
        option: tuple[int, str, Option] | None = None,
        spoilt: spoil.Arrival | None = None,
    ) -> None:
        """One look at an invariant that a plain comparison decides."""
        self.recording.looked[check] += 1
        if not holds:
            self.recording.breaches.append(Breach(check, self.event, cause, told, parameter, option, spoilt))

    def _live(self) -> None:
        drawn = random_state(self.subject.device) if self.watching else None
        self.optimizer = construct(self, self.subject, self.options, self.trace.form)
        self.recording.initial_state = [self.state(i) for i in range(len(self.parameters))]
        self._check_options()
        self._check_settings()
        for event, what in enumerate(self.trace.events):
            self.event = event
            own = self._own_defaults()
            kind = PLAYS[type(what)]
            kind.play(self, event, what)
            self._check_options()
            self._check_settings()
            if kind.keeps_defaults:
                self._check_defaults(own)
            self._check_places()
            if self.watching and random_state(self.subject.device) != drawn:
                break
            if self.hooks.due or self.hooks.calls:
                self.note("hooks-run-once", self.hooks.calls == self.hooks.due, *self.hooks.miscounted())
                self.hooks.calls.clear()
                self.hooks.due.clear()

    def _check_places(self) -> None:
        for i, what in self.tensors.moved():
            self.note("storage-stays", False, what, f"changes the {what} of a parameter", i)
            if what in ("shape", "dtype"):  # no gradient of this life fits it any more
                raise EndOfLifeError
        self.recording.looked["storage-stays"] += 1

    def _check_options(self) -> None:
        """That each group has the options that it was given, or that were set since."""
        groups = self.optimizer.param_groups
        told = f"leaves {len(groups)} groups where there should be {len(self.options)}"
        self.note("options-hold", len(groups) == len(self.options), "groups", told)
        if len(groups) != len(self.options):
            raise EndOfLifeError
        for n, (theirs, options) in enumerate(zip(groups, self.options, strict=True)):
            group = self.subject.terms.ours(theirs)
            for name, value in {**self.defaults, **options}.items():
                if name not in group or name not in self.subject.options or value is None:
                    continue  # what is left open may be filled in
                got = group[name]
                same = got == value if type(got) is type(value) is float else got is value
                if same:  # as most are
                    self.recording.looked["options-hold"] += 1
                else:
                    self._check_option(n, name, value, as_option(got))

    def _check_option(self, group: int, name: str, value: Option, got: Option) -> None:
        expected: Option = value
        if isinstance(got, Scalar) or isinstance(value, Scalar):
            got, expected = _single(got), _single(value)
        holds = got == expected
        told = "" if holds else f"leaves group {group} with {name}={got!r} where {expected!r} was set"
        self.note("options-hold", holds, f"option {name}", told, option=(group, name, value))

    def _check_settings(self) -> None:
        """That the settings of the process are as they were; what is not is set back, for what comes after."""
        now = settings.read()
        changed = [name for name, value in now.items() if value != self.settings[name]]
        what = changed[0] if changed else ""
        told = f"leaves {what} at {settings.told(now[what])}, from {settings.told(self.settings[what])}" if what else ""
        self.note("settings-kept", not changed, what, told)
        if changed:
            settings.write(self.settings)

    def _own_defaults(self) -> dict[str, Any]:
        """The optimizer's own defaults, with what their tensors hold."""
        own = getattr(self.optimizer, "defaults", None)
        return {k: as_option(v) for k, v in own.items()} if isinstance(own, dict) else {}

    def _check_defaults(self, before: dict[str, Any]) -> None:
        now = self._own_defaults()
        changed = [k for k in {**before, **now} if not _is_same(before.get(k, _MISSING), now.get(k, _MISSING))]
        told = f"changes {changed[0]} of the optimizer's own defaults" if changed else ""
        self.note("settings-kept", not changed, f"default {changed[0]}" if changed else "", told)

    # What is asked of it by what is played

    def has(self, what: str, present: bool) -> bool:
        """Take note of what the subject lacks."""
        if not present:
            self.recording.lacks.add(what)
        return present

    def is_torch(self, what: str) -> bool:
        """Schedules and scalers take descendants of torch's own class alone."""
        return self.has(what, isinstance(self.optimizer, torch.optim.Optimizer))

    def known(self) -> set[int]:
        """The parameters that the optimizer has by now."""
        return {i for g in self.groups for i in g.parameters}

    def knows(self, index: int) -> bool:
        """Whether the optimizer has a parameter by now."""
        return any(index in g.parameters for g in self.groups)

    def force(self, group: int, options: Mapping[str, Option]) -> None:
        """From now on, these options hold."""
        if any(self.options[group].get(k) != v for k, v in options.items()):
            self.options[group] |= options
            self.hyper[group] = self.hyper_of(self.options[group])

    @property
    def closure(self) -> Closure:
        """How the optimizer's step takes a closure."""
        cls = type(self.optimizer)
        if cls is not self._closure_of[0]:
            how = closure_of(self.optimizer)
            self._closure_of = cls, how._replace(required=how.required or self.subject.closure.required)
        return self._closure_of[1]

    def call_step(self, closure: Callable[[], Any]) -> Any:
        """A step that is given a closure, as its signature has it."""
        return self.optimizer.step(closure=closure) if self.closure.keyword else self.optimizer.step(closure)

    def given(self) -> Given:
        """The gradients of the parameters that the optimizer has, and the memory that they stand in."""
        return self.tensors.given(self.known())

    def snapshot(self) -> Snapshot:
        """Values and states; as they were read after the event before, where gradients alone can have changed since."""
        return self.latest or [(copy(p), self.state(i)) for i, p in enumerate(self.parameters)]

    def options_now(self) -> list[dict[str, Any]]:
        """The options that each group of the optimizer has."""
        names = self.subject.options
        groups = map(self.subject.terms.ours, self.optimizer.param_groups)
        return [{k: as_option(g.get(k, self.defaults[k])) for k in names} for g in groups]

    def counts(self) -> list[float | None]:
        """The steps that each group of somebody's class says it has taken, under what the class calls ``step``."""
        terms = self.subject.terms
        name = terms.their_buffer("step")
        looked_at = self.subject.explicit and bool(terms.buffer(name))
        groups = self.optimizer.param_groups
        return [_number(group[name]) if looked_at and name in group else None for group in groups]

    def state(self, index: int) -> dict[str, Raw | float]:
        """Copies of the tensors and numbers that the optimizer keeps for one parameter."""
        state = getattr(self.optimizer, "state", {})
        result: dict[str, Raw | float] = {}
        # A defaultdict would make an entry of a parameter that it does not know yet.
        kept: Any = state.get(self.parameters[index]) if hasattr(state, "get") else None
        for theirs, value in kept.items() if hasattr(kept, "items") else ():
            name = self.subject.terms.buffer(str(theirs))
            if not name:
                continue
            if isinstance(value, torch.Tensor):
                result[name] = copy(value)
            elif isinstance(value, _NUMBERS):
                result[name] = float(value)
            elif isinstance(value, (list, tuple)):
                for n, entry in enumerate(value):
                    if isinstance(entry, (torch.Tensor, *_NUMBERS)):
                        result[f"{name}[{n}]"] = copy(entry) if isinstance(entry, torch.Tensor) else float(entry)
        return result


@functools.cache
def _patch_steps() -> None:
    """The first instance of a class of torch.optim patches its step, for its descendants too: let it not matter when that is."""
    for name in (n for n in SPECS if hasattr(torch.optim, n)):
        getattr(torch.optim, name)([torch.zeros(1, 1, requires_grad=True)])


#: What a number in a state is: who is given options that are NumPy's may keep one.
_NUMBERS = (int, float, np.integer, np.floating)


def _number(value: Any) -> float | None:
    """What is one number, in a tensor or not."""
    if isinstance(value, torch.Tensor):
        return float(value) if value.numel() == 1 and not value.is_complex() else None
    return float(value) if isinstance(value, _NUMBERS) and not isinstance(value, bool) else None


#: What stands for a default that is not there.
_MISSING = object()


def _is_same(a: Any, b: Any) -> bool:
    """Whether two values of an option are the same one, or equal; what cannot be compared is not."""
    if a is b:
        return True
    try:
        return type(a) is type(b) and (bool(a == b) or repr(a) == repr(b))
    except Exception:  # noqa: BLE001 - somebody's own type
        return False


def _single(value: Any) -> float | None:
    """A number as a float32 tensor holds it."""
    number = value.value if isinstance(value, Scalar) else value
    return float(np.float32(number)) if isinstance(number, (int, float)) else None
