"""Random traces, simplest choice first, so that what fails shrinks to what matters.

A trace is decoded from one string of bytes that Hypothesis draws, one or two for each choice from a table whose first entry is
the simplest: zero bytes are the simplest life. A campaign draws the bytes of many traces at once, by a key of which they are made,
because an example of Hypothesis costs as much as a trace.

Inputs are directed, because faults hide: a wrong denominator shows in a parameter only where the parameter is no larger than
its update, and a misplaced eps only where the root of the second moment is near eps.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import torch
from hypothesis import strategies as st

from stepcheck.harness.life.events import (
    DICTIONARIES,
    FORMS,
    HOOKS,
    OBJECTIVES,
    SCHEDULES,
    SPOILING_WAYS,
    SPOILINGS,
    WAYS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Group,
    Hook,
    Objective,
    Option,
    Parameter,
    Reload,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Sparse,
    Spoil,
    Step,
    ZeroGrad,
    plain,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values, is_complex, splitmix64, splitmix64_word
from stepcheck.harness.numbers.formats import FORMATS
from stepcheck.harness.play.resume import counts
from stepcheck.harness.play.signature import inherits
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.spec import Domain, Hyper, HyperValues, Spec

# Sizes cross the widths of vector registers (4, 8, 16, 32 elements) and, at the end, a block of threads' work.
SHAPES: tuple[tuple[int, ...], ...] = (
    (1,), (2,), (3, 2), (), (0,), (5,), (0,), (7,), (2, 3, 2), (8,), (9,), (4, 4), (1, 17), (2, 0), (31,), (32,), (33,),
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


# "update": about the size of one update; "eps": around the group's eps; "tiny": the square is subnormal; "large": its square does not
# overflow, and it dwarfs an update.
_PARAMETER_KINDS = tuple(
    _Kind(*k)
    for k in (
        ("constant", "zero"), ("quarters", "unit"), ("log", "update"), ("log", "update"), ("log", "unit"),
        ("sparse_log", "update"), ("log", "wide"), ("extremes", "wide"),
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


#: Tolerances that decide: about as large as gradients, moves and losses here are, and 0, which some of them are exactly.
_TOLERANCES = {
    "tolerance_grad": (0.1, 2.0**-4, 1.0, 2.0**-10, 1 / 3, 0.0, 0.5, 3.0),
    "tolerance_change": (2.0**-4, 0.1, 1 / 3, 2.0**-5, 0.0, 2.0**-7, 0.2, 2.0**-10, 0.5),
}
#: From a tolerance of this on, a function is mostly scaled such that gradients and losses are about as large as that.
_DECIDING = 2.0**-7
#: Evaluations that a step with a line search is given: enough for that to end by itself, or so few that it runs out on the way.
_MAX_EVALS = (8, 2, 40, 3, 12, 25, 5, 40)
#: More are enough for a bracket to become narrow.
_BRIEF = 12
#: A first trial so short that others are extrapolated, brackets are narrow, and parameters no longer move.
_SHORT = 2.0**-12
#: Evaluations that end no step of few iterations with a fixed length. A fourth more than its iterations end it before its tests do.
_ENOUGH = 8
#: Iterations a step.
_MAX_ITERS = (1, 2, 3, 4, 2, 3)
#: Elements of a parameter where there are more iterations: what they take to judge grows with the square of it.
_SMALL = 9


def _few_iterations(
    spec: Spec, n: int, chosen: tuple[dict[str, Option], HyperValues], available: Mapping[str, Sequence[Option]]
) -> tuple[dict[str, Option], HyperValues]:
    """Few iterations a step; line searches, where most can go wrong, in two thirds of the sets, and tolerances that decide in most."""
    options = dict(chosen[0])
    if n % 40 and "max_iter" in available:
        # After the only iteration of a step no tolerance decides.
        options["max_iter"] = max(_MAX_ITERS[n % len(_MAX_ITERS)], 2 if n % 8 else 1)
    searches = n // 4 % 3 and {"line_search_fn", "max_eval"} <= available.keys()
    evaluations = _MAX_EVALS[n // 16 % len(_MAX_EVALS)]
    if searches:
        options |= {"line_search_fn": "strong_wolfe", "max_eval": evaluations}
    elif n // 16 % 2 and "max_eval" in available:
        options["max_eval"] = _ENOUGH
    others: dict[str, Option] = {}
    if searches and n % 4 == 3:
        others |= {"lr": _SHORT, "tolerance_grad": 0.0, "tolerance_change": 0.0}
    elif n % 8:
        name = tuple(_TOLERANCES)[n % 2]
        others[name] = _TOLERANCES[name][n // 12 % len(_TOLERANCES[name])]
        if name == "tolerance_change" and n // 4 % 2:
            others["lr"] = 0.25  # which moves and changes less than the slope alone would
    if searches and evaluations > _BRIEF:
        others["tolerance_change"] = 0.0  # a search that ends in a narrow bracket often moves no further than that
    options |= {name: value for name, value in others.items() if name in available}
    options = _without_conflict(spec, options)
    if _is_derived(spec.hyper_values(options)):
        del options["max_eval"]
    return options, spec.hyper_values(options)


def _is_derived(hyper: HyperValues) -> bool:
    """Whether ``max_eval`` is given as what follows from ``max_iter``: after a round trip it cannot be told from left open."""
    return hyper.max_eval is not None and hyper.max_eval == hyper.max_iter * 5 // 4


def _objectives(kinds: Sequence[str]) -> tuple[tuple[str, _Kind, float], ...]:
    """A function, where its centre lies, and how it is scaled."""
    return tuple(
        (kind, _Kind(*centre), scale)
        for centre, scale in (
            (("constant", "zero"), 1.0), (("quarters", "unit"), 1.0), (("log", "unit"), 1.0),
            (("quarters", "unit"), 2.0**-10), (("log", "unit"), 30.0), (("log", "unit"), 2.0**-13),
            (("quarters", "unit"), 30.0),
        )
        for kind in kinds
    )  # fmt: skip


#: Of these, gradients and losses are of any size wherever one goes, and moves with them: tolerances decide.
_OBJECTIVE_KINDS = _objectives((*OBJECTIVES, *["ripples", "waves"] * 2))
#: Few others keep a line search in zoom.
_SEARCHED_KINDS = _objectives((*OBJECTIVES, *["ripples", "saw", "edges", "waves", "kink"] * 3, "edges", "edges", "log"))
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
    switches = _switches(spec, values)
    for n in range(1, len(sets) if switches else 0, 2):
        # An optimizer that remembers nothing has little to get wrong: half of the groups have a buffer more than by default.
        sets[n] = switches[n // 2 % len(switches)] | sets[n]
    return [(options, spec.hyper_values(options)) for options in (_without_conflict(spec, o) for o in sets)]


def _switches(spec: Spec, values: Mapping[str, Sequence[Option]]) -> list[dict[str, Option]]:
    """Options that by themselves give a parameter a buffer that it has not by default."""
    default = spec.hyper_values()
    absent = [b for b in spec.buffers if not b.present(default)]
    alone = [{name: value} for name in sorted(values) for value in values[name][1:]]
    ways = ((o, SimpleNamespace(**{**vars(default), **plain(o)})) for o in alone if absent)
    return [o for o, hyper in ways if spec.problem(hyper) is None and any(b.present(hyper) for b in absent)]


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
    if scale == "large":
        return 2.0**10, min(2.0**40, number.largest / 16)
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
    steps: Sequence[_StepKind]


_T = TypeVar("_T")

#: Enough for a seed and for every choice of all but the longest lives; whatever is missing is chosen as the simplest.
TRACE_BYTES = 128

#: What may stand between steps, the commonest named more often.
_BETWEEN = (
    "zero_grad", "zero_grad_in_place", "zero_grad_in_place", "set_lr", "set_lr", "reload", "reload", "reload", "reload", "reload", "set_option", "set_option", "set_option", "add_group", "freeze", "freeze",
    "hook", "schedule", "schedule_step", "schedule_step", "fail", "fail", "accumulate",
)  # fmt: skip
#: One life of so many ends with malformed state, beside the one that is sure to.
_SPOILT_EVERY = 16
#: What that one holds beside what is drawn: most that goes wrong shows with one of these.
_TELLING = ("a row short", "of half the elements", "column-major", "strided")
#: How a step is made: most are made plainly.
_MANNERS: tuple[tuple[str, str], ...] = (
    ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", ""), ("", "step"),
    ("float", ""), ("tensor", ""), ("none", ""), ("backward", ""), ("", "unscale"),
)  # fmt: skip


class _Choices:
    """Choices from tables, read off a string of bytes: one for a small table, two for a large one."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def pick(self, table: Sequence[_T]) -> _T:
        return table[self.number(1 if len(table) <= 32 else 2) % len(table)]

    def number(self, size: int) -> int:
        at, self.at = self.at, self.at + size
        return int.from_bytes(self.data[at : at + size], "little")


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
        self.accepts, self.leaves_open = subject.accepts, subject.leaves_open
        self.reals = {h.name: self._values_of(subject, h) for h in available}
        if spec.closure:
            self.reals |= {name: (c[0], *_TOLERANCES[name]) for name, c in self.reals.items() if name in _TOLERANCES}
        self._hyper = {h.name: h for h in available}
        self.options = [(o, h) for o, h in option_sets(spec, self.reals) if subject.accepts(o)] or [
            ({}, spec.hyper_values())
        ]
        self.shared = subject.constructor_only
        self.schedulable = "lr" in self.reals and "lr" not in self.shared
        if spec.products and "ns_steps" in self.reals:
            # Rounding in the products outgrows what can be judged with their number: half the lives have few.
            self.options = [
                (o | {"ns_steps": 1 + n % 3}, spec.hyper_values(o | {"ns_steps": 1 + n % 3})) if n % 2 else (o, h)
                for n, (o, h) in enumerate(self.options)
            ]
        if spec.closure:
            # Its state is seen between steps, so most steps take few iterations.
            self.options = [_few_iterations(spec, n, o, self.reals) for n, o in enumerate(self.options)]
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
            # Beside what rounding in the products may cost, a parameter shows its decay where it is large.
            parameter_kinds = (*parameter_kinds, *(_Kind("log", "large"),) * (len(parameter_kinds) // 6))
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
        rest = self.between = [name for name in _BETWEEN if self._makes_sense(subject, name)]
        often = len(steps) // (3 * len(rest)) or 1
        self.tables = {
            "plain": _Tables(plain, [*steps, *(rest * often)], steps),
            "strided": _Tables(strided, [*twisted, *(rest * (len(twisted) // (3 * len(rest))))], twisted),
            "sparse": _Tables(named_from, [*steps, *named, *(rest * (2 * often))], [*steps, *named]),
        }
        # One dtype throughout, or all of them in turn.
        self.dtype = [*((d,) for d in self.dtypes), self.dtypes]
        self.world: tuple[str, ...] = (
            ("plain", "plain", "strided") if sparse in ("", "only") else ("plain", "sparse", "strided")
        )
        # How many parameters each group has.
        small: tuple[tuple[int, ...], ...] = ((1,), (1,), (2,), (1, 1), (2,), (1, 1))
        self.groups = (*small, (3,), (2, 1), (1, 1, 1), (4,), (1, 2, 1))
        self.costly = subject.cost > 9
        if self.costly:
            # A new layout, or a gradient more or less, is compiled anew. The last events let each check look at something.
            self.world = ("plain",) * 7 + ("strided",)
            self.groups = ((1,), (2,), (1, 1))
        if spec.closure:
            self.groups = ((1,), (1,), (2,), (3,))
            self.dtype = [(d,) for d in self.dtypes]  # one vector of all parameters has one dtype
        if subject.one_group and not spec.closure:
            self.groups = tuple(g for g in self.groups if len(g) == 1)
        # A few are longer: there are rules that change after some steps.
        self.events: Sequence[int] = range(3, 5) if self.costly else (5, 6, 7, 8, 5, 6, 7, 12)
        if spec.closure:  # a step alone is not often one that shows something, and there is little else in a life
            self.events = [2 * n for n in self.events]
        self.lr = self.reals.get("lr", (0.0,))
        # Somebody's class may be no descendant of torch's, and has no older versions.
        descends = not subject.explicit or (
            inspect.isclass(subject.make) and issubclass(subject.make, torch.optim.Optimizer)
        )
        saves_as_torch = not subject.explicit or inherits(subject.make, "state_dict")
        self.forms: Sequence[str] = ("list",) * 4 + FORMS if descends and not self.costly else ("list",)
        ways = WAYS[:1] if subject.differentiable or self.costly else (*WAYS[:1], *WAYS)
        dictionaries: tuple[str, ...] = DICTIONARIES
        if self.costly or not (descends and saves_as_torch):  # whose state_dict need not have torch's form
            dictionaries = ("same",)
        elif subject.explicit:
            dictionaries = ("same", "aged", "foreign", "aged")
        if not counts(spec):
            dictionaries = tuple(d for d in dictionaries if d != "aged")
        self.reloads = [
            Reload(way, dictionary, form, into)
            for way in ways
            for dictionary in (dictionaries if way not in ("copied", "unpickled") else ("same",) * len(dictionaries))
            for form in self.forms[-2:]
            for into in ((0, 0, 1, 2, 3) if subject.mode and not self.costly else (0,))
        ]
        self.failures = [
            *("closure", "hook"),
            # What somebody's class does with gradients that torch refuses is theirs to say.
            *(() if spec.closure or subject.explicit else ("gradient",)),
            *(() if spec.closure or subject.explicit or subject.differentiable else ("dtype",)),
        ]
        # Last of all in one life of so many, and in the one that a step must fail in: it takes as long as a few lives.
        self.spoils = not (spec.closure or subject.differentiable or self.costly)
        # Values to set later; of a closure's iterations, few here too.
        self.set_later = {
            name: _MAX_ITERS[:4] if spec.closure and name == "max_iter" else values
            for name, values in self.reals.items()
            if name != "lr" and not self._hyper[name].at_construction and name not in self.shared
        }
        self.tensor_lr = subject.tensor_lr
        # GradScaler refuses to unscale float16 itself, and leaves it to a step that says that it does.
        self.scales_narrow = subject.mode == "fused" or any(
            getattr(subject.make, name, False) for name in ("_step_supports_amp_scaling", "_unscales")
        )
        self.manners: Sequence[tuple[str, str]] = _MANNERS if not (self.costly or spec.closure) else (("", ""),)

    @staticmethod
    def _values_of(subject: Subject, hyper: Hyper) -> tuple[Option, ...]:
        """The values of an option that the subject takes, its default first: that is passed whether it is taken or not."""
        default, *others = candidates(hyper)
        taken = (c for c in others if not subject.refuses(hyper.name, c) and subject.accepts({hyper.name: c}))
        return (default, *taken)

    def problem_of(self, option: str, value: Any) -> str | None:
        """Why a value of one option is refused whatever the others are, or ``None``."""
        return self._hyper[option].problem(value)

    def _makes_sense(self, subject: Subject, event: str) -> bool:
        """Whether something can stand between steps of this subject."""
        if subject.cost > 9:
            return event in ("zero_grad", "set_lr", "reload")
        if event == "add_group" and subject.one_group:
            return False
        if subject.spec.closure:
            return event not in ("add_group", "accumulate")
        if event == "accumulate":
            return subject.spec.sparse != "only"
        return event != "freeze" or not subject.differentiable

    def decode(self, data: bytes, essential: str = "") -> Trace:
        """A trace.

        Args:
            essential: one of ``ESSENTIALS`` that it must contain, where the subject has it.
        """
        return _Decoding(self, data, essential).trace()


#: What a campaign's first lives contain one each, so that every check finds something to look at.
ESSENTIALS = (
    "reload", "hook", "hooked reload", "fail", "scaled", "skipped", "closure", "add_group", "maximize", "zero_grad", "zero_grad_in_place", "absent", "two parameters", "schedule",
    "set_lr", "freeze", "accumulate", "set_option",
)  # fmt: skip


class _Decoding:
    """One life as it is decoded."""

    def __init__(self, of: _Decoder, data: bytes, essential: str) -> None:
        self.of, self.spec, self.essential = of, of.spec, essential
        self.choices = _Choices(data)
        self.draw = self.choices.pick
        self.counter = itertools.count(self.choices.number(4) << 12)
        self.tables, self.dtypes = of.tables[self.draw(of.world)], self.draw(of.dtype)
        if essential in ("scaled", "skipped"):  # there torch.amp.GradScaler takes any optimizer's gradients
            self.dtypes = tuple(d for d in of.dtypes if d in ("float32", "float64"))[:1] or self.dtypes
        self.parameters: list[Parameter] = []
        self.groups: list[Group] = []
        self.hypers: list[HyperValues] = []
        self.owner: list[int] = []
        self.events: list[Event] = []
        self.objective: Objective | None = None

    def trace(self) -> Trace:
        sizes = self.draw(self.of.groups)
        if self.essential == "two parameters":
            sizes = (2,)
        elif self.essential == "add_group":
            sizes = (1,)
        for size in sizes:
            self.groups.append(self._group(size))
        form = self.draw(self.of.forms)
        if self.spec.closure:
            self.objective = self._objective()
        at_first = tuple(self.groups)
        number = self.draw(self.of.events)
        # In half the lives something happens between any two steps: a fault may need two such events, and a step after them.
        eventful = self.choices.number(1) % 2 == 1 and not self.of.costly
        for n in range(number):
            steps_or_all: Sequence[_StepKind | str] = self.tables.steps if eventful else self.tables.events
            what = self.draw(self.of.between if eventful and n % 2 else steps_or_all)
            if self.essential == "hooked reload" and n in (1, 3):
                self.events += [Hook(kind) for kind in HOOKS] if n == 1 else [Reload()]
            if n == 1 and self.essential in self.of.between:
                what = self.essential
            if n % 2 == 0 and self.essential:
                what = next(e for e in self.tables.events if isinstance(e, _StepKind) and e.absence == 0)
            self._event(what, n)
        if self.of.costly:
            ordinary = next(e for e in self.tables.events if isinstance(e, _StepKind))
            self.events += [Reload(), self._step(ordinary), ZeroGrad(set_to_none=True), Step({})]
        if self.of.spoils and (self.choices.number(1) % _SPOILT_EVERY == 1 or self.essential == "fail"):
            self.events += self._spoil()
        return Trace(self.spec.name, tuple(self.parameters), at_first, tuple(self.events), form)

    def _group(self, size: int) -> Group:
        options, hyper = self.draw(self.of.options)
        if self.tables is self.of.tables["sparse"] and self.spec.sparse_conflict(hyper) is not None:
            options, hyper = self.of.options[0]
        options, from_table = dict(options), options
        if self.groups:  # what no group has is given once, for all of them
            options = {k: v for k, v in options.items() if k not in self.of.shared}
            options |= {k: v for k, v in self.groups[0].options.items() if k in self.of.shared}
            if self.spec.problem(SimpleNamespace(**{**vars(self.spec.hyper_values()), **plain(options)})) is not None:
                options = dict(self.groups[0].options)
        if self.essential == "fail" and self.of.spoils and not self._keeps_state(hyper):
            options, hyper = next(((dict(o), h) for o, h in self.of.options if self._keeps_state(h)), (options, hyper))
            from_table = options
        if self.essential == "maximize" and "maximize" in self.of.reals:
            options["maximize"] = True
        if self.of.tensor_lr and self.choices.number(1) % 8 == 7:
            options["lr"] = _tensor(hyper.lr)
        first = self.groups[0].options.get("lr") if self.groups else None
        if isinstance(first, Scalar) and self.choices.number(1) % 2:
            options["lr"] = first  # then it is given once, for all groups
        members: list[int] = []
        if options != from_table:
            hyper = self.spec.hyper_values(plain(options))
        for _ in range(size):
            shape, layout, kind = self.draw(self.tables.parameters)
            if self.parameters and self.choices.number(1) % 4 == 3:
                # Parameters alike, as layers are: state that goes to the wrong one fits it.
                shape, layout = self.parameters[0].shape, self.parameters[0].layout
            if self.essential and not math.prod(shape):
                shape, layout, _ = next(p for p in self.tables.parameters if math.prod(p[0]))
            if self.essential == "fail" and self.of.spoils and min(shape, default=0) < 2:
                shape, layout, _ = next(p for p in self.tables.parameters if len(p[0]) > 1 and min(p[0]) > 1)
            if self.spec.closure and hyper.max_iter > max(_MAX_ITERS) and math.prod(shape) > _SMALL:
                shape, layout = (_SMALL,), "contiguous"
            members += self._parameter(shape, layout, kind, hyper)
            if layout == "sliced" and self.choices.number(1) % 4 == 3:
                members += self._parameter(shape, layout, kind, hyper, within=members[-1])
        self.hypers.append(hyper)
        return Group(tuple(members), options)

    def _keeps_state(self, hyper: HyperValues) -> bool:
        """Whether there is a buffer with an element for each of a parameter."""
        shape = (3, 2)
        return any(b.present(hyper) and b.shape(shape) == shape for b in self.spec.buffers)

    def _parameter(
        self, shape: tuple[int, ...], layout: str, kind: _Kind, hyper: HyperValues, within: int | None = None
    ) -> list[int]:
        index = len(self.parameters)
        dtype = self.dtypes[index % len(self.dtypes)] if within is None else self.parameters[within].dtype
        values = self._values(kind, hyper, dtype, next(self.counter))
        self.owner.append(len(self.groups))
        self.parameters.append(Parameter(shape, dtype, layout, values, within))
        return [index]

    def _event(self, what: _StepKind | str, number: int) -> None:
        if isinstance(what, _StepKind) and self.spec.closure:
            if what.absence:  # another batch of data, another function
                self.objective = self._objective()
            self.events.append(Step({}, self.objective))
        elif isinstance(what, _StepKind):
            self.events.append(self._step(what, number))
        else:
            made = getattr(self, f"_{what}")()
            self.events += made if isinstance(made, list) else [made] if made is not None else []

    # One method for each kind of event between steps; it may find that there is nothing to do.

    def _zero_grad(self) -> Event:
        return ZeroGrad(set_to_none=True)

    def _zero_grad_in_place(self) -> Event:
        return ZeroGrad(set_to_none=_holds_expanded(self.events))

    def _set_lr(self) -> Event | None:
        if not self.of.schedulable:
            return None
        group, lr = self.draw(range(len(self.groups))), self.draw(self.of.lr)
        as_tensor = self.of.tensor_lr and self.choices.number(1) % 8 == 7
        return self._set(group, "lr", _tensor(lr) if as_tensor and isinstance(lr, float) else lr)

    def _set_option(self) -> list[Event]:
        if not self.of.set_later:
            return []
        group, name = self.draw(range(len(self.groups))), self.draw(list(self.of.set_later))
        # Each of them takes turns too seldom to show where an optimizer goes by its first value: often several are set at once.
        names = [n for n in self.of.set_later if self.choices.number(1) % 2] if self.choices.number(1) % 2 else [name]
        return [event for name in names for event in self._set_to_another(group, name)]

    def _set_to_another(self, group: int, name: str) -> list[Event]:
        value, now = self.draw(self.of.set_later[name]), getattr(self.hypers[group], name)
        # What is left open is filled in by the constructor alone; what is there already shows nothing.
        others = [v for v in self.of.set_later[name] if v is not None and v != now]
        if not others:
            return []
        value = others[0] if value is None or value == now else value
        made = [self._set(group, name, value)]
        if made[0] is None:
            other = self._conflicting(group, name, value)
            made = [self._set(group, n, v) for n, v in (other, (name, value))] if other else []
        return [event for event in made if event is not None]

    def _conflicting(self, group: int, name: str, value: Option) -> tuple[str, Option] | None:
        """Another option and its default, to which it has to go back before one can be given a value."""
        for other, (default, *_) in self.of.set_later.items():
            changed = SimpleNamespace(**{**vars(self.hypers[group]), **plain({other: default, name: value})})
            if default is None:  # as where a value is chosen, only the constructor takes it
                continue
            if other != name and not self._without_buffers(group, changed) and self.spec.problem(changed) is None:
                return other, default
        return None

    def _set(self, group: int, name: str, value: Option) -> Event | None:
        changed = SimpleNamespace(**{**vars(self.hypers[group]), **plain({name: value})})
        # The other options have been found to lie in their domains.
        problem = self.of.problem_of(name, getattr(changed, name)) or self.spec.conflict(changed)
        if problem is not None or self._without_buffers(group, changed) or not self.of.accepts(vars(changed)):
            return None
        if self.spec.sparse_conflict(changed) is not None and self.tables is self.of.tables["sparse"]:
            return None
        if name == "max_iter" and self.of.leaves_open(self.groups[group].options):
            return None
        if name in ("max_eval", "max_iter") and (
            _is_derived(changed) or (name == "max_eval" and value in self._derived(group))
        ):
            return None
        self.hypers[group] = changed
        if name == "maximize" and self.objective is not None:  # what has a minimum alone is turned with it
            self.objective = replace(self.objective, scale=-self.objective.scale)
        return SetOption(group, name, value)

    def _derived(self, group: int) -> set[object]:
        """What follows from ``max_iter`` where ``max_eval`` was left open: set to that number, it cannot be told from that."""
        if self.groups[group].options.get("max_eval") is not None:
            return set()
        later = [
            e.value for e in self.events if isinstance(e, SetOption) and (e.group, e.option) == (group, "max_iter")
        ]
        at_first = self.groups[group].options.get("max_iter", self.of.reals["max_iter"][0])
        return {int(m) * 5 // 4 for m in (at_first, self.hypers[group].max_iter, *later) if isinstance(m, int | float)}

    def _without_buffers(self, group: int, hyper: HyperValues) -> bool:
        """Whether a buffer would be needed that no step has kept up, or be left behind: that has no agreed meaning."""
        return any(b.present(hyper) != b.present(self.hypers[group]) for b in self.spec.buffers)

    def _reload(self) -> Event | None:
        reload = self.draw(self.of.reloads)
        if self.essential in ("scaled", "skipped"):  # not every mode to go on in takes a scaler
            reload = replace(reload, into=0)
        since = itertools.takewhile(lambda e: not isinstance(e, Step), reversed(self.events))
        # A dictionary does not say that max_eval was left open: until a step it holds what followed from the max_iter before.
        changed = {e.group for e in since if isinstance(e, SetOption) and e.option == "max_iter"}
        return None if any(self.groups[group].options.get("max_eval") is None for group in changed) else reload

    def _add_group(self) -> Event | None:
        if any(isinstance(e, AddGroup) for e in self.events):
            return None
        group = self._group(1)
        self.groups.append(group)
        return AddGroup(group)

    def _freeze(self) -> Event:
        index = self.draw(range(len(self.parameters)))
        frozen = any(e.frozen for e in self.events if isinstance(e, Freeze) and e.parameter == index)
        return Freeze(index, not frozen)

    def _hook(self) -> Event:
        kind = self.draw(HOOKS)
        return Hook("step_pre" if self.essential == "hook" else kind)

    def _schedule(self) -> Event | None:
        kind = self.draw(SCHEDULES)
        # One that begins at 0 goes back to it whenever it likes, also where there is a line search by then, which cannot begin there.
        stuck = self.spec.closure and any(float(h.lr) == 0 for h in self.hypers)
        return Schedule(kind) if self.of.schedulable and not stuck else None

    def _schedule_step(self) -> Event | None:
        if any(isinstance(e, Schedule) for e in self.events):
            return ScheduleStep()
        return self._schedule()

    def _fail(self) -> Event:
        return Fail(self.draw(self.of.failures), self.draw(range(len(self.parameters))))

    def _spoil(self) -> list[Event]:
        may_be = [i for i, p in enumerate(self.parameters) if p.numel > 1]  # one element alone has no shape to speak of
        if not may_be:
            return []
        parameter = may_be[0] if self.essential else self.draw(may_be)
        drawn = Spoil(self.draw(SPOILINGS), self.draw(SPOILING_WAYS), parameter, self.choices.number(1) % 4)
        if not self.essential:
            return [drawn]
        return [drawn, *(Spoil(how, parameter=parameter) for how in _TELLING)]

    def _accumulate(self) -> Event:
        gradients = {}
        for i, p in enumerate(self.parameters):
            gradients[i] = Gradient(
                self._values(_Kind("quarters", "unit"), self.hypers[self.owner[i]], p.dtype, next(self.counter))
            )
        return Accumulate(gradients)

    def _objective(self) -> Objective:
        searched = self.hypers[0].line_search_fn is not None
        kind, centre, scale = self.draw(_SEARCHED_KINDS if searched else _OBJECTIVE_KINDS)
        if max(self.hypers[0].tolerance_grad, self.hypers[0].tolerance_change) >= _DECIDING:
            scale = self.draw((1.0, 1.0, 0.25, scale))
        values = self._values(centre, self.hypers[0], self.parameters[0].dtype, next(self.counter))
        scale = -scale if getattr(self.hypers[0], "maximize", False) else scale
        return Objective(kind, values, scale, set_to_none=self.choices.number(1) % 2 == 0)

    def _values(self, kind: _Kind, hyper: HyperValues, dtype: str, seed: int) -> Values:
        low, high = _range(kind.scale, hyper, dtype, self.of.eps_unit)
        return Values(kind.recipe, seed, low, high)

    def _step(self, what: _StepKind, number: int = 0) -> Step:
        closure, scaling = self.draw(self.of.manners)
        if number == 2:
            closure = "tensor" if self.essential == "closure" and self.of.manners != (("", ""),) else closure
            scaling = "step" if self.essential in ("scaled", "skipped") else scaling
        if scaling and not self._scalable():
            scaling = ""
        closure = "" if scaling else closure
        gradients: dict[int, Gradient | None] = {}
        for i in range(len(self.parameters)):
            seed = next(self.counter)
            fate = splitmix64_word(seed ^ what.absence) >> 62 if what.absence else 3
            if self.essential == "absent" and i == len(self.parameters) - 1 and number == 2:
                fate = 0
            if fate == 0:
                gradients[i] = None
            elif fate > 1:  # at 1 the parameter keeps the gradient that it has
                gradients[i] = self._gradient(what, i, seed, number)
        return Step(gradients, None, closure, scaling)

    def _scalable(self) -> bool:
        """Whether torch.amp.GradScaler takes these gradients: float16 in a kernel of its own alone, and no complex ones."""
        return not any(
            is_complex(p.dtype) or (p.dtype == "float16" and not self.of.scales_narrow) for p in self.parameters
        ) and not any(isinstance(e, Reload) and e.into for e in self.events)

    def _gradient(self, what: _StepKind, index: int, seed: int, number: int) -> Gradient:
        p = self.parameters[index]
        layouts = _gradient_layouts(p.shape, p.dtype)
        values = self._values(what.gradient, self.hypers[self.owner[index]], p.dtype, seed)
        sparse = _named(what.sparsity, p.shape, seed)
        if number == 2 and self.essential == "skipped":
            values = Values("constant", 0, 0.0, math.inf)
        return Gradient(values, "contiguous" if sparse else layouts[what.twist % len(layouts)], sparse)


def _tensor(lr: float) -> Scalar:
    return Scalar(float(np.float32(lr)))


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


def decoder(subject: Subject, dtypes: Sequence[str]) -> Callable[..., Trace]:
    """What ``TRACE_BYTES`` bytes say: a trace that ``subject`` can play, with only options that it has and only ``dtypes``.

    Beside the bytes it can be given one of ``ESSENTIALS``, which the trace then contains where the subject has it.
    """
    return _Decoder(subject, dtypes).decode


def traces(subject: Subject, dtypes: Sequence[str]) -> st.SearchStrategy[Trace]:
    """A strategy for the traces of :func:`decoder`."""
    return st.binary(min_size=TRACE_BYTES, max_size=TRACE_BYTES).map(decoder(subject, dtypes))


#: Lives in one draw of a campaign. Most of what a draw costs is Hypothesis's own account of it, whatever it holds.
PAGE = 64
_KEY_BYTES = 32


def page(key: bytes) -> list[bytes]:
    """The bytes of as many lives: SHAKE-256 of a key, uniform and never twice the same; of a key of zeros, the simplest life."""
    if not any(key):
        return [bytes(TRACE_BYTES)]
    data = hashlib.shake_256(key).digest(PAGE * TRACE_BYTES)
    return [data[n : n + TRACE_BYTES] for n in range(0, len(data), TRACE_BYTES)]


#: A strategy for pages. Hypothesis draws the key alone, because it draws bytes one by one.
PAGES: st.SearchStrategy[list[bytes]] = st.binary(min_size=_KEY_BYTES, max_size=_KEY_BYTES).map(page)
