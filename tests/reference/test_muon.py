"""The reference of Muon: the orthogonalization, and a whole step in float64 and in multiple precision."""

from __future__ import annotations

from types import SimpleNamespace

import mpmath
import numpy as np
import pytest
import torch

from stepcheck.reference import muon

DEFAULTS = muon.MUON.hyper_values()
COEFFICIENTS = DEFAULTS.ns_coefficients

each_shape = pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3), (9, 8), (5, 12)], ids=str)


def drawn(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def exact(x):
    return np.vectorize(mpmath.mpf, otypes=[object])(x)


@each_shape
def test_float64_and_multiple_precision_orthogonalize_alike(shape):
    x = drawn(shape)
    with mpmath.workprec(200):
        precise = muon.newton_schulz(exact(x), COEFFICIENTS, 5, 1e-7)
    assert np.abs((precise - muon.newton_schulz(x, COEFFICIENTS, 5, 1e-7)).astype(float)).max() < 1e-12


@each_shape
def test_a_step_is_the_same_in_multiple_precision(shape):
    p, g, buffer = (drawn(shape, seed) for seed in range(3))
    new, after = muon.update(p, g, {"momentum_buffer": buffer}, DEFAULTS)
    with mpmath.workprec(200):
        hyper = SimpleNamespace(**{k: mpmath.mpf(v) if type(v) is float else v for k, v in vars(DEFAULTS).items()})
        precise, held = muon.update(exact(p), exact(g), {"momentum_buffer": exact(buffer)}, hyper)
    assert np.abs((precise - new).astype(float)).max() < 1e-14
    assert np.abs((held["momentum_buffer"] - after["momentum_buffer"]).astype(float)).max() < 1e-14


@each_shape
def test_singular_values_come_near_one_and_vectors_stay(shape):
    u, _, v = np.linalg.svd(drawn(shape), full_matrices=False)
    o = muon.newton_schulz(u @ np.diag(np.linspace(0.2, 1, len(v))) @ v, COEFFICIENTS, 5, 1e-7)
    moved = u.T @ o @ v.T
    assert np.all((np.diag(moved) > 0.6) & (np.diag(moved) < 1.3))
    assert np.abs(moved - np.diag(np.diag(moved))).max() < 1e-12


def test_coefficients_that_converge_give_the_polar_factor():
    u, _, v = np.linalg.svd(drawn((5, 8)), full_matrices=False)
    o = muon.newton_schulz(u @ np.diag([1.0, 2, 3, 4, 5]) @ v, (1.875, -1.25, 0.375), 20, 1e-7)
    assert np.abs(o - u @ v).max() < 1e-12


def test_transposition_changes_nothing_but_rounding():
    x = drawn((9, 4))
    tall, wide = (muon.newton_schulz(y, COEFFICIENTS, 5, 1e-7) for y in (x, x.T))
    assert tall.shape == x.shape
    assert np.abs(tall - wide.T).max() < 1e-13


def test_eps_bounds_the_norm_from_below():
    x = drawn((2, 3))
    norm = np.linalg.norm(x)
    assert np.allclose(muon.newton_schulz(x, COEFFICIENTS, 0, norm / 2), x / norm, rtol=1e-15)
    assert np.allclose(muon.newton_schulz(x, COEFFICIENTS, 0, norm * 2), x / (norm * 2), rtol=1e-15)


def test_the_sum_of_the_documentation_has_the_direction_of_the_average():
    """What the docstring says of B and of the direction: proportional, step after step."""
    hyper = muon.MUON.hyper_values(momentum=0.75)
    average = total = np.zeros((2, 3))
    for seed in range(4):
        g = drawn((2, 3), seed)
        average, total = muon.average(g, average, hyper), 0.75 * total + g
        assert np.allclose(muon.direction(g, average, hyper), 0.25 * (g + 0.75 * total), rtol=1e-14)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        (None, (8, 2), 2.0),
        ("original", (8, 2), 2.0),
        ("original", (2, 8), 1.0),
        ("match_rms_adamw", (4, 2), 0.4),
        ("match_rms_adamw", (2, 4), 0.4),
    ],
)
def test_learning_rate_follows_the_shape(name, shape, expected):
    hyper = muon.MUON.hyper_values(lr=1.0, adjust_lr_fn=name)
    assert muon.adjusted_lr(shape, hyper) == expected


def test_decay_takes_the_learning_rate_as_given():
    hyper = muon.MUON.hyper_values(lr=0.5, weight_decay=0.25)
    assert np.array_equal(muon.apply(np.ones((4, 1)), np.zeros((4, 1)), hyper), np.full((4, 1), 0.875))


def test_the_spec_has_the_options_and_defaults_of_torch():
    optimizer = torch.optim.Muon([torch.nn.Parameter(torch.zeros(2, 2))])
    assert optimizer.defaults == vars(DEFAULTS)
    assert [b.name for b in muon.MUON.buffers] == ["momentum_buffer"]
    assert muon.MUON.shapes((2, 3))
    assert not muon.MUON.shapes((2, 3, 4))
    for bad in (
        {"ns_steps": 2.5},
        {"ns_steps": 100},
        {"adjust_lr_fn": "other"},
        {"lr": -1.0},
        {"ns_coefficients": (1.0, 2.0)},
    ):
        with pytest.raises(ValueError):
            muon.MUON.hyper_values(bad)
