"""A database file that several processes and threads use at the same time."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn, TypeVar
from weakref import WeakSet

from ..errors import StoreError
from ..files import NotOurs, create_file
from ..locks import Lock
from .log import find_dropped, is_left, replay
from .recovery import (
    FAILURES,
    Damaged,
    claim,
    contents_of,
    index_of,
    inode_of,
    is_sound,
    locked,
    log_of,
    may_be_damage,
    put_back,
    set_aside,
)
from .rescue import rescue
from .schema import VERSION, build, is_compatible, is_plausible

logger = logging.getLogger(__name__)

T = TypeVar("T")
Row = tuple[Any, ...]

PATIENCE = 10.0
"""Seconds to wait for other processes that write."""

FIRST_PAUSE, LONGEST_PAUSE = 0.0003, 0.002
"""Seconds, at most, before the next try to write while another process does."""

PAGE_ROWS, PAGE_PAUSE = 25, 0.0002
"""Rows that are read at a time of a long list, and seconds between."""

LOOK_INTERVAL = 0.2
"""Seconds for which a process that only reads may read a file that was replaced."""

FORK_PATIENCE = 1.0
"""Seconds that a fork waits for other threads to be done."""

KEPT = 16
"""Connections that are kept for the next use."""

_BUSY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED}


class Connection(sqlite3.Connection):
    """A connection that knows which file it has open, and whose life can be watched.

    Attributes
    ----------
    inode
        Of the file.
    own_cursor
        A cursor that is made once: to make one takes a third of the time of a small read.
    """

    __slots__ = ("__weakref__", "inode", "own_cursor")

    def __del__(self) -> None:
        """Close it with the last store that uses it: Python 3.13 warns where nobody has."""
        with contextlib.suppress(sqlite3.Error):
            self.close()

    inode: int
    own_cursor: sqlite3.Cursor


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
        self._name = str(path)
        self._free: list[Connection] = []  # nobody uses these just now
        self._all: WeakSet[Connection] = WeakSet()
        self._inode: int | None = None  # of the file that the connections in use are to have
        self._seen: tuple[int, int] | None = None  # inodes of the file and its log, the last time
        self._look_again = 0.0
        self._opening = Lock()
        self._is_held = False
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
        if time.monotonic() >= self._look_again:
            self.look()
        try:
            connection = self._free.pop()
        except IndexError:
            connection = self._connect()
        try:
            rows = connection.own_cursor.execute(select, parameters).fetchall()
        except FAILURES as error:
            return self._read_again(connection, error, select, parameters)
        except BaseException:
            self._give_back(connection)
            raise
        if connection.inode == self._inode:
            self._free.append(connection)
        else:
            self._drop(connection)
        return rows

    def read_gently(self, select: str, parameters: Sequence[object]) -> Iterator[list[Row]]:
        """Yield the rows of a query in pages, and let other threads run between them.

        A thread that waits for Python's lock gets it after 5 ms otherwise: a call would notice.
        """
        connection = self._take()
        is_begun = False
        try:
            cursor = connection.execute(select, parameters)
            while page := cursor.fetchmany(PAGE_ROWS):
                is_begun = True
                yield page
                time.sleep(PAGE_PAUSE)
        except FAILURES as error:
            self._recover(connection, error)
            if is_begun:  # some of it would come twice
                self._fail(error)
        except BaseException:
            self._give_back(connection)
            raise
        else:
            self._give_back(connection)
            return
        yield self.transaction(lambda sound: sound.execute(select, parameters).fetchall())

    def write(self, statement: str, parameters: Sequence[object]) -> int:
        """Execute one statement as a transaction of its own; return how many rows it changed.

        That is twice as fast as `transaction`.

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
                changed = connection.own_cursor.execute(statement, parameters).rowcount
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    raise
                changed = _patiently(lambda: connection.execute(statement, parameters).rowcount)
        except FAILURES as error:
            self._recover(connection, error)
            return self.transaction(lambda again: again.execute(statement, parameters).rowcount)
        except BaseException:
            self._give_back(connection)
            raise
        self._acknowledge(connection)
        return changed

    def transaction(self, work: Callable[[sqlite3.Connection], T], *, tries: int = 2) -> T:
        """Run a function as one transaction: all of it or nothing, and durable when this returns.

        The transaction begins as a writer, so that nothing that it reads can change under it. Not a
        context manager: an interrupt may come as one is entered or left, and its transaction would
        stay open, and keep all others from writing, for as long as somebody holds the traceback.

        Parameters
        ----------
        work
            What to do with the connection. It is called again when the file was found damaged,
            and replaced.
        tries
            How often it may be called.

        Raises
        ------
        sqlite3.IntegrityError
            A statement was refused. This and what ``work`` raises undo all of it.
        StoreError
            The file cannot be written; nothing was.
        """
        connection = self._take_current()
        try:
            try:
                try:
                    connection.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError as error:
                    if not _is_busy(error):
                        raise
                    _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
                result = work(connection)
                connection.execute("COMMIT")
            finally:
                # An interrupt cannot come before this line is done: it begins no function of
                # Python and no loop.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        except FAILURES as error:
            self._recover(connection, error, is_last=tries == 1)
            return self.transaction(work, tries=tries - 1)
        except BaseException:
            self._give_back(connection)
            raise
        self._acknowledge(connection)
        return result

    def _recover(self, connection: Connection, error: Exception, *, is_last: bool = False) -> None:
        """Mend the file, so that what has failed can be tried again; or raise why it cannot."""
        if isinstance(error, sqlite3.IntegrityError):
            self._give_back(connection)
            raise error
        self._drop(connection)
        if is_last or not may_be_damage(error, self.path):
            self._fail(error)
        self._start_anew(error)

    def _acknowledge(self, connection: Connection) -> None:
        """See that what was written is in the file that has the name now."""
        if self._is_current(connection.inode):
            self._give_back(connection)
            return
        self._drop(connection)
        raise StoreError(
            str(self.path),
            "it was replaced in this very moment",
            "see whether what was written is there, and write it again if not",
        )

    def _take_current(self) -> Connection:
        """Return a connection to the file that has the name now."""
        if not self._is_current(self._inode):
            self.rest()  # it was replaced: what we wrote would be lost
        return self._take()

    def look(self) -> None:
        """See that we read the file that has the name now; reading does that once in a while."""
        self._look_again = time.monotonic() + LOOK_INTERVAL
        if not self._is_current(self._inode):
            self.rest()

    def _is_current(self, inode: int | None) -> bool:
        try:
            return os.stat(self._name).st_ino == inode  # noqa: PTH116 - a third of the cost
        except OSError:  # removed
            return False

    def _take(self) -> Connection:
        try:
            return self._free.pop()
        except IndexError:
            return self._connect()

    def _give_back(self, connection: Connection) -> None:
        """Let others use a connection, if it is one to the right file."""
        if connection.inode == self._inode and len(self._free) < KEPT:
            self._free.append(connection)
        else:
            self._drop(connection)

    def _read_again(
        self,
        connection: Connection,
        error: Exception,
        select: str,
        parameters: Sequence[object],
    ) -> list[Row]:
        """Try a query again that has failed: others may have been in the way."""
        try:
            if not _is_busy(error):
                raise error
            rows = _patiently(lambda: connection.execute(select, parameters).fetchall())
        except FAILURES as again:
            self._recover(connection, again)
            return self.transaction(lambda sound: sound.execute(select, parameters).fetchall())
        except BaseException:
            self._give_back(connection)
            raise
        self._give_back(connection)
        return rows

    # -- opening -------------------------------------------------------------------------------

    def _connect(self) -> Connection:
        """Open the file; make it when it is missing, and mend it when it is damaged."""
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
                self._remove_strange_log()
                self._look_at_log()
                # Shared, so that nobody replaces the file before we hold its log as well.
                with locked(self.path, fcntl.LOCK_SH, PATIENCE):
                    return self._open()
            except FAILURES as error:
                if not may_be_damage(error, self.path):
                    self._fail(error)
                self._mend(error)
            except OSError as error:
                self._fail(error)
            try:
                with locked(self.path, fcntl.LOCK_SH, PATIENCE):
                    return self._open()
            except (OSError, *FAILURES) as error:
                self._fail(error)

    def _open(self) -> Connection:
        claim(self.path)
        connection = sqlite3.connect(
            self.path,
            timeout=0,
            isolation_level=None,
            check_same_thread=False,
            factory=Connection,
        )
        self._all.add(connection)
        try:
            _patiently(lambda: connection.execute("PRAGMA journal_mode = WAL"))
            connection.execute("PRAGMA synchronous = NORMAL")
            connection.execute("PRAGMA foreign_keys = ON")
            self._migrate(connection)
            connection.own_cursor = connection.cursor()
            connection.inode = self._inode = self.path.stat().st_ino
            self._seen = self._inode, inode_of(log_of(self.path))
        except BaseException:
            self._drop(connection)
            raise
        return connection

    def _remove_strange_log(self) -> None:
        """Remove the log of a file that is gone: SQLite would take it for the log of the new one.

        Not while it belongs to another one: who has replaced the file, whether a process like this
        one or a person, has taken the log with it or not.
        """
        if self._has_strange_log():
            with locked(self.path, fcntl.LOCK_EX, PATIENCE):
                if self._has_strange_log():
                    for name in (log_of(self.path), index_of(self.path)):
                        name.unlink(missing_ok=True)

    def _has_strange_log(self) -> bool:
        inode, log = inode_of(self.path), inode_of(log_of(self.path))
        if not inode:
            return bool(log)
        return self._seen is not None and inode != self._seen[0] and 0 < log == self._seen[1]

    def _migrate(self, connection: Connection) -> None:
        """Bring the tables up to date."""
        (found,) = _patiently(lambda: connection.execute("PRAGMA user_version").fetchone())
        if found >= VERSION and is_compatible(found):
            return
        if not is_compatible(found):
            with closing(_model()) as model:
                is_ours = contents_of(model) == contents_of(connection)
            if is_ours and not is_plausible(found):
                raise Damaged("the number of its version is wrong")
            raise StoreError(
                str(self.path),
                "it was written by a newer version of snakepit_kernel",
                "upgrade this one, or set SNAKEPIT_DATA_DIR to another directory",
            )
        _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            (found,) = connection.execute("PRAGMA user_version").fetchone()
            build(connection, found)
            connection.execute(f"PRAGMA user_version = {max(VERSION, found)}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:  # SQLite ends it by itself when the disk is full
                connection.execute("ROLLBACK")

    # -- repairing -----------------------------------------------------------------------------

    def check(self) -> list[str]:
        """Return what is wrong with the file, one line each; nothing when it is sound."""
        found = [str(text) for (text,) in self.read("PRAGMA integrity_check")]
        found += [f"a row of {row[0]} belongs to nothing" for row in self.read(_ORPHANS)]
        return [] if found == ["ok"] else found

    def _look_at_log(self) -> None:
        """See that SQLite takes all of a log that nobody has closed; mend it when it does not."""
        if self._is_open_here() or not is_left(self.path):
            return
        with locked(self.path, fcntl.LOCK_EX, PATIENCE):
            claim(self.path)
            if not is_left(self.path):  # another process was faster
                return
            dropped = find_dropped(self.path)
            if dropped is None:
                return
            whole = self.path.with_name(f"{self.path.name}.whole-{os.getpid()}")
            try:
                create_file(whole)
                replay(self.path, whole, dropped.frames)
                backup, rescued = self._start_from(whole)
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
        """Whether this process has connections to the file: it would lose their locks."""
        return any(other.is_open for other in list(_databases) if other.path == self.path)

    @property
    def is_open(self) -> bool:
        """Whether this has connections to the file."""
        return bool(self._all)

    def _start_from(self, source: Path | None) -> tuple[Path, int]:
        """Set the file aside, and make it anew from another one, or itself; or leave all as it was.

        Returns
        -------
        Path, int
            Where the file is now, and how many rows were taken over.
        """
        backup = set_aside(self.path)
        try:
            return backup, self._take_over(source or backup)
        except BaseException:  # the disk may be full
            put_back(backup, self.path)
            raise

    def _take_over(self, backup: Path) -> int:
        """Make the file anew, with what can be read of another one; return how many rows."""
        connection = self._open()
        try:
            return rescue(backup, connection)
        finally:
            self._drop(connection)

    def _start_anew(self, error: Exception) -> None:
        """Replace a file that was found damaged while it was open."""
        with self._opening:
            self.rest()
            self._mend(error)

    def _mend(self, error: Exception) -> None:
        try:
            self._replace(error)
        except (OSError, *FAILURES) as failure:
            self._fail(failure)

    def _replace(self, error: Exception) -> None:
        with locked(self.path, fcntl.LOCK_EX, PATIENCE):
            if self._is_sound():
                return  # another process was faster
            backup, rescued = self._start_from(None)
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
            with closing(_model()) as model:
                return is_sound(connection, model)
        finally:
            self._drop(connection)

    def _fail(self, error: Exception) -> NoReturn:
        raise failure(self.path, error) from error

    # -- closing -------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. Whoever uses it in this moment ends that first."""
        self._is_closed = True
        self.settle()
        self.rest()

    def settle(self) -> None:
        """Have what is in the log moved into the file, as far as others let that be done now.

        The last one to close the file does it in any case; but others may have it open for days.
        """
        try:
            connection = self._free.pop()
        except IndexError:  # it is not open
            return
        try:
            with contextlib.suppress(*FAILURES):  # then later
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._give_back(connection)

    def rest(self) -> None:
        """Close what nobody uses; what is in use is closed when it is given back.

        The next use opens the file again.
        """
        self._inode = None
        while True:
            try:
                connection = self._free.pop()
            except IndexError:
                return
            self._drop(connection)

    def _drop(self, connection: Connection) -> None:
        cursor: sqlite3.Cursor | None = getattr(connection, "own_cursor", None)
        if cursor is not None:
            cursor.close()  # or what it was in the middle of keeps the file open
        connection.close()
        self._all.discard(connection)  # last: a fork waits for this

    # -- forks ---------------------------------------------------------------------------------

    def hold(self) -> None:
        """Before a fork: close all, and let nobody open anything.

        SQLite notes once for a whole process which locks it holds on a file; a child inherits the
        note, but not the locks. It would write without any: while it did, the last one beside it
        would remove the log, with all that the child has written.
        """
        self._is_held = self._opening.acquire(timeout=FORK_PATIENCE)
        deadline = time.monotonic() + FORK_PATIENCE
        self.rest()
        while self._all and time.monotonic() < deadline:
            time.sleep(FIRST_PAUSE)  # nothing tells that another thread has given one back

    def let_go(self) -> None:
        """After a fork, in the parent: go on."""
        if self._is_held:
            self._opening.release()

    def forget(self) -> None:
        """After a fork, in the child: begin anew, unless something was in use all the time."""
        _inherited.extend(self._all)
        self._is_inherited = bool(self._all)
        self._all = WeakSet()
        self._free = []
        self._opening = Lock()


def _model() -> sqlite3.Connection:
    """Return a database in memory that has the tables, and nothing in them."""
    model = sqlite3.connect(":memory:", isolation_level=None)
    build(model)
    return model


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
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
        time.sleep(random.uniform(0, pause))  # noqa: S311 - no secret; nothing tells of the lock's end
        pause = min(pause * 1.5, LONGEST_PAUSE)


def _is_busy(error: Exception) -> bool:
    """Whether an error says that somebody else is in the way."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF in _BUSY


def _is_full(error: Exception) -> bool:
    """Whether an error says that the disk is full; the index of the log has a code of its own."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code == sqlite3.SQLITE_IOERR_SHMSIZE or code & 0xFF == sqlite3.SQLITE_FULL


_ORPHANS = "SELECT * FROM pragma_foreign_key_check"


def failure(path: Path, error: Exception) -> StoreError:
    """Return what says that a store cannot be read or written, and what to do."""
    if isinstance(error, NotOurs):
        return StoreError(str(path), f"{error.path} {error.problem}", error.remedy)
    return StoreError(str(path), _problem(error), _remedy(error))


def _problem(error: Exception) -> str:
    if _is_full(error):
        return "the disk is full; nothing was changed"
    if _is_busy(error):
        return f"other processes wrote to it for {PATIENCE:g} s without a gap"
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
_held: list[Database] = []
_inherited: list[Connection] = []


def _hold() -> None:
    _forking.acquire()
    _held[:] = _databases
    for database in _held:
        database.hold()


def _let_go() -> None:
    while _held:
        _held.pop().let_go()
    _forking.release()


def _forget() -> None:
    while _held:
        _held.pop().forget()
    _forking.release()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_forget)
