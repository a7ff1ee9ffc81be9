"""Each Spec says what torch.optim's class of its name takes and keeps, and its update is a pure function."""

from __future__ import annotations

import ast
import copy
import inspect
import itertools
import math
import pathlib
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from packaging.version import Version

import stepcheck.reference
from stepcheck.reference import SPECS
from stepcheck.reference.arithmetic import ORDERS, addcdiv, any_order, any_order_of, ema, ema_of_square
from stepcheck.reference.group_options import GroupOptions

HERE = Version(Version(torch.__version__).base_version)
#: Arguments of torch's constructors that choose an implementation, not the recurrence.
IMPLEMENTATION = {"params", "foreach", "fused", "capturable", "differentiable"}

REFERENCE = pathlib.Path(stepcheck.reference.__file__).parent

each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
each_hyper = pytest.mark.parametrize(
    ("spec", "hyper"),
    [pytest.param(spec, h, id=f"{spec.name}.{h.name}") for spec in SPECS.values() for h in spec.hyper],
)


#: Options that add or remove a buffer or change how it starts, with what they need beside them.
CHANGES = (
    {"nesterov": True, "momentum": 0.9},
    {"nesterov": False},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"initial_accumulator_value": 0.5},
    {"lr_decay": 0.5},
    {"weight_decay": 0.1},
    {"lr": 0.25},
    {"t0": 1.0, "lambd": 0.5},
    {"momentum_decay": 0.5},
    {"eps": (0.5, 0.25)},
    {"adjust_lr_fn": "match_rms_adamw"},
    {"ns_steps": 1},
)
#: Of a closure the step is a coroutine of its own kind: see test_lbfgs.py.
STEPPED = [spec for spec in SPECS.values() if not spec.closure]


def variants():
    """The defaults, each flag alone, and the changes that the Spec has the options for."""
    for spec in STEPPED:
        yield pytest.param(spec, {}, id=spec.name)
        flags = [{h.name: True} for h in spec.hyper if h.is_flag and h.name != "nesterov"]
        for options in (*flags, *(change for change in CHANGES if suits(spec, change))):
            yield pytest.param(spec, options, id="-".join([spec.name, *options]))


def suits(spec, options):
    """Whether the Spec has all of these options and takes their values."""
    hyper = {h.name: h for h in spec.hyper}
    return all(name in hyper and hyper[name].problem(value) is None for name, value in options.items())


def present(spec, options):
    """These options as far as the Spec has them."""
    return {name: value for name, value in options.items() if name in {h.name for h in spec.hyper}}


each_variant = pytest.mark.parametrize(("spec", "options"), list(variants()))
each_stepped = pytest.mark.parametrize("spec", STEPPED, ids=lambda spec: spec.name)


def shapes(spec):
    """A vector, and where elements depend on each other a matrix and a batch of matrices."""
    return [shape for shape in [(2,), *([] if spec.elementwise else [(3, 2), (2, 3, 4)])] if spec.shapes(shape)]


def buffers(spec, hyper, shape):
    """The buffers that a parameter of this shape has, by name, with their shapes."""
    wanted = [b for b in spec.buffers if b.present(hyper) and b.shape(shape) is not None]
    return {b.name: () if b.per_parameter else b.shape(shape) for b in wanted}


def constructed(spec, options, shape=None, dtype=torch.float64):
    shape = shapes(spec)[0] if shape is None else shape
    parameter = torch.nn.Parameter(torch.linspace(1.0, -2.0, math.prod(shape), dtype=dtype).reshape(shape))
    return parameter, getattr(torch.optim, spec.name)([parameter], **options)


def stepped(spec, options, shape=None, dtype=torch.float64, steps=1):
    """The parameter and its gradient before the first steps of torch, the parameter and its state after them."""
    parameter, optimizer = constructed(spec, options, shape, dtype)
    gradient = torch.linspace(0.5, 0.25, parameter.numel(), dtype=dtype).reshape(parameter.shape)
    parameter.grad = gradient.to_sparse(1) if spec.sparse == "only" else gradient
    before = parameter.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (parameter**4).sum()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure if spec.closure else None)
    return before, gradient, parameter.detach(), optimizer.state[parameter]


def state_before(spec, hyper, rng, shape, *, first):
    """A state before the first step, or a later one."""
    state, initial = {}, spec.initial_state(hyper)
    for name, its_shape in buffers(spec, hyper, shape).items():
        single = next(b.per_parameter for b in spec.buffers if b.name == name)
        if first:
            state[name] = None if initial[name] is None else np.full(its_shape, initial[name])
        else:
            state[name] = np.asarray(3.0) if single else rng.uniform(1, 2, its_shape)
    return state


def complete(spec, options):
    """Hyperparameters as an update is given them: of float64, where they depend on the dtype."""
    return spec.for_dtype(spec.hyper_values(options), 2.0**-52)


# The registry.


def test_every_optimizer_of_torch_has_a_reference():
    exported = {
        name
        for name, x in vars(torch.optim).items()
        if not name.startswith("_") and isinstance(x, type) and issubclass(x, torch.optim.Optimizer)
    }
    assert exported - {"Optimizer"} == {s.name for s in SPECS.values() if Version(s.since or "0") <= HERE}


@each_spec
def test_reference_stands_under_its_own_name(spec):
    assert SPECS[spec.name] is spec
    assert spec.source.startswith("https://")


def source_lines(path):
    """Lines of a file that are neither blank nor part of a docstring."""
    text = path.read_text("utf-8")
    documented = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            documented |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return sum(n not in documented and bool(line.strip()) for n, line in enumerate(text.splitlines(), 1))


@pytest.mark.parametrize("path", sorted(REFERENCE.glob("*.py")), ids=lambda path: path.stem)
def test_reference_fits_two_screens(path):
    assert source_lines(path) <= 130


def test_reference_needs_no_torch():
    script = "import sys, stepcheck.reference; print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# Hyperparameters.


@each_spec
def test_hyperparameters_are_those_of_torch(spec):
    signature = inspect.signature(getattr(torch.optim, spec.name))
    expected = {name: p.default for name, p in signature.parameters.items() if name not in IMPLEMENTATION}
    assert {h.name: h.default for h in spec.hyper if Version(h.since or "0") <= HERE} == expected


@each_hyper
def test_type_of_a_default_is_that_of_torch(spec, hyper):
    if Version(hyper.since or "0") > HERE:
        pytest.skip(f"torch {hyper.since} and later have it")
    default = inspect.signature(getattr(torch.optim, spec.name)).parameters[hyper.name].default
    # False == 0: a flag and a number must not be mistaken for each other. Where torch writes 0, it means 0.0.
    kinds = [int if isinstance(x, float) else type(x) for x in (hyper.default, default)]
    assert kinds[0] is kinds[1]
    if hyper.integer and default is not None:
        assert type(hyper.default) is type(default) is int


@each_hyper
def test_default_and_examples_are_accepted(spec, hyper):
    for value in (hyper.default, *hyper.examples, *hyper.choices):
        assert hyper.problem(value) is None


@each_hyper
@pytest.mark.parametrize("wrong", ["0.5", [0.5], {}, 1j, np.array([0.5, 0.5]), torch.tensor(0.5)], ids=repr)
def test_value_of_a_wrong_type_is_refused(spec, hyper, wrong):
    assert hyper.name in hyper.problem(wrong)


@each_hyper
def test_none_is_accepted_where_it_may_be_left_open_alone(spec, hyper):
    if isinstance(hyper.default, tuple):
        entries = [(*hyper.default[:n], None, *hyper.default[n + 1 :]) for n in range(len(hyper.default))]
        assert [hyper.problem(e) is None for e in entries] == [hyper.optional, *[False] * (len(entries) - 1)]
        assert hyper.problem(None) is not None
    else:
        assert (hyper.problem(None) is None) == hyper.optional == (hyper.default is None)


def of_kind(kind):
    return pytest.mark.parametrize(
        "hyper",
        [pytest.param(h, id=f"{s.name}.{h.name}") for s in SPECS.values() for h in s.hyper if kind_of(h) == kind],
    )


def kind_of(hyper):
    if hyper.is_flag:
        return "flag"
    if hyper.choices:
        return "choice"
    return "tuple" if isinstance(hyper.default, tuple) else "number"


@of_kind("flag")
def test_flag_is_true_or_false_and_nothing_else(hyper):
    assert hyper.problem(True) is None
    assert hyper.problem(False) is None
    for wrong in (0, 1, 0.0, math.nan, (True,), None):
        assert "True or False" in hyper.problem(wrong)


@of_kind("choice")
def test_choice_is_one_of_its_names(hyper):
    for wrong in ("", "newton", hyper.choices[0].upper(), 0, True, (hyper.choices[0],), [hyper.choices[0]]):
        assert f"must be one of {(*hyper.choices, None)}" in hyper.problem(wrong)


@of_kind("number")
def test_number_is_finite_and_lies_in_its_domain(hyper):
    (domain,) = hyper.entry_domains
    assert (math.inf in domain) == hyper.name.startswith("tolerance_")  # which is to end at once
    for wrong in (math.nan, *([] if math.inf in domain else [math.inf]), -math.inf, True, False, (0.5,), (0.5, 0.5)):
        assert str(domain) in hyper.problem(wrong)
    for x in (-1e-3, -1.0, 0, 0.5, 1, 1 + 2.0**-52, 2.5, 99.5, 100, 1e6):
        whole = not hyper.integer or isinstance(x, int)
        assert (hyper.problem(x) is None) == (x in domain and whole), x


@of_kind("tuple")
def test_each_entry_of_a_tuple_lies_in_its_own_domain(hyper):
    domains = hyper.entry_domains
    assert len(domains) == len(hyper.default)
    for wrong in (0.5, (), hyper.default[:-1], (*hyper.default, 0.5), list(hyper.default)):
        assert f"{len(hyper.default)} numbers" in hyper.problem(wrong)
    for n, domain in enumerate(domains):
        for x in (-1e-3, 0.0, 0.25, 1.0, 2, 1e6, math.nan, math.inf, True, "0.5", (0.5, 0.5)):
            value = (*hyper.default[:n], x, *hyper.default[n + 1 :])
            number = isinstance(x, (int, float)) and not isinstance(x, bool)
            assert (hyper.problem(value) is None) == (number and x in domain), value


@pytest.mark.parametrize(("name", "option"), [("RMSprop", "alpha"), ("Adadelta", "rho")])
def test_average_that_never_forgets_is_accepted(name, option):
    hyper = next(h for h in SPECS[name].hyper if h.name == option)
    assert hyper.problem(1.0) is None
    assert hyper.problem(math.nextafter(1.0, 2.0)) is not None


# Validation, held to torch's own: an option is probed alone, all others at their defaults.

NUMBERS = (-1e30, -1.0, -1e-3, 0.0, 1e-30, 0.5, 1.0, math.nextafter(1.0, 2.0), 1.5, 1e30)
COUNTS = (-(10**6), -1, 0, 1, 2, 5, 99, 100, 10**6, 2.5)
NO_NUMBERS = (math.inf, -math.inf, math.nan, None, True, False, "0.5", "original", "strong_wolfe", (0.5,), [0.5], {})
#: What makes an option matter.
BESIDE = {"dampening": {"momentum": 0.9}}


def probes(hyper):
    if not isinstance(hyper.default, tuple):
        return (*(COUNTS if hyper.integer else NUMBERS), *NO_NUMBERS)
    n, few = len(hyper.default), (-1.0, -1e-3, 0.0, 0.5, 1.0, 1.5, 1e30, *NO_NUMBERS[:-2])
    several = itertools.product(few, few) if n == 2 else ()
    one = [(*hyper.default[:k], x, *hyper.default[k + 1 :]) for k in range(n) for x in few]
    return (*several, *one, (), hyper.default[:-1], (*hyper.default, 0.5), list(hyper.default), *NO_NUMBERS, 0.5)


def entries(value):
    return value if isinstance(value, (tuple, list)) else (value,)


def is_number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


#: Why a Spec is stricter than torch.optim, of any option, and whether that explains the refusal of a value.
STRICTER = {
    "no implementation has to make sense of infinity or NaN": lambda h, value: any(
        isinstance(x, float) and not math.isfinite(x) for x in entries(value)
    ),
    "True is no number": lambda h, value: not h.is_flag and any(isinstance(x, bool) for x in entries(value)),
    "a flag is True or False, not what Python takes for it": lambda h, value: h.is_flag and not isinstance(value, bool),
    "a list is no tuple": lambda h, value: isinstance(h.default, tuple) and isinstance(value, list),
    "a bound is a number; that torch.clamp takes None is an accident": lambda h, value: (
        h.name == "step_sizes" and None in entries(value)
    ),
}
#: Why it is stricter about the numbers that one option may be.
STRICTER_NUMBERS = {
    ("RMSprop", "alpha"): "above 1 the average of squares can turn negative",
    ("Rprop", "step_sizes"): "a negative step follows the gradient, and bounds out of order leave open which wins",
    ("ASGD", "lambd"): "torch does not look; a decay that is negative grows",
    ("ASGD", "alpha"): "torch does not look; the step sizes of a schedule must not grow",
    ("ASGD", "t0"): "torch does not look; steps are counted from 0",
    ("LBFGS", "max_iter"): "torch does not look; less than one iteration is none",
    ("LBFGS", "max_eval"): "torch does not look; less than one evaluation is none",
    ("LBFGS", "tolerance_grad"): "torch does not look; a negative tolerance is never met",
    ("LBFGS", "tolerance_change"): "torch does not look; a negative tolerance is never met",
    ("Muon", "eps"): "torch does not look; it is the least norm that is divided by",
    ("Muon", "ns_steps"): "a count; torch takes a negative one for none",
}


def reason(spec, hyper, value):
    if all(map(is_number, entries(value))) and (spec.name, hyper.name) in STRICTER_NUMBERS:
        return STRICTER_NUMBERS[spec.name, hyper.name]
    return next((why for why, explains in STRICTER.items() if explains(hyper, value)), None)


def refusal(spec, options):
    """What torch raises at construction or in two steps, or ``None``."""
    try:
        stepped(spec, options, steps=2)
    except OverflowError:
        return None  # Python's, of a power: it is a number nonetheless
    except Exception as error:  # noqa: BLE001 - whatever it raises is a refusal
        return error
    return None


def refused_alone(spec, hyper):
    """Values that the Spec refuses and torch takes, and values that torch refuses and the Spec takes."""
    by_spec, by_torch = [], []
    for value in probes(hyper):
        options = {**BESIDE.get(hyper.name, {}), hyper.name: value}
        error = refusal(spec, options)
        try:
            spec.hyper_values(options)
        except ValueError:
            by_spec += [value] if error is None else []
        else:
            by_torch += [] if error is None else [(value, error)]
    return by_spec, by_torch


@each_hyper
def test_whatever_torch_refuses_is_refused_and_whatever_else_is_has_a_reason(spec, hyper):
    if Version(hyper.since or "0") > HERE:
        pytest.skip(f"torch {hyper.since} and later have it")
    by_spec, by_torch = refused_alone(spec, hyper)
    assert by_torch == []
    assert [value for value in by_spec if reason(spec, hyper, value) is None] == []
    if (spec.name, hyper.name) in STRICTER_NUMBERS:
        # The reason is needed.
        assert STRICTER_NUMBERS[spec.name, hyper.name] in {reason(spec, hyper, value) for value in by_spec}


def test_every_reason_to_be_stricter_is_needed():
    hypers = [
        (SPECS["SGD"], "lr"),
        (SPECS["SGD"], "maximize"),
        (SPECS["Adamax"], "betas"),
        (SPECS["Rprop"], "step_sizes"),
    ]
    used = set()
    for spec, name in hypers:
        hyper = next(h for h in spec.hyper if h.name == name)
        used |= {reason(spec, hyper, value) for value in refused_alone(spec, hyper)[0]}
    assert used >= STRICTER.keys()


@pytest.mark.parametrize("name", ["Adam", "AdamW"])
def test_beta_that_is_no_float_is_refused_as_torch_does(name):
    assert isinstance(refusal(SPECS[name], {"betas": (0, 0.5)}), ValueError)
    with pytest.raises(ValueError, match="betas"):
        SPECS[name].hyper_values(betas=(0, 0.5))


def test_count_that_is_a_float_is_refused_as_torch_does():
    assert isinstance(refusal(SPECS["Muon"], {"ns_steps": 5.0}), TypeError)
    with pytest.raises(ValueError, match="ns_steps"):
        SPECS["Muon"].hyper_values(ns_steps=5.0)


@each_spec
def test_options_override_the_defaults(spec):
    defaults = {h.name: h.default for h in spec.hyper}
    assert vars(spec.hyper_values()) == defaults
    assert vars(spec.hyper_values({"lr": 0.25})) == vars(spec.hyper_values(lr=0.25)) == {**defaults, "lr": 0.25}
    assert vars(spec.hyper_values({"lr": 0.25}, lr=0.5)) == {**defaults, "lr": 0.5}


@pytest.mark.parametrize("value", [math.nan, -0.0, 1, (0.9, math.nan), None, frozenset("abcdefgh")])
def test_options_are_equal_where_they_are_spelled_alike(value):
    options, again = GroupOptions(a=value, b=0.5), GroupOptions(b=0.5, a=copy.deepcopy(value))
    assert options == again == copy.deepcopy(options)
    assert hash(options) == hash(again)
    assert vars(options).keys() == {"a", "b"}


def test_options_that_are_spelled_otherwise_are_apart():
    values = (
        0.0,
        -0.0,
        0,
        False,
        1,
        1.0,
        True,
        (1, 0.5),
        (1.0, 0.5),
        "1",
        frozenset({"lr"}),
        frozenset(),
        math.nan,
        None,
    )
    assert len({GroupOptions(a=value) for value in values}) == len(values)


def test_options_are_frozen():
    options = SPECS["SGD"].hyper_values()
    with pytest.raises(AttributeError, match=r"frozen: make others that have lr=0\.5"):
        options.lr = 0.5
    with pytest.raises(AttributeError, match="frozen: make others without lr"):
        del options.lr
    assert options == SPECS["SGD"].hyper_values()


@each_spec
def test_unknown_option_is_refused_by_name(spec):
    with pytest.raises(ValueError, match=rf"{spec.name} has no option 'learning_rate'; it has .*\blr\b"):
        spec.hyper_values(learning_rate=0.1)


@each_hyper
def test_bad_value_is_refused_by_the_name_of_its_option(spec, hyper):
    with pytest.raises(ValueError, match=rf"{spec.name}: {hyper.name} must .*got {{}}"):
        spec.hyper_values({hyper.name: {}})


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "dampening": 0.1}, {"dampening": 0.1}, {"momentum": 0.9, "dampening": -0.1}]
)
def test_nesterov_without_momentum_or_with_dampening_is_refused_as_torch_does(options):
    with pytest.raises(ValueError, match="nesterov needs momentum > 0 and dampening = 0"):
        SPECS["SGD"].hyper_values(options, nesterov=True)
    with pytest.raises(ValueError, match="Nesterov"):
        constructed(SPECS["SGD"], {**options, "nesterov": True})
    SPECS["SGD"].hyper_values(options)


def test_conflict_is_a_problem_of_the_combination():
    sgd = SPECS["SGD"]
    hyper = sgd.hyper_values(momentum=0.9, nesterov=True)
    assert sgd.problem(hyper) is None
    assert "nesterov" in sgd.problem(SimpleNamespace(**{**vars(hyper), "momentum": 0.0}))


def test_step_sizes_out_of_order_are_refused():
    SPECS["Rprop"].hyper_values(step_sizes=(0.5, 0.5))
    with pytest.raises(ValueError, match="ordered"):
        SPECS["Rprop"].hyper_values(step_sizes=(0.5, 0.25))


# State.


@each_variant
def test_buffers_have_the_names_shapes_and_dtypes_of_torch(spec, options):
    for shape in shapes(spec):
        for dtype in (torch.float64, torch.bfloat16):
            *_, state = stepped(spec, options, shape, dtype)
            expected = buffers(spec, spec.hyper_values(options), shape)
            assert {name: np.shape(x) for name, x in state.items()} == expected
            for b in spec.buffers:
                # SparseAdam counts its steps in a Python int.
                if b.name in state and not isinstance(state[b.name], int):
                    assert state[b.name].dtype == (torch.float32 if b.per_parameter else dtype), b.name


def test_adafactor_keeps_a_row_and_a_column_of_a_matrix_and_the_whole_of_a_vector():
    spec = SPECS["Adafactor"]
    kept = {shape: buffers(spec, spec.hyper_values(), shape) for shape in [(), (4,), (3, 2), (5, 3, 2)]}
    assert kept == {
        (): {"step": (), "variance": ()},
        (4,): {"step": (), "variance": (4,)},
        (3, 2): {"step": (), "row_var": (3, 1), "col_var": (1, 2)},
        (5, 3, 2): {"step": (), "row_var": (5, 3, 1), "col_var": (5, 1, 2)},
    }


def test_state_of_lbfgs_is_that_of_torch():
    *_, state = stepped(SPECS["LBFGS"], {"max_iter": 3})
    # The scratch of the two-loop recursion is no state.
    assert set(state) - {"al"} == {b.name for b in SPECS["LBFGS"].buffers}


@each_variant
def test_state_that_torch_has_at_construction_is_the_initial_one(spec, options):
    parameter, optimizer = constructed(spec, options)
    initial = spec.initial_state(spec.hyper_values(options))
    for name, value in optimizer.state[parameter].items():
        assert (value == initial[name]).all(), name
    assert set(optimizer.state[parameter]) == (set(initial) if spec.name == "Adagrad" else set())


@each_variant
def test_first_step_from_the_initial_state_is_that_of_torch(spec, options):
    # Far coarser than the bounds: a wrong initial value shows in the first digits.
    hyper = complete(spec, options)
    for shape in shapes(spec):
        p, g, after, state = stepped(spec, options, shape)
        before = state_before(spec, hyper, np.random.default_rng(1), shape, first=True)
        expected, predicted = spec.update(p.numpy(), g.numpy(), before, hyper)
        single = {b.name for b in spec.buffers if b.per_parameter}
        # What is kept for each parameter is float32, and what is computed with it no more precise.
        tolerance = 1e-12 if single & state.keys() <= {"step"} else 1e-6
        for name, x in {"parameter": after, **state}.items():
            wanted = expected if name == "parameter" else predicted[name]
            # Products of matrices are bfloat16.
            coarse = name == "parameter" and spec.products
            allowed = 0.1 * np.abs(wanted - p.numpy()).max() if coarse else tolerance * np.abs(wanted)
            assert (np.abs(torch.as_tensor(x).double().numpy() - wanted) <= allowed).all(), name


# The update.


@each_variant
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_update_writes_none_of_its_inputs_and_repeats_itself(spec, options, first):
    rng, hyper = np.random.default_rng(2), complete(spec, {**options, **present(spec, {"weight_decay": 0.1})})
    for shape in shapes(spec):
        state = state_before(spec, hyper, rng, shape, first=first)
        inputs = rng.normal(size=shape), rng.normal(size=shape), state, hyper
        before = copy.deepcopy(inputs)
        with np.errstate(invalid="ignore"):
            # The variance of centered RMSprop may be negative in a state drawn at random.
            once, again = spec.update(*inputs), spec.update(*inputs)
        np.testing.assert_equal(inputs[:3], before[:3])
        assert inputs[3] == before[3]
        np.testing.assert_equal(once, again)


@each_variant
@pytest.mark.parametrize("shape", [(), (0,), (3, 2), (2, 3, 4)], ids=str)
@pytest.mark.parametrize("first", [True, False], ids=["first", "later"])
def test_shapes_are_preserved(spec, options, shape, first):
    if not spec.shapes(shape) or (0 in shape and not spec.elementwise):
        return  # it takes no such parameter, or has a mean of nothing
    rng, hyper = np.random.default_rng(3), complete(spec, options)
    state = state_before(spec, hyper, rng, shape, first=first)
    with np.errstate(invalid="ignore"):
        p, after = spec.update(rng.normal(size=shape), rng.normal(size=shape), state, hyper)
    assert np.shape(p) == shape
    assert {name: np.shape(x) for name, x in after.items()} == buffers(spec, hyper, shape)


@each_variant
def test_maximizing_is_minimizing_the_negative(spec, options):
    if "maximize" not in {h.name for h in spec.hyper}:
        return  # Muon
    rng, shape = np.random.default_rng(4), shapes(spec)[-1]
    down, up = (complete(spec, {**options, "maximize": maximize}) for maximize in (False, True))
    p, g, state = rng.normal(size=shape), rng.normal(size=shape), state_before(spec, down, rng, shape, first=False)
    with np.errstate(invalid="ignore"):
        np.testing.assert_equal(spec.update(p, -g, state, down), spec.update(p, g, state, up))


# Orders of evaluation.


class Ordered(np.ndarray):
    """float64 numbers that take one order of evaluation wherever it is offered."""

    order = ""

    def cover_orders(self, others):
        return others[self.order]() if self.order in others else self


def in_order(order, *arrays):
    kind = type("InOrder", (Ordered,), {"order": order})
    return [x.view(kind) for x in arrays]


def equal_on_paper(a, b):
    return (np.abs(np.asarray(a) - np.asarray(b)) <= 1e-12 * (1 + np.abs(np.asarray(b)))).all()


each_order = pytest.mark.parametrize("order", sorted(ORDERS))


@each_order
@pytest.mark.parametrize(
    "operation",
    [ema, ema_of_square, lambda a, x, c: addcdiv(a, x, 3.0, c)],
    ids=["ema", "ema_of_square", "addcdiv"],
)
def test_orders_of_a_composite_operation_are_equal_on_paper(operation, order):
    a, x = np.linspace(-3, 3, 7), np.linspace(2, 5, 7)
    for c in (0.1, 0.25, 0.75, 0.999):
        assert equal_on_paper(operation(*in_order(order, a, x), c), operation(a, x, c))


@each_variant
def test_orders_of_an_update_are_equal_on_paper(spec, options):
    # An eps in the wrong place must show.
    eps = {
        h.name: (0.1,) * len(h.default) if isinstance(h.default, tuple) else 0.1 for h in spec.hyper if h.name == "eps"
    }
    hyper = complete(spec, {**options, **eps})
    per_parameter = {b.name for b in spec.buffers if b.per_parameter}
    for shape, order in itertools.product(shapes(spec), sorted(ORDERS)):
        rng = np.random.default_rng(5)
        p, g, state = rng.normal(size=shape), rng.normal(size=shape), state_before(spec, hyper, rng, shape, first=False)
        if "grad_avg" in state:
            state["square_avg"] = state["grad_avg"] ** 2 + 1
        if "mu_product" in state:
            state["mu_product"] = np.asarray(0.75)
        expected, after = spec.update(p, g, state, hyper)
        ordered = {name: x if name in per_parameter else in_order(order, x)[0] for name, x in state.items()}
        got, got_after = spec.update(*in_order(order, p, g), ordered, hyper)
        assert equal_on_paper(got, expected), order
        for name, x in after.items():
            assert equal_on_paper(got_after[name], x), (order, name)


def test_every_order_is_offered_by_some_update():
    class Noting(np.ndarray):
        def cover_orders(self, others):
            offered.update(others)
            return self

    offered = set()
    for spec in STEPPED:
        hyper, shape = complete(spec, present(spec, {"weight_decay": 0.1})), shapes(spec)[-1]
        state = state_before(spec, hyper, np.random.default_rng(6), shape, first=False)
        state = {name: x.view(Noting) if x.shape else x for name, x in state.items()}
        spec.update(np.ones(shape).view(Noting), np.ones(shape).view(Noting), state, hyper)
    assert offered == ORDERS


def test_plain_numbers_take_the_written_order():
    assert any_order(1.5, textbook=lambda: 2.5) == 1.5


def test_an_order_that_no_subject_could_declare_is_refused():
    with pytest.raises(
        ValueError, match=r"no order of operations is called scaled_quotient: they are .*scaled_dividend"
    ):
        any_order(1.5, scaled_quotient=lambda: 1.5)
    with pytest.raises(ValueError, match="scaled_quotient"):
        any_order_of(1.5, lambda: 1.5, scaled_quotient=lambda: 1.5)
