"""Compiles kernels ahead of time, in as many processes as there are cores, and counts what came out."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path as File
from typing import Any

from stepcheck.fast.cuda import runtime
from stepcheck.fast.cuda.runtime import Source
from stepcheck.harness.census import flow, ptx, sass
from stepcheck.harness.census.flow import Path, Unidentified

_REGISTERS, _STACK, _SHARED = (re.compile(rf"\b{name}:(\d+)") for name in ("REG", "STACK", "SHARED"))


@dataclass(frozen=True)
class Job:
    """A kernel to be compiled for one compute capability (``90`` is 9.0).

    Attributes:
        elements: whether it streams elements.
        whole: whether whole blocks of them have a way of their own.
    """

    source: Source
    capability: int
    elements: bool
    whole: bool


@dataclass(frozen=True)
class Counts:
    """What is in a compiled kernel. Where not said otherwise, in its PTX.

    Attributes:
        ptx: the main path; ``None`` where there is none or it cannot be told, for the reason ``unidentified``.
        sass: the main path in SASS.
        unidentified: why a main path cannot be told.
        divisions: instructions that divide, take roots or approximate, by variant.
        float64: instructions that compute in float64.
        float64_sass: the same, in SASS.
        flushed: operations that take subnormal numbers for zero.
        contracted: products and sums that are, or may be made, one operation.
        instructions: in SASS.
        registers: of a thread.
        stack: bytes of a thread; a call's are among them.
        spills: instructions in SASS that move registers to the stack and back.
        shared: bytes of a program.
        threads: of a program.
    """

    ptx: Path | None
    sass: Path | None
    unidentified: str
    divisions: dict[str, int]
    float64: int
    float64_sass: int
    flushed: int
    contracted: int
    instructions: int
    registers: int
    stack: int
    spills: int
    shared: int
    threads: int


def count(job: Job) -> Counts:
    """Compile a kernel and count."""
    compiled = runtime.compiled(job.source, job.capability)
    with tempfile.TemporaryDirectory(prefix="stepcheck-") as folder:
        cubin = File(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        listing = _tool("nvdisasm", "-c", str(cubin))
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
    return counted(compiled.asm["ptx"], listing, usage, job)


def counted(ptx_text: str, sass_text: str, usage: str, job: Job) -> Counts:
    """Count what the listings of a compiled kernel say, and cuobjdump of its resources."""
    virtual, real = ptx.parse(ptx_text), sass.parse(sass_text)
    operations, instructions = flow.totals(ptx.all_instructions(ptx_text)), flow.totals(real.instructions)
    found: list[Path | None] = [None, None]
    why = ""
    for k, listing in enumerate((virtual, real)):
        try:
            found[k] = flow.main_path(listing, whole=job.whole) if job.elements else None
        except Unidentified as error:
            why = f"the main path cannot be told: {error}"
    return Counts(
        ptx=found[0],
        sass=found[1],
        unidentified=why,
        divisions=ptx.divisions(operations),
        float64=sum(n for op, n in operations.items() if ptx.is_float64(op)),
        float64_sass=sum(n for op, n in instructions.items() if sass.is_float64(op)),
        flushed=ptx.flushed(operations),
        contracted=ptx.contracted(operations),
        instructions=len(real.instructions),
        registers=_resource(_REGISTERS, usage),
        stack=_resource(_STACK, usage),
        spills=sass.spills(instructions),
        shared=_resource(_SHARED, usage),
        threads=job.source.warps * runtime.THREADS_PER_WARP,
    )


def _resource(pattern: re.Pattern[str], usage: str) -> int:
    found = pattern.search(usage)
    if found is None:
        raise ValueError(f"cuobjdump -res-usage does not say {pattern.pattern}: {usage!r}")
    return int(found[1])


def _tool(name: str, *arguments: str) -> str:
    """What a tool that comes with Triton prints."""
    done = subprocess.run([_path(name), *arguments], capture_output=True, text=True, check=False)  # noqa: S603 - Triton's own tool
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr.strip()}")
    return done.stdout


def _path(name: str) -> str:
    from triton import knobs

    return str(getattr(knobs.nvidia, name).path)


def versions(capabilities: Iterable[int]) -> dict[str, str]:
    """Of Triton, and of the ptxas that it takes for these capabilities."""
    import triton
    from triton.backends.nvidia.compiler import get_ptxas

    return {"triton": triton.__version__} | {f"ptxas sm_{c}": get_ptxas(c).version for c in capabilities}


def _attempt(job: Job) -> Counts | str:
    """Counts, or what went wrong."""
    try:
        return count(job)
    except Exception as error:  # noqa: BLE001 - whatever compiler and tools raise is told
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


def run(
    jobs: dict[Any, Job], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[Any, Counts | str]]:
    """Counts of each job, or what went wrong with it, as they come."""
    workers = min(os.cpu_count() or 1, len(jobs))
    if workers < 2 or "fork" not in get_all_start_methods():
        for n, (key, job) in enumerate(jobs.items()):
            yield key, _attempt(job)
            progress(n + 1, len(jobs))
        return
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        try:
            pending = {pool.submit(_attempt, job): key for key, job in jobs.items()}
            while pending:
                done, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in done:
                    yield pending.pop(future), future.result()
                    progress(len(jobs) - len(pending), len(jobs))
        finally:
            pool.shutdown(cancel_futures=True)
