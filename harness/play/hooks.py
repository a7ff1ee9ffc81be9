"""Hooks that the harness registers."""

from __future__ import annotations

from collections import Counter
from typing import Any

from stepcheck.harness.play.signature import inherits
from stepcheck.harness.play.subjects import Subject


class Hooks:
    """Hooks that count their calls, and how often each should have been called."""

    def __init__(self) -> None:
        self.kinds: list[str] = []
        """Those that the optimizer has by now."""
        self.calls: Counter[str] = Counter()
        self.due: Counter[str] = Counter()

    def add(self, optimizer: Any, kind: str) -> None:
        """One more, that a later optimizer is given as well."""
        self.kinds.append(kind)
        self.register(optimizer, kind)

    def register(self, optimizer: Any, kind: str) -> None:
        """Let an optimizer have one, that counts."""

        def hook(*_: object) -> None:
            self.calls[kind] += 1

        getattr(optimizer, f"register_{kind}_hook")(hook)

    def expect(self, *kinds: str) -> None:
        """That each of these is now due to have been called once."""
        for kind in kinds:
            if kind in self.kinds:
                self.due[kind] += self.kinds.count(kind)

    def expect_of(self, method: str, subject: Subject, optimizer: Any) -> None:
        """Those around a method; of somebody's own method that does not call torch's, they are not expected."""
        if subject.explicit and not inherits(type(optimizer), method):
            for kind in (f"{method}_pre", f"{method}_post"):
                del self.calls[kind]
        else:
            self.expect(f"{method}_pre", f"{method}_post")

    def miscounted(self) -> tuple[str, str]:
        """The first kind that was not called as often as was due, and what is told of it."""
        kinds = [k for k in {**self.due, **self.calls} if self.due[k] != self.calls[k]]
        kind = kinds[0] if kinds else ""
        return kind, f"runs its {kind} hook {self.calls[kind]} times, not {self.due[kind]}"
