"""What is run, most valuable first, and how much of the time each task may take."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

from stepcheck.harness.census.occupancy import LIMITS
from stepcheck.harness.cuda_session import work
from stepcheck.harness.play.families import FAST

_STEPCHECK = (sys.executable, "-m", "stepcheck")
_OWN = (sys.executable, "-m", "stepcheck.harness.cuda_session")
_SANITIZER = "compute-sanitizer"
#: What the sanitizer ends with where it has something to report.
_REPORTS = "86"
#: Examples of each class, of which its cost on a GPU leaves a quarter or an eighth: few for the first answer, many for the second.
_FEW, _MANY = 240, 2000
#: Seconds until a worker plays: Python, torch and the context of CUDA are loaded, and kernels are read from Triton's cache.
_START_UP = 25.0
_MARKED = re.compile(r"\bpytest\.mark\.cuda\b")


@dataclass(frozen=True)
class Task:
    """A command, and what it is for.

    Attributes:
        name: in the log and in the summary.
        purpose: what a reader learns from it.
        command: made when it starts, for the seconds that it has.
        until: the part of the session's time by whose end it must have ended; what it does not use goes to those after it.
        least: seconds without which it is not worth starting.
        missing: why it cannot be run here, if it cannot.
        environment: variables beside those that there are.
    """

    name: str
    purpose: str
    command: Callable[[float], tuple[str, ...]]
    until: float = 1.0
    least: float = 5.0
    missing: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """Where a session runs.

    Attributes:
        tree: the top of the sources, which has the tests.
        scratch: a folder for what is not brought back; the package lies in ``package`` there.
        about: the environment; the first task fills in what is known of the GPU.
        rehearsal: there is no GPU: kernels are interpreted, and timings are of tiny sizes on the CPU.
    """

    tree: Path
    scratch: Path
    about: dict[str, Any]
    rehearsal: bool = False

    @property
    def package(self) -> Path:
        """What ``import stepcheck`` finds."""
        return self.scratch / "package"

    @property
    def record(self) -> Path:
        """Where commands write their streams and divergences."""
        return self.scratch / "record"

    @property
    def environment_file(self) -> Path:
        """What the first task writes."""
        return self.scratch / "environment.json"

    @property
    def subjects(self) -> tuple[str, ...]:
        """Every fast class, as its kernels for CUDA are played here."""
        return tuple(f"fast:{name}[{'triton' if self.rehearsal else 'cuda'}]" for name in FAST.modes)


def tasks(place: Place, which: Callable[[str], str | None] = shutil.which) -> list[Task]:
    """All that is to be done. Agreement comes first, then timings: without them, nothing else is worth knowing."""
    device = "cpu" if place.rehearsal else "cuda"
    record = ("--out", str(place.record))

    def own(*words: str) -> Callable[[float], tuple[str, ...]]:
        return lambda seconds: (*_OWN, *words)

    def lives(examples: int, seed: int) -> Callable[[float], tuple[str, ...]]:
        return lambda seconds: (
            *_STEPCHECK, "check", *place.subjects, "--examples", str(examples), "--seed", str(seed),
            "--seconds", f"{playing_seconds(seconds, len(place.subjects)):.0f}", *record,
        )  # fmt: skip

    def timings(part: str) -> Callable[[float], tuple[str, ...]]:
        return own("timings", "--part", part, "--device", device, *record)

    return [
        Task("environment", "the GPU answers, and what it is", own("environment", "--device", device, "--json", str(place.environment_file)), 0.08),
        Task("kernels", "all kernels compile, on all cores at once; those after it find them in Triton's cache",
             lambda seconds: (*_OWN, "kernels", "--capability", str(_capability(place))), 0.18),
        Task("agreement", "a few lives of every class, judged against the reference", lives(_FEW, 0), 0.42, 15.0),
        Task("timings", f"{', '.join(work.FIRST)} beside torch's foreach and fused and a copy of as many bytes", timings("first"), 0.58),
        Task("more timings", "the same of the other elementwise classes", timings("others"), 0.74),
        Task("tests", "graphs, streams, waits, scaled gradients: what lives do not play", lambda seconds: _pytest(place), 0.84,
             missing=_no_tests(place)),
        Task("lives", "many more lives of every class", lives(_MANY, 1), 0.92, 15.0),
        *(_watched(tool, place, which, until) for tool, until in (("memcheck", 0.97), ("racecheck", 1.0))),
        Task("bench", "every mode of torch and graphs too, on every workload", timings("all")),
        Task("census", "the instructions of every kernel, counted", lambda seconds: (*_STEPCHECK, "census", *_architecture(place), *record)),
        Task("host", "what a step costs the processor", lambda seconds: (*_STEPCHECK, "bench", "--host", "--quick", *record)),
    ]  # fmt: skip


def playing_seconds(seconds: float, subjects: int) -> float:
    """How long ``check`` may play, to be done with all subjects within these seconds: the rest is for its workers to start."""
    waves = ceil(subjects / (os.cpu_count() or 1))
    return max(seconds - waves * _START_UP, seconds / 2)


def _capability(place: Place) -> int:
    """The compute capability here (``90`` is 9.0); in a rehearsal, and where the GPU did not say, that of an H100."""
    major, _, minor = str(place.about.get("capability", "9.0")).partition(".")
    return 10 * int(major) + int(minor)


def _architecture(place: Place) -> tuple[str, ...]:
    """What ``census`` is to compile for: the GPU here alone, if it knows it."""
    capability = _capability(place)
    return ("--arch", f"sm_{capability}") if capability in LIMITS else ()


def _watched(tool: str, place: Place, which: Callable[[str], str | None], until: float) -> Task:
    """A few steps of every class under a tool that watches the kernels."""
    missing = "a rehearsal has no GPU to watch" if place.rehearsal else ""
    missing = missing or ("" if which(_SANITIZER) else f"{_SANITIZER} is not on the PATH")
    command = (_SANITIZER, "--tool", tool, "--error-exitcode", _REPORTS, *_OWN, "exercise")
    # With memory that torch keeps for later, what lies beside a tensor belongs to it all the same.
    uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Task(
        tool, "a few steps of every class, watched by the tool", lambda seconds: command, until, 15.0, missing, uncached
    )


# --- Tests


def _pytest(place: Place) -> tuple[str, ...]:
    # The tree is not to be written to. Versions are those of the machine, and what they warn of is not what is tested.
    quiet = ("-p", "no:cacheprovider", "-W", "default")
    # Its own setting puts the top of the tree first, where an uninstalled package is not whole.
    path = f"pythonpath={shlex.join(map(str, (place.package, place.tree / 'tests')))}"
    where = ("-c", str(place.tree / "pyproject.toml"), "--rootdir", str(place.tree))
    return (
        sys.executable,
        "-m",
        "pytest",
        "-v",
        "-m",
        "cuda",
        *quiet,
        *where,
        "-o",
        path,
        *map(str, marked(place.tree)),
    )


def marked(tree: Path) -> list[Path]:
    """The files with tests that need a GPU. To collect the others takes packages that this machine need not have."""
    files = sorted((tree / "tests").rglob("test_*.py"))
    return [file for file in files if _MARKED.search(file.read_text(encoding="utf-8"))]


def _no_tests(place: Place) -> str:
    """Why no tests can be run, or nothing."""
    if importlib.util.find_spec("pytest") is None:
        return "pytest is not installed"
    return "" if marked(place.tree) else f"there are no tests in {place.tree}"
