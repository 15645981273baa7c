"""The log of a background process: bounded, numbered, and readable from every process of the user.

It is two files that take turns: when one is full, the other one is emptied and written. A record is
a header and the bytes; its number never changes, so a reader goes on where it was, or sees that it
has missed something.
"""

from __future__ import annotations

import contextlib
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..files import open_file
from .results import StreamName

FILE_BYTES: Final = 512 << 10
FILE_CHUNKS: Final = 5000
"""Size and number of records at which the other file is written."""

ATTEMPTS: Final = 5
"""Attempts to read a file that is emptied meanwhile."""

_HEADER = struct.Struct("<QBI")
_STREAMS: Final[tuple[StreamName, ...]] = ("stdout", "stderr")


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes that a process wrote.

    Attributes
    ----------
    seq
        Its number, from 0.
    stream
        ``"stdout"`` or ``"stderr"``.
    data
        The bytes.
    """

    seq: int
    stream: StreamName
    data: bytes

    @property
    def text(self) -> str:
        """The bytes as UTF-8; a character may be divided between two chunks."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True)
class Logs:
    """A part of a log.

    Attributes
    ----------
    chunks
        What was written, in order.
    next
        The number to go on with.
    truncated
        Something before the first chunk is not kept any more.
    """

    chunks: tuple[LogChunk, ...]
    next: int
    truncated: bool

    @property
    def text(self) -> str:
        """All of it as UTF-8."""
        return b"".join(chunk.data for chunk in self.chunks).decode("utf-8", "replace")


class LogWriter:
    """Writes a log.

    Parameters
    ----------
    folder
        Where its files are.
    """

    def __init__(self, folder: Path) -> None:
        self.seq = 0
        self._folder = folder
        self._turn = 0
        self._fd = self._open()
        self._size = self._count = 0

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND
        return open_file(log_file(self._folder, self._turn), flags)

    def add(self, stream: StreamName, data: bytes) -> None:
        """Add bytes; if the disk is full, they are missing, and their number is."""
        if self._size >= FILE_BYTES or self._count >= FILE_CHUNKS:
            with contextlib.suppress(OSError):
                self._turn += 1
                fd, self._fd = self._fd, self._open()
                os.close(fd)
                self._size = self._count = 0
        record = _HEADER.pack(self.seq, _STREAMS.index(stream), len(data)) + data
        self.seq += 1
        with contextlib.suppress(OSError):  # a full disk
            written = os.write(self._fd, record)
            if written < len(record):
                os.ftruncate(self._fd, self._size)
                return
            self._size += len(record)
            self._count += 1

    def close(self) -> None:
        """Close it."""
        os.close(self._fd)


def log_file(folder: Path, turn: int) -> Path:
    """Return one of the two files of a log."""
    return folder / f"log.{turn % 2}"


class LogReader:
    """Reads a log piece by piece, from where it was.

    Parameters
    ----------
    folder
        Where its files are.
    since
        The number of the first chunk.
    """

    def __init__(self, folder: Path, since: int = 0) -> None:
        self.next = since
        self._folder = folder
        self._places: list[tuple[bytes, int]] = [(b"", 0), (b"", 0)]

    def read(self) -> Logs:
        """Return what is new."""
        found = sorted((chunk for turn in (0, 1) for chunk in self._read(turn)), key=_number)
        wanted = [chunk for chunk in found if chunk.seq >= self.next]
        is_truncated = bool(wanted) and wanted[0].seq > self.next
        if wanted:
            self.next = wanted[-1].seq + 1
        return Logs(tuple(wanted), self.next, is_truncated)

    def _read(self, turn: int) -> list[LogChunk]:
        """Read the rest of a file; all of it, if it was emptied and written since then."""
        known, place = self._places[turn]
        try:
            with open(open_file(log_file(self._folder, turn), os.O_RDONLY), "rb") as file:  # noqa: PTH123
                for _ in range(ATTEMPTS):
                    first = os.pread(file.fileno(), _HEADER.size, 0)
                    place = place if first == known else 0
                    known = first
                    file.seek(place)
                    data = file.read()
                    if os.pread(file.fileno(), _HEADER.size, 0) == first:
                        break  # else it was emptied meanwhile
                else:
                    return []
        except OSError:
            return []
        chunks, used = _parse(data)
        self._places[turn] = (known, place + used)
        return chunks


def read_log(folder: Path, since: int = 0) -> Logs:
    """Return what a log has from a number on."""
    return LogReader(folder, since).read()


def _number(chunk: LogChunk) -> int:
    return chunk.seq


def _parse(data: bytes) -> tuple[list[LogChunk], int]:
    """Return the whole chunks in a part of a file, and the number of their bytes."""
    chunks, at = [], 0
    while at + _HEADER.size <= len(data):
        seq, stream, size = _HEADER.unpack_from(data, at)
        end = at + _HEADER.size + size
        if stream >= len(_STREAMS) or end > len(data):
            break  # it is being written
        chunks.append(LogChunk(seq, _STREAMS[stream], data[at + _HEADER.size : end]))
        at = end
    return chunks, at
