"""Optimizers that are no classes of torch's, for ``check_optimizer`` and ``parametrize_with_checks``."""

from __future__ import annotations

from stepcheck.harness.play.functions import functional
from stepcheck.harness.play.owned import owned
from stepcheck.harness.play.shapes import process

__all__ = ["functional", "owned", "process"]
