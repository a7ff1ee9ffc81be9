"""What the zoo says of each optimizer in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from stepcheck.harness.play.profiles import ANY_CLASS, Profile

#: The checks that a deviation from the reference may be told by.
DEVIATES = (
    "agreement",
    "groups-independent",
    "order-of-parameters",
    "maximize-mirrors",
    "option-effect",
    "save-load-continue",
)


@dataclass(frozen=True)
class Fault:
    """A wrong optimizer: one small fault in an otherwise right implementation.

    Attributes:
        make: the class; the first line of its docstring says what is wrong.
        like: the reference that it pretends to be.
        checks: of these one must find it.
        kind: where it comes from: ``history`` (it happened to somebody), ``rule`` (in the formula), ``life`` (around the
            steps, or in memory), ``mutant`` (made from the Spec); or when alone it shows: ``large``, ``many``, ``long``, ``rare``,
            ``valued``, ``handled``, ``surroundings``, ``switched``, ``spelled``, ``elsewhere`` (``stepcheck.harness.power.tables`` says what
            each is).
        links: where it happened.
        equivalent: why no input can tell it from a right one; then it must pass.
        name: what it is called in reports.
        tensor_lr: it is asked with learning rates that are tensors, as well.
    """

    make: Callable[..., Any]
    like: str
    checks: tuple[str, ...] = DEVIATES
    kind: str = "rule"
    links: tuple[str, ...] = ()
    equivalent: str = ""
    name: str = ""
    tensor_lr: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", f"{self.make.__module__.rpartition('.')[2]}.{self.make.__name__}")

    @property
    def told(self) -> str:
        """What is wrong, in one line."""
        return (self.make.__doc__ or "").partition("\n")[0]


@dataclass(frozen=True)
class Variant:
    """A right optimizer, written in another order of operations or precision than the rest.

    Attributes:
        make: the class; the first line of its docstring says how it computes.
        profile: the facts about its arithmetic that it declares.
        dtypes: those that it is also to be checked with, beyond float32 and float64.
    """

    make: Callable[..., Any]
    like: str
    profile: Profile = ANY_CLASS
    dtypes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.make.__module__.rpartition('.')[2]}.{self.make.__name__}"

    @property
    def told(self) -> str:
        """How it computes, in one line."""
        return (self.make.__doc__ or "").partition("\n")[0]
