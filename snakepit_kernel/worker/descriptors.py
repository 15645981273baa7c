"""Capture of what subprocesses and C code write to a worker's descriptors 1 and 2.

Both descriptors are pipes. Their text goes to the worker's log and to a consumer that shows it, see
`Output`. A thread reads them as soon as there is data; code that must show something after that
text reads what is there first.
"""

from __future__ import annotations

import codecs
import contextlib
import fcntl
import os
import select
import socket
import sys
import threading
from collections.abc import Callable

from ..processes import logs
from ..protocol.messages import LAST_WORDS

PIPE_BYTES = 1 << 20
"""Capacity of a pipe, where the system allows it. C code that never lets Python run can write this
much before it blocks for ever."""

READ_BYTES = 1 << 16

_NAMES = {1: "stdout", 2: "stderr"}

OnText = Callable[[str, str], None]


class Descriptors:
    """Redirects descriptors 1 and 2 into pipes and reads them.

    Attributes
    ----------
    logs
        Duplicates of the original descriptors, by stream name: the worker's log.
    """

    def __init__(self) -> None:
        self.logs: dict[str, int] = {}
        self._read_ends: dict[int, str] = {}
        self._poll = select.poll()
        own = threading.RLock()
        self._lock: Callable[[], threading.RLock] = lambda: own
        self._on_text: OnText = _discard
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: decoder("replace") for name in _NAMES.values()}
        for number, name in _NAMES.items():
            stream = getattr(sys, f"__{name}__")
            if stream is not None:
                stream.flush()
            self.logs[name] = os.dup(number)
            end, write_end = os.pipe()
            os.dup2(write_end, number)
            os.close(write_end)
            with contextlib.suppress(OSError):  # the user's limit for pipes is reached
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(end, False)
            self._read_ends[end] = name
            self._poll.register(end, select.POLLIN)
        os.register_at_fork(after_in_child=self._close_in_child)
        threading.Thread(target=self._watch, name="snakepit-descriptors", daemon=True).start()

    def _close_in_child(self) -> None:
        """Stop reading in a forked child: its parent reads what it writes."""
        for end in self._read_ends:
            self._poll.unregister(end)
            os.close(end)
        self._read_ends = {}

    def send_read_ends(self, sock: socket.socket) -> None:
        """Send the owner the read ends, for what is still unread when this process has ended."""
        socket.send_fds(sock, [LAST_WORDS], list(self._read_ends))

    def set_consumer(self, lock: Callable[[], threading.RLock], on_text: OnText) -> None:
        """Pass the text that is read to a function, which is called under a lock."""
        self._lock = lock
        self._on_text = on_text

    def read_available(self) -> None:
        """Read what is available without waiting. Called under the lock."""
        for end, _ in self._poll.poll(0):
            self._read(end)

    def log(self, name: str, text: str) -> None:
        """Write a text to the worker's log."""
        self._log(name, text.encode("utf-8", "replace"))

    def _watch(self) -> None:
        ends = select.poll()
        for end in self._read_ends:
            ends.register(end, select.POLLIN)
        while True:
            ends.poll()
            with self._lock():
                self.read_available()

    def _read(self, end: int) -> None:
        name = self._read_ends[end]
        while True:
            try:
                data = os.read(end, READ_BYTES)
            except BlockingIOError:  # the other thread has read it
                return
            if not data:
                return
            self._log(name, data)
            text = self._decoders[name].decode(data)
            if text:
                self._on_text(name, text)
            if len(data) < READ_BYTES:
                return

    def _log(self, name: str, data: bytes) -> None:
        with contextlib.suppress(OSError):  # no room on the disk: the output is shown all the same
            logs.bound(self.logs[name])
            data = data[-logs.LOG_BYTES :]
            while data:
                data = data[os.write(self.logs[name], data) :]


def _discard(_name: str, _text: str) -> None:
    pass
