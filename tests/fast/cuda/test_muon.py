"""Muon's kernels for CUDA, played by Triton's interpreter: what they compute, how often they are launched, and what they wait for."""

import copy
import math
import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from stepcheck import fast
from stepcheck.fast import interpreted
from stepcheck.fast.cuda import engine, muon, runtime

#: Towards 1 from both sides, so that rounding errors die out.
CONVERGING = (1.875, -1.25, 0.375)
SHAPES = [(1, 1), (1, 7), (7, 1), (8, 8), (50, 3), (31, 17), (17, 31), (40, 64)]
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
each_dtype = pytest.mark.parametrize("dtype", UNIT, ids=lambda d: str(d).removeprefix("torch."))


def _parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter((0.02 * torch.randn(s, generator=generator)).to(dtype)) for s in shapes]
    _give_gradients(made, seed + 1)
    return made


def _give_gradients(params, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)


def _orthogonalized(optimizer):
    """The stacks of the last step, each matrix after its iterations."""
    for plan in optimizer._plans:
        for portion, _ in plan._portions:
            yield portion, portion._y if portion._kind.steps % 2 else portion._x


# --- What is computed


@pytest.mark.parametrize("options", [{}, {"nesterov": False, "momentum": 0.5}, {"ns_coefficients": (1.5, -0.5, 0.0)}])
def test_float64_is_that_of_the_cpu_but_for_roundings(options):
    """A few roundings of numbers below 1, made larger by at most 3.44 in each of 5 iterations, in sums of up to 64 terms."""
    ours, theirs = (_parameters(*SHAPES, dtype=torch.float64) for _ in range(2))
    optimizers = interpreted.Muon(ours, **options), fast.Muon(theirs, **options)
    for n in range(2):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            _give_gradients(params, n)
            optimizer.step()
    for p, q in zip(ours, theirs, strict=True):
        rate = 1e-3 * math.sqrt(max(1, p.shape[0] / p.shape[1]))
        bound = 2 * rate * 8 * 64 * 3.4445**5 * math.sqrt(min(p.shape)) * UNIT[torch.float64]
        assert float((p - q).detach().norm()) <= bound


def _lerp(start, end, weight):
    """As torch.lerp does, each operation rounded, none contracted."""
    return start + weight * (end - start) if weight < 0.5 else end - (end - start) * (1 - weight)


@each_dtype
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.95, True), (0.95, False), (0.375, True), (0.0, True)])
def test_momentum_is_the_average_to_the_last_bit(dtype, momentum, nesterov):
    (p,) = params = _parameters((40, 40), dtype=dtype)
    optimizer = interpreted.Muon(params, nesterov=nesterov, momentum=momentum, ns_steps=0, eps=1.0)
    real = torch.float64 if dtype is torch.float64 else torch.float32
    mu, weight = (torch.tensor(x, dtype=torch.float64).to(real) for x in (momentum, 1 - momentum))
    buffer = torch.zeros_like(p)
    for n in range(3):
        _give_gradients(params, n)
        p.grad.mul_(2.0**-12)  # its norm is below 1, so that the stack has it as it is
        optimizer.step()
        buffer = _lerp(buffer.to(real), p.grad.to(real), weight).to(dtype)
        ahead = _lerp(p.grad.to(real), buffer.to(real), mu) if nesterov else buffer
        ((_, stack),) = _orthogonalized(optimizer)
        assert torch.equal(optimizer.state[p]["momentum_buffer"], buffer)
        assert torch.equal(stack[0], ahead.to(stack.dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_without_iterations_the_matrix_is_normalized_in_bfloat16(dtype):
    """As torch does: cast, its norm rounded, the quotient rounded. Each element is one of two neighbours, of which one is nearest."""
    (p,) = _parameters((31, 17), dtype=dtype)
    optimizer = interpreted.Muon([p], ns_steps=0, nesterov=False, momentum=0.0)
    optimizer.step()
    ((_, stack),) = _orthogonalized(optimizer)
    cast = p.grad.to(torch.bfloat16)
    norm = cast.double().norm().to(torch.bfloat16).double()
    assert torch.equal(stack[0], (cast.double() / norm).to(torch.float32).to(torch.bfloat16))


@pytest.mark.parametrize("coefficients", [CONVERGING, (1.5, -0.5, 0.0)])
@pytest.mark.parametrize("shape", [(20, 33), (33, 20)])
def test_singular_values_move_to_one_as_far_as_bfloat16_goes(shape, coefficients):
    (p,) = _parameters(shape)
    was = p.detach().clone()
    u, _, v = torch.linalg.svd(p.grad.double(), full_matrices=False)
    interpreted.Muon(
        [p], lr=1.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw", ns_coefficients=coefficients, ns_steps=20
    ).step()
    step = (was - p.detach()).double() / (0.2 * math.sqrt(33))
    # The fixed point forgets what happened before the last iterations, each of which rounds three times.
    assert float((step - u @ v).norm()) <= 20 * UNIT[torch.bfloat16] * math.sqrt(20)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e20, 1e35])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_a_norm_neither_overflows_nor_vanishes_where_its_matrix_does_not(dtype, size):
    plain, scaled = _parameters((40, 30)), _parameters((40, 30))
    changed = []
    for params, factor in ((plain, 1.0), (scaled, 2.0 ** round(math.log2(size)))):
        p = params[0].detach().to(dtype).requires_grad_()
        was = p.detach().clone()
        p.grad = (params[0].grad * factor).to(dtype)
        interpreted.Muon([p], eps=0.0, lr=1.0, weight_decay=0.0).step()
        changed.append(p.detach() - was)
    assert torch.equal(*changed)


@pytest.mark.parametrize("eps", [0.0, 1e-7, 1e-60])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_zero_matrix_stays_one_unless_eps_is_zero(dtype, eps):
    (p,) = _parameters((4, 5), dtype=dtype)
    p.grad.zero_()
    interpreted.Muon([p], eps=eps, weight_decay=0.0).step()
    assert p.isfinite().all() == (eps > 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_spoils_its_own_matrix_alone(bad):
    (p, q), (alone,) = _parameters((40, 30), (40, 30)), _parameters((40, 30), (40, 30))[1:]
    p.grad[7, 3] = bad
    interpreted.Muon([p, q]).step()
    interpreted.Muon([alone]).step()
    assert p.isnan().all()
    assert torch.equal(q, alone)


def test_matrices_of_any_size_and_none_are_stepped():
    params = _parameters((0, 5), (5, 0), (1024, 3), (3, 1025), (2, 512))
    was = [p.detach().clone() for p in params]
    interpreted.Muon(params).step()
    assert [bool((p != w).any()) for p, w in zip(params, was, strict=True)] == [False] * 2 + [True] * 3
    assert all(p.isfinite().all() for p in params)


@each_dtype
def test_strides_and_addresses_change_nothing_and_nothing_beside(dtype):
    (plain,) = _parameters((40, 33), dtype=dtype)
    memory = torch.full((34 * 82,), 7.0, dtype=dtype)
    p = memory.as_strided((40, 33), (2, 82), 5).copy_(plain.detach()).requires_grad_()
    p.grad = plain.grad.T.contiguous().T
    optimizer = interpreted.Muon([p])
    interpreted.Muon([plain]).step()
    optimizer.step()
    assert torch.equal(p.detach(), plain.detach())
    assert int((memory == 7.0).sum()) == memory.numel() - p.numel()


@each_dtype
def test_whole_blocks_are_what_parts_are(dtype):
    """An address that is no multiple of 16 sends a matrix another way."""
    (whole,) = _parameters((64, 96), dtype=dtype)
    whole.grad.round_()  # whose squares are summed without rounding, in any order
    memory = torch.zeros(64 * 96 + 1, dtype=dtype)
    part = memory[1:].view(64, 96).copy_(whole.detach()).requires_grad_()
    part.grad = whole.grad.clone()
    for p in (whole, part):
        optimizer = interpreted.Muon([p], ns_steps=0, momentum=0.0)
        optimizer.step()
        ((portion, _),) = _orthogonalized(optimizer)
        assert portion._rows.words[0, muon.ALIGNED] == (p is whole)
    assert torch.equal(whole.detach(), part.detach())


def test_batches_and_portions_are_what_single_matrices_are(monkeypatch):
    ways = []
    for bound in (1 << 28, 2 * 2 * (2 * 40 * 33 + 2 * 33 * 33), 1):
        monkeypatch.setattr(muon, "WORKSPACE_BYTES", bound)
        params = _parameters(*[(40, 33)] * 5)
        optimizer = interpreted.Muon(params)
        optimizer.step()
        ways.append((params, [portion._count for portion, _ in optimizer._plans[0]._portions]))
    assert [counts for _, counts in ways] == [[5], [2, 2, 1], [1] * 5]
    for params in zip(*(params for params, _ in ways), strict=True):
        assert torch.equal(params[0], params[1])
        assert torch.equal(params[0], params[2])


def test_two_runs_are_the_same_to_the_last_bit():
    runs = []
    for _ in range(2):
        params = _parameters(*SHAPES[4:])
        optimizer = interpreted.Muon(params)
        for n in range(3):
            _give_gradients(params, n)
            optimizer.step()
        runs.append([p.detach().numpy().tobytes() for p in params])
    assert runs[0] == runs[1]


# --- Launches, tables, waits


def test_launches_are_four_for_a_shape_and_one_for_all(launches):
    params = _parameters(*[(40, 33)] * 9, *[(33, 40)] * 4)
    interpreted.Muon(
        [{"params": params[:6]}, {"params": params[6:], "lr": 0.1, "momentum": 0.5, "weight_decay": 0.0}]
    ).step()
    # 1320 elements are two programs of 1024; the norm is formed by one.
    assert [programs for _, programs in launches] == [1, 18, 9, 18, 18, 8, 4, 8, 8]


def test_tables_are_sent_when_something_moved_and_not_otherwise(monkeypatch):
    params = _parameters((8, 8), (8, 8))
    optimizer = interpreted.Muon(params)
    optimizer.step()
    sent = []
    monkeypatch.setattr(engine.Table, "send", lambda table: sent.append(table))  # noqa: PLW0108 - a function is bound
    (plan,) = optimizer._plans
    optimizer.step()
    assert (sent, optimizer._plans) == ([], [plan])
    params[1].grad = params[1].grad.clone()
    optimizer.step()
    assert len(sent) == 1
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    assert len(sent) == 2
    assert optimizer._plans == [plan]


@pytest.mark.parametrize("change", [{"ns_steps": 2}, {"nesterov": False}, {"ns_coefficients": CONVERGING}])
def test_options_that_change_the_kernels_are_noticed(change):
    ours, theirs = _parameters((8, 8)), _parameters((8, 8))
    optimizer = interpreted.Muon(ours)
    optimizer.step()
    optimizer.param_groups[0].update(change)
    optimizer.step()
    plain = interpreted.Muon(theirs)
    plain.step()
    plain.param_groups[0].update(change)
    plain._plans = None
    plain.step()
    assert torch.equal(ours[0], theirs[0])


@pytest.mark.parametrize("scaled", [False, True])
def test_nothing_in_a_step_waits_for_the_device(monkeypatch, launches, scaled):
    """As on a GPU, where to read a number is to wait; the interpreter itself does, so nothing is launched here."""
    optimizer = interpreted.Muon(_parameters((8, 8), (5, 9)), lr=torch.tensor(0.1), weight_decay=torch.tensor(0.5))
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.zeros(1)
    optimizer.step()

    def waits(*_, **__):
        raise AssertionError("a number was read from the device")

    for method in ("item", "cpu", "tolist", "numpy", "__bool__", "__float__", "__int__", "__index__"):
        monkeypatch.setattr(torch.Tensor, method, waits)
    optimizer.step()
    assert len(launches) == 2 * (1 + 4 * 2)


def test_a_tensor_learning_rate_is_read_where_it_is_when_the_step_runs():
    (p,), (q,) = _parameters((8, 8)), _parameters((8, 8))
    lr = torch.tensor(0.5)
    optimizer, plain = interpreted.Muon([p], lr=lr), interpreted.Muon([q], lr=0.5)
    for value in (0.5, 0.125):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = value
        optimizer.step()
        plain.step()
    assert torch.equal(p, q)


def test_a_graph_cannot_be_captured_before_the_tables_are_made(monkeypatch):
    optimizer = interpreted.Muon(_parameters((4, 4)))
    monkeypatch.setattr(runtime, "capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="step once with gradients of the same parameters before"):
        optimizer.step()


def test_tables_that_a_graph_has_recorded_are_kept_and_not_used_by_later_steps(monkeypatch):
    optimizer = interpreted.Muon(_parameters((4, 4)))
    optimizer.step()
    (plan,) = optimizer._plans
    monkeypatch.setattr(runtime, "capturing", lambda _: True)
    optimizer.step()
    assert optimizer._plans == [plan]
    monkeypatch.undo()
    optimizer.step()
    assert optimizer._plans != [plan]
    assert optimizer._recorded == (plan,)


# --- Scaled gradients, and what else kernels are given


@each_dtype
def test_a_step_that_is_skipped_on_the_device_changes_nothing(dtype):
    params = _parameters((40, 33), (3, 5), dtype=dtype)
    optimizer = interpreted.Muon(params)
    optimizer.step()
    before = copy.deepcopy(([p.detach() for p in params], [p.grad for p in params], optimizer.state_dict()))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.ones(1)
    optimizer.step()
    after = ([p.detach() for p in params], [p.grad for p in params], optimizer.state_dict())
    assert str(before) == str(after)
    assert all(map(torch.equal, before[1], after[1]))


@each_dtype
@pytest.mark.parametrize("negative", [False, True])
def test_gradients_are_unscaled_and_left_so(dtype, negative):
    ours, theirs = _parameters((40, 33), dtype=dtype), _parameters((40, 33), dtype=dtype)
    scaled = 4.0 * ours[0].grad
    ours[0].grad = torch._neg_view(-scaled) if negative else scaled
    optimizer = interpreted.Muon(ours)
    optimizer.grad_scale = torch.tensor([4.0])
    optimizer.step()
    interpreted.Muon(theirs).step()
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[0].grad, theirs[0].grad)


def test_a_buffer_that_kernels_cannot_read_goes_to_torch():
    (p,) = _parameters((4, 4))
    optimizer = interpreted.Muon([p])
    optimizer.step()
    assert optimizer.engine == (("triton", ""),)
    optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"].double()
    (served,) = optimizer.engine
    assert served.engine == "torch"
    assert "momentum_buffer in the state is (4, 4) of torch.float64" in served.reason


# --- Machine code


def test_a_kernel_compiles_without_a_gpu_and_spills_nothing(tmp_path):
    for source in (
        muon.average_source("float32", nesterov=True, unscales=True),
        muon.norm_source("float32", unscales=False),
        muon.normalize_source("float32"),
        muon.apply_source("bfloat16", unscales=False),
    ):
        usage = _usage(source, tmp_path)
        assert usage["REG"] <= 64
        assert usage["STACK"] == usage["LOCAL"] == 0


def _usage(source, folder):
    """Registers and bytes of memory of a thread, as the tool says that Triton brings along."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    (folder / "kernel.cubin").write_bytes(runtime.compiled(source, 90).asm["cubin"])
    out = subprocess.run(
        [tool, "-res-usage", folder / "kernel.cubin"], capture_output=True, text=True, check=True
    ).stdout
    return {name: int(number) for name, number in re.findall(r"(REG|STACK|LOCAL):(\d+)", out)}


def test_all_kernels_have_names_of_their_own():
    named = dict(muon.sources())
    assert len(named) == len(list(muon.sources())) == len(set(named.values()))
