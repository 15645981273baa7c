"""Priority queue of a pool, fair between sessions. Pure: no clock, no lock, no I/O.

A KeyboardInterrupt may end `FairQueue.append` and `FairQueue.remove` wherever they call a function.
All changes that belong together follow each other there without a call in between.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from typing import Any, Generic, Literal, Protocol, TypeVar

Bound = Literal["max_queue", "max_futures"]
"""The limit that an item counts against: waiting callers, or futures, which block no thread."""


class Waiting(Hashable, Protocol):
    """An item of the queue."""

    @property
    def session(self) -> str | None:
        """The session of the item; all items without a session count as one session."""

    @property
    def priority(self) -> int:
        """Higher is served first."""

    @property
    def bound(self) -> Bound | None:
        """The queue limit that the item counts against."""


T = TypeVar("T", bound=Waiting)

Line = OrderedDict[T, None]
"""The queued items of one session, first in, first out."""


class FairQueue(Generic[T]):
    """Queued items in the order of service.

    Higher priority is served first. Within a priority, the session that holds the fewest lanes is
    served first; among sessions with equally many, the least recently served; within a session,
    the oldest item. So a session that queues a thousand items delays another session only by the
    items that run, not by those that wait. With one session, or none, it is first in, first out.

    Attributes
    ----------
    size
        Number of items.
    waiting
        Number of items that count against each limit.
    """

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str | None, Line[T]]] = {}
        self._priorities: list[int] = []  # of the levels, the highest first
        self._held: dict[str | None, int] = {}  # number of lanes held by each session; no zeros
        self.size = 0
        self.waiting: dict[Bound | None, int] = {"max_queue": 0, "max_futures": 0, None: 0}

    def __len__(self) -> int:
        return self.size

    def __contains__(self, item: T) -> bool:
        lines = self._levels.get(item.priority)
        line = None if lines is None else lines.get(item.session)
        return line is not None and item in line

    def __iter__(self) -> Iterator[T]:
        """Iterate in the order of service; the queue must not change during the iteration."""
        for priority in self._priorities:
            lines = self._levels[priority]
            if len(lines) == 1:
                yield from next(iter(lines.values()))
            else:
                yield from self._in_turns(lines)

    def _in_turns(self, lines: OrderedDict[str | None, Line[T]]) -> Iterator[T]:
        """Iterate over the items of several sessions, as if each assigned lane were kept."""
        turns: dict[int, list[Iterator[T]]] = {}
        for session, line in lines.items():
            held = self._held.get(session, 0)
            if held == 0:  # the fast path: most consumers take only the first item
                rest = iter(line)
                yield next(rest)
                turns.setdefault(1, []).append(rest)
            else:
                turns.setdefault(held, []).append(iter(line))
        for held in itertools.count(1):
            if not turns:
                return
            for rest in turns.pop(held, ()):
                for item in itertools.islice(rest, 1):
                    yield item
                    turns.setdefault(held + 1, []).append(rest)

    def append(self, item: T) -> None:
        """Queue an item behind the others of its session."""
        priority, session, bound = item.priority, item.session, item.bound
        waiting = self.waiting.get(bound, 0) + 1
        priorities = self._priorities
        target: dict[Any, Any] = self._levels
        key: object = priority
        value: object = None
        lines = self._levels.get(priority)
        if lines is None:
            value = OrderedDict({session: OrderedDict({item: None})})
            priorities = sorted((*priorities, priority), reverse=True)
        elif session not in lines:
            target, key, value = lines, session, OrderedDict({item: None})
        else:
            target, key = lines[session], item
        target[key] = value
        self._priorities = priorities
        self.size += 1
        self.waiting[bound] = waiting

    def put_first(self, item: T) -> None:
        """Queue an item ahead of all others of its priority."""
        self.append(item)
        lines = self._levels[item.priority]
        lines[item.session].move_to_end(item, last=False)
        lines.move_to_end(item.session, last=False)

    def remove(self, item: T) -> bool:
        """Remove an item; return whether it was queued."""
        lines = self._levels.get(item.priority)
        line = None if lines is None else lines.get(item.session)
        if lines is None or line is None or item not in line:
            return False
        del line[item]
        self.size -= 1
        self.waiting[item.bound] -= 1
        if not line:
            del lines[item.session]
            if not lines:
                del self._levels[item.priority]
                self._priorities.remove(item.priority)
        return True

    def clear(self) -> list[T]:
        """Remove all items, and return them in the order of service."""
        items = list(self)
        self._levels.clear()
        self._priorities.clear()
        self.size = 0
        self.waiting = dict.fromkeys(self.waiting, 0)
        return items

    # -- lanes held by each session --------------------------------------------------------------

    def record_assigned(self, item: T) -> None:
        """Record that an item, no longer queued, was assigned a lane: its session had its turn."""
        session = item.session
        self._held[session] = self._held.get(session, 0) + 1
        if self.size:
            lines = self._levels.get(item.priority)
            if lines is not None and session in lines:
                lines.move_to_end(session)

    def record_held(self, session: str | None) -> None:
        """Record that a session holds one more lane, without counting it as its turn."""
        self._held[session] = self._held.get(session, 0) + 1

    def record_released(self, session: str | None) -> None:
        """Record that a session released a lane."""
        left = self._held.pop(session, 0) - 1
        if left > 0:
            self._held[session] = left
