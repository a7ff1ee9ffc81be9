"""Traces in JSON: what a life is made of is written and read by the fields of its dataclasses, and checked before it is believed.

A field's type says how it stands in JSON, with what ``fields`` has to say of it beside.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Annotated, Any, NamedTuple, TypeVar, get_args, get_origin, get_type_hints

from stepcheck.harness.life.events import (
    EVENTS,
    Accumulate,
    Event,
    Gradient,
    Objective,
    Option,
    Parameter,
    Scalar,
    Sparse,
    Step,
)
from stepcheck.harness.life.fields import (
    FIRST,
    LATER,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_OPTIONS,
    OF_A_PARAMETER,
    SPREAD,
    AtMost,
    OneOf,
    Within,
)
from stepcheck.harness.life.values import RECIPES, Values, in_reals, is_complex

T = TypeVar("T")

_KINDS = {name: kind for kind, name in EVENTS.items()}


class TraceError(ValueError):
    """A file or object is not a trace of this schema; the message says what is wrong and where."""


def loads(text: str) -> object:
    """Parse JSON.

    Raises:
        TraceError: ``text`` is not JSON, or is cut short.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"not JSON, or cut short ({error})") from None


class _Form(NamedTuple):
    """How a value is written, and read: from data, that stand somewhere, in a trace of these parameters."""

    write: Callable[[Any], Any]
    read: Callable[[Any, str, Sequence[Parameter]], Any]


class _Field(NamedTuple):
    """A field of a dataclass; ``kind``, the dataclass of one that is spread."""

    name: str
    form: _Form
    default: Any
    marks: tuple[Any, ...]
    kind: Any


@functools.cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for f in fields(kind):
        hint, *marks = get_args(hints[f.name]) if get_origin(hints[f.name]) is Annotated else (hints[f.name],)
        form = _form(hint, {type(mark): mark for mark in marks}, OF_A_PARAMETER in marks)
        default = f.default if LATER in marks else MISSING
        found.append(_Field(f.name, form, default, tuple(marks), hint))
    return tuple(sorted(found, key=lambda f: FIRST not in f.marks))


def _form(hint: Any, marks: Mapping[type, Any], of_a_parameter: bool) -> _Form:
    """How a field of this type stands in JSON."""
    none = hint != Option and type(None) in get_args(hint)
    if none:
        (hint,) = (x for x in get_args(hint) if x is not type(None))
    form: _Form | None = _FORMS.get(hint)
    if hint is str and OneOf in marks:
        names = marks[OneOf].names
        form = _Form(str, lambda data, where, _: one_of(data, names, where))
    elif hint is int or hint == tuple[int, ...]:
        form = _whole(marks.get(Within), of_a_parameter)
        if hint is not int:
            form = _several(form, marks[AtMost].entries)
    elif form is None:
        assert hasattr(hint, "__dataclass_fields__"), f"how {hint} stands in JSON is not known"
        form = _Form(to_json, functools.partial(read, hint))
    return _or_none(form) if none else form


def _whole(within: Within | None, of_a_parameter: bool) -> _Form:
    def read_whole(data: Any, where: str, parameters: Sequence[Parameter]) -> int:
        if of_a_parameter:
            return _integer(data, where, 0, len(parameters) - 1)
        assert within is not None, "a whole number has bounds"
        return _integer(data, where, within.low, within.high)

    return _Form(_as_it_is, read_whole)


def _several(form: _Form, most: int) -> _Form:
    def read_several(data: Any, where: str, parameters: Sequence[Parameter]) -> tuple[int, ...]:
        return tuple(form.read(n, where, parameters) for n in as_list(data, where, most))

    return _Form(list, read_several)


def _or_none(form: _Form) -> _Form:
    def read_or_none(data: Any, where: str, parameters: Sequence[Parameter]) -> Any:
        return None if data is None else form.read(data, where, parameters)

    return _Form(lambda value: None if value is None else form.write(value), read_or_none)


# Out ------------------------------------------------------------------------------------------------------------------


def to_json(x: Any) -> dict[str, Any]:
    """A dataclass by its fields; an event's name comes before them."""
    kind: Any = type(x)
    result = {"event": EVENTS[kind]} if kind in EVENTS else {}
    for f in _fields(kind):
        value = getattr(x, f.name)
        if SPREAD in f.marks:
            result |= to_json(value)
        elif f.default is MISSING or value != f.default:
            result[f.name] = f.form.write(value)
    return result


def _as_it_is(value: Any) -> Any:
    return value


def _values_to_json(values: Values) -> dict[str, Any]:
    if values.recipe == "listed":
        return {"recipe": "listed", "listed": [x.hex() for x in values.listed]}
    return {"recipe": values.recipe, "seed": values.seed, "low": values.low.hex(), "high": values.high.hex()}


def option_to_json(value: Option) -> Any:
    """An option as it stands in JSON."""
    # Text stands in an object of its own: "abc" is a hex float as well.
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, Scalar):
        return {"tensor": value.value.hex()}
    if isinstance(value, str):
        return {"text": value}
    return [option_to_json(x) for x in value] if isinstance(value, tuple) else value.hex()


def _options_to_json(options: Mapping[str, Option]) -> dict[str, Any]:
    return {name: option_to_json(value) for name, value in options.items()}


def _gradients_to_json(gradients: Mapping[int, Gradient | None]) -> dict[str, Any]:
    return {str(i): None if g is None else to_json(g) for i, g in gradients.items()}


# In: everything is checked before anything is believed ------------------------------------------------------------------


def read(kind: type[T], data: object, where: str, parameters: Sequence[Parameter] = (), also: Iterable[str] = ()) -> T:
    """What is made of these fields, and of none but those and ``also``."""
    given = as_object(data, where)
    as_known(given, {*_names(kind), *also}, where)
    made: T = _read_fields(kind, given, where, parameters)
    return made


def read_event(data: object, where: str, parameters: Sequence[Parameter]) -> Event:
    """The event that is named."""
    name = one_of(as_object(data, where).get("event"), tuple(_KINDS), f"{where}.event")
    event: Event = read(_KINDS[name], data, where, parameters, ["event"])
    return event


def _names(kind: Any) -> list[str]:
    return [name for f in _fields(kind) for name in (_names(f.kind) if SPREAD in f.marks else [f.name])]


def _read_fields(kind: Any, given: dict[str, Any], where: str, parameters: Sequence[Parameter]) -> Any:
    found: dict[str, Any] = {}
    for f in _fields(kind):
        if SPREAD in f.marks:
            found[f.name] = _read_fields(f.kind, given, where, parameters)
        elif f.default is not MISSING and f.name not in given:
            found[f.name] = f.default
        else:
            found[f.name] = f.form.read(given.get(f.name), f"{where}.{f.name}", parameters)
    made = kind(**found)
    if kind in _CHECKS:
        _CHECKS[kind](made, where)
    return made


def _read_gradients(data: Any, where: str, parameters: Sequence[Parameter]) -> dict[int, Gradient | None]:
    gradients = {}
    for key, g in as_object(data, where).items():
        there = f"{where}.{key[:40]}"
        index = _integer(int(key) if key.isdecimal() and len(key) < 10 else key, there, 0, len(parameters) - 1)
        gradients[index] = None if g is None else read(Gradient, g, there, parameters)
        _check_gradient(gradients[index], parameters[index], there)
    return gradients


def _read_values(data: Any, where: str, _: Sequence[Parameter]) -> Values:
    d = as_object(data, where)
    recipe = one_of(d.get("recipe"), tuple(RECIPES), f"{where}.recipe")
    if recipe == "listed":
        as_known(d, {"recipe", "listed"}, where)
        listed = as_list(d.get("listed"), f"{where}.listed", MAX_ELEMENTS)
        return Values("listed", listed=tuple(_number(x, f"{where}.listed") for x in listed))
    as_known(d, {"recipe", "seed", "low", "high"}, where)
    seed = _integer(d.get("seed"), f"{where}.seed", 0, 2**64 - 1)
    low, high = (_number(d.get(name), f"{where}.{name}") for name in ("low", "high"))
    return Values(recipe, seed, low, high)


def _read_options(data: Any, where: str, parameters: Sequence[Parameter]) -> dict[str, Option]:
    given = as_object(data, where)
    if len(given) > MAX_OPTIONS:
        raise TraceError(f"{where}: {len(given)} entries, at most {MAX_OPTIONS}")
    return {text(k, where): _read_option(v, f"{where}.{k[:40]}", parameters) for k, v in given.items()}


def _read_option(data: Any, where: str, _: Sequence[Parameter]) -> Option:
    if data is None or isinstance(data, bool):
        return data
    if isinstance(data, int):
        return _integer(data, where, -(2**53), 2**53)
    if isinstance(data, dict) and "tensor" in data:
        as_known(data, {"tensor"}, where)
        return Scalar(_number(data["tensor"], where))
    if isinstance(data, dict):
        as_known(data, {"text"}, where)
        return text(data.get("text"), where)
    if isinstance(data, list):
        entries = as_list(data, where, MAX_DIMENSIONS)
        return tuple(None if x is None else _number(x, where) for x in entries)
    return _number(data, where)


def _number(data: object, where: str) -> float:
    if isinstance(data, str):
        try:
            return float.fromhex(data)
        except (ValueError, OverflowError):
            pass
    raise TraceError(f"{where}: must be a hex float such as '0x1.8p-3', got {str(data)[:40]!r}")


def _integer(data: object, where: str, low: int, high: int) -> int:
    if isinstance(data, bool) or not isinstance(data, int) or not low <= data <= high:
        raise TraceError(f"{where}: must be an integer from {low} to {high}, got {str(data)[:40]!r}")
    return data


def _flag(data: object, where: str) -> bool:
    if not isinstance(data, bool):
        raise TraceError(f"{where}: must be true or false")
    return data


def text(data: object, where: str) -> str:
    """That it is short text."""
    if not isinstance(data, str) or len(data) > 200:
        raise TraceError(f"{where}: must be a short string")
    return data


def one_of(data: object, choices: tuple[str, ...], where: str) -> str:
    """That it is one of these."""
    if not isinstance(data, str) or data not in choices:
        raise TraceError(f"{where}: must be one of {', '.join(choices)}, got {str(data)[:40]!r}")
    return data


def as_object(data: object, where: str) -> dict[str, Any]:
    """That it is an object."""
    if not isinstance(data, dict):
        raise TraceError(f"{where}: must be a JSON object, got {type(data).__name__}")
    return data


def as_list(data: object, where: str, most: int) -> list[Any]:
    """That it is an array, and not too long."""
    if not isinstance(data, list):
        raise TraceError(f"{where}: must be a JSON array, got {type(data).__name__}")
    if len(data) > most:
        raise TraceError(f"{where}: {len(data)} entries, at most {most}")
    return data


def as_known(data: dict[str, Any], known: set[str], where: str) -> None:
    """That there is no other key."""
    extra = sorted(set(data) - known)
    if extra:
        raise TraceError(f"{where}: unknown key {extra[0][:40]!r}")


# What one field says of another -------------------------------------------------------------------------------------------


def _check_parameter(p: Parameter, where: str) -> None:
    if math.prod(max(n, 1) for n in p.shape) > MAX_ELEMENTS:
        raise TraceError(f"{where}.shape: more than {MAX_ELEMENTS} elements")
    _check_layout(p.layout, p, where)
    _check_count(p.values, math.prod(in_reals(p.shape, p.dtype)), where)


def _check_layout(layout: str, p: Parameter, where: str) -> None:
    if layout == "channels_last" and len(p.shape) != 4:
        raise TraceError(f"{where}.layout: channels_last needs 4 dimensions, got {len(p.shape)}")
    if layout == "conjugated" and not is_complex(p.dtype):
        raise TraceError(f"{where}.layout: conjugated needs a complex dtype, got {p.dtype}")


def _check_count(values: Values, count: int, where: str, name: str = "values") -> None:
    if values.recipe == "listed" and len(values.listed) != count:
        raise TraceError(f"{where}.{name}.listed: {len(values.listed)} numbers for {count} elements")


def _check_gradient(g: Gradient | None, p: Parameter, where: str) -> None:
    if g is None:
        return
    _check_layout(g.layout, p, where)
    if g.sparse is not None:
        _check_sparse(g.sparse, p, f"{where}.sparse")
    named = p.shape if g.sparse is None else g.sparse.shape_of_values(p.shape)
    _check_count(g.values, math.prod(in_reals(named, p.dtype)), where)


def _check_sparse(sparse: Sparse, p: Parameter, where: str) -> None:
    problem = sparse.problem(p.shape)
    if problem:
        raise TraceError(f"{where}: {problem}")
    if math.prod(sparse.shape_of_values(p.shape)) > MAX_ELEMENTS:
        raise TraceError(f"{where}.entries: more than {MAX_ELEMENTS} elements")


def _check_objective(objective: Objective, where: str) -> None:
    _check_count(objective.centre, -1, where, "centre")  # it is of any number of elements


def _check_step(step: Step, where: str) -> None:
    if step.closure and step.scaling:
        raise TraceError(f"{where}.scaling: a step with gradient scaling takes no closure")


def _check_accumulate(event: Accumulate, where: str) -> None:
    if any(g is None or g.sparse is not None for g in event.gradients.values()):
        raise TraceError(f"{where}.gradients: what is added must be dense")


_CHECKS: dict[Any, Callable[[Any, str], None]] = {
    Parameter: _check_parameter,
    Objective: _check_objective,
    Step: _check_step,
    Accumulate: _check_accumulate,
}
#: How a field stands in JSON whose type says it all.
_FORMS: dict[Any, _Form] = {
    bool: _Form(_as_it_is, lambda data, where, _: _flag(data, where)),
    float: _Form(float.hex, lambda data, where, _: _number(data, where)),
    str: _Form(_as_it_is, lambda data, where, _: text(data, where)),
    Values: _Form(_values_to_json, _read_values),
    Option: _Form(option_to_json, _read_option),
    Mapping[str, Option]: _Form(_options_to_json, _read_options),
    Mapping[int, Gradient]: _Form(_gradients_to_json, _read_gradients),
    Mapping[int, Gradient | None]: _Form(_gradients_to_json, _read_gradients),
}
