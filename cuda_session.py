"""What a machine with a GPU is asked for, from a plain copy of this tree: ``python3 cuda_session.py --minutes 8 --out results``.

Nothing is installed or fetched, and nothing is written but ``--out`` and a temporary folder. The top folders are packages by a table in
``pyproject.toml``, so a checkout is laid out as the package before it is imported. :mod:`stepcheck.harness.cuda_session` does the rest.
``--rehearse`` runs the same plan without a GPU.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping
from pathlib import Path

TREE = Path(__file__).resolve().parent


def lay_out(tree: Path, package: Path) -> None:
    """Copy the folders of a tree to where they are once the package is installed.

    Copies and not links: Python writes its bytecode beside them, and the tree may not be ours to write to.
    """
    settings = tomllib.loads((tree / "pyproject.toml").read_text(encoding="utf-8"))
    for name, folder in settings["tool"]["setuptools"]["package-dir"].items():
        unwanted = shutil.ignore_patterns("__pycache__")
        shutil.copytree(tree / folder, package.joinpath(*name.split(".")), ignore=unwanted, dirs_exist_ok=True)


def environment(package: Path, scratch: Path, variables: Mapping[str, str]) -> dict[str, str]:
    """The variables with which this package is imported, and no other that is installed; caches go into ``scratch``."""
    path = [str(package), *filter(None, [variables.get("PYTHONPATH")])]
    caches = {
        "STEPCHECK_CACHE_DIR": "kernels", "TRITON_CACHE_DIR": "triton", "TRITON_HOME": "triton-home",
        "TORCHINDUCTOR_CACHE_DIR": "inductor", "CUDA_CACHE_PATH": "cuda",
    }  # fmt: skip
    return {
        # Whoever names a cache of their own wants it kept for the next session.
        **{name: str(scratch / folder) for name, folder in caches.items()},
        **variables,
        "TMPDIR": str(scratch / "temporary"),  # what a killed process leaves there goes with the rest
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONSAFEPATH": "1",  # the top of the tree has a folder stepcheck, which is not the whole package
        "PYTHONUNBUFFERED": "1",  # what is printed is in the log at that moment
    }


def main() -> None:
    """Lay the package out and become the session, which removes the temporary folder at its end."""
    began = time.monotonic()
    scratch = Path(tempfile.mkdtemp(prefix="stepcheck-"))
    (scratch / "temporary").mkdir()
    lay_out(TREE, scratch / "package")
    own = ("--tree", str(TREE), "--scratch", str(scratch), "--began", str(began))
    command = (sys.executable, "-m", "stepcheck.harness.cuda_session", "run", *own, *sys.argv[1:])
    # In the place of this process: whoever stops it stops the session.
    os.execve(sys.executable, command, environment(scratch / "package", scratch, os.environ))  # noqa: S606


if __name__ == "__main__":
    main()
