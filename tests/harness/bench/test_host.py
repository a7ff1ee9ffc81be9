"""What a step costs the processor: launches are stubbed and counted, rounds are in turns, and it is said per tensor."""

import json
import sys

import pytest
import torch

from stepcheck import cli
from stepcheck.fast.cuda import runtime
from stepcheck.harness.bench import host
from stepcheck.harness.bench.host import HostRow
from stepcheck.harness.support.usage import UsageError

SHAPES = ((3, 4), (5,), (2, 2, 2, 2))


def test_nothing_is_launched_and_the_launch_comes_back():
    launch = runtime.launch
    with host.stubbed() as launched:
        row_launches = host.measured("AdamW", "some", SHAPES, "kept", 2).launches
        assert launched == []
    assert runtime.launch is launch
    assert row_launches == 2


def test_a_step_that_is_stubbed_changes_nothing():
    with host.stubbed() as launched:
        contender = host._Contender(host.interpreted.SGD, SHAPES, "kept")
        contender.seconds(1)
    assert launched == [1, 3]
    assert [p.shape for p in contender.parameters] == [(1, 1), (1,), (1, 1, 1, 1)]
    assert all(float(p.detach()) == 1.0 for p in contender.parameters)


@pytest.mark.parametrize("gradients", host.GRADIENTS)
def test_gradients_are_kept_moved_or_made_anew(gradients):
    contender = host._Contender(torch.optim.SGD, SHAPES, gradients, fused=True)
    before = [p.grad for p in contender.parameters]
    contender.seconds(1)
    same = [p.grad is g for p, g in zip(contender.parameters, before, strict=True)]
    assert same == [gradients != "new"] * 3
    contender.seconds(2)
    same = [p.grad is g for p, g in zip(contender.parameters, before, strict=True)]
    assert same == [gradients == "kept"] * 3


@pytest.mark.parametrize("name, fused", [("SGD", True), ("RMSprop", False)])
def test_a_row_has_as_many_rounds_as_asked_for_of_each(name, fused):
    row = host.measured(name, "some", SHAPES, "new", 3)
    assert len(row.fast) == 3
    assert len(row.fused) == (3 if fused else 0)
    assert (row.ratio is None) is not fused


def test_seconds_are_divided_by_tensors_and_the_ratio_is_of_single_rounds():
    row = HostRow("Adam", "some", 100, "kept", 2, fast=[1e-4, 2e-4, 8e-4], fused=[4e-4, 2e-4, 8e-4])
    assert row.fast_per_tensor == pytest.approx(2e-6)
    assert row.fused_per_tensor == pytest.approx(4e-6)
    assert row.ratio == pytest.approx(1.0)
    (told,) = host.to_json([row])
    assert told["ratio"] == pytest.approx(1.0)
    assert told["fast_seconds_per_tensor"] == pytest.approx(2e-6)


def test_who_steps_in_another_way_is_refused():
    assert {"SGD", "Adam", "RMSprop"} <= set(host.takers())
    assert not {"Muon", "LBFGS", "SparseAdam"} & set(host.takers())
    with pytest.raises(UsageError, match="not Muon"):
        host.check(["Muon"])


@pytest.fixture
def command(monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(host, "LISTS", {"some": SHAPES})
        monkeypatch.setattr(sys, "argv", ["stepcheck", "bench", "--host", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return run


def test_the_command_prints_a_table_and_writes_json(command, tmp_path):
    status, out, _ = command("SGD", "RMSprop", "--rounds", 2, "--json", tmp_path / "host.json")
    assert status == 0
    assert "Launches are stubbed" in out
    data = json.loads((tmp_path / "host.json").read_text())
    assert [(r["optimizer"], r["gradients"]) for r in data["host"]] == [
        (name, how) for name in ("SGD", "RMSprop") for how in ("kept", "moved", "new")
    ]  # fmt: skip


@pytest.mark.parametrize("other", [("--device", "cuda"), ("--compiled",), ("--threads", "2"), ("Muon",)])
def test_what_does_not_go_with_it_is_one_line(command, other):
    status, _, err = command(*other)
    assert status == 2
    assert len(err.strip().splitlines()) == 1
