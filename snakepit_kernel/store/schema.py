"""The schema of the sessions' database, and its migrations.

A value is stored once, in the row of ``changes`` that set it. A variable refers to the row of its
present value, and each row to the one before it: that chain is the history, and needs no index,
which would cost each write another page. ``revision`` grows with each change of any session and is
never reused, so a watcher can continue where it was: the row with the highest revision is never
deleted before there is a higher one.

A new value is inserted into ``writes``: one statement, and so one transaction, that checks the
version and the lock, and adds to the history.
"""

from __future__ import annotations

import sqlite3
from typing import Final

GLOBAL: Final = 0
"""Number of the pseudo-session that owns the global programs."""

_NOW: Final = (
    "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER) * 1000 + abs(random() % 1000)"
)

_FIRST = (
    """
    CREATE TABLE sessions (
        number  INTEGER PRIMARY KEY AUTOINCREMENT,
        id      TEXT NOT NULL UNIQUE,
        created REAL NOT NULL,
        used    REAL NOT NULL,
        ttl     REAL,
        expires REAL
    ) STRICT
    """,
    "CREATE INDEX sessions_expire ON sessions (expires)",
    """
    CREATE TABLE totals (
        name  TEXT PRIMARY KEY,
        count INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE metadata (
        session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
        name    TEXT NOT NULL,
        value   BLOB NOT NULL,
        PRIMARY KEY (session, name)
    ) STRICT
    """,
    """
    CREATE TABLE host_tools (
        session INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
        name    TEXT NOT NULL,
        PRIMARY KEY (session, name)
    ) STRICT
    """,
    """
    CREATE TABLE variables (
        id          INTEGER PRIMARY KEY AUTOINCREMENT,
        session     INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
        name        TEXT NOT NULL,
        type        TEXT NOT NULL,
        constraints TEXT NOT NULL,
        description TEXT NOT NULL,
        metadata    TEXT NOT NULL,
        created     REAL NOT NULL,
        version     INTEGER NOT NULL,
        revision    INTEGER NOT NULL,
        size        INTEGER NOT NULL,
        locked      TEXT,
        UNIQUE (session, name)
    ) STRICT
    """,
    """
    CREATE TABLE changes (
        revision INTEGER PRIMARY KEY,
        previous INTEGER,
        session  INTEGER NOT NULL,
        variable INTEGER NOT NULL,
        name     TEXT NOT NULL,
        kind     TEXT NOT NULL,
        version  INTEGER NOT NULL,
        value    BLOB,
        source   TEXT NOT NULL,
        time     REAL NOT NULL
    ) STRICT
    """,
    "CREATE INDEX tombstones ON changes (time) WHERE value IS NULL",
    """
    CREATE VIEW writes AS
        SELECT id AS variable, session, '' AS kind, x'' AS value, '' AS source, 0.0 AS time,
            version AS expected
        FROM variables
    """,
    """
    CREATE TRIGGER write_value INSTEAD OF INSERT ON writes BEGIN
        INSERT INTO changes (previous, session, variable, name, kind, version, value, source, time)
            SELECT revision, session, id, name, new.kind, version + 1, new.value, new.source,
                new.time
            FROM variables
            WHERE id = new.variable AND session = new.session AND locked IS NULL
                AND (new.expected IS NULL OR new.expected = version);
        SELECT raise(FAIL, 'refused') WHERE changes() = 0;
        UPDATE variables
            SET version = version + 1, revision = last_insert_rowid(), size = length(new.value)
            WHERE id = new.variable;
    END
    """,
    """
    CREATE TABLE programs (
        session  INTEGER NOT NULL REFERENCES sessions (number) ON DELETE CASCADE,
        name     TEXT NOT NULL,
        version  INTEGER NOT NULL,
        size     INTEGER NOT NULL,
        checksum TEXT NOT NULL,
        value    BLOB,
        file     TEXT,
        metadata TEXT NOT NULL,
        source   TEXT NOT NULL,
        created  REAL NOT NULL,
        updated  REAL NOT NULL,
        ttl      REAL,
        expires  REAL,
        PRIMARY KEY (session, name)
    ) STRICT
    """,
    "CREATE INDEX programs_expire ON programs (expires)",
    f"INSERT INTO sessions (number, id, created, used) VALUES ({GLOBAL}, '', 0, 0)",  # noqa: S608 - constants
    "INSERT INTO totals (name, count) VALUES ('sessions', 0)",
    # Numbers of sessions and revisions start from the clock. Otherwise, when the file is lost and
    # created again, the handle of an old session would refer to a new one with the same number.
    f"UPDATE sqlite_sequence SET seq = {_NOW} WHERE name = 'sessions'",  # noqa: S608 - constants
    f"""
    INSERT INTO changes (revision, session, variable, name, kind, version, source, time)
        VALUES ({_NOW}, {GLOBAL}, 0, '', 'deleted', 0, '', 0)
    """,  # noqa: S608 - constants
)

RESTORE_CONSISTENCY: Final = (
    """
    UPDATE variables SET (revision, version, size) =
            (SELECT revision, version, length(value) FROM changes
            WHERE variable = variables.id AND value IS NOT NULL ORDER BY revision DESC LIMIT 1)
        WHERE revision NOT IN (SELECT revision FROM changes)
            AND id IN (SELECT variable FROM changes WHERE value IS NOT NULL)
    """,
    "DELETE FROM variables WHERE revision NOT IN (SELECT revision FROM changes)",
    """
    DELETE FROM changes
        WHERE value IS NOT NULL AND variable NOT IN (SELECT id FROM variables)
    """,
    f"""
    UPDATE totals SET count = (SELECT count(*) FROM sessions WHERE number <> {GLOBAL})
        WHERE name = 'sessions'
    """,  # noqa: S608 - constants
)
"""Statements that make rescued rows consistent: a variable gets the last value that is left of it,
and no value is without a variable."""

_MAJOR = 1000

_SHELLS = (
    """
    CREATE TABLE IF NOT EXISTS shells (
        session INTEGER PRIMARY KEY REFERENCES sessions (number) ON DELETE CASCADE,
        state   BLOB NOT NULL,
        time    REAL NOT NULL
    ) STRICT
    """,
)

_NOTEBOOKS = (
    """
    CREATE TABLE IF NOT EXISTS notebooks (
        session TEXT PRIMARY KEY,
        path    TEXT NOT NULL,
        inode   INTEGER NOT NULL,
        born    REAL NOT NULL,
        cells   TEXT NOT NULL,
        kernel  TEXT NOT NULL,
        seen    REAL NOT NULL
    ) STRICT
    """,
)

MIGRATIONS: Final[dict[int, tuple[str, ...]]] = {
    1 * _MAJOR: _FIRST,
    1 * _MAJOR + 1: _SHELLS,
    1 * _MAJOR + 2: _NOTEBOOKS,
}
"""Statements by the version that they migrate to. A version of the same thousand can be used by
programs that know only an earlier one of it: it has only added something."""

VERSION: Final = max(MIGRATIONS)


def build(connection: sqlite3.Connection, found: int = 0) -> None:
    """Create the tables, or migrate those of an earlier version."""
    for number, statements in MIGRATIONS.items():
        if number > found:
            for statement in statements:
                connection.execute(statement)


def is_compatible(version: int) -> bool:
    """Whether this program can use a file of a version."""
    return version // _MAJOR <= VERSION // _MAJOR


def is_plausible(version: int) -> bool:
    """Whether a near-future release may write such a version; else the number is damaged."""
    return 0 <= version // _MAJOR - VERSION // _MAJOR < 3
