"""The fast Muon does what its formulas say, for whole batches, and is exchangeable with torch.optim.Muon."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch

from stepcheck.fast import muon
from stepcheck.fast.muon import Muon

BUFFER = "momentum_buffer"
DEFAULTS = {
    "lr": 1e-3,
    "weight_decay": 0.1,
    "momentum": 0.95,
    "nesterov": True,
    "ns_coefficients": (3.4445, -4.7750, 2.0315),
    "eps": 1e-7,
    "ns_steps": 5,
    "adjust_lr_fn": None,
}
#: Towards 1 from both sides, so that rounding errors die out.
CONVERGING = (1.875, -1.25, 0.375)
SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (8, 8), (50, 3), (3, 50), (31, 17), (64, 64)]
OPTIONS = (
    {},
    {"lr": 0.1, "weight_decay": 0.0, "adjust_lr_fn": "match_rms_adamw"},
    {"nesterov": False, "momentum": 0.5},
    {"momentum": 0.0, "adjust_lr_fn": "original"},
    {"ns_steps": 0, "lr": 0.5},
    {"ns_coefficients": CONVERGING, "ns_steps": 8},
    {"ns_coefficients": (1.5, -0.5, 0.0), "eps": 1e3},
)
#: What roundings in another order may do to a parameter of size 0.02 in a few steps of 1e-3, amplified by 3.44 ** 5; an update is
#: a thousand times as much.
ROUNDED = 1e-5
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

each_dtype = pytest.mark.parametrize("dtype", UNIT, ids=lambda d: str(d).removeprefix("torch."))


def parameters(shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter((0.02 * torch.randn(s, generator=generator)).to(dtype)) for s in shapes]
    give_gradients(made, seed + 1)
    return made


def give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def held(optimizer, params):
    """All that a step may change, copied."""
    return [p.detach().clone() for p in params], {
        n: optimizer.state[p][BUFFER].clone() for n, p in enumerate(params) if p in optimizer.state
    }


def apart(p, q):
    """The distance of two parameters, in units of their size."""
    p, q = p.detach().double(), q.detach().double()
    return float((p - q).norm() / q.norm())


def assert_same(actual, expected):
    assert len(actual[0]) == len(expected[0])
    assert actual[1].keys() == expected[1].keys()
    assert all(map(torch.equal, actual[0], expected[0]))
    assert all(torch.equal(actual[1][n], expected[1][n]) for n in expected[1])


def average_of(g, buffer, momentum):
    return momentum * buffer.double() + (1 - momentum) * g.double()


def step_of(p, g, buffer, **options):
    """One step in float64, from the buffer after it, and how far from it a step in a format may end, in unit roundoffs.

    To first order, an iteration makes a perturbation of its matrix larger by no more than the largest slope, or ratio, of
    its polynomial on [0, s], where s bounds the singular values. It adds the roundings of its three products, sums of up
    to n terms: at most n times the products of the Frobenius norms of the factors.
    """
    o = {**DEFAULTS, **options}
    p, g, buffer = p.double(), g.double(), buffer.double()
    mu, (a, b, c) = o["momentum"], o["ns_coefficients"]
    x = (1 - mu) * g + mu * buffer if o["nesterov"] else buffer
    n, norm = max(x.shape) + 8, max(float(x.norm()), o["eps"])
    x = x.mT / norm if x.shape[0] > x.shape[1] else x / norm
    error = n + 4 * float(g.norm() + buffer.norm()) / norm
    for _ in range(o["ns_steps"]):
        s, f = float(torch.linalg.matrix_norm(x, 2)), float(x.norm())
        t = torch.linspace(0, s, 1000, dtype=torch.float64) ** 2
        slope, ratio = a + 3 * b * t + 5 * c * t * t, a + b * t + c * t * t
        error = float(torch.maximum(slope.abs(), ratio.abs()).max()) * error
        error += n * f * (abs(a) + 3 * abs(b) * f**2 + 4 * abs(c) * f**4)
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    rows, columns = p.shape
    x = x.mT if rows > columns else x
    ratio = max(1, rows / columns) ** 0.5
    rate = o["lr"] * (0.2 * max(rows, columns) ** 0.5 if o["adjust_lr_fn"] == "match_rms_adamw" else ratio)
    return (1 - o["lr"] * o["weight_decay"]) * p - rate * x, rate * error


@each_dtype
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_step_of_every_shape_is_that_of_the_formulas(dtype, options):
    params = parameters(SHAPES * 2, dtype)
    optimizer = Muon(params, **options)
    # What is computed with, and what is stored in; a number below 1 may be subnormal in float16.
    u, stored = UNIT[torch.float64 if dtype is torch.float64 else torch.float32], UNIT[dtype]
    momentum = {**DEFAULTS, **options}["momentum"]
    for n in range(3):
        give_gradients(params, n)
        values, buffers = held(optimizer, params)
        optimizer.step()
        for i, (p, was) in enumerate(zip(params, values, strict=True)):
            got, before = optimizer.state[p][BUFFER], buffers.get(i, torch.zeros_like(was))
            size = p.grad.double().abs() + before.double().abs()
            off = (got.double() - average_of(p.grad, before, momentum)).abs()
            assert got.dtype is dtype
            assert (off <= (4 * u + stored) * size + 2.0**-25).all() if stored > u else (off <= 6 * u * size).all()
            value, error = step_of(was, p.grad, got, **options)
            off = float((p.detach().double() - value).norm())
            bound = u * error + (3 * u + stored) * float(was.double().norm() + value.norm())
            assert off <= bound + (2.0**-25 * p.numel() if stored > u else 0), p.shape


def test_singular_values_move_to_one():
    """With coefficients that converge, the step is the polar factor: here by singular value decomposition."""
    (p,) = parameters([(20, 30)], torch.float64)
    was = p.detach().clone()
    u, _, v = torch.linalg.svd(p.grad, full_matrices=False)
    Muon([p], lr=1.0, weight_decay=0.0, ns_coefficients=CONVERGING, ns_steps=40).step()
    # Where F(s) = s + O((1 - s)^3) at 1, only rounding is left: 20 x 30 sums of 30 terms.
    assert float((was - p.detach() - u @ v).norm()) <= 40 * 600 * 2.0**-53


def test_it_is_nearer_to_the_formulas_than_torch():
    for shape in [(8, 8), (50, 3), (31, 17)]:
        ours, theirs = parameters([shape]), parameters([shape])
        value, _ = step_of(ours[0].detach(), ours[0].grad, 0.05 * ours[0].grad.double())
        Muon(ours).step()
        torch.optim.Muon(theirs).step()
        distances = [float((p[0].detach().double() - value).norm()) for p in (ours, theirs)]
        assert distances[0] < distances[1] / 50


@each_dtype
def test_it_follows_torch_as_closely_as_bfloat16_goes(dtype):
    options = {"ns_coefficients": CONVERGING, "ns_steps": 5, "lr": 0.02}
    ours, theirs = parameters(SHAPES, dtype), parameters(SHAPES, dtype)
    mine, other = Muon(ours, **options), torch.optim.Muon(theirs, **options)
    for n in range(3):
        for params, optimizer in ((ours, mine), (theirs, other)):
            give_gradients(params, n)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        buffers = mine.state[p][BUFFER].double(), other.state[q][BUFFER].double()
        # Both are rounded to the dtype, of numbers up to about 1, in each step.
        assert (buffers[0] - buffers[1]).abs().max() <= 3 * 4 * UNIT[dtype]
        # Each update, of Frobenius norm up to sqrt(short side), within some per cent; the parameters rounded themselves.
        length = 0.02 * max(1, p.shape[0] / p.shape[1]) ** 0.5 * min(p.shape) ** 0.5
        stored = 2 * 3 * UNIT[dtype] * float(q.detach().double().norm())
        assert float((p.detach().double() - q.detach().double()).norm()) <= 3 * 0.06 * length + stored


def test_batches_are_what_single_matrices_are():
    shapes = SHAPES * 3
    together, alone = parameters(shapes), parameters(shapes)
    optimizer, singles = Muon(together), [Muon([p]) for p in alone]
    for n in range(3):
        for params in (together, alone):
            give_gradients(params, n)
        optimizer.step()
        for single in singles:
            single.step()
    for p, q in zip(together, alone, strict=True):
        assert apart(p, q) <= ROUNDED


def test_portions_are_what_the_whole_is(monkeypatch):
    whole, parts = parameters([(16, 24)] * 7), parameters([(16, 24)] * 7)
    Muon(whole).step()
    monkeypatch.setattr(muon, "WORKSPACE_BYTES", 3 * 4 * (2 * 16 * 24 + 2 * 16 * 16))
    optimizer = Muon(parts)
    optimizer.step()
    assert sum(t.nbytes for t in optimizer._workspace.pieces.values()) <= muon.WORKSPACE_BYTES
    for p, q in zip(whole, parts, strict=True):
        assert apart(p, q) <= ROUNDED


def test_a_matrix_larger_than_the_workspace_has_its_own(monkeypatch):
    monkeypatch.setattr(muon, "WORKSPACE_BYTES", 1)
    params = parameters([(16, 24)] * 2)
    optimizer = Muon(params)
    was = [p.detach().clone() for p in params]
    optimizer.step()
    assert not any(map(torch.equal, was, params))
    assert sum(t.numel() for t in optimizer._workspace.pieces.values()) == 2 * 16 * 24 + 2 * 16 * 16


def test_the_workspace_is_taken_once():
    params = parameters(SHAPES) + parameters(SHAPES, torch.float64)
    optimizer = Muon(params)
    optimizer.step()
    first = {key: (t.data_ptr(), t.numel()) for key, t in optimizer._workspace.pieces.items()}
    for n in range(5):
        give_gradients(params, n)
        params[n].grad = None
        optimizer.step()
    assert {key: (t.data_ptr(), t.numel()) for key, t in optimizer._workspace.pieces.items()} == first
    assert first.keys() == {(d, torch.device("cpu")) for d in (torch.float32, torch.float64)}


def test_groups_have_their_own_options():
    options = ({"lr": 0.5}, {"momentum": 0.0, "nesterov": False}, {"adjust_lr_fn": "match_rms_adamw"}, {"ns_steps": 2})
    params = parameters([(4, 6)] * 4)
    alone = parameters([(4, 6)] * 4)
    optimizer = Muon([{"params": [p], **o} for p, o in zip(params, options, strict=True)])
    for n in range(2):
        give_gradients(params, n)
        optimizer.step()
    singles = [Muon([p], **o) for p, o in zip(alone, options, strict=True)]
    for n in range(2):
        give_gradients(alone, n)
        for single in singles:
            single.step()
    for p, q in zip(params, alone, strict=True):
        assert apart(p, q) <= ROUNDED
    assert len({tuple(p.flatten().tolist()) for p in params}) == 4


def test_options_changed_later_count_from_then_on():
    (p,) = parameters([(4, 6)])
    optimizer = Muon([p])
    optimizer.step()
    was, buffer = p.detach().clone(), optimizer.state[p][BUFFER].clone()
    changed = {"lr": torch.tensor(0.25), "momentum": 0.5, "nesterov": False, "ns_steps": 1, "weight_decay": 0.0}
    optimizer.param_groups[0].update(changed)
    optimizer.step()
    assert (optimizer.state[p][BUFFER] - average_of(p.grad, buffer, 0.5)).abs().max() <= 4 * 2.0**-24
    value, error = step_of(was, p.grad, optimizer.state[p][BUFFER], **{**changed, "lr": 0.25})
    assert float((p.detach().double() - value).norm()) <= 2.0**-24 * (error + 4 * float(value.norm()))


def test_without_a_gradient_nothing_happens():
    params = parameters([(4, 6)] * 2)
    late = params[1]
    late.grad = None
    was = late.detach().clone()
    optimizer = Muon(params)
    optimizer.step()
    assert torch.equal(late, was)
    assert late not in optimizer.state
    give_gradients(params, 7)
    optimizer.step()
    # Its first step: the buffer starts from zero.
    assert torch.allclose(optimizer.state[late][BUFFER], 0.05 * late.grad, rtol=1e-6)
    assert not torch.equal(late, was)


def test_layout_does_not_matter():
    plain = parameters([(6, 4)] * 3)
    strided = [torch.nn.Parameter(p.detach().mT.contiguous().mT) for p in plain]
    sliced = [torch.nn.Parameter(torch.empty(6, 8)[:, ::2].copy_(p.detach())) for p in plain]
    for p, q, r in zip(plain, strided, sliced, strict=True):
        p.grad = p.grad[:, :1].clone().expand(6, 4)
        q.grad, r.grad = p.grad.clone().mT.contiguous().mT, p.grad.clone()
    for params in (plain, strided, sliced):
        Muon(params).step()
    assert all(map(torch.equal, plain, strided))
    assert all(map(torch.equal, plain, sliced))


def test_the_gradient_is_not_written():
    params = parameters(SHAPES)
    given = [p.grad.clone() for p in params]
    for nesterov in (True, False):
        Muon(params, nesterov=nesterov).step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, given, strict=True))


def test_a_bfloat16_buffer_keeps_its_average():
    """torch normalizes it in place where there is no Nesterov."""
    p = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    p.grad = torch.full((2, 3), 4.0, dtype=torch.bfloat16)
    optimizer = Muon([p], nesterov=False, momentum=0.5)
    optimizer.step()
    assert optimizer.state[p][BUFFER].tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (0, 0)])
def test_an_empty_matrix_is_left_alone(shape):
    params = [torch.nn.Parameter(torch.zeros(shape)), *parameters([(2, 2)])]
    params[0].grad = torch.zeros(shape)
    was = params[1].detach().clone()
    optimizer = Muon(params, adjust_lr_fn="original")
    optimizer.step()
    assert optimizer.state[params[0]][BUFFER].shape == shape
    assert not torch.equal(params[1], was)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("share", [0.9, 1e-3, 2.0**-10], ids=str)
def test_norms_neither_overflow_nor_vanish(dtype, share):
    """Beside one of ordinary size, matrices whose squares leave the format on either side, orthogonalized by the formulas."""
    finfo = torch.finfo(dtype)
    params = parameters([(3, 5)] * 4, dtype)
    ones = torch.tensor([[1.0, -0.5, 0.25, 1, 1], [0.5, 1, -1, 0.25, 0], [0, 1, 0.5, 1, -1]], dtype=dtype)
    for p, scale in zip(params, (1.0, share * finfo.max, finfo.tiny * 8, finfo.tiny / share / 64), strict=True):
        p.data.zero_()
        p.grad = ones * scale
    options = {"eps": 0.0, "weight_decay": 0.0, "lr": 1.0, "momentum": 0.0}
    Muon(params, **options).step()
    value, error = step_of(torch.zeros(3, 5), ones, ones, **options)
    for p in params:
        assert float((p.detach().double() - value).norm()) <= UNIT[dtype] * (error + 16)


def test_eps_bounds_the_norm():
    (p,) = parameters([(2, 3)])
    p.data.zero_()
    p.grad = torch.full((2, 3), 0.25)
    Muon([p], eps=8.0, ns_steps=0, lr=1.0, momentum=0.0).step()
    assert p.tolist() == [[-0.25 / 8] * 3] * 2
    p.data.zero_()
    p.grad = torch.full((2, 3), 2.0**-140)
    Muon([p], eps=2.0**-135, ns_steps=0, lr=1.0, momentum=0.0).step()
    assert p.tolist() == [[-(2.0**-5)] * 3] * 2


@pytest.mark.parametrize("eps", [1e-7, 1e-60, 1e300])
def test_a_zero_gradient_moves_nothing(eps):
    (p,) = parameters([(2, 3)])
    p.grad = torch.zeros(2, 3)
    was = p.detach().clone()
    Muon([p], eps=eps, weight_decay=0.0).step()
    assert torch.equal(p, was)


def test_not_a_number_stays_in_its_matrix():
    params = parameters([(2, 3)] * 3)
    params[1].grad[0, 1] = math.nan
    params[2].grad[0, 1] = math.inf
    Muon(params).step()
    assert [bool(p.isnan().all()) for p in params] == [False, True, True]
    assert bool(params[0].isfinite().all())


@pytest.mark.parametrize(("first", "second"), [(Muon, torch.optim.Muon), (torch.optim.Muon, Muon), (Muon, Muon)])
def test_states_are_exchangeable(first, second):
    params = parameters([(4, 6), (6, 4)])
    before = first(params, lr=0.01)
    before.step()
    after = second(params)
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["lr"] == 0.01
    for p in params:
        assert torch.equal(after.state[p][BUFFER], before.state[p][BUFFER])
    give_gradients(params, 5)
    expected = [0.95 * after.state[p][BUFFER] + 0.05 * p.grad for p in params]
    after.step()
    for p, e in zip(params, expected, strict=True):
        assert (after.state[p][BUFFER] - e).abs().max() <= 1e-6


def test_copies_step_as_their_original():
    params = parameters(SHAPES)
    optimizer = Muon(params)
    optimizer.step()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert "_workspace" not in vars(copied)
        members = copied.param_groups[0]["params"]
        fresh = parameters(SHAPES)
        twin = Muon(fresh)
        twin.step()
        for some in (members, fresh):
            give_gradients(some, 3)
        copied.step()
        twin.step()
        assert_same(held(copied, members), held(twin, fresh))


def test_a_closure_is_called_with_gradients_on():
    (p,) = parameters([(2, 3)])
    optimizer = Muon([p])

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() > 0
    assert optimizer.step() is None


@pytest.mark.parametrize("kind", ["sparse", "dtype"])
def test_a_refused_gradient_changes_nothing(kind):
    params = parameters([(2, 3)] * 3)
    optimizer = Muon([{"params": params[:1]}, {"params": params[1:]}])
    optimizer.step()
    give_gradients(params, 3)
    params += parameters([(2, 3)])
    optimizer.add_param_group({"params": params[3:]})  # one that has no state yet
    last = params[2]
    if kind == "sparse":
        last.grad = last.grad.to_sparse()
    else:
        last.grad = None
        last.grad_dtype = None
        last.grad = torch.ones(2, 3, dtype=torch.float64)
    before = held(optimizer, params)
    with pytest.raises(RuntimeError, match=r"sparse|float64"):
        optimizer.step()
    assert_same(held(optimizer, params), before)
    assert params[3] not in optimizer.state


INVALID = [
    ("lr", -1.0), ("lr", math.nan), ("lr", math.inf), ("lr", torch.tensor(-1.0)), ("lr", torch.ones(2)), ("lr", "1"),
    ("weight_decay", -0.1), ("weight_decay", math.nan), ("weight_decay", None), ("momentum", -0.1), ("momentum", math.inf),
    ("eps", -1e-7), ("eps", math.nan), ("eps", math.inf), ("eps", None), ("eps", "1e-7"), ("ns_steps", -1),
    ("ns_steps", 100), ("ns_steps", 1.5), ("ns_steps", 5.0), ("ns_steps", True), ("ns_steps", None),
    ("ns_coefficients", (1.0, 2.0)), ("ns_coefficients", (1.0, 2.0, 3.0, 4.0)), ("ns_coefficients", 1.0),
    ("ns_coefficients", (1.0, math.nan, 2.0)), ("ns_coefficients", (1.0, None, 2.0)), ("ns_coefficients", "abc"),
    ("adjust_lr_fn", "no_such_choice"), ("adjust_lr_fn", 1.0),
]  # fmt: skip
each_invalid = pytest.mark.parametrize(("option", "value"), INVALID, ids=str)
#: torch compares these by itself, before a group is there, and stumbles over what is no number.
STUMBLES = (ValueError, TypeError)


@each_invalid
def test_invalid_options_are_refused_by_keyword_and_in_groups(option, value):
    with pytest.raises(STUMBLES if value is None or isinstance(value, str) else ValueError):
        Muon(parameters([(2, 3)]), **{option: value})
    with pytest.raises(ValueError, match=option):
        Muon([{"params": parameters([(2, 3)]), option: value}])
    optimizer = Muon(parameters([(2, 3)]))
    with pytest.raises(ValueError, match=option):
        optimizer.add_param_group({"params": parameters([(2, 3)]), option: value})
    assert len(optimizer.param_groups) == 1


def test_what_is_no_matrix_is_refused():
    vector, cube = (torch.nn.Parameter(torch.zeros(s)) for s in ((3,), (2, 2, 2)))
    optimizer = Muon(parameters([(2, 3)]))
    for p in (vector, cube):
        with pytest.raises(ValueError, match="only supports 2D parameters"):
            Muon([p])
        for params in (p, [p], [("name", p)], iter([p])):
            with pytest.raises(ValueError, match="only supports 2D parameters"):
                optimizer.add_param_group({"params": params})
    assert len(optimizer.param_groups) == 1


def test_the_callers_group_is_not_changed():
    group = {"params": iter(parameters([(2, 3)]))}
    optimizer = Muon([group])
    assert group.keys() == {"params"}
    (p,) = parameters([(2, 3)])
    added = {"params": p, "lr": 0.5}
    optimizer.add_param_group(added)
    assert added == {"params": p, "lr": 0.5}
    assert optimizer.param_groups[1]["params"] == [p]


def test_a_complex_parameter_is_refused():
    p = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.complex64))
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="complex"):
        Muon([p]).step()
