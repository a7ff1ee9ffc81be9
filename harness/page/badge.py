"""A badge: the verdict and the counts behind it, as SVG."""

from __future__ import annotations

from stepcheck.harness.page.model import Report
from stepcheck.harness.page.render import environment

#: Of Verdana at 11 pixels, as badges are set: pixels of a character, generously.
_PIXELS = 6.7
_COLOURS = {"pass": "#1a7f37", "known": "#7a3fb0", "fail": "#cf222e", "unknown": "#8a5a00", "unsupported": "#57606a"}


def svg(report: Report) -> str:
    """``stepcheck | pass 76 of 95``; readable by a screen reader, white on a colour with a contrast of at least 4.5."""
    told = _told(report)
    title = f"stepcheck: {report.verdict}; {report.headline}"
    return environment().get_template("badge.svg.jinja").render(
        told=told, title=title, colour=_COLOURS[report.verdict], left=_width("stepcheck"), right=_width(told)
    )  # fmt: skip


def _told(report: Report) -> str:
    counts = report.counts
    judged = counts["subjects"] - counts["unsupported_subjects"]
    if not judged:
        return report.verdict
    if counts["known_subjects"]:
        return f"{report.verdict}: {counts['pass']} pass, {counts['known_subjects']} known of {judged}"
    return f"{report.verdict} {counts['pass']} of {judged}"


def _width(text: str) -> int:
    return round(len(text) * _PIXELS) + 12
