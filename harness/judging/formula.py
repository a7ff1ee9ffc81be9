"""Write down what the reference computes for one element, as lines that need torch alone.

The reference's own update is run on symbols: each has a value, so branches go the way that they went, and a text. So the formula has no second
copy, a new optimizer brings its own, and only what counts in this step is shown.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

from stepcheck.harness.judging.judgement import Deviation
from stepcheck.harness.numbers.comparison import reals
from stepcheck.reference import Spec
from stepcheck.reference.spec import PARAMETER

#: How each operation is written, and how closely it binds.
_WRITTEN = {
    "add": ("{} + {}", 1), "subtract": ("{} - {}", 1), "multiply": ("{} * {}", 2), "divide": ("{} / {}", 2),
    "true_divide": ("{} / {}", 2), "negative": ("-{}", 3), "power": ("{}**{}", 4), "square": ("{}**2", 4), "sqrt": ("torch.sqrt({})", 9),
    "absolute": ("abs({})", 9), "maximum": ("torch.maximum({}, {})", 9), "minimum": ("torch.minimum({}, {})", 9),
    "sign": ("torch.sign({})", 9), "exp": ("torch.exp({})", 9),
}  # fmt: skip
_DECIDES = ("less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "isnan", "isfinite", "isinf")
_ATOM = 9


class _CannotWriteError(Exception):
    """An operation that has no short form."""


@dataclass(eq=False)
class _Symbol(NDArrayOperatorsMixin):
    """A number with its origin.

    Attributes:
        written: the pattern and how closely it binds; of a name, no operands.
    """

    value: Any
    written: tuple[str, int]
    operands: tuple[Any, ...] = ()

    shape = (1,)

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        values = [x.value if isinstance(x, _Symbol) else x for x in inputs]
        if method != "__call__" or options:
            raise _CannotWriteError(ufunc.__name__)
        result = ufunc(*values)
        if ufunc.__name__ in _DECIDES:
            return result  # the branch that was taken is what is shown
        if ufunc.__name__ not in _WRITTEN:
            raise _CannotWriteError(ufunc.__name__)
        return _Symbol(result, _WRITTEN[ufunc.__name__], inputs)

    def __array_function__(self, function: Any, _types: Any, arguments: Any, options: Any) -> Any:
        if function is not np.where or options:
            raise _CannotWriteError(function.__name__)
        condition, yes, no = arguments
        return yes if np.all(condition.value if isinstance(condition, _Symbol) else condition) else no

    def __bool__(self) -> bool:
        return bool(self.value)

    def __float__(self) -> float:
        raise _CannotWriteError("float")


@dataclass(frozen=True)
class Formula:
    """The reference's value of one element.

    Attributes:
        values: the numbers that stood before the step, by the names that ``lines`` use.
        options: those of the group.
        lines: assignments; the last one assigns ``expected``.
        value: what they come to.
    """

    values: Mapping[str, float]
    options: Mapping[str, float]
    lines: list[str]
    value: float


@dataclass
class _Writer:
    """Puts symbols into words; what is used more than once gets a name first."""

    wanted: Mapping[int, str]
    names: dict[int, str] = field(default_factory=dict)
    uses: dict[int, int] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    free: Any = field(default_factory=lambda: (f"t{n}" for n in itertools.count(1)))

    def count(self, x: Any) -> None:
        if isinstance(x, _Symbol):
            self.uses[id(x)] = self.uses.get(id(x), 0) + 1
            if self.uses[id(x)] == 1:
                for operand in x.operands:
                    self.count(operand)

    def text(self, x: Any) -> tuple[str, int]:
        if not isinstance(x, _Symbol):
            x = np.ravel(x)[0] if isinstance(x, np.ndarray) else x  # a convention begins with an array of one number
            return (repr(float(x)) if float(x) != int(x) else repr(int(x))), _ATOM if float(x) >= 0 else 3
        if id(x) in self.names:
            return self.names[id(x)], _ATOM
        pattern, binds = x.written
        if not x.operands:
            return pattern, binds
        operands = [self.text(operand) for operand in x.operands]
        if binds == _ATOM:
            told = [f"torch.tensor({t})" if not isinstance(o, _Symbol) and "," in pattern else t
                    for (t, _), o in zip(operands, x.operands, strict=True)]  # fmt: skip
        else:
            told = [t if b > binds or (b == binds and not n) else f"({t})" for n, (t, b) in enumerate(operands)]
        written = pattern.format(*told)
        if self.uses[id(x)] > 1 or id(x) in self.wanted:
            self.names[id(x)] = self.wanted.get(id(x)) or next(self.free)
            self.lines.append(f"{self.names[id(x)]} = {written}")
            return self.names[id(x)], _ATOM
        return written, binds


def of(spec: Spec, deviation: Deviation, group: int) -> Formula | str:
    """The formula of what a deviation was expected to be, or why there is none."""
    item = deviation.item
    if not spec.elementwise:
        return "one element depends on all others: it has no short formula"
    if item is None or deviation.event is None:
        return ""
    if any(s is not None and np.any(s[1]) for s in item.state.values()):
        return "it depends on steps before, whose state cannot be read"
    element = item.place(deviation.element)
    values: dict[str, float] = {"p": _at(item.step.value, element), "g": _at(item.gradient(0.0)[0], element)}
    values |= {name: _at(s[0], element) for name, s in item.state.items() if s is not None}
    options, hyper = _options(item.record.hyper[group])
    symbols = {name: _Symbol(np.array([value]), (name, _ATOM)) for name, value in values.items()}
    state = {name: symbols.get(name) for name in item.state}
    try:
        with np.errstate(all="ignore"):
            p, after = spec.update(symbols["p"], symbols["g"], state, hyper)
    except (_CannotWriteError, TypeError, AttributeError):
        return "the reference's update has no short form"
    written = _written(p if deviation.field == PARAMETER else after[deviation.field], after, values, options)
    # A number may be stored in a narrower format on the way, and where rounding leaves several results open the nearest is expected.
    near = isinstance(written, str) or abs(written.value - deviation.expected) <= 0.1 * deviation.budget
    return written if near else "rounding decides on the way: no formula comes to exactly this"


def _written(
    result: Any, after: Mapping[str, Any], values: Mapping[str, float], options: Mapping[str, float]
) -> Formula | str:
    if not isinstance(result, _Symbol):
        return "it is a constant"
    writer = _Writer({id(x): f"new_{name}" for name, x in after.items() if isinstance(x, _Symbol) and x.operands})
    writer.count(result)
    text, _ = writer.text(result)
    lines = [*writer.lines, f"expected = float({text})"]
    words = set("".join(c if c.isalnum() or c == "_" else " " for c in " ".join(lines)).split())
    return Formula(
        {k: v for k, v in values.items() if k in words},
        {k: v for k, v in options.items() if k in words},
        lines,
        float(np.ravel(result.value)[0]),
    )


def _at(values: Any, element: int) -> float:
    flat = reals(values)
    return float(flat[element] if flat.size > 1 else flat[0])


def _options(hyper: SimpleNamespace) -> tuple[dict[str, float], SimpleNamespace]:
    """The numbers among the options, by name, and all of them as the update takes them."""
    numbers: dict[str, float] = {}

    def symbol(name: str, value: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return value
        numbers[name] = float(value)
        return _Symbol(np.float64(value), (name, _ATOM))

    given = {}
    for name, value in vars(hyper).items():
        entries = isinstance(value, tuple)
        one = name.removesuffix("s")
        given[name] = tuple(symbol(f"{one}{n}", v) for n, v in enumerate(value, 1)) if entries else symbol(name, value)
    return numbers, SimpleNamespace(**given)
