"""The ledger: divergences of released software that are known, each with its cause and a life that shows it.

A finding that an entry explains is told as known and fails nothing; and every run plays the entries' own lives again, so that
it is noticed when a release mends one. An entry claims one behaviour: its predicate is as narrow as the cause, so that a new
fault in the same buffer of the same optimizer is still found.

Which versions of torch have it is not claimed, but played: :mod:`.evidence` says what each life showed under each version. Under a version
or on a machine of which there is no evidence an entry holds if its own life shows it here.

To add one, write an ``Entry`` with its predicate, save the shrunk life that ``stepcheck check`` writes as
``harness/known/<name>.json``, and play it under all versions: ``nox -s versions``.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import evidence as versions
from stepcheck.harness.life.events import (
    Accumulate,
    Event,
    Fail,
    Gradient,
    Parameter,
    Refuse,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Step,
    keywords,
    plain,
)
from stepcheck.harness.life.memory import SparseRaw, identical, rounded_fill, strides
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.numbers.comparison import reals
from stepcheck.harness.play import spoil
from stepcheck.harness.play.families import TORCH_MODES, resolve
from stepcheck.harness.play.recording import Life
from stepcheck.harness.play.resume import AGE
from stepcheck.harness.play.signature import inherits
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record import store
from stepcheck.harness.record.store import Saved
from stepcheck.reference import SPECS
from stepcheck.reference.spec import PARAMETER

_NARROW = ("float16", "bfloat16")


@dataclass(frozen=True)
class Seen:
    """A finding, and what an entry may ask about it."""

    evidence: Evidence
    finding: Finding

    @property
    def trace(self) -> Trace:
        return self.evidence.trace

    @property
    def event(self) -> Event | None:
        """The event at which it was found; none for the construction."""
        return None if self.finding.event is None else self.trace.events[self.finding.event]

    @property
    def mode(self) -> str:
        """The mode of ``torch.optim`` that played the event: a round trip may have led from one to another."""
        return self.evidence.player(self.finding.event).mode

    @property
    def built(self) -> tuple[type | None, ...]:
        """The class of the optimizer, and that of torch's kind which it keeps inside and hands its calls to."""
        recording = self.evidence.recording
        return (recording.built, *((recording.wrapped,) if recording.wrapped is not None else ()))

    @property
    def field(self) -> str:
        """What deviates from the reference: ``parameter`` or the name of a buffer; empty where nothing was compared."""
        return self.finding.deviation.field if self.finding.deviation is not None else ""

    @property
    def got(self) -> float:
        """The witness's value; NaN where nothing was compared."""
        return self.finding.deviation.got if self.finding.deviation is not None else math.nan

    @property
    def expected(self) -> float:
        """The reference's value for it; NaN where nothing was compared."""
        return self.finding.deviation.expected if self.finding.deviation is not None else math.nan

    @property
    def index(self) -> int:
        """The parameter concerned.

        Raises:
            ValueError: the finding is about none.
        """
        if self.finding.parameter is None:
            raise ValueError(f"a finding of {self.finding.check} is about no single parameter")
        return self.finding.parameter

    @property
    def parameter(self) -> Parameter:
        return self.trace.parameters[self.index]

    @property
    def dtype(self) -> str:
        return self.parameter.dtype

    @property
    def element(self) -> int:
        """The witness, counted row-major in the parameter."""
        deviation = self.finding.deviation
        shape = self.parameter.shape
        if deviation is None or not shape:
            return 0
        return int(np.ravel_multi_index(deviation.index[: len(shape)], shape))

    @property
    def message(self) -> str:
        """What was raised, as ``kind: message``; empty where nothing was."""
        raised = self.evidence.recording.raised
        return "" if raised is None else f"{raised.kind}: {raised.message}"

    @functools.cached_property
    def life(self) -> Life | None:
        """The parameter around the step at which it was found; ``None`` where there is no such step."""
        steps = (s for s in self.evidence.recording.steps if s.event == self.finding.event)
        return next((s.lives[self.index] for s in steps), None)

    def stood(self, name: str) -> float:
        """The witness in a buffer before the step; NaN where it did not exist."""
        return _at(self.life.state.get(name) if self.life else None, self._place)

    def stands(self, name: str) -> float:
        """The witness in a buffer after the step; NaN where it does not exist."""
        return _at(self.life.state_after.get(name) if self.life else None, self._place)

    @property
    def unmoved(self) -> bool:
        """Whether the witness is what it was before the step."""
        before = _at(self.life.value, self._place) if self.field == PARAMETER and self.life else self.stood(self.field)
        return before == self.got or (math.isnan(before) and math.isnan(self.got))

    @property
    def _place(self) -> int:
        return self.finding.deviation.element if self.finding.deviation is not None else 0

    def given(self, index: int) -> list[Gradient | None]:
        """The gradients that a parameter was given up to the finding, ``None`` where one was taken away."""
        return [s.gradients[index] for s in self._steps if index in s.gradients]

    def gradient(self, index: int) -> Gradient | None:
        """The gradient that a parameter has at the finding."""
        return next(reversed(self.given(index)), None)

    @property
    def _steps(self) -> list[Step]:
        last = -1 if self.finding.event is None else self.finding.event
        return [e for e in self.trace.events[: last + 1] if isinstance(e, Step)]

    @property
    def steps(self) -> int:
        """Steps up to the finding, its own included, and those by which the state was made older."""
        last = -1 if self.finding.event is None else self.finding.event
        aged = [e for e in self.trace.events[: last + 1] if isinstance(e, Reload) and e.dictionary == "aged"]
        return len(self._steps) + AGE * len(aged)

    def accumulated(self, index: int) -> bool:
        """Whether a second backward pass added to the gradient of a parameter, or made it."""
        last = -1 if self.finding.event is None else self.finding.event
        return any(isinstance(e, Accumulate) and index in e.gradients for e in self.trace.events[: last + 1])

    @property
    def first_step(self) -> bool:
        """Whether the parameter had no gradient in any step before the one at which it was found."""
        earlier = (
            s for s in self.evidence.recording.steps if self.finding.event is None or s.event < self.finding.event
        )
        return all(s.lives[self.index].gradient is None for s in earlier)

    @property
    def had_gradient(self) -> list[int]:
        """Parameters that have a gradient at the finding."""
        return [i for i in range(len(self.trace.parameters)) if self.gradient(i) is not None]

    def group_of(self, index: int) -> int:
        return self.trace.group_of[index]

    def options(self, group: int) -> Any:
        """The options of a group that are in force at the finding, defaults included."""
        at = next((s for s in self.evidence.recording.steps if s.event == self.finding.event), None)
        if at is not None:
            return at.hyper[group]
        raised = self.evidence.recording.raised
        if raised is not None and raised.event == self.finding.event and raised.event is not None:
            return self.evidence.recording.hyper[group]
        given = dict(self.trace.all_groups[group].options)
        last = len(self.trace.events) if self.finding.event is None else self.finding.event
        for event in self.trace.events[:last]:
            if isinstance(event, SetOption) and event.group == group:
                given[event.option] = event.value
        return self.evidence.subject.spec.hyper_values(plain(given))

    @property
    def own(self) -> Any:
        """The options of the parameter's group that are in force at the finding."""
        return self.options(self.group_of(self.index))


def _at(values: Any, place: int) -> float:
    flat = reals(values.values if isinstance(values, SparseRaw) else values) if values is not None else np.zeros(0)
    return float(flat[place]) if place < flat.size else math.nan


_ALL = " ".join(SPECS)
#: What all of them do, one that is not in torch does as well where it inherits it.
_EVERY = tuple(_ALL.split())


@dataclass(frozen=True)
class Entry:
    """One known behaviour of released software.

    Attributes:
        name: never changes; also the name of its life, ``harness/known/<name>.json``.
        statement: the behaviour, in one line.
        optimizers: whose behaviour it is.
        modes: in which modes; empty for all.
        checks: the checks that may find it.
        explains: whether it is the cause of a finding of these checks, in these optimizers and modes.
        link: a public report of it, where there is one.
        library: whose it is.
        inherited: the method of ``torch.optim.Optimizer`` in which the cause lies: such an entry may explain a finding for
            somebody's class as well, if the class inherits that very method.
    """

    name: str
    statement: str
    optimizers: tuple[str, ...]
    checks: tuple[str, ...]
    explains: Callable[[Seen], bool]
    modes: tuple[str, ...] = ()
    link: str = ""
    library: str = "torch"
    inherited: str = ""

    @property
    def holds(self) -> bool:
        """Whether the torch that is installed has it: by evidence or, where there is none, because its own life shows it here."""
        seen = self.seen_here
        return shows_here(self) if seen is None else seen

    @property
    def seen_here(self) -> bool | None:
        """Whether its life was seen to show it under this version of torch, on such a machine; ``None`` where that was not played."""
        here = versions.here()
        return None if here is None else here.saw(self.name, self.where)

    @property
    def where(self) -> str:
        """The optimizer and the mode of its life, such as ``SGD[fused]``; of a class that derives from torch's, the plain mode."""
        library, _, where = self.saved.subject.partition(":")
        return where if library == self.library else f"{self.saved.trace.optimizer}[forloop]"

    @property
    def span(self) -> versions.Span:
        """The versions that were seen to have it."""
        return versions.span(self.name, self.where)

    @functools.cached_property
    def saved(self) -> Saved:
        """Its own life, with the subject that it was found on."""
        return store.load(store.KNOWN_FOLDER / f"{self.name}.json")

    @property
    def subject(self) -> Subject:
        """The subject that it was found on."""
        return resolve(self.saved.subject, self.saved.trace.optimizer)[0]

    def concerns(self, subject: Subject, built: type | None = None) -> bool:
        """Whether its behaviour may be that of a subject; of a factory, ``built`` is the class of what it returned."""
        if subject.spec.name not in self.optimizers and self.optimizers != _EVERY:
            return False
        if subject.explicit:  # somebody's class: its own faults are its own
            of = built or subject.make
            return (
                inherits(of, self.inherited)
                if self.inherited
                else self.library == "torch" and _steps_as_torch(of, subject.spec.name)
            )
        return subject.name.partition(":")[0] == self.library

    def claims(self, seen: Seen) -> bool:
        """Whether this would be why ``seen`` diverges, if the torch that is installed has it."""
        return (
            seen.finding.check in self.checks
            and any(self.concerns(seen.evidence.subject, built) for built in seen.built)
            and (not self.modes or seen.mode in self.modes)
            and self.explains(seen)
        )

    def explanation_of(self, seen: Seen) -> bool:
        """Whether this is why ``seen`` diverges."""
        return self.claims(seen) and self.holds

    def owner(self, evidence: Evidence, finding: Finding) -> str:
        """Whose fault it is, where it is not the subject's own: a mode that a round trip led into, or torch's base class."""
        if not evidence.subject.explicit:
            return finding.owner
        return "torch.optim.Optimizer" if self.inherited else f"torch.optim.{evidence.subject.spec.name}"


def _steps_as_torch(make: Callable[..., Any], name: str) -> bool:
    """Whether a class derives from torch's of this name, and leaves to it how it is built and steps."""
    theirs = getattr(torch.optim, name, None)
    return isinstance(theirs, type) and all(inherits(make, method, theirs) for method in ("__init__", "step"))


LEDGER: dict[str, Entry] = {}
#: Entries of which there is no evidence for the torch that is installed, and whether their own lives show them here.
PLAYED: dict[str, bool] = {}


def shows_here(entry: Entry) -> bool:
    """Whether an entry's own life shows it under the torch that is installed. It is played once, in this process."""
    if entry.name not in PLAYED:
        PLAYED[entry.name] = not entry.subject.unsupported and not shows(entry.subject, entry)
    return PLAYED[entry.name]


def shows(subject: Subject, entry: Entry) -> str:
    """Why an entry's own life does not show on a subject what the entry explains; empty where it does."""
    trace = replace(entry.saved.trace, optimizer=subject.spec.name)

    def claims(evidence: Evidence, finding: Finding) -> bool:
        with np.errstate(all="ignore"):
            return entry.claims(Seen(evidence, finding))

    evidence = Evidence(subject, trace, known=claims)
    seen = list(CHECKS[entry.saved.check].find(evidence))
    if any(claims(evidence, finding) for finding in seen):
        return ""
    told = "; ".join(f"{finding.cause}: {finding.summary}" for finding in seen)
    return f"its life shows something else ({told})" if told else "its life shows nothing"


def explanation(evidence: Evidence, finding: Finding) -> Entry | None:
    """The entry that explains a finding, if there is one."""
    seen = Seen(evidence, finding)
    with np.errstate(all="ignore"):
        return next((entry for entry in LEDGER.values() if entry.explanation_of(seen)), None)


def knows(evidence: Evidence, finding: Finding) -> Entry | None:
    """The entry that explains a finding or, of a deviation, what it comes from: the check that would tell of that may not be asked."""
    entry = explanation(evidence, finding)
    if entry is None and finding.check == "agreement" and evidence.explanation is not None:
        return explanation(evidence, evidence.explanation)
    return entry


def _enter(
    name: str, statement: str, optimizers: str, checks: str, modes: str = "", **more: str
) -> Callable[[Callable[[Seen], bool]], Callable[[Seen], bool]]:
    """Declare an entry by decorating its predicate."""

    def decorate(explains: Callable[[Seen], bool]) -> Callable[[Seen], bool]:
        names = (tuple(text.split()) for text in (optimizers, checks, modes))
        of, by, in_modes = names
        LEDGER[name] = Entry(name, statement, of, by, explains, in_modes, **more)
        return explains

    return decorate


_TAKE_COMPLEX = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop"

# The fused kernels of the CPU -----------------------------------------------------------------------------------------


def _order(shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """The strides that decide where the elements stand: those of dimensions with more than one."""
    return tuple(s for n, s in zip(shape, strides(shape, layout), strict=True) if n > 1)


def _gaps(p: Parameter) -> bool:
    """Whether the elements do not fill the memory from the first to the last."""
    return 1 + sum((n - 1) * s for n, s in zip(p.shape, strides(p.shape, p.layout), strict=True)) > p.numel > 0


@_enter(
    "fused-cpu-ignores-strides",
    "the fused kernels for CPU walk numel() elements from data_ptr(), whatever the strides",
    "SGD Adam AdamW Adagrad",
    "agreement memory-beside no-gradient",
    "fused capturable",
)
def _(seen: Seen) -> bool:
    p = seen.parameter
    if seen.finding.check == "memory-beside":
        return _gaps(p)
    if seen.finding.check == "no-gradient":  # what lies in the gaps of another
        return p.within is not None or any(q.within == seen.index for q in seen.trace.parameters)
    # Where all tensors have the same gapless memory, the walk is right. SGD's buffer has the strides of the first gradient.
    given = seen.given(seen.index) if seen.evidence.subject.spec.name == "SGD" else [seen.gradient(seen.index)]
    orders = {_order(p.shape, g.layout) for g in given if g is not None}
    return _gaps(p) or bool(orders - {_order(p.shape, p.layout)})


def _in_a_narrow_vector(seen: Seen) -> bool:
    # Vectors have 8 elements or a multiple of that; what is left over after the last one is computed one by one.
    return seen.dtype in _NARROW and seen.element < seen.parameter.numel // 8 * 8


@_enter(
    "fused-cpu-takes-any-state",
    "the fused kernels for the CPU take state to lie in row order and to have the parameter's elements: of less they read and write beyond the end",
    "SGD Adam AdamW Adagrad",
    "malformed-state",
    "fused capturable",
)
def _(seen: Seen) -> bool:
    return seen.finding.cause in (spoil.MEMORY, "another layout")


@_enter(
    "fused-sgd-never-stores-narrow-vectors",
    "the fused kernel of SGD for CPU computes whole vectors of float16 and bfloat16 parameters and never stores them",
    "SGD",
    "agreement",
    "fused",
    link="https://github.com/pytorch/pytorch/issues/191763",
)
def _(seen: Seen) -> bool:
    return seen.field == PARAMETER and _in_a_narrow_vector(seen) and seen.unmoved


@_enter(
    "fused-sgd-misreads-narrow-momentum",
    "in whole vectors of float16 and bfloat16 the fused kernel of SGD for CPU reads the momentum buffer as if it were float32",
    "SGD",
    "agreement",
    "fused",
    link="https://github.com/pytorch/pytorch/pull/191774",
)
def _(seen: Seen) -> bool:
    # The first step fills the buffer and reads none; a buffer of NaN is there.
    held = seen.life is not None and seen.life.state.get("momentum_buffer") is not None
    return seen.field == "momentum_buffer" and _in_a_narrow_vector(seen) and held


@_enter(
    "fused-sgd-rounds-weight-decay-to-narrow",
    "in whole vectors of float16 and bfloat16 the fused kernel of SGD for CPU rounds weight_decay to the dtype first",
    "SGD",
    "agreement",
    "fused",
)
def _(seen: Seen) -> bool:
    if seen.field != "momentum_buffer" or not _in_a_narrow_vector(seen) or not seen.first_step or seen.life is None:
        return False
    g, p = _at(seen.life.gradient, seen.element), _at(seen.life.value, seen.element)
    decay = rounded_fill(seen.own.weight_decay, seen.dtype)
    # The first buffer is the gradient with its decay: a product and a sum contracted in float32, rounded when stored.
    filled = float(np.float32((-g if seen.own.maximize else g) + decay * p))
    return decay != seen.own.weight_decay and seen.got == rounded_fill(filled, seen.dtype)


@_enter(
    "fused-sgd-late-first-gradient",
    "a parameter whose first gradient comes after another's has no momentum buffer, and the fused kernel is given None",
    "SGD",
    "completes",
    "fused",
)
def _(seen: Seen) -> bool:
    def late(group: int) -> bool:
        own = seen.trace.all_groups[group].parameters
        members = [i for i in own if seen.gradient(i) is not None or seen.accumulated(i)]
        return seen.options(group).momentum != 0 and len(members) > 1

    return seen.message.startswith("TypeError: ") and any(map(late, range(len(seen.trace.all_groups))))


@_enter(
    "fused-amsgrad-drops-nan",
    "past the last whole vector the fused kernels for CPU take the maximum by std::max, which drops NaN",
    "Adam AdamW",
    "agreement",
    "fused capturable",
)
def _(seen: Seen) -> bool:
    dropped = math.isnan(seen.expected) and not math.isnan(seen.got)
    return seen.own.amsgrad and seen.field in ("max_exp_avg_sq", PARAMETER) and dropped


# SGD ------------------------------------------------------------------------------------------------------------------


def _adds_in_place(seen: Seen, group: int) -> bool:
    options = seen.options(group)
    return bool(options.nesterov) and options.weight_decay == 0 and not options.maximize


@_enter(
    "foreach-nesterov-writes-gradient",
    "with nesterov and neither weight_decay nor maximize, the momentum is added to p.grad itself",
    "SGD",
    "gradient-unwritten failed-step",
    "foreach",
)
def _(seen: Seen) -> bool:
    if seen.finding.check == "failed-step":  # the gradients of groups before the one that makes it fail
        return seen.finding.cause == "gradient" and any(
            _adds_in_place(seen, n) for n in range(len(seen.trace.all_groups))
        )
    return _adds_in_place(seen, seen.group_of(seen.index))


@_enter(
    "foreach-nesterov-writes-expanded-gradient",
    "the same addition to p.grad itself raises where the gradient is expanded",
    "SGD",
    "completes",
    "foreach",
)
def _(seen: Seen) -> bool:
    def expanded(i: int) -> bool:
        gradient = seen.gradient(i)
        return gradient is not None and gradient.layout == "expanded" and _adds_in_place(seen, seen.group_of(i))

    told = seen.message.startswith("RuntimeError: unsupported operation: more than one element")
    return told and any(map(expanded, range(len(seen.trace.parameters))))


# Gradients that are views, complex or sparse -----------------------------------------------------------------------------


def _given_conjugated(seen: Seen) -> bool:
    gradients = map(seen.gradient, range(len(seen.trace.parameters)))
    return any(g is not None and g.layout == "conjugated" for g in gradients)


@_enter(
    "conjugated-gradient-viewed-as-real",
    "torch.view_as_real refuses a gradient with the conjugate bit",
    _TAKE_COMPLEX,
    "completes",
)
def _(seen: Seen) -> bool:
    told = "view_as_real doesn't work on unresolved conjugated tensors"
    return told in seen.message and _given_conjugated(seen)


@_enter(
    "conjugated-gradient-foreach",
    "a foreach operation in place on a list of gradients with the conjugate bit has no fallback",
    "SGD " + _TAKE_COMPLEX,
    "completes",
    "foreach",
)
def _(seen: Seen) -> bool:
    return "fallback doesn't currently support mutable" in seen.message and _given_conjugated(seen)


@_enter(
    "sparse-added-at-twice-the-offset",
    "a coalesced sparse tensor added to a dense one-dimensional view counts the view's offset twice",
    "SGD Adagrad SparseAdam",
    "agreement memory-beside",
)
def _(seen: Seen) -> bool:
    gradients, p = [seen.gradient(seen.index)], seen.parameter
    if not seen.field:  # what was written beside it, another may have written that stands in the same memory
        root = seen.index if p.within is None else p.within
        gradients += [seen.gradient(i) for i, q in enumerate(seen.trace.parameters) if root in (i, q.within)]
    # A parameter that is no view has no offset; the states, which the optimizer makes itself, are none.
    viewed = p.layout != "contiguous" and len(p.shape) == 1
    sparse = any(g is not None and g.sparse is not None for g in gradients)
    return viewed and sparse and seen.field in ("", PARAMETER)


@_enter(
    "adagrad-squares-sparse-complex-whole",
    "the square of a complex sparse gradient is that of the complex number, of a dense one those of its parts",
    "Adagrad",
    "agreement",
)
def _(seen: Seen) -> bool:
    gradient = seen.gradient(seen.index)
    sparse = gradient is not None and gradient.sparse is not None
    return sparse and is_complex(seen.dtype) and seen.field in ("sum", PARAMETER)


# Initial state, and what becomes of it in a round trip -------------------------------------------------------------------


@_enter(
    "adagrad-ignores-group-initial-accumulator",
    "sum starts at the initial_accumulator_value of the constructor, never at that of a group",
    "Adagrad",
    "agreement groups-independent option-effect skipped-step failed-step",
)
def _(seen: Seen) -> bool:
    if seen.finding.parameter is None:
        return False
    if seen.finding.check in ("skipped-step", "failed-step"):  # a state was begun, rightly, with the wrong sum
        return seen.finding.cause == "sum" and seen.options(seen.group_of(seen.index)).initial_accumulator_value != 0
    own = rounded_fill(seen.options(seen.group_of(seen.index)).initial_accumulator_value, seen.dtype)
    if seen.finding.event is None:
        return seen.field == "sum" and seen.got != own
    # The first step starts from that wrong sum.
    return seen.first_step and seen.field in ("sum", PARAMETER) and seen.stood("sum") != own


#: Numbers that are kept for each parameter as float32 tensors, beside ``step``.
_SCALARS: Mapping[str, tuple[str, ...]] = {"ASGD": ("eta", "mu"), "NAdam": ("mu_product",), "LBFGS": ("t",)}


@_enter(
    "load-state-dict-casts-scalars",
    "load_state_dict casts all state but step to the parameter's dtype: eta and mu, mu_product, a tensor t from float32",
    "ASGD NAdam LBFGS",
    "save-load-continue",
    link="https://github.com/pytorch/pytorch/issues/75224",
)
def _(seen: Seen) -> bool:
    """Explains the change itself, and what a step does differently because of it."""
    if seen.dtype not in (*_NARROW, "float64"):
        return False
    names = _SCALARS[seen.evidence.subject.spec.name]
    if seen.field:
        # What was loaded is another number; or it is the same, and the next one that is stored there is rounded to the dtype.
        return any(
            not identical(reload.saved[seen.index][name], reload.loaded[seen.index][name])
            for reload in seen.evidence.recording.reloads
            for name in names
            if name in reload.saved[seen.index] and name in reload.loaded[seen.index]
        ) or any(
            d.got == rounded_fill(d.expected, seen.dtype)
            for d in seen.evidence.judgement.deviations
            if (d.event, d.parameter) == (seen.finding.event, seen.index) and d.field in names
        )
    name = seen.finding.cause.removeprefix("state ")
    reload = next(r for r in seen.evidence.recording.reloads if r.event == seen.finding.event)
    if name not in names or name not in reload.loaded[seen.index]:
        return False
    cast = torch.tensor(reload.saved[seen.index][name]).to(getattr(torch, seen.dtype)).double()
    return identical(np.float64(reload.loaded[seen.index][name]), cast.numpy())


# Numerics of single optimizers --------------------------------------------------------------------------------------------


@_enter(
    "asgd-power-overflows",
    "eta = lr / (1 + lambd lr t)^alpha is a power of Python floats, which raises where it should be infinite",
    "ASGD",
    "completes",
)
def _(seen: Seen) -> bool:
    def overflows(group: int) -> bool:
        o = seen.options(group)
        return bool(o.alpha * math.log2(1 + o.lambd * o.lr * seen.steps) >= 1023)

    return seen.message.startswith("OverflowError: ") and any(map(overflows, range(len(seen.trace.all_groups))))


@_enter(
    "radam-foreach-unused-term-is-nan",
    "while not yet rectified, 1 / ((root of the second moment + eps) / -0) is added: NaN where that sum is 0 or NaN",
    "RAdam",
    "agreement",
    "foreach",
)
def _(seen: Seen) -> bool:
    if seen.field != PARAMETER or not math.isnan(seen.got) or math.isnan(seen.expected):
        return False
    beta2, t = seen.own.betas[1], seen.stands("step")
    longest = 2 / (1 - beta2) - 1
    rectified = longest - 2 * t * beta2**t / (1 - beta2**t) > 5
    v = seen.stands("exp_avg_sq")
    return not rectified and (math.isnan(v) or v == 0 == rounded_fill(seen.own.eps, seen.dtype))


@_enter(
    "rprop-eta-minus-rounds-to-one",
    "where eta- rounds to 1 in the dtype, elements whose gradient kept its sign count as if it had changed: they stand still",
    "Rprop",
    "agreement",
)
def _(seen: Seen) -> bool:
    if rounded_fill(seen.own.etas[0], seen.dtype) != 1:
        return False
    return (seen.field == PARAMETER and seen.unmoved) or (seen.field == "prev" and seen.got == 0)


@_enter(
    "adafactor-eps-of-the-first-dtype",
    "eps[0] = None becomes the machine epsilon of the first parameter's dtype, for all parameters of the group",
    "Adafactor",
    "agreement",
)
def _(seen: Seen) -> bool:
    members = seen.trace.all_groups[seen.group_of(seen.index)].parameters
    dtypes = [seen.trace.parameters[i].dtype for i in members if seen.gradient(i) is not None]
    # The foreach step sorts them by dtype first, in an order of its own.
    first = dtypes if seen.mode == "foreach" else dtypes[:1]
    return seen.own.eps[0] is None and seen.field == PARAMETER and set(first) != {seen.dtype}


@_enter(
    "adafactor-eps-squared-leaves-float16",
    "eps[0] squared is given to clamp as a Python float, which raises where float16 does not hold it",
    "Adafactor",
    "completes",
)
def _(seen: Seen) -> bool:
    def refused(i: int) -> bool:
        eps = seen.options(seen.group_of(i)).eps[0]
        return seen.trace.parameters[i].dtype == "float16" and eps is not None and eps * eps > 65504

    told = re.match("RuntimeError: value cannot be converted to type (at|c10)::Half", seen.message)
    return told is not None and any(map(refused, seen.had_gradient))


@_enter(
    "muon-normalizes-its-bfloat16-momentum",
    "without nesterov, grad.bfloat16() of a bfloat16 buffer is the buffer itself, which is then normalized in place",
    "Muon",
    "agreement",
    link="https://github.com/pytorch/pytorch/pull/194664",
)
def _(seen: Seen) -> bool:
    return seen.field == "momentum_buffer" and seen.dtype == "bfloat16" and not seen.own.nesterov


def _steps_without_elements(seen: Seen) -> bool:
    raised = seen.evidence.recording.raised
    stepped = range(len(seen.trace.parameters)) if raised is not None and raised.ageing else seen.had_gradient
    return any(seen.trace.parameters[i].numel == 0 for i in stepped)


@_enter(
    "adafactor-divides-by-no-elements",
    "the norm of a parameter without elements is divided by their number",
    "Adafactor",
    "completes",
)
def _(seen: Seen) -> bool:
    return seen.message.startswith("ZeroDivisionError: ") and _steps_without_elements(seen)


@_enter(
    "muon-divides-by-no-elements",
    "the ratio of the sides of a parameter without elements is a division by zero",
    "Muon",
    "completes",
)
def _(seen: Seen) -> bool:
    return seen.message.startswith("ZeroDivisionError: ") and _steps_without_elements(seen)


# LBFGS ----------------------------------------------------------------------------------------------------------------


@_enter(
    "lbfgs-views-strided-gradient",
    "a gradient that is not contiguous, as that of a transposed parameter, is flattened with view()",
    "LBFGS",
    "completes",
    link="https://github.com/pytorch/pytorch/issues/130346",
)
def _(seen: Seen) -> bool:
    strided = any(_order(p.shape, p.layout) != _order(p.shape, "contiguous") for p in seen.trace.parameters)
    return strided and seen.message.startswith("RuntimeError: view size is not compatible with input")


@_enter(
    "lbfgs-largest-of-no-elements",
    "parameters without any element have no largest gradient: max() raises",
    "LBFGS",
    "completes",
)
def _(seen: Seen) -> bool:
    empty = all(p.numel == 0 for p in seen.trace.parameters)
    return empty and seen.message.startswith("RuntimeError: max(): Expected reduction dim")


@_enter(
    "lbfgs-strong-wolfe-nan-loss",
    "a loss of NaN leaves a bracket of one trial, and the line search asks for the second",
    "LBFGS",
    "completes",
)
def _(seen: Seen) -> bool:
    # The evaluations of a step that raises are not recorded, so that the loss itself cannot be asked for.
    searched = seen.options(0).line_search_fn == "strong_wolfe"
    return searched and seen.message == "IndexError: list index out of range"


@_enter(
    "lbfgs-extrapolates-a-whole-number",
    "an lr of 1, the default, stays a Python int as the first trial of a line search; ten times as far each time, where the loss goes on falling, it soon fits no tensor",
    "LBFGS",
    "completes",
)
def _(seen: Seen) -> bool:
    hyper = seen.options(0)
    whole = float(hyper.lr).is_integer() and "lr" not in hyper.tensors
    return hyper.line_search_fn == "strong_wolfe" and whole and seen.message == "OverflowError: int too big to convert"


@_enter(
    "lbfgs-history-size-set-later",
    "the list of coefficients is made for the first history_size: with another one later, its entries are sought beyond its end",
    "LBFGS",
    "completes",
)
def _(seen: Seen) -> bool:
    changed = any(isinstance(e, SetOption) and e.option == "history_size" for e in seen.trace.events)
    return changed and seen.message.startswith("IndexError: list ")


@_enter(
    "lbfgs-history-size-lowered-later",
    "the oldest pair is dropped where there are exactly history_size: with fewer of them later, none ever is",
    "LBFGS",
    "agreement option-effect",
)
def _(seen: Seen) -> bool:
    # With one pair more or less it goes another way, and that may show before the lists do.
    held = 0 if seen.life is None else sum(name.startswith("ro[") for name in seen.life.state)
    return _set_before(seen, "history_size") and held > seen.options(0).history_size


def _set_before(seen: Seen, name: str) -> bool:
    """Whether an option was set between construction and the finding."""
    return any(isinstance(e, SetOption) and e.option == name for e in seen.trace.events[: seen.finding.event])


def _spends_either(seen: Seen) -> bool:
    """Whether as many evaluations were made as the first max_iter would leave, or the present one, and those are not as many."""
    step = next((s for s in seen.evidence.recording.steps if s.event == seen.finding.event), None)
    first = seen.evidence.subject.spec.hyper_values(plain(seen.trace.groups[0].options))
    left = {o.max_iter * 5 // 4 for o in (first, seen.options(0))}
    return step is not None and len(left) > 1 and len(step.evaluations) >= min(left)


def _given_in_the_group(seen: Seen, *names: str) -> bool:
    """Whether one of these options stood in the dictionary of the group, not among the constructor's keywords."""
    groups = [g.options for g in seen.trace.groups]
    return any(n in groups[0] and n not in keywords(groups, seen.trace.form) for n in names)


@_enter(
    "lbfgs-derives-max-eval-from-the-keyword",
    "max_eval = max_iter * 5 // 4 is formed of the constructor's keywords: a max_iter of the group or set later, or max_eval=None, is not looked at",
    "LBFGS",
    "agreement option-effect completes",
)
def _(seen: Seen) -> bool:
    if seen.options(0).max_eval is not None:
        return False
    told = re.match(r"TypeError: (unsupported operand|'>=' not supported).*NoneType", seen.message)
    shown = told is not None or seen.finding.check != "completes"
    in_group = shown and _given_in_the_group(seen, "max_iter", "max_eval")
    return in_group or (_set_before(seen, "max_iter") and _spends_either(seen))


@_enter(
    "lbfgs-keeps-the-tensor-lr-as-state",
    "a learning rate that is a tensor becomes state['t'] itself, so that whoever fills the one changes the other",
    "LBFGS",
    "between-steps",
)
def _(seen: Seen) -> bool:
    return seen.finding.cause == "t" and any(isinstance(o.get("lr"), Scalar) for o in seen.trace.given_options)


# The life around the steps ----------------------------------------------------------------------------------------------


@_enter(
    "load-state-dict-shares-tensors",
    "load_state_dict keeps the tensors of the dictionary where their dtype and device fit: two optimizers then step one state",
    _ALL,
    "loaded-state-apart",
    link="https://github.com/pytorch/pytorch/issues/196083",
    inherited="load_state_dict",
)
def _(seen: Seen) -> bool:
    return isinstance(seen.event, Reload) and seen.event.way == "memory"


@_enter(
    "add-param-group-writes-the-callers-dictionary",
    "the dictionaries of groups are kept and filled with defaults: the caller's own change, and go on changing with the optimizer",
    _ALL,
    "dicts-unchanged",
    inherited="add_param_group",
)
def _(seen: Seen) -> bool:
    return seen.finding.cause in ("the groups given to the constructor", "the group given to add_param_group()")


@_enter(
    "groups-share-the-tensor-lr",
    "a learning rate that is a tensor and given once is one tensor for all groups: a schedule that fills it for one fills it for all",
    _ALL,
    "options-hold agreement groups-independent option-effect",
)
def _(seen: Seen) -> bool:
    rates = {g.options.get("lr") for g in seen.trace.groups}
    shared = len(seen.trace.groups) > 1 and len(rates) == 1 and isinstance(rates.pop(), Scalar)
    before = seen.trace.events[: (seen.finding.event or 0) + 1]
    about = seen.finding.cause == "option lr" or seen.field == PARAMETER
    return shared and about and any(isinstance(e, (Schedule, ScheduleStep)) for e in before)


class StepsBySuper(torch.optim.SGD):
    """A class as many are: its step is that of torch's class, and something else."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@_enter(
    "super-step-runs-hooks-again",
    "the step of a class and the step of torch's class that it calls by super() are both patched to run the hooks: they run twice",
    _ALL,
    "hooks-run-once",
    inherited="_patch_step_function",
)
def _(seen: Seen) -> bool:
    built = seen.evidence.recording.built
    above = [] if built is None else built.__mro__[1:]
    descends = any(getattr(torch.optim, c.__name__, None) is c is not torch.optim.Optimizer for c in above)
    # Or its step calls that of another class which is not torch's.
    descends = descends or (built is not None and _calls_step_above(built))
    counted = re.search(r"(\d+) times, not (\d+)", seen.finding.summary)
    return descends and counted is not None and int(counted[1]) == 2 * int(counted[2])


def _calls_step_above(built: type) -> bool:
    """Whether the step of a class calls, by super(), one that stands in another class of its own."""
    own = inspect.unwrap(vars(built).get("step", object))
    names = getattr(getattr(own, "__code__", None), "co_names", ())
    above = (c for c in built.__mro__[1:] if c is not torch.optim.Optimizer)
    return {"super", "step"} <= set(names) and any("step" in vars(c) for c in above)


def _went_through_a_copy(seen: Seen) -> bool:
    return any(
        isinstance(e, Reload) and e.way in ("copied", "unpickled") for e in seen.trace.events[: seen.finding.event]
    )


@_enter(
    "copies-lose-attributes",
    "__getstate__ names defaults, state and param_groups alone: what else a class sets in __init__ is missing after copy or pickle",
    _ALL,
    "completes",
    inherited="__getstate__",
)
def _(seen: Seen) -> bool:
    # Of torch's own classes, LBFGS alone sets others.
    others = seen.evidence.subject.explicit or seen.evidence.subject.spec.name == "LBFGS"
    return others and seen.message.startswith("AttributeError: ") and _went_through_a_copy(seen)


@_enter(
    "copies-lose-gradient-scaling",
    "after copy or pickle a fused optimizer does not tell GradScaler any more that it unscales itself, and float16 is refused",
    "SGD Adam AdamW Adagrad",
    "completes",
    "fused",
)
def _(seen: Seen) -> bool:
    return "Attempting to unscale FP16 gradients" in seen.message and _went_through_a_copy(seen)


@_enter(
    "parameters-before-a-refused-gradient-are-stepped",
    "a gradient is looked at when its turn comes: groups and parameters before it have been stepped when it is refused",
    _ALL,
    "failed-step",
)
def _(seen: Seen) -> bool:
    concerned, event, of = seen.finding.parameter, seen.event, seen.trace.group_of
    if not isinstance(event, Fail) or event.kind not in ("gradient", "dtype") or concerned in (None, event.parameter):
        return False
    # Of one group, foreach takes the dtypes in an order of its own.
    return of[concerned] <= of[event.parameter]


@_enter(
    "other-dtype-is-refused-half-way",
    "a gradient of another dtype is refused by the first operation that minds: state is created, steps are counted, weights decayed before",
    _ALL,
    "failed-step",
)
def _(seen: Seen) -> bool:
    event = seen.event
    return isinstance(event, Fail) and event.kind == "dtype" and seen.finding.parameter == event.parameter


@_enter(
    "rmsprop-momentum-turned-on-later",
    "momentum that a schedule turns on after the first step finds no momentum_buffer: KeyError",
    "RMSprop",
    "completes",
)
def _(seen: Seen) -> bool:
    cycled = any(isinstance(e, Schedule) and e.kind in ("OneCycleLR", "CyclicLR") for e in seen.trace.events)
    return cycled and seen.message == "KeyError: 'momentum_buffer'"


@_enter(
    "fused-sgd-skipped-first-step-leaves-garbage",
    "a first step that gradient scaling skips leaves momentum buffers that were allocated and never filled",
    "SGD",
    "skipped-step",
    "fused",
)
def _(seen: Seen) -> bool:
    return seen.finding.cause == "momentum_buffer"


@_enter(
    "sgd-nesterov-looks-at-keywords-alone",
    "nesterov as a keyword is refused although the groups have momentum: the constructor looks at its own keywords alone",
    "SGD",
    "completes",
)
def _(seen: Seen) -> bool:
    return "Nesterov momentum requires a momentum and zero dampening" in seen.message


# What is invalid --------------------------------------------------------------------------------------------------------


@_enter(
    "groups-are-not-validated",
    "options are validated as keywords of the constructor, and never in a group: not in its list of groups, nor in add_param_group",
    _ALL,
    "refuses-invalid",
)
def _(seen: Seen) -> bool:
    return seen.finding.cause in ("in group", "in add_param_group")


@_enter(
    "infinite-options-are-accepted",
    "numbers are compared with their lower bound alone, which infinity passes",
    _ALL,
    "refuses-invalid",
)
def _(seen: Seen) -> bool:
    e = seen.event
    if not isinstance(e, Refuse) or e.place != "construction" or e.kind != "inf":
        return False
    hyper = next(h for h in seen.evidence.subject.spec.hyper if h.name == e.option)
    entries = e.value if isinstance(e.value, tuple) else (e.value,)
    # Only where the domain has no end on that side.
    return all(
        (domain.high if x > 0 else domain.low) == x
        for x, domain in zip(entries, hyper.entry_domains(), strict=True)
        if isinstance(x, float) and math.isinf(x)
    )


@_enter(
    "sgd-accepts-nan",
    "lr, momentum and weight_decay are tested with `x < 0.0`, which NaN passes; dampening is not tested at all",
    "SGD",
    "refuses-invalid",
)
def _(seen: Seen) -> bool:
    e = seen.event
    return isinstance(e, Refuse) and (
        e.option == "dampening" or (e.kind == "nan" and e.option in ("lr", "momentum", "weight_decay"))
    )


@_enter(
    "tuples-of-any-length-are-accepted",
    "the entries of a tuple are tested one by one, its length is not: step() fails to unpack it",
    "Adam AdamW Adamax NAdam RAdam SparseAdam Adafactor Rprop Adadelta Muon",
    "refuses-invalid",
)
def _(seen: Seen) -> bool:
    return isinstance(seen.event, Refuse) and seen.event.kind == "wrong length"


#: Options that a constructor does not look at.
_UNCHECKED = {
    "ASGD": ("lambd", "alpha", "t0"), "Rprop": ("step_sizes",), "Muon": ("eps", "ns_steps", "ns_coefficients"),
    "LBFGS": ("max_iter", "max_eval", "tolerance_grad", "tolerance_change", "history_size", "line_search_fn"),
}  # fmt: skip
#: Options of which it overlooks one kind of fault.
_HALF_CHECKED = {("RMSprop", "alpha"): ("too large", "inf"), ("LBFGS", "lr"): ("conflict",)}


@_enter(
    "options-that-are-not-looked-at",
    "some options are not looked at: "
    + "; ".join(f"{who}: {', '.join(names)}" for who, names in _UNCHECKED.items())
    + "; RMSprop: alpha from 1 on; LBFGS: lr=0 with strong_wolfe",
    " ".join((*_UNCHECKED, "RMSprop")),
    "refuses-invalid",
)
def _(seen: Seen) -> bool:
    e, name = seen.event, seen.evidence.subject.spec.name
    if not isinstance(e, Refuse) or e.place != "construction":
        return False
    return e.option in _UNCHECKED.get(name, ()) or e.kind in _HALF_CHECKED.get((name, e.option), ())


# torch.compile ----------------------------------------------------------------------------------------------------------


@_enter(
    "compiled-step-expects-old-strides",
    "compiled code asserts the strides of gradients that it was compiled for, and is not compiled anew when they change",
    " ".join(name for name, modes in TORCH_MODES.items() if "compiled" in modes),
    "completes",
    "compiled",
)
def _(seen: Seen) -> bool:
    told = re.match(r"AssertionError: expected size .*, stride ", seen.message)

    def changed(i: int) -> bool:
        shape = seen.trace.parameters[i].shape
        return len({_order(shape, g.layout) for g in seen.given(i) if g is not None}) > 1

    return told is not None and any(map(changed, range(len(seen.trace.parameters))))


def _is_double_scalar(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.shape == () and values.dtype == np.float64


@_enter(
    "compiled-drops-writes-to-double-scalars",
    "what is written in place to a float64 tensor of no dimensions is lost: such parameters and their states stay as they are",
    "ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD",
    "agreement",
    "compiled",
)
def _(seen: Seen) -> bool:
    # Dynamo takes such a tensor for a Python float, and a pass that makes those tensors erases the calls whose results nothing uses.
    life = seen.life
    if life is None:
        return False
    stays = _is_double_scalar(life.value_after) and np.array_equal(life.value, life.value_after, equal_nan=True)
    field = life.value_after if seen.field == PARAMETER else life.state_after.get(seen.field)
    return _is_double_scalar(field) and (stays or seen.unmoved)


@_enter(
    "compiled-double-scalar-restarts",
    "with a float64 tensor of no dimensions Dynamo traces a second time, in a state that the first tracing has changed",
    "SGD",
    "completes",
    "compiled",
)
def _(seen: Seen) -> bool:
    scalars = (i for i, p in enumerate(seen.trace.parameters) if p.dtype == "float64" and p.shape == ())
    return seen.message.startswith("SpeculationLogDivergence: ") and any(seen.gradient(i) is not None for i in scalars)


@_enter(
    "compiled-complex-without-elements",
    "the step of a complex parameter without elements does not compile: the strides of nothing are not those of a real view",
    _TAKE_COMPLEX,
    "completes",
    "compiled",
)
def _(seen: Seen) -> bool:
    empty = any(p.numel == 0 and is_complex(p.dtype) for p in seen.trace.parameters)
    views = (
        "must be divisible by 2 to view",
        "must be 1 to view Float as ComplexFloat",
        "must be 1 to view Double as ComplexDouble",
    )
    return empty and any(view in seen.message for view in views)


def entries() -> Iterator[Entry]:
    """All entries that hold for the torch that is installed."""
    return (entry for entry in LEDGER.values() if entry.holds)
