"""Pure functions, dressed as an optimizer of torch's: what makes a pair of ``init`` and ``update``, as optax and torchopt have it.

A parameter is given as a list of one array; the pair is made anew for each step, from the options that its group has by then. Its state may be
any tree of tuples, dictionaries and dataclasses: its arrays are kept by the names that they have there.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import torch

from stepcheck.harness.play import trees
from stepcheck.harness.play.shapes import Dressed, Shape, dressed, unasked
from stepcheck.harness.support.lines import ClientError
from stepcheck.harness.support.usage import UsageError

#: What stands before the name of a function, where a subject is named.
FUNCTIONS = "functions"
#: How parameters and gradients are given.
ARRAYS = ("numpy", "torch", "jax")
_UNASKED = unasked(
    "functions are given copies",
    "they are given a parameter and its gradient in a step, and nothing else",
    "stepcheck keeps their groups and their state",
)


#: What optax and torchopt call options, by the names of the references; said of functions that have options of these names.
NAMES: Mapping[str, str] = {"lr": "learning_rate", "betas": "b1, b2", "alpha": "decay"}
#: Of what is compiled by XLA: on a CPU, that takes subnormal numbers for zero.
FLUSHES: Mapping[str, Any] = {"flush_to_zero": True, "flush_float64": True}


class NarrowError(ClientError):
    """A step is computed in a narrower format than the parameter's."""


class Functions(Dressed):
    """Pure functions, dressed as an optimizer of torch's."""

    make: ClassVar[Callable[..., Any]]
    apply: ClassVar[Callable[[list[Any], Any], Any]]
    arrays: ClassVar[str]

    def _look_at(self, options: Mapping[str, Any]) -> None:
        try:
            trees.pair(type(self).make(**options))
        except trees.TreeError as error:
            raise ClientError(str(error)) from None

    def _stepped(
        self, p: torch.Tensor, gradient: torch.Tensor, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        cls = type(self)
        array, given = _array(p, self.arrays), _array(gradient, self.arrays)
        try:
            init, update = trees.pair(cls.make(**options))
            state = trees.filled(init([array]), self.state.get(p) or {})
            by_name = "params" in inspect.signature(update).parameters
            updates, after = update([given], state, params=[array]) if by_name else update([given], state, [array])
            moved = trees.only(cls.apply([array], updates))
            kept = {name: trees.stored(leaf, p) for name, leaf in trees.named_leaves(after).items()}
        except trees.TreeError as error:
            raise ClientError(str(error)) from None
        if moved.dtype.itemsize < p.dtype.itemsize:
            told = (str(dtype).removeprefix("torch.") for dtype in (moved.dtype, p.dtype))
            raise NarrowError("computes {} of a parameter that is {}".format(*told))
        if moved.shape != p.shape:
            raise ClientError(f"returns a parameter of shape {tuple(moved.shape)}, which has {tuple(p.shape)}")
        return moved.to(p.dtype), kept

    @classmethod
    def takes(cls, options: Mapping[str, Any]) -> str:
        """The arrays in which it can take a step; nothing where that is said, or it can in none."""
        return "" if cls.arrays else next((arrays for arrays in ("numpy", "torch") if cls._steps(arrays, options)), "")

    @classmethod
    def _steps(cls, arrays: str, options: Mapping[str, Any]) -> bool:
        p = torch.ones(2, 2, requires_grad=True)
        p.grad = torch.ones_like(p).detach()
        try:
            type(cls.__name__, (cls,), {"arrays": arrays})([p], **options).step()
        except Exception:  # noqa: BLE001 - whatever they raise who want others
            return False
        return True

    @classmethod
    def narrows(cls, dtype: str, options: Mapping[str, Any]) -> str:
        """That a step of a parameter of this dtype is computed in another one, in words, or nothing."""
        p = torch.ones(2, 2, dtype=getattr(torch, dtype), requires_grad=True)
        p.grad = torch.ones_like(p).detach()
        try:
            cls([p], **options).step()
        except NarrowError as error:
            return str(error)
        except Exception:  # noqa: BLE001 - a life will show it
            return ""
        return ""


def functional(
    make: Callable[..., Any],
    apply: Callable[[list[Any], Any], Any] | None = None,
    *,
    arrays: str = "",
    imports: str = "",
) -> type[Functions]:
    """An optimizer class of pure functions.

    Args:
        make: called with the options, by their names, such as ``optax.adam``; it returns something that has functions ``init(params)``, which
            returns a state, and ``update(gradients, state, params)``, which returns updates and the next state; or the two in a tuple.
        apply: called with parameters and updates; by default it adds them.
        arrays: ``"numpy"``, ``"torch"`` for tensors, or ``"jax"``: what parameters and gradients are given as, each in a list of one. Where
            nothing is said, JAX's where their package imports that; else it is tried whether a step can be taken in NumPy's, and in tensors.
        imports: the statement with which a script imports ``make`` under that name, where it is not to be imported from its own module.

    Raises:
        UsageError: the signature of ``make`` cannot be read, or takes what has no name; or there are no such arrays.
    """
    if arrays and arrays not in ARRAYS:
        raise UsageError(f"functional: no arrays {arrays!r}; there is {', '.join(ARRAYS)}")
    module, attribute = getattr(make, "__module__", "__main__"), getattr(make, "__qualname__", "functions")
    of_jax = _is_of_jax(module)
    name = f"{FUNCTIONS}:{module}:{attribute}"
    options = options_of(name, make)
    shape = Shape(
        name,
        "pure functions",
        ("float32", "float64"),
        _UNASKED,
        "Functions",
        options,
        imports=imports or importing(module, attribute),
        names=NAMES,
        facts=FLUSHES if of_jax else {},
    )
    called = attribute.rpartition(".")[2]
    own = {
        "make": staticmethod(make),
        "apply": staticmethod(apply or trees.added),
        "arrays": arrays or ("jax" if of_jax else ""),
    }
    return dressed(Functions, called if called.isidentifier() else "Functions", shape, **own)


def _is_of_jax(module: str) -> bool:
    """Whether any module of a package has imported JAX."""
    package = module.partition(".")[0]
    loaded = [m for name, m in [*sys.modules.items()] if name.partition(".")[0] == package]
    within = (x for m in loaded for x in vars(m).values() if isinstance(x, ModuleType))
    return any(x.__name__.partition(".")[0] == "jax" for x in within)


def importing(module: str, attribute: str) -> str:
    """The statement that imports something as ``make``."""
    name, _, inner = attribute.partition(".")
    return f"from {module} import {name} as make{f'; make = make.{inner}' if inner else ''}"


def options_of(name: str, make: Callable[..., Any]) -> dict[str, Any]:
    """The options that something is called with, by their names, with their defaults.

    Raises:
        UsageError: its signature cannot be read, or takes what has no name.
    """
    try:
        parameters = inspect.signature(make).parameters.values()
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name}: its signature cannot be read ({error})") from None
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY:
            raise UsageError(
                f"{name} takes {p.name} by its place alone; name a function that takes its options by name"
            )
    return {p.name: p.default for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _array(t: torch.Tensor, arrays: str) -> Any:
    copied = t.detach().clone(memory_format=torch.contiguous_format)
    if arrays == "jax":
        return importlib.import_module("jax.numpy").asarray(copied.numpy())
    return copied if arrays == "torch" else copied.numpy()
