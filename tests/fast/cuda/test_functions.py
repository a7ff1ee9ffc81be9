"""The text of a kernel: constants where their names stood, words of records, and of the functions of a module those that are called."""

import sys
from types import ModuleType

import pytest

from stepcheck.fast.cuda.functions import specialized
from stepcheck.fast.records import Record

SOURCE = '''
STEP = 3

class Row(Record, words="first count"):
    """A row."""

def last(row: Row):
    return row.first + row.count * STEP

def kernel(rows: Row, out):
    row, other = rows[program() + 1], out
    if MASKED:
        tl.store(out + Row.count, last(row), mask=inside)
    else:
        unused(row)
    x = row.count if MASKED else row.missing

def unused(row):
    return row
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    path = tmp_path / "stepcheck_some_kernels.py"
    path.write_text(f"from stepcheck.fast.records import Record\n{SOURCE}")
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__(path.stem)
    del sys.modules[path.stem]


def test_constants_and_words_stand_in_the_text_and_what_is_decided_against_does_not(module: ModuleType):
    assert specialized(module, "kernel", {"MASKED": True}) == (
        "def kernel(rows, out):\n"
        "    row, other = (rows + (program() + 1) * 2, out)\n"
        "    tl.store(out + 1, last(row), mask=inside)\n"
        "    x = tl.load(row + 1)\n"
        "\n"
        "def last(row):\n"
        "    return tl.load(row + 0) + tl.load(row + 1) * 3"
    )


def test_a_constant_may_be_an_expression_or_a_record(module: ModuleType):
    class Longer(Record, words="before first count"):
        """One with another word."""

    text = specialized(module, "last", {"STEP": "tl.float16", "Row": Longer})
    assert text.endswith("return tl.load(row + 1) + tl.load(row + 2) * tl.float16")


def test_a_word_that_a_record_lacks_is_an_error(module: ModuleType):
    with pytest.raises(AttributeError, match="missing"):
        specialized(module, "kernel", {"MASKED": False})
