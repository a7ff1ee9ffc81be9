"""Floating-point formats and arithmetics, as the constants that rounding error analysis needs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

#: A float64 array or a Python float, whichever is cheaper.
Float = Any
#: The unit roundoff of the float64 in which the reference itself is evaluated.
REFERENCE_ROUNDOFF = 2.0**-53


@dataclass(frozen=True)
class Format:
    """A binary floating-point format, rounding to nearest.

    Attributes:
        unit_roundoff: largest relative error of a rounding, half the distance from 1 to the next number.
        underflow: largest absolute error of a rounding to a subnormal number, half the smallest of them.
        largest: largest finite number.
        smallest: smallest positive normal number.
    """

    name: str
    significand_bits: int
    min_exponent: int
    largest: float

    @functools.cached_property
    def unit_roundoff(self) -> float:
        return 2.0**-self.significand_bits

    @functools.cached_property
    def underflow(self) -> float:
        # For float64 twice that: the subject and the reference both round. 2^-1075 is no float64 anyhow.
        return 2.0 ** (self.min_exponent - self.significand_bits) if self.name != "binary64" else 2.0**-1074

    @functools.cached_property
    def smallest(self) -> float:
        return 2.0**self.min_exponent

    @functools.cached_property
    def doubled(self) -> Format:
        """What the sum of two numbers of this format holds, of which one is what rounding to the other loses."""
        bits = self.significand_bits
        beyond = math.ldexp(1.0, math.frexp(self.largest)[1] - 1 - bits)  # as far as rounding does not reach infinity
        return Format(f"{self.name} and what it loses", 2 * bits, self.min_exponent + bits, self.largest + beyond)

    def represents(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Elementwise, whether ``x`` is a number of this format with nothing to round."""
        if self.significand_bits == 53:
            return np.ones(np.shape(x), bool)
        fraction, exponent = np.frexp(x)
        # Below the normal range the last bit has a fixed weight.
        bits = np.minimum(self.significand_bits, exponent - self.min_exponent + self.significand_bits - 1)
        scaled = np.ldexp(fraction, bits)
        exact: npt.NDArray[np.bool_] = ((scaled == np.rint(scaled)) & (np.abs(x) <= self.largest)) | ~np.isfinite(x)
        return exact


BINARY16 = Format("binary16", 11, -14, 65504.0)
BFLOAT16 = Format("bfloat16", 8, -126, float.fromhex("0x1.fep127"))
BINARY32 = Format("binary32", 24, -126, float.fromhex("0x1.fffffep127"))
BINARY64 = Format("binary64", 53, -1022, float.fromhex("0x1.fffffffffffffp1023"))

#: The format of the elements of each dtype; of a complex dtype, of their real and imaginary parts.
FORMATS = {
    "float16": BINARY16,
    "bfloat16": BFLOAT16,
    "float32": BINARY32,
    "float64": BINARY64,
    "complex64": BINARY32,
    "complex128": BINARY64,
}


#: What a number is to the program that computes with it. Where two meet, the higher level says how their result is rounded.
OPTIONS, COUNTERS, ELEMENTS = range(3)


@dataclass(frozen=True, eq=False)  # compared, and looked up, by identity: it is asked for in every operation
class Arithmetic:
    """How a subject computes: a format, the accuracy of its operations and the orders it may evaluate them in.

    Attributes:
        format: the format that the result of an operation is rounded to.
        division: roundings that a quotient costs: 1 if correctly rounded, 2 if formed as ``a * (1 / b)``.
        square_root: roundings that a square root costs.
        power: roundings that a power costs: two for each ulp.
        flushes: operations take operands that are subnormal for zero, and make results that are subnormal zero.
        orders: names from ``stepcheck.reference.arithmetic.ORDERS``, and ``written``; where an expression offers none of
            them, the written order stands.
        inner: the wider format, if any, that an operation is carried out in before its result is rounded.
        entry: the format that plain numbers enter in: ``inner`` if there is one, unless it is said here.
        overflow: a result beyond the format's largest number becomes infinite for certain; not where a part of the elements is
            computed in a wider format.
        composites: operations that combine several (``torch.addcdiv``) are carried out in ``inner`` and rounded once.
        regroups: it may evaluate any other grouping of the same operations (see ``stepcheck.harness.numbers.regrouping``).
        level: ``OPTIONS`` for hyperparameters, ``COUNTERS`` for numbers kept for each parameter (``step``), ``ELEMENTS`` for
            the elements of tensors.
    """

    format: Format
    division: float = 1.0
    square_root: float = 1.0
    orders: frozenset[str] = frozenset()
    inner: Format | None = None
    entry: Format | None = None
    overflow: bool = True
    composites: bool = True
    level: int = ELEMENTS
    power: float = 2.0
    flushes: bool = False
    regroups: bool = False
    unit: float = field(init=False)
    """The unit roundoff, with that of the reference's own float64 evaluation added."""

    def __post_init__(self) -> None:
        unit: Any = self.format.unit_roundoff + REFERENCE_ROUNDOFF
        if self.inner is not None:  # an operation rounds twice, first to the wider format
            unit += self.inner.unit_roundoff
        object.__setattr__(self, "unit", unit)

    @functools.cached_property
    def within(self) -> Arithmetic:
        """The arithmetic inside one operation."""
        return self if self.inner is None else replace(self, format=self.inner, inner=None, entry=None)

    @functools.cached_property
    def entering(self) -> Arithmetic:
        """The arithmetic that a plain number is rounded in when it meets elements."""
        return self.within if self.entry is None else replace(self, format=self.entry, inner=None, entry=None)


SCALARS64 = Arithmetic(BINARY64, level=OPTIONS)
#: Hyperparameters that are held as tensors of one float32 number, and what is computed with them.
SCALARS32 = Arithmetic(BINARY32, division=2.0, level=OPTIONS)
#: Counters that are read into Python numbers before they are used.
COUNTERS64 = Arithmetic(BINARY64, level=COUNTERS)
#: Counters that are computed with as the float32 tensors that they are; a number over a tensor is a product with its reciprocal.
COUNTERS32 = Arithmetic(BINARY32, division=2.0, level=COUNTERS)
