"""Reads SASS as ``nvdisasm --binary`` prints it (CUDA Binary Utilities, instruction set reference)."""

from __future__ import annotations

import bisect
import itertools
import re
from collections.abc import Sequence

from stepcheck.harness.census.flow import THREAD, Instruction, Listing

_INSTRUCTION = re.compile(r"^\s*/\*([0-9a-f]+)\*/\s+\{?\s*(?:@(!?U?P\w+)\s+)?([A-Z][\w.]*)\s*(.*?)\s*;")
_REGISTER = re.compile(r"\b(U?[RP])(\d+)\b|\bSR_TID\.X\b")
_TARGET = re.compile(r"\b0x([0-9a-f]+)$")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_LOADS, _STORES = ("LDG", "LD", "ATOMG", "ATOM"), ("STG", "ST", "REDG", "RED")
_WITHOUT_RESULT = (
    *_STORES,
    "STL",
    "STS",
    "BAR",
    "BSSY",
    "BSYNC",
    "BREAK",
    "CALL",
    "NOP",
    "WARPSYNC",
    "DEPBAR",
    "MEMBAR",
)
_SIZES = {"256": 32, "128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


def parse(text: str) -> Listing:
    """The instructions of a kernel; what it calls (the slow ways of division and square root) follows it, and returns."""
    return next(iter(parse_all(text, [1 << 63])))


def parse_all(text: str, ends: Sequence[int]) -> list[Listing]:
    """The same of several kernels, one after another in one binary; each ends at such an address."""
    lines = [found for found in map(_INSTRUCTION.match, text.splitlines()) if found]
    addresses = [int(found[1], 16) for found in lines]
    starts = [0, *(bisect.bisect_left(addresses, end) for end in ends)]
    return [_listing(lines[a:b]) for a, b in itertools.pairwise(starts)]


def _listing(lines: Sequence[re.Match[str]]) -> Listing:
    barriers: dict[str, str] = {}
    instructions = [_instruction(found[2] or "", found[3], found[4], barriers) for found in lines]
    targets = {i.target for i in instructions}
    labels = {format(int(found[1], 16), "x"): n for n, found in enumerate(lines)}
    return Listing(instructions, {name: at for name, at in labels.items() if name in targets})


def _instruction(guard: str, opcode: str, operands: str, barriers: dict[str, str]) -> Instruction:
    kind, *modifiers = opcode.split(".")
    guard = "" if guard == "PT" else guard
    target = _TARGET.search(operands)
    if kind == "BSSY" and target:
        barriers[operands.split(",", maxsplit=1)[0].strip()] = target[1]
        return Instruction(opcode, guard)
    if kind == "BSYNC":
        # Threads go on where their barrier said that they would meet.
        to = barriers.get(operands.split(",", maxsplit=1)[0].strip(), "")
        return Instruction(opcode, guard, target=to, falls=not to)
    if kind in ("BRA", "JMP") and target:
        condition = _REGISTER.search(operands[: target.start()]) or {"DIV", "CONV"} & set(modifiers)
        return Instruction(opcode, guard, target=target[1], falls=bool(guard) or bool(condition))
    if kind in ("EXIT", "RET", "BRX", "KILL"):
        return Instruction(opcode, guard, falls=False)
    return _computes(guard, opcode, operands)


def _computes(guard: str, opcode: str, operands: str) -> Instruction:
    kind, *modifiers = opcode.split(".")
    size, address = 0, ""
    if kind in (*_LOADS, *_STORES):
        size = next((_SIZES[m] for m in reversed(modifiers) if m in _SIZES), 4)
        address = _BRACKET.findall(operands)[-1]
    if kind in ("STL", "LDL"):
        return _spill(guard, opcode, operands)
    parts = [part.strip() for part in operands.split(",")]
    results: list[str] = []
    if kind not in _WITHOUT_RESULT:
        results = parts[:1]
        # Predicates that are results stand among the first operands; where one is the first, another result follows.
        if len(parts) > 2 and (_is_predicate(parts[0]) or _is_predicate(parts[1])):
            results = parts[:2]
    wide = 4 if "128" in modifiers else 2 if _is_pair(opcode) else 1
    writes = [w for part in results for w in _run(part, wide)]
    return Instruction(
        opcode,
        guard,
        writes=tuple(writes),
        reads=tuple(_registers(", ".join(parts[len(results) :]))),
        address=tuple(_registers(address)),
        size=size,
        stores=kind in _STORES,
    )


def _is_pair(opcode: str) -> bool:
    """Whether the result has 64 bits."""
    kind, *modifiers = opcode.split(".")
    if kind == "F2F":
        # To the first format, from the second.
        return next((m for m in modifiers if m in ("F16", "BF16", "F32", "F64")), "") == "F64"
    if kind == "F2I":
        return bool({"S64", "U64"} & set(modifiers))
    # The approximation of a reciprocal or root of float64 is half of one.
    return bool({"64", "WIDE"} & set(modifiers)) or (is_float64(opcode) and kind != "MUFU")


def _spill(guard: str, opcode: str, operands: str) -> Instruction:
    """A move to or from the stack, whose words count as registers: an address may be kept there."""
    wide = 4 if ".128" in opcode else 2 if ".64" in opcode else 1
    place = _BRACKET.search(operands)
    assert place is not None
    offset = int(place[1].partition("+")[2] or "0", 16)
    words = tuple(f"stack {offset + 4 * k}" for k in range(wide))
    if opcode.startswith("STL"):
        return Instruction(opcode, guard, writes=words, reads=tuple(_run(operands.split(",")[1].strip(), wide)))
    return Instruction(opcode, guard, writes=tuple(_run(operands.split(",", maxsplit=1)[0].strip(), wide)), reads=words)


def _is_predicate(operand: str) -> bool:
    return re.fullmatch(r"U?P(?:\d|T)", operand) is not None


def _registers(text: str) -> list[str]:
    return [THREAD if not m[1] else m[1] + m[2] for m in _REGISTER.finditer(text)]


def _run(operand: str, wide: int) -> list[str]:
    """The registers that a result of ``wide`` words fills."""
    found = _REGISTER.match(operand)
    if found is None or not found[1]:
        return []
    count = 1 if found[1].endswith("P") else wide
    return [f"{found[1]}{int(found[2]) + k}" for k in range(count)]


def is_float64(opcode: str) -> bool:
    """Whether an instruction computes with float64, or converts to or from it."""
    kind, *modifiers = opcode.split(".")
    return kind in ("DADD", "DMUL", "DFMA", "DSETP", "DMNMX", "DMMA") or bool(
        {"F64", "RCP64H", "RSQ64H"} & set(modifiers)
    )


def spills(operations: dict[str, int]) -> int:
    """Accesses to local memory: a stack frame alone is that of a call."""
    return sum(n for op, n in operations.items() if op.split(".")[0] in ("STL", "LDL"))
