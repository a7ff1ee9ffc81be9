"""References by their names: those that stepcheck ships, in a dialect or not, and those of others."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from dataclasses import replace
from typing import Any

from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS, Spec
from stepcheck.reference.dialects import in_dialects

#: Specs that were given as such, by the name that they were given: those of a module can be found there by another process.
_GIVEN: dict[str, Spec] = {}


def name_of(like: str | Spec) -> str:
    """The name by which a reference is found again: of a Spec of somebody's, ``module:NAME`` where its module has it under a name.

    Raises:
        UsageError: it is neither a name nor a Spec.
    """
    if isinstance(like, str):
        return like
    if not isinstance(like, Spec):
        raise UsageError(f"like={like!r} is no reference: name one, such as 'Adam', or give a stepcheck.reference.Spec")
    if SPECS.get(like.name) == like:
        return like.name
    module = getattr(like.update, "__module__", "")
    held = vars(sys.modules[module]) if module in sys.modules else {}
    attribute = next((name for name, value in held.items() if value is like), like.name)
    _GIVEN[f"{module}:{attribute}"] = like
    return f"{module}:{attribute}"


def spec_of(text: str) -> Spec:
    """The reference of a name, or one of its dialects: ``Adam``, ``Adam[eps-inside-root, decoupled-decay]``, ``module:NAME``.

    Raises:
        UsageError: there is no such reference, or it has no such dialect.
    """
    name, bracket, rest = text.partition("[")
    if bracket and not rest.endswith("]"):
        raise UsageError(f"no reference named {text!r}; there is {', '.join(SPECS)}")
    named = [part.strip() for part in rest.removesuffix("]").split(",") if part.strip()]
    try:
        return in_dialects(SPECS[name] if name in SPECS else own_spec(name), named)
    except ValueError as error:
        raise UsageError(str(error)) from None


def loaded_module(module: str, text: str) -> Any:
    """A module of somebody's.

    Raises:
        UsageError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the module's own code raises on import
        raise UsageError(f"{text}: cannot import {module} ({type(error).__name__}: {error})") from None
    except SystemExit as error:  # a script that ends in sys.exit(main())
        told = f"it exits when it is imported, with {error.code!r}"
        raise UsageError(
            f"{text}: cannot import {module}: {told}; keep what runs under if __name__ == '__main__'"
        ) from None


def loaded(module: str, attribute: str, text: str) -> Any:
    """What a module has under a name, dots included.

    Raises:
        UsageError: it cannot be imported, or has no such thing.
    """
    found = loaded_module(module, text)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{text}: {module} has no {attribute}")
        found = getattr(found, part)
    return found


#: The entry points with which a package publishes references of its own, by name.
REFERENCES = "stepcheck.references"


def _published() -> dict[str, importlib.metadata.EntryPoint]:
    return {entry.name: entry for entry in importlib.metadata.entry_points(group=REFERENCES)}


def known() -> list[str]:
    """The names of all references: those that stepcheck ships, and those that installed packages publish."""
    return [*SPECS, *(name for name in _published() if name not in SPECS)]


def own_spec(name: str) -> Spec:
    """A reference that stepcheck does not ship: ``module:NAME``, or one that an installed package publishes under a name.

    Raises:
        UsageError: there is no such thing, or it is no Spec.
    """
    module, _, attribute = name.partition(":")
    if name in _GIVEN:
        found: Any = _GIVEN[name]
    elif attribute:
        found = loaded(module, attribute, name)
    else:
        published = _published()
        if name not in published:
            raise UsageError(f"no reference named {name!r}; there is {', '.join(known())}")
        try:
            found = published[name].load()
        except Exception as error:  # noqa: BLE001 - whatever that package raises
            raise UsageError(f"{name}: cannot be loaded ({type(error).__name__}: {error})") from None
    if not isinstance(found, Spec):
        raise UsageError(
            f"{name} is no reference, but of type {type(found).__name__}; a reference is a stepcheck.reference.Spec"
        )
    return replace(found, name=name)
