"""Runs as they are read back from streams, made up for tests of what is reported."""

from pathlib import Path

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.life.events import Group, Parameter, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.record.run import Run
from stepcheck.harness.record.verdict import Divergence, Result, Tally

REPORTS = Path(__file__).parents[1] / "reports"
WRONG = "stepcheck.harness.zoo.adam:EpsInsideRoot"
ENVIRONMENT = {"torch": "2.13.0", "python": "3.11.7", "platform": "Linux x86_64"}


def run(*results, name="20261125T010203.000001Z-1", command="stepcheck check torch --seed 7", **more):
    """A run that ended."""
    about = {"version": "0.1.0", "environment": ENVIRONMENT, "started": "2026-11-25T01:02:03+00:00", "seed": 7}
    return Run(name, command, results=list(results), **{**about, "seconds": 1.5, "status": 0, **more})


def result(subject="torch:Adam[foreach]", like="Adam", **more):
    """A subject that passed every check."""
    tallies = {
        c: Tally(c, planned=200, ran=190, looked=1000, worst_ratio=0.5 if c == "agreement" else None) for c in CHECKS
    }
    about = {"traces": 200, "calls": 900, "steps": 1500, "elements": 40_000, "worst": {"parameter": 0.5}}
    fields = {"parameter": (40_000, 3)}
    ratios = {"parameter": {"float32": [9, *[100] * 10, *[0] * 11]}}
    return Result(
        subject, like, tallies, **{**about, "fields": fields, "ratios": ratios, "features": {"sparse": 12}, **more}
    )


def divergence(subject="torch:Adam[foreach]", like="Adam", **more):
    """One that the ledger explains, or not."""
    trace = Trace(like, (Parameter(()),), (Group((0,)),), (Step(),))
    about = {"check": "agreement", "cause": "parameter", "summary": "off by 4 budgets", "ratio": 4.0, "found_in": 3}
    return Divergence(subject, like, trace=trace, life=["Then: step."], script="import torch\n", **{**about, **more})


def diverging(subject="torch:Adam[foreach]", like="Adam", *entries, owner="", **more):
    """A subject with known divergences alone, by their entries in the ledger."""
    made = result(subject, like, **more)
    for entry in entries or ("groups-are-not-validated",):
        made.tallies["agreement"].add(divergence(subject, like, entry=entry, owner=owner))
    return made
