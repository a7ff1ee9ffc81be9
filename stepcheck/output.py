"""What the command line writes: whatever cannot be written is told at the end, in one line, when all else has been."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Output:
    """A standard stream that never raises: a full disk or a closed pipe must not cost the files that are written after it.

    Whoever closes a pipe, as ``head`` does, has seen enough; that is no failure.

    Attributes:
        problem: why something could not be written, or nothing.
    """

    def __init__(self, stream: Any, descriptor: int) -> None:
        self.problem = "" if stream is not None else "it is closed"
        self._stream: Any = stream or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - as long as the process
        self._descriptor = descriptor

    def write(self, text: str) -> int:
        with self._kept():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._kept():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextlib.contextmanager
    def _kept(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.problem = self.problem or error.strerror or str(error)
            # What is still in the buffer, and all that comes, goes nowhere: at its end the interpreter would complain of it.
            with contextlib.suppress(OSError):
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, self._descriptor)
                os.close(nowhere)


def take_over() -> Output:
    """Let nothing that is printed raise; give standard output."""
    if None in (sys.stdin, sys.stdout, sys.stderr):
        # A file that is opened would take the place of a standard stream that is closed, and be printed into.
        while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(descriptor)
    out, err = (s if isinstance(s, Output) else Output(s, n) for n, s in ((1, sys.stdout), (2, sys.stderr)))
    sys.stdout, sys.stderr = out, err
    return out


class Unwritten:
    """Collects what could not be written."""

    def __init__(self) -> None:
        self.told: dict[str, None] = {}

    @contextlib.contextmanager
    def noting(self, what: object) -> Iterator[None]:
        """Whatever is written within, and cannot be, is told of ``what``."""
        try:
            yield
        except OSError as error:
            self.told[f"{what}: cannot be written ({error.strerror or error})"] = None

    def write(self, file: Path | None, option: str, text: str) -> None:
        """Write a file, if there is one to write."""
        if file is not None:
            with self.noting(f"{option} {file}"):
                file.write_bytes(text.encode("utf-8", "backslashreplace"))
