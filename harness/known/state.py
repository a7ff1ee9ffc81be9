"""Known of the initial state, and of what becomes of it in a round trip."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from stepcheck.harness.known.entry import Kind
from stepcheck.harness.known.seen import NARROW, Seen
from stepcheck.harness.life.memory import identical, rounded_fill
from stepcheck.reference.spec import PARAMETER

KIND = Kind()


@KIND.enter(
    "adagrad-ignores-group-initial-accumulator",
    "sum starts at the initial_accumulator_value of the constructor, never at that of a group",
    "Adagrad",
    "agreement groups-independent option-effect skipped-step failed-step",
)
def starts_at_the_constructors_sum(seen: Seen) -> bool:
    if seen.finding.parameter is None:
        return False
    if seen.finding.check in ("skipped-step", "failed-step"):  # a state was begun, rightly, with the wrong sum
        return seen.finding.cause == "sum" and seen.options(seen.group_of(seen.index)).initial_accumulator_value != 0
    own = rounded_fill(seen.options(seen.group_of(seen.index)).initial_accumulator_value, seen.dtype)
    if seen.finding.event is None:
        return seen.field == "sum" and seen.got != own
    # The step that makes it starts from that wrong sum.
    return seen.begins("sum") and seen.field in ("sum", PARAMETER) and seen.stood("sum") != own


#: Numbers that are kept for each parameter as float32 tensors, beside ``step``.
_SCALARS: Mapping[str, tuple[str, ...]] = {"ASGD": ("eta", "mu"), "NAdam": ("mu_product",), "LBFGS": ("t",)}


@KIND.enter(
    "load-state-dict-casts-scalars",
    "load_state_dict casts all state but step to the parameter's dtype: eta and mu, mu_product, a tensor t from float32",
    "ASGD NAdam LBFGS",
    "save-load-continue",
    link="https://github.com/pytorch/pytorch/issues/75224",
)
def casts_scalars(seen: Seen) -> bool:
    """Explains the change itself, and what a step does differently because of it."""
    if seen.dtype not in (*NARROW, "float64"):
        return False
    names = _SCALARS[seen.evidence.subject.spec.name]
    if seen.field:
        # What was loaded is another number; or it is the same, and the next one that is stored there is rounded to the dtype.
        return any(
            not identical(reload.saved[seen.index][name], reload.loaded[seen.index][name])
            for reload in seen.evidence.recording.reloads
            for name in names
            if name in reload.saved[seen.index] and name in reload.loaded[seen.index]
        ) or any(
            d.got == rounded_fill(d.expected, seen.dtype)
            for d in seen.evidence.judgement.deviations
            if (d.event, d.parameter) == (seen.finding.event, seen.index) and d.field in names
        )
    name = seen.finding.cause.removeprefix("state ")
    reload = next(r for r in seen.evidence.recording.reloads if r.event == seen.finding.event)
    if name not in names or name not in reload.loaded[seen.index]:
        return False
    cast = torch.tensor(reload.saved[seen.index][name]).to(getattr(torch, seen.dtype)).double()
    return identical(np.float64(reload.loaded[seen.index][name]), cast.numpy())
