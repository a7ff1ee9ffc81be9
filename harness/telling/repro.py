"""Write a failing life as a stand-alone script: it imports torch and the subject alone, and asserts what must hold."""

from __future__ import annotations

import functools
import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

from stepcheck.harness.checking import twins
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.checking.findings import NO_EFFECT, TWIN, Finding
from stepcheck.harness.checking.witness import Witness
from stepcheck.harness.life.events import AddGroup, SetOption, Spoil, Step
from stepcheck.harness.life.memory import GUARD, GUARD_ELEMENTS
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import is_complex
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.telling import dressed
from stepcheck.harness.telling.compared import compared
from stepcheck.harness.telling.statements import Statements

_CLOSURE = [
    "def flat(p):",
    "    return (torch.view_as_real(p) if p.is_complex() else p).reshape(-1).double()",
    "def closure():",
    "    points.append(torch.cat([flat(p.detach()) for p in params]))",
    "    optimizer.zero_grad({cleared})",
    "    loss = scale * sum(function(flat(p) - c) for p, c in zip(params, centres))",
    "    loss.backward()",
    "    return loss",
]
_VIEW = [
    "def view(values, size, stride, room):  # a tensor inside a larger buffer, guard values around it",
    f"    buffer = torch.full((room,), {GUARD!r}, dtype=values.dtype, device=values.device)",
    f"    return buffer.as_strided(size, stride, {GUARD_ELEMENTS}).copy_(values)",
    "",
    "",
]
#: How the script of a check without a witness begins to say so.
_UNPROVEN = "no assertion belongs to the check"
#: The life, and nothing asserted of it.
_LIFE = Witness()


def script(subject: Subject, trace: Trace, finding: Finding, *, twice: bool = False) -> str:
    """The script's text: at most 30 lines, and those that ask a process. It ends in an error as long as the divergence is there.

    Args:
        trace: the life; what comes after the finding is left out.
        finding: what must not be.
        twice: it shows when the life is played for the second time in one process.
    """
    other = _other_life(trace, finding)
    if other is not None:
        return "\n".join(_two_lives(subject, trace, finding, *other)) + "\n"
    for compact, argued in ((False, True), (True, True), (False, False), (True, False)):
        witness = _witness(subject, trace, finding, argued=argued)
        header, body = _Writer(subject, trace, finding, witness, twice=twice).parts(compact=compact)
        if len(header) + len(body) <= 30 + len(dressed.lines(subject)):
            break
    return "\n".join([*header, *body]) + "\n"


def _witness(subject: Subject, trace: Trace, finding: Finding, *, argued: bool) -> Witness:
    """What shows a finding: the reference, where it deviates from that, or what belongs to its check."""
    if finding.deviation is not None:
        return compared(subject, trace, finding, finding.deviation, argued=argued)
    check = CHECKS.get(finding.check)
    return (None if check is None else check.witness) or Witness()


def _other_life(trace: Trace, finding: Finding) -> tuple[Trace, int] | None:
    """The life that a finding sets beside another, and the number of its parameter there."""
    if finding.cause.endswith(NO_EFFECT):
        return next(
            ((u.trace, 0) for u in twins.unset(trace) if finding.cause.startswith(f"{u.option} {u.where}")), None
        )
    if finding.cause != TWIN or finding.parameter is None:
        return None
    lives = (twin for twin in twins.TWINS[finding.check](trace) if finding.parameter in twin.parameters)
    return next(((twin.trace, twin.parameters[finding.parameter]) for twin in lives), None)


def _two_lives(subject: Subject, trace: Trace, finding: Finding, other: Trace, number: int) -> list[str]:
    """Both lives, and what must be alike in them, or must not."""
    here, there = ([n for n, e in enumerate(t.events) if isinstance(e, Step)] for t in (trace, other))
    at = there[here.index(finding.event or 0) - len(here)]  # counted from the end: the other one may begin later
    alone = replace(finding, deviation=None)
    header, one = _Writer(subject, trace, alone, _LIFE).parts(compact=True)
    _, two = _Writer(subject, other, replace(alone, event=at), _LIFE).parts(compact=True)
    d = finding.deviation
    if d is None:
        all_of_it = "str([params, [optimizer.state.get(p) for p in params]])"
        exact = "torch.set_printoptions(precision=20, threshold=100000)"
        ends = [f"before = {all_of_it}"], [f"assert {all_of_it} != before, 'it is the same without'"]
        return [*header[:-1], exact, "", *one, *ends[0], "# The same life without it.", *two, *ends[1]]
    where = "".join(f"[{n}]" for n in d.index)
    parts = is_complex(trace.parameters[d.parameter].dtype) and bool(d.index)
    read = "float({}%s)" % where  # noqa: UP031 - braces are for what is read
    tensors = ["torch.view_as_real({})" if parts else "{}"] * 2
    got, expected = (
        read.format(t.format(f"params[{n}].detach()")) for t, n in zip(tensors, (d.parameter, number), strict=True)
    )
    return [
        *header, *one, f"got = {got}", "# The same life, with what must not matter changed.", *two,
        f"expected, budget = {expected}, {d.budget!r}  # what vectors of another length may cost",
        'assert abs(got - expected) <= budget, f"{got} is not {expected} +- {budget}"',
    ]  # fmt: skip


def run(text: str) -> str:
    """Why a script is no proof of its divergence, run here: it ends well, or cannot begin. Empty where it fails as it should."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(compile(text, "script", "exec"), {"__name__": "__main__"})  # noqa: S102 - it was written here
    except (ImportError, SyntaxError) as error:
        return f"This script does not run by itself: {type(error).__name__}: {error}"
    except AssertionError as error:
        return f"This script shows nothing: {error}." if str(error).startswith(_UNPROVEN) else ""
    except BaseException:  # noqa: BLE001 - that it raises is what it is for
        return ""
    why = (
        "stepcheck compares more than the script can" if "assert " in text else "it plays the life and asserts nothing"
    )
    return f"This script does not fail in a fresh process: {why}."


class _Writer(Statements):
    """Writes the script of a finding."""

    def __init__(
        self, subject: Subject, trace: Trace, finding: Finding, witness: Witness, *, twice: bool = False
    ) -> None:
        super().__init__(subject, trace, finding, witness)
        self.twice = twice

    def parts(self, *, compact: bool) -> tuple[list[str], list[str]]:
        """What is imported, and what is done."""
        body = [*self.witness.first(self), *self._made(compact=compact), *self._built(), *self._happened()]
        if self.finding.event is not None:
            body[-1] += self._remark
        body += self._asserted()
        if self.twice:
            body = self._played_twice(body)
        if any("set_num_threads" in line for line in body):
            body.insert(0, "torch.set_num_threads(1)")
        if any("calls" in line for line in body):
            body.insert(0, "calls = []")
        if any("points" in line for line in body):
            body = [*(line.format(cleared=self.cleared) for line in _CLOSURE), *body]
        return self._header(body), body

    def _header(self, body: Sequence[str]) -> list[str]:
        helper = _VIEW if any(re.search(r"(?<![.\w])view\(", line) for line in body) else []
        numpys = ["import numpy"] if any("numpy." in line for line in body) else []
        imports = [*numpys, "import torch", *self._class, *self._versions]
        if any("str(" in line for line in body):
            imports.append("torch.set_printoptions(precision=20, threshold=100000)")
        about = " ".join(f"# {self.subject.name}: {self.finding.summary}".splitlines())  # or what follows would be run
        return [about, *imports, "", *([""] if helper else []), *helper]

    @property
    def _class(self) -> list[str]:
        """Where the class comes from."""
        if str(getattr(self.subject.make, "__module__", None)).startswith("stepcheck.harness.known."):
            # A class that is there to show what torch does is written out.
            source = inspect.getsource(self.subject.make).rstrip().splitlines()
            return ["from typing import Any", "", "", *source, ""]
        if self.subject.shape is not None:
            return dressed.lines(self.subject)
        if not self.subject.imports:
            return []
        path = '__import__("sys").path.insert(0, "")  # modules are looked for where you stand'
        return [path, self.subject.imports]

    def _made(self, *, compact: bool) -> list[str]:
        """The parameters."""
        parameters = [
            f"    {'None' if n in self.inside else self.parameter(p)}," for n, p in enumerate(self.trace.parameters)
        ]
        lines = ["params = [", *parameters, "]"]
        if compact:
            lines = ["params = [" + " ".join(line.strip() for line in parameters) + "]"]
        between = (f"params[{n}] = {self.between(self.trace.parameters[n], host)}" for n, host in self.inside.items())
        return [*lines, *between]

    def _built(self) -> list[str]:
        """The optimizer."""
        trace, here = self.trace, self.finding.event is None
        named = here and self.witness.names_groups(self)
        lines = self.construct(self.subject, trace.at_first, [g.options for g in trace.groups], trace.form, named=named)
        if here:
            lines[-1:] = [*self.witness.remembers(self), lines[-1] + self._remark]
        return [*lines, self.subject.after] if self.subject.after else lines

    def _happened(self) -> list[str]:
        """The events, up to the one that goes wrong."""
        here, lines = self.finding.event, list[str]()
        for n, event in enumerate(self.trace.events if here is None else self.trace.events[: here + 1]):
            if self.finding.spoilt is None or isinstance(event, AddGroup | SetOption | Spoil):
                lines += self.remembering(event) if n == here else self.written(event)
            # Else it is another optimizer whose state is spoilt.
        return lines

    @property
    def _remark(self) -> str:
        """What is written beside the statement that raises by itself."""
        return f"  # {self.finding.summary}" if self.witness.raises and not self.twice else ""

    def _asserted(self) -> Sequence[str]:
        lines = self.witness.asserts(self)
        if lines or self.witness.raises or self.witness is _LIFE:
            return lines
        # No script ends well of which nobody said what it shows.
        told = f"{_UNPROVEN} {self.finding.check}: give it a witness"
        return [f"raise AssertionError({told!r})"]

    @property
    def _versions(self) -> list[str]:
        """What the script says of the software that it runs."""
        package = _distribution(self.subject)
        if not package:
            return ['print("torch", torch.__version__)']
        told = f'print("torch", torch.__version__, {package!r}, importlib.metadata.version({package!r}))'
        return ["import importlib.metadata", told]

    def _played_twice(self, body: Sequence[str]) -> list[str]:
        loop = ["for _ in range(2):  # the second time it comes out differently", *(f"    {line}" for line in body)]
        if not self.witness.raises:
            return loop  # what it asserts fails the second time
        kept = "    results.append(str([(p.detach(), optimizer.state.get(p)) for p in params]))"
        return ["results = []", *loop, kept, 'assert results[0] == results[1], "\\n".join(results)']


@functools.cache
def _distributions() -> Mapping[str, Sequence[str]]:
    return importlib.metadata.packages_distributions()


def _distribution(subject: Subject) -> str:
    """The installed package that a class comes from; empty where it comes from none."""
    module = subject.imports.partition("from ")[2].partition(" ")[0].partition(".")[0]
    if subject.explicit and module == "stepcheck":
        return ""  # a class of the zoo
    return next(iter(_distributions().get(module, ())), "") if module else ""
