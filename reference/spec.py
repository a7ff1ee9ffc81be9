"""What one optimizer is: its hyperparameters, its state buffers and its update, as data and one pure function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

#: A float64 array, an error-bounded array or an object array of multiple-precision numbers.
Number = Any
#: Buffer name to value; ``None`` for a buffer that does not exist yet.
State = dict[str, Number]
#: Hyperparameter name to value, read as attributes (``hyper.lr``).
HyperValues = Any
Update = Callable[[Number, Number, State, HyperValues], tuple[Number, State]]


@dataclass(frozen=True)
class Domain:
    """The finite numbers that a hyperparameter may take: from ``low`` (included) to ``high``."""

    low: float = 0.0
    high: float = math.inf
    high_included: bool = False

    def __contains__(self, x: float) -> bool:
        return math.isfinite(x) and self.low <= x and (x < self.high or (self.high_included and x == self.high))

    def __str__(self) -> str:
        return f"[{self.low:g}, {self.high:g}{']' if self.high_included else ')'}"


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter, under the name that ``torch.optim`` gives it.

    A flag has a ``bool`` default and no domain; a tuple (``betas``) has one domain for all its entries.
    """

    name: str
    default: float | bool | tuple[float, ...]
    unit: str
    domain: Domain | None = None
    at_construction: bool = False
    """Read once, when the state is created; a later change of the group's value has no meaning."""

    @property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool)

    def problem(self, value: object) -> str | None:
        """Why ``value`` is refused, or ``None``."""
        if self.is_flag:
            return None if isinstance(value, bool) else f"{self.name} must be True or False, got {value!r}"
        assert self.domain is not None
        if isinstance(self.default, tuple):
            if not isinstance(value, tuple) or len(value) != len(self.default):
                return f"{self.name} must be {len(self.default)} numbers, got {value!r}"
            entries = value
        else:
            entries = (value,)
        for entry in entries:
            if isinstance(entry, bool) or not isinstance(entry, (int, float)) or entry not in self.domain:
                return f"{self.name} must lie in {self.domain}, got {value!r}"
        return None


def _always(_: HyperValues) -> bool:
    return True


def _zero(_: HyperValues) -> float:
    return 0.0


@dataclass(frozen=True)
class Buffer:
    """One state buffer, under its key in ``optimizer.state[p]``.

    Attributes:
        per_parameter: a single number for each parameter, kept in float32 whatever the parameter's dtype (``step``);
            otherwise a tensor with the parameter's shape and dtype.
        initial: its value before the first step; returns ``None`` where the first step creates the buffer.
        present: whether these hyperparameters use the buffer at all.
    """

    name: str
    unit: str
    per_parameter: bool = False
    initial: Callable[[HyperValues], float | None] = _zero
    present: Callable[[HyperValues], bool] = _always


def _no_conflict(_: HyperValues) -> str | None:
    return None


@dataclass(frozen=True)
class Spec:
    """One optimizer.

    Attributes:
        update: ``(p, g, state, hyper) -> (p, state)``, pure: one step of one parameter. ``p``, ``g`` and the tensor
            buffers have one shape; ``step`` broadcasts against it. Nothing is written in place.
        conflict: why a combination of individually valid hyperparameters is refused, or ``None``.
        source: where the recurrence is published.
    """

    name: str
    update: Update
    hyper: tuple[Hyper, ...]
    buffers: tuple[Buffer, ...]
    source: str
    conflict: Callable[[HyperValues], str | None] = field(default=_no_conflict)

    def hyper_values(self, options: Mapping[str, Any] | None = None, /, **more: Any) -> SimpleNamespace:
        """The defaults, overridden by ``options``.

        Raises:
            ValueError: an option is unknown, outside its domain, or in conflict with another.
        """
        given = {**(options or {}), **more}
        values = {h.name: h.default for h in self.hyper}
        for name, value in given.items():
            if name not in values:
                raise ValueError(f"{self.name} has no option {name!r}; it has {', '.join(values)}")
            values[name] = value
        hyper = SimpleNamespace(**values)
        problem = self.problem(hyper)
        if problem:
            raise ValueError(f"{self.name}: {problem}")
        return hyper

    def problem(self, hyper: HyperValues) -> str | None:
        """Why these hyperparameters are refused, or ``None``."""
        for h in self.hyper:
            problem = h.problem(getattr(hyper, h.name))
            if problem:
                return problem
        return self.conflict(hyper)

    def initial_state(self, hyper: HyperValues) -> dict[str, float | None]:
        """Each buffer that these hyperparameters use, with the value it is filled with before the first step."""
        return {b.name: b.initial(hyper) for b in self.buffers if b.present(hyper)}
