"""Random traces, simplest choice first, so that what fails shrinks to what matters.

A trace is decoded from one string of bytes that Hypothesis draws, one or two for each choice from a table whose first entry is
the simplest: zero bytes are the simplest life. A campaign draws the bytes of many traces at once, by a key of which they are made,
because an example of Hypothesis costs as much as a trace.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import NamedTuple, TypeVar, cast

from stepcheck.harness.life.events import (
    HOOKS,
    SCHEDULES,
    SPOILING_WAYS,
    SPOILINGS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Group,
    Handle,
    Hook,
    Objective,
    Option,
    Parameter,
    Refuse,
    Reload,
    Run,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Spoil,
    Step,
    ZeroGrad,
    of_every_event,
    plain,
)
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values, is_complex, splitmix64_word
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.contents import (
    OBJECTIVE_KINDS,
    SEARCHED_KINDS,
    Kind,
    StepKind,
    gradient_layouts,
    named,
    range_of,
)
from stepcheck.harness.search.options import DECIDING, MAX_ITERS, SMALL, is_derived, tensor
from stepcheck.harness.search.scenes import SCENES, anywhere, shape_of, words
from stepcheck.harness.search.styles import PLAINLY, style_of
from stepcheck.harness.search.tables import Tables
from stepcheck.reference.spec import HyperValues

_T = TypeVar("_T")


#: Enough for a seed and for every choice of all but the longest lives; whatever is missing is chosen as the simplest.
TRACE_BYTES = 128


#: Elements of a tensor from which on its values are a ramp.
_LISTED = 2048


#: One life of so many ends with malformed state, beside the one that is sure to.
_SPOILT_EVERY = 16


#: What that one holds beside what is drawn: most that goes wrong shows with one of these.
_TELLING = ("a row short", "of half the elements", "column-major", "strided")


class _Choices:
    """Choices from tables, read off a string of bytes: one for a small table, two for a large one."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def pick(self, table: Sequence[_T]) -> _T:
        return table[self.number(1 if len(table) <= 32 else 2) % len(table)]

    def number(self, size: int) -> int:
        at, self.at = self.at, self.at + size
        return int.from_bytes(self.data[at : at + size], "little")


#: What a campaign's first lives contain one each, so that every check finds something to look at.
ESSENTIALS = (
    "reload", "hook", "hooked reload", "fail", "scaled", "skipped", "closure", "add_group", "maximize", "zero_grad", "zero_grad_in_place", "absent", "two parameters", "schedule",
    "set_lr", "freeze", "accumulate", "set_option",
)  # fmt: skip


class Decoding:
    """One life as it is decoded."""

    def __init__(self, of: Tables, data: bytes, essential: str, number: int) -> None:
        self.of, self.spec, self.essential = of, of.spec, essential
        self.scene, self.number = SCENES.get(essential), number
        self.choices = _Choices(data)
        self.draw = self.choices.pick
        self.counter = itertools.count(self.choices.number(4) << 12)
        self.world, self.dtypes = of.worlds[self.draw(of.world_names)], self.draw(of.dtype)
        if essential in ("scaled", "skipped"):  # there torch.amp.GradScaler takes any optimizer's gradients
            self.dtypes = tuple(d for d in of.dtypes if d in ("float32", "float64"))[:1] or self.dtypes
        self.parameters: list[Parameter] = []
        self.groups: list[Group] = []
        self.hypers: list[HyperValues] = []
        self.owner: list[int] = []
        self.events: list[Event] = []
        self.objective: Objective | None = None

    def trace(self) -> Trace:
        sizes = self.draw(self.of.groups)
        if self.scene is not None and self.scene.groups is not None:
            sizes = self.scene.groups(self.spec, self.number)
        elif self.essential == "two parameters":
            sizes = (2,)
        elif self.essential == "add_group":
            sizes = (1,)
        for size in sizes:
            self.groups.append(self.group(size))
        form = self.draw(self.of.forms)
        if not all(g.parameters for g in self.groups):
            form = "dicts" if form == "named" else form  # a group of none has no names
        if self.of.style.objective:
            self.objective = self._objective()
        at_first = tuple(self.groups)
        if self.scene is None:
            self._usual_events()
        else:
            self.events += list(self.scene.events(self))
        flags = self.flags() if self.essential == "switched" else ()
        spelling = self.spelling() if self.essential == "spelled" else "plain"
        return Trace(self.spec.name, tuple(self.parameters), at_first, tuple(self.events), form, flags, spelling)

    def _usual_events(self) -> None:
        number = self.draw(self.of.style.lengths)
        # In half the lives something happens between any two steps: a fault may need two such events, and a step after them.
        eventful = self.choices.number(1) % 2 == 1 and self.of.style.eventful
        for n in range(number):
            self._event(self._next(n, eventful=eventful), n)
        if self.of.style.ending:
            ordinary = next(e for e in self.world.events if isinstance(e, StepKind))
            self.events += [Reload(), self.step(ordinary), ZeroGrad(set_to_none=True), Step({})]
        if self.of.spoils and (self.choices.number(1) % _SPOILT_EVERY == 1 or self.essential == "fail"):
            self.events += self._spoil()

    def usual_events(self) -> Iterator[Event]:
        """What happens in a life that is drawn freely."""
        self._usual_events()
        yield from ()

    def flags(self) -> tuple[str, ...]:
        """One of the flags that the subject's signature names, each in turn, or none where it names none."""
        return (self.of.flags[self.number % len(self.of.flags)],) if self.of.flags else ()

    def spelling(self) -> str:
        """How options are written: not plainly, where the subject takes them otherwise; each way in turn."""
        return self.of.spellings[self.number % len(self.of.spellings)] if self.of.spellings else "plain"

    def _next(self, n: int, *, eventful: bool) -> StepKind | str:
        """What comes at place ``n``; before it, hooks and a round trip where those are essential."""
        steps_or_all: Sequence[StepKind | str] = self.world.steps if eventful else self.world.events
        what = self.draw(self.of.between if eventful and n % 2 else steps_or_all)
        if self.essential == "hooked reload" and n in (1, 3):
            self.events += [Hook(kind) for kind in HOOKS] if n == 1 else [Reload()]
        if n == 1 and self.essential in self.of.between:
            return self.essential
        if n % 2 == 0 and self.essential:
            return next(e for e in self.world.events if isinstance(e, StepKind) and e.absence == 0)
        return what

    def group(self, size: int) -> Group:
        options, hyper = self._options()
        members = list(itertools.chain.from_iterable(self._member(hyper) for _ in range(size)))
        self.hypers.append(hyper)
        return Group(tuple(members), options)

    def _options(self) -> tuple[dict[str, Option], HyperValues]:
        """The options of a group, and what holds in it."""
        options, hyper = self.draw(self.of.options)
        if self._conflicts(hyper):
            options, hyper = self.of.options[0]
        options, from_table = self._shared(dict(options)), options
        if self.essential == "fail" and self.of.spoils and not self._keeps_state(hyper):
            options = self.with_state() or options
        if self.essential == "maximize" and "maximize" in self.of.reals:
            options["maximize"] = True
        if self.of.tensor_lr and self.choices.number(1) % 8 == 7:
            options["lr"] = tensor(hyper.lr)
        if self.scene is not None:
            options = self._shared(self.scene.options(self, options))
        first = self.groups[0].options.get("lr") if self.groups else None
        if isinstance(first, Scalar) and self.choices.number(1) % 2:
            options["lr"] = first  # then it is given once, for all groups
        return options, hyper if options == from_table else self.spec.hyper_values(plain(options))

    def _shared(self, options: dict[str, Option]) -> dict[str, Option]:
        """What no group has is given once, for all of them: the same as in the first."""
        if not self.groups:
            return options
        own = {k: v for k, v in options.items() if k not in self.of.shared}
        tried = own | {k: v for k, v in self.groups[0].options.items() if k in self.of.shared}
        complete = SimpleNamespace(**{**vars(self.spec.hyper_values()), **plain(tried)})
        return tried if self.spec.problem(complete) is None else dict(self.groups[0].options)

    def with_state(self) -> dict[str, Option]:
        """The fewest options with which there is a state."""
        return next((dict(o) for o, h in self.of.options if self._keeps_state(h) and not self._conflicts(h)), {})

    def takes(self, options: dict[str, Option]) -> bool:
        """Whether these options go together, for the subject and in this life."""
        complete = SimpleNamespace(**{**vars(self.spec.hyper_values()), **plain(options)})
        return self.spec.problem(complete) is None and not self._conflicts(complete) and self.of.accepts(options)

    def anywhere(self, options: dict[str, Option]) -> dict[str, Option]:
        """The same options, most with another value from the whole of their domains, as far as these go together."""
        numbers, kept = words(next(self.counter)), dict(options)
        for name, hyper in self.of.hyper.items():
            if next(numbers) % 4 and name not in self.of.shared and not isinstance(kept.get(name), Scalar):
                tried = kept | {name: cast("Option", anywhere(hyper, numbers))}
                kept = tried if self.takes(tried) else kept
        return kept

    def _member(self, hyper: HyperValues) -> Iterator[int]:
        """A parameter of a group, and perhaps another in the gaps between its elements."""
        shape, layout, kind = self.draw(self.world.parameters)
        if self.parameters and self.choices.number(1) % 4 == 3:
            # Parameters alike, as layers are: state that goes to the wrong one fits it.
            shape, layout = self.parameters[0].shape, self.parameters[0].layout
        if self.essential and not math.prod(shape):
            shape, layout, _ = next(p for p in self.world.parameters if math.prod(p[0]))
        if self.essential == "fail" and self.of.spoils and min(shape, default=0) < 2:
            shape, layout, _ = next(p for p in self.world.parameters if len(p[0]) > 1 and min(p[0]) > 1)
        given = shape_of(self)
        if given is not None:
            shape, layout = given, "contiguous"
        if self.of.style.objective and hyper.max_iter > max(MAX_ITERS) and math.prod(shape) > SMALL:
            shape, layout = (SMALL,), "contiguous"
        member = self._parameter(shape, layout, kind, hyper)
        yield member
        if layout == "sliced" and self.choices.number(1) % 4 == 3:
            yield self._parameter(shape, layout, kind, hyper, within=member)

    def _conflicts(self, hyper: HyperValues) -> bool:
        """Whether these options take none of the sparse gradients that this life may have."""
        return self.world is self.of.worlds["sparse"] and self.spec.sparse_conflict(hyper) is not None

    def _keeps_state(self, hyper: HyperValues) -> bool:
        """Whether there is a buffer with an element for each of a parameter."""
        shape = (3, 2)
        return any(b.present(hyper) and b.shape(shape) == shape for b in self.spec.buffers)

    def _parameter(
        self, shape: tuple[int, ...], layout: str, kind: Kind, hyper: HyperValues, within: int | None = None
    ) -> int:
        index = len(self.parameters)
        dtype = self.dtypes[index % len(self.dtypes)] if within is None else self.parameters[within].dtype
        values = self._values(kind, hyper, dtype, next(self.counter), math.prod(shape))
        self.owner.append(len(self.groups))
        self.parameters.append(Parameter(shape, dtype, layout, values, within))
        return index

    def _event(self, what: StepKind | str, number: int) -> None:
        if isinstance(what, StepKind) and self.of.style.objective:
            if what.absence:  # another batch of data, another function
                self.objective = self._objective()
            self.events.append(Step({}, self.objective))
        elif isinstance(what, StepKind):
            self.events.append(self.step(what, number))
        else:
            made = _BETWEEN[what].draw(self)
            self.events += made if isinstance(made, list) else [made] if made is not None else []

    # What stands between steps; there may be nothing to do.

    def zero_grad(self) -> Event:
        return ZeroGrad(set_to_none=True)

    def zero_grad_in_place(self) -> Event:
        return ZeroGrad(set_to_none=_holds_expanded(self.events))

    def set_lr(self) -> Event | None:
        if not self.of.lr_is_set:
            return None
        group, lr = self.draw(range(len(self.groups))), self.draw(self.of.lr)
        as_tensor = self.of.tensor_lr and self.choices.number(1) % 8 == 7
        return self._set(group, "lr", tensor(lr) if as_tensor and isinstance(lr, float) else lr)

    def set_option(self) -> list[Event]:
        if not self.of.set_later:
            return []
        group, name = self.draw(range(len(self.groups))), self.draw(list(self.of.set_later))
        # Each of them takes turns too seldom to show where an optimizer goes by its first value: often several are set at once.
        names = [n for n in self.of.set_later if self.choices.number(1) % 2] if self.choices.number(1) % 2 else [name]
        return [event for name in names for event in self._set_to_another(group, name)]

    def _set_to_another(self, group: int, name: str) -> list[Event]:
        value, now = self.draw(self.of.set_later[name]), getattr(self.hypers[group], name)
        # What is left open is filled in by the constructor alone; what is there already shows nothing.
        others = [v for v in self.of.set_later[name] if v is not None and v != now]
        if not others:
            return []
        value = others[0] if value is None or value == now else value
        made = [self._set(group, name, value)]
        if made[0] is None:
            other = self._conflicting(group, name, value)
            made = [self._set(group, n, v) for n, v in (other, (name, value))] if other else []
        return [event for event in made if event is not None]

    def _conflicting(self, group: int, name: str, value: Option) -> tuple[str, Option] | None:
        """Another option and its default, to which it has to go back before one can be given a value."""
        for other, (default, *_) in self.of.set_later.items():
            changed = SimpleNamespace(**{**vars(self.hypers[group]), **plain({other: default, name: value})})
            if default is None:  # as where a value is chosen, only the constructor takes it
                continue
            if other != name and not self._without_buffers(group, changed) and self.spec.problem(changed) is None:
                return other, default
        return None

    def _set(self, group: int, name: str, value: Option, *, buffers_stay: bool = True) -> SetOption | None:
        changed = SimpleNamespace(**{**vars(self.hypers[group]), **plain({name: value})})
        # The other options have been found to lie in their domains.
        problem = self.of.problem_of(name, getattr(changed, name)) or self.spec.conflict(changed)
        if problem is not None or not self.of.accepts(vars(changed)):
            return None
        if buffers_stay and self._without_buffers(group, changed):
            return None
        if self._conflicts(changed):
            return None
        if name == "max_iter" and self.of.leaves_open(self.groups[group].options):
            return None
        if name in ("max_eval", "max_iter") and (
            is_derived(changed) or (name == "max_eval" and value in self._derived(group))
        ):
            return None
        self.hypers[group] = changed
        if name == "maximize" and self.objective is not None:  # what has a minimum alone is turned with it
            self.objective = replace(self.objective, scale=-self.objective.scale)
        return SetOption(group, name, value)

    def set_to(self, group: int, name: str, value: Option) -> SetOption | None:
        """An option set to a value, with which a parameter may have a buffer more, or less; nothing where it does not go with the others."""
        return self._set(group, name, value, buffers_stay=False)

    def _derived(self, group: int) -> set[object]:
        """What follows from ``max_iter`` where ``max_eval`` was left open: set to that number, it cannot be told from that."""
        if self.groups[group].options.get("max_eval") is not None:
            return set()
        later = [
            e.value for e in self.events if isinstance(e, SetOption) and (e.group, e.option) == (group, "max_iter")
        ]
        at_first = self.groups[group].options.get("max_iter", self.of.reals["max_iter"][0])
        return {int(m) * 5 // 4 for m in (at_first, self.hypers[group].max_iter, *later) if isinstance(m, int | float)}

    def _without_buffers(self, group: int, hyper: HyperValues) -> bool:
        """Whether a buffer would be needed that no step has kept up, or be left behind: that has no agreed meaning."""
        return any(b.present(hyper) != b.present(self.hypers[group]) for b in self.spec.buffers)

    def reload(self) -> Event | None:
        reload = self.draw(self.of.reloads)
        if self.essential in ("scaled", "skipped"):  # not every mode to go on in takes a scaler
            reload = replace(reload, into=0)
        since = itertools.takewhile(lambda e: not isinstance(e, Step), reversed(self.events))
        # A dictionary does not say that max_eval was left open: until a step it holds what followed from the max_iter before.
        changed = {e.group for e in since if isinstance(e, SetOption) and e.option == "max_iter"}
        return None if any(self.groups[group].options.get("max_eval") is None for group in changed) else reload

    def add_group(self) -> Event | None:
        if any(isinstance(e, AddGroup) for e in self.events):
            return None
        group = self.group(1)
        self.groups.append(group)
        return AddGroup(group)

    def freeze(self) -> Event:
        index = self.draw(range(len(self.parameters)))
        frozen = any(e.frozen for e in self.events if isinstance(e, Freeze) and e.parameter == index)
        return Freeze(index, not frozen)

    def hook(self) -> Event:
        kind = self.draw(HOOKS)
        return Hook("step_pre" if self.essential == "hook" else kind)

    def schedule(self) -> Event | None:
        kind = self.draw(SCHEDULES)
        # One that begins at 0 goes back to it whenever it likes, also where there is a line search by then, which cannot begin there.
        stuck = self.of.style.objective and any(float(h.lr) == 0 for h in self.hypers)
        return Schedule(kind) if self.of.schedulable and not stuck else None

    def schedule_step(self) -> Event | None:
        if any(isinstance(e, Schedule) for e in self.events):
            return ScheduleStep()
        return self.schedule()

    def fail(self) -> Event:
        return Fail(self.draw(self.of.failures), self.draw(range(len(self.parameters))))

    def _spoil(self) -> list[Event]:
        may_be = [i for i, p in enumerate(self.parameters) if p.numel > 1]  # one element alone has no shape to speak of
        if not may_be:
            return []
        parameter = may_be[0] if self.essential else self.draw(may_be)
        drawn = Spoil(self.draw(SPOILINGS), self.draw(SPOILING_WAYS), parameter, self.choices.number(1) % 4)
        if not self.essential:
            return [drawn]
        return [drawn, *(Spoil(how, parameter=parameter) for how in _TELLING)]

    def accumulate(self) -> Event:
        gradients = {}
        for i, p in enumerate(self.parameters):
            gradients[i] = Gradient(
                self._values(Kind("quarters", "unit"), self.hypers[self.owner[i]], p.dtype, next(self.counter))
            )
        return Accumulate(gradients)

    def _objective(self) -> Objective:
        searched = self.hypers[0].line_search_fn is not None
        kind, centre, scale = self.draw(SEARCHED_KINDS if searched else OBJECTIVE_KINDS)
        if max(self.hypers[0].tolerance_grad, self.hypers[0].tolerance_change) >= DECIDING:
            scale = self.draw((1.0, 1.0, 0.25, scale))
        values = self._values(centre, self.hypers[0], self.parameters[0].dtype, next(self.counter))
        scale = -scale if getattr(self.hypers[0], "maximize", False) else scale
        return Objective(kind, values, scale, set_to_none=self.choices.number(1) % 2 == 0)

    def values_of(self, index: int) -> Values:
        """Other values for a parameter."""
        p = self.parameters[index]
        return self._values(Kind("log", "update"), self.hypers[self.owner[index]], p.dtype, next(self.counter))

    def _values(self, kind: Kind, hyper: HyperValues, dtype: str, seed: int, elements: int = 0) -> Values:
        low, high = range_of(kind.scale, hyper, dtype, self.of.eps_unit)
        if elements > _LISTED and kind.recipe != "constant":
            # The power of two at its middle: a script writes it in a line.
            return Values("ramp", seed, 0.0, 2.0 ** round((math.log2(low) + math.log2(high)) / 2))
        return Values(kind.recipe, seed, low, high)

    def step(self, what: StepKind, number: int = 0) -> Step:
        closure, scaling = self.draw(self.of.style.manners)
        if number == 2:
            closure = "tensor" if self.essential == "closure" and self.of.style.manners != PLAINLY else closure
            scaling = "step" if self.essential in ("scaled", "skipped") else scaling
        if scaling and not self._scalable():
            scaling = ""
        closure = "" if scaling else closure
        gradients: dict[int, Gradient | None] = {}
        for i in range(len(self.parameters)):
            seed = next(self.counter)
            fate = splitmix64_word(seed ^ what.absence) >> 62 if what.absence else 3
            if self.essential == "absent" and i == len(self.parameters) - 1 and number == 2:
                fate = 0
            if fate == 0:
                gradients[i] = None
            elif fate > 1:  # at 1 the parameter keeps the gradient that it has
                gradients[i] = self._gradient(what, i, seed, number)
        return Step(gradients, None, closure, scaling)

    def _scalable(self) -> bool:
        """Whether torch.amp.GradScaler takes these gradients: float16 in a kernel of its own alone, and no complex ones."""
        return not any(
            is_complex(p.dtype) or (p.dtype == "float16" and not self.of.scales_narrow) for p in self.parameters
        ) and not any(isinstance(e, Reload) and e.into for e in self.events)

    def _gradient(self, what: StepKind, index: int, seed: int, number: int) -> Gradient:
        p = self.parameters[index]
        layouts = gradient_layouts(p.shape, p.dtype)
        values = self._values(what.gradient, self.hypers[self.owner[index]], p.dtype, seed, p.numel)
        sparse = named(what.sparsity, p.shape, seed)
        if number == 2 and self.essential == "skipped":
            values = Values("constant", 0, 0.0, math.inf)
        return Gradient(values, "contiguous" if sparse else layouts[what.twist % len(layouts)], sparse)


def _holds_expanded(events: list[Event]) -> bool:
    """Whether a gradient may still be expanded, which zero_grad cannot fill in place."""
    return any(
        g is not None and g.layout == "expanded" for e in events if isinstance(e, Step) for g in e.gradients.values()
    )


class Draw(NamedTuple):
    """A way to draw what stands between two steps.

    Attributes:
        draw: the event, several of them, or ``None`` where there is nothing to do.
        often: how often it is named among all of them.
        takes: whether it makes sense for a subject.
        after: the way that it is named after; where that is empty, it is named where it stands.
    """

    name: str
    draw: Callable[[Decoding], Event | list[Event] | None]
    often: int = 1
    takes: Callable[[Subject], bool] = lambda _: True
    after: str = ""


#: How each kind of event is drawn between steps, the simplest first. Whatever is added stands last: what is chosen goes by numbers.
DRAWS: dict[type[Event], tuple[Draw, ...]] = of_every_event(
    {
        Step: (),  # as the worlds of a subject have it
        ZeroGrad: (
            Draw("zero_grad", Decoding.zero_grad),
            Draw("zero_grad_in_place", Decoding.zero_grad_in_place, often=2),
        ),
        SetOption: (
            Draw("set_lr", Decoding.set_lr, often=2),
            Draw("set_option", Decoding.set_option, often=3, after="reload"),
        ),
        Reload: (Draw("reload", Decoding.reload, often=5),),
        AddGroup: (Draw("add_group", Decoding.add_group, takes=lambda s: not s.one_group),),
        Freeze: (Draw("freeze", Decoding.freeze, often=2, takes=lambda s: s.spec.closure or not s.differentiable),),
        Hook: (Draw("hook", Decoding.hook),),
        Schedule: (Draw("schedule", Decoding.schedule),),
        ScheduleStep: (Draw("schedule_step", Decoding.schedule_step, often=2),),
        Fail: (Draw("fail", Decoding.fail, often=2),),
        Accumulate: (
            Draw("accumulate", Decoding.accumulate, takes=lambda s: not s.spec.closure and s.spec.sparse != "only"),
        ),
        Refuse: (),  # each subject is asked for all of them, in lives of their own
        Spoil: (),  # at the end alone
        Run: (),  # in scenes alone
        Handle: (),
    }
)


def _in_order() -> dict[str, Draw]:
    """All ways to draw what stands between steps, by their names."""
    draws = [draw for ways in DRAWS.values() for draw in ways]
    return {
        d.name: d for first in draws if not first.after for d in (first, *(d for d in draws if d.after == first.name))
    }


_BETWEEN = _in_order()


def tables(subject: Subject, dtypes: Sequence[str]) -> Tables:
    """What the lives of a subject are drawn from."""
    only = style_of(subject).between
    draws = [d for d in _BETWEEN.values() if (only is None or d.name in only) and d.takes(subject)]
    return Tables(subject, dtypes, [d.name for d in draws for _ in range(d.often)])


def decoder(subject: Subject, dtypes: Sequence[str]) -> Callable[..., Trace]:
    """What ``TRACE_BYTES`` bytes say: a trace that ``subject`` can play, with only options that it has and only ``dtypes``.

    Beside the bytes it can be given one of ``ESSENTIALS``, which the trace then contains where the subject has it, or a scene and its number.
    """
    of = tables(subject, dtypes)

    def decode(data: bytes, essential: str = "", number: int = 0) -> Trace:
        return Decoding(of, data, essential, number).trace()

    return decode


#: Lives in one draw of a campaign. Most of what a draw costs is Hypothesis's own account of it, whatever it holds.
PAGE = 64


def page(key: bytes) -> list[bytes]:
    """The bytes of as many lives: SHAKE-256 of a key, uniform and never twice the same; of a key of zeros, the simplest life."""
    if not any(key):
        return [bytes(TRACE_BYTES)]
    data = hashlib.shake_256(key).digest(PAGE * TRACE_BYTES)
    return [data[n : n + TRACE_BYTES] for n in range(0, len(data), TRACE_BYTES)]
