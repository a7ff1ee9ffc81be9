"""What the process has that every optimizer shares: random states, and the frames of an exception that are not ours."""

from __future__ import annotations

import contextlib
import ctypes
import random
import re
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepcheck.harness.support.lines import ClientError, RefusedError
from stepcheck.harness.support.text import said

#: Of all seeds one that nobody else would choose: who sets the generator to one of their own is noticed.
SEED = 0x73746570636865


#: What Python says where an optimizer's method is called with arguments that it does not take.
_REFUSED_CALL = re.compile(
    r"[^ ]*\.(step|zero_grad|add_param_group|state_dict|load_state_dict|register_\w+_hook)\(\) (got an unexpected|takes|missing) "
)


#: What Python says of an object that cannot be pickled.
_UNPICKLABLE = re.compile(r"(?i)\b(can't|cannot) pickle\b")


def is_our_own(error: Exception) -> bool:
    """Whether no frame of an exception lies outside the harness, and it is no call that an optimizer's signature refuses."""
    if isinstance(error, ClientError):
        return False  # what a process did is told by us
    if isinstance(error, TypeError) and _REFUSED_CALL.match(said(error)):
        return False  # it was raised before a frame of the method was made
    if _UNPICKLABLE.search(said(error)):
        return False  # pickle, which is not written in Python, says so of what somebody's optimizer holds
    return not frame(error)


def frame(error: Exception) -> str:
    """``file:function`` of the innermost frame outside the harness; empty where there is none."""
    if isinstance(error, ClientError):
        return ""  # where that is noticed says nothing
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if Path(frame.filename).parent not in _ROOMS]
    # The folder is left out: the same fault has the same identity on another machine.
    return f"{Path(outside[-1].filename).name}:{outside[-1].name}" if outside else ""


def on_purpose(error: Exception) -> bool:
    """Whether a ``raise`` or an ``assert`` of somebody's own raised it, and no operation that failed."""
    if isinstance(error, RefusedError):
        return True
    innermost = traceback.extract_tb(error.__traceback__)[-1:]
    theirs = [
        f for f in innermost if not Path(f.filename).is_relative_to(_TORCH) and Path(f.filename).parent not in _ROOMS
    ]
    return any((f.line or "").startswith(("raise ", "assert ")) for f in theirs)


#: Where torch stands.
_TORCH = Path(torch.__file__).parent
#: The rooms of the harness; not the zoo, whose optimizers are somebody's.
_ROOMS = {room for room in Path(__file__).parents[1].iterdir() if room.is_dir() and room.name != "zoo"}


def random_state(device: str) -> tuple[object, ...]:
    """The state of the generators that everybody shares."""
    generator: Any = np.random.mtrand.get_bit_generator()
    # To have NumPy make a dictionary of its state costs more than a step.
    twister = isinstance(generator, np.random.MT19937)
    state = ctypes.string_at(generator.ctypes.state_address, _TWISTER_BYTES) if twister else repr(generator.state)
    # Of a device's too, which is read as it is told, without waiting for the device.
    there = torch.cuda.get_rng_state(device).numpy().tobytes() if device.startswith("cuda") else b""
    return torch.get_rng_state().numpy().tobytes(), there, random.getstate(), state


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """NumPy's and Python's generators meanwhile stand where nobody else sets them: who seeds them is noticed, whatever they were."""
    python, generator = random.getstate(), np.random.mtrand.get_bit_generator()
    random.setstate(_PYTHONS)
    # To have NumPy make a dictionary of its state, or read one, costs more than a step. Another generator than the usual one stays.
    place = generator.ctypes.state_address if isinstance(generator, np.random.MT19937) else None
    numpys = None if place is None else ctypes.string_at(place, _TWISTER_BYTES)
    if place is not None:
        ctypes.memmove(place, _NUMPYS, _TWISTER_BYTES)
    try:
        yield
    finally:
        random.setstate(python)
        if place is not None and numpys is not None:
            ctypes.memmove(place, numpys, _TWISTER_BYTES)


#: 624 words and a position.
_TWISTER_BYTES = 625 * 4


_PYTHONS = random.Random(SEED).getstate()  # noqa: S311 - no secret


_NUMPYS = ctypes.string_at(np.random.MT19937(SEED).ctypes.state_address, _TWISTER_BYTES)
