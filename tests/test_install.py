"""What is installed: facts that stand twice are equal, and the commands that a reader types are those that CI resolves."""

import ast
import importlib.util
import os
import re
import sys
import tomllib
from pathlib import Path

import pytest

import stepcheck

ROOT = Path(__file__).parents[1]


def project(folder):
    return tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]


WHOLE, FAST = project(ROOT), project(ROOT / "fast")


@pytest.fixture(scope="module")
def resolve():
    spec = importlib.util.spec_from_file_location("resolve", ROOT / ".ci" / "resolve.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fast_alone_is_the_same_release_under_the_same_terms():
    assert FAST["version"] == stepcheck.__version__
    assert all(FAST[key] == WHOLE[key] for key in ("license", "requires-python"))
    assert (ROOT / "fast" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


def test_every_folder_with_modules_is_installed():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {f.parent for top in ("reference", "fast", "harness") for f in (ROOT / top).rglob("*.py")}
    assert set(packages) == {"stepcheck", *("stepcheck." + ".".join(f.relative_to(ROOT).parts) for f in folders)}
    # From a checkout, without an installation, what runs is what is edited.
    for top in ("reference", "fast", "harness"):
        assert (ROOT / "stepcheck" / top).resolve() == ROOT / top


def test_fast_alone_needs_what_its_folder_imports_with_the_bounds_of_the_whole():
    assert set(FAST["dependencies"]) <= set(WHOLE["dependencies"])
    trees = [ast.parse(file.read_text(encoding="utf-8")) for file in (ROOT / "fast").glob("**/*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"stepcheck"}
    # Triton comes with torch.
    assert imported == {re.match(r"\w+", d)[0] for d in FAST["dependencies"]} | {"triton"}


def test_nobody_is_made_to_change_torch_or_to_install_triton():
    (torch,) = (d for d in WHOLE["dependencies"] if d.startswith("torch"))
    assert "<" not in torch
    assert "==" not in torch
    assert not [d for d in WHOLE["dependencies"] if d.startswith("triton")]
    assert not re.search(r"^triton\b", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)


def test_commands_are_read_as_a_reader_types_them(resolve):
    text = "```sh\npip install -c constraints.txt . && stepcheck check torch\n```\n\nor `pip install ./fast`, alone."
    assert resolve.commands(text) == [["-c", "constraints.txt", "."], ["./fast"]]
    with pytest.raises(resolve.UnresolvableError, match="no `pip install`"):
        resolve.commands("nothing to install")


def test_the_commands_of_the_readme_are_those_that_are_resolved(resolve):
    found = resolve.commands((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found == [["."], ["-c", "constraints.txt", "nox"], ["./fast"]]


def test_the_readme_names_the_pythons_that_are_resolved(resolve):
    first, *_, last = resolve.supported()
    assert f"Python {first} to {last}." in (ROOT / "README.md").read_text(encoding="utf-8")


def test_nothing_local_is_looked_at(resolve, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "/wheels")
    monkeypatch.setenv("UV_FIND_LINKS", "/wheels")
    monkeypatch.setenv("SSL_CERT_FILE", "/certificates")
    clean = resolve.environment()
    assert "/wheels" not in clean.values()
    assert clean["PIP_CONFIG_FILE"] == os.devnull
    assert clean["SSL_CERT_FILE"] == "/certificates"


def test_what_cannot_be_resolved_is_told_and_fails(resolve, monkeypatch, capsys):
    def by_uv(platform, python, given):
        if python == "3.12" and given == resolve.PINNED:
            raise resolve.UnresolvableError("because triton==3.9.0 and torch==2.13.0 need different ones")
        return {"torch": "2.13.0", "llvmlite": "0.50.0", "numpy": "2.4.6"}

    monkeypatch.setattr(resolve, "by_uv", by_uv)
    monkeypatch.setattr(resolve, "by_pip", lambda python, arguments: {"nox": "1"})
    monkeypatch.setattr(resolve, "_interpreter", lambda python: "")
    assert resolve.main() == 1
    told = capsys.readouterr().out
    assert told.count("FAILS\nbecause triton==3.9.0") == len(resolve.PLATFORMS)
    assert "torch 2.13.0, llvmlite 0.50.0" in told
    monkeypatch.setattr(resolve, "by_uv", lambda platform, python, given: {"torch": "2.13.0"})
    assert resolve.main() == 0
