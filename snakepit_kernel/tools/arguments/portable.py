"""Signatures that travel from a worker to the owner of the pool, as data.

No pickle: to restore one imports nothing and calls nothing of a user's. A class travels by name and
is looked up among the modules that the owner has anyway; so an annotation with a class that it does
not have, or that looks different there, is left to the worker.
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
    """An annotation cannot travel, or cannot be restored here."""


_decode_signature = msgspec.msgpack.Decoder(
    tuple[list[tuple[str, int, bytes, str | None, str | None]], str | None]
).decode
"""Of each parameter: name, kind, annotation as data, annotation and default as written."""


def pack(signature: inspect.Signature, hints: dict[str, Any]) -> bytes:
    """Make a signature portable, with what is to be checked by name."""
    parameters = [
        (
            item.name,
            int(item.kind),
            _packed_hint(hints.get(item.name, Any)),
            _written(item.annotation, inspect.formatannotation),
            _written(item.default, repr),
        )
        for item in signature.parameters.values()
    ]
    returns = _written(signature.return_annotation, inspect.formatannotation)
    return msgspec.msgpack.encode((parameters, returns))


def unpack(data: bytes) -> tuple[inspect.Signature, dict[str, Any]]:
    """Restore what `pack` made; of what cannot be checked here the hint is ``Any``."""
    packed, returns = _decode_signature(data)
    kinds = {int(kind): kind for kind in inspect._ParameterKind}  # noqa: SLF001 - it has no other name
    parameters = [
        inspect.Parameter(name, kinds[kind], annotation=_shown(annotation), default=_shown(default))
        for name, kind, _, annotation, default in packed
    ]
    signature = inspect.Signature(parameters, return_annotation=_shown(returns))
    return signature, {name: _unpacked_hint(hint) for name, _, hint, _, _ in packed}


class Written:
    """An annotation or a default value as it is written in a signature; not the value."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _written(value: Any, write: Callable[[Any], str]) -> str | None:
    return None if value is inspect.Parameter.empty else write(value)


def _shown(text: str | None) -> Any:
    return inspect.Parameter.empty if text is None else Written(text)


def _packed_hint(kind: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(_tree_of(kind))
    except (Unportable, OverflowError):  # msgpack has integers of 64 bits
        return msgspec.msgpack.encode(("any",))


def _unpacked_hint(data: bytes) -> Any:
    try:
        return _kind_of(msgspec.msgpack.decode(data))
    except (ValueError, TypeError):  # of another msgspec, perhaps; the worker will say
        return Any


def _tree_of(kind: Any) -> tuple[Any, ...]:
    """Return an annotation as data: what it is, and its parts."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
        return ("any",)
    if kind is ...:
        return ("...",)
    if kind is None or kind is type(None):  # whose module has it not
        return ("none",)
    if origin is Annotated:
        return ("limits", _tree_of(args[0]), _limits_of(kind.__metadata__))
    if origin is Literal:
        return ("literal", *map(_plain_choice, args))
    if origin in UNIONS:
        return ("union", *map(_tree_of, args))
    if is_container(origin):
        return ("of", _tree_of_class(origin), *map(_tree_of, args))
    return _tree_of_class(origin or kind)


def _kind_of(tree: Any) -> Any:
    match tree:
        case ["class", str(module), str(name), int(shape)]:
            return _find_class(module, name, shape)
        case ["any"]:
            return Any
        case ["..."]:
            return ...
        case ["none"]:
            return type(None)
        case ["limits", base, dict(limits)]:
            return Annotated[(_kind_of(base), msgspec.Meta(**limits))]
        case ["literal", *choices]:
            return Literal[tuple(choices)]
        case ["union", *members]:
            return typing.Union[tuple(map(_kind_of, members))]  # noqa: UP007 - built at run time
        case ["of", origin, *items] if is_container(found := _kind_of(origin)):
            return found[tuple(map(_kind_of, items))]
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


def _tree_of_class(kind: Any) -> tuple[Any, ...]:
    """Return a class by name, and what tells it from another version of it."""
    if not isinstance(kind, type):
        raise Unportable
    return ("class", kind.__module__, kind.__qualname__, _shape_of(kind))


def _shape_of(kind: type) -> int:
    """Return a number by which a class is known from another one of its name.

    A module may have been edited since its owner imported it. What the owner has then could refuse
    arguments that are good in a worker.
    """
    schemas = Schemas()
    schema = schemas.of(kind)
    text = json.dumps([schema, schemas.definitions], sort_keys=True, default=repr)
    return zlib.crc32(text.encode())


def _find_class(module: str, name: str, shape: int) -> type:
    # By vars(), not by getattr(): a module may import on being asked, as scipy does.
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        if not isinstance(found, type | types.ModuleType):
            raise Unportable
        found = vars(found).get(part)
    if not isinstance(found, type) or _shape_of(found) != shape:
        raise Unportable
    return found
