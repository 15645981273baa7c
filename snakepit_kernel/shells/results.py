"""What a command of a shell gave: its result, and the chunks of its output."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

StreamName = Literal["stdout", "stderr"]

SMALL = 1 << 14
"""Bytes below which pieces of output are put together."""

MAX_OUTPUT = 16 << 20
"""Bytes of each output stream of a command that its result keeps, if it is not spooled."""


@dataclass(frozen=True, slots=True)
class ShellChunk:
    """Bytes that a command wrote, as they came.

    Attributes
    ----------
    stream
        ``"stdout"`` or ``"stderr"``.
    data
        The bytes.
    """

    stream: StreamName
    data: bytes

    @property
    def text(self) -> str:
        """The bytes as UTF-8; a character may be divided between two chunks."""
        return self.data.decode("utf-8", "replace")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShellResult:
    """The result of a command in a shell.

    Attributes
    ----------
    number
        Number of the command in its session, from 1.
    command
        Its text.
    returncode
        Exit status as bash gives it: 124 after a time-out, 130 after an interrupt, 128 + N when
        signal N ended the shell itself.
    stdout_bytes, stderr_bytes
        What it wrote; the beginning and the end, if that is more than is kept.
    stdout_total, stderr_total
        Number of bytes that it wrote.
    timed_out
        It was ended at its time-out.
    interrupted
        It was interrupted.
    restarted
        The shell ended with it (``exit``, ``exec``, ``kill -9 $$``), and another one has gone on
        with its state.
    restored
        The session's shell of an earlier kernel has come back with this command.
    lost
        What did not come back with the state, in words; empty if nothing is known to be missing.
    detached
        Something that it started in the background still holds its output; see `Shell.late_output`.
    duration
        Seconds from its start to its end.
    cwd
        The shell's working directory afterwards.
    spool
        File with all of its standard output, if that was asked for.
    correlation_id
        That of the call that it was run for, and of its event.
    """

    number: int
    command: str
    returncode: int
    stdout_bytes: bytes
    stderr_bytes: bytes
    stdout_total: int
    stderr_total: int
    timed_out: bool = False
    interrupted: bool = False
    restarted: bool = False
    restored: bool = False
    lost: str = ""
    detached: bool = False
    duration: float = 0.0
    cwd: str = ""
    spool: Path | None = None
    correlation_id: str = ""

    @property
    def ok(self) -> bool:
        """Whether the exit status is 0."""
        return self.returncode == 0

    @property
    def stdout(self) -> str:
        """Standard output as UTF-8 text."""
        return self.stdout_bytes.decode("utf-8", "replace")

    @property
    def stderr(self) -> str:
        """Standard error as UTF-8 text."""
        return self.stderr_bytes.decode("utf-8", "replace")

    @property
    def stdout_truncated(self) -> bool:
        """Whether the middle of standard output is missing."""
        return self.stdout_total > len(self.stdout_bytes)

    @property
    def stderr_truncated(self) -> bool:
        """Whether the middle of standard error is missing."""
        return self.stderr_total > len(self.stderr_bytes)


class Capture:
    """Keeps the beginning and the end of an output stream, and counts all of it.

    Parameters
    ----------
    limit
        Bytes to keep.
    spool
        A file that gets everything.
    """

    def __init__(self, limit: int, spool: IO[bytes] | None = None) -> None:
        self.total = 0
        self._first: list[bytes | bytearray] = []
        self._room = limit // 2  # for the beginning
        self._last: deque[bytes | bytearray] = deque()
        self._limit = limit - self._room
        self._held = 0  # bytes of the end
        self._spool = spool

    def add(self, data: bytes) -> None:
        """Add bytes."""
        self.total += len(data)
        if self._spool is not None:
            self._spool.write(data)
        if self._room >= len(data):
            self._room -= len(data)
            _append(self._first, data)
            return
        if self._room:
            _append(self._first, data[: self._room])
            data = data[self._room :]
            self._room = 0
        _append(self._last, data)
        self._held += len(data)
        while self._last and self._held - len(self._last[0]) >= self._limit:
            self._held -= len(self._last.popleft())

    def take(self) -> bytes:
        """Return what is kept: everything, if that is not more than the limit."""
        end = list(self._last)
        if end:
            end[0] = end[0][max(0, self._held - self._limit) :]
        return b"".join([*self._first, *end])


def _append(pieces: list[bytes | bytearray] | deque[bytes | bytearray], data: bytes) -> None:
    """Append bytes; small ones are put together, because each piece takes room of its own."""
    last = pieces[-1] if pieces else b""
    if len(data) >= SMALL:
        pieces.append(data)
    elif isinstance(last, bytearray) and len(last) < SMALL:
        last += data
    else:
        pieces.append(bytearray(data))
