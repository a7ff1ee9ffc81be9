"""What the parameters of a run are like: whether they move, whether all is finite, whether replicas have the same."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stepcheck.harness.life.memory import SparseRaw
from stepcheck.harness.numbers.comparison import reals
from stepcheck.harness.watch.moment import Moment, Quiet
from stepcheck.harness.watch.numbers import Numbers
from stepcheck.harness.watch.sampling import places, same, taken
from stepcheck.harness.watch.step import Stepped

#: Watched steps in a row in which nothing of a parameter moves, from which on it is told.
STILL = 8
_NARROW = ("bfloat16", "float16")
_MOST = 32


class Moves(Quiet):
    """Tells of parameters that stay where they are, though they have gradients that are not zero."""

    def __init__(self, numbers: Numbers) -> None:
        self.numbers = numbers

    def ends(self, moment: Moment) -> None:
        for p, stepped in moment.stepped:
            moment.found.looked["moves"] += 1
            if self.numbers.parameters[stepped.name].still >= STILL:
                moment.see("moves", "stalled", _why(stepped), p, certain=False)


def _why(stepped: Stepped) -> str:
    told = f"none of its elements that were looked at has moved in {STILL} watched steps, though their gradients are not zero"
    if stepped.dtype not in _NARROW:
        return told + ": lr is 0, or each update is less than half an ulp"
    return (
        f"{told}: each update is less than half an ulp of {stepped.dtype} and rounds to nothing; "
        "float32 master weights would keep it, or stochastic rounding, or compensated=True of stepcheck.fast"
    )


class Finite(Quiet):
    """Tells where infinity or NaN was first seen."""

    def begins(self, moment: Moment) -> None:
        moment.found.looked["finite"] += moment.watched

    def ends(self, moment: Moment) -> None:
        for p, stepped in moment.stepped:
            g = stepped.gradient.values if isinstance(stepped.gradient, SparseRaw) else stepped.gradient
            seen = {"gradient": g, "parameter": stepped.after.value, **stepped.after.state}
            for name, values in seen.items():
                if not np.all(np.isfinite(reals(values))):
                    kind = "parameter" if name == "parameter" else "gradient" if name == "gradient" else "state"
                    moment.see("finite", kind, f"the first {kind} that is not finite: its {name}", p, certain=False)


class Replicas(Quiet):
    """Compares the weights of replicas with those of the model, by name, before the step.

    Args:
        replicas: modules that must have the same weights whenever a step begins.
    """

    def __init__(self, model: torch.nn.Module | None, replicas: Sequence[torch.nn.Module]) -> None:
        self.model, self.replicas = model, tuple(replicas)

    def begins(self, moment: Moment) -> None:
        if not moment.watched or self.model is None or not self.replicas:
            return
        own = dict(self.model.named_parameters())
        for n, replica in enumerate(self.replicas):
            for index, (name, p) in enumerate(replica.named_parameters()):
                if name in own and own[name].shape == p.shape and p.numel():
                    moment.found.looked["replicas-agree"] += 1
                    at = places(p.numel(), _MOST, 0, moment.number, index)
                    if not same(taken(own[name], at), taken(p, at)):
                        moment.see("replicas-agree", str(n), f"replica {n} has other values", own[name])
