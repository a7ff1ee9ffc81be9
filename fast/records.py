"""Records: words of 64 bits with names, of which the tables of kernels are made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from stepcheck.fast.tensors import Words


class _Named(type):
    if TYPE_CHECKING:

        def __getattr__(cls, name: str) -> int: ...


class Record(metaclass=_Named):
    """One line of a table.

    A subclass names its words, each with what it is, if not an integer: ``lr:float``, or ``rows:Row`` of an address where a table of such records begins. The class has
    the number of each word (``Row.outer``), an instance its value. In a kernel ``row.outer`` is the word of the record that ``row`` is the address of, and
    ``rows[k]`` the address of the record k lines after ``rows``.
    """

    fields: ClassVar[dict[str, str]] = {}
    words: ClassVar[int] = 0

    def __init_subclass__(cls, words: str) -> None:
        cls.fields = cls.fields | {
            name: kind or "int" for name, _, kind in (word.partition(":") for word in words.split())
        }
        cls.words = len(cls.fields)
        for number, name in enumerate(cls.fields):
            setattr(cls, name, number)

    def __init__(self, **values: Any) -> None:
        self.__dict__ |= dict.fromkeys(self.fields, 0) | values

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...
        def __setattr__(self, name: str, value: Any) -> None: ...

    @classmethod
    def table(cls, lines: Sequence[Record]) -> Words:
        """The words of records of this kind."""
        return np.array([[*line.__dict__.values()] for line in lines], np.int64).reshape(-1, cls.words)
