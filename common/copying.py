"""Bytes moved between addresses, at the speed of the memory.

LLVM's `memcpy` becomes the widest moves the CPU has; slices of bytes in Numba do not (three to
five times slower). Addresses are u64; the caller has checked both ranges.
"""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from common.compiled import kernel


@intrinsic
def _memcpy(typing: Any, dest: Any, source: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer = ir.IntType(8).as_pointer()
        word = ir.IntType(64)
        declared = builder.module.declare_intrinsic("llvm.memcpy", [byte_pointer] * 2 + [word])
        to, from_ = (builder.inttoptr(arg, byte_pointer) for arg in args[:2])
        builder.call(declared, [to, from_, args[2], ir.Constant(ir.IntType(1), 0)])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def _memset(typing: Any, dest: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte_pointer, word = ir.IntType(8).as_pointer(), ir.IntType(64)
        declared = builder.module.declare_intrinsic("llvm.memset", [byte_pointer, word])
        zero, volatile = ir.Constant(ir.IntType(8), 0), ir.Constant(ir.IntType(1), 0)
        to = builder.inttoptr(args[0], byte_pointer)
        builder.call(declared, [to, zero, args[1], volatile])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64), codegen


@kernel
def zero_bytes(dest: int, size: int) -> None:
    """Make the `size` bytes from address `dest` on zeros."""
    _memset(np.uint64(dest), np.uint64(size))


@kernel
def copy_bytes(dest: int, source: int, size: int) -> None:
    """Copy `size` bytes from address `source` to address `dest`; they must not overlap."""
    _memcpy(np.uint64(dest), np.uint64(source), np.uint64(size))


@kernel
def copy_page(dest: int, source: int) -> None:
    """Copy one 4-KiB page: a constant size lets LLVM choose the moves."""
    _memcpy(np.uint64(dest), np.uint64(source), np.uint64(4096))


def byte_view(address: int, nbytes: int) -> np.ndarray:
    """The `nbytes` bytes at `address` as u8; dangles once they are unmapped."""
    window = (ctypes.c_uint8 * nbytes).from_address(int(address))
    return np.frombuffer(memoryview(window), np.uint8)


def address_of(array: np.ndarray) -> int:
    """Where a numpy view's first byte lies, as the kernels take it."""
    return int(array.ctypes.data)
