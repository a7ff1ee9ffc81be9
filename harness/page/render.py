"""Templates, and how numbers are written."""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
import sys
from importlib import resources
from typing import Any

import jinja2

from stepcheck.harness.record.verdict import SIGNS


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this package. What they are given is escaped: streams may come from strangers."""
    made = jinja2.Environment(
        loader=jinja2.PackageLoader("stepcheck.harness.page"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"count": count, "ratio": ratio, "short": short, "moment": moment, "safe_link": safe_link}
    made.globals |= {"signs": SIGNS}
    return made


def resource(name: str) -> str:
    """A file among the templates that is no template: CSS or JavaScript."""
    return (resources.files(__package__) / "templates" / name).read_text(encoding="utf-8")


def digest(script: str) -> str:
    """The SHA-256 of a script, by which a page's Content-Security-Policy allows it and no other."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def count(n: float) -> str:
    """An integer with its thousands apart."""
    return f"{n:,}"


def short(n: float) -> str:
    """Three digits and a unit: 41.2 M."""
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if n >= unit:
            scaled = n / (1e3 if name == " k" else unit)
            return f"{scaled:.{max(0, 2 - math.floor(math.log10(scaled)))}f}{name}"
    return f"{n:,}"


def moment(text: str) -> str:
    """A time in UTC as a run has it, to the second; anything else as it stands."""
    known = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(\.\d+)?(\+00:00|Z)", text)
    return f"{known[1]} {known[2]} UTC" if known else text


def ratio(r: float | None) -> str:
    """A worst r; one without a number, where a value is of the wrong class, is told as beyond any."""
    if r is None:
        return ""
    if r >= sys.float_info.max:
        return "∞"
    if abs(r - 1) < 1e-3:  # which side of 1 it is on must be seen
        return f"{(math.floor(1000 * r) if r <= 1 else math.ceil(1000 * r)) / 1000:.3f}"
    return f"{r:.3f}" if r < 1000 else f"{r:.1e}"


def safe_link(link: Any) -> str:
    """A link as it stands, if it leads to the web, and nothing otherwise: a stream may say ``javascript:``."""
    text = str(link)
    return text if text.startswith(("https://", "http://")) else ""
