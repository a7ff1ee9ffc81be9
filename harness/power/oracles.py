"""The oracles that people use today to test an optimizer, to measure beside stepcheck's own checks.

Each is written as its best users would write it: an oracle that is set up badly would flatter what it is compared with.
"""

from __future__ import annotations

import copy
import random
import textwrap
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stepcheck.harness.power import torch_tests
from stepcheck.harness.power.optim_db import only_matrices, only_sparse, options
from stepcheck.harness.power.torch_tests import Make, advance, torch_class


@dataclass(frozen=True)
class Oracle:
    """A way to tell a wrong optimizer from a right one.

    Attributes:
        name: what it is called in reports.
        told: what it does and where it is from, in one line.
        catches: of a class, the name of the optimizer of ``torch.optim`` that it is like and a seed for the data: why the class is
            wrong, or ``""``. What the class raises is a reason too, as it is in any test.
    """

    name: str
    told: str
    catches: Callable[[Make, str, int], str]


@contextmanager
def _alone(seed: int) -> Iterator[None]:
    """One thread, torch's usual dtype and generators that are seeded; and all put back, whatever a class does to it."""
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the one that a class under test may draw from
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        torch.set_default_dtype(torch.float32)
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _reason(test: Callable[..., None], *arguments: Any, **how: Any) -> str:
    """What a test says, in one line."""
    try:
        test(*arguments, **how)
    except Exception as error:  # noqa: BLE001 - whatever the class raises is caught by a test
        said = textwrap.shorten(f"{type(error).__name__}: {error}", 300, placeholder=" ...")
        return f"{test.__name__}: {said}".rstrip(": ")
    return ""


# assert_close

_STEPS = 20  # RAdam's step is another from the sixth on


def _network(like: str) -> torch.nn.Module:
    """Two layers; for Muon without biases, which are no matrices; for SparseAdam an embedding, whose gradients are sparse."""
    if only_sparse(like):
        return torch.nn.Embedding(12, 3, sparse=True)
    bias = not only_matrices(like)
    return torch.nn.Sequential(torch.nn.Linear(6, 8, bias=bias), torch.nn.Tanh(), torch.nn.Linear(8, 3, bias=bias))


def assert_close(make: Make, like: str) -> None:
    """Trains a network with the class and a copy of it with ``torch.optim``, and compares their parameters after each step.

    After each, as NVIDIA's tests of apex's fused optimizers do: at the end alone, both may have arrived at the same minimum. The options
    are those of PyTorch's tests, so that what sets the two oracles apart is what they look at.
    """
    for given in options(make, like):
        network = _network(like)
        other = copy.deepcopy(network)
        optimizer = make(network.parameters(), **copy.deepcopy(given))
        expected = torch_class(like)(other.parameters(), **copy.deepcopy(given))
        for _ in range(_STEPS):
            inputs = torch.randint(12, (16,)) if only_sparse(like) else torch.randn(16, 6)
            targets = torch.randn(16, 3)
            for side, model in ((optimizer, network), (expected, other)):
                advance(side, like, _training_step(side, model, inputs, targets))
            torch.testing.assert_close(list(network.parameters()), list(other.parameters()))


def _training_step(
    optimizer: Any, network: torch.nn.Module, inputs: torch.Tensor, targets: torch.Tensor
) -> Callable[[], torch.Tensor]:
    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(network(inputs), targets)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return evaluate


# The oracles


def _by_assert_close(make: Make, like: str, seed: int) -> str:
    with _alone(seed):
        return _reason(assert_close, make, like)


def _by_torch_tests(make: Make, like: str, seed: int) -> str:
    for test in torch_tests.TESTS:
        with _alone(seed):
            reason = _reason(test, make, like)
        if reason:
            return reason
    return ""


def _by_loss(make: Make, like: str, seed: int) -> str:
    with _alone(seed):
        return _reason(torch_tests.forloop_goes_right_direction, make, like, with_lrsched=False)


ORACLES: tuple[Oracle, ...] = (
    Oracle(
        "assert_close",
        "20 steps of a small network beside torch.optim in float32, its parameters compared by torch.testing.assert_close at its defaults",
        _by_assert_close,
    ),
    Oracle(
        "torch_tests",
        "PyTorch's own tests of its optimizers (TestOptimRenewed in test/test_optim.py), those that a class of somebody else can be asked",
        _by_torch_tests,
    ),
    Oracle(
        "loss_goes_down",
        "20 steps of a convex problem, after which the loss is lower (higher under maximize), as test_forloop_goes_right_direction asks",
        _by_loss,
    ),
)
