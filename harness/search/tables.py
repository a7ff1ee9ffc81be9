"""What the lives of one subject are drawn from: the tables of its style, without what the subject does not take."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from stepcheck.harness.life.events import DICTIONARIES, Reload
from stepcheck.harness.play import torchs
from stepcheck.harness.play.resume import AGES, counts
from stepcheck.harness.play.signature import inherits
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.contents import SPARSITIES, Kind, StepKind, layouts
from stepcheck.harness.search.options import option_sets, switches, values_of
from stepcheck.harness.search.styles import style_of
from stepcheck.reference.spec import Spec

#: Elements of a parameter that has few.
_FEW = 9
#: Gradients that are numbers of ordinary size.
_ORDINARY = (Kind("log", "unit"), Kind("quarters", "unit"), Kind("log", "eps"), Kind("sparse_log", "unit"))


@dataclass(frozen=True)
class World:
    """One choice from each makes a parameter, and an event."""

    parameters: Sequence[tuple[tuple[int, ...], str, Kind]]
    events: Sequence[StepKind | str]
    steps: Sequence[StepKind]

    @functools.cached_property
    def small(self) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """The shapes of few elements, and those of none."""
        shapes = [shape for shape, *_ in self.parameters if math.prod(shape) <= _FEW]
        return [s for s in shapes if 0 not in s], [s for s in shapes if 0 in s]

    @functools.cached_property
    def ordinary(self) -> list[StepKind]:
        """Steps in which each parameter has a gradient, of numbers of ordinary size where there are such."""
        whole = [s for s in self.steps if not s.absence]
        return [s for s in whole if s.gradient in _ORDINARY] or whole


class Tables:
    """The tables that lives of one subject are chosen from.

    Attributes:
        between: the names of what may stand between steps, the commonest named more often.
        switches: as :func:`options.switches` has them.
    """

    def __init__(self, subject: Subject, dtypes: Sequence[str], between: Sequence[str]) -> None:
        self.spec: Spec = subject.spec
        self.style = style = style_of(subject)
        self.eps_unit = {h.name: h.unit for h in self.spec.hyper}.get("eps", "")
        self.dtypes = tuple(dtypes)
        # One dtype throughout, or all of them in turn.
        one_dtype = style.one_dtype or (subject.shape is not None and subject.shape.one_dtype)
        self.dtype = [*((d,) for d in self.dtypes), *(() if one_dtype else (self.dtypes,))]
        self.accepts, self.leaves_open = subject.accepts, subject.leaves_open
        self.hyper = {h.name: h for h in self.spec.hyper if h.name in subject.options}
        self.reals = {name: style.values(name, values_of(subject, h)) for name, h in self.hyper.items()}
        accepted = [(o, h) for o, h in option_sets(self.spec, self.reals) if subject.accepts(o)]
        self.options = style.options(self.spec, accepted or [({}, self.spec.hyper_values())], self.reals)
        self.shared = subject.constructor_only
        self.lr = self.reals.get("lr", (0.0,))
        # A schedule of torch's sets what is called so.
        self.lr_is_set = "lr" in self.reals and "lr" not in self.shared
        self.schedulable = self.lr_is_set and subject.terms.name("lr") == "lr"
        self.set_later = {
            name: style.later(name, values)
            for name, values in self.reals.items()
            if name != "lr" and not self.hyper[name].at_construction and name not in self.shared
            if subject.referenced  # which others may change in mid-life a reference says
        }
        self.switches = switches(subject)
        self.tensor_lr = subject.tensor_lr
        self.flags = subject.flags
        self.spellings = tuple(spelling for spelling in subject.spellings if spelling != "plain")
        self.between = between
        self.sparse = self.spec.sparse if subject.sparse else ""
        self.worlds = self._worlds()
        # Layouts that are not row-major are a third of the lives: a fault there must not hide all others.
        self.world_names = style.worlds if self.sparse in ("", "only") else style.sparse_worlds
        self.one_group, self.differentiable, self.explicit = subject.one_group, subject.differentiable, subject.explicit
        # How many parameters each group has.
        self.groups = tuple(g for g in style.groups if len(g) == 1 or not subject.one_group)
        # Somebody's class may be no descendant of torch's, and has no older versions.
        self.forms = style.forms if _descends(subject) else ("list",)
        self.reloads = self._reloads(subject)
        # What somebody's class does with gradients that torch refuses is theirs to say.
        own = style.objective or subject.explicit
        kinds = () if own else ("gradient",) if subject.differentiable else ("gradient", "dtype")
        self.failures = ("closure", "hook", *kinds)
        self.spoils = style.spoils and not subject.differentiable and subject.shape is None
        # GradScaler refuses to unscale float16 itself, and leaves it to a step that says that it does.
        self.scales_narrow = subject.mode == "fused" or any(
            getattr(subject.make, name, False) for name in ("_step_supports_amp_scaling", "_unscales")
        )

    def problem_of(self, option: str, value: Any) -> str | None:
        """Why a value of one option is refused whatever the others are, or ``None``."""
        return self.hyper[option].problem(value)

    def _worlds(self) -> dict[str, World]:
        style, only = self.style, self.sparse == "only"
        shapes = style.shapes([s for s in style.sizes if self.spec.shapes(s) and (s or not only)])
        plain = [(s, "contiguous", k) for s in shapes for k in style.parameter_kinds]
        strided = [(s, layout, k) for s, _, k in plain for layout in layouts(s)]
        steps = [StepKind(k, 0, absence) for absence in (0, 0, 0, 1, 2) for k in style.gradient_kinds]
        twisted = [
            StepKind(k, n % 5, s.absence) for n, (s, k) in enumerate(itertools.product(steps, style.gradient_kinds))
        ]
        # Sparse gradients are a third of the steps of half the lives, where the optimizer takes them, and the others.
        named = [replace(s, sparsity=SPARSITIES[n % len(SPARSITIES)]) for n, s in enumerate(steps * 2)]
        if only:
            steps = twisted = named
        # No dimension of length 0 beside a sparse one: torch 2.13 dereferences a null pointer there.
        whole = [(s, layout, k) for s, layout, k in plain if 0 not in s]
        named_from = [
            (s, "offset" if n % 8 == 3 else "sliced" if n % 8 == 7 else layout, k)
            for n, (s, layout, k) in enumerate(whole)
        ]
        if only:
            plain = strided = named_from
        # Steps are about three quarters of the events.
        rest = list(self.between)
        often = len(steps) // (3 * len(rest)) or 1
        return {
            "plain": World(plain, [*steps, *(rest * often)], steps),
            "strided": World(strided, [*twisted, *(rest * (len(twisted) // (3 * len(rest))))], twisted),
            "sparse": World(named_from, [*steps, *named, *(rest * (2 * often))], [*steps, *named]),
        }

    def _reloads(self, subject: Subject) -> list[Reload]:
        saves_as_torch = not subject.explicit or inherits(subject.make, "state_dict")
        dictionaries = tuple(d for d in DICTIONARIES if d not in torchs.NAMES)
        if not (
            self.style.onward and _descends(subject) and saves_as_torch
        ):  # whose state_dict need not have torch's form
            dictionaries = ("same",)
        elif subject.explicit:
            dictionaries = ("same", "aged", "foreign", "aged")
        if not counts(self.spec):
            dictionaries = tuple(d for d in dictionaries if d not in AGES)
        return [
            Reload(way, dictionary, form, into, afresh=afresh)
            for way in (self.style.ways[:1] if subject.differentiable else self.style.ways)
            for dictionary in (dictionaries if way not in ("copied", "unpickled") else ("same",) * len(dictionaries))
            for form in self.forms[-2:]
            for into in ((0, 0, 1, 2, 3) if subject.mode and self.style.onward else (0,))
            for afresh in ((False, True) if self.style.onward and not subject.differentiable else (False,))
        ]


def _descends(subject: Subject) -> bool:
    return not subject.explicit or (inspect.isclass(subject.make) and issubclass(subject.make, torch.optim.Optimizer))
