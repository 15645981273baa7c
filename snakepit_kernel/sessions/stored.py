"""Encoding of values in the store.

Text, numbers, booleans, bytes, lists, dictionaries and NumPy arrays of plain data are encoded as
data only. Everything else is a pickle, which can run code when it is read. A variable whose type is
one of plain data must never run code, whatever process has written its row: a pickle found there is
read only if an earlier version of this package can have written it, and rejected otherwise.
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
"""First byte of a value encoded as data; that of a pickle is ``\\x80``."""

_INTEGER, _TEXT, _ARRAY = 1, 2, 3
"""MessagePack extension codes: long integers, text with lone surrogates, arrays."""

_ARRAY_KINDS: Final = "biufcmMSU"
"""Kinds of NumPy dtypes that are plain data."""

_MAX_DTYPE: Final = 24
_DEPTH: Final = 50

_CLASSES: Final[Mapping[str, tuple[type, ...]]] = {
    "string": (str,),
    "integer": (int,),
    "float": (float,),
    "boolean": (bool,),
    "choice": (str, int, float, bool),
    "bytes": (bytes,),
    "embedding": (list,),
}
"""Variable types that are never unpickled without restrictions, and the classes of their values."""

_ARRAY_NAMES: Final = frozenset(
    {
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        *((f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")),
        *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    }
)
"""Names that the pickle of a vector refers to."""


class RefusedPickle(pickle.UnpicklingError):
    """A pickle was not read: it is not one of plain data, which the variable's type requires."""


# -- writing -----------------------------------------------------------------------------------


def stored(value: object, codec: Codec) -> bytes:
    """Encode a value for the store.

    Raises
    ------
    ValueTooLarge
        It exceeds the codec's limit.
    Exception
        Whatever pickling raises for a value that is not plain data.
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
    """Converts values to types that MessagePack supports.

    Parameters
    ----------
    max_bytes
        Their maximum size together. Converting stops as soon as it is exceeded.
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
            self._reserve(len(value))
            return value if value.isascii() else _text(value)
        if kind is bytes:
            self._reserve(len(value))
            return value
        if depth == 0 or id(value) in self._seen:  # only a pickle preserves shared objects
            raise _NotPlain
        self._seen.add(id(value))
        if kind is list:
            self._reserve(len(value))
            return [self.of(item, depth - 1) for item in value]
        if kind is dict:
            self._reserve(len(value))
            return {_key(key): self.of(item, depth - 1) for key, item in value.items()}
        if kind.__module__ == "numpy" and kind.__name__ == "ndarray":
            return self._array(value)
        raise _NotPlain

    def _integer(self, value: int) -> msgspec.msgpack.Ext:
        size = value.bit_length() // 8 + 1
        self._reserve(size)
        return msgspec.msgpack.Ext(_INTEGER, value.to_bytes(size, "little", signed=True))

    def _array(self, value: Any) -> msgspec.msgpack.Ext:
        dtype = value.dtype
        if (
            dtype.kind not in _ARRAY_KINDS
            or dtype.metadata is not None
            or len(dtype.str) > _MAX_DTYPE
        ):
            raise _NotPlain
        self._reserve(value.nbytes)
        order = "F" if value.flags.f_contiguous and not value.flags.c_contiguous else "C"
        parts = (dtype.str, order, value.shape, value.tobytes(order))
        return msgspec.msgpack.Ext(_ARRAY, _encoder.encode(parts))

    def _reserve(self, count: int) -> None:
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
    """Decode the value that `stored` has encoded.

    Parameters
    ----------
    body
        Bytes from the store, perhaps written by other programs.
    type_name
        Type of the variable; ``"any"`` for values that are not variables.

    Raises
    ------
    RefusedPickle
        It is a pickle that no version has written for this type.
    Exception
        Whatever restoring raises.
    """
    if body[:1] == _PLAIN:
        return _decoder.decode(memoryview(body)[1:])
    kinds = _CLASSES.get(type_name)
    return loads(body) if kinds is None else _restored_scalar(body, type_name, kinds)


def _restored_scalar(body: bytes, type_name: str, kinds: tuple[type, ...]) -> Any:
    value = _ScalarUnpickler(io.BytesIO(body), type_name).load()
    if type(value) in kinds or (type_name == "embedding" and hasattr(value, "dtype")):
        return value
    msg = f"a {type(value).__name__} stands where a variable of type {type_name} has its value"
    raise RefusedPickle(msg)


class _ScalarUnpickler(pickle.Unpickler):
    """Reads pickles that refer to no names, or only to those of arrays.

    Parameters
    ----------
    type_name
        Type of the variable.
    """

    def __init__(self, file: io.BytesIO, type_name: str) -> None:
        super().__init__(file)
        self._type_name = type_name

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Look up a name that a pickle refers to."""
        if self._type_name == "embedding" and (module_name, global_name) in _ARRAY_NAMES:
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
    if dtype.kind not in _ARRAY_KINDS:
        msg = f"an array of {dtype}"
        raise ValueError(msg)
    return np.ndarray(tuple(shape), dtype, buffer=data, order=order).copy(order)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_extension)
