"""How soon a campaign with the default settings says no."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepcheck.harness.play.profiles import ANY_CLASS, Profile
from stepcheck.harness.play.subjects import Subject, asked_for, class_subject
from stepcheck.harness.search import steer
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.generate import ESSENTIALS
from stepcheck.harness.search.scenes import scenes
from stepcheck.harness.search.settings import DEFAULT_EXAMPLES, Settings
from stepcheck.harness.search.steer import Feature

#: From this life on, what it is made of is remembered, to tell what it waited for.
LATE = 8


@dataclass(frozen=True)
class Kill:
    """What became of one campaign that stops at the first divergence.

    Attributes:
        seed: of the campaign.
        checks: those that said no in the life that ended it; none where it survived.
        examples: lives played, the last one included.
        seconds: CPU seconds of drawing, playing and judging, from the construction of the subject on; imports excluded.
        error: why the harness itself did not get to a verdict.
        features: what the life that ended it is made of, where it came late.
        scene: the kind of the life that ended it, where that was one that comes in its turn.
    """

    seed: int
    checks: tuple[str, ...]
    examples: int
    seconds: float
    error: str = ""
    features: frozenset[Feature] = frozenset()
    scene: str = ""

    @property
    def caught(self) -> bool:
        return bool(self.checks)


def first_kill(
    make: Callable[..., Any],
    like: str,
    seed: int,
    examples: int = DEFAULT_EXAMPLES,
    profile: Profile = ANY_CLASS,
    dtypes: tuple[str, ...] = (),
    *,
    tensor_lr: bool = False,
) -> Kill:
    """Check an optimizer class as ``stepcheck check`` does, until it is caught or the lives are used up."""
    start = time.process_time()
    subject = asked_for(class_subject(make, like, profile=profile), sparse=False, tensor_lr=tensor_lr)
    campaign = Campaign(subject, Settings(seed, examples, dtypes=dtypes, first=True))
    result = campaign.run()
    checks = tuple(dict.fromkeys(check for check, _ in campaign.suspects.ready))
    seconds = time.process_time() - start
    late = result.traces >= LATE and checks
    shown = frozenset(steer.features(campaign.suspects.new[campaign.suspects.ready[0]].trace)) if late else frozenset()
    scene = _scene(subject, result.traces) if checks else ""
    return Kill(seed, checks, result.traces, seconds, result.error, shown, scene)


def _scene(subject: Subject, life: int) -> str:
    """The scene of a life of a campaign, counted from 1; nothing where it was drawn freely."""
    turns = itertools.chain(("" for _ in ESSENTIALS), (name for name, _ in scenes(subject, len(ESSENTIALS))))
    return next(itertools.islice(turns, life - 1, None))
