"""Durations that users give: as long as they like, where the system's own calls have a limit."""

from __future__ import annotations

from typing import overload

FOREVER = 1e9
"""Seconds, 31 years, from which on a duration is no limit: locks, sockets and clocks have theirs,
and raise `OverflowError` beyond."""


@overload
def bounded(seconds: None) -> None: ...
@overload
def bounded(seconds: float) -> float: ...
def bounded(seconds: float | None) -> float | None:
    """Return a duration that can be waited for: any number, infinity included, or None."""
    if seconds is None:
        return None
    return FOREVER if seconds >= FOREVER else float(seconds)
