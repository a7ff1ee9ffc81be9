"""An optimizer class made from a Spec, which steps by the reference's own update; and, from mutated source, wrong ones.

The update runs on NumPy arrays of the parameter's dtype with Python floats as scalars, as somebody's class would compute.
"""

import functools
import inspect
import types
from types import SimpleNamespace

import numpy as np
import torch

from stepcheck.harness.zoo import base


class _Numpy:
    """NumPy, whose functions of Python floats give Python floats: float64 scalars would widen float32 arrays."""

    def __getattr__(self, name):
        function = getattr(np, name)
        if not callable(function):
            return function

        @functools.wraps(function)
        def call(*args, **options):
            result = function(*args, **options)
            scalars = all(isinstance(a, bool | int | float) for a in args)
            return result.item() if scalars and isinstance(result, np.generic) else result

        return call


NUMPY = _Numpy()


def _stored(name, x):
    """A number kept for each parameter as its float32 tensor holds it; arrays have their dtype already."""
    return float(np.float32(x)) if isinstance(x, float) else x


def functions(spec):
    """The functions of a Spec's update, in its module and those beside it: the update first, then what it calls."""
    home = spec.update.__module__.rpartition(".")[0]
    found, waiting = {}, [spec.update]
    while waiting:
        function = waiting.pop(0)
        if function.__name__ in found:
            continue
        found[function.__name__] = function
        called = (function.__globals__.get(name) for name in _names(function.__code__))
        waiting += [
            f
            for f in called
            if isinstance(f, types.FunctionType)
            and f.__module__.startswith(home)
            and not f.__module__.endswith(".arithmetic")
        ]
    return list(found.values())


def _names(code):
    """The names that a function refers to, in the functions within it as well."""
    nested = (c for c in code.co_consts if isinstance(c, types.CodeType))
    return (*code.co_names, *(name for c in nested for name in _names(c)))


def compiled(spec, codes, **changed):
    """A Spec's update anew, over :data:`NUMPY`.

    Args:
        codes: for the functions of :func:`functions`, what to execute to define each.
        changed: further names that it is to find.
    """
    namespace = {}
    for function in functions(spec):
        namespace.update(function.__globals__)
    namespace.update(np=NUMPY, stored=_stored, **changed)
    for code in codes:
        exec(code, namespace)  # noqa: S102 - the reference's own source, or a mutant of it
    return namespace[spec.update.__name__]


class Written(base.Zoo):
    """Right: steps by the reference's own formula."""

    spec = None
    rule = None

    def __init__(self, params, **options):
        super().__init__(params, **{**vars(self.spec.hyper_values()), **options})

    def visit(self, p, group):
        state = self.state[p]
        if not state:
            state.update(self.start(p, group))
        self.write(p, self.update(p, self.gradient(p, group), state, group))

    def gradient(self, p, group):
        return p.grad

    def hyper(self, p, group):
        given = {h.name: group[h.name] for h in self.spec.hyper}
        values = SimpleNamespace(**{k: v.item() if isinstance(v, torch.Tensor) else v for k, v in given.items()})
        return self.spec.for_dtype(values, torch.finfo(p.dtype).eps)

    def used(self, p, group):
        """The buffers that a parameter has, and their shapes."""
        hyper = self.hyper(p, group)
        shaped = (
            (b, () if b.per_parameter else b.shape(tuple(p.shape))) for b in self.spec.buffers if b.present(hyper)
        )
        return [(b, shape) for b, shape in shaped if shape is not None]

    def start(self, p, group):
        hyper, state = self.hyper(p, group), {}
        for buffer, shape in self.used(p, group):
            initial = self.initial(buffer, hyper)
            if initial is not None:
                dtype = torch.float32 if buffer.per_parameter else p.dtype
                state[buffer.name] = torch.full(shape, float(initial), dtype=dtype)
        return state

    def initial(self, buffer, hyper):
        """What a buffer is filled with."""
        return buffer.initial(hyper)

    def update(self, p, g, state, group):
        sparse = g.is_sparse
        if sparse:
            g = g.coalesce()
            named = tuple(g._indices())
            rows = [b.name for b, shape in self.used(p, group) if shape != ()]
            part = {k: v[named] if k in rows else v for k, v in state.items()}
            value, after = self.step_of(p[named], g._values(), part, group)
            state.update({k: state[k].index_put(named, v) if k in rows else v for k, v in after.items()})
            return p.index_put(named, value)
        value, after = self.step_of(p, g, state, group)
        state.update(after)
        return value

    def step_of(self, p, g, state, group):
        """The parameter and state after the step, as tensors."""
        used = self.used(p, group)
        before = {b.name: self.read(b, state) for b, _ in used}
        with np.errstate(all="ignore"):
            try:
                value, after = self.rule(p.numpy(), g.numpy(), before, self.hyper(p, group))
            except (ZeroDivisionError, OverflowError):
                try:
                    value, after = self.in_float64(p, g, before, group)
                except ZeroDivisionError:
                    if p.numel():
                        raise
                    return p, dict(state)  # nothing to step: its shape alone divides by zero
        tensor = functools.partial(self.tensor, dtype=p.dtype)
        return tensor(value, p.shape), {
            b.name: torch.tensor(float(after[b.name])) if b.per_parameter else tensor(after[b.name], shape)
            for b, shape in used
        }

    def in_float64(self, p, g, before, group):
        """The same where a number is divided by zero or overflows, which Python refuses and NumPy's scalars do not."""
        hyper = self.hyper(p, group)
        wide = SimpleNamespace(**{k: _wide(v) for k, v in vars(hyper).items()})
        state = {k: None if v is None else np.asarray(v, np.float64)[()] for k, v in before.items()}
        return self.rule(p.double().numpy(), g.double().numpy(), state, wide)

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for state in self.state.values():  # torch gives all but step the parameter's dtype
            if isinstance(state, dict):  # and a hook may enter what it likes
                counted = (b.name for b in self.spec.buffers if b.per_parameter and b.name in state)
                state.update({name: state[name].float() for name in counted})

    def read(self, buffer, state):
        if buffer.name not in state:
            return None
        return state[buffer.name].item() if buffer.per_parameter else state[buffer.name].numpy()

    def tensor(self, value, shape, dtype):
        array = np.asarray(value, np.float32 if dtype == torch.float32 else np.float64)
        return torch.from_numpy(np.array(np.broadcast_to(array, tuple(shape))))


def _wide(x):
    if isinstance(x, tuple):
        return tuple(_wide(y) for y in x)
    return np.float64(x) if isinstance(x, float) else x


def written(spec, rule=None, mixin=None, name="", told=""):
    """A class that steps by a Spec's update; by a mutated one; with a fault mixed in."""
    bases = (Written,) if mixin is None else (mixin, Written)
    members = {
        "spec": spec,
        "rule": staticmethod(rule or compiled(spec, [inspect.getsource(f) for f in functions(spec)])),
        "__doc__": told or Written.__doc__,
        "__module__": __name__,
    }
    return type(name or f"Written{spec.name}", bases, members)
