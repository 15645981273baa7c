"""Idle connections that keep SQLite databases open between transactions.

When the last connection to a database in WAL mode is closed, SQLite moves the log into the file and
waits for the disk, several times as long as for a commit. So one idle connection is kept while
there is a reason to expect more transactions.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
from pathlib import Path

from ..locks import Lock


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
