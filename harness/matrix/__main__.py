"""``python -m stepcheck.harness.matrix [LIBRARY ...]``: play the libraries that are installed, and write what is known of them.

Exit status 0: every divergence is explained and confirmed by its script; 1: one is not; 2: bad usage; 3: one that was asked for was not played.
``nox -s matrix`` installs them first.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stepcheck import __version__
from stepcheck.harness.matrix import drafts, page, tables
from stepcheck.harness.matrix.cells import Matrix, Played, matrix
from stepcheck.harness.matrix.library import Library, libraries
from stepcheck.harness.matrix.play import played
from stepcheck.harness.readers import report
from stepcheck.harness.support.usage import UsageError

#: The seed of all lives.
_SEED = 0
#: Seconds after which a subject is called busy: a library is not to be charged with what else runs on the machine.
_PATIENCE = "120"


def main(arguments: Sequence[str] | None = None) -> int:
    """Play, write, and tell in a line a library."""
    parser = argparse.ArgumentParser(prog="python -m stepcheck.harness.matrix", description=__doc__)
    parser.add_argument("library", nargs="*", help="the names of their files; all without one")
    parser.add_argument("--out", type=Path, default=Path("reports"), help="folder for matrix.md and the rest")
    parser.add_argument("--work", type=Path, default=Path(".stepcheck/matrix"), help="folder in which they are played")
    parser.add_argument("--examples", type=int, help="lives of each class, in place of what its library says")
    given = parser.parse_args(arguments)
    try:
        asked = libraries(given.library)
    except UsageError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 2
    file = given.out / "matrix.json.gz"
    written = _before(file) if given.library else {}
    environment = report.environment()
    for library in asked:
        words = [
            "--seed",
            str(_SEED),
            "--patience",
            _PATIENCE,
            *(["--examples", str(given.examples)] if given.examples else []),
        ]
        found = played(library, given.work.resolve() / library.file.stem, words)
        written[library.file.stem] = {**found, "framework": f"torch {environment['torch']}"}
        print(_line(matrix({**_head(environment), "libraries": [found]}).libraries[0], found["seconds"]), flush=True)  # noqa: T201
        _write(file, {**_head(environment), "libraries": _in_order(written)})
    whole = matrix({**_head(environment), "libraries": _in_order(written)})
    _publish(whole, written, given.out)
    print(tables.summary(whole))  # noqa: T201
    if not all(_explained(library) for library in whole.libraries):
        return 1
    return 3 if any("error" in written[library.file.stem] for library in asked) else 0


def _head(environment: dict[str, Any]) -> dict[str, Any]:
    return {"stepcheck": __version__, "environment": environment, "seed": _SEED}


def _before(file: Path) -> dict[str, Any]:
    """The libraries that were played before: they stay where others are played anew."""
    if not file.is_file():
        return {}
    names = {library.name: library.file.stem for library in libraries()}
    found = json.loads(gzip.decompress(file.read_bytes()))["libraries"]
    return {names[entry["name"]]: entry for entry in found if entry["name"] in names}


def _in_order(written: dict[str, Any]) -> list[Any]:
    return [written[name] for name in sorted(written)]


def _write(file: Path, whole: dict[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(json.dumps(whole, separators=(",", ":")).encode(), mtime=0))


def _publish(whole: Matrix, written: dict[str, Any], out: Path) -> None:
    (out / "matrix.md").write_text(tables.markdown(whole), encoding="utf-8")
    (out / "matrix.html").write_text(page.html(whole), encoding="utf-8")
    upstream = out / "upstream"
    upstream.mkdir(exist_ok=True)
    for old in upstream.glob("*.md"):  # of what shows no more
        old.unlink()
    for library in libraries():
        for name, text in _drafts(library, written):
            (upstream / name).write_text(text, encoding="utf-8")


def _drafts(library: Library, written: dict[str, Any]) -> list[tuple[str, str]]:
    return list(drafts.drafts(library, written[library.file.stem])) if library.file.stem in written else []


def _line(library: Played, seconds: float) -> str:
    if library.error:
        return f"{library.name}: not played: {library.error}"
    new = sum(not fault.looked_at for fault in library.faults)
    confirmed = sum(f.confirmed[0] for f in library.faults)
    scripts = sum(f.confirmed[1] for f in library.faults)
    told = f"{len(library.faults)} causes, {new} of them new; {confirmed} of {scripts} scripts confirmed"
    return f"{library.name}: {len(library.cells)} classes, {told}; {seconds:,.0f} s"


def _explained(library: Played) -> bool:
    """Whether each of its faults was looked at and confirmed."""
    return all(fault.looked_at and fault.confirmed[0] for fault in library.faults)


if __name__ == "__main__":
    sys.exit(main())
