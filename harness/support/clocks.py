"""Where the time of a campaign goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clocks(dict[str, float]):
    """Seconds by what they went into; 0 for what was never timed."""

    def __missing__(self, name: str) -> float:
        return 0.0

    @contextmanager
    def running(self, name: str) -> Iterator[None]:
        """Count the time that this takes, however it ends."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self[name] += time.perf_counter() - start
