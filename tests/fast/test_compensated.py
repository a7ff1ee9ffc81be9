"""``compensated=True``: parameters in narrow formats that small steps do move, and nothing else that changes."""

import copy
import inspect
import io

import pytest
import torch

from stepcheck import fast
from stepcheck.fast import RULES, interpreted
from stepcheck.fast.cuda import kernels as cuda
from stepcheck.fast.kernels import Layout

BY_RULE = [name for name in RULES if hasattr(fast, name)]
DENSE = [name for name in BY_RULE if name != "SparseAdam"]
MOMENTUM = {"SGD": {"momentum": 0.9}, "RMSprop": {"momentum": 0.9}}
NARROW = (torch.bfloat16, torch.float16)


def trained(make, dtype, *, steps=300, lr=1e-4, start=None, optimizer=None, seed=1):
    """A parameter after steps of one sign, each far less than a rounding of bfloat16, and its optimizer."""
    drawn = torch.Generator().manual_seed(0)
    p = torch.randn(512, generator=drawn).to(dtype) if start is None else start
    p.requires_grad_()
    optimizer = optimizer or make([p], lr=lr)
    drawn = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        p.grad = (torch.randn(512, generator=drawn) + 1).bfloat16().to(dtype)
        optimizer.step()
    return p, optimizer


def whole(p, optimizer):
    return p.detach().double() + optimizer.state[p]["compensation"].double()


def start_of(dtype):
    return torch.randn(512, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("name", DENSE)
def test_small_steps_add_up_as_in_float32(name):
    # What the lost bits hold is as precise as 16 bits: steps that are to be seen in 300 must be larger than that.
    lr = {"Adadelta": 0.1, "Adagrad": 1e-2}.get(name, 1e-4)

    def make(params, **options):
        return getattr(fast, name)(params, **MOMENTUM.get(name, {}), **options)

    start = start_of(torch.bfloat16)
    exact, _ = trained(make, torch.float32, lr=lr, start=start.float())
    stalled, _ = trained(make, torch.bfloat16, lr=lr, start=start.clone())
    carried, optimizer = trained(
        lambda *args, **options: make(*args, compensated=True, **options), torch.bfloat16, lr=lr, start=start.clone()
    )
    moved = (exact.detach() - start.float()).abs().mean()
    off = (whole(carried, optimizer) - exact.detach()).abs().mean()
    assert off < 0.05 * moved
    if name != "Rprop":  # whose steps grow until they are larger than a rounding
        assert (stalled.detach().double() - exact.detach()).abs().mean() > 0.3 * moved
    # The parameter itself is a rounding of the sum.
    assert (optimizer.state[carried]["compensation"].abs() <= 2.0**-8 * carried.detach().abs()).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("name", BY_RULE)
def test_state_has_a_tensor_more_for_the_parameter_and_each_slow_average(name, dtype):
    cls = getattr(fast, name)
    p = torch.ones(4, 4, dtype=dtype, requires_grad=True)
    optimizer = cls([p], compensated=True)
    p.grad = torch.ones(4, 4, dtype=dtype).to_sparse(1) if name == "SparseAdam" else torch.ones(4, 4, dtype=dtype)
    optimizer.step()
    further = {key for key in optimizer.state[p] if key.endswith("compensation")}
    slow = {"exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "ax"} & optimizer.state[p].keys()
    assert further == {"compensation", *(f"{key}_compensation" for key in slow)}
    assert {optimizer.state[p][key].dtype for key in further} == {dtype}


@pytest.mark.parametrize("name", DENSE)
def test_other_dtypes_and_plain_optimizers_are_as_ever(name):
    plain, one = trained(getattr(fast, name), torch.float32, steps=3)
    asked, other = trained(
        lambda params, **options: getattr(fast, name)(params, compensated=True, **options), torch.float32, steps=3
    )
    assert torch.equal(plain, asked)
    assert one.state[plain].keys() == other.state[asked].keys()
    assert "compensated" not in one.param_groups[0]
    assert "compensated" not in one.defaults


def test_the_keyword_stands_in_the_signature_and_in_groups():
    assert inspect.signature(fast.AdamW).parameters["compensated"].default is False
    narrow = [torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
    optimizer = fast.AdamW([{"params": narrow[:1], "compensated": True}, {"params": narrow[1:2]}])
    optimizer.add_param_group({"params": narrow[2:], "compensated": True})
    for p in narrow:
        p.grad = torch.ones(3, dtype=torch.bfloat16)
    optimizer.step()
    assert ["compensation" in optimizer.state[p] for p in narrow] == [True, False, True]


def test_a_group_of_one_that_is_compensated_throughout_is_too():
    p, later = (torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    optimizer = fast.SGD([p], compensated=True)
    optimizer.add_param_group({"params": [later]})
    later.grad = torch.full((3,), 2.0**-10, dtype=torch.bfloat16)
    optimizer.step()
    assert "compensation" in optimizer.state[later]


def test_a_class_derived_from_one_takes_the_keyword():
    class Mine(fast.AdamW):
        pass

    class Ruled(fast.AdamW):
        rule = fast.AdamW.rule

    for cls in (Mine, Ruled):
        optimizer = cls([torch.ones(3, dtype=torch.bfloat16, requires_grad=True)], lr=1e-3, compensated=True)
        assert optimizer.param_groups[0]["compensated"] is True


@pytest.mark.parametrize("way", ["loaded", "saved", "copied"])
def test_what_is_lost_is_saved_loaded_and_copied(way):
    def make(params, **options):
        return fast.AdamW(params, compensated=True, **options)

    p, optimizer = trained(make, torch.bfloat16, steps=20)
    if way == "copied":
        other, (q,) = (made := copy.deepcopy(optimizer)), made.param_groups[0]["params"]
    else:
        q = p.detach().clone().requires_grad_()
        other, state = make([q]), optimizer.state_dict()
        if way == "saved":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        other.load_state_dict(state)
    trained(make, torch.bfloat16, steps=5, start=p, optimizer=optimizer, seed=2)
    trained(make, torch.bfloat16, steps=5, start=q, optimizer=other, seed=2)
    assert torch.equal(p, q)
    assert torch.equal(whole(p, optimizer), whole(q, other))


@pytest.mark.parametrize("name", ["AdamW", "SGD"])
def test_a_plain_checkpoint_goes_on_compensated_and_the_other_way_round(name):
    cls, options = getattr(fast, name), MOMENTUM.get(name, {})
    theirs = getattr(torch.optim, name)
    p, plain = trained(lambda params, **o: theirs(params, **options, **o), torch.bfloat16, steps=3)
    carried = cls([p], compensated=True, **options)
    carried.load_state_dict(plain.state_dict())
    before = {key: value.clone() for key, value in carried.state[p].items()}
    trained(cls, torch.bfloat16, steps=1, start=p, optimizer=carried, seed=2)
    assert "compensation" in carried.state[p]
    if name == "SGD":  # the momentum does not start anew: that would be the gradient, undampened
        g = (torch.randn(512, generator=torch.Generator().manual_seed(2)) + 1).bfloat16()
        expected = (0.9 * before["momentum_buffer"].double() + g.double()).bfloat16()
        assert (carried.state[p]["momentum_buffer"].double() - expected.double()).abs().max() <= 2.0**-7 * 4
    plain.load_state_dict(carried.state_dict())
    trained(theirs, torch.bfloat16, steps=1, start=p, optimizer=plain, seed=3)


def test_it_may_be_switched_between_steps():
    p, optimizer = trained(fast.SGD, torch.bfloat16, steps=2)
    assert "compensation" not in optimizer.state[p]
    optimizer.param_groups[0]["compensated"] = True
    trained(fast.SGD, torch.bfloat16, steps=2, start=p, optimizer=optimizer)
    kept = optimizer.state[p]["compensation"].clone()
    assert kept.any()
    optimizer.param_groups[0]["compensated"] = False
    trained(fast.SGD, torch.bfloat16, steps=2, start=p, optimizer=optimizer)
    assert torch.equal(optimizer.state[p]["compensation"], kept)


@pytest.mark.parametrize("dtype", NARROW)
def test_of_what_leaves_the_format_nothing_is_carried(dtype):
    p = torch.tensor([torch.finfo(dtype).max, 1.0, float("nan")], dtype=dtype, requires_grad=True)
    optimizer = fast.SGD([p], lr=1.0, compensated=True)
    p.grad = -p.detach().abs()
    optimizer.step()
    assert p[0].isinf()
    assert p[1] == 2
    assert p[2].isnan()
    assert optimizer.state[p]["compensation"].tolist() == [0, 0, 0]


@pytest.mark.parametrize("name", DENSE)
def test_kernels_for_cuda_carry_the_same(name):
    start = start_of(torch.bfloat16)
    found = []
    for family in (fast, interpreted):
        cls = getattr(family, name)
        p, optimizer = trained(
            lambda params, cls=cls, **options: cls(params, compensated=True, **options),
            torch.bfloat16, steps=3, lr=1e-2, start=start.clone(),
        )  # fmt: skip
        found.append(whole(p, optimizer))
    # Products and sums are contracted on the one side: roundings of float32, and of what the lost bits are kept in.
    assert ((found[0] - found[1]).abs() <= 2.0**-14 * found[0].abs() + 1e-6).all()


def test_kernels_for_cuda_compile():
    pytest.importorskip("triton")
    from stepcheck.fast.cuda import runtime

    rule = RULES["AdamW"]
    present = rule.present({"compensated": True, "amsgrad": False})
    layout = Layout(rule, "bfloat16", rule.streams(present, "bfloat16"))
    assert layout.carried == {"compensation": "p", "exp_avg_sq_compensation": "exp_avg_sq"}
    for source in (cuda.dense_source(layout), cuda.scattered_source(layout)):
        assert runtime.compiled(source, 90)


def test_what_torch_would_have_to_step_is_refused_before_anything_is():
    p, q = (torch.ones(3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    optimizer = fast.SGD([{"params": [p]}, {"params": [q], "differentiable": True, "compensated": True}], lr=1.0)
    p.grad = q.grad = torch.ones(3, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match=r"torch does not do compensated=True.*differentiable"):
        optimizer.step()
    assert p.tolist() == [1, 1, 1]
    assert not optimizer.state.get(p)
