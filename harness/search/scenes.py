"""Scenes: what a life is made of seldom, but surely. Beside the lives that are drawn freely, a campaign plays each of these in turn.

Faults hide at a scale that a small life does not reach, at an age, at values that no table has, and after what users do between steps.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stepcheck.harness.life.events import (
    DEFAULT_DTYPES,
    SURROUNDINGS,
    WAYS,
    AddGroup,
    Event,
    Handle,
    Option,
    Reload,
    Run,
    Scalar,
    Schedule,
    ScheduleStep,
    Step,
)
from stepcheck.harness.life.fields import MAX_RUN
from stepcheck.harness.life.spelling import spelled
from stepcheck.harness.life.values import splitmix64_word
from stepcheck.harness.play import torchs
from stepcheck.harness.play.families import no_such_class
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.contents import StepKind
from stepcheck.harness.search.options import switches, tensor
from stepcheck.reference.spec import Domain, Hyper, Spec

if TYPE_CHECKING:
    from stepcheck.harness.search.generate import Decoding


Options = dict[str, Option]


@dataclass(frozen=True)
class Scene:
    """A kind of life that is played in turn with others.

    Attributes:
        events: what happens, once there are parameters.
        takes: whether it makes sense for a subject.
        groups: how many parameters each group has at first, by the number of the scene in a campaign; as usual, where there is none.
        shape: of each parameter, by that number; as usual, where there is none.
        small: parameters have few elements; one of many has none.
        options: of a group, from those that were drawn.
        own: it is about options of a subject's own: where it has none, nothing is missed.
    """

    events: Callable[[Decoding], Iterator[Event]]
    takes: Callable[[Subject], bool] = lambda _: True
    groups: Callable[[Spec, int], tuple[int, ...]] | None = None
    shape: Callable[[Spec, int], tuple[int, ...]] | None = None
    small: bool = False
    options: Callable[[Decoding, Options], Options] = lambda _, drawn: drawn
    own: bool = False


def _plainly(subject: Subject) -> bool:
    """Whether its steps cost what most do: scale is tried on those alone, and not where kernels are interpreted."""
    return subject.cost <= 9 and subject.mode != "triton" and not subject.spec.closure


# Large: more elements than a block has.

#: From so many elements on.
LARGE = 4_096
#: The number of the scene with the smallest of them.
SMALLEST = 2
#: One more, or a few more, than a block that implementations use: 4,096, 65,536 and 2^20 elements, 1,024 rows.
_LARGE: tuple[tuple[int, ...], ...] = ((65_543,), (1031, 67), (67, 9, 8), (1_048_583,), (4_099,), (2, 33_001))
#: Where elements depend on each other, what a step costs to judge grows faster than they do.
_LARGE_MATRICES: tuple[tuple[int, ...], ...] = ((67, 1031), (1031, 5), (4_099,), (5, 1031))
_LARGE_PRODUCTS: tuple[tuple[int, ...], ...] = ((129, 67), (5, 1031), (67, 129), (1031, 5))


def _large(spec: Spec, number: int) -> tuple[int, ...]:
    shapes = _LARGE if spec.elementwise else _LARGE_PRODUCTS if spec.products else _LARGE_MATRICES
    taken = [s for s in shapes if spec.shapes(s)]
    return taken[number % len(taken)]


def _steps(number: int) -> Callable[[Decoding], Iterator[Event]]:
    def events(life: Decoding) -> Iterator[Event]:
        for n in range(number):
            yield life.step(_ordinary(life), n)

    return events


def _ordinary(life: Decoding) -> StepKind:
    """A step whose gradients are numbers of ordinary size, where there is one."""
    return life.draw(life.world.ordinary)


# Many: more tensors than a launch of a kernel takes, more groups than a table has room for.

_MANY: tuple[tuple[int, ...], ...] = (
    (70,),
    (1, 2, 0, 1, 3, 1, 1, 2, 1, 1),
    (37,),
    (130,),
    (2, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1),
    (1_001,),
    (1,) * 18,
)


#: Where each parameter is judged by itself.
_SOME: tuple[tuple[int, ...], ...] = ((19,), (1, 1, 0, 1, 1, 1, 1, 1, 1, 1))


def _many(spec: Spec, number: int) -> tuple[int, ...]:
    table = _MANY if spec.elementwise else _SOME
    return table[number % len(table)]


def _with_added_groups(life: Decoding) -> Iterator[Event]:
    yield life.step(_ordinary(life), 0)
    for _ in range(2 if len(life.groups) < 64 and not life.of.one_group else 0):
        group = life.group(1)
        life.groups.append(group)
        yield AddGroup(group)
    yield life.step(_ordinary(life), 1)
    if len(life.parameters) < 200:
        yield life.step(_ordinary(life), 2)


# Long: periods, counters and thresholds.

#: Steps of which each is judged: whatever period something has up to that, it comes round, and 8 bits count no further than 256.
_EACH = 301
#: Steps at which something may begin or end later: thresholds, and what 16-bit floats count to.
_LATE_TURNS = (400, 500, 512, 1000, 1024, 2048)
#: What takes so long that it is for campaigns of more lives than most: of each dozen such lives the last has one of these.
_LAST_TURNS = ((10_000, 32_768), (65_536,))


def _long(life: Decoding) -> Iterator[Event]:
    """Every step is judged, or those around each turn are, and those between are taken."""
    if life.number % 2 == 0:
        yield from (life.step(_ordinary(life), n) for n in range(_EACH))
        return
    turns: tuple[int, ...] = _LATE_TURNS
    if _is_longest(life):
        turns = _LAST_TURNS[life.number // 12 % len(_LAST_TURNS)]
    taken = 0
    for turn in turns:
        first = max(turn - 1, taken + 1)
        if first - taken > 1:
            if not taken:
                yield life.step(_ordinary(life), 0)
                taken += 1
            whole, rest = divmod(first - 1 - taken, MAX_RUN)
            yield from (Run(steps) for steps in (*[MAX_RUN] * whole, rest) if steps)
        for n in range(first, turn + 2):
            yield life.step(_ordinary(life), n)
        taken = turn + 1


def _is_longest(life: Decoding) -> bool:
    # A graph of so many steps has no room.
    return life.number % 12 == 11 and not life.of.differentiable


def _plain_at_first(life: Decoding, drawn: Options) -> Options:
    """Of the first two such lives, the fewest options with which there is a state; of the next two, and those that take longest, as many as can be."""
    if life.number in (2, 3) or _is_longest(life):
        return _most(life, drawn, list(life.of.reals), functools.partial(_tempered, life))
    return life.with_state() if life.number < 2 else drawn


# Rested: a buffer is not needed for some steps.


def _rests(life: Decoding) -> tuple[str, bool]:
    """The option that gives a parameter one more buffer, and whether it is off at first."""
    names = list(life.of.switches)
    turn, place = divmod(life.number, len(names))
    return names[place], turn % 3 == 2


def _with_a_switch(life: Decoding, drawn: Options) -> Options:
    """With one more buffer, or, where that comes late, with nothing else: how a buffer begins depends on other options."""
    name, late = _rests(life)
    on: Options = {name: life.draw(life.of.switches[name])}
    off: Options = {name: life.of.hyper[name].default}
    if late:
        return off
    return next((o for o in (drawn | on, on) if life.takes(o) and life.takes(o | off)), drawn)


def _rested(life: Decoding) -> Iterator[Event]:
    """What has a buffer is turned off, and on again, or on for the first time; two steps between any two turns."""
    name, late = _rests(life)
    group, off = life.draw(range(len(life.groups))), life.of.hyper[name].default
    on = life.groups[group].options.get(name, off)
    on = life.draw(life.of.switches[name]) if on == off else on
    turns = [_to(group, name, value) for value in ((on, off, on) if late else (off, on))]
    if late and name == "momentum" and life.number % 2 and life.of.schedulable:
        turns[0] = lambda _: [Schedule("OneCycleLR"), ScheduleStep()]  # which turns momentum on
    n = itertools.count()
    for turn in (lambda _: [], *turns):
        yield from turn(life)
        for _ in range(2):
            yield life.step(_ordinary(life), next(n))


def _to(group: int, name: str, value: Option) -> Callable[[Decoding], list[Event]]:
    def turn(life: Decoding) -> list[Event]:
        changed = life.set_to(group, name, value)
        return [] if changed is None else [changed]

    return turn


# Filled: a tensor that is a learning rate is written to.


def _with_a_tensor(life: Decoding, drawn: Options) -> Options:
    with_one = drawn | {"lr": tensor(life.draw(life.of.lr))}
    return with_one if life.takes(with_one) else {"lr": tensor(life.of.lr[0])}


def _filled(life: Decoding) -> Iterator[Event]:
    """Before each step but the first the tensor is filled with another number, in one life of two after a round trip."""
    yield life.step(_ordinary(life), 0)
    reloaded = life.draw((0, 2, 0, 3))
    for n in range(1, 4):
        if n == reloaded:
            yield life.draw(life.of.reloads)
        changed = life.set_to(0, "lr", tensor(life.draw(life.of.lr)))
        yield from () if changed is None else (replace(changed, in_place=True),)
        yield life.step(_ordinary(life), n)


# Handled: what users do between steps.

_HANDLINGS = (
    "written", "cleared", "kept", "rolled back", "forgotten", "removed", "appended", "written", "replaced", "regrouped", "swapped",
    "rolled back", "rolled back",
)  # fmt: skip


def _handled(life: Decoding) -> Iterator[Event]:
    """Something between any two steps; what was kept is rolled back to, what was removed is appended again."""
    absent = _late(life)
    late = absent is not None
    kept = absent is None and life.draw((False, False, False, True))
    if kept:  # before there is a state
        yield Handle("kept")
    yield life.step(_ordinary(life), 0)
    for n in range(1, life.draw((4, 5, 6, 5))):
        how, parameter = life.draw(_HANDLINGS), life.draw(range(len(life.parameters)))
        if (late and n == 2) or (how in ("removed", "kept") and absent is not None):
            how = "appended"
        if how == "appended":
            how = "removed" if absent is None else how
        elif how == "rolled back" and not kept:
            how = "kept" if absent is None else "written"
        if how == "appended" and absent is not None:
            parameter, absent, late = absent, None, False
        elif how == "removed":
            absent = parameter
        kept |= how == "kept"
        yield Handle(how, parameter, life.values_of(parameter) if how in ("written", "swapped") else Handle(how).values)
        changed = life.set_lr() if life.draw((False, False, True)) else None
        yield from () if changed is None else (changed,)
        yield life.step(_ordinary(life), n)
    if absent is not None:
        yield Handle("appended", absent)
        yield life.step(_ordinary(life), 9)


def _late(life: Decoding) -> int | None:
    """A parameter that is appended to its group later, in some lives where that has another."""
    among = [g.parameters[-1] for g in life.groups if len(g.parameters) > 1]
    return life.draw((None, *among))


# Adopted: a checkpoint of torch's own class.


def _adopted(life: Decoding) -> Iterator[Event]:
    """Somebody's class goes on from what torch's own has saved, and once more, from what an older version has."""
    trips = torchs.NAMES if life.number // 2 % 2 else torchs.NAMES[:1]
    yield life.step(_ordinary(life), 0)
    for n, dictionary in enumerate(trips, 1):
        yield life.step(_ordinary(life), 2 * n - 1)
        yield Reload(life.draw(WAYS[:4]), dictionary, life.draw(life.of.forms), afresh=life.draw((False, True)))
        changed = life.set_lr() if life.draw((False, True)) else None
        yield from () if changed is None else (changed,)
        yield life.step(_ordinary(life), 2 * n)


def _few_or_most(life: Decoding, drawn: Options) -> Options:
    """Of every other such life, the fewest options with which there is a state; of the others, as many as can be."""
    if life.number % 2 == 0:
        return life.with_state()
    return _most(life, drawn, list(life.of.reals), functools.partial(_tempered, life))


# Spelled.


def _to_be_spelled(life: Decoding, drawn: Options) -> Options:
    """With as many options as can be that are written otherwise."""
    spelling = life.spelling()

    def otherwise(_: str, value: Option) -> bool:
        return bool(value) and not isinstance(value, Scalar) and type(spelled(value, spelling)) is not type(value)

    return _most(life, drawn, _half(life, life.of.spellings), otherwise)


def _to_be_switched(life: Decoding, drawn: Options) -> Options:
    """With as many options as can be that are not what they are by default."""
    return _most(life, drawn, _half(life, life.of.flags), functools.partial(_is_given, life))


def _half(life: Decoding, ways: tuple[str, ...]) -> list[str]:
    """Every other option, and the rest once each of these ways had its turn."""
    return list(life.of.reals)[life.number // max(len(ways), 1) % 2 :: 2]


def _is_given(life: Decoding, name: str, value: Option) -> bool:
    return value != life.of.hyper[name].default


def _tempered(life: Decoding, name: str, value: Option) -> int:
    """Counts for options that are given, and against those with which a parameter soon is infinite, or stands still."""
    numbers = [x for x in (value if isinstance(value, tuple) else (value,)) if type(x) is float]
    return _is_given(life, name, value) * (1 if all(1e-3 < x < 1.0 for x in numbers) else -9)


def _most(life: Decoding, drawn: Options, names: list[str], counts: Callable[[str, Option], int]) -> Options:
    """Options with the most, among these, that count."""
    numbers = [sum(counts(name, o[name]) for name in names if name in o) for o, _ in life.of.options]
    among = [dict(o) for n, (o, _) in zip(numbers, life.of.options, strict=True) if n == max(numbers) > 0]
    return next((o for o in (life.draw(among), drawn) if life.takes(o)), {}) if among else drawn


# Surroundings.


def _without(spec: Spec) -> set[str]:
    """Surroundings in which torch's own optimizer rightly computes something else."""
    without = set() if spec.elementwise else {"autocast"}  # a product of matrices
    kept = any(b.per_parameter and b.unit != "steps" for b in spec.buffers)
    return without | ({_DEFAULT} if kept else set())  # the dtype of numbers that it keeps


#: What torch.optim and stepcheck.fast need not be asked: what has so few elements they leave to one thread, whatever the number; and narrow
#: default dtypes, in which they make nothing.
_THREADS, _DEFAULT, _NARROW = "more threads", DEFAULT_DTYPES[0], DEFAULT_DTYPES[1:]
#: What is drawn; for somebody's class, float64 as the default dtype stands for others too.
_SURROUNDINGS = tuple(s for s in SURROUNDINGS if s not in (_THREADS, *_NARROW))


def _in_earnest(life: Decoding, drawn: Options) -> Options:
    """Of every other round, the fewest options with which there is a state."""
    return life.with_state() if life.number // len(_SURROUNDINGS) % 2 else drawn


def _surrounded(life: Decoding) -> Iterator[Event]:
    among = [s for s in _SURROUNDINGS if s not in _without(life.spec)]
    turn, place = divmod(life.number, len(among))
    # It is the change of their number that shows, after the first step or at last.
    with_threads = 4 * (life.number % 2) if life.of.explicit else None
    if with_threads == 0:
        yield Step(life.step(_ordinary(life), 0).gradients, within=_THREADS)
    for n in range(4):
        # Of every other round all steps are taken in the same.
        within = among[place] if turn % 2 or not n else life.draw(among)
        if within == _DEFAULT and life.of.explicit:
            within = DEFAULT_DTYPES[(turn if turn % 2 else turn + n) % len(DEFAULT_DTYPES)]
        yield Step(life.step(_ordinary(life), n).gradients, within=within)
    if with_threads:
        yield Step(life.step(_ordinary(life), with_threads).gradients, within=_THREADS)


def _with_a_run(life: Decoding) -> Iterator[Event]:
    """As in lives that are drawn freely, with steps before the last one: where a rule changes depends on options, and is late for some."""
    events = [*life.usual_events(), *life.events]
    life.events.clear()
    last = max((n for n, e in enumerate(events) if isinstance(e, Step)), default=0)
    if last and life.draw((True, False)) and not life.of.differentiable:
        events.insert(last, Run(life.draw((4, 8, 16, 30))))
    yield from events


def _freely(life: Decoding) -> Iterator[Event]:
    """As in lives that are drawn freely."""
    return life.usual_events()


def _after_a_part(life: Decoding) -> Iterator[Event]:
    """As in lives that are drawn freely, after a step in which one parameter of a group has no gradient: what steps a group at once may
    take all for as old as the first.
    """
    first, members = life.step(_ordinary(life), 0), life.groups[0].parameters
    events = [*life.usual_events(), *life.events]
    life.events.clear()
    if len(members) > 1 and not life.spec.closure:
        yield replace(first, gradients={**first.gradients, members[-1]: None})
    yield from events


# Values.


def anywhere(hyper: Hyper, words: Iterator[int]) -> object:
    """A value from the whole domain of an option; its default, where it is no number or pair of numbers."""
    if hyper.is_flag or hyper.choices or hyper.integer or hyper.examples:
        return hyper.default
    domains = hyper.entry_domains
    if isinstance(hyper.default, tuple):
        pairs = zip(hyper.default, domains, strict=True)
        return tuple(default if default is None else _within(default, d, words) for default, d in pairs)
    return hyper.default if hyper.default is None else _within(float(hyper.default), domains[0], words)


def _within(default: float, domain: Domain, words: Iterator[int]) -> float:
    """A number of few digits between the ends of its domain; where there is no end, up to four decades below its default and two above."""
    word = next(words)
    decades = (word & 0xFFFF) / 0x10000
    if domain.high == 1.0 and domain.low in (0.0, -math.inf):
        # A rate of decay: half of them from 0 to 1, the others close to 1.
        x = decades if word >> 16 & 1 else 1.0 - 10.0 ** (-4.0 * decades)
    elif math.isfinite(domain.high):
        x = domain.low + decades * (domain.high - domain.low)
    else:
        x = (default or 1e-2) * 10.0 ** (6.0 * decades - 4.0)
    x = float(f"{x:.3g}")
    return x if x in domain else default


def words(seed: int) -> Iterator[int]:
    """Pseudorandom numbers without end."""
    return (splitmix64_word(seed + n) for n in itertools.count())


#: Each scene by its name.
SCENES: dict[str, Scene] = {
    "large": Scene(_steps(2), _plainly, lambda *_: (1,), _large),
    "many": Scene(_with_added_groups, lambda s: _plainly(s) and not s.one_group, _many, small=True),
    "long": Scene(
        _long,
        lambda s: _plainly(s) and not s.spec.products,
        lambda _, n: (2 - n % 2,),
        small=True,
        options=_plain_at_first,
    ),
    "handled": Scene(_handled, lambda s: s.cost <= 9 and not s.spec.closure and not s.differentiable),
    "rested": Scene(
        _rested, lambda s: s.cost <= 9 and bool(switches(s)) and not s.differentiable, options=_with_a_switch, own=True
    ),
    "surrounded": Scene(
        _surrounded, lambda s: s.cost <= 9 and not s.spec.closure and not s.differentiable, options=_in_earnest
    ),
    "valued": Scene(
        _with_a_run, lambda s: s.cost <= 9 and not s.spec.closure, options=lambda life, drawn: life.anywhere(drawn)
    ),
    "switched": Scene(_after_a_part, lambda s: s.cost <= 9 and bool(s.flags), options=_to_be_switched, own=True),
    "adopted": Scene(
        _adopted,
        lambda s: s.explicit and s.cost <= 9 and not s.spec.closure and not no_such_class(s.spec.name),
        options=_few_or_most,
        own=True,
    ),
    "spelled": Scene(_freely, lambda s: s.cost <= 9 and len(s.spellings) > 1, options=_to_be_spelled),
    "filled": Scene(
        _filled,
        lambda s: s.cost <= 9 and s.tensor_lr and not s.spec.closure and not s.differentiable,
        lambda *_: (2,),
        options=_with_a_tensor,
        own=True,
    ),
}
#: In which order scenes follow one another: those whose lives cost more stand here seldom.
_ORDER = (
    "handled", "large", "valued", "long", "spelled", "rested", "filled", "surrounded", "adopted", "handled", "switched", "valued", "many", "handled", "valued",
    "spelled", "handled", "surrounded", "switched", "spelled", "many", "rested", "handled", "valued", "handled", "spelled", "adopted", "surrounded", "handled",
    "switched",
)  # fmt: skip


def scenes(subject: Subject, first: int) -> Iterator[tuple[str, int]]:
    """What each life of a campaign is made of, from life ``first`` on: every other one, a scene and its number; else nothing."""
    order = [name for name in _ORDER if SCENES[name].takes(subject)]
    for n in itertools.count(first):
        if (n - first) % 2 or not order:
            yield "", 0
        else:
            turn, place = divmod((n - first) // 2, len(order))
            name = order[place]
            yield name, turn * order.count(name) + order[:place].count(name)


def shape_of(life: Decoding) -> tuple[int, ...] | None:
    """What a scene says of the shape of the next parameter."""
    scene = life.scene
    if scene is None or (scene.shape is None and not scene.small):
        return None
    if scene.shape is not None:
        return scene.shape(life.spec, life.number)
    index = len(life.parameters)
    others, empty = life.world.small
    if empty and index % 29 == 13:  # one among many
        return empty[0]
    # Of every other such life all parameters are alike.
    return others[(index * 7 if life.number % 2 else life.number // 2) % len(others)]
