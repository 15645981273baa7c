"""Serialization of signatures, which workers send to the pool's owner.

No pickle: restoring a signature imports nothing and calls no user code. A class is sent by name and
looked up among the modules that the owner has imported; an annotation with a class that it does not
have, or that differs there, is checked by the worker alone.
"""

from __future__ import annotations

import enum
import inspect
import json
import sys
import types
import typing
import zlib
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

import msgspec

from .annotations import UNIONS, is_container
from .schemas import Schemas

_CONSTRAINTS: Final = (
    *("gt", "ge", "lt", "le", "multiple_of"),
    *("pattern", "min_length", "max_length", "tz"),
)


class Unportable(ValueError):
    """An annotation cannot be serialized, or cannot be restored here."""


_decode_signature = msgspec.msgpack.Decoder(
    tuple[list[tuple[str, int, bytes, str | None, str | None]], str | None]
).decode
"""For each parameter: name, kind, annotation as data, annotation and default as text."""


def pack(signature: inspect.Signature, hints: dict[str, Any]) -> bytes:
    """Serialize a signature, with the annotations to check by name."""
    parameters = [
        (
            item.name,
            int(item.kind),
            _packed_hint(hints.get(item.name, Any)),
            _source_text(item.annotation, inspect.formatannotation),
            _source_text(item.default, repr),
        )
        for item in signature.parameters.values()
    ]
    returns = _source_text(signature.return_annotation, inspect.formatannotation)
    return msgspec.msgpack.encode((parameters, returns))


def unpack(data: bytes) -> tuple[inspect.Signature, dict[str, Any]]:
    """Restore what `pack` made; an annotation that cannot be checked here becomes ``Any``."""
    packed, returns = _decode_signature(data)
    kinds = {int(kind): kind for kind in inspect._ParameterKind}  # noqa: SLF001 - it has no other name
    parameters = [
        inspect.Parameter(name, kinds[kind], annotation=_shown(annotation), default=_shown(default))
        for name, kind, _, annotation, default in packed
    ]
    signature = inspect.Signature(parameters, return_annotation=_shown(returns))
    return signature, {name: _unpacked_hint(hint) for name, _, hint, _, _ in packed}


class SourceText:
    """Text of an annotation or a default value in a signature, instead of the value."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _source_text(value: Any, write: Callable[[Any], str]) -> str | None:
    return None if value is inspect.Parameter.empty else write(value)


def _shown(text: str | None) -> Any:
    return inspect.Parameter.empty if text is None else SourceText(text)


def _packed_hint(kind: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(_packed_annotation(kind))
    except (Unportable, OverflowError):  # msgpack has integers of 64 bits
        return msgspec.msgpack.encode(("any",))


def _unpacked_hint(data: bytes) -> Any:
    try:
        return _unpacked_annotation(msgspec.msgpack.decode(data))
    except (ValueError, TypeError):  # perhaps from another msgspec; the worker checks it
        return Any


def _packed_annotation(kind: Any) -> tuple[Any, ...]:
    """Return an annotation as data: its kind, and its parts."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
        return ("any",)
    if kind is ...:
        return ("...",)
    if kind is None or kind is type(None):  # NoneType is not in its module
        return ("none",)
    if origin is Annotated:
        return ("limits", _packed_annotation(args[0]), _limits_of(kind.__metadata__))
    if origin is Literal:
        return ("literal", *map(_plain_choice, args))
    if origin in UNIONS:
        return ("union", *map(_packed_annotation, args))
    if is_container(origin):
        return ("of", _packed_class(origin), *map(_packed_annotation, args))
    return _packed_class(origin or kind)


def _unpacked_annotation(tree: Any) -> Any:
    match tree:
        case ["class", str(module), str(name), int(checksum)]:
            return _find_class(module, name, checksum)
        case ["any"]:
            return Any
        case ["..."]:
            return ...
        case ["none"]:
            return type(None)
        case ["limits", base, dict(limits)]:
            return Annotated[(_unpacked_annotation(base), msgspec.Meta(**limits))]
        case ["literal", *choices]:
            return Literal[tuple(choices)]
        case ["union", *members]:
            return typing.Union[tuple(map(_unpacked_annotation, members))]  # noqa: UP007 - built at run time
        case ["of", origin, *items] if is_container(found := _unpacked_annotation(origin)):
            return found[tuple(map(_unpacked_annotation, items))]
    raise Unportable


def _plain_choice(choice: Any) -> Any:
    if isinstance(choice, enum.Enum):
        raise Unportable
    return choice


def _limits_of(metas: tuple[Any, ...]) -> dict[str, Any]:
    return {
        name: value
        for meta in metas
        for name in _CONSTRAINTS
        if (value := getattr(meta, name, None)) is not None
    }


def _packed_class(kind: Any) -> tuple[Any, ...]:
    """Return a class as its name, and a checksum of its version."""
    if not isinstance(kind, type):
        raise Unportable
    return ("class", kind.__module__, kind.__qualname__, _checksum_of(kind))


def _checksum_of(kind: type) -> int:
    """Return a checksum that distinguishes a class from other versions of it.

    A module may have been edited since the owner imported it. The owner's version could reject
    arguments that are valid in a worker.
    """
    schemas = Schemas()
    schema = schemas.of(kind)
    text = json.dumps([schema, schemas.definitions], sort_keys=True, default=repr)
    return zlib.crc32(text.encode())


def _find_class(module: str, name: str, checksum: int) -> type:
    # By vars(), not by getattr(): that may import modules, as in scipy.
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        if not isinstance(found, type | types.ModuleType):
            raise Unportable
        found = vars(found).get(part)
    if not isinstance(found, type) or _checksum_of(found) != checksum:
        raise Unportable
    return found
