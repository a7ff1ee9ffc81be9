"""A finding as data that needs nothing else."""

from __future__ import annotations

from dataclasses import replace

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.record.verdict import EXPECTED, Divergence
from stepcheck.harness.telling import explain, repro
from stepcheck.reference.dialects import title


def tell(
    subject: Subject, trace: Trace, finding: Finding, count: int = 1, *, evaluate: bool = True, twice: bool = False
) -> Divergence:
    """A finding as data that needs nothing else: the life told, and written as a script.

    Args:
        twice: it shows when the life is played for the second time in one process.
        evaluate: play the trace once more, to tell what the budget is made of; not where it hangs or crashes.
    """
    lines = explain.life(subject, trace, finding)
    if finding.owner:
        finding = replace(finding, summary=f"{finding.owner}, which a round trip led into: {finding.summary}")
    if evaluate and finding.deviation is not None:
        told = explain.shares(Evidence(subject, trace), finding)
        lines += [told] if told else []
    return Divergence(
        subject=subject.name,
        like=title(subject.spec),
        check=finding.check,
        cause=finding.kind,
        summary=finding.summary,
        ratio=finding.ratio,
        trace=trace,
        life=lines,
        script=repro.script(subject, trace, finding, twice=twice),
        found_in=count,
        entry=EXPECTED + subject.expected[finding.check] if finding.check in subject.expected else "",
        owner=finding.owner,
        declared=subject.declared,
    )
