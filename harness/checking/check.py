"""What a check is: a question, what it looks at, what it finds wrong, and what a script asserts of that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepcheck.harness.checking.findings import Finding, event_name
from stepcheck.harness.checking.witness import Witness
from stepcheck.harness.play.recording import CALLERS_GROUPS
from stepcheck.harness.play.subjects import Subject

if TYPE_CHECKING:
    from stepcheck.harness.checking.case import Evidence


@dataclass(frozen=True)
class Check:
    """A named question about a recording.

    Attributes:
        looks_at: how many things in a recording the question applies to; 0 means that it was not asked.
        find: yields what is wrong.
        without_meaning: why it cannot be asked of a subject, or nothing.
        needs: abilities, of which a subject must have one for it to be asked: ``hooks``, ``closures``, ``scaling``.
        witness: what a script remembers and asserts; without one, the script of a finding that has no deviation fails, and says why.
    """

    name: str
    question: str
    looks_at: Callable[[Evidence], int]
    find: Callable[[Evidence], Iterator[Finding]]
    without_meaning: Callable[[Subject], str] = lambda subject: ""
    needs: frozenset[str] = frozenset()
    witness: Witness | None = None


def asks(
    name: str,
    question: str,
    looks_at: Callable[[Evidence], int],
    without_meaning: Callable[[Subject], str] = lambda subject: "",
    needs: str = "",
    witness: Witness | None = None,
) -> Callable[[Callable[[Evidence], Iterator[Finding]]], Check]:
    """Make a check of the function that finds what is wrong."""

    def decorate(find: Callable[[Evidence], Iterator[Finding]]) -> Check:
        def found(evidence: Evidence) -> Iterator[Finding]:
            return (evidence.attributed(f) for f in find(evidence) if not evidence.is_consequence(f))

        def no_question(subject: Subject) -> str:
            unasked = "" if subject.shape is None else subject.shape.unasked.get(name, "")
            return unasked or without_meaning(subject)

        return Check(name, question, looks_at, found, no_question, frozenset(needs.split()), witness)

    return decorate


def breaches(evidence: Evidence, name: str) -> Iterator[Finding]:
    """What the player saw not to hold, the first of each cause."""
    told = set()
    for b in evidence.recording.breaches:
        if b.check == name and b.cause not in told:
            told.add(b.cause)
            constructed = b.event is None or b.cause == CALLERS_GROUPS
            where = "the constructor" if b.event is None or constructed else event_name(evidence.trace, b.event)
            yield Finding(name, b.cause, b.event, f"{where} {b.told}", b.parameter, option=b.option, spoilt=b.spoilt)


def steps_judged(evidence: Evidence) -> int:
    """Steps of single parameters that were compared with the reference."""
    return sum(parameter.gradient is not None for s in evidence.recording.steps for parameter in s.parameters)
