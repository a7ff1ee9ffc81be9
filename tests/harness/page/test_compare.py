"""Two reports compared: what became red and green, what is gone, and that a count that shrinks is a failure."""

import json

import pytest
from recorded import diverging, result, run

from stepcheck.harness.page import compare, model
from stepcheck.harness.support.usage import UsageError


def compared(before, after):
    then = json.loads(json.dumps(model.build([before]).to_json()))
    return compare.compare(model.build([after]), then, "before.json")


def test_nothing_changed():
    found = compared(run(result()), run(result()))
    assert found.verdict == "pass"
    assert not any([found.red, found.green, found.new, found.gone, found.shrank, found.told, found.changed])


def test_red_and_green(campaigned):
    right, wrong = campaigned
    mended = result(wrong.subject)
    worse = compared(run(right, mended), run(right, wrong))
    assert (worse.verdict, worse.red, worse.green) == ("fail", [wrong.subject], [])
    assert all(line.startswith(wrong.subject) for line in worse.appeared)
    better = compared(run(right, wrong), run(right, result(wrong.subject, traces=999, elements=10**9)))
    assert (better.verdict, better.red, better.green) == ("pass", [], [wrong.subject])
    assert set(better.disappeared) == set(worse.appeared) != set()


def test_what_passes_no_longer_is_a_failure_and_so_is_a_new_subject_that_fails(campaigned):
    doubtful = compared(run(result()), run(result(error="interrupted")))
    assert (doubtful.verdict, doubtful.changed) == ("fail", ["torch:Adam[foreach]: pass, now unknown"])
    assert compared(run(result()), run(result(), campaigned[1])).verdict == "fail"
    assert compared(run(result()), run(result(), result("fast:Adam"))).verdict == "pass"


def test_known_is_no_failure_and_what_appeared_is_told():
    found = compared(run(result()), run(diverging()))
    assert (found.verdict, found.red, found.changed) == ("pass", [], ["torch:Adam[foreach]: pass, now known"])
    assert found.appeared == ["torch:Adam[foreach]: agreement: known, groups-are-not-validated"]
    back = compared(run(diverging()), run(result()))
    assert (back.verdict, back.green) == ("pass", ["torch:Adam[foreach]"])
    assert compared(run(diverging()), run(result(error="interrupted"))).verdict == "fail"


def test_a_subject_that_nobody_checked_any_more_is_a_failure():
    found = compared(run(result(), result("fast:Adam")), run(result(), result("mine:Adam")))
    assert (found.verdict, found.gone, found.new) == ("fail", ["fast:Adam"], ["mine:Adam"])


def test_each_count_that_shrinks_is_a_failure():
    less = result(traces=199)
    less.tallies["closure"].ran = 0
    del less.tallies["agreement"]
    found = compared(run(result()), run(less))
    assert found.verdict == "fail"
    rows = {(s["check"], s["count"]): (s["before"], s["after"]) for s in found.shrank}
    assert rows == {
        ("", "traces"): (200, 199),
        ("closure", "ran"): (190, 0),
        ("agreement", "planned"): (200, 0),
        ("agreement", "ran"): (190, 0),
    }


def test_what_makes_them_unlike_is_told():
    found = compared(run(result()), run(result(), seed=8, version="0.2.0"))
    assert found.told == ["stepcheck: 0.1.0, now 0.2.0", "seed: 7, now 8"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 99, "cells": []}', '{"schema": 1}', "[" * 100_000])
def test_what_is_no_report_is_bad_usage(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(UsageError, match="--against"):
        compare.load(path)


@pytest.mark.parametrize("cells", [[1], [{}], [{"subject": "torch:Adam[foreach]", "verdict": "pass"}], {"a": 1}])
def test_a_report_that_lacks_parts_is_bad_usage(cells):
    before = {"schema": 1, "cells": cells, "runs": []}
    with pytest.raises(UsageError, match="not a whole report"):
        compare.compare(model.build([run(result())]), before, "before.json")
