"""The door to watching a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from stepcheck import __version__
from stepcheck.api import several, spoken_names
from stepcheck.harness.play.declared import Declaration
from stepcheck.harness.play.references import name_of
from stepcheck.harness.readers.report import environment
from stepcheck.harness.watch.report import Report
from stepcheck.harness.watch.saving import NOWHERE, Saved
from stepcheck.harness.watch.watch import Sampling, Surroundings, Watch, WatchError, WatchWarning
from stepcheck.reference import Spec

__all__ = ["Report", "Watch", "WatchError", "WatchWarning", "watch"]


def watch(
    optimizer: torch.optim.Optimizer,
    model: torch.nn.Module | None = None,
    *,
    like: str | Spec | None = None,
    dialects: str | Sequence[str] = (),
    names: Mapping[str, str | Sequence[str]] | None = None,
    ignored: str | Sequence[str] = (),
    held: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    scheduler: Any = None,
    scaler: torch.amp.GradScaler | None = None,
    replicas: Sequence[torch.nn.Module] = (),
    beside: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] = (),
    resumed: Mapping[str, Any] | None = None,
    first: int = 10,
    every: int = 10,
    elements: int = 32,
    seed: int = 0,
    on_finding: str = "warn",
    out: str | Path | None = None,
) -> Watch:
    """Watch the optimizer of a training run: is it stepping right?

    Before a watched step some elements of each parameter, gradient and state are copied, and after it compared with what the reference makes of them,
    with the options of that very step, each within its own rounding error budget. The loop stays as it is. Nothing is changed in it: neither a bit of
    the training nor the random state.

    >>> watch = stepcheck.watch(optimizer, model=model)  # doctest: +SKIP
    >>> ...  # the training  # doctest: +SKIP
    >>> print(watch.report())  # doctest: +SKIP

    Args:
        optimizer: of ``torch.optim`` or ``stepcheck.fast``; of somebody's class, which derives from ``torch.optim.Optimizer``, ``like`` says what it
            is held to. Its parameters may have any dense layout and the dtypes float16, bfloat16, float32, float64, complex64 and complex128.
        model: whose parameters it steps. Each that gets a gradient must stand in it, or in one of ``beside``; and findings call them by its names.
        like: as for :func:`stepcheck.check_optimizer`, and so are ``dialects``, ``names``, ``ignored`` and ``held``.
        profile: facts of a class's arithmetic, by the names that ``stepcheck.harness.play.profiles.Profile`` has for them.
        scheduler: of ``torch.optim.lr_scheduler``, or several: the learning rates must be what it says.
        scaler: the ``GradScaler`` of the run: gradients must be divided by its scale, once. To know which losses it scales, its ``scale`` is listened to.
        replicas: modules that must have the model's weights whenever a step begins.
        beside: other optimizers, which step other parameters of the model.
        resumed: the ``state_dict`` of the optimizer that this run goes on from: the first step must find it.
        first: the first steps, of which each is watched.
        every: of the later ones, each so many-th is.
        elements: of a parameter, so many at most are looked at in a step: the first, the last, and others in each step; at least 3.
        seed: of which they are drawn.
        on_finding: ``"warn"`` gives a :class:`WatchWarning` for each new finding, ``"raise"`` raises a :class:`WatchError`.
        out: a folder, such as ``".stepcheck"``: numbers and findings are appended to ``runs/ID.jsonl`` in it, and each deviation from the reference is saved as the
            step of the elements that were looked at, with a script that needs torch and the class alone.

    Returns:
        The watch: ``report()`` says what it has seen, ``forget()`` that state was reset on purpose, ``close()`` ends it.

    Raises:
        UsageError: ``optimizer`` is none of torch's kind, what is declared makes no sense, or nothing can be written to ``out``.
    """
    declared = Declaration(
        "" if like is None else name_of(like),
        several(dialects),
        spoken_names(names),
        several(ignored),
        dict(held or {}),
        dict(profile or {}),
    )
    schedulers = () if scheduler is None else tuple(scheduler) if isinstance(scheduler, list | tuple) else (scheduler,)
    others = (beside,) if isinstance(beside, torch.optim.Optimizer) else tuple(beside)
    around = Surroundings(model, schedulers, scaler, tuple(replicas), others, resumed)
    sampling = Sampling(first, every, elements, seed)
    saved = NOWHERE
    if out is not None:
        saved = Saved(Path(out), __version__, environment(), asdict(sampling), seed)
    return Watch(optimizer, declared, around, sampling, on_finding, saved)
