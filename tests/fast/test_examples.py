"""The examples run, and show what they are there to show."""

import json
import runpy
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
DIGITS, GPT = (runpy.run_path(str(EXAMPLES / name)) for name in ("digits.py", "bfloat16_gpt.py"))
EPOCHS = 4


@pytest.fixture(autouse=True)
def _threads_as_they_were():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("optimizer, lr", [("AdamW", 1e-3), ("Adamax", 5e-3), ("RMSprop", 1e-3)])
def test_both_sides_learn_the_digits_alike(optimizer, lr):
    theirs, ours = (DIGITS["train"](side, optimizer=optimizer, lr=lr, epochs=EPOCHS) for side in ("torch", "fast"))
    first = len(theirs.losses) // EPOCHS
    # Both round to float32 in each of the 23 steps of an epoch: each adds a unit in the last place of the loss at most, which is
    # the logarithm of 10 at first.
    apart = max(abs(a - b) for a, b in zip(theirs.losses[:first], ours.losses[:first], strict=True))
    assert first == 23
    assert apart <= first * 2.0**-23 * theirs.losses[0]
    for run in (theirs, ours):
        assert run.losses[-1] < theirs.losses[0] / 2
        assert run.accuracy > 0.7


def test_it_prints_both_side_by_side(capsys):
    DIGITS["main"](["--epochs", "2"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].split() == ["epoch", "torch.optim", "stepcheck.fast"]
    assert [line.split()[0] for line in printed[1:3]] == ["1", "2"]
    assert printed[-1].startswith("largest difference")


def test_it_trains_by_one_side_alone(capsys):
    DIGITS["main"](["--epochs", "1", "--optim", "fast"])
    assert capsys.readouterr().out.split()[:2] == ["epoch", "stepcheck.fast"]


def test_a_gpt_in_bfloat16_learns_as_in_float32_where_lost_bits_are_carried(tmp_path, capsys):
    curves = tmp_path / "curves.json"
    GPT["main"](["--steps", "60", "--json", str(curves)])
    last = {name: curve[-1][1] for name, curve in json.loads(curves.read_text()).items()}
    # Over 60 steps a plain run falls back by 0.2; what is left of the others is that gradients are rounded.
    assert last["bfloat16"] > last["float32"] + 0.1
    assert abs(last["bfloat16, compensated"] - last["float32"]) < 0.005
    assert abs(last["bfloat16, compensated"] - last["bfloat16, float32 masters"]) < 0.001
    assert capsys.readouterr().out.splitlines()[-1].split()[0] == "60"
