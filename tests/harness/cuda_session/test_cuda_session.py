"""A session on a machine with a GPU, without one: most valuable first, within its time, and a folder that tells of all of it."""

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch

from stepcheck.harness.cuda_session import __main__ as command_line
from stepcheck.harness.cuda_session import folder as folders
from stepcheck.harness.cuda_session import plan, process, session, work
from stepcheck.harness.cuda_session.folder import Folder, unpack
from stepcheck.harness.cuda_session.page import NOT_JUDGED, page, status, verdicts
from stepcheck.harness.cuda_session.plan import Place, Task
from stepcheck.harness.cuda_session.session import RESERVE, Budget, Outcome, Session, outcome
from stepcheck.harness.record import reading
from stepcheck.harness.record.stream import Recorder, Stream
from stepcheck.harness.record.verdict import LifeTally, Result, Tally
from stepcheck.reference import SPECS

TREE = Path(__file__).resolve().parents[3]
ABOUT = {"processor": "Some GPU 80GB", "capability": "9.0", "torch": "2.11.0", "stepcheck": "0.0"}


def place_in(path, *, rehearsal=False):
    return Place(TREE, path, dict(ABOUT), rehearsal)


def python(name, code, **facts):
    return Task(name, f"what {name} is for", lambda seconds: (sys.executable, "-c", code), **({"least": 0.1} | facts))


def session_of(tmp_path, todo, seconds=RESERVE + 60.0, clock=time.monotonic):
    """A session of some tasks, its clock beginning now."""
    place = place_in(tmp_path / "scratch")
    folder = Folder(tmp_path / "out", place.record)
    budget = Budget(seconds, clock(), clock)
    return Session(place, todo, folder, budget, lambda outcomes: page(place, folder, budget, outcomes))


def summary(tmp_path):
    return (tmp_path / "out" / "summary.md").read_text()


#: A task that records a life of a class that passes, and prints a line.
RECORDS = """
import sys
from pathlib import Path
from stepcheck.harness.record.stream import Recorder, Stream
from stepcheck.harness.record.verdict import LifeTally, Result, Tally
name = "fast:Adam[cuda]"
stream = Stream.create(Path("record"), "stepcheck check", "0.0", {}, 0, {"subjects": [[name, "Adam"]]})
recorder = Recorder(stream, name)
recorder.begun(Result(name, "Adam", {"agreement": Tally("agreement")}))
recorder.life(LifeTally(1, looked={"agreement": 4}, steps=7))
"""


# --- The plan


def test_agreement_is_first_then_timings_then_the_rest(tmp_path):
    todo = plan.tasks(place_in(tmp_path), which=lambda name: f"/usr/bin/{name}")
    assert [t.name for t in todo] == [
        "environment", "kernels", "agreement", "timings", "more timings", "tests", "lives", "memcheck", "racecheck", "bench",
        "census", "host",
    ]  # fmt: skip
    assert [t.until for t in todo] == sorted(t.until for t in todo)
    # Of eight minutes, agreement has begun after a minute and a half, and is done with before timings begin.
    until = {t.name: 480 * t.until for t in todo}
    assert until["kernels"] < 90 < until["agreement"] < until["timings"] < 300
    assert todo[-1].until == 1.0


def test_all_fifteen_are_checked_and_everything_is_recorded_in_one_place(tmp_path):
    commands = {t.name: t.command(120.0) for t in plan.tasks(place_in(tmp_path), which=lambda name: name)}
    for name in ("agreement", "lives"):
        assert [word for word in commands[name] if word.startswith("fast:")] == [f"fast:{name}[cuda]" for name in SPECS]
    for name in ("agreement", "timings", "more timings", "lives", "bench", "census", "host"):
        assert commands[name][-2:] == ("--out", str(tmp_path / "record"))
    assert commands["memcheck"][:3] == ("compute-sanitizer", "--tool", "memcheck")
    assert commands["racecheck"][-1] == "exercise"
    assert commands["timings"][-4:-2] == ("--device", "cuda")
    assert commands["census"][4:6] == ("--arch", "sm_90")


def test_agreement_plays_no_longer_than_its_share_and_waits_for_no_worker(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert plan.playing_seconds(120.0, 15) == 95.0
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    assert plan.playing_seconds(120.0, 15) == 70.0
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert plan.playing_seconds(120.0, 15) == 60.0


def test_a_rehearsal_is_the_same_plan_in_the_interpreter(tmp_path):
    with_gpu, without = (plan.tasks(place_in(tmp_path, rehearsal=r), which=lambda name: name) for r in (False, True))
    assert [(t.name, t.until, t.least) for t in without] == [(t.name, t.until, t.least) for t in with_gpu]
    commands = {t.name: t.command(120.0) for t in without}
    assert [word for word in commands["lives"] if word.startswith("fast:")] == [f"fast:{n}[triton]" for n in SPECS]
    assert not any("cuda" in word.split("/")[-1] for t in ("agreement", "timings", "lives") for word in commands[t][3:])
    assert [t.name for t in without if t.missing] == ["memcheck", "racecheck"]


def test_without_the_sanitizer_its_tasks_say_why_they_are_not_run(tmp_path):
    todo = plan.tasks(place_in(tmp_path), which=lambda name: None)
    assert {t.name: t.missing for t in todo if t.missing} == dict.fromkeys(
        ("memcheck", "racecheck"), "compute-sanitizer is not on the PATH"
    )


def test_the_tests_that_are_run_are_those_that_need_a_gpu(tmp_path):
    assert plan.marked(TREE) == [TREE / "tests" / "fast" / "cuda" / "test_device.py"]
    task = next(t for t in plan.tasks(place_in(tmp_path)) if t.name == "tests")
    assert task.command(60.0)[-1] == str(plan.marked(TREE)[0])
    (task,) = (t for t in plan.tasks(Place(tmp_path, tmp_path, {})) if t.name == "tests")
    assert task.missing == f"there are no tests in {tmp_path}"


# --- Timings


def test_five_sizes_are_timed_beside_foreach_fused_and_a_copy():
    for part, names in (
        ("first", {"AdamW", "Adam", "SGD"}),
        ("others", set(SPECS) - set(work.FIRST) - {"Muon", "LBFGS", "SparseAdam"}),
    ):
        optimizers, sizes, only = work.parts()[part]
        assert set(optimizers) == names
        assert len(sizes) == 5
        assert max(w.elements for w in sizes) > 1e8
        assert min(w.elements for w in sizes) < 1e4
        assert only == ("foreach", "fused", "fast", "ceiling")
    optimizers, workloads, only = work.parts()["all"]
    assert set(optimizers) == set(SPECS)
    assert not only
    assert len(workloads) == len(set(workloads)) == len(work.WORKLOADS)


def test_a_rehearsal_times_as_many_tiny_sizes():
    for part, (names, workloads, only) in work.parts(tiny=True).items():
        other_names, other_workloads, others = work.parts()[part]
        assert (names, only) == (other_names, others)
        assert {w.kind for w in workloads} == {w.kind for w in other_workloads}
        assert max(w.elements for w in workloads) <= 1024
    assert len(work.parts(tiny=True)["first"][1]) == 5


def test_each_row_is_recorded_and_printed_as_it_comes(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(work, "FIRST", ("SGD",))
    assert work.timings("first", "cpu", tmp_path) == 0
    (path,) = reading.runs(tmp_path)
    document = reading.read(path).documents["bench"]
    assert [row["optimizer"] for row in document["results"]] == ["SGD"] * 5
    assert len({row["workload"] for row in document["results"]}) == len(document["workloads"]) == 5
    for row in document["results"]:
        assert set(row["torch"]) == {"foreach", "fused"}
        assert row["ratio"] > 0
        assert row["share_of_ceiling"] > 0
    assert len(capsys.readouterr().out.splitlines()) == 5


@pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled")
def test_the_exercise_steps_all_of_them(capsys):
    assert work.exercise("cpu") == 0
    assert capsys.readouterr().out.split() == list(SPECS)


# --- The time


def test_a_share_ends_at_its_part_of_the_session_and_takes_from_what_is_worth_less():
    now = 100.0
    budget = Budget(RESERVE + 100.0, 100.0, lambda: now)
    first, last = python("first", "", until=0.3, least=10.0), python("last", "", until=1.0, least=10.0)
    assert (budget.share(first), budget.share(last)) == (30.0, 100.0)
    now = 125.0  # 5 s of the share are left
    assert (budget.share(first), budget.share(last)) == (10.0, 75.0)
    now = 191.0
    assert (budget.share(first), budget.share(last)) == (0.0, 0.0)


HANGS = """
import signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""


def test_what_outlasts_its_share_is_ended_with_its_children_and_the_rest_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "GRACE", 0.5)
    todo = [python("hangs", HANGS, until=0.3), python("quick", "print('done')")]
    start = time.monotonic()
    outcomes = session_of(tmp_path, todo, RESERVE + 5.0).run()
    assert time.monotonic() - start < RESERVE + 5.0
    assert [o.kind for o in outcomes] == ["ended", "succeeded"]
    assert outcomes[0].message.endswith("s: its time was up")
    assert "| quick | what quick is for | succeeded |" in summary(tmp_path)
    assert not runs(int(outcomes[0].last_line))


def runs(pid):
    """Whether there is such a process, and it is no zombie, which waits for whoever inherited it."""
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_an_interrupted_task_may_write_down_what_it_has(tmp_path):
    code = "import time\ntry:\n    print('up', flush=True); time.sleep(600)\nexcept KeyboardInterrupt:\n    print('what I have')"
    heard = []
    assert process.run((sys.executable, "-c", code), 2.0, heard.append) is None
    assert heard == ["up\n", "what I have\n"]


def test_what_there_is_no_time_for_is_named(tmp_path):
    todo = [
        python("first", "pass"),
        python("second", "pass", least=1000.0),
        python("third", "pass", missing="no such tool"),
    ]
    outcomes = session_of(tmp_path, todo).run()
    assert [o.kind for o in outcomes] == ["succeeded", "not reached", "not run"]
    assert "| second | what second is for | not reached: time was up |" in summary(tmp_path)
    assert "| third | what third is for | not run: no such tool |" in summary(tmp_path)


def test_a_task_that_fails_is_told_and_the_others_are_run(tmp_path):
    todo = [python("bad", "import sys; print('so bad'); sys.exit(2)"), Task("absent", "", lambda s: ("no-such-command",)),
            python("open", "import sys; sys.exit(3)"), python("good", "pass")]  # fmt: skip
    outcomes = session_of(tmp_path, todo).run()
    assert [o.kind for o in outcomes] == ["failed", "failed", "unknown", "succeeded"]
    assert re.search(r"\| bad \| what bad is for \| failed, exit status 2 \| 0 \| so bad \|", summary(tmp_path))
    assert "exit status 127" in outcomes[1].message


def test_output_of_both_kinds_and_variables_of_a_task(tmp_path):
    code = "import os, sys; print(os.environ['GIVEN'], flush=True); print('bad', file=sys.stderr)"
    session_of(tmp_path, [python("x", code, environment={"GIVEN": "good"})]).run()
    log = (tmp_path / "out" / "log.txt").read_text()
    assert log.startswith(f"$ {sys.executable} -c")
    assert log.splitlines()[-2:] == ["good", "bad"]


# --- The folder


def test_few_small_files_with_plain_names(tmp_path):
    (tmp_path / "scratch" / "record").mkdir(parents=True)
    for name in ("0123abcd.json", "0123abcd.py"):
        (tmp_path / "scratch" / "record" / name).write_text("{}")
    session_of(tmp_path, [python("records", RECORDS), python("noisy", "print('x' * 79 * 40000 + '\\n' + 'end')")]).run()
    files = [f for f in (tmp_path / "out").rglob("*") if f.is_file()]
    assert sorted(f.name for f in files) == [
        "divergences.zip", "environment.json", "log.txt", "results.jsonl", "summary.md",
    ]  # fmt: skip
    assert all(f.parent == tmp_path / "out" and re.fullmatch(r"[\w.-]+", f.name) for f in files)
    assert zipfile.ZipFile(tmp_path / "out" / "divergences.zip").namelist() == ["0123abcd.json", "0123abcd.py"]
    assert (tmp_path / "out" / "log.txt").stat().st_size < folders._MOST_OUTPUT
    assert "this task printed more" in (tmp_path / "out" / "log.txt").read_text()
    assert "| end |" in summary(tmp_path)


def test_what_was_recorded_is_there_line_by_line_and_can_be_reported(tmp_path):
    session_of(tmp_path, [python("lives", RECORDS)]).run()
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["task"], row["line"]["event"]) for row in rows] == [
        ("lives", "run"), ("lives", "subject"), ("lives", "life"),
    ]  # fmt: skip
    (original,) = reading.runs(tmp_path / "scratch" / "record")
    assert unpack(tmp_path / "out" / "results.jsonl", tmp_path / "unpacked") == 1
    (copy,) = reading.runs(tmp_path / "unpacked")
    assert copy.read_text() == original.read_text()


def test_a_line_that_is_not_whole_waits_for_its_end(tmp_path):
    folder = Folder(tmp_path / "out", tmp_path / "record")
    own = Stream.create(tmp_path / "record", "", "", {})
    with own.path.open("a") as file:
        file.write('{"event":"end",')
        file.flush()
        folder.take_in("first")
        assert len((tmp_path / "out" / "results.jsonl").read_text().splitlines()) == 1
        file.write('"at":1,"status":0,"seconds":1}\n')
    folder.take_in("second")
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(row["task"], row["line"]["event"]) for row in rows] == [("first", "run"), ("first", "end")]


def test_the_results_stay_small_enough_to_be_brought_back(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "MOST_BYTES", 600)
    made = session_of(tmp_path, [python("lives", RECORDS)])
    made.run()
    assert (tmp_path / "out" / "results.jsonl").stat().st_size <= 600
    assert f"{made.folder.left_out} lines found no room there" in summary(tmp_path)
    assert made.folder.left_out


def test_a_folder_of_an_earlier_session_is_begun_anew(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "divergences.zip").write_text("old")
    (tmp_path / "out" / "results.jsonl").write_text("old")
    session_of(tmp_path, []).run()
    assert not (tmp_path / "out" / "divergences.zip").exists()
    assert not (tmp_path / "out" / "results.jsonl").read_text()


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
import test_cuda_session as t
todo = [t.python("lives", t.RECORDS), t.python("long", t.HANGS), t.python("last", "")]
t.session_of(Path({folder!r}), todo).run()
"""


def test_killed_half_way_it_leaves_what_it_has(tmp_path):
    code = DRIVER.format(here=str(Path(__file__).parent), folder=str(tmp_path))
    running = subprocess.Popen([sys.executable, "-c", code])
    deadline, log = time.monotonic() + 60, tmp_path / "out" / "log.txt"
    while not (log.is_file() and re.search(r"^\d+\n", log.read_text(), re.MULTILINE)) and time.monotonic() < deadline:
        time.sleep(0.1)
    children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().split()
    running.kill()
    running.wait()
    for pid in children:  # each has a group of its own
        os.killpg(int(pid), signal.SIGKILL)
    text = summary(tmp_path)
    assert "| lives | what lives is for | succeeded |" in text
    assert "| long | what long is for | running when this was written |" in text
    assert "| last | what last is for | not reached: the session had not come to it |" in text
    assert "The session was not over when this was written" in text
    assert "| fast:Adam[cuda] | unknown | 1 | 7 |" in text
    assert json.loads((tmp_path / "out" / "environment.json").read_text()) == ABOUT
    assert unpack(tmp_path / "out" / "results.jsonl", tmp_path / "unpacked") == 1
    assert len(list((tmp_path / "out").iterdir())) <= 8


# --- The page and the exit status


def run_of(tmp_path, name, *, verdict="pass"):
    """A stream of one subject."""
    folder = tmp_path / verdict
    own = Stream.create(
        folder, "stepcheck check", "0.0", {}, 0, {"subjects": [[name, "Adam"]], "checks": ["agreement"]}
    )
    recorder, result = Recorder(own, name), Result(name, "Adam", {"agreement": Tally("agreement")})
    if verdict != "never begun":
        recorder.begun(result)
        result.add_life(
            life := LifeTally(
                1, looked={"agreement": 2}, steps=3, worst={"parameter": 0.5}, fields={"parameter": (4, 0)}
            )
        )
        recorder.life(life)
        recorder.failed("") if verdict == "pass" else recorder.failed("it went wrong")
        if verdict == "pass":
            recorder.ended(result)
    return "agreement", reading.read(own.path)


def test_a_class_is_as_good_as_its_judges_say(tmp_path):
    name = "fast:Adam[cuda]"
    good, doubtful, never = (run_of(tmp_path, name, verdict=v) for v in ("pass", "unknown", "never begun"))
    assert verdicts([name, "fast:SGD[cuda]"], [good]) == {name: "pass", "fast:SGD[cuda]": NOT_JUDGED}
    assert verdicts([name], [doubtful]) == {name: "unknown"}
    assert verdicts([name], [doubtful, good]) == {name: "pass"}
    assert verdicts([name], [never]) == {name: NOT_JUDGED}
    good[1].results[0].tallies["agreement"].divergences.append(None)
    assert verdicts([name], [run_of(tmp_path / "again", name), good, doubtful]) == {name: "fail"}


def test_the_exit_status_is_green_only_where_every_class_was_judged():
    task = python("x", "")
    fine, bad, open_ = (outcome(task, code, 1.0) for code in (0, 1, 3))
    ended, missing = outcome(task, None, 1.0), Outcome(task, session.MISSING, "not run: no such tool")
    assert status([fine, ended, missing], {"a": "pass", "b": "known"}) == 0
    assert status([fine, bad], {"a": "pass"}) == 1
    assert status([fine], {"a": "fail", "b": NOT_JUDGED}) == 1
    assert status([fine, open_], {"a": "pass"}) == 3
    for verdict in (NOT_JUDGED, "unknown", "unsupported"):
        assert status([fine], {"a": "pass", "b": verdict}) == 3
    assert status([fine], {}) == 3
    assert status([], {"a": NOT_JUDGED}) == 3


def test_the_page_has_verdicts_times_and_what_they_hold_for(tmp_path):
    place = place_in(tmp_path / "scratch")
    folder = Folder(tmp_path / "out", place.record)
    run_of(tmp_path / "scratch" / "record", "fast:Adam[cuda]")
    shutil.copytree(tmp_path / "scratch" / "record" / "pass" / "runs", place.record / "runs")
    timing = {"median": 2e-6}
    row = {"optimizer": "SGD", "workload": "1M", "torch": {"foreach": {"median": None}, "fused": timing}, "fast": timing,
           "fast_graph": None, "ceiling": {"median": 1e-6}, "ratio": 1.234, "graph_ratio": None, "share_of_ceiling": 0.5,
           "note": "a | note"}  # fmt: skip
    with Stream.create(place.record, "timings", "0.0", {}) as own:
        own.document("bench", {"results": []})
        own.row("bench", row, into="results")
    folder.take_in("timings")
    text = page(place, folder, Budget(480.0, 0.0, lambda: 75.0), [])
    assert text.startswith("# stepcheck 0.0 on Some GPU 80GB\n")
    assert "of 15 classes: 14 not judged, 1 pass; 1 lives." in text
    assert "| fast:Adam[cuda] | pass | 1 | 3 | 0.500 | 1 |" in text
    assert "| optimizer | workload | fused | fast | copy | ratio | graph ratio | share of a copy | notes |" in text
    assert "| SGD | 1M | 2.00 µs | 2.00 µs | 1.00 µs | 1.23 |  | 0.50 | a / note |" in text
    assert "75 of 480 s after it began" in text


def test_a_page_that_cannot_be_made_does_not_end_the_session(tmp_path):
    made = session_of(tmp_path, [python("x", "pass"), python("y", "pass")])
    made.page = lambda outcomes: 1 / 0
    assert [o.kind for o in made.run()] == ["succeeded"] * 2
    assert "- y: succeeded" in summary(tmp_path)
    assert "ZeroDivisionError" in (tmp_path / "out" / "log.txt").read_text()


def test_what_the_gpu_says_of_itself_is_kept(tmp_path):
    code = "import json, pathlib; pathlib.Path('environment.json').write_text(json.dumps({'processor': 'Another GPU'}))"
    session_of(tmp_path, [python("environment", code)]).run()
    assert json.loads((tmp_path / "out" / "environment.json").read_text()) == ABOUT | {"processor": "Another GPU"}
    assert summary(tmp_path).startswith("# stepcheck 0.0 on Another GPU")


# --- The command


def test_without_a_gpu_the_session_says_so_and_runs_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", None)
    (tmp_path / "scratch").mkdir()
    words = ["run", "--out", str(tmp_path / "out"), "--tree", str(TREE), "--scratch", str(tmp_path / "scratch")]
    assert command_line.main(words) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"no CUDA device: torch was built without CUDA (torch {torch.__version__})")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def commanded(tmp_path, monkeypatch):
    """Runs the command line with tasks of its own, and puts back how signals are taken."""
    before = signal.getsignal(signal.SIGTERM)

    def run(*todo):
        (tmp_path / "scratch").mkdir()
        monkeypatch.setattr(command_line, "tasks", lambda place: list(todo))
        words = [
            "run",
            "--rehearse",
            "--minutes",
            "0.5",
            "--out",
            str(tmp_path / "out"),
            "--tree",
            str(TREE),
            "--scratch",
            str(tmp_path / "scratch"),
        ]
        return command_line.main(words)

    yield run
    signal.signal(signal.SIGTERM, before)


def test_stopped_it_ends_the_task_and_says_so(commanded, tmp_path, capsys):
    code = "import os, signal, time; print(os.getpid(), flush=True); os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    assert commanded(python("first", "pass"), python("long", code), python("last", "pass")) == 3
    assert "| long | what long is for | ended: the session was stopped |" in summary(tmp_path)
    assert "| last | what last is for | not reached: the session was stopped |" in summary(tmp_path)
    assert not runs(int(re.findall(r"^(\d+)$", (tmp_path / "out" / "log.txt").read_text(), re.MULTILINE)[0]))
    assert "first: succeeded" in capsys.readouterr().out


def test_a_session_that_judged_nothing_is_not_green_and_its_scratch_is_gone(commanded, tmp_path):
    assert commanded(python("first", "pass")) == 3
    assert not (tmp_path / "scratch").exists()
    environment = json.loads((tmp_path / "out" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["rehearsal"] is True


@pytest.fixture(scope="module")
def start():
    """The file at the top of the tree."""
    spec = importlib.util.spec_from_file_location("start_of_a_session", TREE / "cuda_session.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uninstalled():
    """Variables that say nothing of where packages are."""
    return {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONSAFEPATH")}


@pytest.fixture
def copied(tmp_path):
    """A copy of the tree that says that it is one, which nobody installed and nobody may write to."""
    top = tmp_path / "copied"
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "__pycache__", "reports")
    shutil.copytree(TREE, top, ignore=unwanted)
    front = top / "stepcheck" / "__init__.py"
    front.write_text(re.sub(r'^__version__ = ".*"', '__version__ = "0.0.copy"', front.read_text(), flags=re.MULTILINE))
    return top


def test_a_session_from_a_copied_tree_runs_that_tree_and_writes_its_folder_alone(copied, tmp_path):
    before = sorted(copied.rglob("*"))
    variables = uninstalled() | {"TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    # So little time that nothing is begun, but for what has to be imported.
    words = ["cuda_session.py", "--rehearse", "--minutes", "0.2", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, *words], cwd=copied, env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    text = summary(tmp_path)
    assert text.startswith("# A rehearsal of stepcheck 0.0.copy without a GPU: nothing here is a measurement of one\n")
    assert "15 not judged; 0 lives" in text
    assert text.count("not reached: time was up") == 10
    assert "the results of a rehearsal" in done.stdout
    assert sorted(copied.rglob("*")) == before
    assert list((tmp_path / "temporary").iterdir()) == []


def test_the_package_of_a_tree_is_found_before_one_that_is_installed(start, copied, tmp_path):
    package = tmp_path / "package"
    start.lay_out(copied, package)
    code = (
        "import stepcheck, stepcheck.cli, stepcheck.fast.cuda.kernels as k, stepcheck.harness.page.write, stepcheck.reference as r;"
        "print(stepcheck.__file__, k.__file__, r.__file__, stepcheck.__version__)"
    )
    variables = start.environment(package, tmp_path, uninstalled())
    # From the top of the tree, where the folder of the front doors has the name of the package.
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=copied, env=variables, capture_output=True, text=True, check=True
    )
    *files, version = done.stdout.split()
    assert version == "0.0.copy"
    assert all(Path(file).is_relative_to(package / "stepcheck") for file in files)
    assert (package / "stepcheck" / "harness" / "known").is_dir()


def test_caches_go_into_the_temporary_folder_unless_somebody_keeps_their_own(start, tmp_path):
    variables = start.environment(
        tmp_path / "p",
        tmp_path,
        {"TRITON_CACHE_DIR": "/kept", "PYTHONPATH": "/theirs", "HOME": "/root", "TMPDIR": "/tmp"},
    )
    assert variables["TRITON_CACHE_DIR"] == "/kept"
    assert variables["STEPCHECK_CACHE_DIR"] == str(tmp_path / "kernels")
    assert variables["PYTHONPATH"] == f"{tmp_path / 'p'}{os.pathsep}/theirs"
    assert variables["HOME"] == "/root"
    assert variables["TMPDIR"] == str(tmp_path / "temporary")
