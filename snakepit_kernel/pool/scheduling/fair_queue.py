"""The queue of a pool: fair between sessions. Pure: no clock, no lock, no I/O."""

from __future__ import annotations

import itertools
from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterator
from typing import Generic, Literal, Protocol, TypeVar

Bound = Literal["max_queue", "max_futures"]
"""What of a queue is bounded: who waits, and what nobody waits for in a thread."""


class Waiting(Hashable, Protocol):
    """Who waits."""

    @property
    def session(self) -> str | None:
        """Whose it is; all work without a session is one more."""

    @property
    def priority(self) -> int:
        """Higher goes first."""

    @property
    def bound(self) -> Bound | None:
        """The bound of the queue that it counts against."""


T = TypeVar("T", bound=Waiting)

Line = OrderedDict[T, None]
"""What one session has waiting, first come, first served."""


class FairQueue(Generic[T]):
    """Items in the order in which they are to be served.

    Higher priority goes first. Within one, the session that holds the fewest places does; among
    those that hold as many, the one that was served the longest ago; within a session, whoever came
    first. So a session that asks for a thousand things at once delays another one by what runs, and
    not by what waits. With one session, or none, it is first come, first served.

    Attributes
    ----------
    size
        How many there are.
    waiting
        How many of them count against each bound.
    """

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str | None, Line[T]]] = {}
        self._priorities: list[int] = []  # of the levels, the highest first
        self._held: dict[str | None, int] = {}  # places, by session; no zeros
        self.size = 0
        self.waiting: Counter[Bound | None] = Counter()

    def __len__(self) -> int:
        return self.size

    def __contains__(self, item: T) -> bool:
        lines = self._levels.get(item.priority)
        line = None if lines is None else lines.get(item.session)
        return line is not None and item in line

    def __iter__(self) -> Iterator[T]:
        """Iterate in the order of service; nothing may be added or removed meanwhile."""
        for priority in self._priorities:
            lines = self._levels[priority]
            if len(lines) == 1:
                yield from next(iter(lines.values()))
            else:
                yield from self._in_turns(lines)

    def _in_turns(self, lines: OrderedDict[str | None, Line[T]]) -> Iterator[T]:
        """Iterate over what several sessions have waiting, as if each place given were kept."""
        turns: dict[int, list[Iterator[T]]] = {}
        for session, line in lines.items():
            held = self._held.get(session, 0)
            if held == 0:  # the most likely one first: mostly nobody asks for a second
                ahead = iter(line)
                yield next(ahead)
                turns.setdefault(1, []).append(ahead)
            else:
                turns.setdefault(held, []).append(iter(line))
        for held in itertools.count(1):
            if not turns:
                return
            for ahead in turns.pop(held, ()):
                for item in itertools.islice(ahead, 1):
                    yield item
                    turns.setdefault(held + 1, []).append(ahead)

    def append(self, item: T) -> None:
        """Take an item in, behind the others of its session."""
        self._line_of(item)[item] = None
        self.size += 1
        self.waiting[item.bound] += 1

    def put_first(self, item: T) -> None:
        """Take an item in, before all others of its priority."""
        line = self._line_of(item)
        line[item] = None
        line.move_to_end(item, last=False)
        self._levels[item.priority].move_to_end(item.session, last=False)
        self.size += 1
        self.waiting[item.bound] += 1

    def _line_of(self, item: T) -> Line[T]:
        lines = self._levels.get(item.priority)
        if lines is None:
            lines = self._levels[item.priority] = OrderedDict()
            self._priorities = sorted(self._levels, reverse=True)
        line = lines.get(item.session)
        if line is None:
            line = lines[item.session] = OrderedDict()
        return line

    def remove(self, item: T) -> bool:
        """Take an item out; say whether it was there."""
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
        """Take all items out, and return them."""
        items = list(self)
        self._levels.clear()
        self._priorities.clear()
        self.size = 0
        self.waiting.clear()
        return items

    # -- who holds what ------------------------------------------------------------------------

    def hold(self, item: T) -> None:
        """Note that an item, out of the queue, got a place: its session has had its turn."""
        session = item.session
        self._held[session] = self._held.get(session, 0) + 1
        if self.size:
            lines = self._levels.get(item.priority)
            if lines is not None and session in lines:
                lines.move_to_end(session)

    def count(self, session: str | None) -> None:
        """Note that a session has one place more, without a turn of its own."""
        self._held[session] = self._held.get(session, 0) + 1

    def let_go(self, session: str | None) -> None:
        """Note that a session gave a place back."""
        left = self._held.pop(session, 0) - 1
        if left > 0:
            self._held[session] = left
