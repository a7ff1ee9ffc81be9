"""How the values of options are written: 1.0 as 1, a tuple as a list, a number as one of NumPy's. What they are worth is the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from stepcheck.harness.life.events import SPELLINGS
from stepcheck.reference.spec import Value

#: From here on not every whole number is a float.
_EXACT = 2.0**53


def spelled(value: Value, spelling: str) -> Any:
    """A value of an option as it is given; tensors are no numbers, and have no spelling."""
    return _SPELL[spelling](value)


def unspelled(value: Any) -> Any:
    """A value that an optimizer holds, however it is written, as a number or as a tuple of numbers."""
    if isinstance(value, np.generic):
        return value.item()
    return tuple(map(unspelled, value)) if type(value) in (list, tuple) else value


def _whole(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_whole, value))
    # A whole number would lose the sign of zero.
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT and str(value) != "-0.0":
        return int(value)
    return value


def _numpys(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_numpys, value))
    kind = _NUMPYS.get(type(value))
    return value if kind is None else kind(value)


_NUMPYS: dict[type, type[np.generic]] = {bool: np.bool_, int: np.int64, float: np.float64}
_SPELL: dict[str, Callable[[Any], Any]] = {
    "plain": lambda value: value,
    "whole": _whole,
    "lists": lambda value: list(value) if isinstance(value, tuple) else value,
    "numpy": _numpys,
}
assert tuple(_SPELL) == SPELLINGS
