"""A stream read back, however complete it is: everything is checked before anything is believed."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.comparison import RATIO_CLASSES
from stepcheck.harness.record.data import Data, Unreadable, number_of, whole_of
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.stream import SCHEMA
from stepcheck.harness.record.verdict import HANGS, REFUSED, VALIDATION, Divergence, Invalid, LifeTally, Result, Tally
from stepcheck.harness.support.usage import UsageError

#: Where a line begins: within one, quotes are escaped or other members follow.
_BEGINNING = re.compile(rb'\{"event":"[a-z]+","at":')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_MOST_BYTES = 64 << 20
_MOST_PROBLEMS = 20


def _kept(result: Result, divergence: Divergence) -> list[Divergence]:
    """Where those of the kind of a divergence are kept."""
    tally = result.tallies.setdefault(divergence.check, Tally(divergence.check))
    return tally.known if divergence.entry else tally.divergences


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
        self.handlers: dict[str, Callable[[Data], None]] = {
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
                self.handlers[kind](Data(data))
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

    def _run(self, d: Data) -> None:
        schema = d.whole("schema")
        if schema != SCHEMA:
            raise _OtherSchema(
                f"a stream of schema {schema}; this version of stepcheck reads schema {SCHEMA}; read it with the one that wrote it"
            )
        if self.begun:
            raise Unreadable("a second beginning")
        run = self.run
        run.command, run.version, run.started = d.text("command"), d.text("version"), d.text("started")
        run.environment, run.settings = d.mapping("environment"), d.mapping("settings")
        run.seed = None if d.value.get("seed") is None else d.whole("seed")
        self.begun = True
        settings = Data(run.settings)
        checks = settings.texts("checks")
        for pair in settings.sequence("subjects"):
            if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(x, str) for x in pair):
                raise Unreadable("subjects must be pairs of a name and its reference")
            name, like = pair
            # What a line before this one said of a subject, in a damaged file, stays.
            self.subjects.setdefault(name, _Subject(Result(name, like, {c: Tally(c) for c in checks})))

    def _begin(self, d: Data) -> None:
        name, attempt = d.text("subject"), d.whole("attempt")
        before = self.subjects.get(name)
        if before is not None and before.attempt >= attempt:
            raise Unreadable(f"{name} begins attempt {attempt} after attempt {before.attempt}")
        facts: dict[str, Any] = {key: d.text(key, "") for key in ("mode", "device")}
        facts |= {key: d.texts(key) for key in ("dtypes", "missing_options")}
        facts["examples"] = None if d.value.get("examples") is None else d.whole("examples")
        if "profile" in d.value:
            facts["profile"] = d.mapping("profile")
        tallies = {c: Tally(c, unsupported=len(facts["missing_options"])) for c in d.texts("checks")}
        meaningless, expected = ({c: str(why) for c, why in d.mapping(m).items()} for m in ("meaningless", "expected"))
        result = Result(name, d.text("like"), tallies, facts=facts, meaningless=meaningless, expected=expected)
        # In the place of the one before, if there was one.
        self.subjects[name] = _Subject(result, attempt, began=self._at(d))

    def _open(self, d: Data) -> _Subject | None:
        """The subject that an event is about, or ``None`` where the attempt that it belongs to is void."""
        name, attempt = d.text("subject"), d.whole("attempt")
        subject = self.subjects.get(name)
        self._at(d)
        if subject is None:
            raise Unreadable(f"about {name}, which did not begin")
        if attempt > subject.attempt and d.value["event"] != "result":
            raise Unreadable(f"about attempt {attempt} of {name}, which did not begin")
        return None if attempt < subject.attempt or subject.ended else subject

    def _at(self, d: Data) -> float:
        at = d.number("at")
        self.run.seconds = max(self.run.seconds, at)
        return at

    def _invalid(self, d: Data) -> None:
        subject = self._open(d)
        if subject is None:
            return
        rows = [Data.of(row).value for row in d.sequence("rows")]
        tallies = subject.result.tallies
        invalid = Invalid(d.whole("planned"), d.whole("ran"), rows, d.numbers("worst_ratio", tallies), d.texts("known"))
        if VALIDATION not in tallies:
            raise Unreadable(f"{VALIDATION} is not asked")
        subject.result.add_invalid(invalid)

    def _life(self, d: Data) -> None:
        subject = self._open(d)
        if subject is None:
            return
        result = subject.result
        life = LifeTally(
            d.whole("number"),
            d.text("end", ""),
            d.wholes("looked", result.tallies),
            d.numbers("worst_ratio", result.tallies),
            d.texts("known"),
            calls=d.whole("lives", 0),
            steps=d.whole("steps", 0),
            elements=d.whole("elements", 0),
            undetermined=d.whole("undetermined", 0),
            features=d.texts("features"),
            clocks=d.numbers("clocks"),
            seconds=d.number("seconds", 0.0),
        )
        if life.end not in ("", REFUSED, HANGS):
            raise Unreadable(f"a life ends {life.end!r}")
        for name, counts in d.mapping("fields").items():
            if not isinstance(counts, list) or len(counts) not in (2, 3):
                raise Unreadable(f"fields: {name} must have 2 or 3 numbers")
            life.fields[name] = (whole_of(counts[0], name), whole_of(counts[1], name))
            if len(counts) == 3:
                life.worst[name] = number_of(counts[2], name)
        for name, by_dtype in d.mapping("ratios").items():
            classes = {dtype: Data.of(of_one) for dtype, of_one in Data.of(by_dtype).value.items()}
            life.ratios[name] = {dtype: _classes(of_one) for dtype, of_one in classes.items()}
        if life.number != result.traces + 1:
            if life.number <= result.traces:
                raise Unreadable(f"life {life.number} of {result.subject} is there twice")
            self._problem(f"{result.subject}: before life {life.number}, {life.number - result.traces - 1} are missing")
            result.traces = life.number - 1
        result.add_life(life)

    def _divergence(self, d: Data) -> None:
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
        replaced = d.text("replaces", "").split()
        before = [subject.divergences.get((name, made.entry))]
        # What was expected may turn out to be the cause of what was not.
        before += [subject.divergences.get((n, made.entry)) or subject.divergences.get((n, "")) for n in replaced]
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

    def _end_of_subject(self, d: Data) -> None:
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
                    raise Unreadable("found_in must have rows of three")
                known = subject.divergences.get((str(row[0]), str(row[1])))
                counts += [] if known is None else [(known, whole_of(row[2], "found_in"))]
            passing = d.texts("passing")
            for check, tally in result.tallies.items():
                tally.planned, tally.unsupported = planned.get(check, 0), unsupported.get(check, 0)
                tally.passes_now = result.expected.get(check, "") if check in passing else ""
            for divergence, count in counts:
                divergence.found_in = count
            if traces != result.traces:
                self._problem(f"{result.subject}: of {traces} lives, {traces - result.traces} are missing at the end")
            result.notes, result.seconds, result.shrink_seconds = notes, seconds, shrink_seconds
            result.varied = None if d.value.get("varied") is None else d.texts("varied")
            subject.ended = True
        result.error = d.text("error", "")

    def _ledger(self, d: Data) -> None:
        texts = ("name", "statement", "link", "versions", "first_seen", "fixed_in", "told")
        row: dict[str, Any] = {key: d.text(key, "") for key in texts}
        for name, usual in (("reproduces", None), ("carried", False)):
            row[name] = d.value.get(name, usual)
            if not isinstance(row[name], bool):
                raise Unreadable(f"{name} must be true or false")
        self._at(d)
        self.run.ledger.append(row)

    def _document(self, d: Data) -> None:
        self._at(d)
        self.run.documents[d.text("name")] = d.mapping("document")

    def _row(self, d: Data) -> None:
        self._at(d)
        name, row = d.text("name"), d.mapping("row")
        rows = self.run.documents.get(name, {}).get(d.text("into", ""))
        if isinstance(rows, list):
            rows.append(row)
        else:
            self.run.rows.setdefault(name, []).append(row)

    def _end(self, d: Data) -> None:
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


def _classes(d: Data) -> dict[int, int]:
    found = {}
    for name in d.value:
        if not name.isdecimal() or not name.isascii() or int(name) >= RATIO_CLASSES:
            raise Unreadable(f"ratios: a class is a number below {RATIO_CLASSES}, not {name[:40]!r}")
        found[int(name)] = d.whole(name)
    return found
