"""What is found out about a subject, as plain data: verdicts, counts and divergences."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

from stepcheck.harness.clocks import Clocks
from stepcheck.harness.trace import Trace

#: Classes of r: exactly 0; above each edge up to the next; above 1.
RATIO_EDGES = tuple(n / 20 for n in range(21))


@dataclass
class Divergence:
    """One cause of failure, with the smallest life found that shows it. Plain data: it crosses processes.

    Attributes:
        summary: what differs, in which element, by how many budgets.
        life: the trace told in a few lines of prose.
        script: a stand-alone script that fails as long as the divergence is there.
        found_in: how many of the campaign's traces showed it when it was told.
        entry: the name of the ledger's entry that explains it, where it is known.
    """

    subject: str
    like: str
    check: str
    cause: str
    summary: str
    ratio: float | None
    trace: Trace
    life: list[str]
    script: str
    found_in: int
    entry: str = ""

    @property
    def id(self) -> str:
        """Eight hex digits, the same wherever the same trace fails the same check."""
        text = json.dumps([self.subject, self.check, self.cause, self.trace.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@dataclass
class Tally:
    """What became of one check.

    Attributes:
        planned: traces it was to be asked of.
        ran: traces in which there was something to look at.
        looked: things looked at.
        unsupported: what the subject declares it does not support: options of the reference that its signature lacks, and
            lives whose options its constructor refuses with ValueError. The subject's notes tell them apart.
        divergences: those that nobody knows of.
        known: those that the ledger explains; they are told, and do not fail the check.
    """

    check: str
    planned: int = 0
    ran: int = 0
    looked: int = 0
    unsupported: int = 0
    worst_ratio: float | None = None
    divergences: list[Divergence] = field(default_factory=list)
    known: list[Divergence] = field(default_factory=list)

    def add(self, divergence: Divergence) -> None:
        """Keep a divergence with those of its kind."""
        (self.known if divergence.entry else self.divergences).append(divergence)

    @property
    def verdict(self) -> str:
        if self.divergences:
            return "fail"
        if self.planned and self.planned == self.unsupported:
            return "unsupported"
        return "pass" if self.ran else "unknown"


@dataclass
class Result:
    """What a campaign found out about one subject."""

    subject: str
    like: str
    tallies: dict[str, Tally]
    notes: list[str] = field(default_factory=list)
    error: str = ""
    """Why the verdict is unknown, where the harness itself failed."""
    traces: int = 0
    lives: int = 0
    """Calls of step()."""
    steps: int = 0
    """Steps of single parameters that were compared with the reference."""
    elements: int = 0
    undetermined: int = 0
    validation: list[dict[str, Any]] = field(default_factory=list)
    """What was tried that is invalid, and what became of it, as rows."""
    clocks: Clocks = field(default_factory=Clocks)
    """Seconds that went into ``draw`` (and choosing), ``play``, ``judge`` and, as a part of that, the ``reference``."""
    seconds: float = 0.0
    shrink_seconds: float = 0.0
    worst: dict[str, float] = field(default_factory=dict)
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Elements compared in each field, and how many of them were undetermined."""
    ratios: dict[str, dict[str, list[int]]] = field(default_factory=dict)
    """Of each field and dtype, how many elements lie in each of the classes of ``RATIO_EDGES``."""
    features: dict[str, int] = field(default_factory=dict)
    """For each feature of a life, such as ``sparse``, ``closure``, ``reload`` or ``add_group``, how many traces had it."""
    known_lives: dict[str, int] = field(default_factory=dict)
    """For each entry of the ledger, how many traces showed what it explains."""

    @property
    def verdict(self) -> str:
        verdicts = {t.verdict for t in self.tallies.values()}
        if "fail" in verdicts:
            return "fail"
        if self.error or "unknown" in verdicts:
            return "unknown"
        return "unsupported" if verdicts == {"unsupported"} else "pass"

    @property
    def divergences(self) -> list[Divergence]:
        """What nobody knows of."""
        return [d for t in self.tallies.values() for d in t.divergences]

    @property
    def known(self) -> list[Divergence]:
        """What the ledger explains."""
        return [d for t in self.tallies.values() for d in t.known]
