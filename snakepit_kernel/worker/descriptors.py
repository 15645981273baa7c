"""What subprocesses and code in C write to the standard descriptors of a worker.

Descriptors 1 and 2 are pipes. What comes out of them goes to the worker's log, and to whoever shows
it: see `Output`. A thread takes it in the moment it comes; who wants to show something behind it
takes in first what is there.
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
"""What a pipe holds, where the system allows that: code in C that never lets Python run writes no
more than this, and waits for ever."""

READ_BYTES = 1 << 16

_NAMES = {1: "stdout", 2: "stderr"}

Take = Callable[[str, str], None]


class Descriptors:
    """Reads what is written to descriptors 1 and 2, from now on.

    Attributes
    ----------
    logs
        Descriptors of where they led before, by their names: the worker's log.
    """

    def __init__(self) -> None:
        self.logs: dict[str, int] = {}
        self._ends: dict[int, str] = {}
        self._poll = select.poll()
        own = threading.RLock()
        self._guard: Callable[[], threading.RLock] = lambda: own
        self._take: Take = _drop
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {name: decoder("replace") for name in _NAMES.values()}
        for number, name in _NAMES.items():
            stream = getattr(sys, f"__{name}__")
            if stream is not None:
                stream.flush()
            self.logs[name] = os.dup(number)
            end, theirs = os.pipe()
            os.dup2(theirs, number)
            os.close(theirs)
            with contextlib.suppress(OSError):  # the user has taken so much for pipes already
                fcntl.fcntl(end, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
            os.set_blocking(end, False)
            self._ends[end] = name
            self._poll.register(end, select.POLLIN)
        os.register_at_fork(after_in_child=self._leave)
        threading.Thread(target=self._watch, name="snakepit-descriptors", daemon=True).start()

    def _leave(self) -> None:
        """Have a forked child read nothing: what it writes is taken in by its parent."""
        for end in self._ends:
            self._poll.unregister(end)
            os.close(end)
        self._ends = {}

    def share_with(self, sock: socket.socket) -> None:
        """Let the owner have what nobody has read when this process has ended: its last words."""
        socket.send_fds(sock, [LAST_WORDS], list(self._ends))

    def give_to(self, guard: Callable[[], threading.RLock], take: Take) -> None:
        """Give what comes to a function, which is called under a guard."""
        self._guard = guard
        self._take = take

    def take_in(self) -> None:
        """Take in what is there. Called under the guard."""
        for end, _ in self._poll.poll(0):
            self._read(end)

    def log(self, name: str, text: str) -> None:
        """Write a text to the worker's log."""
        self._log(name, text.encode("utf-8", "replace"))

    def _watch(self) -> None:
        ends = select.poll()
        for end in self._ends:
            ends.register(end, select.POLLIN)
        while True:
            ends.poll()
            with self._guard():
                self.take_in()

    def _read(self, end: int) -> None:
        name = self._ends[end]
        while True:
            try:
                data = os.read(end, READ_BYTES)
            except BlockingIOError:  # the other thread has taken it
                return
            if not data:
                return
            self._log(name, data)
            text = self._decoders[name].decode(data)
            if text:
                self._take(name, text)
            if len(data) < READ_BYTES:
                return

    def _log(self, name: str, data: bytes) -> None:
        with contextlib.suppress(OSError):  # no room on the disk: the output is shown all the same
            logs.bound(self.logs[name])
            data = data[-logs.LOG_BYTES :]
            while data:
                data = data[os.write(self.logs[name], data) :]


def _drop(_name: str, _text: str) -> None:
    pass
