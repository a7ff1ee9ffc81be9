"""What every reader of a run says alike: a divergence told, what is known, a subject in a few words; and what results hold for."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stepcheck.harness.known import ledger
from stepcheck.harness.record import store
from stepcheck.harness.record.verdict import VALIDATION, Divergence, Result
from stepcheck.reference import SPECS


def describe(divergence: Divergence, folder: Path) -> list[str]:
    """A divergence in lines: what differs, the life, how to replay it, where the script is."""
    return [
        f"{divergence.subject} fails {divergence.check} [{divergence.id}], in {_seen(divergence)}",
        f"  {divergence.summary}",
        *(f"  {line}" for line in divergence.life),
        f"  replay: {replay(divergence, folder)}    script: {store.script_path(folder, divergence)}",
    ]


def _seen(divergence: Divergence) -> str:
    """In how many lives it was seen; of what is invalid, in how many attempts, which are no lives of the campaign."""
    what = "attempt" if divergence.check == VALIDATION else "life" if divergence.found_in == 1 else "lives"
    return f"{divergence.found_in} {what}{'s' if what == 'attempt' and divergence.found_in != 1 else ''}"


def replay(divergence: Divergence, folder: Path) -> str:
    """The command that plays it again."""
    out = "" if folder == store.DEFAULT_FOLDER else f"--out {folder} "
    return f"stepcheck replay {out}{divergence.id}"


def known(results: Sequence[Result]) -> list[str]:
    """Known issues that were seen, and what diverges as it was expected to, a line for each."""
    lives: dict[str, list[int]] = {}
    for result in results:
        for name, count in result.known_lives.items():
            lives.setdefault(name, []).append(count)
    told = []
    for name, counts in lives.items():
        of = f" of {len(counts)} subjects" if len(counts) > 1 else ""
        line = f"known: {name}, in {sum(counts)} lives{of}"
        entry = ledger.LEDGER.get(name)  # the run may be of a version that knew others
        if entry is not None:
            line += f": {entry.statement}{f' ({entry.link})' if entry.link else ''}"
        told.append(line)
    return told + [
        f"{d.entry}: {d.subject} fails {d.check} [{d.id}], in {_seen(d)}: {d.summary}"
        for result in results
        for d in result.known
        if d.expected
    ]


def passing_now(results: Sequence[Result]) -> list[str]:
    """What was expected to fail, and passes, a line for each."""
    return [f"{r.subject}: {line}" for r in results for line in r.passing_now]


def mended(row: Mapping[str, Any], environment: Mapping[str, Any]) -> str:
    """What is to be said of a known issue that no longer reproduces where it was seen before."""
    return (
        f"known issue {row['name']} no longer reproduces on torch {environment.get('torch')}: FIXED, or changed; {row['told']}."
        f" It was seen in torch {row['versions']}: {row['statement']}"
    )


def failed(row: Mapping[str, Any]) -> bool:
    """Whether a known issue was seen before on such a machine under this version of torch, and is not seen any more."""
    return not (row["reproduces"] or row.get("carried"))


def carried(rows: Sequence[Mapping[str, Any]], environment: Mapping[str, Any]) -> list[str]:
    """What became of known issues of which there is no evidence for this version of torch, or this machine: a line, or none."""
    of_none = [row for row in rows if row.get("carried")]
    if not of_none:
        return []
    still = [row["name"] for row in of_none if row["reproduces"]]
    gone = [row["name"] for row in of_none if not row["reproduces"]]
    where = f"torch {environment.get('torch')} on {environment.get('platform')}, {environment.get('cpu_capability')}"
    told = [f"{len(still)} known issues still show here and are carried forward"] if still else []
    told += [f"{len(gone)} do not show: {', '.join(gone)}"] if gone else []
    return [f"no evidence for {where}: {'; '.join(told)}"]


def notes(results: Sequence[Result]) -> list[str]:
    """What is to be said of each subject, a line each."""
    return [f"{r.subject}: {note}" for r in results for note in notes_of(r)]


def notes_of(r: Result) -> list[str]:
    """What is to be said of one subject."""
    return [*r.notes, *r.passing_now, *([r.error] if r.error else [])]


def folded(results: Sequence[Result]) -> list[str]:
    """The notes, those that several subjects share once; of many of one kind, the first."""
    sharing: dict[str, list[str]] = {}
    for r in results:
        kinds: dict[str, list[str]] = {}
        for note in (*r.notes, *([r.error] if r.error else [])):
            kind = "validation" if note.startswith("validation: ") else note
            kinds.setdefault(kind, []).append(note)
        for first, *rest in kinds.values():
            more = f" ({len(rest)} more lines of this kind in --json)" if rest else ""
            sharing.setdefault(first + more, []).append(r.subject)
    return [f"{_few(subjects)}: {note}" for note, subjects in sharing.items()]


def shared(results: Sequence[Result]) -> list[list[Divergence]]:
    """The divergences, those of several subjects that say the same together: a fault that many classes share is told once."""
    alike: dict[tuple[str, str, str], list[Divergence]] = {}
    for d in (d for r in results for d in r.divergences):
        alike.setdefault((d.check, d.cause, d.summary), []).append(d)
    return list(alike.values())


def others(alike: Sequence[Divergence]) -> list[str]:
    """In which other subjects a divergence is the same, and its IDs there, in a line or none."""
    told = ", ".join(f"{d.subject} [{d.id}]" for d in alike)
    return [f"  the same in {len(alike)} more: {told}"] if told else []


def _few(subjects: Sequence[str]) -> str:
    return subjects[0] if len(subjects) == 1 else f"{subjects[0]} and {len(subjects) - 1} more"


def unsupported(result: Result, check: str) -> str:
    """Why a check of a subject is unsupported."""
    why = result.meaningless.get(check)
    told = [n.removeprefix("unsupported: ") for n in result.notes if n.startswith("unsupported")]
    return why or "; ".join([n for n in told if n.startswith(f"{check}:")] or told) or "unsupported"


def asked(r: Result) -> str:
    """How many checks had something to look at, of how many."""
    return f"{sum(t.ran > 0 for t in r.tallies.values())}/{len(r.tallies)}"


def varied(r: Result) -> str:
    """How many of the reference's options had several values, of how many; nothing where all have, as in torch's own modes."""
    if r.varied is None:
        return ""
    of = SPECS.get(r.like.partition("[")[0])  # those of others are not imported to tell of a result
    return f"{len(r.varied)}/{len(of.hyper)}" if of else f"{len(r.varied)}"


def ratio(r: Result) -> str:
    """The worst r of a subject, with what deviates and is not known."""
    worst = max([*r.worst.values(), *(d.ratio for d in r.divergences if d.ratio is not None)], default=math.nan)
    return "" if math.isnan(worst) else f"{worst:.3f}" if worst < 1000 else f"{worst:.1e}"


def where(r: Result) -> str:
    """What a verdict comes from, or where the worst r is."""
    known, stale = _known(r), ", ".join(t.check for t in r.tallies.values() if t.passes_now)
    stale = f"passes, and was expected to fail: {stale}" if stale else ""
    if r.divergences:
        count = "1 divergence" if len(r.divergences) == 1 else f"{len(r.divergences)} divergences"
        told = f"{count}: {', '.join(dict.fromkeys(d.check for d in r.divergences))}"
        return "; ".join(filter(None, (told, stale, known)))
    if stale:
        return "; ".join(filter(None, (stale, known)))
    if r.error:
        return r.error
    if r.verdict == "unsupported":
        return ""
    unasked = [t.check for t in r.tallies.values() if t.verdict == "unknown"]
    if unasked:
        return f"nothing to look at for {', '.join(unasked)}"
    worst = max(r.worst, key=lambda name: r.worst[name]) if r.worst else ""
    return "; ".join(filter(None, (worst, known)))


def _known(r: Result) -> str:
    """How many known issues of its own a subject showed, in how many ways it diverges as expected, and the largest r among all."""
    own = [d for d in r.known if not d.owner]
    if not own:
        return ""
    far = max((d.ratio for d in own if d.ratio is not None and not math.isnan(d.ratio)), default=0.0)
    distance = f", off by up to {far:.0e} budgets" if 1 < far < math.inf else ", off by any distance" if far > 1 else ""
    issues, expected = len({d.entry for d in own if not d.expected}), sum(bool(d.expected) for d in own)
    told = [f"{count} {word}" for count, word in ((issues, "known"), (expected, "expected")) if count]
    return f"{' and '.join(told)}{distance}"


def environment() -> dict[str, Any]:
    """The versions and the machine that results hold for."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
    }
