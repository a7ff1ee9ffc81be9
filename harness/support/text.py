"""What somebody's code says, made fit to be shown: in a table, a script, a file."""

from __future__ import annotations

import re

#: What a terminal acts on instead of showing it, what ends a line without being told, and halves of characters, which no file holds.
_STRANGE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(text: str) -> str:
    """The text, with an escape of Python's in place of each character that would do something, or cannot be written."""
    return _STRANGE.sub(lambda found: ascii(found[0])[1:-1], text)


def in_one_line(text: str) -> str:
    """The same, with any white space as a blank."""
    return shown(" ".join(text.split()))


def said(x: object) -> str:
    """What an object says of itself; only what it is, where that raises."""
    try:
        return str(x)
    except Exception:  # noqa: BLE001 - somebody's own code
        return f"({type(x).__name__} that cannot be shown)"


def named(x: object) -> str:
    """An object's ``repr``; only what it is, where that raises."""
    try:
        return repr(x)
    except Exception:  # noqa: BLE001 - somebody's own code
        return f"({type(x).__name__} that cannot be shown)"
