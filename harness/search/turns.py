"""What each life of a campaign is to contain: first what some check waits for, then scenes, in turn with lives that are drawn freely."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from stepcheck.harness.life.events import Gradient
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.generate import ESSENTIALS, TRACE_BYTES
from stepcheck.harness.search.limits import within
from stepcheck.harness.search.scenes import LARGE, SCENES, SMALLEST, scenes
from stepcheck.harness.search.settings import DEFAULT_EXAMPLES

#: CPU seconds beyond which somebody's class is not given a large life.
_MOST_SECONDS = 5.0
#: Elements beyond which a process is not given a life.
_MOST_SENT = 8_192
#: Scenes that differ in how Python writes what is sent as JSON.
_SPOKEN = ("spelled",)


class Turns:
    """The turns of one campaign.

    Attributes:
        played: the scenes that were played.
        left_out: a large life was left out, because it takes too long.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.played: set[str] = set()
        self.left_out = False
        self._seconds_each: float | None = None
        self._turns = itertools.chain(((name, 0) for name in ESSENTIALS), scenes(subject, len(ESSENTIALS)))

    def candidates(self, decode: Callable[..., Trace], pages: Sequence[bytes], patience: float) -> list[Trace]:
        """Lives to choose the next one from, one for each page of bytes.

        Args:
            decode: what bytes say, with the name of an essential event or of a scene and its number.
            patience: seconds that a life may take.
        """
        name, number = next(self._turns)
        drawn = [decode(page, name, number) for page in pages]
        if self.subject.explicit and self._takes_long(drawn[0], decode, patience):
            self.left_out = True
            return [decode(page) for page in pages]
        if name in SCENES:
            self.played.add(name)
        return drawn

    def told(self) -> Iterator[str]:
        """Which kinds of lives somebody's class was never given, and why."""
        if not self.subject.explicit:
            return
        never = [name for name in SCENES if name not in self.played]
        impossible = [name for name in never if not SCENES[name].takes(self.subject) and not SCENES[name].own]
        if self.subject.is_sent:
            impossible = [name for name in impossible if name not in _SPOKEN]
        if impossible:
            costs = "it takes one group" if impossible == ["many"] else "its steps cost too much"
            why = "its steps evaluate a closure" if self.subject.spec.closure else costs
            yield f"never played: lives of the kinds {', '.join(impossible)}: {why}"
        few = [name for name in never if SCENES[name].takes(self.subject)]
        if self.left_out and self.subject.is_sent:
            yield f"left out: lives of more than {_MOST_SENT:,} elements, whose numbers would all be written out"
        if few and self.left_out and not self.subject.is_sent:
            yield f"never played: lives of the kinds {', '.join(few)}; the largest would take it over {_MOST_SECONDS:g} s"
        elif few:
            yield f"never played: lives of the kinds {', '.join(few)}; more lives have them (--examples {DEFAULT_EXAMPLES})"

    def _takes_long(self, trace: Trace, decode: Callable[..., Trace], patience: float) -> bool:
        """Whether a class takes too long for a large life: there are classes that go through the elements one by one."""
        elements = sum(p.numel for p in trace.parameters)
        if elements < LARGE:
            return False
        if self.subject.is_sent:
            return elements > _MOST_SENT
        if self._seconds_each is None:
            smallest = decode(bytes(TRACE_BYTES), "large", SMALLEST)
            seconds = self._seconds(smallest, patience) - self._seconds(_of_few_elements(smallest), patience)
            self._seconds_each = seconds / sum(p.numel for p in smallest.parameters)
        return self._seconds_each * elements > _MOST_SECONDS

    def _seconds(self, trace: Trace, patience: float) -> float:
        """CPU seconds that it takes to play a life, the better of two times."""

        def played() -> float:
            start = time.process_time()
            within(patience, Player(self.subject, trace).play)
            return time.process_time() - start

        return min(played(), played())


def _of_few_elements(trace: Trace) -> Trace:
    """The same life with at most two elements in each dimension."""
    parameters = tuple(replace(p, shape=tuple(min(n, 2) for n in p.shape)) for p in trace.parameters)

    def fewer(i: int, g: Gradient) -> Gradient:
        return g if g.sparse is None else replace(g, sparse=g.sparse.within(parameters[i].shape))

    return replace(trace, parameters=parameters).with_gradients(fewer)
