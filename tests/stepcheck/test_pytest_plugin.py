"""What somebody sees who tests an optimizer under pytest: findings, and nothing else; and nothing at all who does not."""

import re
from importlib.metadata import entry_points

import pytest
import torch

from stepcheck import Divergences, parametrize_with_checks
from stepcheck.harness.play.subjects import UsageError
from stepcheck.suite import Lives, Suite

pytest_plugins = ["pytester"]

#: An installation that is older than the plugin does not name it.
PLUGIN = [] if any(e.name == "stepcheck" for e in entry_points(group="pytest11")) else ["-p", "stepcheck.pytest_plugin"]
OPTIMIZERS = '''
import torch


class Right(torch.optim.SGD):
    pass


class Doubled(torch.optim.SGD):
    """Adds what stands in the momentum buffer twice."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and self.state[p].get("momentum_buffer") is not None:
                    p.add_(self.state[p]["momentum_buffer"], alpha=-group["lr"])
        return loss
'''
TEST = """
from optimizers import Doubled, Right

from stepcheck import Divergences, parametrize_with_checks


@parametrize_with_checks({optimizers}, examples=200{more})
def test_conformance(check):
    check()
"""
BOTH = '{"right": (Right, "SGD"), "doubled": (Doubled, "SGD")}'
FEW = ["--stepcheck-examples", "12", "--stepcheck-dtype", "float32"]


@pytest.fixture
def project(pytester, monkeypatch):
    """One with tests of optimizers."""
    monkeypatch.setenv("COLUMNS", "160")
    pytester.makepyfile(optimizers=OPTIMIZERS)

    def of(optimizers=BOTH, more=""):
        pytester.makepyfile(test_them=TEST.replace("{optimizers}", optimizers).replace("{more}", more))
        return pytester

    return of


def run(pytester, *arguments):
    # Not in this process: what is imported there is forgotten again, and torch cannot be imported twice.
    return pytester.runpytest_subprocess(*PLUGIN, "-p", "no:cacheprovider", *arguments, timeout=300)


def between(text, first, last):
    return text.split(first)[1].split(last)[0]


def test_the_message_is_the_finding_alone_and_the_summary_says_what_was_asked(project):
    pytester = project()
    result = run(pytester, *FEW, "--stepcheck-seed", "1", "-k", "agreement or refuses")
    result.assert_outcomes(passed=1, failed=1, skipped=2)
    told = between(str(result.stdout), "test_conformance[doubled-agreement] _", " stepcheck =")
    message = told.splitlines()[1:-1]
    assert re.fullmatch(r"optimizers:Doubled fails agreement \[\w+\], in \d+ lives", message[0])
    assert message[-1].startswith("  replay: stepcheck replay ")
    assert not re.search("check\\(\\)|Traceback|Divergences|\\.py:\\d+|^[E>] ", "\n".join(message), re.MULTILINE)
    result.stdout.fnmatch_lines(
        [
            "*= stepcheck =*",
            "right: pass, 12 lives like SGD, seed 1; checks: 2 planned, 1 ran, 1 unsupported",
            "doubled: fail, 12 lives like SGD, seed 1; checks: 2 planned, 1 ran, 1 unsupported; traces in .stepcheck",
            "  fail: agreement",
            "FAILED test_them.py::test_conformance?doubled-agreement? - optimizers:Doubled *",
        ]
    )
    assert list(pytester.path.glob(".stepcheck/*.json"))


EXPECTED = ', expected_failed_checks={"right": {"closure": "none so far"}, "doubled": {"agreement": "it is meant"}}'


LINE = "closure passes now, and was expected to fail (none so far): take it off the list"


def test_what_is_expected_to_fail_is_an_xfail_and_fails_if_it_passes(project):
    result = run(project(more=EXPECTED), *FEW, "-k", "agreement or closure", "-rxf")
    result.assert_outcomes(passed=2, failed=1, xfailed=1)
    result.stdout.fnmatch_lines(
        [
            LINE,
            "right: fail, *",
            f"  {LINE}",
            "doubled: known, *; traces in .stepcheck?known",
            "  expected to fail: agreement (it is meant)",
            "XFAIL *doubled-agreement* - it is meant: *off by*budgets",
        ]
    )


class Right(torch.optim.SGD):
    pass


def test_without_the_plugin_a_test_says_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    expected = {"right": {"closure": "none so far"}, "slow": {"agreement": "half the rate"}}
    both = {"right": (Right, "SGD"), "slow": (lambda params, lr=1e-3: torch.optim.SGD(params, lr / 2), "SGD")}
    cases = dict(Suite(both, Lives(12, 0, ("float32",)), expected).cases)
    cases["right-agreement"]()
    for name, outcome, told in (
        ("right-closure", Divergences, f"^{re.escape(LINE)}$"),
        ("right-refuses-invalid", pytest.skip.Exception, "is theirs to say"),
        ("slow-agreement", pytest.xfail.Exception, "^half the rate: .* budgets"),
    ):
        with pytest.raises(outcome, match=told):
            cases[name]()


def test_a_function_may_say_what_is_expected():
    both = {"right": (torch.optim.SGD, "SGD"), "other": (torch.optim.Adam, "Adam")}
    made = Suite(both, Lives(1, 0), lambda make: {"agreement": make.__name__} if make is torch.optim.SGD else {})
    assert made.expected == {"right": {"agreement": "SGD"}, "other": {}}


@pytest.mark.parametrize(
    "wrong", [{"one": {"agrement": "x"}}, {"one": {"agreement": ""}}, {"other": {"agreement": "x"}}]
)
def test_what_is_expected_of_nobody_is_refused(wrong):
    with pytest.raises(UsageError):
        parametrize_with_checks({"one": (torch.optim.SGD, "SGD")}, expected_failed_checks=wrong)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    ("given", "why"),
    [
        (["--stepcheck-examples", "0"], "*--stepcheck-examples: '0' is no whole number from 1 on"),
        (["--stepcheck-dtype", "int3"], "*--stepcheck-dtype: no dtype named 'int3'; there is float32, *"),
    ],
)
def test_what_does_not_exist_is_bad_usage(given, why, pytester):
    result = run(pytester, *given)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([why])


@pytest.mark.slow  # torch is imported in three processes
def test_workers_of_xdist_tell_the_controller(project):
    result = run(project(), *FEW, "-n", "2", "-k", "right and (agreement or completes or options or refuses)")
    result.assert_outcomes(passed=3, skipped=1)
    row = "right: pass, 12 lives like SGD, seed 0*; checks: 4 planned, 3 ran, 1 unsupported"
    result.stdout.fnmatch_lines(["*= stepcheck =*", row])
    assert ("in 2 workers" in str(result.stdout)) == ("under --dist loadgroup" in str(result.stdout))


def test_tests_of_one_optimizer_are_a_group_of_xdist(project):
    pytester = project()
    pytester.makeconftest("""
import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items):
    print({(m.args, i.callspec.id.partition("-")[0]) for i in items for m in i.iter_markers("xdist_group")} == {
        (("right",), "right"), (("doubled",), "doubled")})
""")
    run(pytester, "--collect-only", "-q").stdout.fnmatch_lines(["True"])


UNUSED = """
import sys


def test_nothing():
    assert "stepcheck.pytest_plugin" in sys.modules
    assert not [m for m in sys.modules if m.startswith(("torch", "numpy", "stepcheck.harness", "stepcheck.api"))]
"""


def test_it_costs_nothing_where_it_is_not_used(pytester):
    pytester.makepyfile(UNUSED)
    result = run(pytester)
    result.assert_outcomes(passed=1)
    assert "= stepcheck =" not in str(result.stdout)


def test_the_asserts_of_the_package_stay_as_they_are(pytester):
    # As pytest does with all modules that are installed beside a plugin.
    pytester.makepyfile(early="import pytest\npytest.register_assert_rewrite('stepcheck')\n")
    pytester.makepyfile("""
def test_loader():
    from stepcheck.harness.support import text
    assert "Rewriting" not in type(text.__loader__).__name__
""")
    pytester.runpytest_subprocess("-p", "early", *PLUGIN, timeout=300).assert_outcomes(passed=1)
