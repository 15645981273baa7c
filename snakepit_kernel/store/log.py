"""Detection and replay of the frames that SQLite drops from a damaged write-ahead log.

SQLite reads the log of a database that was not closed up to the first frame whose checksum is
wrong. It does not report that there were more: one wrong bit, and everything that was acknowledged
after it is gone. So the first process to open it counts the frames; see
https://www.sqlite.org/walformat.html and https://www.sqlite.org/fileformat2.html#walformat.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ..files import open_file
from .recovery import FAILURES, index_of, log_of

_HEADER, _FRAME_HEADER = 32, 24
_INDEX_HEADER = struct.Struct("=IIIBBHII8s8s8s")  # in native byte order, stored twice
_COPIED = struct.Struct("=I")
_OPEN_LOCK_BYTE = 128  # of the index: every process with an open connection holds a lock on it
_LOCK = struct.Struct("hhqqi")
_MAX_PAGES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedFrames:
    """The frames that SQLite drops from a log.

    Attributes
    ----------
    frames
        Number of acknowledged frames.
    taken
        Number of frames that SQLite applies, from the first on.
    """

    frames: int
    taken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    frames: int
    salts: bytes
    copied: int  # number of frames that are in the database itself


def is_unclosed(path: Path) -> bool:
    """Whether a database has a log although no other process has it open.

    The caller must have no connection to it, whose locks would be lost.
    """
    if not _size(log_of(path)) and not _size(index_of(path)):
        return False
    try:
        descriptor = os.open(index_of(path), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        question = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _OPEN_LOCK_BYTE, 1, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
    finally:
        os.close(descriptor)
    kind: int = _LOCK.unpack(answer)[0]
    return kind == fcntl.F_UNLCK


def find_dropped(path: Path) -> DroppedFrames | None:
    """Return what SQLite drops from a log that was not closed, or None when it applies all.

    The caller holds the exclusive lock (`recovery.locked`). Database and log are not changed.
    """
    index = _read_index(path)
    certain, frames = (index.frames,) * 2 if index is not None else _count_frames(path)
    if not certain:
        return None
    content = _content_of(index_of(path))
    if not _can_be_read(path):
        return None  # opening it raises the reason
    after = _read_index(path)
    taken = after.frames if after is not None else 0
    is_copied = not taken and index is not None and index.copied >= frames
    if taken >= certain or is_copied:
        return None
    # Reading the log has updated the index: restore it, so that a retry sees what we saw.
    index_of(path).write_bytes(content)
    return DroppedFrames(frames=frames, taken=taken)


def replay(path: Path, target: Path, frames: int) -> None:
    """Write the database that results from applying a log, ignoring its checksums.

    Parameters
    ----------
    path
        The database, with its log.
    target
        File for the result.
    frames
        Number of frames of the log to apply.
    """
    page_bytes, pages = page_bytes_of(path), 0
    with path.open("rb") as source, open(target, "wb", opener=open_file) as out:
        while block := source.read(1 << 20):
            out.write(block)
        for number, size, page in _frames(path, page_bytes, frames):
            if 0 < number < _MAX_PAGES:
                out.seek((number - 1) * page_bytes)
                out.write(page)
            pages = size or pages
        if 0 < pages < _MAX_PAGES:
            out.truncate(pages * page_bytes)


def pages_in_log(path: Path) -> dict[int, bytes]:
    """Return the pages in the log of a database by number, ignoring checksums."""
    _, last = _count_frames(path)
    return {number: page for number, _, page in _frames(path, page_bytes_of(path), last)}


def _frames(path: Path, page_bytes: int, most: int) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    with contextlib.suppress(FileNotFoundError), log_of(path).open("rb") as log:
        log.seek(_HEADER)
        while len(found) < most:
            header, page = log.read(_FRAME_HEADER), log.read(page_bytes)
            if len(page) < page_bytes:
                break
            number, size = struct.unpack_from(">II", header)
            found.append((number, size, page))
    return found


def _count_frames(path: Path) -> tuple[int, int]:
    """Return the numbers of the last two frames that end a transaction, without an index.

    Frames of an earlier use of the same file have other salts. The last transaction may never have
    been acknowledged, because its writer died before.
    """
    page_bytes = page_bytes_of(path)
    salts, ends = [], []
    with contextlib.suppress(FileNotFoundError), log_of(path).open("rb") as log:
        salts.append(log.read(_HEADER)[16:24])
        while len(header := log.read(_FRAME_HEADER)) == _FRAME_HEADER:
            salts.append(header[8:16])
            ends.append(header[4:8] != bytes(4))
            log.seek(page_bytes, os.SEEK_CUR)
    if not ends:
        return 0, 0
    ((own, _),) = Counter(salts[:4]).most_common(1)
    last = [number for number, is_end in enumerate(ends, 1) if is_end and salts[number] == own]
    return (last[-2], last[-1]) if len(last) > 1 else (0, 0)


def _read_index(path: Path) -> _Index | None:
    """Read the shared index; return None when it is missing or incomplete."""
    content = _content_of(index_of(path))
    size = _INDEX_HEADER.size
    if len(content) < 2 * size + _COPIED.size or content[:size] != content[size : 2 * size]:
        return None
    *_, is_ready, _, _, frames, _, _, salts, checksum = _INDEX_HEADER.unpack_from(content)
    if not is_ready or _checksum(content[: size - 8]) != checksum:
        return None
    (copied,) = _COPIED.unpack_from(content, 2 * size)
    return _Index(frames=frames, salts=salts, copied=copied)


def _checksum(content: bytes) -> bytes:
    first = second = 0
    words = struct.unpack(f"={len(content) // 4}I", content)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return struct.pack("=II", first, second)


def _can_be_read(path: Path) -> bool:
    """Let SQLite read the log; read-only, or closing would copy it into the database."""
    address = f"file:{quote(str(path))}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True)
        with contextlib.closing(connection):
            connection.execute("PRAGMA schema_version").fetchone()
    except FAILURES:
        return False
    return True


def page_bytes_of(path: Path) -> int:
    """Return the page size of a database, from its header or its log, else the default."""
    for file, form, offset in ((path, ">H", 16), (log_of(path), ">I", 8)):
        with contextlib.suppress(OSError, struct.error), file.open("rb") as opened:
            (found,) = struct.unpack_from(form, opened.read(_HEADER), offset)
            if found == 1:
                return 65536
            if 512 <= found <= 65536 and not found & (found - 1):
                return int(found)
    return 4096


def _content_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""


def _size(path: Path) -> int:
    try:
        return path.lstat().st_size
    except OSError:
        return 0
