"""What to declare of somebody's class: the reference that it agrees with, its names, and the conventions in which it differs.

Names are read from the constructor; which reference, which dialect and which buffer is found by trying: the class plays lives, and is judged
by each reference in turn. So a suggestion says in how many lives the class agrees as it is suggested.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.judging.dialects import Dialects
from stepcheck.harness.numbers.comparison import rounding
from stepcheck.harness.play import signature
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.subjects import Subject, UnbuiltError, class_subject
from stepcheck.harness.search.asking import played, refusal
from stepcheck.harness.search.generate import decoder, page
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS, Spec
from stepcheck.reference.spec import State

#: What options of the reference are called elsewhere; of a pair, entry by entry.
_CALLED: Mapping[str, tuple[str | tuple[str, ...], ...]] = {
    "lr": ("learning_rate", "step_size", "eta", "alpha"),
    "betas": (("beta1", "beta2"), ("beta_1", "beta_2"), ("b1", "b2")),
    "eps": ("epsilon", "eps1"),
    "weight_decay": ("decay", "wd", "weight_decay_rate", "l2", "l2_reg"),
    "momentum": ("beta", "mu", "mom", "beta1"),
    "dampening": ("damping",),
    "alpha": ("rho", "decay_rate", "smoothing_constant", "beta", "beta2", "decay"),
    "rho": ("decay_rate", "alpha", "beta"),
    "nesterov": ("use_nesterov",),
    "amsgrad": ("use_amsgrad", "ams_bound"),
    "decoupled_weight_decay": ("weight_decouple", "decoupled_decay", "decoupled_wd", "decoupled"),
    "initial_accumulator_value": ("initial_accumulator", "init_acc"),
    "momentum_decay": ("schedule_decay",),
    "ns_steps": ("num_steps", "steps"),
}
#: Lives of which a reference that may be it agrees with one, those that tell it from another, and those in which it is confirmed.
_FIRST, _FEW, _LIVES = 4, 8, 60
#: References for which dialects are looked for, those first in which the class agrees most often.
_CLOSEST = 4
#: The share of lives from which on a reference is near.
_NEAR = 0.2
#: How long one life may take.
_SECONDS = 20.0
_STEPS, _SHAPE = 4, (3, 2)


@dataclass(frozen=True)
class Suggestion:
    """What to declare.

    Attributes:
        name: of the class: ``module:Class``.
        declaration: its reference, names and dialects; without a reference where none is near.
        lives: those in which that was tried.
        agreeing: those in which it agrees.
        nearest: where none is near, the reference that it agrees with most often.
        left: options of the reference that it lacks.
    """

    name: str
    declaration: Declaration
    lives: int = 0
    agreeing: int = 0
    nearest: str = ""
    left: tuple[str, ...] = ()

    @property
    def found(self) -> bool:
        """Whether it agrees with a reference as it is declared."""
        return bool(self.declaration.like) and self.agreeing == self.lives


@dataclass
class _Trial:
    """One reference, and the lives in which a class was judged by it.

    Attributes:
        buffers: of the reference, those that the class keeps, under whatever name.
    """

    subject: Subject
    declaration: Declaration
    buffers: int = 0
    agreeing: int = 0
    lives: int = 0
    drawn: int = 0
    dialects: Dialects = field(init=False)

    def __post_init__(self) -> None:
        self.dialects = Dialects(self.subject)

    @property
    def share(self) -> float:
        return self.agreeing / self.lives if self.lives else 0.0

    def play(self, lives: int) -> None:
        """Judge the class in so many lives; one that it refuses, or does not live to its end, says nothing for the reference."""
        decode = decoder(self.subject, self.subject.usual_dtypes)
        for data in page(b"suggest")[self.drawn : lives]:
            evidence = played(self.subject, decode(data), ("agreement",), (), _SECONDS)
            self.drawn += 1
            if evidence is not None and refusal(evidence) is None:
                self._count(evidence)

    def _count(self, evidence: Evidence) -> None:
        judgement = evidence.judgement
        deviates = bool(judgement.deviations)
        # What is not determined agrees with any reference.
        if not deviates and (evidence.recording.raised is not None or 2 * judgement.undetermined >= judgement.elements):
            return
        self.lives += 1
        self.agreeing += not deviates
        self.dialects.keep(evidence.recording, judgement, deviates=deviates)

    def agrees(self) -> bool:
        """Whether it agrees, in a few lives and then in many; half of which it has to live to their end."""
        self.play(_FIRST)
        if self.lives and not self.agreeing:
            return False
        for lives in (_FEW, _LIVES):
            self.play(lives)
            if self.agreeing < self.lives or 2 * self.lives < lives:
                return False
        return True


def suggest(make: Callable[..., Any], name: str, progress: Callable[[str], None] = lambda told: None) -> Suggestion:
    """What to declare of a class.

    Raises:
        UsageError: it cannot be called as an optimizer.
    """
    trials = []
    for spec in _candidates(make):
        progress(f"tried: {spec.name}")
        trial = _trial(make, name, Declaration(spec.name, names=names(make, spec)))
        if trial is None:
            continue
        if trial.agrees():
            return _suggestion(name, trial)
        trials.append(trial)
    if not trials:
        raise UnbuiltError(
            f"{name}: no optimizer can be built of it with the options of any reference; name a factory that fills in the rest"
        )
    called = _plain(getattr(make, "__name__", ""))
    trials.sort(key=lambda t: (_plain(t.declaration.like) != called, -t.buffers, -t.share))
    near = [t for t in trials if _plain(t.declaration.like) in called or t.buffers or t.share >= _NEAR][:_CLOSEST]
    others: list[_Trial] = []
    for trial in _in_another_way(make, name, near, progress):
        if trial.agrees():
            return _suggestion(name, trial)
        others.append(trial)
    best = max((*near, *others), key=lambda t: t.share, default=None)
    if best is not None and 2 * best.share > 1:
        return _suggestion(name, best)
    named = next((t for t in near if _plain(t.declaration.like) == called), None)
    if named is not None:
        return _suggestion(name, named)
    most = max(trials, key=lambda t: t.share)
    return Suggestion(name, Declaration(), most.lives, most.agreeing, most.declaration.like)


def of_name(make: Callable[..., Any], name: str) -> Declaration:
    """What to declare of a class that is called as a reference is: its names, and the dialect in which it agrees most, if in one.

    One of another name is held to none: that a class agrees with a reference by chance would say nothing of what it is meant to be.
    """
    like = next(
        (spec.name for spec in SPECS.values() if _plain(spec.name) == _plain(getattr(make, "__name__", ""))), ""
    )
    trial = _trial(make, name, Declaration(like, names=names(make, SPECS[like]))) if like else None
    if trial is None or trial.agrees():
        return Declaration() if trial is None else trial.declaration
    spoken = max((trial, *_in_a_dialect(make, name, trial)), key=lambda t: (t.agrees(), t.share))
    return spoken.declaration


def _candidates(make: Callable[..., Any]) -> list[Spec]:
    """The references, those first whose name and options are most like the class's."""
    taken, _ = signature.keywords(make)
    called = _plain(getattr(make, "__name__", ""))

    def unlike(spec: Spec) -> tuple[int, int]:
        like = _plain(spec.name)
        alike = 0 if like == called else 1 if like in called else 2 if called in like else 3
        known = names(make, spec)
        return alike, sum(h.name not in taken and h.name not in known for h in spec.hyper)

    # What is judged by norms of matrices agrees with much.
    return sorted((s for s in SPECS.values() if not s.closure and not (s.products and unlike(s)[0])), key=unlike)


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("stable", "").replace("fused", "")


def names(make: Callable[..., Any], spec: Spec) -> dict[str, str]:
    """The options of a reference that a constructor seems to have under another name."""
    taken, _ = signature.keywords(make)
    free = {name: default for name, default in taken.items() if name not in {h.name for h in spec.hyper}}
    found: dict[str, str] = {}
    for hyper in spec.hyper:
        several = ((n,) if isinstance(n, str) else n for n in _CALLED.get(hyper.name, ()) if hyper.name not in taken)
        chosen = next((s for s in several if all(n in free and _is_one(free[n], hyper.default, len(s)) for n in s)), ())
        if chosen:
            found[hyper.name] = ", ".join(chosen)
            for name in chosen:
                del free[name]
    return found


def _is_one(theirs: Any, ours: Any, names_: int) -> bool:
    """Whether a default is of the kind of an option, or of an entry of it where it is several there."""
    entry = ours[0] if names_ > 1 else ours
    if theirs is None or theirs is signature.NO_DEFAULT:
        return True
    if isinstance(entry, bool) or isinstance(theirs, bool):
        return isinstance(entry, bool) and isinstance(theirs, bool)
    return isinstance(theirs, int | float) and isinstance(entry, int | float)


def _trial(make: Callable[..., Any], name: str, declaration: Declaration) -> _Trial | None:
    """A reference to be tried; nothing where the class cannot be built with its options."""
    try:
        subject = class_subject(make, declaration, name)
        kept = dict(_buffers(make, subject))
        called = {ours: theirs for ours, theirs in kept.items() if ours != theirs}
        if called:
            declaration = replace(declaration, names=declaration.names | called)
            subject = class_subject(make, declaration, name)
        return _Trial(subject, declaration, len(kept))
    except UsageError:
        return None


def _in_another_way(
    make: Callable[..., Any], name: str, trials: list[_Trial], progress: Callable[[str], None]
) -> Iterator[_Trial]:
    """What is worth trying: a dialect that explains most of what deviates, and each flag of its own, with a dialect that then does.

    Of the nearest reference both, before the dialects of others: to look for one there takes longest where it is none of them.
    """
    for n, trial in enumerate(trials):
        progress(f"dialects of {trial.declaration.like}")
        trial.play(_LIVES // 2)
        yield from _in_a_dialect(make, name, trial)
        for held in _flags(trial.subject) if n == 0 else ():
            progress(f"{trial.declaration.like} with {held}")
            other = _trial(make, name, replace(trial.declaration, held=held))
            if other is not None:
                yield other
                yield from _in_a_dialect(make, name, other)


def _in_a_dialect(make: Callable[..., Any], name: str, trial: _Trial) -> Iterator[_Trial]:
    """The same in the dialect that explains most of what deviates, if one does."""
    told = trial.dialects.found()
    if told is None or not all(dialect.name for dialect in told.chosen):
        return
    spoken = _trial(make, name, replace(trial.declaration, dialects=tuple(dialect.name for dialect in told.chosen)))
    if spoken is not None:
        yield spoken


def _flags(subject: Subject) -> Iterator[dict[str, Any]]:
    """Each flag of the class that its reference does not have, turned the other way."""
    others = {} if subject.takes is None else subject.takes.others
    yield from ({name: not value} for name, value in others.items() if isinstance(value, bool))


def _suggestion(name: str, trial: _Trial) -> Suggestion:
    left = tuple(o for o in trial.subject.missing_options if "=" not in o)
    return Suggestion(name, trial.declaration, trial.lives, trial.agreeing, left=left)


def _buffers(make: Callable[..., Any], subject: Subject) -> Iterator[tuple[str, str]]:
    """The buffers of the reference that the class keeps, and their names there: what holds the same numbers, step for step."""
    spec = subject.spec
    if not spec.elementwise or spec.sparse == "only":
        return
    kept = signature.apart(lambda: _kept(make, subject))
    if not isinstance(kept, list) or not kept:
        return
    expected = _expected(spec)
    states, groups = zip(*kept, strict=True)
    for buffer in expected[0]:
        numbers = [e[buffer] for e in expected]
        # What a group counts is looked for where no parameter does.
        if alike := _alike(buffer, numbers, states) or _alike(buffer, numbers, groups):
            yield buffer, alike


def _kept(make: Callable[..., Any], subject: Subject) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What the class keeps of one parameter, and in its group, after each of a few steps."""
    parameter = torch.nn.Parameter(torch.from_numpy(_numbers(0)))
    optimizer = signature.built(make, [parameter], {**subject.complete({}), **subject.mode_options})
    kept = []
    for n in range(_STEPS):
        parameter.grad = torch.from_numpy(_numbers(n + 1))
        signature.plain_step(optimizer)()
        kept.append((_arrays(optimizer.state[parameter]), _arrays(optimizer.param_groups[0])))
    return kept


def _arrays(kept: Mapping[Any, Any]) -> dict[str, Any]:
    """The tensors and numbers of these."""
    numbers = ((k, v) for k, v in kept.items() if isinstance(v, torch.Tensor | int | float))
    return {str(k): np.array(v.detach() if isinstance(v, torch.Tensor) else v) for k, v in numbers}


def _expected(spec: Spec) -> list[dict[str, Any]]:
    """What the reference keeps, after each of these steps."""
    hyper = spec.hyper_values()
    state: State = {
        name: None if value is None else np.full(_SHAPE, value) for name, value in spec.initial_state(hyper).items()
    }
    p, kept = _numbers(0), []
    with np.errstate(all="ignore"):
        for n in range(_STEPS):
            p, state = spec.update(p, _numbers(n + 1), state, spec.for_dtype(hyper, 2.0**-52))
            kept.append(dict(state))
    return kept


def _numbers(seed: int) -> Any:
    return np.random.default_rng(seed).uniform(0.25, 1.0, _SHAPE)


def _alike(buffer: str, expected: list[Any], kept: Sequence[dict[str, Any]]) -> str:
    """The name under which the class keeps these numbers, if it does; first that of the reference."""
    for name in sorted(kept[0], key=lambda name: name != buffer):
        pairs = [(k.get(name, np.empty(0)), e) for k, e in zip(kept, expected, strict=True) if e is not None]
        if pairs and all(np.shape(t) in ((), (1,), _SHAPE) and _is_same(t, e) for t, e in pairs):
            return name
    return ""


def _is_same(theirs: Any, ours: Any) -> bool:
    """Whether numbers are the same but for what rounding to float32 may cost. What is named so is judged by lives after that."""
    got, expected = np.broadcast_arrays(np.asarray(theirs, np.float64), np.asarray(ours, np.float64))
    return bool((np.abs(got - expected) <= rounding(expected, got, expected, "float32")).all())


def table(suggestion: Suggestion) -> list[str]:
    """The table for ``pyproject.toml``, in lines."""
    said = suggestion.declaration
    lines = [f'[tool.stepcheck.subjects."{suggestion.name}"]']
    if said.like:
        lines.append(f"like = {json.dumps(said.like)}")
    if said.dialects:
        lines.append(f"dialects = {json.dumps(list(said.dialects))}")
    if said.names:
        called = (f"{ours} = {_toml_names(theirs)}" for ours, theirs in said.names.items())
        lines.append(f"names = {{ {', '.join(called)} }}")
    if said.held:
        lines.append(f"set = {{ {', '.join(f'{k} = {json.dumps(v)}' for k, v in said.held.items())} }}")
    return lines


def _toml_names(theirs: str) -> str:
    several = [name.strip() for name in theirs.split(",")]
    return json.dumps(several if len(several) > 1 else several[0])


def options(said: Declaration) -> list[str]:
    """The same as options of ``stepcheck check``."""
    given = ["--like", said.like] if said.like else []
    for dialect in said.dialects:
        given += ["--dialect", dialect]
    for ours, theirs in said.names.items():
        given += ["--rename", f"{ours}={theirs.replace(' ', '')}"]
    for name, value in said.held.items():
        given += ["--set", f"{name}={value!r}"]
    return given


def lines(suggestion: Suggestion) -> Iterator[str]:
    """What was found, in words."""
    like, lives, agreeing = suggestion.declaration.like, suggestion.lives, suggestion.agreeing
    if suggestion.found:
        yield f"# judged as declared here, it agrees with {like} in all {lives} lives that were tried"
    elif like:
        yield f"# the nearest that was found, not more: judged as declared here, it deviates from {like} in {lives - agreeing} of {lives} lives"
    if suggestion.left:
        yield f"# options of {like} that it does not have, or under a name that was not found: {', '.join(suggestion.left)}"
    if not like:
        yield (
            "# it agrees with no reference, in no dialect that is known"
            + (f"; most often with {suggestion.nearest}, in {agreeing} of {lives} lives" if agreeing else "")
            + ". As it stands here it is asked for the invariants alone."
        )
