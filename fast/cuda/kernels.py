"""From rules to the source of Triton kernels.

A step is one launch of :func:`prepare_source`, which counts the steps of all parameters and makes their scalars in float64, and one of
:func:`dense_source` for each :class:`~stepcheck.fast.kernels.Layout`, however many tensors there are; parameters whose tensors differ in strides, and
sparse gradients, take :func:`scattered_source`. The tables are described at each.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import re
import textwrap
from collections.abc import Iterator, Sequence

from stepcheck.fast.cuda.runtime import Source
from stepcheck.fast.kernels import COMPUTED, Layout
from stepcheck.fast.rules import Rule, always

#: Triton's names of formats.
TRITON = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32", "float64": "fp64"}
SIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
#: Elements of a program: 4 to a thread, 8 of narrow ones, 2 of float64, so that each thread loads 16 bytes of each stream at once.
BLOCK = {"float16": 1024, "bfloat16": 1024, "float32": 512, "float64": 256}
#: Into how many parts a thread takes the elements that it loads at once, so that their intermediate results fit into registers.
PARTS = {"float16": 4, "bfloat16": 4, "float32": 1, "float64": 2}
#: Of a program; where accesses are not of 16 bytes, each takes an element at a time.
THREADS = 128
#: Elements of a program whose streams are strided: one to a thread, whose places in all streams take enough registers.
SCATTERED_BLOCK = THREADS
#: Registers of a thread that prepares: its powers, in float64, take more than 64, and few programs of it run at a time anyhow.
PREPARE_REGISTERS = 80
#: Parameters of a program that prepares.
ROWS = 128

# Words of a row of a dense launch: elements, the first program, whether all streams start at 16 bytes, then their addresses.
N, FIRST_PROGRAM, ALIGNED, ADDRESSES = range(4)
#: Bytes at which the streams of an aligned row start: the widest access of a thread.
ALIGNMENT = 16

# Words of a row of a scattered launch: elements, the first program, how many dimensions, where their table is, then the addresses of
# streams, then for a sparse gradient how many elements an entry has and where the offsets of entries in each stream are.
DIMENSIONS, DIMENSION_TABLE, SCATTERED_ADDRESSES = 2, 3, 4

# Words of a member, which is a parameter to be prepared: its group, whether it is fresh, then of each counter its address and whether
# it is float64.
GROUP, FRESH, COUNTERS = range(3)
# Words of an option of a group: its value, as float64, or the address of a float32 or float64 that has it, and which.
VALUE, ADDRESS, WIDE, OPTION_WORDS = range(4)


class _Expressions(ast.NodeTransformer):
    """Puts in terms of blocks what a rule says of numbers.

    Args:
        wide: it computes in float64, where arithmetic is IEEE's without asking for it.
    """

    def __init__(self, *, wide: bool) -> None:
        self.wide = wide

    def visit_IfExp(self, node: ast.IfExp) -> ast.AST:
        parts = [ast.unparse(self.visit(part)) for part in (node.test, node.body, node.orelse)]
        return _parsed(f"tl.where({', '.join(parts)})")

    def visit_Call(self, node: ast.Call) -> ast.AST:
        assert isinstance(node.func, ast.Name)
        arguments = [ast.unparse(self.visit(a)) for a in node.args]
        return _parsed(self._function(node.func.id, arguments))

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        left, right = (ast.unparse(self.visit(side)) for side in (node.left, node.right))
        if isinstance(node.op, ast.Pow):
            # One of the two may be a plain number, which libdevice does not take; adding zero changes nothing of what is raised.
            return _parsed(f"power(zero + ({left}), zero + ({right}))")
        if isinstance(node.op, ast.Div) and not self.wide:
            return _parsed(f"tl.div_rn({left}, {right})")
        return ast.BinOp(_parsed(left), node.op, _parsed(right))

    def _function(self, name: str, arguments: list[str]) -> str:
        if name == "sqrt":
            return f"tl.sqrt{'' if self.wide else '_rn'}({arguments[0]})"
        if name == "absolute":
            return f"tl.abs({arguments[0]})"
        if name == "rounded":
            return f"({arguments[0]}).to(tl.float32).to(tl.float64)"
        a, b = arguments
        # NaN if either is NaN, as torch.maximum.
        return f"tl.where((({a}) {'>' if name == 'maximum' else '<'} ({b})) | (({a}) != ({a})), {a}, {b})"


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


def statements(function: object, *, wide: bool, results: tuple[str, ...]) -> list[str]:
    """The statements of a rule's function; what it returns is assigned to ``results``, of which those named ``_`` are dropped."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    definition = _Expressions(wide=wide).visit(tree).body[0]
    *body, last = definition.body
    assert isinstance(last, ast.Return)
    assert last.value is not None
    values = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    kept = [(name, ast.unparse(value)) for name, value in zip(results, values, strict=True) if name != "_"]
    return [*map(ast.unparse, body), *(f"{name} = {value}" for name, value in kept)]


def indented(lines: Sequence[str], depth: int) -> str:
    """Lines of a kernel, in blocks within as many others."""
    return textwrap.indent("\n".join(lines), "    " * depth)


def _body(layout: Layout, size: int, mask: str, *, parts: int = 1) -> list[str]:
    """Load, update and store the elements at ``at_*``.

    Args:
        size: how many there are.
        parts: into how many parts the elements of each thread are taken, one after the other, so that as many fewer intermediate results
            need registers at a time: a power of two. ``at_*`` are then made anew, of ``i``, where they are stored to.
    """
    real, masked = COMPUTED[layout.dtype], f", mask={mask}" if mask else ""
    streams, written = layout.streams, [s for s in layout.streams if s != "g" or layout.unscales]
    each = ALIGNMENT // SIZE[layout.dtype]
    shape: tuple[int, ...] = (size,) if parts == 1 else (size // each, each // parts)
    absent = [b for b in layout.rule.buffers if b not in layout.buffers]
    lines = [f"all_{s} = tl.load(at_{s}{masked}{', other=0.0' if mask else ''})" for s in streams]
    results = ("new_p", *(f"new_{b}" if b in layout.buffers else "_" for b in layout.rule.buffers))
    carried = layout.carried
    update = [f"{b} = tl.full({shape}, 0.0, tl.{real})" for b in absent]
    update += [f"{s} = {widened(f'part_{s}', layout.stored(s), real)}" for s in streams]
    update += ["g = unscale * g", "new_g = g"] if layout.unscales else []
    update += [f"{s} = {s} + {lost}" for lost, s in carried.items()]
    update += statements(layout.rule.update, wide=real == "float64", results=results)
    rounded = {s: narrowed(f"new_{s}", layout.stored(s), real) for s in written}
    for lost, s in carried.items():
        # Exact: what is stored is the nearest. Of an infinity, nothing is left.
        update += [f"new_{lost} = new_{s} - {widened(rounded[s], layout.stored(s), real)}"]
        update += [f"new_{lost} = tl.where(new_{lost} - new_{lost} == 0.0, new_{lost}, 0.0)"]
    update = _with_scalars(layout, update)
    if parts == 1:
        lines += [f"part_{s} = all_{s}" for s in streams]
        return lines + update + [f"tl.store(at_{s}, {rounded[s]}{masked})" for s in written]
    for s in streams:
        lines += _apart(f"all_{s}", f"{s}_", (size // each, *(2,) * (parts.bit_length() - 1), each // parts))
    for k in range(parts):
        part = [*(f"part_{s} = {s}_{k}" for s in streams), *update, *(f"done_{s}_{k} = {rounded[s]}" for s in written)]
        if k == 0:
            lines += part
            continue
        # A whole block has more than k elements. But for this condition, which it cannot decide, LLVM would vectorize across the
        # parts and hold all of them in registers; the number is loaded here so as to take none itself. What the results are
        # otherwise costs least as what is in registers already.
        otherwise = "{s}_{k}" if layout.dtype == real else f"tl.full({shape}, 0.0, tl.{layout.dtype})"
        lines += [f"done_{s}_{k} = {otherwise.format(s=s, k=k)}" for s in written]
        lines += [f"if tl.load(row + {N}) > {k}:", *(f"    {line}" for line in part)]
    for s in written:
        lines += _together(f"done_{s}_", f"all_{s}", parts)
    lines += [_start(size)]
    for s in written:
        lines += [f"at_{s} = {_base(layout, s)} + start + i", f"tl.store(at_{s}, tl.reshape(all_{s}, ({size},)))"]
    return lines


def _apart(whole: str, part: str, shape: tuple[int, ...]) -> list[str]:
    """Name the parts of a block ``part0``, ``part1``...: each has elements that are neighbours in one thread."""
    lines = [f"{part}0 = tl.reshape({whole}, {shape})"]
    for depth in range(len(shape) - 2):
        # The dimension that is split has to be the last one.
        order = (0, *range(2, len(shape) - depth), 1)
        step = 1 << (len(shape) - 3 - depth)
        lines += [
            f"{part}{k}, {part}{k + step} = tl.split(tl.permute({part}{k}, {order}))"
            for k in range(0, 2 ** (len(shape) - 2), 2 * step)
        ]
    return lines


def _together(part: str, whole: str, parts: int) -> list[str]:
    """The block that has these parts, in as many dimensions as :func:`_apart` started from."""
    lines, step, dimensions = [], 1, 3
    while step < parts:
        order = (0, dimensions - 1, *range(1, dimensions - 1))
        lines += [
            f"{part}{k} = tl.permute(tl.join({part}{k}, {part}{k + step}), {order})" for k in range(0, parts, 2 * step)
        ]
        step, dimensions = 2 * step, dimensions + 1
    return [*lines, f"{whole} = {part}0"]


def widened(value: str, stored: str, real: str) -> str:
    """A value of a stream in the format that is computed in."""
    return value if stored == real else f"from_bfloat16({value})" if stored == "bfloat16" else f"{value}.to(tl.{real})"


def narrowed(value: str, stored: str, real: str) -> str:
    """What was computed in the format of a stream, rounded to nearest."""
    return value if stored == real else f"to_bfloat16({value})" if stored == "bfloat16" else f"{value}.to(tl.{stored})"


def _with_scalars(layout: Layout, statements: list[str]) -> list[str]:
    """The same statements, each scalar loaded before the first that needs it.

    Parts load them anew: kept, those of float64 would take half of the registers.
    """
    lines, missing = [], dict(enumerate(layout.scalars))
    for statement in statements:
        wanted = [i for i, name in missing.items() if re.search(rf"\b{name}\b", statement)]
        lines += [*(f"{missing.pop(i)} = tl.load(at_scalar + {i})" for i in wanted), statement]
    return lines


def _base(layout: Layout, stream: str) -> str:
    """Where a stream of an aligned row of a dense launch begins."""
    address = f"tl.load(row + {ADDRESSES + layout.streams.index(stream)})"
    return f"tl.multiple_of({address}.to(tl.pointer_type(tl.{layout.stored(stream)})), {ALIGNMENT})"


def _start(block: int) -> str:
    """The first element of a program."""
    return f"start = (tl.program_id(0) - tl.load(row + {FIRST_PROGRAM})) * {block}"


def _at_scalar(layout: Layout) -> str:
    return f"at_scalar = scalars + r * {len(layout.scalars)}"


def _row(words: int) -> list[str]:
    return [
        "r = tl.load(program_rows + tl.program_id(0)).to(tl.int64)",
        f"row = rows + r * {words}",
        f"n = tl.load(row + {N})",
    ]


def _signature(layout: Layout) -> tuple[tuple[str, str], ...]:
    scalars = TRITON[COMPUTED[layout.dtype]]
    return ("program_rows", "*i32"), ("rows", "*i64"), ("scalars", f"*{scalars}"), ("found_inf", "*fp32")


def dense_words(layout: Layout) -> int:
    """Words of a row of a dense launch."""
    return ADDRESSES + len(layout.streams)


@functools.cache
def dense_source(layout: Layout) -> Source:
    """Steps parameters whose streams all lie in memory in one order, without gaps.

    A program takes :data:`BLOCK` elements of the row that ``program_rows`` names. Whole blocks of aligned rows are loaded and stored 16
    bytes at a time, all others element after element under a mask. Nothing is done where ``found_inf`` is not 0.
    """
    block, parts = BLOCK[layout.dtype], PARTS[layout.dtype]

    whole = [f"at_{s} = {_base(layout, s)} + start + i" for s in layout.streams]
    bases = [
        f"base_{s} = tl.load(row + {ADDRESSES + k}).to(tl.pointer_type(tl.{layout.stored(s)}))"
        for k, s in enumerate(layout.streams)
    ]
    single = [f"at_{s} = base_{s} + element" for s in layout.streams]
    text = f"""
def kernel(program_rows, rows, scalars, found_inf):
    if tl.load(found_inf) == 0.0:
{indented([*_row(dense_words(layout)), _at_scalar(layout)], 2)}
        {_start(block)}
        if (tl.load(row + {ALIGNED}) != 0) & (start + {block} <= n):
            i = tl.arange(0, {block})
{indented([*whole, *_body(layout, block, "", parts=parts)], 3)}
        else:
            end = tl.minimum(n, start + {block})
{indented(bases, 3)}
            for begin in range(start, end, {THREADS}):
                element = begin + tl.arange(0, {THREADS})
                inside = element < end
{indented([*single, *_body(layout, THREADS, "inside")], 4)}
"""
    return Source(text, _signature(layout))


def scattered_words(layout: Layout) -> int:
    """Words of a row of a scattered launch."""
    return SCATTERED_ADDRESSES + len(layout.streams) + (1 + len(layout.streams) if layout.indexed else 0)


def dimension_words(layout: Layout) -> int:
    """Words of a dimension: its length, then the distance in elements from one to the next in each stream."""
    return 1 + len(layout.streams)


@functools.cache
def scattered_source(layout: Layout) -> Source:
    """Steps parameters whose streams are strided, each in its own way, and the elements that sparse gradients name.

    An element's place follows from its number by the table of dimensions, innermost first. If the layout is indexed, the table
    describes one entry, and where an entry begins in each stream, in elements, stands in a table for each.
    """
    block, streams = SCATTERED_BLOCK, layout.streams
    entry = SCATTERED_ADDRESSES + len(streams)
    begin = ["rest = element", *(f"offset_{s} = tl.full(({block},), 0, tl.int64)" for s in streams)]
    if layout.indexed:
        begin = [f"length = tl.load(row + {entry})", "entry = element // length", "rest = element - entry * length"]
        begin += [
            f"offset_{s} = tl.load(tl.load(row + {entry + 1 + k}).to(tl.pointer_type(tl.int64)) + entry, mask=inside, other=0)"
            for k, s in enumerate(streams)
        ]
    walk = ["size = tl.load(at)", "index = rest % size", "rest = rest // size"]
    walk += [f"offset_{s} += index * tl.load(at + {1 + k})" for k, s in enumerate(streams)]
    places = [
        f"at_{s} = tl.load(row + {SCATTERED_ADDRESSES + k}).to(tl.pointer_type(tl.{layout.stored(s)})) + offset_{s}"
        for k, s in enumerate(streams)
    ]
    text = f"""
def kernel(program_rows, rows, scalars, found_inf):
    if tl.load(found_inf) == 0.0:
{indented([*_row(scattered_words(layout)), _at_scalar(layout)], 2)}
        {_start(block)}
        element = start + tl.arange(0, {block})
        inside = element < n
{indented(begin, 2)}
        dimensions = tl.load(row + {DIMENSIONS})
        table = tl.load(row + {DIMENSION_TABLE}).to(tl.pointer_type(tl.int64))
        for d in range(0, dimensions):
            at = table + d * {dimension_words(layout)}
{indented(walk, 3)}
{indented([*places, *_body(layout, block, "inside")], 2)}
"""
    return Source(text, _signature(layout))


def member_words(rule: Rule) -> int:
    """Words of a member."""
    return COUNTERS + 2 * len(rule.counters)


@functools.cache
def prepare_source(rule: Rule, *, unscales: bool) -> Source:
    """Counts the steps of parameters, unless ``found_inf`` is not 0, and makes their scalars, in float32 and in float64.

    The first scalar is the inverse of ``grad_scale``, if gradients are to be unscaled.
    """
    counters, options, scalars = tuple(rule.counters), rule.of_group, rule.scalars
    read = []
    for k, name in enumerate(counters):
        at = COUNTERS + 2 * k
        read += [
            f"at_{name} = tl.load(member + {at}, mask=inside, other=0)",
            f"wide_{name} = tl.load(member + {at + 1}, mask=inside, other=0) != 0",
            f"{name} = {_either(f'at_{name}', f'inside & wide_{name}', f'inside & (wide_{name} == 0)')}",
        ]
    for k, name in enumerate(options):
        place = f"group + {OPTION_WORDS * k}"
        read += [
            f"where_{name} = tl.load({place} + {ADDRESS}, mask=inside, other=0)",
            f"kind_{name} = tl.load({place} + {WIDE}, mask=inside, other=0)",
            f"there = {_either(f'where_{name}', f'(where_{name} != 0) & (kind_{name} != 0)', f'(where_{name} != 0) & (kind_{name} == 0)')}",
            f"{name} = tl.load({place} + {VALUE}, mask=inside, other=0).to(tl.float64, bitcast=True)",
            f"{name} = tl.where(where_{name} != 0, there, {name})",
        ]
    if "fresh" in rule.options:
        read += [f"fresh = tl.load(member + {FRESH}, mask=inside, other=0).to(tl.float64)"]
    results = (*(f"next_{c}" for c in counters), *(f"scalar_{s}" for s in scalars))
    made = statements(rule.prepare, wide=True, results=results)
    write = []
    for name in counters:
        write += [
            f"tl.store(at_{name}.to(tl.pointer_type(tl.float64)), next_{name}, mask=inside & wide_{name})",
            f"tl.store(at_{name}.to(tl.pointer_type(tl.float32)), (next_{name}).to(tl.float32), mask=inside & (wide_{name} == 0))",
        ]
    values = [f"scalar_{s}" for s in scalars]
    if unscales:
        values = ["scalar_unscale", *values]
        made += ["scalar_unscale = zero + 1.0 / tl.load(grad_scale).to(tl.float64)"]
    for k, value in enumerate(values):
        place = f"r * {len(values)} + {k}"
        write += [f"tl.store(scalars64 + {place}, {value}, mask=inside)"]
        write += [f"tl.store(scalars32 + {place}, {value}.to(tl.float32), mask=inside)"]
    if "fresh" in rule.options:
        write += [f"tl.store(member + {FRESH}, tl.full(({ROWS},), 0, tl.int64), mask=inside)"]
    text = f"""
def kernel(members, options, count, scalars32, scalars64, grad_scale, found_inf):
    if tl.load(found_inf) == 0.0:
        r = tl.program_id(0).to(tl.int64) * {ROWS} + tl.arange(0, {ROWS})
        inside = r < tl.load(count)
        zero = tl.full(({ROWS},), 0.0, tl.float64)
        member = members + r * {member_words(rule)}
        group = options + tl.load(member + {GROUP}, mask=inside, other=0) * {OPTION_WORDS * len(options)}
{indented([*read, *made, *write], 2)}
"""
    names = ("members", "options", "count", "scalars32", "scalars64", "grad_scale", "found_inf")
    types = ("*i64", "*i64", "*i64", "*fp32", "*fp64", "*fp32", "*fp32")
    return Source(text, tuple(zip(names, types, strict=True)), registers=PREPARE_REGISTERS)


def _either(address: str, wide: str, narrow: str) -> str:
    """A number in float64, that stands at an address as float64 or float32; 0 where neither."""
    loads = (
        f"tl.load({address}.to(tl.pointer_type(tl.{kind})), mask={mask}, other=0.0)"
        for kind, mask in (("float64", wide), ("float32", narrow))
    )
    return " + ".join(f"{load}.to(tl.float64)" for load in loads)


def layouts_of(rule: Rule) -> Iterator[Layout]:
    """All layouts of a rule: each dtype, with and without each buffer that options do without, scaled gradients and not."""
    optional = [name for name, buffer in rule.buffers.items() if buffer.present is not always]
    chosen = [set(c) for n in range(len(optional) + 1) for c in itertools.combinations(optional, n)]
    for dtype, present, unscales in itertools.product(COMPUTED, chosen, (False, True)):
        yield Layout(rule, dtype, tuple(b for b in rule.buffers if b not in optional or b in present), unscales)
