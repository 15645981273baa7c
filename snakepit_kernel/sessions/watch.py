"""Following the changes of variables."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Protocol, Self

from ..errors import SessionNotFound, SnakepitError
from ..validation import bounded
from .values import Change

logger = logging.getLogger(__name__)

BATCH = 100
"""Changes that are read at a time."""

POLL = 0.05
"""Seconds between looks where nothing tells of a change."""


PATIENCE = 1.0
"""Seconds between looks where somebody should tell."""


class Source(Protocol):
    """Where a watch finds changes."""

    def revision(self) -> int:
        """Return the number of the last change of all."""

    def changes(self, after: int, limit: int, pattern: str) -> tuple[list[Change], int]:
        """Return changes behind a revision, and the revision to go on from."""


class Hub(Protocol):
    """Tells that something may have changed."""

    def add(self, listener: Callable[[], None]) -> None:
        """Call a listener from now on, in a thread."""

    def remove(self, listener: Callable[[], None]) -> None:
        """Call it no more."""


class Watch:
    """The changes of variables from the moment on when it was made, in their order.

    Nothing is kept in memory for a slow reader: changes are read from the store when they are
    asked for. Of a variable that changes more often than its history is long, the oldest may be
    missing, and of one that is deleted, what was not asked for before. Iterate over it in one
    thread or task, or have it call a function.

    Parameters
    ----------
    source
        Where the changes are found.
    pattern
        Of the names.
    hub
        Tells of changes; None to look every 50 ms, as a worker does.
    """

    def __init__(self, source: Source, pattern: str, hub: Hub | None) -> None:
        self._source = source
        self._pattern = pattern
        self._hub = hub
        self._after = source.revision()
        self._ready: deque[Change] = deque()
        self._news = threading.Event()
        self._tell: Callable[[], None] = self._news.set
        self._is_closed = False
        self._listener = partial(
            _tell_if_alive, weakref.ref(self)
        )  # or it would never be collected
        if hub is not None:
            hub.add(self._listener)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Watch of {self._pattern!r}, {state}>"

    # -- taking --------------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Change:
        """Wait for the next change, and return it.

        Raises
        ------
        TimeoutError
            There was none within ``timeout`` seconds.
        SessionNotFound
            The session is gone.
        ValueError
            The watch is closed.
        """
        change = self._wait(timeout)
        if change is None:
            msg = "the watch was closed"
            raise ValueError(msg)
        return change

    def _wait(self, timeout: float | None) -> Change | None:
        """Return the next change, or None when the watch is closed."""
        deadline = None if timeout is None else time.monotonic() + bounded(timeout)
        while not self._is_closed:
            self._news.clear()
            if (change := self._next()) is not None:
                return change
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                msg = f"no variable like {self._pattern!r} changed within {timeout:g} s"
                raise TimeoutError(msg)
            if self._hub is None:  # in a worker nothing tells: it has to ask
                time.sleep(POLL if left is None else min(POLL, left))
            elif not self._is_closed:
                # In a forked child nobody tells either; but there it is not worth a thread.
                self._news.wait(PATIENCE if left is None else min(PATIENCE, left))
        return None

    def __iter__(self) -> Iterator[Change]:
        while (change := self._wait(None)) is not None:
            yield change

    async def __aiter__(self) -> AsyncIterator[Change]:
        loop = asyncio.get_running_loop()
        news = asyncio.Event()

        def tell() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(news.set)

        self._tell = tell
        try:
            while not self._is_closed:
                news.clear()
                change = self._next()
                if change is not None:
                    yield change
                elif self._hub is None:
                    await asyncio.sleep(POLL)  # as above
                else:
                    await news.wait()
        finally:
            if self._tell is tell:
                self._tell = self._news.set

    def _next(self) -> Change | None:
        """Return a change if there is one."""
        while not self._ready and not self._is_closed:
            before = self._after
            changes, self._after = self._source.changes(before, BATCH, self._pattern)
            self._ready.extend(changes)
            if self._after == before:
                break
        return self._ready.popleft() if self._ready and not self._is_closed else None

    # -- calling -------------------------------------------------------------------------------

    def call(self, callback: Callable[[Change], object]) -> None:
        """Call a function with each change, in a thread of its own.

        A function that raises is told of in the log, and called again for the next change. What it
        prints appears in the cell that called this.
        """
        context = contextvars.copy_context()
        threading.Thread(
            target=context.run, args=(self._call, callback), name="snakepit-callback", daemon=True
        ).start()

    def _call(self, callback: Callable[[Change], object]) -> None:
        try:
            for change in self:
                try:
                    callback(change)
                except Exception:
                    logger.exception("a watcher of %r failed", self._pattern)
        except (SessionNotFound, RuntimeError) as error:  # it, or the call, has ended
            logger.info("a watch of %r ends: %s", self._pattern, error)
        except SnakepitError as error:
            logger.warning("a watch of %r ends: %s", self._pattern, error)
        finally:
            self.close()

    # -- closing -------------------------------------------------------------------------------

    def close(self) -> None:
        """Follow no more; whoever waits for a change waits no more."""
        self._is_closed = True
        if self._hub is not None:
            self._hub.remove(self._listener)
        self._tell()
        self._news.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self.close()


def _tell_if_alive(watch: weakref.ref[Watch]) -> None:
    found = watch()
    if found is not None:
        found._tell()  # noqa: SLF001 - its own
