"""Times of steps, for pytest-benchmark: ``pytest tests/bench -m slow --benchmark-group-by=group``."""

import pytest

pytest.importorskip("pytest_benchmark")

from stepcheck.harness import contenders
from stepcheck.harness.workloads import QUICK, WORKLOADS, options, takes
from stepcheck.reference import SPECS

CASES = [
    pytest.param(name, workload, who, id=f"{name}-{workload}-{who}")
    for workload in QUICK
    for name in SPECS
    if takes(name, WORKLOADS[workload])
    for who in (*contenders.modes(name, WORKLOADS[workload].kind, compiled=False), contenders.FAST)
    if who != contenders.FAST or contenders.fast_class(name) is not None
]


@pytest.mark.slow
@pytest.mark.parametrize("name, workload, who", CASES)
def test_step(benchmark, name, workload, who):
    benchmark.group = f"{name} {workload}"
    chosen = WORKLOADS[workload]
    contender = contenders.build(name, who, options(name, chosen), chosen.make(0))
    contender.step()  # the first makes the state
    benchmark.pedantic(contender.step, rounds=10, iterations=3, warmup_rounds=1)
    assert all(p.isfinite().all() for p in contender.parameters)
