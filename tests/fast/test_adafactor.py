"""The fast Adafactor: what it computes, of which tensors, and what it leaves alone."""

import copy

import pytest
import torch

from stepcheck.fast import Adafactor
from stepcheck.fast import adafactor as module

SHAPES = [
    (), (1,), (5,), (40_000,), (3, 4), (1, 7), (7, 1), (1, 1), (5, 1, 1), (2, 3, 3, 3), (200, 201), (300, 1), (600, 20, 3),
    (30_000, 3), (3, 30_000), (2, 300, 200), (1, 40_000), (200, 200, 1, 1),
]  # fmt: skip


def parameter(shape, dtype=torch.float32, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    p = torch.nn.Parameter((scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype))
    p.grad = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return p


def first_step(p, g, *, lr=1e-2, eps=(None, 1e-3), d=1.0, weight_decay=0.0, maximize=False):
    """The formula, for the first step of a parameter, in float64."""
    eps1 = torch.finfo(p.dtype).eps if eps[0] is None else eps[0]
    p, g = p.detach().double(), g.double()
    g = -g if maximize else g
    square = g * g
    if p.dim() > 1:
        row, col = square.mean(-1, keepdim=True), square.mean(-2, keepdim=True)
        v = row * col / row.mean(-2, keepdim=True).clamp(min=eps1)
    else:
        v = square
    u = g / v.clamp(min=eps1**2).sqrt()
    alpha = max(eps[1], p.square().mean().sqrt().item()) * min(lr, 1.0)
    clip = max(1.0, u.square().mean().sqrt().item() / d)
    return p * (1 - lr * weight_decay), alpha / clip * u


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_it_computes_the_formula(shape, dtype):
    options = {"lr": 0.3, "weight_decay": 0.1, "d": 1.5, "maximize": True}
    p = parameter(shape, dtype)
    decayed, update = first_step(p, p.grad, **options)
    Adafactor([p], **options).step()
    # Roundings of what is computed with, 16 in the update (sums are of float64, and cost float64 as many as they have terms); the
    # product, the difference, and in a narrow dtype what is stored.
    u = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
    terms = max(shape, default=1) if dtype is torch.float64 else 1
    bound = (16 + terms) * u * update.abs() + 4 * u * decayed.abs()
    bound += torch.finfo(dtype).eps * (decayed.abs() + update.abs()) + torch.finfo(dtype).smallest_normal
    assert ((p.detach().double() - (decayed - update)).abs() <= bound).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_ten_steps_are_those_of_torch_in_float64(shape):
    mine, theirs = parameter(shape, torch.float64), parameter(shape, torch.float64)
    fast = Adafactor([mine], weight_decay=0.1, lr=0.3)
    slow = torch.optim.Adafactor([theirs], weight_decay=0.1, lr=0.3)
    for k in range(10):
        mine.grad = theirs.grad = parameter(shape, torch.float64, seed=k).grad * 10.0 ** (k % 3)
        fast.step()
        slow.step()
    # Ten steps of a few hundred roundings each at most.
    assert (mine - theirs).abs().max() <= 1e-12 * theirs.abs().max()
    assert fast.state[mine].keys() == slow.state[theirs].keys()
    for key, value in slow.state[theirs].items():
        own = fast.state[mine][key]
        assert (own.shape, own.dtype) == (value.shape, value.dtype)
        assert ((own - value).abs() <= 1e-12 * value).all()


def test_strides_do_not_matter():
    plain = parameter((40, 60, 90), torch.float64)
    gradient = plain.grad
    views = {
        "transposed": lambda x: x.mT.contiguous().mT,
        "permuted": lambda x: x.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "sliced": lambda x: torch.stack([x, x], -1).reshape(40, 60, 180)[..., ::2],
    }
    expected = plain.detach().clone()
    Adafactor([plain]).step()
    for name, view in views.items():
        p = torch.nn.Parameter(view(expected))
        p.grad = view(gradient)
        Adafactor([p]).step()
        assert (p - plain).abs().max() <= 1e-13, name


def test_an_expanded_gradient_is_read_and_not_written():
    p, q = parameter((300, 200)), parameter((300, 200))
    p.grad = torch.full((1, 1), 0.5).expand(300, 200)
    q.grad = p.grad.contiguous()
    Adafactor([p]).step()
    Adafactor([q]).step()
    assert p.grad.stride() == (0, 0)
    assert (p.grad == 0.5).all()
    assert (p - q).abs().max() <= 4 * torch.finfo(torch.float32).eps * q.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_number_of_threads_does_not_matter(dtype):
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            parameters = [
                parameter(s, dtype) for s in ((900, 800), (300_000,), (90, 90, 3, 3), (500, 300, 1, 1), (64,))
            ]
            optimizer = Adafactor(parameters)
            for _ in range(3):
                optimizer.step()
            results.append(parameters)
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], others, strict=True))


def test_a_state_moves_between_torch_and_this_class():
    for first, second in ((Adafactor, torch.optim.Adafactor), (torch.optim.Adafactor, Adafactor)):
        p, q = parameter((30, 20), torch.float64), parameter((30, 20), torch.float64)
        whole, start = torch.optim.Adafactor([p]), first([q])
        whole.step()
        start.step()
        goes_on = second([q])
        goes_on.load_state_dict(copy.deepcopy(start.state_dict()))
        whole.step()
        goes_on.step()
        assert goes_on.state[q]["step"] == 2
        assert (p - q).abs().max() <= 1e-14


def test_each_group_has_its_own_options_and_they_may_change():
    p, q = parameter((20, 30), torch.float64), parameter((20, 30), torch.float64)
    optimizer = Adafactor([{"params": [p]}, {"params": [q], "lr": torch.tensor(0.5), "maximize": True}])
    expected = [first_step(p, p.grad), first_step(q, q.grad, lr=0.5, maximize=True)]
    optimizer.step()
    for x, (decayed, update) in zip((p, q), expected, strict=True):
        assert (x - (decayed - update)).abs().max() <= 1e-14
    held = q.detach().clone()
    optimizer.param_groups[1]["lr"].fill_(0.0)
    optimizer.step()
    assert torch.equal(q, held)


def test_eps_none_is_the_machine_epsilon_of_each_dtype():
    narrow, wide = parameter((4,), torch.bfloat16), parameter((4,), torch.float32)
    for p in (narrow, wide):
        p.grad.fill_(1e-5)  # below the one epsilon, above the other
    expected = [first_step(p, p.grad, d=1.0) for p in (narrow, wide)]
    Adafactor([narrow, wide]).step()
    for p, (decayed, update) in zip((narrow, wide), expected, strict=True):
        bound = 2 * torch.finfo(p.dtype).eps * decayed.abs()
        assert ((p.double() - (decayed - update)).abs() <= bound).all()


def test_an_eps_whose_square_float16_does_not_hold_is_taken():
    p = parameter((4, 4), torch.float16)
    decayed, update = first_step(p, p.grad, eps=(300.0, 1e-3))
    Adafactor([p], eps=(300.0, 1e-3)).step()
    assert ((p.double() - (decayed - update)).abs() <= 2**-10 * (decayed.abs() + update.abs())).all()


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 3)])
def test_a_parameter_without_elements_is_counted(shape):
    p = parameter(shape)
    optimizer = Adafactor([p])
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


def test_parameters_begin_when_they_have_gradients():
    early, late = parameter((8, 8)), parameter((8, 8))
    late.grad, held = None, late.detach().clone()
    optimizer = Adafactor([early, late])
    optimizer.step()
    assert torch.equal(late, held)
    assert late not in optimizer.state
    late.grad = torch.ones(8, 8)
    optimizer.step()
    assert [optimizer.state[p]["step"].item() for p in (early, late)] == [2, 1]


@pytest.mark.parametrize("bad", ["sparse", "complex"])
def test_a_gradient_that_is_refused_leaves_all_as_it_was(bad):
    good = parameter((8, 8))
    other = parameter((8, 8), torch.complex64 if bad == "complex" else torch.float32)
    if bad == "sparse":
        other.grad = torch.eye(8).to_sparse()
    held, optimizer = good.detach().clone(), Adafactor([good, other])
    with pytest.raises(RuntimeError, match=f"Adafactor does not support {bad}"):
        optimizer.step()
    assert torch.equal(good, held)
    assert not optimizer.state


def test_scaled_gradients_are_unscaled_and_left_so():
    p, q = parameter((30, 20)), parameter((30, 20))
    p.grad.mul_(1024.0)
    scaled, plain = Adafactor([p]), Adafactor([q])
    scaled.grad_scale, scaled.found_inf = torch.tensor(1024.0), torch.tensor(0.0)
    scaled.step()
    plain.step()
    assert torch.equal(p.grad, q.grad)
    assert torch.equal(p, q)


def test_rows_and_columns_beyond_the_format_stand_still():
    """Of a product of the averages that float32 does not hold V is infinite, as ``torch.optim`` has it, and the rest goes on."""
    p = parameter((3, 4))
    p.grad[0].fill_(1e15)
    p.grad[:, 1:].mul_(1e-12)
    held = p.detach().clone()
    Adafactor([p], d=1e3).step()
    assert p[0, 0] == held[0, 0]
    assert p[1:].isfinite().all()
    assert (p[1:, 1:] != held[1:, 1:]).any()


def test_nothing_is_made_anew_while_nothing_changes():
    parameters = [parameter(s) for s in ((300, 200), (64,), (9, 9, 3, 3))]
    optimizer = Adafactor(parameters)
    optimizer.step()
    (plan,) = optimizer._plans
    buffers = [v.data_ptr() for p in parameters for v in optimizer.state[p].values()]
    scratch = [launch._slots.ctypes.data for launch, _ in plan._launches]
    for p in parameters:
        p.grad = p.grad.clone()
    optimizer.step()
    assert optimizer._plans[0] is plan
    assert buffers == [v.data_ptr() for p in parameters for v in optimizer.state[p].values()]
    assert scratch == [launch._slots.ctypes.data for launch, _ in plan._launches]
    optimizer.state[parameters[0]]["row_var"] = optimizer.state[parameters[0]]["row_var"].clone()
    optimizer.step()
    assert optimizer._plans[0] is not plan


def test_who_serves_what_is_said():
    shared = torch.zeros(1, 3).expand(4, 3).requires_grad_()
    optimizer = Adafactor([{"params": [parameter((3, 3))]}, {"params": [shared]}])
    assert [(s.engine, s.reason) for s in optimizer.engine] == [
        ("llvm", ""),
        ("torch", "elements of a parameter share memory"),
    ]
    assert module.step_source("float32") != module.step_source("float64")
