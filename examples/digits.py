"""Train a small network on scikit-learn's digits, by ``torch.optim`` and by ``stepcheck.fast``, and show both side by side.

    python examples/digits.py                  # both: losses, seconds, and how far apart they are
    python examples/digits.py --optim fast     # one of them: import stepcheck.fast where it was torch.optim
    python examples/digits.py --optimizer SGD --lr 0.1

Needs scikit-learn: ``pip install -e ".[test]"``.
"""

# ruff: noqa: INP001, T201 - a script, which prints

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

BATCH = 64
HELD_OUT = 360  # a fifth of the 1797 images


class Trained(NamedTuple):
    """What a training was like.

    Attributes:
        losses: of each minibatch, before its step.
        accuracy: the share of the images held out that the network names rightly at the end.
        seconds: of the training.
        stepping: the part of them that the optimizer took.
    """

    losses: list[float]
    accuracy: float
    seconds: float
    stepping: float


def digits() -> tuple[Tensor, Tensor]:
    """Images of 8 x 8 pixels from 0 to 1, shuffled, and which digit each shows."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    return torch.as_tensor(images, dtype=torch.float32)[order] / 16, torch.as_tensor(labels)[order]


def network() -> nn.Module:
    """A perceptron with as many small layers as make the optimizer a part of the time."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    )


def train(optim: str, *, optimizer: str = "AdamW", lr: float = 1e-3, epochs: int = 10, seed: int = 0) -> Trained:
    """Train the network from a seed, by the optimizer of this name from ``torch.optim`` ("torch") or ``stepcheck.fast`` ("fast")."""
    if optim == "fast":
        from stepcheck import fast as package
    else:
        from torch import optim as package
    images, labels = digits()
    torch.manual_seed(seed)
    model = network()
    stepper = getattr(package, optimizer)(model.parameters(), lr=lr)
    losses, stepping, started = [], 0.0, time.perf_counter()
    for _ in range(epochs):
        for batch in torch.randperm(len(labels) - HELD_OUT).split(BATCH):
            stepper.zero_grad()
            loss = functional.cross_entropy(model(images[:-HELD_OUT][batch]), labels[:-HELD_OUT][batch])
            loss.backward()
            before = time.perf_counter()
            stepper.step()
            stepping += time.perf_counter() - before
            losses.append(loss.item())
    seconds = time.perf_counter() - started
    with torch.no_grad():
        right = model(images[-HELD_OUT:]).argmax(1) == labels[-HELD_OUT:]
    return Trained(losses, right.float().mean().item(), seconds, stepping)


def largest_difference(one: Trained, other: Trained) -> float:
    """Of the losses of the same minibatch."""
    return max(abs(a - b) for a, b in zip(one.losses, other.losses, strict=True))


def show(runs: dict[str, Trained], epochs: int) -> None:
    """Print the mean losses of each epoch, a column for each run, and what they took."""
    print("epoch " + "".join(f"{name:>16}" for name in runs))
    for epoch in range(epochs):
        row = ""
        for run in runs.values():
            count = len(run.losses) // epochs
            row += f"{sum(run.losses[epoch * count : (epoch + 1) * count]) / count:16.9f}"
        print(f"{epoch + 1:5} {row}")
    for name, run in runs.items():
        print(f"{name}: {run.accuracy:.1%} right, {run.seconds:.2f} s, of which {run.stepping:.3f} s in step()")
    if len(runs) == 2:
        print(f"largest difference of a minibatch's loss: {largest_difference(*runs.values()):.2g}")


def main(arguments: list[str] | None = None) -> None:
    """Read the options, train, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--optim", choices=["torch", "fast", "both"], default="both", help="whose optimizer (both)")
    parser.add_argument("--optimizer", default="AdamW", help="the name of its class (AdamW)")
    parser.add_argument("--lr", type=float, default=1e-3, help="learning rate (0.001)")
    parser.add_argument("--epochs", type=int, default=10, help="passes through the images (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of images (0)")
    given = parser.parse_args(arguments)
    options = {"optimizer": given.optimizer, "lr": given.lr, "epochs": given.epochs, "seed": given.seed}
    torch.set_num_threads(1)  # a network this small is quicker so
    names = {"torch": "torch.optim", "fast": "stepcheck.fast"}
    chosen = list(names) if given.optim == "both" else [given.optim]
    for optim in chosen:
        train(optim, **{**options, "epochs": 1})  # so that nothing is loaded or compiled while the clock runs
    show({names[optim]: train(optim, **options) for optim in chosen}, given.epochs)


if __name__ == "__main__":
    main()
