"""On which versions of torch a known issue holds: what was played decides, and where nothing was, its own life."""

import json
from dataclasses import replace

import pytest
import torch

from stepcheck import cli
from stepcheck.harness import versions
from stepcheck.harness.known import entry as entries
from stepcheck.harness.known import evidence
from stepcheck.harness.known.evidence import Played, Span
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.life.events import Gradient, Group, Parameter, Reload, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import TORCH_MODES, resolve, torch_subject
from stepcheck.harness.play.subjects import class_subject
from stepcheck.harness.readers import report
from stepcheck.harness.record.verdict import LifeTally
from stepcheck.harness.search import workers
from stepcheck.harness.search.asking import findings
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.settings import Settings

STRIDES = "fused-cpu-ignores-strides"
QUARTERS = Values("quarters", 1, 2.0**-7, 2.0)


def played(version, shows=(), quiet=(), entry=STRIDES):
    return Played(version, report.environment(), {}, {}, {entry: list(shows)}, {entry: list(quiet)})


@pytest.fixture
def nothing_known(monkeypatch):
    """A version of torch that nobody played."""
    monkeypatch.setattr(evidence, "here", lambda: None)
    monkeypatch.setattr("stepcheck.harness.known.entry.PLAYED", {})


# The file


def test_what_was_seen_is_read_back_in_the_order_of_versions(tmp_path):
    file = tmp_path / "versions.json"
    for version in ("2.10.0", "2.9.1", "2.10.0"):
        evidence.save(played(version, ["Adam[fused]"]), file)
    assert [p.torch for p in evidence.load(file)] == ["2.9.1", "2.10.0"]
    assert evidence.load(file)[0] == played("2.9.1", ["Adam[fused]"])
    data = json.loads(file.read_text())
    file.write_text(json.dumps(data | {"schema": 99}))
    with pytest.raises(ValueError, match=r"schema 99, not 1; make it again with `nox -s versions`"):
        evidence.load(file)


def test_the_file_of_this_release_knows_every_entry_and_no_other():
    assert len(evidence.versions()) >= 5
    for one in evidence.versions():
        assert set(one.shows) == set(one.quiet) == set(LEDGER)
    for entry in LEDGER.values():
        assert entry.span.seen, f"{entry.name}: nobody has seen its life show it; run `nox -s versions`"


@pytest.mark.parametrize(
    ("saw", "first", "fixed", "specifier"),
    [
        ("2.9.1+ 2.10.0+", "2.9.1", "", ">=2.9.1"),
        ("2.8.0- 2.9.1+ 2.10.0-", "2.9.1", "2.10.0", ">=2.9.1,<2.10.0"),
        ("2.8.0+ 2.9.1- 2.10.0+ 2.11.0-", "2.8.0", "2.11.0", ">=2.8.0,<2.11.0,!=2.9.1"),
        ("2.8.0- 2.9.1-", "", "", ""),
    ],
)
def test_a_span_is_told_by_its_ends_and_its_gaps(saw, first, fixed, specifier):
    words = saw.split()
    span = Span(*(tuple(w[:-1] for w in words if w.endswith(sign)) for sign in "+-"))
    assert (span.first_seen, span.fixed_in, span.specifier) == (first, fixed, specifier)


# What holds


def explained(entry=STRIDES, subject="torch:Adam[fused]"):
    (who,) = resolve(subject)
    seen = list(findings(who, LEDGER[entry].saved.trace, "agreement"))
    assert seen
    return {known.name if known else None for _, known in seen}


def test_where_it_was_seen_it_explains(monkeypatch):
    monkeypatch.setattr(evidence, "here", lambda: played("2.13.0", shows=["SGD[fused]", "Adam[fused]"]))
    monkeypatch.setattr("stepcheck.harness.known.entry.shows", lambda *_: pytest.fail("it need not be played"))
    assert explained() == {STRIDES}


def test_where_its_life_was_played_and_quiet_it_explains_nothing(monkeypatch):
    monkeypatch.setattr(evidence, "here", lambda: played("2.99.0", quiet=["SGD[fused]", "Adam[fused]"]))
    assert explained() == {None}
    assert not LEDGER[STRIDES].holds


def test_where_nothing_is_known_its_own_life_decides(nothing_known, monkeypatch):
    assert explained() == {STRIDES}
    assert entries.PLAYED == {STRIDES: True}
    monkeypatch.setattr("stepcheck.harness.known.entry.shows", lambda *_: "its life shows nothing")
    entries.PLAYED.clear()
    assert explained() == {None}


def test_what_this_torch_lacks_shows_nothing(nothing_known):
    lacking = replace(LEDGER["muon-divides-by-no-elements"])
    saved = lacking.saved
    lacking.__dict__["saved"] = replace(saved, subject="torch:Muon[forloop]")
    (subject,) = resolve("torch:Muon[forloop]")
    assert lacking.holds == (not subject.unsupported)


@pytest.mark.parametrize(("text", "known"), [("2.13.0+cu126", True), ("2.13.0.dev20260101", False), ("2.99.0", False)])
def test_a_build_counts_as_its_release_and_a_nightly_does_not(monkeypatch, text, known):
    monkeypatch.setattr(torch, "__version__", text)
    monkeypatch.setattr(evidence, "versions", lambda: (played("2.13.0"),))
    evidence.here.cache_clear()
    try:
        assert (evidence.here() is not None) == known
        machine = {**report.environment(), "platform": "Darwin arm64"}
        monkeypatch.setattr(evidence, "versions", lambda: (replace(played("2.13.0"), environment=machine),))
        evidence.here.cache_clear()
        assert evidence.here() is None, "another processor has other kernels"
    finally:
        evidence.here.cache_clear()


class OwnStep(torch.optim.Adam):
    """A right class: what it does not write itself is torch's."""


def test_what_a_class_inherits_is_never_charged_to_it(nothing_known):
    result = Campaign(class_subject(OwnStep, "Adam"), Settings(examples=60)).run()
    assert not result.divergences
    assert result.verdict == "pass"
    # With fused=True it steps by a kernel of torch's.
    assert {"torch.optim.Optimizer"} <= {d.owner for d in result.known} <= {"torch.optim.Optimizer", "torch.optim.Adam"}


# What is told


def run(monkeypatch, tmp_path, *words):
    monkeypatch.setattr(
        "sys.argv", ["stepcheck", "check", *words, "--out", str(tmp_path), "--json", str(tmp_path / "j.json")]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, json.loads((tmp_path / "j.json").read_text())


def test_under_an_unknown_version_one_line_says_what_is_carried_forward(nothing_known, monkeypatch, tmp_path, capsys):
    gone = LEDGER["fused-amsgrad-drops-nan"]
    kept = replace(gone)
    kept.__dict__["saved"] = replace(
        gone.saved, trace=Trace("Adam", (Parameter((1,)),), (Group((0,), {}),), (Step({}),))
    )
    monkeypatch.setitem(LEDGER, gone.name, kept)
    code, data = run(monkeypatch, tmp_path, "torch:Adam[fused]", "--examples", "20")
    assert code == 0, "what does not show any more is no failure where nobody had seen it"
    rows = {row["name"]: row for row in data["ledger"]}
    assert not rows[gone.name]["reproduces"]
    assert all(row["carried"] for row in rows.values())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("no evidence for torch ")]
    assert len(lines) == 1
    assert f"{len(rows) - 1} known issues still show here and are carried forward" in lines[0]
    assert lines[0].endswith(f"1 do not show: {gone.name}")


def test_what_another_mode_did_is_told_of_that_mode():
    name = "foreach-nesterov-writes-gradient"
    options = {"momentum": 0.5, "nesterov": True}
    step = Step({0: Gradient(QUARTERS)})
    trace = Trace("SGD", (Parameter((3,)),), (Group((0,), options),), (step, Reload(into=1), step))
    (subject,) = resolve("torch:SGD[forloop]")
    ((finding, known),) = findings(subject, trace, "gradient-unwritten")
    assert known is LEDGER[name]
    assert finding.owner == "torch:SGD[foreach]"

    looking = Campaign(subject, Settings(examples=1))
    looking._ask(trace, LifeTally(1))
    looking._shrink_new()
    tally = looking.result.tallies["gradient-unwritten"]
    assert [(d.entry, d.owner) for d in tally.known] == [(name, "torch:SGD[foreach]")]
    assert tally.known[0].summary.startswith("torch:SGD[foreach], which a round trip led into: ")
    tally.ran = 1
    assert tally.verdict == "pass"

    # The mode's own life is another matter, and takes the other's place.
    own = replace(trace, events=(step,))
    looking.subject = resolve("torch:SGD[foreach]")[0]
    looking._ask(own, LifeTally(2))
    looking._shrink_new()
    assert [(d.entry, d.owner) for d in tally.known] == [(name, "")]
    assert tally.verdict == "known"


def test_every_entry_is_played_on_what_it_concerns_and_can_play_its_life():
    subjects = [s for n in ("SGD", "Adam") for m in TORCH_MODES[n] if not (s := torch_subject(n, m)).unsupported]

    def on(name):
        return [s.name.removeprefix("torch:") for s in versions._concerned(LEDGER[name], subjects)]

    assert on("fused-sgd-never-stores-narrow-vectors") == ["SGD[fused]"]
    assert on("foreach-nesterov-writes-gradient") == ["SGD[foreach]"]
    assert {"SGD[fused]", "Adam[fused]", "Adam[capturable]"} == set(on(STRIDES))
    assert on("sgd-accepts-nan") == [f"SGD[{m}]" for m in TORCH_MODES["SGD"] if m != "compiled"]
    assert on("super-step-runs-hooks-again") == ["stepcheck.harness.known.around:StepsBySuper"]
    assert LEDGER["super-step-runs-hooks-again"].where == "SGD[forloop]"


def test_what_does_not_show_with_the_kernels_of_another_processor_is_no_failure(monkeypatch):
    entry = LEDGER[STRIDES]
    monkeypatch.setattr("stepcheck.harness.known.entry.shows", lambda *_: "its life shows nothing")
    for capability, failed in ((torch.backends.cpu.get_cpu_capability(), True), ("VSX", False)):
        machine = {**report.environment(), "cpu_capability": capability}
        seen = replace(played("2.13.0", shows=[entry.where]), environment=machine)
        monkeypatch.setattr(evidence, "here", lambda seen=seen: seen)
        assert workers._replay(entry, entry.subject).failed == failed
