"""Make a failing life smaller, on the trace itself.

So a life shrinks below what is ever drawn (five events, shapes that cross vector widths), a trace from a file shrinks as well
as one just drawn, and each attempt is a life that makes sense.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

import numpy as np

from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life.events import (
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Handle,
    Hook,
    Objective,
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
from stepcheck.harness.life.values import Values, in_reals, is_complex

_SMALL_SHAPES: tuple[tuple[int, ...], ...] = ((1,), (2,), (3,), (2, 2), (3, 2), (5,), (8,), (9,), (1, 2, 3, 2), (33,))
#: For each so many elements, a part fewer of smaller lives is tried; but at least as many.
_SLOW, _FEW = 4096, 60
#: From how many parameters and elements on, parts are left out at once.
_MANY, _LARGE = 8, 256
_ZERO = Values("constant")
_QUARTERS = Values("quarters", 1, 2.0**-7, 2.0)


def size(trace: Trace) -> tuple[int, ...]:
    """What makes a life hard to read, most important first."""
    gradients = [g for _, g in trace.assigned]
    tensors: list[Parameter | Gradient] = [*trace.parameters, *gradients]
    return (
        len(trace.parameters) + len(trace.all_groups),
        len(trace.events),
        sum(p.numel for p in trace.parameters),
        sum(len(g.options) for g in trace.all_groups),
        _turns_of(trace),
        sum(t.layout != "contiguous" for t in tensors) + sum(is_complex(p.dtype) for p in trace.parameters),
        sum(1 + len(g.sparse.entries) for g in gradients if g.sparse is not None),
        sum(t.values not in (_ZERO, _QUARTERS) for t in tensors),
        sum(
            (o.kind != "quadratic")
            + 2 * (o.centre not in (_ZERO, _QUARTERS))
            + (o.centre != _ZERO)
            + (o.scale != 1)
            + (not o.set_to_none)
            for o in (getattr(e, "objective", None) for e in trace.events)
            if o is not None
        ),
    )


def affordable(trace: Trace, attempts: int) -> int:
    """How many smaller lives are tried of so many: a large one takes longer to be played."""
    return max(attempts // (1 + sum(p.numel for p in trace.parameters) // _SLOW), min(attempts, _FEW))


def _turns_of(trace: Trace) -> int:
    """In how many ways a life is not told plainly."""
    tensors = sum(isinstance(v, Scalar) for o in trace.given_options for v in o.values())
    pairs = sum(p.within is not None for p in trace.parameters)
    turned = len(trace.flags) + (trace.form != "list") + (trace.spelling != "plain")
    return sum(_PLAINER[type(e)].turns(e) for e in trace.events) + turned + pairs + tensors


def cut(
    trace: Trace, finding: Finding, recheck: Callable[[Trace], Finding | None], attempts: int = 2000
) -> tuple[Trace, Finding]:
    """Take every smaller life that still shows the finding, until none does.

    Args:
        recheck: the finding in a smaller life, or ``None`` where it is gone.
        attempts: how many smaller lives to try at most.
    """
    search = _Search(trace, finding, recheck, attempts)
    search.descend()
    search.attempts = max(search.attempts, attempts // 10)  # the last look is worth a few more
    alone = _witness_alone(search.trace, search.finding)
    if alone is not None and search.takes(alone):
        search.descend()
        search.round_values()
    return search.trace, search.finding


@dataclass
class _Search:
    """The smallest life so far, and how many more may be tried."""

    trace: Trace
    finding: Finding
    recheck: Callable[[Trace], Finding | None]
    attempts: int

    def takes(self, smaller: Trace) -> bool:
        """Whether a life still shows the finding; then it is the smallest."""
        if self.attempts <= 0:
            return False
        self.attempts -= 1
        found = self.recheck(smaller)
        if found is None:
            return False
        self.trace, self.finding = smaller, found
        return True

    def descend(self) -> None:
        """Take every smaller life until none shows the finding."""
        changed = True
        while changed and self.attempts > 0:
            smaller = (s for s in _smaller(self.trace, self.finding) if size(s) < size(self.trace))
            changed = any(map(self.takes, smaller))

    def round_values(self) -> None:
        """Take plain numbers where they show it as well."""
        for plain_numbers in _with_plain_numbers(self.trace):
            for trace in plain_numbers(self.trace):
                if self.takes(trace):
                    break


def _witness_alone(trace: Trace, finding: Finding) -> Trace | None:
    """The life of the one element that deviates most, its values written out; where each is stepped by itself, it shows the same."""
    d = finding.deviation
    if d is None or len(trace.parameters) != 1 or not d.index or d.center is not None:
        return None
    p = trace.parameters[0]
    gradients = [g for _, g in trace.assigned]
    if is_complex(p.dtype) or len(d.index) != len(p.shape) or any(g.sparse is not None for g in gradients):
        return None
    if p.numel == 1 and all(v.recipe == "constant" for v in _all_values(trace)):
        return None  # as plain as can be
    element = int(np.ravel_multi_index(d.index, p.shape))

    def one(values: Values) -> Values:
        return Values("listed", listed=(float(values.realise(p.shape).reshape(-1)[element]),))

    layout = p.layout if p.layout in ("contiguous", "sliced", "offset") else "contiguous"
    alone = replace(trace, parameters=(replace(p, shape=(1,), layout=layout, values=one(p.values)),))
    return alone.with_gradients(lambda _, g: _fitted(replace(g, values=one(g.values)), alone.parameters[0]))


def _all_values(trace: Trace) -> list[Values]:
    return [*(p.values for p in trace.parameters), *(g.values for _, g in trace.assigned)]


def _with_plain_numbers(trace: Trace) -> Iterator[Callable[[Trace], Iterator[Trace]]]:
    """For each value of a life of one element, the lives in which it is a plainer number."""

    def parameter(trace: Trace) -> Iterator[Trace]:
        (p,) = trace.parameters
        for values in _plain_numbers(p.values):
            yield replace(trace, parameters=(replace(p, values=values),))

    yield parameter
    for old in dict.fromkeys(g.values for _, g in trace.assigned):

        def gradients(trace: Trace, old: Values = old) -> Iterator[Trace]:
            for values in _plain_numbers(old):
                yield trace.with_gradients(lambda _, g: replace(g, values=values) if g.values == old else g)  # noqa: B023

        yield gradients


def _plain_numbers(values: Values) -> Iterator[Values]:
    if len(values.listed) != 1:
        return
    (x,) = values.listed
    if x == 0 or not math.isfinite(x):
        return
    power = 10.0 ** math.floor(math.log10(abs(x)))
    plainer = (0.0, 1.0, power, -power, float(f"{x:.0e}"), float(f"{x:.1e}"))
    yield from (_ZERO if y == 0 else Values("listed", listed=(y,)) for y in dict.fromkeys(plainer) if y != x)


def _smaller(trace: Trace, finding: Finding) -> Iterator[Trace]:
    last = -1 if finding.event is None else finding.event
    yield _tidy(replace(trace, events=trace.events[: last + 1]))
    everyone = range(len(trace.parameters))
    for part in (2, 4, 8) if len(everyone) > _MANY else ():
        for n in range(part):
            yield trace.keeping({i for i in everyone if i * part // len(everyone) != n})
    for index in everyone if len(everyone) > 1 else ():
        yield trace.keeping(set(range(len(trace.parameters))) - {index})
    for n in range(len(trace.events)):
        yield _tidy(replace(trace, events=trace.events[:n] + trace.events[n + 1 :]))
    yield replace(trace, form="list")
    for flag in trace.flags:
        yield replace(trace, flags=tuple(f for f in trace.flags if f != flag))
    yield replace(trace, spelling="plain")
    yield from _with_plainer_events(trace)
    yield from _without_options(trace)
    yield from _with_plainer_objectives(trace)
    yield from _with_plainer_parameters(trace)


def _without_options(trace: Trace) -> Iterator[Trace]:
    for n, group in enumerate(trace.groups):
        for name in group.options:
            rest = {k: v for k, v in group.options.items() if k != name}
            yield replace(trace, groups=(*trace.groups[:n], replace(group, options=rest), *trace.groups[n + 1 :]))
        if any(isinstance(value, Scalar) for value in group.options.values()):
            numbers = replace(group, options=plain(group.options))
            yield replace(trace, groups=(*trace.groups[:n], numbers, *trace.groups[n + 1 :]))


def _with_plainer_objectives(trace: Trace) -> Iterator[Trace]:
    for n, event in enumerate(trace.events):
        if isinstance(event, Step) and event.objective is not None:
            for simpler in (
                Objective(),
                replace(event.objective, centre=_ZERO),
                replace(event.objective, centre=_QUARTERS),
                replace(event.objective, scale=1.0),
                replace(event.objective, set_to_none=True),
            ):
                events = (*trace.events[:n], replace(event, objective=simpler), *trace.events[n + 1 :])
                yield replace(trace, events=events)


def _with_plainer_parameters(trace: Trace) -> Iterator[Trace]:
    for index, p in enumerate(trace.parameters):
        for shape in (*_SMALL_SHAPES, *_fewer_rows(p.shape)):
            if len(shape) == 4 or p.layout != "channels_last":
                smaller = _with_parameter(trace, index, replace(p, shape=shape))
                yield smaller
                # Of fewer elements, none may happen to show it; others of the same kind may.
                for seed in range(1, 5):
                    yield _with_gradients(smaller, index, functools.partial(_reseeded, seed=seed))
        if is_complex(p.dtype):
            yield _with_parameter(trace, index, replace(p, dtype="float64" if p.dtype == "complex128" else "float32"))
        yield _with_parameter(trace, index, replace(p, within=None))
        yield _with_parameter(trace, index, replace(p, layout="contiguous", within=None))
        yield _with_parameter(trace, index, replace(p, values=_ZERO))
        yield _with_gradients(trace, index, lambda g: replace(g, layout="contiguous"))
        yield _with_gradients(trace, index, lambda g: replace(g, sparse=None))
        yield _with_gradients(trace, index, _fewer_entries)
        yield _with_gradients(trace, index, lambda g: replace(g, values=_QUARTERS))


def _fewer_rows(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Shapes of a large tensor with fewer elements, down to one more than a block."""
    elements = math.prod(shape)
    if elements > _LARGE:
        yield from ((n,) for n in (257, 1025, 2049, 4097, 8193, 16385, 32769, 65537, 131073) if n < elements)
        yield (elements // 2,)


def _tidy(trace: Trace) -> Trace:
    """Without parameters that stand in no group any more."""
    return trace.keeping(trace.group_of.keys()) if len(trace.group_of) < len(trace.parameters) else trace


def _with_plainer_events(trace: Trace) -> Iterator[Trace]:
    added = len(trace.groups)
    for n, event in enumerate(trace.events):
        before, after = trace.events[:n], trace.events[n + 1 :]
        for simpler in _PLAINER[type(event)].plainer(event):
            yield replace(trace, events=(*before, simpler, *after))
        if isinstance(event, AddGroup):
            if added == len(trace.groups):  # the first to be added can be there at once
                yield replace(trace, groups=(*trace.groups, event.group), events=before + after)
            added += 1


class _Plainer(NamedTuple):
    """How a kind of event is made plainer.

    Attributes:
        turns: in how many ways an event is not the plain one of its kind.
        plainer: plainer ones of its kind.
    """

    turns: Callable[[Any], int]
    plainer: Callable[[Any], Iterable[Event]]


#: There is but one of its kind, or none is plainer than another.
_AS_IT_IS = _Plainer(lambda _: 0, lambda _: ())


def _turns_of_step(step: Step) -> int:
    turned = sum(g is not None and g.negated for g in step.gradients.values())
    return bool(step.closure) + bool(step.scaling) + bool(step.within) + turned


def _with_fewer_options(event: AddGroup) -> Iterator[Event]:
    for name in event.group.options:
        rest = {k: v for k, v in event.group.options.items() if k != name}
        yield AddGroup(replace(event.group, options=rest))


def _set_plainly(event: SetOption) -> tuple[SetOption, ...]:
    """Set, and not filled in place; to a number."""
    if event.in_place:
        return (replace(event, in_place=False),)
    return (replace(event, value=event.value.value),) if isinstance(event.value, Scalar) else ()


def _shorter(run: Run) -> Iterator[Event]:
    return (Run(steps) for steps in (1, run.steps // 16, run.steps // 4, run.steps // 2) if 0 < steps < run.steps)


_PLAINER = of_every_event(
    {
        Step: _Plainer(
            _turns_of_step, lambda e: (replace(e, closure=""), replace(e, scaling=""), replace(e, within=""))
        ),
        Reload: _Plainer(
            lambda e: sum(getattr(e, f.name) != f.default for f in fields(e)),
            lambda e: (Reload(), *(replace(e, **{f.name: f.default}) for f in fields(e))),
        ),
        Spoil: _Plainer(
            lambda e: (e.way != "assigned") + (e.buffer != 0),
            lambda e: (replace(e, way="assigned"), replace(e, buffer=0)),
        ),
        AddGroup: _Plainer(lambda _: 1, _with_fewer_options),
        SetOption: _Plainer(lambda e: int(e.in_place), _set_plainly),
        Run: _Plainer(lambda e: e.steps.bit_length(), _shorter),
        **dict.fromkeys((Accumulate, ZeroGrad, Freeze, Hook, Schedule, ScheduleStep, Fail, Refuse, Handle), _AS_IT_IS),
    }
)


def _with_parameter(trace: Trace, index: int, parameter: Parameter) -> Trace:
    parameters = [*trace.parameters[:index], parameter, *trace.parameters[index + 1 :]]
    for n, p in enumerate(parameters):
        # What lies in the gaps of another has its shape and dtype.
        host = None if p.within is None else parameters[p.within]
        if host is not None and (host.shape, host.dtype, host.layout) != (p.shape, p.dtype, "sliced"):
            parameters[n] = replace(p, within=None)
    parameters[index] = parameter = replace(parameters[index], values=_as_many(parameter.values, parameter))
    changed = replace(trace, parameters=tuple(parameters))
    return _with_gradients(changed, index, lambda g: _fitted(g, parameter))


def _fitted(gradient: Gradient, parameter: Parameter) -> Gradient:
    """A gradient as one of this parameter: some layouts need four dimensions or complex numbers."""
    layout = gradient.layout
    if (layout == "channels_last" and len(parameter.shape) != 4) or (
        layout == "conjugated" and not is_complex(parameter.dtype)
    ):
        layout = "sliced"
    if gradient.sparse is not None:
        return replace(gradient, layout=layout, sparse=gradient.sparse.within(parameter.shape))
    return replace(gradient, layout=layout, values=_as_many(gradient.values, parameter))


def _as_many(values: Values, parameter: Parameter) -> Values:
    """As many of the values that are written out as a parameter has elements."""
    count = math.prod(in_reals(parameter.shape, parameter.dtype))
    if values.recipe != "listed" or len(values.listed) == count:
        return values
    return replace(values, listed=tuple(itertools.islice(itertools.cycle(values.listed or (0.0,)), count)))


def _with_gradients(trace: Trace, index: int, change: Callable[[Gradient], Gradient]) -> Trace:
    """All gradients of one parameter changed."""
    return trace.with_gradients(lambda i, g: change(g) if i == index else g)


def _fewer_entries(gradient: Gradient) -> Gradient:
    """Half as many entries of a sparse gradient."""
    if gradient.sparse is None:
        return gradient
    entries = gradient.sparse.entries
    return replace(gradient, sparse=replace(gradient.sparse, entries=entries[: (len(entries) + 1) // 2]))


def _reseeded(gradient: Gradient, seed: int) -> Gradient:
    return replace(gradient, values=replace(gradient.values, seed=seed))
