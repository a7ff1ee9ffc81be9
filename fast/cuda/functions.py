"""From functions to the text of a kernel.

A kernel is a function of a module, written in Triton, and what it calls there. Its text is made for each variant by putting constants where
their names stand: it has all that it depends on, and Triton tells compiled kernels apart by their text.

A parameter that is annotated with a :class:`~stepcheck.fast.records.Record` is the address of one, or of a table of them: ``row.outer`` loads a
word of the record, ``rows[r]`` is the address of another line of the table. ``Row.outer`` is the number of the word.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from stepcheck.fast.records import Record


def specialized(module: ModuleType, name: str, constants: Mapping[str, Any]) -> str:
    """The text of a function of a module, and of those that it calls.

    Args:
        constants: numbers, texts that are expressions, and records, beside the numbers and records of the module.
    """
    own = {key: value for key, value in vars(module).items() if isinstance(value, int | float | type)}
    specializer = _Specializer({**own, **constants})
    definitions = {
        node.name: node for node in ast.parse(inspect.getsource(module)).body if isinstance(node, ast.FunctionDef)
    }
    made: dict[str, ast.AST] = {}
    pending = [name]
    while pending:
        if (each := pending.pop()) not in made:
            made[each] = specializer.visit(definitions[each])
            pending += [n.id for n in ast.walk(made[each]) if isinstance(n, ast.Name) and n.id in definitions]
    return "\n\n".join(map(ast.unparse, made.values()))


class _Specializer(ast.NodeTransformer):
    """Puts constants where their names stand, and leaves out branches that they decide against."""

    def __init__(self, constants: Mapping[str, Any]) -> None:
        self._records = {key: kind for key, kind in constants.items() if isinstance(kind, type)}
        self._values = {key: value for key, value in constants.items() if not isinstance(value, type)}
        self._addresses: dict[str, type[Record]] = {}  # in the function that is visited

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        self._addresses = {a.arg: self._records[ast.unparse(a.annotation)] for a in node.args.args if a.annotation}
        for argument in node.args.args:
            argument.annotation = None
        return self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        for name, value in zip(_parts(node.targets[0]), _parts(node.value), strict=False):
            record = self._pointed_to(value.value) if isinstance(value, ast.Subscript) else None
            if record is not None:
                self._addresses[ast.unparse(name)] = record
        return self.generic_visit(node)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        record = self._pointed_to(node.value)
        self.generic_visit(node)
        if record is None:
            return node
        return _expression(f"{ast.unparse(node.value)} + ({ast.unparse(node.slice)}) * {record.words}")

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name) and node.value.id in self._records:
            return ast.Constant(getattr(self._records[node.value.id], node.attr))
        record = self._pointed_to(node.value)
        if record is None:
            return self.generic_visit(node)
        return _expression(f"tl.load({ast.unparse(node.value)} + {getattr(record, node.attr)})")

    def visit_Name(self, node: ast.Name) -> ast.AST:
        value = self._values.get(node.id)
        return node if value is None else _expression(value) if isinstance(value, str) else ast.Constant(value)

    def visit_If(self, node: ast.If | ast.IfExp) -> Any:
        node.test = self.visit(node.test)
        if not isinstance(node.test, ast.Constant):
            return self.generic_visit(node)
        chosen = node.body if node.test.value else node.orelse
        return [*map(self.visit, chosen)] if isinstance(chosen, list) else self.visit(chosen)

    visit_IfExp = visit_If  # noqa: N815 - as ast calls it

    def _pointed_to(self, node: ast.expr) -> type[Record] | None:
        return self._addresses.get(node.id) if isinstance(node, ast.Name) else None


def _parts(node: ast.expr) -> list[ast.expr]:
    return node.elts if isinstance(node, ast.Tuple) else [node]


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body
