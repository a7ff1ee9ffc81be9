"""An event is added as ``docs/adding.md`` says: in a copy of the checkout, and by nothing but what stands there."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "adding.md").read_text().partition("\n## An event\n")[2].partition("\n## ")[0]
DIFFS = re.findall(r'```diff title="(.+?)"\n(.+?)```', PAGE, re.DOTALL)
ENTRIES = dict(re.findall(r"^\| `(harness/\S+)` \| [^|]+ \| `(.+)` \|$", PAGE, re.MULTILINE))


def tables(root):
    """Where in each file the entries of a table of all events end: line and column of the brace that closes it."""
    found = {}
    for file in sorted((root / "harness").rglob("*.py")):
        text = file.read_text()
        for node in ast.walk(ast.parse(text)) if "of_every_event" in text else ():
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("of_every_event"):
                found[str(file.relative_to(root))] = node.args[0].end_lineno - 1, node.args[0].end_col_offset - 1
    return found


def apply(diff, file):
    """Put in the lines marked +, before or after the others, which stand in the file once."""
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines(keepends=True)
        old = "".join(line[1:] for line in lines if line.startswith(" "))
        text = file.read_text()
        assert text.count(old) == 1, f"{file}: {old!r} stands there {text.count(old)} times"
        file.write_text(text.replace(old, "".join(line[1:] for line in lines)))


def enter(root, name):
    """Put the entry of a table in, as the last, and the import that it needs."""
    file = root / name
    lines = file.read_text().splitlines(keepends=True)
    line, column = tables(root)[name]
    lines[line] = f"{lines[line][:column]}{ENTRIES[name]}\n{lines[line][column:]}"
    text = "".join(lines)
    imported = re.search(r"from stepcheck\.harness\.life\.events import \(\n", text)
    if ENTRIES[name].startswith("Clear"):  # and not events.Clear
        text = f"{text[: imported.end()]}    Clear,\n{text[imported.end() :]}"
    file.write_text(text)


def copied(folder):
    """The checkout as it is."""
    for name in ("stepcheck", "harness", "reference", "fast"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def run(root, script):
    """What a script prints at last, run on the copy."""
    (root / "script.py").write_text(script)
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-B", "-W", "ignore", "script.py"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def added(tmp_path):
    """A checkout with the event, but in no table."""
    root = copied(tmp_path)
    for name, diff in DIFFS:
        apply(diff, root / name)
    return root


def test_the_page_has_an_entry_for_every_table():
    assert set(tables(ROOT)) <= set(ENTRIES), "docs/adding.md has no entry for a table that of_every_event makes"
    assert {name for name, _ in DIFFS} == {"harness/life/events.py", "harness/play/events.py"}


#: What importing each table says, while it alone has no entry.
FORGETTING = """
import importlib, json, pathlib, sys
said = {}
for name, (without, text) in json.loads(pathlib.Path("without.json").read_text()).items():
    file = pathlib.Path(name)
    file.write_text(without)
    for module in [m for m in sys.modules if m.startswith("stepcheck")]:
        del sys.modules[module]
    try:
        importlib.import_module("stepcheck." + name[:-3].replace("/", "."))
    except Exception as error:
        said[name] = f"{type(error).__name__}: {error}"
    file.write_text(text)
print(json.dumps(said))
"""


def test_a_table_that_forgets_it_is_refused_at_import(added):
    without = {name: (added / name).read_text() for name in tables(added)}
    for name in without:
        enter(added, name)
    pairs = {name: (text, (added / name).read_text()) for name, text in without.items()}
    (added / "without.json").write_text(json.dumps(pairs))
    sentence = "TypeError: this table must have one entry for each kind of event in EVENTS: add Clear, remove none"
    assert run(added, FORGETTING) == dict.fromkeys(without, sentence)


PLAYING = """
import json
import torch
from stepcheck import check_optimizer
from stepcheck.harness.life.events import Clear, Group, Parameter
from stepcheck.harness.life.reading import TraceError
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.events import PLAYS

played = []
entry = PLAYS[Clear]
PLAYS[Clear] = entry._replace(play=lambda player, *event: played.append(event[1].times) or entry.play(player, *event))

trace = Trace("SGD", (Parameter((2,)),), (Group((0,)),), (Clear(3),))
written = trace.to_json()["events"]
read = Trace.from_json(trace.to_json()) == trace
broken = trace.to_json()
broken["events"][0]["times"] = 9
try:
    Trace.from_json(broken)
    refused = ""
except TraceError as error:
    refused = str(error)
report = check_optimizer(torch.optim.SGD, like="SGD", examples=30)
print(json.dumps([written, read, refused, [d.summary for d in report.divergences], sorted(set(played))]))
"""


def test_with_all_tables_it_is_drawn_written_and_played(added):
    for name in tables(added):
        enter(added, name)
    written, read, refused, divergences, played = run(added, PLAYING)
    assert written == [{"event": "clear", "times": 3}]
    assert read
    assert refused == "events[0].times: must be an integer from 1 to 8, got '9'"
    assert not divergences
    assert played == [2]
