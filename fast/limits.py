"""Which options are valid: for the constructor and for a group alike.

``torch.optim`` looks at keywords of its constructors alone, and lets infinity pass everywhere and some options altogether; a group is
never looked at. The limits themselves are those that its documentation and its papers state.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

INF = math.inf


@dataclass(frozen=True)
class Limit:
    """Numbers from ``low`` to ``high``, whose ends belong to it or not, though minus infinity never does; or one of ``names``.

    A number may be a tensor or an array of one element, or any that Python's :mod:`numbers` knows; a truth value is one, and is no count.
    """

    low: float = 0.0
    high: float = INF
    low_included: bool = True
    high_included: bool = False
    whole: bool = False
    optional: bool = False
    names: tuple[str, ...] = ()

    def takes(self, value: Any) -> bool:
        if value is None:
            return self.optional
        if self.names:
            return value in self.names
        if isinstance(value, torch.Tensor | np.ndarray):
            value = value.item() if math.prod(value.shape) == 1 else None
        flag = isinstance(value, bool)
        if not isinstance(value, numbers.Integral if self.whole else numbers.Real) or (flag and self.whole):
            return False
        try:
            x = float(value)
        except OverflowError:  # a whole number beyond all floats
            return False
        above = self.low < x or (self.low_included and x == self.low)
        return x > -INF and above and (x < self.high or (self.high_included and x == self.high))

    def __str__(self) -> str:
        if self.names:
            return " or ".join(map(repr, (*self.names, *((None,) if self.optional else ()))))
        infinite = self.high == INF and self.high_included
        kind = "a whole number" if self.whole else "a number" if infinite else "a finite number"
        ends = f"{'[' if self.low_included else '('}{self.low:g}, {self.high:g}{']' if self.high_included else ')'}"
        return f"{kind} in {ends}{' or None' if self.optional else ''}"


Limits = Mapping[str, "Limit | tuple[Limit, ...]"]

NOT_NEGATIVE = Limit()
_BELOW_ONE = Limit(high=1.0)
_UP_TO_ONE = Limit(high=1.0, high_included=True)
_BETAS = (_BELOW_ONE, _BELOW_ONE)
_ADAM: Limits = {"lr": NOT_NEGATIVE, "betas": _BETAS, "eps": NOT_NEGATIVE, "weight_decay": NOT_NEGATIVE}

#: By the name of the class; an option that is not named is a flag, or says how to compute and not what.
LIMITS: dict[str, Limits] = {
    "SGD": {
        "lr": NOT_NEGATIVE,
        "momentum": NOT_NEGATIVE,
        "dampening": Limit(low=-INF),
        "weight_decay": NOT_NEGATIVE,
    },
    "ASGD": dict.fromkeys(("lr", "lambd", "alpha", "t0", "weight_decay"), NOT_NEGATIVE),
    "Adadelta": {
        "lr": NOT_NEGATIVE,
        "rho": _UP_TO_ONE,
        "eps": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
    },
    "Adagrad": dict.fromkeys(("lr", "lr_decay", "weight_decay", "initial_accumulator_value", "eps"), NOT_NEGATIVE),
    "Adam": _ADAM,
    "AdamW": _ADAM,
    "Adamax": _ADAM,
    "NAdam": {**_ADAM, "momentum_decay": NOT_NEGATIVE},
    "RAdam": _ADAM,
    "RMSprop": {**dict.fromkeys(("lr", "eps", "weight_decay", "momentum"), NOT_NEGATIVE), "alpha": _UP_TO_ONE},
    "Rprop": {
        "lr": NOT_NEGATIVE,
        "etas": (Limit(high=1.0, low_included=False), Limit(low=1.0, low_included=False)),
        "step_sizes": (NOT_NEGATIVE, NOT_NEGATIVE),
    },
    "SparseAdam": {"lr": Limit(low_included=False), "betas": _BETAS, "eps": Limit(low_included=False)},
    "Adafactor": {
        "lr": NOT_NEGATIVE,
        "beta2_decay": Limit(low=-INF, high=0.0, high_included=True),
        "eps": (Limit(optional=True), NOT_NEGATIVE),
        "d": Limit(low=1.0),
        "weight_decay": NOT_NEGATIVE,
    },
    "Muon": {
        "lr": NOT_NEGATIVE,
        "weight_decay": NOT_NEGATIVE,
        "momentum": NOT_NEGATIVE,
        "ns_coefficients": (Limit(low=-INF), Limit(low=-INF), Limit(low=-INF)),
        "eps": NOT_NEGATIVE,
        "ns_steps": Limit(high=100.0, whole=True),
        "adjust_lr_fn": Limit(names=("original", "match_rms_adamw", "spectral_unclamped"), optional=True),
    },
    "LBFGS": {
        "lr": NOT_NEGATIVE,
        "max_iter": Limit(low=1.0, whole=True),
        "max_eval": Limit(low=1.0, whole=True, optional=True),
        "tolerance_grad": Limit(high_included=True),
        "tolerance_change": Limit(high_included=True),
        "history_size": Limit(low=1.0, whole=True),
        "line_search_fn": Limit(names=("strong_wolfe",), optional=True),
    },
}


def problem(name: str, options: Mapping[str, Any]) -> str:
    """Why the class of this name does not take these options, or nothing."""
    return problem_of_one(name, options) or _conflict(name, options)


def problem_of_one(name: str, options: Mapping[str, Any]) -> str:
    """The same, as far as each option by itself tells; options may be missing."""
    for key, limit in LIMITS[name].items():
        if key not in options:
            continue
        value = options[key]
        if isinstance(limit, Limit):
            if not limit.takes(value):
                return f"{name}: {key} must be {limit}, got {value!r}"
            continue
        if not isinstance(value, tuple | list) or len(value) != len(limit):
            return f"{name}: {key} must be {len(limit)} numbers, got {value!r}"
        for n, (entry, allowed) in enumerate(zip(value, limit, strict=True)):
            if not allowed.takes(entry):
                return f"{name}: {key}[{n}] must be {allowed}, got {value!r}"
    return ""


def _conflict(name: str, options: Mapping[str, Any]) -> str:
    """What each option allows by itself, and the other does not."""
    if name == "SGD" and options.get("nesterov") and (options["momentum"] == 0 or options["dampening"] != 0):
        given = f"momentum={options['momentum']!r}, dampening={options['dampening']!r}"
        return f"SGD: nesterov needs momentum above 0 and dampening=0, got {given}"
    if name == "Rprop" and options["step_sizes"][0] > options["step_sizes"][1]:
        return f"Rprop: step_sizes must be in order, got {options['step_sizes']!r}"
    if name == "LBFGS" and options.get("line_search_fn") is not None and options["lr"] == 0:
        return "LBFGS: a line search starts from lr, which must be above 0, got 0"
    return ""
