"""Reports of two versions of torch: faults fixed and faults new, a line each, and nothing of what did not change."""

import json

import pytest
from recorded import ENVIRONMENT, divergence, diverging, result, run

from stepcheck.harness.known import evidence
from stepcheck.harness.page import compare, markdown, model, page
from stepcheck.harness.page.upgrade import Upgrade

HERE = evidence.installed()
NEVER_STORES, GROUPS, NAN = "fused-sgd-never-stores-narrow-vectors", "groups-are-not-validated", "sgd-accepts-nan"
FUSED, SGD, ADAM, MUON = "torch:SGD[fused]", "torch:SGD[forloop]", "torch:Adam[forloop]", "torch:Muon[forloop]"


@pytest.fixture(autouse=True)
def nothing_played(monkeypatch):
    """Where a test does not ask for what was played, nothing was."""
    monkeypatch.setattr(evidence, "versions", lambda: ())


def of(version, *results, **more):
    """A run under a version of torch, on this machine."""
    machine = evidence.Played("", {}, {}, {}, {}, {}).environment
    return run(*results, environment={**ENVIRONMENT, **machine, "torch": version}, **more)


def compared(before, after):
    then = json.loads(json.dumps(model.build([before]).to_json()))
    return compare.compare(model.build([after]), then, "before.json")


def unknown(subject, like="Adam", cause="parameter", **more):
    made = result(subject, like, **more)
    made.tallies["agreement"].add(divergence(subject, like, cause=cause))
    return made


def told(faults):
    return {fault.name: fault.subjects for fault in faults}


def test_what_was_fixed_and_what_is_new_is_told_and_nothing_else(played):
    before = of(f"{HERE}+cpu", diverging(FUSED, "SGD", NEVER_STORES, NAN), diverging(SGD, "SGD", NAN, GROUPS))
    after = of("2.98.0+cu130", diverging(FUSED, "SGD", NAN), diverging(SGD, "SGD", NAN, GROUPS))
    found = compared(before, after)
    assert isinstance(found, Upgrade)
    assert (found.before, found.now, found.verdict) == (HERE, "2.98.0", "pass")
    assert told(found.fixed) == {NEVER_STORES: [FUSED]}
    assert found.sections == [("FIXED", [f"{NEVER_STORES}: {FUSED}"])]
    back = compared(after, before)
    assert (back.verdict, told(back.new)) == ("pass", {NEVER_STORES: [FUSED]})
    assert back.sections == [("NEW, and known", [f"{NEVER_STORES}: {FUSED}"])]


def test_one_fault_in_many_subjects_is_one_line():
    names = [f"torch:Adam[mode{n}]" for n in range(36)]
    found = compared(
        of("2.6.0", *(result(n) for n in names)), of("2.98.0", *(diverging(n, "Adam", GROUPS) for n in names))
    )
    ((_, lines),) = found.sections
    assert lines == [f"{GROUPS}: {', '.join(names[:3])} and 33 more (36 subjects)"]


def test_what_a_campaign_does_not_meet_is_not_fixed(played):
    """Both versions were seen to have it, so that which of the runs met it is chance."""
    found = compared(of(HERE, diverging(SGD, "SGD", GROUPS)), of("2.98.0", result(SGD, "SGD")))
    assert (found.fixed, found.unseen, found.new, found.sections) == ([], [], [], [])
    again = compared(of(HERE, result(SGD, "SGD")), of("2.98.0", diverging(SGD, "SGD", GROUPS)))
    assert again.sections == []


def test_what_a_campaign_meets_by_chance_need_not_be_met_to_be_told(played):
    """No run met it; its own life showed it under the one version and not under the other."""
    found = compared(of(HERE, result(FUSED, "SGD")), of("2.98.0", result(FUSED, "SGD")))
    assert told(found.fixed) == {NEVER_STORES: [FUSED]}


def test_what_was_seen_under_one_version_alone_tells_nothing_by_itself(played, monkeypatch):
    """Only what a run met is held against it."""
    monkeypatch.setattr(evidence, "versions", lambda: played[2:3])
    assert compared(of("2.12.0", result(FUSED, "SGD")), of(HERE, result(FUSED, "SGD"))).sections == []
    assert compared(of(HERE, result(FUSED, "SGD")), of("2.12.0", result(FUSED, "SGD"))).sections == []
    there = compared(of(HERE, result(FUSED, "SGD")), of("2.98.0", diverging(FUSED, "SGD", NEVER_STORES)))
    assert there.new == []  # the run did not meet it, but it was there
    monkeypatch.setattr(evidence, "versions", lambda: played[3:4])
    found = compared(of(HERE, diverging(FUSED, "SGD", NEVER_STORES)), of("2.98.0", result(FUSED, "SGD")))
    assert told(found.fixed) == {NEVER_STORES: [FUSED]}


def test_without_evidence_what_both_runs_meet_did_not_change():
    assert compared(of(HERE, diverging(FUSED, "SGD", NAN)), of("2.98.0", diverging(FUSED, "SGD", NAN))).sections == []


def test_without_evidence_it_is_not_called_fixed():
    found = compared(of(HERE, diverging(FUSED, "SGD", NEVER_STORES)), of("2.98.0", result(FUSED, "SGD")))
    assert (found.verdict, found.fixed) == ("pass", [])
    assert told(found.unseen) == {NEVER_STORES: [FUSED]}
    assert [line for line in found.told if "was not played on such a machine" in line] == [
        f"torch {version} was not played on such a machine: a fault that is not met there may be there all the same"
        for version in (HERE, "2.98.0")
    ]


def test_a_divergence_that_nobody_knows_is_a_failure_where_it_was_not_there():
    found = compared(
        of("2.6.0", result(), unknown(SGD, "SGD")), of("2.98.0", unknown("torch:Adam[foreach]"), unknown(SGD, "SGD"))
    )
    assert (found.verdict, told(found.unknown)) == ("fail", {"agreement, parameter": ["torch:Adam[foreach]"]})
    same = compared(of("2.6.0", unknown(SGD, "SGD")), of("2.98.0", unknown(SGD, "SGD")))
    assert (same.verdict, same.sections) == ("pass", [])
    gone = compared(of("2.6.0", unknown(SGD, "SGD")), of("2.98.0", result(SGD, "SGD")))
    assert (gone.verdict, told(gone.unseen)) == ("pass", {"agreement, parameter": [SGD]})


def test_what_another_mode_answers_for_is_told_of_that_mode_alone():
    lent = diverging("torch:Adam[fused]", "Adam", GROUPS, owner="torch:Adam[foreach]")
    inherited = diverging("mine:Adam", "Adam", GROUPS, owner="torch.optim.Optimizer")
    found = compared(of("2.6.0", result("torch:Adam[fused]"), result("mine:Adam")), of("2.98.0", lent, inherited))
    assert told(found.new) == {GROUPS: ["mine:Adam"]}


def test_what_a_version_lacks_is_no_failure(played):
    lacking = result(MUON, "Muon", notes=["unsupported: there is no torch.optim.Muon"])
    for tally in lacking.tallies.values():
        tally.ran, tally.unsupported = 0, tally.planned
    newer = of("2.98.0", diverging(MUON, "Muon", "muon-divides-by-no-elements"), result(ADAM))
    for older in (of("2.8.0", result(ADAM)), of("2.8.0", lacking, result(ADAM))):
        for found in (compared(newer, older), compared(older, newer)):
            assert (found.verdict, found.gone, found.shrank) == ("pass", [], [])
            assert found.lacks == [f"{MUON}: there is no torch.optim.Muon"]


def test_a_mode_that_a_version_does_not_have_is_no_failure(played):
    found = compared(of("2.6.0", result("torch:SGD[foreach]", "SGD"), result(ADAM)), of("2.98.0", result(ADAM)))
    assert (found.verdict, found.lacks) == ("pass", ["torch:SGD[foreach]: torch 2.98.0 has no such mode"])


def test_what_nobody_checked_any_more_is_a_failure(played):
    found = compared(of(HERE, result(ADAM), result(SGD, "SGD")), of("2.98.0", result(ADAM)))
    assert (found.verdict, found.gone, found.lacks) == ("fail", [SGD], [])
    assert compared(of(HERE, result(ADAM), result("mine:A")), of("2.98.0", result(ADAM))).gone == ["mine:A"]


def test_what_is_in_doubt_is_a_failure():
    found = compared(of("2.6.0", diverging()), of("2.98.0", result(error="interrupted")))
    assert (found.verdict, found.doubtful) == ("fail", ["torch:Adam[foreach]: known, now unknown"])


def test_what_is_asked_less_often_is_a_failure_and_how_far_lives_come_is_not():
    less = result(elements=39_000, steps=1400)
    less.tallies["agreement"].ran = 100
    assert compared(of("2.6.0", result()), of("2.98.0", less)).verdict == "pass"
    less.tallies["agreement"].planned = 199
    less.tallies["completes"].ran, less.tallies["completes"].unsupported = 0, 200
    less.traces = 150
    found = compared(of("2.6.0", result()), of("2.98.0", less))
    assert found.verdict == "fail"
    assert {(s["check"], s["count"]): (s["before"], s["after"]) for s in found.shrank} == {
        ("", "traces"): (200, 150), ("agreement", "planned"): (200, 199),
    }  # fmt: skip


@pytest.mark.parametrize("versions", [("2.13.0", "2.13.0"), ("2.13.0+cpu", "2.13.0+cu130")])
def test_of_one_version_all_changes_count(versions):
    found = compared(*(of(version, result()) for version in versions))
    assert not isinstance(found, Upgrade)


def test_of_several_versions_in_one_report_all_changes_count():
    mixed = model.build([of("2.6.0", result()), of("2.98.0", result(SGD, "SGD"), name="20261126T000000.000000Z-2")])
    then = json.loads(json.dumps(model.build([of("2.6.0", result())]).to_json()))
    assert not isinstance(compare.compare(mixed, then, "before.json"), Upgrade)


def test_each_reader_tells_it(played):
    report = model.build([of("2.98.0", diverging(FUSED, "SGD", NAN), unknown(SGD, "SGD"))])
    before = model.build([of(HERE, diverging(FUSED, "SGD", NEVER_STORES, NAN), result(SGD, "SGD"))]).to_json()
    report.upgrade = compare.compare(report, before, "before.json")
    html = page.html(report)
    for line in (
        f"torch {HERE}, now 2.98.0: 1 faults fixed, 0 new ones known, 1 not known",
        "FIXED: 1",
        f"{NEVER_STORES}: {FUSED}",
    ):
        assert line in html
    written = markdown.markdown(report)
    assert "### Compared with before.json: ✕ fail" in written
    assert "- FIXED: 1\n  - fused-sgd-never-stores-narrow-vectors: torch:SGD&#91;fused&#93;" in written
    assert report.upgrade.lines() == [
        f"compared with before.json: fail; torch {HERE}, now 2.98.0: 1 faults fixed, 0 new ones known, 1 not known",
        f"  NEW, and not known: agreement, parameter: {SGD}",
        f"  FIXED: {NEVER_STORES}: {FUSED}",
    ]
    upgrade = report.to_json()["upgrade"]
    assert all(f'"{key}"' in model.__doc__ for key in (*upgrade, *upgrade["fixed"][0]))
