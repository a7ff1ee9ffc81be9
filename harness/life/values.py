"""Contents of tensors as recipes: a name, a seed and a range stand for numbers that are the same on every machine.

A recipe's meaning never changes: a new one gets a new name, so a trace saved today means the same for ever.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

DTYPES = ("float32", "float64", "bfloat16", "float16", "complex64", "complex128")

Array = npt.NDArray[np.float64]


_GOLDEN, _MIX1, _MIX2 = map(np.uint64, (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
_1, _11, _27, _30, _31, _63 = map(np.uint64, (1, 11, 27, 30, 31, 63))
_LOW10 = np.uint64((1 << 10) - 1)


@functools.lru_cache(maxsize=256)
def _golden_multiples(count: int) -> npt.NDArray[np.uint64]:
    return np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN


def splitmix64(seed: int, count: int) -> npt.NDArray[np.uint64]:
    """``count`` pseudorandom 64-bit words: Steele, Lea, Flood, *Fast splittable pseudorandom number generators*, 2014."""
    start = np.uint64(seed * 0xD1342543DE82EF95 % 2**64)
    # Unsigned array arithmetic wraps around silently, as the algorithm wants.
    z = _golden_multiples(count) + start
    z ^= z >> _30
    z *= _MIX1
    z ^= z >> _27
    z *= _MIX2
    z ^= z >> _31
    return z


def splitmix64_word(seed: int) -> int:
    """The first of these words: for one, an array costs more than Python's integers."""
    z = (seed * 0xD1342543DE82EF95 + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def _fraction(words: npt.NDArray[np.uint64]) -> Array:
    """The upper 53 bits as a number in [0, 1)."""
    fraction: Array = (words >> _11).astype(np.float64)
    fraction *= 2.0**-53
    return fraction


def _constant(values: Values, count: int) -> Array:
    return np.full(count, values.high)


def _log(values: Values, count: int) -> Array:
    """Random sign, magnitude from low to high, every binade as likely as the next.

    Exact operations only (no logarithm), so the same on every machine.
    """
    if not 0 < values.low <= values.high < math.inf:
        return np.zeros(count)
    words = splitmix64(values.seed, count)
    low, high = math.frexp(values.low)[1], math.frexp(values.high)[1]
    exponent = ((words >> _1) & _LOW10).astype(np.int64)
    exponent *= high - low + 1
    exponent >>= 10
    exponent += low
    x = _fraction(words)
    x *= 0.5
    x += 0.5
    np.ldexp(x, exponent, out=x)
    np.maximum(x, values.low, out=x)
    np.minimum(x, values.high, out=x)
    # The lowest bit is the sign.
    bits = x.view(np.uint64)
    bits ^= words << _63
    return x


def _sparse_log(values: Values, count: int) -> Array:
    """As ``log``, with a quarter of the elements zero, of either sign."""
    x = _log(values, count)
    drop = splitmix64(values.seed + 1, count) >> np.uint64(62) == 0
    return np.where(drop, np.copysign(0.0, x), x)


def _quarters(values: Values, count: int) -> Array:
    """Multiples of a quarter of ``high``, from -high to high: exact in every format, easy to read."""
    words = splitmix64(values.seed, count)
    return ((words >> np.uint64(32)) % np.uint64(9)).astype(np.float64) * (values.high / 4) - values.high


def _extremes(values: Values, count: int) -> Array:
    """As ``log``, with an eighth of the elements infinite, an eighth NaN, an eighth ``low``, an eighth ``high``."""
    x = _log(values, count)
    which = (splitmix64(values.seed + 1, count) >> np.uint64(61)).astype(np.int64)
    special = np.array([np.inf, np.nan, values.low, values.high, 0, 0, 0, 0])[which]
    return np.where(which < 4, np.copysign(special, x), x)


#: Of a ramp: a prime, so that blocks of any size begin somewhere else in it; its numbers, over 2^15, have 16 bits.
RAMP = 65_521


def ramp_stride(seed: int) -> int:
    """How far a ramp goes from one element to the next."""
    return 2 * (seed % 9973) + 7919


def _ramp(values: Values, count: int) -> Array:
    """Numbers that a script can write for a million elements: ``(k * stride % RAMP - RAMP // 2) * high / 2**15`` at element k."""
    turns = np.arange(min(count, RAMP), dtype=np.int64) * ramp_stride(values.seed) % RAMP - RAMP // 2
    return np.resize(turns * (values.high * 2.0**-15), count)  # it comes round again: the rest is the same


def _listed(values: Values, count: int) -> Array:
    assert len(values.listed) == count
    return np.array(values.listed, np.float64)


RECIPES: dict[str, Callable[[Values, int], Array]] = {
    "constant": _constant,
    "quarters": _quarters,
    "log": _log,
    "sparse_log": _sparse_log,
    "extremes": _extremes,
    "listed": _listed,
    "ramp": _ramp,
}


@dataclass(frozen=True)
class Values:
    """The elements of a tensor, in row-major order, before rounding to the tensor's dtype."""

    recipe: str = "constant"
    seed: int = 0
    low: float = 0.0
    high: float = 0.0
    listed: tuple[float, ...] = ()

    def realise(self, shape: tuple[int, ...]) -> Array:
        """A float64 array of ``shape``."""
        return RECIPES[self.recipe](self, math.prod(shape)).reshape(shape)


def is_complex(dtype: str) -> bool:
    """Whether an element of ``dtype`` is two real numbers."""
    return dtype.startswith("complex")


def in_reals(shape: tuple[int, ...], dtype: str) -> tuple[int, ...]:
    """The shape of the real numbers that a tensor holds: of a complex one, real and imaginary parts are a last dimension."""
    return (*shape, 2) if is_complex(dtype) else shape
