"""Known of the numerics of single optimizers."""

from __future__ import annotations

import math
import re

from stepcheck.harness.known.entry import Kind
from stepcheck.harness.known.seen import Seen
from stepcheck.harness.life.memory import rounded_fill
from stepcheck.reference.spec import PARAMETER

KIND = Kind()


@KIND.enter(
    "asgd-power-overflows",
    "eta = lr / (1 + lambd lr t)^alpha is a power of Python floats, which raises where it should be infinite",
    "ASGD",
    "completes",
)
def overflows_in_a_power(seen: Seen) -> bool:
    def overflows(group: int) -> bool:
        o = seen.options(group)
        return bool(o.alpha * math.log2(1 + o.lambd * o.lr * seen.steps) >= 1023)

    return seen.message.startswith("OverflowError: ") and any(map(overflows, range(len(seen.trace.all_groups))))


@KIND.enter(
    "radam-foreach-unused-term-is-nan",
    "while not yet rectified, 1 / ((root of the second moment + eps) / -0) is added: NaN where that sum is 0 or NaN",
    "RAdam",
    "agreement",
    "foreach",
)
def adds_an_unused_term(seen: Seen) -> bool:
    if seen.field != PARAMETER or not math.isnan(seen.got) or math.isnan(seen.expected):
        return False
    beta2, t = seen.own.betas[1], seen.stands("step")
    longest = 2 / (1 - beta2) - 1
    rectified = longest - 2 * t * beta2**t / (1 - beta2**t) > 5
    v = seen.stands("exp_avg_sq")
    return not rectified and (math.isnan(v) or v == 0 == rounded_fill(seen.own.eps, seen.dtype))


@KIND.enter(
    "rprop-eta-minus-rounds-to-one",
    "where eta- rounds to 1 in the dtype, elements whose gradient kept its sign count as if it had changed: they stand still",
    "Rprop",
    "agreement",
)
def takes_a_kept_sign_for_a_changed_one(seen: Seen) -> bool:
    if rounded_fill(seen.own.etas[0], seen.dtype) != 1:
        return False
    return (seen.field == PARAMETER and seen.unmoved) or (seen.field == "prev" and seen.got == 0)


@KIND.enter(
    "adafactor-eps-of-the-first-dtype",
    "eps[0] = None becomes the machine epsilon of the first parameter's dtype, for all parameters of the group",
    "Adafactor",
    "agreement",
)
def takes_eps_of_the_first_dtype(seen: Seen) -> bool:
    members = seen.trace.all_groups[seen.group_of(seen.index)].parameters
    dtypes = [seen.trace.parameters[i].dtype for i in members if seen.gradient(i) is not None]
    # The foreach step sorts them by dtype first, in an order of its own.
    first = dtypes if seen.mode == "foreach" else dtypes[:1]
    return seen.own.eps[0] is None and seen.field == PARAMETER and set(first) != {seen.dtype}


@KIND.enter(
    "adafactor-eps-squared-leaves-float16",
    "eps[0] squared is given to clamp as a Python float, which raises where float16 does not hold it",
    "Adafactor",
    "completes",
)
def squares_eps_out_of_float16(seen: Seen) -> bool:
    def refused(i: int) -> bool:
        eps = seen.options(seen.group_of(i)).eps[0]
        return seen.trace.parameters[i].dtype == "float16" and eps is not None and eps * eps > 65504

    told = re.match("RuntimeError: value cannot be converted to type (at|c10)::Half", seen.message)
    return told is not None and any(map(refused, seen.had_gradient))


@KIND.enter(
    "muon-normalizes-its-bfloat16-momentum",
    "without nesterov, grad.bfloat16() of a bfloat16 buffer is the buffer itself, which is then normalized in place",
    "Muon",
    "agreement",
    link="https://github.com/pytorch/pytorch/pull/194664",
)
def normalizes_its_momentum(seen: Seen) -> bool:
    return seen.field == "momentum_buffer" and seen.dtype == "bfloat16" and not seen.own.nesterov


def _steps_without_elements(seen: Seen) -> bool:
    raised = seen.evidence.recording.raised
    stepped = range(len(seen.trace.parameters)) if raised is not None and raised.ageing else seen.had_gradient
    return any(seen.trace.parameters[i].numel == 0 for i in stepped)


@KIND.enter(
    "adafactor-divides-by-no-elements",
    "the norm of a parameter without elements is divided by their number",
    "Adafactor",
    "completes",
)
def averages_no_elements(seen: Seen) -> bool:
    return seen.message.startswith("ZeroDivisionError: ") and _steps_without_elements(seen)


@KIND.enter(
    "muon-divides-by-no-elements",
    "the ratio of the sides of a parameter without elements is a division by zero",
    "Muon",
    "completes",
)
def has_no_ratio_of_sides(seen: Seen) -> bool:
    return seen.message.startswith("ZeroDivisionError: ") and _steps_without_elements(seen)
