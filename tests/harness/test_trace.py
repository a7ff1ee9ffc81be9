"""Traces: the same to the last bit after JSON, and nothing believed that was not checked."""

import copy
import json

import numpy as np
import pytest
from hypothesis import given, settings

from stepcheck.harness.generate import traces
from stepcheck.harness.subjects import resolve
from stepcheck.harness.trace import (
    RECIPES,
    Gradient,
    Group,
    Parameter,
    Reload,
    SetOption,
    Step,
    Trace,
    TraceError,
    Values,
    ZeroGrad,
    loads,
    splitmix64,
)

ADAM = resolve("torch:Adam[forloop]")[0]
LIFE = Trace(
    "Adam",
    (Parameter((2, 3), "float32", "transposed", Values("log", 5, 2.0**-9, 3.0)), Parameter((), "float64")),
    (Group((0,), {"lr": 0.1, "betas": (0.5, 0.9), "amsgrad": True}), Group((1,))),
    (
        Step({0: Gradient(Values("extremes", 7, 1e-30, 1e30), "expanded"), 1: None}),
        ZeroGrad(set_to_none=False),
        SetOption(1, "lr", 0.25),
        Reload(),
        Step({1: Gradient(Values("listed", listed=(float("inf"),)))}),
    ),
)


@settings(max_examples=100, database=None, deadline=None)
@given(traces(ADAM, ADAM.dtypes))
def test_a_trace_survives_json_unchanged(trace):
    assert Trace.from_json(loads(json.dumps(trace.to_json()))) == trace


@settings(max_examples=100, database=None, deadline=None)
@given(traces(ADAM, ADAM.dtypes))
def test_every_drawn_life_is_one_that_the_reference_accepts(trace):
    assert trace.problem(ADAM.spec) is None


def test_splitmix64_gives_the_published_sequence():
    # The first outputs for seed 0 of the reference implementation, https://prng.di.unimi.it/splitmix64.c
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [int(x) for x in splitmix64(0, 3)] == expected


def test_a_recipe_means_the_same_for_ever():
    # Frozen: a trace saved by an earlier version must replay as it was.
    seen = {name: Values(name, 3, 2.0**-4, 8.0, (1.0, 2.0, 3.0, 4.0)).realise((4,)).tolist() for name in RECIPES}
    inf = float("inf")
    assert seen == {
        "constant": [8.0, 8.0, 8.0, 8.0],
        "quarters": [-2.0, 4.0, 8.0, -8.0],
        "log": [5.463754821482242, 1.6122551337059954, -0.4567586492533879, 0.15520687319399035],
        "sparse_log": [0.0, 0.0, -0.4567586492533879, 0.15520687319399035],
        "extremes": [inf, inf, -0.4567586492533879, 0.15520687319399035],
        "listed": [1.0, 2.0, 3.0, 4.0],
    }


@pytest.mark.parametrize("low, high", [(2.0**-4, 8.0), (1e-300, 1e300), (0.3, 0.3)])
def test_log_stays_within_its_range_and_reaches_all_of_it(low, high):
    x = np.abs(Values("log", 1, low, high).realise((20000,)))
    assert low <= x.min() <= x.max() <= high
    if low < high:
        assert x.min() < low * (high / low) ** 0.01
        assert x.max() > high / (high / low) ** 0.01


def _broken(path, value):
    data = LIFE.to_json()
    target = data
    for key in path[:-1]:
        target = target[key]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return data


@pytest.mark.parametrize(
    "path, value, said",
    [
        (["schema"], 2, "schema 2"),
        (["schema"], KeyError, "schema None"),
        (["optimizer"], 3, "optimizer"),
        (["parameters"], {}, "parameters: must be a JSON array"),
        (["parameters", 0, "shape"], [-1, 3], "shape"),
        (["parameters", 0, "shape"], [1 << 30], "shape"),
        (["parameters", 0, "shape"], [1 << 19, 1 << 19], "elements"),
        (["parameters", 0, "shape"], [2] * 9, "at most 8"),
        (["parameters", 0, "shape"], [True, 3], "shape"),
        (["parameters", 0, "dtype"], "object", "dtype"),
        (["parameters", 0, "layout"], "channels_last", "4 dimensions"),
        (["parameters", 0, "values", "recipe"], "__import__", "recipe"),
        (["parameters", 0, "values", "seed"], -1, "seed"),
        (["parameters", 0, "values", "low"], "0x", "hex float"),
        (["parameters", 0, "values", "low"], 0.5, "hex float"),
        (["parameters", 0, "extra"], 1, "unknown key"),
        (["groups", 0, "parameters"], [1], "exactly one group"),
        (["groups", 0, "parameters"], [7], "integer from 0 to 1"),
        (["groups"], [], "exactly one group"),
        (["events", 0, "event"], "exec", "event"),
        (["events", 0, "gradients"], {"9": None}, "integer from 0 to 1"),
        (["events", 0, "gradients"], {"x": None}, "integer from 0 to 1"),
        (["events", 1, "set_to_none"], "no", "true or false"),
        (["events", 4, "gradients", "1", "values", "listed"], [], "0 numbers for 1 elements"),
    ],
)
def test_a_damaged_trace_is_refused_with_the_place_named(path, value, said):
    with pytest.raises(TraceError, match=said):
        Trace.from_json(_broken(path, value))


def test_every_truncation_of_a_file_is_refused():
    text = json.dumps(LIFE.to_json())
    for end in range(len(text)):
        with pytest.raises(TraceError):
            Trace.from_json(loads(text[:end]))


def test_deep_nesting_is_refused_not_crashed_on():
    with pytest.raises(TraceError):
        loads("[" * 1_000_000)


def test_a_life_of_another_optimizer_or_of_refused_options_is_named():
    sgd = resolve("torch:SGD[forloop]")[0].spec
    assert "Adam" in (LIFE.problem(sgd) or "")
    wild = copy.copy(LIFE.to_json())
    wild["groups"][0]["options"]["lr"] = (-1.0).hex()
    assert "lr" in (Trace.from_json(wild).problem(ADAM.spec) or "")
    assert LIFE.problem(ADAM.spec) is None
