"""Whether what the README says to install can be installed, from the registry as it stands. Nothing is installed.

pip makes a dry run of each ``pip install`` of the README, in each supported Python that is here. uv then resolves for each Python and
platform that is supported: it decides by the markers of the platform that it is asked about, pip by those of the one that it runs on. Local wheels
and local configuration are left out, since a reader has neither.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: As uv names them.
PLATFORMS = {
    "Linux x86-64": "x86_64-manylinux_2_28",
    "Linux arm64": "aarch64-manylinux_2_28",
    "macOS arm64": "aarch64-apple-darwin",
    "Windows x86-64": "x86_64-pc-windows-msvc",
}
#: What a reader wants to know of a resolution.
SHOWN = ("torch", "triton", "llvmlite")
#: What a user installs, then what CI does: all extras, and each pin, whether anything asks for it or not.
PLAIN = ("pyproject.toml",)
PINNED = ("pyproject.toml", "constraints.txt", "--all-extras")
_COMMAND = re.compile(r"pip install ([^&`\n]+)")
_VERSION = re.compile(r"Programming Language :: Python :: (3\.\d+)")
_SECONDS = 300
_LONGEST = 1_000
#: What was asked of pip or uv, and what will have been answered.
Answers = dict[str, Future[dict[str, str]]]


class UnresolvableError(Exception):
    """Something cannot be installed; what pip or uv said."""


def main() -> int:
    """Print a line for each resolution; 1 if one fails."""
    failed = 0
    with ThreadPoolExecutor(1) as pip, ThreadPoolExecutor(2) as uv:  # pip writes into this folder: one at a time
        rows = [*_ask_pip(pip), *_ask_uv(uv)]
        for title, answers in rows:
            told = []
            for about, answer in answers.items():
                try:
                    told.append(about + shown(answer.result()))
                except UnresolvableError as error:
                    failed += 1
                    told.append(f"{about}FAILS\n{error}")
            print(f"{title:<44}", "; ".join(told), flush=True)
    return min(failed, 1)


def _ask_pip(pool: ThreadPoolExecutor) -> Iterator[tuple[str, Answers]]:
    """Each command of the README in each Python that is here."""
    for python in supported():
        where = sys.executable if python == _here() else _interpreter(python)
        if not where:
            print(f"no python{python} on PATH: there, uv alone is asked")
            continue
        for arguments in commands((ROOT / "README.md").read_text(encoding="utf-8")):
            yield f"Python {python}: pip install {' '.join(arguments)}", {"": pool.submit(by_pip, where, arguments)}


def _ask_uv(pool: ThreadPoolExecutor) -> Iterator[tuple[str, Answers]]:
    """Each platform and Python: what comes to a user, and what to CI."""
    for platform, name in PLATFORMS.items():
        for python in supported():
            plain, pinned = (pool.submit(by_uv, name, python, given) for given in (PLAIN, PINNED))
            yield f"{platform}, Python {python}", {"": plain, "by constraints.txt ": pinned}


def commands(text: str) -> list[list[str]]:
    """The arguments of each ``pip install`` in a text, in its order."""
    found = [match.split() for match in _COMMAND.findall(text)]
    if not found:
        raise UnresolvableError("the README has no `pip install`")
    return found


def supported() -> list[str]:
    """The Pythons that the package says it supports."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return _VERSION.findall("\n".join(project["classifiers"]))


def by_pip(python: str, arguments: Sequence[str]) -> dict[str, str]:
    """What pip would install: names and versions.

    Raises:
        UnresolvableError: it would not.
    """
    # Where a registry has no metadata beside its wheels, pip reads those in them and does not download gigabytes to see what they need.
    dry = ("--dry-run", "--ignore-installed", "--use-feature=fast-deps", "--progress-bar", "off")
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.json")
        _run([sys.executable, "-m", "pip", "--python", python, "install", *dry, "--report", str(report), *arguments])
        metadata = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    return {item["name"]: item["version"] for item in metadata}


def by_uv(platform: str, python: str, given: Sequence[str]) -> dict[str, str]:
    """What would come to this platform with this Python, from wheels alone: names and versions.

    Raises:
        UnresolvableError: nothing would.
    """
    where = ("--python-platform", platform, "--python-version", python, "--only-binary", ":all:")
    out = _run(["uv", "pip", "compile", "--quiet", "--no-header", "--no-annotate", *where, *given])
    return dict(line.split("==", 1) for line in out.splitlines() if "==" in line)


def shown(versions: Mapping[str, str]) -> str:
    """The versions that a reader wants to know, of those that would come."""
    return ", ".join(f"{name} {versions[name]}" for name in SHOWN if name in versions) or f"{len(versions)} packages"


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    if done.returncode:
        raise UnresolvableError((done.stdout + done.stderr).strip()[-_LONGEST:])
    return done.stdout


def environment() -> dict[str, str]:
    """The environment of somebody who has configured nothing."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_"))}
    clean |= {"PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    # To resolve for a Python, uv needs none.
    clean |= {"UV_NO_CONFIG": "1", "UV_PYTHON_DOWNLOADS": "never"}
    return clean | {"MACOSX_DEPLOYMENT_TARGET": "14.0"}  # the oldest that torch has wheels for


def _here() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _interpreter(python: str) -> str:
    """The path of an interpreter on ``PATH``, or nothing."""
    found = shutil.which(f"python{python}")
    if found is None:
        return ""
    # A name may be there and lead nowhere, as those of version managers do.
    told = subprocess.run(
        [found, "-c", "import sys; print(sys.executable)"], capture_output=True, text=True, timeout=60, check=False
    )
    return told.stdout.strip() if told.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
