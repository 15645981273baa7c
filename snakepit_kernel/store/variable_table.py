"""The table of variables and of their changes; values are opaque bytes here."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

from ..errors import (
    SnakepitError,
    StoreError,
    VariableLocked,
    VariableNotFound,
    VersionConflict,
)
from .database import Database, Row

ChangeKind = Literal["registered", "updated", "deleted", "rolled back"]
Key = str | int
"""A variable's name, or its id."""

HISTORY_VERSIONS = 100
"""Number of values in a variable's history, including the present one."""

HISTORY_BYTES = 8 * 1024 * 1024
"""Maximum total size of a history; the last two values are kept in any case."""

PRUNE_AFTER_VERSIONS = 100
PRUNE_AFTER_BYTES = HISTORY_BYTES // 4
"""Values and bytes that one process writes to a variable before it prunes the history."""

TOMBSTONE_SECONDS = 3600.0
"""Seconds for which the deletion of a variable stays recorded, for watchers."""

_MAX_PARAMETERS = 500
"""Parameters of one statement, well below every limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableRow:
    """The row of a variable.

    Attributes
    ----------
    id
        Never reused.
    name, type, description
        As they were registered.
    constraints, metadata
        JSON.
    created, updated
        Seconds since the epoch.
    version
        Number of its values so far, from 1.
    locked
        Why it must not be changed; None when it may.
    value
        Its value.
    source
        Who set the value.
    """

    id: int
    name: str
    type: str
    constraints: str
    description: str
    metadata: str
    created: float
    updated: float
    version: int
    locked: str | None
    value: bytes
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NewVariable:
    """A variable that is to be registered."""

    name: str
    type: str
    constraints: str
    description: str
    metadata: str
    value: bytes
    version: int = 1

    def is_same_as(self, type_name: str, constraints: str) -> bool:
        """Whether an existing variable has the same type and constraints."""
        if self.type != type_name or self.constraints == constraints:
            return self.type == type_name
        try:
            return bool(json.loads(self.constraints) == json.loads(constraints))
        except (ValueError, RecursionError):  # damaged
            return False


class Update(NamedTuple):
    """A new value for a variable; a tuple, which is created five times faster than a dataclass.

    Attributes
    ----------
    id, name
        The variable. The id implies its type and constraints, which never change.
    value
        The value.
    version
        The version that the variable must have; None for any.
    kind
        Kind of the change in the history.
    """

    id: int
    name: str
    value: bytes
    version: int | None = None
    kind: ChangeKind = "updated"


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeRow:
    """A change of a variable.

    Attributes
    ----------
    revision
        Grows with each change of any variable.
    variable
        Id of the variable.
    value
        The new value; None when the variable was deleted.
    type
        Type of the variable; empty when it has been deleted since.
    """

    revision: int
    variable: int
    name: str
    kind: ChangeKind
    version: int
    value: bytes | None
    source: str
    time: float
    type: str


_COLUMNS = (
    "v.id, v.name, v.type, v.constraints, v.description, v.metadata, v.created, c.time,"
    " v.version, v.locked, c.value, c.source"
)
_PRESENT = "FROM variables v JOIN changes c ON c.revision = v.revision"
_VALUE_BY_NAME = f"SELECT c.value, v.type {_PRESENT} WHERE v.session = ? AND v.name = ?"
_CHANGES = (
    "SELECT c.revision, c.variable, c.name, c.kind, c.version, c.value, c.source, c.time,"
    " coalesce(v.type, '') FROM changes c LEFT JOIN variables v ON v.id = c.variable"
)
_PAST = """
    WITH RECURSIVE past (revision, previous) AS (
        SELECT c.revision, c.previous FROM changes c JOIN variables v ON c.revision = v.revision
            WHERE {which}
        UNION ALL
        SELECT c.revision, c.previous FROM changes c JOIN past p
            ON c.revision = p.previous AND c.revision < p.revision -- or damage makes a ring
    )
"""
_PAST_OF_ONE = _PAST.format(which="v.id = ? AND v.session = ?")
_PAST_OF_ALL = _PAST.format(which="v.session = ?")
_PRUNE = (
    f"{_PAST_OF_ONE} DELETE FROM changes WHERE revision IN"  # noqa: S608 - constants
    " (SELECT revision FROM past ORDER BY revision DESC LIMIT 1000000 OFFSET ?)"
)
_INSERT_CHANGE = (
    "INSERT INTO changes (previous, session, variable, name, kind, version, value, source, time)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_INSERT_VALUE = (
    "INSERT INTO writes (variable, session, kind, value, source, time, expected)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)


class VariableTable:
    """The table of variables.

    Every method takes the number of a session first, and affects only that session.

    Parameters
    ----------
    database
        The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = database.read
        self._written_since_prune: dict[int, tuple[int, int]] = {}  # since the history was cut

    # -- reading -------------------------------------------------------------------------------

    def value(self, session: int, name: str) -> tuple[bytes, str] | None:
        """Return value and type of a variable, or None when there is none of that name."""
        try:
            rows = self._read(_VALUE_BY_NAME, (session, name))
        except UnicodeEncodeError:  # half of a pair of surrogates
            return None
        return rows[0] if rows else None

    def find(self, session: int, keys: Sequence[Key]) -> list[VariableRow]:
        """Return variables by name or id, oldest first; unknown ones are left out."""
        found: list[VariableRow] = []
        for kind, column in ((str, "name"), (int, "id")):
            wanted = [key for key in keys if isinstance(key, kind) and _is_possible_key(key)]
            for begin in range(0, len(wanted), _MAX_PARAMETERS):
                part = wanted[begin : begin + _MAX_PARAMETERS]
                marks = ", ".join("?" * len(part))
                select = f"SELECT {_COLUMNS} {_PRESENT} WHERE v.session = ? AND v.{column}"
                found += map(_variable, self._read(f"{select} IN ({marks})", (session, *part)))
        return sorted({row.id: row for row in found}.values(), key=lambda row: row.id)

    def names(self, session: int) -> list[str]:
        """Return the names of all variables, oldest first."""
        select = "SELECT name FROM variables WHERE session = ? ORDER BY id"
        return [name for (name,) in self._read(select, (session,))]

    def has(self, session: int, key: Key) -> bool:
        """Whether there is a variable of that name or id."""
        column = "name" if isinstance(key, str) else "id"
        select = f"SELECT 1 FROM variables WHERE session = ? AND {column} = ?"  # noqa: S608 - constants
        return _is_possible_key(key) and bool(self._read(select, (session, key)))

    def count(self, session: int) -> int:
        """Return the number of variables."""
        select = "SELECT count(*) FROM variables WHERE session = ?"
        return int(self._read(select, (session,))[0][0])

    def sizes(self, session: int) -> list[tuple[str, int, float, int]]:
        """Return type, version, time of registration and size of each variable."""
        select = "SELECT type, version, created, size FROM variables WHERE session = ?"
        return self._read(select, (session,))

    def history(self, session: int, variable: int) -> list[ChangeRow]:
        """Return the changes of a variable, the present value last."""
        select = (
            f"{_PAST_OF_ONE} {_CHANGES}"  # noqa: S608 - constants
            " WHERE c.revision IN (SELECT revision FROM past) ORDER BY c.revision"
        )
        return [_change(row) for row in self._read(select, (variable, session))]

    def revision(self) -> int:
        """Return the revision of the last change of any session."""
        select = "SELECT max(revision) FROM changes"
        return int(self._read(select)[0][0] or 0)

    def changes(self, session: int, after: int, limit: int) -> list[ChangeRow]:
        """Return the changes of a session after a revision, in order."""
        select = f"{_CHANGES} WHERE c.revision > ? AND c.session = ? ORDER BY c.revision LIMIT ?"
        return [_change(row) for row in self._read(select, (after, session, limit))]

    # -- writing -------------------------------------------------------------------------------

    def register(
        self,
        session: int,
        variables: Sequence[NewVariable],
        source: str,
        updates: Sequence[Update] = (),
    ) -> dict[str, int]:
        """Add variables, all or none; return the ids of those that did not exist before.

        Parameters
        ----------
        session, variables, source
            The session, the new variables, and who adds them.
        updates
            New values of other variables, in the same transaction.

        Raises
        ------
        VariableDiffers
            One of them exists with another type or constraints; nothing was changed.
        """
        now = time.time()
        insert = (
            "INSERT INTO variables (session, name, type, constraints, description, metadata,"
            " created, version, size, revision)"
            " SELECT number, ?, ?, ?, ?, ?, ?, ?, ?, 0 FROM sessions WHERE number = ?"
            " ON CONFLICT (session, name) DO NOTHING RETURNING id"
        )
        present = "SELECT type, constraints FROM variables WHERE session = ? AND name = ?"

        def add(connection: sqlite3.Connection) -> dict[str, int]:
            added: dict[str, int] = {}
            for new in variables:
                row = (new.name, new.type, new.constraints, new.description, new.metadata)
                made = connection.execute(
                    insert, (*row, now, new.version, len(new.value), session)
                ).fetchall()
                if made:
                    added[new.name] = made[0][0]
                    change = (None, session, made[0][0], new.name, "registered", new.version)
                    cursor = connection.execute(_INSERT_CHANGE, (*change, new.value, source, now))
                    connection.execute(
                        "UPDATE variables SET revision = ? WHERE id = ?",
                        (cursor.lastrowid, made[0][0]),
                    )
                    continue
                for found in connection.execute(present, (session, new.name)).fetchall():
                    if not new.is_same_as(*found):
                        raise VariableDiffers(new.name, *found)
            for update in updates:
                try:
                    connection.execute(_INSERT_VALUE, _parameters(session, update, source))
                except sqlite3.IntegrityError:
                    raise _refusal_error(connection, session, update) from None
            return added

        return self._database.transaction(add)

    def set(self, session: int, update: Update, source: str) -> None:
        """Set the value of a variable.

        Raises
        ------
        VariableNotFound, VariableLocked, VersionConflict
            The value was refused; nothing was changed.
        """
        try:
            self._database.write(_INSERT_VALUE, _parameters(session, update, source))
        except sqlite3.IntegrityError:
            raise self._refusal_error(session, update) from None
        self._prune_if_due(session, [update])

    def set_many(
        self, session: int, updates: Sequence[Update], source: str, *, atomic: bool
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]:
        """Set variables in one transaction; return the new versions, and errors by name.

        Parameters
        ----------
        session, updates, source
            As for `set`.
        atomic
            Whether an error rolls back all updates.
        """
        rows = [_parameters(session, update, source) for update in updates]

        def set_all(connection: sqlite3.Connection) -> dict[str, int]:
            connection.executemany(_INSERT_VALUE, rows)
            return _versions(connection, session, updates)

        try:
            versions = self._database.transaction(set_all)
        except sqlite3.IntegrityError:
            versions, errors = self._set_each(session, updates, rows, atomic)
        else:
            errors = {}
        self._prune_if_due(session, [update for update in updates if update.name in versions])
        return versions, errors

    def _set_each(
        self, session: int, updates: Sequence[Update], rows: Sequence[Row], atomic: bool
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]:
        """Set variables one by one, to find out which are refused."""
        errors: dict[str, SnakepitError] = {}

        def set_each(connection: sqlite3.Connection) -> dict[str, int]:
            errors.clear()
            for update, row in zip(updates, rows, strict=True):
                try:
                    connection.execute(_INSERT_VALUE, row)
                except sqlite3.IntegrityError:
                    errors[update.name] = _refusal_error(connection, session, update)
            if atomic and errors:
                raise _RolledBack
            good = [update for update in updates if update.name not in errors]
            return _versions(connection, session, good)

        try:
            return self._database.transaction(set_each), errors
        except _RolledBack:
            return {}, errors

    def _refusal_error(self, session: int, update: Update) -> SnakepitError:
        return self._database.transaction(
            lambda connection: _refusal_error(connection, session, update)
        )

    def _prune_if_due(self, session: int, updates: Sequence[Update]) -> None:
        """Prune the histories of variables for which enough was written since the last time."""
        written = self._written_since_prune
        for update in updates:
            count, size_bytes = written.get(update.id, (0, 0))
            count, size_bytes = count + 1, size_bytes + len(update.value)
            if count < PRUNE_AFTER_VERSIONS and size_bytes < PRUNE_AFTER_BYTES:
                written[update.id] = count, size_bytes
                continue
            written.pop(update.id, None)
            cut = partial(_prune, session, update.id, size_bytes >= PRUNE_AFTER_BYTES)
            with contextlib.suppress(StoreError):  # the values are written; prune next time
                self._database.transaction(cut)

    def delete(self, session: int, variables: Mapping[int, str], source: str) -> list[str]:
        """Delete variables and their history; return the names of those that existed.

        Raises
        ------
        VariableLocked
            One of them must not be changed; none was deleted.
        """
        now = time.time()

        def delete(connection: sqlite3.Connection) -> list[str]:
            deleted = []
            for variable, name in variables.items():
                rows = connection.execute(
                    "SELECT version, locked FROM variables WHERE id = ? AND session = ?",
                    (variable, session),
                ).fetchall()
                if not rows:
                    continue
                version, locked = rows[0]
                if locked is not None:
                    raise VariableLocked(name, locked)
                change = (None, session, variable, name, "deleted", version + 1, None, source, now)
                connection.execute(_INSERT_CHANGE, change)
                _delete_past(connection, _PAST_OF_ONE, (variable, session))
                connection.execute("DELETE FROM variables WHERE id = ?", (variable,))
                deleted.append(name)
            return deleted

        return self._database.transaction(delete)

    def lock(self, session: int, variable: int, reason: str | None) -> bool:
        """Lock a variable with a reason, or unlock it with None; return whether that changed it.

        A locked variable is not locked again.
        """
        condition = "locked IS NULL" if reason is not None else "locked IS NOT NULL"
        update = f"UPDATE variables SET locked = ? WHERE id = ? AND session = ? AND {condition}"  # noqa: S608 - constants
        return self._database.write(update, (reason, variable, session)) > 0

    def describe(self, session: int, variable: int, description: str, metadata: str) -> bool:
        """Change the description and metadata of a variable; return whether it exists."""
        update = "UPDATE variables SET description = ?, metadata = ? WHERE id = ? AND session = ?"
        return self._database.write(update, (description, metadata, variable, session)) > 0

    def sweep(self) -> None:
        """Remove the records of old deletions."""
        over = (time.time() - TOMBSTONE_SECONDS,)
        where = "value IS NULL AND time < ? AND revision < (SELECT max(revision) FROM changes)"
        if self._read(f"SELECT 1 FROM changes WHERE {where} LIMIT 1", over):  # noqa: S608 - constants
            self._database.write(f"DELETE FROM changes WHERE {where}", over)  # noqa: S608 - constants


def forget_session(connection: sqlite3.Connection, session: int) -> None:
    """Delete the histories of all variables of a session, and record that for watchers.

    The variables themselves are deleted with the row of the session.
    """
    gone = (None, session, 0, "", "deleted", 0, None, "", time.time())
    connection.execute(_INSERT_CHANGE, gone)  # first: the highest revision must not be reused
    _delete_past(connection, _PAST_OF_ALL, (session,))


def _delete_past(connection: sqlite3.Connection, past: str, parameters: tuple[int, ...]) -> None:
    delete = f"{past} DELETE FROM changes WHERE revision IN (SELECT revision FROM past)"  # noqa: S608 - constants
    connection.execute(delete, parameters)


class _RolledBack(Exception):
    """Raised to roll back a transaction."""


class VariableDiffers(Exception):
    """A variable to be added exists with another type or constraints.

    Attributes
    ----------
    name
        Its name.
    type, constraints
        Those of the existing variable.
    """

    def __init__(self, name: str, type_name: str, constraints: str) -> None:
        super().__init__(name, type_name, constraints)
        self.name = name
        self.type = type_name
        self.constraints = constraints


def _parameters(session: int, update: Update, source: str) -> Row:
    return (
        *(update.id, session, update.kind, update.value, source),
        *(time.time(), update.version),
    )


def _versions(
    connection: sqlite3.Connection, session: int, updates: Sequence[Update]
) -> dict[str, int]:
    versions: dict[str, int] = {}
    for begin in range(0, len(updates), _MAX_PARAMETERS):
        part = [update.id for update in updates[begin : begin + _MAX_PARAMETERS]]
        select = (
            "SELECT name, version FROM variables WHERE session = ?"  # noqa: S608 - constants
            f" AND id IN ({', '.join('?' * len(part))})"
        )
        versions |= connection.execute(select, (session, *part)).fetchall()
    return versions


def _prune(session: int, variable: int, is_large: bool, connection: sqlite3.Connection) -> None:
    """Delete the oldest values of a variable."""
    connection.execute(_PRUNE, (variable, session, HISTORY_VERSIONS))
    if is_large:
        _prune_to_size(connection, session, variable)


def _prune_to_size(connection: sqlite3.Connection, session: int, variable: int) -> None:
    """Delete the oldest values of a variable that exceed the size limit."""
    sizes = connection.execute(
        f"{_PAST_OF_ONE} SELECT c.revision, length(c.value) FROM changes c JOIN past p"  # noqa: S608 - constants
        " ON c.revision = p.revision ORDER BY c.revision DESC",
        (variable, session),
    ).fetchall()
    total_bytes = 0
    for count, (_, size_bytes) in enumerate(sizes):
        total_bytes += size_bytes
        if count >= 2 and total_bytes > HISTORY_BYTES:
            over = [(revision,) for revision, _ in sizes[count:]]
            connection.executemany("DELETE FROM changes WHERE revision = ?", over)
            return


def _refusal_error(connection: sqlite3.Connection, session: int, update: Update) -> SnakepitError:
    rows = connection.execute(
        "SELECT version, locked FROM variables WHERE id = ? AND session = ?",
        (update.id, session),
    ).fetchall()
    if not rows:
        return VariableNotFound(update.name)
    version, locked = rows[0]
    if locked is not None:
        return VariableLocked(update.name, locked)
    if update.version is None:  # it was unlocked at this moment
        return VersionConflict(update.name, version, version)
    return VersionConflict(update.name, update.version, version)


def _is_possible_key(key: Key) -> bool:
    """Whether a name or id is possible: the database accepts no other."""
    if isinstance(key, int):
        return 0 <= key < 1 << 63
    return key.isascii()


def _variable(row: Sequence[Any]) -> VariableRow:
    return VariableRow(**dict(zip(VariableRow.__slots__, row, strict=True)))


def _change(row: Sequence[Any]) -> ChangeRow:
    return ChangeRow(**dict(zip(ChangeRow.__slots__, row, strict=True)))
