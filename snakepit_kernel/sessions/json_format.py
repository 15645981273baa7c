"""Encoding of values as human-readable JSON, for exported sessions and variables.

JSON's own types are written as they are. Bytes and NumPy arrays have a special encoding, which is
safe to read. Everything else is a pickle, which can run code when it is read: reading it requires
``trust``.
"""

from __future__ import annotations

import base64
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any, Final

import cloudpickle

from ..printable import printable
from .patterns import Slow, check_speed
from .values import Variable

FORMAT_VERSION: Final = 1

VARIABLES_FORMAT: Final = "snakepit-variables"

_TAG: Final = "$"
_NUMBERS: Final = "biufc"
"""Kinds of NumPy dtypes that are encoded as data."""
_DEPTH = 50

MAX_ENTRIES: Final = 10_000
"""Variables, programs and metadata entries that are read from a file without ``trust``."""

_MAX_NESTING: Final = 100
_MAX_DTYPE: Final = 8
_MAX_TEXT: Final = 1 << 20
"""Longest text that is matched with a pattern of such a file."""

_BITS: Final = 1024
"""Bits of an integer up to which it is written in digits; Python is slow, or refuses, beyond."""


def check_format(content: object, wanted: str, what: str) -> None:
    """Check that exported content has a format.

    Raises
    ------
    ValueError
        It has not, or has a newer version of it.
    """
    if not isinstance(content, Mapping) or content.get("format") != wanted:
        msg = f"{what} is no exported {wanted.removeprefix('snakepit-')}"
        raise ValueError(printable(msg))
    if content.get("version") != FORMAT_VERSION:
        msg = (
            f"{what} has version {content.get('version')} of the format; this program reads "
            f"version {FORMAT_VERSION}"
        )
        raise ValueError(printable(msg))


def check_trust(content: Mapping[str, Any], what: str, *, trust: bool) -> None:
    """Check that content can be read without running code and in a short time, or is trusted.

    Raises
    ------
    ValueError
        It has pickles, or patterns that may take long; they are named.
    """
    if trust:
        return
    try:
        untrusted = _pickles(content)
        _check_patterns(content.get("variables"))
    except RecursionError as error:
        msg = f"{what} is damaged: it is nested too deeply"
        raise ValueError(msg) from error
    if untrusted:
        listed = ", ".join(untrusted[:8]) + (", …" if len(untrusted) > 8 else "")
        msg = (
            f"{listed} can only be read as a pickle, which can run code; if you trust the author "
            "of the file, say so (--trust, trust=True)"
        )
        raise ValueError(printable(msg))


# -- variables ---------------------------------------------------------------------------------


def written(variable: Variable) -> dict[str, Any]:
    """Encode a variable as JSON data."""
    return {
        "name": variable.name,
        "type": variable.type,
        "constraints": dict(variable.constraints),
        "description": variable.description,
        "metadata": dict(variable.metadata),
        "version": variable.version,
        "updated": variable.updated.isoformat(),
        "value": encoded(variable.value),
    }


def read_variables(entries: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Decode what `written` has encoded, as arguments of `Variables.register_many`, by name.

    Damaged entries may raise any exception.
    """
    return {
        entry["name"]: {
            "type": entry["type"],
            "value": decoded(entry["value"]),
            "description": entry["description"],
            "metadata": entry["metadata"],
            **entry["constraints"],
        }
        for entry in entries
    }


# -- values ------------------------------------------------------------------------------------


def encoded(value: Any) -> Any:
    """Encode a value as JSON data; other types than JSON's become a dictionary with a tag."""
    try:
        return _plain(value, _DEPTH)
    except _NotPlain:
        pickled = cloudpickle.dumps(value, protocol=5)
        return {_TAG: "pickle", "base64": _text(pickled), "shows": type(value).__name__}


class _NotPlain(Exception):
    """A value that has to be pickled."""


def _plain(value: Any, depth: int) -> Any:
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int and value.bit_length() <= _BITS:
        return value
    if kind is str:
        return _encodable(value)
    if depth == 0:
        raise _NotPlain
    if kind is float:
        return value if math.isfinite(value) else {_TAG: "float", "text": str(value)}
    if kind is list:
        return [_plain(item, depth - 1) for item in value]
    if kind is dict and all(type(key) is str for key in value) and _TAG not in value:
        return {_encodable(key): _plain(item, depth - 1) for key, item in value.items()}
    if kind is bytes:
        return {_TAG: "bytes", "base64": _text(value)}
    if kind.__module__ == "numpy" and kind.__name__ == "ndarray" and value.dtype.kind in _NUMBERS:
        array = value if value.dtype.isnative else value.astype(value.dtype.newbyteorder("="))
        return {
            _TAG: "array",
            "dtype": array.dtype.str,
            "shape": list(array.shape),
            "base64": _text(array.tobytes()),
        }
    raise _NotPlain


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        raise _NotPlain from None
    return text


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _data(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def decoded(value: Any) -> Any:
    """Decode what `encoded` has encoded; damaged data may raise any exception."""
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_TAG):
        case None:
            return {key: decoded(item) for key, item in value.items()}
        case "pickle":
            return pickle.loads(_data(value["base64"]))  # noqa: S301 - `check_trust` has passed
        case "bytes":
            return _data(value["base64"])
        case "float":
            return float(value["text"])
        case "array":
            import numpy as np

            if len(value["dtype"]) > _MAX_DTYPE:
                msg = "an array of an unknown type"
                raise ValueError(msg)
            dtype = np.dtype(value["dtype"])
            if dtype.kind not in _NUMBERS:
                msg = f"an array of {dtype}"
                raise ValueError(msg)
            flat = np.frombuffer(_data(value["base64"]), dtype)
            return flat.reshape(value["shape"]).copy()
        case tag:
            msg = f"a value of an unknown kind {tag!r}"
            raise ValueError(msg)


def _pickles(content: Mapping[str, Any]) -> list[str]:
    """Return the names of all entries of a file that are pickles, or contain one."""
    found = []
    count = sum(len(part) for part in content.values() if isinstance(part, list | dict))
    if count > MAX_ENTRIES:
        msg = (
            f"{count:,} entries are more than the {MAX_ENTRIES:,} that are read of an "
            "untrusted file; if you trust its author, say so (--trust, trust=True)"
        )
        raise ValueError(msg)
    for part, entries in content.items():
        if isinstance(entries, list):
            named = [(_name_of(entry, part), entry) for entry in entries]
        else:
            named = [*entries.items()] if isinstance(entries, dict) else []
        found += [str(name) for name, entry in named if _has_pickle(entry)]
    return found


def _name_of(entry: Any, part: str) -> Any:
    return entry.get("name", part) if isinstance(entry, dict) else part


def _has_pickle(value: Any, depth: int = _MAX_NESTING) -> bool:
    """Whether a value contains a pickle at any depth: the file may be malicious."""
    if depth == 0:
        raise RecursionError
    if isinstance(value, list):
        return any(_has_pickle(item, depth - 1) for item in value)
    if isinstance(value, dict):
        return value.get(_TAG) == "pickle" or any(
            _has_pickle(item, depth - 1) for item in value.values()
        )
    return False


def _check_patterns(variables: Any) -> None:
    """Check that the patterns of variables match in a short time, now and whenever used later.

    Entries that are not variables are rejected later, when they are read.
    """
    for entry in variables if isinstance(variables, list) else ():
        constraints = entry.get("constraints") if isinstance(entry, dict) else None
        if isinstance(constraints, dict) and isinstance(constraints.get("pattern"), str):
            _check_pattern(entry, constraints)


def _check_pattern(entry: dict[str, Any], constraints: dict[str, Any]) -> None:
    most, value = constraints.get("max_length"), entry.get("value")
    try:
        check_speed(constraints["pattern"], most if type(most) is int and most >= 0 else None)
        if isinstance(value, str) and len(value) > _MAX_TEXT:
            msg = f"its value has more than {_MAX_TEXT:,} characters"
            raise Slow(msg)
    except re.error:
        return  # registering the variable raises the error
    except Slow as slow:
        msg = (
            f"the pattern of {entry.get('name')!r} might take for ever: {slow}; if you trust "
            "the author of the file, say so (--trust, trust=True)"
        )
        raise ValueError(msg) from None
