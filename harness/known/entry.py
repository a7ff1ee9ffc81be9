"""What an entry of the ledger is, and whether it holds here."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import evidence as versions
from stepcheck.harness.known.seen import Seen
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.signature import inherits
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record import store
from stepcheck.harness.record.store import Saved
from stepcheck.reference import SPECS

#: Whose an entry may be: that of all optimizers, and that of all that take complex parameters.
ALL = " ".join(SPECS)
_EVERY = tuple(ALL.split())
TAKE_COMPLEX = "ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop"


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
        # What all of them do, one that is not in torch does as well where it inherits it.
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


class Kind(list[Entry]):
    """Entries of one kind, in the order in which they are asked."""

    def enter(
        self, name: str, statement: str, optimizers: str, checks: str, modes: str = "", **more: str
    ) -> Callable[[Callable[[Seen], bool]], Callable[[Seen], bool]]:
        """Declare an entry by decorating its predicate."""

        def decorate(explains: Callable[[Seen], bool]) -> Callable[[Seen], bool]:
            of, by, in_modes = (tuple(text.split()) for text in (optimizers, checks, modes))
            self.append(Entry(name, statement, of, by, explains, in_modes, **more))
            return explains

        return decorate
