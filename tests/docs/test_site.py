"""The documentation as a site: it builds without a warning, needs no network, and is whole."""

import re
from html.parser import HTMLParser
from pathlib import Path

ROOT = Path(__file__).parents[2]
#: What a browser loads by itself, by the element that says so.
LOADED = {
    "audio": "src", "embed": "src", "iframe": "src", "img": "src", "link": "href", "script": "src", "source": "src", "video": "src",
}  # fmt: skip


class Loads(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        # A canonical address, or the way to another page, is not loaded.
        if tag in LOADED and given.get("rel") not in ("canonical", "next", "prev"):
            self.found.append(given.get(LOADED[tag]) or "")


def test_each_page_loads_local_files_alone_and_they_are_there(site):
    pages = list(site.rglob("*.html"))
    assert {p.stem for p in pages} >= {p.stem for p in (ROOT / "docs").glob("*.md")}
    for page in pages:
        reader = Loads()
        reader.feed(page.read_text(encoding="utf-8"))
        for address in filter(None, reader.found):
            assert not re.match(r"[a-z]+:|//", address) or address.startswith("data:"), (page, address)
            # The page of an error is made for a server's root.
            assert page.name == "404.html" or address.startswith("data:") or (page.parent / address).exists(), address


def test_style_sheets_load_nothing_from_elsewhere(site):
    for sheet in site.rglob("*.css"):
        addresses = re.findall(r"(?:url\(|@import)\s*[\"']?(https?:)?//", sheet.read_text(encoding="utf-8"))
        assert not addresses, sheet


def test_facts_and_files_are_filled_in(site):
    for page in site.glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r"\[\[ |\[% |--8", text), page
    assert "actions/checkout" in (site / "ci.html").read_text(encoding="utf-8")
