"""Whoever does what docs/adding.md says has a new optimizer in every command, though torch.optim has none."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from documents import page

ROOT = Path(__file__).parents[2]
#: What is needed to run a command.
PARTS = ("reference", "fast", "harness", "stepcheck", "pyproject.toml")
CODE = {e.parsed.title: e.parsed.source for e in page(ROOT / "docs" / "adding.md").examples() if e.parsed.title}
#: To the end of which file the page says that a piece goes.
FAST = ("fast/rules.py", "fast/classes.py", "fast/limits.py")
STEPCHECK = ("-m", "stepcheck")


def _checkout(folder, *, fast=True):
    """A copy of the checkout to which Lion was added as the page says; in ``folder / "own"`` is the class of somebody who uses it."""
    for part in PARTS:
        where, to = ROOT / part, folder / part
        if where.is_dir():
            shutil.copytree(where, to, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(where, to)
    (folder / "reference" / "lion.py").write_text(CODE["lion.py"], encoding="utf-8")
    for file in FAST if fast else ():
        with (folder / file).open("a", encoding="utf-8") as end:
            end.write(f"\n\n{CODE[file]}")
    (folder / "own").mkdir()
    (folder / "own" / "lion_torch.py").write_text(CODE["lion_torch.py"], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    return _checkout(tmp_path_factory.mktemp("checkout"))


def run(checkout, *words):
    """Exit status, and what is printed."""
    apart = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH", "GITHUB_STEP_SUMMARY")}
    done = subprocess.run(
        [sys.executable, *words],
        cwd=checkout / "own",
        env=apart | {"PYTHONPATH": str(checkout), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


def stepcheck(checkout, *words):
    return run(checkout, *STEPCHECK, *words)


def _verdict(told, subject):
    """Of the table, which comes last."""
    return [line for line in told.splitlines() if line.startswith(f"{subject} ")][-1].split()[1]


def test_list_names_it(checkout):
    status, told = stepcheck(checkout, "list")
    assert status == 0
    assert "  Lion       none in torch.optim\n             float32, float64, bfloat16, float16\n" in told
    assert "stepcheck.fast has all of them," in told


def test_torch_has_none_and_says_so_in_one_line(checkout):
    status, told = stepcheck(checkout, "check", "torch:Lion")
    assert status == 2
    assert told.count("\n") == 1
    assert "has no torch.optim.Lion, fast has" in told


@pytest.mark.parametrize("subject", ["fast:Lion", pytest.param("fast:Lion[compensated]", marks=pytest.mark.slow)])
def test_the_fast_class_is_checked(checkout, subject):
    status, told = stepcheck(checkout, "check", subject, "--examples", "30")
    assert status == 0, told
    assert _verdict(told, subject) == "pass"


@pytest.mark.parametrize(
    "name, status, verdict, more", [("Lion", 0, "pass", ("--examples", "30")), ("Mixed", 1, "fail", ("--first",))]
)
def test_a_class_is_held_to_it(checkout, name, status, verdict, more):
    found, told = stepcheck(checkout, "check", f"lion_torch:{name}", "--like", "Lion", *more)
    assert found == status, told
    assert _verdict(told, f"lion_torch:{name}") == verdict


@pytest.mark.slow
def test_it_is_timed_beside_nothing(checkout):
    status, told = stepcheck(checkout, "bench", "Lion", "--workload", "100x64", "--rounds", "1")
    assert status == 0, told
    assert "\nLion " in told
    assert "Lion: beside nothing: torch" in told


def test_a_wrong_fast_class_fails(tmp_path):
    checkout = _checkout(tmp_path)
    rule = checkout / "fast" / "rules.py"
    right = rule.read_text(encoding="utf-8")
    wrong = right.replace("direction = beta1 * exp_avg + weight1 * g", "direction = beta2 * exp_avg + weight2 * g")
    assert wrong != right
    rule.write_text(wrong, encoding="utf-8")
    status, told = stepcheck(checkout, "check", "fast:Lion", "--first")
    assert status == 1, told
    assert _verdict(told, "fast:Lion") == "fail"


def test_a_reference_alone_is_enough_to_be_told(tmp_path):
    checkout = _checkout(tmp_path, fast=False)
    status, told = stepcheck(checkout, "list")
    assert status == 0
    assert "stepcheck.fast has all of them but Lion," in told
    status, told = stepcheck(checkout, "bench", "Lion")
    assert status == 2
    assert told.endswith("has no torch.optim.Lion, and stepcheck.fast has no Lion\n")


@pytest.mark.slow
@pytest.mark.parametrize("family, without", [("torch", True), ("fast", False)])
def test_a_whole_family_is_checked(checkout, family, without):
    status, told = stepcheck(checkout, "check", family, "--examples", "3")
    assert status in (0, 3), told  # of few lives, some have nothing for a check to look at
    assert ("Lion" not in told) == without
    assert f"{family}:Adam" in told


@pytest.mark.slow
def test_all_are_timed(checkout):
    status, told = stepcheck(checkout, "bench", "--quick", "--rounds", "1", "--workload", "100x64")
    assert status == 0, told
    assert "\nLion " in told
    assert "\nAdam " in told


@pytest.mark.slow
def test_its_mutants_are_caught(checkout):
    given = ("--seeds", "1", "--mutants", "2", "--steps", "0")
    status, told = stepcheck(checkout, "power", "Lion", *given)
    assert status in (0, 1), told  # of one campaign, what may be missed is doubtful
    assert "Lion.source" in told
    assert "other oracles: not asked of Lion, which torch.optim does not have to compare with" in told
    assert "FALSE ALARM" not in told


@pytest.mark.slow
def test_its_kernels_are_counted(checkout):
    pytest.importorskip("triton")
    status, told = stepcheck(checkout, "census", "Lion", "--arch", "sm_90")
    assert status == 0, told
    assert "Lion " in told


@pytest.mark.slow
def test_its_reference_is_certified(checkout):
    status, told = run(checkout, "-m", "stepcheck.harness.certificate", "--short")
    assert status == 0, told
    assert re.search("^Lion +exp_avg ", told, re.MULTILINE)
    assert "torch:Lion" not in told
