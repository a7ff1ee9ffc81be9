"""All is computed in float64, so that nothing but a few roundings of it can set two right classes apart; what was found is told as a table."""

import os
from pathlib import Path

import pytest
import torch
from newton_schulz import iterate_in_float64

pytest.register_assert_rewrite("programs.side_by_side")
from programs import side_by_side  # noqa: E402 - it asserts for the tests


@pytest.fixture(autouse=True)
def _float64(monkeypatch):
    """The numbers in a state, of which NAdam and ASGD multiply some, have the default dtype; torch's Muon has bfloat16 inside."""
    torch.set_default_dtype(torch.float64)
    iterate_in_float64(monkeypatch)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """More of them would wait for each other at tensors this small."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter):
    """The largest difference of each program; into the file that ``STEPCHECK_PROGRAMS_REPORT`` names, if it does."""
    if not side_by_side.RECORD.largest:
        return
    table = side_by_side.RECORD.table()
    terminalreporter.section("real programs")
    terminalreporter.write_line(table)
    if path := os.environ.get("STEPCHECK_PROGRAMS_REPORT"):
        Path(path).write_text(f"{table}\n", encoding="utf-8")
