"""PyTorch's own database of optimizers, played on the fast classes beside those of ``torch.optim``.

``optim_db`` names the options, errors, schedules and abilities that PyTorch's tests go through; the tests here ask of it what those
ask, and that both sides end at the same numbers.
"""

import copy
import io
import math
import pickle
from contextlib import contextmanager

import hypothesis
import pytest
import torch
from newton_schulz import iterate_in_float64
from torch.optim import _muon
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from stepcheck import fast
from stepcheck.harness.power import optim_db


@contextmanager
def undone():
    """What importing PyTorch's tests changes for the whole process, put back."""
    profile, flags = hypothesis.settings.get_current_profile_name(), "__allow_nonbracketed_mutation_flag"
    yield
    hypothesis.settings.load_profile(profile)
    setattr(torch.backends, flags, True)  # flags of torch.backends may be set again


with undone():
    from torch.testing._internal import common_optimizers as database

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")  # torch's own word on any sparse tensor

INFOS = {info.name: info for info in database.optim_db if hasattr(fast, info.name)}
#: Relative to the size of what is stored: half a unit in the last place.
UNIT = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.complex64: 2.0**-24}
#: How many of them a step may set the two sides apart: each rounds a parameter once or twice, by half a unit at most, where it is
#: stored; what is rounded before that is smaller by the learning rate.
ROUNDINGS = 4
STEPS = 8  # RAdam's step is another from the sixth on


def dtypes(info):
    return [d for d in UNIT if info.supports_complex or not d.is_complex]


def spelled(text):
    return text.replace(", ", "+").replace(" & ", "&").replace(" w/ ", "+").replace(" ", "_")


def inputs(info, *, flags=True):
    """The options of the database for this machine, and each with ``foreach``, ``fused`` and ``differentiable``."""
    found = database._get_optim_inputs_including_global_cliquey_kwargs("cpu", None, info) if flags else None
    # An iteration of LBFGS is a step of the others; in the 20 that are the default it arrives, and further steps are none.
    few = {"max_iter": 2} if info.step_requires_closure else {}
    return [(i.desc, {**i.kwargs, **few}) for i in found or info.optim_inputs_func("cpu")]


def for_other_devices(info):
    """Options that the database has for other devices alone, all of them ``capturable``: their tensors are on the CPU as well."""
    found = [i for i in info.optim_inputs_func("cuda") if i.kwargs.get("capturable")]
    return [(f"{i.desc} {n}", i.kwargs) for n, i in enumerate(found)]


def cases(of, *, by_dtype=False, where=lambda info: True):
    """Each optimizer with each of its options, and each dtype that it takes."""
    return [
        pytest.param(
            info,
            kwargs,
            *([dtype] if by_dtype else []),
            id="-".join([name, spelled(desc), *([str(dtype).removeprefix("torch.")] if by_dtype else [])]),
        )
        for name, info in INFOS.items()
        if where(info)
        for desc, kwargs in of(info)
        for dtype in (dtypes(info) if by_dtype else [None])
    ]


def without_flags(info):
    return inputs(info, flags=False)


def flags_by_themselves(info):
    """All options, and all flags with no other option."""
    return without_flags(info) + [(desc, kwargs) for desc, kwargs in inputs(info) if desc.startswith("default & ")]


def steps_alone(info):
    return not info.step_requires_closure


each_optimizer = pytest.mark.parametrize("info", [pytest.param(i, id=n) for n, i in INFOS.items()])
each_that_steps_alone = pytest.mark.parametrize(
    "info", [pytest.param(i, id=n) for n, i in INFOS.items() if steps_alone(i)]
)
each_input = pytest.mark.parametrize("info, kwargs", cases(without_flags))


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    """More of them would wait for each other at tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


RELEASED_ZEROPOWER = _muon._zeropower_via_newtonschulz


@pytest.fixture(autouse=True)
def _muon_without_bfloat16(monkeypatch):
    """torch.optim.Muon iterates in bfloat16 whatever the dtype; the fast one in float32 or float64. Here torch's does in float64."""
    iterate_in_float64(monkeypatch)


def test_the_copy_that_the_harness_has_is_this_database():
    """Of which it tells the power of PyTorch's tests."""
    theirs = {info.name: [i.kwargs for i in info.optim_inputs_func("cpu")] for info in database.optim_db}
    assert {name: list(sets) for name, sets in optim_db.OPTIONS.items()} == theirs
    for info in database.optim_db:
        assert optim_db.only_sparse(info.name) == info.only_supports_sparse_grads
        assert optim_db.requires_closure(info.name) == info.step_requires_closure
        assert len(optim_db.schedules(info.name)) == len(info.scheduler_inputs)
        for ours, of_torch in zip(optim_db.schedules(info.name), info.scheduler_inputs, strict=True):
            optimizers = [torch.optim.SGD([torch.ones(1)]) for _ in range(2)]
            made = [[s(o) for s in them] for o, them in zip(optimizers, (ours, of_torch), strict=True)]
            for one, other in zip(*made, strict=True):
                assert type(one) is type(other)
                assert one.state_dict() == other.state_dict()


# --- Parameters, and what a step is given


def shapes(info):
    return [(10, 5), (5, 10), (4, 4)] if info.name == "Muon" else [(10, 5), (10,), (1,)]


def parameters(info, dtype=torch.float64, *, requires_grad=True):
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, dtype=dtype, generator=generator) for s in shapes(info)]
    return [p.requires_grad_(requires_grad) for p in made]


def give(info, params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        p.grad = torch.randn(p.shape, dtype=p.dtype, generator=generator)
        if info.only_supports_sparse_grads:
            p.grad = p.grad[: 1 + len(p) // 2].to_sparse(1).sparse_resize_(p.shape, 1, p.dim() - 1)


def advance(info, optimizer, params, step):
    """One step by a gradient of its own, or down a function of curvatures 1 to 2."""
    if not info.step_requires_closure:
        give(info, params, step)
        return optimizer.step()

    def closure():
        optimizer.zero_grad()
        loss = 0.0
        for p in params:
            d = torch.view_as_real(p - 1) if p.is_complex() else p - 1
            loss = loss + (torch.linspace(1, 2, d.numel(), dtype=d.dtype).reshape(d.shape) * d * d).sum() / 2
        loss.backward()
        return loss

    return optimizer.step(closure)


def live(cls, info, kwargs, dtype=torch.float64, steps=STEPS):
    """An optimizer after some steps, and its parameters."""
    kwargs = copy.deepcopy(kwargs)
    params = parameters(info, dtype, requires_grad=not kwargs.get("differentiable"))
    optimizer = cls(params, **kwargs)
    for step in range(steps):
        advance(info, optimizer, params, step)
    return optimizer, params


def ours(info):
    return getattr(fast, info.name)


def largest(tensors):
    return max(float(t.detach().abs().max()) for t in tensors)


def apart(these, those):
    return largest([a.detach() - b.detach() for a, b in zip(these, those, strict=True)])


def allowed(info, kwargs, params, steps=STEPS):
    """How far from each other the two sides may be after some steps, in parameter units."""
    unit = UNIT[params[0].dtype]
    if any(isinstance(o, torch.Tensor) for v in kwargs.values() for o in (v if isinstance(v, tuple) else (v,))):
        unit = UNIT[torch.float32]  # torch's scalars are then float32, as the tensor that they come from
    roundings = ROUNDINGS * steps
    found = roundings * unit * largest(params)
    if info.name == "NAdam":
        # mu_product is kept in float32, where torch multiplies; it says how large a step is, which is the learning rate, about.
        found += roundings * UNIT[torch.float32] * float(kwargs.get("lr", 2e-3))
    return found


def assert_same_state(one, params, other, others, *, exactly=False):
    """The same keys, types, dtypes and shapes, and numbers that count the same; all the same numbers if ``exactly``."""
    for p, q in zip(params, others, strict=True):
        a, b = one.state.get(p, {}), other.state.get(q, {})
        assert a.keys() == b.keys() - {"al"}  # LBFGS: coefficients of one direction, which torch keeps in the state
        for key, value in a.items():
            assert type(value) is type(b[key]) or key in ("t", "H_diag"), key
            if isinstance(value, torch.Tensor) and isinstance(b[key], torch.Tensor):
                assert (value.dtype, value.shape) == (b[key].dtype, b[key].shape), key
                assert not exactly or torch.equal(value, b[key]), key
        assert one.state[p].get("step") == other.state[q].get("step")


# --- The same numbers


@pytest.mark.parametrize("info, kwargs, dtype", cases(inputs, by_dtype=True))
def test_it_ends_where_torch_ends(info, kwargs, dtype):
    optimizer, params = live(ours(info), info, kwargs, dtype)
    by_torch = {"fused"} if dtype.is_complex else set()  # refused there; one kernel takes both here
    other, others = live(info.optim_cls, info, {k: v for k, v in kwargs.items() if k not in by_torch}, dtype)
    assert apart(params, others) <= allowed(info, kwargs, others)
    assert_same_state(optimizer, params, other, others)
    own = "torch" if kwargs.get("differentiable") else "blas" if info.name == "Muon" else "llvm"
    assert {s.engine for s in optimizer.engine} == {"blas" if info.name == "LBFGS" and dtype.is_complex else own}


@pytest.mark.parametrize("info, kwargs, dtype", cases(for_other_devices, by_dtype=True))
def test_options_for_other_devices_are_torch_s_business(info, kwargs, dtype):
    """``capturable`` is: torch steps, or says why not."""
    raised = []
    for cls in (ours(info), info.optim_cls):
        with pytest.raises((AssertionError, RuntimeError, ValueError)) as caught:
            live(cls, info, kwargs, dtype, steps=1)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]
    optimizer = ours(info)(parameters(info, dtype), **copy.deepcopy(kwargs))
    assert [s.engine for s in optimizer.engine] == ["torch"]


@pytest.mark.parametrize("info, kwargs, dtype", cases(for_other_devices, by_dtype=True))
def test_without_capturable_they_end_where_torch_ends(info, kwargs, dtype):
    kwargs = {**kwargs, "capturable": False}
    _, params = live(ours(info), info, kwargs, dtype)
    _, others = live(info.optim_cls, info, kwargs, dtype)
    assert apart(params, others) <= allowed(info, kwargs, others)


@pytest.mark.parametrize("info, kwargs", cases(without_flags, where=lambda info: info.name == "Muon"))
def test_muon_is_as_far_from_torch_s_as_bfloat16_is_from_exact(info, kwargs, monkeypatch):
    monkeypatch.setattr(_muon, "_zeropower_via_newtonschulz", RELEASED_ZEROPOWER)
    _, params = live(fast.Muon, info, kwargs, torch.float32, steps=2)
    _, others = live(torch.optim.Muon, info, kwargs, torch.float32, steps=2)
    # An element of an iterate is about 1 at most, and the sum of three terms with coefficients of 10 together: half a unit in the
    # last place of each, in five or six iterations. A step is lr times the root of the ratio of the sides, 2.
    lr = float(kwargs.get("lr", 1e-3))
    assert 0 < apart(params, others) <= 2 * lr * math.sqrt(2) * 6 * 10 * 2.0**-9


@pytest.mark.parametrize(
    "info", [pytest.param(i, id=n) for n, i in INFOS.items() if "differentiable" in i.supported_impls]
)
def test_a_differentiable_step_has_the_gradients_of_torch_s(info):
    found = []
    for cls in (ours(info), info.optim_cls):
        x = torch.linspace(0.5, 1.5, 6, dtype=torch.float64).requires_grad_()
        p = x * 2
        optimizer = cls([p], lr=0.1, differentiable=True)
        p.grad = x * x
        optimizer.step()
        p.sum().backward()
        found.append(x.grad)
    assert found[0].abs().max() > 0
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize("info, kwargs", cases(without_flags, where=lambda info: info.supports_complex))
def test_a_complex_parameter_is_two_real_ones(info, kwargs):
    def run(*, real):
        params = parameters(info, torch.complex128)
        own = [torch.view_as_real(p.detach()).clone().requires_grad_() for p in params] if real else params
        optimizer = ours(info)(own, **copy.deepcopy(kwargs))
        for step in range(3):
            give(info, params, step)
            grads = [p.grad for p in params]
            for p, g in zip(own, grads, strict=True):
                p.grad = torch.view_as_real(g) if real else g
            optimizer.step(*([lambda: 1.0] if info.step_requires_closure else []))
        return own if real else [torch.view_as_real(p.detach()) for p in own]

    assert apart(run(real=True), run(real=False)) <= (
        0 if steps_alone(info) else 3 * ROUNDINGS * UNIT[torch.float64] * largest(parameters(info))
    )


@pytest.mark.parametrize("info, kwargs", cases(without_flags))
@pytest.mark.parametrize("shape", [(), (1,)], ids=["number", "vector"])
def test_a_tensor_for_lr_is_its_number(info, kwargs, shape):
    lr = float(kwargs.get("lr", 0.01))
    tensor = torch.full(shape, lr, dtype=torch.float64)
    _, expected = live(ours(info), info, {**kwargs, "lr": lr})
    _, params = live(ours(info), info, {**kwargs, "lr": tensor})
    assert apart(params, expected) == 0
    assert torch.equal(tensor, torch.full(shape, lr, dtype=torch.float64))


# --- PyTorch's model: a matrix, a vector and an input


def descend(cls, info, kwargs, *, strided=False, groups=None, schedules=(), steps=12):
    """The losses of PyTorch's little regression, and the parameters at the end."""
    generator = torch.Generator().manual_seed(3)
    wide = torch.randn(10, 5, 2, dtype=torch.float64, generator=generator)
    high = torch.randn(10, 2, dtype=torch.float64, generator=generator)
    weight, bias = ((t if strided else t.contiguous()).requires_grad_() for t in (wide[..., 0], high[..., 0]))
    x = torch.randn(5, dtype=torch.float64, generator=generator)
    params = [weight] if info.name == "Muon" else [weight, bias]
    kwargs = copy.deepcopy(kwargs)
    optimizer = cls(groups(params) if groups else params, **kwargs)
    schedulers = [schedule(optimizer) for schedule in schedules]

    def closure():
        optimizer.zero_grad()
        y = weight.mv(x)
        loss = (y if len(params) == 1 else y + bias).pow(2).sum()
        loss.backward()
        if info.only_supports_sparse_grads:
            for p in params:
                p.grad = p.grad.to_sparse(1)
        return loss

    losses = []
    for _ in range(steps):
        loss = optimizer.step(closure)
        assert loss.requires_grad
        losses.append(loss.item())
        for scheduler in schedulers:
            scheduler.step(*([loss.detach()] if isinstance(scheduler, ReduceLROnPlateau) else []))
    return [*losses, closure().item()], params


def assert_agree(info, kwargs, ours_, theirs):
    (losses, params), (expected, others) = ours_, theirs
    # The gradient has the curvature 2 (1 + x^2), about 12, by which a step of lr 0.1 at most makes an error larger while it climbs.
    steps = len(losses) - 1
    growth = (1 + 12 * float(kwargs.get("lr", 0.01))) ** steps if kwargs.get("maximize") else 1 + 12
    bound = growth * allowed(info, kwargs, others, steps)
    assert apart(params, others) <= bound
    slope = 2 * math.sqrt(12 * max(expected)) * math.sqrt(sum(p.numel() for p in others))
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) <= slope * bound


@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
@each_input
def test_the_loss_goes_in_the_right_direction(info, kwargs, strided):
    # torch.optim.LBFGS flattens gradients by view(), which strided ones refuse: "lbfgs-views-strided-gradient" in the ledger.
    losses, params = descend(ours(info), info, kwargs, strided=strided)
    theirs = descend(info.optim_cls, info, kwargs, strided=strided and steps_alone(info))
    assert_agree(info, kwargs, (losses, params), theirs)
    assert losses[-1] > losses[0] if kwargs.get("maximize") else losses[-1] < losses[0]


SCHEDULED = [
    pytest.param(info, kwargs, n, id=f"{name}-{spelled(desc)}-schedule{n}")
    for name, info in INFOS.items()
    for desc, kwargs in without_flags(info)
    for n in range(len(info.scheduler_inputs))
]


@pytest.mark.parametrize("info, kwargs, n", SCHEDULED)
def test_schedules_lead_where_they_lead_torch(info, kwargs, n):
    found = descend(ours(info), info, kwargs, schedules=info.scheduler_inputs[n])
    if info.name == "LBFGS" and isinstance(kwargs.get("lr"), torch.Tensor):
        # "lbfgs-keeps-the-tensor-lr-as-state" in the ledger: a schedule changes the length of torch's last step with its lr.
        kwargs = {**kwargs, "lr": kwargs["lr"].item()}
    theirs = descend(info.optim_cls, info, kwargs, schedules=info.scheduler_inputs[n])
    assert_agree(info, kwargs, found, theirs)
    losses = found[0]
    assert losses[-1] > losses[0] if kwargs.get("maximize") else losses[-1] < losses[0]


GROUPED = {
    "lr": [{"lr": 0.01}, {"lr": 0.02}],
    "lr_of_one": [{"lr": 0.01}, {}],
    "other": [{"weight_decay": 0.25}, {"weight_decay": 0.0, "maximize": True}],
}


@pytest.mark.parametrize("kind", GROUPED)
@pytest.mark.parametrize(
    "info, kwargs", cases(without_flags, where=lambda info: steps_alone(info) and info.supports_param_groups)
)
def test_groups_have_options_of_their_own(info, kwargs, kind):
    """An option that a class does not have changes nothing on either side."""

    def run(cls):
        params = parameters(info)
        options = GROUPED[kind]
        optimizer = cls([{"params": params[:1], **options[0]}], **copy.deepcopy(kwargs))
        for step in range(STEPS):
            if step == 2:
                optimizer.add_param_group({"params": params[1:], **options[1]})
            give(info, params, step)
            optimizer.step()
        return params

    of_all = {**kwargs, "lr": 0.02} if "lr" in kind and not isinstance(kwargs.get("lr"), torch.Tensor) else kwargs
    assert apart(run(ours(info)), others := run(info.optim_cls)) <= allowed(info, of_all, others)


SPARSE = [pytest.param(i, id=n) for n, i in INFOS.items() if i.supports_sparse or i.only_supports_sparse_grads]


@pytest.mark.parametrize("scheduled", [False, True], ids=["constant", "scheduled"])
@pytest.mark.parametrize("info", SPARSE)
def test_sparse_gradients_of_rosenbrock_s_function(info, scheduled):
    """One element at a time, its entry twice and not coalesced in every other step."""
    kwargs, schedules = info.metadata_for_sparse

    def run(cls):
        p = torch.tensor([1.5, 1.5], dtype=torch.float64, requires_grad=True)
        optimizer = cls([p], **kwargs)
        schedulers = [schedule(optimizer) for schedule in (schedules if scheduled else ())]
        for step in range(200):
            x, y = p.detach()
            d = (-2 * (1 - x) - 400 * x * (y - x * x), 200 * (y - x * x))[step % 2] / 1000
            entries = 1 + step // 2 % 2
            indices = torch.full((1, entries), step % 2)
            p.grad = torch.sparse_coo_tensor(indices, (d / entries).expand(entries), (2,))
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step(*([1.0] if isinstance(scheduler, ReduceLROnPlateau) else []))
        return p

    p, q = run(ours(info)), run(info.optim_cls)
    # A gradient is a function of the parameters: what sets them apart adds up, and changes it by no more than itself.
    assert apart([p], [q]) <= 200 * ROUNDINGS * UNIT[torch.float64] * 10
    x, y = p.detach()
    assert (1 - x) ** 2 + 100 * (y - x * x) ** 2 < (1 - 1.5) ** 2 + 100 * (1.5 - 1.5**2) ** 2


# --- State


@pytest.mark.parametrize("info, kwargs", cases(flags_by_themselves))
def test_a_state_that_was_saved_goes_on_exactly(info, kwargs):
    optimizer, params = live(ours(info), info, kwargs, steps=3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    others = [p.detach().clone().requires_grad_(p.requires_grad) for p in params]
    other = ours(info)(others, **copy.deepcopy(kwargs))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert_same_state(optimizer, params, other, others, exactly=True)
    for step in (3, 4):
        advance(info, optimizer, params, step)
        advance(info, other, others, step)
    # A history that was loaded is one of other tensors, whose products LBFGS forms anew: sums in another order.
    assert apart(params, others) <= (0 if steps_alone(info) else allowed(info, {}, params))


@pytest.mark.parametrize("there", [True, False], ids=["to_torch", "from_torch"])
@each_input
def test_a_state_goes_on_on_the_other_side(info, kwargs, there):
    first, second = (ours(info), info.optim_cls) if there else (info.optim_cls, ours(info))
    before, params = live(first, info, kwargs, steps=4)
    after = second(params, **copy.deepcopy(kwargs))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    for step in (4, 5):
        advance(info, after, params, step)
    _, others = live(info.optim_cls, info, kwargs, steps=6)
    assert apart(params, others) <= allowed(info, kwargs, others)


@each_input
def test_a_state_of_an_older_release_is_loaded(info, kwargs):
    """One that lacks the flags that came later, and has ``step`` as a plain number."""
    optimizer, params = live(ours(info), info, kwargs, steps=3)
    older = copy.deepcopy(optimizer.state_dict())
    for group in older["param_groups"]:
        for flag in info.not_og_supported_flags:
            if flag != "maximize":  # what it says would be lost
                group.pop(flag, None)
    for state in older["state"].values():
        if isinstance(state.get("step"), torch.Tensor):
            state["step"] = int(state["step"])
    others = [p.detach().clone().requires_grad_() for p in params]
    other = ours(info)(others, **copy.deepcopy(kwargs))
    other.load_state_dict(older)
    advance(info, optimizer, params, 3)
    advance(info, other, others, 3)
    assert apart(params, others) <= (0 if steps_alone(info) else allowed(info, {}, params))
    assert_same_state(other, others, optimizer, params)


@pytest.mark.parametrize("way", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))], ids=["copied", "unpickled"])
@pytest.mark.parametrize("info, kwargs", cases(flags_by_themselves))
def test_a_copy_goes_on_exactly(info, kwargs, way):
    optimizer, params = live(ours(info), info, kwargs, steps=2)
    other = way(optimizer)
    others = [p for group in other.param_groups for p in group["params"]]
    assert_same_state(optimizer, params, other, others, exactly=True)
    assert other.engine == optimizer.engine
    advance(info, optimizer, params, 2)
    for p in others:
        p.grad = None
    advance(info, other, others, 2)
    assert apart(params, others) <= (0 if steps_alone(info) else allowed(info, {}, params))


def public(optimizer):
    return {name for name in vars(optimizer) if not name.startswith("_")}


@each_input
def test_a_copy_has_all_public_attributes(info, kwargs):
    optimizer, _ = live(ours(info), info, kwargs, steps=2)
    assert public(copy.deepcopy(optimizer)) == public(optimizer) == {"defaults", "param_groups", "state"}


@pytest.mark.parametrize(
    "info", [pytest.param(i, id=n) for n, i in INFOS.items() if "differentiable" in i.supported_impls]
)
def test_a_step_by_torch_adds_no_public_attributes(info):
    optimizer, _ = live(ours(info), info, {"differentiable": True}, steps=1)
    assert public(optimizer) == {"defaults", "param_groups", "state"}


@each_optimizer
def test_names_of_parameters_are_kept_and_saved(info):
    params = parameters(info)
    named = [(f"layer{n}", p) for n, p in enumerate(params)]
    optimizer, other = ours(info)(named), info.optim_cls([(n, p.detach().clone()) for n, p in named])
    advance(info, optimizer, params, 0)
    saved = optimizer.state_dict()
    assert saved["param_groups"][0]["param_names"] == [n for n, _ in named]
    other.load_state_dict(saved)
    assert other.state_dict()["param_groups"][0]["param_names"] == [n for n, _ in named]


@each_optimizer
def test_hooks_of_saving_and_loading_run_in_torch_s_order(info):
    def told(cls):
        optimizer, seen = cls(parameters(info)), []
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("save"))
        optimizer.register_state_dict_post_hook(lambda o, d: seen.append("saved"))
        optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("load"))
        optimizer.register_load_state_dict_pre_hook(lambda o, d: seen.append("first"), prepend=True)
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append("loaded"))
        optimizer.load_state_dict(optimizer.state_dict())
        return seen

    assert told(ours(info)) == told(info.optim_cls) == ["save", "saved", "first", "load", "loaded"]


@each_optimizer
def test_numbers_of_the_state_have_the_default_dtype(info):
    torch.set_default_dtype(torch.float64)
    try:
        optimizer, params = live(ours(info), info, {}, torch.float32, steps=2)
        other, others = live(info.optim_cls, info, {}, torch.float32, steps=2)
    finally:
        torch.set_default_dtype(torch.float32)
    assert_same_state(optimizer, params, other, others)
    assert apart(params, others) <= allowed(info, {}, others)


# --- Steps


@each_optimizer
def test_hooks_of_a_step_run_once_and_in_torch_s_order(info):
    def told(cls):
        params, seen = parameters(info), []
        optimizer = cls(params)
        handles = [
            register_optimizer_step_pre_hook(lambda *_: seen.append("all before")),
            register_optimizer_step_post_hook(lambda *_: seen.append("all after")),
            optimizer.register_step_pre_hook(lambda *_: seen.append("before")),
            optimizer.register_step_post_hook(lambda *_: seen.append("after")),
        ]
        try:
            advance(info, optimizer, params, 0)
        finally:
            for handle in handles:
                handle.remove()
        advance(info, optimizer, params, 1)
        return seen

    assert told(ours(info)) == told(info.optim_cls) == ["all before", "before", "after", "all after"]


@pytest.mark.parametrize("info, kwargs", cases(flags_by_themselves, where=steps_alone))
def test_gradients_are_read_and_never_written(info, kwargs):
    # With foreach, torch's SGD adds the momentum to p.grad: "foreach-nesterov-writes-gradient" in the ledger.
    optimizer, params = live(ours(info), info, kwargs, steps=1)
    give(info, params, 1)
    grads = [p.grad for p in params]
    before = [(g.to_dense().clone(), g._version) for g in grads]
    optimizer.step()
    for p, g, (value, version) in zip(params, grads, before, strict=True):
        assert p.grad is g
        assert torch.equal(g.to_dense(), value)
        assert g._version == version


@pytest.mark.parametrize("info, kwargs", cases(flags_by_themselves))
def test_a_step_without_gradients_does_nothing(info, kwargs):
    params = parameters(info, requires_grad=not kwargs.get("differentiable"))
    optimizer = ours(info)(params, **copy.deepcopy(kwargs))
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.step(*([lambda: torch.tensor(1.0)] if info.step_requires_closure else []))
    assert apart(params, parameters(info)) == 0
    if steps_alone(info):
        assert str(optimizer.state_dict()) == str(before)


@pytest.mark.parametrize("info, kwargs", cases(flags_by_themselves, where=steps_alone))
def test_a_step_with_gradients_of_zero_is_torch_s(info, kwargs):
    def run(cls):
        params = parameters(info, requires_grad=not kwargs.get("differentiable"))
        optimizer = cls(params, **copy.deepcopy(kwargs))
        for p in params:
            p.grad = torch.zeros_like(p).detach()
            p.grad = p.grad.to_sparse(1) if info.only_supports_sparse_grads else p.grad
        optimizer.step()
        return params

    found, expected = run(ours(info)), run(info.optim_cls)
    assert apart(found, expected) <= allowed(info, kwargs, expected, 1)
    if (
        not kwargs.get("weight_decay", ours(info)(parameters(info)).defaults.get("weight_decay"))
        and info.name != "ASGD"
    ):
        assert apart(found, parameters(info)) == 0


@each_that_steps_alone
def test_a_closure_is_evaluated_once_with_gradients_on(info):
    params, seen = parameters(info), []
    optimizer = ours(info)(params)

    def closure():
        seen.append(torch.is_grad_enabled())
        give(info, params, 0)
        return "loss"

    with torch.no_grad():
        assert optimizer.step(closure) == "loss"
    _, expected = live(ours(info), info, {}, steps=1)
    assert seen == [True]
    assert apart(params, expected) == 0


def scaled_step(cls, info, kwargs, scale, *, found_inf=0.0):
    params = parameters(info)
    optimizer = cls(params, **copy.deepcopy(kwargs))
    for step in range(3):
        give(info, params, step)
        for p in params:
            p.grad = p.grad * scale
        optimizer.grad_scale = torch.tensor(scale)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
    return optimizer, params


@pytest.mark.parametrize("info, kwargs", cases(without_flags, where=steps_alone))
def test_the_scaling_of_gradients_is_undone(info, kwargs):
    """By powers of two exactly."""
    _, params = scaled_step(ours(info), info, kwargs, 4.0)
    _, expected = live(ours(info), info, kwargs, steps=3)
    assert apart(params, expected) == 0


@pytest.mark.parametrize("info, kwargs", cases(without_flags, where=steps_alone))
def test_a_step_that_found_infinities_is_skipped(info, kwargs):
    optimizer, params = scaled_step(ours(info), info, kwargs, 4.0, found_inf=1.0)
    assert apart(params, parameters(info)) == 0
    assert all(float(state.get("step", 0)) == 0 for state in optimizer.state.values())


@pytest.mark.parametrize("info, kwargs", cases(without_flags, where=lambda i: "fused" in i.supported_impls))
def test_the_scaling_of_gradients_is_undone_as_by_torch_s_fused_kernels(info, kwargs):
    _, params = scaled_step(ours(info), info, {**kwargs, "fused": True}, 3.0)
    _, others = scaled_step(info.optim_cls, info, {**kwargs, "fused": True}, 3.0)
    assert apart(params, others) <= allowed(info, kwargs, others, 3)


# --- What is refused


ERRORS = [
    pytest.param(info, error, id=f"{name}-{spelled(error.optimizer_error_input.desc)}")
    for name, info in INFOS.items()
    for error in info.optim_error_inputs_func("cpu", torch.float32)
]


@pytest.mark.parametrize("info, error", ERRORS)
def test_what_torch_refuses_is_refused_by_the_same_exception_and_words(info, error):
    given = error.optimizer_error_input
    for cls in (ours(info), info.optim_cls):
        params = [torch.nn.Parameter(torch.randn(2, 3))] if given.params is None else given.params
        if issubclass(error.error_type, Warning):
            with pytest.warns(error.error_type, match=error.error_regex):
                cls(params, **given.kwargs)
            continue
        if error.error_on is database.OptimizerErrorEnum.STEP_ERROR:
            optimizer = cls(params, **given.kwargs)
            with pytest.raises(error.error_type, match=error.error_regex) as caught:
                optimizer.step()
        else:
            with pytest.raises(error.error_type, match=error.error_regex) as caught:
                cls(params, **given.kwargs)
        assert caught.type is error.error_type


@pytest.mark.parametrize("info", [pytest.param(i, id=n) for n, i in INFOS.items() if "fused" in i.supported_impls])
@pytest.mark.parametrize("other", ["foreach", "differentiable"])
def test_flags_that_exclude_each_other_are_refused(info, other):
    for cls in (ours(info), info.optim_cls):
        with pytest.raises(RuntimeError, match="fused"):
            cls(parameters(info), fused=True, **{other: True})


@each_optimizer
def test_it_is_printed_as_torch_s_is(info):
    found, expected = (repr(cls(parameters(info))) for cls in (ours(info), info.optim_cls))
    if info.optim_cls is torch.optim.LBFGS and "maximize" not in expected:  # torch has it from 2.14 on
        found = "".join(line for line in found.splitlines(keepends=True) if "maximize" not in line)
    assert found == expected
