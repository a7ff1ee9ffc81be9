"""Which options groups are drawn with, fewest first."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np

from stepcheck.harness.life.events import Option, Scalar, plain
from stepcheck.harness.life.values import splitmix64
from stepcheck.harness.play.subjects import Subject
from stepcheck.reference.spec import Domain, Hyper, HyperValues, Spec


def candidates(hyper: Hyper) -> tuple[Option, ...]:
    """Values of one hyperparameter: its default, near it, far from it, and both ends of its domain."""
    if hyper.is_flag:
        return (bool(hyper.default), not hyper.default)
    if hyper.choices:
        others = (*hyper.choices, *((None,) if hyper.optional else ()))
        return (hyper.default, *(c for c in others if c != hyper.default))
    if hyper.examples:
        return (hyper.default, *hyper.examples)
    domains = hyper.entry_domains
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


def values_of(subject: Subject, hyper: Hyper) -> tuple[Option, ...]:
    """The values of an option that the subject takes, its default first: that is passed whether it is taken or not."""
    default, *others = candidates(hyper)
    taken = (c for c in others if not subject.refuses(hyper.name, c) and subject.accepts({hyper.name: c}))
    return (default, *taken)


def _reals(default: Any, domain: Domain) -> tuple[float, ...]:
    at = 1e-6 if default is None else float(default)
    # A third has a long significand in every base: an implementation that shortens its options shows there.
    values = [at, domain.low, 0.5, 0.1, 1.0, 0.9, at * 4 / 3, 1 / 3, at * 1e-3, at * 1e3, 3.0, -0.5, -1.0]
    if math.isfinite(domain.high):
        values += [domain.high, domain.high - 2.0**-10, domain.high - 2.0**-20]
    return tuple(dict.fromkeys(v for v in values if math.isfinite(v) and v in domain))


def tensor(number: Option) -> Scalar:
    """A number as a float32 tensor."""
    assert isinstance(number, float | int), f"{number} is no number"
    return Scalar(float(np.float32(number)))


_OPTION_SETS = 400


#: Options of a group, and all that hold with them.
OptionSets = list[tuple[dict[str, Option], HyperValues]]


def option_sets(spec: Spec, values: Mapping[str, Sequence[Option]]) -> OptionSets:
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
    having = _switches(spec, values)
    for n in range(1, len(sets) if having else 0, 2):
        # An optimizer that remembers nothing has little to get wrong: half of the groups have a buffer more than by default.
        sets[n] = having[n // 2 % len(having)] | sets[n]
    return [(options, spec.hyper_values(options)) for options in (_without_conflict(spec, o) for o in sets)]


def _switches(spec: Spec, values: Mapping[str, Sequence[Option]]) -> list[dict[str, Option]]:
    """Options that by themselves give a parameter a buffer that it has not by default."""
    default = spec.hyper_values()
    absent = [b for b in spec.buffers if not b.present(default)]
    alone = [{name: value} for name in sorted(values) for value in values[name][1:]]
    ways = ((o, SimpleNamespace(**{**vars(default), **plain(o)})) for o in alone if absent)
    return [o for o, hyper in ways if spec.problem(hyper) is None and any(b.present(hyper) for b in absent)]


def switches(subject: Subject) -> dict[str, list[Option]]:
    """Of each option that gives a parameter a buffer which it has not by default, and can be set later: the values that do."""
    later = (
        h for h in subject.spec.hyper if not h.at_construction and h.name in subject.options - subject.constructor_only
    )
    found: dict[str, list[Option]] = {}
    for options in _switches(subject.spec, {h.name: values_of(subject, h) for h in later}):
        for name, value in options.items():
            found.setdefault(name, []).append(value)
    return found


def _without_conflict(spec: Spec, options: dict[str, Option]) -> dict[str, Option]:
    """What conflicts (Nesterov without momentum) goes back to its default, the option named last first."""
    kept = dict(options)
    for name in reversed(options):
        if spec.problem(SimpleNamespace(**{**{h.name: h.default for h in spec.hyper}, **kept})) is None:
            break
        del kept[name]
    return kept


#: Tolerances that decide: about as large as gradients, moves and losses here are, and 0, which some of them are exactly.
TOLERANCES = {
    "tolerance_grad": (0.1, 2.0**-4, 1.0, 2.0**-10, 1 / 3, 0.0, 0.5, 3.0),
    "tolerance_change": (2.0**-4, 0.1, 1 / 3, 2.0**-5, 0.0, 2.0**-7, 0.2, 2.0**-10, 0.5),
}


#: From a tolerance of this on, a function is mostly scaled such that gradients and losses are about as large as that.
DECIDING = 2.0**-7


#: Evaluations that a step with a line search is given: enough for that to end by itself, or so few that it runs out on the way.
_MAX_EVALS = (8, 2, 40, 3, 12, 25, 5, 40)


#: More are enough for a bracket to become narrow.
_BRIEF = 12


#: A first trial so short that others are extrapolated, brackets are narrow, and parameters no longer move.
_SHORT = 2.0**-12


#: Evaluations that end no step of few iterations with a fixed length. A fourth more than its iterations end it before its tests do.
_ENOUGH = 8


#: Iterations a step.
MAX_ITERS = (1, 2, 3, 4, 2, 3)


#: Elements of a parameter where there are more iterations: what they take to judge grows with the square of it.
SMALL = 9


def few_iterations(
    spec: Spec, n: int, chosen: tuple[dict[str, Option], HyperValues], available: Mapping[str, Sequence[Option]]
) -> tuple[dict[str, Option], HyperValues]:
    """Few iterations a step; line searches, where most can go wrong, in two thirds of the sets, and tolerances that decide in most."""
    options = dict(chosen[0])
    if n % 40 and "max_iter" in available:
        # After the only iteration of a step no tolerance decides.
        options["max_iter"] = max(MAX_ITERS[n % len(MAX_ITERS)], 2 if n % 8 else 1)
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
        name = tuple(TOLERANCES)[n % 2]
        others[name] = TOLERANCES[name][n // 12 % len(TOLERANCES[name])]
        if name == "tolerance_change" and n // 4 % 2:
            others["lr"] = 0.25  # which moves and changes less than the slope alone would
    if searches and evaluations > _BRIEF:
        others["tolerance_change"] = 0.0  # a search that ends in a narrow bracket often moves no further than that
    options |= {name: value for name, value in others.items() if name in available}
    options = _without_conflict(spec, options)
    if is_derived(spec.hyper_values(options)):
        del options["max_eval"]
    return options, spec.hyper_values(options)


def is_derived(hyper: HyperValues) -> bool:
    """Whether ``max_eval`` is given as what follows from ``max_iter``: after a round trip it cannot be told from left open."""
    return hyper.max_eval is not None and hyper.max_eval == hyper.max_iter * 5 // 4
