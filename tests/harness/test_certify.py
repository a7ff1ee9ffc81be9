"""The accuracy certificate: every reference is in it or declared, within its bound, and the same seed writes the same file."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from stepcheck.harness.certificate import __main__ as command
from stepcheck.harness.certificate import whole
from stepcheck.harness.certificate.inputs import FULL, SHORT, Effort
from stepcheck.harness.certificate.references import certify, declared
from stepcheck.harness.certificate.survey import measure, ulp
from stepcheck.harness.numbers.formats import BINARY16, BINARY32, BINARY64
from stepcheck.harness.play.families import resolve
from stepcheck.reference import SPECS

FEW = Effort(elements=40, rounds=1, traces=4, candidates=2, costly=False)
SUBJECTS = [s for name in ("SGD[forloop]", "NAdam[forloop]", "Adafactor[foreach]") for s in resolve(f"torch:{name}")]


@pytest.fixture(scope="module")
def certified():
    """All references, and three torch subjects."""
    return whole.certificate(FEW, seed=0, subjects=SUBJECTS)


def test_every_reference_is_certified_or_declared(certified):
    found = {c.optimizer for c in certified.references}
    assert found | certified.declared.keys() >= SPECS.keys()
    assert not found & certified.declared.keys()
    # These two have tests of their own; no other may fall out of the table.
    assert SPECS.keys() - found <= {"LBFGS", "Muon"}


def test_every_field_of_every_reference_is_compared(certified):
    for name in {c.optimizer for c in certified.references}:
        fields = {c.field for c in certified.references if c.optimizer == name and c.compared}
        assert fields == {"parameter", *(b.name for b in SPECS[name].buffers)}


def test_bounds_hold_and_are_approached(certified):
    assert certified.holds
    rounded = [c for c in certified.references if c.field not in ("step", "prev")]
    # Value and truth are one rounding apart where the bound allows for two, the reference's and the subject's.
    assert all(0.1 < c.ratio <= 1 for c in rounded), [(c.optimizer, c.field, c.ratio) for c in rounded]


def test_witness_of_a_reference_is_complete(certified):
    worst = max((c for c in certified.references if c.optimizer == "Adam"), key=lambda c: c.ratio)
    w = worst.witness
    assert w["state"].keys() >= {"step", "exp_avg", "exp_avg_sq"}
    off = abs(float.fromhex(w["value"]) - float(w["truth"][5:-2] if w["truth"].startswith("mpf") else w["truth"]))
    # The truth is told in decimal; rounded to float64 it is off by less than the bound.
    assert off <= float.fromhex(w["bound"]) * 2


def test_a_wrong_reference_exceeds_its_bound(monkeypatch):
    spec = SPECS["SGD"]

    def coarse(p, g, state, hyper):
        # What the bound does not know of: a rounding to single precision.
        after, state = spec.update(p, g, state, hyper)
        return (
            after.astype(np.float32).astype(np.float64) if isinstance(p, np.ndarray) and p.dtype == float else after
        ), state

    wrong = certify(dataclasses.replace(spec, update=coarse), FEW)
    assert max(c.ratio for c in wrong) > 1e6
    monkeypatch.setattr(whole, "SPECS", {"SGD": dataclasses.replace(spec, update=coarse)})
    monkeypatch.setattr(whole, "resolve", lambda text: [])
    assert CliRunner().invoke(command.main, ["--short"]).exit_code == 1


def test_what_does_not_run_is_declared_with_its_reason():
    def refuses(p, g, state, hyper):
        return np.linalg.svd(p), state

    assert "TypeError" in declared(dataclasses.replace(SPECS["SGD"], update=refuses))
    assert declared(dataclasses.replace(SPECS["SGD"], closure=True)) == "certified by its own test"


def test_torch_is_measured_in_every_dtype(certified):
    assert [(m.subject, m.dtype) for m in certified.torch] == [(s.name, d) for s in SUBJECTS for d in s.dtypes]
    for m in certified.torch:
        assert m.elements > 0, m
        assert 0 <= m.ratio.ratio <= 1, m
        assert m.ulps is None or m.ulps.ulps >= 0, m
        assert m.ulps is None or m.ulps.ratio <= 1, m
    assert {m.dtype for m in certified.torch if m.ulps is not None} >= {"float32", "float64", "bfloat16", "float16"}


def test_wide_dtypes_are_measured_from_the_truth():
    """A subject whose step is the reference's own, operation by operation, still rounds."""
    measured = measure(resolve("torch:SGD[forloop]")[0], "float64", Effort(1, 1, traces=20, candidates=4))
    assert measured.ulps.ulps > 0
    w = measured.ulps
    assert w.ulps == pytest.approx(abs(w.got - w.expected) / float(ulp(np.array(w.expected), BINARY64)), abs=0.51)


def test_unsupported_subjects_are_declared():
    made = whole.certificate(FEW, specs=[], subjects=resolve("torch:Rprop[capturable]"))
    assert made.torch == []
    assert made.declared["torch:Rprop[capturable]"]


@pytest.mark.parametrize(
    ("number", "x", "expected"),
    [
        (BINARY32, 1.0, 2.0**-23),
        (BINARY32, -1.999, 2.0**-23),
        (BINARY32, 2.0, 2.0**-22),
        (BINARY32, 0.0, 2.0**-149),
        (BINARY32, 1e-300, 2.0**-149),
        (BINARY16, 2.0**-14, 2.0**-24),
        (BINARY16, 2.0**-15, 2.0**-24),
        (BINARY16, 65504.0, 32.0),
        (BINARY64, 0.0, 5e-324),
        (BINARY64, 1.0, math.ulp(1.0)),
        (BINARY64, 1e300, math.ulp(1e300)),
    ],
)
def test_ulp_is_the_spacing_of_the_format(number, x, expected):
    assert ulp(np.array(x), number) == expected


def test_json_round_trip_and_determinism(certified):
    written = certified.to_json()
    assert json.loads(json.dumps(written, allow_nan=False)) == written
    again = whole.certificate(FEW, seed=0, specs=[SPECS["RAdam"]], subjects=SUBJECTS[:1]).to_json()
    for part, key in (("references", "optimizer"), ("torch", "subject")):
        names = {entry[key] for entry in again[part]}
        assert names
        assert again[part] == [entry for entry in written[part] if entry[key] in names]


def test_command_writes_both_files(monkeypatch, tmp_path):
    monkeypatch.setattr(whole, "SPECS", {"SGD": SPECS["SGD"]})
    monkeypatch.setattr(whole, "resolve", lambda text: SUBJECTS[:1])
    for module in (command, whole):
        monkeypatch.setattr(module, "SHORT", FEW)
    files = ["--json", str(tmp_path / "c.json"), "--markdown", str(tmp_path / "c.md")]
    result = CliRunner().invoke(command.main, ["--short", *files])
    assert result.exit_code == 0, result.output
    assert "momentum_buffer" in result.output
    data = json.loads((tmp_path / "c.json").read_text())
    assert data["short"] is True
    assert data["bits"] == 200
    page = (tmp_path / "c.md").read_text()
    assert "| SGD | momentum_buffer |" in page
    assert "| torch:SGD[forloop] | float16 |" in page


def test_short_form_is_smaller():
    assert SHORT.traces < FULL.traces
    assert SHORT.elements < FULL.elements
