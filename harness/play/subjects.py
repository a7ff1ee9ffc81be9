"""Who plays a trace: modes of ``torch.optim``, and anybody's optimizer class. Each declares how it computes."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stepcheck.harness.life.events import SPELLINGS, Scalar, SetOption, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play import signature, unreferenced
from stepcheck.harness.play.declared import NO_REFERENCE, Declaration, DeclarationError
from stepcheck.harness.play.profiles import ANY_CLASS, Profile
from stepcheck.harness.play.references import spec_of
from stepcheck.harness.play.shapes import Shape, shape_of
from stepcheck.harness.play.signature import Closure, Signature
from stepcheck.harness.play.terms import PLAIN, Terms
from stepcheck.harness.support import settings
from stepcheck.harness.support.text import named
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS, Spec


class UnbuiltError(UsageError):
    """A constructor does not build an optimizer of one parameter."""


NARROW = ("bfloat16", "float16")
#: The flags that lives of somebody's class have. With ``differentiable`` a step is part of an autograd graph, and no parameter may be a leaf:
#: all tensors of a life would be others, and all that is compared with their memory. So torch.optim alone is played that way, as a mode.
PLAYED_FLAGS = ("foreach", "fused", "capturable")
FLOATING = ("float32", "float64", *NARROW)
COMPLEX = ("complex64", "complex128")

#: The constructors of torch, and of fast, that refuse betas which are not "both floats or both Tensors", as two whole numbers are not.
_TAKE_FLOATS = ("Adam", "AdamW")


@dataclass(frozen=True)
class Subject:
    """Something that can play a trace.

    Attributes:
        name: as it is written on the command line.
        spec: the reference it is held to.
        make: builds the optimizer from parameter groups and default options.
        computes: its profile, or what gives it where a device has to be asked.
        options: the names of the Spec's hyperparameters that its constructor takes.
        refused: of options that choose by name, the choices of the Spec that its constructor does not know.
        explicit: pass every option, defaults included, because its own defaults may rightly differ from the Spec's.
        dtypes: the parameter dtypes it supports.
        usual_dtypes: those that it is checked with where none is asked for; empty for all.
        mode_options: keywords that select the mode.
        differentiable: its step is part of an autograd graph, so it is given parameters that are no leaves.
        sparse: it takes sparse gradients, where the Spec gives them a meaning.
        after: a statement that a repro needs after the construction.
        cost: how many traces of another subject cost as much as one of this; it is given as many fewer.
        unsupported: why it cannot be checked here, where it declares that itself.
        mode: which of the implementations that its class ships, if it does.
        tensor_lr: it takes a learning rate that is a tensor.
        callee: what a repro calls to construct it: ``torch.optim.Adam``.
        imports: the import statement that a repro needs for it, if any.
        prepare: what takes long once and is no part of a step, such as compiling, piece by piece; done before it plays.
        device: where its parameters are, and their gradients.
        takes: of somebody's class, what its constructor takes.
        refusals: of somebody's class, the options that its constructor was tried with, and why it refused them, if it did.
        terms: what it calls what the reference calls otherwise.
        declared: of somebody's class, what is declared beside the reference, as JSON has it.
        remarks: what was found out about it before it played, to be said with its result.
        expected: the checks that it is declared to fail, each with the reason.
        shape: of what is no class of torch's, and dressed as one: what it is.
    """

    name: str
    spec: Spec
    make: Callable[..., Any]
    computes: Profile | Callable[[], Profile]
    options: frozenset[str]
    explicit: bool
    callee: str
    imports: str = ""
    dtypes: tuple[str, ...] = FLOATING
    usual_dtypes: tuple[str, ...] = ()
    mode_options: Mapping[str, Any] = field(default_factory=dict)
    differentiable: bool = False
    sparse: bool = True
    after: str = ""
    cost: int = 1
    unsupported: str = ""
    mode: str = ""
    tensor_lr: bool = False
    prepare: Callable[[], Iterable[object]] = tuple
    device: str = "cpu"
    refused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    takes: Signature | None = None
    refusals: dict[str, str] = field(default_factory=dict)
    terms: Terms = PLAIN
    declared: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    expected: Mapping[str, str] = field(default_factory=dict)
    shape: Shape | None = None

    @property
    def referenced(self) -> bool:
        """Whether it is held to a reference; otherwise it is asked for the invariants alone."""
        return self.spec.name != NO_REFERENCE

    @functools.cached_property
    def profile(self) -> Profile:
        """How it computes."""
        return self.computes() if callable(self.computes) else self.computes

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options to pass, by its own names: where its own defaults may rightly differ from the Spec's, all that it has.

        What is left open by default stays open: it is filled in by the constructor alone, so a group has no use for it.
        """
        return self.terms.theirs(self._complete(options))

    def _complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        if not self.explicit:
            return dict(options)
        open_ = self.takes.open if self.takes is not None else frozenset()
        default = {k: v for k, v in vars(self.spec.hyper_values()).items() if v is not None or k not in open_}
        given = {k: v for k, v in {**default, **options}.items() if k in self.options}
        # Of several groups, one that is left open must say so, or it takes what the first has.
        return {k: v for k, v in given.items() if v is not None or k not in open_} if self.one_group else given

    def unscales(self, trace: Trace, step: Step) -> bool:
        """Whether it is to undo the scaling of a ``GradScaler`` in its own step here, which it does on demand; float16 no scaler undoes."""
        narrow = any(p.dtype == "float16" for p in trace.parameters)
        return getattr(self.make, "_unscales", False) and (step.scaling == "step" or (narrow and bool(step.scaling)))

    def problem(self, trace: Trace) -> str:
        """Why a life that has a meaning has none for this subject, or nothing: all but flags is somebody's class's to say."""
        lacking = [flag for flag in trace.flags if flag not in self.flags]
        if lacking:
            return self._why_without(lacking[0])
        if trace.spelling not in self.spellings:
            return f"it does not take options in the spelling {trace.spelling}"
        if not self.explicit or self.takes is None:
            return ""
        groups = [g.options for g in trace.all_groups]
        if self.one_group and len(groups) > 1:
            return "it takes one group"
        set_later = [groups[e.group] for e in trace.events if isinstance(e, SetOption) and e.option == "max_iter"]
        if any(map(self.leaves_open, set_later)):
            return "whether max_eval follows a max_iter that is set later is its own affair"
        apart = [k for k in self.constructor_only for o in groups if o.get(k) != groups[0].get(k)]
        if apart:
            return f"{apart[0]} is no option of a group"
        # What was not tried so far is not tried here: a life must be the first thing that a class sees.
        known = (self.refusals.get(self._key(o), "") for o in groups)
        return next((f"the constructor refuses these options: {why}" for why in known if why), "")

    @property
    def is_sent(self) -> bool:
        """Whether it is a program, which is sent numbers as text."""
        return self.shape is not None and self.shape.is_sent

    @property
    def flags(self) -> tuple[str, ...]:
        """The flags that its lives may have."""
        named = self.takes.flags if self.explicit and self.takes is not None else ()
        return tuple(flag for flag in named if flag in PLAYED_FLAGS)

    @property
    def spellings(self) -> tuple[str, ...]:
        """How its options may be written, plainly first. What somebody's constructor does not take it declares itself."""
        if self.is_sent:  # however an option was written
            return SPELLINGS[:1]
        if self.explicit:
            return SPELLINGS
        if self.mode == "compiled":  # the compiler takes a number of another type for another program
            return SPELLINGS[:1]
        # Kernels that are fused take no flag that is NumPy's.
        refused = {"numpy": "fused" in self.mode_options, "whole": self.spec.name in _TAKE_FLOATS}
        return tuple(spelling for spelling in SPELLINGS if not refused.get(spelling))

    def _why_without(self, flag: str) -> str:
        """Why its lives do not have a flag."""
        if not self.explicit:
            return f"its mode selects an implementation, and no flag {flag} does"
        if self.takes is None or flag not in self.takes.flags:
            return f"its signature names no flag {flag}"
        return f"a life of somebody's class has no flag {flag}"

    def leaves_open(self, options: Mapping[str, Any]) -> bool:
        """Whether somebody's class is left to say what max_eval is; torch's own derives it from max_iter."""
        return self.explicit and self.spec.closure and options.get("max_eval") is None

    def complete_all(self, groups: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The same for several groups: what is left open in one of them only is said, or it would take what the first one has."""
        given = [self.complete(options) for options in groups]
        first, *others = given
        for options in others if self.explicit else ():
            options |= {k: None for k in first if k not in options}
        return given

    @property
    def one_group(self) -> bool:
        """Whether it takes no more than one group of parameters."""
        return self.spec.closure or (self.takes is not None and self.takes.one_group)

    @property
    def constructor_only(self) -> frozenset[str]:
        """Options that a group has no use for."""
        return self.takes.constructor_only if self.takes is not None else frozenset()

    @property
    def keyword_only(self) -> frozenset[str]:
        """The same, by its own names: they are keywords of the constructor whatever the form of the groups."""
        return frozenset(self.terms.theirs(dict.fromkeys(self.constructor_only)))

    @property
    def own_numbers(self) -> tuple[str, ...]:
        """Numbers that are options of somebody's class and not, by that name, of the reference."""
        others = {} if self.takes is None else self.takes.others
        return tuple(k for k, v in others.items() if isinstance(v, int | float | tuple) and not isinstance(v, bool))

    def accepts(self, options: Mapping[str, Any]) -> bool:
        """Whether somebody's constructor takes these options, which are right for the reference; what it takes is no fault of it."""
        if not self.explicit or self.takes is None:
            return True
        key = self._key(options)
        if key not in self.refusals:
            self.refusals[key] = self._refusal_of(self._given(options))
        return not self.refusals[key]

    def _given(self, options: Mapping[str, Any]) -> dict[str, Any]:
        given = {k: (v.value if isinstance(v, Scalar) else v) for k, v in self.complete(options).items()}
        return {**given, **self.terms.held}

    def _key(self, options: Mapping[str, Any]) -> str:
        return repr(sorted(self._given(options).items()))

    def _refusal_of(self, given: Mapping[str, Any]) -> str:
        try:
            signature.built(self.make, [torch.nn.Parameter(torch.ones(2, 2))], given)
        except signature.REFUSALS as error:
            return f"{type(error).__name__}: {error}"
        except Exception:  # noqa: BLE001 - no refusal, but a fault: a life will show it
            return ""
        return ""

    @property
    def closure(self) -> Closure:
        """How its step takes a closure."""
        return Closure(taken=True) if self.takes is None else self.takes.closure

    def refuses(self, name: str, value: object) -> bool:
        """Whether a value is a choice of the Spec that its constructor does not know."""
        return value in self.refused.get(name, ())

    @property
    def missing_options(self) -> tuple[str, ...]:
        """What the Spec has and the subject does not: hyperparameters, and choices as ``name='choice'``."""
        held = self.terms.ours(self.terms.held)
        missing = [h.name for h in self.spec.hyper if h.name not in self.options and h.name not in held]
        return tuple(missing + [f"{name}={choice!r}" for name, choices in self.refused.items() for choice in choices])


@functools.cache
def _refused(cls: Any, keywords: tuple[tuple[str, bool], ...], *, tensor_lr: bool) -> str:
    parameter = torch.nn.Parameter(torch.ones(1, 1))
    parameter.grad = torch.ones(1, 1) if cls is not torch.optim.SparseAdam else torch.ones(1, 1).to_sparse()
    lr = {"lr": torch.tensor(0.5)} if tensor_lr else {}
    try:
        cls([parameter], **lr, **dict(keywords)).step(*([lambda: 1.0] if cls is torch.optim.LBFGS else []))
    except Exception as error:  # noqa: BLE001 - whatever it raises is its reason
        return f"{type(error).__name__}: {error}"
    return ""


def refused_choices(spec: Spec, cls: Any) -> dict[str, tuple[str, ...]]:
    """Of options that choose by name, the choices that a constructor refuses: an older release does not know them."""

    def refuses(name: str, choice: str) -> bool:
        try:
            cls([torch.nn.Parameter(torch.ones(1, 1))], **{name: choice})
        except ValueError:
            return True
        return False

    tried = {h.name: tuple(c for c in h.choices if refuses(h.name, c)) for h in spec.hyper if h.choices}
    return {name: choices for name, choices in tried.items() if choices}


def _later_choices(make: Callable[..., Any], spec: Spec) -> dict[str, tuple[str, ...]]:
    """Choices that somebody's class need not know: it may be older than they are, and take any name in silence.

    A class that derives from torch's knows those that torch's knows.
    """
    own = getattr(torch.optim, spec.name, None)
    if own is not None and inspect.isclass(make) and issubclass(make, own):
        return refused_choices(spec, own)
    return {h.name: tuple(choice for choice, _ in h.later) for h in spec.hyper if h.later}


def refusal(cls: Any, keywords: Mapping[str, bool], *, tensor_lr: bool = False) -> str:
    """Why a class does not take these keywords for CPU tensors, in its own words, or nothing."""
    return _refused(cls, tuple(sorted(keywords.items())), tensor_lr=tensor_lr)


@settings.kept()  # to see how it is called it is constructed, and may change what it must not
def class_subject(
    make: Callable[..., Any], like: str | Declaration, name: str | None = None, profile: Profile = ANY_CLASS
) -> Subject:
    """Somebody's optimizer class or factory, held to a reference.

    Args:
        like: the name of the reference, or all that is declared.
        profile: how it computes, where the declaration says nothing of it.

    Raises:
        UsageError: there is no such reference, what is declared makes no sense, or ``make`` cannot be called as an optimizer.
    """
    said = Declaration(like) if isinstance(like, str) else like
    if not callable(make):
        raise UsageError(f"{name or named(make)} is not callable; name a class or a function that returns an optimizer")
    shape = shape_of(make)
    try:
        reference = _reference_of(make, said)
        said = said if shape is None else _as_shaped(said, shape, reference)
        spec, terms = said.spoken(reference)
        profile = said.arithmetic() if said.profile else profile
    except DeclarationError as error:
        raise UsageError(f"{name or named(make)}: {error}") from None
    takes = _read(make, spec, name or named(make), terms)
    tried = unreferenced.Tried()
    if spec.name == NO_REFERENCE:
        tried = _tried(make, spec, terms, name or named(make))
        spec = unreferenced.restricted(spec, tried.refused)
        takes = replace(takes, closure=takes.closure._replace(required=True)) if tried.closure else takes
    module, attribute = getattr(make, "__module__", "__main__"), getattr(make, "__qualname__", "optimizer")
    narrow = {} if shape is None else _narrow(make, shape, spec, terms)
    return Subject(
        name=name or (f"{module}:{attribute}" if shape is None else shape.name),
        spec=spec,
        make=make,
        computes=profile,
        options=takes.options,
        explicit=True,
        callee=attribute if shape is None else shape.callee,
        imports=f"from {module} import {attribute.split('.')[0]}" if shape is None else shape.imports,
        dtypes=FLOATING + (COMPLEX if spec.complex else ())
        if shape is None
        else tuple(d for d in shape.dtypes if d not in narrow),
        # What somebody's class does with narrow or complex numbers, and with sparse gradients, is theirs to say.
        usual_dtypes=tried.dtypes,
        sparse=spec.sparse == "only",
        unsupported="" if shape is None else shape.lacks(spec),
        refused={name: choices for name, choices in _later_choices(make, spec).items() if name in takes.options},
        takes=takes,
        after="optimizer.train()" if takes.modes else "",
        mode_options=terms.held,
        terms=terms,
        declared=said.to_json(),
        remarks=(
            *unreferenced.told(tried.refused),
            *(f"unsupported: {d}: {why}" for d, why in narrow.items()),
        ),
        shape=shape,
    )


def _as_shaped(said: Declaration, shape: Shape, reference: Spec) -> Declaration:
    """What is declared, and what is so of all that have this shape."""
    names = {} if reference.name == NO_REFERENCE else shape.names_of(reference)
    return replace(said, names={**names, **said.names}, profile={**shape.facts, **said.profile})


def _narrow(make: Callable[..., Any], shape: Shape, spec: Spec, terms: Terms) -> dict[str, str]:
    """The dtypes that pure functions do not compute in, and why; tried in a process of its own, and before that what arrays they take."""
    narrows = getattr(make, "narrows", None)
    if narrows is None:
        return {}
    options = {h.name: h.default for h in spec.hyper if h.default is not None}
    given = {k: v for k, v in {**terms.theirs(options), **terms.held}.items() if k in shape.options}
    takes = getattr(make, "takes", None)
    if takes is not None:
        arrays = signature.apart(lambda: takes(given))
        make.arrays = arrays if isinstance(arrays, str) and arrays else make.arrays  # type: ignore[attr-defined]
    found = signature.apart(lambda: {dtype: narrows(dtype, given) for dtype in shape.dtypes})
    if isinstance(found, dict):
        return {dtype: f"it {why}" for dtype, why in found.items() if why}
    # Some libraries cannot be forked once they have computed something. What may be computed in float32 is given that alone.
    return dict.fromkeys(shape.dtypes[1:], "whether it is computed as such could not be tried: a fork does not answer")


def _reference_of(make: Callable[..., Any], said: Declaration) -> Spec:
    """The reference that is declared; without one, what a constructor says of its options."""
    if said.like not in ("", NO_REFERENCE):
        return spec_of(said.like)
    try:
        return unreferenced.spec_of_class(make, said.held)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{named(make)}: its signature cannot be read ({error})") from None


def _tried(make: Callable[..., Any], spec: Spec, terms: Terms, name: str) -> unreferenced.Tried:
    """What a class takes that is held to no reference."""
    found = signature.apart(lambda: unreferenced.tried(make, spec, terms))
    tried = found if isinstance(found, unreferenced.Tried) else unreferenced.Tried()
    if not tried.dtypes:
        raise UnbuiltError(
            f"{name}: a step of one parameter raises {tried.refused[0][1]}; name a factory with which it does not"
        )
    return tried


def asked_for(subject: Subject, *, sparse: bool, tensor_lr: bool) -> Subject:
    """Somebody's class with what it is not given unasked: whether it takes that is its author's to say.

    Args:
        sparse: sparse gradients.
        tensor_lr: learning rates that are tensors.

    Raises:
        UsageError: its reference gives sparse gradients no meaning; it has no option ``lr``; or what it is takes no such thing.
    """
    if (sparse or tensor_lr) and subject.shape is not None:
        lacks = "sparse gradients" if sparse else "learning rates that are tensors"
        raise UsageError(f"{subject.name}: {subject.shape.told} takes no {lacks}: ask for none")
    if sparse and not subject.spec.sparse:
        known = ", ".join(name for name, spec in SPECS.items() if spec.sparse)
        raise UsageError(
            f"{subject.name}: {subject.spec.name} gives sparse gradients no meaning, {known} do: ask for none"
        )
    if tensor_lr and "lr" not in subject.options:
        raise UsageError(f"{subject.name}: it has no option lr that could be a tensor: name a factory that has one")
    return replace(subject, sparse=sparse or subject.sparse, tensor_lr=tensor_lr or subject.tensor_lr)


def taking(subject: Subject, dtypes: Sequence[str]) -> Subject:
    """Somebody's class that takes parameters of these dtypes and no others; as it is where none is named.

    Raises:
        UsageError: one of them is not among those that can be asked of it.
    """
    unknown = [dtype for dtype in dtypes if dtype not in subject.dtypes]
    if unknown:
        raise UsageError(
            f"{subject.name}: dtypes: no {unknown[0]!r} can be asked of it; {', '.join(subject.dtypes)} can"
        )
    if not dtypes:
        return subject
    told = f"parameters of {' and '.join(dtypes)} alone, as it is declared"
    return replace(subject, dtypes=tuple(dtypes), usual_dtypes=tuple(dtypes), remarks=(*subject.remarks, told))


def _read(make: Callable[..., Any], spec: Spec, name: str, terms: Terms) -> Signature:
    try:
        names, takes_any = signature.keywords(make)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: its signature cannot be read ({error})") from None
    options = [*terms.theirs({h.name: None for h in spec.hyper if h.name in terms.ours(names)}), *terms.held]
    said = {n for several in terms.options.values() for n in several} | terms.held.keys()
    if not takes_any and (lacking := [n for n in sorted(said) if n not in names]):
        raise UsageError(f"{name} has no option {lacking[0]!r}, which is declared; it has {', '.join(names)}")
    try:
        inspect.signature(make).bind([], **dict.fromkeys(options))
    except TypeError as error:
        raise UsageError(
            f"{name} cannot be called with (params, {', '.join(options) or 'no options'}): {error}; "
            "it is no optimizer, or name a factory function that fills in the rest"
        ) from None
    try:
        return signature.read(make, spec, terms)
    except signature.UnbuildableError as error:
        raise UnbuiltError(
            f"{name}([torch.ones(2, 2, requires_grad=True)]) {error}; expected is an optimizer: a class or factory that is called with "
            "parameters and options; name a factory that fills in the rest"
        ) from None
