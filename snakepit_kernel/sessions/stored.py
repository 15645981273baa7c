"""Values as they lie in the store.

Text, numbers, booleans, bytes, lists, dictionaries and NumPy arrays of plain data have a form that
is only data. Everything else is a pickle, which can run code when it is read. So that a variable
whose type is one of plain data never runs any, whoever has written the row, a pickle that is found
there is read as one of an earlier version of this package can be, and refused if it is another one.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ..errors import ValueTooLarge
from ..protocol.codec import Codec, loads

_PLAIN: Final = b"\xc1"
"""Begins what is only data; a pickle begins with ``\\x80``."""

_INTEGER, _TEXT, _ARRAY = 1, 2, 3
"""What MessagePack has no form for: long integers, halves of surrogate pairs, arrays."""

_ARRAYS: Final = "biufcmMSU"
"""Kinds of arrays that are plain data."""

_MAX_DTYPE: Final = 24
_DEPTH: Final = 50

_MADE_OF: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float,),
    "boolean": (bool,),
    "choice": (str, int, float, bool),
    "bytes": (bytes,),
    "embedding": (list,),
}
"""Types of variables that are never unpickled as others are, and what their values are made of."""

_OF_ARRAYS: Final = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }
)
"""What the pickle of a vector refers to."""


class RefusedPickle(pickle.UnpicklingError):
    """A pickle was not read: it is none of plain data, which the variable's type asks for."""


# -- writing -----------------------------------------------------------------------------------


def stored(value: object, codec: Codec) -> bytes:
    """Return a value as the store holds it.

    Raises
    ------
    ValueTooLarge
        It takes more than it may.
    Exception
        Whatever pickling raises for a value that is no plain data.
    """
    try:
        body = _PLAIN + _encoder.encode(_Plain(codec.max_bytes).of(value))
    except _NotPlain:
        return codec.dumps_whole(value)
    if len(body) > codec.max_bytes:
        raise ValueTooLarge(codec.max_bytes)
    return body


class _NotPlain(Exception):
    """A value that has to be pickled."""


class _Plain:
    """Makes of values what MessagePack has a form for.

    Parameters
    ----------
    max_bytes
        What they may take together. That is found out on the way, not when it is too late.
    """

    __slots__ = ("_left_bytes", "_max_bytes", "_seen")

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = self._left_bytes = max_bytes
        self._seen: set[int] = set()

    def of(self, value: Any, depth: int = _DEPTH) -> Any:
        kind = type(value)
        if kind is float or kind is bool or value is None:
            return value
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 64 else self._integer(value)
        if kind is str:
            self._take(len(value))
            return value if value.isascii() else _text(value)
        if kind is bytes:
            self._take(len(value))
            return value
        if depth == 0 or id(value) in self._seen:  # what is there twice is the same one, pickled
            raise _NotPlain
        self._seen.add(id(value))
        if kind is list:
            self._take(len(value))
            return [self.of(item, depth - 1) for item in value]
        if kind is dict:
            self._take(len(value))
            return {_key(key): self.of(item, depth - 1) for key, item in value.items()}
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            return self._array(value)
        raise _NotPlain

    def _integer(self, value: int) -> msgspec.msgpack.Ext:
        size = value.bit_length() // 8 + 1
        self._take(size)
        return msgspec.msgpack.Ext(_INTEGER, value.to_bytes(size, "little", signed=True))

    def _array(self, value: Any) -> msgspec.msgpack.Ext:
        dtype = value.dtype
        if dtype.kind not in _ARRAYS or dtype.metadata is not None or len(dtype.str) > _MAX_DTYPE:
            raise _NotPlain
        self._take(value.nbytes)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        parts = (dtype.str, order, value.shape, value.tobytes(order))
        return msgspec.msgpack.Ext(_ARRAY, _encoder.encode(parts))

    def _take(self, count: int) -> None:
        self._left_bytes -= count
        if self._left_bytes < 0:
            raise ValueTooLarge(self._max_bytes)


def _text(value: str) -> Any:
    try:
        value.encode()
    except UnicodeEncodeError:
        return msgspec.msgpack.Ext(_TEXT, value.encode("utf-8", "surrogatepass"))
    return value


def _key(key: object) -> str:
    if type(key) is str and _text(key) is key:
        return key
    raise _NotPlain


# -- reading -----------------------------------------------------------------------------------


def restored_from(body: bytes, type_name: str) -> Any:
    """Return the value that `stored` has written.

    Parameters
    ----------
    body
        What lies in the store. Others may have put it there.
    type_name
        Type of the variable; ``"any"`` for what is no variable.

    Raises
    ------
    RefusedPickle
        It is a pickle that values of this type never were.
    Exception
        Whatever restoring raises.
    """
    if body[:1] == _PLAIN:
        return _decoder.decode(memoryview(body)[1:])
    kinds = _MADE_OF.get(type_name)
    return loads(body) if kinds is None else _restored_scalar(body, type_name, kinds)


def _restored_scalar(body: bytes, type_name: str, kinds: tuple[type, ...]) -> Any:
    value = _ScalarUnpickler(io.BytesIO(body), type_name).load()
    if type(value) in kinds or (type_name == "embedding" and hasattr(value, "dtype")):
        return value
    msg = f"a {type(value).__name__} stands where a variable of type {type_name} has its value"
    raise RefusedPickle(msg)


class _ScalarUnpickler(pickle.Unpickler):
    """Reads pickles that refer to nothing, or to what arrays are made of.

    Parameters
    ----------
    type_name
        Type of the variable.
    """

    def __init__(self, file: io.BytesIO, type_name: str) -> None:
        super().__init__(file)
        self._type_name = type_name

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return what a pickle refers to."""
        if self._type_name == "embedding" and (module_name, global_name) in _OF_ARRAYS:
            return super().find_class(module_name, global_name)
        msg = f"it refers to {module_name}.{global_name}, which no {self._type_name} does"
        raise RefusedPickle(msg)


def _extension(code: int, data: memoryview) -> Any:
    match code:
        case 1:
            return int.from_bytes(data, "little", signed=True)
        case 2:
            return bytes(data).decode("utf-8", "surrogatepass")
        case 3:
            return _array(*_decoder.decode(data))
    msg = f"there is no form {code} of values"
    raise ValueError(msg)


def _array(dtype_name: str, order: Any, shape: list[int], data: bytes) -> Any:
    import numpy as np

    if len(dtype_name) > _MAX_DTYPE:
        msg = "an array of an unknown type"
        raise ValueError(msg)
    dtype = np.dtype(dtype_name)
    if dtype.kind not in _ARRAYS:
        msg = f"an array of {dtype}"
        raise ValueError(msg)
    return np.ndarray(tuple(shape), dtype, buffer=data, order=order).copy(order)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_extension)
