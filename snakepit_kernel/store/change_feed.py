"""Notification of watchers when any process has changed the database."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from pathlib import Path

from inotify_simple import INotify, flags

from ..locks import RLock
from ..loggers import get_logger

logger = get_logger(__name__)

POLL_INTERVAL = 0.5
"""Seconds after which watchers check by themselves: a file system may report no changes."""

Listener = Callable[[], None]

_GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.IGNORED


class ChangeHub:
    """Calls listeners whenever the log of a database has grown.

    A call is a hint and may come too often, or half a second late: the listener reads the changes
    from the database. One thread serves all listeners; it runs while there are any.

    Parameters
    ----------
    path
        The database.
    """

    def __init__(self, path: Path) -> None:
        self._log = path.with_name(path.name + "-wal")
        self._listeners: list[Listener] = []
        self._lock = RLock()  # a watch may be garbage-collected while it is held
        self._wake: int | None = None  # eventfd that ends the thread; None when it does not run

    def add(self, listener: Listener) -> None:
        """Call a listener from now on, in the hub's own thread; it must be brief."""
        with self._lock:
            if self._wake is None:
                wake = os.eventfd(0)
                thread = threading.Thread(
                    target=self._run, args=(wake,), name="snakepit-watch", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError:  # there are too many threads
                    os.close(wake)
                    raise
                self._wake = wake
            self._listeners.append(listener)

    def remove(self, listener: Listener) -> None:
        """Stop calling a listener."""
        with self._lock, contextlib.suppress(ValueError):
            self._listeners.remove(listener)
            if not self._listeners and self._wake is not None:
                os.eventfd_write(self._wake, 1)
                self._wake = None

    def after_fork_in_child(self) -> None:
        """Reset it in a forked child, which has no thread."""
        self._listeners = []
        self._lock = RLock()
        self._wake = None

    def _run(self, wake: int) -> None:
        with contextlib.ExitStack() as open_files:
            open_files.callback(os.close, wake)
            changes = None
            with contextlib.suppress(OSError):  # there may be too many: then we only poll
                changes = open_files.enter_context(INotify())
            self._watch(wake, changes)

    def _watch(self, wake: int, changes: INotify | None) -> None:
        poll = select.poll()  # select() supports no descriptors from 1024 on
        for descriptor in [wake] if changes is None else [wake, changes.fileno()]:
            poll.register(descriptor, select.POLLIN)
        is_watched = changes is None
        while True:
            if not is_watched:
                assert changes is not None
                with contextlib.suppress(OSError):  # the log is created by the first change
                    changes.add_watch(self._log, flags.MODIFY | flags.DELETE_SELF | flags.MOVE_SELF)
                    is_watched = True
            ready = {descriptor for descriptor, _ in poll.poll(POLL_INTERVAL * 1000)}
            if wake in ready:
                return
            if changes is not None and changes.fileno() in ready:
                is_watched = not any(event.mask & _GONE for event in changes.read(timeout=0))
            self._notify()

    def _notify(self) -> None:
        with self._lock:
            listeners = list(self._listeners)
        for listener in listeners:
            try:
                listener()
            except Exception:
                logger.exception("a listener to changes of the store failed")
