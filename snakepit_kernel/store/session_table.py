"""The table of sessions: their expiry, metadata and host tools."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import QuotaExceeded, SessionNotFound, StoreError
from .database import Database, Row
from .recovery import DamagedDatabase
from .schema import GLOBAL
from .variable_table import forget_session

TTL_SLACK = 0.05
"""Part of a time to live by which a session may live longer, so that not each use is written."""

LONG_TTL, EMPTY_TTL = 86400.0, 2 * TTL_SLACK
"""Time to live in seconds from which on an empty session does not get all of it, and the part that
it gets. Of a session in use, the time of the last use is late by less than that."""

MAX_OPEN_ATTEMPTS = 1000
"""Attempts to open a session that others create and delete at the same time."""

SWEEP_BATCH = 200
"""Sessions that one transaction deletes, so that other writers get their turn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionRow:
    """The row of a session.

    Attributes
    ----------
    number
        Never reused: a later session of the same name has another one.
    id
        Its name.
    created, used
        Seconds since the epoch; ``used`` is late by at most a twentieth of ``ttl``.
    ttl
        Seconds that it lives without being used; None for no limit.
    expires
        Seconds since the epoch at which it expires unless it is used; None for never.
    """

    number: int
    id: str
    created: float
    used: float
    ttl: float | None
    expires: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSummary:
    """A session in a list.

    Attributes
    ----------
    session
        The session.
    variables, programs
        Number of its variables and programs.
    size_bytes
        Total size of their present values.
    """

    session: SessionRow
    variables: int
    programs: int
    size_bytes: int


_COLUMNS = "number, id, created, used, ttl, expires"


class SessionTable:
    """The table of sessions.

    Parameters
    ----------
    database
        The database.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    def find(self, session_id: str) -> SessionRow | None:
        """Return a session, or None if it does not exist or has expired."""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM sessions WHERE id = ? AND number <> {GLOBAL}",  # noqa: S608 - constants
            (session_id,),
        )
        row = _session(rows[0]) if rows else None
        return row if row is not None and not _is_over(row, time.time()) else None

    def open(
        self, session_id: str, *, ttl: float | None, change_ttl: bool, max_sessions: int
    ) -> tuple[SessionRow, bool]:
        """Return a session, created if there is none, and whether it was created.

        Parameters
        ----------
        session_id
            Its name.
        ttl
            Seconds that it lives without being used; None for no limit.
        change_ttl
            Whether to change that of an existing session, too.
        max_sessions
            Maximum number of sessions. An existing one can always be opened.

        Raises
        ------
        QuotaExceeded
            The maximum number of sessions is reached.
        """
        self._database.refresh()
        for _ in range(MAX_OPEN_ATTEMPTS):
            found = self.find(session_id)
            if found is None:
                made = self._create(session_id, ttl, max_sessions)
                if made is not None:
                    return made, True
                continue  # another process was faster
            with contextlib.suppress(SessionNotFound):  # it ended at this moment
                if change_ttl and found.ttl != ttl:
                    return self._change_ttl(found, ttl), False
                return self.touch(found), False
        raise StoreError(
            str(self._database.path),
            f"session {session_id!r} is there and is not there: the file is damaged",
            "use another name, and see what snakepit doctor says",
        )

    def _create(self, session_id: str, ttl: float | None, max_sessions: int) -> SessionRow | None:
        """Add a session; return None when it exists already."""
        now = time.time()
        expires = None if ttl is None else now + ttl * (1 + TTL_SLACK)

        def make(connection: sqlite3.Connection) -> SessionRow | None:
            select = f"SELECT {_COLUMNS} FROM sessions WHERE id = ?"  # noqa: S608 - constants
            rows = connection.execute(select, (session_id,)).fetchall()
            if rows and not _is_over(_session(rows[0]), now):
                return None
            if rows:
                _delete(connection, [rows[0][0]])
                _count_one(connection, None)
            elif not _count_one(connection, max_sessions):
                _delete(connection, _expired(connection, now))  # those not swept yet
                if not _count_one(connection, max_sessions):
                    raise QuotaExceeded("sessions", max_sessions, "delete some, or let them expire")
            insert = "INSERT INTO sessions (id, created, used, ttl, expires) VALUES (?, ?, ?, ?, ?)"
            try:
                (made,) = connection.execute(
                    f"{insert} RETURNING {_COLUMNS}", (session_id, now, now, ttl, expires)
                ).fetchall()
            except sqlite3.IntegrityError as error:  # though no session of that name was found
                raise DamagedDatabase(str(error)) from error
            return _session(made)

        return self._database.transaction(make)

    def touch(self, row: SessionRow) -> SessionRow:
        """Refresh the expiry of a session, if that is due; return its present row.

        Raises
        ------
        SessionNotFound
            It has expired, or was deleted.
        """
        now = time.time()
        if row.ttl is None or now - row.used < row.ttl * TTL_SLACK:
            return row
        update = (
            f"UPDATE sessions SET used = ?, expires = ? + ttl * {1 + TTL_SLACK}"  # noqa: S608 - constants
            f" WHERE number = ? AND (expires IS NULL OR expires > ?) RETURNING {_COLUMNS}"
        )
        return self._update(row, update, (now, now, row.number, now))

    def _change_ttl(self, row: SessionRow, ttl: float | None) -> SessionRow:
        now = time.time()
        expires = None if ttl is None else now + ttl * (1 + TTL_SLACK)
        update = (
            "UPDATE sessions SET used = ?, ttl = ?, expires = ?"  # noqa: S608 - constants
            f" WHERE number = ? RETURNING {_COLUMNS}"
        )
        return self._update(row, update, (now, ttl, expires, row.number))

    def _update(self, row: SessionRow, update: str, parameters: Sequence[object]) -> SessionRow:
        updated = self._database.transaction(
            lambda connection: connection.execute(update, parameters).fetchall()
        )
        if not updated:
            raise SessionNotFound(row.id)
        return _session(updated[0])

    def reload(self, row: SessionRow) -> SessionRow:
        """Return the present row of a session.

        Raises
        ------
        SessionNotFound
            It has expired, or was deleted.
        """
        select = f"SELECT {_COLUMNS} FROM sessions WHERE number = ?"  # noqa: S608 - constants
        rows = [_session(found) for found in self._database.read(select, (row.number,))]
        if not rows or _is_over(rows[0], time.time()):
            raise SessionNotFound(row.id)
        return rows[0]

    def exists(self, number: int) -> bool:
        """Whether a session still exists and has not expired."""
        rows = self._database.read("SELECT expires FROM sessions WHERE number = ?", (number,))
        return bool(rows) and (rows[0][0] is None or rows[0][0] > time.time())

    def delete(self, number: int) -> bool:
        """Delete a session and everything in it; return whether it existed."""
        return self._database.transaction(lambda connection: _delete(connection, [number])) > 0

    def has_content(self, number: int) -> bool:
        """Whether anything is kept with a session."""
        select = f"SELECT 1 FROM sessions WHERE number = ? AND {_HAS_CONTENT}"  # noqa: S608 - constants
        return bool(self._database.read(select, (number,)))

    def delete_if_empty(self, session_id: str) -> bool:
        """Delete a session if nothing is kept with it; return whether that was so."""
        select = f"SELECT number FROM sessions WHERE id = ? AND NOT {_HAS_CONTENT}"  # noqa: S608 - constants

        def delete(connection: sqlite3.Connection) -> int:
            empty = connection.execute(select, (session_id,)).fetchall()
            return _delete(connection, [number for (number,) in empty])

        return self._database.transaction(delete) > 0

    def expired(self) -> list[SessionRow]:
        """Return the expired sessions that were not deleted yet."""
        select = f"SELECT {_COLUMNS} FROM sessions WHERE expires <= ?"  # noqa: S608 - constants
        return [_session(row) for row in self._database.read(select, (time.time(),))]

    def sweep(self) -> list[SessionRow]:
        """Delete the expired sessions, and those that have stayed empty; return them."""
        swept: list[SessionRow] = []
        select = f"SELECT {_COLUMNS} FROM sessions WHERE {_IS_OVER} LIMIT {SWEEP_BATCH}"  # noqa: S608 - constants

        def sweep(connection: sqlite3.Connection) -> list[Row]:
            now = time.time()
            over = connection.execute(select, (now, now)).fetchall()
            _delete(connection, [row[0] for row in over])
            return over

        while rows := self._database.read(select, (now := time.time(), now)):
            swept += map(_session, self._database.transaction(sweep))
            if len(rows) < SWEEP_BATCH:
                break
        return swept

    def all(self) -> list[SessionSummary]:
        """Return every session that has not expired, the most recently used first."""
        pages = self._database.read_paged(_SUMMARIES, (time.time(),))
        return [
            SessionSummary(
                session=_session(row[:6]),
                variables=row[6],
                programs=row[8],
                size_bytes=row[7] + row[9],
            )
            for page in pages
            for row in page
        ]

    def count(self) -> int:
        """Return the number of sessions, including expired ones that were not swept yet."""
        return int(self._database.read("SELECT count FROM totals WHERE name = 'sessions'")[0][0])

    # -- metadata ------------------------------------------------------------------------------

    def metadata(self, number: int) -> list[tuple[str, bytes]]:
        """Return the metadata of a session, as names and values."""
        select = "SELECT name, value FROM metadata WHERE session = ? ORDER BY name"
        return [(name, value) for name, value in self._database.read(select, (number,))]

    def set_metadata(self, number: int, name: str, value: bytes) -> bool:
        """Set a metadata value of a session; return False if the session is gone."""
        insert = (
            "INSERT INTO metadata (session, name, value)"
            " SELECT number, ?, ? FROM sessions WHERE number = ?"
            " ON CONFLICT (session, name) DO UPDATE SET value = excluded.value"
        )
        return self._database.write(insert, (name, value, number)) > 0

    def delete_metadata(self, number: int, name: str) -> bool:
        """Delete a metadata value; return whether it existed."""
        delete = "DELETE FROM metadata WHERE session = ? AND name = ?"
        return self._database.write(delete, (number, name)) > 0

    # -- host tools ----------------------------------------------------------------------------

    def shell_state(self, number: int) -> bytes:
        """Return what is kept of a session's shell; empty for nothing."""
        rows = self._database.read("SELECT state FROM shells WHERE session = ?", (number,))
        return bytes(rows[0][0]) if rows else b""

    def set_shell_state(self, number: int, state: bytes) -> None:
        """Keep the state of a session's shell, if the session still exists."""
        self._database.write(
            "INSERT OR REPLACE INTO shells (session, state, time)"
            " SELECT number, ?, ? FROM sessions WHERE number = ?",
            (state, time.time(), number),
        )

    def host_tools(self, number: int) -> list[str]:
        """Return the names of the host tools that a session had, also in an earlier kernel."""
        select = "SELECT name FROM host_tools WHERE session = ? ORDER BY name"
        return [name for (name,) in self._database.read(select, (number,))]

    def add_host_tool(self, number: int, name: str) -> None:
        """Store that a session has a host tool."""
        insert = (
            "INSERT INTO host_tools (session, name) SELECT number, ? FROM sessions"
            " WHERE number = ? ON CONFLICT (session, name) DO NOTHING"
        )
        self._database.write(insert, (name, number))


_PARTS = (
    f"EXISTS (SELECT 1 FROM {table} c WHERE c.session = sessions.number)"  # noqa: S608 - constants
    for table in ("variables", "programs", "metadata", "host_tools", "shells")
)
_HAS_CONTENT = f"({' OR '.join(_PARTS)})"

_IS_OVER = (
    f"expires <= ? OR (ttl >= {LONG_TTL} AND used < ? - ttl * {EMPTY_TTL}"
    f" AND number <> {GLOBAL} AND NOT {_HAS_CONTENT})"
)
"""Condition of a sweep, whose two parameters are the present time."""

_SUMMARIES = f"""
    SELECT {", ".join(f"s.{column}" for column in _COLUMNS.split(", "))},
        coalesce(v.count, 0), coalesce(v.size, 0), coalesce(p.count, 0), coalesce(p.size, 0)
    FROM sessions s
    LEFT JOIN (SELECT session, count(*) AS count, sum(size) AS size FROM variables
        GROUP BY session) v ON v.session = s.number
    LEFT JOIN (SELECT session, count(*) AS count, sum(size) AS size FROM programs
        GROUP BY session) p ON p.session = s.number
    WHERE s.number <> {GLOBAL} AND (s.expires IS NULL OR s.expires > ?)
    ORDER BY s.used DESC
"""  # noqa: S608 - constants


def _session(row: Sequence[object]) -> SessionRow:
    number, session_id, created, used, ttl, expires = row
    return SessionRow(
        number=number,  # type: ignore[arg-type]
        id=session_id,  # type: ignore[arg-type]
        created=created,  # type: ignore[arg-type]
        used=used,  # type: ignore[arg-type]
        ttl=ttl,  # type: ignore[arg-type]
        expires=expires,  # type: ignore[arg-type]
    )


def _is_over(row: SessionRow, now: float) -> bool:
    return row.expires is not None and row.expires <= now


def _count_one(connection: sqlite3.Connection, limit: int | None) -> bool:
    """Increment the number of sessions; return False if the limit is reached."""
    update = "UPDATE totals SET count = count + 1 WHERE name = 'sessions'"
    if limit is None:
        return connection.execute(update).rowcount > 0
    return connection.execute(f"{update} AND count < ?", (limit,)).rowcount > 0


def _expired(connection: sqlite3.Connection, now: float) -> list[int]:
    select = "SELECT number FROM sessions WHERE expires <= ?"
    return [number for (number,) in connection.execute(select, (now,))]


def _delete(connection: sqlite3.Connection, numbers: Sequence[int]) -> int:
    deleted = 0
    for number in numbers:
        forget_session(connection, number)
        deleted += connection.execute(
            f"DELETE FROM sessions WHERE number = ? AND number <> {GLOBAL}",  # noqa: S608 - constants
            (number,),
        ).rowcount
    if deleted:
        connection.execute(
            "UPDATE totals SET count = count - ? WHERE name = 'sessions'", (deleted,)
        )
    return deleted


def copy_session(connection: sqlite3.Connection, number: int, target: int) -> None:
    """Copy the variables, without history, and all else of a session to another one."""
    now = time.time()
    (last,) = connection.execute("SELECT max(revision) FROM changes").fetchone()
    connection.execute(
        "INSERT INTO variables (session, name, type, constraints, description, metadata,"
        " created, version, revision, size, locked) SELECT ?, name, type, constraints,"
        " description, metadata, ?, version, revision, size, NULL FROM variables"
        " WHERE session = ? ORDER BY id",
        (target, now, number),
    )
    connection.execute(
        "INSERT INTO changes (session, variable, name, kind, version, value, source, time)"
        " SELECT v.session, v.id, v.name, 'registered', v.version, c.value, c.source, ?"
        " FROM variables v JOIN changes c ON c.revision = v.revision WHERE v.session = ?"
        " ORDER BY v.id",
        (now, target),
    )
    copies = "SELECT revision, variable FROM changes WHERE revision > ?"
    connection.executemany(
        "UPDATE variables SET revision = ? WHERE id = ?",
        connection.execute(copies, (last or 0,)).fetchall(),
    )
    copied = (("metadata", "name, value"), ("host_tools", "name"), ("shells", "state, time"))
    for table, columns in copied:
        connection.execute(
            f"INSERT INTO {table} (session, {columns})"  # noqa: S608 - constants
            f" SELECT ?, {columns} FROM {table} WHERE session = ?",
            (target, number),
        )
