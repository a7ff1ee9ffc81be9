"""Reads PTX (PTX ISA 8 and 9) as Triton writes it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stepcheck.harness.census.flow import THREAD, Instruction, Listing

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_ENTRY = re.compile(r"\.entry\s+\w+\s*\(")
_LINES = re.compile(r"^\s*\.(?:loc|pragma|file)[^\n]*$", re.MULTILINE)
_LABEL = re.compile(r"(\$\w+)\s*:")
_INSTRUCTION = re.compile(r"(?:@(!?%\w+)\s+)?([a-z][\w.:]*)(.*)", re.DOTALL)
_REGISTER = re.compile(r"%[a-z]\w*(?:\.[xyz])?")
_ACCESS = re.compile(r"(ld|st|atom|red)(?:\.\w+(?:::\w+)*)*?\.global(?:\.\w+(?:::\w+)*)*?(?:\.v(\d))?\.[busf](\d+)$")
_WITHOUT_RESULT = ("st", "red", "bra", "bar", "barrier", "ret", "exit", "trap", "membar", "fence", "prefetch", "call")


def entry(text: str) -> str:
    """The body of the kernel."""
    text = _COMMENT.sub("", text)
    found = _ENTRY.search(text)
    if found is None:
        raise ValueError("no .entry in this PTX")
    start = text.index("{", found.end())
    depth, at = 0, start
    while True:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
        if not depth:
            return text[start + 1 : at - 1]


def parse(text: str) -> Listing:
    """The instructions of the kernel that a PTX module has."""
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for statement in _statements(entry(text)):
        if isinstance(statement, Instruction):
            instructions.append(statement)
        else:
            labels[statement] = len(instructions)
    targets = {i.target for i in instructions}
    return Listing(instructions, {name: at for name, at in labels.items() if name in targets})


def all_instructions(text: str) -> list[Instruction]:
    """Those of the kernel, and of the functions that it calls."""
    return [s for s in _statements(_COMMENT.sub("", text)) if isinstance(s, Instruction)]


def _statements(text: str) -> Iterator[Instruction | str]:
    """Instructions and labels. Declarations are left out: what begins a function ends with the first of its registers'."""
    for part in text.split(";"):
        rest = _stripped(_LINES.sub("", part))
        while label := _LABEL.match(rest):
            yield label[1]
            rest = _stripped(rest[label.end() :])
        found = _INSTRUCTION.match(rest)
        if found is not None:
            yield _instruction(found[1] or "", found[2], found[3])


def _stripped(text: str) -> str:
    """Without the braces of a scope; no statement begins with those of its operands."""
    return text.lstrip("{} \t\n").rstrip()


def _instruction(guard: str, opcode: str, operands: str) -> Instruction:
    kind = opcode.split(".", maxsplit=1)[0]
    if kind == "bra":
        return Instruction(opcode, guard, target=operands.strip(), falls=bool(guard))
    if kind in ("ret", "exit", "trap"):
        return Instruction(opcode, guard, falls=False)
    access = _ACCESS.match(opcode)
    bracket = operands[operands.find("[") : operands.find("]")] if access else ""
    size = int(access[2] or 1) * int(access[3]) // 8 if access else 0
    result, sources = "", operands
    if kind not in _WITHOUT_RESULT:
        operands = operands.strip()
        end = operands.find("}") + 1 if operands.startswith("{") else operands.find(",")
        result, sources = operands[:end], operands[end:]
    reads = [THREAD if r.startswith("%tid") else r for r in _REGISTER.findall(sources)]
    return Instruction(
        opcode,
        guard,
        writes=tuple(_REGISTER.findall(result)),
        reads=tuple(reads),
        address=tuple(_REGISTER.findall(bracket)),
        size=size,
        stores=kind in ("st", "red"),
    )


def is_float64(opcode: str) -> bool:
    """Whether an instruction computes with float64, or converts to or from it."""
    kind, *modifiers = opcode.split(".")
    return "f64" in modifiers and kind not in ("ld", "st", "mov")


def divisions(operations: dict[str, int]) -> dict[str, int]:
    """Of all that divides, takes a root or a reciprocal, or is a hardware approximation: how often, by variant."""
    kinds = ("div", "sqrt", "rcp", "rsqrt", "ex2", "lg2", "sin", "cos", "tanh")
    return {
        op: n
        for op, n in operations.items()
        if op.split(".")[0] in kinds and op.split(".")[-1] in ("f32", "f64", "f16")
    }


def contracted(operations: dict[str, int]) -> int:
    """Products and sums that are one operation, or that the assembler may make one: those that say no rounding."""
    total = 0
    for op, n in operations.items():
        kind, *modifiers = op.split(".")
        of_floats = bool({"f16", "f16x2", "bf16", "bf16x2", "f32", "f64"} & set(modifiers))
        total += n * (of_floats and (kind == "fma" or (kind in ("mul", "add", "sub", "mad") and "rn" not in modifiers)))
    return total


def flushed(operations: dict[str, int]) -> int:
    """Operations that take subnormal numbers for zero."""
    return sum(n for op, n in operations.items() if "ftz" in op.split("."))


def narrowed(operations: dict[str, int], dtype: str) -> dict[str, int]:
    """Conversions from float32 to a narrow dtype, by how they round: how many elements."""
    short = {"bfloat16": "bf16", "float16": "f16"}.get(dtype)
    told: dict[str, int] = {}
    for op, n in operations.items():
        kind, *modifiers = op.split(".")
        if kind == "cvt" and modifiers[-1] == "f32" and len(modifiers) > 1 and modifiers[-2] in (short, f"{short}x2"):
            way = ".".join(modifiers[:-2])
            told[way] = told.get(way, 0) + n * (2 if modifiers[-2].endswith("x2") else 1)
    return told
