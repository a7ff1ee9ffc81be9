"""A divergence in words: numbers that can be told apart, the line that rounds, the mode that a life led into."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding, told_apart
from stepcheck.harness.life.events import Gradient, Group, Parameter, Reload, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.record import store
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.search.tell import tell
from stepcheck.harness.telling import explain
from stepcheck.harness.zoo import adam

GO = Step({0: Gradient(Values("constant", high=1.0))})


@pytest.mark.parametrize(
    ("got", "expected", "told"),
    [
        (0.5, 0.25, "0.5, not 0.25"),
        (0.000599123456789, 0.000599123456788, "0.000599123456789, not 0.000599123456788"),
        (1.0, 1.0 + 2**-52, "1, not 1.0000000000000002"),
    ],
)
def test_two_numbers_are_told_apart(got, expected, told):
    assert told_apart(got, expected) == told


# Of a class of which nothing is known, beta2 may be held in float32 where the parameter is: that outweighs all else.
@pytest.mark.parametrize(("dtype", "line"), [("float64", "`1 - beta2 ** t` "), ("float32", "the options to float32 ")])
def test_the_budget_names_the_line_of_the_reference_and_not_a_helper_s(dtype, line):
    subject = class_subject(adam.EpsInsideRoot, "Adam")
    # So small a gradient that eps counts.
    step = Step({0: Gradient(Values("constant", high=1e-6))})
    evidence = Evidence(subject, Trace("Adam", (Parameter((1,), dtype),), (Group((0,)),), (step,)))
    (deviation, *_) = [d for d in evidence.judgement.deviations if d.field == "parameter"]
    told = explain.shares(evidence, Finding("agreement", "parameter", 0, "", 0, deviation=deviation))
    assert told.startswith("Budget ")
    assert f": rounding of {line}" in told
    assert "one_operation" not in told


@pytest.mark.parametrize(("into", "told"), [(0, "into a new optimizer."), (1, "into a new optimizer, into foreach.")])
def test_a_life_names_the_mode_that_it_leads_into(into, told):
    trace = Trace("Adam", (Parameter((1,)),), (Group((0,)),), (GO, Reload(into=into)))
    lines = explain.life(resolve("torch:Adam[forloop]")[0], trace, Finding("completes", "", 1, ""))
    assert lines[-1].endswith(told)


def test_a_life_says_how_its_optimizer_is_constructed():
    trace = Trace("SGD", (Parameter((1,)),), (Group((0,), {"lr": 1.0}),), (GO,))
    subject = class_subject(torch.optim.SGD, "SGD")

    def told(**construction):
        return explain.life(subject, replace(trace, **construction), Finding("completes", "", 0, ""))[0]

    assert told().startswith("One group (lr=1.0): ")
    assert told(flags=("foreach",)).startswith("One group, constructed with foreach=True (lr=1.0): ")
    assert told(form="tuple", spelling="whole").startswith(
        "One group, given as a tuple, whole numbers given as int (lr=1.0): "
    )


def test_a_script_imports_what_was_named(tmp_path, monkeypatch):
    (tmp_path / "inner_of_it.py").write_text("import torch\nclass Mine(torch.optim.SGD): pass\n")
    (tmp_path / "named_so.py").write_text("from inner_of_it import Mine as Renamed\n")
    monkeypatch.syspath_prepend(tmp_path)
    (subject,) = resolve("named_so:Renamed", "SGD")
    trace = Trace("SGD", (Parameter((1,)),), (Group((0,)),), (GO,))
    script = tell(subject, trace, Finding("completes", "hangs", None, "it hangs"), evaluate=False).script
    assert "from named_so import Renamed\n" in script
    assert "optimizer = Renamed(params" in script


def test_a_run_leaves_no_folder_but_its_own_and_git_does_not_see_that(tmp_path):
    command = [sys.executable, "-m", "stepcheck", "check", "torch:SGD[forloop]", "--examples", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [path.name for path in tmp_path.iterdir()] == [".stepcheck"]
    folder = tmp_path / ".stepcheck"
    assert (folder / ".gitignore").read_text() == "*\n"
    # All of torch's own are known, and lie apart from what is new.
    assert not list(folder.glob("*.py"))
    (script, *_) = sorted((folder / "known").glob("*.py"))
    assert store.find(script.stem, folder) == script.with_suffix(".json")
    assert done.stdout.rstrip().splitlines()[-1].startswith("torch:SGD[forloop]  known")


def test_a_folder_that_was_there_is_left_as_it_is(tmp_path):
    found = Campaign(class_subject(adam.EpsInsideRoot, "Adam"), Settings(examples=5)).run().divergences[0]
    store.save(tmp_path, found)
    assert sorted(path.suffix for path in tmp_path.iterdir()) == ["", ".json", ".py"]  # and what was recorded
