"""What the tests of kernels for CUDA share."""

import pytest

from stepcheck.fast.cuda import runtime


@pytest.fixture
def launches(monkeypatch):
    """What is launched, as (source, programs), and nothing done."""
    seen = []
    monkeypatch.setattr(runtime, "launch", lambda source, device, programs, arguments: seen.append((source, programs)))
    return seen
