"""stepcheck report: from streams on disk to a folder of files; what cannot be read is told, and exit 2 where nothing can be rendered."""

import contextlib
import functools
import json
from dataclasses import replace

import in_process
import pytest
from recorded import ENVIRONMENT

from stepcheck.harness.page import write
from stepcheck.harness.play.families import resolve
from stepcheck.harness.record.stream import Recorder, Stream
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support.usage import UsageError

FILES = {"index.html", "report.json", "report.md", "badge.svg", "versions.html", "versions.json", "known.md"}


@pytest.fixture
def stepcheck(capfd):
    """Runs a command in a folder, and gives what it printed."""
    return functools.partial(in_process.stepcheck, capfd=capfd)


def record(folder, subject="torch:SGD[forloop]", command="stepcheck check torch:SGD", examples=6, seed=3, end=True):
    stream = Stream.create(folder, command, "0.1.0", ENVIRONMENT, seed)
    (chosen,) = resolve(subject)
    with stream if end else contextlib.nullcontext():
        Campaign(chosen, replace(Settings(), seed=seed, examples=examples), recorder=Recorder(stream, subject)).run()
    return stream.path


def test_the_command_writes_a_folder(stepcheck, tmp_path):
    path = record(tmp_path / ".stepcheck")
    done = stepcheck("report", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert {p.name for p in (tmp_path / "report").iterdir()} == FILES
    data = json.loads((tmp_path / "report" / "report.json").read_text())
    assert [c["subject"] for c in data["cells"]] == ["torch:SGD[forloop]"]
    assert (data["runs"][0]["id"], data["runs"][0]["seed"]) == (path.stem, 3)
    assert data["cells"][0]["ratios"]["parameter"]
    assert data["headline"] in done.stdout


def test_of_each_command_the_newest_counts_unless_streams_are_named(tmp_path):
    older, newer = record(tmp_path, examples=5), record(tmp_path, examples=6)
    record(tmp_path, "fast:SGD", "stepcheck check fast:SGD")
    assert [r.results[0].traces for r in write.collect([tmp_path]).runs] == [6, 6]
    assert next(r.id for r in write.collect([tmp_path / "runs"]).runs) == newer.stem
    assert [r.id for r in write.collect([older]).runs] == [older.stem]


def test_a_run_that_was_killed_is_unknown_and_told(stepcheck, tmp_path):
    path = record(tmp_path, end=False)
    path.write_bytes(path.read_bytes()[:-40])
    done = stepcheck("report", path, cwd=tmp_path)
    assert done.returncode == 0
    assert "not whole: " in done.stdout
    assert "unknown: " in done.stdout
    assert "did not end" in (tmp_path / "report" / "index.html").read_text()


def test_what_is_foreign_is_told_beside_what_is_not(tmp_path):
    record(tmp_path)
    (tmp_path / "runs" / "zz.jsonl").write_text("\x00 no stream\n")
    (tmp_path / "runs" / "empty.jsonl").write_text("")
    found = write.collect([tmp_path])
    assert len(found.runs) == 1
    assert [("empty.jsonl" in line, "zz.jsonl" in line) for line in found.unread] == [(True, False), (False, True)]
    assert write.build(found).verdict == "unknown"


@pytest.mark.parametrize("what", ["missing", "empty folder", "empty stream", "foreign"])
def test_where_nothing_can_be_rendered_it_is_one_line_and_status_2(stepcheck, tmp_path, what):
    path = tmp_path / "runs" / "x.jsonl"
    path.parent.mkdir()
    if what == "empty stream":
        path.touch()
    elif what == "foreign":
        path.write_text("PNG\n" * 9)
    given = tmp_path if what == "empty folder" else path
    done = stepcheck("report", given, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "report").exists()


def test_two_reports_are_compared(stepcheck, tmp_path):
    path = record(tmp_path, examples=6)
    assert stepcheck("report", path, "--out", "before", cwd=tmp_path).returncode == 0
    less = record(tmp_path, examples=5)
    done = stepcheck("report", less, "--against", "before/report.json", cwd=tmp_path)
    assert done.returncode == 0
    assert "compared with before/report.json: fail" in done.stdout
    shrank = json.loads((tmp_path / "report" / "report.json").read_text())["comparison"]["shrank"]
    assert {
        "subject": "torch:SGD[forloop]",
        "check": "completes",
        "count": "planned",
        "before": 6,
        "after": 5,
    } in shrank


def test_a_folder_that_cannot_be_written_is_bad_usage(tmp_path):
    report = write.build(write.collect([record(tmp_path)]))
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written"):
        write.write(report, tmp_path / "file")
