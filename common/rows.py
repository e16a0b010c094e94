"""Bundles of arrays as rows of numbers, so that compiled code reaches any of many by its number.

Owns: how a NamedTuple of arrays (a ring's end, with its nested NamedTuples) is written as one row
of i64, the address and the shape of each array, and how a kernel gets the NamedTuple back from it.
Why: Numba compiles a function for each combination of its arguments' types, takes a bundle apart
into some two hundred words at each call, and cannot have a list of them. A kernel that is given
`(rows, number)` has one signature, whatever there is of rings.

Rule: a row keeps nothing alive. Whoever writes one holds its arrays while the row is used.
"""

from collections.abc import Iterator
from typing import Any, Final

import numpy as np
from numba import from_dtype, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from common.arena import Arena


class Layout:
    """A NamedTuple class's form in a row: for each field a dtype, (dtype, dimensions) or a Layout.

    words: i64 a row; view: for kernels, `view(rows, number)` is the NamedTuple of that row.
    """

    def __init__(self, cls: Any, **fields: Any) -> None:
        assert tuple(fields) == cls._fields, f"{cls.__name__} has the fields {cls._fields}"
        self._cls, self._fields = cls, fields
        self.type: Final = types.NamedTuple([_type_of(field) for field in fields.values()], cls)
        self.words: Final = sum(1 + array.ndim for array in _arrays_in(self.type))
        self.view: Final = _viewer(self.type)

    def rows(self, arena: Arena, count: int) -> np.ndarray:
        """`count` rows that nothing is written in yet: i64, shape (count, words)."""
        return arena.array((count, self.words), np.int64)

    def write(self, row: np.ndarray, bundle: Any) -> None:
        """Make `row` (i64, shape (words,)) lead to the arrays of `bundle`.

        Raises TypeError if one of them is not as the layout says.
        """
        row[:] = list(self._words_of(bundle))

    def _words_of(self, bundle: Any) -> Iterator[int]:
        for name, field in self._fields.items():
            value = getattr(bundle, name)
            if isinstance(field, Layout):
                yield from field._words_of(value)
                continue
            dtype, ndim = _form_of(field)
            flags = value.flags
            if (value.dtype, value.ndim) != (dtype, ndim) or not (
                flags.c_contiguous and flags.aligned
            ):
                raise TypeError(
                    f"{self._cls.__name__}.{name}: {value.dtype} of shape {value.shape} is no"
                    f" contiguous {dtype} of {ndim} dimensions"
                )
            yield value.ctypes.data
            yield from value.shape


def _form_of(field: Any) -> tuple[np.dtype[Any], int]:
    dtype, ndim = field if isinstance(field, tuple) else (field, 1)
    return np.dtype(dtype), ndim


def _type_of(field: Any) -> types.Type:
    if isinstance(field, Layout):
        return field.type
    dtype, ndim = _form_of(field)
    return types.Array(from_dtype(dtype), ndim, "C")


def _arrays_in(bundle: Any) -> Iterator[Any]:
    for each in bundle.types:
        if isinstance(each, types.Array):
            yield each
        else:
            yield from _arrays_in(each)


def _viewer(bundle: Any) -> Any:
    """The intrinsic `view(rows, number)` of a NamedTuple type."""

    @intrinsic
    def view(typing: Any, rows: Any, number: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            of_rows = signature.args[0]
            array = context.make_array(of_rows)(context, builder, args[0])
            at = context.cast(builder, args[1], signature.args[1], types.intp)
            zero = context.get_constant(types.intp, 0)
            row = cgutils.get_item_pointer(
                context, builder, of_rows, array, [at, zero], wraparound=False
            )
            place = iter(range(1 << 16))

            def word() -> Any:
                index = context.get_constant(types.intp, next(place))
                return builder.load(builder.gep(row, [index]))

            return _build(context, builder, bundle, word)

        return bundle(rows, number), codegen

    return view


def _build(context: Any, builder: Any, wanted: Any, word: Any) -> Any:
    """The NamedTuple `wanted`, of the words that `word` gives one after the other."""
    values = []
    for each in wanted.types:
        if not isinstance(each, types.Array):
            values.append(_build(context, builder, each, word))
            continue
        address = word()
        shape = [word() for _ in range(each.ndim)]
        itemsize = context.get_constant(
            types.intp, context.get_abi_sizeof(context.get_data_type(each.dtype))
        )
        strides = [itemsize]
        for length in reversed(shape[1:]):
            strides.insert(0, builder.mul(strides[0], length))
        array = context.make_array(each)(context, builder)
        populate_array(
            array,
            data=builder.inttoptr(address, context.get_data_type(each.dtype).as_pointer()),
            shape=cgutils.pack_array(builder, shape),
            strides=cgutils.pack_array(builder, strides),
            itemsize=itemsize,
            meminfo=None,
        )
        values.append(array._getvalue())
    return context.make_tuple(builder, wanted, values)
