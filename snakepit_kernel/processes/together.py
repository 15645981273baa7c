"""Work that several tasks ask for at the same moment, done once for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


class Together(Generic[Key, Item, Result]):
    """Gathers what the tasks of an event loop ask for before it has begun, and does it in one go.

    Parameters
    ----------
    work
        Gets a key, and all items that were asked for under it.
    """

    def __init__(self, work: Callable[[Key, list[Item]], Awaitable[Result]]) -> None:
        self._work = work
        self._next: dict[tuple[Any, Key], tuple[list[Item], asyncio.Task[Result]]] = {}

    async def ask(self, key: Key, item: Item) -> Result:
        """Have an item worked on; return what the work on all of them gave."""
        loop = asyncio.get_running_loop()
        place = (loop, key)
        if place not in self._next:
            items: list[Item] = []
            entry = self._next[place] = items, loop.create_task(self._do(place, items))
            entry[1].add_done_callback(lambda _: self._forget(place, entry))
        items, task = self._next[place]
        items.append(item)
        return await asyncio.shield(task)

    def _forget(self, place: tuple[Any, Key], entry: object) -> None:
        """Let go of work that was cancelled before it began."""
        if self._next.get(place) is entry:
            del self._next[place]

    async def _do(self, place: tuple[Any, Key], items: list[Item]) -> Result:
        del self._next[place]  # who comes now is too late: the work may have passed over it
        return await self._work(place[1], items)
