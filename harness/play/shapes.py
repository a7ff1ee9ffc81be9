"""Shapes of optimizer that are no class of torch's: each is dressed as one, and says what only the dress could answer.

A process is any program that speaks JSON lines. It is sent one parameter at a time, with all that a step needs, and answers with what comes of
it; groups, state, closures, hooks and checkpoints are those of ``torch.optim.Optimizer``.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from stepcheck.harness.support.lines import Client, ClientError
from stepcheck.harness.support.text import in_one_line
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import Spec

#: What stands before the command of a process, where a subject is named.
PROCESS = "process"
#: How long a process may take to say what it is: what interprets or compiles it has to be loaded.
GREETING_SECONDS = 30.0
#: What a process is greeted with: the version of the protocol.
GREETING = {"hello": 1}
#: The dtypes that a process takes where it does not say; and those that it may say.
_USUAL, _POSSIBLE = ("float32", "float64"), ("float32", "float64", "bfloat16", "float16")
#: Of whole numbers, those that every format of a state holds.
_MOST = 1 << 63
#: Checks whose answer would be the dress's: about memory, about what is no step of a parameter, and about groups and state.
_ABOUT_MEMORY = ("memory-beside", "gradient-unwritten", "storage-stays")
_ABOUT_OTHERS = (
    "no-gradient", "between-steps", "refuses-invalid", "closure", "hooks-run-once", "failed-step", "skipped-step",
)  # fmt: skip
_ABOUT_WHAT_IS_KEPT = ("options-hold", "malformed-state", "dicts-unchanged", "loaded-state-apart")


def unasked(memory: str, others: str, kept: str) -> dict[str, str]:
    """Checks that what is dressed could fail none of, whatever it did, each with why.

    Args:
        memory: why it cannot spoil memory.
        others: why it has no part in what is no step of a parameter.
        kept: why groups and state are not its own.
    """
    whys = {memory: _ABOUT_MEMORY, others: _ABOUT_OTHERS, kept: _ABOUT_WHAT_IS_KEPT}
    return {check: why for why, checks in whys.items() for check in checks}


_UNASKED = unasked(
    "a process is sent numbers, and no memory",
    "it is sent a parameter and its gradient in a step, and nothing else",
    "stepcheck keeps its groups and its state",
) | dict.fromkeys(("random-state", "settings-kept"), "it has a process of its own")


@dataclass(frozen=True)
class Shape:
    """What an optimizer is that is no class of torch's.

    Attributes:
        name: as it is written on the command line.
        told: what it is, in words.
        dtypes: the parameter dtypes that it takes.
        unasked: of each check whose answer would be the dress's and not its own, why.
        callee: what a script calls to construct it.
        options: its options, with their defaults; ``inspect.Parameter.empty`` where there is none.
        command: of a process, the program and its arguments.
        imports: the import statement that a script needs for it, if any.
        shares: a step of some parameters changes what is kept for all, such as a count.
        one_dtype: all of its parameters have the same dtype.
        names: what it calls options and buffers, by that of the reference, where nobody says otherwise.
        own_names: the same, held to one reference alone.
        facts: how it computes, by the names that a profile has for that.
    """

    name: str
    told: str
    dtypes: tuple[str, ...]
    unasked: Mapping[str, str]
    callee: str
    options: Mapping[str, Any]
    command: tuple[str, ...] = ()
    imports: str = ""
    shares: bool = False
    one_dtype: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    own_names: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_sent(self) -> bool:
        """Whether it is sent numbers as text, however they were given."""
        return bool(self.command)

    def names_of(self, spec: Spec) -> dict[str, str]:
        """What it calls options and buffers of a reference, of those that it has."""
        options, buffers = {h.name for h in spec.hyper} - self.options.keys(), {b.name for b in spec.buffers}
        names = {**self.names, **self.own_names.get(spec.name, {})}
        taken = {ours for ours in options if ours in names and {*names[ours].split(", ")} <= self.options.keys()}
        return {ours: theirs for ours, theirs in names.items() if ours in taken | buffers}

    def lacks(self, spec: Spec) -> str:
        """Why it cannot be held to a reference, or nothing."""
        if spec.closure:
            return f"{self.told} takes no closure, and {spec.name} evaluates one in its step"
        return (
            f"{self.told} takes no sparse gradients, and {spec.name} takes no others" if spec.sparse == "only" else ""
        )


def shape_of(make: Callable[..., Any]) -> Shape | None:
    """The shape of what is dressed here as a class of torch's."""
    shape = getattr(make, "stepcheck_shape", None)
    return shape if isinstance(shape, Shape) else None


class Dressed(torch.optim.Optimizer):
    """What is no class of torch's, dressed as one: it is given a step of one parameter at a time, and keeps nothing."""

    stepcheck_shape: ClassVar[Shape]

    def __init__(self, params: Any, **options: Any) -> None:
        own = self.stepcheck_shape.options
        if unknown := [name for name in options if name not in own]:
            raise TypeError(f"it has no option {unknown[0]!r}; it has {', '.join(own)}")
        given = {**own, **options}
        if missing := [name for name, value in given.items() if value is inspect.Parameter.empty]:
            raise TypeError(f"it has no default for {missing[0]!r}")
        super().__init__(params, given)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """A group more, whose options it may refuse."""
        super().add_param_group(param_group)
        try:
            self._look_at(self._options(self.param_groups[-1]))
        except Exception:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Each parameter that has a gradient is given, and what comes of it is stored once all are there."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        members = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        answers = [(p, *self._checked(p, group)) for p, group in members]
        for p, value, state in answers:
            p.copy_(value)
            self.state[p] = state
        return loss

    def _checked(self, p: torch.Tensor, group: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, Any]]:
        if p.grad is None or p.grad.is_sparse:
            raise NotImplementedError(f"{self.stepcheck_shape.told} takes dense gradients alone")
        return self._stepped(p, p.grad, self._options(group))

    def _options(self, group: Mapping[str, Any]) -> dict[str, Any]:
        return {name: group.get(name, default) for name, default in self.stepcheck_shape.options.items()}

    def _look_at(self, options: Mapping[str, Any]) -> None:
        """Raise what it says of options that it refuses, where it looks at them before it steps."""

    def _stepped(
        self, p: torch.Tensor, gradient: torch.Tensor, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        """The parameter and its state, after a step."""
        raise NotImplementedError


def dressed(base: type[torch.optim.Optimizer], called: str, shape: Shape, **own: Any) -> type[Any]:
    """A class of what has this shape, with a signature that names its options."""
    # inspect, and all that goes by it, finds the signature there.
    return type(called, (base,), {"stepcheck_shape": shape, "__signature__": _signature(shape.options), **own})


class Process(Dressed):
    """A program, dressed as an optimizer of torch's."""

    client: ClassVar[Client]
    validates: ClassVar[bool]

    def _look_at(self, options: Mapping[str, Any]) -> None:
        if self.validates:
            self.client.ask({"options": _sent_all(options)})

    def _stepped(
        self, p: torch.Tensor, gradient: torch.Tensor, options: Mapping[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        kept = self.state.get(p) or {}
        state = {name: _flat(x, p) if isinstance(x, torch.Tensor) else _sent(x) for name, x in kept.items()}
        request = {
            "options": _sent_all(options),
            "parameter": _flat(p, p),
            "gradient": _flat(gradient, p),
            "state": state or None,
            "shape": list(p.shape),
            "dtype": str(p.dtype).removeprefix("torch."),
        }
        answer = self.client.ask({"step": request})
        try:
            return _read(answer, p)
        except ClientError:
            self.client.end()  # what it says next would be no better
            raise


def _flat(t: torch.Tensor, p: torch.Tensor) -> Any:
    """A tensor as it is sent: of a parameter's shape as one list, row by row; of another as nested lists."""
    wide = t.detach().to("cpu", torch.float64)
    wide = wide.reshape(-1) if t.shape == p.shape else wide
    return wide.tolist() if bool(torch.isfinite(wide).all()) else _sent(wide.tolist())


def _sent(x: Any) -> Any:
    """An option or a number as JSON has it: what is not finite has no other form than its name."""
    if isinstance(x, list | tuple):
        return [_sent(entry) for entry in x]
    if isinstance(x, torch.Tensor | np.generic):
        return _sent(x.tolist())
    return json.dumps(x) if isinstance(x, float) and not math.isfinite(x) else x


def _sent_all(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _sent(value) for name, value in options.items()}


def _read(answer: Mapping[str, Any], p: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
    """What a process answers to a step.

    Raises:
        ClientError: it is not what one answers to that.
    """
    value, state = answer.get("parameter"), answer.get("state")
    if not isinstance(value, list):
        raise ClientError(f"answers no list as parameter, but {_short(value)}")
    stepped = _tensor(value, p, "parameter")
    if stepped.shape != p.shape:
        raise ClientError(f"answers {_numbers(stepped.numel())} as parameter, which has {_numbers(p.numel())}")
    if not isinstance(state, dict | None):
        raise ClientError(f"answers no object as state, but {_short(state)}")
    return stepped, {name: _entry(x, p, name) for name, x in (state or {}).items()}


def _numbers(n: int) -> str:
    return "one number" if n == 1 else f"{n} numbers"


def _entry(x: Any, p: torch.Tensor, name: str) -> Any:
    """An entry of a state: a number stays one, a list is a tensor."""
    if isinstance(x, list):
        return _tensor(x, p, name)
    if isinstance(x, str):
        return _number(x, name)
    if isinstance(x, dict) or (isinstance(x, int) and abs(x) >= _MOST):
        raise ClientError(f"answers {_short(x)} as {name}, which is no number and no list")
    return x


def _tensor(values: list[Any], p: torch.Tensor, name: str) -> torch.Tensor:
    """Lists as a tensor of the parameter's dtype, of its shape where they are one list of as many numbers."""
    try:
        try:
            made = torch.tensor(values, dtype=torch.float64)
        except (TypeError, ValueError, RuntimeError):
            made = torch.tensor(_as_numbers(values, name), dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError, RecursionError):
        raise ClientError(
            f"answers {_short(values)} as {name}, which are no numbers, or rows that are not of one length"
        ) from None
    made = made.reshape(p.shape) if made.dim() == 1 and made.numel() == p.numel() else made
    return made.to(p.device, p.dtype)


def _as_numbers(x: Any, name: str) -> Any:
    """With numbers for their names."""
    if isinstance(x, list):
        return [_as_numbers(entry, name) for entry in x]
    return _number(x, name) if isinstance(x, str) else x


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ClientError(f"answers {_short(text)} as {name}, which is no number") from None


def _short(x: Any) -> str:
    text = in_one_line(json.dumps(x))
    return text if len(text) <= 80 else f"{text[:80]}..."


def process(command: str) -> type[Process]:
    """An optimizer class that has a program step its parameters.

    Args:
        command: the program and its arguments, as a shell has them: ``"node adam.mjs"``.

    Raises:
        UsageError: the program cannot be started, or does not say what it is.
    """
    name = f"{PROCESS}:{command}"
    words = _words(name, command)
    client = Client(words, GREETING)
    try:
        about = client.greet(GREETING_SECONDS)
        options, dtypes, validates = _about(about)
    except ClientError as error:
        raise UsageError(f"{name} {error}; asked was {json.dumps(GREETING)}") from None
    finally:
        client.end()
    shape = Shape(name, "a process", dtypes, _UNASKED, "Client", options, words)
    called = re.sub(r"\W", "_", Path(words[-1]).stem) or "Client"
    return dressed(Process, called, shape, client=client, validates=validates)


def _words(name: str, command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise UsageError(f"{name}: the command cannot be read ({error})") from None
    if not words:
        raise UsageError(f"{name}: name a command after the colon, as in {PROCESS}:node adam.mjs")
    return words


def _about(about: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...], bool]:
    """What a process says of itself: its options, the dtypes that it takes, and whether it looks at options before steps.

    Raises:
        ClientError: it does not.
    """
    given, dtypes, validates = about.get("options"), about.get("dtypes", list(_USUAL)), about.get("validates", False)
    if not isinstance(given, dict):
        raise ClientError(f"answers no object as options, but {_short(about)}")
    for name in given:
        if not name.isidentifier() or name in ("params", "self"):
            raise ClientError(f"has an option {name!r}, which is no name of an option")
    if not isinstance(dtypes, list) or not dtypes or not all(d in _POSSIBLE for d in dtypes):
        raise ClientError(f"answers {_short(dtypes)} as dtypes; there is {', '.join(_POSSIBLE)}")
    if not isinstance(validates, bool):
        raise ClientError(f"answers {_short(validates)} as validates; it is true or false")
    return {name: _default(name, x) for name, x in given.items()}, tuple(dtypes), validates


def _default(name: str, x: Any) -> Any:
    """The default of an option as Python has it."""
    if isinstance(x, list):
        return tuple(_default(name, entry) for entry in x)
    if isinstance(x, dict):
        raise ClientError(f"has an option {name} of {_short(x)}; it is a number, a flag, a text or a list")
    return x


def _signature(options: Mapping[str, Any]) -> inspect.Signature:
    """That of a constructor with these options."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    named = [inspect.Parameter(name, kind, default=default) for name, default in options.items()]
    return inspect.Signature([inspect.Parameter("params", kind), *named])
