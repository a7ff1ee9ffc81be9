"""Make a failing life smaller, on the trace itself.

So a life shrinks below what is ever drawn (five events, shapes that cross vector widths), a trace from a file shrinks as well
as one just drawn, and each attempt is a life that makes sense.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import fields, replace

from stepcheck.harness.checks import Finding
from stepcheck.harness.trace import (
    AddGroup,
    Event,
    Gradient,
    Objective,
    Parameter,
    Reload,
    Scalar,
    SetOption,
    Step,
    Trace,
    Values,
    is_complex,
    plain,
)

_SMALL_SHAPES: tuple[tuple[int, ...], ...] = ((1,), (2,), (3,), (2, 2), (3, 2), (5,), (8,), (9,), (1, 2, 3, 2), (33,))
_ZERO = Values("constant")
_RELOAD = Reload()
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


def _turns_of(trace: Trace) -> int:
    """In how many ways a life is not told plainly."""
    tensors = sum(isinstance(v, Scalar) for o in trace.given_options for v in o.values())
    pairs = sum(p.within is not None for p in trace.parameters)
    return sum(map(_turns, trace.events)) + (trace.form != "list") + pairs + tensors


def _turns(event: Event) -> int:
    """In how many ways an event is not the plain one of its kind."""
    if isinstance(event, Step):
        turned = sum(g is not None and g.negated for g in event.gradients.values())
        return bool(event.closure) + bool(event.scaling) + turned
    if isinstance(event, Reload):
        return sum(getattr(event, f.name) != getattr(_RELOAD, f.name) for f in fields(event))
    return int(isinstance(event, AddGroup))


def cut(
    trace: Trace, finding: Finding, recheck: Callable[[Trace], Finding | None], attempts: int = 2000
) -> tuple[Trace, Finding]:
    """Take every smaller life that still shows the finding, until none does.

    Args:
        recheck: the finding in a smaller life, or ``None`` where it is gone.
        attempts: how many smaller lives to try at most.
    """
    changed = True
    while changed:
        changed = False
        for smaller in _smaller(trace, finding):
            if size(smaller) >= size(trace):
                continue
            if attempts <= 0:
                return trace, finding
            attempts -= 1
            found = recheck(smaller)
            if found is not None:
                trace, finding, changed = smaller, found, True
                break
    return trace, finding


def _smaller(trace: Trace, finding: Finding) -> Iterator[Trace]:
    last = -1 if finding.event is None else finding.event
    yield _tidy(replace(trace, events=trace.events[: last + 1]))
    for index in range(len(trace.parameters) if len(trace.parameters) > 1 else 0):
        yield trace.keeping(set(range(len(trace.parameters))) - {index})
    for n in range(len(trace.events)):
        yield _tidy(replace(trace, events=trace.events[:n] + trace.events[n + 1 :]))
    yield replace(trace, form="list")
    yield from _with_plainer_events(trace)
    for n, group in enumerate(trace.groups):
        for name in group.options:
            rest = {k: v for k, v in group.options.items() if k != name}
            yield replace(trace, groups=(*trace.groups[:n], replace(group, options=rest), *trace.groups[n + 1 :]))
        if any(isinstance(value, Scalar) for value in group.options.values()):
            numbers = replace(group, options=plain(group.options))
            yield replace(trace, groups=(*trace.groups[:n], numbers, *trace.groups[n + 1 :]))
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
    for index, p in enumerate(trace.parameters):
        for shape in _SMALL_SHAPES:
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


def _tidy(trace: Trace) -> Trace:
    """Without parameters that stand in no group any more."""
    return trace.keeping(trace.group_of.keys()) if len(trace.group_of) < len(trace.parameters) else trace


def _with_plainer_events(trace: Trace) -> Iterator[Trace]:
    added = len(trace.groups)
    for n, event in enumerate(trace.events):
        before, after = trace.events[:n], trace.events[n + 1 :]
        for simpler in _plainer(event):
            yield replace(trace, events=(*before, simpler, *after))
        if isinstance(event, AddGroup):
            if added == len(trace.groups):  # the first to be added can be there at once
                yield replace(trace, groups=(*trace.groups, event.group), events=before + after)
            added += 1


def _plainer(event: Event) -> Iterator[Event]:
    if isinstance(event, Step):
        yield replace(event, closure="")
        yield replace(event, scaling="")
    elif isinstance(event, Reload):
        yield _RELOAD
        for f in fields(event):
            yield replace(event, **{f.name: getattr(_RELOAD, f.name)})
    elif isinstance(event, SetOption) and isinstance(event.value, Scalar):
        yield replace(event, value=event.value.value)
    elif isinstance(event, AddGroup):
        for name in event.group.options:
            rest = {k: v for k, v in event.group.options.items() if k != name}
            yield AddGroup(replace(event.group, options=rest))


def _with_parameter(trace: Trace, index: int, parameter: Parameter) -> Trace:
    parameters = [*trace.parameters[:index], parameter, *trace.parameters[index + 1 :]]
    for n, p in enumerate(parameters):
        # What lies in the gaps of another has its shape and dtype.
        host = None if p.within is None else parameters[p.within]
        if host is not None and (host.shape, host.dtype, host.layout) != (p.shape, p.dtype, "sliced"):
            parameters[n] = replace(p, within=None)
    changed = replace(trace, parameters=tuple(parameters))
    return _with_gradients(changed, index, lambda g: _fitted(g, parameter))


def _fitted(gradient: Gradient, parameter: Parameter) -> Gradient:
    """A gradient as one of this parameter: some layouts need four dimensions or complex numbers."""
    layout = gradient.layout
    if (layout == "channels_last" and len(parameter.shape) != 4) or (
        layout == "conjugated" and not is_complex(parameter.dtype)
    ):
        layout = "sliced"
    sparse = None if gradient.sparse is None else gradient.sparse.within(parameter.shape)
    return replace(gradient, layout=layout, sparse=sparse)


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
