"""The log of a database in WAL mode: whether SQLite drops a part of it, and what that was.

Whoever opens a database that nobody has closed reads its log anew, up to the first frame whose
checksum is wrong. SQLite does not say that there were more: one wrong bit, and all that was
acknowledged after it is gone. So the first one to open it counts; see
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

from .recovery import FAILURES, index_of, log_of

_HEADER, _FRAME_HEADER = 32, 24
_INDEX_HEADER = struct.Struct("=IIIBBHII8s8s8s")  # in the byte order of the machine, twice
_COPIED = struct.Struct("=I")
_USED = 128  # a byte of the index: all who have the database open hold a lock on it
_LOCK = struct.Struct("hhqqi")
_MOST_PAGES = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """What SQLite drops of a log.

    Attributes
    ----------
    frames
        How many frames there are that were acknowledged.
    taken
        How many of them it takes, from the first on.
    """

    frames: int
    taken: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Index:
    frames: int
    salts: bytes
    copied: int  # how many of the frames are in the database itself


def is_left(path: Path) -> bool:
    """Whether there is a log of a database that nobody has open, in another process at least.

    The caller has no connection to it: it would lose its locks.
    """
    if not _size(log_of(path)) and not _size(index_of(path)):
        return False
    try:
        descriptor = os.open(index_of(path), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        question = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _USED, 1, 0)
        answer = fcntl.fcntl(descriptor, fcntl.F_GETLK, question)
    finally:
        os.close(descriptor)
    kind: int = _LOCK.unpack(answer)[0]
    return kind == fcntl.F_UNLCK


def find_dropped(path: Path) -> Dropped | None:
    """Return what SQLite drops of a log that is left, or None when it takes all.

    The caller holds the exclusive lock (`recovery.locked`). Database and log are not changed.
    """
    index = _read_index(path)
    certain, frames = (index.frames,) * 2 if index is not None else _count_frames(path)
    if not certain:
        return None
    content = _content_of(index_of(path))
    if not _can_be_read(path):
        return None  # who opens it is told why
    after = _read_index(path)
    taken = after.frames if after is not None else 0
    is_copied = not taken and index is not None and index.copied >= frames
    if taken >= certain or is_copied:
        return None
    # What has read the log has written how far it came: who tries again must see what we saw.
    index_of(path).write_bytes(content)
    return Dropped(frames=frames, taken=taken)


def replay(path: Path, target: Path, frames: int) -> None:
    """Write the database that a log leads to, whatever its checksums say.

    Parameters
    ----------
    path
        The database, with its log.
    target
        File for the result.
    frames
        How many frames of the log belong to it.
    """
    page_bytes, pages = page_bytes_of(path), 0
    with path.open("rb") as source, target.open("wb") as out:
        while block := source.read(1 << 20):
            out.write(block)
        for number, size, page in _frames(path, page_bytes, frames):
            if 0 < number < _MOST_PAGES:
                out.seek((number - 1) * page_bytes)
                out.write(page)
            pages = size or pages
        if 0 < pages < _MOST_PAGES:
            out.truncate(pages * page_bytes)


def pages_in_log(path: Path) -> dict[int, bytes]:
    """Return the pages in the log of a database by their numbers, whatever their checksums say."""
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
    """Return the numbers of the last two frames that end a transaction, where no index says that.

    Frames of an earlier use of the same file have other salts. The last transaction may be one
    that was never acknowledged: its writer has died in the middle.
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
    """Read the shared index; None when there is none, or what is there is not whole."""
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
    """Have SQLite read the log, and nothing else: who may only read copies nothing at its end."""
    address = f"file:{quote(str(path))}?mode=ro"
    try:
        connection = sqlite3.connect(address, uri=True)
        with contextlib.closing(connection):
            connection.execute("PRAGMA schema_version").fetchone()
    except FAILURES:
        return False
    return True


def page_bytes_of(path: Path) -> int:
    """Return how many bytes a page of a database has, as well as can be told."""
    for file, form, place in ((path, ">H", 16), (log_of(path), ">I", 8)):
        with contextlib.suppress(OSError, struct.error), file.open("rb") as opened:
            (found,) = struct.unpack_from(form, opened.read(_HEADER), place)
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
