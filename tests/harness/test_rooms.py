"""The harness is a pipeline of rooms: no arrow runs back."""

import ast
from pathlib import Path

import pytest

import stepcheck.harness

HARNESS = Path(stepcheck.harness.__file__).parent
#: Each may import those before it.
PIPELINE = (
    "support",
    "numbers",
    "life",
    "play",
    "judging",
    "checking",
    "record",
    "known",
    "telling",
    "watch",
    "search",
    "readers",
)
#: What measures stands apart: the pipeline imports none of it.
MEASURING = (
    "bench",
    "census",
    "certificate",
    "cuda_session",
    "matrix",
    "page",
    "power",
    "versions.json",
    "versions.py",
    "zoo",
)
#: The budgets of kernels for CUDA come from what the census counts in them, and are asked for when such a kernel is judged.
LATE = {("play/profiles.py", "census")}


def imports(file):
    """The rooms of the harness that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("stepcheck.harness"):
            inside = node.module.removeprefix("stepcheck.harness").strip(".")
            yield from [inside.partition(".")[0]] if inside else [alias.name for alias in node.names]


def test_every_room_has_its_place():
    rooms = {p.name for p in HARNESS.iterdir() if p.name not in ("__init__.py", "__pycache__")}
    assert rooms == {*PIPELINE, *MEASURING}


@pytest.mark.parametrize("room", PIPELINE)
def test_no_arrow_runs_back(room):
    before = {*PIPELINE[: PIPELINE.index(room) + 1]}
    found = {(str(f.relative_to(HARNESS)), to) for f in (HARNESS / room).rglob("*.py") for to in imports(f)}
    assert {(f, to) for f, to in found if to not in before} <= LATE


@pytest.mark.parametrize("room", PIPELINE)
def test_a_room_says_what_it_is_for(room):
    assert ast.get_docstring(ast.parse((HARNESS / room / "__init__.py").read_text()))
