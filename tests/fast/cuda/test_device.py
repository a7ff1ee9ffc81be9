"""The fast optimizers on a GPU: against the CPU, in graphs, without waiting, with scaled gradients, and on several devices at once.

The harness judges them to the last rounding (``stepcheck check 'fast:Adam[cuda]'``); here is what it does not play.
"""

import pytest
import torch

from stepcheck import fast
from stepcheck.fast import interpreted
from stepcheck.harness.life.memory import Allocation
from stepcheck.harness.play.families import TORCH_MODES
from stepcheck.reference import SPECS

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:Sparse invariant checks are implicitly disabled"),
]

DEVICE = "cuda"
BY_RULE = [name for name in SPECS if hasattr(getattr(fast, name), "rule") and name != "SparseAdam"]
CAPTURABLE = [name for name in BY_RULE if "capturable" in TORCH_MODES[name]]
#: Those that raise nothing to a power: where products and sums are not contracted, they are the same everywhere to the last bit.
EXACT = [name for name in ("SGD", "RMSprop", "Rprop", "Adagrad", "Adadelta") if name in BY_RULE]
LAYOUTS = ("contiguous", "transposed", "sliced")
#: Of results that may be contracted or not, and summed up in any order; what is wrong is off by more.
TOLERANCE = {
    "float64": 1e-9, "float32": 1e-4, "complex64": 1e-4, "bfloat16": 5e-2, "float16": 1e-2,
}  # fmt: skip
STEPS = 4
SHAPES = ((33, 65), (5, 7))


def tensor(shape, dtype, layout, seed, device):
    """The same values for the same seed, on whatever device; strided as the layout says."""
    allocation = Allocation(shape, dtype, layout, device=device)
    parts = (*shape, 2) if dtype.startswith("complex") else shape
    values = torch.randn(parts, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    allocation.fill(values.numpy())
    return allocation.view


def parameters(device, dtype="float32", layout="contiguous", shapes=SHAPES):
    return [tensor(shape, dtype, layout, n, device).requires_grad_() for n, shape in enumerate(shapes)]


def give(params, step, *, layout="contiguous", sparse=False):
    """New gradients, for the step of this number."""
    for n, p in enumerate(params):
        dtype = str(p.dtype).removeprefix("torch.")
        gradient = tensor(tuple(p.shape), dtype, layout, 100 * (step + 1) + n, p.device)
        p.grad = gradient.to_sparse(1) if sparse else gradient


def steps(name, optimizer, params, count=STEPS, layout="contiguous"):
    for step in range(count):
        if not SPECS[name].closure:
            give(params, step, layout=layout, sparse=SPECS[name].sparse == "only")
            optimizer.step()
            continue

        def closure():
            optimizer.zero_grad()
            loss = sum((p.abs() ** 2).sum() for p in params) / 100
            loss.backward()
            return loss

        optimizer.step(closure)


def on_cpu(tensors):
    return [t.detach().cpu() for t in tensors]


def bits(tensors):
    dense = [t.clone(memory_format=torch.contiguous_format).reshape(-1) for t in on_cpu(tensors)]
    return [t.view(torch.uint8).tolist() for t in dense]


def tensors_of(optimizer, params):
    """The tensors of the state, in a fixed order."""
    return [optimizer.state[p][key] for p in params for key in sorted(optimizer.state[p])]


# --- What it computes


def dtypes(name):
    half = () if SPECS[name].closure else ("float16",)
    return ("float32", "float64", "bfloat16", *half, *(("complex64",) if SPECS[name].complex else ()))


CASES = [(name, dtype, layout) for name in SPECS for dtype in dtypes(name) for layout in LAYOUTS]


@pytest.mark.parametrize("name, dtype, layout", CASES)
def test_it_goes_where_the_class_goes_on_the_cpu(name, dtype, layout):
    results = []
    for device in (DEVICE, "cpu"):
        params = parameters(device, dtype, layout)
        optimizer = getattr(fast, name)(params)
        steps(name, optimizer, params, layout=layout)
        results.append(on_cpu(params))
    there, here = results
    start = on_cpu(parameters("cpu", dtype, layout))
    for a, b, s in zip(there, here, start, strict=True):
        assert a.isfinite().all()
        assert not torch.equal(b, s)
        # float64 and complex128 hold all of them; what is compared is the way that each went.
        wide = torch.complex128 if b.is_complex() else torch.float64
        way = (b.to(wide) - s.to(wide)).abs().max() + torch.finfo(b.dtype).eps * s.abs().max()
        assert (a.to(wide) - b.to(wide)).abs().max() <= TOLERANCE[dtype] * (way + s.to(wide).abs().max())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", EXACT)
def test_it_computes_to_the_last_bit_what_the_interpreter_does(name, dtype, layout):
    results = []
    for device, module in ((DEVICE, fast), ("cpu", interpreted)):
        params = parameters(device, dtype, layout)
        optimizer = getattr(module, name)(params)
        steps(name, optimizer, params, layout=layout)
        results.append(bits(params) + bits(tensors_of(optimizer, params)))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", BY_RULE)
def test_its_own_kernels_step(name):
    params = parameters(DEVICE)
    optimizer = getattr(fast, name)(params)
    steps(name, optimizer, params, 1)
    assert [served.engine for served in optimizer.engine] == ["triton"]
    assert all(t.device == params[0].device for t in tensors_of(optimizer, params))


@pytest.mark.parametrize("name", BY_RULE)
def test_a_step_on_another_stream_is_the_same(name):
    params, others = parameters(DEVICE), parameters(DEVICE)
    steps(name, getattr(fast, name)(params), params)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        steps(name, getattr(fast, name)(others), others)
    torch.cuda.current_stream().wait_stream(stream)
    assert bits(params) == bits(others)


# --- Graphs


@pytest.mark.parametrize("name", CAPTURABLE)
def test_a_graph_replays_what_steps_one_by_one_do(name):
    results = []
    for graphed in (False, True):
        params, lr = parameters(DEVICE), torch.tensor(0.01, device=DEVICE)
        optimizer = getattr(fast, name)(params, lr=lr, capturable=True)
        give(params, 0)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            optimizer.step()  # makes the state
            optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)
        step = optimizer.step
        if graphed:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
            step = graph.replay
        # New gradients and another learning rate where the old ones were.
        kept = [p.grad for p in params]
        for n in range(1, STEPS):
            give(params, n)
            for p, gradient in zip(params, kept, strict=True):
                gradient.copy_(p.grad)
                p.grad = gradient
            lr.mul_(0.5)
            step()
        torch.cuda.synchronize()
        results.append(bits(params) + bits(tensors_of(optimizer, params)))
    assert results[0] == results[1]


def test_a_graph_is_replayed_on_after_a_step_without_it():
    params, lr = parameters(DEVICE), torch.tensor(0.01, device=DEVICE)
    optimizer = fast.AdamW(params, lr=lr, capturable=True)
    give(params, 0)
    kept = [p.grad for p in params]
    for _ in range(2):
        optimizer.step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        optimizer.step()
    graph.replay()
    give(params, 1)  # elsewhere
    optimizer.step()
    # What the graph reads must not be given to others meanwhile.
    others = [torch.full((n,), -1, dtype=torch.int64, device=DEVICE) for n in range(1, 500)]
    del others
    for p, gradient in zip(params, kept, strict=True):
        p.grad = gradient
    graph.replay()
    others = parameters(DEVICE)
    plain = fast.AdamW(others, lr=torch.tensor(0.01))
    for n in (0, 0, 0, 1, 0):
        give(others, n)
        plain.step()
    assert bits(params) == bits(others)


# --- Waiting


@pytest.mark.parametrize("name", BY_RULE)
@pytest.mark.parametrize("where", ["number", "tensor"])
def test_a_step_waits_for_nothing(name, where):
    params = parameters(DEVICE)
    lr = 0.01 if where == "number" else torch.tensor(0.01, device=DEVICE)
    optimizer = getattr(fast, name)(params, lr=lr)
    steps(name, optimizer, params, 2)
    torch.cuda.synchronize()
    given = []
    for n in (2, 3):  # made before: to fill them waits
        give(params, n)
        given.append([p.grad for p in params])
    torch.cuda.set_sync_debug_mode("error")
    try:
        for gradients in given:
            for p, gradient in zip(params, gradients, strict=True):
                p.grad = gradient
            optimizer.step()
            optimizer.param_groups[0]["lr"] = 0.005 if where == "number" else lr
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


# --- Scaled gradients


@pytest.mark.parametrize("name", BY_RULE)
def test_scaled_gradients_step_as_others_and_infinite_ones_do_not(name):
    params, others = parameters(DEVICE), parameters(DEVICE)
    optimizer, plain = (getattr(fast, name)(own) for own in (params, others))
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10, growth_interval=1000)
    scaler.scale(torch.zeros((), device=DEVICE))
    for n in range(STEPS):
        give(params, n)
        give(others, n)
        overflows = n == 1
        before = bits(params) + bits(tensors_of(optimizer, params)) if overflows else None
        for p in params:
            p.grad = p.grad * scaler.get_scale()
        if overflows:
            params[0].grad[3, 2] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        if overflows:
            assert bits(params) + bits(tensors_of(optimizer, params)) == before
        else:
            plain.step()
    # Scales are powers of two.
    assert bits(params) == bits(others)
    assert scaler.get_scale() == 2.0**9


def test_a_first_step_that_overflows_leaves_the_next_to_be_the_first():
    params, others = parameters(DEVICE), parameters(DEVICE)
    optimizer, plain = (fast.SGD(own, lr=0.1, momentum=0.9, dampening=0.5) for own in (params, others))
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**10)
    scaler.scale(torch.zeros((), device=DEVICE))
    for n, factor in enumerate((torch.inf, 2.0**9)):
        give(params, n)
        for p in params:
            p.grad = p.grad * factor
        scaler.step(optimizer)
        scaler.update()
    give(others, 1)
    plain.step()
    assert bits(params) == bits(others)


# --- Several devices


@pytest.mark.parametrize("name", BY_RULE)
def test_groups_on_the_cpu_and_on_a_gpu_are_stepped_each_as_if_alone(name):
    there, here = parameters(DEVICE), parameters("cpu")
    both = getattr(fast, name)([{"params": there, "lr": 0.02}, {"params": here}])
    steps(name, both, [*there, *here])
    alone_there, alone_here = parameters(DEVICE), parameters("cpu")
    one = getattr(fast, name)(alone_there, lr=0.02)
    other = getattr(fast, name)(alone_here)
    for step in range(STEPS):
        # As numbered in both.
        for n, p in enumerate([*alone_there, *alone_here]):
            p.grad = tensor(tuple(p.shape), "float32", "contiguous", 100 * (step + 1) + n, p.device)
        one.step()
        other.step()
    assert [served.engine for served in both.engine] == ["triton", "llvm"]
    assert bits(there) == bits(alone_there)
    assert bits(here) == bits(alone_here)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two GPUs")
@pytest.mark.parametrize("name", BY_RULE)
def test_two_gpus_step_alike_whichever_is_the_current_one(name):
    first, second = parameters("cuda:0"), parameters("cuda:1")
    optimizer = getattr(fast, name)([*first, *second])
    for step in range(STEPS):
        give(first, step)
        give(second, step)
        with torch.cuda.device(step % 2):
            optimizer.step()
    for device in (0, 1):
        torch.cuda.synchronize(device)
    assert bits(first) == bits(second)
