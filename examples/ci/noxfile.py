"""Sessions of a project that checks its optimizer: ``nox -s stepcheck``."""

import os

import nox

OPTIMIZER, LIKE = "yourpackage.optim:YourAdam", "Adam"
#: What pip installs: a released version, a wheel, or git+https://... of the repository.
STEPCHECK = os.environ.get("STEPCHECK", "stepcheck")


@nox.session
def stepcheck(session: nox.Session) -> None:
    """The check, then the report, which is made of a check that fails too; arguments go to the check, such as ``-- --seed 1``."""
    session.install(".", STEPCHECK)
    try:
        session.run("stepcheck", "check", OPTIMIZER, "--like", LIKE, *session.posargs)
    finally:
        session.run("stepcheck", "report", "--out", "report")
