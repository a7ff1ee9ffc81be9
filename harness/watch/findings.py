"""What a watch asks, and what it finds: each question with a name, how often there was something to look at, and what was seen."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

#: Each check, and its question.
CHECKS = {
    "agreement": "is each element, of the parameter and of its state, what the reference says, within its budget?",
    "no-gradient": "does a parameter without a gradient keep its value and its state?",
    "skipped-step": "does a step that a GradScaler skips change nothing?",
    "registered": "does every parameter of the model that gets a gradient stand in the optimizer, once?",
    "own-memory": "has each parameter memory of its own, and each tensor of the state?",
    "state-continues": "is the state what the step before left, or what was loaded?",
    "steps-remain": "does the parameter still have the value that the step gave it, when the next one begins?",
    "moves": "does a parameter with a gradient that is not zero move?",
    "lr-scheduled": "is the learning rate of each group what the scheduler says?",
    "unscaled": "is the gradient divided by the scale of the GradScaler, once?",
    "cleared": "is the gradient of a step cleared before the next backward pass, and left alone until then?",
    "finite": "are gradient, parameter and state finite?",
    "replicas-agree": "do the replicas have the model's weights?",
}  # fmt: skip


@dataclass
class Finding:
    """One thing that was seen.

    Attributes:
        check: the name of the check.
        step: the step at which it was first seen, counted from 1 since the watch began.
        told: one line for a person.
        certain: whether it is wrong for certain; what somebody may have meant is a note, and does not change the verdict.
        parameter: the name of the parameter that it was first seen in, where one is concerned.
        ratio: distance from the reference in budgets, where that is what is wrong.
        times: how often it was seen: of each parameter in each step.
        parameters: all parameters that it was seen in.
        trace: where it was saved, if it was.
    """

    check: str
    step: int
    told: str
    certain: bool = True
    parameter: str = ""
    ratio: float | None = None
    times: int = 1
    parameters: set[str] = field(default_factory=set)
    trace: str = ""

    def __str__(self) -> str:
        others = len(self.parameters) - 1
        more = f" (and {others} more parameter{'s' if others > 1 else ''})" if others > 0 else ""
        where = f"{self.parameter}: " if self.parameter else ""
        return f"step {self.step}, {self.check}: {where}{self.told}{more}"


class Found:
    """All that a watch has found, each cause once, in the order in which it was first seen.

    Attributes:
        looked: of each check, how many things it looked at.
    """

    def __init__(self) -> None:
        self._by_cause: dict[tuple[str, str], Finding] = {}
        self.looked: Counter[str] = Counter()
        self._fresh: list[Finding] = []

    def see(self, cause: str, finding: Finding) -> Finding | None:
        """Keep what was seen; gives it back where its cause is new.

        Args:
            cause: what tells it from others of the same check.
        """
        former = self._by_cause.get((finding.check, cause))
        if former is not None and (former.certain or not finding.certain):
            former.times += 1
            former.parameters |= {finding.parameter} - {""}
            return None
        finding.parameters |= {finding.parameter} - {""}
        self._by_cause[finding.check, cause] = finding
        self._fresh.append(finding)
        return finding

    @property
    def findings(self) -> list[Finding]:
        """What is wrong for certain."""
        return [f for f in self._by_cause.values() if f.certain]

    @property
    def notes(self) -> list[Finding]:
        """What somebody may have meant."""
        return [f for f in self._by_cause.values() if not f.certain]

    def told(self) -> list[Finding]:
        """Findings and notes that are new since this was asked last."""
        fresh, self._fresh = self._fresh, []
        return fresh
