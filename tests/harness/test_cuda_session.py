"""What a machine with a GPU is asked for: each task is run whatever became of the others, and a page tells of all of them."""

import json
import subprocess
import sys

import pytest
import torch

from stepcheck.harness import cuda_session
from stepcheck.harness.cuda_session import Outcome, Task, tasks
from stepcheck.reference import SPECS

ABOUT = {"processor": "Some GPU 80GB", "capability": "9.0", "torch": "2.13.0"}


class Runner:
    """Writes what it is told to, and ends as it is told to."""

    def __init__(self, **statuses):
        self.statuses, self.ran = statuses, []

    def __call__(self, task, log):
        self.ran.append(task.name)
        log.write_text(f"{task.name} speaks\n")
        return self.statuses.get(task.name, 0)


def test_all_fifteen_are_checked_and_everything_lands_in_the_folder(tmp_path):
    todo = {t.name: t for t in tasks(tmp_path, which=lambda name: f"/usr/bin/{name}")}
    assert list(todo) == ["tests", "check", "memcheck", "racecheck", "census", "bench", "host"]
    assert [word for word in todo["check"].command if word.startswith("fast:")] == [
        f"fast:{name}[cuda]" for name in SPECS
    ]
    assert todo["tests"].command[1:] == ("-m", "pytest", "-m", "cuda", "tests")
    assert todo["memcheck"].command[:3] == ("compute-sanitizer", "--tool", "memcheck")
    assert "exercise" in todo["racecheck"].command
    assert todo["bench"].command[4:6] == ("--device", "cuda")
    for name in ("check", "census", "bench", "host"):
        assert str(tmp_path / f"{name}.json") in todo[name].command
    assert not any(t.missing for t in todo.values())


def test_without_the_sanitizer_its_tasks_are_named_as_not_run(tmp_path):
    todo = tasks(tmp_path, which=lambda name: None)
    assert [t.name for t in todo if t.missing] == ["memcheck", "racecheck"]
    runner = Runner()
    outcomes = cuda_session.run(tmp_path, todo, runner, ABOUT)
    assert "memcheck" not in runner.ran
    assert not any(o.failed for o in outcomes)
    assert "| memcheck | not run: compute-sanitizer is not on the PATH |" in (tmp_path / "summary.md").read_text()


def test_a_task_that_fails_is_told_and_the_others_are_run(tmp_path):
    runner = Runner(tests=1, census=2)
    outcomes = cuda_session.run(tmp_path / "new", tasks(tmp_path, which=lambda name: name), runner, ABOUT)
    assert runner.ran == [o.task.name for o in outcomes]
    assert [o.task.name for o in outcomes if o.failed] == ["tests", "census"]
    page = (tmp_path / "new" / "summary.md").read_text()
    assert page.startswith("# stepcheck")
    assert "Some GPU 80GB" in page
    assert "| tests | failed, exit status 1 |" in page
    assert "| check | succeeded |" in page
    assert (tmp_path / "new" / "tests.log").read_text() == "tests speaks\n"
    assert json.loads((tmp_path / "new" / "environment.json").read_text()) == ABOUT


def test_the_page_is_there_after_each_task(tmp_path):
    class Dies(Runner):
        def __call__(self, task, log):
            if task.name == "check":
                raise KeyboardInterrupt
            return super().__call__(task, log)

    with pytest.raises(KeyboardInterrupt):
        cuda_session.run(tmp_path, tasks(tmp_path), Dies(), ABOUT)
    assert "| tests | succeeded |" in (tmp_path / "summary.md").read_text()


def test_the_page_has_verdicts_and_ratios(tmp_path):
    check = {"subjects": [{"subject": "fast:SGD[cuda]", "verdict": "fail", "notes": ["a | note"],
                           "checks": [{"divergences": [{"summary": "too far"}]}]}]}  # fmt: skip
    bench = {"results": [{"optimizer": "SGD", "workload": "1M", "best": "fused", "ratio": 1.234, "graph_ratio": None,
                          "share_of_ceiling": 0.9, "note": ""}]}  # fmt: skip
    (tmp_path / "check.json").write_text(json.dumps(check))
    (tmp_path / "bench.json").write_text(json.dumps(bench))
    page = cuda_session.summary(tmp_path, [], ABOUT)
    assert "| fast:SGD[cuda] | fail | too far; a / note |" in page
    assert "| SGD | 1M | fused | 1.23 |  | 0.90 |  |" in page


@pytest.mark.parametrize("text", [None, "", '{"subjects": ['])
def test_what_a_task_has_not_written_or_not_to_the_end_is_left_out(tmp_path, text):
    if text is not None:
        (tmp_path / "check.json").write_text(text)
    assert "## Checks" not in cuda_session.summary(tmp_path, [], ABOUT)


def test_a_process_has_its_output_and_its_variables_in_the_log(tmp_path):
    command = (
        sys.executable,
        "-c",
        "import os, sys; print(os.environ['GIVEN']); print('bad', file=sys.stderr); sys.exit(3)",
    )
    assert cuda_session.in_a_process(Task("x", command, environment={"GIVEN": "good"}), tmp_path / "x.log") == 3
    said = (tmp_path / "x.log").read_text()
    assert said.startswith(f"$ {sys.executable} -c")
    assert {"good", "bad"} <= set(said.split())
    assert cuda_session.in_a_process(Task("y", ("no-such-command",)), tmp_path / "y.log") == 127


def test_an_outcome_says_what_became_of_it():
    assert Outcome(Task("x", ()), 0, 1.0).told == "succeeded"
    assert Outcome(Task("x", ()), 86, 1.0).told == "failed, exit status 86"
    assert Outcome(Task("x", (), "no such tool"), None, 0.0).told == "not run: no such tool"


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_the_exercise_steps_all_of_them():
    cuda_session.exercise("cpu")


def test_without_a_gpu_the_session_says_so_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(subprocess, "run", None)
    assert cuda_session.main(["run", "--out", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err == f"no CUDA device: torch was built without CUDA (torch {torch.__version__})\n"
    assert not (tmp_path / "out").exists()
