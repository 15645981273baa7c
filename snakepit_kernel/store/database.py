"""A database file that several processes and threads use at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

from ..errors import StoreError
from .recovery import is_corrupt, locked, rescue, set_aside
from .schema import MIGRATIONS, VERSION, is_compatible

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[Any, ...]

PATIENCE = 10.0
"""Seconds to wait for other processes that write."""

FIRST_PAUSE, LONGEST_PAUSE = 0.0003, 0.002
"""Seconds, at most, before the next try to write while another process does."""

PAGE_ROWS, PAGE_PAUSE = 25, 0.0002
"""Rows that are read at a time of a long list, and seconds between."""

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Database:
    """A SQLite file in WAL mode: any number of readers, one writer at a time.

    What was committed survives the death of every process. A damaged file is kept under another
    name, what can be read of it is taken over, and one warning tells of it.

    Parameters
    ----------
    path
        The file; it is made with the first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._free: list[sqlite3.Connection] = []  # nobody uses these just now
        self._inode: int | None = None
        self._opening = threading.Lock()
        self._is_closed = False
        _databases.add(self)

    # -- reading and writing -------------------------------------------------------------------

    def read(self, select: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows of a query.

        Raises
        ------
        StoreError
            The file cannot be read.
        """
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._connect()
        try:
            rows = connection.execute(select, parameters).fetchall()
        except sqlite3.Error as error:
            return self._read_again(connection, error, select, parameters)
        self._free.append(connection)
        return rows

    def read_gently(self, select: str, parameters: Sequence[object]) -> Iterator[list[Row]]:
        """Yield the rows of a query in pages, and let other threads run between them.

        A thread that waits for Python's lock gets it after 5 ms otherwise: a call would notice.
        """
        connection = self._take()
        try:
            cursor = connection.execute(select, parameters)
            while page := cursor.fetchmany(PAGE_ROWS):
                yield page
                time.sleep(PAGE_PAUSE)
        except sqlite3.Error as error:
            self._fail(error)
        finally:
            self._give_back(connection)

    def write(self, statement: str, parameters: Sequence[object]) -> None:
        """Execute one statement as a transaction of its own: twice as fast as a block.

        Raises
        ------
        sqlite3.IntegrityError
            The statement was refused.
        StoreError
            The file cannot be written; nothing was.
        """
        connection = self._take_current()
        try:
            try:
                connection.execute(statement, parameters)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF not in _BUSY:
                    raise
                _patiently(lambda: connection.execute(statement, parameters))
        except sqlite3.IntegrityError:
            raise
        except sqlite3.Error as error:
            if is_corrupt(error):
                self._start_anew(error)
            self._fail(error)
        finally:
            self._free.append(connection)

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """Run a block as one transaction: all of it or nothing, and durable when this returns.

        The transaction begins as a writer, so that nothing that it reads can change under it.

        Raises
        ------
        StoreError
            The file cannot be written; nothing of the block was.
        """
        connection = self._begin()
        try:
            yield connection
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_back(connection)
            if is_corrupt(error):
                self._start_anew(error)
            self._fail(error)
        except BaseException:
            self._give_back(connection)
            raise
        self._free.append(connection)

    def _begin(self) -> sqlite3.Connection:
        """Return a connection in a transaction that may write."""
        connection = self._take_current()
        try:
            _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        except sqlite3.Error as error:
            connection.close()
            if not is_corrupt(error):
                self._fail(error)
            self._start_anew(error)
            connection = self._take()
            connection.execute("BEGIN IMMEDIATE")
        except BaseException:
            self._give_back(connection)
            raise
        return connection

    def _take_current(self) -> sqlite3.Connection:
        """Return a connection to the file that has the name now."""
        try:
            if os.stat(self.path).st_ino != self._inode:  # noqa: PTH116 - a third of the cost
                self.rest()  # it was replaced: what we wrote would be lost
        except OSError:  # removed
            self.rest()
        return self._take()

    def _take(self) -> sqlite3.Connection:
        try:
            return self._free.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, connection: sqlite3.Connection) -> None:
        """Take a connection back whose transaction may not have ended."""
        try:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        except sqlite3.Error:
            connection.close()
        else:
            self._free.append(connection)

    def _read_again(
        self,
        connection: sqlite3.Connection,
        error: sqlite3.Error,
        select: str,
        parameters: Sequence[object],
    ) -> list[Row]:
        """Try a query again that has failed: others may have been in the way."""
        if getattr(error, "sqlite_errorcode", None) in _BUSY:
            try:
                rows = _patiently(lambda: connection.execute(select, parameters).fetchall())
            except sqlite3.Error as again:
                connection.close()
                self._fail(again)
            self._free.append(connection)
            return rows
        connection.close()
        if not is_corrupt(error):
            self._fail(error)
        self._start_anew(error)
        return self.read(select, parameters)

    # -- opening -------------------------------------------------------------------------------

    def _connect(self) -> sqlite3.Connection:
        """Open the file; make it when it is missing, and mend it when it is damaged."""
        if self._is_closed:
            raise StoreError(str(self.path), "it was closed", "open it again")
        with self._opening:
            try:
                # Shared, so that nobody replaces the file before we hold its log as well.
                with locked(self.path, fcntl.LOCK_SH, PATIENCE):
                    return self._open()
            except sqlite3.Error as error:
                if not is_corrupt(error):
                    self._fail(error)
                self._replace(error)
            except OSError as error:
                self._fail(error)
            with locked(self.path, fcntl.LOCK_SH, PATIENCE):
                return self._open()

    def _open(self) -> sqlite3.Connection:
        connection = sqlite3.connect(
            self.path, timeout=0, isolation_level=None, check_same_thread=False
        )
        try:
            _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            # Its cost, two waits for the disk, is shared by more writes than by default.
            connection.execute("PRAGMA wal_autocheckpoint = 4000")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        self.path.chmod(0o600)
        self._inode = self.path.stat().st_ino
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        """Bring the tables up to date."""
        (found,) = _patiently(lambda: connection.execute("PRAGMA user_version").fetchone())
        if found >= VERSION and is_compatible(found):
            return
        if not is_compatible(found):
            raise StoreError(
                str(self.path),
                "it was written by a newer version of snakepit_kernel",
                "upgrade this one, or set SNAKEPIT_DATA_DIR to another directory",
            )
        _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            for number, statements in MIGRATIONS.items():
                if number > found:
                    for statement in statements:
                        connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {max(VERSION, found)}")
            connection.execute("COMMIT")
        except BaseException:
            connection.execute("ROLLBACK")
            raise

    # -- repairing -----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return what is wrong with the file, one line each; nothing when it is sound."""
        found = [str(text) for (text,) in self.read("PRAGMA integrity_check")]
        found += [f"a row of {row[0]} belongs to nothing" for row in self.read(_ORPHANS)]
        return [] if found == ["ok"] else found

    def _start_anew(self, error: sqlite3.Error) -> None:
        """Replace a file that was found damaged while it was open."""
        with self._opening:
            self.rest()
            try:
                self._replace(error)
            except (OSError, sqlite3.Error) as failure:
                self._fail(failure)

    def _replace(self, error: sqlite3.Error) -> None:
        with locked(self.path, fcntl.LOCK_EX, PATIENCE):
            if self._is_sound():
                return  # another process was faster
            backup = set_aside(self.path)
            connection = self._open()
            try:
                rescued = rescue(backup, connection)
            finally:
                connection.close()
        logger.warning(
            "the store of sessions was damaged (%s); it is kept as %s, and %d rows that could be "
            "read were taken over",
            error,
            backup,
            rescued,
        )

    def _is_sound(self) -> bool:
        try:
            connection = self._open()
        except sqlite3.Error:
            return False
        try:
            found: Row = connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error:
            return False
        else:
            return found == ("ok",)
        finally:
            connection.close()

    def _fail(self, error: Exception) -> NoReturn:
        raise failure(self.path, error) from error

    # -- closing -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. Whoever uses it in this moment ends that first."""
        self._is_closed = True
        self.rest()

    def __del__(self) -> None:
        self.rest()

    def rest(self) -> None:
        """Close the connections that nobody uses just now; the next use opens one again."""
        while self._free:
            self._free.pop().close()

    def forget(self) -> None:
        """Leave the connections alone in a forked child: they are the parent's."""
        _inherited.extend(self._free)
        self._free = []
        self._opening = threading.Lock()


def _patiently(attempt: Callable[[], T]) -> T:
    """Try until nobody else is in the way.

    SQLite's own waiting lets one writer in a crowd starve: it sleeps longer and longer. Here
    everybody sleeps for a short time at random.
    """
    deadline = time.monotonic() + PATIENCE
    pause = FIRST_PAUSE
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF not in _BUSY or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, pause))  # noqa: S311 - no secret; nothing tells of the lock's end
        pause = min(pause * 1.5, LONGEST_PAUSE)


_ORPHANS = "SELECT * FROM pragma_foreign_key_check"


def failure(path: Path, error: Exception) -> StoreError:
    """Return what says that a store cannot be read or written, and what to do."""
    return StoreError(str(path), _problem(error), _remedy(error))


def _problem(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "the disk is full; nothing was changed"
    if code in _BUSY:
        return f"other processes wrote to it for {PATIENCE:g} s without a gap"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _remedy(error: Exception) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return "free some space and try again"
    if code in _BUSY:
        return "try again; write several variables at once by set_many()"
    return "see that the directory exists and is yours, or set SNAKEPIT_DATA_DIR to another one"


_databases: WeakSet[Database] = WeakSet()
_inherited: list[sqlite3.Connection] = []


def _leave_to_the_parent() -> None:
    for database in list(_databases):
        database.forget()


os.register_at_fork(after_in_child=_leave_to_the_parent)
