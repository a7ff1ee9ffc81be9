"""What the reference predicts of a step, where the budget has a part of its own."""

import pytest

from stepcheck.harness.checking.case import Evidence
from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.life.events import Gradient, Group, Parameter, Sparse, Step
from stepcheck.harness.life.trace import Trace
from stepcheck.harness.life.values import Values
from stepcheck.harness.play.families import resolve


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_each_entry_of_a_sparse_gradient_may_underflow_by_itself(dtype):
    """SGD adds entries one by one, each times lr: near zero each of the products loses half of the smallest number."""
    entries = Sparse((1,) * 6)
    size = 12 if dtype == "complex64" else 6
    step = Step({0: Gradient(Values("listed", listed=(1.4e-45 * 501,) * size), sparse=entries)})
    trace = Trace("SGD", (Parameter((3,), dtype),), (Group((0,), {"lr": 1e-3}),), (step,))
    for mode in ("forloop", "foreach"):
        (subject,) = resolve(f"torch:SGD[{mode}]")
        assert not list(CHECKS["agreement"].find(Evidence(subject, trace)))
