"""The settings of a process that a step could leave changed, and that everybody shares."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

#: Guards of inference mode that were entered to leave it: torch has no other way to set it, and forgets it with the guard.
_HELD: list[Any] = []
_CPU = torch.device("cpu")


#: How a script asks for each.
EXPRESSIONS = {
    "default dtype": "torch.get_default_dtype()",
    "default device": "torch.get_default_device()",
    "deterministic algorithms": "torch.are_deterministic_algorithms_enabled()",
    "number of threads": "torch.get_num_threads()",
    "grad mode": "torch.is_grad_enabled()",
    "inference mode": "torch.is_inference_mode_enabled()",
    "autocast": 'torch.is_autocast_enabled("cpu")',
    "autocast on CUDA": 'torch.is_autocast_enabled("cuda")',
}


def _default_device() -> torch.device:
    # Another device is the default within a mode alone; to ask torch for it costs more than all the other settings.
    return torch.get_default_device() if torch._C._len_torch_function_stack() else _CPU  # noqa: SLF001


def read() -> dict[str, Any]:
    """Each setting, by what it is called."""
    return {
        "default dtype": torch.get_default_dtype(),
        "default device": _default_device(),
        "deterministic algorithms": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        "number of threads": torch.get_num_threads(),
        "grad mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "autocast": torch.is_autocast_enabled("cpu"),
        "autocast on CUDA": torch.is_autocast_enabled("cuda"),
    }


@contextmanager
def kept() -> Iterator[None]:
    """Set back what is changed meanwhile."""
    before = read()
    try:
        yield
    finally:
        write(before)


def write(settings: dict[str, Any]) -> None:
    """Set what differs."""
    now = read()
    # Inference mode brings its own grad mode with it.
    for name in sorted(settings, key=lambda name: name != "inference mode"):
        if settings[name] != now[name]:
            _write(name, settings[name])


def _write(name: str, value: Any) -> None:
    if name == "default dtype":
        torch.set_default_dtype(value)
    elif name == "default device":
        torch.set_default_device(None if value.type == "cpu" else value)
    elif name == "deterministic algorithms":
        torch.use_deterministic_algorithms(value[0], warn_only=value[1])
    elif name == "number of threads":
        torch.set_num_threads(value)
    elif name == "grad mode":
        torch.set_grad_enabled(value)
    elif name == "inference mode":
        guard: Any = torch.inference_mode(value)
        guard.__enter__()
        _HELD.append(guard)
    else:
        torch.set_autocast_enabled("cuda" if name.endswith("CUDA") else "cpu", value)


def told(value: Any) -> str:
    """A setting's value, for a person."""
    named = {True: "on", False: "off"}
    if isinstance(value, tuple):
        return ("only warned of" if value[1] else "on") if value[0] else "off"
    return named[value] if isinstance(value, bool) else str(value)
