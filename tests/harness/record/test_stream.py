"""A run is written down as it happens, and read back whole, whatever became of it."""

import json
import math
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from stepcheck import cli
from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.judging.judgement import Judgement
from stepcheck.harness.life.events import AddGroup, Gradient, Group, Parameter, Reload, Scalar, Sparse, Step
from stepcheck.harness.life.features import features
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.numbers.comparison import RATIO_CLASSES, RATIO_EDGES
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.readers.junit import junit
from stepcheck.harness.readers.markdown import markdown
from stepcheck.harness.readers.scripts import to_json
from stepcheck.harness.record import reading, stream
from stepcheck.harness.record.reading import read
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.stream import Stream
from stepcheck.harness.record.verdict import Divergence, LifeTally, Result, Tally
from stepcheck.harness.search import workers
from stepcheck.harness.search.settings import Settings
from stepcheck.harness.support.usage import UsageError


class Right(torch.optim.SGD):
    """torch's own, without the flags that choose an implementation: one of those diverges in known ways."""

    def __init__(self, params, lr=1e-3, momentum=0.0, dampening=0.0, weight_decay=0.0, nesterov=False, maximize=False):
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov, maximize=maximize)


class Wrong(torch.optim.Adam):
    """Its eps grows with every step."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["eps"] *= 2.0
        return super().step(closure)


class Crashes(torch.optim.SGD):
    def step(self, closure=None):
        if self.param_groups[0]["lr"] == 1.0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(closure)


def begin(folder, subjects=(), settings=Settings(), **more):  # noqa: B008 - it is frozen
    about = {"checks": settings.checks, "subjects": [(s.name, s.spec.name) for s in subjects], **more}
    return Stream.create(folder, "stepcheck check", "0", {"torch": "2"}, settings.seed, about)


def campaigns(folder, subjects, settings):
    """What a run has in memory, and what is read back of it."""
    with begin(folder, subjects, settings) as written:
        results = workers.run(subjects, settings, workers.Listener(), written)
    return results, read(written.path)


LIVES = 30


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """Two that diverge, in known ways and others, one that is right, and one that is unsupported."""
    right = class_subject(Right, "SGD")  # which never goes on in a mode that diverges in known ways
    elsewhere = replace(right, name="torch:SGD[elsewhere]", unsupported="it is elsewhere")
    subjects = [*resolve("torch:Adam[fused]"), class_subject(Wrong, "Adam"), right, elsewhere]
    folder = tmp_path_factory.mktemp("recorded")
    return folder, *campaigns(folder, subjects, Settings(seed=1, examples=LIVES))


def plain(x):
    """A result as plain data, for comparison: traces as JSON, since NaN is not equal to itself."""
    if isinstance(x, Divergence):
        return vars(x) | {"trace": x.trace.to_json()}
    if isinstance(x, Result | Tally):
        return {f.name: plain(getattr(x, f.name)) for f in fields(x)}
    if isinstance(x, dict):
        return {k: plain(v) for k, v in x.items()}
    return [plain(y) for y in x] if isinstance(x, list | tuple) else x


def lines(path):
    return path.read_bytes().splitlines(keepends=True)


def rewritten(path, to, change):
    """A stream with its lines changed, read back."""
    to.write_bytes(b"".join(change(lines(path))))
    return read(to)


# What is read is what was.


def test_what_is_read_back_is_what_the_campaigns_found(recorded):
    _, results, run = recorded
    assert run.problems == []
    assert run.status == 0
    assert [r.subject for r in run.results] == [r.subject for r in results]
    for found, read_back in zip(results, run.results, strict=True):
        assert plain(read_back) == plain(found)
    assert [r.error for r in results] == [""] * 4
    fused, wrong, right, elsewhere = run.results
    assert fused.known
    assert not fused.divergences
    assert (wrong.verdict, right.verdict, elsewhere.verdict) == ("fail", "pass", "unsupported")
    assert wrong.divergences
    assert right.validation


def test_json_is_the_same_from_the_results_and_from_the_stream(recorded):
    folder, results, run = recorded
    assert to_json(run, folder) == to_json(replace(run, results=results), folder)


def test_every_determined_element_is_in_one_class_of_r(recorded):
    for result in recorded[2].results[:3]:
        assert result.fields
        for name, (elements, undetermined) in result.fields.items():
            counts = [count for by_class in result.ratios[name].values() for count in by_class]
            assert sum(counts) == elements - undetermined, (result.subject, name)
    right = recorded[2].results[2]
    assert all(result.undetermined > 0 for result in recorded[2].results[:2])
    classes = [n for counts in right.ratios["parameter"].values() for n, count in enumerate(counts) if count]
    assert max(classes) == math.ceil(20 * right.worst["parameter"])


def test_the_classes_of_r_have_their_upper_edge_in_them():
    between = [edge - 0.01 for edge in RATIO_EDGES[1:]]
    every = np.array([*RATIO_EDGES, *between, math.nextafter(0, 1), math.nextafter(1, 2), 1e308, math.inf])
    judgement = Judgement(ratios={("parameter", "float32"): [every[:7], every[7:]], ("step", "float32"): [every[:0]]})
    expected = {0: 1, 1: 3} | dict.fromkeys(range(2, 21), 2) | {21: 3}
    assert judgement.classes() == {"parameter": {"float32": expected}}


def test_an_empty_parameter_has_no_r():
    (subject,) = resolve("torch:SGD[forloop]")
    gradients = {0: Gradient(), 1: Gradient()}
    trace = Trace("SGD", (Parameter((0,)), Parameter((3,))), (Group((0, 1)),), (Step(gradients),))
    judgement = Evidence(subject, trace).judgement
    assert judgement.fields["parameter"] == (3, 0)
    assert sum(judgement.classes()["parameter"]["float32"].values()) == 3


def test_each_life_is_counted_once_for_each_of_its_features(recorded):
    folder, _, run = recorded
    right = run.results[2]
    (path,) = reading.runs(folder)
    events = map(json.loads, lines(path))
    lives = [e["features"] for e in events if e["event"] == "life" and e["subject"] == right.subject]
    assert len(lives) == LIVES
    assert right.features == Counter(feature for life in lives for feature in life)
    assert {"strided", "closure", "reload", "add_group", "hook"} <= right.features.keys()


def test_the_features_of_a_life_are_what_is_in_it():
    scalar = Parameter((), "complex64")
    first = Group((0,), {"lr": Scalar(0.1)})
    gradient = Gradient(sparse=Sparse((0,)))
    events = (AddGroup(Group((1,))), Step({1: gradient, 0: None}), Reload(), Step(closure="float"))
    trace = Trace("SGD", (scalar, Parameter((2,), layout="sliced")), (first,), events)
    assert features(trace) == [
        "add_group", "closure", "complex", "no_gradient", "reload", "sparse", "strided", "tensor_option", "zero_dim",
    ]  # fmt: skip
    assert features(Trace("SGD", (Parameter((2,)),), (Group((0,)),), (Step({0: Gradient()}),))) == []


def test_a_subject_says_what_it_is(recorded):
    facts = recorded[2].results[0].facts
    assert (facts["mode"], facts["device"], facts["examples"]) == ("fused", "cpu", LIVES)
    assert facts["profile"]["narrow"] == "once"
    assert "fused kernels" in facts["profile"]["reason"]
    assert "bfloat16" in facts["dtypes"]


# Whatever became of it.


def test_cut_anywhere_it_reads_and_has_every_whole_line(recorded, tmp_path):
    folder, _, run = recorded
    (path,) = reading.runs(folder)
    whole = path.read_bytes()
    draw = random.Random(0)
    for length in (*(draw.randrange(len(whole)) for _ in range(12)), len(whole) - 1):
        cut = whole[:length]
        (tmp_path / "cut.jsonl").write_bytes(cut)
        complete = [json.loads(line) for line in cut.split(b"\n")[:-1]]
        if not complete:
            with pytest.raises(UsageError):
                read(tmp_path / "cut.jsonl")
            continue
        partial = read(tmp_path / "cut.jsonl")
        assert (len(partial.problems) > 0) == (length < len(whole) - 1)
        assert [r.subject for r in partial.results] == [r.subject for r in run.results]
        for result in partial.results:
            of = [e for e in complete if e.get("subject") == result.subject]
            assert result.traces >= sum(e["event"] == "life" for e in of)
            told = {e["id"] for e in of if e["event"] == "divergence"} - {e.get("replaces") for e in of}
            assert told <= {d.id for d in (*result.divergences, *result.known)}
            if not any(e["event"] == "result" for e in of) and length < len(whole) - 2:
                assert result.verdict == ("fail" if result.divergences else "unknown")
                assert "the run ended before this subject" in result.error


def test_garbage_is_skipped_and_told(recorded, tmp_path):
    folder, _, run = recorded
    (path,) = reading.runs(folder)
    garbage = [b"\x00\xff\xfe\n", b"[1, 2]\n", b'{"event": 3}\n', b"\n", b"[" * 100_000 + b"\n"]
    again = rewritten(path, tmp_path / "a.jsonl", lambda ls: [*ls[:9], *garbage, *ls[9:]])
    assert plain(again.results) == plain(run.results)
    assert [p.split(":")[0] for p in again.problems] == ["line 10", "line 11", "line 12", "line 14"]


def test_a_line_after_one_that_was_cut_short_is_read(recorded, tmp_path):
    folder, _, run = recorded
    (path,) = reading.runs(folder)

    def torn(ls):
        divergence = next(line for line in ls if line.startswith(b'{"event":"divergence"'))
        return [*ls[:9], divergence[: len(divergence) // 2], *ls[9:]]

    again = rewritten(path, tmp_path / "a.jsonl", torn)
    assert plain(again.results) == plain(run.results)
    assert again.problems == ["line 10: begins with a line that was cut short; the rest of it is read"]


def test_events_of_a_later_minor_version_are_counted_and_told(recorded, tmp_path):
    folder, _, run = recorded
    (path,) = reading.runs(folder)
    later = [b'{"event":"weather","at":1.0,"sun":true}\n'] * 3
    again = rewritten(path, tmp_path / "a.jsonl", lambda ls: [*ls[:5], *later, *ls[5:]])
    assert plain(again.results) == plain(run.results)
    assert again.problems == ["3 events are of the kind 'weather', which this version does not know; a later one may"]


def test_half_a_character_is_no_text_that_cannot_be_written(tmp_path):
    with begin(tmp_path) as written:
        written.document("bench", {"note": "\ud800 \U0001f600 é"})
    assert read(written.path).documents["bench"] == {"note": "? \U0001f600 é"}


def test_a_missing_life_is_told(recorded, tmp_path):
    folder, *_ = recorded
    (path,) = reading.runs(folder)

    def without(ls):
        lives = [n for n, line in enumerate(ls) if line.startswith(b'{"event":"life"')]
        return [line for n, line in enumerate(ls) if n != lives[10]]

    (problem,) = rewritten(path, tmp_path / "a.jsonl", without).problems
    assert "1 are missing" in problem


def test_without_its_beginning_the_results_are_there(recorded, tmp_path):
    folder, _, run = recorded
    (path,) = reading.runs(folder)
    again = rewritten(path, tmp_path / "a.jsonl", lambda ls: ls[1:])
    assert sorted(r.subject for r in again.results) == sorted(r.subject for r in run.results)
    assert again.problems == ["its beginning is missing: command, seed and environment are not known"]


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is empty"),
        ("\n\n", "nothing in it is a stream"),
        ("hello\n", "nothing in it is a stream"),
        ('{"event":"run","at":0,"schema":2}\n', "a stream of schema 2; this version of stepcheck reads schema 1"),
        ('{"stepcheck":"0.1.0","subjects":[]}\n', "nothing in it is a stream"),
    ],
)
def test_where_nothing_can_be_made_of_it_one_line_says_so(tmp_path, text, said):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UsageError, match=said):
        read(tmp_path / "bad.jsonl")


def test_no_file_is_one_line(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read(tmp_path / "nothing.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"looked": {"agreement": -1}},
        {"looked": {"no such check": 1}},
        {"looked": [1]},
        {"number": True},
        {"ratios": {"parameter": {"float32": {"22": 1}}}},
        {"ratios": {"parameter": {"float32": {"-1": 1}}}},
        {"ratios": {"parameter": [1]}},
        {"fields": {"parameter": [1]}},
        {"features": [3]},
        {"worst_ratio": {"agreement": "large"}},
        {"seconds": 10**400},
        {"subject": "who?"},
        {"end": "well"},
    ],
)
def test_what_is_not_as_the_schema_has_it_is_skipped_whole(tmp_path, change):
    (subject,) = resolve("torch:SGD[forloop]")
    good = {"subject": subject.name, "attempt": 1, "number": 1, "looked": {"agreement": 2}, "elements": 5}
    with begin(tmp_path, [subject]) as written:
        written.write("subject", {"subject": subject.name, "attempt": 1, "like": "SGD", "checks": ["agreement"]})
        written.write("life", good | change)
        written.write("life", good)
    run = read(written.path)
    assert [p.split(":")[0] for p in run.problems] == ["line 3"]
    (result,) = run.results
    assert (result.traces, result.elements, result.tallies["agreement"].looked) == (1, 5, 2)


def test_a_later_attempt_supersedes_what_an_earlier_one_recorded(tmp_path):
    subjects = [class_subject(Crashes, "SGD"), *resolve("torch:SGD[forloop]")]
    results, run = campaigns(tmp_path, subjects, Settings(examples=60))
    crashes, fine = run.results
    assert [r.verdict for r in run.results] == [r.verdict for r in results] == ["fail", "known"]
    assert plain(fine) == plain(results[1])
    (path,) = reading.runs(tmp_path)
    events = [json.loads(line) for line in lines(path)]
    lives = {n: [e for e in events if e["event"] == "life" and e["subject"] == crashes.subject and e["attempt"] == n]
             for n in (1, 2)}  # fmt: skip
    assert crashes.traces == len(lives[1]) == len(lives[2]) > 0
    (divergence,) = crashes.divergences
    assert (divergence.check, divergence.cause) == ("completes", "crash")
    assert "SIGKILL" in crashes.error
    assert all(t.planned == 60 for t in crashes.tallies.values() if t.check not in ("refuses-invalid", "closure"))


def test_a_divergence_is_replaced_by_what_is_known_of_it_later(recorded, tmp_path):
    first = recorded[1][1].divergences[0]
    smaller = replace(first, cause="another", summary="smaller")
    subject = class_subject(Wrong, "Adam")
    with begin(tmp_path, [subject]) as written:
        recorder = stream.Recorder(written, subject.name)
        recorder.begun(Result(subject.name, "Adam", {c: Tally(c) for c in Settings().checks}))
        recorder.divergence(replace(first, life=["one"]))
        recorder.divergence(replace(first, check="closure"))
        recorder.divergence(replace(first, entry="an-entry"))
        recorder.divergence(replace(first, life=["one", "two"]))
        (result,) = read(written.path).results
        assert [(d.check, d.life[-1]) for d in result.divergences] == [
            (first.check, "two"),
            ("closure", first.life[-1]),
        ]
        assert [d.entry for d in result.known] == ["an-entry"]
        recorder.divergence(smaller, replaces=first.id)
        ended = Result(subject.name, "Adam", {c: Tally(c) for c in Settings().checks})
        ended.tallies[first.check].add(replace(smaller, found_in=77))
        recorder.ended(ended)
    (result,) = read(written.path).results
    (told,) = result.tallies[first.check].divergences
    assert (told.summary, told.found_in) == ("smaller", 77)


def test_processes_that_write_at_once_do_not_tear_each_others_lines(tmp_path):
    written = begin(tmp_path)
    rows = [{"writer": n, "text": str(n) * 10_000} for n in range(4)]
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=lambda row: [written.row("power", row) for _ in range(500)], args=(r,)) for r in rows
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    with pickle.loads(pickle.dumps(written)) as spawned:  # what a worker that was not forked is given
        spawned.row("power", rows[0])
    run = read(written.path)
    assert (run.problems, run.status) == ([], 0)
    assert [sum(row == made for made in run.rows["power"]) for row in rows] == [501, 500, 500, 500]


def test_what_an_attempt_says_once_a_later_one_has_begun_is_void(tmp_path):
    subject = class_subject(Wrong, "Adam")
    with begin(tmp_path, [subject]) as written:
        first, second = (stream.Recorder(written, subject.name, attempt) for attempt in (1, 2))
        for recorder in (first, second):
            recorder.begun(Result(subject.name, "Adam", {"agreement": Tally("agreement")}))
            recorder.life(LifeTally(1, looked={"agreement": 3}))
        first.life(LifeTally(2, looked={"agreement": 3}))
        first.failed("killed")
    (result,) = read(written.path).results
    assert (result.traces, result.tallies["agreement"].looked) == (1, 3)
    assert "killed" not in result.error


def test_subjects_that_never_began_are_there_and_unknown(tmp_path):
    subjects = resolve("torch:SGD")
    path = begin(tmp_path, subjects).path
    run = read(path)
    assert [r.subject for r in run.results] == [s.name for s in subjects]
    assert {r.verdict for r in run.results} == {"unknown"}
    assert run.status is None
    assert run.problems == ["the run did not end; its last event is at 0.0 s"]


def test_rows_make_a_document_until_the_whole_one_is_there(tmp_path):
    with begin(tmp_path) as written:
        written.document("bench", {"seed": 0, "results": []})
        for n in range(3):
            written.row("bench", {"n": n}, into="results")
        written.row("power", {"campaign": 1})
        assert read(written.path).documents == {"bench": {"seed": 0, "results": [{"n": 0}, {"n": 1}, {"n": 2}]}}
        written.document("bench", {"seed": 0, "results": [{"n": 9}]})
    run = read(written.path)
    assert run.documents == {"bench": {"seed": 0, "results": [{"n": 9}]}}
    assert run.rows == {"power": [{"campaign": 1}]}


# Where it cannot be written.


def test_a_folder_that_cannot_be_written_is_one_line_before_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(workers, "run", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr(sys, "argv", ["stepcheck", "check", "torch:SGD", "--out", str(tmp_path / "file" / "out")])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be written" in line


def test_a_full_disk_is_one_line_and_not_a_verdict(tmp_path, monkeypatch, capsys):
    words = ["check", "torch:SGD[forloop]", "--out", str(tmp_path), "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", ["stepcheck", *words])
    write = os.write

    def full(file, data):
        if b'"event":"life"' in data[:20] and b'"number":7,' in data[:100]:
            return write(file, data[:50])
        return write(file, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the disk is full" in line
    (path,) = reading.runs(tmp_path)
    run = read(path)
    assert run.status == 2
    assert run.results[0].traces == 6
    # What was recorded by then is told in every form.
    (subject,) = json.loads((tmp_path / "out.json").read_text())["subjects"]
    assert subject["verdict"] in ("unknown", "fail")


# Killed.


def started(out, *words):
    command = [sys.executable, "-m", "stepcheck", "check", *words, "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)


def children(pid):
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended meanwhile
            # The third field is the state, the fourth the parent; the second may have spaces in it.
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(stat.parent.name))
    return found


def killed(folder, seed):
    """Kill a run at a moment drawn from a seed, in one of three ways; whether every line that was whole before is there after."""
    draw = random.Random(seed)
    how, moment = draw.choice(["group", "group", "parent", "worker"]), draw.uniform(0.0, 2.0)
    out = folder / str(seed)
    process = started(out, "torch:Adam[fused]", "torch:SGD[forloop]", "torch:Adagrad[foreach]", "--examples", "60",
                      "--seed", str(seed))  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while not reading.runs(out) and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moment)
        (path,) = reading.runs(out)
        before = path.read_bytes()
        workers_ = children(process.pid)
        if how == "group" or (how == "worker" and not workers_):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid if how == "parent" else draw.choice(workers_), signal.SIGKILL)
        process.wait(timeout=120)
    finally:
        # What a killed parent leaves behind.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    after = path.read_bytes()
    whole = before[: before.rfind(b"\n") + 1]
    assert whole
    assert after.startswith(whole)
    run = read(path)
    assert told(whole) <= counted(run, after)
    for form in (junit, markdown, to_json):
        assert form(run, out)
    return how, run


def told(text):
    """The lives in some lines, by subject and number, and the divergences."""
    events = [json.loads(line) for line in text.splitlines()]
    lives = {(e["subject"], e["number"]) for e in events if e["event"] == "life"}
    return lives | {(e["subject"], e["id"]) for e in events if e["event"] == "divergence"}


def counted(run, text):
    replaced = {(e["subject"], e["replaces"]) for e in map(json_or_nothing, text.splitlines()) if "replaces" in e}
    lives = {(r.subject, n) for r in run.results for n in range(1, r.traces + 1)}
    return lives | replaced | {(r.subject, d.id) for r in run.results for d in (*r.divergences, *r.known)}


def json_or_nothing(line):
    try:
        return json.loads(line)
    except ValueError:
        return {}


@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
@pytest.mark.sampled(3)
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_nothing_that_was_written_is_lost(tmp_path, seed):
    killed(tmp_path, seed)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the workers in /proc")
def test_killed_twenty_times_nothing_that_was_written_is_lost(tmp_path):
    outcomes = [killed(tmp_path, seed) for seed in range(100, 120)]
    assert {how for how, _ in outcomes} == {"group", "parent", "worker"}
    assert sum(run.status is None for _, run in outcomes) >= 10
    assert len({sum(r.traces for r in run.results) for _, run in outcomes}) > 5


def test_two_runs_into_one_folder_leave_two_whole_streams(tmp_path):
    words = [("torch:SGD[forloop]", "--seed", str(seed), "--examples", "40") for seed in (1, 2)]
    runs = [started(tmp_path, *w) for w in words]
    assert [process.wait(timeout=120) for process in runs] == [0, 0]
    read_back = [read(path) for path in reading.runs(tmp_path)]
    assert sorted(run.seed for run in read_back) == [1, 2]
    for run in read_back:
        assert (run.problems, run.status, run.results[0].traces) == ([], 0, 40)
        assert len(run.results[0].ratios["parameter"]["float32"]) == RATIO_CLASSES


def test_a_run_of_nothing_is_a_run():
    assert to_json(Run("r"), Path())["subjects"] == []
