"""Rescue of the readable rows of a damaged database, page by page.

SQLite finds a row through the pages above its own, and a damaged page hides all pages below it. But
each page describes its contents, see https://www.sqlite.org/fileformat2.html: so here all pages are
read, also those that no other page refers to, and a row is assigned to the table whose columns it
fits. The damaged file is not changed.
"""

from __future__ import annotations

import contextlib
import sqlite3
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from .log import page_bytes_of, pages_in_log
from .recovery import decode_lossy, tables_of
from .schema import RESTORE_CONSISTENCY

Value: TypeAlias = int | float | str | bytes | None
Record: TypeAlias = list[Value]

_INDEX_NODE, _TABLE_NODE, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_DAMAGED = (IndexError, KeyError, ValueError, struct.error)
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # bytes by the number of the type
_FLOAT, _ZERO, _ONE, _FIRST_BLOB = 7, 8, 9, 12


def rescue(backup: Path, connection: sqlite3.Connection) -> int:
    """Copy the readable rows of a damaged store of sessions; return their number.

    A session of which only parts are left is created again.

    Parameters
    ----------
    backup
        The damaged file.
    connection
        Connection to the new file, which has its tables.
    """
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("BEGIN IMMEDIATE")
    rescued = copy_rows(backup, connection)
    _make_sessions(connection, _names_in_indexes(backup))
    for statement in RESTORE_CONSISTENCY:
        removed = connection.execute(statement).rowcount
        rescued -= removed if statement.startswith("DELETE") else 0
    connection.execute("COMMIT")
    connection.execute("PRAGMA foreign_keys = ON")
    return rescued


def copy_rows(backup: Path, connection: sqlite3.Connection) -> int:
    """Copy the readable rows of a damaged database; return their number.

    Parameters
    ----------
    backup
        The damaged file.
    connection
        Connection to the new file, which has its tables, in a transaction.
    """
    copied = 0
    tables = {name: _table(connection, name) for name in tables_of(connection)}
    for table, row in _rows(_Pages(backup), tables):
        columns = ", ".join(table.columns[: len(row)])
        marks = ", ".join("?" * len(row))
        insert = f"INSERT OR IGNORE INTO {table.name} ({columns}) VALUES ({marks})"  # noqa: S608 - names of our own schema
        with contextlib.suppress(sqlite3.IntegrityError):  # a damaged row
            copied += connection.execute(insert, row).rowcount
    return copied


def _make_sessions(connection: sqlite3.Connection, names: dict[Value, str]) -> None:
    """Create the missing sessions of rescued rows again, under their names if these are known."""
    insert = "INSERT OR IGNORE INTO sessions (number, id, created, used) VALUES (?, ?, ?, ?)"
    now = time.time()
    for table, row, *_ in connection.execute("PRAGMA foreign_key_check").fetchall():
        select = f"SELECT session FROM {table} WHERE rowid = ?"  # noqa: S608 - names of our own schema
        ((number,),) = connection.execute(select, (row,))
        for name in (names.get(number), f"recovered-{number}"):  # another one may have that name
            if name is not None:
                connection.execute(insert, (number, name, now, now))


def _names_in_indexes(backup: Path) -> dict[Value, str]:
    """Return the names of sessions by their numbers, from the index of names."""
    pages = _Pages(backup)
    found: dict[Value, str] = {}
    for number in pages.used():
        for _, record in pages.records(number, _INDEX_LEAF, _INDEX_NODE):
            if len(record) == 2 and isinstance(record[0], str):
                found[record[1]] = record[0]
    return found


# -- tables ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    name: str
    columns: list[str]
    types: list[tuple[type, ...]]
    number: int | None  # index of the column that is the rowid, which is not in the record

    def row(self, number: int, record: Record, *, is_known: bool) -> Record | None:
        """Return a record as a row of this table, or None when it does not fit.

        A file of another version may have more or fewer columns.
        """
        if len(record) != len(self.columns) and not is_known:
            return None
        row = record[: len(self.columns)]
        if self.number is not None and row[self.number] is None:
            row[self.number] = number
        fits = all(isinstance(value, kind) for value, kind in zip(row, self.types, strict=False))
        return row if fits else None


def _table(connection: sqlite3.Connection, name: str) -> _Table:
    columns = connection.execute(f"PRAGMA table_info({name})").fetchall()
    keys = [position for position, column in enumerate(columns) if column[5]]
    is_numbered = len(keys) == 1 and columns[keys[0]][2] == "INTEGER"
    none = type(None)
    return _Table(
        name=name,
        columns=[column[1] for column in columns],
        types=[
            _TYPES[column[2]] if column[3] else (*_TYPES[column[2]], none) for column in columns
        ],
        number=keys[0] if is_numbered else None,
    )


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "INTEGER": (int,),
    "REAL": (float, int),  # a whole number is stored as one
    "TEXT": (str,),
    "BLOB": (bytes,),
}


def _rows(pages: _Pages, tables: dict[str, _Table]) -> Iterator[tuple[_Table, Record]]:
    """Yield the rows of all pages: first those reachable from the schema, then the others."""
    owners = dict.fromkeys(pages.leaves(1), "sqlite_schema")
    for leaf in list(owners):
        for _, record in pages.records(leaf, _TABLE_LEAF):
            if len(record) == 5 and record[0] == "table" and isinstance(record[3], int):
                for below in pages.leaves(record[3]):
                    owners.setdefault(below, str(record[1]))
    for number in (*owners, *(page for page in pages.used() if page not in owners)):
        owner = owners.get(number)
        if owner is not None and owner not in tables:
            continue  # a table of SQLite's own
        for key, record in pages.records(number, _TABLE_LEAF):
            for table in sorted(tables.values(), key=lambda table: table.name != owner):
                row = table.row(key, record, is_known=table.name == owner)
                if row is not None:
                    yield table, row
                    break


# -- pages -----------------------------------------------------------------------------------------


class _Pages:
    """The pages of a database, including those that are only in its log.

    Parameters
    ----------
    path
        The database.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._bytes = page_bytes_of(path)
        self._logged = pages_in_log(path)
        self._count = max(path.stat().st_size // self._bytes, *self._logged, 0)
        head = self._read(1)
        self._usable = self._bytes - (head[20] if head.startswith(b"SQLite format 3\0") else 0)

    def used(self) -> Iterator[int]:
        """Yield the numbers of all pages except those in SQLite's list of free pages.

        Free pages still contain deleted rows.
        """
        free, trunk = set(), self._number(1, 32)
        while 0 < trunk <= self._count and trunk not in free:
            free.add(trunk)
            entries = min(self._number(trunk, 4), self._usable // 4 - 2)
            free.update(self._number(trunk, 8 + 4 * entry) for entry in range(entries))
            trunk = self._number(trunk, 0)
        return (number for number in range(1, self._count + 1) if number not in free)

    def leaves(self, root: int) -> list[int]:
        """Return the numbers of a table's leaf pages, given its root page."""
        found, left, seen = [], [root], set()
        while left:
            number = left.pop()
            if number in seen or not 0 < number <= self._count:
                continue
            seen.add(number)
            page, head = self._read(number), self._head(number)
            if page[head] == _TABLE_LEAF:
                found.append(number)
            elif page[head] == _TABLE_NODE:
                left.append(self._number(number, head + 8))
                left += [self._number(number, offset) for offset in self._cells(page, head)]
        return found

    def records(self, number: int, *kinds: int) -> Iterator[tuple[int, Record]]:
        """Yield the records of a page, if it is of one of some kinds, with their rowids.

        The rowid is 0 for records of an index.
        """
        page, head = self._read(number), self._head(number)
        if page[head] in kinds:
            for offset in self._cells(page, head):
                with contextlib.suppress(*_DAMAGED):
                    yield self._record(page, page[head], offset)

    def _read(self, number: int) -> bytes:
        if (logged := self._logged.get(number)) is not None:
            return logged
        with self._path.open("rb") as file:
            file.seek((number - 1) * self._bytes)
            return file.read(self._bytes).ljust(self._bytes, b"\0")

    def _number(self, page: int, offset: int) -> int:
        """Return the page number at an offset of a page, or 0."""
        found: int = struct.unpack_from(">I", self._read(page).ljust(offset + 4, b"\0"), offset)[0]
        return found

    @staticmethod
    def _head(number: int) -> int:
        return 100 if number == 1 else 0  # the first page begins with the file header

    @staticmethod
    def _cells(page: bytes, head: int) -> list[int]:
        start = head + (8 if page[head] in {_INDEX_LEAF, _TABLE_LEAF} else 12)
        count = min(struct.unpack_from(">H", page, head + 3)[0], (len(page) - start) // 2)
        return list(struct.unpack_from(f">{count}H", page, start))

    def _record(self, page: bytes, kind: int, offset: int) -> tuple[int, Record]:
        offset += 4 if kind == _INDEX_NODE else 0  # after the number of the child page
        size, offset = _varint(page, offset)
        key = 0
        if kind == _TABLE_LEAF:
            key, offset = _varint(page, offset)
        if size > self._count * self._bytes:
            raise ValueError
        return key, _decode(self._payload(page, offset, size, is_index=kind != _TABLE_LEAF))

    def _payload(self, page: bytes, offset: int, size: int, *, is_index: bool) -> bytes:
        """Return the payload at an offset of a page, with its overflow pages."""
        least = (self._usable - 12) * 32 // 255 - 23
        most = (self._usable - 12) * 64 // 255 - 23 if is_index else self._usable - 35
        here = size
        if size > most:
            here = least + (size - least) % (self._usable - 4)
            here = here if here <= most else least
        payload = bytearray(page[offset : offset + here])
        following = page[offset + here : offset + here + 4]
        while len(payload) < size:
            (number,) = struct.unpack(">I", following)
            if not 0 < number <= self._count:
                raise ValueError
            more = self._read(number)
            payload += more[4 : min(self._usable, 4 + size - len(payload))]
            following = more[:4]
        return bytes(payload)


def _decode(payload: bytes) -> Record:
    """Decode the values of a record."""
    end, offset = _varint(payload, 0)
    kinds, values = [], []
    while offset < end:
        kind, offset = _varint(payload, offset)
        kinds.append(kind)
    for kind in kinds:
        size = _INTEGERS.get(kind, 8 if kind == _FLOAT else 0)
        if kind >= _FIRST_BLOB:
            size = (kind - _FIRST_BLOB) // 2
        values.append(_value(kind, payload[offset : offset + size]))
        offset += size
    if offset != len(payload):
        raise ValueError
    return values


def _value(kind: int, content: bytes) -> Value:
    if kind >= _FIRST_BLOB:
        return decode_lossy(content) if kind % 2 else content
    if kind in _INTEGERS:
        return int.from_bytes(content, "big", signed=True)
    if kind == _FLOAT:
        found: float = struct.unpack(">d", content)[0]
        return found
    return {0: None, _ZERO: 0, _ONE: 1}[kind]


def _varint(content: bytes, offset: int) -> tuple[int, int]:
    """Decode a number of one to nine bytes; return it and the offset after it."""
    found = 0
    for _ in range(8):
        byte = content[offset]
        offset += 1
        found = found << 7 | byte & 0x7F
        if byte < 0x80:
            return found, offset
    found = found << 8 | content[offset]
    return (found - (1 << 64) if found >> 63 else found), offset + 1
