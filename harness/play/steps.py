"""A step: with a closure or without, within a scaler of gradients, and what became of each parameter."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stepcheck.harness.life import objectives
from stepcheck.harness.life.events import DEFAULT_DTYPES, LOSSES, Objective, Step
from stepcheck.harness.life.memory import Allocation, copy, copy_gradient, identical, values_of
from stepcheck.harness.life.values import in_reals
from stepcheck.harness.numbers.comparison import reals
from stepcheck.harness.play import resume
from stepcheck.harness.play.building import construct
from stepcheck.harness.play.recording import Evaluation, ParameterStep, Snapshot, StepRecord
from stepcheck.harness.play.signature import plain_step
from stepcheck.harness.play.tensors import Given, as_parameter, backward, give_ones
from stepcheck.harness.play.untouched import untouched
from stepcheck.harness.support import threads
from stepcheck.harness.support.text import named

if TYPE_CHECKING:
    from stepcheck.harness.play.player import Player


#: Causes of what the surroundings of a step show.
ENABLED, GRAPH, DETACHED, PAST = "grad mode around the step", "graph", "gradient's graph", "past gradients"
#: What is not done to somebody's class, and why, in words.
PLAIN_STEPS = "steps in other surroundings: it takes none without a closure"
AS_MANY_THREADS = (
    "steps with more threads: this process was forked from one that had used several, and would wait for those for ever"
)
#: By how many the threads are more.
MORE_THREADS = 2


def step(player: Player, event: int, step: Step) -> None:
    """Assign gradients, step, and take note of each parameter before and after."""
    how = player.closure
    closure = step.closure if step.closure and player.has("closures", how.taken) else ""
    closure = closure or ("tensor" if how.required and step.objective is None else "")
    if not closure:
        player.tensors.assign_all(step.gradients)
    _surround(player, step.within, plainly=not closure)
    before, counts = player.snapshot(), player.counts()
    given = player.given()
    evaluations: list[Evaluation] = []
    # A scaler steps without a closure.
    scaled = (
        bool(step.scaling)
        and player.has("scaling", not how.required)
        and any(g is not None for g in given[0])
        and player.is_torch("scaling")
    )
    if scaled:
        if _overflows(player):
            _skipped(player, step, before)
            return
        given = _summed_by_scaler(player, given)
        _scaled_step(player, step)
    elif step.objective is not None:
        _step_with(player, _Evaluator(player, step.objective, evaluations))
        given = player.given()
    elif closure:
        call = _Closure(player, step)
        _step_with(player, call)
        given = call.given or given
    else:
        _step_within(player, step.within)
    player.hooks.expect("step_pre", "step_post")
    player.latest = None
    player.latest = player.snapshot()
    # An objective writes the gradients itself, and a scaler unscales them.
    written = step.objective is None and not scaled
    known = player.known()
    parameters = [
        ParameterStep(
            value=before[i][0],
            gradient=given[0][i],
            state=before[i][1],
            value_after=player.latest[i][0],
            state_after=player.latest[i][1],
            gradient_written=written and player.tensors.written(i, given[0][i], given[1][i], known=i in known),
            beside_written=player.tensors.allocations[i].written_at(player.tensors.outside[i]),
            begun=i in player.begun,
        )
        for i in range(len(player.parameters))
    ]
    hyper, pairs = tuple(player.hyper), list(zip(counts, player.counts(), strict=False))
    player.recording.steps.append(StepRecord(event, player.playing, hyper, parameters, evaluations, pairs))
    if player.subject.shape is not None and player.subject.shape.shares:
        player.begun.update(known)  # those without a gradient as well


@contextmanager
def _by_default(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _with_more_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before + MORE_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _surround(player: Player, within: str, *, plainly: bool) -> None:
    """What has to be done before a step for it to stand in these surroundings."""
    if within:
        player.has(PLAIN_STEPS, plainly)
    if within == "graph":
        player.tensors.attach_graphs()
    elif within == "another optimizer":
        _step_another(player)


def _step_within(player: Player, within: str) -> None:
    """A step in these surroundings, and what it leaves of them."""
    with _surroundings(player, within):
        player.optimizer.step()
        if within == "no_grad":
            told = "leaves gradients enabled, which were disabled around it"
            player.note("settings-kept", not torch.is_grad_enabled(), ENABLED, told)
    if within == "graph":
        _note_graphs(player)


def _surroundings(player: Player, within: str) -> AbstractContextManager[Any]:
    """In what a step is taken."""
    if within == "no_grad":
        return torch.no_grad()
    if within == "autocast":
        return torch.autocast(player.subject.device, torch.bfloat16)
    if within == "more threads" and player.has(AS_MANY_THREADS, threads.spreads()):
        return _with_more_threads()
    return _by_default(getattr(torch, within.split(maxsplit=1)[0])) if within in DEFAULT_DTYPES else nullcontext()


def _step_another(player: Player) -> None:
    """Let another optimizer of the class step, over parameters of the same shapes, with gradients of ones."""
    if player.another is None:
        keywords, groups = player.keywords, player.groups
        player.groups = list(player.trace.groups)
        options = player.options[: len(player.groups)]
        copies = [as_parameter(player.subject, p.detach().clone()) for p in player.parameters]
        player.another = construct(player, player.playing, options, player.trace.form, copies), copies
        player.keywords, player.groups = keywords, groups
    optimizer, parameters = player.another
    give_ones(player.subject, parameters)
    plain_step(optimizer)()


def _note_graphs(player: Player) -> None:
    """That no tensor of the state hangs in a graph, which would grow with each step, nor the graphs of earlier steps are held; and that the
    gradient still has its own.
    """
    state = getattr(player.optimizer, "state", {})
    for i, p in enumerate(player.parameters):
        kept = state.get(p) if hasattr(state, "get") else None
        hanging = [name for name, t in resume.tensors(kept) if t.requires_grad]
        told = f"leaves {hanging[0]} in the gradient's graph, which grows with each step" if hanging else ""
        player.note("storage-stays", not hanging, GRAPH, told, i)
        player.note(
            "storage-stays", not player.tensors.is_detached(i), DETACHED, "takes the gradient out of its graph", i
        )
        past = player.tensors.past(i)
        told = f"still holds the gradients of {past} earlier steps, and their graphs: each step keeps one more"
        player.note("storage-stays", past < 2, PAST, told, i)


def _step_with(player: Player, closure: _Closure | _Evaluator) -> None:
    returned = player.call_step(closure)
    once = closure.calls == 1 if isinstance(closure, _Closure) else closure.calls >= 1
    player.note("closure", once, "calls", f"calls its closure {closure.calls} times")
    if not closure.calls:
        return
    player.note("closure", closure.with_gradients, "grad mode", "calls its closure with gradients disabled")
    told = f"returns {_short(returned)} where its closure returned {_short(closure.result)}"
    player.note("closure", _is_result(returned, closure.result), "result", told)


def _overflows(player: Player) -> bool:
    """Scale the gradients, as the backward pass of a scaled loss would; whether one of them then is infinite or NaN."""
    if player.scaler is None:
        player.scaler = torch.amp.GradScaler(player.subject.device, growth_interval=2)
        player.scaler.scale(torch.zeros((), device=player.subject.device))
    scale, finite = player.scaler.get_scale(), True
    for i in (i for g in player.groups for i in g.parameters):
        p, allocation = player.parameters[i], player.tensors.gradients[i]
        if p.grad is None:
            continue
        if allocation is not None and isinstance(allocation, Allocation) and allocation.repeats:
            p.grad = p.grad.clone()  # nothing can be multiplied in place that stands in memory once for many
        with torch.no_grad():
            values = values_of(p.grad)
            values.mul_(scale)
            if p.grad.is_sparse and p.dtype is torch.float16:
                # So the scaler does before it looks: the sum of entries, its rounding and its overflow are the scaler's.
                p.grad = p.grad.coalesce()
                values = values_of(p.grad)
            finite &= bool(torch.isfinite(values).all())
    return not finite


def _summed_by_scaler(player: Player, given: Given) -> Given:
    """The gradients that a step is given by the scaler: of sparse ones in float16, the sums of entries."""
    assert player.scaler is not None
    gradients = list(given[0])
    for i, p in enumerate(player.parameters):
        if gradients[i] is not None and p.grad is not None and p.grad.is_sparse and p.dtype is torch.float16:
            gradients[i] = copy_gradient(p.grad / player.scaler.get_scale())
    return gradients, given[1]


def _scaled_step(player: Player, step: Step) -> None:
    assert player.scaler is not None
    if getattr(player.subject.make, "_unscales", False):
        player.optimizer._step_supports_amp_scaling = player.subject.unscales(player.trace, step)  # noqa: SLF001
    if step.scaling == "unscale" and not getattr(player.optimizer, "_step_supports_amp_scaling", False):
        player.scaler.unscale_(player.optimizer)
    player.scaler.step(player.optimizer)
    player.scaler.update()


def _skipped(player: Player, step: Step, before: Snapshot) -> None:
    _scaled_step(player, step)
    player.hooks.calls.clear()  # a fused step is called and does nothing, others are not called
    untouched(player, "skipped-step", "skipped", before)


class _Closure:
    """A closure that assigns the gradients of a step."""

    def __init__(self, player: Player, step: Step) -> None:
        self.player, self.step = player, step
        self.calls, self.with_gradients = 0, True
        self.result: Any = None
        self.given: Given | None = None

    def __call__(self) -> Any:
        self.calls += 1
        self.with_gradients &= torch.is_grad_enabled()
        player, kind = self.player, self.step.closure
        player.tensors.assign_all(self.step.gradients)
        loss = torch.tensor(LOSSES.get(kind, 0.75))
        if kind == "backward" and not player.subject.differentiable:
            loss = self._backward() or loss
        self.given = player.given()
        self.result = None if kind == "none" else float(loss) if kind == "float" else loss
        return self.result

    def _backward(self) -> torch.Tensor | None:
        """The same gradients once more, by autograd."""
        player, pairs = self.player, []
        for i, gradient in self.step.gradients.items():
            p = player.parameters[i]
            if gradient is not None and gradient.sparse is None and p.requires_grad:
                player.tensors.put_aside(i)
                p.grad = None
                pairs.append((p, player.tensors.product(i, gradient)))
        return backward(pairs) if pairs and self.with_gradients else None


class _Evaluator:
    """A closure that evaluates an objective and its gradients, and takes note."""

    def __init__(self, player: Player, objective: Objective, evaluations: list[Evaluation]) -> None:
        self.player, self.objective, self.evaluations = player, objective, evaluations
        self.calls, self.with_gradients = 0, True
        self.result: Any = None
        self.shapes = [in_reals(p.shape, p.dtype) for p in player.trace.parameters]
        seeds = range(objective.centre.seed, objective.centre.seed + len(self.shapes))
        self.centres = [
            torch.from_numpy(replace(objective.centre, seed=seed).realise((math.prod(shape),))).to(
                player.subject.device
            )
            for seed, shape in zip(seeds, self.shapes, strict=True)
        ]

    def __call__(self) -> torch.Tensor:
        self.calls += 1
        self.with_gradients &= torch.is_grad_enabled()
        parameters = self.player.parameters
        for p in parameters:
            if self.objective.set_to_none or p.grad is None:
                p.grad = None
            else:
                p.grad.zero_()
        with torch.enable_grad():
            loss = objectives.loss(self.objective, parameters, self.centres)
        if loss.requires_grad:
            loss.backward()  # type: ignore[no-untyped-call]
        point = np.concatenate([reals(copy(p)) for p in parameters])
        zeros = [np.zeros(math.prod(shape)) for shape in self.shapes]
        gradient = [z if p.grad is None else reals(copy(p.grad)) for p, z in zip(parameters, zeros, strict=True)]
        self.evaluations.append(Evaluation(point, float(loss.detach()), np.concatenate(gradient)))
        # Of several evaluations, a step returns the first.
        self.result = loss if self.calls == 1 else self.result
        return loss


def _is_result(returned: Any, expected: Any) -> bool:
    if isinstance(returned, (torch.Tensor, float)) and isinstance(expected, (torch.Tensor, float)):
        return identical(float(returned), float(expected))
    return returned is expected


def _short(x: Any) -> str:
    return f"{float(x):g}" if isinstance(x, torch.Tensor) and x.numel() == 1 else named(x)[:40]
