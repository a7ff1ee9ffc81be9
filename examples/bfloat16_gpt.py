"""A small GPT, trained four times: in float32, and in bfloat16 plain, with lost bits carried, and with float32 master weights.

    python examples/bfloat16_gpt.py --steps 2000 --json curves.json --plot curves.png

Each run starts from the same weights (rounded to bfloat16) and sees the same batches, of the text of Python's own manual, character by
character. All of them compute losses in float32, so that what differs is how parameters are kept and stepped; gradients have their dtype.
Printed is the loss on a part that is held back.
"""

# ruff: noqa: INP001, T201 - a script, which prints

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from stepcheck.fast import AdamW

WIDTH, HEADS, LAYERS, CONTEXT, BATCH = 64, 4, 2, 64, 8
LR, WARM_UP, HELD_OUT = 1e-3, 100, 32


class Block(nn.Module):
    """Attention and a perceptron, each after a normalization and beside what goes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attend, self.project = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.widen, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        n, length, _ = x.shape
        heads = self.attend(self.first(x)).view(n, length, 3, HEADS, WIDTH // HEADS)
        q, k, v = (part.transpose(1, 2) for part in heads.unbind(2))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(seen.transpose(1, 2).reshape(n, length, WIDTH))
        return x + self.narrow(functional.gelu(self.widen(self.second(x))))


class GPT(nn.Module):
    """Scores of the next character, at each place of a text."""

    def __init__(self, characters: int) -> None:
        super().__init__()
        self.character, self.place = nn.Embedding(characters, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.last, self.scores = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, characters, bias=False)
        for weight in (self.character.weight, self.place.weight):
            nn.init.normal_(weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        x = self.character(text) + self.place.weight[: text.shape[1]]
        return self.scores(self.last(self.blocks(x)))


class MasterWeights:
    """AdamW on float32 copies of narrow parameters, which are rounded back after each step: what is compared with."""

    def __init__(self, params: Any, **options: Any) -> None:
        self.params = list(params)
        self.masters = [p.detach().float().requires_grad_() for p in self.params]
        self.inner = torch.optim.AdamW(self.masters, **options)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def step(self) -> None:
        for p, master in zip(self.params, self.masters, strict=True):
            master.grad = None if p.grad is None else p.grad.float()
        self.inner.step()
        for p, master in zip(self.params, self.masters, strict=True):
            p.copy_(master)


#: The dtype of parameters, and the optimizer.
RUNS: dict[str, tuple[torch.dtype, Callable[..., Any]]] = {
    "float32": (torch.float32, torch.optim.AdamW),
    "bfloat16": (torch.bfloat16, torch.optim.AdamW),
    "bfloat16, compensated": (torch.bfloat16, lambda params, **options: AdamW(params, compensated=True, **options)),
    "bfloat16, float32 masters": (torch.bfloat16, MasterWeights),
}


def batches(text: Tensor, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of a text, and what follows each character in them."""
    drawn = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(text) - CONTEXT - 1, (BATCH,), generator=drawn)
        pieces = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        yield pieces[:, :-1], pieces[:, 1:]


def loss_of(model: GPT, given: Tensor, follows: Tensor) -> Tensor:
    wide = {name: p.float() for name, p in model.named_parameters()}
    return functional.cross_entropy(functional_call(model, wide, given).flatten(0, 1), follows.flatten())


def rate(step: int, steps: int) -> float:
    """A warm-up, then a cosine down to nothing."""
    return LR * min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * step / steps))


def train(name: str, text: Tensor, held: Tensor, characters: int, steps: int, every: int) -> list[tuple[int, float]]:
    """The loss on what is held back, after so many steps each."""
    dtype, make = RUNS[name]
    torch.manual_seed(0)
    model = GPT(characters).to(torch.bfloat16).to(dtype)
    optimizer = make(model.parameters(), lr=LR, betas=(0.9, 0.999), weight_decay=0.1)
    curve, source = [], batches(text, 1)
    for step in range(steps):
        if step % every == 0:
            curve.append((step, held_out(model, held)))
        optimizer.param_groups[0]["lr"] = rate(step, steps)
        model.zero_grad()
        loss_of(model, *next(source)).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return [*curve, (steps, held_out(model, held))]


@torch.no_grad()
def held_out(model: GPT, held: Tensor) -> float:
    """The mean loss on the same batches each time."""
    source = batches(held, 2)
    return sum(float(loss_of(model, *next(source))) for _ in range(HELD_OUT)) / HELD_OUT


def main(arguments: list[str] | None = None) -> None:
    """Train, and show it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    asked = parser.parse_args(arguments)

    torch.set_num_threads(1)  # to wake a second takes longer than these few numbers do
    manual = "\n".join(topics[key] for key in sorted(topics))
    alphabet = {c: n for n, c in enumerate(sorted(set(manual)))}
    codes = torch.tensor([alphabet[c] for c in manual])
    text, held = codes[: len(codes) * 9 // 10], codes[len(codes) * 9 // 10 :]
    every = max(1, asked.steps // 20)
    curves = {name: train(name, text, held, len(alphabet), asked.steps, every) for name in RUNS}

    print(f"{'step':>6}", *(f"{name:>26}" for name in RUNS))
    for row in zip(*curves.values(), strict=True):
        print(f"{row[0][0]:>6}", *(f"{loss:>26.4f}" for _, loss in row))
    if asked.json:
        asked.json.write_text(json.dumps(curves) + "\n")
    if asked.plot:
        draw(curves, asked.plot)


def draw(curves: dict[str, list[tuple[int, float]]], path: Path) -> None:
    """The curves as a picture."""
    from matplotlib import pyplot as plt  # for those who ask for a picture

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    for (name, curve), style in zip(curves.items(), ("-", "-", "--", ":"), strict=True):
        axes.plot(*zip(*curve, strict=True), style, label=name, linewidth=2)
    axes.set(xlabel="steps", ylabel="loss on text held back (nats a character)", ylim=(1.5, 3.5))
    axes.legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
