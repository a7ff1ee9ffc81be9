"""What a convention is in which implementations of one optimizer differ."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from stepcheck.reference.conventions import Step, but
from stepcheck.reference.spec import Buffer, HyperValues, Spec


@dataclass(frozen=True)
class Dialect:
    """One convention.

    Attributes:
        kind: what it is about; of one kind, an implementation follows one.
        name: what a declaration calls it.
        words: what it does, to follow "with".
        wrap: an update that follows it, made of one that does not.
        of: whether an optimizer has what it is about.
        initial: what it fills buffers with before the first step, by name, where that is another value.
        options: values of options that it has in place of those that are given.
        of_group: the buffers that are one number for the whole group.
    """

    kind: str
    name: str
    words: str
    of: Callable[[Spec], bool]
    wrap: Callable[[Step], Step] = lambda update: update
    initial: Callable[[Spec], dict[str, float]] = lambda _: {}
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    of_group: tuple[str, ...] = ()

    def applied(self, spec: Spec) -> Spec:
        """The optimizer in this dialect."""
        started = self.initial(spec)
        buffers = tuple(replace(b, initial=_always(started[b.name])) if b.name in started else b for b in spec.buffers)
        buffers = tuple(replace(b, of_group=True) if b.name in self.of_group else b for b in buffers)
        return replace(
            spec,
            update=self.wrap(self._given(spec.update)),
            buffers=tuple(self._kept(b) for b in buffers),
            dialects=(*spec.dialects, (self.kind, self.name)),
        )

    def _given(self, update: Step) -> Step:
        return (lambda p, g, state, hyper: update(p, g, state, but(hyper, **self.options))) if self.options else update

    def _kept(self, buffer: Buffer) -> Buffer:
        """A buffer that is there, and begins, as the options say that are in place of those that are given."""
        if not self.options:
            return buffer
        return replace(
            buffer,
            initial=lambda hyper: buffer.initial(but(hyper, **self.options)),
            present=lambda hyper: buffer.present(but(hyper, **self.options)),
        )


def _always(value: float) -> Callable[[HyperValues], float]:
    return lambda _: value


def with_options(kind: str, words: str, **values: Any) -> Dialect:
    """Other values of options than those that the reference is given."""
    return Dialect(kind, "", words, lambda _: True, options=values)
