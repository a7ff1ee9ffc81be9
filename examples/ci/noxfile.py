"""Sessions of a project that checks its optimizer: ``nox -s stepcheck``."""

import os

import nox

OPTIMIZER, LIKE = "yourpackage.optim:YourAdam", "Adam"
#: Where pip finds stepcheck: its repository, at a commit that you choose, or a wheel.
STEPCHECK = os.environ.get("STEPCHECK", "git+https://github.com/OWNER/stepcheck@COMMIT")


@nox.session
def stepcheck(session: nox.Session) -> None:
    """The check, then the report, which is made of a check that fails too; arguments go to the check, such as ``-- --seed 1``."""
    session.install(".", STEPCHECK)
    try:
        session.run("stepcheck", "check", OPTIMIZER, "--like", LIKE, *session.posargs)
    finally:
        session.run("stepcheck", "report", "--out", "report")
