"""Who plays a trace: modes of ``torch.optim``, and anybody's optimizer class. Each declares how it computes."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from stepcheck.harness.life.trace import Scalar, SetOption, Step, Trace
from stepcheck.harness.numbers.formats import (
    BFLOAT16,
    BINARY32,
    BINARY64,
    COUNTERS32,
    COUNTERS64,
    FORMATS,
    SCALARS32,
    SCALARS64,
    Arithmetic,
    Format,
)
from stepcheck.harness.play import signature
from stepcheck.harness.play.signature import Closure, Signature
from stepcheck.harness.support import settings
from stepcheck.harness.support.text import named
from stepcheck.reference import SPECS, Spec
from stepcheck.reference.arithmetic import ORDERS
from stepcheck.reference.compensated import compensated


class UsageError(Exception):
    """What the caller asked for does not exist or makes no sense; the message is one line and says how to mend it."""


class UnbuiltError(UsageError):
    """A constructor does not build an optimizer of one parameter."""


@dataclass(frozen=True)
class Profile:
    """The facts about a subject's arithmetic that are its own choice and not an error.

    Attributes:
        reason: why these are the facts.
        orders: the orders of operations that it may use (see ``stepcheck.reference.arithmetic``).
        division: roundings that a quotient costs it.
        square_root: roundings that a square root costs it.
        power: roundings that a power costs it, two for each ulp; of C's pow, which glibc states to be off by less than one.
        flush_to_zero: operations in float32 take subnormal numbers for zero, and make zero of subnormal results.
        narrow: how it computes with float16 and bfloat16: ``"each"`` rounds the result of each operation of torch, carried
            out in float32, to the dtype; ``"every"`` has no operations that combine several, and may keep a part of
            the elements in float32 meanwhile; ``"once"`` computes the whole
            step in float32 and rounds what it stores.
        narrow_scalars: in float16 and bfloat16, hyperparameters are rounded to the dtype before they are used, not to float32.
        wider: it computes the step of float32 in a wider format and rounds what it stores: what overflows on the way in float32
            need not, and what is beyond the format in the end is not determined.
        regroups: it may evaluate any other grouping of the same operations, and what leaves the format in one need not in another.
        scalars: the format in which hyperparameters are held, and scalars are computed from them alone.
        counters: the format in which scalars are computed that depend on a number kept for each parameter (``step``).
        in_place: the same, for a number that is updated in place (``mu_product``).
        products: the format of matrix products: ``"bfloat16"``; ``"wide"``, float64 for float64 and float32 for all others;
            ``"tensor_cores"``, float64 for float64 and bfloat16 for all others; or ``"any"`` of them, where that is not known.
        products_rounded_once: matrix products in bfloat16 are accumulated wider, addend included, and rounded once.
    """

    reason: str
    orders: frozenset[str] = frozenset()
    division: float = 1.0
    square_root: float = 1.0
    narrow: str = "each"
    narrow_scalars: bool = False
    counters: str = "float64"
    in_place: str = "float64"
    products: str = "bfloat16"
    products_rounded_once: bool = False
    power: float = 2.0
    flush_to_zero: bool = False
    wider: bool = False
    regroups: bool = False
    scalars: str = "float64"

    def products_format(self, dtype: str) -> Format | None:
        """The format of matrix products for parameters of ``dtype``; ``None`` where it is not known."""
        if self.products in ("wide", "tensor_cores") and FORMATS[dtype] is BINARY64:
            return BINARY64
        if self.products == "wide":
            return BINARY32
        return None if self.products == "any" else BFLOAT16

    def arithmetic(self, dtype: str) -> Arithmetic:
        """The arithmetic for parameters of ``dtype``."""
        element = FORMATS[dtype]
        operations = (self.division, self.square_root, self.orders)
        if element is BINARY64:
            return Arithmetic(element, *operations, overflow=not self.regroups, regroups=self.regroups)
        if element is BINARY32 or self.narrow == "once":
            sure = not (self.wider or self.regroups)
            return Arithmetic(BINARY32, *operations, flushes=self.flush_to_zero, overflow=sure, regroups=self.regroups)
        entry = element if self.narrow_scalars else None
        each = self.narrow == "each"
        # With tensors of one float32 number, a parameter of no dimension is computed in float32 as well.
        sure = each and self.counters == self.in_place == "float64"
        return Arithmetic(
            element, *operations, inner=BINARY32, entry=entry, overflow=sure, composites=each, regroups=self.regroups
        )

    @property
    def options(self) -> Arithmetic:
        """The arithmetic of hyperparameters."""
        return _regrouping({"float32": SCALARS32, "float64": SCALARS64}[self.scalars], self.regroups)

    def kept(self, format_: str) -> Arithmetic:
        """The arithmetic of numbers kept for each parameter, where it is that of ``counters`` or of ``in_place``."""
        return _regrouping(_counters(format_, self.power), self.regroups)

    @functools.cached_property
    def as_written(self) -> Profile:
        """The same, but that groups operations as the reference does."""
        return replace(self, regroups=False) if self.regroups else self

    def computing(self, dtype: str) -> Profile:
        """The same for parameters of ``dtype``: where nothing is known, scalars may be computed in no less than the parameter's precision."""
        return self._in_single if self.regroups and FORMATS[dtype] is not BINARY64 else self

    @functools.cached_property
    def _in_single(self) -> Profile:
        return replace(self, scalars="float32", counters="float32", in_place="float32")


@functools.cache
def _regrouping(arithmetic: Arithmetic, regroups: bool) -> Arithmetic:
    return replace(arithmetic, regroups=True, overflow=False) if regroups else arithmetic


@functools.cache
def _counters(format_: str, power: float) -> Arithmetic:
    made = {"float32": COUNTERS32, "float64": COUNTERS64}[format_]
    return made if power == made.power else replace(made, power=power)


_TORCH_CPU = (
    "torch.optim on CPU evaluates operation by operation in the parameter's dtype, with correctly rounded division and square"
    " root (in float16 and bfloat16 each operation is carried out in float32 and rounded once, but a scalar that is added, or"
    " scales what is added, is rounded to the dtype first), forms scalars as Python floats, and averages with lerp; its C++"
    " kernels may contract products and sums (fewer roundings)"
)
TORCH_CPU = Profile(_TORCH_CPU, orders=frozenset({"lerp"}))
_FUSED = replace(
    TORCH_CPU,
    reason=_TORCH_CPU + "; the fused kernels compute the whole step of float16 and bfloat16 in float32",
    narrow="once",
)


def _also(profile: Profile, reason: str, *orders: str, without: tuple[str, ...] = (), **changes: Any) -> Profile:
    """A profile with further facts."""
    declared = profile.orders.difference(without) | set(orders)
    return replace(profile, reason=f"{profile.reason}; {reason}", orders=declared, **changes)


_FOREACH = replace(
    TORCH_CPU,
    reason=_TORCH_CPU + "; torch._foreach_mul_ rounds its scalar to the dtype",
    narrow_scalars=True,
)
_COMPILED = Profile(
    reason=(
        "torch.compile traces the step with its number as a float32 tensor, and its CPU code fuses the whole step: float16 and"
        " bfloat16 are computed in float32 and rounded when stored, products and sums contracted, quotients perhaps products"
        " with a reciprocal; which order it takes is the compiler's choice"
    ),
    orders=ORDERS | {"written"},
    division=2.0,
    narrow="once",
    counters="float32",
    in_place="float32",
)
#: A compilation takes a second or more, each trace needs some, and a trace elsewhere some ten milliseconds.
_COMPILED_COST = 100
#: Profiles of torch's modes; where an optimizer is not named in one, what is said for the mode holds.
MODE_PROFILES = {
    "forloop": TORCH_CPU,
    "foreach": _FOREACH,
    "fused": _FUSED,
    "capturable": _FUSED,
    "differentiable": TORCH_CPU,
    "compiled": _COMPILED,
}
TORCH_PROFILES: dict[tuple[str, str], Profile] = {
    **{
        ("ASGD", mode): _also(
            TORCH_CPU, "it averages by adding a difference, and copies the parameter while mu is 1", "naive_lerp", "copied",
            without=("lerp",),
        )
        for mode in ("forloop", "differentiable")
    },
    ("ASGD", "foreach"): _also(
        _FOREACH, "it averages by adding a difference, folds lambd into the gradient, and computes eta from the float32 step",
        "naive_lerp", "folded", without=("lerp",), counters="float32",
    ),
    ("NAdam", "forloop"): _also(TORCH_CPU, "it corrects the second moment before its root", "textbook_root"),
    ("NAdam", "differentiable"): _also(
        TORCH_CPU,
        "it corrects the second moment before its root, scales the numerators first, and computes with mu_product as the"
        " float32 tensor that it is",
        "textbook_root", "folded", in_place="float32",
    ),
    **{
        (name, "differentiable"): _also(
            TORCH_CPU, "it folds the learning rate into the divisor, and the step is a float32 tensor", "folded",
            counters="float32",
        )
        for name in ("Adam", "AdamW")
    },
    **{
        ("RAdam", mode): _also(TORCH_CPU, "it divides a number by a tensor, which is a product with its reciprocal", "reciprocal")
        for mode in ("forloop", "differentiable")
    },
    ("Muon", "forloop"): _also(
        TORCH_CPU, "its products of bfloat16 are accumulated in float32 and rounded once", products_rounded_once=True
    ),
    ("Adagrad", "fused"): replace(
        TORCH_CPU,
        reason=_TORCH_CPU + "; its fused kernel computes float16 and bfloat16 in vectors of that dtype, scalars and all, but what is left"
        " over after the last whole vector in float32",
        narrow="every",
        narrow_scalars=True,
    ),
    **{
        ("Adagrad", mode): _also(
            TORCH_CPU, "of a sparse gradient it squares and divides first", "written", "square_first", "quotient_first"
        )
        for mode in ("forloop", "differentiable")
    },
    ("Adagrad", "foreach"): _also(
        _FOREACH, "it scales the gradient first; of a sparse gradient it squares and divides first, and scales last",
        "folded", "written", "square_first", "quotient_first",
    ),
    ("RAdam", "foreach"): _also(_FOREACH, "it folds all scalars into the divisor and takes its reciprocal", "folded"),
    ("Adafactor", "forloop"): _also(TORCH_CPU, "it squares a norm, and uses rsqrt", "norm", "reciprocal"),
    ("Adafactor", "foreach"): _also(_FOREACH, "it squares a norm, and uses rsqrt", "norm", "reciprocal"),
    ("SparseAdam", "forloop"): _also(
        TORCH_CPU, "it averages by adding a difference", "naive_lerp", "quotient_first", without=("lerp",)
    ),
    **{
        ("Rprop", mode): _also(TORCH_CPU, "it writes the factors into a tensor of the dtype", narrow_scalars=True)
        for mode in ("forloop", "foreach", "differentiable")
    },
}  # fmt: skip
ANY_CLASS = Profile(
    reason=(
        "nothing is known of somebody's class but that it computes in the parameter's dtype or a wider one, with hyperparameters as"
        " Python floats: any algebraically equal grouping of the operations is accepted, and a quotient may be a product with a"
        " reciprocal; an intermediate result that leaves the format need not leave it there; with float16 and bfloat16 it may round"
        " every intermediate result, or only the last; matrices may be multiplied in bfloat16 or in float32 and wider"
    ),
    orders=ORDERS | {"written"},
    division=2.0,
    narrow="every",
    narrow_scalars=True,
    products="any",
    wider=True,
    regroups=True,
)


_NARROW = ("bfloat16", "float16")
_FLOATING = ("float32", "float64", *_NARROW)
_COMPLEX = ("complex64", "complex128")


def _fast(device: str) -> Profile:
    return Profile(
        reason=(
            "stepcheck.fast evaluates the formula as it is written, one element at a time: in float64 for float64 and in float32 for all"
            f" else, rounding what it stores; scalars are formed in float64 and rounded once; {device}"
        ),
        narrow="once",
    )


_FAST = _fast("division and square root are the processor's, products and sums may be contracted (fewer roundings)")
_FAST_CUDA = _fast("its kernels for CUDA round each operation as IEEE 754 says, and contract none")
#: By name, and ``triton`` for kernels for CUDA, whoever runs them.
FAST_PROFILES: dict[tuple[str, str], Profile] = {
    **{
        (name, mode): _also(fast, reason, *orders)
        for mode, fast in (("", _FAST), ("triton", _FAST_CUDA))
        for name, reason, *orders in (
            ("RMSprop", "it divides before it scales", "quotient_first", "written"),
            ("RAdam", "it folds all scalars into one", "folded", "written"),
            ("Adafactor", "it multiplies by reciprocals of roots", "reciprocal", "written"),
        )
    },
    ("LBFGS", ""): _also(
        TORCH_CPU,
        "stepcheck.fast forms the scalar products of float32 and float64 in float64; all else is operations of torch",
    ),
    ("LBFGS", "triton"): _also(
        TORCH_CPU,
        "the kernels of stepcheck.fast for CUDA form scalar products and sums of float32 in float64, and round a direction once; all else"
        " is operations of torch, which contract products and sums on a GPU as well",
    ),
    ("Muon", ""): _also(
        _FAST,
        "it averages with lerp, and multiplies matrices in float64 for float64 and in float32 for all else",
        "lerp",
        products="wide",
    ),
    ("Muon", "triton"): _also(
        _FAST_CUDA,
        "it averages with lerp, and multiplies matrices in float64 for float64 and in bfloat16 for all else, each product accumulated in"
        " float32; the norm is that of the matrix in bfloat16, and rounded to it; how often a library rounds a product is its own choice",
        "lerp",
        products="tensor_cores",
    ),
}


def fast_profile(name: str, mode: str = "") -> Profile:
    """How ``stepcheck.fast.<name>`` computes on the CPU or, in any mode, by its kernels for CUDA."""
    return FAST_PROFILES.get((name, "triton" if mode else ""), _FAST_CUDA if mode else _FAST)


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
    """

    name: str
    spec: Spec
    make: Callable[..., Any]
    computes: Profile | Callable[[], Profile]
    options: frozenset[str]
    explicit: bool
    callee: str
    imports: str = ""
    dtypes: tuple[str, ...] = _FLOATING
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

    @functools.cached_property
    def profile(self) -> Profile:
        """How it computes."""
        return self.computes() if callable(self.computes) else self.computes

    def complete(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options to pass: where its own defaults may rightly differ from the Spec's, all that it has.

        What is left open by default stays open: it is filled in by the constructor alone, so a group has no use for it.
        """
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
        """Why a life that has a meaning has none for somebody's class, or nothing."""
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
        return {k: (v.value if isinstance(v, Scalar) else v) for k, v in self.complete(options).items()}

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
        missing = [h.name for h in self.spec.hyper if h.name not in self.options]
        return tuple(missing + [f"{name}={choice!r}" for name, choices in self.refused.items() for choice in choices])


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
        unsupported = _refusal(cls, keywords)
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
        refused=_refused_choices(spec, cls),
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
        computes=functools.partial(_counted_profile, name)
        if mode == "cuda"
        else fast_profile(name, "" if carries else mode),
        options=frozenset(h.name for h in spec.hyper if h.name in inspect.signature(cls).parameters),
        explicit=False,
        callee=name,
        imports=f"from {module.__name__} import {name}",
        dtypes=_NARROW if carries else _torch_dtypes(spec, {}, ""),
        mode_options={COMPENSATED: True} if carries else {},
        cost=cost * (2 if carries else _MODE_COST if mode else 1),
        unsupported={"triton": no_triton, "cuda": no_cuda}.get(mode, str)() or native.unavailable(),
        tensor_lr=True,
        prepare=tuple if mode else cls.kernels,
        device="cuda" if mode == "cuda" else "cpu",
        refused=_refused_choices(spec, cls),
    )


def _counted_profile(name: str) -> Profile:
    """The profile of a fast optimizer on the GPU here, from what was counted in its kernels."""
    from stepcheck.harness.census.facts import cuda_profile  # which compiles them

    major, minor = torch.cuda.get_device_capability()
    return cuda_profile(name, 10 * major + minor)


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
    return spec.name != "Adafactor" and mode != "compiled" and not _refusal(cls, keywords, tensor_lr=True)


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
    floating = tuple(d for d in _FLOATING if not (spec.closure and d == "float16"))
    return floating + (_COMPLEX if spec.complex and "fused" not in keywords else ())


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


def _refused_choices(spec: Spec, cls: Any) -> dict[str, tuple[str, ...]]:
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
        return _refused_choices(spec, own)
    return {h.name: tuple(choice for choice, _ in h.later) for h in spec.hyper if h.later}


def _refusal(cls: Any, keywords: Mapping[str, bool], *, tensor_lr: bool = False) -> str:
    """Why a class does not take these keywords for CPU tensors, in its own words, or nothing."""
    return _refused(cls, tuple(sorted(keywords.items())), tensor_lr=tensor_lr)


@settings.kept()  # to see how it is called it is constructed, and may change what it must not
def class_subject(
    make: Callable[..., Any], like: str, name: str | None = None, profile: Profile = ANY_CLASS
) -> Subject:
    """Somebody's optimizer class or factory, held to the reference named ``like``.

    Raises:
        UsageError: there is no such reference, or ``make`` cannot be called as an optimizer.
    """
    spec = _spec(like)
    if not callable(make):
        raise UsageError(f"{name or named(make)} is not callable; name a class or a function that returns an optimizer")
    takes = _read(make, spec, name or named(make))
    module, attribute = getattr(make, "__module__", "__main__"), getattr(make, "__qualname__", "optimizer")
    return Subject(
        name=name or f"{module}:{attribute}",
        spec=spec,
        make=make,
        computes=profile,
        options=takes.options,
        explicit=True,
        callee=attribute,
        imports=f"from {module} import {attribute.split('.')[0]}",
        dtypes=_FLOATING + (_COMPLEX if spec.complex else ()),
        # What somebody's class does with narrow or complex numbers, and with sparse gradients, is theirs to say.
        usual_dtypes=("float32", "float64"),
        sparse=spec.sparse == "only",
        refused={name: choices for name, choices in _later_choices(make, spec).items() if name in takes.options},
        takes=takes,
        after="optimizer.train()" if takes.modes else "",
    )


def asked_for(subject: Subject, *, sparse: bool, tensor_lr: bool) -> Subject:
    """Somebody's class with what it is not given unasked: whether it takes that is its author's to say.

    Args:
        sparse: sparse gradients.
        tensor_lr: learning rates that are tensors.

    Raises:
        UsageError: its reference gives sparse gradients no meaning; or it has no option ``lr``.
    """
    if sparse and not subject.spec.sparse:
        known = ", ".join(name for name, spec in SPECS.items() if spec.sparse)
        raise UsageError(
            f"{subject.name}: {subject.spec.name} gives sparse gradients no meaning, {known} do: ask for none"
        )
    if tensor_lr and "lr" not in subject.options:
        raise UsageError(f"{subject.name}: it has no option lr that could be a tensor: name a factory that has one")
    return replace(subject, sparse=sparse or subject.sparse, tensor_lr=tensor_lr or subject.tensor_lr)


def _read(make: Callable[..., Any], spec: Spec, name: str) -> Signature:
    try:
        names, _ = signature.keywords(make)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{name}: its signature cannot be read ({error})") from None
    options = [h.name for h in spec.hyper if h.name in names]
    try:
        inspect.signature(make).bind([], **dict.fromkeys(options))
    except TypeError as error:
        raise UsageError(
            f"{name} cannot be called with (params, {', '.join(options) or 'no options'}): {error}; "
            "it is no optimizer, or name a factory function that fills in the rest"
        ) from None
    try:
        return signature.read(make, spec)
    except signature.UnbuildableError as error:
        raise UnbuiltError(
            f"{name}([torch.ones(2, 2, requires_grad=True)]) {error}; expected is an optimizer: a class or factory that is called with "
            "parameters and options; name a factory that fills in the rest"
        ) from None


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
    _spec(name)
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
    _spec(name)
    if not bracket:
        return [fast_subject(name)]
    mode = mode.removesuffix("]")
    if mode not in fast_modes(name) or not rest.endswith("]"):
        raise UsageError(f"{text!r}: fast:{name} has the modes {', '.join(fast_modes(name))}, or none, for the CPU")
    return [fast_subject(name, mode)]


def _spec(name: str) -> Spec:
    if name not in SPECS:
        raise UsageError(f"no reference named {name!r}; there is {', '.join(SPECS)}")
    return SPECS[name]


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
