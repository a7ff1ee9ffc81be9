"""Invariants that a plain comparison decides, made while the life was played; and what must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from stepcheck.harness.checking.check import Check, asks, breaches
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.checking.witness import SAME, Witness, Writer
from stepcheck.harness.life.events import (
    LOSSES,
    AddGroup,
    Hook,
    Refuse,
    Step,
)
from stepcheck.harness.life.memory import GUARD
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.play.recording import CALLERS_GROUPS
from stepcheck.harness.play.steps import DETACHED, ENABLED, GRAPH, PAST
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.play.validation import PARAMETERS
from stepcheck.harness.support import settings

if TYPE_CHECKING:
    from stepcheck.harness.checking.case import Evidence


def _validates_as_it_likes(subject: Subject) -> str:
    if subject.explicit:
        return "whether somebody's class validates is theirs to say; to have it judged, ask for refuses-invalid alone"
    return "it validates as its class does in every mode" if subject.cost > 9 else ""


@asks(
    "refuses-invalid",
    "Is what is invalid refused, at construction and in a group?",
    lambda e: sum(not a.outcome.control_failed for a in e.recording.attempts),
    _validates_as_it_likes,
    witness=Witness(lambda w: [f"assert not accepted, {w.finding.summary!r}"]),
)
def refuses_invalid(evidence: Evidence) -> Iterator[Finding]:
    events = [n for n, e in enumerate(evidence.trace.events) if isinstance(e, Refuse)]
    for event, attempt in zip(events, evidence.recording.attempts, strict=False):
        cell, outcome = attempt.cell, attempt.outcome
        about_parameters = cell.option == PARAMETERS
        if outcome.control_failed or (cell.place == "load_state_dict" and not about_parameters):
            continue  # what options a dictionary may hold is documented nowhere
        given = f"{cell.option}={cell.value!r} ({cell.kind})"
        if outcome.refused and outcome.changed:
            yield Finding(
                "refuses-invalid",
                f"{cell.place} changes",
                event,
                f"{cell.place} refuses {given} and keeps it all the same",
            )
        elif not outcome.declared and cell.place == "construction":
            yield Finding("refuses-invalid", f"{cell.option} {cell.kind}", event, f"the constructor accepts {given}")
        elif not outcome.declared and about_parameters:
            told = f"{given} is accepted in {'a group' if cell.place == 'group' else cell.place + '()'}"
            yield Finding("refuses-invalid", f"{cell.option} {cell.kind} in {cell.place}", event, told)
        elif not outcome.declared and attempt.at_construction.declared:
            told = f"{given}, refused at construction, is accepted in {'a group' if cell.place == 'group' else cell.place + '()'}"
            yield Finding("refuses-invalid", f"in {cell.place}", event, told)


def _without_spoiling(subject: Subject) -> str:
    if subject.spec.closure:
        return "its state is of all parameters together"
    return "the state of a differentiable step is a part of its graph" if subject.differentiable else ""


def _noted(
    name: str,
    question: str,
    witness: Witness,
    without_meaning: Callable[[Subject], str] = lambda subject: "",
    needs: str = "",
) -> Check:
    """The check of an invariant that the player compares."""

    @asks(name, question, lambda e: e.recording.looked[name], without_meaning, needs, witness)
    def find(evidence: Evidence) -> Iterator[Finding]:
        return breaches(evidence, name)

    return find


def _place(writer: Writer) -> str:
    p = f"params[{writer.finding.parameter}]"
    return f"[getattr({p}, k) for k in ('shape', 'dtype')] + [{p}.data_ptr(), {p}.stride()]"


def _stays(writer: Writer) -> Sequence[str]:
    if writer.finding.cause == GRAPH:
        tensors = "[v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]"
        return [f"assert not any(t.requires_grad for t in {tensors}), optimizer.state"]
    if writer.finding.cause == DETACHED:
        return [f"assert params[{writer.finding.parameter}].grad.requires_grad"]
    if writer.finding.cause == PAST:
        return [
            "import gc; tensors = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor) and t.grad_fn]",
            "past = [t for t in tensors if not any(t is p.grad for p in params)]",
            "assert len(past) < 2, len(past)",
        ]
    return [f"assert before == {_place(writer)}, (before, {_place(writer)})"]


storage_stays = _noted(
    "storage-stays",
    "Do parameters stay where they are in memory, with their shape, strides and dtype, and are graphs of gradients left alone?",
    Witness(_stays, lambda w: [] if w.finding.cause in (GRAPH, DETACHED, PAST) else [f"before = {_place(w)}"]),
)


def _holds(writer: Writer) -> Sequence[str]:
    finding = writer.finding
    if finding.option is None:
        events = writer.trace.events[: 0 if finding.event is None else finding.event + 1]
        number = len(writer.trace.groups) + sum(isinstance(e, AddGroup) for e in events)
        return [f"assert len(optimizer.param_groups) == {number}, len(optimizer.param_groups)"]
    group, name, value = finding.option
    got = writer.subject.terms.read(f"optimizer.param_groups[{group}]", name)
    if isinstance(value, tuple) and writer.trace.spelling != "plain":
        got = f"tuple({got})"  # whether it keeps a list is its own affair
    return [f"assert {got} == {writer.literal(value)}, {got}"]


options_hold = _noted(
    "options-hold",
    "Does each group keep the options that it was given, or that were set since, by hand or by a schedule?",
    Witness(_holds),
)


def _setting(writer: Writer) -> Sequence[str]:
    """What the setting of the process that the cause names is at first: the constructor may change it as well."""
    cause = writer.finding.cause
    return [f"before = {settings.EXPRESSIONS[cause]}"] if cause in settings.EXPRESSIONS else []


def _called(writer: Writer) -> Sequence[str]:
    event = writer.event
    if isinstance(event, Step) and event.objective is not None:
        return ["assert points, 'the closure was not called'"]
    kind = event.closure if isinstance(event, Step) else ""
    loss = LOSSES.get(kind, 0.75)
    compared = f"float(result) == {loss}" if loss == loss else "float(result) != float(result)"  # noqa: PLR0124 - NaN
    expected = "result is None" if kind == "none" else f"result is not None and {compared}"
    return ["assert calls == [True], calls", f"assert {expected}, result"]


closure = _noted(
    "closure",
    "Is a closure called with gradients enabled, as often as specified, and its loss returned?",
    Witness(_called, first=_setting),
    needs="closures",
)


def _called_once(writer: Writer) -> Sequence[str]:
    cause = writer.finding.cause
    kinds = [e.kind for e in writer.trace.events[: writer.finding.event] if isinstance(e, Hook)]
    return [f"assert calls.count({cause!r}) == {kinds.count(cause)}, calls"]


def _patched(writer: Writer) -> Sequence[str]:
    """The first instance of torch's own class patches its step."""
    name = writer.subject.spec.name
    return [f"torch.optim.{name}([torch.zeros(1, 1, requires_grad=True)])"] if writer.subject.explicit else []


hooks_run_once = _noted(
    "hooks-run-once",
    "Is each registered hook run once, when its turn comes?",
    Witness(_called_once, lambda _: ["calls.clear()"], first=_patched),
    needs="hooks",
)

#: Expressions: all that a step may change; the gradients.
_ALL = "str([(p.detach(), optimizer.state.get(p)) for p in params])"
_GRADIENTS = "str([p.grad if p.grad is None else p.grad.to_dense().tolist() for p in params])"


def _fails(writer: Writer) -> Sequence[str]:
    if writer.finding.cause.startswith(("swallows", "not raised")):
        return ["assert raised, 'it does not raise'"]
    return [f"after = {_GRADIENTS if writer.finding.cause == 'gradient' else _ALL}", SAME]


failed_step = _noted(
    "failed-step",
    "Does a step that fails raise, and change nothing?",
    Witness(
        _fails,
        lambda w: [f"before = {_GRADIENTS if w.finding.cause == 'gradient' else _ALL}"],
        # Before a gradient that does not fit stands where another stood, which comes back.
        at=lambda w: "kept = " if w.finding.cause == "gradient" else "",
    ),
    needs="closures hooks",
)


def _arrives(writer: Writer) -> Sequence[str]:
    arrival = writer.finding.spoilt
    if arrival is None:
        return []
    p = writer.trace.parameters[arrival.parameter]
    place = f"params[{arrival.parameter}].detach()"
    if arrival.written:
        return [
            "guarded.fill_(torch.nan)  # its own elements; all others must be what they were",
            "memory = guarded.as_strided((guarded.untyped_storage().nbytes() // guarded.element_size(),), (1,), 0)",
            f"assert (memory.isnan() | (memory == {GUARD!r})).all(), memory",
        ]
    if arrival.element is None:
        return [f"assert raised or {place}.shape == {p.shape}, {place}.shape"]
    part = f"torch.view_as_real({place})" if is_complex(p.dtype) else place
    return [
        f"got, expected, budget = float({part}.reshape(-1)[{arrival.element}]), {arrival.expected!r}, {arrival.budget!r}  # with the right tensor",
        'assert raised or abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}, and it does not raise"',
    ]


malformed_state = _noted(
    "malformed-state",
    "Is malformed state refused, or stepped as the same values in a right tensor would be?",
    Witness(_arrives),
    _without_spoiling,
    needs="state",
)
skipped_step = _noted(
    "skipped-step",
    "Does a step that gradient scaling skips change nothing?",
    Witness(lambda _: [f"after = {_ALL}", SAME], lambda _: [f"before = {_ALL}"]),
    lambda subject: "gradient scaling takes no closure" if subject.spec.closure else "",
    needs="scaling",
)

_LOADS = "optimizer.load_state_dict(saved)"


def _given(writer: Writer) -> str:
    """The caller's dictionary that must stay as it is."""
    cause = writer.finding.cause
    if cause == CALLERS_GROUPS:
        return "groups"
    return "group" if "group" in cause else "saved"


dicts_unchanged = _noted(
    "dicts-unchanged",
    "Are the dictionaries that a caller gives left as they are?",
    Witness(
        lambda w: [f"after = str({_given(w)})", SAME],
        lambda w: [f"before = str({_given(w)})"],
        at=lambda w: "optimizer = " if w.finding.cause == CALLERS_GROUPS else _LOADS,
        names_groups=lambda w: w.finding.cause == CALLERS_GROUPS,
    ),
)
loaded_state_apart = _noted(
    "loaded-state-apart",
    "Does the state that is loaded share no memory with its source?",
    Witness(
        lambda _: [
            "mine = [v for s in optimizer.state.values() for v in s.values() if torch.is_tensor(v)]",
            "theirs = [v for s in saved['state'].values() for v in s.values() if torch.is_tensor(v)]",
            "assert not any(a is b for a in mine for b in theirs)",
        ]
    ),
)

_RANDOM = "[torch.get_rng_state().tolist(), random.getstate()]"

random_state = _noted(
    "random-state",
    "Is the state of the random number generators left alone?",
    without_meaning=lambda subject: "" if subject.referenced else "whether it may draw random numbers a reference says",
    witness=Witness(lambda _: [f"assert before == {_RANDOM}"], lambda _: [f"import random; before = {_RANDOM}"]),
)


def _now(writer: Writer) -> str:
    return settings.EXPRESSIONS.get(writer.finding.cause, "str(optimizer.defaults)")


def _kept(writer: Writer) -> Sequence[str]:
    if writer.finding.cause == ENABLED:
        return ["assert not enabled, 'it leaves gradients enabled, which were disabled'"]
    return [f"assert before == {_now(writer)}, (before, {_now(writer)})"]


settings_kept = _noted(
    "settings-kept",
    "Are the settings of the process, and the optimizer's own defaults, left as they were?",
    Witness(
        _kept,
        lambda w: [] if _setting(w) or w.finding.cause == ENABLED else [f"before = {_now(w)}"],
        first=_setting,
    ),
)
