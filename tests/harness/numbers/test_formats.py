"""The constants of each format are those of the hardware's and of the libraries' own."""

import numpy as np
import pytest
import torch

from stepcheck.harness.numbers.formats import (
    BFLOAT16,
    BINARY16,
    BINARY32,
    BINARY64,
    COUNTERS,
    COUNTERS32,
    COUNTERS64,
    ELEMENTS,
    FORMATS,
    OPTIONS,
    REFERENCE_ROUNDOFF,
    SCALARS32,
    SCALARS64,
    Arithmetic,
)

DTYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
numpy_formats = pytest.mark.parametrize("name", DTYPES)
#: Of a complex dtype, FORMATS says what its parts are.
every_format = pytest.mark.parametrize("name", [n for n in FORMATS if not n.startswith("complex")])


def round_trip(x, name):
    """``x`` as a tensor of this dtype holds it."""
    return torch.from_numpy(x).to(getattr(torch, name)).double().numpy()


def sample(rng, fmt, n):
    """float64 numbers, many of them at or next to a number of the format, subnormal and overflowing ones among them."""
    lowest = fmt.min_exponent - fmt.significand_bits
    highest = int(np.frexp(fmt.largest)[1])
    exponent = rng.integers(lowest - 2, min(highest + 3, 1024), n)
    # A few significant bits more and fewer than the format has.
    bits = rng.integers(1, fmt.significand_bits + 3, n)
    fraction = np.rint(np.ldexp(rng.uniform(-1, 1, n), bits))
    few_bits = np.ldexp(fraction, exponent - bits)
    return np.where(rng.random(n) < 0.2, np.nextafter(few_bits, rng.choice([-np.inf, np.inf], n)), few_bits)


def edges(fmt):
    smallest = 2 * fmt.underflow if fmt is not BINARY64 else fmt.underflow
    sizes = [0.0, smallest, 1.5 * smallest, 3 * smallest, 2.0**fmt.min_exponent, 2.0**fmt.min_exponent - smallest, 1.0]
    sizes += [1 + fmt.unit_roundoff, 1 + 2 * fmt.unit_roundoff, fmt.largest, fmt.largest * (1 + fmt.unit_roundoff)]
    sizes += [1 / 3, np.pi, np.inf]
    return np.array([*sizes, *(-x for x in sizes), np.nan])


@numpy_formats
def test_constants_are_those_of_numpy(name):
    fmt, info = FORMATS[name], np.finfo(DTYPES[name])
    assert fmt.unit_roundoff == info.eps / 2
    assert fmt.largest == info.max
    assert fmt.significand_bits == info.nmant + 1
    assert 2.0**fmt.min_exponent == info.smallest_normal


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_underflow_unit_is_half_the_smallest_subnormal(name):
    assert FORMATS[name].underflow == np.float64(np.finfo(DTYPES[name]).smallest_subnormal) / 2


def test_underflow_unit_of_binary64_counts_the_subject_and_the_reference():
    assert BINARY64.underflow == np.finfo(np.float64).smallest_subnormal > 0


@every_format
def test_constants_are_those_of_torch(name):
    fmt, info = FORMATS[name], torch.finfo(getattr(torch, name))
    assert fmt.unit_roundoff == info.eps / 2
    assert fmt.largest == info.max
    assert 2.0**fmt.min_exponent == info.smallest_normal


def test_formats_are_named_as_ieee_754_names_them():
    real = {"float16": BINARY16, "bfloat16": BFLOAT16, "float32": BINARY32, "float64": BINARY64}
    assert real | {"complex64": BINARY32, "complex128": BINARY64} == FORMATS
    assert [f.name for f in real.values()] == ["binary16", "bfloat16", "binary32", "binary64"]


@pytest.mark.parametrize("name", ["complex64", "complex128"])
def test_format_of_a_complex_dtype_is_that_of_its_parts(name):
    part = torch.view_as_real(torch.zeros(1, dtype=getattr(torch, name))).dtype
    assert FORMATS[name] is FORMATS[str(part).removeprefix("torch.")]


@every_format
def test_number_is_represented_if_a_round_trip_keeps_it(name):
    fmt = FORMATS[name]
    x = np.concatenate([edges(fmt), sample(np.random.default_rng(1), fmt, 100_000)])
    kept = (round_trip(x, name) == x) | np.isnan(x)
    np.testing.assert_array_equal(fmt.represents(x), kept)
    # Not vacuous: both answers occur, but for binary64, which holds every float64.
    assert 0.1 < kept.mean() < 0.9 or fmt is BINARY64


@pytest.mark.parametrize("name", ["float16", "float32"])
def test_number_is_represented_if_numpy_keeps_it(name):
    fmt = FORMATS[name]
    x = np.concatenate([edges(fmt), sample(np.random.default_rng(2), fmt, 100_000)])
    with np.errstate(over="ignore", under="ignore"):
        kept = (x.astype(DTYPES[name]).astype(np.float64) == x) | np.isnan(x)
    np.testing.assert_array_equal(fmt.represents(x), kept)


@every_format
def test_every_number_of_the_format_is_represented(name):
    fmt, rng = FORMATS[name], np.random.default_rng(3)
    # All bit patterns of the narrow formats, a sample of the wide ones.
    width = torch.finfo(getattr(torch, name)).bits
    bits = (
        np.arange(1 << 16, dtype=np.uint16)
        if width == 16
        else rng.integers(1 << width, size=100_000, dtype=f"u{width // 8}")
    )
    x = torch.from_numpy(bits.view(f"i{width // 8}")).view(getattr(torch, name)).double().numpy()
    assert fmt.represents(x).all()


@every_format
def test_represents_keeps_the_shape(name):
    for shape in ((), (1,), (3, 2)):
        assert np.shape(FORMATS[name].represents(np.ones(shape))) == shape


@every_format
def test_rounding_errs_by_no_more_than_the_units(name):
    fmt = FORMATS[name]
    x = sample(np.random.default_rng(4), fmt, 100_000)
    x = x[np.abs(x) <= fmt.largest]
    if fmt in (BINARY16, BFLOAT16):
        # torch converts a float64 to these by way of float32, which would round twice.
        x = round_trip(x, "float32")
    error, tiny = np.abs(round_trip(x, name) - x), np.abs(x) < 2.0**fmt.min_exponent
    assert (error[~tiny] <= fmt.unit_roundoff * np.abs(x[~tiny])).all()
    assert (error[tiny] <= fmt.underflow).all()
    if fmt is not BINARY64:
        assert error[tiny].max() == fmt.underflow


def test_unit_of_an_arithmetic_counts_the_rounding_of_the_reference():
    assert np.finfo(np.float64).eps / 2 == REFERENCE_ROUNDOFF
    for fmt in FORMATS.values():
        assert Arithmetic(fmt).unit == fmt.unit_roundoff + REFERENCE_ROUNDOFF


@pytest.mark.parametrize("fmt", [BINARY16, BFLOAT16], ids=["float16", "bfloat16"])
def test_operation_in_a_wider_format_rounds_to_both(fmt):
    arithmetic = Arithmetic(fmt, inner=BINARY32, orders=frozenset({"lerp"}), division=2.0)
    assert arithmetic.unit == fmt.unit_roundoff + BINARY32.unit_roundoff + REFERENCE_ROUNDOFF
    inside = arithmetic.within
    assert (inside.format, inside.inner, inside.entry) == (BINARY32, None, None)
    assert (inside.orders, inside.division) == (arithmetic.orders, 2.0)
    assert inside.unit == BINARY32.unit_roundoff + REFERENCE_ROUNDOFF
    assert Arithmetic(fmt).within.format is fmt


def test_plain_number_enters_in_the_wider_format_unless_it_is_said_otherwise():
    assert Arithmetic(BFLOAT16).entering.format is BFLOAT16
    assert Arithmetic(BFLOAT16, inner=BINARY32).entering.format is BINARY32
    assert Arithmetic(BFLOAT16, inner=BINARY32, entry=BFLOAT16).entering.format is BFLOAT16


def test_levels_are_ordered_as_one_enters_the_other():
    assert OPTIONS < COUNTERS < ELEMENTS
    assert SCALARS64.level == OPTIONS
    assert (SCALARS32.format, SCALARS32.level) == (BINARY32, OPTIONS)
    assert (COUNTERS32.format, COUNTERS32.level) == (BINARY32, COUNTERS)
    assert (COUNTERS64.format, COUNTERS64.level) == (BINARY64, COUNTERS)


def test_arithmetic_is_ieee_754_unless_it_says_otherwise():
    plain = Arithmetic(BINARY32)
    assert (plain.division, plain.square_root, plain.orders, plain.level) == (1.0, 1.0, frozenset(), ELEMENTS)
    assert SCALARS64.format is BINARY64
    assert SCALARS64.level == OPTIONS


@pytest.mark.parametrize("name", ["float16", "bfloat16"])
def test_a_number_and_what_rounding_it_loses_hold_twice_as_many_bits(name):
    fmt = FORMATS[name]
    edge = fmt.largest * (1 + fmt.unit_roundoff)  # beyond half a unit in the last place, the largest becomes infinite
    x = np.append(sample(np.random.default_rng(0), fmt, 100_000), [np.nextafter(edge, 0), fmt.largest])
    x = x[np.abs(x) < fmt.doubled.largest]
    stored = round_trip(x, name)
    assert np.isfinite(stored).all()
    lost = round_trip(x - stored, name)
    apart = np.abs(stored + lost - x)
    bound = fmt.doubled.unit_roundoff * np.abs(x) + fmt.doubled.underflow
    assert (apart <= bound).all()
    assert (apart > 0.4 * bound).any()  # and no looser than it need be
    assert (apart[fmt.doubled.represents(x)] == 0).all()
    assert (
        round_trip(np.array([np.nextafter(fmt.doubled.largest, np.inf) + fmt.doubled.largest * 2.0**-30]), name)
        == np.inf
    )
