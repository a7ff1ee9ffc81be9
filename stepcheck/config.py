"""``[tool.stepcheck]`` of a project's ``pyproject.toml``: what ``stepcheck check`` is asked where nothing is said."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stepcheck import library
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.families import FAMILIES, label, resolve
from stepcheck.harness.play.subjects import Subject, asked_for, taking
from stepcheck.harness.search.expected import expecting
from stepcheck.harness.support.usage import UsageError

FILE = "pyproject.toml"


@dataclass(frozen=True)
class Declared:
    """What the table of one subject says.

    Attributes:
        declaration: its reference, names and arithmetic.
        sparse: sparse gradients are asked for.
        tensor_lr: learning rates that are tensors are asked for.
        expected: checks that it is expected to fail, each with the reason.
        dtypes: those of parameters that it takes; empty where nothing is said.
    """

    declaration: Declaration
    sparse: bool = False
    tensor_lr: bool = False
    expected: Mapping[str, str] = field(default_factory=dict)
    dtypes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Config:
    """The whole table.

    Attributes:
        file: where it stands; none where there is no such table.
        subjects: by their names, ``module:Class`` or ``process:COMMAND``; with a ``[label]`` where one is declared more than once.
        examples: traces for each subject, where the command does not say.
        pythonpath: folders in which modules are looked for.
    """

    file: Path | None = None
    subjects: Mapping[str, Declared] = field(default_factory=dict)
    examples: int | None = None
    pythonpath: tuple[Path, ...] = ()


def read(start: Path | None = None) -> Config:
    """The table of the nearest ``pyproject.toml`` from ``start`` (default: where one stands) upward that has one.

    Raises:
        UsageError: it cannot be read, or says something that it cannot.
    """
    begin = (start or Path.cwd()).resolve()
    for folder in (begin, *begin.parents):
        file = folder / FILE
        if file.is_file():
            table = _table(file)
            if table is not None:
                return _config(file, table)
    return Config()


def look_there(config: Config) -> None:
    """Let modules be found in the folders that the table names."""
    for folder in reversed(config.pythonpath):
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))


def _table(file: Path) -> Any:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8")).get("tool", {}).get("stepcheck")
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError) as error:
        raise UsageError(f"{file}: cannot be read ({error})") from None


class _Reader:
    """One table, whose entries are asked for by name and kind; what is left over is an unknown key."""

    def __init__(self, where: str, table: Any) -> None:
        if not isinstance(table, dict):
            raise UsageError(f"{where}: must be a table, got {table!r}")
        self.where, self.table, self.asked = where, table, []  # type: ignore[var-annotated]

    def take(self, name: str, kind: type | tuple[type, ...], words: str, default: Any) -> Any:
        self.asked.append(name)
        value = self.table.get(name, default)
        flag_for_number = isinstance(value, bool) and kind is int
        if name in self.table and (not isinstance(value, kind) or flag_for_number):
            raise UsageError(f"{self.where}: {name} must be {words}, got {value!r}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A text, or a list of them."""
        value = self.take(name, (str, list), "a text or a list of texts", [])
        several = [value] if isinstance(value, str) else value
        if not all(isinstance(entry, str) for entry in several):
            raise UsageError(f"{self.where}: {name} must be a text or a list of texts, got {value!r}")
        return tuple(several)

    def done(self) -> None:
        unknown = [name for name in self.table if name not in self.asked]
        if unknown:
            raise UsageError(f"{self.where}: no key {unknown[0]!r}; there is {', '.join(self.asked)}")


def _config(file: Path, table: Any) -> Config:
    reader = _Reader(f"{file} [tool.stepcheck]", table)
    subjects = reader.take("subjects", dict, "a table of subjects", {})
    examples = reader.take("examples", int, "a whole number", None)
    if examples is not None and examples < 1:
        raise UsageError(f"{reader.where}: examples must be at least 1, got {examples}")
    folders = tuple(file.parent / entry for entry in reader.texts("pythonpath"))
    reader.done()
    declared = {
        name: _declared(f'{file} [tool.stepcheck.subjects."{name}"]', entry) for name, entry in subjects.items()
    }
    return Config(file, declared, examples, folders)


def _declared(where: str, table: Any) -> Declared:
    reader = _Reader(where, table)
    like = reader.take("like", str, "the name of a reference", "")
    spec = reader.take("spec", str, "MODULE:NAME", "")
    if like and spec:
        raise UsageError(f"{where}: like and spec are two references; name one")
    held = reader.take("set", dict, "a table of options and values", {})
    declaration = Declaration(
        like or _with_a_colon(where, spec),
        reader.texts("dialects"),
        _names(where, reader.take("names", dict, "a table of names", {})),
        reader.texts("ignore"),
        {name: tuple(value) if isinstance(value, list) else value for name, value in held.items()},
        reader.take("profile", dict, "a table of facts", {}),
    )
    sparse = reader.take("sparse", bool, "true or false", False)
    tensor_lr = reader.take("tensor_lr", bool, "true or false", False)
    expected = reader.take("expected_failures", dict, "a table of checks and reasons", {})
    dtypes = reader.texts("dtypes")
    reader.done()
    return Declared(declaration, sparse, tensor_lr, expected, dtypes)


def _with_a_colon(where: str, spec: str) -> str:
    if spec and ":" not in spec:
        raise UsageError(f"{where}: spec is {spec!r}; it is MODULE:NAME, and what stepcheck has is like")
    return spec


def _names(where: str, table: Mapping[str, Any]) -> dict[str, str]:
    names = {}
    for ours, theirs in table.items():
        several: Sequence[Any] = [theirs] if isinstance(theirs, str) else theirs
        if not isinstance(several, list) or not all(isinstance(name, str) for name in several):
            raise UsageError(f"{where}: names: {ours} must be a name or a list of names, got {theirs!r}")
        names[ours] = ", ".join(several)
    return names


def subjects(config: Config, text: str, said: Mapping[str, Any]) -> list[Subject]:
    """The subjects that a word means, as the project declares them, but for what is ``said`` beside.

    Args:
        said: fields of a ``Declaration``.

    Raises:
        UsageError: no such subject, or what is declared makes no sense.
    """
    if text.partition(":")[0] in FAMILIES:
        return resolve(text)
    module, _, attribute = text.partition(":")
    if attribute == library.EVERY:
        each = library.subjects(module, text, said, config.subjects)
        return [s for own in each for s in (subjects(config, own, said) if isinstance(own, str) else [own])]
    if label(text) and text not in config.subjects:
        raise UsageError(f"{text}: {FILE} declares no subject of that name; in brackets stands a label of one")
    declared = config.subjects.get(text, Declared(Declaration()))
    found = resolve(text, replace(declared.declaration, **said))
    if declared.sparse or declared.tensor_lr:
        found = [asked_for(s, sparse=declared.sparse, tensor_lr=declared.tensor_lr) for s in found]
    return [expecting(taking(s, declared.dtypes), declared.expected) for s in found]
