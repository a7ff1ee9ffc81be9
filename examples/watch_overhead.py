"""What watching costs: a model is trained twice, watched and not, the two in turns, and the times of their steps compared.

    python examples/watch_overhead.py                 # 6.3 million elements, one thread

Times are those of the processor, which other programs on the machine disturb less than a clock on the wall.
"""

# ruff: noqa: INP001, T201 - a script, which prints

from __future__ import annotations

import argparse
import statistics
import time

import torch

import stepcheck


def model(width: int, blocks: int) -> torch.nn.Module:
    """Blocks of a transformer's feed-forward part: two matrices, two biases and a norm each."""
    torch.manual_seed(0)
    made: list[torch.nn.Module] = []
    for _ in range(blocks):
        made += [
            torch.nn.LayerNorm(width),
            torch.nn.Linear(width, 2 * width),
            torch.nn.GELU(),
            torch.nn.Linear(2 * width, width),
        ]
    return torch.nn.Sequential(*made)


def seconds(network: torch.nn.Module, optimizer: torch.optim.Optimizer, data: torch.Tensor) -> float:
    """How long one step of a training takes, forward and backward included."""
    start = time.process_time()
    optimizer.zero_grad()
    network(data).square().mean().backward()
    optimizer.step()
    return time.process_time() - start


def main() -> None:
    """Print the times, and what was watched."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    data = torch.randn(given.batch, given.width, generator=torch.Generator().manual_seed(1))
    networks = [model(given.width, given.blocks) for _ in range(2)]
    optimizers = [torch.optim.AdamW(network.parameters()) for network in networks]
    watch = stepcheck.watch(optimizers[1], networks[1], first=0, every=given.every)
    for network, optimizer in zip(networks, optimizers, strict=True):
        seconds(network, optimizer, data)  # what is made once
    plain, looked, passed = [], [], []
    for n in range(2, given.steps + 2):
        for watched in (n % 4 < 2, n % 4 >= 2):  # who comes second finds other memory in the caches
            times = (looked if n % given.every == 0 else passed) if watched else plain
            times.append(seconds(networks[watched], optimizers[watched], data))
    usual, at_rest, at_work = (1000 * statistics.median(times) for times in (plain, passed, looked))
    each = ((given.every - 1) * at_rest + at_work) / given.every
    parameters = list(networks[0].parameters())
    print(
        f"{sum(p.numel() for p in parameters):,} elements in {len(parameters)} parameters, {torch.get_num_threads()} threads"
    )
    print(
        f"a step takes {usual:.1f} ms unwatched, {at_rest:.1f} ms where it is not looked at, {at_work:.1f} ms where it is"
    )
    print(f"with every={given.every}: {each / usual:.3f} times as long")
    print(watch.report())
    same = all(torch.equal(a, b) for a, b in zip(*(network.parameters() for network in networks), strict=True))
    print("the weights are the same to the last bit" if same else "THE WEIGHTS DIFFER")


if __name__ == "__main__":
    main()
