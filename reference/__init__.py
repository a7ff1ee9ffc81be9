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

from stepcheck.reference.adadelta import ADADELTA
from stepcheck.reference.adafactor import ADAFACTOR
from stepcheck.reference.adagrad import ADAGRAD
from stepcheck.reference.adam import ADAM, ADAMW
from stepcheck.reference.adamax import ADAMAX
from stepcheck.reference.asgd import ASGD
from stepcheck.reference.lbfgs import LBFGS
from stepcheck.reference.muon import MUON
from stepcheck.reference.nadam import NADAM
from stepcheck.reference.radam import RADAM
from stepcheck.reference.rmsprop import RMSPROP
from stepcheck.reference.rprop import RPROP
from stepcheck.reference.sgd import SGD
from stepcheck.reference.sparse_adam import SPARSE_ADAM
from stepcheck.reference.spec import Buffer, Domain, Hyper, Spec

#: Every optimizer that has a reference, by its name in ``torch.optim``.
SPECS: dict[str, Spec] = {
    spec.name: spec
    for spec in (
        SGD, ASGD, ADADELTA, ADAGRAD, ADAM, ADAMW, ADAMAX, NADAM, RADAM, RMSPROP, RPROP, LBFGS, SPARSE_ADAM,
        ADAFACTOR, MUON,
    )
}  # fmt: skip

__all__ = ["SPECS", "Buffer", "Domain", "Hyper", "Spec"]
