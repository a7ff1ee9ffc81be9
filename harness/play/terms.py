"""What somebody's class calls what its reference calls otherwise, and what its constructor is given beside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from stepcheck.reference.spec import Spec


class TermsError(ValueError):
    """A name is said of something that does not exist, or said twice; the message says which."""


@dataclass(frozen=True)
class Terms:
    """The names of one class. Lives, recordings and the judge speak the reference's; constructors, groups and scripts the class's own.

    Attributes:
        options: of an option of the reference, its name; of a pair or a triple that is several options there, theirs in order.
        buffers: of a state buffer of the class, the reference's name for it; an empty one for what is not looked at.
        held: options that are given one value wherever the class is constructed, by its own names.
    """

    options: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    buffers: Mapping[str, str] = field(default_factory=dict)
    held: Mapping[str, Any] = field(default_factory=dict)

    def theirs(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options under the names of the class."""
        if not self.options:
            return dict(options)
        return {name: part for ours, value in options.items() for name, part in self.parts(ours, value)}

    def parts(self, option: str, value: Any) -> list[tuple[str, Any]]:
        """One option as the class has it: under its name, or each entry under one of several."""
        names = self.options.get(option, (option,))
        if len(names) == 1 or value is None:
            return [(name, value) for name in names]
        return list(zip(names, value, strict=True))

    def ours(self, group: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a group, or a signature, says of the options of the reference, under its names; a pair where both of it are there."""
        if not self.options:
            return group
        renamed = {name for names in self.options.values() for name in names} | self.options.keys()
        found = {k: v for k, v in group.items() if k not in renamed}
        for option, names in self.options.items():
            if all(name in group for name in names):
                found[option] = group[names[0]] if len(names) == 1 else tuple(group[name] for name in names)
        return found

    def read(self, group: str, option: str) -> str:
        """The expression of an option, in a script, where ``group`` is that of the group."""
        names = self.options.get(option, (option,))
        each = [f"{group}[{name!r}]" for name in names]
        return each[0] if len(each) == 1 else f"({', '.join(each)})"

    def can_say(self, option: str, value: Any) -> bool:
        """Whether a value can be given: where an option is several, so many entries can."""
        names = self.options.get(option, ())
        return len(names) < 2 or value is None or (isinstance(value, tuple) and len(value) == len(names))

    def name(self, option: str) -> str:
        """What an option is called in the class, for prose: ``beta1, beta2``."""
        return ", ".join(self.options.get(option, (option,)))

    def buffer(self, theirs: str) -> str:
        """The reference's name for a buffer of the class; empty for what is not looked at."""
        return self.buffers.get(theirs, theirs)

    def their_buffer(self, ours: str) -> str:
        """The class's name for a buffer of the reference."""
        return next((theirs for theirs, name in self.buffers.items() if name == ours), ours)


#: Of a class that calls everything as its reference does.
PLAIN = Terms()


def terms(
    spec: Spec, names: Mapping[str, str | Iterable[str]], ignored: Iterable[str], held: Mapping[str, Any]
) -> Terms:
    """The terms of a class that is held to ``spec``.

    Args:
        names: the reference's name of an option or a buffer, to that of the class; to several for a pair: ``"beta1, beta2"`` as well.
        ignored: buffers of the class that are not to be looked at.
        held: options of the class with the value that they are held at.

    Raises:
        TermsError: the reference has no such option or buffer, has not so many entries in it, or two have one name.
    """
    options, buffers = {h.name: h for h in spec.hyper}, {b.name for b in spec.buffers}
    called: dict[str, tuple[str, ...]] = {}
    kept: dict[str, str] = dict.fromkeys(ignored, "")
    for ours, given in names.items():
        several = tuple(n.strip() for n in (given.split(",") if isinstance(given, str) else given))
        if not all(several):
            raise TermsError(f"{ours}: an empty name")
        if ours in options:
            _check_number(ours, options[ours].default, several)
            called[ours] = several
        elif ours in buffers and len(several) == 1:
            kept[several[0]] = ours
        else:
            had = ", ".join([*options, *sorted(buffers)]) or "nothing"
            raise TermsError(f"{spec.name} has no {ours!r} to be called {', '.join(several)}; it has {had}")
    _check_twice([name for several in called.values() for name in several])
    return Terms(called, kept, dict(held))


def _check_number(option: str, default: Any, names: tuple[str, ...]) -> None:
    entries = len(default) if isinstance(default, tuple) else 1
    if len(names) not in (1, entries):
        numbers = "one number" if entries == 1 else f"{entries} numbers"
        raise TermsError(f"{option} is {numbers}, and was given {len(names)} names: {', '.join(names)}")


def _check_twice(names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise TermsError(f"{name} is the name of two things")
