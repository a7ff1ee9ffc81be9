"""Play a trace on a subject and record what happened. Nothing is judged here."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import pickle
import random
import re
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from stepcheck.harness.life import objectives, schedules
from stepcheck.harness.life.events import (
    STAYS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Hook,
    Objective,
    Option,
    Parameter,
    Refuse,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
    ZeroGrad,
    keywords,
    plain,
)
from stepcheck.harness.life.memory import (
    GUARD_ELEMENTS,
    Allocation,
    Raw,
    SparseAllocation,
    SparseRaw,
    beside,
    copy,
    copy_gradient,
    identical,
    raw,
    rounded,
    rounded_fill,
    values_of,
)
from stepcheck.harness.life.schedules import as_given, as_option
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import in_reals
from stepcheck.harness.numbers.comparison import reals
from stepcheck.harness.play import resume, spoil, validation
from stepcheck.harness.play.families import sibling
from stepcheck.harness.play.recording import (
    CALLERS_GROUPS,
    Breach,
    Evaluation,
    IdleRecord,
    Life,
    Raised,
    Recording,
    ReloadRecord,
    State,
    StepRecord,
)
from stepcheck.harness.play.signature import Closure, closure_of, inherits, takes_keyword
from stepcheck.harness.play.subjects import Subject, UsageError
from stepcheck.harness.support import settings
from stepcheck.harness.support.text import named, said
from stepcheck.reference import SPECS

_Given = tuple[list[Raw | SparseRaw | None], list[bytes | None]]
_Snapshot = list[tuple[Raw, State]]


#: Of all seeds one that nobody else would choose: who sets the generator to one of their own is noticed.
_SEED = 0x73746570636865


class _EndOfLifeError(Exception):
    """A life cannot go on, and why is noted."""


class _DeliberateError(Exception):
    """What a closure or a hook of the life raises."""


class Player:
    """Plays one trace on one subject."""

    def __init__(self, subject: Subject, trace: Trace, *, watching: bool = False) -> None:
        _patch_steps()
        self.settings = settings.read()
        """Those of the process, as they were before."""
        self.watching = watching
        """Look at the random state after each event: it costs more than the rest, so only once it is known to change."""
        self.subject = subject
        self.trace = trace
        self.recording = Recording(trace)
        self.defaults: dict[str, Option] = vars(subject.spec.hyper_values())
        self.groups = list(trace.groups)
        """Those that the optimizer has by now."""
        self.options: list[dict[str, Option]] = [dict(g.options) for g in trace.groups]
        # One object for as long as a group's options stay the same: the judge batches by it.
        self.hyper = [self._hyper(o) for o in self.options]
        self.allocations: list[Allocation] = []
        for i, p in enumerate(trace.parameters):
            self.allocations.append(self._allocate(i, p))
        if subject.differentiable:
            for allocation in self.allocations:
                allocation.make_differentiable()
        self.parameters = [self._as_parameter(a.view) for a in self.allocations]
        self.outside = [self._outside(a) for a in self.allocations]
        self.places = [_place(p) for p in self.parameters]
        self.latest: _Snapshot | None = None
        """Values and states as they were read after the last event."""
        self.replaced: list[list[tuple[Allocation | SparseAllocation, bytes]]] = [[] for _ in self.parameters]
        """Gradients that were taken off each parameter, and what stood in their memory then."""
        self.gradients: list[Allocation | SparseAllocation | None] = [None] * len(self.parameters)
        self.begun: set[int] = set()
        self.event: int | None = None
        """The event that is being played; none while the optimizer is constructed."""
        self.playing = subject
        self.constructing = False
        self.ageing = False
        self.keywords: frozenset[str] = frozenset()
        """Options that the constructor was given for all groups."""
        self._closure_of: tuple[type | None, Closure] = None, Closure(taken=False)
        self.hooks: list[str] = []
        self.calls: Counter[str] = Counter()
        self.due: Counter[str] = Counter()
        self.rehearsal: schedules.Rehearsal | None = None
        self.schedule: Any = None
        self.kind_of_schedule = ""
        self.scaler: torch.amp.GradScaler | None = None

    def _as_parameter(self, view: torch.Tensor) -> torch.Tensor:
        if self.subject.differentiable:
            return view
        takes = self.subject.takes
        return torch.nn.Parameter(view) if takes is not None and takes.parameters_only else view.requires_grad_()

    def _hyper(self, options: Mapping[str, Option]) -> SimpleNamespace:
        hyper = self.subject.spec.hyper_values(plain(options))
        hyper.tensors = frozenset(k for k, v in options.items() if isinstance(v, Scalar))
        return hyper

    def _allocate(self, index: int, parameter: Parameter) -> Allocation:
        # torch adds a coalesced sparse tensor to a view that does not start its memory at the wrong place: this must not
        # hide all else, so it is for the layout "offset" to find.
        row_major = parameter.layout == "contiguous" and index in self.trace.given_sparse
        start = 0 if row_major else GUARD_ELEMENTS
        alone = parameter.within is None or self.subject.differentiable  # there each buffer is copied by itself
        within = None if alone else self.allocations[parameter.within or 0]
        allocation = Allocation(parameter.shape, parameter.dtype, parameter.layout, start, within, self.subject.device)
        allocation.fill(parameter.values.realise(in_reals(parameter.shape, parameter.dtype)))
        return allocation

    def _outside(self, allocation: Allocation) -> npt.NDArray[np.intp]:
        """The buffer's elements that are no parameter's own."""
        sharing = tuple((a.shape, a.layout, a.start) for a in self.allocations if a.buffer is allocation.buffer)
        return beside(len(allocation.buffer), sharing)

    def play(self) -> Recording:
        """The recording. What the subject raises is recorded, not raised.

        Raises:
            UsageError: what the subject's constructor returned is no optimizer.
        """
        kept = torch.get_rng_state()
        torch.default_generator.manual_seed(_SEED)
        with _seeded():
            try:
                self._play()
            finally:
                torch.set_rng_state(kept)
                settings.write(self.settings)
        return self.recording

    def _play(self) -> None:
        drawn = _random_state(self.subject.device)
        try:
            # What a subject warns of is not judged, nor shown a thousand times.
            with warnings.catch_warnings(), np.errstate(all="ignore"):
                warnings.simplefilter("ignore")
                self._live()
        except UsageError:
            raise
        except _EndOfLifeError:
            pass
        except Exception as error:
            # Whatever somebody's optimizer raises is a result; what the player raises by itself is not.
            if _is_our_own(error):
                raise
            frame = _frame(error)
            told = said(error).strip()
            self.recording.raised = Raised(
                self.event, type(error).__name__, told, frame, constructing=self.constructing, ageing=self.ageing
            )
        self._check_settings()
        self.recording.hyper = tuple(self.hyper)
        self._note_random_state(drawn)

    def _note_random_state(self, before: object) -> None:
        holds = _random_state(self.subject.device) == before
        if not holds and not self.watching:
            watched = Player(self.subject, self.trace, watching=True).play()
            self.recording.breaches += [b for b in watched.breaches if b.check == "random-state"][:1]
            self.recording.looked["random-state"] += 1
        else:
            self._note("random-state", holds, "random state", "draws random numbers")

    def _note(
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
        drawn = _random_state(self.subject.device) if self.watching else None
        self.optimizer = self._construct(self.subject, self.options, self.trace.form)
        self.recording.initial_state = [self._state(i) for i in range(len(self.parameters))]
        self._check_options()
        self._check_settings()
        for event, what in enumerate(self.trace.events):
            self.event = event
            own = self._own_defaults()
            if isinstance(what, Step):
                self._step(event, what)
            elif isinstance(what, Reload):
                self._reload(event, what)
            elif isinstance(what, Fail):
                self._fail(what)
            elif isinstance(what, Accumulate):
                self._accumulate(what)
            elif isinstance(what, Spoil):
                self._spoil(what)
            else:
                self._idle(event, what)
            self._check_options()
            self._check_settings()
            if isinstance(what, (Step, Fail, ZeroGrad)):
                self._check_defaults(own)
            self._check_places()
            if self.watching and _random_state(self.subject.device) != drawn:
                break
            if self.due or self.calls:
                self._note("hooks-run-once", self.calls == self.due, *self._miscounted())
                self.calls.clear()
                self.due.clear()

    # Construction

    def _construct(self, subject: Subject, options: Sequence[Mapping[str, Option]], form: str) -> Any:
        self.constructing = True
        options = subject.complete_all(options)
        groups = [self._group_as_given(g.parameters, o, form) for g, o in zip(self.groups, options, strict=True)]
        self.keywords = keywords(options, form) | (subject.constructor_only & options[0].keys())
        shared = {k: groups[0][k] for k in options[0] if k in self.keywords}
        for group in groups:
            for name in shared:
                group.pop(name, None)
        if len(groups) == 1 and form not in ("dicts", "mixed"):
            optimizer = subject.make(groups[0]["params"], **shared, **subject.mode_options)
            self._built(optimizer)
            return optimizer
        if subject.explicit:
            # What a new group lacks it takes from the first.
            shared |= {k: v for k, v in groups[0].items() if k != "params"}
        before = [_entries(g) for g in groups]
        given: Iterable[Any] = iter(groups) if form == "iterator" else tuple(groups) if form == "tuple" else groups
        optimizer = subject.make(given, **shared, **subject.mode_options)
        self._built(optimizer)
        self._unchanged(CALLERS_GROUPS, before, [_entries(g) for g in groups])
        return optimizer

    def _built(self, optimizer: Any) -> None:
        self.constructing = False
        self.recording.built = type(optimizer)
        inner = (type(v) for v in getattr(optimizer, "__dict__", {}).values() if isinstance(v, torch.optim.Optimizer))
        self.recording.wrapped = next(inner, None)
        self._train(optimizer)
        for needed in ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups"):
            if not hasattr(optimizer, needed):
                raise UsageError(
                    f"{self.subject.name}: built a {type(optimizer).__name__}, which has no {needed}; it is no optimizer"
                )

    def _group_as_given(self, members: Sequence[int], options: Mapping[str, Option], form: str) -> dict[str, Any]:
        """A group's dictionary."""
        tensors = [self.parameters[i] for i in members]
        params: Any = tensors
        if form == "tuple":
            params = tuple(tensors)
        elif form == "iterator":
            params = iter(tensors)
        elif form == "named":
            params = [(f"p{i}", p) for i, p in zip(members, tensors, strict=True)]
        return {"params": params, **{k: as_given(v, self.subject.device) for k, v in options.items()}}

    def _unchanged(self, what: str, before: Any, after: Any) -> None:
        self._note("dicts-unchanged", before == after, what, f"changes {what}")

    # Steps

    def _step(self, event: int, step: Step) -> None:
        how = self._closure
        closure = step.closure if step.closure and self._has("closures", how.taken) else ""
        closure = closure or ("tensor" if how.required and step.objective is None else "")
        if not closure:
            self._assign_all(step.gradients)
        before = self._snapshot()
        given = self._given()
        evaluations: list[Evaluation] = []
        # A scaler steps without a closure.
        scaled = (
            bool(step.scaling)
            and self._has("scaling", not how.required)
            and any(g is not None for g in given[0])
            and self._is_torch("scaling")
        )
        if scaled:
            if self._overflows():
                self._skipped(step, before)
                return
            given = self._summed_by_scaler(given)
            self._scaled_step(step)
        elif step.objective is not None:
            self._step_with(self._objective(step.objective, evaluations))
            given = self._given()
        elif closure:
            call = _Closure(self, step)
            self._step_with(call)
            given = call.given or given
        else:
            self.optimizer.step()
        self._expect_hooks("step_pre", "step_post")
        self.latest = None
        self.latest = self._snapshot()
        # An objective writes the gradients itself, and a scaler unscales them.
        written = step.objective is None and not scaled
        lives = [
            Life(
                value=before[i][0],
                gradient=given[0][i],
                state=before[i][1],
                value_after=self.latest[i][0],
                state_after=self.latest[i][1],
                gradient_written=written and self._gradient_written(i, given[0][i], given[1][i]),
                beside_written=self.allocations[i].written_at(self.outside[i]),
                begun=i in self.begun,
            )
            for i in range(len(self.parameters))
        ]
        self.recording.steps.append(StepRecord(event, self.playing, tuple(self.hyper), lives, evaluations))

    def _given(self) -> _Given:
        """The gradients of the parameters that the optimizer has, and the memory that they stand in."""
        mine = {i for g in self.groups for i in g.parameters}
        gradients = [
            None if p.grad is None or i not in mine else copy_gradient(p.grad) for i, p in enumerate(self.parameters)
        ]
        return gradients, [None if g is None else g.memory() for g in self.gradients]

    def _check_places(self) -> None:
        for i, p in enumerate(self.parameters):
            was, now = self.places[i], _place(p)
            if was != now:
                what = next(name for name, a, b in zip(_PLACE, was, now, strict=True) if a != b)
                self._note("storage-stays", False, what, f"changes the {what} of a parameter", i)
                self.places[i] = now
                if what in ("shape", "dtype"):  # no gradient of this life fits it any more
                    raise _EndOfLifeError
        self.recording.looked["storage-stays"] += 1

    # Closures

    @property
    def _closure(self) -> Closure:
        """How the optimizer's step takes a closure."""
        cls = type(self.optimizer)
        if cls is not self._closure_of[0]:
            self._closure_of = cls, closure_of(self.optimizer)
        return self._closure_of[1]

    def _call_step(self, closure: Callable[[], Any]) -> Any:
        return self.optimizer.step(closure=closure) if self._closure.keyword else self.optimizer.step(closure)

    def _step_with(self, closure: _Closure | _Evaluator) -> None:
        returned = self._call_step(closure)
        once = closure.calls == 1 if isinstance(closure, _Closure) else closure.calls >= 1
        self._note("closure", once, "calls", f"calls its closure {closure.calls} times")
        if not closure.calls:
            return
        self._note("closure", closure.with_gradients, "grad mode", "calls its closure with gradients disabled")
        told = f"returns {_short(returned)} where its closure returned {_short(closure.result)}"
        self._note("closure", _is_result(returned, closure.result), "result", told)

    def _objective(self, objective: Objective, evaluations: list[Evaluation]) -> _Evaluator:
        return _Evaluator(self, objective, evaluations)

    # Gradient scaling

    def _overflows(self) -> bool:
        """Scale the gradients, as the backward pass of a scaled loss would; whether one of them then is infinite or NaN."""
        if self.scaler is None:
            self.scaler = torch.amp.GradScaler(self.subject.device, growth_interval=2)
            self.scaler.scale(torch.zeros((), device=self.subject.device))
        scale, finite = self.scaler.get_scale(), True
        for i in (i for g in self.groups for i in g.parameters):
            p, allocation = self.parameters[i], self.gradients[i]
            if p.grad is None:
                continue
            if allocation is not None and isinstance(allocation, Allocation) and allocation.repeats:
                p.grad = p.grad.clone()  # nothing can be multiplied in place that stands in memory once for many
            with torch.no_grad():
                values = values_of(p.grad)
                values.mul_(scale)
                if p.grad.is_sparse and p.dtype is torch.float16:
                    # So the scaler does before it looks: the sum of entries, its rounding and its overflow are the scaler's.
                    p.grad = p.grad.coalesce()
                    values = values_of(p.grad)
                finite &= bool(torch.isfinite(values).all())
        return not finite

    def _summed_by_scaler(self, given: _Given) -> _Given:
        """The gradients that a step is given by the scaler: of sparse ones in float16, the sums of entries."""
        assert self.scaler is not None
        gradients = list(given[0])
        for i, p in enumerate(self.parameters):
            if gradients[i] is not None and p.grad is not None and p.grad.is_sparse and p.dtype is torch.float16:
                gradients[i] = copy_gradient(p.grad / self.scaler.get_scale())
        return gradients, given[1]

    def _scaled_step(self, step: Step) -> None:
        assert self.scaler is not None
        if getattr(self.subject.make, "_unscales", False):
            self.optimizer._step_supports_amp_scaling = self.subject.unscales(self.trace, step)  # noqa: SLF001
        if step.scaling == "unscale" and not getattr(self.optimizer, "_step_supports_amp_scaling", False):
            self.scaler.unscale_(self.optimizer)
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _skipped(self, step: Step, before: _Snapshot) -> None:
        self._scaled_step(step)
        self.calls.clear()  # a fused step is called and does nothing, others are not called
        self._untouched("skipped-step", "skipped", before)

    def _untouched(self, check: str, which: str, before: _Snapshot) -> None:
        """That a step which must do nothing did nothing; state in its initial state may have been created."""
        self.latest = None
        self.latest = self._snapshot()
        for i, (b, a) in enumerate(zip(before, self.latest, strict=True)):
            changed = _changes(b, a)
            if self._knows(i):
                changed = [name for name in changed if not self._is_initial(i, name, b[1], a[1])]
                changed += self._begun_in_part(i, b[1], a[1])
            self._note(check, not changed, _what(changed), f"is {which} and changes {_what(changed)} all the same", i)
            if a[1].keys() - b[1].keys() or changed:
                self.begun.add(i)

    def _begun_in_part(self, index: int, before: State, after: State) -> list[str]:
        """State that was created, if a part of it is missing: the next step takes it for complete."""
        hyper = self.hyper[self.trace.group_of[index]]
        shape = self.trace.parameters[index].shape
        needed = {
            b.name
            for b in self.subject.spec.buffers
            if b.present(hyper) and b.initial(hyper) is not None and b.shape(shape) is not None
        }
        known = needed & after.keys()
        return ["a part of the state"] if not before and known and known < needed else []

    def _is_initial(self, index: int, name: str, before: State, after: State) -> bool:
        if name in before or name not in after:
            return False
        hyper = self.hyper[self.trace.group_of[index]]
        for b in self.subject.spec.buffers:
            if b.name == name and b.present(hyper):
                initial = b.initial(hyper)
                found = np.asarray(after[name])
                own = b.per_parameter or found.dtype == self.latest_dtype(index)
                if initial is None or not own:
                    return False
                # NumPy has no bfloat16: what is stored in it is read as float32.
                stored = rounded_fill(initial, "float32" if b.per_parameter else self.trace.parameters[index].dtype)
                return bool(np.all((found == found.dtype.type(initial)) | (found == stored)))
        # What the reference knows nothing of may be created at any time.
        return True

    def latest_dtype(self, index: int) -> np.dtype[Any]:
        """The NumPy dtype that the parameter's own elements are read as."""
        return raw(self.parameters[index]).dtype

    # Steps that must fail

    def _fail(self, what: Fail) -> None:
        if not self._must_fail(what):
            return
        before, given = self._snapshot(), self._given()
        raised, ours = self._failing_step(what)
        if not (self.subject.spec.closure and what.kind == "closure"):
            told = f"is ended by {raised or 'nothing'} and writes to the gradients"
            self._note("failed-step", self._gives_still(given), "gradient", told)
        if raised is None and not ours:
            # Somebody's class may take what the reference does not; the step is then nobody's to judge.
            self.begun.update(range(len(self.parameters)))
            self.recording.mixed = self.event if self.recording.mixed is None else self.recording.mixed
            self.latest = None
            refuses = what.kind == "gradient" and not self.subject.explicit
            if refuses:
                self._note("failed-step", False, "not raised", "takes a gradient that it must refuse", what.parameter)
            return
        if raised is None:
            self._note("failed-step", False, f"swallows {what.kind}", f"swallows what its {what.kind} raises")
        self._untouched("failed-step", f"ended by {raised or 'nothing'}", before)

    def _gives_still(self, before: _Given) -> bool:
        """Whether there are the gradients that there were, and nothing in their memory has changed."""
        now = self._given()
        there = [g is None for g in before[0]] == [g is None for g in now[0]]
        return there and before[1] == now[1]

    def _must_fail(self, what: Fail) -> bool:
        """Whether there is a reason for a step to fail."""
        if what.kind == "closure":
            return self._has("closures", self._closure.taken)
        if what.kind == "hook":
            return self._has("hooks", hasattr(self.optimizer, "register_step_pre_hook"))
        spec, i = self.subject.spec, what.parameter
        if not self._knows(i) or spec.closure or (what.kind == "dtype" and self.subject.differentiable):
            return False
        return what.kind == "dtype" or (spec.sparse in ("", "only") and len(self.trace.parameters[i].shape) > 0)

    def _failing_step(self, what: Fail) -> tuple[str | None, bool]:
        """What it raised, and whether it must be our own exception."""

        def deliberate(*_: object) -> None:
            raise _DeliberateError("raised on purpose")

        ours, handle = what.kind in ("closure", "hook"), None
        step: Callable[[], Any] = self.optimizer.step
        if what.kind == "closure":
            step = functools.partial(self._call_step, deliberate)
        elif self._closure.required:
            step = functools.partial(self._call_step, lambda: 0.75)
        if what.kind == "hook":
            handle = self.optimizer.register_step_pre_hook(deliberate)
        with self._unfit_gradient(what):
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
                self.calls.clear()
        return None, ours

    @contextlib.contextmanager
    def _unfit_gradient(self, what: Fail) -> Any:
        """A gradient that cannot be taken, for the time of a step."""
        p = self.parameters[what.parameter]
        if what.kind not in ("gradient", "dtype"):
            yield
            return
        kept = p.grad
        if what.kind == "dtype":
            p.grad_dtype = None
            other = torch.float32 if p.dtype is torch.float64 else torch.float64
            p.grad = torch.ones(p.shape, dtype=other, device=p.device)
        elif self.subject.spec.sparse == "only":
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

    # Malformed state

    def _spoil(self, what: Spoil) -> None:
        """Spoil the state of optimizers of their own; the life goes on as if nothing had been tried."""
        # Another mode, that a round trip led into, is asked in lives of its own.
        if not self._knows(what.parameter) or self.playing.name != self.subject.name:
            return
        keywords = self.keywords
        dtypes = spoil.dtypes(self.trace.parameters)
        another = functools.partial(self._another, dtypes)
        trial = spoil.Trial(what, another, self._step_another, dtypes, sparse=self.subject.spec.sparse == "only")
        try:
            arrival = trial.arrival()
        except spoil.NothingToSpoilError:
            self.recording.lacks.add("state")
            return
        finally:
            self.keywords, self.latest, self.constructing = keywords, None, False
        cause, told = (arrival.cause, arrival.told) if arrival is not None else ("", "")
        self._note("malformed-state", arrival is None, cause, told, what.parameter, spoilt=arrival)

    def _another(self, dtypes: Sequence[str]) -> spoil.Copy:
        """A new optimizer with the options that hold by now, over parameters of the same shapes."""
        pairs = zip(self.parameters, dtypes, strict=True)
        kept, self.parameters = self.parameters, [self._as_parameter(spoil.plain(p, dtype)) for p, dtype in pairs]
        try:
            return self._construct(self.playing, self.options, self.trace.form), self.parameters
        finally:
            self.parameters = kept

    @staticmethod
    def _step_another(optimizer: Any) -> None:
        how = closure_of(optimizer)
        if how.required:
            optimizer.step(closure=lambda: 0.75) if how.keyword else optimizer.step(lambda: 0.75)
        else:
            optimizer.step()

    # Gradients

    def _assign_all(self, gradients: Mapping[int, Gradient | None]) -> None:
        for i, gradient in gradients.items():
            self._assign(i, gradient)

    def _assign(self, index: int, gradient: Gradient | None) -> None:
        self._put_aside(index)
        if gradient is None:
            self.parameters[index].grad = None
            return
        parameter = self.trace.parameters[index]
        values = gradient.realise(parameter.shape, parameter.dtype)
        allocation: Allocation | SparseAllocation
        if gradient.sparse is not None:
            allocation = SparseAllocation(
                parameter.shape, parameter.dtype, gradient.sparse, values, self.subject.device
            )
        else:
            allocation = Allocation(parameter.shape, parameter.dtype, gradient.layout, device=self.subject.device)
            allocation.fill(values)
        self.parameters[index].grad = allocation.view
        self.gradients[index] = allocation

    def _put_aside(self, index: int) -> None:
        """A gradient that is replaced must stay as it is as well."""
        old = self.gradients[index]
        if old is not None:
            self.replaced[index].append((old, old.memory()))
        self.gradients[index] = None

    def _accumulate(self, what: Accumulate) -> None:
        """A real backward pass, of the sum of all products of parameter and gradient."""
        for i, gradient in what.gradients.items():
            p, allocation = self.parameters[i], self.gradients[i]
            if not p.requires_grad:
                continue
            if isinstance(allocation, Allocation) and allocation.layout in ("expanded", "conjugated"):
                self._put_aside(i)
                p.grad = None if p.grad is None else p.grad.clone().resolve_conj()
            addend = self._product(i, gradient)
            if self.subject.differentiable:
                p.grad = addend if p.grad is None else addend + p.grad
            else:
                self.backward([(p, addend)])
            if allocation is not None and p.grad is not allocation.view:
                self.gradients[i] = None

    def _product(self, index: int, gradient: Gradient) -> torch.Tensor:
        parameter = self.trace.parameters[index]
        p = self.parameters[index]
        return rounded(gradient.realise(parameter.shape, parameter.dtype), p.dtype).clone().to(p.device)

    @staticmethod
    def backward(pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """The gradient of this loss by each first tensor is the second, exactly."""
        total: Any = torch.zeros((), dtype=torch.float64)
        for p, g in pairs:
            product = torch.view_as_real(p) * torch.view_as_real(g) if p.is_complex() else p * g
            total = total + product.sum()
        total.backward()
        return torch.as_tensor(total)

    def _gradient_written(self, index: int, before: Raw | SparseRaw | None, memory: bytes | None) -> bool:
        allocation, gradient = self.gradients[index], self.parameters[index].grad
        if any(old.memory() != was for old, was in self.replaced[index]):
            return True
        if allocation is not None and allocation.memory() != memory:
            return True
        if gradient is None or before is None:
            return (gradient is None) != (before is None) and self._knows(index)
        if allocation is not None and gradient is allocation.view:
            return False  # all of its memory has just been compared
        after = copy_gradient(gradient)
        if isinstance(before, SparseRaw) or isinstance(after, SparseRaw):
            return not (
                isinstance(before, SparseRaw)
                and isinstance(after, SparseRaw)
                and identical(before.values, after.values)
                and np.array_equal(before.elements, after.elements)
            )
        return after.tobytes() != before.tobytes()

    def _knows(self, index: int) -> bool:
        """Whether the optimizer has a parameter by now."""
        return any(index in g.parameters for g in self.groups)

    # What is no step

    def _idle(self, event: int, what: Event) -> None:
        before = self._snapshot()
        left: list[int] = []
        new: tuple[int, ...] = ()
        if isinstance(what, ZeroGrad):
            left = self._zero_grad(what)
        elif isinstance(what, SetOption):
            self._set_option(what)
        elif isinstance(what, AddGroup):
            new = what.group.parameters
            self._add_group(what)
        elif isinstance(what, Freeze) and not self.subject.differentiable:
            self.parameters[what.parameter].requires_grad_(not what.frozen)
        elif isinstance(what, Hook) and self._has("hooks", hasattr(self.optimizer, "register_step_pre_hook")):
            self.hooks.append(what.kind)
            self._register(self.optimizer, what.kind)
        elif isinstance(what, Schedule) and self._is_torch("schedules"):
            self._attach(what.kind)
        elif isinstance(what, Refuse):
            self.recording.attempts.append(validation.attempted(self.subject, what))
        elif isinstance(what, ScheduleStep) and self.schedule is not None and self.rehearsal is not None:
            self.rehearsal.advance()
            schedules.advance(self.schedule)
            self._follow_schedule()
        self.latest = None
        self.latest = self._snapshot()
        touched = [[] if i in new else _changes(b, a) for i, (b, a) in enumerate(zip(before, self.latest, strict=True))]
        self.recording.idle.append(IdleRecord(event, touched, left))

    def _zero_grad(self, what: ZeroGrad) -> list[int]:
        """Parameters whose gradient is left."""
        had = [p.grad is not None for p in self.parameters]
        inherits_it = isinstance(self.optimizer, torch.optim.Optimizer)  # whoever calls one of those may name it
        if not inherits_it and not takes_keyword(self.optimizer.zero_grad, "set_to_none"):
            self.optimizer.zero_grad()
            return [i for i, p in enumerate(self.parameters) if self._knows(i) and _any(p.grad)]
        self.optimizer.zero_grad(set_to_none=what.set_to_none)
        left = []
        if not what.set_to_none:
            taken = [i for i, p in enumerate(self.parameters) if had[i] and p.grad is None]
            told = "takes the gradient away, where it should fill it with zeros"
            self._note("between-steps", not taken, "gradient taken", told, taken[0] if taken else None)
        for i, p in enumerate(self.parameters):
            if self._knows(i) and p.grad is not None and (what.set_to_none or _any(p.grad)):
                left.append(i)
        return left

    def _set_option(self, what: SetOption) -> None:
        self._force(what.group, {what.option: what.value})
        self.optimizer.param_groups[what.group][what.option] = as_given(what.value, self.subject.device)
        if self.rehearsal is not None and what.option in schedules.SCHEDULED:
            self.rehearsal.set(what.group, what.option, what.value)

    def _force(self, group: int, options: Mapping[str, Option]) -> None:
        """From now on, these options hold."""
        if any(self.options[group].get(k) != v for k, v in options.items()):
            self.options[group] |= options
            self.hyper[group] = self._hyper(self.options[group])

    def _add_group(self, what: AddGroup) -> None:
        # What the constructor was given for all groups would hold for this one too, unless it is told otherwise.
        names = self.subject.options if self.subject.explicit else self.keywords
        options = {**{k: self.defaults[k] for k in names}, **what.group.options}
        options = self.subject.complete(options)
        named = any("param_names" in g for g in self.optimizer.param_groups)
        group = self._group_as_given(what.group.parameters, options, "named" if named else "list")
        before = _entries(group)
        self.optimizer.add_param_group(group)
        self._unchanged("the group given to add_param_group()", before, _entries(group))
        self.groups.append(what.group)
        self.options.append(dict(what.group.options))
        self.hyper.append(self._hyper(what.group.options))
        for i in what.group.parameters:
            self.recording.initial_state[i] = self._state(i)
        self.schedule = None  # a schedule knows the groups of its beginning alone
        if self.rehearsal is not None:
            self.rehearsal.add({**self.defaults, **what.group.options})

    def _attach(self, kind: str) -> None:
        if self.rehearsal is None:
            complete = [{**self.defaults, **o} for o in self.options]
            self.rehearsal = schedules.Rehearsal(complete, cycle=self._may_cycle_momentum())
        self.kind_of_schedule = kind
        self.rehearsal.attach(kind)
        self.schedule = schedules.attach(kind, self.optimizer, cycle=self.rehearsal.cycle)
        self._follow_schedule()

    def _may_cycle_momentum(self) -> bool:
        # With momentum, sparse gradients have no meaning for some. Whether momentum can be turned on when there was none, and no
        # buffer for it, somebody's class need not say.
        begins = self.subject.explicit and any(getattr(h, "momentum", 1) == 0 for h in self.hyper)
        cycled = [name for name in ("momentum", "betas") if name in getattr(self.optimizer, "defaults", ())]
        # What a factory does not take is not followed either.
        known = bool(cycled) and all(name in self.subject.options for name in cycled)
        return known and not begins and not self.trace.given_sparse

    def _follow_schedule(self) -> None:
        assert self.rehearsal is not None
        for n, options in enumerate(self.rehearsal.options()):
            self._force(n, {k: v for k, v in options.items() if k in self.subject.options})

    def _check_options(self) -> None:
        """That each group has the options that it was given, or that were set since."""
        groups = self.optimizer.param_groups
        told = f"leaves {len(groups)} groups where there should be {len(self.options)}"
        self._note("options-hold", len(groups) == len(self.options), "groups", told)
        if len(groups) != len(self.options):
            raise _EndOfLifeError
        for n, (group, options) in enumerate(zip(groups, self.options, strict=True)):
            for name, value in {**self.defaults, **options}.items():
                if name not in group or name not in self.subject.options or value is None:
                    continue  # what is left open may be filled in
                if group[name] is value and value == value:  # noqa: PLR0124 - the very object, as most are, and not NaN
                    self.recording.looked["options-hold"] += 1
                else:
                    self._check_option(n, name, value, as_option(group[name]))

    def _check_option(self, group: int, name: str, value: Option, got: Option) -> None:
        expected: Option = value
        if isinstance(got, Scalar) or isinstance(value, Scalar):
            got, expected = _single(got), _single(value)
        told = f"leaves group {group} with {name}={got!r} where {expected!r} was set"
        self._note("options-hold", got == expected, f"option {name}", told, option=(group, name, value))

    # Settings

    def _check_settings(self) -> None:
        """That the settings of the process are as they were; what is not is set back, for what comes after."""
        now = settings.read()
        changed = [name for name, value in now.items() if value != self.settings[name]]
        what = changed[0] if changed else ""
        told = f"leaves {what} at {settings.told(now[what])}, from {settings.told(self.settings[what])}" if what else ""
        self._note("settings-kept", not changed, what, told)
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
        self._note("settings-kept", not changed, f"default {changed[0]}" if changed else "", told)

    # Hooks

    def _register(self, optimizer: Any, kind: str) -> None:
        def hook(*_: object) -> None:
            self.calls[kind] += 1

        getattr(optimizer, f"register_{kind}_hook")(hook)

    def _expect_hooks(self, *kinds: str) -> None:
        for kind in kinds:
            if kind in self.hooks:
                self.due[kind] += self.hooks.count(kind)

    def _expect_hooks_of(self, method: str) -> None:
        """Those around a method; of somebody's own method that does not call torch's, they are not expected."""
        if self.subject.explicit and not inherits(type(self.optimizer), method):
            for kind in (f"{method}_pre", f"{method}_post"):
                del self.calls[kind]
        else:
            self._expect_hooks(f"{method}_pre", f"{method}_post")

    def _train(self, optimizer: Any) -> None:
        """Put a new optimizer, or a copy of one, into the mode in which it steps, where there are modes."""
        if self.subject.takes is not None and self.subject.takes.modes:
            optimizer.train()

    def _miscounted(self) -> tuple[str, str]:
        kinds = [k for k in {**self.due, **self.calls} if self.due[k] != self.calls[k]]
        kind = kinds[0] if kinds else ""
        return kind, f"runs its {kind} hook {self.calls[kind]} times, not {self.due[kind]}"

    # Round trips

    def _reload(self, event: int, what: Reload) -> None:
        self.latest = None
        if what.dictionary == "aged" and what.way not in ("copied", "unpickled"):
            self._age()
        saved, saved_options = [self._state(i) for i in range(len(self.parameters))], self._options()
        if what.way in ("copied", "unpickled"):
            way = what.way if what.way == "copied" or self._has("pickling", self._pickles()) else "copied"
            duplicate = resume.copied if way == "copied" else resume.unpickled
            self.optimizer = duplicate(self.optimizer, self.parameters)
            self._train(self.optimizer)
            self.hooks.clear()  # whether a copy has them is its own affair
            self.schedule = None
        elif what.way != STAYS:
            before = self.playing
            self.optimizer = self._resumed(what)
            if self.playing is not before:
                self.recording.handovers.append((event, self.playing))
        loaded = [self._state(i) for i in range(len(self.parameters))]
        self.recording.reloads.append(ReloadRecord(event, saved, loaded, saved_options, self._options()))

    def _pickles(self) -> bool:
        """Whether somebody's optimizer can be pickled: one that holds a function or a file cannot, and need not."""
        try:
            pickle.dumps(self.optimizer.__dict__ if self.subject.explicit else None)
        except Exception:  # noqa: BLE001 - whatever pickle says of it
            return False
        return True

    def _age(self) -> None:
        """Let the optimizer be older: somebody's class by taking steps, with gradients of zeros."""
        if not self.subject.explicit:
            resume.age(self.optimizer, self.subject.spec)
            return
        if not resume.ages(self.trace):
            return
        kept = [p.grad for p in self.parameters]
        for p in self.parameters:
            zeros = torch.zeros_like(p).detach()
            sparse = self.subject.spec.sparse == "only"
            p.grad = None if not p.requires_grad else zeros.to_sparse() if sparse else zeros
        self.ageing = True
        for _ in range(resume.AGED_BY):
            self._call_step(lambda: 0.75) if self._closure.required else self.optimizer.step()
        self.ageing = False
        for p, gradient in zip(self.parameters, kept, strict=True):
            p.grad = gradient
        self.calls.clear()
        self.begun.update(range(len(self.parameters)))
        self.recording.aged = self.event if self.recording.aged is None else self.recording.aged

    def _resumed(self, what: Reload) -> Any:
        """A new optimizer that has loaded the state_dict."""
        source = self.optimizer.state_dict()
        self._expect_hooks_of("state_dict")
        playing = sibling(self.subject, what.into, self.trace)
        # Somebody's class is built as its user builds it; torch's own must find all options in the dictionary.
        given = [g.options if self.subject.explicit else {} for g in self.groups]
        optimizer = self._construct(playing, given, what.form)
        if self.schedule is not None and self.rehearsal is not None:
            state = self.schedule.state_dict()
            self.schedule = schedules.attach(self.kind_of_schedule, optimizer, cycle=self.rehearsal.cycle)
            self.schedule.load_state_dict(state)
        for kind in self.hooks:
            self._register(optimizer, kind)
        if playing is not self.playing:
            source = resume.flagged(source, playing.mode_options)
        if what.dictionary == "older":
            source = resume.older(source, self.subject.spec)
        elif what.dictionary == "foreign":
            source = resume.foreign(source)
        way = (
            what.way if what.way not in ("pickled", "saved") or self._has("pickling", self._pickles()) else "deepcopied"
        )
        source = resume.carried(way, source)
        before = resume.outline(source)
        optimizer.load_state_dict(source)
        self._expect_hooks_of("load_state_dict")
        self._unchanged("the state_dict given to load_state_dict()", before, resume.outline(source))
        if what.way == "memory":  # else nobody but the new optimizer has the dictionary
            self._note_sharing(source, optimizer)
        if what.dictionary == "older":
            # An older dictionary does not say which implementation it is for.
            for group in optimizer.param_groups:
                group.update(playing.mode_options)
        self.playing = playing
        return optimizer

    def _note_sharing(self, source: Any, optimizer: Any) -> None:
        if not isinstance(source, dict):
            return
        memory = {t.untyped_storage().data_ptr() for _, t in resume.tensors(source.get("state")) if t.numel()}
        state = getattr(optimizer, "state", {})
        for i, p in enumerate(self.parameters):
            shared = [n for n, t in resume.tensors(state.get(p, {})) if t.untyped_storage().data_ptr() in memory]
            told = f"loads {_what(shared)} as the very tensor of the source, so that the two go on together"
            self._note("loaded-state-apart", not shared, "state", told, i)

    # Reading

    def _has(self, what: str, present: bool) -> bool:
        """Take note of what the subject lacks."""
        if not present:
            self.recording.lacks.add(what)
        return present

    def _is_torch(self, what: str) -> bool:
        """Schedules and scalers take descendants of torch's own class alone."""
        return self._has(what, isinstance(self.optimizer, torch.optim.Optimizer))

    def _snapshot(self) -> _Snapshot:
        """Values and states; as they were read after the event before, where gradients alone can have changed since."""
        return self.latest or [(copy(p), self._state(i)) for i, p in enumerate(self.parameters)]

    def _options(self) -> list[dict[str, Any]]:
        names = self.subject.options
        return [{k: as_option(g.get(k, self.defaults[k])) for k in names} for g in self.optimizer.param_groups]

    def _state(self, index: int) -> dict[str, Raw | float]:
        """Copies of the tensors and numbers that the optimizer keeps for one parameter."""
        state = getattr(self.optimizer, "state", {})
        result: dict[str, Raw | float] = {}
        # A defaultdict would make an entry of a parameter that it does not know yet.
        kept: Any = state.get(self.parameters[index]) if hasattr(state, "get") else None
        for name, value in kept.items() if hasattr(kept, "items") else ():
            if isinstance(value, torch.Tensor):
                result[str(name)] = copy(value)
            elif isinstance(value, (int, float)):
                result[str(name)] = float(value)
            elif isinstance(value, (list, tuple)):
                for n, entry in enumerate(value):
                    if isinstance(entry, (torch.Tensor, int, float)):
                        result[f"{name}[{n}]"] = copy(entry) if isinstance(entry, torch.Tensor) else float(entry)
        return result


class _Closure:
    """A closure that assigns the gradients of a step."""

    def __init__(self, player: Player, step: Step) -> None:
        self.player, self.step = player, step
        self.calls, self.with_gradients = 0, True
        self.result: Any = None
        self.given: _Given | None = None

    def __call__(self) -> Any:
        self.calls += 1
        self.with_gradients &= torch.is_grad_enabled()
        player, kind = self.player, self.step.closure
        player._assign_all(self.step.gradients)  # noqa: SLF001 - a part of the player
        loss = torch.tensor(0.75)
        if kind == "backward" and not player.subject.differentiable:
            loss = self._backward() or loss
        self.given = player._given()  # noqa: SLF001
        self.result = None if kind == "none" else float(loss) if kind == "float" else loss
        return self.result

    def _backward(self) -> torch.Tensor | None:
        """The same gradients once more, by autograd."""
        player, pairs = self.player, []
        for i, gradient in self.step.gradients.items():
            p = player.parameters[i]
            if gradient is not None and gradient.sparse is None and p.requires_grad:
                player._put_aside(i)  # noqa: SLF001
                p.grad = None
                pairs.append((p, player._product(i, gradient)))  # noqa: SLF001
        return player.backward(pairs) if pairs and self.with_gradients else None


class _Evaluator:
    """A closure that evaluates an objective and its gradients, and takes note."""

    def __init__(self, player: Player, objective: Objective, evaluations: list[Evaluation]) -> None:
        self.player, self.objective, self.evaluations = player, objective, evaluations
        self.calls, self.with_gradients = 0, True
        self.result: Any = None
        self.shapes = [in_reals(p.shape, p.dtype) for p in player.trace.parameters]
        seeds = range(objective.centre.seed, objective.centre.seed + len(self.shapes))
        self.centres = [
            torch.from_numpy(replace(objective.centre, seed=seed).realise((math.prod(shape),))).to(
                player.subject.device
            )
            for seed, shape in zip(seeds, self.shapes, strict=True)
        ]

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        self.with_gradients &= torch.is_grad_enabled()
        parameters = self.player.parameters
        for p in parameters:
            if self.objective.set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad.zero_()
        with torch.enable_grad():
            loss = objectives.loss(self.objective, parameters, self.centres)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        point = np.concatenate([reals(copy(p)) for p in parameters])
        zeros = [np.zeros(math.prod(shape)) for shape in self.shapes]
        gradient = [z if p.grad is None else reals(copy(p.grad)) for p, z in zip(parameters, zeros, strict=True)]
        self.evaluations.append(Evaluation(point, float(loss.detach()), np.concatenate(gradient)))
        # Of several evaluations, a step returns the first.
        self.result = loss if self.calls == 1 else self.result
        return loss


#: What Python says where an optimizer's method is called with arguments that it does not take.
_REFUSED_CALL = re.compile(
    r"[^ ]*\.(step|zero_grad|add_param_group|state_dict|load_state_dict|register_\w+_hook)\(\) (got an unexpected|takes|missing) "
)


#: What Python says of an object that cannot be pickled.
_UNPICKLABLE = re.compile(r"(?i)\b(can't|cannot) pickle\b")


def _is_our_own(error: Exception) -> bool:
    """Whether no frame of an exception lies outside the harness, and it is no call that an optimizer's signature refuses."""
    if isinstance(error, TypeError) and _REFUSED_CALL.match(said(error)):
        return False  # it was raised before a frame of the method was made
    if _UNPICKLABLE.search(said(error)):
        return False  # pickle, which is not written in Python, says so of what somebody's optimizer holds
    return not _frame(error)


def _frame(error: Exception) -> str:
    """``file:function`` of the innermost frame outside the harness; empty where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if Path(frame.filename).parent not in _ROOMS]
    # The folder is left out: the same fault has the same identity on another machine.
    return f"{Path(outside[-1].filename).name}:{outside[-1].name}" if outside else ""


#: The rooms of the harness; not the zoo, whose optimizers are somebody's.
_ROOMS = {room for room in Path(__file__).parents[1].iterdir() if room.is_dir() and room.name != "zoo"}


@functools.cache
def _patch_steps() -> None:
    """The first instance of a class of torch.optim patches its step, for its descendants too: let it not matter when that is."""
    for name in (n for n in SPECS if hasattr(torch.optim, n)):
        getattr(torch.optim, name)([torch.zeros(1, 1, requires_grad=True)])


def _any(gradient: torch.Tensor | None) -> bool:
    """Whether there is a gradient that is not zero."""
    return gradient is not None and bool(values_of(gradient).any())


def _entries(group: Mapping[str, Any]) -> dict[str, Any]:
    """What a caller's dictionary holds; a list of parameters by its members."""
    return {
        k: (type(v).__name__, list(map(id, v))) if isinstance(v, (list, tuple)) else id(v) for k, v in group.items()
    }


#: What :func:`_place` tells.
_PLACE = ("dtype", "shape", "strides", "address")


def _place(p: torch.Tensor) -> tuple[Any, ...]:
    return p.dtype, p.shape, p.stride(), p.data_ptr()


def _random_state(device: str) -> tuple[object, ...]:
    """The state of the generators that everybody shares."""
    generator: Any = np.random.mtrand.get_bit_generator()
    # To have NumPy make a dictionary of its state costs more than a step.
    twister = isinstance(generator, np.random.MT19937)
    state = ctypes.string_at(generator.ctypes.state_address, _TWISTER_BYTES) if twister else repr(generator.state)
    # Of a device's too, which is read as it is told, without waiting for the device.
    there = torch.cuda.get_rng_state(device).numpy().tobytes() if device.startswith("cuda") else b""
    return torch.get_rng_state().numpy().tobytes(), there, random.getstate(), state


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


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """NumPy's and Python's generators meanwhile stand where nobody else sets them: who seeds them is noticed, whatever they were."""
    python, generator = random.getstate(), np.random.mtrand.get_bit_generator()
    random.setstate(_PYTHONS)
    # To have NumPy make a dictionary of its state, or read one, costs more than a step. Another generator than the usual one stays.
    place = generator.ctypes.state_address if isinstance(generator, np.random.MT19937) else None
    numpys = None if place is None else ctypes.string_at(place, _TWISTER_BYTES)
    if place is not None:
        ctypes.memmove(place, _NUMPYS, _TWISTER_BYTES)
    try:
        yield
    finally:
        random.setstate(python)
        if place is not None and numpys is not None:
            ctypes.memmove(place, numpys, _TWISTER_BYTES)


#: 624 words and a position.
_TWISTER_BYTES = 625 * 4
_PYTHONS = random.Random(_SEED).getstate()  # noqa: S311 - no secret
_NUMPYS = ctypes.string_at(np.random.MT19937(_SEED).ctypes.state_address, _TWISTER_BYTES)


def _is_result(returned: Any, expected: Any) -> bool:
    if isinstance(returned, (torch.Tensor, float)) and isinstance(expected, (torch.Tensor, float)):
        return identical(float(returned), float(expected))
    return returned is expected


def _short(x: Any) -> str:
    return f"{float(x):g}" if isinstance(x, torch.Tensor) and x.numel() == 1 else named(x)[:40]


def _single(value: Any) -> float | None:
    """A number as a float32 tensor holds it."""
    number = value.value if isinstance(value, Scalar) else value
    return float(np.float32(number)) if isinstance(number, (int, float)) else None


def _what(names: Sequence[str]) -> str:
    """The first of some names, for a person."""
    return "the parameter" if names[:1] == ["value"] else names[0] if names else "nothing"


def _changes(before: tuple[Raw, State], after: tuple[Raw, State]) -> list[str]:
    """What differs between two snapshots of a parameter."""
    names = [] if identical(before[0], after[0]) else ["value"]
    return names + [
        name
        for name in {**before[1], **after[1]}
        if name not in before[1] or name not in after[1] or not identical(before[1][name], after[1][name])
    ]
