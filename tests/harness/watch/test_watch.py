"""What a watch says where there is little to say, and what it does to the program around it."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from watched.faulty import CoupledDecay, Own
from watched.right import Spelled
from watched.runs import backward, net, train

import stepcheck
from stepcheck import Report as _OfCheck
from stepcheck.harness.life.reading import TraceError
from stepcheck.harness.record import store
from stepcheck.harness.record.reading import read
from stepcheck.harness.support.usage import UsageError
from stepcheck.watching import Report, WatchError, WatchWarning


def run(optimizer, model, steps=3, **options):
    watch = stepcheck.watch(optimizer, model, **options)
    for _ in train(model, optimizer, steps):
        pass
    return watch


def adam(model, **options):
    return torch.optim.Adam(model.parameters(), **options)


class TestVerdict:
    def test_nothing_stepped_is_unknown(self):
        model = net()
        report = stepcheck.watch(adam(model), model).report()
        assert isinstance(report, Report)
        assert not isinstance(report, _OfCheck)
        assert report.verdict == "unknown"
        assert set(report.checks.values()) == {"unknown"}

    def test_steps_that_none_was_watched_of_are_unknown(self):
        model = net()
        assert run(adam(model), model, first=0, every=100).report().verdict == "unknown"

    def test_steps_without_a_gradient_are_unknown(self):
        model = net()
        optimizer = adam(model)
        watch = stepcheck.watch(optimizer, model)
        optimizer.step()
        assert watch.report().verdict == "unknown"
        assert watch.report().checks["no-gradient"] == "pass"

    def test_what_is_not_determined_does_not_count(self):
        p = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.SGD([p], lr=0.1)
        watch = stepcheck.watch(optimizer)
        p.grad = torch.full((3,), torch.nan)
        optimizer.step()
        report = watch.report()
        assert report.notes[0].check == "finite"
        assert report.elements + report.undetermined == 3

    def test_a_watch_that_fails_lets_the_training_go_on_and_passes_nothing(self, monkeypatch):
        model = net()
        optimizer = adam(model)
        watch = stepcheck.watch(optimizer, model)
        steps = train(model, optimizer, 3)
        next(steps)
        monkeypatch.setattr("stepcheck.harness.watch.agreement.judge", lambda *_: 1 / 0)
        assert len(list(steps)) == 2
        report = watch.report()
        assert report.verdict == "unknown"
        assert report.error == "step 2: ZeroDivisionError: division by zero"
        assert report.steps == 2

    def test_it_prints_well(self):
        model = net()
        text = str(run(adam(model), model).report())
        assert text.startswith("✓ pass: 3 of 3 steps judged, ")
        assert "worst r 0." in text
        assert "(like torch:Adam[forloop])" in text
        assert "nothing to look at: no-gradient, skipped-step, lr-scheduled, unscaled, replicas-agree" in text
        assert "step 3: update to weight " in text

    def test_numbers_over_time(self):
        model = net()
        report = run(adam(model, eps=10.0), model).report()
        assert [row.step for row in report.rows] == [1, 2, 3]
        assert all(0 < row.update_to_weight < 1 and row.below_eps == 1.0 for row in report.rows)
        assert set(report.parameters) == {name for name, _ in model.named_parameters()}


class TestNotJudged:
    @pytest.mark.parametrize(
        ("make", "said"),
        [
            (getattr(torch.optim, "Muon", None), "Muon is not watched"),
            (torch.optim.LBFGS, "LBFGS is not watched"),
            (Own, "no reference is known of watched.faulty:Own"),
        ],
    )
    def test_what_no_reference_says_is_unsupported_in_words(self, make, said):
        if make is None:
            pytest.skip("this torch has no Muon")
        p = torch.nn.Parameter(torch.ones(4, 4))
        optimizer = make([p])
        watch = stepcheck.watch(optimizer)
        p.grad = torch.ones(4, 4)
        optimizer.step(lambda: p.detach().sum())
        report = watch.report()
        assert report.verdict == "unsupported"
        assert said in str(report)

    def test_of_adafactor_a_large_parameter_is_not_judged_and_a_small_one_is(self):
        large, small = (torch.nn.Parameter(torch.ones(n, 100)) for n in (200, 2))
        optimizer = torch.optim.Adafactor([large, small])
        watch = stepcheck.watch(optimizer)
        (large.sum() + small.sum()).backward()
        optimizer.step()
        report = watch.report()
        assert report.verdict == "pass"
        assert report.never == ["param_groups[0]['params'][0]"]
        assert "up to 16384 are judged, as a whole" in str(report)

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            ({}, "has no 'lr' in its groups, which AdamW needs"),
            ({"lr": "rate", "weight_decay": "decay", "betas": ("beta1", "beta2")}, "its state has no 'step'"),
        ],
    )
    def test_what_has_another_name_is_not_judged(self, names, said):
        model = net()
        report = run(Spelled(model.parameters()), model, like="AdamW", names=names).report()
        assert report.verdict == "unsupported"
        assert said in str(report)

    def test_a_step_before_which_another_hook_may_work_later_is_not(self):
        model = net()
        optimizer = adam(model)
        watch = stepcheck.watch(optimizer, model)
        optimizer.register_step_pre_hook(lambda *_: None)
        for _ in train(model, optimizer, 3):
            pass
        report = watch.report()
        assert (report.steps, report.judged) == (3, 2)
        assert "another hook before the step was registered since" in str(report)

    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch's compiler, within itself
    @pytest.mark.filterwarnings("ignore::FutureWarning")
    @pytest.mark.parametrize("step", [False, True])
    def test_a_step_that_is_compiled(self, step):
        model = net()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        watch = stepcheck.watch(optimizer, model)

        def within():
            optimizer.step()

        take = torch.compile(optimizer.step if step else within, backend="eager")
        for n in range(2):
            optimizer.zero_grad()
            backward(model, n)
            take()
        report = watch.report()
        assert report.verdict == "unsupported"
        assert "the step is run by torch.compile" in str(report)

    def test_a_scale_that_is_no_power_of_two(self):
        model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=1000.0)
        optimizer = adam(model, fused=True)
        watch = stepcheck.watch(optimizer, model, scaler=scaler)
        backward(model, 0, scaler=scaler)
        scaler.step(optimizer)
        assert "by a scale that is no power of two" in str(watch.report())


class TestSurroundings:
    def test_it_warns(self):
        model = net()
        with pytest.warns(
            WatchWarning, match=r"step 1, agreement: 0\.weight: (exp_avg|exp_avg_sq|the parameter), element"
        ):
            run(CoupledDecay(model.parameters()), model, like="AdamW")

    def test_it_raises(self):
        model = net()
        with pytest.raises(WatchError, match="step 1, agreement"):
            run(CoupledDecay(model.parameters()), model, like="AdamW", on_finding="raise")

    def test_what_is_found_again_is_told_once(self):
        model = net()
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            watch = run(CoupledDecay(model.parameters()), model, like="AdamW")
        fields = {"exp_avg", "exp_avg_sq", "the parameter"}
        assert len(told) == len(watch.report().findings) == len(fields)
        assert all(f.times > 1 and len(f.parameters) > 1 for f in watch.report().findings)

    def test_closed_it_is_gone(self):
        model, scaler = net(), torch.amp.GradScaler("cpu")
        optimizer = adam(model)
        watch = run(optimizer, model, scaler=scaler)
        watch.close()
        watch.close()
        assert not optimizer._optimizer_step_pre_hooks
        assert not optimizer._optimizer_step_post_hooks
        assert not optimizer._optimizer_load_state_dict_pre_hooks
        assert not any(p._backward_hooks for p in model.parameters())
        assert "scale" not in vars(scaler)
        assert watch.report().judged == 3

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"like": "Adamm"}, "Adamm"),
            ({"on_finding": "shout"}, "one of warn, raise"),
            ({"every": 0}, "every=0 is no whole number of at least 1"),
            ({"elements": 2}, "elements=2"),
            ({"like": "Adam", "dialects": "sideways"}, "no dialect 'sideways'"),
        ],
    )
    def test_bad_usage(self, options, said):
        with pytest.raises(UsageError, match=said):
            stepcheck.watch(adam(net()), **options)

    def test_what_is_no_optimizer(self):
        with pytest.raises(UsageError, match=r"is no torch\.optim\.Optimizer"):
            stepcheck.watch(net())


class TestSaved:
    @pytest.fixture
    def folder(self, tmp_path):
        model = net()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            run(CoupledDecay(model.parameters()), model, like="AdamW", out=tmp_path / "out").close()
        return tmp_path / "out"

    def test_a_script_needs_torch_and_the_class_alone_and_shows_it(self, folder):
        scripts = sorted(folder.glob("*.py"))
        assert len(scripts) == 3
        assert all(len(script.read_text().splitlines()) <= 30 for script in scripts)
        assert not any("stepcheck" in script.read_text() for script in scripts)
        tests = Path(__file__).parents[2]
        done = subprocess.run([sys.executable, scripts[0]], cwd=tests, capture_output=True, text=True, check=False)
        assert "taken again, of these elements by themselves:" in done.stdout
        assert "AssertionError" in done.stderr

    def test_the_step_is_no_trace(self, folder):
        for path in folder.glob("*.json"):
            assert json.loads(path.read_text())["kind"] == "watched step"
            with pytest.raises(TraceError):
                store.load(path)

    def test_the_stream_has_numbers_and_findings(self, folder):
        (path,) = (folder / "runs").iterdir()
        found = read(path)
        rows = found.rows["watch"]
        assert found.status == 1
        assert not found.problems
        assert [row["step"] for row in rows if "worst" in row] == [1, 2, 3]
        assert {row["check"] for row in rows if "check" in row} == {"agreement"}


def test_a_step_that_torch_keeps_from_its_compiler_is_judged(monkeypatch):
    """What torch does to SparseAdam and LBFGS as soon as its compiler is imported, whatever is compiled."""
    monkeypatch.setattr(torch.optim.SGD, "step", torch.compiler.disable(torch.optim.SGD.step))
    p = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([p], lr=0.1)
    watch = stepcheck.watch(optimizer)
    for _ in range(3):
        p.grad = torch.ones(4)
        optimizer.step()
    report = watch.report()
    assert (report.verdict, report.judged) == ("pass", 3)
