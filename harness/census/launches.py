"""How often a step launches: measured by stepping models of few and of many tensors, with nothing run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import torch

from stepcheck.fast import RULES, interpreted
from stepcheck.fast.cuda import runtime
from stepcheck.fast.cuda.runtime import Source
from stepcheck.harness.census.families import FAMILIES
from stepcheck.harness.census.kernels import kernels_of
from stepcheck.harness.census.model import PREPARE

#: Numbers of tensors.
TENSORS = (1, 10, 300)
#: Steps, of which the last is looked at: the first makes tables, the first of L-BFGS have no history.
STEPS = 4


def measured(optimizer: str, dtype: str) -> dict[int, dict[str, int]]:
    """Launches of a step of so many tensors, by role of the kernel (``prepare``, ``dense``, ``scattered``; of a family, its own).

    It is a step that found its tables, and of L-BFGS its history, made.
    """
    role = {k.source: k.role for k in kernels_of(optimizer)}
    step = _family_step if optimizer in FAMILIES else _step
    return {tensors: step(optimizer, dtype, tensors, role) for tensors in TENSORS}


def _step(optimizer: str, dtype: str, tensors: int, role: dict[Source, str]) -> dict[str, int]:
    parameters = [torch.nn.Parameter(torch.zeros(n % 7 + 1, dtype=getattr(torch, dtype))) for n in range(tensors)]
    sparse = RULES[optimizer].sparse == "only"
    for p in parameters:
        p.grad = torch.zeros_like(p).to_sparse() if sparse else torch.zeros_like(p)
    return _launched(getattr(interpreted, optimizer)(parameters).step, role, lambda *_: None)


def _family_step(optimizer: str, dtype: str, tensors: int, role: dict[Source, str]) -> dict[str, int]:
    family = FAMILIES[optimizer]
    parameters = [torch.nn.Parameter(x) for x in family.tensors(tensors, getattr(torch, dtype))]
    for p in parameters:
        p.grad = torch.zeros_like(p)
    if not family.runs:
        return _launched(getattr(interpreted, optimizer)(parameters).step, role, lambda *_: None)
    stepped = interpreted.LBFGS(parameters, lr=0.1, max_iter=1)
    return _launched(lambda: stepped.step(lambda: _bowl(parameters)), role, runtime.launch)


def _bowl(parameters: Sequence[torch.nn.Parameter]) -> float:
    """A loss that is no quadratic function, and leaves its gradient: each direction finds a new pair to remember."""
    for p in parameters:
        p.grad = p.detach() ** 3
    return sum(float((p.detach() ** 4).sum()) / 4 for p in parameters)


def _launched(step: Callable[[], object], role: dict[Source, str], launch: Callable[..., None]) -> dict[str, int]:
    launched: Counter[str] = Counter()

    def counted(source: Source, *arguments: Any) -> None:
        launched.update([role[source]])
        launch(source, *arguments)

    with mock.patch.object(runtime, "launch", counted):
        for _ in range(STEPS):
            launched.clear()
            step()
    return dict(launched)


def departures(optimizer: str, dtype: str, launches: dict[int, dict[str, int]]) -> list[str]:
    """Where a step is not one launch that prepares and one that steps, or what a family says, however many tensors there are."""
    told = []
    expected = FAMILIES[optimizer].launches if optimizer in FAMILIES else {PREPARE: 1, "that steps": 1}
    for tensors, by_role in launches.items():
        found = by_role
        if optimizer in RULES and len(by_role) == len(expected):
            found = {role if role == PREPARE else "that steps": n for role, n in by_role.items()}
        if found != expected:
            launched = _in_words(by_role) or "nothing"
            told.append(
                f"{optimizer} {dtype}: a step of {tensors} tensors launches {launched}; not {_in_words(expected)}"
            )
    return told


def _in_words(by_role: dict[str, int]) -> str:
    return ", ".join(f"{n} {role}" for role, n in by_role.items())
