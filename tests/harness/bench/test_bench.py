"""The benchmark: what it steps, whom it times, what it makes of the times, and what it says."""

import dataclasses
import importlib.util
import io
import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console

from stepcheck import cli, fast
from stepcheck.fast.engine import Member
from stepcheck.harness.bench import ceiling, contenders, machine, tables, workloads
from stepcheck.harness.bench import rounds as bench
from stepcheck.harness.bench.rounds import Row, Settings, Timing
from stepcheck.harness.bench.workloads import WORKLOADS, Workload, dense, takes
from stepcheck.harness.play.families import TORCH
from stepcheck.reference import SPECS

TINY = dense(3, 5)
SPARSE = Workload("tiny-sparse", ((20, 3),), "sparse", 4)
OBJECTIVE = Workload("tiny-quadratic", ((30,),), "objective")


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(bench, "_BATCH", 1e-4)
    known = {w.name: w for w in (TINY, SPARSE, OBJECTIVE, dense(2, 4, 4))}
    monkeypatch.setattr("stepcheck.harness.bench.workloads.WORKLOADS", known)


def rows(names, *on, **settings):
    return list(bench.rows(names, on, Settings(**{"rounds": 3, **settings}), lambda what, done, total: None))


@pytest.fixture
def command(monkeypatch, capsys):
    """Runs the command in this process; gives its exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepcheck", "bench", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capsys.readouterr()

    return run


# --- Workloads


@pytest.mark.parametrize(
    "name, elements, tensors",
    [("resnet50", 25_557_032, 161), ("gpt2", 124_439_808, 148), ("bert", 109_482_240, 199)],
)
def test_real_shapes_have_as_many_parameters_as_the_models(name, elements, tensors):
    assert WORKLOADS[name].elements == elements
    assert len(WORKLOADS[name].shapes) == tensors


def test_muon_steps_the_hidden_matrices_of_gpt2():
    shapes = WORKLOADS["gpt2-matrices"].shapes
    assert len(shapes) == 48
    assert all(len(s) == 2 for s in shapes)
    assert WORKLOADS["gpt2-matrices"].elements == 12 * (768 * 2304 + 768 * 768 + 2 * 768 * 3072)


def test_one_workload_is_beyond_the_cache_and_takes_no_more_memory_than_it_may(monkeypatch):
    assert 4 * WORKLOADS["beyond-cache"].elements == min(2 * machine.cache_bytes(), (1536 << 20) // 21)
    monkeypatch.setattr(workloads, "cache_bytes", lambda: 1 << 30)
    assert 21 * 4 * workloads._beyond_cache() <= 1536 << 20


@pytest.mark.parametrize("name", SPECS)
def test_every_optimizer_has_workloads_long_and_quick(name):
    assert any(takes(name, w) for w in WORKLOADS.values() if w.name not in workloads.QUICK)
    assert any(takes(name, WORKLOADS[w]) for w in workloads.QUICK)


def test_the_same_seed_gives_the_same_values():
    for workload in (TINY, SPARSE, OBJECTIVE):
        one, same, other = (workload.make(seed) for seed in (1, 1, 2))
        assert all(map(torch.equal, one.start, same.start))
        assert not any(map(torch.equal, one.start, other.start))
        assert all(torch.equal(a.to_dense(), b.to_dense()) for a, b in zip(one.gradients, same.gradients, strict=True))


def test_a_sparse_gradient_names_as_many_rows_as_are_told():
    (gradient,) = SPARSE.make(0).gradients
    assert gradient.is_coalesced()
    assert gradient._values().shape == (4, 3)
    assert SPARSE.stepped == 12


def test_the_closure_makes_the_gradient_of_its_quadratic_function():
    (p,), closure = OBJECTIVE.make(0).parameters()
    loss = closure()
    by_hand = p.detach().clone().requires_grad_()
    (0.5 * (torch.logspace(-8, 0, 30) * by_hand * by_hand).sum()).backward()
    assert torch.allclose(p.grad, by_hand.grad)
    assert loss == pytest.approx(0.5 * float((p.detach() * p.grad).sum()))


# --- The ceiling


@pytest.mark.parametrize("buffers", range(4))
def test_a_ceiling_moves_as_many_bytes_as_its_streams_and_computes_the_least(buffers):
    start = [torch.randn(7), torch.randn(3, 5)]
    gradients = [torch.randn_like(p) for p in start]
    parameters = [p.clone() for p in start]
    launch = ceiling.launch(parameters, gradients, buffers)
    assert launch.layout.bytes_per_element == 4 * (3 + 2 * buffers)
    launch.run()
    assert all(torch.equal(p, g - s) for p, g, s in zip(parameters, gradients, start, strict=True))
    launch.run()
    for p, s in zip(parameters, start, strict=True):
        assert torch.allclose(p, s, atol=1e-6)


def test_a_ceiling_flips_its_buffers(monkeypatch):
    made = []
    monkeypatch.setattr(ceiling, "Member", lambda p, tensors, *rest: made.append(tensors) or Member(p, tensors, *rest))
    ceiling.launch([torch.ones(4)], [torch.ones(4)], 3).run()
    assert [t.tolist() for t in made[0][2:]] == [[-1.0] * 4] * 3


def test_the_share_of_the_ceiling_is_measured_where_the_bytes_exceed_the_cache(monkeypatch):
    (row,) = rows(["Adam"], TINY)
    assert row.ceiling is None
    assert row.share is None
    monkeypatch.setattr(machine, "cache_bytes", lambda device="cpu": 100)
    (row,) = rows(["Adam"], TINY)
    shares = [c / f for c, f in zip(row.ceiling.seconds, row.fast.seconds, strict=True)]
    assert row.share == pytest.approx(np.median(shares))


# --- Who is timed


def test_all_modes_that_take_a_workload_are_timed_beside_the_fast_class():
    (row,) = rows(["Adam"], TINY)
    assert [t.name for t in row.timings] == ["forloop", "foreach", "fused", "fast"]
    assert all(len(t.seconds) == 3 and not t.error for t in row.timings)
    assert row.engine == "llvm"
    assert row.bytes_per_element == 28
    sgd, adagrad, adam = rows(["SGD", "Adagrad", "SparseAdam", "Adam", "Muon"], SPARSE)
    assert [t.name for t in sgd.torch] == [t.name for t in adagrad.torch] == ["forloop", "foreach"]
    assert [t.name for t in adam.torch] == ["forloop"]
    assert contenders.modes("Adam", "dense", compiled=True)[-1] == "compiled"


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", [n for n in SPECS if takes(n, TINY) and hasattr(fast, n)])
def test_all_contenders_come_to_the_same_place(name):
    (row,) = rows([name], TINY, rounds=1)
    assert not row.note
    assert not row.wrong
    assert all(t.distance < 1e-3 for t in row.timings if t.distance is not None)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad", "Adafactor"])
def test_so_they_do_in_other_dtypes(name, dtype):
    on = [w for w in (dense(3, 40), SPARSE) if takes(name, w)]
    for row in rows([name], *on, dtype=dtype):
        assert row.ratio is not None
        assert row.fast.sane, row.fast.distance


def test_a_narrow_format_hides_no_wrong_class(monkeypatch):
    monkeypatch.setattr(fast, "Adam", fast.SGD)
    (row,) = rows(["Adam"], dense(3, 40), dtype="bfloat16", options={"lr": 0.5})
    assert row.wrong


def test_where_torch_divides_by_zero_in_float16_fast_is_compared_with_a_mode_that_does_not():
    adam, rmsprop = rows(["Adam", "RMSprop"], WORKLOADS["100x64"], dtype="float16")
    assert not adam.wrong
    assert [t.name for t in adam.torch if t.sane] == ["fused"]
    assert adam.fast.distance < 1e-3
    assert adam.best.name == "fused"
    told = "Adam, torch's forloop: comes to numbers that are not finite, as others do not (100x64)"
    assert told in tables.notes([adam])
    data = tables.to_json("0", Settings(rounds=1), [adam, rmsprop], [])
    assert [t["distance"] for t in data["results"][0]["torch"].values()] == ["Infinity", "Infinity", None]
    json.dumps(data, allow_nan=False)
    assert not rmsprop.wrong
    assert rmsprop.note.startswith("not compared: in this dtype every mode of torch")


def test_options_go_to_all_and_what_torch_lacks_to_fast_alone(monkeypatch):
    built = []
    monkeypatch.setattr(contenders.Contender, "distance", lambda self, *_: built.append(self) or 0.0)
    (row,) = rows(["Adam"], TINY, dtype="bfloat16", options={"compensated": True, "lr": 0.25})
    groups = [c.optimizer.param_groups[0] for c in built]
    assert [c.name for c in built] == ["foreach", "fused", "fast"]
    assert {group["lr"] for group in groups} == {0.25}
    assert ["compensated" in group for group in groups] == [False, False, True]
    # p, exp_avg, exp_avg_sq and what two of them lose are read and written, the gradient is read.
    assert row.bytes_per_element == 2 * (2 * 5 + 1)
    assert rows(["Muon", "LBFGS", "Adam"], TINY, OBJECTIVE, options={"amsgrad": True})[0].optimizer == "Adam"


@pytest.mark.parametrize("what", [TINY, SPARSE])
def test_cold_steps_find_new_gradients_and_nothing_else_is_timed(monkeypatch, what):
    seen = {}

    def clock(step, count):
        # Of each contender the parameters, by the optimizer whose step it is.
        if count == 1:
            p = step.__self__.param_groups[0]["params"][0]
            seen.setdefault(id(step.__self__), []).append(p.grad)
        step()
        return 1.0

    monkeypatch.setitem(bench._CLOCKS, "cpu", clock)
    (row,) = rows(["SGD"], what, cold=True, rounds=2)
    assert row.ceiling is None
    assert len(seen) == len(row.torch) + 1
    for gradients in seen.values():
        assert len({id(g) for g in gradients}) == len(gradients) == 2 * bench._COLD_BATCH
    assert all(t.seconds == [1.0, 1.0] for t in row.timings)


def test_an_optimizer_that_has_no_fast_class_is_timed_without(monkeypatch):
    monkeypatch.delattr(fast, "Adam")
    (row,) = rows(["Adam"], TINY)
    assert row.note == "stepcheck.fast has no Adam"
    assert row.ratio is None
    assert row.best is not None


def test_a_fast_class_that_torch_steps_is_marked(monkeypatch):
    whole = fast.Adam.__init__
    monkeypatch.setattr(fast.Adam, "__init__", lambda self, params: whole(self, params, capturable=True, fused=True))
    (row,) = rows(["Adam"], TINY)
    assert row.engine == "torch"
    assert row.note.startswith("stepped by torch: capturable=True")


def test_a_wrong_fast_class_is_called_wrong(monkeypatch, command):
    monkeypatch.setattr(fast, "Adam", type("Adam", (fast.Adam,), {"step": lambda self: None}))
    (row,) = rows(["Adam"], TINY)
    assert row.wrong
    assert row.fast.distance == pytest.approx(1.0)
    assert "WRONG" in row.note
    status, out, _ = command("Adam", "--workload", TINY.name, "--rounds", 1)
    assert status == 1
    assert "WRONG: after 2 steps fast is 1 of torch's way" in out


def test_a_wrong_mode_of_torch_is_not_the_best(monkeypatch):
    row = Row("Adam", TINY, {}, torch=[Timing("forloop", [2.0]), Timing("fused", [1.0], distance=0.5)])
    row.fast = Timing("fast", [1.0])
    assert row.best.name == "forloop"
    assert row.ratio == 2.0
    assert tables.notes([row]) == ["Adam, torch's fused: ends 0.5 of torch's way from torch's other modes (3x5)"]


def test_who_cannot_be_built_says_why_and_the_rest_go_on(monkeypatch):
    broken = dataclasses.replace(TORCH, subject=lambda name, mode: (_ for _ in ()).throw(OSError("no disk")))
    monkeypatch.setattr(contenders, "TORCH", broken)
    (row,) = rows(["Adam"], TINY)
    assert [t.error for t in row.torch] == ["OSError: no disk"] * 3
    assert row.fast.seconds
    assert row.ratio is None


def test_what_does_not_fit_into_memory_is_left_out(monkeypatch):
    monkeypatch.setattr(machine, "free_memory", lambda device="cpu": 100)
    (row,) = rows(["Adam"], TINY)
    assert row.note.startswith("left out: it needs")
    assert not row.timings


def test_matrices_that_take_minutes_are_left_out_unless_they_are_asked_for(monkeypatch):
    monkeypatch.setitem(bench._CLOCKS, "cpu", lambda step, count: 20.0)
    (row,) = rows(["Muon"], dense(4, 4, 4), patient=False)
    assert row.note == "left out: a step of torch takes about 80 s here; --workload 4x4x4 times it all the same"
    assert not row.timings
    (row,) = rows(["Muon"], dense(2, 4, 4), patient=False)
    assert row.torch[0].seconds
    (row,) = rows(["Muon"], dense(4, 4, 4))
    assert row.torch[0].seconds


# --- How


def test_the_order_rotates_and_each_round_runs_every_contender_once(monkeypatch):
    calls = []

    def clock(step, count):
        calls.extend([step] * (count > 0))
        return 1.0

    monkeypatch.setitem(bench._CLOCKS, "cpu", clock)
    row = Row("Adam", TINY, {})
    bench._rounds([(Timing(name), name) for name in "abc"], row, Settings(rounds=4))
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab" + "abc"


@pytest.mark.parametrize("seconds, asked, rounds", [(1, None, 15), (11, None, 3), (25, None, 1), (25, 5, 5)])
def test_slow_rows_have_fewer_rounds_unless_they_are_asked_for(monkeypatch, seconds, asked, rounds):
    now = itertools.count(0, seconds)
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=lambda: next(now)))
    monkeypatch.setitem(bench._CLOCKS, "cpu", lambda step, count: 1.0)
    timing = Timing("fast")
    bench._rounds([(timing, lambda: None)], Row("Adam", TINY, {}), Settings(rounds=asked))
    assert len(timing.seconds) == rounds


def test_an_optimizer_with_a_history_is_timed_with_all_of_it_and_has_work_to_the_end():
    quadratic = WORKLOADS["quadratic-10k"]
    row = Row("LBFGS", quadratic, workloads.options("LBFGS", quadratic))
    assert row.options["history_size"] == 100
    contender = contenders.build("LBFGS", "forloop", row.options, quadratic.make(0))
    bench._rounds([(Timing("forloop"), contender.step)], row, Settings(rounds=bench.ROUNDS))
    (state,) = contender.optimizer.state.values()
    assert len(state["old_dirs"]) == 100
    newest = state["old_dirs"][-1]
    contender.step()
    assert len(state["old_dirs"]) == 100
    assert state["old_dirs"][-1] is not newest


def test_ratios_are_made_of_medians_and_of_rounds():
    row = Row("Adam", TINY, {}, torch=[Timing("forloop", [9.0, 9.0, 9.0]), Timing("fused", [2.0, 4.0, 9.0])])
    row.fast = Timing("fast", [1.0, 2.0, 3.0])
    assert row.best.name == "fused"
    assert row.ratio == 2.0
    assert row.round_ratios == [2.0, 2.0, 3.0]
    assert bench.quartiles(row.round_ratios) == (2.0, 2.5)


def test_scaling_is_the_slope_of_the_medians(monkeypatch):
    monkeypatch.setitem(bench._CLOCKS, "cpu", lambda step, count: count * 1.0)

    def timed(names, on, settings, progress):
        for w in on:
            row = Row(names[0], w, {}, torch=[Timing("forloop", [3e-6 * len(w.shapes) + 2e-9 * w.elements + 1e-3])])
            yield row

    monkeypatch.setattr(bench, "rows", timed)
    adam, muon = bench.scalings(["Adam", "SparseAdam", "Muon"], Settings(), lambda what, done, total: None)
    assert adam.per_tensor["forloop"] == pytest.approx(3e-6 + 64 * 2e-9)
    assert adam.per_element["forloop"] == pytest.approx(2e-9)
    assert set(muon.per_tensor) == {"forloop"}
    assert muon.per_element == {}


# --- The command


def test_json_has_everything(command, tmp_path):
    file = tmp_path / "out.json"
    status, out, _ = command("Adam", "SGD", "LBFGS", "--rounds", 3, "--seed", 7, "--threads", 1, "--json", file)
    assert status == 0
    assert "3x5: 3 tensors, 15 elements" in out
    data = json.loads(file.read_text(), parse_constant=pytest.fail)
    assert set(data) == {"stepcheck", "environment", "seed", "dtype", "cold", "workloads", "results", "scaling"}
    assert (data["dtype"], data["cold"]) == ("float32", False)
    assert data["seed"] == 7
    assert data["environment"]["threads"] == 1
    assert data["environment"]["torch"] == torch.__version__
    assert data["environment"]["cache_bytes"] == machine.cache_bytes()
    assert [(r["optimizer"], r["workload"]) for r in data["results"]] == [
        ("Adam", "3x5"), ("SGD", "3x5"), ("SGD", "tiny-sparse"), ("LBFGS", "tiny-quadratic"),
    ]  # fmt: skip
    adam = data["results"][0]
    assert set(adam["torch"]) == {"forloop", "foreach", "fused"}
    for timing in (*adam["torch"].values(), adam["fast"]):
        assert len(timing["rounds"]) == 3
        assert timing["median"] == sorted(timing["rounds"])[1]
        assert timing["quartiles"][0] <= timing["median"] <= timing["quartiles"][1]
        assert timing["steps_per_round"] >= 1
    best = adam["torch"][adam["best"]]
    assert best["median"] == min(t["median"] for t in adam["torch"].values())
    assert adam["ratio"] == best["median"] / adam["fast"]["median"]
    ratios = [t / f for t, f in zip(best["rounds"], adam["fast"]["rounds"], strict=True)]
    assert adam["round_ratios"]["median"] == sorted(ratios)[1]
    assert adam["bytes_per_second"] == pytest.approx(28 * 15 / adam["fast"]["median"])
    assert (adam["engine"], adam["wrong"], adam["share_of_ceiling"]) == ("llvm", False, None)
    assert data["results"][1]["options"] == {"momentum": 0.9}


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["Adamm"], "Invalid value for '[NAME]...': 'Adamm' is not one of"),
        (["--workload", "nowhere"], "'nowhere' is not one of '3x5'"),
        (["--device", "abacus"], "'abacus' is not one of 'cpu', 'cuda'"),
        (["--rounds", "0"], "0 is not in the range x>=1"),
        (["LBFGS", "--workload", "3x5"], "LBFGS is not timed on 3x5; it is on tiny-quadratic"),
        (["--set", "momentum"], "'momentum' is not of the form OPTION=VALUE, such as momentum=0.9"),
        (["SGD", "Adam", "--set", "momentum=0"], "--set: Adam lacks momentum"),
        (["--set", "haste=1"], "--set: no class has haste"),
        (["--json", "no/such/folder/out.json"], "--json no/such/folder/out.json: cannot be written"),
    ],
)
def test_bad_usage_is_one_line_and_exit_2(command, arguments, told, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*arguments)
    assert status == 2
    assert err.startswith("stepcheck: ")
    assert told in err
    assert len(err.splitlines()) == 1
    assert not out


def test_without_a_gpu_cuda_is_bad_usage(command, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    status, _, err = command("--device", "cuda")
    assert status == 2
    why = "no CUDA device: torch was built without CUDA"
    assert err == f"stepcheck: {why} (torch {torch.__version__}); run it with --device cpu\n"


def test_without_matplotlib_a_plot_is_bad_usage(command, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else found(name))
    status, _, err = command("--plot", "out.png")
    assert status == 2
    assert 'pip install "stepcheck[plot]"' in err


def test_a_plot_shows_a_line_for_each_optimizer(command, tmp_path):
    pytest.importorskip("matplotlib")
    status, _, err = command("--plot", tmp_path / "out.xyz")
    assert status == 2
    assert "such as .png or .svg" in err
    file = tmp_path / "out.svg"
    status, _, _ = command("Adam", "SGD", "--rounds", 1, "--plot", file)
    assert status == 0
    drawn = file.read_text()
    for label in ("Adam", "SGD", "SGD (sparse)"):
        assert f"<!-- {label} -->" in drawn


# --- What is shown


@pytest.mark.parametrize(
    "seconds, told",
    [
        (1.5, "1.50 s"),
        (0.0123, "12.3 ms"),
        (9.996e-4, "1.00 ms"),
        (1.234e-7, "123 ns"),
        (5e-13, "0.50 ps"),
        (-2e-6, "-2.00 µs"),
    ],
)
def test_durations_have_three_digits(seconds, told):
    assert tables.duration(seconds) == told


def test_the_widest_table_fits_into_a_hundred_columns():
    row = Row("SparseAdam", TINY, {}, bytes_per_element=28, engine="llvm")
    on_cpu = ("forloop", "foreach", "fused", "compiled")
    row.torch = [Timing(name, [0.123]) for name in on_cpu]
    row.fast, row.ceiling = Timing("fast", [0.00123]), Timing("ceiling", [0.00111])
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(tables.table([row]))
    lines = console.export_text().splitlines()
    assert lines[0].split() == [
        "optimizer", "forloop", "foreach", "fused", "compiled", "fast", "ratio", "by", "rounds", "GB/s", "ceiling",
    ]  # fmt: skip
    assert "100 (100-100)" in lines[1]
    assert "90%" in lines[1]
    assert "…" not in lines[1]
    assert math.isclose(row.ratio, 100)
