"""What a life is made of: parameters, groups, gradients, and all that can happen between two steps."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, TypeVar, get_args

from stepcheck.harness.life.fields import (
    FIRST,
    LATER,
    MAX_DIMENSIONS,
    MAX_ELEMENTS,
    MAX_OPTIONS,
    MAX_PARAMETERS,
    MAX_RUN,
    OF_A_PARAMETER,
    SPREAD,
    AtMost,
    OneOf,
    Within,
)
from stepcheck.harness.life.values import DTYPES, Array, Values, in_reals
from stepcheck.reference.spec import Value

T = TypeVar("T")

#: ``offset`` is contiguous as well, and a view that starts inside a larger buffer whoever plays it.
LAYOUTS = ("contiguous", "transposed", "sliced", "channels_last", "offset")
#: ``expanded`` repeats the first row (stride 0); ``conjugated`` is a lazy conjugate (torch's conjugate bit) of complex memory.
GRADIENT_LAYOUTS = (*LAYOUTS, "expanded", "conjugated")

#: How the parameters of a life are given to the constructor: a list (of tensors, or of the groups' dictionaries), a tuple, an iterator,
#: pairs of a name and a tensor, or dictionaries even where there is one group; ``mixed``, with every other option that all groups
#: have in common as a keyword, and the others in dictionaries.
FORMS = ("list", "tuple", "iterator", "named", "dicts", "mixed")
#: Keywords that select an implementation in classes of torch.optim, and in those that are written like them; what it computes is the same.
FLAGS = ("foreach", "fused", "capturable", "differentiable")
#: How the values of options are written; ``stepcheck.harness.life.spelling`` says what each is. None is for tensors: a tensor computes
#: otherwise than a number, so :class:`Scalar` says which options are some.
SPELLINGS = ("plain", "whole", "lists", "numpy")
#: What a closure gives back: the loss as a number or a tensor, nothing, a tensor whose gradients it computed by backward(), or one of ``LOSSES``.
CLOSURES = ("float", "tensor", "none", "backward", "zero", "negative", "nan")
#: The loss, where it is not of ordinary size; it is a tensor.
LOSSES = {"zero": 0.0, "negative": -0.75, "nan": math.nan}
#: Gradient scaling: unscaled within the scaler's step, or before it by the user.
SCALINGS = ("step", "unscale")
#: How a state goes from one optimizer to the next. The first four carry its state_dict to an optimizer built anew, the last two the
#: optimizer itself.
WAYS = ("memory", "saved", "deepcopied", "pickled", "copied", "unpickled")
#: No way at all: the optimizer stays. No trace is written with it; a life with a round trip is compared with the same one without.
STAYS = "stays"
#: The dictionary that is loaded: as it was saved; as older versions saved it, with numbers for counters and without the flags that
#: select an implementation; with other identifiers for parameters, in another order, and with entries of somebody else's; or as it is
#: after many more steps, up to where float32 or a 32-bit integer ceases to count them; of somebody's class, in the form in which torch's
#: own class saves it, or older versions of that did, where the numbers in it are the same.
DICTIONARIES = ("same", "older", "foreign", "aged", "aged to 2^24", "aged to 2^31", "torch's", "torch's older")
HOOKS = (
    "step_pre", "step_post", "state_dict_pre", "state_dict_post", "load_state_dict_pre", "load_state_dict_post",
)  # fmt: skip
#: Learning rate schedules of torch.optim.lr_scheduler; ``stepcheck.harness.life.schedules`` says with which arguments.
SCHEDULES = (
    "StepLR", "ExponentialLR", "LinearLR", "ConstantLR", "LambdaLR", "MultiplicativeLR", "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts", "PolynomialLR", "OneCycleLR", "CyclicLR", "ReduceLROnPlateau",
)  # fmt: skip
#: What a user does between steps. A parameter is ``written`` in place, as ``model.load_state_dict`` does, or ``swapped`` for another tensor
#: by its ``data``; the state is ``cleared``, ``replaced`` by another dictionary, or one parameter's is ``forgotten``; the state_dict is
#: ``kept``, and later loaded into the same optimizer (``rolled back``); a parameter is ``removed`` from the list in its group, or
#: ``appended`` to it again; the dictionary of a group is replaced by an equal one (``regrouped``).
HANDLINGS = (
    "written",
    "swapped",
    "cleared",
    "replaced",
    "forgotten",
    "kept",
    "rolled back",
    "removed",
    "appended",
    "regrouped",
)
#: Those that no one parameter is meant by.
OF_ALL = frozenset({"cleared", "replaced", "kept", "rolled back", "regrouped"})
#: The default dtype in which a step is taken, where it is not float32.
DEFAULT_DTYPES = ("float64 by default", "bfloat16 by default", "float16 by default")
#: In what surroundings a step is taken: gradients are disabled already; under CPU autocast; with another default dtype; its
#: gradients have a graph, as after ``backward(create_graph=True)``;
#: another optimizer of the class, over other parameters, has just stepped; torch may use more threads.
SURROUNDINGS = ("no_grad", "autocast", *DEFAULT_DTYPES, "graph", "another optimizer", "more threads")
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


@dataclass(frozen=True)
class Scalar:
    """An option given as a float32 tensor of no dimension, of this value."""

    value: float


Option = Value | Scalar


@dataclass(frozen=True)
class Parameter:
    """One parameter: shape, dtype and memory layout, and its first value.

    Attributes:
        within: an earlier parameter of the same shape and dtype, both of them ``sliced``, whose gaps this one's elements fill.
    """

    shape: Annotated[tuple[int, ...], AtMost(MAX_DIMENSIONS), Within(0, MAX_ELEMENTS)]
    dtype: Annotated[str, OneOf(DTYPES)] = "float32"
    layout: Annotated[str, OneOf(LAYOUTS)] = "contiguous"
    values: Values = Values()
    within: Annotated[int | None, Within(0, MAX_PARAMETERS), LATER] = None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Group:
    """Some parameters, by index, and the options given for them; an option not given keeps its default."""

    parameters: Annotated[tuple[int, ...], AtMost(MAX_PARAMETERS), OF_A_PARAMETER]
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Sparse:
    """Which entries a sparse gradient names.

    Attributes:
        entries: indices into the first ``dimensions`` dimensions, counted row-major, one for each row of values.
        coalesced: the tensor says that its entries are sorted and none is named twice.
    """

    entries: Annotated[tuple[int, ...], AtMost(MAX_ELEMENTS), Within(0, MAX_ELEMENTS)]
    dimensions: Annotated[int, Within(1, MAX_DIMENSIONS)] = 1
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
    layout: Annotated[str, OneOf(GRADIENT_LAYOUTS), FIRST] = "contiguous"
    sparse: Annotated[Sparse | None, LATER] = None
    negated: Annotated[bool, LATER] = False

    def realise(self, shape: tuple[int, ...], dtype: str) -> Array:
        """Its real numbers: of a sparse gradient, those of the entries that it names."""
        named = shape if self.sparse is None else self.sparse.shape_of_values(shape)
        values = self.values.realise(in_reals(named, dtype))
        return -values if self.negated else values


#: Functions of a parameter's distance from a centre; ``stepcheck.harness.life.objectives`` says what each is.
OBJECTIVES = (
    "quadratic", "quartic", "rosenbrock", "saddle", "linear", "cliff", "log", "flat", "ripples", "saw", "edges", "kink", "waves",
)  # fmt: skip


@dataclass(frozen=True)
class Objective:
    """What a closure evaluates: the sum over all parameters of a function of their distance from a centre, times ``scale``.

    The centre of parameter i is drawn from ``centre`` with its seed increased by i.

    Attributes:
        set_to_none: as of :class:`ZeroGrad`: how the closure clears the gradients before it evaluates them anew.
    """

    kind: Annotated[str, OneOf(OBJECTIVES)] = "quadratic"
    centre: Values = Values()
    scale: float = 1.0
    set_to_none: Annotated[bool, LATER] = True


@dataclass(frozen=True)
class Step:
    """Assign gradients, then step. ``None`` takes the gradient away; a parameter not named keeps what it has.

    With an objective the step is given a closure, which evaluates it and its gradients.

    Attributes:
        closure: one of ``CLOSURES``: the gradients are assigned by a closure that the step is given; empty for none.
        scaling: one of ``SCALINGS``: the gradients are multiplied by the scale of a ``torch.amp.GradScaler``, which then steps
            (its scale is 2**16 at first, and doubles after two good steps); empty for none.
        within: one of ``SURROUNDINGS``; empty for none.
    """

    gradients: Mapping[int, Gradient | None] = field(default_factory=dict)
    objective: Annotated[Objective | None, LATER] = None
    closure: Annotated[str, OneOf(("", *CLOSURES)), LATER] = ""
    scaling: Annotated[str, OneOf(("", *SCALINGS)), LATER] = ""
    within: Annotated[str, OneOf(("", *SURROUNDINGS)), LATER] = ""


@dataclass(frozen=True)
class Run:
    """So many steps with the gradients that the parameters have, of which none is looked at."""

    steps: Annotated[int, Within(1, MAX_RUN)]


@dataclass(frozen=True)
class Handle:
    """What a user does to parameters, state and groups between two steps.

    Attributes:
        how: one of ``HANDLINGS``.
        parameter: the one that is meant, but for those of ``OF_ALL``.
        values: what is written, where something is.
    """

    how: Annotated[str, OneOf(HANDLINGS)]
    parameter: Annotated[int, OF_A_PARAMETER] = 0
    values: Values = Values()


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
    """``optimizer.param_groups[group][option] = value``, as a learning rate schedule does.

    Attributes:
        in_place: where a tensor stands there, that is filled with the value.
    """

    group: Annotated[int, Within(0, MAX_PARAMETERS)]
    option: str
    value: Option
    in_place: Annotated[bool, LATER] = False


@dataclass(frozen=True)
class Reload:
    """Go on with another optimizer over the same parameters, that has the state of this one.

    Attributes:
        way: one of ``WAYS``; all but the last two build an optimizer with default options, which loads the state_dict.
        dictionary: one of ``DICTIONARIES``.
        form: one of ``FORMS``: how the new optimizer is given its parameters.
        into: the implementation of the new optimizer, counted from the subject's own (see ``subjects.sibling``).
        afresh: the parameters are other tensors from here on, with the same values, as in a process that was started anew; a copy of the
            optimizer is made together with one of them.
    """

    way: Annotated[str, OneOf(WAYS), LATER] = "memory"
    dictionary: Annotated[str, OneOf(DICTIONARIES), LATER] = "same"
    form: Annotated[str, OneOf(FORMS), LATER] = "list"
    into: Annotated[int, Within(0, MAX_OPTIONS), LATER] = 0
    afresh: Annotated[bool, LATER] = False


@dataclass(frozen=True)
class AddGroup:
    """``optimizer.add_param_group(...)``, with parameters that stand in no group before."""

    group: Annotated[Group, SPREAD]


@dataclass(frozen=True)
class Freeze:
    """``parameter.requires_grad_(not frozen)``; what decides whether it is stepped is its gradient."""

    parameter: Annotated[int, OF_A_PARAMETER]
    frozen: bool = True


@dataclass(frozen=True)
class Hook:
    """Register a hook that counts its calls; a later optimizer of this life is given it as well."""

    kind: Annotated[str, OneOf(HOOKS)]


@dataclass(frozen=True)
class Schedule:
    """Attach a learning rate schedule, in place of any other."""

    kind: Annotated[str, OneOf(SCHEDULES)]


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

    kind: Annotated[str, OneOf(FAILURES)]
    parameter: Annotated[int, OF_A_PARAMETER] = 0


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
    place: Annotated[str, OneOf(PLACES)]
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

    how: Annotated[str, OneOf(SPOILINGS)]
    way: Annotated[str, OneOf(SPOILING_WAYS)] = "assigned"
    parameter: Annotated[int, OF_A_PARAMETER] = 0
    buffer: Annotated[int, Within(0, MAX_OPTIONS)] = 0


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
    | Run
    | Handle
)


#: Each kind of event, and its name in JSON.
EVENTS: dict[type[Event], str] = {
    Step: "step", Accumulate: "accumulate", ZeroGrad: "zero_grad", SetOption: "set_option", Reload: "reload",
    AddGroup: "add_group", Freeze: "freeze", Hook: "hook", Schedule: "schedule", ScheduleStep: "schedule_step", Fail: "fail",
    Refuse: "refuse", Spoil: "spoil", Run: "run", Handle: "handle",
}  # fmt: skip
assert set(EVENTS) == set(get_args(Event)), "each kind of event must have a name, and stand in the type of all of them"


def of_every_event(table: Mapping[type[Event], T]) -> dict[type[Event], T]:
    """What a room does with each kind of event, so that a new one is forgotten nowhere.

    Raises:
        TypeError: a kind of event has no entry, or an entry is of no kind of event.
    """
    if set(table) != set(EVENTS):
        lacking = ", ".join(kind.__name__ for kind in EVENTS if kind not in table) or "none"
        unknown = ", ".join(kind.__name__ for kind in table if kind not in EVENTS) or "none"
        raise TypeError(
            f"this table must have one entry for each kind of event in EVENTS: add {lacking}, remove {unknown}"
        )
    return dict(table)


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
