"""A run as it happens, as an append-only file of JSON lines; and the run as it is read back, which every report is made from.

Each command writes ``OUT/runs/ID.jsonl``; ID is the UTC time and the process. Whoever finds something out appends it at that moment, the
workers too, each event as one whole line in one write: whenever the run is killed, what was written before is there, and at most the
last line is cut short. Nothing is kept in memory for later, and nothing is changed that was written.

Each line is a JSON object whose first two members are ``event`` and ``at`` (seconds since the run began). A number that is not finite is
the string ``Infinity`` or ``NaN``; what is 0, empty or as usual may be absent. Unknown members are skipped, and unknown events are counted
and told: they come from a later minor version. A later ``schema`` is not read.

``run``
    The first line. ``schema`` and ``minor`` (of this description), ``id``, ``command`` (what was typed), ``version`` (of stepcheck),
    ``environment``, ``seed``, ``started`` (UTC, ISO 8601), ``settings`` (what else decides the outcome; of ``check``: ``examples``,
    ``seconds``, ``dtypes``, ``checks``, and ``subjects`` as pairs of a name and its reference).
``subject``
    A worker begins with a subject. ``subject``, ``attempt`` (from 1; a subject that kills its worker is begun again, and what an
    attempt recorded is void once a later one has begun), ``like``, ``checks`` (those asked, in their order), ``mode``, ``device``,
    ``dtypes``, ``examples`` (lives planned, or null), ``missing_options``, ``profile`` (the ``reason`` and the facts that are not the
    default), ``meaningless`` (check to why it cannot be asked of this subject), ``expected`` (check to why it is expected to fail).
``invalid``
    Everything invalid was tried. ``subject``, ``attempt``, ``planned``, ``ran``, ``rows`` (the matrix), ``worst_ratio``, ``known``.
``life``
    A trace was played. ``subject``, ``attempt``, ``number`` (from 1), ``end`` (``refused``: the constructor declares that it does not
    support these options, and no check was asked; ``hangs``), ``looked`` (check to the number of things that it looked at),
    ``worst_ratio`` (check to the largest r that it saw), ``known`` (entries of the ledger that explain something), ``lives`` (calls of
    step()), ``steps`` (of single parameters), ``elements``, ``undetermined``, ``fields`` (field to ``[elements, undetermined]`` or
    ``[elements, undetermined, largest r up to 1]``), ``ratios`` (field to dtype to class to the number of determined elements; class 0
    is r = 0, class n is r in ((n - 1) / 20, n / 20], class 21 is r > 1, known divergences included), ``features``, ``clocks`` (``draw``, ``play``, ``judge`` and as
    a part of that ``reference``, in seconds), ``seconds``. Every check that has a meaning was planned once, but ``refuses-invalid``.
``divergence``
    One cause of failure, shrunk. ``subject``, ``attempt``, ``id``, ``check``, ``cause``, ``summary``, ``ratio``, ``trace`` (in the
    schema of traces), ``life`` (lines of prose), ``script``, ``found_in`` (lives so far), ``entry`` (of the ledger, if it explains it; or
    ``expected: REASON``, where the check was expected to fail), ``owner`` (whose fault it is, where it is not the subject's own). One
    of the same ``id`` and ``entry`` replaces it, and so does one that names it in ``replaces``, where several stand with spaces between
    them: those of the same ``entry``, or else of none.
``result``
    A subject's end. ``subject``, ``attempt``, ``error`` (why its verdict is unknown, where the harness or its process failed). Where the
    campaign itself ended: ``traces`` (how many lives there must be), ``planned`` and ``unsupported`` (check to number), ``notes``,
    ``found_in`` (triples of id, entry and number of lives), ``seconds`` (drawing, playing, judging), ``shrink_seconds``, ``passing``
    (checks that were expected to fail, were asked, and found nothing).
``ledger``
    A life of the ledger was played on the subject that it was found on: a row as in ``--json``, with ``told`` (why it does not reproduce).
    ``carried``: of this version of torch, on such a machine, there was no evidence.
``document``, ``row``
    What another command measured: ``name`` (``bench``, ``host``, ``census``, ``certificate``, ``power``) and ``document`` as its
    ``--json`` has it. One that is there at the beginning has no rows yet: each ``row`` goes to its list ``into``, until the whole one
    follows. ``row`` without such a document is a piece of evidence by itself.
``end``
    The last line. ``status`` (the exit status), ``seconds``.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stepcheck.harness.record import store
from stepcheck.harness.record.verdict import Divergence, Invalid, LifeTally, Result
from stepcheck.harness.support.usage import UsageError

SCHEMA = 1
#: Raised when events or members are added that an older reader may skip.
MINOR = 2
#: On Windows a file is opened as text otherwise, and each line would end in two characters.
_BINARY = getattr(os, "O_BINARY", 0)
#: The exit status of bad usage.
_BAD_USAGE = 2


class Stream:
    """Appends events to the file of one run. It can be given to workers, forked or spawned: each appends to the same file.

    As a context manager it writes the ``end``, with ``status``, or with that of bad usage where a :class:`UsageError` leaves it.
    """

    def __init__(self, path: Path, start: float) -> None:
        self.path = path
        self.status = 0
        self._start = start
        try:
            # One write to a file that is open for appending goes to its end as it is then, whoever else writes.
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | _BINARY)
        except OSError as error:
            raise _unwritable(path, error) from None

    def __reduce__(self) -> tuple[Any, ...]:
        return Stream, (self.path, self._start)

    @classmethod
    def create(
        cls,
        folder: Path,
        command: str,
        version: str,
        environment: Mapping[str, Any],
        seed: int | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Stream:
        """Begin a run in ``folder``.

        Raises:
            UsageError: nothing can be written there.
        """
        now = time.time()
        started = datetime.fromtimestamp(now, UTC)
        path = folder / "runs" / f"{started:%Y%m%dT%H%M%S.%fZ}-{os.getpid()}.jsonl"
        try:
            store.prepare(folder)
            path.parent.mkdir(exist_ok=True)
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _BINARY, 0o644))
        except OSError as error:
            raise _unwritable(path.parent, error) from None
        stream = cls(path, now)
        about = {"schema": SCHEMA, "minor": MINOR, "id": path.stem, "command": command, "version": version}
        about |= {"environment": environment, "seed": seed, "started": started.isoformat(), "settings": settings or {}}
        stream.write("run", about)
        return stream

    def write(self, event: str, data: Mapping[str, Any]) -> None:
        """Append one event.

        Raises:
            UsageError: it cannot be written; the disk may be full.
        """
        whole = {"event": event, "at": round(time.time() - self._start, 3), **data}
        line = json.dumps(whole, separators=(",", ":")).encode() + b"\n"
        try:
            written = os.write(self._file, line)
        except OSError as error:
            raise _unwritable(self.path, error) from None
        if written < len(line):
            raise UnwritableError(
                f"{self.path}: the disk is full; free some space, or choose another folder with --out"
            )

    def document(self, name: str, document: Mapping[str, Any]) -> None:
        """What a command measured, as its ``--json`` has it."""
        self.write("document", {"name": name, "document": document})

    def row(self, name: str, row: Mapping[str, Any], into: str = "") -> None:
        """A piece of it, as it comes; for the list ``into`` of a document that was written before."""
        self.write("row", {"name": name, **({"into": into} if into else {}), "row": row})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        try:
            if kind is None or issubclass(kind, UsageError):
                status = self.status if kind is None else _BAD_USAGE
                self.write("end", {"status": status, "seconds": round(time.time() - self._start, 3)})
        except UsageError:
            if kind is None:  # else the first one is told
                raise
        finally:
            os.close(self._file)


class UnwritableError(UsageError):
    """Nothing more can be recorded; what was, stands."""


def _unwritable(path: Path, error: OSError) -> UnwritableError:
    return UnwritableError(f"{path}: cannot be written ({error.strerror}); choose another folder with --out")


class Recorder:
    """Writes down what happens to one subject; without a stream, nothing.

    Args:
        attempt: from 1; a later one supersedes those before.
    """

    def __init__(self, stream: Stream | None = None, subject: str = "", attempt: int = 1) -> None:
        self._stream = stream
        self._who = {"subject": subject, "attempt": attempt}

    def begun(self, result: Result) -> None:
        """The facts about the subject, before anything is played."""
        data = {"like": result.like, "checks": list(result.tallies), **result.facts, "meaningless": result.meaningless}
        data |= {"expected": dict(result.expected)} if result.expected else {}
        self._write("subject", lambda: data)

    def invalid(self, invalid: Invalid) -> None:
        """What became of everything invalid."""
        ratios = {"worst_ratio": _numbers_out(invalid.worst_ratio)}
        self._write("invalid", lambda: {**vars(invalid), **ratios})

    def life(self, life: LifeTally) -> None:
        """One played trace."""
        self._write("life", lambda: _life_out(life))

    def divergence(self, divergence: Divergence, replaces: str = "") -> None:
        """One cause of failure, also when more is known of it than before."""
        self._write("divergence", lambda: _divergence_out(divergence, replaces))

    def ended(self, result: Result) -> None:
        """What only the end of a campaign knows."""
        self._write("result", lambda: _result_out(result))

    def failed(self, error: str) -> None:
        """The campaign did not end by itself."""
        self._write("result", lambda: {"error": error})

    def _write(self, event: str, data: Callable[[], Mapping[str, Any]]) -> None:
        if self._stream is not None:
            self._stream.write(event, {**self._who, **data()})


def _life_out(life: LifeTally) -> dict[str, Any]:
    data = {"lives" if name == "calls" else name: value for name, value in vars(life).items() if value}
    data.pop("worst", None)
    if life.worst_ratio:
        data["worst_ratio"] = _numbers_out(life.worst_ratio)
    data["fields"] = {
        name: [*counts, life.worst[name]] if name in life.worst else list(counts)
        for name, counts in life.fields.items()
    }
    return data


def _divergence_out(d: Divergence, replaces: str) -> dict[str, Any]:
    data = {k: v for k, v in vars(d).items() if k not in ("subject", "like", "ratio", "trace", "declared")}
    data |= {"id": d.id, "ratio": None if d.ratio is None else _number_out(d.ratio), "trace": d.trace.to_json()}
    return data | ({"replaces": replaces} if replaces else {})


def _result_out(result: Result) -> dict[str, Any]:
    passing = [t.check for t in result.tallies.values() if t.passes_now]
    return {
        "error": result.error,
        "traces": result.traces,
        "planned": {t.check: t.planned for t in result.tallies.values()},
        "unsupported": {t.check: t.unsupported for t in result.tallies.values()},
        "notes": result.notes,
        "varied": result.varied,
        "found_in": [[d.id, d.entry, d.found_in] for d in (*result.divergences, *result.known)],
        "seconds": result.seconds,
        "shrink_seconds": result.shrink_seconds,
        **({"passing": passing} if passing else {}),
    }


def _number_out(x: float) -> float | str:
    return x if math.isfinite(x) else "NaN" if math.isnan(x) else "Infinity"


def _numbers_out(xs: Mapping[str, float]) -> dict[str, float | str]:
    return {name: _number_out(x) for name, x in xs.items()}
