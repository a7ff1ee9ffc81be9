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
    default), ``meaningless`` (check to why it cannot be asked of this subject).
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
    schema of traces), ``life`` (lines of prose), ``script``, ``found_in`` (lives so far), ``entry`` (of the ledger, if it explains it).
    ``owner`` (whose fault it is, where it is not the subject's own). One of the same ``id`` and ``entry`` replaces it, and so does one
    that names it in ``replaces``, where several stand with spaces between them.
``result``
    A subject's end. ``subject``, ``attempt``, ``error`` (why its verdict is unknown, where the harness or its process failed). Where the
    campaign itself ended: ``traces`` (how many lives there must be), ``planned`` and ``unsupported`` (check to number), ``notes``,
    ``found_in`` (triples of id, entry and number of lives), ``seconds`` (drawing, playing, judging), ``shrink_seconds``.
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
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.comparison import RATIO_CLASSES
from stepcheck.harness.play.subjects import UsageError
from stepcheck.harness.record import store
from stepcheck.harness.record.verdict import HANGS, REFUSED, VALIDATION, Divergence, Invalid, Life, Result, Tally

SCHEMA = 1
#: Raised when events or members are added that an older reader may skip.
MINOR = 1
#: Where a line begins: within one, quotes are escaped or other members follow.
_BEGINNING = re.compile(rb'\{"event":"[a-z]+","at":')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MOST_BYTES = 64 << 20
_MOST_PROBLEMS = 20
#: On Windows a file is opened as text otherwise, and each line would end in two characters.
_BINARY = getattr(os, "O_BINARY", 0)
#: The exit status of bad usage.
_BAD_USAGE = 2


@dataclass
class Run:
    """One run of one command, folded from its stream.

    Attributes:
        id: the name of the stream's file, without its ending.
        command: what was typed, such as ``stepcheck check torch --seed 0``.
        version: stepcheck's.
        environment: the versions and the machine that the results hold for (``report.environment``).
        started: UTC, ISO 8601.
        settings: what else decides the outcome, as the stream has it.
        seconds: how long it took; until its last event where it did not end.
        status: the exit status, or ``None`` where it did not end.
        results: what ``check`` found about each subject, in the order of the command, those without an end as far as they came.
        ledger: rows of the ledger's own lives, as in ``--json``, and why one does not reproduce (``told``).
        documents: what the other commands measured, by command (``bench``, ``host``, ``census``, ``certificate``, ``power``), each as
            its ``--json`` has it; where the run did not end, with the rows that had come.
        rows: pieces of evidence that stand by themselves, by command: the campaigns of ``power``.
        problems: what could not be read, a line each: a line cut short, an event of another version.
    """

    id: str
    command: str = ""
    version: str = ""
    environment: dict[str, Any] = field(default_factory=dict)
    started: str = ""
    seed: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    status: int | None = None
    results: list[Result] = field(default_factory=list)
    ledger: list[dict[str, Any]] = field(default_factory=list)
    documents: dict[str, dict[str, Any]] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


# Writing --------------------------------------------------------------------------------------------------------------


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
        self._write("subject", lambda: data)

    def invalid(self, invalid: Invalid) -> None:
        """What became of everything invalid."""
        ratios = {"worst_ratio": _numbers_out(invalid.worst_ratio)}
        self._write("invalid", lambda: {**vars(invalid), **ratios})

    def life(self, life: Life) -> None:
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


def _life_out(life: Life) -> dict[str, Any]:
    data = {name: value for name, value in vars(life).items() if value}
    data.pop("worst", None)
    if life.worst_ratio:
        data["worst_ratio"] = _numbers_out(life.worst_ratio)
    data["fields"] = {
        name: [*counts, life.worst[name]] if name in life.worst else list(counts)
        for name, counts in life.fields.items()
    }
    return data


def _kept(result: Result, divergence: Divergence) -> list[Divergence]:
    """Where those of the kind of a divergence are kept."""
    tally = result.tallies.setdefault(divergence.check, Tally(divergence.check))
    return tally.known if divergence.entry else tally.divergences


def _divergence_out(d: Divergence, replaces: str) -> dict[str, Any]:
    data = {k: v for k, v in vars(d).items() if k not in ("subject", "like", "ratio", "trace")}
    data |= {"id": d.id, "ratio": None if d.ratio is None else _number_out(d.ratio), "trace": d.trace.to_json()}
    return data | ({"replaces": replaces} if replaces else {})


def _result_out(result: Result) -> dict[str, Any]:
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
    }


def _number_out(x: float) -> float | str:
    return x if math.isfinite(x) else "NaN" if math.isnan(x) else "Infinity"


def _numbers_out(xs: Mapping[str, float]) -> dict[str, float | str]:
    return {name: _number_out(x) for name, x in xs.items()}


# Reading: everything is checked before anything is believed ---------------------------------------------------------------


def runs(folder: Path) -> list[Path]:
    """The streams in a folder given as ``--out``, the oldest first."""
    return sorted(p for p in (folder / "runs").glob("*.jsonl") if p.is_file())


def read(path: Path) -> Run:
    """Fold a stream, however complete it is; what could not be read is told in ``Run.problems``.

    Raises:
        UsageError: there is nothing in it to fold: no such file, an empty one, another schema, or something else altogether.
    """
    fold = _Fold(path.stem)
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise UsageError(f"{path}: is no regular file; give a file that a run wrote into OUT/runs")
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(_MOST_BYTES):
                number += 1
                fold.line(number, line)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
    except _OtherSchema as error:
        raise UsageError(f"{path}: {error}") from None
    if not number:
        raise UsageError(f"{path}: is empty; its run was killed before it began")
    if not fold.understood:
        raise UsageError(f"{path}: nothing in it is a stream of stepcheck; give a file that a run wrote into OUT/runs")
    return fold.folded()


class _OtherSchema(Exception):
    """The whole stream is in a schema that this version does not read."""


class _Unreadable(ValueError):
    """An event is not as the schema has it."""


@dataclass
class _Subject:
    """A subject's result as far as it has come."""

    result: Result
    attempt: int = 0
    ended: bool = False
    began: float = 0.0
    divergences: dict[tuple[str, str], Divergence] = field(default_factory=dict)
    """By the ID and the ledger's entry that the stream gives them."""


class _Fold:
    def __init__(self, name: str) -> None:
        self.run = Run(name)
        self.understood = 0
        self.subjects: dict[str, _Subject] = {}
        self.unknown: dict[str, int] = {}
        self.begun = False
        self.more = 0
        self.handlers: dict[str, Callable[[_Data], None]] = {
            "run": self._run,
            "subject": self._begin,
            "invalid": self._invalid,
            "life": self._life,
            "divergence": self._divergence,
            "result": self._end_of_subject,
            "ledger": self._ledger,
            "document": self._document,
            "row": self._row,
            "end": self._end,
        }

    def line(self, number: int, line: bytes) -> None:
        if not line.strip():
            return
        data = _parsed(line)
        if data is None:
            # Who was killed while writing leaves a beginning, to which the next line of another process is joined.
            *_, last = (0, *(m.start() for m in _BEGINNING.finditer(line)))
            data = _parsed(line[last:]) if last else None
            if data is not None:
                self._problem(f"line {number}: begins with a line that was cut short; the rest of it is read")
            elif line.endswith(b"\n"):
                self._problem(f"line {number}: is no event; it is skipped")
            else:
                self._problem(f"line {number}: is cut short, as the last line of a run that was killed may be")
        if data is None:
            return
        kind = data.get("event")
        if not isinstance(kind, str):
            self._problem(f"line {number}: is no event; it is skipped")
        elif kind not in self.handlers:
            self.unknown[kind[:40]] = self.unknown.get(kind[:40], 0) + 1
        else:
            try:
                self.handlers[kind](_Data(data))
                self.understood += 1
            except ValueError as error:
                self._problem(f"line {number}: {kind}: {error}; it is skipped")

    def folded(self) -> Run:
        run = self.run
        if not self.begun:
            self._problem("its beginning is missing: command, seed and environment are not known")
        for kind, count in self.unknown.items():
            lines = "1 event is" if count == 1 else f"{count} events are"
            self._problem(f"{lines} of the kind {kind!r}, which this version does not know; a later one may")
        for subject in self.subjects.values():
            self._close(subject)
            run.results.append(subject.result)
        if run.status is None:
            self._problem(f"the run did not end; its last event is at {run.seconds:.1f} s")
        if self.more:
            run.problems.append(f"and {self.more} more problems")
        return run

    def _problem(self, told: str) -> None:
        if len(self.run.problems) < _MOST_PROBLEMS:
            self.run.problems.append(told)
        else:
            self.more += 1

    @staticmethod
    def _close(subject: _Subject) -> None:
        """Of what did not end by itself, the plan is what it was to be."""
        result = subject.result
        if subject.ended:
            return
        examples = result.facts.get("examples")
        for tally in result.tallies.values():
            if examples is not None and tally.check != VALIDATION:
                tally.planned = examples
            if tally.check in result.meaningless:
                tally.unsupported = tally.planned
        if not result.error:
            result.error = f"the run ended before this subject {'did' if subject.attempt else 'began'}"

    # The events.

    def _run(self, d: _Data) -> None:
        schema = d.whole("schema")
        if schema != SCHEMA:
            raise _OtherSchema(
                f"a stream of schema {schema}; this version of stepcheck reads schema {SCHEMA}; read it with the one that wrote it"
            )
        if self.begun:
            raise _Unreadable("a second beginning")
        run = self.run
        run.command, run.version, run.started = d.text("command"), d.text("version"), d.text("started")
        run.environment, run.settings = d.mapping("environment"), d.mapping("settings")
        run.seed = None if d.value.get("seed") is None else d.whole("seed")
        self.begun = True
        settings = _Data(run.settings)
        checks = settings.texts("checks")
        for pair in settings.sequence("subjects"):
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
                raise _Unreadable("subjects must be pairs of a name and its reference")
            name, like = pair
            # What a line before this one said of a subject, in a damaged file, stays.
            self.subjects.setdefault(name, _Subject(Result(name, like, {c: Tally(c) for c in checks})))

    def _begin(self, d: _Data) -> None:
        name, attempt = d.text("subject"), d.whole("attempt")
        before = self.subjects.get(name)
        if before is not None and before.attempt >= attempt:
            raise _Unreadable(f"{name} begins attempt {attempt} after attempt {before.attempt}")
        facts: dict[str, Any] = {key: d.text(key, "") for key in ("mode", "device")}
        facts |= {key: d.texts(key) for key in ("dtypes", "missing_options")}
        facts["examples"] = None if d.value.get("examples") is None else d.whole("examples")
        if "profile" in d.value:
            facts["profile"] = d.mapping("profile")
        tallies = {c: Tally(c, unsupported=len(facts["missing_options"])) for c in d.texts("checks")}
        meaningless = {check: str(why) for check, why in d.mapping("meaningless").items()}
        result = Result(name, d.text("like"), tallies, facts=facts, meaningless=meaningless)
        # In the place of the one before, if there was one.
        self.subjects[name] = _Subject(result, attempt, began=self._at(d))

    def _open(self, d: _Data) -> _Subject | None:
        """The subject that an event is about, or ``None`` where the attempt that it belongs to is void."""
        name, attempt = d.text("subject"), d.whole("attempt")
        subject = self.subjects.get(name)
        self._at(d)
        if subject is None:
            raise _Unreadable(f"about {name}, which did not begin")
        if attempt > subject.attempt and d.value["event"] != "result":
            raise _Unreadable(f"about attempt {attempt} of {name}, which did not begin")
        return None if attempt < subject.attempt or subject.ended else subject

    def _at(self, d: _Data) -> float:
        at = d.number("at")
        self.run.seconds = max(self.run.seconds, at)
        return at

    def _invalid(self, d: _Data) -> None:
        subject = self._open(d)
        if subject is None:
            return
        rows = [_Data.of(row).value for row in d.sequence("rows")]
        tallies = subject.result.tallies
        invalid = Invalid(d.whole("planned"), d.whole("ran"), rows, d.numbers("worst_ratio", tallies), d.texts("known"))
        if VALIDATION not in tallies:
            raise _Unreadable(f"{VALIDATION} is not asked")
        subject.result.add_invalid(invalid)

    def _life(self, d: _Data) -> None:
        subject = self._open(d)
        if subject is None:
            return
        result = subject.result
        life = Life(
            d.whole("number"),
            d.text("end", ""),
            d.wholes("looked", result.tallies),
            d.numbers("worst_ratio", result.tallies),
            d.texts("known"),
            lives=d.whole("lives", 0),
            steps=d.whole("steps", 0),
            elements=d.whole("elements", 0),
            undetermined=d.whole("undetermined", 0),
            features=d.texts("features"),
            clocks=d.numbers("clocks"),
            seconds=d.number("seconds", 0.0),
        )
        if life.end not in ("", REFUSED, HANGS):
            raise _Unreadable(f"a life ends {life.end!r}")
        for name, counts in d.mapping("fields").items():
            if not isinstance(counts, list) or len(counts) not in (2, 3):
                raise _Unreadable(f"fields: {name} must have 2 or 3 numbers")
            life.fields[name] = (_whole(counts[0], name), _whole(counts[1], name))
            if len(counts) == 3:
                life.worst[name] = _number(counts[2], name)
        for name, by_dtype in d.mapping("ratios").items():
            classes = {dtype: _Data.of(of_one) for dtype, of_one in _Data.of(by_dtype).value.items()}
            life.ratios[name] = {dtype: _classes(of_one) for dtype, of_one in classes.items()}
        if life.number != result.traces + 1:
            if life.number <= result.traces:
                raise _Unreadable(f"life {life.number} of {result.subject} is there twice")
            self._problem(f"{result.subject}: before life {life.number}, {life.number - result.traces - 1} are missing")
            result.traces = life.number - 1
        result.add_life(life)

    def _divergence(self, d: _Data) -> None:
        subject = self._open(d)
        if subject is None:
            return
        result = subject.result
        made = Divergence(
            subject=result.subject,
            like=result.like,
            check=d.text("check"),
            cause=d.text("cause"),
            summary=d.text("summary"),
            ratio=None if d.value.get("ratio") is None else d.number("ratio"),
            trace=Trace.from_json(d.value.get("trace")),
            life=d.texts("life"),
            script=d.text("script"),
            found_in=d.whole("found_in"),
            entry=d.text("entry", ""),
            owner=d.text("owner", ""),
        )
        name = d.text("id")
        told = _kept(result, made)
        before = [subject.divergences.get((n, made.entry)) for n in (name, *d.text("replaces", "").split())]
        places = []
        for old in (b for b in before if b is not None):
            others = _kept(result, old)
            # By identity: what is equal may be another's.
            at = next((n for n, x in enumerate(others) if x is old), None)
            if at is not None:
                del others[at]
                places += [at] if others is told else []
        told.insert(min(places, default=len(told)), made)
        subject.divergences[name, made.entry] = made

    def _end_of_subject(self, d: _Data) -> None:
        subject = self._open(d)
        if subject is None:
            return
        result = subject.result
        if "planned" in d.value:
            planned, unsupported = d.wholes("planned", result.tallies), d.wholes("unsupported", result.tallies)
            notes, traces = d.texts("notes"), d.whole("traces")
            seconds, shrink_seconds = d.number("seconds"), d.number("shrink_seconds")
            counts: list[tuple[Divergence, int]] = []
            for row in d.sequence("found_in"):
                if not isinstance(row, list) or len(row) != 3:
                    raise _Unreadable("found_in must have rows of three")
                known = subject.divergences.get((str(row[0]), str(row[1])))
                counts += [] if known is None else [(known, _whole(row[2], "found_in"))]
            for check, tally in result.tallies.items():
                tally.planned, tally.unsupported = planned.get(check, 0), unsupported.get(check, 0)
            for divergence, count in counts:
                divergence.found_in = count
            if traces != result.traces:
                self._problem(f"{result.subject}: of {traces} lives, {traces - result.traces} are missing at the end")
            result.notes, result.seconds, result.shrink_seconds = notes, seconds, shrink_seconds
            result.varied = None if d.value.get("varied") is None else d.texts("varied")
            subject.ended = True
        result.error = d.text("error", "")

    def _ledger(self, d: _Data) -> None:
        texts = ("name", "statement", "link", "versions", "first_seen", "fixed_in", "told")
        row: dict[str, Any] = {key: d.text(key, "") for key in texts}
        for name, usual in (("reproduces", None), ("carried", False)):
            row[name] = d.value.get(name, usual)
            if not isinstance(row[name], bool):
                raise _Unreadable(f"{name} must be true or false")
        self._at(d)
        self.run.ledger.append(row)

    def _document(self, d: _Data) -> None:
        self._at(d)
        self.run.documents[d.text("name")] = d.mapping("document")

    def _row(self, d: _Data) -> None:
        self._at(d)
        name, row = d.text("name"), d.mapping("row")
        rows = self.run.documents.get(name, {}).get(d.text("into", ""))
        if isinstance(rows, list):
            rows.append(row)
        else:
            self.run.rows.setdefault(name, []).append(row)

    def _end(self, d: _Data) -> None:
        self.run.status, self.run.seconds = d.whole("status"), d.number("seconds")


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
        if _SURROGATE.search(line):
            # Half a character, which nothing could be written with.
            data = json.loads(json.dumps(data, ensure_ascii=False).encode(errors="replace"))
    except (ValueError, RecursionError):
        return None
    return data if isinstance(data, dict) else None


def _classes(d: _Data) -> dict[int, int]:
    found = {}
    for name in d.value:
        if not name.isdecimal() or not name.isascii() or int(name) >= RATIO_CLASSES:
            raise _Unreadable(f"ratios: a class is a number below {RATIO_CLASSES}, not {name[:40]!r}")
        found[int(name)] = d.whole(name)
    return found


def _whole(value: object, where: str) -> int:
    if type(value) is not int or value < 0:
        raise _Unreadable(f"{where[:40]} must be a whole number, not negative")
    return value


def _number(value: object, where: str) -> float:
    if value in ("Infinity", "NaN"):
        return float(str(value))
    if type(value) not in (int, float):
        raise _Unreadable(f"{where[:40]} must be a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise _Unreadable(f"{where[:40]} is too large") from None


_REQUIRED: Any = object()


@dataclass(frozen=True)
class _Data:
    """An object out of a stream, whose members are believed once they are of the right type."""

    value: dict[str, Any]

    @classmethod
    def of(cls, value: object) -> _Data:
        if not isinstance(value, dict):
            raise _Unreadable("an object is missing")
        return cls(value)

    def text(self, name: str, default: str = _REQUIRED) -> str:
        value = self.value.get(name, default)
        if not isinstance(value, str):
            raise _Unreadable(f"{name} must be a text")
        return value

    def whole(self, name: str, default: int = _REQUIRED) -> int:
        return _whole(self.value.get(name, default), name)

    def number(self, name: str, default: float = _REQUIRED) -> float:
        return _number(self.value.get(name, default), name)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.value.get(name, {})
        if not isinstance(value, dict):
            raise _Unreadable(f"{name} must be an object")
        return value

    def sequence(self, name: str) -> list[Any]:
        value = self.value.get(name, [])
        if not isinstance(value, list):
            raise _Unreadable(f"{name} must be a list")
        return value

    def texts(self, name: str) -> list[str]:
        values = self.sequence(name)
        if not all(isinstance(value, str) for value in values):
            raise _Unreadable(f"{name} must be a list of texts")
        return values

    def wholes(self, name: str, among: Iterable[str]) -> dict[str, int]:
        return {key: _whole(value, name) for key, value in self._members(name, among)}

    def numbers(self, name: str, among: Iterable[str] | None = None) -> dict[str, float]:
        return {key: _number(value, name) for key, value in self._members(name, among)}

    def _members(self, name: str, among: Iterable[str] | None) -> Sequence[tuple[str, Any]]:
        found = self.mapping(name)
        strange = found.keys() - set(found if among is None else among)
        if strange:
            raise _Unreadable(f"{name}: {min(strange)[:40]!r} is none of them")
        return list(found.items())
