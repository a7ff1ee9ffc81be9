"""What pytest has of stepcheck: options, messages that are the finding alone, and a section of the summary.

pytest imports this in every run of every project in whose environment stepcheck is: it must cost nothing where it is not used. So nothing
else of stepcheck is imported before a test of ``parametrize_with_checks`` is there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from stepcheck.api import Report
    from stepcheck.suite import Case, Suite

#: What became of an optimizer, as plain data: it crosses the processes of xdist.
Row = dict[str, Any]

_ROWS = pytest.StashKey[dict[str, Row]]()
_SUITES = pytest.StashKey[list["Suite"]]()
#: Under which name a worker of xdist hands its rows to the controller.
_OUTPUT = "stepcheck"


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    _leave_asserts(pluginmanager)
    group = parser.getgroup("stepcheck", "stepcheck: tests of parametrize_with_checks")
    group.addoption("--stepcheck-examples", type=_at_least(1), metavar="N", help="lives of each optimizer")
    group.addoption("--stepcheck-seed", type=_at_least(0), metavar="N", help="the same seed plays the same lives")
    group.addoption("--stepcheck-dtype", action="append", default=[], metavar="D",
                    help="parameters of this dtype alone; can be repeated")  # fmt: skip


def _leave_asserts(pluginmanager: pytest.PytestPluginManager) -> None:
    """Let pytest not rewrite the asserts of this whole package, as it does with all that come with a plugin: to import it took seconds more.

    There is no public way to say so. Should this one close, they are rewritten.
    """
    marked = getattr(getattr(pluginmanager, "rewrite_hook", None), "_must_rewrite", None)
    if isinstance(marked, set):
        marked.discard("stepcheck")


def _at_least(least: int) -> Any:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)

    return number


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_ROWS], config.stash[_SUITES] = {}, []
    for dtype in config.getoption("stepcheck_dtype"):
        from stepcheck.harness.life.values import DTYPES

        if dtype not in DTYPES:
            raise pytest.UsageError(f"--stepcheck-dtype: no dtype named {dtype!r}; there is {', '.join(DTYPES)}")


def pytest_unconfigure(config: pytest.Config) -> None:
    for suite in config.stash.get(_SUITES, []):
        suite.forget()


def _case(item: pytest.Item) -> Case | None:
    """The case that a test is given, if it is one of stepcheck."""
    suite = sys.modules.get("stepcheck.suite")
    callspec = getattr(item, "callspec", None)
    if suite is None or callspec is None:
        return None
    return next((x for x in callspec.params.values() if isinstance(x, suite.Case)), None)


@pytest.hookimpl(tryfirst=True)  # xdist names the groups in its own
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    option = config.getoption
    suites = config.stash[_SUITES]
    for item in items:
        case = _case(item)
        if case is None:
            continue
        if case.suite not in suites:
            suites.append(case.suite)
            case.suite.override(option("stepcheck_examples"), option("stepcheck_seed"), option("stepcheck_dtype"))
        # In one worker, an optimizer lives its lives once for all of its tests.
        if config.pluginmanager.hasplugin("xdist") and item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(case.title))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    outcome: Any = yield
    case = _case(item)
    if case is None or call.when != "call":
        return
    _tell_alone(item.config, call, outcome.get_result())
    report = case.suite.found(case.title)
    if report is not None:
        _note(item, case, report)


def _tell_alone(config: pytest.Config, call: pytest.CallInfo[None], report: pytest.TestReport) -> None:
    """Let pytest show the finding, and neither frames nor the lines of the test."""
    api = sys.modules["stepcheck.api"]
    if call.excinfo is None or not call.excinfo.errisinstance(api.Divergences) or config.getoption("fulltrace"):
        return
    report.longrepr = told = call.excinfo.getrepr(style="value")
    crash = getattr(told, "reprcrash", None)
    if crash is not None:  # for the line of the short summary: which check fails, and how
        crash.message = ": ".join(line.strip() for line in str(call.excinfo.value).splitlines()[:2])


def _note(item: pytest.Item, case: Case, report: Report) -> None:
    """Keep for the summary what became of a test, and of the lives that it was asked of."""
    from stepcheck.harness.record.store import trace_path

    result, tally = report.result, report.result.tallies[case.check]
    rows = item.config.stash[_ROWS]
    row = rows.setdefault(f"{item.nodeid.partition('[')[0]} {case.title}", {
        "title": case.title, "like": result.like, "lives": result.traces, "seed": case.suite.lives.seed, "error": result.error,
        "played": 1, "checks": {},
    })  # fmt: skip
    row["checks"][case.check] = {
        "verdict": tally.verdict,
        "ran": bool(tally.ran),
        "expected": next((d.expected for d in tally.known if d.expected), ""),
        "stale": tally.stale,
        "saved": sorted({str(trace_path(report.folder, d).parent) for d in tally.unexplained}),
    }


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    output = getattr(session.config, "workeroutput", None)  # of a worker of xdist
    if output is not None:
        output[_OUTPUT] = session.config.stash[_ROWS]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A worker of xdist has ended."""
    rows = node.config.stash[_ROWS]
    for key, row in getattr(node, "workeroutput", {}).get(_OUTPUT, {}).items():
        if key in rows:
            rows[key]["checks"] |= row["checks"]
            rows[key]["played"] += row["played"]
        else:
            rows[key] = row


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    rows = list(config.stash[_ROWS].items())
    if not rows:
        return
    terminalreporter.section("stepcheck")
    titles = [row["title"] for _, row in rows]
    for key, row in rows:
        # Two functions may have tests of one name.
        name = row["title"] if titles.count(row["title"]) == 1 else key
        for line in _lines(name, row):
            terminalreporter.line(line)
    if any(row["played"] > 1 for _, row in rows):
        # pytest-xdist 3.8 pays no heed to groups under pytest 9.2.
        better = "loadscope" if config.getoption("dist", "") == "loadgroup" else "loadgroup"
        terminalreporter.line(
            f"An optimizer lives its lives in each worker that has tests of it: under --dist {better}, in one alone."
        )


def _lines(name: str, row: Row) -> Iterator[str]:
    from stepcheck.harness.record.verdict import overall

    checks = row["checks"].values()
    verdict = overall({c["verdict"] for c in checks}, row["error"])
    ran, unsupported = (sum(c["ran"] for c in checks), sum(c["verdict"] == "unsupported" for c in checks))
    times = f" (in {row['played']} workers)" if row["played"] > 1 else ""
    folders = sorted({folder for c in checks for folder in c["saved"]})
    saved = f"; traces in {' and '.join(folders)}" if folders else ""
    yield (
        f"{name}: {verdict}, {row['lives']} lives like {row['like']}, seed {row['seed']}{times};"
        f" checks: {len(checks)} planned, {ran} ran, {unsupported} unsupported{saved}"
    )
    for verdict in ("fail", "unknown"):
        named = [check for check, c in row["checks"].items() if c["verdict"] == verdict and not c["stale"]]
        if named:
            yield f"  {verdict}: {', '.join(named)}"
    for check, c in row["checks"].items():
        if c["expected"]:
            yield f"  expected to fail: {check} ({c['expected']})"
        if c["stale"]:
            yield f"  {c['stale']}"
