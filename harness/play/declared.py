"""What is declared of somebody's class: its reference and dialect, its names, what is held at a value, how it computes.

The command line, Python and ``pyproject.toml`` say the same things; a saved life keeps them, so that a replay judges it alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from stepcheck.harness.play.profiles import ANY_CLASS, Profile
from stepcheck.harness.play.terms import PLAIN, Terms, terms
from stepcheck.reference.dialects import in_dialects
from stepcheck.reference.spec import Hyper, Spec

#: What stands for the name of a reference where a class is held to none.
NO_REFERENCE = "no reference"


class DeclarationError(ValueError):
    """What is declared makes no sense; the message is one line and says how to mend it."""


@dataclass(frozen=True)
class Declaration:
    """What is said of one class.

    Attributes:
        like: the name of its reference, ``"Adam"``, or where one stands, ``"module:NAME"``; empty for none.
        dialects: the conventions in which it is meant to differ from that.
        names: of options and buffers of the reference, what the class calls them; several for a pair: ``"beta1, beta2"``.
        ignored: buffers of the class that are not to be looked at.
        held: options of the class, and the value that they are held at.
        profile: facts of its arithmetic, by the names that ``Profile`` has for them.
    """

    like: str = ""
    dialects: tuple[str, ...] = ()
    names: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    held: Mapping[str, Any] = field(default_factory=dict)
    profile: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What is said beside the reference and its dialects, whose names stand with it."""
        said = {name: getattr(self, name) for name in ("names", "ignored", "held", "profile")}
        return {name: _plain(value) for name, value in said.items() if value}

    @staticmethod
    def from_json(like: str, data: Any) -> Declaration:
        """The declaration of a saved life.

        Raises:
            DeclarationError: it is none.
        """
        if not isinstance(data, dict) or not data.keys() <= {"names", "ignored", "held", "profile"}:
            raise DeclarationError("declared: must be an object of names, ignored, held and profile")
        for name in ("names", "held", "profile"):
            if not isinstance(data.get(name, {}), dict):
                raise DeclarationError(f"declared: {name} must be an object")
        names, ignored, profile = data.get("names", {}), data.get("ignored", []), data.get("profile", {})
        if not all(isinstance(name, str) for name in names.values()):
            raise DeclarationError("declared: names must be an object of names")
        if not isinstance(ignored, list) or not all(isinstance(name, str) for name in ignored):
            raise DeclarationError("declared: ignored must be a list of names")
        held = {name: tuple(v) if isinstance(v, list) else v for name, v in data.get("held", {}).items()}
        return Declaration(like, (), names, tuple(ignored), held, _facts(profile))

    def arithmetic(self) -> Profile:
        """How the class computes: as any does, but for what is declared.

        Raises:
            DeclarationError: there is no such fact, or not with this value.
        """
        return replace(ANY_CLASS, **{"reason": "as declared", **_facts(self.profile)}) if self.profile else ANY_CLASS

    def spoken(self, spec: Spec) -> tuple[Spec, Terms]:
        """The reference as it is declared, from ``spec``, and the terms of the class.

        An option that is held at a value is one of the reference with that default, and is not varied.

        Raises:
            DeclarationError: a dialect, a name or a value makes no sense.
        """
        if spec.name == NO_REFERENCE and (self.dialects or self.names or self.ignored):
            raise DeclarationError(
                "dialects, names and buffers are those of a reference: say of which, with --like or --spec"
            )
        try:
            spec = in_dialects(spec, self.dialects)
            said = (
                terms(spec, self.names, self.ignored, self.held) if self.names or self.ignored or self.held else PLAIN
            )
        except ValueError as error:  # of which a TermsError is one
            raise DeclarationError(str(error)) from None
        for name, value in self.held.items():
            if not _is_literal(value):
                raise DeclarationError(
                    f"{name} cannot be held at {value!r}: that is no number, flag, text or tuple of such; write a factory that gives it"
                )
        return _holding(spec, said), said


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    return sorted(value) if isinstance(value, frozenset) else list(value) if isinstance(value, tuple) else value


def _is_literal(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_literal, value))
    return value is None or isinstance(value, bool | int | float | str)


def _holding(spec: Spec, said: Terms) -> Spec:
    """The reference with the defaults that its options are held at."""
    held = said.ours(said.held)
    for names in said.options.values():
        parts = [name for name in names if name in said.held]
        if len(parts) < len(names) and parts:
            raise DeclarationError(f"{parts[0]} is held, and {', '.join(n for n in names if n not in parts)} is not")
    changed = replace(spec, hyper=tuple(_at(h, held) for h in spec.hyper)) if held else spec
    try:
        changed.hyper_values()
    except ValueError as error:
        raise DeclarationError(f"what is held is refused: {error}") from None
    return changed


def _at(hyper: Hyper, held: Mapping[str, Any]) -> Hyper:
    return replace(hyper, default=held[hyper.name]) if hyper.name in held else hyper


_PRECISIONS = ("float32", "float64")
#: Of facts that are names, those that there are.
_CHOICES = {
    "narrow": ("each", "every", "once"),
    "products": ("bfloat16", "wide", "tensor_cores", "any"),
    **dict.fromkeys(("scalars", "counters", "in_place"), _PRECISIONS),
}


def _facts(given: Mapping[str, Any]) -> dict[str, Any]:
    known = {f.name: f for f in fields(Profile)}
    for name, value in given.items():
        if name not in known:
            raise DeclarationError(f"profile: no fact {name!r}; there is {', '.join(known)}")
        default = getattr(ANY_CLASS, name)
        if isinstance(default, bool) is not isinstance(value, bool) or not isinstance(value, _KINDS[type(default)]):
            raise DeclarationError(f"profile: {name} cannot be {value!r}; it is a {type(default).__name__}")
        if isinstance(value, int | float) and not (isinstance(value, bool) or 1 <= value < math.inf):
            raise DeclarationError(f"profile: {name} cannot be {value!r}; it is a number of roundings, at least 1")
        if value not in _CHOICES.get(name, (value,)):
            raise DeclarationError(f"profile: {name} cannot be {value!r}; it is one of {', '.join(_CHOICES[name])}")
        known_orders = sorted(ANY_CLASS.orders)  # a list: what is asked for may be anything
        unknown = [order for order in value if order not in known_orders] if name == "orders" else []
        if unknown:
            raise DeclarationError(f"profile: no order {unknown[0]!r}; there is {', '.join(known_orders)}")
    return {k: frozenset(v) if isinstance(v, list | tuple | set) else v for k, v in given.items()}


_KINDS: Mapping[type, Any] = {bool: bool, float: int | float, str: str, frozenset: list | tuple | set | frozenset}
