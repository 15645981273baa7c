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


class _Node(msgspec.Struct, frozen=True, tag_field="is", forbid_unknown_fields=True):
    """A part of an annotation."""


class _Anything(_Node, frozen=True, tag="any"):
    """No check."""


class _Rest(_Node, frozen=True, tag="..."):
    """The ellipsis of ``tuple[int, ...]``."""


class _Class(_Node, frozen=True, tag="class"):
    """A class by name; ``shape`` tells it from another version of it."""

    module: str
    name: str
    shape: int


class _Choice(_Node, frozen=True, tag="literal"):
    """Values of a ``Literal``: whole numbers, texts, bytes, booleans and None."""

    values: list[Any]


class _Union(_Node, frozen=True, tag="union"):
    members: list[Node]


class _Container(_Node, frozen=True, tag="of"):
    """A container and what its items have to be."""

    origin: _Class
    items: list[Node]


class _Constrained(_Node, frozen=True, tag="limits"):
    base: Node
    limits: dict[str, Any]


Node = _Anything | _Rest | _Class | _Choice | _Union | _Container | _Constrained


class _Parameter(msgspec.Struct, frozen=True):
    """A parameter of a tool: what is checked, and how it is written in a signature."""

    name: str
    kind: int
    hint: bytes
    annotation: str | None
    default: str | None


class _Signature(msgspec.Struct, frozen=True):
    parameters: list[_Parameter]
    returns: str | None


_decode_node = msgspec.msgpack.Decoder(Node).decode
_decode_signature = msgspec.msgpack.Decoder(_Signature).decode


def pack(signature: inspect.Signature, hints: dict[str, Any]) -> bytes:
    """Make a signature portable, with what is to be checked by name."""
    parameters = [
        _Parameter(
            name=item.name,
            kind=int(item.kind),
            hint=_packed_hint(hints.get(item.name, Any)),
            annotation=_written(item.annotation, inspect.formatannotation),
            default=_written(item.default, repr),
        )
        for item in signature.parameters.values()
    ]
    returns = _written(signature.return_annotation, inspect.formatannotation)
    return msgspec.msgpack.encode(_Signature(parameters, returns))


def unpack(data: bytes) -> tuple[inspect.Signature, dict[str, Any]]:
    """Restore what `pack` made; of what cannot be checked here the hint is ``Any``."""
    packed = _decode_signature(data)
    kinds = {int(kind): kind for kind in inspect._ParameterKind}  # noqa: SLF001 - it has no other name
    parameters = [
        inspect.Parameter(
            item.name,
            kinds[item.kind],
            annotation=_shown(item.annotation),
            default=_shown(item.default),
        )
        for item in packed.parameters
    ]
    signature = inspect.Signature(parameters, return_annotation=_shown(packed.returns))
    return signature, {item.name: _unpacked_hint(item.hint) for item in packed.parameters}


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
        return msgspec.msgpack.encode(_node_of(kind))
    except (Unportable, OverflowError):  # msgpack has integers of 64 bits
        return msgspec.msgpack.encode(_Anything())


def _unpacked_hint(data: bytes) -> Any:
    try:
        return _kind_of(_decode_node(data))
    except (ValueError, TypeError):  # of another msgspec, perhaps; the worker will say
        return Any


def _node_of(kind: Any) -> Node:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any or kind is object or isinstance(kind, typing.TypeVar):
        return _Anything()
    if kind is ...:
        return _Rest()
    if origin is Annotated:
        return _Constrained(_node_of(args[0]), _limits_of(kind.__metadata__))
    if origin is Literal:
        return _Choice([_plain_choice(choice) for choice in args])
    if origin in UNIONS:
        return _Union([_node_of(arg) for arg in args])
    if is_container(origin):
        return _Container(_class_node(origin), [_node_of(arg) for arg in args])
    return _class_node(origin or kind)


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


def _class_node(kind: Any) -> _Class:
    if kind is None or kind is type(None):
        return _Class("types", "NoneType", 0)  # which does not say itself where it is
    if not isinstance(kind, type):
        raise Unportable
    return _Class(kind.__module__, kind.__qualname__, _shape_of(kind))


def _shape_of(kind: type) -> int:
    """Return a number by which a class is known from another one of its name.

    A module may have been edited since its owner imported it. What the owner has then could refuse
    arguments that are good in a worker.
    """
    schemas = Schemas()
    schema = schemas.of(kind)
    text = json.dumps([schema, schemas.definitions], sort_keys=True, default=repr)
    return zlib.crc32(text.encode())


def _kind_of(node: Node) -> Any:
    match node:
        case _Anything():
            return Any
        case _Rest():
            return ...
        case _Class():
            return _found(node)
        case _Choice():
            return Literal[tuple(node.values)]
        case _Union():
            return typing.Union[tuple(map(_kind_of, node.members))]  # noqa: UP007 - built at run time
        case _Container():
            origin = _found(node.origin)
            if not is_container(origin):
                raise Unportable
            return origin[tuple(map(_kind_of, node.items))]  # type: ignore[index]
        case _Constrained():
            return Annotated[(_kind_of(node.base), msgspec.Meta(**node.limits))]


def _found(node: _Class) -> type:
    # By vars(), not by getattr(): a module may import on being asked, as scipy does.
    found: Any = sys.modules.get(node.module)
    for part in node.name.split("."):
        if not isinstance(found, type | types.ModuleType):
            raise Unportable
        found = vars(found).get(part)
    if not isinstance(found, type):
        raise Unportable
    if node.module != "types" and _shape_of(found) != node.shape:
        raise Unportable
    return found
