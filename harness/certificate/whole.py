"""Both parts in one, as JSON has them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import mpmath

from stepcheck import __version__
from stepcheck.harness.certificate.inputs import SHORT, Effort
from stepcheck.harness.certificate.references import BITS, Certified, certify, declared
from stepcheck.harness.certificate.survey import Measured, measure
from stepcheck.harness.play.families import resolve
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.readers.report import environment
from stepcheck.reference import SPECS
from stepcheck.reference.spec import Spec


@dataclass
class Certificate:
    """Both parts, and what has no part in them, with the reason."""

    seed: int
    short: bool
    references: list[Certified] = field(default_factory=list)
    torch: list[Measured] = field(default_factory=list)
    declared: dict[str, str] = field(default_factory=dict)

    @property
    def holds(self) -> bool:
        """Whether every reference is within its bound."""
        return all(c.ratio <= 1 for c in self.references)

    def to_json(self) -> dict[str, Any]:
        """The certificate in the schema of the package's docstring."""
        return {
            "stepcheck": __version__,
            "environment": {**environment(), "mpmath": mpmath.__version__},
            "seed": self.seed,
            "bits": BITS,
            "short": self.short,
            "references": [_certified_json(c) for c in self.references],
            "torch": [_measured_json(m) for m in self.torch],
            "declared": [{"name": name, "reason": reason} for name, reason in self.declared.items()],
        }


def _finite(x: float) -> float:
    return min(x, sys.float_info.max)  # JSON has no infinity


def _certified_json(c: Certified) -> dict[str, Any]:
    return {**vars(c), "ratio": _finite(c.ratio)}


def _measured_json(m: Measured) -> dict[str, Any]:
    return {
        **{k: getattr(m, k) for k in ("subject", "dtype", "traces", "elements", "undetermined", "deviating")},
        "ulps": m.ulps and _finite(m.ulps.ulps),
        "ulps_witness": m.ulps and m.ulps.to_json(),
        "ratio": m.ratio and m.ratio.ratio,
        "ratio_witness": m.ratio and m.ratio.to_json(),
    }


def certificate(
    effort: Effort,
    seed: int = 0,
    specs: Sequence[Spec] | None = None,
    subjects: Sequence[Subject] | None = None,
    progress: Callable[[str], None] = lambda what: None,
    row: Callable[[str, dict[str, Any]], None] = lambda part, row: None,
) -> Certificate:
    """Certify references (all, unless some are given), then measure torch subjects (all, unless some are given).

    Args:
        progress: called with the name of each before it.
        row: called with each row once it is there, and the name of its part in the JSON.
    """
    result = Certificate(seed, effort is SHORT)
    for spec in SPECS.values() if specs is None else specs:
        progress(spec.name)
        reason = declared(spec)
        if reason:
            result.declared[spec.name] = reason
        else:
            for certified in certify(spec, effort, seed):
                result.references.append(certified)
                row("references", _certified_json(certified))
    for subject in resolve("torch") if subjects is None else subjects:
        progress(subject.name)
        reason = subject.unsupported or declared(subject.spec)
        if not reason and subject.cost > 1 and not effort.costly:
            reason = "its traces cost too much for the short form"
        if reason:
            result.declared[subject.name] = reason
            continue
        for dtype in subject.dtypes:
            measured = measure(subject, dtype, effort, seed)
            if measured.elements:
                result.torch.append(measured)
                row("torch", _measured_json(measured))
            else:
                raised = f": {measured.raised}" if measured.raised else ""
                result.declared[f"{subject.name}, {dtype}"] = f"nothing to compare in {measured.traces} traces{raised}"
    return result
