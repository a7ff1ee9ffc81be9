"""The error bound of each operation covers what an IEEE implementation computes, and stays close to it."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator

import mpmath
import numpy as np
import pytest
import torch

from stepcheck.harness.judging.prediction import bounded_hyper
from stepcheck.harness.numbers.audit import terms
from stepcheck.harness.numbers.bounded import Bounded
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.formats import (
    BFLOAT16,
    BINARY16,
    BINARY32,
    BINARY64,
    COUNTERS32,
    COUNTERS64,
    SCALARS32,
    SCALARS64,
    Arithmetic,
)
from stepcheck.harness.numbers.observed import POINT, seen
from stepcheck.harness.numbers.options import bounded_option
from stepcheck.reference import SPECS
from stepcheck.reference.arithmetic import addcdiv, addcmul, ema, norm, sum_of_squares

SINGLE, DOUBLE = Arithmetic(BINARY32), Arithmetic(BINARY64)
DTYPES = {BINARY32: np.float32, BINARY64: np.float64}

both_arithmetics = pytest.mark.parametrize("arithmetic", [SINGLE, DOUBLE], ids=["binary32", "binary64"])
binary_operations = pytest.mark.parametrize(
    "operation", [np.add, np.subtract, np.multiply, np.divide, np.maximum], ids=operator.attrgetter("__name__")
)


@pytest.fixture(autouse=True)
def ieee():
    """Overflow, underflow and invalid operations are results here, not accidents."""
    with np.errstate(all="ignore"):
        yield


def edges(dtype):
    info = np.finfo(dtype)
    one = dtype(1)
    sizes = [
        *(
            dtype(0),
            info.smallest_subnormal,
            3 * info.smallest_subnormal,
            info.tiny - info.smallest_subnormal,
            info.tiny,
        ),
        *(np.sqrt(info.tiny), info.eps, np.nextafter(one, dtype(0)), one, np.nextafter(one, dtype(2)), dtype(3)),
        *(dtype(2) ** (info.nmant + 1), np.sqrt(info.max), info.max / 2, np.nextafter(info.max, one), info.max),
        *(dtype(np.inf), dtype(np.nan)),
    ]
    return np.array([*sizes, *(-x for x in sizes)], dtype)


def numbers(rng, dtype, n):
    """Numbers of the format: of ordinary size, of any size, powers of two, and the edges of the format."""
    info = np.finfo(dtype)
    fraction = rng.uniform(-1, 1, n)
    exponent = rng.integers(info.minexp - info.nmant, info.maxexp, n)
    drawn = [
        np.ldexp(fraction, rng.integers(-12, 13, n)),
        np.ldexp(fraction, exponent),
        np.ldexp(np.sign(fraction), exponent),
        rng.choice(edges(dtype), n).astype(np.float64),
    ]
    return np.choose(rng.choice(4, n, p=[0.5, 0.3, 0.1, 0.1]), drawn).astype(dtype)


def pairs(rng, dtype, n):
    """Operands at random; every two edges of the format; and neighbours, whose difference cancels."""
    a, b = numbers(rng, dtype, n), numbers(rng, dtype, n)
    one, other = np.meshgrid(edges(dtype), edges(dtype))
    near = a[: n // 10]
    neighbour = np.nextafter(near, rng.choice(np.array([-np.inf, np.inf], dtype), near.size))
    neighbour *= rng.choice(np.array([-1, 1], dtype), near.size)
    return np.concatenate([a, one.ravel(), near]), np.concatenate([b, other.ravel(), neighbour])


def exactly(subject, arithmetic):
    return Bounded(subject.astype(np.float64), 0.0, arithmetic)


def about(rng, subject, arithmetic):
    """A reference operand some way from the subject's, with a bound that is this distance or somewhat more."""
    true, n = subject.astype(np.float64), subject.size
    unit = rng.uniform(-1, 1, n)
    delta = np.choose(
        rng.choice(5, n),
        [
            np.zeros(n),
            4 * arithmetic.unit * true * unit,
            1e-3 * true * unit,
            # The sign is in doubt.
            4 * true * unit,
            8 * arithmetic.format.underflow * rng.integers(-4, 5, n),
        ],
    )
    # An exact zero keeps its sign: it decides that of a quotient.
    value = np.where(np.isfinite(true + delta) & (delta != 0), true + delta, true)
    # The difference is itself rounded: the bound is widened by a little more than that.
    error = np.abs(value - true) * rng.choice([1 + 2.0**-50, 1.5], n)
    error = np.where(np.isfinite(true), error, 0.0)
    unknown = rng.random(n) < 0.02
    value = np.where(unknown, numbers(rng, np.float64, n), value)
    return Bounded(value, np.where(unknown, np.inf, error), arithmetic)


def assert_covered(actual, predicted, *operands):
    """Every actual result lies within the bound of its prediction, as the judge sees it."""
    r = np.broadcast_to(ratios(np.asarray(actual, np.float64), predicted), np.shape(actual))
    outside = np.flatnonzero(~(r <= 1))
    if outside.size:
        i = outside[0]
        value, error = (np.broadcast_to(x, r.shape)[i] for x in (predicted.value, predicted.error))
        given = [x[i] for x in operands]
        pytest.fail(f"{outside.size} of {r.size} outside, first {actual[i]!r}, not {value!r} ± {error!r}, of {given}")


def nearest(x, fmt):
    """The number of the format nearest to ``x``, a multiple-precision number; ties go to even."""
    if not mpmath.isfinite(x) or x == 0:
        return float(x)
    mantissa, exponent = x.man_exp
    top = exponent + mantissa.bit_length()
    # The exponent of the last bit that the format keeps; below the normal range it is fixed.
    last = max(top, fmt.min_exponent + 1) - fmt.significand_bits
    if exponent < last:
        drop = last - exponent
        half, rest = 1 << (drop - 1), mantissa & ((1 << drop) - 1)
        mantissa >>= drop
        mantissa += rest > half or (rest == half and mantissa & 1)
        exponent = last
    rounded = mantissa * 2**exponent if exponent >= 0 else mpmath.ldexp(mantissa, exponent)
    size = float(rounded) if rounded <= fmt.largest else math.inf
    return -size if x < 0 else size


def multiple_precision(x):
    return [mpmath.mpf(v) for v in x.tolist()]


# Soundness against the IEEE operations of NumPy.


@both_arithmetics
@binary_operations
def test_bound_covers_an_operation_on_uncertain_operands(arithmetic, operation):
    rng = np.random.default_rng(1)
    for left, right in ((about, about), (about, None), (None, about), (None, None)):
        a, b = pairs(rng, DTYPES[arithmetic.format], 40_000)
        ra = left(rng, a, arithmetic) if left else exactly(a, arithmetic)
        rb = right(rng, b, arithmetic) if right else exactly(b, arithmetic)
        assert_covered(operation(a, b), operation(ra, rb), a, b)


@both_arithmetics
@pytest.mark.parametrize("uncertain", [True, False], ids=["uncertain", "exact"])
def test_bound_covers_a_square_root(arithmetic, uncertain):
    rng = np.random.default_rng(2)
    # A radicand that no subtraction made is not negative.
    a = np.abs(numbers(rng, DTYPES[arithmetic.format], 60_000))
    assert_covered(np.sqrt(a), np.sqrt(about(rng, a, arithmetic) if uncertain else exactly(a, arithmetic)), a)


@both_arithmetics
def test_square_root_of_a_number_that_is_certainly_negative_is_nan(arithmetic):
    value = np.array([-1.0, -1e-3, -np.inf])
    for root in (
        np.sqrt(Bounded(value, 0.0, arithmetic)),
        np.sqrt(Bounded(value, np.array([0.5, 1e-4, 0]), arithmetic)),
    ):
        assert np.isnan(root.value).all()
        assert not np.any(root.error)


@both_arithmetics
@pytest.mark.parametrize("operation", [np.abs, np.negative], ids=operator.attrgetter("__name__"))
def test_bound_covers_operations_that_do_not_round(arithmetic, operation):
    rng = np.random.default_rng(3)
    a = numbers(rng, DTYPES[arithmetic.format], 60_000)
    assert_covered(operation(a), operation(about(rng, a, arithmetic)), a)
    exact = operation(exactly(a, arithmetic))
    assert_covered(operation(a), exact, a)
    assert not np.any(exact.error)


@both_arithmetics
@pytest.mark.parametrize("uncertain", [True, False], ids=["uncertain", "exact"])
def test_bound_covers_a_power(arithmetic, uncertain):
    # The decay rates of averages, raised to the number of steps.
    rng, dtype, n = np.random.default_rng(4), DTYPES[arithmetic.format], 20_000
    rates = [rng.random(n), 1 - np.ldexp(rng.random(n), -rng.integers(0, 30, n)), rng.choice([0.0, 0.5, 0.999, 1.0], n)]
    base = np.choose(rng.integers(3, size=n), rates).astype(dtype)
    exponent = np.floor(2.0 ** rng.uniform(0, 24, n))
    reference = exactly(base, arithmetic)
    if uncertain:
        reference = about(rng, base, arithmetic)
        reference.value = np.abs(reference.value)
    # NumPy's own power may be vectorised and then is not C's.
    powers = list(map(math.pow, base.tolist(), exponent.tolist()))
    assert_covered(np.array(powers).astype(dtype), reference**exponent, base, exponent)


def scalars(rng, n):
    """Python floats: most of them no float32 numbers, some beyond float32's range."""
    single = numbers(rng, np.float32, n)
    kinds = [
        numbers(rng, np.float64, n),
        rng.uniform(-2, 2, n),
        single,
        np.nextafter(single, single * 2).astype(np.float64),
    ]
    return np.choose(rng.choice(4, n), kinds)


def test_bound_covers_a_scalar_that_enters_float32():
    c = scalars(np.random.default_rng(5), 100_000)
    assert_covered(c.astype(np.float32), exactly(np.ones(1), SINGLE).enter(c), c)


def test_bound_covers_an_uncertain_scalar_that_enters_float32():
    rng = np.random.default_rng(6)
    c = scalars(rng, 100_000)
    assert_covered(c.astype(np.float32), exactly(np.ones(1), SINGLE).enter(about(rng, c, SCALARS64)), c)


def test_scalar_beyond_the_largest_float32_that_still_rounds_to_it_is_not_infinite():
    largest = BINARY32.largest
    c = np.array([largest + largest * 2.0**-26, np.nextafter(largest, np.inf), largest * 2])
    c = np.concatenate([c, -c])
    assert_covered(c.astype(np.float32), exactly(np.ones(1), SINGLE).enter(c), c)


def test_bound_covers_what_is_computed_from_hyperparameters_in_float32():
    # (1 - beta) g and lr / (1 - beta), whether they were rounded before they were computed with, or only after.
    rng = np.random.default_rng(8)
    elements, worst = rng.uniform(-2, 2, 1000).astype(np.float32), 0.0
    for lr, beta in itertools.product((0.1, 0.3, 1e-3), (0.9, 0.999, 0.1, 0.5)):
        bounded_lr, bounded_beta = (bounded_option(x, SCALARS32) for x in (lr, beta))
        weight, step = 1 - bounded_beta, bounded_lr / (1 - bounded_beta)
        assert (weight.arithmetic, step.arithmetic) == (SCALARS32, SCALARS32)
        for dtype in (np.float32, np.float64):
            one, held_lr, held_beta = dtype(1), dtype(lr), dtype(beta)
            for scalar, factor in ((one - held_beta, weight), (held_lr / (one - held_beta), step)):
                actual = np.float32(scalar) * elements
                predicted = factor * exactly(elements, SINGLE)
                assert_covered(actual, predicted, elements)
                worst = max(worst, ratios(actual.astype(np.float64), predicted).max())
    assert worst > 0.3


@pytest.mark.parametrize("x", [0.0, 0.5, 1e-3, 1e-50, 1e39])
def test_hyperparameter_in_float32_is_within_its_bound_and_exact_where_it_is_represented(x):
    option = bounded_option(x, SCALARS32)
    with np.errstate(over="ignore"):
        rounded = np.float64(np.float32(x))
    assert_covered(np.array([rounded]), Bounded(np.array([option.value]), np.array([option.error]), SCALARS32))
    assert (option.error == 0) == (rounded in (x, np.inf))
    assert (bounded_option(x, SCALARS64).value, bounded_option(x, SCALARS64).error) == (x, 0.0)


def test_undetermined_scalar_stays_undetermined():
    value = np.array([0.0, 1.0, 1e39, np.inf, np.nan])
    entered = exactly(np.ones(1), SINGLE).enter(Bounded(value, np.full(5, np.inf), SCALARS64))
    assert np.isinf(entered.error).all()


def test_scalar_in_doubt_is_rounded_even_where_its_value_is_a_float32():
    # 0.5 is a float32; a subject whose own scalar is a little larger rounds it up by more than that.
    subject = 0.5 + 3.1e-8
    entered = exactly(np.ones(1), SINGLE).enter(Bounded(np.array([0.5]), np.array([3.1e-8]), SCALARS64))
    assert_covered(np.array([np.float32(subject)]), entered, [subject])


def test_scalar_that_float32_represents_enters_without_error():
    c = numbers(np.random.default_rng(7), np.float32, 10_000).astype(np.float64)
    entered = exactly(np.ones(1), SINGLE).enter(c)
    assert_covered(c, entered, c)
    assert not np.any(entered.error)


@both_arithmetics
@binary_operations
@pytest.mark.parametrize("kind", [float, np.float64])
def test_bound_covers_an_operation_with_a_scalar(arithmetic, operation, kind):
    rng, dtype = np.random.default_rng(8), DTYPES[arithmetic.format]
    for c in (0.0, 0.1, -1e-3, 1 - 0.999, 1e-8, 1e-50, 3.0):
        a = numbers(rng, dtype, 1000)
        bounded, scalar = about(rng, a, arithmetic), kind(c)
        assert_covered(operation(a, dtype(c)), operation(bounded, scalar), a)
        assert_covered(operation(dtype(c), a), operation(scalar, bounded), a)


@pytest.mark.parametrize("symbol", [operator.add, operator.sub, operator.mul, operator.truediv])
def test_operators_are_the_ufuncs(symbol):
    rng = np.random.default_rng(9)
    a, b = numbers(rng, np.float32, 1000), numbers(rng, np.float32, 1000)
    bounded = about(rng, a, SINGLE)
    assert_covered(symbol(a, b), symbol(bounded, exactly(b, SINGLE)), a, b)
    assert_covered(symbol(a, np.float32(0.1)), symbol(bounded, 0.1), a)
    assert_covered(symbol(np.float32(0.1), a), symbol(0.1, bounded), a)


def test_counting_steps_is_exact():
    # An exponent in doubt would leave every bias correction unbounded.
    steps = Bounded(np.array([0.0, 1.0, 2.0**24, 2.0**52]), 0.0, SCALARS64)
    for counted in (steps + 1, (steps + 1) - 1):
        assert not np.any(counted.error)


@pytest.mark.parametrize("uncertain", [True, False], ids=["uncertain", "exact"])
@pytest.mark.parametrize(
    ("wide", "narrow"),
    [(SINGLE, BINARY16), (SINGLE, BFLOAT16), (DOUBLE, BINARY32), (DOUBLE, BINARY16), (SCALARS64, BINARY32)],
    ids=lambda x: getattr(x, "format", x).name,
)
def test_bound_covers_a_result_stored_in_a_narrower_format(wide, narrow, uncertain):
    rng = np.random.default_rng(10)
    a = np.concatenate([numbers(rng, np.float32, 40_000), numbers(rng, np.float16, 20_000)]).astype(DTYPES[wide.format])
    dtype = {BINARY16: torch.float16, BFLOAT16: torch.bfloat16, BINARY32: torch.float32}[narrow]
    stored = torch.from_numpy(a).to(dtype).double().numpy()
    assert_covered(stored, (about(rng, a, wide) if uncertain else exactly(a, wide)).store(narrow), a)


@both_arithmetics
def test_storing_in_a_format_as_wide_rounds_nothing(arithmetic):
    x = exactly(numbers(np.random.default_rng(11), DTYPES[arithmetic.format], 100), arithmetic)
    assert x.store(arithmetic.format) is x
    assert x.store(BINARY64) is x


def test_number_that_the_narrower_format_represents_is_stored_without_error():
    # The step, counted in float64 and kept in float32.
    steps = exactly(np.array([0.0, 1.0, 7.0, 8.0, 2.0**24, np.inf, np.nan]), SCALARS64)
    assert not np.any(steps.store(BINARY32).error)
    assert (Bounded(np.array([8.0]), np.array([1e-9]), SCALARS64).store(BINARY32).error > 1e-9).all()


@pytest.mark.parametrize("size", ["ordinary", "any"])
@pytest.mark.parametrize("uncertain", [True, False], ids=["uncertain", "exact"])
def test_bound_covers_a_quotient_formed_with_a_reciprocal(size, uncertain):
    rng, arithmetic = np.random.default_rng(12), Arithmetic(BINARY32, division=2.0)
    a, b = pairs(rng, np.float32, 60_000)
    if size == "ordinary":
        a, b = (np.ldexp(rng.uniform(1, 2, a.size), rng.integers(-30, 30, a.size)).astype(np.float32) for _ in "ab")
    ra, rb = ((about(rng, x, arithmetic) if uncertain else exactly(x, arithmetic)) for x in (a, b))
    assert_covered(a * (1 / b), ra / rb, a, b)


# Soundness against multiple precision.


@both_arithmetics
@pytest.mark.parametrize(
    "operation", [operator.add, operator.sub, operator.mul, operator.truediv], ids=operator.attrgetter("__name__")
)
def test_bound_covers_the_exact_result_rounded_once(arithmetic, operation):
    rng = np.random.default_rng(13)
    a, b = pairs(rng, DTYPES[arithmetic.format], 12_000)
    judged = np.isfinite(a) & np.isfinite(b) & ((b != 0) | (operation is not operator.truediv))
    a, b = a[judged], b[judged]
    with mpmath.workprec(200):
        exact = map(operation, multiple_precision(a), multiple_precision(b))
        actual = np.array([nearest(x, arithmetic.format) for x in exact])
    assert_covered(actual, operation(exactly(a, arithmetic), exactly(b, arithmetic)), a, b)


@both_arithmetics
def test_bound_covers_the_exact_square_root_rounded_once(arithmetic):
    a = np.abs(numbers(np.random.default_rng(14), DTYPES[arithmetic.format], 12_000))
    with mpmath.workprec(200):
        actual = np.array([nearest(mpmath.sqrt(x), arithmetic.format) for x in multiple_precision(a)])
    assert_covered(actual, np.sqrt(exactly(a, arithmetic)), a)


@both_arithmetics
def test_bound_covers_the_exact_power_rounded_once(arithmetic):
    rng = np.random.default_rng(15)
    a = np.abs(1 - np.ldexp(rng.random(6_000), -rng.integers(0, 20, 6_000))).astype(DTYPES[arithmetic.format])
    exponent = np.floor(2.0 ** rng.uniform(0, 16, a.size))
    with mpmath.workprec(200):
        actual = np.array(
            [nearest(x ** int(t), arithmetic.format) for x, t in zip(multiple_precision(a), exponent, strict=True)]
        )
    assert_covered(actual, exactly(a, arithmetic) ** exponent, a, exponent)


@both_arithmetics
@pytest.mark.parametrize("uncertain", [True, False], ids=["uncertain", "exact"])
def test_bound_of_a_sum_covers_its_contraction_with_a_product(arithmetic, uncertain):
    # A fused multiply-add rounds once, and so may miss an overflow of the product.
    rng, dtype = np.random.default_rng(16), DTYPES[arithmetic.format]
    a, b = pairs(rng, dtype, 8_000)
    c = numbers(rng, dtype, a.size)
    # Sums that cancel, and addends that bring a product back from beyond the range.
    near = rng.random(a.size) < 0.3
    c = np.where(near & np.isfinite(a * b), -np.nextafter(a * b, dtype(0)), c)
    c = np.where(near & np.isinf(a * b), -np.sign(a * b) * np.finfo(dtype).max, c)
    with mpmath.workprec(400):
        exact = zip(multiple_precision(a), multiple_precision(b), multiple_precision(c), strict=True)
        actual = np.array([nearest(x * y + z, arithmetic.format) for x, y, z in exact])
    ra, rb, rc = ((about(rng, x, arithmetic) if uncertain else exactly(x, arithmetic)) for x in (a, b, c))
    assert_covered(actual, ra * rb + rc, a, b, c)
    assert_covered(actual, rc - (-ra) * rb, a, b, c)


# Tightness.


@pytest.mark.parametrize(
    "operation", [np.add, np.subtract, np.multiply, np.divide, np.sqrt], ids=operator.attrgetter("__name__")
)
def test_bound_is_nearly_reached(operation):
    rng = np.random.default_rng(17)
    operands = [rng.uniform(0.5, 4, 20_000).astype(np.float32) for _ in range(operation.nin)]
    used = ratios(operation(*operands).astype(np.float64), operation(*(exactly(x, SINGLE) for x in operands)))
    assert used.max() > 0.9


@pytest.mark.parametrize(
    "operation", [np.add, np.subtract, np.multiply, np.divide], ids=operator.attrgetter("__name__")
)
def test_propagated_error_is_nearly_reached(operation):
    # The operands' errors are far above the rounding, so the bound is the first-order one.
    rng, n, unit = np.random.default_rng(18), 20_000, 1e-6
    value = [rng.uniform(0.5, 4, n), rng.uniform(0.5, 4, n)]
    error = [np.full(n, unit), np.full(n, unit)]
    z = operation(*(Bounded(v, e, DOUBLE) for v, e in zip(value, error, strict=True)))
    corners = [operation(value[0] + i * unit, value[1] + j * unit) for i in (-1, 1) for j in (-1, 1)]
    assert np.max([ratios(corner, z) for corner in corners], axis=0).min() > 0.99


# What is undetermined.


@both_arithmetics
@binary_operations
def test_undetermined_operand_makes_an_undetermined_result(arithmetic, operation):
    value = np.array([0.0, 1.0, -2.0, 1e30, np.inf, -np.inf, np.nan])
    unknown = Bounded(value, np.full(7, np.inf), arithmetic)
    for other in (3.0, 0.0, -1e-30):
        if other or operation is not np.divide:
            known = Bounded(np.full(7, other), 0.0, arithmetic)
            assert np.isinf(operation(unknown, known).error).all()
            assert np.isinf(operation(unknown, other).error).all()
        assert np.isinf(operation(Bounded(np.full(7, other), 0.0, arithmetic), unknown).error).all()


@both_arithmetics
@pytest.mark.parametrize(
    "operation",
    [np.sqrt, np.abs, np.negative, lambda x: x**3.0, lambda x: x.store(BINARY16)],
    ids=["sqrt", "abs", "negative", "power", "store"],
)
def test_undetermined_operand_makes_an_undetermined_result_of_one_operand(arithmetic, operation):
    value = np.array([0.0, 1.0, 1e30, np.inf, np.nan])
    assert np.isinf(operation(Bounded(value, np.full(5, np.inf), arithmetic)).error).all()


@both_arithmetics
def test_quotient_is_unbounded_where_the_divisor_may_be_zero(arithmetic):
    divisor = Bounded(np.array([0.1, 0.1, -0.1, 0.0, 0.1]), np.array([0.2, 0.1, 0.1, 1e-9, 0.05]), arithmetic)
    quotient = Bounded(np.ones(5), 0.0, arithmetic) / divisor
    assert np.isinf(quotient.error).tolist() == [True, True, True, True, False]


@both_arithmetics
def test_quotient_by_an_exact_zero_is_determined(arithmetic):
    quotient = Bounded(np.array([1.0, -1.0, 0.0]), 0.0, arithmetic) / Bounded(np.zeros(3), 0.0, arithmetic)
    np.testing.assert_array_equal(quotient.value, [np.inf, -np.inf, np.nan])
    assert not np.any(quotient.error)


@both_arithmetics
def test_square_root_of_a_difference_that_may_be_negative_accepts_nan(arithmetic):
    # The variance of centered RMSprop, where all gradients were equal.
    g = Bounded(np.array([0.1, 0.7]), 0.0, arithmetic)
    root = np.sqrt(g * g - g * g)
    assert not np.any(ratios(np.array([np.nan, 0.0]), root))


@both_arithmetics
def test_square_root_of_a_sum_of_squares_does_not_accept_nan(arithmetic):
    # Not even where underflow leaves the sum with an error larger than itself.
    g = Bounded(np.array([0.1, 1e-30, 1e-170, 0.0]), 0.0, arithmetic)
    root = np.sqrt(g * g + 0.9 * (g * g))
    assert np.isinf(ratios(np.full(4, np.nan), root)).all()


@both_arithmetics
def test_bound_covers_the_square_root_of_a_difference(arithmetic):
    rng = np.random.default_rng(19)
    a, b = pairs(rng, DTYPES[arithmetic.format], 60_000)
    assert_covered(np.sqrt(a - b), np.sqrt(about(rng, a, arithmetic) - about(rng, b, arithmetic)), a, b)


# What is exact.


@both_arithmetics
def test_difference_of_equal_numbers_is_exactly_zero(arithmetic):
    # A sum is exact wherever it is subnormal, so it needs no term for underflow.
    x = exactly(numbers(np.random.default_rng(20), DTYPES[arithmetic.format], 1000), arithmetic)
    difference = x - x
    assert not np.any(np.broadcast_to(difference.error, 1000)[difference.value == 0])


def test_product_and_quotient_of_an_exact_zero_are_exactly_zero():
    # In float64 the reference's own zero may stand for an underflow.
    x = about(np.random.default_rng(21), np.linspace(1, 2, 1000, dtype=np.float32), SINGLE)
    zero = exactly(np.zeros(1000), SINGLE)
    certain = np.isfinite(x.error) & (x.error < x.value)
    for result in (zero * x, zero / x):
        assert not np.any(result.error[certain])


# Orders of evaluation.


def refused():
    raise AssertionError("this is not to be evaluated")


@pytest.mark.parametrize(
    ("declared", "covered"),
    [
        ((), [1.0]),
        (("written",), [1.0]),
        (("lerp",), [2.0]),
        (("textbook",), [1.0]),
        (("written", "lerp"), [1.0, 2.0]),
        (("lerp", "square_first"), [2.0, 5.0]),
        (("written", "lerp", "square_first"), [1.0, 2.0, 5.0]),
    ],
)
def test_bound_covers_each_declared_order_and_only_those(declared, covered):
    arithmetic = Arithmetic(BINARY32, orders=frozenset(declared))

    def number(x):
        return Bounded(np.array([x]), np.array([0.125]), arithmetic)

    orders = {
        name: (lambda x=x: number(x)) if name in declared else refused
        for name, x in (("lerp", 2.0), ("square_first", 5.0))
    }
    result = number(1.0).cover_orders(orders)
    for x in covered:
        assert ratios(np.array([x - 0.125, x + 0.125]), result).max() <= 1
    if len(covered) == 1:
        assert ratios(np.array([covered[0] - 0.126, covered[0] + 0.126]), result).min() > 1


def test_orders_that_arrive_at_different_classes_are_undetermined():
    arithmetic = Arithmetic(BINARY32, orders=frozenset({"written", "lerp"}))
    written = np.array([np.inf, np.nan, 1.0, np.inf, np.nan, np.inf])
    lerp = np.array([1.0, np.inf, np.nan, -np.inf, np.nan, np.inf])
    result = Bounded(written, 0.0, arithmetic).cover_orders({"lerp": lambda: Bounded(lerp, 0.0, arithmetic)})
    assert np.isinf(result.error).tolist() == [True, True, True, True, False, False]


# Comparisons.


def test_comparison_is_that_of_the_values():
    x = Bounded(np.array([1.0, 2.0, 3.0]), np.array([5.0, 0.0, np.inf]), SINGLE)
    for other in (2.0, Bounded(np.array([2.0]), np.array([9.0]), SINGLE)):
        assert (x < other).tolist() == [True, False, False]
        assert (x > other).tolist() == [False, False, True]
        assert (x == other).tolist() == [False, True, False]
        assert (x != other).tolist() == [True, False, True]
    with pytest.raises(TypeError, match="unhashable"):
        hash(x)


@both_arithmetics
def test_bound_covers_a_power_with_an_uncertain_exponent(arithmetic):
    # RAdam and Adamax where the step is a tensor; Adafactor's step to the power of a scheduled option.
    rng, dtype, n = np.random.default_rng(22), DTYPES[arithmetic.format], 20_000
    base = np.where(rng.random(n) < 0.5, rng.random(n), 1 + 40 * rng.random(n)).astype(dtype)
    exponent = rng.uniform(-3, 12, n).astype(dtype)
    powers = list(map(math.pow, base.tolist(), exponent.tolist()))
    for x in (exactly(base, arithmetic), nearby(rng, base, arithmetic)):
        power = x ** nearby(rng, exponent, arithmetic)
        assert_covered(np.array(powers).astype(dtype), power, base, exponent)
        assert np.isfinite(power.error).mean() > 0.9


def nearby(rng, subject, arithmetic):
    """A reference operand whose sign is sure, with a bound that its distance from the subject's nearly reaches."""
    true = subject.astype(np.float64)
    value = true * (1 + 1e-5 * rng.uniform(-1, 1, true.size))
    return Bounded(value, np.abs(value - true) * (1 + 2.0**-50), arithmetic)


def test_function_without_a_rule_is_refused():
    x = Bounded(np.array([0.5]), 0.0, DOUBLE)
    for call in (lambda: np.exp(x), lambda: np.add.reduce(x), lambda: np.multiply(x, 2.0, dtype=np.float32)):
        with pytest.raises(TypeError, match="NotImplemented"):
            call()


def test_element_keeps_its_bound():
    x = Bounded(np.arange(6.0).reshape(2, 3), np.array([0.5, 0.25, 0.125]), SINGLE)
    assert (x[1, 2].value, x[1, 2].error) == (5.0, 0.125)
    assert x[:, 1].error.tolist() == [0.25, 0.25]


# Narrow formats: each operation of torch is carried out in float32 and rounded once.

NARROW = {BINARY16: torch.float16, BFLOAT16: torch.bfloat16}
narrow_formats = pytest.mark.parametrize("fmt", NARROW, ids=operator.attrgetter("name"))
#: A scalar that both formats hold, one that neither does, and one that is subnormal in float16.
SCALARS = (0.5, -3.0, 0.1, 1 - 0.999, 1 / 3, 3e-6)


@functools.cache  # operands of one operation share their arithmetic
def narrow(fmt, **changes):
    return Arithmetic(fmt, inner=BINARY32, **changes)


def tensors(rng, fmt, count, n=20_000, size="any"):
    """Operands that a tensor of the format holds: of ordinary size, or of any."""
    drawn = []
    for _ in range(count):
        if size == "ordinary":
            x = rng.uniform(0.25, 4, n) * rng.choice([-1, 1], n)
        else:
            x = numbers(rng, np.float16 if fmt is BINARY16 else np.float32, n)
        drawn.append(torch.from_numpy(np.asarray(x, np.float64)).to(NARROW[fmt]))
    return drawn


def as_bounded(tensor, arithmetic):
    return Bounded(tensor.double().numpy(), 0.0, arithmetic)


#: What torch computes, and how a reference writes it.
TENSOR_OPERATIONS = {
    "add": (2, torch.add, operator.add),
    "sub": (2, torch.sub, operator.sub),
    "mul": (2, torch.mul, operator.mul),
    "div": (2, torch.div, operator.truediv),
    "maximum": (2, torch.maximum, np.maximum),
    "minimum": (2, torch.minimum, np.minimum),
    "sqrt": (1, lambda a: a.abs().sqrt(), lambda a: np.sqrt(np.abs(a))),
}
SCALAR_OPERATIONS = {
    "add a scalar": (1, lambda c, a: torch.add(a, c), lambda c, a: a + c),
    "sub a scalar": (1, lambda c, a: torch.sub(a, c), lambda c, a: a - c),
    "mul by a scalar": (1, lambda c, a: torch.mul(a, c), lambda c, a: a * c),
    "mul by a number": (1, lambda c, a: torch.mul(a, torch.tensor(c)), lambda c, a: c * a),
    "div by a scalar": (1, lambda c, a: torch.div(a, c), lambda c, a: a / c),
    "add alpha": (2, lambda c, a, b: torch.add(a, b, alpha=c), lambda c, a, b: a + c * b),
    "sub alpha": (2, lambda c, a, b: torch.sub(a, b, alpha=c), lambda c, a, b: a - c * b),
    "addcmul": (3, lambda c, p, a, b: torch.addcmul(p, a, b, value=c), lambda c, p, a, b: addcmul(p, a, b, c)),
    "addcdiv": (3, lambda c, p, a, b: torch.addcdiv(p, a, b, value=c), lambda c, p, a, b: addcdiv(p, a, b, c)),
    "lerp": (2, lambda c, a, b: torch.lerp(a, b, c), lambda c, a, b: ema(a, b, 1 - c, weight=c)),
    "clamp": (1, lambda c, a: torch.clamp(a, min=c), lambda c, a: a.at_least(c)),
}


@narrow_formats
@pytest.mark.parametrize("name", TENSOR_OPERATIONS)
def test_bound_covers_an_operation_of_torch_in_a_narrow_format(fmt, name):
    count, performed, written = TENSOR_OPERATIONS[name]
    for size in ("any", "ordinary"):
        operands = tensors(np.random.default_rng(23), fmt, count, size=size)
        predicted = written(*(as_bounded(x, narrow(fmt)) for x in operands))
        assert_covered(performed(*operands).double().numpy(), predicted, *operands)


@narrow_formats
@pytest.mark.parametrize("name", SCALAR_OPERATIONS)
def test_bound_covers_an_operation_of_torch_with_a_scalar_in_a_narrow_format(fmt, name):
    count, performed, written = SCALAR_OPERATIONS[name]
    arithmetic = narrow(fmt, orders=frozenset({"lerp"}))
    for c in SCALARS:
        if name == "lerp" and not 0 <= c <= 1:
            continue
        for size in ("any", "ordinary"):
            operands = tensors(np.random.default_rng(24), fmt, count, n=4_000, size=size)
            predicted = written(Bounded(np.float64(c), 0.0, SCALARS64), *(as_bounded(x, arithmetic) for x in operands))
            assert_covered(performed(c, *operands).double().numpy(), predicted, *operands)


@narrow_formats
def test_bound_of_an_operation_in_a_narrow_format_is_nearly_reached(fmt):
    rng = np.random.default_rng(25)
    for count, performed, written in TENSOR_OPERATIONS.values():
        if performed not in (torch.maximum, torch.minimum):  # these do not round
            operands = tensors(rng, fmt, count, size="ordinary")
            predicted = written(*(as_bounded(x, narrow(fmt)) for x in operands))
            assert ratios(performed(*operands).double().numpy(), predicted).max() > 0.95
    for name in ("addcmul", "addcdiv", "lerp"):  # one rounding for all
        count, performed, written = SCALAR_OPERATIONS[name]
        operands = tensors(rng, fmt, count, size="ordinary")
        predicted = written(0.1, *(as_bounded(x, narrow(fmt, orders=frozenset({"lerp"}))) for x in operands))
        assert ratios(performed(0.1, *operands).double().numpy(), predicted).max() > 0.9, name


@narrow_formats
def test_operation_that_is_not_rounded_in_between_needs_the_composite(fmt):
    # An implementation without such operations rounds the product, and its budget has to know.
    p, a, b = tensors(np.random.default_rng(26), fmt, 3, size="ordinary")
    p = p / 64  # or its rounding would hide the product's
    operands = [as_bounded(x, narrow(fmt)) for x in (p, a, b)]
    separate = [as_bounded(x, narrow(fmt, composites=False)) for x in (p, a, b)]
    rounded_between = (p + (a * b) * 0.1).double().numpy()
    assert ratios(rounded_between, addcmul(*operands, 0.1)).max() > 1
    assert_covered(rounded_between, addcmul(*separate, 0.1), p, a, b)


@narrow_formats
def test_scalar_that_is_rounded_to_the_narrow_format_needs_an_entry(fmt):
    (a,) = tensors(np.random.default_rng(27), fmt, 1, size="ordinary")
    rounded_first = (a * torch.tensor(0.1, dtype=NARROW[fmt])).double().numpy()
    assert ratios(rounded_first, as_bounded(a, narrow(fmt)) * 0.1).max() > 1
    assert_covered(rounded_first, as_bounded(a, narrow(fmt, entry=fmt)) * 0.1, a)


def test_overflow_of_a_narrow_format_is_certain_only_where_every_result_is_stored():
    a = Bounded(np.array([60000.0]), 0.0, narrow(BINARY16))
    certain = a + a
    assert (certain.value, certain.error) == (np.inf, 0.0)
    # A part of the elements is kept in float32, where 120000 is an ordinary number.
    b = Bounded(np.array([60000.0]), 0.0, narrow(BINARY16, overflow=False))
    assert np.isinf((b + b).error).all()


@narrow_formats
def test_number_kept_for_each_parameter_may_be_cast_to_the_narrow_format_or_not(fmt):
    (a,) = tensors(np.random.default_rng(28), fmt, 1, size="ordinary")
    c = np.float64(np.float32(0.9))
    for counters, number in ((COUNTERS32, torch.tensor(c, dtype=torch.float32)), (COUNTERS64, float(c))):
        scalar = Bounded(c, 0.0, counters)
        for performed, written in ((torch.mul, operator.mul), (torch.add, operator.add), (torch.div, operator.truediv)):
            assert_covered(performed(a, number).double().numpy(), written(as_bounded(a, narrow(fmt)), scalar), a)
    cast = (a * torch.tensor(c, dtype=NARROW[fmt])).double().numpy()
    assert_covered(cast, as_bounded(a, narrow(fmt)) * Bounded(c, 0.0, COUNTERS32), a)


def test_counter_that_leaves_the_narrow_format_may_be_infinite_or_not():
    steps = Bounded(np.float64(70000.0), 0.0, COUNTERS32)
    product = Bounded(np.array([0.5]), 0.0, narrow(BINARY16)) * steps
    assert np.isinf(product.error).all()


@pytest.mark.parametrize("counters", [COUNTERS32, COUNTERS64], ids=["float32", "float64"])
def test_bound_covers_what_is_computed_from_a_counter(counters):
    # 1 - beta ** t, in the format in which the subject holds its steps, times float32 elements.
    rng, dtype = np.random.default_rng(29), DTYPES[counters.format]
    elements = rng.uniform(-2, 2, 1000).astype(np.float32)
    for t, beta in itertools.product((1.0, 2.0, 7.0, 1000.0), (0.9, 0.999, 0.5)):
        actual = (elements / dtype(1 - dtype(math.pow(dtype(beta), t)))).astype(np.float32)
        correction = 1 - Bounded(np.float64(beta), 0.0, SCALARS64) ** Bounded(np.float64(t), 0.0, counters)
        assert correction.arithmetic is counters
        assert_covered(actual, exactly(elements, SINGLE) / correction, elements)


def test_counting_a_counter_is_exact_as_long_as_its_format_holds_it():
    steps = Bounded(np.array([0.0, 6.0, 2.0**24 - 1]), 0.0, COUNTERS32)
    assert not np.any((steps + 1).error)
    beyond = Bounded(np.array([2.0**24]), 0.0, COUNTERS32) + 1
    assert_covered(np.array([2.0**24]), beyond)


# Sums, in any order.


def orders_of_a_sum(x, rng):
    """The sum of float32 numbers: from either end, in random orders, in pairs, in lanes, wider, as libraries do it."""
    yield functools.reduce(operator.add, x)
    yield functools.reduce(operator.add, x[::-1])
    for _ in range(3):
        yield functools.reduce(operator.add, rng.permutation(x))
    yield functools.reduce(operator.add, x[np.argsort(-np.abs(x))])
    pairs = x
    while len(pairs) > 1:
        pairs = np.append(pairs, x.dtype.type(0)) if len(pairs) % 2 else pairs
        pairs = pairs[::2] + pairs[1::2]
    yield pairs[0]
    yield x.dtype.type(math.fsum(x.tolist()))
    yield torch.from_numpy(x.copy()).sum().numpy()
    yield np.sum(x)


@pytest.mark.parametrize("uncertain", [True, False], ids=["uncertain", "exact"])
@both_arithmetics
def test_bound_covers_a_sum_in_any_order(arithmetic, uncertain):
    rng, dtype = np.random.default_rng(30), DTYPES[arithmetic.format]
    worst = 0.0
    for n in (1, 2, 3, 17, 64, 257):
        for spread in (0, 8):
            x = np.ldexp(rng.uniform(-1, 1, n), rng.integers(-spread, spread + 1, n)).astype(dtype)
            bounded = about_ordinary(rng, x, arithmetic) if uncertain else exactly(x, arithmetic)
            for actual in orders_of_a_sum(x, rng):
                predicted = np.sum(bounded)
                assert_covered(
                    np.asarray([actual]), Bounded(*map(np.atleast_1d, (predicted.value, predicted.error)), arithmetic)
                )
                worst = max(worst, float(ratios(np.float64(actual), predicted)))
    # Of two numbers it is one rounding, and in float64 the reference rounds as well.
    assert worst > 0.25


def about_ordinary(rng, subject, arithmetic):
    true = subject.astype(np.float64)
    value = true + 4 * arithmetic.unit * true * rng.uniform(-1, 1, true.size)
    return Bounded(value, np.abs(value - true) * (1 + 2.0**-50), arithmetic)


def test_sum_of_terms_that_are_all_large_is_undetermined_and_no_other():
    huge = Bounded(np.array([3e38, 3e38, -3e38]), 0.0, SINGLE)
    assert np.isinf(np.sum(huge).error)
    assert np.isfinite(np.sum(Bounded(np.array([1e38, 1e38, -1e38]), 0.0, SINGLE)).error)


#: A reduction of torch along one axis, and how the reference writes it; the accumulator is float32.
REDUCTIONS = {
    "sum": (lambda x, axis: x.sum(axis, keepdim=True), lambda x, axis: x.sum(axis=axis, keepdims=True)),
    "mean": (lambda x, axis: x.mean(axis, keepdim=True), lambda x, axis: np.mean(x, axis=axis, keepdims=True)),
    "norm": (lambda x, axis: x.norm(dim=axis, keepdim=True), norm),
    "sum of squares": (lambda x, axis: (x.float() * x.float()).sum(axis, keepdim=True).to(x.dtype), sum_of_squares),
}


@pytest.mark.parametrize("fmt", [BINARY32, BINARY16, BFLOAT16], ids=operator.attrgetter("name"))
@pytest.mark.parametrize("name", REDUCTIONS)
def test_bound_covers_a_reduction_of_torch(fmt, name):
    performed, written = REDUCTIONS[name]
    rng, dtype = np.random.default_rng(31), NARROW.get(fmt, torch.float32)
    arithmetic = SINGLE if fmt is BINARY32 else narrow(fmt)
    worst = 0.0
    for shape, axis in itertools.product([(1, 1), (3, 2), (200, 5), (5, 200), (2, 3, 4)], (-1, -2)):
        x = torch.from_numpy(rng.uniform(-1, 1, shape) * 2.0 ** rng.integers(-3, 4, shape)).to(dtype)
        actual, predicted = performed(x, axis).double().numpy(), written(as_bounded(x, arithmetic), axis)
        assert np.shape(predicted.value) == actual.shape
        r = ratios(actual, predicted)
        assert (r <= 1).all(), (shape, axis)
        worst = max(worst, r.max())
    # The one rounding to a narrow format outweighs all those of the sum.
    assert worst > (0.2 if fmt is BINARY32 else 0.85)


@both_arithmetics
def test_bound_covers_a_scalar_product_in_any_order(arithmetic):
    rng, dtype = np.random.default_rng(32), DTYPES[arithmetic.format]
    for n in (1, 2, 5, 64):
        a, b = (rng.uniform(-1, 1, n).astype(dtype) for _ in "ab")
        ra, rb = about_ordinary(rng, a, arithmetic), about_ordinary(rng, b, arithmetic)
        dot, self = np.dot(exactly(a, arithmetic), exactly(b, arithmetic)), np.dot(ra, rb)
        with mpmath.workprec(400):
            exact = nearest(mpmath.fdot(multiple_precision(a), multiple_precision(b)), arithmetic.format)
        library = float(torch.dot(torch.from_numpy(a), torch.from_numpy(b)))
        for actual in [*map(float, orders_of_a_sum(a * b, rng)), exact, library]:
            assert ratios(np.float64(actual), dot) <= 1
            assert ratios(np.float64(actual), self) <= 1


def test_square_that_underflows_is_counted():
    x = np.full(4, 1e-30, np.float32)
    total = exactly(x, SINGLE).sum_of_squares()
    assert_covered(np.sum(x * x, keepdims=True), total)
    assert_covered(np.array([float(np.sum(x.astype(np.float64) ** 2))]), total)


def test_largest_element_is_that_of_an_operand_in_doubt():
    x = Bounded(np.array([1.0, 1.5, -7.0]), np.array([0.75, 0.125, 0.0]), SINGLE)
    largest = np.max(x)
    # The first may be 1.75, and none of them less than 1.375.
    assert (largest.value, largest.error) == (1.5, 0.25)


# Choices that do not round.


@both_arithmetics
@pytest.mark.parametrize("operation", [np.maximum, np.minimum], ids=operator.attrgetter("__name__"))
def test_bound_covers_the_larger_and_the_smaller_of_two(arithmetic, operation):
    rng = np.random.default_rng(33)
    a, b = pairs(rng, DTYPES[arithmetic.format], 40_000)
    ra, rb = about(rng, a, arithmetic), about(rng, b, arithmetic)
    assert_covered(operation(a, b), operation(ra, rb), a, b)
    exact = operation(exactly(a, arithmetic), exactly(b, arithmetic))
    assert_covered(operation(a, b), exact, a, b)
    assert not np.any(exact.error)


def test_larger_of_two_that_are_apart_has_the_error_of_its_own():
    a, b = Bounded(np.array([5.0, 1.0]), np.array([0.5, 0.25]), SINGLE), Bounded(np.array([1.0, 1.1]), 0.125, SINGLE)
    assert np.maximum(a, b).error.tolist() == [0.5, 0.25]
    assert np.minimum(a, b).error.tolist() == [0.125, 0.25]


def test_where_takes_the_value_and_the_error_of_its_choice():
    a, b = Bounded(np.array([1.0, 2.0]), 0.5, SINGLE), Bounded(np.array([3.0, 4.0]), 0.25, SINGLE)
    chosen = np.where(np.array([True, False]), a, b)
    assert chosen.value.tolist() == [1.0, 4.0]
    assert chosen.error.tolist() == [0.5, 0.25]
    # A number that is written into a tensor is rounded to its format.
    assert_covered(
        np.array([np.float32(0.1), 2.0]), np.where(np.array([True, False]), 0.1, exactly(np.ones(2) * 2, SINGLE))
    )


def test_sign_is_a_plain_number_where_it_is_sure():
    x = Bounded(np.array([2.0, -3.0, 0.0, -0.0, np.inf]), np.array([0.5, 0.5, 0.0, 0.0, 0.0]), SINGLE)
    sign = np.sign(x)
    assert isinstance(sign, np.ndarray)
    assert sign.tolist() == [1.0, -1.0, 0.0, 0.0, 1.0]


def test_at_least_is_the_maximum():
    x = Bounded(np.array([0.5, 1.0, 3.0, np.inf]), np.array([0.0, 0.25, 0.25, 0.0]), SINGLE)
    bounded = x.at_least(1.0)
    assert bounded.value.tolist() == [1.0, 1.0, 3.0, np.inf]
    assert bounded.error.tolist() == [0.0, 0.25, 0.25, 0.0]


# What the subject was seen to hold.


def test_buffer_that_was_seen_within_its_budget_is_gone_on_with_as_it_is():
    predicted = Bounded(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.5, 0.5]), SINGLE)
    assert predicted.as_stored("variance") is predicted
    with seen({"variance": np.array([1.25, 9.0, np.nan])}, SINGLE):
        assert predicted.as_stored("step") is predicted
        stored = predicted.as_stored("variance")
    # What deviates must not be believed, or the rest would agree with a fault.
    np.testing.assert_array_equal(stored.value, [1.25, 2.0, 3.0])
    assert stored.error.tolist() == [0.0, 0.5, 0.5]
    assert predicted.as_stored("variance") is predicted


def test_number_kept_for_each_parameter_is_seen_as_the_float32_that_it_is():
    product = Bounded(np.float64(0.9), 0.0, COUNTERS64)
    single = np.float64(np.float32(0.9))
    with seen({"mu_product": single}, COUNTERS64):
        stored = product.as_stored("mu_product")
        assert (stored.value, stored.error) == (single, 0.0)
    with seen({"mu_product": np.float64(0.90001)}, COUNTERS64):
        assert product.as_stored("mu_product").value == 0.9


def points(x, d, t):
    """``x + t d`` as implementations evaluate it."""
    return [torch.add(x, d, alpha=t), x + t * d, torch.addcmul(x, d, torch.full_like(d, t)), d * t + x]


@pytest.mark.parametrize(("arithmetic", "dtype"), [(SINGLE, torch.float32), (DOUBLE, torch.float64)])
@pytest.mark.parametrize("known", [math.inf, 1e-3], ids=["unknown", "nearly known"])
def test_a_step_length_is_known_from_the_point_that_it_led_to(arithmetic, dtype, known):
    rng, u, narrowed = np.random.default_rng(11), arithmetic.unit, 0
    for _ in range(2000):
        x = torch.as_tensor(rng.normal(size=5) * 10.0 ** rng.uniform(-6, 6, 5)).to(dtype)
        d = torch.as_tensor(rng.normal(size=5) * 10.0 ** rng.uniform(-6, 6) * rng.integers(0, 2, 5)).to(dtype)
        t = float(10.0 ** rng.uniform(-9, 3))
        guess = Bounded(np.float64(t * (1 + 0.9e-3)), np.float64(known * t), arithmetic)
        start, direction = (Bounded(a.double().numpy(), 0.0, arithmetic) for a in (x, d))
        for point in points(x, d, t):
            with seen({POINT: point.double().numpy()}, arithmetic):
                found = guess.led_to_point(start, direction)
            if found is guess:
                continue
            narrowed += 1
            assert abs(t - found.value) <= found.error < guess.error
            each = u * (np.abs(x.double().numpy()) + 3 * np.abs(t * d.double().numpy())) / np.abs(d.double().numpy())
            assert found.error <= 16 * each.min() + 16 * arithmetic.format.underflow / float(d.abs().max())
    assert narrowed > 2000


@pytest.mark.parametrize("point", [[1.0, 2.0], [np.nan, np.nan], [np.inf, 3.0]], ids=["not moved", "nan", "infinite"])
def test_a_point_that_says_nothing_leaves_a_step_length_as_it_is(point):
    start, direction = (Bounded(np.array(a), 0.0, DOUBLE) for a in ([1.0, 2.0], [0.5, 0.0]))
    unknown = Bounded(np.float64(3.0), np.float64(np.inf), DOUBLE)
    assert unknown.led_to_point(start, direction) is unknown
    with seen({POINT: np.array(point)}, DOUBLE):
        assert unknown.led_to_point(start, direction) is unknown
    exact = Bounded(np.float64(3.0), 0.0, DOUBLE)
    with seen({POINT: np.array([2.5, 2.0])}, DOUBLE):
        assert exact.led_to_point(start, direction) is exact
        # A direction that is hardly known says nothing of what is not known at all.
        vague = Bounded(direction.value, np.array([0.25, 0.0]), DOUBLE)
        assert unknown.led_to_point(start, vague) is unknown


@narrow_formats
def test_what_is_stored_in_its_own_format_is_rounded_no_more(fmt):
    x = Bounded(np.ones(3), 0.25, narrow(fmt))
    assert x.store(fmt) is x


# Where a budget comes from.


def one(x):
    return Bounded(np.array([x]), 0.0, SINGLE)


def sgd(**options):
    spec = SPECS["SGD"]
    return lambda: spec.update(one(1.25), one(0.3), {}, bounded_hyper(spec.hyper_values(options)))[0]


def test_shares_of_two_roundings_sum_to_the_budget():
    # 0.5 is a float32: the product and the difference are all that rounds.
    shares = dict(terms(sgd(lr=0.5)))
    product, difference = (
        next(share for name, share in shares.items() if name.startswith(kind)) for kind in ("mul", "sub")
    )
    # The product is 0.15 and the result 1.1, and each contributes in proportion to its size.
    assert abs(product - 0.15 / 1.25) < 1e-6
    assert abs(difference - 1.1 / 1.25) < 1e-6
    assert abs(sum(shares.values()) - 1) < 1e-6


def test_share_names_its_operation_and_source_line():
    shares = terms(sgd(lr=0.1))
    assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)
    assert shares[0][0].startswith("subtract")
    assert {name.split()[0] for name, _ in shares} == {"subtract", "multiply", "scalar"}
    source = inspect.getsource(inspect.getmodule(SPECS["SGD"].update))
    for name, _ in shares:
        line = name.split("`")[1]
        assert "hyper.lr * g" in line
        assert line in source


def test_budget_that_is_nothing_or_unbounded_has_no_shares():
    assert terms(lambda: one(1.5)) == []
    assert terms(lambda: one(1.5) / Bounded(np.array([0.0]), np.array([1.0]), SINGLE)) == []


def test_asking_for_shares_in_vain_leaves_no_trace():
    evaluations = iter([sgd(lr=0.1), refused])

    def evaluate():
        return next(evaluations)()

    budget = sgd(lr=0.1)().error
    with pytest.raises(AssertionError):
        # Interrupted while the first rounding is left out.
        terms(evaluate)
    assert sgd(lr=0.1)().error == budget
