"""Compiles kernels ahead of time, in as many processes as there are cores, and counts what came out."""

from __future__ import annotations

import itertools
import os
import re
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from stepcheck.fast.cuda import runtime
from stepcheck.fast.cuda.runtime import Source
from stepcheck.harness.census import flow, ptx, sass
from stepcheck.harness.census.flow import Listing, Path, Unidentified
from stepcheck.harness.support.processes import forks

#: Kernels that a process takes at a time.
TOGETHER = 16
_TARGET = re.compile(r"^\.target\s+sm_(\w+)", re.MULTILINE)
_REGISTERS, _STACK, _SHARED = (re.compile(rf"\b{name}:(\d+)") for name in ("REG", "STACK", "SHARED"))


@dataclass(frozen=True)
class Job:
    """A kernel to be compiled for one compute capability (``90`` is 9.0).

    Attributes:
        way: the main path, as :func:`~stepcheck.harness.census.flow.main_path` calls it; empty where it does not stream elements.
    """

    source: Source
    capability: int
    way: str = ""


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
    return count_all([job])[0]


def count_all(jobs: Sequence[Job]) -> list[Counts]:
    """The same of several kernels for one compute capability, disassembled together: nvdisasm takes long to start, and no time to run."""
    compiled = [runtime.compiled(job.source, job.capability) for job in jobs]
    listings = _disassembled([c.asm["cubin"] for c in compiled], _target(compiled[0].asm["ptx"]))
    return [
        counted(c.asm["ptx"], listing, _usage(c.asm["cubin"]), job)
        for job, c, listing in zip(jobs, compiled, listings, strict=True)
    ]


def _target(ptx_text: str) -> str:
    """The architecture that PTX is for, as nvdisasm calls it: ``SM90a``."""
    found = _TARGET.search(ptx_text)
    if found is None:
        raise ValueError("no .target in this PTX")
    return f"SM{found[1]}"


def _disassembled(cubins: Sequence[bytes], target: str) -> list[Listing]:
    codes = list(map(_code, cubins))
    with tempfile.NamedTemporaryFile(prefix="stepcheck-", suffix=".bin") as file:
        file.write(b"".join(codes))
        file.flush()
        text = _tool("nvdisasm", "--binary", target, file.name)
    return sass.parse_all(text, list(itertools.accumulate(map(len, codes))))


def _code(cubin: bytes) -> bytes:
    """The instructions of a cubin: of the one section of ELF (System V ABI, chapter 4) that has a kernel and what it calls."""
    (table,), (size, count, names) = struct.unpack_from("<Q", cubin, 0x28), struct.unpack_from("<HHH", cubin, 0x3A)
    headers = [struct.unpack_from("<IIQQQQ", cubin, table + k * size) for k in range(count)]
    of_names = headers[names][4]
    found = [cubin[at : at + n] for name, *_, at, n in headers if cubin.startswith(b".text.", of_names + name)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} sections of code in a cubin, not 1")
    return found[0]


def _usage(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(prefix="stepcheck-", suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _tool("cuobjdump", "-res-usage", file.name)


def counted(ptx_text: str, real: Listing, usage: str, job: Job) -> Counts:
    """Count what the listings of a compiled kernel say, and cuobjdump of its resources."""
    virtual = ptx.parse(ptx_text)
    operations, instructions = flow.totals(ptx.all_instructions(ptx_text)), flow.totals(real.instructions)
    found: list[Path | None] = [None, None]
    why = ""
    for k, listing in enumerate((virtual, real)):
        try:
            found[k] = flow.main_path(listing, job.way) if job.way else None
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


def _attempt(jobs: Sequence[Job]) -> list[Counts | str]:
    """Counts, or what went wrong; if that is with several at a time, of each alone."""
    try:
        return [*count_all(jobs)]
    except Exception as error:  # noqa: BLE001 - whatever compiler and tools raise is told
        if len(jobs) > 1:
            return [counts for job in jobs for counts in _attempt([job])]
        return [f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"]


def run(
    jobs: dict[Any, Job], progress: Callable[[int, int], None] = lambda done, total: None
) -> Iterator[tuple[Any, Counts | str]]:
    """Counts of each job, or what went wrong with it, as they come."""
    by_capability: dict[int, list[Any]] = {}
    for key, job in jobs.items():
        by_capability.setdefault(job.capability, []).append(key)
    parts = [keys[n : n + TOGETHER] for keys in by_capability.values() for n in range(0, len(keys), TOGETHER)]
    done = 0
    for keys, results in _mapped([(keys, [jobs[key] for key in keys]) for keys in parts]):
        yield from zip(keys, results, strict=True)
        done += len(keys)
        progress(done, len(jobs))


def _mapped(parts: Sequence[tuple[list[Any], list[Job]]]) -> Iterator[tuple[list[Any], list[Counts | str]]]:
    workers = min(os.cpu_count() or 1, len(parts))
    if workers < 2 or not forks():
        for keys, jobs in parts:
            yield keys, _attempt(jobs)
        return
    with ProcessPoolExecutor(workers, get_context("fork")) as pool:
        try:
            pending = {pool.submit(_attempt, jobs): keys for keys, jobs in parts}
            for future in as_completed(pending):
                yield pending[future], future.result()
        finally:
            pool.shutdown(cancel_futures=True)
