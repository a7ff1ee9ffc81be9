"""Tests that need a GPU are skipped where there is none, and say why."""

import pytest

from stepcheck.harness.subjects import no_cuda


def pytest_collection_modifyitems(items):
    marked = [item for item in items if item.get_closest_marker("cuda")]
    why = no_cuda() if marked else ""
    for item in marked if why else ():
        item.add_marker(pytest.mark.skip(reason=why))
