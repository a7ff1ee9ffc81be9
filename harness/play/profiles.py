"""What a subject's arithmetic chooses, and is no error: each fact of a profile has its reason."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch

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
from stepcheck.reference.arithmetic import ORDERS


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
        flush_float64: those in float64 do so as well.
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
    flush_float64: bool = False
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
            flushes, sure = self.flush_float64, not self.regroups
            return Arithmetic(element, *operations, flushes=flushes, overflow=sure, regroups=self.regroups)
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
#: Where the compiled code of these rounds to a narrow format is not known: Adafactor reads norms into Python numbers half-way, Muon
#: multiplies matrices, Rprop writes its factors into a tensor.
COMPILED_WIDE = ("Adafactor", "Muon", "Rprop")
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


def counted_profile(name: str) -> Profile:
    """The profile of a fast optimizer on the GPU here, from what was counted in its kernels."""
    from stepcheck.harness.census.facts import cuda_profile  # which compiles them

    major, minor = torch.cuda.get_device_capability()
    return cuda_profile(name, 10 * major + minor)
