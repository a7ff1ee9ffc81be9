"""stepcheck: is this optimizer step right?

>>> from stepcheck import check_optimizer
>>> check_optimizer(MyAdam, like="Adam").raise_on_divergence()  # doctest: +SKIP
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stepcheck.api import Divergences, Report, check_optimizer, parametrize_with_checks
    from stepcheck.watching import watch

#: Here and nowhere else: the package may run from a tree that nobody installed.
__version__ = "0.1.0"
__all__ = ["Divergences", "Report", "check_optimizer", "parametrize_with_checks", "watch"]


def __getattr__(name: str) -> Any:
    # Late, so that `import stepcheck.reference` does not import torch.
    if name == "watch":
        from stepcheck.watching import watch

        return watch
    if name in __all__:
        from stepcheck import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
