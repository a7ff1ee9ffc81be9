"""The options that hold in a group, as one value."""

from __future__ import annotations

from types import SimpleNamespace


class GroupOptions(SimpleNamespace):
    """The options of a group, a frozen value: hyperparameter name to plain value, read as attributes.

    Two are equal where all values are spelled alike. What compares equal may be computed with differently: ``1``, ``1.0`` and ``True``
    are apart, and so are ``0.0`` and ``-0.0``. NaN is equal to NaN.
    """

    __slots__ = ("_spelling",)  # beside ``vars()``, which is the options alone
    _spelling: str

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"the options of a group are frozen: make others that have {name}={value!r}")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"the options of a group are frozen: make others without {name}")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GroupOptions) and self._spelled() == other._spelled()

    def __hash__(self) -> int:  # type: ignore[override]  # a namespace, which can be changed, has none
        return hash(self._spelled())

    def _spelled(self) -> str:
        try:
            return self._spelling
        except AttributeError:
            # Only once: the judge asks for it at every step of a parameter.
            items = {k: sorted(v) if isinstance(v, frozenset) else v for k, v in vars(self).items()}
            object.__setattr__(self, "_spelling", repr(sorted(items.items())))
            return self._spelling
