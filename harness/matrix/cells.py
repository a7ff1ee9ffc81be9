"""A table of libraries and optimizers, out of what was played."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stepcheck.harness.matrix.play import own
from stepcheck.harness.play.declared import NO_REFERENCE
from stepcheck.harness.play.references import loaded

#: A reason that begins so is of no fault: its authors say that it is to be so.
INTENDED = "intended: "
#: What a cell says: no fault of the library; none, where no formula was judged; faults; nothing to judge.
AGREES, HOLDS, FAULTS, UNSUPPORTED, UNKNOWN = "agrees", "holds", "faults", "unsupported", "unknown"
STATES = {
    AGREES: "every check passes",
    HOLDS: "every check passes that needs no formula: it has no reference",
    FAULTS: "faults; beside each stands how many of its scripts show it alone",
    UNSUPPORTED: "cannot be checked here",
    UNKNOWN: "nothing was really judged, or the check erred",
}


@dataclass(frozen=True)
class Fault:
    """One cause in one library.

    Attributes:
        cause: what is wrong, in words; of one that nobody has looked at, the summary of the finding.
        looked_at: somebody did, and declared it with its reason.
        subjects: where it shows, in order.
        checks: which found it.
        confirmed: how many of its scripts fail by themselves, out of how many.
        summary: of the first finding.
        script: the shortest that is confirmed.
    """

    library: str
    cause: str
    looked_at: bool
    subjects: tuple[str, ...]
    checks: tuple[str, ...]
    confirmed: tuple[int, int]
    summary: str
    script: str


@dataclass(frozen=True)
class Cell:
    """One class of a library.

    Attributes:
        subject: ``module:Class[label]``.
        row: the optimizer that it is: its reference, or without one its own name.
        dialect: in which it agrees.
        state: one of ``STATES``.
        worst: the largest r of those of its elements that agree, in budgets.
        faults: how many causes.
        torchs: known issues of torch's own class under it.
        checks: how many ran, out of how many there are.
        intended: where it differs from others by what its authors say.
        why: it cannot be checked, if it cannot.
        free: it is held to no reference.
    """

    library: str
    subject: str
    row: str
    dialect: str
    state: str
    worst: float | None
    faults: int
    torchs: int
    checks: tuple[int, int]
    intended: tuple[str, ...]
    why: str
    free: bool


@dataclass(frozen=True)
class Played:
    """One library: its cells and faults, or the reason why there are none."""

    name: str
    url: str
    versions: Mapping[str, str]
    error: str
    cells: tuple[Cell, ...]
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Matrix:
    """All of it.

    Attributes:
        libraries: those that were played first.
        environment: as ``--json`` of ``check`` has it.
        seed: of the lives.
    """

    libraries: tuple[Played, ...]
    environment: Mapping[str, Any]
    seed: int

    @property
    def cells(self) -> tuple[Cell, ...]:
        return tuple(cell for library in self.libraries for cell in library.cells)

    @property
    def faults(self) -> tuple[Fault, ...]:
        return tuple(fault for library in self.libraries for fault in library.faults)

    def rows(self) -> list[str]:
        """Optimizers that have a reference or are in several libraries, those of most libraries first."""
        having: dict[str, set[str]] = {}
        for cell in self.cells:
            having.setdefault(cell.row, set()).add(cell.library)
        judged = {cell.row for cell in self.cells if not cell.free}
        compared = [row for row, found in having.items() if row in judged or len(found) > 1]
        return sorted(compared, key=lambda row: (-len(having[row]), row.lower()))

    def at(self, row: str, library: str) -> list[Cell]:
        """The classes of a library that are this optimizer."""
        return [cell for cell in self.cells if cell.row == row and cell.library == library]


def matrix(written: Mapping[str, Any]) -> Matrix:
    """Out of what the command writes as JSON."""
    return Matrix(
        tuple(_played(library) for library in written["libraries"]), written["environment"], int(written["seed"])
    )


def _played(library: Mapping[str, Any]) -> Played:
    cells = tuple(_cell(library["name"], subject) for subject in library["subjects"])
    faults = tuple(_faults(library))
    return Played(library["name"], library["url"], library["versions"], library.get("error", ""), cells, faults)


def _cell(library: str, subject: Mapping[str, Any]) -> Cell:
    like, _, dialect = subject["like"].partition("[")
    checks = subject["checks"]
    told = list(dict.fromkeys([*(_cause(d) for d in own([dict(subject)])), *map(_passes, _mended(subject))]))
    causes = [cause for cause in told if not cause.startswith(INTENDED)]
    torchs = {d["ledger"] for c in checks for d in c["divergences"] if d.get("ledger")}
    worst = [c["worst_ratio"] for c in checks if c["worst_ratio"] is not None and c["verdict"] != "fail"]
    ran = sum(1 for c in checks if c["ran"])
    return Cell(
        library,
        subject["subject"],
        _name(subject["subject"]) if like == NO_REFERENCE else _called(like),
        dialect.removesuffix("]"),
        _state(subject, len(causes)),
        max(worst, default=None),
        len(causes),
        len(torchs),
        (ran, len(checks)),
        tuple(cause.removeprefix(INTENDED) for cause in told if cause.startswith(INTENDED)),
        "; ".join(subject["notes"][:1]) if subject["verdict"] == UNSUPPORTED else "",
        like == NO_REFERENCE,
    )


def _called(like: str) -> str:
    """The name of a reference, which may be one of those that stand here as ``module:NAME``."""
    module, colon, attribute = like.partition(":")
    return str(loaded(module, attribute, like).name) if colon else like


def _name(subject: str) -> str:
    """A class's own name, without module and label."""
    return subject.partition("[")[0].rpartition(":")[2].rpartition(".")[2]


def _state(subject: Mapping[str, Any], causes: int) -> str:
    if causes:
        return FAULTS
    if subject["verdict"] in (UNSUPPORTED, UNKNOWN):
        return str(subject["verdict"])
    return HOLDS if subject["like"] == NO_REFERENCE else AGREES


def _mended(subject: Mapping[str, Any]) -> list[str]:
    """The checks that are expected to fail, and pass."""
    return [c["check"] for c in subject["checks"] if c["verdict"] == "fail" and not any(own([{"checks": [c]}]))]


def _passes(check: str) -> str:
    return f"{check} passes, and is expected to fail: mended upstream?"


def _cause(divergence: Mapping[str, Any]) -> str:
    return str(divergence.get("expected") or divergence["summary"])


def _faults(library: Mapping[str, Any]) -> Iterator[Fault]:
    found: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for subject in library["subjects"]:
        for check in subject["checks"]:
            for divergence in own([{"checks": [check]}]):
                if _cause(divergence).startswith(INTENDED):
                    continue
                found.setdefault(_cause(divergence), []).append((subject["subject"], check["check"], divergence))
    for subject in library["subjects"]:
        for check in _mended(subject):
            yield Fault(library["name"], _passes(check), False, (subject["subject"],), (check,), (0, 0), "", "")
    for cause, where in found.items():
        scripts = [library["scripts"][d["id"]] for _, _, d in where if d["id"] in library["scripts"]]
        confirmed = [s["text"] for s in scripts if s["confirmed"]]
        yield Fault(
            library["name"],
            cause,
            any(d.get("expected") for _, _, d in where),
            tuple(dict.fromkeys(subject for subject, _, _ in where)),
            tuple(dict.fromkeys(check for _, check, _ in where)),
            (len(confirmed), len(scripts)),
            where[0][2]["summary"],
            min(confirmed, key=len, default=""),
        )
