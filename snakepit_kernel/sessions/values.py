"""What users see of variables and programs: values with what is known about them."""

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
"""What the value of one variable may take in the store, when nothing else was said."""


def encode(kind: str, name: str, value: object, codec: Codec, setting: str) -> bytes:
    """Return a value as the store holds it; a program, which may be large, is a pickle always.

    Raises
    ------
    ValueTooLarge
        It takes more than it may.
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
    """A variable, its value, and what is known about it.

    Attributes
    ----------
    id
        Its number, never used again; variables can be named by it.
    name, type, constraints, description, metadata
        As they were registered.
    value
        Its value. It is not part of the text of this object, which may end in a log.
    version
        Counts its values, from 1.
    source
        Who set the value: ``"notebook"``, ``"script"``, or the name of a worker.
    created, updated
        When.
    locked
        Why it must not be changed; None when it may.
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
        Grows with each change of any variable of any session.
    name, version
        The variable, and its version since then.
    kind
        ``"registered"``, ``"updated"``, ``"rolled back"`` or ``"deleted"``.
    value
        The value since then; None when it was deleted. It is not part of the text of this object.
    source
        Who did it.
    time
        When.
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
    """What several variables were asked for at once gave.

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
    """What became of several variables that were set at once.

    Attributes
    ----------
    versions
        The new versions of those that were set, by name.
    errors
        Why the others were not, by name.
    """

    versions: dict[str, int]
    errors: dict[str, Exception]

    @property
    def ok(self) -> bool:
        """Whether all were set."""
        return not self.errors


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What is known of a program, without the object itself.

    Attributes
    ----------
    name
        Its name.
    version
        Counts how often it was stored, from 1.
    size_bytes
        What it takes, pickled.
    checksum
        SHA-256 of the pickle, hexadecimal.
    metadata
        As it was stored.
    source
        Who stored it.
    created, updated
        When.
    expires
        When it is over unless it is used; None for never.
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
    """Restore a value; where that cannot be, a marker that says why stands in its place."""
    try:
        return restored_from(body, type_name)
    except Exception as error:  # noqa: BLE001 - the class of a value may do anything, or be gone
        return Unserializable(f"a value that cannot be restored: {type(error).__name__}: {error}")


def cannot_restore(store: Path, what: str, error: Exception) -> StoreError:
    """Return what says that a value cannot be restored."""
    problem = f"{what} cannot be restored here: {type(error).__name__}: {error}"
    remedy = (
        "it was not run; set it anew, and find out who has written it"
        if isinstance(error, RefusedPickle)
        else "install, or define, what its class needs"
    )
    return StoreError(str(store), problem, remedy)


def variable_of(row: VariableRow) -> Variable:
    """Restore a variable from the store."""
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
    """Restore a change from the store."""
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
    """Make of a row what users see."""
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
    """Restore constraints or metadata; where they are damaged, a marker stands in their place."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return found
    return {"damaged": Unserializable(f"what cannot be restored: {text[:60]}")}


def when(seconds: float) -> datetime:
    """Return a moment, in seconds since the epoch, in local time."""
    try:
        return datetime.fromtimestamp(seconds).astimezone()
    except (OverflowError, ValueError, OSError):  # in a damaged row: no clock shows it
        return datetime.fromtimestamp(0).astimezone()


def json_of(metadata: Mapping[str, Any] | None) -> str:
    """Write metadata down.

    Raises
    ------
    TypeError
        It is no dictionary of what JSON knows.
    """
    if metadata is not None and not isinstance(metadata, Mapping):
        msg = f"metadata is a dictionary, not {type(metadata).__name__}"
        raise TypeError(msg)
    try:
        return msgspec.json.encode(dict(metadata or {})).decode()
    except TypeError as error:
        msg = f"metadata holds what JSON knows (text, numbers, lists, dictionaries): {error}"
        raise TypeError(msg) from None
