"""What the script of a finding remembers before the event that goes wrong, and asserts after it: it belongs to the check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life.events import Event, Option
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import Subject


class Writer(Protocol):
    """Who writes the script, as far as a witness asks.

    In the script stand ``torch``, ``params``, a list of the parameters, and ``optimizer``; of some events ``saved``, ``group``, ``calls``, ``result``,
    ``raised`` or ``accepted`` as well.
    """

    subject: Subject
    trace: Trace
    finding: Finding

    @property
    def event(self) -> Event | None:
        """The event that goes wrong; ``None`` for the construction."""

    @property
    def inside(self) -> dict[int, int]:
        """Parameters in the gaps of another, and which."""

    def literal(self, value: Option) -> str:
        """A value as an expression."""


#: The statement that compares what was remembered with what there is.
SAME = 'assert before == after, f"{before}\\n{after}"'
#: Statements of a script.
Statements = Callable[[Writer], Sequence[str]]


def _nothing(_: Writer) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Witness:
    """How a script shows what a check found: statements that fail on the class that was accused, and on no right one.

    A finding with a ``deviation`` needs none: its script compares with the reference.

    Attributes:
        asserts: what must hold after the event.
        remembers: what stands before the event; before the step itself, its gradients assigned.
        at: how the line of the event begins before which that is remembered, where it is another.
        first: what stands before all else.
        raises: the event raises by itself, so that nothing is asserted.
        guarded: each parameter stands in a larger buffer, guard values around it.
        names_groups: the dictionaries that a constructor is given have a name, ``groups``.
    """

    asserts: Statements = _nothing
    remembers: Statements = _nothing
    at: Callable[[Writer], str] = lambda writer: ""
    first: Statements = _nothing
    raises: bool = False
    guarded: bool = False
    names_groups: Callable[[Writer], bool] = lambda writer: False
