"""What PTX and SASS have in common: instructions in basic blocks, and the way that whole blocks of elements take through them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

#: Where the number of a thread comes from; what is computed from it differs from thread to thread.
THREAD = "thread"


class Unidentified(Exception):
    """The main path cannot be told from the control flow; the message says why."""


@dataclass(frozen=True)
class Instruction:
    """One instruction of a listing.

    Attributes:
        opcode: with all its modifiers: ``ld.global.v4.b32``, ``LDG.E.128``.
        guard: the predicate that it is executed under; empty for always.
        writes: registers.
        reads: registers, those of its address and :data:`THREAD` among them.
        address: registers of the address of an access to global memory.
        size: bytes of that access; 0 for all other instructions.
        stores: whether it is a store.
        target: the label that it may go on at.
        falls: whether what follows it may be next.
    """

    opcode: str
    guard: str = ""
    writes: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    address: tuple[str, ...] = ()
    size: int = 0
    stores: bool = False
    target: str = ""
    falls: bool = True


@dataclass
class Listing:
    """The instructions of a kernel, labels resolved."""

    instructions: list[Instruction]
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Path:
    """What a program does to whole blocks of elements.

    Attributes:
        loaded: bytes that a thread loads from addresses of its own.
        stored: bytes that it stores.
        sizes: how many of these accesses have how many bytes.
        masked: how many of them are predicated, or in a block that is not always executed.
        table: bytes loaded from addresses that all threads share.
        operations: how many instructions there are of each opcode.
    """

    loaded: int
    stored: int
    sizes: dict[int, int]
    masked: int
    table: int
    operations: dict[str, int]


@dataclass
class _Graph:
    """Basic blocks, the first the entry; the last is empty: where all exits lead."""

    blocks: list[list[Instruction]]
    after: list[set[int]]
    reach: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.reach = [self.reached(self.after[b]) for b in range(len(self.blocks))]

    def reached(self, start: Iterable[int], without: int = -1) -> set[int]:
        """The blocks that can be come to from ``start``, itself included, around ``without``."""
        seen: set[int] = set()
        pending = [b for b in start if b != without]
        while pending:
            block = pending.pop()
            if block not in seen:
                seen.add(block)
                pending += [b for b in self.after[block] if b != without]
        return seen

    def always(self, block: int, through: int) -> bool:
        """Whether every way from the entry to an exit that takes ``through`` takes ``block`` as well."""
        before = through not in self.reached([0], without=block)
        end = len(self.blocks) - 1
        return block == through or before or end not in self.reached([through], without=block)


def _graph(listing: Listing) -> _Graph:
    code = listing.instructions
    starts = {0, *listing.labels.values()} | {
        n + 1 for n, i in enumerate(code) if i.target or not i.falls or _leaves(i)
    }
    first = sorted(s for s in starts if s < len(code))
    number = {s: n for n, s in enumerate(first)}
    blocks = [code[a:b] for a, b in zip(first, [*first[1:], len(code)], strict=True)]
    end = len(blocks)
    after: list[set[int]] = []
    for start, block in zip(first, blocks, strict=True):
        last, following = block[-1], start + len(block)
        to = {number.get(listing.labels[last.target], end)} if last.target in listing.labels else set()
        if last.falls or last.guard:
            to.add(number.get(following, end))
        if _leaves(last):
            to.add(end)
        after.append(to or {end})
    return _Graph([*blocks, []], [*after, set()])


def _leaves(instruction: Instruction) -> bool:
    return not instruction.target and not instruction.falls


def _own_addresses(graph: _Graph) -> set[int]:
    """The accesses, by identity, whose address depends on which thread it is."""
    inside: list[set[str]] = [set() for _ in graph.blocks]
    inside[0] = {THREAD}
    own: set[int] = set()
    pending = [0]
    while pending:
        block = pending.pop()
        state = set(inside[block])
        for i in graph.blocks[block]:
            if i.size and not state.isdisjoint(i.address):
                own.add(id(i))
            if not state.isdisjoint((*i.reads, i.guard.lstrip("!"))):
                state.update(i.writes)
            elif not i.guard:
                state.difference_update(i.writes)
        state.add(THREAD)
        for b in graph.after[block]:
            if not state <= inside[b] or not inside[b]:
                inside[b] |= state
                pending.append(b)
    return own


def main_path(listing: Listing, way: str) -> Path:
    """What is done to the elements of a program, told from the control flow alone.

    Args:
        way: ``whole``: there is one way on which whole blocks of elements are stepped, without a loop, beside the loop over what is left over;
            that way is taken. ``read``: the same where they are not stepped but read. ``loop``: one pass of the one loop in which all that is loaded by each thread is loaded always, beside others
            with conditions. ``around``: the same, and all that is done around it. ``all``: all that is done outside loops, whatever its
            conditions.

    Raises:
        Unidentified: there is not exactly one such way that stores to addresses of each thread's own (of ``read``, loads), or one such loop; or, of ``all``,
            elements are accessed in a loop.
    """
    graph = _graph(listing)
    own = _own_addresses(graph)
    there = graph.reached([0])
    loops = {b for b in there if b in graph.reach[b]}
    if way == "all":
        if any(id(i) in own for b in loops for i in graph.blocks[b]):
            raise Unidentified("elements are accessed in a loop")
        return _path(graph, there - loops, own, lambda _: False)
    if way in ("loop", "around"):
        loop = _main_loop(graph, loops, own)
        some = min(loop)
        around = (
            {b for b in there - loops if some in graph.reach[b] or b in graph.reach[some]} if way == "around" else set()
        )
        return _path(
            graph,
            loop | around,
            own,
            lambda b: not (_each_pass(graph, loop, b) if b in loop else graph.always(b, some)),
        )
    after_loops = set().union(*(graph.reach[b] for b in loops)) - loops
    stores = way == "whole"
    ends = [b for b in sorted(there - loops) if any(i.stores is stores and id(i) in own for i in graph.blocks[b])]
    ends = [b for b in ends if b not in after_loops and not graph.reach[b] & loops]
    if not ends:
        raise Unidentified(f"nothing is {'stored' if stores else 'loaded'} on a way without a loop")
    if not all(graph.always(a, b) for a in ends for b in ends):
        raise Unidentified(f"whole blocks are {'stored' if stores else 'loaded'} on more than one way")
    end = ends[-1]
    # Everything that can happen on the way.
    blocks = {b for b in there - loops if b == end or end in graph.reach[b] or b in graph.reach[end]}
    return _path(graph, blocks, own, lambda b: not graph.always(b, end))


def _main_loop(graph: _Graph, loops: set[int], own: set[int]) -> set[int]:
    """The loop in which each thread loads without conditions."""
    found = []
    for loop in {frozenset(c for c in loops if c in graph.reach[b] and b in graph.reach[c]) for b in loops}:
        loads = [(b, i) for b in loop for i in graph.blocks[b] if id(i) in own and not i.stores]
        if loads and not any(i.guard or not _each_pass(graph, loop, b) for b, i in loads):
            found.append(set(loop))
    if len(found) != 1:
        raise Unidentified(f"{len(found) or 'no'} loops load elements without conditions")
    return found[0]


def _each_pass(graph: _Graph, loop: Iterable[int], block: int) -> bool:
    """Whether there is no way around a loop without this block."""
    rest = set(loop) - {block}
    while free := {b for b in rest if not graph.after[b] & rest}:
        rest -= free
    return not rest


def _path(graph: _Graph, blocks: set[int], own: set[int], sometimes: Callable[[int], bool]) -> Path:
    operations: Counter[str] = Counter()
    sizes: Counter[int] = Counter()
    loaded = stored = masked = table = 0
    for b in sorted(blocks):
        operations.update(i.opcode for i in graph.blocks[b])
        accesses = [i for i in graph.blocks[b] if i.size]
        mine = [i for i in accesses if id(i) in own]
        table += sum(i.size for i in accesses if id(i) not in own)
        sizes.update(i.size for i in mine)
        masked += len(mine) if mine and sometimes(b) else sum(bool(i.guard) for i in mine)
        stored += sum(i.size for i in mine if i.stores)
        loaded += sum(i.size for i in mine if not i.stores)
    return Path(loaded, stored, dict(sizes), masked, table, dict(operations))


def totals(instructions: Sequence[Instruction]) -> dict[str, int]:
    """How many instructions there are of each opcode."""
    return dict(Counter(i.opcode for i in instructions))
