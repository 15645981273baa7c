"""Concurrent access to a SQLite file, and repair of a damaged one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar
from weakref import WeakSet

from ..errors import StoreError
from ..files import NotOurs, create_file
from ..locks import Lock
from ..loggers import get_logger
from .log import find_dropped, is_unclosed, replay
from .recovery import (
    FAILURES,
    DamagedDatabase,
    contents_of,
    ensure_private,
    index_of,
    inode_of,
    is_same_log,
    is_sound,
    locked,
    log_of,
    may_be_damage,
    put_back,
    salt_of,
    set_aside,
)
from .rescue import rescue
from .schema import VERSION, build, is_compatible, is_plausible

logger = get_logger(__name__)

T = TypeVar("T")
Row = tuple[Any, ...]

BUSY_PATIENCE = 10.0
"""Seconds to wait for other processes that write."""

FIRST_PAUSE, LONGEST_PAUSE = 0.0003, 0.002
"""Maximum seconds before the next attempt to write while another process does."""

PAGE_ROWS, PAGE_PAUSE = 25, 0.0002
"""Rows per page of a long list, and seconds between pages."""

REFRESH_INTERVAL = 0.2
"""Seconds for which a process that only reads may read a file that was replaced."""

FORK_PATIENCE = 1.0
"""Seconds that a fork waits for other threads to release their connections."""

MAX_IDLE = 16
"""Maximum number of idle connections."""

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Connection(sqlite3.Connection):
    """A connection with the inode of its file and a cursor; it supports weak references.

    Attributes
    ----------
    inode
        Inode of the open file.
    own_cursor
        A cursor that is created once: creating one takes a third of the time of a small read.
    """

    __slots__ = ("__weakref__", "inode", "own_cursor")

    def __del__(self) -> None:
        """Close it with the last store that uses it: Python 3.13 warns if it is still open."""
        with contextlib.suppress(sqlite3.Error):
            self.close()

    inode: int
    own_cursor: sqlite3.Cursor


class _Files(NamedTuple):
    """The inodes of a database and its log, and the log's salt."""

    inode: int
    log: int
    salt: int | None


class Database:
    """A SQLite file in WAL mode: any number of readers, one writer at a time.

    Committed data survive the death of every process. A damaged file is kept under another name,
    its readable rows are copied to a new one, and a warning is logged.

    Parameters
    ----------
    path
        The file; it is created at the first use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name = str(path)
        self._idle: list[Connection] = []
        self._all: WeakSet[Connection] = WeakSet()
        self._inode: int | None = None  # of the current file; connections to another are closed
        self._seen: _Files | None = None  # when last opened
        self._next_refresh = 0.0
        self._opening = Lock()
        self._is_locked_for_fork = False
        self._is_closed = False
        self._is_inherited = False
        _databases.add(self)

    # -- reading and writing -------------------------------------------------------------------

    def read(self, select: str, parameters: Sequence[object] = ()) -> list[Row]:
        """Return the rows of a query.

        Raises
        ------
        StoreError
            The file cannot be read.
        """
        if time.monotonic() >= self._next_refresh:
            self.refresh()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect()
        try:
            rows = connection.own_cursor.execute(select, parameters).fetchall()
        except FAILURES as error:
            return self._retry_read(connection, error, select, parameters)
        except BaseException:
            self._release(connection)
            raise
        if connection.inode == self._inode:
            self._idle.append(connection)
        else:
            self._close_connection(connection)
        return rows

    def read_paged(self, select: str, parameters: Sequence[object]) -> Iterator[list[Row]]:
        """Yield the rows of a query in pages, and let other threads run between them.

        Otherwise a thread that waits for the GIL gets it after 5 ms only, which delays calls.
        """
        connection = self._acquire()
        is_begun = False
        try:
            cursor = connection.execute(select, parameters)
            while page := cursor.fetchmany(PAGE_ROWS):
                is_begun = True
                yield page
                time.sleep(PAGE_PAUSE)
        except FAILURES as error:
            self._recover(connection, error)
            if is_begun:  # some rows would come twice
                self._fail(error)
        except BaseException:
            self._release(connection)
            raise
        else:
            self._release(connection)
            return
        yield self.transaction(lambda sound: sound.execute(select, parameters).fetchall())

    def write(self, statement: str, parameters: Sequence[object]) -> int:
        """Execute one statement as its own transaction; return the number of changed rows.

        That is twice as fast as `transaction`.

        Raises
        ------
        sqlite3.IntegrityError
            The statement was refused.
        StoreError
            The file cannot be written; nothing was changed.
        """
        connection = self._acquire_current()
        try:
            try:
                changed = connection.own_cursor.execute(statement, parameters).rowcount
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                changed = _retry_while_busy(
                    lambda: connection.execute(statement, parameters).rowcount
                )
        except FAILURES as error:
            self._recover(connection, error)
            return self.transaction(lambda again: again.execute(statement, parameters).rowcount)
        except BaseException:
            self._release(connection)
            raise
        self._verify_written(connection)
        return changed

    def transaction(self, work: Callable[[sqlite3.Connection], T], *, tries: int = 2) -> T:
        """Run a function as one transaction: all of it or nothing, and durable when this returns.

        The transaction begins as a writer, so that nothing that it reads can change meanwhile. This
        is not a context manager: an interrupt may come as one is entered or left, and its
        transaction would stay open, and block all other writers, as long as the traceback exists.

        Parameters
        ----------
        work
            Called with the connection; again if the file was damaged and has been replaced.
        tries
            Maximum number of calls.

        Raises
        ------
        sqlite3.IntegrityError
            A statement was refused. This and the errors of ``work`` roll back the transaction.
        StoreError
            The file cannot be written; nothing was changed.
        """
        connection = self._acquire_current()
        try:
            try:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
                    _retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
                result = work(connection)
                connection.execute("COMMIT")
            finally:
                # An interrupt cannot come before this line is done: it starts no Python function
                # and no loop.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except FAILURES as error:
            self._recover(connection, error, is_last=tries == 1)
            return self.transaction(work, tries=tries - 1)
        except BaseException:
            self._release(connection)
            raise
        self._verify_written(connection)
        return result

    def _recover(self, connection: Connection, error: Exception, *, is_last: bool = False) -> None:
        """Repair the file, so that the caller can try again; or raise why that is impossible."""
        if isinstance(error, sqlite3.IntegrityError):
            self._release(connection)
            raise error
        self._close_connection(connection)
        if is_last or not may_be_damage(error, self.path):
            self._fail(error)
        self._repair_open_file(error)

    def _verify_written(self, connection: Connection) -> None:
        """Check that the file that was written is still the one at the path."""
        if self._is_current(connection.inode):
            self._release(connection)
            return
        self._close_connection(connection)
        raise StoreError(
            str(self.path),
            "it was replaced in this very moment",
            "see whether what was written is there, and write it again if not",
        )

    def _acquire_current(self) -> Connection:
        """Return a connection to the file that is at the path now."""
        if not self._is_current(self._inode):
            self.close_idle()  # it was replaced: our writes would be lost
        return self._acquire()

    def refresh(self) -> None:
        """Check that we read the file that is at the path now; reads do so at intervals."""
        self._next_refresh = time.monotonic() + REFRESH_INTERVAL
        if not self._is_current(self._inode):
            self.close_idle()

    def _is_current(self, inode: int | None) -> bool:
        try:
            return os.stat(self._name).st_ino == inode  # noqa: PTH116 - a third of the cost
        except OSError:  # removed
            return False

    def _acquire(self) -> Connection:
        try:
            return self._idle.pop()
        except IndexError:
            return self._connect()

    def _release(self, connection: Connection) -> None:
        """Make a connection available for reuse if it is to the current file; else close it."""
        if connection.inode == self._inode and len(self._idle) < MAX_IDLE:
            self._idle.append(connection)
        else:
            self._close_connection(connection)

    def _retry_read(
        self,
        connection: Connection,
        error: Exception,
        select: str,
        parameters: Sequence[object],
    ) -> list[Row]:
        """Retry a failed query: the database may have been locked."""
        try:
            if not _is_busy(error):
                raise error
            rows = _retry_while_busy(lambda: connection.execute(select, parameters).fetchall())
        except FAILURES as again:
            self._recover(connection, again)
            return self.transaction(lambda sound: sound.execute(select, parameters).fetchall())
        except BaseException:
            self._release(connection)
            raise
        self._release(connection)
        return rows

    # -- opening -------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        """Open the file; create it when it is missing, and repair it when it is damaged."""
        with self._opening:
            if self._is_closed:
                raise StoreError(str(self.path), "it was closed", "open it again")
            if self._is_inherited:
                raise StoreError(
                    str(self.path),
                    "another thread used it while this process was forked",
                    "fork when nobody uses it, or start processes by spawning",
                )
            try:
                self._remove_stale_log()
                self._check_log()
                # Shared, so that the file is not replaced before its log is open as well.
                with locked(self.path, fcntl.LOCK_SH, BUSY_PATIENCE):
                    return self._open()
            except FAILURES as error:
                if not may_be_damage(error, self.path):
                    self._fail(error)
                self._repair(error)
            except OSError as error:
                self._fail(error)
            try:
                with locked(self.path, fcntl.LOCK_SH, BUSY_PATIENCE):
                    return self._open()
            except (OSError, *FAILURES) as error:
                self._fail(error)

    def _open(self) -> Connection:
        ensure_private(self.path)
        connection = sqlite3.connect(
            self.path,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        self._all.add(connection)
        try:
            _retry_while_busy(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._migrate(connection)
            connection.own_cursor = connection.cursor()
            connection.inode = self._inode = self.path.stat().st_ino
            log = log_of(self.path)
            self._seen = _Files(self._inode, inode_of(log), salt_of(log))
        except BaseException:
            self._close_connection(connection)
            raise
        return connection

    def _remove_stale_log(self) -> None:
        """Remove the log of a file that is gone: SQLite would apply it to the new one.

        Unless the log belongs to the present file: the process or person that replaced the file may
        or may not have replaced the log as well.
        """
        if self._has_stale_log():
            with locked(self.path, fcntl.LOCK_EX, BUSY_PATIENCE):
                if self._has_stale_log():
                    for name in (log_of(self.path), index_of(self.path)):
                        name.unlink(missing_ok=True)

    def _has_stale_log(self) -> bool:
        inode, log = inode_of(self.path), inode_of(log_of(self.path))
        if not inode:
            return bool(log)
        seen = self._seen
        # Not by its number alone: a file system gives that of a removed log to the next one.
        return (
            seen is not None
            and inode != seen.inode
            and 0 < log == seen.log
            and is_same_log(log_of(self.path), seen.salt)
        )

    def _migrate(self, connection: Connection) -> None:
        """Migrate the tables to the present version."""
        (found,) = _retry_while_busy(lambda: connection.execute("PRAGMA user_version").fetchone())
        if found >= VERSION and is_compatible(found):
            return
        if not is_compatible(found):
            with closing(_empty_database()) as model:
                is_ours = contents_of(model) == contents_of(connection)
            if is_ours and not is_plausible(found):
                raise DamagedDatabase("the number of its version is wrong")
            raise StoreError(
                str(self.path),
                "it was written by a newer version of snakepit_kernel",
                "upgrade this one, or set SNAKEPIT_DATA_DIR to another directory",
            )
        _retry_while_busy(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            build(connection, found)
            connection.execute(f"PRAGMA user_version = {max(VERSION, found)}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:  # SQLite rolls back by itself when the disk is full
                connection.execute("ROLLBACK")

    # -- repairing -----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return the file's defects, one line each; an empty list when it is intact."""
        found = [str(text) for (text,) in self.read("PRAGMA integrity_check")]
        found += [f"a row of {row[0]} belongs to nothing" for row in self.read(_ORPHANS)]
        return [] if found == ["ok"] else found

    def _check_log(self) -> None:
        """Check that SQLite applies all of a log that was not closed; repair the file if not."""
        if self._is_open_here() or not is_unclosed(self.path):
            return
        with locked(self.path, fcntl.LOCK_EX, BUSY_PATIENCE):
            ensure_private(self.path)
            if not is_unclosed(self.path):  # another process was faster
                return
            dropped = find_dropped(self.path)
            if dropped is None:
                return
            whole = self.path.with_name(f"{self.path.name}.whole-{os.getpid()}")
            try:
                create_file(whole)
                replay(self.path, whole, dropped.frames)
                backup, rescued = self._rebuild_from(whole)
            finally:
                for name in (whole, log_of(whole), index_of(whole)):
                    name.unlink(missing_ok=True)
        logger.warning(
            "the log of the store of sessions was damaged: only %d of its %d frames are sound; it "
            "is kept as %s, and %d rows that could be read were taken over",
            dropped.taken,
            dropped.frames,
            log_of(backup),
            rescued,
        )

    def _is_open_here(self) -> bool:
        """Whether this process has connections to the file, whose locks it would lose."""
        return any(other.is_open for other in list(_databases) if other.path == self.path)

    @property
    def is_open(self) -> bool:
        """Whether it has connections to the file."""
        return bool(self._all)

    def _rebuild_from(self, source: Path | None) -> tuple[Path, int]:
        """Set the file aside, and rebuild it from another one or itself; on failure undo that.

        Returns
        -------
        Path, int
            The new path of the old file, and the number of rescued rows.
        """
        backup = set_aside(self.path)
        try:
            return backup, self._rescue_from(source or backup)
        except BaseException:  # the disk may be full
            put_back(backup, self.path)
            raise

    def _rescue_from(self, backup: Path) -> int:
        """Create the file with the readable rows of another one; return their number."""
        connection = self._open()
        try:
            return rescue(backup, connection)
        finally:
            self._close_connection(connection)

    def _repair_open_file(self, error: Exception) -> None:
        """Repair a file that turned out to be damaged while it was open."""
        with self._opening:
            self.close_idle()
            self._repair(error)

    def _repair(self, error: Exception) -> None:
        try:
            self._replace(error)
        except (OSError, *FAILURES) as failure:
            self._fail(failure)

    def _replace(self, error: Exception) -> None:
        with locked(self.path, fcntl.LOCK_EX, BUSY_PATIENCE):
            if self._is_sound():
                return  # another process was faster
            backup, rescued = self._rebuild_from(None)
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
        except FAILURES as error:
            if not may_be_damage(error, self.path):
                raise
            return False
        try:
            with closing(_empty_database()) as model:
                return is_sound(connection, model)
        finally:
            self._close_connection(connection)

    def _fail(self, error: Exception) -> NoReturn:
        raise failure(self.path, error) from error

    # -- closing -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. Operations in progress are finished first."""
        self._is_closed = True
        self.checkpoint()
        self.close_idle()

    def checkpoint(self) -> None:
        """Copy the log into the file, as far as other processes allow that now.

        The last process to close the file does it in any case; but others may have it open for
        days.
        """
        try:
            connection = self._idle.pop()
        except IndexError:  # it is not open
            return
        try:
            with contextlib.suppress(*FAILURES):  # it is done later then
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._release(connection)

    def close_idle(self) -> None:
        """Close idle connections; those in use are closed when they are released.

        The next use opens the file again.
        """
        self._inode = None
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._close_connection(connection)

    def _close_connection(self, connection: Connection) -> None:
        cursor: sqlite3.Cursor | None = getattr(connection, "own_cursor", None)
        if cursor is not None:
            cursor.close()  # or its unfinished statement keeps the file open
        connection.close()
        self._all.discard(connection)  # last: a fork waits for this

    # -- forks ---------------------------------------------------------------------------------

    def before_fork(self) -> None:
        """Before a fork: close all connections, and block new ones.

        SQLite records per process which locks it holds on a file; a child inherits the record, but
        not the locks. It would write without any: meanwhile the last other process to close the
        file would remove the log, with all that the child has written.
        """
        self._is_locked_for_fork = self._opening.acquire(timeout=FORK_PATIENCE)
        deadline = time.monotonic() + FORK_PATIENCE
        self.close_idle()
        while self._all and time.monotonic() < deadline:
            time.sleep(FIRST_PAUSE)  # there is no event for another thread's release

    def after_fork_in_parent(self) -> None:
        """After a fork, in the parent: allow connections again."""
        if self._is_locked_for_fork:
            self._opening.release()

    def after_fork_in_child(self) -> None:
        """After a fork, in the child: reset, unless a connection stayed in use all the time."""
        _inherited.extend(self._all)
        self._is_inherited = bool(self._all)
        self._all = WeakSet()
        self._idle = []
        self._opening = Lock()


def _empty_database() -> sqlite3.Connection:
    """Return a database in memory with empty tables."""
    model = sqlite3.connect(":memory:", isolation_level=None)
    build(model)
    return model


def _retry_while_busy(attempt: Callable[[], T]) -> T:
    """Retry while the database is locked by others.

    SQLite's own waiting lets one of many writers starve: it sleeps longer and longer. Here every
    writer sleeps for a short random time.
    """
    deadline = time.monotonic() + BUSY_PATIENCE
    pause = FIRST_PAUSE
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, pause))  # noqa: S311 - no secret; a released lock is no event
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _is_busy(error: Exception) -> bool:
    """Whether an error means that the database is locked by others."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def _is_full(error: Exception) -> bool:
    """Whether an error means that the disk is full; the log's index has its own error code."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code == sqlite3.SQLITE_IOERR_SHMSIZE or code & 0xFF == sqlite3.SQLITE_FULL


_ORPHANS = "SELECT * FROM pragma_foreign_key_check"


def failure(path: Path, error: Exception) -> StoreError:
    """Return the StoreError for a store that cannot be read or written."""
    if isinstance(error, NotOurs):
        return StoreError(str(path), f"{error.path} {error.problem}", error.remedy)
    return StoreError(str(path), _problem(error), _remedy(error))


def _problem(error: Exception) -> str:
    if _is_full(error):
        return "the disk is full; nothing was changed"
    if _is_busy(error):
        return f"other processes wrote to it for {BUSY_PATIENCE:g} s without a gap"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error)


def _remedy(error: Exception) -> str:
    if _is_full(error):
        return "free some space and try again"
    if _is_busy(error):
        return "try again; write several variables at once by set_many()"
    return "see that the directory exists and is yours, or set SNAKEPIT_DATA_DIR to another one"


_databases: WeakSet[Database] = WeakSet()
_forking = Lock()  # one thread at a time
_forking_databases: list[Database] = []
_inherited: list[Connection] = []


def _before_fork() -> None:
    _forking.acquire()
    _forking_databases[:] = _databases
    for database in _forking_databases:
        database.before_fork()


def _after_fork_in_parent() -> None:
    while _forking_databases:
        _forking_databases.pop().after_fork_in_parent()
    _forking.release()


def _after_fork_in_child() -> None:
    while _forking_databases:
        _forking_databases.pop().after_fork_in_child()
    _forking.release()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
