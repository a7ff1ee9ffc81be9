"""What a fault that is caught late waits for: what all the lives that show it are made of, and few others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.power.measure import FaultRow
from stepcheck.harness.search.generate import decoder, page
from stepcheck.harness.search.steer import Feature, features

#: Pages of lives (64 each) that tell how common a feature is.
_PAGES = 3
#: Of the lives that show a fault, as many must have a feature that it is said to wait for.
_NEARLY_ALL = 0.9
_MOST_TOLD = 3


def reason(row: FaultRow) -> str:
    """In words: ``Freeze (14 % of lives), Reload.way copied (6 %)``; empty where nothing is common to the lives that show it."""
    shown = [k.features for k in row.kills if k.features]
    return _reason(tuple(shown), _ordinary(row.fault.make, row.fault.like)) if len(shown) > 1 else ""


def _ordinary(make: Callable[..., Any], like: str) -> list[set[Feature]]:
    subject = class_subject(make, like)
    decode = decoder(subject, subject.usual_dtypes)
    return [features(decode(data)) for n in range(_PAGES) for data in page(bytes([n + 1]) * 32)]


def _reason(shown: Sequence[frozenset[Feature]], ordinary: Sequence[set[Feature]]) -> str:
    """The rarest features that nearly all lives that show it have; each must make what the others leave rarer still."""
    common = {f for f in set().union(*shown) if sum(f in s for s in shown) >= _NEARLY_ALL * len(shown)}
    left = list(ordinary)
    told: list[str] = []
    while common and left and len(told) < _MOST_TOLD:
        share, feature = min((sum(f in life for life in left) / len(left), repr(f), f) for f in common)[::2]
        if share > 0.4:
            break
        whole = sum(feature in life for life in ordinary) / len(ordinary)
        told.append(f"{_told(feature)} ({whole:.0%} of lives)")
        common.discard(feature)
        left = [life for life in left if feature in life]
    return ", ".join(told)


def _told(feature: Feature) -> str:
    where, *what = feature
    if not what:
        return str(where)
    if "." not in str(where) and len(what) == 1 and isinstance(what[0], str):
        return f"{where} before {what[0]}"
    return f"{where} {' '.join(map(str, what))}"
