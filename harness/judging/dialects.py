"""Whether a class that deviates follows another convention: its lives are judged once more, in dialects of the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.judgement import Judgement
from stepcheck.harness.play.recording import Recording, StepRecord
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.dialects import Dialect, applied, dialects, with_options

#: Lives that are kept for it, of those that deviate and of those that do not, and the elements compared in the largest of them.
_KEPT, _LARGEST = 10, 1000
#: Conventions that are tried together, and how many such sets of one size: those first that help most by themselves.
_TOGETHER, _SETS = 3, 30
#: Of the lives that deviate, the share that may do so for another reason.
_OTHERWISE = 0.2
#: Of the elements that the reference determines, the share that a dialect has to.
_DETERMINED = 0.9
_OF_GROUP = Dialect("count", "", "a step that is counted for the whole group", lambda _: True)


@dataclass
class Dialects:
    """The lives of one class, and the dialects in which they agree.

    Attributes:
        progress: called now and then.
        deviating: recordings of lives in which it deviates from the reference.
        agreeing: some in which it does not.
    """

    subject: Subject
    progress: Callable[[], None] = lambda: None
    deviating: list[Recording] = field(default_factory=list)
    agreeing: list[Recording] = field(default_factory=list)
    _determined: dict[int, int] = field(default_factory=dict)

    def keep(self, recording: Recording, judgement: Judgement, *, deviates: bool) -> None:
        """Keep a life, where it is one of the first, not a large one, and all its steps are recorded."""
        kept = self.deviating if deviates else self.agreeing
        usable = judgement.elements <= _LARGEST and recording.aged is None
        if self.subject.explicit and usable and len(kept) < _KEPT:
            kept.append(recording)
            self._determined[id(recording)] = _determined(judgement)

    def told(self, *, thoroughly: bool = True) -> list[str]:
        """The convention in which it agrees, in a line; where none is found, the options of which its own value is not known.

        Args:
            thoroughly: look for one; that takes a second or more.
        """
        found = self.found() if thoroughly else None
        return [_in_words(*found, len(self.deviating))] if found else _unnamed(self.subject)

    def found(self) -> tuple[tuple[Dialect, ...], int] | None:
        """The conventions in which it agrees, the fewest that do, and in how many of the lives that deviate it still does."""
        subject = self.subject
        if (
            not self.deviating or subject.spec.closure or subject.spec.products
        ):  # these are judged by more than their update
            return None
        # What is soon told apart first.
        for kept in (self.deviating, self.agreeing):
            kept.sort(key=lambda r: self._determined[id(r)])
        known = [*_named(subject), *dialects(subject.spec), *_counted(subject)]
        most = int(_OTHERWISE * len(self.deviating))
        misses: dict[Dialect, int] = {}
        for dialect in known:
            misses[dialect] = self._misses((dialect,), len(self.deviating))
            if misses[dialect] <= most:
                return (dialect,), misses[dialect]
        for number in range(2, _TOGETHER + 1):
            sets = [s for s in itertools.combinations(known, number) if len({d.kind for d in s}) == number]
            sets.sort(key=lambda s: sum(misses[d] for d in s))
            for chosen in sets[:_SETS]:
                missed = self._misses(chosen, most)
                if missed <= most:
                    return chosen, missed
        return None

    def _misses(self, chosen: Sequence[Dialect], most: int) -> int:
        """In how many of the lives that deviate from the reference it does so in a dialect too, up to ``most`` and one more.

        All of them, where it deviates in another life there, or where the dialect leaves undetermined what the reference determines:
        what is not determined agrees with anything.
        """
        self.progress()
        spoken = replace(self.subject, spec=applied(self.subject.spec, chosen))
        misses, determined, before, every = 0, 0, 0, len(self.deviating)
        for n, recording in enumerate((*self.deviating, *self.agreeing)):
            told = _counting(recording) if _OF_GROUP in chosen else recording
            judgement = Judge(spoken, told).judge(to_first=True)
            if judgement.deviations:
                misses += 1
                if misses > most:
                    return misses
                if n >= every:
                    return every + 1
            else:
                determined += _determined(judgement)
                before += self._determined[id(recording)]
        return misses if determined >= _DETERMINED * before else every + 1


def _determined(judgement: Judgement) -> int:
    return judgement.elements - judgement.undetermined


def _in_words(chosen: Sequence[Dialect], missed: int, of: int) -> str:
    lives = "the one life that deviates agrees" if of == 1 else f"of {of} lives that deviate, {of - missed} agree"
    declared = ", ".join(f"--dialect {d.name}" for d in chosen)
    # What its options are called, and what it counts, is no dialect.
    meant = f"; if it is meant, declare it: {declared}" if all(d.name for d in chosen) else ""
    return f"another convention? Judged once more, {lives} with {', and '.join(d.words for d in chosen)}{meant}"


def _unnamed(subject: Subject) -> list[str]:
    """Numbers of the reference that are none of its options by name, and may be something else there: what they are is not known."""
    given, others = vars(subject.spec.hyper_values()), {} if subject.takes is None else subject.takes.others
    numbers = {k: v for k, v in given.items() if k in subject.missing_options and isinstance(v, float | tuple)}
    # One that is zero by default is usually one that it does not have.
    told = ", ".join(f"{name}={value!r}" for name, value in numbers.items() if value or others)
    other = f" as {', '.join(others)}" if others else ""
    if not told:
        return []
    return [
        f"judged with {told}, which is no option of it: is it called something else there{other}? Then declare it: --rename OURS=THEIRS"
    ]


def _counted(subject: Subject) -> Iterator[Dialect]:
    """The dialect of a count that is the group's, where the optimizer counts."""
    if any(b.name == "step" for b in subject.spec.buffers):
        yield _OF_GROUP


def _counting(recording: Recording) -> Recording:
    """A life in which each parameter has the number of steps of its group for its own."""
    taken: dict[int, int] = {}
    steps: list[StepRecord] = []
    for record in recording.steps:
        counted = []
        for i, parameter in enumerate(record.parameters):
            n = taken.get(recording.trace.group_of[i], 0)
            before, after = {"step": np.float64(n)}, {"step": np.float64(n + 1)}
            counted.append(
                replace(
                    parameter,
                    begun=True,
                    state={**parameter.state, **before},
                    state_after={**parameter.state_after, **after},
                )
            )
        for group in range(len(record.hyper)):
            taken[group] = taken.get(group, 0) + 1
        steps.append(replace(record, parameters=counted))
    return replace(recording, steps=steps)


def _named(subject: Subject) -> Iterator[Dialect]:
    """Options of the reference that it lacks, with the default of one of its own: perhaps it is called so there."""
    others = {} if subject.takes is None else subject.takes.others
    every: dict[str, tuple[str, Any]] = {}
    each: list[Dialect] = []
    for hyper in subject.spec.hyper:
        if hyper.name not in subject.missing_options or not isinstance(hyper.default, float | tuple):
            continue
        numbers = len(hyper.default) if isinstance(hyper.default, tuple) else 1
        for names in zip(*(list(others)[n:] for n in range(numbers)), strict=False):
            values = tuple(others[name] for name in names)
            value = values if isinstance(hyper.default, tuple) else values[0]
            if hyper.problem(value) is not None:
                continue
            if hyper.name not in every and all(_alike(name, hyper.name) for name in names):
                every[hyper.name] = ", ".join(names), value
            if value != hyper.default:
                each.append(_called({hyper.name: (", ".join(names), value)}))
    yield from ([_called(every)] if len(every) > 1 else [])
    yield from each


def _called(names: Mapping[str, tuple[str, Any]]) -> Dialect:
    """Options under other names, with their defaults there."""
    told = ", ".join(f"{ours}={value!r} ({theirs}?)" for ours, (theirs, value) in names.items())
    return with_options(
        "names", f"{told}, the defaults of its own options", **{k: value for k, (_, value) in names.items()}
    )


def _alike(theirs: str, ours: str) -> bool:
    """Whether two names of an option are alike: ``epsilon`` and ``eps``, ``learning_rate`` and ``lr``, ``decay`` and ``weight_decay``."""
    initials = ["".join(word[:1] for word in name.split("_")) for name in (theirs, ours)]
    return theirs[:3] == ours[:3] or theirs in ours or ours in theirs or initials[0] == ours or initials[1] == theirs
