"""A class that is held to no reference: what it is asked is drawn from its own signature, and its formula is not judged."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from stepcheck.harness.life.events import FLAGS
from stepcheck.harness.play import signature
from stepcheck.harness.play.declared import NO_REFERENCE
from stepcheck.harness.play.terms import Terms
from stepcheck.harness.support.text import in_one_line, said
from stepcheck.reference import SPECS
from stepcheck.reference.spec import Domain, Hyper, Spec

_ANY = Domain(low=float("-inf"), high=float("inf"), high_included=True)
#: Values of options that are off by default, by the names that they usually have: beside them lr, eps and the like have others than 0.
_USUAL: Mapping[str, tuple[float, ...]] = {
    "weight_decay": (0.1, 1 / 3, 0.01),
    "momentum": (0.9, 0.5, 2 / 3),
    "dampening": (0.5, 1 / 3),
}
#: Shapes of parameters, one of each number of dimensions, and empty ones: which of them it takes is tried.
SHAPES: tuple[tuple[int, ...], ...] = ((3,), (3, 2), (), (2, 3, 2), (2, 3, 2, 2), (0,), (2, 0))
_DTYPES = (torch.float32, torch.float64)
_STEPS = 3


def spec_of_class(make: Callable[..., Any], held: Mapping[str, Any]) -> Spec:
    """A Spec of the options alone that a constructor names as numbers, with its own defaults.

    Raises:
        TypeError, ValueError: its signature cannot be read.
    """
    names, _ = signature.keywords(make)
    options = (_hyper(name, default) for name, default in names.items() if name not in held and name not in FLAGS)
    return Spec(NO_REFERENCE, _unknown, tuple(filter(None, options)), (), source="", elementwise=False, complex=False)


def _unknown(*_: Any) -> Any:
    raise AssertionError("nobody has said what this class computes")


def _hyper(name: str, default: Any) -> Hyper | None:
    """What can be varied without knowing what it means: a number by less than half, a flag that is known by its name."""
    known = next((h for spec in SPECS.values() for h in spec.hyper if h.name == name), None)
    if default is signature.NO_DEFAULT and known is not None:
        default = known.default
    if isinstance(default, bool):
        return Hyper(name, default, known.unit) if known is not None and known.is_flag else None
    if isinstance(default, float) or (isinstance(default, int) and known is not None and name == "lr"):
        others = _USUAL.get(name, ()) if default == 0 else tuple(default * factor for factor in (0.75, 0.5, 2 / 3))
        return Hyper(name, float(default), "", _ANY, examples=others) if others else None
    if isinstance(default, tuple) and default and all(isinstance(entry, float) for entry in default):
        several = tuple(tuple(entry * factor for entry in default) for factor in (0.9, 0.75, 0.5))
        return Hyper(name, default, "", _ANY, examples=several)
    return None


Shape = tuple[int, ...]


class Tried(NamedTuple):
    """What a class takes.

    Attributes:
        refused: shapes of parameters that it does not take, each with what it raises.
        dtypes: those of ``_DTYPES`` that it takes.
        closure: it takes no step without a closure, whatever its signature says.
    """

    refused: tuple[tuple[Shape, str], ...] = ()
    dtypes: tuple[str, ...] = ("float32", "float64")
    closure: bool = False


def tried(make: Callable[..., Any], spec: Spec, terms: Terms) -> Tried:
    """What a class takes, found out by stepping some."""
    trial, options = signature.Trial(make, terms), {h.name: h.default for h in spec.hyper}
    for closure in (False, True):

        def raised(shape: Shape, dtype: torch.dtype, closure: bool = closure) -> str:
            return _raised(trial, _parameter(shape, dtype), options, closure=closure)

        dtypes = [dtype for dtype in _DTYPES if not all(raised(shape, dtype) for shape in SHAPES[:2])]
        if dtypes:
            break
    each = ((shape, raised(shape, (dtypes or _DTYPES)[0])) for shape in SHAPES)
    refused = tuple((shape, why) for shape, why in each if why)
    return Tried(refused, tuple(str(d).removeprefix("torch.") for d in dtypes), closure and bool(dtypes))


def _parameter(shape: Shape, dtype: torch.dtype) -> torch.Tensor:
    return torch.nn.Parameter(torch.linspace(-1, 1, math.prod(shape)).to(dtype).reshape(shape))


def _raised(trial: signature.Trial, parameter: torch.Tensor, options: Mapping[str, Any], *, closure: bool) -> str:
    """What a few steps of a parameter raise, or nothing."""
    try:
        optimizer = trial.built([parameter], options)
        with contextlib.suppress(AttributeError):
            optimizer.train()
        for n in range(_STEPS):
            parameter.grad = torch.full_like(parameter, 0.5 + n).detach() * (1 + parameter.detach())
            if closure:
                optimizer.step(lambda: 0.75)
            else:
                signature.plain_step(optimizer)()
    except Exception as error:  # noqa: BLE001 - whatever it raises says that it does not take such parameters
        return in_one_line(": ".join(filter(None, (type(error).__name__, said(error)))))[:120]
    return ""


def restricted(spec: Spec, refused: Iterable[tuple[Shape, str]]) -> Spec:
    """The Spec for the shapes that are left."""
    kinds = {(len(shape), 0 in shape) for shape, _ in refused}
    return replace(spec, shapes=lambda shape: (min(len(shape), 4), 0 in shape) not in kinds)


def told(refused: Iterable[tuple[Shape, str]]) -> Iterator[str]:
    """What is said of them."""
    by_reason: dict[str, list[str]] = {}
    for shape, why in refused:
        by_reason.setdefault(why, []).append(str(shape))
    for why, shapes in by_reason.items():
        yield f"left out: parameters of the kinds of {', '.join(shapes)}, with which it raises {why}"
