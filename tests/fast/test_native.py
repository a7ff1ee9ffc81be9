"""Good manners: cheap to import, compiled once, nothing allocated, and safe beside processes and threads."""

import gc
import os
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch

from stepcheck import fast
from stepcheck.fast import native

SOURCE = "def kernel(launch):\n    store_int64(launch, 0, load_int64(launch, 0) + {})\n"


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_imports_no_compiler():
    code = (
        "import torch, sys; import stepcheck.fast; print([m for m in ('llvmlite', 'hypothesis') if m in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_a_second_process_steps_without_the_compiler(tmp_path):
    code = """
import sys, torch
from stepcheck.fast import SGD
p = torch.ones(3, requires_grad=True); p.grad = torch.ones(3)
SGD([p], lr=0.5).step()
print(p.tolist(), "stepcheck.fast.compiler" in sys.modules)
"""
    first, second = (python(code, STEPCHECK_CACHE_DIR=str(tmp_path)) for _ in range(2))
    assert first.strip() == "[0.5, 0.5, 0.5] True"
    assert second.strip() == "[0.5, 0.5, 0.5] False"
    assert len(list(tmp_path.glob("*.o"))) == 2 + 2  # what watches tensors; prepare and step


@pytest.mark.parametrize(
    "name", ["Adafactor", *(pytest.param(name, marks=pytest.mark.slow) for name in ("SGD", "AdamW"))]
)
def test_a_first_step_on_an_empty_cache_takes_no_second(name, tmp_path):
    code = f"""
import time, torch
import torch._dynamo  # which torch's constructors import
from stepcheck.fast import {name}
p = torch.ones(3, 3, requires_grad=True); p.grad = torch.ones(3, 3)
optimizer = {name}([p])
before = time.process_time()
optimizer.step()
print(time.process_time() - before)
"""
    # Of the processor's time, which other processes make longer, not several times as long.
    assert float(python(code, STEPCHECK_CACHE_DIR=str(tmp_path))) < 2.0


@pytest.mark.parametrize(
    "other",
    [
        {"cpu": "another"},
        {"features": "+another"},
        {"triple": "another-unknown-linux"},
        {"version": "0.0"},
        {"llvm": (1, 2, 3)},
        {"flags": native.REASSOCIATING},
        {"source": SOURCE.format(2)},
    ],
    ids=lambda other: next(iter(other)),
)
def test_what_one_machine_or_version_compiled_no_other_loads(other, tmp_path, monkeypatch):
    binding = pytest.importorskip("llvmlite.binding")
    monkeypatch.setenv("STEPCHECK_CACHE_DIR", str(tmp_path))
    source, flags = SOURCE.format(1), native.CONTRACTING
    native._load(source, flags)
    triple, cpu, features = native._machine()
    there = {"triple": triple, "cpu": cpu, "features": features, **other}
    monkeypatch.setattr(native, "_machine", lambda: (there["triple"], there["cpu"], there["features"]))
    if "version" in other:
        monkeypatch.setattr(native, "version", lambda package: other["version"])
    if "llvm" in other:
        monkeypatch.setattr(binding, "llvm_version_info", other["llvm"])
    asked = []
    monkeypatch.setattr(native, "_kept", lambda path: asked.append(path.exists()))  # and nothing is there
    monkeypatch.setattr(native, "_compile", lambda *given: (_ for _ in ()).throw(InterruptedError))
    with pytest.raises(InterruptedError):
        native._load(other.get("source", source), other.get("flags", flags))
    assert asked == [False, False]


@pytest.mark.parametrize(
    "names",
    [("SGD", "LBFGS"), pytest.param(("AdamW", "SparseAdam", "Adafactor"), marks=pytest.mark.slow)],
    ids=" ".join,
)
def test_after_kernels_no_step_compiles(names, tmp_path):
    # Each kind of step of each class: dtypes, strides, unscaling, sparse gradients of rows and of single elements, summed or not.
    made = f"from stepcheck import fast\nfor name in {names}: list(getattr(fast, name).kernels())"
    steps = """
import itertools, sys, torch
from stepcheck import fast
torch.sparse.check_sparse_tensor_invariants.disable()
def step(cls, p, g, scaled=False, **options):
    p.grad = g
    optimizer = cls([p.requires_grad_()], **options)
    if scaled:
        optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.zeros(())
    for _ in range(3):
        optimizer.step()
def closure():
    vector.grad = vector.detach() ** 3
    return (vector ** 4).sum() / 4
more = {"SGD": {"momentum": 0.9}, "AdamW": {"amsgrad": True}}
dtypes = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
for name, dtype in itertools.product([name for name in names if name != "LBFGS"], dtypes):
    cls = getattr(fast, name)
    for options, scaled in itertools.product(({}, more.get(name, {})), (False, True)) if name != "SparseAdam" else ():
        step(cls, torch.ones(4, 6, dtype=dtype), torch.ones(4, 6, dtype=dtype), scaled, **options)
        step(cls, torch.ones(4, 6, dtype=dtype)[:, ::2], torch.ones(4, 3, dtype=dtype), scaled, **options)
    for at in ([[0, 2]], [[2, 2]], [[0, 2], [1, 1]], [[2, 2], [1, 1]]) if cls._sparse else ():
        values = torch.ones(2, 6, dtype=dtype)[:, : 6 if len(at) == 1 else 1].squeeze(1)
        g = torch.sparse_coo_tensor(torch.tensor(at), values, (4, 6))
        step(cls, torch.ones(4, 6, dtype=dtype), g)
        step(cls, torch.ones(4, 6, dtype=dtype), g.coalesce())
for dtype, n in itertools.product((torch.float32, torch.float64), (10, 70_000) if "LBFGS" in names else ()):
    vector = torch.linspace(1, 2, n, dtype=dtype).requires_grad_()
    optimizer = fast.LBFGS([vector], lr=0.1)
    for _ in range(2):
        optimizer.step(closure)
print("stepcheck.fast.compiler" in sys.modules, end="")
"""
    python(made, STEPCHECK_CACHE_DIR=str(tmp_path))
    kept = len(list(tmp_path.glob("*.o")))
    assert python(f"names = {names}\n{steps}", STEPCHECK_CACHE_DIR=str(tmp_path)) == "False"
    assert len(list(tmp_path.glob("*.o"))) == kept > 0


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("STEPCHECK_CACHE_DIR", str(tmp_path / "file" / "folder"))
    with pytest.warns(UserWarning, match=r"cannot keep compiled kernels in .*folder"):
        assert native.kernel(SOURCE.format(1234)).address
    assert native.kernel(SOURCE.format(1235)).address  # once is enough


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no umask here")
def test_what_is_kept_may_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        native._keep(tmp_path / "kernel.o", b"machine code")
    finally:
        os.umask(before)
    assert (tmp_path / "kernel.o").stat().st_mode & 0o777 == 0o644
    assert native._kept(tmp_path / "kernel.o") == b"machine code"


def test_processes_that_start_side_by_side_compile_each_kernel_once(tmp_path):
    code = """
import torch
from stepcheck.fast import SGD, native
made, compile_ = [], native._compile
native._compile = lambda *a: made.append(1) or compile_(*a)
p = torch.ones(3, requires_grad=True); p.grad = torch.ones(3)
SGD([p], lr=0.5).step()
print(p.tolist(), len(made))
"""
    environment = {**os.environ, "STEPCHECK_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    told = [process.communicate(timeout=120)[0].split() for process in started]
    assert {tuple(words[:3]) for words in told} == {("[0.5,", "0.5,", "0.5]")}
    assert sum(int(words[3]) for words in told) == 2 + 2


def test_nobody_waits_for_ever_for_a_lock_that_a_fork_has_taken_along(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    monkeypatch.setattr(native, "_PATIENCE", 0.1)
    with (tmp_path / "lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with native._alone(tmp_path / "kernel.o"):
            pass


def test_a_cache_with_a_broken_file_is_mended(tmp_path, monkeypatch):
    monkeypatch.setenv("STEPCHECK_CACHE_DIR", str(tmp_path))
    source = SOURCE.format(77)
    path = tmp_path / f"{native._digest(source)}.o"
    path.write_bytes(b"\x7fELF, cut off")
    words = torch.tensor([5], dtype=torch.int64)
    native.kernel(source).run(words.data_ptr())
    assert words.item() == 82
    assert path.stat().st_size > 100


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.sampled(4)
@pytest.mark.parametrize("before", ["steps()", "(torch.ones(3_000_000) * 2).sum()"], ids=["stepped", "torch alone"])
@pytest.mark.parametrize("name", ["AdamW", "Adafactor"])
def test_a_forked_process_steps(name, before):
    code = f"""
import os, torch, time
from stepcheck.fast import {name}
torch.set_num_threads(2)
def steps():
    p = torch.nn.Parameter(torch.empty(300_000)); p.grad = torch.empty(300_000)
    p.detach().numpy().fill(1.0); p.grad.numpy().fill(1.0)
    optimizer = {name}([p], lr=0.5, weight_decay=0.0)
    optimizer.step(); optimizer.step()
    return p.detach().numpy()
{before}  # torch's threads are started
there, here = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(here, steps()[::9_999].tobytes())
    os._exit(0)
for _ in range(300):
    done, status = os.waitpid(pid, os.WNOHANG)
    if done: break
    time.sleep(0.1)
else:
    os.kill(pid, 9); status = -1
print(status == 0 and os.read(there, 4096) == steps()[::9_999].tobytes())
"""
    assert python(code).strip() == "True"


def test_threads_of_its_own_do_the_same():
    p = torch.linspace(-1, 1, 500_000).requires_grad_()
    q = p.detach().clone().requires_grad_()
    p.grad, q.grad = torch.ones(500_000), torch.ones(500_000)
    fast.AdamW([p]).step()
    threads, theirs = native._threads(), native._threads()._parallel
    try:
        threads._parallel = None  # as after a fork: none of torch's
        fast.AdamW([q]).step()
    finally:
        threads._parallel = theirs
    assert torch.equal(p, q)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "NAdam"])
def test_a_step_allocates_nothing_that_stays_and_little_that_does_not(name):
    params = [torch.ones(64, requires_grad=True) for _ in range(100)]
    for p in params:
        p.grad = torch.ones(64)
    optimizer = getattr(fast, name)(params, lr=1e-3)
    for _ in range(3):
        optimizer.step()
    gc.collect()
    tracemalloc.start()
    try:
        for _ in range(1_000):  # Python makes an object for each gradient, and keeps some
            optimizer.step()
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        for _ in range(50):
            optimizer.step()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 1_000
    # Lists of the gradients and of the states, a hundred pointers each; the elements alone are 25,600 bytes.
    assert peak - before < 6_000


def test_where_a_kernel_cannot_be_kept_nothing_is_left_over(tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError("as Windows does, of a file that another process has open")

    monkeypatch.setattr(native.Path, "replace", refuse)
    with pytest.warns(UserWarning, match="as Windows does"):
        native._keep(tmp_path / "kernel.o", b"machine code")
    assert not list(tmp_path.iterdir())


def first_step_of(n):
    """How many functions the first step of so many parameters calls, and the bytes that are kept."""
    parameters = [torch.ones(16, requires_grad=True) for _ in range(n)]
    for p in parameters:
        p.grad = torch.ones(16)
    optimizer, calls = fast.AdamW(parameters), 0

    def count(frame, event, arg):
        nonlocal calls
        calls += event in ("call", "c_call")

    gc.collect()
    tracemalloc.start()
    sys.setprofile(count)
    try:
        optimizer.step()
    finally:
        sys.setprofile(None)
        kept = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
    return calls, kept


def test_a_first_step_costs_as_much_for_each_of_many_parameters():
    first_step_of(1)
    few, some, many = (np.array(first_step_of(n)) for n in (100, 400, 700))
    assert many - some == pytest.approx(some - few, rel=0.05)
    calls, kept = (many - some) / 300
    assert calls < 240  # 340 take 0.2 s for a thousand
    assert kept < 1_500  # of which the state is 400, and torch's own objects for storages are 130


# --- Without what may be missing

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys({!r}))  # to import them then fails, as where they are not installed
import torch
from stepcheck import fast
"""


def test_where_nothing_is_installed_beside_torch_it_imports():
    absent = ("llvmlite", "triton", "click", "hypothesis", "jinja2", "rich", "platformdirs")
    assert python(WITHOUT.format(absent) + "import stepcheck; print(len(fast.__all__) > 10)").strip() == "True"


#: Those that torch steps where llvmlite is not installed.
BY_TORCH = [name for name in fast.__all__ if name not in ("Served", "LBFGS", "SparseAdam")]


@pytest.fixture(scope="module")
def without_llvmlite():
    """What one process says, in lines: of each class that torch steps, and of LBFGS at last."""
    code = f"""
def stepped(cls):
    p = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    optimizer = cls([p])
    for scale in (1.0, -0.5):
        p.grad = torch.full((3, 4), scale)
        optimizer.step()
    return p, optimizer
for name in {BY_TORCH}:
    (p, optimizer), (q, _) = (stepped(getattr(module, name)) for module in (fast, torch.optim))
    print(name, torch.equal(p, q), *optimizer.engine)
def descended(cls):
    p = torch.linspace(-1, 1, 12).requires_grad_()
    optimizer = cls([p], lr=0.1, history_size=3)
    def closure():
        optimizer.zero_grad()
        loss = (p**4).sum()
        loss.backward()
        return loss
    for _ in range(2):
        optimizer.step(closure)
    return p, optimizer
(p, optimizer), (q, _) = descended(fast.LBFGS), descended(torch.optim.LBFGS)
print(torch.allclose(p, q), *optimizer.engine)
"""
    return python(WITHOUT.format(("llvmlite", "triton")) + code).splitlines()


def test_without_llvmlite_torch_steps_and_engine_says_so(without_llvmlite):
    assert without_llvmlite[:-1] == [
        f"{name} True Served(engine='torch', reason='llvmlite is not installed: pip install llvmlite')"
        for name in BY_TORCH
    ]


def test_without_llvmlite_lbfgs_takes_operations_of_torch_and_says_so(without_llvmlite):
    assert (
        without_llvmlite[-1] == "True Served(engine='blas', reason='llvmlite is not installed: pip install llvmlite')"
    )
