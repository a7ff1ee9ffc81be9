"""Does it agree with the reference, and if not, which broken invariant accounts for that?

The same life, with what must not matter changed, agrees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from stepcheck.harness.checking import twins
from stepcheck.harness.checking.check import asks
from stepcheck.harness.checking.findings import (
    AFTER,
    DEVIATES,
    Finding,
    accounted,
    kind_of_numbers,
    place_of,
    reading,
    strided,
)
from stepcheck.harness.checking.twins import Unset
from stepcheck.harness.checking.witness import SAME, Witness, Writer
from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life.events import (
    Handle,
    Reload,
    SetOption,
    plain,
)
from stepcheck.harness.life.memory import identical
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.signature import inherits
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.group_options import GroupOptions

if TYPE_CHECKING:
    from stepcheck.harness.checking.case import Evidence


_Explanation = Callable[["Evidence", Deviation], Finding | None]
#: What accounts for a deviation, by the check that tells of it.
EXPLANATIONS: dict[str, _Explanation] = {}


def deviating(evidence: Evidence) -> Iterator[Finding]:
    """The first deviation of each cause."""
    told: set[str] = set()
    for d in evidence.judgement.deviations:
        # What is wrong for row-major memory and what is wrong only for strided memory have different causes.
        # And where strides are ignored, every buffer is wrong at once.
        cause = f"{d.field} at construction" if d.event is None else strided(evidence.trace, d.event, d.parameter)
        cause = cause or d.field + kind_of_numbers(evidence.trace, d)
        if cause not in told:
            told.add(cause)
            yield Finding("agreement", cause, d.event, reading(d), d.parameter, d.ratio, d)


def _explains(name: str) -> Callable[[_Explanation], _Explanation]:
    def decorate(explain: _Explanation) -> _Explanation:
        EXPLANATIONS[name] = explain
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


@_explains("save-load-continue")
def _lost_on_reload(evidence: Evidence, d: Deviation) -> Finding | None:
    events = evidence.trace.events
    if d.event is not None and _rolled_back_to_another(evidence, d.event, d.parameter):
        told = "after a state_dict was loaded into the same optimizer"
        return accounted("save-load-continue", f"{AFTER}{d.field}", told, d)
    first = next((n for n, e in enumerate(events) if isinstance(e, Reload)), len(events))
    if d.event is None or d.event < first:
        return None
    twin = twins.staying(evidence.trace)
    # What deviates in another implementation may be that one's own fault.
    played_by = next(s.played_by for s in evidence.recording.steps if s.event == d.event)
    if not evidence.conforms_as(twin, played_by):
        return None
    return accounted("save-load-continue", f"{AFTER}{d.field}", "after a state_dict round trip", d)


def _rolled_back_to_another(evidence: Evidence, event: int, parameter: int) -> bool:
    """Whether the state that a life went back to was not the one that had been kept."""
    return any(
        name not in reload.loaded[parameter] or not identical(value, reload.loaded[parameter][name])
        for reload in evidence.recording.reloads
        if reload.event < event and isinstance(evidence.trace.events[reload.event], Handle)
        for name, value in reload.saved[parameter].items()
    )


@_explains("groups-independent")
def _of_another_group(evidence: Evidence, d: Deviation) -> Finding | None:
    trace = evidence.trace
    if len(trace.all_groups) < 2:
        return None
    own = trace.group_of[d.parameter]
    if not evidence.conforms_as(twins.alone(trace, own)):
        return None
    return accounted("groups-independent", DEVIATES, f"beside another group, but not alone, in group {own}", d)


@_explains("order-of-parameters")
def _of_the_order(evidence: Evidence, d: Deviation) -> Finding | None:
    trace = evidence.trace
    if all(len(g.parameters) < 2 for g in trace.groups):
        return None
    if evidence.subject.spec.closure or not evidence.conforms_as(twins.reversed_groups(trace)):
        return None
    return accounted("order-of-parameters", DEVIATES, "in this order of parameters, but not in reverse,", d)


@_explains("maximize-mirrors")
def _of_maximize(evidence: Evidence, d: Deviation) -> Finding | None:
    if d.event is None or not evidence.trace.all_groups[evidence.trace.group_of[d.parameter]].options.get("maximize"):
        return None
    if not evidence.conforms_as(twins.turned(evidence.trace)):
        return None
    return accounted("maximize-mirrors", DEVIATES, "with maximize, but not without and the gradient turned,", d)


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
            return accounted("option-effect", name, f"as if {name}={value!r} of group {own} had not been set,", d)
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

    def changed(hyper: tuple[GroupOptions, ...]) -> tuple[GroupOptions, ...]:
        return tuple(GroupOptions(**{**vars(h), option: value}) if n == group else h for n, h in enumerate(hyper))

    steps = [replace(s, hyper=changed(s.hyper)) for s in evidence.recording.steps]
    return replace(evidence.recording, steps=steps)


def _looked(check: str, count: Callable[[Evidence], int]) -> Callable[[Evidence], int]:
    """What a check looks at: as often as it applies where the reference answers it, or the elements of two lives that are compared."""

    def looked(evidence: Evidence) -> int:
        if not count(evidence):
            return 0
        return evidence.twin(check)[0] if evidence.needs_twins else count(evidence)

    return looked


def _rolls_back(writer: Writer) -> bool:
    """Whether what goes wrong is that a dictionary is loaded into the same optimizer: it is to be as that says."""
    return isinstance(writer.event, Handle)


def _saved(writer: Writer) -> str:
    """What must go through a round trip unchanged, as an expression."""
    cause = writer.finding.cause
    if cause.startswith("option "):
        option = writer.subject.terms.read("g", cause.removeprefix("option "))
        return f"[{option} for g in optimizer.param_groups]"
    return "[optimizer.state.get(p) for p in params]"


@asks(
    "save-load-continue",
    "Does a new optimizer that loads the state_dict go on as the old one would?",
    _looked("save-load-continue", lambda e: len(e.recording.reloads)),
    witness=Witness(
        lambda w: [
            "before, after = str(kept), str(optimizer.state_dict())" if _rolls_back(w) else f"after = str({_saved(w)})",
            SAME,
        ],
        lambda w: [] if _rolls_back(w) else [f"before = str({_saved(w)})"],
    ),
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
        for i, left in enumerate(reload.left):
            if left:
                summary = f"load_state_dict() leaves {left[0]}, which is not in the dictionary, as it was before"
                yield Finding("save-load-continue", f"state {left[0]} left", reload.event, summary, i)
                return
        for group, (before, after) in enumerate(zip(reload.saved_options, reload.loaded_options, strict=True)):
            for name in before:
                if before[name] != after[name]:
                    summary = f"option {name} of group {group} changes in a state_dict round trip"
                    yield Finding("save-load-continue", f"option {name}", reload.event, summary)
                    return
    yield from _answered(evidence, "save-load-continue")


def _is_cast(evidence: Evidence, saved: object, loaded: object) -> bool:
    """Whether a state is the same in another dtype, in a class that leaves loading to torch's, or calls it: that casts all but ``step``."""
    built = evidence.recording.built
    if not evidence.subject.explicit or built is None or not inherits(built, "load_state_dict"):
        return False
    before, after = np.asarray(saved), np.asarray(loaded)
    with np.errstate(all="ignore"):
        return before.shape == after.shape and identical(before.astype(after.dtype), after)


def _became(before: object, after: object) -> str:
    old, new = np.asarray(before).dtype, np.asarray(after).dtype
    return "changes" if old == new else f"becomes {new}, from {old},"


@asks(
    "agreement",
    "Does each parameter and buffer agree with the reference, within its budget?",
    lambda e: e.judgement.elements,
    lambda subject: (
        "" if subject.referenced else "it is held to no reference (--like names one), so its formula was not judged"
    ),
)
def agreement(evidence: Evidence) -> Iterator[Finding]:
    if not evidence.reported:
        yield from deviating(evidence)


def _groups(evidence: Evidence) -> int:
    number = len(evidence.trace.all_groups)
    return number if number > 1 and evidence.recording.steps else 0


def _one_group(subject: Subject) -> str:
    return "it takes one group" if subject.one_group else ""


@asks(
    "groups-independent",
    "Is each group stepped as an optimizer of its own would step it?",
    _looked("groups-independent", _groups),
    _one_group,
)
def groups_independent(evidence: Evidence) -> Iterator[Finding]:
    yield from _answered(evidence, "groups-independent")


@asks(
    "order-of-parameters",
    "Does the order of the parameters in a group not matter?",
    _looked(
        "order-of-parameters",
        lambda e: sum(len(g.parameters) > 1 for g in e.trace.groups) if e.recording.steps else 0,
    ),
)
def order_of_parameters(evidence: Evidence) -> Iterator[Finding]:
    yield from _answered(evidence, "order-of-parameters")


@asks(
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
    if not subject.referenced:
        return "which options must matter, and where, a reference says"
    return "" if subject.options or subject.own_numbers else "it has no options"


@asks(
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
