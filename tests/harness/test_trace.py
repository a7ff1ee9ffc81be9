"""Traces: the same to the last bit after JSON, and nothing believed that was not checked."""

import copy
import json
import re

import numpy as np
import pytest
from hypothesis import given, settings

from stepcheck.harness.generate import traces
from stepcheck.harness.objectives import FUNCTIONS
from stepcheck.harness.subjects import resolve
from stepcheck.harness.trace import (
    OBJECTIVES,
    RECIPES,
    Gradient,
    Group,
    Objective,
    Parameter,
    Reload,
    SetOption,
    Sparse,
    Step,
    Trace,
    TraceError,
    Values,
    ZeroGrad,
    loads,
    splitmix64,
    splitmix64_word,
)
from stepcheck.reference import SPECS

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


#: What the first life has not: options of every type, sparse gradients, complex numbers, an objective.
RICH = Trace(
    "SGD",
    (
        Parameter((4, 3), "bfloat16", "offset", Values("quarters", 1, high=2.0)),
        Parameter((2,), "complex64", "contiguous", Values("log", 2, 0.5, 1.0)),
        Parameter((2, 2), "complex128", "sliced", Values("listed", listed=tuple(map(float, range(8))))),
        Parameter((3,), "float16"),
    ),
    (
        Group((0, 2), {"absent": None, "name": "abc", "count": 5, "flag": False, "number": 0.1, "eps": (None, 1e-3)}),
        Group((1, 3), {"name": "", "huge": 2**53, "negative": -3, "special": float("-inf"), "pair": (0.5, -0.0)}),
    ),
    (
        Step(
            {
                0: Gradient(Values("log", 3, 0.5, 1.0), sparse=Sparse((3, 1, 1))),
                1: Gradient(Values("quarters", 4, high=1.0), "conjugated"),
                2: Gradient(Values("listed", listed=(1.0, -2.0)), sparse=Sparse((3,), 2, coalesced=True)),
                3: Gradient(sparse=Sparse((), 1)),
            },
            Objective("rosenbrock", Values("quarters", 5, high=1.0), 1e-3),
        ),
        SetOption(0, "name", "0x1.8p-3"),
        SetOption(1, "eps", (None, 0.25)),
        SetOption(1, "count", None),
        Step({}, Objective()),
    ),
)


def through_json(trace):
    return Trace.from_json(loads(json.dumps(trace.to_json())))


def test_everything_that_a_trace_can_hold_survives_json():
    assert through_json(RICH) == RICH
    for before, after in zip(RICH.groups, through_json(RICH).groups, strict=True):
        for name, value in before.options.items():
            # 5 == 5.0, 0.0 == -0.0 and "0x1p0" is a hex float: the types and the text are to be the same.
            assert type(after.options[name]) is type(value)
            assert repr(after.options[name]) == repr(value)
    assert through_json(RICH).events[1].value == "0x1.8p-3"


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_survives_json(kind):
    step = Step({}, Objective(kind, Values("log", 7, 0.5, 2.0), 0.1))
    trace = Trace("LBFGS", (Parameter((2,)),), (Group((0,)),), (step,))
    assert through_json(trace) == trace
    assert kind in FUNCTIONS


@pytest.mark.parametrize(
    "name",
    [
        "SGD[forloop]",
        "Adagrad[forloop]",
        "SparseAdam[forloop]",
        "LBFGS[forloop]",
        "Muon[forloop]",
        "Adafactor[foreach]",
        "Rprop[forloop]",
    ],
)
def test_lives_of_every_kind_survive_json_and_are_accepted(name):
    subject = resolve(f"torch:{name}")[0]

    @settings(max_examples=40, database=None, deadline=None)
    @given(traces(subject, subject.dtypes))
    def survives(trace):
        assert through_json(trace) == trace
        assert trace.problem(subject.spec) is None

    survives()


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


def test_one_word_is_the_first_of_many():
    for seed in (0, 1, -1, 5 << 12, 2**63 + 7, 2**64 - 1):
        assert splitmix64_word(seed) == int(splitmix64(seed, 4)[0])


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


def _rich_broken(path, value):
    data = RICH.to_json()
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


SPARSE = ["events", 0, "gradients", "0", "sparse"]
NAMED_ALL = ["events", 0, "gradients", "2", "sparse"]


@pytest.mark.parametrize(
    "path, value, said",
    [
        ([*SPARSE, "entries"], [4], "entries must be from 0 to 3"),
        ([*SPARSE, "entries"], [-1], "integer from 0"),
        ([*SPARSE, "entries"], [0.5], "integer from 0"),
        ([*SPARSE, "entries"], [True], "integer from 0"),
        ([*SPARSE, "entries"], "012", "JSON array"),
        ([*SPARSE, "entries"], [0] * (1 << 19), "elements"),
        ([*SPARSE, "dimensions"], 0, "dimensions"),
        ([*SPARSE, "dimensions"], 3, "dimensions must be from 1 to 2"),
        ([*SPARSE, "dimensions"], True, "dimensions"),
        ([*SPARSE, "coalesced"], True, "sorted and unique"),
        ([*SPARSE, "coalesced"], 1, "true or false"),
        ([*SPARSE, "extra"], 1, "unknown key"),
        ([*NAMED_ALL, "entries"], [1, 1], "sorted and unique"),
        ([*NAMED_ALL, "entries"], [2, 1], "sorted and unique"),
        ([*NAMED_ALL, "entries"], [0, 1], "2 numbers for 4 elements"),
        (SPARSE, [], "JSON object"),
        (["parameters", 0, "shape"], [], "dimensions must be from 1 to 0"),
        (["parameters", 0, "layout"], "expanded", "layout"),
        (["parameters", 1, "layout"], "conjugated", "layout"),
        (["parameters", 2, "values", "listed"], [(0.0).hex()] * 4, "4 numbers for 8 elements"),
        (["parameters", 1, "dtype"], "complex32", "dtype"),
        (["parameters", 1, "dtype"], "float32", "conjugated needs a complex dtype"),
        (["events", 0, "gradients", "0", "layout"], "conjugated", "conjugated needs a complex dtype, got bfloat16"),
        (["events", 0, "objective", "kind"], "__import__('os')", "kind"),
        (["events", 0, "objective", "kind"], None, "kind"),
        (["events", 0, "objective", "scale"], 1.0, "hex float"),
        (["events", 0, "objective", "centre"], None, "JSON object"),
        (["events", 0, "objective", "centre", "recipe"], "listed", "unknown key"),
        (["events", 0, "objective", "extra"], 1, "unknown key"),
        (["events", 0, "objective"], "quadratic", "JSON object"),
        (["groups", 0, "options", "name"], "abc def", "hex float"),
        (["groups", 0, "options", "name"], {"text": 5}, "short string"),
        (["groups", 0, "options", "name"], {"text": "x" * 201}, "short string"),
        (["groups", 0, "options", "name"], {"text": "x", "more": 1}, "unknown key"),
        (["groups", 0, "options", "count"], 2**53 + 1, "integer from"),
        (["groups", 0, "options", "number"], 0.5, "hex float"),
        (["groups", 0, "options", "eps"], [None, "x"], "hex float"),
        (["groups", 0, "options", "eps"], [[None]], "hex float"),
    ],
)  # fmt: skip
def test_a_damaged_rich_trace_is_refused_with_the_place_named(path, value, said):
    with pytest.raises(TraceError, match=re.escape(said)):
        Trace.from_json(_rich_broken(path, value))


def test_a_tuple_that_is_too_long_is_refused_and_not_cut():
    data = _rich_broken(["groups", 0, "options", "eps"], [(0.5).hex()] * 9)
    with pytest.raises(TraceError):
        Trace.from_json(data)


def test_a_listed_centre_is_refused():
    listed = {"recipe": "listed", "listed": []}
    with pytest.raises(TraceError, match="listed"):
        Trace.from_json(_rich_broken(["events", 0, "objective", "centre"], listed))


def test_every_truncation_of_a_file_is_refused():
    text = json.dumps(LIFE.to_json())
    for end in range(len(text)):
        with pytest.raises(TraceError):
            Trace.from_json(loads(text[:end]))


def test_deep_nesting_is_refused_not_crashed_on():
    with pytest.raises(TraceError):
        loads("[" * 1_000_000)


def one(name, parameter, gradient=None, objective=None, **options):
    return Trace(name, (parameter,), (Group((0,), options),), (Step({0: gradient} if gradient else {}, objective),))


MATRIX, VECTOR, COMPLEX = Parameter((2, 2)), Parameter((2,)), Parameter((2, 2), "complex64")
NAMED = Gradient(sparse=Sparse((0,)))


@pytest.mark.parametrize(
    "trace, said",
    [
        (one("Muon", VECTOR, Gradient()), "no parameter of shape (2,)"),
        (one("Muon", COMPLEX, Gradient()), "no complex parameter"),
        (one("Muon", MATRIX, NAMED), "no sparse gradient"),
        (one("Adafactor", COMPLEX, Gradient()), "no complex parameter"),
        (one("SparseAdam", VECTOR, Gradient()), "sparse gradients alone"),
        (one("Adagrad", VECTOR, NAMED, weight_decay=0.1), "no sparse gradient with these options"),
        (one("SGD", VECTOR, Gradient(sparse=Sparse((2,)))), "entries must be from 0 to 1"),
        (one("SGD", Parameter(()), Gradient(sparse=Sparse(()))), "dimensions must be from 1 to 0"),
        (one("SGD", VECTOR, None, Objective()), "steps without an objective"),
        (one("LBFGS", VECTOR, Gradient()), "steps with an objective"),
        (one("LBFGS", VECTOR, None, Objective(), max_iter=2.5), "max_iter"),
        (one("LBFGS", VECTOR, None, Objective(), line_search_fn="armijo"), "line_search_fn"),
        (one("Rprop", VECTOR, Gradient(), step_sizes=(1.0, 0.5)), "ordered"),
    ],
    ids=str,
)
def test_what_an_optimizer_cannot_take_is_named(trace, said):
    assert said in (trace.problem(SPECS[trace.optimizer]) or "")


def test_lbfgs_takes_one_group():
    trace = Trace("LBFGS", (VECTOR, VECTOR), (Group((0,)), Group((1,))), (Step({}, Objective()),))
    assert "one group" in (trace.problem(SPECS["LBFGS"]) or "")


def test_sparse_gradient_is_cut_down_to_a_smaller_shape():
    sparse = Sparse((0, 3, 5), 2)
    assert sparse.within((2, 2)) == Sparse((0, 3), 2)
    assert sparse.within((4,)) == Sparse((0, 3), 1)
    assert sparse.within(()) is None
    assert sparse.shape_of_values((2, 3, 7)) == (3, 7)


def test_a_complex_gradient_has_two_numbers_for_each_element_that_it_names():
    gradient = Gradient(Values("quarters", 1, high=1.0), sparse=Sparse((0, 2)))
    assert gradient.realise((3, 5), "complex64").shape == (2, 5, 2)
    assert gradient.realise((3, 5), "float32").shape == (2, 5)


def test_a_life_of_another_optimizer_or_of_refused_options_is_named():
    sgd = resolve("torch:SGD[forloop]")[0].spec
    assert "Adam" in (LIFE.problem(sgd) or "")
    wild = copy.copy(LIFE.to_json())
    wild["groups"][0]["options"]["lr"] = (-1.0).hex()
    assert "lr" in (Trace.from_json(wild).problem(ADAM.spec) or "")
    assert LIFE.problem(ADAM.spec) is None
