"""The thread that sends a kernel's output, and what its forked children hand it."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
from collections.abc import Sequence
from typing import Any

import zmq
from ipykernel.iostream import IOPubThread

MOST_BYTES = 64 << 20
"""Bytes of one message that a forked child may hand over."""

PATIENCE = 3.0
"""Seconds that a forked child waits for its parent to take a message; then that is lost."""

MESSAGES_AT_ONCE = 16
"""Messages of forked children that are taken before the parent's own get their turn."""

_NOTE = b"output"  # what a descriptor travels with
_LENGTH = struct.Struct("!Q")


class OutputThread(IOPubThread):
    """Sends output on the IOPub channel, and that of forked children for them.

    ipykernel takes the output of forked children from a port of the network, to which every user
    of the machine can connect. Here they have a socket pair that they inherit: it has no name, so
    nobody else can reach it. Each message lies in a file in memory whose descriptor is handed over;
    so it arrives whole, whatever its size, beside those of other children.

    Parameters
    ----------
    channel
        The socket of the channel.
    session
        Signs the messages that the thread itself sends.
    """

    def __init__(self, channel: zmq.Socket[Any], session: Any) -> None:
        self._inlet, self._outlet = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        super().__init__(channel, pipe=True, session=session)
        self._inlet.setblocking(False)
        self.io_loop.add_handler(self._inlet, self._take, self.io_loop.READ)
        os.register_at_fork(after_in_child=self._become_child)

    def _setup_pipe_in(self) -> None:
        """Listen nowhere."""

    def _become_child(self) -> None:
        """Leave the parent's end to the parent: without it, nobody takes what is handed over."""
        if self._outlet.fileno() >= 0:
            self._inlet.close()
            self._outlet.settimeout(PATIENCE)

    def _really_send(self, msg: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        """Send a message, or in a forked child hand it over."""
        if self._is_master_process():
            super()._really_send(msg, *args, **kwargs)
            self._look_for_subscribers()
        elif not self.closed:
            self._hand_over(msg)

    def _look_for_subscribers(self) -> None:
        """Look what has arrived.

        ZeroMQ tells once that something has, and forgets that when something is sent. A client that
        subscribes in this moment would not be welcomed before the next one does.
        """
        stream = self._xpub_stream
        if threading.current_thread() is self.thread and not stream.closed():
            stream.flush(zmq.POLLIN)

    def _hand_over(self, message: Sequence[Any]) -> None:
        parts = [memoryview(part).cast("B") for part in message]
        length = sum(_LENGTH.size + part.nbytes for part in parts)
        if length > MOST_BYTES:
            text = f"[{length} bytes of output are not shown: a forked child can show {MOST_BYTES}]"
            print(text, file=sys.__stderr__)
            return
        with os.fdopen(os.memfd_create("output"), "wb") as file:
            for part in parts:
                file.write(_LENGTH.pack(part.nbytes))
                file.write(part)
            file.flush()
            with contextlib.suppress(OSError):  # the parent has gone, or does not read
                socket.send_fds(self._outlet, [_NOTE], [file.fileno()])

    def _take(self, *_: Any) -> None:
        """Send on what forked children have handed over."""
        for _round in range(MESSAGES_AT_ONCE):
            try:
                received = socket.recv_fds(self._inlet, len(_NOTE), 1, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            for descriptor in received[1]:
                with os.fdopen(descriptor, "rb") as file:
                    message = _read(file.fileno())
                if message:
                    self.send_multipart(message)

    def close(self) -> None:
        """Close the channel."""
        super().close()
        self._inlet.close()
        self._outlet.close()


def _read(descriptor: int) -> list[bytes]:
    """Read the parts of a message; nothing if it is none."""
    size = os.fstat(descriptor).st_size
    if size > MOST_BYTES:
        return []
    data = os.pread(descriptor, size, 0)
    parts: list[bytes] = []
    place = 0
    while place + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, place)
        place += _LENGTH.size + length
        parts.append(data[place - length : place])
    return parts if place == len(data) else []
