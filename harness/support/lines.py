"""A program that is asked a line at a time: JSON on its standard input, JSON on its standard output."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, Any

from stepcheck.harness.support.processes import end_of, end_with
from stepcheck.harness.support.text import in_one_line

#: Bytes of an answer, from which on it is none.
_MOST_BYTES = 1 << 28
_PIECE = 1 << 20
#: How long a program may take to end once it has closed its standard output.
_END_SECONDS = 1.0
#: Characters that are quoted of what it says.
_QUOTED = 120


class ClientError(Exception):
    """A program does not answer as it must; the message is one line."""


class RefusedError(ClientError, ValueError):
    """It answers that it does not do what it is asked for, in its own words."""


class Client:
    """A program that is started when it is first asked, once for each process that asks; it ends with that process.

    Args:
        command: the program and its arguments.
        greeting: what it is asked first of all, whenever it is started.
    """

    def __init__(self, command: Sequence[str], greeting: Mapping[str, Any]) -> None:
        self.command, self.greeting = tuple(command), greeting
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._errors: IO[bytes] | None = None
        self._unread = b""
        self._finish: Callable[[], Any] = tuple

    def greet(self, seconds: float) -> dict[str, Any]:
        """Start it anew, and give back what it answers to the greeting.

        Raises:
            ClientError: it cannot be started, answers no JSON object, or not within so many seconds.
        """
        self.end()
        with self._ending_with_a_fault():
            process = self._start()
            late = threading.Event()

            def give_up() -> None:
                late.set()
                _kill(process)

            # A pipe cannot be waited for everywhere; a program that is killed closes it.
            timer = threading.Timer(seconds, give_up)
            timer.start()
            try:
                return self._answer(self.greeting)
            except ClientError:
                if late.is_set():
                    raise ClientError(f"does not answer within {seconds:.0f} s") from None
                raise
            finally:
                timer.cancel()
                timer.join()

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Its answer to a request.

        Raises:
            RefusedError: it answers with an error.
            ClientError: it cannot be started, ends, or answers no JSON object.
        """
        with self._ending_with_a_fault():
            if self._process is None or self._owner != os.getpid():
                self._start()
                self._answer(self.greeting)
            return self._answer(request)

    def end(self) -> None:
        """End it, where this process has started it; it is started anew when it is asked again."""
        self._finish()
        self._process, self._unread = None, b""

    @contextlib.contextmanager
    def _ending_with_a_fault(self) -> Iterator[None]:
        """Whoever was interrupted, or got no answer, would take an answer to come for one to what is asked next."""
        try:
            yield
        except RefusedError:
            raise
        except BaseException:
            self.end()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        self.end()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the program runs
        self._owner = os.getpid()
        # Where a parent is killed, nobody else ends a program that hangs.
        tied = functools.partial(end_with, self._owner) if sys.platform == "linux" else None
        try:
            with warnings.catch_warnings():  # of threads, of which the child needs none
                warnings.simplefilter("ignore")
                process = subprocess.Popen(  # noqa: S603 - whose command is given by who checks it
                    self.command,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    bufsize=0,
                    start_new_session=True,  # Ctrl-C is the caller's
                    preexec_fn=tied,  # noqa: PLW1509 - it takes no lock that a thread may hold
                )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            self._errors.close()
            told = getattr(error, "strerror", None) or error
            raise ClientError(f"cannot be started ({self.command[0]}: {told})") from None
        self._process = process
        # Whoever forgets it need not end it.
        self._finish = weakref.finalize(self, _end, process, self._owner, self._errors)
        return process

    def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        if self._unread.strip():
            raise ClientError(f"says more than one line to a request: {_quoted(self._unread)}")
        self._send(json.dumps(request).encode() + b"\n")
        line = self._line()
        try:
            answer = json.loads(line)
        except (ValueError, RecursionError):
            raise ClientError(f"answers {_quoted(line)}, which is no JSON") from None
        if not isinstance(answer, dict):
            raise ClientError(f"answers {_quoted(line)}, which is no JSON object")
        if "error" in answer:
            raise RefusedError(in_one_line(str(answer["error"])) or "it does not say why")
        return answer

    def _send(self, data: bytes) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._process.stdin.fileno(), rest) :]
        except OSError:
            raise self._ended() from None

    def _line(self) -> bytes:
        """The next line that it says."""
        assert self._process is not None
        assert self._process.stdout is not None
        pieces, size = [self._unread], len(self._unread)
        while b"\n" not in pieces[-1]:
            piece = os.read(self._process.stdout.fileno(), _PIECE)
            size += len(piece)
            if not piece:
                raise self._ended(b"".join(pieces))
            if size > _MOST_BYTES:
                raise ClientError(f"answers more than {_MOST_BYTES >> 20} MiB without an end of line")
            pieces.append(piece)
        line, _, self._unread = b"".join(pieces).partition(b"\n")
        return line

    def _ended(self, said: bytes = b"") -> ClientError:
        """That it is gone, and the last that it said."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.poll()
        how = "closes its standard output" if code is None else f"ends with {end_of(code)}"
        last = self._last_error() or (f"after {_quoted(said)}" if said.strip() else "")
        return ClientError(f"{how} instead of an answer{f': {last}' if last else ''}")

    def _last_error(self) -> str:
        """The last line that it wrote to its standard error."""
        if self._errors is None:
            return ""
        end = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(end - 4096, 0))
        lines = self._errors.read().decode("utf-8", "replace").split("\n")
        return next((in_one_line(line)[:_QUOTED] for line in reversed(lines) if line.strip()), "")


def _end(process: subprocess.Popen[bytes], owner: int, errors: IO[bytes]) -> None:
    """End a program; of a process that was forked since it was started, let it alone."""
    if owner == os.getpid():
        _kill(process)
        process.wait()
    else:
        process.returncode = 0  # it is the parent's, which waits for it
    for file in (process.stdin, process.stdout, errors):
        if file is not None:
            with contextlib.suppress(OSError):
                file.close()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """With what it has started."""
    if process.poll() is not None:
        return
    with contextlib.suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def _quoted(said: bytes) -> str:
    """The beginning of what it says."""
    text = in_one_line(said[: 4 * _QUOTED].decode("utf-8", "replace"))
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}...")
