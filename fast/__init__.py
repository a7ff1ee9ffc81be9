"""Drop-in classes for ``torch.optim`` over batched kernels, one for each of its optimizers.

>>> from stepcheck.fast import AdamW  # instead of torch.optim

A rule (:mod:`.rules`) says what happens to one element, in Python; :mod:`.kernels` writes the loops round it, :mod:`.compiler` puts them into LLVM's
language; :mod:`.native` compiles, keeps, loads and runs them; :mod:`.engine` makes tables of parameters, gradients and state, and runs one kernel over all of them;
:mod:`.optimizer` is what the classes share, :mod:`.shards` what is different where parameters are DTensors.

What the kernels do not take is stepped by torch's own code; ``optimizer.engine`` says who steps each group, and why.
"""

from __future__ import annotations

from typing import Any

import torch

from stepcheck.fast.adafactor import Adafactor
from stepcheck.fast.classes import (
    ASGD,
    SGD,
    Adadelta,
    Adagrad,
    Adam,
    Adamax,
    AdamW,
    NAdam,
    RAdam,
    RMSprop,
    Rprop,
    SparseAdam,
)
from stepcheck.fast.engine import Served
from stepcheck.fast.lbfgs import LBFGS

if hasattr(torch.optim, "Muon"):  # from torch 2.9 on
    from stepcheck.fast.muon import Muon

__all__ = [
    "ASGD",
    "LBFGS",
    "SGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Served",
    "SparseAdam",
]

if hasattr(torch.optim, "Muon"):
    __all__ += ["Muon"]


def __getattr__(name: str) -> Any:
    if name == "Muon":
        raise AttributeError(
            f"torch {torch.__version__} has no torch.optim.Muon to stand in for; torch 2.9 and later have"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
