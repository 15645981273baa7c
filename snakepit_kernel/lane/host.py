"""The owner's end of a lane."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal
from weakref import WeakSet

from ..protocol.frames import Frame, FrameReader, FrameWriter, Segment
from .page import Page


class LaneClosed(ConnectionError):
    """The worker closed its end, or died."""


class Lane:
    """One worker's lane, used by one thread or task at a time.

    Parameters
    ----------
    sock
        Connected stream socket.
    page
        The page beside it.
    """

    def __init__(self, sock: socket.socket, page: Page) -> None:
        self._socket = sock
        self._timeout: float | None = sock.gettimeout()
        self._recv_now = partial(sock.recv_into, flags=socket.MSG_DONTWAIT)
        self._reader = FrameReader()
        self._writer = FrameWriter()
        self._ids = itertools.count(1)
        self.page = page
        _open_lanes.add(self)

    @classmethod
    def create(cls) -> tuple[Lane, socket.socket]:
        """Make a lane; return it and the end that the worker inherits, with the page."""
        ours, theirs = socket.socketpair()
        return cls(ours, Page.create()), theirs

    def fileno(self) -> int:
        """Return the socket's file descriptor, for event loops; -1 when it is closed."""
        return self._socket.fileno()

    def new_call_id(self) -> int:
        """Return an id that no other call on this lane has."""
        return next(self._ids)

    def send(self, segments: Sequence[Segment], deadline: float | None = None) -> None:
        """Send a frame; wait as long as the worker takes to read it.

        An exception in the middle (Ctrl-C, the deadline) leaves the rest of the frame in the lane,
        and the next `send` sends it first, so the stream stays whole.

        Raises
        ------
        TimeoutError
            The deadline passed.
        LaneClosed
            The worker is gone.
        """
        self._writer.put(segments)
        try:
            self._limit(deadline)
            while not self._writer.send(self._socket.sendmsg):
                self._limit(deadline)
        except TimeoutError:
            raise
        except OSError as error:
            raise LaneClosed(*error.args) from error

    def put(self, segments: Sequence[Segment]) -> None:
        """Take in a frame, for `send_ready` to send."""
        self._writer.put(segments)

    def send_ready(self) -> bool:
        """Send as much as goes without waiting; say whether nothing is left.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        try:
            self._let_wait(0.0)
            while not self._writer.send(self._socket.sendmsg):
                pass
        except BlockingIOError:
            return False
        except OSError as error:
            raise LaneClosed(*error.args) from error
        return True

    def receive(self, deadline: float | None = None) -> Frame:
        """Wait for the next frame.

        Parameters
        ----------
        deadline
            `time.monotonic` at which to give up.

        Raises
        ------
        TimeoutError
            The deadline passed; nothing that was received so far is lost.
        LaneClosed
            The worker is gone.
        """
        while (frame := self._reader.next_frame()) is None:
            if self._reader.at_end:
                raise LaneClosed
            try:
                self._limit(deadline)
                self._reader.receive(self._socket.recv_into)
            except TimeoutError:
                raise
            except OSError as error:
                raise LaneClosed(*error.args) from error
        return frame

    def receive_ready(self, take: Callable[[Frame], bool]) -> Literal["more", "done"]:
        """Hand over the frames that have arrived, without waiting, until one is the last.

        Parameters
        ----------
        take
            Handles a frame; says whether it was the one that was waited for.

        Raises
        ------
        LaneClosed
            The worker is gone.
        """
        while True:
            while (frame := self._reader.next_frame()) is not None:
                if take(frame):
                    return "done"
            if self._reader.at_end:
                raise LaneClosed
            try:
                self._reader.receive(self._recv_now)
            except BlockingIOError:
                return "more"
            except OSError as error:
                raise LaneClosed(*error.args) from error

    def _limit(self, deadline: float | None) -> None:
        """Let the next system call wait until the deadline at most."""
        timeout = None if deadline is None else deadline - time.monotonic()
        if timeout is not None and timeout <= 0:
            raise TimeoutError
        self._let_wait(timeout)

    def _let_wait(self, timeout: float | None) -> None:
        if timeout != self._timeout:
            self._socket.settimeout(timeout)
            self._timeout = timeout

    def hang_up(self) -> None:
        """End the conversation from another thread: both ends see the end of the stream."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the lane, when no thread uses it. The worker sees it and ends."""
        if self._socket.fileno() >= 0:
            self._socket.close()
            self.page.close()
        _open_lanes.discard(self)


_open_lanes: WeakSet[Lane] = WeakSet()


def _release_in_child() -> None:
    """Close every lane in a forked child: two processes on one stream would tear it."""
    for lane in list(_open_lanes):
        lane.close()


os.register_at_fork(after_in_child=_release_in_child)
