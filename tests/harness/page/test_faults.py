"""Known issues by version: read off what was played, each beside the last version under which the same was played."""

import json
import subprocess
import sys

import pytest

from stepcheck.harness.known import evidence
from stepcheck.harness.page import faults
from stepcheck.harness.play.families import TORCH_MODES

HERE = evidence.installed()
NEVER_STORES = "fused-sgd-never-stores-narrow-vectors"


@pytest.fixture
def built(played):
    return faults.build()


def cells(built, subject):
    (row,) = (row for row in built.rows if row.subject == subject)
    return {cell.torch: cell for cell in row.cells}


def test_rows_are_all_optimizers_in_all_their_modes(built):
    assert {row.subject for row in built.rows} == {f"{name}[{m}]" for name, modes in TORCH_MODES.items() for m in modes}
    assert [v["torch"] for v in built.versions] == ["2.6.0", "2.8.0", HERE, "2.98.0", "2.99.0"]
    assert all([c.torch for c in row.cells] == [v["torch"] for v in built.versions] for row in built.rows)


def test_a_mode_of_another_version_has_a_row(played):
    played[0].quiet["sgd-accepts-nan"] = ["SGD[of-old]", "elsewhere.module:Class"]
    assert [row.mode for row in faults.build().rows if row.optimizer == "SGD"][-1] == "of-old"
    assert not any("module" in row.subject for row in faults.build().rows)


def test_a_cell_has_what_shows_what_is_fixed_and_what_is_new(built):
    told = {v: (c.faults, c.fixed, c.new) for v, c in cells(built, "SGD[fused]").items()}
    assert told == {
        "2.6.0": ([], [], []),
        "2.8.0": ([], [], []),
        HERE: ([NEVER_STORES, "sgd-accepts-nan"], [], [NEVER_STORES]),
        "2.98.0": (["sgd-accepts-nan"], [NEVER_STORES], []),
        "2.99.0": ([], ["sgd-accepts-nan"], []),
    }


def test_what_a_version_has_for_the_first_time_is_not_new(built):
    (first, *_) = (c for c in cells(built, "Muon[forloop]").values() if c.state == "played")
    assert (first.torch, first.faults, first.new) == (HERE, ["muon-divides-by-no-elements"], [])


def test_what_was_not_played_says_why(built):
    assert {c.state for c in cells(built, "Muon[forloop]").values()} == {"lacks", "played", "unplayed"}
    assert cells(built, "Muon[forloop]")["2.8.0"].why == "there is no torch.optim.Muon"
    assert cells(built, "Muon[forloop]")["2.99.0"].state == "unplayed"
    old = cells(built, "Adam[capturable]")["2.6.0"]
    assert (old.state, old.why) == ("unsupported", "it wants CUDA")
    assert cells(built, "SGD[fused]")["2.8.0"].state == "unplayed"


def test_an_issue_is_fixed_when_its_last_subject_is(built):
    spans = {f.name: (f.first_seen, f.fixed_in) for f in built.faults}
    assert spans == {
        NEVER_STORES: (HERE, "2.98.0"),
        "muon-divides-by-no-elements": (HERE, ""),
        "groups-are-not-validated": ("2.6.0", ""),
        "sgd-accepts-nan": (HERE, "2.99.0"),
    }


def test_subjects_with_one_history_stand_together(built):
    alike = built.by_name["groups-are-not-validated"].alike
    assert [(subjects, span.fixed_in) for subjects, span in alike] == [
        (["Adam[forloop]"], "2.98.0"),
        (["SGD[forloop]"], ""),
    ]


def test_each_issue_has_its_life_and_a_script_that_fails(built, tmp_path):
    fault = built.by_name[NEVER_STORES]
    assert fault.life[0].startswith("One group")
    assert fault.replay == f"stepcheck replay {NEVER_STORES}"
    (tmp_path / "script.py").write_text(fault.script)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ran.returncode, "AssertionError" in ran.stderr) == (1, True)


def test_a_life_that_shows_nothing_here_is_told_from_what_was_saved(played):
    here = next(p for p in played if p.torch == HERE)
    for name in (NEVER_STORES, "muon-divides-by-no-elements"):
        here.quiet[name], here.shows[name] = here.shows[name], []
    played[0].shows[NEVER_STORES] = ["SGD[fused]"]
    by_name = faults.build().by_name
    mended = by_name[NEVER_STORES]
    assert mended.life[-1].startswith("What went wrong: the parameter, element (4,), is 0")
    assert mended.script == ""  # which number is wrong is not known any more
    raises = by_name["muon-divides-by-no-elements"]
    assert raises.life[-1].startswith("What went wrong: step() raises ZeroDivisionError")
    assert "optimizer.step()  # step() raises ZeroDivisionError" in raises.script


def test_the_json_has_what_its_schema_says(built):
    data = json.loads(json.dumps(built.to_json(), allow_nan=False))
    parts = [data, data["versions"][0], data["rows"][0], data["rows"][0]["cells"][0], data["faults"][0]]
    for name in (key for part in parts for key in part):
        assert f'"{name}"' in faults.__doc__, name


def test_without_evidence_there_is_nothing_to_show(monkeypatch):
    monkeypatch.setattr(evidence, "versions", lambda: ())
    built = faults.build()
    assert (built.versions, built.faults) == ([], [])
    assert all(row.cells == [] for row in built.rows)
