"""What a campaign is asked to do."""

from __future__ import annotations

from dataclasses import dataclass

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.support import defaults

DEFAULT_EXAMPLES = defaults.EXAMPLES


@dataclass(frozen=True)
class Settings:
    """What a campaign does.

    Attributes:
        examples: traces for each subject; ``None`` for as many as ``seconds`` allow.
        seconds: time for each subject; ``None`` for no limit.
        only: names of the checks to ask; empty for all.
        first: stop after the first life with a divergence, and leave it as it was seen.
        at_once: stop at the first divergence, and tell it: made smaller where that is soon done.
        patience: seconds after which a subject hangs that is still busy with a life; what costs more is given more.
        jobs: subjects at a time; as many as there are cores by default.
    """

    seed: int = 0
    examples: int | None = DEFAULT_EXAMPLES
    seconds: float | None = None
    dtypes: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    first: bool = False
    at_once: bool = False
    patience: float | None = None
    jobs: int | None = None

    @property
    def stops(self) -> bool:
        """Whether one divergence is enough."""
        return self.first or self.at_once

    @property
    def checks(self) -> tuple[str, ...]:
        return self.only or tuple(CHECKS)
