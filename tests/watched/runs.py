"""Small trainings for watches to look at: a network, its data, and the backward pass."""

import torch

torch.set_num_threads(1)  # small tensors: more threads wait for each other


def net(dtype=torch.float32, seed=0):
    """A classifier of points in the plane: two hidden layers, a norm between them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers = torch.nn.Linear(2, 24), torch.nn.Tanh(), torch.nn.LayerNorm(24), torch.nn.Linear(24, 3)
        return torch.nn.Sequential(*layers).to(dtype)


def batch(n, dtype=torch.float32, size=32):
    """The n-th batch: points, and which of three rings each lies in."""
    x = torch.randn(size, 2, generator=torch.Generator().manual_seed(n)).to(dtype)
    return x, x.norm(dim=1).mul(1.5).long().clamp(max=2)


def loss_of(model, n, dtype=torch.float32):
    x, ring = batch(n, dtype)
    return torch.nn.functional.cross_entropy(model(x).float(), ring)


def backward(model, n, dtype=torch.float32, scaler=None):
    loss = loss_of(model, n, dtype)
    (loss if scaler is None else scaler.scale(loss)).backward()
    return loss


def train(model, optimizer, steps, dtype=torch.float32, begin=0):
    """The plain loop, a step at a time."""
    for n in range(begin, begin + steps):
        optimizer.zero_grad()
        backward(model, n, dtype)
        optimizer.step()
        yield
