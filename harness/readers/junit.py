"""A run as JUnit XML, in the form that pytest writes and CI services read: a suite for each subject, a case for each check."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from stepcheck.harness.readers import report
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Divergence, Result, Tally

#: What XML 1.0 cannot hold, not even as a reference.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_OUTCOMES = {"failure": "failures", "error": "errors", "skipped": "skipped"}


def junit(run: Run, folder: Path) -> str:
    """The document, a failure told as on the terminal.

    Args:
        folder: where the divergences are.
    """
    suites = Element("testsuites", name="stepcheck")
    for result in run.results:
        suite = _suite(suites, run, result.subject, f"{result.seconds + result.shrink_seconds:.3f}", result.verdict)
        for tally in result.tallies.values():
            _check(suite, result, tally, folder)
        if result.error:
            _outcome(_case(suite, "campaign"), "error", result.error, result.error)
        _count(suite)
    if run.ledger:
        suite = _suite(suites, run, "ledger", "0.000")
        for row in run.ledger:
            case = _case(suite, row["name"])
            if report.failed(row):
                _outcome(case, "failure", "it no longer reproduces", report.mended(row, run.environment))
        _count(suite)
    indent(suites)
    return '<?xml version="1.0" encoding="utf-8"?>\n' + tostring(suites, encoding="unicode") + "\n"


def _suite(suites: Element, run: Run, name: str, seconds: str, verdict: str = "") -> Element:
    suite = SubElement(suites, "testsuite", name=_legal(name), time=seconds, timestamp=run.started)
    properties = SubElement(suite, "properties")
    about = {"command": run.command, "stepcheck": run.version, "seed": run.seed, **run.environment}
    if verdict:  # JUnit has no outcome for what is known: a suite of it has no failures
        about["verdict"] = verdict
    for key, value in about.items():
        SubElement(properties, "property", name=_legal(key), value=_legal(value))
    return suite


def _check(suite: Element, result: Result, tally: Tally, folder: Path) -> None:
    case = _case(suite, tally.check)
    if tally.verdict == "fail":
        stale = [tally.stale] if tally.stale else []
        told = "\n\n".join(["\n".join(report.describe(d, folder)) for d in tally.divergences] + stale)
        _outcome(case, "failure", "; ".join([d.summary for d in tally.divergences] + stale), told)
    elif tally.verdict == "unsupported":
        _outcome(case, "skipped", report.unsupported(result, tally.check))
    elif tally.verdict == "unknown":
        _outcome(case, "error", "nothing was there to look at", result.error or "allow more examples")
    if tally.known:
        SubElement(case, "system-out").text = _legal("\n".join(map(_known, tally.known)))


def _known(d: Divergence) -> str:
    owner = f" (a fault of {d.owner})" if d.owner else ""
    return f"{d.entry if d.expected else f'known: {d.entry}'}{owner}, in {d.found_in} lives: {d.summary}"


def _case(suite: Element, name: str) -> Element:
    return SubElement(suite, "testcase", classname=suite.attrib["name"], name=_legal(name))


def _outcome(case: Element, kind: str, message: str, told: str = "") -> None:
    SubElement(case, kind, message=_legal(message)).text = _legal(told) or None


def _count(suite: Element) -> None:
    suite.set("tests", str(len(suite.findall("testcase"))))
    for kind, name in _OUTCOMES.items():
        suite.set(name, str(len(suite.findall(f"testcase/{kind}"))))


def _legal(x: object) -> str:
    return _ILLEGAL.sub(lambda m: f"#x{ord(m[0]):02X}", str(x))
