"""What to do about a damaged database file: keep it, rescue what can be read, start anew."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import time
from collections import deque
from collections.abc import Generator, Iterator
from pathlib import Path

from ..files import check_file, create_file, open_file
from .schema import CONSISTENT

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
    OSError
        It cannot be opened, or is not ours alone.
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
        finally:  # closing alone would leave it to a child that was forked meanwhile
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def claim(path: Path) -> None:
    """See that a database and its other files are ours alone; make it when it is missing.

    SQLite makes the other files, with the rights that the database has.

    Raises
    ------
    NotOurs
        One of them is not, see `files.check_file`.
    OSError
        It cannot be made.
    """
    create_file(path)
    for suffix in ("-wal", "-shm", "-journal"):
        check_file(path.with_name(path.name + suffix))


def is_corrupt(error: BaseException) -> bool:
    """Whether an error says that the file is no database, or a damaged one."""
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}


def log_of(path: Path) -> Path:
    """Return where the log of a database is."""
    return path.with_name(f"{path.name}-wal")


def inode_of(path: Path) -> int:
    """Return the number of a file, or 0 when there is none."""
    try:
        return path.stat().st_ino
    except OSError:
        return 0


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
    connection.execute("BEGIN IMMEDIATE")
    for table in tables_of(connection):
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        marks = ", ".join("?" * len(columns))
        insert = f"INSERT OR IGNORE INTO {table} ({', '.join(columns)}) VALUES ({marks})"
        for row in _readable_rows(backup, table, columns):
            with contextlib.suppress(sqlite3.IntegrityError):  # a damaged row
                rescued += connection.execute(insert, row).rowcount
    for table in tables_of(connection):  # rows whose session could not be read
        for row in connection.execute(f"PRAGMA foreign_key_check({table})").fetchall():
            delete = f"DELETE FROM {table} WHERE rowid = ?"
            rescued -= connection.execute(delete, (row[1],)).rowcount
    for statement in CONSISTENT:
        removed = connection.execute(statement).rowcount
        rescued -= removed if statement.startswith("DELETE") else 0
    connection.execute("COMMIT")
    connection.execute("PRAGMA foreign_keys = ON")
    return rescued


def tables_of(connection: sqlite3.Connection) -> list[str]:
    """Return the names of the tables, in the order in which they were made."""
    select = "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'"
    return [name for (name,) in connection.execute(f"{select} ORDER BY rowid")]


Rows = Generator[tuple[object, ...], None, tuple[int, bool]]


def _readable_rows(backup: Path, table: str, columns: list[str]) -> Iterator[tuple[object, ...]]:
    """Read a table from both ends up to the damage, then what lies between damaged places."""
    with contextlib.closing(sqlite3.connect(backup)) as damaged:
        damaged.text_factory = lambda raw: raw.decode("utf-8", "replace")
        select = f"SELECT rowid, {', '.join(columns)} FROM {table} NOT INDEXED WHERE rowid"

        def ascending(after: int, before: int) -> Rows:
            return _run(damaged, f"{select} BETWEEN ? AND ? ORDER BY rowid", after, before, after)

        def descending(after: int, before: int) -> Rows:
            order = "BETWEEN ? AND ? ORDER BY rowid DESC"
            return _run(damaged, f"{select} {order}", after, before, before)

        low, is_all = yield from ascending(-1, _LAST)
        if is_all:
            return
        high, _ = yield from descending(low, _LAST)
        # Where the first page, or the last, is damaged, the end of the numbers is not known.
        first = low if low >= 0 else max(0, high - FARTHEST)
        last = high if high < _LAST else low + FARTHEST
        gaps = deque([(first, last)] if low >= 0 or high < _LAST else [])
        for _ in range(MAX_PROBES):
            if not gaps:
                return
            low, high = gaps.popleft()
            middle = (low + high) // 2
            if low < middle:
                below, _ = yield from descending(low, middle)
                above, is_all = yield from ascending(middle + 1, high)
                gaps.append((low, below))
                if not is_all:
                    gaps.append((above, high))


def _run(damaged: sqlite3.Connection, select: str, low: int, high: int, last: int) -> Rows:
    """Yield rows up to the damage; return the number of the last, and whether none is damaged."""
    try:
        for found in damaged.execute(select, (low, high)):
            last = found[0]
            yield found[1:]
    except sqlite3.DatabaseError:
        return last, False
    return last, True


FARTHEST = 100_000
"""Numbers of rows that are tried where the first or the last of a table cannot be read."""

MAX_PROBES = 8000
"""How often a place between damaged ones is looked for in a table."""

_LAST = (1 << 63) - 1
