"""JUnit and Markdown say what the terminal says, in forms that others can read, whatever a subject is called."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from rich.console import Console

from stepcheck.harness.life.events import Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.readers import report
from stepcheck.harness.readers.junit import junit
from stepcheck.harness.readers.markdown import markdown
from stepcheck.harness.readers.scripts import to_json
from stepcheck.harness.readers.terminal import show, table
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Divergence, Result, Tally

OUT = Path("out")
LIFE = Trace("Adam", (Parameter(()),), (Group((0,)),), (Step(),))
NASTY = "<b>&\"'|`*_[x](javascript:1)</details>\x00\x1b[31m\ud800\n# no heading"


def divergence(check="agreement", entry="", summary="off by 4 budgets", script="import torch\n", **changes):
    subject = changes.pop("subject", "m:A")
    return Divergence(subject, "Adam", check, "far", summary, 4.0, LIFE, ["First: step."], script, 3, entry, **changes)


def result(**changes):
    tallies = {
        "agreement": Tally("agreement", 9, 9, 9, divergences=[divergence(), divergence(summary="and another")]),
        "closure": Tally("closure", 9, 2, 2, known=[divergence("closure", entry="an-entry")]),
        "refuses-invalid": Tally("refuses-invalid", 9, 0, 0, unsupported=9),
        "no-gradient": Tally("no-gradient", 9),
    }
    given = {"meaningless": {"refuses-invalid": "it is not asked"}, "traces": 9, "seconds": 1.0, "shrink_seconds": 0.5}
    return Result(**({"subject": "m:A", "like": "Adam", "tallies": tallies} | given | changes))


def run(*results, **changes):
    about = {"command": "stepcheck check m:A", "version": "9", "environment": {"torch": "2.13"}, "seed": 5}
    return Run("1", **about, started="2026-01-02T03:04:05+00:00", results=list(results), **changes)


ROW = {"name": "an-entry", "statement": "it is so", "link": "", "versions": "==2.13.*", "reproduces": True, "told": ""}


def suites(made):
    return list(ET.fromstring(junit(made, OUT)))


def test_junit_has_a_suite_for_each_subject_and_a_case_for_each_check():
    (suite,) = suites(run(result()))
    assert suite.attrib == {
        "name": "m:A", "time": "1.500", "timestamp": "2026-01-02T03:04:05+00:00",
        "tests": "4", "failures": "1", "errors": "1", "skipped": "1",
    }  # fmt: skip
    cases = {case.get("name"): case for case in suite.findall("testcase")}
    assert list(cases) == ["agreement", "closure", "refuses-invalid", "no-gradient"]
    failure = cases["agreement"].find("failure")
    assert failure.get("message") == "off by 4 budgets; and another"
    for told in divergence(), divergence(summary="and another"):
        assert "\n".join(report.describe(told, OUT)) in failure.text
    assert f"stepcheck replay --out out {divergence().id}" in failure.text
    assert cases["refuses-invalid"].find("skipped").get("message") == "it is not asked"
    assert cases["no-gradient"].find("error").get("message") == "nothing was there to look at"
    assert [child.tag for child in cases["closure"]] == ["system-out"]
    assert "an-entry" in cases["closure"].find("system-out").text


def test_junit_names_what_the_results_hold_for():
    (suite,) = suites(run(result()))
    named = {p.get("name"): p.get("value") for p in suite.iterfind("properties/property")}
    assert named == {
        "command": "stepcheck check m:A",
        "stepcheck": "9",
        "seed": "5",
        "torch": "2.13",
        "verdict": "fail",
    }


def test_junit_is_not_green_where_a_campaign_or_the_ledger_is_not():
    right = {"agreement": Tally("agreement", 9, 9, 9)}
    ledger = [ROW, ROW | {"name": "gone", "reproduces": False, "told": "its life shows nothing"}]
    campaign, rows = suites(run(result(tallies=right, error="the run ended"), ledger=ledger))
    assert (campaign.get("failures"), campaign.get("errors")) == ("0", "1")
    assert campaign.find("testcase/error").get("message") == "the run ended"
    assert (rows.get("tests"), rows.get("failures")) == ("2", "1")
    assert "FIXED, or changed; its life shows nothing" in rows.find("testcase/failure").text


def test_junit_is_built_as_pytest_builds_it(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "def test_fails(record_property): assert 0\n"
        "def test_skips(): pytest.skip('why')\n"
        "@pytest.fixture\n"
        "def broken(): raise ValueError\n"
        "def test_errs(broken): pass\n"
        "def test_says(record_testsuite_property):\n"
        "    record_testsuite_property('a', 'b')\n"
        "    print('hello')\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml", "o.xml", "-o",
               "junit_logging=system-out", "test_it.py"]  # fmt: skip
    subprocess.run(command, cwd=tmp_path, check=False, stdout=subprocess.DEVNULL, timeout=120)
    theirs = shape(ET.parse(tmp_path / "o.xml").getroot())
    ours = shape(ET.fromstring(junit(run(result(), ledger=[ROW]), OUT)))
    assert ours.keys() <= theirs.keys()
    for path, attributes in ours.items():
        assert attributes <= theirs[path], path
    # What was not measured for each check is not there.
    assert theirs["testsuites/testsuite/testcase"] - ours["testsuites/testsuite/testcase"] == {"time"}


def shape(element, path=""):
    """The attributes that elements have, by where they stand."""
    path = f"{path}/{element.tag}" if path else element.tag
    found = {path: set(element.attrib)}
    for child in element:
        for where, attributes in shape(child, path).items():
            found[where] = found.get(where, set()) | attributes
    return found


def known(**changes):
    """A subject with known divergences alone: one of its own, and one of its base class."""
    tallies = {
        "agreement": Tally("agreement", 9, 9, 9, 0.993, known=[divergence(entry="an-entry")]),
        "closure": Tally("closure", 9, 2, 2, known=[divergence("closure", entry="of-the-base", owner="a.Base")]),
    }
    return result(tallies=tallies, worst={"parameter": 0.993}, **changes)


def test_known_is_no_failure_in_junit_and_has_its_reason():
    (suite,) = suites(run(known()))
    assert [suite.get(name) for name in ("tests", "failures", "errors", "skipped")] == ["2", "0", "0", "0"]
    assert {p.get("name"): p.get("value") for p in suite.iterfind("properties/property")}["verdict"] == "known"
    told = [case.find("system-out").text for case in suite.findall("testcase")]
    assert told == [
        "known: an-entry, in 3 lives: off by 4 budgets",
        "known: of-the-base (a fault of a.Base), in 3 lives: off by 4 budgets",
    ]


def test_known_is_a_verdict_in_the_tables():
    printed = StringIO()
    show(run(known()), OUT, Console(file=printed, width=160))
    assert re.search(r"^m:A +known +2/2", printed.getvalue(), re.MULTILINE)
    told = markdown(run(known()), OUT)
    assert "| m:A | ◆ known | 2/2 |" in told
    assert "1 known." in told


def test_known_has_a_colour_of_its_own():
    results = [known(), result(), result(tallies={}, error="it broke"), result(tallies={"a": Tally("a", 1, 1, 1)})]
    colours = {str(cell) for cell in table(results).columns[1].cells}
    assert colours == {"[magenta]known[/]", "[red]fail[/]", "[yellow]unknown[/]", "[green]pass[/]"}


def test_scripts_are_told_whose_fault_it_is():
    (own,), (others,) = (c["divergences"] for c in to_json(run(known()), OUT)["subjects"][0]["checks"])
    assert "owner" not in own
    assert others["owner"] == "a.Base"


def test_a_row_of_the_ledger_without_evidence_fails_nothing_where_it_shows_nothing():
    carried = run(known(), ledger=[ROW | {"reproduces": False, "carried": True}])
    assert [suite.get("failures") for suite in suites(carried)] == ["0", "0"]
    printed = StringIO()
    show(carried, OUT, Console(file=printed, width=160))
    for told in printed.getvalue(), markdown(carried, OUT):
        assert "FIXED, or changed" not in told
        assert "no evidence for torch 2.13" in told


def test_markdown_has_the_table_and_what_reproduces_each_divergence():
    told = markdown(run(result()), OUT)
    assert "| m:A | ✕ fail | 2/4 | 9 |" in told
    assert told.count("<details>") == told.count("</details>") == 2
    assert f"replay: stepcheck replay --out out {divergence().id}" in told
    assert "```python\nimport torch\n```" in told
    assert "torch 2.13" in told
    assert "seed 5" in told


def test_markdown_tells_a_great_many_divergences_in_part():
    many = Tally("agreement", 9, 9, 9, divergences=[divergence(summary=str(n)) for n in range(60)])
    told = markdown(run(result(tallies={"agreement": many})), OUT)
    assert told.count("<details>") == 50
    assert "10 more divergences" in told


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags = set()

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)


def test_what_a_stranger_calls_a_subject_stays_text_in_every_form():
    script = f"# ````` {NASTY}\n"
    nasty = divergence(subject=NASTY, summary=NASTY, script=script)
    of = result(
        subject=NASTY,
        notes=[NASTY],
        error=NASTY,
        tallies={"agreement": Tally("agreement", 1, 1, 1, divergences=[nasty])},
    )
    made = run(of, ledger=[ROW | {"reproduces": False, "told": NASTY}], problems=[NASTY])
    for suite in suites(made):  # well-formed
        assert suite.tag == "testsuite"
    lines = markdown(made, OUT).splitlines()
    fences = [n for n, line in enumerate(lines) if line.startswith("```")]
    assert len(fences) == 4
    assert lines[fences[2]] == "``````python"
    prose = [*lines[: fences[0]], *lines[fences[1] + 1 : fences[2]], *lines[fences[3] + 1 :]]
    tags = Tags()
    tags.feed("\n".join(prose))
    assert tags.tags == {"details", "summary"}
    assert not any(line.startswith("# ") for line in prose)
    for line in prose:
        if not line.startswith("<details>"):
            assert not re.search(r"(?<!\\)[`\[]", line)
    (row,) = [line for line in lines if line.startswith("| &lt;b")]
    assert len(re.findall(r"(?<!\\)\|", row)) == 9
    assert to_json(made, OUT)["subjects"][0]["subject"] == NASTY


def test_the_terminal_tells_it_with_the_problems_of_the_record():
    printed = StringIO()
    show(run(result(), problems=["line 7: is no event; it is skipped"]), OUT, Console(file=printed, width=160))
    told = printed.getvalue()
    assert "m:A fails agreement" in told
    assert "line 7: is no event" in told
    assert "seed 5" in told


def test_known_entries_that_this_version_does_not_have_are_named():
    assert report.known([result(known_lives={"of-another-version": 4})]) == ["known: of-another-version, in 4 lives"]


@pytest.mark.parametrize("notes, said", [(["unsupported: it takes float32"], "it takes float32"), ([], "unsupported")])
def test_why_a_check_is_unsupported_is_said(notes, said):
    assert report.unsupported(result(meaningless={}, notes=notes), "closure") == said


def test_what_was_expected_is_named_with_its_reason_and_what_passes_is_a_failure():
    known = Tally("agreement", 9, 9, 9, known=[divergence(entry="expected: it is meant")])
    stale = Tally("closure", 9, 9, 9, passes_now="it was so")
    line = "closure passes now, and was expected to fail (it was so): take it off the list"
    made = run(result(tallies={"agreement": known}), result(tallies={"agreement": known, "closure": stale}))
    alone, both = suites(made)
    properties = [{p.get("name"): p.get("value") for p in suite.iter("property")} for suite in (alone, both)]
    assert [(p["verdict"], suite.get("failures")) for p, suite in zip(properties, (alone, both), strict=True)] == [
        ("known", "0"),
        ("fail", "1"),
    ]
    (out,) = alone.iter("system-out")
    assert out.text == "expected: it is meant, in 3 lives: off by 4 budgets"
    assert [f.get("message") for f in both.iter("failure")] == [line]
    told = StringIO()
    show(made, OUT, Console(file=told, width=200))
    for text in (told.getvalue(), markdown(made, OUT)):
        assert re.search(r"expected: it is meant: m(:|&#58;)A fails agreement", text.replace("\\", ""))
        assert line in text.replace("\\", "")
        assert "1 expected" in text
    assert [row["verdict"] for row in to_json(made, OUT)["subjects"]] == ["known", "fail"]
