"""Atomic access to words of shared memory, as Numba intrinsics over numpy views.

Owns: the only functions that may touch a word which another process writes. A plain `a[0]` is
free to be hoisted out of a loop by LLVM; these are not, and they order what is around them.

Rules: `array` is a 1-d C-contiguous numpy array of an integer type of 16, 32 or 64 bits,
naturally aligned; `index` is not bounds-checked (the caller owns the layout). Values are
converted to the array's type. Orderings are C11's: acquire loads, release stores,
sequentially consistent read-modify-writes and fence (Xen's `mb()`).

The functions also run uncompiled, through their compiled selves: tests and cold Python paths
call them directly.
"""

import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from common.compiled import kernel

WORD_BITS = (16, 32, 64)

# The one instruction LLVM has no intrinsic for: what a CPU is told in a spin loop.
SPIN_HINT = {"x86_64": "pause", "aarch64": "yield"}.get(platform.machine(), "nop")
llvm.initialize_native_asmparser()


def _checked(array: types.Type) -> types.Type:
    """The element type of a Numba array type that these functions can take."""
    if (
        not isinstance(array, types.Array)
        or array.ndim != 1
        or array.layout != "C"
        or not isinstance(array.dtype, types.Integer)
        or array.dtype.bitwidth not in WORD_BITS
        or not array.aligned
    ):
        raise TypeError(
            f"atomics: {array} is not a 1-d C array of aligned 16, 32 or 64-bit integers"
        )
    return array.dtype


def _writable(array: types.Type) -> types.Type:
    """The same, of an array that may be written."""
    element = _checked(array)
    if not array.mutable:
        raise TypeError(f"atomics: {array} is read-only")
    return element


def _pointer(context: Any, builder: Any, signature: Any, args: Any) -> Any:
    """The address of `array[index]`."""
    array = context.make_array(signature.args[0])(context, builder, args[0])
    index = context.cast(builder, args[1], signature.args[1], types.intp)
    return cgutils.get_item_pointer(
        context, builder, signature.args[0], array, [index], wraparound=False
    )


def _value(context: Any, builder: Any, signature: Any, args: Any, position: int) -> Any:
    """Argument `position`, converted to the array's element type."""
    return context.cast(builder, args[position], signature.args[position], signature.args[0].dtype)


@intrinsic
def _load(typing: Any, array: Any, index: Any) -> Any:
    element = _checked(array)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args)
        return builder.load_atomic(pointer, "acquire", element.bitwidth // 8)

    return element(array, index), codegen


@intrinsic
def _store(typing: Any, array: Any, index: Any, value: Any) -> Any:
    element = _writable(array)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args)
        new = _value(context, builder, signature, args, 2)
        builder.store_atomic(new, pointer, "release", element.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, index, value), codegen


@intrinsic
def _cmpxchg(typing: Any, array: Any, index: Any, expected: Any, value: Any) -> Any:
    element = _writable(array)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, signature, args)
        old = _value(context, builder, signature, args, 2)
        new = _value(context, builder, signature, args, 3)
        pair = builder.cmpxchg(pointer, old, new, "seq_cst", "seq_cst")
        return builder.extract_value(pair, 0)

    return element(array, index, expected, value), codegen


def _read_modify_write(operation: str) -> Any:
    @intrinsic
    def rmw(typing: Any, array: Any, index: Any, value: Any) -> Any:
        element = _writable(array)

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = _pointer(context, builder, signature, args)
            operand = _value(context, builder, signature, args, 2)
            return builder.atomic_rmw(operation, pointer, operand, "seq_cst")

        return element(array, index, value), codegen

    return rmw


_fetch_add = _read_modify_write("add")
_fetch_or = _read_modify_write("or")
_fetch_and = _read_modify_write("and")


@intrinsic
def _fence(typing: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def _pause(typing: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        empty = ir.FunctionType(ir.VoidType(), [])
        builder.asm(empty, SPIN_HINT, "", [], side_effect=True)
        return context.get_dummy_value()

    return types.void(), codegen


@kernel
def load_acquire(array: np.ndarray, index: int) -> int:
    """`array[index]`, before everything that follows it (`smp_load_acquire`)."""
    return _load(array, index)


@kernel
def store_release(array: np.ndarray, index: int, value: int) -> None:
    """`array[index] = value`, after everything that precedes it (`smp_store_release`)."""
    _store(array, index, value)


@kernel
def cmpxchg(array: np.ndarray, index: int, expected: int, value: int) -> int:
    """Put `value` where `expected` was; returns what was there, `expected` if it took."""
    return _cmpxchg(array, index, expected, value)


@kernel
def fetch_add(array: np.ndarray, index: int, value: int) -> int:
    """Add `value`, wrapping; returns what was there before."""
    return _fetch_add(array, index, value)


@kernel
def fetch_or(array: np.ndarray, index: int, value: int) -> int:
    """Set the bits of `value`; returns what was there before (`test_and_set`)."""
    return _fetch_or(array, index, value)


@kernel
def fetch_and(array: np.ndarray, index: int, value: int) -> int:
    """Keep only the bits of `value`; returns what was there before (`test_and_clear`)."""
    return _fetch_and(array, index, value)


@kernel
def fence() -> None:
    """A full barrier: nothing, not even a store then a load, passes it (`mb()`)."""
    _fence()


@kernel
def pause() -> None:
    """Tell the CPU that this is a spin loop (`cpu_relax`)."""
    _pause()
