"""The fast L-BFGS: the same steps as torch's, from the same state, by another way to the direction."""

from __future__ import annotations

import copy
import inspect
import math
import pickle

import numpy as np
import pytest
import torch
from loops import flat, state_of, two_loops

from stepcheck.fast import lbfgs, native
from stepcheck.fast.lbfgs import LBFGS

#: The unit roundoff of float64. Each iteration may multiply an error by the condition of the function, below 100 here.
UNIT = 2.0**-53


def searches(function):
    return pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])(function)


@pytest.fixture(params=["recursion", "passes"])
def way(request, monkeypatch):
    """Both ways to a direction, whatever the size."""
    monkeypatch.setattr(lbfgs, "_WORTH_PASSES", 0 if request.param == "passes" else 1 << 60)
    return request.param


def parameters(*shapes, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def quartic(params):
    """A closure of a convex function with curvatures between 1 and about 30."""

    def closure():
        loss = torch.zeros((), dtype=torch.float64)
        for p in params:
            p.grad = None
            x = torch.view_as_real(p) if p.is_complex() else p
            scale = torch.arange(1, x.numel() + 1, dtype=x.dtype).reshape(x.shape)
            loss = loss + (scale * x * x / 2 + x**4 / 4).sum()
        loss.backward()
        return loss.detach()

    return closure


def steps(cls, params, count, **options):
    optimizer = cls(params, **options)
    for _ in range(count):
        optimizer.step(quartic(params))
    return optimizer


# The steps.


def test_signature_is_that_of_torch():
    ours, theirs = (inspect.signature(cls).parameters for cls in (LBFGS, torch.optim.LBFGS))
    # Torch has it from 2.14 on.
    assert {n: p.default for n, p in ours.items()} == {n: p.default for n, p in theirs.items()} | {"maximize": False}


@searches
def test_steps_are_those_of_torch(way, line_search_fn):
    options = {"lr": 0.5, "max_iter": 4, "history_size": 3, "line_search_fn": line_search_fn}
    ours, theirs = parameters((3, 4), (5,), ()), parameters((3, 4), (5,), ())
    a, b = LBFGS(ours, **options), torch.optim.LBFGS(theirs, **options)
    for step in range(1, 6):
        assert a.step(quartic(ours)).item() == pytest.approx(b.step(quartic(theirs)).item(), abs=100 * step * UNIT)
        assert (flat(ours) - flat(theirs)).abs().max() <= 100 * step * UNIT
    for name in ("func_evals", "n_iter"):
        assert state_of(a)[name] == state_of(b)[name]
    assert state_of(a).keys() == state_of(b).keys() - {"al"}
    assert len(state_of(a)["old_dirs"]) == 3
    assert [type(state_of(a)[n]) for n in ("d", "H_diag", "prev_loss")] == [torch.Tensor, torch.Tensor, float]


@pytest.mark.parametrize(
    "dtype, unit",
    [(torch.float32, 2.0**-24), (torch.float64, 2.0**-53), (torch.bfloat16, 2.0**-8), (torch.complex64, 2.0**-24)],
)
def test_directions_are_those_of_the_two_loops(way, dtype, unit):
    params = parameters((37,), (5, 3), dtype=dtype)
    optimizer = LBFGS(params, lr=0.3, max_iter=1, history_size=6)
    for _ in range(12):
        optimizer.step(quartic(params))
    state = state_of(optimizer)
    exact = two_loops(state["prev_flat_grad"], state)
    # In bfloat16 each of the 24 operations is rounded.
    roundings = 24 if dtype == torch.bfloat16 else 4
    assert (state["d"].double() - exact).abs().max() <= roundings * unit * exact.abs().max()


def test_long_vectors_take_the_direction_of_the_two_loops():
    (p,) = params = parameters((70_001,), dtype=torch.float32)
    scale = torch.linspace(0.5, 2, 70_001)
    optimizer = LBFGS(params, lr=0.3, max_iter=1, history_size=20)

    def closure():
        p.grad = scale * p.detach()
        return 0.5

    for _ in range(14):
        optimizer.step(closure)
    state = state_of(optimizer)
    exact = two_loops(state["prev_flat_grad"], state)
    assert optimizer._work.known is not None
    assert (state["d"].double() - exact).abs().max() <= 2.0**-22 * exact.abs().max()


def test_how_many_threads_there_are_changes_no_bit():
    generator = torch.Generator().manual_seed(0)
    rows = list(torch.randn(18, 70_001, generator=generator))
    coefficients, threads, found = np.linspace(-1, 1, 18), torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            work = lbfgs._Work()
            products = work.reduced(rows, coefficients, rows[0])
            d, slope = work.combined(rows, coefficients, 0.5, rows[0])
            found.append([x.tobytes() for x in (work.times(rows, *rows[:2]), work.q, products, d.numpy())] + [slope])
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]


def test_any_layout_of_gradients_is_taken():
    dense, strided = parameters((4, 3), (2,)), parameters((4, 3), (2,))
    optimizers = [LBFGS(p, lr=0.5, max_iter=1) for p in (dense, strided)]
    for _ in range(3):
        for params, optimizer, transposed in zip((dense, strided), optimizers, (False, True), strict=True):

            def closure(params=params, transposed=transposed):
                loss = quartic(params)()
                if transposed:
                    params[0].grad = params[0].grad.t().contiguous().t()
                    params[1].grad = params[1].grad.to_sparse()
                return loss

            optimizer.step(closure)
    assert torch.equal(flat(dense), flat(strided))


def test_a_parameter_without_gradient_stays():
    used, unused = parameters((3,), (2,))
    before = unused.detach().clone()
    optimizer = LBFGS([used, unused])
    optimizer.step(quartic([used]))
    assert torch.equal(unused.detach(), before)
    assert used.abs().max() < 1e-3


def test_parameters_without_elements_are_at_their_optimum():
    (p,) = parameters((0,))
    optimizer = LBFGS([p])
    optimizer.step(lambda: 1.0)
    assert state_of(optimizer) == {"func_evals": 1, "n_iter": 0}


def test_a_loss_of_nan_ends_a_line_search():
    (p,) = parameters((3,))
    optimizer = LBFGS([p], line_search_fn="strong_wolfe", max_iter=2)
    calls = []

    def closure():
        calls.append(None)
        p.grad = torch.ones(3, dtype=torch.float64) if len(calls) == 1 else torch.zeros(3, dtype=torch.float64)
        return 1.0 if len(calls) == 1 else math.nan

    assert optimizer.step(closure) == 1.0
    assert len(calls) == 2


# Options.


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0}, {"lr": math.nan}, {"lr": math.inf}, {"lr": torch.ones(2)}, {"lr": "1"}, {"max_iter": 0}, {"max_iter": 1.5},
        {"max_iter": None}, {"max_eval": 0}, {"tolerance_grad": -1e-9}, {"tolerance_grad": math.nan},
        {"tolerance_change": -math.inf}, {"history_size": 0}, {"history_size": 2.5}, {"line_search_fn": "armijo"},
        {"line_search_fn": "strong_wolfe", "lr": 0.0},
    ],
)  # fmt: skip
def test_invalid_options_are_refused(options):
    with pytest.raises((ValueError, TypeError)):  # torch's own constructor compares and multiplies first
        LBFGS(parameters((2,)), **options)
    with pytest.raises(ValueError):
        LBFGS([{"params": parameters((2,)), **options}])


def test_max_eval_that_is_left_open_follows_max_iter():
    assert LBFGS(parameters((2,)), max_iter=8).param_groups[0]["max_eval"] == 10
    optimizer = LBFGS([{"params": parameters((2,)), "max_iter": 4, "max_eval": None}])
    group = optimizer.param_groups[0]
    assert group["max_eval"] == 5
    group["max_iter"] = 12
    optimizer.step(quartic(group["params"]))
    assert group["max_eval"] == 15


def test_max_eval_that_was_set_no_longer_follows_max_iter():
    params = parameters((2,))
    stepped = LBFGS(params, max_iter=4)
    stepped.param_groups[0]["max_eval"] = 7
    stepped.step(lambda: sum((p * p).sum() for p in params))
    loaded = LBFGS(parameters((2,)))
    loaded.load_state_dict(LBFGS(parameters((2,)), max_iter=4, max_eval=7).state_dict())
    for optimizer in (stepped, loaded):
        (group,) = optimizer.param_groups
        group.update(max_iter=20, max_eval=5)  # 5 would have followed from 4
        optimizer.step(lambda p=group["params"][0]: (p * p).sum())
        assert group["max_eval"] == 5


def test_max_eval_of_the_group_is_kept_to():
    params = parameters((6,))
    optimizer = LBFGS(params, lr=0.1, max_eval=7)
    optimizer.step(quartic(params))
    assert state_of(optimizer)["func_evals"] == 7


def test_history_size_may_change_at_any_time(way):
    params = parameters((6,))
    optimizer = LBFGS(params, lr=0.3, max_iter=1, history_size=4)
    lengths = []
    for size in (4, 4, 4, 4, 4, 4, 2, 2, 5, 5, 5, 5):
        optimizer.param_groups[0]["history_size"] = size
        optimizer.step(quartic(params))
        lengths.append(len(state_of(optimizer)["ro"]))
    assert lengths == [0, 1, 2, 3, 4, 4, 2, 2, 3, 4, 5, 5]
    state = state_of(optimizer)
    exact = two_loops(state["prev_flat_grad"], state)
    assert (state["d"] - exact).abs().max() <= 1000 * UNIT * exact.abs().max()


def test_a_tensor_lr_does_not_become_state():
    params, lr = parameters((6,)), torch.tensor(0.25)
    optimizer = LBFGS(params, lr=lr, max_iter=2)
    for _ in range(2):
        optimizer.step(quartic(params))
    lr.fill_(8.0)
    assert state_of(optimizer)["t"] == 0.25


# Copies.


@searches
def test_state_moves_to_torch_and_back(way, line_search_fn):
    options = {"lr": 0.5, "max_iter": 3, "history_size": 3, "line_search_fn": line_search_fn}
    found = []
    for classes in ((torch.optim.LBFGS,) * 4, (LBFGS, torch.optim.LBFGS, LBFGS, torch.optim.LBFGS)):
        params, saved = parameters((3, 3), (2,)), None
        for cls in classes:
            optimizer = cls(params, **options)
            if saved is not None:
                optimizer.load_state_dict(saved)
            optimizer.step(quartic(params))
            saved = copy.deepcopy(optimizer.state_dict())
        found.append((flat(params), state_of(optimizer)["func_evals"]))
    assert (found[0][0] - found[1][0]).abs().max() <= 400 * UNIT
    assert found[0][1] == found[1][1]


def test_tensors_of_the_state_are_never_written_to(way):
    params = parameters((5,))
    optimizer = steps(LBFGS, params, 6, lr=0.3, max_iter=1, history_size=3)
    state = dict(state_of(optimizer))
    tensors = [x for v in state.values() for x in (v if isinstance(v, list) else [v]) if isinstance(x, torch.Tensor)]
    values = [x.clone() for x in tensors]
    optimizer.step(quartic(params))
    assert all(map(torch.equal, tensors, values))
    assert len(state["old_dirs"]) == 3


def test_copies_go_on_like_the_original(way):
    params = parameters((5,))
    optimizer = steps(LBFGS, params, 4, lr=0.3, max_iter=2)
    ends = []
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer)), optimizer):
        own = other.param_groups[0]["params"]
        other.step(quartic(own))
        ends.append(flat(own))
    # A copy of the state has other tensors, of which the products are formed anew.
    assert all((end - ends[-1]).abs().max() <= 100 * UNIT for end in ends)


def test_history_written_to_from_outside_is_noticed(way):
    params = parameters((5,))
    optimizer = steps(LBFGS, params, 5, lr=0.3, max_iter=1)
    state = state_of(optimizer)
    state["old_stps"][0].mul_(0.5)
    optimizer.step(quartic(params))
    exact = two_loops(state["prev_flat_grad"], state)
    assert (state["d"] - exact).abs().max() <= 1000 * UNIT * exact.abs().max()


# Failures, and what a step costs.


@searches
@pytest.mark.parametrize("call", [1, 2, 4])
def test_a_failing_closure_changes_nothing(way, line_search_fn, call):
    params = parameters((5,), (2, 2))
    optimizer = steps(LBFGS, params, 3, lr=0.3, max_iter=2, history_size=2, line_search_fn=line_search_fn)
    group = optimizer.param_groups[0]
    group.update(max_iter=20, max_eval=25, tolerance_change=0.0, tolerance_grad=0.0)
    before, state, calls = flat(params), copy.deepcopy(state_of(optimizer)), []

    def failing():
        calls.append(None)
        if len(calls) == call:
            raise KeyError("on purpose")
        return quartic(params)()

    with pytest.raises(KeyError):
        optimizer.step(failing)
    assert len(calls) == call
    assert torch.equal(flat(params), before)
    after = state_of(optimizer)
    assert after.keys() == state.keys()
    for name, value in state.items():
        one, other = (v if isinstance(v, list) else [v] for v in (value, after[name]))
        assert len(one) == len(other)
        assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in zip(one, other, strict=True))


def test_the_closure_runs_with_gradients_on_and_its_first_result_is_returned():
    params = parameters((5,))
    results = []

    def closure():
        assert torch.is_grad_enabled()
        results.append(quartic(params)())
        return results[-1]

    with torch.no_grad():
        assert LBFGS(params).step(closure) is results[0]


def test_memory_does_not_grow_once_the_history_is_full(way):
    params = parameters((50,))
    optimizer = LBFGS(params, lr=1e-3, max_iter=1, history_size=3, tolerance_grad=0, tolerance_change=0)
    held = []
    for _ in range(20):
        optimizer.step(quartic(params))
        products = optimizer._work.known
        small = 0 if products is None else products.sy.nbytes
        held.append((sum(x.nbytes for n in ("old_dirs", "old_stps", "ro") for x in state_of(optimizer)[n]), small))
    assert len(set(held[5:])) == 1
    assert held[-1][1] <= 8 * 3 * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 4, 7])
def test_kernels_are_those_of_numpy(dtype, count):
    generator, work = torch.Generator().manual_seed(0), lbfgs._Work()
    rows = list(torch.randn(count, 17_001, generator=generator, dtype=dtype))
    a, last, d = torch.randn(3, 17_001, generator=generator, dtype=dtype)
    b, s, t = torch.empty_like(a), torch.empty_like(a), 0.3
    found = work.times([*rows, s], a, b, last, s, d, np.array([t]))
    assert torch.equal(b, a - last)
    assert torch.equal(s, d * t)
    exact = np.array([[math.fsum((r.double() * v.double()).tolist()) for v in (a, b)] for r in (*rows, s)])
    assert np.abs(found - exact).max() <= 200 * UNIT * 17_001
    c = np.linspace(-1, 1, count)
    products = work.reduced(rows, c, a)
    q = -a.double() - sum(x * r.double() for x, r in zip(c, rows, strict=True))
    assert np.abs(work.q - q.numpy()).max() <= 100 * UNIT
    assert np.abs(products - [math.fsum((r.double() * q).tolist()) for r in rows]).max() <= 1000 * UNIT * 17_001
    direction, slope = work.combined(rows, c, 0.5, a)
    exact = 0.5 * q + sum(x * r.double() for x, r in zip(c, rows, strict=True))
    assert (direction.double() - exact).abs().max() <= 4 * torch.finfo(dtype).eps * exact.abs().max()
    assert slope == pytest.approx((a.double() * direction.double()).sum().item(), abs=1000 * UNIT * 17_001)


def test_what_is_not_finite_stays_where_it_is():
    rows = list(torch.ones(5, 3000))
    rows[1][7], rows[4][1500] = math.inf, math.nan
    work = lbfgs._Work()
    products = work.reduced(rows, np.ones(5), rows[0])
    assert np.flatnonzero(~np.isfinite(work.q)).tolist() == [7, 1500]
    assert work.q[7] == -math.inf
    assert np.isnan(products).all()


def test_work_is_in_no_copy():
    params = parameters((400,))
    optimizer = steps(LBFGS, params, 3, lr=1e-3, max_iter=1)
    assert "_work" in vars(optimizer)
    assert "_work" not in vars(copy.deepcopy(optimizer))
    assert "_work" not in optimizer.__getstate__()


def test_sums_are_reordered_only_where_a_kernel_asks_for_it():
    source = "def kernel(launch):\n    store_int64(launch, 0, 4321)\n"
    plain, reordered = native.kernel(source), native.kernel(source, reassociate=True)
    assert plain is not reordered
    assert reordered is native.kernel(source, reassociate=True)
    assert native._digest(source) != native._digest(source, native.REASSOCIATING)


@pytest.mark.parametrize("name", ["tolerance_grad", "tolerance_change"])
def test_an_infinite_tolerance_ends_a_step_as_soon_as_torch_ends_it(name):
    found = []
    for cls in (LBFGS, torch.optim.LBFGS):
        p = torch.full((3,), 2.0, requires_grad=True)
        optimizer, calls = cls([p], **{name: math.inf}), []

        def closure(p=p, optimizer=optimizer, calls=calls):
            optimizer.zero_grad()
            loss = (p**2).sum()
            loss.backward()
            calls.append(1)
            return loss

        optimizer.step(closure)
        found.append((len(calls), p.tolist()))
    assert found[0] == found[1]
