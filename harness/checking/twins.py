"""Two lives that must come out alike: an invariant asked of the class itself, without a reference.

A class whose formula is another deviates from the reference in every life, so no agreement with it can show that a group was stepped as by an
optimizer of its own. But the class can be asked twice: the same life is played once more with what must not matter changed, and the two
recordings are compared with each other, element by element. Up to the first step that tells them apart, both lives have done the same operations
on the same numbers, so what they arrive at is the same to the bit, or differs by what vectors of another length cost: a few roundings, and no
visible part of the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.life.events import (
    STAYS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Group,
    Handle,
    Reload,
    Run,
    Schedule,
    SetOption,
    Step,
    ZeroGrad,
)
from stepcheck.harness.life.memory import identical
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import in_reals
from stepcheck.harness.numbers.comparison import reals, rounding
from stepcheck.harness.play.recording import Recording, StepRecord
from stepcheck.harness.play.resume import AGES
from stepcheck.reference.spec import PARAMETER

#: Where an option was set.
FIRST, OTHER, ADDED, LATER = "of the first group", "of another group", "of an added group", "set later"


@dataclass(frozen=True)
class Twin:
    """A life that must come out like another.

    Attributes:
        trace: the other life.
        parameters: of parameters of the first life, those of the other that they must be like.
        told: in which life, as the beginning of a sentence, and in which other one.
        first: the first step that can show a difference.
        begins: the event of the first life with which the other one begins; its steps before have none like them there.
        otherwise: another life that it may be like as well: it must be unlike both.
        group: the group that it is about, where it is about one.
        within: the dtype whose roundings may tell them apart; by default each parameter's own.
    """

    trace: Trace
    parameters: Mapping[int, int]
    told: tuple[str, str]
    first: int = 0
    begins: int = 0
    otherwise: Twin | None = None
    group: int | None = None
    within: str = ""


def without_others(trace: Trace) -> Iterator[Twin]:
    """Each group alone."""
    groups = trace.all_groups
    # What one group does to all, by a scaler, a schedule or a failing step, is right.
    shared = any(isinstance(e, (Schedule, Fail)) or (isinstance(e, Step) and e.scaling) for e in trace.events)
    aged = any(isinstance(e, Reload) and e.dictionary in AGES for e in trace.events)  # large lives do not grow old
    if len(groups) < 2 or shared or aged or trace.form == "mixed":  # which options are keywords depends on all groups
        return
    for n, group in enumerate(groups):
        number = {i: k for k, i in enumerate(sorted(group.parameters))}
        told = ("beside another group", f"alone, in group {n}")
        begins = _begins(trace, n)
        # Who counts the steps of all groups together has counted those as well that were taken before there was this one.
        counted = Twin(alone(trace, n, counting=True), number, told) if begins else None
        yield Twin(alone(trace, n), number, told, begins=begins, otherwise=counted, group=n)


#: What is said of a class, held to no reference, whose groups act on one another and need not be wrong for it.
COUPLED = (
    "each group beside others: its groups act on one another through their gradients, as a norm over all of them does"
)


#: And of one that draws random numbers.
DRAWS = "two lives compared: it draws random numbers, and in another life draws others"


def beside_idle_ones(trace: Trace, group: int) -> Trace:
    """The life in which no other group has a gradient."""
    own = trace.all_groups[group].parameters

    def idle(e: Event) -> Event:
        if isinstance(e, Accumulate):
            return replace(e, gradients={i: g for i, g in e.gradients.items() if i in own})
        return (
            replace(e, gradients={i: g if i in own else None for i, g in e.gradients.items()})
            if isinstance(e, Step)
            else e
        )

    return replace(trace, events=tuple(map(idle, trace.events)))


def alone(trace: Trace, group: int, *, counting: bool = False) -> Trace:
    """The life of one group.

    Args:
        counting: one that was added later takes the steps that were taken before as well, without a gradient.
    """
    kept = trace.keeping(trace.all_groups[group].parameters)
    if (len(trace.groups) > 1 or not kept.groups) and trace.form != "named":
        # One group's options would be keywords, and these were in a dictionary; but no dictionary alone gives names.
        kept = replace(kept, form="dicts")
    if kept.groups:
        return kept
    at = next(n for n, e in enumerate(kept.events) if isinstance(e, AddGroup))
    added = kept.events[at]
    assert isinstance(added, AddGroup)
    # It was added later: then it is what the life begins with. What the others did before it was there it does not see.
    before = (e for e in kept.events[:at] if counting or not isinstance(e, (Step, Run, Handle, Fail, ZeroGrad)))
    return replace(kept, groups=(added.group,), events=(*before, *kept.events[at + 1 :]))


def _begins(trace: Trace, group: int) -> int:
    """The event with which there is a group."""
    later = (n for n, e in enumerate(trace.events) if isinstance(e, AddGroup) and e.group is trace.all_groups[group])
    return next(later, 0)


def in_reverse(trace: Trace) -> Iterator[Twin]:
    """The parameters of each group in reverse."""
    if any(len(g.parameters) > 1 for g in trace.groups):
        yield Twin(reversed_groups(trace), _same(trace), ("in this order of parameters", "in reverse"))


def reversed_groups(trace: Trace) -> Trace:
    """The life with the parameters of each group in reverse."""
    return replace(trace, groups=tuple(replace(g, parameters=g.parameters[::-1]) for g in trace.groups))


def _same(trace: Trace) -> dict[int, int]:
    return {i: i for i in range(len(trace.parameters))}


def without_reloads(trace: Trace) -> Iterator[Twin]:
    """The optimizer goes on instead of being saved and loaded; a loaded one that is older grows as old."""
    reloads = [n for n, e in enumerate(trace.events) if isinstance(e, Reload) and e.way != STAYS]
    if not reloads or any(e.into for e in trace.events if isinstance(e, Reload)):
        return
    copies = any(trace.events[n].way in ("copied", "unpickled") for n in reloads)  # type: ignore[union-attr]
    if copies and any(isinstance(e, Schedule) for e in trace.events):
        return  # a copy leaves the schedule behind
    yield Twin(staying(trace), _same(trace), ("after a state_dict round trip", "without one"), reloads[0])


def staying(trace: Trace) -> Trace:
    """The life without round trips. How old an optimizer is must matter, so it grows as old without them."""
    stays = (Reload(STAYS, e.dictionary) if isinstance(e, Reload) else e for e in trace.events)
    return replace(trace, events=tuple(stays))


def mirrored(trace: Trace) -> Iterator[Twin]:
    """With ``maximize`` the other way round, and every gradient turned."""
    maximizing = any(g.options.get("maximize") for g in trace.all_groups)
    changed = any(isinstance(e, SetOption) and e.option == "maximize" for e in trace.events)
    scaled = any(isinstance(e, Step) and e.scaling for e in trace.events)
    if maximizing and not changed and not scaled:
        yield Twin(turned(trace), _same(trace), ("with maximize", "without it and the gradient turned"))


def turned(trace: Trace) -> Trace:
    """The life with ``maximize`` the other way round and every gradient, or function, turned."""
    negated = trace.with_gradients(lambda i, g: replace(g, negated=not g.negated))
    events = tuple(map(_flipped_event, negated.events))
    return replace(negated, groups=tuple(map(_flipped, trace.groups)), events=events)


def _flipped(group: Group) -> Group:
    return replace(group, options={**group.options, "maximize": not group.options.get("maximize", False)})


def _flipped_event(event: Event) -> Event:
    if isinstance(event, Step) and event.objective is not None:
        return replace(event, objective=replace(event.objective, scale=-event.objective.scale))
    return AddGroup(_flipped(event.group)) if isinstance(event, AddGroup) else event


@dataclass(frozen=True)
class Unset:
    """A life in which one option was not set.

    Attributes:
        option: its name.
        group: of which group.
        later: it was set in the course of the life, and is left as it was at first.
        trace: the life.
        at_first: how many groups it begins with.
    """

    option: str
    group: int
    later: bool
    trace: Trace
    at_first: int = 1

    @property
    def where(self) -> str:
        """The place where it was set, which tells one cause from another."""
        return place(self.group, later=self.later, at_first=self.at_first)


def place(group: int, *, later: bool, at_first: int) -> str:
    """Where an option was set."""
    return LATER if later else FIRST if group == 0 else OTHER if group < at_first else ADDED


def unset(trace: Trace) -> Iterator[Unset]:
    """Each option left at its default, or as it was before it was changed."""
    for n, group in enumerate(trace.all_groups):
        changed = {e.option for e in trace.events if isinstance(e, SetOption) and e.group == n}
        for name in sorted(changed):
            events = tuple(
                e for e in trace.events if not (isinstance(e, SetOption) and (e.group, e.option) == (n, name))
            )
            yield Unset(name, n, later=True, trace=replace(trace, events=events), at_first=len(trace.groups))
        for name in sorted(group.options.keys() - changed):
            yield Unset(name, n, later=False, trace=_without_option(trace, n, name), at_first=len(trace.groups))


def _without_option(trace: Trace, group: int, name: str) -> Trace:
    if group < len(trace.groups):
        groups = (without(name, g) if n == group else g for n, g in enumerate(trace.groups))
        return replace(trace, groups=tuple(groups))
    added = trace.all_groups[group]
    events = (
        AddGroup(without(name, e.group)) if isinstance(e, AddGroup) and e.group is added else e for e in trace.events
    )
    return replace(trace, events=tuple(events))


def without(option: str, group: Group) -> Group:
    """A group in which an option is not given."""
    return replace(group, options={k: v for k, v in group.options.items() if k != option})


def visibly_apart(trace: Trace, mine: Recording, theirs: Recording) -> int:
    """In how many elements two lives part by more than rounding, in the first step that tells them apart."""
    if mine.raised is not None or theirs.raised is not None or len(mine.steps) != len(theirs.steps):
        return 0
    for a, b in zip(mine.steps, theirs.steps, strict=True):
        apart = 0
        for i, (x, y) in enumerate(zip(a.parameters, b.parameters, strict=True)):
            before, got, other = reals(x.value), reals(x.value_after), reals(y.value_after)
            with np.errstate(all="ignore"):
                apart += int((np.abs(got - other) > rounding(before, got, other, trace.parameters[i].dtype)).sum())
        if apart:
            return apart
    return 0


#: The twins of a life, by the check that they answer.
TWINS: dict[str, Callable[[Trace], Iterator[Twin]]] = {
    "groups-independent": without_others,
    "order-of-parameters": in_reverse,
    "save-load-continue": without_reloads,
    "maximize-mirrors": mirrored,
}


def compare(recording: Recording, twin: Twin, other: Recording) -> tuple[int, Deviation | None]:
    """How many elements of two lives were compared, and the first that differs by more than rounding."""
    steps = [step for step in recording.steps if step.event >= twin.begins]
    if other.raised is not None or len(other.steps) != len(steps):
        return 0, None
    compared = 0
    alike = set(twin.parameters)  # to the bit so far
    for mine, theirs in zip(steps, other.steps, strict=True):
        for i in sorted(alike):
            count, deviation, same = _compare_step(recording.trace, i, mine, theirs, twin)
            if mine.event >= twin.first:
                compared += count
                if deviation is not None:
                    return compared, deviation
            if not same:
                alike.discard(i)
    return compared, None


def is_finite(recording: Recording) -> bool:
    """Whether each step leads from ordinary numbers to ordinary numbers."""
    return all(
        np.isfinite(reals(parameter.value_after)).all() for step in recording.steps for parameter in step.parameters
    )


def alike(recording: Recording, other: Recording) -> bool:
    """Whether two plays of one life came out the same."""
    if len(recording.steps) != len(other.steps) or recording.raised != other.raised:
        return False
    pairs = zip(recording.steps, other.steps, strict=True)
    both = ((a, b) for mine, theirs in pairs for a, b in zip(mine.parameters, theirs.parameters, strict=True))
    return all(
        identical(a.value_after, b.value_after)
        and a.state_after.keys() == b.state_after.keys()
        and all(identical(a.state_after[k], b.state_after[k]) for k in a.state_after)
        for a, b in both
    )


def _compare_step(
    trace: Trace, index: int, mine: StepRecord, theirs: StepRecord, twin: Twin
) -> tuple[int, Deviation | None, bool]:
    """Elements compared, the one that differs most if it does, and whether all are the same to the bit."""
    parameter = mine.parameters[index]
    before, got = reals(parameter.value), reals(parameter.value_after)
    expected = reals(theirs.parameters[twin.parameters[index]].value_after)
    allowed = rounding(before, got, expected, twin.within or trace.parameters[index].dtype)
    with np.errstate(all="ignore"):
        # An element that moves by less than that could not have been told apart, whatever became of it.
        telling = int((np.isfinite(got) & (np.abs(got - before) > allowed)).sum())
    if np.array_equal(got, expected, equal_nan=True):
        return telling, None, True
    with np.errstate(all="ignore"):
        apart = np.where(np.isfinite(got) & np.isfinite(expected), np.abs(got - expected) / allowed, 0.0)
    at = int(apart.argmax())
    if not apart[at] > 1:
        return telling, None, False
    shape = in_reals(trace.parameters[index].shape, trace.parameters[index].dtype)
    where = tuple(int(n) for n in np.unravel_index(at, shape)) if shape else ()
    numbers = float(got[at]), float(expected[at]), float(allowed[at]), float(apart[at])
    return telling + 1, Deviation(mine.event, index, PARAMETER, where, *numbers), False
