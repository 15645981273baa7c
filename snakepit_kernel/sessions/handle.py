"""A session in the store, as one process knows it."""

from __future__ import annotations

import time

from ..errors import (
    SessionNotFound,
)
from ..store.schema import GLOBAL
from ..store.session_table import SessionRow
from ..store.store import Store

LOOK_AGAIN = 30.0
"""Seconds after which a session that is in use is looked at again, if its time is longer."""


class SessionHandle:
    """A session in the store, as this process knows it: whether it lives, and for how long.

    Parameters
    ----------
    store
        Where it is.
    row
        What was read of it.
    """

    def __init__(self, store: Store, row: SessionRow) -> None:
        self.store = store
        self.row = row
        self._look_at = 0.0

    def touch(self) -> None:
        """Note that it is used.

        Raises
        ------
        SessionNotFound
            It has expired, or was deleted.
        """
        now = time.monotonic()
        if now < self._look_at:
            return
        if self.row.number != GLOBAL:
            # As it is now: another process may have changed its time to live.
            self.row = self.store.sessions.touch(self.store.sessions.reload(self.row))
        step = LOOK_AGAIN if self.row.ttl is None else min(LOOK_AGAIN, self.row.ttl / 20)
        self._look_at = now + step

    def refresh(self) -> None:
        """Look at it with the next use."""
        self._look_at = 0.0

    def check(self) -> None:
        """Do nothing if it is still there; the error is that of `touch`."""
        if not self.store.sessions.exists(self.row.number):
            raise SessionNotFound(self.row.id)
