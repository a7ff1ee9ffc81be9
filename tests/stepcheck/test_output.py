"""What is written, and what becomes of a run where something cannot be."""

import json
import os
import subprocess
import sys

import pytest
from recorded import result

from stepcheck import cli
from stepcheck.harness.readers.terminal import table
from stepcheck.harness.record.reading import read

CLASSES = r'''
import os
import sys

import torch


class Prints(torch.optim.SGD):
    """Says things where a table should be."""

    def step(self, closure=None):
        print("\x1b[2J ALL PASS")
        os.write(1, b"RAW PASS\n")
        print("ERR PASS", file=sys.stderr)
        return super().step(closure)


class Raises(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("half \ud800, nul \0, \x1b[31mred, :factory: [bold]")


class soap(torch.optim.SGD):
    factory = None


soap.factory = soap
print("SAID ON IMPORT")
'''
QUICK = ("--only", "agreement", "--examples", "4")
SGD = ("check", "torch:SGD[forloop]", *QUICK)
FULL = os.path.exists("/dev/full")  # noqa: PTH110
pytestmark = pytest.mark.skipif(not FULL, reason="there is no /dev/full here")


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Runs a command in this process; gives its status and both outputs."""
    (tmp_path / "speaking.py").write_text(CLASSES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "speaking", raising=False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["stepcheck", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code, *capfd.readouterr()

    yield run
    sys.modules.pop("speaking", None)


def shell(folder, *words, end):
    command = f"{sys.executable} -m stepcheck {' '.join(words)} {end}; exit ${{PIPESTATUS[0]}}"
    return subprocess.run(["bash", "-c", command.replace("[forloop]", "\\[forloop\\]")], cwd=folder, capture_output=True, text=True, timeout=120, check=False)  # fmt: skip


@pytest.mark.sampled(2)
@pytest.mark.parametrize("end, status", [(">/dev/full", 2), (">&-", 2), ("| head -1", 0), ("| true", 0)])
def test_what_becomes_of_standard_output_costs_no_file(tmp_path, end, status):
    (tmp_path / "speaking.py").write_text(CLASSES)
    # With --first, for which torch imports no compiler: a second and more each time.
    words = ("check", "speaking:soap.factory", "--like", "SGD", "--first", *QUICK)
    done = shell(tmp_path, *words, "--json", "out.json", "--junit", "out.xml", end=end)
    assert done.returncode == status, done
    assert len(done.stderr.splitlines()) == (1 if status else 0), done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["subjects"]
    assert (tmp_path / "out.xml").read_text().endswith("</testsuites>\n")
    (stream,) = (tmp_path / ".stepcheck" / "runs").glob("*.jsonl")
    assert (read(stream).status, read(stream).problems) == (0, [])


def test_a_file_that_cannot_be_written_costs_no_other(run, tmp_path):
    status, printed, told = run(*SGD, "--json", "/dev/full", "--junit", "out.xml", "--markdown", "out.md")
    assert (status, len(told.splitlines())) == (2, 1)
    assert "--json /dev/full: cannot be written (No space left on device); all else is written" in told
    assert "traces a second" in printed
    assert (tmp_path / "out.xml").stat().st_size
    assert (tmp_path / "out.md").stat().st_size


def test_a_folder_in_the_place_of_a_trace_costs_nothing_else(run, tmp_path):
    words = (
        "check",
        "speaking:Raises",
        "--like",
        "SGD",
        "--only",
        "completes",
        "--examples",
        "4",
        "--json",
        "out.json",
    )
    assert run(*words)[0] == 1
    (trace,) = (tmp_path / ".stepcheck").glob("*.json")
    trace.unlink()
    trace.mkdir()
    (tmp_path / "out.json").unlink()
    status, _, told = run(*words)
    assert (status, len(told.splitlines())) == (2, 1)
    assert "--out .stepcheck: cannot be written (Is a directory)" in told
    assert json.loads((tmp_path / "out.json").read_text())["subjects"][0]["verdict"] == "fail"


@pytest.mark.parametrize(
    "words",
    [
        ["check", "speaking:Gone", "--like", "SGD"],
        ["check", "json:loads", "--like", "SGD"],
        ["check", "torch:SGD", "--dtype", "int8"],
        ["check", "torch:SGD", "--bogus"],
    ],
)
def test_green_results_of_before_are_not_those_of_a_run_that_failed(run, tmp_path, words):
    (tmp_path / "out.json").write_text('{"subjects": []}')
    status, _, told = run(*words, "--json", "out.json")
    assert (status, len(told.splitlines())) == (2, 1)
    assert not (tmp_path / "out.json").exists()


def test_what_an_exception_says_is_told_in_every_form(run, tmp_path):
    words = ("--json", "out.json", "--junit", "out.xml", "--markdown", "out.md")
    status, printed, told = run(
        "check", "speaking:Raises", "--like", "SGD", "--only", "completes", "--examples", 4, *words
    )
    assert (status, told) == (1, "")
    said = r"half \ud800, nul \x00, \x1b[31mred, :factory: [bold]"
    assert said in printed
    (script,) = (tmp_path / ".stepcheck").glob("*.py")
    compile(script.read_text(), script.name, "exec")
    assert said in script.read_text()
    assert run("replay", script.stem)[0] == 1
    assert run("report")[0] == 0


def test_what_a_subject_prints_is_not_what_is_found(run):
    status, printed, told = run("check", "speaking:Prints", "--like", "SGD", *QUICK)
    assert (status, told) == (0, "")
    assert "PASS" not in printed
    assert "SAID" not in printed


def test_a_name_between_colons_is_no_picture(run):
    status, printed, _ = run("check", "speaking:soap.factory", "--like", "SGD", *QUICK)
    assert (status, "speaking:soap.factory  pass" in printed) == (0, True)
    with cli._console().capture() as shown:
        cli._console().print(table([result(":soap:factory:", "SGD")]))
    assert ":soap:factory:" in shown.get()


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "-inf", "0"])
def test_a_time_that_does_not_pass_is_refused(run, seconds):
    status, _, told = run("check", "torch:SGD[forloop]", "--seconds", seconds)
    assert (status, len(told.splitlines())) == (2, 1)
    assert "--seconds" in told


@pytest.mark.parametrize(
    "words", [["report", "pipe"], ["report", "."], ["replay", "pipe"], ["report", "--against", "pipe", "kept"]]
)
def test_a_pipe_is_not_waited_for(run, tmp_path, words):
    if "--against" in words:
        assert run(*SGD, "--out", "kept")[0] == 0
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "runs").mkdir()
    os.mkfifo(tmp_path / "runs" / "20260101T000000Z-1.jsonl")
    status, _, told = run(*words)
    assert (status, len(told.splitlines())) == (2, 1), told


def test_of_what_is_unsupported_nothing_is_known(run):
    status, printed, _ = run("check", "torch:Adamax[capturable]", *QUICK)
    assert status == 3
    assert "torch:Adamax[capturable]  unsupported" in printed
    assert run("check", "torch:Adamax[capturable]", "torch:Adamax[forloop]", *QUICK)[0] == 0


@pytest.mark.parametrize(
    "text, said",
    [
        ("import sys\nsys.exit(0)", "it exits when it is imported, with 0"),
        ("raise SystemExit('no\\n more')", "it exits when it is imported"),
        ("def Thing(params, **options):\n    raise KeyError('lr')", "raises KeyError: 'lr'; expected is an optimizer"),
        ("def Thing(params, **options):\n    raise SystemExit", "raises SystemExit; expected is an optimizer"),
        ("def Thing(params, lr=1, lr2=1):\n    raise ValueError('never')", "raises ValueError: never"),
        (
            "def Thing(params, lr=1):\n    return 3",
            "returns something of type int, which has no step; it is no optimizer",
        ),
    ],
)
def test_what_is_no_optimizer_is_bad_usage(run, tmp_path, monkeypatch, text, said):
    monkeypatch.delitem(sys.modules, "strange", raising=False)
    (tmp_path / "strange.py").write_text(text)
    status, printed, told = run("check", "strange:Thing", "--like", "SGD", *QUICK)
    sys.modules.pop("strange", None)
    assert (status, printed, len(told.splitlines())) == (2, "", 1), told
    assert said in told
