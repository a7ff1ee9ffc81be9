"""Sessions: ``nox`` runs what CI runs; ``nox -l`` lists the rest."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "virtualenv"
nox.options.reuse_existing_virtualenvs = True
nox.options.sessions = ["lint", "types", "tests", "check"]

SOURCES = ("reference", "harness", "stepcheck", "tests", "noxfile.py")


def _install(session: nox.Session, *packages: str) -> None:
    session.install("-c", "constraints.txt", *packages)


@nox.session
def tests(session: nox.Session) -> None:
    """The fast tests; arguments go to pytest."""
    _install(session, "-e", ".[test]")
    session.run("pytest", "-m", "not slow", *session.posargs)


@nox.session
def slow(session: nox.Session) -> None:
    """The long and statistical tests."""
    _install(session, "-e", ".[test]")
    session.run("pytest", "-m", "slow", *session.posargs)


@nox.session
def lint(session: nox.Session) -> None:
    """ruff: rules and format."""
    _install(session, "ruff")
    session.run("ruff", "check", *SOURCES)
    session.run("ruff", "format", "--check", *SOURCES)


@nox.session
def types(session: nox.Session) -> None:
    """Mypy, strict, on the package as it is installed (its folders are mapped, so not on the source tree)."""
    _install(session, "mypy", ".[test]")
    # pip does not reinstall a version that it has; the sources may have changed all the same.
    session.install("--force-reinstall", "--no-deps", ".")
    session.run("mypy", "-p", "stepcheck", "--config-file", "pyproject.toml")


@nox.session
def check(session: nox.Session) -> None:
    """The main job on torch.optim itself. Its known divergences make exit status 1 the right one."""
    _install(session, "-e", ".")
    session.run("stepcheck", "check", "torch", "--seed", "0", *session.posargs, success_codes=[1])
