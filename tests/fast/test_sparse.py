"""Sparse gradients from step to step: launches are kept, and what the gradients name is other each time."""

import itertools
import weakref

import pytest
import torch

from stepcheck import fast
from stepcheck.fast import engine

NAMES = ("SGD", "Adagrad", "SparseAdam")


def gradient(p, rows, seed, *, coalesced=False):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(len(rows), *p.shape[1:], generator=draw, dtype=p.dtype)
    g = torch.sparse_coo_tensor(torch.tensor([rows], dtype=torch.int64), values, p.shape, check_invariants=True)
    return g.coalesce() if coalesced else g


def tables(*shapes, dtype=torch.float32):
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(s, generator=draw, dtype=dtype).requires_grad_() for s in shapes]


def beside_torch(name, shapes, steps, change=lambda optimizer, params, n: None, dtype=torch.float32, **options):
    """Parameters after the same steps by the fast class and by torch's; of each step the rows that each table's gradient names."""
    ended = []
    for family in (fast, torch.optim):
        params = tables(*shapes, dtype=dtype)
        optimizer = getattr(family, name)(params, lr=0.05, **options)
        for n, rows in enumerate(steps):
            for k, p in enumerate(params):
                p.grad = None if rows[k] is None else gradient(p, rows[k], 10 * n + k, coalesced=(n + k) % 2 == 1)
            change(optimizer, params, n)
            with torch.sparse.check_sparse_tensor_invariants(enable=False):
                optimizer.step()
        ended.append([p.detach() for p in params])
    for ours, theirs in zip(*ended, strict=True):
        torch.testing.assert_close(ours, theirs)
    return ended[0]


@pytest.fixture
def plans(monkeypatch):
    """Of each plan that is made on the CPU, one entry."""
    made, whole = [], engine.HostPlan.__init__
    monkeypatch.setattr(engine.HostPlan, "__init__", lambda self, *a, **k: made.append(self) or whole(self, *a, **k))
    return made


# Of float16, torch rounds each of its operations; SGD has but one.
@pytest.mark.parametrize(
    "name, dtype", [*itertools.product(NAMES, (torch.float32, torch.float64)), ("SGD", torch.float16)]
)
def test_each_step_names_other_rows_of_several_tables(name, dtype, plans):
    steps = [([3, 1], [0]), ([0, 0, 4, 0], [2, 5, 1]), ([], [5]), ([4, 3, 2, 1, 0], [5, 0]), ([2, 2], [1])]
    beside_torch(name, [(5, 3), (6,)], steps, dtype=dtype)
    assert len(plans) == 1


@pytest.mark.parametrize("name", NAMES)
def test_a_table_of_many_rows_is_cut_and_shared_by_threads(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        all_rows = list(range(2_500))
        beside_torch(name, [(3_000, 64)], [([5],), (all_rows,), ([7, 5],), (all_rows[::-1] + [5] * 100,)])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", NAMES)
def test_what_happens_between_steps_is_seen(name, plans):
    def change(optimizer, params, n):
        state = optimizer.state[params[0]]
        if n == 1:
            params[0].data = params[0].detach().clone() + 1.0
        if n == 2 and "step" in state:
            state["step"] = 40 if name == "SparseAdam" else torch.tensor(40.0)
        if n == 3:
            params[0].grad = gradient(params[0], [1], 77, coalesced=True) * 2
        if n == 4 and "exp_avg" in state:
            state["exp_avg"] = torch.full((5, 3), 0.5)
        if n == 5 and "sum" in state:
            state["sum"].mul_(4.0)
        if n == 6:
            optimizer.param_groups[0]["lr"] = 0.5
        if n == 7:
            optimizer.load_state_dict(optimizer.state_dict())

    beside_torch(name, [(5, 3)], [([n % 5, (2 * n) % 5],) for n in range(10)], change)
    assert len(plans) > 1


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_a_dense_gradient_may_follow_a_sparse_one(name):
    def change(optimizer, params, n):
        if n in (2, 5):
            params[n % 2].grad = params[n % 2].grad.to_dense()

    beside_torch(name, [(5, 3), (4, 2)], [([n % 5, 1], [n % 4]) for n in range(8)], change)


@pytest.mark.parametrize("name", NAMES)
def test_a_table_may_have_no_gradient_for_a_step(name):
    beside_torch(
        name, [(5, 3), (4, 2)], [([1], [2]), ([1, 3], None), (None, [1]), ([0], [0, 0]), (None, None), ([2], [3])]
    )


@pytest.mark.parametrize("name", NAMES)
def test_rows_that_are_not_there_are_refused_and_nothing_is_changed(name):
    p, q = tables((5, 3), (4, 2))
    optimizer = getattr(fast, name)([q, p])
    for n in range(3):
        p.grad, q.grad = gradient(p, [n], n), gradient(q, [n], n)
        optimizer.step()
    before = [p.detach().clone(), q.detach().clone()]
    for rows in ([5], [-1], [0, 1 << 33]):
        p.grad = torch.sparse_coo_tensor(torch.tensor([rows]), torch.ones(len(rows), 3), (5, 3), check_invariants=False)
        with pytest.raises(RuntimeError, match="a sparse gradient of"):
            optimizer.step()
    assert torch.equal(p, before[0])
    assert torch.equal(q, before[1])
    p.grad = gradient(p, [2], 9)
    optimizer.step()
    assert not torch.equal(p, before[0])


@pytest.mark.parametrize("steps", [1 << 24, (1 << 25) - 5, (1 << 31) + 1])
def test_steps_are_counted_beyond_what_float32_holds(steps):
    """As those of torch, which are Python's whole numbers."""
    (p,) = tables((5, 3))
    optimizer = fast.SparseAdam([p])
    for n in range(4):
        p.grad = gradient(p, [n], n)
        optimizer.step()
        if n == 0:
            optimizer.state[p]["step"] = steps
    assert optimizer.state[p]["step"] == steps + 3


def test_gradients_are_not_kept():
    import weakref

    (p,) = tables((5, 3))
    optimizer = fast.SparseAdam([p])
    for n in range(3):
        p.grad = gradient(p, [n], n)
        values = weakref.ref(p.grad)
        optimizer.step()
        p.grad = None
        assert values() is None or n == 0


def test_a_skipped_step_keeps_no_gradient():
    p = torch.ones(6, 2, requires_grad=True)
    optimizer = fast.SGD([p])
    for _ in range(3):
        p.grad = torch.sparse_coo_tensor(torch.tensor([[1, 4]]), torch.ones(2, 2), (6, 2), is_coalesced=True)
        optimizer.step()
    (plan,) = optimizer._plans
    # Of a tensor on another device only the plan asks.
    assert plan.holds(optimizer.param_groups, optimizer.state)
    plan.step(engine.Scaling(found_inf=torch.ones(1)))
    gone = weakref.ref(p.grad)
    p.grad = None
    assert gone() is None
