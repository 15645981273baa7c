"""What to do about a damaged database file: keep it, rescue what can be read, start anew."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_INTERVAL = 0.01
"""Seconds between tries to lock the file."""


@contextlib.contextmanager
def locked(path: Path, kind: int, patience: float) -> Iterator[None]:
    """Share a database file with all who open it; exclude them while it is replaced.

    SQLite's own locks lie in the file that is replaced: whoever still had the old one open would
    empty the log of the new one into it.

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
    """
    deadline = time.monotonic() + patience
    with path.with_name(f"{path.name}.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError("another process holds its lock") from None
                time.sleep(LOCK_INTERVAL)  # flock cannot wait for a limited time
        yield


def is_corrupt(error: BaseException) -> bool:
    """Whether an error says that the file is no database, or a damaged one."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def set_aside(path: Path) -> Path:
    """Keep a damaged database under another name, with its log; return that name.

    The caller holds the exclusive lock.
    """
    backup = path.with_name(f"{path.name}.corrupt-{time.time_ns()}-{os.getpid()}")
    path.replace(backup)
    for suffix in ("-wal", "-shm"):
        log = path.with_name(path.name + suffix)
        with contextlib.suppress(FileNotFoundError):
            log.replace(backup.with_name(backup.name + suffix))
    return backup


def rescue(backup: Path, connection: sqlite3.Connection) -> int:
    """Copy what can still be read of a damaged database; return the number of rows.

    Parameters
    ----------
    backup
        The damaged file.
    connection
        To the new one, which has its tables.
    """
    rescued = 0
    connection.execute("PRAGMA foreign_keys = OFF")
    for table in tables_of(connection):
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        marks = ", ".join("?" * len(columns))
        insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        for row in _readable_rows(backup, table, columns):
            with contextlib.suppress(sqlite3.IntegrityError):  # a damaged row
                rescued += connection.execute(insert, row).rowcount
    for table in tables_of(connection):  # rows whose session or variable could not be read
        for row in connection.execute(f"PRAGMA foreign_key_check({table})").fetchall():
            rescued -= connection.execute(
                f"DELETE FROM {table} WHERE rowid = ?",
                (row[1],),
            ).rowcount
    connection.execute("PRAGMA foreign_keys = ON")
    return rescued


def tables_of(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables, in the order in which they were made."""
    select = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    return [name for (name,) in connection.execute(f"{select} ORDER BY rowid")]


def _readable_rows(backup: Path, table: str, columns: list[str]) -> Iterator[tuple[object, ...]]:
    """Read a table from its beginning up to the damage, then from its end down to it."""
    for order in ("ASC", "DESC"):
        damaged = sqlite3.connect(backup)
        damaged.text_factory = lambda raw: raw.decode("utf-8", "replace")
        try:
            yield from damaged.execute(
                f"SELECT {', '.join(columns)} FROM {table} ORDER BY rowid {order}"
            )
        except sqlite3.DatabaseError:
            continue
        else:
            return
        finally:
            damaged.close()
