"""What the reference says of one step of some parameters of a group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from stepcheck.harness.judging.judge import Judge
from stepcheck.harness.judging.judgement import Deviation, Judgement
from stepcheck.harness.life.events import Group, Parameter, Step
from stepcheck.harness.life.memory import Raw, SparseRaw
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import in_reals, is_complex
from stepcheck.harness.play.recording import ParameterStep, Recording, StepRecord
from stepcheck.harness.watch.look import Look
from stepcheck.harness.watch.subject import Held
from stepcheck.reference.spec import Buffer


@dataclass(frozen=True)
class Stepped:
    """One parameter before and after a step.

    Attributes:
        shape: its own, whatever is looked at of it.
        gradient: that the step was given, of the elements that are looked at.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    before: Look
    after: Look
    gradient: Raw | SparseRaw

    @property
    def looked(self) -> tuple[int, ...]:
        """The shape of what is looked at."""
        return self.shape if self.before.at is None else (len(self.before.at),)

    def place(self, index: tuple[int, ...]) -> tuple[int, ...]:
        """Where an element of what is looked at stands in the parameter; of a complex one, with which part it is."""
        if self.before.at is None or not index:
            return index
        element = int(self.before.at[index[0]])
        return (*(int(n) for n in np.unravel_index(element, self.shape)), *index[1:]) if self.shape else index[1:]


def judge(held: Held, stepped: Sequence[Stepped]) -> Judgement:
    """Compare a step of some parameters of one group with the reference, each element with its own budget."""
    trace = Trace(
        optimizer=held.subject.spec.name,
        parameters=tuple(Parameter(s.looked, s.dtype) for s in stepped),
        groups=(Group(tuple(range(len(stepped)))),),
        events=(Step(),),
    )
    parameters = [
        ParameterStep(
            value=s.before.value,
            gradient=s.gradient,
            state=s.before.state,
            value_after=s.after.value,
            state_after=s.after.state,
            gradient_written=False,
            beside_written=False,
            begun=True,  # what it has is what it starts from
        )
        for s in stepped
    ]
    record = StepRecord(0, held.subject, (held.hyper,), parameters)
    return Judge(held.subject, Recording(trace, steps=[record])).judge()


def unreadable(held: Held, stepped: Stepped) -> str:
    """Why a step cannot be compared, or nothing: a buffer is not where the reference looks for it, or in another format."""
    for b in _present(held, stepped.shape):
        if b.name not in stepped.after.state:
            if not held.subject.explicit:
                continue  # one that torch.optim must have, and the judge says so
            theirs = held.subject.terms.their_buffer(b.name)
            return f"its state has no {theirs!r}: say what the buffer is called, names={{{b.name!r}: ...}}"
        dtype = stepped.after.dtypes.get(b.name)
        if not held.subject.explicit and dtype is not None and f"torch.{stepped.dtype}" != str(dtype):
            return f"its {b.name} is {str(dtype).removeprefix('torch.')} where the parameter is {stepped.dtype}"
    return ""


def _present(held: Held, shape: tuple[int, ...]) -> list[Buffer]:
    return [b for b in held.subject.spec.buffers if b.present(held.hyper) and b.shape(shape) is not None]


def placed(deviation: Deviation, stepped: Sequence[Stepped]) -> Deviation:
    """A deviation with the place of its element in the whole parameter."""
    of = stepped[deviation.parameter]
    return replace(deviation, index=of.place(deviation.index)) if deviation.index else deviation


def counted(stepped: Stepped) -> int:
    """Real numbers that are looked at."""
    return math.prod(in_reals(stepped.looked, stepped.dtype))


def parts(dtype: str) -> int:
    """Real numbers in an element."""
    return 2 if is_complex(dtype) else 1
