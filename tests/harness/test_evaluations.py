"""torch's own LBFGS is judged right, evaluation by evaluation, and its broken variants are not."""

from __future__ import annotations

import functools
import inspect
import re
import time
from collections import Counter

import numpy as np
import pytest
import torch

from stepcheck.harness.comparison import ratios
from stepcheck.harness.evaluations import Evaluation, judge_step
from stepcheck.harness.formats import BFLOAT16, BINARY16, BINARY32, BINARY64, Arithmetic
from stepcheck.reference.lbfgs import LBFGS

ARITHMETICS = {
    torch.float32: Arithmetic(BINARY32, orders=frozenset({"lerp"})),
    torch.float64: Arithmetic(BINARY64, orders=frozenset({"lerp"})),
    torch.bfloat16: Arithmetic(BFLOAT16, inner=BINARY32),
    torch.float16: Arithmetic(BINARY16, inner=BINARY32),
}


def quadratic(rng, n, dtype):
    """Condition number up to 1e4, the minimum away from 0."""
    scale = torch.tensor(10 ** rng.uniform(-2, 2, n) * 10 ** rng.uniform(-2, 2), dtype=dtype)
    centre = torch.tensor(rng.normal(size=n), dtype=dtype)
    return lambda x: (scale * (x - centre) * (x - centre)).sum()


def rosenbrock(rng, n, dtype):
    def f(x):
        return (1 - x).square().sum() + (100 * (x[1:] - x[:-1].square()).square()).sum()

    return f


def quartic(rng, n, dtype):
    scale = torch.tensor(10 ** rng.uniform(-1, 1, n), dtype=dtype)
    return lambda x: (scale * x * x * x * x).sum()


def flat(rng, n, dtype):
    scale = 10 ** rng.uniform(-8, -3)
    return lambda x: scale * (x * x).sum()


def nonconvex(rng, n, dtype):
    """Curvature is as often negative as positive, so pairs are refused."""
    phase = torch.tensor(rng.uniform(0, 6, n), dtype=dtype)
    return lambda x: (2 * x + phase).sin().sum() + (x * x).sum() / 50


def linear(rng, n, dtype):
    """The gradient never changes: no curvature at all."""
    slope = torch.tensor(rng.normal(size=n), dtype=dtype)
    return lambda x: (slope * x).sum()


def sometimes_nan(rng, n, dtype):
    return lambda x: (x - 0.5).log().sum() + (x * x).sum()


FUNCTIONS = (quadratic, rosenbrock, quartic, flat, nonconvex, linear, sometimes_nan)


def plain(value):
    """A part of the optimizer's state as float64 data."""
    if isinstance(value, torch.Tensor):
        x = value.detach().double().numpy().copy()
        return x if x.ndim else float(x)
    return [plain(v) for v in value] if isinstance(value, list) else value


def snapshot(optimizer):
    state = optimizer.state[optimizer.param_groups[0]["params"][0]]
    return {name: plain(value) for name, value in state.items() if name != "al"}


def recorded(optimizer, f, parameters):
    """One step of an optimizer, with each call of its closure; ``None`` for a step that raises."""
    evaluations = []

    def flat_values(tensors):
        return np.concatenate([t.detach().double().numpy().reshape(-1) for t in tensors])

    def closure():
        optimizer.zero_grad()
        point = flat_values(parameters)
        loss = f(torch.cat([p.reshape(-1) for p in parameters]))
        loss.backward()
        evaluations.append(Evaluation(point, loss.item(), flat_values([p.grad for p in parameters])))
        return loss.detach()

    x, before = flat_values(parameters), snapshot(optimizer)
    optimizer.step(closure)
    return x, before, evaluations, flat_values(parameters), snapshot(optimizer)


def drawn_options(rng, *, iterations):
    return {
        "lr": float(rng.choice([1.0, 0.5, 0.1, 0.03])),
        "max_iter": int(rng.choice(iterations)),
        "max_eval": [None, int(rng.integers(1, 8))][rng.integers(2)],
        "tolerance_grad": float(rng.choice([1e-7, 1e-3, 0.0])),
        "tolerance_change": float(rng.choice([1e-9, 1e-4, 0.0])),
        "history_size": int(rng.choice([100, 5, 3, 2, 1])),
        "line_search_fn": [None, "strong_wolfe"][rng.integers(2)],
    }


def life(seed, dtype, *, iterations=(1, 2, 3, 4), steps=5, optimizer=torch.optim.LBFGS, functions=FUNCTIONS, sizes=(1, 41), **options):
    """The comparisons of each step of one random life."""
    rng = np.random.default_rng(seed)
    options = {**drawn_options(rng, iterations=iterations), **options}
    n = int(rng.integers(*sizes))
    function = functions[rng.integers(len(functions))]
    f = function(rng, n, dtype)
    first = int(rng.integers(1, n + 1))
    start = torch.tensor(rng.normal(size=n) * 10 ** rng.uniform(-1, 0.5), dtype=dtype)
    parameters = [torch.nn.Parameter(part.clone()) for part in (start[:first], start[first:]) if part.numel()]
    subject = optimizer(parameters, **options)
    hyper = LBFGS.hyper_values(options)
    for _ in range(steps):
        try:
            x, before, evaluations, x_after, after = recorded(subject, f, parameters)
        except (RuntimeError, IndexError, ZeroDivisionError) as e:
            RAISED[f"{type(e).__name__}: {e}"[:70], function.__name__] += 1
            return
        yield judge_step(ARITHMETICS[dtype], hyper, x, before, evaluations, x_after, after)


RAISED = Counter()
