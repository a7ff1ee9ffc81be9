"""What is said of a subject at the end of its campaign, beside what diverges."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.twins import COUPLED, DRAWS
from stepcheck.harness.play import torchs
from stepcheck.harness.play.handling import NO_COPIES, NO_TIME, NOT_ANEW, NOT_COPIED, NOT_KEYED, NOT_LATE, NOT_TORCHS
from stepcheck.harness.play.profiles import Profile
from stepcheck.harness.play.steps import AS_MANY_THREADS, PLAIN_STEPS
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.verdict import Result

#: Subjects that cost more than this are given few lives, of the plainest kinds.
COSTLY = 9
#: What is said of a check of which a subject lacks what it needs, where that is nothing that it would take.
_LACKS = {
    "malformed-state": "it keeps no tensor of a parameter's shape that could be spoilt, or cannot be built anew from its state"
}


def declared(profile: Profile) -> dict[str, Any]:
    """The facts of a profile that are not the default, as JSON has them, and their reason."""
    given = {f.name: getattr(profile, f.name) for f in fields(profile) if getattr(profile, f.name) != f.default}
    return {name: sorted(value) if isinstance(value, frozenset) else value for name, value in given.items()}


def facts(subject: Subject, dtypes: Sequence[str], planned: int | None, *, supported: bool) -> dict[str, Any]:
    """What is known of a campaign before it begins."""
    known = {"mode": subject.mode, "device": subject.device, "dtypes": list(dtypes), "examples": planned}
    profile = {"profile": declared(subject.profile)} if supported else {}
    return known | {"missing_options": list(subject.missing_options)} | profile


def declare_unasked(subject: Subject, result: Result, lacks: set[str]) -> None:
    """What was not asked because the subject has no such thing, or because its lives are few for their cost, is said."""
    for tally in result.tallies.values():
        needs = CHECKS[tally.check].needs
        if tally.verdict == "unknown" and needs and needs <= lacks:
            tally.unsupported = tally.planned
            told = _LACKS.get(tally.check) or f"it takes no {' and no '.join(sorted(needs))}"
            result.notes.append(f"unsupported: {tally.check}: {told}")
        if tally.verdict == "unknown" and (
            DRAWS in lacks or (tally.check == "groups-independent" and COUPLED in lacks)
        ):
            tally.unsupported = tally.planned
    unasked = [t for t in result.tallies.values() if t.verdict == "unknown"]
    if subject.cost > COSTLY and unasked:
        for tally in unasked:
            tally.unsupported = tally.planned
        names = ", ".join(t.check for t in unasked)
        result.notes.append(f"unsupported: not asked in the {result.traces} lives that its cost allows: {names}")


def left_out(lacks: set[str]) -> list[str]:
    """What was left out of the lives of somebody's class, and why."""
    return [
        f"left out: {told}"
        for told in (
            COUPLED,
            DRAWS,
            NO_TIME,
            NO_COPIES,
            NOT_ANEW,
            NOT_KEYED,
            NOT_COPIED,
            NOT_TORCHS,
            NOT_LATE,
            PLAIN_STEPS,
            AS_MANY_THREADS,
            torchs.NOT_ALIKE,
            torchs.REFUSED,
        )
        if told in lacks
    ]


def of_signature(subject: Subject) -> list[str]:
    """What somebody's constructor takes otherwise than the reference, and what it refused when it was tried."""
    takes, notes = subject.takes, list(subject.remarks)
    if takes is None:
        return []
    if takes.unlike:
        notes.append(f"options of the reference's name that are not given: {_listed(takes.unlike)}")
    others = sorted(set(takes.others) - set(subject.flags))
    if others:
        told = "that the reference does not have" if subject.referenced else "whose meaning is not known"
        notes.append(f"options {told}, left as they are: {', '.join(others)}")
    if not subject.options and subject.own_numbers:
        names = ", ".join(subject.own_numbers)
        notes.append(
            f"unknown: no option was varied, for none is called as the reference's is ({names}): declare their names, --rename OURS=THEIRS; stepcheck suggest finds them"
        )
    if takes.defaults:
        default = vars(subject.spec.hyper_values())
        told = ", ".join(f"{k}={default[k]!r} (its own: {v!r})" for k, v in sorted(takes.defaults.items()))
        notes.append(f"its defaults differ from the reference's, which are passed instead: {told}")
    if takes.constructor_only:
        told = ", ".join(sorted(takes.constructor_only))
        notes.append(f"options that its groups do not keep, so they were varied for all groups alike: {told}")
    refused = [why for why in subject.refusals.values() if why]
    if refused:
        why = "; ".join(sorted(set(refused))[:3])
        notes.append(
            f"unsupported: the constructor refuses {len(refused)} of {len(subject.refusals)} sets of options ({why})"
        )
    return notes


def of_lives(subject: Subject, result: Result, refusals: Sequence[str], free: Collection[str]) -> Iterator[str]:
    """Lives that somebody's class refused, in its own words, and buffers that could not be read."""
    if refusals:
        what = "the options or groups of" if subject.referenced else "what is in"
        told = ", ".join(sorted(set(refusals))[:3])
        yield f"unsupported: it refuses {what} {len(refusals)} lives of {result.traces} ({told})"
    if free:
        yield (
            f"no state named {', '.join(sorted(free))}: judged on what can be read, the reference runs free in the rest and its budget"
            " accumulates"
        )


def unsupported_options(subject: Subject) -> list[str]:
    """Which options of the reference a subject does not have."""
    missing = ", ".join(subject.missing_options)
    return [f"unsupported options, left out of every life: {missing}"] if missing else []


def without_meaning(checks: Mapping[str, str]) -> list[str]:
    """The checks that cannot be asked of a subject, each with its reason; those of one reason together."""
    of_reason: dict[str, list[str]] = {}
    for check, why in checks.items():
        of_reason.setdefault(why, []).append(check)
    return [f"unsupported: {', '.join(names)}: {why}" for why, names in of_reason.items()]


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({value})" for name, value in sorted(values.items()))
