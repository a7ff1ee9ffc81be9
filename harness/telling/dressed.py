"""What is no class of torch's, in a script: a process is asked by a class that is written out, and so are pure functions and frameworks."""

from __future__ import annotations

import ast
import functools
import inspect
from types import ModuleType
from typing import Any

from stepcheck.harness.play import frameworks, trees
from stepcheck.harness.play.functions import Functions
from stepcheck.harness.play.owned import FRAMEWORKS
from stepcheck.harness.play.subjects import Subject

_PROCESS = """\
import json, subprocess
command, options = {command!r}, {options!r}
process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
def ask(request):  # a line, and its answer
    print(json.dumps(request), file=process.stdin, flush=True)
    answer = json.loads(process.stdout.readline())
    assert answer is not None and "error" not in answer, answer
    return answer
def sent(x):  # what is not finite has no other form in JSON than its name
    return [sent(y) for y in x] if isinstance(x, (list, tuple)) else json.dumps(x) if x != x or x in (torch.inf, -torch.inf) else x
def flat(t, p): return sent((t.double().reshape(-1) if t.shape == p.shape else t.double()).tolist())
def read(x, p):
    if not isinstance(x, list): return float(x) if isinstance(x, str) else x
    t = torch.tensor(torch.utils._pytree.tree_map(float, x), dtype=torch.double)
    return (t.reshape(p.shape) if t.dim() == 1 and t.numel() == p.numel() else t).to(p.dtype)
class Client(torch.optim.Optimizer):  # keeps groups and state, and has the process take the steps
    def __init__(self, params, **given): super().__init__(params, {{**options, **given}})
    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for g, p in [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]:
            state = {{k: flat(v, p) if torch.is_tensor(v) else sent(v) for k, v in self.state[p].items()}}
            about = {{"options": {{k: sent(g[k]) for k in options}}, "shape": list(p.shape), "dtype": str(p.dtype)[6:]}}
            answer = ask({{"step": {{**about, "parameter": flat(p, p), "gradient": flat(p.grad, p), "state": state or None}}}})
            p.copy_(read(answer["parameter"], p))
            self.state[p] = {{k: read(v, p) for k, v in (answer.get("state") or {{}}).items()}}
        return loss
"""


_FUNCTIONS = """\
class Functions(torch.optim.Optimizer):  # keeps groups and state, and has the functions take the steps
    def __init__(self, params, **given): super().__init__(params, {{**options, **given}})
    @torch.no_grad()
    def step(self, closure=None):
        loss = None if closure is None else torch.enable_grad()(closure)()
        for g, p in [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]:
            init, update = pair(make(**{{k: g[k] for k in options}}))
            array, gradient = (as_array(t.clone(memory_format=torch.contiguous_format)) for t in (p, p.grad.detach()))
            state = filled(init([array]), self.state[p])
            by_name = "params" in inspect.signature(update).parameters
            updates, after = update([gradient], state, params=[array]) if by_name else update([gradient], state, [array])
            p.copy_(only(apply([array], updates)))
            self.state[p] = {{name: stored(leaf, p) for name, leaf in named_leaves(after).items()}}
        return loss
"""


_OWNED = """\
Owned.make, Owned.owner, Owned.rate = staticmethod(make), {owner}, {rate!r}
Owned.defaults_of = {{k: p.default for k, p in inspect.signature(make).parameters.items() if k in {options!r}}}
"""


def lines(subject: Subject) -> list[str]:
    """The statements that a script needs for a subject that is no class of torch's; none for a class."""
    shape = subject.shape
    if shape is None:
        return []
    if shape.command:
        return _PROCESS.format(command=list(shape.command), options=dict(shape.options)).splitlines()
    return _of_functions(subject) if issubclass(subject.make, Functions) else _of_framework(subject)  # type: ignore[arg-type]


#: How a script makes of a tensor what functions take.
_AS_ARRAY = {
    "numpy": ("as_array = torch.Tensor.numpy",),
    "torch": ("as_array = torch.Tensor.detach",),
    "jax": ("import jax.numpy", "def as_array(t): return jax.numpy.asarray(t.numpy())"),
}

#: What modules are looked for where one stands for.
_PATH = '__import__("sys").path.insert(0, "")  # modules are looked for where you stand'


def _of_functions(subject: Subject) -> list[str]:
    make: Any = subject.make
    own = make.apply is not trees.added
    apply = f"from {make.apply.__module__} import {make.apply.__qualname__} as apply" if own else "apply = added"
    return [
        "import dataclasses, inspect",
        "import numpy as np",
        _PATH,
        subject.imports,
        "options = {k: p.default for k, p in inspect.signature(make).parameters.items()}",
        *_AS_ARRAY[make.arrays or "numpy"],
        *_FUNCTIONS.format().splitlines(),
        "# A state as its arrays, by name, and back.",
        *_written(trees),
        apply,
    ]


def _of_framework(subject: Subject) -> list[str]:
    make: Any = subject.make
    own = make.owner.__name__
    options = [k for k in make.stepcheck_shape.options if k in make.defaults_of]
    others = {f.owner.__name__ for f in FRAMEWORKS.values()} - {own}
    return [
        "import importlib, inspect, re",
        "import numpy as np",
        _PATH,
        subject.imports,
        "# An optimizer that owns its parameters, as one of torch's.",
        *_written(frameworks, frozenset(others)),
        *_OWNED.format(owner=own, rate=make.rate, options=options).splitlines(),
    ]


@functools.cache
def _written(module: ModuleType, without: frozenset[str] = frozenset()) -> tuple[str, ...]:
    """The functions and classes of a module, without what is there for a reader of stepcheck."""
    parsed = _Bare().visit(ast.parse(inspect.getsource(module)))
    kept = (node for node in parsed.body if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return tuple(line for node in kept if node.name not in without for line in ast.unparse(node).splitlines() if line)


class _Bare(ast.NodeTransformer):
    """Takes docstrings and annotations away."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        for argument in (*node.args.args, *filter(None, (node.args.vararg, node.args.kwarg))):
            argument.annotation = None
        return self._without_docstring(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._without_docstring(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if node.value is None:
            return None
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    def _without_docstring(self, node: ast.FunctionDef | ast.ClassDef) -> ast.AST:
        if ast.get_docstring(node) is not None:
            node.body = node.body[1:]
        self.generic_visit(node)
        node.body = node.body or [ast.Pass()]
        return node
