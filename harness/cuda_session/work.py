"""Tasks that are no command of their own: what the GPU is, compiling ahead, timings of few contenders, steps for a tool that watches."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from stepcheck import __version__, fast
from stepcheck.harness.bench import rounds, tables
from stepcheck.harness.bench.contenders import CEILING, FAST
from stepcheck.harness.bench.rounds import Row, Settings
from stepcheck.harness.bench.workloads import WORKLOADS, Workload, dense, takes
from stepcheck.harness.play.families import FAST as FAST_FAMILY
from stepcheck.harness.play.families import existing
from stepcheck.harness.record.stream import Stream
from stepcheck.reference import SPECS

CONFORMS, DIVERGES, UNKNOWN = 0, 1, 3

# --- What the GPU is


def environment(device: str, file: Path) -> int:
    """Write what the results hold for, once the device has computed something."""
    torch.ones(1, device=device).add_(1).item()
    about = {**tables.environment(device), "stepcheck": __version__}
    if device == "cuda":
        about["driver"] = _driver()
    file.write_text(json.dumps(about), encoding="utf-8")
    print(about["processor"])  # noqa: T201 - for the log
    return CONFORMS


def _driver() -> str:
    """The version of the GPU's driver, as its own tool says."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = (tool, "--query-gpu=driver_version", "--format=csv,noheader")
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - a command of this module
    return done.stdout.strip().partition("\n")[0] or "unknown"


# --- Compiling ahead


def kernels(capability: int) -> int:
    """Compile every kernel for a compute capability, in as many processes as there are cores, and leave it in Triton's cache."""
    # They import Triton, which the other tasks of this module do without.
    from stepcheck.harness.census.compile import Job, run
    from stepcheck.harness.census.kernels import kernels_of

    jobs = {k.source: Job(k.source, capability, k.model.way) for name in FAST_FAMILY.here for k in kernels_of(name)}
    failures = 0
    for done, (_, counts) in enumerate(run(jobs), 1):
        if isinstance(counts, str):
            failures += 1
            print(counts)  # noqa: T201 - for the log
        if done % 50 == 0 or done == len(jobs):
            print(f"{done} of {len(jobs)} kernels for sm_{capability}, {failures} failed", flush=True)  # noqa: T201
    return UNKNOWN if failures else CONFORMS


# --- Timings

#: The optimizers that most people use: all their sizes are timed before those of the others.
FIRST = ("AdamW", "Adam", "SGD")
#: From hundreds of tiny tensors to a model that no cache holds; what says most comes first.
SIZES = ("gpt2", "100x64", "1M", "resnet50", "400x1024")
_ELEMENTWISE = tuple(name for name in existing() if takes(name, WORKLOADS["1M"]))
#: What a fast class must beat, and what it cannot.
_COMPARED = ("foreach", "fused", FAST, CEILING)
#: Workloads of those that take no dense ones; the first parts do not have them.
_OTHERS = ("12x128x128", "embedding-10k", "quadratic-10k", "48x512x512", "embedding-1M", "quadratic-1M")
#: For a rehearsal: as many, of each kind, and nothing to measure.
_TINY = (dense(1, 64), dense(10, 16), dense(1, 1024), dense(30, 8), dense(2, 256))
_TINY_OTHERS = (
    dense(2, 8, 8), Workload("embedding-20", ((20, 4),), "sparse", 5), Workload("quadratic-50", ((50,),), "objective"),
)  # fmt: skip
_TINY_ROUNDS = 3


def parts(tiny: bool = False) -> dict[str, tuple[Sequence[str], Sequence[Workload], tuple[str, ...]]]:
    """Of each part of the timings: the optimizers, the workloads, and who is timed (empty for everybody)."""
    sizes = _TINY if tiny else tuple(WORKLOADS[name] for name in SIZES)
    others = _TINY_OTHERS if tiny else tuple(WORKLOADS[name] for name in _OTHERS)
    rest = () if tiny else tuple(w for w in WORKLOADS.values() if w not in (*sizes, *others))
    return {
        "first": (FIRST, sizes, _COMPARED),
        "others": ([name for name in _ELEMENTWISE if name not in FIRST], sizes, _COMPARED),
        "all": ((*FIRST, *(name for name in existing() if name not in FIRST)), (*others, *sizes, *rest), ()),
    }


def timings(part: str, device: str, out: Path) -> int:
    """Time a part, a line and an event of the stream for each row; the exit status is 1 if a fast class comes somewhere else than torch."""
    tiny = device == "cpu"
    names, workloads, only = parts(tiny)[part]
    settings = Settings(_TINY_ROUNDS if tiny else None, device=device, only=only)
    planned = {"names": list(names), "workloads": [w.name for w in workloads]} | asdict(settings)
    command = f"python -m stepcheck.harness.cuda_session timings --part {part} --device {device}"
    with Stream.create(out, command, __version__, tables.environment(device), settings.seed, planned) as stream:
        stream.document("bench", tables.to_json(__version__, settings, [], []))
        seen: set[Workload] = set()
        for row in rounds.rows(names, workloads, settings, lambda what, done, total: None):
            data = tables.to_json(__version__, settings, [row], [])
            for into in ("results",) if row.workload in seen else ("workloads", "results"):
                stream.row("bench", data[into][0], into=into)
            seen.add(row.workload)
            stream.status = DIVERGES if row.wrong else stream.status
            print(_line(row), flush=True)  # noqa: T201 - for the log
    return stream.status


def _line(row: Row) -> str:
    times = [f"{t.name} {tables.duration(t.median) if t.seconds else t.error}" for t in row.timings]
    ratio = "" if row.ratio is None else f"ratio {row.ratio:.2f}"
    return ", ".join(filter(None, (f"{row.optimizer} {row.workload.name}: {'; '.join(times)}", ratio, row.note)))


# --- Steps for a tool that watches


def exercise(device: str = "cuda") -> int:
    """A few steps of every fast optimizer, over sizes that fill no block, strides, dtypes, new gradients and sparse ones."""
    for name in FAST_FAMILY.here:
        spec = SPECS[name]
        shapes = [(7, 5), (33, 65)] if spec.products else [(1,), (1000, 3), (2049,), (4, 0)]
        for dtype in (torch.float32, torch.bfloat16):
            parameters = [torch.ones(shape, dtype=dtype, device=device) for shape in shapes]
            parameters.append(torch.ones((6, 4), dtype=dtype, device=device).t())
            for p in parameters:
                p.requires_grad_()
            optimizer = getattr(fast, name)(parameters)
            for _ in range(3):
                for p in parameters:
                    gradient = torch.full_like(p, 0.5).detach()
                    p.grad = gradient.to_sparse(1) if spec.sparse == "only" else gradient
                optimizer.step(*([lambda: torch.zeros((), device=device)] if spec.closure else []))
        print(name, flush=True)  # noqa: T201 - the log says how far it came
    if device == "cuda":
        torch.cuda.synchronize()
    return CONFORMS
