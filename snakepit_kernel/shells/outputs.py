"""The pipes to which a shell's commands write, and what is read from them.

Each is a FIFO, so that it has an end: bash opens it for a command, and when nothing that the
command has started holds it any more, its reader is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import select
import sys
import termios
from collections.abc import Callable
from pathlib import Path

from .results import StreamName

PIPE_BYTES = 1 << 18
"""Size of the pipes for output, if the system allows it; larger ones are slower."""

FIFO_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC

READ_BYTES = 1 << 17
"""Largest piece of output that is read at once."""

LISTEN_SECONDS = 0.002
"""Seconds after which the output of a command is read before its end."""

MAX_LISTEN_SECONDS = 0.1
"""Longest time until an output is looked at again that no process has opened, or has now."""

LATE_BYTES = 1 << 16
"""Bytes that are kept of what a background process of a command writes after its end."""

OnOutput = Callable[[StreamName, bytes], None]


class Output:
    """One output pipe of a session's commands.

    Commands are short for the most part, and have written what they write when bash says that
    they have ended. So the event loop gets to know the pipe only if a command takes longer.

    Parameters
    ----------
    stream
        Its name.
    path
        The FIFO.

    Attributes
    ----------
    is_over
        No process has it open any more.
    """

    def __init__(self, stream: StreamName, path: Path) -> None:
        self.stream = stream
        self.is_over = False
        self._path = path
        self._fd = -1
        self._is_paused = True
        self._loop = asyncio.get_running_loop()
        self._listens = False
        self._look: asyncio.TimerHandle | None = None
        self._wait = LISTEN_SECONDS
        self._on_output: OnOutput = _ignore
        self._on_end: Callable[[], object] | None = None

    @property
    def is_held(self) -> bool:
        """Whether a process has it open for writing."""
        if self._fd < 0:
            return False
        poll = select.poll()
        poll.register(self._fd, 0)
        return not poll.poll(0)  # else it is hung up

    def begin(self, on_output: OnOutput) -> None:
        """Prepare it for the next command, whose output goes to a function.

        Raises
        ------
        OSError
            It cannot be made.
        """
        self.pause()  # the reader of a command that was cancelled may still wait
        if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:
            self._open()
        self.is_over = False
        self._on_end = None
        self._wait = LISTEN_SECONDS
        self._on_output = on_output
        self.resume()

    def _open(self) -> None:
        try:
            fd = os.open(self._path, FIFO_FLAGS)
        except FileNotFoundError:  # it was left to a background process, or is the first one
            os.mkfifo(self._path, 0o600)
            fd = os.open(self._path, FIFO_FLAGS)
        self.close()  # one whose file was removed
        self._fd = fd
        with contextlib.suppress(OSError):  # the limit of the user is reached
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)

    def resume(self) -> None:
        """Read it when there is something."""
        self._is_paused = False
        if self._look is None and not self._listens and self._fd >= 0:
            self._look = self._loop.call_later(self._wait, self._listen)

    def pause(self) -> None:
        """Do not read it for now: its writers wait."""
        self._is_paused = True
        if self._look is not None:
            self._look.cancel()
            self._look = None
        self._stop_listening()

    def _listen(self) -> None:
        self._look = None
        self._listens = True
        self._loop.add_reader(self._fd, self._on_readable)

    def _stop_listening(self) -> None:
        if self._listens:
            self._listens = False
            self._loop.remove_reader(self._fd)

    def _on_readable(self) -> None:
        size = self._read_once(READ_BYTES)
        if self._is_paused:  # its reader has enough for now
            return
        if size == 0 and self._on_end is not None:
            self.is_over = True
            self._stop_listening()
            self._on_end()
        elif size == 0:
            # Bash has not opened it yet, or all have closed it: which of them, only the end tells.
            self._stop_listening()
            self._look = self._loop.call_later(self._wait, self._listen)
            self._wait = min(2 * self._wait, MAX_LISTEN_SECONDS)

    def _read_once(self, size: int) -> int:
        """Read what is there, up to a limit; return its size, 0 at the end, -1 for nothing."""
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return -1
        if data:
            self._on_output(self.stream, data)
        return len(data)

    def drain(self) -> None:
        """Read all that was written so far, but not what is written meanwhile: that may never end.

        A command has written all that it wrote when bash says that it has ended.
        """
        if self._fd >= 0 and not self.is_over:
            if there := readable_bytes(self._fd):
                self._read_once(there)
            self.is_over = self._read_once(READ_BYTES if there else 1) == 0

    def await_end(self, on_end: Callable[[], object]) -> None:
        """Read it on after the end of its command; call a function when no process holds it."""
        self.pause()
        self._on_end = on_end
        self._is_paused = False
        self._listen()

    def detach(self) -> DetachedOutput | None:
        """Leave the pipe to a background process that still writes; the next command has a new one.

        Returns
        -------
        DetachedOutput or None
            What reads it from now on; None when nobody writes any more.
        """
        self.pause()
        if self.is_over or self._fd < 0:
            return None
        left = DetachedOutput(self._fd)
        self._fd = -1
        self._unlink()
        return left

    def discard(self) -> None:
        """Drop what is in it, and what still comes; the next command has a new pipe."""
        self.close()
        self._unlink()

    def close(self) -> None:
        """Close it."""
        self.pause()
        self.is_over = True
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            self._path.unlink()


class DetachedOutput:
    """What a command's background processes write after its end: it is read, and its end is kept.

    Parameters
    ----------
    fd
        File descriptor to read.
    """

    def __init__(self, fd: int) -> None:
        self.tail = bytearray()
        self._limit = LATE_BYTES
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._read)

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            data = os.read(self._fd, READ_BYTES)
            self.tail += data
            del self.tail[: max(0, len(self.tail) - self._limit)]
            if not data:
                self.close()

    def forget(self) -> None:
        """Keep no more of it; it is read on, so that its writer does not wait."""
        self.tail.clear()
        self._limit = 0

    def close(self) -> None:
        """Stop reading."""
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


def readable_bytes(fd: int) -> int:
    """Return how many bytes wait in a pipe."""
    return int.from_bytes(fcntl.ioctl(fd, termios.FIONREAD, bytes(4)), sys.byteorder)


def _ignore(stream: StreamName, data: bytes) -> None:
    """Drop output."""
