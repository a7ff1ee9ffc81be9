"""Tests under pytest, one for each optimizer and check: what ``parametrize_with_checks`` makes, and the plugin looks at.

They work without the plugin as well, which only changes what pytest shows, and how many lives are lived.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from stepcheck.api import Divergences, Make, Report, check_optimizer
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.readers.report import unsupported
from stepcheck.harness.search.expected import declared
from stepcheck.harness.support.usage import UsageError

#: Of each optimizer, by the name of its test, why it is expected to fail which checks; or who says so of a class or factory.
Expected = Mapping[str, Mapping[str, str]] | Callable[[Make], Mapping[str, str]]


#: The name of a reference, or arguments of ``check_optimizer`` that say what is declared.
Said = str | Mapping[str, Any]


@dataclass(frozen=True)
class Lives:
    """Which lives an optimizer lives."""

    examples: int
    seed: int
    dtypes: tuple[str, ...] = ()


class Suite:
    """The tests of one call of ``parametrize_with_checks``.

    Args:
        optimizers: test name to (class or factory, name of its reference or what else is declared of it).
        lives: those of each of them.
        expected: what they are expected to fail.

    Raises:
        UsageError: what is expected makes no sense.
    """

    def __init__(self, optimizers: Mapping[str, tuple[Make, Said]], lives: Lives, expected: Expected | None) -> None:
        self.optimizers = optimizers
        self.lives = lives
        self.expected = _by_title(optimizers, expected)
        self._reports: dict[tuple[str, Lives], Report] = {}

    @property
    def cases(self) -> list[tuple[str, Case]]:
        """All tests, by their names."""
        return [(f"{title}-{name}", Case(self, title, name)) for title in self.optimizers for name in CHECKS]

    def report(self, title: str) -> Report:
        """What is found out of one optimizer. It lives its lives once, for all of its tests."""
        key = (title, self.lives)
        if key not in self._reports:
            make, said = self.optimizers[title]
            about = dict(said) if isinstance(said, Mapping) else {"like": said}
            self._reports[key] = check_optimizer(
                make, **about, **vars(self.lives), expected_failures=self.expected[title]
            )
        return self._reports[key]

    def found(self, title: str) -> Report | None:
        """The same, where it has lived."""
        return self._reports.get((title, self.lives))

    def override(self, examples: int | None, seed: int | None, dtypes: Sequence[str]) -> None:
        """Let its optimizers live other lives than its author asked for; what is not given stays."""
        own = self.lives
        self.lives = Lives(
            own.examples if examples is None else examples,
            own.seed if seed is None else seed,
            tuple(dtypes) or own.dtypes,
        )

    def forget(self) -> None:
        """A later session of the same process lives anew."""
        self._reports.clear()


@dataclass(frozen=True)
class Case:
    """One test: does this optimizer do what this check asks?"""

    suite: Suite
    title: str
    check: str

    def __call__(self) -> None:
        """Pass, or tell pytest what is found.

        Raises:
            Divergences: the message is the finding, and nothing else.
        """
        __tracebackhide__ = True  # the finding says all: pytest shows no frame of this package
        import pytest

        whole = self.suite.report(self.title).result
        report = replace(
            self.suite.report(self.title), result=replace(whole, tallies={self.check: whole.tallies[self.check]})
        )
        if report.verdict in ("pass", "known") and not report.expected:
            return
        if report.verdict == "unsupported":
            pytest.skip(unsupported(whole, self.check))
        if report.verdict == "known":
            pytest.xfail(f"{report.expected[0].expected}: {report.expected[0].summary}")  # not under --runxfail
        raise Divergences("\n\n".join(report.told(expected=True)))

    def __repr__(self) -> str:
        return f"{self.title}-{self.check}"


def _by_title(optimizers: Mapping[str, tuple[Make, Said]], expected: Expected | None) -> dict[str, dict[str, str]]:
    if expected is None or callable(expected):
        return {t: declared(expected(make)) if expected else {} for t, (make, _) in optimizers.items()}
    for title in expected:
        if title not in optimizers:
            raise UsageError(
                f"no test is named {title!r} that could be expected to fail; there is {', '.join(optimizers)}"
            )
    return {title: declared(expected.get(title, {})) for title in optimizers}


def decorator(suite: Suite) -> Any:
    """One test for each of its cases, which are given as ``check``."""
    import pytest

    return pytest.mark.parametrize("check", [pytest.param(case, id=name) for name, case in suite.cases])
