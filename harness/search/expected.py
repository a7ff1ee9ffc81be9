"""What somebody's class is expected to fail, as its author declares it.

A divergence of such a check is known and no failure; a check that was expected to fail, and found nothing, is one: the list is to say what is true.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.text import in_one_line
from stepcheck.harness.support.usage import UsageError


def declared(expected: Mapping[str, str]) -> dict[str, str]:
    """Checks that are expected to fail, and the reasons, each in one line.

    Raises:
        UsageError: there is no such check, or no reason is given.
    """
    for check, reason in expected.items():
        if check not in CHECKS:
            raise UsageError(f"no check named {check!r} that could be expected to fail; there is {', '.join(CHECKS)}")
        if not isinstance(reason, str) or not reason.strip():
            raise UsageError(f"{check} is expected to fail, and it is not said why: give a reason")
    return {check: in_one_line(reason) for check, reason in expected.items()}


def spoken(texts: Sequence[str]) -> dict[str, str]:
    """What is expected, out of texts such as ``agreement: eps stands elsewhere``.

    Raises:
        UsageError: one is not of that form, two are of one check, or :func:`declared` refuses what they say.
    """
    found: dict[str, str] = {}
    for text in texts:
        check, colon, reason = (part.strip() for part in text.partition(":"))
        if not colon:
            raise UsageError(f"--expect {text!r}: say why it is expected to fail, as in 'agreement: REASON'")
        if check in found:
            raise UsageError(
                f"--expect {text!r}: {check} is expected to fail already ({found[check]}); give one reason"
            )
        found[check] = reason
    return declared(found)


def expecting(subject: Subject, expected: Mapping[str, str]) -> Subject:
    """A subject that is expected to fail these checks, beside those that it is already.

    Raises:
        UsageError: of :func:`declared`.
    """
    return replace(subject, expected={**subject.expected, **declared(expected)}) if expected else subject
