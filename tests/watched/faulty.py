"""Trainings with a fault, as people write them. Each gives its watch first, and then takes a step whenever it is asked for the next."""

import copy
import itertools

import torch

import stepcheck
from watched.runs import backward, loss_of, net, train

FAULTS = {}
ENDLESS = 10**9


def told_by(check, *, certain=True):
    """Which check tells of a fault, and whether it is certain to be one."""

    def keep(training):
        FAULTS[training.__name__] = (training, check, certain)
        return training

    return keep


def watch(*args, **options):
    return stepcheck.watch(*args, **options)


# Who is stepped


@told_by("registered")
def unregistered_parameter():
    model = net()
    optimizer = torch.optim.AdamW([p for name, p in model.named_parameters() if name != "2.weight"])
    yield watch(optimizer, model)
    yield from train(model, optimizer, ENDLESS)


@told_by("registered")
def parameter_replaced_in_the_model():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    yield watch(optimizer, model)
    yield from train(model, optimizer, 14)
    model[3].weight = torch.nn.Parameter(model[3].weight.detach().clone())
    yield from train(model, optimizer, ENDLESS)


@told_by("registered")
def registered_twice():
    model = net()
    optimizer = torch.optim.SGD([*model.parameters(), model[0].bias], lr=0.1)
    yield watch(optimizer, model)
    yield from train(model, optimizer, ENDLESS)


@told_by("registered")
def in_two_optimizers():
    model = net()
    body, head = torch.optim.SGD(model.parameters(), lr=0.1), torch.optim.SGD(model[3].parameters(), lr=0.1)
    yield watch(body, model, beside=head)
    for _ in train(model, body, ENDLESS):
        head.step()
        yield


@told_by("own-memory")
def tied_by_data():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    model[1].weight.data = model[0].weight.data
    optimizer = torch.optim.Adam(model.parameters())
    yield watch(optimizer, model)
    yield from train(model, optimizer, ENDLESS)


@told_by("replicas-agree")
def stale_replica():
    model = net()
    replica = copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters())
    yield watch(optimizer, model, replicas=[replica])
    for n, _ in enumerate(train(model, optimizer, ENDLESS)):
        if n < 20 or n % 2:  # then it is brought up to date every other step
            replica.load_state_dict(model.state_dict())
        yield


# The learning rate


@told_by("lr-scheduled")
def scheduler_of_another_optimizer():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.AdamW(model.parameters()), 1)
    yield watch(optimizer, model, scheduler=scheduler)
    for _ in train(model, optimizer, ENDLESS):
        scheduler.step()
        yield


@told_by("lr-scheduled")
def scheduler_overruled():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    saved = copy.deepcopy(optimizer.state_dict())
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=50)
    optimizer.load_state_dict(saved)  # and with it the rate, but not the scheduler
    yield watch(optimizer, model, scheduler=scheduler)
    yield from train(model, optimizer, ENDLESS)


@told_by("lr-scheduled")
def rates_of_groups_swapped():
    model = net()
    groups = [{"params": model[:2].parameters(), "lr": 1e-4}, {"params": model[2:].parameters(), "lr": 1e-2}]
    optimizer = torch.optim.AdamW(groups)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    yield watch(optimizer, model, scheduler=scheduler)
    for n, _ in enumerate(train(model, optimizer, ENDLESS)):
        scheduler.step()
        if n >= 12:  # then somebody gives them to the groups in another order
            for group, rate in zip(optimizer.param_groups, reversed(scheduler.get_last_lr()), strict=True):
                group["lr"] = rate
        yield


# State


@told_by("state-continues")
def state_not_resumed():
    model = net()
    former = torch.optim.AdamW(model.parameters())
    for _ in train(model, former, 3):
        pass
    optimizer = torch.optim.AdamW(model.parameters())  # and no load_state_dict
    yield watch(optimizer, model, resumed=former.state_dict())
    yield from train(model, optimizer, ENDLESS)


@told_by("state-continues")
def loaded_state_zeroed():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    yield watch(optimizer, model)
    yield from train(model, optimizer, 13)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for state in optimizer.state.values():
        state["exp_avg"].zero_()
    yield from train(model, optimizer, ENDLESS)


@told_by("state-continues")
def state_cleared():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    yield watch(optimizer, model)
    yield from train(model, optimizer, 25)
    optimizer.state.clear()
    yield from train(model, optimizer, ENDLESS)


@told_by("state-continues")
def momentum_zeroed_every_epoch():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    yield watch(optimizer, model)
    for n, _ in enumerate(train(model, optimizer, ENDLESS)):
        if n % 10 == 9:
            for state in optimizer.state.values():
                state["momentum_buffer"].zero_()
        yield


@told_by("state-continues")
def step_counter_reset():
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    yield watch(optimizer, model)
    yield from train(model, optimizer, 33)
    for state in optimizer.state.values():
        state["step"].zero_()
    yield from train(model, optimizer, ENDLESS)


@told_by("own-memory")
def state_shared():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2), torch.nn.Linear(2, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    yield watch(optimizer, model)
    yield from train(model, optimizer, 2)
    optimizer.state[model[1].weight] = optimizer.state[model[0].weight]
    yield from train(model, optimizer, ENDLESS)


# Gradients


@told_by("cleared")
def zero_grad_missing():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    yield watch(optimizer, model)
    for n in itertools.count():
        backward(model, n)
        optimizer.step()
        yield


@told_by("cleared", certain=False)
def clipped_after_the_step():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield watch(optimizer, model)
    for _ in train(model, optimizer, ENDLESS):
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.01)
        yield


@told_by("unscaled")
def unscale_missing():
    model, scaler = net(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    yield watch(optimizer, model, scaler=scaler)
    for n in itertools.count():
        optimizer.zero_grad()
        backward(model, n, scaler=scaler)
        optimizer.step()
        yield


@told_by("unscaled")
def unscaled_twice():
    model, scaler = net(), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.AdamW(model.parameters())
    yield watch(optimizer, model)
    for n in itertools.count():
        optimizer.zero_grad()
        backward(model, n, scaler=scaler)
        for p in model.parameters():
            p.grad /= scaler.get_scale()
        scaler.step(optimizer)
        scaler.update()
        yield


@told_by("finite", certain=False)
def infinite_gradient():
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    yield watch(optimizer, model)
    for n in itertools.count():
        optimizer.zero_grad()
        (loss_of(model, n) * (float("inf") if n == 4 else 1.0)).backward()
        optimizer.step()
        yield


# Parameters


@told_by("steps-remain", certain=False)
def steps_undone():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    weights = copy.deepcopy(model.state_dict())
    yield watch(optimizer, model)
    for _ in train(model, optimizer, ENDLESS):
        model.load_state_dict(weights)  # of the adapter's base, which it takes for the newest
        yield


@told_by("steps-remain", certain=False)
def data_swapped():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    yield watch(optimizer, model)
    for n, _ in enumerate(train(model, optimizer, ENDLESS)):
        if n == 6:
            model[0].weight.data = model[0].weight.data.clone()
        yield


@told_by("agreement")
def data_swapped_under_flat_memory():
    model = net()
    optimizer = FlatSGD(model.parameters(), lr=0.1)
    yield watch(optimizer, model, like="SGD")
    for n, _ in enumerate(train(model, optimizer, ENDLESS)):
        if n == 15:
            model[0].weight.data = model[0].weight.data.clone()
        yield


@told_by("moves", certain=False)
def bfloat16_stall():
    model = net(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    yield watch(optimizer, model)
    yield from train(model, optimizer, ENDLESS, torch.bfloat16)


# What a step computes


class Own(torch.optim.Optimizer):
    """AdamW, as somebody writes it; the faults are in what overrides a part of it."""

    def __init__(self, params, lr=1e-2, betas=(0.9, 0.999), eps=1e-3, weight_decay=0.1):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.move(p, p.grad, self.state[p], self.options(group))

    def options(self, group):
        return group

    def move(self, p, g, state, group):
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
        state["step"] = self.count(state["step"])
        g = self.decayed(p, g, group)
        state["exp_avg"].lerp_(g, 1 - group["betas"][0])
        self.square(state["exp_avg_sq"], g, group["betas"])
        p.add_(self.update(state, group))

    def count(self, step):
        return step + 1

    def decayed(self, p, g, group):
        p.mul_(1 - group["lr"] * group["weight_decay"])
        return g

    def square(self, average, g, betas):
        average.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])

    def corrections(self, state, group):
        return [1 - beta ** state["step"] for beta in group["betas"]]

    def update(self, state, group):
        one, two = self.corrections(state, group)
        return -group["lr"] * (state["exp_avg"] / one) / ((state["exp_avg_sq"] / two).sqrt() + group["eps"])


class FlatSGD(torch.optim.Optimizer):
    """SGD over one memory that it gives all parameters."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})
        own = [p for group in self.param_groups for p in group["params"]]
        self.flat = torch.cat([p.detach().reshape(-1) for p in own])
        for p, part in zip(own, self.flat.split([p.numel() for p in own]), strict=True):
            p.data = part.view_as(p)

    @torch.no_grad()
    def step(self, closure=None):
        own = [p for group in self.param_groups for p in group["params"]]
        self.flat.add_(torch.cat([p.grad.reshape(-1) for p in own]), alpha=-self.param_groups[0]["lr"])


class SkipsBlock(Own):
    def move(self, p, g, state, group):
        before = p.reshape(-1)[16:32].clone()
        super().move(p, g, state, group)
        p.view(-1)[16:32] = before


class WrongBeta(Own):
    def square(self, average, g, betas):
        super().square(average, g, (betas[0], betas[0]))


class EpsInside(Own):
    def update(self, state, group):
        one, two = self.corrections(state, group)
        return -group["lr"] * (state["exp_avg"] / one) / (state["exp_avg_sq"] / two + group["eps"]).sqrt()


class CoupledDecay(Own):
    def decayed(self, p, g, group):
        return g + group["weight_decay"] * p


class DecaysTwice(Own):
    def decayed(self, p, g, group):
        return super().decayed(p, super().decayed(p, g, group), group)


class Uncorrected(Own):
    def corrections(self, state, group):
        return 1.0, 1.0


class CountsFromZero(Own):
    def count(self, step):
        return max(step, 1)


class RateOfFirstGroup(Own):
    def options(self, group):
        return {**group, "lr": self.param_groups[0]["lr"]}


class RateOfConstruction(Own):
    def options(self, group):
        return {**group, "lr": self.defaults["lr"]}


class NarrowSquares(Own):
    def square(self, average, g, betas):
        super().square(average, g, betas)
        average.copy_(average.bfloat16())


class DecaysIdleParameters(Own):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is None):
                p.data.mul_(1 - group["lr"] * group["weight_decay"])


class StepsThoughSkipped(Own):
    _step_supports_amp_scaling = True

    def move(self, p, g, state, group):
        super().move(p, g.nan_to_num() / self.grad_scale, state, group)


class Truncates(Own):
    def move(self, p, g, state, group):
        before = p.clone()
        super().move(p, g, state, group)
        exact = (
            before.float() + self.update({k: v if k == "step" else v.float() for k, v in state.items()}, group).float()
        )
        p.copy_((exact.view(torch.int32) & -65536).view(torch.float32))


def _of_class(cls, **options):
    def training():
        model = net()
        halves = [{"params": model[:2].parameters()}, {"params": model[2:].parameters(), "lr": 3e-2}]
        optimizer = cls(halves, **options)
        scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 0.5, total_iters=100)
        yield watch(optimizer, model, like="AdamW", scheduler=scheduler)
        for _ in train(model, optimizer, ENDLESS):
            scheduler.step()
            yield

    training.__name__ = cls.__name__
    return training


for _cls in (
    SkipsBlock, WrongBeta, EpsInside, CoupledDecay, DecaysTwice, Uncorrected, CountsFromZero, RateOfFirstGroup, RateOfConstruction, NarrowSquares,
):  # fmt: skip
    told_by("agreement")(_of_class(_cls))


@told_by("no-gradient")
def idle_parameters_are_decayed():
    model = net()
    model[2].requires_grad_(False)
    optimizer = DecaysIdleParameters(model.parameters())
    yield watch(optimizer, model, like="AdamW")
    yield from train(model, optimizer, ENDLESS)


@told_by("skipped-step")
def skipped_step_is_taken():
    model, scaler = net(), torch.amp.GradScaler("cpu")
    optimizer = StepsThoughSkipped(model.parameters())
    yield watch(optimizer, model, like="AdamW", scaler=scaler)
    for n in itertools.count():
        optimizer.zero_grad()
        scaler.scale(loss_of(model, n) * (float("inf") if n % 10 == 9 else 1.0)).backward()
        scaler.step(optimizer)
        scaler.update()
        yield


@told_by("agreement")
def bfloat16_is_truncated():
    model = net(torch.bfloat16)
    optimizer = Truncates(model.parameters(), weight_decay=0.0)
    yield watch(optimizer, model, like="AdamW", profile={"narrow": "once"})
    yield from train(model, optimizer, ENDLESS, torch.bfloat16)
