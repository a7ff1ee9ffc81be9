"""The documentation in a real browser, opened from disk."""

import shutil

import pytest

pytestmark = pytest.mark.browser
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: nox -s browser does")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed: nox -s browser does")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: What is the theme's own: its search dialog has no name, its buttons to copy have all the same one, and wide tables scroll by the pointer.
OF_THE_THEME = {"aria-dialog-name", "landmark-unique", "scrollable-region-focusable"}


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.fail("no Chromium: apt-get install chromium")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(params=["light", "dark"])
def tab(browser, request):
    """A tab, and what it asked of the network or complained of."""
    context = browser.new_context(viewport={"width": 390, "height": 800}, color_scheme=request.param)
    tab, bad = context.new_page(), []
    tab.on("request", lambda r: None if r.url.startswith(("file:", "data:", "blob:")) else bad.append(r.url))
    tab.on("pageerror", lambda e: bad.append(str(e)))
    tab.on("console", lambda m: bad.append(m.text) if m.type == "error" else None)
    yield tab, bad
    context.close()


def test_pages_open_from_disk_ask_nothing_of_the_network_and_fit_a_phone(site, tab):
    page, bad = tab
    for file in sorted(site.glob("*.html")):
        if file.name == "404.html":
            continue  # it is made for a server's root
        page.goto(file.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), file.name
    assert not bad


def test_search_finds_from_disk(site, tab):
    page, _ = tab
    page.set_viewport_size({"width": 1300, "height": 800})
    page.goto((site / "index.html").as_uri())
    page.fill(".md-search__input", "undetermined")
    page.wait_for_function("/^[1-9]/.test(document.querySelector('.md-search-result__meta').innerText)")
    page.locator(".md-search-result__link", has_text="Glossary").first.click()
    page.wait_for_url("**/glossary.html*")


def test_everybody_can_read_it(site, tab):
    page, _ = tab
    for name in ("index", "check", "tolerance", "checks", "power", "ci"):
        page.goto((site / f"{name}.html").as_uri())
        found = axe.Axe().run(page).response["violations"]
        assert not {v["id"]: [n["html"] for n in v["nodes"]] for v in found if v["id"] not in OF_THE_THEME}, name
