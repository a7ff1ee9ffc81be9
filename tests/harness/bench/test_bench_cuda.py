"""The benchmark on a GPU, without one: its arithmetic with clocks and events that are made up, its rows with a CPU that is taken for one."""

from types import SimpleNamespace

import pytest
import torch

from stepcheck import fast
from stepcheck.harness.bench import contenders, cuda, machine, tables
from stepcheck.harness.bench import rounds as bench
from stepcheck.harness.bench.rounds import Row, Settings, Timing
from stepcheck.harness.bench.workloads import Workload, dense

TINY = dense(3, 5)


def test_a_step_takes_what_lies_between_the_events_divided_by_a_thousand():
    said = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            said.append("record")

        def synchronize(self):
            said.append("wait")

        def elapsed_time(self, end):
            assert end is not self
            return 12.5  # milliseconds

    assert cuda.seconds(lambda: said.append("step"), 3, Event) == 0.0125
    assert said == ["record", "step", "step", "step", "record", "wait"]


def test_enqueueing_is_timed_on_an_idle_gpu_and_without_waiting_for_it():
    said, times = [], iter([100.0, 100.5])

    def clock():
        said.append("clock")
        return next(times)

    seconds = cuda.enqueue_seconds(lambda: said.append("step"), 2, lambda: said.append("wait"), clock)
    assert seconds == 0.25
    assert said == ["wait", "clock", "step", "step", "clock", "wait"]


def test_a_copy_moves_as_many_bytes_as_asked_for_read_and_written():
    step = cuda.copy(64, device="cpu")
    target = step()
    assert target.numel() * target.element_size() == 32
    assert not target.any()


def test_on_a_gpu_torch_has_the_modes_for_graphs_too():
    on_gpu = contenders.modes("Adam", "dense", compiled=True, device="cuda")
    assert on_gpu == ("forloop", "foreach", "fused", "capturable", "graph", "compiled")
    assert contenders.modes("Adam", "dense", compiled=False) == ("forloop", "foreach", "fused")
    assert contenders.modes("SGD", "dense", compiled=False, device="cuda") == ("forloop", "foreach", "fused")
    assert "graph" not in contenders.modes("Adagrad", "sparse", compiled=False, device="cuda")


def test_the_fast_class_is_replayed_where_a_graph_can_be_recorded():
    assert contenders.fast_ways("Adam", "dense", "cuda") == ("fast", "fast graph")
    assert contenders.fast_ways("Adam", "dense", "cpu") == ("fast",)
    assert contenders.fast_ways("LBFGS", "objective", "cuda") == ("fast",)
    assert contenders.fast_ways("SGD", "sparse", "cuda") == ("fast",)


def test_ratios_are_of_like_and_like():
    row = Row("Adam", TINY, {}, bytes_per_element=28)
    row.torch = [Timing("fused", [4.0]), Timing("capturable", [6.0]), Timing("graph", [1.0])]
    row.fast, row.fast_graph = Timing("fast", [2.0]), Timing("fast graph", [0.5])
    assert row.best.name == "fused"
    assert row.ratio == 2.0
    assert row.graph_ratio == 2.0
    row.fast_graph = Timing("fast graph", error="it cannot be recorded")
    assert row.graph_ratio is None


def test_a_graph_that_comes_somewhere_else_is_wrong():
    row = Row("Adam", TINY, {})
    row.fast, row.fast_graph = Timing("fast", [1.0], distance=0.0), Timing("fast graph", [1.0], distance=1.0)
    assert row.wrong


@pytest.fixture
def pretended(monkeypatch):
    """The CPU is taken for a GPU: its graphs are the steps themselves."""
    replayed = []

    def captured(step):
        for _ in range(cuda.WARM_UP):
            step()

        def replay():
            replayed.append(1)
            step()

        return replay

    made = Workload.make
    monkeypatch.setattr(cuda, "captured", captured)
    monkeypatch.setattr(cuda, "enqueue_seconds", lambda step: 1e-5)
    monkeypatch.setitem(bench._CLOCKS, "cuda", bench._processor_seconds)
    monkeypatch.setattr(Workload, "make", lambda self, seed, device, dtype: made(self, seed, dtype=dtype))
    monkeypatch.setattr(machine, "free_memory", lambda device: None)
    monkeypatch.setattr(machine, "cache_bytes", lambda device: 1)
    monkeypatch.setattr(bench, "_BATCH", 1e-4)
    return replayed


class OnCPU(fast.Adam):
    """Takes ``capturable=True`` as if it were on a GPU; kernels for the CPU leave that to torch, which refuses it there."""

    def __init__(self, parameters, *, capturable=False, **options):
        super().__init__(parameters, **options)


def test_a_row_has_all_contenders_after_the_same_number_of_steps(pretended, monkeypatch):
    monkeypatch.setattr(fast, "Adam", OnCPU)
    (row,) = bench.rows(["Adam"], [TINY], Settings(rounds=2, device="cuda"), lambda what, done, total: None)
    timed = {t.name: t for t in row.timings}
    assert list(timed) == ["forloop", "foreach", "fused", "capturable", "graph", "fast", "fast graph", "ceiling"]
    assert [t.error for t in timed.values() if t.error] == []
    assert all(t.distance < 1e-5 for name, t in timed.items() if name not in ("forloop", "ceiling"))
    assert all(len(t.host) == 2 for t in timed.values())
    assert pretended
    table = tables.table([row])
    titles = [column.header for column in table.columns]
    assert titles[-6:] == ["by rounds", "graph ratio", "torch host", "fast host", "GB/s", "ceiling"]
    told = tables._result(row)
    assert told["graph_ratio"] == row.graph_ratio
    assert told["fast_graph"]["host"]["median"] == 1e-5


def test_only_those_who_were_named_are_timed_and_a_ceiling_whatever_the_cache_holds(pretended, monkeypatch):
    monkeypatch.setattr(machine, "cache_bytes", lambda device: 1 << 30)
    named = ("foreach", "fused", "fast", "ceiling")
    rows = {}
    for only in ((), named):
        settings = Settings(rounds=2, only=only)
        (row,) = bench.rows(["Adam"], [TINY], settings, lambda what, done, total: None)
        rows[only] = [t.name for t in row.timings if t.seconds]
    assert rows == {(): ["forloop", "foreach", "fused", "fast"], named: list(named)}
    (row,) = bench.rows(["Adafactor"], [TINY], Settings(rounds=2, only=named), lambda what, done, total: None)
    assert [t.name for t in row.timings] == ["foreach", "fast"]


def test_a_ceiling_on_a_gpu_is_a_copy_of_as_many_bytes_as_the_step_moves(monkeypatch):
    asked = []
    monkeypatch.setattr(cuda, "copy", asked.append)
    problem = TINY.make(0)
    monkeypatch.setattr(type(problem), "device", torch.device("cuda"))
    contenders.build("Adam", "ceiling", {}, problem)
    assert asked == [28 * 15]


def test_the_environment_tells_of_the_gpu(monkeypatch):
    properties = SimpleNamespace(
        major=9, minor=0, multi_processor_count=132, total_memory=1 << 36, L2_cache_size=50 << 20
    )
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "some GPU")
    about = tables.environment("cuda")
    assert (about["processor"], about["capability"], about["multiprocessors"]) == ("some GPU", "9.0", 132)
    assert about["cache_bytes"] == 50 << 20
