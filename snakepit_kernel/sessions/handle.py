"""One process's handle of a session in the store."""

from __future__ import annotations

import time

from ..errors import (
    SessionNotFound,
)
from ..store.schema import GLOBAL
from ..store.session_table import SessionRow
from ..store.store import Store

TOUCH_INTERVAL = 30.0
"""Seconds after which a session in use is touched in the store again, or less for a short ttl."""


class SessionHandle:
    """Keeps a session of the store from expiring while this process uses it.

    Parameters
    ----------
    store
        The session's store.
    row
        The session's row, as last read.
    """

    def __init__(self, store: Store, row: SessionRow) -> None:
        self.store = store
        self.row = row
        self._next_touch = 0.0

    def touch(self) -> None:
        """Refresh the session's expiry.

        Raises
        ------
        SessionNotFound
            It has expired, or was deleted.
        """
        now = time.monotonic()
        if now < self._next_touch:
            return
        if self.row.number != GLOBAL:
            # Read again: another process may have changed its time to live.
            self.row = self.store.sessions.touch(self.store.sessions.reload(self.row))
        step = TOUCH_INTERVAL if self.row.ttl is None else min(TOUCH_INTERVAL, self.row.ttl / 20)
        self._next_touch = now + step

    def refresh(self) -> None:
        """Touch the session in the store at its next use."""
        self._next_touch = 0.0

    def check(self) -> None:
        """Raise the error of `touch` if the session does not exist any more."""
        if not self.store.sessions.exists(self.row.number):
            raise SessionNotFound(self.row.id)
