"""Divergences on disk: one JSON file and one script each. Reading believes nothing that it has not checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stepcheck.harness.life.reading import TraceError, loads
from stepcheck.harness.life.trace import SCHEMA, Trace
from stepcheck.harness.record.verdict import Divergence
from stepcheck.harness.support import defaults
from stepcheck.harness.support.text import shown

DEFAULT_FOLDER = defaults.FOLDER
#: Traces of the known divergences of released software, by the names of their entries in the ledger.
KNOWN_FOLDER = Path(__file__).parents[1] / "known"
_MOST_BYTES = 16 << 20
#: In a folder of divergences, the list of those that were saved there.
_RECORD = "recorded"


@dataclass(frozen=True)
class Saved:
    """A trace read back, with what it is known to show; a bare trace names neither subject nor check."""

    trace: Trace
    subject: str = ""
    check: str = ""
    cause: str = ""
    summary: str = ""
    like: str = ""
    declared: Mapping[str, Any] = field(default_factory=dict)


def trace_path(folder: Path, divergence: Divergence) -> Path:
    return _place(folder, divergence) / f"{divergence.id}.json"


def script_path(folder: Path, divergence: Divergence) -> Path:
    return _place(folder, divergence) / f"{divergence.id}.py"


def _place(folder: Path, divergence: Divergence) -> Path:
    """What is known stands apart from what is new."""
    return folder / "known" if divergence.entry else folder


def prepare(folder: Path) -> None:
    """Make the folder of a run, one that git leaves alone. One that was there before is somebody's own, and stays as it is."""
    if folder.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)  # another run may have made it just now
    (folder / ".gitignore").write_text("*\n", encoding="utf-8")


def save(folder: Path, divergence: Divergence) -> None:
    """Write the trace and its script to ``folder``."""
    prepare(folder)
    _place(folder, divergence).mkdir(parents=True, exist_ok=True)
    data = {
        "schema": SCHEMA,
        "id": divergence.id,
        "subject": divergence.subject,
        "like": divergence.like,
        **({"declared": divergence.declared} if divergence.declared else {}),
        "check": divergence.check,
        "cause": divergence.cause,
        "summary": divergence.summary,
        "trace": divergence.trace.to_json(),
    }
    path, content = trace_path(folder, divergence), (json.dumps(data, indent=1) + "\n").encode()
    path.write_bytes(content)
    # The script quotes what somebody's class said: what no file holds, or Python refuses to read, is written as an escape.
    script_path(folder, divergence).write_text(shown(divergence.script), encoding="utf-8")
    _record(path, content)


def _record(path: Path, content: bytes) -> None:
    """Remember that a file was saved here."""
    line = _mark(path, content)
    if line not in _records(path.parent):
        with (path.parent / _RECORD).open("a", encoding="ascii") as record:
            record.write(f"{line}\n")


def recorded_here(path: Path, folder: Path) -> bool:
    """Whether a file was saved in ``folder`` by stepcheck itself, and is as it was then.

    To replay what a file says about a class is to import a module and call something in it. ``os:system`` is such a name as well, so a file
    that came from elsewhere, in an issue or by mail, must not choose it. Trusted is what was saved in this folder, which is the one where
    the user stands or was named by the user: each file that stepcheck saves is noted in a list beside it, by a digest of its content and of
    the place where it lies. A file that is put among them is not on the list; one that was edited, or copied together with its list, has
    another digest. That is no signature, and need not be one: who can write into this folder can as well write the module that is checked.
    """
    try:
        if path.resolve().parent not in (folder.resolve(), (folder / "known").resolve()):
            return False
        return _mark(path, path.read_bytes()) in _records(path.parent)
    except OSError:
        return False


def _mark(path: Path, content: bytes) -> str:
    return hashlib.sha256(str(path.resolve()).encode(errors="surrogateescape") + b"\0" + content).hexdigest()


def _records(folder: Path) -> set[str]:
    record = folder / _RECORD
    return set(record.read_text(encoding="ascii", errors="replace").split()) if record.is_file() else set()


def find(name: str, folder: Path) -> Path:
    """The file that a name on the command line means: a path, the ID of a divergence in ``folder``, or an entry of the ledger.

    Raises:
        TraceError: there is no such file.
    """
    candidates = (Path(name), folder / f"{name}.json", folder / "known" / f"{name}.json", KNOWN_FOLDER / f"{name}.json")
    for path in candidates:
        if path.is_file():
            return path
    raise TraceError(
        f"no file {name!r}, no divergence of that ID in {folder} (choose the folder with --out), and no known one of that name"
    )


def load(path: Path) -> Saved:
    """Read a saved divergence or a bare trace.

    Raises:
        TraceError: the file is unreadable, not JSON, cut short, of another schema, or no trace.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise TraceError(f"{path}: larger than {_MOST_BYTES >> 20} MiB; this is no trace")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TraceError(f"{path}: cannot be read ({error})") from None
    try:
        data = loads(text)
        if not isinstance(data, dict):
            raise TraceError(f"must be a JSON object, got {type(data).__name__}")
        if "trace" not in data:
            return Saved(Trace.from_json(data))
        names = {key: data.get(key) for key in ("subject", "check", "cause", "summary")}
        for key, value in names.items():
            if not isinstance(value, str):
                raise TraceError(f"{key}: must be a string")
        like = data.get("like", "")
        if not isinstance(like, str):
            raise TraceError("like: must be a string")
        declared = data.get("declared", {})
        if not isinstance(declared, dict):
            raise TraceError("declared: must be an object")
        told = {k: str(v) for k, v in names.items()}
        return Saved(Trace.from_json(data["trace"]), **told, like=like, declared=declared)
    except TraceError as error:
        raise TraceError(f"{path}: {error}; make a new one with `stepcheck check`") from None
