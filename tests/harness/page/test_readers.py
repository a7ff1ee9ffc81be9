"""The smaller readers of a report: Markdown for a pull request, the badge, the plots."""

import re
from xml.etree import ElementTree as ET

import pytest
from recorded import diverging, result, run

from stepcheck.harness.page import badge, markdown, model
from stepcheck.harness.page.figures import figures


def test_markdown_has_the_matrix_and_every_new_divergence(whole):
    told = markdown.markdown(whole)
    assert told.startswith("## stepcheck: ✕ fail")
    assert re.search(r"\| \*\*Adam\*\* \| ◆ known \d", told)
    new = [d for c in whole.cells for d in c.divergences if not d.known]
    assert told.count("<summary>✕ new") == len(new) > 0
    assert all(d.script.rstrip() in told and d.replay in told for d in new)
    assert told.count("<details>") == told.count("</details>")


def test_markdown_is_no_longer_than_github_takes(large):
    told = markdown.markdown(large)
    assert 60_000 < len(told) < 65_536
    assert "new divergences are left out" in told or "is left out" in told
    assert told.count("<details>") == told.count("</details>")


def test_a_fence_is_longer_than_those_in_a_script(campaigned):
    report = model.build([run(campaigned[1])])
    report.cells[0].divergences[0].script = "x = '''\n````\n'''"
    assert "`````python\nx = '''\n````\n'''\n`````\n" in markdown.markdown(report)


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (result(), "pass 1 of 1"),
        (result(error="it broke"), "unknown 0 of 1"),
        (diverging(), "known: 0 pass, 1 known of 1"),
    ],
)
def test_the_badge_says_verdict_and_count(made, told):
    report = model.build([run(made)])
    svg = ET.fromstring(badge.svg(report))
    texts = [e.text for e in svg.iter() if e.tag.endswith("text")]
    assert texts == ["stepcheck", told]
    title = next(e for e in svg if e.tag.endswith("title"))
    assert svg.get("role") == "img"
    assert svg.get("aria-labelledby") == title.get("id")
    assert report.headline in title.text


def test_the_badge_has_a_colour_for_each_verdict():
    colours = [re.findall(r'height="20" fill="(#\w+)"', badge.svg(model.build([run(r)])))[1]
               for r in (result(), diverging(), result(error="it broke"))]  # fmt: skip
    assert len(set(colours)) == 3


def test_each_plot_has_a_title_on_each_mark_and_a_table(whole):
    drawn = {f.name: f for f in whole.figures}
    assert set(drawn) == {"budget", "ulps", "power", "bench", "census"}
    for figure in drawn.values():
        assert not figure.missing, figure.missing
        svg = ET.fromstring(figure.svg)
        titles = [e.text for e in svg.iter() if e.tag.endswith("title")]
        assert titles
        assert all("stepcheck " in t and "seed 7" in t for t in titles), figure.name
        assert figure.rows
        assert all(len(row) == len(figure.columns) for row in figure.rows)
        assert svg.get("role") == "img"
    assert len(ET.fromstring(drawn["ulps"].svg).findall(".//{*}use/{*}title")) == len(drawn["ulps"].rows)


def test_plots_follow_the_theme_and_have_text_as_text(whole):
    for figure in whole.figures:
        assert not re.search(r"#[0-9a-f]{6}", figure.svg)
        assert "var(--ink)" in figure.svg or "var(--muted)" in figure.svg
        assert "<text" in figure.svg
        assert "font-family" not in figure.svg
    assert ">Adagrad</text>" in next(f.svg for f in whole.figures if f.name == "ulps")


def test_identifiers_of_plots_do_not_meet(whole):
    ids = [i for f in whole.figures for i in re.findall(r'\bid="([^"]+)"', f.svg)]
    assert len(ids) == len(set(ids))


def test_a_plot_is_the_same_for_the_same_runs(whole, documents):
    again = figures(model.build(documents), documents)
    assert next(f.svg for f in again if f.name == "bench") == next(
        f.svg for f in whole.figures if f.name == "bench"
    ).replace("run=1", "run=0")


def test_the_census_shows_what_leaves_its_model(whole):
    rows = next(f.rows for f in whole.figures if f.name == "census")
    assert rows == [
        ["Adam", "float32", "dense", 28.0, 28.0, "sm_80, sm_90"],
        ["SGD", "float32", "dense", 28.0, 32.0, "sm_80, sm_90"],
    ]


def test_names_that_no_font_and_no_xml_has_are_drawn():
    document = {
        "faults": [{"kills": [{"checks": ["x"], "cpu_seconds": 0.5}], "other_oracles": {}}],
        "oracles": {"a\x00$\\frac{$<&\ud800\U0001f600": ""},
    }
    runs = [run(documents={"power": document})]
    (drawn,) = (f for f in figures(model.build(runs), runs) if f.name == "power")
    assert not drawn.missing
    assert ET.fromstring(drawn.svg).get("role") == "img"
