"""One life, played and asked: what a check finds in it, and what the ledger says of that."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import replace

from stepcheck.harness.checking import determinism
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import ledger
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.life.events import AddGroup, Fail, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.recording import Raised
from stepcheck.harness.play.signature import REFUSALS
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.verdict import HANGS
from stepcheck.harness.search.limits import patience, within

_REFUSALS = {error.__name__ for error in REFUSALS}
#: Of these, what says by itself that something is not supported.
_DECLARED = {"ValueError", "NotImplementedError", "RefusedError"}
#: What says so of a flag in a constructor: an implementation may need what is not installed.
_FLAG_DECLARED = _DECLARED | {"ImportError", "ModuleNotFoundError"}
#: What declares nothing, whatever it names: an entry or an attribute that is not there may well be named as a flag is.
_CRASHES = {"KeyError", "IndexError", "AttributeError", "NameError", "UnboundLocalError"}
#: What an implementation is said to need that there is not.
_DEVICES = re.compile(r"(?i)\b(cuda|devices?|gpus?)\b")
#: How a constructor says of an option that it takes it otherwise alone.
_MISSPELT = {"ValueError", "TypeError"}


def played(
    subject: Subject,
    trace: Trace,
    asked: Collection[str] = (),
    effective: Collection[str] = (),
    seconds: float | None = None,
) -> Evidence | None:
    """A trace played, to be asked about; ``None`` where the subject hangs."""
    limit = patience(subject) if seconds is None else seconds
    return within(limit, lambda: Evidence(subject, trace, asked, ledger.explanation, effective=effective))


def findings(
    subject: Subject,
    trace: Trace,
    check: str,
    asked: Collection[str] = (),
    effective: Collection[str] = (),
    summary: str = "",
    seconds: float | None = None,
) -> Iterator[tuple[Finding, Entry | None]]:
    """Play a trace and ask one check: what it finds, and what the ledger says of it. A life that makes no sense has none.

    Args:
        asked: the checks that are asked otherwise; all by default.
        effective: options that are known to have an effect.
        summary: what was told of it, where it was: some of it shows when the life is played for the second time.
        seconds: after which the subject hangs; as many as :func:`patience` says by default.
    """
    if trace.problem(subject.spec) is not None or subject.problem(trace):
        return
    if determinism.LEAKS in summary or determinism.CHANCE in summary:
        place = determinism.twice(subject, trace)
        if place is not None and check == "completes":
            yield determinism.finding(place, leaks=determinism.LEAKS in summary), None
            return
    limit = patience(subject) if seconds is None else seconds
    evidence = played(subject, trace, asked, effective, limit)
    if evidence is None:
        yield Finding(check, HANGS, None, f"the subject is still busy after {limit:.0f} s"), None
        return
    if declined(evidence) is not None:
        return
    for finding in CHECKS[check].find(evidence):
        yield finding, ledger.knows(evidence, finding)


def unexplained(
    subject: Subject,
    trace: Trace,
    check: str,
    asked: Collection[str] = (),
    effective: Collection[str] = (),
    seconds: float | None = None,
) -> Iterator[Finding]:
    """What a check finds in a trace that the ledger does not explain."""
    found = findings(subject, trace, check, asked, effective, seconds=seconds)
    return (finding for finding, entry in found if entry is None)


def reproduction(subject: Subject, entry: Entry, check: str) -> tuple[Trace, Finding] | None:
    """An entry's own life and what it shows, if it shows on this subject what the entry explains."""
    trace = replace(entry.saved.trace, optimizer=subject.spec.name)
    shown = (finding for finding, known in findings(subject, trace, check) if known is entry)
    finding = next(shown, None)
    return None if finding is None else (trace, finding)


def refusal(evidence: Evidence) -> str | None:
    """In which words somebody's optimizer declares that it does not support these options, or a group more; ``None`` where it does not."""
    raised = evidence.recording.raised
    if (told := declined(evidence)) is not None:
        return told
    if raised is not None and raised.on_purpose and not evidence.subject.referenced:
        return raised.message  # what must be taken a reference says
    if not evidence.subject.explicit or raised is None or raised.kind not in _REFUSALS:
        return None
    added = raised.event is not None and isinstance(evidence.trace.events[raised.event], AddGroup)
    if not raised.constructing and not (added and raised.kind != "TypeError"):
        return None
    if raised.event is None and evidence.trace.form != "list":
        listed = Evidence(evidence.subject, replace(evidence.trace, form="list")).recording.raised
        if listed is None or listed.event is not None:
            return None  # it refuses the form that the groups are given in, which it must take
    if raised.kind not in _DECLARED and raised.event is None and _fails_by_default(evidence):
        return None  # it does not take these parameters, whatever the options
    return raised.message


def declined(evidence: Evidence) -> str | None:
    """In which words somebody's optimizer declines a flag of this life, or how its options are written; ``None`` where it does not.

    The same life without that does not raise the same.
    """
    raised, trace = evidence.recording.raised, evidence.trace
    if not evidence.subject.explicit or raised is None or trace == trace.plainly:
        return None
    others = []
    if _names_a_flag(raised, trace):
        others.append(replace(trace, flags=()))
    if trace.spelling != "plain" and raised.kind in _MISSPELT and _is_given_options(raised, trace):
        others.append(replace(trace, spelling="plain"))
    if any(Evidence(evidence.subject, other).recording.raised != raised for other in others):
        return raised.message
    return None


def _names_a_flag(raised: Raised, trace: Trace) -> bool:
    """Whether an exception is about a flag: it names it, or what it needs before anything was stepped, or ends a constructor."""
    if not trace.flags or raised.kind in _CRASHES:
        return False
    # A function such as _foreach_add_ is no flag: who calls it with what it does not take has a fault.
    if any(re.search(rf"(?i)(?<!\w){flag}(?!\w)", raised.message) for flag in trace.flags):
        return True
    steps = (n for n, event in enumerate(trace.events) if isinstance(event, Step | Fail))
    begins = raised.event is None or raised.event <= next(steps, raised.event)
    if begins and _DEVICES.search(raised.message):
        return True
    return raised.constructing and raised.kind in _FLAG_DECLARED


def _is_given_options(raised: Raised, trace: Trace) -> bool:
    """Whether an exception came where options are given: to the constructor, or with a group more."""
    added = raised.event is not None and isinstance(trace.events[raised.event], AddGroup)
    return raised.constructing or added


def _fails_by_default(evidence: Evidence) -> bool:
    """Whether the constructor raises for the same parameters without options as well."""
    trace = evidence.trace
    plain = replace(trace.plainly, groups=tuple(replace(g, options={}) for g in trace.groups), events=())
    return Evidence(evidence.subject, plain).recording.raised is not None
