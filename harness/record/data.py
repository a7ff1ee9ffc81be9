"""Members of an object out of a stream: each is believed once it is of the right type."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


class Unreadable(ValueError):
    """An event is not as the schema has it."""


def whole_of(value: object, where: str) -> int:
    if type(value) is not int or value < 0:
        raise Unreadable(f"{where[:40]} must be a whole number, not negative")
    return value


def number_of(value: object, where: str) -> float:
    if value in ("Infinity", "NaN"):
        return float(str(value))
    if type(value) not in (int, float):
        raise Unreadable(f"{where[:40]} must be a number")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise Unreadable(f"{where[:40]} is too large") from None


_REQUIRED: Any = object()


@dataclass(frozen=True)
class Data:
    """An object out of a stream, whose members are believed once they are of the right type."""

    value: dict[str, Any]

    @classmethod
    def of(cls, value: object) -> Data:
        if not isinstance(value, dict):
            raise Unreadable("an object is missing")
        return cls(value)

    def text(self, name: str, default: str = _REQUIRED) -> str:
        value = self.value.get(name, default)
        if not isinstance(value, str):
            raise Unreadable(f"{name} must be a text")
        return value

    def whole(self, name: str, default: int = _REQUIRED) -> int:
        return whole_of(self.value.get(name, default), name)

    def number(self, name: str, default: float = _REQUIRED) -> float:
        return number_of(self.value.get(name, default), name)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.value.get(name, {})
        if not isinstance(value, dict):
            raise Unreadable(f"{name} must be an object")
        return value

    def sequence(self, name: str) -> list[Any]:
        value = self.value.get(name, [])
        if not isinstance(value, list):
            raise Unreadable(f"{name} must be a list")
        return value

    def texts(self, name: str) -> list[str]:
        values = self.sequence(name)
        if not all(isinstance(value, str) for value in values):
            raise Unreadable(f"{name} must be a list of texts")
        return values

    def wholes(self, name: str, among: Iterable[str]) -> dict[str, int]:
        return {key: whole_of(value, name) for key, value in self._members(name, among)}

    def numbers(self, name: str, among: Iterable[str] | None = None) -> dict[str, float]:
        return {key: number_of(value, name) for key, value in self._members(name, among)}

    def _members(self, name: str, among: Iterable[str] | None) -> Sequence[tuple[str, Any]]:
        found = self.mapping(name)
        strange = found.keys() - set(found if among is None else among)
        if strange:
            raise Unreadable(f"{name}: {min(strange)[:40]!r} is none of them")
        return list(found.items())
