"""Measure the power of the harness: every fault of the zoo, many seeds each, beside other people's oracles; and false alarms.

One unit of work is one campaign, or one oracle asked once. Units run in as many processes as there are cores, each timed by its own
process's CPU time. Each outcome is a row as JSON has it, so that a measurement that was interrupted goes on from those that it has.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

import torch

from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.power.kill import Kill, first_kill
from stepcheck.harness.power.optim_db import knows
from stepcheck.harness.power.oracles import ORACLES, Oracle
from stepcheck.harness.power.statistics import Interval, caught_within, proportion
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import DEFAULT_EXAMPLES, Settings
from stepcheck.harness.support.processes import end_with, forks
from stepcheck.harness.support.usage import UsageError
from stepcheck.harness.zoo import catalogue
from stepcheck.harness.zoo.fault import Fault, Variant

Progress = Callable[[int, int], None]
#: Right optimizers whose first campaign took more than as many times the median of all get no further one: more is judged without them.
_CHEAP = 3


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        names: the optimizers; empty for all.
        seed: the first of the seeds; the same seed gives the same lives.
        seeds: campaigns for each fault.
        examples: lives of a campaign, as ``stepcheck check`` plays them.
        mutants: of each optimizer, at most as many of those made from its Spec.
        steps: steps of single parameters to judge in right optimizers, at least.
    """

    names: tuple[str, ...] = ()
    seed: int = 0
    seeds: int = 20
    examples: int = DEFAULT_EXAMPLES
    mutants: int = 25
    steps: int = 1_000_000


@dataclass(frozen=True)
class Answer:
    """What another oracle says: why it says no, or nothing; and in how many CPU seconds."""

    why: str
    seconds: float


@dataclass
class FaultRow:
    """What became of one wrong optimizer."""

    fault: Fault
    kills: list[Kill] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)

    @property
    def caught(self) -> Interval:
        """The share of campaigns that caught it."""
        return proportion(sum(k.caught for k in self.kills), len(self.kills))

    def probability(self, examples: int) -> Interval:
        """The probability that a campaign of as many lives catches it: from the lives that it took, as long as those are alike; of what
        shows in scenes alone, which come in their turn, it is the share of campaigns that caught it.
        """
        caught = [k for k in self.kills if k.caught]
        if caught and all(k.scene for k in caught):
            return self.caught
        return caught_within(sum(k.caught for k in self.kills), sum(k.examples for k in self.kills), examples)

    @property
    def checks(self) -> Counter[str]:
        """In how many campaigns each check said no in the life that ended it."""
        return Counter(check for kill in self.kills for check in kill.checks)


@dataclass
class RightRow:
    """What became of one right optimizer, or of one that no input can tell from it."""

    variant: Variant
    equivalent: str = ""
    campaigns: int = 0
    lives: int = 0
    steps: int = 0
    seconds: float = 0.0
    alarms: list[str] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)


@dataclass
class Power:
    """All that was measured."""

    plan: Plan
    faults: list[FaultRow]
    right: list[RightRow]
    seconds: float = 0.0

    @property
    def steps(self) -> int:
        return sum(r.steps for r in self.right)

    @property
    def alarms(self) -> list[tuple[RightRow, str]]:
        return [(row, alarm) for row in self.right for alarm in row.alarms]


@dataclass(frozen=True)
class _Judged:
    """A campaign of a right optimizer."""

    lives: int
    steps: int
    alarms: tuple[str, ...]
    seconds: float


def _judge_right(variant: Variant, seed: int, examples: int) -> _Judged:
    start = time.process_time()
    lives = steps = 0
    alarms: list[str] = []
    # Narrow dtypes beside float32, as a scaler of gradients takes no float16.
    for dtypes in ((), *(("float32", d) for d in variant.dtypes)):
        subject = class_subject(variant.make, variant.like, profile=variant.profile)
        campaign = Campaign(subject, Settings(seed, examples, dtypes=dtypes, first=True))
        result = campaign.run()
        lives, steps = lives + result.traces, steps + result.steps
        told = [f"{s.finding.check}: {s.finding.summary}" for s in campaign.suspects.new.values()]
        alarms += [f"seed {seed}: {t}" for t in told[:1] + ([result.error] if result.error else [])]
    return _Judged(lives, steps, tuple(alarms), time.process_time() - start)


def _ask(oracle: Oracle, entry: Fault | Variant, seed: int) -> Answer:
    start = time.process_time()
    why = oracle.catches(entry.make, entry.like, seed)
    return Answer(why, time.process_time() - start)


#: What a worker looks its unit of work up in; set before the workers fork.
_rows: dict[str, list[FaultRow] | list[RightRow]] = {}
Unit = tuple[str, int, int]


def _work(unit: Unit, examples: int) -> tuple[Unit, Kill | _Judged | Answer]:
    what, n, number = unit
    if what == "kill":
        fault = _fault_row(n).fault
        return unit, first_kill(fault.make, fault.like, number, examples, tensor_lr=fault.tensor_lr)
    if what == "right":
        return unit, _judge_right(_right_row(n).variant, number, examples)
    entry = _fault_row(n).fault if what == "fault oracle" else _right_row(n).variant
    return unit, _ask(ORACLES[number], entry, 0)


def _fault_row(n: int) -> FaultRow:
    row = _rows["faults"][n]
    assert isinstance(row, FaultRow)
    return row


def _right_row(n: int) -> RightRow:
    row = _rows["right"][n]
    assert isinstance(row, RightRow)
    return row


def measure(
    plan: Plan,
    progress: Progress = lambda done, planned: None,
    record: Callable[[dict[str, Any]], None] = lambda row: None,
    known: Iterable[Mapping[str, Any]] = (),
) -> Power:
    """Run all of it.

    Args:
        progress: called with (units done, units planned) after each.
        record: called with each unit's outcome as a row.
        known: rows of an earlier run of the same plan; what they have is not measured again.

    Raises:
        UsageError: one of ``known`` is no such row.
    """
    start = time.perf_counter()
    wanted = [f for f in catalogue.faults(plan.mutants) if not plan.names or f.like in plan.names]
    faults = [FaultRow(f) for f in wanted if not f.equivalent]
    right = [RightRow(v) for v in catalogue.VARIANTS if not plan.names or v.like in plan.names]
    right += [RightRow(Variant(f.make, f.like), f.equivalent) for f in wanted if f.equivalent]
    power = Power(plan, faults, right)
    _rows.update(faults=faults, right=right)
    _warm_up()
    units: list[Unit] = [
        *(("kill", n, plan.seed + s) for n in range(len(faults)) for s in range(plan.seeds)),
        *(("fault oracle", n, o) for n, r in enumerate(faults) if knows(r.fault.like) for o in range(len(ORACLES))),
        *(("right oracle", n, o) for n, r in enumerate(right) if knows(r.variant.like) for o in range(len(ORACLES))),
        *(("right", n, plan.seed) for n in range(len(right))),
    ]
    had = {_key(row): _outcome(row) for row in known}
    done, planned, seed = 0, len(units), plan.seed
    while units:
        for unit, outcome in _all(power, units, had):
            _enter(power, unit, outcome)
            record(_row(power, unit, outcome))
            done += 1
            progress(done, planned)
        # More campaigns of the right ones, in turn, until enough was judged.
        seed += 1
        each = [row.seconds / row.campaigns for row in right]
        cheap = [n for n, seconds in enumerate(each) if seconds <= _CHEAP * median(each)]
        units = [("right", n, seed) for n in cheap] if power.steps < plan.steps else []
        planned += len(units)
    for row in faults:
        row.kills.sort(key=lambda k: k.seed)
    power.seconds = time.perf_counter() - start
    return power


def _all(
    power: Power, units: Sequence[Unit], had: Mapping[tuple[str, ...], Kill | _Judged | Answer]
) -> Iterator[tuple[Unit, Kill | _Judged | Answer]]:
    """The outcomes of all units, those first that are there already."""
    keys = [_key(_about(power, unit)) for unit in units]
    yield from ((unit, had[key]) for unit, key in zip(units, keys, strict=True) if key in had)
    yield from _run([unit for unit, key in zip(units, keys, strict=True) if key not in had], power.plan.examples)


def _enter(power: Power, unit: Unit, outcome: Kill | _Judged | Answer) -> None:
    what, n, number = unit
    if isinstance(outcome, Kill):
        power.faults[n].kills.append(outcome)
    elif isinstance(outcome, Answer):
        row = power.faults[n] if what == "fault oracle" else power.right[n]
        row.answers[ORACLES[number].name] = outcome
    else:
        right = power.right[n]
        right.campaigns += 1
        right.lives += outcome.lives
        right.steps += outcome.steps
        right.seconds += outcome.seconds
        right.alarms += outcome.alarms


def _row(power: Power, unit: Unit, outcome: Kill | _Judged | Answer) -> dict[str, Any]:
    """One unit of work and its outcome, as JSON has it."""
    told = {k: v for k, v in vars(outcome).items() if k != "seed"}
    if "features" in told:
        told["features"] = sorted(told["features"], key=repr)
    return _about(power, unit) | told


def _about(power: Power, unit: Unit) -> dict[str, Any]:
    """What a unit of work is about: of whom what is asked, and with which seed, or by which oracle."""
    what, n, number = unit
    of = power.faults[n].fault if what in ("kill", "fault oracle") else power.right[n].variant
    asked = {"oracle": ORACLES[number].name} if what.endswith("oracle") else {"seed": number}
    return {"what": what, "name": of.name, "like": of.like, **asked}


def _key(row: Mapping[str, Any]) -> tuple[str, ...]:
    """What tells a unit of work from all others."""
    return tuple(str(row.get(name, "")) for name in ("what", "name", "like", "seed", "oracle"))


def _outcome(row: Mapping[str, Any]) -> Kill | _Judged | Answer:
    try:
        if row["what"] == "kill":
            features = frozenset(_tuple(f) for f in row.get("features", ()))
            seconds = float(row["seconds"])
            return Kill(
                int(row["seed"]), tuple(row["checks"]), int(row["examples"]), seconds, str(row["error"]), features,
                str(row.get("scene", "")),
            )  # fmt: skip
        if row["what"] == "right":
            return _Judged(int(row["lives"]), int(row["steps"]), tuple(row["alarms"]), float(row["seconds"]))
        return Answer(str(row["why"]), float(row["seconds"]))
    except (KeyError, TypeError, ValueError) as error:
        raise UsageError(f"no row of a measurement of power: {type(error).__name__}: {error}") from None


def _tuple(x: Any) -> Any:
    return tuple(map(_tuple, x)) if isinstance(x, list) else x


def _warm_up() -> None:
    """What is imported late, by the first step and the first question, is not part of anybody's time."""
    torch.set_num_threads(1)
    first_kill(torch.optim.SGD, "SGD", 0, examples=2)
    for oracle in ORACLES:
        oracle.catches(torch.optim.SGD, "SGD", 0)


def _run(units: Sequence[Unit], examples: int) -> Iterator[tuple[Unit, Kill | _Judged | Answer]]:
    """The units' outcomes, as they come. Few are in the queue at a time, so that an interruption is not waited for."""
    workers = os.cpu_count() or 1
    if not forks():
        yield from (_work(unit, examples) for unit in units)
        return
    waiting = iter(units)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("fork"), _begin, (os.getpid(),)) as pool:
        running: set[Future[tuple[Unit, Kill | _Judged | Answer]]] = set()
        try:
            while True:
                running |= _submitted(pool, islice(waiting, 4 * workers - len(running)), examples)
                if not running:
                    return
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    end_with(parent)
    torch.set_num_threads(1)


def _submitted(
    pool: ProcessPoolExecutor, units: Iterable[Unit], examples: int
) -> set[Future[tuple[Unit, Kill | _Judged | Answer]]]:
    return {pool.submit(_work, unit, examples) for unit in units}
