"""Is the learning rate what the scheduler says?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from stepcheck.harness.watch.moment import Moment, Quiet


class Scheduled(Quiet):
    """Compares the groups with the schedulers.

    Args:
        schedulers: those of the run. Of several that step one optimizer in turn, the groups have what one of them said last.
    """

    def __init__(self, schedulers: Sequence[Any]) -> None:
        self.schedulers = tuple(schedulers)
        self._counts: list[Any] = []
        """How often each has been stepped, when they were looked at last."""

    def begins(self, moment: Moment) -> None:
        if not (moment.watched and self.schedulers):
            return
        moment.found.looked["lr-scheduled"] += len(moment.optimizer.param_groups)
        own = [scheduler for scheduler in self.schedulers if self._look_whose(moment, scheduler)]
        if len(own) == len(self.schedulers):
            self._look_at_rates(moment)

    def _look_whose(self, moment: Moment, scheduler: Any) -> bool:
        """Whether a scheduler sets the rates of these groups."""
        theirs = getattr(scheduler, "optimizer", None)
        groups = getattr(theirs, "param_groups", None)
        if groups is None:
            return True
        own = moment.optimizer.param_groups
        if groups is own or any(a is b for a in groups for b in own):
            return True
        told = f"the scheduler sets the learning rates of another {type(theirs).__name__}: it has no effect on this one"
        moment.see("lr-scheduled", "another", told)
        return False

    def _look_at_rates(self, moment: Moment) -> None:
        said = [rates for s in self.schedulers if (rates := _rates(s)) is not None]
        own = [float(group["lr"]) for group in moment.optimizer.param_groups]
        counts, self._counts = self._counts, [getattr(s, "last_epoch", None) for s in self.schedulers]
        # Groups may have been added since.
        if not said or any(rates == own[: len(rates)] for rates in said):
            return
        n = next(n for n, (a, b) in enumerate(zip(said[-1], own, strict=False)) if a != b)
        told = f"param_groups[{n}] has lr={own[n]:g} where the scheduler says {said[-1][n]:g}"
        # One that is not stepped any more may have been replaced by another.
        moment.see("lr-scheduled", "other", told, certain=counts != self._counts)


def _rates(scheduler: Any) -> list[float] | None:
    """What a scheduler said last."""
    last = getattr(scheduler, "_last_lr", None)
    if not isinstance(last, list | tuple):
        return None
    return [float(x.detach() if isinstance(x, torch.Tensor) else x) for x in last]
