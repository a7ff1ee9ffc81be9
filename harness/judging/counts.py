"""The count of a group, where an optimizer has one for all its parameters: what each of them is given for its own.

A class shows its count in its groups. A step of a group in which some parameter has a gradient counts, whoever has none; a parameter that comes
late takes the count as it is, and so its averages of zeros are corrected for more steps than they have seen: that is what is meant. Released classes
differ in whether a step counts in which no parameter of the group has a gradient. Either is right, throughout a life.

The count is that of the group's own steps: what stands in a group before a step is what stood there after the one before, so that whoever begins
anew with a round trip, or with another parameter, is found. Where a class does not show its count, it is counted here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from stepcheck.harness.life.events import Fail, Handle, Reload, Run
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.recording import Recording, StepRecord
from stepcheck.harness.play.resume import AGES
from stepcheck.harness.play.subjects import Subject

#: The count of each group before a step, and after it.
_Counts = list[list[tuple[float, float]]]
#: Whether a step counts in which no parameter of the group has a gradient, and whether one does in which no parameter of any has.
_WAYS = ((True, True), (False, False), (True, False))


def counted(subject: Subject, recording: Recording, agrees: Callable[[Recording], bool]) -> Recording:
    """The recording in which each parameter has the count of its group, where the reference of the subject has such a count.

    Args:
        agrees: whether a recording does, of which there may be several: where the count is not shown, one for each way to count.
    """
    names = [b.name for b in subject.spec.buffers if b.of_group]
    if not names or recording.by_group:
        return recording
    if _is_shown(recording):
        return _with_counts(recording, names, _as_shown(recording))
    known = replace(recording, steps=list(_known(recording)))
    ways: list[_Counts] = []
    for way in _WAYS:
        counts = _by_the_way(known, *way)
        ways += [counts] if counts not in ways else []
    several = [_with_counts(known, names, counts) for counts in ways]
    return several[0] if len(several) == 1 else next(filter(agrees, several), several[0])


def _with_counts(recording: Recording, names: list[str], counts: _Counts) -> Recording:
    steps = []
    for record, of_groups in zip(recording.steps, counts, strict=True):
        parameters = []
        for i, parameter in enumerate(record.parameters):
            group = recording.trace.group_of[i]
            # Of a group that is added later nothing is judged before.
            before, after = of_groups[group] if group < len(of_groups) else (0.0, 0.0)
            state = {**parameter.state, **dict.fromkeys(names, np.float64(before))}
            state_after = {**parameter.state_after, **dict.fromkeys(names, np.float64(after))}
            parameters.append(replace(parameter, state=state, state_after=state_after))
        steps.append(replace(record, parameters=parameters))
    return replace(recording, steps=steps, by_group=True)


def _stepped(recording: Recording, record: StepRecord) -> set[int]:
    """The groups in which some parameter has a gradient."""
    return {recording.trace.group_of[i] for i, p in enumerate(record.parameters) if p.gradient is not None}


# A count that is shown


def _is_shown(recording: Recording) -> bool:
    """Whether each group that takes a step shows a count after it."""
    shown = [
        group < len(record.counts) and record.counts[group][1] is not None
        for record in recording.steps
        for group in _stepped(recording, record)
    ]
    return bool(shown) and all(shown)


def _as_shown(recording: Recording) -> _Counts:
    """The counts that the groups show, each step from what was shown after the one before."""
    counts: _Counts = []
    last: dict[int, float] = {}
    idle: dict[bool, float] = {}
    event = -1
    for record in recording.steps:
        if _is_uncertain(recording.trace, event, record.event):
            last = {group: before or 0.0 for group, (before, _) in enumerate(record.counts)}
        stepped = _stepped(recording, record)
        of_groups = []
        for group, (_, shown) in enumerate(record.counts):
            before = last.get(group, 0.0)
            after = before if shown is None else shown
            of_groups.append((before, after))
            # What is shown after a step without gradients is judged by the next one with some.
            last[group] = after if group in stepped else _after_idling(before, after, idle, nobody=not stepped)
        counts.append(of_groups)
        event = record.event
    return counts


def _after_idling(before: float, after: float, idle: dict[bool, float], *, nobody: bool) -> float:
    """What a group may count after a step without a gradient in it: as many as before or one more, and always the same."""
    moved = after - before
    if moved in (0.0, 1.0):
        moved = idle.setdefault(nobody, moved)
        return before + moved
    return before


def _is_uncertain(trace: Trace, first: int, last: int) -> bool:
    """Whether something happened between two steps that counts, or does not: steps that were not looked at, or that failed; an older state."""
    between = trace.events[first + 1 : last]
    return any(
        isinstance(e, Run | Fail)
        or (isinstance(e, Reload) and e.dictionary in AGES)
        or (isinstance(e, Handle) and e.how == "rolled back")
        for e in between
    )


# A count that is not shown


def _known(recording: Recording) -> Iterator[StepRecord]:
    """The steps before which all were looked at, and none failed."""
    for record in recording.steps:
        if _is_uncertain(recording.trace, -1, record.event):
            return
        yield record


def _by_the_way(recording: Recording, idle: bool, alone: bool) -> _Counts:
    """The steps that each group has taken, as they are counted here."""
    taken: dict[int, float] = {}
    counts: _Counts = []
    for record in recording.steps:
        stepped = _stepped(recording, record)
        of_groups = []
        for group in range(len(record.hyper)):
            before = taken.get(group, 0.0)
            counts_here = group in stepped or (idle if stepped else alone)
            taken[group] = before + counts_here
            of_groups.append((before, before + 1))
        counts.append(of_groups)
    return counts
