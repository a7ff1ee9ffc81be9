"""Make a failing life smaller, on the trace itself.

So a life shrinks below what is ever drawn (five events, shapes that cross vector widths), a trace from a file shrinks as well
as one just drawn, and each attempt is a life that makes sense.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import replace

from stepcheck.harness.checks import Finding
from stepcheck.harness.trace import Gradient, Objective, Parameter, Step, Trace, Values, is_complex

_SMALL_SHAPES: tuple[tuple[int, ...], ...] = ((1,), (2,), (3,), (2, 2), (3, 2), (5,), (8,), (9,), (1, 2, 3, 2), (33,))
_ZERO = Values("constant")
_QUARTERS = Values("quarters", 1, 2.0**-7, 2.0)


def size(trace: Trace) -> tuple[int, ...]:
    """What makes a life hard to read, most important first."""
    gradients = [g for e in trace.events for g in getattr(e, "gradients", {}).values() if g is not None]
    tensors = (*trace.parameters, *gradients)
    return (
        len(trace.parameters) + len(trace.groups),
        len(trace.events),
        sum(p.numel for p in trace.parameters),
        sum(len(g.options) for g in trace.groups),
        sum(t.layout != "contiguous" for t in tensors) + sum(is_complex(p.dtype) for p in trace.parameters),
        sum(1 + len(g.sparse.entries) for g in gradients if g.sparse is not None),
        sum(t.values not in (_ZERO, _QUARTERS) for t in tensors),
        sum(
            (o.kind != "quadratic") + 2 * (o.centre not in (_ZERO, _QUARTERS)) + (o.centre != _ZERO) + (o.scale != 1)
            for o in (getattr(e, "objective", None) for e in trace.events)
            if o is not None
        ),
    )


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
    yield replace(trace, events=trace.events[: last + 1])
    for index in range(len(trace.parameters) if len(trace.parameters) > 1 else 0):
        yield trace.keeping(set(range(len(trace.parameters))) - {index})
    for n in range(len(trace.events)):
        yield replace(trace, events=trace.events[:n] + trace.events[n + 1 :])
    for n, group in enumerate(trace.groups):
        for name in group.options:
            rest = {k: v for k, v in group.options.items() if k != name}
            yield replace(trace, groups=(*trace.groups[:n], replace(group, options=rest), *trace.groups[n + 1 :]))
    for n, event in enumerate(trace.events):
        if isinstance(event, Step) and event.objective is not None:
            for simpler in (
                Objective(),
                replace(event.objective, centre=_ZERO),
                replace(event.objective, centre=_QUARTERS),
                replace(event.objective, scale=1.0),
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
        yield _with_parameter(trace, index, replace(p, layout="contiguous"))
        yield _with_parameter(trace, index, replace(p, values=_ZERO))
        yield _with_gradients(trace, index, lambda g: replace(g, layout="contiguous"))
        yield _with_gradients(trace, index, lambda g: replace(g, sparse=None))
        yield _with_gradients(trace, index, _fewer_entries)
        yield _with_gradients(trace, index, lambda g: replace(g, values=_QUARTERS))


def _with_parameter(trace: Trace, index: int, parameter: Parameter) -> Trace:
    changed = replace(trace, parameters=(*trace.parameters[:index], parameter, *trace.parameters[index + 1 :]))
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
    events = tuple(
        replace(e, gradients={i: change(g) if g is not None and i == index else g for i, g in e.gradients.items()})
        if isinstance(e, Step)
        else e
        for e in trace.events
    )
    return replace(trace, events=events)


def _fewer_entries(gradient: Gradient) -> Gradient:
    """Half as many entries of a sparse gradient."""
    if gradient.sparse is None:
        return gradient
    entries = gradient.sparse.entries
    return replace(gradient, sparse=replace(gradient.sparse, entries=entries[: (len(entries) + 1) // 2]))


def _reseeded(gradient: Gradient, seed: int) -> Gradient:
    return replace(gradient, values=replace(gradient.values, seed=seed))
