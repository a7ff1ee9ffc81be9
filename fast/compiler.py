"""The compiler of kernels for the CPU: from the small part of Python that they are written in to the language of LLVM.

A kernel's source defines functions, of which LLVM is given those that ``kernel(launch)`` needs, each for the types that it is called
with. In a function there are integers of 64 bits, floating-point numbers of 32 and 64 bits and truth values; assignments, ``if``, ``while``,
``for`` over a ``range``, ``break``, ``continue`` and ``return``, of tuples too; arithmetic, comparisons, ``and``, ``or``, ``not``, conditional
expressions and calls of functions with a name. An integer beside a floating-point number is made one of 64 bits, as is one of 32 beside one
of 64. Whatever else there is in the source is Python that runs here, once, and makes what the functions may name: numbers, types,
:func:`loader` and :func:`storer`. A tuple of names of fast-math flags in place of a decorator is for the function below it; others have those of
their caller.

An integer may be the address of a :class:`~stepcheck.fast.records.Record`, whose words then have names: that for a parameter that is annotated
with the record, a word of another record that is said to be one, and ``[k]`` of either. Of a constant for a parameter that is annotated ``fixed`` a
function is made of its own, in which an ``if`` that it decides is decided.

This module imports LLVM's binding; only who compiles imports it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from llvmlite import ir

from stepcheck.fast.records import Record

_UNKNOWN = "a kernel cannot have {!r}"
Flags = tuple[str, ...]
Value = Any  # of llvmlite.ir, or a tuple of them

int64, float32, float64, _BOOL = ir.IntType(64), ir.FloatType(), ir.DoubleType(), ir.IntType(1)
_FLOATS = (float32, float64)
_BYTES = int64.width // 8  # of a word
_ARITHMETIC: dict[type, tuple[str, str]] = {  # of integers, of floating-point numbers
    ast.Add: ("add", "fadd"), ast.Sub: ("sub", "fsub"), ast.Mult: ("mul", "fmul"), ast.Div: ("", "fdiv"),
}  # fmt: skip
_COMPARISONS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}

#: In memory, and as it is computed with.
_WIDE = {
    "float64": (float64, float64),
    "float32": (float32, float32),
    "float16": (ir.HalfType(), float32),
    "bfloat16": (ir.IntType(16), float32),
    "int64": (int64, int64),
}


def assembly(source: str, symbol: str, flags: Flags) -> str:
    """The function ``kernel(launch)`` of this source under the name ``symbol``, in LLVM's language; all else in it is its own.

    Raises:
        TypeError: the source has what is not understood.
    """
    unit = _Unit(source)
    unit.function(unit.names["kernel"], (int64,), flags, symbol=symbol)
    return str(unit.module)


class _Address(ir.IntType):  # type: ignore[misc]  # llvmlite has no types
    """The type of the address of a record."""

    def __new__(cls, _: type[Record]) -> Self:
        made = object.__new__(cls)
        made.width = int64.width
        return made

    def __init__(self, record: type[Record]) -> None:
        self.record = record


def _is_record(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Record)


class _Unit:
    """One module: what its functions may name, and those that were made."""

    def __init__(self, source: str) -> None:
        self.module = ir.Module()
        self.names: dict[str, Any] = dict(_NAMES)
        self._made: dict[tuple[Any, ...], Any] = {}
        for node in ast.parse(source).body:
            if isinstance(node, ast.FunctionDef):
                self.names[node.name] = node
            else:
                exec(compile(ast.Module([node], []), "<kernel>", "exec"), self.names)  # noqa: S102 - source is made of this package's own rules

    def function(
        self,
        definition: ast.FunctionDef,
        types: Sequence[Any],
        flags: Flags,
        given: Sequence[Value] = (),
        symbol: str = "",
    ) -> Any:
        """The function for arguments of these types; where they are given, for those that are constants and fixed."""
        types, known = list(types), {}
        for k, argument in enumerate(definition.args.args):
            kind = ast.unparse(argument.annotation) if argument.annotation else ""
            if kind == "fixed" and isinstance(given[k], ir.Constant):
                known[argument.arg] = given[k]
            elif _is_record(self.names.get(kind)):
                if isinstance(types[k], _Address) and types[k].record is not self.names[kind]:
                    other = types[k].record.__name__
                    raise TypeError(f"{argument.arg} is the address of a {kind}, and cannot be that of a {other}")
                types[k] = _Address(self.names[kind])
        for decorator in definition.decorator_list:
            flags = eval(compile(ast.Expression(decorator), "<kernel>", "eval"), self.names)  # noqa: S307 - as above
        kinds = [t.record.__name__ if isinstance(t, _Address) else str(t) for t in types]
        key = (definition.name, *kinds, flags, *map(str, known.items()))
        if key not in self._made:
            name = symbol or self.module.get_unique_name(definition.name)
            self._made[key] = _Body(self, definition, types, flags, name, known, exported=bool(symbol)).function
        return self._made[key]


class _Body(ast.NodeVisitor):
    """Writes one function."""

    _result: Any = None  # the type of what it returns

    def __init__(
        self,
        unit: _Unit,
        definition: ast.FunctionDef,
        types: Sequence[Any],
        flags: Flags,
        name: str,
        known: Mapping[str, Value],
        *,
        exported: bool,
    ) -> None:
        self._unit, self.flags, self._known = unit, flags, known
        self.function = ir.Function(unit.module, ir.FunctionType(ir.VoidType(), types), name)
        self.function.linkage = "" if exported else "internal"
        self.builder = ir.IRBuilder(self.function.append_basic_block("entry"))
        self._variables: dict[str, Any] = {}
        self._loops: list[tuple[Any, Any]] = []  # where ``continue`` and ``break`` go
        for argument, value in zip(definition.args.args, self.function.args, strict=True):
            if argument.arg not in known:
                self._assign(ast.Name(argument.arg), value)
        self._block(definition.body)
        if not self.builder.block.is_terminated:
            # Where all branches return, nothing comes to what would follow them.
            self.builder.ret_void() if self._result is None else self.builder.unreachable()
        if self._result is not None:  # known only now
            self.function.ftype = ir.FunctionType(self._result, types)
            self.function.type, self.function.return_value.type = self.function.ftype.as_pointer(), self._result

    def generic_visit(self, node: ast.AST) -> Value:
        raise TypeError(_UNKNOWN.format(ast.unparse(node)))

    # Statements

    def _block(self, statements: Sequence[ast.stmt]) -> None:
        for statement in statements:
            if self.builder.block.is_terminated:
                return
            self.visit(statement)

    def _assign(self, target: ast.expr, value: Value) -> None:
        if isinstance(target, ast.Tuple):
            if not isinstance(value, tuple):
                raise TypeError(f"{ast.unparse(target)!r} is more than one")
            for each, part in zip(target.elts, value, strict=True):
                self._assign(each, part)
            return
        if isinstance(value, tuple):
            raise TypeError(f"{ast.unparse(target)} cannot be several")
        if isinstance(target, ast.Attribute):
            kind, place = self._word(target)
            self.builder.store(self._widened(value, kind, ast.unparse(target)), place)
            return
        assert isinstance(target, ast.Name)
        if target.id not in self._variables:
            with self.builder.goto_entry_block():
                self._variables[target.id] = self.builder.alloca(value.type)
        place = self._variables[target.id]
        self.builder.store(self._widened(value, place.allocated_type, target.id), place)

    def _widened(self, value: Value, kind: Any, name: str) -> Value:
        if value.type != kind and _common(value.type, kind) != kind:
            raise TypeError(f"{name} is {kind}, and cannot be {value.type}")
        return self.convert(value, kind)

    def visit_Assign(self, node: ast.Assign) -> None:
        value = self.visit(node.value)
        for target in node.targets:
            self._assign(target, value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        assert isinstance(node.target, ast.Name)
        self._assign(node.target, self.visit(ast.BinOp(ast.Name(node.target.id), node.op, node.value)))

    def visit_Expr(self, node: ast.Expr) -> None:
        self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        test = self._truth(node.test)
        if isinstance(test, ir.Constant):
            self._block(node.body if test.constant else node.orelse)
        elif node.orelse:
            with self.builder.if_else(test) as (then, otherwise):
                with then:
                    self._block(node.body)
                with otherwise:
                    self._block(node.orelse)
        else:
            with self.builder.if_then(test):
                self._block(node.body)

    def visit_While(self, node: ast.While) -> None:
        if node.orelse:
            self.generic_visit(node)
        self._loop(lambda: self._truth(node.test), lambda: self._block(node.body), lambda: None)

    def visit_For(self, node: ast.For) -> None:
        counted = node.iter
        if not isinstance(counted, ast.Call) or ast.unparse(counted.func) != "range" or node.orelse:
            raise TypeError(_UNKNOWN.format(ast.unparse(node)))
        given = [self.visit(argument) for argument in counted.args]
        start, stop, step = {1: [_int(0), *given, _int(1)], 2: [*given, _int(1)], 3: given}[len(given)]
        with self.builder.goto_entry_block():
            at = self.builder.alloca(int64)
        self.builder.store(start, at)
        order = ">" if isinstance(step, ir.Constant) and step.constant < 0 else "<"

        def body() -> None:
            self._assign(node.target, self.builder.load(at))
            self._block(node.body)

        def go_on() -> None:
            self.builder.store(self.builder.add(self.builder.load(at), step, flags=("nsw",)), at)

        self._loop(lambda: self.builder.icmp_signed(order, self.builder.load(at), stop), body, go_on)

    def _loop(self, test: Callable[[], Value], body: Callable[[], None], go_on: Callable[[], None]) -> None:
        head, inside, following, end = (
            self.function.append_basic_block(name) for name in ("head", "body", "next", "end")
        )
        self.builder.branch(head)
        self.builder.position_at_end(head)
        self.builder.cbranch(test(), inside, end)
        self.builder.position_at_end(inside)
        self._loops.append((following, end))
        body()
        self._loops.pop()
        if not self.builder.block.is_terminated:
            self.builder.branch(following)
        self.builder.position_at_end(following)
        go_on()
        self.builder.branch(head)
        self.builder.position_at_end(end)

    def visit_Break(self, node: ast.Break) -> None:  # noqa: ARG002
        self.builder.branch(self._loops[-1][1])

    def visit_Continue(self, node: ast.Continue) -> None:  # noqa: ARG002
        self.builder.branch(self._loops[-1][0])

    def visit_Return(self, node: ast.Return) -> None:
        value = None if node.value is None else self.visit(node.value)
        if value is None:
            self.builder.ret_void()
            return
        if isinstance(value, tuple):
            parts, value = value, ir.Constant(ir.LiteralStructType([v.type for v in value]), ir.Undefined)
            for i, part in enumerate(parts):
                value = self.builder.insert_value(value, part, i)
        if self._result not in (None, value.type):
            raise TypeError(f"{self.function.name} returns {self._result} and {value.type}")
        self._result = value.type
        self.builder.ret(value)

    # Expressions

    def visit_Constant(self, node: ast.Constant) -> Value:
        return _constant(node.value)

    def visit_Name(self, node: ast.Name) -> Value:
        place = self._variables.get(node.id)
        if place is not None:
            return self.builder.load(place)
        return self._known[node.id] if node.id in self._known else _constant(self._named(node.id))

    def visit_Attribute(self, node: ast.Attribute) -> Value:
        named = self._unit.names.get(node.value.id) if isinstance(node.value, ast.Name) else None
        if _is_record(named):  # the number of a word
            return _int(getattr(named, node.attr))
        return self.builder.load(self._word(node)[1])

    def _word(self, node: ast.Attribute) -> tuple[Any, Value]:
        """The type of a word of a record, and where it is."""
        at = self.visit(node.value)
        record = getattr(at.type, "record", None)
        if record is None or node.attr not in record.fields:
            raise TypeError(_UNKNOWN.format(ast.unparse(node)))
        kind = record.fields[node.attr]
        found = {"int": int64, "float": float64}.get(kind) or _Address(self._unit.names[kind])
        return found, _pointer(self.builder, at, _int(getattr(record, node.attr)), found)

    def visit_Subscript(self, node: ast.Subscript) -> Value:
        first = self.visit(node.value)
        if not isinstance(first.type, _Address):
            self.generic_visit(node)
        line = self.builder.mul(self.visit(node.slice), _int(_BYTES * first.type.record.words))
        return self.builder.add(first, line)

    def _named(self, name: str) -> Any:
        if name not in self._unit.names:
            raise TypeError(f"a kernel has no {name}")
        return self._unit.names[name]

    def visit_Tuple(self, node: ast.Tuple) -> Value:
        return tuple(map(self.visit, node.elts))

    def visit_BinOp(self, node: ast.BinOp) -> Value:
        a, b = self.visit(node.left), self.visit(node.right)
        if isinstance(node.op, ast.Pow):
            a, b = self._alike(a, b, float64)
            return self.intrinsic("llvm.pow", a, b)
        if type(node.op) not in _ARITHMETIC:
            self.generic_visit(node)
        of_integers, of_floats = _ARITHMETIC[type(node.op)]
        a, b = self._alike(a, b, float64 if not of_integers else int64)
        if a.type in _FLOATS:
            return getattr(self.builder, of_floats)(a, b, flags=self.flags)
        return getattr(self.builder, of_integers)(a, b)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Value:
        if isinstance(node.op, ast.Not):
            return self.builder.not_(self._truth(node.operand))
        if not isinstance(node.op, ast.USub):
            self.generic_visit(node)
        value = self.visit(node.operand)
        if isinstance(value, ir.Constant):
            return ir.Constant(value.type, -value.constant)
        return self.builder.fneg(value, flags=self.flags) if value.type in _FLOATS else self.builder.neg(value)

    def visit_Compare(self, node: ast.Compare) -> Value:
        if len(node.ops) > 1:
            self.generic_visit(node)
        a, b = self._alike(self.visit(node.left), self.visit(node.comparators[0]))
        order = _COMPARISONS[type(node.ops[0])]
        if a.type not in _FLOATS:
            return self.builder.icmp_signed(order, a, b)
        compare = self.builder.fcmp_unordered if order == "!=" else self.builder.fcmp_ordered
        return compare(order, a, b, flags=self.flags)

    def visit_BoolOp(self, node: ast.BoolOp) -> Value:
        first, *others = node.values
        if not others:
            return self._truth(first)
        rest = ast.BoolOp(node.op, others)
        decided = ast.Constant(value=isinstance(node.op, ast.Or))
        return self.visit(ast.IfExp(first, *((decided, rest) if decided.value else (rest, decided))))

    def visit_IfExp(self, node: ast.IfExp) -> Value:
        found = []
        with self.builder.if_else(self._truth(node.test)) as branches:
            for branch, expression in zip(branches, (node.body, node.orelse), strict=True):
                with branch:
                    found.append([self.visit(expression), self.builder.block])
        kinds = [value.type for value, _ in found]
        kind = kinds[0] if kinds[0] == kinds[1] else _common(*kinds)
        joined = self.builder.phi(kind)
        for value, block in found:
            with self.builder.goto_block(block):
                joined.add_incoming(self.convert(value, kind), block)
        return joined

    def visit_Call(self, node: ast.Call) -> Value:
        if node.keywords or not isinstance(node.func, ast.Name):
            raise TypeError(_UNKNOWN.format(ast.unparse(node)))
        called, given = self._named(node.func.id), [self.visit(argument) for argument in node.args]
        if isinstance(called, ast.FunctionDef):
            result = self.builder.call(self._unit.function(called, [v.type for v in given], self.flags, given), given)
            kind = result.type
            parts = range(len(kind.elements)) if isinstance(kind, ir.LiteralStructType) else None
            return result if parts is None else tuple(self.builder.extract_value(result, i) for i in parts)
        if isinstance(called, ir.Type):
            return self.convert(given[0], called)
        return called(self, *given)

    # What they are made of

    def _truth(self, node: ast.expr) -> Value:
        value = self.visit(node)
        if value.type != _BOOL:
            raise TypeError(f"{ast.unparse(node)!r} is no truth value")
        return value

    def convert(self, value: Value, kind: Any) -> Value:
        """A number in another type."""
        if value.type == kind:
            return value
        if kind in _FLOATS:
            if value.type in _FLOATS:
                return (self.builder.fpext if kind == float64 else self.builder.fptrunc)(value, kind)
            return (self.builder.uitofp if value.type == _BOOL else self.builder.sitofp)(value, kind)
        return self.builder.fptosi(value, kind) if value.type in _FLOATS else self.builder.zext(value, kind)

    def _alike(self, a: Value, b: Value, least: Any = _BOOL) -> tuple[Value, Value]:
        """Both in one type, that both fit into; at least this one."""
        kind = a.type if a.type == b.type else _common(a.type, b.type)
        if kind not in _FLOATS and kind != least:
            kind = _common(kind, least)
        return self.convert(a, kind), self.convert(b, kind)

    def intrinsic(self, name: str, *given: Value) -> Value:
        """What an intrinsic function of LLVM makes of values of one type."""
        return self.builder.call(self._unit.module.declare_intrinsic(name, [given[0].type]), given, fastmath=self.flags)


def _common(a: Any, b: Any) -> Any:
    """Of two types that differ, the one that numbers of both are made."""
    return float64 if a in _FLOATS or b in _FLOATS else int64


def _int(value: int) -> Value:
    return ir.Constant(int64, value)


def _constant(value: Any) -> Value:
    if isinstance(value, ir.Constant):
        return value
    kind = {bool: _BOOL, int: int64, float: float64}.get(type(value))
    if kind is None:
        raise TypeError(f"a kernel cannot have {value!r}")
    return ir.Constant(kind, value)


# --- What functions may call: loads and stores of each format, atomic counting, the functions of rules


def _pointer(builder: Any, address: Value, index: Value, element: Any, distance: Value = None) -> Value:
    # Of a distance that is known it is taken to be the size of an element: only an index can be vectorized.
    if distance is not None and not isinstance(distance, ir.Constant):
        address, index = builder.add(address, builder.mul(index, distance)), _int(0)
    base = builder.inttoptr(address, element.as_pointer())
    return builder.gep(base, [index], source_etype=element)


def _streams_apart(builder: Any, instruction: Any, stream: str, streams: Sequence[str]) -> None:
    """Tell LLVM that what one stream touches no other does, so that it need not look before it vectorizes."""
    if not stream:
        return
    module = builder.module
    domain = module.add_metadata(["stepcheck"])
    scopes = {name: module.add_metadata([f"stepcheck {name}", domain]) for name in streams}
    instruction.set_metadata("alias.scope", module.add_metadata([scopes[stream]]))
    others = [scope for name, scope in scopes.items() if name != stream]
    if others:
        instruction.set_metadata("noalias", module.add_metadata(others))


def _computed(builder: Any, kind: str, raw: Value) -> Value:
    if kind == "float16":
        return builder.fpext(raw, float32)
    if kind == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        wide = builder.zext(raw, ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), float32)
    return raw


def _stored(builder: Any, kind: str, value: Value) -> Value:
    if kind == "float16":
        return builder.fptrunc(value, ir.HalfType())
    if kind == "bfloat16":
        # To nearest, ties to even; NaN stays NaN.
        i32 = ir.IntType(32)
        bits = builder.bitcast(value, i32)
        odd = builder.and_(builder.lshr(bits, ir.Constant(i32, 16)), ir.Constant(i32, 1))
        rounded = builder.add(bits, builder.add(odd, ir.Constant(i32, 0x7FFF)))
        quiet = builder.or_(bits, ir.Constant(i32, 0x400000))
        chosen = builder.select(builder.fcmp_unordered("uno", value, value), quiet, rounded)
        return builder.trunc(builder.lshr(chosen, ir.Constant(i32, 16)), ir.IntType(16))
    return value


def loader(kind: str, stream: str = "", streams: Sequence[str] = ()) -> Callable[..., Value]:
    """A function ``(address, index)``: the element there, widened to what is computed with.

    With a third argument, the distance in bytes from one element to the next.
    """

    def load(body: _Body, address: Value, index: Value, distance: Value = None) -> Value:
        raw = body.builder.load(_pointer(body.builder, address, index, _WIDE[kind][0], distance))
        _streams_apart(body.builder, raw, stream, streams)
        return _computed(body.builder, kind, raw)

    return load


def storer(kind: str, stream: str = "", streams: Sequence[str] = ()) -> Callable[..., Value]:
    """A function ``(address, index, value)``, or with a distance after these: rounds the value to the format in memory and puts it there."""
    element, wide = _WIDE[kind]

    def store(body: _Body, address: Value, index: Value, value: Value, distance: Value = None) -> None:
        narrow = _stored(body.builder, kind, body.convert(value, wide))
        stored = body.builder.store(narrow, _pointer(body.builder, address, index, element, distance))
        _streams_apart(body.builder, stored, stream, streams)

    return store


def _next_number(body: _Body, address: Value) -> Value:
    """Count up what is at an address; the number before. Each thread is given another."""
    pointer = body.builder.inttoptr(address, int64.as_pointer())
    return body.builder.atomic_rmw("add", pointer, _int(1), "monotonic")


def _call(body: _Body, function: Value, first: Value, second: Value) -> Value:
    """Call the C function at an address with two integers or addresses; what it returns."""
    kind = ir.FunctionType(int64, [int64, int64])
    return body.builder.call(body.builder.inttoptr(function, kind.as_pointer()), [first, second])


def _sqrt(body: _Body, x: Value) -> Value:
    """The instruction; that of the C library would look for negative numbers first, to set errno."""
    return body.intrinsic("llvm.sqrt", x)


def _absolute(body: _Body, x: Value) -> Value:
    return body.intrinsic("llvm.fabs", x)


_NAMES: dict[str, Any] = {
    "int64": int64, "float32": float32, "float64": float64, "loader": loader, "storer": storer,
    "next_number": _next_number, "call": _call, "sqrt": _sqrt, "absolute": _absolute, "abs": _absolute,
    **{f"load_{kind}": loader(kind) for kind in ("int64", "float32", "float64")},
    **{f"store_{kind}": storer(kind) for kind in ("int64", "float32", "float64")},
}  # fmt: skip
_NAMES |= {
    definition.name: definition
    for definition in ast.parse("""
def maximum(a, b):
    return a if a > b or a != a else b

def minimum(a, b):
    return a if a < b or a != a else b

def min(a, b):
    return b if b < a else a

def max(a, b):
    return b if b > a else a

def rounded(x):
    return float64(float32(x))
""").body
    if isinstance(definition, ast.FunctionDef)
}
