"""Draw traces with Hypothesis: one draw a trace, simplest choice first, so that what fails shrinks to what matters.

A trace is decoded from one string of random bytes, one or two for each choice from a table whose first entry is the simplest. So
a trace costs one draw instead of forty, zero bytes are the simplest life, and no two draws look alike to Hypothesis, which
would spend most of a small campaign on copying one part of a trace over another.

Inputs are directed, because faults hide: a wrong denominator shows in a parameter only where the parameter is no larger than
its update, and a misplaced eps only where the root of the second moment is near eps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeVar

from hypothesis import strategies as st

from stepcheck.harness.formats import FORMATS
from stepcheck.harness.subjects import Subject
from stepcheck.harness.trace import (
    OBJECTIVES,
    Event,
    Gradient,
    Group,
    Objective,
    Option,
    Parameter,
    Reload,
    SetOption,
    Sparse,
    Step,
    Trace,
    Values,
    ZeroGrad,
    is_complex,
    splitmix64,
)
from stepcheck.reference.spec import Domain, Hyper, HyperValues, Spec

# Sizes cross the widths of vector registers (4, 8, 16, 32 elements) and, at the end, a block of threads' work.
SHAPES: tuple[tuple[int, ...], ...] = (
    (1,), (2,), (3, 2), (), (0,), (5,), (7,), (2, 3, 2), (8,), (9,), (4, 4), (1, 17), (2, 0), (31,), (32,), (33,),
    (1, 2, 3, 2), (2, 3, 2, 2), (5, 13), (65,), (16, 9), (257,), (1031,),
)  # fmt: skip
# Where elements depend on each other: square, wide and tall matrices, batches of them.
_MATRICES: tuple[tuple[int, ...], ...] = (
    (2, 2), (3, 5), (8, 8), (5, 3), (17, 4), (4, 33), (2, 3, 3), (16, 16), (31, 17),
)  # fmt: skip


def _layouts(shape: tuple[int, ...]) -> tuple[str, ...]:
    """The layouts that differ for this shape, simplest first."""
    dimensions = sum(n > 1 for n in shape)
    if 0 in shape or dimensions == 0:
        return ("contiguous",)
    if dimensions == 1:
        return ("contiguous", "sliced")
    return ("contiguous", "transposed", "sliced") + (("channels_last",) if len(shape) == 4 else ())


@dataclass(frozen=True)
class _Kind:
    """A kind of tensor content: a recipe over a range that depends on the group's options and the dtype."""

    recipe: str
    scale: str


# "update": about the size of one update; "eps": around the group's eps; "tiny": the square is subnormal.
_PARAMETER_KINDS = tuple(
    _Kind(*k)
    for k in (
        ("constant", "zero"), ("quarters", "unit"), ("log", "update"), ("log", "update"), ("log", "unit"),
        ("sparse_log", "update"), ("log", "wide"),
    )
)  # fmt: skip
_GRADIENT_KINDS = tuple(
    _Kind(*k)
    for k in (
        ("quarters", "unit"), ("constant", "unit"), ("log", "unit"), ("log", "eps"), ("sparse_log", "eps"),
        ("constant", "zero"), ("log", "wide"), ("log", "tiny"), ("sparse_log", "unit"), ("log", "eps"),
        ("extremes", "wide"),
    )
)  # fmt: skip


def candidates(hyper: Hyper) -> tuple[Option, ...]:
    """Values of one hyperparameter: its default, near it, far from it, and both ends of its domain."""
    if hyper.is_flag:
        return (bool(hyper.default), not hyper.default)
    if hyper.choices:
        others = (*hyper.choices, *((None,) if hyper.optional else ()))
        return (hyper.default, *(c for c in others if c != hyper.default))
    if hyper.examples:
        return (hyper.default, *hyper.examples)
    domains = hyper.entry_domains()
    if isinstance(hyper.default, tuple):
        entries: list[tuple[float | None, ...]] = [
            _reals(d, domain) for d, domain in zip(hyper.default, domains, strict=True)
        ]
        # Ten to the power of three would be too many.
        entries = [e[:12] for e in entries] if len(entries) < 3 else [e[:4] for e in entries]
        if hyper.optional:
            entries[0] = (None, *(x for x in entries[0] if x is not None))
        return (hyper.default, *(p for p in itertools.product(*entries) if p != hyper.default))
    if hyper.integer:
        counts = (1, 2, 3, 5) if hyper.default is None else (int(hyper.default), 1, 2, 3, 4, 10)
        whole = tuple(dict.fromkeys(c for c in counts if c in domains[0]))
        return (None, *whole) if hyper.optional else whole
    return _reals(hyper.default, domains[0])


def _reals(default: Any, domain: Domain) -> tuple[float, ...]:
    at = 1e-6 if default is None else float(default)
    # A third has a long significand in every base: an implementation that shortens its options shows there.
    values = [at, domain.low, 0.5, 0.1, 1.0, 0.9, at * 4 / 3, 1 / 3, at * 1e-3, at * 1e3, 3.0, -0.5, -1.0]
    if math.isfinite(domain.high):
        values += [domain.high, domain.high - 2.0**-10, domain.high - 2.0**-20]
    return tuple(dict.fromkeys(v for v in values if math.isfinite(v) and v in domain))


def _few_iterations(
    spec: Spec, n: int, chosen: tuple[dict[str, Option], HyperValues]
) -> tuple[dict[str, Option], HyperValues]:
    options = chosen[0] | ({"max_iter": 1 + n % 4} if n % 40 else {})
    return options, spec.hyper_values(options)


#: A function, where its centre lies, and how it is scaled.
_OBJECTIVE_KINDS = tuple(
    (kind, _Kind(*centre), scale)
    for centre, scale in (
        (("constant", "zero"), 1.0), (("quarters", "unit"), 1.0), (("log", "unit"), 1.0), (("quarters", "unit"), 1e-3),
        (("log", "unit"), 30.0),
    )
    for kind in OBJECTIVES
)  # fmt: skip

_OPTION_SETS = 400


def option_sets(spec: Spec, values: Mapping[str, Sequence[Option]]) -> list[tuple[dict[str, Option], HyperValues]]:
    """Groups of options to choose from, fewest first: none (often), each alone, and a few hundred combinations.

    Args:
        values: the candidates for each option, its default first.

    Returns:
        Pairs of the options and the complete hyperparameters.
    """
    names = sorted(values)
    sets: list[dict[str, Option]] = [{}] * (_OPTION_SETS // 10)
    # A pair of betas has a hundred values and a flag one: no option gets more than its share of turns alone.
    sets += [{name: value} for name in names for value in values[name][1:13]]
    for n, words in enumerate(splitmix64(1, 32 * _OPTION_SETS).reshape(-1, 32) if names else ()):
        chosen = sorted(range(len(names)), key=lambda i: int(words[i]))[: 2 + n * 4 // _OPTION_SETS]
        sets.append({names[i]: values[names[i]][int(words[i] >> 20) % len(values[names[i]])] for i in chosen})
    return [(options, spec.hyper_values(options)) for options in (_without_conflict(spec, o) for o in sets)]


def _without_conflict(spec: Spec, options: dict[str, Option]) -> dict[str, Option]:
    """What conflicts (Nesterov without momentum) goes back to its default, the option named last first."""
    kept = dict(options)
    for name in reversed(options):
        if spec.problem(SimpleNamespace(**{**{h.name: h.default for h in spec.hyper}, **kept})) is None:
            break
        del kept[name]
    return kept


def _range(scale: str, hyper: HyperValues, dtype: str, eps_unit: str) -> tuple[float, float]:
    """The smallest and largest magnitude of a scale."""
    number = FORMATS[dtype]
    smallest = 2.0**number.min_exponent
    if scale == "unit":
        return 2.0**-7, 2.0
    if scale == "even":
        return 0.5, 1.0
    if scale == "update":
        lr = float(hyper.lr) or 1.0
        return max(lr * 2.0**-7, smallest), max(lr, smallest)
    if scale == "eps":
        eps = getattr(hyper, "eps", 1.0) or 1.0
        if isinstance(eps, tuple):  # Adafactor: the first bounds the denominator
            eps = eps[0] or 2.0 * number.unit_roundoff
        centre = math.sqrt(eps) if eps_unit.startswith("gradient units squared") else eps
        return max(centre * 1e-3, smallest), max(centre * 1e3, smallest)
    if scale == "tiny":
        root = math.sqrt(smallest)
        return root * 2.0**-10, root
    if scale == "wide":
        return smallest, number.largest / 4
    return 0.0, 0.0


@dataclass(frozen=True)
class _StepKind:
    """What all gradients of one step are like: content, layout, how many are late, gone or left over, and how sparse."""

    gradient: _Kind
    twist: int
    absence: int
    sparsity: str = ""


#: How a sparse gradient names its entries.
_SPARSITIES = ("coalesced", "uncoalesced", "duplicates", "empty", "every dimension")


@dataclass(frozen=True)
class _Tables:
    """One choice from each makes a parameter, and an event."""

    parameters: Sequence[tuple[tuple[int, ...], str, _Kind]]
    events: Sequence[_StepKind | str]


_T = TypeVar("_T")

#: Enough for a seed and for every choice of all but the longest lives; whatever is missing is chosen as the simplest.
_BYTES = 52


class _Choices:
    """Choices from tables, read off a string of bytes: one for a small table, two for a large one."""

    def __init__(self, data: bytes) -> None:
        self.data = iter(data)

    def pick(self, table: Sequence[_T]) -> _T:
        return table[self.number(1 if len(table) <= 32 else 2) % len(table)]

    def number(self, size: int) -> int:
        return sum(next(self.data, 0) << 8 * i for i in range(size))


class _Decoder:
    """The tables that traces of one subject are chosen from."""

    def __init__(self, subject: Subject, dtypes: Sequence[str]) -> None:
        spec = subject.spec
        self.spec: Spec = spec
        sparse = spec.sparse if subject.sparse else ""
        units = {h.name: h.unit for h in spec.hyper}
        self.eps_unit = units.get("eps", "")
        self.dtypes = tuple(dtypes)
        available = [h for h in spec.hyper if h.name in subject.options]
        self.reals = {h.name: candidates(h) for h in available}
        self.options = option_sets(spec, self.reals)
        self.schedulable = "lr" in self.reals
        if spec.products:
            # Rounding in the products outgrows what can be judged with their number: half the lives have few.
            self.options = [
                (o | {"ns_steps": 1 + n % 3}, spec.hyper_values(o | {"ns_steps": 1 + n % 3})) if n % 2 else (o, h)
                for n, (o, h) in enumerate(self.options)
            ]
        if spec.closure:
            # Its state is seen between steps, so most steps take few iterations.
            self.options = [_few_iterations(spec, n, o) for n, o in enumerate(self.options)]
        # Layouts that are not row-major are a third of the traces: a fault there must not hide all others.
        shapes = [s for s in (SHAPES if spec.elementwise else (*SHAPES, *_MATRICES)) if spec.shapes(s)]
        if sparse == "only":
            shapes = [s for s in shapes if s]
        if spec.products:
            shapes += [s for s in shapes if 0 not in s and min(s) < 10 and math.prod(s) < 100] * 3
        if spec.closure:
            shapes = [s for s in shapes if math.prod(s) < 100]  # sources of error are told apart, for each element
        parameter_kinds, gradient_kinds = _PARAMETER_KINDS, _GRADIENT_KINDS
        if not spec.elementwise:
            # One infinity spoils all elements here, and for good: such tensors are rarer.
            parameter_kinds = (*parameter_kinds, *(k for k in parameter_kinds * 3 if k.scale != "wide"))
            gradient_kinds = (*gradient_kinds, *(k for k in gradient_kinds * 5 if k.scale not in ("wide", "tiny")))
        if spec.products:
            # Singular values within a factor of ten or so of each other.
            gradient_kinds = (
                *gradient_kinds,
                *(_Kind("log", "even"), _Kind("quarters", "unit")) * (len(gradient_kinds) // 2),
            )
        plain = [(s, "contiguous", k) for s in shapes for k in parameter_kinds]
        strided = [(s, layout, k) for s, _, k in plain for layout in _layouts(s)]
        steps = [_StepKind(k, 0, absence) for absence in (0, 0, 0, 1, 2) for k in gradient_kinds]
        twisted = [_StepKind(k, n % 5, s.absence) for n, (s, k) in enumerate(itertools.product(steps, gradient_kinds))]
        # Sparse gradients are a third of the steps of half the traces, where the optimizer takes them, and the others.
        named = [replace(s, sparsity=_SPARSITIES[n % len(_SPARSITIES)]) for n, s in enumerate(steps * 2)]
        if sparse == "only":
            steps = twisted = named
        # No dimension of length 0 beside a sparse one: torch 2.13 dereferences a null pointer there.
        whole = [(s, layout, k) for s, layout, k in plain if 0 not in s]
        named_from = [(s, "offset" if n % 8 == 3 else "sliced" if n % 8 == 7 else layout, k)
                      for n, (s, layout, k) in enumerate(whole)]  # fmt: skip
        if sparse == "only":
            plain = strided = named_from
        # Steps are about three quarters of the events.
        rest = ["zero_grad", "zero_grad_in_place", "set_lr", "reload"]
        self.tables = {
            "plain": _Tables(plain, [*steps, *(rest * (len(steps) // 12))]),
            "strided": _Tables(strided, [*twisted, *(rest * (len(twisted) // 12))]),
            "sparse": _Tables(named_from, [*steps, *named, *(rest * (len(steps) // 6))]),
        }
        # One dtype throughout, or all of them in turn.
        self.dtype = [*((d,) for d in self.dtypes), self.dtypes]
        self.world: tuple[str, ...] = (
            ("plain", "plain", "strided") if sparse in ("", "only") else ("plain", "sparse", "strided")
        )
        # How many parameters each group has.
        few: tuple[tuple[int, ...], ...] = ((1,), (1,), (2,), (1, 1), (2,), (1, 1))
        self.groups = (*few, (3,), (2, 1), (1, 1, 1), (4,), (1, 2, 1))
        self.costly = subject.cost > 9
        if self.costly:
            # A new layout, or a gradient more or less, is compiled anew. The last events let each check look at something.
            self.world = ("plain",) * 7 + ("strided",)
            self.groups = ((1,), (2,), (1, 1))
        if spec.closure:
            self.groups = ((1,), (1,), (2,), (3,))
            self.dtype = [(d,) for d in self.dtypes]  # one vector of all parameters has one dtype
        self.events = range(3, 5) if self.costly else range(5, 9)
        self.lr = self.reals.get("lr", (0.0,))

    def decode(self, data: bytes) -> Trace:
        choices = _Choices(data)
        draw = choices.pick
        counter = itertools.count(choices.number(4) << 12)
        tables, dtypes = self.tables[draw(self.world)], draw(self.dtype)
        parameters: list[Parameter] = []
        groups: list[Group] = []
        hypers: list[HyperValues] = []
        owner: list[int] = []
        for g, size in enumerate(draw(self.groups)):
            options, hyper = draw(self.options)
            if tables is self.tables["sparse"] and self.spec.sparse_conflict(hyper) is not None:
                options, hyper = self.options[0]
            members = []
            for _ in range(size):
                shape, layout, kind = draw(tables.parameters)
                dtype = dtypes[len(parameters) % len(dtypes)]
                members.append(len(parameters))
                owner.append(g)
                parameters.append(Parameter(shape, dtype, layout, self._values(kind, hyper, dtype, next(counter))))
            groups.append(Group(tuple(members), options))
            hypers.append(hyper)

        events: list[Event] = []
        objective = self._objective(choices, hypers[0], parameters[0].dtype, counter) if self.spec.closure else None
        for _ in range(draw(self.events)):
            what = draw(tables.events)
            if isinstance(what, _StepKind) and objective is not None:
                if what.absence:  # another batch of data, another function
                    objective = self._objective(choices, hypers[0], parameters[0].dtype, counter)
                events.append(Step({}, objective))
            elif isinstance(what, _StepKind):
                events.append(self._step(what, parameters, hypers, owner, counter))
            elif what == "reload":
                events.append(Reload())
            elif what == "set_lr" and self.schedulable:
                group, lr = draw(range(len(groups))), draw(self.lr)
                if self.spec.problem(SimpleNamespace(**{**vars(hypers[group]), "lr": lr})) is None:
                    events.append(SetOption(group, "lr", lr))
            elif what == "zero_grad_in_place" and not _holds_expanded(events):
                events.append(ZeroGrad(set_to_none=False))
            else:
                events.append(ZeroGrad(set_to_none=True))
        if self.costly:
            ordinary = next(e for e in tables.events if isinstance(e, _StepKind))
            step = self._step(ordinary, parameters, hypers, owner, counter)
            events += [Reload(), step, ZeroGrad(set_to_none=True), Step({})]
        return Trace(self.spec.name, tuple(parameters), tuple(groups), tuple(events))

    def _objective(self, choices: _Choices, hyper: HyperValues, dtype: str, counter: itertools.count[int]) -> Objective:
        kind, centre, scale = choices.pick(_OBJECTIVE_KINDS)
        return Objective(kind, self._values(centre, hyper, dtype, next(counter)), scale)

    def _values(self, kind: _Kind, hyper: HyperValues, dtype: str, seed: int) -> Values:
        low, high = _range(kind.scale, hyper, dtype, self.eps_unit)
        return Values(kind.recipe, seed, low, high)

    def _step(
        self,
        what: _StepKind,
        parameters: list[Parameter],
        hypers: list[HyperValues],
        owner: list[int],
        counter: itertools.count[int],
    ) -> Step:
        gradients: dict[int, Gradient | None] = {}
        for i, p in enumerate(parameters):
            seed = next(counter)
            fate = int(splitmix64(seed ^ what.absence, 1)[0] >> 62) if what.absence else 3
            if fate == 0:
                gradients[i] = None
            elif fate > 1:  # at 1 the parameter keeps the gradient that it has
                layouts = _gradient_layouts(p.shape, p.dtype)
                values = self._values(what.gradient, hypers[owner[i]], p.dtype, seed)
                sparse = _named(what.sparsity, p.shape, seed)
                layout = "contiguous" if sparse else layouts[what.twist % len(layouts)]
                gradients[i] = Gradient(values, layout, sparse)
        return Step(gradients)


def _named(sparsity: str, shape: tuple[int, ...], seed: int) -> Sparse | None:
    """Entries for a sparse gradient, chosen by a seed; none of a dense one, or of a number."""
    if not sparsity or not shape:
        return None
    dimensions = len(shape) if sparsity == "every dimension" else 1
    most = math.prod(shape[:dimensions])
    if sparsity == "empty" or not most:
        return Sparse((), dimensions)
    words = [int(w >> 32) for w in splitmix64(seed, min(2 * most, 12))]
    drawn = [w % most for w in words]
    if sparsity == "duplicates":
        return Sparse(tuple(drawn), dimensions)
    unique = tuple(dict.fromkeys(drawn[: 1 + most // 2]))
    return (
        Sparse(tuple(sorted(unique)), dimensions, coalesced=True)
        if sparsity == "coalesced"
        else Sparse(unique, dimensions)
    )


@functools.cache
def _gradient_layouts(shape: tuple[int, ...], dtype: str) -> tuple[str, ...]:
    repeats = any(n > 1 for n in shape[:1]) and 0 not in shape
    conjugate = ("conjugated",) if is_complex(dtype) else ()
    return _layouts(shape) + (("expanded",) if repeats else ()) + conjugate


def _holds_expanded(events: list[Event]) -> bool:
    """Whether a gradient may still be expanded, which zero_grad cannot fill in place."""
    return any(
        g is not None and g.layout == "expanded" for e in events if isinstance(e, Step) for g in e.gradients.values()
    )


def traces(subject: Subject, dtypes: Sequence[str]) -> st.SearchStrategy[Trace]:
    """A strategy for traces that ``subject`` can play: only options that it has, only ``dtypes``."""
    return st.binary(min_size=_BYTES, max_size=_BYTES).map(_Decoder(subject, dtypes).decode)


#: Traces in one draw. Most of what a draw costs is Hypothesis's own account of it, whatever it holds.
PAGE = 16


def pages(subject: Subject, dtypes: Sequence[str]) -> st.SearchStrategy[list[Trace]]:
    """As ``traces``, several in a draw; equal ones (the first draw is all zeros) once."""
    decode = _Decoder(subject, dtypes).decode

    def cut(data: bytes) -> list[Trace]:
        return [decode(d) for d in dict.fromkeys(data[n : n + _BYTES] for n in range(0, len(data), _BYTES))]

    return st.binary(min_size=PAGE * _BYTES, max_size=PAGE * _BYTES).map(cut)
