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
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from stepcheck.reference.spec import Spec, Value

SCHEMA = 1

#: Bounds on what a trace may ask for, so that a hostile file cannot exhaust the machine.
MAX_ELEMENTS = 1 << 20
MAX_PARAMETERS = 1 << 10
MAX_EVENTS = 1 << 12
MAX_DIMENSIONS = 8
MAX_OPTIONS = 64
#: Elements times events, each parameter counted as ``PARAMETER_WORK`` elements more. Played and judged, that takes some 20 s and 3 GB.
MAX_WORK = 1 << 23
#: A parameter of no elements takes as long as one of so many.
PARAMETER_WORK = 1 << 9
#: Calls of a closure that a step with an objective may make, unless options allow more.
_EVALUATIONS = 25

DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128")
#: ``offset`` is contiguous as well, and a view that starts inside a larger buffer whoever plays it.
LAYOUTS = ("contiguous", "transposed", "sliced", "channels_last", "offset")
#: ``expanded`` repeats the first row (stride 0); ``conjugated`` is a lazy conjugate (torch's conjugate bit) of complex memory.
GRADIENT_LAYOUTS = (*LAYOUTS, "expanded", "conjugated")

#: How the parameters of a life are given to the constructor: a list (of tensors, or of the groups' dictionaries), a tuple, an iterator,
#: pairs of a name and a tensor, or dictionaries even where there is one group; ``mixed``, with every other option that all groups
#: have in common as a keyword, and the others in dictionaries.
FORMS = ("list", "tuple", "iterator", "named", "dicts", "mixed")
#: What a closure gives back: the loss as a number or a tensor, nothing, or a tensor whose gradients it computed by backward().
CLOSURES = ("float", "tensor", "none", "backward")
#: Gradient scaling: unscaled within the scaler's step, or before it by the user.
SCALINGS = ("step", "unscale")
#: How a state goes from one optimizer to the next. The first four carry its state_dict to an optimizer built anew, the last two the
#: optimizer itself.
WAYS = ("memory", "saved", "deepcopied", "pickled", "copied", "unpickled")
#: No way at all: the optimizer stays. No trace is written with it; a life with a round trip is compared with the same one without.
STAYS = "stays"
#: The dictionary that is loaded: as it was saved; as older versions saved it, with numbers for counters and without the flags that
#: select an implementation; with other identifiers for parameters, in another order, and with entries of somebody else's; or as it is
#: after many more steps.
DICTIONARIES = ("same", "older", "foreign", "aged")
HOOKS = (
    "step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post",
)  # fmt: skip
#: Learning rate schedules of torch.optim.lr_scheduler; ``stepcheck.harness.life.schedules`` says with which arguments.
SCHEDULES = (
    "StepLR", "ExponentialLR", "LinearLR", "ConstantLR", "LambdaLR", "MultiplicativeLR", "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts", "PolynomialLR", "OneCycleLR", "CyclicLR", "ReduceLROnPlateau",
)  # fmt: skip
#: Why a step must fail: its closure raises, a hook before it raises, or a parameter has a gradient of a kind, or of a dtype, that is
#: not taken.
FAILURES = ("closure", "hook", "gradient", "dtype")
#: What stands where a tensor of the state stood; ``stepcheck.harness.play.spoil`` makes it of that.
SPOILINGS = (
    "of half the elements", "a row short", "of one element", "empty", "twice as long", "flat", "with another dimension", "transposed",
    "column-major", "strided", "lazily negative", "sparse", "of float64",
)  # fmt: skip
#: How it gets there.
SPOILING_WAYS = ("assigned", "loaded")
#: Where an option can be given: as a keyword; in a group's dictionary, to the constructor; in a group that is added later; in
#: the groups of a dictionary that is loaded.
PLACES = ("construction", "group", "add_param_group", "load_state_dict")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Scalar:
    """An option given as a float32 tensor of no dimension, of this value."""

    value: float


Option = Value | Scalar


class TraceError(ValueError):
    """A file or object is not a trace of this schema; the message says what is wrong and where."""


# Values ---------------------------------------------------------------------------------------------------------------


_GOLDEN, _MIX1, _MIX2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_1, _11, _27, _30, _31, _63 = map(np.uint64, (1, 11, 27, 30, 31, 63))
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


def splitmix64_word(seed: int) -> int:
    """The first of these words: for one, an array costs more than Python's integers."""
    z = (seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def _fraction(words: npt.NDArray[np.uint64]) -> Array:
    """The upper 53 bits as a number in [0, 1)."""
    fraction: Array = (words >> _11).astype(np.float64)
    fraction *= 2.0**-53
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
    exponent = ((words >> _1) & _LOW10).astype(np.int64)
    exponent *= high - low + 1
    exponent >>= 10
    exponent += low
    x = _fraction(words)
    x *= 0.5
    x += 0.5
    np.ldexp(x, exponent, out=x)
    np.maximum(x, values.low, out=x)
    np.minimum(x, values.high, out=x)
    # The lowest bit is the sign.
    bits = x.view(np.uint64)
    bits ^= words << _63
    return x


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
    """One parameter: shape, dtype and memory layout, and its first value.

    Attributes:
        within: an earlier parameter of the same shape and dtype, both of them ``sliced``, whose gaps this one's elements fill.
    """

    shape: tuple[int, ...]
    dtype: str = "float32"
    layout: str = "contiguous"
    values: Values = Values()
    within: int | None = None

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
    """A gradient of its parameter's shape and dtype: dense, or sparse where it names entries; ``negated``, minus the values."""

    values: Values = Values()
    layout: str = "contiguous"
    sparse: Sparse | None = None
    negated: bool = False

    def realise(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Its real numbers: of a sparse gradient, those of the entries that it names."""
        named = shape if self.sparse is None else self.sparse.shape_of_values(shape)
        values = self.values.realise(in_reals(named, dtype))
        return -values if self.negated else values


#: Functions of a parameter's distance from a centre; ``stepcheck.harness.life.objectives`` says what each is.
OBJECTIVES = (
    "quadratic",
    "quartic",
    "rosenbrock",
    "saddle",
    "linear",
    "cliff",
    "log",
    "flat",
    "ripples",
    "saw",
    "edges",
    "kink",
    "waves",
)


@dataclass(frozen=True)
class Objective:
    """What a closure evaluates: the sum over all parameters of a function of their distance from a centre, times ``scale``.

    The centre of parameter i is drawn from ``centre`` with its seed increased by i.

    Attributes:
        set_to_none: as of :class:`ZeroGrad`: how the closure clears the gradients before it evaluates them anew.
    """

    kind: str = "quadratic"
    centre: Values = Values()
    scale: float = 1.0
    set_to_none: bool = True


@dataclass(frozen=True)
class Step:
    """Assign gradients, then step. ``None`` takes the gradient away; a parameter not named keeps what it has.

    With an objective the step is given a closure, which evaluates it and its gradients.

    Attributes:
        closure: one of ``CLOSURES``: the gradients are assigned by a closure that the step is given; empty for none.
        scaling: one of ``SCALINGS``: the gradients are multiplied by the scale of a ``torch.amp.GradScaler``, which then steps
            (its scale is 2**16 at first, and doubles after two good steps); empty for none.
    """

    gradients: Mapping[int, Gradient | None] = field(default_factory=dict)
    objective: Objective | None = None
    closure: str = ""
    scaling: str = ""


@dataclass(frozen=True)
class Accumulate:
    """A second backward pass: these gradients are added to those that the parameters have."""

    gradients: Mapping[int, Gradient]


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
    """Go on with another optimizer over the same parameters, that has the state of this one.

    Attributes:
        way: one of ``WAYS``; all but the last two build an optimizer with default options, which loads the state_dict.
        dictionary: one of ``DICTIONARIES``.
        form: one of ``FORMS``: how the new optimizer is given its parameters.
        into: the implementation of the new optimizer, counted from the subject's own (see ``subjects.sibling``).
    """

    way: str = "memory"
    dictionary: str = "same"
    form: str = "list"
    into: int = 0


@dataclass(frozen=True)
class AddGroup:
    """``optimizer.add_param_group(...)``, with parameters that stand in no group before."""

    group: Group


@dataclass(frozen=True)
class Freeze:
    """``parameter.requires_grad_(not frozen)``; what decides whether it is stepped is its gradient."""

    parameter: int
    frozen: bool = True


@dataclass(frozen=True)
class Hook:
    """Register a hook that counts its calls; a later optimizer of this life is given it as well."""

    kind: str


@dataclass(frozen=True)
class Schedule:
    """Attach a learning rate schedule, in place of any other."""

    kind: str


@dataclass(frozen=True)
class ScheduleStep:
    """``scheduler.step()``, where there is one."""


@dataclass(frozen=True)
class Fail:
    """A step that must raise, and change nothing.

    Attributes:
        kind: one of ``FAILURES``.
        parameter: whose gradient it is, where one cannot be taken.
    """

    kind: str
    parameter: int = 0


@dataclass(frozen=True)
class Refuse:
    """Something invalid, tried on an optimizer of its own; ``stepcheck.harness.play.validation`` says how.

    Attributes:
        option: the option, or ``params``.
        kind: in what way it is invalid.
        value: the value tried.
        place: where it is given.
        beside: options given with it.
    """

    option: str
    kind: str
    value: Option
    place: str
    beside: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Spoil:
    """A tensor of the state is not what the optimizer left there; tried on a copy of it, as ``stepcheck.harness.play.spoil`` says.

    Attributes:
        how: one of ``SPOILINGS``.
        way: one of ``SPOILING_WAYS``: assigned between two steps, or in a dictionary that is loaded.
        parameter: whose state it is.
        buffer: which of the tensors of that parameter's shape, in the order of their names, counted round.
    """

    how: str
    way: str = "assigned"
    parameter: int = 0
    buffer: int = 0


Event = (
    Step
    | Accumulate
    | ZeroGrad
    | SetOption
    | Reload
    | AddGroup
    | Freeze
    | Hook
    | Schedule
    | ScheduleStep
    | Fail
    | Refuse
    | Spoil
)


def keywords(groups: Sequence[Mapping[str, Option]], form: str) -> frozenset[str]:
    """The options that are given to the constructor as keywords, and not in each group."""
    if form not in ("dicts", "mixed") and len(groups) == 1:
        return frozenset(groups[0])
    common = [k for k, v in groups[0].items() if all(k in g and g[k] == v for g in groups)]
    if form == "mixed":
        return frozenset(sorted(common)[::2])
    # The same tensor for all groups, as somebody gives it who gives it once.
    return frozenset(k for k in common if isinstance(groups[0][k], Scalar))


def plain(options: Mapping[str, Option]) -> dict[str, Value]:
    """Options as numbers, whether or not they are given as tensors."""
    return {name: value.value if isinstance(value, Scalar) else value for name, value in options.items()}


@dataclass(frozen=True)
class Trace:
    """The whole life. ``optimizer`` names the reference that says what must happen.

    Attributes:
        groups: those that the optimizer is constructed with.
        form: one of ``FORMS``: how they are given.
    """

    optimizer: str
    parameters: tuple[Parameter, ...]
    groups: tuple[Group, ...]
    events: tuple[Event, ...]
    form: str = "list"

    @functools.cached_property
    def all_groups(self) -> tuple[Group, ...]:
        """Those of the construction and those added later, in this order."""
        return (*self.groups, *(e.group for e in self.events if isinstance(e, AddGroup)))

    @property
    def given_options(self) -> tuple[Mapping[str, Option], ...]:
        """The options of each group, and each that is set later."""
        later = ({e.option: e.value} for e in self.events if isinstance(e, SetOption))
        return (*(g.options for g in self.all_groups), *later)

    @functools.cached_property
    def group_of(self) -> Mapping[int, int]:
        """The group that each parameter stands in at last."""
        return {i: n for n, group in enumerate(self.all_groups) for i in group.parameters}

    def problem(self, spec: Spec) -> str | None:
        """Why ``spec`` cannot judge this life, or ``None``: it names another optimizer, or options that it refuses."""
        if self.optimizer != spec.name:
            return f"a life of {self.optimizer}, not of {spec.name}"
        return self._problem_of_events(spec) or self._problem_of_options(spec) or self._problem_of_tensors(spec)

    def _problem_of_options(self, spec: Spec) -> str | None:
        options = [dict(g.options) for g in self.all_groups]
        # Groups with an lr of 0 when a schedule begins: it may go back to that whatever is set by then.
        stopped: set[int] = set()
        events = [None, *(e for e in self.events if isinstance(e, SetOption | Schedule))]
        for event in events:
            if isinstance(event, SetOption):
                options[event.group][event.option] = event.value
            elif isinstance(event, Schedule):
                stopped |= {n for n, o in enumerate(options) if plain(o).get("lr") == 0}
            for n, (o, group) in enumerate(zip(options, self.all_groups, strict=True)):
                if any(isinstance(value, Scalar) and name != "lr" for name, value in o.items()):
                    return "the learning rate alone may be a tensor"
                try:
                    hyper = spec.hyper_values(plain(o))
                    if n in stopped:
                        spec.hyper_values(plain(o | {"lr": 0.0}))
                except ValueError as error:
                    return str(error)
                conflict = spec.sparse_conflict(hyper)
                if conflict and self.given_sparse & set(group.parameters):
                    return f"{spec.name} takes no sparse gradient with these options: {conflict}"
        return None

    def _problem_of_tensors(self, spec: Spec) -> str | None:
        for p in self.parameters:
            if not spec.shapes(p.shape):
                return f"{spec.name} takes no parameter of shape {p.shape}"
            if is_complex(p.dtype) and not spec.complex:
                return f"{spec.name} takes no complex parameter"
        for i, g in self.assigned:
            problem = g.sparse.problem(self.parameters[i].shape) if g.sparse is not None else None
            if problem:
                return problem
        if any(g.sparse is not None for _, g in self.assigned) and not spec.sparse:
            return f"{spec.name} takes no sparse gradient"
        if any(g.sparse is None for _, g in self.assigned) and spec.sparse == "only":
            return f"{spec.name} takes sparse gradients alone"
        return None

    def _problem_of_events(self, spec: Spec) -> str | None:
        if not self.groups or len(self.group_of) < len(self.parameters):
            return "there must be a group at first, and each parameter must stand in one"
        groups = len(self.groups)
        for e in self.events:
            groups += isinstance(e, AddGroup)
            if isinstance(e, SetOption) and e.group >= groups:
                return "an option is set in a group that is not there yet"
        steps = [e for e in self.events if isinstance(e, Step)]
        if any((e.objective is not None) != spec.closure for e in steps):
            return f"{spec.name} takes steps {'with' if spec.closure else 'without'} an objective"
        if spec.closure and len(self.all_groups) > 1:
            return f"{spec.name} takes one group"
        if spec.closure and any(isinstance(e, Accumulate) or getattr(e, "closure", "") for e in self.events):
            return f"{spec.name} is given its gradients by an objective"
        for e in self.events:
            if isinstance(e, Refuse) and e.option not in ("params", *(h.name for h in spec.hyper)):
                return f"{spec.name} has no option {e.option!r} to refuse"
        if spec.closure and any(isinstance(e, Spoil) for e in self.events):
            return f"{spec.name} keeps the state of all parameters together"
        if spec.closure and any(e.scaling for e in steps):
            return "a step with gradient scaling takes no closure"
        return None

    @functools.cached_property
    def assigned(self) -> tuple[tuple[int, Gradient], ...]:
        """Each gradient, with the index of its parameter."""
        events = [e for e in self.events if isinstance(e, (Step, Accumulate))]
        return tuple((i, g) for e in events for i, g in e.gradients.items() if g is not None)

    @functools.cached_property
    def given_sparse(self) -> frozenset[int]:
        """Parameters that get a sparse gradient at some time."""
        return frozenset(i for i, g in self.assigned if g.sparse is not None)

    def with_gradients(self, change: Callable[[int, Gradient], Gradient]) -> Trace:
        """The same life with every gradient changed, by (index of its parameter, gradient)."""

        def changed(e: Event) -> Event:
            if isinstance(e, Accumulate):
                return replace(e, gradients={i: change(i, g) for i, g in e.gradients.items()})
            if isinstance(e, Step):
                return replace(e, gradients={i: g and change(i, g) for i, g in e.gradients.items()})
            return e

        return replace(self, events=tuple(map(changed, self.events)))

    def keeping(self, kept: Collection[int]) -> Trace:
        """The same life without the other parameters, and without the groups that have none left."""
        number = {i: n for n, i in enumerate(sorted(kept))}
        groups = [n for n, g in enumerate(self.all_groups) if not g.parameters or number.keys() & set(g.parameters)]

        def group(g: Group) -> Group:
            return replace(g, parameters=tuple(number[i] for i in g.parameters if i in number))

        def event(e: Event) -> Event | None:
            if isinstance(e, Accumulate):
                return Accumulate({number[i]: g for i, g in e.gradients.items() if i in number})
            if isinstance(e, Step):
                return replace(e, gradients={number[i]: g for i, g in e.gradients.items() if i in number})
            if isinstance(e, (Freeze, Fail, Spoil)):
                return replace(e, parameter=number[e.parameter]) if e.parameter in number else None
            if isinstance(e, SetOption):
                return replace(e, group=groups.index(e.group)) if e.group in groups else None
            if isinstance(e, AddGroup):
                return (
                    AddGroup(group(e.group))
                    if not e.group.parameters or number.keys() & set(e.group.parameters)
                    else None
                )
            return e

        def parameter(p: Parameter) -> Parameter:
            return p if p.within is None else replace(p, within=number.get(p.within))

        at_first = [n for n in groups if n < len(self.groups)]
        events = (event(e) for e in self.events)
        return replace(
            self,
            parameters=tuple(parameter(self.parameters[i]) for i in sorted(kept)),
            groups=tuple(group(self.groups[n]) for n in at_first),
            events=tuple(e for e in events if e is not None),
        )

    def row_major(self) -> Trace:
        """The same life, of the same numbers, with every parameter and gradient contiguous."""

        def contiguous(i: int, g: Gradient) -> Gradient:
            shape = in_reals(self.parameters[i].shape, self.parameters[i].dtype)
            if g.layout != "expanded" or not self.parameters[i].shape:
                return replace(g, layout="contiguous")
            repeated = np.broadcast_to(g.values.realise(shape)[:1], shape)
            return replace(g, layout="contiguous", values=Values("listed", listed=tuple(repeated.ravel().tolist())))

        plain = self.with_gradients(contiguous)
        parameters = tuple(replace(p, layout="contiguous", within=None) for p in self.parameters)
        return replace(plain, parameters=parameters)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "optimizer": self.optimizer,
            "parameters": [_parameter_to_json(p) for p in self.parameters],
            "groups": [_group_to_json(g) for g in self.groups],
            "events": [_event_to_json(e) for e in self.events],
            **({"form": self.form} if self.form != "list" else {}),
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


def _parameter_to_json(p: Parameter) -> dict[str, Any]:
    result = {"shape": list(p.shape), "dtype": p.dtype, "layout": p.layout, "values": _values_to_json(p.values)}
    return result if p.within is None else {**result, "within": p.within}


def _group_to_json(g: Group) -> dict[str, Any]:
    return {"parameters": list(g.parameters), "options": _options_to_json(g.options)}


def _options_to_json(options: Mapping[str, Option]) -> dict[str, Any]:
    return {name: option_to_json(value) for name, value in options.items()}


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


def _gradient_to_json(g: Gradient) -> dict[str, Any]:
    result = {"layout": g.layout, "values": _values_to_json(g.values)}
    if g.sparse is not None:
        s = g.sparse
        result["sparse"] = {"entries": list(s.entries), "dimensions": s.dimensions, "coalesced": s.coalesced}
    return {**result, "negated": True} if g.negated else result


#: The name of each kind of event in JSON.
_EVENTS: dict[type[Event], str] = {
    Step: "step", Accumulate: "accumulate", ZeroGrad: "zero_grad", SetOption: "set_option", Reload: "reload",
    AddGroup: "add_group", Freeze: "freeze", Hook: "hook", Schedule: "schedule", ScheduleStep: "schedule_step", Fail: "fail",
    Refuse: "refuse", Spoil: "spoil",
}  # fmt: skip


def _event_to_json(event: Event) -> dict[str, Any]:
    """The event's name and its fields; those that stand at their defaults are left out where older traces do not have them."""
    result: dict[str, Any] = {"event": _EVENTS[type(event)]}
    if isinstance(event, (Step, Accumulate)):
        gradients = {str(i): None if g is None else _gradient_to_json(g) for i, g in event.gradients.items()}
        result["gradients"] = gradients
    if isinstance(event, Step):
        if event.objective is not None:
            o = event.objective
            result["objective"] = {"kind": o.kind, "centre": _values_to_json(o.centre), "scale": o.scale.hex()}
            result["objective"] |= {} if o.set_to_none else {"set_to_none": False}
        result |= {k: v for k in ("closure", "scaling") if (v := getattr(event, k))}
    elif isinstance(event, ZeroGrad):
        result["set_to_none"] = event.set_to_none
    elif isinstance(event, SetOption):
        result |= {"group": event.group, "option": event.option, "value": option_to_json(event.value)}
    elif isinstance(event, Reload):
        plain_one = Reload()
        keys = ("way", "dictionary", "form", "into")
        result |= {k: getattr(event, k) for k in keys if getattr(event, k) != getattr(plain_one, k)}
    elif isinstance(event, AddGroup):
        result |= _group_to_json(event.group)
    elif isinstance(event, Freeze):
        result |= {"parameter": event.parameter, "frozen": event.frozen}
    elif isinstance(event, (Hook, Schedule)):
        result["kind"] = event.kind
    elif isinstance(event, Fail):
        result |= {"kind": event.kind, "parameter": event.parameter}
    elif isinstance(event, Refuse):
        result |= {"option": event.option, "kind": event.kind, "value": option_to_json(event.value)}
        result |= {"place": event.place, "beside": _options_to_json(event.beside)}
    elif isinstance(event, Spoil):
        result |= {"how": event.how, "way": event.way, "parameter": event.parameter, "buffer": event.buffer}
    return result


# JSON in: everything is checked before anything is believed ---------------------------------------------------------------


def _work(trace: Trace) -> int:
    """What it takes to play and to judge a life, in elements: each event looks at all of them, and at those that a gradient names."""
    each = sum(p.numel + PARAMETER_WORK for p in trace.parameters)
    evaluations = [_EVALUATIONS]
    for options in trace.given_options:
        asked = (options.get("max_eval"), options.get("max_iter"))
        evaluations += [n for n in asked if isinstance(n, int)]
    steps = sum(isinstance(e, Step) and e.objective is not None for e in trace.events)
    more = steps * (max(evaluations) // _EVALUATIONS - 1)
    sparse = ((g.sparse, trace.parameters[i]) for i, g in trace.assigned if g.sparse is not None)
    named = sum(math.prod(s.shape_of_values(p.shape)) for s, p in sparse)
    return each * (max(len(trace.events), 1) + more) + named


class _Reader:
    def trace(self, data: object) -> Trace:
        top = self._object(data, "the trace")
        schema = top.get("schema")
        if schema != SCHEMA:
            raise TraceError(f"trace schema {schema!r}; this version of stepcheck reads schema {SCHEMA}")
        self._only(top, {"schema", "optimizer", "parameters", "groups", "events", "form"}, "the trace")
        optimizer = self._string(top.get("optimizer"), "optimizer")
        raw = self._list(top.get("parameters"), "parameters", MAX_PARAMETERS)
        parameters = tuple(self._parameter(p, f"parameters[{i}]") for i, p in enumerate(raw))
        if sum(p.numel for p in parameters) > MAX_ELEMENTS:
            raise TraceError(f"parameters: more than {MAX_ELEMENTS} elements")
        raw = self._list(top.get("groups"), "groups", MAX_PARAMETERS)
        groups = tuple(self._group(g, f"groups[{i}]", len(parameters)) for i, g in enumerate(raw))
        raw = self._list(top.get("events"), "events", MAX_EVENTS)
        events = tuple(self._event(e, f"events[{i}]", parameters) for i, e in enumerate(raw))
        form = self._choice(top.get("form", "list"), FORMS, "form")
        trace = Trace(optimizer, parameters, groups, events, form)
        self._consistent(trace)
        return trace

    def _consistent(self, trace: Trace) -> None:
        """What one part of a trace says of another."""
        members = [i for g in trace.all_groups for i in g.parameters]
        if sorted(members) != list(range(len(trace.parameters))) or not trace.groups:
            raise TraceError("groups: each parameter must stand in exactly one group")
        work = _work(trace)
        if work > MAX_WORK:
            raise TraceError(
                f"events: {work} elements in all events together, each parameter counted as {PARAMETER_WORK} more; at most {MAX_WORK}"
            )
        groups = len(trace.groups)
        for n, event in enumerate(trace.events):
            groups += isinstance(event, AddGroup)
            if isinstance(event, SetOption) and event.group >= groups:
                raise TraceError(f"events[{n}].group: there are {groups} groups by then")
        for n, p in enumerate(trace.parameters):
            if p.within is None:
                continue
            other = trace.parameters[p.within] if p.within < n else None
            beside = [q.within for q in trace.parameters[:n]]
            if other is None or (other.shape, other.dtype) != (p.shape, p.dtype) or p.within in beside:
                raise TraceError(
                    f"parameters[{n}].within: must name an earlier parameter of the same shape and dtype, once"
                )
            if (other.layout, p.layout, other.within) != ("sliced", "sliced", None):
                raise TraceError(f"parameters[{n}].within: both parameters must be sliced")

    def _parameter(self, data: object, where: str) -> Parameter:
        d = self._object(data, where)
        self._only(d, {"shape", "dtype", "layout", "values", "within"}, where)
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
        within = d.get("within")
        if within is not None:
            within = self._integer(within, f"{where}.within", 0, MAX_PARAMETERS)
        return Parameter(shape, dtype, layout, self._values(d.get("values"), f"{where}.values", count), within)

    def _group(self, data: object, where: str, parameters: int) -> Group:
        d = self._object(data, where)
        self._only(d, {"parameters", "options", "event"}, where)
        members = self._list(d.get("parameters"), f"{where}.parameters", MAX_PARAMETERS)
        indices = tuple(self._integer(i, f"{where}.parameters", 0, parameters - 1) for i in members)
        return Group(indices, self._options(d.get("options"), f"{where}.options"))

    def _options(self, data: object, where: str) -> dict[str, Option]:
        given = self._object(data, where)
        if len(given) > MAX_OPTIONS:
            raise TraceError(f"{where}: {len(given)} entries, at most {MAX_OPTIONS}")
        return {self._string(k, where): self._option(v, f"{where}.{k[:40]}") for k, v in given.items()}

    def _event(self, data: object, where: str, parameters: tuple[Parameter, ...]) -> Event:
        d = self._object(data, where)
        kind = self._choice(d.get("event"), tuple(_EVENTS.values()), f"{where}.event")
        event: Event = getattr(self, f"_{kind}")(d, where, parameters)
        return event

    def _step(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Step:
        self._only(d, {"event", "gradients", "objective", "closure", "scaling"}, where)
        given = d.get("objective")
        objective = None if given is None else self._objective(given, f"{where}.objective")
        closure = self._choice(d.get("closure", ""), ("", *CLOSURES), f"{where}.closure")
        scaling = self._choice(d.get("scaling", ""), ("", *SCALINGS), f"{where}.scaling")
        if closure and scaling:
            raise TraceError(f"{where}.scaling: a step with gradient scaling takes no closure")
        return Step(self._gradients(d, where, parameters), objective, closure, scaling)

    def _accumulate(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Accumulate:
        self._only(d, {"event", "gradients"}, where)
        gradients = self._gradients(d, where, parameters)
        dense = {i: g for i, g in gradients.items() if g is not None and g.sparse is None}
        if len(dense) < len(gradients):
            raise TraceError(f"{where}.gradients: what is added must be dense")
        return Accumulate(dense)

    def _gradients(
        self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]
    ) -> dict[int, Gradient | None]:
        gradients = {}
        for key, g in self._object(d.get("gradients"), f"{where}.gradients").items():
            there = f"{where}.gradients.{key[:40]}"
            index = self._integer(int(key) if key.isdecimal() and len(key) < 10 else key, there, 0, len(parameters) - 1)
            gradients[index] = None if g is None else self._gradient(g, there, parameters[index])
        return gradients

    def _zero_grad(self, d: dict[str, Any], where: str, _: object) -> ZeroGrad:
        self._only(d, {"event", "set_to_none"}, where)
        return ZeroGrad(self._flag(d.get("set_to_none"), f"{where}.set_to_none"))

    def _set_option(self, d: dict[str, Any], where: str, _: object) -> SetOption:
        self._only(d, {"event", "group", "option", "value"}, where)
        group = self._integer(d.get("group"), f"{where}.group", 0, MAX_PARAMETERS)
        option = self._string(d.get("option"), f"{where}.option")
        return SetOption(group, option, self._option(d.get("value"), f"{where}.value"))

    def _reload(self, d: dict[str, Any], where: str, _: object) -> Reload:
        self._only(d, {"event", "way", "dictionary", "form", "into"}, where)
        return Reload(
            self._choice(d.get("way", WAYS[0]), WAYS, f"{where}.way"),
            self._choice(d.get("dictionary", DICTIONARIES[0]), DICTIONARIES, f"{where}.dictionary"),
            self._choice(d.get("form", FORMS[0]), FORMS, f"{where}.form"),
            self._integer(d.get("into", 0), f"{where}.into", 0, MAX_OPTIONS),
        )

    def _add_group(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> AddGroup:
        return AddGroup(self._group(d, where, len(parameters)))

    def _freeze(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Freeze:
        self._only(d, {"event", "parameter", "frozen"}, where)
        index = self._integer(d.get("parameter"), f"{where}.parameter", 0, len(parameters) - 1)
        return Freeze(index, self._flag(d.get("frozen"), f"{where}.frozen"))

    def _hook(self, d: dict[str, Any], where: str, _: object) -> Hook:
        self._only(d, {"event", "kind"}, where)
        return Hook(self._choice(d.get("kind"), HOOKS, f"{where}.kind"))

    def _schedule(self, d: dict[str, Any], where: str, _: object) -> Schedule:
        self._only(d, {"event", "kind"}, where)
        return Schedule(self._choice(d.get("kind"), SCHEDULES, f"{where}.kind"))

    def _schedule_step(self, d: dict[str, Any], where: str, _: object) -> ScheduleStep:
        self._only(d, {"event"}, where)
        return ScheduleStep()

    def _fail(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Fail:
        self._only(d, {"event", "kind", "parameter"}, where)
        kind = self._choice(d.get("kind"), FAILURES, f"{where}.kind")
        return Fail(kind, self._integer(d.get("parameter"), f"{where}.parameter", 0, len(parameters) - 1))

    def _refuse(self, d: dict[str, Any], where: str, _: object) -> Refuse:
        self._only(d, {"event", "option", "kind", "value", "place", "beside"}, where)
        option, kind = (self._string(d.get(k), f"{where}.{k}") for k in ("option", "kind"))
        place = self._choice(d.get("place"), PLACES, f"{where}.place")
        value = self._option(d.get("value"), f"{where}.value")
        return Refuse(option, kind, value, place, self._options(d.get("beside"), f"{where}.beside"))

    def _spoil(self, d: dict[str, Any], where: str, parameters: tuple[Parameter, ...]) -> Spoil:
        self._only(d, {"event", "how", "way", "parameter", "buffer"}, where)
        return Spoil(
            self._choice(d.get("how"), SPOILINGS, f"{where}.how"),
            self._choice(d.get("way"), SPOILING_WAYS, f"{where}.way"),
            self._integer(d.get("parameter"), f"{where}.parameter", 0, len(parameters) - 1),
            self._integer(d.get("buffer"), f"{where}.buffer", 0, MAX_OPTIONS),
        )

    def _objective(self, data: object, where: str) -> Objective:
        d = self._object(data, where)
        self._only(d, {"kind", "centre", "scale", "set_to_none"}, where)
        kind = self._choice(d.get("kind"), OBJECTIVES, f"{where}.kind")
        centre = self._values(d.get("centre"), f"{where}.centre", -1)
        scale = self._number(d.get("scale"), f"{where}.scale")
        return Objective(kind, centre, scale, self._flag(d.get("set_to_none", True), f"{where}.set_to_none"))

    def _gradient(self, data: object, where: str, parameter: Parameter) -> Gradient:
        d = self._object(data, where)
        self._only(d, {"layout", "values", "sparse", "negated"}, where)
        layout = self._choice(d.get("layout"), GRADIENT_LAYOUTS, f"{where}.layout")
        shape, dtype = parameter.shape, parameter.dtype
        if layout == "channels_last" and len(shape) != 4:
            raise TraceError(f"{where}.layout: channels_last needs 4 dimensions, got {len(shape)}")
        if layout == "conjugated" and not is_complex(dtype):
            raise TraceError(f"{where}.layout: conjugated needs a complex dtype, got {dtype}")
        sparse = None if d.get("sparse") is None else self._sparse(d["sparse"], f"{where}.sparse", shape)
        named = shape if sparse is None else sparse.shape_of_values(shape)
        values = self._values(d.get("values"), f"{where}.values", math.prod(in_reals(named, dtype)))
        return Gradient(values, layout, sparse, self._flag(d.get("negated", False), f"{where}.negated"))

    def _sparse(self, data: object, where: str, shape: tuple[int, ...]) -> Sparse:
        d = self._object(data, where)
        self._only(d, {"entries", "dimensions", "coalesced"}, where)
        entries = tuple(
            self._integer(n, f"{where}.entries", 0, MAX_ELEMENTS)
            for n in self._list(d.get("entries"), f"{where}.entries", MAX_ELEMENTS)
        )
        dimensions = self._integer(d.get("dimensions"), f"{where}.dimensions", 1, MAX_DIMENSIONS)
        sparse = Sparse(entries, dimensions, self._flag(d.get("coalesced"), f"{where}.coalesced"))
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
        if isinstance(data, dict) and "tensor" in data:
            self._only(data, {"tensor"}, where)
            return Scalar(self._number(data["tensor"], where))
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
    def _flag(data: object, where: str) -> bool:
        if not isinstance(data, bool):
            raise TraceError(f"{where}: must be true or false")
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
