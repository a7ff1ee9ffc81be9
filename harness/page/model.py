"""Recorded runs folded into one plain value, the report. ``report.json`` is its JSON.

Schema of ``report.json`` (version 1; all keys are always there)::

    {"schema": 1, "stepcheck": VERSION, "recorded": UTC or "", "verdict": VERDICT, "headline": TEXT,
     "counts": {"subjects", "pass", "known_subjects", "fail", "unsupported_subjects", "unknown", "planned", "ran", "unsupported", "traces",
                "lives", "steps", "elements", "undetermined", "worst_ratio": NUMBER or null, "new", "known", "ledger", "mended"},
     "runs": [{"id", "command", "kind", "version", "environment": {NAME: VALUE}, "started", "seed", "seconds", "status", "problems"}],
     "problems": [TEXT],
     "cells": [{"subject", "like", "column", "run", "verdict", "planned", "ran", "unsupported", "traces", "lives", "steps", "elements",
                "undetermined", "worst_ratio", "witness": TEXT, "seconds", "error", "notes": [TEXT], "features": {NAME: LIVES},
                "fields": {NAME: {"elements", "undetermined", "worst_ratio"}}, "ratios": {FIELD: {DTYPE: [22 COUNTS]}},
                "checks": [{"check", "question", "verdict", "planned", "ran", "looked", "unsupported", "worst_ratio"}],
                "divergences": [{"id", "check", "cause", "summary", "ratio", "found_in", "known", "entry", "owner", "statement", "link",
                                 "dtypes": [NAME], "life": [TEXT], "script", "replay"}],
                "errors": [{"dtype", "elements", "ulps", "ulps_witness": TEXT, "ratio", "ratio_witness": TEXT, "run"}]}],
     "ledger": [{"name", "statement", "link", "versions", "reproduces", "carried", "run"}],
     "figures": [{"name", "title", "told", "run": INTEGER or null, "missing": TEXT, "columns": [TEXT], "rows": [[VALUE]]}],
     "sources": {NUMBER: {"told": TEXT, "file": PATH}},
     "comparison": null or {"against": TEXT, "verdict": "pass" or "fail", "told": [TEXT], "red": [SUBJECT], "green": [SUBJECT],
                            "changed": [TEXT], "new": [SUBJECT], "gone": [SUBJECT], "appeared": [TEXT], "disappeared": [TEXT],
                            "shrank": [{"subject", "check", "count", "before", "after"}]},
     "upgrade": null or {"against": TEXT, "before": TORCH, "now": TORCH, "verdict": "pass" or "fail", "told": [TEXT],
                         "fixed": [FAULT], "new": [FAULT], "unseen": [FAULT], "unknown": [FAULT], "doubtful": [TEXT], "lacks": [TEXT],
                         "gone": [SUBJECT], "shrank": [{"subject", "check", "count", "before", "after"}]}}

VERDICT is pass, known, fail, unsupported or unknown. A FAULT is {"name", "statement", "link", "subjects": [SUBJECT]}. "upgrade" stands
there in place of "comparison" where the other report is of another version of torch. "owner" is whose fault it is, where it is not the
subject's own; "entry" is the name of the known issue, or "expected: REASON" where the check was expected to fail. ``run`` is an index into ``runs``: with the command, seed and environment there, and the
entry of ``sources`` that has the number's name, every number can be traced. "status" is null where a run did not end. The classes
of "ratios" are those of ``verdict.RATIO_EDGES``: exactly 0; above each edge up to the next; above 1. An infinite ratio is written as
the largest float64, which stands for "of the wrong class"; null is no ratio.
"""

from __future__ import annotations

import dataclasses
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepcheck import __version__
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.known import ledger
from stepcheck.harness.page.render import count, ratio
from stepcheck.harness.play.families import MODES
from stepcheck.harness.readers.report import failed
from stepcheck.harness.record import store
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Divergence, Result, Tally

if TYPE_CHECKING:
    from stepcheck.harness.page.compare import Comparison
    from stepcheck.harness.page.figures import Figure
    from stepcheck.harness.page.upgrade import Upgrade

SCHEMA = 1
#: Of the verdicts of all subjects, the first of these is the report's.
_ORDER = ("fail", "unknown", "known", "pass", "unsupported")


@dataclass(frozen=True)
class Source:
    """Where a number comes from.

    Attributes:
        told: what it counts, or its formula.
        file: where that is written down.
    """

    told: str
    file: str


SOURCES = {
    "verdict": Source(
        "fail: a divergence that is no known issue; unknown: the harness erred, nothing was looked at, or the run did not end;"
        " known: all that diverges is a known issue; unsupported: declared so by the subject; else pass",
        "harness/record/verdict.py",
    ),
    "subjects": Source("subjects with a result; of several results for one, the newest", "harness/page/model.py"),
    "planned": Source("times that a check was to be asked of a life, summed over checks", "harness/search/campaign.py"),
    "ran": Source("times that a check had something to look at, summed over checks", "harness/search/campaign.py"),
    "unsupported": Source(
        "times that a check was not asked because the subject declares no support, and options of the reference that its signature lacks",
        "harness/search/campaign.py",
    ),
    "looked": Source("things that a check looked at: steps, elements, events, ...; each check says which", "harness/checking/check.py"),
    "worst_ratio": Source(
        "the largest r = |subject - reference| / e, where e is the error budget derived for that very element; r > 1 is a bug; of a divergence,"
        " r in its shrunk life; known issues are left out",
        "harness/judging/judge.py",
    ),
    "seen_ratio": Source(
        "the largest r = |subject - reference| / e that the check saw, before any life was shrunk; known issues are left out",
        "harness/search/campaign.py",
    ),
    "ratios": Source(
        "elements whose r = |subject - reference| / e lies in the class: exactly 0, above one edge up to the next, above 1;"
        " above 1 are those of known issues too",
        "harness/record/verdict.py",
    ),
    "traces": Source("fuzzed lives that were drawn from the seed and played", "harness/search/campaign.py"),
    "lives": Source("calls of step() that were judged", "harness/search/campaign.py"),
    "steps": Source("steps of single parameters that were compared with the reference", "harness/checking/check.py"),
    "elements": Source("elements of parameters and buffers that were compared with the reference", "harness/judging/judge.py"),
    "undetermined": Source(
        "of the elements compared, those where rounding alone decides between unlike results, so that any value is accepted",
        "harness/judging/judge.py",
    ),
    "ratio": Source("r of the witness: its distance from the reference in budgets", "harness/judging/judge.py"),
    "found_in": Source("lives that showed the divergence when it was told", "harness/search/campaign.py"),
    "new": Source("divergences that are no known issues", "harness/known/ledger.py"),
    "known": Source(
        "divergences that a known issue explains; where one is the subject's own, the verdict is known, and exit status 0",
        "harness/known/ledger.py",
    ),
    "ledger": Source("known issues whose own lives were played again", "harness/known/ledger.py"),
    "features": Source("lives that had the feature", "harness/life/features.py"),
    "seconds": Source("seconds of drawing, playing and judging, without shrinking", "harness/search/campaign.py"),
    "certificate": Source("as the accuracy certificate measures it: its docstring has the definitions", "harness/certificate/__init__.py"),
}  # fmt: skip


@dataclass
class RunInfo:
    """A run, without what it found."""

    id: str
    command: str
    kind: str
    version: str
    environment: dict[str, Any]
    started: str
    seed: int | None
    seconds: float
    status: int | None
    problems: list[str]


@dataclass
class Question:
    """What became of one check of one subject."""

    check: str
    question: str
    verdict: str
    planned: int
    ran: int
    looked: int
    unsupported: int
    worst_ratio: float | None


@dataclass
class Case:
    """One divergence as it is shown."""

    id: str
    check: str
    cause: str
    summary: str
    ratio: float | None
    found_in: int
    known: bool
    entry: str
    owner: str
    statement: str
    link: str
    dtypes: list[str]
    life: list[str]
    script: str
    replay: str


@dataclass
class Cell:
    """One subject, where its optimizer's row and its column meet."""

    subject: str
    like: str
    column: str
    run: int
    verdict: str
    planned: int
    ran: int
    unsupported: int
    traces: int
    lives: int
    steps: int
    elements: int
    undetermined: int
    worst_ratio: float | None
    witness: str
    seconds: float
    error: str
    notes: list[str]
    features: dict[str, int]
    fields: dict[str, dict[str, Any]]
    ratios: dict[str, dict[str, list[int]]]
    checks: list[Question]
    divergences: list[Case]
    errors: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dtypes(self) -> list[str]:
        """The dtypes that were compared, as far as the stream says."""
        seen = dict.fromkeys(d for of_field in self.ratios.values() for d in of_field)
        return list(dict.fromkeys([*seen, *(d for case in self.divergences for d in case.dtypes)]))

    @property
    def new(self) -> int:
        return sum(not d.known for d in self.divergences)

    @property
    def known(self) -> int:
        return len(self.divergences) - self.new

    @property
    def own(self) -> int:
        """Known divergences that are the subject's own fault."""
        return sum(d.known and not d.owner for d in self.divergences)

    @property
    def number(self) -> str:
        """What is told beside the verdict: the worst r or, where that would leave out all that diverges, how much is known."""
        if self.verdict == "unsupported":
            return ""
        return count(self.own) if self.verdict == "known" else ratio(self.worst_ratio)

    @property
    def beside(self) -> int:
        """Known divergences that the number does not count."""
        return self.known - (self.own if self.verdict == "known" else 0)


@dataclass
class Report:
    """Everything that is shown, as plain data."""

    recorded: str
    verdict: str
    headline: str
    counts: dict[str, Any]
    runs: list[RunInfo]
    problems: list[str]
    cells: list[Cell]
    ledger: list[dict[str, Any]]
    figures: list[Figure] = field(default_factory=list)
    comparison: Comparison | None = None
    upgrade: Upgrade | None = None

    @property
    def optimizers(self) -> list[str]:
        """The rows of the matrix."""
        return sorted({c.like for c in self.cells}, key=str.lower)

    @property
    def columns(self) -> list[str]:
        """The columns of the matrix: modes of torch, then fast, then others."""
        order = {c: n for n, c in enumerate((*(f"torch[{m}]" for m in MODES), "fast"))}
        seen = dict.fromkeys(c.column for c in self.cells)
        return sorted(seen, key=lambda c: (order.get(c, len(order) + (not c.startswith("fast["))), list(seen).index(c)))

    def to_json(self) -> dict[str, Any]:
        """The contract of ``report.json``, as the module's docstring has it."""
        data = dataclasses.asdict(self)
        for figure in data["figures"]:
            del figure["svg"]
        made: dict[str, Any] = finite(
            {"schema": SCHEMA, "stepcheck": __version__, **data, "sources": {k: vars(s) for k, s in SOURCES.items()}}
        )
        return made


def finite(value: Any) -> Any:
    """A JSON value without infinities and NaN, which JSON does not have: the largest number, and null."""
    if isinstance(value, float):
        return None if math.isnan(value) else max(min(value, sys.float_info.max), -sys.float_info.max)
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    return [finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def _age(run: Run) -> tuple[str, str]:
    return run.started, run.id


def build(runs: Iterable[Run], folders: Mapping[str, Path] | None = None, unread: Sequence[str] = ()) -> Report:
    """One report of several runs, without its figures and comparison.

    Args:
        runs: in any order; of a subject that is in several, the newest result counts.
        folders: by ID of a run, where its divergences were saved, if that is not ``.stepcheck``.
        unread: what is to be told of streams that could not be read at all.
    """
    folders = folders or {}
    ordered = sorted(runs, key=_age)
    cells: dict[str, Cell] = {}
    replayed: dict[str, dict[str, Any]] = {}
    for n, run in enumerate(ordered):
        for result in run.results:
            cells[result.subject] = _cell(result, n, folders.get(run.id, store.DEFAULT_FOLDER))
        for row in run.ledger:
            replayed[str(row.get("name", ""))] = {
                "name": str(row.get("name", "")), "statement": str(row.get("statement", "")), "link": str(row.get("link", "")),
                "versions": str(row.get("versions", "")), "reproduces": bool(row.get("reproduces")), "carried": bool(row.get("carried")),
                "run": n,
            }  # fmt: skip
    for n, run in enumerate(ordered):
        for subject, error in _errors(run, n):
            if subject in cells:
                cells[subject].errors = [e for e in cells[subject].errors if e["dtype"] != error["dtype"]] + [error]
    infos = [_info(run) for run in ordered]
    counts = _counts(list(cells.values()), list(replayed.values()))
    problems = [*unread, *_problems(ordered)]
    verdict = _verdict(list(cells.values()), list(replayed.values()), whole=not problems)
    return Report(
        recorded=max((run.started for run in ordered), default=""),
        verdict=verdict,
        headline=_headline(verdict, counts),
        counts=counts,
        runs=infos,
        problems=problems,
        cells=list(cells.values()),
        ledger=list(replayed.values()),
    )


def kind(run: Run) -> str:
    """Which command a run was: what it measured says so, else its first word that is one."""
    if run.documents:
        return next(iter(run.documents))
    words = run.command.split()
    return next((w for w in words if w in ("check", "bench", "census", "certificate", "power")), "check")


def _info(run: Run) -> RunInfo:
    return RunInfo(run.id, run.command, kind(run), run.version, run.environment, run.started, run.seed, run.seconds, run.status, run.problems)  # fmt: skip


def _problems(runs: Sequence[Run]) -> list[str]:
    """What the reader must know before the numbers: what could not be read, and what did not end."""
    told = []
    for run in runs:
        told += [f"{run.id}: {problem}" for problem in run.problems]
        if run.status is None and not run.problems:
            told.append(f"{run.id}: the run did not end")
    return told


def split(subject: str) -> tuple[str, str, str]:
    """Family, name and mode of a subject: ``torch:Adam[foreach]`` is ``("torch", "Adam", "foreach")``."""
    family, _, rest = subject.partition(":")
    name, _, mode = rest.partition("[")
    return family, name, mode.removesuffix("]")


def _cell(result: Result, n: int, folder: Path) -> Cell:
    family, _, mode = split(result.subject)
    questions = [_question(t) for t in result.tallies.values()]
    ratios = [*result.worst.values(), *(d.ratio for d in result.divergences if d.ratio is not None)]
    return Cell(
        subject=result.subject,
        like=result.like,
        column=f"{family}[{mode}]" if mode else family,
        run=n,
        verdict=result.verdict,
        planned=sum(q.planned for q in questions),
        ran=sum(q.ran for q in questions),
        unsupported=sum(q.unsupported for q in questions),
        traces=result.traces,
        lives=result.calls,
        steps=result.steps,
        elements=result.elements,
        undetermined=result.undetermined,
        worst_ratio=_largest(ratios),
        witness=_witness(result),
        seconds=round(result.seconds, 3),
        error=result.error,
        notes=[*result.notes, *result.passing_now],
        features=dict(result.features),
        fields={
            name: {"elements": of, "undetermined": undetermined, "worst_ratio": _largest([result.worst.get(name)])}
            for name, (of, undetermined) in result.fields.items()
        },
        ratios=result.ratios,
        checks=questions,
        divergences=[_case(d, folder) for d in (*result.divergences, *result.known)],
    )


def _question(tally: Tally) -> Question:
    asked = CHECKS.get(tally.check)  # a stream of another version may have others
    return Question(
        check=tally.check,
        question=asked.question if asked else "",
        verdict=tally.verdict,
        planned=tally.planned,
        ran=tally.ran,
        looked=tally.looked,
        unsupported=tally.unsupported,
        worst_ratio=_largest([tally.worst_ratio]),
    )


def _witness(result: Result) -> str:
    """Where the worst r was seen."""
    told = max(result.divergences, key=lambda d: -1.0 if d.ratio is None else d.ratio, default=None)
    if told is not None:
        return told.summary
    return max(result.worst, key=lambda name: result.worst[name]) if result.worst else ""


def _case(divergence: Divergence, folder: Path) -> Case:
    entry = ledger.LEDGER.get(divergence.entry)
    out = "" if folder == store.DEFAULT_FOLDER else f"--out {folder} "
    return Case(
        id=divergence.id,
        check=divergence.check,
        cause=divergence.cause,
        summary=divergence.summary,
        ratio=_largest([divergence.ratio]),
        found_in=divergence.found_in,
        known=bool(divergence.entry),
        entry=divergence.entry,
        owner=divergence.owner,
        statement=entry.statement if entry else "",
        link=entry.link if entry else "",
        dtypes=list(dict.fromkeys(p.dtype for p in divergence.trace.parameters)),
        life=divergence.life,
        script=divergence.script,
        replay=f"stepcheck replay {out}{divergence.id}",
    )


def _errors(run: Run, n: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the certificate says of each subject and dtype. What is not as it writes it is told where it is drawn."""
    measured = run.documents.get("certificate", {}).get("torch")
    for m in measured if isinstance(measured, list) else ():
        try:
            row = {
                "dtype": str(m["dtype"]), "elements": int(m["elements"]), "ulps": m["ulps"] and float(m["ulps"]),
                "ulps_witness": _told(m["ulps_witness"]), "ratio": m["ratio"] and float(m["ratio"]),
                "ratio_witness": _told(m["ratio_witness"]), "run": n,
            }  # fmt: skip
            yield str(m["subject"]), row
        except (KeyError, TypeError, ValueError, AttributeError):
            continue


def _told(witness: dict[str, Any] | None) -> str:
    """A witness of the certificate in a line."""
    if witness is None:
        return ""
    given = {k: witness[k] for k in ("p", "g") if k in witness} | witness.get("state", {})
    inputs = "; ".join(f"{k} {v}" for k, v in given.items())
    options = ", ".join(f"{k}={v}" for k, v in witness["options"].items())
    return (
        f"{witness['field']}{witness['index']}, event {witness['event']}: {witness['got']}, not {witness['expected']}, budget {witness['bound']}"
        f" ({options}{'; ' if inputs else ''}{inputs})"
    )


def _largest(ratios: Iterable[float | None]) -> float | None:
    """The largest, and NaN for nothing."""
    largest: float | None = finite(max((r for r in ratios if r is not None and not math.isnan(r)), default=math.nan))
    return largest


def _counts(cells: Sequence[Cell], replayed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    verdicts = Counter(c.verdict for c in cells)
    summed = ("planned", "ran", "unsupported", "traces", "lives", "steps", "elements", "undetermined", "new", "known")
    return {
        "subjects": len(cells),
        **{v: verdicts[v] for v in ("pass", "fail", "unknown")},
        **{f"{v}_subjects": verdicts[v] for v in ("known", "unsupported")},
        **{name: sum(getattr(c, name) for c in cells) for name in summed},
        "worst_ratio": _largest(c.worst_ratio for c in cells),
        "ledger": len(replayed),
        "mended": sum(map(failed, replayed)),
    }


def _verdict(cells: Sequence[Cell], replayed: Sequence[dict[str, Any]], *, whole: bool) -> str:
    verdicts = {c.verdict for c in cells}
    if any(map(failed, replayed)):
        verdicts.add("fail")
    if not cells or not whole:
        verdicts.add("unknown")
    return next(v for v in _ORDER if v in verdicts)


#: How many subjects have a verdict, and how that is told.
_TOLD = {
    "fail": "fail",
    "unknown": "are unknown",
    "known_subjects": "have known issues only",
    "pass": "pass",
}


def _headline(verdict: str, counts: Mapping[str, Any]) -> str:
    """The verdict in a sentence."""
    if not counts["subjects"]:
        return "no optimizer was checked: stepcheck check does"
    parts = [f"{counts[v]} of {counts['subjects']} subjects {told}" for v, told in _TOLD.items() if counts[v]]
    parts += [f"{counts['unsupported_subjects']} are unsupported here"] if counts["unsupported_subjects"] else []
    if counts["mended"]:
        parts.insert(0, f"{counts['mended']} of {counts['ledger']} known issues no longer reproduce")
    if verdict == "unknown" and not counts["unknown"]:
        parts.append("but what was recorded is not whole")
    return "; ".join(parts)
