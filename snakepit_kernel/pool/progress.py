"""A progress bar of futures."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, as_completed
from typing import Any, TypeVar

from ..output.progress_bars import Settings, open_bar

F = TypeVar("F", bound="Future[Any]")


def progress(futures: Iterable[F], *, description: str = "") -> list[F]:
    """Wait until futures have ended, and show a bar that moves with each of them.

    Ctrl-C ends the wait; the futures go on.

    Parameters
    ----------
    futures
        Futures of `Pool.submit`, or of any other executor.
    description
        A text before the bar.

    Returns
    -------
    list
        The futures, in the order in which they were given. All of them have ended.

    Examples
    --------
    ``results = [future.result() for future in progress(futures)]``
    """
    awaited = list(futures)
    bar = open_bar(_settings(awaited, 0, 0, description))
    ended = failed = 0
    try:
        for future in as_completed(awaited):
            ended += 1
            failed += future.cancelled() or future.exception() is not None
            bar.show(_settings(awaited, ended, failed, description))
    finally:
        bar.close(_settings(awaited, ended, failed, description))
    return awaited


def _settings(awaited: list[F], ended: int, failed: int, description: str) -> Settings:
    return {
        "n": ended,
        "total": len(set(awaited)),
        "unit": "call",
        "prefix": f"{description}: " if description else "",
        "postfix": f"{failed} failed" if failed else None,
    }
