"""Traces: the same to the last bit after JSON, and nothing believed that was not checked."""

import copy
import itertools
import json
import random
import re
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings

from stepcheck import cli
from stepcheck.harness.life.events import (
    CLOSURES,
    DICTIONARIES,
    FAILURES,
    FLAGS,
    FORMS,
    HANDLINGS,
    HOOKS,
    OBJECTIVES,
    SCALINGS,
    SCHEDULES,
    SPELLINGS,
    SPOILING_WAYS,
    SPOILINGS,
    SURROUNDINGS,
    WAYS,
    Accumulate,
    AddGroup,
    Event,
    Fail,
    Freeze,
    Gradient,
    Group,
    Handle,
    Hook,
    Objective,
    Parameter,
    Refuse,
    Reload,
    Run,
    Scalar,
    Schedule,
    ScheduleStep,
    SetOption,
    Sparse,
    Spoil,
    Step,
    ZeroGrad,
)
from stepcheck.harness.life.objectives import FUNCTIONS
from stepcheck.harness.life.reading import TraceError, loads
from stepcheck.harness.life.spelling import spelled, unspelled
from stepcheck.harness.life.trace import MAX_EVENTS, MAX_WORK, PARAMETER_WORK, Trace
from stepcheck.harness.life.values import RECIPES, Values, splitmix64, splitmix64_word
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.player import Player
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.search.drawing import traces
from stepcheck.harness.search.generate import ESSENTIALS, TRACE_BYTES, decoder
from stepcheck.harness.search.scenes import scenes
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


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_every_objective_survives_json(kind, set_to_none):
    step = Step({}, Objective(kind, Values("log", 7, 0.5, 2.0), 0.1, set_to_none))
    trace = Trace("LBFGS", (Parameter((2,)),), (Group((0,)),), (step,))
    assert through_json(trace) == trace
    assert kind in FUNCTIONS
    # Older traces do not say it.
    assert ("set_to_none" in trace.to_json()["events"][0]["objective"]) != set_to_none


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


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_a_life_in_row_major_memory_is_of_the_same_numbers(dtype):
    values = Values("quarters", 1, 0.5, 2.0)
    parameters = (Parameter((3, 2), dtype, "transposed", values), Parameter((), dtype, "contiguous", values))
    step = Step({n: Gradient(values, "expanded") for n in range(2)})
    trace = Trace("SGD", parameters, (Group((0, 1), {}),), (step,))
    plain = trace.row_major()
    assert {x.layout for x in (*plain.parameters, *(g for _, g in plain.assigned))} == {"contiguous"}
    (subject,) = resolve("torch:SGD[forloop]")
    (strided,), (contiguous,) = (Player(subject, t).play().steps for t in (trace, plain))
    for a, b in zip(strided.parameters, contiguous.parameters, strict=True):
        assert np.array_equal(a.gradient, b.gradient)
        assert np.array_equal(a.value_after, b.value_after)


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
        "ramp": [-7.998046875, -6.063232421875, -4.12841796875, -2.193603515625],
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
        ([*SPARSE, "entries"], [0] * (1 << 20), "elements"),
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


def test_a_line_search_cannot_begin_at_the_lr_of_0_that_a_schedule_may_go_back_to():
    def life(*events):
        step = Step({}, Objective())
        return Trace("LBFGS", (VECTOR,), (Group((0,), {"lr": 0.0}),), (*events, step)).problem(SPECS["LBFGS"])

    moves, searches = SetOption(0, "lr", 0.1), SetOption(0, "line_search_fn", "strong_wolfe")
    assert "lr must not be 0" in (life(Schedule("ExponentialLR"), moves, searches) or "")
    assert life(Schedule("ExponentialLR"), moves) is None
    assert life(moves, Schedule("ExponentialLR"), searches) is None


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


# How the optimizer is constructed.


@pytest.mark.parametrize("flags", [(), *((flag,) for flag in FLAGS), FLAGS])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_how_the_optimizer_is_constructed_survives_json(flags, spelling):
    trace = replace(LIFE, flags=flags, spelling=spelling)
    assert through_json(trace) == trace
    assert trace.problem(ADAM.spec) is None
    # Older traces do not say it.
    assert ("flags" in trace.to_json()) == bool(flags)
    assert ("spelling" in trace.to_json()) == (spelling != "plain")
    assert trace.plainly == LIFE


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("flags", "fused", "flags: must be a JSON array, got str"),
        (
            "flags",
            ["fused", "quick"],
            "flags[1]: must be one of foreach, fused, capturable, differentiable, got 'quick'",
        ),
        ("flags", ["fused"] * 2, "flags: each must stand there once"),
        ("flags", ["fused"] * 5, "flags: 5 entries, at most 4"),
        ("spelling", "wholly", "spelling: must be one of plain, whole, lists, numpy, got 'wholly'"),
    ],
)
def test_another_flag_or_spelling_is_refused(key, value, told):
    assert _refusal(LIFE.to_json() | {key: value}) == told


@pytest.mark.parametrize(
    ("construction", "told"),
    [
        ({"flags": ("quick",)}, "no flag 'quick'"),
        ({"flags": ("fused",) * 2}, "once"),
        ({"spelling": "wholly"}, "'wholly'"),
    ],
)
def test_a_life_made_by_hand_names_no_other_flag_or_spelling(construction, told):
    assert told in replace(LIFE, **construction).problem(ADAM.spec)


#: A value, and how each spelling but the plain one writes it.
WRITTEN = {
    "1.0": (1.0, "1", "1.0", "float64"),
    "0.5": (0.5, "0.5", "0.5", "float64"),
    "-0.0": (-0.0, "-0.0", "-0.0", "float64"),
    "inf": (float("inf"), "inf", "inf", "float64"),
    "2**60": (2.0**60, "1.152921504606847e+18", "1.152921504606847e+18", "float64"),
    "3": (3, "3", "3", "int64"),
    "True": (True, "True", "True", "bool"),
    "None": (None, "None", "None", "NoneType"),
    "name": ("abc", "'abc'", "'abc'", "str"),
    "pair": ((0.0, 0.5), "(0, 0.5)", "[0.0, 0.5]", "tuple"),
    "open pair": ((None, 1.0), "(None, 1)", "[None, 1.0]", "tuple"),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_value_is_spelled_otherwise_and_worth_the_same(name):
    value, whole, listed, kind = WRITTEN[name]
    assert repr(spelled(value, "plain")) == repr(value)
    assert repr(spelled(value, "whole")) == whole
    assert repr(spelled(value, "lists")) == listed
    assert type(spelled(value, "numpy")).__name__.strip("_") == kind
    for spelling in SPELLINGS:
        assert unspelled(spelled(value, spelling)) == value
    if kind == "tuple":
        assert all(x is None or isinstance(x, np.float64) for x in spelled(value, "numpy"))


# The life around the steps.

SLICED = Parameter((2, 3), "float32", "sliced", Values("quarters", 1, high=1.0))
GRADIENT = Gradient(Values("log", 3, 0.5, 1.0), negated=True)
#: Each kind of event, and each field, away from its default.
LIVELY = Trace(
    "Adam",
    (SLICED, Parameter((2, 3), "float32", "sliced", within=0), Parameter((2,)), Parameter((3,))),
    (Group((0, 1), {"lr": Scalar(0.1), "amsgrad": True}), Group((2,), {"lr": Scalar(0.0)})),
    (
        Step({0: GRADIENT, 1: None}, closure="backward"),
        Accumulate({0: Gradient(), 1: GRADIENT}),
        Step({2: GRADIENT}, scaling="unscale"),
        ZeroGrad(set_to_none=False),
        SetOption(0, "lr", Scalar(0.25)),
        AddGroup(Group((3,), {"betas": (0.5, 0.25), "lr": 0.5})),
        SetOption(2, "lr", 0.125),
        Reload("saved", "foreign", "named", 2),
        Freeze(1),
        Freeze(1, frozen=False),
        Hook("load_state_dict_post"),
        Schedule("CyclicLR"),
        ScheduleStep(),
        Fail("dtype", 3),
        Refuse("betas", "wrong length", (0.5,), "add_param_group", {"lr": 0.5, "amsgrad": False}),
        Refuse("lr", "nan", None, "construction"),
        Spoil("a row short", "loaded", 3, 2),
        Run(3),
        Handle("written", 2, Values("ramp", 4, high=2.0)),
        Step({0: GRADIENT}, within="graph"),
    ),
    "mixed",
    ("foreach", "capturable"),
    "numpy",
)
KINDS = set(Event.__args__)


def test_every_kind_of_event_survives_json():
    assert {type(e) for e in LIVELY.events} == KINDS
    assert through_json(LIVELY) == LIVELY
    assert through_json(LIVELY).to_json() == LIVELY.to_json()
    assert LIVELY.problem(ADAM.spec) is None


@pytest.mark.parametrize(
    "event",
    [
        *(Step({}, closure=c) for c in CLOSURES),
        *(Step({}, scaling=s) for s in SCALINGS),
        *(Reload(way, dictionary, form) for way in WAYS for dictionary in DICTIONARIES for form in FORMS),
        *map(Hook, HOOKS),
        *map(Schedule, SCHEDULES),
        *map(Fail, FAILURES),
        *(Step({}, within=w) for w in SURROUNDINGS),
        *(Handle(how, 0, Values("log", 3, 0.5, 1.0)) for how in HANDLINGS),
        *(Spoil(how, way) for how in SPOILINGS for way in SPOILING_WAYS),
    ],
    ids=str,
)
def test_every_choice_survives_json(event):
    trace = Trace("SGD", (Parameter((2,)),), (Group((0,)),), (event,))
    assert through_json(trace) == trace


def drawn(name, number):
    subject = resolve(f"torch:{name}")[0] if "[" in name else class_subject(getattr(torch.optim, name), name)
    decode, words = decoder(subject, subject.dtypes), random.Random(name)
    turns = itertools.chain(((e, 0) for e in ESSENTIALS), scenes(subject, len(ESSENTIALS)))
    for essential, turn in itertools.islice(turns, number):
        yield subject, decode(words.randbytes(TRACE_BYTES), essential, turn)


@pytest.mark.parametrize("essential", ["scaled", "skipped"])
def test_a_life_that_must_be_scaled_is(essential):
    (subject,) = resolve("torch:NAdam[forloop]")
    decode, words = decoder(subject, subject.dtypes), random.Random(essential)
    for _ in range(300):
        trace = decode(words.randbytes(TRACE_BYTES), essential)
        assert any(isinstance(e, Step) and e.scaling == "step" for e in trace.events)


MANY = (
    "SGD[forloop]",
    "Adam[foreach]",
    "AdamW[fused]",
    "Adagrad[forloop]",
    "SparseAdam[forloop]",
    "RMSprop[differentiable]",
)


@pytest.mark.parametrize("name", [*MANY, "LBFGS[forloop]"])
def test_hundreds_of_drawn_lives_survive_json(name):
    for subject, trace in drawn(name, 300):
        assert through_json(trace) == trace
        assert repr(through_json(trace)) == repr(trace)  # 1 is not 1.0 or True
        assert trace.problem(subject.spec) is None


def test_drawn_lives_hold_every_kind_of_event_and_every_choice():
    lives = [t for name in (*MANY, "SGD") for _, t in drawn(name, 500)]
    events = [e for t in lives for e in t.events]
    assert {type(e) for e in events} == KINDS - {Refuse}  # these are tried of a matrix of their own
    assert {t.form for t in lives} == set(FORMS)

    def seen(kind, field):
        return {getattr(e, field) for e in events if isinstance(e, kind)}

    assert seen(Step, "closure") == {"", *CLOSURES}
    assert seen(Step, "scaling") == {"", *SCALINGS}
    assert seen(Step, "within") == {"", *SURROUNDINGS}
    assert seen(Handle, "how") == set(HANDLINGS)
    assert seen(Reload, "way") == set(WAYS)
    assert seen(Reload, "dictionary") == set(DICTIONARIES)
    assert seen(Hook, "kind") == set(HOOKS)
    assert seen(Schedule, "kind") == set(SCHEDULES)
    assert seen(Fail, "kind") == set(FAILURES)
    assert seen(Spoil, "how") == set(SPOILINGS)
    assert seen(Spoil, "way") == set(SPOILING_WAYS)
    assert any(p.within is not None for t in lives for p in t.parameters)
    assert any(isinstance(v, Scalar) for t in lives for o in t.given_options for v in o.values())


def _lively_broken(path, value):
    data = json.loads(json.dumps(LIVELY.to_json()))
    target = data
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    return data


def _number_of(kind, nth=0):
    return [n for n, e in enumerate(LIVELY.events) if isinstance(e, kind)][nth]


def _at(kind, *field, nth=0):
    return ["events", _number_of(kind, nth), *field]


#: Every new field.
NEW = [
    ["form"],
    ["flags"],
    ["flags", 1],
    ["spelling"],
    ["parameters", 1, "within"],
    ["groups", 0, "options", "lr"],
    ["groups", 0, "options", "lr", "tensor"],
    _at(Step, "closure"),
    _at(Step, "scaling", nth=1),
    _at(Step, "gradients", "0", "negated"),
    _at(Accumulate, "gradients"),
    _at(Accumulate, "gradients", "0"),
    *(_at(Reload, key) for key in ("way", "dictionary", "form", "into")),
    _at(AddGroup, "parameters"),
    _at(AddGroup, "options"),
    *(_at(Freeze, key) for key in ("parameter", "frozen")),
    _at(Hook, "kind"),
    _at(Schedule, "kind"),
    *(_at(Fail, key) for key in ("kind", "parameter")),
    *(_at(Refuse, key) for key in ("option", "kind", "value", "place", "beside")),
    *(_at(Spoil, key) for key in ("how", "way", "parameter", "buffer")),
]
NONSENSE = [
    None, True, 0, -1, 1.5, 10**18, -(10**400), float("nan"), float("inf"), "", "x", "__import__('os')", "x" * 10_000, [], {}, [[]],
    {"tensor": 1}, {"tensor": "x"}, {"text": None}, {"a": {"b": []}}, [None] * 100, {str(n): n for n in range(1000)},
]  # fmt: skip
#: What makes sense there after all.
SENSE = {
    "flags": ([],),
    "within": (None, 0),
    "lr": (None, True, 0, -1, [], 10**18),
    "negated": (True,),
    "gradients": ({},),
    "closure": ("",),
    "scaling": ("",),
    "into": (0, True),
    "frozen": (True,),
    "parameter": (0,),
    "buffer": (0,),
    "options": ({}, {"tensor": 1}, {"text": None}),
    "option": ("", "x", "__import__('os')"),
    "kind": ("", "x", "__import__('os')"),
    "value": (None, True, 0, -1, []),
    "place": ("", "x", "__import__('os')"),
    "beside": ({}, {"tensor": 1}, {"text": None}),
}


def _refusal(data):
    """Why it is refused; empty if it is not."""
    try:
        Trace.from_json(data)
    except TraceError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("path", NEW, ids=lambda path: ".".join(map(str, path)))
def test_nonsense_in_a_new_field_is_refused(path):
    said = [_refusal(_lively_broken(path, value)) for value in NONSENSE]
    assert all(len(text) < 400 and "\n" not in text for text in said)
    accepted = [value for value, text in zip(NONSENSE, said, strict=True) if not text]
    assert all(any(x is y or (x == y and type(x) is type(y)) for y in SENSE.get(path[-1], ())) for x in accepted), (
        accepted
    )


@pytest.mark.parametrize("kind", sorted(KINDS, key=str), ids=lambda kind: kind.__name__)
def test_unknown_keys_of_an_event_are_refused(kind):
    with pytest.raises(TraceError, match="unknown key 'extra'"):
        Trace.from_json(_lively_broken(_at(kind, "extra"), 1))


WITHIN = {
    "shape": [2, 3],
    "dtype": "float32",
    "layout": "sliced",
    "values": {"recipe": "constant", "seed": 0, "low": "0x0p+0", "high": "0x0p+0"},
}


@pytest.mark.parametrize(
    "path, value, said",
    [
        (["parameters", 0, "within"], 0, "earlier parameter"),
        (["parameters", 0, "within"], 1, "earlier parameter"),  # a cycle
        (["parameters", 1, "within"], 1, "earlier parameter"),
        (["parameters", 1, "within"], 3, "earlier parameter"),
        (["parameters", 1, "within"], 1000, "earlier parameter"),
        (["parameters", 1, "layout"], "transposed", "sliced"),
        (["parameters", 0, "layout"], "contiguous", "sliced"),
        (["parameters", 1, "shape"], [3, 2], "same shape"),
        (["parameters", 1, "dtype"], "float64", "same shape and dtype"),
        (["parameters", 2], {**WITHIN, "within": 0}, "once"),
        (["parameters", 2], {**WITHIN, "within": 1}, "both parameters must be sliced"),  # a chain
        (_at(SetOption, "group"), 2, "there are 2 groups by then"),
        (_at(SetOption, "group", nth=1), 3, "there are 3 groups by then"),
        (_at(AddGroup, "parameters"), [2], "exactly one group"),
        (_at(AddGroup, "parameters"), [3, 3], "exactly one group"),
        (_at(AddGroup, "parameters"), [4], "integer from 0 to 3"),
        (_at(AddGroup, "parameters"), [], "exactly one group"),
        (_at(Freeze, "parameter"), 4, "integer from 0 to 3"),
        (_at(Fail, "parameter"), 4, "integer from 0 to 3"),
        (_at(Step, "scaling"), "step", "takes no closure"),
        (_at(Accumulate, "gradients", "1"), None, "dense"),
        (_at(Accumulate, "gradients", "0", "sparse"), {"entries": [0], "dimensions": 1, "coalesced": True}, "dense"),
        (_at(Reload, "into"), 65, "integer from 0 to 64"),
        (["events"], [{"event": "schedule_step"}] * (MAX_EVENTS + 1), "entries, at most"),
        (["events"], [{"event": "schedule_step"}] * 10**6, "1000000 entries, at most"),
        (["groups", 0, "options"], {str(n): 1 for n in range(65)}, "at most 64"),
    ],
)  # fmt: skip
def test_a_damaged_lively_trace_is_refused_with_the_place_named(path, value, said):
    with pytest.raises(TraceError, match=re.escape(said)):
        Trace.from_json(_lively_broken(path, value))


def test_elements_of_all_events_together_are_bounded():
    def trace(elements, events, parameters=1):
        shapes = (Parameter((elements,)),) * parameters
        return Trace("SGD", shapes, (Group(tuple(range(parameters))),), (ScheduleStep(),) * events)

    most = MAX_WORK // (2**16 + PARAMETER_WORK)
    assert through_json(trace(1 << 16, most)) == trace(1 << 16, most)
    for more in (trace(1 << 16, most + 1), trace(1 << 20, 64), trace(0, 17, 1024)):
        with pytest.raises(TraceError, match=f"elements in all events together, .*; at most {MAX_WORK}$"):
            through_json(more)


def test_what_a_sparse_gradient_names_counts():
    named = Sparse((0,) * 1024, coalesced=False)

    def trace(events):
        steps = (Step({0: Gradient(sparse=named)}),) * events
        return Trace("SGD", (Parameter((1, 1024)),), (Group((0,)),), steps)

    through_json(trace(7))
    with pytest.raises(TraceError, match="elements in all events together"):
        through_json(trace(8))


@pytest.mark.parametrize("option", ["max_iter", "max_eval"])
def test_evaluations_that_an_option_allows_count(option):
    def trace(most):
        return Trace("LBFGS", (Parameter((9,)),), (Group((0,), {option: most}),), (Step({}, Objective()),))

    through_json(trace(40))
    with pytest.raises(TraceError, match="elements in all events together"):
        through_json(trace(10**9))


def test_nesting_of_any_depth_is_refused():
    text = json.dumps(LIVELY.to_json())
    for depth in (10, 100, 500, 900, 950, 980, 990, 1000, 5000, 100_000):
        for opening, closing in (("[", "]"), ('{"tensor": ', "}")):
            with pytest.raises(TraceError):
                Trace.from_json(loads(text.replace('"mixed"', opening * depth + "1" + closing * depth)))
            with pytest.raises(TraceError):
                Trace.from_json(loads(text.replace('{"tensor": "0x0.0p+0"}', opening * depth + "1" + closing * depth)))


@pytest.mark.parametrize("place", ["nowhere", "", "load"])
def test_a_place_that_does_not_exist_is_refused(place):
    with pytest.raises(TraceError):
        Trace.from_json(_lively_broken(_at(Refuse, "place"), place))


_WATCHED = []


def _watch(event, arguments):
    if _WATCHED and event in ("open", "subprocess.Popen", "os.system", "socket.connect", "exec", "pickle.find_class"):
        _WATCHED.append((event, str(arguments[0])))


HOSTILE = {
    "deep": "[" * 100_000,
    "not a number": json.dumps(_lively_broken(["parameters", 1, "within"], float("nan"))),
    "huge": json.dumps(LIVELY.to_json()).replace('"into": 2', '"into": 1' + "0" * 4000),
    "larger": json.dumps(LIVELY.to_json()).replace('"into": 2', '"into": 1' + "0" * 5000),
    "cycle": json.dumps(_lively_broken(["parameters", 0, "within"], 1)),
    "path": json.dumps(_lively_broken(_at(Reload, "way"), "/etc/passwd")),
    "group": json.dumps(_lively_broken(_at(SetOption, "group"), 9)),
    "million": json.dumps(_lively_broken(["events"], [{"event": "schedule_step"}] * 10**6)),
    "code": json.dumps(_lively_broken(_at(Schedule, "kind"), "__class__")),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_replay_of_a_hostile_file_says_so_in_one_line_and_opens_nothing_else(kind, tmp_path, monkeypatch, capsys):
    path = tmp_path / "hostile.json"
    path.write_text(HOSTILE[kind])
    monkeypatch.setattr(sys, "argv", ["stepcheck", "replay", str(path), "--subject", "torch:Adam[forloop]"])
    if not hasattr(sys, "_stepcheck_watches"):
        sys.addaudithook(_watch)  # it stays for as long as the process
        sys._stepcheck_watches = True
    _WATCHED.append("begin")
    try:
        with pytest.raises(SystemExit) as exit_:
            cli.main()
    finally:
        seen = [(event, name) for event, name in _WATCHED[1:]]
        _WATCHED.clear()
    told = capsys.readouterr().err
    assert exit_.value.code == 2
    assert len(told.strip().splitlines()) == 1
    assert told.startswith("stepcheck: ")
    opened = {name for event, name in seen if event == "open" and not name.endswith((".py", ".pyc"))}
    assert opened <= {str(path)}
    assert not [event for event, name in seen if event not in ("open", "exec")]


#: As version 0.1 wrote it, before there was a life around the steps.
OLD = {
    "schema": 1,
    "optimizer": "SGD",
    "parameters": [
        {
            "shape": [2],
            "dtype": "float32",
            "layout": "contiguous",
            "values": {"recipe": "listed", "listed": ["0x1.0000000000000p+0", "-0x1.0000000000000p-1"]},
        },
        {
            "shape": [1],
            "dtype": "float64",
            "layout": "sliced",
            "values": {"recipe": "constant", "seed": 0, "low": "0x0.0p+0", "high": "0x1.0000000000000p+1"},
        },
    ],
    "groups": [
        {"parameters": [0], "options": {"lr": "0x1.0000000000000p-1", "momentum": "0x1.0000000000000p-1"}},
        {"parameters": [1], "options": {}},
    ],
    "events": [
        {
            "event": "step",
            "gradients": {
                "0": {
                    "layout": "contiguous",
                    "values": {"recipe": "constant", "seed": 0, "low": "0x0.0p+0", "high": "0x1.0000000000000p+0"},
                },
                "1": None,
            },
        },
        {"event": "zero_grad", "set_to_none": False},
        {"event": "set_option", "group": 0, "option": "lr", "value": "0x1.0000000000000p-2"},
        {"event": "reload"},
        {"event": "step", "gradients": {}},
    ],
}


def test_a_trace_of_an_earlier_version_reads_and_means_the_same():
    trace = Trace.from_json(OLD)
    one = Gradient(Values("constant", high=1.0))
    assert trace == Trace(
        "SGD",
        (
            Parameter((2,), values=Values("listed", listed=(1.0, -0.5))),
            Parameter((1,), "float64", "sliced", Values(high=2.0)),
        ),
        (Group((0,), {"lr": 0.5, "momentum": 0.5}), Group((1,))),
        (Step({0: one, 1: None}), ZeroGrad(set_to_none=False), SetOption(0, "lr", 0.25), Reload(), Step()),
    )
    # What is at its default is not written, so that an earlier version reads what it could have written.
    assert trace.to_json() == OLD
    recording = Player(resolve("torch:SGD[forloop]")[0], trace).play()
    assert recording.raised is None
    assert [s.parameters[0].value_after.tolist() for s in recording.steps] == [[0.5, -1.0], [0.375, -1.125]]
