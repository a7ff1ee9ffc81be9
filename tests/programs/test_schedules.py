"""Every schedule of ``torch.optim.lr_scheduler``, on every class: it writes learning rates, momenta and betas, and finds its own in the groups."""

import copy

import pytest
import torch
from torch.optim import lr_scheduler as schedulers

from programs.side_by_side import OPTIONS, STEPS, Outcome, advance, model, same, state, weights


def _cycles(optimizer):
    """Whether the class has what a cycle of momenta writes."""
    return "momentum" in optimizer.defaults or "betas" in optimizer.defaults


#: One of each. All but constants change something within the steps that are played.
MAKE = {
    "LambdaLR": lambda o: schedulers.LambdaLR(o, lambda n: 1 / (1 + n)),
    "MultiplicativeLR": lambda o: schedulers.MultiplicativeLR(o, lambda n: 0.75),
    "StepLR": lambda o: schedulers.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: schedulers.MultiStepLR(o, [2, 5], 0.5),
    "ConstantLR": lambda o: schedulers.ConstantLR(o, 0.25, 3),
    "LinearLR": lambda o: schedulers.LinearLR(o, 0.5, 1.0, 4),
    "ExponentialLR": lambda o: schedulers.ExponentialLR(o, 0.75),
    "PolynomialLR": lambda o: schedulers.PolynomialLR(o, 2 * STEPS, 2.0),
    "CosineAnnealingLR": lambda o: schedulers.CosineAnnealingLR(o, STEPS, 1e-3),
    "CosineAnnealingWarmRestarts": lambda o: schedulers.CosineAnnealingWarmRestarts(o, 3),
    "CyclicLR": lambda o: schedulers.CyclicLR(o, 0.005, 0.02, 3, cycle_momentum=_cycles(o)),
    "OneCycleLR": lambda o: schedulers.OneCycleLR(o, 0.05, total_steps=3 * STEPS, cycle_momentum=_cycles(o)),
    "ReduceLROnPlateau": lambda o: schedulers.ReduceLROnPlateau(o, patience=0, threshold=0.5),
    "ChainedScheduler": lambda o: schedulers.ChainedScheduler(
        [schedulers.LinearLR(o, 0.5, 1.0, 4), schedulers.ExponentialLR(o, 0.75)], optimizer=o
    ),
    "SequentialLR": lambda o: schedulers.SequentialLR(
        o, [schedulers.ConstantLR(o, 0.5, 3), schedulers.CosineAnnealingLR(o, STEPS)], [3]
    ),
}


def test_no_schedule_of_torch_is_missed():
    there = {
        name
        for name, cls in vars(schedulers).items()
        if isinstance(cls, type) and issubclass(cls, schedulers.LRScheduler) and not name.startswith("_")
    }
    assert set(MAKE) == there - {"LRScheduler"}


def written(optimizer):
    return [
        {k: float(v) if k == "lr" else v for k, v in g.items() if k in ("lr", "momentum", "betas")}
        for g in optimizer.param_groups
    ]


def stepped(schedule, loss):
    schedule.step(*([loss] if isinstance(schedule, schedulers.ReduceLROnPlateau) else []))


def scheduled(schedule, name, options):
    """Half of the steps, a schedule and an optimizer saved and made anew, and the other half."""

    def program(cls):
        made = model(name)
        optimizer = cls(made.parameters(), **copy.deepcopy(options))
        follows = MAKE[schedule](optimizer)
        seen = [written(optimizer)]
        for step in range(STEPS):
            if step == STEPS // 2:
                saved = copy.deepcopy((optimizer.state_dict(), follows.state_dict()))
                optimizer = cls(made.parameters(), **copy.deepcopy(options))
                follows = MAKE[schedule](optimizer)
                optimizer.load_state_dict(saved[0])
                follows.load_state_dict(saved[1])
            loss = advance(name, made, optimizer, step)
            stepped(follows, float(loss))
            seen.append(written(optimizer))
        return Outcome([*weights(made), *state(optimizer)], seen)

    return program


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("schedule", MAKE)
def test_a_schedule_leads_where_it_leads_torch(schedule, name):
    same("schedules", name, scheduled(schedule, name, OPTIONS[name]))


@pytest.mark.sampled(5)
@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adafactor", "Muon"])
@pytest.mark.parametrize("schedule", MAKE)
def test_a_schedule_writes_into_a_tensor(schedule, name):
    options = {**OPTIONS[name], "lr": torch.tensor(OPTIONS[name]["lr"], dtype=torch.float64)}
    same("schedules", name, scheduled(schedule, name, options))
