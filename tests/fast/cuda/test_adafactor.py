"""Adafactor's kernels for CUDA, played by Triton's interpreter: what they compute, how often they are launched, what they wait for."""

import copy
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from stepcheck import fast
from stepcheck.fast import interpreted
from stepcheck.fast.cuda import adafactor_kernels, engine, runtime
from stepcheck.fast.cuda.adafactor import PASSES, sources
from stepcheck.fast.cuda.functions import specialized
from stepcheck.fast.cuda.runtime import Source

#: Vectors, small matrices and points, matrices of whole tiles and of torn ones, either way round, and batches of them.
SHAPES = [
    (), (1,), (1100,), (3, 4), (7, 1), (1, 1), (5, 1, 1), (150, 3, 3), (2, 70, 3, 3), (64, 256), (70, 130), (300, 1), (1, 300), (3, 20, 30),
]  # fmt: skip
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def _parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype)
    return made


def _stepped(cls, *shapes, dtype, steps=2, **options):
    parameters = _parameters(*shapes, dtype=dtype)
    optimizer = cls(parameters, **options)
    for k in range(steps):
        for p in parameters:
            p.grad = p.grad * 10.0**k
        optimizer.step()
    return parameters, optimizer


# --- What is computed


@pytest.mark.sampled(5)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_it_agrees_with_the_kernels_of_the_cpu_but_for_roundings(shape, dtype):
    options = {"lr": 0.3, "weight_decay": 0.1, "d": 1.5, "maximize": True}
    (mine,), own = _stepped(interpreted.Adafactor, shape, dtype=dtype, **options)
    (theirs,), other = _stepped(fast.Adafactor, shape, dtype=dtype, **options)
    # Each element of a sum passes through some 50 additions at most, in a thread, in a tree and from part to part; another 20 roundings are
    # those of scalars and elements. Two steps round what is stored twice.
    real = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
    bound = 2 * (70 * real + (torch.finfo(dtype).eps if dtype not in (torch.float64, torch.float32) else 0.0))
    largest = theirs.detach().double().abs().max()
    assert (mine - theirs).detach().double().abs().max() <= bound * (largest + 0.6)
    assert own.state[mine].keys() == other.state[theirs].keys()
    for key, value in other.state[theirs].items():
        found = own.state[mine][key]
        assert (found.shape, found.dtype, found.stride()) == (value.shape, value.dtype, value.stride())
        assert ((found - value).double().abs() <= bound * value.double().abs()).all()


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_step_done_again_gives_the_same_bits(dtype):
    for first, second in zip(
        *(_stepped(interpreted.Adafactor, *SHAPES, dtype=dtype, steps=1)[0] for _ in range(2)), strict=True
    ):
        assert torch.equal(first, second)


def test_what_else_is_stepped_changes_no_bit():
    together, _ = _stepped(interpreted.Adafactor, *SHAPES, dtype=torch.float32)
    for k, shape in enumerate(SHAPES[1::3], 1):
        parameters = _parameters(*SHAPES)
        alone = parameters[3 * k - 2]
        optimizer = interpreted.Adafactor([alone])
        for n in range(2):
            alone.grad = alone.grad * 10.0**n
            optimizer.step()
        assert torch.equal(alone, together[3 * k - 2]), shape


_VIEWS = {
    "transposed": lambda x: x.mT.contiguous().mT,
    "permuted": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
    "sliced": lambda x: torch.stack([x, x], -1).reshape(*x.shape[:-1], -1)[..., ::2],
    "shifted": lambda x: torch.cat([x.new_zeros(1), x.reshape(-1)])[1:].view(x.shape),
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", list(_VIEWS))
@pytest.mark.parametrize("shape", [(2, 66, 70), (3, 5, 7)])
def test_strides_do_not_matter_and_nothing_beside_is_written(name, shape):
    (plain,) = _parameters(shape, dtype=torch.float64)
    p = _VIEWS[name](plain.detach().clone()).requires_grad_()
    p.grad = _VIEWS[name](plain.grad)
    memory = torch.empty(0, dtype=torch.float64).set_(p.untyped_storage())
    own = torch.zeros_like(memory, dtype=torch.bool).as_strided(p.shape, p.stride(), p.storage_offset())
    own.fill_(True)
    beside = memory[~own._base].clone()
    for parameter in (plain, p):
        optimizer = interpreted.Adafactor([parameter])
        optimizer.step()
        optimizer.step()
    assert (p - plain).abs().max() <= 100 * torch.finfo(torch.float64).eps * plain.abs().max()
    assert torch.equal(memory[~own._base], beside)


def test_an_expanded_gradient_is_read_and_not_written():
    (p,), (q,) = _parameters((70, 130)), _parameters((70, 130))
    p.grad = torch.full((1, 1), 0.5).expand(70, 130)
    q.grad = p.grad.contiguous()
    for parameter in (p, q):
        interpreted.Adafactor([parameter]).step()
    assert torch.equal(p, q)
    assert (p.grad == 0.5).all()


def test_a_gradient_that_is_a_lazy_negative_is_read_as_what_it_is():
    (p,), (q,) = _parameters((70, 130)), _parameters((70, 130))
    p.grad = torch._neg_view(-p.grad)
    for parameter in (p, q):
        optimizer = interpreted.Adafactor([parameter])
        optimizer.step()
        optimizer.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_a_parameter_without_elements_is_counted(shape):
    parameters = _parameters(shape, (5,))
    optimizer = interpreted.Adafactor(parameters)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in parameters] == [1, 1]


@pytest.mark.parametrize("shape", [(3, 4), (70, 130)])
def test_rows_and_columns_beyond_the_format_stand_still(shape):
    """Of a product of the averages that float32 does not hold V is infinite, as ``torch.optim`` has it, and the rest goes on."""
    (p,) = _parameters(shape)
    p.grad[0].fill_(1e15)
    p.grad[:, 1:].mul_(1e-12)
    held = p.detach().clone()
    interpreted.Adafactor([p], d=1e3).step()
    assert p[0, 0] == held[0, 0]
    assert p[1:].isfinite().all()
    assert (p[1:, 1:] != held[1:, 1:]).any()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (64, 128), (70, 130)])
def test_what_is_not_finite_spoils_what_it_spoils_on_the_cpu(value, shape):
    found = []
    for cls in (interpreted.Adafactor, fast.Adafactor):
        (p,) = _parameters(shape)
        p.grad.view(-1)[1] = value
        cls([p]).step()
        found.append(p.detach())
    assert torch.equal(found[0].isnan(), found[1].isnan())
    finite = found[1].isfinite()
    assert ((found[0] - found[1])[finite].abs() <= 70 * torch.finfo(torch.float32).eps * found[1][finite].abs()).all()


@pytest.mark.parametrize(("shape", "eps"), [((70, 130), None), ((3, 4), 0.0), ((5,), 0.0)])
def test_what_lies_beyond_the_edge_of_a_tile_or_a_run_does_not_count(shape, eps):
    found = []
    for cls in (interpreted.Adafactor, fast.Adafactor):
        (p,) = _parameters(shape)
        if eps is None:
            p.grad[1] = 0.0  # its factor is infinite
        optimizer = cls([p], eps=(eps, 1e-3), d=1.0, lr=0.5)
        optimizer.step()
        p.grad.mul_(100.0)  # an update that is clipped
        optimizer.step()
        found.append(p.detach())
    assert ((found[0] - found[1]).abs() <= 150 * torch.finfo(torch.float32).eps * (found[1].abs() + 1.0)).all()


@pytest.mark.parametrize("shape", [(5,), (3, 4), (70, 130)])
def test_a_parameter_that_is_zero_moves_by_eps(shape):
    (p,) = _parameters(shape, dtype=torch.float64)
    p.detach().zero_()
    interpreted.Adafactor([p], eps=(None, 0.25), lr=0.5).step()
    assert abs(p.detach().square().mean().sqrt().item() - 0.125) <= 1e-12


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", DTYPES)
def test_eps_none_is_the_machine_epsilon_of_each_dtype(dtype):
    epsilon = torch.finfo(dtype).eps
    for shape in ((5,), (3, 4), (70, 130)):
        (p,), (q,) = (_parameters(shape, dtype=dtype) for _ in range(2))
        for parameter, eps in ((p, None), (q, epsilon)):
            parameter.grad.mul_(epsilon)
            interpreted.Adafactor([parameter], eps=(eps, 1e-3)).step()
        assert torch.equal(p, q)


def test_the_quotient_of_roots_is_rounded_once():
    text = """
def kernel(x, y, out):
    i = tl.program_id(0) * 128 + tl.arange(0, 128)
    tl.store(out + i, root_of_quotient(tl.load(x + i), tl.load(y + i)))
"""
    root = specialized(adafactor_kernels, "root_of_quotient", {})
    source = Source(root + text, tuple((name, "*fp32") for name in ("x", "y", "out")))
    generator = np.random.default_rng(0)
    bits = generator.integers(1, 0x7F800000, (2, 128 * 80), dtype=np.int32)
    x, y = bits.view(np.float32)
    out = torch.empty(x.size)
    runtime.launch(source, torch.device("cpu"), 80, (torch.from_numpy(x), torch.from_numpy(y), out))
    exact = np.sqrt(x.astype(np.float64)) / np.sqrt(y.astype(np.float64))
    inside = (exact >= np.finfo(np.float32).tiny) & (exact <= np.finfo(np.float32).max)
    assert inside.mean() > 0.9
    error = np.abs(out.numpy()[inside] - exact[inside]) / np.spacing(exact[inside].astype(np.float32))
    assert error.max() <= 0.5 + 2.0**-20
    specials = torch.tensor([0.0, 1.0, torch.inf, torch.nan]).repeat(32)
    others, out = specials.reshape(32, 4).T.reshape(-1).contiguous(), torch.empty(128)
    runtime.launch(source, torch.device("cpu"), 1, (specials, others, out))
    assert torch.equal(out.isnan(), (specials.sqrt() / others.sqrt()).isnan())
    assert torch.equal(out.nan_to_num(nan=7.0), (specials.sqrt() / others.sqrt()).nan_to_num(nan=7.0))


# --- Scaled gradients


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_are_unscaled_and_left_so(dtype):
    scaled, plain = _parameters(*SHAPES, dtype=dtype), _parameters(*SHAPES, dtype=dtype)
    for p in scaled:
        p.grad.mul_(4.0)
    optimizer = interpreted.Adafactor(scaled)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.zeros(1)
    optimizer.step()
    interpreted.Adafactor(plain).step()
    for p, q in zip(scaled, plain, strict=True):
        assert torch.equal(p, q)
        assert torch.equal(p.grad, q.grad)


def test_a_step_that_is_skipped_on_the_device_changes_nothing():
    parameters = _parameters(*SHAPES)
    optimizer = interpreted.Adafactor(parameters)
    optimizer.step()
    before = copy.deepcopy(([p.detach() for p in parameters], [p.grad for p in parameters], optimizer.state_dict()))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.ones(1)
    optimizer.step()
    after = ([p.detach() for p in parameters], [p.grad for p in parameters], optimizer.state_dict())
    assert str(before) == str(after)


# --- Launches, tables, and what is asked of the device


@pytest.mark.parametrize("count", [1, 7])
def test_the_launches_are_as_many_however_many_tensors(count, launches):
    def names():
        known = {source: name.split()[0] for name, source in sources()}
        launches.clear()
        optimizer.step()
        return [known[source] for source, _ in launches]

    tiles, small, vectors = [(70, 130)] * count, [(9, 3, 3)] * count, [(40,)] * count
    optimizer = interpreted.Adafactor(_parameters(*tiles, *small, *vectors))
    of_matrices = [name for name in PASSES if not name.startswith("vector")]
    names()
    assert names() == ["prepare", *of_matrices, "vector_squares", "rates", "vector_move"]
    optimizer = interpreted.Adafactor(_parameters(*tiles, dtype=torch.bfloat16))
    names()
    assert names() == ["prepare", "tile_sums", "averages", "factors", "tile_squares", "rates", "tile_move"]


def test_tables_are_sent_again_only_when_something_in_them_changed(launches, monkeypatch):
    parameters = _parameters((70, 130), (8,))
    optimizer = interpreted.Adafactor(parameters)
    optimizer.step()
    plans, sent = optimizer._plans, []

    def send(table):
        sent.append(table)

    monkeypatch.setattr(engine.Table, "send", send)
    optimizer.step()
    assert not sent
    assert optimizer._plans is plans
    parameters[0].grad = parameters[0].grad.clone()
    optimizer.step()
    assert len(sent) == 1, "the rows, with another address"
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert len(sent) == 2, "the options"
    optimizer.state[parameters[0]]["row_var"] = optimizer.state[parameters[0]]["row_var"].clone()
    optimizer.step()
    assert optimizer._plans is not plans


def test_a_gradient_may_come_to_lie_where_no_sixteen_bytes_start():
    (p,), (q,) = _parameters((64, 128)), _parameters((64, 128))
    optimizers = [interpreted.Adafactor([x]) for x in (p, q)]
    for optimizer in optimizers:
        optimizer.step()
    p.grad = torch.cat([torch.zeros(1), p.grad.reshape(-1)])[1:].view(64, 128)
    for optimizer in optimizers:
        optimizer.step()
    assert (p - q).abs().max() <= 70 * torch.finfo(torch.float32).eps * q.abs().max()


class _WaitedError(Exception):
    """A number was asked of a device."""


def test_a_step_asks_no_number_of_the_device(monkeypatch):
    parameters = _parameters((70, 130), (3, 4), (40,))
    optimizer = interpreted.Adafactor(parameters, lr=torch.tensor(0.01))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([2.0]), torch.zeros(1)
    optimizer.step()
    methods = ("item", "__bool__", "__float__", "__int__", "tolist", "cpu", "numpy")
    originals = {m: getattr(torch.Tensor, m) for m in methods}
    real = runtime.launch

    def waits(*_, **__):
        raise _WaitedError

    def launched(*arguments):
        with monkeypatch.context() as m:
            for method, original in originals.items():
                m.setattr(torch.Tensor, method, original)
            real(*arguments)

    monkeypatch.setattr(runtime, "launch", launched)
    for method in methods:
        monkeypatch.setattr(torch.Tensor, method, waits)
    optimizer.step()


def test_each_group_has_its_own_options_and_a_tensor_learning_rate_is_read_when_the_step_runs():
    (p, q), (a, b) = _parameters((8, 20), (70, 130)), _parameters((8, 20), (70, 130))
    lr = torch.tensor(0.5)
    mine = interpreted.Adafactor([{"params": [p]}, {"params": [q], "lr": lr, "d": 2.0}])
    theirs = interpreted.Adafactor([{"params": [a]}, {"params": [b], "lr": 0.5, "d": 2.0}])
    for value in (0.5, 0.0):
        lr.fill_(value)
        theirs.param_groups[1]["lr"] = value
        mine.step()
        theirs.step()
    assert torch.equal(p, a)
    assert torch.equal(q, b)


def test_a_graph_cannot_be_captured_before_the_tables_are_made(monkeypatch):
    optimizer = interpreted.Adafactor(_parameters(5))
    monkeypatch.setattr(engine.runtime, "capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="step once with gradients of the same parameters before"):
        optimizer.step()


def test_it_says_who_steps():
    shared = torch.zeros(1, 3).expand(4, 3).requires_grad_()
    optimizer = interpreted.Adafactor([{"params": _parameters((3, 3))}, {"params": [shared]}])
    assert optimizer.engine == (("triton", ""), ("torch", "elements of a parameter share memory"))


# --- What is compiled


def _resources(cubin, path):
    import triton

    path.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    told = subprocess.run([os.fspath(tool), "-res-usage", path], capture_output=True, text=True, check=True).stdout
    return [dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", line)) for line in told.splitlines() if "REG:" in line]


@pytest.mark.sampled(2)
@pytest.mark.parametrize("dtype", ["float32", "float16", "float64", "bfloat16"])
def test_nothing_spills_whole_tiles_are_accessed_by_sixteen_bytes_and_float64_is_for_float64(dtype, tmp_path):
    wide = {"float64": "v2.b64"}.get(dtype, "v4.b32")
    for name, kernel in sources():
        if name.split()[1:] != [dtype]:
            continue
        made = runtime.compiled(kernel, 90)
        ptx = made.asm["ptx"]
        for used in _resources(made.asm["cubin"], tmp_path / "kernel.cubin"):
            assert (used["STACK"], used["LOCAL"]) == ("0", "0"), name
            assert int(used["REG"]) <= 64, name
        assert dtype == "float64" or "f64" not in ptx, name
        assert not re.search(r"\.ftz|\.approx", ptx), name
        if name.startswith(("tile", "vector")):
            moves = PASSES[name.split()[0]]
            assert len(re.findall(rf"ld\.global[\w.:]*\.{wide}", ptx)) >= len(moves.reads), name
            assert len(re.findall(rf"st\.global[\w.:]*\.{wide}", ptx)) >= len(moves.writes), name
