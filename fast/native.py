"""Machine code: compiled by LLVM once, kept on disk as object files, loaded by LLVM, and run on torch's own threads.

What was compiled is kept as an object file under a name that says all that it depends on, so a later process reads it back. A kernel is a
function of one address, ``void kernel(int64_t *launch)``, that asks ``launch[0]`` for the next batch until none is left: any number of
threads may run it side by side on one launch.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.util
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch

#: In an object file and in memory, the name of what it exports.
SYMBOL = "stepcheck_kernel"


class Flags(tuple[str, ...]):
    """Fast-math flags, as LLVM names them; as a decorator, for the function of a kernel that is below it."""

    __slots__ = ()

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return function


#: Contraction of a product and a sum into one rounding is allowed, reassociation is not: it would change what is computed.
CONTRACTING = Flags(("contract",))
#: Where a kernel asks for it: its sums are its own to order, and the sign of a zero is lost.
REASSOCIATING = Flags(("contract", "reassoc", "nsz"))

#: Seconds that a process waits for another one to compile what it needs, and how often it looks.
_PATIENCE, _LOOK_SECONDS = 30.0, 0.02

_lock = threading.RLock()


# Looked for and not imported, which takes long; and looked for once, here: a step that is compiled has no way to look.
_ABSENT = "" if importlib.util.find_spec("llvmlite") else "llvmlite"


def unavailable() -> str:
    """Why no kernel runs here, or nothing."""
    return f"{_ABSENT} is not installed: pip install {_ABSENT}" if _ABSENT else ""


def cache_folder() -> Path:
    """Where object files are kept: ``STEPCHECK_CACHE_DIR``, or the user's cache folder."""
    chosen = os.environ.get("STEPCHECK_CACHE_DIR")
    if chosen:
        return Path(chosen)
    import platformdirs

    return platformdirs.user_cache_path("stepcheck") / "kernels"


@functools.cache
def _machine() -> tuple[str, str, str]:
    """The triple, the processor and its features, as LLVM names them."""
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    features = llvm.get_host_cpu_features().flatten()
    return llvm.get_process_triple(), llvm.get_host_cpu_name(), features


@functools.cache
def _engine() -> Any:
    """What object files are loaded into; they stay for the life of the process."""
    import llvmlite.binding as llvm

    return llvm.create_mcjit_compiler(llvm.parse_assembly(""), _target_machine())


def _target_machine() -> Any:
    import llvmlite.binding as llvm

    triple, cpu, features = _machine()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=cpu, features=features, opt=3, jit=True)


class Kernel:
    """Machine code of one function ``(launch: int64) -> void``.

    Attributes:
        address: of the function, for whoever calls it from elsewhere.
        run: calls it, without the GIL.
        run_held: the same, keeping the GIL.
    """

    def __init__(self, address: int) -> None:
        self.address = address
        self.run: Callable[[int], None] = ctypes.CFUNCTYPE(None, ctypes.c_int64)(address)
        self.run_held: Callable[[int], None] = ctypes.PYFUNCTYPE(None, ctypes.c_int64)(address)


_kernels: dict[tuple[str, bool], Kernel] = {}


def kernel(source: str, *, reassociate: bool = False) -> Kernel:
    """The function ``kernel(launch)`` that ``source`` defines, in the Python that :mod:`.compiler` understands.

    From memory, from disk or compiled, in this order. With ``reassociate`` the terms of a sum may be added in another order, always
    the same on one machine, so that sums over elements take several at a time.
    """
    key = (source, reassociate)
    found = _kernels.get(key)
    if found is None:
        with _lock:
            found = _kernels.get(key)
            if found is None:
                found = _kernels[key] = _load(source, REASSOCIATING if reassociate else CONTRACTING)
    return found


def _load(source: str, flags: tuple[str, ...]) -> Kernel:
    import llvmlite.binding as llvm

    digest = _digest(source, flags)
    path = cache_folder() / f"{digest}.o"
    machine_code = _kept(path)
    if machine_code is None:
        with _alone(path):
            machine_code = _kept(path)  # by whoever was here before
            if machine_code is None:
                machine_code = _compile(source, f"{SYMBOL}_{digest}", flags)
                _keep(path, machine_code)
    # The symbol of each is its own, so that all can live in one engine.
    engine = _engine()
    engine.add_object_file(llvm.ObjectFileRef.from_data(machine_code))
    engine.finalize_object()
    address = engine.get_function_address(f"{SYMBOL}_{digest}")
    assert address, f"{path} has no {SYMBOL}_{digest}"
    return Kernel(address)


def _digest(source: str, flags: tuple[str, ...] = CONTRACTING) -> str:
    """A name for all that machine code depends on."""
    import llvmlite.binding as llvm

    # How it is compiled and under which name it is found stands in these files.
    names = (Path(__file__).name, "compiler.py", "records.py")
    texts = [Path(__file__).with_name(name).read_text(encoding="utf-8") for name in names]
    # The source is text that Python made: of floating-point numbers, of syntax trees.
    made_by = (version("llvmlite"), repr(llvm.llvm_version_info), sys.version)
    parts = (source, *texts, *flags, *_machine(), *made_by)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _compile(source: str, symbol: str = SYMBOL, flags: tuple[str, ...] = CONTRACTING) -> bytes:
    import llvmlite.binding as llvm

    from stepcheck.fast.compiler import assembly

    target = _target_machine()
    module = llvm.parse_assembly(assembly(source, symbol, flags))
    module.triple, module.data_layout = _machine()[0], str(target.target_data)
    tuning = llvm.create_pipeline_tuning_options(speed_level=3)
    tuning.loop_vectorization = True
    builder = llvm.create_pass_builder(target, tuning)
    builder.getModulePassManager().run(module, builder)
    machine_code: bytes = target.emit_object(module)
    return machine_code


def _kept(path: Path) -> bytes | None:
    """What is kept on disk there, if it is what was written; it is run, so a digest is kept with it."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, machine_code = content[:32], content[32:]
    return machine_code if hashlib.sha256(machine_code).digest() == digest else None


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Meanwhile, other processes that want to make this file wait: those of a job start side by side, and one of them compiles."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(ImportError, OSError):  # Windows; a folder, or a file system, that does not take it
            import fcntl

            path.parent.mkdir(parents=True, exist_ok=True)
            # It is not removed: whoever waits for it holds this very file.
            file = stack.enter_context((path.parent / "lock").open("a"))
            # A process that was forked meanwhile has it as well, for as long as it lives: nobody waits for ever.
            deadline = time.monotonic() + _PATIENCE
            while time.monotonic() < deadline and not path.exists() and not _locked(fcntl, file):
                time.sleep(_LOOK_SECONDS)
        yield


def _locked(fcntl: Any, file: IO[str]) -> bool:
    """Whether this process has the lock now; it ends with the process."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _keep(path: Path, machine_code: bytes) -> None:
    """Keep it on disk, whole or not at all; where that cannot be, the next process compiles anew, and this one says so once."""
    part = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Not by tempfile, which keeps what others may not read: an image is built by one user, and used by another.
            part.write_bytes(hashlib.sha256(machine_code).digest() + machine_code)
            # Windows refuses where another process has the old one open.
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        _say_unkept(str(path.parent), str(error))


@functools.cache
def _say_unkept(folder: str, why: str) -> None:
    warnings.warn(
        f"stepcheck.fast cannot keep compiled kernels in {folder} ({why}); each process compiles them anew. STEPCHECK_CACHE_DIR names another folder.",
        stacklevel=2,
    )


# --- Threads


class _Threads:
    """Runs a kernel on several threads at once: on those of torch, or, where they cannot be had, on some of its own.

    In a process that was forked none of torch's exist any more, and GNU's OpenMP would wait for them for ever, whoever it was that used them before.
    """

    forked = False

    def __init__(self) -> None:
        self._parallel: Callable[..., Any] | None = None if self.forked else _openmp()
        self._own: ThreadPoolExecutor | None = None

    def run(self, kernel: Kernel, launch: int, count: int) -> None:
        if self._parallel is not None:
            self._parallel(kernel.address, launch, count, 0)
            return
        if self._own is None:
            self._own = ThreadPoolExecutor(max(1, torch.get_num_threads() - 1), "stepcheck")
        others = [self._own.submit(kernel.run, launch) for _ in range(count - 1)]
        kernel.run(launch)
        wait(others)


def _openmp() -> Callable[..., Any] | None:
    """``GOMP_parallel`` of the OpenMP library that torch has loaded, which torch's own operations run on."""
    if sys.platform != "linux" or not torch.backends.openmp.is_available():  # type: ignore[no-untyped-call]
        return None
    folder = Path(torch.__file__).parent / "lib"
    for path in sorted([*folder.glob("libgomp*"), *folder.parent.parent.glob("torch.libs/libgomp*")]):
        function = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
        if function is not None:
            function.argtypes = [ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint, ctypes.c_uint]
            function.restype = None
            return function  # type: ignore[no-any-return]
    return None


@functools.cache
def _threads() -> _Threads:
    return _Threads()


def _forked() -> None:
    """In a process that was forked: whoever held the lock, or waited in a thread, is not here."""
    global _lock  # noqa: PLW0603 - the one thing of a module that a fork can leave unusable
    _lock = threading.RLock()
    _Threads.forked = True
    _threads.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


def run(kernel: Kernel, launch: int, threads: int) -> None:
    """Run ``kernel`` on the launch at this address, on so many threads at most."""
    if threads > 1:
        _threads().run(kernel, launch, threads)
    else:
        kernel.run(launch)
