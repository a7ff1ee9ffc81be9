"""Optimizers of frameworks that own their parameters, behind one face: what Keras, MLX and paddle have instead of ``torch.optim``.

Nothing of stepcheck is needed here: scripts have it written out. A framework is imported by who names one of its optimizers, and not before.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch


class OwnerError(ValueError):
    """A framework's optimizer arrives at what is no step of its parameters."""


def to_array(t: torch.Tensor) -> Any:
    """A tensor as an array of its own; NumPy has no bfloat16, and float32 holds all of it."""
    copied = t.detach().clone(memory_format=torch.contiguous_format)
    return (copied.float() if t.dtype == torch.bfloat16 else copied).numpy()


def to_state(array: Any) -> Any:
    """An array as a state of torch's has it; what counts is a number."""
    array = np.asarray(array)
    if array.dtype.kind in "biu" and not array.ndim:
        return int(array)
    return torch.from_numpy(np.array(array)) if array.ndim else float(array)


def dtype_of(t: torch.Tensor) -> str:
    """What a dtype of torch's is called anywhere."""
    return str(t.dtype).removeprefix("torch.")


def widest(parameters: Sequence[torch.Tensor]) -> str:
    """What a framework is to compute in by default, where these are its parameters."""
    return "float64" if any(p.dtype == torch.float64 for p in parameters) else "float32"


class Keras:
    """An optimizer of Keras 3 and its variables, on whatever backend is configured."""

    def __init__(
        self, make: Callable[..., Any], options: Mapping[str, Any], parameters: Sequence[torch.Tensor]
    ) -> None:
        keras: Any = importlib.import_module("keras")
        self.keras, self.floatx = keras, widest(parameters)
        keras.config.set_floatx(self.floatx)  # which its learning rate is kept in
        one = keras.ops.ones(1, self.floatx)
        if (dtype := keras.backend.standardize_dtype(keras.ops.add(one, one).dtype)) != self.floatx:
            raise OwnerError(f"computes {dtype} of a parameter that is {self.floatx}")
        self.variables = [
            keras.Variable(to_array(p), dtype=dtype_of(p), name=f"p{n}") for n, p in enumerate(parameters)
        ]
        self.optimizer = make(**options)
        self.optimizer.build(self.variables)

    def step(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], rate: Mapping[str, Any]
    ) -> None:
        """A step of those that have a gradient."""
        self.keras.config.set_floatx(self.floatx)
        for variable, p in zip(self.variables, parameters, strict=True):
            variable.assign(to_array(p))
        for name, value in rate.items():
            setattr(self.optimizer, name, value)
        tensors = (
            None if g is None else self.keras.ops.convert_to_tensor(to_array(g), dtype=dtype_of(g)) for g in gradients
        )
        self.optimizer.apply(list(tensors), self.variables)

    def array(self, variable: Any) -> Any:
        """What a variable holds."""
        value = variable.value
        narrow = str(variable.dtype) == "bfloat16"
        return self.keras.ops.convert_to_numpy(self.keras.ops.cast(value, "float32") if narrow else value)

    def values(self) -> list[Any]:
        """The parameters."""
        return [self.array(variable) for variable in self.variables]

    def named(self, n: int) -> dict[str, Any]:
        """The variables of the optimizer that are about a parameter, by the last part of their paths; several of one name are counted."""
        rate = getattr(self.optimizer, "_learning_rate", None)
        found: dict[str, Any] = {}
        for variable in self.optimizer.variables:
            name = variable.path.rpartition("/")[2]
            if variable is rate or name.partition("_")[0] in self.others(n):
                continue
            name = name.removeprefix(f"p{n}").removeprefix("_") or "slot"
            # What nobody named is counted in the process.
            name = "variable" if re.fullmatch(r"variable(_\d+)?", name) else {"iteration": "step"}.get(name, name)
            while name in found:
                name += "_"
            found[name] = variable
        return found

    def others(self, n: int) -> set[str]:
        """What variables of other parameters begin with."""
        return {f"p{m}" for m in range(len(self.variables)) if m != n}

    def states(self) -> list[dict[str, Any]]:
        """What is kept for each parameter, and for all."""
        return [{name: self.array(v) for name, v in self.named(n).items()} for n in range(len(self.variables))]

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from there, as Keras loads what it has saved."""
        store: dict[str, Any] = {}
        self.optimizer.save_own_variables(store)
        at = {id(v): str(k) for k, v in enumerate(self.optimizer.variables)}
        for n, state in enumerate(states):
            of = {name: at[id(v)] for name, v in self.named(n).items()}
            store.update({of[name]: value for name, value in state.items() if name in of})
        self.optimizer.load_own_variables(store)


class MLX:
    """An optimizer of MLX and its arrays."""

    def __init__(
        self, make: Callable[..., Any], options: Mapping[str, Any], parameters: Sequence[torch.Tensor]
    ) -> None:
        self.mx: Any = importlib.import_module("mlx.core")
        self.optimizer = make(**options)
        self.arrays = {f"p{n}": self.array(p) for n, p in enumerate(parameters)}
        self.optimizer.init(self.arrays)

    def array(self, t: torch.Tensor) -> Any:
        """A tensor as an array of MLX's."""
        return self.mx.array(to_array(t), dtype=getattr(self.mx, dtype_of(t)))

    def numpy(self, array: Any) -> Any:
        """And back."""
        return np.array(array.astype(self.mx.float32) if array.dtype == self.mx.bfloat16 else array)

    def step(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], rate: Mapping[str, Any]
    ) -> None:
        """A step of those that have a gradient."""
        self.arrays = {f"p{n}": self.array(p) for n, p in enumerate(parameters)}
        for name, value in rate.items():
            setattr(self.optimizer, name, value)
        given = {f"p{n}": self.array(g) for n, g in enumerate(gradients) if g is not None}
        self.arrays |= self.optimizer.apply_gradients(given, self.arrays)
        self.mx.eval(self.arrays, self.optimizer.state)

    def values(self) -> list[Any]:
        """The parameters."""
        return [self.numpy(array) for array in self.arrays.values()]

    def states(self) -> list[dict[str, Any]]:
        """What is kept for each parameter, and the count of steps."""
        return [
            {name: self.numpy(v) for name, v in {"step": self.optimizer.step, **self.optimizer.state[p]}.items()}
            for p in self.arrays
        ]

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from there: its state is a tree that is assigned."""
        state = dict(self.optimizer.state)
        for p, kept in zip(self.arrays, states, strict=True):
            begun = {"step": state["step"], **state[p]}
            held = {k: self.mx.array(np.asarray(v)).astype(begun[k].dtype) for k, v in kept.items() if k in begun}
            state["step"] = held.pop("step", state["step"])
            state[p] = {**state[p], **held}
        self.optimizer.state = state
        self.optimizer.init(self.arrays)


class Paddle:
    """An optimizer of paddle and its parameters."""

    def __init__(
        self, make: Callable[..., Any], options: Mapping[str, Any], parameters: Sequence[torch.Tensor]
    ) -> None:
        paddle: Any = importlib.import_module("paddle")
        self.paddle, self.default = paddle, widest(parameters)
        paddle.set_default_dtype(self.default)  # which its learning rate is kept in
        self.parameters = [self.parameter(p) for p in parameters]
        self.optimizer = make(parameters=self.parameters, **options)

    def tensor(self, t: torch.Tensor) -> Any:
        """A tensor as one of paddle's."""
        return self.paddle.to_tensor(to_array(t)).astype(dtype_of(t))

    def parameter(self, p: torch.Tensor) -> Any:
        """A parameter that has a name of its own in this process."""
        made = self.paddle.create_parameter(list(p.shape), dtype=dtype_of(p))
        self.paddle.assign(self.tensor(p), made)
        return made

    def numpy(self, tensor: Any) -> Any:
        """A tensor of paddle's as an array."""
        return (tensor.astype("float32") if tensor.dtype == self.paddle.bfloat16 else tensor).numpy()

    def step(
        self, parameters: Sequence[torch.Tensor], gradients: Sequence[torch.Tensor | None], rate: Mapping[str, Any]
    ) -> None:
        """A step of those that have a gradient."""
        self.paddle.set_default_dtype(self.default)
        for value in rate.values():
            self.optimizer.set_lr(value)
        for own, p, g in zip(self.parameters, parameters, gradients, strict=True):
            with self.paddle.no_grad():
                self.paddle.assign(self.tensor(p), own)
            own.grad = None if g is None else self.tensor(g)
        self.optimizer.step()
        self.optimizer.clear_grad(set_to_zero=False)

    def values(self) -> list[Any]:
        """The parameters."""
        return [self.numpy(p) for p in self.parameters]

    def names(self, n: int) -> dict[str, str]:
        """What its dictionary calls the entries of a parameter: ``NAME_moment1_0``."""
        begins = f"{self.parameters[n].name}_"
        return {
            key.removeprefix(begins).rpartition("_")[0]: key
            for key in self.optimizer.state_dict()
            if key.startswith(begins)
        }

    def states(self) -> list[dict[str, Any]]:
        """What is kept for each parameter."""
        saved = self.optimizer.state_dict()
        return [
            {name: self.numpy(saved[key]) for name, key in self.names(n).items()} for n in range(len(self.parameters))
        ]

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Go on from there, as paddle loads what it has saved."""
        self.optimizer.set_state_dict(
            {
                f"{p.name}_{name}_0": self.paddle.to_tensor(value)
                for p, state in zip(self.parameters, states, strict=True)
                for name, value in state.items()
            }
        )


class Owned(torch.optim.Optimizer):
    """What a framework owns, dressed as an optimizer of torch's: one group of parameters, whose learning rate can be set."""

    make: ClassVar[Callable[..., Any]]
    owner: ClassVar[Callable[..., Any]]
    defaults_of: ClassVar[Mapping[str, Any]]
    rate: ClassVar[tuple[str, ...]]
    theirs: Any = None

    def __init__(self, params: Any, **options: Any) -> None:
        self.held = {**self.defaults_of, **options}
        super().__init__(params, {name: self.held.pop(name) for name in self.rate})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The first; no other one."""
        if self.param_groups:
            raise NotImplementedError("it has one group of parameters")
        super().add_param_group(param_group)
        self.renew()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "held": self.held}

    def load_state_dict(self, state_dict: Any) -> None:
        """Another state, from which another one of theirs goes on."""
        super().load_state_dict(state_dict)
        self.theirs = None

    def renew(self) -> None:
        """Let there be one of theirs, that has this state."""
        (group,) = self.param_groups
        self.over = list(group["params"])
        self.theirs = self.owner(type(self).make, {**self.held, **{k: group[k] for k in self.rate}}, group["params"])
        if any(self.state.values()):
            self.theirs.load(
                [
                    {k: to_array(v) if torch.is_tensor(v) else v for k, v in self.state[p].items()}
                    for p in group["params"]
                ]
            )
        self.keep()

    def keep(self) -> None:
        """The state, as torch has it."""
        (group,) = self.param_groups
        for p, state in zip(group["params"], self.theirs.states(), strict=True):
            if state:
                of = {name: to_state(v) for name, v in state.items()}
                self.state[p] = {
                    k: v.to(p.dtype) if torch.is_tensor(v) and v.is_floating_point() else v for k, v in of.items()
                }

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """A step of theirs, and what comes of it."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        (group,) = self.param_groups
        params, gradients = group["params"], [p.grad for p in group["params"]]
        if any(g is not None and g.is_sparse for g in gradients):
            raise NotImplementedError("it takes dense gradients alone")
        if all(g is None for g in gradients):
            return loss
        if self.theirs is None or list(map(id, self.over)) != list(map(id, params)):
            self.renew()  # a framework's optimizer keeps the parameters that it was made with
        self.theirs.step(params, gradients, {k: group[k] for k in self.rate})
        for p, value in zip(params, self.theirs.values(), strict=True):
            if value.shape != p.shape:
                raise OwnerError(f"has a parameter of shape {value.shape}, which was {tuple(p.shape)}")
            if value.dtype.itemsize < p.dtype.itemsize:
                raise OwnerError(f"computes {value.dtype} of a parameter that is {dtype_of(p)}")
            p.copy_(torch.from_numpy(np.array(value)))
        self.keep()
        return loss
