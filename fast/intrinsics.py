"""What kernels are made of beside arithmetic: loads and stores of each format, atomic counting, and the functions of rules.

This module imports numba; only the compiler imports it.
"""

from __future__ import annotations

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, register_jitable

float32, float64 = numba.float32, numba.float64
njit = numba.njit
_I64 = ir.IntType(64)

#: In memory, and as it is computed with.
_WIDE = {
    "float64": (ir.DoubleType(), types.float64),
    "float32": (ir.FloatType(), types.float32),
    "float16": (ir.HalfType(), types.float32),
    "bfloat16": (ir.IntType(16), types.float32),
    "int64": (_I64, types.int64),
}


def _pointer(builder, address, index, element):
    base = builder.inttoptr(address, element.as_pointer())
    return builder.gep(base, [index])


def _streams_apart(builder, instruction, stream, streams):
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


def _widened(builder, kind, raw):
    if kind == "float16":
        return builder.fpext(raw, ir.FloatType())
    if kind == "bfloat16":
        # A bfloat16 is the upper half of a float32.
        wide = builder.zext(raw, ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.Constant(ir.IntType(32), 16)), ir.FloatType())
    return raw


def _narrowed(builder, kind, value):
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


def loader(kind, stream="", streams=()):
    """A function ``(address, index)``: the element there, widened to what is computed with."""
    element, wide = _WIDE[kind]

    @intrinsic
    def load(typingctx, address, index):  # noqa: ARG001
        def generate(context, builder, signature, args):  # noqa: ARG001
            raw = builder.load(_pointer(builder, *args, element))
            _streams_apart(builder, raw, stream, streams)
            return _widened(builder, kind, raw)

        return wide(types.int64, types.int64), generate

    return load


def storer(kind, stream="", streams=()):
    """A function ``(address, index, value)``: rounds the value to the format in memory and puts it there."""
    element, wide = _WIDE[kind]

    @intrinsic
    def store(typingctx, address, index, value):  # noqa: ARG001
        def generate(context, builder, signature, args):  # noqa: ARG001
            narrow = _narrowed(builder, kind, args[2])
            stored = builder.store(narrow, _pointer(builder, args[0], args[1], element))
            _streams_apart(builder, stored, stream, streams)
            return context.get_dummy_value()

        return types.none(types.int64, types.int64, wide), generate

    return store


load_int64, store_int64 = loader("int64"), storer("int64")
load_float64, store_float64 = loader("float64"), storer("float64")
load_float32, store_float32 = loader("float32"), storer("float32")


@intrinsic
def next_number(typingctx, address):  # noqa: ARG001
    """Count up what is at an address; the number before. Each thread is given another."""

    def generate(context, builder, signature, args):  # noqa: ARG001
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), generate


@intrinsic
def call(typingctx, function, first, second):  # noqa: ARG001
    """Call the C function at an address with two integers or addresses; what it returns."""

    def generate(context, builder, signature, args):  # noqa: ARG001
        pointer = builder.inttoptr(args[0], ir.FunctionType(_I64, [_I64, _I64]).as_pointer())
        return builder.call(pointer, [args[1], args[2]])

    return types.int64(types.int64, types.int64, types.int64), generate


@intrinsic
def sqrt(typingctx, x):  # noqa: ARG001
    """The instruction; that of the C library would look for negative numbers first, to set errno."""

    def generate(context, builder, signature, args):  # noqa: ARG001
        return builder.call(builder.module.declare_intrinsic("llvm.sqrt", [args[0].type]), args)

    return x(x), generate


@register_jitable
def absolute(x):
    return abs(x)


@register_jitable
def maximum(a, b):
    return a if a > b or a != a else b  # noqa: PLR0124


@register_jitable
def minimum(a, b):
    return a if a < b or a != a else b  # noqa: PLR0124


@register_jitable
def rounded(x):
    return float64(float32(x))
