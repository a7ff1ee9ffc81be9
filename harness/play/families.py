"""Who owns optimizers: ``torch.optim`` in all its modes and ``stepcheck.fast``; which subjects a family has, and what one asks for by its name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch

from stepcheck.harness.life.events import Scalar
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.profiles import MODE_PROFILES, TORCH_CPU, TORCH_PROFILES, counted_profile, fast_profile
from stepcheck.harness.play.subjects import (
    COMPLEX,
    FLOATING,
    NARROW,
    Subject,
    UsageError,
    class_subject,
    refusal,
    refused_choices,
    spec_of,
)
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
FAMILIES = ("torch", "fast")
#: torch.compile leaves their step to the interpreter (sparse tensors, a closure): there is nothing to check.
_NEVER_COMPILED = ("SparseAdam", "LBFGS")


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
    since = f", which came with torch {SPECS[name].since}" if SPECS[name].since else ""
    return f"torch {torch.__version__} has no torch.optim.{name}{since}"


def existing() -> tuple[str, ...]:
    """The optimizers that the torch that is installed has."""
    return tuple(name for name in SPECS if not no_such_class(name))


def _modes(name: str) -> tuple[str, ...]:
    """The modes that a class of torch.optim has the keywords for; the first is its plain one."""
    if no_such_class(name):
        return ("forloop",)
    keywords = inspect.signature(getattr(torch.optim, name)).parameters
    keyed = (mode for mode in MODES if mode != "forloop" and mode in keywords)
    return ("forloop", *keyed, *(("compiled",) if name not in _NEVER_COMPILED else ()))


TORCH_MODES: dict[str, tuple[str, ...]] = {name: _modes(name) for name in SPECS}


@functools.cache
def torch_subject(name: str, mode: str) -> Subject:
    """``torch.optim.<name>`` in one of its modes."""
    if no_such_class(name):
        return _lacking(f"torch:{name}[{mode}]", SPECS[name], no_such_class(name), mode)
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


def _lacking(name: str, spec: Spec, why: str, mode: str = "") -> Subject:
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


def fast_modes(name: str) -> tuple[str, ...]:
    """The modes of one of the classes."""
    return FAST_MODES if SPECS[name].elementwise else tuple(mode for mode in FAST_MODES if mode != COMPENSATED)


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
        why = no_such_class(name) or f"stepcheck.fast has no {name}"
        return _lacking(f"fast:{name}[{mode}]" if mode else f"fast:{name}", spec, why)
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


def can_play(subject: Subject, trace: Trace) -> bool:
    """Whether a subject takes the dtypes, the sparse gradients and the tensor learning rates of a life."""
    tensor_lr = any(isinstance(o.get("lr"), Scalar) for o in trace.given_options)
    return (
        not subject.unsupported
        and {p.dtype for p in trace.parameters} <= set(subject.dtypes)
        and (subject.sparse or not trace.given_sparse)
        and (subject.tensor_lr or not tensor_lr)
    )


#: Where the compiled code of these rounds to a narrow format is not known: Adafactor reads norms into Python numbers half-way, Muon
#: multiplies matrices, Rprop writes its factors into a tensor.
_COMPILED_WIDE = ("Adafactor", "Muon", "Rprop")


def _torch_dtypes(spec: Spec, keywords: Mapping[str, bool], mode: str) -> tuple[str, ...]:
    if mode == "compiled" and spec.name in _COMPILED_WIDE:
        return ("float32", "float64")
    # Scalar products of LBFGS leave float16 where its vectors do not, and comparisons of infinities then decide which way it
    # goes: it is not checked there.
    floating = tuple(d for d in FLOATING if not (spec.closure and d == "float16"))
    return floating + (COMPLEX if spec.complex and "fused" not in keywords else ())


def resolve(text: str, like: str | None = None) -> list[Subject]:
    """The subjects that a word on the command line means.

    Args:
        text: ``torch``, ``torch:Adam``, ``torch:Adam[foreach]``, ``fast``, ``fast:Adam`` or ``package.module:ClassOrFactory``.
        like: the reference that a class is held to; for ``torch`` and ``fast`` the name says it.

    Raises:
        UsageError: no such subject.
    """
    family, _, rest = text.partition(":")
    if family == "torch":
        return _resolve_torch(text, rest)
    if family == "fast":
        return _resolve_fast(text, rest)
    if not rest:
        raise UsageError(
            f"unknown subject {text!r}; known: {', '.join(FAMILIES)}, torch:NAME[MODE], or package.module:Class with --like"
        )
    if like is None:
        raise UsageError(f"{text}: say which reference it is held to, with --like (one of {', '.join(SPECS)})")
    subject = class_subject(_load(family, rest, text), like, text)
    # Scripts import what was named, which need not be where it was defined.
    return [replace(subject, callee=rest, imports=f"from {family} import {rest.partition('.')[0]}")]


def _resolve_torch(text: str, rest: str) -> list[Subject]:
    if not rest:
        if text != "torch":
            raise UsageError(f"{text!r}: name an optimizer after the colon (one of {', '.join(SPECS)})")
        return [torch_subject(name, mode) for name in SPECS for mode in TORCH_MODES[name]]
    name, bracket, mode = rest.partition("[")
    spec_of(name)
    if not bracket:
        return [torch_subject(name, mode) for mode in TORCH_MODES[name]]
    mode = mode.removesuffix("]")
    if mode not in TORCH_MODES[name] or not rest.endswith("]"):
        raise UsageError(f"{text!r}: torch.optim.{name} has the modes {', '.join(TORCH_MODES[name])}")
    return [torch_subject(name, mode)]


def _resolve_fast(text: str, rest: str) -> list[Subject]:
    if not rest:
        if text != "fast":
            raise UsageError(f"{text!r}: name an optimizer after the colon (one of {', '.join(SPECS)})")
        modes = ("", *(mode for mode in FAST_MODES if mode != "cuda" or not no_cuda()))
        return [fast_subject(name, mode) for mode in modes for name in SPECS if mode in ("", *fast_modes(name))]
    name, bracket, mode = rest.partition("[")
    spec_of(name)
    if not bracket:
        return [fast_subject(name)]
    mode = mode.removesuffix("]")
    if mode not in fast_modes(name) or not rest.endswith("]"):
        raise UsageError(f"{text!r}: fast:{name} has the modes {', '.join(fast_modes(name))}, or none, for the CPU")
    return [fast_subject(name, mode)]


def _load(module: str, attribute: str, text: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - whatever the module's own code raises on import
        raise UsageError(f"{text}: cannot import {module} ({type(error).__name__}: {error})") from None
    except SystemExit as error:  # a script that ends in sys.exit(main())
        told = f"it exits when it is imported, with {error.code!r}"
        raise UsageError(
            f"{text}: cannot import {module}: {told}; keep what runs under if __name__ == '__main__'"
        ) from None
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(f"{text}: {module} has no {attribute}")
        found = getattr(found, part)
    make: Callable[..., Any] = found
    return make
