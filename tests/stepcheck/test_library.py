"""All optimizers of a library at once."""

import json

import own_names
import pytest
from in_process import stepcheck

LIKE_TORCH = """
import torch
from torch.optim import SGD


class Adam(torch.optim.Adam):
    pass


AlsoAdam = Adam


class _Base(torch.optim.SGD):
    pass


class WritesA(SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.grad.mul_(0.5)
        return super().step(closure)


class WritesB(WritesA):
    pass


class NeedsMore(SGD):
    def __init__(self, params, secret):
        super().__init__(params)
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A package of optimizers, as ``stepcheck check 'many:*'`` sees it."""
    folder = tmp_path_factory.mktemp("library")
    (folder / "many.py").write_text(LIKE_TORCH)
    right, _, _ = own_names.SOURCE.partition("\n\n\nclass WrongBeta")
    (folder / "own.py").write_text(right.replace("class OwnNames(", "class Adam_("))
    return folder


def test_each_is_taken_for_what_its_name_says_or_for_nothing(library, capfd):
    done = stepcheck("check", "many:*", "--examples", "8", "--json", "out.json", cwd=library, capfd=capfd)
    results = {r["subject"]: r for r in json.loads((library / "out.json").read_text())["subjects"]}
    assert {name: r["like"] for name, r in results.items()} == {
        "many:Adam": "Adam",
        "many:NeedsMore": "no reference",
        "many:WritesA": "no reference",
        "many:WritesB": "no reference",
    }
    assert results["many:NeedsMore"]["verdict"] == "unsupported"
    assert "missing a required argument: 'secret'" in done.stdout
    assert "taken for Adam by its name, and checked with --like Adam: declare what it is meant to be" in done.stdout
    assert done.returncode == 1


def test_a_fault_that_many_share_is_told_once(library, capfd):
    done = stepcheck("check", "many:WritesA", "many:WritesB", "--examples", "8", cwd=library, capfd=capfd)
    assert done.stdout.count("step() writes to the gradient") == 1
    assert done.stdout.count("  the same in 1 more: many:WritesB [") == 1


def test_a_class_that_is_called_like_a_reference_is_held_to_it_in_its_own_terms(library, capfd):
    stepcheck(
        "check", "own:*", "--examples", "8", "--only", "agreement", "--json", "out.json", cwd=library, capfd=capfd
    )
    results = {r["subject"]: r for r in json.loads((library / "out.json").read_text())["subjects"]}
    assert (results["own:Adam_"]["like"], results["own:Adam_"]["verdict"]) == ("Adam[eps-inside-root]", "pass")


def test_what_the_project_declares_is_not_guessed(library, capfd):
    (library / "pyproject.toml").write_text('[tool.stepcheck.subjects."many:Adam"]\nlike = "SGD"\n')
    words = ("check", "many:*", "--examples", "3", "--only", "agreement", "--json", "out.json")
    stepcheck(*words, cwd=library, capfd=capfd)
    (library / "pyproject.toml").unlink()
    likes = {r["subject"]: r["like"] for r in json.loads((library / "out.json").read_text())["subjects"]}
    assert likes["many:Adam"] == "SGD"


@pytest.mark.parametrize(
    ("text", "told"),
    [("no_such_module:*", "cannot import no_such_module"), ("json:*", "json has no optimizers of its own")],
)
def test_what_is_no_library_is_one_line(library, capfd, text, told):
    done = stepcheck("check", text, cwd=library, capfd=capfd)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert told in done.stderr
