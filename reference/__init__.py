"""The executable specification of each optimizer: one file each, plain NumPy, never torch.

An update is written once, as the recurrence stands on paper, and obeys NumPy's operators and functions alone, so float64
arrays, error-bounded arrays and arrays of multiple-precision numbers all flow through the same source.

>>> import numpy as np
>>> from stepcheck.reference import SPECS
>>> sgd = SPECS["SGD"]
>>> p, state = sgd.update(np.array([1.0]), np.array([0.5]), {"momentum_buffer": None}, sgd.hyper_values(lr=0.5))
>>> p
array([0.75])
"""

import importlib
import pkgutil

from stepcheck.reference.spec import Buffer, Domain, Hyper, Spec


def _specs() -> dict[str, Spec]:
    """Each Spec that a module of this folder defines."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    specs = [x for module in modules for x in vars(module).values() if isinstance(x, Spec)]
    return {spec.name: spec for spec in sorted(specs, key=lambda spec: spec.name)}


#: Every optimizer that has a reference, by its name; who else has it, ``torch.optim`` or another, is not said here.
SPECS: dict[str, Spec] = _specs()

__all__ = ["SPECS", "Buffer", "Domain", "Hyper", "Spec"]
