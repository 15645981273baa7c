"""Sessions as files: JSON that people can read, with a version.

What JSON knows is written as it is. Bytes and NumPy arrays have a form of their own, which is safe
to read. Everything else is a pickle, which can run code when it is read: whoever imports such a
file must say that it is trusted.
"""

from __future__ import annotations

import base64
import json
import math
import pickle
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import cloudpickle

from ..errors import BatchRejected
from .state import SessionState
from .types import VariableType
from .values import Variable

FORMAT: Final = "snakepit-session"
FORMAT_VERSION: Final = 1

_TAG: Final = "$"
_NUMBERS: Final = "biufc"
"""Kinds of arrays that are written as they are."""
_DEPTH = 50
_BITS: Final = 1024
"""Of a whole number, beyond which Python is slow, or refuses, to write its digits."""


def export_session(session: SessionState, path: str | Path) -> int:
    """Write a session's variables, programs and metadata to a file; return the number of entries.

    The past of variables is not written.

    Raises
    ------
    OSError
        The file cannot be written. What was there before is there still.
    """
    variables = session.variables.list()
    programs = {
        program.name: {
            "metadata": dict(program.metadata),
            "value": _encoded(session.programs[program.name]),
        }
        for program in session.programs.list()
    }
    metadata = {name: _encoded(value) for name, value in session.metadata.items()}
    content = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "session": session.id,
        "variables": [_written(variable) for variable in variables],
        "programs": programs,
        "metadata": metadata,
    }
    target = Path(path).expanduser()
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False), encoding="utf-8")
        temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return len(variables) + len(programs) + len(metadata)


def import_session(session: SessionState, path: str | Path, *, trust: bool = False) -> int:
    """Read a file into a session; return the number of entries.

    Variables of the same name get the value of the file; they must be of the same type. All or
    no variables are read.

    Parameters
    ----------
    session
        The session.
    path
        A file that `export_session` has written.
    trust
        Read pickles, too, which can run code.

    Raises
    ------
    ValueError
        It is no such file, one of a newer version, or needs to be trusted.
    BatchRejected
        Some variables cannot be set; each is named. Nothing was changed.
    OSError
        The file cannot be read.
    """
    content = _read(Path(path).expanduser())
    try:
        untrusted = [] if trust else _pickles(content)
    except RecursionError as error:
        msg = f"{path} is damaged: it is nested too deeply"
        raise ValueError(msg) from error
    if untrusted:
        listed = ", ".join(untrusted[:8]) + (", …" if len(untrusted) > 8 else "")
        msg = (
            f"{listed} can only be read as a pickle, which can run code; if you trust whoever "
            "wrote the file, say so (--trust, trust=True)"
        )
        raise ValueError(msg)
    try:
        variables, programs, notes = _decoded_parts(content)
    except Exception as error:  # a pickle that is damaged can raise anything
        msg = f"{path} is damaged: {type(error).__name__}: {error}"
        raise ValueError(msg) from error
    known = {variable.name: variable for variable in session.variables.list()}
    errors = _misfits(variables, known)
    if errors:
        raise BatchRejected(errors)
    session.import_variables(variables)
    for name, (value, metadata) in programs.items():
        session.programs.put(name, value, metadata=metadata)
    session.metadata.update(notes)
    return len(variables) + len(programs) + len(notes)


# -- writing -----------------------------------------------------------------------------------


def _written(variable: Variable) -> dict[str, Any]:
    return {
        "name": variable.name,
        "type": variable.type,
        "constraints": dict(variable.constraints),
        "description": variable.description,
        "metadata": dict(variable.metadata),
        "version": variable.version,
        "updated": variable.updated.isoformat(),
        "value": _encoded(variable.value),
    }


def _encoded(value: Any) -> Any:
    """Return a value as JSON writes it; what JSON does not know is a dictionary with a tag."""
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
    except UnicodeEncodeError:  # half of a pair of surrogates
        raise _NotPlain from None
    return text


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _data(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


# -- reading -----------------------------------------------------------------------------------


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        msg = f"{path} is no exported session: {error}"
        raise ValueError(msg) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        msg = f"{path} is no exported session"
        raise ValueError(msg)
    if content.get("version") != FORMAT_VERSION:
        msg = (
            f"{path} has version {content.get('version')} of the format; this program reads "
            f"version {FORMAT_VERSION}"
        )
        raise ValueError(msg)
    return content


Programs = dict[str, tuple[Any, Mapping[str, Any]]]


def _decoded_parts(
    content: dict[str, Any],
) -> tuple[dict[str, dict[str, Any]], Programs, dict[str, Any]]:
    variables = {
        entry["name"]: {
            "type": entry["type"],
            "value": _decoded(entry["value"]),
            "description": entry["description"],
            "metadata": entry["metadata"],
            **entry["constraints"],
        }
        for entry in content["variables"]
    }
    programs = {
        name: (_decoded(entry["value"]), entry["metadata"])
        for name, entry in content["programs"].items()
    }
    return (
        variables,
        programs,
        {name: _decoded(value) for name, value in content["metadata"].items()},
    )


def _pickles(content: dict[str, Any]) -> list[str]:
    """Return the names of what is a pickle, or has one in it, wherever it is in the file."""
    found = []
    for part, entries in content.items():
        if isinstance(entries, list):
            named = [(_name_of(entry, part), entry) for entry in entries]
        else:
            named = [*entries.items()] if isinstance(entries, dict) else []
        found += [str(name) for name, entry in named if _has_pickle(entry)]
    return found


def _name_of(entry: Any, part: str) -> Any:
    return entry.get("name", part) if isinstance(entry, dict) else part


def _has_pickle(value: Any) -> bool:
    """Whether there is a pickle anywhere in it: the file may be made to harm."""
    if isinstance(value, list):
        return any(map(_has_pickle, value))
    if isinstance(value, dict):
        return value.get(_TAG) == "pickle" or any(map(_has_pickle, value.values()))
    return False


def _decoded(value: Any) -> Any:
    if isinstance(value, list):
        return [_decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    match value.get(_TAG):
        case None:
            return {key: _decoded(item) for key, item in value.items()}
        case "pickle":
            return pickle.loads(_data(value["base64"]))
        case "bytes":
            return _data(value["base64"])
        case "float":
            return float(value["text"])
        case "array":
            import numpy as np

            dtype = np.dtype(value["dtype"])
            if dtype.kind not in _NUMBERS:
                msg = f"an array of {dtype}"
                raise ValueError(msg)
            flat = np.frombuffer(_data(value["base64"]), dtype)
            return flat.reshape(value["shape"]).copy()
        case tag:
            msg = f"a value of an unknown kind {tag!r}"
            raise ValueError(msg)


def _misfits(
    variables: Mapping[str, Mapping[str, Any]], known: Mapping[str, Variable]
) -> dict[str, Exception]:
    """Return which variables exist as something else."""
    errors: dict[str, Exception] = {}
    for name, spec in variables.items():
        present = known.get(name)
        rest = {key: value for key, value in spec.items() if key not in _NO_CONSTRAINTS}
        try:
            wanted = VariableType.checked(spec["type"], rest)
        except (TypeError, ValueError) as error:
            errors[name] = error
            continue
        if present is not None and wanted != VariableType(present.type, present.constraints):
            errors[name] = ValueError(
                f"variable {name!r} is {wanted.name} in the file, and {present.type} with other "
                "constraints here; delete it first"
            )
    return errors


_NO_CONSTRAINTS = {"type", "value", "description", "metadata"}
