"""What is found out about a subject, as plain data: verdicts, counts and divergences."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.comparison import RATIO_CLASSES
from stepcheck.harness.support.clocks import Clocks

#: A verdict is told by a sign and a word; colour comes on top.
SIGNS = {"pass": "✓", "known": "◆", "fail": "✕", "unknown": "?", "unsupported": "\N{EN DASH}"}
#: The check that is asked of a matrix, not of random lives.
VALIDATION = "refuses-invalid"
#: How a life may end early: the constructor refuses its options, or the subject hangs.
REFUSED, HANGS = "refused", "hangs"
#: Before the reason, where a divergence is known because its check was expected to fail.
EXPECTED = "expected: "


@dataclass
class Divergence:
    """One cause of failure, with the smallest life found that shows it. Plain data: it crosses processes.

    Attributes:
        summary: what differs, in which element, by how many budgets.
        life: the trace told in a few lines of prose.
        script: a stand-alone script that fails as long as the divergence is there.
        found_in: how many of the campaign's traces showed it when it was told.
        entry: what it is known as, where it is: the name of the ledger's entry that explains it, or ``expected: REASON``.
        owner: whose fault it is, where it is not the subject's own: the mode that a round trip led into, or the base class.
        declared: what is declared of the class beside its reference, as JSON has it.
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
    owner: str = ""
    declared: Mapping[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Eight hex digits, the same wherever the same trace fails the same check."""
        text = json.dumps([self.subject, self.check, self.cause, self.trace.to_json()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    @property
    def expected(self) -> str:
        """Why its check was expected to fail, if it was."""
        return self.entry.removeprefix(EXPECTED) if self.entry.startswith(EXPECTED) else ""


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
        known: those that the ledger explains, or that were expected; they are told, and do not fail the check. Where one is the subject's
            own, the verdict is ``known``.
        passes_now: why the check was expected to fail, where it was asked to the end of a campaign and found nothing. That is a failure.
    """

    check: str
    planned: int = 0
    ran: int = 0
    looked: int = 0
    unsupported: int = 0
    worst_ratio: float | None = None
    divergences: list[Divergence] = field(default_factory=list)
    known: list[Divergence] = field(default_factory=list)
    passes_now: str = ""

    def add(self, divergence: Divergence) -> None:
        """Keep a divergence with those of its kind."""
        (self.known if divergence.entry else self.divergences).append(divergence)

    @property
    def unexplained(self) -> list[Divergence]:
        """Those that the ledger does not explain, expected or not."""
        return [*self.divergences, *(d for d in self.known if d.expected)]

    @property
    def stale(self) -> str:
        """That it was expected to fail, and passes; if so."""
        if not self.passes_now:
            return ""
        return f"{self.check} passes now, and was expected to fail ({self.passes_now}): take it off the list"

    def remove(self, divergence: Divergence) -> None:
        """Forget one: it is told as another."""
        (self.known if divergence.entry else self.divergences).remove(divergence)

    @property
    def verdict(self) -> str:
        if self.divergences or self.passes_now:
            return "fail"
        if any(not d.owner for d in self.known):
            return "known"
        if self.planned and self.planned == self.unsupported:
            return "unsupported"
        return "pass" if self.ran else "unknown"


@dataclass
class LifeTally:
    """What one played trace adds to the result of its subject. Plain data.

    Attributes:
        number: from 1.
        end: one of the words above, where it ended early.
        looked: of each check, the things that it looked at, where there were any.
        worst_ratio: of each check, the largest r that it has seen, if it has.
        known: the ledger's entries that explain something in it.
        calls, steps, elements, undetermined, worst, fields: as of :class:`Result`.
        ratios: of each field and dtype, the classes of r that occur and how many elements lie in each.
        clocks: seconds since the life before, by what they went into.
        seconds: all of them.
    """

    number: int
    end: str = ""
    looked: dict[str, int] = field(default_factory=dict)
    worst_ratio: dict[str, float] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)
    calls: int = 0
    steps: int = 0
    elements: int = 0
    undetermined: int = 0
    worst: dict[str, float] = field(default_factory=dict)
    fields: dict[str, tuple[int, int]] = field(default_factory=dict)
    ratios: dict[str, dict[str, dict[int, int]]] = field(default_factory=dict)
    features: list[str] = field(default_factory=list)
    clocks: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0

    def saw(self, check: str, *ratios: float) -> None:
        """Keep the largest r that a check has seen."""
        if ratios:
            self.worst_ratio[check] = max(self.worst_ratio.get(check, 0.0), *ratios)


@dataclass
class Invalid:
    """What became of everything invalid that was tried, in the check of that name.

    Attributes:
        planned: what is judged.
        ran: what of it could be tried.
        rows: the matrix, where it is reported.
    """

    planned: int = 0
    ran: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    worst_ratio: dict[str, float] = field(default_factory=dict)
    known: list[str] = field(default_factory=list)

    def saw(self, check: str, ratio: float) -> None:
        """Keep the largest r that a check has seen."""
        self.worst_ratio[check] = max(self.worst_ratio.get(check, 0.0), ratio)


@dataclass
class Result:
    """What a campaign found out about one subject."""

    subject: str
    like: str
    tallies: dict[str, Tally]
    facts: dict[str, Any] = field(default_factory=dict)
    """``mode``, ``device``, ``dtypes`` of the parameters, ``examples`` planned (``None`` for as many as time allows),
    ``missing_options``, and its ``profile``: the ``reason``, and the facts that are not the default."""
    meaningless: dict[str, str] = field(default_factory=dict)
    """Why some checks cannot be asked of this subject."""
    expected: Mapping[str, str] = field(default_factory=dict)
    """Checks that were expected to fail, with the reasons."""
    notes: list[str] = field(default_factory=list)
    varied: list[str] | None = None
    """Of somebody's class, the reference's options that had another value than the default in some life."""
    error: str = ""
    """Why the verdict is unknown, where the harness itself failed."""
    traces: int = 0
    calls: int = 0
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
    """Of each field and dtype of the parameter, how many determined elements lie in each of the classes of ``RATIO_EDGES``."""
    features: dict[str, int] = field(default_factory=dict)
    """For each feature of a life, such as ``sparse``, ``closure``, ``reload`` or ``add_group``, how many traces had it."""
    known_lives: dict[str, int] = field(default_factory=dict)
    """For each entry of the ledger, how many traces showed what it explains."""

    def add_life(self, life: LifeTally) -> None:
        """Count one more trace."""
        self.traces += 1
        self._count(life)
        for name, tally in self.tallies.items():
            if life.end == HANGS:
                tally.ran += name in life.looked
            elif life.end == REFUSED or name in self.meaningless:
                tally.planned += 1
                tally.unsupported += 1
            elif name != VALIDATION:
                tally.planned += 1
                tally.ran += name in life.looked
            tally.looked += life.looked.get(name, 0)
        self.calls += life.calls
        self.steps += life.steps
        self.elements += life.elements
        self.undetermined += life.undetermined
        self._add_fields(life)
        for name in life.features:
            self.features[name] = self.features.get(name, 0) + 1
        for name, seconds in life.clocks.items():
            self.clocks[name] += seconds
        self.seconds += life.seconds

    def _add_fields(self, life: LifeTally) -> None:
        for name, (elements, undetermined) in life.fields.items():
            before = self.fields.get(name, (0, 0))
            self.fields[name] = (before[0] + elements, before[1] + undetermined)
        for name, ratio in life.worst.items():
            self.worst[name] = max(self.worst.get(name, 0.0), ratio)
        for name, by_dtype in life.ratios.items():
            for dtype, classes in by_dtype.items():
                counts = self.ratios.setdefault(name, {}).setdefault(dtype, [0] * RATIO_CLASSES)
                for n, count in classes.items():
                    counts[n] += count

    def add_invalid(self, invalid: Invalid) -> None:
        """Count what was tried that is invalid."""
        tally = self.tallies[VALIDATION]
        tally.planned += invalid.planned
        tally.ran += invalid.ran
        tally.looked += invalid.ran
        self.validation += invalid.rows
        self._count(invalid)

    def _count(self, found: LifeTally | Invalid) -> None:
        for check, ratio in found.worst_ratio.items():
            tally = self.tallies[check]
            tally.worst_ratio = ratio if tally.worst_ratio is None else max(tally.worst_ratio, ratio)
        for entry in found.known:
            self.known_lives[entry] = self.known_lives.get(entry, 0) + 1

    @property
    def verdict(self) -> str:
        return overall({t.verdict for t in self.tallies.values()}, self.error)

    @property
    def divergences(self) -> list[Divergence]:
        """What nobody knows of."""
        return [d for t in self.tallies.values() for d in t.divergences]

    @property
    def known(self) -> list[Divergence]:
        """What the ledger explains, or was expected."""
        return [d for t in self.tallies.values() for d in t.known]

    @property
    def unexplained(self) -> list[Divergence]:
        """What the ledger does not explain, expected or not."""
        return [d for t in self.tallies.values() for d in t.unexplained]

    @property
    def passing_now(self) -> list[str]:
        """A line for each check that was expected to fail, and passes."""
        return [t.stale for t in self.tallies.values() if t.stale]


def overall(verdicts: Collection[str], error: str = "") -> str:
    """The verdict on a subject, of those of its checks.

    Args:
        error: why the harness did not come to its end, if it did not.
    """
    if "fail" in verdicts:
        return "fail"
    if error or "unknown" in verdicts:
        return "unknown"
    if "known" in verdicts:
        return "known"
    return "unsupported" if set(verdicts) == {"unsupported"} else "pass"
