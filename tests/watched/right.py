"""Trainings without a fault, under all sorts of conditions. Each is given how to watch, and takes a step whenever it is asked for the next."""

import contextlib
import copy
import functools
import itertools

import torch

from stepcheck import fast
from watched.faulty import Own
from watched.runs import backward, loss_of, net, train

RIGHT = {}
SCHEDULERS = torch.optim.lr_scheduler


def right(training):
    RIGHT[training.__name__] = training
    return training


def endless(model, optimizer, **options):
    return train(model, optimizer, 10**9, **options)


# Every optimizer, as it comes and in its modes

OPTIONS = {
    "SGD": {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    "Adam": {"lr": 1e-2, "amsgrad": True},
    "AdamW": {"lr": 1e-2},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adagrad": {"lr": 0.1, "lr_decay": 1e-3},
    "Adadelta": {"lr": 1.0},
    "Adamax": {"lr": 1e-2},
    "NAdam": {"lr": 1e-2, "weight_decay": 0.1},
    "RAdam": {"lr": 1e-2},
    "Rprop": {},
    "ASGD": {"t0": 3},
    "Adafactor": {"lr": 1e-2},
}


def _plain(family, name, dtype, **mode):
    def training(watch):
        model = net(dtype)
        optimizer = getattr(family, name)(model.parameters(), **OPTIONS[name], **mode)
        watch(optimizer, model)
        yield from endless(model, optimizer, dtype=dtype)

    return training


for _name in OPTIONS:
    _families = {"torch": torch.optim, "fast": fast}
    for _word, _family in _families.items():
        RIGHT[f"{_word} {_name}"] = _plain(_family, _name, torch.float32)
    RIGHT[f"torch {_name} float64"] = _plain(torch.optim, _name, torch.float64)
    RIGHT[f"torch {_name} foreach"] = _plain(torch.optim, _name, torch.float32, foreach=True)
for _name in ("SGD", "Adam", "AdamW", "Adagrad"):
    RIGHT[f"torch {_name} fused"] = _plain(torch.optim, _name, torch.float32, fused=True)
for _name in ("Adam", "SGD", "Adagrad", "RMSprop"):
    RIGHT[f"torch {_name} bfloat16"] = _plain(torch.optim, _name, torch.bfloat16)
    RIGHT[f"torch {_name} foreach bfloat16"] = _plain(torch.optim, _name, torch.bfloat16, foreach=True)
    RIGHT[f"fast {_name} bfloat16"] = _plain(fast, _name, torch.bfloat16)
RIGHT["torch AdamW fused bfloat16"] = _plain(torch.optim, "AdamW", torch.bfloat16, fused=True)
RIGHT["fast AdamW compensated bfloat16"] = _plain(fast, "AdamW", torch.bfloat16, compensated=True)


# Gradients


@right
def clipped(watch):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch(optimizer, model)
    for n in itertools.count():
        optimizer.zero_grad()
        backward(model, n)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        yield


@right
def accumulated(watch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    watch(optimizer, model)
    for n in itertools.count():
        for m in range(3):
            backward(model, 3 * n + m)
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        yield


@right
def autocast(watch):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch(optimizer, model)
    for n in itertools.count():
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, n)
        loss.backward()
        optimizer.step()
        yield


def _scaled(make, *, unscales=False, clip=False):
    def training(watch):
        model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=2.0**20, growth_interval=4)
        optimizer = make(model.parameters(), lr=1e-2)
        watch(optimizer, model, scaler=scaler)
        for n in itertools.count():
            optimizer.zero_grad()
            scaler.scale(loss_of(model, n) * (float("inf") if n % 6 == 5 else 1.0)).backward()
            if unscales:
                scaler.unscale_(optimizer)
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            yield

    return training


RIGHT["scaled"] = _scaled(torch.optim.AdamW)
RIGHT["scaled and clipped"] = _scaled(torch.optim.AdamW, unscales=True, clip=True)
RIGHT["scaled, fused"] = _scaled(functools.partial(torch.optim.AdamW, fused=True))
RIGHT["scaled, fused and unscaled"] = _scaled(functools.partial(torch.optim.AdamW, fused=True), unscales=True)
RIGHT["scaled, fast and fused"] = _scaled(functools.partial(fast.AdamW, fused=True))
RIGHT["scaled, fast"] = _scaled(fast.AdamW)


@right
def scaler_not_used_at_first(watch):
    model, scaler = net(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    watch(optimizer, model, scaler=scaler)
    for n in itertools.count():
        optimizer.zero_grad()
        loss = loss_of(model, n)
        if n < 5:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        yield


@right
def gradients_of_another_loss_cleared_late(watch):
    """As a generator gets gradients from the discriminator's loss, and clears them before its own."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(optimizer, model)
    for n in itertools.count():
        backward(model, n + 1000)
        optimizer.zero_grad()
        backward(model, n)
        optimizer.step()
        yield


@right
def one_loss_scaled_and_another_not(watch):
    model, other, scaler = net(), net(seed=1), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    its = torch.optim.SGD(other.parameters(), lr=0.1)
    watch(optimizer, model, scaler=scaler)
    for n in itertools.count():
        its.zero_grad()
        backward(other, n, scaler=scaler)
        scaler.step(its)
        scaler.update()
        optimizer.zero_grad()
        backward(model, n)
        optimizer.step()
        yield


@right
def scheduler_replaced(watch):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    scheduler = SCHEDULERS.LinearLR(optimizer, 0.1, total_iters=4)
    watch(optimizer, model, scheduler=scheduler)
    for n, _ in enumerate(endless(model, optimizer)):
        scheduler = SCHEDULERS.ExponentialLR(optimizer, 0.9) if n == 5 else scheduler
        scheduler.step()
        yield


@right
def closure_that_the_step_clears_after(watch):
    model = net()
    optimizer = Clears(model.parameters(), lr=0.1)
    watch(optimizer, model, like="SGD")
    for n in itertools.count():
        if n % 2:
            optimizer.step(lambda n=n: backward(model, n))
        else:
            backward(model, n)
            optimizer.step()
        yield


@right
def closure(watch):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch(optimizer, model)
    for n in itertools.count():

        def again(n=n):
            optimizer.zero_grad()
            return backward(model, n)

        optimizer.step(again)
        yield


@right
def maximized(watch):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), maximize=True)
    watch(optimizer, model)
    yield from endless(model, optimizer)


@right
def clipped_in_a_hook_of_the_step(watch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(optimizer, model)
    optimizer.register_step_pre_hook(lambda *_: torch.nn.utils.clip_grad_value_(model.parameters(), 1e-3) and None)
    optimizer.register_step_post_hook(lambda *_: [p.data.clamp_(-1, 1) for p in model.parameters()] and None)
    yield from endless(model, optimizer)


def _sparse(make):
    def training(watch):
        model = torch.nn.Embedding(500, 4, sparse=True)
        with torch.no_grad():
            model.weight.copy_(torch.linspace(-1, 1, 2000).view(500, 4))
        optimizer = make(model.parameters())
        watch(optimizer, model)
        for n in itertools.count():
            optimizer.zero_grad()
            words = torch.randint(500, (40,), generator=torch.Generator().manual_seed(n))
            model(words).square().sum().backward()
            optimizer.step()
            yield

    return training


RIGHT["sparse SGD"] = _sparse(functools.partial(torch.optim.SGD, lr=0.1))
RIGHT["sparse Adagrad"] = _sparse(torch.optim.Adagrad)
RIGHT["sparse SparseAdam"] = _sparse(torch.optim.SparseAdam)
RIGHT["sparse fast SparseAdam"] = _sparse(fast.SparseAdam)


# Parameters and groups


@right
def tied_weights(watch):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    model[1].weight = model[0].weight
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watch(optimizer, model)
    yield from endless(model, optimizer)


@right
def frozen_and_late(watch):
    model = net()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW(model[2:].parameters(), lr=1e-2)
    watch(optimizer, model)
    yield from train(model, optimizer, 7)
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 1e-3})
    model[0].requires_grad_(True)
    yield from train(model, optimizer, 7, begin=7)
    model[3].requires_grad_(False)
    yield from endless(model, optimizer)


@right
def groups_and_two_optimizers(watch):
    model = net()
    groups = [
        {"params": [model[0].weight], "lr": 0.1, "weight_decay": 0.1},
        {"params": [model[0].bias], "betas": (0.5, 0.6)},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    other = torch.optim.SGD(model[2:].parameters(), lr=0.1)
    watch(optimizer, model, beside=other)
    for _ in train(model, optimizer, 10**9):
        other.step()
        other.zero_grad()
        yield


@right
def scalars_empty_and_complex(watch):
    parameters = [
        torch.nn.Parameter(torch.tensor(0.5)),
        torch.nn.Parameter(torch.zeros(0, 3)),
        torch.nn.Parameter(torch.ones(1)),
        torch.nn.Parameter(torch.linspace(-1, 1, 100).view(10, 10).t()),
        torch.nn.Parameter(torch.complex(torch.linspace(-1, 1, 40), torch.linspace(1, 3, 40))),
    ]
    optimizer = torch.optim.Adam(parameters, lr=1e-2)
    watch(optimizer)
    while True:
        optimizer.zero_grad()
        sum((p.abs() ** 3).sum() for p in parameters).backward()
        optimizer.step()
        yield


@right
def weights_averaged_and_swapped_for_evaluation(watch):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    average = torch.optim.swa_utils.AveragedModel(model)
    watch(optimizer, model)
    for _ in endless(model, optimizer):
        average.update_parameters(model)
        own = copy.deepcopy(model.state_dict())
        model.load_state_dict(average.module.state_dict())
        model.load_state_dict(own)
        yield


@right
def replicas_in_step(watch):
    model = net()
    replica = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    watch(optimizer, model, replicas=[replica])
    for _ in endless(model, optimizer):
        replica.load_state_dict(model.state_dict())
        yield


# Schedules


def _scheduled(make, **options):
    def training(watch):
        model = net()
        groups = [{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 3e-3}]
        optimizer = torch.optim.AdamW(groups, **{"lr": 1e-2, **{k: make_one() for k, make_one in options.items()}})
        scheduler = make(optimizer)
        watch(optimizer, model, scheduler=scheduler)
        several = scheduler if isinstance(scheduler, list) else [scheduler]
        for n, _ in enumerate(endless(model, optimizer)):
            for each in several:
                each.step(*[1.0 + n][: isinstance(each, SCHEDULERS.ReduceLROnPlateau)])
            yield

    return training


RIGHT["StepLR"] = _scheduled(lambda o: SCHEDULERS.StepLR(o, 3, 0.5))
RIGHT["OneCycleLR"] = _scheduled(lambda o: SCHEDULERS.OneCycleLR(o, [0.1, 0.2], total_steps=100))
RIGHT["ReduceLROnPlateau"] = _scheduled(lambda o: SCHEDULERS.ReduceLROnPlateau(o, patience=1))
RIGHT["SequentialLR"] = _scheduled(
    lambda o: SCHEDULERS.SequentialLR(
        o, [SCHEDULERS.LinearLR(o, 0.1, total_iters=4), SCHEDULERS.CosineAnnealingLR(o, 20)], [4]
    )
)
RIGHT["two schedulers in turn"] = _scheduled(
    lambda o: [SCHEDULERS.LinearLR(o, 0.1, total_iters=4), SCHEDULERS.ExponentialLR(o, 0.9)]
)
RIGHT["a tensor for lr"] = _scheduled(lambda o: SCHEDULERS.CosineAnnealingLR(o, 20), lr=lambda: torch.tensor(1e-2))


# Resumed


@right
def resumed(watch):
    model = net()
    former = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in train(model, former, 3):
        pass
    saved = copy.deepcopy(former.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optimizer.load_state_dict(saved)
    watch(optimizer, model, resumed=saved)
    yield from train(model, optimizer, 6)
    kept = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    yield from train(model, optimizer, 3)
    model.load_state_dict(kept[0])  # back to where it was
    optimizer.load_state_dict(kept[1])
    yield from endless(model, optimizer)


@right
def resumed_in_bfloat16(watch):
    model = net(torch.bfloat16)
    former = torch.optim.Adam(net().parameters(), lr=1e-2)
    former_model = net()
    former = torch.optim.Adam(former_model.parameters(), lr=1e-2)
    for _ in train(former_model, former, 3):
        pass
    optimizer = fast.Adam(model.parameters(), lr=1e-2)
    watch(optimizer, model, resumed=former.state_dict())
    optimizer.load_state_dict(former.state_dict())
    yield from endless(model, optimizer, dtype=torch.bfloat16)


# Somebody's class


class Clears(torch.optim.SGD):
    """One that clears gradients itself."""

    def step(self, closure=None):
        loss = super().step(closure)
        self.zero_grad()
        return loss


@right
def own_class(watch):
    model = net()
    optimizer = Own(model.parameters())
    watch(optimizer, model, like="AdamW")
    yield from endless(model, optimizer)


class Spelled(Own):
    """The same, with other names."""

    def __init__(self, params, rate=1e-2, decay=0.1):
        super().__init__(params, rate, weight_decay=decay)
        for group in self.param_groups:
            group["rate"], group["decay"] = group.pop("lr"), group.pop("weight_decay")
            group["beta1"], group["beta2"] = group.pop("betas")

    def options(self, group):
        own = {"lr": group["rate"], "weight_decay": group["decay"], "betas": (group["beta1"], group["beta2"])}
        return {**group, **own}

    def move(self, p, g, state, group):
        named = {"exp_avg": "m", "exp_avg_sq": "v", "step": "t"}
        inner = {ours: state[theirs] for ours, theirs in named.items() if theirs in state}
        super().move(p, g, inner, group)
        state.update({named[ours]: value for ours, value in inner.items()})


@right
def own_names(watch):
    model = net()
    optimizer = Spelled(model.parameters())
    names = {"lr": "rate", "weight_decay": "decay", "betas": ("beta1", "beta2")}
    names |= {"exp_avg": "m", "exp_avg_sq": "v", "step": "t"}
    watch(optimizer, model, like="AdamW", names=names)
    yield from endless(model, optimizer)


class CallsSuper(torch.optim.Adam):
    """Adam with gradients that it centers first, by its base's step: hooks run twice."""

    def step(self, closure=None):
        return super().step(closure)


@right
def step_within_a_step(watch):
    model = net()
    optimizer = CallsSuper(model.parameters(), lr=1e-2)
    watch(optimizer, model, like="Adam")
    yield from endless(model, optimizer)


class Failing(torch.optim.SGD):
    """One whose step raises now and then."""

    count = 0

    def step(self, closure=None):
        self.count += 1
        if self.count % 5 == 0:
            raise ValueError("not now")
        return super().step(closure)


@right
def steps_that_raise(watch):
    model = net()
    optimizer = Failing(model.parameters(), lr=0.1, momentum=0.9)
    watch(optimizer, model, like="SGD")
    for n in itertools.count():
        optimizer.zero_grad()
        backward(model, n)
        with contextlib.suppress(ValueError):
            optimizer.step()
        yield


# The process


@right
def subnormals_flushed(watch):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch(optimizer, model)
    torch.set_flush_denormal(True)
    try:
        for n in itertools.count():
            optimizer.zero_grad()
            (loss_of(model, n) * 1e-18).backward()
            optimizer.step()
            yield
    finally:
        torch.set_flush_denormal(False)


@right
def tiny_gradients(watch):
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    watch(optimizer, model)
    for n in itertools.count():
        optimizer.zero_grad()
        (loss_of(model, n) * 1e-20).backward()
        optimizer.step()
        yield


@right
def float64_by_default(watch):
    torch.set_default_dtype(torch.float64)
    try:
        model = net(torch.float32)
        optimizer = torch.optim.NAdam(model.parameters(), lr=1e-2)
        watch(optimizer, model)
        for n in itertools.count():
            optimizer.zero_grad()
            backward(model, n, torch.float32)
            optimizer.step()
            yield
    finally:
        torch.set_default_dtype(torch.float32)


@right
def state_reset_on_purpose(watch):
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    watching = watch(optimizer, model)
    for n, _ in enumerate(train(model, optimizer, 10**9)):
        if n == 5:
            optimizer.state.clear()
            if watching is not None:
                watching.forget()
        yield
