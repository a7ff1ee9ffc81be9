"""What training loops of torch alone do with an optimizer: averages of weights, a step in the backward pass, gradient scaling, compilation."""

import pytest
import torch
from torch import nn
from torch.optim import swa_utils

from programs.side_by_side import (
    OPTIONS,
    STEPPING,
    STEPS,
    TELLING,
    Outcome,
    advance,
    inputs,
    keys,
    loss,
    model,
    same,
    state,
    weights,
)
from stepcheck.fast.optimizer import Fast

# --- Averages of weights


@pytest.mark.parametrize(
    "average", [swa_utils.get_ema_multi_avg_fn(0.9), swa_utils.get_swa_multi_avg_fn()], ids=["ema", "swa"]
)
@pytest.mark.parametrize("name", OPTIONS)
def test_averages_of_weights(name, average):
    def program(cls):
        made = model(name)
        optimizer = cls(made.parameters(), **OPTIONS[name])
        averaged = swa_utils.AveragedModel(made, multi_avg_fn=average, use_buffers=True)
        schedule, seen = swa_utils.SWALR(optimizer, swa_lr=OPTIONS[name]["lr"] / 2, anneal_epochs=3), []
        for step in range(STEPS):
            advance(name, made, optimizer, step)
            averaged.update_parameters(made)
            schedule.step()
            seen.append(optimizer.param_groups[0]["lr"])
        return Outcome([*weights(made), *weights(averaged)], (seen, int(averaged.n_averaged)))

    same("EMA and SWA", name, program)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", STEPPING)
def test_statistics_of_a_batch_are_taken_anew_for_averaged_weights(name):
    def program(cls):
        torch.manual_seed(0)
        made = nn.Sequential(nn.Linear(6, 8, bias=False), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3)).double()
        params = [p for p in made.parameters() if name != "Muon" or p.ndim == 2]
        optimizer, averaged = cls(params, **OPTIONS[name]), swa_utils.AveragedModel(made)
        for step in range(STEPS):
            advance(name, made, optimizer, step)
            averaged.update_parameters(made)
        swa_utils.update_bn([inputs(name, step) for step in range(4)], averaged)
        return Outcome([*weights(made), *weights(averaged)])

    same("EMA and SWA", name, program)


# --- A step in the backward pass


@pytest.mark.parametrize("name", [name for name in OPTIONS if name != "LBFGS"])
def test_each_parameter_is_stepped_as_soon_as_it_has_its_gradient(name):
    def program(cls):
        made, order = model(name), []
        optimizers = {p: cls([p], **OPTIONS[name]) for p in made.parameters()}
        places = {p: i for i, p in enumerate(optimizers)}

        def step_now(p):
            optimizers[p].step()
            optimizers[p].zero_grad()
            order.append(places[p])

        for p in optimizers:
            p.register_post_accumulate_grad_hook(step_now)
        for step in range(STEPS):
            loss(made, inputs(name, step)).backward()
        gone = [p.grad is None for p in optimizers]
        return Outcome([*weights(made), *(t for o in optimizers.values() for t in state(o))], (order, gone))

    same("step in the backward pass", name, program)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of the module that it is in, on import
@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", STEPPING)
def test_torch_s_own_way_to_step_in_the_backward_pass(name):
    from torch.distributed.optim import _apply_optimizer_in_backward, _get_in_backward_optimizers

    def program(cls):
        made = model(name)
        _apply_optimizer_in_backward(cls, made.parameters(), dict(OPTIONS[name]))
        for step in range(STEPS):
            loss(made, inputs(name, step)).backward()
        optimizers = _get_in_backward_optimizers(made)
        assert all(isinstance(o, cls) for o in optimizers)
        return Outcome([*weights(made), *(t for o in optimizers for t in state(o))], len(optimizers))

    same("step in the backward pass", name, program)


# --- Gradient scaling


def scaled(name, options, *, clipped):
    """Some steps, two of them skipped: for an infinite gradient, and for one that is no number."""

    def program(cls):
        made = model(name)
        optimizer, called = cls(made.parameters(), **OPTIONS[name], **options), []
        optimizer.register_step_post_hook(lambda *_: called.append(len(seen)))
        scaler, seen = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2), []
        for step in range(STEPS):
            optimizer.zero_grad()
            scaler.scale(loss(made, inputs(name, step))).backward()
            if step in (2, 5):
                next(made.parameters()).grad[-1, -1] = float("inf" if step == 2 else "nan")
            if clipped:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(made.parameters(), 0.1)
            scaler.step(optimizer)
            scaler.update()
            seen.append(scaler.get_scale())
        return Outcome([*weights(made), *state(optimizer)], (seen, called, keys(optimizer)))

    return program


@pytest.mark.parametrize("clipped", [False, True], ids=["plain", "clipped"])
@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", STEPPING)
def test_gradients_are_scaled_and_steps_skipped(name, clipped):
    same("GradScaler", name, scaled(name, {}, clipped=clipped))


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "Adagrad"])
def test_gradients_are_unscaled_in_a_fused_step(name):
    same("GradScaler", name, scaled(name, {"fused": True}, clipped=False))


# --- Accumulation and clipping by value, with groups and a parameter that is frozen


@pytest.mark.sampled(4)
@pytest.mark.parametrize("name", STEPPING)
def test_gradients_are_accumulated_clipped_and_a_layer_is_frozen_and_thawed(name):
    def program(cls):
        made = model(name)
        first, second = list(made[0].parameters()), list(made[2].parameters())
        optimizer = cls([{"params": first}, {"params": second, "lr": OPTIONS[name]["lr"] / 4}], **OPTIONS[name])
        for step in range(3 * STEPS):
            (loss(made, inputs(name, step)) / 3).backward()
            if step % 3 == 2:
                nn.utils.clip_grad_value_(made.parameters(), 0.01)
                optimizer.step()
                optimizer.zero_grad(set_to_none=step % 2 == 0)
                made[0].requires_grad_(3 * 2 < step < 3 * 4 or step > 3 * 6)
        return Outcome([*weights(made), *state(optimizer)], keys(optimizer))

    same("accumulation and clipping", name, program)


# --- Compilation


def compiled(test):
    """Of a test that compiles: it takes seconds, starts afresh, and the compiler's own warnings are no errors."""
    warnings = ("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
    return pytest.mark.slow(pytest.mark.filterwarnings(*warnings)(test))


def compiled_if_fast(optimizer):
    """A step of ``torch.optim`` is left alone: the compiler computes its scalars in float32, and 1 - beta2 is off by 2^-24 then."""
    if isinstance(optimizer, Fast):
        return torch.compile(optimizer.step, backend="eager")
    return torch.compiler.disable(optimizer.step)


@compiled
@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("name", TELLING)
def test_a_training_step_is_compiled(name, backend):
    def program(cls):
        torch._dynamo.reset()
        made = model(name)
        optimizer = cls(made.parameters(), **OPTIONS[name])
        stepped = optimizer.step if isinstance(optimizer, Fast) else torch.compiler.disable(optimizer.step)

        @torch.compile(backend=backend)
        def train(x):
            optimizer.zero_grad()
            value = loss(made, x)
            value.backward()
            stepped()
            return value.detach()

        found = [train(inputs(name, step)) for step in range(STEPS)]
        return Outcome([*weights(made), *found], keys(optimizer))

    same("torch.compile", name, program)


@compiled
@pytest.mark.parametrize("name", STEPPING)
def test_a_step_is_compiled(name):
    def program(cls):
        torch._dynamo.reset()
        made = model(name)
        optimizer = cls(made.parameters(), **OPTIONS[name])
        stepped = compiled_if_fast(optimizer)
        for step in range(STEPS):
            optimizer.zero_grad()
            loss(made, inputs(name, step)).backward()
            stepped()
        return Outcome([*weights(made), *state(optimizer)], keys(optimizer))

    same("torch.compile", name, program)
