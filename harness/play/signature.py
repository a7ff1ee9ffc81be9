"""What somebody's constructor and step take: read from their signatures, and tried."""

from __future__ import annotations

import contextlib
import inspect
import io
import multiprocessing
import os
import pickle
import random
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from stepcheck.harness.life.events import FLAGS
from stepcheck.harness.play.terms import PLAIN, Terms
from stepcheck.harness.support.lines import RefusedError
from stepcheck.harness.support.processes import forks
from stepcheck.harness.support.text import in_one_line, said
from stepcheck.reference.spec import Hyper, Spec

#: What a constructor raises for an option that it does not support.
REFUSALS = (ValueError, AssertionError, NotImplementedError, TypeError, RefusedError)
#: How long it may take to build some of them.
_TRIED_SECONDS = 30.0
_NEEDED = ("step", "zero_grad", "state_dict", "load_state_dict", "param_groups")
#: What stands for the default of an option that has none.
NO_DEFAULT = inspect.Parameter.empty


class Closure(NamedTuple):
    """How a step takes a closure.

    Attributes:
        taken: it takes one.
        keyword: by its name alone.
        required: it takes no step without one.
    """

    taken: bool
    keyword: bool = False
    required: bool = False


@dataclass(frozen=True)
class Signature:
    """What a constructor takes.

    Attributes:
        options: names of the reference's options that it takes.
        unlike: options that have the name of one of the reference's and are something else, and why.
        others: options that the reference does not have, with their defaults, in its order.
        defaults: its own defaults, where they differ from the reference's.
        open: those whose default is ``None``.
        constructor_only: those that are not found in a group: what a group says of them has no meaning.
        parameters_only: it takes ``torch.nn.Parameter`` and no other tensors.
        one_group: it takes no more than one group of parameters.
        closure: how its step takes a closure.
        modes: it has ``train()`` and ``eval()``, and steps in the first.
        flags: those of ``FLAGS`` that its own signature names, as flags.
    """

    options: frozenset[str]
    unlike: Mapping[str, str] = field(default_factory=dict)
    others: Mapping[str, Any] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    open: frozenset[str] = frozenset()
    constructor_only: frozenset[str] = frozenset()
    parameters_only: bool = False
    one_group: bool = False
    closure: Closure = field(default_factory=lambda: Closure(taken=True))
    modes: bool = False
    flags: tuple[str, ...] = ()


class UnbuildableError(Exception):
    """The constructor builds no optimizer of a list of parameters; the message says what it does."""


def read(make: Callable[..., Any], spec: Spec, terms: Terms = PLAIN) -> Signature:
    """What a class or a factory takes, by the names of its reference.

    It is tried in a process of its own: a class may keep count of its instances, and then no life in this one would be like the first. Where
    that process ends early, or does not end, the signature says all that is known; a life will show the rest.

    Raises:
        UnbuildableError: it does not return an optimizer from a call with one parameter, neither with its own defaults nor with the reference's.
        TypeError, ValueError: its signature cannot be read.
    """
    names, takes_any = _keywords(make, terms)
    named = frozenset(h.name for h in _named_of(spec, names, terms, takes_any=takes_any))
    outcome = apart(lambda: tried(make, spec, terms))
    if isinstance(outcome, UnbuildableError):
        raise outcome
    return outcome if outcome is not None else Signature(named)


Answer = TypeVar("Answer")


def apart(ask: Callable[[], Answer], seconds: float = _TRIED_SECONDS) -> Answer | UnbuildableError | None:
    """The answer of a process of its own; nothing where that ends early, or does not end. On systems without fork, of this one."""
    if not forks() or multiprocessing.current_process().daemon:
        return ask()
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=lambda: send.send(_outcome(ask)))
    with warnings.catch_warnings():  # of threads, of which the child needs none
        warnings.simplefilter("ignore")
        process.start()
    send.close()
    try:
        outcome: Answer | UnbuildableError | None = receive.recv() if receive.poll(seconds) else None
    except EOFError:
        outcome = None
    finally:
        process.kill()
        process.join()
    return outcome


def _outcome(ask: Callable[[], Answer]) -> Answer | UnbuildableError | None:
    """In the child. Nothing where trying it fails in a way that nobody thought of."""
    warnings.simplefilter("ignore")
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nobody,
        contextlib.redirect_stdout(nobody),
        contextlib.redirect_stderr(nobody),
    ):
        try:
            return ask()
        except UnbuildableError as error:
            return error
        except Exception:  # noqa: BLE001
            return None


def tried(make: Callable[..., Any], spec: Spec, terms: Terms = PLAIN) -> Signature:
    """What a class or a factory takes, found out by building some in this process.

    Raises:
        UnbuildableError: it does not return from a call with one parameter, neither with its own defaults nor with the reference's.
        TypeError, ValueError: its signature cannot be read.
    """
    names, takes_any = _keywords(make, terms)
    own = terms.ours(_named(inspect.signature(make)))  # what is handed on may get lost on the way
    hypers = {h.name: h for h in spec.hyper}
    named = _named_of(spec, names, terms, takes_any=takes_any)
    unlike = {h.name: why for h in named if (why := _another_kind(names.get(h.name, NO_DEFAULT), h))}
    named = [h for h in named if h.name not in unlike]
    trial = Trial(make, terms)
    parameter, optimizer, given = _first(trial, named)
    refusals = {
        h.name: _not_taken(trial, parameter, h, given, swallowed=h.name not in own, conflicts=_conflicts(spec, h))
        for h in named
    }
    unlike |= {name: why for name, why in refusals.items() if why is not None}
    options = frozenset(h.name for h in named if h.name not in unlike)
    return Signature(
        options=options,
        unlike={name: why for name, why in unlike.items() if why},
        others={k: _sent(v) for k, v in names.items() if k not in hypers and k not in (_first_name(make), "params")},
        defaults={
            k: _sent(v) for k, v in names.items() if k in hypers and k not in unlike and _differs(v, hypers[k].default)
        },
        constructor_only=options - set(terms.ours(optimizer.param_groups[0])),
        open=frozenset(name for name, default in names.items() if default is None),
        parameters_only=not _builds(trial, [torch.ones(2, 2, requires_grad=True)], given),
        one_group=not _builds(trial, [{"params": [torch.nn.Parameter(torch.ones(2, 2))]} for _ in range(2)], given),
        closure=closure_of(optimizer),
        modes=callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None)),
        # Who takes any keyword need not know what this one means.
        flags=tuple(flag for flag in FLAGS if isinstance(own.get(flag, NO_DEFAULT), bool | None)),
    )


def _sent(default: Any) -> Any:
    """A default as another process can have it: of a function without a name, that there is one."""
    try:
        pickle.dumps(default)
    except Exception:  # noqa: BLE001 - whatever somebody's object raises
        return NO_DEFAULT
    return default


class Trial(NamedTuple):
    """Builds a class in its own terms.

    Attributes:
        make: the class or factory.
        terms: what it calls the options of its reference, and what it is given beside.
    """

    make: Callable[..., Any]
    terms: Terms

    def built(self, parameters: Any, options: Mapping[str, Any]) -> Any:
        """What it returns for options of the reference."""
        return built(self.make, parameters, {**self.terms.theirs(options), **self.terms.held})


def _keywords(make: Callable[..., Any], terms: Terms) -> tuple[Mapping[str, Any], bool]:
    """The same by the names of the reference, without those that are held at a value."""
    names, takes_any = keywords(make)
    return terms.ours({name: default for name, default in names.items() if name not in terms.held}), takes_any


def _named_of(spec: Spec, names: Mapping[str, Any], terms: Terms, *, takes_any: bool) -> list[Hyper]:
    """The options of the reference that a constructor names, or may take."""
    # Whoever takes any keyword need not know those that came after it was written.
    free = [h for h in spec.hyper if not terms.held.keys() & terms.options.get(h.name, {h.name})]
    return [h for h in free if h.name in names or (takes_any and not h.since)]


def keywords(make: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    """The keywords that a class or a factory names, with their defaults, and whether it takes any others.

    A constructor that takes any hands them on to the next one, and takes what that one takes; but that of torch's base class takes a dictionary.
    """
    signature = inspect.signature(make)
    names = _named(signature)
    if not _takes_any(signature):
        return names, False
    above = [cls for cls in make.__mro__ if cls not in (torch.optim.Optimizer, object)] if inspect.isclass(make) else []
    for init in (vars(cls)["__init__"] for cls in above if "__init__" in vars(cls)):
        try:
            of_init = inspect.signature(init)
        except (ValueError, TypeError):  # of a constructor in C nothing is known
            break
        names = _named(of_init) | names
        if not _takes_any(of_init):
            return names, False
    return names, True


def _named(signature: inspect.Signature) -> dict[str, Any]:
    unnamed = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: p.default for name, p in signature.parameters.items() if p.kind not in unnamed and name != "self"}


def _takes_any(signature: inspect.Signature) -> bool:
    return any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values())


def _first_name(make: Callable[..., Any]) -> str:
    """What the parameters are called."""
    return next(iter(inspect.signature(make).parameters), "params")


def _another_kind(default: Any, hyper: Hyper) -> str:
    """Why an option with this default cannot be the reference's, or nothing."""
    ours, theirs = _kind(hyper.default), _kind(default)
    if not ours or not theirs or ours == theirs:
        return ""
    return f"its default is {default!r}, where the reference has {_KINDS[ours]}"


_KINDS = {"flag": "a flag", "number": "a number", "name": "a name"} | {f"{n}": f"{n} numbers" for n in range(1, 5)}


def _kind(value: Any) -> str:
    """What an option is, as its default tells; of ``None`` nothing is known."""
    if isinstance(value, bool):
        return "flag"
    if isinstance(value, int | float):
        return "number"
    if isinstance(value, str):
        return "name"
    return f"{len(value)}" if isinstance(value, list | tuple) else ""


def _differs(theirs: Any, ours: Any) -> bool:
    """Whether a default is another value."""
    if theirs is NO_DEFAULT or theirs is None or ours is None:
        return False
    as_tuple = tuple(theirs) if isinstance(theirs, list) else theirs
    return bool(_kind(theirs)) and as_tuple != ours


def _first(trial: Trial, named: list[Hyper]) -> tuple[torch.Tensor, Any, dict[str, Any]]:
    """A parameter, an optimizer of it, and the options that it takes to build one."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    raised = ""
    for given in ({}, {h.name: h.default for h in named if h.default is not None}):
        try:
            optimizer = trial.built([parameter], given)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it raises is told
            raised = raised or in_one_line(": ".join(filter(None, (type(error).__name__, said(error)))))[:200]
            continue
        lacking = [name for name in _NEEDED if not hasattr(optimizer, name)]
        if lacking:
            message = (
                f"returns something of type {type(optimizer).__name__}, which has no {lacking[0]}; it is no optimizer"
            )
            raise UnbuildableError(message)
        return parameter, optimizer, given
    raise UnbuildableError(f"raises {raised}")


def _not_taken(
    trial: Trial,
    parameter: torch.Tensor,
    hyper: Hyper,
    given: Mapping[str, Any],
    *,
    swallowed: bool,
    conflicts: bool,
) -> str | None:
    """Why an option is not taken as the reference's is, or ``None``; nothing where it is only swallowed with others."""
    value = hyper.default if hyper.default is not None else _another(hyper)
    try:
        trial.built([parameter], {**given, hyper.name: value})
    except Exception as error:  # noqa: BLE001 - a value that it refuses, or a fault that lives will show
        if isinstance(error, TypeError):
            return f"TypeError: {error}"
    try:
        optimizer = trial.built([parameter], {**given, hyper.name: _another(hyper)})
    except REFUSALS as error:
        return f"{type(error).__name__}: {error}" if hyper.is_flag and not conflicts else None
    except Exception:  # noqa: BLE001 - a fault that lives will show
        return None
    group = trial.terms.ours(optimizer.param_groups[0])
    return "" if swallowed and group.get(hyper.name) != _another(hyper) else None


def _conflicts(spec: Spec, hyper: Hyper) -> bool:
    """Whether another value of an option is refused beside the defaults of the others."""
    return spec.problem(SimpleNamespace(**{**vars(spec.hyper_values()), hyper.name: _another(hyper)})) is not None


def _another(hyper: Hyper) -> Any:
    """A value that is not the default."""
    if hyper.is_flag:
        return not hyper.default
    if hyper.choices:
        return next(c for c in hyper.choices if c != hyper.default)
    if isinstance(hyper.default, tuple):
        return hyper.examples[0] if hyper.examples else tuple(0.5 * (x or 1e-3) for x in hyper.default)
    if hyper.integer:
        return 3 if hyper.default != 3 else 2
    return 0.5 * float(hyper.default or 1.0)


def _builds(trial: Trial, parameters: Any, given: Mapping[str, Any]) -> bool:
    try:
        trial.built(parameters, given)
    except REFUSALS:
        return False
    except Exception:  # noqa: BLE001 - not for what it was given
        return True
    return True


def built(make: Callable[..., Any], parameters: Any, options: Mapping[str, Any]) -> Any:
    """What the constructor returns: it prints, warns and draws random numbers for nobody."""
    with _apart(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        return make(parameters, **options)


@contextlib.contextmanager
def _apart() -> Iterator[None]:
    kept = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002 - the one that everybody shares
    try:
        yield
    finally:
        torch.set_rng_state(kept[0])
        np.random.set_state(kept[1])  # noqa: NPY002
        random.setstate(kept[2])


def takes_keyword(method: Callable[..., Any], name: str) -> bool:
    """Whether a method can be called with a keyword."""
    try:
        inspect.signature(method).bind(**{name: True})
    except (TypeError, ValueError):
        return False
    return True


def inherits(make: Callable[..., Any], method: str, theirs: type = torch.optim.Optimizer) -> bool:
    """Whether a method is that of torch's base class, or of another class of torch, or one that calls it by super()."""
    if not isinstance(make, type) or not issubclass(make, theirs):
        return False
    own = inspect.unwrap(getattr(make, method))  # torch wraps the step of a class once it is built
    if own is inspect.unwrap(getattr(theirs, method)):
        return True
    names = getattr(getattr(own, "__code__", None), "co_names", ())
    return {"super", method} <= set(names)


def plain_step(optimizer: Any) -> Callable[[], object]:
    """Takes a step with the gradients that there are, and with a closure where the optimizer must have one."""
    how = closure_of(optimizer)
    if not how.required:
        step: Callable[[], object] = optimizer.step
        return step
    return lambda: optimizer.step(closure=lambda: 0.75) if how.keyword else optimizer.step(lambda: 0.75)


def closure_of(optimizer: Any) -> Closure:
    """How the step of an optimizer takes a closure."""
    method = getattr(type(optimizer), "step", None)
    # A schedule puts a function of its own in the place of an optimizer's step: what the class has is what counts.
    step, bound = (optimizer.step, True) if method is None else (method, False)
    try:
        parameters = list(inspect.signature(step).parameters.values())
    except (TypeError, ValueError):
        return Closure(taken=True)
    parameters = parameters if bound or isinstance(method, staticmethod) else parameters[1:]
    for p in parameters:
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD):
            return Closure(taken=True, required=p.default is p.empty)
    named = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name == "closure"]
    if named:
        return Closure(taken=True, keyword=True, required=named[0].default is named[0].empty)
    return Closure(taken=any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters))
