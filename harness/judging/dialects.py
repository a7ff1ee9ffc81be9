"""Whether a class that deviates follows another convention: its lives are judged once more, in dialects of the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.judgement import Judgement
from stepcheck.harness.play.recording import Recording
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.dialect import Dialect, with_options
from stepcheck.reference.dialects import applied, dialects
from stepcheck.reference.spec import PARAMETER

#: Lives with which a convention is looked for, of those that deviate and of those that do not; those that are kept to see in how many it is
#: one; and the elements compared in the largest of them.
_KEPT, _COUNTED, _LARGEST = 10, 60, 1000
#: Conventions that are tried together, and how many such sets of one size: those first that help most by themselves.
_TOGETHER, _SETS = 3, 30
#: Of the lives that deviate, the share that may do so for another reason; where there is no such convention, of one by itself.
_OTHERWISE, _AT_MOST = 0.2, 0.5
#: Of the elements that the reference determines, the share that a dialect has to.
_DETERMINED = 0.9


@dataclass(frozen=True)
class Accounting:
    """Conventions that account for deviations.

    Attributes:
        chosen: the fewest that do.
        lives: those that deviate and were judged once more.
        missed: of each of them that deviates in these conventions as well, the field that does so first.
        every: all lives that deviate; one that is large, or of which not all steps are recorded, is not judged once more.
    """

    chosen: tuple[Dialect, ...]
    lives: int
    missed: tuple[str, ...]
    every: int

    @property
    def words(self) -> str:
        """The line of a report."""
        agree = self.lives - len(self.missed)
        in_all = f" ({self.every} in all)" if self.every > self.lives else ""
        lives = "the one life that deviates agrees"
        if self.every > 1:
            lives = f"of {self.lives} lives that deviate{in_all}, {agree} agree"
        declared = ", ".join(f"--dialect {d.name}" for d in self.chosen)
        # What its options are called is no dialect.
        meant = f"; if it is meant, declare it: {declared}" if all(d.name for d in self.chosen) else ""
        return (
            f"another convention? Judged once more, {lives} with {', and '.join(d.words for d in self.chosen)}"
            f"{self._others}{meant}"
        )

    @property
    def _others(self) -> str:
        """What becomes of the lives for which it does not account."""
        if not self.missed:
            return ""
        each = {name: self.missed.count(name) for name in sorted(self.missed)}
        told = ", ".join(
            f"{'the ' if name == PARAMETER else ''}{name}{f' ({n})' if len(each) > 1 else ''}"
            for name, n in each.items()
        )
        others = f"the other {len(self.missed)} deviate" if len(self.missed) > 1 else "the other one deviates"
        return f"; {others} from that too, first in {told}"


@dataclass
class Dialects:
    """The lives of one class, and the dialects in which they agree.

    Attributes:
        progress: called now and then.
        deviating: recordings of lives in which it deviates from the reference.
        agreeing: some in which it does not.
        every: how many lives deviate.
    """

    subject: Subject
    progress: Callable[[], None] = lambda: None
    deviating: list[Recording] = field(default_factory=list)
    agreeing: list[Recording] = field(default_factory=list)
    every: int = 0
    _determined: dict[int, int] = field(default_factory=dict)

    def keep(self, recording: Recording, judgement: Judgement, *, deviates: bool) -> None:
        """Keep a life, where it is one of the first, not a large one, and all its steps are recorded."""
        kept, most = (self.deviating, _COUNTED) if deviates else (self.agreeing, _KEPT)
        self.every += deviates
        usable = judgement.elements <= _LARGEST and recording.aged is None
        if self.subject.explicit and usable and len(kept) < most:
            kept.append(recording)
            self._determined[id(recording)] = _determined(judgement)

    def told(self, *, thoroughly: bool = True) -> list[str]:
        """The convention in which it agrees, in a line; where none is found, the options of which its own value is not known.

        Args:
            thoroughly: look for one; that takes a second or more.
        """
        found = self.found() if thoroughly else None
        return [found.words] if found else _unnamed(self.subject)

    def found(self) -> Accounting | None:
        """The conventions in which it agrees, the fewest that do, or one that accounts for most of what deviates."""
        subject = self.subject
        if (
            not self.deviating or subject.spec.closure or subject.spec.products
        ):  # these are judged by more than their update
            return None
        chosen = self._chosen()
        if chosen is None:
            return None
        spoken = replace(subject, spec=applied(subject.spec, chosen))
        judged = [Judge(spoken, recording).judge().deviations for recording in self.deviating]
        missed = tuple(deviations[0].field for deviations in judged if deviations)
        most = _AT_MOST * len(self.deviating)
        return Accounting(chosen, len(self.deviating), missed, self.every) if len(missed) <= most else None

    def _chosen(self) -> tuple[Dialect, ...] | None:
        """The conventions in which the first lives agree."""
        known = [*_named(self.subject), *dialects(self.subject.spec)]
        few = self._soonest(self.deviating)
        most = int(_OTHERWISE * len(few))
        misses: dict[Dialect, int] = {}
        for dialect in known:
            misses[dialect] = self._misses((dialect,), len(few))
            if misses[dialect] <= most:
                return (dialect,)
        for number in range(2, _TOGETHER + 1):
            sets = [s for s in itertools.combinations(known, number) if len({d.kind for d in s}) == number]
            sets.sort(key=lambda s: sum(misses[d] for d in s))
            for chosen in sets[:_SETS]:
                if self._misses(chosen, most) <= most:
                    return chosen
        best = min(known, key=lambda d: misses[d], default=None)
        return (best,) if best is not None and misses[best] <= _AT_MOST * len(few) else None

    def _soonest(self, kept: list[Recording]) -> list[Recording]:
        """The first lives that were kept, and of these first what is soon told apart."""
        return sorted(kept[:_KEPT], key=lambda r: self._determined[id(r)])

    def _misses(self, chosen: Sequence[Dialect], most: int) -> int:
        """In how many of the first lives that deviate from the reference it does so in a dialect too, up to ``most`` and one more.

        All of them, where it deviates in another life there, or where the dialect leaves undetermined what the reference determines:
        what is not determined agrees with anything.
        """
        self.progress()
        spoken = replace(self.subject, spec=applied(self.subject.spec, chosen))
        few = self._soonest(self.deviating)
        misses, determined, before, every = 0, 0, 0, len(few)
        for n, recording in enumerate((*few, *self._soonest(self.agreeing))):
            judgement = Judge(spoken, recording).judge(to_first=True)
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
