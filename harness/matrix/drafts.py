"""Issues for the authors of libraries, ready to be read once more and sent."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from stepcheck.harness.matrix.library import Library, Upstream
from stepcheck.harness.matrix.play import own


def drafts(library: Library, played: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Names of files, and Markdown: title, what happens, what should, the script and versions; and of those that do not show, none."""
    for entry in library.upstream:
        script = _script(entry, played)
        if script is not None:
            words = re.sub(r"[^a-z0-9]+", "-", entry.title.lower()).strip("-")
            yield f"{library.file.stem}-{'-'.join(words.split('-')[:9])}.md", _draft(entry, played, script)


def _script(entry: Upstream, played: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The shortest confirmed script of a finding."""
    subjects = [s for s in played["subjects"] if s["subject"] == entry.subject]
    checks = [{"checks": [c]} for s in subjects for c in s["checks"] if c["check"] == entry.check]
    ids = [d["id"] for d in own(checks) if entry.summary in d["summary"]]
    scripts = [played["scripts"][i] for i in ids if played["scripts"].get(i, {}).get("confirmed")]
    return min(scripts, key=lambda script: len(script["text"]), default=None)


def _draft(entry: Upstream, played: Mapping[str, Any], script: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in played["versions"].items())
    return "\n".join(
        [
            f"# {entry.title}",
            "",
            f"For: {played['url']}",
            "",
            "This script ends in an error:",
            "",
            "```python",
            script["text"].rstrip(),
            "```",
            "",
            "It prints last:",
            "",
            "```",
            script["told"],
            "```",
            "",
            f"Expected: {entry.expected}",
            "",
            f"Versions: {versions}, {played['framework']}.",
            "",
        ]
    )
