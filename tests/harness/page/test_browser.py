"""The page in a real browser: it opens, filters, follows links, can be read by everyone, and asks nothing of the network."""

import re
import shutil
import subprocess
import sys

import pytest
from recorded import WRONG, run

from stepcheck.harness.known import evidence
from stepcheck.harness.page import faults, model, page, versions
from stepcheck.harness.page.compare import compare
from stepcheck.harness.page.figures import figures

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: nox -s browser does")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: nox -s browser does")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDE, NARROW = {"width": 1280, "height": 800}, {"width": 390, "height": 844}
RIGHT_LINK, WRONG_LINK = "#/torch/Adam/forloop", "#/stepcheck.harness.zoo.adam/EpsInsideRoot"


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("there is no Chromium here: apt-get install chromium")
    with playwright.sync_playwright() as p:
        launched = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # CI runs as root
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def file(whole, campaigned, documents, tmp_path_factory):
    """The page of a whole report, with a comparison and a banner."""
    runs = [run(*campaigned, problems=["line 9: is cut short"]), *documents]
    report = model.build(runs)
    report.figures = figures(report, runs)
    report.comparison = compare(report, model.build([run(campaigned[0], name="before")]).to_json(), "before.json")
    path = tmp_path_factory.mktemp("page") / "index.html"
    path.write_text(page.html(report), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def large_file(large, tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "index.html"
    path.write_text(page.html(large), encoding="utf-8")
    return path


class Tab:
    """A page with what it complained about and asked for."""

    def __init__(self, browser, size=WIDE, scheme="light"):
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page = self.context.new_page()
        self.complaints, self.requests = [], []
        self.page.on("console", lambda m: self.complaints.append(m.text))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on("request", lambda r: self.requests.append(r.url))

    def open(self, file, link=""):
        self.page.goto(f"{file.as_uri()}{link}")
        return self.page


@pytest.fixture
def tab(browser):
    opened = Tab(browser)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert [u for u in opened.requests if not u.startswith(("file:", "data:"))] == []


def visible(opened):
    return opened.locator(".matrix a:visible").count()


def test_it_opens_with_verdict_matrix_and_environment(tab, file, whole):
    opened = tab.open(file)
    assert opened.title() == "stepcheck: fail"
    for told in ("✕ fail", "planned", "unsupported", "worst r", "seed 7", "torch 2.13.0", "line 9: is cut short"):
        assert opened.get_by_text(told).first.is_visible(), told
    assert visible(opened) == len(whole.cells)
    assert opened.locator("#cell").is_hidden()
    assert opened.locator(".matrix").bounding_box()["y"] < 800


def test_a_cell_opens_and_the_back_button_closes_it(tab, file):
    opened = tab.open(file)
    opened.get_by_role("link", name=re.compile(r"torch:Adam\[forloop\]: known")).click()
    assert opened.url.endswith(RIGHT_LINK)
    heading = opened.get_by_role("heading", name="torch:Adam[forloop]")
    assert heading.is_visible()
    assert heading.evaluate("e => e === document.activeElement")
    assert opened.get_by_role("table", name="").first.is_visible()
    opened.locator(".steps a").last.click()
    assert opened.locator("#cell").is_hidden()
    opened.go_back()
    assert heading.is_visible()
    opened.go_back()
    assert opened.locator("#cell").is_hidden()


def test_a_deep_link_opens_its_cell_with_its_filters(tab, file, campaigned):
    dtype = campaigned[1].divergences[0].trace.parameters[0].dtype
    opened = tab.open(file, f"{WRONG_LINK}?dtype={dtype}")
    assert opened.get_by_role("heading", name=WRONG).is_visible()
    assert opened.locator("#filters").get_by_label("dtype").input_value() == dtype
    assert opened.get_by_text("✕ new").first.is_visible()


@pytest.mark.parametrize("link", ["#/nobody/Adam", "#/%E0%A4%A", "#/torch/Adam/forloop/more?dtype=none"])
def test_a_link_to_nothing_says_so_or_does_nothing(tab, file, link):
    opened = tab.open(file, link)
    assert visible(opened) == 2
    assert opened.locator("#cell h2").count() == 0


def test_filters_hide_what_does_not_match_and_stand_in_the_address(tab, file):
    opened = tab.open(file)
    opened.locator("#filters").get_by_label("verdict").select_option("fail")
    assert visible(opened) == 1
    assert opened.url.endswith("#/?verdict=fail")
    assert opened.locator("#shown").inner_text() == "1 of 2 subjects"
    assert opened.locator(".matrix thead th:visible").count() == 2
    opened.locator("#filters").get_by_label("verdict").select_option("known")
    assert opened.locator(".matrix a:visible").get_attribute("href") == RIGHT_LINK
    opened.locator("#filters").get_by_label("feature").select_option("reload")
    assert "feature=reload" in opened.url
    opened.get_by_role("button", name="Clear").click()
    opened.wait_for_function("location.hash === '#/'")
    assert visible(opened) == 2
    opened.locator("#filters").get_by_label("optimizer").select_option("Adam")
    opened.locator(".matrix a:visible").first.click()
    assert opened.url.endswith("?optimizer=Adam")


def test_a_script_that_is_copied_runs_and_fails_as_told(tab, file, campaigned, tmp_path):
    opened = tab.open(file, WRONG_LINK)
    opened.get_by_role("button", name="Copy script").first.click()
    opened.get_by_role("button", name="Copied").wait_for()
    script = opened.evaluate("navigator.clipboard.readText()")
    assert script == campaigned[1].divergences[0].script
    (tmp_path / "script.py").write_text(script)
    ran = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "AssertionError" in ran.stderr


def test_a_replay_command_is_copied(tab, file, campaigned):
    opened = tab.open(file, WRONG_LINK)
    opened.locator(".case[open] .line button").first.click()
    opened.get_by_role("button", name="Copied").first.wait_for()
    assert opened.evaluate("navigator.clipboard.readText()") == f"stepcheck replay {campaigned[1].divergences[0].id}"


def test_every_number_tells_where_it_comes_from(tab, file):
    opened = tab.open(file, WRONG_LINK)
    numbers = opened.locator("button.n:visible")
    assert numbers.count() > 100
    untold = opened.evaluate(
        "[...document.querySelectorAll('button.n')].filter(e => { show(e, true); return !/stepcheck .*seed 7.*defined in .*py/s.test(source.textContent); }).map(e => e.outerHTML)"
    )
    assert untold == []
    opened.keyboard.press("Escape")
    assert opened.locator("#source").is_hidden()
    numbers.first.hover()
    opened.locator("#source:visible").wait_for()
    assert "stepcheck check torch --seed 7" in opened.locator("#source").inner_text()
    opened.locator("#plot-ulps use").first.click(force=True)
    assert " ulps in " in opened.locator("#source").inner_text()


def test_the_matrix_is_one_stop_for_the_tab_key_and_arrows_move_in_it(tab, file):
    opened = tab.open(file)
    first = opened.locator(".matrix a").first
    assert opened.locator(".matrix a[tabindex='0']").count() == 1
    first.focus()
    opened.keyboard.press("ArrowRight")
    second = opened.locator(".matrix a").last
    assert second.evaluate("e => e === document.activeElement")
    assert opened.locator(".matrix a[tabindex='0']").count() == 1
    opened.keyboard.press("Enter")
    assert opened.get_by_role("heading", name=WRONG).is_visible()


def test_the_theme_follows_the_system_until_it_is_chosen(browser, file):
    dark = Tab(browser, scheme="dark")
    opened = dark.open(file)
    paper = "getComputedStyle(document.body).backgroundColor"
    before = opened.evaluate(paper)
    button = opened.get_by_role("button", name="Theme")
    button.click()
    assert button.inner_text() == "Theme: light"
    assert opened.evaluate(paper) == "rgb(255, 255, 255)" != before
    button.click()
    assert opened.evaluate(paper) == before
    dark.context.close()


def test_tables_behind_plots_open(tab, file, whole):
    opened = tab.open(file)
    opened.locator("#plot-ulps summary").click()
    rows = next(f.rows for f in whole.figures if f.name == "ulps")
    assert opened.locator("#plot-ulps tbody tr").count() == len(rows)
    opened.locator("#plot-ulps td.r > span").first.click()
    assert "Largest known errors: " in opened.locator("#source").inner_text()
    assert "stepcheck certificate" in opened.locator("#source").inner_text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("link", ["", RIGHT_LINK, WRONG_LINK], ids=["matrix", "right", "wrong"])
def test_axe_finds_nothing(browser, file, scheme, size, link):
    shown = Tab(browser, size, scheme)
    opened = shown.open(file, link)
    for summary in opened.locator("details:not([open]) > summary").all()[:40]:
        if summary.is_visible():
            summary.click()
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
    opened.locator("button.n").first.click()
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
    shown.context.close()
    assert shown.complaints == []


@pytest.mark.parametrize("link", ["", RIGHT_LINK, WRONG_LINK])
def test_a_phone_does_not_scroll_sideways(browser, file, link):
    phone = Tab(browser, {"width": 360, "height": 740})
    opened = phone.open(file, link)
    for summary in opened.locator("details:not([open]) > summary").all()[:40]:
        if summary.is_visible():
            summary.click()
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    assert opened.evaluate("document.body.scrollWidth") <= 360
    phone.context.close()


def test_a_hundred_thousand_checks_open_in_under_a_second(browser, large_file):
    took = []
    for _ in range(5):  # the machine has other things to do
        shown = Tab(browser)
        opened = shown.open(large_file)
        took.append(opened.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
        assert opened.locator(".matrix a").count() > 4000
        shown.context.close()
    assert min(took) < 1000, took


def test_a_cell_among_many_opens_at_once(browser, large_file):
    shown = Tab(browser)
    opened = shown.open(large_file)
    began = opened.evaluate("performance.now()")
    opened.evaluate("location.hash = '#/package200.module/Optimizer3'")
    opened.get_by_role("heading", name="package200.module:Optimizer3").wait_for()
    assert opened.evaluate("performance.now()") - began < 1000
    shown.context.close()


# --- The page of versions

FUSED_LINK, FAULT_LINK = f"#SGD-fused.{evidence.installed()}", "#fused-sgd-never-stores-narrow-vectors"


@pytest.fixture
def versions_file(played, tmp_path):
    path = tmp_path / "versions.html"
    path.write_text(versions.html(faults.build()), encoding="utf-8")
    return path


def lists(opened):
    return opened.locator(".subject:visible h2").all_inner_texts()


def test_a_cell_of_a_version_opens_its_list_and_the_back_button_closes_it(tab, versions_file):
    opened = tab.open(versions_file)
    assert lists(opened) == []
    opened.get_by_role(
        "link", name=re.compile(rf"SGD\[fused\], torch {re.escape(evidence.installed())}: 1 wrong")
    ).click()
    assert opened.url.endswith(FUSED_LINK)
    assert lists(opened) == ["SGD[fused]"]
    section = opened.locator(".subject:visible")
    assert section.bounding_box()["y"] < 800
    assert section.locator("tbody th").all_inner_texts() == ["fused-sgd-never-stores-narrow-vectors", "sgd-accepts-nan"]
    section.get_by_role("link", name="fused-sgd-never-stores-narrow-vectors").click()
    assert opened.url.endswith(FAULT_LINK)
    opened.go_back()
    opened.go_back()
    assert lists(opened) == []


def test_the_column_that_was_chosen_stands_out_and_what_it_does_not_show_fades(tab, versions_file):
    opened = tab.open(versions_file, "#SGD-fused.2.99.0")
    colour = "e => getComputedStyle(e).color"
    first, last = (row.locator("th").evaluate(colour) for row in opened.locator(".subject:visible tbody tr").all())
    assert first != last  # what the one before fixed is none of its own
    backgrounds = [
        c.evaluate("e => getComputedStyle(e).backgroundColor")
        for c in opened.locator(".subject:visible tbody tr").last.locator("td").all()
    ]
    assert backgrounds[:-1] == [backgrounds[0]] * (len(backgrounds) - 1)
    assert backgrounds[-1] != backgrounds[0]


def test_the_page_of_versions_works_without_javascript(browser, versions_file):
    context = browser.new_context(viewport=WIDE, java_script_enabled=False)
    opened = context.new_page()
    opened.goto(versions_file.as_uri())
    assert opened.locator("#theme").is_hidden()
    opened.locator(f'a[href="{FUSED_LINK}"]').click()
    assert lists(opened) == ["SGD[fused]"]
    opened.locator(f'.subject a[href="{FAULT_LINK}"]').click()
    script = opened.locator(f'article[aria-labelledby="{FAULT_LINK[1:]}"] details')
    script.locator("summary").click()
    assert "import torch" in script.locator("pre").inner_text()
    context.close()


def test_a_script_of_an_issue_is_copied_and_the_matrix_is_one_stop(tab, versions_file):
    opened = tab.open(versions_file)
    assert opened.locator(".versions a[tabindex='0']").count() == 1
    article = opened.locator(f'article[aria-labelledby="{FAULT_LINK[1:]}"]')
    article.get_by_role("button", name="Copy").first.click()
    article.get_by_role("button", name="Copied").wait_for()
    assert opened.evaluate("navigator.clipboard.readText()") == f"stepcheck replay {FAULT_LINK[1:]}"
    article.locator("summary").click()
    article.get_by_role("button", name="Copy script").click()
    article.get_by_role("button", name="Copied").last.wait_for()
    assert opened.evaluate("navigator.clipboard.readText()") == article.locator("pre").text_content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
@pytest.mark.parametrize("link", ["", FUSED_LINK, "#SGD-fused.2.98.0"])
def test_axe_finds_nothing_on_the_page_of_versions(browser, versions_file, scheme, size, link):
    shown = Tab(browser, size, scheme)
    opened = shown.open(versions_file, link)
    opened.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    found = axe.Axe().run(opened)
    assert found.violations_count == 0, found.generate_report()
    shown.context.close()
    assert shown.complaints == []


@pytest.mark.parametrize("link", ["", FUSED_LINK, FAULT_LINK])
def test_a_phone_does_not_scroll_the_page_of_versions_sideways(browser, versions_file, link):
    phone = Tab(browser, {"width": 360, "height": 740})
    opened = phone.open(versions_file, link)
    assert opened.evaluate("document.documentElement.scrollWidth") <= 360
    phone.context.close()
