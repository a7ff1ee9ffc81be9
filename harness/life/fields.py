"""How a field stands in JSON, where its type alone does not say it: what annotates the fields of ``events``; ``reading`` goes by it."""

from __future__ import annotations

from dataclasses import dataclass

#: Bounds on what a trace may ask for, so that a hostile file cannot exhaust the machine.
MAX_ELEMENTS = 1 << 21
MAX_PARAMETERS = 1 << 10
MAX_DIMENSIONS = 8
MAX_OPTIONS = 64
#: Steps of a run; as many elements as that are not looked at.
MAX_RUN = 1 << 14


@dataclass(frozen=True)
class OneOf:
    """Text that is one of these."""

    names: tuple[str, ...]


@dataclass(frozen=True)
class Within:
    """A whole number, or each of some, from ``low`` to ``high``."""

    low: int
    high: int


@dataclass(frozen=True)
class AtMost:
    """No more entries than that."""

    entries: int


class Mark:
    """What is said of a field, and has nothing more to say."""


#: A whole number, or each of some, is the index of a parameter.
OF_A_PARAMETER = Mark()
#: Older traces do not have it: at its default it is not written, and where it is missing it is the default.
LATER = Mark()
#: Its own fields stand where it would stand.
SPREAD = Mark()
#: It stands before all others in JSON.
FIRST = Mark()
