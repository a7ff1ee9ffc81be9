"""The life of an optimizer as data: parameters, groups and events. It says nothing about who plays it.

A trace is JSON. Numbers that matter are hex floats, so that they survive the round trip to the last bit, and tensors are
either listed or described by a recipe and a seed. A recipe's meaning never changes: a new one gets a new name, so a trace saved
today means the same for ever.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.reference.spec import Spec, Value

SCHEMA = 1

#: Bounds on what a trace may ask for, so that a hostile file cannot exhaust the machine.
MAX_ELEMENTS = 1 << 20
MAX_PARAMETERS = 1 << 10
MAX_EVENTS = 1 << 14
MAX_DIMENSIONS = 8

DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128")
#: ``offset`` is contiguous as well, and a view that starts inside a larger buffer whoever plays it.
LAYOUTS = ("contiguous", "transposed", "sliced", "channels_last", "offset")
#: ``expanded`` repeats the first row (stride 0); ``conjugated`` is a lazy conjugate (torch's conjugate bit) of complex memory.
GRADIENT_LAYOUTS = (*LAYOUTS, "expanded", "conjugated")

Array = npt.NDArray[np.float64]
Option = Value


class TraceError(ValueError):
    """A file or object is not a trace of this schema; the message says what is wrong and where."""


# Values ---------------------------------------------------------------------------------------------------------------


_GOLDEN, _MIX1, _MIX2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_1, _11, _27, _30, _31 = map(np.uint64, (1, 11, 27, 30, 31))
_LOW10 = np.uint64((1 << 10) - 1)


@functools.lru_cache(maxsize=256)
def _golden_multiples(count: int) -> npt.NDArray[np.uint64]:
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def splitmix64(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """``count`` pseudorandom 64-bit words: Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014."""
    start = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    # Unsigned array arithmetic wraps around silently, as the algorithm wants.
    z = _golden_multiples(count) + start
    z ^= z >> _30
    z *= _MIX1
    z ^= z >> _27
    z *= _MIX2
    z ^= z >> _31
    return z


def _fraction(words: npt.NDArray[np.uint64]) -> Array:
    """The upper 53 bits as a number in [0, 1)."""
    fraction: Array = (words >> _11).astype(np.float64) * 2.0**-53
    return fraction


def _constant(values: Values, count: int) -> Array:
    return np.full(count, values.high)


def _log(values: Values, count: int) -> Array:
    """Random sign, magnitude from low to high, every binade as likely as the next.

    Exact operations only (no logarithm), so the same on every machine.
    """
    if not 0 < values.low <= values.high < math.inf:
        return np.zeros(count)
    words = splitmix64(values.seed, count)
    low, high = math.frexp(values.low)[1], math.frexp(values.high)[1]
    exponent = low + (((words >> _1) & _LOW10).astype(np.int64) * (high - low + 1) >> 10)
    magnitude = np.ldexp(0.5 + 0.5 * _fraction(words), exponent)
    clipped = np.minimum(np.maximum(magnitude, values.low), values.high)
    signed: Array = (1.0 - 2.0 * (words & _1).astype(np.float64)) * clipped
    return signed


def _sparse_log(values: Values, count: int) -> Array:
    """As ``log``, with a quarter of the elements zero, of either sign."""
    x = _log(values, count)
    drop = splitmix64(values.seed + 1, count) >> np.uint64(62) == 0
    return np.where(drop, np.copysign(0.0, x), x)


def _quarters(values: Values, count: int) -> Array:
    """Multiples of a quarter of ``high``, from -high to high: exact in every format, easy to read."""
    words = splitmix64(values.seed, count)
    return ((words >> np.uint64(32)) % np.uint64(9)).astype(np.float64) * (values.high / 4) - values.high


def _extremes(values: Values, count: int) -> Array:
    """As ``log``, with an eighth of the elements infinite, an eighth NaN, an eighth ``low``, an eighth ``high``."""
    x = _log(values, count)
    which = (splitmix64(values.seed + 1, count) >> np.uint64(61)).astype(np.int64)
    special = np.array([np.inf, np.nan, values.low, values.high, 0, 0, 0, 0])[which]
    return np.where(which < 4, np.copysign(special, x), x)


def _listed(values: Values, count: int) -> Array:
    assert len(values.listed) == count
    return np.array(values.listed, np.float64)


RECIPES: dict[str, Callable[[Values, int], Array]] = {
    "constant": _constant,
    "quarters": _quarters,
    "log": _log,
    "sparse_log": _sparse_log,
    "extremes": _extremes,
    "listed": _listed,
}


@dataclass(frozen=True)
class Values:
    """The elements of a tensor, in row-major order, before rounding to the tensor's dtype."""

    recipe: str = "constant"
    seed: int = 0
    low: float = 0.0
    high: float = 0.0
    listed: tuple[float, ...] = ()

    def realise(self, shape: tuple[int, ...]) -> Array:
        """A float64 array of ``shape``."""
        return RECIPES[self.recipe](self, math.prod(shape)).reshape(shape)


def is_complex(dtype: str) -> bool:
    """Whether an element of ``dtype`` is two real numbers."""
    return dtype.startswith("complex")


def in_reals(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """The shape of the real numbers that a tensor holds: of a complex one, real and imaginary parts are a last dimension."""
    return (*shape, 2) if is_complex(dtype) else shape


# The trace ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Parameter:
    """One parameter: shape, dtype and memory layout, and its first value."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    values: Values = Values()

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """Some parameters, by index, and the options given for them; an option not given keeps its default."""

    parameters: tuple[int, ...]
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Sparse:
    """Which entries a sparse gradient names.

    Attributes:
        entries: indices into the first ``dimensions`` dimensions, counted row-major, one for each row of values.
        coalesced: the tensor says that its entries are sorted and none is named twice.
    """

    entries: tuple[int, ...]
    dimensions: int = 1
    coalesced: bool = False

    def problem(self, shape: tuple[int, ...]) -> str | None:
        """Why a gradient for ``shape`` cannot name these entries, or ``None``."""
        if not 1 <= self.dimensions <= len(shape):
            return f"dimensions must be from 1 to {len(shape)}, got {self.dimensions}"
        most = math.prod(shape[: self.dimensions])
        if any(not 0 <= e < most for e in self.entries):
            return f"entries must be from 0 to {most - 1}"
        if self.coalesced and any(a >= b for a, b in itertools.pairwise(self.entries)):
            return "coalesced entries must be sorted and unique"
        return None

    def within(self, shape: tuple[int, ...]) -> Sparse | None:
        """The same entries as far as a gradient for ``shape`` has them; ``None`` where it cannot be sparse."""
        if not shape:
            return None
        dimensions = min(self.dimensions, len(shape))
        most = math.prod(shape[:dimensions])
        return replace(self, entries=tuple(e for e in self.entries if e < most), dimensions=dimensions)

    def shape_of_values(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (len(self.entries), *shape[self.dimensions :])


@dataclass(frozen=True)
class Gradient:
    """A gradient of its parameter's shape and dtype: dense, or sparse where it names entries."""

    values: Values = Values()
    layout: str = "contiguous"
    sparse: Sparse | None = None

    def realise(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Its real numbers: of a sparse gradient, those of the entries that it names."""
        named = shape if self.sparse is None else self.sparse.shape_of_values(shape)
        return self.values.realise(in_reals(named, dtype))


#: Functions of a parameter's distance from a centre; ``stepcheck.harness.objectives`` says what each is.
OBJECTIVES = ("quadratic", "quartic", "rosenbrock", "saddle", "linear", "cliff", "log", "flat")


@dataclass(frozen=True)
class Objective:
    """What a closure evaluates: the sum over all parameters of a function of their distance from a centre, times ``scale``.

    The centre of parameter i is drawn from ``centre`` with its seed increased by i.
    """

    kind: str = "quadratic"
    centre: Values = Values()
    scale: float = 1.0


@dataclass(frozen=True)
class Step:
    """Assign gradients, then step. ``None`` takes the gradient away; a parameter not named keeps what it has.

    With an objective the step is given a closure, which evaluates it and its gradients.
    """

    gradients: Mapping[int, Gradient | None] = field(default_factory=dict)
    objective: Objective | None = None


@dataclass(frozen=True)
class ZeroGrad:
    """``optimizer.zero_grad(set_to_none=...)``."""

    set_to_none: bool = True


@dataclass(frozen=True)
class SetOption:
    """``optimizer.param_groups[group][option] = value``, as a learning rate schedule does."""

    group: int
    option: str
    value: Option


@dataclass(frozen=True)
class Reload:
    """Go on with a new optimizer, built with default options over the same parameters, that loads the state_dict."""


Event = Step | ZeroGrad | SetOption | Reload


@dataclass(frozen=True)
class Trace:
    """The whole life. ``optimizer`` names the reference that says what must happen."""

    optimizer: str
    parameters: tuple[Parameter, ...]
    groups: tuple[Group, ...]
    events: tuple[Event, ...]

    def problem(self, spec: Spec) -> str | None:
        """Why ``spec`` cannot judge this life, or ``None``: it names another optimizer, or options that it refuses."""
        if self.optimizer != spec.name:
            return f"a life of {self.optimizer}, not of {spec.name}"
        options = [dict(g.options) for g in self.groups]
        events = [None, *(e for e in self.events if isinstance(e, SetOption))]
        for event in events:
            if event is not None:
                options[event.group][event.option] = event.value
            for o, group in zip(options, self.groups, strict=True):
                try:
                    hyper = spec.hyper_values(o)
                except ValueError as error:
                    return str(error)
                conflict = spec.sparse_conflict(hyper)
                if conflict and self.given_sparse & set(group.parameters):
                    return f"{spec.name} takes no sparse gradient with these options: {conflict}"
        for p in self.parameters:
            if not spec.shapes(p.shape):
                return f"{spec.name} takes no parameter of shape {p.shape}"
            if is_complex(p.dtype) and not spec.complex:
                return f"{spec.name} takes no complex parameter"
        gradients = [(i, g) for e in self.events if isinstance(e, Step) for i, g in e.gradients.items()]
        for i, g in gradients:
            problem = g.sparse.problem(self.parameters[i].shape) if g is not None and g.sparse is not None else None
            if problem:
                return problem
        given = [g for _, g in gradients if g is not None]
        if any((e.objective is not None) != spec.closure for e in self.events if isinstance(e, Step)):
            return f"{spec.name} takes steps {'with' if spec.closure else 'without'} a closure"
        if spec.closure and len(self.groups) > 1:
            return f"{spec.name} takes one group"
        if any(g.sparse is not None for g in given) and not spec.sparse:
            return f"{spec.name} takes no sparse gradient"
        if any(g.sparse is None for g in given) and spec.sparse == "only":
            return f"{spec.name} takes sparse gradients alone"
        return None

    @functools.cached_property
    def given_sparse(self) -> frozenset[int]:
        """Parameters that get a sparse gradient at some time."""
        steps = [e for e in self.events if isinstance(e, Step)]
        return frozenset(i for e in steps for i, g in e.gradients.items() if g is not None and g.sparse is not None)

    def row_major(self) -> Trace:
        """The same life with every parameter and gradient contiguous."""
        events = tuple(
            replace(e, gradients={i: g and replace(g, layout="contiguous") for i, g in e.gradients.items()})
            if isinstance(e, Step)
            else e
            for e in self.events
        )
        return replace(self, parameters=tuple(replace(p, layout="contiguous") for p in self.parameters), events=events)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "optimizer": self.optimizer,
            "parameters": [
                {"shape": list(p.shape), "dtype": p.dtype, "layout": p.layout, "values": _values_to_json(p.values)}
                for p in self.parameters
            ],
            "groups": [
                {"parameters": list(g.parameters), "options": {k: _option_to_json(v) for k, v in g.options.items()}}
                for g in self.groups
            ],
            "events": [_event_to_json(e) for e in self.events],
        }

    @classmethod
    def from_json(cls, data: object) -> Trace:
        """The trace that ``data`` describes.

        Raises:
            TraceError: ``data`` is not a trace of this schema, or asks for more than the bounds above.
        """
        return _Reader().trace(data)


def loads(text: str) -> object:
    """Parse JSON.

    Raises:
        TraceError: ``text`` is not JSON, or is cut short.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TraceError(f"not JSON, or cut short ({error})") from None


# JSON out -------------------------------------------------------------------------------------------------------------


def _values_to_json(values: Values) -> dict[str, Any]:
    if values.recipe == "listed":
        return {"recipe": "listed", "listed": [x.hex() for x in values.listed]}
    return {"recipe": values.recipe, "seed": values.seed, "low": values.low.hex(), "high": values.high.hex()}


def _option_to_json(value: Option) -> Any:
    # Text stands in an object of its own: "abc" is a hex float as well.
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return {"text": value}
    return [_option_to_json(x) for x in value] if isinstance(value, tuple) else value.hex()


def _gradient_to_json(g: Gradient) -> dict[str, Any]:
    result = {"layout": g.layout, "values": _values_to_json(g.values)}
    if g.sparse is not None:
        s = g.sparse
        result["sparse"] = {"entries": list(s.entries), "dimensions": s.dimensions, "coalesced": s.coalesced}
    return result


def _event_to_json(event: Event) -> dict[str, Any]:
    if isinstance(event, Step):
        gradients = {str(i): None if g is None else _gradient_to_json(g) for i, g in event.gradients.items()}
        if event.objective is None:
            return {"event": "step", "gradients": gradients}
        o = event.objective
        objective = {"kind": o.kind, "centre": _values_to_json(o.centre), "scale": o.scale.hex()}
        return {"event": "step", "gradients": gradients, "objective": objective}
    if isinstance(event, ZeroGrad):
        return {"event": "zero_grad", "set_to_none": event.set_to_none}
    if isinstance(event, SetOption):
        value = _option_to_json(event.value)
        return {"event": "set_option", "group": event.group, "option": event.option, "value": value}
    return {"event": "reload"}


# JSON in: everything is checked before anything is believed ---------------------------------------------------------------


class _Reader:
    def trace(self, data: object) -> Trace:
        top = self._object(data, "the trace")
        schema = top.get("schema")
        if schema != SCHEMA:
            raise TraceError(f"trace schema {schema!r}; this version of stepcheck reads schema {SCHEMA}")
        self._only(top, {"schema", "optimizer", "parameters", "groups", "events"}, "the trace")
        optimizer = self._string(top.get("optimizer"), "optimizer")
        raw = self._list(top.get("parameters"), "parameters", MAX_PARAMETERS)
        parameters = tuple(self._parameter(p, f"parameters[{i}]") for i, p in enumerate(raw))
        if sum(p.numel for p in parameters) > MAX_ELEMENTS:
            raise TraceError(f"parameters: more than {MAX_ELEMENTS} elements")
        raw = self._list(top.get("groups"), "groups", MAX_PARAMETERS)
        groups = tuple(self._group(g, f"groups[{i}]", len(parameters)) for i, g in enumerate(raw))
        members = [i for g in groups for i in g.parameters]
        if sorted(members) != list(range(len(parameters))) or not groups:
            raise TraceError("groups: each parameter must stand in exactly one group")
        raw = self._list(top.get("events"), "events", MAX_EVENTS)
        events = tuple(self._event(e, f"events[{i}]", parameters, len(groups)) for i, e in enumerate(raw))
        return Trace(optimizer, parameters, groups, events)

    def _parameter(self, data: object, where: str) -> Parameter:
        d = self._object(data, where)
        self._only(d, {"shape", "dtype", "layout", "values"}, where)
        shape = tuple(
            self._integer(n, f"{where}.shape", 0, MAX_ELEMENTS)
            for n in self._list(d.get("shape"), f"{where}.shape", MAX_DIMENSIONS)
        )
        if math.prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
            raise TraceError(f"{where}.shape: more than {MAX_ELEMENTS} elements")
        dtype = self._choice(d.get("dtype"), DTYPES, f"{where}.dtype")
        layout = self._choice(d.get("layout"), LAYOUTS, f"{where}.layout")
        if layout == "channels_last" and len(shape) != 4:
            raise TraceError(f"{where}.layout: channels_last needs 4 dimensions, got {len(shape)}")
        count = math.prod(in_reals(shape, dtype))
        return Parameter(shape, dtype, layout, self._values(d.get("values"), f"{where}.values", count))

    def _group(self, data: object, where: str, parameters: int) -> Group:
        d = self._object(data, where)
        self._only(d, {"parameters", "options"}, where)
        members = self._list(d.get("parameters"), f"{where}.parameters", MAX_PARAMETERS)
        indices = tuple(self._integer(i, f"{where}.parameters", 0, parameters - 1) for i in members)
        options = self._object(d.get("options"), f"{where}.options")
        return Group(indices, {k: self._option(v, f"{where}.options.{k}") for k, v in options.items()})

    def _event(self, data: object, where: str, parameters: tuple[Parameter, ...], groups: int) -> Event:
        d = self._object(data, where)
        kind = self._choice(d.get("event"), ("step", "zero_grad", "set_option", "reload"), f"{where}.event")
        if kind == "step":
            self._only(d, {"event", "gradients", "objective"}, where)
            gradients = {}
            for key, g in self._object(d.get("gradients"), f"{where}.gradients").items():
                there = f"{where}.gradients.{key}"
                index = self._integer(int(key) if key.isdecimal() else key, there, 0, len(parameters) - 1)
                gradients[index] = None if g is None else self._gradient(g, there, parameters[index])
            given = d.get("objective")
            return Step(gradients, None if given is None else self._objective(given, f"{where}.objective"))
        if kind == "zero_grad":
            self._only(d, {"event", "set_to_none"}, where)
            if not isinstance(d.get("set_to_none"), bool):
                raise TraceError(f"{where}.set_to_none: must be true or false")
            return ZeroGrad(d["set_to_none"])
        if kind == "set_option":
            self._only(d, {"event", "group", "option", "value"}, where)
            group = self._integer(d.get("group"), f"{where}.group", 0, groups - 1)
            option = self._string(d.get("option"), f"{where}.option")
            return SetOption(group, option, self._option(d.get("value"), f"{where}.value"))
        self._only(d, {"event"}, where)
        return Reload()

    def _objective(self, data: object, where: str) -> Objective:
        d = self._object(data, where)
        self._only(d, {"kind", "centre", "scale"}, where)
        kind = self._choice(d.get("kind"), OBJECTIVES, f"{where}.kind")
        centre = self._values(d.get("centre"), f"{where}.centre", -1)
        return Objective(kind, centre, self._number(d.get("scale"), f"{where}.scale"))

    def _gradient(self, data: object, where: str, parameter: Parameter) -> Gradient:
        d = self._object(data, where)
        self._only(d, {"layout", "values", "sparse"}, where)
        layout = self._choice(d.get("layout"), GRADIENT_LAYOUTS, f"{where}.layout")
        shape, dtype = parameter.shape, parameter.dtype
        if layout == "channels_last" and len(shape) != 4:
            raise TraceError(f"{where}.layout: channels_last needs 4 dimensions, got {len(shape)}")
        if layout == "conjugated" and not is_complex(dtype):
            raise TraceError(f"{where}.layout: conjugated needs a complex dtype, got {dtype}")
        sparse = None if d.get("sparse") is None else self._sparse(d["sparse"], f"{where}.sparse", shape)
        named = shape if sparse is None else sparse.shape_of_values(shape)
        values = self._values(d.get("values"), f"{where}.values", math.prod(in_reals(named, dtype)))
        return Gradient(values, layout, sparse)

    def _sparse(self, data: object, where: str, shape: tuple[int, ...]) -> Sparse:
        d = self._object(data, where)
        self._only(d, {"entries", "dimensions", "coalesced"}, where)
        entries = tuple(
            self._integer(n, f"{where}.entries", 0, MAX_ELEMENTS)
            for n in self._list(d.get("entries"), f"{where}.entries", MAX_ELEMENTS)
        )
        dimensions = self._integer(d.get("dimensions"), f"{where}.dimensions", 1, MAX_DIMENSIONS)
        if not isinstance(d.get("coalesced"), bool):
            raise TraceError(f"{where}.coalesced: must be true or false")
        sparse = Sparse(entries, dimensions, d["coalesced"])
        problem = sparse.problem(shape)
        if problem:
            raise TraceError(f"{where}: {problem}")
        if math.prod(sparse.shape_of_values(shape)) > MAX_ELEMENTS:
            raise TraceError(f"{where}.entries: more than {MAX_ELEMENTS} elements")
        return sparse

    def _values(self, data: object, where: str, count: int) -> Values:
        d = self._object(data, where)
        recipe = self._choice(d.get("recipe"), tuple(RECIPES), f"{where}.recipe")
        if recipe == "listed":
            self._only(d, {"recipe", "listed"}, where)
            listed = tuple(
                self._number(x, f"{where}.listed") for x in self._list(d.get("listed"), f"{where}.listed", MAX_ELEMENTS)
            )
            if len(listed) != count:
                raise TraceError(f"{where}.listed: {len(listed)} numbers for {count} elements")
            return Values("listed", listed=listed)
        self._only(d, {"recipe", "seed", "low", "high"}, where)
        seed = self._integer(d.get("seed"), f"{where}.seed", 0, 2**64 - 1)
        return Values(
            recipe, seed, self._number(d.get("low"), f"{where}.low"), self._number(d.get("high"), f"{where}.high")
        )

    def _option(self, data: object, where: str) -> Option:
        if data is None or isinstance(data, bool):
            return data
        if isinstance(data, int):
            return self._integer(data, where, -(2**53), 2**53)
        if isinstance(data, dict):
            self._only(data, {"text"}, where)
            return self._string(data.get("text"), where)
        if isinstance(data, list):
            entries = self._list(data, where, MAX_DIMENSIONS)
            return tuple(None if x is None else self._number(x, where) for x in entries)
        return self._number(data, where)

    @staticmethod
    def _number(data: object, where: str) -> float:
        if isinstance(data, str):
            try:
                return float.fromhex(data)
            except (ValueError, OverflowError):
                pass
        raise TraceError(f"{where}: must be a hex float such as '0x1.8p-3', got {str(data)[:40]!r}")

    @staticmethod
    def _integer(data: object, where: str, low: int, high: int) -> int:
        if isinstance(data, bool) or not isinstance(data, int) or not low <= data <= high:
            raise TraceError(f"{where}: must be an integer from {low} to {high}, got {str(data)[:40]!r}")
        return data

    @staticmethod
    def _string(data: object, where: str) -> str:
        if not isinstance(data, str) or len(data) > 200:
            raise TraceError(f"{where}: must be a short string")
        return data

    @staticmethod
    def _choice(data: object, choices: tuple[str, ...], where: str) -> str:
        if not isinstance(data, str) or data not in choices:
            raise TraceError(f"{where}: must be one of {', '.join(choices)}, got {str(data)[:40]!r}")
        return data

    @staticmethod
    def _object(data: object, where: str) -> dict[str, Any]:
        if not isinstance(data, dict):
            raise TraceError(f"{where}: must be a JSON object, got {type(data).__name__}")
        return data

    @staticmethod
    def _list(data: object, where: str, most: int) -> list[Any]:
        if not isinstance(data, list):
            raise TraceError(f"{where}: must be a JSON array, got {type(data).__name__}")
        if len(data) > most:
            raise TraceError(f"{where}: {len(data)} entries, at most {most}")
        return data

    @staticmethod
    def _only(data: dict[str, Any], known: set[str], where: str) -> None:
        extra = sorted(set(data) - known)
        if extra:
            raise TraceError(f"{where}: unknown key {extra[0][:40]!r}")
