"""The classes of :mod:`stepcheck.fast` whose steps on CPU tensors are those of CUDA: Triton's interpreter runs the kernels.

>>> from stepcheck.fast.interpreted import AdamW

A thousand times slower, and, bit for bit, what a GPU computes (:mod:`stepcheck.fast.cuda.runtime` says with which exceptions): to check
the kernels where there is no GPU.
"""

from __future__ import annotations

from typing import Any

from stepcheck import fast
from stepcheck.fast.optimizer import Fast


def _interpreted(cls: type[Fast]) -> type[Fast]:
    namespace = {
        "_interpreted": True,
        "__module__": __name__,
        "__doc__": f"``stepcheck.fast.{cls.__name__}``, interpreted.",
    }
    return type(cls.__name__, (cls,), namespace)


__all__ = [name for name in fast.__all__ if name != "Served"]
_CLASSES = {name: _interpreted(getattr(fast, name)) for name in __all__}


def __getattr__(name: str) -> Any:
    if name in _CLASSES:
        return _CLASSES[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
