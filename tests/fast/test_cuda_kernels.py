"""Kernels for CUDA, by Triton's interpreter: each element is its own, however a thread takes them apart."""

import math

import pytest
import torch

pytest.importorskip("triton")

from stepcheck.fast import interpreted
from stepcheck.fast.cuda import kernels

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def _stepped(name, dtype, *, grad_scale=None, spoilt=(), elements=1100, **options):
    """A parameter of a whole block and a rest after two steps; the second gradient is spoilt."""
    rng = torch.Generator().manual_seed(1)
    p = torch.nn.Parameter(torch.randn(elements, generator=rng).to(dtype))
    optimizer = getattr(interpreted, name)([p], lr=0.01, **options)
    for n in range(2):
        p.grad = torch.randn(elements, generator=rng).to(dtype)
        for at in spoilt if n else ():
            p.grad[at] = math.inf
        before = p.grad.clone()
        if grad_scale is not None:
            optimizer.grad_scale, optimizer.found_inf = torch.tensor(grad_scale), torch.tensor(0.0)
        optimizer.step()
    return p.detach(), p.grad, before


@each_dtype
def test_an_infinite_gradient_stays_with_its_element(dtype):
    clean, _, _ = _stepped("RMSprop", dtype)
    spoilt, _, _ = _stepped("RMSprop", dtype, spoilt=(50, 1090))
    assert torch.nonzero(clean != spoilt).flatten().tolist() == [50, 1090]


@each_dtype
def test_the_gradient_that_is_written_back_is_unscaled_and_nothing_else(dtype):
    _, after, before = _stepped("SGD", dtype, grad_scale=4.0, weight_decay=0.5, maximize=True)
    assert torch.equal(after, before / 4)


@each_dtype
@pytest.mark.parametrize("name", ["Adam", "RMSprop"])
def test_taking_elements_apart_changes_no_bit(name, dtype, monkeypatch):
    expected, _, _ = _stepped(name, dtype, weight_decay=0.1)
    monkeypatch.setattr(kernels, "PARTS", dict.fromkeys(kernels.PARTS, 1))
    monkeypatch.setattr(kernels, "dense_source", kernels.dense_source.__wrapped__)
    found, _, _ = _stepped(name, dtype, weight_decay=0.1)
    assert torch.equal(found, expected)
