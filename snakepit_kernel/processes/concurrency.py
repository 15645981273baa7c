"""Asyncio helpers: an event loop in a thread, and coalescing of concurrent requests."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Hashable
from functools import partial
from typing import Any, Generic, TypeVar

T = TypeVar("T")

START_PATIENCE = 1.0
"""Seconds in which a thread is there after an interrupt in its start, if it will be at all."""


async def in_thread(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a thread, while the running event loop goes on.

    Raises
    ------
    asyncio.CancelledError
        The interpreter exits: running tasks go on for a while, but no thread can be started.
    """
    try:
        running = asyncio.get_running_loop().run_in_executor(None, partial(function, *arguments))
    except RuntimeError as error:
        if "start new thread" in str(error):  # the limit of threads is reached: block instead
            return function(*arguments)
        raise asyncio.CancelledError from None
    return await running


def other_tasks(function: Callable[..., Any]) -> list[asyncio.Task[Any]]:
    """Return the running loop's tasks, except those of one coroutine function."""
    code = function.__code__
    return [
        task
        for task in asyncio.all_tasks()
        if getattr(task.get_coro(), "cr_code", None) is not code
    ]


class LoopThread:
    """An event loop in a daemon thread, in which processes are started and ended.

    The thread begins with `start`, so that whoever is interrupted meanwhile has what to `close`.

    Parameters
    ----------
    name
        Name of the thread.

    Attributes
    ----------
    stand_ins
        Identifiers of threads that do the work of the loop's thread at the moment.
    """

    def __init__(self, name: str) -> None:
        self.stand_ins: set[int] = set()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_finished = False
        self._is_starting = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread.

        Raises
        ------
        RuntimeError
            The limit of threads is reached.
        """
        self._is_starting = True
        try:
            self._thread.start()
        except RuntimeError:
            self._is_starting = False
            raise

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    @property
    def is_open(self) -> bool:
        """Whether it accepts work."""
        return not self._is_finished

    @property
    def is_here(self) -> bool:
        """Whether its thread lives in this process: no thread does in a forked child."""
        return self._thread.is_alive()

    @property
    def is_current(self) -> bool:
        """Whether the caller runs in its thread, or does the work of that thread in its own."""
        here = threading.get_ident()
        return here == self._thread.ident or here in self.stand_ins

    def ask(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        """Run a coroutine in the loop; called from another thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def soon(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a function in the loop; may be called from any thread.

        Raises
        ------
        RuntimeError
            The loop is closed.
        """
        self._loop.call_soon_threadsafe(function, *arguments)

    def read(self, descriptor: int, function: Callable[[], object]) -> None:
        """Call a function in the loop whenever a file descriptor is readable."""
        self.soon(self._loop.add_reader, descriptor, function)

    def spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Start a task, from inside the loop, and hold a reference until it ends."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """Cancel the remaining tasks, then end the loop and its thread."""

        async def finish() -> None:
            tasks = other_tasks(finish)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            with contextlib.suppress(RuntimeError):
                # At the exit of the interpreter Python 3.12.1 starts no thread that would wait for
                # those of the executor; they have ended by then.
                await asyncio.get_running_loop().shutdown_default_executor()

        if self._loop.is_closed():
            return
        until = time.monotonic() + START_PATIENCE
        while self._is_starting and not self._is_finished and not self._thread.is_alive():
            if time.monotonic() > until:  # Ctrl-C came before there was a thread
                break
            time.sleep(0.005)
        if not self._is_finished and not self._thread.is_alive():
            self._loop.close()
            return
        if not self._is_finished:  # Ctrl-C may have come anywhere here, and this is called again
            self.ask(finish()).result()
            self._is_finished = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Coalescer(Generic[Key, Item, Result]):
    """Coalesces concurrent requests: items that tasks add before the work has begun share one run.

    Parameters
    ----------
    work
        Is called with a key and all items that were added under it.
    """

    def __init__(self, work: Callable[[Key, list[Item]], Awaitable[Result]]) -> None:
        self._work = work
        self._next: dict[tuple[Any, Key], tuple[list[Item], asyncio.Task[Result]]] = {}

    async def ask(self, key: Key, item: Item) -> Result:
        """Add an item; return the result of the run that includes it."""
        loop = asyncio.get_running_loop()
        slot = (loop, key)
        if slot not in self._next:
            items: list[Item] = []
            entry = self._next[slot] = items, loop.create_task(self._do(slot, items))
            entry[1].add_done_callback(lambda _: self._forget(slot, entry))
        items, task = self._next[slot]
        items.append(item)
        return await asyncio.shield(task)

    def _forget(self, slot: tuple[Any, Key], entry: object) -> None:
        """Remove an entry whose task was cancelled before it began."""
        if self._next.get(slot) is entry:
            del self._next[slot]

    async def _do(self, slot: tuple[Any, Key], items: list[Item]) -> Result:
        del self._next[slot]  # later items need a new run: this one may have passed over them
        return await self._work(slot[1], items)
