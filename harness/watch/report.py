"""What a watch has seen, for a person and for a program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from stepcheck.harness.record.verdict import SIGNS
from stepcheck.harness.watch.findings import CHECKS, Finding
from stepcheck.harness.watch.numbers import OfParameter, Row

#: What is told in full; of the rest, how many there are.
_MOST = 8


@dataclass(frozen=True)
class Report:
    """What a watch has seen so far.

    Attributes:
        steps: calls of ``step()``.
        judged: of these, how many were compared with the reference.
        elements: elements that were compared, and that could have been found wrong.
        undetermined: further elements, of which any value had to be accepted.
        worst: the largest r, in budgets; more than 1 is a finding. 0 where nothing was compared.
        subjects: what the groups were held to.
        findings: what is wrong for certain.
        notes: what is told, and may be meant.
        looked: of each check, how many things it looked at.
        unjudged: pairs of what was not judged (a parameter, a group, a step) and why, each with how often.
        never: names of parameters that no step was judged of.
        rows: numbers of each judged step.
        parameters: the last numbers of each parameter.
        error: why the watch itself failed, and ended; its verdict is ``unknown`` then, unless something had been found.
    """

    steps: int
    judged: int
    elements: int
    undetermined: int
    worst: float
    subjects: Sequence[str]
    findings: Sequence[Finding]
    notes: Sequence[Finding]
    looked: Mapping[str, int]
    unjudged: Mapping[tuple[str, str], int]
    never: Sequence[str]
    rows: Sequence[Row] = ()
    parameters: Mapping[str, OfParameter] = field(default_factory=dict)
    error: str = ""

    @property
    def verdict(self) -> str:
        """``pass``, ``fail``, ``unsupported`` or ``unknown``: where no element was compared, nothing passes."""
        if self.findings:
            return "fail"
        if self.error:
            return "unknown"
        if self.elements:
            return "pass"
        return "unsupported" if self.unjudged else "unknown"

    @property
    def checks(self) -> dict[str, str]:
        """The verdict of each check: ``unknown``, where there was nothing to look at."""
        failed = {f.check for f in self.findings}
        return {name: "fail" if name in failed else "pass" if self.looked.get(name) else "unknown" for name in CHECKS}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The report, a line each."""
        held = f" (like {', '.join(self.subjects)})" if self.subjects else ""
        used = f", worst r {self.worst:.3g}" if self.elements else ""
        counts = f"{self.judged} of {_counted(self.steps, 'step')} judged, {_counted(self.elements, 'element')}{used}"
        lines = [f"{SIGNS[self.verdict]} {self.verdict}: {counts}{held}"]
        lines += [f"the watch itself failed at {self.error}"] if self.error else []
        for finding in self.findings[:_MOST]:
            lines.append(f"{SIGNS['fail']} {finding}")
            lines += [f"    {finding.trace}"] if finding.trace else []
        lines += [f"! {note}" for note in self.notes[:_MOST]]
        left = len(self.findings[_MOST:]) + len(self.notes[_MOST:])
        lines += [f"and {left} more"] if left else []
        return lines + self._not_judged() + self._numbers()

    def _not_judged(self) -> list[str]:
        why: Counter[str] = Counter()
        first: dict[str, str] = {}
        for (what, reason), times in self.unjudged.items():
            why[reason] += times
            first.setdefault(reason, what)
        lines = [
            f"not judged, {_times(n)}: {reason} (first of {first[reason]})" for reason, n in why.most_common(_MOST)
        ]
        if self.never and self.elements:
            more = f" and {len(self.never) - _MOST} more" if len(self.never) > _MOST else ""
            lines.append(f"never judged: {', '.join(self.never[:_MOST])}{more}")
        if self.undetermined:
            lines.append(f"undetermined: {_counted(self.undetermined, 'element')}, of which any value was accepted")
        unasked = [name for name, verdict in self.checks.items() if verdict == "unknown"]
        return [*lines, f"nothing to look at: {', '.join(unasked)}"] if unasked else lines

    def _numbers(self) -> list[str]:
        if not self.rows:
            return []
        first, last = self.rows[0], self.rows[-1]
        eps = "" if last.below_eps is None else f", below eps {last.below_eps:.1%}"
        return [
            f"step {last.step}: update to weight {last.update_to_weight:.2g} (step {first.step}: {first.update_to_weight:.2g}), stalled {last.stalled:.1%}{eps}"
        ]


def _counted(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n:,} times"
