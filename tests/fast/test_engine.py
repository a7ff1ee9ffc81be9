"""Tables, kernels and what watches them."""

import math

import numpy as np
import pytest
import torch

from stepcheck import fast
from stepcheck.fast import RULES, engine, interpreted, kernels, rules, tensors
from stepcheck.fast.engine import walk


def byte_offsets(way):
    """Every element that a walk passes, as offsets in each stream."""
    steps = np.arange(way.length)[:, None] * np.array(way.distances)
    runs = np.arange(way.runs)[:, None] * np.array(way.strides)
    return [tuple(map(int, at)) for start in way.starts for run in runs for at in start + run + steps]


def byte_offsets_of_chunks(way, streams):
    """The same, by the chunks that it is cut into."""
    passed = []
    for _, count, runs, *at in engine._pieces(0, way, streams).tolist():
        start = np.array(at)
        passed += byte_offsets(way._replace(length=count, runs=runs, starts=start[None]))
    return passed


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(
    "tensors",
    [
        (torch.empty(3, 4), torch.empty(3, 4)),
        (torch.empty(4, 3).t(), torch.empty(3, 4)),
        (torch.empty(2, 3, 4).permute(2, 0, 1), torch.empty(2, 3, 4).permute(2, 0, 1), torch.empty(4, 2, 3)),
        (torch.empty(6, 8)[::2, 1::3], torch.empty(3, 3), torch.empty(1, 3).expand(3, 3)),
        (torch.empty(()), torch.empty(())),
        (torch.empty(1, 5, 1), torch.empty(5)[None, :, None]),
        (torch.empty(0, 5), torch.empty(0, 5)),
        (torch.empty(7, 4, 4)[:, :2, :3], torch.empty(7, 2, 3)),
        (torch.empty(3, 9, 5, 4)[:2, :, ::2, :3], torch.empty(2, 9, 3, 3)),
        (torch.empty(2, 40)[:, :30], torch.empty(2, 30)),
    ],
    ids=lambda found: "-".join(str(tuple(t.shape)) for t in found),
)
def test_a_walk_passes_each_element_once_and_the_same_in_each_stream(tensors, nested, monkeypatch):
    monkeypatch.setattr(engine, "CHUNK", 8)
    strides = [[s * 4 for s in t.stride()] for t in tensors]
    way = walk(tensors[0].shape, strides, nested=nested)
    expected = {
        tuple(sum(i * s for i, s in zip(index, stride, strict=True)) for stride in strides)
        for index in np.ndindex(*tensors[0].shape)
    }
    for passed in (byte_offsets(way), byte_offsets_of_chunks(way, len(tensors))):
        assert len(passed) == tensors[0].numel()
        assert set(passed) == expected


def test_tensors_of_one_layout_are_one_run():
    t = torch.empty(4, 5, 6).permute(2, 0, 1)
    assert walk(t.shape, [[s * 4 for s in t.stride()]] * 3).length == 120


def test_a_slice_of_tiny_rows_needs_no_table_of_them():
    for shape, part in (((100_000, 4), (slice(None), slice(3))), ((20_000, 3, 3), (slice(None), slice(2), slice(2)))):
        p = torch.zeros(shape)[part].requires_grad_()
        p.grad = torch.ones(p.shape)
        optimizer = fast.Adam([p], lr=1.0)
        optimizer.step()
        assert p.unique().tolist() == pytest.approx([-1.0])
        ((launch, _),) = optimizer._plans[0]._launches
        assert launch._chunks.nbytes + launch._batches.nbytes < p.nbytes / 100


@pytest.mark.parametrize(
    ("tensor", "shared"),
    [
        (torch.empty(3, 4), False),
        (torch.empty(3, 4).t(), False),
        (torch.empty(1).expand(5), True),
        (torch.empty(1, 4).expand(3, 4), True),
        (torch.empty(9).as_strided((4, 3), (2, 1)), True),
        (torch.empty(9).as_strided((3, 2), (3, 1)), False),
        (torch.empty(0, 1).expand(0, 3), False),
    ],
)
def test_tensors_whose_elements_share_memory_are_known(tensor, shared):
    assert engine.overlaps(tensor) is shared


def test_batches_hold_every_chunk_once():
    counts = np.array([5, 40_000, 3, 3, 100_000, 1])
    found = engine._batches(counts)
    assert found[0] == 0
    assert found[-1] == len(counts)
    assert (np.diff(found) > 0).all()


def test_a_rule_run_as_plain_python_is_what_its_kernel_computes():
    # In float64, where the functions of a rule are Python's own; a kernel may contract a product and a sum into one rounding.
    for name, rule in RULES.items():
        if name == "SparseAdam":
            continue
        cls = getattr(fast, name)
        p = torch.linspace(-1, 1, 7, dtype=torch.float64).requires_grad_()
        p.grad = torch.linspace(2, -1, 7, dtype=torch.float64)
        optimizer = cls([p], lr=0.125)
        group = optimizer.param_groups[0]
        before = p.detach().clone()
        counters = [start(group) for start in rule.counters.values()]
        options = [1.0 if o == "fresh" else rules.option(group, o) for o in rule.options]
        scalars = rule.prepare(*counters, *options)[len(counters) :]
        buffers = [b.initial(group) for b in rule.buffers.values()]
        expected = [
            rule.update(x, g, *buffers, *scalars)[0] for x, g in zip(before.tolist(), p.grad.tolist(), strict=True)
        ]
        optimizer.step()
        assert p.tolist() == pytest.approx(expected, rel=4 * 2**-52, abs=2**-52), name


def test_numbers_in_a_rule_have_the_type_that_it_computes_in():
    layout = kernels.Layout(rules.RPROP, "float32", tuple(rules.RPROP.buffers))
    source = kernels.step_source(layout)
    assert "real(0.0)" in source
    body = source.split("def update")[1].split("def dense")[0]
    assert " 0 " not in body
    assert " 1.0" not in body.replace("real(1.0)", "")


@pytest.mark.parametrize("native", [True, False], ids=["native", "plain"])
class TestWatching:
    @pytest.fixture(autouse=True)
    def _choose(self, native, monkeypatch):
        if not native:
            monkeypatch.setattr(tensors, "_native_functions", lambda: None)
        elif tensors._native_functions() is None:
            pytest.skip("this release of torch or Python has not what it takes")

    def test_addresses(self):
        these = [torch.empty(3), torch.empty(5)[2:], torch.empty(0), torch.empty(2, requires_grad=True)]
        assert tensors.Addresses(4).read(these).tolist() == [t.data_ptr() for t in these]

    def test_objects_of_lists(self):
        these = [torch.ones(2), torch.ones(2), {}]
        watch = tensors.Watch([these, []], [], [])
        assert watch.same(list(these), [])
        assert not watch.same(these[:2], [])
        assert not watch.same(these, [1])
        assert not watch.same([these[0], these[0], these[2]], [])
        assert not watch.same([these[0], these[1], {}], [])

    def test_entries_of_dictionaries(self):
        one, other = {"step": torch.ones(())}, {"step": torch.ones(()), "exp_avg": torch.ones(2)}
        watch = tensors.Watch([], [(one, "step", one["step"]), (other, "exp_avg", other["exp_avg"])], [])
        assert watch.same()
        other["step"] = torch.zeros(())
        assert watch.same()
        other["exp_avg"] = torch.ones(2)
        assert not watch.same()
        del other["exp_avg"]
        assert not watch.same()

    def test_places_of_tensors(self):
        these = [torch.ones(2), torch.ones(3)]
        watch = tensors.Watch([], [], these)
        assert watch.same()
        these[1].mul_(2)
        assert watch.same()
        these[1].data = torch.ones(3)
        assert not watch.same()


@pytest.mark.parametrize("guarded", [True, False], ids=["guards", "plain"])
def test_looks(guarded, monkeypatch):
    if not guarded:
        monkeypatch.delattr(torch._C._dynamo.guards, "TensorGuards")
    these = [torch.ones(2, 3), torch.ones(4, dtype=torch.complex64)]
    looks = tensors.Looks(these)
    assert looks.same([torch.zeros(2, 3), torch.zeros(4, dtype=torch.complex64)])
    for other in (
        None,
        torch.ones(2, 4),
        torch.ones(3, 2).t(),
        torch.ones(2, 3).double(),
        torch.ones(2, 3).to_sparse(),
        torch.ones(2, 3, device="meta"),
    ):
        assert not looks.same([other, these[1]])
    assert not looks.same([these[0], these[1].conj()])


def test_memory_traffic_of_an_element_is_what_the_algorithm_needs():
    adam = kernels.Layout(rules.ADAM, "float32", ("exp_avg", "exp_avg_sq"))
    assert adam.bytes_per_element == 28  # read p, g, m, v; write p, m, v
    assert kernels.Layout(rules.SGD, "bfloat16", ()).bytes_per_element == 6


def test_unusual_numbers_of_a_state_are_taken_up():
    p = torch.ones(3, requires_grad=True)
    p.grad = torch.ones(3)
    optimizer = fast.Adam([p], lr=0.5)
    optimizer.step()
    optimizer.state[p]["step"] = 1.0  # as older state_dicts have it
    optimizer.step()
    assert optimizer.state[p]["step"] == torch.tensor(2.0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        q = torch.ones(3, requires_grad=True)
        q.grad = torch.ones(3, dtype=torch.float64)
        wide = fast.Adam([q], lr=0.5)
        wide.step()
        wide.step()
    finally:
        torch.set_default_dtype(before)
    assert wide.state[q]["step"].dtype is torch.float64
    assert wide.state[q]["step"] == 2
    assert math.isclose(q[0].item(), p[0].item(), abs_tol=1e-6)


@pytest.mark.parametrize("classes", [fast, interpreted])
@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.float64])
def test_a_count_of_another_dtype_is_read_as_what_it_is(classes, dtype):
    p, q = (torch.ones(3).requires_grad_() for _ in range(2))
    optimizer, plain = classes.AdamW([p]), classes.AdamW([q])
    for o, x in ((optimizer, p), (plain, q)):
        x.grad = torch.full((3,), 0.5)
        o.step()
    optimizer.state[p]["step"] = optimizer.state[p]["step"].to(dtype)
    optimizer.step()
    plain.step()
    assert torch.equal(p, q)
    assert optimizer.state[p]["step"] == 2
