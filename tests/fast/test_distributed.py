"""Sharded training equals unsharded training. Two processes on the CPU play all cases."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.append(str(Path(__file__).parents[1]))  # as a script it has its own folder alone

from ranks import PATIENCE, RANKS, assert_passed, play

from stepcheck import fast

#: All that step element by element, with options that give them state and branches; SparseAdam takes sparse gradients alone.
ELEMENTWISE = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "ASGD": {},
    "Adadelta": {},
    "Adagrad": {"initial_accumulator_value": 0.5},
    "Adam": {"amsgrad": True, "weight_decay": 0.1},
    "AdamW": {},
    "Adamax": {},
    "NAdam": {},
    "RAdam": {},
    "RMSprop": {"centered": True, "momentum": 0.5},
    "Rprop": {},
}
WHOLE = {"Muon": {}, "Adafactor": {}}
CASES = {}


def case(function):
    """A function that every rank calls with an empty folder that they share; it raises where the product is wrong."""
    CASES[function.__name__] = function
    return function


def test_two_ranks_pass_all_cases(tmp_path):
    assert_passed(__file__, CASES, tmp_path)


def test_to_import_the_package_does_not_import_dtensors():
    program = "import sys; from stepcheck import fast; assert 'torch.distributed.tensor' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE)


# --- What the ranks do


def equal(these, those):
    for i, (a, b) in enumerate(zip(these, those, strict=True)):
        assert torch.equal(whole(a), whole(b)), (i, whole(a) - whole(b))


def whole(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def mesh(*shape):
    from torch.distributed.tensor import init_device_mesh

    return init_device_mesh("cpu", shape or (RANKS,))


def placed(tensor, *placements, on=None):
    """A parameter of these values, which all ranks have."""
    from torch.distributed.tensor import DTensor, Replicate

    on = on or mesh()
    everywhere = DTensor.from_local(tensor.clone(), on, [Replicate()] * on.ndim)
    return nn.Parameter(everywhere.redistribute(on, placements or [Replicate()] * on.ndim).clone())


def give(p, g):
    """As the gradient, these values, which all ranks have, placed as the parameter."""
    p.grad = placed(g, *p.placements, on=p.device_mesh).detach() if hasattr(p, "placements") else g.clone()


def layouts(*, matrices=False):
    """Values and placements: even, uneven, with nothing on a rank, without elements, numbers, over each dimension, replicated."""
    from torch.distributed.tensor import Replicate, Shard

    torch.manual_seed(0)
    of_matrices = [
        (torch.randn(6, 4), [Shard(0)]),
        (torch.randn(5, 3), [Shard(0)]),
        (torch.randn(5, 3), [Shard(1)]),
        (torch.randn(1, 4), [Shard(0)]),
        (torch.randn(4, 6), [Replicate()]),
    ]
    if matrices:
        return of_matrices
    others = [(torch.randn(7), [Shard(0)]), (torch.randn(()), [Replicate()]), (torch.randn(0, 3), [Shard(0)])]
    return [*of_matrices, *others, (torch.randn(3, 4, 5), [Shard(2)])]


def pair(values, name, options, package=fast):
    """Sharded and unsharded parameters, and an optimizer of each."""
    sharded = [placed(value, *placements) for value, placements in values]
    plain = [nn.Parameter(value.clone()) for value, _ in values]
    make = getattr(package, name)
    return sharded, plain, make(sharded, **options), make(plain, **options)


def run(sharded, plain, ours, other, seeds):
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        for p, q in zip(sharded, plain, strict=True):
            g = torch.randn(q.shape, generator=generator, dtype=q.dtype)
            give(p, g)
            give(q, g)
        ours.step()
        other.step()


def states_equal(ours, sharded, other, plain):
    for p, q in zip(sharded, plain, strict=True):
        assert list(ours.state[p]) == list(other.state[q])
        for key, value in other.state[q].items():
            equal([ours.state[p][key]], [value]) if torch.is_tensor(value) else None


@case
def elementwise_optimizers_step_shards_bit_for_bit_and_do_not_communicate(folder):
    from torch.distributed.tensor.debug import CommDebugMode

    for name, options in ELEMENTWISE.items():
        sharded, plain, ours, other = pair(layouts(), name, options)
        run(sharded, plain, ours, other, range(2))
        full = [[torch.randn(q.shape) for q in plain] for _ in range(2)]
        parts = [[placed(g, *p.placements).detach() for p, g in zip(sharded, of_step, strict=True)] for of_step in full]
        plans = []
        with CommDebugMode() as counted:
            for of_step in parts:
                for p, g in zip(sharded, of_step, strict=True):
                    p.grad = g
                ours.step()
                plans.append(ours._plans)
        assert counted.get_total_counts() == 0, name
        assert plans[0], name
        assert plans[0] is plans[1], name
        for of_step in full:
            for q, g in zip(plain, of_step, strict=True):
                q.grad = g
            other.step()
        equal(sharded, plain)
        states_equal(ours, sharded, other, plain)
        assert ours.engine == (("llvm", ""),), (name, ours.engine)
        for p in sharded:
            tensors = [x for x in ours.state[p].values() if x.shape == p.shape and hasattr(x, "placements")]
            assert all(x.placements == p.placements and x.device_mesh == p.device_mesh for x in tensors)
            assert tensors or name == "ASGD" or not p.ndim, name


@case
def the_first_step_does_not_communicate_either(folder):
    from torch.distributed.tensor.debug import CommDebugMode

    for name, options in ELEMENTWISE.items():
        sharded, _, ours, _ = pair(layouts(), name, options)
        for p in sharded:
            give(p, torch.ones(p.shape))
        with CommDebugMode() as counted:
            ours.step()
        assert counted.get_total_counts() == 0, name


@case
def narrow_and_complex_parameters_are_stepped_as_unsharded(folder):
    for dtype in (torch.bfloat16, torch.float16, torch.float64, torch.complex64):
        sharded, plain, ours, other = pair([(v.to(dtype), p) for v, p in layouts()], "AdamW", {})
        run(sharded, plain, ours, other, range(3))
        equal(sharded, plain)


@case
def muon_and_adafactor_gather_and_equal_unsharded_bit_for_bit(folder):
    for name, options in WHOLE.items():
        sharded, plain, ours, other = pair(layouts(matrices=True), name, options)
        run(sharded, plain, ours, other, range(4))
        equal(sharded, plain)
        states_equal(ours, sharded, other, plain)
        assert "gathered" in ours.engine[0].reason, ours.engine


@case
def adafactor_takes_all_layouts_beside_plain_parameters(folder):
    sharded, plain, _, _ = pair(layouts(), "SGD", {})
    extra = [nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    ours, other = fast.Adafactor([*sharded, extra[0]]), fast.Adafactor([*plain, extra[1]])
    for p in extra:
        p.grad = torch.full_like(p, 0.5)
    run(sharded, plain, ours, other, range(3))
    equal([*sharded, extra[0]], [*plain, extra[1]])


@case
def muon_gathers_one_tensor_for_each_matrix(folder):
    from torch.distributed.tensor.debug import CommDebugMode

    values = [v for v in layouts(matrices=True) if v[1][0].is_shard()]
    sharded, _, ours, _ = pair(values, "Muon", {})
    for p in sharded:
        give(p, torch.ones(p.shape))
    with CommDebugMode() as counted:
        ours.step()
    assert counted.get_total_counts() == len(sharded)


@case
def meshes_of_two_dimensions_and_strided_shards(folder):
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.placement_types import _StridedShard

    torch.manual_seed(0)
    value = torch.randn(5, 4)
    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        params, plain = [], []
        for shape in ((2, 1), (1, 2)):
            for placements in (
                [Shard(0), Shard(1)],
                [Shard(0), Shard(0)],
                [Replicate(), Shard(1)],
                [Shard(1), Replicate()],
                [_StridedShard(0, split_factor=2), Shard(0)],
            ):
                params.append(placed(value, *placements, on=mesh(*shape)))
                plain.append(nn.Parameter(value.clone()))
        ours, other = getattr(fast, name)(params, **options), getattr(fast, name)(plain, **options)
        run(params, plain, ours, other, range(3))
        equal(params, plain)


@case
def gradients_placed_otherwise_are_redistributed(folder):
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    def gradients(rank):
        g = torch.arange(20.0).reshape(5, 4) - 7
        columns = g[:, 2 * rank : 2 * rank + 2].contiguous()
        return [
            (DTensor.from_local(g, mesh(), [Replicate()]), g),
            (DTensor.from_local(g, mesh(), [Partial()]), RANKS * g),
            (DTensor.from_local(columns, mesh(), [Shard(1)]), g),
            (placed(g, Shard(0)).detach(), g),
        ]

    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        for placement in (Shard(0), Shard(1), Replicate()):
            sharded, plain, ours, other = pair([(torch.ones(5, 4), [placement])], name, options)
            found = gradients(torch.distributed.get_rank())
            for g, full in [*found, *found[::-1]]:
                before = whole(g).clone()
                sharded[0].grad, plain[0].grad = g, full.clone()
                ours.step()
                other.step()
                assert torch.equal(whole(g), before)
            equal(sharded, plain)


@case
def lazy_negatives_and_unfinished_gradients_are_stepped(folder):
    from torch.distributed._functional_collectives import AsyncCollectiveTensor
    from torch.distributed.tensor import DTensor, Replicate, Shard

    sharded, plain, ours, other = pair([(torch.ones(4, 2), [Shard(0)])], "AdamW", {})
    for negative in (True, False, True):
        full = torch.arange(8.0).reshape(4, 2)
        local = placed(full, Shard(0)).to_local().detach()
        sharded[0].grad = DTensor.from_local(torch._neg_view(local) if negative else local, mesh(), [Shard(0)])
        plain[0].grad = -full if negative else full
        ours.step()
        other.step()
    everywhere = placed(full, Shard(0)).detach().redistribute(placements=[Replicate()], async_op=True)
    assert type(everywhere._local_tensor) is AsyncCollectiveTensor
    replicated, q = placed(full), nn.Parameter(full.clone())
    replicated.grad, q.grad = everywhere, full.clone()
    optimizer = fast.AdamW([replicated])
    optimizer.step()
    fast.AdamW([q]).step()
    assert optimizer.engine == (("llvm", ""),)
    equal([*sharded, replicated], [*plain, q])


@case
def what_is_replaced_is_noticed(folder):
    from torch.distributed.tensor import Shard

    sharded, plain, ours, other = pair([(torch.ones(5, 3), [Shard(0)]), (torch.ones(7), [Shard(0)])], "AdamW", {})
    run(sharded, plain, ours, other, range(2))
    # As fully_shard does when a module was moved or loaded.
    sharded[0]._local_tensor = sharded[0]._local_tensor.clone().mul_(3)
    plain[0].data = plain[0].data * 3
    run(sharded, plain, ours, other, range(2, 4))
    equal(sharded, plain)
    for state in (ours.state[sharded[0]], other.state[plain[0]]):
        state["exp_avg"] = state["exp_avg"] * 2
    run(sharded, plain, ours, other, range(4, 6))
    moment = ours.state[sharded[1]]["exp_avg_sq"]
    moment._local_tensor = moment._local_tensor.clone().mul_(2)
    other.state[plain[1]]["exp_avg_sq"] *= 2
    run(sharded, plain, ours, other, range(6, 8))
    sharded[0].grad, plain[0].grad = None, None
    ours.step()
    other.step()
    run(sharded, plain, ours, other, range(8, 10))
    equal(sharded, plain)


@case
def what_cannot_be_stepped_is_refused_before_anything_changes(folder):
    from torch.distributed.tensor import DTensor, Partial, Shard

    def bad_gradient(g):
        p = placed(torch.ones(4, 2), Shard(0))
        p.grad = g
        return p

    plain = nn.Parameter(torch.ones(4, 2))
    plain.grad = placed(torch.ones(4, 2), Shard(0)).detach()
    partial = nn.Parameter(DTensor.from_local(torch.ones(4, 2), mesh(), [Partial()]))
    partial.grad = partial.detach().clone()
    elsewhere = placed(torch.ones(4, 2), Shard(0), Shard(1), on=mesh(2, 1)).detach()
    wrong = {
        "a plain tensor, its parameter a DTensor": bad_gradient(torch.ones(4, 2)),
        "a DTensor, its parameter a plain tensor": plain,
        "a sum yet to be taken": partial,
        "bring it to the parameter's mesh": bad_gradient(elsewhere),
    }
    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        for message, p in wrong.items():
            good = placed(torch.ones(4, 2), Shard(0))
            give(good, torch.ones(4, 2))
            optimizer = getattr(fast, name)([good, p], **options)
            before = [whole(good).clone(), whole(p).clone()]
            with pytest.raises(RuntimeError, match=message):
                optimizer.step()
            equal([good, p], before)
            state = optimizer.state.get(good, {})
            assert not state or name == "Adagrad"  # torch makes its state with the optimizer
    p = placed(torch.arange(8.0).reshape(4, 2), Shard(0), Shard(0), on=mesh(2, 1))
    p.grad = p.detach().clone()
    for x in (p, p.grad):
        x._spec = copy.copy(x._spec)
        x._spec.shard_order = tuple(entry._replace(mesh_dims=(1, 0)) for entry in x._spec.shard_order)
    fast.SGD([p], lr=0.5).step()
    equal([p], [torch.arange(8.0).reshape(4, 2) / 2])
    with pytest.raises(RuntimeError, match="sharded in the order"):
        fast.Adafactor([p]).step()
    p = placed(torch.ones(4, 2), Shard(0))
    give(p, torch.ones(4, 2))
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        fast.SparseAdam([p]).step()


@case
def options_that_ask_for_torch_are_told_and_state_placed_otherwise_too(folder):
    from torch.distributed.tensor import Shard

    p = placed(torch.ones(4, 2), Shard(0))
    assert "differentiable" in fast.AdamW([p], differentiable=True).engine[0].reason
    optimizer = fast.AdamW([p])
    give(p, torch.ones(4, 2))
    optimizer.step()
    optimizer.state[p]["exp_avg"] = placed(torch.ones(4, 2), Shard(1)).detach()
    assert optimizer.engine == (("torch", "exp_avg in the state is not placed as its parameter is"),)
    optimizer.state[p]["exp_avg"] = torch.zeros(4, 2)
    with pytest.raises(RuntimeError, match="exp_avg in the state is a plain tensor"):
        optimizer.step()
    other = fast.Muon([p])
    other.state[p]["momentum_buffer"] = placed(torch.ones(4, 2), Shard(1)).detach()
    with pytest.raises(RuntimeError, match="not placed as its parameter"):
        other.step()


@case
def gradient_scaling_skips_on_all_ranks_and_unscales_shards(folder):
    from torch.distributed.tensor import Shard

    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        values = [(torch.ones(4, 3), [Shard(0)]), (torch.ones(5, 2), [Shard(1)])]
        sharded, plain, ours, other = pair(values, name, options)
        for optimizer in (ours, other):
            optimizer._step_supports_amp_scaling = True  # as fused=True sets it, where a class has that
        scalers = [torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=1) for _ in range(2)]
        for worst in (1.0, float("inf"), -3.0):
            for params, optimizer, scaler in zip((sharded, plain), (ours, other), scalers, strict=True):
                scaler.scale(torch.zeros(()))
                for n, p in enumerate(params):
                    g = torch.full(p.shape, 0.5) * scaler.get_scale()
                    g[-1, -1] = worst if n == 0 else g[-1, -1]  # on one rank alone
                    give(p, g)
                scaler.step(optimizer)
                scaler.update()
            equal(sharded, plain)
            if worst == 1.0:
                equal([p.grad for p in sharded], [p.grad for p in plain])
        assert scalers[0].get_scale() == scalers[1].get_scale()
        states_equal(ours, sharded, other, plain)


# Models


def model(hidden=5):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, hidden), nn.Tanh(), nn.Linear(hidden, 3))


def batches(step):
    generator = torch.Generator().manual_seed(step)
    return [torch.randn(4, 6, generator=generator) for _ in range(RANKS)]


def sharded_model():
    from torch.distributed.fsdp import fully_shard

    made = model()
    for layer in (made[0], made[2]):
        fully_shard(layer, mesh=mesh())
    return fully_shard(made, mesh=mesh())


def trained(made, optimizer, steps):
    for step in steps:
        made(batches(step)[torch.distributed.get_rank()]).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


def trained_alone(made, optimizer, steps):
    """As all ranks together: gradients are means of two, which round alike."""
    for step in steps:
        of_batches = [
            torch.autograd.grad(made(batch).square().sum(), list(made.parameters())) for batch in batches(step)
        ]
        for p, g, h in zip(made.parameters(), *of_batches, strict=True):
            p.grad = (g + h) / RANKS
        optimizer.step()
        optimizer.zero_grad()


def optimizer_of(made, name, options, package=fast):
    params = [p for p in made.parameters() if name != "Muon" or p.ndim == 2]
    return getattr(package, name)(params, **options)


@case
def training_with_fully_shard_equals_training_alone(folder):
    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        sharded, alone = sharded_model(), model()
        optimizer = optimizer_of(sharded, name, options)
        trained(sharded, optimizer, range(2))
        plans = getattr(optimizer, "_plans", None)
        trained(sharded, optimizer, range(2, 4))
        assert name in WHOLE or (plans and optimizer._plans is plans), name
        trained_alone(alone, optimizer_of(alone, name, options), range(4))
        equal(sharded.parameters(), alone.parameters())


@case
def training_with_ddp_equals_training_alone(folder):
    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        for as_views in (False, True):
            replicated = nn.parallel.DistributedDataParallel(model(), gradient_as_bucket_view=as_views)
            alone = model()
            trained(replicated, optimizer_of(replicated, name, options), range(4))
            trained_alone(alone, optimizer_of(alone, name, options), range(4))
            equal(replicated.parameters(), alone.parameters())


@case
def tensor_parallel_training_equals_training_alone(folder):
    from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

    for name, options in {**ELEMENTWISE, **WHOLE}.items():
        split, alone = (model(hidden=8).double() for _ in range(2))
        parallelize_module(split, mesh(), {"0": ColwiseParallel(), "2": RowwiseParallel()})
        optimizers = optimizer_of(split, name, options), optimizer_of(alone, name, options)
        for step in range(3):
            for made, optimizer in zip((split, alone), optimizers, strict=True):
                made(batches(step)[0].double()).square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        for p, q in zip(split.parameters(), alone.parameters(), strict=True):
            # The sum over a split dimension is taken in parts: roundings of float64, a few steps long.
            assert float((whole(p) - q).detach().abs().max()) < 1e-11, name


@case
def lbfgs_equals_unsharded_bit_for_bit(folder):
    from torch.distributed.tensor import Replicate, Shard

    def closure(params, optimizer):
        def evaluate():
            optimizer.zero_grad()
            fulls = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in params]
            loss = sum(((x - 1) ** 4).sum() + (x**2).sum() for x in fulls)
            loss.backward()
            return loss

        return evaluate

    values = [(torch.randn(5, 3), [Shard(0)]), (torch.randn(1, 4), [Shard(0)]), (torch.randn(6), [Replicate()])]
    torch.distributed.broadcast_object_list(values, 0)
    for search in (None, "strong_wolfe"):
        sharded, plain, ours, other = pair(values, "LBFGS", {"lr": 0.1, "line_search_fn": search, "max_iter": 5})
        for _ in range(3):
            ours.step(closure(sharded, ours))
            other.step(closure(plain, other))
        equal(sharded, plain)
        assert "gathered" in ours.engine[0].reason
    before = [whole(p).clone() for p in sharded]
    with pytest.raises(RuntimeError, match="another loss on each rank"):
        ours.step(lambda: closure(sharded, ours)() + torch.distributed.get_rank())
    equal(sharded, before)
    values = [(torch.ones(4, 3), [Shard(1)]), (torch.ones(6), [Replicate()])]  # which torch takes too
    sharded, _, theirs, _ = pair(values, "LBFGS", {"max_iter": 3}, torch.optim)
    theirs.step(closure(sharded, theirs))
    resumed = [placed(whole(p), *p.placements) for p in sharded]
    ours = fast.LBFGS(resumed)
    ours.load_state_dict(theirs.state_dict())
    ours.step(closure(resumed, ours))
    theirs.step(closure(sharded, theirs))
    for p, q in zip(resumed, sharded, strict=True):
        assert float((whole(p) - whole(q)).abs().max()) < 1e-5


@case
def a_checkpoint_goes_on_in_ours_and_in_torch_and_back(folder):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    trials = [(name, options, fast, fast) for name, options in {**ELEMENTWISE, **WHOLE}.items()]
    trials += [
        ("AdamW", {}, fast, torch.optim),
        ("AdamW", {}, torch.optim, fast),
        ("SGD", ELEMENTWISE["SGD"], torch.optim, fast),
    ]
    for number, (name, options, first, second) in enumerate(trials):
        at = folder / str(number)
        made = sharded_model()
        optimizer = optimizer_of(made, name, options, first)
        trained(made, optimizer, range(2))
        of_model, of_optimizer = get_state_dict(made, optimizer)
        dcp.save({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=at)
        trained(made, optimizer, range(2, 4))
        other = sharded_model()
        with torch.no_grad():
            for p in other.parameters():
                p.zero_()
        resumed = optimizer_of(other, name, options, second)
        of_model, of_optimizer = get_state_dict(other, resumed)
        dcp.load({"model": of_model, "optimizer": of_optimizer}, checkpoint_id=at)
        set_state_dict(other, resumed, model_state_dict=of_model, optim_state_dict=of_optimizer)
        trained(other, resumed, range(2, 4))
        if first is second:
            equal(other.parameters(), made.parameters())
        for p, q in zip(other.parameters(), made.parameters(), strict=True):
            assert float((whole(p) - whole(q)).abs().max()) < 1e-6, (name, first, second)


@case
def a_state_dict_goes_on_in_a_copy_and_in_torch(folder):
    made, other = sharded_model(), sharded_model()
    optimizer = fast.AdamW(made.parameters())
    trained(made, optimizer, range(2))
    with torch.no_grad():
        for p, q in zip(other.parameters(), made.parameters(), strict=True):
            p.copy_(q)
    saved = copy.deepcopy(optimizer.state_dict())
    for package in (fast, torch.optim):
        ahead, behind = copy.deepcopy(list(made.parameters())), copy.deepcopy(list(other.parameters()))
        first, second = fast.AdamW(ahead), package.AdamW(behind)
        first.load_state_dict(saved)
        second.load_state_dict(saved)
        for params, stepped in ((ahead, first), (behind, second)):
            for p in params:
                give(p, torch.ones(p.shape))
            stepped.step()
        for p, q in zip(ahead, behind, strict=True):
            assert torch.equal(whole(p), whole(q)) or package is torch.optim
            assert float((whole(p) - whole(q)).abs().max()) < 1e-6


@case
def triton_kernels_step_shards(folder):
    from torch.distributed.tensor import Shard

    from stepcheck.fast import interpreted

    values = [(torch.ones(5, 3), [Shard(0)]), (torch.ones(1, 4), [Shard(0)]), (torch.ones(3, 4), [Shard(1)])]
    sharded, plain, ours, other = pair(values, "AdamW", {}, interpreted)
    run(sharded, plain, ours, other, range(3))
    equal(sharded, plain)
    assert ours.engine == (("triton", ""),)
    give(plain[0], torch.ones(5, 3))
    sharded[0].grad = placed(torch.ones(5, 3)).detach()
    ours.step()
    other.step()
    equal(sharded, plain)


if __name__ == "__main__":
    play(CASES)
