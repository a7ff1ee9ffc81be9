"""The error bound of each operation covers what an IEEE implementation computes, and stays close to it."""

from __future__ import annotations

import inspect
import math
import operator

import mpmath
import numpy as np
import pytest
import torch

from stepcheck.harness.bounded import Bounded, terms
from stepcheck.harness.formats import BFLOAT16, BINARY16, BINARY32, BINARY64, SCALARS64, Arithmetic
from stepcheck.harness.judge import bounded_hyper, ratios
from stepcheck.reference import SPECS

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


def test_power_with_an_uncertain_exponent_is_refused():
    with pytest.raises(TypeError, match="exact exponent"):
        Bounded(np.array([0.5]), 0.0, DOUBLE) ** Bounded(np.array([2.0]), np.array([0.1]), DOUBLE)


def test_function_without_a_rule_is_refused():
    x = Bounded(np.array([0.5]), 0.0, DOUBLE)
    for call in (lambda: np.exp(x), lambda: np.add.reduce(x), lambda: np.multiply(x, 2.0, dtype=np.float32)):
        with pytest.raises(TypeError, match="NotImplemented"):
            call()


def test_element_keeps_its_bound():
    x = Bounded(np.arange(6.0).reshape(2, 3), np.array([0.5, 0.25, 0.125]), SINGLE)
    assert (x[1, 2].value, x[1, 2].error) == (5.0, 0.125)
    assert x[:, 1].error.tolist() == [0.25, 0.25]


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
