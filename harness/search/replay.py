"""A saved life, played again in a process of its own: FIXED, FAILS, or ERROR where nothing can be said of it.

FIXED is said of a life that was lived to its end, of which the check found something to look at, and nothing wrong. All else is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stepcheck.harness.checking import determinism
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import ledger
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.play.signature import REFUSALS
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.store import Saved
from stepcheck.harness.record.verdict import HANGS, VALIDATION
from stepcheck.harness.search.asking import declined, played
from stepcheck.harness.search.limits import patience, within
from stepcheck.harness.search.workers import CRASH, Lost, played_apart, warm_up
from stepcheck.harness.support.usage import UsageError

FIXED, FAILS, ERROR = "FIXED", "FAILS", "ERROR"
_COMPLETES = "completes"
REFUSED_BY = {error.__name__ for error in REFUSALS}
#: How long it may take to judge a life and to play its twins, beside the time that the life itself may take.
_JUDGE_SECONDS = 90.0
#: Code that never returns to the interpreter is waited for so much longer.
_SPARE_SECONDS = 10.0


@dataclass(frozen=True)
class Outcome:
    """What became of a saved life. Plain data: it crosses processes.

    Attributes:
        word: ``FIXED``, ``FAILS`` or ``ERROR``.
        lines: what to say after it and the subject's name, a line each.
        known: the ledger explains all of it.
    """

    word: str
    lines: tuple[str, ...]
    known: bool = False


def replay(subject: Subject, saved: Saved) -> Outcome:
    """Play it on ``subject``, and ask the check that it failed, or all.

    Raises:
        UsageError: the subject is no optimizer.
    """
    limit = patience(subject) + _JUDGE_SECONDS + _SPARE_SECONDS
    warm_up()
    told = played_apart(lambda: _played(subject, saved), limit)
    if isinstance(told, UsageError):
        raise told
    return _lost(saved, told) if isinstance(told, Lost) else told


def _played(subject: Subject, saved: Saved) -> Outcome | UsageError:
    """In the child."""
    try:
        if any(word in saved.summary for word in (determinism.LEAKS, determinism.CHANCE)):
            return _twice(subject, saved)
        evidence = played(subject, saved.trace, (saved.check,) if saved.check else ())
        if evidence is None:
            return _lost(saved, Lost(f"is still busy after {patience(subject):.0f} s", hangs=True))
        judged = within(_JUDGE_SECONDS, lambda: _asked(evidence, saved))
        return judged or Outcome(
            ERROR, (f"{saved.check or 'all checks'}: unknown: judging takes longer than {_JUDGE_SECONDS:.0f} s",)
        )
    except UsageError as error:
        return error
    except Exception as error:  # noqa: BLE001 - a fault of the harness is neither FIXED nor FAILS
        return Outcome(ERROR, (f"{type(error).__name__}: {error}",))


def _twice(subject: Subject, saved: Saved) -> Outcome:
    """Of what shows when a life is played for the second time in one process."""
    place = determinism.twice(subject, saved.trace)
    if place is None:
        return Outcome(FIXED, (saved.check or "all checks",))
    finding = determinism.finding(place, leaks=determinism.LEAKS in saved.summary)
    return Outcome(FAILS, (f"{finding.check}: {finding.summary}",))


def _lost(saved: Saved, lost: Lost) -> Outcome:
    """Its process did not get so far as to judge it: that is a failure where it is what the life is about, and else nothing is known."""
    if saved.check in ("", _COMPLETES) or saved.cause in (HANGS, CRASH):
        return Outcome(FAILS, (f"{saved.check or _COMPLETES}: the subject {lost.how}",))
    return Outcome(ERROR, (f"{saved.check}: unknown: the subject {lost.how}",))


def _asked(evidence: Evidence, saved: Saved) -> Outcome:
    refused = _refusal(evidence, saved)
    if refused:
        return Outcome(ERROR, (f"{saved.check or 'all checks'}: unknown: {refused}",))
    checks = [saved.check] if saved.check else _meaningful(evidence.subject)
    worst = [found for check in checks if (found := _worst(evidence, check)) is not None]
    if worst:
        lines = tuple(f"{f.check}: {f.summary}{f' (known: {entry.name})' if entry else ''}" for f, entry in worst)
        return Outcome(FAILS, lines, known=all(entry is not None for _, entry in worst))
    why = _nothing_known(evidence, saved, checks)
    if why:
        return Outcome(ERROR, (f"{saved.check or 'all checks'}: unknown: {why}",))
    return Outcome(FIXED, (saved.check or "all checks",))


def _meaningful(subject: Subject) -> list[str]:
    return [name for name, check in CHECKS.items() if not check.without_meaning(subject)]


def _worst(evidence: Evidence, check: str) -> tuple[Finding, Entry | None] | None:
    """What a check finds first that the ledger does not explain, else what it finds first."""
    outcomes = [(finding, ledger.knows(evidence, finding)) for finding in CHECKS[check].find(evidence)]
    return next((o for o in outcomes if o[1] is None), outcomes[0] if outcomes else None)


def _refusal(evidence: Evidence, saved: Saved) -> str:
    """That somebody's class declares that it does not take these options, or a flag; unless that is what it is about."""
    raised: Any = evidence.recording.raised
    if (told := declined(evidence)) is not None:
        return f"the class declines how this life constructs it: {told}"
    if raised is None or raised.event is not None or raised.kind not in REFUSED_BY or not evidence.subject.explicit:
        return ""
    if saved.check == _COMPLETES and saved.cause.startswith(f"{raised.kind} in the constructor"):
        return ""
    return f"the constructor refuses the options of this life: {raised.message}"


def _nothing_known(evidence: Evidence, saved: Saved, checks: list[str]) -> str:
    """Why it is not fixed although no check found anything, or nothing."""
    raised = evidence.recording.raised
    if raised is not None:
        where = (
            "the constructor" if raised.event is None else f"event {raised.event + 1} of {len(evidence.trace.events)}"
        )
        return f"the life did not complete: {where} raises {raised.kind}: {raised.message}"
    about_construction = saved.check == _COMPLETES and " in the constructor: " in saved.cause
    if not evidence.trace.events and (saved.check in ("", _COMPLETES) and not about_construction):
        return "a life without events shows nothing"
    why = CHECKS[saved.check].without_meaning(evidence.subject) if saved.check not in ("", VALIDATION) else ""
    if why:
        return f"it cannot be asked of this subject: {why}"
    # Each life can be asked whether it completes.
    telling = [check for check in checks if check != _COMPLETES] or checks
    if not any(CHECKS[check].looks_at(evidence) for check in telling):
        return (
            "the check found nothing to look at in this life" if saved.check else "no check found anything to look at"
        )
    return ""
