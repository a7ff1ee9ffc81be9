"""A run for scripts: the contract of ``stepcheck check --json``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from stepcheck.harness.readers import report
from stepcheck.harness.record import store
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Divergence, Result


def to_json(run: Run, folder: Path) -> dict[str, Any]:
    """Everything that scripts rely on.

    Args:
        folder: where the divergences are.
    """
    return {
        "stepcheck": run.version,
        "environment": run.environment,
        "seed": run.seed,
        "subjects": [_subject(r, folder) for r in run.results],
        "ledger": [{key: value for key, value in row.items() if key != "told"} for row in run.ledger],
    }


def _subject(r: Result, folder: Path) -> dict[str, Any]:
    return {
        "subject": r.subject,
        "like": r.like,
        "verdict": r.verdict,
        "notes": report.notes_of(r),
        "validation": r.validation,
        "fields": {
            name: {"elements": n, "undetermined": u, "worst_ratio": _finite(r.worst.get(name))}
            for name, (n, u) in r.fields.items()
        },
        "checks": [
            {
                "check": t.check,
                "verdict": t.verdict,
                "planned": t.planned,
                "ran": t.ran,
                "unsupported": t.unsupported,
                "worst_ratio": _finite(t.worst_ratio),
                "divergences": [_divergence(d, folder) for d in (*t.divergences, *t.known)],
            }
            for t in r.tallies.values()
        ],
    }


def _finite(ratio: float | None) -> float | None:
    # JSON has no infinity; the largest number stands for "of the wrong class", NaN for a number or the like.
    return None if ratio is None else min(ratio, sys.float_info.max)


def _divergence(d: Divergence, folder: Path) -> dict[str, Any]:
    return {
        "id": d.id,
        "summary": d.summary,
        "known": bool(d.entry),
        "trace": str(store.trace_path(folder, d)),
        "repro": str(store.script_path(folder, d)),
        **({"expected": d.expected} if d.expected else {"ledger": d.entry} if d.entry else {}),
        **({"owner": d.owner} if d.owner else {}),
    }
