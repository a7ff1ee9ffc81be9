"""The command line, as scripts use it: exit status, one line on standard error, JSON, files."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from in_process import stepcheck

from stepcheck import cli
from stepcheck.harness.record.reading import read
from stepcheck.reference import SPECS

pytestmark = pytest.mark.usefixtures("no_dialect")

WRONG = '''
import torch


class WrongAdam(torch.optim.Adam):
    """Forgets that eps is not bias-corrected."""

    def step(self, closure=None):
        for group in self.param_groups:
            steps = [int(self.state[p]["step"]) + 1 if p in self.state else 1 for p in group["params"]]
            group["eps"] *= (1 - group["betas"][1] ** max(steps, default=1)) ** -0.5
        return super().step(closure)


class NoOptimizer:
    pass


def returns_a_number(params, lr):
    return 3


def needs_more(params, secret, lr):
    return torch.optim.Adam(params, lr)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("project")
    (folder / "some_module.py").write_text(WRONG)
    return folder


def run(folder, *arguments):
    command = [sys.executable, "-m", "stepcheck", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture
def here(folder, capfd):
    """Runs a command in this process, which is quicker than a new one."""
    return lambda *words: stepcheck(*words, cwd=folder, capfd=capfd)


@pytest.fixture
def refuse(folder, monkeypatch, capsys):
    """Runs bad usage in this process, which is quicker than a new one; gives the line on standard error."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))

    def run_here(*arguments):
        monkeypatch.setattr(sys, "argv", ["stepcheck", *arguments])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        assert exit_.value.code == 2, printed
        assert len(printed.err.strip().splitlines()) == 1
        assert printed.err.startswith("stepcheck: ")
        return printed.err

    return run_here


def test_a_process_that_calls_the_command_and_has_threads_of_its_own_goes_on(refuse):
    done = threading.Event()
    theirs = threading.Thread(target=done.wait)
    theirs.start()
    try:
        assert "no such option" in refuse("check", "--nonsense").lower()
        assert cli._console().file is sys.stdout
    finally:
        done.set()
        theirs.join()


def test_list_names_optimizers_subjects_and_checks(here):
    done = here("list")
    assert done.returncode == 0
    assert re.search(
        r"SGD +forloop foreach fused differentiable compiled\n +float32, .*complex64 \(not fused\)", done.stdout
    )
    assert re.search(r"Adamax +forloop foreach \(capturable\)", done.stdout)
    for word in (*SPECS, "torch:Adam[foreach]", "fast:Adam", "agreement", "save-load-continue"):
        assert word in done.stdout


def test_a_conforming_subject_exits_0_and_fills_the_json(folder, here):
    words = "check torch:Adam[forloop] --dtype float32 --dtype float64 --examples 60 --seed 5 --json out.json"
    done = here(*words.split())
    assert done.returncode == 0, done.stdout + done.stderr
    assert "traces a second a core" in done.stdout
    data = json.loads((folder / "out.json").read_text())
    assert set(data) >= {"stepcheck", "environment", "seed", "subjects"}
    assert data["seed"] == 5
    (subject,) = data["subjects"]
    assert (subject["subject"], subject["like"], subject["verdict"]) == ("torch:Adam[forloop]", "Adam", "known")
    for check in subject["checks"]:
        assert set(check) == {"check", "verdict", "planned", "ran", "unsupported", "worst_ratio", "divergences"}
        assert check["verdict"] in ("pass", "known")
        # What is invalid is a matrix of its own, however many lives there are.
        assert check["planned"] == 60 or check["check"] == "refuses-invalid"
        assert 0 < check["ran"] <= check["planned"]
    worst = {c["check"]: c["worst_ratio"] for c in subject["checks"]}
    assert 0.3 < worst["agreement"] <= 1


@pytest.fixture(scope="module")
def found():
    """What the first test that needed a divergence found."""
    return []


@pytest.fixture
def divergence(folder, here, found):
    """A divergence of a wrong class, and what was printed."""
    if not found:
        words = "check some_module:WrongAdam --like Adam --examples 20 --seed 1 --only agreement --json wrong.json"
        done = here(*words.split())
        assert done.returncode == 1, done.stdout + done.stderr
        data = json.loads((folder / "wrong.json").read_text(), parse_constant=pytest.fail)
        (subject,) = data["subjects"]
        assert subject["verdict"] == "fail"
        found += next(d for c in subject["checks"] for d in c["divergences"] if not d["known"]), done.stdout
    return found


EPS_UNDER_THE_ROOT = """
from stepcheck.harness.zoo.adam import RightAdam


class MyAdam(RightAdam):
    def direction(self, m, v, correction1, correction2, eps):
        return m / correction1 / (v / correction2 + eps).sqrt()
"""


def test_a_declared_dialect_is_what_a_class_is_held_to(tmp_path, capfd):
    """And a life that is saved is replayed as it was judged."""
    (tmp_path / "some_module.py").write_text(EPS_UNDER_THE_ROOT)
    wrong = (
        "\n\nclass Wrong(MyAdam):\n    def direction(self, *given):\n        return 1.01 * super().direction(*given)\n"
    )
    (tmp_path / "another_module.py").write_text(EPS_UNDER_THE_ROOT + wrong)
    said = "--like Adam --dialect eps-inside-root --examples 15 --only agreement"
    done = stepcheck("check", "some_module:MyAdam", *said.split(), "--json", "out.json", cwd=tmp_path, capfd=capfd)
    assert done.returncode == 0, done.stdout
    (subject,) = json.loads((tmp_path / "out.json").read_text())["subjects"]
    assert (subject["like"], subject["verdict"]) == ("Adam[eps-inside-root]", "pass")
    done = stepcheck("check", "another_module:Wrong", *said.split(), cwd=tmp_path, capfd=capfd)
    assert done.returncode == 1, done.stdout
    name = re.search(r"stepcheck replay (\w+)", done.stdout)[1]
    assert stepcheck("replay", name, cwd=tmp_path, capfd=capfd).stdout.startswith("FAILS")
    right = stepcheck("replay", name, "--subject", "some_module:MyAdam", cwd=tmp_path, capfd=capfd)
    assert right.stdout.startswith("FIXED"), right.stdout


@pytest.mark.slow  # a whole campaign: the first example of docs/check.md is a short one, and tests/docs runs it
def test_what_the_readme_shows_first_is_what_is_printed(tmp_path):
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    command, *shown = readme.split("```console\n$ stepcheck ", 1)[1].split("```", 1)[0].strip().splitlines()
    (tmp_path / "some_module.py").write_text(EPS_UNDER_THE_ROOT)
    printed = run(tmp_path, *shlex.split(command)).stdout.splitlines()
    assert len(shown) > 4
    assert [line for line in shown if line not in printed] == []


def test_a_divergence_is_told_with_replay_and_script(divergence):
    found, printed = divergence
    assert set(found) == {"id", "summary", "known", "trace", "repro"}
    assert found["known"] is False
    assert f"stepcheck replay {found['id']}" in printed
    assert found["repro"] in printed
    assert "budgets" in found["summary"]


def test_first_tells_one_divergence_at_once_and_torch_imports_no_compiler(folder):
    (folder / "own.py").write_text(OWN)
    told = run(folder, "check", "own:Wrong", "--like", "SGD", "--first", "--json", "first.json", "--out", "first")
    assert told.returncode == 1, told.stderr
    assert re.search(r"^own:Wrong fails agreement \[\w+\], in 1 life$", told.stdout, re.MULTILINE)
    (row,) = json.loads((folder / "first.json").read_text())["subjects"]
    (one,) = [d for c in row["checks"] for d in c["divergences"] if not d["known"]]
    assert len(Path(folder, one["repro"]).read_text().splitlines()) < 40
    assert (folder / "compiler").read_text() == "False"


OWN = """
import sys

import torch


class Wrong(torch.optim.Optimizer):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-1.01 * group["lr"])
        with open("compiler", "w") as told:
            told.write(str("torch._dynamo" in sys.modules))
        return loss
"""


def test_patience_is_a_number_of_seconds(refuse):
    for seconds in ("0", "-1", "nan", "inf"):
        assert "--patience" in refuse("check", "torch:SGD", "--patience", seconds)


def test_the_script_fails_by_itself_and_imports_torch_and_the_subject_alone(folder, divergence):
    text = (folder / divergence[0]["repro"]).read_text()
    assert len(text.splitlines()) <= 30
    imports = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert imports == ["import torch", "from some_module import WrongAdam"]
    command = [sys.executable, divergence[0]["repro"]]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("AssertionError: ")


def test_replay_by_id_and_file_and_on_another_subject(here, divergence):
    found = divergence[0]
    for name in (found["id"], found["trace"]):
        done = here("replay", name)
        assert (done.returncode, done.stdout.split()[0]) == (1, "FAILS"), done.stderr
    done = here("replay", found["id"], "--subject", "torch:Adam[foreach]")
    assert (done.returncode, done.stdout.split()[0]) == (0, "FIXED"), done.stderr


def test_a_bare_trace_replays_on_a_named_subject(folder, here, divergence):
    saved = json.loads((folder / divergence[0]["trace"]).read_text())
    (folder / "bare.json").write_text(json.dumps(saved["trace"]))
    assert here("replay", "bare.json").returncode == 2
    assert here("replay", "bare.json", "--subject", "torch:Adam[forloop]").returncode == 0
    assert here("replay", "bare.json", "--subject", "some_module:WrongAdam").returncode == 1


def test_an_error_of_the_harness_in_a_replay_is_told_as_one(folder, here, divergence):
    # The class of a saved divergence may be gone; that is bad input, not a fix.
    saved = json.loads((folder / divergence[0]["trace"]).read_text())
    saved["subject"] = "some_module:Gone"
    (folder / "gone.json").write_text(json.dumps(saved))
    done = here("replay", "gone.json")
    assert done.returncode == 2
    assert "FIXED" not in done.stdout


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["check", "torch:Foo"], "no reference named 'Foo'"),
        (["check", "torch:Adam[warp]"], "forloop, foreach, fused"),
        (["check", "torch:RMSprop[fused]"], "forloop, foreach"),
        (["check", "fast:Adam[warp]"], "has the modes compensated, triton, cuda, or none"),
        (["check", "tensorflow"], "unknown subject"),
        (["check", "no_such_module:Thing", "--like", "Adam"], "cannot import no_such_module"),
        (["check", "some_module:Thing", "--like", "Adam"], "has no Thing"),
        (["check", "some_module:NoOptimizer", "--like", "Adam"], "no optimizer"),
        (["check", "some_module:returns_a_number", "--like", "Adam"], "no optimizer"),
        (["check", "some_module:needs_more", "--like", "Adam"], "secret"),
        (["check", "some_module:WrongAdam", "--like", "Foo"], "--like"),
        (["check", "torch:SGD", "--examples", "0"], "--examples"),
        (["check", "torch:SGD", "--dtype", "int8"], "--dtype"),
        (["check", "torch:SGD", "--only", "nothing"], "--only"),
        (["check", "torch:SGD", "--json", "no/such/folder/out.json"], "cannot be written"),
        (["check", "--bogus"], "--bogus"),
        (["bogus"], "bogus"),
        (["replay", "nothere"], "no file"),
        (
            ["check", "some_module:WrongAdam", "--dialect", "eps-inside-root"],
            "those of a reference: say of which, with --like",
        ),
        (
            ["check", "some_module:WrongAdam", "--like", "Adam", "--dialect", "x"],
            "Adam has no dialect 'x'; there is eps-beside-uncorrected-root,",
        ),
        (
            ["check", "torch:Adam", "--like", "Adam", "--dialect", "eps-inside-root"],
            "--dialect is for somebody's class alone",
        ),
    ],
)
def test_bad_usage_is_one_line_and_exit_status_2(refuse, arguments, said):
    assert said in refuse(*arguments)


def test_bad_usage_from_a_shell(folder):
    done = run(folder, "check", "torch:Foo")
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "not JSON"),
        ("hello", "not JSON"),
        ("[1, 2]", "JSON object"),
        ('{"schema": 99}', "schema 99"),
        ('{"schema": 1, "optimizer": "Adam"', "cut short"),
        ('{"trace": {"schema": 1}, "subject": 3}', "subject"),
        ("\x80\x04\x95", "not JSON"),
    ],
)
def test_a_bad_trace_file_is_one_line_and_exit_status_2(refuse, folder, text, said):
    (folder / "bad.json").write_text(text)
    assert said in refuse("replay", "bad.json")


def test_too_few_examples_to_ask_every_check_is_unknown(here):
    assert here("check", "torch:SGD[forloop]", "--examples", "1").returncode == 3


def test_nothing_is_said_at_exit_of_what_triton_leaves_behind(folder):
    done = run(folder, "check", "fast:SGD[triton]", "--examples", "5", "--only", "agreement")
    assert done.stderr == ""


@pytest.mark.skipif(torch.version.cuda is not None, reason="torch is built with CUDA")
def test_without_cuda_a_subject_on_it_is_unsupported_and_says_why(here):
    done = here("check", "fast:Adam[cuda]")
    assert done.returncode == 3
    assert "fast:Adam[cuda]: unsupported: no CUDA device: torch was built without CUDA" in done.stdout


def test_the_same_command_twice_says_the_same(folder, here):
    """In this process and in another one."""
    command = ("check", "torch:AdamW[fused]", "--examples", "30", "--seed", "2", "--json")
    said = [called(*command, name).returncode for called, name in ((here, "a.json"), (partial(run, folder), "b.json"))]
    first, second = (json.loads((folder / name).read_text()) for name in ("a.json", "b.json"))
    assert said == [0, 0]
    assert first == second
    (subject,) = first["subjects"]
    assert subject["verdict"] == "known"
    known = [d for c in subject["checks"] for d in c["divergences"]]
    assert known
    assert all(d["known"] and (folder / d["trace"]).is_file() and (folder / d["repro"]).is_file() for d in known)
    assert first["ledger"]
    assert all(entry["reproduces"] for entry in first["ledger"])


def test_ctrl_c_leaves_what_was_found_on_disk(folder):
    (folder / "own.py").write_text(OWN)
    command = [sys.executable, "-m", "stepcheck", "check", "own:Wrong", "--like", "SGD",
               "--only", "agreement", "--seconds", "120", "--out", "hunt", "--json", "hunt.json"]  # fmt: skip
    # A shell has what it starts in the background ignore SIGINT, and that is inherited.
    heard = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, heard)
    deadline = time.monotonic() + 100
    while not list(folder.glob("hunt/*.py")) and time.monotonic() < deadline:
        time.sleep(0.2)
    os.kill(process.pid, signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "interrupted" in printed
    assert list(folder.glob("hunt/*.json"))
    (subject,) = json.loads((folder / "hunt.json").read_text())["subjects"]
    assert subject["verdict"] == "fail"


def test_a_run_is_recorded_and_read_in_every_form(folder, here, monkeypatch):
    (folder / "summary.md").write_text("before\n")
    words = "check some_module:WrongAdam --like Adam --only options-hold --examples 10 --out kept"
    files = "--json kept.json --junit kept.xml --markdown kept.md"
    command = [*words.split(), *files.split()]
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "summary.md")
    done = here(*command)
    assert done.returncode == 1, done.stderr
    (path,) = (folder / "kept" / "runs").glob("*.jsonl")
    recorded = read(path)
    assert (recorded.status, recorded.seed, recorded.problems) == (1, 0, [])
    assert recorded.command == shlex.join(["stepcheck", *command])
    (name,) = [d.id for r in recorded.results for d in r.divergences]
    assert name in json.dumps(json.loads((folder / "kept.json").read_text()))
    for file in ("kept.xml", "kept.md"):
        assert f"stepcheck replay --out kept {name}" in (folder / file).read_text()
    assert (folder / "summary.md").read_text() == "before\n" + (folder / "kept.md").read_text()


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_file_that_cannot_be_written_is_told_before_the_run(refuse, option):
    assert f"{option} no/such/folder/x" in refuse("check", "torch:SGD", option, "no/such/folder/x")


def test_a_summary_that_cannot_be_written_is_told_before_the_run(refuse, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", "no/such/folder/x")
    assert "GITHUB_STEP_SUMMARY no/such/folder/x" in refuse("check", "torch:SGD")


@pytest.mark.slow
def test_census_and_bench_record_what_their_json_has(folder):
    pytest.importorskip("triton")
    for name, words in {"census": "census SGD --arch sm_90", "host": "bench --host SGD --quick"}.items():
        done = run(folder, *words.split(), "--out", name, "--json", f"{name}.json")
        assert done.returncode == 0, done.stderr
        (path,) = (folder / name / "runs").glob("*.jsonl")
        assert read(path).documents == {name: json.loads((folder / f"{name}.json").read_text())}
        assert read(path).status == 0


def test_somebodys_class_may_be_expected_to_fail_a_check(here):
    about = ["check", "some_module:WrongAdam", "--like", "Adam", "--only", "agreement", "--examples", "15"]
    expected = here(*about, "--expect", "agreement: eps is meant so")
    assert expected.returncode == 0
    assert "expected: eps is meant so: some_module:WrongAdam fails agreement [" in expected.stdout
    again = re.search(r"fails agreement \[(\w+)\]", expected.stdout)
    assert here("replay", again[1]).returncode == 1
    refused = here("check", "torch:SGD", "--expect", "agreement: no")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("stepcheck: --expect is for somebody's class alone")
