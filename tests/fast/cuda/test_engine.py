"""The kernels for CUDA, played by Triton's interpreter: what they compute, how often they are launched, and what they wait for."""

import copy

import numpy as np
import pytest
import torch

from stepcheck import fast
from stepcheck.fast import interpreted, rules
from stepcheck.fast.cuda import engine, kernels, runtime
from stepcheck.fast.kernels import Layout

ELEMENTWISE = [name for name in fast.RULES if name != "SparseAdam"]
OPTIONS = {
    "SGD": {"momentum": 0.9, "dampening": 0.1},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}


def _parameters(*shapes, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, dtype=dtype, generator=generator).requires_grad_() for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, dtype=dtype, generator=generator)
    return made


def _bits(tensors):
    return [t.detach().contiguous().view(torch.uint8).tolist() if t.dim() else t.item() for t in tensors]


# --- What is computed


_NUMPY = {
    "sqrt": np.sqrt,
    "absolute": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "rounded": lambda x: np.float64(np.float32(x)),
}


def _as_written(rule, group, p, g, buffers, *, fresh):
    """The rule by NumPy: scalars in float64, elements in float32, each operation rounded, none contracted."""
    options = [float(fresh) if o == "fresh" else np.float64(rules.option(group, o)) for o in rule.options]
    counters = [initial(group) for initial in rule.counters.values()]
    with np.errstate(all="ignore"):
        made = rule.prepare(*map(np.float64, counters), *options)[len(counters) :]
        one, out = np.float32, []
        for index in range(p.size):
            there = [one(b[index]) for b in buffers]
            out.append(rule.update(one(p[index]), one(g[index]), *there, *map(one, made)))
    return np.array([np.float32(row[0]) for row in out])


@pytest.mark.parametrize("name", ["SGD", "ASGD", "Adadelta", "Adagrad", "Adam", "AdamW", "RMSprop", "RAdam"])
def test_a_step_is_the_rule_with_each_operation_rounded_and_none_contracted(name, monkeypatch):
    for function, stand_in in _NUMPY.items():
        monkeypatch.setattr(rules, function, stand_in)
    (p,) = _parameters(37)
    optimizer = getattr(interpreted, name)([p], **OPTIONS.get(name, {}))
    rule, group = optimizer.rule, optimizer.param_groups[0]
    buffers = [np.full(37, b.initial(group), np.float32) for b in rule.buffers.values()]
    expected = _as_written(rule, group, p.detach().numpy().copy(), p.grad.numpy().copy(), buffers, fresh=True)
    optimizer.step()
    assert p.detach().numpy().tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64])
@pytest.mark.parametrize("n", [0, 1, 127, 128, 129, 511, 512, 513, 1024, 1025, 2050])
def test_whole_blocks_and_tails_are_stepped_alike(dtype, n):
    (whole,) = _parameters(4096, dtype=dtype)
    (part,) = (p for p in [whole.detach()[:n].clone().requires_grad_()])
    part.grad = whole.grad[:n].clone()
    interpreted.Adam([whole]).step()
    interpreted.Adam([part]).step()
    assert torch.equal(whole.detach()[:n], part.detach())


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
def test_what_does_not_start_at_sixteen_bytes_is_stepped_alike_and_nothing_beside_it(offset):
    (plain,) = _parameters(600)
    memory, of_gradient = torch.full((700,), 7.0), torch.full((700,), 7.0)
    memory[offset : offset + 600], of_gradient[offset : offset + 600] = plain.detach(), plain.grad
    shifted = memory[offset : offset + 600].requires_grad_()
    shifted.grad = of_gradient[offset : offset + 600]
    interpreted.AdamW([plain]).step()
    interpreted.AdamW([shifted]).step()
    assert torch.equal(plain, shifted)
    assert set(memory[:offset].tolist() + memory[offset + 600 :].tolist()) == {7.0}


def _layouts():
    base = torch.arange(2 * 3 * 4 * 5 * 6, dtype=torch.float32)
    yield "transposed", base[:30].view(5, 6).t()
    yield "sliced", base.view(2, 3, 4, 5, 6)[:, ::2, 1:, ::3, ::2]
    yield "permuted", base.view(2, 3, 4, 5, 6).permute(3, 0, 4, 2, 1)
    yield "channels last", base.view(6, 5, 4, 6).to(memory_format=torch.channels_last)
    yield "a number", base[3]


@pytest.mark.parametrize(("name", "strided"), list(_layouts()))
def test_strides_change_nothing(name, strided):
    plain = strided.clone(memory_format=torch.contiguous_format).requires_grad_()
    memory = strided.untyped_storage().nbytes()
    p = strided.clone(memory_format=torch.preserve_format).detach()
    p = torch.empty(memory // 4).as_strided(strided.shape, strided.stride(), strided.storage_offset()).copy_(strided)
    p.requires_grad_()
    gradient = torch.linspace(-1, 1, plain.numel()).view(plain.shape)
    plain.grad, p.grad = gradient, gradient.clone()
    for parameter in (plain, p):
        optimizer = interpreted.NAdam([parameter])
        optimizer.step()
        optimizer.step()
    assert torch.equal(plain, p), name


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_float64_agrees_with_the_kernels_of_the_cpu_to_a_few_roundings(name):
    mine, theirs = (_parameters((3, 5), 300, (), dtype=torch.float64) for _ in range(2))
    for cls, parameters in ((getattr(interpreted, name), mine), (getattr(fast, name), theirs)):
        optimizer = cls(parameters, **OPTIONS.get(name, {}))
        for _ in range(3):
            optimizer.step()
    for a, b in zip(mine, theirs, strict=True):
        # Products and sums are contracted there; what that changes is a few units in the last place of what is added up.
        assert (a - b).abs().max() <= 64 * torch.finfo(torch.float64).eps * max(1.0, b.abs().max())


def test_sparse_gradients_of_several_sparse_dimensions_step_what_they_name():
    dense = torch.zeros(4, 3, 2)
    dense[1, 2], dense[3, 0] = 1.0, -2.0
    mine, theirs = (torch.ones(4, 3, 2).requires_grad_() for _ in range(2))
    for cls, p in ((interpreted.SparseAdam, mine), (fast.SparseAdam, theirs)):
        optimizer = cls([p])
        for _ in range(2):
            p.grad = dense.to_sparse(2)
            optimizer.step()
        assert optimizer.state[p]["step"] == 2
    # Products and sums are contracted there: a few units in the last place.
    assert (mine - theirs).abs().max() <= 8 * torch.finfo(torch.float32).eps
    assert torch.equal(mine == 1, dense == 0)


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_state_goes_on_with_the_kernels_of_the_cpu_and_back(name):
    options = OPTIONS.get(name, {})
    parameters, others = (_parameters((3, 5), 300, dtype=torch.float64) for _ in range(2))
    first, second, third = (
        getattr(interpreted, name)(parameters, **options),
        getattr(fast, name)(parameters, **options),
        getattr(interpreted, name)(parameters, **options),
    )
    first.step()
    second.load_state_dict(first.state_dict())
    second.step()
    third.load_state_dict(second.state_dict())
    third.step()
    whole = getattr(fast, name)(others, **options)
    for _ in range(3):
        whole.step()
    for a, b in zip(parameters, others, strict=True):
        assert (a - b).abs().max() <= 64 * torch.finfo(torch.float64).eps * max(1.0, b.abs().max())


def test_the_default_dtype_is_nobody_s_business():
    (p,), (q,) = _parameters(5), _parameters(5)
    interpreted.SGD([p]).step()
    torch.set_default_dtype(torch.float64)
    try:
        interpreted.SGD([q]).step()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(p, q)


# --- Launches and tables


@pytest.mark.parametrize("count", [1, 10, 300])
def test_a_step_is_one_launch_to_prepare_and_one_for_each_dtype_however_many_tensors(count, launches):
    parameters = _parameters(*[(7,)] * count) + _parameters(*[(7,)] * count, dtype=torch.bfloat16)
    optimizer = interpreted.AdamW([{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.5}])
    for _ in range(2):
        launches.clear()
        optimizer.step()
        assert [programs for _, programs in launches] == [-(-2 * count // kernels.ROWS), count, count]


def test_tables_are_sent_again_only_when_something_in_them_changed(launches, monkeypatch):
    parameters = _parameters((7,), (8,))
    optimizer = interpreted.AdamW(parameters)
    optimizer.step()
    sent = []

    def send(table):
        sent.append(table)

    monkeypatch.setattr(engine.Table, "send", send)
    optimizer.step()
    assert not sent
    parameters[0].grad = parameters[0].grad.clone()
    optimizer.step()
    assert len(sent) == 1, "the rows, with another address"
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert len(sent) == 2, "the options"


class _WaitedError(Exception):
    """A number was asked of a device."""


@pytest.mark.parametrize("name", [*ELEMENTWISE, "SparseAdam"])
def test_a_step_asks_no_number_of_the_device(name, monkeypatch):
    parameters = _parameters((3, 5), 700)
    optimizer = getattr(interpreted, name)(parameters, lr=torch.tensor(0.01), **OPTIONS.get(name, {}))
    if name == "SparseAdam":
        for p in parameters:
            p.grad = p.grad.to_sparse(1).coalesce()
    scaling = name != "SparseAdam"  # torch coalesces and counts the entries of sparse gradients by itself
    if scaling:
        optimizer.grad_scale, optimizer.found_inf = torch.tensor([2.0]), torch.zeros(1)
    optimizer.step()

    def waits(*_, **__):
        raise _WaitedError

    real = runtime.launch

    def launched(*arguments):
        with monkeypatch.context() as m:
            for method in ("item", "__bool__", "__float__", "__int__", "tolist"):
                m.setattr(torch.Tensor, method, originals[method])
            real(*arguments)

    originals = {m: getattr(torch.Tensor, m) for m in ("item", "__bool__", "__float__", "__int__", "tolist")}
    monkeypatch.setattr(runtime, "launch", launched)
    for method in originals:
        monkeypatch.setattr(torch.Tensor, method, waits)
    optimizer.step()


# --- Scaled gradients


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_a_step_that_is_skipped_on_the_device_changes_nothing(name):
    parameters = _parameters((3, 5), 600)
    optimizer = getattr(interpreted, name)(parameters, **OPTIONS.get(name, {}))
    optimizer.step()
    before = copy.deepcopy(([p.detach() for p in parameters], [p.grad for p in parameters], optimizer.state_dict()))
    optimizer.grad_scale, optimizer.found_inf = torch.tensor([4.0]), torch.ones(1)
    optimizer.step()
    after = ([p.detach() for p in parameters], [p.grad for p in parameters], optimizer.state_dict())
    assert str(before) == str(after)


def test_a_first_step_that_is_skipped_leaves_no_momentum_buffer_and_the_next_is_the_first():
    (p, q) = (_parameters(9)[0] for _ in range(2))
    mine, plain = (interpreted.SGD([x], momentum=0.9, dampening=0.5) for x in (p, q))
    mine.found_inf = torch.ones(1)
    mine.step()
    assert not mine.state[p]
    mine.found_inf = torch.zeros(1)
    for optimizer in (mine, plain):
        optimizer.step()
        optimizer.step()
    assert torch.equal(mine.state[p]["momentum_buffer"], plain.state[q]["momentum_buffer"])


def test_gradients_are_unscaled_and_left_so():
    (p,), (q,) = _parameters(600), _parameters(600)
    p.grad.mul_(4.0)
    optimizer = interpreted.Adagrad([p])
    optimizer.grad_scale = torch.tensor([4.0])
    optimizer.step()
    interpreted.Adagrad([q]).step()
    assert torch.equal(p, q)
    assert torch.equal(p.grad, q.grad)


def test_a_lazily_conjugated_gradient_of_a_number_is_unscaled():
    p, q = (torch.tensor(1.0 + 2.0j).requires_grad_() for _ in range(2))
    p.grad, q.grad = torch.tensor(2.0 - 4.0j).conj(), torch.tensor(0.5 + 1.0j)
    optimizer = interpreted.Adam([p])
    optimizer.grad_scale = torch.tensor([4.0])
    optimizer.step()
    interpreted.Adam([q]).step()
    assert torch.equal(p, q)
    assert torch.equal(p.grad.resolve_conj(), q.grad)


# --- Options, graphs, and what is told


def test_a_tensor_learning_rate_is_read_where_it_is_when_the_step_runs():
    (p,), (q,) = _parameters(5), _parameters(5)
    lr = torch.tensor(0.5)
    optimizer, plain = interpreted.AdamW([p], lr=lr), interpreted.AdamW([q], lr=0.5)
    for value in (0.5, 0.125):
        lr.fill_(value)
        plain.param_groups[0]["lr"] = value
        optimizer.step()
        plain.step()
    assert torch.equal(p, q)


def test_a_graph_cannot_be_captured_before_the_tables_are_made(monkeypatch):
    (p,) = _parameters(5)
    optimizer = interpreted.AdamW([p])
    monkeypatch.setattr(engine.runtime, "capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="step once with gradients of the same parameters before"):
        optimizer.step()


def test_tables_that_a_graph_copies_from_are_not_used_by_later_steps(monkeypatch):
    (p,) = _parameters(5)
    optimizer = interpreted.AdamW([p])
    optimizer.step()
    (plan,) = optimizer._plans
    monkeypatch.setattr(engine.runtime, "capturing", lambda _: True)
    optimizer.step()
    assert optimizer._plans == [plan]
    monkeypatch.undo()
    optimizer.step()
    assert optimizer._plans != [plan]
    # The graph goes on reading them.
    assert optimizer._recorded == (plan,)


def test_a_graph_records_its_tables_once(monkeypatch):
    table = engine.Table(np.zeros((1, 2), np.int64), torch.device("cpu"))
    table._kept = torch.zeros(1, 2, dtype=torch.int64)  # as on a device
    monkeypatch.setattr(engine.runtime, "capturing", lambda _: True)
    table.words[:] = 7
    table.send()
    assert table.there.tolist() == table._kept.tolist() == [[7, 7]]
    with pytest.raises(RuntimeError, match="step once between two captures"):
        table.send()


def test_gradients_that_are_described_anew_in_each_step_are_not_recorded(monkeypatch):
    (p,) = _parameters(5, dtype=torch.complex64)
    p.grad = p.grad.conj()
    optimizer = interpreted.Adam([p])
    optimizer.step()
    optimizer.step()  # the first made the state
    monkeypatch.setattr(engine.runtime, "capturing", lambda _: True)
    with pytest.raises(RuntimeError, match="make them dense and plain before"):
        optimizer.step()


def test_it_says_who_steps(monkeypatch):
    optimizer = interpreted.AdamW(_parameters(5))
    assert optimizer.engine == (("triton", ""),)
    monkeypatch.setattr("stepcheck.fast.cuda.runtime._installed", lambda: False)
    (served,) = optimizer.engine
    assert served == ("torch", "a parameter is on cpu: triton is not installed")


def test_every_variant_of_a_kernel_compiles_without_a_gpu():
    layout = Layout(rules.SGD, "bfloat16", ("momentum_buffer",))
    for source in (
        kernels.dense_source(layout),
        kernels.scattered_source(layout),
        kernels.prepare_source(rules.SGD, unscales=True),
    ):
        assert runtime.compiled(source, 90).asm["cubin"]
