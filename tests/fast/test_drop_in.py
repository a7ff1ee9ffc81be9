"""With one word changed, a program does what it did."""

import contextlib
import copy
import inspect
import pickle
import threading
import warnings
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from stepcheck import fast
from stepcheck.fast import engine, interpreted
from stepcheck.fast.optimizer import ByRule

BY_RULE = [
    name for name in fast.__all__ if isinstance(getattr(fast, name), type) and issubclass(getattr(fast, name), ByRule)
]
DENSE = [name for name in BY_RULE if name != "SparseAdam"]
#: Options that change which kernel runs or which branch it takes; each class is tried with those that it has.
OPTIONS = [
    {},
    {"weight_decay": 0.1},
    {"maximize": True},
    {"momentum": 0.9},
    {"momentum": 0.9, "dampening": 0.5},
    {"momentum": 0.9, "nesterov": True},
    {"centered": True, "momentum": 0.5},
    {"amsgrad": True},
    {"decoupled_weight_decay": True, "weight_decay": 0.1},
    {"lr_decay": 0.1, "initial_accumulator_value": 0.5},
    {"t0": 1.0, "lambd": 0.1},
]
CASES = [
    (name, options)
    for name in DENSE
    for options in OPTIONS
    if set(options) <= set(inspect.signature(getattr(torch.optim, name)).parameters)
]


class Tagged(torch.Tensor):
    """A tensor of a class of its own."""


#: Both sides round: a few units in the last place of numbers of about 1, over a few steps.
CLOSE = {torch.float64: 1e-13, torch.float32: 5e-6, torch.complex64: 5e-6}


def shapes(dtype):
    """Parameters of all sorts: a matrix, its transpose, channels last, none, one, many elements."""
    torch.manual_seed(0)
    made = [torch.randn(3, 5, dtype=dtype), torch.randn(4, 7, dtype=dtype).t(), torch.randn(70_000, dtype=dtype)]
    made += [torch.randn((), dtype=dtype), torch.randn(0, 3, dtype=dtype), torch.randn(40, 6, dtype=dtype)[:, ::2]]
    return [*made, torch.randn(2, 3, 4, 5, dtype=dtype).contiguous(memory_format=torch.channels_last)]


def parameters(dtype=torch.float64):
    return [torch.empty_strided(t.shape, t.stride(), dtype=dtype).copy_(t).requires_grad_() for t in shapes(dtype)]


def give_gradients(params, seed):
    """The same values each time, in layouts that need not be those of the parameters."""
    generator = torch.Generator().manual_seed(seed)
    for i, p in enumerate(params):
        g = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        if i == 0 and p.dim() == 2:
            g = g[:1].expand(p.shape)
        p.grad = g


def apart(these, those):
    return max(float((a - b).detach().abs().max()) for a, b in zip(these, those, strict=True) if a.numel())


def run(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        give_gradients(params, step)
        optimizer.step()


def pair(name, dtype=torch.float64, **options):
    """The optimizer of torch and ours, with parameters of their own."""
    ours, theirs = parameters(dtype), parameters(dtype)
    if "nesterov" in options or "momentum" in options:
        options = {"lr": 0.01, **options}
    return (getattr(fast, name)(ours, **options), ours), (getattr(torch.optim, name)(theirs, **options), theirs)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_it_does_what_torch_does(name, options, dtype):
    (ours, params), (theirs, others) = pair(name, dtype, **options)
    run(ours, params, 4)
    run(theirs, others, 4)
    # NAdam keeps a product in float32 that torch multiplies in float32, and stepcheck rounds once.
    bound = 1e-8 if name == "NAdam" and dtype is torch.float64 else CLOSE[dtype]
    assert apart(params, others) < bound
    assert all(served == ("llvm", "") for served in ours.engine)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_narrow_parameters_are_computed_in_float32_and_rounded_once(name, dtype):
    narrow, wide = torch.linspace(-2, 2, 1001, dtype=dtype).requires_grad_(), None
    wide = narrow.detach().float().requires_grad_()
    narrow.grad = torch.linspace(1, -3, 1001).to(dtype)
    wide.grad = narrow.grad.float()
    for p in (narrow, wide):
        getattr(fast, name)([p], lr=2**-7).step()  # Rprop's first step size, which is state, is exact in each
    assert torch.equal(narrow, wide.to(dtype))


@pytest.mark.parametrize("name", BY_RULE)
def test_state_has_the_keys_and_dtypes_of_torch(name):
    states = []
    for cls in (getattr(fast, name), getattr(torch.optim, name)):
        p = torch.ones(4, 3, dtype=torch.bfloat16, requires_grad=True)
        p.grad = torch.ones(4, 3, dtype=torch.bfloat16)
        p.grad = p.grad.to_sparse(1) if name == "SparseAdam" else p.grad
        optimizer = cls([p], **({"momentum": 0.9, "lr": 0.1} if name in ("SGD", "RMSprop") else {}))
        optimizer.step()
        kinds = {
            k: (v.dtype, v.shape) if isinstance(v, torch.Tensor) else type(v) for k, v in optimizer.state[p].items()
        }
        states.append((kinds, list(optimizer.state_dict()["param_groups"][0])))
    assert states[0] == states[1]


@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_a_state_goes_on_in_torch_and_back(name, options):
    (ours, params), (theirs, others) = pair(name, **options)
    run(ours, params, 2)
    run(theirs, others, 2)
    there, back = getattr(torch.optim, name)(params, lr=0.5), getattr(fast, name)(others, lr=0.5)
    there.load_state_dict(ours.state_dict())
    back.load_state_dict(theirs.state_dict())
    run(there, params, 2, 2)
    run(back, others, 2, 2)
    assert apart(params, others) < (1e-8 if name == "NAdam" else 1e-13)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["copied", "unpickled"])
@pytest.mark.parametrize("name", DENSE)
def test_a_copy_goes_on_as_the_original_does(name, way):
    p = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
    optimizer = getattr(fast, name)([p], lr=0.1)
    run(optimizer, [p], 2)
    (q,), other = way(([p], optimizer))
    run(optimizer, [p], 2, 2)
    run(other, [q], 2, 2)
    assert torch.equal(p, q)
    assert p.data_ptr() != q.data_ptr()


def test_what_is_loaded_is_copied():
    source, params = fast.Adam(parameters(torch.float32)), parameters(torch.float32)
    run(source, source.param_groups[0]["params"], 1)
    loaded = fast.Adam(params)
    loaded.load_state_dict(source.state_dict())
    before = [source.state[p]["exp_avg"].clone() for p in source.param_groups[0]["params"]]
    run(loaded, params, 1, 1)
    assert all(
        torch.equal(b, source.state[p]["exp_avg"])
        for b, p in zip(before, source.param_groups[0]["params"], strict=True)
    )


def test_numbers_are_loaded_in_the_dtype_that_they_have():
    p = torch.ones(3, dtype=torch.bfloat16, requires_grad=True)
    p.grad = torch.ones(3, dtype=torch.bfloat16)
    source = fast.NAdam([p])
    source.step()
    loaded = fast.NAdam([p])
    loaded.load_state_dict(source.state_dict())
    assert loaded.state[p]["mu_product"].dtype is torch.float32
    assert torch.equal(loaded.state[p]["mu_product"], source.state[p]["mu_product"])


@pytest.fixture
def _float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.usefixtures("_float64_by_default")
@pytest.mark.parametrize(("family", "stepped_by"), [(fast, "llvm"), (interpreted, "triton")], ids=["llvm", "triton"])
def test_a_product_that_is_kept_in_float64_is_not_rounded_to_float32(family, stepped_by):
    params, others = ([torch.linspace(-1, 1, 7).requires_grad_()] for _ in range(2))
    ours, theirs = family.NAdam(params), torch.optim.NAdam(others)
    run(ours, params, 4)
    run(theirs, others, 4)
    assert ours.engine == ((stepped_by, ""),)
    assert apart(params, others) < CLOSE[torch.float64]
    assert apart([ours.state[params[0]]["mu_product"]], [theirs.state[others[0]]["mu_product"]]) < 1e-16


def test_a_product_in_float32_beside_one_in_float64_is_rounded_and_the_other_is_not():
    params = [torch.ones(3, dtype=torch.float64).requires_grad_() for _ in range(2)]
    optimizer = fast.NAdam(params)
    run(optimizer, params, 1)
    optimizer.state[params[1]]["mu_product"] = optimizer.state[params[1]]["mu_product"].double()
    run(optimizer, params, 1, 1)
    narrow, wide = (optimizer.state[p]["mu_product"] for p in params)
    assert (narrow.dtype, wide.dtype) == (torch.float32, torch.float64)
    assert narrow == wide.float()
    assert float(narrow) != float(wide)


@pytest.mark.usefixtures("_float64_by_default")
@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_a_fused_optimizer_counts_in_float32_whatever_the_default_dtype(name):
    kinds = []
    for family in (fast, torch.optim):
        p = torch.ones(3).requires_grad_()
        p.grad = torch.ones(3)
        optimizer = getattr(family, name)([p], fused=True)
        optimizer.step()
        kinds.append({k: v.dtype for k, v in optimizer.state[p].items() if isinstance(v, torch.Tensor)})
    assert kinds[0] == kinds[1]


def test_the_state_of_muon_is_in_the_order_of_its_parameters():
    params = [torch.ones(shape).requires_grad_() for shape in ((3, 2), (2, 2), (3, 2))]
    optimizer = fast.Muon(params)
    run(optimizer, params, 1)
    assert list(optimizer.state_dict()["state"]) == [0, 1, 2]


# --- What happens between steps


def moved_parameter(optimizer, p):
    p.data = p.data.clone()


def transposed_parameter(optimizer, p):
    p.data = p.data.t().contiguous().t()


def turned_parameter(optimizer, p):
    p.data = p.data.t()  # of a square: the same place, the same shape


def other_state(optimizer, p):
    optimizer.state[p]["exp_avg"] = optimizer.state[p]["exp_avg"] + 1


def other_dictionary(optimizer, p):
    optimizer.state[p] = {k: v + 1 for k, v in optimizer.state[p].items()}


def moved_state(optimizer, p):
    optimizer.state[p]["exp_avg_sq"].data = optimizer.state[p]["exp_avg_sq"].data * 2


def no_state(optimizer, p):
    del optimizer.state[p]


def other_options(optimizer, p):
    optimizer.param_groups[0]["lr"] *= 0.5
    optimizer.param_groups[0]["betas"] = (0.5, 0.75)


def other_kernel(optimizer, p):
    optimizer.param_groups[0]["amsgrad"] = True
    if not isinstance(optimizer, fast.Adam):
        # torch's own has no maximum where amsgrad was turned on later, and raises.
        for q in optimizer.param_groups[0]["params"]:
            optimizer.state[q]["max_exp_avg_sq"] = torch.zeros_like(q)


def fewer_parameters(optimizer, p):
    optimizer.param_groups[0]["params"].pop()


def further_group(optimizer, p):
    if len(optimizer.param_groups) == 1:
        further = torch.linspace(0, 1, 7, dtype=p.dtype).requires_grad_()
        optimizer.add_param_group({"params": [further], "lr": 0.5})


@pytest.mark.parametrize(
    "change",
    [
        moved_parameter, transposed_parameter, turned_parameter, other_state, other_dictionary, moved_state, no_state, other_options, other_kernel,
        fewer_parameters, further_group,
    ],
)  # fmt: skip
def test_a_change_between_steps_is_seen(change):
    def live(cls):
        torch.manual_seed(0)
        params = [torch.randn(5, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
        optimizer = cls(params, lr=0.1)
        run(optimizer, params, 3)
        change(optimizer, params[0])
        whole = [p for group in optimizer.param_groups for p in group["params"]]
        run(optimizer, whole, 2, 3)
        return [*params, *whole]

    assert apart(live(fast.Adam), live(torch.optim.Adam)) < 1e-13


def number_for_tensor(optimizer, p):
    # As numbers of float32 the two are one.
    optimizer.param_groups[0]["lr"] = (
        0.1 if isinstance(optimizer.param_groups[0]["lr"], torch.Tensor) else torch.tensor(0.1)
    )


@pytest.mark.parametrize("lr", [0.1, torch.tensor(0.1)], ids=["number", "tensor"])
@pytest.mark.parametrize(
    "change", [moved_parameter, transposed_parameter, turned_parameter, no_state, fewer_parameters, number_for_tensor]
)
@pytest.mark.parametrize("name", ["Adadelta", "Adafactor", "RMSprop"])
def test_a_change_between_steps_is_what_a_new_optimizer_sees(name, change, lr):
    # Which has no memory of where things were, and is made for the step after the change.
    def live(*, anew):
        torch.manual_seed(0)
        params = [torch.randn(5, 5, dtype=torch.float64).requires_grad_() for _ in range(3)]
        optimizer = getattr(fast, name)(params, lr=lr)
        run(optimizer, params, 3)
        change(optimizer, params[0])
        if anew:
            optimizer = copy.copy(optimizer)
        run(optimizer, params, 2, 3)
        return params

    assert all(map(torch.equal, live(anew=False), live(anew=True)))


def test_gradients_come_and_go():
    def live(cls):
        torch.manual_seed(0)
        params = [torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(4)]
        optimizer = cls(params, lr=0.1)
        for step in range(8):
            give_gradients(params, step)
            for i, p in enumerate(params):
                if (step >> i) & 1:
                    p.grad = None
            optimizer.step()
        return params, [float(optimizer.state[p]["step"]) for p in params]

    (ours, counted), (theirs, expected) = live(fast.Adam), live(torch.optim.Adam)
    assert apart(ours, theirs) < 1e-13
    assert counted == expected == [4, 4, 4, 8]


def test_a_schedule_and_a_tensor_lr():
    def live(cls, lr):
        p = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
        optimizer = cls([p], lr=lr)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for step in range(4):
            give_gradients([p], step)
            optimizer.step()
            schedule.step()
        return p

    expected = live(torch.optim.SGD, 0.5)
    assert torch.equal(live(fast.SGD, 0.5), expected)
    assert torch.equal(live(fast.SGD, torch.tensor(0.5)), expected)


# --- Gradient scaling


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", DENSE)
def test_gradient_scaling_is_undone_inside_the_step(name, dtype):
    def live(scaled):
        p = torch.linspace(-1, 1, 64).to(dtype).requires_grad_()
        optimizer = getattr(fast, name)([p], lr=0.125)
        optimizer._step_supports_amp_scaling = True  # as fused=True sets it, where a class has that
        scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=scaled)
        for step in range(3):
            loss = (p * torch.linspace(1, 2, 64).to(dtype) * (step + 1)).sum()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            seen = p.grad.clone()
            optimizer.zero_grad()
        return p, seen

    (scaled, gradient), (plain, expected) = live(True), live(False)
    assert torch.equal(scaled, plain)
    assert torch.equal(gradient, expected)  # and p.grad is left unscaled, as torch leaves it


@pytest.mark.parametrize("name", sorted(set(fast.__all__) - {"Served"}))
def test_scaling_is_undone_by_whom_torch_leaves_it_to(name):
    """Who clips gradients, counts skipped steps or hooks in after a step looks for this attribute."""
    for options in ({}, {"fused": True}):
        made = []
        for family in (fast, torch.optim):
            with contextlib.suppress(TypeError):  # no such option
                made.append(getattr(family, name)([torch.ones(2, 2, requires_grad=True)], **options))
        assert len(made) in (0, 2)
        assert len({getattr(o, "_step_supports_amp_scaling", False) for o in made}) <= 1


def test_a_skipped_step_calls_no_hooks_and_says_so_to_a_schedule():
    """As accelerate and schedulers find out: whether ``step`` was called."""
    p = torch.ones(2, requires_grad=True)
    optimizer, scaler, called = fast.AdamW([p], lr=0.1), torch.amp.GradScaler("cpu", init_scale=2.0), []
    optimizer.register_step_post_hook(lambda *_: called.append("hook"))
    scaler.scale((p * float("inf")).sum()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_([p], 1.0)
    scaler.step(optimizer)
    assert not called
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("inside", [False, True])
def test_a_step_with_infinite_gradients_is_skipped(inside):
    p = torch.ones(3, requires_grad=True)
    optimizer = fast.SGD([p], lr=0.1, momentum=0.9, fused=inside)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    scaler.scale((p * torch.tensor([1.0, float("inf"), 1.0])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert torch.equal(p, torch.ones(3))
    assert not optimizer.state[p]
    assert scaler.get_scale() == 1.0


@pytest.mark.parametrize("inside", [False, True])
def test_what_torch_steps_is_unscaled_too(inside):
    p, q = torch.ones(2).as_subclass(Tagged).requires_grad_(), torch.ones(2, requires_grad=True)
    optimizer, scaler = fast.SGD([p, q], lr=0.5), torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer._step_supports_amp_scaling = inside
    for _ in range(2):
        scaler.scale(p.as_subclass(torch.Tensor).sum() + q.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert optimizer.engine[0].engine == "torch"
    assert p.tolist() == q.tolist() == [0.0, 0.0]


def test_gradients_that_share_memory_cannot_be_unscaled_and_nothing_is_stepped():
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    optimizer = fast.SGD([p, q], lr=0.5)
    p.grad, q.grad = torch.ones(2), torch.ones(1).expand(2)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="share memory cannot be unscaled"):
        optimizer.step()
    assert p.tolist() == [1.0, 1.0]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
def test_a_step_may_be_given_to_the_compiler():
    p, q = torch.ones(5, requires_grad=True), torch.ones(5, requires_grad=True)
    p.grad, q.grad = torch.ones(5), torch.ones(5)
    optimizer, plain = fast.AdamW([p], lr=0.1), fast.AdamW([q], lr=0.1)
    step = torch.compile(optimizer.step)
    for _ in range(3):
        step()
        plain.step()
    assert torch.equal(p, q)


# --- Where torch is wrong


def test_a_gradient_that_is_refused_leaves_all_as_it_was():
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    optimizer = fast.AdamW([{"params": [p]} for p in params])
    params[0].grad, params[1].grad = torch.ones(3), torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()
    assert all(torch.equal(p, torch.ones(3)) for p in params)
    assert not any(optimizer.state.values())


def test_groups_are_validated_and_stay_the_caller_s():
    p, group = torch.ones(2, requires_grad=True), {"params": [torch.ones(1, requires_grad=True)], "lr": -1.0}
    optimizer = fast.SGD([p], lr=0.1)
    with pytest.raises(ValueError, match=r"SGD: lr must be a finite number in \[0, inf\), got -1.0"):
        optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    group["lr"] = 1.0
    optimizer.add_param_group(group)
    assert set(group) == {"params", "lr"}


def test_nesterov_looks_at_the_momentum_of_each_group():
    p = torch.ones(2, requires_grad=True)
    optimizer = fast.SGD([{"params": [p], "momentum": 0.9}], lr=0.1, nesterov=True)
    assert optimizer.param_groups[0]["nesterov"] is True
    assert optimizer.defaults["nesterov"] is True
    with pytest.raises(ValueError, match="nesterov needs momentum above 0"):
        fast.SGD([p], lr=0.1, nesterov=True)


def test_each_group_has_its_own_initial_accumulator_and_tensor_lr():
    p, q = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    lr = torch.tensor(0.1)
    optimizer = fast.Adagrad([{"params": [p]}, {"params": [q], "initial_accumulator_value": 2.0}], lr=lr)
    assert [optimizer.state[t]["sum"][0].item() for t in (p, q)] == [0.0, 2.0]
    optimizer.param_groups[0]["lr"].fill_(0.5)
    assert optimizer.param_groups[1]["lr"] == torch.tensor(0.1)


def test_hooks_run_once_however_many_classes_there_are():
    class Derived(fast.Adam):
        def step(self, closure=None):
            return super().step(closure)

    p = torch.ones(2, requires_grad=True)
    p.grad, seen = torch.ones(2), []
    fast.Adam([p])  # patches its class
    optimizer = Derived([p])
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    optimizer.step()
    assert seen == ["before", "after"]


def test_a_graph_older_than_the_step_is_refused():
    p = torch.ones(3, requires_grad=True)
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    fast.SGD([p], lr=0.1).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- Who does it


@pytest.mark.parametrize(
    ("options", "made", "reason"),
    [
        ({"differentiable": True}, lambda: torch.ones(2), "differentiable=True"),
        ({}, lambda: torch.ones(2).as_subclass(Tagged).requires_grad_(), "a parameter is a Tagged"),
        ({}, lambda: torch.ones(2, device="meta", requires_grad=True), "a parameter is on meta"),
    ],
    ids=["differentiable", "subclass", "device"],
)
def test_what_kernels_do_not_take_is_stepped_by_torch_and_said_so(options, made, reason):
    p, q = made(), torch.ones(2, requires_grad=True)
    optimizer = fast.SGD([{"params": [p], **options}, {"params": [q]}], lr=0.5)
    assert optimizer.engine[0].engine == "torch"
    assert optimizer.engine[0].reason.startswith(reason)
    assert optimizer.engine[1] == ("llvm", "")
    p.grad, q.grad = torch.ones_like(p).detach(), torch.ones(2)
    optimizer.step()
    assert torch.equal(q, torch.full((2,), 0.5))
    assert p.is_meta or torch.equal(p.detach().as_subclass(torch.Tensor), torch.full((2,), 0.5))


def test_a_state_of_another_dtype_is_left_to_torch():
    p = torch.ones(2, requires_grad=True)
    p.grad = torch.ones(2)
    optimizer = fast.SGD([p], lr=0.5, momentum=0.5)
    optimizer.step()
    optimizer.state[p]["momentum_buffer"] = optimizer.state[p]["momentum_buffer"].double()
    assert "torch.float64" in optimizer.engine[0].reason


# --- Beside others


def test_several_threads_have_an_optimizer_each():
    def live():
        torch.manual_seed(0)
        p = torch.linspace(-1, 1, 200_000).requires_grad_()
        optimizer = fast.AdamW([p], lr=0.1)
        for _ in range(5):
            p.grad = torch.linspace(1, -1, 200_000)
            optimizer.step()
        found.append(p)

    found = []
    threads = [threading.Thread(target=live) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live()
    assert len(found) == 5
    assert all(torch.equal(p, found[-1]) for p in found)


@pytest.mark.parametrize("name", DENSE)
def test_how_many_threads_there_are_changes_nothing(name):
    def live(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            p = torch.linspace(-1, 1, 300_001).requires_grad_()
            p.grad = torch.linspace(1, -1, 300_001)
            getattr(fast, name)([p], lr=0.1).step()
            return p
        finally:
            torch.set_num_threads(before)

    assert torch.equal(live(1), live(2))


def test_options_that_refuse_sparse_gradients_do_so_at_any_step():
    p = torch.ones(3, 2, requires_grad=True)
    optimizer = fast.SGD([p], lr=0.1)
    for _ in range(4):
        p.grad = torch.ones(3, 2).to_sparse(1)
        optimizer.step()
    before = p.detach().clone()
    optimizer.param_groups[0]["weight_decay"] = 0.5
    with pytest.raises(RuntimeError, match="weight_decay reads every element"):
        optimizer.step()
    assert torch.equal(p, before)


def test_sparse_gradients_touch_what_they_name():
    for name, options in (("SGD", {}), ("Adagrad", {}), ("SparseAdam", {})):
        p = torch.ones(6, 4, dtype=torch.float64).requires_grad_()
        q = p.detach().clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, once, of sparse tensors that are not checked
            for step in range(3):
                indices = torch.tensor([[1, 4, 1]])
                values = torch.arange(12.0, dtype=torch.float64).reshape(3, 4) + step
                for t, optimizer_class in ((p, fast), (q, torch.optim)):
                    t.grad = torch.sparse_coo_tensor(indices, values, (6, 4))
                    if step == 0:
                        t.optimizer = getattr(optimizer_class, name)([t], lr=0.1, **options)
                    t.optimizer.step()
        assert apart([p], [q]) < 1e-14, name
        assert torch.equal(p[0], torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("name", BY_RULE)
def test_an_option_that_a_group_lacks_is_noticed_once_it_is_given(name):
    values = []
    for first in ({}, {"maximize": False}):
        p = torch.ones(2, 3, requires_grad=True)
        optimizer = getattr(fast, name)([p])
        optimizer.param_groups[0].pop("maximize", None)
        optimizer.param_groups[0].update(first)
        for maximize in (None, None, True):
            if maximize is not None:
                optimizer.param_groups[0]["maximize"] = maximize
            g = torch.full((2, 3), 0.5)
            p.grad = g.to_sparse(1) if name == "SparseAdam" else g
            optimizer.step()
        values.append(p.detach().clone())
    assert torch.equal(*values)


# --- Options of other types, and what a program sets for all tensors


def stepped(make, steps=3, change=lambda group, n: None, **options):
    torch.manual_seed(0)
    p = torch.randn(4, 3, device="cpu", dtype=torch.float32).requires_grad_()
    optimizer = make([p], **options)
    for n in range(steps):
        change(optimizer.param_groups[0], n)
        g = torch.linspace(-1, 1, 12, device="cpu", dtype=torch.float32).reshape(4, 3) * (-1) ** n
        p.grad = g.to_sparse(1) if make.__name__ == "SparseAdam" else g
        optimizer.step(*[(p.detach() ** 2).sum] * (make.__name__ == "LBFGS"))
    return p.detach()


NAMES = sorted(set(fast.__all__) - {"Served"})


@pytest.mark.parametrize(
    "number", [np.float32(0.25), np.float64(0.25), np.array(0.25), Fraction(1, 4), np.int64(1), True], ids=repr
)
@pytest.mark.parametrize("name", NAMES)
def test_a_number_may_be_any_that_is_one(name, number):
    ours = stepped(getattr(fast, name), lr=number)
    assert torch.equal(ours, stepped(getattr(fast, name), lr=float(number)))


@pytest.mark.parametrize("number", ["0.25", 1j, np.array([0.25, 0.5]), np.float32("nan"), Decimal("0.25")], ids=repr)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_no_number_is_refused(name, number):
    with pytest.raises(ValueError, match="lr must be a finite number"):
        stepped(getattr(fast, name), lr=number)


@pytest.mark.parametrize("name", [n for n in NAMES if "weight_decay" in inspect.signature(getattr(fast, n)).parameters])
def test_false_is_no_weight_decay(name):
    assert torch.equal(stepped(getattr(fast, name), weight_decay=False), stepped(getattr(fast, name), weight_decay=0.0))


@pytest.mark.parametrize(
    "name, key, at, factor",
    [("Adam", "betas", 1, 0.5), ("NAdam", "betas", 0, 0.5), ("Rprop", "etas", 0, 0.5), ("Adafactor", "eps", 1, 5e3)],
)
def test_what_is_changed_inside_a_list_of_options_is_seen(name, key, at, factor):
    def change(group, n):
        if n == 0:
            group[key] = list(group[key])
        if n == 2:
            group[key][at] *= factor

    ours, theirs = (stepped(getattr(family, name), 5, change) for family in (fast, torch.optim))
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(ours, stepped(getattr(fast, name), 5))


@pytest.mark.parametrize("name", NAMES)
def test_a_default_device_is_not_the_device_of_state(name):
    """``torch.device("meta")`` around a step has no memory: a counter made there would be read where nothing is."""
    expected = stepped(getattr(fast, name))
    with torch.device("meta"):
        assert torch.equal(stepped(getattr(fast, name)), expected)


# --- Gradients that come and go


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("LBFGS", "SparseAdam")])
def test_each_step_may_have_other_gradients(name):
    """As experts and stochastic depth have it: a parameter without a gradient, its state and its count stay as they are."""
    draw = np.random.default_rng(3)
    present = draw.random((14, 7)) < 0.6
    present[0], present[9] = True, False
    present[0, 5] = present[1, 5] = present[2, 5] = False  # begins later
    ended = []
    for family in (fast, torch.optim):
        torch.manual_seed(1)
        shapes = [
            (4, 3),
            (2, 2),
            (5, 1),
            (3, 4),
            (1, 1),
            (2, 3),
            (1, 3) if name == "Adafactor" else (0, 3),
        ]  # torch's divides by the number of elements
        params = [torch.randn(s).requires_grad_() for s in shapes]
        optimizer = getattr(family, name)(params, lr=0.01)
        versions = []
        for n, chosen in enumerate(present):
            for p, there in zip(params, chosen, strict=True):
                p.grad = torch.full_like(p, 0.1 * (n + 1)) if there else None
            if n == 5:
                optimizer.state.pop(params[0], None)
                if name == "Adagrad":
                    optimizer.state[params[0]] = {"step": torch.tensor(0.0), "sum": torch.zeros(4, 3)}
            if n == 7:
                params[1].data = torch.randn(2, 2, generator=torch.Generator().manual_seed(n)).T
            before = [p._version for p in params]
            optimizer.step()
            versions.append([p._version > v for p, v in zip(params, before, strict=True)])
        ended.append((params, [optimizer.state[p] for p in params], versions))
    (ours, our_state, our_versions), (theirs, their_state, _) = ended
    tolerance = {"rtol": 5e-2, "atol": 1e-3} if name == "Muon" else {"rtol": 1e-5, "atol": 1e-6}
    for p, q, s, t in zip(ours, theirs, our_state, their_state, strict=True):
        torch.testing.assert_close(p, q, **tolerance)
        assert s.keys() == t.keys()
        for key, value in t.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(s[key], value, **tolerance, check_dtype=False)
    assert our_versions == present.tolist() or name == "Muon"


def test_a_plan_is_kept_where_gradients_come_and_go(monkeypatch):
    params = [torch.randn(3).requires_grad_() for _ in range(8)]
    optimizer = fast.AdamW(params)
    made = []
    whole = engine.HostPlan.__init__
    monkeypatch.setattr(engine.HostPlan, "__init__", lambda self, *a, **k: made.append(self) or whole(self, *a, **k))
    for n in range(20):
        for i, p in enumerate(params):
            p.grad = torch.ones(3) if (n * 5 + i * 3) % 7 < 4 or n == 0 else None
        optimizer.step()
    assert len(made) == 1
