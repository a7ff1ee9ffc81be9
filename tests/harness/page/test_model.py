"""Runs become one report: the newest result of a subject counts, what is not whole is not green, every number has its source."""

import json
import math
import sys
from pathlib import Path

import pytest
from recorded import WRONG, diverging, result, run

from stepcheck.harness.page import model

LATER = {"name": "20261126T000000.000000Z-2", "started": "2026-11-26T00:00:00+00:00"}


def test_the_newest_result_of_a_subject_counts():
    older, newer = (
        run(result(), result("fast:SGD", "SGD")),
        run(result(traces=7), command="stepcheck check torch:Adam", **LATER),
    )
    for runs in ([older, newer], [newer, older]):
        report = model.build(runs)
        traces = {c.subject: (c.traces, report.runs[c.run].command) for c in report.cells}
        assert traces == {
            "torch:Adam[foreach]": (7, "stepcheck check torch:Adam"),
            "fast:SGD": (200, "stepcheck check torch --seed 7"),
        }


def test_counts_are_sums_over_subjects_and_checks():
    report = model.build([run(result(), result("fast:Adam"))])
    checks = len(report.cells[0].checks)
    assert (report.counts["planned"], report.counts["ran"]) == (2 * checks * 200, 2 * checks * 190)
    assert (report.counts["subjects"], report.counts["pass"], report.counts["worst_ratio"]) == (2, 2, 0.5)
    assert report.verdict == "pass"


def test_each_new_divergence_makes_it_fail_and_can_be_replayed(campaigned):
    report = model.build([run(*campaigned)])
    right, wrong = report.cells
    assert (right.verdict, wrong.verdict, report.verdict) == ("known", "fail", "fail")
    assert wrong.subject == WRONG
    assert wrong.new == len(campaigned[1].divergences) > 0
    first = next(d for d in wrong.divergences if not d.known)
    assert first.replay == f"stepcheck replay {first.id}"
    assert first.script == campaigned[1].divergences[0].script
    assert wrong.witness in {d.summary for d in wrong.divergences}


def test_the_folder_of_a_divergence_is_named_where_it_is_not_the_usual_one(campaigned):
    (_, wrong) = model.build([run(*campaigned, name="x")], {"x": Path("elsewhere")}).cells
    assert wrong.divergences[0].replay == f"stepcheck replay --out elsewhere {wrong.divergences[0].id}"


def test_what_is_known_is_told_with_its_entry(campaigned):
    (right, _) = model.build([run(*campaigned)]).cells
    assert 0 < right.own <= right.known == len(right.divergences)
    assert all(d.entry and d.statement for d in right.divergences)


def test_known_is_a_verdict_of_its_own_and_counted():
    report = model.build([run(result(), diverging("torch:SGD[fused]", "SGD"))])
    assert [c.verdict for c in report.cells] == ["pass", "known"]
    assert (report.verdict, report.counts["pass"], report.counts["known_subjects"]) == ("known", 1, 1)
    assert report.headline == "1 of 2 subjects have known issues only; 1 of 2 subjects pass"


def test_a_known_subject_does_not_show_the_r_of_what_it_does_right():
    (passes, known) = model.build([run(result(), diverging("torch:SGD[fused]", "SGD"))]).cells
    assert (passes.number, passes.beside) == ("0.500", 0)
    assert (known.number, known.beside) == ("1", 0)


def test_what_is_another_s_fault_stands_beside_the_verdict():
    (cell,) = model.build([run(diverging(owner="torch:Adam[fused]"))]).cells
    assert (cell.verdict, cell.own, cell.number, cell.beside) == ("pass", 0, "0.500", 1)
    assert cell.divergences[0].owner == "torch:Adam[fused]"


@pytest.mark.parametrize(("carried", "verdict"), [(False, "fail"), (True, "pass")])
def test_a_row_of_the_ledger_without_evidence_may_show_nothing(carried, verdict):
    row = {"name": "some-entry", "reproduces": False, "carried": carried}
    report = model.build([run(result(), ledger=[row])])
    assert (report.verdict, report.counts["mended"]) == (verdict, int(not carried))


@pytest.mark.parametrize(
    ("made", "verdict"),
    [
        (run(result()), "pass"),
        (run(result(), status=None), "unknown"),
        (run(result(), problems=["line 9: is cut short"]), "unknown"),
        (run(result(error="interrupted")), "unknown"),
        (run(result(), ledger=[{"name": "some-entry", "reproduces": False}]), "fail"),
        (run(result(), ledger=[{"name": "some-entry", "reproduces": True}]), "pass"),
        (run(), "unknown"),
    ],
)
def test_only_what_is_whole_is_green(made, verdict):
    assert model.build([made]).verdict == verdict


def test_what_could_not_be_read_is_told():
    report = model.build(
        [run(result(), status=None), run(problems=["line 3: is cut short"], **LATER)], unread=["a.jsonl: is empty"]
    )
    assert report.problems[0] == "a.jsonl: is empty"
    assert "did not end" in report.problems[1]
    assert report.problems[2].endswith("line 3: is cut short")
    assert report.headline.endswith("what was recorded is not whole")


def test_every_number_has_a_source_that_exists():
    report = model.build([run(result())])
    data = report.to_json()
    numbers = {k for k, v in data["cells"][0].items() if isinstance(v, (int, float)) and k != "run"}
    assert numbers <= set(data["sources"])
    assert set(data["cells"][0]["checks"][0]) - {"check", "question", "verdict"} <= set(data["sources"])
    root = Path(__file__).parents[3]
    assert all((root / s["file"]).is_file() and s["told"] for s in data["sources"].values())
    assert data["runs"][data["cells"][0]["run"]]["seed"] == 7


def test_the_json_has_what_its_schema_says(whole):
    data = json.loads(json.dumps(whole.to_json(), allow_nan=False))
    for name in ("schema", "stepcheck", *data):
        assert f'"{name}"' in model.__doc__
    for part in ("cells", "runs", "figures", "ledger"):
        for row in data[part][:1]:
            assert all(f'"{key}"' in model.__doc__ for key in row), part
    assert all(f'"{key}"' in model.__doc__ for key in data["cells"][1]["divergences"][0])


def test_infinite_ratios_are_the_largest_number_and_none_is_null():
    one = result(worst={"parameter": math.inf})
    one.tallies["agreement"].worst_ratio = math.nan
    (cell,) = model.build([run(one)]).cells
    assert cell.worst_ratio == sys.float_info.max
    assert next(q.worst_ratio for q in cell.checks if q.check == "agreement") is None


def test_columns_are_the_modes_of_torch_then_fast_then_others():
    names = ["mine:Adam", "fast:Adam[triton]", "fast:Adam", "torch:Adam[fused]", "torch:Adam[forloop]"]
    report = model.build([run(*(result(n) for n in names))])
    assert report.columns == ["torch[forloop]", "torch[fused]", "fast", "fast[triton]", "mine"]


def test_the_certificate_of_a_subject_stands_beside_it(campaigned, documents):
    (right, _) = model.build([run(*campaigned), *documents]).cells
    assert {e["dtype"] for e in right.errors} >= {"float32", "bfloat16", "complex64"}
    assert all(e["ratio"] <= 1 and "budget" in e["ratio_witness"] for e in right.errors)
