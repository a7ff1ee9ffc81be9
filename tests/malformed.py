"""State, parameters and gradients as broken, cut or foreign checkpoints and programs leave them, and what becomes of a step with them.

Each is tried in a child process, on memory that ends where the tensor does: the page behind it cannot be read or written, so that a kernel which
goes one element too far ends the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import mmap
import os
import pickle
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

Change = Callable[[torch.Tensor], Any]

_PROT_NONE = 0
_LIBC = ctypes.CDLL(None, use_errno=True)
_KEPT: list[Any] = []


def fenced(tensor: torch.Tensor) -> torch.Tensor:
    """A row-major copy that ends where a page does, and the next page is nobody's."""
    size, page = tensor.numel() * tensor.element_size(), mmap.PAGESIZE
    if not size:
        return torch.empty(tensor.shape, dtype=tensor.dtype)
    whole = -(-size // page) * page
    memory = mmap.mmap(-1, whole + page)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    if _LIBC.mprotect(ctypes.c_void_p(start + whole), ctypes.c_size_t(page), _PROT_NONE):
        raise OSError(ctypes.get_errno(), "mprotect")
    _KEPT.append(memory)
    made = torch.frombuffer(memory, dtype=tensor.dtype, count=tensor.numel(), offset=whole - size).reshape(tensor.shape)
    return made.copy_(tensor)


def _cut_storage(share: float) -> Change:
    def change(t: torch.Tensor) -> torch.Tensor:
        made = t.detach().clone()
        made.untyped_storage().resize_(int(made.untyped_storage().nbytes() * share))
        return made

    return change


def _strided_apart(t: torch.Tensor) -> torch.Tensor:
    wide = torch.zeros(*t.shape, 2, dtype=t.dtype)
    wide[..., 0] = t
    return wide[..., 0]


#: What may stand where a tensor of the state stood, made from it.
REPLACED: dict[str, Change] = {
    "None": lambda _: None,
    "a number": lambda _: 1.5,
    "text": lambda _: "1.5",
    "a list": lambda t: t.tolist(),
    "empty": lambda t: t.new_empty(0),
    "without rows": lambda t: t.new_empty(0, *t.shape[1:]),
    "of no dimension": lambda t: t.new_tensor(0.5),
    "of one element": lambda t: fenced(t.new_full((1,), 0.5)),
    "of two elements": lambda t: fenced(t.new_full((2,), 0.5)),
    "a row short": lambda t: fenced(t[:-1]) if t.dim() else t.new_empty(0),
    "a row long": lambda t: fenced(torch.cat([t, t[-1:]])) if t.dim() else fenced(t.expand(2)),
    "flat": lambda t: fenced(t.reshape(-1)),
    "with another dimension": lambda t: fenced(t[None]),
    "transposed": lambda t: fenced(t.T) if t.dim() == 2 else fenced(t),
    "row-major of the transposed": lambda t: fenced(t.T.contiguous()).T if t.dim() == 2 else fenced(t),
    "expanded": lambda t: fenced(t.reshape(-1)[:1]).expand(t.shape) if t.dim() else fenced(t),
    "strided": _strided_apart,
    "of float16": lambda t: fenced(t.to(torch.float16)),
    "of bfloat16": lambda t: fenced(t.to(torch.bfloat16)),
    "of float64": lambda t: fenced(t.to(torch.float64)),
    "of int64": lambda t: fenced(t.to(torch.int64)),
    "of int8": lambda t: fenced(t.to(torch.int8)),
    "of bool": lambda t: fenced(t.to(torch.bool)),
    "of complex64": lambda t: fenced(t.to(torch.complex64)),
    "lazily conjugate": lambda t: torch.complex(t, t).conj(),
    "lazily negative": lambda t: torch.complex(t, -t).conj().imag,
    "without storage": _cut_storage(0.0),
    "of half a storage": _cut_storage(0.5),
    "on meta": lambda t: t.to("meta"),
    "sparse": lambda t: t.to_sparse() if t.dim() else t.reshape(1).to_sparse(),
    "in another layout": lambda t: t.to_mkldnn() if t.dim() and t.dtype is torch.float32 else t,
    "a parameter": lambda t: torch.nn.Parameter(t.clone()),
    "in a graph": lambda t: t.clone().requires_grad_() * 1.0,
}


def _data(of: Change) -> Change:
    def change(t: torch.Tensor) -> None:
        t.data = of(t.detach())

    return change


def _freed(t: torch.Tensor) -> None:
    t.untyped_storage().resize_(0)


def _grown(t: torch.Tensor) -> None:
    t.resize_(*(n + 1 for n in t.shape or (1,)))


#: What may be done to a tensor that stays the object that it was.
IN_PLACE: dict[str, Change] = {
    "data a row short": _data(lambda t: fenced(t[:-1]) if t.dim() else t.new_empty(0)),
    "data a row long": _data(lambda t: fenced(torch.cat([t, t[-1:]])) if t.dim() else fenced(t.expand(2))),
    "data empty": _data(lambda t: t.new_empty(0)),
    "data transposed": _data(lambda t: fenced(t.T) if t.dim() == 2 else fenced(t)),
    "data of float64": _data(lambda t: fenced(t.to(torch.float64))),
    "data of bfloat16": _data(lambda t: fenced(t.to(torch.bfloat16))),
    "data expanded": _data(lambda t: fenced(t.reshape(-1)[:1]).expand(t.shape) if t.dim() else fenced(t)),
    "data elsewhere": _data(fenced),
    "data negative": _data(lambda t: torch.complex(t, -t).conj().imag if not t.is_complex() else t.conj()),
    "storage freed": _freed,
    "resized to less": lambda t: t.resize_(1),
    "resized to more": _grown,
    "transposed in place": lambda t: t.t_() if t.dim() == 2 else None,
}


#: The same for parameters: torch resizes no tensor that requires a gradient.
OF_PARAMETERS = tuple(how for how in IN_PLACE if not how.startswith("resized"))


@dataclass(frozen=True)
class Outcome:
    """What became of a program: an exception, or what its parameters are; or the signal that ended it.

    Attributes:
        raised: the type and the message of the exception.
        parameters: their elements, flat.
        signal: that ended the process.
    """

    raised: str = ""
    parameters: tuple[tuple[float, ...], ...] = ()
    signal: str = ""


def outcome(program: Callable[[], list[torch.Tensor]], seconds: int = 60) -> Outcome:
    """What becomes of a program in a child process."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.close(reads)
            signal.alarm(seconds)
            faulthandler.disable()  # what ends it is told by its parent
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            try:
                made = Outcome(parameters=tuple(tuple(p.detach().double().flatten().tolist()) for p in program()))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is an answer
                made = Outcome(raised=f"{type(error).__name__}: {error}")
            os.write(writes, pickle.dumps(made))
        finally:
            os._exit(0)
    os.close(writes)
    with os.fdopen(reads, "rb") as answer:
        told = answer.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return Outcome(signal=signal.Signals(os.WTERMSIG(status)).name)
    return pickle.loads(told) if told else Outcome(signal="no answer")


class Impossible(Exception):
    """torch does not let a tensor be spoilt like that: there is no such program."""


@contextlib.contextmanager
def spoiling() -> Iterator[None]:
    """What is raised here is not raised by a step."""
    try:
        yield
    except Exception as error:
        raise Impossible(str(error)) from error


def agree(ours: Outcome, theirs: Outcome, tolerance: float = 1e-3) -> bool:
    """Whether parameters of two outcomes are the same, but for rounding; of Muon, that of bfloat16."""
    return len(ours.parameters) == len(theirs.parameters) and all(
        len(a) == len(b)
        and all(
            math.isclose(x, y, rel_tol=tolerance, abs_tol=tolerance / 100) or (math.isnan(x) and math.isnan(y))
            for x, y in zip(a, b, strict=True)
        )
        for a, b in zip(ours.parameters, theirs.parameters, strict=True)
    )


# --- Programs


@dataclass(frozen=True)
class Setting:
    """An optimizer to be spoilt.

    Attributes:
        name: of the class.
        options: that it is made with.
        shapes: of its parameters; the state of the first is spoilt.
        sparse: its gradients are.
    """

    name: str
    options: tuple[tuple[str, Any], ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ((6, 4), (3,))
    sparse: bool = False

    def __str__(self) -> str:
        told = [f"{k}={v}" for k, v in self.options] + (["sparse"] if self.sparse else [])
        return f"{self.name}({', '.join(told)})"


SETTINGS = (
    Setting("SGD"),
    Setting("SGD", (("momentum", 0.9),)),
    Setting("ASGD"),
    Setting("Adadelta"),
    Setting("Adagrad"),
    Setting("Adagrad", sparse=True),
    Setting("Adam", (("amsgrad", True),)),
    Setting("AdamW"),
    Setting("Adamax"),
    Setting("NAdam"),
    Setting("RAdam"),
    Setting("RMSprop", (("centered", True), ("momentum", 0.9))),
    Setting("Rprop"),
    Setting("SparseAdam", sparse=True),
    Setting("Adafactor"),
    Setting("Muon", shapes=((6, 4), (3, 5))),
    Setting("LBFGS", (("max_iter", 2),)),
)


def gradient(p: torch.Tensor, n: int, *, sparse: bool) -> torch.Tensor:
    """The gradient of a parameter at step ``n``: always the same."""
    values = torch.linspace(-1.0, 1.3, p.numel()).reshape(p.shape) * (1 + n % 3)
    if not sparse:
        return fenced(values)
    rows = torch.tensor([[0, p.shape[0] - 1]])
    return torch.sparse_coo_tensor(rows, fenced(values[rows[0]]), p.shape, is_coalesced=True, check_invariants=False)


class Program:
    """A few steps, something spoilt, and a few steps more."""

    def __init__(self, make: Callable[..., Any], setting: Setting) -> None:
        self.setting, self.make = setting, make
        self.parameters = [
            torch.nn.Parameter(fenced(torch.linspace(-2.0, 2.0, math.prod(s)).reshape(s))) for s in setting.shapes
        ]
        self.optimizer = make(self.parameters, **dict(setting.options))
        self.taken = 0

    def give(self) -> None:
        for p in self.parameters:
            p.grad = gradient(p, self.taken, sparse=self.setting.sparse)

    def run(self, steps: int) -> list[torch.Tensor]:
        """Step, with gradients that fit."""
        for _ in range(steps):
            self.give()
            self.step()
        return self.parameters

    def step(self) -> None:
        self.taken += 1
        if self.setting.name == "LBFGS":
            self.optimizer.step(
                lambda: torch.tensor(float(self.taken))
            )  # it reads no parameter: that is the step's to do
        else:
            # Said aloud, or torch warns that it does not check what Adagrad makes of sparse gradients.
            with torch.sparse.check_sparse_tensor_invariants(enable=False):
                self.optimizer.step()

    @property
    def state(self) -> dict[str, Any]:
        """Of the first parameter."""
        return self.optimizer.state[self.parameters[0]]


def keys(setting: Setting) -> list[str]:
    """Of the tensors in the state, by torch's own class; of those in lists as ``key[0]``."""
    program = Program(getattr(torch.optim, setting.name), setting)
    program.run(3)
    found = []
    for key, value in program.state.items():
        if isinstance(value, torch.Tensor):
            found.append(key)
        elif isinstance(value, list) and value and isinstance(value[0], torch.Tensor):
            found += [key, f"{key}[0]"]
        elif key == "step":
            found.append(key)
    return found


def spoil_state(program: Program, key: str, how: str, *, mended: bool = False) -> None:
    """Put something else into the state of the first parameter, or change it in place.

    Args:
        mended: the values alone are kept, in a tensor such as it should be.
    """
    state = program.state
    key, _, inside = key.partition("[")
    place, at = (state[key], 0) if inside else (state, key)
    value = place[at]
    if isinstance(value, list):
        value = value[0]
    tensor = value if isinstance(value, torch.Tensor) else torch.tensor(float(value))
    if mended:
        place[at] = _mended(how, tensor)
    elif how == "missing":
        del place[at]
    elif how in IN_PLACE:
        IN_PLACE[how](tensor)
    else:
        place[at] = REPLACED[how](tensor.detach().clone())


def _mended(how: str, tensor: torch.Tensor) -> torch.Tensor:
    """The values of a spoilt tensor in one that has the shape and dtype that it should have.

    Raises:
        ValueError: they are not as many, or have become whole numbers.
    """
    if how == "missing":
        return torch.zeros_like(tensor)
    if how in IN_PLACE:
        value: Any = tensor.detach().clone()
        IN_PLACE[how](value)
    else:
        value = REPLACED[how](tensor.detach().clone())
    if value is None:
        return torch.zeros_like(tensor)
    if isinstance(value, int | float):
        return tensor.new_tensor(value)
    if not isinstance(value, torch.Tensor) or value.shape != tensor.shape or value.dtype in (torch.int8, torch.bool):
        raise ValueError("no such values")
    return value.detach().to_dense().resolve_neg().to(tensor.dtype).clone(memory_format=torch.contiguous_format)


def stepped(
    make: Callable[..., Any], setting: Setting, key: str, how: str, moment: str, *, mended: bool = False
) -> list[torch.Tensor]:
    """A program whose state is spoilt.

    Args:
        moment: ``assigned`` between two steps, or ``loaded`` with a dictionary by another optimizer.
        mended: what is spoilt has its values, in a tensor such as it should be.
    """
    program = Program(make, setting)
    program.run(3)
    with spoiling():
        spoil_state(program, key, how, mended=mended)
    if moment == "assigned":
        return program.run(2)
    other = Program(make, setting)
    other.parameters[0].data.copy_(program.parameters[0])
    other.optimizer.load_state_dict(program.optimizer.state_dict())
    return other.run(2)


# --- Parameters and gradients


def _rows(rows: list[int], of: int) -> Change:
    """A sparse gradient that names these rows of a table of so many."""

    def change(g: torch.Tensor) -> torch.Tensor:
        values = fenced(torch.ones(len(rows), *g.shape[1:]))
        shape = (g.shape[0] + of, *g.shape[1:])
        return torch.sparse_coo_tensor(
            torch.tensor([rows]), values, shape, is_coalesced=rows == sorted(rows), check_invariants=False
        )

    return change


def _without(part: Callable[[torch.Tensor], torch.Tensor]) -> Change:
    """A sparse gradient of which a part was freed."""

    def change(g: torch.Tensor) -> torch.Tensor:
        made = torch.sparse_coo_tensor(
            torch.tensor([[0, 2]]), torch.ones(2, *g.shape[1:]), g.shape, check_invariants=False
        )
        part(made).untyped_storage().resize_(0)
        return made

    return change


#: What a sparse gradient of six rows may be that is none of its parameter.
SPARSE: dict[str, Change] = {
    "of a larger table": _rows([0, 8], 3),
    "of a smaller table": _rows([0, 1], -3),
    "of rows beyond": _rows([0, 6], 0),
    "of rows far beyond": _rows([0, 1 << 40], 0),
    "of rows before": _rows([-1, 0], 0),
    "of rows far before": _rows([-(1 << 40), 0], 0),
    "of rows beyond, uncoalesced": _rows([6, 0, 6], 0),
    "without the memory of values": _without(lambda g: g._values()),
    "without the memory of indices": _without(lambda g: g._indices()),
}


def with_gradient(make: Callable[..., Any], setting: Setting, how: str) -> list[torch.Tensor]:
    """A program in which the gradient of the first parameter is spoilt, for the third and the fourth step."""
    program = Program(make, setting)
    program.run(2)
    for _ in range(2):
        program.give()
        p = program.parameters[0]
        assert p.grad is not None
        with spoiling():
            if how in SPARSE:
                # The setter holds shapes against each other, of which its own can change before.
                p.grad.data = SPARSE[how](p.grad)
            else:
                p.grad.data = p.grad.clone()  # of memory that can be freed
                IN_PLACE[how](p.grad)
        program.step()
    return program.parameters


def with_parameter(make: Callable[..., Any], setting: Setting, how: str) -> list[torch.Tensor]:
    """A program in which the first parameter is spoilt after two steps; its gradient is as it was."""
    program = Program(make, setting)
    program.run(2)
    p = program.parameters[0]
    program.give()  # what belongs to the parameter as it was
    with spoiling():
        p.data = p.detach().clone()  # of memory that can be freed
        with torch.no_grad():
            IN_PLACE[how](p)
    program.step()
    return program.parameters
