"""Whether somebody's class can be called as an optimizer at all, found out before any life of it is played."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from stepcheck.harness.subjects import Subject, UsageError
from stepcheck.harness.text import in_one_line

_NEEDED = ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups")


def probe(subject: Subject) -> None:
    """Construct it once as plainly as can be: what fails then is no optimizer, and no divergence of one.

    Raises:
        UsageError: it raises, exits, or returns something else.
    """
    if not subject.explicit or subject.unsupported:
        return
    options = subject.complete({})
    raised, built = _called(subject, options)
    if type(raised) is ValueError:  # so it says that it does not support these options: others may do
        needed = _needed(subject)
        raised, built = _called(subject, {k: v for k, v in options.items() if k in needed})
    given = ", ".join(["[torch.ones(2, 2, requires_grad=True)]", *(f"{k}={v!r}" for k, v in options.items())])
    expected = "expected is an optimizer: a class or factory that is called with parameters and these options; name a factory that fills in the rest"
    if raised is not None:
        told = in_one_line(": ".join(filter(None, (type(raised).__name__, str(raised)))))[:200]
        raise UsageError(f"{subject.name}({given}) raises {told}; {expected}")
    lacking = [name for name in _NEEDED if not hasattr(built, name)]
    if lacking:
        raise UsageError(
            f"{subject.name}({given}) returns something of type {type(built).__name__}, which has no {lacking[0]}; it is no optimizer; {expected}"
        )


def _called(subject: Subject, options: Mapping[str, Any]) -> tuple[BaseException | None, Any]:
    try:
        return None, subject.make([torch.ones(2, 2, requires_grad=True)], **options, **subject.mode_options)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever somebody's constructor raises is its reason
        return error, None


def _needed(subject: Subject) -> set[str]:
    """The options that it has no default for."""
    parameters = inspect.signature(subject.make).parameters
    return {name for name, p in parameters.items() if p.default is p.empty}
