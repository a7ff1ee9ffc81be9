"""The Python door: check a class from a script or a test suite, in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.life.values import DTYPES
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.profiles import ANY_CLASS, Profile
from stepcheck.harness.play.references import name_of
from stepcheck.harness.play.subjects import Subject, asked_for, class_subject
from stepcheck.harness.readers.report import describe
from stepcheck.harness.record import store
from stepcheck.harness.record.verdict import Divergence, Result
from stepcheck.harness.search.campaign import Campaign
from stepcheck.harness.search.expected import expecting
from stepcheck.harness.search.settings import DEFAULT_EXAMPLES, Settings
from stepcheck.harness.support import dynamo
from stepcheck.harness.support.defaults import PATIENCE
from stepcheck.harness.support.usage import UsageError
from stepcheck.reference import Spec

if TYPE_CHECKING:
    from stepcheck.suite import Expected

Make = Callable[..., Any]


class Divergences(AssertionError):
    """An optimizer diverges from its reference, or nothing could be said of it. The message tells the life, the replay and the repro."""


@dataclass(frozen=True)
class Report:
    """What was found out about one optimizer.

    Attributes:
        result: verdicts, counts and divergences.
        folder: where traces and scripts of divergences were saved.
    """

    result: Result
    folder: Path

    @property
    def verdict(self) -> str:
        """``pass``, ``known``, ``fail``, ``unsupported`` or ``unknown``."""
        return self.result.verdict

    @property
    def divergences(self) -> list[Divergence]:
        return self.result.divergences

    @property
    def expected(self) -> list[Divergence]:
        """Those of checks that were expected to fail."""
        return [d for d in self.result.known if d.expected]

    def raise_on_divergence(self) -> None:
        """Raise unless the verdict is ``pass`` or ``known``.

        Raises:
            Divergences: the verdict is ``fail``, or ``unknown``: what was not checked is not green.
        """
        __tracebackhide__ = True
        if self.verdict in ("pass", "known"):
            return
        about = f"{self.result.subject} (like {self.result.like}): {self.verdict}\n"
        raise Divergences(about + "\n\n".join(self.told()))

    def told(self, *, expected: bool = False) -> list[str]:
        """All that is to be said of what is not green, each in lines.

        Args:
            expected: as if nothing had been expected to fail.
        """
        divergences = [*self.divergences, *(self.expected if expected else ())]
        told = ["\n".join(describe(d, self.folder)) for d in divergences] + self.result.passing_now
        unasked = [t.check for t in self.result.tallies.values() if t.verdict == "unknown"]
        if self.result.error:
            told.append(f"unknown: {self.result.error}")
        if unasked:
            why = [note for note in self.result.notes if note.startswith("unknown: ")] or ["allow more examples"]
            told.append(f"unknown: nothing was there for {', '.join(unasked)} to look at; {'; '.join(why)}")
        return told


def check_optimizer(
    optimizer: Make,
    like: str | Spec | None = None,
    *,
    dialects: str | Sequence[str] = (),
    names: Mapping[str, str | Sequence[str]] | None = None,
    ignored: str | Sequence[str] = (),
    held: Mapping[str, Any] | None = None,
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    dtypes: str | Sequence[str] = (),
    only: str | Sequence[str] = (),
    profile: Profile = ANY_CLASS,
    first: bool = False,
    patience: float | None = None,
    sparse: bool = False,
    tensor_lr: bool = False,
    expected_failures: Mapping[str, str] | None = None,
    out: str | Path = store.DEFAULT_FOLDER,
) -> Report:
    """Check an optimizer class, or a factory, against a reference; without one, ask it for the invariants alone.

    Args:
        optimizer: called as ``optimizer(params, **options)`` with the options of the reference that its signature names.
        like: an optimizer of ``torch.optim``, such as ``"Adam"``; ``"Adam[eps-inside-root]"`` is one in a dialect. Or a reference of
            one's own, as a ``Spec`` or where one stands, ``"module:NAME"``.
        dialects: conventions in which it is meant to differ from that reference, such as ``("decoupled-decay",)``.
        names: what the class calls an option or a buffer of the reference; several names for a pair:
            ``{"betas": ("beta1", "beta2"), "eps": "epsilon", "exp_avg": "m"}``.
        ignored: buffers of the class that are not to be looked at.
        held: options of the class, and the value that each is held at, wherever it is constructed.
        examples: lives to play.
        seed: the same seed plays the same lives.
        dtypes: parameter dtypes, such as ``("bfloat16",)``; float32 and float64 by default.
        only: names of the checks to ask; all by default.
        profile: what is known of its arithmetic; by default any order of operations in the parameter's dtype.
        first: stop at the first divergence, and tell it at once.
        patience: seconds after which a life hangs; 20 by default. The first may take five times as long.
        sparse: give it sparse gradients as well, where its reference gives them a meaning.
        tensor_lr: give it learning rates that are tensors as well.
        expected_failures: checks that it is known to fail, each with the reason: what they find is ``known``. One that passes is a failure.
        out: folder for the traces and scripts of divergences.

    Raises:
        UsageError: ``like``, a dialect, a name, a dtype or a check does not exist, an expected failure has no reason, ``optimizer`` is no optimizer,
            or its reference gives no meaning to what is asked for.
    """
    if patience is not None and not 0 < patience < math.inf:
        raise UsageError(f"patience={patience!r} is no number of seconds; give one above 0, or None for {PATIENCE:.0f}")
    if first:
        dynamo.late()
    settings = Settings(seed, examples, None, several(dtypes), several(only), at_once=first, patience=patience)
    reference = "" if like is None else name_of(like)
    said = Declaration(reference, several(dialects), spoken_names(names), several(ignored), dict(held or {}))
    subject = asked_for(class_subject(optimizer, said, profile=profile), sparse=sparse, tensor_lr=tensor_lr)
    return _check(expecting(subject, expected_failures or {}), settings, Path(out))


def several(names: str | Sequence[str]) -> tuple[str, ...]:
    """Names, of which one may be given by itself."""
    return (names,) if isinstance(names, str) else tuple(names)


def spoken_names(names: Mapping[str, str | Sequence[str]] | None) -> dict[str, str]:
    """What a class calls options and buffers, as a declaration has it.

    Raises:
        UsageError: what stands there is no name.
    """
    said = {}
    for ours, theirs in (names or {}).items():
        parts = several(theirs) if isinstance(theirs, Sequence) else (theirs,)
        if not all(isinstance(name, str) for name in parts):
            raise UsageError(f"names: {ours} must be a name, or names of the parts of a pair, got {theirs!r}")
        said[ours] = ", ".join(parts)
    return said


def _check(subject: Subject, settings: Settings, folder: Path) -> Report:
    for name in settings.only:
        if name not in CHECKS:
            raise UsageError(f"no check named {name!r}; there is {', '.join(CHECKS)}")
    for dtype in settings.dtypes:
        if dtype not in DTYPES:
            raise UsageError(f"no dtype named {dtype!r}; there is {', '.join(DTYPES)}")
    result = Campaign(subject, settings, found=lambda d: store.save(folder, d)).run()
    return Report(result, folder)


def parametrize_with_checks(
    optimizers: Mapping[str, tuple[Make, str | Mapping[str, Any]]],
    *,
    examples: int = DEFAULT_EXAMPLES,
    seed: int = 0,
    dtypes: Sequence[str] = (),
    expected_failed_checks: Expected | None = None,
) -> Any:
    """A pytest decorator: one test for each optimizer and check, each given a ``check`` to call.

    An optimizer lives its lives once, for all of its tests. A check that has no meaning for it is skipped, with the reason. One that is
    expected to fail is an xfail, and fails if it passes. ``pytest --stepcheck-examples``, ``--stepcheck-seed`` and ``--stepcheck-dtype``
    ask for other lives.

    Args:
        optimizers: test name to (class or factory, name of its reference). In place of the name may stand what else is declared, as arguments
            of ``check_optimizer``: ``{"like": "Adam", "names": {"eps": "epsilon"}}``.
        examples: lives to play.
        seed: the same seed plays the same lives.
        dtypes: parameter dtypes; float32 and float64 by default.
        expected_failed_checks: test name to (check to the reason why it fails); or a function that is given a class or factory and returns
            the latter.

    Raises:
        UsageError: an expected failure is of a test or check that does not exist, or has no reason.
    """
    from stepcheck import suite  # which needs what stands above

    lives = suite.Lives(examples, seed, tuple(dtypes))
    return suite.decorator(suite.Suite(optimizers, lives, expected_failed_checks))
