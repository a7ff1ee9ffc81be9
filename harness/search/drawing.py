"""Pages of bytes that Hypothesis draws, set up so that the seed alone decides.

To import Hypothesis takes as long as half of what is here: whoever draws nothing imports nothing of this module.
"""

from __future__ import annotations

import gc
import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, configuration
from hypothesis import strategies as st
from hypothesis.internal.conjecture import providers

from stepcheck.harness.life.trace import Trace
from stepcheck.harness.play.subjects import Subject
from stepcheck.harness.search.generate import PAGE, TRACE_BYTES, decoder, page

_KEY_BYTES = 32


def traces(subject: Subject, dtypes: Sequence[str]) -> st.SearchStrategy[Trace]:
    """A strategy for the traces of :func:`decoder`."""
    return st.binary(min_size=TRACE_BYTES, max_size=TRACE_BYTES).map(decoder(subject, dtypes))


#: A strategy for pages. Hypothesis draws the key alone, because it draws bytes one by one.
PAGES: st.SearchStrategy[list[bytes]] = st.binary(min_size=_KEY_BYTES, max_size=_KEY_BYTES).map(page)


@contextmanager
def _nothing_kept() -> Iterator[None]:
    """Hypothesis writes what it knows of somebody's modules to a folder where they stand: here to one that goes away."""
    before = configuration.storage_directory(intent_to_write=False).home_directory
    with tempfile.TemporaryDirectory(prefix="stepcheck-") as home, _nothing_read():
        configuration.set_hypothesis_home_dir(home)
        try:
            yield
        finally:
            configuration.set_hypothesis_home_dir(before)


@contextmanager
def _nothing_read() -> Iterator[None]:
    """Hypothesis reads constants in all of somebody's modules, to draw them: that takes a second, and is no key of a page.

    One of just as many bytes would be drawn, and the same seed give other lives where it stands somewhere.
    """
    read: Any = getattr(providers, "_get_local_constants", None)
    if read is None:  # in a version that has it elsewhere, it is read
        yield
        return
    none = type(providers._local_constants)()  # noqa: SLF001
    providers._get_local_constants = lambda: none  # noqa: SLF001
    try:
        yield
    finally:
        providers._get_local_constants = read  # noqa: SLF001


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Hypothesis collects garbage when it is first used: to look through all of torch for some would take a fifth of a second."""
    if gc.get_freeze_count():  # somebody else's affair
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def pages(text: str, most: int) -> list[bytes]:
    """What ``most`` lives are made of, each once; ``text`` decides all of it.

    It draws; shrinking works on the traces themselves.
    """
    drawn: dict[bytes, None] = {}  # in order

    @hypothesis.settings(
        max_examples=most // PAGE + 3,  # the first page is one life, the simplest
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]))
    @hypothesis.given(PAGES)
    def collect(page: list[bytes]) -> None:
        drawn.update(dict.fromkeys(page))

    with _nothing_kept(), _no_garbage():
        collect()
    return list(drawn)[:most]
