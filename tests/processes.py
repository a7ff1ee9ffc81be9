"""Programs that speak JSON lines, right, wrong and bad, as commands."""

import shlex
import shutil
import sys
import textwrap
from pathlib import Path

EXAMPLES = Path(__file__).parents[1] / "examples" / "processes"
NODE = shutil.which("node")

#: What answers steps, once it has greeted back; ``answer`` is what it does.
_ANSWERING = """\
import json, sys, time
def say(answer): print(json.dumps(answer), flush=True)
def answer(asked, step):
{does}
for line in sys.stdin:
    asked = json.loads(line)
    say({hello}) if "hello" in asked else answer(asked, asked.get("step"))
"""
GREETING = {"options": {"lr": 1e-3, "momentum": 0.0}}
#: A step of SGD without momentum.
SGD = """\
moved = [float(p) - step["options"]["lr"] * float(g) for p, g in zip(step["parameter"], step["gradient"])]
say({"parameter": moved, "state": {}})
"""
#: What a bad one does where it should answer a step, and what is told of it.
BAD = {
    "nonsense": ('print("it is fine", flush=True)', "ClientError: answers 'it is fine', which is no JSON"),
    "a list": ("say([])", "ClientError: answers '[]', which is no JSON object"),
    "nothing": ("say({})", "ClientError: answers no list as parameter, but null"),
    "too many": (
        'say({"parameter": [1.0] * 77})',
        "ClientError: answers 77 numbers as parameter, which has one number",
    ),
    "words": (
        'say({"parameter": ["one"] * len(step["parameter"])})',
        'ClientError: answers "one" as parameter, which is no number',
    ),
    "ragged": (
        'say({"parameter": step["parameter"], "state": {"m": [[1], [1, 2]]}})',
        "ClientError: answers [[1], [1, 2]] as m, which are no numbers, or rows that are not of one length",
    ),
    "deep": (
        'say({"parameter": step["parameter"], "state": {"m": {}}})',
        "ClientError: answers {} as m, which is no number and no list",
    ),
    "dies": ("1 / 0", "ClientError: ends with exit status 1 instead of an answer: ZeroDivisionError: division by zero"),
    "refuses": (
        'say({"error": "no such\\nstep"})',
        "RefusedError: no such step",
    ),
}


def command(file):
    """What starts a file."""
    return shlex.join([NODE if file.suffix == ".mjs" else sys.executable, str(file)])


def written(folder, does, hello=None):
    """The command of a program that does this where it is asked for a step."""
    file = folder / "client.py"
    greeting = GREETING if hello is None else hello
    file.write_text(_ANSWERING.replace("{hello}", repr(greeting)).replace("{does}", textwrap.indent(does, "    ")))
    return command(file)


def changed(folder, name, old, new):
    """The command of an example with something else in it."""
    text = (EXAMPLES / name).read_text()
    assert text.count(old) == 1
    file = folder / name
    file.write_text(text.replace(old, new))
    return command(file)
