"""One library, checked in a process of its own; and each script of a finding, run alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stepcheck.harness.matrix.library import Library
from stepcheck.harness.play.declared import NO_REFERENCE

#: How long a library and a script may take.
_LIBRARY_SECONDS = 7200.0
_SCRIPT_SECONDS = 300.0
Environment = Mapping[str, str]
#: Scripts at a time: most of one is the import of torch.
_AT_ONCE = 2
#: A script is run where stepcheck cannot be imported: it is to need its framework and the library alone.
_ALONE = "import runpy, sys; sys.modules['stepcheck'] = None; runpy.run_path(sys.argv[1], run_name='__main__')"


#: The line of a traceback that names what was raised.
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(: |$)")


def played(library: Library, folder: Path, words: list[str]) -> dict[str, Any]:
    """What ``stepcheck check`` says of a library, and its scripts when they are run.

    Args:
        folder: where it is played; anew, whatever stood there.
        words: more of the command line.

    Returns:
        ``name``, ``url``, ``versions``, ``seconds``, ``subjects`` as ``--json`` has them, ``scripts`` by the ids of divergences, each with ``text``,
        ``confirmed`` and ``told``; and ``error``, one line, where nothing was played.
    """
    about = {"name": library.name, "url": library.url, "versions": library.versions()}
    lacks = library.lacks()
    if lacks:
        return {**about, "seconds": 0.0, "subjects": [], "scripts": {}, "error": lacks}
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(library.file, folder / "pyproject.toml")
    begun = time.monotonic()
    environment = {**os.environ, **library.environment}
    subjects, error = _checked(folder, words, environment)
    if error:  # one that cannot be checked is bad usage of the whole: it is found by asking for each
        subjects = [
            subject for name in library.subjects for subject in _alone(folder, name, words, environment)
        ]  # fmt: skip
    seconds = round(time.monotonic() - begun, 1)
    found = [d for d in own(subjects) if d.get("repro")]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        ran = threads.map(lambda d: _script(folder, d, environment), found)
        scripts = {d["id"]: script for d, script in zip(found, ran, strict=True)}
    return {**about, "seconds": seconds, "subjects": subjects, "scripts": scripts}


def _checked(folder: Path, words: list[str], environment: Environment) -> tuple[list[dict[str, Any]], str]:
    """The subjects as ``--json`` has them, or why there are none."""
    file = folder / "out.json"
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "stepcheck", "check", "--json", file.name, *words]
    with (folder / "out.txt").open("a") as out:
        done = subprocess.run(  # noqa: S603 - this package's own command
            command,
            cwd=folder,
            env=environment,
            stdout=out,
            stderr=subprocess.PIPE,
            text=True,
            timeout=_LIBRARY_SECONDS,
            check=False,
        )
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["subjects"], ""
    return [], (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def _alone(folder: Path, name: str, words: list[str], environment: Environment) -> list[dict[str, Any]]:
    """One subject; where it cannot be checked, it stands there as unsupported."""
    subjects, error = _checked(folder, [name, *words], environment)
    lacking = {"subject": name, "like": NO_REFERENCE, "verdict": "unsupported", "notes": [error], "checks": []}
    return subjects or [lacking]


def own(subjects: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The divergences of subjects that are not known issues of the class of torch that they derive from."""
    return (d for s in subjects for c in s["checks"] for d in c["divergences"] if not d.get("ledger"))


def _script(folder: Path, divergence: Mapping[str, Any], environment: Environment) -> dict[str, Any]:
    """A script that shows a finding: it must fail by itself, with what it was written to see."""
    name = divergence["repro"]
    text = (folder / name).read_text(encoding="utf-8")
    try:
        done = subprocess.run(  # noqa: S603 - a script that stepcheck wrote
            [sys.executable, "-W", "ignore", "-c", _ALONE, name],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=_SCRIPT_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"text": text, "confirmed": False, "told": f"does not end in {_SCRIPT_SECONDS:g} s"}
    # What an assertion says may have several lines.
    told = next((line for line in reversed(done.stderr.splitlines()) if _EXCEPTION.match(line)), "")
    return {"text": text, "confirmed": done.returncode == 1 and shows(told, divergence["summary"]), "told": told}


def shows(told: str, summary: str) -> bool:
    """Whether a script ended in its own assertion, or in the exception that the finding is about; not in one of the script itself."""
    kind = told.partition(":")[0].rpartition(".")[2]
    return kind == "AssertionError" or f"raises {kind}" in summary
