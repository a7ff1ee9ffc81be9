"""What happened when a trace was played, as data. Nothing is judged here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from stepcheck.harness.life.events import Option
from stepcheck.harness.life.memory import Raw, SparseRaw
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.comparison import Array
from stepcheck.harness.play.spoil import Arrival
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.play.validation import Attempt
from stepcheck.harness.support.text import shown
from stepcheck.reference.group_options import GroupOptions

#: The cause of a breach: what the constructor was given.
CALLERS_GROUPS = "the groups given to the constructor"
#: The tensors and numbers that an optimizer keeps for one parameter.
State = Mapping[str, Raw | float]
#: The value and state of each parameter at one time.
Snapshot = list[tuple[Raw, State]]


class EndOfLifeError(Exception):
    """A life cannot go on, and why is noted."""


@dataclass
class ParameterStep:
    """One parameter in one step call: row-major copies of its value, gradient and state, before and after.

    Attributes:
        begun: its state has been touched by a step that was not judged, so it need not be the initial one.
    """

    value: Raw
    gradient: Raw | SparseRaw | None
    state: State
    value_after: Raw
    state_after: State
    gradient_written: bool
    beside_written: bool
    begun: bool = False


@dataclass(frozen=True)
class Evaluation:
    """One call of a closure.

    Attributes:
        point: what the parameters were, flat; of complex ones, real and imaginary parts.
        loss: what it returned, as a Python float.
        gradient: what it left in the parameters' gradients, flat.
    """

    point: Array
    loss: float
    gradient: Array


@dataclass
class StepRecord:
    """One step call: the options then in force for each group, and what became of each parameter.

    Attributes:
        played_by: the subject, or the sibling of it that a round trip has led to.
        evaluations: the calls of the closure, where it evaluates an objective.
        counts: of somebody's class, the steps that each group says it has taken, before and after; none where it says nothing of them.
    """

    event: int
    played_by: Subject
    hyper: tuple[GroupOptions, ...]
    parameters: list[ParameterStep]
    evaluations: list[Evaluation] = field(default_factory=list)
    counts: Sequence[tuple[float | None, float | None]] = ()


@dataclass
class IdleRecord:
    """An event that is no step: what it must leave alone, before and after.

    Attributes:
        touched: ``value`` or the names of buffers that changed, per parameter.
        gradients_left: parameters whose gradient ``zero_grad`` neither took away nor filled with zeros.
    """

    event: int
    touched: list[list[str]]
    gradients_left: list[int]


@dataclass
class ReloadRecord:
    """The state and options of each optimizer, before the round trip and after.

    Attributes:
        left: of each parameter, what is there as it was before, and was not in the dictionary: of an optimizer that loads its own.
    """

    event: int
    saved: Sequence[State]
    loaded: Sequence[State]
    saved_options: list[dict[str, Any]]
    loaded_options: list[dict[str, Any]]
    left: list[list[str]] = field(default_factory=list)


@dataclass
class Raised:
    """An exception that a valid life must not meet.

    Attributes:
        event: index of the event; ``None`` for the construction.
        frame: ``file:function`` of the frame that raised it; empty where a signature refused the call.
        constructing: the constructor was called; at an event, for an optimizer that loads what another saved.
        ageing: one of the steps was taken that are not recorded, with gradients of zeros.
        on_purpose: a statement of the class's own raised it.
    """

    event: int | None
    kind: str
    message: str
    frame: str = ""
    constructing: bool = False
    ageing: bool = False
    on_purpose: bool = False

    def __post_init__(self) -> None:
        # It goes into tables, scripts and files, and its author may have thought of none of them.
        self.kind, self.message = shown(self.kind), shown(self.message)


@dataclass(frozen=True)
class Breach:
    """An invariant that was seen not to hold, by a plain comparison of before and after.

    Attributes:
        check: the name of the check that is about it.
        event: index of the event; ``None`` for the construction.
        cause: what tells one breach of the invariant from another.
        told: what happened, as the end of a sentence that begins with the event.
        parameter: index of the parameter, where one is concerned.
        option: group, name and value of the option that should hold, where one is concerned.
        spoilt: where a step with malformed state arrived that was not refused.
    """

    check: str
    event: int | None
    cause: str
    told: str
    parameter: int | None = None
    option: tuple[int, str, Option] | None = None
    spoilt: Arrival | None = None


@dataclass
class Recording:
    """What happened when ``trace`` was played.

    Attributes:
        initial_state: per parameter, what the optimizer kept for it before any step.
        looked: for each invariant that a plain comparison decides, how often it was looked at.
        breaches: where one of them did not hold.
        built: the class of the optimizer.
        wrapped: the class of the optimizer of torch's kind that it keeps inside, if it does.
        handovers: the round trips that led to a sibling of the subject, or back: the event, and who plays what comes after it.
        hyper: the options in force at the end for each group.
        aged: the first event at which somebody's class was let take many steps that are not recorded.
        mixed: the first step that took a gradient of another dtype: what comes after is nobody's to judge.
        attempts: what became of each invalid thing that was tried.
        lacks: what the subject turned out not to have: ``hooks``, ``closures``, ``schedules``, ``state`` to be spoilt.
        by_group: each parameter's state has the count of its group for its own, as a judge is given it where one is the group's.
    """

    trace: Trace
    steps: list[StepRecord] = field(default_factory=list)
    idle: list[IdleRecord] = field(default_factory=list)
    reloads: list[ReloadRecord] = field(default_factory=list)
    initial_state: list[State] = field(default_factory=list)
    raised: Raised | None = None
    looked: Counter[str] = field(default_factory=Counter)
    breaches: list[Breach] = field(default_factory=list)
    lacks: set[str] = field(default_factory=set)
    built: type | None = None
    wrapped: type | None = None
    handovers: list[tuple[int, Subject]] = field(default_factory=list)
    hyper: tuple[GroupOptions, ...] = ()
    aged: int | None = None
    mixed: int | None = None
    attempts: list[Attempt] = field(default_factory=list)
    by_group: bool = False
