"""The registry of runs: which runs exist on this machine, durable beyond every process.

A run is *reserved* before its process is spawned, *activated* once it runs and *retired* when it
is verified gone, so at no moment can an owner die and leave a process that nobody knows of.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import sqlite3
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..paths import data_dir
from .identity import ProcessIdentity, boot_id

logger = logging.getLogger(__name__)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS runs (
    run_id   TEXT PRIMARY KEY,
    parent   TEXT,
    label    TEXT NOT NULL,
    boot_id  TEXT NOT NULL,
    owner    TEXT NOT NULL,
    guardian TEXT,
    process  TEXT,
    started  REAL NOT NULL
) STRICT
"""

BUSY_PATIENCE = 10.0
"""Seconds to wait for another process that writes to the registry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One row of the registry.

    Attributes
    ----------
    run_id, parent
        The run, and the run that started it, if any.
    label
        What it is, for people: the name of a kernelspec or of a worker.
    boot_id
        The boot of the machine in which its processes were started.
    owner, guardian, process
        Identities; the last two are None while the run is only reserved.
    started
        Seconds since the epoch.
    """

    run_id: str
    parent: str | None
    label: str
    boot_id: str
    owner: ProcessIdentity
    guardian: ProcessIdentity | None
    process: ProcessIdentity | None
    started: float

    @property
    def is_dead(self) -> bool:
        """Whether neither its owner nor its guardian lives any more."""
        if self.boot_id != boot_id():
            return True
        return not self.owner.is_alive() and not (self.guardian and self.guardian.is_alive())


class Registry:
    """The file of runs. It never stands in the way of a start: without it one net is missing.

    Parameters
    ----------
    path
        SQLite file; by default ``runs.sqlite`` in the data directory.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._warned = False

    @property
    def path(self) -> Path:
        """Return the file that holds the registry."""
        return self._path if self._path is not None else data_dir() / "runs.sqlite"

    def reserve(self, run_id: str, *, label: str, parent: str | None = None) -> None:
        """Write down a run that this process is about to start."""
        owner = ProcessIdentity.of(os.getpid())
        self._execute(
            "INSERT INTO runs (run_id, parent, label, boot_id, owner, started)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (run_id, parent, label, boot_id(), str(owner), time.time()),
        )

    def activate(
        self, run_id: str, guardian: ProcessIdentity, process: ProcessIdentity | None
    ) -> None:
        """Write down the processes of a reserved run."""
        self._execute(
            "UPDATE runs SET guardian = ?, process = ? WHERE run_id = ?",
            (str(guardian), str(process) if process else None, run_id),
        )

    def retire(self, run_id: str) -> None:
        """Forget a run that is verified gone."""
        self._execute("DELETE FROM runs WHERE run_id = ?", (run_id,))

    def runs(self) -> list[Run]:
        """Return every run that is written down, oldest first."""
        rows = self._execute(
            "SELECT run_id, parent, label, boot_id, owner, guardian, process, started"
            " FROM runs ORDER BY started"
        )
        return [
            Run(
                run_id=run_id,
                parent=parent,
                label=label,
                boot_id=boot,
                owner=ProcessIdentity.parse(owner),
                guardian=ProcessIdentity.parse(guardian) if guardian else None,
                process=ProcessIdentity.parse(process) if process else None,
                started=started,
            )
            for run_id, parent, label, boot, owner, guardian, process, started in rows
        ]

    def _execute(self, statement: str, parameters: tuple[object, ...] = ()) -> list[Any]:
        """Execute one statement; rebuild a corrupt file; warn, once, when there is no way."""
        try:
            path = self.path
            with _lock(path, fcntl.LOCK_SH):
                try:
                    return _transaction(path, statement, parameters)
                except sqlite3.DatabaseError as error:
                    if not _is_corrupt(error):
                        raise
            return _rebuild(path, statement, parameters)
        except (sqlite3.DatabaseError, OSError) as error:
            self._warn(error)
            return []

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "the registry of runs cannot be used (%s): kernels start all the same, but what the"
                " death of a guardian leaves behind will not be found by the next start",
                error,
            )


def _transaction(path: Path, statement: str, parameters: tuple[object, ...]) -> list[Any]:
    # A connection for each transaction: none is shared with a forked child or a thread.
    connection = sqlite3.connect(path, timeout=BUSY_PATIENCE)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(_SCHEMA)
        with connection:
            return connection.execute(statement, parameters).fetchall()
    finally:
        connection.close()


def _rebuild(path: Path, statement: str, parameters: tuple[object, ...]) -> list[Any]:
    """Keep a corrupt file as a backup, and execute a statement in a fresh one."""
    with _lock(path, fcntl.LOCK_EX):
        try:
            return _transaction(path, statement, parameters)  # another process was faster
        except sqlite3.DatabaseError as error:
            if not _is_corrupt(error):
                raise
            backup = path.with_name(f"{path.name}.corrupt-{int(time.time())}-{os.getpid()}")
            path.replace(backup)
            for suffix in ("-wal", "-shm"):
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            logger.warning(
                "the registry of runs was corrupt (%s); it is kept as %s and starts anew",
                error,
                backup,
            )
            return _transaction(path, statement, parameters)


@contextlib.contextmanager
def _lock(path: Path, kind: int) -> Iterator[None]:
    """Share the file with all who use it; exclude them while it is replaced.

    SQLite's own locks lie in the file that is replaced: whoever still had the old one open would
    empty the log of the new one into it.
    """
    with path.with_name(f"{path.name}.lock").open("w") as file:
        fcntl.flock(file, kind)
        yield


def _is_corrupt(error: sqlite3.DatabaseError) -> bool:
    return getattr(error, "sqlite_errorcode", None) in {
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_NOTADB,
    }
