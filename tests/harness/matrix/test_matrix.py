"""A library of four classes: one right, one without a reference, one whose fault was looked at, and one whose fault was not."""

import gzip
import json
import os
import re

import pytest

from stepcheck.harness.matrix import __main__ as command
from stepcheck.harness.matrix import library, play
from stepcheck.harness.matrix.cells import AGREES, FAULTS, HOLDS, UNSUPPORTED, matrix

CLASSES = """
import torch
from torch.optim import SGD


class Right(SGD):
    pass


class Unheard(SGD):
    pass


class WritesGradient(SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)
        return super().step(closure)


class HalfRate(SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] /= 2
        loss = super().step(closure)
        for group in self.param_groups:
            group["lr"] *= 2
        return loss
"""

TABLE = """
[library]
name = "Tiny & <small>"
url = "https://example.org/tiny"
requires = ["tiny-optimizers==1.2"]

[[library.upstream]]
subject = "tiny_optimizers:WritesGradient"
check = "gradient-unwritten"
title = "WritesGradient halves the caller's gradient"
expected = "the gradient is as it was, as in torch.optim.SGD."

[tool.stepcheck]
examples = 8

[tool.stepcheck.subjects."tiny_optimizers:Right"]
like = "SGD"

[tool.stepcheck.subjects."tiny_optimizers:Unheard"]

[tool.stepcheck.subjects."tiny_optimizers:WritesGradient"]
expected_failures = { gradient-unwritten = "the caller's gradient is halved" }

[tool.stepcheck.subjects."tiny_optimizers:HalfRate"]
like = "SGD"
"""


@pytest.fixture(scope="module")
def played(tmp_path_factory):
    """The folder with what is published, and the exit status."""
    folder = tmp_path_factory.mktemp("matrix")
    (folder / "tiny_optimizers.py").write_text(CLASSES)
    about = folder / "tiny_optimizers-1.2.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-optimizers\nVersion: 1.2\n")
    (folder / "libraries").mkdir()
    (folder / "libraries" / "tiny.toml").write_text(TABLE)
    absent = TABLE.replace("tiny-optimizers", "no-such-library").replace("Tiny & <small>", "Absent")
    (folder / "libraries" / "zero.toml").write_text(absent)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]))
        patch.syspath_prepend(folder)
        patch.setattr(library, "FOLDER", folder / "libraries")
        status = command.main(["--out", str(folder / "out"), "--work", str(folder / "work")])
    return folder / "out", status


@pytest.fixture(scope="module")
def table(played):
    return matrix(json.loads(gzip.decompress((played[0] / "matrix.json.gz").read_bytes())))


def test_each_class_has_a_cell(table):
    states = {cell.subject.partition(":")[2]: (cell.row, cell.state) for cell in table.cells}
    assert states == {
        "Right": ("SGD", AGREES),
        "Unheard": ("Unheard", HOLDS),
        "WritesGradient": ("WritesGradient", FAULTS),
        "HalfRate": ("SGD", FAULTS),
    }
    assert [library.error for library in table.libraries] == ["", "no-such-library is not installed"]


def test_a_fault_is_a_cause_that_a_script_shows_alone(table):
    (written,) = (fault for fault in table.faults if fault.looked_at)
    assert (written.cause, written.checks) == ("the caller's gradient is halved", ("gradient-unwritten",))
    assert written.confirmed[0] == written.confirmed[1] > 0
    assert "stepcheck" not in re.sub(r"#.*", "", written.script)
    others = [fault for fault in table.faults if not fault.looked_at]
    assert others
    assert {fault.subjects for fault in others} == {("tiny_optimizers:HalfRate",)}


def test_what_nobody_looked_at_is_exit_status_1(played):
    assert played[1] == 1


def test_it_is_published(played):
    told = (played[0] / "matrix.md").read_text()
    assert "4 classes of 1 libraries" in told
    assert "| 1.2 | 4 | 1 | 1 | 2 | 0 |" in told
    page = (played[0] / "matrix.html").read_text()
    assert "Tiny &amp; &lt;small&gt;" in page
    assert "<small>" not in page
    links = {link.partition("#")[2] for link in re.findall(r'href="(#[^"]+)"', page)}
    assert links <= set(re.findall(r'id="([^"]+)"', page))


def test_an_issue_upstream_has_its_script_and_versions(played):
    (draft,) = (played[0] / "upstream").iterdir()
    assert draft.name == "tiny-writesgradient-halves-the-caller-s-gradient.md"
    text = draft.read_text()
    assert text.startswith("# WritesGradient halves the caller's gradient\n\nFor: https://example.org/tiny\n")
    assert "from tiny_optimizers import WritesGradient" in text
    assert "AssertionError" in text
    assert "Versions: tiny-optimizers 1.2, torch " in text


def test_a_library_that_there_is_not_is_bad_usage(capsys):
    assert command.main(["nothing"]) == 2
    assert capsys.readouterr().err.startswith("no library named 'nothing'; there is ")


def test_one_that_cannot_be_checked_hides_no_other(tmp_path, monkeypatch):
    def checked(_folder, words, _environment):
        if words == ["tiny_optimizers:Right"]:
            return [
                {"subject": "tiny_optimizers:Right", "like": "SGD", "verdict": "pass", "notes": [], "checks": []}
            ], ""
        return [], "stepcheck: tiny_optimizers:Unheard: it raises"

    (tmp_path / "tiny.toml").write_text(TABLE)
    one = library.read(tmp_path / "tiny.toml")
    monkeypatch.setattr(library.Library, "lacks", lambda _: "")
    monkeypatch.setattr(play, "_checked", checked)
    found = play.played(one, tmp_path / "work", [])
    table = matrix({"libraries": [found], "environment": {}, "seed": 0})
    assert [(cell.subject.partition(":")[2], cell.state) for cell in table.cells][:2] == [
        ("Right", AGREES),
        ("Unheard", UNSUPPORTED),
    ]


def test_what_is_mended_upstream_is_a_cause_that_nobody_looked_at():
    check = {"check": "agreement", "verdict": "fail", "ran": 5, "worst_ratio": 0.5, "divergences": []}
    subject = {"subject": "a:B", "like": "SGD", "verdict": "fail", "notes": [], "checks": [check]}
    played = {"name": "A", "url": "", "versions": {}, "subjects": [subject], "scripts": {}}
    (fault,) = matrix({"libraries": [played], "environment": {}, "seed": 0}).faults
    assert (fault.cause, fault.looked_at) == ("agreement passes, and is expected to fail: mended upstream?", False)


@pytest.mark.parametrize(
    ("told", "summary", "shown"),
    [
        ("AssertionError: 0.0 is not 0.5 +- 1e-9", "the parameter is 0, not 0.5", True),
        ("RuntimeError: no memory", "step() raises RuntimeError: no memory", True),
        ("pickle.UnpicklingError: refused", "load_state_dict() raises UnpicklingError: refused", True),
        ("NameError: name 'optimizer' is not defined", "the parameter is 0, not 0.5", False),
        ("ModuleNotFoundError: import of stepcheck halted", "step() raises RuntimeError: no memory", False),
        ("", "the parameter is 0, not 0.5", False),
    ],
)
def test_a_script_confirms_what_it_was_written_to_see_and_nothing_else(told, summary, shown):
    assert play.shows(told, summary) == shown


def test_a_library_that_is_not_there_is_unknown_and_never_green(tmp_path, monkeypatch):
    (tmp_path / "absent.toml").write_text(TABLE.replace("tiny-optimizers", "no-such-library"))
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert command.main(["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work")]) == 3
