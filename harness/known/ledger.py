"""The ledger: divergences of released software that are known, each with its cause and a life that shows it.

A finding that an entry explains is told as known and fails nothing; and every run plays the entries' own lives again, so that
it is noticed when a release mends one. An entry claims one behaviour: its predicate is as narrow as the cause, so that a new
fault in the same buffer of the same optimizer is still found.

Which versions of torch have it is not claimed, but played: :mod:`.evidence` says what each life showed under each version. Under a version
or on a machine of which there is no evidence an entry holds if its own life shows it here.

To add one, write its predicate in the module of its kind, save the shrunk life that ``stepcheck check`` writes as
``harness/known/<name>.json``, and play it under all versions: ``nox -s versions``.
"""

from __future__ import annotations

import numpy as np

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.findings import Finding
from stepcheck.harness.known import around, compiled, fused, gradients, invalid, lbfgs, numerics, sgd, state
from stepcheck.harness.known.entry import Entry
from stepcheck.harness.known.seen import Seen

#: The first entry that claims a finding explains it. Kinds are asked in this order, and of one kind entries as they stand in its module.
KINDS = (fused, sgd, gradients, state, numerics, lbfgs, around, invalid, compiled)
LEDGER = {entry.name: entry for kind in KINDS for entry in kind.KIND}


def explanation(evidence: Evidence, finding: Finding) -> Entry | None:
    """The entry that explains a finding, if there is one."""
    seen = Seen(evidence, finding)
    with np.errstate(all="ignore"):
        return next((entry for entry in LEDGER.values() if entry.explanation_of(seen)), None)


def knows(evidence: Evidence, finding: Finding) -> Entry | None:
    """The entry that explains a finding or, of a deviation, what it comes from: the check that would tell of that may not be asked."""
    entry = explanation(evidence, finding)
    if entry is None and finding.check == "agreement" and evidence.explanation is not None:
        return explanation(evidence, evidence.explanation)
    return entry
