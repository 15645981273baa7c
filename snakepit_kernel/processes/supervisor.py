"""A thread with an event loop of its own, for what starts and ends processes beside its owner."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread, while the running event loop goes on.

    Raises
    ------
    asyncio.CancelledError
        The interpreter exits: what runs goes on for a while, but no thread can be begun.
    """
    try:
        running = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))
    except RuntimeError as error:
        if "start new thread" in str(error):  # there are as many as there may be: we must wait
            return function(*arguments)
        raise asyncio.CancelledError from None
    return await running


def tasks_beside(function: Callable[..., Any]) -> list[asyncio.Task[Any]]:
    """Return the tasks of the running loop that do not run a certain coroutine function."""
    code = function.__code__
    return [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "cr_code", None) is not code
    ]


class Supervisor:
    """An event loop in a daemon thread. Everything that starts or ends a process runs in it.

    Parameters
    ----------
    name
        Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_finished = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def is_open(self) -> bool:
        """Whether it can be asked for anything."""
        return not self._is_finished

    @property
    def is_current(self) -> bool:
        """Whether this is its thread."""
        return threading.current_thread() is self._thread

    def ask(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the loop, asked from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop, asked from any thread.

        Raises
        ------
        RuntimeError
            The loop is closed.
        """
        self._loop.call_soon_threadsafe(function, *arguments)

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Start a task, from inside the loop. It is kept until it ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """End the loop and its thread, when nothing is left to do in it."""

        async def finish() -> None:
            tasks = tasks_beside(finish)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_default_executor()

        if self._loop.is_closed():
            return
        if not self._is_finished:  # Ctrl-C may have come anywhere here, and this is called again
            self.ask(finish()).result()
            self._is_finished = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
