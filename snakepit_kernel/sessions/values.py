"""Public records of variables, their changes and programs, and their conversion from rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from ..errors import StoreError, ValueTooLarge
from ..protocol.codec import Codec
from ..protocol.unserializable import Unserializable
from ..store.program_table import ProgramRow
from ..store.variable_table import ChangeKind, ChangeRow, VariableRow
from .stored import RefusedPickle, restored_from, stored

MAX_VARIABLE_BYTES = 1 << 20
"""Default maximum size of one variable's value in the store."""


def encode(kind: str, name: str, value: object, codec: Codec, setting: str) -> bytes:
    """Encode a value for the store; a program, which may be large, is always a pickle.

    Raises
    ------
    ValueTooLarge
        It exceeds the codec's limit.
    TypeError
        It cannot be pickled.
    """
    try:
        return codec.dumps_whole(value) if kind == "program" else stored(value, codec)
    except ValueTooLarge:
        raise ValueTooLarge(codec.max_bytes, setting, f"{kind} {name!r}") from None
    except Exception as error:
        type_name = f"{type(value).__module__}.{type(value).__qualname__}"
        msg = f"{kind} {name!r}, a {type_name}, cannot be stored: {error}"
        raise TypeError(msg) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """A variable: its definition, value and version.

    Attributes
    ----------
    id
        Its number, which is never reused; it can be used instead of the name.
    name, type, constraints, description, metadata
        As they were registered.
    value
        Its value. It is not part of this object's repr, which may be logged.
    version
        Number of its value, from 1.
    source
        Writer of the value: ``"notebook"``, ``"script"``, or the name of a worker.
    created, updated
        Times.
    locked
        Reason why it must not be changed; None when it may.
    """

    id: int
    name: str
    type: str
    value: Any = field(repr=False)
    version: int
    constraints: Mapping[str, Any]
    description: str
    metadata: Mapping[str, Any] = field(repr=False)
    source: str
    created: datetime
    updated: datetime
    locked: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change of a variable.

    Attributes
    ----------
    revision
        Increases with each change of any variable of any session.
    name, version
        The variable, and its new version.
    kind
        ``"registered"``, ``"updated"``, ``"rolled back"`` or ``"deleted"``.
    value
        The new value; None when it was deleted. It is not part of this object's repr.
    source
        Writer of the change.
    time
        Time of the change.
    """

    revision: int
    name: str
    kind: ChangeKind
    version: int
    value: Any = field(repr=False)
    source: str
    time: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """Result of reading several variables at once.

    Attributes
    ----------
    found
        Values by name, or id.
    missing
        Names, or ids, that do not exist.
    """

    found: dict[str | int, Any]
    missing: list[str | int]


@dataclass(frozen=True, slots=True)
class SetResult:
    """Result of setting several variables at once.

    Attributes
    ----------
    versions
        New versions of the variables that were set, by name.
    errors
        Errors of the others, by name.
    """

    versions: dict[str, int]
    errors: dict[str, Exception]

    @property
    def ok(self) -> bool:
        """Whether all were set."""
        return not self.errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Description of a program, without the object itself.

    Attributes
    ----------
    name
        Its name.
    version
        Number of times that it was stored.
    size_bytes
        Size of its pickle.
    checksum
        SHA-256 of the pickle, hexadecimal.
    metadata
        As it was stored.
    source
        Its writer.
    created, updated
        Times.
    expires
        When it expires unless it is used; None for never.
    """

    name: str
    version: int
    size_bytes: int
    checksum: str
    metadata: Mapping[str, Any] = field(repr=False)
    source: str
    created: datetime
    updated: datetime
    expires: datetime | None


def restored(body: bytes, type_name: str = "any") -> Any:
    """Decode a value; if that fails, return a marker with the reason."""
    try:
        return restored_from(body, type_name)
    except Exception as error:  # noqa: BLE001 - the class of a value may do anything, or be gone
        return Unserializable(f"a value that cannot be restored: {type(error).__name__}: {error}")


def cannot_restore(store: Path, what: str, error: Exception) -> StoreError:
    """Return the error for a value that cannot be restored."""
    problem = f"{what} cannot be restored here: {type(error).__name__}: {error}"
    remedy = (
        "it was not run; set it again, and find out who has written it"
        if isinstance(error, RefusedPickle)
        else "install, or define, what its class needs"
    )
    return StoreError(str(store), problem, remedy)


def variable_of(row: VariableRow) -> Variable:
    """Convert a row of the store to a variable."""
    return Variable(
        id=row.id,
        name=row.name,
        type=row.type,
        value=restored(row.value, row.type),
        version=row.version,
        constraints=facts_of(row.constraints),
        description=row.description,
        metadata=facts_of(row.metadata),
        source=row.source,
        created=when(row.created),
        updated=when(row.updated),
        locked=row.locked,
    )


def change_of(row: ChangeRow) -> Change:
    """Convert a row of the store to a change."""
    return Change(
        revision=row.revision,
        name=row.name,
        kind=row.kind,
        version=row.version,
        value=None if row.value is None else restored(row.value, row.type),
        source=row.source,
        time=when(row.time),
    )


def program_of(row: ProgramRow) -> Program:
    """Convert a row of the store to a program's description."""
    return Program(
        name=row.name,
        version=row.version,
        size_bytes=row.size,
        checksum=row.checksum,
        metadata=facts_of(row.metadata),
        source=row.source,
        created=when(row.created),
        updated=when(row.updated),
        expires=None if row.expires is None else when(row.expires),
    )


def facts_of(text: str) -> Mapping[str, Any]:
    """Decode constraints or metadata; if they are damaged, return a marker in their place."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    return {"damaged": Unserializable(f"what cannot be restored: {text[:60]}")}


def when(seconds: float) -> datetime:
    """Convert seconds since the epoch to local time."""
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):  # a damaged row, beyond the range of datetime
        return datetime.fromtimestamp(0).astimezone()


def json_of(metadata: Mapping[str, Any] | None) -> str:
    """Encode metadata as JSON.

    Raises
    ------
    TypeError
        It is not a dictionary of JSON values.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        msg = f"metadata is a dictionary, not {type(metadata).__name__}"
        raise TypeError(msg)
    try:
        return msgspec.json.encode(dict(metadata or {})).decode()
    except TypeError as error:
        msg = f"metadata holds what JSON knows (text, numbers, lists, dictionaries): {error}"
        raise TypeError(msg) from None
