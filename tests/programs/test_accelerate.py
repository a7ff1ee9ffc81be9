"""Accelerate wraps an optimizer in its own, which tells of skipped steps, and places, saves and loads the state."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR
from torch.utils.data import DataLoader

from programs.side_by_side import (
    OPTIONS,
    STEPPING,
    STEPS,
    TELLING,
    Outcome,
    inputs,
    keys,
    loss,
    model,
    needed,
    same,
    state,
    weights,
)

accelerate = needed("accelerate")
PROGRAM = "Accelerate"


@pytest.fixture(autouse=True)
def _no_state_left():
    """It keeps one state for a process."""
    yield
    forget()


def forget():
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()


def prepared(cls, name, **options):
    """An accelerator anew, and the model, optimizer, batches and schedule that it gives back."""
    forget()
    accelerator = accelerate.Accelerator(cpu=True, **options)
    dtype = torch.float32 if options.get("mixed_precision") else torch.float64
    made = model(name, dtype)
    optimizer = cls(made.parameters(), **OPTIONS[name])
    batches = DataLoader([x for step in range(STEPS) for x in inputs(name, step, dtype)], batch_size=5)
    return accelerator, *accelerator.prepare(made, optimizer, batches, ExponentialLR(optimizer, 0.75))


@pytest.mark.parametrize("name", STEPPING)
def test_it_accumulates_clips_and_schedules(name):
    def program(cls):
        accelerator, made, optimizer, batches, schedule = prepared(cls, name, gradient_accumulation_steps=2)
        assert isinstance(optimizer.optimizer, cls)
        seen, norms = [], []
        for _ in range(2):
            for x in batches:
                with accelerator.accumulate(made):
                    accelerator.backward(loss(made, x))
                    if accelerator.sync_gradients:
                        norms.append(accelerator.clip_grad_norm_(made.parameters(), 0.5))
                    optimizer.step()
                    schedule.step()
                    optimizer.zero_grad()
                    seen.append((accelerator.optimizer_step_was_skipped, schedule.get_last_lr()))
        return Outcome([*weights(made), *state(optimizer), *norms], (seen, keys(optimizer)))

    same(PROGRAM, name, program)


@pytest.mark.parametrize(
    ("name", "fused"),
    [*((name, False) for name in STEPPING), *((name, True) for name in ("SGD", "Adam", "AdamW", "Adagrad"))],
)
def test_it_tells_of_skipped_steps(name, fused):
    """The scaler of a run in float16, which it makes for GPUs alone, is made for the CPU here."""

    def program(cls):
        forget()
        accelerator, made = accelerate.Accelerator(cpu=True), model(name)
        optimizer = cls(made.parameters(), **OPTIONS[name], **({"fused": True} if fused else {}))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        wrapped = accelerate.optimizer.AcceleratedOptimizer(optimizer, scaler=scaler)
        accelerator._optimizers.append(wrapped)
        seen = []
        for step in range(STEPS):
            wrapped.zero_grad()
            scaler.scale(loss(made, inputs(name, step))).backward()
            if step in (2, 5):
                next(made.parameters()).grad[-1, -1] = float("inf")
            wrapped.step()
            seen.append((accelerator.optimizer_step_was_skipped, wrapped.step_was_skipped, scaler.get_scale()))
        return Outcome([*weights(made), *state(wrapped)], (seen, keys(wrapped)))

    def told(outcome):
        return [n for n, (skipped, *_) in enumerate(outcome.seen[0]) if skipped]

    same(PROGRAM, name, program)
    assert told(program(getattr(torch.optim, name))) == ([] if fused else [2, 5])


@pytest.mark.parametrize("name", TELLING)
def test_it_trains_in_bfloat16(name):
    """A difference of a rounding in a weight may be one of bfloat16 in the gradient, 2^-8 of it: a learning rate's 2^-8 in a step."""

    def program(cls):
        accelerator, made, optimizer, batches, _ = prepared(cls, name, mixed_precision="bf16")
        for x in batches:
            optimizer.zero_grad()
            with accelerator.autocast():
                value = loss(made, x)
            accelerator.backward(value)
            optimizer.step()
        return Outcome(weights(made), (keys(optimizer), accelerator.optimizer_step_was_skipped))

    same(f"{PROGRAM}, bf16", name, program, roundings=2.0**-8 * 2.0**24, by=0.5)


@pytest.mark.parametrize("name", TELLING)
def test_a_run_that_was_saved_goes_on(name, tmp_path):
    def trained(made, optimizer, schedule, accelerator, steps):
        for step in steps:
            accelerator.backward(loss(made, inputs(name, step)))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()

    def program(cls):
        accelerator, made, optimizer, _, schedule = prepared(cls, name)
        trained(made, optimizer, schedule, accelerator, range(STEPS // 2))
        saved = accelerator.save_state(str(tmp_path / cls.__module__))
        accelerator, made, optimizer, _, schedule = prepared(cls, name)
        with torch.no_grad():
            for p in made.parameters():
                nn.init.zeros_(p)
        accelerator.load_state(saved)
        trained(made, optimizer, schedule, accelerator, range(STEPS // 2, STEPS))
        return Outcome([*weights(made), *state(optimizer)], (schedule.get_last_lr(), keys(optimizer)))

    same(PROGRAM, name, program)
