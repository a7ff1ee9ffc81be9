"""The documentation is true: its examples run, its lists are complete, and the site that is built of it needs no network."""

import re
import runpy
import sys
from pathlib import Path

import documents
import pytest

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.life import events, values
from stepcheck.harness.play.profiles import Profile
from stepcheck.harness.watch import findings

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
MOST_NOT_RUN = 6


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder to stand in, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def blocks(path):
    return [example.parsed for example in documents.page(path).examples()]


def having(mark):
    return [pytest.param(p, id=p.stem) for p in PAGES if any(b.runs and b.mark == mark for b in blocks(p))]


#: What the page on adding says is done by the tests in tests/contract, on every commit as well.
DONE_ELSEWHERE = ("adding",)


@pytest.mark.parametrize(
    "path",
    [pytest.param(*p.values, id=p.id, marks=pytest.mark.slow if p.id in DONE_ELSEWHERE else ()) for p in having("")],
)
def test_the_examples_of_a_page_run(path, workplace):
    documents.run(documents.page(path), workplace, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize("path", having("slow"))
def test_so_do_its_long_ones(path, workplace):
    documents.run(documents.page(path), workplace, slow=True)


def test_few_examples_are_not_run_and_each_says_why():
    idle = [(p.name, b.why) for p in PAGES for b in blocks(p) if b.mark == "not run"]
    assert len(idle) <= MOST_NOT_RUN
    assert all(len(why.split()) > 3 for _, why in idle), idle


def test_no_example_escapes_by_its_language():
    languages = {b.language for p in PAGES for b in blocks(p)}
    # What is shown and not run is output, or a file.
    assert languages <= {*documents.RUNS, "text", "diff", "javascript", "json", "toml", "yaml"}


FACTS = runpy.run_path(str(DOCS / "hooks" / "facts.py"))


def text(name):
    return FACTS["filled"]((DOCS / name).read_text(encoding="utf-8"))


def headings(markdown):
    return re.findall(r"^#+ `?([^`{\n]+?)`?(?: \{.*\})?$", markdown, flags=re.MULTILINE)


def test_every_check_has_a_section_with_its_question_and_what_it_found():
    page = text("checks.md")
    assert [h for h in headings(page) if h in CHECKS] == list(CHECKS)
    for check in CHECKS.values():
        section = page.partition(f"## `{check.name}`")[2].partition("\n## ")[0]
        assert FACTS["cell"](check.question) in section
        for entry in LEDGER.values():
            assert (f"`{entry.name}`" in section) == (check.name in entry.checks), (check.name, entry.name)


def test_every_event_recipe_layout_and_dtype_of_a_trace_is_told():
    page = text("traces.md")
    words = {word.strip('"') for word in page.split("`")[1::2]}
    names = [
        *values.RECIPES,
        *events.GRADIENT_LAYOUTS,
        *values.DTYPES,
        *events.FORMS,
        *events.WAYS,
        *events.DICTIONARIES,
    ]
    names += [*events.HOOKS, *events.SCHEDULES, *events.FAILURES, *events.PLACES, *events.OBJECTIVES, *events.CLOSURES]
    names += [*events.FLAGS, *events.SPELLINGS, *events.HANDLINGS, *events.SURROUNDINGS]
    names += [*events.SCALINGS, *events.EVENTS.values()]
    assert not set(names) - words


def test_every_fact_of_a_profile_is_told():
    page = text("tolerance.md")
    assert not [f for f in Profile.__dataclass_fields__ if f"`{f}`" not in page]


def test_every_check_of_a_watch_has_a_row():
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", (DOCS / "watch.md").read_text(), re.MULTILINE)
    plain = {name: question.replace("`", "") for name, question in rows}
    assert plain == findings.CHECKS
