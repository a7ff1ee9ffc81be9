"""All optimizers of a library at once: ``package:*``."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch

from stepcheck.harness.play import signature
from stepcheck.harness.play.declared import NO_REFERENCE, Declaration
from stepcheck.harness.play.families import lacking, resolve
from stepcheck.harness.play.references import loaded_module
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search import suggest
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference.spec import Spec

EVERY = "*"
#: How long it may take to find out what a class is like.
_SECONDS = 120.0


def classes(module: str, text: str) -> dict[str, type]:
    """The optimizers that a module has under public names and that are of its package, each under one name.

    Raises:
        UsageError: it cannot be imported, or has none.
    """
    package = module.partition(".")[0]
    found: dict[str, type] = {}
    for name, value in sorted(vars(loaded_module(module, text)).items()):
        if not name.startswith("_") and _is_own(value, package) and value not in found.values():
            found[name] = value
    if not found:
        raise UsageError(
            f"{text}: {module} has no optimizers of its own, classes that derive from torch.optim.Optimizer"
        )
    return found


def _is_own(value: Any, package: str) -> bool:
    """Whether it is an optimizer that the package defines."""
    is_one = inspect.isclass(value) and issubclass(value, torch.optim.Optimizer)
    return is_one and value.__module__.partition(".")[0] == package


def subjects(module: str, text: str, said: Mapping[str, Any], declared: Collection[str]) -> Iterator[Subject | str]:
    """A subject for each: like the reference of its name, in the dialect in which it agrees; or like none.

    One that cannot be built with parameters alone stands there as unsupported, with the reason.

    Args:
        said: fields of a ``Declaration`` that are said of all of them.
        declared: the names of those that are declared already, of which the name alone is given.
    """
    for attribute, make in classes(module, text).items():
        name = f"{module}:{attribute}"
        if name in declared:
            yield name
            continue
        try:
            yield _subject(name, make, said)
        except UsageError as error:
            yield lacking(name, Spec(NO_REFERENCE, _nothing, (), (), source=""), str(error))


def _subject(name: str, make: type, said: Mapping[str, Any]) -> Subject:
    # In a process of its own: lives that are played to find it out must not be the first that the class sees here.
    found = None if "like" in said else signature.apart(lambda: suggest.of_name(make, name), _SECONDS)
    declared = replace(found if isinstance(found, Declaration) else Declaration(), **said)
    (subject,) = resolve(name, declared)
    words = shlex.join(suggest.options(declared))
    told = (
        f"taken for {declared.like} by its name, and checked with {words}: declare what it is meant to be"
        if declared.like
        else ""
    )
    return replace(subject, remarks=(*subject.remarks, told)) if told and "like" not in said else subject


def _nothing(*_: Any) -> Any:
    raise AssertionError("nobody has said what this class computes")
