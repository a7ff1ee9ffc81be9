"""Hyperparameters as scalars of error-bounded arithmetic."""

from __future__ import annotations

import numpy as np

from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.formats import BINARY64, COUNTERS32, SCALARS64, Arithmetic


def bounded_option(x: float, held: Arithmetic, *, tensor: bool = False) -> Bounded:
    """A hyperparameter as the subject holds it.

    Args:
        held: the arithmetic of hyperparameters; one that its format does not represent may be rounded to it, or may not.
        tensor: it was given as a tensor of one float32 number, which makes such tensors of what is computed with it.
    """
    exact = Bounded(np.float64(x), 0.0, COUNTERS32 if tensor else held if held.format is BINARY64 else SCALARS64)
    return exact if tensor else Bounded(np.float64(1.0), 0.0, held).enter(exact)
