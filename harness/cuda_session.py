"""Everything that a machine with a GPU is asked for, in one command, and a folder to send back: ``nox -s cuda`` runs it.

``python -m stepcheck.harness.cuda_session run`` goes through the steps, one after the other; one that fails is told, and the others are still
run. ``python -m stepcheck.harness.cuda_session exercise`` takes a few steps with each optimizer, for a tool that watches the kernels.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from stepcheck import __version__, fast
from stepcheck.harness.bench import tables
from stepcheck.harness.subjects import no_cuda
from stepcheck.reference import SPECS

_STEPCHECK = (sys.executable, "-m", "stepcheck")
_EXERCISE = (sys.executable, "-m", "stepcheck.harness.cuda_session", "exercise")
_SANITIZER = "compute-sanitizer"
#: Lives of each subject, before its cost divides them; in the quick form.
_EXAMPLES, _QUICK_EXAMPLES = 1000, 200
#: What a tool of the CUDA toolkit ends with that has found something.
_FOUND = "86"


@dataclass(frozen=True)
class Task:
    """A command, and what it is for.

    Attributes:
        name: also of the file that has what it printed.
        missing: why it cannot be run here, if it cannot.
        environment: variables beside those that there are.
    """

    name: str
    command: tuple[str, ...]
    missing: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What became of a task; ``status`` is its exit status, ``None`` where it was not run."""

    task: Task
    status: int | None
    seconds: float

    @property
    def failed(self) -> bool:
        """Whether it was run and did not succeed."""
        return bool(self.status)

    @property
    def told(self) -> str:
        """In a word or two."""
        if self.status is None:
            return f"not run: {self.task.missing}"
        return f"failed, exit status {self.status}" if self.status else "succeeded"


#: Runs a task, writes what it prints into a file, and returns its exit status.
Runner = Callable[[Task, Path], int]


def tasks(folder: Path, *, quick: bool = False, which: Callable[[str], str | None] = shutil.which) -> list[Task]:
    """All that is to be done, in order; what a task writes beside its log goes into ``folder``."""
    examples = str(_QUICK_EXAMPLES if quick else _EXAMPLES)
    subjects = [f"fast:{name}[cuda]" for name in SPECS]
    check = ("check", *subjects, "--examples", examples, "--json", _in(folder, "check.json"))
    bench = ("bench", "--device", "cuda", *(("--quick",) if quick else ()), "--json", _in(folder, "bench.json"))
    missing = "" if which(_SANITIZER) else f"{_SANITIZER} is not on the PATH"
    # With memory that torch keeps for later, what lies beside a tensor belongs to it all the same.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return [
        Task("tests", (sys.executable, "-m", "pytest", "-m", "cuda", "tests")),
        Task("check", (*_STEPCHECK, *check, "--out", _in(folder, "divergences"))),
        *(
            Task(tool, (_SANITIZER, "--tool", tool, "--error-exitcode", _FOUND, *_EXERCISE), missing, uncached)
            for tool in ("memcheck", "racecheck")
        ),
        Task("census", (*_STEPCHECK, "census", "--json", _in(folder, "census.json"))),
        Task("bench", (*_STEPCHECK, *bench, "--plot", _in(folder, "bench.png"))),
        Task("host", (*_STEPCHECK, "bench", "--host", "--json", _in(folder, "host.json"))),
    ]


def _in(folder: Path, name: str) -> str:
    return str(folder / name)


def run(folder: Path, todo: Sequence[Task], runner: Runner, about: Mapping[str, Any]) -> list[Outcome]:
    """Run each task, whatever became of those before it; the folder then has ``environment.json``, logs, and ``summary.md``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "environment.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    outcomes: list[Outcome] = []
    for task in todo:
        start = time.perf_counter()
        status = None if task.missing else runner(task, folder / f"{task.name}.log")
        outcomes.append(Outcome(task, status, time.perf_counter() - start))
        print(f"{task.name}: {outcomes[-1].told}", flush=True)  # noqa: T201 - the session's own output
        # After each: a machine that goes away leaves what it had found.
        (folder / "summary.md").write_text(summary(folder, outcomes, about), encoding="utf-8")
    return outcomes


def in_a_process(task: Task, log: Path) -> int:
    """The runner: a process whose output, of both kinds, goes into a file."""
    with log.open("w", encoding="utf-8") as file:
        file.write(f"$ {' '.join(task.command)}\n")
        file.flush()
        try:
            done = subprocess.run(  # noqa: S603 - commands of this module
                task.command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **task.environment}, check=False
            )
        except OSError as error:
            file.write(f"{error}\n")
            return 127  # what a shell says of a command that cannot be run
    return done.returncode


# --- What came out


def summary(folder: Path, outcomes: Sequence[Outcome], about: Mapping[str, Any]) -> str:
    """A page for a reader who has nothing but the folder."""
    lines = [
        f"# stepcheck {__version__} on {about.get('processor', 'a GPU')}",
        "",
        ", ".join(
            f"{key} {about[key]}" for key in ("capability", "cuda", "torch", "python", "platform") if key in about
        ),
        "",
        "| task | outcome | seconds | output |",
        "|---|---|---|---|",
        *(
            f"| {o.task.name} | {o.told} | {o.seconds:.0f} | {'' if o.status is None else f'{o.task.name}.log'} |"
            for o in outcomes
        ),
    ]
    lines += _section("Checks", _checks(_read(folder / "check.json")))
    lines += _section("Benchmark", _times(_read(folder / "bench.json")))
    return "\n".join(lines) + "\n"


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _read(file: Path) -> dict[str, Any]:
    """What a task has written, or nothing: it may have failed before, or in the middle of it."""
    try:
        data: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data


def _checks(data: Mapping[str, Any]) -> list[str]:
    lines = []
    for subject in data.get("subjects", ()):
        found = [d["summary"] for check in subject["checks"] for d in check["divergences"]]
        notes = "; ".join([*found, *subject["notes"]])
        lines.append(f"| {subject['subject']} | {subject['verdict']} | {notes.replace('|', '/')} |")
    return ["| subject | verdict | notes |", "|---|---|---|", *lines] if lines else []


def _times(data: Mapping[str, Any]) -> list[str]:
    """Of each row of the benchmark: torch's best mode, and the ratios that the table on the terminal shows."""
    lines = []
    for row in data.get("results", ()):
        numbers = [_two(row[key]) for key in ("ratio", "graph_ratio", "share_of_ceiling")]
        cells = [row["optimizer"], row["workload"], row["best"] or "", *numbers, row["note"].replace("|", "/")]
        lines.append(f"| {' | '.join(cells)} |")
    titles = "| optimizer | workload | torch's best | ratio | graph ratio | share of a copy | notes |"
    return [titles, "|---|---|---|---|---|---|---|", *lines] if lines else []


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


# --- Steps for a tool that watches


def exercise(device: str = "cuda") -> None:
    """A few steps of every fast optimizer, over sizes that fill no block, strides, dtypes, new gradients and sparse ones."""
    for name, spec in SPECS.items():
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
    if device == "cuda":
        torch.cuda.synchronize()


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; the exit status is 1 if any task failed, or nothing can be run here."""
    parser = argparse.ArgumentParser(prog="python -m stepcheck.harness.cuda_session", description=__doc__)
    parser.add_argument("what", choices=("run", "exercise"))
    parser.add_argument("--out", type=Path, default=Path("reports/cuda"), help="where the report's folder is made")
    parser.add_argument("--quick", action="store_true", help="fewer lives, small workloads")
    given = parser.parse_args(arguments)
    why = no_cuda() or ("" if torch.cuda.is_available() else "no CUDA device: torch cannot use the GPU that is there")
    if why:
        print(f"{why} (torch {torch.__version__})", file=sys.stderr)  # noqa: T201 - the session's own output
        return 1
    if given.what == "exercise":
        exercise()
        return 0
    about = {**tables.environment("cuda"), "stepcheck": __version__, "driver": _driver()}
    folder = given.out / re.sub(r"[^\w.-]+", "-", str(about["processor"])).strip("-")
    outcomes = run(folder, tasks(folder, quick=given.quick), in_a_process, about)
    print(f"{folder} is the report: please send it back")  # noqa: T201 - the session's own output
    return int(any(o.failed for o in outcomes))


def _driver() -> str:
    """The version of the GPU's driver, as its own tool tells it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return "unknown"
    query = (tool, "--query-gpu=driver_version", "--format=csv,noheader")
    done = subprocess.run(query, capture_output=True, text=True, check=False)  # noqa: S603 - a command of this module
    return done.stdout.strip().partition("\n")[0] or "unknown"


if __name__ == "__main__":
    sys.exit(main())
