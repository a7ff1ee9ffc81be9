"""What one optimizer is: its hyperparameters, its state buffers and its update, as data and one pure function."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepcheck.reference.group_options import GroupOptions

#: A float64 array, an error-bounded array or an object array of multiple-precision numbers.
Number = Any
#: Buffer name to value; ``None`` for a buffer that does not exist yet.
State = dict[str, Number]
#: Hyperparameter name to value, read as attributes (``hyper.lr``): ``GroupOptions``, or numbers of another kind in their place.
HyperValues = Any
Update = Callable[..., Any]
PARAMETER = "parameter"  #: What it is called where buffers have their names.


@dataclass(frozen=True)
class Domain:
    """The numbers that a hyperparameter may take: from ``low`` to ``high``. Infinity is one where it is ``high``, and that is included."""

    low: float = 0.0
    high: float = math.inf
    high_included: bool = False
    low_included: bool = True

    def __contains__(self, x: float) -> bool:
        above = self.low < x or (self.low_included and x == self.low)
        return x > -math.inf and above and (x < self.high or (self.high_included and x == self.high))

    def __str__(self) -> str:
        return f"{'[' if self.low_included else '('}{self.low:g}, {self.high:g}{']' if self.high_included else ')'}"


#: The value of a hyperparameter; ``None`` where it may be left open.
Value = float | bool | str | None | tuple[float | None, ...]


@dataclass(frozen=True)
class Hyper:
    """One hyperparameter, under the name that ``torch.optim`` gives it.

    A flag has a ``bool`` default and no domain; a tuple (``betas``) has one domain for all its entries, or one for each; a
    choice among names (``line_search_fn``) lists them.

    Attributes:
        at_construction: read once, when the state is created; a later change of the group's value has no meaning.
        integer: only whole numbers.
        optional: ``None`` is allowed as well; of a tuple, as its first entry.
        choices: the names allowed.
        examples: further values that make sense together, where not every tuple of numbers does.
        since: the first version of torch that has it; empty for 2.6, the oldest that counts, or earlier.
        later: pairs of a choice that came after the option, and the first version of torch that has it.
    """

    name: str
    default: Value
    unit: str
    domain: Domain | tuple[Domain, ...] | None = None
    at_construction: bool = False
    integer: bool = False
    optional: bool = False
    choices: tuple[str, ...] = ()
    examples: tuple[Value, ...] = ()
    since: str = ""
    later: tuple[tuple[str, str], ...] = ()

    @functools.cached_property
    def is_flag(self) -> bool:
        return isinstance(self.default, bool)

    @functools.cached_property
    def entry_domains(self) -> tuple[Domain, ...]:
        """The domain of each entry of a tuple; of a number, one."""
        assert self.domain is not None
        if isinstance(self.domain, tuple):
            return self.domain
        return (self.domain,) * (len(self.default) if isinstance(self.default, tuple) else 1)

    def problem(self, value: object) -> str | None:
        """Why ``value`` is refused, or ``None``."""
        if self.is_flag:
            return None if isinstance(value, bool) else f"{self.name} must be True or False, got {value!r}"
        if self.choices:
            allowed = (*self.choices, *((None,) if self.optional else ()))
            known = value is None or isinstance(value, str)
            return None if known and value in allowed else f"{self.name} must be one of {allowed}, got {value!r}"
        several = len(self.default) if isinstance(self.default, tuple) else 0
        if several and (not isinstance(value, tuple) or len(value) != several):
            return f"{self.name} must be {several} numbers, got {value!r}"
        entries: Any = value if several else (value,)
        for n, (entry, domain) in enumerate(zip(entries, self.entry_domains, strict=True)):
            if entry is None and self.optional and n == 0:
                continue
            number = isinstance(entry, int if self.integer else (float, int)) and not isinstance(entry, bool)
            if not number or entry not in domain:
                kind = "be a whole number in" if self.integer else "lie in"
                where = f" (entry {n})" if len(set(map(str, self.entry_domains))) > 1 else ""
                return f"{self.name} must {kind} {domain}{where}, got {value!r}"
        return None


def _always(_: HyperValues) -> bool:
    return True


def _zero(_: HyperValues) -> float:
    return 0.0


def _same(shape: tuple[int, ...]) -> tuple[int, ...]:
    return shape


@dataclass(frozen=True)
class Buffer:
    """One state buffer, under its key in ``optimizer.state[p]``.

    Attributes:
        per_parameter: a single number for each parameter, kept in float32 whatever the parameter's dtype (``step``);
            otherwise a tensor of the parameter's dtype.
        initial: its value before the first step; returns ``None`` where the first step creates the buffer.
        present: whether these hyperparameters use the buffer at all.
        shape: its shape for a parameter of a shape; ``None`` where a parameter of that shape has no such buffer.
        in_place: of a number kept for each parameter: it is updated in the precision that it is stored in.
        slow: an average in which a step counts for little, so that a narrow format may round its change away.
        of: it keeps what rounding loses of the buffer of this name, or of the ``parameter``: the sum of both is what was computed.
        of_group: it is one number for all parameters of a group, kept in the group.
    """

    name: str
    unit: str
    per_parameter: bool = False
    initial: Callable[[HyperValues], float | None] = _zero
    present: Callable[[HyperValues], bool] = _always
    shape: Callable[[tuple[int, ...]], tuple[int, ...] | None] = _same
    in_place: bool = False
    slow: bool = False
    of: str = ""
    of_group: bool = False


def _no_conflict(_: HyperValues) -> str | None:
    return None


def _any_dtype(hyper: HyperValues, _: float) -> HyperValues:
    return hyper


def _any_shape(_: tuple[int, ...]) -> bool:
    return True


@dataclass(frozen=True)
class Spec:
    """One optimizer.

    Attributes:
        update: ``(p, g, state, hyper) -> (p, state)``, pure: one step of one parameter. ``p``, ``g`` and the tensor
            buffers have one shape; ``step`` broadcasts against it. Nothing is written in place. Of a complex parameter,
            real and imaginary part are two elements.
        source: where the recurrence is published.
        conflict: why a combination of individually valid hyperparameters is refused, or ``None``.
        elementwise: each element is updated by itself; otherwise ``update`` needs the parameter's own shape.
        complex: complex parameters have a meaning.
        sparse: what a sparse gradient means: ``"dense"``, zero in the elements that it does not name; ``"lazy"``, those
            elements and their state stay as they are; ``"only"``, as lazy, and no other gradient is taken; ``""``, refused.
        sparse_conflict: why these hyperparameters refuse sparse gradients, or ``None``.
        shapes: whether a parameter of this shape is taken.
        for_dtype: hyperparameters with what is left open filled in, for a dtype whose machine epsilon is given.
        products: it contains matrix products that implementations carry out in a narrow format: they are judged norm by norm.
        closure: the step evaluates a closure and judges by it (LBFGS); ``update`` is then a coroutine of its own kind.
        since: the first version of torch that has the class; empty for 2.6, the oldest that counts, or earlier.
        dialects: the conventions in which it differs from torch's, each with what it is about.
    """

    name: str
    update: Update
    hyper: tuple[Hyper, ...]
    buffers: tuple[Buffer, ...]
    source: str
    conflict: Callable[[HyperValues], str | None] = field(default=_no_conflict)
    elementwise: bool = True
    complex: bool = True
    sparse: str = ""
    sparse_conflict: Callable[[HyperValues], str | None] = field(default=_no_conflict)
    shapes: Callable[[tuple[int, ...]], bool] = field(default=_any_shape)
    for_dtype: Callable[[HyperValues, float], HyperValues] = field(default=_any_dtype)
    products: bool = False
    closure: bool = False
    since: str = ""
    dialects: tuple[tuple[str, str], ...] = ()

    def hyper_values(self, options: Mapping[str, Any] | None = None, /, **more: Any) -> GroupOptions:
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
        hyper = GroupOptions(**values)
        problem = self.problem(hyper)
        if problem:
            raise ValueError(f"{self.name}: {problem}")
        return hyper

    def problem(self, hyper: HyperValues) -> str | None:
        """Why these hyperparameters are refused, or ``None``."""
        problems = (h.problem(getattr(hyper, h.name)) for h in self.hyper)
        return next(filter(None, problems), None) or self.conflict(hyper)

    def initial_state(self, hyper: HyperValues) -> dict[str, float | None]:
        """Each buffer that these hyperparameters use, with the value it is filled with before the first step."""
        return {b.name: b.initial(hyper) for b in self.buffers if b.present(hyper)}
