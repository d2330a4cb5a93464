"""Arrays in one file of the safetensors format, written and read one at a time.

    8 bytes    length of the header, little-endian
    header     JSON: for each name dtype, shape and first and last byte of its data
    data       the arrays' elements, one array after the other, in the header's order

Any reader of safetensors can open it. The library itself takes all arrays at once when
it writes, a second copy of the model in memory, and its reader for NumPy knows no
bfloat16; hence these two functions. Nothing here is HDF5, whose library ends the
process when a disk is full.
"""

import json
import math
from collections.abc import Callable
from typing import NamedTuple

import ml_dtypes
import numpy as np

_CODES = {
    "BOOL": bool,
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": ml_dtypes.bfloat16,
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}
_DTYPES = {code: np.dtype(dtype) for code, dtype in _CODES.items()}
_CODE_OF = {dtype: code for code, dtype in _DTYPES.items()}
DTYPES = frozenset(_CODE_OF)


class Array(NamedTuple):
    """An array that is there when it is asked for.

    Attributes:
        name: String, unique in its file.
        dtype: NumPy dtype, of those in `DTYPES`.
        shape: Tuple of ints.
        value: Function without arguments, which returns the NumPy array.
    """

    name: str
    dtype: np.dtype
    shape: tuple
    value: Callable

    @property
    def bytes(self):
        return math.prod(self.shape) * self.dtype.itemsize


def header(arrays):
    """The first bytes of a file of `arrays`, a list of `Array`."""
    entries, start = {}, 0
    for array in arrays:
        stop = start + array.bytes
        entries[array.name] = {
            "dtype": _CODE_OF[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries).encode()
    # Data begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def as_bytes(value):
    """The elements of a NumPy array, without a copy where they lie in one piece."""
    return memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def read(file):
    """List of the `Array`s in `file`, open for reading; reads an array when asked."""
    length = int.from_bytes(file.read(8), "little")
    entries = json.loads(file.read(length))
    return [
        _entry(file, 8 + length, name, entry)
        for name, entry in entries.items()
        if name != "__metadata__"
    ]


def _entry(file, data, name, entry):
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    start, stop = entry["data_offsets"]

    def value():
        array = np.empty(shape, dtype)
        file.seek(data + start)
        if file.readinto(as_bytes(array)) != stop - start:
            raise OSError(f"{file.name} ends within {name}.")
        return array

    return Array(name, dtype, shape, value)
