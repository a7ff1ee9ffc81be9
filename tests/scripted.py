"""What all checks find in a life, and what a script says in this process: to import torch anew for each would take a minute."""

import warnings

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.support import settings


def found(subject, trace):
    """A life as it was played, and the findings of each check."""
    evidence = Evidence(subject, trace)
    return evidence, [finding for check in CHECKS.values() for finding in check.find(evidence)]


def run_here(script):
    """What a script raises, as text; '' where it succeeds."""
    try:
        with settings.kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # outside of pytest they are no errors
            exec(compile(script, "script", "exec"), {"__name__": "__main__"})
    except Exception as error:  # noqa: BLE001 - whatever it raises is what it says
        return f"{type(error).__name__}: {error}"
    return ""
