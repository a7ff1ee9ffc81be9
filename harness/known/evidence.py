"""On which versions of torch each known issue was seen: what was played, not what is claimed.

``nox -s versions`` plays the own life of each entry of the ledger on every subject that it concerns, under one version of torch after the
other, and keeps what it saw in ``harness/versions.json``. Ranges of versions are read off that file and written down nowhere else.

Schema of ``versions.json`` (version 1)::

    {"schema": 1, "versions": [{"torch": VERSION, "environment": {NAME: VALUE},
                                "lacks": {OPTIMIZER: WHY}, "unsupported": {SUBJECT: WHY},
                                "shows": {ENTRY: [SUBJECT]}, "quiet": {ENTRY: [SUBJECT]}}]}

The versions are in ascending order. A SUBJECT is ``Adam[foreach]``. It stands under ``shows`` where the entry's life showed what the entry
explains, and under ``quiet`` where the life was played and did not. It stands under neither where the life was not played on it: the entry is younger than what was seen there, or its options
are another optimizer's, or the mode takes no such dtype.
"""

from __future__ import annotations

import functools
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

SCHEMA = 1
FILE = Path(__file__).parents[1] / "versions.json"


@dataclass(frozen=True)
class Played:
    """What was seen under one version of torch.

    Attributes:
        torch: the version, without what follows a ``+``.
        environment: as ``report.environment`` has it.
        lacks: optimizers that this version does not have, and why.
        unsupported: subjects that it does not support on the CPU, in its own words.
        shows: entry to the subjects on which its life shows it.
        quiet: entry to the subjects on which its life was played and shows nothing of it.
    """

    torch: str
    environment: Mapping[str, Any]
    lacks: Mapping[str, str]
    unsupported: Mapping[str, str]
    shows: Mapping[str, Sequence[str]]
    quiet: Mapping[str, Sequence[str]]

    @property
    def machine(self) -> str:
        """The system and the processor, such as ``Linux x86_64``."""
        return str(self.environment.get("platform", ""))

    def saw(self, entry: str, subject: str) -> bool | None:
        """Whether an entry's life shows it on a subject; ``None`` where that was not played."""
        if subject in self.shows.get(entry, ()):
            return True
        return False if subject in self.quiet.get(entry, ()) else None

    def to_json(self) -> dict[str, Any]:
        return vars(self).copy()


def load(file: Path = FILE) -> tuple[Played, ...]:
    """What was seen, in ascending order of versions.

    Raises:
        ValueError: the file is of another schema.
    """
    if not file.is_file():
        return ()
    data = json.loads(file.read_text(encoding="utf-8"))
    if data["schema"] != SCHEMA:
        raise ValueError(f"{file}: schema {data['schema']}, not {SCHEMA}; make it again with `nox -s versions`")
    return tuple(Played(**one) for one in data["versions"])


def save(played: Played, file: Path = FILE) -> None:
    """Add what was seen under one version, in place of what was seen under it before."""
    others = [p for p in load(file) if p.torch != played.torch]
    versions = sorted([*others, played], key=lambda p: Version(p.torch))
    text = json.dumps({"schema": SCHEMA, "versions": [p.to_json() for p in versions]}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


@functools.cache
def versions() -> tuple[Played, ...]:
    """What this release of stepcheck knows."""
    return load()


def installed() -> str:
    """The version of torch that is installed, without what follows a ``+``."""
    return Version(torch.__version__).public


@functools.cache
def here() -> Played | None:
    """What was seen under the version that is installed, on such a machine; ``None`` where nothing was."""
    machine = f"{platform.system()} {platform.machine()}"
    return next((p for p in versions() if p.torch == installed() and p.machine == machine), None)


def same_processor() -> bool:
    """Whether what was seen here was seen with the same kernels: those of torch for the CPU differ by its vector instructions."""
    seen = here()
    return seen is not None and seen.environment.get("cpu_capability") == torch.backends.cpu.get_cpu_capability()


@dataclass(frozen=True)
class Span:
    """The versions in which an entry's own life shows it, of those that were played.

    Attributes:
        seen: the versions that show it, in ascending order.
        quiet: the versions that were played and do not.
    """

    seen: tuple[str, ...] = ()
    quiet: tuple[str, ...] = ()

    @property
    def first_seen(self) -> str:
        """The earliest version that shows it; empty where none does."""
        return self.seen[0] if self.seen else ""

    @property
    def fixed_in(self) -> str:
        """The earliest version after the last one that shows it; empty where it is not fixed in any."""
        later = [v for v in self.quiet if self.seen and Version(v) > Version(self.seen[-1])]
        return later[0] if later else ""

    @property
    def specifier(self) -> str:
        """The same as PEP 440 writes it, such as ``>=2.9.1,<2.15.0``."""
        if not self.seen:
            return ""
        low, high = Version(self.seen[0]), Version(self.fixed_in or "9999")
        gaps = [f"!={v}" for v in self.quiet if low < Version(v) < high]
        return ",".join([f">={self.first_seen}", *([f"<{self.fixed_in}"] if self.fixed_in else []), *gaps])


def span(entry: str, subject: str) -> Span:
    """The versions in which the life of an entry shows it on a subject such as ``SGD[fused]``."""
    saw = [(p.torch, p.saw(entry, subject)) for p in versions()]
    return Span(tuple(v for v, seen in saw if seen), tuple(v for v, seen in saw if seen is False))
