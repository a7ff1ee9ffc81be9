"""Does the same life come out the same? Asked in a clean process, where nothing else has been played."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life.memory import Raw, identical
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.subjects import Subject

#: Causes of :func:`finding`.
LEAKS, CHANCE = "state leaks between optimizers", "not deterministic"


def twice(subject: Subject, trace: Trace) -> tuple[int | None, int | None, str] | None:
    """Where a life that is played for the second time in one process differs from the first: event, parameter, what.

    ``None`` where it does not, and where the random state says why it does.
    """
    if trace.problem(subject.spec) is not None:
        return None
    first, second = (Player(subject, trace).play() for _ in range(2))
    if any(b.check == "random-state" for b in first.breaches):
        return None
    raised = [None if r.raised is None else (r.raised.event, r.raised.kind) for r in (first, second)]
    for (place, a), (_, b) in zip(_values(first), _values(second), strict=False):
        if not identical(a, b):
            return place
    return None if raised[0] == raised[1] else (None, None, "what it raises")


def digest(subject: Subject, trace: Trace) -> str:
    """What a life comes out as, in a few digits."""
    values = hashlib.sha256()
    for _, value in _values(Player(subject, trace).play()):
        values.update(repr(value).encode() if isinstance(value, float) else value.tobytes())
    return values.hexdigest()


def finding(place: tuple[int | None, int | None, str], *, leaks: bool) -> Finding:
    """What is told of a life that does not come out the same."""
    event, parameter, what = place
    told = f"the same life, played twice in one process, comes out differently: {what}"
    cause, why = (LEAKS, f"{LEAKS} of this class") if leaks else (CHANCE, f"it is {CHANCE}")
    return Finding("completes", cause, event, f"{why}: {told}", parameter)


def _values(recording: Recording) -> Iterator[tuple[tuple[int | None, int | None, str], Raw | float]]:
    for step in recording.steps:
        for n, parameter in enumerate(step.parameters):
            yield (step.event, n, "the parameter"), parameter.value_after
            for name, value in parameter.state_after.items():
                yield (step.event, n, name), value
