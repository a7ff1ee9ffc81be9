"""What somebody's code says is shown as it stands, and does nothing."""

import pytest

from stepcheck.harness.play.recording import Raised
from stepcheck.harness.support.text import in_one_line, shown


@pytest.mark.parametrize(
    "text, seen",
    [
        ("plain, \N{GREEK SMALL LETTER BETA} and :soap:\n\tindented", "plain, \N{GREEK SMALL LETTER BETA} and :soap:\n\tindented"),
        ("\x1b[2J", "\\x1b[2J"),
        ("nul \0, bell \a, back \b, return \r", "nul \\x00, bell \\x07, back \\x08, return \\r"),
        ("half \ud83d", "half \\ud83d"),
        ("\u202eturned\u2066", "\\u202eturned\\u2066"),
        ("next\x85line\u2028", "next\\x85line\\u2028"),
    ],
)  # fmt: skip
def test_what_a_terminal_would_act_on_is_written_as_an_escape(text, seen):
    assert shown(text) == seen
    assert shown(seen) == seen
    seen.encode()
    compile(f"# {seen.splitlines()[0]}", "script.py", "exec")


def test_one_line_is_one_line():
    assert in_one_line(" a\n b\r\n\tc\x1b ") == "a b c\\x1b"


def test_what_is_raised_is_fit_to_be_told_from_the_beginning():
    raised = Raised(0, "Error\0", "half \ud800")
    assert (raised.kind, raised.message) == ("Error\\x00", "half \\ud800")
