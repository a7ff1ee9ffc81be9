"""From streams on disk to a folder with the report."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepcheck.harness.page import badge, compare, faults, markdown, model, page, versions
from stepcheck.harness.page.figures import figures
from stepcheck.harness.page.model import Report
from stepcheck.harness.page.upgrade import Upgrade
from stepcheck.harness.record import reading
from stepcheck.harness.record.run import Run
from stepcheck.harness.support.usage import UsageError

#: A first line that is longer is of no stream whose command can be read without reading it all.
_MOST_BYTES = 1 << 20

_KNOWN = """# Known issues of torch

`first seen` and `fixed in` are the versions under which the life of each was played: [versions.html](versions.html) shows them all.

"""


@dataclass
class Recorded:
    """Runs that were read.

    Attributes:
        folders: by ID, where the run saved its divergences.
        unread: what is to be told of streams that could not be read at all.
    """

    runs: list[Run] = field(default_factory=list)
    folders: dict[str, Path] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


def collect(paths: Sequence[Path]) -> Recorded:
    """Read streams: those that are named, and of each folder the newest of each command.

    Raises:
        UsageError: none of them can be read.
    """
    found = Recorded()
    for path in dict.fromkeys(p for given in paths for p in _streams(given)):
        try:
            run = reading.read(path)
        except UsageError as error:
            found.unread.append(str(error))
            continue
        found.runs.append(run)
        found.folders[run.id] = path.parent.parent
    if not found.runs:
        raise UsageError(f"nothing to report: {found.unread[0]}")
    return found


def _streams(given: Path) -> Iterator[Path]:
    if not given.is_dir():
        yield given
        return
    inside = reading.runs(given) or sorted(given.glob("*.jsonl"))
    if not inside:
        raise UsageError(f"{given}: no recorded runs; stepcheck check --out {given} makes one")
    yield from _newest(inside)


def _newest(paths: Iterable[Path]) -> list[Path]:
    """Of each command, as it was typed, the newest stream; names begin with the time. One without a command counts by itself."""
    last = {_command(path) or str(path): path for path in sorted(paths)}
    return sorted(last.values())


def _command(path: Path) -> str:
    """What a stream says that was typed, from its first line, or nothing."""
    if not path.is_file():  # a pipe would be waited for, for ever
        return ""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline(_MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return ""
    command = first.get("command") if isinstance(first, dict) else None
    return command if isinstance(command, str) else ""


def build(recorded: Recorded, against: Path | None = None) -> Report:
    """The whole report, with figures, and a comparison if there is an earlier one.

    Raises:
        UsageError: the earlier one cannot be read.
    """
    before = None if against is None else compare.load(against)
    report = model.build(recorded.runs, recorded.folders, recorded.unread)
    report.figures = figures(report, recorded.runs)
    if before is not None:
        found = compare.compare(report, before, str(against))
        if isinstance(found, Upgrade):
            report.upgrade = found
        else:
            report.comparison = found
    return report


def write(report: Report, folder: Path) -> list[Path]:
    """Write ``index.html``, ``report.json``, ``report.md`` and ``badge.svg``, and known issues as ``versions.html``, ``versions.json`` and ``known.md``.

    Raises:
        UsageError: they cannot be written.
    """
    known = faults.build()
    texts = {
        "index.html": page.html(report),
        "report.json": _json(report.to_json()),
        "report.md": markdown.markdown(report),
        "badge.svg": badge.svg(report),
        "versions.html": versions.html(known),
        "versions.json": _json(known.to_json()),
        "known.md": _KNOWN + versions.markdown(known, "versions.html"),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            # A lone surrogate, which a stream may hold, is no text that a file can.
            (folder / name).write_bytes(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UsageError(f"--out {folder}: cannot be written ({error.strerror}); choose another folder") from None
    return [folder / name for name in texts]


def _json(data: Any) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False) + "\n"
