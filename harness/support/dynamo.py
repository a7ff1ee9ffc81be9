"""torch imports its compiler when the first optimizer is constructed, which takes longer than to import torch. Here: when something is compiled."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch

#: Where torch keeps what stands in for a method that the compiler must leave alone.
_KEPT = "__dynamo_disable"


@functools.cache
def late() -> None:
    """Let methods of optimizers that the compiler must leave alone run without it, until it is there.

    torch wraps them so that its compiler is asked at the first call, and imported for that. Where it is not imported, nothing is compiled,
    and there is nobody to ask.
    """
    for method in vars(torch.optim.Optimizer).values():
        function = getattr(method, "__wrapped__", None)
        if function is not None and _asks_first(method) and not hasattr(function, _KEPT):
            setattr(function, _KEPT, _until_compiled(method, function))


def _asks_first(method: Any) -> bool:
    return getattr(getattr(method, "__code__", None), "co_filename", "").endswith("_compile.py")


def _until_compiled(method: Callable[..., Any], function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **options)
        delattr(function, _KEPT)  # from now on as torch has it
        return method(*args, **options)

    return run
