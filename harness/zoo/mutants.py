"""Wrong optimizers made from a Spec, so that a new optimizer has its own: its update with one thing changed, or one fact about it.

Each mutant changes one place of the source of the update, or of a function beside it that it calls: an operator, an operand, a
constant, an argument, a condition, a function, what is returned as a buffer. The orders of operations that are named as equal
(``any_order``'s keywords) are not run, so they are left as they are. Further mutants change a fact of the Spec (what a buffer starts from,
which option is read) or mix in a fault of the life around the steps.
"""

import ast
import copy
import inspect
import itertools
import textwrap

import torch

from stepcheck.harness.checking.checks import CHECKS
from stepcheck.harness.zoo import base, life
from stepcheck.harness.zoo.fault import Fault
from stepcheck.harness.zoo.written import compiled, functions, written

ANY = tuple(CHECKS)
NEEDS_DIMENSIONS = "Raises on a 0-d parameter"

_OPERATORS = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Add,
}
_COMPARISONS = {
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Lt: (ast.LtE, ast.Gt), ast.Gt: (ast.GtE, ast.Lt),
    ast.LtE: (ast.Lt, ast.Gt), ast.GtE: (ast.Gt, ast.Lt), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
}  # fmt: skip
_FUNCTIONS = {"maximum": "minimum", "minimum": "maximum", "max": "min", "min": "max", "at_least": "minimum"}
_TRANSPARENT = ("sqrt", "abs", "sign")
#: Those whose further arguments name orders that are equal to what is written, and are never run here.
_ORDERS = ("any_order", "any_order_of")


def _changes(node):
    """What may stand in a node's place: each an expression with one thing changed."""
    match node:
        case ast.BinOp():
            yield from _operations(node)
        case ast.UnaryOp(ast.USub() | ast.Not(), operand):
            yield operand
        case ast.BoolOp(op, values):
            yield ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values)
            yield from (values[0], values[-1])
        case ast.Compare(left, [op], rest):
            yield from (ast.Compare(left, [other()], rest) for other in _COMPARISONS.get(type(op), ()))
        case ast.Constant(bool()) | ast.Constant(str()) | ast.Constant(None):
            return
        case ast.Constant(int() | float() as value):
            yield from _constants(value)
        case ast.IfExp(_, body, orelse):
            yield from (body, orelse)
        case ast.Call(func, args, keywords):
            yield from _calls(func, args, keywords)
        case ast.Tuple(elts, ast.Store()) if len(elts) == 2:  # swapped on arrival
            yield ast.Tuple(elts[::-1], ast.Store())


def _operations(node):
    left, op, right = node.left, node.op, node.right
    if type(op) in _OPERATORS and not isinstance(op, ast.MatMult):
        yield ast.BinOp(left, _OPERATORS[type(op)](), right)
    yield left
    if isinstance(op, ast.Add | ast.Mult | ast.Div | ast.MatMult):
        yield right
    if isinstance(op, ast.Sub | ast.Div | ast.Pow):
        yield ast.BinOp(right, op, left)


def _constants(value):
    yield ast.Constant(value + 1)
    if value not in (0, 1):
        yield ast.Constant(value - 1)
    elif value == 1:
        yield ast.Constant(0 if isinstance(value, int) else 0.0)


def _calls(func, args, keywords):
    name = func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "")
    if name in _FUNCTIONS:
        other = _FUNCTIONS[name]
        numpy = isinstance(func, ast.Attribute) or name == "at_least"
        called = ast.Attribute(ast.Name("np", ast.Load()), other, ast.Load()) if numpy else ast.Name(other, ast.Load())
        yield ast.Call(called, args, keywords)
    if name in (*_TRANSPARENT, *_FUNCTIONS) and args:
        yield args[0]
    if name == "where":
        yield from args[1:]
    elif len(args) > 1 and name not in (*_FUNCTIONS, *_ORDERS) and not any(isinstance(a, ast.Starred) for a in args):
        yield ast.Call(func, [args[1], args[0], *args[2:]], keywords)
        if len(args) > 2 and name != "addcmul":  # whose factors commute
            yield ast.Call(func, [*args[:-2], args[-1], args[-2]], keywords)


class _Mutator:
    """The mutants of one function of a Spec's update."""

    def __init__(self, spec, function):
        self.spec = spec
        self.tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
        if isinstance(self.tree.body[0], ast.Expr) and isinstance(self.tree.body[0].value, ast.Constant):
            del self.tree.body[0]  # its docstring
        self.kept = self._kept()
        orders = (
            k for n in ast.walk(self.tree) if isinstance(n, ast.Call) and _called(n) in _ORDERS for k in n.keywords
        )
        #: Functions within it that are but an order, and never run.
        self.unrun = {k.value.id for k in orders if isinstance(k.value, ast.Name)}

    def mutants(self):
        """Pairs of what was changed, in words, and the function's source with the change."""
        for number, (node, statement) in enumerate(self._places(self.tree)):
            for n, changed in enumerate(self._changed(node)):
                tree = copy.deepcopy(self.tree)
                there = next(p for k, p in enumerate(self._places(tree)) if k == number)[0]
                replacement = next(c for k, c in enumerate(self._changed(there)) if k == n)
                mutant = ast.fix_missing_locations(_Replace(there, replacement).visit(tree))
                yield f"{_line(node)} -> {_line(changed)} in {_line(statement)}", mutant
        for block, n in self._swaps(self.tree):
            tree = copy.deepcopy(self.tree)
            there = next(b for b, k in self._swaps(tree) if (b[k].lineno, k) == (block[n].lineno, n))
            there[n], there[n + 1] = there[n + 1], there[n]
            yield f"{_line(block[n + 1])} before {_line(block[n])}", ast.fix_missing_locations(tree)

    def _places(self, node, statement=None):
        """Each node that can be changed, and the statement it stands in, outermost first."""
        if isinstance(node, ast.FunctionDef) and node.name in self.unrun:
            return
        if isinstance(node, ast.stmt):
            statement = node
        if isinstance(node, ast.expr):
            yield node, statement
        if isinstance(node, ast.If):
            yield node, node
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "args", "decorator_list") and isinstance(
                node, ast.FunctionDef | ast.AnnAssign
            ):
                continue
            children = value if isinstance(value, list) else [value]
            for child in children:
                order = isinstance(child, ast.keyword) and isinstance(node, ast.Call) and _called(node) in _ORDERS
                if isinstance(child, ast.AST) and not order:
                    yield from self._places(child, statement)

    def _changed(self, node):
        yield from _changes(node)
        match node:
            case ast.If(_, body, orelse):
                yield from (ast.If(ast.Constant(value), body, orelse) for value in (True, False))
            case ast.Subscript(ast.Name("state"), ast.Constant(key), ast.Load()):
                alike = [b.name for b in self.spec.buffers if b.per_parameter == self._buffer(key).per_parameter]
                yield from (
                    ast.Subscript(node.value, ast.Constant(other), ast.Load()) for other in alike if other != key
                )
            case ast.Attribute(ast.Name("hyper"), name, ast.Load()):
                default = next((h.default for h in self.spec.hyper if h.name == name), None)
                if isinstance(default, int | float) and not isinstance(default, bool):
                    yield ast.Constant(default)
            case ast.Name(name, ast.Load()) if name in self.kept:
                yield ast.Subscript(ast.Name("state", ast.Load()), ast.Constant(self.kept[name]), ast.Load())

    def _buffer(self, name):
        return next(b for b in self.spec.buffers if b.name == name)

    def _kept(self):
        """The names that stand for a buffer's new value, and that buffer."""
        kept = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Assign):
                read = {
                    n.slice.value
                    for n in ast.walk(node.value)
                    if isinstance(n, ast.Subscript) and isinstance(n.value, ast.Name) and n.value.id == "state"
                }
                names = [t.id for t in node.targets if isinstance(t, ast.Name)]
                if len(read) == 1 and not isinstance(node.value, ast.Subscript):
                    kept.update(dict.fromkeys(names, read.pop()))
        return kept

    def _swaps(self, tree):
        """Blocks and positions where a statement and the next can change places, and it matters."""
        defined = {a.arg for a in tree.args.args}
        for block in (tree.body, *(n.body for n in ast.walk(tree) if isinstance(n, ast.For | ast.While))):
            for n, (one, two) in enumerate(itertools.pairwise(block)):
                makes, reads = _names(one, ast.Store), _names(two, ast.Load)
                if isinstance(two, ast.Assign | ast.If) and makes & reads and makes & reads <= defined:
                    yield block, n
                defined = defined | makes


class _Replace(ast.NodeTransformer):
    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def _called(node):
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _names(node, context):
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, context)}


def _line(node):
    """A node as source on one line: the head of a block alone, and of several orders the one that is written."""
    return ast.unparse(_Written().visit(copy.deepcopy(node))).partition("\n")[0].rstrip(":")


class _Written(ast.NodeTransformer):
    def visit_Call(self, node):
        self.generic_visit(node)
        return node.args[0] if _called(node) == "any_order" else node


def sources(spec):
    """What is changed, in words, and the source of all functions, for each mutant of a Spec's source that differs from all others."""
    trees = {f.__name__: _Mutator(spec, f) for f in functions(spec)}
    seen = {ast.unparse(m.tree) for m in trees.values()}
    for name, mutator in trees.items():
        for told, mutant in mutator.mutants():
            text = ast.unparse(mutant)
            if text not in seen:
                seen.add(text)
                others = [ast.unparse(m.tree) for other, m in trees.items() if other != name]
                yield told, [*others, text]


# Facts about the Spec, as classes to mix in ---------------------------------------------------------------------------------


def _starts_higher(name):
    class Mixin:
        def initial(self, buffer, hyper):
            value = super().initial(buffer, hyper)
            return value if buffer.name != name or value is None else value + 1

    return Mixin


def _kept_in_half(name):
    class Mixin:
        def step_of(self, p, g, state, group):
            value, after = super().step_of(p, g, state, group)
            return value, after | ({name: after[name].half().to(after[name])} if name in after else {})

    return Mixin


def _begins_anew_on_load(name):
    class Mixin:
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            for group in self.param_groups:
                for p in group["params"]:
                    if name in self.state[p]:
                        first = self.start(p, group)
                        self.state[p].update({name: first[name]} if name in first else {})
                        if name not in first:
                            del self.state[p][name]

    return Mixin


def _exchanged_on_load(one, other):
    class Mixin:
        def load_state_dict(self, state_dict):
            super().load_state_dict(state_dict)
            for state in self.state.values():
                if one in state and other in state:
                    state[one], state[other] = state[other], state[one]

    return Mixin


def _option(name, read):
    """Reads one option in another way: ``read`` is given the optimizer, the group and the value."""

    class Mixin:
        def hyper(self, p, group):
            return super().hyper(p, {**group, name: read(self, group, group[name])})

    return Mixin


def _each(function, value):
    if isinstance(value, tuple):
        return tuple(_each(function, v) for v in value)
    return function(value) if isinstance(value, float) else value


def _in_half(_, group, value):
    return _each(lambda x: torch.tensor(x, dtype=torch.float16).item(), value)


def _in_single(_, group, value):
    return _each(lambda x: torch.tensor(x, dtype=torch.float32).item(), value)


def _facts(spec):
    """What is wrong, in words, and a class to mix in, for each fact of a Spec."""
    arrays = [b for b in spec.buffers if not b.per_parameter]
    for buffer in spec.buffers:
        if buffer.initial(spec.hyper_values()) is not None:
            yield f"{buffer.name} starts from one more", _starts_higher(buffer.name)
        yield f"{buffer.name} begins anew on load_state_dict", _begins_anew_on_load(buffer.name)
        if not buffer.per_parameter:
            yield f"{buffer.name} is kept in half precision", _kept_in_half(buffer.name)
    for one, other in itertools.pairwise(arrays):
        yield f"{one.name} and {other.name} are exchanged on load_state_dict", _exchanged_on_load(one.name, other.name)
    for hyper in spec.hyper:
        name, default = hyper.name, hyper.default
        yield (
            f"{name} is that of the first group",
            _option(name, lambda self, group, value, n=name: self.param_groups[0][n]),
        )
        yield f"{name} is not looked at", _option(name, lambda self, group, value, d=default: d)
        if not hyper.at_construction:
            first = f"first_{name}"
            yield (
                f"{name} is that of the first step",
                _option(name, lambda s, group, value, f=first: group.setdefault(f, value)),
            )
        numbers = default if isinstance(default, tuple) else (default,)
        if any(isinstance(x, float) for x in numbers) and not hyper.integer:
            yield f"{name} is rounded to half precision", _option(name, _in_half)
            if hyper.unit != "steps":  # what is compared with the step, itself a float32 number
                yield f"{name} is rounded to single precision", _option(name, _in_single)
        if isinstance(default, tuple):
            yield f"{name} is read backwards", _option(name, lambda self, group, value: value[::-1])


# Faults of the life around the steps, which any optimizer can have -----------------------------------------------------------

_LIFE = (
    base.ConsumesGradient, base.TakesAbsentForZero, base.ForgetsState, base.ForgetsOptions, base.DropsTail, base.WritesToCopy,
    base.IgnoresStrides, base.WritesWholeVectors, base.NeedsDimensions, base.NeedsElements, life.CallsClosureTwice,
    life.CallsClosureWithoutGrad, life.DropsLoss, life.ReplacesData, life.RunsHooksItself, life.StepsAnyway, life.SwallowsErrors,
    life.SkipsFirst, life.SkipsFrozen, life.KeepsFirstGradient, life.StateByPosition, life.LoadsInOrder, life.LoadsByNumber,
    life.MarksDictionary, life.Reseeds, life.FillsInZeros, life.ClearsFirstGroup, life.ResetsStateOnAdd,
)  # fmt: skip


_FORGOTTEN = "the first gradient is averaged with weight 1, which forgets what was there"
_BOTH_WAYS = "a matrix is transposed to spare work: either way the iteration is the same"
#: Mutants that no input can tell from a right implementation, by optimizer and how they are told, or the statement that they are in; and why.
_EQUIVALENT = {
    "SparseAdam": {NEEDS_DIMENSIONS: "sparse gradients are of matrices: there is no 0-d parameter"},
    "Muon": {
        NEEDS_DIMENSIONS: "it takes matrices alone: there is no 0-d parameter",
        "x.shape[0] > x.shape[1]": _BOTH_WAYS,
        "0 -> 1 in tall": _BOTH_WAYS,
        "1 -> 0 in tall": _BOTH_WAYS,
        "ns_coefficients is rounded to single": "products in bfloat16 round them further",
        "eps is rounded to single": "the norm that it bounds may be bfloat16",
        "return hyper.lr * math.sqrt(rows / columns)": "spectral_unclamped came with torch 2.14: no class need know it",
    },
    "Adamax": {
        "if hyper.weight_decay != 0 -> if True": "a right class may multiply an infinite parameter by a weight_decay of 0, which makes it NaN",
    },
    "AdamW": {
        "if hyper.weight_decay != 0 -> if True": "p is scaled by 1 - 0",
        "hyper.weight_decay -> 0.01 in if hyper.weight_decay != 0": "with no decay, p is scaled by 1 - 0",
        "if hyper.decoupled_weight_decay -> if True": "AdamW is decoupled",
        "g + hyper.weight_decay * p": "AdamW is decoupled: the penalty in the gradient is never reached",
        "hyper.weight_decay * p": "AdamW is decoupled: the penalty in the gradient is never reached",
        "hyper.weight_decay -> 0.01 in g": "AdamW is decoupled: the penalty in the gradient is never reached",
        "if hyper.weight_decay != 0 before": "decoupled decay does not read the gradient",
        "m = ema(state['exp_avg'], g, beta1) before": "the average does not read the parameter",
    },
    "ASGD": {
        "if hyper.weight_decay != 0 -> if True": "0 times an infinite parameter is NaN, and so is lambd's part in a right order",
        "ax starts from one more": "mu is 1 at first, which forgets it",
    },
    "NAdam": {
        "_momentum(beta1, t, hyper.momentum_decay) -> _momentum(beta1, hyper": "the two are multiplied, in either order",
        "_momentum(beta1, t + 1, hyper.momentum_decay) -> _momentum(beta1, hyper": "the two are multiplied, in either order",
    },
    "RAdam": {
        "rho > 5 -> rho >= 5": "at the threshold either branch is right",
        "np.where(rectified, rho, 6.0) -> rho": "where it is not rectified the number is not used",
        "6.0 ->": "where it is not rectified the number is not used",
        "r = np.sqrt": "where it is not rectified the number is not used",
    },
    "Rprop": {"np.sign(g * state['prev']) -> g * state['prev']": "it is only compared with 0"},
    "Adafactor": {
        "if hyper.weight_decay != 0 -> if True": "p is scaled by 1 - 0",
        "row_var starts": _FORGOTTEN,
        "col_var starts": _FORGOTTEN,
        "variance starts": _FORGOTTEN,
        "col_var and variance are exchanged": "no parameter has both",
    },
}
#: For every optimizer.
_OPTION_WITHOUT_MEANING = "a buffer cannot come or go between steps: such a change has no agreed meaning"


def _equivalent(spec, told):
    for beginning, why in _EQUIVALENT.get(spec.name, {}).items():
        if told.startswith(beginning) or told.endswith(f" in {beginning}"):
            return why
    name, _, rest = told.partition(" ")
    flag = next((h for h in spec.hyper if h.name == name and h.is_flag), None)
    if flag and rest == "is that of the first step":
        on = (
            spec.hyper_values()
            if flag.default
            else type(spec.hyper_values())(**{**vars(spec.hyper_values()), name: True})
        )
        if any(b.present(on) != b.present(spec.hyper_values()) for b in spec.buffers):
            return _OPTION_WITHOUT_MEANING
    return ""


def mutants(spec, most=None):
    """The wrong optimizers that are made from a Spec: at most ``most``, evenly spread over all. None where its step takes a closure."""
    if spec.closure:
        return []
    made = [
        *((f"source.{n}", told, {"codes": codes}) for n, (told, codes) in enumerate(sources(spec))),
        *((f"fact.{n}", told, {"mixin": mixin}) for n, (told, mixin) in enumerate(_facts(spec))),
        *((mixin.__name__, mixin.__doc__.partition("\n")[0], {"mixin": mixin}) for mixin in _LIFE),
    ]
    made = [(name, told, how, _equivalent(spec, told)) for name, told, how in made]
    wrong = [m for m in made if not m[3]]
    if most is not None and len(wrong) > most:
        wrong = [wrong[n * len(wrong) // most] for n in range(most)]
    return [_fault(spec, *m) for m in (*wrong, *(m for m in made if m[3]))]


def _fault(spec, name, told, how, equivalent):
    rule = compiled(spec, how.pop("codes")) if "codes" in how else None
    name = f"{spec.name}.{name}"
    make = written(spec, rule, name=name, told=told, **how)
    return Fault(make, spec.name, ANY, "mutant", name=name, equivalent=equivalent)
