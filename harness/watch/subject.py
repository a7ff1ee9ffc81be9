"""What the optimizer of a run is held to, group by group, and with which options."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stepcheck.harness.life.events import Option, Scalar, plain
from stepcheck.harness.life.schedules import as_option
from stepcheck.harness.play.declared import Declaration, DeclarationError
from stepcheck.harness.play.families import COMPENSATED, fast_subject, torch_subject
from stepcheck.harness.play.profiles import ANY_CLASS
from stepcheck.harness.play.references import spec_of
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.play.terms import PLAIN
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS, Spec
from stepcheck.reference.group_options import GroupOptions

Group = Mapping[str, Any]


class UnsupportedError(Exception):
    """Something is not judged; the message says what, and why."""


@dataclass(frozen=True)
class Held:
    """What one group is held to, in a step.

    Attributes:
        subject: its reference, its arithmetic and its names.
        hyper: the options in force.
    """

    subject: Subject
    hyper: GroupOptions


class Holder:
    """Says what the groups of an optimizer are held to.

    Args:
        declared: what is declared of somebody's class; empty for one of ``torch.optim`` or ``stepcheck.fast``.

    Raises:
        UsageError: what is declared makes no sense.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, declared: Declaration) -> None:
        self.optimizer = optimizer
        self.declared = declared
        self.cls = type(optimizer)
        self.name = f"{self.cls.__module__}:{self.cls.__qualname__}"
        try:
            self._spec: Spec | None = None
            self.terms = PLAIN
            if declared.like:
                self._spec, self.terms = declared.spoken(spec_of(declared.like))
            self._profile = declared.arithmetic()
        except DeclarationError as error:
            raise UsageError(f"{self.name}: {error}") from None

    def held(self, group: Group) -> Held:
        """What a group is held to now.

        Raises:
            UnsupportedError: nothing is said of it.
        """
        subject = self._subject(group)
        spec = subject.spec
        if spec.products or spec.closure:
            raise UnsupportedError(
                f"{spec.name} is not watched: its step is judged as a whole, by lives of `stepcheck check`"
            )
        return Held(subject, _options(subject, group))

    def _subject(self, group: Group) -> Subject:
        if self._spec is not None:
            return self._somebodys(group, self._spec)
        name = self.cls.__name__
        on_cpu = all(p.is_cpu for p in group["params"])
        if name in SPECS and self.cls is getattr(torch.optim, name, None):
            mode = _mode(group)
            return _flushing(_anywhere(torch_subject(name, mode)) if not on_cpu else torch_subject(name, mode))
        if _is_fast(self.cls):
            mode = COMPENSATED if group.get(COMPENSATED) else ""
            subject = fast_subject(name, mode)
            by_torch = on_cpu and any(engine == "torch" for engine, *_ in self.optimizer.engine)  # type: ignore[attr-defined]
            return _flushing(subject if on_cpu and not by_torch else _anywhere(subject))
        raise UnsupportedError(
            f'no reference is known of {self.name}: name one, watch(..., like="Adam"), with names= and dialects= as check_optimizer takes them'
        )

    def _somebodys(self, group: Group, spec: Spec) -> Subject:
        terms = self.terms
        there = terms.ours({**terms.held, **group})
        subject = Subject(
            name=self.name,
            spec=spec,
            make=self.cls,
            computes=self._profile,
            options=frozenset(h.name for h in spec.hyper if h.name in there),
            explicit=True,
            callee=self.cls.__qualname__,
            imports=f"from {self.cls.__module__} import {self.cls.__qualname__.split('.')[0]}",
            terms=terms,
            declared=self.declared.to_json(),
        )
        lacking = [h.name for h in spec.hyper if h.name not in subject.options and not _is_neutral(h.default)]
        if lacking:
            raise UnsupportedError(
                f"{self.name} has no {lacking[0]!r} in its groups, which {spec.name} needs: say what it is called, "
                f"names={{{lacking[0]!r}: ...}}, or at which value it is held, held={{{lacking[0]!r}: ...}}"
            )
        return subject


def _is_neutral(default: object) -> bool:
    """Whether an option that nobody has is one that does nothing."""
    return default is None or default is False or default == 0


def _is_fast(cls: type) -> bool:
    from stepcheck import fast  # whose classes nobody needs for one of their own

    return cls.__name__ in fast.__all__ and cls is getattr(fast, cls.__name__)


def _mode(group: Group) -> str:
    """Which implementation steps a group of a class of ``torch.optim``: on CPU tensors it is the loop where none is chosen."""
    for mode in ("differentiable", "fused", "foreach"):
        if group.get(mode):
            return mode
    return "forloop"


@functools.cache
def _anywhere(subject: Subject) -> Subject:
    """The same where nothing is declared of how it computes: on another device, or by whose code is not known."""
    return replace(subject, computes=ANY_CLASS, explicit=True)


def _flushing(subject: Subject) -> Subject:
    """The same, where this process takes subnormal numbers for zero (``torch.set_flush_denormal``)."""
    if float(torch.tensor(1e-40) * 1.0):
        return subject
    return replace(subject, computes=replace(subject.profile, flush_to_zero=True))


def _options(subject: Subject, group: Group) -> GroupOptions:
    """All options of a group, as the reference has them."""
    there = subject.terms.ours({**subject.terms.held, **group})
    given: dict[str, Option] = {}
    for h in subject.spec.hyper:
        if h.name not in there:
            continue
        given[h.name] = as_option(there[h.name])
        if isinstance(given[h.name], Scalar) and (h.name != "lr" or there[h.name].dtype is not torch.float32):
            raise UnsupportedError(f"the option {h.name} is a tensor: of tensors, an lr of float32 alone is judged")
    tensors = frozenset(k for k, v in given.items() if isinstance(v, Scalar))
    try:
        return GroupOptions(**vars(subject.spec.hyper_values(plain(given))), tensors=tensors)
    except (ValueError, TypeError) as error:
        raise UnsupportedError(f"the options have no meaning for the reference: {error}") from None
