"""``summary.md``, for a reader who has nothing but the folder; and the exit status, which says the same in a number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from stepcheck.harness.bench.contenders import CEILING, FAST, FAST_GRAPH, TIMED_MODES
from stepcheck.harness.bench.tables import duration
from stepcheck.harness.cuda_session import session
from stepcheck.harness.cuda_session.folder import DIVERGENCES, ENVIRONMENT, LOG, RESULTS, Folder
from stepcheck.harness.cuda_session.plan import Place
from stepcheck.harness.cuda_session.session import Budget, Outcome
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Result

NOT_JUDGED = "not judged"
_GREEN = ("pass", "known")
#: Characters of a line that a task printed, or of a note, that are shown.
_WIDTH = 160
_VERSIONS = (
    "processor",
    "capability",
    "driver",
    "cuda",
    "torch",
    "triton",
    "numpy",
    "llvmlite",
    "hypothesis",
    "python",
    "platform",
    "cores",
)
_CONTENDERS = (*TIMED_MODES, FAST, FAST_GRAPH, CEILING)


def verdicts(subjects: Iterable[str], runs: Sequence[tuple[str, Run]]) -> dict[str, str]:
    """Of each subject, of all that judged it: one failure is a failure, and what nobody could judge is not green."""
    return {subject: _verdict(_results(subject, runs)) for subject in subjects}


def _results(subject: str, runs: Sequence[tuple[str, Run]]) -> list[Result]:
    return [result for _, run in runs for result in run.results if result.subject == subject]


def _verdict(results: Sequence[Result]) -> str:
    reached = [r.verdict for r in results if r.traces or r.verdict != "unknown"]
    for verdict in ("fail", *_GREEN):
        if verdict in reached:
            return verdict
    return reached[-1] if reached else NOT_JUDGED


def status(outcomes: Sequence[Outcome], of_subjects: Mapping[str, str]) -> int:
    """0: every class agrees, and whatever was run succeeded; 1: something failed; 3: something, or all, could not be judged."""
    if "fail" in of_subjects.values() or any(o.kind == session.FAILED for o in outcomes):
        return 1
    judged = set(of_subjects.values()) <= set(_GREEN)
    return 0 if of_subjects and judged and all(o.kind != session.UNKNOWN for o in outcomes) else 3


def page(place: Place, folder: Folder, budget: Budget, outcomes: Sequence[Outcome]) -> str:
    """All of it, as far as it has come."""
    runs = list(folder.runs())
    of_subjects = verdicts(place.subjects, runs)
    lines = [
        _title(place),
        "",
        _agreement(of_subjects, runs),
        _progress(outcomes, budget),
        "",
        ", ".join(f"{key} {place.about[key]}" for key in _VERSIONS if key in place.about),
        *_section("Tasks", _tasks(outcomes)),
        *_section("Agreement", _classes(of_subjects, runs)),
        *_section("Divergences", _divergences(runs)),
    ]
    for task, run in runs:
        rows = run.documents.get("bench", {}).get("results", [])
        lines += _section(f"Times: {task}", _times(rows))
    left_out = f" {folder.left_out} lines found no room there." if folder.left_out else ""
    lines += _section("Files", [line + left_out if RESULTS in line else line for line in _FILES])
    return "\n".join(lines) + "\n"


def _title(place: Place) -> str:
    version = place.about.get("stepcheck", "")
    if place.rehearsal:
        return f"# A rehearsal of stepcheck {version} without a GPU: nothing here is a measurement of one"
    return f"# stepcheck {version} on {place.about.get('processor', 'a GPU that did not answer')}"


def _agreement(of_subjects: Mapping[str, str], runs: Sequence[tuple[str, Run]]) -> str:
    counts = Counter(of_subjects.values())
    lives = sum(r.traces for _, run in runs for r in run.results)
    parts = ", ".join(f"{count} {verdict}" for verdict, count in counts.most_common())
    return f"Agreement with the reference, of {len(of_subjects)} classes: {parts}; {lives:,} lives."


def _progress(outcomes: Sequence[Outcome], budget: Budget) -> str:
    counts = Counter(o.kind for o in outcomes)
    parts = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    over = "over" if session.RUNNING not in counts else "not over when this was written"
    return f"Tasks: {parts}. The session was {over}, {budget.elapsed:.0f} of {budget.seconds:.0f} s after it began."


def _section(title: str, lines: Sequence[str]) -> list[str]:
    return ["", f"## {title}", "", *lines] if lines else []


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [[_cell(cell) for cell in row] for row in rows]
    if not cells:
        return []
    return [f"| {' | '.join(row)} |" for row in (titles, ["---"] * len(titles), *cells)]


def _cell(text: str) -> str:
    plain = " ".join(text.split()).replace("|", "/")
    return plain if len(plain) <= _WIDTH else plain[: _WIDTH - 1] + "…"


def _tasks(outcomes: Sequence[Outcome]) -> list[str]:
    rows = [
        (o.task.name, o.task.purpose, o.message, f"{o.seconds:.0f}" if o.seconds else "", o.last_line) for o in outcomes
    ]
    return _table(("task", "what for", "outcome", "seconds", "last line of its output"), rows)


def _classes(of_subjects: Mapping[str, str], runs: Sequence[tuple[str, Run]]) -> list[str]:
    rows = []
    for subject, verdict in of_subjects.items():
        results = _results(subject, runs)
        worst = max([ratio for r in results for ratio in r.worst.values()], default=None)
        asked = {t.check for r in results for t in r.tallies.values() if t.ran}
        remarks = dict.fromkeys(remark for r in results for remark in (r.error, *r.notes) if remark)
        rows.append((
            subject, verdict, f"{sum(r.traces for r in results):,}", f"{sum(r.steps for r in results):,}",
            "" if worst is None else f"{worst:.3f}", str(len(asked)), "; ".join(remarks),
        ))  # fmt: skip
    return _table(
        ("class", "verdict", "lives", "steps of parameters", "worst r up to 1", "checks that saw something", "notes"),
        rows,
    )


def _divergences(runs: Sequence[tuple[str, Run]]) -> list[str]:
    found = {(d.subject, d.id): d for _, run in runs for r in run.results for d in r.divergences}
    return _table(
        ("class", "check", "id", "what differs"), [(d.subject, d.check, d.id, d.summary) for d in found.values()]
    )


def _times(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Medians of a step. Who was timed in none of the rows has no column."""
    timed = [_contenders(row) for row in rows]
    names = [name for name in _CONTENDERS if any(name in of_row for of_row in timed)]
    cells = [
        (
            row["optimizer"], row["workload"], *(duration(of_row[name]) if name in of_row else "" for name in names),
            *(_two(row[key]) for key in ("ratio", "graph_ratio", "share_of_ceiling")), row["note"],
        )
        for row, of_row in zip(rows, timed, strict=True)
    ]  # fmt: skip
    titles = ("copy" if name == CEILING else name for name in names)
    made = _table(("optimizer", "workload", *titles, "ratio", "graph ratio", "share of a copy", "notes"), cells)
    return [*made, "", _LEGEND] if made else []


def _contenders(row: Mapping[str, Any]) -> dict[str, float]:
    timings = {**row["torch"], FAST: row["fast"], FAST_GRAPH: row["fast_graph"], CEILING: row["ceiling"]}
    return {name: t["median"] for name, t in timings.items() if t is not None and t["median"] is not None}


def _two(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


_LEGEND = (
    "ratio: torch's fastest mode, without a graph, over fast. copy: a copy of as many bytes as the step must move; what fits into the cache is copied"
    " at the cache's speed. share of a copy: the copy's time over fast's."
)
_FILES = (
    f"- `{ENVIRONMENT}`: versions and the machine.",
    (
        f"- `{RESULTS}`: all that was recorded, as it came: a life, a divergence, a timing in each line, with its task."
        " `python -m stepcheck.harness.cuda_session unpack FOLDER OUT` makes `OUT/runs` of it, for `stepcheck report OUT`."
    ),
    f"- `{LOG}`: what the tasks printed, one after the other.",
    f"- `{DIVERGENCES}`, if anything diverged: a trace for `stepcheck replay` and a script for each.",
)
