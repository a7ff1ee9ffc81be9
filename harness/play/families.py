"""Who owns optimizers: ``torch.optim`` in all its modes and ``stepcheck.fast``; which subjects a family has, and what one asks for by its name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from stepcheck.harness.life.events import Scalar
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.functions import FUNCTIONS, functional, importing
from stepcheck.harness.play.owned import FRAMEWORKS, owned
from stepcheck.harness.play.profiles import (
    COMPILED_WIDE,
    MODE_PROFILES,
    TORCH_CPU,
    TORCH_PROFILES,
    counted_profile,
    fast_profile,
)
from stepcheck.harness.play.references import loaded, spec_of
from stepcheck.harness.play.shapes import PROCESS, process
from stepcheck.harness.play.subjects import COMPLEX, FLOATING, NARROW, Subject, class_subject, refusal, refused_choices
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import SPECS, Spec
from stepcheck.reference.compensated import compensated

#: A compilation takes a second or more, each trace needs some, and a trace elsewhere some ten milliseconds.
_COMPILED_COST = 100


#: The implementations that the classes of torch.optim ship for CPU tensors, and the keywords that select them.
MODES: dict[str, dict[str, bool]] = {
    "forloop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"capturable": True},
    "differentiable": {"differentiable": True},
    "compiled": {},
}


@dataclass(frozen=True)
class Family:
    """Whose optimizers are subjects by their names alone.

    What it has is what it says, and nothing follows from there being a reference.

    Attributes:
        name: as it stands before the colon.
        tabled: gives the modes of each of its optimizers, that which is meant by none first.
        lacks: of any name, why it has no optimizer of it under the torch that is installed, or nothing.
        subject: makes the subject of a name and a mode.
        order: of all subjects, those of one mode stand together, in this order; empty: those of one optimizer do.
        all_modes: the name of an optimizer means it in all its modes, and not in the first alone.
        left_out: modes that are played only where they are asked for by name.
        told: an optimizer and its modes, in words.
    """

    name: str
    tabled: Callable[[], Mapping[str, tuple[str, ...]]]
    lacks: Callable[[str], str]
    subject: Callable[[str, str], Subject]
    order: tuple[str, ...]
    all_modes: bool
    left_out: Callable[[], tuple[str, ...]]
    told: str

    @property
    def modes(self) -> Mapping[str, tuple[str, ...]]:
        """Of each of its optimizers, those too that another torch has alone."""
        return self.tabled()

    @property
    def here(self) -> tuple[str, ...]:
        """Its optimizers under the torch that is installed."""
        return tuple(name for name in self.modes if not self.lacks(name))

    def resolve(self, text: str) -> list[Subject]:
        """The subjects that its name means, or it and that of an optimizer, or both and a mode.

        Raises:
            UsageError: it has no such optimizer, or mode.
        """
        _, colon, rest = text.partition(":")
        if not colon:
            return self._all()
        if not rest:
            raise UsageError(f"{text!r}: name an optimizer after the colon (one of {', '.join(self.modes)})")
        name, bracket, mode = rest.partition("[")
        spec_of(name)
        if name not in self.modes:
            others = [family.name for family in FAMILIES.values() if name in family.modes]
            told = f", {' and '.join(others)} has" if others else ""
            raise UsageError(f"{text}: {self.lacks(name)}{told}; --like {name} holds any class to its reference")
        modes = self.modes[name]
        if not bracket:
            return [self.subject(name, mode) for mode in (modes if self.all_modes else modes[:1])]
        mode = mode.removesuffix("]")
        if not mode or mode not in modes or not rest.endswith("]"):
            named = ", ".join(filter(None, modes))
            raise UsageError(f"{text!r}: {self.told.format(name=name, modes=named)}")
        return [self.subject(name, mode)]

    def _all(self) -> list[Subject]:
        left_out = self.left_out()
        both = [(name, mode) for name, modes in self.modes.items() for mode in modes if mode not in left_out]
        if self.order:
            both.sort(key=lambda of: self.order.index(of[1]))
        return [self.subject(*of) for of in both]


def _compiled(cls: Callable[..., Any]) -> Callable[..., Any]:
    """A class whose step is compiled by torch.compile."""

    def make(*args: Any, **options: Any) -> Any:
        # After a few lives the compiler would give up compiling anew, and leave the rest to the interpreter.
        torch.compiler.reset()
        logging.getLogger("torch").setLevel(logging.CRITICAL)  # what matters is raised as well
        optimizer = cls(*args, **options)
        optimizer.step = torch.compile(optimizer.step)
        return optimizer

    return make


def _no_compiler() -> str:
    """Why nothing can be compiled for the CPU here, or nothing."""
    wanted = os.environ.get("CXX", "")
    names = (wanted,) if wanted else ("cl",) if os.name == "nt" else ("g++", "clang++", "c++")
    return "" if any(map(shutil.which, names)) else f"torch.compile needs a C++ compiler: no {', '.join(names)} found"


def no_such_class(name: str) -> str:
    """That the torch that is installed has no such optimizer, or nothing."""
    if hasattr(torch.optim, name):
        return ""
    since = f", which came with torch {SPECS[name].since}" if name in SPECS and SPECS[name].since else ""
    return f"torch {torch.__version__} has no torch.optim.{name}{since}"


def _modes(spec: Spec) -> tuple[str, ...]:
    """The modes that a class of torch.optim has the keywords for; the first is its plain one."""
    if no_such_class(spec.name):
        return ("forloop",)
    keywords = inspect.signature(getattr(torch.optim, spec.name)).parameters
    keyed = (mode for mode in MODES if mode != "forloop" and mode in keywords)
    # torch.compile leaves a step with sparse tensors, or a closure, to the interpreter: there is nothing to check.
    left = spec.sparse == "only" or spec.closure
    return ("forloop", *keyed, *(() if left else ("compiled",)))


#: What torch.optim has, under this torch or a later one. A reference of anything else says nothing about it.
TORCH_MODES: dict[str, tuple[str, ...]] = {
    name: _modes(spec) for name, spec in SPECS.items() if spec.since or not no_such_class(name)
}


@functools.cache
def torch_subject(name: str, mode: str) -> Subject:
    """``torch.optim.<name>`` in one of its modes."""
    if no_such_class(name):
        return lacking(f"torch:{name}[{mode}]", SPECS[name], no_such_class(name), mode)
    spec, cls = SPECS[name], getattr(torch.optim, name)
    signature = inspect.signature(cls).parameters
    keywords: dict[str, bool] = MODES[mode] if set(MODES[mode]) <= set(signature) else {}
    unsupported = ""
    if mode == "capturable":
        # CUDA graphs are what it is made for; of the CPU's implementations, the fused kernels alone accept it.
        keywords = keywords | ({"fused": True} if "fused" in TORCH_MODES[name] else {})
        unsupported = refusal(cls, keywords)
    compiled = mode == "compiled"
    if compiled:
        unsupported = _no_compiler()
    return Subject(
        name=f"torch:{name}[{mode}]",
        spec=spec,
        make=_compiled(cls) if compiled else cls,
        computes=TORCH_PROFILES.get((name, mode), MODE_PROFILES[mode]),
        # An older release has fewer than the reference.
        options=frozenset(h.name for h in spec.hyper if h.name in signature),
        explicit=False,
        callee=f"torch.optim.{name}",
        dtypes=_torch_dtypes(spec, keywords, mode),
        mode_options=keywords,
        differentiable=mode == "differentiable",
        sparse="fused" not in keywords and not compiled,
        after="optimizer.step = torch.compile(optimizer.step)" if compiled else "",
        cost=_COMPILED_COST if compiled else 2 if spec.closure or spec.products else 1,
        unsupported=unsupported,
        mode=mode,
        tensor_lr=_takes_tensor_lr(spec, cls, keywords, mode) and not unsupported,
        refused=refused_choices(spec, cls),
    )


def lacking(name: str, spec: Spec, why: str, mode: str = "") -> Subject:
    """A subject that does not exist here: it stands in every table, and says why."""

    def make(*_args: Any, **_options: Any) -> Any:
        raise UsageError(f"{name}: {why}")

    return Subject(
        name,
        spec,
        make,
        TORCH_CPU,
        frozenset(h.name for h in spec.hyper),
        explicit=False,
        callee=spec.name,
        unsupported=why,
        mode=mode,
    )


#: An option of stepcheck.fast, of parameters in narrow formats, with which it is held to another reference.
COMPENSATED = "compensated"
#: How stepcheck.fast is checked beside its kernels for the CPU, which are no mode: with that option; and its kernels for CUDA, run by
#: Triton's interpreter on CPU tensors, and run by a GPU.
FAST_MODES = (COMPENSATED, "triton", "cuda")
#: A life by Triton's interpreter takes some ten times as long as one elsewhere; on a GPU each tensor that is read is waited for, and the
#: first lives compile. Twice this, of those that multiply matrices or take closures, is not so much that they get lives of plain kinds alone.
_MODE_COST = 4


def _no_fast_class(name: str) -> str:
    from stepcheck import fast  # whose classes nobody needs for one of their own

    lacked = no_such_class(name) if SPECS[name].since else ""  # it would stand in for that
    return lacked or ("" if name in fast.__all__ else f"stepcheck.fast has no {name}")


@functools.cache
def _fast_modes() -> Mapping[str, tuple[str, ...]]:
    """What stepcheck.fast has, under this torch or a later one; the first mode, by no name, is that of kernels for the CPU."""
    had = {name: spec for name, spec in SPECS.items() if spec.since or not _no_fast_class(name)}
    return {
        name: ("", *(mode for mode in FAST_MODES if spec.elementwise or mode != COMPENSATED))
        for name, spec in had.items()
    }


@functools.cache
def fast_subject(name: str, mode: str = "") -> Subject:
    """``stepcheck.fast.<name>``.

    Args:
        mode: ``triton``: its kernels for CUDA, which Triton's interpreter runs on CPU tensors; ``cuda``: on a GPU, compiled;
            ``compensated``: with what rounding to narrow formats loses.
    """
    from stepcheck.fast import native  # whose classes nobody needs for one of their own

    module = importlib.import_module(f"stepcheck.fast{'.interpreted' if mode == 'triton' else ''}")
    spec, cls = SPECS[name], getattr(module, name, None)
    if cls is None:
        return lacking(f"fast:{name}[{mode}]" if mode else f"fast:{name}", spec, _no_fast_class(name))
    cost = 2 if spec.closure or spec.products else 1
    carries = mode == COMPENSATED
    return Subject(
        name=f"fast:{name}[{mode}]" if mode else f"fast:{name}",
        spec=compensated(spec) if carries else spec,
        make=cls,
        computes=functools.partial(counted_profile, name)
        if mode == "cuda"
        else fast_profile(name, "" if carries else mode),
        options=frozenset(h.name for h in spec.hyper if h.name in inspect.signature(cls).parameters),
        explicit=False,
        callee=name,
        imports=f"from {module.__name__} import {name}",
        dtypes=NARROW if carries else _torch_dtypes(spec, {}, ""),
        mode_options={COMPENSATED: True} if carries else {},
        cost=cost * (2 if carries else _MODE_COST if mode else 1),
        unsupported={"triton": no_triton, "cuda": no_cuda}.get(mode, str)() or native.unavailable(),
        tensor_lr=True,
        prepare=tuple if mode else cls.kernels,
        device="cuda" if mode == "cuda" else "cpu",
        refused=refused_choices(spec, cls),
    )


def no_triton() -> str:
    """Why Triton can neither interpret nor compile here, or nothing."""
    return "" if importlib.util.find_spec("triton") else "triton is not installed"


def no_cuda() -> str:
    """Why nothing can be played on a GPU here, or nothing. It leaves CUDA alone, which would not work in processes forked later."""
    if torch.version.cuda is None:
        return "no CUDA device: torch was built without CUDA"
    return no_triton() if torch.cuda.device_count() else "no CUDA device: no GPU is visible"


def _takes_tensor_lr(spec: Spec, cls: Any, keywords: Mapping[str, bool], mode: str) -> bool:
    # Adafactor multiplies a norm, read into a Python number, by it: float32 in float64 parameters, where the norm is float64.
    return spec.name != "Adafactor" and mode != "compiled" and not refusal(cls, keywords, tensor_lr=True)


#: What a state can move between: of the others, one needs parameters that are no leaves, and one compiles each life anew.
_SIBLINGS = ("forloop", "foreach", "fused", "capturable")


def sibling(subject: Subject, into: int, trace: Trace) -> Subject:
    """Another implementation of the same class that can go on with a life: the ``into``-th after its own; 0 for its own.

    The subject itself where there is none.
    """
    if not into or subject.mode not in _SIBLINGS:
        return subject
    modes = [m for m in TORCH_MODES[subject.spec.name] if m in _SIBLINGS and m != subject.mode]
    others = [s for m in modes if can_play(s := torch_subject(subject.spec.name, m), trace)]
    return others[(into - 1) % len(others)] if others else subject


def torchs_own(spec: Spec, trace: Trace) -> Subject | None:
    """torch's own optimizer of the name, where it can play a life; with what the reference holds its options at."""
    if no_such_class(spec.name):
        return None
    subject = torch_subject(spec.name, "forloop")
    if not can_play(subject, trace):
        return None
    defaults = {h.name: h.default for h in subject.spec.hyper}
    held = {h.name: h.default for h in spec.hyper if h.name in defaults and h.default != defaults[h.name]}
    if not held:
        return subject
    hyper = tuple(replace(h, default=held.get(h.name, h.default)) for h in subject.spec.hyper)
    return replace(subject, spec=replace(subject.spec, hyper=hyper), make=functools.partial(subject.make, **held))


def can_play(subject: Subject, trace: Trace) -> bool:
    """Whether a subject takes the dtypes, the sparse gradients, the tensor learning rates and the spelling of a life."""
    tensor_lr = any(isinstance(o.get("lr"), Scalar) for o in trace.given_options)
    return (
        not subject.unsupported
        and {p.dtype for p in trace.parameters} <= set(subject.dtypes)
        and (subject.sparse or not trace.given_sparse)
        and (subject.tensor_lr or not tensor_lr)
        and trace.spelling in subject.spellings
    )


def _torch_dtypes(spec: Spec, keywords: Mapping[str, bool], mode: str) -> tuple[str, ...]:
    if mode == "compiled" and spec.name in COMPILED_WIDE:
        return ("float32", "float64")
    # Scalar products of LBFGS leave float16 where its vectors do not, and comparisons of infinities then decide which way it
    # goes: it is not checked there.
    floating = tuple(d for d in FLOATING if not (spec.closure and d == "float16"))
    return floating + (COMPLEX if spec.complex and "fused" not in keywords else ())


TORCH = Family(
    "torch",
    lambda: TORCH_MODES,
    no_such_class,
    torch_subject,
    order=(),
    all_modes=True,
    left_out=tuple,
    told="torch.optim.{name} has the modes {modes}",
)
FAST = Family(
    "fast",
    _fast_modes,
    _no_fast_class,
    fast_subject,
    order=("", *FAST_MODES),
    all_modes=False,
    left_out=lambda: ("cuda",) if no_cuda() else (),
    told="fast:{name} has the modes {modes}, or none, for the CPU",
)
#: By the word that names it.
FAMILIES = {family.name: family for family in (TORCH, FAST)}


def existing() -> tuple[str, ...]:
    """The optimizers that a family has under the torch that is installed."""
    here = {name for family in FAMILIES.values() for name in family.here}
    return tuple(name for name in SPECS if name in here)


def label(text: str) -> str:
    """What tells two declarations of one subject apart, in brackets at the end of its name; nothing where there is none."""
    found = _LABEL.search(text)
    return found[0] if found else ""


def unlabelled(text: str) -> str:
    """The same without a label."""
    return text.removesuffix(label(text))


_LABEL = re.compile(r"(?<=\S)\[[^][]*\]$")


#: What is no class of torch's, as a word on the command line names it, by what that begins with.
SHAPES = {
    PROCESS: f"{PROCESS}:COMMAND",
    **{word: f"{word}:package.module:NAME" for word in (FUNCTIONS, *FRAMEWORKS)},
}
#: The same, and a class, in a sentence.
SOMEBODYS = ", ".join(["package.module:Class", *[*SHAPES.values()][:-1]]) + f" or {[*SHAPES.values()][-1]}"


def shape_named(text: str) -> str:
    """What of :data:`SHAPES` a word begins with; nothing where it is a class in a module of that name."""
    family, _, rest = unlabelled(text).partition(":")
    if family in SHAPES and family != PROCESS:
        return family if ":" in rest else ""
    is_module = all(part.isidentifier() for part in rest.split(".")) and importlib.util.find_spec(PROCESS) is not None
    return PROCESS if family == PROCESS and not is_module else ""


def made(text: str) -> Any:
    """What a word on the command line names that is of no family: somebody's class or factory, or what is dressed as one.

    Raises:
        UsageError: there is no such thing.
    """
    module, _, rest = unlabelled(text).partition(":")
    shape = shape_named(text)
    if shape == PROCESS:
        return process(rest)
    if not shape:
        return loaded(module, rest, text)
    module, _, attribute = rest.partition(":")
    # Scripts import what was named, which need not be where it was defined.
    make, imports = loaded(module, attribute, text), importing(module, attribute)
    return functional(make, imports=imports) if shape == FUNCTIONS else owned(shape, make, imports=imports)


def resolve(text: str, like: str | Declaration | None = None) -> list[Subject]:
    """The subjects that a word on the command line means.

    Args:
        text: ``torch``, ``torch:Adam``, ``torch:Adam[foreach]``, ``fast``, ``fast:Adam``, ``package.module:ClassOrFactory``,
            or one of :data:`SHAPES`.
        like: the reference that a class is held to, or all that is declared of it; for ``torch`` and ``fast`` the name says it.

    Raises:
        UsageError: no such subject.
    """
    family, _, rest = text.partition(":")
    if family in FAMILIES:
        return FAMILIES[family].resolve(text)
    if shape_named(text):
        return [class_subject(made(text), like or "", text)]
    if not rest:
        raise UsageError(
            f"unknown subject {text!r}; known: {', '.join(FAMILIES)}, torch:NAME[MODE], and with --like {SOMEBODYS}"
        )
    attribute = unlabelled(rest)
    subject = class_subject(made(text), like or "", text)
    if subject.shape is not None:
        return [subject]
    # Scripts import what was named, which need not be where it was defined.
    return [replace(subject, callee=attribute, imports=f"from {family} import {attribute.partition('.')[0]}")]
