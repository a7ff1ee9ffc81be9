"""From rules to the source of kernels: the loops around them.

One launch steps any number of parameters of one dtype. It is described by tables of 64-bit integers and floats (:class:`Layout`):

- a *row* for each parameter: where its streams (parameter, gradient, buffers) begin, the distance in bytes from one element to the
  next in each, where its counters are, which group it is in;
- a *chunk* for each few runs of elements: its row, how many elements a run has, how many runs, and how far from the beginning of each
  stream the first one starts; the row says how far apart they are;
- a *batch* for each few chunks: what a thread takes at a time.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace

from stepcheck.fast.native import Kernel, kernel
from stepcheck.fast.rules import NARROW, Rule, always

#: What is computed in, by what is stored.
COMPUTED = {"float16": "float32", "bfloat16": "float32", "float32": "float32", "float64": "float64"}

# What the words of a launch are; each is 64 bits.
NEXT, BATCHES, BATCH_TABLE, CHUNK_TABLE, ROW_TABLE, SCALAR_TABLE, ROWS, OPTION_TABLE, WORDS = range(9)


@dataclass(frozen=True)
class Layout:
    """Which kernel, and so which columns the tables of a launch have.

    Attributes:
        rule: what is done to each element.
        dtype: what the streams are stored in, a real format.
        buffers: those of the rule's that are present, and after them those that keep what rounding loses.
        unscales: gradients are multiplied by the scalar ``unscale`` first, and written back.
        gradient: what the gradient is stored in, if not in the same.
        indexed: the gradient has the entries of a sparse tensor, whose indices say which elements of the others are meant. A row then
            has the address of the indices and the length of an entry, and its strides are those from entry to entry (gradient) or
            from index to index (others); a chunk is a range of entries.
    """

    rule: Rule
    dtype: str
    buffers: tuple[str, ...]
    unscales: bool = False
    gradient: str = ""
    indexed: bool = False

    def stored(self, stream: str) -> str:
        """What a stream is stored in."""
        return self.gradient or self.dtype if stream == "g" else self.dtype

    @property
    def streams(self) -> tuple[str, ...]:
        return ("p", "g", *self.buffers)

    @property
    def carried(self) -> dict[str, str]:
        """Of the buffers, those that keep lost bits, each with the stream that loses them."""
        return {name: self.rule.carried[name] for name in self.buffers if name in self.rule.carried}

    @property
    def scalars(self) -> tuple[str, ...]:
        return (*(("unscale",) if self.unscales else ()), *self.rule.scalars)

    # Columns of a row: is it strided, its group, is it fresh, is it idle for now, then addresses and distances of streams, addresses of
    # counters and whether they are wide, and strides of streams, from run to run.
    STRIDED, GROUP, FRESH, IDLE, FIRST = range(5)

    def address(self, stream: int) -> int:
        return self.FIRST + stream

    def distance(self, stream: int) -> int:
        return self.FIRST + len(self.streams) + stream

    def counter(self, n: int) -> int:
        return self.FIRST + 2 * len(self.streams) + 2 * n

    def stride(self, stream: int) -> int:
        return self.counter(len(self.rule.counters)) + stream

    @property
    def indices(self) -> int:
        return self.stride(len(self.streams))

    @property
    def row_words(self) -> int:
        return self.indices + (2 if self.indexed else 0)

    # Columns of a chunk of runs, and of one of entries.
    ROW, COUNT, RUNS, OFFSETS = range(4)
    FIRST_ENTRY, END_ENTRY, ENTRY_WORDS = range(1, 4)

    @property
    def chunk_words(self) -> int:
        return self.ENTRY_WORDS if self.indexed else self.OFFSETS + len(self.streams)

    @property
    def bytes_per_element(self) -> int:
        """Memory traffic of one element: each stream is read, and all but the gradient written, unless it is unscaled."""
        size = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]
        return size * (2 * len(self.streams) - (0 if self.unscales else 1))


class _Typed(ast.NodeTransformer):
    """Gives the numbers in a rule the type that it computes in; without it they are float64."""

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Call(ast.Name("real", ast.Load()), [ast.Constant(float(node.value))], [])  # type: ignore[arg-type]


def _function(function: object, name: str, *, typed: bool) -> str:
    """The source of a rule's function under another name."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    tree = _Typed().visit(tree) if typed else tree
    definition = tree.body[0]
    assert isinstance(definition, ast.FunctionDef)
    definition.name = name
    return ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _lines(lines: list[str], depth: int) -> str:
    return textwrap.indent("\n".join(lines), "    " * depth)


@functools.cache
def step_kernel(layout: Layout) -> Kernel:
    """Steps the elements of a launch."""
    return kernel(step_source(layout))


@functools.cache
def prepare_kernel(layout: Layout) -> Kernel:
    """Counts the steps of the parameters of a launch and makes their scalars."""
    return kernel(prepare_source(layout))


def kernels_of(rule: Rule) -> Iterator[Kernel]:
    """All kernels that a rule has, for each real dtype, with and without each buffer that options do without; made one by one."""
    optional = [name for name, buffer in rule.buffers.items() if buffer.present is not always]
    chosen = [set(c) for n in range(len(optional) + 1) for c in itertools.combinations(optional, n)]
    for dtype, without, carries in itertools.product(COMPUTED, chosen, (False, True)):
        if carries and dtype not in NARROW:
            continue
        own = tuple(b for b in rule.buffers if b not in without)
        layout = Layout(rule, dtype, own + rule.keeping(own) if carries else own)
        for each in (layout, replace(layout, unscales=True), *(_sparse(layout) if rule.sparse else ())):
            yield prepare_kernel(each)
            yield step_kernel(each)


def _sparse(layout: Layout) -> Iterator[Layout]:
    """For sparse gradients: of rows or of anything else, and as they are or added up in what is computed in."""
    for gradient in dict.fromkeys(("", "" if COMPUTED[layout.dtype] == layout.dtype else COMPUTED[layout.dtype])):
        yield replace(layout, gradient=gradient, indexed=True)
        yield replace(layout, gradient=gradient)


def step_source(layout: Layout) -> str:
    """The source of :func:`step_kernel`."""
    rule, streams, scalars = layout.rule, layout.streams, layout.scalars
    written = [s for s in streams if s != "g" or layout.unscales]
    makers = [f"load_{s} = loader({layout.stored(s)!r}, {s!r}, {streams!r})" for s in streams]
    makers += [f"store_{s} = storer({layout.dtype!r}, {s!r}, {streams!r})" for s in written]
    given = ", ".join(("p", "g", *(b if b in layout.buffers else "real(0.0)" for b in rule.buffers), *rule.scalars))
    made = ", ".join(("p", *(b if b in layout.buffers else "_" for b in rule.buffers)))

    def body(at: str) -> list[str]:
        lines = [f"{s} = load_{s}({at.format(s=s)})" for s in streams]
        lines += ["g = unscale * g", f"store_g({at.format(s='g')}, g)"] if layout.unscales else []
        lines += [f"{s} = {s} + {lost}" for lost, s in layout.carried.items()]
        lines += [f"{made}{',' if ',' not in made else ''} = update({given})"]
        lines += [f"store_{s}({at.format(s=s)}, real({s}))" for s in written if s not in ("g", *layout.carried)]
        for lost, s in layout.carried.items():
            # Exact: what is stored is the nearest. Of an infinity, nothing is left.
            lines += [f"{lost} = real({s}) - load_{s}({at.format(s=s)})"]
            lines += [f"store_{lost}({at.format(s=lost)}, {lost} if {lost} - {lost} == real(0.0) else real(0.0))"]
        return lines

    names = ", ".join(("n", *(f"a_{s}" for s in streams), *scalars))
    distances = ", ".join(f"d_{s}" for s in streams)
    bases = [f"load_int64(row, {layout.address(i)})" for i in range(len(streams))]
    chunk = [f"of_row = load_int64(chunk, {layout.ROW})", "row = rows + of_row * ROW"]
    chunk += [f"if load_int64(row, {layout.IDLE}) != 0:", "    continue"]
    chunk += [f"scalar = scalars + of_row * {8 * len(scalars)}"]
    chunk += [f"{name} = real(load_float64(scalar, {i}))" for i, name in enumerate(scalars)]
    strided = [f"d_{s} = load_int64(row, {layout.distance(i)})" for i, s in enumerate(streams)]
    run = [
        f"if load_int64(row, {layout.STRIDED}) == 0:", f"    dense({names})", "else:",
        *(f"    {line}" for line in strided), f"    strided({names}, {distances})",
    ]  # fmt: skip
    strides = [f"o_{s} = load_int64(row, {layout.stride(i)})" for i, s in enumerate(streams)]
    if layout.indexed:
        chunk += [f"n, indices = load_int64(row, {layout.indices + 1}), load_int64(row, {layout.indices})", *strides]
        chunk += [f"b_{s} = {bases[i]}" for i, s in enumerate(streams)]
        ends = f"load_int64(chunk, {layout.FIRST_ENTRY}), load_int64(chunk, {layout.END_ENTRY})"
        chunk += [f"for entry in range({ends}):", "    index = load_int64(indices, entry)"]
        chunk += [f"    a_{s} = b_{s} + {'entry' if s == 'g' else 'index'} * o_{s}" for s in streams]
        chunk += [f"    {line}" for line in run]
    else:
        chunk += [f"n = load_int64(chunk, {layout.COUNT})", *strides]
        chunk += [f"b_{s} = {bases[i]} + load_int64(chunk, {layout.OFFSETS + i})" for i, s in enumerate(streams)]
        chunk += [f"for k in range(load_int64(chunk, {layout.RUNS})):"]
        chunk += [f"    a_{s} = b_{s} + k * o_{s}" for s in streams]
        chunk += [f"    {line}" for line in run]
    return f"""
real = {COMPUTED[layout.dtype]}
ROW = {8 * layout.row_words}
{chr(10).join(makers)}

{_function(rule.update, "update", typed=True)}

def dense({names}):
    for i in range(n):
{_lines(body("a_{s}, i"), 2)}

def strided({names}, {distances}):
    for i in range(n):
{_lines(body("a_{s} + i * d_{s}, 0"), 2)}

def kernel(launch):
    batches, table = load_int64(launch, {BATCHES}), load_int64(launch, {BATCH_TABLE})
    chunks, rows = load_int64(launch, {CHUNK_TABLE}), load_int64(launch, {ROW_TABLE})
    scalars = load_int64(launch, {SCALAR_TABLE})
    while True:
        batch = next_number(launch)
        if batch >= batches:
            break
        for number in range(load_int64(table, batch), load_int64(table, batch + 1)):
            chunk = chunks + number * {8 * layout.chunk_words}
{_lines(chunk, 3)}
"""


def prepare_source(layout: Layout) -> str:
    """The source of :func:`prepare_kernel`."""
    rule, scalars = layout.rule, layout.rule.scalars
    counters, options = tuple(rule.counters), rule.options
    shift = len(layout.scalars) - len(scalars)
    read, same, write = [], ["group == last_group", "fresh == last_fresh", *(f"{w} == last_{w}" for w in rule.wide)], []
    for n, name in enumerate(counters):
        column = layout.counter(n)
        read += [
            f"at_{name} = load_int64(row, {column})",
            f"wide_{name} = load_int64(row, {column + 1})",
            f"{name} = load_float64(at_{name}, 0) if wide_{name} != 0 else float64(load_float32(at_{name}, 0))",
        ]
        same += [f"{name} == last_{name}"]
        write += [
            f"if wide_{name} != 0:",
            f"    store_float64(at_{name}, 0, next_{name})",
            "else:",
            f"    store_float32(at_{name}, 0, float32(next_{name}))",
        ]
    plain = rule.of_group
    given = ", ".join((*counters, *(f"o_{o}" if o in plain else f"float64({o})" for o in options)))
    made = ", ".join((*(f"next_{c}" for c in counters), *(f"s_{s}" for s in scalars)))
    load = [f"o_{o} = load_float64(options, group * {len(plain) + shift} + {i})" for i, o in enumerate(plain)]
    keep = [f"last_{name} = {name}" for name in (*counters, *rule.wide, "group", "fresh")]
    start = [
        *(f"last_{c} = 0.0" for c in counters),
        *(f"last_{w} = -1" for w in rule.wide),
        *(f"{n} = 0.0" for n in made.split(", ")),
    ]
    put = [f"store_float64(scalar, {i + shift}, s_{s})" for i, s in enumerate(scalars)]
    if layout.unscales:
        put += [f"store_float64(scalar, 0, load_float64(options, group * {len(plain) + 1} + {len(plain)}))"]
    return f"""
{_function(rule.prepare, "prepare", typed=False)}

def kernel(launch):
    rows, scalars = load_int64(launch, {ROW_TABLE}), load_int64(launch, {SCALAR_TABLE})
    options = load_int64(launch, {OPTION_TABLE})
    last_group = last_fresh = -1
{_lines(start, 1)}
    for r in range(load_int64(launch, {ROWS})):
        row = rows + r * {8 * layout.row_words}
        if load_int64(row, {layout.IDLE}) != 0:
            continue
        scalar = scalars + r * {8 * len(layout.scalars)}
        group, fresh = load_int64(row, {layout.GROUP}), load_int64(row, {layout.FRESH})
{_lines(read, 2)}
        if not ({" and ".join(same)}):
{_lines(load, 3)}
            {made}{"," if "," not in made else ""} = prepare({given})
{_lines(keep, 3)}
{_lines(write, 2)}
{_lines(put, 2)}
        store_int64(row, {layout.FRESH}, 0)
"""
