"""Resending of an interrupt that the main thread of a kernel has not noticed."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable

INTERVAL, MAX_INTERVAL = 0.02, 1.0
"""Seconds before an unhandled SIGINT is sent again; the first doubles up to the second."""

_READ_BYTES = 4096


class InterruptWatch:
    """Sends a SIGINT again, to the main thread alone, until Python has handled it.

    Python runs signal handlers in the main thread: before a system call, or when that ends. A
    signal that comes on the thread's way into a call, or that another thread gets, interrupts no
    call: the handler would run when a ``time.sleep(60)`` is over.

    Parameters
    ----------
    loop
        The running event loop of another thread, which watches.
    is_expected
        Whether the present handler of SIGINT calls `note_handled`, called in that loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, is_expected: Callable[[], bool]) -> None:
        self._loop = loop
        self._is_expected = is_expected
        self._handled = 0
        self._handled_at = -math.inf
        self._main_thread = threading.main_thread().ident or 0
        self._arrived, self._wakeup = socket.socketpair()  # a byte for each signal that has come
        for end in (self._arrived, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        os.register_at_fork(after_in_child=self._stop_in_child)
        loop.call_soon_threadsafe(self._watch)

    def note_handled(self) -> None:
        """Record that a SIGINT is being handled; called by its handler."""
        self._handled += 1
        self._handled_at = time.monotonic()
        self._discard()

    def _discard(self) -> None:
        with contextlib.suppress(BlockingIOError):  # nothing is left
            while self._arrived.recv(_READ_BYTES):
                pass

    def _stop_in_child(self) -> None:
        """In a forked child, whose signals are not its parent's."""
        with contextlib.suppress(ValueError):  # forked by another thread than the main one
            signal.set_wakeup_fd(-1)
        self._arrived.close()
        self._wakeup.close()

    def _watch(self) -> None:
        self._loop.add_reader(self._arrived, self._on_signal)

    def _on_signal(self) -> None:
        # A signal that another thread gets is reported to Python first, and then here: it may have
        # been handled in between.
        if time.monotonic() - self._handled_at < INTERVAL:
            self._discard()
            return
        self._loop.remove_reader(self._arrived)
        self._loop.call_later(INTERVAL, self._check, INTERVAL)

    def _check(self, interval: float) -> None:
        handled = self._handled
        try:
            arrived = self._arrived.recv(_READ_BYTES, socket.MSG_PEEK)
        except BlockingIOError:  # handled
            self._watch()
            return
        if signal.SIGINT in arrived and self._is_expected():
            # No call between these: the handler cannot run between them, and be called twice.
            if self._handled == handled:
                signal.pthread_kill(self._main_thread, signal.SIGINT)
            interval = min(2 * interval, MAX_INTERVAL)
            self._loop.call_later(interval, self._check, interval)
        else:
            with contextlib.suppress(BlockingIOError):
                self._arrived.recv(len(arrived))
            self._watch()
