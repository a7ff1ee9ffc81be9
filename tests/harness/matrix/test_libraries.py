"""What is declared of released libraries can be read, whether or not they are installed."""

import numpy as np
import pytest

from stepcheck import config
from stepcheck.harness.certificate.inputs import Effort
from stepcheck.harness.certificate.references import certify
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.matrix import library, references
from stepcheck.harness.play.references import spec_of

LIBRARIES = library.libraries()


@pytest.mark.parametrize("one", LIBRARIES, ids=lambda one: one.file.stem)
def test_a_library_declares_its_classes(one, tmp_path):
    (tmp_path / "pyproject.toml").write_text(one.file.read_text())
    declared = config.read(tmp_path)
    assert tuple(declared.subjects) == one.subjects
    for subject in declared.subjects.values():
        if subject.declaration.like:
            spec_of(f"{subject.declaration.like}[{', '.join(subject.declaration.dialects)}]")
        assert set(subject.expected) <= set(CHECKS)
    assert all("==" in text for text in one.requires)
    assert all(entry.subject in one.subjects and entry.check in CHECKS for entry in one.upstream)
    assert one.url.startswith("https://")


EFFORT = Effort(elements=24, rounds=1, traces=0, candidates=0)
OWN = [references.LION, references.QHM]


@pytest.mark.parametrize("spec", OWN, ids=lambda spec: spec.name)
def test_in_exact_arithmetic_a_reference_lies_within_its_bounds(spec):
    fields = list(certify(spec, EFFORT))
    assert sum(field.compared for field in fields) > 0
    assert all(field.ratio <= 1 for field in fields)


def test_lion_takes_the_sign_of_an_average_and_keeps_another():
    hyper = references.LION.hyper_values({"lr": 0.1, "betas": (0.5, 0.75), "weight_decay": 1.0})
    p, state = references.LION.update(np.array([1.0]), np.array([2.0]), {"exp_avg": np.array([-1.0])}, hyper)
    assert p == pytest.approx(0.9 - 0.1)
    assert state["exp_avg"] == pytest.approx(-0.75 + 0.5)


def test_qhm_lies_between_plain_and_averaged():
    hyper = references.QHM.hyper_values({"lr": 0.1, "momentum": 0.75, "nu": 0.5})
    p, state = references.QHM.update(np.array([1.0]), np.array([2.0]), {"momentum_buffer": np.array([-1.0])}, hyper)
    assert state["momentum_buffer"] == pytest.approx(-0.25)
    assert p == pytest.approx(1 - 0.1 * (0.5 * 2 + 0.5 * -0.25))
