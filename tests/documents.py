"""The examples of a page of the documentation, run as a reader would run them.

Of the fenced blocks of a page, in their order, in an empty folder of the page's own:

- ``python`` with a ``title`` is written to the file of that name, as is any other block with one; without, it is run in the page's namespace. A line
  between two of ``--8<--`` stands for the file of the repository that it names, as in the site;
- ``pycon`` is run there too, and what it prints compared;
- ``console`` has commands after ``$``, run in that folder, and below each what it prints, compared where it is shown; ``...`` stands for anything.
  A command must exit with 0, unless ``$ echo $?`` follows it.

``<!-- slow -->`` before a block leaves it to the slow tests, ``<!-- not run: why -->`` to nobody.
"""

from __future__ import annotations

import doctest
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sybil import Document, Example, Region
from sybil.evaluators.doctest import DocTestEvaluator
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.abstract.doctest import DocTestStringParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

RUNS = ("python", "pycon", "console")
_FENCES = RawFencedCodeBlockLexer(re.compile(r"(?P<language>\w+)(?P<attributes>[^\n]*)\n"))
_MARK = re.compile(r"<!-- (?P<kind>slow|not run)(?:: (?P<why>[^\n]*?))? -->[ \t]*\n[ \t]*\Z")
_TITLE = re.compile(r'title="(?P<name>[^"]*)"')
_SNIPPET = re.compile(r"^--8<--\n(.+)\n--8<--\n", re.MULTILINE)
_ROOT = Path(__file__).parents[1]
_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_SECONDS = 120
# A server that has imported once what commands import, and forks for each: an import takes as long as a short check. torch's compiler is among it,
# which comes with the first optimizer.
_FORKS = multiprocessing.get_context("forkserver")
_OURS = ("cli", "harness.search.workers", "harness.search.drawing", "harness.readers.terminal")
_FORKS.set_forkserver_preload(["torch._dynamo", *(f"stepcheck.{name}" for name in _OURS)])


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        title: the name of the file that it is, if any.
        mark: ``slow``, ``not run`` or nothing.
        why: of what is not run, the reason.
    """

    language: str
    source: Any  # a str that knows its line
    title: str
    mark: str
    why: str

    @property
    def runs(self) -> bool:
        """Whether there is anything to run or to write, and nobody says not to."""
        return self.mark != "not run" and (bool(self.title) or self.language in RUNS)


def page(path: Path) -> Document:
    """A page, its examples the fenced blocks."""
    return Document.parse(str(path), _blocks)


def run(document: Document, folder: Path, *, slow: bool) -> None:
    """Run the examples in ``folder``, where the working directory must be.

    Args:
        slow: also those that are marked so.

    Raises:
        AssertionError: an example does not do what the page says.
    """
    document.namespace["__name__"] = "__page__"
    for example in document.examples():
        block: Block = example.parsed
        if block.runs and (slow or block.mark != "slow"):
            _evaluate(example, block, folder)


def _blocks(document: Document) -> Iterator[Region]:
    for region in _FENCES(document):
        of = region.lexemes
        mark, title = _MARK.search(document.text[: region.start]), _TITLE.search(of["attributes"])
        block = Block(
            of["language"],
            of["source"],
            title["name"] if title else "",
            mark["kind"] if mark else "",
            (mark["why"] or "") if mark else "",
        )
        yield Region(region.start, region.end, block)


def _evaluate(example: Example, block: Block, folder: Path) -> None:
    if block.title:
        file = folder / block.title
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(_SNIPPET.sub(_included, block.source), encoding="utf-8")
    elif block.language == "python":
        example.parsed = block.source
        PythonEvaluator()(example)
    elif block.language == "pycon":
        for region in DocTestStringParser()(block.source, example.path):
            told = DocTestEvaluator(_FLAGS)(Example(example.document, example.line, 0, region, example.namespace))
            assert not told, told
    else:
        _session(block.source, f"{example.path}:{example.line}", folder)


def _included(snippet: re.Match[str]) -> str:
    return (_ROOT / snippet[1]).read_text(encoding="utf-8")


def _session(text: str, where: str, folder: Path) -> None:
    """Commands, each with what it prints."""
    status = 0
    before, *steps = re.split(r"^\$ ", text, flags=re.MULTILINE)
    assert not before.strip(), f"{where}: a console block begins with a command, after $"
    commands = [step.partition("\n")[::2] for step in steps]
    for n, (command, shown) in enumerate(commands):
        if command == "echo $?":
            got = f"{status}\n"
        else:
            status, got = _command(command, folder)
            asked = n + 1 < len(commands) and commands[n + 1][0] == "echo $?"
            assert asked or status == 0, f"{where}: `{command}` exits with {status}:\n{got}"
        plain = "".join(line.rstrip() + "\n" for line in got.splitlines())
        told = doctest.OutputChecker().check_output(shown, plain, _FLAGS) or not shown.strip()
        assert told, f"{where}: `{command}` prints\n{plain}\nand not\n{shown}"


def _command(command: str, folder: Path) -> tuple[int, str]:
    """Exit status, and standard output and error in one."""
    words = shlex.split(command)
    if words[0] in ("stepcheck", "python") and words[1:2] != ["-m"] and not re.search(r"[|<>;&$]", command):
        file = folder.parent / f"{folder.name}.output"
        process = _FORKS.Process(target=_forked, args=(words, folder, file))
        process.start()
        process.join(_SECONDS)
        assert process.exitcode is not None, f"`{command}` takes more than {_SECONDS} s"
        return process.exitcode, file.read_text(encoding="utf-8")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    theirs = {k: v for k, v in os.environ.items() if k != "PYTEST_ADDOPTS"}  # which is for the tests of this
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env={**theirs, "PATH": path},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_SECONDS,
        check=False,
    )
    return done.returncode, done.stdout


def _forked(words: list[str], folder: Path, file: Path) -> None:
    os.chdir(folder)
    os.environ["PATH"] = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # where a command names python
    )
    descriptor = os.open(file, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(n, "w", buffering=1, encoding="utf-8") for n in (1, 2))
    sys.argv = words if words[0] == "stepcheck" else words[1:]
    if words[0] == "stepcheck":
        from stepcheck.cli import main

        main()
    sys.path.insert(0, "")
    try:
        runpy.run_path(words[1], run_name="__main__")
    except Exception:  # noqa: BLE001 - as the interpreter shows it, without what multiprocessing adds
        traceback.print_exc()
        sys.exit(1)
