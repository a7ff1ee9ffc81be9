"""The page of versions is one small file that works without JavaScript, and says in words what its colours say."""

import re
from html.parser import HTMLParser

import pytest

from stepcheck.harness.known import evidence
from stepcheck.harness.known.ledger import LEDGER
from stepcheck.harness.page import faults, page, versions
from stepcheck.harness.play.families import TORCH_MODES

HERE = evidence.installed()
NEVER_STORES = "fused-sgd-never-stores-narrow-vectors"
GROUPS, MUON = "groups-are-not-validated", "muon-divides-by-no-elements"


class Tags(HTMLParser):
    """Elements, identifiers and links of a page."""

    def __init__(self, text):
        super().__init__()
        self.seen, self.ids, self.links, self.scopes = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.seen.append(tag)
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"]] if "href" in found else []
        self.scopes += [found.get("scope")] if tag == "th" else []


@pytest.fixture
def built(played):
    return faults.build()


@pytest.fixture
def html(built):
    return versions.html(built)


def cell(html, subject, version):
    (found,) = re.findall(rf'<a class="box ([^"]*)" href="#{re.escape(versions.slug(subject))}\.{re.escape(version)}" '
                          r'aria-label="([^"]*)">(.*?)</a>', html)  # fmt: skip
    look, told, inside = found
    return look, told, re.sub(r"<[^>]+>", " ", inside).split()


def test_it_is_one_small_file_that_asks_nothing_of_the_network(html):
    tags = Tags(html)
    assert not {"img", "iframe", "object"} & set(tags.seen)
    assert all(link.startswith(("#", "data:", "https://")) or link == "index.html" for link in tags.links)
    assert "default-src 'none'" in html
    assert not re.search(r"url\((?!#)|@import|\bfetch\(", html)
    assert len(html.encode()) < page.MOST_BYTES


def test_every_link_leads_somewhere_and_nothing_has_two_names(html):
    tags = Tags(html)
    assert len(tags.ids) == len(set(tags.ids))
    assert {link[1:] for link in tags.links if link.startswith("#")} <= set(tags.ids)
    assert set(tags.scopes) == {"row", "col"}


def test_a_cell_says_how_many_issues_of_which_gravity(html):
    assert cell(html, "SGD[forloop]", "2.6.0") == ("lax shade1", "SGD[forloop], torch 2.6.0: 1 lax", ["○", "1"])
    look, told, shown = cell(html, "SGD[fused]", HERE)
    assert (look, told) == ("wrong shade1", f"SGD[fused], torch {HERE}: 1 wrong, 1 lax, 1 new")
    assert shown == ["■", "1", "○", "1", "+", "NEW", "1"]


def test_what_is_fixed_is_green_and_says_so(html):
    look, told, shown = cell(html, "SGD[fused]", "2.98.0")
    assert (look, told) == ("lax shade1", "SGD[fused], torch 2.98.0: 1 lax, 1 fixed")
    assert shown == ["○", "1", "✓", "FIXED", "1"]
    assert cell(html, "SGD[fused]", "2.99.0") == (
        "clean", "SGD[fused], torch 2.99.0: none known, 1 fixed", ["✓", "none", "known", "✓", "FIXED", "1"],
    )  # fmt: skip
    assert '<span class="fixed">✓ FIXED in 2.98.0</span>' in html


def test_what_was_not_played_is_a_word_and_no_link(html):
    row = re.search(r'<tr><th scope="row">Muon\[forloop\]</th>(.*?)</tr>', html)[1]
    words = re.sub(r"<[^>]+>", " ", row).split()
    assert words[:2] == ["lacks", "lacks"]
    assert words[-2:] == ["not", "played"]
    assert 'title="there is no torch.optim.Muon"' in row
    assert "<i>unsupported</i>" in re.search(r'<tr><th scope="row">Adam\[capturable\]</th>(.*?)</tr>', html)[1]


def test_the_first_row_counts_each_issue_once(html):
    row = re.search(r'<tr><th scope="row">all, each issue once</th>(.*?)</tr>', html)[1]
    words = [re.sub(r"<[^>]+>", " ", one).split() for one in row.split("</td>")[:-1]]
    assert words == [
        ["○", "1"], ["○", "1"], ["■", "1", "▲", "1", "○", "2", "+", "NEW", "1"], ["▲", "1", "○", "2", "✓", "FIXED", "1"],
        ["○", "1", "✓", "FIXED", "1"],
    ]  # fmt: skip


def test_a_cell_opens_the_list_of_its_issues(html):
    section = re.search(r'<section class="subject" id="SGD-fused".*?</section>', html, re.DOTALL)[0]
    assert f'<th scope="col" id="SGD-fused.{HERE}" tabindex="-1">{HERE}</th>' in section
    rows = re.findall(r'<tr><th scope="row"><a href="#([\w-]+)">', section)
    assert rows == [NEVER_STORES, "sgd-accepts-nan"]  # the gravest first
    for told in ("■ wrong", "○ lax", "first seen", "fixed in", "2.98.0", "pytorch/pytorch/issues/191763"):
        assert told in section, told
    assert section.count('<span class="fixed">FIXED</span>') == 2
    assert "display: none" in html  # until it is the target of a link


def test_each_issue_has_its_life_its_command_its_script_and_its_versions(html, built):
    for fault in built.faults:
        article = re.search(rf'<article class="fault" aria-labelledby="{fault.name}">.*?</article>', html, re.DOTALL)[0]
        assert f'<code data-copy="Copy">stepcheck replay {fault.name}</code>' in article
        assert 'data-copy="Copy script">#' in article
        assert article.count("<li>") == len(fault.life) > 0
        assert article.count('<th scope="col">') == 1 + len(built.versions)


def test_a_statement_stays_text(built):
    fault = built.faults[0]
    fault.statement, fault.link = "<img src=x onerror=alert(1)>", "javascript:alert(1)"
    made = versions.html(built)
    assert "<img" not in made
    assert "javascript:" not in made


def test_a_page_of_all_issues_in_twenty_versions_is_small(played, monkeypatch):
    environment = played[0].environment
    shows = {
        entry.name: [f"{name}[{mode}]" for name in entry.optimizers for mode in entry.modes or TORCH_MODES[name]]
        for entry in LEDGER.values()
    }
    many = tuple(evidence.Played(f"3.{n}.0", environment, {}, {}, shows, {}) for n in range(20))
    monkeypatch.setattr(evidence, "versions", lambda: many)
    assert 1_000_000 < len(versions.html(faults.build()).encode()) < page.MOST_BYTES


def test_without_evidence_the_page_says_which_command_gives_it(monkeypatch):
    monkeypatch.setattr(evidence, "versions", lambda: ())
    assert "No version of torch was played" in versions.html(faults.build())


def test_the_table_in_markdown_has_a_row_for_each_history(built):
    lines = versions.markdown(built, "versions.html").splitlines()
    assert lines[0] == "| known issue | what | gravity | first seen | fixed in | where |"
    what = {fault.name: fault.statement.replace("|", "\\|") for fault in built.faults}
    thread = "([thread](https://github.com/pytorch/pytorch/issues/191763))"
    assert [line.replace("versions.html#", "#") for line in lines[2:]] == [
        f"| [`{NEVER_STORES}`](#{NEVER_STORES}) {thread} | {what[NEVER_STORES]} | wrong | {HERE} | 2.98.0 | `SGD[fused]` |",
        f"| [`{MUON}`](#{MUON}) | {what[MUON]} | raises | {HERE} | not fixed | `Muon[forloop]` |",
        f"| [`{GROUPS}`](#{GROUPS}) | {what[GROUPS]} | lax | 2.6.0 or earlier | 2.98.0 | `Adam[forloop]` |",
        f"| [`{GROUPS}`](#{GROUPS}) | {what[GROUPS]} | lax | 2.6.0 or earlier | not fixed | `SGD[forloop]` |",
        f"| [`sgd-accepts-nan`](#sgd-accepts-nan) | {what['sgd-accepts-nan']} | lax | {HERE} | 2.99.0 | `SGD[forloop]`, `SGD[fused]` |",
    ]
    assert "](" not in versions.markdown(built).replace("[thread](", "")


def test_what_is_new_in_one_subject_and_old_in_another_is_new_there_alone(played):
    played[-1].shows["groups-are-not-validated"] = ["Adam[forloop]", "SGD[forloop]"]
    played[-1].quiet["groups-are-not-validated"] = []
    made = versions.html(faults.build())
    assert cell(made, "Adam[forloop]", "2.99.0")[1] == "Adam[forloop], torch 2.99.0: 1 lax, 1 new"
    assert (
        "NEW" not in re.search(r'<tr><th scope="row">all, each issue once</th>(.*?)</tr>', made)[1].split("</td>")[-2]
    )
