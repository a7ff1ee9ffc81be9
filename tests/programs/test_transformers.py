"""The Trainer of transformers, on a tiny language model whose weights are drawn here."""

import pytest
import torch

from programs.side_by_side import OPTIONS, STEPPING, STEPS, TELLING, Outcome, keys, needed, same, state, weights

needed("accelerate")
transformers = needed("transformers")
PROGRAM = "transformers' Trainer"


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")


class Telling(transformers.TrainerCallback):
    """What the Trainer shows at each step: learning rates, and that the optimizer is the one that was given."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, optimizer=None, **_):
        self.seen.append((state.global_step, [g["lr"] for g in optimizer.param_groups]))


def language_model():
    """One without biases. That of keys moves no loss, so its gradient is noise, of which Adam's first step takes the sign."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 11,
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, max_position_embeddings=8)).double()


def sentences():
    generator = torch.Generator().manual_seed(1)
    drawn = torch.randint(11, (4 * STEPS, 8), generator=generator)
    return [{"input_ids": words, "labels": words} for words in drawn]


def trainer(folder, made, **options):
    own = {"optimizers", "optimizer_cls_and_kwargs", "callbacks"}
    settings = {
        "output_dir": str(folder), "report_to": [], "use_cpu": True, "disable_tqdm": True, "logging_strategy": "no", "save_strategy": "no",
        "per_device_train_batch_size": 2, "max_steps": STEPS, "seed": 0, "lr_scheduler_type": "cosine",
    }  # fmt: skip
    arguments = transformers.TrainingArguments(**settings | {k: v for k, v in options.items() if k not in own})
    given = {k: v for k, v in options.items() if k in own}
    return transformers.Trainer(made, arguments, train_dataset=sentences(), **given)


def parameters(name, made):
    """Muon takes matrices."""
    return [p for p in made.parameters() if name != "Muon" or p.ndim == 2]


def trained(cls, name, folder, *, resume=None, **options):
    made, telling = language_model(), Telling()
    optimizer = cls(parameters(name, made), **OPTIONS[name])
    run = trainer(folder, made, optimizers=(optimizer, None), callbacks=[telling], **options)
    run.train(resume_from_checkpoint=resume)
    assert run.optimizer.optimizer is optimizer
    return Outcome([*weights(made), *state(optimizer)], (telling.seen, keys(optimizer)))


@pytest.mark.parametrize("name", STEPPING)
def test_an_optimizer_is_passed(name, tmp_path):
    """With its clipping, to a norm that gradients exceed, and gradients of two batches."""
    same(PROGRAM, name, lambda cls: trained(cls, name, tmp_path, gradient_accumulation_steps=2, max_grad_norm=0.05))


@pytest.mark.parametrize("name", [name for name in STEPPING if name != "Muon"])
def test_a_class_is_passed(name, tmp_path):
    """Which the Trainer makes groups of its own for: those that decay, and those that do not."""

    def program(cls):
        made, telling = language_model(), Telling()
        options = {**OPTIONS[name], **({"weight_decay": 0.1} if name == "AdamW" else {})}
        run = trainer(tmp_path, made, optimizer_cls_and_kwargs=(cls, options), callbacks=[telling], weight_decay=0.1)
        run.train()
        assert type(run.optimizer.optimizer) is cls
        assert len(run.optimizer.param_groups) == 2
        return Outcome([*weights(made), *state(run.optimizer)], (telling.seen, keys(run.optimizer)))

    same(PROGRAM, name, program)


@pytest.mark.parametrize("name", TELLING)
def test_a_checkpoint_is_resumed(name, tmp_path):
    def program(cls):
        folder = tmp_path / cls.__module__
        trained(cls, name, folder, save_strategy="steps", save_steps=STEPS // 2)
        return trained(cls, name, folder, resume=str(folder / f"checkpoint-{STEPS // 2}"))

    same(PROGRAM, name, program)
    ended, resumed = (trained(getattr(torch.optim, name), name, tmp_path, **o) for o in ({}, {"max_steps": STEPS}))
    assert ended.seen == resumed.seen
