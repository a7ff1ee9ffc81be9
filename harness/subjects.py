"""Who plays a trace: modes of ``torch.optim``, and anybody's optimizer class. Each declares how it computes."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from stepcheck.harness.formats import FORMATS, Arithmetic
from stepcheck.reference import SPECS, Spec
from stepcheck.reference.arithmetic import ORDERS


class UsageError(Exception):
    """What the caller asked for does not exist or makes no sense; the message is one line and says how to mend it."""


@dataclass(frozen=True)
class Profile:
    """The facts about a subject's arithmetic that are its own choice and not an error.

    Attributes:
        orders: the orders of operations that it may use (see ``stepcheck.reference.arithmetic``).
        division: roundings that a quotient costs it.
        square_root: roundings that a square root costs it.
        reason: why these are the facts.
    """

    reason: str
    orders: frozenset[str] = frozenset()
    division: float = 1.0
    square_root: float = 1.0

    def arithmetic(self, dtype: str) -> Arithmetic:
        """The arithmetic for parameters of ``dtype``."""
        return Arithmetic(FORMATS[dtype], self.division, self.square_root, self.orders)


TORCH_CPU = Profile(
    reason=(
        "torch.optim on CPU evaluates in the parameter's dtype with correctly rounded division and square root, forms scalars"
        " as Python floats, and averages with lerp; its C++ kernels may contract products and sums (fewer roundings)"
    ),
    orders=frozenset({"lerp"}),
)
ANY_CLASS = Profile(
    reason=(
        "nothing is known of somebody's class but that it computes in the parameter's dtype with hyperparameters as Python"
        " floats: every order of operations is accepted, and a quotient may be a product with a reciprocal"
    ),
    orders=ORDERS | {"written"},
    division=2.0,
)


@dataclass(frozen=True)
class Subject:
    """Something that can play a trace.

    Attributes:
        name: as it is written on the command line.
        spec: the reference it is held to.
        make: builds the optimizer from parameter groups and default options.
        profile: how it computes.
        options: the names of the Spec's hyperparameters that its constructor takes.
        explicit: pass every option, defaults included, because its own defaults may rightly differ from the Spec's.
        dtypes: the parameter dtypes it supports.
        mode_options: keywords that select the mode.
        callee: what a repro calls to construct it: ``torch.optim.Adam``.
        imports: the import statement that a repro needs for it, if any.
    """

    name: str
    spec: Spec
    make: Callable[..., Any]
    profile: Profile
    options: frozenset[str]
    explicit: bool
    callee: str
    imports: str = ""
    dtypes: tuple[str, ...] = ("float32", "float64")
    mode_options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def missing_options(self) -> tuple[str, ...]:
        """Hyperparameters of the Spec that the subject does not have."""
        return tuple(h.name for h in self.spec.hyper if h.name not in self.options)


#: The implementations that each class of torch.optim ships for CPU tensors, and the keywords that select them.
MODES: dict[str, dict[str, bool]] = {
    "forloop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}
TORCH_MODES = dict.fromkeys(("SGD", "Adam", "AdamW", "Adagrad"), ("forloop", "foreach", "fused")) | dict.fromkeys(
    ("RMSprop", "Adadelta", "Adamax"), ("forloop", "foreach")
)
FAMILIES = ("torch",)


def torch_subject(name: str, mode: str) -> Subject:
    """``torch.optim.<name>`` in one of its modes."""
    spec, cls = SPECS[name], getattr(torch.optim, name)
    return Subject(
        name=f"torch:{name}[{mode}]",
        spec=spec,
        make=cls,
        profile=TORCH_CPU,
        options=frozenset(h.name for h in spec.hyper),
        explicit=False,
        callee=f"torch.optim.{name}",
        mode_options=MODES[mode],
    )


def class_subject(
    make: Callable[..., Any], like: str, name: str | None = None, profile: Profile = ANY_CLASS
) -> Subject:
    """Somebody's optimizer class or factory, held to the reference named ``like``.

    Raises:
        UsageError: there is no such reference, or ``make`` cannot be called as an optimizer.
    """
    spec = _spec(like)
    if not callable(make):
        raise UsageError(f"{name or make!r} is not callable; name a class or a function that returns an optimizer")
    if inspect.isclass(make) and not callable(getattr(make, "step", None)):
        raise UsageError(f"{make.__module__}:{make.__qualname__} has no step(); it is no optimizer class")
    try:
        signature = inspect.signature(make)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name or make!r}: its signature cannot be read ({error})") from None
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())
    options = frozenset(h.name for h in spec.hyper if takes_any or h.name in signature.parameters)
    try:
        signature.bind([], **dict.fromkeys(options))
    except TypeError as error:
        raise UsageError(
            f"{name or make!r} cannot be called with (params, {', '.join(sorted(options)) or 'no options'}): {error}; "
            "name a factory function that fills in the rest"
        ) from None
    module, attribute = getattr(make, "__module__", "__main__"), getattr(make, "__qualname__", "optimizer")
    return Subject(
        name=name or f"{module}:{attribute}",
        spec=spec,
        make=make,
        profile=profile,
        options=options,
        explicit=True,
        callee=attribute,
        imports=f"from {module} import {attribute.split('.')[0]}",
    )


def resolve(text: str, like: str | None = None) -> list[Subject]:
    """The subjects that a word on the command line means.

    Args:
        text: ``torch``, ``torch:Adam``, ``torch:Adam[foreach]`` or ``package.module:ClassOrFactory``.
        like: the reference that a class is held to; for ``torch`` the name says it.

    Raises:
        UsageError: no such subject.
    """
    family, _, rest = text.partition(":")
    if family in FAMILIES:
        return _resolve_torch(text, rest)
    if not rest:
        raise UsageError(
            f"unknown subject {text!r}; known: {', '.join(FAMILIES)}, torch:NAME[MODE], or package.module:Class with --like"
        )
    if like is None:
        raise UsageError(f"{text}: say which reference it is held to, with --like (one of {', '.join(SPECS)})")
    return [class_subject(_load(family, rest, text), like, text)]


def _resolve_torch(text: str, rest: str) -> list[Subject]:
    if not rest:
        if text != "torch":
            raise UsageError(f"{text!r}: name an optimizer after the colon (one of {', '.join(SPECS)})")
        return [torch_subject(name, mode) for name in SPECS for mode in TORCH_MODES[name]]
    name, bracket, mode = rest.partition("[")
    _spec(name)
    if not bracket:
        return [torch_subject(name, mode) for mode in TORCH_MODES[name]]
    mode = mode.removesuffix("]")
    if mode not in TORCH_MODES[name] or not rest.endswith("]"):
        raise UsageError(f"{text!r}: torch.optim.{name} has the modes {', '.join(TORCH_MODES[name])}")
    return [torch_subject(name, mode)]


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise UsageError(f"no reference named {name!r}; there is {', '.join(SPECS)}")
    return SPECS[name]


def _load(module: str, attribute: str, text: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the module's own code raises on import
        raise UsageError(f"{text}: cannot import {module} ({type(error).__name__}: {error})") from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{text}: {module} has no {attribute}")
        found = getattr(found, part)
    make: Callable[..., Any] = found
    return make
