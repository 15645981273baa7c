"""The SQLite database of the registry of runs: its tables, its transactions and its repair.

When the last connection to a database in WAL mode is closed, SQLite moves the log into the file and
waits for the disk, several times as long as for a commit. So one idle connection is kept while
there is a reason to expect more transactions.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..locks import Lock
from .recovery import (
    FAILURES,
    decode_lossy,
    ensure_private,
    is_sound,
    locked,
    may_be_damage,
    set_aside,
)
from .rescue import copy_rows

Statement = tuple[str, tuple[object, ...]]

_SCHEMA = (
    """
    CREATE TABLE IF NOT EXISTS runs (
        run_id        TEXT PRIMARY KEY,
        parent        TEXT,
        previous      TEXT,
        label         TEXT NOT NULL,
        host          TEXT NOT NULL,
        boot_id       TEXT NOT NULL,
        pid_namespace INTEGER NOT NULL,
        owner         TEXT NOT NULL,
        guardian      TEXT,
        process       TEXT,
        started       REAL NOT NULL,
        leftovers     TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS ended_runs (
        run_id   TEXT PRIMARY KEY,
        previous TEXT,
        label    TEXT NOT NULL,
        started  REAL NOT NULL,
        ended    REAL NOT NULL,
        report   TEXT NOT NULL
    ) STRICT
    """,
    """
    CREATE TABLE IF NOT EXISTS bookings (
        name          TEXT PRIMARY KEY,
        pool          TEXT NOT NULL,
        host          TEXT NOT NULL,
        boot_id       TEXT NOT NULL,
        pid_namespace INTEGER NOT NULL,
        owner         TEXT NOT NULL,
        workers       INTEGER NOT NULL,
        memory_bytes  INTEGER NOT NULL
    ) STRICT
    """,
)

BUSY_PATIENCE = 10.0
"""Seconds to wait for another process that writes to the database."""


class RunDatabase:
    """Executes statements on the files of registries, which other processes use as well.

    Parameters
    ----------
    logger
        Gets a warning when a corrupt file was replaced.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.connections = KeepOpen()
        self._logger = logger

    def execute(self, path: Path, statements: Sequence[Statement]) -> list[Any]:
        """Execute statements in one transaction, and return the rows of the last.

        A corrupt file is rebuilt.

        Raises
        ------
        OSError, or another of `FAILURES`
            The file cannot be used.
        """
        with locked(path, fcntl.LOCK_SH, BUSY_PATIENCE):
            try:
                return _transaction(path, statements)
            except FAILURES as error:
                if not _may_be_damage(error, path):
                    raise
        return self._rebuild(path, statements)

    def _rebuild(self, path: Path, statements: Sequence[Statement]) -> list[Any]:
        """Set a damaged file aside, and execute statements in a new one with the recovered rows."""
        with locked(path, fcntl.LOCK_EX, BUSY_PATIENCE):
            try:
                return _transaction(path, statements)  # another process was faster
            except FAILURES as error:
                if not _may_be_damage(error, path) or _is_sound(path):
                    raise
                self.connections.drop(path)
                backup = set_aside(path)
                _transaction(path, [])
                left = _recover_rows(backup, path)
                self._logger.warning(
                    "the registry of runs was corrupt (%s); it is kept as %s, and %d rows that"
                    " could be read were taken over",
                    error,
                    backup,
                    left,
                )
                return _transaction(path, statements)


class KeepOpen:
    """Idle connections, one for each database file, and the reasons to keep them."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._kept: dict[Path, tuple[sqlite3.Connection, tuple[int, int]]] = {}
        self._reasons: dict[Path, set[str]] = {}
        os.register_at_fork(after_in_child=self._forget)

    def hold(self, path: Path, reason: str) -> None:
        """Keep a database open until this reason is released."""
        with self._lock:
            self._reasons.setdefault(path, set()).add(reason)
            kept = self._kept.get(path)
            if kept is not None and kept[1] == _file_of(path):
                return
            self._close(path)  # the file was replaced
            connection = sqlite3.connect(path, check_same_thread=False)
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
            self._kept[path] = (connection, _file_of(path))

    def release(self, path: Path, reason: str) -> None:
        """Remove a reason; close the database when none is left."""
        with self._lock:
            reasons = self._reasons.get(path, set())
            reasons.discard(reason)
            if not reasons:
                self._reasons.pop(path, None)
                self._close(path)

    def drop(self, path: Path) -> None:
        """Close a database that is about to be replaced."""
        with self._lock:
            self._close(path)

    def _close(self, path: Path) -> None:
        kept = self._kept.pop(path, None)
        if kept is not None:
            kept[0].close()

    def _forget(self) -> None:
        """In a forked child: forget the parent's connections, which must not even be closed."""
        for connection, _ in self._kept.values():
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))
        self._kept.clear()
        self._reasons.clear()
        self._lock = Lock()


def _file_of(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _transaction(path: Path, statements: Sequence[Statement]) -> list[Any]:
    # A connection for each transaction: none is shared with a forked child or a thread.
    ensure_private(path)
    connection = sqlite3.connect(path, timeout=BUSY_PATIENCE)
    connection.text_factory = decode_lossy  # or one invalid text would hide all rows
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        for table in _SCHEMA:
            connection.execute(table)
        rows: list[Any] = []
        with connection:
            for statement, parameters in statements:
                rows = connection.execute(statement, parameters).fetchall()
        return rows
    finally:
        connection.close()


def _may_be_damage(error: BaseException, path: Path) -> bool:
    # Our statements satisfy all constraints: a row that breaks one was damaged.
    return isinstance(error, sqlite3.IntegrityError) or may_be_damage(error, path)


def _is_sound(path: Path) -> bool:
    with (
        contextlib.closing(sqlite3.connect(path)) as connection,
        contextlib.closing(sqlite3.connect(":memory:")) as model,
    ):
        for table in _SCHEMA:
            model.execute(table)
        return is_sound(connection, model)


def _recover_rows(backup: Path, path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        return copy_rows(backup, connection)
