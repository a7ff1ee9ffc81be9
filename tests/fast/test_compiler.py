"""The small Python of kernels means what it means in Python, and the rest is refused."""

import itertools
import math

import numpy as np
import pytest

from stepcheck.fast import native


def run(source, *numbers):
    """What a kernel leaves of these numbers: eight bytes each, integers or floating-point."""
    words = np.array([np.float64(x).view(np.int64) if isinstance(x, float) else x for x in numbers], np.int64)
    native.Kernel(_loaded(source)).run(words.ctypes.data)
    return words


def _loaded(source):
    return native.kernel(source).address


def floats(words):
    return words.view(np.float64).tolist()


def test_control_flow():
    source = """
def collatz(n):
    steps = 0
    while True:
        if n == 1:
            return steps
        half = 0
        for i in range(n):
            if i + i == n:
                half = i
                break
            if i > n:
                continue
        n = half if half != 0 else 3 * n + 1
        steps += 1

def kernel(launch):
    total = 0
    for i in range(3, 8):
        total += collatz(i)
    for i in range(5, -1, -2):
        total = 10 * total + i
    for i in range(0):
        total = -1
    store_int64(launch, 0, total)
"""
    assert run(source, 0).tolist() == [(7 + 2 + 5 + 8 + 16) * 1000 + 531]


def test_tuples_are_returned_and_taken_apart():
    source = """
def both(a, b):
    if a < b:
        return a, float64(b)
    else:
        return b, float64(a)

def kernel(launch):
    (low, high), (a, _) = both(load_int64(launch, 0), load_int64(launch, 1)), both(1, 2)
    store_int64(launch, 0, low - a)
    store_float64(launch, 1, high)
"""
    found = run(source, 9, 4)
    assert (found[0], floats(found)[1]) == (3, 9.0)


@pytest.mark.parametrize(("x", "y"), list(itertools.product([0.0, -0.0, 1.5, -2.25, math.inf, math.nan], repeat=2)))
def test_numbers_are_compared_as_ieee_754_says(x, y):
    source = """
def kernel(launch):
    x, y = load_float64(launch, 0), load_float64(launch, 1)
    bits = int64(x < y) + 2 * int64(x <= y) + 4 * int64(x > y) + 8 * int64(x >= y) + 16 * int64(x == y) + 32 * int64(x != y)
    store_int64(launch, 0, bits + 64 * int64(not (x < y or y < x)) + 128 * int64(x < 1.0 and y < 1.0))
    store_float64(launch, 1, maximum(x, y))
"""
    found = run(source, x, y)
    outcomes = (x < y, x <= y, x > y, x >= y, x == y, x != y, not (x < y or y < x), x < 1 and y < 1)
    assert found[0] == sum(int(b) << i for i, b in enumerate(outcomes))
    assert np.array_equal(floats(found)[1], np.maximum(x, y), equal_nan=True)


def test_what_is_not_decided_is_not_evaluated():
    source = """
def kernel(launch):
    at = load_int64(launch, 0)
    if at != 0 and load_int64(at, 0) == 1:
        store_int64(launch, 1, 7)
    store_int64(launch, 0, load_int64(at, 0) if at != 0 else 5)
"""
    assert run(source, 0, 0).tolist() == [5, 0]


def test_types_meet_in_one_that_holds_both():
    source = """
def kernel(launch):
    third = float32(1.0) / float32(3.0)
    store_float64(launch, 0, float64(third) - 1.0 / 3)
    store_float64(launch, 1, third * 3)
    store_float64(launch, 2, -load_int64(launch, 2) / 4)
    store_float64(launch, 3, 2.0 ** load_int64(launch, 3))
    store_float64(launch, 4, abs(load_float64(launch, 4)) + rounded(0.1))
"""
    found = floats(run(source, 0.0, 0.0, 5, 10, -2.0))
    third = np.float32(1) / np.float32(3)
    assert found == [float(third) - 1 / 3, float(third) * 3, -1.25, 1024.0, 2.0 + float(np.float32(0.1))]


def test_half_precision_is_rounded_to_nearest_even_and_nan_stays():
    source = """
load, store = loader({0!r}), storer({0!r})
def kernel(launch):
    store(launch, 0, float32(load_float64(launch, 0)))
    store_float64(launch, 0, float64(load(launch, 0)))
"""
    for kind, bits in (("bfloat16", 8), ("float16", 11)):
        for x, expected in ((1 + 2.0**-bits, 1.0), (1 + 3 * 2.0**-bits, 1 + 4 * 2.0**-bits), (math.nan, math.nan)):
            assert floats(run(source.format(kind), x))[0] == pytest.approx(expected, rel=0, abs=0, nan_ok=True)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("store_float64(launch, 0, erf(1.0))", "has no erf"),
        ("x = [1]", r"cannot have '\[1\]'"),
        ("x = 1 % 2", "cannot have '1 % 2'"),
        ("x = 1 < 2 < 3", "cannot have '1 < 2 < 3'"),
        ("x = 'text'", "cannot have 'text'"),
        ("x = load_int64", "cannot have"),
        ("x = 1, 2", "x cannot be several"),
        ("x, y = 1", "is more than one"),
        ("x = 1; x = 0.5", "x is i64, and cannot be double"),
        ("for x in 5: pass", "cannot have 'for x in 5"),
        ("while launch != 0: launch = 0\n    else: launch = 1", "cannot have 'while"),
        ("store_int64(launch, index=0, value=1)", "cannot have 'store_int64"),
        ("launch.at(1)", "cannot have 'launch.at"),
        ("if 1: pass", "'1' is no truth value"),
        ("with launch: pass", "cannot have 'with launch"),
    ],
)
def test_what_kernels_do_not_have_is_refused(body, why):
    with pytest.raises(TypeError, match=why):
        native._compile(f"def kernel(launch):\n    {body}\n")


_RECORDS = """
from stepcheck.fast.records import Record
class Inner(Record, words="number half:float"):
    pass
class Outer(Record, words="count first:Inner sum:float last"):
    pass
"""


def test_words_of_records_have_names():
    source = f"""{_RECORDS}
def added(each: Inner):
    each.number, each.half = each.number + 1, 0.5 * each.half
    return each.half

def kernel(launch: Outer):
    for k in range(launch.count):
        launch.sum = launch.sum + added(launch.first[k])
    launch.last = launch.first[1].number + 100 * Outer.last
"""
    inner = np.zeros(6, np.int64)
    inner.view(np.float64)[1::2] = [2.0, 3.0, 5.0]
    inner[::2] = [7, 8, 9]
    found = run(source, 3, inner.ctypes.data, 0.25, 0)
    assert floats(found)[2] == 0.25 + 5.0
    assert found[3] == 9 + 300
    assert inner[::2].tolist() == [8, 9, 10]
    assert floats(inner)[1::2] == [1.0, 1.5, 2.5]


def test_what_is_fixed_is_decided_when_it_is_compiled():
    source = """
def either(x, known: fixed):
    if known:
        return x + 1
    else:
        return 0.5 * x  # another type: only one of the two is ever made

def kernel(launch):
    store_int64(launch, 0, either(load_int64(launch, 0), True))
    store_float64(launch, 1, either(load_int64(launch, 1), False))
"""
    found = run(source, 4, 9)
    assert (found[0], floats(found)[1]) == (5, 4.5)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("launch.sum = 1 < 2; launch.count = 0.5", "launch.count is i64, and cannot be double"),
        ("launch.mean = 1", "cannot have 'launch.mean'"),
        ("x = launch.count.number", "cannot have 'launch.count.number'"),
        ("x = launch.count[1]", r"cannot have 'launch.count\[1\]'"),
        ("only(launch)", "each is the address of a Inner, and cannot be that of a Outer"),
    ],
)
def test_what_records_do_not_have_is_refused(body, why):
    with pytest.raises(TypeError, match=why):
        native._compile(f"{_RECORDS}\ndef only(each: Inner):\n    pass\n\ndef kernel(launch: Outer):\n    {body}\n")
