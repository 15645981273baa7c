"""The table of programs: named objects of one or all sessions; large ones are separate files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import sqlite3
import sys
import time
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import ProgramDamaged, QuotaExceeded, StoreError
from ..files import check_directory, make_directory, open_file
from ..loggers import get_logger
from .database import Database, failure

logger = get_logger(__name__)

FILE_FROM_BYTES = 256 * 1024
"""Size from which a program is stored in a separate file."""

ORPHAN_SECONDS = 3600.0
"""Age at which a file without a row is removed: its writer has died."""

_READ_TRIES = 5

_FILE = re.compile(r"[0-9a-f]{32}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramRow:
    """The row of a program, without the object itself.

    Attributes
    ----------
    session
        Number of its session; `GLOBAL` for none.
    version
        Number of times that it was stored under this name, from 1.
    size
        Bytes.
    checksum
        SHA-256, hexadecimal.
    file
        Name of the file with the object; None when it is in the database.
    metadata
        JSON.
    source
        Who stored it.
    created, updated
        Seconds since the epoch.
    ttl, expires
        As for a session.
    """

    session: int
    name: str
    version: int
    size: int
    checksum: str
    file: str | None
    metadata: str
    source: str
    created: float
    updated: float
    ttl: float | None
    expires: float | None


_COLUMNS = (
    "session, name, version, size, checksum, file, metadata, source, created, updated, ttl, expires"
)
_ALIVE = "(expires IS NULL OR expires > ?)"


class ProgramTable:
    """The table of programs, with a folder for large ones.

    Parameters
    ----------
    database
        The database.
    folder
        The folder for large programs.
    """

    def __init__(self, database: Database, folder: Path) -> None:
        self._database = database
        self._folder = folder

    def store(
        self,
        session: int,
        name: str,
        value: bytes,
        *,
        metadata: str,
        source: str,
        ttl: float | None,
        max_programs: int,
    ) -> ProgramRow | None:
        """Store an object under a name, replacing an earlier one.

        A concurrent reader gets either the old or the new object, never a mixture.

        Returns
        -------
        ProgramRow
            Its row; None when the session is gone.

        Raises
        ------
        QuotaExceeded
            There are as many programs already.
        """
        file = self._write_file(value) if len(value) >= FILE_FROM_BYTES else None
        checksum = hashlib.sha256(value).hexdigest()
        now = time.time()

        def put(connection: sqlite3.Connection) -> tuple[ProgramRow | None, list[str | None]]:
            select = "SELECT 1 FROM sessions WHERE number = ?"
            if not connection.execute(select, (session,)).fetchall():
                return None, [file]
            delete = (
                "DELETE FROM programs WHERE session = ? AND name = ?"
                " RETURNING version, created, expires, file"
            )
            old = connection.execute(delete, (session, name)).fetchall()
            if not old:
                _check_quota(connection, session, max_programs, now)
            is_known = bool(old) and (old[0][2] is None or old[0][2] > now)
            row = ProgramRow(
                session=session,
                name=name,
                version=old[0][0] + 1 if is_known else 1,
                size=len(value),
                checksum=checksum,
                file=file,
                metadata=metadata,
                source=source,
                created=old[0][1] if is_known else now,
                updated=now,
                ttl=ttl,
                expires=None if ttl is None else now + ttl,
            )
            values = tuple(getattr(row, column) for column in ProgramRow.__slots__)
            connection.execute(
                f"INSERT INTO programs ({_COLUMNS}, value)"  # noqa: S608 - constants
                f" VALUES ({', '.join('?' * len(values))}, ?)",
                (*values, None if file else value),
            )
            return row, [found[3] for found in old]

        try:
            row, replaced = self._database.transaction(put)
        except BaseException:
            # Only after a check: an interrupt may have come after the commit.
            with contextlib.suppress(StoreError):
                if file is not None and not self._is_named(file):
                    self.remove_files([file])
            raise
        self.remove_files(replaced)
        return row

    def load(self, session: int, name: str) -> tuple[ProgramRow, bytes] | None:
        """Return a program, or None when there is none of that name.

        Raises
        ------
        ProgramDamaged
            The object is missing or differs from what was stored.
        """
        select = (
            f"SELECT {_COLUMNS}, value FROM programs WHERE session = ? AND name = ? AND {_ALIVE}"  # noqa: S608 - constants
        )
        problem = "its file is gone"
        for _ in range(_READ_TRIES):
            rows = self._database.read(select, (session, name, time.time()))
            if not rows:
                return None
            row, value = _program(rows[0][:-1]), rows[0][-1]
            if row.file is not None:
                if not _is_file_name(row.file):
                    problem = "its row names no file of a program"
                    break
                try:
                    value = self._read_file(row.file)
                except FileNotFoundError:
                    continue  # it was replaced in between: read the new one
                except OSError as error:
                    raise failure(self._folder / row.file, error) from error
            if hashlib.sha256(value).hexdigest() == row.checksum:
                return row, value
            problem = "its checksum is wrong"
            break
        raise ProgramDamaged(name, problem)

    def find(self, session: int, name: str) -> ProgramRow | None:
        """Return the row of a program, without the object."""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM programs WHERE session = ? AND name = ? AND {_ALIVE}",  # noqa: S608 - constants
            (session, name, time.time()),
        )
        return _program(rows[0]) if rows else None

    def all(self, session: int) -> list[ProgramRow]:
        """Return the rows of all programs of a session, by name."""
        rows = self._database.read(
            f"SELECT {_COLUMNS} FROM programs WHERE session = ? AND {_ALIVE} ORDER BY name",  # noqa: S608 - constants
            (session, time.time()),
        )
        return [_program(row) for row in rows]

    def delete(self, session: int, name: str) -> bool:
        """Delete a program; return whether it existed."""
        delete = "DELETE FROM programs WHERE session = ? AND name = ? RETURNING file"
        deleted = self._database.transaction(
            lambda connection: connection.execute(delete, (session, name)).fetchall()
        )
        self.remove_files(row[0] for row in deleted)
        return bool(deleted)

    def touch(self, row: ProgramRow) -> None:
        """Refresh the expiry of a program with a time to live."""
        now = time.time()
        if row.ttl is None or row.expires is None or row.expires - now > row.ttl * 0.95:
            return
        update = "UPDATE programs SET expires = ? WHERE session = ? AND name = ? AND expires > ?"
        self._database.write(update, (now + row.ttl, row.session, row.name, now))

    def sweep(self) -> None:
        """Delete expired programs, and files without a row."""
        over = (time.time(),)
        if self._database.read("SELECT 1 FROM programs WHERE expires <= ? LIMIT 1", over):
            delete = "DELETE FROM programs WHERE expires <= ? RETURNING file"
            self.remove_files(
                name
                for (name,) in self._database.transaction(
                    lambda connection: connection.execute(delete, over).fetchall()
                )
            )
        if self._is_folder_ours():
            self._remove_orphans()

    def _is_folder_ours(self) -> bool:
        """Whether the files in the folder may be removed; log why not, if it exists."""
        try:
            check_directory(self._folder)
        except FileNotFoundError:
            return False
        except OSError as error:
            logger.warning("files of programs are not removed: %s", error)
            return False
        return True

    def copy(self, session: int, target: int) -> None:
        """Copy the programs of a session to another one."""
        copied: list[str] = []
        try:
            for found in self.all(session):
                if found.file is not None and not _is_file_name(found.file):
                    continue  # it is damaged, and cannot be loaded either
                with contextlib.suppress(FileNotFoundError):  # it was deleted in between
                    file = self._copy_file(found.file) if found.file is not None else None
                    copied += [file] if file is not None else []
                    insert = (
                        f"INSERT INTO programs ({_COLUMNS}, value) SELECT ?, name, version, size,"  # noqa: S608 - constants
                        " checksum, ?, metadata, source, created, updated, NULL, NULL, value"
                        " FROM programs WHERE session = ? AND name = ? AND checksum = ?"
                    )
                    self._database.write(
                        insert, (target, file, session, found.name, found.checksum)
                    )
        except BaseException:
            self.remove_files(copied)
            raise

    def _copy_file(self, name: str) -> str:
        copy = uuid.uuid4().hex
        check_directory(self._folder)
        os.utime(self._folder / name)  # it must not look like an orphan
        os.link(self._folder / name, self._folder / copy)  # files are replaced, never changed
        return copy

    def files_of(self, session: int) -> list[str]:
        """Return the names of the files of a session's programs."""
        select = "SELECT file FROM programs WHERE session = ? AND file IS NOT NULL"
        return [name for (name,) in self._database.read(select, (session,))]

    def remove_files(self, names: Iterable[str | None]) -> None:
        """Remove files whose rows are gone."""
        own = [name for name in names if name is not None and _is_file_name(name)]
        if own and self._is_folder_ours():
            for name in own:
                self._remove(name)

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self._folder / name).unlink()

    def _remove_orphans(self) -> None:
        with os.scandir(self._folder) as entries:
            old = time.time() - ORPHAN_SECONDS
            names = {
                entry.name
                for entry in entries
                if _is_file_name(entry.name)
                and entry.is_file(follow_symlinks=False)
                and _is_older(entry, old)
            }
        if names:
            select = "SELECT file FROM programs WHERE file IS NOT NULL"
            names -= {name for (name,) in self._database.read(select)}
            for name in names:
                self._remove(name)

    def _write_file(self, value: bytes) -> str:
        name = uuid.uuid4().hex
        path = self._folder / name
        try:
            make_directory(self._folder)
            check_directory(self._folder)
            with open(path, "xb", opener=open_file) as file:
                file.write(value)
                file.flush()
                os.fsync(file.fileno())  # the row that names it must not outlive a power cut alone
        except BaseException as error:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise failure(path, error) from error
            raise
        return name

    def _read_file(self, name: str) -> bytes:
        check_directory(self._folder)
        # Copies of a session share it (`_copy_file`), and its checksum is known.
        opener = partial(open_file, links=sys.maxsize)
        with open(self._folder / name, "rb", opener=opener) as file:
            return file.read()

    def _is_named(self, file: str) -> bool:
        return bool(self._database.read("SELECT 1 FROM programs WHERE file = ?", (file,)))


def _check_quota(
    connection: sqlite3.Connection, session: int, max_programs: int, now: float
) -> None:
    count = "SELECT count(*) FROM programs WHERE session = ?"
    if connection.execute(count, (session,)).fetchone()[0] >= max_programs:
        delete = "DELETE FROM programs WHERE session = ? AND expires <= ?"  # nobody has swept them
        if not connection.execute(delete, (session, now)).rowcount:
            raise QuotaExceeded("programs", max_programs, "delete some first")


def _is_older(entry: os.DirEntry[str], moment: float) -> bool:
    try:
        return entry.stat(follow_symlinks=False).st_mtime < moment
    except FileNotFoundError:
        return False  # removed meanwhile


def _is_file_name(name: object) -> bool:
    """Whether a file name in a row has the form that `ProgramTable` uses: it becomes a path."""
    return isinstance(name, str) and _FILE.fullmatch(name) is not None


def _program(row: Sequence[Any]) -> ProgramRow:
    return ProgramRow(**dict(zip(ProgramRow.__slots__, row, strict=True)))
