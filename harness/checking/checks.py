"""The questions. Each check is one function: it looks at the evidence of one trace and yields what it finds wrong.

To add a check, write a function and register it; campaign, command line, report and pytest pick it up from ``CHECKS``.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import torch

from stepcheck.harness.checking import twins
from stepcheck.harness.checking.twins import Twin, Unset
from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.judgement import Deviation, Judgement
from stepcheck.harness.life.events import (
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Hook,
    Option,
    Refuse,
    Reload,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
    ZeroGrad,
    plain,
)
from stepcheck.harness.life.memory import Raw, identical
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.numbers.formats import BINARY32, FORMATS
from stepcheck.harness.play.families import can_play, no_such_class, torch_subject
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.recording import CALLERS_GROUPS, Recording
from stepcheck.harness.play.resume import AGED_BY
from stepcheck.harness.play.spoil import Arrival
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.clocks import Clocks
from stepcheck.reference.spec import PARAMETER


@dataclass(frozen=True)
class Finding:
    """One thing found wrong.

    Attributes:
        check: the name of the check.
        cause: what tells one cause from another, so that a hundred traces with one fault make one divergence.
        event: index of the event in the trace; ``None`` for the construction.
        summary: one line for a person.
        parameter: index of the parameter, where one is concerned.
        ratio: distance from the reference in budgets, where that is what is wrong.
        deviation: the witness, where the reference was asked.
        option: group, name and value of the option that should hold, where one is concerned.
        owner: the mode that played the event, where a round trip had led from the subject into another.
        spoilt: where a step with malformed state arrived that was not refused.
    """

    check: str
    cause: str
    event: int | None
    summary: str
    parameter: int | None = None
    ratio: float | None = None
    deviation: Deviation | None = None
    option: tuple[int, str, Option] | None = None
    owner: str = ""
    spoilt: Arrival | None = None

    @property
    def kind(self) -> str:
        """The cause, and whose it is: one fault of two modes is two divergences."""
        return f"{self.cause}, by {self.owner}" if self.owner else self.cause


@dataclass(frozen=True)
class Effect:
    """What setting an option changed in a life of somebody's class.

    Attributes:
        unset: the life without it.
        elements: how many elements it changes visibly where torch's own optimizer plays both lives.
        idle: it changes no bit of a parameter or of state.
    """

    unset: Unset
    elements: int
    idle: bool

    @property
    def cause(self) -> str:
        return _cause(self.unset)


def _cause(unset: Unset) -> str:
    return f"{unset.option} {unset.where}{NO_EFFECT}"


def place_of(trace: Trace, group: int, option: str) -> str:
    """The cause that an option of a group would have if it had no effect where a life sets it."""
    later = any(isinstance(e, SetOption) and (e.group, e.option) == (group, option) for e in trace.events)
    return f"{option} {twins.place(group, later=later, at_first=len(trace.groups))}{NO_EFFECT}"


class Evidence:
    """A trace played on a subject, and what the reference says of it (computed when a check first asks).

    Args:
        asked: the checks that are asked; what one of them explains, another need not report.
        known: whether a finding has an explanation already.
        settled: causes of deviations that no broken invariant has explained in several lives: in this one none is tried.
        clocks: where the seconds of playing and judging are added up, those of other lives that are tried to explain this one
            included.
        answered: where the reference cannot answer, the class itself is asked, by a second life that must come out like this one; but not
            for these checks, nor for the effect of options by these causes: enough lives have answered.
        effective: causes of options that were seen to have an effect, so that none explains a deviation by having none.
    """

    def __init__(
        self,
        subject: Subject,
        trace: Trace,
        asked: Collection[str] = (),
        known: Callable[[Evidence, Finding], object] = lambda evidence, finding: None,
        settled: Collection[str] = (),
        clocks: Clocks | None = None,
        *,
        answered: Collection[str] = (),
        effective: Collection[str] = (),
    ) -> None:
        self.settled = settled
        self.answered = answered
        self.effective = effective
        self._twins: dict[str, tuple[int, Finding | None]] = {}
        self.subject = subject
        self.trace = trace
        self.known = known
        self.asked = asked or CHECKS.keys()
        self.clocks = Clocks() if clocks is None else clocks
        with self.clocks.running("play"):
            self.recording: Recording = Player(subject, trace).play()

    @functools.cached_property
    def judge(self) -> Judge:
        return Judge(self.subject, self.recording, self.clocks)

    @functools.cached_property
    def judgement(self) -> Judgement:
        return self.judge.judge()

    @functools.cached_property
    def explanation(self) -> Finding | None:
        """What all deviations come from, where a broken invariant accounts for them; first one that a check is asked about."""
        if not self.judgement.deviations:
            return None
        first = self.judgement.deviations[0]
        # Strided memory is an explanation of its own.
        if first.event is None or _strided(self.trace, first.event, first.parameter):
            return None
        deviating = list(_deviating(self))
        if deviating[0].cause in self.settled or any(self.known(self, finding) for finding in deviating):
            return None
        for name in sorted(_EXPLANATIONS, key=lambda name: name not in self.asked):
            finding = _EXPLANATIONS[name](self, first)
            if finding is not None:
                return finding
        return None

    @property
    def reported(self) -> bool:
        """Whether a check that is asked tells of the explanation, so that another need not tell of the deviations."""
        return self.explanation is not None and self.explanation.check in self.asked

    @functools.cached_property
    def needs_twins(self) -> bool:
        """Whether the reference says nothing about the invariants: somebody's class deviates from it in a way that none of them explains.

        Or most of what it arrives at is not determined.
        """
        if not self.subject.explicit:
            return False
        open_ = 2 * self.judgement.undetermined > self.judgement.elements
        deviates = bool(self.judgement.deviations) and not self.reported
        # What a class inherits from torch's, whose fault is known, deviates for that reason in a second life too.
        return open_ or (deviates and not any(self.known(self, finding) for finding in _deviating(self)))

    def twin(self, check: str) -> tuple[int, Finding | None]:
        """How many elements of this life and its twins were compared for a check, and what tells them apart."""
        if check not in self._twins:
            self._twins[check] = (0, None) if check in self.answered else self._compare_twins(check)
        return self._twins[check]

    def _compare_twins(self, check: str) -> tuple[int, Finding | None]:
        if self.subject.spec.closure and check == "order-of-parameters":
            return 0, None  # it adds over all of them, in their order
        compared = 0
        for twin in twins.TWINS[check](self.trace) if self.recording.raised is None else ():
            if not self._has_meaning(twin.trace):
                continue
            count, deviation = twins.compare(self.recording, twin, self._played(twin.trace))
            if deviation is not None and twin.otherwise is not None and self._has_meaning(twin.otherwise.trace):
                count, deviation = twins.compare(self.recording, twin.otherwise, self._played(twin.otherwise.trace))
            if deviation is not None:
                if not twins.alike(self.recording, self._played(self.trace)):
                    return 0, None  # it does not do the same twice
                return compared + count, _unlike(check, twin, deviation)
            compared += count
        return compared, None

    @functools.cached_property
    def effects(self) -> list[Effect]:
        """Of each option that is set where torch's own optimizer shows that it matters: whether it changes anything in the class."""
        if not self.needs_twins or self.recording.raised is not None:
            return []
        torchs = self._torchs  # to have it torch imports its compiler
        if torchs is None:
            return []
        shown: Recording | None = None
        effects = []
        wanted = (u for u in twins.unset(self.trace) if _cause(u) not in self.answered)
        for unset in itertools.islice(wanted, _MOST_EFFECTS):
            if unset.option not in self.subject.options or not self._has_meaning(unset.trace):
                continue
            shown = self._played(self.trace, torchs) if shown is None else shown
            apart = twins.visibly_apart(self.trace, shown, self._played(unset.trace, torchs))
            # What is not a number is not changed by any option.
            if apart and twins.is_finite(self.recording):
                idle = twins.alike(self.recording, self._played(unset.trace))
                effects.append(Effect(unset, apart, idle=idle))
        return effects

    @functools.cached_property
    def _torchs(self) -> Subject | None:
        """torch's own optimizer of the name, where it can play this life."""
        spec = self.subject.spec
        if spec.closure or no_such_class(spec.name):
            return None
        subject = torch_subject(spec.name, "forloop")
        return subject if can_play(subject, self.trace) else None

    def _has_meaning(self, trace: Trace) -> bool:
        return trace.problem(self.subject.spec) is None and not self.subject.problem(trace)

    def _played(self, trace: Trace, subject: Subject | None = None) -> Recording:
        with self.clocks.running("play"):
            return Player(subject or self.subject, trace).play()

    def player(self, event: int | None) -> Subject:
        """Who played an event: a round trip may have led from one mode to another."""
        led = [subject for at, subject in self.recording.handovers if event is not None and at < event]
        return led[-1] if led else self.subject

    def attributed(self, finding: Finding) -> Finding:
        """The finding, with its owner where another mode played the event."""
        player = self.player(finding.event)
        return finding if player.name == self.subject.name else replace(finding, owner=player.name)

    def is_consequence(self, finding: Finding) -> bool:
        """Whether a finding comes after a step that left a state half changed where it should have done nothing."""
        broken = [b.event for b in self.recording.breaches if b.check in _ABOUT_NOTHING_DONE]
        first = min((e for e in (*broken, self.recording.mixed) if e is not None), default=None)
        return first is not None and finding.event is not None and finding.event > first

    def conforms_as(self, twin: Trace, subject: Subject | None = None) -> bool:
        """Whether the subject, or another, agrees with the reference in another life."""
        if not self._has_meaning(twin):
            return False
        evidence = Evidence(subject or self.subject, twin, self.asked, clocks=self.clocks)
        return evidence.recording.raised is None and not evidence.judgement.deviations


#: Checks of steps that must do nothing.
_ABOUT_NOTHING_DONE = ("failed-step", "skipped-step")


@dataclass(frozen=True)
class Check:
    """A named question about a recording.

    Attributes:
        looks_at: how many things in a recording the question applies to; 0 means that it was not asked.
        find: yields what is wrong.
        without_meaning: why it cannot be asked of a subject, or nothing.
        needs: abilities, of which a subject must have one for it to be asked: ``hooks``, ``closures``, ``scaling``.
    """

    name: str
    question: str
    looks_at: Callable[[Evidence], int]
    find: Callable[[Evidence], Iterator[Finding]]
    without_meaning: Callable[[Subject], str] = lambda subject: ""
    needs: frozenset[str] = frozenset()


CHECKS: dict[str, Check] = {}

#: Causes of deviations from the reference that a broken invariant accounts for.
DEVIATES, AFTER = "deviation", "after "
#: The cause of what two lives of the same class show.
TWIN = "two lives"
#: How causes end that an option has which changes nothing. One life does not show that: a sign does not change with every momentum.
NO_EFFECT = " has no effect"
#: Options of one life that are tried without.
_MOST_EFFECTS = 4
#: How causes begin that lie in memory that is not row-major.
STRIDED = "strided"


def _closure_writes(subject: Subject) -> str:
    return "the closure writes all gradients during the step" if subject.spec.closure else ""


def _register(
    name: str,
    question: str,
    looks_at: Callable[[Evidence], int],
    without_meaning: Callable[[Subject], str] = lambda subject: "",
    needs: str = "",
) -> Callable[[Callable[[Evidence], Iterator[Finding]]], Callable[[Evidence], Iterator[Finding]]]:
    def decorate(find: Callable[[Evidence], Iterator[Finding]]) -> Callable[[Evidence], Iterator[Finding]]:
        def found(evidence: Evidence) -> Iterator[Finding]:
            return (evidence.attributed(f) for f in find(evidence) if not evidence.is_consequence(f))

        CHECKS[name] = Check(name, question, looks_at, found, without_meaning, frozenset(needs.split()))
        return find

    return decorate


def _looked(check: str, count: Callable[[Evidence], int]) -> Callable[[Evidence], int]:
    """What a check looks at: as often as it applies where the reference answers it, or the elements of two lives that are compared."""

    def looked(evidence: Evidence) -> int:
        if not count(evidence):
            return 0
        return evidence.twin(check)[0] if evidence.needs_twins else count(evidence)

    return looked


def _lives(evidence: Evidence) -> int:
    return sum(life.gradient is not None for s in evidence.recording.steps for life in s.lives)


def _idle(evidence: Evidence) -> int:
    return sum(life.gradient is None for s in evidence.recording.steps for life in s.lives)


@_register("completes", "Does a valid life run without an exception?", lambda e: 1 + len(e.trace.events))
def completes(evidence: Evidence) -> Iterator[Finding]:
    raised = evidence.recording.raised
    if raised is not None:
        event = "the constructor" if raised.event is None else _event_name(evidence.trace, raised.event)
        where = f"step(), one of {AGED_BY} with gradients of zeros," if raised.ageing else event
        yield Finding(
            "completes",
            # Not the message: what it quotes, such as a tensor, differs from life to life.
            f"{raised.kind} in {raised.frame or where}",
            raised.event,
            f"{where} raises {raised.kind}: {raised.message.splitlines()[0][:200] if raised.message else '(no message)'}",
        )


def _event_name(trace: Trace, event: int) -> str:
    what = trace.events[event]
    if isinstance(what, Reload) and what.way in ("copied", "unpickled"):
        return "copying the optimizer" if what.way == "copied" else "pickling the optimizer"
    return _NAMES[type(what)]


_NAMES: dict[type[Event], str] = {
    Step: "step()", Accumulate: "a backward pass", ZeroGrad: "zero_grad()", SetOption: "setting an option",
    Reload: "load_state_dict()", AddGroup: "add_param_group()", Freeze: "freezing a parameter", Hook: "registering a hook",
    Schedule: "attaching a schedule", ScheduleStep: "a step of the schedule", Fail: "a step that must fail",
    Refuse: "something invalid", Spoil: "a step with malformed state",
}  # fmt: skip


@_register("memory-beside", "Is memory beside the parameter left alone?", _lives)
def memory_beside(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, life in enumerate(step.lives):
            if life.beside_written:
                p = evidence.trace.parameters[i]
                yield Finding(
                    "memory-beside",
                    p.layout,
                    step.event,
                    f"step() writes to memory beside the parameter ({p.layout})",
                    i,
                )
                return


@_register("gradient-unwritten", "Is the gradient left as it was?", _lives, _closure_writes)
def gradient_unwritten(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, life in enumerate(step.lives):
            if life.gradient_written:
                yield Finding("gradient-unwritten", "gradient", step.event, "step() writes to the gradient", i)
                return


@_register("no-gradient", "Does a parameter without a gradient keep its value and state?", _idle, _closure_writes)
def no_gradient(evidence: Evidence) -> Iterator[Finding]:
    for step in evidence.recording.steps:
        for i, life in enumerate(step.lives):
            if life.gradient is not None:
                continue
            if life.value_after.tobytes() != life.value.tobytes():
                yield Finding("no-gradient", "value", step.event, "step() changes a parameter that has no gradient", i)
                return
            for name, before in life.state.items():
                if _is_shared_count(evidence, i, name, before):
                    continue
                if name not in life.state_after or not identical(life.state_after[name], before):
                    summary = f"step() changes {name} of a parameter that has no gradient"
                    yield Finding("no-gradient", name, step.event, summary, i)
                    return


@_register(
    "between-steps",
    "Does nothing but step() change parameters and state, and does zero_grad clear the gradients?",
    lambda e: len(e.recording.idle),
)
def between_steps(evidence: Evidence) -> Iterator[Finding]:
    for idle in evidence.recording.idle:
        where = _event_name(evidence.trace, idle.event)
        for i, names in enumerate(idle.touched):
            if names:
                what = "the parameter" if names[0] == "value" else names[0]
                yield Finding("between-steps", names[0], idle.event, f"{where} changes {what}", i)
                return
        if idle.gradients_left:
            i = idle.gradients_left[0]
            yield Finding("between-steps", "gradient", idle.event, "zero_grad() leaves a gradient", i)
            return
    yield from _breaches(evidence, "between-steps")


@_register(
    "save-load-continue",
    "Does a new optimizer that loads the state_dict go on as the old one would?",
    _looked("save-load-continue", lambda e: len(e.recording.reloads)),
)
def save_load_continue(evidence: Evidence) -> Iterator[Finding]:
    for reload in evidence.recording.reloads:
        for i, (saved, loaded) in enumerate(zip(reload.saved, reload.loaded, strict=True)):
            for name in saved:
                if name not in loaded or not (
                    identical(loaded[name], saved[name]) or _is_cast(evidence, saved[name], loaded[name])
                ):
                    became = "is lost" if name not in loaded else _became(saved[name], loaded[name])
                    summary = f"{name} {became} in a state_dict round trip"
                    yield Finding("save-load-continue", f"state {name}", reload.event, summary, i)
                    return
        for group, (before, after) in enumerate(zip(reload.saved_options, reload.loaded_options, strict=True)):
            for name in before:
                if before[name] != after[name]:
                    summary = f"option {name} of group {group} changes in a state_dict round trip"
                    yield Finding("save-load-continue", f"option {name}", reload.event, summary)
                    return
    yield from _answered(evidence, "save-load-continue")


@_register(
    "agreement",
    "Does each parameter and buffer agree with the reference, within its budget?",
    lambda e: e.judgement.elements,
)
def agreement(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.reported:
        yield from _deviating(evidence)


def _deviating(evidence: Evidence) -> Iterator[Finding]:
    """The first deviation of each cause."""
    told: set[str] = set()
    for d in evidence.judgement.deviations:
        # What is wrong for row-major memory and what is wrong only for strided memory have different causes.
        # And where strides are ignored, every buffer is wrong at once.
        cause = f"{d.field} at construction" if d.event is None else _strided(evidence.trace, d.event, d.parameter)
        cause = cause or d.field + _kind(evidence.trace, d)
        if cause not in told:
            told.add(cause)
            yield Finding("agreement", cause, d.event, _reading(d), d.parameter, d.ratio, d)


# Invariants that account for deviations: the same life, with what must not matter changed, agrees with the reference -----------


_Explanation = Callable[[Evidence, Deviation], Finding | None]
_EXPLANATIONS: dict[str, _Explanation] = {}


def _explains(name: str) -> Callable[[_Explanation], _Explanation]:
    def decorate(explain: _Explanation) -> _Explanation:
        _EXPLANATIONS[name] = explain
        return explain

    return decorate


def _explained(evidence: Evidence, name: str) -> Iterator[Finding]:
    if evidence.explanation is not None and evidence.explanation.check == name:
        yield evidence.explanation


def _answered(evidence: Evidence, check: str) -> Iterator[Finding]:
    """What accounts for all deviations from the reference, or, where nothing does, what tells two lives of the class apart."""
    explained = list(_explained(evidence, check))
    yield from explained
    if not explained and evidence.needs_twins:
        finding = evidence.twin(check)[1]
        if finding is not None:
            yield finding


def _unlike(check: str, twin: Twin, d: Deviation) -> Finding:
    digits = next((n for n in range(6, 17) if f"{d.got:.{n}g}" != f"{d.expected:.{n}g}"), 17)
    element = f", element {d.index}," if d.index else ""
    here, there = twin.told
    told = f"{here}, the parameter{element} becomes {d.got:.{digits}g}, but {d.expected:.{digits}g} {there}"
    return Finding(check, TWIN, d.event, told, d.parameter, None, d)


def _accounted(check: str, cause: str, beginning: str, d: Deviation) -> Finding:
    return Finding(check, cause, d.event, f"{beginning} {_reading(d)}", d.parameter, d.ratio, d)


@_explains("save-load-continue")
def _lost_on_reload(evidence: Evidence, d: Deviation) -> Finding | None:
    events = evidence.trace.events
    first = next((n for n, e in enumerate(events) if isinstance(e, Reload)), len(events))
    if d.event is None or d.event < first:
        return None
    twin = twins.staying(evidence.trace)
    # What deviates in another implementation may be that one's own fault.
    played_by = next(s.played_by for s in evidence.recording.steps if s.event == d.event)
    if not evidence.conforms_as(twin, played_by):
        return None
    return _accounted("save-load-continue", f"{AFTER}{d.field}", "after a state_dict round trip", d)


@_explains("groups-independent")
def _of_another_group(evidence: Evidence, d: Deviation) -> Finding | None:
    trace = evidence.trace
    if len(trace.all_groups) < 2:
        return None
    own = trace.group_of[d.parameter]
    if not evidence.conforms_as(twins.alone(trace, own)):
        return None
    return _accounted("groups-independent", DEVIATES, f"beside another group, but not alone, in group {own}", d)


@_explains("order-of-parameters")
def _of_the_order(evidence: Evidence, d: Deviation) -> Finding | None:
    trace = evidence.trace
    if all(len(g.parameters) < 2 for g in trace.groups):
        return None
    if evidence.subject.spec.closure or not evidence.conforms_as(twins.reversed_groups(trace)):
        return None
    return _accounted("order-of-parameters", DEVIATES, "in this order of parameters, but not in reverse,", d)


@_explains("maximize-mirrors")
def _of_maximize(evidence: Evidence, d: Deviation) -> Finding | None:
    if d.event is None or not evidence.trace.all_groups[evidence.trace.group_of[d.parameter]].options.get("maximize"):
        return None
    if not evidence.conforms_as(twins.turned(evidence.trace)):
        return None
    return _accounted("maximize-mirrors", DEVIATES, "with maximize, but not without and the gradient turned,", d)


@_explains("option-effect")
def _of_an_option(evidence: Evidence, d: Deviation) -> Finding | None:
    """The whole life agrees with the reference as soon as this takes no notice of one option."""
    trace = evidence.trace
    own = trace.group_of[d.parameter]
    later = {e.option for e in trace.events if isinstance(e, SetOption) and e.group == own}
    for name in (*trace.all_groups[own].options, *later):
        if place_of(trace, own, name) in evidence.effective:
            continue
        twin = _taking_no_notice(evidence, own, name)
        if not _same_buffers(evidence, twin, own):
            continue
        judgement = Judge(evidence.subject, twin, evidence.clocks).judge(to_first=True)
        # What is undetermined agrees with anything.
        if not judgement.deviations and judgement.undetermined <= evidence.judgement.undetermined:
            value = getattr(evidence.recording.steps[-1].hyper[own], name)
            return _accounted("option-effect", name, f"as if {name}={value!r} of group {own} had not been set,", d)
    return None


def _same_buffers(evidence: Evidence, twin: Recording, group: int) -> bool:
    """Whether the same buffers are judged: a fault in one does not go away where the one does."""
    pairs = [
        (a.hyper[group], b.hyper[group])
        for a, b in zip(evidence.recording.steps, twin.steps, strict=True)
        if len(a.hyper) > group
    ]
    return all(b.present(x) == b.present(y) for x, y in pairs for b in evidence.subject.spec.buffers)


def _taking_no_notice(evidence: Evidence, group: int, option: str) -> Recording:
    """The recording, with an option of a group at its default; or as it was at first, where it was set later."""
    default = {h.name: h.default for h in evidence.subject.spec.hyper}[option]
    at_first = evidence.trace.all_groups[group].options.get(option, default)
    later = any(isinstance(e, SetOption) and e.group == group and e.option == option for e in evidence.trace.events)
    value = plain({option: at_first})[option] if later else default
    made: dict[int, SimpleNamespace] = {}  # one object for each: the judge batches by it

    def changed(hyper: SimpleNamespace) -> SimpleNamespace:
        return made.setdefault(id(hyper), SimpleNamespace(**{**vars(hyper), option: value}))

    steps = [
        replace(s, hyper=tuple(changed(h) if n == group else h for n, h in enumerate(s.hyper)))
        for s in evidence.recording.steps
    ]
    return replace(evidence.recording, steps=steps)


#: The checks that a deviation from the reference may end in.
EXPLAINED_BY = ("agreement", *_EXPLANATIONS)


def _groups(evidence: Evidence) -> int:
    number = len(evidence.trace.all_groups)
    return number if number > 1 and evidence.recording.steps else 0


def _one_group(subject: Subject) -> str:
    return "it takes one group" if subject.one_group else ""


@_register(
    "groups-independent",
    "Is each group stepped as an optimizer of its own would step it?",
    _looked("groups-independent", _groups),
    _one_group,
)
def groups_independent(evidence: Evidence) -> Iterator[Finding]:
    yield from _answered(evidence, "groups-independent")


@_register(
    "order-of-parameters",
    "Does the order of the parameters in a group not matter?",
    _looked(
        "order-of-parameters",
        lambda e: sum(len(g.parameters) > 1 for g in e.trace.groups) if e.recording.steps else 0,
    ),
)
def order_of_parameters(evidence: Evidence) -> Iterator[Finding]:
    yield from _answered(evidence, "order-of-parameters")


@_register(
    "maximize-mirrors",
    "Is maximizing what minimizing with the gradient turned is?",
    _looked(
        "maximize-mirrors",
        lambda e: sum(bool(g.options.get("maximize")) for g in e.trace.all_groups) if e.recording.steps else 0,
    ),
    lambda subject: "" if "maximize" in subject.options else "it has no option maximize",
)
def maximize_mirrors(evidence: Evidence) -> Iterator[Finding]:
    yield from _answered(evidence, "maximize-mirrors")


def _without_options(subject: Subject) -> str:
    return "" if subject.options or subject.own_numbers else "it has no options"


@_register(
    "option-effect",
    "Does an option that is set, in a group or later, have its effect?",
    lambda e: 0 if not e.recording.steps else len(e.effects) if e.needs_twins else sum(map(len, e.trace.given_options)),
    _without_options,
)
def option_effect(evidence: Evidence) -> Iterator[Finding]:
    yield from _explained(evidence, "option-effect")
    if evidence.needs_twins:
        for effect in evidence.effects:
            if effect.idle:
                yield _without_effect(evidence, effect.unset, effect.cause)


def _without_effect(evidence: Evidence, unset: Unset, cause: str) -> Finding:
    trace, name = evidence.trace, unset.option
    later = [e.value for e in trace.events if isinstance(e, SetOption) and (e.group, e.option) == (unset.group, name)]
    value = plain({name: later[-1] if unset.later else trace.all_groups[unset.group].options[name]})[name]
    told = f"{name}={value!r} of group {unset.group}{', set later,' if unset.later else ''} changes no bit of this life"
    last = max((s.event for s in evidence.recording.steps), default=None)
    return Finding("option-effect", cause, last, told)


def _validates_as_it_likes(subject: Subject) -> str:
    if subject.explicit:
        return "whether somebody's class validates is theirs to say; to have it judged, ask for refuses-invalid alone"
    return "it validates as its class does in every mode" if subject.cost > 9 else ""


@_register(
    "refuses-invalid",
    "Is what is invalid refused, at construction and in a group?",
    lambda e: sum(not a.outcome.control_failed for a in e.recording.attempts),
    _validates_as_it_likes,
)
def refuses_invalid(evidence: Evidence) -> Iterator[Finding]:
    events = [n for n, e in enumerate(evidence.trace.events) if isinstance(e, Refuse)]
    for event, attempt in zip(events, evidence.recording.attempts, strict=False):
        cell, outcome = attempt.cell, attempt.outcome
        if outcome.control_failed or cell.place == "load_state_dict":
            continue  # what a dictionary may hold is documented nowhere
        given = f"{cell.option}={cell.value!r} ({cell.kind})"
        if outcome.refused and outcome.changed:
            yield Finding(
                "refuses-invalid",
                f"{cell.place} changes",
                event,
                f"{cell.place} refuses {given} and keeps it all the same",
            )
        elif not outcome.declared and cell.place == "construction":
            yield Finding("refuses-invalid", f"{cell.option} {cell.kind}", event, f"the constructor accepts {given}")
        elif not outcome.declared and attempt.at_construction.declared:
            told = f"{given}, refused at construction, is accepted in {'a group' if cell.place == 'group' else cell.place + '()'}"
            yield Finding("refuses-invalid", f"in {cell.place}", event, told)


# Invariants that a plain comparison decides, made while the life was played ------------------------------------------------


def _breaches(evidence: Evidence, name: str) -> Iterator[Finding]:
    """What the player saw not to hold, the first of each cause."""
    told = set()
    for b in evidence.recording.breaches:
        if b.check == name and b.cause not in told:
            told.add(b.cause)
            constructed = b.event is None or b.cause == CALLERS_GROUPS
            where = "the constructor" if b.event is None or constructed else _event_name(evidence.trace, b.event)
            yield Finding(name, b.cause, b.event, f"{where} {b.told}", b.parameter, option=b.option, spoilt=b.spoilt)


def _without_spoiling(subject: Subject) -> str:
    if subject.spec.closure:
        return "its state is of all parameters together"
    return "the state of a differentiable step is a part of its graph" if subject.differentiable else ""


def _invariant(
    name: str, question: str, without_meaning: Callable[[Subject], str] = lambda subject: "", needs: str = ""
) -> None:
    @_register(name, question, lambda e: e.recording.looked[name], without_meaning, needs)
    def find(evidence: Evidence) -> Iterator[Finding]:
        return _breaches(evidence, name)


_invariant("storage-stays", "Do parameters stay where they are in memory, with their shape, strides and dtype?")
_invariant(
    "options-hold",
    "Does each group keep the options that it was given, or that were set since, by hand or by a schedule?",
)
_invariant(
    "closure",
    "Is a closure called with gradients enabled, as often as specified, and its loss returned?",
    needs="closures",
)
_invariant("hooks-run-once", "Is each registered hook run once, when its turn comes?", needs="hooks")
_invariant("failed-step", "Does a step that fails raise, and change nothing?", needs="closures hooks")
_invariant(
    "malformed-state",
    "Is malformed state refused, or stepped as the same values in a right tensor would be?",
    _without_spoiling,
    needs="state",
)
_invariant(
    "skipped-step",
    "Does a step that gradient scaling skips change nothing?",
    lambda subject: "gradient scaling takes no closure" if subject.spec.closure else "",
    needs="scaling",
)
_invariant("dicts-unchanged", "Are the dictionaries that a caller gives left as they are?")
_invariant("loaded-state-apart", "Does the state that is loaded share no memory with its source?")
_invariant("random-state", "Is the state of the random number generators left alone?")
_invariant("settings-kept", "Are the settings of the process, and the optimizer's own defaults, left as they were?")


def _kind(trace: Trace, d: Deviation) -> str:
    """What sets the numbers apart that a deviation was found in: causes that lie in other kernels."""
    dtype = trace.parameters[d.parameter].dtype
    narrow = FORMATS[dtype].unit_roundoff > BINARY32.unit_roundoff
    sparse = ", sparse gradient" if d.parameter in trace.given_sparse else ""
    return (", complex" if is_complex(dtype) else ", narrow" if narrow else "") + sparse


def _strided(trace: Trace, event: int, parameter: int) -> str:
    """Whose memory is not row-major, up to an event; nobody's is an empty string."""
    if trace.parameters[parameter].layout != "contiguous":
        return f"{STRIDED} parameter"
    assigned = [e.gradients.get(parameter) for e in trace.events[: event + 1] if isinstance(e, Step)]
    if any(g is not None and g.layout != "contiguous" for g in assigned):
        return f"{STRIDED} gradient"
    return ""


def _reading(d: Deviation) -> str:
    if d.problem:
        return d.problem
    if d.center is not None:
        return f"the parameter is {d.got:.3g} from the reference, in the Frobenius norm: off by {budgets(d.ratio)}"
    what = d.field.replace(PARAMETER, "the parameter") if d.field.startswith(PARAMETER) else d.field
    if d.of:
        what = f"{d.of.replace(PARAMETER, 'the parameter')} and {d.field} together"
    element = f", element {d.index}," if d.index else ""
    if d.index and d.item is not None and is_complex(d.item.dtype):
        element = f", {('real', 'imaginary')[d.index[-1]]} part of element {d.index[:-1]},"
    if d.event is None:
        return f"{what}{element} starts at {told_apart(d.got, d.expected)}"
    return f"{what}{element} {'are' if d.of else 'is'} {told_apart(d.got, d.expected)}: off by {budgets(d.ratio)}"


def told_apart(got: float, expected: float) -> str:
    """Two numbers with as many digits as it takes to tell them apart, at least nine."""
    digits = next((n for n in range(9, 17) if f"{got:.{n}g}" != f"{expected:.{n}g}"), 17)
    return f"{got:.{digits}g}, not {expected:.{digits}g}"


def budgets(ratio: float) -> str:
    """A ratio as a phrase."""
    if np.isinf(ratio):
        return "more than any budget"
    return f"{ratio:.3g} budgets"


def _is_shared_count(evidence: Evidence, index: int, name: str, value: Raw | float) -> bool:
    """Whether it may be a number that somebody's class keeps for all parameters, in the state of a group's first: it may count the calls."""
    subject = evidence.subject
    known = {b.name for b in subject.spec.buffers}
    first = any(index == g.parameters[0] for g in evidence.trace.all_groups if g.parameters)
    return subject.explicit and first and name not in known and np.size(value) == 1


def _is_cast(evidence: Evidence, saved: object, loaded: object) -> bool:
    """Whether a state is the same in another dtype, in a class that leaves loading to torch's: that casts all but ``step``."""
    built = evidence.recording.built
    if (
        not evidence.subject.explicit
        or getattr(built, "load_state_dict", None) is not torch.optim.Optimizer.load_state_dict
    ):
        return False
    before, after = np.asarray(saved), np.asarray(loaded)
    with np.errstate(all="ignore"):
        return before.shape == after.shape and identical(before.astype(after.dtype), after)


def _became(before: object, after: object) -> str:
    old, new = np.asarray(before).dtype, np.asarray(after).dtype
    return "changes" if old == new else f"becomes {new}, from {old},"


def steps_judged(evidence: Evidence) -> int:
    """Steps of single parameters that were compared with the reference."""
    return _lives(evidence)
