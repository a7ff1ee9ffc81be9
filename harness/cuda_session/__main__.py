"""The command line of a session. ``cuda_session.py`` at the top of the tree runs ``run``, which runs the others."""

from __future__ import annotations

import argparse
import importlib.metadata
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from stepcheck import __version__
from stepcheck.harness.cuda_session import work
from stepcheck.harness.cuda_session.folder import SUMMARY, Folder, unpack
from stepcheck.harness.cuda_session.page import page, status, verdicts
from stepcheck.harness.cuda_session.plan import Place, tasks
from stepcheck.harness.cuda_session.session import Budget, Session
from stepcheck.harness.play.families import no_cuda
from stepcheck.harness.readers import report

MINUTES = 8.0
_VERSIONED = ("triton", "llvmlite", "hypothesis", "scipy")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit status of a session is 0, 1 or 3, as :func:`page.status` has it."""
    options = _parser().parse_args(arguments)
    if options.what == "run":
        try:
            return run(options)
        finally:
            shutil.rmtree(options.scratch, ignore_errors=True)
    if options.what == "environment":
        return work.environment(options.device, options.json)
    if options.what == "kernels":
        return work.kernels(options.capability)
    if options.what == "timings":
        return work.timings(options.part, options.device, options.out)
    if options.what == "unpack":
        print(f"{unpack(options.folder / 'results.jsonl', options.out)} streams in {options.out / 'runs'}")  # noqa: T201
        return work.CONFORMS
    return work.exercise()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="cuda_session.py", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    session = commands.add_parser("run", help="the session", description="Run what needs a GPU, most valuable first.")
    session.add_argument("--minutes", type=float, default=MINUTES, help="for all of it (default %(default)g)")
    session.add_argument(
        "--out", type=Path, default=Path("reports/cuda"), help="the folder to bring back (default %(default)s)"
    )
    session.add_argument(
        "--rehearse", action="store_true", help="without a GPU: kernels are interpreted, timings tiny and on the CPU"
    )
    for name in ("--tree", "--scratch"):
        session.add_argument(name, type=Path, required=True, help=argparse.SUPPRESS)
    session.add_argument("--began", type=float, default=time.monotonic(), help=argparse.SUPPRESS)
    environment = commands.add_parser("environment", help="what the GPU is")
    environment.add_argument("--json", type=Path, required=True)
    kernels = commands.add_parser("kernels", help="compile all kernels")
    kernels.add_argument("--capability", type=int, required=True)
    timings = commands.add_parser("timings", help="time a part of the workloads")
    timings.add_argument("--part", choices=work.parts(), required=True)
    timings.add_argument("--out", type=Path, required=True)
    for command in (environment, timings):
        command.add_argument("--device", choices=("cpu", "cuda"), required=True)
    commands.add_parser("exercise", help="a few steps of every class, for a tool that watches the kernels")
    unpacking = commands.add_parser("unpack", help="make streams of results.jsonl, for stepcheck report")
    unpacking.add_argument("folder", type=Path)
    unpacking.add_argument("out", type=Path)
    return parser


def run(options: argparse.Namespace) -> int:
    """The session, its folder and its exit status."""
    why = "" if options.rehearse else no_cuda()
    if why:
        print(f"{why} (torch {torch.__version__}); --rehearse runs the same plan without one", file=sys.stderr)  # noqa: T201
        return work.UNKNOWN
    # Whoever stops the session means the task too, and wants the page.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    budget = Budget(60 * options.minutes, options.began)
    place = Place(options.tree, options.scratch, _about(options), options.rehearse)
    folder = Folder(options.out.resolve(), place.record)
    session = Session(place, tasks(place), folder, budget, lambda outcomes: page(place, folder, budget, outcomes))
    outcomes = session.run()
    result = status(outcomes, verdicts(place.subjects, list(folder.runs())))
    rehearsal = " of a rehearsal" if options.rehearse else ""
    print(f"{options.out} has the results{rehearsal}, {options.out / SUMMARY} first; exit status {result}")  # noqa: T201
    return result


def _about(options: argparse.Namespace) -> dict[str, Any]:
    """What is known before the GPU is asked."""
    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        **report.environment(), **versions, "stepcheck": __version__, "rehearsal": options.rehearse, "minutes": options.minutes,
        "compiler": shutil.which("cc") or shutil.which("gcc") or "none, and Triton needs one",
    }  # fmt: skip


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)  # what a shell says of an interrupt; what was recorded is recorded
