"""A state that is a tree, as pure functions keep it: its arrays by name. What stands in it alone, as in a list of one parameter, has no name of its own.

Nothing of stepcheck is needed here: scripts have it written out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch


class TreeError(ValueError):
    """What functions return is no tree of arrays, or not of one parameter."""


def pair(made: Any) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The functions ``init`` and ``update`` of what has them, or is the two."""
    init, update = getattr(made, "init", None), getattr(made, "update", None)
    if isinstance(made, tuple) and len(made) == 2:
        init, update = made
    if not callable(init) or not callable(update):
        raise TreeError(f"makes something of type {type(made).__name__}, which is no pair of functions init and update")
    return init, update


def added(parameters: list[Any], updates: Any) -> list[Any]:
    """How updates are applied, where nobody says how."""
    return [p + u for p, u in zip(parameters, updates, strict=True)]


def only(tree: Any) -> torch.Tensor:
    """The array that a list of one parameter became."""
    arrays = [leaf for _, leaf in leaves(tree)]
    if len(arrays) != 1:
        raise TreeError(f"returns {len(arrays)} arrays, where one parameter was given")
    return arrays[0].detach() if isinstance(arrays[0], torch.Tensor) else torch.from_numpy(np.array(arrays[0]))


def parts(tree: Any) -> tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]] | None:
    """The parts of a tree with their names, and what makes such a tree of others; of a leaf, nothing."""
    if isinstance(tree, dict):
        return [(str(k), v) for k, v in tree.items()], lambda of: dict(zip(tree, of, strict=True))
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return list(zip(tree._fields, tree, strict=True)), lambda of: type(tree)(*of)
    if isinstance(tree, list | tuple):
        return [("" if len(tree) == 1 else str(n), part) for n, part in enumerate(tree)], type(tree)
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        names = [f.name for f in dataclasses.fields(tree)]
        return [(n, getattr(tree, n)) for n in names], lambda of: type(tree)(**dict(zip(names, of, strict=True)))
    return ([], lambda _: tree) if tree is None else None


def leaves(tree: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The leaves of a tree, each with the names that lead to it."""
    inner = parts(tree)
    if inner is None:
        yield path, tree
    for name, part in () if inner is None else inner[0]:
        yield from leaves(part, (*path, name) if name else path)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The arrays of a state: each by its last name, and by all of them where another has that as well."""
    found = list(leaves(tree))
    last = [path[-1] if path else "state" for path, _ in found]
    return {n if last.count(n) == 1 else ".".join(path): leaf for n, (path, leaf) in zip(last, found, strict=True)}


def filled(tree: Any, values: Mapping[str, Any]) -> Any:
    """A state of this form with the values that were kept; what is new in it is as it begins."""
    begun = named_leaves(tree)
    return with_leaves(tree, iter([restored(values[n], leaf) if n in values else leaf for n, leaf in begun.items()]))


def with_leaves(tree: Any, values: Iterator[Any]) -> Any:
    """A tree of this form with other leaves."""
    inner = parts(tree)
    return next(values) if inner is None else inner[1]([with_leaves(part, values) for _, part in inner[0]])


def stored(leaf: Any, p: torch.Tensor) -> Any:
    """An array as a state of torch's has it: of the parameter's dtype, but whole numbers, and numbers beside arrays, as they are."""
    array = leaf.detach().numpy() if isinstance(leaf, torch.Tensor) else np.asarray(leaf)
    if array.dtype.kind not in "biuf":
        raise TreeError(f"keeps something of type {type(leaf).__name__} in its state, which is no array of numbers")
    if array.dtype.kind != "f" or (not array.ndim and p.dim()):
        return array.tolist()
    return torch.from_numpy(np.array(array)).to(p.dtype)


def restored(value: Any, leaf: Any) -> Any:
    """What was kept, as what stands in a state that begins."""
    if isinstance(leaf, bool | int | float):
        return type(leaf)(value)
    array = value.detach().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if isinstance(leaf, torch.Tensor):
        return torch.tensor(array, dtype=leaf.dtype).reshape(leaf.shape)
    like = np.asarray(leaf)
    return np.array(array, like.dtype).reshape(like.shape)
