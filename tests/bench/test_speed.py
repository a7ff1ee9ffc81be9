"""Times of steps, for pytest-benchmark: ``pytest tests/bench -m slow --benchmark-group-by=group``."""

import pytest
import torch

pytest.importorskip("pytest_benchmark")

from stepcheck.harness.bench import contenders
from stepcheck.harness.bench.workloads import QUICK, WORKLOADS, options, takes
from stepcheck.reference import SPECS

CASES = [
    pytest.param(name, workload, who, id=f"{name}-{workload}-{who}")
    for workload in QUICK
    if workload != "400x1024"
    for name in SPECS
    if takes(name, WORKLOADS[workload])
    for who in (*contenders.modes(name, WORKLOADS[workload].kind, compiled=False), contenders.FAST)
    if who != contenders.FAST or contenders.fast_class(name) is not None
]


@pytest.fixture(autouse=True)
def one_thread():
    """On a machine that others use too, threads that wait for each other measure the others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    # Said aloud, or torch warns that it does not check what Adagrad makes of sparse gradients.
    with torch.sparse.check_sparse_tensor_invariants(enable=False):
        yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.parametrize("name, workload, who", CASES)
def test_step(benchmark, name, workload, who):
    benchmark.group = f"{name} {workload}"
    chosen = WORKLOADS[workload]
    contender = contenders.build(name, who, options(name, chosen), chosen.make(0))
    contender.step()  # the first makes the state
    benchmark.pedantic(contender.step, rounds=5, iterations=2, warmup_rounds=1)
    assert all(p.isfinite().all() for p in contender.parameters)
