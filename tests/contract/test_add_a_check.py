"""What the documentation says of a check is all that it takes: it accuses whom it must, and its script shows it."""

import runpy
import warnings
from pathlib import Path

import documents
import pytest
import torch

from stepcheck import check_optimizer
from stepcheck.harness.checking.check import Check
from stepcheck.harness.checking.checks import CHECKS

PAGE = Path(__file__).parents[2] / "docs" / "adding.md"
NAME = "no-new-nan"


class Guarded(torch.optim.Adam):
    """Takes no step to what is not a number."""

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.detach().clone() for p in params]
        loss = super().step(closure)
        for p, kept in zip(params, before, strict=True):
            p.copy_(torch.where(p.isnan(), kept, p))
        return loss


@pytest.fixture
def added(tmp_path, monkeypatch):
    """The check of the page, registered as the page does it, for the time of a test."""
    (source,) = [e.parsed.source for e in documents.page(PAGE).examples() if e.parsed.title == "no_new_nan.py"]
    file = tmp_path / "no_new_nan.py"
    file.write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)  # what is found is saved where one stands
    monkeypatch.setitem(CHECKS, NAME, None)  # set back afterwards, whatever the page puts there
    runpy.run_path(str(file))
    return CHECKS[NAME]


def checked(optimizer):
    return check_optimizer(optimizer, like="Adam", only=[NAME], examples=15, seed=0)


def run(script):
    """What a script raises, as text; '' where it succeeds."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(script, "script", "exec"), {"__name__": "__main__", "Guarded": Guarded})
    except Exception as error:  # noqa: BLE001 - whatever it raises is what it says
        return f"{type(error).__name__}: {error}"
    return ""


def of_the_guarded(script):
    line = "from torch.optim.adam import Adam"
    assert script.count(line) == 1
    return script.replace(line, "Adam = Guarded")


def test_the_check_of_the_page_accuses_whom_it_must_and_its_script_shows_it(added):
    assert isinstance(added, Check)
    right, wrong = checked(Guarded), checked(torch.optim.Adam)
    assert (right.verdict, wrong.verdict) == ("pass", "fail")
    assert right.result.tallies[NAME].looked
    (found, *_) = wrong.divergences
    assert found.check == NAME
    assert run(found.script).startswith("AssertionError: tensor(["), found.script
    assert run(of_the_guarded(found.script)) == ""
    assert not [line for line in found.life if line.startswith("This script")]


def test_without_a_witness_its_script_fails_and_says_why(added, monkeypatch):
    monkeypatch.setitem(CHECKS, NAME, Check(NAME, added.question, added.looks_at, added.find))
    (found, *_) = checked(torch.optim.Adam).divergences
    for script in (found.script, of_the_guarded(found.script)):
        assert run(script) == f"AssertionError: no assertion belongs to the check {NAME}: give it a witness"
    assert [line for line in found.life if line.startswith("This script shows nothing: no assertion belongs to")]
