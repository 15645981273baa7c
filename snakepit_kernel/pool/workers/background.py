"""Tasks in the background of a pool, which end before its workers do."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from ...processes.concurrency import LoopThread


class BackgroundTasks:
    """Tasks in a pool's loop thread that must not go on when its workers are ended.

    Parameters
    ----------
    loop_thread
        Runs them.
    """

    def __init__(self, loop_thread: LoopThread) -> None:
        self._loop_thread = loop_thread
        self._tasks: set[asyncio.Task[Any]] = set()

    def run(self, work: Coroutine[Any, Any, object]) -> None:
        """Run a coroutine as a task, which is cancelled when the pool ends."""
        self._add(self._loop_thread.spawn(work))

    def add_current(self) -> None:
        """Let the end of the pool cancel the current task as well."""
        task = asyncio.current_task()
        assert task is not None
        self._add(task)

    def _add(self, task: asyncio.Task[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def cancel(self) -> None:
        """Cancel all of them; return when they have ended."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
