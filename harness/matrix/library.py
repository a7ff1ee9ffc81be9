"""A released library: what to install, and what is declared of its optimizers."""

from __future__ import annotations

import importlib.metadata
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from stepcheck.harness.support.usage import UsageError

FOLDER = Path(__file__).parent / "libraries"


@dataclass(frozen=True)
class Upstream:
    """A fault that is worth an issue upstream.

    Attributes:
        subject: where it shows, ``module:Class``.
        check: which finds it.
        title: of the issue.
        expected: what should happen instead, and by what source.
        summary: a part of the finding's summary, where the check has several.
    """

    subject: str
    check: str
    title: str
    expected: str
    summary: str = ""


@dataclass(frozen=True)
class Library:
    """One file of ``libraries/``.

    Attributes:
        name: as its users say it.
        url: of its source.
        requires: the library itself first, with its version. pip installs these alone: what they ask for may be another torch, or not be there.
        needs: what they must have beside torch and NumPy, which pip installs with all that it asks for.
        environment: variables with which it is played, such as the backend of Keras.
        subjects: the names of those that are declared.
        upstream: what its authors should hear of.
        file: where all of it stands, with the ``[tool.stepcheck]`` table.
    """

    name: str
    url: str
    requires: tuple[str, ...]
    needs: tuple[str, ...]
    environment: Mapping[str, str]
    subjects: tuple[str, ...]
    upstream: tuple[Upstream, ...]
    file: Path

    def versions(self) -> dict[str, str]:
        """The distributions that are installed of those that it requires, with their versions."""
        found = {}
        for name in map(_distribution, self.requires):
            try:
                found[name] = importlib.metadata.version(name)
            except importlib.metadata.PackageNotFoundError:
                continue
        return found

    def lacks(self) -> str:
        """Why it cannot be played here; nothing where it can."""
        own = _distribution(self.requires[0])
        return "" if own in self.versions() else f"{own} is not installed"


def _distribution(requirement: str) -> str:
    return re.split(r"[\s\[<>=!~;]", requirement, maxsplit=1)[0]


def read(file: Path) -> Library:
    """One file.

    Raises:
        UsageError: it says something else than a library does.
    """
    table = tomllib.loads(file.read_text(encoding="utf-8"))
    try:
        said: Mapping[str, object] = table["library"]
        subjects: Mapping[str, object] = table["tool"]["stepcheck"]["subjects"]
        upstream = tuple(Upstream(**entry) for entry in table["library"].get("upstream", ()))
        unknown = [key for key in said if key not in ("name", "url", "requires", "needs", "environment", "upstream")]
        if unknown:
            raise UsageError(f"{file}: [library] has no key {unknown[0]!r}")
        return Library(
            str(said["name"]),
            str(said["url"]),
            tuple(table["library"]["requires"]),
            tuple(table["library"].get("needs", ())),
            dict(table["library"].get("environment", {})),
            tuple(subjects),
            upstream,
            file,
        )
    except (KeyError, TypeError) as error:
        raise UsageError(f"{file}: is no library ({error})") from None


def libraries(names: Sequence[str] = ()) -> list[Library]:
    """All of them, or those that are named by their files.

    Raises:
        UsageError: there is none of a name.
    """
    files = {file.stem: file for file in sorted(FOLDER.glob("*.toml"))}
    unknown = [name for name in names if name not in files]
    if unknown:
        raise UsageError(f"no library named {unknown[0]!r}; there is {', '.join(files)}")
    return [read(files[name]) for name in names or files]
