"""Tests that need a GPU are skipped where there is none, and say why; of many alike, some run on every commit."""

from collections import Counter

import pytest

from stepcheck.harness.judging.dialects import Dialects
from stepcheck.harness.play.families import no_cuda


@pytest.fixture
def no_dialect(monkeypatch):
    """No wrong class follows another convention: to look for one takes seconds, and ``test_dialects.py`` does."""
    monkeypatch.setattr(Dialects, "found", lambda _: None)


@pytest.hookimpl(tryfirst=True)  # before it is decided which are slow
def pytest_collection_modifyitems(items):
    seen = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None:
            alike = item.nodeid.partition("[")[0]
            if seen[alike] % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            seen[alike] += 1
    marked = [item for item in items if item.get_closest_marker("cuda")]
    why = no_cuda() if marked else ""
    for item in marked if why else ():
        item.add_marker(pytest.mark.skip(reason=why))
