"""Lightning calls ``step`` with a closure, wraps optimizers, clips, scales and schedules, and keeps checkpoints."""

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau
from torch.utils.data import DataLoader

from programs.side_by_side import (
    DENSE,
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

lightning = needed("lightning")
PROGRAM = "Lightning"

pytestmark = [
    # Its own: of a loader without workers, of a run without validation, of what it asks of torch and of the machine.
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
    pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec:FutureWarning"),
]


class Module(lightning.LightningModule):
    """The small model, an optimizer and perhaps a schedule; it takes down what it is told at each batch."""

    def __init__(self, cls, name, schedule=None):
        super().__init__()
        self.made, self.cls, self.name, self.schedule = model(name), cls, name, schedule
        self.seen = []

    def training_step(self, batch, index):
        optimizer = self.trainer.optimizers[0]
        self.seen.append((self.global_step, [g["lr"] for g in optimizer.param_groups]))
        value = loss(self.made, batch)
        self.log("loss", value)
        return value

    def configure_optimizers(self):
        optimizer = self.cls(self.made.parameters(), **OPTIONS[self.name])
        return {"optimizer": optimizer, **({"lr_scheduler": self.schedule(optimizer)} if self.schedule else {})}


class ByHand(Module):
    """With manual optimization: two optimizers, toggled, the second every other batch."""

    def __init__(self, cls, name):
        super().__init__(cls, name)
        self.automatic_optimization = False

    def training_step(self, batch, index):
        for n, optimizer in enumerate(self.optimizers()):
            if index % (n + 1):
                continue
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(loss(self.made, batch))
            self.clip_gradients(optimizer, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
            optimizer.step()
            self.untoggle_optimizer(optimizer)
        self.seen.append(self.global_step)

    def configure_optimizers(self):
        return [self.cls(self.made[n].parameters(), **OPTIONS[self.name]) for n in (0, 2)]


def trainer(folder, **options):
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    return lightning.Trainer(
        accelerator="cpu", devices=1, default_root_dir=folder, **{"precision": "64-true", **quiet, **options}
    )


def batches(name):
    return DataLoader([x for step in range(STEPS) for x in inputs(name, step)], batch_size=5)


def outcome(module, fitted):
    optimizers = fitted.optimizers
    tensors = [*weights(module), *(t for o in optimizers for t in state(o))]
    return Outcome(tensors, (module.seen, fitted.global_step, [keys(o) for o in optimizers]))


def fitted(module, fit, name, **options):
    fit.fit(module, batches(name), **options)
    assert all(isinstance(o, module.cls) for o in fit.optimizers)
    return outcome(module, fit)


@pytest.mark.parametrize("name", DENSE)
def test_it_trains(name, tmp_path):
    same(PROGRAM, name, lambda cls: fitted(Module(cls, name), trainer(tmp_path, max_epochs=1), name))


@pytest.mark.parametrize("algorithm", ["norm", "value"])
@pytest.mark.parametrize("name", STEPPING)
def test_it_clips_and_accumulates(name, algorithm, tmp_path):
    options = {
        "max_epochs": 2,
        "accumulate_grad_batches": 2,
        "gradient_clip_val": 0.05,
        "gradient_clip_algorithm": algorithm,
    }
    same(PROGRAM, name, lambda cls: fitted(Module(cls, name), trainer(tmp_path, **options), name))


def by_batch(optimizer):
    """It writes momenta or betas as well, where a class has them."""
    cycles = "momentum" in optimizer.defaults or "betas" in optimizer.defaults
    return {"scheduler": OneCycleLR(optimizer, 0.05, total_steps=40, cycle_momentum=cycles), "interval": "step"}


def by_loss(optimizer):
    return {"scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=0.9), "interval": "step", "monitor": "loss"}


@pytest.mark.parametrize("schedule", [by_batch, by_loss])
@pytest.mark.parametrize("name", STEPPING)
def test_it_schedules(name, schedule, tmp_path):
    same(PROGRAM, name, lambda cls: fitted(Module(cls, name, schedule), trainer(tmp_path, max_epochs=1), name))


@pytest.mark.parametrize("name", STEPPING)
def test_optimization_by_hand(name, tmp_path):
    same(PROGRAM, name, lambda cls: fitted(ByHand(cls, name), trainer(tmp_path, max_epochs=1), name))


@pytest.mark.parametrize("name", TELLING)
def test_a_checkpoint_is_resumed(name, tmp_path):
    def program(cls):
        at = tmp_path / f"{cls.__module__}.ckpt"
        first = trainer(tmp_path, max_epochs=1)
        fitted(Module(cls, name, by_batch), first, name)
        first.save_checkpoint(at)
        module = Module(cls, name, by_batch)
        for p in module.parameters():
            nn.init.zeros_(p)
        return fitted(module, trainer(tmp_path, max_epochs=2), name, ckpt_path=at)

    same(PROGRAM, name, program)


@pytest.mark.parametrize("name", STEPPING)
def test_its_plugin_for_mixed_precision_scales_and_clips(name, tmp_path):
    """A step that finds an infinite gradient is skipped, and no hook of it is called."""

    class Overflowing(Module):
        def on_after_backward(self):
            if self.trainer.global_step == 2 and not any(entry == "infinite" for entry in self.seen):
                self.seen.append("infinite")
                next(self.made.parameters()).grad[-1, -1] = float("inf")

    def program(cls):
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        plugin = lightning.pytorch.plugins.MixedPrecision("16-mixed", "cpu", scaler=scaler)
        fit = trainer(tmp_path, max_epochs=1, precision=None, plugins=[plugin], gradient_clip_val=0.5)
        found = fitted(Overflowing(cls, name), fit, name)
        found.seen = (found.seen, scaler.get_scale())
        return found

    same(PROGRAM, name, program)
