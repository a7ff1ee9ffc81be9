"""How often a step launches: measured by stepping models of few and of many tensors, with nothing run."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import torch

from stepcheck.fast import interpreted
from stepcheck.fast.cuda import runtime
from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.rules import RULES
from stepcheck.harness.census.kernels import PREPARE, kernels_of

#: Numbers of tensors.
TENSORS = (1, 10, 300)


def measured(optimizer: str, dtype: str) -> dict[int, dict[str, int]]:
    """Launches of the second step of so many tensors, by role of the kernel (``prepare``, ``dense``, ``scattered``).

    Args:
        optimizer: one whose step is a rule.
    """
    role = {k.source: k.role for k in kernels_of(optimizer)}
    return {tensors: _step(optimizer, dtype, tensors, role) for tensors in TENSORS}


def _step(optimizer: str, dtype: str, tensors: int, role: dict[Source, str]) -> dict[str, int]:
    launched: Counter[str] = Counter()
    parameters = [torch.nn.Parameter(torch.zeros(n % 7 + 1, dtype=getattr(torch, dtype))) for n in range(tensors)]
    sparse = RULES[optimizer].sparse == "only"
    for p in parameters:
        p.grad = torch.zeros_like(p).to_sparse() if sparse else torch.zeros_like(p)
    stepped = getattr(interpreted, optimizer)(parameters)
    with mock.patch.object(runtime, "launch", lambda source, *_: launched.update([role[source]])):
        stepped.step()
        launched.clear()
        stepped.step()
    return dict(launched)


def departures(optimizer: str, dtype: str, launches: dict[int, dict[str, int]]) -> list[str]:
    """Where a step is not one launch that prepares and one that steps, however many tensors there are."""
    told = []
    for tensors, by_role in launches.items():
        steps = {role: n for role, n in by_role.items() if role != PREPARE}
        if by_role.get(PREPARE) != 1 or list(steps.values()) != [1]:
            found = ", ".join(f"{n} {role}" for role, n in by_role.items()) or "nothing"
            told.append(
                f"{optimizer} {dtype}: a step of {tensors} tensors launches {found}; not 1 prepare and 1 that steps"
            )
    return told
