"""How grave a known issue is: the checks that find it say so."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Grade:
    """How grave.

    Attributes:
        sign: told beside the word, so that nobody depends on colour.
        means: the grade in a few words.
    """

    name: str
    sign: str
    means: str


#: The gravest first.
GRADES = (
    Grade("wrong", "■", "steps, state or gradients are silently wrong"),
    Grade("raises", "▲", "a valid life ends in an exception"),
    Grade("lax", "○", "what is invalid is accepted, or memory or dictionaries are shared with the caller"),
)
_NAMES = tuple(grade.name for grade in GRADES)

#: What it means that a check fails.
OF_CHECK = {
    "completes": "raises",
    "memory-beside": "wrong",
    "gradient-unwritten": "wrong",
    "no-gradient": "wrong",
    "between-steps": "wrong",
    "save-load-continue": "wrong",
    "agreement": "wrong",
    "groups-independent": "wrong",
    "order-of-parameters": "wrong",
    "maximize-mirrors": "wrong",
    "option-effect": "wrong",
    "refuses-invalid": "lax",
    "storage-stays": "wrong",
    "options-hold": "wrong",
    "closure": "wrong",
    "hooks-run-once": "wrong",
    "failed-step": "wrong",
    "skipped-step": "wrong",
    "malformed-state": "wrong",
    "dicts-unchanged": "lax",
    "loaded-state-apart": "lax",
    "random-state": "wrong",
    "settings-kept": "wrong",
}


def gravest(checks: Iterable[str]) -> str:
    """The gravest that one of these checks finds."""
    return min((OF_CHECK[check] for check in checks), key=_NAMES.index)
