"""Output of a worker that no call returns: what comes after a call's end, and its last words."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from pathlib import Path

from ...locks import Lock
from ...processes import logs
from ...protocol import messages
from ...protocol.frames import Frame, FrameReader
from ...protocol.messages import LAST_WORDS, Late

LAST_BYTES = 4096
"""Size of the part of a worker's last output that goes into an error."""


class WorkerOutput:
    """Shows what calls and cells print after their end, and keeps the last output of the process.

    Parameters
    ----------
    log_path
        The file to which the process writes what it prints outside of calls.
    show
        Shows output that came late.

    Attributes
    ----------
    log_path
        That file.
    worker_end
        The worker's end of the socket for late output.
    """

    def __init__(self, log_path: Path, show: Callable[[Late, Frame], None]) -> None:
        self.log_path = log_path
        self._show = show
        self._socket, self.worker_end = socket.socketpair()
        self._socket.setblocking(False)
        self._reader = FrameReader()
        self._pipes: list[int] = []  # read ends of the pipes that its output goes through
        self._piped = b""  # the last bytes read from them
        self._final = ""
        self._lock = Lock()

    def begin(self) -> None:
        """Show what comes late from now on, in the running loop."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._socket, self._read, loop)

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        reader = self._reader
        try:
            if not self._pipes:
                _, self._pipes, _, _ = socket.recv_fds(
                    self._socket, len(LAST_WORDS), 2, socket.MSG_CMSG_CLOEXEC
                )
                return
            reader.receive(self._socket.recv_into)
        except BlockingIOError:
            return
        except OSError:
            loop.remove_reader(self._socket)
            return
        while (frame := reader.next_frame()) is not None:
            self._show(messages.decode_late(frame.header), frame)
        if reader.at_end:
            loop.remove_reader(self._socket)

    def last(self, *, has_ended: bool) -> str:
        """Return the last output that the worker wrote to its real stdout and stderr."""
        if has_ended:
            with self._lock:  # or they are closed, and their numbers are others' meanwhile
                self._drain_pipes()
        try:
            output = logs.read_end(self.log_path, 16 * LAST_BYTES)
        except OSError:
            return self._final
        # By faulthandler, with the important part first.
        crash = output.rfind(b"Fatal Python error")
        if crash >= 0:
            # Some output from before it, which may show the cause of the crash.
            shown = (self._piped[-LAST_BYTES // 4 :] + output[crash:])[:LAST_BYTES]
        else:
            shown = (output + self._piped)[-LAST_BYTES:]
        return shown.decode("utf-8", "replace").strip()

    def _drain_pipes(self) -> None:
        """Read output of the ended worker that had not reached its log."""
        for end in self._pipes:
            with contextlib.suppress(BlockingIOError):
                while data := os.read(end, 16 * LAST_BYTES):
                    self._piped = (self._piped + data)[-LAST_BYTES:]

    def close(self) -> None:
        """Remove the log of the ended worker; `last` goes on to return its end."""
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
        self._final = self.last(has_ended=True)  # an error may still have to quote it
        with contextlib.suppress(OSError):  # on a read-only disk; it is removed with the folder
            logs.remove(self.log_path)
        with self._lock:
            pipes, self._pipes = self._pipes, []
            for end in pipes:
                os.close(end)
