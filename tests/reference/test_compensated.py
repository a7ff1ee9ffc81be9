"""The compensated variant of a reference is that reference, from the sum of both buffers."""

import numpy as np
import pytest

from stepcheck.reference import SPECS
from stepcheck.reference.compensated import compensated

ELEMENTWISE = [spec for spec in SPECS.values() if spec.elementwise]


def started(spec, hyper, rng):
    """A state in the middle of a life."""
    present = [b for b in spec.buffers if b.present(hyper)]
    return {b.name: np.full(8, 3.0) if b.per_parameter else rng.random(8) + 0.5 for b in present}


@pytest.mark.parametrize("spec", ELEMENTWISE, ids=lambda spec: spec.name)
@pytest.mark.parametrize("lost", [0.0, 2.0**-12])
def test_it_steps_from_the_sum(spec, lost):
    rng, variant = np.random.default_rng(0), compensated(spec)
    hyper = spec.hyper_values({"momentum": 0.9} if any(h.name == "momentum" for h in spec.hyper) else {})
    further = [b for b in variant.buffers[len(spec.buffers) :] if b.present(hyper)]
    state, p, g = started(spec, hyper, rng), rng.standard_normal(8), rng.standard_normal(8)
    kept = {b.name: np.full(8, lost) for b in further}
    wholes = {name: x + kept.get(f"{name}_compensation", 0.0) for name, x in state.items()}

    expected, after = spec.update(p + lost, g, wholes, hyper)
    found, state_after = variant.update(p, g, {**state, **kept}, hyper)

    assert np.array_equal(found, expected)
    for name, x in after.items():
        assert np.array_equal(state_after[name], x)
    assert state_after.keys() - after.keys() == {b.name for b in further}
    for b in further:
        assert np.array_equal(state_after[b.name], expected if b.of == "parameter" else after[b.of])


@pytest.mark.parametrize("spec", ELEMENTWISE, ids=lambda spec: spec.name)
def test_fast_has_the_same_buffers(spec):
    from stepcheck.fast import RULES

    ours = {b.name: b.of.replace("parameter", "p") for b in compensated(spec).buffers if b.of}
    assert RULES[spec.name].carried == ours
