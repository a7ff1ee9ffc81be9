"""Optimizers of frameworks that own their parameters, dressed as classes of torch's: Keras 3, MLX and paddle.

A life has one optimizer of theirs with all of its parameters, which it copies there before each step, and back. So what is asked is what that
optimizer does with several of them: it counts its steps, and it loads what it has saved. It has one group, and of its options the learning rate
alone can be set later.
"""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from stepcheck.harness.play import frameworks
from stepcheck.harness.play.functions import FLUSHES, importing, options_of
from stepcheck.harness.play.shapes import Shape, dressed, unasked
from stepcheck.harness.support.lines import ClientError
from stepcheck.harness.support.usage import UsageError

_UNASKED = unasked(
    "a framework is given copies",
    "it is given parameters and their gradients in a step, and nothing else",
    "stepcheck keeps its groups and its state",
)


@dataclass(frozen=True)
class Framework:
    """One framework.

    Attributes:
        told: what an optimizer of it is, in words.
        module: what is imported of it.
        owner: has one optimizer of it, and its parameters.
        dtypes: those of parameters that it has.
        rate: the options that can be set between steps.
        configured: gives the environment in which it is configured as it is here.
        facts: gives how it computes here, by the names that a profile has for that.
        given: what the constructor is given beside the options.
        one_dtype: all parameters of one optimizer have the same dtype.
        shares: it counts the steps of all parameters together.
        names: what its optimizers call options and buffers, by that of the reference.
        own_names: the same of one optimizer alone, by the name of its reference.
    """

    told: str
    module: str
    owner: Callable[..., Any]
    dtypes: tuple[str, ...]
    rate: tuple[str, ...] = ("learning_rate",)
    configured: Callable[[], Mapping[str, str]] = dict
    facts: Callable[[], Mapping[str, Any]] = dict
    given: tuple[str, ...] = ()
    one_dtype: bool = False
    shares: bool = True
    names: Mapping[str, str] = field(default_factory=dict)
    own_names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def _backend() -> dict[str, str]:
    """What says on which backend Keras is, and whether that of JAX computes in float64."""
    name = importlib.import_module("keras").backend.backend()
    wide = name == "jax" and getattr(sys.modules.get("jax"), "config", None)
    return {"KERAS_BACKEND": name, **({"JAX_ENABLE_X64": "1"} if wide and wide.jax_enable_x64 else {})}


#: All of them, by the word that stands before the name of an optimizer.
FRAMEWORKS: Mapping[str, Framework] = {
    "keras": Framework(
        "an optimizer of Keras",
        "keras",
        frameworks.Keras,
        ("float32", "float64", "bfloat16", "float16"),
        configured=_backend,
        facts=lambda: FLUSHES if _backend()["KERAS_BACKEND"] == "jax" else {},
        names={
            "lr": "learning_rate", "betas": "beta_1, beta_2", "eps": "epsilon", "alpha": "rho", "exp_avg": "momentum",
            "exp_avg_sq": "velocity", "max_exp_avg_sq": "velocity_hat", "square_avg": "velocity", "sum": "accumulator",
            "grad_avg": "average_gradient", "acc_delta": "accumulated_delta_var", "exp_inf": "norm",
            "mu_product": "variable",
        },
        own_names={"RMSprop": {"momentum_buffer": "momentum"}, "Adadelta": {"square_avg": "accumulated_grad"}},
    ),
    "mlx": Framework(
        "an optimizer of MLX",
        "mlx.core",
        frameworks.MLX,
        # It keeps learning rates in float32.
        ("float32", "bfloat16", "float16"),
        names={
            "lr": "learning_rate", "exp_avg": "m", "exp_avg_sq": "v", "momentum_buffer": "v", "square_avg": "v", "sum": "v",
            "acc_delta": "u", "exp_inf": "v",
        },
    ),
    "paddle": Framework(
        "an optimizer of paddle",
        "paddle",
        frameworks.Paddle,
        ("float32", "float64", "bfloat16", "float16"),
        given=("parameters",),
        one_dtype=True,  # that of its learning rate
        shares=False,
        names={
            "lr": "learning_rate", "betas": "beta1, beta2", "eps": "epsilon", "alpha": "rho", "nesterov": "use_nesterov",
            "exp_avg": "moment1", "exp_avg_sq": "moment2", "max_exp_avg_sq": "moment2_max", "momentum_buffer": "velocity",
            "square_avg": "mean_square", "grad_avg": "mean_grad", "sum": "moment", "acc_delta": "_avg_squared_update",
            "exp_inf": "inf_norm",
        },
        own_names={
            "RMSprop": {"momentum_buffer": "momentum"},
            "Adadelta": {"square_avg": "_avg_squared_grad"},
            "Adamax": {"exp_avg": "moment"},
        },
    ),
}  # fmt: skip


class Owned(frameworks.Owned):
    """An optimizer of a framework, dressed as one of torch's."""

    stepcheck_shape: ClassVar[Shape]

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of theirs.

        Raises:
            ClientError: it does not arrive at values of the parameters.
        """
        try:
            return super().step(closure)
        except frameworks.OwnerError as error:
            raise ClientError(str(error)) from None

    @classmethod
    def narrows(cls, dtype: str, options: Mapping[str, Any]) -> str:
        """That a step of a parameter of this dtype is computed in another one, in words, or nothing."""
        p = torch.ones(2, 2, dtype=getattr(torch, dtype), requires_grad=True)
        p.grad = torch.ones_like(p).detach()
        try:
            cls([p], **options).step()
        except (ClientError, frameworks.OwnerError) as error:
            return str(error)
        except Exception:  # noqa: BLE001 - a life will show it
            return ""
        return ""


def _configuring(environment: Mapping[str, str]) -> str:
    """The statements that a script needs before it imports a framework."""
    return f"import os; os.environ.update({dict(environment)!r}); " if environment else ""


def owned(word: str, make: Callable[..., Any], *, imports: str = "") -> type[Owned]:
    """An optimizer class of a framework's.

    Args:
        word: the framework, as :data:`FRAMEWORKS` has it.
        make: called with the options, by their names, such as ``keras.optimizers.Adam``; it returns an optimizer.
        imports: the statement with which a script imports ``make`` under that name, where it is not to be imported from its own module.

    Raises:
        UsageError: there is no such framework, or it cannot be imported here; the signature of ``make`` cannot be read, or it takes no learning rate.
    """
    if word not in FRAMEWORKS:
        raise UsageError(f"no framework {word!r}; there is {', '.join(FRAMEWORKS)}")
    framework = FRAMEWORKS[word]
    module, attribute = getattr(make, "__module__", "__main__"), getattr(make, "__qualname__", "optimizer")
    name = f"{word}:{module}:{attribute}"
    try:
        importlib.import_module(framework.module)
    except ImportError as error:
        raise UsageError(f"{name}: cannot import {framework.module} ({error})") from None
    options = {k: v for k, v in options_of(name, make).items() if k not in framework.given}
    if lacking := [k for k in framework.rate if k not in options]:
        raise UsageError(f"{name} has no option {lacking[0]!r}; {framework.told} has one")
    shape = Shape(
        name,
        framework.told,
        framework.dtypes,
        _UNASKED,
        "Owned",
        options,
        imports=_configuring(framework.configured()) + (imports or importing(module, attribute)),
        shares=framework.shares,
        one_dtype=framework.one_dtype,
        names=framework.names,
        own_names=framework.own_names,
        facts=framework.facts(),
    )
    own = {
        "make": staticmethod(make),
        "owner": framework.owner,
        "defaults_of": {k: v for k, v in options.items() if v is not inspect.Parameter.empty},
        "rate": framework.rate,
    }
    called = attribute.rpartition(".")[2]
    return dressed(Owned, called if called.isidentifier() else "Owned", shape, **own)
