"""What can be read of a damaged database, page by page.

SQLite finds a row through the pages above its own, and one that is damaged hides all below it. But
each page says what it holds, see https://www.sqlite.org/fileformat2.html: so here all pages are
read, also those that no other one leads to, and a row belongs to the table that it has the form of.
The damaged file is not changed.
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
from .recovery import readable, tables_of
from .schema import CONSISTENT

Value: TypeAlias = int | float | str | bytes | None
Record: TypeAlias = list[Value]

_INDEX_NODE, _TABLE_NODE, _INDEX_LEAF, _TABLE_LEAF = 2, 5, 10, 13
_DAMAGED = (IndexError, KeyError, ValueError, struct.error)
_INTEGERS: Final = {1: 1, 2: 2, 3: 3, 4: 4, 5: 6, 6: 8}  # bytes by the number of the type
_FLOAT, _ZERO, _ONE, _FIRST_BLOB = 7, 8, 9, 12


def rescue(backup: Path, connection: sqlite3.Connection) -> int:
    """Copy what can still be read of a damaged store of sessions; return the number of rows.

    A session of which only its parts are left is made anew.

    Parameters
    ----------
    backup
        The damaged file.
    connection
        To the new one, which has its tables.
    """
    connection.execute("PRAGMA foreign_keys = OFF")
    connection.execute("BEGIN IMMEDIATE")
    rescued = copy_rows(backup, connection)
    _make_sessions(connection, _names_in_indexes(backup))
    for statement in CONSISTENT:
        removed = connection.execute(statement).rowcount
        rescued -= removed if statement.startswith("DELETE") else 0
    connection.execute("COMMIT")
    connection.execute("PRAGMA foreign_keys = ON")
    return rescued


def copy_rows(backup: Path, connection: sqlite3.Connection) -> int:
    """Copy the rows that can still be read of a damaged database; return how many.

    Parameters
    ----------
    backup
        The damaged file.
    connection
        To the new one, which has its tables, in a transaction.
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
    """Make the sessions anew of which there are parts, by their names where these are known."""
    insert = "INSERT OR IGNORE INTO sessions (number, id, created, used) VALUES (?, ?, ?, ?)"
    now = time.time()
    for table, row, *_ in connection.execute("PRAGMA foreign_key_check").fetchall():
        select = f"SELECT session FROM {table} WHERE rowid = ?"  # noqa: S608 - names of our own schema
        ((number,),) = connection.execute(select, (row,))
        for name in (names.get(number), f"recovered-{number}"):  # another one may have that name
            if name is not None:
                connection.execute(insert, (number, name, now, now))


def _names_in_indexes(backup: Path) -> dict[Value, str]:
    """Return the names of sessions by their numbers, as the index of these names has them."""
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
    number: int | None  # the column that is the number of the row, and not in its record

    def row(self, number: int, record: Record, *, is_known: bool) -> Record | None:
        """Return a record as a row of this table, or None when it cannot be one.

        A file of another version has more columns than this one, or fewer.
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
    keys = [place for place, column in enumerate(columns) if column[5]]
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
    """Yield the rows of all pages: first where the schema leads to them, then what is left."""
    owners = dict.fromkeys(pages.leaves(1), "sqlite_schema")
    for leaf in list(owners):
        for _, record in pages.records(leaf, _TABLE_LEAF):
            if len(record) == 5 and record[0] == "table" and isinstance(record[3], int):
                for below in pages.leaves(record[3]):
                    owners.setdefault(below, str(record[1]))
    for number in (*owners, *(page for page in pages.used() if page not in owners)):
        owner = owners.get(number)
        if owner is not None and owner not in tables:
            continue  # SQLite's own
        for key, record in pages.records(number, _TABLE_LEAF):
            for table in sorted(tables.values(), key=lambda table: table.name != owner):
                row = table.row(key, record, is_known=table.name == owner)
                if row is not None:
                    yield table, row
                    break


# -- pages -----------------------------------------------------------------------------------------


class _Pages:
    """The pages of a database, with those that only its log has.

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
        """Yield the numbers of all pages but those of which SQLite knows that they are free.

        What was deleted still stands in these.
        """
        free, trunk = set(), self._number(1, 32)
        while 0 < trunk <= self._count and trunk not in free:
            free.add(trunk)
            entries = min(self._number(trunk, 4), self._usable // 4 - 2)
            free.update(self._number(trunk, 8 + 4 * entry) for entry in range(entries))
            trunk = self._number(trunk, 0)
        return (number for number in range(1, self._count + 1) if number not in free)

    def leaves(self, root: int) -> list[int]:
        """Return the numbers of the pages with the rows of a table, from its root on."""
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
                left += [self._number(number, place) for place in self._cells(page, head)]
        return found

    def records(self, number: int, *kinds: int) -> Iterator[tuple[int, Record]]:
        """Yield the records of a page that is of one of some kinds, with the numbers of their rows.

        Records of an index have 0.
        """
        page, head = self._read(number), self._head(number)
        if page[head] in kinds:
            for place in self._cells(page, head):
                with contextlib.suppress(*_DAMAGED):
                    yield self._record(page, page[head], place)

    def _read(self, number: int) -> bytes:
        if (logged := self._logged.get(number)) is not None:
            return logged
        with self._path.open("rb") as file:
            file.seek((number - 1) * self._bytes)
            return file.read(self._bytes).ljust(self._bytes, b"\0")

    def _number(self, page: int, place: int) -> int:
        """Return the number of a page that stands at a place of another one, or 0."""
        found: int = struct.unpack_from(">I", self._read(page).ljust(place + 4, b"\0"), place)[0]
        return found

    @staticmethod
    def _head(number: int) -> int:
        return 100 if number == 1 else 0  # the first page begins with the head of the file

    @staticmethod
    def _cells(page: bytes, head: int) -> list[int]:
        start = head + (8 if page[head] in {_INDEX_LEAF, _TABLE_LEAF} else 12)
        count = min(struct.unpack_from(">H", page, head + 3)[0], (len(page) - start) // 2)
        return list(struct.unpack_from(f">{count}H", page, start))

    def _record(self, page: bytes, kind: int, place: int) -> tuple[int, Record]:
        place += 4 if kind == _INDEX_NODE else 0  # behind the number of the page below
        size, place = _varint(page, place)
        key = 0
        if kind == _TABLE_LEAF:
            key, place = _varint(page, place)
        if size > self._count * self._bytes:
            raise ValueError
        return key, _decode(self._payload(page, place, size, is_index=kind != _TABLE_LEAF))

    def _payload(self, page: bytes, place: int, size: int, *, is_index: bool) -> bytes:
        """Return what stands at a place of a page, and what of it flows over into other pages."""
        least = (self._usable - 12) * 32 // 255 - 23
        most = (self._usable - 12) * 64 // 255 - 23 if is_index else self._usable - 35
        here = size
        if size > most:
            here = least + (size - least) % (self._usable - 4)
            here = here if here <= most else least
        payload = bytearray(page[place : place + here])
        following = page[place + here : place + here + 4]
        while len(payload) < size:
            (number,) = struct.unpack(">I", following)
            if not 0 < number <= self._count:
                raise ValueError
            more = self._read(number)
            payload += more[4 : min(self._usable, 4 + size - len(payload))]
            following = more[:4]
        return bytes(payload)


def _decode(payload: bytes) -> Record:
    """Return the values of a record."""
    end, place = _varint(payload, 0)
    kinds, values = [], []
    while place < end:
        kind, place = _varint(payload, place)
        kinds.append(kind)
    for kind in kinds:
        size = _INTEGERS.get(kind, 8 if kind == _FLOAT else 0)
        if kind >= _FIRST_BLOB:
            size = (kind - _FIRST_BLOB) // 2
        values.append(_value(kind, payload[place : place + size]))
        place += size
    if place != len(payload):
        raise ValueError
    return values


def _value(kind: int, content: bytes) -> Value:
    if kind >= _FIRST_BLOB:
        return readable(content) if kind % 2 else content
    if kind in _INTEGERS:
        return int.from_bytes(content, "big", signed=True)
    if kind == _FLOAT:
        found: float = struct.unpack(">d", content)[0]
        return found
    return {0: None, _ZERO: 0, _ONE: 1}[kind]


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return a number of one to nine bytes, and the place behind it."""
    found = 0
    for _ in range(8):
        byte = content[place]
        place += 1
        found = found << 7 | byte & 0x7F
        if byte < 0x80:
            return found, place
    found = found << 8 | content[place]
    return (found - (1 << 64) if found >> 63 else found), place + 1
