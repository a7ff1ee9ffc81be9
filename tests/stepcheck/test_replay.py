"""``stepcheck replay``: FIXED is said of what was lived to its end and looked at, and of nothing else."""

import json
import os
import sys
from dataclasses import replace

import pytest

from stepcheck import cli
from stepcheck.harness.life.events import Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.record import store
from stepcheck.harness.record.verdict import HANGS, Divergence
from stepcheck.harness.search import replay

CLASSES = """
import os
import signal
import sys

import torch


class Right(torch.optim.Adam):
    pass


class Wrong(torch.optim.Adam):
    def step(self, closure=None):
        self.param_groups[0]["eps"] = 1.0
        return super().step(closure)


class RaisesInStep(torch.optim.Adam):
    def step(self, closure=None):
        raise RuntimeError("no step today")


class RaisesAtOnce(torch.optim.Adam):
    def __init__(self, params, lr=0.1):
        raise RuntimeError("not built")


class Refuses(torch.optim.Adam):
    def __init__(self, params, lr=0.1):
        raise ValueError("not these options")


class Exits(torch.optim.Adam):
    def step(self, closure=None):
        print("FIXED")
        sys.exit(0)


class ExitsHard(torch.optim.Adam):
    def step(self, closure=None):
        os._exit(0)


class Crashes(torch.optim.Adam):
    def step(self, closure=None):
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)  # pytest would tell of it
        os.kill(os.getpid(), signal.SIGSEGV)


class Hangs(torch.optim.Adam):
    def step(self, closure=None):
        while True:
            pass


def touches(*_, **__):
    open("touched", "w").close()
"""
ONES = Values("constant", 0, 0.0, 1.0)
LIFE = Trace("Adam", (Parameter((2,), values=ONES),), (Group((0,)),), (Step({0: None}),))


def life(**given):
    from stepcheck.harness.life.events import Gradient

    return replace(LIFE, **{"events": (Step({0: Gradient(ONES)}),), **given})


@pytest.fixture
def again(tmp_path, monkeypatch, capsys):
    """Saves a divergence as a run would, and replays it; gives exit status and what was printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "replayed", raising=False)
    (tmp_path / "replayed.py").write_text(CLASSES)

    def run(name="Right", check="agreement", cause="parameter", trace=None, words=(), file=None):
        saved = Divergence(f"replayed:{name}", "Adam", check, cause, "it differs", 2.0, trace or life(), [], "", 1)
        store.save(store.DEFAULT_FOLDER, saved)
        monkeypatch.setattr(sys, "argv", ["stepcheck", "replay", str(file or saved.id), *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return exit_.value.code, printed.out + printed.err

    yield run
    sys.modules.pop("replayed", None)


@pytest.mark.parametrize(
    "name, check, cause, status, said",
    [
        ("Right", "agreement", "parameter", 0, "FIXED replayed:Right agreement"),
        ("Wrong", "agreement", "parameter", 1, "FAILS replayed:Wrong agreement: "),
        ("RaisesInStep", "agreement", "parameter", 3, "event 1 of 1 raises RuntimeError: no step today"),
        ("RaisesInStep", "completes", "RuntimeError in step(): no step today", 1, "FAILS replayed:RaisesInStep"),
        ("RaisesAtOnce", "agreement", "parameter", 3, "raises RuntimeError: not built"),
        ("Refuses", "agreement", "parameter", 3, "raises ValueError: not these options"),
        ("Right", "completes", "RuntimeError in step(): no step today", 0, "FIXED"),
        ("Exits", "agreement", "parameter", 3, "ends the process (exit status 0)"),
        ("ExitsHard", "agreement", "parameter", 3, "ends the process (exit status 0)"),
        ("ExitsHard", "completes", "crash", 1, "FAILS replayed:ExitsHard completes: the subject ends the process"),
        ("Crashes", "agreement", "parameter", 3, "ends the process (SIGSEGV)"),
        ("Right", "save-load-continue", "step", 3, "the check found nothing to look at"),
        ("Right", "refuses-invalid", "lr", 3, "the check found nothing to look at"),
    ],
)
def test_what_is_said_of_a_saved_life(again, name, check, cause, status, said):
    code, printed = again(name, check, cause)
    assert (code, said in printed, "FIXED" in printed) == (status, True, status == 0), printed


@pytest.mark.parametrize(
    "check, cause, status",
    [("completes", "RuntimeError in step(): x", 3), ("completes", "RuntimeError in the constructor: x", 0), ("agreement", "p", 3)],
)  # fmt: skip
def test_a_life_without_events_shows_what_the_constructor_does_and_nothing_else(again, check, cause, status):
    code, printed = again(check=check, cause=cause, trace=life(events=()))
    assert (code, "FIXED" in printed) == (status, status == 0), printed


@pytest.mark.parametrize("check, cause, status", [("agreement", HANGS, 1), ("agreement", "parameter", 3)])
def test_a_hang_is_told(again, monkeypatch, check, cause, status):
    monkeypatch.setattr("stepcheck.harness.search.limits.TRACE_SECONDS", 0.3)
    code, printed = again("Hangs", check, cause)
    assert (code, "still busy" in printed) == (status, True), printed


@pytest.mark.skipif(os.name == "nt", reason="os:system is a name of POSIX as well, but the test is of files")
def test_a_file_from_elsewhere_chooses_no_class(again, tmp_path):
    (tmp_path / "came.json").write_text("")
    assert again("Wrong")[0] == 1
    (saved,) = (tmp_path / ".stepcheck").glob("*.json")
    content = json.loads(saved.read_text())

    def replayed(path, words=()):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
        return again(file=path, words=words)

    content["subject"] = "replayed:touches"
    elsewhere, inside = tmp_path / "came.json", tmp_path / ".stepcheck" / "00000000.json"
    beside = tmp_path / "cloned" / ".stepcheck" / "00000000.json"
    for path in (elsewhere, inside, saved, beside):
        code, printed = replayed(path)
        assert (code, "say that you know it, with --subject replayed:touches" in printed) == (2, True), printed
        assert len(printed.splitlines()) == 1
    # A list that came with the files is of another place.
    (tmp_path / ".stepcheck" / "recorded").rename(beside.parent / "recorded")
    assert again(file=beside, words=["--out", str(beside.parent)])[0] == 2
    assert not (tmp_path / "touched").exists()
    assert replayed(elsewhere, ["--subject", "replayed:Right"])[0] == 0


def test_a_module_that_says_things_does_not_say_them_here(again, tmp_path):
    (tmp_path / "replayed.py").write_text(CLASSES + "\nprint('FIXED, believe me')\nos.write(1, b'FIXED indeed')\n")
    _, printed = again("Wrong")
    assert printed.startswith("FAILS")
    assert "FIXED" not in printed


def test_each_word_is_one_of_the_contract():
    assert (replay.FIXED, replay.FAILS, replay.ERROR) == ("FIXED", "FAILS", "ERROR")
