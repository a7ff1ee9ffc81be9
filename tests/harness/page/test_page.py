"""The page is one file, small, whole without some of the documents, and nothing in a stream can get out of its place."""

import json
import re
from html.parser import HTMLParser

import pytest
from recorded import diverging, result, run

from stepcheck.harness.page import badge, markdown, model, page
from stepcheck.harness.page.compare import compare
from stepcheck.harness.page.figures import figures
from stepcheck.harness.page.render import ratio, short

HOSTILE = "</script><script>alert(1)</script>\"'><img src=x onerror=alert(1)>|`@everyone`\u2028{{7*7}}"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.seen, self.links = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [v for k, v in attributes if k in ("href", "src", "xlink:href") and v]


def rendered(*runs):
    made = model.build(runs)
    made.figures = figures(made, runs)
    return page.html(made)


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.DOTALL)[1])


def test_it_is_one_file_that_needs_no_other(whole):
    html = page.html(whole)
    tags = Tags(html)
    assert not {"link", "img", "iframe", "object"} & set(tags.seen) - {"link"}
    assert all(link.startswith(("#", "data:", "https://")) or link == "versions.html" for link in tags.links)
    assert "default-src 'none'" in html
    assert not re.search(r"url\((?!#)|@import|\bfetch\(", html)
    assert len(html.encode()) < page.MOST_BYTES


def test_the_first_screen_says_what_was_found(whole):
    text = re.sub(r"<[^>]+>", " ", page.html(whole))
    for told in (
        "fail",
        whole.headline,
        f"{whole.counts['planned']:,}",
        "torch 2.13.0",
        "seed 7",
        "2026-11-25 01:02:03 UTC",
    ):
        assert told in text


@pytest.mark.parametrize(
    "where",
    ["subject", "like", "note", "error", "command", "id", "environment", "entry", "field", "feature", "problem"],
)
def test_what_a_stream_says_stays_text(where, campaigned):
    one = result()
    made = run(one, problems=[])
    if where in ("subject", "like"):
        setattr(one, where, HOSTILE)
    elif where == "note":
        one.notes.append(HOSTILE)
    elif where == "error":
        one.error = HOSTILE
    elif where == "environment":
        made.environment = {HOSTILE: HOSTILE}
    elif where == "entry":
        made.ledger = [
            {"name": HOSTILE, "statement": HOSTILE, "link": "javascript:alert(1)", "versions": "", "reproduces": True}
        ]
    elif where == "field":
        one.ratios, one.fields = {HOSTILE: {HOSTILE: [1] * 22}}, {HOSTILE: (1, 1)}
    elif where == "feature":
        one.features = {HOSTILE: 1}
    elif where == "problem":
        made.problems = [HOSTILE]
    else:
        setattr(made, where, HOSTILE)
    html = rendered(made)
    plain = Tags(rendered(run(result())))
    tags = Tags(html)
    assert tags.seen.count("script") == 2
    assert tags.seen.count("img") == plain.seen.count("img") == 0
    assert not any(link.startswith("javascript:") for link in tags.links)
    assert "{{7*7}}" in html
    report = model.build([made])
    assert "<img" not in badge.svg(report)
    told = re.sub(r"(?<!`)(`+)(?!`).*?(?<!`)\1(?!`)", "", markdown.markdown(report))  # without spans of code
    assert "<img" not in told
    assert "<script" not in told
    assert "@everyone" not in told


def test_scripts_of_divergences_are_kept_to_the_letter(campaigned):
    wrong = campaigned[1]
    data = embedded(rendered(run(wrong)))
    cases = data["cells"][0]["d"]
    assert [data["strings"][d["z"]] for d in cases] == [d.script for d in (*wrong.divergences, *wrong.known)]


def test_the_embedded_data_are_what_the_report_has(whole):
    data = embedded(page.html(whole))
    for packed, cell in zip(data["cells"], whole.cells, strict=True):
        assert dict(zip(data["counts"], packed["n"], strict=True)) == {
            name: getattr(cell, name) for name in data["counts"]
        }
        ran = packed["q"][3] if isinstance(packed["q"][3], list) else [packed["q"][3]] * len(cell.checks)
        assert [data["checks"][n][0] for n in data["asked"][packed["q"][0]]] == [q.check for q in cell.checks]
        assert ran == [q.ran for q in cell.checks]
        assert data["verdicts"][packed["v"]] == cell.verdict


def test_a_hundred_thousand_checks_fit_into_three_megabytes(large):
    assert sum(len(c.checks) for c in large.cells) >= 100_000
    html = page.html(large)
    assert len(html.encode()) < 3_000_000
    data = embedded(html)
    assert len(data["cells"]) == len(large.cells)
    assert "report.json has them" in html
    assert len(large.to_json()["cells"][0]["ratios"]["buffer0"]) == 3


def test_without_a_document_the_page_says_which_command_gives_it():
    html = rendered(run(result()))
    for command in (
        "python -m stepcheck.harness.certificate",
        "stepcheck power",
        "stepcheck bench",
        "stepcheck census",
    ):
        assert f"Not in these runs: {command}" in html


def test_known_has_a_cell_a_count_and_a_filter_of_its_own():
    html = rendered(run(result(), diverging("torch:SGD[fused]", "SGD", "sgd-accepts-nan", "groups-are-not-validated")))
    (cell,) = re.findall(r'<a href="#/torch/SGD/fused" .*?</a>', html)
    assert 'class="known"' in cell
    assert re.sub(r"<[^>]+>", "", cell) == "◆ known 2"
    assert (
        '<select name="verdict"><option value="">all</option><option>pass</option><option>known</option></select>'
        in html
    )
    assert "with known issues" not in html


def test_whose_fault_it_is_stands_in_the_details():
    data = embedded(rendered(run(diverging(owner="torch.optim.Optimizer"))))
    assert [d["h"] for d in data["cells"][0]["d"]] == ["torch.optim.Optimizer"]


def test_without_any_check_it_says_so(documents):
    html = rendered(documents[0])
    assert "no optimizer was checked" in html
    assert '<table class="matrix"' not in html


def test_what_could_not_be_read_stands_at_the_top():
    html = rendered(run(result(), status=None, problems=["line 7: is cut short"]))
    assert html.index("line 7: is cut short") < html.index('id="matrix"')
    assert '<span class="v unknown">' in html


@pytest.mark.parametrize(
    "document",
    [
        {},
        {"torch": 3},
        {"torch": [{}]},
        {"torch": [{"subject": 1, "dtype": None, "ulps": "x", "ulps_witness": {}, "ratio": 1}]},
        {"torch": []},
    ],
)
def test_a_document_of_another_shape_is_told_and_hinders_nothing(document):
    html = rendered(run(result()), run(name="z", documents={"certificate": document}))
    assert "cannot be drawn" in html or "Largest known errors" in html
    assert "torch:Adam[foreach]" in html


def test_a_comparison_is_shown(campaigned):
    report = model.build([run(*campaigned)])
    before = model.build([run(campaigned[0], result(campaigned[1].subject), result("fast:SGD", "SGD"))]).to_json()
    report.comparison = compare(report, before, "before.json")
    html = page.html(report)
    assert "Compared with before.json" in html
    assert "became red: 1" in html
    assert "Counts that shrank" in html
    told = markdown.markdown(report)
    assert "✕ became red: 1" in told
    assert "✕ gone: 1\n  - fast:SGD" in told


@pytest.mark.parametrize(
    ("subject", "link"),
    [
        ("torch:Adam[foreach]", "/torch/Adam/foreach"),
        ("fast:SGD", "/fast/SGD"),
        ("a.b:C", "/a.b/C"),
        ("a/b:ü[x y]", "/a%2Fb/%C3%BC/x%20y"),
        ("alone", "/alone"),
    ],
)
def test_each_subject_has_a_link_that_says_its_name(subject, link):
    assert page.path(subject) == link


@pytest.mark.parametrize(
    ("r", "told"),
    [
        (None, ""),
        (0.9999, "0.999"),
        (1.0, "1.000"),
        (1.00001, "1.001"),
        (0.5, "0.500"),
        (12345.0, "1.2e+04"),
        (1.8e308, "∞"),
        (1.7976931348623157e308, "∞"),
    ],
)
def test_a_ratio_is_never_rounded_across_one(r, told):
    assert ratio(r) == told


def test_counts_are_told_in_three_digits():
    assert [short(n) for n in (12, 9_999, 12_345, 1_234_567, 2_000_000_000)] == [
        "12",
        "9,999",
        "12.3 k",
        "1.23 M",
        "2.00 G",
    ]
