"""Known of the fused kernels of torch for the CPU."""

from __future__ import annotations

import math

import numpy as np

from stepcheck.harness.known.entry import Kind
from stepcheck.harness.known.seen import NARROW, Seen, at, order
from stepcheck.harness.life.events import Parameter
from stepcheck.harness.life.memory import rounded_fill, strides
from stepcheck.harness.play import spoil
from stepcheck.reference.spec import PARAMETER

KIND = Kind()


def _gaps(p: Parameter) -> bool:
    """Whether the elements do not fill the memory from the first to the last."""
    return 1 + sum((n - 1) * s for n, s in zip(p.shape, strides(p.shape, p.layout), strict=True)) > p.numel > 0


@KIND.enter(
    "fused-cpu-ignores-strides",
    "the fused kernels for CPU walk numel() elements from data_ptr(), whatever the strides",
    "SGD Adam AdamW Adagrad",
    "agreement memory-beside no-gradient",
    "fused capturable",
)
def walks_past_strides(seen: Seen) -> bool:
    p = seen.parameter
    if seen.finding.check == "memory-beside":
        return _gaps(p)
    if seen.finding.check == "no-gradient":  # what lies in the gaps of another
        return p.within is not None or any(q.within == seen.index for q in seen.trace.parameters)
    # Where all tensors have the same gapless memory, the walk is right. SGD's buffer has the strides of the first gradient.
    given = seen.given(seen.index) if seen.evidence.subject.spec.name == "SGD" else [seen.gradient(seen.index)]
    orders = {order(p.shape, g.layout) for g in given if g is not None}
    return _gaps(p) or bool(orders - {order(p.shape, p.layout)})


def _in_a_narrow_vector(seen: Seen) -> bool:
    # Vectors have 8 elements or a multiple of that; what is left over after the last one is computed one by one.
    return seen.dtype in NARROW and seen.element < seen.parameter.numel // 8 * 8


@KIND.enter(
    "fused-cpu-takes-any-state",
    "the fused kernels for the CPU take state to lie in row order and to have the parameter's elements: of less they read and write beyond the end",
    "SGD Adam AdamW Adagrad",
    "malformed-state",
    "fused capturable",
)
def reads_past_the_state(seen: Seen) -> bool:
    return seen.finding.cause in (spoil.MEMORY, "another layout")


@KIND.enter(
    "fused-sgd-never-stores-narrow-vectors",
    "the fused kernel of SGD for CPU computes whole vectors of float16 and bfloat16 parameters and never stores them",
    "SGD",
    "agreement",
    "fused",
    link="https://github.com/pytorch/pytorch/issues/191763",
)
def never_stores_narrow_vectors(seen: Seen) -> bool:
    return seen.field == PARAMETER and _in_a_narrow_vector(seen) and seen.unmoved


@KIND.enter(
    "fused-sgd-misreads-narrow-momentum",
    "in whole vectors of float16 and bfloat16 the fused kernel of SGD for CPU reads the momentum buffer as if it were float32",
    "SGD",
    "agreement",
    "fused",
    link="https://github.com/pytorch/pytorch/pull/191774",
)
def misreads_narrow_momentum(seen: Seen) -> bool:
    # The first step fills the buffer and reads none; a buffer of NaN is there.
    held = seen.step is not None and seen.step.state.get("momentum_buffer") is not None
    return seen.field == "momentum_buffer" and _in_a_narrow_vector(seen) and held


@KIND.enter(
    "fused-sgd-rounds-weight-decay-to-narrow",
    "in whole vectors of float16 and bfloat16 the fused kernel of SGD for CPU rounds weight_decay to the dtype first",
    "SGD",
    "agreement",
    "fused",
)
def rounds_weight_decay_to_narrow(seen: Seen) -> bool:
    # The step that makes it fills it.
    narrow = seen.field == "momentum_buffer" and _in_a_narrow_vector(seen) and seen.begins("momentum_buffer")
    if not narrow or seen.step is None:
        return False
    g, p = at(seen.step.gradient, seen.element), at(seen.step.value, seen.element)
    decay = rounded_fill(seen.own.weight_decay, seen.dtype)
    # The first buffer is the gradient with its decay: a product and a sum contracted in float32, rounded when stored.
    filled = float(np.float32((-g if seen.own.maximize else g) + decay * p))
    return decay != seen.own.weight_decay and seen.got == rounded_fill(filled, seen.dtype)


@KIND.enter(
    "fused-sgd-late-first-gradient",
    "a parameter whose first gradient comes after another's has no momentum buffer, and the fused kernel is given None",
    "SGD",
    "completes",
    "fused",
)
def has_no_buffer_for_a_late_gradient(seen: Seen) -> bool:
    def late(group: int) -> bool:
        own = seen.trace.all_groups[group].parameters
        members = [i for i in own if seen.gradient(i) is not None or seen.accumulated(i)]
        return seen.options(group).momentum != 0 and len(members) > 1

    return seen.message.startswith("TypeError: ") and any(map(late, range(len(seen.trace.all_groups))))


@KIND.enter(
    "fused-amsgrad-drops-nan",
    "past the last whole vector the fused kernels for CPU take the maximum by std::max, which drops NaN",
    "Adam AdamW",
    "agreement",
    "fused capturable",
)
def drops_nan(seen: Seen) -> bool:
    dropped = math.isnan(seen.expected) and not math.isnan(seen.got)
    return seen.own.amsgrad and seen.field in ("max_exp_avg_sq", PARAMETER) and dropped
