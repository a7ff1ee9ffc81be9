"""L-BFGS's kernels for CUDA, played by Triton's interpreter: what they compute, how often they are launched, and what they wait for."""

import copy
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
from loops import flat, state_of, two_loops

from stepcheck import fast
from stepcheck.fast import interpreted, lbfgs
from stepcheck.fast.cuda import lbfgs as kernels
from stepcheck.fast.cuda import runtime

#: The unit roundoff of float64.
UNIT = 2.0**-53
searches = pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])


def _parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=dtype)) for shape in shapes]


def _quartic(params):
    """A closure of a convex function with curvatures between 1 and about 30."""

    def closure():
        loss = torch.zeros((), dtype=torch.float64)
        for p in params:
            p.grad = None
            x = torch.view_as_real(p) if p.is_complex() else p
            scale = 1 + torch.arange(x.numel(), dtype=x.dtype).reshape(x.shape) % 30
            loss = loss + (scale * x * x / 2 + x**4 / 4).sum()
        loss.backward()
        return loss.detach()

    return closure


def _stepped(cls, params, count, **options):
    optimizer = cls(params, **options)
    for _ in range(count):
        optimizer.step(_quartic(params))
    return optimizer


@pytest.fixture
def launches(monkeypatch):
    """What is launched, and done as well."""
    seen, launch = [], runtime.launch

    def counted(source, device, programs, arguments):
        seen.append((source, programs))
        launch(source, device, programs, arguments)

    monkeypatch.setattr(runtime, "launch", counted)
    return seen


# --- What is computed


@pytest.mark.parametrize("n", [1, 127, 128, 512, 513, 1500])
def test_directions_are_those_of_the_two_loops(n):
    params = _parameters((n,), (3,))
    optimizer = _stepped(interpreted.LBFGS, params, 9, lr=0.3, max_iter=1, history_size=6)
    state = state_of(optimizer)
    exact = two_loops(state["prev_flat_grad"], state)
    assert optimizer._work.known is not None
    assert (state["d"].double() - exact).abs().max() <= 4 * 2.0**-24 * exact.abs().max()


@searches
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.complex64], ids=str)
def test_steps_are_those_of_the_cpu(dtype, line_search_fn):
    """Each iteration may multiply a rounding by the condition of the function, below 100."""
    options = {"lr": 0.5, "max_iter": 2, "history_size": 3, "line_search_fn": line_search_fn}
    ours, theirs = _parameters((3, 4), (5,), (), dtype=dtype), _parameters((3, 4), (5,), (), dtype=dtype)
    a, b = interpreted.LBFGS(ours, **options), fast.LBFGS(theirs, **options)
    unit = {torch.float64: UNIT, torch.bfloat16: 2.0**-8}.get(dtype, 2.0**-24)
    for step in range(1, 5):
        a.step(_quartic(ours))
        b.step(_quartic(theirs))
        assert (flat(ours) - flat(theirs)).abs().max() <= 100 * step * unit
    for name in ("func_evals", "n_iter"):
        assert state_of(a)[name] == state_of(b)[name]
    assert state_of(a).keys() == state_of(b).keys()


@pytest.mark.parametrize("count", [1, 4, 7])
@pytest.mark.parametrize("offset", [0, 1])
def test_passes_are_those_of_numpy(count, offset):
    """Addresses that are no multiples of 16 as well; the elements are more than one piece."""
    n = kernels.PIECE + 700
    generator, work = torch.Generator().manual_seed(0), lbfgs._DeviceWork()
    memory = torch.randn(count + 3, n + offset, generator=generator)
    *rows, a, last, d = memory[:, offset:].unbind()
    rows, (b, s), t = list(rows), (torch.empty(n), torch.empty(n)), 0.3
    found = work.times([*rows, s], a, b, last, s, d, np.array([t]))
    assert torch.equal(b, a - last)
    assert torch.equal(s, d * t)
    exact = np.array([[math.fsum((r.double() * v.double()).tolist()) for v in (a, b)] for r in (*rows, s)])
    assert np.abs(found - exact).max() <= 200 * UNIT * n
    c = np.linspace(-1, 1, count)
    products = work.reduced(rows, c, a)
    q = -a.double() - sum(x * r.double() for x, r in zip(c, rows, strict=True))
    assert (work.q - q).abs().max() <= 100 * UNIT
    assert np.abs(products - [math.fsum((r.double() * q).tolist()) for r in rows]).max() <= 1000 * UNIT * n
    direction, slope = work.combined(rows, c, 0.5, a)
    exact = 0.5 * q + sum(x * r.double() for x, r in zip(c, rows, strict=True))
    # Rounded once, but where the sum in float64 is as near to a tie as its own roundings.
    assert ((direction.double() - exact).abs() <= 2.0**-24 * exact.abs() + 100 * UNIT).all()
    assert slope == pytest.approx((a.double() * direction.double()).sum().item(), abs=1000 * UNIT * n)
    assert work.size == direction.abs().max()
    assert kernels._table(rows, (a,)).tolist()[kernels.ALIGNED] == (offset == 0 and n % 4 == 0)


@pytest.mark.parametrize("at", [7, 1500])  # in a whole block, and in what is left
def test_what_is_not_finite_stays_where_it_is(at):
    rows = list(torch.ones(5, 1501))
    rows[4][at] = math.inf
    work = lbfgs._DeviceWork()
    products = work.reduced(rows, np.ones(5), rows[0])
    assert torch.nonzero(~work.q.isfinite()).flatten().tolist() == [at]
    assert work.q[at] == -math.inf
    assert products.tolist() == [-math.inf] * 5
    direction, _ = work.combined(rows, np.zeros(5), 1.0, rows[0])
    assert torch.nonzero(direction.isnan()).flatten().tolist() == [at]


def test_two_runs_are_the_same_to_the_last_bit():
    runs = []
    for _ in range(2):
        params = _parameters((700,))
        state = state_of(_stepped(interpreted.LBFGS, params, 3, lr=0.3, max_iter=2))
        runs.append([x.detach().numpy().tobytes() for x in (params[0], state["d"], *state["old_dirs"])])
    assert runs[0] == runs[1]


def test_what_is_loaded_goes_on_as_what_was_saved():
    (p,) = params = _parameters((40,))
    optimizer = _stepped(interpreted.LBFGS, params, 6, lr=0.3, max_iter=1, history_size=4)
    copies = [torch.nn.Parameter(p.detach().clone())]
    loaded = interpreted.LBFGS(copies)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for of, given in ((optimizer, params), (loaded, copies)):
        of.step(_quartic(given))
    assert torch.equal(p, copies[0])


def test_no_tensor_of_the_state_is_written_to():
    params = _parameters((600,))
    optimizer = _stepped(interpreted.LBFGS, params, 4, lr=0.3, max_iter=2, history_size=3)
    state = dict(state_of(optimizer))
    held = [*state["old_dirs"], *state["old_stps"], *state["ro"], state["d"], state["H_diag"], state["prev_flat_grad"]]
    before = [x.clone() for x in held]
    optimizer.step(_quartic(params))
    assert all(map(torch.equal, held, before))


# --- Launches and waits


@pytest.mark.parametrize("history", [2, 9])
def test_a_direction_takes_four_launches_however_long_the_history_is(history, launches):
    params = _parameters((600,))
    optimizer = _stepped(interpreted.LBFGS, params, history + 1, lr=0.1, max_iter=1, history_size=history)
    launches.clear()
    optimizer.step(_quartic(params))
    groups = (
        -(-(history + 2) // kernels.ROWS),
        -(-history // kernels.ROWS),
    )  # with the new pair, which is not remembered yet
    assert [programs for _, programs in launches] == [groups[0], 2, groups[1], 2]


@searches
def test_it_waits_once_for_an_evaluation_and_three_times_for_a_direction(monkeypatch, line_search_fn):
    """As where no number is on the host; of the tensors that are read here, none has more than the history has pairs."""
    params = _parameters((40,))
    optimizer = _stepped(interpreted.LBFGS, params, 4, lr=0.3, max_iter=1, line_search_fn=line_search_fn)
    plain, copies = copy.deepcopy(optimizer), None
    reads, together, products = [], lbfgs._together, kernels.products
    monkeypatch.setattr(lbfgs, "_on_host", lambda _: False)
    monkeypatch.setattr(lbfgs, "_together", lambda x: reads.append("together") or together(x))
    monkeypatch.setattr(kernels, "products", lambda *x: reads.append("products") or products(*x))
    monkeypatch.setattr(lbfgs, "_largest", None)
    calls = []
    closure = _quartic(params)

    def counted():
        calls.append(closure())
        return calls[-1]

    optimizer.step(counted)
    assert reads[:4] == ["together", "products", "products", "together"]
    assert reads[4:] == ["together"] * (len(calls) - 1)
    monkeypatch.undo()
    copies = plain.param_groups[0]["params"]
    plain.step(_quartic(copies))
    assert torch.equal(params[0], copies[0])


def test_numbers_are_read_together():
    numbers = [torch.tensor(0.1), torch.tensor([[3]]), torch.tensor(1e300, dtype=torch.float64, requires_grad=True)]
    assert lbfgs._together(numbers) == [torch.tensor(0.1).item(), 3.0, 1e300]


@pytest.mark.parametrize("loss", [0.5, torch.tensor(0.5), torch.tensor([0.5], dtype=torch.float16), np.float32(0.5), 1])
def test_a_loss_of_any_kind_is_read(monkeypatch, loss):
    monkeypatch.setattr(lbfgs, "_on_host", lambda _: False)
    gradient, d = torch.tensor([1.0, -3.0]), torch.tensor([2.0, 1.0])
    seen = lbfgs._Seen.of(loss, gradient, d)
    assert (seen.loss, seen.largest, seen.slope) == (float(loss), 3.0, -1.0)
    without = lbfgs._Seen.of(loss, gradient, None)
    assert (without.loss, without.largest) == (float(loss), 3.0)
    assert math.isnan(without.slope)


@pytest.mark.parametrize(("values", "largest"), [([], 0.0), ([1.0, -4.0], 4.0), ([1.0, math.nan], math.nan)])
def test_the_largest_element_is_the_same_wherever_it_is_read(values, largest):
    x = torch.tensor(values)
    assert [lbfgs._size(x).item(), lbfgs._largest(x)] == pytest.approx([largest] * 2, abs=0, nan_ok=True)


# --- Who steps, and what is refused


@pytest.mark.parametrize(
    ("dtypes", "engine"),
    [
        ((torch.float32,), "triton"),
        ((torch.complex64, torch.bfloat16), "triton"),
        ((torch.float64,), "blas"),
        ((torch.float32, torch.float64), "blas"),
        ((torch.bfloat16,), "blas"),
    ],
)
def test_it_says_who_steps(dtypes, engine):
    params = [_parameters((3,), dtype=dtype)[0] for dtype in dtypes]
    optimizer = _stepped(interpreted.LBFGS, params, 3, lr=0.1, max_iter=1)
    assert optimizer.engine == ((engine, ""),)
    assert (optimizer._work.known is not None) == (engine == "triton")


def test_parameters_on_several_devices_are_refused_before_anything_happens():
    here, there = _parameters((3,)), [torch.nn.Parameter(torch.empty(3, device="meta"))]
    optimizer = interpreted.LBFGS([*here, *there])
    with pytest.raises(RuntimeError, match="one vector of all parameters, got some on cpu and meta"):
        optimizer.step(lambda: pytest.fail("the closure was called"))


# --- Machine code


def test_every_kernel_compiles_without_a_gpu_and_spills_nothing(tmp_path):
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for name, source in kernels.sources():
        (tmp_path / "kernel.cubin").write_bytes(runtime.compiled(source, 90).asm["cubin"])
        command = [tool, "-res-usage", tmp_path / "kernel.cubin"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        usage = {key: int(number) for key, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", out)}
        assert usage["REG"] <= 64, name
        assert usage["STACK"] == usage["LOCAL"] == 0, name
