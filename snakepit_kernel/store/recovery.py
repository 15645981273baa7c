"""Detection of damaged database files, and their replacement."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ..files import check_file, create_file, open_file

LOCK_INTERVAL = 0.01
"""Seconds between attempts to lock the file."""


@contextlib.contextmanager
def locked(path: Path, kind: int, patience: float) -> Iterator[None]:
    """Hold a lock that processes share while they open a database, and hold alone to replace it.

    SQLite's own locks are in the file that is replaced: a process that still had the old one open
    would copy the log of the new one into it.

    Parameters
    ----------
    path
        The database.
    kind
        `fcntl.LOCK_SH` or `fcntl.LOCK_EX`.
    patience
        Seconds to wait for others.

    Raises
    ------
    TimeoutError
        Another process held the lock all the time.
    OSError
        It cannot be opened, or other users have access to it.
    """
    deadline = time.monotonic() + patience
    descriptor = open_file(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT)
    try:
        while True:
            try:
                fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process holds its lock") from None
                time.sleep(LOCK_INTERVAL)  # flock cannot wait for a limited time
        try:
            yield
        finally:  # after closing alone, a child that was forked meanwhile would still hold it
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def ensure_private(path: Path) -> None:
    """Check that a database and its other files are private; create it when it is missing.

    SQLite creates the other files, with the permissions of the database.

    Raises
    ------
    NotOurs
        One of them is not private, see `files.check_file`.
    OSError
        It cannot be created.
    """
    create_file(path)
    for suffix in ("-wal", "-shm", "-journal"):
        check_file(path.with_name(path.name + suffix))


class DamagedDatabase(sqlite3.DatabaseError):
    """A database is damaged, although SQLite has not noticed."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def may_be_damage(error: BaseException, path: Path) -> bool:
    """Whether an error may come from a damaged file, and not from its environment.

    Nearly every error can: a wrong byte in a schema looks like a column that does not exist, or
    gives a message that is not UTF-8. So the file is checked before it is replaced (`is_sound`).

    Parameters
    ----------
    error
        Error of SQLite or Python.
    path
        The database.
    """
    if isinstance(error, UnicodeDecodeError):
        return True
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # Python's own: a text that is not UTF-8
        return isinstance(error, sqlite3.OperationalError)
    if code == sqlite3.SQLITE_READONLY:  # it comes from the header if the file is writable
        return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)
    return code == sqlite3.SQLITE_IOERR_SHORT_READ or code & 0xFF not in _NO_DAMAGE


_NO_DAMAGE = {
    *(sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN),
    *(sqlite3.SQLITE_PERM, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_AUTH),
    *(sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL),
    *(sqlite3.SQLITE_MISUSE, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_RANGE),
}


def is_sound(connection: sqlite3.Connection, model: sqlite3.Connection) -> bool:
    """Whether a database is consistent, readable, and has all its tables.

    Parameters
    ----------
    connection
        Connection to the database.
    model
        Connection to an empty database with the same tables.
    """
    try:
        if connection.execute("PRAGMA integrity_check(1)").fetchone() != ("ok",):
            return False
        if not contents_of(model) <= contents_of(connection):
            return False
        for table in tables_of(model):
            columns = connection.execute(f"PRAGMA table_info({table})").fetchall()
            texts = [column[1] for column in columns if column[2] == "TEXT"] or ["NULL"]
            select = f"SELECT {', '.join(texts)} FROM {table}"  # noqa: S608 - names of the file's own schema
            for _ in connection.execute(select):
                pass
    except FAILURES:
        return False
    return True


def contents_of(connection: sqlite3.Connection) -> set[tuple[str, str, tuple[str, ...]]]:
    """Return the tables of a database with their columns, and the other objects of its schema."""
    select = "SELECT type, name FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"
    return {
        (kind, name, tuple(row[1] for row in connection.execute(f"PRAGMA table_info({name})")))
        for kind, name in connection.execute(select).fetchall()
    }


FAILURES: Final = (sqlite3.Error, UnicodeDecodeError, MemoryError)
"""Errors that SQLite and Python raise for a damaged file."""


def log_of(path: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return path.with_name(f"{path.name}-wal")


def index_of(path: Path) -> Path:
    """Return the path of the log's index, which all processes with the database open share."""
    return path.with_name(f"{path.name}-shm")


def inode_of(path: Path) -> int:
    """Return the inode number of a file, or 0 when there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


_SALT = slice(16, 20)
"""Where the header of a log has a number that is random at first, and one more at each restart."""

MAX_RESTARTS = 1 << 24
"""Most restarts of a log by which it is still known."""


def salt_of(log: Path) -> int | None:
    """Return the number that tells a write-ahead log from another one; None if it is empty."""
    try:
        with log.open("rb") as file:
            salt = file.read(_SALT.stop)[_SALT]
    except OSError:
        return None
    return int.from_bytes(salt, "big") if len(salt) == _SALT.stop - _SALT.start else None


def is_same_log(log: Path, salt: int | None) -> bool:
    """Whether a log is the one that once had that salt."""
    now = salt_of(log)
    return now is not None and salt is not None and (now - salt) % (1 << 32) < MAX_RESTARTS


def set_aside(path: Path) -> Path:
    """Rename a damaged database and its log; return the new path.

    The caller holds the exclusive lock.
    """
    backup = path.with_name(f"{path.name}.corrupt-{time.time_ns()}-{os.getpid()}")
    path.replace(backup)
    for suffix in ("-wal", "-shm"):
        log = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            log.replace(backup.with_name(backup.name + suffix))
    return backup


def put_back(backup: Path, path: Path) -> None:
    """Undo `set_aside`, when no replacement could be created."""
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            backup.with_name(backup.name + suffix).replace(path.with_name(path.name + suffix))


def tables_of(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables, in the order of their creation."""
    select = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    return [name for (name,) in connection.execute(f"{select} ORDER BY rowid")]


def decode_lossy(text: bytes) -> str:
    """Decode a text of a database that may be damaged; invalid bytes are replaced."""
    return text.decode("utf-8", "replace")
