"""Workers and their parent: neither outlives the other, a pause is no hang, and what was found is kept."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stepcheck.harness.search import limits, workers
from stepcheck.harness.support import processes
from stepcheck.harness.support.processes import Silence, cores

SLOW = """
import threading
import time

import torch


class SlowAndWrong(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(0.03)
        for group in self.param_groups:
            group["lr"] *= 2
        return super().step(closure)


class Slow(torch.optim.SGD):
    def step(self, closure=None):
        time.sleep(0.03)
        return super().step(closure)


class Threaded(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr)
        threading.Thread(target=time.sleep, args=(3000,)).start()
"""
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="signals and /proc, as Linux has them")


@pytest.fixture
def start(tmp_path):
    """Starts a check; gives the process."""
    (tmp_path / "slow.py").write_text(SLOW)
    running = []

    def start(name, *words):
        command = [
            sys.executable,
            "-m",
            "stepcheck",
            "check",
            f"slow:{name}",
            "--like",
            "SGD",
            "--only",
            "options-hold",
        ]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        # What these tests are run under may have them ignored, as nohup does, and so would who is started.
        requests = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        heard = [signal.signal(request, signal.default_int_handler) for request in requests]
        process = subprocess.Popen([*command, *words], cwd=tmp_path, **pipes)
        for request, by in zip(requests, heard, strict=True):
            signal.signal(request, by)
        running.append(process)
        return process

    yield start
    for process in running:
        process.kill()
        process.communicate()


def await_(what, seconds=60):
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.05)


def lives(folder):
    return sum(f.read_text().count('"event":"life"') for f in folder.glob(".stepcheck/runs/*.jsonl"))


def children(pid):
    return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    "request_",
    [
        pytest.param(
            signal.SIGINT, marks=pytest.mark.slow
        ),  # on every commit, the tests of the command line press Ctrl-C
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
    ],
)
def test_a_request_to_end_is_followed_and_loses_nothing(start, tmp_path, request_):
    process = start("SlowAndWrong", "--json", "out.json")
    await_(lambda: lives(tmp_path) >= 3)  # no batch has ended, and nothing is shrunk
    there = children(process.pid)
    process.send_signal(request_)
    printed, told = process.communicate(timeout=240)
    assert (process.returncode, told) == (1, "")
    assert "interrupted" in printed
    (subject,) = json.loads((tmp_path / "out.json").read_text())["subjects"]
    assert subject["verdict"] == "fail"
    (found,) = [d for c in subject["checks"] for d in c["divergences"]]
    assert (tmp_path / found["trace"]).is_file()
    assert there
    assert not any(map(runs, there))


def test_workers_end_with_a_parent_that_is_killed(start, tmp_path):
    process = start("Slow")
    await_(lambda: lives(tmp_path) >= 1)
    there = children(process.pid)
    assert there
    process.kill()
    await_(lambda: not any(map(runs, there)), 10)


def test_a_thread_that_runs_on_is_not_waited_for(start):
    printed, _ = (process := start("Threaded", "--examples", "20")).communicate(timeout=120)
    assert process.returncode == 0, printed


def test_who_is_stopped_does_not_hang(tmp_path):
    def play():
        def stop():
            (tmp_path / "pid").write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
            return "went on"

        return limits.within(1.0, stop) or "hangs"

    def go_on():
        await_((tmp_path / "pid").is_file)
        time.sleep(3)
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)

    waker = threading.Thread(target=go_on)
    waker.start()
    assert workers.played_apart(play, 1.0) == "went on"
    waker.join()


def test_who_is_busy_or_waits_hangs():
    assert limits.within(0.2, lambda: time.sleep(5)) is None
    lost = workers.played_apart(lambda: time.sleep(60), 1.0)
    assert (lost.hangs, lost.how) == (True, "still plays after 1 s")


def test_a_pause_of_the_parent_counts_little(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processes, "queued", lambda pid: 0.0)
    silence = Silence()
    for jump in (1.0, 3600.0, 1.0):
        now[0] += jump
        seconds = silence.look(type("Process", (), {"pid": os.getpid()}))
    assert seconds == 4.0


def test_who_waits_for_a_processor_does_not_hang(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(processes, "queued", lambda pid: 0.75 * now[0])
    silence = Silence()
    for _ in range(8):
        now[0] += 1.0
        seconds = silence.look(type("Process", (), {"pid": os.getpid()}))
    assert seconds == 2.0


def test_a_life_that_waits_for_a_processor_is_waited_for(monkeypatch):
    monkeypatch.setattr(limits, "queued", time.monotonic)
    assert limits.within(0.1, lambda: (time.sleep(0.4), "done")[1]) == "done"


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000", 6), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("", 6)]
)
def test_as_many_workers_as_this_process_may_use_cores(monkeypatch, tmp_path, quota, expected):
    told = tmp_path / "cpu.max"
    told.write_text(f"{quota}\n")
    monkeypatch.setattr(processes, "_CPU_MAX", told)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))
    if hasattr(os, "process_cpu_count"):
        monkeypatch.setattr(os, "process_cpu_count", lambda: 6)
    assert cores() == workers.slots() == expected


def test_without_a_control_group_affinity_decides(monkeypatch, tmp_path):
    monkeypatch.setattr(processes, "_CPU_MAX", tmp_path / "none")
    before = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert workers.slots() == 1
    finally:
        os.sched_setaffinity(0, before)
