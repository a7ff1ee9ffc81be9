"""Which elements are looked at, and what is copied of them."""

import numpy as np
import pytest
import torch

from stepcheck.harness.life.memory import copy
from stepcheck.harness.watch.sampling import named_places, places, same, taken, taken_sparse

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64]


@pytest.mark.parametrize("elements", [1, 31, 32, 33, 1000, 10**6])
def test_the_first_and_the_last_are_always_among_them_each_once(elements):
    at = places(elements, 32, seed=3, step=5, parameter=7)
    assert at[0] == 0
    assert at[-1] == elements - 1
    assert np.all(np.diff(at) > 0)
    assert len(at) <= 32


def test_the_same_seed_draws_the_same_and_each_step_others():
    assert np.array_equal(places(10**6, 32, 0, 4, 2), places(10**6, 32, 0, 4, 2))
    assert len(set(places(10**6, 32, 0, 4, 2)) & set(places(10**6, 32, 0, 5, 2))) < 4


def test_each_stratum_has_one():
    at = places(10**6, 32, 0, 1, 0)
    assert np.all(np.histogram(at, bins=30, range=(0, 10**6))[0] >= 1)


def test_a_block_of_a_thirtieth_is_met_within_a_few_steps():
    block = range(400_000, 433_000)
    assert any(set(places(10**6, 32, 0, step, 0)) & set(block) for step in range(1, 4))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "sliced"])
def test_what_is_taken_are_the_elements_themselves(dtype, layout):
    whole = torch.linspace(-3, 3, 240).to(dtype).view(12, 20)
    tensor = {"contiguous": whole, "transposed": whole.t(), "sliced": whole[:, ::2]}[layout]
    at = places(tensor.numel(), 16, 0, 1, 0)
    assert same(taken(tensor, at), copy(tensor.contiguous()).reshape(-1)[at])


def test_entries_of_a_sparse_gradient_are_those_of_the_elements():
    gradient = torch.sparse_coo_tensor([[3, 1, 3]], torch.arange(6.0).view(3, 2), (5, 2), check_invariants=True)
    at = np.array([0, 2, 3, 7])
    found = taken_sparse(gradient, at)
    dense = np.zeros(4)
    np.add.at(dense, found.elements, found.values)
    assert np.array_equal(dense, gradient.to_dense().numpy().reshape(-1)[at])
    assert set(named_places(gradient, 8)) == {2, 3, 6, 7}


def test_zeros_of_either_sign_are_told_apart_and_nans_are_not():
    assert not same(np.array([0.0]), np.array([-0.0]))
    assert same(np.array([np.nan, 1.0]), np.array([-np.nan, 1.0]))
    assert not same(np.float32(1), np.float64(1))
    assert not same(np.zeros(2), None)
