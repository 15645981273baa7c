"""The IOPub thread: it sends a kernel's output, and that of its forked children."""

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

MAX_BYTES = 64 << 20
"""Maximum size of a message from a forked child."""

PATIENCE = 3.0
"""Seconds that a forked child waits for its parent to receive a message; then that is lost."""

MESSAGES_AT_ONCE = 16
"""Messages of forked children that are forwarded before the parent's own get their turn."""

_NOTE = b"output"  # data that is sent with a descriptor
_LENGTH = struct.Struct("!Q")


class OutputThread(IOPubThread):
    """Sends output on the IOPub channel, also on behalf of forked children.

    ipykernel receives the output of forked children on a network port, to which every user of the
    machine can connect. Here they inherit a socket pair: it has no name, so no other process can
    reach it. Each message is written to a memory file whose descriptor is sent; so it arrives
    whole, whatever its size, among those of other children.

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
        self.io_loop.add_handler(self._inlet, self._forward, self.io_loop.READ)
        os.register_at_fork(after_in_child=self._close_inlet_in_child)

    def _setup_pipe_in(self) -> None:
        """Open no network port."""

    def _close_inlet_in_child(self) -> None:
        """In a forked child: close the parent's end, so that sending fails once the parent ends."""
        if self._outlet.fileno() >= 0:
            self._inlet.close()
            self._outlet.settimeout(PATIENCE)

    def _really_send(self, msg: Sequence[Any], *args: Any, **kwargs: Any) -> None:
        """Send a message; in a forked child, pass it to the parent."""
        if self._is_master_process():
            super()._really_send(msg, *args, **kwargs)
            self._poll_subscriptions()
        elif not self.closed:
            self._send_to_parent(msg)

    def _poll_subscriptions(self) -> None:
        """Handle the subscriptions that have arrived.

        ZeroMQ signals an arrival once, and clears the signal when something is sent. A client that
        subscribes at this moment would get no welcome message before the next one subscribes.
        """
        stream = self._xpub_stream
        if threading.current_thread() is self.thread and not stream.closed():
            stream.flush(zmq.POLLIN)

    def _send_to_parent(self, message: Sequence[Any]) -> None:
        parts = [memoryview(part).cast("B") for part in message]
        length = sum(_LENGTH.size + part.nbytes for part in parts)
        if length > MAX_BYTES:
            text = f"[{length} bytes of output are not shown: a forked child can show {MAX_BYTES}]"
            print(text, file=sys.__stderr__)
            return
        with os.fdopen(os.memfd_create("output"), "wb") as file:
            for part in parts:
                file.write(_LENGTH.pack(part.nbytes))
                file.write(part)
            file.flush()
            with contextlib.suppress(OSError):  # the parent is gone, or does not read
                socket.send_fds(self._outlet, [_NOTE], [file.fileno()])

    def _forward(self, *_: Any) -> None:
        """Send the messages that forked children have passed on."""
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
    """Read the parts of a message; return an empty list if it is invalid."""
    size = os.fstat(descriptor).st_size
    if size > MAX_BYTES:
        return []
    data = os.pread(descriptor, size, 0)
    parts: list[bytes] = []
    position = 0
    while position + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, position)
        position += _LENGTH.size + length
        parts.append(data[position - length : position])
    return parts if position == len(data) else []
