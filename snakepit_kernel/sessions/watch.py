"""Watches: the changes of variables, as an iterator or with a callback."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Protocol, Self

from ..errors import SessionNotFound, SnakepitError
from ..loggers import get_logger
from ..tracebacks import hide_own_frames, hides_own_frames
from ..validation import bounded
from .values import Change

logger = get_logger(__name__)

BATCH = 100
"""Changes that are read at a time."""

POLL_SECONDS = 0.05
"""Seconds between polls where no notifications arrive."""


FALLBACK_POLL_SECONDS = 1.0
"""Seconds between polls where notifications should arrive."""


class Source(Protocol):
    """Source of a watch's changes."""

    def revision(self) -> int:
        """Return the number of the last change of all."""

    def changes(self, after: int, limit: int, pattern: str) -> tuple[list[Change], int]:
        """Return changes after a revision, and the revision to continue from."""


class Hub(Protocol):
    """Notifies listeners that something may have changed."""

    def add(self, listener: Callable[[], None]) -> None:
        """Add a listener, which is called in a thread."""

    def remove(self, listener: Callable[[], None]) -> None:
        """Remove a listener."""


@hides_own_frames
class Watch:
    """The changes of variables since it was made, in their order.

    Nothing is kept in memory for a slow reader: changes are read from the store on demand. The
    oldest changes of a variable may be missing if it has changed more often than its history is
    long, and the unread ones if it was deleted. Iterate over it in one thread or task, or let it
    call a function.

    Parameters
    ----------
    source
        Source of the changes.
    pattern
        Pattern of the variables' names.
    hub
        Notifies of changes; None to poll every 50 ms, as a worker does.
    """

    def __init__(self, source: Source, pattern: str, hub: Hub | None) -> None:
        self._source = source
        self._pattern = pattern
        self._hub = hub
        self._after = source.revision()
        self._ready: deque[Change] = deque()
        self._changed = threading.Event()
        self._notify: Callable[[], None] = self._changed.set
        self._is_closed = False
        self._listener = partial(
            _notify_if_alive, weakref.ref(self)
        )  # a strong reference would keep the watch alive
        if hub is not None:
            hub.add(self._listener)

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Watch of {self._pattern!r}, {state}>"

    # -- iterating -----------------------------------------------------------------------------

    def get(self, timeout: float | None = None) -> Change:
        """Wait for the next change, and return it.

        Raises
        ------
        TimeoutError
            There was none within ``timeout`` seconds.
        SessionNotFound
            The session does not exist any more.
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
            self._changed.clear()
            if (change := self._next()) is not None:
                return change
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                msg = f"no variable like {self._pattern!r} changed within {timeout:g} s"
                raise TimeoutError(msg)
            if self._hub is None:  # a worker gets no notifications, and has to poll
                time.sleep(POLL_SECONDS if left is None else min(POLL_SECONDS, left))
            elif not self._is_closed:
                # A forked child gets no notifications either, but is not worth a thread.
                self._changed.wait(
                    FALLBACK_POLL_SECONDS if left is None else min(FALLBACK_POLL_SECONDS, left)
                )
        return None

    def __iter__(self) -> Iterator[Change]:
        while (change := self._wait(None)) is not None:
            yield change

    async def __aiter__(self) -> AsyncIterator[Change]:
        loop = asyncio.get_running_loop()
        changed = asyncio.Event()

        def notify() -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(changed.set)

        self._notify = notify
        try:
            while not self._is_closed:
                changed.clear()
                change = self._next()
                if change is not None:
                    yield change
                elif self._hub is None:
                    await asyncio.sleep(POLL_SECONDS)  # as above
                else:
                    await changed.wait()
        except BaseException as error:
            hide_own_frames(error)
            raise
        finally:
            if self._notify is notify:
                self._notify = self._changed.set

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
        """Call a function with each change, in a separate thread.

        An exception of the function is logged, and it is called again for the next change. What it
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
        except (SessionNotFound, RuntimeError) as error:  # the session, or the call, has ended
            logger.info("a watch of %r ends: %s", self._pattern, error)
        except SnakepitError as error:
            logger.warning("a watch of %r ends: %s", self._pattern, error)
        finally:
            self.close()

    # -- closing -------------------------------------------------------------------------------

    def close(self) -> None:
        """End the watch; waits for a change end."""
        self._is_closed = True
        if self._hub is not None:
            self._hub.remove(self._listener)
        self._notify()
        self._changed.set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_is_closed", True):
            self.close()


def _notify_if_alive(watch: weakref.ref[Watch]) -> None:
    found = watch()
    if found is not None:
        found._notify()  # noqa: SLF001 - of the same module
