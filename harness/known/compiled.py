"""Known of steps that torch.compile has compiled."""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from stepcheck.harness.known.entry import TAKE_COMPLEX, Kind
from stepcheck.harness.known.seen import Seen, order
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.play.families import TORCH_MODES
from stepcheck.reference.spec import PARAMETER

KIND = Kind()


@KIND.enter(
    "compiled-step-expects-old-strides",
    "compiled code asserts the strides of gradients that it was compiled for, and is not compiled anew when they change",
    " ".join(name for name, modes in TORCH_MODES.items() if "compiled" in modes),
    "completes",
    "compiled",
)
def expects_old_strides(seen: Seen) -> bool:
    told = re.match(r"AssertionError: expected size .*, stride ", seen.message)

    def changed(i: int) -> bool:
        shape = seen.trace.parameters[i].shape
        return len({order(shape, g.layout) for g in seen.given(i) if g is not None}) > 1

    return told is not None and any(map(changed, range(len(seen.trace.parameters))))


def _is_double_scalar(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.shape == () and values.dtype == np.float64


@KIND.enter(
    "compiled-drops-writes-to-double-scalars",
    "what is written in place to a float64 tensor of no dimensions is lost: such parameters and their states stay as they are",
    "ASGD Adadelta Adagrad Adam AdamW Adamax NAdam RAdam RMSprop Rprop SGD",
    "agreement",
    "compiled",
)
def drops_writes_to_double_scalars(seen: Seen) -> bool:
    # Dynamo takes such a tensor for a Python float, and a pass that makes those tensors erases the calls whose results nothing uses.
    parameter = seen.step
    if parameter is None:
        return False
    stays = _is_double_scalar(parameter.value_after) and np.array_equal(
        parameter.value, parameter.value_after, equal_nan=True
    )
    field = parameter.value_after if seen.field == PARAMETER else parameter.state_after.get(seen.field)
    return _is_double_scalar(field) and (stays or seen.unmoved)


@KIND.enter(
    "compiled-double-scalar-restarts",
    "with a float64 tensor of no dimensions Dynamo traces a second time, in a state that the first tracing has changed",
    "SGD",
    "completes",
    "compiled",
)
def restarts_for_a_double_scalar(seen: Seen) -> bool:
    scalars = (i for i, p in enumerate(seen.trace.parameters) if p.dtype == "float64" and p.shape == ())
    return seen.message.startswith("SpeculationLogDivergence: ") and any(seen.gradient(i) is not None for i in scalars)


@KIND.enter(
    "compiled-complex-without-elements",
    "the step of a complex parameter without elements does not compile: the strides of nothing are not those of a real view",
    TAKE_COMPLEX,
    "completes",
    "compiled",
)
def views_nothing_as_real(seen: Seen) -> bool:
    empty = any(p.numel == 0 and is_complex(p.dtype) for p in seen.trace.parameters)
    views = (
        "must be divisible by 2 to view",
        "must be 1 to view Float as ComplexFloat",
        "must be 1 to view Double as ComplexDouble",
    )
    return empty and any(view in seen.message for view in views)
