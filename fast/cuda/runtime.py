"""Triton kernels from source text: compiled for the device of a CUDA tensor, interpreted on CPU tensors.

A kernel takes pointers alone. All else is written into its text, so what is compiled ahead of time and looked at is what is launched
later: there is nothing left to specialize on.

Products and sums are not contracted, division and square root are the correctly rounded ones: what the interpreter computes on the CPU
is, bit for bit, what a GPU computes, but for powers of float64 (:data:`POWER_ULPS`) and sums over many elements, whose order differs.
"""

from __future__ import annotations

import functools
import itertools
import linecache
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

THREADS_PER_WARP = 32
#: Contraction is set explicitly, because its default has changed between releases.
OPTIONS: dict[str, Any] = {"enable_fp_fusion": False}
#: With so many registers to a thread, half of the threads that a multiprocessor can hold find room (CUDA C++ programming guide, technical
#: specifications by compute capability: 65,536 registers, 64 warps).
REGISTERS = 64
#: The largest error of ``pow`` of libdevice for float64, in units in the last place (CUDA C++ programming guide, table of the
#: double-precision standard functions).
POWER_ULPS = 2
#: The least compute capability that kernels are compiled for: bfloat16 is converted by instructions from there on.
LEAST_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Source:
    """A kernel as text.

    Attributes:
        text: defines ``kernel``, and what it calls; ``tl``, ``power``, ``to_bfloat16`` and ``from_bfloat16`` are at hand.
        signature: names and Triton types (``*fp32``) of its arguments, all of them pointers.
        warps: of a program.
        registers: of a thread, at most.
    """

    text: str
    signature: tuple[tuple[str, str], ...]
    warps: int = 4
    registers: int = REGISTERS


def unavailable(device: torch.device) -> str:
    """Why no kernel runs on this device, or nothing."""
    if not _installed():
        return "triton is not installed"
    if device.type == "cpu":
        return ""
    if torch.version.hip is not None or device.type != "cuda":
        return (
            f"there are kernels for the CPU and for CUDA, not for {device.type}{' (HIP)' if torch.version.hip else ''}"
        )
    return _too_old(device.index)


@functools.cache
def _installed() -> bool:
    try:
        import triton  # noqa: F401 - whether it can be
    except ImportError:
        return False
    return True


@functools.cache
def _too_old(index: int | None) -> str:
    capability = torch.cuda.get_device_capability(index)
    if capability >= LEAST_CAPABILITY:
        return ""
    have, need = (".".join(map(str, c)) for c in (capability, LEAST_CAPABILITY))
    return f"its GPU has compute capability {have}, kernels need {need}"


@functools.cache
def _index_single_elements() -> None:
    """Let an array of one element be an index in Triton's interpreter.

    Triton up to 3.6 takes ``int()`` of it, which NumPy refuses from 2.4 on; Triton 3.7 squeezes it first, as here.
    """
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor  # noqa: SLF001 - what it sets it also takes back, after each launch

    @functools.wraps(patch)
    def patched(tensor: Any, *scope: Any) -> None:
        patch(tensor, *scope)
        tensor.__index__ = lambda self: int(self.handle.data.squeeze())

    interpreter._patch_lang_tensor = patched  # noqa: SLF001


_numbers = itertools.count()


@functools.cache
def _function(source: Source, *, interpreted: bool) -> Any:
    """The function ``kernel`` that the text defines, as Triton takes it."""
    import triton.language as tl
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    # Triton reads the text of a function where Python's own tracebacks do.
    name = f"<stepcheck kernel {next(_numbers)}>"
    text = source.text if interpreted else _CONVERSIONS + source.text
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    wrap: Any = InterpretedFunction if interpreted else JITFunction
    if interpreted:
        _index_single_elements()
    namespace: dict[str, Any] = {"tl": tl, "__name__": "stepcheck_kernels"}
    if interpreted:
        namespace |= {f.__name__: f for f in (power, to_bfloat16, from_bfloat16)}
    else:
        from triton.language.extra.cuda import libdevice

        namespace["power"] = libdevice.pow
    exec(compile(text, name, "exec"), namespace)  # noqa: S102 - the text is made of this package's own rules
    own = [key for key, value in namespace.items() if getattr(value, "__module__", "") == "stepcheck_kernels"]
    for key in own:
        made = wrap(namespace[key])
        # Called by another, an interpreted function would set up all of Triton's language again.
        namespace[key] = made.rewrite() if interpreted and key != "kernel" else made
    return namespace["kernel"]


#: What kernels for a device call, beside ``power`` of libdevice.
_CONVERSIONS = """
def to_bfloat16(x):
    return x.to(tl.bfloat16)

def from_bfloat16(x):
    return x.to(tl.float32)
"""


# What stands for these in the interpreter, which knows no libdevice, and (Triton 3.9) cuts the bits off that do not fit into bfloat16.


def power(base: Any, exponent: Any) -> Any:
    """``base`` to the power of ``exponent``, both of float64."""
    return _block(np.power(base.handle.data, exponent.handle.data), "float64", base)


def to_bfloat16(x: Any) -> Any:
    """float32 rounded to nearest."""
    narrow = torch.from_numpy(np.ascontiguousarray(x.handle.data)).to(torch.bfloat16)
    return _block(narrow.view(torch.uint16).numpy(), "bfloat16", x)


def from_bfloat16(x: Any) -> Any:
    """The float32 with the same value."""
    wide = torch.from_numpy(np.ascontiguousarray(x.handle.data)).view(torch.bfloat16).to(torch.float32)
    return _block(wide.numpy(), "float32", x)


def _block(values: Any, dtype: str, like: Any) -> Any:
    """An interpreter's tensor with these values."""
    import triton.language as tl
    from triton.runtime.interpreter import TensorHandle

    kind = getattr(tl, dtype)
    return tl.core.tensor(TensorHandle(values, kind), tl.core.block_type(kind, like.shape) if like.shape else kind)


def compiled(source: Source, capability: int) -> Any:
    """The kernel as Triton compiles it for a compute capability (``90`` is 9.0); no GPU is needed.

    ``asm`` of what is returned has ``ptx`` and ``cubin``.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    ast = ASTSource(_function(source, interpreted=False), dict(source.signature), {})
    target = GPUTarget("cuda", capability, THREADS_PER_WARP)
    return triton.compile(
        ast, target=target, options={**OPTIONS, "num_warps": source.warps, "maxnreg": source.registers}
    )


@functools.cache
def _loaded(source: Source, index: int) -> Any:
    """The kernel for one device of this machine."""
    major, minor = torch.cuda.get_device_capability(index)
    return compiled(source, 10 * major + minor)


def ready(source: Source, device: torch.device) -> None:
    """Compile what a launch needs; compiling may take a second, and be interrupted."""
    if device.type == "cpu":
        _function(source, interpreted=True)
    else:
        _loaded(source, _index(device))


def launch(source: Source, device: torch.device, programs: int, arguments: Sequence[torch.Tensor]) -> None:
    """Run ``programs`` instances of a kernel on the current stream of ``device``; of the CPU, by the interpreter.

    Args:
        arguments: tensors on the device, whose addresses the kernel is given.
    """
    if not programs:
        return
    if device.type == "cpu":
        with np.errstate(all="ignore"):
            _function(source, interpreted=True)[(programs,)](*arguments)
        return
    index = _index(device)
    kernel = _loaded(source, index)
    if index == torch.cuda.current_device():
        kernel[(programs, 1, 1)](*arguments)
    else:
        with torch.cuda.device(index):
            kernel[(programs, 1, 1)](*arguments)


def _index(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def uploaded(table: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    """A copy of a table in the memory of the device, without waiting for it."""
    copy = torch.from_numpy(table.copy())
    # The allocator of pinned memory does not give it to others before the copy has been made.
    return copy.pin_memory().to(device, non_blocking=True) if device.type == "cuda" and table.size else copy.to(device)


def capturing(device: torch.device) -> bool:
    """Whether a CUDA graph is being recorded, which runs nothing now and all of it later."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()
