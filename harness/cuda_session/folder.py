"""The folder to bring back: few files, none of them large, each of them whole at any moment."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from stepcheck.harness.record import reading
from stepcheck.harness.record.run import Run
from stepcheck.harness.support.usage import UsageError

SUMMARY, ENVIRONMENT, RESULTS, LOG, DIVERGENCES = (
    "summary.md", "environment.json", "results.jsonl", "log.txt", "divergences.zip",
)  # fmt: skip
#: A file of more than 16 MiB is more than some ways of bringing it back take.
MOST_BYTES = 15 << 20
#: Of what one task prints.
_MOST_OUTPUT = 1 << 20


class Folder:
    """Takes in what commands record and print, as it comes.

    Args:
        path: the folder to bring back.
        record: the ``--out`` of the commands.
    """

    def __init__(self, path: Path, record: Path) -> None:
        self.path, self.record = path, record
        path.mkdir(parents=True, exist_ok=True)
        record.mkdir(parents=True, exist_ok=True)
        for name in (SUMMARY, ENVIRONMENT, RESULTS, LOG, DIVERGENCES):
            (path / name).unlink(missing_ok=True)  # of a session before
        for name in (RESULTS, LOG):
            (path / name).touch()
        self._output = 0
        self._read: dict[Path, int] = {}
        """How far each stream is copied."""
        self._archived = 0
        self.tasks: dict[Path, str] = {}
        """Whose stream each is."""
        self.left_out = 0
        """Lines of streams for which there was no room."""
        self.last_line = ""
        """Of what the task printed."""

    def begin(self, command: tuple[str, ...]) -> None:
        """What is printed from now on is another task's."""
        self._output, self.last_line = 0, ""
        self.hear(f"$ {' '.join(command)}\n")
        self.last_line = ""

    def hear(self, line: str) -> None:
        """A line that a task printed."""
        self.last_line = line.strip() or self.last_line
        self._output += len(line)
        if self._output > _MOST_OUTPUT:
            if self._output - len(line) > _MOST_OUTPUT:
                return
            line = "(this task printed more, which is left out)\n"
        with (self.path / LOG).open("a", encoding="utf-8") as log:
            log.write(line)

    def take_in(self, task: str) -> None:
        """Append what was recorded since, line by line, with the task and the stream that each is from."""
        with (self.path / RESULTS).open("ab") as results:
            for path in reading.runs(self.record):
                name = self.tasks.setdefault(path, task)
                head = f'{{"task":{json.dumps(name)},"stream":"{path.name}","line":'.encode()
                for line in self._new_lines(path):
                    if results.tell() + len(head) + len(line) > MOST_BYTES:
                        self.left_out += 1
                    else:
                        results.write(head + line.rstrip(b"\n") + b"}\n")

    def _new_lines(self, path: Path) -> Iterator[bytes]:
        """Whole ones: the rest of a line comes later."""
        with path.open("rb") as file:
            file.seek(self._read.get(path, 0))
            for line in file:
                if line.endswith(b"\n"):
                    self._read[path] = self._read.get(path, 0) + len(line)
                    yield line

    def archive(self) -> None:
        """Put the traces and scripts of divergences, if there are new ones, into one file."""
        files = sorted(file for kind in ("*.json", "*.py") for file in self.record.glob(kind))
        if len(files) == self._archived:
            return
        part = self.path / f"{DIVERGENCES}.part"
        with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
            for file in files:
                archive.write(file, file.name)
        part.replace(self.path / DIVERGENCES)
        self._archived = len(files)

    def environment(self, about: Mapping[str, Any]) -> None:
        """What the results hold for."""
        self._write(ENVIRONMENT, json.dumps(about, indent=1) + "\n")

    def summary(self, text: str) -> None:
        """The page for a reader who has this folder alone."""
        self._write(SUMMARY, text)

    def _write(self, name: str, text: str) -> None:
        part = self.path / f"{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(self.path / name)

    def runs(self) -> Iterator[tuple[str, Run]]:
        """What was recorded, and by which task."""
        for path, task in self.tasks.items():
            try:
                yield task, reading.read(path)
            except UsageError as error:
                self.hear(f"{error}\n")


def unpack(results: Path, out: Path) -> int:
    """Make of ``results.jsonl`` the streams that it has, for ``stepcheck report``; a line that was cut short is left out.

    Returns:
        how many streams there are.
    """
    lines: dict[str, list[str]] = {}
    for row in results.read_text(encoding="utf-8").splitlines():
        try:
            data = json.loads(row)
        except ValueError:
            continue  # who was killed while writing leaves a beginning
        lines.setdefault(Path(data["stream"]).name, []).append(json.dumps(data["line"], separators=(",", ":")))
    (out / "runs").mkdir(parents=True, exist_ok=True)
    for name, own in lines.items():
        (out / "runs" / name).write_text("\n".join(own) + "\n", encoding="utf-8")
    return len(lines)
