"""What a run was and found, as plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stepcheck.harness.record.verdict import Result


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
