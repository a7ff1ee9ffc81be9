"""What is invalid, and who refuses it: every wrong value of every option, wherever an option can be given.

The matrix is derived from a Spec: the domains, lengths, choices and conflicts that it declares say what is wrong, so a new Spec
has its matrix for free. A refusal counts only where the same call with a valid value, the control, is accepted.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stepcheck.harness.life.events import PLACES, Group, Option, Parameter, Refuse
from stepcheck.harness.life.reading import option_to_json
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.support.text import said
from stepcheck.reference.spec import Domain, Hyper, Spec

_IN_WORDS = dict(
    zip(PLACES, ("at construction", "in a group", "in add_param_group", "in load_state_dict"), strict=True)
)
#: The parameters themselves, which are wrong in ways of their own.
PARAMETERS = "params"
_VALID = "valid"
#: Each way to give wrong parameters, in symbols, and where it can be tried. Twice the same in ``group`` is in two groups. A dictionary that is
#: loaded is of an optimizer with other parameters or groups, for one with those that stand behind it: none of its entries is known to be of
#: any of them.
_WRONG_PARAMETERS: dict[str, dict[str, str]] = {
    "duplicate": {"construction": "[p, p]", "group": "[p], [p]", "add_param_group": "[p], [p]"},
    "empty": {"construction": "[]"},
    "not a tensor": {"construction": "[p, 1.0]", "add_param_group": "[1.0]"},
    "not a leaf": {"construction": "[p, 2 * q]", "add_param_group": "[2 * q]"},
    "fewer": {"load_state_dict": "[p] for [p, q]"},
    "more": {"load_state_dict": "[p, q] for [p]"},
    "of fewer groups": {"load_state_dict": "[p] for [p], [q]"},
    "of more groups": {"load_state_dict": "[p], [q] for [p]"},
}
#: What code raises that stumbled over a value; nobody raises these to refuse one.
_STUMBLES = frozenset(
    {"AttributeError", "IndexError", "KeyError", "NameError", "OverflowError", "UnboundLocalError", "ZeroDivisionError"}
)
#: Every Spec takes a parameter of this shape.
_SHAPE = (2, 3)


@dataclass(frozen=True, eq=False)
class Cell:
    """One invalid thing to try.

    Attributes:
        option: the option's name, or ``params``.
        kind: what is wrong with it: "negative", "zero", "too small", "too large", "nan", "inf", "wrong type", "wrong length",
            "not an integer", "not a choice", "conflict"; of ``params``, "duplicate", "empty", "not a tensor", "not a leaf", "fewer", "more",
            "of fewer groups", "of more groups".
        value: the invalid value; of ``params``, a picture of the list.
        place: one of :data:`PLACES`.
        beside: other options that must be given with it, for a conflict; by themselves they are valid.
        judged: whether to accept it is a fault; what nobody documents is recorded alone.
        entry: which entry of a tuple is wrong, where it is one alone.
    """

    option: str
    kind: str
    value: Option
    place: str
    beside: Mapping[str, Option] = field(default_factory=dict)
    judged: bool = True
    entry: int | None = None

    # Of values, == would tell NaN from itself, and not 1 from 1.0 or True.
    def _key(self) -> tuple[object, ...]:
        return (self.option, self.kind, repr(self.value), self.place, repr(sorted(self.beside.items())), self.judged)

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Cell) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())


@dataclass(frozen=True)
class Outcome:
    """What became of one attempt.

    Attributes:
        refused: the call raised.
        exception: the name of the exception's class.
        message: its message.
        changed: the refused call left the optimizer's ``param_groups`` changed all the same.
        warned: the first warning that the control does not give as well.
        control_failed: why nothing could be tried: what the same call raised with a valid value.
    """

    refused: bool = False
    exception: str = ""
    message: str = ""
    changed: bool = False
    warned: str = ""
    control_failed: str = ""

    @property
    def declared(self) -> bool:
        """Whether the caller was told."""
        return self.refused or bool(self.warned)


# What is invalid -----------------------------------------------------------------------------------------------------------


def cells(spec: Spec, options: Collection[str]) -> tuple[Cell, ...]:
    """All that is invalid, by ``spec``, of the options named, in every place where it can be given."""
    wrong = [cell for h in spec.hyper if h.name in options for cell in _wrong(h)]
    wrong += _conflicts(spec, options)
    return tuple(
        # What load_state_dict does with invalid options is documented nowhere.
        replace(cell, place=place, judged=cell.judged and place != "load_state_dict")
        for place in _places(spec)
        for cell in wrong
    )


def parameter_cells(subject: Subject) -> tuple[Cell, ...]:
    """The wrong lists of parameters."""
    return tuple(
        Cell(PARAMETERS, kind, picture, place)
        for kind, pictures in _WRONG_PARAMETERS.items()
        # The parameters of a differentiable step rightly are no leaves.
        if not (subject.differentiable and kind == "not a leaf")
        for place, picture in pictures.items()
        if place in _places(subject.spec) and not ("], [" in picture and _takes_one(subject, place))
    )


def _takes_one(subject: Subject, place: str) -> bool:
    """Whether it takes one group alone, so that wrong parameters of two are no question."""
    return subject.one_group if place == "load_state_dict" else subject.spec.closure


def _places(spec: Spec) -> tuple[str, ...]:
    # A closure's optimizer takes one group, and refuses a second whatever its options.
    return tuple(place for place in PLACES if not (spec.closure and place == "add_param_group"))


def _wrong(h: Hyper) -> Iterator[Cell]:
    """Each value that a hyperparameter must not have, at construction."""

    def cell(kind: str, value: Option, entry: int | None = None) -> Cell:
        return Cell(h.name, kind, value, PLACES[0], judged=not h.is_flag, entry=entry)

    if h.is_flag:
        yield cell("wrong type", "False")  # which is true
        return
    if h.choices:
        yield cell("not a choice", "no_such_choice")
        yield cell("wrong type", 1.0)
    elif isinstance(h.default, tuple):
        right = h.default
        for n, domain in enumerate(h.entry_domains):
            for kind, entry in _wrong_entries(h, n, domain):
                yield cell(kind, (*right[:n], entry, *right[n + 1 :]), n)
        yield cell("wrong length", right[:-1])
        yield cell("wrong length", (*right, right[-1]))
        yield cell("wrong type", right[-1])
        yield cell("wrong type", str(right[-1]))
    else:
        for kind, number in _wrong_number(h, h.entry_domains[0]):
            yield cell(kind, number)
        yield cell("wrong type", "1" if h.default is None else str(h.default))
    if isinstance(h.default, tuple) or not h.optional:
        yield cell("wrong type", None)


def _wrong_entries(h: Hyper, n: int, domain: Domain) -> Iterator[tuple[str, float | None]]:
    yield from _wrong_number(h, domain)
    if not (h.optional and n == 0):
        yield "wrong type", None


def _wrong_number(h: Hyper, domain: Domain) -> Iterator[tuple[str, float]]:
    """Numbers outside a domain, each once."""
    number = int if h.integer else float
    seen = set()
    for kind, x in _outside(domain):
        # Of whole numbers none lies between.
        value = number(x) if math.isfinite(x) and x == int(x) else x
        if value not in seen and not (h.integer and math.isfinite(x) and x != int(x)):
            seen.add(value)
            yield kind, value
    if h.integer:
        yield "not an integer", max(domain.low, 0.0) + 1.5


def _outside(domain: Domain) -> Iterator[tuple[str, float]]:
    low, high = domain.low, domain.high
    if math.isfinite(low):
        yield "negative" if low >= 0 else "too small", min(low, 0.0) - 1
        if low > 0 or not domain.low_included:
            if low >= 0:
                yield "zero", 0.0
            yield "too small", low / 2 if domain.low_included else low
    if math.isfinite(high):
        if not domain.high_included:
            yield "too large", high
        yield "too large", high + 1
    yield "nan", math.nan
    if math.inf not in domain:
        yield "inf", math.inf
    if not math.isfinite(low):
        yield "inf", -math.inf


def _conflicts(spec: Spec, options: Collection[str]) -> Iterator[Cell]:
    """An option's valid value, and other valid options with which it is refused, at construction.

    The others alone are accepted, and no fewer of them would do. Up to two of them are tried.
    """
    candidates = {h.name: list(_valid(h)) for h in spec.hyper if h.name in options}
    found: list[dict[str, Option]] = []
    for count in range(3):
        for names in itertools.permutations(candidates, count + 1):
            name, others = names[0], sorted(names[1:])
            if others != list(names[1:]):
                continue  # the order of the others says nothing
            for values in itertools.product(*(candidates[n] for n in names)):
                whole: dict[str, Option] = dict(zip(names, values, strict=True))
                beside = {n: whole[n] for n in others}
                known = any(f.items() <= whole.items() and name in f for f in found)
                if not known and _refuses(spec, whole) and not _refuses(spec, beside):
                    found.append(whole)
                    yield Cell(name, "conflict", whole[name], PLACES[0], beside)


def _refuses(spec: Spec, options: Mapping[str, Option]) -> bool:
    try:
        spec.hyper_values(options)
    except ValueError:
        return True
    return False


def _valid(h: Hyper) -> Iterator[Option]:
    """A few valid values of a hyperparameter that are not its default."""
    candidates: tuple[Option, ...]
    if h.is_flag:
        candidates = (True, False)
    elif h.choices:
        candidates = h.choices
    elif isinstance(h.default, tuple):
        candidates = (h.default[::-1],)
    else:
        numbers = (h.entry_domains[0].low, 0.5)
        candidates = tuple(int(x) for x in numbers if math.isfinite(x)) if h.integer else numbers
    for value in candidates:
        if value != h.default and h.problem(value) is None:
            yield value


# Trying it ----------------------------------------------------------------------------------------------------------------


def matrix(subject: Subject) -> dict[Cell, Outcome]:
    """Everything invalid for a subject, tried: its options and its parameters."""
    controls: dict[Cell, tuple[Outcome, list[str]]] = {}
    known = cells(subject.spec, subject.options)
    tried = (*(c for c in known if subject.terms.can_say(c.option, c.value)), *parameter_cells(subject))
    return {cell: _attempt(subject, cell, controls) for cell in tried}


def attempt(subject: Subject, cell: Cell) -> Outcome:
    """Try one invalid thing on a fresh optimizer whose options are the defaults otherwise, after a control with a valid one."""
    return _attempt(subject, cell, {})


def _attempt(subject: Subject, cell: Cell, controls: dict[Cell, tuple[Outcome, list[str]]]) -> Outcome:
    control = _control(subject.spec, cell)
    if control not in controls:
        controls[control] = _run(subject, control)
    outcome, usual = controls[control]
    if outcome.refused or outcome.control_failed:
        return Outcome(control_failed=outcome.control_failed or f"{outcome.exception}: {outcome.message}")
    outcome, warned = _run(subject, cell)
    return replace(outcome, warned=next((w for w in warned if w not in usual), ""))


def _control(spec: Spec, cell: Cell) -> Cell:
    """The same call with nothing wrong."""
    default = next((h.default for h in spec.hyper if h.name == cell.option), None)
    return replace(cell, kind=_VALID, value=default, judged=True, entry=None)


def _run(subject: Subject, cell: Cell) -> tuple[Outcome, list[str]]:
    """What became of a call, and what was warned of."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            optimizer, call = _prepare(subject, cell)
            before = _groups(optimizer)
        except Exception as error:  # noqa: BLE001 - whatever somebody's optimizer raises is a result
            return Outcome(control_failed=f"{type(error).__name__}: {said(error).strip()}"), []
        caught.clear()
        outcome = Outcome()
        try:
            call()
        except Exception as error:  # noqa: BLE001 - whatever it raises is its refusal
            outcome = Outcome(True, type(error).__name__, said(error).strip(), _changes(optimizer, before))
        return outcome, [str(w.message) for w in caught]


def _prepare(subject: Subject, cell: Cell) -> tuple[Any, Callable[[], object]]:
    """The optimizer that there is beforehand, if any, and the call to be tried."""
    p = _leaf(subject.device)
    more = _more_parameters(cell, p)
    given = dict(cell.beside) if cell.option == PARAMETERS else {**cell.beside, cell.option: cell.value}
    if cell.place == "construction":
        members = [] if cell.kind == "empty" else [p, *more]
        return None, lambda: _make(subject, members, given)
    if cell.place == "group":
        # Further parameters stand in a group of their own.
        groups = [{"params": members, **subject.complete(given)} for members in ([p], more) if members]
        return None, lambda: _make(subject, groups, {})
    if cell.option == PARAMETERS and cell.place == "load_state_dict":
        saved, into = (str(cell.value) if cell.kind != _VALID else "[p, q] for [p, q]").split(" for ")
        optimizer, others = _over(subject, into), _over(subject, saved).state_dict()
        return optimizer, lambda: optimizer.load_state_dict(others)
    optimizer = _make(subject, [p], {})
    if cell.place == "add_param_group":
        group = {"params": more, **subject.complete(given)}
        return optimizer, lambda: optimizer.add_param_group(group)
    saved = optimizer.state_dict()
    said = subject.terms.theirs(given)
    loaded = {**saved, "param_groups": [{**g, **said} for g in saved["param_groups"]]}
    return optimizer, lambda: optimizer.load_state_dict(loaded)


def _over(subject: Subject, picture: str) -> Any:
    """An optimizer of the groups in a picture, each with as many parameters."""
    members = [[_leaf(subject.device) for _ in group.split(",")] for group in picture.split("], [")]
    if len(members) == 1:
        return _make(subject, members[0], {})
    return _make(subject, [{"params": ps, **subject.complete({})} for ps in members], {})


def _leaf(device: str | torch.device) -> torch.Tensor:
    return torch.zeros(_SHAPE, requires_grad=True, device=device)


def _more_parameters(cell: Cell, p: torch.Tensor) -> list[Any]:
    """What stands beside the parameter ``p``, in its list, in another group, or in the group that is added."""
    if cell.option != PARAMETERS:
        return [_leaf(p.device)] if cell.place == "add_param_group" else []
    if cell.kind == "duplicate":
        return [p]
    wrong: dict[str, list[Any]] = {"not a tensor": [1.0], "not a leaf": [2 * _leaf(p.device)]}
    return wrong.get(cell.kind, [_leaf(p.device)])


def _make(subject: Subject, members: list[Any], given: Mapping[str, Any]) -> Any:
    return subject.make(members, **subject.complete(given), **subject.mode_options)


_Groups = list[tuple[list[int], dict[str, str]]]


def _changes(optimizer: Any, before: _Groups) -> bool:
    try:
        return _groups(optimizer) != before
    except Exception:  # noqa: BLE001 - groups that cannot be read any more are no longer what they were
        return True


def _groups(optimizer: Any) -> _Groups:
    """The parameter groups, to be compared while the parameters live: NaN and tensors have no == of use."""
    return [
        ([id(p) for p in group.get("params", ())], {k: repr(v) for k, v in group.items() if k != "params"})
        for group in (() if optimizer is None else optimizer.param_groups)
    ]


@dataclass(frozen=True)
class Attempt:
    """What became of something invalid in a life.

    Attributes:
        at_construction: what became of the same, given to the constructor.
    """

    cell: Cell
    outcome: Outcome
    at_construction: Outcome


def attempted(subject: Subject, what: Refuse) -> Attempt:
    """Try what an event describes."""
    cell = Cell(what.option, what.kind, what.value, what.place, what.beside)
    outcome = attempt(subject, cell)
    if what.place == PLACES[0] or what.option == PARAMETERS:
        return Attempt(cell, outcome, outcome)
    return Attempt(cell, outcome, attempt(subject, replace(cell, place=PLACES[0])))


def life(subject: Subject, cell: Cell) -> Trace:
    """A life in which nothing happens but that this is tried."""
    event = Refuse(cell.option, cell.kind, cell.value, cell.place, cell.beside)
    return Trace(subject.spec.name, (Parameter(_SHAPE),), (Group((0,)),), (event,))


# Telling it ---------------------------------------------------------------------------------------------------------------


def told(matrix: Mapping[Cell, Outcome]) -> list[str]:
    """A matrix in a few lines, for a person."""
    tried = {cell: outcome for cell, outcome in matrix.items() if not outcome.control_failed}
    options = {cell: outcome for cell, outcome in tried.items() if cell.option != PARAMETERS}
    judged = {cell: outcome for cell, outcome in options.items() if cell.judged}
    return [
        *([f"refuses {_counted(judged)}"] if judged else []),
        *_accepted(judged),
        *_line("accepts as parameters", [c for c, o in tried.items() if c.option == PARAMETERS and not o.declared]),
        *_line("only warns of", [c for c, o in tried.items() if o.warned and not o.refused]),
        *_stumbled(judged),
        *_left_behind(tried),
        *_recorded({cell: outcome for cell, outcome in options.items() if not cell.judged}),
        *_failed(matrix),
    ]


def _counted(outcomes: Mapping[Cell, Outcome]) -> str:
    parts: list[str] = []
    for place in PLACES:
        here = [outcome.refused for cell, outcome in outcomes.items() if cell.place == place]
        if here:
            noun = "" if parts else " invalid options"
            parts.append(f"{sum(here)} of {len(here)}{noun} {_IN_WORDS[place]}")
    return ", ".join(parts)


def _accepted(judged: Mapping[Cell, Outcome]) -> list[str]:
    """What is accepted at construction, and what elsewhere alone."""
    at_construction = [c for c, o in judged.items() if c.place == "construction" and not o.declared]
    refused = {replace(c, place="") for c, o in judged.items() if c.place == "construction" and o.declared}
    elsewhere: dict[str, list[str]] = {}
    for place in PLACES[1:]:
        accepted = [c for c, o in judged.items() if c.place == place and not o.declared]
        unlike = [c for c in accepted if replace(c, place="") in refused]
        if unlike:
            everything = len(unlike) == len(refused)
            what = "all that is refused at construction" if everything else _folded(unlike)
            elsewhere.setdefault(what, []).append(_IN_WORDS[place])
    return [
        *([f"accepted at construction: {_folded(at_construction)}"] if at_construction else []),
        *(f"accepted {' and '.join(places)}, not at construction: {what}" for what, places in elsewhere.items()),
    ]


def _stumbled(judged: Mapping[Cell, Outcome]) -> list[str]:
    found = [c for c, o in judged.items() if o.exception in _STUMBLES and c.place == "construction"]
    names = sorted({judged[c].exception for c in found})
    return [f"refused by accident at construction ({', '.join(names)}): {_folded(found)}"] if found else []


def _left_behind(tried: Mapping[Cell, Outcome]) -> list[str]:
    """Refused calls that leave the groups changed, by place."""
    lines = []
    for place in PLACES:
        # Of parameters some are refused before anything can be changed.
        refused = [
            c for c, o in tried.items() if c.place == place and o.refused and (o.changed or c.option != PARAMETERS)
        ]
        found = [c for c in refused if tried[c].changed]
        if found:
            what = "all that it refuses" if len(found) == len(refused) else _folded(found)
            lines.append(f"changes the groups although it refuses {_IN_WORDS[place]}: {what}")
    return lines


def _recorded(unjudged: Mapping[Cell, Outcome]) -> list[str]:
    """What nobody documents: options that are loaded, and text for a flag elsewhere."""
    loaded = {c: o for c, o in unjudged.items() if c.place == "load_state_dict"}
    flags = [o.refused for c, o in unjudged.items() if c.place != "load_state_dict"]
    parts = ([_counted(loaded)] if loaded else []) + (
        [f"{sum(flags)} of {len(flags)} texts for a flag"] if flags else []
    )
    return [f"recorded, not judged: refuses {', '.join(parts)}"] if parts else []


def _failed(matrix: Mapping[Cell, Outcome]) -> list[str]:
    failed = {f"{_IN_WORDS[c.place]} ({o.control_failed})": None for c, o in matrix.items() if o.control_failed}
    return [f"not tried, because what is valid is refused too: {', '.join(failed)}"] if failed else []


def _line(title: str, found: Collection[Cell]) -> list[str]:
    parts = [
        f"{_folded(here)} {_IN_WORDS[place]}" for place in PLACES if (here := [c for c in found if c.place == place])
    ]
    return [f"{title}: {'; '.join(parts)}"] if parts else []


def _folded(found: list[Cell]) -> str:
    """Cells by option, and options to which the same happened together: ``lr, eps = nan | inf``."""
    values: dict[str, list[str]] = {}
    for cell in found:
        name, text = _spelled(cell)
        values.setdefault(name, [])
        if text not in values[name]:
            values[name].append(text)
    names: dict[str, list[str]] = {}
    for name, texts in values.items():
        names.setdefault(" | ".join(texts), []).append(name)
    return "; ".join(f"{', '.join(who)} = {what}" for what, who in names.items())


def _spelled(cell: Cell) -> tuple[str, str]:
    """The option, or the entry of a tuple that is wrong by itself, and its value."""
    if cell.option == PARAMETERS:
        return f"{cell.kind} parameters", str(cell.value)
    if cell.entry is not None:
        assert isinstance(cell.value, tuple)
        return f"{cell.option}[{cell.entry}]", repr(cell.value[cell.entry])
    return cell.option, repr(cell.value) + _beside(cell)


def _beside(cell: Cell) -> str:
    return f" with {', '.join(f'{k}={v!r}' for k, v in cell.beside.items())}" if cell.beside else ""


def table(matrix: Mapping[Cell, Outcome]) -> list[dict[str, Any]]:
    """A matrix as rows for JSON, values as they stand in traces."""
    return [
        {
            "option": cell.option,
            "kind": cell.kind,
            "value": option_to_json(cell.value),
            "beside": {k: option_to_json(v) for k, v in cell.beside.items()},
            "place": cell.place,
            "judged": cell.judged,
            "refused": outcome.refused,
            "exception": outcome.exception,
            "message": outcome.message,
            "changed": outcome.changed,
            "warned": outcome.warned,
            "control_failed": outcome.control_failed,
        }
        for cell, outcome in matrix.items()
    ]
