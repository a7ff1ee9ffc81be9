"""Whoever asks for help, or for the version, waits for nothing."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "numpy", "hypothesis", "jinja2")
SCRIPT = """
import sys
from stepcheck import cli

sys.argv = ["stepcheck", *{words!r}]
try:
    cli.main()
except SystemExit as exit:
    assert not exit.code, exit.code
sys.exit(", ".join(sorted({heavy!r} & sys.modules.keys())) or 0)
"""


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["check", "--help"], ["replay", "--help"], []])
def test_nothing_heavy_is_imported_to_tell_of_the_options(words, tmp_path):
    text = SCRIPT.format(words=words, heavy=set(HEAVY))
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


def test_a_campaign_begins_before_what_draws_lives_and_shows_them_is_imported(tmp_path):
    text = """
import sys
from stepcheck import cli
from stepcheck.harness.search import workers


def run(*arguments):
    sys.exit(", ".join(sorted({"hypothesis", "rich", "torch._dynamo", "stepcheck.harness.zoo"} & sys.modules.keys())) or 0)


workers.run = run
sys.argv = ["stepcheck", "check", "torch.optim:Adam", "--like", "Adam", "--first"]
cli.main()
"""
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_public_names_are_there_all_the_same():
    text = "import sys, stepcheck; assert 'torch' not in sys.modules; from stepcheck import *; print(check_optimizer)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=True)
    assert "function check_optimizer" in done.stdout
