"""Drop-in classes for ``torch.optim`` over batched kernels, one for each of its optimizers.

>>> from stepcheck.fast import AdamW  # instead of torch.optim

A rule (:mod:`.rules`) says what happens to one element, in Python; :mod:`.kernels` writes the loops round it, :mod:`.compiler` puts them into LLVM's
language; :mod:`.native` compiles, keeps, loads and runs them; :mod:`.engine` makes tables of parameters, gradients and state, and runs one kernel over all of them;
:mod:`.optimizer` is what the classes share, :mod:`.shards` what is different where parameters are DTensors.

What the kernels do not take is stepped by torch's own code; ``optimizer.engine`` says who steps each group, and why.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from stepcheck.fast.adafactor import Adafactor as Adafactor
from stepcheck.fast.classes import *  # noqa: F403 - each class that stands there
from stepcheck.fast.engine import Served as Served
from stepcheck.fast.lbfgs import LBFGS as LBFGS
from stepcheck.fast.optimizer import Fast
from stepcheck.fast.rules import Rule

if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    from stepcheck.fast.muon import Muon as Muon


def _own() -> dict[str, Any]:
    """The classes here, by name."""
    found = ((name, cls) for name, cls in globals().items() if isinstance(cls, type) and issubclass(cls, Fast))
    return {name: cls for name, cls in sorted(found) if cls.named() == name}


#: The rule of each class whose step is one.
RULES: dict[str, Rule] = {name: cls.rule for name, cls in _own().items() if hasattr(cls, "rule")}

if not TYPE_CHECKING:  # to a type checker all names are public that are imported for others
    __all__ = [*_own(), "Served"]  # noqa: PLE0604 - they are names


def __getattr__(name: str) -> Any:
    if name == "Muon":
        raise AttributeError(
            f"torch {torch.__version__} has no torch.optim.Muon to stand in for; torch 2.9 and later have"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
