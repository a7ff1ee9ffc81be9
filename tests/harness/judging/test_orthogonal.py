"""Torch's Muon is accepted whatever the input, and each fault in a step is seen by the comparison that is named."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stepcheck.harness.judging.orthogonal import (
    AFTER_PRODUCTS,
    BUFFER,
    NORMWISE,
    ROUNDED_ONCE,
    _local_error,
    _Reach,
    judge_step,
)
from stepcheck.harness.numbers.comparison import ratios
from stepcheck.harness.numbers.formats import BFLOAT16, BINARY32, BINARY64, FORMATS, Arithmetic
from stepcheck.reference import muon

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32, "float64": torch.float64}
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 3), (8, 8), (9, 8), (31, 17), (5, 65), (16, 128)]
#: Monotonic towards 1, so that rounding errors die out.
CONVERGING = (1.875, -1.25, 0.375)

each_dtype = pytest.mark.parametrize("dtype", DTYPES)
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def orthogonal(rng, shape):
    u, _, v = np.linalg.svd(rng.standard_normal(shape), full_matrices=False)
    return u @ v


def with_one(value):
    def gradient(rng, shape):
        g = rng.standard_normal(shape)
        g.flat[rng.integers(g.size)] = value
        return g

    return gradient


def log_uniform(low, high):
    return lambda rng, shape: rng.choice([-1, 1], shape) * np.exp(rng.uniform(np.log(low), np.log(high), shape))


GRADIENTS = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "orthogonal": orthogonal,
    "rank one": lambda rng, shape: np.outer(rng.standard_normal(shape[0]), rng.standard_normal(shape[1])),
    "quarters": lambda rng, shape: rng.integers(-8, 9, shape) / 4,
    "tiny": lambda rng, shape: 1e-12 * rng.standard_normal(shape),
    "subnormal": lambda rng, shape: 1e-40 * rng.standard_normal(shape),
    "huge": lambda rng, shape: 1e30 * rng.standard_normal(shape),
    "at the clamp": lambda rng, shape: 1e-7 * orthogonal(rng, shape) / min(shape) ** 0.5,
    "wide": log_uniform(1e-38, 1e38),
    "zero": lambda rng, shape: np.zeros(shape),
    "NaN": with_one(np.nan),
    "infinity": with_one(np.inf),
}
PARAMETERS = {
    "zero": lambda rng, shape: np.zeros(shape),
    "update": lambda rng, shape: 1e-3 * rng.standard_normal(shape),
    "large": lambda rng, shape: 1e3 * rng.standard_normal(shape),
}
OPTIONS = (
    {},
    {"adjust_lr_fn": "original"},
    {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0},
    {"ns_steps": 1, "lr": 1.0},
    {"ns_steps": 2, "eps": 10.0},
    {"ns_steps": 3, "momentum": 0.0},
    {"ns_steps": 4, "lr": 0.0},
    {"ns_coefficients": CONVERGING, "lr": 1 / 3},
    {"ns_coefficients": (1 / 3, 0.7, -0.1), "momentum": 0.5},
    {"nesterov": False},
    {"eps": 0.0, "momentum": 1.0},
)


def judged(
    shape,
    gradients,
    options=None,
    dtype="float32",
    parameter=None,
    make=torch.optim.Muon,
    *,
    once=True,
    products=BFLOAT16,
    wider=False,
):
    """The comparisons of each step, by field; ``wider``: of a narrow dtype, what is stored alone is rounded to it."""
    hyper = muon.MUON.hyper_values(options or {})
    narrow, orders = dtype in {"float16", "bfloat16"}, frozenset({"lerp"})
    arithmetic = Arithmetic(FORMATS[dtype], orders=orders, inner=BINARY32 if narrow else None)
    arithmetic = Arithmetic(BINARY32, orders=orders) if narrow and wider else arithmetic
    start = np.zeros(shape) if parameter is None else parameter

    def held(tensor):
        return tensor.detach().double().numpy().copy()

    with np.errstate(all="ignore"):
        p = torch.nn.Parameter(torch.from_numpy(np.asarray(start)).to(DTYPES[dtype]))
        optimizer, before = make([p], **(options or {})), {}
        for g in gradients:
            p.grad = torch.from_numpy(g).to(DTYPES[dtype])
            p_before, gradient = held(p), held(p.grad)
            optimizer.step()
            after = {BUFFER: held(optimizer.state[p][BUFFER])}
            comparisons = judge_step(
                arithmetic, hyper, p_before, gradient, before, held(p), after, products,
                rounded_once=once, element=FORMATS[dtype],
            )  # fmt: skip
            yield {c.field: c for c in comparisons}
            before = after


def worst(comparison):
    return float(np.max(ratios(comparison.actual, comparison.predicted)))


def determined(comparison):
    return float(np.mean(np.isfinite(comparison.predicted.error)))


def steps(rng, shape, kind, count=2):
    return [GRADIENTS[kind](rng, shape) for _ in range(count)]


@each_dtype
@pytest.mark.parametrize("kind", GRADIENTS)
def test_torch_is_within_every_budget(dtype, kind):
    rng = np.random.default_rng(list(GRADIENTS).index(kind))
    for n, shape in enumerate(SHAPES):
        for m, p in enumerate(PARAMETERS):
            options = OPTIONS[(4 * n + m + 7 * list(GRADIENTS).index(kind)) % len(OPTIONS)]
            if dtype == "bfloat16" and not options.get("nesterov", True):
                continue  # see test_torch_overwrites_a_bfloat16_buffer
            once = (n + m) % 2 == 0
            for fields in judged(shape, steps(rng, shape, kind), options, dtype, PARAMETERS[p](rng, shape), once=once):
                assert {f: r for f, c in fields.items() if not (r := worst(c)) <= 1} == {}, (shape, p, options)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_torch_is_within_every_budget_in_many_lives(seed):
    rng = np.random.default_rng(1000 + seed)
    for _ in range(100):
        shape, options = SHAPES[rng.integers(len(SHAPES))], OPTIONS[rng.integers(len(OPTIONS))]
        dtype, kind = list(DTYPES)[rng.integers(4)], list(GRADIENTS)[rng.integers(len(GRADIENTS))]
        p = list(PARAMETERS)[rng.integers(len(PARAMETERS))]
        if dtype == "bfloat16" and not options.get("nesterov", True):
            continue
        parameter = PARAMETERS[p](rng, shape)
        for fields in judged(shape, steps(rng, shape, kind, 4), options, dtype, parameter, once=bool(rng.integers(2))):
            assert all(worst(c) <= 1 for c in fields.values()), (shape, options, dtype, kind, p)


def test_torch_overwrites_a_bfloat16_buffer():
    """Without Nesterov the direction is the buffer; in bfloat16 torch's cast makes no copy, and it divides in place."""
    (fields,) = judged((2, 3), [np.full((2, 3), 3.0)], {"nesterov": False, "momentum": 0.0}, "bfloat16")
    assert worst(fields[BUFFER]) > 100
    assert worst(fields[ROUNDED_ONCE]) <= 1
    assert abs(np.linalg.norm(fields[BUFFER].actual) - 1) < 0.01


def test_budgets_are_used():
    rng = np.random.default_rng(0)
    used = {BUFFER: 0.0, AFTER_PRODUCTS: 0.0, ROUNDED_ONCE: 0.0, NORMWISE: 0.0}
    for shape in SHAPES:
        options = {"ns_coefficients": CONVERGING, "ns_steps": 3, "lr": 0.02}
        for fields in judged(
            shape, steps(rng, shape, "normal", 5), options, parameter=0.02 * rng.standard_normal(shape)
        ):
            used = {f: max(r, worst(fields[f])) for f, r in used.items()}
    assert used[BUFFER] > 0.8
    assert used[AFTER_PRODUCTS] > 0.5
    assert used[ROUNDED_ONCE] > 0.5
    assert used[NORMWISE] > 0.02


@each_shape
@pytest.mark.parametrize("kind", ["normal", "orthogonal", "quarters"])
def test_converging_iterations_are_judged_normwise(shape, kind):
    rng = np.random.default_rng(3)
    options = {"ns_coefficients": CONVERGING, "ns_steps": 3}
    for once in (True, False):
        (fields,) = judged(shape, steps(rng, shape, kind, 1), options, once=once)
        assert determined(fields[NORMWISE]) == 1


@pytest.mark.parametrize(
    ("shape", "share"), [((1, 7), 1.0), ((7, 1), 1.0), ((2, 3), 0.9), ((8, 8), 0.6), ((9, 8), 0.6)]
)
def test_the_default_iteration_of_small_matrices_is_judged_exactly(shape, share):
    rng = np.random.default_rng(4)
    shares = [
        determined(fields[ROUNDED_ONCE])
        for _ in range(12)
        for fields in judged(shape, steps(rng, shape, "normal", 1), parameter=0.001 * rng.standard_normal(shape))
    ]
    assert np.mean(shares) >= share


def test_what_cannot_be_judged_is_undetermined():
    rng = np.random.default_rng(5)
    large = rng.choice([-1e6, 1e6], (8, 8))
    (fields,) = judged((8, 8), steps(rng, (8, 8), "normal", 1), parameter=large)
    assert determined(fields[AFTER_PRODUCTS]) == 0
    (fields,) = judged((8, 8), steps(rng, (8, 8), "normal", 1), {"lr": 0.0})
    assert determined(fields[AFTER_PRODUCTS]) == determined(fields[NORMWISE]) == 0
    (fields,) = judged((2, 3), [np.full((2, 3), 1e30)])
    assert determined(fields[ROUNDED_ONCE]) == determined(fields[NORMWISE]) == 0


def test_a_nan_in_the_gradient_makes_the_matrix_nan():
    rng = np.random.default_rng(6)
    (fields,) = judged((2, 3), [GRADIENTS["NaN"](rng, (2, 3))])
    assert determined(fields[ROUNDED_ONCE]) == 1
    assert np.isnan(fields[ROUNDED_ONCE].actual).all()


def test_an_empty_matrix_has_nothing_to_judge():
    empty = np.zeros((0, 3))
    arithmetic = Arithmetic(FORMATS["float32"])
    assert judge_step(arithmetic, muon.MUON.hyper_values(), empty, empty, {}, empty, {BUFFER: empty}) == []


class Mistaken(torch.optim.Optimizer):
    """Muon, written out plainly, with one fault."""

    def __init__(self, params, fault, *, products=torch.bfloat16, **options):
        super().__init__(params, {**vars(muon.MUON.hyper_values()), **options})
        self.fault, self.products = fault, products

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                self.one(p, group)

    def one(self, p, group):
        fault, g, mu = self.fault, p.grad, group["momentum"]
        buffer = self.state[p].setdefault(BUFFER, torch.zeros_like(p))
        if fault == "summed":
            buffer.mul_(mu).add_(g)
        else:
            buffer.lerp_(g, 1 - mu)
        d = g.lerp(buffer, mu) if group["nesterov"] and fault != "no nesterov" else buffer
        update = self.orthogonalized(d, group)
        rows, columns = p.shape
        if fault == "inverted shape":
            rows, columns = columns, rows
        lr = group["lr"] * (1.01 if fault == "lr" else 1) * max(1, rows / columns) ** 0.5
        decay = group["lr"] * group["weight_decay"]
        p.mul_(
            1 - (decay * lr / group["lr"] if fault == "decay by adjusted lr" else 0 if fault == "no decay" else decay)
        )
        p.add_(update, alpha=lr if fault == "sign" else -lr)

    def orthogonalized(self, d, group):
        fault, (a, b, c) = self.fault, group["ns_coefficients"]
        a, b, c = (v * (1.01 if fault == name else 1) for name, v in zip("abc", (a, b, c), strict=True))
        x = d.to(self.products or (torch.float64 if d.dtype is torch.float64 else torch.float32))
        tall = x.size(0) > x.size(1) and fault != "not transposed"
        x = x.T if tall else x
        if fault == "eps added":
            x = x / (x.norm() + group["eps"])
        elif fault != "not normalized":
            x = x / x.norm().clamp(min=group["eps"])
        for _ in range(group["ns_steps"] - (fault == "one iteration less")):
            gram = x @ x.T
            x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        return x.T if tall else x


def caught_by(fault, shape=(9, 8), gradients=None, once=True, **options):
    """The comparisons that reject a fault in one of three steps."""
    rng = np.random.default_rng(7)
    gradients = gradients or steps(rng, shape, "normal", 3)
    parameter = 0.02 * rng.standard_normal(shape)
    options = {"lr": 0.02, **options}
    lives = judged(
        shape, gradients, options, parameter=parameter, make=lambda p, **o: Mistaken(p, fault, **o), once=once
    )
    return {f for fields in lives for f, c in fields.items() if worst(c) > 1}


def test_without_a_fault_nothing_is_caught():
    for shape in SHAPES:
        assert caught_by(None, shape) == set()


@pytest.mark.parametrize(
    "fault", ["a", "b", "c", "one iteration less", "no nesterov", "not normalized", "not transposed"]
)
def test_rounded_once_catches_what_changes_the_products(fault):
    assert caught_by(fault) == {ROUNDED_ONCE}


@pytest.mark.parametrize("fault", ["lr", "no decay", "decay by adjusted lr", "sign", "inverted shape"])
def test_what_follows_the_products_shows_without_knowing_them(fault):
    assert AFTER_PRODUCTS in caught_by(fault, once=False) or fault == "sign"
    assert ROUNDED_ONCE in caught_by(fault)


def test_a_wrong_sign_shows_normwise():
    assert NORMWISE in caught_by("sign", ns_coefficients=CONVERGING, ns_steps=3, once=False)


def test_the_buffer_shows_that_it_sums():
    assert BUFFER in caught_by("summed")


@pytest.mark.parametrize("fault", ["one iteration less", "not normalized", "no nesterov"])
def test_normwise_catches_what_is_larger_than_rounding(fault):
    rng = np.random.default_rng(8)
    gradients = [g * 3.0**n for n, g in enumerate(steps(rng, (9, 8), "normal", 3))]
    options = {"ns_coefficients": CONVERGING, "ns_steps": 3, "momentum": 0.9}
    assert NORMWISE in caught_by(fault, gradients=gradients, once=False, **options)


def test_eps_added_shows_where_it_is_as_large_as_the_norm():
    assert ROUNDED_ONCE in caught_by("eps added", eps=3.0)
    assert NORMWISE in caught_by("eps added", eps=3.0, once=False, ns_coefficients=CONVERGING, ns_steps=3)


# Products in wider formats.


def in_wide_products(p, **options):
    """The dtype of the products: float64 for float64, float32 otherwise."""
    return Wide(p, None, products=None, **options)


class Wide(Mistaken):
    """In narrow dtypes, computed in float32 and rounded when it is stored."""

    def one(self, p, group):
        wide = torch.nn.Parameter(p.detach().float() if p.dtype.itemsize < 4 else p.detach().clone())
        held = self.state[p].setdefault(BUFFER, torch.zeros_like(p))
        # What is stored is rounded, and the direction starts from it.
        wide.grad, self.state[wide][BUFFER] = p.grad.to(wide.dtype), held.lerp(p.grad, 1 - group["momentum"])
        self.state[p][BUFFER] = self.state[wide][BUFFER]
        buffer, momentum = self.state[wide][BUFFER].to(wide.dtype), group["momentum"]
        d = wide.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
        o, (rows, columns) = self.orthogonalized(d, group), p.shape
        lr = group["lr"] * (
            0.2 * max(rows, columns) ** 0.5
            if group["adjust_lr_fn"] == "match_rms_adamw"
            else max(1, rows / columns) ** 0.5
        )
        p.copy_(wide * (1 - group["lr"] * group["weight_decay"]) - lr * o)


@each_dtype
@pytest.mark.parametrize("kind", GRADIENTS)
def test_wide_products_are_within_their_budget(dtype, kind):
    rng = np.random.default_rng(20 + list(GRADIENTS).index(kind))
    products = BINARY64 if dtype == "float64" else BINARY32
    for n, shape in enumerate(SHAPES):
        options = OPTIONS[(n + 5 * list(GRADIENTS).index(kind)) % len(OPTIONS)]
        p = list(PARAMETERS.values())[n % 3](rng, shape)
        for known in (products, None):
            lives = judged(
                shape,
                steps(rng, shape, kind),
                options,
                dtype,
                p,
                in_wide_products,
                once=False,
                products=known,
                wider=True,
            )
            for fields in lives:
                assert {f: r for f, c in fields.items() if not (r := worst(c)) <= 1} == {}, (shape, options, known)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@each_shape
def test_wide_products_of_the_default_iteration_are_determined(dtype, shape):
    rng = np.random.default_rng(21)
    parameter = 0.001 * rng.standard_normal(shape)
    (fields,) = judged(
        shape, steps(rng, shape, "normal", 1), {}, dtype, parameter, in_wide_products,
        once=False, products=FORMATS[dtype],
    )  # fmt: skip
    assert fields.keys() == {BUFFER, NORMWISE}
    assert determined(fields[NORMWISE]) == 1


WIDE_FAULTS = [
    "a", "b", "c", "one iteration less", "no nesterov", "not normalized", "lr", "no decay", "decay by adjusted lr", "sign",
    "inverted shape",
]  # fmt: skip


@pytest.mark.parametrize("fault", WIDE_FAULTS)
def test_the_budget_of_wide_products_sees_what_that_of_bfloat16_does_not(fault):
    rng = np.random.default_rng(22)
    parameter, gradients = 0.02 * rng.standard_normal((9, 8)), steps(rng, (9, 8), "normal", 3)

    def caught(fault):
        def make(p, **o):
            return Mistaken(p, fault, products=None, **o)

        lives = judged(
            (9, 8),
            gradients,
            {"lr": 0.02, "weight_decay": 1.0},
            "float32",
            parameter,
            make,
            once=False,
            products=BINARY32,
        )
        return {f for fields in lives for f, c in fields.items() if worst(c) > 1}

    assert caught(None) == set()
    assert caught(fault) == {NORMWISE}


def test_bfloat16_products_are_not_wide():
    rng = np.random.default_rng(23)
    for products, caught in ((BINARY32, {NORMWISE}), (None, set()), (BFLOAT16, set())):
        (fields,) = judged(
            (9, 8), steps(rng, (9, 8), "normal", 1), {}, parameter=np.zeros((9, 8)), once=False, products=products
        )
        assert {f for f, c in fields.items() if worst(c) > 1} == caught


@pytest.mark.parametrize("fault", ["lr", "no decay", "decay by adjusted lr", "inverted shape"])
def test_where_the_products_are_not_known_faults_after_them_show(fault):
    rng = np.random.default_rng(24)
    parameter, gradients = 0.02 * rng.standard_normal((9, 8)), steps(rng, (9, 8), "normal", 3)
    for format_ in (torch.bfloat16, None):

        def make(p, format_=format_, **o):
            return Mistaken(p, fault, products=format_, **o)

        lives = judged(
            (9, 8), gradients, {"lr": 0.02, "weight_decay": 1.0}, "float32", parameter, make, once=False, products=None
        )
        assert AFTER_PRODUCTS in {f for fields in lives for f, c in fields.items() if worst(c) > 1}


# The bound itself.


def test_stretch_covers_distances_that_are_measured():
    """For matrices near each other, the iteration moves them apart by no more than the constant says."""
    rng = np.random.default_rng(9)
    for _ in range(50):
        shape, k = SHAPES[rng.integers(1, len(SHAPES))], int(rng.integers(1, 6))
        x = rng.standard_normal(shape)
        x /= np.linalg.norm(x)
        nearby = x + 1e-6 * rng.standard_normal(shape) / np.sqrt(x.size)
        values = np.linalg.svd(x, compute_uv=False)
        reach = _Reach(max(values.min() - 2e-6, 0.0), values.max() + 2e-6)
        for _ in range(k):
            reach.through(*muon.MUON.hyper_values().ns_coefficients)
        apart = muon.iterate(nearby, muon.MUON.hyper_values().ns_coefficients, k)
        apart = np.linalg.norm(apart - muon.iterate(x, muon.MUON.hyper_values().ns_coefficients, k))
        assert apart <= reach.lipschitz * np.linalg.norm(nearby - x)


def test_stretch_is_no_larger_than_the_slope_where_there_is_one_singular_value():
    reach = _Reach(0.5, 0.5 + 1e-9)
    reach.through(3.0, -2.0, 0.5)
    slope, ratio = 3 - 6 * 0.25 + 2.5 * 0.0625, 3 - 2 * 0.25 + 0.5 * 0.0625
    assert reach.lipschitz == pytest.approx(max(slope, ratio), rel=1e-6)


@each_shape
def test_local_error_covers_unfused_arithmetic(shape):
    """Each multiple and each sum rounded to bfloat16 by itself, in the orders that people write."""
    a, b, c = muon.MUON.hyper_values().ns_coefficients
    torch.manual_seed(0)
    shares = []
    for _ in range(20):
        x = torch.randn(min(shape), max(shape)).bfloat16()
        x = x / x.norm()
        exact = muon.iterate(x.double().numpy(), (a, b, c), 1)
        values = np.linalg.svd(x.double().numpy(), compute_uv=False)
        gram = x @ x.T
        plain = a * x + (b * gram + c * (gram @ gram)) @ x
        scaled = a * x + (b * gram + c * gram @ gram) @ x
        fused = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
        for result, once in ((plain, False), (scaled, False), (fused, True)):
            bound = _local_error(values, 0.0, max(shape), (a, b, c), BFLOAT16, once)
            shares.append(np.linalg.norm(result.double().numpy() - exact) / bound)
    assert 0.02 < max(shares) <= 1
