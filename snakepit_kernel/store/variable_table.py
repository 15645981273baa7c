"""The rows of variables. Values are bytes here; what they mean is for others to know."""

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

Kind = Literal["registered", "updated", "deleted", "rolled back"]
Key = str | int
"""A variable's name, or its id."""

HISTORY_VERSIONS = 100
"""Values of a variable that are kept, the present one included."""

HISTORY_BYTES = 8 * 1024 * 1024
"""What they may take together; the present one and the one before are kept in any case."""

PRUNE_AFTER_VERSIONS = 100
PRUNE_AFTER_BYTES = HISTORY_BYTES // 4
"""What one process writes of a variable before it cuts the history."""

TOMBSTONE_SECONDS = 3600.0
"""Time for which it is remembered that a variable was deleted, for those who watch."""

_MANY = 500
"""Parameters that one statement may have, with room to spare below every limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VariableRow:
    """A variable as it is written down.

    Attributes
    ----------
    id
        Never used again.
    name, type, description
        As they were registered.
    constraints, metadata
        JSON.
    created, updated
        Seconds since the epoch.
    version
        Counts its values, from 1.
    locked
        Why it must not be changed; None when it may.
    value
        Its value.
    source
        Who set that.
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

    def is_the_same_as(self, type_name: str, constraints: str) -> bool:
        """Whether what is there already is what is to be added."""
        if self.type != type_name or self.constraints == constraints:
            return self.type == type_name
        try:
            return bool(json.loads(self.constraints) == json.loads(constraints))
        except (ValueError, RecursionError):  # damaged
            return False


class Update(NamedTuple):
    """A new value for a variable; a tuple, which is made five times faster than a dataclass.

    Attributes
    ----------
    id, name
        Which it is. The id stands for its type and constraints, too: these never change.
    value
        The value.
    version
        The version that the variable must have; None for any.
    kind
        What is remembered of the change.
    """

    id: int
    name: str
    value: bytes
    version: int | None = None
    kind: Kind = "updated"


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
        The value since then; None when it was deleted.
    type
        Type of the variable; empty when that was deleted since.
    """

    revision: int
    variable: int
    name: str
    kind: Kind
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
_CUT = (
    f"{_PAST_OF_ONE} DELETE FROM changes WHERE revision IN"  # noqa: S608 - constants
    " (SELECT revision FROM past ORDER BY revision DESC LIMIT 1000000 OFFSET ?)"
)
_ADD = (
    "INSERT INTO changes (previous, session, variable, name, kind, version, value, source, time)"
    " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_WRITE = (
    "INSERT INTO writes (variable, session, kind, value, source, time, expected)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)


class VariableTable:
    """Variables in a database.

    Every method takes the number of a session first; nothing reaches beyond that session.

    Parameters
    ----------
    database
        Where they are.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._read = database.read
        self._written: dict[int, tuple[int, int]] = {}  # since the history was cut

    # -- reading -------------------------------------------------------------------------------

    def value(self, session: int, name: str) -> tuple[bytes, str] | None:
        """Return value and type of a variable, or None when there is none of that name."""
        try:
            rows = self._read(_VALUE_BY_NAME, (session, name))
        except UnicodeEncodeError:  # half of a pair of surrogates
            return None
        return rows[0] if rows else None

    def find(self, session: int, keys: Sequence[Key]) -> list[VariableRow]:
        """Return variables by name or id, oldest first; what does not exist is missing."""
        found: list[VariableRow] = []
        for kind, column in ((str, "name"), (int, "id")):
            wanted = [key for key in keys if isinstance(key, kind) and _can_be(key)]
            for begin in range(0, len(wanted), _MANY):
                part = wanted[begin : begin + _MANY]
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
        return _can_be(key) and bool(self._read(select, (session, key)))

    def count(self, session: int) -> int:
        """Return how many there are."""
        select = "SELECT count(*) FROM variables WHERE session = ?"
        return int(self._read(select, (session,))[0][0])

    def sizes(self, session: int) -> list[tuple[str, int, float, int]]:
        """Return type, version, time of registration and size of each variable."""
        select = "SELECT type, version, created, size FROM variables WHERE session = ?"
        return self._read(select, (session,))

    def history(self, session: int, variable: int) -> list[ChangeRow]:
        """Return the values that a variable had, the present one last."""
        select = (
            f"{_PAST_OF_ONE} {_CHANGES}"  # noqa: S608 - constants
            " WHERE c.revision IN (SELECT revision FROM past) ORDER BY c.revision"
        )
        return [_change(row) for row in self._read(select, (variable, session))]

    def revision(self) -> int:
        """Return the number of the last change of all."""
        select = "SELECT max(revision) FROM changes"
        return int(self._read(select)[0][0] or 0)

    def changes(self, session: int, after: int, limit: int) -> list[ChangeRow]:
        """Return the changes of a session behind a revision, in their order."""
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
        """Add variables, all or none; return the ids of those that were not there already.

        Parameters
        ----------
        session, variables, source
            What is added, where, and by whom.
        updates
            New values of other variables, which are part of the same transaction.

        Raises
        ------
        VariableDiffers
            One of them is there as something else; nothing was changed.
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
                    cursor = connection.execute(_ADD, (*change, new.value, source, now))
                    connection.execute(
                        "UPDATE variables SET revision = ? WHERE id = ?",
                        (cursor.lastrowid, made[0][0]),
                    )
                    continue
                for found in connection.execute(present, (session, new.name)).fetchall():
                    if not new.is_the_same_as(*found):
                        raise VariableDiffers(new.name, *found)
            for update in updates:
                try:
                    connection.execute(_WRITE, _parameters(session, update, source))
                except sqlite3.IntegrityError:
                    raise _why_not(connection, session, update) from None
            return added

        return self._database.transaction(add)

    def set(self, session: int, update: Update, source: str) -> None:
        """Give a variable a value.

        Raises
        ------
        VariableNotFound, VariableLocked, VersionConflict
            It cannot have that; nothing was changed.
        """
        try:
            self._database.write(_WRITE, _parameters(session, update, source))
        except sqlite3.IntegrityError:
            raise self._why_not(session, update) from None
        self._note(session, [update])

    def set_many(
        self, session: int, updates: Sequence[Update], source: str, *, atomic: bool
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]:
        """Give variables values in one transaction; return new versions, and what went wrong.

        Parameters
        ----------
        session, updates, source
            As for `set`.
        atomic
            Whether nothing is done when something goes wrong.
        """
        rows = [_parameters(session, update, source) for update in updates]

        def set_all(connection: sqlite3.Connection) -> dict[str, int]:
            connection.executemany(_WRITE, rows)
            return _versions(connection, session, updates)

        try:
            versions = self._database.transaction(set_all)
        except sqlite3.IntegrityError:
            versions, errors = self._set_each(session, updates, rows, atomic)
        else:
            errors = {}
        self._note(session, [update for update in updates if update.name in versions])
        return versions, errors

    def _set_each(
        self, session: int, updates: Sequence[Update], rows: Sequence[Row], atomic: bool
    ) -> tuple[dict[str, int], dict[str, SnakepitError]]:
        """Do that one by one, to see what goes wrong."""
        errors: dict[str, SnakepitError] = {}

        def set_each(connection: sqlite3.Connection) -> dict[str, int]:
            errors.clear()
            for update, row in zip(updates, rows, strict=True):
                try:
                    connection.execute(_WRITE, row)
                except sqlite3.IntegrityError:
                    errors[update.name] = _why_not(connection, session, update)
            if atomic and errors:
                raise _Undone
            good = [update for update in updates if update.name not in errors]
            return _versions(connection, session, good)

        try:
            return self._database.transaction(set_each), errors
        except _Undone:
            return {}, errors

    def _why_not(self, session: int, update: Update) -> SnakepitError:
        return self._database.transaction(lambda connection: _why_not(connection, session, update))

    def _note(self, session: int, updates: Sequence[Update]) -> None:
        """Cut the history of variables, once in a while."""
        written = self._written
        for update in updates:
            count, size_bytes = written.get(update.id, (0, 0))
            count, size_bytes = count + 1, size_bytes + len(update.value)
            if count < PRUNE_AFTER_VERSIONS and size_bytes < PRUNE_AFTER_BYTES:
                written[update.id] = count, size_bytes
                continue
            written.pop(update.id, None)
            cut = partial(_cut, session, update.id, size_bytes >= PRUNE_AFTER_BYTES)
            with contextlib.suppress(StoreError):  # what was to be written is; cut it next time
                self._database.transaction(cut)

    def delete(self, session: int, variables: Mapping[int, str], source: str) -> list[str]:
        """Delete variables and their past; return the names of those that were there.

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
                connection.execute(_ADD, change)
                _forget(connection, _PAST_OF_ONE, (variable, session))
                connection.execute("DELETE FROM variables WHERE id = ?", (variable,))
                deleted.append(name)
            return deleted

        return self._database.transaction(delete)

    def lock(self, session: int, variable: int, reason: str | None) -> bool:
        """Refuse changes of a variable for a reason, None to allow them; say whether it was so.

        A variable that is locked is not locked again.
        """
        condition = "locked IS NULL" if reason is not None else "locked IS NOT NULL"
        update = f"UPDATE variables SET locked = ? WHERE id = ? AND session = ? AND {condition}"  # noqa: S608 - constants
        return self._database.write(update, (reason, variable, session)) > 0

    def describe(self, session: int, variable: int, description: str, metadata: str) -> bool:
        """Change what people wrote about a variable; say whether it is there."""
        update = "UPDATE variables SET description = ?, metadata = ? WHERE id = ? AND session = ?"
        return self._database.write(update, (description, metadata, variable, session)) > 0

    def sweep(self) -> None:
        """Forget what was deleted long ago."""
        over = (time.time() - TOMBSTONE_SECONDS,)
        where = "value IS NULL AND time < ? AND revision < (SELECT max(revision) FROM changes)"
        if self._read(f"SELECT 1 FROM changes WHERE {where} LIMIT 1", over):  # noqa: S608 - constants
            self._database.write(f"DELETE FROM changes WHERE {where}", over)  # noqa: S608 - constants


def forget_session(connection: sqlite3.Connection, session: int) -> None:
    """Delete the values of all variables of a session, the past ones too, and tell watchers.

    The variables themselves go with the row of the session.
    """
    gone = (None, session, 0, "", "deleted", 0, None, "", time.time())
    connection.execute(_ADD, gone)  # first: the highest revision must not be used again
    _forget(connection, _PAST_OF_ALL, (session,))


def _forget(connection: sqlite3.Connection, past: str, parameters: tuple[int, ...]) -> None:
    delete = f"{past} DELETE FROM changes WHERE revision IN (SELECT revision FROM past)"  # noqa: S608 - constants
    connection.execute(delete, parameters)


class _Undone(Exception):
    """Nothing of a transaction is to be done."""


class VariableDiffers(Exception):
    """A variable that is to be added is there as something else.

    Attributes
    ----------
    name
        Its name.
    type, constraints
        What it is.
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
    for begin in range(0, len(updates), _MANY):
        part = [update.id for update in updates[begin : begin + _MANY]]
        select = (
            "SELECT name, version FROM variables WHERE session = ?"  # noqa: S608 - constants
            f" AND id IN ({', '.join('?' * len(part))})"
        )
        versions |= connection.execute(select, (session, *part)).fetchall()
    return versions


def _cut(session: int, variable: int, is_large: bool, connection: sqlite3.Connection) -> None:
    """Forget the oldest values of a variable."""
    connection.execute(_CUT, (variable, session, HISTORY_VERSIONS))
    if is_large:
        _cut_to_size(connection, session, variable)


def _cut_to_size(connection: sqlite3.Connection, session: int, variable: int) -> None:
    """Forget the oldest values of a variable that take too much together."""
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


def _why_not(connection: sqlite3.Connection, session: int, update: Update) -> SnakepitError:
    rows = connection.execute(
        "SELECT version, locked FROM variables WHERE id = ? AND session = ?",
        (update.id, session),
    ).fetchall()
    if not rows:
        return VariableNotFound(update.name)
    version, locked = rows[0]
    if locked is not None:
        return VariableLocked(update.name, locked)
    if update.version is None:  # it was unlocked in this moment
        return VersionConflict(update.name, version, version)
    return VersionConflict(update.name, update.version, version)


def _can_be(key: Key) -> bool:
    """Whether there can be such a name or id: the database takes no other."""
    if isinstance(key, int):
        return 0 <= key < 1 << 63
    return key.isascii()


def _variable(row: Sequence[Any]) -> VariableRow:
    return VariableRow(**dict(zip(VariableRow.__slots__, row, strict=True)))


def _change(row: Sequence[Any]) -> ChangeRow:
    return ChangeRow(**dict(zip(ChangeRow.__slots__, row, strict=True)))
